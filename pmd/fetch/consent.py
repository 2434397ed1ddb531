"""Whether a site lets its pictures be collected and learnt from: what its files and its headers say.

    robots.txt, tdmrep.json, ai.txt --read_site--> a few bytes, the same for all workers of a run
    these bytes --SitePolicy--+-- before(path) --> Verdict: may it be asked for?
    headers of an answer -----+-- after(...) ----> Verdict: may its body be read?

Nothing here opens a connection. Which signals count is in [fetch] consent, how they are worded in
manifests/consent.toml. A site that cannot be read has not agreed: its rows wait for another run.
"""

import contextlib
import functools
import hashlib
import json
import math
import re
import tomllib
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Self
from urllib.parse import quote

from pmd.manifest import FetchSpec, Signal, manifest_folder
from pmd.records import Reason

ROBOTS, TDMREP, AI = "/robots.txt", "/.well-known/tdmrep.json", "/ai.txt"
READ_BYTES = 500 * 1024  # of each site file: as much as RFC 9309 asks a crawler to read at least
KEPT_BYTES = 10**6  # of what the files of a site say; Share bears no more than 1 MiB
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
USAGE: tuple[Signal, ...] = ("content_usage", "content_signal")  # they say the same, in two vocabularies
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

        return cls(
            frozenset(table["x_robots_tag"]["refusals"]),
            frozenset(table["x_robots_tag"]["with_value"]),
            values("tdm_reservation"),
            {signal: tuple(tuple(uses) for uses in table[signal]["uses"]) for signal in USAGE},
            {signal: values(signal) for signal in USAGE},
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
        others = (agent.lower() for agent in spec.consent_agents)
        return cls(frozenset(spec.consent), (_agent(spec.user_agent) or "*", *others))

    def files(self) -> tuple[str, ...]:
        """The site files to be read, in this order."""
        return tuple(path for path, signals in FILES.items() if signals & self.signals)


_AGENT = re.compile(r"\s*(?:\**([a-z0-9._-]+)|\*(?!\*))")


def _agent(text: str) -> str:
    """The name at its beginning, in lower case: "Bot/1.0 (or so)" is bot. Empty: there is none."""
    found = _AGENT.match(text.lower())
    return (found[1] or "*") if found else ""


# Site files -> bytes


def read_site(terms: Terms, files: Mapping[str, SiteFile]) -> bytes:
    """What the files of a site say to us, for SitePolicy.of. Files that are not asked for may be left out."""
    files = {path: files[path] for path in terms.files() if path in files}
    said: dict[str, Any] = {"files": {path: _evidence(file) for path, file in files.items()}}
    if unreadable := [f"{path}: {file.unreadable}" for path, file in files.items() if file.unreadable]:
        said["unreadable"] = unreadable[0]
    bodies = {path: _text(file.body) for path, file in files.items() if file.body}
    rules: dict[str, Any] = {}
    if ROBOTS in bodies:
        groups = _our_groups(bodies[ROBOTS], terms.agents)
        if "robots" in terms.signals:
            rules["robots"] = [[*_path_rules(group)] for group in groups]
            rules["delay_s"] = max((delay for group in groups for delay in _delays(group)), default=None)
        for signal in USAGE:
            if signal in terms.signals:
                rules[signal] = [[*_usage_rules(group, signal)] for group in groups]
    if AI in bodies:
        # Its rules name kinds of files, *.jpg for one, whatever the case.
        groups = _our_groups(bodies[AI], terms.agents)
        rules["ai"] = [[(path.lower(), allowed) for path, allowed in _path_rules(group)] for group in groups]
    if TDMREP in bodies:
        rules["tdm"] = [*_reservations(bodies[TDMREP], terms.words)]
    text = json.dumps(said | rules, sort_keys=True, separators=(",", ":"))
    if len(text) > KEPT_BYTES:
        largest = max(bodies, key=lambda path: len(bodies[path]))
        said.setdefault("unreadable", f"{largest}: its rules are too long")
        text = json.dumps(said, sort_keys=True, separators=(",", ":"))
    return zlib.compress(text.encode())


def _evidence(file: SiteFile) -> dict[str, Any]:
    digest = None if file.body is None else hashlib.sha256(file.body).hexdigest()
    found = {"status": file.status, "sha256": digest, "unreadable": file.unreadable or None}
    return {name: value for name, value in found.items() if value is not None}


def _text(body: bytes) -> str:
    """What is not in its encoding stays as it is, as an octet of a path may."""
    if len(body) >= READ_BYTES:  # the last line may be cut
        body = body[:READ_BYTES]
        body = body[: max(body.rfind(b"\n"), body.rfind(b"\r")) + 1] or body
    if body[:2] in (b"\xff\xfe", b"\xfe\xff"):
        return body.decode("utf-16", "replace")
    # A mark of the byte order may be in the middle too: two files, one put behind the other.
    return body.decode("utf-8", "surrogateescape").replace("\ufeff", "").replace("\0", "")


# A line that is a rule to us. The colon may be missing and "disallow" be misspelt, as Google reads them.
_LINE = re.compile(
    r"(?:(?P<agent>user[- ]?agent)|(?P<allow>allow)|(?P<disallow>di[sal]+[ao]w)"
    r"|(?P<delay>crawl[- ]delay)|(?P<rate>request[- ]rate)"
    r"|(?P<content_usage>content-usage)|(?P<content_signal>content-signal))(?:\s*:|\s)\s*",
    re.IGNORECASE,
)
_Group = Iterable[tuple[str, str]]  # (name in _LINE, value)


def _our_groups(text: str, agents: Sequence[str]) -> Sequence[_Group]:
    """The rules for us of a robots.txt, or of a file like it: a group for each of our names that has one.
    Our own has that of all crawlers where it has none.
    """
    groups: dict[str, dict[tuple[str, str], None]] = {}
    everybody: dict[tuple[str, str], None] = {}  # what stands before any group and is about use
    named: set[str] | None = None  # those of our names that the group is for
    ruled = False
    for line in re.split(r"[\r\n]+", text):
        line = line.partition("#")[0].strip()
        found = _LINE.match(line)
        if found is None:  # it ends no group, says RFC 9309
            continue
        kind, value = found.lastgroup or "", line[found.end() :]
        if kind == "agent":
            if ruled or named is None:
                named, ruled = set(), False
            named |= {_agent(name) for name in value.split(",")} & {*agents, "*"}
            for name in named:
                groups.setdefault(name, {})
            continue
        ruled = True
        if named is None and kind.startswith("content_"):
            everybody[kind, value] = None
        for name in named or ():
            groups[name][kind, value] = None
    own, *others = agents
    ours = [everybody | groups.get(own, groups.get("*", {}))]
    ours += [groups[agent] for agent in others if agent in groups]
    return [group for place, group in enumerate(ours) if group not in ours[:place]]


def _path_rules(group: _Group) -> Iterator[tuple[str, bool]]:
    """(path, allowed?) of each Allow and Disallow."""
    for kind, value in group:
        if kind == "allow" and value.startswith(("/", "*")):
            yield _pattern(value), True
        elif kind == "disallow" and value:
            yield _pattern(value), False


_RATE = re.compile(r"([0-9]{1,9})\s*/\s*([0-9]{1,9})([smhd]?)(?:\s|$)", re.IGNORECASE)
_UNITS_S = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}


