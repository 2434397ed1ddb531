r"""Any other index of images and captions: one file, or many, of rows with a URL and a text somewhere.

    parquet         url | caption | ...                                      parts by row group
    csv             url,caption \n https://...,"a cat, asleep" \n            quoted, see delimited.py
    quoted tsv      the same with TABs
    tsv             https://... TAB a 5" cat \n                              a quote is a mere character
    jsonl           {"url": "https://...", "caption": "a cat"} \n
    json array      [{"url": "https://...", "caption": "a cat"}, ...]
    json columns    {"url": ["https://...", ...], "caption": ["a cat", ...]}

The text forms also as .gz, .bz2 and .zst. A csv or tsv has a header unless there is a web address in its
first row; without one its columns are called "0", "1", ... A tsv is a quoted one if that is needed to make
sense of its beginning.

The rules say which column is what: by a preset for a published corpus, or by names for single roles; else the
usual names are tried. Where a role has several names, a row's first one with something in it counts; of
captions the next ones are taken instead where the rules for captions drop the first. A cell that is a list of
texts gives as many captions.

A row is a row of the table; the header is none. Rows of a file without the wanted columns are all rejected,
saying so. Of a damaged Parquet file each unreadable row group, or the rest of one, is a row.
"""

import contextlib
import functools
import html
import itertools
import json
import math
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, TypeVar
from urllib.parse import unquote_plus

import orjson
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel, BeforeValidator, ConfigDict

from pmd.records import Caption, Reason, Record, Rejected, meta_json, native_key, url_key
from pmd.sources import delimited
from pmd.sources.delimited import Broken
from pmd.sources.json_lists import BLOCK_BYTES, elements
from pmd.sources.licenses import spdx_id
from pmd.sources.lines import is_url, line_parts, lines, no_url, pair
from pmd.sources.part import ROW_BYTES, Part, Unreadable, blocks, excerpt, head
from pmd.sources.rules import Rules as _Rules

PARQUET = "parquet"
CSV = "csv"
TSV = "tsv"
QUOTED_TSV = "quoted tsv"
JSONL = "jsonl"
JSON_ARRAY = "json array"
JSON_COLUMNS = "json columns"

# --- which column is what ---

Names = Annotated[
    tuple[str, ...], BeforeValidator(lambda names: (names,) if isinstance(names, str) else names)
]
Decoding = Literal["none", "url-plus", "html"]  # url-plus: "a+cat%21" is "a cat!"


class Columns(BaseModel):
    """The names of the columns that play a role, those of a role in the order in which they are tried."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    url: Names = ()
    caption: Names = ()
    key: Names = ()  # ids that are unique for each image; without them a record's key is made of its URL
    license: Names = ()  # an SPDX id, the address of a licence, or any other words, which end in meta
    license_url: Names = ()
    attribution: Names = ()
    meta: Names = ()  # kept in meta under these names


class Decode(BaseModel):
    """How the text in the columns of a role is encoded."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    url: Decoding = "none"
    caption: Decoding = "none"
    attribution: Decoding = "none"


Preset = Literal["laion", "relaion", "laion_coco", "coyo", "datacomp", "pixelprose", "pd12m"]


class Rules(_Rules):
    # The columns of a published corpus; without it, the usual names.
    preset: Preset | None = None
    # What differs from that. Published tables have URLs and captions under a dozen names.
    columns: Columns = Columns()
    # None of the corpora that have a preset encodes its texts. YFCC100M does (url-plus).
    decode: Decode = Decode()


