import csv
import io
import tracemalloc
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pmd.sources.delimited import Broken, fields, rows
from pmd.sources.part import ROW_BYTES, Unreadable

CELLS = st.text(st.sampled_from('ab",\t\n\r é\u2028'), max_size=8)
TABLES = st.lists(st.lists(CELLS, min_size=2, max_size=4), max_size=8)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(table=TABLES, delimiter=st.sampled_from(",\t"), quote_all=st.booleans(), size=st.integers(1, 40))
def test_what_a_csv_writer_wrote_comes_out_whatever_the_blocks(
    table: list[list[str]], delimiter: str, quote_all: bool, size: int
) -> None:
    if not quote_all:  # Python 3.11 leaves a \r without quotes, where it cannot be told from a line end
        table = [[cell.replace("\r", "") for cell in row] for row in table]
    file = io.StringIO(newline="")
    quoting = csv.QUOTE_ALL if quote_all else csv.QUOTE_MINIMAL
    csv.writer(file, delimiter=delimiter, quoting=quoting, lineterminator="\n").writerows(table)
    assert read(file.getvalue().encode(), delimiter, size) == table


PIECES = st.lists(
    st.sampled_from([b'"', b'""', b"\n", b"\r\n", b"\t", b"a", b"\xff", b"\xef\xbb\xbf"]), max_size=30
)


@settings(max_examples=500, deadline=None, derandomize=True)
@given(content=PIECES.map(b"".join), size=st.integers(1, 9))
def test_any_bytes_are_rows_that_hold_all_lines_once_in_order(content: bytes, size: int) -> None:
    found = [*rows(cut(content, size), "\t")]
    lines = content.split(b"\n")
    if lines[-1] == b"":
        lines.pop()
    lines[:1] = [line.removeprefix(b"\xef\xbb\xbf") for line in lines[:1]]
    place = 0
    for row in found:
        if isinstance(row, Broken):
            place += 1
            continue
        length = row.count(b"\n") + 1
        assert b"\n".join(lines[place : place + length]).removesuffix(b"\r") == row
        place += length
        split = fields(row, "\t")
        assert isinstance(split, Broken) == (b"\xff" in row)
    assert place == len(lines)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b'a\t"b\nc"\td\n', [["a", "b\nc", "d"]]),
        (b'a\t"b""c"\n', [["a", 'b"c']]),
        (b'a\t""\n', [["a", ""]]),
        (b'a\t""""\n', [["a", '"']]),
        (b'a\t5" disk\tb "c"\n', [["a", '5" disk', 'b "c"']]),
        (b'a\tb\r\n"c"\t"d"\r\n', [["a", "b"], ["c", "d"]]),
        (b'"a\r\nb"\tc\r\n', [["a\r\nb", "c"]]),
        (b"a\tb", [["a", "b"]]),
        (b"\n\na\n", [[""], [""], ["a"]]),
        (b"\xef\xbb\xbfa\tb\n", [["a", "b"]]),
        (b'\xef\xbb\xbf"a\tb"\tc\n', [["a\tb", "c"]]),
        (b"", []),
    ],
)
def test_quotes_hold_what_they_hold(content: bytes, expected: list[list[str]]) -> None:
    assert read(content, "\t") == expected


GOOD = b'1\t"two\nlines"\n2\tone line\n3\t"with ""quotes"""\n'
GOOD_ROWS = [["1", "two\nlines"], ["2", "one line"], ["3", 'with "quotes"']]


@pytest.mark.parametrize(
    "bad",
    [
        b'0\t"never closed\n',
        b'0\t"never closed\twith more\r\n',
        b'"0\t\n',
        b'0\t"closed"too early\n',
        b'0\t"a"b"\n',
        b'0\t"\n',
    ],
)
def test_a_broken_quote_costs_one_row(bad: bytes) -> None:
    first, *others = read(bad + GOOD, "\t")
    assert isinstance(first, Broken) and "to close" in first.why
    assert others == GOOD_ROWS
    *before, first = read(GOOD + bad, "\t")
    assert before == GOOD_ROWS and isinstance(first, Broken)
    assert [row for row in read((bad + GOOD) * 50, "\t") if not isinstance(row, Broken)] == GOOD_ROWS * 50


def test_a_quote_that_nothing_closes_costs_one_row_once_a_mebibyte_has_been_searched() -> None:
    plain = b"".join(b"%d\tno quotes here\n" % number for number in range(150_000))
    assert len(plain) > 2 * ROW_BYTES
    first, *others = rows(cut(b'0\t"never closed\n' + plain + b'9\t"a\nb"\n', 8 << 10), "\t")
    assert isinstance(first, Broken) and f"over {ROW_BYTES} bytes" in first.why
    assert others == [*plain.split(b"\n")[:-1], b'9\t"a\nb"']


def test_the_lines_of_a_row_that_was_cut_in_a_field_are_rows_of_their_own() -> None:
    first, *others = read(b'1\t"cut\nin the\nmiddle', "\t")
    assert isinstance(first, Broken)
    assert others == [["in the"], ["middle"]]


@pytest.mark.parametrize("length", [ROW_BYTES - 3, ROW_BYTES, 3 * ROW_BYTES])
@pytest.mark.parametrize("quoted", [False, True])
def test_a_row_over_a_mebibyte_is_rejected_alone(length: int, quoted: bool) -> None:
    text = b"x" * (length // 2) + (b"\n" if quoted else b"x") + b"x" * (length // 2)
    content = b'"%s"' % text if quoted else text
    found = [*rows(cut(b"a\n" + content + b"\nb\n", 8 << 10), "\t")]
    assert (found[0], found[-1]) == (b"a", b"b")
    if length < ROW_BYTES:
        assert found[1] == content and len(found) == 3
    else:
        assert all(isinstance(row, Broken) for row in found[1:-1])


def test_what_lies_before_unreadable_bytes_is_read() -> None:
    def damaged() -> Iterator[bytes]:
        yield b'a\tb\nc\t"d\ne\n'
        raise Unreadable("the packed data is damaged")

    *whole, last = rows(damaged(), "\t")
    assert whole[0] == b"a\tb"
    assert last == Broken("the packed data is damaged")


# Read anew from each line on which quotes break, a mebibyte of these would take hours.
@pytest.mark.parametrize("line", [b'q"\t"z\n', b'"\n', b'"\t"\n', b'"""\t"x\n', b'\t"', b'""\n', b'\t"a\n\n'])
@pytest.mark.timeout(30)
def test_no_quotes_take_more_than_linear_time(line: bytes) -> None:
    content = b'0\t"' + line * (ROW_BYTES // len(line) + 10)
    assert sum(1 for _ in rows(cut(content, 64 << 10), "\t"))


def test_a_line_of_any_length_is_read_in_bounded_memory() -> None:
    tracemalloc.start()
    found = [*rows((b"x" * (8 << 10) for _ in range(8_000)), "\t")]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert [type(row) for row in found] == [Broken]
    assert peak < 8 * ROW_BYTES


def test_a_row_that_is_no_utf8_says_where() -> None:
    assert fields(b"caf\xe9\tb", "\t") == Broken("expected UTF-8, found b'\\xe9\\tb' at byte 3 of the row")


def read(content: bytes, delimiter: str, size: int = 64 << 10) -> list[list[str] | Broken]:
    found = rows(cut(content, size), delimiter)
    return [row if isinstance(row, Broken) else fields(row, delimiter) for row in found]


def cut(content: bytes, size: int) -> Iterator[bytes]:
    for start in range(0, len(content), size):
        yield content[start : start + size]
