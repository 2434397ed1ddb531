"""An internet of our own, inside a network namespace, and what our fetcher does in it with nothing
allowed.

    unshare -Urnm --propagation private python -m tests.netns.inside SCENARIO  ->  JSON on standard output

    8.8.8.8, 2606:4700::1111    the good server: pictures, redirects to wherever the URL says
    9.9.9.9                     the name server: what a name means, the name itself says
    every other address         a canary: it notes whoever connects, and serves a picture

No packet leaves: all addresses of the world are this machine's here. So the policy is tried as it is in
production, where connect_to and allow_private are empty. See tests/test_fetch_addresses.py.
"""

import asyncio
import contextlib
import ipaddress
import json
import os
import resource
import ssl
import subprocess
import sys
import tempfile
import threading
from collections import Counter
from collections.abc import Callable, Coroutine, Iterable
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any, Self, cast, get_args
from urllib.parse import parse_qs, quote

import aiohttp
import trustme

from pipelines.doctor import doctor, doctor_json
from pmd.errors import PmdError
from pmd.fetch import address
from pmd.fetch.address import AddressPolicy, GuardedConnector, is_temporary
from pmd.fetch.client import Answer, Client
from pmd.fetch.file import download_file
from pmd.fetch.probe import look_up
from pmd.manifest import FetchSpec, Signal
from tests.netns import spellings
from tests.small import photo

GOOD_V4, GOOD_V6, GOOD_NAT64, NAME_SERVER = "8.8.8.8", "2606:4700::1111", "64:ff9b::808:808", "9.9.9.9"
CANARY_PORTS = (22, 80, 443, 2375, 6379, 8080, 11211)
PICTURE = photo(1)
ZONE = "zone.example"


