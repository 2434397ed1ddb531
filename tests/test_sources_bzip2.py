import bz2
import itertools
import random
import shutil
import subprocess
import tempfile
import tracemalloc
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pmd.records import Rejected
from pmd.sources import bzip2
from pmd.sources.lines import line_parts, lines
from pmd.sources.part import Part

BLOCK = "001100010100000101011001001001100101001101011001"
END = "000101110111001001000101001110000101000010010000"


# --- cutting ---

TEXT = st.lists(
    st.sampled_from([b"\n", b"\n\n", b"a", b"two words\n", b"x" * 300, b"\r\n", b"\0", b"\xff\n"]), max_size=8
).map(b"".join)
STREAMS = st.lists(st.lists(TEXT.filter(len), max_size=6), min_size=1, max_size=5)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(streams=STREAMS, every_bytes=st.integers(1, 400))
@example(streams=[[]], every_bytes=1)
@example(streams=[[], [b"a"], [], [b"b\n", b"c"]], every_bytes=1)
@example(streams=[[b"a\n", b"b"], [b"\n"], [b"c", b"d", b"e"]], every_bytes=1)
def test_every_line_is_in_one_part_however_a_file_is_packed_and_cut(
    streams: list[list[bytes]], every_bytes: int
) -> None:
    content = b"".join(map(b"".join, streams))
    packed = b"".join(map(stream, streams))
    assert bz2.decompress(packed) == content
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "file")
        path.write_bytes(packed)
        cuts = bzip2.cuts(str(path), every_bytes)
        assert cuts[0] == 0 and cuts == sorted(set(cuts))
        parts = [b"".join(pieces) for pieces in read(path, cuts)]
        assert b"".join(bzip2.whole_lines(str(path))) == content
    assert parts == owned(content, [unpacked_before(packed, cut) for cut in cuts])


def test_every_block_can_be_a_cut(tmp_path: Path) -> None:
    texts = [b"%d\n" % number * 50 for number in range(20)]
    path = write(tmp_path, stream(texts))
    cuts = bzip2.cuts(path, 5)
    assert len(cuts) == 20
    assert {cut % 8 for cut in cuts[1:]} == set(range(8))
    assert [unpacked_before(Path(path).read_bytes(), cut) for cut in cuts] == [
        sum(map(len, texts[:number])) for number in range(20)
    ]


@pytest.mark.parametrize("level", [1, 9])
@pytest.mark.parametrize("streams", [1, 3])
def test_files_as_python_packs_them(tmp_path: Path, level: int, streams: int) -> None:
    content = noise_lines(3_000_000)
    size = len(content) // streams + 1
    packed = b"".join(
        bz2.compress(content[start : start + size], level) for start in range(0, len(content), size)
    )
    path = write(tmp_path, packed)
    cuts = bzip2.cuts(path, 200_000)
    assert len(cuts) == (6 if level == 1 else 4)
    parts = [b"".join(pieces) for pieces in read(Path(path), cuts)]
    assert b"".join(parts) == content
    assert all(part.endswith(b"\n") for part in parts)


@pytest.mark.parametrize("level", ["-1", "-9"])
def test_files_as_bzip2_packs_them(tmp_path: Path, level: str) -> None:
    program = shutil.which("bzip2")
    if not program:
        pytest.skip("bzip2 is not installed")
    content = noise_lines(1_500_000)
    packed = subprocess.run([program, level], input=content, capture_output=True, check=True).stdout
    path = write(tmp_path, packed + packed)
    cuts = bzip2.cuts(path, 100_000)
    assert len(cuts) > 3
    assert b"".join(map(b"".join, read(Path(path), cuts))) == content * 2


def test_a_line_longer_than_parts_is_in_the_one_with_the_line_end_before_it(tmp_path: Path) -> None:
    path = write(tmp_path, stream([b"a\nlong ", b"and ", b"longer", b" and\nb", b"c\n"]))
    cuts = bzip2.cuts(path, 5)
    assert [b"".join(pieces) for pieces in read(Path(path), cuts)] == [
        b"a\nlong and longer and\n",
        b"",
        b"",
        b"bc\n",
        b"",
    ]