def _delays(group: _Group) -> Iterator[float]:
    """s between two requests"""
    for kind, value in group:
        if kind == "delay":
            try:
                delay = float(value)
            except ValueError:
                continue
            if 0 <= delay < math.inf:
                yield delay
        elif kind == "rate" and (found := _RATE.match(value)):
            requests, time_s = int(found[1]), int(found[2]) * _UNITS_S[found[3].lower()]
            if requests and time_s:
                yield time_s / requests


def _usage_rules(group: _Group, signal: Signal) -> Iterator[tuple[str, str]]:
    """(path, what is said of it) of each line of Content-Usage, Content-Signal."""
    for kind, value in group:
        if kind == signal:
            path, *rest = value.split(None, 1) if value[:1] in ("/", "*") else ("/", value)
            yield _pattern(path), "".join(rest)


def _reservations(text: str, words: Words) -> Iterator[tuple[str, bool]]:
    """(path, reserved?) of each rule of a tdmrep.json. One that cannot be read has none."""
    rules: Any = None
    # The second time without its end, which may be cut, or follow a comma.
    for whole in (text, text[: text.rfind("}") + 1] + "]"):
        with contextlib.suppress(ValueError, RecursionError):
            rules = json.loads(whole)
            break
    for rule in rules if isinstance(rules, list) else [rules]:
        if not isinstance(rule, dict):
            continue
        location, value = rule.get("location", "/"), rule.get("tdm-reservation")
        if isinstance(location, str | None) and isinstance(value, str | float | int):
            reserved = words.tdm.get(str(value).strip().lower().removesuffix(".0"))
            if reserved is not None:
                yield _pattern((location or "/").strip()), reserved


