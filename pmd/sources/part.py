"""A piece of an annotation file that a worker can read alone, and how its bytes are reached.

    plain file     Part(path, start=0, stop=64 MiB), Part(path, start=64 MiB, ...), ...   any number of parts
    .gz            Part(path)                   one part: gzip cannot be entered in the middle
    .zip           Part(path, member="a.json")  one part a member

Which of the three a file is shows in its first bytes.
"""

import contextlib
import errno
import gzip
import zipfile
import zlib
from collections.abc import Iterator
from typing import NamedTuple

# A longer row is refused: published rows stay under 100 KB, and an unbounded one would take all memory.
ROW_BYTES = 1 << 20

_HEAD_BYTES = 64 << 10


class Part(NamedTuple):
    """A piece of one annotation file. Rows are counted over the whole file; in a zip, over the member."""

    path: str
    form: str  # what `recognise` found the file, or the member, to be
    member: str | None = None  # name inside a zip
    start: int = 0  # bytes
    stop: int | None = None  # bytes; None: to the end
    first_row: int = 0  # number of the row at `start`


class Unreadable(Exception):
    """An annotation file cannot be read on. Bad data, not bad world: a reader turns it into one Rejected."""


def blocks(part: Part, size: int = ROW_BYTES) -> Iterator[bytes]:
    """The bytes of a part, unpacked, at most `size` at a time. Raises Unreadable at damaged compression."""
    if part.member is not None:
        yield from _unpacked_zip(part.path, part.member, size)
    elif is_gzip(part.path):
        yield from _unpacked_gzip(part.path, size)
    else:
        with open(part.path, "rb", buffering=0) as file:
            file.seek(part.start)
            left = size if part.stop is None else part.stop - part.start
            while left > 0 and (block := file.read(min(size, left))):
                if part.stop is not None:
                    left -= len(block)
                yield block


def head(path: str, member: str | None = None) -> bytes:
    """The first 64 KiB of a file or zip member, unpacked; fewer where the file is short or damaged."""
    found = b""
    try:
        for block in blocks(Part(path, "", member), _HEAD_BYTES):
            found += block
            if len(found) >= _HEAD_BYTES:
                break
    except Unreadable:
        pass
    return found[:_HEAD_BYTES]


def tail(path: str) -> bytes:
    """The last 64 KiB of a plain file; of a packed one nothing, which would cost unpacking it all."""
    if is_gzip(path) or is_zip(path):
        return b""
    with open(path, "rb") as file:
        size = file.seek(0, 2)
        file.seek(max(0, size - _HEAD_BYTES))
        return file.read()


def is_gzip(path: str) -> bool:
    return _starts_with(path, b"\x1f\x8b")


def is_zip(path: str) -> bool:
    return _starts_with(path, b"PK\x03\x04")


def members(path: str) -> list[str]:
    """The names in a zip, in its order; none where its list of them is damaged."""
    try:
        with _damage_is_unreadable("the zip"), zipfile.ZipFile(path) as archive:
            return list(dict.fromkeys(archive.namelist()))
    except Unreadable:
        return []


def excerpt(value: object) -> str:
    """A value from a file, short and on one line, for a message."""
    text = repr(value[:80] if isinstance(value, str | bytes) else value)
    return text if len(text) <= 100 else text[:97] + "..."


def _unpacked_gzip(path: str, size: int) -> Iterator[bytes]:
    with _damage_is_unreadable("the gzip data"), gzip.GzipFile(path, "rb") as file:
        while block := file.read1(size):  # read() would lose what it unpacked before the damage
            yield block


def _unpacked_zip(path: str, member: str, size: int) -> Iterator[bytes]:
    with (
        _damage_is_unreadable(f"zip member {excerpt(member)}"),
        zipfile.ZipFile(path) as archive,
        archive.open(member) as file,
    ):
        while block := file.read(size):
            yield block


@contextlib.contextmanager
def _damage_is_unreadable(what: str) -> Iterator[None]:
    """Turns what gzip and zipfile raise for damaged, encrypted and strangely packed bytes into Unreadable."""
    try:
        yield
    except (gzip.BadGzipFile, zipfile.BadZipFile, zlib.error, EOFError) as error:
        raise Unreadable(f"{what} is damaged: {error}") from None
    except (KeyError, NotImplementedError, RuntimeError, ValueError) as error:
        raise Unreadable(f"{what} cannot be unpacked: {error}") from None
    except OSError as error:
        if error.errno != errno.EINVAL:  # of the disk
            raise
        raise Unreadable(f"{what} is damaged: it lies outside the file") from None


def _starts_with(path: str, magic: bytes) -> bool:
    with open(path, "rb") as file:
        return file.read(len(magic)) == magic