def test_a_line_that_begins_where_a_part_does_is_in_the_part_before(tmp_path: Path) -> None:
    path = write(tmp_path, stream([b"a\n", b"b\nc\n", b"d\n"]))
    cuts = bzip2.cuts(path, 5)
    assert [b"".join(pieces) for pieces in read(Path(path), cuts)] == [b"a\nb\n", b"c\nd\n", b""]


def test_parts_begin_near_where_they_are_asked_to(tmp_path: Path) -> None:
    path = write(tmp_path, bz2.compress(noise_lines(6_000_000), 1))
    every = 300_000
    cuts = bzip2.cuts(path, every)
    assert len(cuts) > 5
    for number, cut in enumerate(cuts):
        assert 0 <= cut / 8 - number * every < 60_000  # a packed block here is 40 kB


def test_rows_of_a_cut_file_are_those_of_the_whole(tmp_path: Path) -> None:
    texts = [b"first\nsec", b"ond \xff\n", b"\n", b"\n\nlast"]
    path = write(tmp_path, stream(texts))
    cuts = bzip2.cuts(path, 5)
    rows = [
        text
        for start, stop in zip(cuts, [*cuts[1:], None], strict=True)
        for _, text in lines(Part(path, "form", None, start, stop))
    ]
    assert rows[0] == "first" and rows[2:] == ["", "", "", "last"]
    assert isinstance(rows[1], Rejected)
    assert len(line_parts([Path(path)], "form")) == 1


# --- marks that are none ---


class Crafted(NamedTuple):
    bits: str
    text: bytes


