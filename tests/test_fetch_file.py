"""Downloading one big file from a web that does its worst: always the whole of one version, or nothing."""

import gzip
import hashlib
import json
import os
import random
import resource
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipelines.run import Interrupted, stopping_on_signals
from pmd.errors import BadRequest, Busy, Refused, Unavailable
from pmd.fetch import file as file_module
from pmd.fetch.file import Downloaded, download_file, refused_path
from pmd.manifest import FetchSpec
from tests.web import Fault, FileFault, ServedFile, Web

HOST, MIRROR = "published.example", "mirror.example"
URL, MIRROR_URL = f"http://{HOST}/a.tsv", f"http://{MIRROR}/a.tsv"
BODY = random.Random(0).randbytes(1_000_000)
OTHER = random.Random(1).randbytes(1_000_000)  # another version, of the same size
ETAG = '"one"'
LONG_AGO = "Tue, 01 Feb 2022 10:00:00 GMT"


def sha256(body: bytes) -> str:
    return hashlib.sha256(body).hexdigest()


@pytest.fixture
def web() -> Iterator[Web]:
    with Web() as web:
        web.serve_file(HOST, "/a.tsv", ServedFile(BODY, ETAG))
        yield web


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(file_module, "FIRST_PAUSE_S", 0.02)
    monkeypatch.setattr(file_module, "LEAST_IDLE_S", 0.2)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where the file goes, in a folder of its own that nobody has made."""
    return tmp_path / "annotations" / "a.tsv"


def spec_for(web: Web, **keys: Any) -> FetchSpec:
    known: dict[str, Any] = {"timeout_s": 5, "retries": 0, "connect_to": web.connect_to}
    return FetchSpec.model_validate(known | {"ca_file": str(web.ca_file)} | keys)


def download(web: Web, path: Path, *urls: str, keys: dict[str, Any] | None = None, **more: Any) -> Downloaded:
    return download_file(urls or (URL,), path, spec=spec_for(web, **(keys or {})), **more)


def ranges(web: Web, host: str = HOST) -> list[tuple[str | None, str | None]]:
    """Range and If-Range of each request to a host."""
    return [
        (request.header("range"), request.header("if-range"))
        for request in web.requests
        if request.host == host
    ]


def left(path: Path) -> list[str]:
    """Names of all that lies in the file's folder."""
    return sorted(file.name for file in path.parent.iterdir())


def partial(path: Path) -> Path:
    return path.with_name(f".{path.name}.partial")


def interrupt(web: Web, path: Path, *urls: str, at: int = 400_000, host: str = HOST, **more: Any) -> int:
    """A run that ends after about so many bytes of the file; returns how many it has kept."""
    web.fault(host, "/a.tsv", FileFault.CUT, times=1, size=at)
    web.fault(host, "/a.tsv", Fault.SERVER_ERROR, times=1)
    with pytest.raises(Unavailable, match="bytes of it are kept"):
        download(web, path, *urls, **more)
    kept = partial(path).stat().st_size
    assert 0 < kept < len(BODY)
    web.forget()
    return kept


# A file that comes


@pytest.mark.parametrize("scheme", ["http", "https"])
@pytest.mark.parametrize("body", [BODY[:1], BODY[:100], BODY], ids=len)
def test_a_file_comes_whole_with_its_hash_and_its_names(
    web: Web, path: Path, scheme: str, body: bytes
) -> None:
    web.serve_file(HOST, "/a.tsv", ServedFile(body, ETAG, LONG_AGO))
    url = f"{scheme}://{HOST}/a.tsv"
    assert download(web, path, url, size=len(body), sha256=sha256(body).upper()) == Downloaded(
        url, url, len(body), sha256(body), ETAG, LONG_AGO
    )
    assert path.read_bytes() == body
    assert left(path) == ["a.tsv"]


def test_a_request_says_who_asks_and_for_the_bytes_as_they_are(web: Web, path: Path) -> None:
    download(web, path, keys={"user_agent": "pmd/test (somebody)"})
    (request,) = web.requests
    sent = {name.lower(): value for name, value in request.headers}
    assert sent == {
        "host": HOST,
        "user-agent": "pmd/test (somebody)",
        "accept": "*/*",
        "accept-encoding": "identity",
    }


def test_a_file_of_unknown_length_comes_whole(web: Web, path: Path) -> None:
    web.serve_file(HOST, "/a.tsv", ServedFile(BODY, ETAG, chunked=True))
    assert download(web, path).sha256 == sha256(BODY)


def test_the_published_address_is_asked_first_and_once(web: Web, path: Path) -> None:
    web.serve_file(MIRROR, "/a.tsv", ServedFile(BODY))
    assert download(web, path, URL, MIRROR_URL).url == URL
    assert [request.host for request in web.requests] == [HOST]


def test_what_lies_there_is_replaced_when_the_new_file_is_whole(web: Web, path: Path) -> None:
    path.parent.mkdir()
    path.write_bytes(b"old")
    web.fault(HOST, "/a.tsv", FileFault.CUT, times=1, size=1_000)
    web.fault(HOST, "/a.tsv", Fault.SERVER_ERROR, times=1)
    with pytest.raises(Unavailable):
        download(web, path)
    assert path.read_bytes() == b"old"
    download(web, path)
    assert path.read_bytes() == BODY