_PRESETS: dict[Preset | None, Columns] = {
    None: Columns(
        url=("url", "URL", "image_url", "image_urls", "img_url", "urls"),
        caption=("caption", "captions", "text", "TEXT", "txt", "alt", "alt_text"),
        license=("license", "LICENSE"),
        license_url=("license_url",),
        attribution=("attribution",),
    ),
    # LAION-400M and LAION-5B: SAMPLE_ID, URL, TEXT, HEIGHT, WIDTH, LICENSE, NSFW, similarity (img2dataset's
    # guides); conversions in lower case are about. SAMPLE_ID is one of a row, not of an image: no key.
    "laion": Columns(url=("URL", "url"), caption=("TEXT", "text", "caption"), license=("LICENSE", "license")),
    # Re-LAION: url and caption in programs that read relaion2B-en-research-safe; its schema was not seen.
    "relaion": Columns(url=("url", "URL"), caption=("caption", "TEXT", "text")),
    # URL, TEXT, top_caption, all_captions, ...: top_caption is the best of the synthetic ones, TEXT the alt
    # text of LAION-5B.
    "laion_coco": Columns(url=("URL", "url"), caption=("top_caption", "TEXT")),
    # id, url, text, ... (dataset card).
    "coyo": Columns(url=("url",), caption=("text",), meta=("id",)),
    # uid, url, text, original_width, ..., sha256 (its download tool); subsets are published as lists of uids.
    "datacomp": Columns(url=("url",), caption=("text",), meta=("uid", "sha256")),
    # uid, url, key, status, original_caption, vlm_model, vlm_caption, ... (dataset card).
    "pixelprose": Columns(url=("url",), caption=("vlm_caption", "original_caption"), meta=("uid",)),
    # id, url, caption, width, height, mime_type, hash, license (dataset card).
    "pd12m": Columns(url=("url",), caption=("caption",), license=("license",), meta=("id", "hash")),
}


class _Wanted(NamedTuple):
    """Those columns of a table that play a role, and where among them those of each role are."""

    names: tuple[str, ...]
    url: tuple[int, ...]
    caption: tuple[int, ...]
    key: tuple[int, ...]
    license: tuple[int, ...]
    license_url: tuple[int, ...]
    attribution: tuple[int, ...]
    meta: tuple[int, ...]
    decode: Decode
    is_pair: bool  # one column of URLs, then one of captions, and no more to do
    missing: str | None  # what the table lacks, if it lacks URLs or captions


def _asked(rules: Rules) -> dict[str, tuple[str, ...]]:
    """The names that are tried for each role."""
    preset = _PRESETS[rules.preset]
    return {role: getattr(rules.columns, role) or getattr(preset, role) for role in Columns.model_fields}


def _wanted(rules: Rules, present: Collection[str]) -> _Wanted:
    """What is wanted of a table with these columns."""
    asked = _asked(rules)
    roles = {role: [name for name in names if name in present] for role, names in asked.items()}
    names = tuple(dict.fromkeys(itertools.chain.from_iterable(roles.values())))
    places = {role: tuple(map(names.index, of_role)) for role, of_role in roles.items()}
    is_pair = names == (*roles["url"][:1], *roles["caption"][:1]) and sum(map(len, roles.values())) == 2
    missing = None
    for role in ("caption", "url"):
        if not roles[role]:
            missing = f"no {role} column: expected {excerpt([*asked[role]])}, found {excerpt([*present])}"
    return _Wanted(
        names,
        **places,
        decode=rules.decode,
        is_pair=is_pair and rules.decode == Decode(),
        missing=missing,
    )


# --- the three functions of a reader ---


def recognise(path: Path) -> str | None:
    beginning = head(str(path)).removeprefix(_BOM)
    if beginning.startswith(b"PAR1"):
        return PARQUET
    if beginning.lstrip().startswith((b"{", b"[")):
        return _json_form(beginning.lstrip())
    return _text_form(beginning)


def parts(paths: Sequence[Path]) -> list[Part]:
    """Parquet by row groups, files of one row a line by bytes; any other form is one part a file."""
    found: list[Part] = []
    for path in paths:
        form = recognise(path) or CSV
        if form == PARQUET:
            found += _row_group_parts(str(path))
        elif form in (TSV, JSONL):
            found += line_parts([path], form)
        else:
            found.append(Part(str(path), form))
    return found


def read(part: Part, rules: Rules) -> Iterator[Record | Rejected]:
    return _READ[part.form](part, rules)


# --- which form a file is in ---

_BOM = b"\xef\xbb\xbf"
_WHOLE = 64 << 10  # bytes; a shorter beginning is the whole file
_WEB = re.compile(r"https?(?:://|%3A)", re.IGNORECASE)
_LIST_FIRST = re.compile(rb'\{\s*"(?:[^"\\]|\\.)*+"\s*:\s*\[\s*(?:["\]n]|-?[0-9])')


def _json_form(beginning: bytes) -> str | None:
    if re.match(rb"\[\s*\{", beginning):
        return JSON_ARRAY
    first, _, after = beginning.partition(b"\n")
    try:
        row = orjson.loads(first)
    except orjson.JSONDecodeError:
        row = None
    if isinstance(row, dict) and (
        after.lstrip().startswith(b"{")
        or any(isinstance(cell, str) and _WEB.match(cell) for cell in row.values())
    ):
        return JSONL
    return JSON_COLUMNS if _LIST_FIRST.match(beginning) else None


