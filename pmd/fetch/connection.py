"""One HTTP connection that keeps a server within bounds while it speaks, and knows how far things are.

    name -> address -> TCP -> TLS -> head, at most HEAD_BYTES -> body -> idle, or closed
      `stage` says which of these it is, so that a failure can name what it waited for

Built on aiohttp's parser, which bounds a field and their number but not what they come to, takes provisional
answers (1xx) and the extensions of chunks without end, and hands whatever an idle connection received to the
next request.
"""

import asyncio
import functools
import re
import ssl
from collections.abc import Sequence
from contextvars import ContextVar
from typing import Any

import aiohttp
from aiohttp.abc import ResolveResult
from aiohttp.client_proto import ResponseHandler
from aiohttp.http_exceptions import BadHttpMessage
from aiohttp.http_parser import RawResponseMessage
from aiohttp.streams import StreamReader

from pmd.fetch.address import AddressPolicy, GuardedConnector

# Of what comes before a body, provisional answers counted. Within a body, as many bytes may come that are not
# of it (the sizes and extensions of chunks, trailers), and beyond these no more than are of it.
HEAD_BYTES = 65_536
HEAD_FIELDS = 128

_END_OF_HEAD = re.compile(rb"\r?\n\r?\n")


class Progress:
    """How far one request has come. Whoever asks puts one into `progress`, for the connection to keep up."""

    def __init__(self) -> None:
        self.stage = "looking up the name"
        self.is_reused = False  # the connection: it has served before

    @property
    def connected(self) -> bool:
        """Has the server had the request, or should have?"""
        return self.stage not in ("looking up the name", "connecting", "in the TLS handshake")


# A context variable, because aiohttp hands nothing from a request down to its connection.
progress: ContextVar[Progress] = ContextVar("progress")


def _reach(stage: str) -> None:
    if found := progress.get(None):
        found.stage = stage


class BoundedConnector(GuardedConnector):
    """Connects where the policy allows; what it opens are `Connection`s."""

    def __init__(self, policy: AddressPolicy, *, tls: ssl.SSLContext, lookups: int) -> None:
        super().__init__(policy, tls=tls, lookups=lookups)
        self._factory = functools.partial(Connection, loop=self._loop)

    async def _resolve_host(
        self, host: str, port: int, traces: Sequence[aiohttp.tracing.Trace] | None = None
    ) -> list[ResolveResult]:
        results = await super()._resolve_host(host, port, traces)
        _reach("connecting")
        return results


class Connection(ResponseHandler):
    """aiohttp's connection, for servers that break their word."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(loop)
        _reach("in the TLS handshake")  # TCP has connected; without TLS the next stage follows at once
        self._answered = True  # there is no request yet
        self._has_served = False
        self._received = 0  # bytes of the head, then of what follows it
        self._last = b""  # the last bytes of an unfinished head

    def set_response_params(self, **params: Any) -> None:
        """A request is about to be sent."""
        _reach("waiting for an answer")
        if found := progress.get(None):
            found.is_reused = self._has_served
        self._has_served = True
        self._answered, self._received, self._last = False, 0, b""
        super().set_response_params(**params)

    def data_received(self, data: bytes) -> None:
        """Feed the parser head by head, then what follows: bytes behind a complete response that are no HTTP
        would otherwise take the response along with them, if they come together.
        """
        if not data or self._parser is None:  # it goes on with what it has; it will get what it has
            super().data_received(data)
            return
        while data and not self._answered and self.exception() is None:
            end = _END_OF_HEAD.search(self._last + data)
            length = end.end() - len(self._last) if end else len(data)
            head, data = data[:length], data[length:]
            self._last = b"" if end else (self._last + head)[-3:]
            if self._bounded(length, HEAD_BYTES):
                super().data_received(head)
        if data and self.exception() is None:
            self._body_received(data)

    def _body_received(self, data: bytes) -> None:
        body = self._payload
        if body is None or body.is_eof():
            # Nobody asked: the next request must not take it for its answer.
            self.force_close()
            self.abort()
            return
        super().data_received(data)
        if not body.is_eof():
            self._bounded(len(data), HEAD_BYTES + 2 * body.total_bytes)

    def _bounded(self, more: int, limit: int) -> bool:
        """Are that many more bytes still in bounds? If not, the connection is at its end."""
        self._received += more
        if self._received <= limit:
            return True
        self.set_exception(BadHttpMessage(f"more than {HEAD_BYTES} bytes that are no body"))
        if self.transport is not None:
            self.transport.abort()  # not our own abort, which forgets the exception
        return False

    def feed_data(self, data: tuple[RawResponseMessage, StreamReader], size: int = 0) -> None:
        """A response has begun, as the parser says."""
        status = data[0].code
        if status < 200 and status != 101:
            return  # provisional; nobody waits for it
        self._answered, self._received = True, 0
        super().feed_data(data, size)

    def close(self) -> None:
        """At once: leaving TLS by the book waits for the server, and the worst never answer."""
        self.abort()

    def set_exception(self, exc: BaseException, exc_cause: BaseException | None = None) -> None:
        """Also for whoever reads the body: of broken chunks aiohttp tells only who waits for a header, and a
        reader would wait until the deadline.
        """
        super().set_exception(exc, *([] if exc_cause is None else [exc_cause]))
        body = self._payload
        if body is not None and not body.is_eof() and body.exception() is None:
            body.set_exception(exc)