def test_a_progress_display_hears_of_it_ten_times_a_second_at_most(web: Web, path: Path) -> None:
    web.fault(HOST, "/a.tsv", FileFault.PACED, size=20_000, interval=0.01)
    heard: list[tuple[float, int, int | None]] = []
    threads: set[int] = set()

    def told(so_far: int, total: int | None) -> None:
        heard.append((time.monotonic(), so_far, total))
        threads.add(threading.get_ident())

    begun = time.monotonic()
    download(web, path, told=told)
    took = time.monotonic() - begun
    assert 3 <= len(heard) <= took * 10 + 2
    assert heard[-1][1:] == (len(BODY), len(BODY))
    counts = [so_far for _, so_far, _ in heard]
    assert counts == sorted(counts)
    assert {total for _, so_far, total in heard if so_far} == {len(BODY)}
    assert threads == {threading.get_ident()}


# Interrupted and resumed


def test_a_lost_connection_goes_on_from_there(web: Web, path: Path) -> None:
    web.fault(HOST, "/a.tsv", FileFault.CUT, times=1, size=400_000)
    assert download(web, path).sha256 == sha256(BODY)
    first, (second, if_range) = ranges(web)
    assert first == (None, None) and if_range == ETAG
    assert second and 0 < int(second.removeprefix("bytes=").removesuffix("-")) <= 400_000


@pytest.mark.parametrize("etag", [ETAG, None])
def test_a_later_run_asks_only_for_what_is_missing(web: Web, path: Path, etag: str | None) -> None:
    web.serve_file(HOST, "/a.tsv", ServedFile(BODY, etag, LONG_AGO))
    kept = interrupt(web, path)
    assert left(path) == [".a.tsv.partial", ".a.tsv.partial.json"]
    assert download(web, path) == Downloaded(URL, URL, len(BODY), sha256(BODY), etag, LONG_AGO)
    assert ranges(web) == [(f"bytes={kept}-", etag or LONG_AGO)]
    assert path.read_bytes() == BODY
    assert left(path) == ["a.tsv"]


def test_a_resumed_file_of_unknown_length_is_known_to_be_whole(web: Web, path: Path) -> None:
    web.serve_file(HOST, "/a.tsv", ServedFile(BODY, ETAG, chunked=True))
    kept = interrupt(web, path)
    assert download(web, path).sha256 == sha256(BODY)
    assert ranges(web) == [(f"bytes={kept}-", ETAG)]


def test_a_whole_file_of_unknown_length_that_has_no_name_yet_costs_one_refused_range(
    web: Web, path: Path
) -> None:
    web.serve_file(HOST, "/a.tsv", ServedFile(BODY, ETAG, chunked=True))
    interrupt(web, path)
    partial(path).write_bytes(BODY)
    assert download(web, path).sha256 == sha256(BODY)
    assert ranges(web) == [(f"bytes={len(BODY)}-", ETAG)]


def test_a_whole_file_that_has_no_name_yet_gets_it_without_a_request(web: Web, path: Path) -> None:
    interrupt(web, path)
    partial(path).write_bytes(BODY)
    assert download(web, path, size=len(BODY)).sha256 == sha256(BODY)
    assert web.count() == 0


@pytest.mark.parametrize("length", ["known", "unknown"])
def test_a_whole_file_that_was_expected_once_is_no_word_against_todays(
    web: Web, path: Path, length: str
) -> None:
    web.serve_file(HOST, "/a.tsv", ServedFile(BODY, chunked=length == "unknown"))
    interrupt(web, path)
    partial(path).write_bytes(BODY)
    web.serve_file(HOST, "/a.tsv", ServedFile(OTHER))
    assert download(web, path, sha256=sha256(OTHER)).sha256 == sha256(OTHER)
    assert left(path) == ["a.tsv"]


@pytest.mark.parametrize("sidecar", [b"", b"{", b"[]", b'{"url": 1}', None])
def test_bytes_of_which_nothing_is_known_are_not_used(web: Web, path: Path, sidecar: bytes | None) -> None:
    interrupt(web, path)
    known = path.with_name(".a.tsv.partial.json")
    known.unlink() if sidecar is None else known.write_bytes(sidecar)
    assert download(web, path).sha256 == sha256(BODY)
    assert ranges(web) == [(None, None)]


def test_a_file_that_outgrew_what_is_known_of_it_is_not_used(web: Web, path: Path) -> None:
    interrupt(web, path)
    partial(path).write_bytes(BODY + b"more")
    assert download(web, path).sha256 == sha256(BODY)
    assert ranges(web) == [(None, None)]


