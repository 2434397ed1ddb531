"""doctor: what could stop a run, or slow it down, found before it begins.

    this machine: versions, contact, authorities, proxies, open files, memory, disk, library --+
    hosts of the plan, or of the published files --names, all at once--> lookups               +--> Findings
                                                 --one request each--> egress, tls, clock    --+

Every finding has a name, so that what goes wrong in a run of a week has one too. Nothing is written, but
for one file in the library that is gone again; a host is asked once, for its robots.txt.
"""

import contextlib
import itertools
import os
import platform
import random
import resource
import shutil
import statistics
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

from rich.table import Table
from rich.text import Text

from pipelines.job import DEFINITION, numbered, read_plan
from pipelines.library import Library
from pmd.errors import BadRequest
from pmd.fetch.address import AddressPolicy
from pmd.fetch.client import user_agent
from pmd.fetch.probe import Visit, authorities, look_up, visit
from pmd.fetch.url import BadUrl, read_url
from pmd.manifest import Corpus, Edition, FetchSpec, ImageSpec, load_source, manifest_folder
from pmd.storage import Store
from pmd.tables import read_table

State = Literal["ok", "warn", "bad", "skipped"]

# The first releases without holes that are known, each on a path that strangers' bytes take.
FLOORS = {"ray": "2.56", "pillow": "12.3", "fsspec": "2026.9", "urllib3": "2.7", "aiohttp": "3.14"}
FLOORS |= {"torch": "2.10"}  # where it is installed
PYTHON_FLOORS = {(3, 11): 14, (3, 12): 12, (3, 13): 6}  # of each minor version: tarfile can loop before

OTHER_FILES = 128  # that a worker has open beside its connections: logs, shards, libraries, lookups
WORKER_BYTES = 600 << 20  # what a worker takes, with what it decodes
RAY_BYTES = 1 << 30  # what Ray takes for itself
SHM_BYTES = 256 << 20  # Docker gives 64 MiB, where Ray falls back to files
BYTES_A_PIXEL = 0.47  # of a web photo of 256 px as a JPEG of quality 95, measured over 98 of eight sources
WHOLE_IMAGE_BYTES = 200_000  # where nothing is resized
COPIES = 2  # of each image: in the raw tar, and in the shard
NAMES = 500  # looked up, at most
FEW_NAMES = 20  # say nothing of a resolver's speed
SLOW_NAMES = 20.0  # a second; below this, lookups are what a run waits for
UNANSWERED = 0.05  # share of names that nobody could say anything about
VISITED = 12  # hosts, at most: half of them those with the most images
CLOCK_WARN_S, CLOCK_BAD_S = 30.0, 300.0  # certificates and Retry-After are read by the clock
SLOW_FIRST_BYTE_S = 2.0
RESOLV_CONF = Path("/etc/resolv.conf")
CGROUP = Path("/sys/fs/cgroup")  # of version 2


@dataclass(frozen=True)
class Finding:
    """What one look at this machine or its network has shown."""

    name: str
    state: State
    seen: str
    do: str = ""  # empty where nothing is to be done
    facts: Mapping[str, Any] = field(default_factory=dict[str, Any])  # the numbers behind it


def doctor(
    corpus: Corpus | None,
    out: str | None = None,
    *,
    workers: int | None = None,
    needed_bytes: float | None = None,
) -> list[Finding]:
    """Look at this machine and its network, as a build of this corpus would find them.

    corpus: None: the nine sources as published, with the defaults of a corpus file. workers: as
    --workers of a build. needed_bytes: what the output will take, where `pmd estimate` has told. Raises
    BadRequest where [fetch] or `out` cannot be followed.
    """
    spec = corpus.fetch if corpus else FetchSpec()
    policy = AddressPolicy.of(spec)
    store = Store(out) if out is not None else None
    workers = workers or os.cpu_count() or 1
    trust = _authorities(spec)
    findings = [
        _python(),
        _versions(),
        _contact(spec),
        trust,
        _proxies(),
        _open_files(spec, workers),
        _memory(workers),
        _shared_memory(),
        _disk(corpus, store, needed_bytes),
        _library(corpus),
        _resolver(),
    ]
    if trust.state == "bad":
        unseen = ("lookups", "egress", "tls", "clock")
        return [
            *findings,
            *(Finding(name, "skipped", "there are no authorities to trust") for name in unseen),
        ]
    sites = _sites(corpus, store)
    names = [host for host, site in sites.items() if not _is_mapped_or_literal(host, site, policy)]
    visits = visit([f"{site}/robots.txt" for site in _some(sites, VISITED)], spec=spec)
    return [*findings, _lookups(names, spec), _egress(visits), _tls(visits), _clock(visits)]


