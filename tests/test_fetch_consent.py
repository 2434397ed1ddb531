"""Consent: what sites say in headers and files, one table each, and that a client asks before it takes.

    HEADERS, RESERVED, USED --SitePolicy.after--> refused, and by which words
    ROBOTS_TXT, AI_TXT, USES, DELAYS --read_site--> SitePolicy.before
    a local web --Client--> what was asked for, what was not, and how its rows end

Where RFC 9309 leaves a choice, or a site's file is broken, the reading that refuses more is the right one.
"""

import asyncio
import hashlib
import json
import time
import zlib
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from protego import Protego

from pmd.fetch.client import Answer, Client
from pmd.fetch.consent import AI, READ_BYTES, ROBOTS, TDMREP, SiteFile, SitePolicy, Terms, Verdict, read_site
from pmd.manifest import FetchSpec
from pmd.records import Reason
from tests.web import Fault, FileFault, PortFault, ServedFile, Web

TERMS = Terms.of(FetchSpec())  # all signals; our names are pmd and img2dataset
Fields = list[tuple[str, str]]


def site(
    robots: str | bytes | None = None,
    *,
    tdmrep: object = None,
    ai: str | bytes | None = None,
    terms: Terms = TERMS,
) -> SitePolicy:
    """Of a site with these files."""
    if tdmrep is not None and not isinstance(tdmrep, str | bytes):
        tdmrep = json.dumps(tdmrep)
    files: dict[str, SiteFile] = {}
    for path, text in ((ROBOTS, robots), (TDMREP, tdmrep), (AI, ai)):
        if isinstance(text, str | bytes):
            body = text.encode() if isinstance(text, str) else text
            files[path] = SiteFile(body[:READ_BYTES], 200)
    return SitePolicy.of(terms, read_site(terms, files))


def terms_of(**keys: Any) -> Terms:
    return Terms.of(FetchSpec.model_validate(keys))


# Headers


def x(*values: str) -> Fields:
    return [("X-Robots-Tag", value) for value in values]


def tdm(*values: str) -> Fields:
    return [("tdm-reservation", value) for value in values]


def usage(*values: str) -> Fields:
    return [("Content-Usage", value) for value in values]


def signal(*values: str) -> Fields:
    return [("Content-Signal", value) for value in values]


XR, TDM, USE = Reason.OPTOUT_X_ROBOTS_TAG, Reason.OPTOUT_TDM, Reason.OPTOUT_CONTENT_USAGE

# header fields -> why they refuse, and what of them is put down; of a site without files
HEADERS: list[tuple[Fields, tuple[Reason, str] | None]] = [
    ([], None),
    ([("Content-Type", "image/jpeg"), ("Server", "noai"), ("X-Noai", "noai")], None),
    ([("Robots", "noai"), ("X-Robots", "noai"), ("X-Robots-Tags", "noai")], None),
    ([("tdm-policy", "https://site.example/1"), ("TDM", "1")], None),
    # Each word
    (x("noai"), (XR, "noai")),
    (x("noimageai"), (XR, "noimageai")),
    (x("noml"), (XR, "noml")),
    (x("noindex"), (XR, "noindex")),
    (x("noimageindex"), (XR, "noimageindex")),
    (x("none"), (XR, "none")),
    # What is no refusal
    (x("all"), None),
    (x(""), None),
    (x(","), None),
    (x(":"), None),
    (x("nofollow, noarchive, nosnippet, notranslate, nocache"), None),
    (x("max-image-preview:none"), None),  # none of previews, not of the picture
    (x("max-snippet:-1, max-video-preview:0"), None),
    (x("noaix"), None),
    (x("xnoai"), None),
    (x("noai-ok"), None),
    (x("no-ai"), None),
    (x("nonefollow, noindexer, noimageindexes"), None),
    (x("unavailable_after: 25 Jun 2010 15:00:00 PST"), None),  # the answer would depend on the day
    # Case, spaces, empty items
    (x("NOAI"), (XR, "noai")),
    (x("NoImageAI"), (XR, "noimageai")),
    ([("x-robots-tag", "noai")], (XR, "noai")),
    ([("X-ROBOTS-TAG", "noai")], (XR, "noai")),
    (x("  noai\t"), (XR, "noai")),
    (x("nofollow,noai"), (XR, "noai")),
    (x("nofollow ,\t noai ,"), (XR, "noai")),
    (x(",,noai"), (XR, "noai")),
    (x("nofollow,,,NOML,,"), (XR, "noml")),
    # As no grammar has it, and some servers send it
    (x("noindex nofollow"), (XR, "noindex")),
    (x("nofollow; noai"), (XR, "noai")),
    (x('"noai, noimageai"'), (XR, "noai")),
    (x("'nofollow','noai'"), (XR, "noai")),
    (x('"pmd: noai"'), (XR, "noai")),
    (x('"otherbot: noai"'), None),
    # Several fields
    (x("all", "noai"), (XR, "noai")),
    (x("noai", "all"), (XR, "noai")),
    (x("nofollow", "", "noindex"), (XR, "noindex")),
    (x("otherbot: nofollow", "noai"), (XR, "noai")),  # a name holds for its field alone
    (x("otherbot: noai", "otherbot: none"), None),
    (x("otherbot: noai", "pmd: noai"), (XR, "noai")),
    # For whom
    (x("otherbot: noai"), None),
    (x("otherbot: nofollow, noai"), None),
    (x("otherbot:noai,noindex"), None),
    (x("googlebot: noindex, bingbot: none"), None),
    (x("img2dataset: noai"), (XR, "noai")),
    (x("pmd: noai"), (XR, "noai")),
    (x("PMD : NoAI"), (XR, "noai")),
    (x("Img2Dataset:noai"), (XR, "noai")),
    (x("pmd/1.0: noai"), (XR, "noai")),
    (x("*: noai"), (XR, "noai")),
    (x("pmd: nofollow, noai"), (XR, "noai")),
    (x("pmd: all"), None),
    (x("pmdbot: noai"), None),
    (x("otherpmd: noai"), None),
    (x("pm: noai"), None),
    (x("otherbot: nofollow, img2dataset: noai"), (XR, "noai")),
    (x("otherbot: nofollow, *: noai"), (XR, "noai")),
    (x("noai, otherbot: noindex"), (XR, "noai")),
    (x("otherbot: noindex, pmd: nofollow"), None),
    (x("pmd: nofollow, otherbot: noai"), None),
    (x("img2dataset: nofollow, otherbot: noindex, pmd: none"), (XR, "none")),
    # What has a value behind a colon
    (x("max-image-preview:large, noai"), (XR, "noai")),
    (x("Max-Image-Preview: Large , noai"), (XR, "noai")),
    (x("max-snippet:-1, max-video-preview:-1, noimageai"), (XR, "noimageai")),
    (x("noai, max-image-preview:large"), (XR, "noai")),
    (x("unavailable_after: 25 Jun 2010 15:00:00 PST, noai"), (XR, "noai")),
    (x("unavailable_after: Fri, 25 Jun 2010 15:00:00 GMT, noai"), (XR, "noai")),
    (x("unavailable_after: Friday, 25-Jun-10 15:00:00 GMT, noai"), (XR, "noai")),
    (x("unavailable_after: 2010-06-25T15:00:00+00:00, noai"), (XR, "noai")),
    (x("unavailable_after: Fri, 2010-06-25T15:00:00Z, noai"), (XR, "noai")),
    (x("nofollow, unavailable_after:25 Jun 2010 15:00:00 PST, none"), (XR, "none")),
    (x("otherbot: unavailable_after: 25 Jun 2010 15:00:00 PST, noai"), None),
    (x("otherbot: unavailable_after: Fri, 25 Jun 2010 15:00:00 PST, noai"), None),
    (x("pmd: unavailable_after: Fri, 25 Jun 2010 15:00:00 PST, noai"), (XR, "noai")),
    (x("otherbot: max-image-preview:large, noai"), None),
    (x("otherbot: max-image-preview:large, pmd: noai"), (XR, "noai")),
    (x("noai: yes"), (XR, "noai")),
    # tdm-reservation
    (tdm("1"), (TDM, "tdm-reservation: 1")),
    (tdm("0"), None),
    (tdm('"1"'), (TDM, "tdm-reservation: 1")),
    (tdm(" 1\t"), (TDM, "tdm-reservation: 1")),
    (tdm("true"), (TDM, "tdm-reservation: 1")),
    (tdm("1; policy=x"), (TDM, "tdm-reservation: 1")),
    (tdm("10"), None),
    (tdm("-1"), None),
    (tdm("yes please"), None),
    (tdm(""), None),
    (tdm("1", "1"), (TDM, "tdm-reservation: 1")),
    (tdm("0", "1"), (TDM, "tdm-reservation: 1")),
    (tdm("1", "0"), (TDM, "tdm-reservation: 1")),
    (tdm("0, 1"), (TDM, "tdm-reservation: 1")),
    (tdm("junk, 1"), (TDM, "tdm-reservation: 1")),
    ([("TDM-Reservation", "1")], (TDM, "tdm-reservation: 1")),
    # Content-Usage
    (usage("train-ai=n"), (USE, "content-usage: train-ai=no")),
    (usage("train-ai=y"), None),
    (usage("TRAIN-AI=N"), (USE, "train-ai")),
    (usage('train-ai="n"'), (USE, "train-ai")),
    (usage("train-ai = n"), (USE, "train-ai")),
    (usage("train-ai=no"), (USE, "train-ai")),
    (usage("train-ai=n;until=2030"), (USE, "train-ai")),
    (usage("train-ai=n ; a=y, search=y"), (USE, "train-ai")),
    (usage("train-ai=y;train-ai=n"), None),  # a parameter, whatever its name
    (usage("search=y, train-ai=n"), (USE, "train-ai")),
    (usage("search=n"), None),
    (usage("train-ai"), None),
    (usage("train-ai="), None),
    (usage("train-ai=maybe"), None),
    (usage("train-aix=n, xtrain-ai=n"), None),
    (usage("=n"), None),
    (usage("train-ai=y, train-ai=n"), (USE, "train-ai")),  # the no holds
    (usage("train-ai=n, train-ai=y"), (USE, "train-ai")),
    (usage("train-ai=y", "train-ai=n"), (USE, "train-ai")),
    (usage("train-ai=y, ai-train=n"), (USE, "ai-train")),  # one use by two names
    (usage("bots=n"), (USE, "bots")),
    (usage("bots=n, train-ai=y"), None),  # the special goes before the general
    (usage("bots=y, train-ai=n"), (USE, "train-ai")),
    (usage("train-ai=y, train-genai=n"), (USE, "train-genai")),
    (usage("train-genai=y, train-ai=n"), (USE, "train-ai")),
    (usage("genai=n"), (USE, "genai")),
    (usage("tdm=n"), (USE, "tdm")),
    (usage("tdm=n, genai=y"), None),
    (usage("tdm=n, ai=y"), None),
    (usage("ai=n, tdm=y"), (USE, "ai")),
    # Content-Signal
    (signal("ai-train=no"), (USE, "content-signal: ai-train=no")),
    (signal("search=yes, ai-train=no"), (USE, "ai-train")),
    (signal("search=yes,ai-train=no,ai-input=yes"), (USE, "ai-train")),
    (signal("ai-train=yes, search=no, ai-input=no"), None),
    (signal("Ai-Train=NO"), (USE, "ai-train")),
    (signal("ai-train=yes", "ai-train=no"), (USE, "ai-train")),
    (signal("ai-train=yes, train-ai=no"), (USE, "train-ai")),
    (signal("ai-train=no;x=1"), (USE, "ai-train")),
    (signal("ai-trainer=no"), None),
    # Together: one no is enough, whatever else agrees
    (x("all") + tdm("0") + usage("train-ai=y") + signal("ai-train=no"), (USE, "content-signal")),
    (x("all") + tdm("0") + usage("train-ai=n") + signal("ai-train=yes"), (USE, "content-usage")),
    (x("all") + tdm("1") + usage("train-ai=y") + signal("ai-train=yes"), (TDM, "1")),
    (x("noai") + tdm("0") + usage("train-ai=y") + signal("ai-train=yes"), (XR, "noai")),
    (x("all") + tdm("0") + usage("train-ai=y") + signal("ai-train=yes"), None),
]