def _text_form(beginning: bytes) -> str | None:
    first = beginning.partition(b"\n")[0]
    if b"\t" in first:
        found = [line.removesuffix(b"\r") for line in _whole(beginning.split(b"\n"), beginning)]
        plain = [line.decode(errors="replace").split("\t") for line in found]
        quoted = _quoted_rows(beginning, "\t")
        # Read in the wrong one of the two ways, a table has rows of too many or few fields.
        more = _strays(quoted) - _strays(plain)
        is_quoted = more < 0 or (more == 0 and _has_quoted(plain))
        if _is_table(quoted if is_quoted else plain):
            return QUOTED_TSV if is_quoted else TSV
    return CSV if b"," in first and _is_table(_quoted_rows(beginning, ",")) else None


def _quoted_rows(beginning: bytes, delimiter: str) -> list[list[str]]:
    """The fields of each row; those of a broken one are none."""
    found = _whole([*delimited.rows([beginning], delimiter)], beginning)
    split = [row if isinstance(row, Broken) else delimited.fields(row, delimiter) for row in found]
    return [[] if isinstance(row, Broken) else row for row in split]


_Row = TypeVar("_Row")


def _whole(rows: list[_Row], beginning: bytes) -> list[_Row]:
    """Without the last row where the end of the beginning may have cut it short, or none is left of it."""
    return rows[:-1] if len(rows) > 1 and (len(beginning) >= _WHOLE or not rows[-1]) else rows


def _has_quoted(rows: list[list[str]]) -> bool:
    """Is there a quote doubled inside quotes, or all of the first row in quotes?"""
    in_quotes = [[len(field) > 1 and field[0] == field[-1] == '"' for field in row] for row in rows]
    doubled = any(
        quoted and '""' in field[1:-1]
        for row, marks in zip(rows, in_quotes, strict=True)
        for field, quoted in zip(row, marks, strict=True)
    )
    return doubled or all(in_quotes[0])


def _strays(rows: list[list[str]]) -> int:
    """How many rows have another number of fields than most?"""
    return len(rows) - Counter(map(len, rows)).most_common(1)[0][1]


def _is_table(rows: list[list[str]]) -> bool:
    """Have most rows the same number of fields, two or more, and one of ten a web address?"""
    (length, count), *_ = Counter(map(len, rows)).most_common(1)
    with_address = sum(any(map(_WEB.match, row)) for row in rows)
    return length > 1 and count * 2 > len(rows) and with_address * 10 >= len(rows)


# --- rows: the cells of the wanted columns, whatever the form ---


def _record(row: int, cells: Sequence[Any], wanted: _Wanted) -> Record | Rejected:
    if wanted.missing:
        return Rejected(row, Reason.INPUT_MALFORMED, wanted.missing)
    if wanted.is_pair and type(cells[0]) is str and type(cells[1]) is str:
        return pair("table", row, cells[0], cells[1])
    try:
        captions = _captions(row, cells, wanted)
        url = _first(cells, wanted.url, wanted.decode.url)
        if not captions:
            found = excerpt([cells[place] for place in wanted.caption])
            return Rejected(row, Reason.INPUT_NO_CAPTION, f"expected a caption, found {found}")
        if not is_url(url):
            return no_url(row, url)
        key = _first(cells, wanted.key)
        spdx, license_url, words = _license(_first(cells, wanted.license), _first(cells, wanted.license_url))
        meta = {wanted.names[place]: _plain(cells[place]) for place in wanted.meta}
        if words:
            meta.setdefault("license", words)
        return Record(
            _key(key) if key else url_key("table", url),
            url,
            captions,
            spdx,
            license_url,
            _first(cells, wanted.attribution, wanted.decode.attribution) or None,
            meta_json(**meta) if any(value is not None for value in meta.values()) else None,
        )
    except _NoText as error:
        return Rejected(row, Reason.INPUT_MALFORMED, str(error))


