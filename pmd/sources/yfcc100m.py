"""YFCC100M: a hundred million photos and videos of Flickr, with what their owners wrote about them.

    0 TAB 6985418911 TAB 4e2f7a26... TAB 39089491@N00 TAB nickname TAB ... TAB title TAB description TAB ...

    25 columns   yfcc100m_dataset.bz2
    23 columns   yfcc100m_dataset-{0..9}.bz2: without the line number before and the hash after the id
    sqlite       yfcc100m_dataset.sql: a database; one table of the 23, in order of ids
    subset       yfcc100m_subset.jsonl of facebook/pmd: those that FLAVA took, with the text that it took
                 {"image_url": "https://...", "texts": ["..."], "source": "yfcc100m",
                 "meta": "{\\"photoid\\": ...}"}

No header, no quoting; the texts that people wrote are encoded as forms are ("caf%C3%A9+noir"). A photo is in
Amazon's bucket under its hash, the md5 of the address that Flickr had it at, each byte written without a
leading zero. Its description is its caption; where the rules for captions drop that, its title is.
"""

import binascii
import contextlib
import errno
import functools
import hashlib
import operator
import os
import re
import sqlite3
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple
from urllib.parse import quote, unquote

import orjson
from pydantic import Field

from pmd.records import Caption, Reason, Record, Rejected, native_key, url_key
from pmd.sources.licenses import spdx_id
from pmd.sources.lines import PART_BYTES, is_url, line_parts, lines, no_url
from pmd.sources.part import ROW_BYTES, Part, Unreadable, excerpt, head
from pmd.sources.rules import Rules as _Rules

COLUMNS_25 = "yfcc100m tsv, 25 columns"
COLUMNS_23 = "yfcc100m tsv, 23 columns"
SQLITE = "yfcc100m sqlite"
SUBSET = "pmd subset jsonl"

Text = Literal["description", "title"]


class Rules(_Rules):
    """The subset has one text and one address for each photo, and none of this changes them."""

    # s3: Amazon's bucket, which has nearly all of the 99.2 million photos, with at most 500 px; of OpenAI's
    # subset 99.9 % were found there. flickr: the address in the row, where photos get lost: in 2021 GeoYFCC
    # had 730,000 left of 1.1 million.
    images: Literal["s3", "flickr"] = "s3"
    # In this order: the first is a photo's caption, the next is taken instead where the rules for captions
    # drop it. The FLAVA paper: the description, and the title where the description is not English or has at
    # most two words (min_words = 3, languages = ["en"] in [source.yfcc100m.text]).
    captions: Annotated[tuple[Text, ...], Field(min_length=1)] = ("description", "title")
    # HTML tags and web addresses in the texts. Who trained on these texts and published how, removes them:
    # SLIP the tags a, b, i and addresses, dalle-mini all tags. The FLAVA paper says nothing of either.
    markup: Literal["remove", "keep"] = "remove"


def recognise(path: Path) -> str | None:
    beginning = head(str(path))
    if beginning.startswith(_SQLITE_MAGIC):
        return SQLITE if _is_database(path) else None
    rows = beginning.split(b"\n")
    if len(rows) > 1:
        rows.pop()  # cut off somewhere, or the nothing after the last line end
    forms = [*map(_form, rows)]
    found = max((COLUMNS_25, COLUMNS_23, SUBSET), key=forms.count)
    return found if forms.count(found) * 10 >= len(rows) else None


def parts(paths: Sequence[Path]) -> list[Part]:
    found: list[Part] = []
    for path in paths:
        form = recognise(path) or COLUMNS_25
        found += _database_parts(path) if form == SQLITE else line_parts([path], form)
    return found


def read(part: Part, rules: Rules) -> Iterator[Record | Rejected]:
    if part.form == SQLITE:
        return _database(part, rules)
    return _subset(part) if part.form == SUBSET else _table(part, rules)


# --- which form a file is in ---

_SQLITE_MAGIC = b"SQLite format 3\0"
_MARKERS = (b"0", b"1")


def _form(line: bytes) -> str | None:
    """The form that a line is in."""
    if line.startswith(b"{"):
        fields = _json(line)
        is_ours = isinstance(fields, dict) and fields.get("source") == "yfcc100m" and "texts" in fields
        return SUBSET if is_ours else None
    fields = line.removesuffix(b"\r").split(b"\t")
    if len(fields) not in (25, 23) or fields[-1] not in _MARKERS or not fields[len(fields) == 25].isdigit():
        return None
    return COLUMNS_25 if len(fields) == 25 else COLUMNS_23


# --- a photo, whatever the form ---


class _Photo(NamedTuple):
    """What is wanted of a row."""

    id: str
    nickname: str  # this and the texts encoded
    title: str
    description: str
    page_url: str
    download_url: str
    license_url: str
    marker: str  # "1": a video
    hash: str | None = None  # its name in the bucket, where the row says it