@pytest.mark.parametrize(("fields", "expected"), HEADERS, ids=str)
def test_a_header_refuses_where_its_words_do(fields: Fields, expected: tuple[Reason, str] | None) -> None:
    verdict = site().after("/a.jpg", fields)
    assert verdict.reason == (expected and expected[0])
    if expected:
        assert expected[1] in verdict.said
        assert verdict.text == f"no: {verdict.said}"
    else:
        assert verdict.text.startswith("yes")
    junk = [("X-Other", "noai"), *((name.swapcase(), value) for name, value in fields), ("Date", "noai")]
    assert site().after("/a.jpg", junk) == verdict


def rule(location: object, reserved: object, **more: object) -> dict[str, object]:
    return {"location": location, "tdm-reservation": reserved, **more}


ALL, NOTHING = [rule("/", 1)], [rule("/", 0)]

# tdmrep.json, header fields, path -> is it reserved?
RESERVED: list[tuple[object, Fields, str, bool]] = [
    (None, [], "/a.jpg", False),
    (ALL, [], "/a.jpg", True),
    (NOTHING, [], "/a.jpg", False),
    # The header goes before the file
    (ALL, tdm("0"), "/a.jpg", False),
    (ALL, tdm("1"), "/a.jpg", True),
    (NOTHING, tdm("1"), "/a.jpg", True),
    (NOTHING, tdm("0", "1"), "/a.jpg", True),
    (ALL, tdm("junk"), "/a.jpg", True),
    (ALL, tdm(""), "/a.jpg", True),
    (NOTHING, tdm("junk"), "/a.jpg", False),
    (ALL, x("all") + usage("train-ai=y"), "/a.jpg", True),
    # Where it holds
    ([rule("/art/", 1)], [], "/art/a.jpg", True),
    ([rule("/art/", 1)], [], "/news/a.jpg", False),
    ([rule("/art/", 1)], [], "/Art/a.jpg", False),
    ([rule("art/", 1)], [], "/art/a.jpg", True),
    ([rule(" /art/ ", 1)], [], "/art/a.jpg", True),
    ([rule("/art", 1)], [], "/artless.jpg", True),
    ([rule("*.jpg", 1)], [], "/art/a.jpg", True),
    ([rule("/*.jpg$", 1)], [], "/art/a.jpg", True),
    ([rule("/*.jpg$", 1)], [], "/art/a.jpg?x", False),
    ([rule("/*/a.jpg", 1)], [], "/art/a.jpg", True),
    ([rule("/café/", 1)], [], "/caf%c3%a9/a.jpg", True),
    ([rule("/a b/", 1)], [], "/a%20b/a.jpg", True),
    ([rule("/a#b/", 1)], [], "/a/a.jpg", False),
    ([rule("/a\nAllow: /a", 1)], [], "/a/a.jpg", False),
    ([rule("", 1)], [], "/a.jpg", True),
    ([{"tdm-reservation": 1}], [], "/a.jpg", True),  # of the whole site
    ([rule(None, 1)], [], "/a.jpg", True),
    # The longest decides; of two, the one that reserves
    ([rule("/", 1), rule("/free/", 0)], [], "/free/a.jpg", False),
    ([rule("/free/", 0), rule("/", 1)], [], "/free/a.jpg", False),
    ([rule("/", 1), rule("/free/", 0)], [], "/a.jpg", True),
    ([rule("/", 0), rule("/art/", 1)], [], "/art/a.jpg", True),
    ([rule("/art/", 1), rule("/art/", 0)], [], "/art/a.jpg", True),
    ([rule("/art/", 0), rule("/art/", 1)], [], "/art/a.jpg", True),
    ([rule("/a/*", 0), rule("/a/b", 1)], [], "/a/b.jpg", True),
    # What a rule may look like
    (rule("/", 1), [], "/a.jpg", True),
    ([rule("/", "1")], [], "/a.jpg", True),
    ([rule("/", " 1 ")], [], "/a.jpg", True),
    ([rule("/", True)], [], "/a.jpg", True),
    ([rule("/", 1.0)], [], "/a.jpg", True),
    ([rule("/", 1, **{"tdm-policy": "https://site.example/p"})], [], "/a.jpg", True),
    ([rule("/", 2)], [], "/a.jpg", False),
    ([rule("/", None)], [], "/a.jpg", False),
    ([rule("/", [1])], [], "/a.jpg", False),
    ([rule("/", {"1": 1})], [], "/a.jpg", False),
    ([rule(["/"], 1), rule(7, 1), rule({}, 1)], [], "/a.jpg", False),
    (["/", 1, None, True, [rule("/", 1)]], [], "/a.jpg", False),
    ([None, rule("/", 1)], [], "/a.jpg", True),
    ({}, [], "/a.jpg", False),
    ([], [], "/a.jpg", False),
    # What the file may look like
    (b'\xef\xbb\xbf[{"location": "/", "tdm-reservation": 1}]', [], "/a.jpg", True),
    (json.dumps(ALL).encode("utf-16"), [], "/a.jpg", True),
    (b'[{"location": "/caf\xe9", "tdm-reservation": 0}, {"tdm-reservation": 1}]', [], "/a.jpg", True),
    ('[{"location": "/\\ud800", "tdm-reservation": 1}]', [], "/a.jpg", False),
    ('[{"location": "/\\u0000", "tdm-reservation": 1}]', [], "/a.jpg", False),
    ("", [], "/a.jpg", False),
    ("null", [], "/a.jpg", False),
    ("1", [], "/a.jpg", False),
    ("<html>", [], "/a.jpg", False),
    ('[{"location": "/", "tdm-reservation": 1},]', [], "/a.jpg", True),
    ('[{"location": "/", "tdm-reservation": 1}, {"loc', [], "/a.jpg", True),
    ("{'location': '/', 'tdm-reservation': 1}", [], "/a.jpg", False),
    ("[" * 100_000, [], "/a.jpg", False),
    ('{"a":' * 50_000, [], "/a.jpg", False),
    ("1" * 10_000, [], "/a.jpg", False),
    ("NaN", [], "/a.jpg", False),
    (ALL + [rule(f"/{n}/", 0) for n in range(20_000)], [], "/a.jpg", True),  # cut within a rule
]


@pytest.mark.parametrize(("tdmrep", "fields", "path", "reserved"), RESERVED, ids=lambda case: str(case)[:60])
def test_mining_is_reserved_by_the_header_or_else_by_the_file(
    tdmrep: object, fields: Fields, path: str, reserved: bool
) -> None:
    verdict = site(tdmrep=tdmrep).after(path, fields)
    assert verdict.reason == (TDM if reserved else None)
    # Where headers do not count, the file alone decides, and before the picture is asked for.
    alone = site(tdmrep=tdmrep, terms=terms_of(consent=("tdmrep",)))
    early = alone.before(path)
    assert early == Verdict(TDM, "tdmrep", "tdmrep.json") or early == Verdict()
    if not fields:
        assert (early.reason is not None) is reserved
    assert alone.after(path, tdm("0")).reason == early.reason