class World:
    """The namespace, set up; and its servers, in a thread of their own. Use as a context."""

    def __init__(self) -> None:
        self.rang: Counter[str] = Counter()  # address -> connections that a canary has taken
        self.requests: list[tuple[str, str]] = []  # of the good server: host and target
        self.headers: set[str] = set()  # names of all that it was sent
        self.asked: Counter[tuple[str, int]] = Counter()  # of the name server: name and type of record

    def __enter__(self) -> Self:
        self._folder = tempfile.TemporaryDirectory()
        folder = Path(self._folder.name)
        _set_up(folder)
        authority = trustme.CA()
        self.ca_file = folder / "ca.pem"
        authority.cert_pem.write_to_path(self.ca_file)
        self._tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        authority.issue_cert(f"*.{ZONE}", f"good.{ZONE}", GOOD_V4).configure_cert(self._tls)
        running = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve(running)), daemon=True)
        self._thread.start()
        running.wait()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()
        self._folder.cleanup()

    async def _serve(self, running: threading.Event) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        async with contextlib.AsyncExitStack() as stack:

            async def listen(what: Any, host: str, port: int, tls: ssl.SSLContext | None = None) -> None:
                # SO_REUSEPORT: a listener on all addresses beside those on one, which go before.
                server = await asyncio.start_server(what, host, port, ssl=tls, reuse_port=True)
                await stack.enter_async_context(server)

            for host in (GOOD_V4, GOOD_V6, GOOD_NAT64):
                await listen(self._good, host, 80)
                await listen(self._good, host, 8080)
                await listen(self._good, host, 443, self._tls)
            for port in CANARY_PORTS:
                await listen(self._canary, "0.0.0.0", port)
                await listen(self._canary, "::", port)
            transport, _ = await self._loop.create_datagram_endpoint(
                lambda: _NameServer(self.asked), local_addr=(NAME_SERVER, 53)
            )
            running.set()
            await self._stop.wait()
            transport.close()

    async def _canary(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.rang[writer.get_extra_info("sockname")[0]] += 1
        with contextlib.suppress(OSError):
            await _answer(writer, 200, PICTURE, close=True)
        writer.close()

    async def _good(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
                fields = dict(line.lower().split(": ", 1) for line in head[1:] if line)
                target, host = head[0].split(" ")[1], fields["host"]
                self.requests.append((host, target))
                self.headers |= fields.keys()
                path, _, query = target.partition("?")
                asked = {name: values[0] for name, values in parse_qs(query).items()}
                close = host.startswith("close") or "close" in asked
                if path == "/hop" and asked.keys() >= {"left", "to"}:
                    left, to = int(asked["left"]), asked["to"]
                    to = f"/hop?left={left - 1}&to={quote(to, safe='')}" if left else to
                    await _answer(writer, 302, b"", to.encode(), close=close)
                elif path == "/reset":
                    break
                elif path == "/robots.txt" and host.startswith("robots-"):
                    # The label behind it says, in hex, where to.
                    to = bytes.fromhex("".join(host.split(".")[1:-2]))
                    await _answer(writer, 302, b"", to, close=close)
                elif path == "/good.jpg":
                    await _answer(writer, 200, PICTURE, close=close)
                else:
                    await _answer(writer, 404, b"no", close=close)
                if close:
                    break
        writer.close()


async def _answer(
    writer: asyncio.StreamWriter, status: int, body: bytes, location: bytes | None = None, *, close: bool
) -> None:
    head = b"HTTP/1.1 %d Whatever\r\nContent-Length: %d\r\nContent-Type: image/jpeg\r\n" % (status, len(body))
    if location is not None:
        head += b"Location: " + location.translate(None, b"\r\n") + b"\r\n"
    writer.write(head + (b"Connection: close\r\n" if close else b"") + b"\r\n" + body)
    await writer.drain()


def _set_up(folder: Path) -> None:
    """Make all addresses local, and our name server the only one."""
    commands = ["link set lo up", "route add local 0.0.0.0/0 dev lo", "-6 route add local ::/0 dev lo"]
    # An address of each family that is none of loopback's, or getaddrinfo would not ask for that family.
    commands += [f"addr add {host}/32 dev lo" for host in (GOOD_V4, NAME_SERVER)]
    commands += [f"-6 addr add {host}/128 dev lo nodad" for host in (GOOD_V6, GOOD_NAT64)]
    for command in commands:
        subprocess.run(["ip", *command.split()], check=True, capture_output=True, text=True)
    files = {
        "/etc/resolv.conf": f"nameserver {NAME_SERVER}\noptions timeout:30 attempts:1\n",
        "/etc/nsswitch.conf": "hosts: files dns\n",
        "/etc/hosts": "127.0.0.1 localhost\n::1 localhost\n",
    }
    for path, text in files.items():
        ours = folder / Path(path).name
        ours.write_text(text)
        subprocess.run(["mount", "--bind", ours, path], check=True)
    # What tempts clients to go another way, or to tell secrets.
    (folder / ".netrc").write_text(f"machine {GOOD_V4} login a password b\ndefault login a password b\n")
    (folder / ".netrc").chmod(0o600)
    os.environ["NETRC"], os.environ["HOME"] = str(folder / ".netrc"), str(folder)
    for name in ("http_proxy", "https_proxy", "all_proxy", "ftp_proxy", "ws_proxy"):
        os.environ[name] = os.environ[name.upper()] = "http://127.0.0.1:8080"


class _NameServer(asyncio.DatagramProtocol):
    """Reads the answer off the name: HOW.ADDRESS.ADDRESS...ANYTHING.zone.example, addresses in hex.

    all: all of them. turn: another one for each question, the last for ever. cname: by way of another
    name. dead: silence. nx, nodata, servfail, refused: what they say. Any other name of the zone: the
    good server.
    """

    def __init__(self, asked: Counter[tuple[str, int]]) -> None:
        self._asked = asked

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.DatagramTransport, transport)

    def datagram_received(self, data: bytes, addr: Any) -> None:
        labels, at = [], 12
        while length := data[at]:
            labels.append(data[at + 1 : at + 1 + length].decode("latin-1").lower())
            at += 1 + length
        kind = int.from_bytes(data[at + 1 : at + 3])
        question, name = data[12 : at + 5], ".".join(labels)
        self._asked[name, kind] += 1
        if labels[0] == "dead":
            return
        rcode = {"nx": 3, "servfail": 2, "refused": 5}.get(labels[0], 0)
        family = {1: 4, 28: 6}.get(kind)
        records = b""
        count = 0
        if labels[0] == "cname":  # to all.<the rest>, whose records come with it
            target = _name(["all", *labels[1:]])
            records += b"\xc0\x0c" + _record(5, target)
            count += 1
        for found in _addresses(labels, turn=self._asked[name, kind] - 1) if rcode == 0 else ():
            if found.version == family:
                owner = _name(["all", *labels[1:]]) if labels[0] == "cname" else b"\xc0\x0c"
                records += owner + _record(kind, found.packed)
                count += 1
        counts = b"".join(number.to_bytes(2) for number in (1, count, 0, 0))
        self._transport.sendto(data[:2] + bytes((0x81, 0x80 | rcode)) + counts + question + records, addr)


def _addresses(labels: list[str], *, turn: int) -> list[ipaddress.IPv4Address | ipaddress.IPv6Address]:
    name = ".".join(labels)
    known = spellings.NAMES | {name.removesuffix("."): to for name, to in spellings.NAMES.items()}
    if name in known:
        return [ipaddress.ip_address(known[name])]
    if labels[0] == "nodata" or not name.endswith(ZONE):
        return []
    if labels[0] not in ("all", "cname", "turn"):
        return [*map(ipaddress.ip_address, (GOOD_V4, GOOD_V6))]
    found = [ipaddress.ip_address(bytes.fromhex(label)) for label in labels[1:] if len(label) in (8, 32)]
    return [found[min(turn, len(found) - 1)]] if labels[0] == "turn" else found


def _name(labels: list[str]) -> bytes:
    return b"".join(bytes([len(label)]) + label.encode() for label in labels) + b"\0"


def _record(kind: int, data: bytes) -> bytes:
    ttl = 0
    return kind.to_bytes(2) + b"\0\1" + ttl.to_bytes(4) + len(data).to_bytes(2) + data


def host_of(how: str, *addresses: str, mark: str = "x") -> str:
    """A name that means these addresses; `mark` makes it another one."""
    return ".".join([how, *(ipaddress.ip_address(found).packed.hex() for found in addresses), mark, ZONE])


# What is tried


def spec(**keys: Any) -> FetchSpec:
    """Production's, but for how fast, and that sites are not asked first: nothing is mapped, nothing private
    is allowed.
    """
    rates = {"per_host_rate": 1e6, "per_host_connections": 64, "per_address_connections": 64}
    others = {"timeout_s": 20, "retries": 0, "patience_s": 1, "consent": ()}
    return FetchSpec.model_validate(others | rates | keys)


async def fetch(urls: Iterable[str], spec: FetchSpec) -> list[Answer]:
    async with Client(spec) as client:
        return await asyncio.gather(*(client.fetch(url) for url in urls))


def told(world: World, urls: list[str], answers: list[Answer], **more: Any) -> dict[str, Any]:
    rows = [
        {"url": url, "reason": answer.reason, "final_url": answer.final_url, "detail": answer.detail}
        for url, answer in zip(urls, answers, strict=True)
    ]
    good = [answer.body == PICTURE for answer in answers]
    return {"rows": rows, "good": good, "headers": sorted(world.headers)} | more


def good_urls() -> list[str]:
    hosts = [f"good.{ZONE}", f"close.{ZONE}"]
    hosts += [GOOD_V4, f"[{GOOD_V6}]", f"[::ffff:{GOOD_V4}]", f"[{GOOD_NAT64}]"]
    urls = [f"http://{host}/good.jpg" for host in hosts]
    urls += [f"http://{host_of('all', GOOD_V4)}/good.jpg", f"http://{host_of('cname', GOOD_V6)}/good.jpg"]
    urls += [hops(left, f"http://good.{ZONE}/good.jpg") for left in range(5)]
    return [*urls, f"https://good.{ZONE}/good.jpg", f"https://{GOOD_V4}/good.jpg"]


def hops(left: int, to: str, *, host: str = f"good.{ZONE}") -> str:
    """A URL that leads there with the redirect after so many others."""
    return f"http://{host}/hop?left={left}&to={quote(to, safe='')}"


async def good(world: World) -> dict[str, Any]:
    """What should succeed does."""
    urls = good_urls()
    return told(world, urls, await fetch(urls, spec(ca_file=str(world.ca_file))))


async def canaries(world: World) -> dict[str, Any]:
    """Each canary rings when somebody connects; so no silence of theirs is one of a dead canary."""

    for host in spellings.FORBIDDEN:
        with contextlib.suppress(OSError):
            await knock(host, 80)
    for port in CANARY_PORTS:
        await knock("10.9.9.9", port)
    return {}


async def knock(host: str, port: int) -> None:
    """Connect, and stay until the canary has noticed."""
    async with asyncio.timeout(5):
        reader, writer = await asyncio.open_connection(host, port)
        await reader.readexactly(1)
        writer.close()


async def without_policy(world: World) -> dict[str, Any]:
    """The same spellings, with everything allowed: many canaries ring."""
    urls = spellings.urls()
    return told(world, urls, await fetch(urls, spec(allow_private=["0.0.0.0/0", "::/0"])))


async def rows(world: World) -> dict[str, Any]:
    urls = [*spellings.urls(), *spellings.urls("https"), *spellings.urls(at=":8080"), *spellings.STRANGE_URLS]
    return told(world, urls, await fetch(urls, spec(retries=1)))


async def redirects(world: World) -> dict[str, Any]:
    places = [*spellings.urls(), *spellings.STRANGE_URLS]
    urls = [hops(left, place) for left in range(5) for place in places]
    urls += [hops(1, place, host=f"close.{ZONE}") for place in places]  # which keeps no connection
    return told(world, urls, await fetch(urls, spec()))


async def robots(world: World) -> dict[str, Any]:
    """A host whose robots.txt leads astray: asked for its picture, and asked for that file itself."""
    urls: list[str] = []
    for place in [*spellings.urls(), *spellings.STRANGE_URLS]:
        secret = place.encode().translate(None, b"\r\n").hex()
        labels = ".".join(secret[at : at + 60] for at in range(0, len(secret), 60))
        if len(labels) < 200:
            urls.append(f"http://robots-x.{labels}.{ZONE}/")
    files, pictures = [url + "robots.txt" for url in urls], [url + "good.jpg" for url in urls]
    answers = await fetch(files, spec())
    answers += await fetch(pictures, spec(consent=get_args(Signal)))
    return told(world, files + pictures, answers)


async def names(world: World) -> dict[str, Any]:
    """Names with a forbidden address among their answers, directly or by way of another name."""
    hosts = [
        host_of(how, *addresses, mark=f"n{number}")
        for number, forbidden in enumerate(spellings.FORBIDDEN)
        for how in ("all", "cname")
        for addresses in (
            (forbidden,),
            (GOOD_V4, forbidden),
            (forbidden, GOOD_V4),
            (GOOD_V6, forbidden),
            (GOOD_V4, GOOD_V6, forbidden),
        )
    ]
    urls = [f"http://{host}/good.jpg" for host in hosts]
    return told(world, urls, await fetch(urls, spec(retries=1)))


async def rebinding(world: World) -> dict[str, Any]:
    """Names that mean the good server once, and a forbidden address from then on.

    Answers are not kept, so that each connection looks the name up again: of a redirect from the host to
    itself, of a retry, of a row. Then they are kept, as they are in production.
    """
    urls: list[str] = []

    async def three_rows(client: Client, forbidden: str, close: str) -> list[Answer]:
        host = host_of("turn", GOOD_V4, forbidden, mark=f"kept{int(address.KEPT_S)}{close[:5]}")
        again = f"http://{host}/good.jpg?{close}"
        rows = [f"{hops(0, again, host=host)}&{close}", f"http://{host}/reset", again]
        urls.extend(rows)
        return [await client.fetch(row) for row in rows]

    answers: list[Answer] = []
    for kept_s in (0.0, address.KEPT_S):
        address.KEPT_S = kept_s
        for close in ("", "close=1"):
            async with Client(spec(retries=2)) as client:
                asked = (three_rows(client, place, close) for place in spellings.FORBIDDEN)
                answers += [answer for rows in await asyncio.gather(*asked) for answer in rows]
    return told(world, urls, answers)


async def files(world: World) -> dict[str, Any]:
    """Published files are fetched under the same policy."""
    places = [*spellings.urls()[::9], *spellings.STRANGE_URLS[::2]]
    places += [f"http://{host_of('all', GOOD_V4, found)}/good.jpg" for found in spellings.FORBIDDEN[::3]]
    astray: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as folder:

        def ends(url: str) -> str:
            try:
                got = download_file([url], Path(folder, "file.jpg"), spec=spec(), size=len(PICTURE))
            except PmdError as error:
                return str(error)
            return f"got {got.size} bytes"

        for place in places:
            astray[place] = await asyncio.to_thread(ends, place)
            astray[f"redirect to {place}"] = await asyncio.to_thread(ends, hops(1, place))
        fine = await asyncio.to_thread(ends, hops(1, f"http://good.{ZONE}/good.jpg"))
    return {"astray": astray, "fine": fine, "headers": sorted(world.headers)}


async def ports(world: World) -> dict[str, Any]:
    urls = [f"http://{GOOD_V4}:8080/good.jpg", f"http://{GOOD_V4}/good.jpg", "http://10.1.2.3:8080/good.jpg"]
    answers = await fetch(urls, spec())
    answers += await fetch(urls, spec(ports=[443, 8080]))
    return told(world, urls * 2, answers)


async def failures(world: World) -> dict[str, Any]:
    """What each way of not being found comes to, of a connector and of a session's request."""
    address.LOOKUP_S = 1.0
    policy = AddressPolicy.of(spec())
    connector = GuardedConnector(policy, tls=ssl.create_default_context(), lookups=8)
    found: dict[str, Any] = {}
    async with aiohttp.ClientSession(connector=connector) as session:
        for how in ("good", "nx", "nodata", "servfail", "refused", "dead"):
            host = f"{how}.{ZONE}"
            for way in ("addresses", "request"):
                try:
                    if way == "addresses":
                        found[f"{how} {way}"] = await connector.addresses_of(host, 80)
                    else:
                        async with session.get(f"http://{host}/good.jpg") as response:
                            found[f"{how} {way}"] = response.status
                except OSError as error:
                    found[f"{how} {way}"] = "temporary" if is_temporary(error) else "final"
        asked = {f"{name} {kind}": count for (name, kind), count in world.asked.items()}
        blocked: dict[str, str] = {}
        for forbidden in spellings.FORBIDDEN:
            for host in (host_of("all", GOOD_V4, forbidden), forbidden):
                try:
                    blocked[host] = str(await connector.addresses_of(host, 80))
                except address.BlockedAddress as error:
                    blocked[host] = f"blocked: {error}"
    return {"found": found, "asked": asked, "blocked": blocked}


async def dead_names(world: World) -> dict[str, Any]:
    """Many names of dead name servers come first, then good ones; places are few."""
    address.LOOKUP_S, address.STUCK_THREADS = 1.0, 40
    order: list[str] = []

    async def one(client: Client, kind: str, number: int) -> Answer:
        answer = await client.fetch(f"http://{kind}.n{number}.{ZONE}/good.jpg")
        order.append(kind)
        return answer

    async with Client(spec(connections=8)) as client:
        kinds = ["dead"] * 32 + ["good"] * 40
        answers = await asyncio.gather(*(one(client, kind, number) for number, kind in enumerate(kinds)))
        stuck = sum(thread.name == "lookup" for thread in threading.enumerate())
    return told(world, kinds, answers, order=order, threads=stuck)


async def more_dead_names_than_threads(world: World) -> dict[str, Any]:
    """There is an end to the threads; it is waited for, and what waits too long fails for a while."""
    address.LOOKUP_S, address.STUCK_THREADS = 0.3, 4
    connector = GuardedConnector(AddressPolicy.of(spec()), tls=ssl.create_default_context(), lookups=2)

    async def one(host: str) -> str:
        try:
            return str(await connector.addresses_of(host, 80))
        except OSError as error:
            return "temporary" if is_temporary(error) else "final"

    ends = await asyncio.gather(*(one(f"dead.n{number}.{ZONE}") for number in range(12)))
    threads = sum(thread.name == "lookup" for thread in threading.enumerate())
    literal = await one(GOOD_V4)  # needs no thread
    await connector.close()
    return {"ends": ends, "threads": threads, "literal": literal}


async def out_of_files(world: World) -> dict[str, Any]:
    """No file is left for the question to the name server: getaddrinfo may say that there is no such name."""
    async with Client(spec()) as client:
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))  # of which all are open
        try:
            end = str((await client.fetch(f"http://good.{ZONE}/good.jpg")).reason)
        except PmdError as error:
            end = f"PmdError: {error}"
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    return {"end": end}


