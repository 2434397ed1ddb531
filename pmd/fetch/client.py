"""A URL -> its bytes, or the Reason why there are none.

    fetch -+-> attempt -> hop -> hop -> body     redirects are followed here, so that each hop is checked
           |      |        |
           |      |        +- may it be asked for (consent.py)? its host's turn, which all workers share
           |      |           (budget.py); then the clock runs
           |      +- transient failure: a pause, in which others are asked
           +<-----+

Nothing that a server does raises: it ends as a Reason, within a deadline and in bounded memory. The sizes of
header and body are limited before and while they are read, a body that crawls is given up, it is unpacked at
most once, the body of a redirect or of an error is never read, and no cookie, referrer or credential is ever
sent.
"""

import asyncio
import errno
import json
import random
import re
import ssl
import time
import zlib
from collections import OrderedDict
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
from types import TracebackType
from typing import Any, Self, cast

import aiohttp
from aiohttp.http_exceptions import HttpProcessingError
from yarl import URL

from pmd.errors import BadRequest, PmdError
from pmd.fetch.address import AddressPolicy, BlockedAddress, LookupFailed, is_temporary
from pmd.fetch.budget import Budget
from pmd.fetch.connection import HEAD_BYTES, HEAD_FIELDS, BoundedConnector, Progress, progress
from pmd.fetch.consent import HEADERS, READ_BYTES, SiteFile, SitePolicy, Terms, Verdict, read_site
from pmd.fetch.news import Site
from pmd.fetch.placeholders import known_placeholders
from pmd.fetch.retry_after import retry_after_s
from pmd.fetch.share import HostDown, Share
from pmd.fetch.url import BadUrl, follow, read_url
from pmd.manifest import FetchSpec
from pmd.records import TRANSIENT, Reason

MAX_REDIRECTS = 5
PACE_S = 5.0  # how often it is looked at whether a body still comes at [fetch] min_bytes_per_s
UNPACKED_BLOCK = 1 << 18  # bytes that are unpacked at a time
# Between two attempts, in s: anything up to FIRST_PAUSE, then up to twice as much each time.
FIRST_PAUSE = 0.25
LONGEST_PAUSE = 10.0
# What a site says of itself is read again after so many s; RFC 9309 allows a day. Where it could not be read:
SITE_LASTS_S, UNREADABLE_LASTS_S = 24 * 3600.0, 300.0
KEPT_POLICIES = 10_000  # of sites, in each worker, and of what they say:
KEPT_POLICY_BYTES = 8 << 20

# What is kept of a response's header, for the fetch log and for whoever reads opt-outs.
KEPT_HEADERS = (
    "content-type",
    "content-length",
    "last-modified",
    "etag",
    "retry-after",
    "tdm-policy",
    *HEADERS,
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
    attempts: int = 1  # 0: its host was not to be asked
    seconds: float = 0.0  # with all waiting
    asking_s: float = 0.0  # of these, those in which the hosts had the word
    headers: Mapping[str, str] = field(default_factory=dict[str, str])  # of KEPT_HEADERS, names in lower case
    worth_asking: bool = True  # again, soon, after a transient failure
    consent: str = ""  # the site's verdict; equal for equal bytes served. Empty: none of its signals is read
    evidence: str = ""  # for it: which of the site's files were read, as JSON

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
    Reason.OPTOUT_ROBOTS: "refused by robots.txt",
    Reason.OPTOUT_X_ROBOTS_TAG: "refused by X-Robots-Tag",
    Reason.OPTOUT_TDM: "text and data mining is reserved",
    Reason.OPTOUT_AI_TXT: "refused by ai.txt",
    Reason.OPTOUT_CONTENT_USAGE: "this use is refused",
    Reason.OPTOUT_UNREACHABLE: "a site that cannot be asked for its consent",
    Reason.BODY_LIMIT: "body too large",
    Reason.BODY_TRUNCATED: "body cut short",
    Reason.BODY_EMPTY: "empty body",
    Reason.BAD_ENCODING: "body packed in a way that is not unpacked",
    Reason.PLACEHOLDER: "a picture that says that there is none",
}


