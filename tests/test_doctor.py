"""`pmd doctor`: whatever is wrong with a machine or its network is found, named, and told what to do
about.

In earnest where that can be: servers that lie, limits lowered in a child, a small disk that is mounted.
"""

import json
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from email.utils import formatdate
from pathlib import Path
from typing import Any

import pytest
import trustme

from pipelines import doctor as doctoring
from pipelines.cli import run
from pipelines.doctor import Finding, doctor, doctor_json, doctor_table, is_well
from pmd.errors import BadRequest
from pmd.fetch.probe import look_up, visit
from pmd.manifest import Corpus, FetchSpec, parse_corpus
from tests.netns.enter import ROOT, inside, no_namespace
from tests.small import publish
from tests.web import Fault, Web

HOSTS = ("cs.stanford.edu", "images.cocodataset.org", "storage.googleapis.com")  # of the files of `corpus_on`
NAMES = [
    *("python", "versions", "contact", "authorities", "proxies", "open files", "memory", "shared memory"),
    *("disk", "library", "resolver", "lookups", "egress", "tls", "clock"),
]


@pytest.fixture
def web() -> Iterator[Web]:
    """A web on which the hosts of our corpus have a robots.txt, at the right time."""
    with Web() as web:
        for host in HOSTS:
            tell_time(web, host)
        yield web


@pytest.fixture(autouse=True)
def library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PMD_LIBRARY", str(tmp_path / "library"))
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


def tell_time(web: Web, host: str, *, behind_s: float = 0, **fields: str) -> None:
    date = {"Date": formatdate(time.time() - behind_s, usegmt=True)}
    web.serve(host, "/robots.txt", b"User-agent: *\n", "text/plain", date | fields)


def corpus_on(web: Web, **fetch: Any) -> Corpus:
    known = {"connect_to": web.connect_to, "ca_file": str(web.ca_file), "contact": "https://us.example/"}
    return parse_corpus(
        {"name": "ours", "sources": ["coco", "cc3m"], "fetch": known | fetch}, where="the test's corpus"
    )


def found(corpus: Corpus | None, out: Path | str | None = None, **more: Any) -> dict[str, Finding]:
    findings = doctor(corpus, None if out is None else str(out), workers=1, **more)
    assert [finding.name for finding in findings] == NAMES
    for finding in findings:
        assert finding.seen and (finding.do or finding.state in ("ok", "skipped")), finding
    told = json.loads(json.dumps(doctor_json(findings)))
    assert told["ok"] is is_well(findings) and len(told["findings"]) == doctor_table(findings).row_count
    return {finding.name: finding for finding in findings}


def test_where_all_is_well_each_host_is_asked_once_and_nothing_is_written(web: Web, tmp_path: Path) -> None:
    seen = found(corpus_on(web), tmp_path / "out")
    assert {name for name, finding in seen.items() if finding.state == "bad"} == set()
    for name in ("contact", "authorities", "proxies", "open files", "library", "egress", "tls", "clock"):
        assert seen[name].state == "ok", seen[name]
    assert {request.host for request in web.requests} == {*HOSTS} and len(web.requests) == len(HOSTS)
    for request in web.requests:
        assert request.target == "/robots.txt" and "https://us.example/" in (
            request.header("User-Agent") or ""
        )
    assert [*tmp_path.iterdir()] == []


# The network


def test_a_clock_that_is_off_is_found(web: Web) -> None:
    for behind_s, state in ((60, "warn"), (3_600, "bad"), (-3_600, "bad"), (5, "ok")):
        for host in HOSTS:
            tell_time(web, host, behind_s=behind_s)
        clock = found(corpus_on(web))["clock"]
        assert clock.state == state and abs(clock.facts["ahead_s"] - behind_s) < 15, clock


def test_one_clock_that_is_off_is_not_ours_and_a_cache_tells_how_old_its_answers_are(web: Web) -> None:
    tell_time(web, HOSTS[1], behind_s=-86_400)
    assert found(corpus_on(web))["clock"].state == "ok"
    for host in HOSTS:
        tell_time(web, host, behind_s=7_200, Age="7200")
    assert found(corpus_on(web))["clock"].state == "ok"
    for host in HOSTS:
        web.serve(host, "/robots.txt", b"", headers={"Date": "yesterday"})
    assert found(corpus_on(web))["clock"].state == "skipped"


def test_a_network_without_a_way_out_is_found(web: Web) -> None:
    nowhere = corpus_on(web, connect_to={"*": "127.0.0.1:1"})
    seen = found(nowhere)
    assert seen["egress"].state == "bad" and "0 of 3" in seen["egress"].seen
    assert seen["tls"].state == seen["clock"].state == "skipped"


