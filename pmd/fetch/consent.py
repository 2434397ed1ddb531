"""Whether a site lets its pictures be collected and learnt from: what its files and its headers say.

    robots.txt, tdmrep.json, ai.txt --read_site--> a few bytes, the same for all workers of a run
    these bytes --SitePolicy--+-- before(path) --> Verdict: may it be asked for?
    headers of an answer -----+-- after(...) ----> Verdict: may its body be read?

Nothing here opens a connection. Which signals count is in [fetch] consent, how they are worded in
manifests/consent.toml. A site that cannot be read has not agreed: its rows wait for another run.
"""

import functools
import hashlib
import json
import re
import tomllib
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Self
from urllib.parse import quote

from protego import Protego

from pmd.manifest import FetchSpec, Signal, manifest_folder
from pmd.records import Reason

ROBOTS, TDMREP, AI = "/robots.txt", "/.well-known/tdmrep.json", "/ai.txt"
READ_BYTES = 500 * 1024  # of each site file: as much as RFC 9309 asks a crawler to read at least
SAID_LENGTH = 200  # characters of what a site said, where it is put down
# Headers that are read, and the signal that each of them is.
HEADERS: Mapping[str, Signal] = {
    "x-robots-tag": "x_robots_tag",
    "tdm-reservation": "tdm_reservation",
    "content-usage": "content_usage",
    "content-signal": "content_signal",
}
REASONS: Mapping[Signal, Reason] = {
    "robots": Reason.OPTOUT_ROBOTS,
    "x_robots_tag": Reason.OPTOUT_X_ROBOTS_TAG,
    "tdm_reservation": Reason.OPTOUT_TDM,
    "tdmrep": Reason.OPTOUT_TDM,
    "ai_txt": Reason.OPTOUT_AI_TXT,
    "content_usage": Reason.OPTOUT_CONTENT_USAGE,
    "content_signal": Reason.OPTOUT_CONTENT_USAGE,
}
# The signals that each site file is read for.
FILES: Mapping[str, frozenset[Signal]] = {
    ROBOTS: frozenset({"robots", "content_usage", "content_signal"}),
    TDMREP: frozenset({"tdmrep"}),
    AI: frozenset({"ai_txt"}),
}


@dataclass(frozen=True)
class Verdict:
    """What a site says of one picture."""

    reason: Reason | None = None  # why it is not taken
    signal: Signal | None = None  # the one that says so; None where a site file could not be read
    said: str = ""  # as it says it; of a consent, the signals that state one

    @property
    def text(self) -> str:
        """For the index: the same for the same bytes served."""
        if self.reason is None:
            return f"yes: {self.said}" if self.said else "yes"
        return f"no: {self.said}"


@dataclass(frozen=True)
class SiteFile:
    """How a site's answer to the request for one of its files ended."""

    body: bytes | None  # its first READ_BYTES; None: there is no such file
    status: int | None = None
    unreadable: str = ""  # why nobody knows what it says; then body is None


@dataclass(frozen=True)
class Words:
    """manifests/consent.toml"""

    x_robots_refusals: frozenset[str]
    x_robots_with_value: frozenset[str]
    tdm: Mapping[str, bool]  # value -> is it a refusal?
    uses: Mapping[Signal, tuple[tuple[str, ...], ...]]
    values: Mapping[Signal, Mapping[str, bool]]
    version: str  # sha256 of the file: it decides which images there are

    @classmethod
    def read(cls, file: bytes) -> Self:
        """Raises ValueError, KeyError where it is not such a file."""
        table = tomllib.loads(file.decode())
        if unknown := set(table) - {"x_robots_tag", "tdm_reservation", "content_usage", "content_signal"}:
            raise ValueError(f"unknown tables: {', '.join(sorted(unknown))}")

        def values(name: str) -> dict[str, bool]:
            return dict.fromkeys(table[name]["grants"], False) | dict.fromkeys(table[name]["refusals"], True)

        usage: tuple[Signal, ...] = ("content_usage", "content_signal")
        return cls(
            frozenset(table["x_robots_tag"]["refusals"]),
            frozenset(table["x_robots_tag"]["with_value"]),
            values("tdm_reservation"),
            {signal: tuple(tuple(uses) for uses in table[signal]["uses"]) for signal in usage},
            {signal: values(signal) for signal in usage},
            hashlib.sha256(file).hexdigest(),
        )


