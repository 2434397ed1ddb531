"""A piece of an annotation file that a worker can read alone, and how its bytes are reached.

    plain file         Part(path, start=0, stop=64 MiB), Part(path, start=64 MiB, ...), ...   any number
    .bz2               the same, in bits: it can be entered where a block begins (see bzip2.py)
    .parquet           the same, in row groups
    .gz .zst           Part(path)                   one part: they cannot be entered in the middle
    .zip .tar .tar.gz  Part(path, member="a.json")  one part a member

Which of these a file is shows in its first bytes. What a row refers to in another file, such as the addresses
of its images, is read from the parts `beside`.
"""

import bz2
import contextlib
import errno
import gzip
import re
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from typing import Any, NamedTuple

from pmd.sources import bzip2

# A longer row is refused: published rows stay under 100 KB, and an unbounded one would take all memory.
ROW_BYTES = 1 << 20

_HEAD_BYTES = 64 << 10
# Members of a tar that are looked at: all before one are unpacked to see it. Annotation tars have three.
_TAR_MEMBERS = 64


class Part(NamedTuple):
    """A piece of one annotation file."""

    path: str
    form: str  # what `recognise` found the file, or the member, to be
    member: str | None = None  # name inside a zip or tar
    start: int = 0  # bytes; of a .bz2 bits, of Parquet row groups, of SQLite ids
    stop: int | None = None  # None: to the end
    beside: "tuple[Part, ...]" = ()  # what its rows refer to, in an order that the reader knows


class Incomplete(Exception):
    """An annotation file means nothing without another one that is missing."""


class Unreadable(Exception):
    """An annotation file cannot be read on. Bad data, not bad world: a reader turns it into one Rejected."""


def blocks(part: Part, size: int = ROW_BYTES) -> Iterator[bytes]:
    """The bytes of a part, unpacked, at most `size` at a time. Raises Unreadable at damaged packing."""
    if part.member is not None:
        read = _zip_member if is_zip(part.path) else _tar_member
        yield from read(part.path, part.member, size)
    elif is_bzip2(part.path):
        with _damage_is_unreadable("the bzip2 data"):
            yield from bzip2.whole_lines(part.path, part.start, part.stop)
    elif is_packed(part.path):
        yield from _unpacked(part.path, size)
    else:
        with open(part.path, "rb", buffering=0) as file:
            file.seek(part.start)
            left = size if part.stop is None else part.stop - part.start
            while left > 0 and (block := file.read(min(size, left))):
                if part.stop is not None:
                    left -= len(block)
                yield block


def head(path: str, member: str | None = None) -> bytes:
    """The first 64 KiB of a file or member, unpacked; fewer where the file is short or damaged."""
    found = b""
    try:
        for block in blocks(Part(path, "", member), _HEAD_BYTES):
            found += block
            if len(found) >= _HEAD_BYTES:
                break
    except Unreadable:
        pass
    return found[:_HEAD_BYTES]


def heads(path: str, names: re.Pattern[str]) -> dict[str | None, bytes]:
    """The first 64 KiB of the file, under None; of a zip or tar, those of each member whose name fits.

    Of a tar only the first 64 members are looked at.
    """
    if is_zip(path):
        return {name: head(path, name) for name in zip_members(path) if names.search(name)}
    beginning = head(path)
    if not _is_tar(beginning):
        return {None: beginning}
    found: dict[str | None, bytes] = {}
    with contextlib.suppress(Unreadable), _damage_is_unreadable("the tar"), _unpacked_file(path) as file:
        for place, (name, member) in enumerate(_tar_files(file)):
            if names.search(name) and name not in found:
                found[name] = member.read(_HEAD_BYTES)
            if place + 1 == _TAR_MEMBERS:
                break
    return found


def tail(path: str) -> bytes:
    """The last 64 KiB of a plain file; of a packed one nothing, which would cost unpacking it all."""
    if is_packed(path) or is_zip(path):
        return b""
    with open(path, "rb") as file:
        size = file.seek(0, 2)
        file.seek(max(0, size - _HEAD_BYTES))
        return file.read()


def is_bzip2(path: str) -> bool:
    return _starts_with(path, b"BZh")


def is_packed(path: str) -> bool:
    """Is this a .gz, .bz2 or .zst?"""
    return _starts_with(path, b"\x1f\x8b", b"BZh", b"\x28\xb5\x2f\xfd")


def is_zip(path: str) -> bool:
    return _starts_with(path, b"PK\x03\x04")


def zip_members(path: str) -> list[str]:
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


def _unpacked(path: str, size: int) -> Iterator[bytes]:
    with _damage_is_unreadable("the packed data"), _unpacked_file(path) as file:
        while block := file.read1(size):  # read() would lose what it unpacked before the damage
            yield block


def _unpacked_file(path: str) -> Any:
    """A file object over what a .gz, .bz2, .zst or plain file holds."""
    if _starts_with(path, b"\x1f\x8b"):
        return gzip.GzipFile(path, "rb")
    if is_bzip2(path):
        return bz2.BZ2File(path, "rb")
    if is_packed(path):
        import pyarrow as pa  # the smallest zstd that is here anyway

        return pa.CompressedInputStream(pa.OSFile(path, "rb"), "zstd")
    return open(path, "rb")


def _zip_member(path: str, member: str, size: int) -> Iterator[bytes]:
    with (
        _damage_is_unreadable(f"zip member {excerpt(member)}"),
        zipfile.ZipFile(path) as archive,
        archive.open(member) as file,
    ):
        while block := file.read(size):
            yield block


def _tar_member(path: str, member: str, size: int) -> Iterator[bytes]:
    with _damage_is_unreadable(f"tar member {excerpt(member)}"), _unpacked_file(path) as packed:
        for name, file in _tar_files(packed):
            if name == member:
                while block := file.read(size):
                    yield block
                return
        raise KeyError(f"there is no {excerpt(member)}")


def _tar_files(packed: Any) -> Iterator[tuple[str, Any]]:
    """(name, file object) of each regular file in a tar; one is read before the next is asked for."""
    with tarfile.open(fileobj=packed, mode="r|") as archive:
        for entry in archive:
            if entry.isreg():
                yield entry.name, archive.extractfile(entry)


def _is_tar(beginning: bytes) -> bool:
    return beginning[257:262] == b"ustar"


@contextlib.contextmanager
def _damage_is_unreadable(what: str) -> Iterator[None]:
    """Turns what the unpackers raise for damaged, encrypted and strangely packed bytes into Unreadable."""
    try:
        yield
    except (zipfile.BadZipFile, tarfile.TarError, zlib.error, EOFError) as error:
        raise Unreadable(f"{what} is damaged: {_one_line(error)}") from None
    except (KeyError, NotImplementedError, RuntimeError, ValueError) as error:
        raise Unreadable(f"{what} cannot be unpacked: {_one_line(error)}") from None
    except OSError as error:
        # Those of the disk have other numbers.
        if error.errno is None:
            raise Unreadable(f"{what} is damaged: {_one_line(error)}") from None
        if error.errno == errno.EINVAL:
            raise Unreadable(f"{what} is damaged: it lies outside the file") from None
        raise


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]


def _starts_with(path: str, *magic: bytes) -> bool:
    with open(path, "rb") as file:
        return file.read(4).startswith(magic)