class Client:
    """Fetches, many at a time. Use as an async context; keeps connections alive between fetches."""

    def __init__(self, spec: FetchSpec, share: Share | None = None) -> None:
        """share: of what hosts bear from all workers of a run; without one, it is all this client's.

        Raises BadRequest where the spec cannot be followed.
        """
        self.requests = 0  # begun, redirects and further attempts counted
        self._spec = spec
        self._policy = AddressPolicy.of(spec)
        self._open_session = session_opener(spec)
        self._given = share
        self._opened = AsyncExitStack()
        self._placeholders = known_placeholders()
        self._terms = Terms.of(spec)
        self._policies: OrderedDict[str, tuple[Site, SitePolicy]] = OrderedDict()  # by origin
        self._policy_bytes = 0

    async def __aenter__(self) -> Self:
        self._session = self._open_session()
        self._connector = cast("BoundedConnector", self._session.connector)
        self._share = self._given or await self._opened.enter_async_context(_share_alone(self._spec))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._opened.aclose()
        await self._session.close()

    async def fetch(self, url: str) -> Answer:
        """Ask for a URL, again after a transient failure, and say how it ended.

        Each attempt has spec.timeout_s for itself: looking up names, all redirects, to the last byte. To wait
        for the host's turn, to read the site's files and to pause between attempts do not count. Raises
        PmdError where this machine is at its end, so that its rows are not blamed on the web.
        """
        begun = time.monotonic()
        attempts = 0
        asking_s = 0.0
        answer: Answer | None = None
        while answer is None or (
            answer.reason in TRANSIENT and answer.worth_asking and attempts <= self._spec.retries
        ):
            if attempts:
                await _pause(attempts)
            try:
                answer = await self._attempt(url)
            except HostDown as down:
                answer = answer or Answer(None, down.reason, detail=str(down))
                break
            attempts += 1
            asking_s += answer.asking_s
        return replace(answer, attempts=attempts, seconds=time.monotonic() - begun, asking_s=asking_s)

    async def _attempt(self, text: str) -> Answer:
        """Raises HostDown."""
        left = self._spec.timeout_s
        asked: list[str] = []
        reply = _Reply()
        policy: SitePolicy | None = None
        try:
            url = read_url(text)
            while True:
                if name := self._placeholders.at(url):
                    raise _Failure(Reason.PLACEHOLDER, f"{name}: {url}")
                policy = await self._site_policy(url)
                if (verdict := policy.before(url.raw_path_qs)).reason is not None:
                    reply = replace(reply, verdict=verdict, worth_asking=False)
                    raise _Failure(verdict.reason, f"{verdict.said}: {url}")
                asked.append(str(url))
                reply = await self._asked(url, left, policy)
                left -= reply.seconds
                if reply.location is None:
                    break
                url = _redirected(url, reply.location)
                if len(asked) > MAX_REDIRECTS or str(url) in asked:
                    raise _Failure(Reason.REDIRECT_LIMIT, f"{len(asked)} redirects, the last to {url}")
        except BadUrl as error:
            reply = _Reply(error.reason, str(error))
        except _Failure as failure:
            worth_asking = reply.worth_asking and failure.worth_asking
            reply = replace(reply, reason=failure.reason, detail=str(failure), worth_asking=worth_asking)
        judged = bool(self._terms.signals) and policy is not None
        return Answer(
            body=reply.body,
            reason=reply.reason,
            status=reply.status,
            detail=clean(reply.detail),
            final_url=asked[-1] if asked else "",
            headers=reply.headers,
            asking_s=self._spec.timeout_s - left,
            worth_asking=reply.worth_asking,
            consent=reply.verdict.text if judged and reply.verdict is not None else "",
            evidence=json.dumps(policy.evidence, sort_keys=True) if judged and policy is not None else "",
        )

    async def _asked(self, url: URL, time_left: float, policy: "SitePolicy | None") -> "_Reply":
        """One hop, when it is its host's turn. No policy: it is for one of the site's files."""
        host = url.raw_host or ""
        begun = time.monotonic()
        try:
            addresses = await self._addresses(host, url.port or 0, time_left)
            spent = time.monotonic() - begun
            delay = policy.crawl_delay_s if policy else None
            while True:
                async with self._share.slot(host, addresses=addresses, crawl_delay_s=delay) as slot:
                    begun = time.monotonic()
                    reply = await self._hop(url, time_left - spent, policy)
                    spent += time.monotonic() - begun
                    if reply.is_stale:
                        continue  # in its turn, as any other request
                    # A picture that is said to be too large costs nobody anything; to be flooded does.
                    cheap = reply.reason is Reason.BODY_LIMIT and not reply.is_flood
                    slot.ended(None if cheap else reply.reason, retry_after_s=_asked_for(reply))
                    return replace(reply, seconds=spent)
        except TimeoutError:
            return _Reply(Reason.TIMEOUT, self._over("looking up the name", url))
        except (BlockedAddress, OSError) as error:  # LookupFailed is one
            self._unless_out_of_files(error)
            return _Reply(reason_of(error), f"{host}: {error}", worth_asking=is_temporary(error))

    async def _addresses(self, host: str, port: int, time_left: float) -> tuple[str, ...]:
        """Of a host, so that hosts of one address are counted together; a mirror's are not counted. Waits for
        the end of an outage of the name servers. Raises BlockedAddress, LookupFailed, TimeoutError.
        """

        async def look_up() -> tuple[str, ...]:
            async with asyncio.timeout(time_left):
                return await self._connector.addresses_of(host, port)

        if self._policy.mapped(host, port):
            return ()
        if host.startswith("[") or host.replace(".", "").isdecimal():
            return await look_up()  # an address, of which no name server is asked
        return await self._share.look_up(host, look_up)

    async def _hop(self, url: URL, time_left: float, policy: "SitePolicy | None") -> "_Reply":
        """Ask once, for `time_left` s at most."""
        reply = _Reply()
        self.requests += 1
        reached = Progress()
        progress.set(reached)
        try:
            async with (
                asyncio.timeout(time_left),
                self._session.get(url, allow_redirects=False) as response,
            ):
                reached.stage = "in the body"
                reply = _Reply(status=response.status, headers=_kept(response))
                is_redirect = response.status in (301, 302, 303, 307, 308)
                if not is_redirect and (refusal := _refusal(response.status)):
                    raise _Failure(refusal, f"HTTP {response.status}")
                if policy:
                    reply = replace(reply, verdict=policy.after(url.raw_path_qs, response.headers.items()))
                    if reply.verdict and reply.verdict.reason is not None:
                        raise _Failure(reply.verdict.reason, f"{reply.verdict.said}: {url}")
                if is_redirect:
                    return replace(reply, location=response.headers.get("Location", ""))
                if not policy:
                    return replace(reply, body=await _body(response, self._spec, limit=READ_BYTES, cut=True))
                body = await _body(response, self._spec, limit=self._spec.max_bytes)
                if name := self._placeholders.of(body):
                    raise _Failure(Reason.PLACEHOLDER, f"{name}: the bytes of {url}")
                return replace(reply, body=body)
        except _Failure as failure:
            return replace(reply, reason=failure.reason, detail=str(failure), is_flood=failure.is_flood)
        except TimeoutError:
            cause = self._over(reached.stage, url)
            return replace(reply, reason=Reason.TIMEOUT, detail=cause, connected=reached.connected)
        except (aiohttp.ClientError, HttpProcessingError, BlockedAddress, OSError) as error:
            self._unless_out_of_files(error)
            cause = f"{type(error).__name__} {reached.stage}: {error}"
            reason = reason_of(error)
            stale = reason is Reason.CONNECT_RESET and reply.status is None and reached.is_reused
            return replace(reply, reason=reason, detail=cause, connected=reached.connected, is_stale=stale)

    # What sites say of themselves

    async def _site_policy(self, url: URL) -> SitePolicy:
        """What the site of a URL says in its files, read once in a run. Raises _Failure, HostDown."""
        if not self._terms.signals:
            return SitePolicy(self._terms, {})
        origin = url.origin()
        name = str(origin)
        site, policy = self._policies.get(name, (None, None))
        if site is None or policy is None or site.is_old:
            site = await self._share.site(name, lambda: self._read_site(origin))
            policy = SitePolicy.of(self._terms, site.said)
            self._forget_policy(name)
            self._policies[name] = site, policy
            self._policy_bytes += policy.size
            while len(self._policies) > KEPT_POLICIES or self._policy_bytes > KEPT_POLICY_BYTES:
                self._forget_policy(next(iter(self._policies)))
        else:
            self._policies.move_to_end(name)
        return policy

    def _forget_policy(self, name: str) -> None:
        if name in self._policies:
            self._policy_bytes -= self._policies.pop(name)[1].size

    async def _read_site(self, origin: URL) -> Site:
        """Raises _Failure where nobody is there who could be asked, HostDown."""
        files: dict[str, SiteFile] = {}
        for path in self._terms.files():
            so_far = SitePolicy.of(self._terms, read_site(self._terms, files)).before(path)
            if so_far.reason is Reason.OPTOUT_UNREACHABLE:
                break
            if so_far.reason is not Reason.OPTOUT_ROBOTS:  # it holds for these files too
                files[path] = await self._site_file(origin.with_path(path))
        unreadable = any(file.unreadable for file in files.values())
        lasts_s = UNREADABLE_LASTS_S if unreadable else SITE_LASTS_S
        return Site(read_site(self._terms, files), time.time(), lasts_s)

    async def _site_file(self, url: URL) -> SiteFile:
        """One of a site's files, asked for again like a picture. Raises _Failure, HostDown."""
        attempts = 0
        while True:
            reply, is_at_home = await self._followed(url)
            attempts += 1
            there = reply.connected or reply.status is not None
            if reply.reason is not None and not there and is_at_home:
                # The rows say so themselves, and try again for themselves.
                raise _Failure(reply.reason, f"{url}: {reply.detail}", worth_asking=reply.worth_asking)
            file = _site_file(reply)
            if not (file.unreadable and reply.reason in TRANSIENT and attempts <= self._spec.retries):
                return file
            await _pause(attempts)

    async def _followed(self, url: URL) -> tuple["_Reply", bool]:
        """Where the redirects of a site's file lead, and whether it has come out at the site itself."""
        left = self._spec.timeout_s
        hops = 0
        while True:
            reply = await self._asked(url, left, None)
            if reply.location is None:
                return reply, not hops
            left -= reply.seconds
            hops += 1
            try:
                url = _redirected(url, reply.location)
                if hops > MAX_REDIRECTS:
                    raise _Failure(Reason.REDIRECT_LIMIT, f"{hops} redirects, the last to {url}")
            except _Failure as failure:
                return replace(reply, reason=failure.reason, detail=str(failure)), False

    def _unless_out_of_files(self, error: Exception) -> None:
        if isinstance(error, OSError) and error.errno in (errno.EMFILE, errno.ENFILE):
            raise PmdError(
                f"no more open files for connections ({error.strerror}): raise `ulimit -n`, or lower "
                f"connections in [fetch], which is {self._spec.connections}"
            ) from error

    def _over(self, stage: str, url: URL) -> str:
        return f"not complete within {self._spec.timeout_s:g} s: {stage}, at {url}"


