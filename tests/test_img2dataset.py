"""img2dataset as the fetch engine: our rules hold there too, and every row has one end.

What needs img2dataset itself runs where `.venv-peers` has it (`make bench` makes it), or with the
interpreter that PMD_IMG2DATASET_PYTHON names. How we go on when it loses rows, dies or hangs is tried
with programs that do so.
"""

import asyncio
import os
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from pipelines import img2dataset
from pmd.errors import BadRequest, PmdError
from pmd.fetch import img2dataset_guard
from pmd.fetch.client import Answer
from pmd.manifest import FetchSpec
from pmd.records import Reason
from tests.web import Fault, Web

PYTHON = Path(os.environ.get("PMD_IMG2DATASET_PYTHON", ".venv-peers/bin/python")).absolute()
needs_img2dataset = pytest.mark.skipif(not PYTHON.exists(), reason=f"no img2dataset at {PYTHON}")
BODY = bytes(range(256)) * 120  # 30 KB
HOST = "127.0.0.1"  # it cannot be led elsewhere


@pytest.fixture(scope="module")
def shared_web() -> Iterator[Web]:
    with Web() as web:
        yield web


@pytest.fixture
def web(shared_web: Web) -> Web:
    """The web with an empty log. Each test has paths of its own."""
    shared_web.forget()
    return shared_web


def spec_of(**keys: Any) -> FetchSpec:
    """What the engine can keep, and the way to the tests' web."""
    known: dict[str, Any] = {
        "engine": "img2dataset",
        "consent": ["x_robots_tag"],
        "connections": 16,
        "per_host_connections": 16,
        "per_host_rate": 1e6,
        "allow_private": ["127.0.0.1/32"],
        "retries": 0,
        "timeout_s": 5,
    }
    return FetchSpec.model_validate(known | keys)


def fetch(*urls: str, python: Path = PYTHON, **keys: Any) -> list[Answer]:
    """How each row ended: each once, or this fails."""
    answers: dict[int, Answer] = {}

    async def deliver(place: int, answer: Answer) -> None:
        assert place not in answers
        answers[place] = answer

    rows = enumerate(urls)
    asyncio.run(img2dataset.fetch(rows, spec_of(**keys), deliver, python=str(python)))
    assert sorted(answers) == [*range(len(urls))]
    return [answers[place] for place in range(len(urls))]


def reasons(*urls: str, **keys: Any) -> list[str | None]:
    return [answer.reason for answer in fetch(*urls, **keys)]


# What it is asked for


@pytest.mark.parametrize(
    ("keys", "named"),
    [
        ({"consent": ["robots", "x_robots_tag"]}, "robots"),
        ({"consent": ["tdm_reservation"]}, "tdm_reservation"),
        ({"connect_to": {"*": "127.0.0.1:80"}}, "connect_to"),
        ({"per_host_connections": 2}, "per_host_connections = 16"),
        ({"per_address_connections": 2}, "per_address_connections = 16"),
        ({"per_host_rate": 4}, "per_host_rate = 1000"),
        ({"hosts": {"a.example": {"connections": 1}}}, 'hosts."a.example".connections = 16'),
        ({"hosts": {"a.example": {"rate": 1}}}, 'hosts."a.example".rate = 1000'),
    ],
)
def test_what_it_cannot_keep_is_refused_by_name(keys: dict[str, Any], named: str) -> None:
    img2dataset.check(spec_of())
    with pytest.raises(BadRequest) as refusal:
        img2dataset.check(spec_of(**keys))
    assert named in str(refusal.value)


def test_what_is_more_than_it_can_keep_is_named_all_at_once() -> None:
    with pytest.raises(BadRequest) as refusal:
        img2dataset.check(FetchSpec(engine="img2dataset", consent=("robots",)))
    assert all(key in str(refusal.value) for key in ("consent", "per_host_connections", "per_host_rate"))


