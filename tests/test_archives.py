"""The laws of pmd/archives.py: the bytes that other people's tools would unpack, or a reason, never wrong
bytes.
"""

import bz2
import fcntl
import gc
import gzip
import io
import lzma
import os
import random
import shutil
import struct
import subprocess
import tarfile
import threading
import tracemalloc
import warnings
import zipfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pmd import archives
from pmd.archives import Archives, is_packed_tar, unpacked_tar
from pmd.errors import BadRequest, Busy, Damaged, PmdError
from pmd.records import Reason

MANY = 1 << 20  # bytes: more than any member here has
BLOCK = 512

Files = Sequence[tuple[str, bytes]]


def image(seed: int, size: int = 3000) -> bytes:
    """Bytes that no other seed gives; only moved here, never decoded."""
    return random.Random(seed).randbytes(size)


FILES: Files = [
    ("train2017/", b""),
    ("train2017/000000000009.jpg", image(9)),
    ("train2017/000000000025.jpg", image(25, 70_000)),
    ("train2017/text.jpg", b"packs well " * 500),
    ("annotations/000000000009.png", image(1, 1)),
]
IMAGES = [(name, data) for name, data in FILES if not name.endswith("/")]


# What writes the archives: other people's code alone


def zipped(files: Files, *, method: int = zipfile.ZIP_STORED) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", method) as archive:
        for name, data in files:
            archive.writestr(zipfile.ZipInfo(name), data, method)  # with its time of 1980
    return out.getvalue()


def tarred(files: Files, *, form: int = tarfile.USTAR_FORMAT) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=form) as archive:
        for name, data in files:
            entry = tarfile.TarInfo(name)
            entry.size, entry.type = len(data), tarfile.DIRTYPE if name.endswith("/") else tarfile.REGTYPE
            archive.addfile(entry, io.BytesIO(data))
    return out.getvalue()