_ID = re.compile(r"[1-9][0-9]{0,18}\Z")
_HASH = re.compile(r"[0-9a-f]{16,32}\Z")
_BUCKET = "https://multimedia-commons.s3-us-west-2.amazonaws.com/data/images"

_license = functools.lru_cache(64)(spdx_id)


def _record(row: int, photo: _Photo, rules: Rules) -> Record | Rejected:
    refused = _refused(row, photo.id, photo.marker)
    if refused:
        return refused
    caption = None
    for name in reversed(rules.captions):
        text = _decoded(photo.title if name == "title" else photo.description)
        if rules.markup == "remove":
            text = _without_markup(text)
        if text and not text.isspace():
            same = caption and caption.text == text
            caption = Caption(text, row, name, otherwise=None if same else caption)
    if caption is None:
        found = excerpt([getattr(photo, name) for name in rules.captions])
        return Rejected(
            row, Reason.INPUT_NO_CAPTION, f"expected a {' or a '.join(rules.captions)}, found {found}"
        )
    url = photo.download_url
    if not is_url(url):
        return no_url(row, url)
    if rules.images == "s3":
        key = _hash(url) if photo.hash is None else photo.hash
        if not _HASH.match(key):
            return Rejected(
                row, Reason.INPUT_MALFORMED, f"expected 16 to 32 hex digits, found {excerpt(key)}"
            )
        url = f"{_BUCKET}/{key[:3]}/{key[3:6]}/{key}.jpg"
    return Record(
        native_key("yfcc100m", photo.id),
        url,
        (caption,),
        _license(photo.license_url),
        photo.license_url or None,
        _attribution(photo.nickname, photo.page_url),
        _meta(photo.id),
    )


def _refused(row: int, id: str, marker: str) -> Rejected | None:
    if not _ID.match(id):
        return Rejected(row, Reason.INPUT_MALFORMED, f"expected the number of a photo, found {excerpt(id)}")
    if marker == "0":
        return None
    if marker == "1":
        return Rejected(row, Reason.INPUT_NO_IMAGE, f"{id} is a video")
    return Rejected(
        row, Reason.INPUT_MALFORMED, f"expected 0 for a photo or 1 for a video, found {excerpt(marker)}"
    )


def _hash(download_url: str) -> str:
    """A photo's name in the bucket, which was filled when all of Flickr's addresses began with http:."""
    if download_url.startswith("https:"):
        download_url = "http:" + download_url.removeprefix("https:")
    digest = hashlib.md5(download_url.encode()).digest()
    return ("-" + digest.hex("-")).replace("-0", "-").replace("-", "")


def _attribution(nickname: str, page_url: str) -> str | None:
    name = " ".join(_decoded(nickname).split())
    return ", ".join(filter(None, (name, page_url))) or None


def _meta(id: str) -> str:
    """What meta_json would make of it in ten times the time."""
    return f'{{"flickr_photo_id":"{id}"}}'


# --- texts ---

# Every % is one of two hex digits, and none of = could be taken for one.
_SOUND = re.compile(r"[^%=]*+(?:%[0-9A-Fa-f]{2}[^%=]*+)*+\Z")


def _decoded(text: str) -> str:
    """unquote_plus(text, errors="replace"), in a quarter of the time for the usual texts."""
    text = text.replace("+", " ")
    if "%" not in text:
        return text
    if text.isascii() and _SOUND.match(text):
        # Quoted-printable is the same with another sign, and decoded in C.
        return binascii.a2b_qp(text.replace("%", "=")).decode(errors="replace")
    return unquote(text)


# Those that put what they enclose apart from what is around it.
_BLOCK_TAGS = "blockquote|br|center|dd|div|dl|dt|h[1-6]|hr|img|li|ol|p|pre|table|tbody|td|th|thead|tr|ul"
_INLINE_TAGS = (
    "a|abbr|acronym|b|big|cite|code|del|em|font|i|ins|kbd|q|s|small|span|strike|strong|sub|sup|tt|u"
)
# Attributes have values: "a <b and c> d" is no tag.
_TAG = re.compile(
    rf"</?(?:({_BLOCK_TAGS})|(?:{_INLINE_TAGS}))"
    r"""(?:\s++[a-z-]++\s*+=\s*+(?:"[^"<>]*+"|'[^'<>]*+'|[^\s<>"']++))*+\s*+/?>""",
    re.IGNORECASE,
)
_ADDRESS = re.compile(r"\b(?:https?://|www\.)[^\s<>]++", re.IGNORECASE)


def _without_markup(text: str) -> str:
    if "<" in text:
        text = _TAG.sub(lambda tag: " " if tag[1] else "", text)
    if "://" in text or "www." in text or "WWW." in text:
        text = _ADDRESS.sub("", text)
    return text