def test_an_interpreter_without_img2dataset_is_a_bad_request_that_says_so() -> None:
    with pytest.raises(BadRequest, match="No module named 'img2dataset'"):
        fetch("http://images.example/", python=Path(sys.executable))


def test_no_interpreter_is_a_bad_request() -> None:
    with pytest.raises(BadRequest, match="No such file"):
        fetch("http://images.example/", python=Path("/nowhere/python"))


# What comes of rows


@needs_img2dataset
def test_bytes_come_as_they_were_served_whatever_they_are(web: Web) -> None:
    bodies = [BODY, b"not an image", b"\xff\xd8\xff\xe0 cut", b"\0" * 300_000]
    for number, body in enumerate(bodies):
        web.serve(HOST, f"/as-served/{number}", body)
    answers = fetch(*(f"http://{web.http}/as-served/{number}" for number in range(4)))
    assert [answer.body for answer in answers] == bodies


FAULTS: dict[Fault, tuple[Reason, dict[str, Any]]] = {
    Fault.NOT_FOUND: (Reason.HTTP_404, {}),
    Fault.GONE: (Reason.HTTP_410, {}),
    Fault.FORBIDDEN: (Reason.HTTP_403, {}),
    Fault.UNAUTHORIZED: (Reason.HTTP_401, {}),
    Fault.LEGAL: (Reason.HTTP_451, {}),
    Fault.TOO_MANY: (Reason.HTTP_429, {"retry_after": 1}),
    Fault.SERVER_ERROR: (Reason.HTTP_5XX, {}),
    Fault.UNAVAILABLE: (Reason.HTTP_5XX, {}),
    Fault.DRIP: (Reason.TIMEOUT, {}),
    Fault.HANG: (Reason.TIMEOUT, {}),
    Fault.RESET: (Reason.CONNECT_RESET, {}),
    Fault.RESET_MID_BODY: (Reason.CONNECT_RESET, {}),
    Fault.NO_BYTES: (Reason.CONNECT_RESET, {}),
    Fault.BAD_STATUS_LINE: (Reason.PROTOCOL_ERROR, {}),
    Fault.HUGE_HEADER: (Reason.PROTOCOL_ERROR, {"size": 200_000}),
    Fault.TRUNCATED: (Reason.BODY_TRUNCATED, {}),
    Fault.TRUNCATED_CHUNKED: (Reason.BODY_TRUNCATED, {}),
    Fault.EMPTY_200: (Reason.BODY_EMPTY, {}),
    Fault.ENDLESS: (Reason.BODY_LIMIT, {}),
    Fault.BIG: (Reason.BODY_LIMIT, {"size": 10_000_000}),
    Fault.REDIRECT_LOOP: (Reason.REDIRECT_LIMIT, {}),
    Fault.REDIRECT_CHAIN: (Reason.REDIRECT_LIMIT, {"hops": 9}),
    Fault.REDIRECT_NO_LOCATION: (Reason.REDIRECT_BAD, {}),
    Fault.REDIRECT_TO_FILE: (Reason.BAD_SCHEME, {}),
}


@needs_img2dataset
def test_every_fault_of_a_server_is_its_reason_and_costs_no_other_row(web: Web) -> None:
    urls = [f"http://{web.http}/fault/{fault}" for fault in FAULTS]
    for fault, (_, how) in FAULTS.items():
        web.serve(HOST, f"/fault/{fault}", BODY)
        web.fault(HOST, f"/fault/{fault}", fault, **how)
    web.serve(HOST, "/fault/none", BODY)
    web.serve(HOST, "/fault/chain", BODY)
    web.fault(HOST, "/fault/chain", Fault.REDIRECT_CHAIN, hops=3)
    web.fault(HOST, "/fault/part", Fault.STATUS, status=206)
    good = [f"http://{web.http}/fault/{name}" for name in ("none", "chain")]
    others = [f"http://{web.http}/fault/part", "http://nowhere.invalid/", "no url", "ftp://127.0.0.1/"]
    answers = fetch(*urls, *good, *others, timeout_s=1, max_bytes=1_000_000, **WIDE)
    found = {fault: answer.reason for fault, answer in zip(FAULTS, answers, strict=False)}
    assert found == {fault: reason for fault, (reason, _) in FAULTS.items()}
    assert [answer.body for answer in answers[len(FAULTS) :][:2]] == [BODY, BODY]
    assert [answer.reason for answer in answers[len(FAULTS) + 2 :]] == [
        *(Reason.HTTP_OTHER, Reason.DNS_FAILED, Reason.INPUT_BAD_URL, Reason.BAD_SCHEME)
    ]
    assert answers[0].status == 404
    # By its own deadline, not because the whole engine went silent.
    assert "too slowly" in answers[[*FAULTS].index(Fault.DRIP)].detail


