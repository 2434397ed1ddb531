r"""Rows of text out of the middle of a .bz2.

    BZh9 | block | block | ... | end mark, checksum | 0 to 7 bits | BZh9 | block | ...     streams of blocks
           |
           0x314159265359, checksum of 32 bits, data: up to 900,000 bytes, packed by itself

Only streams begin at a byte. A block begins at any bit, which is why offsets are in bits here; it shows in
its first 48. They can stand inside a block by chance, so a block is only what unpacks with the right
checksum: alone, as the one block of a stream made for it. Checksums of whole streams are not looked at, as
who enters one in the middle could not.

    the first line \n the one acr|oss the edge \n the third
    ----- blocks of part 0 ------|---- blocks of part 1 ----
    -------------- part 0 -----------------------|- part 1 -    a line is where the line end before it is

If a block is damaged, the parts that need it end there, and the next part begins as if nothing had been.
"""

import bz2
import heapq
import io
import itertools
from collections.abc import Iterator
from typing import BinaryIO, NamedTuple

_BLOCK = 0x314159265359
_END = 0x177245385090
_MARK_BITS = 48
_HEADER_BITS = 32  # BZh9
_STREAM_END_BITS = _BLOCK_HEADER_BITS = _MARK_BITS + 32  # with a checksum

# A packed block is smaller: 900,000 symbols of at most 20 bits, and its tables.
_MAX_BLOCK_BITS = (5 << 19) * 8
_PIECE_BYTES = 1 << 20  # unpacked at a time: a block of runs becomes up to 46 MB
_SCAN_BYTES = 64 << 10
_TRIES = 4  # marks taken in vain for where a block begins or ends; even one is as good as impossible


def cuts(path: str, every_bytes: int) -> list[int]:
    """Bit offsets at which blocks begin, about `every_bytes` of the packed file apart, in order; first 0.

    Reads near those places alone, and unpacks one block at each.
    """
    found = [0]
    with open(path, "rb") as file:
        size = file.seek(0, io.SEEK_END)
        for place in range(every_bytes, size, every_bytes):
            marks = _marks(file, place * 8, (place + every_bytes) * 8)
            starts = (mark.bit for mark in marks if mark.what == _BLOCK and mark.bit > found[-1])
            for start in itertools.islice(starts, _TRIES):
                if _block(file, start):
                    found.append(start)
                    break
    return found


def whole_lines(path: str, start: int = 0, stop: int | None = None) -> Iterator[bytes]:
    """The lines that follow a line end in the blocks from bit `start` to bit `stop`, unpacked, in pieces.

    start 0: also the line that the file begins with. Raises EOFError or OSError at damage.
    """
    with open(path, "rb") as file:
        ours = start == 0  # else the beginning, up to a line end, is the part before's
        for offset, piece in _pieces(file, start):
            if stop is not None and offset >= stop:
                if not ours:
                    return
                line, newline, _ = piece.partition(b"\n")
                yield line + newline
                if newline:
                    return
            elif ours:
                yield piece
            elif newline := piece.find(b"\n") + 1:
                ours = True
                yield piece[newline:]


# --- blocks, one after the other ---