def tar_of(*entries: tuple[str, bytes, str], data: bytes) -> bytes:
    """A tar of entries (name, type, link name), those of the type of a file with this data."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.GNU_FORMAT) as archive:
        for name, kind, link in entries:
            entry = tarfile.TarInfo(name)
            entry.type, entry.linkname = kind, link
            entry.size = len(data) if entry.isreg() else 0
            archive.addfile(entry, io.BytesIO(data))
    return out.getvalue()


WRITERS: dict[str, Callable[[Files], bytes]] = {
    "zip stored": zipped,
    "zip deflated": lambda files: zipped(files, method=zipfile.ZIP_DEFLATED),
    "tar ustar": tarred,
    "tar gnu": lambda files: tarred(files, form=tarfile.GNU_FORMAT),
    "tar pax": lambda files: tarred(files, form=tarfile.PAX_FORMAT),
}
any_archive = pytest.mark.parametrize("writer", WRITERS.values(), ids=[*WRITERS])


def tool(*names: str) -> None:
    """Skips the test where a program is not installed."""
    for name in names:
        if shutil.which(name) is None:
            pytest.skip(f"there is no `{name}` here")


@pytest.fixture
def save(tmp_path: Path) -> Callable[..., Path]:
    def save(data: bytes, name: str = "an archive") -> Path:
        path = tmp_path / name
        path.write_bytes(data)
        return path

    return save


@pytest.fixture
def opened(save: Callable[..., Path]) -> Callable[..., Archives]:
    return lambda *contents: Archives([save(data, str(n)) for n, data in enumerate(contents)])


Save = Callable[..., Path]
Opened = Callable[..., Archives]


# What a path means


@any_archive
def test_every_member_is_read_as_it_was_written(writer: Callable[[Files], bytes], opened: Opened) -> None:
    read = opened(writer(FILES)).read
    assert [read(name, MANY) for name, _ in IMAGES] == [data for _, data in IMAGES]


@any_archive
def test_a_path_is_a_whole_name_or_what_follows_a_slash_in_one(
    writer: Callable[[Files], bytes], opened: Opened
) -> None:
    read = opened(writer([("./a/b/c.jpg", b"abc"), ("/d/e.jpg", b"de"), ("é/f.jpg", b"f")])).read
    found = {"a/b/c.jpg": b"abc", "b/c.jpg": b"abc", "c.jpg": b"abc", "./a/b/c.jpg": b"abc"}
    found |= {"d/e.jpg": b"de", "/d/e.jpg": b"de", "é/f.jpg": b"f", ".//./c.jpg": b"abc"}
    assert {path: read(path, MANY) for path in found} == found
    others = ["A/b/c.jpg", "/c.jpg", "xa/b/c.jpg", ".jpg", "a/b", "a/b/", "", "/", "../c.jpg", "\ud800.jpg"]
    assert [path for path in others if read(path, MANY) is not None] == []


@any_archive
def test_of_equal_names_the_last_is_read_as_unpacking_would_leave_it(
    writer: Callable[[Files], bytes], opened: Opened
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # `zipfile` warns
        data = writer([("a/x.jpg", b"first"), ("a/y.jpg", b"other"), ("a/x.jpg", b"last")])
    read = opened(data).read
    assert [read(path, MANY) for path in ("a/x.jpg", "x.jpg")] == [b"last", b"last"]


@any_archive
def test_a_name_that_is_the_path_goes_before_one_that_ends_so(
    writer: Callable[[Files], bytes], opened: Opened
) -> None:
    read = opened(writer([("x.jpg", b"just it"), ("a/x.jpg", b"a"), ("b/x.jpg", b"b")])).read
    assert read("x.jpg", MANY) == b"just it"
    assert opened(writer([("a/x.jpg", b"a"), ("b/x.jpg", b"b")])).read("x.jpg", MANY) == b"b"


def test_the_first_archive_that_has_a_path_gives_it_whatever_it_gives(opened: Opened) -> None:
    first = zipped([("a/x.jpg", b"zip"), ("large.jpg", bytes(100))])
    second = tarred([("x.jpg", b"tar"), ("y.jpg", b"tar"), ("large.jpg", b"small")])
    read = opened(first, second).read
    assert [read(path, 50) for path in ("x.jpg", "y.jpg", "z.jpg")] == [b"zip", b"tar", None]
    assert read("large.jpg", 50) is Reason.BODY_LIMIT
    assert opened(second, first).read("x.jpg", 50) == b"tar"
    assert Archives([]).read("x.jpg", 50) is None


@any_archive
def test_many_members_of_one_name_in_their_own_folders_are_told_apart(
    writer: Callable[[Files], bytes], opened: Opened
) -> None:
    files = [(f"{n}/photo.jpg", b"%d" % n) for n in range(2000)]
    read = opened(writer(files)).read
    assert all(read(name, MANY) == data for name, data in files)
    assert read("photo.jpg", MANY) == b"1999"


def test_names_whose_hashes_collide_are_told_apart(opened: Opened, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archives, "_hash", lambda name: len(name) % 2)
    for data in (zipped(FILES), tarred(FILES)):
        read = opened(data).read
        assert [read(name, MANY) for name, _ in IMAGES] == [data for _, data in IMAGES]
        assert read("train2017/000000000010.jpg", MANY) is None


@pytest.mark.parametrize("form", ["zip stored", "tar gnu", "tar pax"])
def test_names_longer_than_any_path_are_left_alone(form: str, opened: Opened) -> None:
    endless = "a/" * 20_000 + "x.jpg"
    read = opened(WRITERS[form]([(endless, b"endless"), ("deep/" * 60 + "y.jpg", b"deep")])).read
    assert [read("x.jpg", MANY), read("y.jpg", MANY)] == [None, b"deep"]


# Bounds


@any_archive
def test_a_member_may_have_max_bytes_and_not_one_more(
    writer: Callable[[Files], bytes], opened: Opened
) -> None:
    read = opened(writer([("x.jpg", bytes(1000)), ("empty.jpg", b"")])).read
    assert read("x.jpg", 1000) == bytes(1000)
    assert read("x.jpg", 999) is Reason.BODY_LIMIT
    assert read("empty.jpg", 1000) is Reason.BODY_EMPTY


def test_a_bomb_is_not_unpacked_beyond_max_bytes(opened: Opened) -> None:
    size = 64 << 20
    bomb = zipped([("x.jpg", bytes(size))], method=zipfile.ZIP_DEFLATED)
    told = bomb.replace(struct.pack("<I", size), struct.pack("<I", 10))
    assert told != bomb
    for data in (bomb, told):  # also one that says it is small
        read = opened(data).read
        assert peak_bytes(lambda read=read: read("x.jpg", 1 << 20)) < 8 << 20
        assert read("x.jpg", 1 << 20) is Reason.BODY_LIMIT


def test_what_says_it_is_packed_in_far_more_than_it_may_have_is_not_read(opened: Opened) -> None:
    stores = b"".join(b"\0\0\0\xff\xff" for _ in range(1 << 20)) + b"\1\0\0\xff\xff"  # all of them empty
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr("x.jpg", stores)
    entry = out.getvalue().rindex(b"PK\1\2")
    data = bytearray(out.getvalue())
    data[entry + 10 : entry + 12] = b"\x08\0"  # deflated, then
    data[entry + 24 : entry + 28] = bytes(4)  # to nothing
    assert opened(bytes(data)).read("x.jpg", 1 << 20) is Reason.BODY_LIMIT


def test_a_listing_of_100_000_members_is_small(save: Save) -> None:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for number in range(100_000):
            archive.writestr(zipfile.ZipInfo(f"train2017/{number:012}.jpg"), b"%d" % number)
    path = save(out.getvalue())
    kept: list[Archives] = []
    assert peak_bytes(lambda: kept.append(Archives([path]))) < 20e6  # `zipfile` takes 70
    tracemalloc.start()
    kept.append(Archives([path]))
    assert tracemalloc.get_traced_memory()[1] < 100e3, "it was listed again"
    tracemalloc.stop()
    for number in (0, 1, 65_535, 65_536, 99_999):
        assert kept[0].read(f"train2017/{number:012}.jpg", MANY) == b"%d" % number
    assert kept[0].read(f"train2017/{100_000:012}.jpg", MANY) is None


def peak_bytes(work: Callable[[], object]) -> int:
    gc.collect()
    tracemalloc.start()
    work()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak


# Zips as they come


def test_zips_of_info_zip_are_read(tmp_path: Path) -> None:
    tool("zip")
    write_files(tmp_path / "in", IMAGES)
    os.symlink("000000000009.jpg", tmp_path / "in/train2017/link.jpg")
    for options in (["-0"], ["-9"], ["-fz"], ["-0", "-z"]):  # -fz: Zip64; -z: a comment, from its input
        path = tmp_path / f"{options}.zip"
        command = ["zip", "-q", "-r", "-y", *options, path, "."]
        subprocess.run(command, cwd=tmp_path / "in", check=True, input=b"not PK\5\6, nor PK\1\2\n.\n")
        read = Archives([path]).read
        assert [read(name, MANY) for name, _ in IMAGES] == [data for _, data in IMAGES]
        assert read("train2017/link.jpg", MANY) is None


def test_a_zip_written_to_a_pipe_is_read(opened: Opened) -> None:
    """Its members' sizes follow their data."""

    class Pipe(io.RawIOBase):
        def __init__(self) -> None:
            self.written = bytearray()

        def writable(self) -> bool:
            return True

        def write(self, data: bytes) -> int:  # pyright: ignore[reportIncompatibleMethodOverride]
            self.written += data
            return len(data)

    pipe = Pipe()
    with zipfile.ZipFile(pipe, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in IMAGES:
            archive.writestr(name, data)
    read = opened(bytes(pipe.written)).read
    assert [read(name, MANY) for name, _ in IMAGES] == [data for _, data in IMAGES]


def test_zip64_fields_of_one_member_are_read(opened: Opened) -> None:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive, archive.open("x.jpg", "w", force_zip64=True) as member:
        member.write(b"small, and in Zip64")
    assert opened(out.getvalue()).read("x.jpg", MANY) == b"small, and in Zip64"


FAR = 9 << 30  # bytes; the files with holes of this size take no room


def zip_with_a_hole(path: Path) -> None:
    """Two members before 9 GiB of nothing, two behind it."""
    with zipfile.ZipFile(path, "w") as archive:
        for number in range(4):
            if number == 2:
                assert archive.fp is not None
                archive.fp.seek(FAR)
                archive.start_dir = FAR  # pyright: ignore[reportAttributeAccessIssue] (where it writes)
            archive.writestr(f"{number}.jpg", image(number))


def test_members_beyond_4_gb_are_read(tmp_path: Path) -> None:
    zip_with_a_hole(tmp_path / "x.zip")
    read = Archives([tmp_path / "x.zip"]).read
    assert [read(f"{number}.jpg", MANY) for number in range(4)] == [image(number) for number in range(4)]


def test_zips_beyond_4_gb_without_zip64_are_read_as_macos_writes_them(tmp_path: Path) -> None:
    path = tmp_path / "x.zip"
    zip_with_a_hole(path)
    with zipfile.ZipFile(path) as archive, open(path, "r+b") as file:
        file.seek(archive.start_dir)  # pyright: ignore[reportAttributeAccessIssue]
        file.truncate()
        entries = b"".join(
            struct.pack(
                "<4s6H3I5H2I",
                *(b"PK\1\2", 20, 20, 0, 0, 0, 0),
                *(entry.CRC, entry.compress_size, entry.file_size),
                *(len(entry.filename), 0, 0, 0, 0, 0, entry.header_offset % 2**32),
            )
            + entry.filename.encode()
            for entry in archive.infolist()
        )
        start = file.seek(0, os.SEEK_END)
        end = struct.pack("<4s4H2IH", b"PK\5\6", 0, 0, 4, 4, len(entries), start % 2**32, 0)
        file.write(entries + end)
    read = Archives([path]).read
    assert [read(f"{number}.jpg", MANY) for number in range(4)] == [image(number) for number in range(4)]


def test_what_cannot_be_unpacked_in_a_zip_is_a_reason_of_its_row(opened: Opened, tmp_path: Path) -> None:
    for method in (zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA):
        read = opened(zipped([("x.jpg", image(1))], method=method)).read
        assert read("x.jpg", MANY) is Reason.BAD_ENCODING
    tool("zip")
    write_files(tmp_path / "in", [("x.jpg", image(1))])
    path = tmp_path / "x.zip"
    subprocess.run(["zip", "-q", "-P", "secret", path, "x.jpg"], cwd=tmp_path / "in", check=True)
    assert Archives([path]).read("x.jpg", MANY) is Reason.BAD_ENCODING


def test_entries_that_lie_are_reasons_of_their_rows(opened: Opened) -> None:
    good = zipped([("one.jpg", image(1)), ("two.jpg", image(2))])
    second = good.rindex(b"PK\1\2")

    def read(at: int, form: str, value: int) -> bytes | Reason | None:
        data = bytearray(good)
        struct.pack_into(form, data, second + at, value)
        read = opened(bytes(data)).read
        assert read("one.jpg", MANY) == image(1), "the other suffers nothing by it"
        return read("two.jpg", MANY)

    assert read(42, "<I", 0) is Reason.BAD_ENCODING  # the data of another
    assert read(42, "<I", 1) is Reason.BAD_ENCODING  # no header is there
    assert read(42, "<I", 0xFFFFFFF0) is Reason.BAD_ENCODING  # nor anything
    assert read(16, "<I", 1) is Reason.BAD_ENCODING  # the checksum
    assert read(20, "<I", 4000) is Reason.BAD_ENCODING  # packed bytes, up into the list
    assert read(24, "<I", 2999) is Reason.BAD_ENCODING  # bytes
    assert read(24, "<I", 0xFFFFFFFF) is Reason.BODY_LIMIT
    assert read(10, "<H", 8) is Reason.BAD_ENCODING  # deflated


def test_a_comment_that_looks_like_the_end_is_none(opened: Opened) -> None:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr("x.jpg", image(1))
        archive.comment = struct.pack("<4s4H2IH", b"PK\5\6", 0, 0, 1, 1, 46, 0, 0) + b"and PK\5\6"
    assert opened(out.getvalue()).read("x.jpg", MANY) == image(1)


def test_a_zip_cut_short_names_itself_and_what_to_do(save: Save) -> None:
    whole = zipped(FILES)
    for stop in (len(whole) - 1, len(whole) // 2, 100, 4):
        with pytest.raises(Damaged, match=r"an archive: .*cut short; delete it and download it again"):
            Archives([save(whole[:stop])])


# Tars as they come


def test_tars_of_the_systems_tar_are_read(tmp_path: Path) -> None:
    tool("tar")
    long = ("a very long folder name/" * 12) + "x.jpg"
    files = [*IMAGES, (long, image(3)), ("ünicode/é.jpg", image(4)), ("b" * 120 + ".jpg", image(5))]
    write_files(tmp_path / "in", files)
    os.link(tmp_path / "in/train2017/text.jpg", tmp_path / "in/train2017/twin.jpg")
    os.symlink("text.jpg", tmp_path / "in/train2017/soft.jpg")
    for form in ("gnu", "pax", "posix", "oldgnu"):
        path = tmp_path / f"{form}.tar"
        subprocess.run(["tar", f"--format={form}", "-cf", path, "."], cwd=tmp_path / "in", check=True)
        read = Archives([path]).read
        assert [read(name, MANY) for name, _ in files] == [data for _, data in files]
        assert read("train2017/twin.jpg", MANY) == b"packs well " * 500
        assert read("train2017/soft.jpg", MANY) is None
    for form in ("ustar", "v7"):
        path = tmp_path / f"{form}.tar"
        names = [name for name, _ in IMAGES]
        subprocess.run(["tar", f"--format={form}", "-cf", path, *names], cwd=tmp_path / "in", check=True)
        read = Archives([path]).read
        assert [read(name, MANY) for name in names] == [data for _, data in IMAGES]


def test_sparse_files_are_no_members_and_what_follows_them_is_found(tmp_path: Path) -> None:
    tool("tar")
    with open(tmp_path / "1.jpg", "wb") as file:
        for place in range(60):  # more pieces than one header has room for
            file.seek(place * 100_000)
            file.write(b"piece")
    (tmp_path / "2.jpg").write_bytes(image(2))
    for form in ("gnu", "posix"):
        path = tmp_path / f"{form}.tar"
        command = ["tar", f"--format={form}", "-S", "-cf", path, "1.jpg", "2.jpg"]
        subprocess.run(command, cwd=tmp_path, check=True)
        if path.stat().st_size > 5_000_000:
            pytest.skip("this file system keeps no holes")
        read = Archives([path]).read
        assert [read("1.jpg", 1 << 30), read("2.jpg", MANY)] == [None, image(2)]


def test_ustar_names_in_two_pieces_are_read(opened: Opened) -> None:
    name = f"{'folder/' * 20}{'x' * 90}.jpg"
    assert opened(tarred([(name, b"x")])).read(name, MANY) == b"x"


def test_sizes_beyond_octal_digits_are_read(tmp_path: Path) -> None:
    for form in (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        path = tmp_path / f"{form}.tar"
        with tarfile.open(path, "w", format=form) as archive:
            entry = tarfile.TarInfo("film.mp4")
            entry.size = FAR
            header = entry.tobuf(form)
            archive.addfile(tarfile.TarInfo("first.jpg"))
        with open(path, "r+b") as file:
            file.seek(BLOCK)
            file.write(header)
            file.seek(FAR, os.SEEK_CUR)
            file.write(tarred([("behind.jpg", image(1))]))
        read = Archives([path]).read
        assert [read("behind.jpg", MANY), read("film.mp4", MANY)] == [image(1), Reason.BODY_LIMIT]


def test_only_files_are_members_of_a_tar(opened: Opened) -> None:
    kinds = [tarfile.SYMTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE, tarfile.DIRTYPE]
    others = [(f"{kind}.jpg", kind, "x.jpg") for kind in kinds]
    read = opened(tar_of(*others, ("x.jpg", tarfile.REGTYPE, ""), data=b"x")).read
    assert [read(f"{kind}.jpg", MANY) for kind in kinds] == [None] * len(kinds)
    assert read("x.jpg", MANY) == b"x"


def test_a_hard_link_is_the_file_it_names_before_it(opened: Opened) -> None:
    a_file, a_link = tarfile.REGTYPE, tarfile.LNKTYPE
    entries = [
        ("early", a_link, "./a/x.jpg"),
        ("a/x.jpg", a_file, ""),
        ("twin", a_link, "a/x.jpg"),
        ("short", a_link, "x.jpg"),  # that is not the file's name
        ("self", a_link, "self"),
        ("of a link", a_link, "twin"),
        ("of nothing", a_link, "../../etc/passwd"),
    ]
    read = opened(tar_of(*entries, data=b"x")).read
    found = {name: read(name, MANY) for name, *_ in entries}
    assert found == dict.fromkeys(found) | {"a/x.jpg": b"x", "twin": b"x"}


def test_a_tar_cut_short_costs_the_member_it_was_cut_in(opened: Opened) -> None:
    whole = tarred([("1.jpg", image(1)), ("2.jpg", image(2)), ("3.jpg", image(3))])
    second = whole.index(b"2.jpg")
    cut = [whole[: second + BLOCK + 2999], whole[: second + BLOCK], whole[: second + BLOCK - 1]]
    ends = [[opened(data).read(f"{n}.jpg", MANY) for n in (1, 2, 3)] for data in cut]
    assert ends[0] == ends[1] == [image(1), Reason.BODY_TRUNCATED, None]
    assert ends[2] == [image(1), None, None]


def test_a_damaged_header_in_a_tar_names_the_place_and_what_to_do(save: Save) -> None:
    data = bytearray(tarred([("1.jpg", image(1)), ("2.jpg", image(2))]))
    data[data.index(b"2.jpg")] ^= 1
    with pytest.raises(Damaged, match=r"an archive: byte 3584: .*; delete it and download it again"):
        Archives([save(data)])


# What is no archive, and what is not the same any more


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (b"", "is empty"),
        (b"<!DOCTYPE html><html>Sign in", "begins with b'<!DOCTYPE html>"),
        (bytes(10_240), r"begins with b'\\x00"),
        (gzip.compress(tarred(FILES)), "packed with gzip"),
        (bz2.compress(tarred(FILES)), "packed with bzip2"),
        (lzma.compress(tarred(FILES)), "packed with xz"),
    ],
)
def test_a_file_that_is_neither_zip_nor_tar_is_refused_by_what_it_is(
    content: bytes, found: str, save: Save
) -> None:
    for name in ("images.zip", "images.tar"):  # whatever it is called
        with pytest.raises(BadRequest, match=rf"{name} .*{found}"):
            Archives([save(content, name)])


def test_a_folder_and_a_file_that_is_not_there_are_refused(tmp_path: Path) -> None:
    with pytest.raises(BadRequest, match="not a file"):
        Archives([tmp_path])
    with pytest.raises(BadRequest, match="no such file"):
        Archives([tmp_path / "x.zip"])


def test_the_names_of_archives_say_nothing(save: Save) -> None:
    swapped = [save(tarred([("a.jpg", b"a")]), "x.zip"), save(zipped([("b.jpg", b"b")]), "x.tar")]
    read = Archives(swapped).read
    assert [read("a.jpg", MANY), read("b.jpg", MANY)] == [b"a", b"b"]


@any_archive
def test_a_replaced_archive_is_noticed_and_the_old_one_is_read_to_the_end(
    writer: Callable[[Files], bytes], save: Save
) -> None:
    path = save(writer([("x.jpg", b"old")]))
    before = Archives([path])
    os.replace(save(writer([("x.jpg", b"new")]), "aside"), path)
    assert before.read("x.jpg", MANY) == b"old"
    assert Archives([path]).read("x.jpg", MANY) == b"new"


@any_archive
def test_an_archive_that_is_written_to_while_it_is_read_stops_the_reader(
    writer: Callable[[Files], bytes], save: Save
) -> None:
    path = save(writer(FILES))
    archive = Archives([path])
    path.write_bytes(writer([("x.jpg", b"other")]))
    for name in (IMAGES[0][0], "not there"):
        with pytest.raises(Damaged, match="was written to while it was read"):
            archive.read(name, MANY)


def test_archives_that_are_let_go_of_are_closed(save: Save) -> None:
    path = save(zipped(FILES))
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(50):
        Archives([path]).read("train2017/text.jpg", MANY)
    gc.collect()
    assert len(os.listdir("/proc/self/fd")) <= before


# Damage


SMALL = [("a/1.jpg", image(1, 200)), ("a/2.jpg", b"packs well " * 20), ("3.jpg", image(3, 40))]

DAMAGES: dict[str, Callable[[bytes, int, int], bytes]] = {
    "a bit": lambda data, at, size: data[:at] + bytes([data[at] ^ 1 << size % 8]) + data[at + 1 :],
    "ones": lambda data, at, size: data[:at] + b"\xff" * size + data[at + size :],
    "zeros": lambda data, at, size: data[:at] + bytes(size) + data[at + size :],
    "more": lambda data, at, size: data[:at] + bytes(size) + data[at:],
    "less": lambda data, at, size: data[:at] + data[at + size :],
    "moved": lambda data, at, size: data[:at] + data[:size] + data[at + size :],
    "the end": lambda data, at, size: data[:at],
}
damages = st.lists(
    st.tuples(st.sampled_from([*DAMAGES]), st.integers(0, 1 << 16), st.integers(1, 64)),
    min_size=1,
    max_size=3,
)


def damaged(data: bytes, damages: Sequence[tuple[str, int, int]]) -> bytes:
    for kind, at, size in damages:
        data = DAMAGES[kind](data, at % len(data), size) or b"?"
    return data


@pytest.mark.parametrize("form", WRITERS)
@given(damages)
@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_damage_raises_anything_else_or_gives_wrong_bytes_where_there_is_a_checksum(
    tmp_path: Path, form: str, damages: Sequence[tuple[str, int, int]]
) -> None:
    path = tmp_path / "damaged"
    path.write_bytes(damaged(WRITERS[form](SMALL), damages))
    try:
        opened = Archives([path])
        found = [opened.read(name, 2000) for name, _ in SMALL]
    except PmdError as error:
        assert str(path) in str(error)
        return
    for one, (_, right) in zip(found, SMALL, strict=True):
        assert one is None or isinstance(one, Reason) or one == right or form.startswith("tar"), one


@pytest.mark.parametrize("form", ["zip stored", "zip deflated"])
def test_every_changed_bit_of_a_zip_is_harmless(tmp_path: Path, form: str) -> None:
    whole = WRITERS[form](SMALL)
    path = tmp_path / "damaged"
    for at in range(len(whole)):
        path.write_bytes(DAMAGES["a bit"](whole, at, at))
        try:
            read = Archives([path]).read
        except PmdError:
            continue
        assert all(read(name, MANY) in (right, None, *Reason) for name, right in SMALL)


# Threads and processes


@any_archive
def test_eight_threads_read_the_right_bytes(writer: Callable[[Files], bytes], save: Save) -> None:
    files = [(f"a/{n}.jpg", image(n, 50 + n * 37 % 9000)) for n in range(300)]
    path = save(writer(files))
    archive = Archives([path])

    def read(seed: int) -> bool:
        order = random.Random(seed).sample(files, len(files))
        mine = Archives([path])  # opened at the same time
        return all(archive.read(name, MANY) == mine.read(name, MANY) == data for name, data in order)

    with ThreadPoolExecutor(8) as threads:
        assert all(threads.map(read, range(8)))


def test_threads_that_open_the_same_archive_list_it_once(save: Save, monkeypatch: pytest.MonkeyPatch) -> None:
    path, listed, all_there = save(zipped(FILES)), [], threading.Barrier(8)
    list_it = archives._list  # pyright: ignore[reportPrivateUsage]
    monkeypatch.setattr(archives, "_list", lambda file: listed.append(file) or list_it(file))

    def open_it(_: int) -> None:
        all_there.wait()
        Archives([path])

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(open_it, range(8)))
    assert len(listed) == 1