CHILD = """
import json, sys
from pathlib import Path
from pmd.fetch.file import download_file
from pmd.manifest import FetchSpec
url, path, spec = sys.argv[1:]
download_file([url], Path(path), spec=FetchSpec.model_validate_json(spec))
"""


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_a_killed_download_asks_only_for_what_is_missing(web: Web, path: Path, scheme: str) -> None:
    web.fault(HOST, "/a.tsv", FileFault.PACED, times=1, size=10_000, interval=0.01)
    url = f"{scheme}://{HOST}/a.tsv"
    child = subprocess.Popen(
        [sys.executable, "-W", "error", "-c", CHILD, url, str(path), spec_for(web).model_dump_json()]
    )
    while not (partial(path).exists() and partial(path).stat().st_size > 300_000):
        assert child.poll() is None
        time.sleep(0.005)
    child.kill()
    assert child.wait() == -signal.SIGKILL
    kept = partial(path).stat().st_size
    assert 300_000 < kept < len(BODY) and not path.exists()
    assert download(web, path, url).sha256 == sha256(BODY)
    assert ranges(web) == [(None, None), (f"bytes={kept}-", ETAG)]
    assert path.read_bytes() == BODY


KILLS = """
import os, random, signal, sys, time
from pathlib import Path
from pmd.fetch.file import download_file
from pmd.manifest import FetchSpec
url, folder, spec = sys.argv[1:]
spec, chance = FetchSpec.model_validate_json(spec), random.Random(0)
kills = 0
for number in range(7):
    path = Path(folder, f"{number}.tsv")
    while not path.exists():
        child = os.fork()
        if not child:
            download_file([url], path, spec=spec)
            os._exit(0)
        time.sleep(chance.uniform(0, 0.06))
        os.kill(child, signal.SIGKILL)
        status = os.waitpid(child, 0)[1]
        assert os.WIFSIGNALED(status) or status == 0, status
        kills += os.WIFSIGNALED(status)
print(kills)
"""


def test_a_download_killed_at_any_moment_and_rerun_is_one_never_killed(web: Web, path: Path) -> None:
    """One process forks all the others: so a kill costs milliseconds."""
    web.fault(HOST, "/a.tsv", FileFault.PACED, size=20_000, interval=0.002)
    spec = spec_for(web).model_dump_json()
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", KILLS, URL, str(path.parent), spec],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 20
    begun = {said for said, _ in ranges(web)}
    assert len(begun) > 10, "many were resumed, each at a place of its own"
    for number in range(7):
        target = path.with_name(f"{number}.tsv")
        assert target.read_bytes() == BODY
        # Killed right after the name was given, one may leave what was known; the next takes it away.
        download(web, target)
    assert left(path) == sorted(f"{number}.tsv" for number in range(7))


@pytest.mark.parametrize("stop", ["signal", "told"])
def test_a_stop_passes_through_at_once_and_leaves_what_has_come(web: Web, path: Path, stop: str) -> None:
    web.fault(HOST, "/a.tsv", FileFault.STALL, times=1, size=400_000)
    stopped_at: list[float] = []

    def told(so_far: int, _total: int | None) -> None:
        if so_far > 100_000 and not stopped_at:
            stopped_at.append(time.monotonic())
            if stop == "told":
                raise KeyboardInterrupt
            threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGINT)).start()

    with stopping_on_signals(), pytest.raises(Interrupted if stop == "signal" else KeyboardInterrupt):
        download(web, path, keys={"timeout_s": 30}, told=told)
    assert time.monotonic() - stopped_at[0] < 1
    kept = partial(path).stat().st_size
    assert 100_000 < kept <= 400_000 and not path.exists()
    web.forget()
    assert download(web, path).sha256 == sha256(BODY)
    assert ranges(web) == [(f"bytes={kept}-", ETAG)]


def test_two_runs_do_not_write_one_file(web: Web, path: Path) -> None:
    web.fault(HOST, "/a.tsv", FileFault.STALL, times=1, size=1_000)

    def told(so_far: int, _total: int | None) -> None:
        if so_far:
            download(web, path)

    with pytest.raises(Busy, match=r"\.a\.tsv\.partial is being downloaded by another run"):
        download(web, path, keys={"timeout_s": 30}, told=told)
    assert download(web, path).sha256 == sha256(BODY)


# One version, or nothing


def test_a_file_that_changed_in_between_begins_anew(web: Web, path: Path) -> None:
    kept = interrupt(web, path)
    web.serve_file(HOST, "/a.tsv", ServedFile(OTHER, '"two"'))
    assert download(web, path).sha256 == sha256(OTHER)
    assert ranges(web) == [(f"bytes={kept}-", ETAG)]
    assert path.read_bytes() == OTHER


@pytest.mark.parametrize("body", [OTHER, OTHER[:500_000], OTHER[:100_000], OTHER + OTHER], ids=len)
@pytest.mark.parametrize("length", ["known", "unknown"])
def test_a_server_that_knows_no_if_range_is_found_out(web: Web, path: Path, body: bytes, length: str) -> None:
    web.serve_file(HOST, "/a.tsv", ServedFile(BODY, ETAG, chunked=length == "unknown"))
    interrupt(web, path)
    web.serve_file(HOST, "/a.tsv", ServedFile(body, '"two"', if_range=False))
    assert download(web, path).sha256 == sha256(body)
    assert path.read_bytes() == body
    assert ranges(web)[-1] == (None, None)


def test_a_server_that_knows_no_ranges_begins_anew(web: Web, path: Path) -> None:
    web.serve_file(HOST, "/a.tsv", ServedFile(BODY, ETAG, ranges=False))
    kept = interrupt(web, path)
    assert download(web, path).sha256 == sha256(BODY)
    assert ranges(web) == [(f"bytes={kept}-", ETAG)]