@asynccontextmanager
async def _share_alone(spec: FetchSpec) -> AsyncGenerator[Share]:
    """Of a budget that nobody else asks."""
    budget = Budget(spec)

    async def call(method: str, *arguments: Any) -> Any:
        return getattr(budget, method)(*arguments)

    async with Share(call, spec) as share:
        yield share


def session_opener(spec: FetchSpec) -> Callable[[], aiohttp.ClientSession]:
    """What opens sessions that keep to [fetch]: to its addresses, trusting its authorities, under its name.

    Raises BadRequest where the spec cannot be followed.
    """
    policy = AddressPolicy.of(spec)
    name = user_agent(spec)
    try:
        tls = ssl.create_default_context(cafile=spec.ca_file)
    except OSError as error:
        raise BadRequest(f"[fetch] ca_file: {spec.ca_file}: {error}") from None
    tls.set_alpn_protocols(["http/1.1"])

    def open_session() -> aiohttp.ClientSession:
        session = _session(policy, tls, name, lookups=spec.connections)
        # It would ask again by itself, beside every host's bounds. There is no other way to say so.
        session._retry_connection = False  # pyright: ignore[reportPrivateUsage]
        return session

    return open_session


def _session(policy: AddressPolicy, tls: ssl.SSLContext, name: str, *, lookups: int) -> aiohttp.ClientSession:
    return aiohttp.ClientSession(
        connector=BoundedConnector(policy, tls=tls, lookups=lookups),
        headers={"User-Agent": name, "Accept": "*/*", "Accept-Encoding": "identity"},
        cookie_jar=aiohttp.DummyCookieJar(),
        timeout=aiohttp.ClientTimeout(total=None, sock_connect=None),  # the deadline is ours
        auto_decompress=False,
        trust_env=False,
        max_line_size=HEAD_BYTES,
        max_field_size=HEAD_BYTES,
        max_headers=HEAD_FIELDS,
    )