def is_well(findings: Sequence[Finding]) -> bool:
    """Nothing that was found would stop a run."""
    return all(finding.state != "bad" for finding in findings)


def doctor_json(findings: Sequence[Finding]) -> dict[str, Any]:
    return {"ok": is_well(findings), "findings": [asdict(finding) for finding in findings]}


def doctor_table(findings: Sequence[Finding]) -> Table:
    """A line a finding, and below it what to do."""
    colours = {"ok": "green", "warn": "yellow", "bad": "bold red", "skipped": "dim"}
    table = Table()
    table.add_column("what")
    table.add_column("state")
    table.add_column("seen, and what to do", overflow="fold")
    for finding in findings:
        told = f"{finding.seen}\n-> {finding.do}" if finding.do else finding.seen
        table.add_row(finding.name, Text(finding.state, colours[finding.state]), Text(told))
    return table


# This machine


def _python() -> Finding:
    here, floor = sys.version_info, PYTHON_FLOORS.get(sys.version_info[:2])
    seen = f"Python {platform.python_version()}"
    if floor is None or here.micro >= floor:
        return Finding("python", "ok", seen)
    wanted = f"{here.major}.{here.minor}.{floor}"
    return Finding(
        "python", "warn", seen, f"{wanted} no longer loops on a hostile tar (CVE-2025-8194): update"
    )


def _versions() -> Finding:
    found: dict[str, str] = {}
    for name in FLOORS:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    old = [name for name, version in found.items() if _parts(version) < _parts(FLOORS[name])]
    seen = ", ".join(f"{name} {version}" for name, version in found.items())
    if not old:
        return Finding("versions", "ok", seen, facts=found)
    wanted = " ".join(f"'{name}>={FLOORS[name]}'" for name in old)
    return Finding("versions", "bad", seen, f"older ones have known holes: pip install {wanted}", facts=found)


def _parts(version: str) -> list[int]:
    """Of "2.56.0rc1": the numbers before anything else."""
    parts: list[int] = []
    for part in version.split("."):
        digits = "".join(itertools.takewhile(str.isdecimal, part))
        if not digits:
            break
        parts.append(int(digits))
    return parts


def _contact(spec: FetchSpec) -> Finding:
    seen = user_agent(spec)
    if spec.contact:
        return Finding("contact", "ok", seen)
    return Finding(
        "contact",
        "warn",
        f"{seen}: nobody to write to",
        'put a URL or mail address of yours in the corpus file, [fetch] contact = "...": whoever runs a site '
        "and has a question writes to it instead of blocking you",
    )


def _authorities(spec: FetchSpec) -> Finding:
    where = spec.ca_file or "the system's"
    try:
        count = authorities(spec.ca_file)
    except BadRequest as error:
        return Finding("authorities", "bad", str(error), "name a PEM file that can be read, or none")
    if count:
        return Finding("authorities", "ok", f"{count} certificate authorities are trusted, {where}")
    return Finding(
        "authorities",
        "bad",
        f"no certificate authority is trusted ({where})",
        "install ca-certificates, or name a PEM file in [fetch] ca_file",
    )


def _proxies() -> Finding:
    # Names alone: a proxy's URL may hold a password.
    names = sorted(name for name, value in os.environ.items() if value and name.lower().endswith("_proxy"))
    used = [name for name in names if name.lower() != "no_proxy"]
    if not used:
        return Finding("proxies", "ok", "none in the environment")
    return Finding(
        "proxies",
        "warn",
        f"{', '.join(used)}: set, and ignored",
        "hosts are asked directly, so that the address policy holds; if a proxy is the only way out (see "
        "egress), run on a machine that has its own",
        {"variables": used},
    )