WIDE: dict[str, Any] = {"connections": 64, "per_host_connections": 64, "per_address_connections": 64}


@needs_img2dataset
def test_tls_is_verified_by_the_authorities_that_the_corpus_file_names(web: Web) -> None:
    web.serve(HOST, "/tls", BODY)
    assert reasons(f"https://{web.https}/tls") == [Reason.TLS_FAILED]
    assert fetch(f"https://{web.https}/tls", ca_file=str(web.ca_file))[0].body == BODY


@needs_img2dataset
def test_transient_failures_are_asked_for_again_and_nothing_else(
    web: Web, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(img2dataset, "PAUSE_S", 0)
    for path in ("/again/mends", "/again/never", "/again/missing", "/again/many", "/again/optout"):
        web.serve(HOST, path, BODY, headers={"X-Robots-Tag": "noai"} if path.endswith("optout") else {})
    web.fault(HOST, "/again/mends", Fault.SERVER_ERROR, times=1)
    web.fault(HOST, "/again/never", Fault.SERVER_ERROR)
    web.fault(HOST, "/again/missing", Fault.NOT_FOUND)
    web.fault(HOST, "/again/many", Fault.TOO_MANY, retry_after=60)
    names = ("mends", "never", "missing", "many", "optout")
    answers = fetch(*(f"http://{web.http}/again/{name}" for name in names), retries=2)
    assert [answer.reason for answer in answers] == [
        *(None, Reason.HTTP_5XX, Reason.HTTP_404, Reason.HTTP_429, Reason.OPTOUT_X_ROBOTS_TAG)
    ]
    assert [web.count(HOST, f"/again/{name}") for name in names] == [2, 3, 1, 1, 1]
    assert [answer.attempts for answer in answers] == [2, 3, 1, 1, 1]


# Whom it may ask


class Canary:
    """A listener that nobody may reach, and how many did."""

    def __init__(self) -> None:
        self._socket = socket.create_server(("127.0.0.2", 0))
        self._socket.setblocking(False)
        self.port: int = self._socket.getsockname()[1]

    def caught(self) -> int:
        reached = 0
        while True:
            try:
                self._socket.accept()[0].close()
            except BlockingIOError:
                return reached
            reached += 1

    def close(self) -> None:
        self._socket.close()


@pytest.fixture
def canary() -> Iterator[Canary]:
    canary = Canary()
    yield canary
    canary.close()


@needs_img2dataset
def test_no_row_and_no_redirect_reaches_an_address_that_is_not_allowed(web: Web, canary: Canary) -> None:
    hosts = ("127.0.0.2", "[::ffff:127.0.0.2]", "127.2", "0x7f000002", "2130706434", "127.0.0.2.")
    urls = [f"http://{host}:{canary.port}/x.jpg" for host in hosts]
    for number, url in enumerate(urls):
        web.fault(HOST, f"/lead/{number}", Fault.REDIRECT, to=url)
    web.fault(HOST, "/lead/file", Fault.REDIRECT, to="file:///etc/hostname")
    web.fault(HOST, "/lead/ftp", Fault.REDIRECT, to=f"ftp://127.0.0.2:{canary.port}/x.jpg")
    web.fault(HOST, "/lead/user", Fault.REDIRECT, to=f"http://a:b@{web.http}/x.jpg")
    leads = [f"http://{web.http}/lead/{name}" for name in (*range(len(urls)), "file", "ftp", "user")]
    local = ["file:///etc/hostname", "data:image/png;base64,AAAA", "http://169.254.169.254/"]
    rows = [*urls, *leads, *local]
    answers = fetch(*rows)
    assert canary.caught() == 0
    assert {answer.body for answer in answers} == {None}
    found = {url: answer.reason for url, answer in zip(rows, answers, strict=True)}
    assert found[urls[0]] == found[leads[0]] == Reason.BLOCKED_ADDRESS
    assert found["http://169.254.169.254/"] == Reason.BLOCKED_ADDRESS
    assert {found[leads[-3]], found[leads[-2]], found["file:///etc/hostname"]} == {Reason.BAD_SCHEME}
    assert found[leads[-1]] == Reason.REDIRECT_BAD
    assert {*found.values()} <= {
        *(Reason.BLOCKED_ADDRESS, Reason.INPUT_BAD_URL, Reason.REDIRECT_BAD, Reason.BAD_SCHEME)
    }


@needs_img2dataset
def test_the_canary_would_be_reached_were_it_allowed(canary: Canary) -> None:
    fetch(f"http://127.0.0.2:{canary.port}/", allow_private=["127.0.0.2/32"], timeout_s=0.2)
    assert canary.caught() == 1


@needs_img2dataset
def test_no_proxy_and_no_credential_of_the_environment_is_used(
    web: Web, canary: Canary, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy"):
        monkeypatch.setenv(name, f"http://127.0.0.2:{canary.port}")
    web.serve(HOST, "/plain", BODY)
    assert fetch(f"http://{web.http}/plain", allow_private=["127.0.0.0/8"])[0].body == BODY
    assert canary.caught() == 0
    sent = {name.lower() for name, _ in web.requests[0].headers}
    assert sent == {"accept-encoding", "user-agent", "host", "connection"}


@needs_img2dataset
def test_it_says_whose_it_is(web: Web) -> None:
    web.serve(HOST, "/who", BODY)
    fetch(f"http://{web.http}/who", user_agent="pmd/9 (test)", contact="https://me.example")
    assert "(compatible; pmd/9; +https://me.example;" in (web.requests[0].header("user-agent") or "")


# Refusals


NO = [
    *("noai", "NoAI", "noimageai", "noindex, nofollow", "none", "max-snippet:0, noai", "pmd: noai"),
    # These img2dataset's own reading passes over.
    *("noai, unavailable_after: 25 Jun 2010 15:00:00 PST", "noai, otherbot: nofollow"),
    *("otherbot: nofollow, pmd: noindex", "unavailable_after: 25 Jun 2010 15:00:00 PST, noimageindex"),
]
YES = ["all", "nofollow", "noarchive, max-image-preview: large", "noairplane", ""]


@needs_img2dataset
def test_a_directive_against_us_is_found_wherever_it_stands(web: Web) -> None:
    for number, value in enumerate(NO + YES):
        web.serve(HOST, f"/tag/{number}", BODY, headers={"X-Robots-Tag": value})
    urls = [f"http://{web.http}/tag/{number}" for number in range(len(NO + YES))]
    asked = reasons(*urls)
    assert dict(zip(NO + YES, asked, strict=True)) == dict.fromkeys(NO, Reason.OPTOUT_X_ROBOTS_TAG) | (
        dict.fromkeys(YES, None)
    )
    assert reasons(*urls, consent=[]) == [None] * len(urls)


# Its words


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        ("<urlopen error [Errno 111] Connection refused>", Reason.CONNECT_FAILED),
        ("<urlopen error [Errno 113] No route to host>", Reason.CONNECT_FAILED),
        ("<urlopen error [Errno -3] Temporary failure in name resolution>", Reason.DNS_FAILED),
        ("<urlopen error timed out>", Reason.TIMEOUT),
        ("The read operation timed out", Reason.TIMEOUT),
        ("<urlopen error _ssl.c:989: The handshake operation timed out>", Reason.TIMEOUT),
        ("<urlopen error [SSL: WRONG_VERSION_NUMBER] wrong (_ssl.c:1006)>", Reason.TLS_FAILED),
        ("Remote end closed connection without response", Reason.CONNECT_RESET),
        ("[Errno 104] Connection reset by peer", Reason.CONNECT_RESET),
        ("IncompleteRead(15360 bytes read, 15360 more expected)", Reason.BODY_TRUNCATED),
        ("HTTP Error 418: I'm a teapot", Reason.HTTP_4XX),
        ("HTTP Error 402: Payment Required", Reason.HTTP_402),
        ("HTTP Error 304: Not Modified", Reason.HTTP_OTHER),
        ("HTTP Error 999: timed out", Reason.HTTP_OTHER),
        ("refused by pmd: http_404", Reason.PROTOCOL_ERROR),  # a status line may say anything
        ("never seen before", Reason.PROTOCOL_ERROR),
        ("", Reason.PROTOCOL_ERROR),
    ],
)
def test_a_message_is_a_reason_and_an_unknown_one_too(words: str, reason: Reason) -> None:
    assert img2dataset.reason_of(words) is reason