def test_a_host_that_is_dead_is_a_warning(web: Web) -> None:
    one_dead = web.connect_to | {HOSTS[1]: "127.0.0.1:1"}
    egress = found(corpus_on(web, connect_to=one_dead))["egress"]
    assert egress.state == "warn" and HOSTS[1] in egress.do and "2 of 3" in egress.seen


def test_a_host_that_answers_with_an_error_answers(web: Web) -> None:
    web.fault(HOSTS[0], "/robots.txt", Fault.NOT_FOUND)
    assert found(corpus_on(web))["egress"].state == "ok"


def test_a_portal_that_answers_for_others_is_found(web: Web) -> None:
    for host in HOSTS[:2]:
        web.fault(host, "/robots.txt", Fault.REDIRECT, to="http://login.hotel.example/?from=x")
    egress = found(corpus_on(web))["egress"]
    assert egress.state == "bad" and "login.hotel.example" in egress.do
    for host in HOSTS[:2]:
        web.heal(host)
        web.fault(host, "/robots.txt", Fault.REDIRECT, to="/elsewhere.txt")
    assert found(corpus_on(web))["egress"].state == "ok"


def test_a_site_that_sends_its_hosts_to_one_of_its_own_is_no_portal(web: Web) -> None:
    hosts = ("a.photos.example", "b.photos.example")
    for host in hosts:
        web.fault(host, "/robots.txt", Fault.REDIRECT, to="https://www.photos.example/robots.txt")
    ours = corpus_on(web).model_dump() | {"sources": ["cc3m"]}
    ours["source"] = {"cc3m": {"files": [f"https://{host}/captions.tsv" for host in hosts]}}
    egress = found(parse_corpus(ours, where="the test's corpus"))["egress"]
    assert egress.state == "ok" and "2 of 2" in egress.seen


def test_whoever_opens_what_is_sent_is_named(web: Web, tmp_path: Path) -> None:
    trustme.CA(organization_name="Somebody Else").cert_pem.write_to_path(str(tmp_path / "other.pem"))
    tls = found(corpus_on(web, ca_file=str(tmp_path / "other.pem")))["tls"]
    assert tls.state == "bad" and tls.facts["issuers"] == {"tests.web": 2} and "tests.web" in tls.do
    # Nothing was asked of those who are not trusted.
    assert not any(request.tls for request in web.requests)


def test_one_certificate_that_is_not_trusted_is_that_hosts_fault(web: Web) -> None:
    with Web() as other:
        mixed = web.connect_to | {f"{HOSTS[2]}:443": other.https}
        tls = found(corpus_on(web, connect_to=mixed))["tls"]
    assert tls.state == "warn" and HOSTS[2] in tls.do, tls


def test_authorities_that_cannot_be_read_are_found_and_nobody_is_asked(web: Web, tmp_path: Path) -> None:
    for text in (None, "no PEM at all"):
        if text:
            (tmp_path / "ca.pem").write_text(text)
        seen = found(corpus_on(web, ca_file=str(tmp_path / "ca.pem")))
        assert seen["authorities"].state == "bad" and "ca.pem" in seen["authorities"].seen
        assert {seen[name].state for name in ("lookups", "egress", "tls", "clock")} == {"skipped"}
    assert web.count() == 0


def test_what_is_no_answer_is_told_and_ends() -> None:
    """Addresses that are refused, ports where nothing listens, servers that speak no HTTP."""
    with Web() as web:
        web.fault("odd.example", "/", Fault.BAD_STATUS_LINE)
        web.fault("shut.example", "/", Fault.NO_BYTES)
        web.fault("long.example", "/", Fault.HUGE_HEADER)
        mirrored = {f"{name}.example": web.http for name in ("odd", "shut", "long")}
        spec = FetchSpec(connect_to=mirrored | {"gone.example": "127.0.0.1:1"})
        urls = [f"http://{host}/" for host in (*mirrored, "gone.example", "10.1.2.3", "[::1]")]
        told = visit([*urls, "ftp://odd.example/"], spec=spec)
    assert all(seen.failure and seen.status is None for seen in told), told
    assert [seen.failure.startswith("not a public address") for seen in told] == [False] * 4 + [True] * 2 + [
        False
    ]


# Names


def test_inside_names_are_counted_by_what_becomes_of_them() -> None:
    """Two dead ones are given up after a while; see tests/netns/inside.py for who answers how."""
    told = inside("doctors_names")
    expected = {"asked": 47, "found": 30, "none": 10, "unanswered": 4, "blocked": 3}
    assert {name: told["lookups"][name] for name in expected} == expected


