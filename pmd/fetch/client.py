"""A URL -> its bytes, or the Reason why there are none.

    fetch -+-> attempt -> hop -> hop -> body     redirects are followed here, so that each hop is checked
           |      |        |
           |      |        +- a slot of its host, a slot of ours; then the clock runs
           |      +- transient failure: a pause, without slots
           +<-----+

Nothing that a server does raises: it ends as a Reason, within a deadline and in bounded memory. The sizes of
header and body are limited before and while they are read, a body is unpacked at most once, the body of a
redirect or of an error is never read, and no cookie, referrer or credential is ever sent.
"""

import asyncio
import errno
import random
import re
import ssl
import time
import zlib
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from types import TracebackType
from typing import Self

import aiohttp
from aiohttp.http_exceptions import HttpProcessingError
from yarl import URL

from pmd.errors import BadRequest, PmdError
from pmd.fetch.address import AddressPolicy, BlockedAddress, GuardedConnector
from pmd.fetch.url import BadUrl, follow, read_url
from pmd.manifest import FetchSpec
from pmd.records import TRANSIENT, Reason

MAX_REDIRECTS = 5
HEADER_BYTES = 16_384  # of one field
HEADER_FIELDS = 128
# Between two attempts, in s: anything up to FIRST_PAUSE, then up to twice as much each time.
FIRST_PAUSE = 0.25
LONGEST_PAUSE = 10.0
LONGEST_RETRY_AFTER = 30.0  # whoever asks to be left alone for longer is left alone

# What is kept of a response's header, for the fetch log and for whoever reads opt-outs.
KEPT_HEADERS = (
    "content-type",
    "content-length",
    "last-modified",
    "etag",
    "retry-after",
    "x-robots-tag",
    "tdm-reservation",
    "tdm-policy",
)
KEPT_LENGTH = 2_000  # characters of each, and of a detail

# C0 and C1, what turns the direction of text, and what no encoding can write.
_CONTROLS = re.compile(r"[\x00-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]+")


@dataclass(frozen=True)
class Answer:
    """How a fetch ended: with a body, or with a reason. Never both."""

    body: bytes | None
    reason: Reason | None
    status: int | None = None  # of the last response, if there was one
    detail: str = ""  # the exact cause, for the fetch log; may differ from run to run
    final_url: str = ""  # the last one asked
    attempts: int = 1
    seconds: float = 0.0  # with all waiting
    headers: Mapping[str, str] = field(default_factory=dict[str, str])  # of KEPT_HEADERS, names in lower case

    def __post_init__(self) -> None:
        assert (self.body is None) != (self.reason is None), self

    @property
    def message(self) -> str:
        """One sentence for hashed files: equal for equal reason and status, whatever happened exactly."""
        if self.reason is None:
            return ""
        if self.reason.startswith("http_"):
            return f"HTTP {self.status}"
        return MESSAGES[self.reason]


MESSAGES = {
    Reason.NOT_IN_ARCHIVE: "published in an archive that is not at hand",
    Reason.INPUT_BAD_URL: "not a URL that can be asked",
    Reason.BAD_SCHEME: "neither http nor https",
    Reason.BLOCKED_ADDRESS: "not a public address",
    Reason.DNS_FAILED: "host name not found",
    Reason.CONNECT_FAILED: "no connection",
    Reason.CONNECT_RESET: "connection lost",
    Reason.TLS_FAILED: "no trusted connection",
    Reason.PROTOCOL_ERROR: "not an HTTP response, or one with an oversized header",
    Reason.TIMEOUT: "not complete in time",
    Reason.REDIRECT_LIMIT: "too many redirects",
    Reason.REDIRECT_BAD: "redirect to nowhere",
    Reason.BODY_LIMIT: "body too large",
    Reason.BODY_TRUNCATED: "body cut short",
    Reason.BODY_EMPTY: "empty body",
    Reason.BAD_ENCODING: "body packed in a way that is not unpacked",
}


