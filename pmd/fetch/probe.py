"""What the network is like from here, before a run finds out: for `pmd doctor`.

    names of hosts --all at once--> Lookups   how many are found, and how fast
    URLs --one request each--> Visits         how far each came: address, TCP, TLS, head of the answer;
                                              whose certificate it was, and what time it is there

Under the address policy, the authorities and the name of a fetch; but by hand, where a client would hide
what is to be seen.
"""

import asyncio
import email.utils
import ssl
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from yarl import URL

from pmd.errors import BadRequest
from pmd.fetch.address import AddressPolicy, BlockedAddress, GuardedConnector, LookupFailed
from pmd.fetch.client import user_agent
from pmd.fetch.url import BadUrl, read_url
from pmd.manifest import FetchSpec

PATIENCE_S = 10.0  # for a visit
STEP_S = 3.0  # for one of a host's addresses, as long as there are others
HEAD_BYTES = 65_536


@dataclass(frozen=True)
class Lookups:
    """What became of names that were looked up at once. asked = found + none + unanswered + blocked."""

    asked: int
    found: int
    none: int  # the name servers say that there is no such name, or no address of it
    unanswered: int
    blocked: int  # found, but not public
    seconds: float


@dataclass
class Visit:
    """How far one request came: up to the head of an answer, or to `failure`. Filled in as it goes."""

    url: str
    unreachable: tuple[str, ...] = ()  # addresses tried in vain
    address: str = ""  # the one connected to
    connect_s: float | None = None  # TCP alone
    tls_s: float | None = None  # the handshake
    first_byte_s: float | None = None  # from the request to the head of the answer
    status: int | None = None
    location: str = ""
    issuer: str = ""  # of the certificate, trusted or not
    ahead_s: float | None = None  # of our clock before the server's, by its Date
    failure: str = ""  # in a few words; empty where an answer came
    untrusted: bool = False  # the failure is one of the certificate


def look_up(hosts: Sequence[str], *, spec: FetchSpec) -> Lookups:
    """Look up names as a fetch would, [fetch] connections at a time."""
    return asyncio.run(_look_up(hosts, spec))


def visit(urls: Sequence[str], *, spec: FetchSpec) -> list[Visit]:
    """Ask for each URL once, all at a time, and look no further than the head of the answer."""
    return asyncio.run(_visit_all(urls, spec))


def authorities(ca_file: str | None) -> int:
    """How many certificate authorities are trusted. Raises BadRequest where their file cannot be read."""
    loaded = _tls(ca_file).cert_store_stats()["x509_ca"]
    if loaded or ca_file:
        return loaded
    folder = ssl.get_default_verify_paths().capath  # OpenSSL reads what is in it when it is needed
    return sum(path.suffix == ".0" for path in Path(folder).iterdir()) if folder else 0


def _tls(ca_file: str | None) -> ssl.SSLContext:
    try:
        tls = ssl.create_default_context(cafile=ca_file)
    except OSError as error:
        raise BadRequest(f"[fetch] ca_file: {ca_file}: {error}") from None
    tls.set_alpn_protocols(["http/1.1"])
    return tls


# Names


async def _look_up(hosts: Sequence[str], spec: FetchSpec) -> Lookups:
    connector = GuardedConnector(AddressPolicy.of(spec), tls=_tls(spec.ca_file), lookups=spec.connections)

    async def one(host: str) -> str:
        try:
            await connector.addresses_of(host, spec.ports[0])
        except BlockedAddress:
            return "blocked"
        except LookupFailed as error:
            return "unanswered" if error.temporary else "none"
        return "found"

    begun = time.monotonic()
    async with connector:
        ends = await asyncio.gather(*(one(host) for host in hosts))
    counts = {end: ends.count(end) for end in ("found", "none", "unanswered", "blocked")}
    return Lookups(asked=len(hosts), seconds=time.monotonic() - begun, **counts)


# Visits


async def _visit_all(urls: Sequence[str], spec: FetchSpec) -> list[Visit]:
    tls = _tls(spec.ca_file)
    connector = GuardedConnector(AddressPolicy.of(spec), tls=tls, lookups=spec.connections)
    async with connector:
        return await asyncio.gather(*(_visit(url, connector, tls, spec) for url in urls))


async def _visit(text: str, connector: GuardedConnector, tls: ssl.SSLContext, spec: FetchSpec) -> Visit:
    seen = Visit(text)
    try:
        async with asyncio.timeout(PATIENCE_S):
            await _go(seen, read_url(text), connector, tls, spec)
    except BadUrl as error:
        seen.failure = f"the URL {error}"
    except BlockedAddress as error:
        seen.failure = f"not a public address: {error}"
    except LookupFailed as error:
        seen.failure = f"name not found: {error.strerror}"
    except ssl.SSLCertVerificationError as error:
        seen.untrusted, seen.failure = True, f"certificate not trusted: {error.verify_message}"
    except TimeoutError:
        reached = "no connection" if seen.connect_s is None else "connected, but no answer"
        seen.failure = f"{reached} within {PATIENCE_S:g} s"
    except (OSError, EOFError, asyncio.LimitOverrunError, ValueError) as error:
        seen.failure = _printable(f"{type(error).__name__}: {error}")
    return seen