# Content-Usage and Content-Signal in robots.txt, header fields, path -> what refuses
USES: list[tuple[str, Fields, str, str | None]] = [
    ("Content-Usage: train-ai=n", [], "/a.jpg", "robots.txt: train-ai=no"),
    ("Content-Signal: ai-train=no", [], "/a.jpg", "robots.txt: ai-train=no"),
    ("Content-Usage: train-ai=y", [], "/a.jpg", None),
    ("Content-Signal: search=yes, ai-train=no", [], "/a.jpg", "ai-train"),
    ("CONTENT-USAGE :\tTRAIN-AI=N", [], "/a.jpg", "train-ai"),
    ("content-usage:train-ai=n#why", [], "/a.jpg", "train-ai"),
    ("# Content-Usage: train-ai=n", [], "/a.jpg", None),
    ("Content-Usages: train-ai=n", [], "/a.jpg", None),
    # With a path
    ("User-agent: *\nContent-Usage: /art/ train-ai=n", [], "/art/a.jpg", "train-ai"),
    ("User-agent: *\nContent-Usage: /art/ train-ai=n", [], "/a.jpg", None),
    ("User-agent: *\nContent-Usage: /art/\ttrain-ai=n", [], "/art/a.jpg", "train-ai"),
    ("User-agent: *\nContent-Usage: /art/   search=y,  train-ai=n", [], "/art/a.jpg", "train-ai"),
    ("User-agent: *\nContent-Usage: *.jpg train-ai=n", [], "/art/a.jpg", "train-ai"),
    ("User-agent: *\nContent-Usage: /*.gif$ train-ai=n", [], "/a.jpg", None),
    ("User-agent: *\nContent-Signal: /art/ ai-train=no", [], "/art/a.jpg", "ai-train"),
    ("User-agent: *\nContent-Usage: /art/", [], "/art/a.jpg", None),
    # The longest path decides; of two, the one that says no
    ("Content-Usage: train-ai=n\nContent-Usage: /free/ train-ai=y", [], "/free/a.jpg", None),
    ("Content-Usage: train-ai=n\nContent-Usage: /free/ train-ai=y", [], "/a.jpg", "train-ai"),
    ("Content-Usage: train-ai=y\nContent-Usage: /art/ train-ai=n", [], "/art/a.jpg", "train-ai"),
    ("Content-Usage: /art/ train-ai=y\nContent-Usage: /art/ train-ai=n", [], "/art/a.jpg", "train-ai"),
    ("Content-Usage: train-ai=y\nContent-Usage: / train-ai=n", [], "/a.jpg", "train-ai"),
    # For whom
    ("User-agent: *\nContent-Usage: train-ai=n", [], "/a.jpg", "train-ai"),
    ("User-agent: otherbot\nContent-Usage: train-ai=n", [], "/a.jpg", None),
    ("User-agent: pmd\nContent-Signal: ai-train=no", [], "/a.jpg", "ai-train"),
    ("User-agent: img2dataset\nContent-Signal: ai-train=no", [], "/a.jpg", "ai-train"),
    ("User-agent: *\nContent-Usage: train-ai=n\nUser-agent: pmd\nDisallow: /x", [], "/a.jpg", None),
    ("Content-Usage: train-ai=n\nUser-agent: pmd\nDisallow: /x", [], "/a.jpg", "train-ai"),
    ("User-agent: pmd\nContent-Usage: train-ai=n\nUser-agent: otherbot\nDisallow: /", [], "/", "train-ai"),
    (
        "User-agent: pmd\nContent-Usage: /art/ train-ai=y\n"
        "User-agent: img2dataset\nContent-Usage: train-ai=n",  # the other group's
        [],
        "/art/a.jpg",
        "train-ai",
    ),
    (
        "User-agent: pmd\nContent-Usage: train-ai=y\nUser-agent: img2dataset\nContent-Usage: bots=n",
        [],
        "/a.jpg",
        "bots",
    ),
    # With the header: one no is enough
    ("Content-Usage: train-ai=n", usage("train-ai=y"), "/a.jpg", "train-ai"),
    ("Content-Usage: train-ai=y", usage("train-ai=n"), "/a.jpg", "content-usage: train-ai=no"),
    ("Content-Signal: ai-train=no", signal("ai-train=yes"), "/a.jpg", "ai-train"),
    ("Content-Signal: ai-train=yes", signal("ai-train=no"), "/a.jpg", "content-signal: ai-train=no"),
    ("Content-Usage: train-ai=y", signal("ai-train=no"), "/a.jpg", "content-signal: ai-train=no"),
    ("Content-Usage: /art/ train-ai=n", usage("train-ai=y"), "/a.jpg", None),
    ("Content-Usage: bots=n", usage("train-ai=y"), "/a.jpg", "bots"),  # each is a statement of its own
]


@pytest.mark.parametrize(("robots", "fields", "path", "said"), USES, ids=str)
def test_a_use_is_refused_in_the_file_or_in_the_header(
    robots: str, fields: Fields, path: str, said: str | None
) -> None:
    policy = site(robots)
    verdict = policy.after(path, fields)
    assert verdict.reason == (USE if said else None)
    assert (said or "") in verdict.said
    early = policy.before(path)
    assert early.reason == policy.after(path, []).reason  # what a file refuses is not asked for
    assert early.reason is None or early == verdict


SIGNALS = [
    ("robots", {"robots": "User-agent: *\nDisallow: /"}, [], Reason.OPTOUT_ROBOTS),
    ("x_robots_tag", {}, x("noai"), XR),
    ("tdm_reservation", {}, tdm("1"), TDM),
    ("tdmrep", {"tdmrep": ALL}, [], TDM),
    ("ai_txt", {"ai": "User-agent: *\nDisallow: /"}, [], Reason.OPTOUT_AI_TXT),
    ("content_usage", {}, usage("train-ai=n"), USE),
    ("content_usage", {"robots": "Content-Usage: train-ai=n"}, [], USE),
    ("content_signal", {}, signal("ai-train=no"), USE),
    ("content_signal", {"robots": "Content-Signal: ai-train=no"}, [], USE),
]


@pytest.mark.parametrize(("name", "files", "fields", "reason"), SIGNALS, ids=str)
def test_a_signal_counts_only_where_it_is_listed(
    name: str, files: dict[str, Any], fields: Fields, reason: Reason
) -> None:
    def ends(*consent: str) -> tuple[Reason | None, str | None]:
        policy = site(**files, terms=terms_of(consent=consent))
        early = policy.before("/a.jpg")
        verdict = early if early.reason else policy.after("/a.jpg", fields)
        return verdict.reason, verdict.signal

    others = [signal for signal in FetchSpec().consent if signal != name]
    assert ends(name) == ends(*FetchSpec().consent) == (reason, name)
    assert ends(*others) == ends() == (None, None)


def test_what_a_site_grants_is_put_down() -> None:
    fields = tdm("0") + usage("train-ai=y") + signal("ai-train=yes", "search=no")
    granted = site("Content-Usage: bots=y").after("/a.jpg", fields)
    assert granted.text == f"yes: {granted.said}"
    assert granted.said.split("; ") == [
        "tdm-reservation: 0",
        "content-usage: train-ai=yes",
        "robots.txt: bots=yes",
        "content-signal: ai-train=yes",
    ]
    assert site().after("/a.jpg", []).text == "yes"


# robots.txt


def everyone(*lines: str) -> str:
    return "\n".join(("User-agent: *", *lines))