@functools.cache
def known_words() -> Words:
    """Those that we ship."""
    return Words.read((manifest_folder() / "consent.toml").read_bytes())


@dataclass(frozen=True)
class Terms:
    """What is asked of sites in one run: the signals that count, and who we are to them."""

    signals: frozenset[Signal]
    agents: tuple[str, ...]  # in lower case; the first is our own, the others mean us only if they are named
    words: Words = field(default_factory=known_words)

    @classmethod
    def of(cls, spec: FetchSpec) -> Self:
        own = re.match(r"[a-z_-]+", spec.user_agent.lower())
        others = (agent.lower() for agent in spec.consent_agents)
        return cls(frozenset(spec.consent), (own.group() if own else "*", *others))

    def files(self) -> tuple[str, ...]:
        """The site files to be read, in this order."""
        return tuple(path for path, signals in FILES.items() if signals & self.signals)


# Site files -> bytes


def read_site(terms: Terms, files: Mapping[str, SiteFile]) -> bytes:
    """What the files of a site say to us, for SitePolicy.of. Files that are not asked for may be left out."""
    said: dict[str, Any] = {"files": {path: _evidence(file) for path, file in files.items()}}
    if unreadable := [f"{path}: {file.unreadable}" for path, file in files.items() if file.unreadable]:
        said["unreadable"] = unreadable[0]
    if body := _body(files, ROBOTS):
        groups = _our_groups(_text(body), terms.agents)
        if "robots" in terms.signals:
            said["robots"] = [lines for lines in groups if lines]
        for signal in ("content_usage", "content_signal"):
            if signal in terms.signals:
                said[signal] = [*_usage_lines(groups, signal)]
    if body := _body(files, AI):
        # Its rules name kinds of files, *.jpg for one, whatever the case.
        said["ai"] = [lines for lines in _our_groups(_text(body).lower(), terms.agents) if lines]
    if body := _body(files, TDMREP):
        said["tdm"] = [*_reservations(body, terms.words)]
    return zlib.compress(json.dumps(said, sort_keys=True, separators=(",", ":")).encode())


def _body(files: Mapping[str, SiteFile], path: str) -> bytes | None:
    return files[path].body if path in files else None


def _evidence(file: SiteFile) -> dict[str, Any]:
    digest = None if file.body is None else hashlib.sha256(file.body).hexdigest()
    found = {"status": file.status, "sha256": digest, "unreadable": file.unreadable or None}
    return {name: value for name, value in found.items() if value is not None}


def _text(body: bytes) -> str:
    if len(body) >= READ_BYTES:  # the last line may be cut
        body = body[: max(body.rfind(b"\n"), body.rfind(b"\r")) + 1] or body
    return body.decode("utf-8-sig", "replace")


# To Python they end a line, to robots.txt they do not.
_ODD_ENDS = re.compile("[\x0b\x0c\x1c-\x1e\x85\u2028\u2029]")
_AGENT = re.compile(r"user[- ]?agent\s*:\s*(.*)", re.IGNORECASE)
_FIELD = re.compile(r"([a-z][a-z -]*?)\s*:\s*(.*)", re.IGNORECASE)


def _our_groups(text: str, agents: Sequence[str]) -> list[list[str]]:
    """The rules for us of a robots.txt, or of a file like it: a list for each of our names that has a group.
    Our own has that of all crawlers where it has none.
    """
    groups: dict[str, list[str]] = {}
    everybody: list[str] = []  # what stands before any group and is about use
    named: list[str] = []
    ruled = False
    for line in re.split(r"\r\n|\r|\n", text):
        line = _ODD_ENDS.sub(lambda odd: quote(odd.group()), line).partition("#")[0].strip()
        if found := _AGENT.match(line):
            if ruled:
                named, ruled = [], False
            # The token at its beginning is the name: "Bot/1.0" is Bot.
            name = re.match(r"\*|[a-z0-9._-]*", found.group(1).lower())
            named.append(name.group() if name else "")
            groups.setdefault(named[-1], [])
        elif line and not line.lower().startswith("sitemap"):
            ruled = True
            for name in set(named):
                groups[name].append(line)
            if not named and line.lower().startswith("content-"):
                everybody.append(line)
    own, *others = agents
    ours = [groups.get(own, groups.get("*", []))]
    ours += [groups[agent] for agent in others if agent in groups]
    ours[0] = everybody + ours[0]
    return ours