def _captions(row: int, cells: Sequence[Any], wanted: _Wanted) -> tuple[Caption, ...]:
    """The captions of a row: those of the first of its caption columns that has some."""
    found: tuple[Caption, ...] = ()
    for place in reversed(wanted.caption):
        cell = cells[place]
        name = wanted.names[place]
        if isinstance(cell, list):
            texts = [_decoded(_text(item), wanted.decode.caption) for item in cell]
            listed = [Caption(text, row, f"{name}.{number}") for number, text in enumerate(texts)]
            found = tuple(caption for caption in listed if caption.text.strip()) or found
            continue
        text = _decoded(_text(cell), wanted.decode.caption)
        if text and not text.isspace():
            id = name if len(wanted.caption) > 1 else None
            found = (Caption(text, row, id, otherwise=found[0] if found else None),)
    return found


def _first(cells: Sequence[Any], places: tuple[int, ...], decoding: Decoding = "none") -> str:
    """The first of the cells with something in it; empty where there is none."""
    for place in places:
        if text := _text(cells[place]):
            return _decoded(text, decoding)
    return ""


class _NoText(Exception):
    """A cell holds something else than a text."""


def _text(cell: Any) -> str:
    if type(cell) is str:
        return cell
    if cell is None:
        return ""
    if isinstance(cell, bytes):
        try:
            return cell.decode()
        except UnicodeDecodeError:
            raise _NoText(f"expected UTF-8, found {excerpt(cell)}") from None
    if isinstance(cell, float):  # to pandas a column of whole numbers with gaps is one of floats
        if math.isnan(cell):
            return ""
        return str(int(cell)) if cell.is_integer() else str(cell)
    if type(cell) is int:
        return str(cell)
    raise _NoText(cell.why if isinstance(cell, Broken) else f"expected a text, found {excerpt(cell)}")


def _decoded(text: str, decoding: Decoding) -> str:
    if decoding == "none":
        return text
    return unquote_plus(text, errors="replace") if decoding == "url-plus" else html.unescape(text)


_CLEAN_KEY = re.compile(r"[a-z0-9_-]{1,88}\Z")


def _key(native_id: str) -> str:
    """The id itself where it makes a key; else its hash: ids that differ in their case alone stay apart."""
    return native_key("table", native_id) if _CLEAN_KEY.match(native_id) else url_key("table", native_id)


_SPDX = re.compile(r"CC0-1\.0|CC-BY(?:-NC)?(?:-SA|-ND)?-[1-4]\.[05]", re.IGNORECASE)


def _license(name: str, url: str) -> tuple[str | None, str | None, str | None]:
    """(SPDX id, address, words that are neither) of a licence."""
    if not url and is_url(name):
        name, url = "", name
    if _SPDX.fullmatch(name):
        return name.upper(), url or None, None
    return spdx_id(url), url or None, name if name != "?" else None  # LAION-400M has "?" where it knows none


def _plain(cell: Any) -> Any:
    """A cell as meta keeps it: what is no text or number as JSON in a text, and NaN not at all."""
    if isinstance(cell, str | int | None):
        return cell
    if isinstance(cell, float):
        return cell if math.isfinite(cell) else None
    if isinstance(cell, bytes | Broken):
        return _text(cell)
    return json.dumps(cell, default=str, ensure_ascii=False)


# --- parquet ---

# Rows that a part has at least, as far as its file goes. Its `start` and `stop` are numbers of row groups.
_PART_ROWS = 200_000
# In memory at a time. A page of a megabyte can stand for a value of a megabyte in each of them.
_BATCH_ROWS = 256
_BUFFER_BYTES = 256 << 10
# A row group that claims more is refused. It is read page by page; no honest page is larger than its group.
_GROUP_ROWS = 1 << 27
_GROUP_BYTES = 4 << 30


def _row_group_parts(path: str) -> list[Part]:
    try:
        with _damage_is_unreadable("the Parquet file"):
            metadata = pq.read_metadata(path)
            rows = [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)]
    except Unreadable:
        return [Part(path, PARQUET)]
    found: list[Part] = []
    start = size = 0
    for stop, count in enumerate(rows, 1):
        size += count
        if size >= _PART_ROWS or stop == len(rows):
            found.append(Part(path, PARQUET, None, start, stop))
            start, size = stop, 0
    return found or [Part(path, PARQUET)]