def fill(line: str, size: int) -> str:
    """This line, numbered, again and again: `size` bytes."""
    one = len(line.format("000000")) + 1
    return "\n".join(line.format(f"{number:06}") for number in range(size // one))


EVERYONE = "User-agent: *\nDisallow: /\n"
NOBODY = "User-agent: *\nDisallow:\n"
LONG = "a" * 100_000

# robots.txt, path -> may we ask for it?
ROBOTS_TXT: list[tuple[str | bytes, str, bool]] = [
    # Nothing is said
    ("", "/a.jpg", True),
    ("\n\n  \n# nothing\n", "/a.jpg", True),
    (NOBODY, "/a.jpg", True),
    (everyone("Disallow: "), "/a.jpg", True),
    (everyone("Allow:"), "/a.jpg", True),
    (everyone(), "/a.jpg", True),
    # All is refused
    (EVERYONE, "/a.jpg", False),
    (EVERYONE, "/", False),
    (EVERYONE, "/?", False),
    (EVERYONE, "/robots.txt", True),
    (EVERYONE, "/robots.txt.jpg", False),
    (EVERYONE, "/a/robots.txt", False),
    (EVERYONE, "//evil.example/x", False),
    (everyone("Disallow: *"), "/a.jpg", False),
    (everyone("Disallow: /*"), "/a.jpg", False),
    (everyone("Disallow:", "Disallow: /"), "/a.jpg", False),
    # A beginning
    (everyone("Disallow: /a"), "/a", False),
    (everyone("Disallow: /a"), "/abc/d.jpg", False),
    (everyone("Disallow: /a/"), "/a", True),
    (everyone("Disallow: /a/"), "/a/b.jpg", False),
    (everyone("Disallow: /a/"), "/b/a/", True),
    (everyone("Disallow: /Photos/"), "/photos/a.jpg", True),  # case counts
    (everyone("Disallow: /Photos/"), "/Photos/a.jpg", False),
    (everyone("Disallow: //evil"), "//evil.example/x", False),
    (everyone("Disallow: /evil"), "//evil.example/x", True),
    (everyone("Disallow: /x"), "//evil.example/x", True),
    # The longest decides; of two, the one that allows
    (everyone("Disallow: /", "Allow: /a/"), "/a/b.jpg", True),
    (everyone("Allow: /a/", "Disallow: /"), "/a/b.jpg", True),
    (everyone("Allow: /", "Disallow: /a/"), "/a/b.jpg", False),
    (everyone("Disallow: /a/", "Allow: /"), "/a/b.jpg", False),
    (everyone("Allow: /a", "Disallow: /a"), "/a.jpg", True),
    (everyone("Disallow: /a", "Allow: /a"), "/a.jpg", True),
    (everyone("Allow: /a/b", "Disallow: /a/*"), "/a/b.jpg", True),  # of one length
    (everyone("Allow: /a/", "Disallow: /*.jpg"), "/a/b.jpg", False),
    (everyone("Allow: /*.jpg", "Disallow: /abcdef"), "/abcdef.jpg", False),
    (everyone("Disallow: /photos/", "Allow: /*?w=1"), "/photos/a.jpg?w=1", False),  # "?" is one octet
    (everyone("Disallow: /photos/", "Allow: /*:b,c"), "/photos/a:b,c.jpg", False),
    (everyone("Allow: /index.html", "Disallow: /"), "/index.html", True),
    (everyone("Allow: /a/index.html", "Disallow: /"), "/a/", False),  # nobody says that it stands for /a/
    # * and $
    (everyone("Disallow: /*.jpg"), "/a/b.jpg", False),
    (everyone("Disallow: /*.jpg"), "/a/b.jpg?size=1", False),
    (everyone("Disallow: /*.jpg$"), "/a/b.jpg", False),
    (everyone("Disallow: /*.jpg$"), "/a/b.jpg?size=1", True),
    (everyone("Disallow: /*.jpg$"), "/a.jpg/b.jpg", False),
    (everyone("Disallow: *.jpg"), "/a/b.jpg", False),
    (everyone("Disallow: /a*c"), "/abc", False),
    (everyone("Disallow: /a*c"), "/ac", False),
    (everyone("Disallow: /a*c"), "/ab", True),
    (everyone("Disallow: /a**c"), "/abc", False),
    (everyone("Disallow: /a*b*c"), "/axbxc.jpg", False),
    (everyone("Disallow: /a*b*c"), "/axcxb.jpg", True),
    (everyone("Disallow: /ab*ba$"), "/aba", True),  # the parts may not overlap
    (everyone("Disallow: /a$"), "/a", False),
    (everyone("Disallow: /a$"), "/ab", True),
    (everyone("Disallow: /$"), "/", False),
    (everyone("Disallow: /$"), "/a.jpg", True),
    (everyone("Disallow: /", "Allow: /$"), "/a.jpg", False),
    (everyone("Disallow: /a$b"), "/a$b.jpg", False),  # only at the end is it special
    (everyone("Disallow: /a$b"), "/a%24b.jpg", False),
    (everyone("Disallow: /a%2Ab"), "/a*b.jpg", False),
    (everyone("Disallow: /a%2Ab"), "/axb.jpg", True),
    (everyone("Disallow: /a%24"), "/a$b.jpg", False),
    (everyone("Disallow: /" + "*a" * 2_000 + "b"), "/" + "a" * 8_000, True),  # and at once
    # Percent-encoding: the table of RFC 9309, section 2.2.2, and around it
    (everyone("Disallow: /foo/bar?baz=quz"), "/foo/bar?baz=quz", False),
    (everyone("Disallow: /foo/bar?baz=https://foo.bar"), "/foo/bar?baz=https%3A%2F%2Ffoo.bar", False),
    (everyone("Disallow: /foo/bar?baz=https%3A%2F%2Ffoo.bar"), "/foo/bar?baz=https://foo.bar", False),
    (everyone("Disallow: /foo/bar/\u30c4"), "/foo/bar/%E3%83%84", False),
    (everyone("Disallow: /foo/bar/%E3%83%84"), "/foo/bar/%e3%83%84", False),
    (everyone("Disallow: /foo/bar/%62%61%7A"), "/foo/bar/baz", False),
    (everyone("Disallow: /foo/bar/baz"), "/foo/bar/%62%61%7A", False),
    (everyone("Disallow: /a%3cd.jpg"), "/a%3Cd.jpg", False),
    (everyone("Disallow: /a%2fb"), "/a/b", True),
    (everyone("Disallow: /a/b"), "/a%2Fb", True),
    (everyone("Disallow: /a%2fb"), "/a%2Fb", False),
    (everyone("Disallow: /a%3Ab"), "/a:b", False),
    (everyone("Disallow: /", "Allow: /a%3Fb"), "/a?b", False),  # it begins no query
    (everyone("Disallow: /%7Eann/"), "/~ann/a.jpg", False),
    (everyone("Disallow: /~ann/"), "/%7eann/a.jpg", False),
    (everyone("Disallow: /a b/"), "/a%20b/c.jpg", False),
    (everyone("Disallow: /100%"), "/100%.jpg", False),
    (everyone("Disallow: /100%25"), "/100%25.jpg", False),
    (everyone("Disallow: /%zz"), "/%zz", False),
    (everyone("Disallow: /%2541"), "/A", True),  # undone once, not twice
    # What servers resolve
    (everyone("Disallow: /art/"), "/a/../art/b.jpg", False),
    (everyone("Disallow: /art/"), "/../art/./b.jpg", False),
    (everyone("Disallow: /art/"), "/a/%2e%2E/art/b.jpg", False),
    (everyone("Disallow: /art/"), "/art/..", True),
    (everyone("Disallow: /art/$"), "/art/b/..", False),
    (everyone("Disallow: /art/"), "/a?b=/../art/", True),
    (everyone("Disallow: /.art/"), "/.art/..b.jpg", False),
    # Queries
    (everyone("Disallow: /*?"), "/a.jpg?size=1", False),
    (everyone("Disallow: /*?"), "/a.jpg", True),
    (everyone("Disallow: /a.jpg"), "/a.jpg?size=1", False),
    (everyone("Disallow: /*size="), "/a.jpg?size=1", False),
    (everyone("Disallow: /*&size="), "/a.jpg?size=1", True),
    (everyone("Disallow: /a?b"), "/a", True),
    # For whom
    ("User-agent: otherbot\nDisallow: /", "/a.jpg", True),
    ("User-agent: pmd\nDisallow: /", "/a.jpg", False),
    ("User-agent: PMD\nDisallow: /", "/a.jpg", False),
    ("User-agent: pmd/1.0\nDisallow: /", "/a.jpg", False),
    ("User-agent: pmd/1.0 (+https://a.example)\nDisallow: /", "/a.jpg", False),
    ("User-agent: pmd images\nDisallow: /", "/a.jpg", False),
    ("User-agent: *pmd*\nDisallow: /", "/a.jpg", False),
    ("User-agent: otherbot, pmd\nDisallow: /", "/a.jpg", False),
    ("User-agent: pm\nDisallow: /", "/a.jpg", True),
    ("User-agent: p\nDisallow: /", "/a.jpg", True),
    ("User-agent: pmdbot\nDisallow: /", "/a.jpg", True),
    ("User-agent: pmd-news\nDisallow: /", "/a.jpg", True),
    ("User-agent: pmd2\nDisallow: /", "/a.jpg", True),
    ("User-agent: otherpmd\nDisallow: /", "/a.jpg", True),
    ("User-agent: bot pmd\nDisallow: /", "/a.jpg", True),
    ("User-agent:\nDisallow: /", "/a.jpg", True),
    ("User-agent: *bot\nDisallow: /", "/a.jpg", True),
    ("User-agent: **\nDisallow: /", "/a.jpg", True),
    ("User-agent: * # all\nDisallow: /", "/a.jpg", False),
    ("User-agent: img2dataset\nDisallow: /", "/a.jpg", False),
    ("User-agent: img2dataset2\nDisallow: /", "/a.jpg", True),
    ("User-agent: img\nDisallow: /", "/a.jpg", True),
    # Our own group goes before that of all; img2dataset's counts beside it
    (EVERYONE + "User-agent: pmd\nDisallow: /x", "/a.jpg", True),
    (EVERYONE + "User-agent: pmd\nDisallow:", "/a.jpg", True),
    (EVERYONE + "User-agent: pmd\nAllow: /", "/a.jpg", True),
    (EVERYONE + "User-agent: pmd", "/a.jpg", True),
    ("User-agent: pmd\nDisallow: /\n" + NOBODY, "/a.jpg", False),
    (NOBODY + "User-agent: pmd\nDisallow: /", "/a.jpg", False),
    (EVERYONE + "User-agent: img2dataset\nDisallow:", "/a.jpg", False),
    (NOBODY + "User-agent: img2dataset\nDisallow: /", "/a.jpg", False),
    (EVERYONE + "User-agent: pmd\nAllow: /\nUser-agent: img2dataset\nAllow: /", "/a.jpg", True),
    ("User-agent: pmd\nAllow: /\nUser-agent: img2dataset\nDisallow: /", "/a.jpg", False),
    ("User-agent: pmd\nAllow: /abc\nUser-agent: img2dataset\nDisallow: /a", "/abc", False),
    (EVERYONE + "User-agent: pmdbot\nDisallow:", "/a.jpg", False),
    # Groups
    ("User-agent: otherbot\nUser-agent: pmd\nDisallow: /", "/a.jpg", False),
    ("User-agent: pmd\nUser-agent: otherbot\nDisallow: /", "/a.jpg", False),
    ("User-agent: pmd\n\n# and\n\nUser-agent: otherbot\nDisallow: /", "/a.jpg", False),
    ("User-agent: pmd\nSitemap: https://a.example/s\nUser-agent: otherbot\nDisallow: /", "/a.jpg", False),
    ("User-agent: pmd\nHost: a.example\nUser-agent: otherbot\nDisallow: /", "/a.jpg", False),
    ("User-agent: pmd\n<br>\nUser-agent: otherbot\nDisallow: /", "/a.jpg", False),
    ("User-agent: pmd\nDisallow: /x\nUser-agent: otherbot\nDisallow: /", "/a.jpg", True),
    ("User-agent: pmd\nDisallow:\nUser-agent: otherbot\nDisallow: /", "/a.jpg", True),
    ("User-agent: *\nCrawl-delay: 9\n\nUser-agent: otherbot\nDisallow: /", "/a.jpg", True),  # a rule to us
    ("User-agent: pmd\nDisallow: /x\n\n\nDisallow: /a", "/a.jpg", False),  # an empty line ends nothing
    ("User-agent: pmd\nDisallow: /x\nSitemap: https://a.example/s\nDisallow: /a", "/a.jpg", False),
    ("User-agent: pmd\nDisallow: /x\nFoo: bar\nDisallow: /a", "/a.jpg", False),
    # Several of one name are one
    (EVERYONE + NOBODY, "/a.jpg", False),
    (NOBODY + EVERYONE, "/a.jpg", False),
    ("User-agent: pmd\nDisallow: /x\n" + EVERYONE + "User-agent: PMD/2\nDisallow: /a", "/a.jpg", False),
    ("User-agent: pmd\nDisallow: /a\nUser-agent: pmd\nAllow: /a.jpg", "/a.jpg", True),
    ("User-agent: pmd\nUser-agent: pmd\nDisallow: /a", "/a.jpg", False),
    # Rules before any group are for nobody
    ("Disallow: /\n", "/a.jpg", True),
    ("Disallow: /\nUser-agent: *\nDisallow: /x", "/a.jpg", True),
    ("Disallow: /\n" + EVERYONE, "/a.jpg", False),
    # How lines may be written
    ("user-agent:*\ndisallow:/", "/a.jpg", False),
    ("USER-AGENT: *\nDISALLOW: /", "/a.jpg", False),
    ("  User-Agent :  *  \n\tDisallow\t: \t/  ", "/a.jpg", False),
    ("User-agent:\xa0*\nDisallow:\xa0/", "/a.jpg", False),
    ("User-agent *\nDisallow /", "/a.jpg", False),
    ("Useragent: *\nDisallow: /", "/a.jpg", False),
    ("User agent: *\nDissalow: /", "/a.jpg", False),
    ("User-agent: *\nDisallow: a", "/a.jpg", False),
    (everyone("Disallow: /", "Allow: a"), "/a.jpg", False),
    ("User-agent: *\nDisallow: /a # Allow: /a.jpg", "/a.jpg", False),
    ("User-agent: *\nDisallow: #/", "/a.jpg", True),
    ("User-agent: *#x\nDisallow: /#x", "/a.jpg", False),
    ("User-agent: *\nNoindex: /\nAllowed: /\nDisallowed: /", "/a.jpg", True),
    ("User-agent: *\nDisallow: /: /", "/a.jpg", True),
    ("User-agent: *\nDisallow: /x: /", "/x:%20/a.jpg", False),
    # Ends of lines
    ("User-agent: *\r\nDisallow: /\r\n", "/a.jpg", False),
    ("User-agent: *\rDisallow: /\r", "/a.jpg", False),
    ("User-agent: *\n\rDisallow: /", "/a.jpg", False),
    ("User-agent: *\r\n\r\nDisallow: /x\rDisallow: /a\nDisallow: /y", "/a.jpg", False),
    ("User-agent: *\nDisallow: /x\x0bAllow: /x", "/x.jpg", True),
    ("User-agent: *\nDisallow: /\nFoo: x\u2028Allow: /", "/a.jpg", False),
    ("User-agent: *\nDisallow: /\nFoo: x\x85Allow: /", "/a.jpg", False),
    # What is no text, or not in UTF-8
    (b"\xef\xbb\xbfUser-agent: *\nDisallow: /", "/a.jpg", False),
    (b"# Managed\n\xef\xbb\xbfUser-agent: *\nDisallow: /", "/a.jpg", False),  # two files, one after the other
    (EVERYONE.encode("utf-16"), "/a.jpg", False),
    (b"\xfe\xff" + EVERYONE.encode("utf-16-be"), "/a.jpg", False),
    (EVERYONE.encode("utf-16-le"), "/a.jpg", False),
    (b"User-agent: *\nDisallow: /\0\0\0", "/a.jpg", False),
    (b"User-agent: *\0\nDisallow: /a", "/a.jpg", False),
    (b"\0" * 100 + EVERYONE.encode(), "/a.jpg", False),
    (b"\xfd\xff\xfe\n" + EVERYONE.encode() + b"\xc3", "/a.jpg", False),
    (b"User-agent: *\nDisallow: /caf\xe9/", "/caf%E9/a.jpg", False),
    (b"User-agent: *\nDisallow: /caf\xe9/", "/caf%E8/a.jpg", True),
    (b"User-agent: *\nDisallow: /\xed\xa0\x80", "/a.jpg", True),
    (bytes(range(256)) * 100, "/a.jpg", True),
    ("<!doctype html>\n<p>User-agent: *\n<p>Disallow: /</p>", "/a.jpg", True),
    ("<pre>\nUser-agent: *\nDisallow: /\n</pre>", "/a.jpg", False),
    # Length
    (f"User-agent: *\nDisallow: /{LONG}\nDisallow: /b", "/b.jpg", False),
    (f"User-agent: *\nDisallow: /{LONG}", f"/{LONG}.jpg", False),
    (f"User-agent: {LONG}\n" + EVERYONE, "/a.jpg", False),
    (f"# {LONG}\n" + EVERYONE, "/a.jpg", False),
    (LONG, "/a.jpg", True),
    (everyone(fill("Disallow: /{}/", 490 << 10), "Disallow: /b"), "/b.jpg", False),
    (everyone(fill("Disallow: /{}/", 600 << 10), "Disallow: /b"), "/b.jpg", True),  # not read so far
    (everyone("Disallow: /b", fill("# {}", 600 << 10)), "/b.jpg", False),
    (everyone("Disallow: /b\n") + "A" * READ_BYTES, "/b.jpg", False),
    ((everyone("Disallow: /b") + "\n").ljust(READ_BYTES - 5, "#") + "\nDisallow: /", "/a.jpg", True),  # cut
]


@pytest.mark.parametrize(("robots", "path", "allowed"), ROBOTS_TXT, ids=lambda case: str(case)[:60])
def test_a_path_is_asked_for_where_robots_txt_allows_it(
    robots: str | bytes, path: str, allowed: bool
) -> None:
    begun = time.monotonic()
    verdict = site(robots).before(path)
    assert verdict == (Verdict() if allowed else Verdict(Reason.OPTOUT_ROBOTS, "robots", "robots.txt"))
    assert time.monotonic() - begun < 5


# robots.txt -> s between two requests
DELAYS: list[tuple[str, float | None]] = [
    ("", None),
    (EVERYONE, None),
    (everyone("Crawl-delay: 10"), 10),
    (everyone("crawl-delay:0.5"), 0.5),
    (everyone("CRAWL-DELAY : 2 # s"), 2),
    (everyone("Crawl-delay 3"), 3),
    (everyone("Crawl delay: 3"), 3),
    (everyone("Crawl-delay: 1e3"), 1000),
    (everyone("Crawl-delay: 0"), 0),
    (everyone("Crawl-delay: -1"), None),
    (everyone("Crawl-delay: nan"), None),
    (everyone("Crawl-delay: inf"), None),
    (everyone("Crawl-delay: 1e400"), None),
    (everyone("Crawl-delay: ten"), None),
    (everyone("Crawl-delay:"), None),
    (everyone("Crawl-delay: 10", "Crawl-delay: soon"), 10),
    (everyone("Crawl-delay: 10", "Crawl-delay: 1"), 10),  # the longest
    (everyone("Crawl-delay: 1", "Crawl-delay: 10"), 10),
    ("Crawl-delay: 10\nUser-agent: *\nDisallow: /x", None),
    ("User-agent: otherbot\nCrawl-delay: 10", None),
    ("User-agent: pmd\nCrawl-delay: 5\nUser-agent: *\nCrawl-delay: 10", 5),
    ("User-agent: img2dataset\nCrawl-delay: 5\nUser-agent: *\nCrawl-delay: 2", 5),
    ("User-agent: img2dataset\nCrawl-delay: 5\nUser-agent: *\nCrawl-delay: 10", 10),
    (everyone("Request-rate: 1/5"), 5),
    (everyone("Request-rate: 10/5"), 0.5),
    (everyone("Request-rate: 1/10s"), 10),
    (everyone("Request-rate: 30/1m"), 2),
    (everyone("Request-rate: 1/1h"), 3600),
    (everyone("Request-rate: 1/5 0600-0845"), 5),
    (everyone("Request-rate: 1/5", "Crawl-delay: 2"), 5),
    (everyone("Request-rate: 1/5", "Crawl-delay: 20"), 20),
    (everyone("Request-rate: 0/5"), None),
    (everyone("Request-rate: 1/0"), None),
    (everyone("Request-rate: -1/5"), None),
    (everyone("Request-rate: 5"), None),
    (everyone("Request-rate: /"), None),
    (everyone("Request-rate: 1/" + "9" * 400), None),
    (everyone("Request-rate: 1/" + "9" * 5_000), None),
]


@pytest.mark.parametrize(("robots", "delay_s"), DELAYS, ids=lambda case: str(case)[:60])
def test_a_site_says_how_slowly_it_is_asked(robots: str, delay_s: float | None) -> None:
    assert site(robots).crawl_delay_s == delay_s
    assert site(robots, terms=terms_of(consent=("ai_txt",))).crawl_delay_s is None


# ai.txt, path -> may we ask for it?
AI_TXT: list[tuple[str | bytes, str, bool]] = [
    ("", "/a.jpg", True),
    (EVERYONE, "/a.jpg", False),
    (everyone("Disallow: *.jpg"), "/b/a.jpg", False),
    (everyone("Disallow: *.jpg"), "/B/A.JPG", False),
    (everyone("Disallow: *.JPG"), "/b/a.jpg", False),
    (everyone("Disallow: *.JPG"), "/b/a.JPG", False),
    (everyone("Disallow: *.jpg"), "/b/a.jpeg", True),
    (everyone("Disallow: *.jpg"), "/b/a.jpg?size=1", False),
    (everyone("Disallow: *.jpg", "Allow: *.png"), "/a.png", True),
    (everyone("Disallow: /", "Allow: *.txt"), "/a.jpg", False),
    (everyone("Disallow: /", "Allow: *.jpg"), "/a.jpg", True),
    (everyone("Disallow: .jpg"), "/a.jpg", True),  # a path, as in robots.txt, not a kind
    (everyone("Disallow: /Art/"), "/art/a.jpg", False),
    (everyone("Disallow: /\u00c9t\u00e9/"), "/%C3%89t%C3%A9/a.jpg", False),
    (everyone("Disallow: /%C3%89/"), "/%c3%89/a.jpg", False),
    ("USER-AGENT: PMD\nDISALLOW: /", "/a.jpg", False),
    ("User-agent: otherbot\nDisallow: /", "/a.jpg", True),
    ("User-agent: img2dataset\nDisallow: *.jpg", "/a.jpg", False),
    (EVERYONE + "User-agent: pmd\nAllow: /", "/a.jpg", True),
    (b"\xef\xbb\xbf" + EVERYONE.encode(), "/a.jpg", False),
    ("# Spawning AI\n\nUser-Agent: *\nDisallow: *.txt\nDisallow: *.jpg\nAllow: *.pdf\n", "/A.Jpg", False),
    ("<html>not found</html>", "/a.jpg", True),
]


@pytest.mark.parametrize(("ai", "path", "allowed"), AI_TXT, ids=str)
def test_ai_txt_refuses_paths_and_kinds_of_files_whatever_their_case(
    ai: str | bytes, path: str, allowed: bool
) -> None:
    verdict = site(ai=ai).before(path)
    assert verdict == (Verdict() if allowed else Verdict(Reason.OPTOUT_AI_TXT, "ai_txt", "ai.txt"))
    assert site(ai=ai, robots=EVERYONE).before(path).reason is Reason.OPTOUT_ROBOTS


@pytest.mark.parametrize(
    ("user_agent", "name", "is_ours"),
    [
        ("crawl4us/2.0", "crawl4us", True),
        ("crawl4us/2.0", "crawl", False),
        ("Some-Bot 1", "some-bot", True),
        ("my_bot.net", "my_bot.net", True),
        ("(unnamed)", "unnamed", False),
        ("(unnamed)", "*", True),
        ("img2dataset/1", "img2dataset", True),
    ],
)
def test_our_name_is_the_word_at_the_beginning_of_the_user_agent(
    user_agent: str, name: str, is_ours: bool
) -> None:
    terms = terms_of(user_agent=user_agent)
    assert site(f"User-agent: {name}\nDisallow: /", terms=terms).before("/").reason == (
        Reason.OPTOUT_ROBOTS if is_ours else None
    )
    assert site(terms=terms).after("/", x(f"{name}: noai")).reason == (XR if is_ours else None)


def test_a_file_that_cannot_be_read_refuses_all() -> None:
    broken = SiteFile(None, 503, unreadable="http_5xx")
    policy = SitePolicy.of(TERMS, read_site(TERMS, {ROBOTS: broken}))
    assert policy.before("/a.jpg") == Verdict(Reason.OPTOUT_UNREACHABLE, None, ROBOTS)
    assert policy.evidence == {ROBOTS: {"status": 503, "unreadable": "http_5xx"}}


def test_what_is_kept_of_a_site_is_bounded_and_more_is_no_consent() -> None:
    both = "User-agent: pmd\nUser-agent: img2dataset\n"
    rules = both + "".join(f"Disallow: /{hashlib.sha256(b'%d' % n).hexdigest()}\n" for n in range(8_000))
    policy = site(rules, ai=rules)
    assert policy.size < 1_000
    assert policy.before("/a.jpg").reason is Reason.OPTOUT_UNREACHABLE
    assert site(rules).before("/a.jpg").reason is None
    # Names that are not ours cost nothing, however many there are.
    begun = time.monotonic()
    site(fill("User-agent: bot{}", 250 << 10) + "\n" + fill("Disallow: /{}/", 250 << 10))
    assert time.monotonic() - begun < 5


# Laws


LINES = st.sampled_from(
    [
        *(
            "User-agent: *",
            "User-agent: pmd",
            "User-agent: img2dataset",
            "User-agent: otherbot",
            "User-agent:",
        ),
        *("Disallow: /", "Disallow: /a*b$", "Disallow:", "Allow: /", "Allow: /a", "Crawl-delay: 1e9", "<p>"),
        *(
            "Content-Usage: train-ai=n",
            "Content-Usage: /a train-ai=y",
            "Content-Signal: *",
            "Request-rate: 1/9",
        ),
    ]
)
BODIES = st.one_of(
    st.binary(max_size=300),
    st.text(max_size=300).map(lambda text: text.encode(errors="surrogatepass")),
    st.lists(st.one_of(LINES.map(str.encode), st.binary(max_size=20)), max_size=12).map(b"\n".join),
    st.recursive(
        st.one_of(st.none(), st.integers(), st.floats(), st.text(), st.sampled_from(["/a", "*", "1"])),
        lambda inner: (
            st.lists(inner) | st.dictionaries(st.sampled_from(["location", "tdm-reservation"]), inner)
        ),
        max_leaves=8,
    ).map(lambda value: json.dumps(value).encode()),
)
PATHS = st.one_of(
    st.sampled_from(["/", "/a", "/ab?x=%2F", "//host/a", "/%", "/caf%E9", "/a*b$", "/robots.txt"]),
    st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E)).map("/".__add__),
    st.text().map("/".__add__),
)
FIELDS = st.lists(
    st.tuples(
        st.sampled_from(["X-Robots-Tag", "tdm-reservation", "Content-Usage", "Content-Signal", "Other"])
        | st.text(),
        st.text()
        | st.lists(
            st.sampled_from(
                ["noai", "otherbot: all", "1", "0", "train-ai=n", "ai-train=yes", ":", ";", "*: x", "="]
            )
        ).map(", ".join),
    ),
    max_size=6,
)
WORDS = st.sampled_from(sorted(TERMS.words.x_robots_refusals))


