"""The addresses of one big published file -> that file, whole and checked, over any interruption.

    addresses, in turn --> attempt --Range, If-Range--> 206: goes on where it was | 200: begins anew
                            |   ^                                  |
             no use: next   |   +-- lost, silent, busy: a pause <--+--> .NAME.partial, hashed as it comes
             address     <--+                                      |
                                                           size and sha256 as expected?
                                           yes: fsync, rename to NAME | no: kept as NAME.refused, next address

A file of 65 GB takes hours, in which connections break, machines restart and publishers replace files. So
there is no deadline, only a bound on silence; what has come is kept beside its place together with what was
known of it; and two versions of a file are never mixed: bytes are added to bytes only where the server
vouches that they are of one version, or where the sha256 will tell.
"""

import asyncio
import contextlib
import email.utils
import errno
import fcntl
import hashlib
import os
import random
import re
from collections.abc import Callable, Generator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Self

import aiohttp
from aiohttp.http_exceptions import HttpProcessingError
from pydantic import BaseModel, ConfigDict, ValidationError
from yarl import URL

from pmd.errors import Busy, Refused, Unavailable
from pmd.fetch.address import BlockedAddress
from pmd.fetch.client import MAX_REDIRECTS, MESSAGES, clean, reason_of, session_opener
from pmd.fetch.url import BadUrl, follow, read_url
from pmd.manifest import FetchSpec
from pmd.records import Reason

PARTIAL = ".partial"  # ending of a file still to come; not storage.UNFINISHED, which gets swept away
REFUSED = ".refused"  # ending of a whole file that is not the one expected

LEAST_IDLE_S = 10.0  # however small spec.timeout_s: a disk or a proxy may well pause for seconds
# Between two attempts. Longer than for one image of millions: nobody else waits, and networks take minutes to
# come back.
FIRST_PAUSE_S = 1.0
LONGEST_PAUSE_S = 60.0
LONGEST_RETRY_AFTER_S = 300.0  # whoever asks to be left alone for longer is left alone
TOLD_EVERY_S = 0.1
BLOCK = 1 << 20  # bytes read at a time of what is on disk


@dataclass(frozen=True)
class Downloaded:
    """A file that is in its place, and where it came from."""

    url: str  # the one of the addresses that gave it
    final_url: str  # where that led
    size: int  # bytes
    sha256: str
    etag: str | None  # as served; the publisher's name of this version, where there is one
    last_modified: str | None  # as served


def _untold(_so_far: int, _total: int | None) -> None:
    pass


def download_file(
    urls: Sequence[str],
    path: Path,
    *,
    spec: FetchSpec,
    size: int | None = None,
    sha256: str | None = None,
    told: Callable[[int, int | None], None] = _untold,
) -> Downloaded:
    """Bring a published file to `path`, from the first of its addresses that has it; replaces what is there.

    size and sha256 are those expected, where known. `told` hears how many bytes have come, and of how many,
    in the caller's thread. Stopped in any way (an exception of a signal handler or of `told`, SIGKILL, a
    power cut), the same call goes on from there.

    Raises Refused where there is a file but not the one expected, Unavailable where no address gives one,
    Busy where another process is downloading it, BadRequest where the spec cannot be followed, OSError where
    this machine has no room or no permission.
    """
    assert urls, path
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    open_session = session_opener(spec)
    with (
        _Partial(path) as partial,
        # The network has a thread of its own. A signal's exception comes to the main thread, wherever that
        # is: inside the event loop it could land in a callback that takes it for a broken connection.
        ThreadPoolExecutor(1, thread_name_prefix="download") as thread,
    ):
        download = _Download(urls, partial, spec=spec, size=size, sha256=sha256)
        try:
            running = thread.submit(asyncio.run, download.run(open_session))
            while not wait([running], timeout=TOLD_EVERY_S).done:
                told(*download.so_far())
        finally:
            download.stop()
        downloaded = running.result()
        told(downloaded.size, downloaded.size)
        return downloaded


def refused_path(path: Path) -> Path:
    """Where a file is kept that came for `path` and was not the one expected."""
    return path.with_name(path.name + REFUSED)


class _Failure(Exception):
    """Why an address gave no file."""

    def __init__(self, what: str, *, transient: bool = False, wait_s: float = 0.0) -> None:
        super().__init__(what)
        self.transient = transient  # may be otherwise in a moment
        self.wait_s = wait_s  # that the server asks to wait