def test_the_oldest_listings_are_forgotten(save: Save, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archives, "_KEPT_LISTINGS", 2)
    monkeypatch.setattr(archives, "_listings", kept := {})
    paths = [save(zipped([("x.jpg", b"%d" % n)]), f"{n}.zip") for n in range(4)]
    many = Archives([*paths, paths[0]])
    assert len(kept) == 2
    assert many.read("x.jpg", MANY) == b"0"


# Packed tars


def zstd(data: bytes) -> bytes:
    return pa.compress(data, "zstd", asbytes=True)


PACKERS: dict[str, Callable[[bytes], bytes]] = {
    "gz": gzip.compress,
    "bz2": bz2.compress,
    "xz": lzma.compress,
    "zst": zstd,
}
any_packing = pytest.mark.parametrize("ending", PACKERS)
TAR = tarred([*FILES, ("filler.jpg", image(7, 1_200_000))])  # more than one piece


def unpack(path: Path, folder: Path) -> Path:
    return unpacked_tar(path, folder, told=lambda done, total: None)


@any_packing
def test_a_packed_tar_is_unpacked_once_and_read(ending: str, save: Save, tmp_path: Path) -> None:
    packed = save(PACKERS[ending](TAR), f"flickr30k-images.tar.{ending}")
    told: list[tuple[int, int]] = []
    folder = tmp_path / "made/for/it"
    assert is_packed_tar(packed)
    plain = unpacked_tar(packed, folder, told=lambda *bytes: told.append(bytes))
    assert plain.parent == folder and plain.name.startswith("flickr30k-images-") and plain.suffix == ".tar"
    assert plain.read_bytes() == TAR and not is_packed_tar(plain)
    size = packed.stat().st_size
    assert told == sorted(told) and len(told) > 1 and told[-1] == (size, size)
    read = Archives([plain]).read
    assert [read(name, MANY) for name, _ in IMAGES] == [data for _, data in IMAGES]
    told.clear()
    before = plain.stat()
    assert unpacked_tar(packed, folder, told=lambda *bytes: told.append(bytes)) == plain
    assert plain.stat() == before and told == []
    assert visible(folder) == [plain.name]


