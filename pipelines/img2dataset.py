"""img2dataset as the fetch engine: `[fetch] engine = "img2dataset"`.

    rows --> a process of img2dataset's own interpreter --> served bytes, or words of what went wrong
                 |  may this be asked? connected to?                      |
                 +--> our rules for URLs and addresses                    v
                                                          an Answer, as our own client gives

img2dataset fetches; what is served is decoded, shrunk and stored as it is for our own engine, so equal
bytes give equal shards. It runs in an interpreter of its own, since what it needs (webdataset below 0.3,
OpenCV below 5, pandas below 3, Python below 3.13) does not go beside what we and our tests need.
pmd/fetch/img2dataset_guard.py runs there and holds it to our rules where Python lets one.

Kept as by our own engine: which URLs and addresses may be asked, for every redirect; 5 redirects; size
and time of a body; the certificate authorities; one outcome a row, also of rows that it loses; no
refusal and no 404 is asked for again; no proxy and no credential of the environment.

What it cannot do is refused where the corpus file asks for it (`check`): connect_to; every signal of
consent but x_robots_tag; a bound on the connections or the rate of a host. What is left are gaps:

- It introduces itself as Firefox 72, "compatible" with the first word of our user_agent, in small
  letters, and with our contact.
- timeout_s bounds the body of each hop and each single wait before it, not the whole try: names,
  connection and header may take longer. If nothing at all happens for two timeouts and a minute, it is
  killed, and what has not ended times out.
- min_bytes_per_s, patience_s, outage_s and Retry-After are not heeded. Who is asked too often (429) is
  left to `pmd repair`; in an outage of DNS, rows end as dns_failed.
- A packed body (Content-Encoding) is not unpacked, and ends as not_an_image.
- The fetch log has its words, but no header, no final URL and no time.
- Each request opens a new connection. Of an X-Robots-Tag, directives for other crawlers count too.
"""

import asyncio
import errno
import json
import os
import re
import signal
import sys
import tempfile
from asyncio.subprocess import PIPE, Process
from collections.abc import Awaitable, Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pyarrow as pa

from pmd.errors import BadRequest, PmdError
from pmd.fetch import img2dataset_guard
from pmd.fetch.address import AddressPolicy
from pmd.fetch.client import MAX_REDIRECTS, Answer, clean
from pmd.fetch.url import BadUrl, read_url
from pmd.manifest import FetchSpec
from pmd.records import TRANSIENT, Reason

HONOURED = {"x_robots_tag"}
DIRECTIVES = ("noai", "noimageai", "noindex", "noimageindex", "none")
NO_BOUND = 1_000.0  # requests a second: what per_host_rate says where no rate is to be kept
START_S = 180.0  # for its imports, a few seconds of work on an idle machine
SILENCE_S = 60.0  # beyond two timeouts
PAUSE_S = 1.0  # between two rounds

Deliver = Callable[[int, Answer], Awaitable[None]]


def check(spec: FetchSpec) -> None:
    """Raises BadRequest, naming all that a corpus file asks for and img2dataset cannot do."""
    asked: list[str] = []
    if unknown := [name for name in spec.consent if name not in HONOURED]:
        asked.append(f'consent = ["x_robots_tag"] or []: it does not know {", ".join(unknown)}')
    bounds = {
        "per_host_connections": spec.per_host_connections,
        "per_address_connections": spec.per_address_connections,
        **{f'hosts."{host}".connections': entry.connections for host, entry in spec.hosts.items()},
    }
    for name, bound in bounds.items():
        if bound is not None and bound < spec.connections:
            asked.append(f"{name} = {spec.connections} as connections is: all may go to one host")
    rates = {"per_host_rate": spec.per_host_rate}
    rates |= {f'hosts."{host}".rate': entry.rate for host, entry in spec.hosts.items() if entry.rate}
    for name, rate in rates.items():
        if rate < NO_BOUND:
            asked.append(f"{name} = {NO_BOUND} or more, which says that no rate is kept")
    if spec.connect_to:
        asked.append("connect_to = {}: it cannot be led elsewhere")
    if asked:
        raise BadRequest(
            '[fetch] engine = "img2dataset" cannot do all that is asked. Take engine = "pmd", or set '
            + "; ".join(asked)
        )


async def fetch(
    rows: Iterable[tuple[int, str]], spec: FetchSpec, deliver: Deliver, *, python: str = sys.executable
) -> int:
    """Let img2dataset ask for rows, each a place and a URL; returns how many requests were begun.

    deliver(place, answer) is awaited once for each row, as they end; while it waits, img2dataset waits
    too. python: the interpreter that img2dataset is installed for. Transient failures are asked for
    again when all others have ended, spec.retries times at most. Raises BadRequest, or PmdError where
    this machine is at its end.
    """
    check(spec)
    left: dict[int, str] = {}
    for place, text in rows:
        try:
            left[place] = str(read_url(text))
        except BadUrl as error:
            await deliver(place, Answer(body=None, reason=error.reason, detail=clean(str(error))))
    requests = 0
    for attempt in range(1, spec.retries + 2):
        if not left:
            break
        if attempt > 1:
            await asyncio.sleep(PAUSE_S)
        turn = _Turn(left, spec, attempt)
        await turn.run(deliver, python)
        requests += turn.requests
        left = turn.again
    return requests


