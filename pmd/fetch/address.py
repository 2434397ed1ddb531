"""Which addresses may be connected to, and the connector that keeps to it.

    host, port of a URL --- named in connect_to? --yes--> what it names, for this host alone
                                   |no
                                   v
        look it up --> each answer public, port one of `ports`? --no--> BlockedAddress
            |                      |yes
            v                      v
      LookupFailed    a socket is opened, only to an address that was just decided on for this very connection

Rows and redirects are written by strangers; inside a data centre the addresses next door answer with secrets.
So the decision falls on the address itself, not on a name that may mean another one a moment later, and it
falls anew for each connection: of a row, of a redirect, of a retry.
"""

import asyncio
import contextlib
import errno
import functools
import ipaddress
import os
import queue
import socket
import ssl
import threading
import time
from collections.abc import Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Self

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult

from pmd.errors import BadRequest
from pmd.manifest import FetchSpec

# How long an answer holds, also a "no". What the name servers say of that, getaddrinfo does not tell.
KEPT_S = 60.0
KEPT_NAMES = 10_000
LOOKUP_S = 15.0  # of one name: enough for two name servers that are down, at 5 s each, and one that is not
STUCK_THREADS = 256  # at most, whose answers nobody waits for any more; until one ends, no more are started

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network


class BlockedAddress(RuntimeError):
    """An address that may not be connected to. No OSError: a connector takes one for a failed lookup."""


class LookupFailed(OSError):
    """A name that gave no address. `errno` is one of socket.EAI_*.

    `temporary`: nobody could say, so another time it may be found. Otherwise the name servers say that
    there is no such name, or none with an address.
    """

    @property
    def temporary(self) -> bool:
        return self.errno not in _SAID_NO


_SAID_NO = (socket.EAI_NONAME, socket.EAI_NODATA, socket.EAI_ADDRFAMILY)


def is_temporary(error: BaseException) -> bool:
    """Is this a lookup that nobody answered, as aiohttp or `addresses_of` raise it? Many of them at a
    time are an outage of ours, not the fault of the names. False for all that is no failed lookup.
    """
    if isinstance(error, aiohttp.ClientConnectorDNSError):
        error = error.os_error
    return isinstance(error, LookupFailed) and error.temporary


@dataclass(frozen=True)
class AddressPolicy:
    """What [fetch] says about addresses: connect_to, allow_private and ports, read."""

    # (host or "*", port or None for any) -> where it really is, as curl --connect-to.
    connect_to: Mapping[tuple[str, int | None], tuple[str, int]]
    allow_private: tuple[Network, ...]
    ports: tuple[int, ...]

    @classmethod
    def of(cls, spec: FetchSpec) -> Self:
        """Raises BadRequest where the spec is no policy."""
        mapped: dict[tuple[str, int | None], tuple[str, int]] = {}
        for key, value in spec.connect_to.items():
            (host, at), (address, port) = _host_and_port(key), _host_and_port(value)
            if not (host and address and port and address.isascii() and address.isprintable()):
                raise BadRequest(
                    f'[fetch] connect_to: {key!r} = {value!r} does not read "host" or "host:port" = '
                    '"address:port", such as "images.example" = "127.0.0.1:8099"'
                )
            mapped[host, at] = (address, port)
        try:
            networks = tuple(ipaddress.ip_network(network) for network in spec.allow_private)
        except ValueError as error:
            raise BadRequest(f"[fetch] allow_private: {error}; networks look like 10.0.0.0/8") from None
        if strange := [port for port in spec.ports if not 0 < port < 65_536]:
            raise BadRequest(f"[fetch] ports: {strange[0]} is no port; they go from 1 to 65535")
        return cls(mapped, networks, spec.ports)

    def mapped(self, host: str, port: int) -> tuple[str, int] | None:
        """The address and port that connect_to names for this host of a URL; the most specific key wins."""
        host = host.lower().rstrip(".")
        for key in ((host, port), (host, None), ("*", port), ("*", None)):
            if key in self.connect_to:
                return self.connect_to[key]
        return None

    def objection(self, address: str, port: int) -> str | None:
        """Why this address may not be connected to, in a few words; None where it may."""
        if "%" in address:  # what is public needs no interface named
            return "an address on one link"
        try:
            judged = _unwrapped(ipaddress.ip_address(address))
        except ValueError:
            return "not an address"
        if any(judged in network for network in self.allow_private):
            return None
        if port not in self.ports:
            return f"port {port}"
        return _not_public(judged)


def _host_and_port(text: str) -> tuple[str, int | None]:
    """Of "host", "host:port", "[::1]" or "[::1]:port"; an empty host where it is none of these."""
    if text.startswith("["):
        host, _, port = text[1:].partition("]")
        port = port.removeprefix(":")
    else:
        host, _, port = text.partition(":")
    if port and not (port.isdecimal() and 0 < int(port) < 65_536):
        return "", None
    return host.lower().rstrip("."), int(port) if port else None