def test_tars_packed_by_the_systems_tools_are_unpacked(tmp_path: Path) -> None:
    (tmp_path / "x.tar").write_bytes(TAR)
    for program, ending in (("gzip", "gz"), ("bzip2", "bz2"), ("xz", "xz"), ("zstd", "zst")):
        tool(program)
        packed = tmp_path / f"x.tar.{ending}"
        with open(packed, "wb") as file:
            subprocess.run([program, "-c", tmp_path / "x.tar"], stdout=file, check=True)
        assert unpack(packed, tmp_path / "out").read_bytes() == TAR


@any_packing
def test_pieces_packed_one_after_another_are_one_tar(ending: str, save: Save, tmp_path: Path) -> None:
    """As pigz -i, pbzip2 and pzstd write them."""
    pack = PACKERS[ending]
    packed = save(pack(TAR[:BLOCK]) + pack(TAR[BLOCK:100_000]) + pack(TAR[100_000:]))
    assert unpack(packed, tmp_path / "out").read_bytes() == TAR


def test_archives_of_one_name_are_not_taken_for_each_other(save: Save, tmp_path: Path) -> None:
    for seed in (1, 2):
        tar = tarred([("x.jpg", image(seed))])
        assert unpack(save(gzip.compress(tar, mtime=0)), tmp_path / "out").read_bytes() == tar
    packed = tmp_path / "an archive"
    os.utime(packed, ns=(0, 0))
    unpack(packed, tmp_path / "out")
    assert len(visible(tmp_path / "out")) == 3