class Client:
    """Fetches, many at a time. Use as an async context; keeps connections alive between fetches."""

    def __init__(self, spec: FetchSpec) -> None:
        """Raises BadRequest where the spec cannot be followed."""
        self.requests = 0  # begun, redirects and further attempts counted
        self._spec = spec
        self._open_session = session_opener(spec)
        self._slots = asyncio.Semaphore(spec.connections)
        self._hosts: dict[str, _HostSlots] = {}

    async def __aenter__(self) -> Self:
        self._session = self._open_session()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._session.close()

    async def fetch(self, url: str) -> Answer:
        """Ask for a URL, again after a transient failure, and say how it ended.

        Each attempt has spec.timeout_s for itself: looking up names, all redirects, to the last byte. Waiting
        for a free slot and pausing between attempts do not count. Raises PmdError where this machine is at
        its end, so that its rows are not blamed on the web.
        """
        begun = time.monotonic()
        attempts = 1
        answer = await self._attempt(url)
        while answer.reason in TRANSIENT and attempts <= self._spec.retries:
            pause = _pause(attempts, answer)
            if pause is None:
                break
            await asyncio.sleep(pause)
            attempts += 1
            answer = await self._attempt(url)
        return replace(answer, attempts=attempts, seconds=time.monotonic() - begun)

    async def _attempt(self, text: str) -> Answer:
        left = self._spec.timeout_s
        asked: list[str] = []
        reply = _Reply()
        try:
            url = read_url(text)
            while True:
                asked.append(str(url))
                async with self._slot(url.raw_host or ""):
                    begun = time.monotonic()
                    reply = await self._hop(url, left)
                    left -= time.monotonic() - begun
                if reply.location is None:
                    break
                url = _redirected(url, reply.location)
                if len(asked) > MAX_REDIRECTS or str(url) in asked:
                    raise _Failure(Reason.REDIRECT_LIMIT, f"{len(asked)} redirects, the last to {url}")
        except BadUrl as error:
            reply = _Reply(error.reason, str(error))
        except _Failure as failure:
            reply = replace(reply, reason=failure.reason, detail=str(failure))
        return Answer(
            body=reply.body,
            reason=reply.reason,
            status=reply.status,
            detail=clean(reply.detail),
            final_url=asked[-1] if asked else "",
            headers=reply.headers,
        )

    async def _hop(self, url: URL, time_left: float) -> "_Reply":
        """Ask once, for `time_left` s at most."""
        reply = _Reply()
        self.requests += 1
        try:
            async with (
                asyncio.timeout(time_left),
                self._session.get(url, allow_redirects=False) as response,
            ):
                reply = _Reply(status=response.status, headers=_kept(response))
                if response.status in (301, 302, 303, 307, 308):
                    return replace(reply, location=response.headers.get("Location", ""))
                if refusal := _refusal(response.status):
                    raise _Failure(refusal, f"HTTP {response.status}")
                return replace(reply, body=await _body(response, limit=self._spec.max_bytes))
        except _Failure as failure:
            return replace(reply, reason=failure.reason, detail=str(failure))
        except TimeoutError:
            return replace(reply, reason=Reason.TIMEOUT, detail=f"at {url}")
        except (aiohttp.ClientError, HttpProcessingError, BlockedAddress, OSError) as error:
            if isinstance(error, OSError) and error.errno in (errno.EMFILE, errno.ENFILE):
                raise PmdError(
                    f"no more open files for connections ({error.strerror}): raise `ulimit -n`, or lower "
                    f"connections in [fetch], which is {self._spec.connections}"
                ) from error
            return replace(reply, reason=reason_of(error), detail=f"{type(error).__name__}: {error}")

    @asynccontextmanager
    async def _slot(self, host: str) -> AsyncGenerator[None]:
        """One of the host's connections, then one of ours: who waits for a busy host holds nothing else."""
        waiting = self._hosts.setdefault(host, _HostSlots(self._spec.per_host_connections))
        waiting.users += 1
        try:
            async with waiting.slots, self._slots:
                yield
        finally:
            waiting.users -= 1
            if not waiting.users:
                del self._hosts[host]  # there are millions of hosts


class _HostSlots:
    def __init__(self, connections: int) -> None:
        self.slots = asyncio.Semaphore(connections)
        self.users = 0  # in a slot, or waiting for one


def session_opener(spec: FetchSpec) -> Callable[[], aiohttp.ClientSession]:
    """What opens sessions that keep to [fetch]: to its addresses, trusting its authorities, under its name.

    Raises BadRequest where the spec cannot be followed.
    """
    policy = AddressPolicy.of(spec)
    if not (spec.user_agent.isascii() and spec.user_agent.isprintable()):
        raise BadRequest(f"[fetch] user_agent: {spec.user_agent!r} is not plain ASCII text")
    try:
        tls = ssl.create_default_context(cafile=spec.ca_file)
    except OSError as error:
        raise BadRequest(f"[fetch] ca_file: {spec.ca_file}: {error}") from None
    tls.set_alpn_protocols(["http/1.1"])
    return lambda: aiohttp.ClientSession(
        connector=GuardedConnector(policy, tls=tls, lookups=spec.connections),
        headers={"User-Agent": spec.user_agent, "Accept": "*/*", "Accept-Encoding": "identity"},
        cookie_jar=aiohttp.DummyCookieJar(),
        timeout=aiohttp.ClientTimeout(total=None, sock_connect=None),  # the deadline is ours
        auto_decompress=False,
        trust_env=False,
        max_line_size=HEADER_BYTES,
        max_field_size=HEADER_BYTES,
        max_headers=HEADER_FIELDS,
    )


@dataclass(frozen=True)
class _Reply:
    """What one hop brought."""

    reason: Reason | None = None
    detail: str = ""
    status: int | None = None
    headers: Mapping[str, str] = field(default_factory=dict[str, str])
    body: bytes | None = None
    location: str | None = None  # where a redirect leads, as it says; empty where it does not


