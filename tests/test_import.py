"""The laws of `pmd import`: tars of others are read where they lie, each sample has one end, nothing is run.

The layout is img2dataset's, which writes with `webdataset.TarWriter` too; one test has img2dataset itself
write it, where test_img2dataset.py finds that.
"""

import hashlib
import io
import json
import os
import pickle
import shutil
import subprocess
import tarfile
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import webdataset as _webdataset
from hypothesis import given, settings
from hypothesis import strategies as st
from webdataset.tariterators import group_by_keys, tar_file_expander

from pipelines import img2dataset_list
from pipelines.imported import Imported, import_tars
from pipelines.progress import Progress
from pmd.archives import OpenFile
from pmd.errors import BadRequest, Damaged, Refused
from pmd.foreign import MOST_ENDINGS, MOST_JSON, Found, samples
from pmd.foreign_keys import Keys, Named
from pmd.records import KEY, Reason, url_key
from pmd.stream import Feed, Sample, Stream, prove
from tests.locked import locked, picture
from tests.small import pmd, pmd_json, run_here
from tests.test_img2dataset import HOST, PYTHON, needs_img2dataset
from tests.web import Web

webdataset: Any = _webdataset  # makes its names at run time, where no checker sees them
PICTURES = [picture(seed) for seed in range(8)]
SIDES = ("width", "height", "original_width", "original_height")
TEXTS = ("url", "caption", "key", "status", "error_message", "sha256")
LIST = pa.schema([*((name, pa.string()) for name in TEXTS), *((name, pa.int32()) for name in SIDES)])
ERRORS = {3: "HTTP Error 404: Not Found", 5: "<urlopen error [Errno -2] Name or service not known>"}
ERRORS |= {8: "Image decoding error", 9: "image too small"}
LOST = {"http_404": 1, "dns_failed": 1, "decode_failed": 1, "image_small": 1}


def download(folder: Path, tars: int = 3, *, rows: int = 12) -> Path:
    """What `img2dataset` leaves behind for lists of so many rows, of which four in each tar fail."""
    folder.mkdir(parents=True, exist_ok=True)
    for shard in range(tars):
        listed: list[dict[str, Any]] = []
        with webdataset.TarWriter(str(folder / f"{shard:05d}.tar")) as tar:
            for n in range(rows):
                meta = told(shard, n)
                listed.append(dict(meta))
                if n not in ERRORS:
                    text = json.dumps(meta, indent=4)
                    sample = {"__key__": meta["key"], "jpg": image(shard, n), "txt": meta["caption"]}
                    tar.write(sample | {"json": text})
        pq.write_table(pa.Table.from_pylist(listed, LIST), folder / f"{shard:05d}.parquet")
        (folder / f"{shard:05d}_stats.json").write_text('{"count": 12}')
    return folder


def image(shard: int, n: int) -> bytes:
    return PICTURES[n % 8] + b"%d %d" % (shard, n)  # what lies behind a JPEG's end is no part of it


def told(shard: int, n: int) -> dict[str, Any]:
    key, url = f"{shard:05d}{n:04d}", f"http://a.example/{shard}/{n}.jpg"
    row = {"url": url, "caption": f"picture {n} of {shard}", "key": key, "status": "success"}
    if n in ERRORS:
        status = "failed_to_download" if n < 8 else "failed_to_resize"
        return row | {"status": status, "error_message": ERRORS[n]}
    sides = {"width": 96, "height": 64, "original_width": 960, "original_height": 640}
    return row | sides | {"error_message": None, "sha256": hashlib.sha256(b"served").hexdigest()}


def imported(
    folder: Path, *, out: Path | None = None, source: str = "img2dataset", workers: int = 1
) -> Imported:
    where = str(out) if out else None
    return import_tars(folder, out=where, source=source, workers=workers, progress=Progress(quiet=True))


def index_of(out: Path, number: int = 0, source: str = "img2dataset") -> list[dict[str, Any]]:
    return pq.read_table(out / f"shards/{source}/{number:05d}.parquet").to_pylist()


def epoch_of(folder: Path) -> list[Sample]:
    stream = Stream(folder)
    return stream.read(0, np.arange(len(stream)))


def ends(out: Path, number: int = 0) -> list[str]:
    """How each row ended, in the order of the index."""
    return [row["reason"] or row["status"] for row in index_of(out, number)]


Member = tuple[str, bytes] | tarfile.TarInfo


def write_tar(path: Path, members: Iterable[Member], *, format: int = tarfile.USTAR_FORMAT) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=format) as tar:
        for member in members:
            if isinstance(member, tarfile.TarInfo):
                tar.addfile(member)
                continue
            info = tarfile.TarInfo(member[0])
            info.size = len(member[1])
            tar.addfile(info, io.BytesIO(member[1]))
    return path


def sample(name: str, n: int = 0, **parts: bytes) -> list[Member]:
    parts = {"jpg": PICTURES[n], "txt": f"caption {n}".encode()} | parts
    return [(f"{name}.{ending}", data) for ending, data in parts.items()]


# A corpus like any other