@any_packing
def test_a_damaged_packed_tar_leaves_nothing(ending: str, save: Save, tmp_path: Path) -> None:
    whole = PACKERS[ending](TAR)
    bad_ones = [whole[: len(whole) // 2], whole[:-1], whole[:100]]
    if ending != "zst":  # which has no checksum as Arrow packs it
        bad_ones.append(whole[:2000] + b"damage" * 9 + whole[2054:])
    for bad in bad_ones:
        with pytest.raises(Damaged, match=r"an archive: .*; delete it and download it again"):
            unpack(save(bad), tmp_path / "out")
    assert visible(tmp_path / "out") == []


def test_what_holds_no_tar_is_not_unpacked(save: Save, tmp_path: Path) -> None:
    for content in (b"", gzip.compress(b"a,b\n" * 999), TAR, zipped(FILES), bytes(BLOCK)):
        path = save(content)
        assert not is_packed_tar(path)
        with pytest.raises(BadRequest, match="an archive is no tar that is packed"):
            unpack(path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_unpacking_that_was_killed_leaves_nothing_for_long(save: Save, tmp_path: Path) -> None:
    packed, folder = save(gzip.compress(TAR)), tmp_path / "out"

    def killed(done: int, total: int) -> None:
        left = [entry for entry in os.listdir(folder) if entry.endswith(".part")]
        os.link(folder / left[0], folder / ".killed.tar.1-2.part")  # which no `finally` takes away
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        unpacked_tar(packed, folder, told=killed)
    assert visible(folder) == [".killed.tar.1-2.part"]
    plain = unpack(packed, folder)
    assert visible(folder) == [plain.name]


def test_two_processes_do_not_unpack_at_a_time(save: Save, tmp_path: Path) -> None:
    packed, folder = save(gzip.compress(TAR)), tmp_path / "out"
    folder.mkdir()
    with open(folder / ".unpacking", "ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(Busy, match="another run unpacks"):
            unpack(packed, folder)
    plain = unpack(packed, folder)
    with open(folder / ".unpacking", "ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert unpack(packed, folder) == plain, "what is there needs nobody's leave"


def test_unpacking_takes_no_memory_to_speak_of(save: Save, tmp_path: Path) -> None:
    packed = save(gzip.compress(tarred([("x.jpg", bytes(64 << 20))])))
    assert peak_bytes(lambda: unpack(packed, tmp_path / "out")) < 8 << 20


# Small parts


def write_files(folder: Path, files: Files) -> None:
    for name, data in files:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)


def visible(folder: Path) -> list[str]:
    return [name for name in sorted(os.listdir(folder)) if name != ".unpacking"]