def test_a_range_other_than_asked_for_is_not_taken(web: Web, path: Path) -> None:
    kept = interrupt(web, path)
    web.fault(HOST, "/a.tsv", FileFault.WRONG_RANGE, times=1)
    assert download(web, path).sha256 == sha256(BODY)
    assert ranges(web) == [(f"bytes={kept}-", ETAG), (None, None)]


@pytest.mark.parametrize(
    "said",
    [
        "bytes {first}-{first}/{size}",  # its length says more
        "bytes {first}-{size}/{size}",
        "bytes {first}-1/{size}",
        "bytes {first}-{last}/1",
        "bytes {first}-{last}/*",
        "bytes */{size}",
        "lines {first}-{last}/{size}",
        "bytes {first}-{last}/" + "9" * 5_000,
    ],
)
def test_a_range_that_contradicts_itself_is_not_taken(web: Web, path: Path, said: str) -> None:
    kept = interrupt(web, path)
    web.fault(HOST, "/a.tsv", FileFault.LYING_RANGE, times=1, to=said)
    assert download(web, path).sha256 == sha256(BODY)
    assert ranges(web) == [(f"bytes={kept}-", ETAG), (None, None)]


def test_a_part_without_its_names_is_believed_until_the_sha256_says_otherwise(web: Web, path: Path) -> None:
    kept = interrupt(web, path)
    web.serve_file(HOST, "/a.tsv", ServedFile(OTHER, '"two"'))
    web.fault(HOST, "/a.tsv", FileFault.LYING_RANGE, times=1, to="bytes {first}-{last}/{size}")
    assert download(web, path, sha256=sha256(OTHER)).sha256 == sha256(OTHER)
    assert ranges(web) == [(f"bytes={kept}-", ETAG), (None, None)]


@pytest.mark.parametrize("status", [206, 416])
def test_a_range_answer_without_its_numbers_is_not_taken(web: Web, path: Path, status: int) -> None:
    interrupt(web, path)
    web.fault(HOST, "/a.tsv", Fault.STATUS, times=1, status=status)
    assert download(web, path).sha256 == sha256(BODY)
    assert ranges(web)[-1] == (None, None)


def test_a_server_may_send_less_than_it_was_asked_for(web: Web, path: Path) -> None:
    interrupt(web, path, at=100_000)
    web.fault(HOST, "/a.tsv", FileFault.SHORT_RANGE, size=200_000)
    assert download(web, path).sha256 == sha256(BODY)
    assert len(ranges(web)) == 5


@pytest.mark.parametrize("status", [206, 416])
def test_a_range_that_nobody_asked_for_is_no_file(web: Web, path: Path, status: int) -> None:
    web.fault(HOST, "/a.tsv", Fault.STATUS, status=status)
    with pytest.raises(Unavailable, match=f"HTTP {status}"):
        download(web, path)
    assert web.count() == 1


@pytest.mark.parametrize(
    ("etag", "modified"),
    [(None, None), ('W/"weak"', None), ("bare", None), (None, "just now"), (None, "long ago")],
)
def test_without_a_name_of_the_version_only_a_sha256_lets_it_go_on(
    web: Web, path: Path, etag: str | None, modified: str | None
) -> None:
    if modified == "just now":  # by the clock of the test, which may start long after this file is read
        modified = format_datetime(datetime.now(UTC), usegmt=True)
    web.serve_file(HOST, "/a.tsv", ServedFile(BODY, etag, modified))
    interrupt(web, path)
    assert download(web, path, size=len(BODY)).sha256 == sha256(BODY)
    assert ranges(web) == [(None, None)]

    kept = interrupt(web, path)
    assert download(web, path, sha256=sha256(BODY)).sha256 == sha256(BODY)
    assert ranges(web) == [(f"bytes={kept}-", None)]


def test_a_mix_that_nobody_could_foresee_is_found_by_its_sha256_and_mended(web: Web, path: Path) -> None:
    web.serve_file(HOST, "/a.tsv", ServedFile(BODY))
    kept = interrupt(web, path)
    web.serve_file(HOST, "/a.tsv", ServedFile(OTHER))
    assert download(web, path, sha256=sha256(OTHER)).sha256 == sha256(OTHER)
    assert ranges(web) == [(f"bytes={kept}-", None), (None, None)]
    assert path.read_bytes() == OTHER and left(path) == ["a.tsv"]


def test_that_a_file_is_a_mix_is_known_after_a_kill(web: Web, path: Path) -> None:
    """First of one version, then of another, and then whole with the name of the first one's."""
    web.serve_file(MIRROR, "/a.tsv", ServedFile(OTHER))
    interrupt(web, path, sha256=sha256(BODY), at=300_000)
    web.fault(HOST, "/a.tsv", Fault.SERVER_ERROR, times=1)
    interrupt(web, path, URL, MIRROR_URL, sha256=sha256(BODY), at=300_000, host=MIRROR)
    assert json.loads(path.with_name(".a.tsv.partial.json").read_bytes())["unsure"]
    assert download(web, path, sha256=sha256(BODY)).sha256 == sha256(BODY)
    assert [said for said, _ in ranges(web)][1:] == [None]
    assert path.read_bytes() == BODY