# Paths

_SPELT = re.compile(r"%([0-9a-fA-F]{2})|[^!-~]")


def _plain(path: str) -> str:
    """The one spelling in which paths are compared: percent-encoded only where that makes a difference."""
    path, mark, query = path.partition("?")
    return _spell(path, "/?#%*$") + mark + _spell(query, "#%*$")


def _spell(text: str, kept: str) -> str:
    def spell(found: re.Match[str]) -> str:
        character, code = found[0], found[1]
        if code is None:
            octet = "\udc80" <= character <= "\udcff"  # that was no UTF-8, see _text
            return quote(character.encode(errors="surrogateescape" if octet else "replace"))
        decoded = chr(int(code, 16))
        return decoded if "!" <= decoded <= "~" and decoded not in kept else character.upper()

    return _SPELT.sub(spell, text)


def _pattern(path: str) -> str:
    """Of a rule, spelt plainly: * stands for anything, and $ at its end for the end."""
    path = path if path.startswith(("/", "*")) else "/" + path
    end = "$" * path.endswith("$")
    return _plain(path.removesuffix("$")).replace("$", "%24") + end


def _asked(path: str) -> str:
    """Of a URL, spelt as patterns are, with the $ at its end that they may have."""
    path, mark, query = _plain(path).partition("?")
    if "/." in path:
        path = _resolved(path)
    return (path + mark + query).replace("*", "%2A").replace("$", "%24") + "$"


def _resolved(path: str) -> str:
    """Without . and .., as servers read it (RFC 3986, section 5.2.4): /a/../b is under /b."""
    kept: list[str] = []
    for segment in path.split("/")[1:]:
        if segment == "..":
            del kept[-1:]
        elif segment != ".":
            kept.append(segment)
    return "/".join(("", *kept, *([""] if path.endswith(("/.", "/..")) else [])))


class _Rules:
    """For paths: of those that match, the longest says what holds (RFC 9309, section 2.2.2).

    Our own, because the parsers there are let through what is refused: Protego takes the length of a rule
    after percent-encoding, so that "Allow: /*?w=1" outdoes "Disallow: /photos/", and opens /a/ where
    /a/index.html is allowed. tests/test_fetch_consent.py compares the two where they should agree.
    """

    def __init__(self, rules: Iterable[tuple[str, Any]]) -> None:
        self._rules: list[tuple[int, str, list[str], Any]] = []
        for pattern, says in rules:
            start, *parts = pattern.split("*")
            self._rules.append((len(pattern), start, parts, says))
        self._rules.sort(key=lambda rule: -rule[0])

    def of(self, asked: str) -> list[Any]:
        """What is said of a path, spelt by _asked; more than one thing, if rules are equally long."""
        found: list[Any] = []
        longest = -1
        for length, start, parts, says in self._rules:
            if length < longest:
                break
            if asked.startswith(start) and (not parts or _follow(asked, len(start), parts)):
                found.append(says)
                longest = length
        return found


def _follow(asked: str, at: int, parts: Iterable[str]) -> bool:
    """Are these there, each somewhere behind the one before?"""
    for part in parts:
        at = asked.find(part, at)
        if at < 0:
            return False
        at += len(part)
    return True


# Bytes -> verdicts