async def _go(
    seen: Visit, url: URL, connector: GuardedConnector, tls: ssl.SSLContext, spec: FetchSpec
) -> None:
    host, port = url.raw_host or "", url.port or 80
    found = [(place["host"], place["port"]) for place in await connector.resolved(host, port)]
    reader, writer = await _connect(seen, found)
    try:
        if url.scheme == "https":
            begun = time.monotonic()
            try:
                await writer.start_tls(tls, server_hostname=host.rstrip("."))
            except ssl.SSLCertVerificationError:
                seen.issuer = await _untrusted_issuer(dict(found)[seen.address], seen.address, host)
                raise
            seen.tls_s = time.monotonic() - begun
            seen.issuer = _issuer(writer.get_extra_info("ssl_object").getpeercert(binary_form=True))
        begun = time.monotonic()
        fields = {"Host": url.raw_authority if url.explicit_port else host, "User-Agent": user_agent(spec)}
        fields |= {"Accept": "*/*", "Accept-Encoding": "identity", "Connection": "close"}
        lines = [f"GET {url.raw_path_qs} HTTP/1.1", *(f"{name}: {value}" for name, value in fields.items())]
        writer.write("\r\n".join([*lines, "", ""]).encode("ascii"))
        head = await reader.readuntil(b"\r\n\r\n")
        seen.first_byte_s = time.monotonic() - begun
        _read_head(seen, head.decode("latin-1"))
    finally:
        writer.transport.abort()  # the body is nobody's business


async def _connect(
    seen: Visit, found: Sequence[tuple[str, int]]
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """To the first address that can be reached; where none can, raises what the last one did."""
    for number, (address, port) in enumerate(found, 1):
        begun = time.monotonic()
        try:
            async with asyncio.timeout(STEP_S if number < len(found) else None):
                opened = await asyncio.open_connection(address, port, limit=HEAD_BYTES)
        except OSError:  # a TimeoutError is one
            seen.unreachable += (address,)
            if number == len(found):
                raise
            continue
        seen.address, seen.connect_s = address, time.monotonic() - begun
        return opened
    raise OSError("the name has no address")


def _read_head(seen: Visit, head: str) -> None:
    first, *lines = head.split("\r\n")
    version, _, rest = first.partition(" ")
    if not version.startswith("HTTP/1.") or not rest[:3].isdecimal():
        raise ValueError(f"no HTTP: {first[:80]!r}")
    seen.status = int(rest[:3])
    fields = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    seen.location = _printable(fields.get("location", ""))
    try:
        date = email.utils.parsedate_to_datetime(fields.get("date", "")).timestamp()
    except ValueError:
        return
    age = fields.get("age", "")
    seen.ahead_s = time.time() - date - (int(age) if age.isdecimal() and len(age) < 10 else 0)


def _printable(text: str) -> str:
    return "".join(character if character.isprintable() else " " for character in text[:300])


# Certificates


async def _untrusted_issuer(port: int, address: str, host: str) -> str:
    """Who has issued the certificate that was not trusted. Nothing is asked over this connection."""
    blind = ssl.create_default_context()
    blind.check_hostname, blind.verify_mode = False, ssl.CERT_NONE
    _, writer = await asyncio.open_connection(address, port, ssl=blind, server_hostname=host.rstrip("."))
    try:
        return _issuer(writer.get_extra_info("ssl_object").getpeercert(binary_form=True))
    finally:
        writer.transport.abort()


_WANTED = (b"\x55\x04\x0a", b"\x55\x04\x03")  # organisation, common name


def _issuer(certificate: bytes) -> str:
    """Organisation and name of a certificate's issuer; empty where it gives none. `certificate` is DER."""
    try:
        to_be_signed = next(_values(next(_values(certificate))[1]))[1]
        fields = [value for tag, value in _values(to_be_signed) if tag != 0xA0]  # which is the version
        _serial, _algorithm, issuer, *_ = fields
        found: dict[bytes, str] = {}
        for _, entry in _values(issuer):
            for _, pair in _values(entry):
                (_, kind), (tag, text) = _values(pair)
                found[kind] = text.decode("utf-16-be" if tag == 0x1E else "utf-8", "replace")
    except (ValueError, StopIteration, IndexError):
        return ""
    return _printable(", ".join(found[kind] for kind in _WANTED if kind in found))


def _values(der: bytes) -> Iterator[tuple[int, bytes]]:
    """The values that follow each other in DER: tag and content."""
    at = 0
    while at < len(der):
        tag, length, at = der[at], der[at + 1], at + 2
        if length & 0x80:
            size = length & 0x7F
            length, at = int.from_bytes(der[at : at + size]), at + size
        yield tag, der[at : at + length]
        at += length