def test_a_mirror_goes_on_where_the_published_address_ended(web: Web, path: Path) -> None:
    web.serve_file(MIRROR, "/a.tsv", ServedFile(BODY, '"its own"'))
    web.fault(HOST, "/a.tsv", FileFault.CUT, times=1, size=400_000)
    web.fault(HOST, "/a.tsv", Fault.NOT_FOUND)
    assert download(web, path, URL, MIRROR_URL, sha256=sha256(BODY)).url == MIRROR_URL
    ((said, if_range),) = ranges(web, MIRROR)
    assert said and said != "bytes=0-" and if_range is None
    assert path.read_bytes() == BODY


def test_without_a_sha256_a_mirror_begins_anew(web: Web, path: Path) -> None:
    web.serve_file(MIRROR, "/a.tsv", ServedFile(OTHER, ETAG))
    web.fault(HOST, "/a.tsv", FileFault.CUT, times=1, size=400_000)
    web.fault(HOST, "/a.tsv", Fault.NOT_FOUND)
    assert download(web, path, URL, MIRROR_URL).sha256 == sha256(OTHER)
    assert ranges(web, MIRROR) == [(None, None)]


def test_the_address_that_gave_a_part_is_asked_first_for_the_rest(web: Web, path: Path) -> None:
    web.fault(HOST, "/a.tsv", Fault.NOT_FOUND, times=1)
    web.serve_file(MIRROR, "/a.tsv", ServedFile(OTHER, ETAG))
    kept = interrupt(web, path, URL, MIRROR_URL, host=MIRROR)
    assert download(web, path, URL, MIRROR_URL).url == MIRROR_URL
    assert ranges(web) == []
    assert ranges(web, MIRROR) == [(f"bytes={kept}-", ETAG)]


VERSIONS = [random.Random(seed).randbytes(size) for seed, size in enumerate((60_000, 60_000, 40_000, 90_000))]
Names = Literal["etag", "date", "both", "weak", "none"]


def version(number: int, names: Names, *, ranges: bool, if_range: bool, chunked: bool) -> ServedFile:
    """A version under a name that no other version has."""
    etag = {"etag": f'"{number}"', "both": f'"{number}"', "weak": f'W/"{number}"'}.get(names)
    date = format_datetime(datetime(2022, 1, 1 + number, tzinfo=UTC), usegmt=True)
    return ServedFile(
        VERSIONS[number],
        etag,
        date if names in ("date", "both") else None,
        ranges=ranges,
        if_range=if_range,
        chunked=chunked,
    )


STEP = st.tuples(
    st.integers(0, len(VERSIONS) - 1),
    st.sampled_from(("etag", "date", "both", "weak", "none")),
    st.booleans(),  # ranges
    st.booleans(),  # if_range
    st.booleans(),  # chunked
    st.integers(0, 100_000),  # where the connection is cut
    st.sampled_from((HOST, MIRROR)),
)


@pytest.fixture(scope="module")
def shared_web() -> Iterator[Web]:
    with Web() as web:
        yield web


@settings(
    max_examples=40,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
    derandomize=True,
)
@given(steps=st.lists(STEP, min_size=1, max_size=5), sized=st.booleans(), hashed=st.booleans())
def test_whatever_is_cut_and_changed_the_file_is_one_version_whole(
    shared_web: Web, steps: list[Any], sized: bool, hashed: bool
) -> None:
    web = shared_web
    wanted = VERSIONS[steps[-1][0]]
    known: dict[str, Any] = {"size": len(wanted)} if sized else {}
    known |= {"sha256": sha256(wanted)} if hashed else {}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.tsv"
        for number, names, by_range, if_range, chunked, cut, host in steps:
            for at in (HOST, MIRROR):
                web.heal(at)
                served = version(number, names, ranges=by_range, if_range=if_range, chunked=chunked)
                web.serve_file(at, "/a.tsv", served)
                web.fault(at, "/a.tsv", FileFault.CUT, times=1, size=cut)
                web.fault(at, "/a.tsv", Fault.NOT_FOUND, times=1)
            try:
                got = download(web, path, f"http://{host}/a.tsv", URL, MIRROR_URL, **known)
            except (Unavailable, Refused):
                assert not path.exists()
            else:
                assert path.read_bytes() == VERSIONS[number]
                assert got.sha256 == sha256(VERSIONS[number])
                path.unlink()
        for at in (HOST, MIRROR):
            web.heal(at)
        assert download(web, path, URL, MIRROR_URL, **known).sha256 == sha256(wanted)
        assert path.read_bytes() == wanted
        path.with_name("a.tsv.refused").unlink(missing_ok=True)
        assert left(path) == ["a.tsv"]


# Not the file that is expected


def test_a_wrong_length_is_known_before_anything_comes(web: Web, path: Path) -> None:
    web.fault(HOST, "/a.tsv", FileFault.STALL, size=500)
    with pytest.raises(Refused, match=r"size is 1,000,000 bytes, expected 999,999") as caught:
        download(web, path, size=999_999)
    assert caught.value.exit_code == 3
    assert left(path) == []


