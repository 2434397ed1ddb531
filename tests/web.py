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
and `FILE_BEHAVIOUR`; for a whole port that speaks no HTTP, or bad TLS, `PortFault` and `Web.port_fault`.

    with Web() as web:
        web.serve("images.example", "/a.jpg", picture)
        web.fault("images.example", "/a.jpg", Fault.SERVER_ERROR, times=2)  # then the picture
        fetch("http://images.example/a.jpg", connect_to=web.connect_to, ca_file=web.ca_file)
        assert web.count("images.example", "/a.jpg") == 3

By hand, until Ctrl-C:  python -m tests.web FOLDER --host images.example
"""

import argparse
import asyncio
import datetime
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
    """What a path does instead of serving its page. Those marked * need a page served under the same path;
    others that send a body send the page too, if there is one.
    """

    # An honest status
    STATUS = "status"  # any, given as status=
    STATUS_ALONE = "status_alone"  # any, given as status=, with nothing behind its head
    STATUS_WITH_PAGE = "status_with_page"  # * any, given as status=
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
    HEAD_DRIP = "head_drip"  # * the page, its head a byte each interval= seconds
    HEAD_STALL = "head_stall"  # half of a head, then silence
    DRIP = "drip"  # * head at once, then a byte each interval= seconds
    STALL = "stall"  # * half of the page, then silence
    HANG = "hang"  # reads the request and never answers
    # The connection
    RESET = "reset"  # TCP RST instead of an answer
    RESET_MID_BODY = "reset_mid_body"  # * TCP RST after half of the page
    NO_BYTES = "no_bytes"  # closed without a byte
    HEAD_CUT = "head_cut"  # closed in the middle of the head
    # The protocol, or what is not it
    BAD_STATUS_LINE = "bad_status_line"  # not HTTP
    ENDLESS_STATUS_LINE = "endless_status_line"
    HTTP_09 = "http_09"  # * the page, without any head
    HTTP_10 = "http_10"  # * correct HTTP/1.0, to which the end of the connection ends the body
    HTTP_2 = "http_2"  # frames of HTTP/2
    SWITCHING = "switching"  # 101, to a protocol that nobody asked for
    PROVISIONAL = "provisional"  # * 100, 102 and 103, then the page: correct
    ENDLESS_PROVISIONAL = "endless_provisional"  # 100 for as long as the client listens
    SLOW_PROVISIONAL = "slow_provisional"  # 102 each interval= seconds
    # The head
    HUGE_HEADER = "huge_header"  # the page below a header field of size= bytes
    MANY_FIELDS = "many_fields"  # the page below size= header fields
    LARGE_HEAD = "large_head"  # the page below 100 header fields, of size= bytes together
    ENDLESS_FIELD = "endless_field"  # one header field
    ENDLESS_HEAD = "endless_head"  # header fields
    NUL_IN_FIELD = "nul_in_field"
    ESC_IN_FIELD = "esc_in_field"  # and what a terminal would make of it
    CR_IN_FIELD = "cr_in_field"  # bare, and behind it what looks like a field
    FOLDED_FIELD = "folded_field"  # goes on in the next line, as it once could
    SPACE_BEFORE_COLON = "space_before_colon"
    NO_COLON = "no_colon"
    NO_NAME = "no_name"  # a field that begins with its colon
    LF_ALONE = "lf_alone"  # * lines that end without CR
    # The body's length
    TRUNCATED = "truncated"  # * half of what Content-Length promised (or size= bytes), then closed
    LENGTH_SHORT = "length_short"  # * Content-Length promises half, all of it comes
    LENGTH_TWICE = "length_twice"  # * two that differ
    LENGTH_REPEATED = "length_repeated"  # * two that agree
    LENGTH_NEGATIVE = "length_negative"
    LENGTH_PLUS = "length_plus"
    LENGTH_WORD = "length_word"
    LENGTH_EMPTY = "length_empty"
    LENGTH_HUGE = "length_huge"  # 10^18
    LENGTH_OVERFLOW = "length_overflow"  # * 2^64 more than it is
    LENGTH_AND_CHUNKED = "length_and_chunked"  # * both, the body chunked
    CLOSE_DELIMITED = "close_delimited"  # * no length: the end of the connection ends it
    TRUNCATED_CLOSE = "truncated_close"  # * the same, of half of the page (or size= bytes)
    MORE_BYTES = "more_bytes"  # * the page, and more bytes behind it
    TWO_RESPONSES = "two_responses"  # * the page, and behind it a picture that nobody asked for
    LATE_RESPONSE = "late_response"  # * the same, seconds= later
    # Chunks
    CHUNKED = "chunked"  # * chunked, correct
    TINY_CHUNKS = "tiny_chunks"  # * chunked, correct, each byte one of its own
    CHUNK_EXTENSIONS = "chunk_extensions"  # * chunked, correct, with an extension and a trailer
    TRUNCATED_CHUNKED = "truncated_chunked"  # * chunked, closed before the last chunk
    TRUNCATED_CHUNK = "truncated_chunk"  # * closed in the middle of one (or after size= bytes of it)
    CHUNK_SIZE_WORD = "chunk_size_word"
    CHUNK_SIZE_NEGATIVE = "chunk_size_negative"
    CHUNK_SIZE_HUGE = "chunk_size_huge"  # 2^63 - 1
    CHUNK_SIZE_OVERFLOW = "chunk_size_overflow"  # * 2^64 more than it is
    CHUNK_TOO_LONG = "chunk_too_long"  # more bytes than its size
    ENDLESS_EXTENSION = "endless_extension"  # of a chunk
    ENDLESS_TRAILERS = "endless_trailers"
    ENDLESS_TINY_CHUNKS = "endless_tiny_chunks"
    TWICE_CHUNKED = "twice_chunked"  # * Transfer-Encoding: chunked, chunked
    TRANSFER_GZIP = "transfer_gzip"  # * Transfer-Encoding: gzip
    ENDLESS = "endless"  # chunked, for as long as the client listens
    BIG = "big"  # Content-Length size=, sent for as long as the client listens
    # The body's packing
    GZIP = "gzip"  # * Content-Encoding: gzip, correct
    DEFLATE = "deflate"  # * correct: zlib
    DEFLATE_BARE = "deflate_bare"  # * without zlib's frame, as some servers send it
    GZIP_TWICE = "gzip_twice"  # *
    GZIP_SIX_TIMES = "gzip_six_times"  # *
    GZIP_INSIDE = "gzip_inside"  # * packed twice, called gzip once
    GZIP_CUT = "gzip_cut"  # * its last bytes are missing
    GZIP_WRONG_SUM = "gzip_wrong_sum"  # * its checksum is not that of the page
    GZIP_AND_MORE = "gzip_and_more"  # * bytes behind its end
    GZIP_NOT = "gzip_not"  # * the page as it is, called gzip
    GZIP_EMPTY = "gzip_empty"  # * of no bytes
    BROTLI = "brotli"  # * called so
    ENCODING_UNKNOWN = "encoding_unknown"  # *
    BOMB_GZIP = "bomb_gzip"  # gzip that unpacks to size= bytes of zeros
    BOMB_DEFLATE = "bomb_deflate"  # the same in zlib
    BOMB_DEFLATE_BARE = "bomb_deflate_bare"  # the same without zlib's frame
    BOMB_ZSTD = "bomb_zstd"  # 128 KiB of zeros in 4 bytes, size= in all
    EMPTY_200 = "empty_200"  # 200, no bytes
    # The body's content
    HTML_200 = "html_200"  # an HTML page that says all is well
    HTML_AS_JPEG = "html_as_jpeg"  # the same, called image/jpeg
    META_REFRESH = "meta_refresh"  # HTML that sends browsers to to=
    JSON_200 = "json_200"  # an error, says the JSON
    XML_200 = "xml_200"  # the same in XML
    SVG_200 = "svg_200"
    WRONG_TYPE = "wrong_type"  # * the page, called content_type= (text/plain)
    # Redirects
    REDIRECT = "redirect"  # to to=, with status= (302)
    REDIRECT_LOOP = "redirect_loop"  # to itself
    REDIRECT_CHAIN = "redirect_chain"  # * hops= times to itself, then the page
    REDIRECT_ENDLESS = "redirect_endless"  # to another path each time, below a body without end
    REDIRECT_NO_LOCATION = "redirect_no_location"
    REDIRECT_TO_FILE = "redirect_to_file"  # to file:///etc/passwd


class PortFault(StrEnum):
    """What a port of a host does instead of speaking HTTP, or TLS as it should."""

    CLOSED = "closed"  # nobody listens
    SILENT = "silent"  # accepts, reads, and says nothing
    HANGS_UP = "hangs_up"  # accepts and closes
    RESETS = "resets"  # accepts and resets
    SPEAKS_FIRST = "speaks_first"  # as a mail server does
    # Of port 443
    PLAIN = "plain"  # HTTP
    ALERT = "alert"  # refuses the handshake
    CUT_HANDSHAKE = "cut_handshake"  # closed in the middle of it
    TLS_1_0 = "tls_1_0"  # knows no newer one
    TLS_1_1 = "tls_1_1"
    EXPIRED = "expired"
    WRONG_NAME = "wrong_name"
    SELF_SIGNED = "self_signed"
    UNKNOWN_AUTHORITY = "unknown_authority"


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
    content_type: str = "text/plain"


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
        self._ports: dict[tuple[str, int], str] = {}  # those that have a fault, and where they are
        self._log: list[Request] = []
        self._in_progress: dict[str, set[asyncio.StreamWriter]] = {}
        self._peak: Counter[str] = Counter()
        self._failures: list[Exception] = []  # of this file, not of a client: raised on the way out
        self._connections = 0
        # One a connection; the loop holds its tasks but weakly.
        self._tasks: set[asyncio.Task[None]] = set()
        self._names: dict[str, ssl.SSLContext] = {}  # a certificate for each host name asked for
        self._listeners: list[socket.socket] = []

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

    def port_fault(self, host: str, fault: PortFault, *, port: int = 443) -> None:
        """Give this port of a host to a server that behaves so, for good. Read `connect_to` afterwards."""
        listener = _listen() if fault is not PortFault.CLOSED else _bind()
        with self._lock:
            self._ports[host.lower(), port] = _address(listener)
            self._listeners.append(listener)
        if fault is not PortFault.CLOSED:
            context, act = self._bad_tls(host.lower(), fault), PORT_BEHAVIOUR.get(fault)
            self._loop.call_soon_threadsafe(
                self._loop.add_reader, listener, self._accept, listener, context, act
            )

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
        with self._lock:
            ports = {f"{host}:{port}": address for (host, port), address in self._ports.items()}
        return {"*:80": self.http, "*:443": self.https} | ports

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
        """The most requests that this host had in progress at one time, for clients that were still there."""
        with self._lock:
            return self._peak[host.lower()]

    @property
    def open_connections(self) -> int:
        return len(self._tasks)

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
        plain, secure = self._listeners = [_listen(), _listen()]
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
        self._loop.add_reader(plain, self._accept, plain, None, None)
        self._loop.add_reader(secure, self._accept, secure, self._context("localhost"), None)
        running.set()
        await self._stop.wait()
        for listener in self._listeners:
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

    def _bad_tls(self, name: str, fault: PortFault) -> ssl.SSLContext | None:
        """What this port offers as TLS; None where it does not get so far."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        match fault:
            case PortFault.EXPIRED:
                past = datetime.datetime(2020, 1, 1, tzinfo=datetime.UTC)
                until = past + datetime.timedelta(days=90)
                self._ca.issue_cert(name, not_before=past, not_after=until).configure_cert(context)
            case PortFault.WRONG_NAME:
                self._ca.issue_cert("another.example").configure_cert(context)
            case PortFault.UNKNOWN_AUTHORITY:
                trustme.CA().issue_cert(name).configure_cert(context)
            case PortFault.SELF_SIGNED:
                own = trustme.CA()
                with (Path(self._folder.name) / "own.pem").open("wb") as file:
                    file.write(own.private_key_pem.bytes() + own.cert_pem.bytes())
                context.load_cert_chain(file.name)
            case _:
                return None
        return context

    # One connection

    def _accept(self, listener: socket.socket, context: ssl.SSLContext | None, act: "PortAct | None") -> None:
        try:
            sock, _ = listener.accept()
        except (BlockingIOError, ConnectionError):  # gone before we looked
            return
        sock.setblocking(False)
        self._connections += 1
        task = self._loop.create_task(self._connection(sock, context, act, self._connections))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _connection(
        self, sock: socket.socket, context: ssl.SSLContext | None, act: "PortAct | None", number: int
    ) -> None:
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
            if act:
                await act(reader, writer)
            more = act is None
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
            in_progress = self._in_progress.setdefault(request.host, set())
            in_progress.add(writer)
            if len(in_progress) > self._peak[request.host]:
                self._peak[request.host] = max(self._peak[request.host], sum(map(_is_there, in_progress)))
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
                self._in_progress[request.host].discard(writer)

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


