r"""Wikipedia Image Text: gzipped TSV files of the images in Wikipedia's pages, a row for each use of one.

    language TAB page_url TAB image_url TAB ... TAB caption_reference_description TAB ...    17 columns
    en TAB https://en.wikipedia.org/wiki/Oxydactylus TAB https://upload.wikimedia.org/... TAB ...
    es TAB ... TAB "La hoz y el martillo es un simbolo
    que representa ..." TAB \n                         quoted fields hold line ends, see delimited.py

Every file begins with the header, which is no row. Kaggle's edition has an 18th column. Most rows are of
other languages than those wanted, and are refused before they are split. An image stands in many rows, of
other pages and languages: they meet under one key, that of its address, whether with http or https.

The texts are of three kinds, and the rules say which become captions, in which order:

    caption_reference_description      below the image on this page
    caption_attribution_description    from the image's own page: "English: A bat. Deutsch: Eine Fledermaus"
    caption_alt_text_description       for those who do not see it

Originals can have 100 MB, so what is fetched is a thumbnail where the original is wider than that. The
image's licence is not in the file; its attribution here is the page that names author and licence.
"""

import functools
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Literal, NamedTuple, get_args
from urllib.parse import unquote_to_bytes

from pydantic import Field

from pmd.records import Caption, Reason, Record, Rejected, meta_json, url_key
from pmd.sources import delimited
from pmd.sources.delimited import Broken
from pmd.sources.lines import is_url, no_url
from pmd.sources.part import Part, blocks, excerpt, head
from pmd.sources.rules import Rules as _Rules

FORM = "wit tsv"

Text = Literal[
    "caption_reference_description", "caption_attribution_description", "caption_alt_text_description"
]


class Rules(_Rules):
    """The defaults are the rule of HuggingFaceM4's rebuild of facebook/pmd, the best evidence for FLAVA's."""

    # Of the pages; () takes all. The rebuild takes English ones alone: 5.4 of 37 million rows, FLAVA had 4.8.
    languages: tuple[str, ...] = ("en",)
    # The texts of a row in the order in which they are tried, with the words that each needs at least. The
    # first is its caption; the next one is taken instead where the rules for captions drop it.
    captions: tuple[tuple[Text, Annotated[int, Field(ge=1)]], ...] = (
        ("caption_reference_description", 2),
        ("caption_attribution_description", 3),
        ("caption_alt_text_description", 3),
    )
    # Take characters outside ASCII out of captions, as the rebuild does after it has counted their words.
    ascii_only: bool = True
    # px; 0 fetches originals. Wikimedia serves these widths alone (phabricator.wikimedia.org/T414805).
    thumbnail_width: Literal[0, 20, 40, 60, 120, 250, 330, 500, 960, 1280, 1920, 3840] = 500


def recognise(path: Path) -> str | None:
    return FORM if _columns(head(str(path)).removeprefix(b"\xef\xbb\xbf").partition(b"\n")[0]) else None


def parts(paths: Sequence[Path]) -> list[Part]:
    """One part a file: what is inside quotes shows only to who has read all before it."""
    return [Part(str(path), FORM) for path in paths]


def read(part: Part, rules: Rules) -> Iterator[Record | Rejected]:
    lines = delimited.rows(blocks(part), "\t")
    header = next(lines, b"")
    columns = None if isinstance(header, Broken) else _columns(header)
    if columns:
        yield from _rows(lines, columns, rules)
    elif header:
        found = header.why if isinstance(header, Broken) else f"found {excerpt(header)}"
        for row in range(1 + sum(1 for _ in lines)):
            detail = f"expected a header with {_REQUIRED[0]}, {_REQUIRED[1]}, ...: {found}"
            yield Rejected(row, Reason.INPUT_MALFORMED, detail)


# --- the header ---


class _Columns(NamedTuple):
    """Where each column is; -1 for one that the file lacks."""

    number: int
    language: int
    image_url: int
    page_url: int
    mime_type: int
    original_width: int
    captions: dict[str, int]


_CAPTIONS: tuple[Text, ...] = get_args(Text)
_REQUIRED = ("language", "image_url", *_CAPTIONS)


def _columns(header: bytes) -> _Columns | None:
    names = delimited.fields(header.removesuffix(b"\r"), "\t")
    if isinstance(names, Broken) or not {*_REQUIRED} <= {*names}:
        return None
    place = {name: number for number, name in reversed([*enumerate(names)])}
    return _Columns(
        len(names),
        place["language"],
        place["image_url"],
        place.get("page_url", -1),
        place.get("mime_type", -1),
        place.get("original_width", -1),
        {name: place[name] for name in _CAPTIONS},
    )


# --- rows ---


def _rows(lines: Iterator[bytes | Broken], columns: _Columns, rules: Rules) -> Iterator[Record | Rejected]:
    wanted = frozenset(language.encode() for language in rules.languages)
    tabs = columns.number - 1
    for row, line in enumerate(lines):
        if isinstance(line, Broken):
            yield Rejected(row, Reason.INPUT_MALFORMED, line.why)
            continue
        # Five of six rows end here, their long contexts untouched but for the count of their TABs.
        if wanted and columns.language == 0 and line.count(b"\t") >= tabs:
            language = line[: line.find(b"\t")]
            if language not in wanted and (detail := _other_language(language)):
                yield Rejected(row, Reason.CAPTION_LANGUAGE, detail)
                continue
        fields = delimited.fields(line, "\t")
        if isinstance(fields, Broken):
            yield Rejected(row, Reason.INPUT_MALFORMED, fields.why)
        elif len(fields) != columns.number:
            found = f"found {len(fields)} in {excerpt(line)}"
            yield Rejected(row, Reason.INPUT_MALFORMED, f"expected {columns.number} columns, {found}")
        else:
            yield _image(row, fields, columns, rules)


