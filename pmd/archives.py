"""Images that are published in archives, read at random. Nothing is extracted under a member's name.

    train2017.zip ----list, once a process----> hash of a path -> place of its entry     (16 bytes each)
                                                  |
    "train2017/000000000009.jpg" ----bisect-------+--> the entry, read again and compared --> bytes or Reason

    flickr30k-images.tar.gz ----unpack, once----> a plain .tar, which can be entered anywhere

Which of these a file is shows in its first bytes. An archive that cannot be listed stops whoever opens it,
for nobody knows what it held. What is wrong with one member is the Reason of that row.

    paths     A path means the member of that name, or one whose name ends with "/" and it. Case counts, a
              "./" in front does not. They are compared as bytes: a zip's old code pages are not looked at.
    several   The first archive that has a path gives it. In one archive, a member of just that name comes
              before one whose name ends so, and of equals the last wins, which is what unpacking leaves.
    files     Folders, symbolic links, devices and sparse files are no members. A hard link in a tar is the
              file that it names, if that lies before it: so tar writes a file that has two names.
    checks    No header is believed: at most `max_bytes` come out, and hardly more is read for them. A zip's
              list and the header before the data must agree on the name, and size and CRC with the data, so
              entries that share data gain nothing by it. A tar has checksums of its headers alone.
"""

import bz2
import contextlib
import fcntl
import gzip
import hashlib
import lzma
import os
import re
import stat
import struct
import threading
import weakref
import zlib
from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, Self

import numpy as np
import xxhash

from pmd.errors import BadRequest, Busy, Damaged
from pmd.records import Reason
from pmd.storage import Store


class Archives:
    """Some archives, tried in their order. Any number of threads may read at a time."""

    def __init__(self, paths: Sequence[Path]):
        """Open and list them; a listing is kept in this process until its file changes.

        Raises BadRequest for what is no zip or tar, Damaged where the list of members is not whole.
        """
        self._archives = [_Archive(path) for path in paths]

    def read(self, path: str, max_bytes: int) -> bytes | Reason | None:
        """The image under a path in the publisher's archive, or why there is none to be had; None: in none.

        Raises Damaged where an archive was written to since it was opened.
        """
        wanted = _plain(path.encode("utf-8", "surrogatepass"))
        for archive in self._archives:
            found = archive.read(wanted, max_bytes)
            if found is not None:
                return found
        return None


class _Archive:
    def __init__(self, path: Path):
        self._file = OpenFile(path)
        self._listing = _listing(self._file)

    def read(self, path: bytes, max_bytes: int) -> bytes | Reason | None:
        try:
            entry = self._find(path)
            return None if entry is None else self._read(entry, max_bytes)
        finally:
            self._file.check()  # last: what was read before it is what was listed

    def _find(self, path: bytes) -> "_Entry | None":
        for place in self._listing.places(b"/" + path):
            entry = self._entry(place)
            if entry is not None and entry.name == path:
                return entry
        for place in self._listing.places(path):
            entry = self._entry(place)
            if entry is not None and entry.name.endswith(b"/" + path):
                return entry
        return None

    def _entry(self, place: int) -> "_Entry | None":
        return tar_entry(self._file, place) if self._listing.is_tar else _zip_entry(self._file.at, place)

    def _read(self, entry: "_Entry", max_bytes: int) -> bytes | Reason | None:
        if isinstance(entry, _ZipEntry):
            return _read_zip(self._file, entry, stop=self._listing.stop, max_bytes=max_bytes)
        if entry.link is None:
            return _read_tar(self._file, entry, max_bytes=max_bytes)
        for place in self._listing.places(b"/" + entry.link):
            target = tar_entry(self._file, place) if place < entry.place else None
            # One step only: tar names the first of its names in every link.
            if target is not None and target.name == entry.link and target.link is None:
                return _read_tar(self._file, target, max_bytes=max_bytes)
        return None


# Files