class _Failure(Exception):
    def __init__(self, reason: Reason, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason


def _redirected(url: URL, location: str) -> URL:
    if not location:
        raise _Failure(Reason.REDIRECT_BAD, "no Location")
    try:
        return follow(url, location)
    except BadUrl as error:
        bad_scheme = error.reason is Reason.BAD_SCHEME
        raise _Failure(
            Reason.BAD_SCHEME if bad_scheme else Reason.REDIRECT_BAD, f"to {location}: {error}"
        ) from None


def _refusal(status: int) -> Reason | None:
    """Why a response of this status has no picture; None where it may have one."""
    if status in (200, 203):
        return None
    if status in (204, 205):
        return Reason.BODY_EMPTY
    own = f"http_{status}"
    if own in _STATUS_REASONS:
        return Reason(own)
    if 400 <= status < 500:
        return Reason.HTTP_4XX
    if 500 <= status < 600:
        return Reason.HTTP_5XX
    return Reason.HTTP_OTHER  # 206 too: nobody asked for a part


_STATUS_REASONS = {reason.value for reason in Reason if reason.startswith("http_")}


def reason_of(error: Exception) -> Reason:
    """What an exception of the connection comes to. The order counts: the classes overlap."""
    match error:
        case BlockedAddress():
            return Reason.BLOCKED_ADDRESS
        case aiohttp.ClientConnectorDNSError():
            return Reason.DNS_FAILED
        case aiohttp.ClientSSLError() | ssl.SSLError():
            return Reason.TLS_FAILED
        case aiohttp.ClientConnectorError():
            lost = isinstance(error.os_error, ConnectionResetError)
            return Reason.CONNECT_RESET if lost else Reason.CONNECT_FAILED
        case aiohttp.ClientPayloadError():
            return Reason.BODY_TRUNCATED
        case aiohttp.ServerDisconnectedError() | OSError():
            return Reason.CONNECT_RESET
        case aiohttp.InvalidURL():
            return Reason.INPUT_BAD_URL
        case _:
            return Reason.PROTOCOL_ERROR


def _pause(attempts: int, answer: Answer) -> float | None:
    """How long to wait after so many attempts, in s; None: no use in asking again now.

    At random over the whole span: a host that fell over is not asked by all its rows at one moment.
    """
    pause = random.uniform(0, min(LONGEST_PAUSE, FIRST_PAUSE * 2 ** (attempts - 1)))
    asked_for = answer.headers.get("retry-after", "")
    if answer.status in (429, 503) and asked_for.isdecimal() and asked_for.isascii():
        if float(asked_for) > LONGEST_RETRY_AFTER:
            return None
        return max(pause, float(asked_for))
    return pause


def _kept(response: aiohttp.ClientResponse) -> dict[str, str]:
    found = {name: ", ".join(response.headers.getall(name, ())) for name in KEPT_HEADERS}
    return {name: clean(value) for name, value in found.items() if value}


def clean(text: str) -> str:
    """Without what a terminal, a page or a table could trip over."""
    return _CONTROLS.sub(" ", text[:KEPT_LENGTH])


# The body


async def _body(response: aiohttp.ClientResponse, *, limit: int) -> bytes:
    """All of it, unpacked, of at most `limit` bytes packed and unpacked. Raises _Failure."""
    encoding = ", ".join(response.headers.getall("Content-Encoding", ())).strip().lower()
    unpack = None if encoding in ("", "identity") else _Unpack(encoding, limit)
    if (response.content_length or 0) > limit:
        raise _Failure(Reason.BODY_LIMIT, f"Content-Length {response.content_length}")
    parts: list[bytes] = []
    received = 0
    async for part in response.content.iter_any():
        received += len(part)
        if received > limit:
            raise _Failure(Reason.BODY_LIMIT, f"more than {limit} bytes")
        parts.append(unpack(part) if unpack else part)
    if unpack and received and not unpack.complete:
        raise _Failure(Reason.BODY_TRUNCATED, f"{encoding} ends early")
    body = b"".join(parts)
    if not body:
        raise _Failure(Reason.BODY_EMPTY, f"HTTP {response.status}, no bytes")
    return body


class _Unpack:
    """One layer of gzip or deflate, which some servers send unasked. Never makes more than `limit` bytes."""

    def __init__(self, encoding: str, limit: int) -> None:
        if encoding not in ("gzip", "x-gzip", "deflate"):
            raise _Failure(Reason.BAD_ENCODING, f"Content-Encoding {encoding}")
        self._left = limit
        self._inflater = zlib.decompressobj(16 + zlib.MAX_WBITS)  # gzip
        self._undecided = encoding == "deflate"

    def __call__(self, packed: bytes) -> bytes:
        if self._undecided:
            # By the book it is zlib, whose first byte ends in 8; some servers send it bare.
            self._undecided = False
            self._inflater = zlib.decompressobj(zlib.MAX_WBITS if packed[0] & 15 == 8 else -zlib.MAX_WBITS)
        try:
            unpacked = self._inflater.decompress(packed, self._left + 1)
        except zlib.error as error:
            raise _Failure(Reason.BAD_ENCODING, str(error)) from None
        self._left -= len(unpacked)
        if self._left < 0:
            raise _Failure(Reason.BODY_LIMIT, "too many bytes once unpacked")
        if self._inflater.unused_data:
            raise _Failure(Reason.BAD_ENCODING, "more bytes after the end of the packed ones")
        return unpacked

    @property
    def complete(self) -> bool:
        return self._inflater.eof