def crafted(inside: bytes) -> Crafted:
    """A block whose packed data are these bytes, as they are, at a byte of the block; none may be 0xff.

    Its 254 kinds of byte and two signs for runs all have codes of eight bits, in order: a byte of the data is
    a place in the list that moves to the front, and 0xff is the end.
    """
    places = bytes(value for value in inside if value > 1)
    kinds = list(range(1, 255))
    column = bytearray()
    for place in places:
        column.append(kinds.pop(place - 1))
        kinds.insert(0, column[-1])
    # The transform undone as the unpacker does it, from wherever it leads.
    order = sorted(range(len(column)), key=lambda place: column[place])
    text = bytearray()
    place = order[0]
    for _ in column:
        text.append(column[place])
        place = order[place]
    assert all(len(list(run)) < 4 for _, run in itertools.groupby(text))
    used = f"{0xFFFF:016b}" + f"{0x7FFF:016b}" + f"{0xFFFF:016b}" * 14 + f"{0xFFFE:016b}"
    lengths = ("01000" + "0" * 256) * 2  # each begins with 8 and has no change
    selectors = -(-(len(places) + 1) // 50)
    head = BLOCK + f"{checksum(bytes(text)):032b}" + "0" + f"{0:024b}" + used
    tables = f"{2:03b}" + f"{selectors:015b}" + "0" * selectors + lengths
    return Crafted(head + tables + "".join(f"{byte:08b}" for byte in [*places, 0xFF]), bytes(text))


MAGIC = bytes.fromhex("314159265359")


@pytest.mark.parametrize("mark", [BLOCK, END])
def test_a_mark_inside_a_block_is_neither_its_end_nor_a_cut(tmp_path: Path, mark: str) -> None:
    magic = int(mark, 2).to_bytes(6, "big")
    inside = b"abc" + magic + b"defghi" + magic + b"jk"
    block = crafted(inside)
    bits = [*map(block_bits, [b"before\n", b"more\n"]), block.bits, *map(block_bits, [b"\nafter", b" it\n"])]
    packed = to_bytes("".join(["01000010010110100110100000111001", *bits, END, combined(bits)]))
    content = b"before\nmore\n" + block.text + b"\nafter it\n"
    assert bz2.decompress(packed) == content
    assert "".join(f"{byte:08b}" for byte in packed).count(mark) == (2 + 5 if mark == BLOCK else 2 + 1)
    path = write(tmp_path, packed)
    cuts = bzip2.cuts(path, 5)
    assert len(cuts) == 5
    assert b"".join(map(b"".join, read(Path(path), cuts))) == content
    assert b"".join(bzip2.whole_lines(path)) == content


def test_marks_in_plenty_end_the_reading_soon(tmp_path: Path) -> None:
    path = write(tmp_path, b"BZh9" + MAGIC * 50_000)
    assert bzip2.cuts(path, 1000) == [0]
    with pytest.raises(OSError, match="does not unpack"):
        b"".join(bzip2.whole_lines(path))


# --- damage ---


@pytest.mark.parametrize("damaged", range(6))
def test_damage_ends_the_parts_that_need_the_block_and_no_other(tmp_path: Path, damaged: int) -> None:
    texts = [b"%d a\n%d b\n%d " % (number, number, number) for number in range(6)]
    packed = stream(texts)
    path = write(tmp_path, packed)
    cuts = bzip2.cuts(path, 5)
    whole = [b"".join(pieces) for pieces in read(Path(path), cuts)]
    middle = (cuts[damaged] // 8 or 4) + 25
    Path(path).write_bytes(packed[:middle] + bytes([packed[middle] ^ 1]) + packed[middle + 1 :])
    for number, (start, stop) in enumerate(zip(cuts, [*cuts[1:], None], strict=True)):
        found = b""
        try:
            for piece in bzip2.whole_lines(path, start, stop):
                found += piece
            assert found == whole[number]
            assert damaged not in (number, number + 1)
        except OSError as error:
            assert damaged in (number, number + 1)
            assert found == (b"" if damaged == number else whole[number][: len(found)])
            assert found.count(b"\n") == (0 if damaged == number else 1 + (number == 0))
            assert "does not unpack" in str(error)
    assert len(bzip2.cuts(path, 5)) == (6 if damaged == 0 else 5)


def test_of_a_file_cut_short_all_whole_blocks_are_read(tmp_path: Path) -> None:
    texts = [b"%d a\n%d b\n" % (number, number) for number in range(4)]
    packed = stream(texts[:2]) + stream(texts[2:])
    content = b"".join(texts)
    path = write(tmp_path, packed)
    seen: set[bytes] = set()
    for size in range(len(packed)):
        Path(path).write_bytes(packed[:size])
        bzip2.cuts(path, 10)
        found = b""
        try:
            for piece in bzip2.whole_lines(path):
                found += piece
        except (OSError, EOFError) as error:
            assert error.args and not getattr(error, "errno", None)
        assert content.startswith(found)
        seen.add(found)
    assert seen >= {b"".join(texts[:number]) for number in range(4)}


@settings(max_examples=200, deadline=None, derandomize=True)
@given(
    streams=STREAMS,
    flips=st.lists(st.tuples(st.integers(0), st.integers(1, 255)), max_size=4),
    cut=st.integers(0, 30),
    added=st.sampled_from([b"", b"\0" * 20, b"garbage", b"BZh9", b"BZh5" + MAGIC, b"BZh0"]),
)
def test_whatever_the_damage_parts_end_in_rows(
    streams: list[list[bytes]], flips: list[tuple[int, int]], cut: int, added: bytes
) -> None:
    packed = bytearray(b"".join(map(stream, streams)))
    for place, mask in flips:
        packed[place % len(packed)] ^= mask
    packed[:4] = b"BZh9"
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "file")
        path.write_bytes(packed[: max(4, len(packed) - cut)] + added)
        cuts = bzip2.cuts(str(path), 20)
        for start, stop in zip(cuts, [*cuts[1:], None], strict=True):
            rows = [*lines(Part(str(path), "form", None, start, stop))]
            assert [row for row, _ in rows] == list(range(len(rows)))


def test_zeros_after_the_last_stream_are_padding_and_anything_else_is_not(tmp_path: Path) -> None:
    packed = bz2.compress(b"a\nb\n")
    assert b"".join(bzip2.whole_lines(write(tmp_path, packed + b"\0" * 100_000))) == b"a\nb\n"
    pieces = bzip2.whole_lines(write(tmp_path, packed + b"\0" * 100_000 + b"x"))
    assert next(pieces) == b"a\nb\n"
    with pytest.raises(OSError, match="expected a stream"):
        next(pieces)


def test_a_part_that_begins_at_no_block_is_damage(tmp_path: Path) -> None:
    path = write(tmp_path, bz2.compress(b"a\nb\n"))
    for start in (1, 31, 33, 10_000):
        with pytest.raises((OSError, EOFError)):
            b"".join(bzip2.whole_lines(path, start))


# --- memory ---


def test_a_file_of_any_size_is_read_in_a_few_megabytes(tmp_path: Path) -> None:
    # Blocks of runs, of 46 MB each, and ordinary ones.
    packed = bz2.compress(b"x" * 60_000_000 + b"\n") + bz2.compress(noise_lines(6_000_000))
    path = write(tmp_path, packed)
    tracemalloc.start()
    cuts = bzip2.cuts(path, 1 << 20)
    size = sum(len(piece) for pieces in read(Path(path), cuts) for piece in pieces)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert size == 60_000_001 + 6_000_000
    assert len(cuts) > 1
    assert peak < 6 << 20


# --- how the files are made ---


def stream(texts: Sequence[bytes]) -> bytes:
    """A stream in which each text is a block."""
    bits = [*map(block_bits, texts)]
    return to_bytes("".join(["01000010010110100110100000111001", *bits, END, combined(bits)]))


def block_bits(text: bytes) -> str:
    """The block that a text becomes, as bits."""
    whole = "".join(f"{byte:08b}" for byte in bz2.compress(text))
    return whole[32 : whole.rindex(END)]


def combined(blocks: Sequence[str]) -> str:
    """The checksum of a stream with these blocks."""
    total = 0
    for block in blocks:
        total = ((total << 1 | total >> 31) & 0xFFFFFFFF) ^ int(block[48:80], 2)
    return f"{total:032b}"


def checksum(text: bytes) -> int:
    """A block's: as of zip files, but each byte from its highest bit on."""
    found = 0xFFFFFFFF
    for byte in text:
        found ^= byte << 24
        for _ in range(8):
            found = (found << 1 ^ (0x04C11DB7 if found >> 31 else 0)) & 0xFFFFFFFF
    return found ^ 0xFFFFFFFF


def to_bytes(bits: str) -> bytes:
    bits += "0" * (-len(bits) % 8)
    return int(bits, 2).to_bytes(len(bits) // 8, "big")


def noise_lines(size: int) -> bytes:
    """Lines that pack to about 40 %."""
    chance = random.Random(size)
    content = b"".join(b"%x and so on, %d\n" % (chance.getrandbits(80), n) for n in range(size // 30))
    return content[: size - 1].ljust(size - 1, b"x") + b"\n"


def unpacked_before(packed: bytes, bit: int) -> int:
    """How many unpacked bytes lie before the block at a bit."""
    unpacked = 0
    while bit:
        unpacker = bz2.BZ2Decompressor()
        size = len(unpacker.decompress(packed))
        here = (len(packed) - len(unpacker.unused_data)) * 8
        if bit < here:
            bits = "".join(f"{byte:08b}" for byte in packed[: here // 8])[:bit]
            starts = [place for place in range(len(bits)) if bits.startswith(BLOCK, place)]
            blocks = [bits[start:stop] for start, stop in itertools.pairwise([*starts, bit])]
            return unpacked + len(
                bz2.decompress(to_bytes("".join([bits[:32], *blocks, END, combined(blocks)])))
            )
        unpacked, packed, bit = unpacked + size, packed[here // 8 :], bit - here
    return unpacked


def owned(content: bytes, edges: Sequence[int]) -> list[bytes]:
    """The lines of each part, for parts that begin at these bytes."""
    begins = [content.find(b"\n", edge) + 1 or len(content) for edge in edges[1:]]
    return [content[start:stop] for start, stop in itertools.pairwise([0, *begins, len(content)])]


def read(path: Path, cuts: Sequence[int]) -> list[Iterator[bytes]]:
    stops = [*cuts[1:], None]
    return [bzip2.whole_lines(str(path), start, stop) for start, stop in zip(cuts, stops, strict=True)]


def write(folder: Path, packed: bytes) -> str:
    path = folder / "file"
    path.write_bytes(packed)
    return str(path)
