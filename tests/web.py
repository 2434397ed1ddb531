"""A local web: any number of host names on one real HTTP and one real HTTPS server, with faults to order.

    test:   web.serve(host, path, body)   web.folder(host, prefix, folder)   web.fault(host, path, Fault.X)
            web.serve_file(host, path, ServedFile(body))          web.fault(host, path, FileFault.X)
                                                        |
    client -> 127.0.0.1:port -> (TLS) -> request -> log -> the fault that is due, else the page, else 404
                                            ^                         |
                                            +---- next request <------+    or the end, as the fault says

The servers speak raw bytes on asyncio streams in a thread of their own, because half of what the real web
answers is nothing that an HTTP library would let us send. A new fault is a line in `Fault`, a function beside
the others at the end of this file, and a line in `BEHAVIOUR`; for files that are served by range, `FileFault`
and `FILE_BEHAVIOUR`.

    with Web() as web:
        web.serve("images.example", "/a.jpg", picture)
        web.fault("images.example", "/a.jpg", Fault.SERVER_ERROR, times=2)  # then the picture
        fetch("http://images.example/a.jpg", connect_to=web.connect_to, ca_file=web.ca_file)
        assert web.count("images.example", "/a.jpg") == 3

By hand, until Ctrl-C:  python -m tests.web FOLDER --host images.example
"""

import argparse
import asyncio
import gzip
import json
import mimetypes
import re
import signal
import socket
import ssl
import struct
import tempfile
import threading
import time
import zlib
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from email.utils import formatdate
from enum import StrEnum
from http import HTTPStatus
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Any, Self
from urllib.parse import parse_qs, unquote

import trustme

LONGEST_REQUEST = 256 * 1024  # bytes of a request's head; past it the client is cut off
PHRASES = {status.value: status.phrase for status in HTTPStatus}
BLOCK = 64 * 1024  # bytes that the endless and the big bodies send at a time


class Fault(StrEnum):
    """What a path does instead of serving its page. Those marked * need a page served under the same path."""

    # An honest status
    STATUS = "status"  # any, given as status=
    NOT_FOUND = "not_found"
    GONE = "gone"
    FORBIDDEN = "forbidden"
    UNAUTHORIZED = "unauthorized"
    LEGAL = "legal"
    TOO_MANY = "too_many"  # with Retry-After: retry_after=
    SERVER_ERROR = "server_error"
    UNAVAILABLE = "unavailable"  # with Retry-After where retry_after= is given
    # Time
    SLOW = "slow"  # * the page, after seconds=
    DRIP = "drip"  # * head at once, then a byte each interval= seconds
    HANG = "hang"  # reads the request and never answers
    # The connection
    RESET = "reset"  # TCP RST instead of an answer
    RESET_MID_BODY = "reset_mid_body"  # * TCP RST after half of the page
    NO_BYTES = "no_bytes"  # closed without a byte
    BAD_STATUS_LINE = "bad_status_line"  # not HTTP
    HUGE_HEADER = "huge_header"  # the page below a header field of size= bytes
    # The body's framing
    TRUNCATED = "truncated"  # * half of what Content-Length promised, then closed
    TRUNCATED_CHUNKED = "truncated_chunked"  # * chunked, closed before the last chunk
    CHUNKED = "chunked"  # * chunked, correct
    CLOSE_DELIMITED = "close_delimited"  # * no length: the end of the connection ends it
    GZIP = "gzip"  # * Content-Encoding: gzip, correct
    BOMB_GZIP = "bomb_gzip"  # gzip that unpacks to size= bytes of zeros
    EMPTY_200 = "empty_200"  # 200, no bytes
    ENDLESS = "endless"  # chunked, for as long as the client listens
    BIG = "big"  # Content-Length size=, sent for as long as the client listens
    # The body's content
    HTML_200 = "html_200"  # an HTML page that says all is well
    HTML_AS_JPEG = "html_as_jpeg"  # the same, called image/jpeg
    WRONG_TYPE = "wrong_type"  # * the page, called text/plain
    # Redirects
    REDIRECT = "redirect"  # to to=, with status= (302)
    REDIRECT_LOOP = "redirect_loop"  # to itself
    REDIRECT_CHAIN = "redirect_chain"  # * hops= times to itself, then the page
    REDIRECT_NO_LOCATION = "redirect_no_location"
    REDIRECT_TO_FILE = "redirect_to_file"  # to file:///etc/passwd