class OpenFile:
    """A file that is open as long as this object lives. Threads share it: reading moves no position."""

    def __init__(self, path: Path):
        self.path = path
        try:
            self._handle = os.open(path, os.O_RDONLY)
        except FileNotFoundError:
            raise BadRequest(f"{path}: no such file") from None
        weakref.finalize(self, os.close, self._handle)
        status = os.fstat(self._handle)
        if not stat.S_ISREG(status.st_mode):
            raise BadRequest(f"{path}: not a file, so no archive of images")
        self.size = status.st_size
        self.identity = _identity(status)

    def at(self, offset: int, size: int) -> bytes:
        """So many bytes from there; fewer where the file ends."""
        found = b""
        try:
            while (left := min(size, self.size - offset) - len(found)) > 0:
                block = os.pread(self._handle, left, offset + len(found))
                if not block:
                    break  # cut short since it was opened
                found = found + block if found else block
        except OSError as error:
            error.filename = str(self.path)
            raise
        return found

    def check(self) -> None:
        """Raises Damaged where the file was written to since it was opened."""
        if _identity(os.fstat(self._handle)) != self.identity:
            raise Damaged(f"{self.path} was written to while it was read; run the same line again")


_Identity = tuple[int, int, int, int]


def _identity(status: os.stat_result) -> _Identity:
    """What is another after a file was replaced or written to."""
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


# Listings


class _Listing(NamedTuple):
    """Where to look for a path in one archive."""

    is_tar: bool
    stop: int  # where the members' data ends
    keys: "array[int]"  # sorted: a hash of each end of each name, and of "/" and the whole name
    entries: "array[int]"  # the place of each one's entry; where hashes are equal, in the archive's order

    @classmethod
    def of(cls, names: Iterable[tuple[int, bytes]], *, is_tar: bool, stop: int) -> Self:
        keys, entries = array("Q"), array("Q")
        for place, name in names:
            if len(name) > _NAME_BYTES:
                continue
            keys.append(_hash(b"/" + name))
            entries.append(place)
            start = name.find(b"/") + 1
            while start:
                keys.append(_hash(name[start:]))
                entries.append(place)
                start = name.find(b"/", start) + 1
        order = np.argsort(np.asarray(keys), kind="stable")
        return cls(is_tar, stop, *(array("Q", np.asarray(one)[order].tobytes()) for one in (keys, entries)))

    def places(self, key: bytes) -> Iterator[int]:
        """Of the entries that may be the one, the last first. Hashes collide: look at the entry's name."""
        number = _hash(key)
        for at in range(bisect_right(self.keys, number) - 1, bisect_left(self.keys, number) - 1, -1):
            yield self.entries[at]


_hash = xxhash.xxh3_64_intdigest
# A longer name is no path anywhere, and with thousands of "/" in it would fill the listing alone.
_NAME_BYTES = 4096

_KEPT_LISTINGS = 256  # of 4 MB each for 118,287 images in one folder
_listings: dict[_Identity, _Listing] = {}
_listing_one = threading.Lock()  # or threads that open the same archive would all list it


def _listing(file: OpenFile) -> _Listing:
    with _listing_one:
        listing = _listings.pop(file.identity, None)
        if listing is None:
            listing = _list(file)
            file.check()
            if len(_listings) >= _KEPT_LISTINGS:
                del _listings[next(iter(_listings))]
        _listings[file.identity] = listing  # at the end: the one at the beginning goes first
        return listing


def _list(file: OpenFile) -> _Listing:
    """Raises BadRequest, Damaged."""
    head = file.at(0, _BLOCK)
    if head.startswith((_ZIP_MEMBER, _ZIP_END)):
        directory = _directory(file)
        return _Listing.of(_zip_names(file, directory), is_tar=False, stop=directory.start)
    if _is_tar_header(head):
        return _Listing.of(_tar_names(file), is_tar=True, stop=file.size)
    if packing := _packing(head):
        raise BadRequest(
            f"{file.path} is packed with {packing}, so it cannot be entered in the middle: unpack it, and "
            "name the .tar"
        )
    what = f"begins with {head[:16]!r}" if head else "is empty"
    raise BadRequest(f"{file.path} {what}: an archive of images is a zip or a tar")


def _plain(name: bytes) -> bytes:
    return _HERE.sub(b"", name)


_HERE = re.compile(rb"\A(\./+)+")

_AGAIN = "; delete it and download it again"

# Zip: the numbers are the sections of APPNOTE.TXT 6.3.10