# Every range set aside by RFC 6890 and its successors (the IANA special-purpose registries of October
# 2025), also those that are reachable but serve no images.
_SPECIAL = tuple(
    (ipaddress.ip_network(network), what)
    for network, what in (
        ("0.0.0.0/8", "this network"),
        ("10.0.0.0/8", "private"),
        ("100.64.0.0/10", "shared by a carrier"),
        ("127.0.0.0/8", "loopback"),
        ("168.63.129.16/32", "the host of a guest in Azure"),  # which tells guests secrets
        ("169.254.0.0/16", "link-local"),
        ("172.16.0.0/12", "private"),
        ("192.0.0.0/24", "protocol assignments"),
        ("192.0.2.0/24", "documentation"),
        ("192.31.196.0/24", "AS112"),
        ("192.52.193.0/24", "AMT"),
        ("192.88.99.0/24", "6to4 relays"),
        ("192.168.0.0/16", "private"),
        ("192.175.48.0/24", "AS112"),
        ("198.18.0.0/15", "benchmarks"),
        ("198.51.100.0/24", "documentation"),
        ("203.0.113.0/24", "documentation"),
        ("224.0.0.0/4", "multicast"),
        ("240.0.0.0/4", "reserved"),
        # Of 2000::/3; outside of it nothing is public. Teredo and 6to4 carry IPv4 addresses: refused whole,
        # as no server is reached that way any more.
        ("2001::/23", "protocol assignments, Teredo"),
        ("2001:db8::/32", "documentation"),
        ("2002::/16", "6to4"),
        ("2620:4f:8000::/48", "AS112"),
        ("3fff::/20", "documentation"),
    )
)
_GLOBAL_UNICAST = ipaddress.IPv6Network("2000::/3")
# Their last 32 bits are the IPv4 address that is reached: v4-mapped, and NAT64 (how IPv6-only networks see
# the IPv4 web). v4-compatible ::/96 and the local NAT64 64:ff9b:1::/48 lie outside 2000::/3: refused.
_CARRIES_IPV4 = (ipaddress.IPv6Network("::ffff:0:0/96"), ipaddress.IPv6Network("64:ff9b::/96"))
_ISATAP = 0x5EFE  # above an IPv4 address in the lower half, whatever network the upper half names


def _unwrapped(address: Address) -> Address:
    if isinstance(address, ipaddress.IPv6Address) and any(address in network for network in _CARRIES_IPV4):
        return ipaddress.IPv4Address(int(address) & 0xFFFF_FFFF)
    return address


def _not_public(address: Address) -> str | None:
    for network, what in _SPECIAL:
        if address in network:
            return what
    if isinstance(address, ipaddress.IPv6Address):
        if address not in _GLOBAL_UNICAST:
            return "not global unicast"
        if int(address) >> 32 & 0xFDFF_FFFF == _ISATAP:
            return "ISATAP"
    return None


# What the connection that is being made may be made to. A context variable, since between the decision and
# the socket lie tasks of others, which inherit it; each connection decides for itself before it opens one.
_decided: ContextVar[frozenset[tuple[str, int]]] = ContextVar("decided", default=frozenset())


class GuardedConnector(aiohttp.TCPConnector):
    """A connection pool that connects to what the policy allows.

    A pooled connection belongs to the host and port of a URL, and connect_to depends on nothing else: what
    was opened for a mapped host is never used for another. No limit of its own: the client counts.
    """

    def __init__(self, policy: AddressPolicy, *, tls: ssl.SSLContext, lookups: int) -> None:
        """lookups: how many names are looked up at a time."""
        super().__init__(
            ssl=tls,
            resolver=_Lookups(lookups),
            use_dns_cache=False,  # _Lookups keeps answers, one for all ports of a host
            limit=0,
            # Idle connections count as open files, and most hosts are asked once: keep them for their next
            # row, not for the one a minute later.
            keepalive_timeout=5,
            socket_factory=open_decided,
        )
        self._policy = policy

    async def addresses_of(self, host: str, port: int) -> tuple[str, ...]:
        """The addresses to one of which a connection to this host of a URL would go, often the first.

        Looked up now, or kept from a moment ago, and all of them checked; nothing is opened. For
        counting hosts that share an address: the connection that follows decides for itself, by the same
        answer as long as that is kept. Of a host that connect_to names, they are the mirror's. `host` is
        yarl's URL.raw_host. Raises BlockedAddress, LookupFailed.
        """
        return tuple(result["host"] for result in await self.resolved(host, port))

    async def _resolve_host(
        self, host: str, port: int, traces: Sequence[aiohttp.tracing.Trace] | None = None
    ) -> list[ResolveResult]:
        """The one step between a URL and its addresses that names and literal addresses both take; a resolver
        is not asked about the latter. Should aiohttp stop calling it, nothing is decided and nothing opens.
        """
        _decided.set(frozenset())
        results = await self.resolved(host, port, traces)
        _decided.set(frozenset((result["host"], result["port"]) for result in results))
        return results

    async def resolved(
        self, host: str, port: int, traces: Sequence[aiohttp.tracing.Trace] | None = None
    ) -> list[ResolveResult]:
        """The same with the ports, which connect_to may change."""
        mapped = self._policy.mapped(host, port)
        results = await super()._resolve_host(*(mapped or (host, port)), traces)
        for result in results if mapped is None else ():
            objection = self._policy.objection(result["host"], result["port"])
            if objection:  # to one answer of many is to all: such a name is a trick or a mistake
                raise BlockedAddress(f"{result['host']}: {objection}")
        return results