class _Turn:
    """All rows asked for once, by one process of img2dataset."""

    def __init__(self, rows: dict[int, str], spec: FetchSpec, attempt: int) -> None:
        self.again: dict[int, str] = {}  # rows for another turn
        self.requests = 0
        self._left = dict(rows)  # rows that have not ended
        self._spec = spec
        self._policy = AddressPolicy.of(spec)
        self._attempt = attempt

    async def run(self, deliver: Deliver, python: str) -> None:
        """Returns when every row has ended: by its own end, or with img2dataset's."""
        with tempfile.TemporaryDirectory(prefix="pmd-img2dataset-") as folder:
            errors = Path(folder) / "errors"
            with errors.open("wb") as told:
                process = await _start(python, told.fileno(), _environment(self._spec, folder))
            try:
                if not await self._converse(process, _order(self._left, self._spec, folder), deliver):
                    raise BadRequest(_no_start(python, errors))
            finally:
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                await process.communicate()
        # It lost these: an exception of its own, a crash, or a host that kept it waiting until it was
        # killed.
        for place in [*self._left]:
            await self._ended(place, "timed out: img2dataset did not say what came of it", b"", deliver)

    async def _converse(self, process: Process, order: bytes, deliver: Deliver) -> bool:
        """Answer its questions and take what it brings, until it is done, dead or silent.

        False: it never began.
        """
        assert process.stdin is not None and process.stdout is not None
        process.stdin.write(order)
        began = False
        while True:
            patience = 2 * self._spec.timeout_s + SILENCE_S if began else START_S
            try:
                words, body = await asyncio.wait_for(_frame(process.stdout), patience)
            except (TimeoutError, asyncio.IncompleteReadError):
                return began
            began = True
            if "ask" in words:
                kind, *what = words["ask"]
                self.requests += kind == "url"
                process.stdin.write(_refusal(kind, what, self._policy).encode() + b"\n")
            elif "place" in words:
                await self._ended(words["place"], words["error"], body, deliver)
            elif "end" in words:
                return True

    async def _ended(self, place: int, error: str | None, body: bytes, deliver: Deliver) -> None:
        url = self._left.pop(place)
        answer = _answer(error, body, self._attempt)
        # Who is asked too often is not asked again at once, and img2dataset does not say when it may be.
        transient = answer.reason in TRANSIENT and answer.reason is not Reason.HTTP_429
        if transient and self._attempt <= self._spec.retries:
            self.again[place] = url
        else:
            await deliver(place, answer)


def _order(rows: dict[int, str], spec: FetchSpec, folder: str) -> bytes:
    table = pa.table({"place": pa.array(rows, pa.int64()), "url": pa.array(rows.values(), pa.string())})
    path = Path(folder) / "rows.arrow"
    with pa.ipc.new_file(path, table.schema) as file:
        file.write_table(table)
    name = spec.user_agent.split()[0]
    order = {
        "folder": folder,
        "table": str(path),
        "rows": len(rows),
        "threads": spec.connections,
        "timeout_s": spec.timeout_s,
        "max_bytes": spec.max_bytes,
        "redirects": MAX_REDIRECTS,
        "user_agent_token": f"{name}; +{spec.contact}" if spec.contact else name,
        "directives": DIRECTIVES if "x_robots_tag" in spec.consent else None,
    }
    return json.dumps(order).encode() + b"\n"


async def _start(python: str, errors: int, environment: dict[str, str]) -> Process:
    try:
        return await asyncio.create_subprocess_exec(
            *(python, "-I", "-B", img2dataset_guard.__file__),
            stdin=PIPE,
            stdout=PIPE,
            stderr=errors,
            env=environment,
            start_new_session=True,  # a signal for us is none for it; and it is killed with all its own
        )
    except OSError as error:
        raise BadRequest(f"[fetch] engine_python: {python}: {error.strerror}") from None


def _environment(spec: FetchSpec, folder: str) -> dict[str, str]:
    """Little of ours: no proxies, no credentials."""
    kept = ("PATH", "LANG", "LC_ALL", "LD_LIBRARY_PATH", "TMPDIR", "SSL_CERT_FILE", "SSL_CERT_DIR")
    environment = {name: os.environ[name] for name in kept if name in os.environ}
    environment |= {"HOME": folder, "NO_ALBUMENTATIONS_UPDATE": "1", "OPENBLAS_NUM_THREADS": "1"}
    if spec.ca_file:
        environment |= {"SSL_CERT_FILE": spec.ca_file, "SSL_CERT_DIR": folder}  # instead of the system's
    return environment