def test_each_sample_is_delivered_with_its_bytes_and_its_caption(tmp_path: Path) -> None:
    download(tmp_path)
    made = imported(tmp_path)
    expected = {
        f"img2dataset-{shard:05d}{n:04d}": (image(shard, n), f"picture {n} of {shard}")
        for shard in range(3)
        for n in range(12)
        if n not in ERRORS
    }
    found = epoch_of(tmp_path)
    assert {sample.key: (sample.image, sample.caption) for sample in found} == expected
    assert len(found) == len(expected) and {sample.source for sample in found} == {"img2dataset"}
    got = made.lock.sources["img2dataset"].got
    assert (got["rows"], got["kept"], got["images"], got["pairs"]) == (36, 24, 24, 24)
    assert got["dropped"] == {reason: 3 * count for reason, count in LOST.items()}


def test_an_epoch_over_it_is_proven(tmp_path: Path) -> None:
    imported(download(tmp_path))
    stream = Stream(tmp_path, window=2)
    feed = Feed(stream, batch=8)
    for number in range(feed.batches or 0):
        batch = feed.batch(0, number)
        feed.delivered(batch, stream.read(0, batch.positions))
    assert prove(feed, stream).count == 24


def test_the_index_says_what_their_files_say(tmp_path: Path) -> None:
    imported(download(tmp_path, 1))
    first, *_, last = index_of(tmp_path)
    image_sha256 = hashlib.sha256(image(0, 0)).hexdigest()
    served = hashlib.sha256(b"served").hexdigest()
    assert first["url"] == "http://a.example/0/0.jpg" and first["license"] == "unknown"
    assert (first["width"], first["height"]) == (96, 64)
    assert (first["original_width"], first["original_height"]) == (960, 640)
    assert (first["sha256"], first["stored_sha256"]) == (served, image_sha256)
    assert first["caption"] == "picture 0 of 0" and json.loads(first["meta"]) == {"key": "000000000"}
    assert (tmp_path / "00000.tar").read_bytes()[first["offset"] :][: first["size"]] == image(0, 0)
    assert (last["key"], last["status"], last["reason"]) == (
        "img2dataset-000000009",
        "failed_to_resize",
        "image_small",
    )
    assert last["error_message"] == "image too small" and last["captions"][0]["text"] == "picture 9 of 0"


def test_tars_are_linked_and_nothing_of_theirs_is_touched(tmp_path: Path) -> None:
    folder, out = download(tmp_path / "theirs"), tmp_path / "ours/corpus"
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    imported(folder, out=out)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    tar = out / "shards/img2dataset/00001.tar"
    assert os.readlink(tar) == "../../../../theirs/00001.tar" and tar.samefile(folder / "00001.tar")
    (tmp_path / "elsewhere").mkdir()
    moved = [shutil.move(tmp_path / name, tmp_path / "elsewhere" / name) for name in ("theirs", "ours")]
    assert len(epoch_of(Path(moved[1]) / "corpus")) == 24


def test_order_verify_show_and_status_read_it(tmp_path: Path) -> None:
    download(tmp_path)
    made = pmd_json("import", "img2dataset", tmp_path, "--source", "laion_400m")
    assert made["ok"] and made["requests"] == 0 and made["files_written"] == 8
    assert made["sources"]["laion_400m"]["kept"] == 24 and made["unread"] == {}
    lines = pmd("order", tmp_path, "--count", "30").stdout.splitlines()
    assert len({line.partition("\t")[2] for line in lines}) == 24
    assert lines[0].startswith("0\tlaion_400m-0000")
    assert pmd_json("verify", tmp_path) == {"ok": True, "files": 7, "bad": []}
    shown = run_here("show", tmp_path, "laion_400m-000020011", "laion_400m-000000003")["samples"]
    assert [(one["shard"], one["status"]) for one in shown] == [
        ("shards/laion_400m/00002.tar", "success"),
        ("shards/laion_400m/00000.tar", "failed_to_download"),
    ]
    assert len(run_here("show", tmp_path, "--count", "5")["samples"]) == 5
    status = run_here("status", tmp_path)
    assert status["ok"] and status["root"] == made["root"]
    assert status["sources"]["laion_400m"]["rows"] == 36
    run_here("show", tmp_path, "laion_400m-none", code=2)
    run_here("repair", tmp_path, code=2)


def test_a_person_is_told_what_came_of_it(tmp_path: Path) -> None:
    download(tmp_path, 1)
    said = pmd("import", "img2dataset", tmp_path).stdout
    assert "http_404 1" in said and "(3 files written)" not in said and "(4 files written)" in said
    assert "(nothing to write)" in pmd("import", "img2dataset", tmp_path).stdout