def _parquet(part: Part, rules: Rules) -> Iterator[Record | Rejected]:
    row = 0
    try:
        with _damage_is_unreadable("the Parquet file"):
            file = pq.ParquetFile(part.path, buffer_size=_BUFFER_BYTES, pre_buffer=False)
            wanted = _wanted(rules, file.schema_arrow.names)
            groups = file.metadata.num_row_groups
    except Unreadable as error:
        yield Rejected(row, Reason.INPUT_MALFORMED, str(error))
        return
    with file:
        for group in range(part.start, groups if part.stop is None else part.stop):
            try:
                for cells in _row_group(file, group, wanted):
                    yield _record(row, cells, wanted)
                    row += 1
            except Unreadable as error:
                yield Rejected(row, Reason.INPUT_MALFORMED, str(error))
                row += 1


def _row_group(file: Any, group: int, wanted: _Wanted) -> Iterator[Sequence[Any]]:
    """The wanted cells of each row of a row group."""
    what = f"row group {group}"
    with _damage_is_unreadable(what):
        claims = file.metadata.row_group(group)
        columns = [claims.column(number) for number in range(claims.num_columns)]
        size = sum(
            column.total_uncompressed_size
            for column in columns
            if any(f"{column.path_in_schema}.".startswith(f"{name}.") for name in wanted.names)
        )
        count = claims.num_rows
    if not (0 <= count <= _GROUP_ROWS and 0 <= size <= _GROUP_BYTES):
        bounds = f"{_GROUP_ROWS} rows of {_GROUP_BYTES} bytes"
        raise Unreadable(f"{what}: expected at most {bounds} in the wanted columns, found {count} of {size}")
    if wanted.missing:
        yield from itertools.repeat((), count)
        return
    batches = file.iter_batches(_BATCH_ROWS, row_groups=[group], columns=[*wanted.names], use_threads=False)
    left = count
    while left:
        with _damage_is_unreadable(what):
            batch = next(batches, None)
            if batch is None:
                raise ValueError(f"expected {count} rows, found {count - left}")
            found = dict(zip(batch.schema.names, map(_cells, batch.columns), strict=True))
            small = batch.nbytes <= ROW_BYTES
            rows = zip(*(found[name] for name in wanted.names), strict=True)
        for cells in itertools.islice(rows, left):
            left -= 1
            yield cells if small or sum(map(_size, cells)) <= ROW_BYTES else _TOO_LONG * len(cells)


def _cells(column: Any) -> list[Any]:
    """The cells of a column; Broken where one cannot be read, such as a string that is no UTF-8."""
    try:
        return column.to_pylist()
    except (ValueError, OverflowError):
        return [_cell(scalar) for scalar in column]


def _cell(scalar: Any) -> Any:
    try:
        return scalar.as_py()
    except (ValueError, OverflowError) as error:
        return Broken(f"expected a readable cell, found {excerpt(str(error))}")


_TOO_LONG = (Broken(f"expected at most {ROW_BYTES} bytes, found more"),)


def _size(cell: Any) -> int:
    if isinstance(cell, str | bytes):
        return len(cell)
    if isinstance(cell, dict):
        cell = cell.values()
    return 8 + sum(map(_size, cell)) if isinstance(cell, Iterable) else 8


@contextlib.contextmanager
def _damage_is_unreadable(what: str) -> Iterator[None]:
    """Turns what pyarrow raises for damaged files, and for types that it cannot show, into Unreadable."""
    try:
        yield
    except OSError as error:
        if error.errno is not None:  # those of the disk have a number
            raise
        raise Unreadable(f"{what} is damaged: {_one_line(error)}") from None
    except (pa.ArrowException, ValueError, KeyError, IndexError, OverflowError, MemoryError) as error:
        raise Unreadable(f"{what} cannot be read: {_one_line(error)}") from None


def _one_line(error: BaseException) -> str:
    return "".join(char if char.isprintable() else " " for char in str(error)[:200])


# --- text ---


class _Header(NamedTuple):
    """What the first row of a text table says about it."""

    is_row: bool  # it is none: the columns have numbers
    columns: int
    places: tuple[int, ...]  # of the wanted columns
    wanted: _Wanted


def _header(first: list[str] | Broken, rules: Rules) -> _Header:
    names = [] if isinstance(first, Broken) else [name.strip() for name in first]
    is_row = not names or any(map(_WEB.match, names))
    if is_row:
        names = [*map(str, range(len(names)))]
    wanted = _wanted(rules, names)
    return _Header(is_row, len(names), tuple(map(names.index, wanted.names)), wanted)


