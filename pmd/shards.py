"""Shards: tars of samples with an index beside each. Written once, in one canonical form; read by anybody's
tools.

    00042.tar       <key>.jpg <key>.json <key>.txt   <key>.jpg <key>.json <key>.txt   ...   zeros
    00042.parquet   one row per planned record, kept or not; the kept ones say where in the tar they lie

(.png or .webp for .jpg, where a corpus stores these.)

Samples lie in the order of key_hash(key), so a shard is a shuffled sample of its source and its bytes do not
depend on who built it, in what order images arrived, or how often the build was killed. The tar is plain
ustar with every changeable field fixed (time 0, owner 0, mode 0644): `webdataset`, `datasets`, GNU tar and
`tarfile` read it alike.
"""

import hashlib
import re
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, Protocol, cast

import orjson
import pyarrow as pa

from pmd.tables import INDEX, Counts, Footer, count_rows, write_table

BLOCK = 512
RECORD = 20 * BLOCK  # tars are padded to whole records, as GNU tar and `tarfile` write them
# Bytes that a tar is written in: many, since a thread that comes back for the interpreter must wait.
CHUNK = 8 << 20

# Tars


class Hash(Protocol):
    """What hashlib's and xxhash's objects have in common."""

    def update(self, data: Any, /) -> None: ...
    def hexdigest(self) -> str: ...