class _Mismatch(_Failure):
    """The address has a file, but not the one expected."""


class _OtherVersion(Exception):
    """What the server has is no continuation of what we have."""


# Asking


class _Download:
    """One call of download_file: its addresses, asked in turn until one has given the file."""

    def __init__(
        self,
        urls: Sequence[str],
        partial: "_Partial",
        *,
        spec: FetchSpec,
        size: int | None,
        sha256: str | None,
    ) -> None:
        self._urls, self._partial = tuple(dict.fromkeys(urls)), partial
        self._size, self._sha256 = size, sha256.lower() if sha256 else None
        self._retries, self._idle_s = spec.retries, max(spec.timeout_s, LEAST_IDLE_S)
        self._kept: Path | None = None  # a refused file of this call
        self._stopped = False
        self._task: asyncio.Task[Downloaded] | None = None

    def so_far(self) -> tuple[int, int | None]:
        """Bytes that have come, and of how many; from any thread."""
        origin = self._partial.origin
        return self._partial.size, self._size if self._size is not None or origin is None else origin.total

    def stop(self) -> None:
        """End run() soon, from any thread."""
        self._stopped = True
        if self._task is not None:
            with contextlib.suppress(RuntimeError):  # its loop has ended by itself
                self._task.get_loop().call_soon_threadsafe(self._task.cancel)

    async def run(self, open_session: Callable[[], aiohttp.ClientSession]) -> Downloaded:
        self._task = asyncio.current_task()
        if self._stopped:
            raise asyncio.CancelledError
        # The address that gave what we have comes first, or hours of work would be thrown away.
        begun = self._partial.origin.url if self._partial.origin and self._partial.size else None
        failures: dict[str, _Failure] = {}
        async with open_session() as self._session:
            for address in sorted(self._urls, key=lambda address: address != begun):
                try:
                    return await self._from(address)
                except _Failure as failure:
                    failures[address] = failure
        raise self._end(failures)

    def _end(self, failures: Mapping[str, _Failure]) -> Exception:
        path, partial = self._partial.path, self._partial
        ends = "".join(f"\n  {address}: {failures[address]}" for address in self._urls)
        if any(isinstance(failure, _Mismatch) for failure in failures.values()):
            kept = f"What came is kept as {self._kept}. " if self._kept else ""
            return Refused(
                f"{path}: no address has the file that is expected:{ends}\n"
                f"{kept}If the publisher changed it, review the new file before its size and sha256 become "
                "the expected ones; if not, find the old one elsewhere, and name it in `files`."
            )
        kept = f"{partial.size:,} bytes of it are kept as {partial.file}. " if partial.size else ""
        return Unavailable(
            f"{path}: no address gives this file:{ends}\n"
            f"{kept}See to the cause, then run the same line again; or download the file by hand, and name "
            "it in `files`."
        )

    async def _from(self, address: str) -> Downloaded:
        """The file of this address, checked and in its place. Raises _Failure."""
        partial = self._partial
        origin = await self._bring(address)
        wrong = self._objection()
        if wrong and origin.unsure:  # no word against what this address has
            partial.clear()
            origin = await self._bring(address)
            wrong = self._objection()
        if wrong and self._kept:
            partial.clear()
            raise _Mismatch(wrong)
        if wrong:
            self._kept = refused_path(partial.path)
            partial.move_to(self._kept)
            partial.open()
            raise _Mismatch(wrong)
        partial.move_to(partial.path)
        if self._kept:
            self._kept.unlink(missing_ok=True)
        return Downloaded(
            url=address,
            final_url=origin.final_url,
            size=partial.size,
            sha256=partial.sha256,
            etag=origin.etag,
            last_modified=origin.last_modified,
        )

    async def _bring(self, address: str) -> "_Origin":
        """Ask until all has come, and say what it is of. Raises _Failure.

        Only attempts that bring nothing new use up retries. New is what lies beyond all that this address has
        given before: so a server that starts over each time does not keep us for ever.
        """
        partial = self._partial
        furthest = partial.size if self._may_continue(address) else 0
        fruitless, whole = 0, False
        while not whole:  # also without a failure: a server may send less than was asked for
            try:
                whole, fruitless = await self._attempt(address), 0
            except _Failure as failure:
                fruitless = 0 if partial.size > furthest else fruitless + 1
                if not failure.transient:
                    raise
                if fruitless > self._retries:
                    tries = f", {fruitless} times in a row" if fruitless > 1 else ""
                    raise _Failure(f"{failure}{tries}") from None
                if failure.wait_s > LONGEST_RETRY_AFTER_S:
                    raise _Failure(f"{failure}, and asks to wait for {failure.wait_s:,.0f} s") from None
                await asyncio.sleep(max(_pause_s(fruitless), failure.wait_s))
            furthest = max(furthest, partial.size)
        await partial.hash_rest()
        assert partial.origin
        return partial.origin

    def _objection(self) -> str | None:
        """Why a whole file is not the one expected; None where it is."""
        size, sha256 = self._partial.size, self._partial.sha256
        wrong: list[str] = []
        if self._size not in (None, size):
            wrong.append(_wrong_size(size, self._size))
        if self._sha256 not in (None, sha256):
            wrong.append(f"sha256 is {sha256}, expected {self._sha256}")
        return ", ".join(wrong) or None

    def _may_continue(self, address: str) -> bool:
        """May bytes of this address be added to what we have, if it agrees?"""
        origin = self._partial.origin
        if origin is None or not self._partial.size:
            return False
        return self._vouched(address, origin) or self._sha256 is not None

    @staticmethod
    def _vouched(address: str, origin: "_Origin") -> bool:
        """Can this address tell whether it still has the version that we have a part of?"""
        return origin.url == address and origin.validator is not None

    async def _attempt(self, address: str) -> bool:
        """Ask once, and keep what comes. True where the file is whole. Raises _Failure."""
        if not self._may_continue(address):
            return await self._begin(address)
        origin = self._partial.origin
        assert origin
        if self._partial.size == origin.total:  # killed between the last byte and the name
            self._partial.origin = origin.model_copy(update={"unsure": True})  # nobody is asked
            return True
        await self._partial.hash_rest()  # now: once the server sends, it does not like to wait
        try:
            return await self._continue(address, origin)
        except _OtherVersion:
            return await self._begin(address)

    async def _begin(self, address: str) -> bool:
        async with await self._open(address, {}) as response:
            if response.status != 200:
                raise _refusal(response)
            return await self._begin_with(response, address)

    async def _continue(self, address: str, origin: "_Origin") -> bool:
        """Raises _OtherVersion where this address does not go on from what we have."""
        partial = self._partial
        headers = {"Range": f"bytes={partial.size}-"}
        unsure = origin.unsure or not self._vouched(address, origin)
        if origin.validator and self._vouched(address, origin):
            headers["If-Range"] = origin.validator
        async with await self._open(address, headers) as response:
            if response.status == 200:  # it knows no ranges, or has another version
                return await self._begin_with(response, address)
            if response.status == 416:
                # No byte after ours: it is whole where nobody knew its length before.
                if origin.total is None and _total_of_416(response) == partial.size:
                    partial.origin = origin.model_copy(update={"unsure": unsure})
                    return True
                raise _OtherVersion
            if response.status != 206:
                raise _refusal(response)
            part = _Part.of(response)
            if (
                part is None
                or part.first != partial.size
                or not origin.agrees(address, part, response.headers)
            ):
                raise _OtherVersion
            if self._size not in (None, part.total):
                raise _Mismatch(_wrong_size(part.total, self._size))
            # Whoever does not know If-Range still names the version: agrees() has compared the names.
            named = "ETag" in response.headers or "Last-Modified" in response.headers
            known = {"total": part.total, "final_url": str(response.url), "unsure": unsure or not named}
            partial.remember(origin.model_copy(update=known))
            await self._receive(response, until=part.last + 1)
            return partial.size == part.total

    async def _begin_with(self, response: aiohttp.ClientResponse, address: str) -> bool:
        """Take the whole file that is being sent. One that is wrong by its header leaves all as it was."""
        total = self._total(response, address)
        etag, modified, date = (_field(response.headers, name) for name in ("ETag", "Last-Modified", "Date"))
        self._partial.begin(
            _Origin(
                url=address,
                final_url=str(response.url),
                etag=etag,
                last_modified=modified,
                validator=_validator(etag, modified, date),
                total=total,
            )
        )
        await self._receive(response, until=total)
        return True

    def _total(self, response: aiohttp.ClientResponse, address: str) -> int | None:
        """Bytes of the file that is being sent; None: its last chunk will tell. Raises _Failure."""
        length, headers = response.content_length, response.headers
        encoding = (_field(headers, "Content-Encoding") or "identity").lower()
        # A published .gz is sometimes called the packed form of what is in it. Its bytes are what we want.
        as_published = encoding in ("gzip", "x-gzip") and _is_named(address, ".gz", ".tgz")
        if encoding != "identity" and not as_published:
            raise _Failure(f"sends it packed unasked ({encoding}): that is not the file as published")
        page = response.content_type == "text/html" and not _is_named(address, ".html", ".htm")
        if page and (self._size is None or self._size != length):
            raise _Failure(
                "answers with a web page, not with the file: open it in a browser, and name the file that it "
                "gives in `files`"
            )
        if length is None and "chunked" not in headers.get("Transfer-Encoding", "").lower():
            if self._size is None:
                raise _Failure(
                    "says no length, so that a lost connection would pass for the end: give its size"
                )
            length = self._size
        if length is not None and self._size not in (None, length):
            raise _Mismatch(_wrong_size(length, self._size))
        if length == 0 != self._size:
            raise _Failure("sends no bytes", transient=True)
        return length

    async def _receive(self, response: aiohttp.ClientResponse, *, until: int | None) -> None:
        """Add what comes, up to this position of the file; None: to the end of the body."""
        partial = self._partial
        most = until if until is not None else self._size
        while block := await self._block(response):
            if most is not None and partial.size + len(block) > most:
                if most != self._size:
                    raise _Failure(MESSAGES[Reason.PROTOCOL_ERROR], transient=True)
                partial.clear()
                raise _Mismatch(f"sends more than the {most:,} bytes that are expected")
            partial.append(block)
        if until is not None and partial.size < until:
            raise _Failure(MESSAGES[Reason.BODY_TRUNCATED] + self._where(), transient=True)
        if not partial.size and self._size != 0:
            raise _Failure("sends no bytes", transient=True)

    def _where(self) -> str:
        so_far, total = self.so_far()
        of = "" if total is None else f" of {total:,}"
        return f" after {so_far:,}{of} bytes" if so_far else ""

    async def _open(self, address: str, headers: dict[str, str]) -> aiohttp.ClientResponse:
        """The answer to a request for the stored bytes of a file, all redirects followed. Raises _Failure."""
        response = await self._follow(address, headers)
        # Google Cloud Storage unpacks what was stored as gzip for whoever does not ask for gzip. Where the
        # name says that gzip is what is published, ask for it.
        stored = _field(response.headers, "X-Goog-Stored-Content-Encoding")
        unpacked = stored == "gzip" and "Content-Encoding" not in response.headers
        if unpacked and _is_named(address, ".gz", ".tgz"):
            response.close()
            response = await self._follow(address, headers | {"Accept-Encoding": "gzip"})
        return response

    async def _follow(self, address: str, headers: Mapping[str, str]) -> aiohttp.ClientResponse:
        try:
            url, asked = read_url(address), set[URL]()
            while True:
                asked.add(url)
                response = await self._ask(url, headers)
                if response.status not in (301, 302, 303, 307, 308):
                    return response
                response.close()
                location = response.headers.get("Location")
                if not location:
                    raise _Failure(f"{MESSAGES[Reason.REDIRECT_BAD]} (HTTP {response.status}, no Location)")
                url = follow(url, location)
                if len(asked) > MAX_REDIRECTS or url in asked:
                    raise _Failure(f"{MESSAGES[Reason.REDIRECT_LIMIT]}, the last to {url}")
        except BadUrl as error:
            raise _Failure(f"{MESSAGES[error.reason]}: it {error}") from None

    async def _ask(self, url: URL, headers: Mapping[str, str]) -> aiohttp.ClientResponse:
        with self._network():
            async with asyncio.timeout(self._idle_s):
                return await self._session.get(url, headers=headers, allow_redirects=False)

    async def _block(self, response: aiohttp.ClientResponse) -> bytes:
        """What has come of a body; nothing at its end."""
        with self._network():
            async with asyncio.timeout(self._idle_s):
                return await response.content.readany()

    @contextlib.contextmanager
    def _network(self) -> Generator[None]:
        """What goes wrong with a connection, as a _Failure. No OSError of a disk passes here."""
        try:
            yield
        except TimeoutError:
            raise _Failure(f"nothing came for {self._idle_s:g} s{self._where()}", transient=True) from None
        except (aiohttp.ClientError, HttpProcessingError, BlockedAddress, OSError) as error:
            reason = reason_of(error)
            what = f"{MESSAGES[reason]}{self._where()}"
            if reason is not Reason.BODY_TRUNCATED:  # which says all there is
                what += f" ({clean(f'{type(error).__name__}: {error}')})"
            if reason is Reason.BLOCKED_ADDRESS:
                what += "; allow_private or connect_to in [fetch] name addresses that may be asked"
            raise _Failure(what, transient=not isinstance(error, _FOR_GOOD)) from None