def _delimited(part: Part, rules: Rules) -> Iterator[Record | Rejected]:
    delimiter = "," if part.form == CSV else "\t"
    found = delimited.rows(blocks(part), delimiter)
    first = next(found, None)
    if first is None:
        return
    header = _header(first if isinstance(first, Broken) else delimited.fields(first, delimiter), rules)
    for row, line in enumerate(itertools.chain([first], found) if header.is_row else found):
        fields = line if isinstance(line, Broken) else delimited.fields(line, delimiter)
        if isinstance(fields, Broken):
            yield Rejected(row, Reason.INPUT_MALFORMED, fields.why)
        else:
            yield _fields(row, fields, header)


def _tsv(part: Part, rules: Rules) -> Iterator[Record | Rejected]:
    first = head(part.path).removeprefix(_BOM).partition(b"\n")[0].removesuffix(b"\r")
    header = _header(first.decode(errors="replace").split("\t"), rules)
    skipped = 1 if part.start == 0 and not header.is_row else 0
    for number, line in lines(part):
        row = number - skipped
        if row < 0:
            continue
        if isinstance(line, Rejected):
            yield line._replace(row=row)
        else:
            line = line.removeprefix("\ufeff") if number == part.start == 0 else line
            yield _fields(row, line.split("\t"), header)


def _fields(row: int, fields: list[str], header: _Header) -> Record | Rejected:
    if header.wanted.missing:
        return _record(row, (), header.wanted)
    if len(fields) != header.columns:
        found = f"found {len(fields)} in {excerpt(fields)}"
        return Rejected(row, Reason.INPUT_MALFORMED, f"expected {header.columns} columns, {found}")
    return _record(row, [fields[place] for place in header.places], header.wanted)


# --- json ---


def _jsonl(part: Part, rules: Rules) -> Iterator[Record | Rejected]:
    shapes = _shapes(rules)
    for row, line in lines(part):
        if isinstance(line, Rejected):
            yield line
            continue
        try:
            fields = orjson.loads(line.removeprefix("\ufeff") if row == part.start == 0 else line)
        except orjson.JSONDecodeError as error:
            yield Rejected(
                row, Reason.INPUT_MALFORMED, f"expected JSON: {error.msg[:100]}, in {excerpt(line)}"
            )
        else:
            yield _object(row, fields, shapes)


def _json_array(part: Part, rules: Rules) -> Iterator[Record | Rejected]:
    shapes = _shapes(rules)
    row = 0
    try:
        for _, fields in elements(blocks(part, BLOCK_BYTES)):
            yield _object(row, fields, shapes)
            row += 1
    except Unreadable as error:
        yield Rejected(row, Reason.INPUT_MALFORMED, str(error))


def _shapes(rules: Rules) -> Callable[[tuple[str, ...]], _Wanted]:
    """What is wanted of an object with these names; most have the same."""
    return functools.lru_cache(64)(functools.partial(_wanted, rules))


def _object(row: int, fields: Any, shapes: Callable[[tuple[str, ...]], _Wanted]) -> Record | Rejected:
    if not isinstance(fields, dict):
        return Rejected(row, Reason.INPUT_MALFORMED, f"expected an object, found {excerpt(fields)}")
    wanted = shapes(tuple(fields))
    return _record(row, [fields[name] for name in wanted.names], wanted)


def _json_columns(part: Part, rules: Rules) -> Iterator[Record | Rejected]:
    """Each wanted list is read by a pass of its own over the file, after one that finds which there are."""
    asked = {*itertools.chain.from_iterable(_asked(rules).values())}
    present: dict[str, None] = {}
    damage = None
    row = 0
    try:
        for name, _ in elements(blocks(part, BLOCK_BYTES), *sorted(asked)):
            present[name] = None
    except Unreadable as error:
        damage = str(error)
    wanted = _wanted(rules, present)
    for cells in itertools.zip_longest(*(_json_column(part, name) for name in wanted.names)):
        yield _record(row, cells, wanted)
        row += 1
    if damage:
        yield Rejected(row, Reason.INPUT_MALFORMED, damage)


def _json_column(part: Part, name: str) -> Iterator[Any]:
    with contextlib.suppress(Unreadable):  # said after the last row
        for _, cell in elements(blocks(part, BLOCK_BYTES), name):
            yield cell


_READ = {
    PARQUET: _parquet,
    CSV: _delimited,
    QUOTED_TSV: _delimited,
    TSV: _tsv,
    JSONL: _jsonl,
    JSON_ARRAY: _json_array,
    JSON_COLUMNS: _json_columns,
}