def _usage_lines(groups: Iterable[Iterable[str]], signal: Signal) -> Iterator[tuple[str, str]]:
    """(path, what is said of it) of each line of Content-Usage, Content-Signal."""
    for lines in groups:
        for line in lines:
            found = _FIELD.match(line)
            if found and found.group(1).lower().replace("-", "_") == signal:
                value = found.group(2)
                path, _, rest = value.partition(" ") if value[:1] in ("/", "*") else ("/", "", value)
                yield path, rest


def _reservations(body: bytes, words: Words) -> Iterator[tuple[str, bool]]:
    """(path, reserved?) of each rule of a tdmrep.json. One that cannot be read has none."""
    try:
        rules = json.loads(body.decode("utf-8-sig", "replace"))
    except (ValueError, RecursionError):
        return
    for rule in rules if isinstance(rules, list) else [rules]:
        if not isinstance(rule, dict):
            continue
        location = rule.get("location", "/")
        reserved = words.tdm.get(str(rule.get("tdm-reservation")).lower())
        if isinstance(location, str) and reserved is not None:
            yield (location if location[:1] in ("/", "*") else "/" + location), reserved


# Bytes -> verdicts


class SitePolicy:
    """What a site has said in its files, read for good."""

    def __init__(self, terms: Terms, said: Mapping[str, Any], *, size: int = 0) -> None:
        self._terms = terms
        self.size = size  # bytes of what it says; it takes some ten times as much memory
        self.evidence: Mapping[str, Any] = said.get("files", {})
        self._unreadable: str | None = said.get("unreadable")
        self._robots = [_rules(lines) for lines in said.get("robots", ())]
        self._ai = [_rules(lines) for lines in said.get("ai", ())]
        # Among its rules the longest path decides, as in robots.txt.
        self._tdm = [(location, reserved) for location, reserved in said.get("tdm", ())]
        usage: tuple[Signal, ...] = ("content_usage", "content_signal")
        self._usage: dict[Signal, list[tuple[str, str]]] = {
            signal: [(path, value) for path, value in said[signal]] for signal in usage if said.get(signal)
        }

    @classmethod
    def of(cls, terms: Terms, said: bytes) -> Self:
        text = zlib.decompress(said)
        return cls(terms, json.loads(text), size=len(text))

    @property
    def crawl_delay_s(self) -> float | None:
        """The longest that robots.txt asks for between two requests."""
        delays: list[float] = []
        for rules in self._robots:
            if (delay := rules.crawl_delay("*")) is not None:
                delays.append(delay)
            if (rate := rules.request_rate("*")) is not None and rate.requests > 0:
                delays.append(rate.seconds / rate.requests)
        return max(delays, default=None)

    def before(self, path: str) -> Verdict:
        """May this path (with its query) be asked for?"""
        if self._unreadable is not None:
            return Verdict(Reason.OPTOUT_UNREACHABLE, None, self._unreadable.partition(":")[0])
        if not all(_allow(rules, path) for rules in self._robots):
            return _refused("robots", "robots.txt")
        if not all(_allow(rules, path.lower()) for rules in self._ai):
            return _refused("ai_txt", "ai.txt")
        # A header of the answer goes before tdmrep.json, so it is asked for where headers count.
        if "tdm_reservation" not in self._terms.signals and self._is_reserved(path):
            return _refused("tdmrep", "tdmrep.json")
        for signal in self._usage:
            verdict = self._use(signal, self._usage_of(signal, path), "robots.txt")
            if verdict.reason is not None:
                return verdict
        return Verdict()

    def after(self, path: str, headers: Iterable[tuple[str, str]]) -> Verdict:
        """May the body of an answer with these header fields be read? All verdicts together, if it may."""
        fields: dict[Signal, list[str]] = {}
        for name, value in headers:
            signal = HEADERS.get(name.lower())
            if signal in self._terms.signals:
                fields.setdefault(signal, []).append(value)
        granted: list[str] = []
        verdicts: list[Verdict] = []
        if values := fields.get("x_robots_tag"):
            verdicts.append(_x_robots_tag(self._terms, values))
        values = _items(fields.get("tdm_reservation", ()))
        stated = [self._terms.words.tdm.get(value.strip(" \t\"'").lower()) for value in values]
        if True in stated:
            verdicts.append(_refused("tdm_reservation", "tdm-reservation: 1"))
        elif False in stated:
            granted.append("tdm-reservation: 0")
        elif self._is_reserved(path):
            verdicts.append(_refused("tdmrep", "tdmrep.json"))
        for signal in ("content_usage", "content_signal"):
            in_header = fields.get(signal, [])
            in_file = self._usage_of(signal, path) if signal in self._usage else []
            for values, where in ((in_header, signal.replace("_", "-")), (in_file, "robots.txt")):
                verdict = self._use(signal, values, where)
                verdicts.append(verdict)
                granted += [verdict.said] if verdict.reason is None and verdict.said else []
        refusals = [verdict for verdict in verdicts if verdict.reason is not None]
        return refusals[0] if refusals else Verdict(said="; ".join(dict.fromkeys(granted))[:SAID_LENGTH])

    def _is_reserved(self, path: str) -> bool:
        found = _longest(self._tdm, path)
        return any(found)

    def _usage_of(self, signal: Signal, path: str) -> list[str]:
        return _longest(self._usage[signal], path)

    def _use(self, signal: Signal, values: Iterable[str], where: str) -> Verdict:
        """Of the uses that these values state."""
        stated: dict[str, bool] = {}
        for item in _items(values):
            name, _, value = item.partition("=")
            refused = self._terms.words.values[signal].get(value.partition(";")[0].strip(" \t\"'").lower())
            name = name.strip().lower()
            if refused is not None:  # of two statements about one use the "no" holds
                stated[name] = stated.get(name, False) or refused
        ours: list[str] = []
        for uses in self._terms.words.uses[signal]:
            ours += [use for use in uses if use in stated][:1]
        for use in ours:
            if stated[use]:
                return _refused(signal, f"{where}: {use}=no")
        return Verdict(said=f"{where}: {ours[0]}=yes" if ours else "")