@settings(max_examples=500, deadline=None)
@given(st.tuples(BODIES, BODIES, BODIES), st.lists(PATHS, min_size=1, max_size=4), FIELDS)
def test_whatever_a_site_says_has_a_verdict(
    bodies: tuple[bytes, bytes, bytes], paths: list[str], fields: Fields
) -> None:
    robots, tdmrep, ai = bodies
    policy = site(robots, tdmrep=tdmrep, ai=ai)
    assert policy.size <= 1 << 20
    assert policy.crawl_delay_s is None or policy.crawl_delay_s >= 0
    for path in paths:
        before, after = policy.before(path), policy.after(path, fields)
        for verdict in (before, after):
            assert (verdict.reason is None) == verdict.text.startswith("yes")
            assert len(verdict.said) <= 200
        assert policy.before(path) == before and policy.after(path, fields) == after


@settings(max_examples=300, deadline=None)
@given(FIELDS, WORDS, st.integers(0), st.sampled_from(["{}", " {} ", ",{},", "all, {}", "*: {}", "PMD: {}"]))
def test_a_refusal_in_a_field_of_its_own_refuses_beside_any_others(
    fields: Fields, word: str, place: int, form: str
) -> None:
    fields.insert(place % (len(fields) + 1), ("X-Robots-Tag", form.format(word)))
    assert site().after("/a.jpg", fields).reason is XR