# --- 25 and 23 columns ---

_PLACES = {
    23: operator.itemgetter(0, 2, 6, 7, 13, 14, 16, 22),
    25: operator.itemgetter(1, 4, 8, 9, 15, 16, 18, 24, 2),
}


def _table(part: Part, rules: Rules) -> Iterator[Record | Rejected]:
    columns = 23 if part.form == COLUMNS_23 else 25
    places = _PLACES[columns]
    for row, line in lines(part):
        if isinstance(line, Rejected):
            yield line
            continue
        fields = line.split("\t")
        if len(fields) == columns:
            yield _record(row, _Photo(*places(fields)), rules)
        else:
            found = f"found {len(fields)} in {excerpt(line)}"
            yield Rejected(row, Reason.INPUT_MALFORMED, f"expected {columns} columns, {found}")


# --- the subset ---


def _subset(part: Part) -> Iterator[Record | Rejected]:
    for row, line in lines(part):
        yield line if isinstance(line, Rejected) else _taken(row, line)


def _taken(row: int, line: str) -> Record | Rejected:
    fields = _json(line)
    if not isinstance(fields, dict):
        return Rejected(row, Reason.INPUT_MALFORMED, f"expected a JSON object, found {excerpt(line)}")
    meta = _json(_string(fields, "meta"))
    of_photo = meta if isinstance(meta, dict) else {}
    url, id = _string(fields, "image_url"), _string(of_photo, "photoid")
    if id and (refused := _refused(row, id, _string(of_photo, "marker") or "0")):
        return refused
    texts = fields.get("texts")
    text = texts[0] if isinstance(texts, list) and texts else None
    if not isinstance(text, str) or not text.strip():
        return Rejected(row, Reason.INPUT_NO_CAPTION, f"expected a text, found {excerpt(texts)}")
    if not is_url(url):
        return no_url(row, url)
    license_url = _string(of_photo, "licenseurl")
    return Record(
        native_key("yfcc100m", id) if id else url_key("yfcc100m", url),
        url,
        (Caption(text, row),),
        _license(license_url),
        license_url or None,
        _attribution(_string(of_photo, "unickname"), _string(of_photo, "pageurl")),
        _meta(id) if id else None,
    )


def _json(text: str | bytes) -> Any:
    """What a text says; None where it is no JSON."""
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError:
        return None


def _string(fields: dict[str, Any], name: str) -> str:
    """A field that is a text or a whole number, as a text; empty for anything else."""
    value = fields.get(name)
    return str(value) if isinstance(value, str | int) else ""


# --- the database ---

# A database can hold views, expressions and damage that keep a reader busy for ever. So it is asked for plain
# columns of a plain table, in the order in which that is stored, and nothing else of it is used.

_TABLE = "yfcc100m_dataset"
_COLUMNS = ("photoid", "unickname", "title", "description", "pageurl", "downloadurl", "licenseurl", "marker")
_ROWS = f"FROM {_TABLE} NOT INDEXED WHERE _rowid_ BETWEEN ? AND ? ORDER BY _rowid_"
_ALL_ROWS = f"SELECT _rowid_, {', '.join(_COLUMNS)} {_ROWS}"
_ONE_ROW = f"{_ALL_ROWS} LIMIT 1"
_FIRST_NUMBER = f"SELECT _rowid_ {_ROWS} LIMIT 1"
_LAST_NUMBER = f"SELECT _rowid_ {_ROWS} DESC LIMIT 1"
_NUMBERS = (-(1 << 63), (1 << 63) - 1)
_HEAP_BYTES = 256 << 20  # that SQLite may take in this process; for honest databases it needs three megabytes
_OPENING_STEPS = 10_000  # of SQLite's machine; enough for 500 tables. 300,000 would take it minutes

_Cells = tuple[Any, ...]  # str, int, float, bytes or None


def _is_database(path: Path) -> bool:
    try:
        with _opened(str(path)):
            return True
    except Unreadable:
        return False