@needs_img2dataset
def test_what_img2dataset_itself_writes_is_read(tmp_path: Path) -> None:
    with Web() as web:
        for n in range(6):
            web.serve(HOST, f"/{n}.jpg", PICTURES[n])
        lines = [f"http://{web.http}/{n}.jpg\tpicture {n}\n" for n in range(8)]
        (tmp_path / "list.tsv").write_text("url\tcaption\n" + "".join(lines))
        given = {"url_list": str(tmp_path / "list.tsv"), "output_folder": str(tmp_path / "out")}
        given |= {"input_format": "tsv", "url_col": "url", "caption_col": "caption"}
        given |= {"output_format": "webdataset", "image_size": 48, "number_sample_per_shard": 4}
        given |= {"processes_count": 1, "thread_count": 4, "disallowed_header_directives": []}
        (tmp_path / "run.py").write_text(
            f"import img2dataset\nif __name__ == '__main__': img2dataset.download(**{given!r})\n"
        )
        environment = os.environ | {"NO_ALBUMENTATIONS_UPDATE": "1"}
        environment.pop("PYTHONPATH", None)
        subprocess.run([PYTHON, tmp_path / "run.py"], check=True, capture_output=True, env=environment)
    got = imported(tmp_path / "out").lock.sources["img2dataset"].got
    assert (got["rows"], got["kept"], got["dropped"]) == (8, 6, {"http_404": 2})
    assert {sample.caption for sample in epoch_of(tmp_path / "out")} == {f"picture {n}" for n in range(6)}
    kept = [row for n in range(2) for row in index_of(tmp_path / "out", n) if row["status"] == "success"]
    served = {hashlib.sha256(body).hexdigest() for body in PICTURES[:6]}
    assert {row["sha256"] for row in kept} == served
    assert {(row["width"], row["original_width"]) for row in kept} == {(48, 96)}


# Once more


def states(folder: Path) -> dict[str, int]:
    return {str(path): path.lstat().st_mtime_ns for path in folder.rglob("*") if path.name != ".lock"}


def test_images_alone_need_no_caption(tmp_path: Path) -> None:
    """As ImageNet's tars have them: a picture and its class."""
    (tmp_path / "tars").mkdir()
    for shard in range(2):
        with webdataset.TarWriter(str(tmp_path / "tars" / f"{shard}.tar")) as tar:
            for n in range(5):
                tar.write({"__key__": f"n{shard}{n}", "jpg": image(shard, n), "cls": n})
    told = pmd_json("import", "images", tmp_path / "tars", "--out", tmp_path / "out", "--source", "imagenet")
    assert told["sources"]["imagenet"]["images"] == 10
    stream = Stream(tmp_path / "out")
    found = stream.read(0, np.arange(10))
    assert {sample.caption for sample in found} == {""} and len({sample.key for sample in found}) == 10
    assert {sample.image for sample in found} == {image(shard, n) for shard in range(2) for n in range(5)}
    feed = Feed(stream, batch=5)
    for batch in feed:
        feed.delivered(batch, stream.read(batch.epoch, batch.positions))
    assert prove(feed, stream).count == 10
    assert pmd_json("verify", tmp_path / "out")["ok"]
    pmd("import", "img2dataset", tmp_path / "tars", "--out", tmp_path / "out", code=3)
    pmd("import", "photos", tmp_path / "tars", code=2)


def test_a_second_run_writes_nothing(tmp_path: Path) -> None:
    first = imported(download(tmp_path))
    before = states(tmp_path)
    again = imported(tmp_path)
    assert (again.files_written, again.lock, again.unread) == (0, first.lock, first.unread)
    assert states(tmp_path) == before


@pytest.mark.parametrize("workers", [1, 4])
def test_the_root_depends_on_the_tars_alone(tmp_path: Path, workers: int) -> None:
    # Each tar with the same names: keys are given by tar order.
    for n in range(6):
        write_tar(tmp_path / f"a/{n}.tar", [*sample("0", n), *sample("1", n), *sample("x/y", n)])
    shutil.copytree(tmp_path / "a", tmp_path / "elsewhere/b")
    one = imported(tmp_path / "a", workers=1)
    other = imported(tmp_path / "elsewhere/b", out=tmp_path / "out", workers=workers)
    assert one.lock == other.lock
    assert len({sample.key for sample in epoch_of(tmp_path / "out")}) == 18


def test_an_import_that_was_stopped_goes_on_to_the_same_root(tmp_path: Path) -> None:
    for n in range(4):
        write_tar(tmp_path / f"a/{n}.tar", [*sample("0", n), *sample("1", n)])
    whole = imported(tmp_path / "a", out=tmp_path / "whole")
    imported(tmp_path / "a", out=tmp_path / "cut")
    (tmp_path / "cut/lock.json").unlink()
    for gone in ("00002.tar", "00002.parquet", "00003.tar", "00003.parquet"):
        (tmp_path / "cut/shards/img2dataset" / gone).unlink()
    resumed = imported(tmp_path / "a", out=tmp_path / "cut")
    assert resumed.lock == whole.lock and resumed.files_written == 5