class SitePolicy:
    """What a site has said in its files, read for good."""

    def __init__(self, terms: Terms, said: Mapping[str, Any], *, size: int = 0) -> None:
        self._terms = terms
        self.size = size  # bytes of what it says; it takes some ten times as much memory
        self.evidence: Mapping[str, Any] = said.get("files", {})
        self._unreadable: str | None = said.get("unreadable")
        # The longest that robots.txt asks for between two requests.
        self.crawl_delay_s: float | None = said.get("delay_s")
        # Of a group for each of our names, each of which may refuse.
        self._robots = [_Rules(group) for group in said.get("robots", ())]
        self._ai = [_Rules(group) for group in said.get("ai", ())]
        self._usage: dict[Signal, list[_Rules]] = {
            signal: [_Rules(group) for group in said.get(signal, ())] for signal in USAGE
        }
        self._tdm = _Rules(said.get("tdm", ()))

    @classmethod
    def of(cls, terms: Terms, said: bytes) -> Self:
        text = zlib.decompress(said)
        return cls(terms, json.loads(text), size=len(text))

    def before(self, path: str) -> Verdict:
        """May this path (with its query) be asked for?"""
        if self._unreadable is not None:
            return Verdict(Reason.OPTOUT_UNREACHABLE, None, self._unreadable.partition(":")[0])
        asked = _asked(path)
        if path != ROBOTS and not all(_allow(rules, asked) for rules in self._robots):
            return _refused("robots", "robots.txt")
        if not all(_allow(rules, asked.lower()) for rules in self._ai):
            return _refused("ai_txt", "ai.txt")
        # A header of the answer goes before tdmrep.json, so it is asked for where headers count.
        if "tdm_reservation" not in self._terms.signals and any(self._tdm.of(asked)):
            return _refused("tdmrep", "tdmrep.json")
        for signal in USAGE:
            for verdict in self._uses(signal, asked):
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
        asked = _asked(path)
        granted: list[str] = []
        verdicts: list[Verdict] = []
        if values := fields.get("x_robots_tag"):
            verdicts.append(_x_robots_tag(self._terms, values))
        values = _items(fields.get("tdm_reservation", ()))
        stated = [self._terms.words.tdm.get(_value(value)) for value in values]
        if True in stated:
            verdicts.append(_refused("tdm_reservation", "tdm-reservation: 1"))
        elif False in stated:
            granted.append("tdm-reservation: 0")
        elif any(self._tdm.of(asked)):
            verdicts.append(_refused("tdmrep", "tdmrep.json"))
        for signal in USAGE:
            in_header = self._use(signal, fields.get(signal, ()), signal.replace("_", "-"))
            verdicts += (uses := [in_header, *self._uses(signal, asked)])
            granted += [verdict.said for verdict in uses if verdict.reason is None and verdict.said]
        refusals = [verdict for verdict in verdicts if verdict.reason is not None]
        return refusals[0] if refusals else Verdict(said="; ".join(dict.fromkeys(granted))[:SAID_LENGTH])

    def _uses(self, signal: Signal, asked: str) -> Iterator[Verdict]:
        """What each group of robots.txt says of it."""
        for rules in self._usage[signal]:
            yield self._use(signal, rules.of(asked), "robots.txt")

    def _use(self, signal: Signal, values: Iterable[str], where: str) -> Verdict:
        """Of the uses that these values state."""
        stated: dict[str, bool] = {}
        for item in _items(values):
            name, _, value = item.partition("=")
            refused = self._terms.words.values[signal].get(_value(value))
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


def _allow(rules: _Rules, asked: str) -> bool:
    found = rules.of(asked)
    return any(found) or not found


def _refused(signal: Signal, said: str) -> Verdict:
    return Verdict(REASONS[signal], signal, said[:SAID_LENGTH])


def _items(values: Iterable[str]) -> Iterator[str]:
    for value in values:
        yield from (item.strip() for item in value.split(",") if item.strip())


def _value(text: str) -> str:
    """Without its parameters and quotes."""
    return text.partition(";")[0].strip(" \t\"'").lower()


_WORD = re.compile(r"[\w-]+")
# What may be a crawler's name before a colon: not the hour of a date, nor its year.
_NAMED = re.compile(r"\s*(\*|[0-9]*[a-z_][a-z0-9._-]*)(?:/\S*)?\s*")


def _x_robots_tag(terms: Terms, values: Iterable[str]) -> Verdict:
    """Of all fields of that name. A crawler's name and a colon say whom what follows in that field is for."""
    words = terms.words
    for value in values:
        ours = True
        for item in re.split("[,;]", value.lower()):
            directive, colon, rest = item.strip(" \t\"'").partition(":")
            named = _NAMED.fullmatch(directive) if colon else None
            if named and named[1] not in words.x_robots_with_value | words.x_robots_refusals:
                ours = named[1] == "*" or named[1] in terms.agents
                # "bot: unavailable_after: ...": what has a value has it behind another colon.
                directive = rest.partition(":")[0]
            # Nothing says that only a comma parts them, and some put quotes around them.
            for word in _WORD.findall(directive) if ours else ():
                if word in words.x_robots_refusals:
                    return _refused("x_robots_tag", f"x-robots-tag: {word}")
    return Verdict()