@settings(max_examples=300, deadline=None)
@given(st.lists(LINES, max_size=8), st.lists(LINES, max_size=8), PATHS)
def test_who_refuses_all_of_it_to_all_is_obeyed_unless_we_are_named(
    above: list[str], below: list[str], path: str
) -> None:
    lines = [
        line for line in (*above, "User-agent: *", "Disallow: /", *below) if not line.startswith("Allow")
    ]
    assume(path != ROBOTS and "User-agent: pmd" not in lines)
    assert site("\n".join(lines)).before(path).reason is Reason.OPTOUT_ROBOTS


PLAIN_PATHS = st.lists(st.sampled_from(["a", "b", "ab", ".jpg"]), max_size=3).map(
    lambda parts: "/" + "/".join(parts)
)
PLAIN_RULES = st.tuples(
    st.sampled_from(["Allow", "Disallow"]), PLAIN_PATHS, st.sampled_from(["", "*", "*.jpg", "$", "/*/b"])
).map(lambda rule: f"{rule[0]}: {rule[1]}{rule[2]}")


@settings(max_examples=500, deadline=None)
@given(st.lists(PLAIN_RULES, max_size=6), st.lists(PLAIN_RULES, max_size=6), st.booleans(), PLAIN_PATHS)
def test_plain_rules_are_read_as_protego_reads_them(
    ours: list[str], all_others: list[str], named: bool, path: str
) -> None:
    text = "\n".join(
        ["User-agent: *", *all_others, *(["User-agent: pmd"] if named else []), *(ours if named else [])]
    )
    allowed = Protego.parse(text).can_fetch(f"http://site.example{path}", "pmd")
    assert (site(text).before(path).reason is None) == allowed, text