def test_running_out_of_open_files_is_not_laid_to_rows(tmp_path: Path) -> None:
    program = stand_in(tmp_path, "bring(0, '<urlopen error [Errno 24] Too many open files>')")
    with pytest.raises(PmdError, match="ulimit"):
        fetch("http://images.example/", python=program)


# An engine that fails


def stand_in(folder: Path, *does: str) -> Path:
    """A program that speaks as the guard does, and does worse."""
    lines = [
        f"#!{sys.executable}",
        "import json, os, sys, time",
        f"sys.path.insert(0, {str(Path(__file__).parents[1])!r})",
        "from pmd.fetch.img2dataset_guard import FRAME",
        "def say(words, body=b''):",
        "    text = json.dumps(words).encode()",
        "    sys.stdout.buffer.write(FRAME.pack(len(text), len(body)) + text + body)",
        "    sys.stdout.buffer.flush()",
        "def bring(place, error=None, body=b''):",
        "    say({'place': place, 'error': error}, body)",
        "say({'ready': True})",
        *does,
    ]
    program = folder / "engine"
    program.write_text("\n".join(lines))
    program.chmod(0o755)
    return program


LOST = [None, Reason.TIMEOUT, Reason.TIMEOUT]
URLS = [f"http://images.example/{number}" for number in range(3)]