class FileFault(StrEnum):
    """What a file of serve_file does instead of being served whole, or by range, as it should be."""

    CUT = "cut"  # closed after size= bytes of what was to be sent
    STALL = "stall"  # silent after size= bytes
    PACED = "paced"  # size= bytes each interval= seconds
    WRONG_RANGE = "wrong_range"  # 206, but of one byte more than was asked for, at its beginning
    SHORT_RANGE = "short_range"  # 206, but of size= bytes at most
    # 206 of the range that is asked for, of whatever version, without its names. Content-Range is to=, with
    # {first}, {last} and {size} filled in.
    LYING_RANGE = "lying_range"
    # As Google Cloud Storage serves what was stored as gzip: unpacked for whoever does not accept gzip.
    UNPACKED = "unpacked"


@dataclass(frozen=True)
class How:
    """What a fault can be told; each fault reads its own few."""

    status: int | None = None
    seconds: float = 1.0  # s before the head
    interval: float = 0.05  # s between two bytes
    retry_after: int | str | None = None  # s, or an HTTP date
    to: str = ""  # URL
    hops: int = 3
    size: int | None = None  # bytes


@dataclass(frozen=True)
class Page:
    body: bytes
    content_type: str
    headers: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class ServedFile:
    """A file of any size, served as archives do: by range, with the names of its version."""

    body: bytes | Path  # a path is read block by block
    etag: str | None = None
    last_modified: str | None = None
    content_type: str = "application/octet-stream"
    ranges: bool = True  # False: all of it, whatever is asked for
    if_range: bool = True  # False: the range that is asked for, whatever version it is to be of
    chunked: bool = False  # no length, where all of it is sent
    headers: tuple[tuple[str, str], ...] = ()

    @property
    def size(self) -> int:
        return len(self.body) if isinstance(self.body, bytes) else self.body.stat().st_size

    def blocks(self, first: int, end: int, step: int) -> Iterator[bytes]:
        """The bytes from `first` to before `end`, `step` of them at a time."""
        if isinstance(self.body, bytes):
            yield from (self.body[at : min(at + step, end)] for at in range(first, end, step))
            return
        with self.body.open("rb") as file:
            file.seek(first)
            for at in range(first, end, step):
                yield file.read(min(step, end - at))


@dataclass(frozen=True)
class Request:
    """A request as it arrived."""

    at: float  # s, time.monotonic()
    host: str  # of the Host field, lower-case, without its port
    port: int  # of the Host field, else the scheme's own
    method: str
    target: str  # path and query, as sent
    version: str  # "HTTP/1.1"
    headers: list[tuple[str, str]]
    tls: bool
    connection: int  # requests on one connection share this number

    @property
    def path(self) -> str:
        return self.target.partition("?")[0]

    @property
    def url(self) -> str:
        return f"{'https' if self.tls else 'http'}://{self.header('host') or self.host}{self.target}"

    def header(self, name: str) -> str | None:
        """The first field of that name, in any case."""
        return next((value for known, value in self.headers if known.lower() == name.lower()), None)


@dataclass
class _Due:
    """A fault that waits for requests: `left` of them, or all."""

    fault: Fault | FileFault
    how: How
    left: int | None