_ZIP_MEMBER, _ZIP_ENTRY, _ZIP_END = b"PK\3\4", b"PK\1\2", b"PK\5\6"
_ZIP64_END, _ZIP64_LOCATOR = b"PK\6\6", b"PK\6\7"
_MEMBER = struct.Struct("<4s5H3I2H")  # 4.3.7
_ENTRY = struct.Struct("<4s2B5H3I5H2I")  # 4.3.12, "version made by" as two bytes
_END = struct.Struct("<4s4H2IH")  # 4.3.16
_END64 = struct.Struct("<4sQ2H2I4Q")  # 4.3.14
_LOCATOR = struct.Struct("<4sIQI")  # 4.3.15
_EXTRA = struct.Struct("<2H")  # 4.5.1: tag, bytes that follow
_ZIP64_EXTRA = 1  # 4.5.3
_ENCRYPTED = 1  # 4.4.4
_STORED, _DEFLATED = 0, 8  # 4.4.5
_UNIX, _MACOS = 3, 19  # 4.4.2: made there, the upper half of the attributes is a st_mode

_GUESS = 512  # bytes that nearly all entries and headers fit in
_AHEAD = 1 << 20  # bytes that a list is read in: more than the longest entry has
_PACKED_MORE = 1 << 16  # bytes that data may grow by when it is packed, beside a thousandth

_At = Callable[[int, int], bytes]


class _Directory(NamedTuple):
    """The list of the members at a zip's end."""

    start: int
    stop: int
    members: int  # as its end record counts them, modulo
    modulo: int


class _ZipEntry(NamedTuple):
    """What that list says of a member."""

    name: bytes
    is_file: bool
    flags: int
    method: int
    crc: int
    packed: int  # bytes
    size: int  # bytes once unpacked
    header: int  # where it is; modulo 2**32 if the archive is large and was made without Zip64
    length: int  # bytes of this entry


def _directory(file: OpenFile) -> _Directory:
    """Raises Damaged."""
    at = max(0, file.size - _END.size - 0xFFFF)  # it may have a comment of so many bytes
    tail = file.at(at, file.size - at)
    found = len(tail)
    while (found := tail.rfind(_ZIP_END, 0, found)) >= 0:
        if len(tail) < found + _END.size:
            continue
        *_, members, size, _, comment = _END.unpack_from(tail, found)
        if len(tail) < found + _END.size + comment:
            continue
        directory = _zip64_directory(file, at + found)
        if directory is None:
            # By its size: macOS writes archives of any size without Zip64, and every position modulo 2**32.
            directory = _Directory(at + found - size, at + found, members, 1 << 16)
        start, stop, *_ = directory
        if start == stop or (0 <= start < stop and file.at(start, 4) == _ZIP_ENTRY):
            return directory
    raise Damaged(f"{file.path}: a zip without the list of members at its end: it was cut short{_AGAIN}")


def _zip64_directory(file: OpenFile, end: int) -> _Directory | None:
    """None where it is not in Zip64; end: where the plain end record is."""
    locator = file.at(end - _LOCATOR.size, _LOCATOR.size) if end >= _LOCATOR.size else b""
    if not locator.startswith(_ZIP64_LOCATOR):
        return None
    _, _, stop, _ = _LOCATOR.unpack(locator)
    record = file.at(stop, _END64.size)
    if len(record) < _END64.size or not record.startswith(_ZIP64_END):
        return None
    *_, members, size, _ = _END64.unpack(record)
    return _Directory(stop - size, stop, members, 1 << 64)


def _zip_names(file: OpenFile, directory: _Directory) -> Iterator[tuple[int, bytes]]:
    """(place, name) of every file. Raises Damaged."""
    place, members, at = directory.start, 0, _reading_ahead(file)
    while place < directory.stop:
        entry = _zip_entry(at, place)
        if entry is None or place + entry.length > directory.stop:
            raise Damaged(f"{file.path}: byte {place}: the list of members is damaged{_AGAIN}")
        if entry.is_file:
            yield place, entry.name
        place += entry.length
        members += 1
    if members % directory.modulo != directory.members:
        raise Damaged(
            f"{file.path}: the list of members has {members:,} of its {directory.members:,}{_AGAIN}"
        )