_FOR_GOOD = (aiohttp.ClientConnectorCertificateError, aiohttp.InvalidURL, BlockedAddress)


# What a response says


@dataclass(frozen=True)
class _Part:
    """Content-Range of a 206: the first and last byte sent, of how many."""

    first: int
    last: int
    total: int

    @classmethod
    def of(cls, response: aiohttp.ClientResponse) -> Self | None:
        """None where it says nothing of use, or contradicts the length of the body."""
        said = _field(response.headers, "Content-Range") or ""
        numbers = re.fullmatch(r"bytes ([0-9]{1,18})-([0-9]{1,18})/([0-9]{1,18})", said)
        if numbers is None:
            return None
        part = cls(*map(int, numbers.groups()))
        consistent = part.first <= part.last < part.total
        return part if consistent and response.content_length in (None, part.last + 1 - part.first) else None


def _total_of_416(response: aiohttp.ClientResponse) -> int | None:
    said = re.fullmatch(r"bytes \*/([0-9]{1,18})", _field(response.headers, "Content-Range") or "")
    return int(said[1]) if said else None


def _field(headers: Mapping[str, str], name: str) -> str | None:
    """A field of a header, fit to be shown and written down."""
    value = headers.get(name)
    return None if value is None else clean(value).strip()


def _validator(etag: str | None, modified: str | None, date: str | None) -> str | None:
    """What If-Range may say (RFC 9110): a strong ETag, or a Last-Modified that no two versions can share."""
    if etag and re.fullmatch(r'"[!#-~]*"', etag):
        return etag
    at, now = _date(modified), _date(date)
    # Its unit is the second, and the two may come from different clocks.
    return modified if at and now and now - at >= timedelta(minutes=1) else None