def _no_start(python: str, errors: Path) -> str:
    lines = errors.read_text(errors="replace").split("\n")
    why = next((line for line in reversed(lines) if line.strip()), "it says nothing")
    return (
        f"[fetch] engine_python: {python} does not run img2dataset ({clean(why)}). It needs an "
        "environment of its own, with Python below 3.13: python3.12 -m venv DIR; DIR/bin/pip install "
        "'img2dataset>=1.47,<2'"
    )


async def _frame(stream: asyncio.StreamReader) -> tuple[dict[str, Any], bytes]:
    head = await stream.readexactly(img2dataset_guard.FRAME.size)
    words, body = img2dataset_guard.FRAME.unpack(head)
    return json.loads(await stream.readexactly(words)), await stream.readexactly(body)


def _refusal(kind: str, what: list[Any], policy: AddressPolicy) -> str:
    """Why a URL may not be asked or an address not be connected to; empty where it may."""
    if kind == "address":
        objection = policy.objection(str(what[0]), int(what[1]))
        return clean(f"{Reason.BLOCKED_ADDRESS} {what[0]}: {objection}") if objection else ""
    try:
        read_url(what[0])
    except BadUrl as error:  # of a redirect: rows were read before
        reason = Reason.BAD_SCHEME if error.reason is Reason.BAD_SCHEME else Reason.REDIRECT_BAD
        return clean(f"{reason} {error}")
    return ""


# Its words


def _answer(error: str | None, body: bytes, attempt: int) -> Answer:
    if error is None:
        if body:
            return Answer(body=body, reason=None, attempts=attempt)
        return Answer(body=None, reason=Reason.BODY_EMPTY, attempts=attempt)
    if error.startswith(_FILES):
        raise PmdError(
            f"no more open files for connections ({error}): raise `ulimit -n`, or lower connections in "
            "[fetch]"
        )
    status = re.match(r"HTTP Error (\d{3})\b", error)
    return Answer(
        body=None,
        reason=reason_of(error),
        status=int(status[1]) if status else None,
        detail=clean(error),
        attempts=attempt,
    )


_FILES = tuple(f"<urlopen error [Errno {number}]" for number in (errno.EMFILE, errno.ENFILE))


def reason_of(error: str) -> Reason:
    """What an error message of img2dataset comes to: the text of whatever exception it met.

    A message that nobody has foreseen is a PROTOCOL_ERROR: of all that may happen, only what servers say
    has no end.
    """
    if status := re.match(r"HTTP Error (\d{3})\b", error):
        return _of_status(int(status[1]), error)
    if refused := re.match(img2dataset_guard.REFUSED + r"(\w+)", error):
        return _REFUSALS.get(refused[1], Reason.PROTOCOL_ERROR)
    return next((reason for words, reason in _WORDS if words.search(error)), Reason.PROTOCOL_ERROR)


_REFUSALS = {
    reason.value: reason for reason in (Reason.BLOCKED_ADDRESS, Reason.BAD_SCHEME, Reason.REDIRECT_BAD)
}
# The order counts. The first are sentences of its own; all else is of Python, of OpenSSL and of the
# system.
_WORDS = tuple(
    (re.compile(words), reason)
    for words, reason in (
        (r"^Use of image disallowed by X-Robots-Tag directive$", Reason.OPTOUT_X_ROBOTS_TAG),
        (r"^body too large", Reason.BODY_LIMIT),
        (r"^IncompleteRead\(", Reason.BODY_TRUNCATED),
        (r"timed out", Reason.TIMEOUT),
        (
            r"\[Errno -\d+\]|codec (failed|can't encode)",
            Reason.DNS_FAILED,
        ),  # of getaddrinfo; a name of no form
        (r"\[SSL|_ssl\.c|certificate", Reason.TLS_FAILED),
        (
            rf"\[Errno ({errno.ECONNRESET}|{errno.EPIPE}|{errno.ECONNABORTED})\]|^Remote end closed",
            Reason.CONNECT_RESET,
        ),
        (r"\[Errno \d+\]", Reason.CONNECT_FAILED),
        (r"unknown url type", Reason.BAD_SCHEME),
        (r"no host given|Invalid IPv6 URL|control characters", Reason.REDIRECT_BAD),
    )
)
_STATUS_REASONS = {reason.value: reason for reason in Reason if reason.startswith("http_")}


def _of_status(status: int, error: str) -> Reason:
    if status in (301, 302, 303, 307, 308):
        if "infinite loop" in error:
            return Reason.REDIRECT_LIMIT
        return Reason.BAD_SCHEME if "is not allowed" in error else Reason.REDIRECT_BAD
    kinds = {4: Reason.HTTP_4XX, 5: Reason.HTTP_5XX}
    return _STATUS_REASONS.get(f"http_{status}", kinds.get(status // 100, Reason.HTTP_OTHER))