def test_inside_a_network_that_leads_nowhere_is_found() -> None:
    """The nine sources' own hosts, whose names nobody knows there; and proxies, told of and not used."""
    told = inside("doctors_findings")
    states = {finding["name"]: finding["state"] for finding in told["findings"]}
    assert told["ok"] is False and told["rang"] == {}
    assert states["lookups"] == states["egress"] == "bad" and states["proxies"] == "warn"
    assert "9.9.9.9" in next(found["seen"] for found in told["findings"] if found["name"] == "resolver")


def test_names_that_are_mapped_are_not_looked_up(web: Web) -> None:
    assert found(corpus_on(web))["lookups"].state == "skipped"


def test_a_resolver_that_asks_for_each_name_many_times_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    conf = tmp_path / "resolv.conf"
    monkeypatch.setattr(doctoring, "RESOLV_CONF", conf)
    with Web() as web:
        corpus = corpus_on(web)
        assert found(corpus)["resolver"].state == "skipped"
        conf.write_text("nameserver 10.0.0.10\nsearch a.svc.local svc.local local\noptions edns0 ndots:5\n")
        resolver = found(corpus)["resolver"]
        assert resolver.state == "warn" and "4 times" in resolver.do and "10.0.0.10" in resolver.seen
        conf.write_text("nameserver 10.0.0.10\nsearch local\n")
        assert found(corpus)["resolver"].state == "ok"


def test_a_policy_that_cannot_be_followed_is_a_bad_request(web: Web) -> None:
    with pytest.raises(BadRequest, match="connect_to"):
        doctor(corpus_on(web, connect_to={"a.example": "nowhere"}))


def test_look_ups_of_mapped_and_refused_names_say_so() -> None:
    spec = FetchSpec(connect_to={"mirror.example": "127.0.0.1:80"})
    told = look_up(["mirror.example", "127.0.0.1", "10.0.0.1", "8.8.8.8"], spec=spec)
    assert (told.asked, told.found, told.blocked) == (4, 2, 2)


# This machine


def test_proxies_are_told_by_name_alone(web: Web, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "http://user:secret@127.0.0.1:1")
    monkeypatch.setenv("no_proxy", "localhost")
    seen = found(corpus_on(web))
    assert seen["proxies"].state == "warn" and seen["proxies"].facts["variables"] == ["HTTPS_PROXY"]
    assert "secret" not in json.dumps(doctor_json([*seen.values()]))
    assert seen["egress"].state == "ok"


def test_whoever_has_no_contact_is_told(web: Web) -> None:
    contact = found(corpus_on(web, contact=""))["contact"]
    assert contact.state == "warn" and "[fetch] contact" in contact.do


@pytest.mark.parametrize(("hard", "do"), [(64, "raise the hard limit"), (4_096, "ulimit -n 192")])
def test_a_limit_of_open_files_that_is_too_low_is_found(web: Web, hard: int, do: str) -> None:
    child = (
        "import json, sys; from pipelines.doctor import doctor, doctor_json; from pmd.manifest import Corpus;"
        "print(json.dumps(doctor_json(doctor(Corpus.model_validate_json(sys.argv[1])))))"
    )
    corpus = corpus_on(web)
    done = subprocess.run(
        [sys.executable, "-c", child, corpus.model_dump_json()],
        capture_output=True,
        text=True,
        cwd=ROOT,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (64, hard)),
    )
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    (files,) = (finding for finding in told["findings"] if finding["name"] == "open files")
    assert files["state"] == "bad" and files["facts"]["soft"] == 64 and files["facts"]["needed"] == 192
    assert do in files["do"] and not told["ok"]


def test_a_container_of_little_memory_is_found(
    web: Web, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctoring, "CGROUP", tmp_path)
    (tmp_path / "memory.current").write_text("500000000\n")
    (tmp_path / "memory.max").write_text("1000000000\n")
    memory = found(corpus_on(web))["memory"]
    assert memory.state == "warn" and memory.facts["available"] == 500_000_000 and "--inline" in memory.do
    (tmp_path / "memory.max").write_text("max\n")
    assert found(corpus_on(web))["memory"].facts["available"] > 500_000_000


def test_a_package_with_known_holes_is_found(web: Web, monkeypatch: pytest.MonkeyPatch) -> None:
    assert found(corpus_on(web))["versions"].state == "ok"
    monkeypatch.setattr(doctoring, "FLOORS", {"pillow": "99.1", "ray": "2.9", "no-such-package": "1"})
    versions = found(corpus_on(web))["versions"]
    assert versions.state == "bad" and "'pillow>=99.1'" in versions.do and "ray" not in versions.do