def _is_there(writer: asyncio.StreamWriter) -> bool:
    """Has the client not closed its side? One that was killed has, though nobody has read it yet."""
    if writer.is_closing():
        return False
    info: bytes = writer.get_extra_info("socket").getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)
    established = 1
    return info[0] == established


def _listen() -> socket.socket:
    listener = socket.create_server(("127.0.0.1", 0), backlog=1024)
    listener.setblocking(False)
    return listener


def _bind() -> socket.socket:
    """A port that is ours, and where nobody listens."""
    taken = socket.socket()
    taken.bind(("127.0.0.1", 0))
    return taken


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

    @property
    def part(self) -> bytes:
        """Of the page, as long as was ordered; else half of it."""
        body = self.page.body
        return body[: len(body) // 2 if self.how.size is None else self.how.size]

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
        self.hang_up()
        reset_connection(self._writer)

    def hang_up(self) -> None:
        """Close the connection once this answer is sent."""
        self.keep_alive = False


def reset_connection(writer: asyncio.StreamWriter) -> None:
    sock = writer.get_extra_info("socket")
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


def _html(title: str) -> bytes:
    return f"<!doctype html>\n<title>{title}</title>\n<h1>{title}</h1>\n<p>No picture here.</p>\n".encode()


# The faults, in the order of the enum

Act = Callable[[Exchange], Awaitable[None]]
OK = b"HTTP/1.1 200 OK\r\nContent-Type: image/jpeg\r\n"


def always(status: int) -> Act:
    async def answer(exchange: Exchange) -> None:
        wait = exchange.how.retry_after
        await exchange.status(status, *([("Retry-After", str(wait))] if wait is not None else []))

    return answer


def _status(exchange: Exchange) -> int:
    assert exchange.how.status is not None, "this fault needs status="
    return exchange.how.status


async def any_status(exchange: Exchange) -> None:
    await always(_status(exchange))(exchange)


async def status_alone(exchange: Exchange) -> None:
    await exchange.head(_status(exchange))


async def status_with_page(exchange: Exchange) -> None:
    await exchange.whole(_status(exchange), exchange.page.body, exchange.page.content_type)


async def too_many(exchange: Exchange) -> None:
    wait = exchange.how.retry_after
    await exchange.status(HTTPStatus.TOO_MANY_REQUESTS, ("Retry-After", str(1 if wait is None else wait)))


# Time


async def slow(exchange: Exchange) -> None:
    await asyncio.sleep(exchange.how.seconds)
    await exchange.page_whole()


async def head_drip(exchange: Exchange) -> None:
    body = exchange.page.body
    for byte in OK + b"Content-Length: %d\r\n\r\n" % len(body):
        await asyncio.sleep(exchange.how.interval)
        await exchange.write(bytes([byte]))
    await exchange.write(body)


async def head_stall(exchange: Exchange) -> None:
    await exchange.write(OK[:-9])
    await hang(exchange)


async def drip(exchange: Exchange) -> None:
    body = exchange.page.body
    await exchange.head(200, ("Content-Type", exchange.page.content_type), ("Content-Length", str(len(body))))
    for at in range(len(body)):
        await asyncio.sleep(exchange.how.interval)
        await exchange.write(body[at : at + 1])


async def stall(exchange: Exchange) -> None:
    await truncated(exchange)
    await hang(exchange)


async def hang(exchange: Exchange) -> None:
    exchange.hang_up()
    await exchange.client_leaves()


# The connection


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


# The protocol and the head


def says(said: bytes, *, with_page: bool = True) -> Act:
    """These bytes as they are, and behind them the page, if there is one; then the end."""

    async def answer(exchange: Exchange) -> None:
        exchange.hang_up()
        await exchange.write(said + (exchange.page_or_nothing.body if with_page else b""))

    return answer


def has(fields: bytes) -> Act:
    """The page below these header fields, as they are, and its length."""

    async def answer(exchange: Exchange) -> None:
        exchange.hang_up()
        body = exchange.page_or_nothing.body
        await exchange.write(OK + fields + b"\r\nContent-Length: %d\r\n\r\n" % len(body) + body)

    return answer


def endless_bytes(beginning: bytes, then: bytes) -> Act:
    """A beginning, and then the same again and again for as long as the client listens."""

    async def answer(exchange: Exchange) -> None:
        exchange.hang_up()
        await exchange.write(beginning)
        block = then * (BLOCK // len(then))
        while True:  # ends when the client leaves: writing then raises
            await exchange.write(block)

    return answer


async def provisional(exchange: Exchange) -> None:
    for status in (100, 102, 103):
        await exchange.write(b"HTTP/1.1 %d \r\nLink: </a.css>\r\n\r\n" % status)
    await exchange.page_whole()


async def slow_provisional(exchange: Exchange) -> None:
    exchange.hang_up()
    while True:
        await exchange.write(b"HTTP/1.1 102 Processing\r\n\r\n")
        await asyncio.sleep(exchange.how.interval)


async def huge_header(exchange: Exchange) -> None:
    exchange.hang_up()
    page, size = exchange.page_or_nothing, exchange.how.size or 1_000_000
    await exchange.whole(200, page.body, page.content_type, ("X-Padding", "x" * size))


async def many_fields(exchange: Exchange) -> None:
    exchange.hang_up()
    page, count = exchange.page_or_nothing, exchange.how.size or 10_000
    await exchange.whole(200, page.body, page.content_type, *[("X", "y")] * count)


async def large_head(exchange: Exchange) -> None:
    exchange.hang_up()
    page, size = exchange.page_or_nothing, exchange.how.size or 100_000
    await exchange.whole(200, page.body, page.content_type, *[("X", "x" * (size // 100 - 5))] * 100)


async def lf_alone(exchange: Exchange) -> None:
    exchange.hang_up()
    body = exchange.page.body
    await exchange.write(OK.replace(b"\r", b"") + b"Content-Length: %d\n\n" % len(body) + body)


# The body's length


async def truncated(exchange: Exchange) -> None:
    exchange.hang_up()
    body = exchange.page.body
    await exchange.head(200, ("Content-Type", exchange.page.content_type), ("Content-Length", str(len(body))))
    await exchange.write(exchange.part)


def has_lengths(*lengths: str) -> Act:
    """The page below one or more Content-Length, in which {size} is what it would be, {half} a half of it."""

    async def answer(exchange: Exchange) -> None:
        body = exchange.page_or_nothing.body
        known = {"size": len(body), "half": len(body) // 2, "much": len(body) + 2**64}
        fields = "".join(f"Content-Length: {length.format(**known)}\r\n" for length in lengths)
        await exchange.write(OK + fields.encode() + b"\r\n" + body)
        exchange.hang_up()

    return answer


async def length_and_chunked(exchange: Exchange) -> None:
    exchange.hang_up()
    body = exchange.page.body
    fields = b"Content-Length: %d\r\nTransfer-Encoding: chunked\r\n\r\n" % len(body)
    await exchange.write(OK + fields + b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body))


async def close_delimited(exchange: Exchange) -> None:
    exchange.hang_up()
    await exchange.head(200, ("Content-Type", exchange.page.content_type))
    await exchange.write(exchange.page.body)


async def truncated_close(exchange: Exchange) -> None:
    exchange.hang_up()
    await exchange.head(200, ("Content-Type", exchange.page.content_type))
    await exchange.write(exchange.part)


async def more_bytes(exchange: Exchange) -> None:
    body = exchange.page.body
    await exchange.write(OK + b"Content-Length: %d\r\n\r\n" % len(body) + body + b"\r\nand more")


async def two_responses(exchange: Exchange) -> None:
    await exchange.write(_response(exchange.page.body) + _response(NOT_ASKED_FOR))


async def late_response(exchange: Exchange) -> None:
    await exchange.write(_response(exchange.page.body))
    await asyncio.sleep(exchange.how.seconds)
    await exchange.write(_response(NOT_ASKED_FOR))


NOT_ASKED_FOR = b"GIF89a, or so it seems"


def _response(body: bytes) -> bytes:
    return OK + b"Content-Length: %d\r\n\r\n" % len(body) + body


# Chunks

CHUNKED = OK + b"Transfer-Encoding: chunked\r\n\r\n"


async def chunked(exchange: Exchange) -> None:
    await send_chunks(exchange)
    await exchange.chunk(b"")


async def truncated_chunked(exchange: Exchange) -> None:
    exchange.hang_up()
    await send_chunks(exchange)


async def send_chunks(exchange: Exchange) -> None:
    """The whole page in a few chunks, without the one that ends it."""
    body, page = exchange.page.body, exchange.page
    await exchange.head(200, ("Content-Type", page.content_type), ("Transfer-Encoding", "chunked"))
    step = max(1, len(body) // 4)
    for at in range(0, len(body), step):
        await exchange.chunk(body[at : at + step])


async def tiny_chunks(exchange: Exchange) -> None:
    body = exchange.page.body
    chunks = b"".join(b"1\r\n%c\r\n" % byte for byte in body)
    await exchange.write(CHUNKED + chunks + b"0\r\n\r\n")


async def chunk_extensions(exchange: Exchange) -> None:
    body = exchange.page.body
    chunk = b'%x;name=value;other="quoted"\r\n%b\r\n' % (len(body), body)
    await exchange.write(CHUNKED + chunk + b"0;last\r\nX-Trailer: 1\r\n\r\n")


async def truncated_chunk(exchange: Exchange) -> None:
    exchange.hang_up()
    await exchange.write(CHUNKED + b"%x\r\n" % len(exchange.page.body) + exchange.part)


def chunk_size(said: bytes) -> Act:
    """A chunk of this size, as it is, that holds the page."""
    return says(CHUNKED + said + b"\r\n")


async def chunk_size_overflow(exchange: Exchange) -> None:
    exchange.hang_up()
    body = exchange.page.body
    await exchange.write(CHUNKED + b"%x\r\n%b\r\n0\r\n\r\n" % (len(body) + 2**64, body))


async def twice_chunked(exchange: Exchange) -> None:
    exchange.hang_up()
    body = exchange.page.body
    twice = CHUNKED.replace(b": chunked", b": chunked, chunked")
    await exchange.write(twice + b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body))


async def transfer_gzip(exchange: Exchange) -> None:
    exchange.hang_up()
    body = gzip.compress(exchange.page.body, mtime=0)
    await exchange.write(OK + b"Transfer-Encoding: gzip\r\n\r\n" + body)


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


# The body's packing


def packed(encoding: str, pack: Callable[[bytes], bytes]) -> Act:
    """The page, packed and called so."""

    async def answer(exchange: Exchange) -> None:
        page = exchange.page
        await exchange.whole(200, pack(page.body), page.content_type, ("Content-Encoding", encoding))

    return answer


def gzipped(body: bytes, times: int = 1) -> bytes:
    for _ in range(times):
        body = gzip.compress(body, mtime=0)
    return body


def bomb(encoding: str, wbits: int) -> Act:
    async def answer(exchange: Exchange) -> None:
        size, step = exchange.how.size or 1_000_000_000, 1 << 22
        await exchange.head(
            200,
            ("Content-Type", "image/jpeg"),
            ("Content-Encoding", encoding),
            ("Transfer-Encoding", "chunked"),
        )
        packer = zlib.compressobj(level=1, wbits=wbits)
        for at in range(0, size, step):  # packed as it is sent: whoever leaves early costs little
            if packed := packer.compress(bytes(min(step, size - at))):
                await exchange.chunk(packed)
        await exchange.chunk(packer.flush())
        await exchange.chunk(b"")

    return answer


async def bomb_zstd(exchange: Exchange) -> None:
    """One frame, without its size, of a window of 128 KiB; its blocks are runs of zero bytes."""
    run = 1 << 17
    blocks = max(1, (exchange.how.size or 1_000_000_000) // run)

    def block(last: int) -> bytes:
        return (run << 3 | 1 << 1 | last).to_bytes(3, "little") + b"\0"

    body = b"\x28\xb5\x2f\xfd\x00\x38" + block(0) * (blocks - 1) + block(1)
    await exchange.whole(200, body, "image/jpeg", ("Content-Encoding", "zstd"))


# The body's content


def content(body: bytes, content_type: str) -> Act:
    async def answer(exchange: Exchange) -> None:
        await exchange.whole(200, body, content_type)

    return answer


async def meta_refresh(exchange: Exchange) -> None:
    page = f'<!doctype html>\n<meta http-equiv="refresh" content="0; url={exchange.how.to}">\n'
    await exchange.whole(200, page.encode(), "text/html; charset=utf-8")


async def wrong_type(exchange: Exchange) -> None:
    await exchange.whole(200, exchange.page.body, exchange.how.content_type)


# Redirects


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


async def redirect_endless(exchange: Exchange) -> None:
    to = f"{exchange.request.path}?{exchange.request.connection}-{exchange.request.at}"
    exchange.hang_up()
    await exchange.head(302, ("Location", to), ("Content-Type", "image/jpeg"))
    while True:
        await exchange.write(bytes(BLOCK))


async def redirect_no_location(exchange: Exchange) -> None:
    await exchange.redirect(None, exchange.how.status or 302)


async def redirect_to_file(exchange: Exchange) -> None:
    await exchange.redirect("file:///etc/passwd", exchange.how.status or 302)


BEHAVIOUR: dict[Fault, Act] = {
    Fault.STATUS: any_status,
    Fault.STATUS_ALONE: status_alone,
    Fault.STATUS_WITH_PAGE: status_with_page,
    Fault.NOT_FOUND: always(404),
    Fault.GONE: always(410),
    Fault.FORBIDDEN: always(403),
    Fault.UNAUTHORIZED: always(401),
    Fault.LEGAL: always(451),
    Fault.TOO_MANY: too_many,
    Fault.SERVER_ERROR: always(500),
    Fault.UNAVAILABLE: always(503),
    Fault.SLOW: slow,
    Fault.HEAD_DRIP: head_drip,
    Fault.HEAD_STALL: head_stall,
    Fault.DRIP: drip,
    Fault.STALL: stall,
    Fault.HANG: hang,
    Fault.RESET: reset,
    Fault.RESET_MID_BODY: reset_mid_body,
    Fault.NO_BYTES: no_bytes,
    Fault.HEAD_CUT: says(OK[:-9], with_page=False),
    Fault.BAD_STATUS_LINE: says(b"\x00\xffthis is not HTTP\r\n\r\n", with_page=False),
    Fault.ENDLESS_STATUS_LINE: endless_bytes(b"HTTP/1.1 200 ", b"OK"),
    Fault.HTTP_09: says(b""),
    Fault.HTTP_10: says(OK.replace(b"/1.1", b"/1.0") + b"\r\n"),
    # SETTINGS: of 12 bytes, without flags, on no stream; what it sets matters little.
    Fault.HTTP_2: says(
        b"\0\0\x0c\x04\0\0\0\0\0" + b"\0\x03\0\0\0\x64" + b"\0\x04\x01\0\0\0", with_page=False
    ),
    Fault.SWITCHING: says(b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: h2c\r\n\r\n"),
    Fault.PROVISIONAL: provisional,
    Fault.ENDLESS_PROVISIONAL: endless_bytes(b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
    Fault.SLOW_PROVISIONAL: slow_provisional,
    Fault.HUGE_HEADER: huge_header,
    Fault.MANY_FIELDS: many_fields,
    Fault.LARGE_HEAD: large_head,
    Fault.ENDLESS_FIELD: endless_bytes(OK + b"X: ", b"x"),
    Fault.ENDLESS_HEAD: endless_bytes(OK, b"X: y\r\n"),
    Fault.NUL_IN_FIELD: has(b"ETag: a\0b"),
    Fault.ESC_IN_FIELD: has(b"ETag: \x1b]0;title\x07\x1b[31mred"),
    Fault.CR_IN_FIELD: has(b"ETag: a\rX-Robots-Tag: all"),
    Fault.FOLDED_FIELD: has(b"ETag: a\r\n b"),
    Fault.SPACE_BEFORE_COLON: has(b"ETag : a"),
    Fault.NO_COLON: has(b"ETag"),
    Fault.NO_NAME: has(b": a"),
    Fault.LF_ALONE: lf_alone,
    Fault.TRUNCATED: truncated,
    Fault.LENGTH_SHORT: has_lengths("{half}"),
    Fault.LENGTH_TWICE: has_lengths("{size}", "{half}"),
    Fault.LENGTH_REPEATED: has_lengths("{size}", "{size}"),
    Fault.LENGTH_NEGATIVE: has_lengths("-{size}"),
    Fault.LENGTH_PLUS: has_lengths("+{size}"),
    Fault.LENGTH_WORD: has_lengths("many"),
    Fault.LENGTH_EMPTY: has_lengths(""),
    Fault.LENGTH_HUGE: has_lengths("1000000000000000000"),
    Fault.LENGTH_OVERFLOW: has_lengths("{much}"),
    Fault.LENGTH_AND_CHUNKED: length_and_chunked,
    Fault.CLOSE_DELIMITED: close_delimited,
    Fault.TRUNCATED_CLOSE: truncated_close,
    Fault.MORE_BYTES: more_bytes,
    Fault.TWO_RESPONSES: two_responses,
    Fault.LATE_RESPONSE: late_response,
    Fault.CHUNKED: chunked,
    Fault.TINY_CHUNKS: tiny_chunks,
    Fault.CHUNK_EXTENSIONS: chunk_extensions,
    Fault.TRUNCATED_CHUNKED: truncated_chunked,
    Fault.TRUNCATED_CHUNK: truncated_chunk,
    Fault.CHUNK_SIZE_WORD: chunk_size(b"many"),
    Fault.CHUNK_SIZE_NEGATIVE: chunk_size(b"-1"),
    Fault.CHUNK_SIZE_HUGE: chunk_size(b"7fffffffffffffff"),
    Fault.CHUNK_SIZE_OVERFLOW: chunk_size_overflow,
    Fault.CHUNK_TOO_LONG: chunk_size(b"3"),
    Fault.ENDLESS_EXTENSION: endless_bytes(CHUNKED + b"5;", b"x"),
    Fault.ENDLESS_TRAILERS: endless_bytes(CHUNKED + b"1\r\nx\r\n0\r\n", b"X: y\r\n"),
    Fault.ENDLESS_TINY_CHUNKS: endless_bytes(CHUNKED, b"1\r\nx\r\n"),
    Fault.TWICE_CHUNKED: twice_chunked,
    Fault.TRANSFER_GZIP: transfer_gzip,
    Fault.ENDLESS: endless,
    Fault.BIG: big,
    Fault.GZIP: packed("gzip", gzipped),
    Fault.DEFLATE: packed("deflate", zlib.compress),
    Fault.DEFLATE_BARE: packed("deflate", lambda body: zlib.compress(body, wbits=-zlib.MAX_WBITS)),
    Fault.GZIP_TWICE: packed("gzip, gzip", lambda body: gzipped(body, 2)),
    Fault.GZIP_SIX_TIMES: packed(", ".join(["gzip"] * 6), lambda body: gzipped(body, 6)),
    Fault.GZIP_INSIDE: packed("gzip", lambda body: gzipped(body, 2)),
    Fault.GZIP_CUT: packed("gzip", lambda body: gzipped(body)[:-9]),
    Fault.GZIP_WRONG_SUM: packed("gzip", lambda body: gzipped(body)[:-8] + gzipped(body + b"x")[-8:]),
    Fault.GZIP_AND_MORE: packed("gzip", lambda body: gzipped(body) + b"and more"),
    Fault.GZIP_NOT: packed("gzip", lambda body: body),
    Fault.GZIP_EMPTY: packed("gzip", lambda _: gzipped(b"")),
    Fault.BROTLI: packed("br", lambda body: body),
    Fault.ENCODING_UNKNOWN: packed("x-own", lambda body: body),
    Fault.BOMB_GZIP: bomb("gzip", 16 + zlib.MAX_WBITS),
    Fault.BOMB_DEFLATE: bomb("deflate", zlib.MAX_WBITS),
    Fault.BOMB_DEFLATE_BARE: bomb("deflate", -zlib.MAX_WBITS),
    Fault.BOMB_ZSTD: bomb_zstd,
    Fault.EMPTY_200: content(b"", "image/jpeg"),
    Fault.HTML_200: content(_html("Welcome"), "text/html; charset=utf-8"),
    Fault.HTML_AS_JPEG: content(_html("Welcome"), "image/jpeg"),
    Fault.META_REFRESH: meta_refresh,
    Fault.JSON_200: content(b'{"error": "no such picture"}', "application/json"),
    Fault.XML_200: content(b'<?xml version="1.0"?><Error><Code>NoSuchKey</Code></Error>', "application/xml"),
    Fault.SVG_200: content(
        b'<svg xmlns="http://www.w3.org/2000/svg"><path d="M0 0h9"/></svg>', "image/svg+xml"
    ),
    Fault.WRONG_TYPE: wrong_type,
    Fault.REDIRECT: redirect,
    Fault.REDIRECT_LOOP: redirect_loop,
    Fault.REDIRECT_CHAIN: redirect_chain,
    Fault.REDIRECT_ENDLESS: redirect_endless,
    Fault.REDIRECT_NO_LOCATION: redirect_no_location,
    Fault.REDIRECT_TO_FILE: redirect_to_file,
}


# Ports. What differs only in its certificate, or its versions of TLS, goes on to answer requests

PortAct = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


async def silent_port(reader: asyncio.StreamReader, _: asyncio.StreamWriter) -> None:
    while await reader.read(BLOCK):
        pass


async def hangs_up(_reader: asyncio.StreamReader, _writer: asyncio.StreamWriter) -> None:
    pass


async def resets(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    reset_connection(writer)


async def speaks_first(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(b"220 mail.example ESMTP\r\n")
    await silent_port(reader, writer)


def answers(said: bytes) -> PortAct:
    """To whatever is said first; then the end."""

    async def act(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(BLOCK)
        writer.write(said)

    return act


def agrees_on(version: bytes) -> PortAct:
    """A ServerHello of this version, as of a server that knows no newer one."""
    hello = version + bytes(32) + b"\0" + b"\0\x2f" + b"\0"  # random, no session, AES128-SHA, no packing
    hello = b"\x02" + len(hello).to_bytes(3) + hello
    return answers(b"\x16" + version + len(hello).to_bytes(2) + hello)


PORT_BEHAVIOUR: dict[PortFault, PortAct] = {
    PortFault.SILENT: silent_port,
    PortFault.HANGS_UP: hangs_up,
    PortFault.RESETS: resets,
    PortFault.SPEAKS_FIRST: speaks_first,
    PortFault.PLAIN: answers(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n"),
    PortFault.ALERT: answers(b"\x15\x03\x03\0\x02\x02\x28"),  # fatal, handshake_failure
    PortFault.TLS_1_0: agrees_on(b"\x03\x01"),
    PortFault.TLS_1_1: agrees_on(b"\x03\x02"),
    PortFault.CUT_HANDSHAKE: answers(b"\x16\x03\x03\0\x7a\x02\0\0\x76\x03\x03" + bytes(20)),
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


async def stall_file(exchange: Exchange) -> None:
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


FILE_BEHAVIOUR: dict[FileFault, Act] = {
    FileFault.CUT: cut,
    FileFault.STALL: stall_file,
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