class TarWriter:
    """An append-only canonical ustar file that hashes itself as it grows, by sha256 if nothing else is given.

    `tarfile` writes the same bytes (a test compares them) and takes 1.5 to 3 times as long, without a hash.
    Writing and hashing happen on a thread, a chunk behind, while the caller makes the next members.
    """

    def __init__(self, path: Path, digest: Hash | None = None):
        self._file = open(path, "wb", buffering=0)  # noqa: SIM115 (closed by close or abandon)
        self._hash = digest or hashlib.sha256()
        # Two buffers by turns, used again and again: fresh memory for each chunk costs as much as hashing it.
        self._filling, self._spare = bytearray(CHUNK), bytearray(CHUNK)
        self._filled = 0  # bytes of the one being filled
        self._written = 0  # bytes handed to the thread before
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="tar")
        self._writing: Future[None] | None = None

    def add(self, name: str, data: bytes) -> int:
        """Append one member; returns the offset of its first data byte."""
        padding = -len(data) % BLOCK
        if self._filled + BLOCK + len(data) + padding > len(self._filling):
            self._flush()
            if BLOCK + len(data) + padding > len(self._filling):
                self._filling = bytearray(BLOCK + len(data) + padding)
        self._put(tar_header(name, len(data)))
        offset = self._written + self._filled
        self._put(data)
        self._put(_ZEROS[:padding])
        return offset

    def close(self) -> tuple[str, int]:
        """Write the end of the archive; returns (hash, size) of the file."""
        at = self._written + self._filled
        size = -(-(at + 2 * BLOCK) // RECORD) * RECORD
        self._flush()
        self._put(bytes(size - at))
        self._flush()
        self._flush()  # waits for the one before
        self.abandon()
        return self._hash.hexdigest(), size

    def abandon(self) -> None:
        """Stop as it is; the file is no tar unless it was closed before."""
        self._thread.shutdown(cancel_futures=True)
        self._file.close()

    def _put(self, data: bytes) -> None:
        self._filling[self._filled : self._filled + len(data)] = data
        self._filled += len(data)

    def _flush(self) -> None:
        if self._writing is not None:
            self._writing.result()
        self._writing = self._thread.submit(self._write, memoryview(self._filling)[: self._filled])
        self._written += self._filled
        self._filling, self._spare, self._filled = self._spare, self._filling, 0

    def _write(self, chunk: memoryview) -> None:
        self._hash.update(chunk)
        while chunk:
            chunk = chunk[self._file.write(chunk) :]


_ZEROS = bytes(BLOCK)


def tar_header(name: str, size: int) -> bytes:
    """One 512-byte ustar header (POSIX.1-1988) of a regular file: mode 0644, owner 0, time 0."""
    encoded = name.encode("ascii")
    assert len(encoded) <= 100 and size < 8**11, (name, size)
    octal = b"%011o" % size
    # A header's checksum is the sum of its bytes; all but name and size are the same in every header.
    checksum = b"%06o" % (_FIXED_SUM + sum(encoded) + sum(octal))
    return b"".join((encoded.ljust(100, b"\0"), _OWNER, octal, _TIME, checksum, _REST))


_OWNER = b"0000644\x000000000\x000000000\0"  # mode, uid, gid
_TIME = b"\x0000000000000\0"  # the size's end mark, mtime
_REST = (
    b"\0 0" + bytes(100) + b"ustar\x0000" + bytes(64 + 16 + 155 + 12)
)  # type 0: a regular file; no link, no names, no prefix
_FIXED_SUM = (
    sum(_OWNER) + sum(_TIME) + sum(_REST) - ord(" ") + 8 * ord(" ")
)  # the checksum field counts as eight spaces


_NAME = re.compile(rb"[a-z0-9][a-z0-9_-]*\.(jpg|png|webp|json|txt)")  # no path, so it leads nowhere
_SIZE = re.compile(rb"[0-7]{11}")  # never below zero, so a walk always gets on


class Member(NamedTuple):
    name: str
    offset: int  # of the data
    size: int


def members(file: BinaryIO) -> Iterator[Member]:
    """The members of a tar, strictly: a header that is not as we write it is a ValueError."""
    at = 0
    while True:
        file.seek(at)
        header = file.read(BLOCK)
        if len(header) < BLOCK:
            raise ValueError(f"byte {at}: the archive ends without its end mark")
        if header == bytes(BLOCK):
            return
        name, digits = header[:100].rstrip(b"\0"), header[124:135]
        if not (_NAME.fullmatch(name) and _SIZE.fullmatch(digits)):
            raise ValueError(f"byte {at}: not a header of ours")
        size = int(digits, 8)
        if tar_header(name.decode(), size) != header:
            raise ValueError(f"byte {at}: not a header of ours")
        yield Member(name.decode(), at + BLOCK, size)
        at += BLOCK + -(-size // BLOCK) * BLOCK


# Shards


@dataclass(frozen=True)
class Shard:
    """What a finished shard's index says of it, without reading the rows."""

    fingerprint: str
    tar_sha256: str
    tar_size: int
    counts: Counts

    def facts(self) -> dict[str, Any]:
        counts = asdict(self.counts) | {"dropped": dict(self.counts.dropped)}
        return {"tar_sha256": self.tar_sha256, "tar_size": self.tar_size, "counts": counts}


def write_shard(
    tar: Path,
    index: Path,
    *,
    records: pa.Table,
    images: Iterable[bytes | None],
    fingerprint: str,
    image_format: str = "jpg",
) -> Shard:
    """Write one shard: the kept records' samples, then the index of all records.

    records: the INDEX columns but `caption`, in canonical order; a record whose status is "success" is kept.
    images: one entry a record: its file of the image_format, or None where the record is not kept.
    """
    offsets: list[int | None] = []
    sizes: list[int | None] = []
    captions: list[str | None] = []
    writer = TarWriter(tar)
    try:
        for sample, image in zip(sample_texts(records), images, strict=True):
            if sample is None or image is None:
                assert sample is None and image is None, "an image for each kept record, and for no other"
                offsets.append(None)
                sizes.append(None)
                captions.append(None)
                continue
            offsets.append(writer.add(f"{sample.key}.{image_format}", image))
            sizes.append(len(image))
            writer.add(f"{sample.key}.json", sample.json)
            writer.add(f"{sample.key}.txt", sample.caption.encode())
            captions.append(sample.caption)
        sha256, size = writer.close()
    except BaseException:
        writer.abandon()
        raise
    columns: dict[str, Any] = {name: records[name] for name in INDEX.names if name in records.column_names}
    columns |= {
        "caption": pa.array(captions, pa.string()),
        "offset": pa.array(offsets, pa.int64()),
        "size": pa.array(sizes, pa.int64()),
    }
    table = pa.table([columns[name] for name in INDEX.names], schema=INDEX)
    shard = Shard(fingerprint, sha256, size, count_rows(table))
    write_table(index, table, fingerprint=fingerprint, facts=shard.facts())
    return shard


class SampleText(NamedTuple):
    """What follows from an index row alone: the text members of its sample."""

    key: str
    json: bytes
    caption: str


def sample_texts(records: pa.Table) -> Iterator[SampleText | None]:
    """One entry a record: its text members, or None where it is not kept."""
    columns = [cast("list[Any]", records[name].to_pylist()) for name in ("status", "captions", *_TOLD)]
    for status, captions, *told in zip(*columns, strict=True):
        if status != "success":
            yield None
            continue
        kept = [caption for caption in captions if caption["reason"] is None]
        sample: dict[str, Any] = dict(zip(_TOLD, told, strict=True))
        sample["captions"] = [{"box": item["box"], "id": item["id"], "text": item["text"]} for item in kept]
        yield SampleText(sample["key"], orjson.dumps(sample, option=orjson.OPT_SORT_KEYS), kept[0]["text"])


# The index columns that go into a sample's .json beside its captions.
_TOLD = (
    *("key", "source", "url", "license", "license_url", "attribution", "meta", "sha256", "mime"),
    *("width", "height", "original_width", "original_height"),
)


def read_shard(footer: Footer) -> Shard:
    """What a shard's index says of it; ValueError if it is not the index of a shard."""
    try:
        facts = footer.facts
        counts = facts["counts"] | {"dropped": tuple(sorted(facts["counts"]["dropped"].items()))}
        counts.setdefault("pairs", counts["kept"])  # format 1: every kept row was one pair
        return Shard(str(footer.fingerprint), facts["tar_sha256"], facts["tar_size"], Counts(**counts))
    except (KeyError, TypeError) as error:
        raise ValueError(f"its footer does not describe a shard: {error!r}") from None


# Checking


class Fault(NamedTuple):
    """One thing that is not as it was written; sample is None where the damage belongs to no one sample."""

    sample: str | None
    why: str


def tar_faults(file: BinaryIO, index: pa.Table, image_format: str = "jpg") -> Iterator[Fault]:
    """Where a tar differs from what its (sound) index says: each damaged sample by key.

    Everything in a tar follows from the index but the image bytes, and of those the index has the hash: so
    any changed bit, in data, headers or padding, is laid to its sample.
    """
    at = 0
    columns = [index[name].to_pylist() for name in ("offset", "size", "stored_sha256")]
    for sample, offset, size, sha256 in zip(sample_texts(index), *columns, strict=True):
        if sample is None:
            continue
        file.seek(at)
        if file.read(BLOCK) != tar_header(f"{sample.key}.{image_format}", size) or at + BLOCK != offset:
            yield Fault(sample.key, f"byte {at}: the header of its image is damaged")
        image = file.read(size)
        if hashlib.sha256(image).hexdigest() != sha256:
            yield Fault(sample.key, f"byte {offset}: its image is damaged")
        at = offset + size
        if file.read(-size % BLOCK) != bytes(-size % BLOCK):
            yield Fault(sample.key, f"byte {at}: the padding behind its image is damaged")
        at += -size % BLOCK
        for name, data in (
            (f"{sample.key}.json", sample.json),
            (f"{sample.key}.txt", sample.caption.encode()),
        ):
            expected = tar_header(name, len(data)) + data + bytes(-len(data) % BLOCK)
            if file.read(len(expected)) != expected:
                yield Fault(sample.key, f"byte {at}: its {name.rpartition('.')[2]} member is damaged")
            at += len(expected)
    file.seek(at)
    end = at + 2 * BLOCK
    if file.read() != bytes(-(-end // RECORD) * RECORD - at):
        yield Fault(None, f"byte {at}: the end of the archive is damaged")


def image_faults(file: BinaryIO, index: pa.Table) -> Iterator[Fault]:
    """The damaged images of a tar that somebody else wrote: nothing else in it follows from the index."""
    columns = [index[name].to_pylist() for name in ("key", "status", "offset", "size", "stored_sha256")]
    for key, status, offset, size, sha256 in zip(*columns, strict=True):
        if status == "success":
            file.seek(offset)
            if hashlib.sha256(file.read(size)).hexdigest() != sha256:
                yield Fault(key, f"byte {offset}: its image is damaged")