_LANGUAGE = re.compile(rb"[A-Za-z-]{2,16}\Z")


@functools.lru_cache(1_000)
def _other_language(language: bytes) -> str | None:
    """What is said of rows in a language; None where it is none, so that the row had better be looked at."""
    return f"in the language {language.decode()!r}" if _LANGUAGE.match(language) else None


def _image(row: int, fields: list[str], columns: _Columns, rules: Rules) -> Record | Rejected:
    language, image_url = fields[columns.language], fields[columns.image_url]
    if rules.languages and language not in rules.languages:
        return Rejected(row, Reason.CAPTION_LANGUAGE, f"in the language {excerpt(language)}")
    caption = _caption(
        row, {name: fields[place] for name, place in columns.captions.items()}, language, rules
    )
    if caption is None:
        found = excerpt([fields[place] for place in columns.captions.values()])
        return Rejected(row, Reason.INPUT_NO_CAPTION, f"expected a caption of some words, found {found}")
    if not is_url(image_url):
        return no_url(row, image_url)
    stored = _STORED.match(image_url)
    url = (
        _thumbnail(stored, rules.thumbnail_width, _field(fields, columns.original_width)) if stored else None
    )
    meta = meta_json(
        image_url=image_url if url else None,
        mime_type=_field(fields, columns.mime_type) or None,
        page_url=_field(fields, columns.page_url) or None,
        # Outside commons lie images that may be used on Wikipedia's pages as a quotation only ("fair use").
        repository=stored["repository"] if stored else None,
    )
    return Record(
        url_key("wit", _HTTP.sub("https:", image_url)),
        url or image_url,
        (caption,),
        attribution=_page(stored) if stored else None,
        meta=meta,
    )


_HTTP = re.compile(r"\Ahttps?:", re.IGNORECASE)


def _field(fields: list[str], place: int) -> str:
    return fields[place] if place >= 0 else ""


# --- captions ---


def _caption(row: int, texts: dict[str, str], language: str, rules: Rules) -> Caption | None:
    """The first of a row's texts that can be a caption, with the next ones to be taken otherwise."""
    caption = None
    for name, min_words in reversed(rules.captions):
        text = texts[name]
        if name == "caption_attribution_description":
            text = _section(text, language)
        if len(text.split()) < min_words:
            continue
        if rules.ascii_only:
            text = text.encode("ascii", "ignore").decode()
        if text and not text.isspace():
            caption = Caption(text, row, name, otherwise=caption)
    return caption


# What a language is called in its own section. An attribution in any other is not used.
_LANGUAGES = {
    "ca": "Català",
    "cs": "Čeština",
    "de": "Deutsch",
    "en": "English",
    "es": "Español",
    "fr": "Français",
    "it": "Italiano",
    "nl": "Nederlands",
    "pl": "Polski",
    "pt": "Português",
    "ru": "Русский",
    "sv": "Svenska",
    "uk": "Українська",
}
_SECTION = {code: re.compile(rf"\b{name}\s?:\s*", re.IGNORECASE) for code, name in _LANGUAGES.items()}


def _section(attribution: str, language: str) -> str:
    """The section in one language: from its last marker up to the next one; empty where it has no marker.

    As in the rebuild, any ": " ends the next marker, and the word before it is taken for a language.
    """
    marker = _SECTION.get(language)
    found = [*marker.finditer(attribution)] if marker and ":" in attribution else []
    if not found:
        return ""
    text, next_marker, _ = attribution[found[-1].end() :].partition(": ")
    if not next_marker:
        return text
    before, *name = text.rsplit(None, 1) or [""]
    return before if name else ""


# --- addresses ---

# https://upload.wikimedia.org/wikipedia/commons/5/5f/Oxydactylus_longipes_fm.jpg
_STORED = re.compile(
    r"(?P<root>https?://upload\.wikimedia\.org/wikipedia/(?P<repository>[a-z][a-z0-9_-]*))/"
    r"(?P<folders>[0-9a-f]/[0-9a-f]{2})/(?P<name>[^/?#\s]+)\Z"
)
# How the thumbnail of a file with this ending is called. Any other type is fetched as it is.
_THUMBNAILS = {
    "jpg": "{width}px-{name}",
    "jpeg": "{width}px-{name}",
    "png": "{width}px-{name}",
    "gif": "{width}px-{name}",
    "svg": "{width}px-{name}.png",
    "tif": "lossy-page1-{width}px-{name}.jpg",
    "tiff": "lossy-page1-{width}px-{name}.jpg",
}
# Above so many bytes MediaWiki calls the thumbnail of any file "thumbnail" (its setting abbrvThreshold).
_LONG_NAME = 160


def _thumbnail(stored: re.Match[str], width: int, original_width: str) -> str | None:
    """The address of an image's thumbnail; None where the original is to be fetched.

    MediaWiki refuses a thumbnail that is not narrower than its original, but draws an SVG in any size.
    """
    name = stored["name"]
    ending = name.rpartition(".")[2].lower()
    pattern = _THUMBNAILS.get(ending)
    wider = original_width.isdecimal() and len(original_width) < 10 and int(original_width) > width
    if not width or not pattern or not (wider or ending == "svg"):
        return None
    called = name if len(unquote_to_bytes(name)) <= _LONG_NAME else f"thumbnail.{ending}"
    return f"{stored['root']}/thumb/{stored['folders']}/{name}/{pattern.format(width=width, name=called)}"


def _page(stored: re.Match[str]) -> str:
    """The page that names an image's author and licence."""
    repository = stored["repository"]
    host = "commons.wikimedia.org" if repository == "commons" else f"{repository}.wikipedia.org"
    return f"https://{host}/wiki/File:{stored['name']}"