def _date(text: str | None) -> datetime | None:
    try:
        found = email.utils.parsedate_to_datetime(text or "")
    except ValueError:
        return None
    return found if found.tzinfo else found.replace(tzinfo=UTC)


def _refusal(response: aiohttp.ClientResponse) -> _Failure:
    """What a status other than the one hoped for comes to."""
    status = response.status
    what = f"HTTP {status}{f' ({clean(response.reason[:80])})' if response.reason else ''}"
    match status:
        case 401 | 403 | 407 | 451:
            what += (
                "; it may need an account, or its terms accepted: download it by hand, and name it in `files`"
            )
        case 404 | 410:
            what += "; it has moved or is gone: look at the source's homepage"
        case _:
            pass
    transient = status in (408, 425, 429) or 500 <= status < 600
    return _Failure(what, transient=transient, wait_s=_retry_after_s(response.headers) if transient else 0.0)


def _retry_after_s(headers: Mapping[str, str]) -> float:
    asked_for = headers.get("Retry-After", "").strip()
    if re.fullmatch(r"[0-9]{1,9}", asked_for):
        return float(asked_for)
    date = _date(asked_for)
    return max(0.0, (date - datetime.now(UTC)).total_seconds()) if date else 0.0


def _pause_s(fruitless: int) -> float:
    """After so many attempts in a row that brought nothing. At random: others wait for the same server."""
    if not fruitless:
        return random.uniform(0, FIRST_PAUSE_S / 4)
    return random.uniform(0.5, 1) * min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2 ** min(fruitless - 1, 30))