def flip(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


def test_changed_files_are_refused_by_name(tmp_path: Path) -> None:
    download(tmp_path / "a")
    imported(tmp_path / "a", out=tmp_path / "out")

    def refused(change: Callable[[Path], object]) -> str:
        copy = Path(shutil.copytree(tmp_path / "a", tmp_path / "b"))
        change(copy)
        said = run_here("import", "img2dataset", copy, "--out", tmp_path / "out", code=3)["error"]
        imported(copy, out=tmp_path / "fresh")
        shutil.rmtree(copy)
        shutil.rmtree(tmp_path / "fresh")
        return said

    before = states(tmp_path / "out")
    assert "00001.tar: sha256 is" in refused(lambda copy: flip(copy / "00001.tar", 700))
    said = refused(lambda copy: (copy / "00002.parquet").unlink())
    assert "00002.parquet is not what it was" in said and "--out of its own" in said
    assert "has 2 tars" in refused(lambda copy: (copy / "00002.tar").unlink())
    assert "has 4 tars" in refused(lambda copy: write_tar(copy / "00003.tar", sample("0")))
    said = refused(lambda copy: (copy / "00001.tar").rename(copy / "1.tar"))
    assert "00002.tar is tar number 1 of its folder" in said and "that was 00001.tar" in said
    assert states(tmp_path / "out") == before
    assert imported(tmp_path / "a", out=tmp_path / "out").files_written == 0, "nothing was spoilt by it"


def test_where_tars_were_moved_the_links_follow_and_the_root_stays(tmp_path: Path) -> None:
    first = imported(download(tmp_path / "a"), out=tmp_path / "out")
    (tmp_path / "a").rename(tmp_path / "b")
    assert len(pmd_json("verify", tmp_path / "out", code=1)["bad"]) == 3
    again = imported(tmp_path / "b", out=tmp_path / "out")
    assert (again.lock, again.files_written) == (first.lock, 3)
    assert len(epoch_of(tmp_path / "out")) == 24


def test_an_index_that_was_changed_is_told(tmp_path: Path) -> None:
    imported(download(tmp_path))
    index = tmp_path / "shards/img2dataset/00001.parquet"
    whole = index.read_bytes()
    flip(index, 100)
    with pytest.raises(Refused, match=r"see `pmd verify`"):
        imported(tmp_path)
    index.write_bytes(whole[:-20])
    with pytest.raises(Damaged, match=r"00001\.parquet: .*; delete it and run the same line again"):
        imported(tmp_path)
    index.unlink()
    assert imported(tmp_path).files_written == 1 and index.read_bytes() == whole


def test_another_corpus_is_left_alone(tmp_path: Path) -> None:
    download(tmp_path / "a", 1)
    locked(tmp_path / "out", {"coco": (3,)})
    before = states(tmp_path / "out")
    run_here("import", "img2dataset", tmp_path / "a", "--out", tmp_path / "out", code=3)
    assert states(tmp_path / "out") == before
    imported(tmp_path / "a", out=tmp_path / "mine")
    with pytest.raises(Refused, match="another definition"):
        imported(tmp_path / "a", out=tmp_path / "mine", source="other")


def test_what_cannot_be_imported_is_told(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(BadRequest, match=r"no \.tar in it"):
        imported(tmp_path / "empty")
    for arguments in (
        ("img2dataset", tmp_path / "nowhere"),
        ("img2dataset", tmp_path / "empty"),
        ("laion", download(tmp_path / "a", 1)),
        ("img2dataset", tmp_path / "a", "--source", "../x"),
        ("img2dataset", tmp_path / "a", "--out", "s3://bucket/x"),
    ):
        assert run_here("import", *arguments, code=2)["ok"] is False
    assert not [*(tmp_path / "empty").iterdir()]
    assert sorted(path.suffix for path in (tmp_path / "a").iterdir()) == [".json", ".parquet", ".tar"]


# Damage


def test_verify_names_the_damaged_image_by_its_key(tmp_path: Path) -> None:
    imported(download(tmp_path))
    hit = next(row for row in index_of(tmp_path, 1) if row["key"].endswith("0004"))
    flip(tmp_path / "00001.tar", hit["offset"] + hit["size"] // 2)
    (bad,) = pmd_json("verify", tmp_path, code=1)["bad"]
    assert (bad["path"], bad["sample"]) == ("shards/img2dataset/00001.tar", "img2dataset-000010004")
    assert "image is damaged" in bad["why"]


def test_verify_tells_damage_outside_of_images_of_the_tar(tmp_path: Path) -> None:
    imported(download(tmp_path))
    flip(tmp_path / "00002.tar", 5)
    (bad,) = pmd_json("verify", tmp_path, code=1)["bad"]
    assert (bad["path"], bad["sample"]) == ("shards/img2dataset/00002.tar", None)
    (tmp_path / "00002.tar").unlink()
    (bad,) = pmd_json("verify", tmp_path, code=1)["bad"]
    assert bad["why"] == "it is missing"


def cut(tmp_path: Path, at: int) -> list[str]:
    """How the samples of a tar of three end when it ends there."""
    whole = write_tar(tmp_path / "whole", [*sample("0"), *sample("1"), *sample("2")]).read_bytes()
    folder = tmp_path / str(at)
    folder.mkdir()
    (folder / "00000.tar").write_bytes(whole[:at])
    imported(folder)
    return ends(folder)


def test_of_a_cut_tar_what_lies_before_is_kept(tmp_path: Path) -> None:
    size = 2 * 512 + -(-len(PICTURES[0]) // 512) * 512 + 512  # of a sample
    assert cut(tmp_path, 3 * size) == ["success"] * 3, "no end mark is no loss"
    assert cut(tmp_path, 2 * size) == ["success"] * 2
    assert cut(tmp_path, size + 600) == ["success", "body_truncated"]
    assert cut(tmp_path, 2 * size - 510) == ["success", "body_truncated"], "in the caption"
    assert cut(tmp_path, 2 * size - 503) == ["success"] * 2, "in the zeros behind it"
    assert cut(tmp_path, 2 * size + 100) == ["success"] * 2 + ["body_truncated"], "in a header"
    assert cut(tmp_path, 0) == []


def test_behind_a_damaged_header_all_is_lost_and_told(tmp_path: Path) -> None:
    tar = write_tar(tmp_path / "00000.tar", [*sample("0"), *sample("1"), *sample("2")])
    size = len(tar.read_bytes().partition(b"1.jpg")[0])
    flip(tar, size)
    imported(tmp_path)
    assert ends(tmp_path) == ["success", "input_malformed"]
    assert f"byte {size}" in index_of(tmp_path)[1]["error_message"]
    assert str(tmp_path) not in index_of(tmp_path)[1]["error_message"], "it would be in the root"


def test_what_is_listed_and_not_there_has_an_end_too(tmp_path: Path) -> None:
    download(tmp_path, 1)
    data = (tmp_path / "00000.tar").read_bytes()
    (tmp_path / "00000.tar").write_bytes(data[: data.index(b"000000006.jpg") + 700])
    got = imported(tmp_path).lock.sources["img2dataset"].got
    assert got["rows"] == 12 and got["kept"] == 4
    assert got["dropped"] == LOST | {"body_truncated": 1, "not_in_archive": 3}


def test_a_row_without_a_name_is_not_lost_behind_a_damaged_header(tmp_path: Path) -> None:
    flip(write_tar(tmp_path / "00000.tar", sample("0")), 5)
    pq.write_table(pa.Table.from_pylist([told(0, 0) | {"key": ""}], LIST), tmp_path / "00000.parquet")
    imported(tmp_path)
    assert ends(tmp_path) == ["input_malformed", "not_in_archive"]


def test_a_list_that_is_none_is_named(tmp_path: Path) -> None:
    download(tmp_path, 2)
    whole = (tmp_path / "00001.parquet").read_bytes()
    for data in (b"PAR1 garbage PAR1", whole[: len(whole) // 2], b"", whole[:50] + bytes(200) + whole[250:]):
        (tmp_path / "00001.parquet").write_bytes(data)
        said = run_here("import", "img2dataset", tmp_path, code=1)["error"]
        assert "00001.parquet: not a list of img2dataset" in said and "delete the list" in said
    (tmp_path / "00001.parquet").unlink()
    assert imported(tmp_path).lock.sources["img2dataset"].got["rows"] == 12 + 8
    pq.write_table(pa.table({"key": ["other"], "score": [1.0]}), tmp_path / "00002.parquet")
    write_tar(tmp_path / "00002.tar", sample("0"))
    imported(tmp_path, out=tmp_path / "out")
    assert ends(tmp_path / "out", 2) == ["success"], "somebody else's list says nothing"


# Hostile and odd


class _Marks:
    """Unpickled, it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def __reduce__(self) -> tuple[Any, ...]:
        return open, (self.path, "w")


def test_nothing_in_a_tar_is_run(tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    pickled = pickle.dumps(_Marks(marker))
    code = f"open({str(marker)!r}, 'w')".encode()
    pickle.loads(pickled).close()
    assert marker.exists(), "it would"
    marker.unlink()
    array = io.BytesIO()
    np.save(array, np.array([_Marks(marker)], object), allow_pickle=True)
    evil = {"pkl": pickled, "pth": pickled, "pyd": pickled, "py": code, "npy": array.getvalue(), "cls": b"7"}
    write_tar(tmp_path / "in/00000.tar", [*sample("0", 0, **evil), *sample("1", 1, **evil)])
    made = pmd_json("import", "img2dataset", tmp_path / "in")
    pmd("verify", tmp_path / "in")
    assert [sample.image for sample in sorted(epoch_of(tmp_path / "in"))] and not marker.exists()
    assert made["sources"]["img2dataset"]["kept"] == 2
    assert made["unread"] == dict.fromkeys(sorted(evil), 2)


def test_a_name_that_comes_again_is_one_sample(tmp_path: Path) -> None:
    members = [*sample("0", 0), *sample("1", 1), *sample("0", 2), ("1.jpg", PICTURES[3]), *sample("2", 4)]
    write_tar(tmp_path / "00000.tar", members)
    imported(tmp_path)
    assert ends(tmp_path) == ["success"] * 2 + ["input_malformed"] * 2 + ["success"]
    rows = index_of(tmp_path)
    assert [row["key"] for row in rows if row["status"] == "success"] == [
        f"img2dataset-{n}" for n in range(3)
    ]
    assert len({row["key"] for row in rows}) == 5
    assert rows[0]["stored_sha256"] == hashlib.sha256(PICTURES[0]).hexdigest(), "the first one stays"


def test_names_that_are_no_keys_get_one_that_is(tmp_path: Path) -> None:
    members = [*sample("Big", 0), *sample("../../x", 1), *sample("/etc/passwd", 2), *sample("ü", 3)]
    members += [
        *sample("a/0", 4, json=b'{"url": "http://a.example/0"}'),
        *sample("n" * 90, 5),
        *sample("0", 6),
    ]
    write_tar(tmp_path / "in/00000.tar", members, format=tarfile.PAX_FORMAT)
    imported(tmp_path / "in")
    rows = index_of(tmp_path / "in")
    assert ends(tmp_path / "in") == ["success"] * 7
    assert len({row["key"] for row in rows}) == 7 and all(KEY.match(row["key"]) for row in rows)
    assert rows[0]["key"] == url_key("img2dataset", "00000.tar/Big")
    assert rows[4]["key"] == url_key("img2dataset", "http://a.example/0")
    assert rows[6]["key"] == "img2dataset-0"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in"]


@pytest.mark.parametrize("format", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_long_names_are_read(tmp_path: Path, format: int) -> None:
    folder = "long/" * 40
    write_tar(tmp_path / "00000.tar", [*sample(f"{folder}0", 0), *sample(f"{folder}1", 1)], format=format)
    imported(tmp_path)
    assert [sample.image for sample in epoch_of(tmp_path)] != [] and ends(tmp_path) == ["success"] * 2
    assert json.loads(index_of(tmp_path)[1]["meta"])["key"].startswith("long/long/")


def odd(name: str, type: bytes, link: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = type, link
    return info


def test_links_devices_and_folders_are_no_images(tmp_path: Path) -> None:
    members: list[Member] = [odd("folder/", tarfile.DIRTYPE), *sample("0", 0)]
    for name, type in (("1", tarfile.SYMTYPE), ("2", tarfile.LNKTYPE)):
        members += [odd(f"{name}.jpg", type, "0.jpg"), (f"{name}.txt", b"linked")]
    for name, type in (("3", tarfile.CHRTYPE), ("4", tarfile.FIFOTYPE), ("5", tarfile.GNUTYPE_SPARSE)):
        members += [odd(f"{name}.jpg", type), (f"{name}.txt", b"odd")]
    members += [("6.jpg", PICTURES[6]), odd("6.txt", tarfile.SYMTYPE, "/etc/passwd"), *sample("7", 7)]
    members += [odd("8.jpg", tarfile.SYMTYPE, "/etc/passwd")]
    write_tar(tmp_path / "00000.tar", members, format=tarfile.GNU_FORMAT)
    imported(tmp_path)
    assert ends(tmp_path) == [
        *("success", *["input_no_image"] * 5, "input_no_caption", "success", "input_no_image")
    ]


def test_a_link_that_claims_a_size_is_not_taken_for_a_cut_file(tmp_path: Path) -> None:
    linked = odd("0.txt", tarfile.SYMTYPE, "elsewhere")
    linked.size = 1 << 30
    write_tar(tmp_path / "00000.tar", [("0.jpg", PICTURES[0]), linked, *sample("1", 1)])
    imported(tmp_path)
    assert ends(tmp_path) == ["input_no_caption", "success"]


def one(tmp_path: Path, **parts: bytes | None) -> dict[str, Any]:
    """The row of one sample, whose members are these."""
    whole = {"jpg": PICTURES[0], "txt": b"a caption"} | parts
    members = [(f"0.{ending}", data) for ending, data in whole.items() if data is not None]
    with tempfile.TemporaryDirectory(dir=tmp_path) as folder:
        write_tar(Path(folder) / "00000.tar", [*members, *sample("sound")])
        imported(Path(folder))
        first, second = index_of(Path(folder))
        assert second["status"] == "success"
        return first


DEEP = b"[" * 100_000
PNG_OF_GIF = b"GIF89a" + bytes(40)


@pytest.mark.parametrize(
    ("parts", "end"),
    [
        ({"jpg": None}, "input_no_image"),
        ({"jpg": b""}, "body_empty"),
        ({"jpg": b"<html>no picture</html>"}, "not_an_image"),
        ({"jpg": PNG_OF_GIF}, "unsupported_format"),
        ({"jpg": PICTURES[0][:-200]}, "body_truncated"),
        (
            {"jpg": PICTURES[0].replace(b"\xff\xc0\0\x11\x08\0\x40", b"\xff\xc0\0\x11\x08\0\0")},
            "decode_failed",
        ),
        (
            {"jpg": PICTURES[0].replace(b"\xff\xc0\0\x11\x08\0\x40", b"\xff\xc0\0\x11\x08\xff\xff")},
            "decode_limit",
        ),
        ({"txt": None}, "input_no_caption"),
        ({"txt": b" \n"}, "caption_empty"),
        ({"txt": b"\xff\xfe"}, "input_malformed"),
        ({"txt": b"x" * 10_001}, "caption_long"),
        ({"txt": b"x" * 100_000}, "caption_long"),
        ({"txt": None, "json": b'{"caption": 7}'}, "input_no_caption"),
        ({"txt": None, "json": b'{"caption": "\\ud800 half"}'}, "input_malformed"),
    ],
)
def test_what_cannot_be_used_says_why(tmp_path: Path, parts: dict[str, bytes | None], end: str) -> None:
    row = one(tmp_path, **parts)
    assert row["reason"] == end and row["status"] != "success"
    assert row["caption"] is None and row["offset"] is None


@pytest.mark.parametrize(
    "text",
    [
        *(
            b"",
            b"{",
            b"[]",
            b"null",
            b"\x80\x04\x95",
            DEEP,
            b"\xff" * 99,
            b'{"url": 7, "sha256": [], "key": {}}',
        ),
        b'{"original_width": true, "original_height": 1e999, "url": "http://\\u001b[2J", "sha256": "x"}',
        b'{"original_width": 10, "original_height": -1, "sha256": "' + b"0" * 65 + b'"}',
        b'{"width": 1' + b"0" * 5_000 + b"}",
        b'{"x": "' + b"y" * MOST_JSON + b'"}',
    ],
    ids=range(12),
)
def test_whatever_a_json_is_its_sample_is_used(tmp_path: Path, text: bytes) -> None:
    row = one(tmp_path, json=text)
    assert row["status"] == "success" and row["caption"] == "a caption"
    assert (row["url"], row["sha256"], row["original_width"], row["original_height"]) == (None, None, 96, 64)


def test_json_as_python_writes_it_is_read(tmp_path: Path) -> None:
    text = b'{"similarity": NaN, "caption": "of the json", "url": "http://a.example/", "sha256": "%s"}'
    row = one(tmp_path, txt=None, json=text % (b"AB" * 32))
    assert (row["caption"], row["sha256"]) == ("of the json", "ab" * 32)
    assert one(tmp_path, txt=b" two\r\nlines\x1b[2J\x00 ")["caption"] == "two lines [2J"


def test_samples_are_those_that_webdataset_takes(tmp_path: Path) -> None:
    names = ("0", "a/0", "a.b/0", "./1", "x y", "../2", "3")
    members = [
        member for n, name in enumerate(names) for member in sample(name, n, **{"seg.png": b"", "CLS": b"7"})
    ]
    members += [("no ending", b""), *sample("4", 7)]
    tar = write_tar(tmp_path / "00000.tar", members)
    with open(tar, "rb") as file:
        theirs = [*group_by_keys(tar_file_expander([{"url": "00000.tar", "stream": file}]))]
    ours = [*samples(OpenFile(tar), unread := Counter())]
    assert [one.name for one in ours] == [one["__key__"].removeprefix("./") for one in theirs]
    for mine, its in zip(ours, theirs, strict=True):
        assert tar.read_bytes()[mine.row["offset"] :][: mine.row["size"]] == its["jpg"]
        assert mine.row["caption"].encode() == its["txt"]
    assert unread == {"seg.png": 7, "cls": 7, "other": 1}


def test_an_image_is_png_or_webp_as_well_and_one_of_several(tmp_path: Path) -> None:
    from PIL import Image

    for ending, format in (("png", "PNG"), ("webp", "WEBP"), ("JPEG", "JPEG")):
        file = io.BytesIO()
        Image.new("RGB", (33, 20), "red").save(file, format)
        row = one(tmp_path, jpg=None, **{ending: file.getvalue()})
        assert (row["status"], row["width"], row["height"]) == ("success", 33, 20)
    row = one(tmp_path, png=b"not looked at")
    assert row["stored_sha256"] == hashlib.sha256(PICTURES[0]).hexdigest()


def test_what_is_told_of_a_hostile_tar_is_bounded(tmp_path: Path) -> None:
    members: list[Member] = [(f"{n}.e{n}", b"") for n in range(3 * MOST_ENDINGS)]
    members += [(f"x.{'e' * 60}", b""), ("no ending", b""), (".hidden", b"")]
    unread = Counter[str]()
    found = [*samples(OpenFile(write_tar(tmp_path / "0.tar", members)), unread)]
    assert len(found) == 3 * MOST_ENDINGS + 1 and len(unread) == MOST_ENDINGS + 1
    assert sum(unread.values()) == len(members)


def test_a_tar_that_is_none_is_told(tmp_path: Path) -> None:
    (tmp_path / "0.tar").write_bytes(b"\x1f\x8b" + bytes(2_000))
    (tmp_path / "1.tar").write_bytes(b"")
    imported(tmp_path)
    assert ends(tmp_path, 0) == ["input_malformed"] and ends(tmp_path, 1) == []


def test_a_file_in_place_of_a_link_is_not_replaced(tmp_path: Path) -> None:
    download(tmp_path, 1)
    (tmp_path / "shards/img2dataset").mkdir(parents=True)
    (tmp_path / "shards/img2dataset/00000.tar").write_bytes(b"mine")
    with pytest.raises(Refused, match="in the way"):
        imported(tmp_path)
    assert (tmp_path / "shards/img2dataset/00000.tar").read_bytes() == b"mine"


def test_a_tar_that_is_written_to_meanwhile_is_not_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    download(tmp_path, 1)

    def late(path: Path, there: set[str], *, first: int) -> Iterable[Found]:
        os.utime(tmp_path / "00000.tar", (1, 1))
        return ()

    monkeypatch.setattr("pipelines.imported.lost", late)
    with pytest.raises(Damaged, match="was written to"):
        imported(tmp_path)
    assert not (tmp_path / "lock.json").exists()


def test_errors_of_img2dataset_have_reasons_of_ours(tmp_path: Path) -> None:
    errors = {
        "hash mismatch": Reason.PROTOCOL_ERROR,
        "timed out": Reason.TIMEOUT,
        None: Reason.PROTOCOL_ERROR,
    }
    rows = [{"key": str(n), "status": "failed_to_download", "error_message": e} for n, e in enumerate(errors)]
    rows += [{"key": "9", "status": "\x1b", "caption": " "}, {"key": None, "status": None}]
    pq.write_table(pa.Table.from_pylist(rows, LIST), tmp_path / "list.parquet")
    found = [*img2dataset_list.lost(tmp_path / "list.parquet", {"7"}, first=5)]
    assert [one.row["reason"] for one in found][:3] == [*errors.values()]
    assert {one.row["status"] for one in found} == {"failed_to_download"}
    assert [one.row["captions"][0]["row"] for one in found] == [5, 6, 7, 8, 9]


# Laws


@given(st.lists(st.lists(st.tuples(st.sampled_from(["", "0", "1", "A/b", "x" * 99]), st.booleans()))))
def test_keys_are_unique_whatever_others_call_their_samples(tars: list[list[tuple[str, bool]]]) -> None:
    keys, begun, given_keys = Keys("s"), Keys("s"), list[str]()
    for number, tar in enumerate(tars):
        found = [
            Named(name, "http://a.example/" if with_url else None, name in [before for before, _ in tar[:n]])
            for n, (name, with_url) in enumerate(tar)
        ]
        made = keys.give(f"{number}.tar", found)
        assert begun.give(f"{number}.tar", found) == made, "also where the earlier ones were read again"
        begun = Keys("s")
        given_keys += made
        begun.taken(given_keys)
    assert len({*given_keys}) == len(given_keys) and all(KEY.match(key) for key in given_keys)


PART = st.sampled_from(
    [
        *[("jpg", PICTURES[0]), ("jpg", b"no"), ("png", PICTURES[1]), ("txt", b"text"), ("txt", b"")],
        *[("json", b'{"caption": "told"}'), ("json", b"{"), ("pkl", b"\x80"), ("", b"")],
    ]
)
NAMES = st.sampled_from(["0", "0", "1", "2", "f/0", "../0", "A"])


@settings(max_examples=60, deadline=None)
@given(
    groups=st.lists(st.tuples(NAMES, st.lists(PART, max_size=4)), max_size=6),
    ending=st.one_of(st.none(), st.integers(0, 20_000)),
    change=st.one_of(st.none(), st.tuples(st.integers(0, 20_000), st.integers(1, 255))),
)
def test_each_sample_has_exactly_one_end(
    groups: list[tuple[str, list[tuple[str, bytes]]]], ending: int | None, change: tuple[int, int] | None
) -> None:
    members = [(f"{name}.{end}" if end else name, data) for name, parts in groups for end, data in parts]
    with tempfile.TemporaryDirectory() as folder:
        tar = write_tar(Path(folder) / "00000.tar", members)
        data = bytearray(tar.read_bytes())
        if change is not None:
            data[change[0] % len(data)] ^= change[1]
        tar.write_bytes(data[:ending])
        got = imported(Path(folder)).lock.sources["img2dataset"].got
        rows = index_of(Path(folder))
        delivered = epoch_of(Path(folder)) if got["images"] else []
    assert got["rows"] == got["kept"] + sum(got["dropped"].values()) == len(rows)
    assert len({row["key"] for row in rows}) == len(rows)
    for found in rows:
        assert (found["status"] == "success") == (found["reason"] is None) == (found["offset"] is not None)
    kept = {row["key"]: row for row in rows if row["status"] == "success"}
    assert len(delivered) == len(kept) == got["images"] == got["pairs"]
    for sample in delivered:
        assert hashlib.sha256(sample.image).hexdigest() == kept[sample.key]["stored_sha256"]
        assert sample.caption == kept[sample.key]["caption"]
    if change is None and ending is None:
        assert len(rows) == runs(name for name, _ in members)


def runs(names: Iterable[str]) -> int:
    """Samples by webdataset's rule, where a part that comes again begins another."""
    count, last, endings = 0, "", set[str]()
    for name in names:
        folder, _, file_name = name.rpartition("/")
        stem, dot, ending = file_name.partition(".")
        if dot:
            if f"{folder}/{stem}" != last or ending in endings - {"pkl"}:
                count, last, endings = count + 1, f"{folder}/{stem}", set()
            endings.add(ending)
    return count
