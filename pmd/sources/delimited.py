r"""Quoted text tables, with TABs or commas, read as a stream in the memory of one row.

    en TAB "She said ""no""          a field in quotes may hold line ends, delimiters and doubled quotes:
    and left." TAB 500 \n            these two lines are one row
    en TAB a 5" disk TAB 500 \n      inside a field that does not begin with one, a quote is a character

Where a row ends is found first, and only rows that are wanted are split into fields: most rows of WIT are
refused by their first few bytes.

Quotes can be broken: after a closing one stands something else than a delimiter or the end of the line, or
none closes within 1 MiB. Then the line that the row began on is a Broken row. The lines after it are read
anew, each as a row of its own, up to the line where the break was noticed, with which reading goes on as if
nothing had been. So a quote too many costs one row, not the rest of the file; of a row that was cut short
inside a field, each further line is a row, usually one of too few fields.
"""

import itertools
import re
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from pmd.sources.part import ROW_BYTES, Unreadable, excerpt

_BOM = b"\xef\xbb\xbf"


class Broken(NamedTuple):
    """A row that cannot be read."""

    why: str


def rows(blocks: Iterable[bytes], delimiter: str) -> Iterator[bytes | Broken]:
    """Every row, the header too, without its line end; whatever makes `blocks` Unreadable is the last one."""
    try:
        lines = _lines(blocks)
        first = [line.removeprefix(_BOM) for line in itertools.islice(lines, 1)]
        yield from _framed(itertools.chain(first, lines), _GRAMMARS[delimiter])
    except Unreadable as error:
        yield Broken(str(error))


def fields(row: bytes, delimiter: str) -> list[str] | Broken:
    """The fields of a row, without their quotes."""
    try:
        text = row.decode()
    except UnicodeDecodeError as error:
        found = f"{excerpt(row[error.start :][:20])} at byte {error.start} of the row"
        return Broken(f"expected UTF-8, found {found}")
    if '"' not in text:
        return text.split(delimiter)
    found = _GRAMMARS[delimiter].field.findall(text + delimiter)
    return [quoted.replace('""', '"') if quoted else bare for quoted, bare in found]


class _Grammar(NamedTuple):
    """What a line that holds a quote can be, for each delimiter. All in one pass: no pattern goes back."""

    row: re.Pattern[bytes]
    opening: re.Pattern[bytes]  # the beginning of a row, up to somewhere inside a quoted field
    closing: re.Pattern[bytes]  # the rest of a row, from somewhere inside a quoted field
    inside: re.Pattern[bytes]  # from somewhere inside a quoted field to somewhere inside the same or another
    field: re.Pattern[str]  # with its delimiter: (what it holds in quotes, what it holds without)


def _grammar(delimiter: str) -> _Grammar:
    text = r'[^"]*+(?:""[^"]*+)*+'
    bare = rf'[^"{delimiter}][^{delimiter}]*+'
    field = rf'(?:"{text}"|{bare})?+'
    opening = rf'(?:{field}{delimiter})*+"{text}'
    after = rf"(?:{delimiter}{field})*+\r?"
    patterns = [field + after, opening, f'{text}"{after}', f'{text}(?:"{delimiter}{opening})?+']
    return _Grammar(
        *(re.compile(pattern.encode()) for pattern in patterns),
        field=re.compile(rf'(?:"({text})"|({bare}))?+{delimiter}'),
    )


_GRAMMARS = {delimiter: _grammar(delimiter) for delimiter in "\t,"}


def _framed(lines: Iterator[bytes], grammar: _Grammar) -> Iterator[bytes | Broken]:
    held: list[bytes] = []  # the lines of a row that ended inside a quoted field so far
    size = 0
    unreadable = None
    try:
        for line in lines:
            if held:
                size += len(line) + 1
                if b'"' in line and grammar.closing.fullmatch(line):
                    held.append(line)
                    row = b"\n".join(held).removesuffix(b"\r")
                    yield row if len(row) <= ROW_BYTES else _too_long()
                    held.clear()
                    continue
                if size <= ROW_BYTES and (b'"' not in line or grammar.inside.fullmatch(line)):
                    held.append(line)
                    continue
                found = f"over {ROW_BYTES} bytes" if size > ROW_BYTES else "text after its closing quote"
                yield from _line_by_line(held, grammar, found)
                held.clear()
            if len(line) > ROW_BYTES:
                yield _too_long()
            elif b'"' not in line or grammar.row.fullmatch(line):
                yield line.removesuffix(b"\r")
            elif grammar.opening.fullmatch(line):
                held.append(line)
                size = len(line)
            else:
                yield _unclosed("text after its closing quote", line)
    except Unreadable as error:
        unreadable = error
    yield from _line_by_line(held, grammar, "the end of what can be read")
    if unreadable:
        raise unreadable


def _line_by_line(held: list[bytes], grammar: _Grammar, found: str) -> Iterator[bytes | Broken]:
    """What becomes of the lines of a row that never closes its quotes."""
    for place, line in enumerate(held):
        if place and (b'"' not in line or grammar.row.fullmatch(line)):
            yield line.removesuffix(b"\r")
        else:
            yield _unclosed(found, line)


def _unclosed(found: str, line: bytes) -> Broken:
    return Broken(f"expected a field in quotes to close, found {found}: {excerpt(line)}")


def _too_long() -> Broken:
    return Broken(f"expected at most {ROW_BYTES} bytes, found more")


def _lines(blocks: Iterable[bytes]) -> Iterator[bytes]:
    """The lines, with their \\r; of one over the bound only its beginning, one byte too much."""
    rest = b""
    for block in blocks:
        if len(rest) > ROW_BYTES and b"\n" not in block:
            continue
        whole, newline, rest = (rest + block).rpartition(b"\n")
        rest = rest[: ROW_BYTES + 1]
        if newline:
            yield from whole.split(b"\n")
    if rest:
        yield rest
