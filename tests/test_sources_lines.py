import gzip
import tempfile
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pmd.records import Reason, Record, Rejected
from pmd.sources.lines import PART_BYTES, Layout, layout, line_parts, lines, pair
from pmd.sources.part import ROW_BYTES, Part

LINES = st.lists(
    st.sampled_from([b"\n", b"\r", b"a", b"\xe2\x80\xa8", b"\x85", b"\x0c", b"\xff", b"\t"]), max_size=40
)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(content=LINES.map(b"".join), part_bytes=st.integers(1, 30))
def test_a_file_has_as_many_rows_as_lines_however_it_is_cut(content: bytes, part_bytes: int) -> None:
    expected = content.split(b"\n")
    if expected[-1] == b"":  # nothing after the last line end
        expected.pop()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "file")
        path.write_bytes(content)
        whole = read(line_parts([path], "form"))
        parts = line_parts([path], "form", part_bytes=part_bytes)
        assert read(parts) == whole
    assert [row for row, _ in whole] == list(range(len(expected)))
    for (_, text), line in zip(whole, expected, strict=True):
        try:
            assert text == line.removesuffix(b"\r").decode()
        except UnicodeDecodeError:
            assert isinstance(text, Rejected) and text.reason is Reason.INPUT_MALFORMED
    # The parts are the file, end to end, and each begins with a row.
    assert [part.start for part in parts] == [0, *(part.stop for part in parts)][: len(parts)]
    assert not parts or parts[-1].stop == len(content)
    assert all(content[part.start - 1 : part.start] in (b"", b"\n") for part in parts)