def _zip_entry(at: _At, place: int) -> _ZipEntry | None:
    """None where there is no whole entry."""
    record = at(place, _GUESS)
    if len(record) < _ENTRY.size or not record.startswith(_ZIP_ENTRY):
        return None
    fields = _ENTRY.unpack_from(record)
    _, _, system, _, flags, method, _, _, crc, packed, size, *lengths, _, _, attributes, header = fields
    name_bytes, extra_bytes, comment_bytes = lengths
    length = _ENTRY.size + name_bytes + extra_bytes + comment_bytes
    if length > len(record):
        record = at(place, length)
        if length > len(record):
            return None
    extra = _ENTRY.size + name_bytes
    name = _plain(record[_ENTRY.size : extra])
    size, packed, header = _zip64_extra(record[extra : extra + extra_bytes], size, packed, header)
    is_link = system in (_UNIX, _MACOS) and stat.S_ISLNK(attributes >> 16)
    is_file = not is_link and not name.endswith(b"/")
    return _ZipEntry(name, is_file, flags, method, crc, packed, size, header, length)


def _zip64_extra(extra: bytes, *values: int) -> Iterator[int]:
    """The values, those too large for their 32 bits from the extra field that has them in this order."""
    large = b""
    while len(extra) >= _EXTRA.size:
        tag, size = _EXTRA.unpack_from(extra)
        if tag == _ZIP64_EXTRA:
            large = extra[_EXTRA.size : _EXTRA.size + size]
        extra = extra[_EXTRA.size + size :]
    for value in values:
        if value == 0xFFFFFFFF and len(large) >= 8:
            value, large = int.from_bytes(large[:8], "little"), large[8:]
        yield value


def _reading_ahead(file: OpenFile) -> _At:
    """Reads a file from front to back in large pieces."""
    start, piece = 0, b""

    def at(offset: int, size: int) -> bytes:
        nonlocal start, piece
        if not start <= offset <= start + len(piece) - size:
            start, piece = offset, file.at(offset, _AHEAD)
        return piece[offset - start : offset - start + size]

    return at


def _read_zip(file: OpenFile, entry: _ZipEntry, *, stop: int, max_bytes: int) -> bytes | Reason:
    if entry.flags & _ENCRYPTED or entry.method not in (_STORED, _DEFLATED):
        return Reason.BAD_ENCODING
    # What packs this badly is not read to the end to see whether it is as small as it says.
    if entry.size > max_bytes or entry.packed > max_bytes + max_bytes // 1000 + _PACKED_MORE:
        return Reason.BODY_LIMIT
    start = _data(file, entry)
    if start is None or start + entry.packed > stop:
        return Reason.BAD_ENCODING
    data = file.at(start, entry.packed)
    if entry.method == _DEFLATED:
        try:
            data = zlib.decompressobj(-zlib.MAX_WBITS).decompress(data, max_bytes + 1)
        except zlib.error:
            return Reason.BAD_ENCODING
    if len(data) > max_bytes:
        return Reason.BODY_LIMIT
    if len(data) != entry.size or zlib.crc32(data) != entry.crc:
        return Reason.BAD_ENCODING
    return data or Reason.BODY_EMPTY


def _data(file: OpenFile, entry: _ZipEntry) -> int | None:
    """Where a member's data starts, if there is a header of its name before it."""
    for offset in range(entry.header, file.size, 1 << 32):
        header = file.at(offset, _GUESS)
        if len(header) < _MEMBER.size or not header.startswith(_ZIP_MEMBER):
            continue
        *_, name_bytes, extra_bytes = _MEMBER.unpack_from(header)
        if _MEMBER.size + name_bytes > len(header):
            header = file.at(offset, _MEMBER.size + name_bytes)
        if _plain(header[_MEMBER.size : _MEMBER.size + name_bytes]) == entry.name:
            return offset + _MEMBER.size + name_bytes + extra_bytes
    return None


# Tar: ustar, and what GNU and POSIX.1-2001 (pax) put before a header that is too small for a name or a size

_BLOCK = 512
_FILES = (b"0", b"\0", b"7")
_LINK = b"1"
_BODILESS = (b"1", b"2", b"3", b"4", b"5", b"6")  # their size, if they say one, is of nothing in the archive
_GNU_NAME, _GNU_LINK, _GNU_SPARSE = b"L", b"K", b"S"
_PAX = (b"x", b"X")
_PAX_GLOBAL = b"g"
_PAX_RECORD = re.compile(rb"(\d{1,9}) ([^=]+)=")
_PAX_SPARSE = b"GNU.sparse."  # how the keys begin that only a sparse file has
_PAX_KEYS = (b"path", b"linkpath", b"size", _PAX_SPARSE)
_OCTAL = re.compile(rb"[ \0]*([0-7]*)[ \0]*")
_DECIMAL = re.compile(rb"\d{1,19}")
_TOLD_BYTES = 1 << 20  # of what is put before a header; names that do not fit are no paths anyway