def test_a_wrong_length_leaves_what_has_come(web: Web, path: Path) -> None:
    kept = interrupt(web, path)
    web.serve_file(HOST, "/a.tsv", ServedFile(OTHER + b"more", '"two"'))
    with pytest.raises(Refused):
        download(web, path, size=len(BODY))
    web.serve_file(HOST, "/a.tsv", ServedFile(BODY, ETAG))
    web.forget()
    assert download(web, path, size=len(BODY)).sha256 == sha256(BODY)
    assert ranges(web) == [(f"bytes={kept}-", ETAG)]


def test_a_part_of_another_length_than_expected_is_refused(web: Web, path: Path) -> None:
    interrupt(web, path)
    with pytest.raises(Refused, match=r"size is 1,000,000 bytes, expected 2,000,000"):
        download(web, path, size=2_000_000)
    assert not refused_path(path).exists(), "the rest has not come"


def test_a_wrong_file_is_refused_and_kept_aside(web: Web, path: Path) -> None:
    with pytest.raises(Refused) as caught:
        download(web, path, size=len(BODY), sha256=sha256(OTHER))
    message = str(caught.value)
    assert f"{URL}: sha256 is {sha256(BODY)}, expected {sha256(OTHER)}" in message
    assert f"kept as {refused_path(path)}" in message
    assert refused_path(path).read_bytes() == BODY
    assert left(path) == ["a.tsv.refused"]


def test_a_wrong_file_makes_way_for_a_mirrors_right_one(web: Web, path: Path) -> None:
    web.serve_file(MIRROR, "/a.tsv", ServedFile(OTHER))
    assert download(web, path, URL, MIRROR_URL, sha256=sha256(OTHER)).url == MIRROR_URL
    assert path.read_bytes() == OTHER and left(path) == ["a.tsv"]


def test_of_several_wrong_files_the_published_one_is_kept(web: Web, path: Path) -> None:
    web.serve_file(MIRROR, "/a.tsv", ServedFile(OTHER))
    with pytest.raises(Refused) as caught:
        download(web, path, URL, MIRROR_URL, "http://nowhere.example/", sha256="c41d" * 16)
    for said in (sha256(BODY), sha256(OTHER), "HTTP 404", "expected " + "c41d" * 16):
        assert said in str(caught.value)
    assert refused_path(path).read_bytes() == BODY and left(path) == ["a.tsv.refused"]


def test_a_chunked_file_of_another_size_is_refused_and_kept(web: Web, path: Path) -> None:
    web.serve_file(HOST, "/a.tsv", ServedFile(BODY, chunked=True))
    with pytest.raises(Refused, match=r"size is 1,000,000 bytes, expected 2,000,000"):
        download(web, path, size=2_000_000)
    assert refused_path(path).read_bytes() == BODY


def test_a_body_without_end_is_cut_off(web: Web, path: Path) -> None:
    web.fault("endless.example", "/a.tsv", Fault.ENDLESS)
    with pytest.raises(Refused, match=r"sends more than the 300,000 bytes that are expected"):
        download(web, path, "http://endless.example/a.tsv", size=300_000)
    assert left(path) == []


@pytest.mark.parametrize("fault", [Fault.HTML_200, Fault.EMPTY_200, Fault.GZIP, Fault.CLOSE_DELIMITED])
def test_what_is_no_published_file_is_not_taken_for_one(web: Web, path: Path, fault: Fault) -> None:
    said = {
        Fault.HTML_200: "answers with a web page, not with the file",
        Fault.EMPTY_200: "sends no bytes",
        Fault.GZIP: r"packed unasked \(gzip\)",
        Fault.CLOSE_DELIMITED: "says no length",
    }
    web.serve(HOST, "/page.tsv", BODY)
    web.fault(HOST, "/page.tsv", fault)
    with pytest.raises(Unavailable, match=said[fault]):
        download(web, path, f"http://{HOST}/page.tsv")
    assert left(path) == []


def test_the_end_of_the_connection_is_the_end_of_a_file_of_known_size_alone(web: Web, path: Path) -> None:
    web.serve(HOST, "/page.tsv", BODY)
    web.fault(HOST, "/page.tsv", Fault.CLOSE_DELIMITED)
    assert download(web, path, f"http://{HOST}/page.tsv", size=len(BODY)).sha256 == sha256(BODY)
    with pytest.raises(Unavailable, match=r"cut short after 1,000,000 of 1,000,001 bytes"):
        download(web, path, f"http://{HOST}/page.tsv", size=len(BODY) + 1)


# Packed files stay packed


@pytest.mark.parametrize("how", ["plain", "called packed", "unpacked on the way"])
def test_a_published_gz_stays_one(web: Web, path: Path, how: str) -> None:
    packed = gzip.compress(BODY, mtime=0)
    named = (("Content-Encoding", "gzip"),) if how == "called packed" else ()
    web.serve_file(HOST, "/a.tsv.gz", ServedFile(packed, ETAG, headers=named))
    if how == "unpacked on the way":
        web.fault(HOST, "/a.tsv.gz", FileFault.UNPACKED)
    assert download(web, path, f"http://{HOST}/a.tsv.gz?x=1").sha256 == sha256(packed)
    assert path.read_bytes() == packed