def user_agent(spec: FetchSpec) -> str:
    """Who we say we are: the name, and behind it whom to write to. Raises BadRequest."""
    for key, value in (("user_agent", spec.user_agent), ("contact", spec.contact)):
        if not (value.isascii() and value.isprintable()):
            raise BadRequest(f"[fetch] {key}: {value!r} is not plain ASCII text")
    if set(spec.contact) & set("()\\"):
        raise BadRequest(f"[fetch] contact: {spec.contact!r} goes between brackets and may have none itself")
    return f"{spec.user_agent} (+{spec.contact})" if spec.contact else spec.user_agent


@dataclass(frozen=True)
class _Reply:
    """What one hop brought."""

    reason: Reason | None = None
    detail: str = ""
    status: int | None = None
    headers: Mapping[str, str] = field(default_factory=dict[str, str])
    body: bytes | None = None
    location: str | None = None  # where a redirect leads, as it says; empty where it does not
    connected: bool = False  # before it failed, where no answer had begun
    is_stale: bool = False  # a kept connection had been closed meanwhile, which says nothing of the host
    is_flood: bool = False  # more came than was said, or nothing was said
    verdict: Verdict | None = None  # of the site
    worth_asking: bool = True  # again, soon, after a transient failure
    seconds: float = 0.0  # without waiting for the host's turn


