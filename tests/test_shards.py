"""The laws of pmd/shards.py: one form, read by other people's tools, every changed bit laid to its sample."""

import hashlib
import io
import json
import os
import random
import subprocess
import tarfile
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import datasets.config
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from webdataset import WebDataset  # pyright: ignore[reportAttributeAccessIssue] (it is there)

from pmd.shards import BLOCK, RECORD, Fault, Shard, TarWriter, members, read_shard, tar_faults, tar_header
from pmd.shards import write_shard as write
from pmd.tables import INDEX, read_footer

RECORDS = pa.schema([field for field in INDEX if field.name != "caption"])
FINGERPRINT = "f" * 64


def jpeg(seed: int) -> bytes:
    """A small picture that no other seed gives."""
    file = io.BytesIO()
    Image.frombytes("RGB", (8, 6), random.Random(seed).randbytes(8 * 6 * 3)).save(file, "JPEG")
    return file.getvalue()


def caption(text: str, *, row: int, reason: str | None = None, box: Sequence[float] | None = None) -> Any:
    return {"text": text, "id": f"c{row}", "box": box, "file": 0, "row": row, "reason": reason}


def record(
    key: str, captions: list[Any], image: bytes | None, *, reason: str | None = None
) -> dict[str, Any]:
    """A row of RECORDS; one without an image was dropped for a reason."""
    row: dict[str, Any] = {"key": key, "source": "coco", "url": f"http://images.example/{key}.jpg"}
    row |= {"captions": captions, "license": "CC-BY-2.0", "meta": '{"id":1}'}
    if image is None:
        return row | {"status": "failed_to_download", "reason": reason}
    digest = hashlib.sha256(image).hexdigest()
    sizes = {"width": 8, "height": 6, "original_width": 16, "original_height": 12}
    return row | {"status": "success", "sha256": "5" * 64, "stored_sha256": digest, **sizes}


IMAGES: list[bytes | None] = [jpeg(1), None, jpeg(2), None, b"x" * BLOCK]
ROWS = [
    record(
        "coco-1",
        [
            caption("a red ball", row=0, box=(1.5, 2, 3, 4)),
            caption("x", row=1, reason="caption_short"),
            caption("the ball, seen from afar", row=2),
        ],
        IMAGES[0],
    ),
    record(
        "coco-2",
        [caption("lost", row=3), caption("x", row=4, reason="caption_short")],
        None,
        reason="http_404",
    ),
    record("coco-3", [caption("ein grüner Ball \N{ARTIST PALETTE}", row=5)], IMAGES[2]),
    record("coco-4", [caption("", row=6, reason="caption_empty")], None, reason="caption_empty"),
    record("coco-5", [caption('of "quotes" and \\', row=7)], IMAGES[4]),
]


@dataclass(frozen=True)
class Built:
    tar: Path
    index: Path
    shard: Shard

    def keys(self) -> list[str]:
        rows = pq.read_table(self.index).to_pylist()
        return [row["key"] for row in rows if row["status"] == "success"]

    def faults(self, data: bytes) -> list[Fault]:
        """What is found wrong when the tar holds these bytes."""
        return list(tar_faults(io.BytesIO(data), pq.read_table(self.index)))


def build(folder: Path, *, name: str = "00000", chunk: int = 100) -> Built:
    """The shard of ROWS; chunk: rows in each piece of the table it is made from."""
    pieces = [pa.Table.from_pylist(ROWS[at : at + chunk], RECORDS) for at in range(0, len(ROWS), chunk)]
    tar, index = folder / f"{name}.tar", folder / f"{name}.parquet"
    shard = write(tar, index, records=pa.concat_tables(pieces), images=iter(IMAGES), fingerprint=FINGERPRINT)
    return Built(tar, index, shard)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    return build(tmp_path_factory.mktemp("shard"))


# One form


def test_a_shard_built_twice_is_the_same_file(built: Built, tmp_path: Path) -> None:
    for chunk in (100, 2, 1):  # however the rows arrived in memory
        again = build(tmp_path, name=str(chunk), chunk=chunk)
        assert again.tar.read_bytes() == built.tar.read_bytes()
        assert again.index.read_bytes() == built.index.read_bytes()