async def doctors_names(world: World) -> dict[str, Any]:
    address.LOOKUP_S = 1.0
    names = [f"good.n{number}.{ZONE}" for number in range(30)]
    names += [f"{how}.n{number}.{ZONE}" for how in ("nx", "nodata") for number in range(5)]
    names += [f"{how}.n{number}.{ZONE}" for how in ("dead", "servfail") for number in range(2)]
    names += [host_of("all", GOOD_V4, found) for found in ("127.0.0.1", "10.1.2.3", "::1")]
    return {"lookups": asdict(await asyncio.to_thread(look_up, names, spec=spec()))}


async def doctors_findings(world: World) -> dict[str, Any]:
    return doctor_json(await asyncio.to_thread(doctor, None))


SCENARIOS: dict[str, Callable[[World], Coroutine[Any, Any, dict[str, Any]]]] = {
    scenario.__name__: scenario
    for scenario in (
        *(good, canaries, without_policy, rows, redirects, robots, names, rebinding, files, ports, failures),
        *(dead_names, more_dead_names_than_threads, out_of_files, doctors_names, doctors_findings),
    )
}


async def play(world: World, scenario: str) -> dict[str, Any]:
    told = await SCENARIOS[scenario](world)
    # Who connected before us is noticed before us; and every canary still lives.
    ours = ("10.77.77.77", "fd77::77")
    for host in ours:
        for port in CANARY_PORTS:
            await knock(host, port)
    return told | {"rang": {host: count for host, count in world.rang.items() if host not in ours}}


def main() -> None:
    with World() as world:
        told = asyncio.run(play(world, sys.argv[1]))
    print(json.dumps(told))


if __name__ == "__main__":
    main()