class TarEntry(NamedTuple):
    """A member of a tar, by its headers."""

    place: int  # of the first of them
    name: bytes
    link: bytes | None  # the name of the member that it is
    is_file: bool  # or a link to one
    data: int  # where it starts
    size: int  # bytes
    next: int  # where the next member's headers start


def _tar_names(file: OpenFile) -> Iterator[tuple[int, bytes]]:
    """(place, name) of every file. Raises Damaged."""
    place = 0
    while (entry := tar_entry(file, place)) is not None:
        if entry.is_file:
            yield place, entry.name
        place = entry.next


def tar_entry(file: OpenFile, place: int) -> TarEntry | None:
    """The member whose headers start there; None at the end of the archive, also of one cut short."""
    at, told = place, dict[bytes, bytes]()  # by its name in pax
    while True:
        header = file.at(at, _BLOCK)
        if len(header) < _BLOCK or header == _ZEROS:
            return None
        size = _number(header[124:136])
        if not _is_tar_header(header) or size is None:
            raise Damaged(f"{file.path}: byte {at}: the header of a member is damaged{_AGAIN}")
        kind, at = header[156:157], at + _BLOCK
        if kind not in (_GNU_NAME, _GNU_LINK, *_PAX, _PAX_GLOBAL):
            break
        if kind in (_GNU_NAME, _GNU_LINK):
            told[b"path" if kind == _GNU_NAME else b"linkpath"] = _text(file.at(at, min(size, _TOLD_BYTES)))
        elif kind in _PAX:
            told |= _pax_records(file.at(at, min(size, _TOLD_BYTES)))
        at += _padded(size)
    if kind == _GNU_SPARSE:
        more = header[482]
        while more and len(extension := file.at(at, _BLOCK)) == _BLOCK:
            more, at = extension[504], at + _BLOCK
    if _DECIMAL.fullmatch(told.get(b"size", b"")):
        size = int(told[b"size"])
    name = told.get(b"path") or _short_name(header)
    link = told.get(b"linkpath") or _text(header[157:257])
    is_file = kind in (*_FILES, _LINK) and not name.endswith(b"/") and _PAX_SPARSE not in told
    after = at if kind in _BODILESS else at + _padded(size)
    return TarEntry(place, _plain(name), _plain(link) if kind == _LINK else None, is_file, at, size, after)


def _is_tar_header(header: bytes) -> bool:
    checksum = _number(header[148:156])
    # The checksum counts as eight spaces.
    return len(header) == _BLOCK and sum(header) - sum(header[148:156]) + 8 * ord(" ") == checksum


def _short_name(header: bytes) -> bytes:
    name, prefix = _text(header[:100]), _text(header[345:500])
    # GNU's own magic is another, and times lie where the prefix would be.
    return prefix + b"/" + name if prefix and header[257:263] == b"ustar\0" else name


def _number(field: bytes) -> int | None:
    """Octal digits, or 255 bits where the first is set, as GNU writes what has too many digits."""
    if field[:1] == b"\x80":
        return int.from_bytes(field[1:], "big")
    octal = _OCTAL.fullmatch(field)
    return int(octal[1] or b"0", 8) if octal else None


def _text(field: bytes) -> bytes:
    return field.partition(b"\0")[0]


def _pax_records(body: bytes) -> dict[bytes, bytes]:
    """Those that matter of `<length> <key>=<value>\\n`, up to the first that has not the length it says."""
    records: dict[bytes, bytes] = {}
    at = 0
    while record := _PAX_RECORD.match(body, at):
        end = at + int(record[1])
        if not record.end() < end <= len(body) or body[end - 1 : end] != b"\n":
            break
        key = _PAX_SPARSE if record[2].startswith(_PAX_SPARSE) else record[2]
        if key in _PAX_KEYS:
            records[key] = body[record.end() : end - 1]
        at = end
    return records