def _database_parts(path: Path, part_bytes: int = PART_BYTES) -> list[Part]:
    """Ranges of ids of the same width, as many as the file would have parts if it were plain text."""
    try:
        with _opened(str(path)) as database:
            first = database.execute(_FIRST_NUMBER, _NUMBERS).fetchone()
            last = database.execute(_LAST_NUMBER, _NUMBERS).fetchone()
    except Unreadable:
        first = last = None
    if not first or not last or first > last:
        return [Part(str(path), SQLITE)]
    ids = last[0] - first[0] + 1
    number = min(-(-path.stat().st_size // part_bytes), ids)
    starts = [first[0] + ids * place // number for place in range(number)]
    stops = [*starts[1:], None]
    return [Part(str(path), SQLITE, None, start, stop) for start, stop in zip(starts, stops, strict=True)]


def _database(part: Part, rules: Rules) -> Iterator[Record | Rejected]:
    row = 0
    try:
        with _opened(part.path) as database:
            for cells in _rows(database, part.start, _NUMBERS[1] if part.stop is None else part.stop - 1):
                if isinstance(cells, Unreadable):
                    yield Rejected(row, Reason.INPUT_MALFORMED, str(cells))
                else:
                    yield _of_cells(row, cells, rules)
                row += 1
    except (Unreadable, _Disorder) as error:
        yield Rejected(row, Reason.INPUT_MALFORMED, str(error))


def _of_cells(row: int, cells: _Cells, rules: Rules) -> Record | Rejected:
    try:
        return _record(
            row, _Photo(*[cell if type(cell) is str else _text(cell) for cell in cells[1:]]), rules
        )
    except UnicodeDecodeError as error:
        return Rejected(row, Reason.INPUT_MALFORMED, f"expected UTF-8, found {excerpt(error.object)}")


def _text(cell: bytes | int | float | None) -> str:
    if isinstance(cell, bytes):
        return cell.decode()
    return "" if cell is None else str(cell)


def _rows(database: sqlite3.Connection, first: int, last: int) -> Iterator[_Cells | Unreadable]:
    """The id and the wanted cells of each row, or why it cannot be read.

    Raises Unreadable or _Disorder where no more rows can be read.
    """
    while first <= last:
        try:
            with _damage_is_unreadable():
                for cells in database.execute(_ALL_ROWS, (first, last)):
                    first = _next(cells[0], first)
                    yield cells
            return
        except Unreadable:
            # A cursor gives no row before it has seen the next one. So the row at `first` may be sound.
            found = _one(database, _FIRST_NUMBER, first, last)
            if not found:
                return
            first = _next(found[0], first)
            try:
                cells = _one(database, _ONE_ROW, found[0], found[0])
            except Unreadable as error:
                cells = error
            yield cells or Unreadable(f"the database has lost the row {found[0]}")


def _next(number: int, first: int) -> int:
    if number < first:
        raise _Disorder("the database is damaged: its rows are out of order")
    return number + 1


class _Disorder(Exception):
    """Pages that lead back to each other would give the same rows again and again."""


def _one(database: sqlite3.Connection, query: str, first: int, last: int) -> Any:
    with _damage_is_unreadable():
        return database.execute(query, (first, last)).fetchone()


@contextlib.contextmanager
def _opened(path: str) -> Iterator[sqlite3.Connection]:
    """A database with the table that is read from it. Raises Unreadable where it has none, or is damaged."""
    with open(path, "rb"):
        pass  # what cannot be opened is no damage
    # immutable: neither a lock nor the journal beside it is looked at, which might be somebody else's.
    address = f"file:{quote(os.fsencode(os.path.abspath(path)))}?mode=ro&immutable=1"
    with (
        _damage_is_unreadable(),
        contextlib.closing(sqlite3.connect(address, uri=True, isolation_level=None)) as database,
    ):
        database.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, ROW_BYTES)
        database.set_progress_handler(lambda: True, _OPENING_STEPS)  # called, it ends what goes on
        for setting in ("trusted_schema = OFF", "cell_size_check = ON", f"hard_heap_limit = {_HEAP_BYTES}"):
            database.execute(f"PRAGMA {setting}").fetchall()
        kinds = database.execute(f"PRAGMA table_list({_TABLE})").fetchall()
        columns = database.execute(f"PRAGMA table_xinfo({_TABLE})").fetchall()
        names = {name.lower() for _, name, *_, hidden in columns if not hidden}  # hidden: computed
        if [kind[2:5:2] for kind in kinds] != [("table", 0)] or "_rowid_" in names:
            raise Unreadable(f"expected a database with a plain table {_TABLE}, found none")
        if missing := [name for name in _COLUMNS if name not in names]:
            raise Unreadable(f"expected the table {_TABLE} to have a column {missing[0]}, found none")
        database.set_progress_handler(None, 0)
        yield database


@contextlib.contextmanager
def _damage_is_unreadable() -> Iterator[None]:
    try:
        yield
    except sqlite3.Error as error:
        # Of the disk; the lower byte is the kind of error.
        if getattr(error, "sqlite_errorcode", 0) & 0xFF == sqlite3.SQLITE_IOERR:
            raise OSError(errno.EIO, str(error)) from error
        said = "".join(char if char.isprintable() else " " for char in str(error)[:200])
        raise Unreadable(f"the database cannot be read: {said}") from None
    except (MemoryError, OverflowError):
        raise Unreadable(f"the database cannot be read in {_HEAP_BYTES} bytes") from None