def _open_files(spec: FetchSpec, workers: int) -> Finding:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = spec.connections + OTHER_FILES
    facts = {"soft": soft, "hard": hard, "needed": needed, "workers": workers}
    ports = _ephemeral_ports()
    seen = f"{soft:,} may be open in a process; a worker with {spec.connections} connections needs {needed:,}"
    if soft != resource.RLIM_INFINITY and soft < needed:
        enough = hard == resource.RLIM_INFINITY or hard >= needed
        raise_it = f"`ulimit -n {needed}`" if enough else "raise the hard limit (limits.conf, LimitNOFILE=)"
        return Finding("open files", "bad", seen, f"{raise_it}, or lower connections in [fetch]", facts)
    if ports and workers * spec.connections > ports:
        seen = f"{workers} workers with {spec.connections} connections each, and {ports:,} local ports"
        return Finding(
            "open files", "warn", seen, "widen net.ipv4.ip_local_port_range, or lower connections", facts
        )
    return Finding("open files", "ok", seen, facts=facts)


def _ephemeral_ports() -> int | None:
    try:
        first, last = map(int, Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split())
    except (OSError, ValueError):
        return None
    return last - first + 1


def _memory(workers: int) -> Finding:
    available = _available_memory()
    needed = workers * WORKER_BYTES + RAY_BYTES
    if available is None:
        return Finding("memory", "skipped", "this system does not say how much there is")
    seen = f"{_size(available)} available; {workers} workers and Ray take about {_size(needed)}"
    facts = {"available": available, "needed": needed}
    if available < needed:
        fitting = max(1, (available - RAY_BYTES) // WORKER_BYTES)
        return Finding("memory", "warn", seen, f"--workers {fitting}, or --inline without Ray", facts)
    return Finding("memory", "ok", seen, facts=facts)


def _available_memory() -> int | None:
    """Bytes; of a container with a limit of its own, what is left of that."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        available = next(int(line.split()[1]) << 10 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration):
        return None
    try:
        limit, used = ((CGROUP / name).read_text().strip() for name in ("memory.max", "memory.current"))
        return available if limit == "max" else min(available, max(0, int(limit) - int(used)))
    except OSError:
        return available


def _shared_memory() -> Finding:
    try:
        free = shutil.disk_usage("/dev/shm").free
    except OSError:
        return Finding("shared memory", "skipped", "there is no /dev/shm here")
    if free >= SHM_BYTES:
        return Finding("shared memory", "ok", f"{_size(free)} free in /dev/shm", facts={"free": free})
    return Finding(
        "shared memory",
        "warn",
        f"{_size(free)} free in /dev/shm: Ray will use files instead, and say so",
        f"give it {_size(SHM_BYTES)} (docker run --shm-size=1g), or run --inline",
        {"free": free},
    )


def _disk(corpus: Corpus | None, store: Store | None, needed: float | None) -> Finding:
    if store is None:
        return Finding("disk", "skipped", "no --out is given")
    if not store.is_local:
        return Finding("disk", "skipped", f"{store.root} does not say how much it takes")
    place = _existing(Path(store.root))
    if (why := _not_writable(place)) is not None:
        return Finding("disk", "bad", f"{place}: {why}", "choose an --out that can be written to")
    free, sure, how = shutil.disk_usage(place).free, True, ""
    if needed is None and corpus is not None:
        needed, how = _needed_bytes(corpus, store), " by a rule of thumb"
        # Before there is a plan, nobody knows of a --limit, and rows may be captions of one image.
        sure = all(_plan(store, source) for source in corpus.sources)
    facts = {"free": free, "needed": needed}
    if needed is None:
        seen = f"{_size(free)} free at {place}; what the corpus takes is not known"
        return Finding("disk", "ok", seen, facts=facts)
    seen = f"{_size(free)} free at {place}; the corpus takes {_size(needed)}{how}"
    do = "make room, or choose another --out; `pmd estimate` tells more exactly"
    if free < needed and sure:
        return Finding("disk", "bad", seen, do, facts)
    if free < 1.3 * needed:
        return Finding("disk", "warn", seen, do, facts)
    return Finding("disk", "ok", seen, facts=facts)


def _needed_bytes(corpus: Corpus, store: Store) -> float | None:
    """What is still to be written. None where a source's rows are not known: files of one's own, no
    plan.
    """
    images = 0.0
    for source in corpus.sources:
        if plan := _plan(store, source):
            there = {*store.names(f"shards/{source}", ".parquet")}
            left = plan["shards"] - sum(
                numbered("shards", source, number) in there for number in range(plan["shards"])
            )
            images += plan["images_to_fetch"] * left / max(1, plan["shards"])
            continue
        edition = _edition(corpus, source)
        if edition is None:
            return None
        images += edition.rows[1]  # an image has a row or more
    return images * _image_bytes(corpus.image) * COPIES


def _image_bytes(spec: ImageSpec) -> float:
    """About, for photos of 4:3 that are shrunk."""
    if spec.resize_mode == "no":
        return WHOLE_IMAGE_BYTES
    squares = {"keep_ratio": 4 / 3, "keep_ratio_largest": 3 / 4}.get(spec.resize_mode, 1.0)
    # A photo is as large as it is: hardly one of the web gives more than 1,000 px.
    return min(BYTES_A_PIXEL * squares * spec.image_size**2, 5 * WHOLE_IMAGE_BYTES)


def _library(corpus: Corpus | None) -> Finding:
    library = Library()
    place = _existing(library.folder)
    if (why := _not_writable(place)) is not None:
        return Finding(
            "library", "bad", f"{place}: {why}", "set PMD_LIBRARY to a folder for the published files"
        )
    free, needed = shutil.disk_usage(place).free, 0
    for source in _published(corpus):
        edition = _edition(corpus, source)
        if edition and library.pin(source) is None:
            needed += sum(file.size or 0 for file in edition.file)
    seen = f"{library.folder} can be written to: {_size(free)} free, {_size(needed)} to be downloaded at most"
    facts = {"free": free, "needed": needed}
    if free < needed:
        do = "make room, or set PMD_LIBRARY to a folder with more"
        # Without a corpus nobody has asked for these files yet.
        return Finding("library", "bad" if corpus else "warn", seen, do, facts)
    return Finding("library", "ok", seen, facts=facts)


def _existing(path: Path) -> Path:
    """The folder itself, or where it would be made."""
    return path if path.is_dir() or path == path.parent else _existing(path.parent)


def _not_writable(folder: Path) -> str | None:
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"?")
        return None
    except OSError as error:
        return str(error.strerror or error)


# What is to be asked


def _sites(corpus: Corpus | None, store: Store | None) -> dict[str, str]:
    """Host -> scheme://host:port of one of its URLs: those with the most images first. Of sources
    without a plan, the hosts of their published files.
    """
    rows, sites = Counter[str](), dict[str, str]()
    for url in _urls(corpus, store):
        try:
            read = read_url(url)
        except BadUrl:
            continue
        host = read.raw_host or ""
        rows[host] += 1
        sites.setdefault(host, str(read.origin()))
    return {host: sites[host] for host, _ in rows.most_common()}


def _urls(corpus: Corpus | None, store: Store | None) -> Iterator[str]:
    for source in corpus.sources if corpus else _published(corpus):
        if store and (plan := _plan(store, source)):
            last = plan["shards"] - 1
            for number in sorted({0, last // 2, last} if last >= 0 else ()):
                with store.reading(numbered("plan", source, number)) as path:
                    yield from filter(None, read_table(path, columns=["url"])["url"].to_pylist())
            continue
        given = corpus.source_spec(source) if corpus else None
        if edition := _edition(corpus, source):
            yield from (file.url for file in edition.file)
        yield from (entry for entry in (given.files + given.archive if given else ()) if "://" in entry)


def _plan(store: Store, source: str) -> dict[str, Any] | None:
    return read_plan(store, source) if store.exists(DEFINITION) else None


def _published(corpus: Corpus | None) -> Sequence[str]:
    known = sorted(path.stem for path in (manifest_folder() / "sources").glob("*.toml"))
    return [source for source in corpus.sources if source in known] if corpus else known


def _edition(corpus: Corpus | None, source: str) -> Edition | None:
    """The published files that a corpus takes of a source; None where it has files of its own."""
    if source not in _published(corpus):
        return None
    spec = corpus.source_spec(source) if corpus else None
    return None if spec and spec.files else load_source(source).edition_named(spec.edition if spec else "")


def _some(sites: Mapping[str, str], count: int) -> list[str]:
    """Half of them those with the most images, the others at random, the same each time."""
    first, others = [*sites.values()][: count // 2], [*sites.values()][count // 2 :]
    return first + random.Random(0).sample(others, min(len(others), count - len(first)))


def _is_mapped_or_literal(host: str, site: str, policy: AddressPolicy) -> bool:
    """Is there no name to look up?"""
    url = read_url(site)
    literal = ":" in host or host.replace(".", "").isdecimal()
    return literal or policy.mapped(host, url.port or 80) is not None


# The network


def _resolver() -> Finding:
    try:
        lines = [line.split() for line in RESOLV_CONF.read_text().splitlines()]
    except OSError as error:
        return Finding("resolver", "skipped", f"{RESOLV_CONF}: {error.strerror}")
    servers = [line[1] for line in lines if line[:1] == ["nameserver"] and len(line) > 1]
    search = [name for line in lines if line[:1] in (["search"], ["domain"]) for name in line[1:]]
    options = [option for line in lines if line[:1] == ["options"] for option in line[1:]]
    dots = next((option[6:] for option in reversed(options) if option.startswith("ndots:")), "1")
    facts = {"servers": servers, "search": search, "options": options}
    seen = f"name servers: {', '.join(servers) or 'none named'}"
    if search and dots.isdecimal() and int(dots) > 1:
        return Finding(
            "resolver",
            "warn",
            f"{seen}; ndots:{dots} with {len(search)} search domains",
            f"a host is looked up {len(search) + 1} times, first as one of yours: set ndots:1 for the "
            "workers (Kubernetes: dnsConfig)",
            facts,
        )
    return Finding("resolver", "ok", seen, facts=facts)


def _lookups(names: Sequence[str], spec: FetchSpec) -> Finding:
    if not names:
        return Finding("lookups", "skipped", "no name of a host is known that is to be looked up")
    chosen = random.Random(0).sample(names, min(len(names), NAMES))
    found = look_up(chosen, spec=spec)
    speed = found.asked / max(found.seconds, 1e-3)
    facts = asdict(found) | {"names_per_s": speed}
    seen = f"{found.found} of {found.asked} names found in {found.seconds:.1f} s"
    parts = {"no such name": found.none, "no answer": found.unanswered, "not public": found.blocked}
    seen += "".join(f", {count} {what}" for what, count in parts.items() if count)
    if found.unanswered == found.asked:
        return Finding(
            "lookups", "bad", seen, "no name server answers: see resolver above, and the network", facts
        )
    if found.blocked == found.asked:
        do = "all names lead to one's own network: a captive portal, or a resolver that filters"
        return Finding("lookups", "bad", seen, do, facts)
    if not found.found:
        return Finding("lookups", "bad", seen, "the resolver knows no name of the web: use another", facts)
    if found.unanswered > UNANSWERED * found.asked:
        do = "the resolver cannot keep up: run one that caches on this machine, or lower connections"
        return Finding("lookups", "warn", seen, do, facts)
    if found.asked >= FEW_NAMES and speed < SLOW_NAMES:
        do = f"{speed:.0f} names/s is what a run will wait for: run a resolver that caches on this machine"
        return Finding("lookups", "warn", seen, do, facts)
    return Finding("lookups", "ok", seen, facts=facts)


def _egress(visits: Sequence[Visit]) -> Finding:
    if not visits:
        return Finding("egress", "skipped", "no host is known that could be asked")
    answered = [seen for seen in visits if not seen.failure]
    failed = [f"{_host(seen.url)}: {seen.failure}" for seen in visits if seen.failure]
    waits = [seen.first_byte_s for seen in answered if seen.first_byte_s is not None]
    connects = [seen.connect_s for seen in answered if seen.connect_s is not None]
    seen = f"{len(answered)} of {len(visits)} hosts answer"
    facts: dict[str, Any] = {"answered": len(answered), "asked": len(visits), "failed": failed}
    if not answered:
        return Finding(
            "egress", "bad", f"{seen}; {failed[0]}", "there is no way out: see to the network", facts
        )
    first_byte, connect = statistics.median(waits), statistics.median(connects)
    facts |= {"connect_s": connect, "first_byte_s": first_byte}
    seen += f"; median: connected in {1000 * connect:.0f} ms, first byte {1000 * first_byte:.0f} ms later"
    portals = _portals(answered)
    if portals:
        do = f"log in there first: {portals[0]} answers in place of the hosts that were asked"
        return Finding("egress", "bad", seen, do, facts | {"portals": portals})
    lame = [seen for seen in answered if any(":" in address for address in seen.unreachable)]
    if lame:
        do = "IPv6 addresses are found, but not reached: new connections lose time; switch IPv6 off, or on"
        return Finding("egress", "warn", seen, do, facts)
    if failed:
        do = "dead hosts are outcomes, not failures; look whether these should be: " + "; ".join(failed[:3])
        return Finding("egress", "warn", seen, do, facts)
    if first_byte > SLOW_FIRST_BYTE_S:
        return Finding(
            "egress", "warn", seen, "the network is slow, or full: raise timeout_s in [fetch]", facts
        )
    return Finding("egress", "ok", seen, facts=facts)


def _portals(answered: Sequence[Visit]) -> list[str]:
    """Hosts that stand in for several others, as a login page of a network does."""
    led = Counter[str]()
    for seen in answered:
        if seen.status in (407, 511):
            led[_host(seen.location) or "a proxy"] += 2
        elif _host(seen.location) and not _related(_host(seen.location), _host(seen.url)):
            led[_host(seen.location)] += 1
    return sorted(host for host, count in led.items() if count >= max(2, len(answered) / 2))


def _host(url: str) -> str:
    try:
        return read_url(url).raw_host or ""
    except BadUrl:  # a Location may be but a path
        return ""


def _related(one: str, other: str) -> bool:
    """Do two names end alike? www.a.example and a.example do."""
    return one.split(".")[-2:] == other.split(".")[-2:]


def _tls(visits: Sequence[Visit]) -> Finding:
    secure = [seen for seen in visits if seen.tls_s is not None or seen.untrusted]
    if not secure:
        return Finding("tls", "skipped", "no host was asked over TLS")
    issuers = Counter(seen.issuer or "an issuer without a name" for seen in secure)
    untrusted = [seen for seen in secure if seen.untrusted]
    told = ", ".join(f"{issuer} ({count})" for issuer, count in issuers.most_common(5))
    seen = f"{len(secure) - len(untrusted)} of {len(secure)} certificates are trusted; issued by {told}"
    facts = {"issuers": dict(issuers), "untrusted": [seen.url for seen in untrusted]}
    if not untrusted:
        return Finding("tls", "ok", seen, facts=facts)
    strange = Counter(seen.issuer for seen in untrusted)
    issuer, count = strange.most_common(1)[0]
    if len(untrusted) == len(secure) or count > 1:
        do = (
            f"{issuer or 'somebody'} opens what is sent: if that is meant to be, name its authority in "
            f"[fetch] ca_file; or use another network ({untrusted[0].failure})"
        )
        return Finding("tls", "bad", seen, do, facts)
    do = f"one host's own fault, if the others are trusted: {_host(untrusted[0].url)}, {untrusted[0].failure}"
    return Finding("tls", "warn", seen, do, facts)


def _clock(visits: Sequence[Visit]) -> Finding:
    known = [seen.ahead_s for seen in visits if seen.ahead_s is not None]
    if not known:
        return Finding("clock", "skipped", "no host said what time it is")
    ahead = statistics.median(known)
    which = "ahead of" if ahead > 0 else "behind"
    seen = f"{abs(ahead):,.0f} s {which} the clocks of {len(known)} hosts (median)"
    facts = {"ahead_s": ahead}
    # A Date has whole seconds, and its answer was under way.
    if abs(ahead) <= CLOCK_WARN_S:
        return Finding("clock", "ok", seen, facts=facts)
    do = "set it (chrony, systemd-timesyncd): certificates and Retry-After are read by the clock"
    return Finding("clock", "bad" if abs(ahead) > CLOCK_BAD_S else "warn", seen, do, facts)


def _size(count: float) -> str:
    """Bytes, as a person says it."""
    for unit in ("bytes", "kB", "MB", "GB", "TB"):
        if count < 1000 or unit == "TB":
            break
        count /= 1000
    return f"{count:,.0f} {unit}" if count >= 10 or unit == "bytes" else f"{count:.1f} {unit}"