def test_what_is_stored_packed_under_a_plain_name_comes_plain(web: Web, path: Path) -> None:
    """As everybody else gets it from Google Cloud Storage."""
    web.serve_file(HOST, "/a.tsv", ServedFile(gzip.compress(BODY), ETAG))
    web.fault(HOST, "/a.tsv", FileFault.UNPACKED)
    assert download(web, path).sha256 == sha256(BODY)


# Attempts, pauses, mirrors


def test_attempts_that_bring_something_use_up_no_retries(web: Web, path: Path) -> None:
    web.fault(HOST, "/a.tsv", FileFault.CUT, size=100_000)
    assert download(web, path).sha256 == sha256(BODY)
    assert web.count() >= 10


@pytest.mark.parametrize("retries", [0, 2])
@pytest.mark.parametrize(
    "fault", [Fault.SERVER_ERROR, Fault.TOO_MANY, Fault.RESET, Fault.NO_BYTES, Fault.BAD_STATUS_LINE]
)
def test_attempts_that_bring_nothing_use_up_retries_then_comes_the_mirror(
    web: Web, path: Path, fault: Fault, retries: int
) -> None:
    web.fault(HOST, "/a.tsv", fault, retry_after=0)
    web.serve_file(MIRROR, "/a.tsv", ServedFile(BODY))
    got = download(web, path, URL, MIRROR_URL, keys={"retries": retries})
    assert got.url == MIRROR_URL
    assert web.count(HOST) == 1 + retries


def test_a_server_that_always_begins_anew_and_never_ends_is_given_up(web: Web, path: Path) -> None:
    web.serve_file(HOST, "/a.tsv", ServedFile(BODY, ranges=False))
    web.fault(HOST, "/a.tsv", FileFault.CUT, size=500_000)
    with pytest.raises(Unavailable, match=r"cut short .* bytes, \d times in a row"):
        download(web, path, keys={"retries": 2})
    assert 4 <= web.count() <= 12  # a little more may have been read each time


def test_silence_ends_an_attempt_and_the_next_goes_on(web: Web, path: Path) -> None:
    web.fault(HOST, "/a.tsv", FileFault.STALL, times=1, size=300_000)
    begun = time.monotonic()
    assert download(web, path, keys={"timeout_s": 0.3}).sha256 == sha256(BODY)
    assert time.monotonic() - begun < 2
    assert len(ranges(web)) == 2


def test_a_slow_file_takes_its_time(web: Web, path: Path) -> None:
    """Longer than timeout_s, never silent for as long."""
    web.fault(HOST, "/a.tsv", FileFault.PACED, size=50_000, interval=0.05)
    assert download(web, path, keys={"timeout_s": 0.5}).sha256 == sha256(BODY)
    assert web.count() == 1


def test_a_server_that_never_answers_is_said_to(web: Web, path: Path) -> None:
    web.fault(HOST, "/a.tsv", Fault.HANG)
    with pytest.raises(Unavailable, match=r"nothing came for 0\.3 s"):
        download(web, path, keys={"timeout_s": 0.3})


@pytest.mark.parametrize("date", [False, True])
def test_a_server_that_asks_to_wait_is_obeyed(web: Web, path: Path, date: bool) -> None:
    when = format_datetime(datetime.now(UTC) + timedelta(seconds=1.9), usegmt=True) if date else 1
    web.fault(HOST, "/a.tsv", Fault.UNAVAILABLE, times=1, retry_after=when)
    begun = time.monotonic()
    download(web, path, keys={"retries": 1})
    assert 0.5 < time.monotonic() - begun < 4


def test_a_server_that_asks_to_wait_for_long_is_left_alone(web: Web, path: Path) -> None:
    web.fault(HOST, "/a.tsv", Fault.TOO_MANY, retry_after=86_400)
    with pytest.raises(Unavailable, match=r"HTTP 429 .* asks to wait for 86,400 s"):
        download(web, path, keys={"retries": 5})
    assert web.count() == 1


@pytest.mark.parametrize(
    ("fault", "advice"),
    [
        (Fault.UNAUTHORIZED, r"HTTP 401 .* an account, or its terms accepted: download it by hand"),
        (Fault.FORBIDDEN, r"HTTP 403 .* an account, or its terms accepted: download it by hand"),
        (Fault.NOT_FOUND, r"HTTP 404 .* look at the source's homepage"),
        (Fault.GONE, r"HTTP 410 .* look at the source's homepage"),
        (Fault.REDIRECT_LOOP, r"too many redirects"),
        (Fault.REDIRECT_NO_LOCATION, r"redirect to nowhere"),
        (Fault.REDIRECT_TO_FILE, r"neither http nor https: it scheme is file"),
    ],
)
def test_a_refusal_is_not_asked_again_and_says_what_to_do(
    web: Web, path: Path, fault: Fault, advice: str
) -> None:
    web.fault(HOST, "/a.tsv", fault)
    with pytest.raises(Unavailable, match=advice) as caught:
        download(web, path, keys={"retries": 3})
    assert web.count() == 1
    assert caught.value.exit_code == 1
    assert left(path) == []