def test_parts_have_a_fixed_size(tmp_path: Path) -> None:
    path = tmp_path / "file"
    row = b"x" * 1023 + b"\n"
    with path.open("wb") as file:
        for _ in range(PART_BYTES // (1024 * 1024) + 1):
            file.write(row * 1024)
    assert line_parts([path], "form") == [
        Part(str(path), "form", None, 0, PART_BYTES),
        Part(str(path), "form", None, PART_BYTES, PART_BYTES + (1 << 20)),
    ]


def test_only_a_line_feed_ends_a_row(tmp_path: Path) -> None:
    text = "a\rb\u2028c\x85d\x0be\x0cf\x1cg\r\r\nlast\r\n"
    assert texts(tmp_path, text.encode()) == ["a\rb\u2028c\x85d\x0be\x0cf\x1cg\r", "last"]


def test_the_last_row_may_lack_its_line_end(tmp_path: Path) -> None:
    assert texts(tmp_path, b"a\nb") == ["a", "b"]
    assert texts(tmp_path, b"a\nb\n") == ["a", "b"]
    assert texts(tmp_path, b"a\n\n") == ["a", ""]
    assert texts(tmp_path, b"") == []


def test_a_row_that_is_no_utf8_is_rejected_alone(tmp_path: Path) -> None:
    first, bad, last = texts(tmp_path, b"caf\xc3\xa9\ncaf\xe9 au lait\nend\n")
    assert (first, last) == ("café", "end")
    assert bad == Rejected(
        1, Reason.INPUT_MALFORMED, "expected UTF-8, found b'\\xe9 au lait' at byte 3 of the row"
    )


@pytest.mark.parametrize(
    "length", [ROW_BYTES - 1, ROW_BYTES, ROW_BYTES + 1, 2 * ROW_BYTES, 5 * ROW_BYTES + 7]
)
@pytest.mark.parametrize("before", [b"", b"short\n"])
@pytest.mark.parametrize("after", [b"", b"\n", b"\nshort", b"\n\xff\n"])
def test_a_row_over_a_mebibyte_is_rejected_alone(
    tmp_path: Path, length: int, before: bytes, after: bytes
) -> None:
    found = texts(tmp_path, before + b"x" * length + after)
    long = found[1 if before else 0]
    assert isinstance(long, str) == (length <= ROW_BYTES)
    assert len(found) == (before + b"x" + after.removesuffix(b"\n")).count(b"\n") + 1


def test_a_row_of_any_length_is_read_in_bounded_memory(tmp_path: Path) -> None:
    path = tmp_path / "file"
    with gzip.open(path, "wb", compresslevel=1) as file:
        for _ in range(64):
            file.write(b"x" * (1 << 20))
        file.write(b"\nend\n")
    tracemalloc.start()
    rows = list(lines(Part(str(path), "form")))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert [type(text) for _, text in rows] == [Rejected, str]
    assert peak < 8 * ROW_BYTES


def test_a_gzipped_file_is_one_part_with_the_same_rows(tmp_path: Path) -> None:
    content = b"".join(b"http://a.example/%d\tcaption %d\n" % (i, i) for i in range(50_000))
    plain, packed = tmp_path / "plain", tmp_path / "packed"
    plain.write_bytes(content)
    packed.write_bytes(
        gzip.compress(content[:9_999]) + gzip.compress(content[9_999:])
    )  # two members are one file
    assert len(line_parts([packed], "form")) == 1
    assert read(line_parts([packed], "form")) == read(line_parts([plain], "form"))
    assert layout(packed) == layout(plain) == Layout(columns=2, url_column=0)


def test_what_lies_before_the_damage_of_a_gzipped_file_is_read(tmp_path: Path) -> None:
    content = b"".join(b"http://a.example/%d\tcaption %d\n" % (i, i * i) for i in range(50_000))
    packed = gzip.compress(content)
    path = tmp_path / "packed"
    path.write_bytes(packed[: len(packed) // 2])
    *whole, (row, last) = read(line_parts([path], "form"))
    assert row == len(whole) > 20_000
    assert [text for _, text in whole] == content.decode().split("\n")[:row]
    assert isinstance(last, Rejected) and (last.row, last.reason) == (row, Reason.INPUT_MALFORMED)
    assert "packed data" in last.detail


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("", Reason.INPUT_NO_IMAGE),
        ("a photo", Reason.INPUT_BAD_URL),
        ("example.com/a.jpg", Reason.INPUT_BAD_URL),
        ("//example.com/a.jpg", Reason.INPUT_BAD_URL),
        ("http://", Reason.INPUT_BAD_URL),
        ("https:///a.jpg", Reason.INPUT_BAD_URL),
        ("HTTP://?a", Reason.INPUT_BAD_URL),
        (" http://example.com/a.jpg", Reason.INPUT_BAD_URL),
        ("javascript:alert(1)", Reason.INPUT_BAD_URL),
    ],
)
def test_an_address_that_is_no_url_is_rejected(url: str, reason: Reason) -> None:
    rejected = pair("cc12m", 7, url, "a caption")
    assert isinstance(rejected, Rejected)
    assert rejected[:2] == (7, reason)


@pytest.mark.parametrize(
    "url",
    [
        "http://example.com",
        "HTTPS://EXAMPLE.COM/a b|c%zz#é",
        "http://例え.jp/画像.jpg",
        "http://[::1]/",
        "file:///etc/passwd",
        "ftp://example.com/a.jpg",
    ],
)
def test_a_url_is_kept_character_for_character_whatever_its_scheme(url: str) -> None:
    record = pair("cc12m", 7, url, " a caption ")
    assert isinstance(record, Record)
    assert record.url == url
    assert record.captions[0][:2] == (" a caption ", 7)


@pytest.mark.parametrize("caption", ["", " ", "\t \u3000\xa0"])
def test_a_blank_caption_is_no_caption(caption: str) -> None:
    rejected = pair("cc12m", 7, "http://example.com/a.jpg", caption)
    assert isinstance(rejected, Rejected)
    assert rejected.reason is Reason.INPUT_NO_CAPTION


def read(parts: list[Part]) -> list[tuple[int, str | Rejected]]:
    """All rows of some parts, numbered on from one to the next."""
    whole: list[tuple[int, str | Rejected]] = []
    for part in parts:
        first = len(whole)
        for row, text in lines(part):
            moved = text._replace(row=text.row + first) if isinstance(text, Rejected) else text
            whole.append((row + first, moved))
    return whole


def texts(folder: Path, content: bytes) -> list[str | Rejected]:
    path = folder / "file"
    path.write_bytes(content)
    rows = read(line_parts([path], "form"))
    assert [row for row, _ in rows] == list(range(len(rows)))
    return [text for _, text in rows]
