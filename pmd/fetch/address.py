"""Which addresses may be connected to, and the connector that keeps to it.

    host, port of a URL --- named in connect_to? --yes--> what it names, for this host alone
                                   |no
                                   v
                  look it up --> each answer public, port 80 or 443? --no--> BlockedAddress
                                   |yes
                                   v
    a socket is opened, only to an address that was just decided on for this very connection

Rows and redirects are written by strangers; inside a data centre the addresses next door answer with secrets.
So the decision falls on the address itself, not on a name that may mean another one a moment later, and it
falls anew for each connection: of a row, of a redirect, of a retry.
"""

import asyncio
import functools
import ipaddress
import socket
import ssl
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Self

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult
from aiohttp.client_proto import ResponseHandler

from pmd.errors import BadRequest
from pmd.manifest import FetchSpec

PORTS = (80, 443)

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network


class BlockedAddress(RuntimeError):
    """An address that may not be connected to. No OSError: a connector takes one for a failed lookup."""


@dataclass(frozen=True)
class AddressPolicy:
    """What [fetch] says about addresses: connect_to and allow_private, read."""

    # (host or "*", port or None for any) -> where it really is, as curl --connect-to.
    connect_to: Mapping[tuple[str, int | None], tuple[str, int]]
    allow_private: tuple[Network, ...]

    @classmethod
    def of(cls, spec: FetchSpec) -> Self:
        """Raises BadRequest where the spec is no policy."""
        mapped: dict[tuple[str, int | None], tuple[str, int]] = {}
        for key, value in spec.connect_to.items():
            (host, at), (address, port) = _host_and_port(key), _host_and_port(value)
            if not host or not address or port is None:
                raise BadRequest(
                    f'[fetch] connect_to: {key!r} = {value!r} does not read "host" or "host:port" = '
                    '"address:port", such as "images.example" = "127.0.0.1:8099"'
                )
            mapped[host, at] = (address, port)
        try:
            networks = tuple(ipaddress.ip_network(network) for network in spec.allow_private)
        except ValueError as error:
            raise BadRequest(f"[fetch] allow_private: {error}; networks look like 10.0.0.0/8") from None
        return cls(mapped, networks)

    def mapped(self, host: str, port: int) -> tuple[str, int] | None:
        """The address and port that connect_to names for this host of a URL; the most specific key wins."""
        host = host.lower().rstrip(".")
        for key in ((host, port), (host, None), ("*", port), ("*", None)):
            if key in self.connect_to:
                return self.connect_to[key]
        return None

    def objection(self, address: str, port: int) -> str | None:
        """Why this address may not be connected to, in a few words; None where it may."""
        try:
            judged = _unwrapped(ipaddress.ip_address(address))
        except ValueError:
            return "not an address"
        if any(judged in network for network in self.allow_private):
            return None
        if port not in PORTS:
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


# Every range set aside by RFC 6890 and its successors (the IANA special-purpose registries), also those that
# are reachable but serve no images.
_SPECIAL = tuple(
    (ipaddress.ip_network(network), what)
    for network, what in (
        ("0.0.0.0/8", "this network"),
        ("10.0.0.0/8", "private"),
        ("100.64.0.0/10", "shared by a carrier"),
        ("127.0.0.0/8", "loopback"),
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
        super().__init__(
            ssl=tls,
            resolver=_ThreadedLookup(lookups),
            ttl_dns_cache=60,
            dns_cache_max_size=10_000,
            limit=0,
            # Idle connections count as open files, and most hosts are asked once: keep them for their next
            # row, not for the one a minute later.
            keepalive_timeout=5,
            socket_factory=open_decided,
        )
        self._policy = policy
        self._factory = functools.partial(_Connection, loop=self._loop)

    async def _resolve_host(
        self, host: str, port: int, traces: Sequence[aiohttp.tracing.Trace] | None = None
    ) -> list[ResolveResult]:
        """The one step between a URL and its addresses that names and literal addresses both take; a resolver
        is not asked about the latter. Should aiohttp stop calling it, nothing is decided and nothing opens.
        """
        _decided.set(frozenset())
        mapped = self._policy.mapped(host, port)
        results = await super()._resolve_host(*(mapped or (host, port)), traces)
        for result in results if mapped is None else ():
            objection = self._policy.objection(result["host"], result["port"])
            if objection:  # to one answer of many is to all: such a name is a trick or a mistake
                raise BlockedAddress(f"{result['host']}: {objection}")
        _decided.set(frozenset((result["host"], result["port"]) for result in results))
        return results


def open_decided(info: aiohttp.AddrInfoType) -> socket.socket:
    """The socket of a connection, if its address is one that was decided on. Raises BlockedAddress."""
    family, kind, protocol, _, address = info
    if address[:2] not in _decided.get():
        raise BlockedAddress("an address that nobody decided on")
    return socket.socket(family, kind, protocol)


class _Connection(ResponseHandler):
    """aiohttp's connection, for servers that break their word."""

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


class _ThreadedLookup(AbstractResolver):
    """getaddrinfo in threads of its own: a few dead names would hold all of asyncio's, for many seconds."""

    def __init__(self, threads: int) -> None:
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix="lookup")

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        found = await asyncio.get_running_loop().run_in_executor(self._threads, _look_up, host, port, family)
        return [
            ResolveResult(hostname=host, host=address, port=port, family=family, proto=0, flags=0)
            for family, address in found
        ]

    async def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)


def _look_up(host: str, port: int, family: socket.AddressFamily) -> list[tuple[socket.AddressFamily, str]]:
    infos = socket.getaddrinfo(
        host.encode("ascii"), port, family, socket.SOCK_STREAM, 0, socket.AI_ADDRCONFIG
    )
    return [(kind, str(address[0])) for kind, _, _, _, address in infos]