def _pieces(file: BinaryIO, bit: int) -> Iterator[tuple[int, bytes]]:
    """(offset of its block, unpacked bytes) from a block on; bit 0: from the first one."""
    mark = _Mark(bit, _BLOCK) if bit else _stream(file, 0)
    while mark:
        if mark.what == _BLOCK:
            block = _block(file, mark.bit)
            if not block:
                raise _damage(file, mark.bit)
            for piece in block.pieces:
                yield mark.bit, piece
            mark = block.next
        else:
            mark = _stream(file, (mark.bit + _STREAM_END_BITS + 7) // 8)


class _Mark(NamedTuple):
    bit: int
    what: int  # _BLOCK or _END


def _stream(file: BinaryIO, byte: int) -> _Mark | None:
    """The first mark of the stream at a byte; None where the file ends there, with zeros at most."""
    header = _read(file, byte, _HEADER_BITS // 8)
    if header[:3] == b"BZh" and header[3:] in (b"1", b"2", b"3", b"4", b"5", b"6", b"7", b"8", b"9"):
        bit = byte * 8 + _HEADER_BITS
        what = int.from_bytes(_read(file, byte + _HEADER_BITS // 8, _MARK_BITS // 8), "big")
        if what in (_BLOCK, _END):
            return _Mark(bit, what)
        raise OSError(f"the stream at byte {byte} begins with no block")
    while found := _read(file, byte, _SCAN_BYTES):
        if found.strip(b"\0"):
            raise OSError(f"expected a stream at byte {byte}, found something else")
        byte += len(found)
    return None


class _Block(NamedTuple):
    pieces: Iterator[bytes]  # what it holds, checked
    next: _Mark


def _block(file: BinaryIO, start: int) -> _Block | None:
    """The block at a bit; None where none unpacks."""
    for end in itertools.islice(_marks(file, start + _BLOCK_HEADER_BITS, start + _MAX_BLOCK_BITS), _TRIES):
        stream = _one_block_stream(file, start, end.bit)
        if stream and (pieces := _unpacked(stream)):
            return _Block(pieces, end)
    return None


def _damage(file: BinaryIO, start: int) -> Exception:
    """What is said of a block that does not unpack."""
    if any(_marks(file, start + _BLOCK_HEADER_BITS, start + _MAX_BLOCK_BITS)):
        return OSError(f"the block at bit {start} does not unpack")
    return EOFError(f"the block at bit {start} has no end")


def _one_block_stream(file: BinaryIO, start: int, end: int) -> bytes | None:
    """The block from one bit to another as a stream of its own, in which it begins at a byte."""
    first = start // 8
    packed = _read(file, first, (end + 7) // 8 - first)
    bits = end - start
    block = int.from_bytes(packed, "big") >> (-end % 8) & ((1 << bits) - 1)
    if block >> (bits - _MARK_BITS) != _BLOCK:
        return None
    checksum = block >> (bits - _BLOCK_HEADER_BITS) & 0xFFFFFFFF  # the stream's too: it has no other block
    stream = (block << _STREAM_END_BITS | _END << 32 | checksum) << (-bits % 8)
    return b"BZh9" + stream.to_bytes((bits + _STREAM_END_BITS + 7) // 8, "big")


def _unpacked(stream: bytes) -> Iterator[bytes] | None:
    """What a stream holds, in pieces; None where it is damaged, which is known before the first piece."""
    try:
        first = next(pieces := _decompressed(stream))
        rest = next(pieces, None)
        if rest is None:
            return iter([first])
        # Once to check it and then once to have it: pieces that wait for the check are up to 46 MB.
        for _ in pieces:
            pass
    except (OSError, EOFError):
        return None
    return _decompressed(stream)


def _decompressed(stream: bytes) -> Iterator[bytes]:
    unpacker = bz2.BZ2Decompressor()
    piece = unpacker.decompress(stream, _PIECE_BYTES)
    yield piece
    while not unpacker.eof:
        piece = unpacker.decompress(b"", _PIECE_BYTES)
        if piece:
            yield piece
        elif unpacker.needs_input:
            raise EOFError


# --- marks, wherever they are ---


class _Pattern(NamedTuple):
    """A mark where it begins at one of the eight bits of a byte."""

    whole: bytes  # those bytes that it covers whole
    before: int  # bits of it before them
    what: int


def _patterns() -> list[_Pattern]:
    patterns: list[_Pattern] = []
    for mark in (_BLOCK, _END):
        for before in range(8):
            size = (_MARK_BITS - before) // 8
            after = _MARK_BITS - before - size * 8
            whole = mark >> after & ((1 << size * 8) - 1)
            patterns.append(_Pattern(whole.to_bytes(size, "big"), before, mark))
    return patterns


_PATTERNS = _patterns()
_MARK_BYTES = 7  # that a mark touches, at most


def _marks(file: BinaryIO, bit: int, stop: int) -> Iterator[_Mark]:
    """Everything that looks like a mark and begins from one bit on and before another, in order."""
    for byte in range(bit // 8, (stop + 7) // 8, _SCAN_BYTES):
        # With the beginning of what is searched next: a mark that begins here may end there.
        block = _read(file, byte, _SCAN_BYTES + _MARK_BYTES - 1)
        for place, what in heapq.merge(*(_places(block, pattern) for pattern in _PATTERNS)):
            mark = _Mark(byte * 8 + place, what)
            if place < _SCAN_BYTES * 8 and bit <= mark.bit < stop:
                yield mark
        if len(block) < _SCAN_BYTES:
            return


def _places(block: bytes, pattern: _Pattern) -> Iterator[tuple[int, int]]:
    """(bit, mark) for each place of some bytes where a mark begins, in order."""
    place = block.find(pattern.whole)
    while place >= 0:
        bit = place * 8 - pattern.before
        around = int.from_bytes(block[bit // 8 : bit // 8 + _MARK_BYTES].ljust(_MARK_BYTES, b"\0"), "big")
        after = _MARK_BYTES * 8 - _MARK_BITS - bit % 8
        if bit >= 0 and around >> after & ((1 << _MARK_BITS) - 1) == pattern.what:
            yield bit, pattern.what
        place = block.find(pattern.whole, place + 1)


def _read(file: BinaryIO, byte: int, size: int) -> bytes:
    """So many bytes from one on; fewer at the end of the file."""
    file.seek(byte)
    return file.read(size)