def open_decided(info: aiohttp.AddrInfoType) -> socket.socket:
    """The socket of a connection, if its address is one that was decided on. Raises BlockedAddress."""
    family, kind, protocol, _, address = info
    if address[:2] not in _decided.get():
        raise BlockedAddress("an address that nobody decided on")
    return socket.socket(family, kind, protocol)


# Names

_Found = tuple[tuple[socket.AddressFamily, str], ...]


class _Lookups(AbstractResolver):
    """getaddrinfo for many names: asked once for all who wait, kept for a while, in bounded time.

    getaddrinfo cannot be stopped, and holds its thread for minutes where name servers are silent. So
    after LOOKUP_S a thread is left to itself, and its place goes to the next name: dead names do not
    keep good ones waiting. The threads are daemons, for which no exit of ours waits.
    """

    def __init__(self, at_once: int) -> None:
        self._loop = asyncio.get_running_loop()
        self._places = asyncio.Semaphore(at_once)
        self._may_run = asyncio.Semaphore(at_once + STUCK_THREADS)
        self._names = queue.SimpleQueue[tuple[str, asyncio.Future[_Found]] | None]()
        self._threads = self._running = 0
        self._kept: dict[str, tuple[float, _Found | LookupFailed]] = {}  # until when; oldest first
        self._asked: dict[str, asyncio.Task[_Found]] = {}

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        """Raises LookupFailed; OSError where this machine is out of files."""
        return [
            ResolveResult(hostname=host, host=address, port=port, family=kind, proto=0, flags=0)
            for kind, address in await self._found(host.lower())
        ]

    async def _found(self, host: str) -> _Found:
        until, kept = self._kept.get(host, (0.0, ()))
        if time.monotonic() < until:
            if isinstance(kept, LookupFailed):
                raise LookupFailed(*kept.args)  # a new one: with each raise its traceback grows
            return kept
        if host not in self._asked:
            asked = self._asked[host] = self._loop.create_task(self._ask(host))
            asked.add_done_callback(functools.partial(self._answered, host))
        return await asyncio.shield(self._asked[host])  # who gives up does not take it from the others

    def _answered(self, host: str, asked: asyncio.Task[_Found]) -> None:
        del self._asked[host]
        answer = None if asked.cancelled() else asked.exception() or asked.result()
        if isinstance(answer, tuple) or (isinstance(answer, LookupFailed) and not answer.temporary):
            self._kept.pop(host, None)
            self._kept[host] = (time.monotonic() + KEPT_S, answer)
            if len(self._kept) > KEPT_NAMES:
                del self._kept[next(iter(self._kept))]

    async def _ask(self, host: str) -> _Found:
        async with self._places:
            try:
                async with asyncio.timeout(LOOKUP_S):
                    await self._may_run.acquire()
                    answer: asyncio.Future[_Found] = self._loop.create_future()
                    self._names.put((host, answer))
                    self._running += 1
                    if self._running > self._threads:
                        self._threads += 1
                        threading.Thread(target=self._work, name="lookup", daemon=True).start()
                    return await answer
            except TimeoutError:
                raise LookupFailed(socket.EAI_AGAIN, f"no answer within {LOOKUP_S:g} s") from None

    def _work(self) -> None:
        """A thread: looks up one name after the other."""
        while (asked := self._names.get()) is not None:
            host, answer = asked
            try:
                found = _look_up(host)
            except Exception as error:
                found = error
            with contextlib.suppress(RuntimeError):  # the loop is closed, nobody waits
                self._loop.call_soon_threadsafe(self._came_back, answer, found)

    def _came_back(self, answer: asyncio.Future[_Found], found: _Found | Exception) -> None:
        self._running -= 1
        self._may_run.release()
        if answer.done():  # given up
            return
        if isinstance(found, Exception):
            answer.set_exception(found)
        else:
            answer.set_result(found)

    async def close(self) -> None:
        for asked in self._asked.values():
            asked.cancel()
        for _ in range(self._threads):
            self._names.put(None)


def _look_up(host: str) -> _Found:
    try:
        infos = socket.getaddrinfo(
            host.encode("ascii"), 0, socket.AF_UNSPEC, socket.SOCK_STREAM, 0, socket.AI_ADDRCONFIG
        )
    except socket.gaierror as error:
        # Where no file is left for the question, it says so, or that there is no such name. OSError then.
        os.close(os.open(os.devnull, os.O_RDONLY))
        raise LookupFailed(error.errno, error.strerror) from None
    except OSError as error:
        if error.errno in (errno.EMFILE, errno.ENFILE):
            raise
        raise LookupFailed(socket.EAI_SYSTEM, error.strerror) from None
    return tuple((kind, str(address[0])) for kind, _, _, _, address in infos)