def test_a_python_with_known_holes_is_found(web: Web, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctoring, "PYTHON_FLOORS", {sys.version_info[:2]: 99})
    assert found(corpus_on(web))["python"].state == "warn"
    monkeypatch.setattr(doctoring, "PYTHON_FLOORS", {})
    assert found(corpus_on(web))["python"].state == "ok"


def test_an_output_in_a_place_that_does_not_say_how_much_it_takes_is_skipped(web: Web) -> None:
    assert found(corpus_on(web), "memory://somewhere")["disk"].state == "skipped"
    assert found(corpus_on(web))["disk"].state == "skipped"


def test_room_is_compared_with_what_an_estimate_says(web: Web, tmp_path: Path) -> None:
    free = found(corpus_on(web), tmp_path)["disk"].facts["free"]
    for needed, state in ((free / 2, "ok"), (free / 1.1, "warn"), (free * 2, "bad")):
        assert found(corpus_on(web), tmp_path, needed_bytes=needed)["disk"].state == state


def test_without_a_plan_a_rule_of_thumb_only_warns(web: Web, tmp_path: Path) -> None:
    """120,000 images of COCO and 3.3 million of CC3M at least; at most a --limit nobody knows of yet."""
    disk = found(corpus_on(web), tmp_path)["disk"]
    assert disk.facts["needed"] > 100e9 and disk.state in ("ok", "warn") and "rule of thumb" in disk.seen


MOUNTS = ["unshare", "-Urm", "--propagation", "private"]
FULL_DISK = """
import json, subprocess, sys
from pathlib import Path
from pipelines.cli import run
corpus, small = sys.argv[1], Path(sys.argv[2])
subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m", "none", small], check=True)
for stage in ("pin", "plan"):
    assert run([stage, corpus, "--out", str(small / "out"), "--inline"]) == 0
code = run(["doctor", corpus, "--out", str(small / "out"), "--json"])
subprocess.run(["mount", "-o", "remount,ro", small], check=True)
sys.exit(10 * code + run(["doctor", corpus, "--out", str(small / "out"), "--json"]))
"""


def test_inside_a_disk_that_is_too_small_or_read_only_is_found(tmp_path: Path) -> None:
    """90 planned images of up to 96 px are no trouble; of 512 px they are more than 3 MB."""
    if why := no_namespace():
        pytest.skip(why)
    (tmp_path / "small").mkdir()
    with Web() as web:
        small = publish(tmp_path, web)
        text = small.corpus.read_text()
        for size, states in ((96, ["ok", "bad"]), (512, ["bad", "bad"])):
            small.corpus.write_text(text.replace("image_size = 96", f"image_size = {size}"))
            # Its own mounts, but this machine's network, where the web is.
            done = subprocess.run(
                [*MOUNTS, sys.executable, "-c", FULL_DISK, str(small.corpus), str(tmp_path / "small")],
                capture_output=True,
                text=True,
                cwd=ROOT,
            )
            told = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
            disks = [next(f for f in each["findings"] if f["name"] == "disk") for each in told]
            assert [disk["state"] for disk in disks] == states, (disks, done.stderr)
            assert disks[0]["facts"]["free"] < 3 << 20 and "Read-only" in disks[1]["seen"]
            assert done.returncode == 10 * (states[0] == "bad") + 1, done.stderr
            # The hosts of the plan are asked: those of the pictures.
            assert web.count("images.cocodataset.org", "/robots.txt") >= 2


def test_a_library_that_cannot_be_written_to_is_found(web: Web, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PMD_LIBRARY", "/proc/library")
    library = found(corpus_on(web))["library"]
    assert library.state == "bad" and "PMD_LIBRARY" in library.do


# The command


def test_the_command_tells_a_person_and_a_program(
    web: Web, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    hosts = ", ".join(f"{json.dumps(host)} = {json.dumps(to)}" for host, to in web.connect_to.items())
    fetch = f"connect_to = {{ {hosts} }}\nca_file = {json.dumps(str(web.ca_file))}\n"
    path = tmp_path / "ours.toml"
    path.write_text(f'name = "ours"\nsources = ["coco", "cc3m"]\n[fetch]\n{fetch}')
    assert run(["doctor", str(path)]) == 0
    told = capsys.readouterr().out
    assert all(name in told for name in NAMES) and "-> put a URL or mail address" in told
    for host in HOSTS:
        tell_time(web, host, behind_s=3_600)
    assert run(["doctor", str(path), "--out", str(tmp_path / "out"), "--json"]) == 1
    told = json.loads(capsys.readouterr().out)
    assert told["ok"] is False and [finding["name"] for finding in told["findings"]] == NAMES