@pytest.mark.parametrize(
    "then", ["say({'end': True})", "os._exit(0)", "os.kill(os.getpid(), 11)", "time.sleep(600)"]
)
def test_rows_that_it_loses_time_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, then: str) -> None:
    monkeypatch.setattr(img2dataset, "SILENCE_S", 0.3)
    program = stand_in(tmp_path, "bring(0, body=b'image')", then)
    assert reasons(*URLS, python=program, timeout_s=0.1) == LOST


def test_a_frame_cut_short_is_no_body(tmp_path: Path) -> None:
    words = 'b\'{"place": 1, "error": null}\''
    does = f"sys.stdout.buffer.write(FRAME.pack(len({words}), 100) + {words} + b'half')"
    program = stand_in(tmp_path, "bring(0, body=b'image')", does)
    assert reasons(*URLS, python=program) == LOST


def test_lost_rows_get_their_other_tries(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(img2dataset, "PAUSE_S", 0)
    mark = tmp_path / "began"
    program = stand_in(
        tmp_path,
        f"again = os.path.exists({str(mark)!r}); open({str(mark)!r}, 'w').close()",
        "[bring(place, body=b'image') for place in ((1, 2) if again else (0,))]",
    )
    answers = fetch(*URLS, python=program, retries=1)
    assert [(answer.body, answer.attempts) for answer in answers] == [
        *((b"image", 1), (b"image", 2), (b"image", 2))
    ]


def children() -> list[psutil.Process]:
    return psutil.Process().children(recursive=True)


def test_it_and_what_it_started_is_killed_with_the_fetch(tmp_path: Path) -> None:
    child = "import subprocess; subprocess.Popen(['sleep', '600'])"
    program = stand_in(tmp_path, child, "bring(0, body=b'image')", "time.sleep(600)")
    before = {process.pid for process in children()}
    seen: list[psutil.Process] = []

    async def stopped_at_the_first_row() -> None:
        begun = asyncio.Event()

        async def deliver(_place: int, _answer: Answer) -> None:
            begun.set()

        rows = enumerate(URLS)
        fetch = img2dataset.fetch(rows, spec_of(), deliver, python=str(program))
        fetching = asyncio.ensure_future(fetch)
        await begun.wait()
        seen.extend(process for process in children() if process.pid not in before)
        fetching.cancel()
        with pytest.raises(asyncio.CancelledError):
            await fetching

    asyncio.run(stopped_at_the_first_row())
    assert len(seen) == 2
    _, alive = psutil.wait_procs(seen, timeout=10)
    assert [process for process in alive if process.status() != psutil.STATUS_ZOMBIE] == []


@needs_img2dataset
def test_it_ends_when_we_are_gone(web: Web) -> None:
    """A worker that is killed cannot kill its engine: the engine finds nobody to tell."""
    web.serve(HOST, "/slow", BODY)
    web.fault(HOST, "/slow", Fault.SLOW, seconds=0.5)
    script = (
        "from tests.test_img2dataset import *\n"
        f"urls = ['http://{web.http}/slow'] * 200\n"
        "async def deliver(place, answer):\n"
        "    print(os.getpid(), flush=True); await asyncio.sleep(600)\n"
        "asyncio.run(img2dataset.fetch(enumerate(urls), spec_of(), deliver, python=str(PYTHON)))\n"
    )
    with psutil.Popen([sys.executable, "-c", script], stdout=-1, stderr=-3) as worker:
        assert worker.stdout is not None
        worker.stdout.readline()
        engines = worker.children()
        worker.kill()
    gone, alive = psutil.wait_procs(engines, timeout=20)
    assert len(gone) == 1 and not alive


@needs_img2dataset
def test_it_waits_while_we_do_not_take_what_it_brings(web: Web) -> None:
    """Bodies that are fetched and not yet decoded would fill the memory."""
    for number in range(400):
        web.serve(HOST, f"/wait/{number}", BODY)
    delivered: list[int] = []
    held: list[int] = []

    async def deliver(place: int, _answer: Answer) -> None:
        delivered.append(place)
        if len(delivered) == 20:  # time enough to fetch everything, were nobody to wait for us
            while len(held) < 3 or held[-1] != held[-3]:
                held.append(web.count(HOST))
                await asyncio.sleep(0.3)

    rows = ((number, f"http://{web.http}/wait/{number}") for number in range(400))
    began = time.monotonic()
    asyncio.run(img2dataset.fetch(rows, spec_of(connections=4), deliver, python=str(PYTHON)))
    assert time.monotonic() - began < 60
    assert len(delivered) == 400
    assert held[-1] < 100


def test_the_guard_is_a_program_of_the_standard_library_alone() -> None:
    """It runs where nothing of ours is installed."""
    source = Path(img2dataset_guard.__file__).read_text()
    imported = [line.split()[1] for line in source.splitlines() if line.startswith(("import ", "from "))]
    assert {name.partition(".")[0] for name in imported} <= sys.stdlib_module_names