@pytest.mark.parametrize(
    "body", [b"\xff", b"\0", b"\xc3\xa9", b"a", b"*", b"\xe3\x83\x84", b'"', b"\\", b"%"]
)
@pytest.mark.parametrize("head", [b"User-agent: *\nUser-agent: img2dataset\n", b'[{"location": "'])
@pytest.mark.parametrize("line", [b"Disallow: /", b"Content-Usage: /", b"", b"x\n"])
def test_what_is_kept_of_the_largest_files_is_bounded(head: bytes, line: bytes, body: bytes) -> None:
    whole = head + line + body * (READ_BYTES // len(body))
    many = head + (line + body * 9 + b"\n") * (READ_BYTES // 10)
    for file in (whole, many):
        begun = time.monotonic()
        said = read_site(TERMS, {path: SiteFile(file[:READ_BYTES], 200) for path in (ROBOTS, TDMREP, AI)})
        assert len(zlib.decompress(said)) <= 1 << 20
        assert len(said) <= 1 << 20
        policy = SitePolicy.of(TERMS, said)
        policy.before("/a.jpg")
        policy.after("/a.jpg", [])
        assert time.monotonic() - begun < 10


# On a web of its own


PICTURE = bytes(range(256)) * 40
SITE_FILES = (ROBOTS, TDMREP, AI)


@pytest.fixture(scope="module")
def shared_web() -> Iterator[Web]:
    with Web() as web:
        yield web


@pytest.fixture
def web(shared_web: Web) -> Web:
    """The web with an empty log. Each test has hosts of its own."""
    shared_web.forget()
    return shared_web


def host_with(web: Web, host: str, *paths: str, robots: str | None = None, **headers: str) -> str:
    """Serves pictures at these paths, or at /a.jpg; what comes back is the URL of the first."""
    for path in paths or ("/a.jpg",):
        web.serve(host, path, PICTURE, headers={name.replace("_", "-"): headers[name] for name in headers})
    if robots is not None:
        web.serve(host, ROBOTS, robots.encode(), "text/plain")
    return f"http://{host}{paths[0] if paths else '/a.jpg'}"


def fetch(web: Web, *urls: str, **keys: Any) -> list[Answer]:
    """All at once, by one client to which all signals count."""
    known = {"timeout_s": 5, "retries": 0, "connect_to": web.connect_to, "ca_file": str(web.ca_file)}
    freely = {"per_host_rate": 10_000, "per_host_connections": 8}  # it is our own web
    spec = FetchSpec.model_validate(known | freely | keys)

    async def together() -> list[Answer]:
        async with Client(spec) as client:
            return await asyncio.gather(*(client.fetch(url) for url in urls))

    return asyncio.run(together())


def asked(web: Web, host: str) -> list[str]:
    return [request.target for request in web.requests if request.host == host]


def test_each_file_of_a_site_is_asked_for_once_and_before_its_pictures(web: Web) -> None:
    paths = [f"/{number}.jpg" for number in range(20)]
    host_with(web, "once.example", *paths, robots=NOBODY)
    answers = fetch(web, *(f"http://once.example{path}" for path in paths))
    assert [answer.body for answer in answers] == [PICTURE] * 20
    targets = asked(web, "once.example")
    assert targets[:3] == list(SITE_FILES)
    assert sorted(targets[3:]) == sorted(paths)


def test_what_is_refused_is_not_asked_for(web: Web) -> None:
    host_with(web, "part.example", "/a.jpg", "/art/a.jpg", robots=everyone("Disallow: /art/"))
    free, refused = fetch(web, "http://part.example/a.jpg", "http://part.example/art/a.jpg")
    assert (free.body, free.reason, free.consent) == (PICTURE, None, "yes")
    assert (refused.body, refused.reason, refused.consent) == (None, Reason.OPTOUT_ROBOTS, "no: robots.txt")
    assert (refused.status, refused.final_url) == (None, "")
    assert "http://part.example/art/a.jpg" in refused.detail
    assert web.count("part.example", "/art/a.jpg") == 0


@pytest.mark.parametrize(
    ("file", "body", "reason"),
    [
        (ROBOTS, b"User-agent: *\nContent-Signal: ai-train=no", USE),
        (AI, b"User-agent: *\nDisallow: *.JPG", Reason.OPTOUT_AI_TXT),
        (TDMREP, json.dumps(ALL).encode(), TDM),  # by the answer's header it could be allowed
    ],
)
def test_each_file_is_obeyed(web: Web, file: str, body: bytes, reason: Reason) -> None:
    url = host_with(web, "files.example")
    web.serve("files.example", file, body, "text/plain")
    (answer,) = fetch(web, url)
    assert (answer.body, answer.reason) == (None, reason)
    assert web.count("files.example", "/a.jpg") == (file == TDMREP)
    assert fetch(web, url, consent=("x_robots_tag",))[0].body == PICTURE
    web.serve("files.example", file, b"", "text/plain")


STATUSES = [
    *((status, None) for status in (400, 401, 402, 403, 404, 410, 418, 451, 499)),
    *((status, Reason.OPTOUT_UNREACHABLE) for status in (429, 500, 501, 502, 503, 504, 599)),
]


@pytest.mark.parametrize(("status", "reason"), STATUSES)
def test_a_file_that_is_not_there_says_nothing_and_one_that_fails_refuses(
    web: Web, status: int, reason: Reason | None
) -> None:
    urls: list[str] = []
    for file in SITE_FILES:
        host = f"{file.rpartition('/')[2].partition('.')[0]}-{status}.example"
        urls.append(host_with(web, host))
        web.fault(host, file, Fault.STATUS, status=status)
    for url, answer in zip(urls, fetch(web, *urls), strict=True):
        assert answer.reason == reason, url
        assert web.count(url.split("/")[2], "/a.jpg") == (reason is None)
        if reason:
            assert answer.worth_asking is False  # in this run
            assert f'"status": {status}' in answer.evidence


BROKEN: list[tuple[str, Fault, dict[str, Any]]] = [
    ("hang", Fault.HANG, {}),
    ("head-stall", Fault.HEAD_STALL, {}),
    ("stall", Fault.STALL, {}),
    ("drip", Fault.DRIP, {"interval": 0.2}),
    ("reset", Fault.RESET, {}),
    ("no-bytes", Fault.NO_BYTES, {}),
    ("truncated", Fault.TRUNCATED, {}),
    ("truncated-chunk", Fault.TRUNCATED_CHUNK, {}),
    ("no-http", Fault.BAD_STATUS_LINE, {}),
    ("gzip-cut", Fault.GZIP_CUT, {}),
    ("gzip-not", Fault.GZIP_NOT, {}),
    ("brotli", Fault.BROTLI, {}),
]


@pytest.mark.parametrize(("name", "fault", "how"), BROKEN, ids=[name for name, _, _ in BROKEN])
def test_a_file_that_cannot_be_read_to_its_end_refuses(
    web: Web, name: str, fault: Fault, how: dict[str, Any]
) -> None:
    host = f"{name}.example"
    url = host_with(web, host, robots=NOBODY)
    web.fault(host, ROBOTS, fault, **how)
    answers = fetch(web, url, url + "?2", timeout_s=0.5)
    assert [answer.reason for answer in answers] == [Reason.OPTOUT_UNREACHABLE] * 2
    assert [answer.consent for answer in answers] == ["no: /robots.txt"] * 2
    assert asked(web, host) == [ROBOTS]  # once, and nor were the others
    web.heal(host)


def test_a_file_is_asked_for_again_like_a_picture(web: Web) -> None:
    url = host_with(web, "again.example", robots=NOBODY)
    web.fault("again.example", ROBOTS, Fault.SERVER_ERROR, times=1)
    (answer,) = fetch(web, url, retries=1)
    assert (answer.body, answer.attempts) == (PICTURE, 1)
    assert web.count("again.example", ROBOTS) == 2


@pytest.mark.parametrize(
    ("fault", "reason"),
    [(PortFault.CLOSED, Reason.CONNECT_FAILED), (PortFault.SELF_SIGNED, Reason.TLS_FAILED)],
)
def test_where_nobody_is_there_to_be_asked_the_row_says_so(
    web: Web, fault: PortFault, reason: Reason
) -> None:
    host = f"{fault.replace('_', '-')}.example"
    web.port_fault(host, fault)
    (answer,) = fetch(web, f"https://{host}/a.jpg")
    assert (answer.reason, answer.consent, answer.evidence) == (reason, "", "")


# Redirects


def test_a_file_may_be_elsewhere(web: Web) -> None:
    url = host_with(web, "moved.example")
    web.serve("new.example", "/rules", EVERYONE.encode())
    web.fault("moved.example", ROBOTS, Fault.REDIRECT, to="http://new.example/rules", status=301)
    (answer,) = fetch(web, url)
    assert answer.reason is Reason.OPTOUT_ROBOTS
    assert asked(web, "new.example") == ["/rules"]  # whose own rules say nothing of this


@pytest.mark.parametrize(
    ("hops", "reason"), [(1, "optout_robots"), (5, "optout_robots"), (6, None), (7, None)]
)
def test_a_file_behind_five_redirects_is_found_and_behind_more_is_none(
    web: Web, hops: int, reason: str | None
) -> None:
    url = host_with(web, f"hops{hops}.example", robots=EVERYONE)
    web.fault(f"hops{hops}.example", ROBOTS, Fault.REDIRECT_CHAIN, hops=hops)
    (answer,) = fetch(web, url)
    assert answer.reason == reason
    assert web.count(f"hops{hops}.example", ROBOTS) == min(hops, 5) + 1


@pytest.mark.parametrize("fault", [Fault.REDIRECT_LOOP, Fault.REDIRECT_NO_LOCATION, Fault.REDIRECT_TO_FILE])
def test_redirects_to_nowhere_are_no_file(web: Web, fault: Fault) -> None:
    host = f"{fault.replace('_', '-')}.example"
    url = host_with(web, host, robots=EVERYONE)
    web.fault(host, ROBOTS, fault)
    (answer,) = fetch(web, url)
    assert answer.body == PICTURE
    assert json.loads(answer.evidence)[ROBOTS] == {"status": 302}
    assert web.count(host, ROBOTS) <= 6


@pytest.mark.parametrize("fault", [PortFault.CLOSED, PortFault.SILENT])
def test_a_file_that_has_moved_to_where_nobody_is_refuses(web: Web, fault: PortFault) -> None:
    url = host_with(web, f"to-{fault}.example")
    web.port_fault(f"is-{fault}.example", fault, port=80)
    web.fault(f"to-{fault}.example", ROBOTS, Fault.REDIRECT, to=f"http://is-{fault}.example/robots.txt")
    (answer,) = fetch(web, url, timeout_s=0.5)
    assert answer.reason is Reason.OPTOUT_UNREACHABLE
    assert web.count(f"to-{fault}.example", "/a.jpg") == 0


def test_each_host_on_the_way_of_a_picture_has_its_say(web: Web) -> None:
    there = host_with(web, "there.example", robots=EVERYONE)
    url = host_with(web, "here.example", robots=NOBODY)
    web.fault("here.example", "/a.jpg", Fault.REDIRECT, to=there)
    (answer,) = fetch(web, url)
    assert (answer.reason, answer.final_url) == (Reason.OPTOUT_ROBOTS, url)
    assert asked(web, "there.example") == [ROBOTS]
    evidence = json.loads(answer.evidence)[ROBOTS]["sha256"]
    assert evidence == hashlib.sha256(EVERYONE.encode()).hexdigest()  # of the host that refused


@pytest.mark.parametrize("field", ["X-Robots-Tag: noai", "TDM-Reservation: 1", "Content-Usage: train-ai=n"])
def test_a_redirect_has_a_header_that_counts(web: Web, field: str) -> None:
    there = host_with(web, "goal.example")
    web.fault("gate.example", "/a.jpg", Fault.REDIRECT, to=f"{there}\r\n{field}")  # one more behind Location
    (answer,) = fetch(web, "http://gate.example/a.jpg")
    assert answer.reason in (XR, TDM, USE)
    assert answer.consent.lower().startswith(f"no: {field[:10].lower()}")
    assert web.count("goal.example") == 0


# Bodies


def test_a_packed_file_is_unpacked(web: Web) -> None:
    for fault in (Fault.GZIP, Fault.DEFLATE, Fault.DEFLATE_BARE, Fault.CHUNKED, Fault.CLOSE_DELIMITED):
        host = f"{fault.replace('_', '-')}.example"
        url = host_with(web, host, robots=EVERYONE)
        web.fault(host, ROBOTS, fault)
        assert fetch(web, url)[0].reason is Reason.OPTOUT_ROBOTS, fault


@pytest.mark.parametrize("fault", [Fault.BIG, Fault.ENDLESS])
def test_a_file_without_end_is_read_for_500_kib_and_counts(web: Web, fault: Fault) -> None:
    host = f"{fault}-file.example"
    robots = everyone("Disallow: /art/", fill("# {}", 2 * READ_BYTES), "Disallow: /a.jpg")
    host_with(web, host, "/a.jpg", "/art/a.jpg", robots=robots)
    web.fault(host, ROBOTS, fault)
    free, refused = fetch(web, f"http://{host}/a.jpg", f"http://{host}/art/a.jpg")
    assert (free.body, refused.reason) == (PICTURE, Reason.OPTOUT_ROBOTS)
    assert free.seconds < 3
    read = hashlib.sha256(robots.encode()[:READ_BYTES]).hexdigest()
    assert json.loads(free.evidence)[ROBOTS] == {"status": 200, "sha256": read}


def test_a_packed_file_without_end_is_read_for_500_kib(web: Web) -> None:
    url = host_with(web, "bomb.example", robots=NOBODY)
    web.fault("bomb.example", ROBOTS, Fault.BOMB_GZIP, size=1 << 30)
    (answer,) = fetch(web, url)
    assert answer.body == PICTURE
    assert json.loads(answer.evidence)[ROBOTS]["sha256"] == hashlib.sha256(bytes(READ_BYTES)).hexdigest()


def test_files_that_say_more_than_is_kept_refuse(web: Web) -> None:
    def rules(name: str) -> bytes:
        words = (hashlib.sha256(f"{name}{number}".encode()).hexdigest() for number in range(6_000))
        return f"User-agent: {name}\n".encode() + b"".join(
            b"Disallow: /%b\n" % word.encode() for word in words
        )

    url = host_with(web, "wordy.example")
    for file in (ROBOTS, AI):
        web.serve("wordy.example", file, rules("pmd") + rules("img2dataset"))
    (answer,) = fetch(web, url)
    assert (answer.reason, answer.consent) == (Reason.OPTOUT_UNREACHABLE, "no: /robots.txt")


@pytest.mark.parametrize("field", ["X-Robots-Tag: noai", "tdm-reservation: 1", "Content-Signal: ai-train=no"])
def test_the_body_of_a_refused_answer_is_not_read(web: Web, field: str) -> None:
    name, value = field.split(": ")
    web.serve_file("unread.example", "/a.jpg", ServedFile(PICTURE, headers=((name, value),)))
    web.fault("unread.example", "/a.jpg", FileFault.STALL, size=10)  # who reads it waits
    (answer,) = fetch(web, "http://unread.example/a.jpg", timeout_s=2)
    assert (answer.body, answer.status) == (None, 200)
    assert (answer.reason, answer.consent.lower()) in [
        (XR, "no: x-robots-tag: noai"),
        (TDM, "no: tdm-reservation: 1"),
        (USE, "no: content-signal: ai-train=no"),
    ]
    assert answer.headers[name.lower()] == value
    assert answer.seconds < 1.5


# Sites


def test_each_scheme_and_port_is_a_site_of_its_own(web: Web) -> None:
    host_with(web, "ports.example", robots=everyone("Disallow: /a.jpg"))
    with Web() as other:
        host_with(other, "ports.example", robots=NOBODY)
        connect_to = web.connect_to | {"ports.example:8080": other.http}
        urls = [f"{site}/a.jpg" for site in ("http://ports.example", "http://ports.example:8080")]
        refused, free = fetch(web, *urls, connect_to=connect_to, ports=(80, 8080))
        assert (refused.reason, free.body) == (Reason.OPTOUT_ROBOTS, PICTURE)
        assert asked(web, "ports.example") == [ROBOTS, TDMREP, AI]
        assert asked(other, "ports.example") == [ROBOTS, TDMREP, AI, "/a.jpg"]
    web.forget()
    fetch(web, "https://ports.example/a.jpg", "http://ports.example/a.jpg", "http://PORTS.example:80/a.jpg")
    files = [request.tls for request in web.requests if request.path == ROBOTS]
    assert sorted(files) == [False, True]  # port 80 is http's own


@pytest.mark.parametrize(
    ("refused", "left"),
    [
        ("/ai.txt", [ROBOTS, TDMREP, "/a.jpg"]),
        ("/.well-known/", [ROBOTS, AI, "/a.jpg"]),
        ("/*.txt", [ROBOTS, TDMREP, "/a.jpg"]),
        ("/", [ROBOTS]),
    ],
)
def test_robots_txt_holds_for_the_other_files_too(web: Web, refused: str, left: list[str]) -> None:
    url = host_with(web, "shy.example", robots=everyone(f"Disallow: {refused}"))
    (answer,) = fetch(web, url)
    assert asked(web, "shy.example") == left
    assert answer.body == (PICTURE if "/a.jpg" in left else None)
    assert sorted(json.loads(answer.evidence)) == sorted(path for path in left if path != "/a.jpg")


@pytest.mark.parametrize(
    ("consent", "files"),
    [
        ((), []),
        (("x_robots_tag", "tdm_reservation"), []),
        (("robots",), [ROBOTS]),
        (("content_signal",), [ROBOTS]),
        (("tdmrep", "ai_txt"), [TDMREP, AI]),
    ],
)
def test_only_the_files_of_signals_that_count_are_asked_for(
    web: Web, consent: tuple[str, ...], files: list[str]
) -> None:
    url = host_with(web, "few.example")
    (answer,) = fetch(web, url, consent=consent)
    assert answer.body == PICTURE
    assert asked(web, "few.example") == [*files, "/a.jpg"]
    assert (answer.consent, bool(answer.evidence)) == (("yes", True) if consent else ("", False))


def test_an_answer_tells_the_verdict_and_what_it_rests_on(web: Web) -> None:
    robots = everyone("Disallow: /art/", "Content-Signal: ai-train=yes")
    hosts = {"says.example": {"tdm_reservation": "0"}, "refuses.example": {"X_Robots_Tag": "all, NoAI"}}
    urls = [host_with(web, host, robots=robots, **headers) for host, headers in hosts.items()]
    granted, refused, silent = fetch(web, *urls, host_with(web, "silent.example"))
    assert granted.consent == "yes: tdm-reservation: 0; robots.txt: ai-train=yes"
    assert refused.consent == "no: x-robots-tag: noai"
    assert silent.consent == "yes"
    digest = hashlib.sha256(robots.encode()).hexdigest()
    missing = {"status": 404}
    evidence = {ROBOTS: {"status": 200, "sha256": digest}, TDMREP: missing, AI: missing}
    assert json.loads(granted.evidence) == json.loads(refused.evidence) == evidence
    assert json.loads(silent.evidence) == dict.fromkeys(SITE_FILES, missing)
    assert granted.evidence == refused.evidence  # equal for equal bytes served