def _wrong_size(found: int, expected: int | None) -> str:
    return f"size is {found:,} bytes, expected {expected:,}"


def _is_named(address: str, *endings: str) -> bool:
    return read_url(address).path.lower().endswith(endings)


# What is on disk


class _Origin(BaseModel):
    """Which version of which file a partial file is of, as its first response said."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    url: str  # as it was given to download_file
    final_url: str
    etag: str | None
    last_modified: str | None
    validator: str | None  # for If-Range
    total: int | None  # bytes of the whole
    unsure: bool = False  # nobody vouched that all that came is of this version, and of today's

    def agrees(self, address: str, part: _Part, headers: Mapping[str, str]) -> bool:
        """Can a part be of this version, by all that is said with it? Not every server knows If-Range."""
        if self.total not in (None, part.total):
            return False
        if self.url != address:  # which has names of its own for the same version
            return True
        said = [("ETag", self.etag), ("Last-Modified", self.last_modified)]
        return all(_field(headers, name) in (None, known) for name, known in said)


class _Partial:
    """The file as far as it has come, beside its place, and what is known of it. One process at a time."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.file = path.with_name(f".{path.name}{PARTIAL}")
        self._sidecar = path.with_name(f".{path.name}{PARTIAL}.json")
        self._handle: int | None = None

    def __enter__(self) -> Self:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.open()
        return self

    def __exit__(self, *_: object) -> None:
        if self._handle is None:
            return
        if not self.size:  # while it is ours
            self._sidecar.unlink(missing_ok=True)
            self.file.unlink(missing_ok=True)
        os.close(self._handle)

    def open(self) -> None:
        """Raises Busy."""
        self._handle = _lock(self.file)
        self.size = os.fstat(self._handle).st_size
        self._digest, self._hashed = hashlib.sha256(), 0  # of so many bytes from the beginning
        self.origin = self._remembered()

    def _remembered(self) -> _Origin | None:
        try:
            origin = _Origin.model_validate_json(self._sidecar.read_bytes())
        except (FileNotFoundError, ValidationError):
            return None
        return None if origin.total is not None and self.size > origin.total else origin

    def remember(self, origin: _Origin) -> None:
        aside = self._sidecar.with_suffix(".new")
        with open(aside, "wb") as file:
            file.write(origin.model_dump_json().encode())
            file.flush()
            os.fsync(file.fileno())
        os.replace(aside, self._sidecar)
        self.origin = origin

    def clear(self) -> None:
        """Forget all that has come."""
        assert self._handle is not None
        with _naming(self.file):
            os.ftruncate(self._handle, 0)
            os.fsync(self._handle)  # before a new sidecar speaks of what lies here
        self.size, self.origin = 0, None
        self._digest, self._hashed = hashlib.sha256(), 0

    def begin(self, origin: _Origin) -> None:
        self.clear()
        self.remember(origin)

    def append(self, block: bytes) -> None:
        assert self._handle is not None and self._hashed == self.size, (self._hashed, self.size)
        left = memoryview(block)
        while left:
            with _naming(self.file):
                written = os.pwrite(self._handle, left, self.size)
            self._digest.update(left[:written])
            self._hashed = self.size = self.size + written
            left = left[written:]

    async def hash_rest(self) -> None:
        """Hash what an earlier process wrote."""
        assert self._handle is not None
        while self._hashed < self.size:
            with _naming(self.file):
                block = os.pread(self._handle, min(BLOCK, self.size - self._hashed), self._hashed)
            assert block, (self.file, self._hashed, self.size)
            self._digest.update(block)
            self._hashed += len(block)
            await asyncio.sleep(0)  # where stop() gets in

    @property
    def sha256(self) -> str:
        assert self._hashed == self.size, (self._hashed, self.size)
        return self._digest.hexdigest()

    def move_to(self, final: Path) -> None:
        """Give the file its name, once its bytes are on the disk. What is known of it here stays known."""
        assert self._handle is not None
        with _naming(self.file):
            os.fsync(self._handle)
        os.replace(self.file, final)
        self._sidecar.unlink(missing_ok=True)
        folder = os.open(final.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
        os.close(self._handle)
        self._handle = None


def _lock(path: Path) -> int:
    """A handle of the file, made if need be, that no other process has. Raises Busy."""
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # Between the two lines above, whoever had it may have given it its final name.
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(handle), os.stat(path)):
                    return handle
        except BlockingIOError:
            os.close(handle)
            raise Busy(f"{path} is being downloaded by another run; wait for it to end") from None
        except OSError:
            os.close(handle)
            raise
        os.close(handle)


@contextlib.contextmanager
def _naming(path: Path) -> Generator[None]:
    """Calls by handle do not say which file it was."""
    try:
        yield
    except OSError as error:
        error.filename = error.filename or str(path)
        raise