def _padded(size: int) -> int:
    return -(-size // _BLOCK) * _BLOCK


_ZEROS = bytes(_BLOCK)


def _read_tar(file: OpenFile, entry: TarEntry, *, max_bytes: int) -> bytes | Reason:
    if entry.size > max_bytes:
        return Reason.BODY_LIMIT
    data = file.at(entry.data, entry.size)
    if len(data) < entry.size:
        return Reason.BODY_TRUNCATED
    return data or Reason.BODY_EMPTY


_Entry = _ZipEntry | TarEntry


# Packed tars

_PACKINGS = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ\0": "xz", b"\x28\xb5\x2f\xfd": "zstd"}
_PIECE = 1 << 20  # bytes
_ENDS = 1 << 16  # bytes
_UNPACKING = ".unpacking"

Told = Callable[[int, int], None]  # packed bytes so far, and in all


def is_packed_tar(path: Path) -> bool:
    """Is this a tar that cannot be entered before it is unpacked? Raises Damaged where that does not show."""
    with open(path, "rb") as file:
        packing = _packing(file.read(_BLOCK))
    return packing is not None and _is_tar_header(next(_unpacked(path, size=_BLOCK), b""))


def unpacked_tar(path: Path, folder: Path, *, told: Told) -> Path:
    """The plain .tar that is packed in a .tar.gz, .bz2, .xz or .zst: unpacked into a folder once, and kept.

    It is known there by the packed one's name, size, time, and first and last bytes, which end in checksums.
    Raises BadRequest where it is no packed tar, Damaged, and Busy where another process is at it.
    """
    if not is_packed_tar(path):
        raise BadRequest(f"{path} is no tar that is packed with one of {', '.join(_PACKINGS.values())}")
    store, name = Store(str(folder)), _unpacked_name(path)
    if not store.exists(name):
        with _alone(folder):
            store.sweep()  # what was left by one who was killed
            if not store.exists(name):  # by one who came first
                with store.writing(name) as aside, open(aside, "wb", buffering=0) as file:
                    for piece in _unpacked(path, told=told):
                        _write(file, piece)
    return Path(store.path(name))


def _packing(head: bytes) -> str | None:
    return next((packing for magic, packing in _PACKINGS.items() if head.startswith(magic)), None)


def _unpacked_name(path: Path) -> str:
    with open(path, "rb") as file:
        status = os.fstat(file.fileno())
        digest = hashlib.sha256(b"%d %d " % (status.st_size, status.st_mtime_ns))
        digest.update(file.read(_ENDS))
        file.seek(max(0, status.st_size - _ENDS))
        digest.update(file.read(_ENDS))
    stem = re.sub(r"(\.tar)?(\.[a-z0-9]{1,4})?\Z", "", path.name)
    return f"{stem[:100].lstrip('.')}-{digest.hexdigest()[:16]}.tar"


def _unpacked(path: Path, *, size: int = _PIECE, told: Told | None = None) -> Iterator[bytes]:
    """What is packed in a file, in pieces. Raises Damaged."""
    with open(path, "rb", buffering=_PIECE) as packed:
        total = os.fstat(packed.fileno()).st_size
        with _damage(path), _unpacker(packed) as plain:
            while piece := plain.read(size):
                if told:
                    told(packed.tell(), total)
                yield piece


def _unpacker(packed: BinaryIO) -> Any:
    """A file object over what is packed in another."""
    packing = _packing(packed.read(8))
    packed.seek(0)
    match packing:
        case "gzip":
            return gzip.GzipFile(fileobj=packed, mode="rb")
        case "bzip2":
            return bz2.BZ2File(packed)
        case "xz":
            return lzma.LZMAFile(packed)
        case _:
            import pyarrow as pa  # the smallest zstd that is here anyway

            return pa.CompressedInputStream(pa.PythonFile(packed, mode="r"), "zstd")


@contextlib.contextmanager
def _damage(path: Path) -> Generator[None]:
    """Turns what the unpackers raise into Damaged."""
    try:
        yield
    except (EOFError, zlib.error, lzma.LZMAError) as error:
        raise Damaged(f"{path}: what is packed in it is damaged ({error}){_AGAIN}") from None
    except OSError as error:
        if error.errno is not None:  # those of the disk have a number
            raise
        raise Damaged(f"{path}: what is packed in it is damaged ({error}){_AGAIN}") from None


@contextlib.contextmanager
def _alone(folder: Path) -> Generator[None]:
    """Holds a folder of unpacked tars: nobody else unpacks there."""
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / _UNPACKING, "ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Busy(f"{folder}: another run unpacks an archive there; wait for it to end") from None
        yield


def _write(file: BinaryIO, piece: bytes) -> None:
    """All of it: an unbuffered file may take less at a time."""
    left = memoryview(piece)
    while left:
        left = left[file.write(left) :]
