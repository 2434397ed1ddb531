r"""Annotation files of one row a line: cut into parts, and read line by line.

    caption TAB url \n        a row ends with \n alone; \r, U+2028 and \x85 are ordinary characters inside it
    caption TAB url \r\n      one \r before the \n belongs to the line end
    caption TAB url           the last row may lack its \n; the nothing after the last \n is no row

    |<--- part 0 --->|<--- part 1 --->|<- part 2 ->|
    0             64 MiB           128 MiB       end

A part begins with the first row that begins at or after its multiple of 64 MiB, whoever reads it. A row that
is no UTF-8, or over 1 MiB long, is rejected, and the one after it is read as if nothing had been.
"""

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO, NamedTuple

from pmd.records import Caption, Reason, Record, Rejected, url_key
from pmd.sources import bzip2
from pmd.sources.part import ROW_BYTES, Part, Unreadable, blocks, excerpt, head, is_bzip2, is_packed

PART_BYTES = 64 << 20
PACKED_PART_BYTES = 8 << 20  # of a .bz2: it unpacks to about as much as a plain part
_SEARCH_BYTES = 64 << 10


def line_parts(
    paths: Sequence[Path], form: str, *, part_bytes: int = PART_BYTES, beside: tuple[Part, ...] = ()
) -> list[Part]:
    """Cut line files, each where a row begins."""
    parts: list[Part] = []
    for path in map(str, paths):
        if is_bzip2(path):
            starts = bzip2.cuts(path, PACKED_PART_BYTES)
            edges = [*zip(starts, [*starts[1:], None], strict=True)]
        elif is_packed(path):
            edges = [(0, None)]
        else:
            edges = [*_plain_edges(path, part_bytes)]
        parts += [Part(path, form, None, start, stop, beside) for start, stop in edges]
    return parts


def _plain_edges(path: str, part_bytes: int) -> Iterator[tuple[int, int]]:
    """(start, stop) of each part: it begins with the first row at or after a multiple of the size."""
    with open(path, "rb", buffering=0) as file:
        size = file.seek(0, 2)
        start = 0
        while start < size:
            cut = _row_start(file, (start // part_bytes + 1) * part_bytes)
            yield start, cut
            start = cut


def _row_start(file: BinaryIO, offset: int) -> int:
    """Where the first row begins that begins at or after an offset; the end of the file if none does."""
    position = file.seek(offset - 1)
    while block := file.read(_SEARCH_BYTES):
        newline = block.find(b"\n")
        if newline >= 0:
            return position + newline + 1
        position += len(block)
    return file.seek(0, 2)


def lines(part: Part) -> Iterator[tuple[int, str | Rejected]]:
    """Every row of a part with its number: its text without the line end, or why it is not text."""
    row = 0
    rest = b""  # the beginning of a row whose end has not been read yet
    try:
        for block in blocks(part):
            if len(rest) > ROW_BYTES and b"\n" not in block:
                continue
            whole, newline, rest = (rest + block).rpartition(b"\n")
            # What a row has beyond the bound is dropped at once; the one byte over it still says "too long".
            rest = rest[: ROW_BYTES + 1]
            if not newline:
                continue
            for line in whole.split(b"\n"):
                yield row, _text(row, line)
                row += 1
    except Unreadable as error:
        # The row that was being read is lost with all that follow it.
        yield row, Rejected(row, Reason.INPUT_MALFORMED, str(error))
        return
    if rest:
        yield row, _text(row, rest)


def _text(row: int, line: bytes) -> str | Rejected:
    if len(line) > ROW_BYTES:
        return Rejected(row, Reason.INPUT_MALFORMED, f"expected at most {ROW_BYTES} bytes, found more")
    try:
        return line.removesuffix(b"\r").decode()
    except UnicodeDecodeError as error:
        found = f"{excerpt(line[error.start :][:20])} at byte {error.start} of the row"
        return Rejected(row, Reason.INPUT_MALFORMED, f"expected UTF-8, found {found}")


# --- files of a caption and the URL of its image ---

# Any scheme passes, so that "only http and https" is said and counted in one place: by the fetcher.
_URL = re.compile(r"https?://[^\s/?#]|(?!https?:)[a-z][a-z0-9+.-]*://", re.IGNORECASE)


def pair(source: str, row: int, url: str, caption: str) -> Record | Rejected:
    """A row that is a URL and a caption. The URL is kept as published: encoded anew it may name another."""
    if not caption or caption.isspace():
        return Rejected(row, Reason.INPUT_NO_CAPTION, f"expected a caption, found {excerpt(caption)}")
    if not _URL.match(url):
        return no_url(row, url)
    return Record(url_key(source, url), url, (Caption(caption, row),))


def no_url(row: int, url: str) -> Rejected:
    """What becomes of a row whose image address is empty, or is none."""
    if not url:
        return Rejected(row, Reason.INPUT_NO_IMAGE, "expected the URL of an image, found nothing")
    return Rejected(row, Reason.INPUT_BAD_URL, f"expected http(s)://host/..., found {excerpt(url)}")


def is_url(text: str) -> bool:
    """Whether a text begins as a URL does: scheme://, and for http and https a host."""
    return _URL.match(text) is not None


class Layout(NamedTuple):
    """How the rows of a TAB-separated file look."""

    columns: int
    url_column: int  # 0-based number of the first one that holds a web address


def layout(path: Path) -> Layout | None:
    """How most rows of the first 64 KiB look; None where under one in ten holds a web address."""
    rows = head(str(path)).split(b"\n")
    if len(rows) > 1:
        rows.pop()  # cut off somewhere, or the nothing after the last line end
    looks: Counter[Layout] = Counter()
    for row in rows:
        fields = row.split(b"\t")
        for number, field in enumerate(fields):
            if field.startswith((b"http://", b"https://")):
                looks[Layout(len(fields), number)] += 1
                break
    if looks.total() * 10 < len(rows) or not looks:
        return None
    return looks.most_common(1)[0][0]