def test_every_address_is_named_with_what_happened_there(web: Web, path: Path) -> None:
    web.fault(HOST, "/a.tsv", Fault.FORBIDDEN)
    web.fault(MIRROR, "/a.tsv", Fault.RESET)
    urls = (URL, MIRROR_URL, "http://no-such-name.invalid/a", "ftp://old.example/a", "https://user:pw@x/")
    with pytest.raises(Unavailable) as caught:
        download(web, path, *urls, keys={"connect_to": {HOST: web.http, MIRROR: web.http}})
    lines = str(caught.value).splitlines()
    assert lines[0] == f"{path}: no address gives this file:"
    assert "HTTP 403" in lines[1] and "connection lost" in lines[2] and "host name not found" in lines[3]
    assert "neither http nor https" in lines[4] and "credentials" in lines[5]
    assert [line.split(": ")[0].strip() for line in lines[1:6]] == [*urls]
    assert "name it in `files`" in lines[6]


# The same web policy as for images


def test_redirects_are_followed_and_the_last_address_is_told(web: Web, path: Path) -> None:
    web.fault(HOST, "/latest", Fault.REDIRECT, to=f"https://{MIRROR}/a.tsv?signed=1")
    web.serve_file(MIRROR, "/a.tsv", ServedFile(BODY, ETAG))
    web.fault(MIRROR, "/a.tsv", FileFault.CUT, times=1, size=400_000)
    got = download(web, path, f"http://{HOST}/latest")
    assert (got.url, got.final_url) == (f"http://{HOST}/latest", f"https://{MIRROR}/a.tsv?signed=1")
    assert [if_range for _, if_range in ranges(web, MIRROR)] == [None, ETAG]
    assert web.count(HOST) == 2, "a signed address may last for minutes only"


def test_five_redirects_are_enough(web: Web, path: Path) -> None:
    web.serve(HOST, "/page", BODY, "application/zip")
    web.fault(HOST, "/page", Fault.REDIRECT_CHAIN, hops=5)
    assert download(web, path, f"http://{HOST}/page").size == len(BODY)
    web.fault(HOST, "/page", Fault.REDIRECT_CHAIN, hops=6)
    with pytest.raises(Unavailable, match="too many redirects"):
        download(web, path, f"http://{HOST}/page")


def test_private_addresses_are_not_asked(web: Web, path: Path) -> None:
    inside = f"http://{web.http}/a.tsv"
    web.fault(HOST, "/a.tsv", Fault.REDIRECT, to=inside)
    for url in (inside, URL):
        with pytest.raises(Unavailable, match=r"not a public address.*allow_private or connect_to"):
            download(web, path, url, keys={"connect_to": {HOST: web.http}, "retries": 3})
    assert web.count() == 1


def test_a_server_that_is_not_trusted_is_not_asked(web: Web, path: Path) -> None:
    with pytest.raises(Unavailable, match="no trusted connection"):
        download(web, path, f"https://{HOST}/a.tsv", keys={"ca_file": None, "retries": 3})
    assert web.count() == 0


def test_a_spec_that_cannot_be_followed_is_a_bad_request(web: Web, path: Path) -> None:
    with pytest.raises(BadRequest, match="ca_file"):
        download(web, path, keys={"ca_file": "/nowhere.pem"})
    assert not path.parent.exists()


# This machine


def test_a_full_disk_is_told_with_its_path_and_what_came_is_kept(web: Web, path: Path) -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, limits[1]))
    try:
        with pytest.raises(OSError, match=r"\.a\.tsv\.partial"):
            download(web, path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert partial(path).stat().st_size == 300_000
    web.forget()
    assert download(web, path).sha256 == sha256(BODY)
    assert ranges(web) == [("bytes=300000-", ETAG)]


def test_a_place_that_cannot_be_written_is_told_before_anything_is_asked(web: Web, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    (tmp_path / "folder").mkdir()
    with pytest.raises(OSError, match="file"):
        download(web, tmp_path / "file" / "a.tsv")
    with pytest.raises(IsADirectoryError, match="folder"):
        download(web, tmp_path / "folder")
    if os.geteuid():
        (tmp_path / "closed").mkdir(mode=0o500)
        with pytest.raises(PermissionError, match="closed"):
            download(web, tmp_path / "closed" / "a.tsv")
    assert web.count() == 0


WEIGHED = """
import sys
from pathlib import Path
from pmd.fetch.file import download_file
from pmd.manifest import FetchSpec

def peak():  # in kB; ru_maxrss would tell of the parent's too
    return int(Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0])

url, path, spec, size = sys.argv[1:]
before = peak()
got = download_file([url], Path(path), spec=FetchSpec.model_validate_json(spec), size=int(size))
print(got.sha256, peak() - before)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux to weigh a process")
@pytest.mark.parametrize("scheme", ["http", "https"])
def test_a_big_file_takes_little_memory(web: Web, path: Path, tmp_path: Path, scheme: str) -> None:
    size, big = 200_000_000, tmp_path / "big"
    with big.open("wb") as file:
        file.truncate(size)
    with big.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    web.serve_file(HOST, "/big", ServedFile(big, ETAG))
    web.fault(HOST, "/big", FileFault.CUT, times=1, size=150_000_000)
    url, spec = f"{scheme}://{HOST}/big", spec_for(web, retries=1).model_dump_json()
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", WEIGHED, url, str(path), spec, str(size)],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    found, grown = done.stdout.split()
    assert found == digest
    assert int(grown) < 20_000  # kB
    assert len(ranges(web)) == 2
    path.unlink()