class _Failure(Exception):
    def __init__(
        self, reason: Reason, detail: str, *, worth_asking: bool = True, is_flood: bool = False
    ) -> None:
        super().__init__(detail)
        self.reason, self.worth_asking, self.is_flood = reason, worth_asking, is_flood


async def _pause(attempts: int) -> None:
    """At random over the whole span: a host that fell over is not asked by all its rows at one moment. What
    the host itself asks for in Retry-After is its budget's matter.
    """
    await asyncio.sleep(random.uniform(0, min(LONGEST_PAUSE, FIRST_PAUSE * 2 ** (attempts - 1))))


def _site_file(reply: "_Reply") -> SiteFile:
    """What the answer to the request for one of a site's files means (RFC 9309, section 2.3.1)."""
    status = reply.status
    if reply.reason is None:
        return SiteFile(reply.body, status)
    if reply.reason is Reason.BODY_EMPTY:
        return SiteFile(b"", status)
    nowhere = (Reason.REDIRECT_LIMIT, Reason.REDIRECT_BAD, Reason.BAD_SCHEME)
    refused = status is not None and 400 <= status < 500 and status != 429
    if refused or reply.reason in nowhere:
        return SiteFile(None, status)
    return SiteFile(None, status, unreadable=reply.reason)


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
        case LookupFailed():
            return Reason.DNS_FAILED
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


def _asked_for(reply: "_Reply") -> float | None:
    """How long the host wants not to be asked, s."""
    if reply.status not in (429, 503):
        return None
    return retry_after_s(reply.headers.get("retry-after", ""))


def _kept(response: aiohttp.ClientResponse) -> dict[str, str]:
    found = {name: ", ".join(response.headers.getall(name, ())) for name in KEPT_HEADERS}
    return {name: clean(value) for name, value in found.items() if value}


def clean(text: str) -> str:
    """Without what a terminal, a page or a table could trip over."""
    return _CONTROLS.sub(" ", text[:KEPT_LENGTH])


# The body