def by_tarfile(files: Sequence[tuple[str, bytes]]) -> bytes:
    """What the standard library makes of the same members."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for name, data in files:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return file.getvalue()


SIZES = (0, 1, 511, 512, 513, RECORD - 3 * BLOCK, RECORD - 3 * BLOCK + 1, RECORD - BLOCK, RECORD, 3_000_001)


@pytest.mark.parametrize("sizes", [(size,) for size in SIZES] + [SIZES, ()], ids=str)
def test_our_tar_is_tarfiles_byte_for_byte(tmp_path: Path, sizes: tuple[int, ...]) -> None:
    chance = random.Random(0)
    files = [(f"coco-{place}.jpg", chance.randbytes(size)) for place, size in enumerate(sizes)]
    writer = TarWriter(tmp_path / "ours.tar")
    offsets = [writer.add(name, data) for name, data in files]
    sha256, size = writer.close()
    ours = (tmp_path / "ours.tar").read_bytes()
    assert ours == by_tarfile(files)
    assert (sha256, size) == (hashlib.sha256(ours).hexdigest(), len(ours))
    for offset, (_, data) in zip(offsets, files, strict=True):
        assert ours[offset : offset + len(data)] == data


@given(
    name=st.text("abcdefghijklmnopqrstuvwxyz0123456789_-.", min_size=1, max_size=100),
    size=st.integers(0, 8**11 - 1),
)
def test_our_header_is_tarfiles_for_every_name_and_size(name: str, size: int) -> None:
    member = tarfile.TarInfo(name)
    member.size = size
    assert tar_header(name, size) == member.tobuf(tarfile.USTAR_FORMAT)


def test_a_full_disk_is_an_error_not_a_short_tar() -> None:
    writer = TarWriter(Path("/dev/full"))
    writer.add("a.jpg", b"one")
    with pytest.raises(OSError, match="No space left"):
        writer.close()
    writer.abandon()


def test_a_shard_that_cannot_be_finished_leaves_no_thread_and_no_index(tmp_path: Path) -> None:
    def images() -> Iterator[bytes | None]:
        yield IMAGES[0]
        raise ZeroDivisionError

    before = threading.active_count()
    tar, index = tmp_path / "a.tar", tmp_path / "a.parquet"
    records = pa.Table.from_pylist(ROWS, RECORDS)
    with pytest.raises(ZeroDivisionError):
        write(tar, index, records=records, images=images(), fingerprint="")
    assert threading.active_count() == before and not index.exists()


@pytest.mark.parametrize(
    "images", [IMAGES[:-1], [*IMAGES, None], [None, *IMAGES[1:]], [b"", b"", *IMAGES[2:]]]
)
def test_there_is_an_image_for_each_kept_record_and_for_no_other(
    tmp_path: Path, images: list[bytes | None]
) -> None:
    records = pa.Table.from_pylist(ROWS, RECORDS)
    with pytest.raises((ValueError, AssertionError)):
        write(tmp_path / "a.tar", tmp_path / "a.parquet", records=records, images=images, fingerprint="")


# What the index says


def test_the_index_points_at_the_bytes_of_each_kept_image(built: Built) -> None:
    data = built.tar.read_bytes()
    rows = pq.read_table(built.index).to_pylist()
    assert [row["key"] for row in rows] == [row["key"] for row in ROWS]
    for row, image in zip(rows, IMAGES, strict=True):
        if image is None:
            assert (row["offset"], row["size"], row["caption"]) == (None, None, None)
        else:
            assert data[row["offset"] : row["offset"] + row["size"]] == image
    assert [row["caption"] for row in rows if row["caption"]] == [
        "a red ball",
        "ein grüner Ball \N{ARTIST PALETTE}",
        'of "quotes" and \\',
    ]


def test_rows_are_kept_plus_dropped_also_inside_a_kept_record(built: Built) -> None:
    counts = built.shard.counts
    assert (counts.rows, counts.kept, counts.images) == (8, 4, 3)
    assert dict(counts.dropped) == {"caption_short": 2, "caption_empty": 1, "http_404": 1}
    assert counts.words == 3 + 5 + 4 + 4


def test_a_shard_is_known_from_the_footer_of_its_index(built: Built) -> None:
    shard = read_shard(read_footer(built.index))
    assert shard == built.shard
    data = built.tar.read_bytes()
    assert (shard.tar_sha256, shard.tar_size) == (hashlib.sha256(data).hexdigest(), len(data))
    assert shard.fingerprint == FINGERPRINT


def test_the_footer_of_another_table_is_not_a_shards(tmp_path: Path) -> None:
    pq.write_table(pa.table({"a": [1]}), tmp_path / "a.parquet")
    with pytest.raises(ValueError, match="does not describe a shard"):
        read_shard(read_footer(tmp_path / "a.parquet"))


# Read by others

TEXTS = {
    "coco-1": ["a red ball", "the ball, seen from afar"],
    "coco-3": ["ein grüner Ball \N{ARTIST PALETTE}"],
    "coco-5": ['of "quotes" and \\'],
}


def test_tarfile_reads_it(built: Built) -> None:
    with tarfile.open(built.tar) as tar:
        files = {member.name: member for member in tar.getmembers()}
        assert list(files) == [f"{key}.{end}" for key in TEXTS for end in ("jpg", "json", "txt")]
        for member in files.values():
            assert (member.isreg(), member.mode, member.uid, member.gid, member.mtime) == (
                True,
                0o644,
                0,
                0,
                0,
            )
        file = tar.extractfile(files["coco-1.json"])
        assert file is not None
        text = file.read().decode()
    sample = json.loads(text)
    assert list(sample) == sorted(sample) and ", " not in text.replace("ball, seen", "")
    assert sample["captions"] == [
        {"box": [1.5, 2.0, 3.0, 4.0], "id": "c0", "text": "a red ball"},
        {"box": None, "id": "c2", "text": "the ball, seen from afar"},
    ]
    assert (sample["key"], sample["url"], sample["license"], sample["sha256"], sample["original_width"]) == (
        *("coco-1", "http://images.example/coco-1.jpg", "CC-BY-2.0", "5" * 64, 16),
    )


def test_gnu_tar_reads_it(built: Built, tmp_path: Path) -> None:
    plain = os.environ | {"LC_ALL": "C", "TZ": "UTC"}
    listed = subprocess.run(["tar", "tvf", built.tar], capture_output=True, text=True, check=True, env=plain)
    assert listed.stderr == ""
    (first, *_) = lines = listed.stdout.splitlines()
    assert len(lines) == 9
    assert first.split() == [*("-rw-r--r--", "0/0", str(len(jpeg(1))), "1970-01-01", "00:00", "coco-1.jpg")]
    subprocess.run(["tar", "xf", built.tar, "-C", tmp_path], check=True)
    assert (tmp_path / "coco-1.jpg").read_bytes() == IMAGES[0]
    assert (tmp_path / "coco-3.txt").read_text() == TEXTS["coco-3"][0]


@pytest.mark.filterwarnings("ignore:.*FileIO:pytest.PytestUnraisableExceptionWarning")  # it closes no tar
def test_webdataset_reads_it(built: Built) -> None:
    samples = list(WebDataset(str(built.tar), shardshuffle=False))
    assert [sample["__key__"] for sample in samples] == [*TEXTS]
    for sample, image in zip(samples, filter(None, IMAGES), strict=True):
        texts = TEXTS[sample["__key__"]]
        assert sample["jpg"] == image
        assert sample["txt"].decode() == texts[0]
        assert [item["text"] for item in json.loads(sample["json"])["captions"]] == texts


def test_hugging_face_datasets_reads_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    built = build(tmp_path)
    files = {"train": [str(built.tar)]}
    loaded = datasets.load_dataset(
        "webdataset", data_files=files, cache_dir=str(tmp_path / "cache"), split="train"
    )
    loaded = loaded.cast_column("jpg", datasets.Image(decode=False))
    assert loaded["__key__"] == [*TEXTS]
    assert [image["bytes"] for image in loaded["jpg"]] == [image for image in IMAGES if image]
    assert loaded["txt"] == [texts[0] for texts in TEXTS.values()]
    assert [[item["text"] for item in sample["captions"]] for sample in loaded["json"]] == [*TEXTS.values()]


# Damage


def owner_of_each_byte(built: Built) -> list[str | None]:
    """Which sample each byte of the tar belongs to, header to padding, as `tarfile` sees it."""
    owners: list[str | None] = [None] * built.tar.stat().st_size
    with tarfile.open(built.tar) as tar:
        for member in tar:
            stop = member.offset_data + -(-member.size // BLOCK) * BLOCK
            owners[member.offset : stop] = [member.name.partition(".")[0]] * (stop - member.offset)
    return owners


def test_a_sound_shard_has_no_fault(built: Built) -> None:
    assert built.faults(built.tar.read_bytes()) == []


def test_a_flipped_bit_in_any_byte_is_laid_to_its_sample(built: Built) -> None:
    data = bytearray(built.tar.read_bytes())
    index = pq.read_table(built.index)
    for at, owner in enumerate(owner_of_each_byte(built)):
        data[at] ^= 1 << at % 8
        faults = list(tar_faults(io.BytesIO(data), index))
        data[at] ^= 1 << at % 8
        assert [fault.sample for fault in faults] == [owner], f"byte {at}: {faults}"


def test_a_cut_is_laid_to_every_sample_behind_it(built: Built) -> None:
    data = built.tar.read_bytes()
    owners = owner_of_each_byte(built)
    for cut in [*range(0, len(data), 128), len(data) - 1]:
        hurt = {*owners[cut:]}
        assert {fault.sample for fault in built.faults(data[:cut])} == hurt, cut


@pytest.mark.parametrize("more", [b"\0", bytes(RECORD), b"x" * BLOCK])
def test_bytes_behind_the_end_are_a_fault(built: Built, more: bytes) -> None:
    assert [fault.sample for fault in built.faults(built.tar.read_bytes() + more)] == [None]


def test_samples_that_changed_places_are_both_named(built: Built) -> None:
    data = built.tar.read_bytes()
    owners = owner_of_each_byte(built)
    first, second = (
        bytes(byte for byte, owner in zip(data, owners, strict=True) if owner == key)
        for key in ("coco-1", "coco-3")
    )
    swapped = second + first + data[len(first) + len(second) :]
    assert {fault.sample for fault in built.faults(swapped)} == {"coco-1", "coco-3"}


# Walking a tar that may be anybody's


def walk(data: bytes) -> list[str]:
    return [member.name for member in members(io.BytesIO(data))]


def test_members_are_those_that_tarfile_finds(built: Built) -> None:
    with tarfile.open(built.tar) as tar:
        theirs = [(member.name, member.offset_data, member.size) for member in tar]
    with open(built.tar, "rb") as file:
        assert [tuple(member) for member in members(file)] == theirs


def foreign(**fields: Any) -> bytes:
    """A tar of one member that is not as we write them."""
    member = tarfile.TarInfo(fields.pop("name", "coco-1.jpg"))
    member.size = 3
    form = fields.pop("form", tarfile.USTAR_FORMAT)
    for field, value in fields.items():
        setattr(member, field, value)
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=form) as tar:
        tar.addfile(member, io.BytesIO(b"abc") if member.isreg() else None)
    return file.getvalue()


FOREIGN = {
    "a symbolic link": foreign(type=tarfile.SYMTYPE, linkname="/etc/passwd", size=0),
    "a hard link": foreign(type=tarfile.LNKTYPE, linkname="../secret", size=0),
    "a folder": foreign(type=tarfile.DIRTYPE, name="coco", size=0),
    "a device": foreign(type=tarfile.CHRTYPE, devmajor=1, devminor=3, size=0),
    "a pipe": foreign(type=tarfile.FIFOTYPE, size=0),
    "a way up": foreign(name="../../coco-1.jpg"),
    "a way up that is as long as a key": foreign(name="../coco-1.jpg"),
    "an absolute path": foreign(name="/etc/cron.d/coco-1.jpg"),
    "a path": foreign(name="00000/coco-1.jpg"),
    "a hidden file": foreign(name=".coco-1.jpg"),
    "an option": foreign(name="-coco-1.jpg"),
    "a foreign ending": foreign(name="coco-1.pickle"),
    "no ending": foreign(name="coco-1"),
    "no key": foreign(name=".jpg"),
    "capitals": foreign(name="COCO-1.jpg"),
    "a time": foreign(mtime=1_700_000_000),
    "an owner": foreign(uid=1000, uname="alice"),
    "a mode": foreign(mode=0o4755),
    "a pax header": foreign(form=tarfile.PAX_FORMAT, pax_headers={"comment": "x"}),
    "a pax name": foreign(form=tarfile.PAX_FORMAT, name="coco-1\N{SNOWMAN}.jpg"),
    "a GNU long name": foreign(form=tarfile.GNU_FORMAT, name="coco-" + "1" * 200 + ".jpg"),
    "a GNU header": foreign(form=tarfile.GNU_FORMAT),
    "no tar": b"PK\x03\x04" + bytes(RECORD),
    "an empty file": b"",
}


@pytest.mark.parametrize("what", FOREIGN)
def test_a_member_that_we_do_not_write_is_refused(what: str) -> None:
    with pytest.raises(ValueError, match="byte 0: "):
        walk(FOREIGN[what])


def test_a_size_below_zero_is_refused_and_does_not_go_round_for_ever() -> None:
    octal = b"-0000002000"
    header = bytearray(tar_header("coco-1.jpg", 0))
    header[124:135] = octal
    header[148:154] = b"%06o" % (sum(header[:148]) + 8 * ord(" ") + sum(header[156:]))
    with pytest.raises(ValueError, match="byte 0: "):
        next(members(io.BytesIO(header + bytes(RECORD))))


def test_a_changed_header_is_refused_wherever_its_bit_is(built: Built) -> None:
    data = bytearray(built.tar.read_bytes())
    for bit in range(BLOCK * 8):
        data[bit // 8] ^= 1 << bit % 8
        with pytest.raises(ValueError, match="byte "):
            walk(bytes(data))
        data[bit // 8] ^= 1 << bit % 8


def test_a_tar_that_ends_too_soon_is_refused(built: Built) -> None:
    data = built.tar.read_bytes()
    with open(built.tar, "rb") as file:
        last = [*members(file)][-1]
    for cut in (0, 100, BLOCK, last.offset - 1, last.offset, last.offset + 1):
        with pytest.raises(ValueError, match="ends without its end mark"):
            walk(data[:cut])