def _rules(lines: Sequence[str]) -> Protego:
    return Protego.parse("\n".join(("User-agent: *", *lines)))


def _allow(rules: Protego, path: str) -> bool:
    return rules.can_fetch("http://site" + path, "*")  # a path that begins with // would pass for a host


def _longest(rules: Iterable[tuple[str, Any]], path: str) -> list[Any]:
    """What the rules with the longest of the matching paths say."""
    found: list[Any] = []
    longest = -1
    for pattern, value in rules:
        if len(pattern) < longest or not _matches(pattern, path):
            continue
        found = [*found, value] if len(pattern) == longest else [value]
        longest = len(pattern)
    return found


@functools.lru_cache(4096)
def _pattern(pattern: str) -> Protego:
    return _rules((f"Disallow: {pattern}",))


def _matches(pattern: str, path: str) -> bool:
    return pattern == "/" or not _allow(_pattern(pattern), path)


def _refused(signal: Signal, said: str) -> Verdict:
    return Verdict(REASONS[signal], signal, said[:SAID_LENGTH])


def _items(values: Iterable[str]) -> Iterator[str]:
    for value in values:
        yield from (item.strip() for item in value.split(",") if item.strip())


def _x_robots_tag(terms: Terms, values: Iterable[str]) -> Verdict:
    """Of all fields of that name. A crawler's name and a colon say whom what follows in that field is for."""
    words = terms.words
    for value in values:
        ours = True
        for item in _items((value,)):
            name, colon, rest = (part.strip().lower() for part in item.partition(":"))
            directive = name
            if colon and name not in words.x_robots_with_value and name not in words.x_robots_refusals:
                ours = name == "*" or name in terms.agents
                # "bot: unavailable_after: ...": what has a value has it behind another colon.
                directive = rest.partition(":")[0].strip()
            if ours and directive in words.x_robots_refusals:
                return _refused("x_robots_tag", f"x-robots-tag: {directive}")
    return Verdict()