async def _body(response: aiohttp.ClientResponse, spec: FetchSpec, *, limit: int, cut: bool = False) -> bytes:
    """All of it, unpacked, of at most `limit` bytes packed and unpacked; or with `cut` the first so many.
    Raises _Failure.
    """
    encoding = ", ".join(response.headers.getall("Content-Encoding", ())).strip().lower()
    unpack = None
    if encoding not in ("", "identity"):
        unpack = _Unpack(encoding, limit + UNPACKED_BLOCK if cut else limit)
    if not cut and (response.content_length or 0) > limit:
        raise _Failure(Reason.BODY_LIMIT, f"Content-Length {response.content_length}")
    parts: list[bytes] = []
    received = so_far = 0
    pace = _Pace(spec.min_bytes_per_s)
    while part := await pace.read(response.content):
        received += len(part)
        if received > limit and not cut:
            raise _Failure(Reason.BODY_LIMIT, f"more than {limit} bytes", is_flood=True)
        for piece in unpack(part) if unpack else (part,):
            parts.append(piece)
            if cut and (so_far := so_far + len(piece)) >= limit:
                return b"".join(parts)[:limit]
    if unpack and received and not unpack.complete:
        raise _Failure(Reason.BODY_TRUNCATED, f"{encoding} ends early")
    body = b"".join(parts)
    if not body:
        raise _Failure(Reason.BODY_EMPTY, f"HTTP {response.status}, no bytes")
    return body


class _Pace:
    """Reads a body for as long as it comes fast enough. Each PACE_S is taken for itself: who has sent much
    may not stop for long either.
    """

    def __init__(self, bytes_per_s: int) -> None:
        self._bytes_per_s = bytes_per_s
        self._clock = asyncio.get_running_loop().time
        self._all = 0  # that were read
        self._begin()

    def _begin(self) -> None:
        self._until = self._clock() + PACE_S
        self._received = 0

    async def read(self, content: aiohttp.StreamReader) -> bytes:
        """What has come; nothing at the end. Raises _Failure."""
        while True:
            # What is there needs no timer, which costs as much as the read.
            is_there = content.total_bytes > self._all or content.is_eof()
            try:
                async with asyncio.timeout_at(None if is_there else self._until):
                    part = await content.readany()
                if not part:
                    return part
            except TimeoutError:
                part = b""
            self._all += len(part)
            self._received += len(part)
            if self._clock() >= self._until:
                if self._received < self._bytes_per_s * PACE_S:
                    slow = f"{self._received} bytes of the body in {PACE_S:g} s, below min_bytes_per_s"
                    raise _Failure(Reason.TIMEOUT, slow)
                self._begin()
            if part:
                return part


class _Unpack:
    """One layer of gzip or deflate, which some servers send unasked. Never makes more than `limit` bytes."""

    def __init__(self, encoding: str, limit: int) -> None:
        if encoding not in ("gzip", "x-gzip", "deflate"):
            raise _Failure(Reason.BAD_ENCODING, f"Content-Encoding {encoding}")
        self._left = self._limit = limit
        self._inflater = zlib.decompressobj(16 + zlib.MAX_WBITS)  # gzip
        self._undecided = encoding == "deflate"

    def __call__(self, packed: bytes) -> Iterator[bytes]:
        """What the packed bytes make, block by block: to make a large piece, zlib holds it twice."""
        if self._undecided:
            # By the book it is zlib, whose first byte ends in 8; some servers send it bare.
            self._undecided = False
            self._inflater = zlib.decompressobj(zlib.MAX_WBITS if packed[0] & 15 == 8 else -zlib.MAX_WBITS)
        unpacked = b""
        while packed or len(unpacked) == UNPACKED_BLOCK:
            try:
                unpacked = self._inflater.decompress(packed, UNPACKED_BLOCK)
            except zlib.error as error:
                raise _Failure(Reason.BAD_ENCODING, str(error)) from None
            self._left -= len(unpacked)
            if self._left < 0:
                unpacked_too_large = f"more than {self._limit} bytes once unpacked"
                raise _Failure(Reason.BODY_LIMIT, unpacked_too_large, is_flood=True)
            if self._inflater.unused_data:
                raise _Failure(Reason.BAD_ENCODING, "more bytes after the end of the packed ones")
            packed = self._inflater.unconsumed_tail
            yield unpacked

    @property
    def complete(self) -> bool:
        return self._inflater.eof