class Web:
    """The servers and what they answer. Use as a context; every method may be called from any thread.

    Inside the context `http` and `https` are the addresses ("127.0.0.1:port"), and `ca_file` the PEM of
    the authority behind every certificate.
    """

    http: str
    https: str
    ca_file: Path

    def __init__(self) -> None:
        self._lock = threading.Lock()  # guards everything down to _failures
        self._pages: dict[tuple[str, str], Page] = {}
        self._files: dict[tuple[str, str], ServedFile] = {}
        self._folders: dict[tuple[str, str], Path] = {}
        self._faults: dict[tuple[str, str], list[_Due]] = {}
        self._prefix_faults: dict[tuple[str, str], list[_Due]] = {}
        self._log: list[Request] = []
        self._in_progress: Counter[str] = Counter()
        self._peak: Counter[str] = Counter()
        self._failures: list[Exception] = []  # of this file, not of a client: raised on the way out
        self._connections = 0
        # One a connection; the loop holds its tasks but weakly.
        self._tasks: set[asyncio.Task[None]] = set()
        self._names: dict[str, ssl.SSLContext] = {}  # a certificate for each host name asked for

    # What is served

    def serve(
        self,
        host: str,
        path: str,
        body: bytes,
        content_type: str = "image/jpeg",
        headers: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        """Answer `path` (a query may be part of it) with 200 and these bytes. Again: replaces them."""
        with self._lock:
            self._pages[host.lower(), path] = Page(body, content_type, tuple(headers.items()))

    def serve_file(self, host: str, path: str, file: ServedFile) -> None:
        """Answer `path` with this file, or the range of it that is asked for. Again: replaces it."""
        with self._lock:
            self._files[host.lower(), path] = file

    def folder(self, host: str, prefix: str, folder: Path) -> None:
        """Answer a path under `prefix` with the file of that name, read when asked for; never one outside."""
        with self._lock:
            self._folders[host.lower(), prefix] = folder.resolve()

    def fault(
        self, host: str, path: str, fault: Fault | FileFault, *, times: int | None = None, **how: Any
    ) -> None:
        """Let `path` fail for its next `times` requests, or until healed; faults come in the order given."""
        with self._lock:
            _queue(self._faults.setdefault((host.lower(), path), []), _Due(fault, How(**how), times))

    def fault_paths(
        self, host: str, prefix: str, fault: Fault, *, times: int | None = None, **how: Any
    ) -> None:
        """The same for every path that starts with `prefix`; a fault of the very path goes before it."""
        with self._lock:
            _queue(self._prefix_faults.setdefault((host.lower(), prefix), []), _Due(fault, How(**how), times))

    def heal(self, host: str, path: str | None = None) -> None:
        """Take back the faults of a path (or prefix), or of a whole host; its pages stay."""
        with self._lock:
            for faults in (self._faults, self._prefix_faults):
                for known, where in list(faults):
                    if known == host.lower() and path in (None, where):
                        del faults[known, where]

    # Where it is, and what was asked of it

    @property
    def connect_to(self) -> dict[str, str]:
        """What goes into [fetch] connect_to of a corpus file: the whole web is here."""
        return {"*:80": self.http, "*:443": self.https}

    @property
    def requests(self) -> list[Request]:
        """All requests so far, in order of arrival."""
        with self._lock:
            return list(self._log)

    def count(self, host: str | None = None, path: str | None = None) -> int:
        """Requests to this host and path (with any query, unless `path` has one)."""
        return sum(
            (host is None or request.host == host.lower())
            and (path is None or path in (request.path, request.target))
            for request in self.requests
        )

    def peak(self, host: str) -> int:
        """The most requests that this host had in progress at one time."""
        with self._lock:
            return self._peak[host.lower()]

    def forget(self) -> None:
        """Empty the log of requests, and the peaks."""
        with self._lock:
            self._log.clear()
            self._peak.clear()

    # Start and stop

    def __enter__(self) -> Self:
        self._folder = tempfile.TemporaryDirectory(prefix="tests-web-")
        self._ca = trustme.CA(organization_name="tests.web")
        self.ca_file = Path(self._folder.name) / "ca.pem"
        self._ca.cert_pem.write_to_path(self.ca_file)
        plain, secure = _listen(), _listen()
        self.http, self.https = _address(plain), _address(secure)
        running = threading.Event()
        self._thread = threading.Thread(
            target=lambda: asyncio.run(self._run(plain, secure, running)), name="tests.web", daemon=True
        )
        self._thread.start()
        running.wait()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()
        self._folder.cleanup()
        for failure in self._failures:
            if error is None:
                raise failure
            error.add_note(f"and tests.web failed: {failure!r}")  # which may be why

    async def _run(self, plain: socket.socket, secure: socket.socket, running: threading.Event) -> None:
        """Listen until told to stop; asyncio.run then cancels every connection that is still open."""
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        self._loop.add_reader(plain, self._accept, plain, None)
        self._loop.add_reader(secure, self._accept, secure, self._context("localhost"))
        running.set()
        await self._stop.wait()
        for listener in (plain, secure):
            self._loop.remove_reader(listener)
            listener.close()
        # A connection accepted just now must begin before it is cancelled, or nobody closes its socket.
        await asyncio.sleep(0)

    def _context(self, name: str) -> ssl.SSLContext:
        """TLS with a certificate for `name`; issued at the first request for it."""
        if name not in self._names:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.set_alpn_protocols(["http/1.1"])
            context.sni_callback = self._choose_name
            self._ca.issue_cert(name, *(["127.0.0.1"] if name == "localhost" else [])).configure_cert(context)
            self._names[name] = context
        return self._names[name]

    def _choose_name(
        self, connection: ssl.SSLObject, name: str | None, context: ssl.SSLContext
    ) -> int | None:
        if name:
            try:
                connection.context = self._context(name.lower())
            except ValueError:  # no certificate can say this name
                return ssl.ALERT_DESCRIPTION_UNRECOGNIZED_NAME
        return None

    # One connection

    def _accept(self, listener: socket.socket, context: ssl.SSLContext | None) -> None:
        try:
            sock, _ = listener.accept()
        except (BlockingIOError, ConnectionError):  # gone before we looked
            return
        sock.setblocking(False)
        self._connections += 1
        task = self._loop.create_task(self._connection(sock, context, self._connections))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _connection(self, sock: socket.socket, context: ssl.SSLContext | None, number: int) -> None:
        # Accepted by hand, not by asyncio.start_server: only so is an unfinished handshake ours to cancel.
        reader = asyncio.StreamReader(limit=LONGEST_REQUEST)
        protocol = asyncio.StreamReaderProtocol(reader)
        try:
            transport, _ = await self._loop.connect_accepted_socket(
                lambda: protocol, sock, ssl=context, ssl_shutdown_timeout=1.0 if context else None
            )
        except OSError:  # no handshake: the client distrusts us, speaks something else, or left
            return
        writer = asyncio.StreamWriter(transport, protocol, reader, self._loop)
        try:
            more = True
            while more and (request := await _read_request(reader, tls=context is not None, number=number)):
                more = await self._answer(request, reader, writer)
            writer.close()
            await writer.wait_closed()
        except (OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError, TimeoutError):
            pass  # the client vanished, or sent what is no request
        except Exception as error:
            with self._lock:
                self._failures.append(error)
        finally:
            transport.abort()
            await _lost(writer)

    async def _answer(
        self, request: Request, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> bool:
        """Log and answer one request. True where the connection may carry another."""
        with self._lock:
            self._log.append(request)
            self._in_progress[request.host] += 1
            self._peak[request.host] = max(self._peak[request.host], self._in_progress[request.host])
            due, page = self._due(request), self._page(request)
            file = self._files.get((request.host, request.path))
        try:
            exchange = Exchange(request, page, due.how if due else How(), reader, writer, file)
            if due:
                fault = due.fault
                act = FILE_BEHAVIOUR[fault] if isinstance(fault, FileFault) else BEHAVIOUR[fault]
                await act(exchange)
            elif file:
                await send_file(exchange)
            elif page:
                await exchange.page_whole()
            else:
                await exchange.status(HTTPStatus.NOT_FOUND)
            return exchange.keep_alive
        finally:
            with self._lock:
                self._in_progress[request.host] -= 1

    def _due(self, request: Request) -> _Due | None:
        exact = [self._faults.get((request.host, place), []) for place in (request.target, request.path)]
        prefixes = [
            dues
            for (host, prefix), dues in sorted(self._prefix_faults.items(), key=lambda item: -len(item[0][1]))
            if host == request.host and request.target.startswith(prefix)
        ]
        for dues in (*exact, *prefixes):
            for due in dues:
                if due.left is None:
                    return due
                if due.left > 0:
                    due.left -= 1
                    return due
        return None

    def _page(self, request: Request) -> Page | None:
        for place in (request.target, request.path):
            if page := self._pages.get((request.host, place)):
                return page
        for (host, prefix), folder in sorted(self._folders.items(), key=lambda item: -len(item[0][1])):
            if host == request.host and request.path.startswith(prefix):
                return _file_page(folder, unquote(request.path[len(prefix) :]))
        return None


def _queue(dues: list[_Due], due: _Due) -> None:
    """Behind the others, but in place of one that would never let it be reached."""
    if dues and dues[-1].left is None:
        dues.pop()
    dues.append(due)


def _listen() -> socket.socket:
    listener = socket.create_server(("127.0.0.1", 0), backlog=1024)
    listener.setblocking(False)
    return listener


def _address(listener: socket.socket) -> str:
    host, port = listener.getsockname()
    return f"{host}:{port}"


def _file_page(folder: Path, name: str) -> Page | None:
    if "\0" in name:
        return None
    file = (folder / name.lstrip("/")).resolve()
    if not file.is_relative_to(folder) or not file.is_file():
        return None
    return Page(file.read_bytes(), mimetypes.guess_type(file.name)[0] or "application/octet-stream")


async def _read_request(reader: asyncio.StreamReader, *, tls: bool, number: int) -> Request | None:
    """The next request, its body read away; None where the client has hung up. Raises IncompleteReadError."""
    try:
        head = await reader.readuntil(b"\r\n\r\n")
    except asyncio.IncompleteReadError as error:
        if error.partial:
            raise
        return None
    line, *fields = head[:-4].decode("latin-1").split("\r\n")
    words = line.split(" ")
    if len(words) != 3 or not words[2].startswith("HTTP/1."):
        raise asyncio.IncompleteReadError(head, None)
    method, target, version = words
    headers = [(name.strip(), value.strip()) for name, _, value in (text.partition(":") for text in fields)]
    given = {name.lower(): value for name, value in headers}
    host, _, port = given.get("host", "").lower().rpartition(":")
    if not port.isdecimal():
        host, port = given.get("host", "").lower(), "443" if tls else "80"
    if (length := given.get("content-length", "")).isdecimal():
        await reader.readexactly(int(length))
    return Request(time.monotonic(), host, int(port), method, target, version, headers, tls, number)


async def _lost(writer: asyncio.StreamWriter) -> None:
    """Wait until an aborted connection has let go of its socket."""
    with suppress(OSError, TimeoutError):
        await writer.wait_closed()


class Exchange:
    """One request and the means to answer it, well or badly."""

    def __init__(
        self,
        request: Request,
        page: Page | None,
        how: How,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        file: ServedFile | None = None,
    ) -> None:
        self.request, self.how, self._file = request, how, file
        self.keep_alive = (
            request.version == "HTTP/1.1" and (request.header("connection") or "").lower() != "close"
        )
        self._page, self._reader, self._writer = page, reader, writer

    @property
    def page(self) -> Page:
        if self._page is None:
            raise LookupError(
                f"the fault ordered for {self.request.url} needs a page: web.serve the same path"
            )
        return self._page

    @property
    def file(self) -> ServedFile:
        if self._file is None:
            raise LookupError(
                f"the fault ordered for {self.request.url} needs a file: serve_file the same path"
            )
        return self._file

    @property
    def page_or_nothing(self) -> Page:
        return self._page or Page(b"", "image/jpeg")

    async def head(self, status: int, *headers: tuple[str, str]) -> None:
        await self.write(self._head(status, *headers))

    def _head(self, status: int, *headers: tuple[str, str]) -> bytes:
        ending = () if self.keep_alive else (("Connection", "close"),)
        fields = "".join(f"{name}: {value}\r\n" for name, value in (*headers, *ending))
        return f"HTTP/1.1 {status} {PHRASES.get(status, 'Unknown')}\r\n{fields}\r\n".encode("latin-1")

    async def write(self, data: bytes) -> None:
        self._writer.write(data)
        await self._writer.drain()
        await asyncio.sleep(0)  # drain alone lets nobody else run while the client keeps pace

    async def chunk(self, data: bytes) -> None:
        """One chunk of a chunked body; the empty one ends it."""
        await self.write(b"%x\r\n%b\r\n" % (len(data), data))

    async def whole(self, status: int, body: bytes, content_type: str, *headers: tuple[str, str]) -> None:
        """A complete and correct answer."""
        fields = (("Content-Type", content_type), ("Content-Length", str(len(body))), *headers)
        head = self._head(status, *fields)
        await self.write(head if self.request.method == "HEAD" else head + body)

    async def page_whole(self) -> None:
        await self.whole(200, self.page.body, self.page.content_type, *self.page.headers)

    async def status(self, status: int, *headers: tuple[str, str]) -> None:
        """A status and the small HTML page that servers send along with it."""
        await self.whole(status, _html(str(status)), "text/html; charset=utf-8", *headers)

    async def redirect(self, to: str | None, status: int = 302) -> None:
        await self.status(status, *([("Location", to)] if to is not None else []))

    async def client_leaves(self) -> None:
        while await self._reader.read(BLOCK):
            pass

    def reset(self) -> None:
        """Drop the connection with a TCP RST: what a linger time of zero makes of a close."""
        sock = self._writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.hang_up()
        self._writer.transport.abort()

    def hang_up(self) -> None:
        """Close the connection once this answer is sent."""
        self.keep_alive = False


def _html(title: str) -> bytes:
    return f"<!doctype html>\n<title>{title}</title>\n<h1>{title}</h1>\n<p>No picture here.</p>\n".encode()


# The faults, in the order of the enum


def always(status: int) -> Callable[[Exchange], Awaitable[None]]:
    async def answer(exchange: Exchange) -> None:
        wait = exchange.how.retry_after
        await exchange.status(status, *([("Retry-After", str(wait))] if wait is not None else []))

    return answer


async def any_status(exchange: Exchange) -> None:
    assert exchange.how.status is not None, "Fault.STATUS needs status="
    await always(exchange.how.status)(exchange)


async def slow(exchange: Exchange) -> None:
    await asyncio.sleep(exchange.how.seconds)
    await exchange.page_whole()


async def drip(exchange: Exchange) -> None:
    body = exchange.page.body
    await exchange.head(200, ("Content-Type", exchange.page.content_type), ("Content-Length", str(len(body))))
    for at in range(len(body)):
        await asyncio.sleep(exchange.how.interval)
        await exchange.write(body[at : at + 1])


async def hang(exchange: Exchange) -> None:
    exchange.hang_up()
    await exchange.client_leaves()


async def reset(exchange: Exchange) -> None:
    exchange.reset()


async def reset_mid_body(exchange: Exchange) -> None:
    body = exchange.page.body
    await exchange.head(200, ("Content-Type", exchange.page.content_type), ("Content-Length", str(len(body))))
    await exchange.write(body[: len(body) // 2])
    await asyncio.sleep(0.05)  # a RST overtakes what the client has not read yet; let it read
    exchange.reset()


async def no_bytes(exchange: Exchange) -> None:
    exchange.hang_up()


async def bad_status_line(exchange: Exchange) -> None:
    exchange.hang_up()
    await exchange.write(b"\x00\xffthis is not HTTP\r\n\r\n")


async def huge_header(exchange: Exchange) -> None:
    exchange.hang_up()
    page, size = exchange.page_or_nothing, exchange.how.size or 1_000_000
    await exchange.whole(200, page.body, page.content_type, ("X-Padding", "x" * size))


async def truncated(exchange: Exchange) -> None:
    exchange.hang_up()
    body = exchange.page.body
    await exchange.head(200, ("Content-Type", exchange.page.content_type), ("Content-Length", str(len(body))))
    await exchange.write(body[: len(body) // 2])


async def truncated_chunked(exchange: Exchange) -> None:
    exchange.hang_up()
    await send_chunks(exchange)


async def chunked(exchange: Exchange) -> None:
    await send_chunks(exchange)
    await exchange.chunk(b"")


async def send_chunks(exchange: Exchange) -> None:
    """The whole page in a few chunks, without the one that ends it."""
    body, page = exchange.page.body, exchange.page
    await exchange.head(200, ("Content-Type", page.content_type), ("Transfer-Encoding", "chunked"))
    step = max(1, len(body) // 4)
    for at in range(0, len(body), step):
        await exchange.chunk(body[at : at + step])


async def close_delimited(exchange: Exchange) -> None:
    exchange.hang_up()
    await exchange.head(200, ("Content-Type", exchange.page.content_type))
    await exchange.write(exchange.page.body)


async def gzipped(exchange: Exchange) -> None:
    body = gzip.compress(exchange.page.body, mtime=0)
    await exchange.whole(200, body, exchange.page.content_type, ("Content-Encoding", "gzip"))


async def bomb_gzip(exchange: Exchange) -> None:
    size, step = exchange.how.size or 1_000_000_000, 1 << 22
    await exchange.head(
        200, ("Content-Type", "image/jpeg"), ("Content-Encoding", "gzip"), ("Transfer-Encoding", "chunked")
    )
    packer = zlib.compressobj(level=1, wbits=16 + zlib.MAX_WBITS)
    for at in range(0, size, step):  # packed as it is sent: whoever leaves early costs little
        if packed := packer.compress(bytes(min(step, size - at))):
            await exchange.chunk(packed)
    await exchange.chunk(packer.flush())
    await exchange.chunk(b"")


async def empty_200(exchange: Exchange) -> None:
    await exchange.whole(200, b"", "image/jpeg")


async def endless(exchange: Exchange) -> None:
    page = exchange.page_or_nothing
    await exchange.head(200, ("Content-Type", page.content_type), ("Transfer-Encoding", "chunked"))
    if page.body:
        await exchange.chunk(page.body)
    while True:  # ends when the client leaves: writing then raises
        await exchange.chunk(bytes(BLOCK))


async def big(exchange: Exchange) -> None:
    page, size = exchange.page_or_nothing, exchange.how.size or 1_000_000_000
    await exchange.head(200, ("Content-Type", page.content_type), ("Content-Length", str(size)))
    await exchange.write(page.body[:size])
    for at in range(min(size, len(page.body)), size, BLOCK):
        await exchange.write(bytes(min(BLOCK, size - at)))


async def html_200(exchange: Exchange) -> None:
    await exchange.whole(200, _html("Welcome"), "text/html; charset=utf-8")


async def html_as_jpeg(exchange: Exchange) -> None:
    await exchange.whole(200, _html("Welcome"), "image/jpeg")


async def wrong_type(exchange: Exchange) -> None:
    await exchange.whole(200, exchange.page.body, "text/plain")


async def redirect(exchange: Exchange) -> None:
    await exchange.redirect(exchange.how.to, exchange.how.status or 302)


async def redirect_loop(exchange: Exchange) -> None:
    await exchange.redirect(exchange.request.url, exchange.how.status or 302)


async def redirect_chain(exchange: Exchange) -> None:
    hop = int(parse_qs(exchange.request.target.partition("?")[2]).get("hop", ["0"])[0])
    if hop >= exchange.how.hops:
        await exchange.page_whole()
    else:
        await exchange.redirect(f"{exchange.request.path}?hop={hop + 1}", exchange.how.status or 302)


async def redirect_no_location(exchange: Exchange) -> None:
    await exchange.redirect(None, exchange.how.status or 302)


async def redirect_to_file(exchange: Exchange) -> None:
    await exchange.redirect("file:///etc/passwd", exchange.how.status or 302)


async def too_many(exchange: Exchange) -> None:
    wait = exchange.how.retry_after
    await exchange.status(HTTPStatus.TOO_MANY_REQUESTS, ("Retry-After", str(1 if wait is None else wait)))


BEHAVIOUR: dict[Fault, Callable[[Exchange], Awaitable[None]]] = {
    Fault.STATUS: any_status,
    Fault.NOT_FOUND: always(404),
    Fault.GONE: always(410),
    Fault.FORBIDDEN: always(403),
    Fault.UNAUTHORIZED: always(401),
    Fault.LEGAL: always(451),
    Fault.TOO_MANY: too_many,
    Fault.SERVER_ERROR: always(500),
    Fault.UNAVAILABLE: always(503),
    Fault.SLOW: slow,
    Fault.DRIP: drip,
    Fault.HANG: hang,
    Fault.RESET: reset,
    Fault.RESET_MID_BODY: reset_mid_body,
    Fault.NO_BYTES: no_bytes,
    Fault.BAD_STATUS_LINE: bad_status_line,
    Fault.HUGE_HEADER: huge_header,
    Fault.TRUNCATED: truncated,
    Fault.TRUNCATED_CHUNKED: truncated_chunked,
    Fault.CHUNKED: chunked,
    Fault.CLOSE_DELIMITED: close_delimited,
    Fault.GZIP: gzipped,
    Fault.BOMB_GZIP: bomb_gzip,
    Fault.EMPTY_200: empty_200,
    Fault.ENDLESS: endless,
    Fault.BIG: big,
    Fault.HTML_200: html_200,
    Fault.HTML_AS_JPEG: html_as_jpeg,
    Fault.WRONG_TYPE: wrong_type,
    Fault.REDIRECT: redirect,
    Fault.REDIRECT_LOOP: redirect_loop,
    Fault.REDIRECT_CHAIN: redirect_chain,
    Fault.REDIRECT_NO_LOCATION: redirect_no_location,
    Fault.REDIRECT_TO_FILE: redirect_to_file,
}


# Files, and their faults


async def send_file(
    exchange: Exchange,
    *,
    sent: int | None = None,
    shift: int = 0,
    longest: int | None = None,
    pace: float = 0.0,
    headers: tuple[tuple[str, str], ...] = (),
) -> bool:
    """The file, or what Range and If-Range ask of it. True where all that the head promised was sent.

    sent: bytes after which to stop; shift: bytes before the range that come along with it; longest: bytes of
    a range; pace: s between two blocks of how.size bytes.
    """
    file, request = exchange.file, exchange.request
    fields = [("Content-Type", file.content_type), ("Date", formatdate(usegmt=True)), *file.headers, *headers]
    fields += [("ETag", file.etag)] if file.etag else []
    fields += [("Last-Modified", file.last_modified)] if file.last_modified else []
    asked = re.fullmatch(r"bytes=(\d+)-", request.header("range") or "")
    version = request.header("if-range")
    if version is not None and file.if_range and version not in (file.etag, file.last_modified):
        asked = None
    first, end, chunked = 0, file.size, False
    if asked is None or not file.ranges:
        chunked = file.chunked
        length = ("Transfer-Encoding", "chunked") if chunked else ("Content-Length", str(end))
        await exchange.head(200, *fields, length)
    elif int(asked[1]) >= file.size:
        await exchange.status(416, ("Content-Range", f"bytes */{file.size}"))
        return True
    else:
        first = int(asked[1]) - shift
        end = file.size if longest is None else min(file.size, first + longest)
        part = ("Content-Range", f"bytes {first}-{end - 1}/{file.size}")
        await exchange.head(206, *fields, part, ("Content-Length", str(end - first)))
    stop = end if sent is None else min(end, first + sent)
    step = exchange.how.size or BLOCK if pace else 4 * BLOCK
    for block in file.blocks(first, stop, step):
        await (exchange.chunk(block) if chunked else exchange.write(block))
        if pace:
            await asyncio.sleep(pace)
    if chunked and stop == end:
        await exchange.chunk(b"")
    return stop == end


async def cut(exchange: Exchange) -> None:
    if not await send_file(exchange, sent=exchange.how.size):
        await asyncio.sleep(0.02)  # the end may overtake what the client has not read yet; let it read
        exchange.hang_up()


async def stall(exchange: Exchange) -> None:
    exchange.hang_up()
    await send_file(exchange, sent=exchange.how.size)
    await exchange.client_leaves()


async def paced(exchange: Exchange) -> None:
    await send_file(exchange, pace=exchange.how.interval)


async def wrong_range(exchange: Exchange) -> None:
    await send_file(exchange, shift=1)


async def short_range(exchange: Exchange) -> None:
    await send_file(exchange, longest=exchange.how.size)


async def lying_range(exchange: Exchange) -> None:
    file = exchange.file
    first, size = int((exchange.request.header("range") or "bytes=0-")[6:-1]), file.size
    said = exchange.how.to.format(first=first, last=size - 1, size=size)
    await exchange.head(206, ("Content-Range", said), ("Content-Length", str(size - first)))
    for block in file.blocks(first, size, BLOCK):
        await exchange.write(block)


async def unpacked(exchange: Exchange) -> None:
    stored = ("X-Goog-Stored-Content-Encoding", "gzip")
    if "gzip" in (exchange.request.header("accept-encoding") or ""):
        await send_file(exchange, headers=(("Content-Encoding", "gzip"), stored))
        return
    body = exchange.file.body
    assert isinstance(body, bytes)
    await exchange.head(200, ("Content-Type", "text/plain"), stored, ("Transfer-Encoding", "chunked"))
    await exchange.chunk(gzip.decompress(body))
    await exchange.chunk(b"")


FILE_BEHAVIOUR: dict[FileFault, Callable[[Exchange], Awaitable[None]]] = {
    FileFault.CUT: cut,
    FileFault.STALL: stall,
    FileFault.PACED: paced,
    FileFault.WRONG_RANGE: wrong_range,
    FileFault.SHORT_RANGE: short_range,
    FileFault.LYING_RANGE: lying_range,
    FileFault.UNPACKED: unpacked,
}


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m tests.web", description="Serve a folder as a host of its own."
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument(
        "--host", action="append", help="its name; more than one may be given (images.example)"
    )
    arguments = parser.parse_args()
    stops = {signal.SIGINT, signal.SIGTERM}
    signal.pthread_sigmask(
        signal.SIG_BLOCK, stops
    )  # before the thread starts, which inherits it: we alone wait
    with Web() as web:
        for host in arguments.host or ["images.example"]:
            web.folder(host, "/", arguments.folder)
        hosts = ", ".join(f"{json.dumps(at)} = {json.dumps(to)}" for at, to in web.connect_to.items())
        print(f"[fetch]\nconnect_to = {{{hosts}}}\nca_file = {json.dumps(str(web.ca_file))}", flush=True)
        signal.sigwait(stops)


if __name__ == "__main__":
    main()
