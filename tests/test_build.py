"""The whole road, as its users walk it: `pmd` as a process, on a real web, with real Ray and real kills."""

import contextlib
import importlib
import io
import json
import os
import shutil
import signal
import socket
import subprocess
import tarfile
import tempfile
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pmd.records import key_hash
from tests.small import COCO_IMAGES, PMD, Small, photo, pmd, pmd_json, publish
from tests.web import Fault, Web


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Small]:
    with Web() as web:
        yield publish(tmp_path_factory.mktemp("annotations"), web)


@pytest.fixture(scope="module")
def built(small: Small, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """An output built inline, and what the build said. Tests that damage it take a copy."""
    out = tmp_path_factory.mktemp("built")
    return out, pmd_json("build", small.corpus, "--out", out, "--inline")


def test_every_annotation_row_ends_in_exactly_one_outcome(
    small: Small, built: tuple[Path, dict[str, Any]]
) -> None:
    out, told = built
    assert told["ok"] and told["requests"] > 0
    for source, got in told["sources"].items():
        assert got["rows"] == small.rows[source]
        assert got["dropped"] == small.dropped[source]
        assert got["rows"] == got["kept"] + sum(got["dropped"].values())
        assert got["images"] == small.images[source]
        rows = _indexed_rows(out, source) + _rejected_rows(out, source)
        assert sorted(rows) == list(range(small.rows[source])), "each row number once"


def _indexed_rows(out: Path, source: str) -> list[int]:
    tables = [pq.read_table(path) for path in sorted((out / "shards" / source).glob("*.parquet"))]
    return [
        caption["row"]
        for table in tables
        for captions in table["captions"].to_pylist()
        for caption in captions
    ]


def _rejected_rows(out: Path, source: str) -> list[int]:
    return pq.read_table(out / "plan" / source / "rejected.parquet")["row"].to_pylist()


@pytest.mark.parametrize("packing", ["zip", "tar", "tar.gz"])
def test_images_out_of_an_archive_give_the_corpus_that_their_addresses_give(
    packing: str,
    small: Small,
    built: tuple[Path, dict[str, Any]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PMD_LIBRARY", str(tmp_path / "library"))
    # As COCO has them, but for the two that the web does not give either.
    members = {
        f"train2017/{number:012d}.jpg": photo(number) for number in range(COCO_IMAGES) if number not in (3, 4)
    }
    archive = tmp_path / f"images.{packing}"
    if packing == "zip":
        with zipfile.ZipFile(archive, "w") as file:
            for name, data in members.items():
                file.writestr(name, data)
    else:
        with tarfile.open(archive, "w:gz" if packing == "tar.gz" else "w") as file:
            for name, data in members.items():
                entry = tarfile.TarInfo(name)
                entry.size = len(data)
                file.addfile(entry, io.BytesIO(data))
    corpus = small.corpus.with_name(f"archive-{packing}.toml")
    text = small.corpus.read_text()
    corpus.write_text(text.replace("[source.coco]", f'[source.coco]\narchive = ["{archive}"]'))
    small.web.forget()
    told = pmd_json("build", corpus, "--out", tmp_path / "out", "--inline")
    assert told["ok"]
    theirs, ours = ([*sorted((out / "shards" / "coco").glob("*"))] for out in (built[0], tmp_path / "out"))
    assert [path.name for path in ours] == [path.name for path in theirs]
    for path, other in zip(ours, theirs, strict=True):
        if path.suffix == ".tar":
            assert path.read_bytes() == other.read_bytes()
        else:  # nobody's consent was asked for what is in an archive
            table, other_table = pq.read_table(path), pq.read_table(other)
            assert _consents_of_images(table) == {None} and _consents_of_images(other_table) == {"yes"}
            assert table.drop_columns("consent").equals(other_table.drop_columns("consent"))
    asked = {request.path for request in small.web.requests if request.host == "images.cocodataset.org"}
    asked -= {"/robots.txt", "/ai.txt", "/.well-known/tdmrep.json"}
    assert asked == {"/train2017/000000000003.jpg", "/train2017/000000000004.jpg"}


def _consents_of_images(table: pa.Table) -> set[str | None]:
    rows = table.select(["status", "consent"]).to_pylist()
    return {row["consent"] for row in rows if row["status"] == "success"}


def test_a_record_lies_in_the_shard_and_place_that_its_key_says(built: tuple[Path, dict[str, Any]]) -> None:
    out, _ = built
    paths = sorted((out / "shards" / "cc3m").glob("*.parquet"))
    assert len(paths) > 2
    for number, path in enumerate(paths):
        hashes = [key_hash(key) for key in pq.read_table(path)["key"].to_pylist()]
        assert hashes == sorted(hashes)
        assert {value % len(paths) for value in hashes} <= {number}


def test_a_finished_build_run_again_asks_the_web_nothing_and_writes_nothing(
    small: Small, built: tuple[Path, dict[str, Any]]
) -> None:
    out, told = built
    before = _files(out)
    small.web.forget()
    again = pmd_json("build", small.corpus, "--out", out, "--workers", "2")
    assert (again["requests"], again["files_written"]) == (0, 0)
    assert small.web.count() == 0
    assert again["root"] == told["root"]
    assert _files(out) == before


def _files(out: Path) -> dict[str, int]:
    return {
        str(path): path.stat().st_mtime_ns
        for path in sorted(out.rglob("*"))
        if path.is_file() and path.name != ".lock"
    }


@pytest.mark.parametrize("workers", [1, 2])
def test_any_number_of_ray_workers_gives_the_same_corpus(
    workers: int, small: Small, built: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    told = pmd_json("build", small.corpus, "--out", tmp_path, "--workers", str(workers))
    assert told["root"] == built[1]["root"]
    assert pmd_json("verify", tmp_path)["ok"]


class Halfway:
    """A build that is let go half-way: the web holds it there, so that a kill always finds it at work."""

    def __init__(self, small: Small, out: Path, *where: str):
        self._web = small.web
        self._web.forget()
        self._held = [("a.example", f"/{row}.jpg") for row in (20, 30, 40, 50)]
        for host, path in self._held:
            self._web.fault(host, path, Fault.HANG)
        self.process = subprocess.Popen(
            [PMD, "build", small.corpus, "--out", out, *where],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )
        deadline = time.monotonic() + 60
        while not any(self._web.count(*held) for held in self._held):
            assert self.process.poll() is None, self.process.stderr and self.process.stderr.read()
            assert time.monotonic() < deadline, "the build never came to the images that hang"
            time.sleep(0.05)

    def workers(self) -> list[psutil.Process]:
        """The Ray workers that fetch; not those that wait, and not the board."""
        children = psutil.Process(self.process.pid).children(recursive=True)
        return [child for child in children if child.name().startswith("ray::download_file")]

    def heal(self) -> None:
        for host, path in self._held:
            self._web.heal(host, path)

    def end(self) -> int:
        self.heal()
        _, _ = self.process.communicate(timeout=120)
        return self.process.returncode


@pytest.mark.parametrize("where", [("--inline",), ("--workers", "2")])
def test_a_build_whose_driver_is_killed_resumes_to_the_same_corpus(
    where: tuple[str, ...], small: Small, built: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    halfway = Halfway(small, tmp_path, *where)
    workers = halfway.workers()
    assert bool(workers) == ("--workers" in where)
    halfway.process.kill()
    assert halfway.end() == -signal.SIGKILL
    assert not psutil.wait_procs(workers, timeout=30)[1], "no worker of a killed driver stays alive"
    assert not (tmp_path / "lock.json").exists()
    told = pmd_json("build", small.corpus, "--out", tmp_path, *where)
    assert told["root"] == built[1]["root"]
    assert not list(tmp_path.rglob(".*.part"))


def test_a_build_whose_worker_is_killed_goes_on_to_the_same_corpus(
    small: Small, built: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    halfway = Halfway(small, tmp_path, "--workers", "2")
    victims = halfway.workers()
    assert victims
    victims[0].kill()
    assert halfway.end() == 0
    assert json.loads((tmp_path / "lock.json").read_text())["root"] == built[1]["root"]


@pytest.mark.parametrize("where", [("--inline",), ("--workers", "2")])
def test_a_build_stopped_by_sigterm_ends_with_75_and_resumes(
    where: tuple[str, ...], small: Small, built: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    halfway = Halfway(small, tmp_path, *where)
    halfway.process.send_signal(signal.SIGTERM)
    assert halfway.process.wait(30) == 75
    assert halfway.end() == 75
    assert "--workers" in where or not list(tmp_path.rglob(".*.part"))
    assert pmd_json("build", small.corpus, "--out", tmp_path, "--inline")["root"] == built[1]["root"]
    assert not list(tmp_path.rglob(".*.part")), "what killed workers left aside is swept by the next run"


def test_a_second_run_on_a_held_output_ends_with_4_at_once(small: Small, tmp_path: Path) -> None:
    halfway = Halfway(small, tmp_path, "--inline")
    start = time.monotonic()
    done = pmd("build", small.corpus, "--out", tmp_path, "--inline", code=4)
    assert time.monotonic() - start < 5
    assert str(halfway.process.pid) in done.stderr
    halfway.process.kill()
    halfway.end()


def test_a_changed_corpus_file_is_refused_with_3_and_shows_the_change(
    small: Small, built: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    out, _ = built
    before = _files(out)
    changed = small.corpus.with_name("changed.toml")
    changed.write_text(small.corpus.read_text().replace("min_words = 2", "min_words = 3"))
    done = pmd("build", changed, "--out", out, "--inline", code=3)
    assert "corpus.text.min_words: 2 -> 3" in done.stderr
    faster = small.corpus.with_name("faster.toml")
    faster.write_text(small.corpus.read_text().replace("timeout_s = 5", "timeout_s = 9"))
    assert pmd_json("build", faster, "--out", out, "--inline")["files_written"] == 0, (
        "an operational key is free"
    )
    assert _files(out) == before


def test_a_changed_annotation_file_is_refused_with_3_and_shows_both_hashes(
    small: Small, built: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    folder = tmp_path / "annotations"
    shutil.copytree(small.corpus.parent, folder)
    table = folder / "Train_GCC-training.tsv"
    table.write_bytes(table.read_bytes() + b"one row more\thttps://a.example/1.jpg\n")
    done = pmd("build", folder / "corpus.toml", "--out", built[0], "--inline", code=3)
    assert done.stderr.count("Train_GCC-training.tsv: pinned ") == 1
    assert "found " in done.stderr


def test_annotation_files_may_move(small: Small, built: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    out = tmp_path / "out"
    shutil.copytree(built[0], out)
    shutil.copytree(small.corpus.parent, tmp_path / "moved")
    told = pmd_json("build", tmp_path / "moved" / "corpus.toml", "--out", out, "--inline")
    assert (told["root"], told["requests"]) == (built[1]["root"], 0)


def _flip(path: Path, bit: int) -> None:
    data = bytearray(path.read_bytes())
    data[bit // 8] ^= 1 << bit % 8
    path.write_bytes(bytes(data))


def test_verify_finds_any_flipped_bit_and_names_the_file(
    built: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    shutil.copytree(built[0], out)
    assert pmd_json("verify", out)["bad"] == []
    targets = [
        out / "shards/cc3m/00001.tar",
        out / "shards/coco/00000.parquet",
        out / "plan/cc3m/rejected.parquet",
    ]
    targets.append(out / "lock.json")
    for target in targets:
        for share in (0.003, 0.5, 0.97):
            bit = int(8 * target.stat().st_size * share)
            _flip(target, bit)
            found = pmd_json("verify", out, code=1)
            assert {bad["path"] for bad in found["bad"]} == {str(target.relative_to(out))}
            _flip(target, bit)
    assert pmd_json("verify", out)["ok"]


def test_verify_names_the_damaged_sample(built: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    out = tmp_path / "out"
    shutil.copytree(built[0], out)
    index = pq.read_table(out / "shards/cc3m/00001.parquet").to_pylist()
    victim = [row for row in index if row["status"] == "success"][1]
    _flip(out / "shards/cc3m/00001.tar", 8 * (victim["offset"] + 100))
    found = pmd_json("verify", out, code=1)
    assert [(bad["path"], bad["sample"]) for bad in found["bad"]] == [
        ("shards/cc3m/00001.tar", victim["key"])
    ]
    assert victim["key"] in pmd("verify", out, code=1).stdout


def test_verify_finds_a_missing_file_and_a_stranger(
    built: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    shutil.copytree(built[0], out)
    (out / "shards/coco/00000.tar").unlink()
    (out / "shards/coco/00077.tar").write_bytes(b"")
    found = {bad["path"]: bad["why"] for bad in pmd_json("verify", out, code=1)["bad"]}
    assert found == {
        "shards/coco/00000.tar": "it is missing",
        "shards/coco/00077.tar": "it is not in the lock",
    }


def test_a_raw_tar_that_rots_before_sharding_is_found_and_fetched_anew(
    small: Small, built: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    shutil.copytree(built[0], out)
    shutil.rmtree(out / "shards" / "cc3m")
    raw = pq.read_table(out / "raw/cc3m/00000.parquet").to_pylist()
    stored = next(row for row in raw if row["status"] == "success")
    _flip(out / "raw/cc3m/00000.tar", 8 * (stored["offset"] + 50))
    done = pmd("build", small.corpus, "--out", out, "--inline", code=1)
    assert "cc3m/00000" in done.stderr
    assert pmd_json("build", small.corpus, "--out", out, "--inline")["root"] == built[1]["root"]


def test_shards_survive_without_the_raw_files(
    small: Small, built: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    shutil.copytree(built[0], out)
    for stage in ("raw", "filter", "fetchlog"):
        shutil.rmtree(out / stage)
    told = pmd_json("build", small.corpus, "--out", out, "--inline")
    assert (told["root"], told["requests"], told["files_written"]) == (built[1]["root"], 0, 0)


@pytest.mark.filterwarnings("ignore::ResourceWarning")  # webdataset leaves the tars open
def test_samples_read_in_webdataset(small: Small, built: tuple[Path, dict[str, Any]]) -> None:
    webdataset: Any = importlib.import_module("webdataset")  # makes its names at run time
    tars = sorted(str(path) for path in (built[0] / "shards" / "coco").glob("*.tar"))
    dataset = webdataset.WebDataset(tars, shardshuffle=False, empty_check=False).decode("pil")
    samples = {sample["__key__"]: sample for sample in dataset}
    assert {key: [c["text"] for c in s["json"]["captions"]] for key, s in samples.items()} == small.captions
    for key, sample in samples.items():
        assert sample["txt"] == small.captions[key][0]
        assert sample["jpg"].size == (sample["json"]["width"], sample["json"]["height"]) == (128, 96)


@pytest.mark.filterwarnings("ignore::ResourceWarning")  # webdataset leaves the tars open
def test_samples_read_in_datasets(small: Small, built: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    datasets: Any = importlib.import_module("datasets")
    tars = sorted(str(path) for path in (built[0] / "shards" / "coco").glob("*.tar"))
    loaded = datasets.load_dataset(
        "webdataset", data_files={"train": tars}, split="train", cache_dir=str(tmp_path)
    )
    assert {row["__key__"]: row["txt"] for row in loaded} == {
        key: texts[0] for key, texts in small.captions.items()
    }
    assert loaded[0]["jpg"].size == (128, 96)


def test_only_and_limit_narrow_a_build(small: Small, tmp_path: Path) -> None:
    told = pmd_json("build", small.corpus, "--out", tmp_path, "--inline", "--only", "cc3m", "--limit", "10")
    assert {name: source["rows"] for name, source in told["sources"].items()} == {"cc3m": 10}
    both = pmd_json("build", small.corpus, "--out", tmp_path, "--inline", "--only", "coco", "--limit", "10")
    assert both["sources"].keys() == {"coco", "cc3m"}, "the lock keeps what was finished before"
    done = pmd("build", small.corpus, "--out", tmp_path, "--inline", "--only", "cc3m", code=3)
    assert "limit: 10 -> null" in done.stderr


def test_status_says_how_far_an_output_is(
    small: Small, built: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    told = pmd_json("status", built[0])
    assert told["ok"] and told["root"] == built[1]["root"]
    assert {name: source["pairs"] for name, source in told["sources"].items()} == {
        name: source["pairs"] for name, source in built[1]["sources"].items()
    }
    for stage in ("pin", "plan"):
        pmd(stage, small.corpus, "--out", tmp_path, "--inline")
    early = pmd_json("status", tmp_path)
    assert not early["ok"] and early["root"] is None
    assert early["sources"]["coco"]["finished"] == {"raw": 0, "filter": 0, "shards": 0}
    assert early["sources"]["coco"]["tasks"] > 1


def test_stages_by_hand_give_what_build_gives(
    small: Small, built: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    pmd("download", small.corpus, "--out", tmp_path, "--inline", code=2)
    for stage in ("pin", "plan", "download", "filter", "shard"):
        pmd(stage, small.corpus, "--out", tmp_path, "--inline")
    assert pmd_json("lock", small.corpus, "--out", tmp_path)["root"] == built[1]["root"]


def test_show_finds_a_sample_by_key_and_draws_a_sheet(
    small: Small, built: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    from PIL import Image

    told = pmd_json("show", built[0], "coco-7", "coco-3")
    assert [sample["status"] for sample in told["samples"]] == ["success", "failed_to_download"]
    assert "dropped: http_404" in pmd("show", built[0], "coco-3").stdout
    pmd("show", built[0], "--count", "8", "--sheet", tmp_path / "sheet.png")
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.width > 800
    assert "no such record" in pmd("show", built[0], "coco-99999", code=2).stderr


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("build", "nowhere.toml", "--out", "x"), "nowhere.toml: no such file"),
        (("verify", "."), "is not an output of pmd"),
        (("build", "CORPUS", "--out", "OUT", "--only", "sbu"), "--only sbu: this corpus has coco, cc3m"),
        (("build", "CORPUS", "--out", "OUT", "--inline", "--workers", "2"), "exclude each other"),
        (("build", "CORPUS"), "--out"),
        (("frobnicate",), "frobnicate"),
        (("build", "CORPUS", "--out", "OUT", "--ray", "127.0.0.1:1"), "nobody answers there"),
    ],
)
def test_a_bad_request_ends_with_2_and_says_why(
    arguments: tuple[str, ...], told: str, small: Small, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    stand_ins = {"CORPUS": str(small.corpus), "OUT": str(tmp_path / "out")}
    done = pmd(*(stand_ins.get(argument, argument) for argument in arguments), code=2)
    assert told in done.stderr


def test_an_output_that_cannot_be_written_ends_with_1_and_says_where(small: Small) -> None:
    done = pmd("build", small.corpus, "--out", "/proc/corpus", "--inline", code=1)
    assert "/proc/corpus" in done.stderr and "Traceback" not in done.stderr


def test_a_build_goes_to_an_object_store(
    small: Small, built: tuple[Path, dict[str, Any]], monkeypatch: Any
) -> None:
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        environment = {
            "AWS_ENDPOINT_URL": f"http://{host}:{port}",
            "AWS_ACCESS_KEY_ID": "x",
            "AWS_SECRET_ACCESS_KEY": "x",
        }
        for name, value in (environment | {"AWS_DEFAULT_REGION": "us-east-1"}).items():
            monkeypatch.setenv(name, value)
        import s3fs

        s3fs.S3FileSystem(skip_instance_cache=True).mkdir("builds")
        told = pmd_json("build", small.corpus, "--out", "s3://builds/small", "--inline")
        assert told["root"] == built[1]["root"]
        assert pmd_json("verify", "s3://builds/small")["ok"]
        assert pmd_json("build", small.corpus, "--out", "s3://builds/small", "--inline")["files_written"] == 0
    finally:
        server.stop()


REAL = Path(__file__).parents[2] / "shared" / "real"


@pytest.mark.filterwarnings("ignore::ResourceWarning")  # webdataset leaves the tars open
@pytest.mark.skipif(not REAL.is_dir(), reason="the genuine annotation rows are not here")
def test_genuine_coco_photos_and_captions_come_through(tmp_path: Path) -> None:
    webdataset: Any = importlib.import_module("webdataset")  # makes its names at run time
    annotations = REAL / "coco" / "annotations" / "captions_train2017.json"
    with Web() as web:
        web.folder("images.cocodataset.org", "/train2017/", REAL / "coco" / "train2017")
        corpus = tmp_path / "coco.toml"
        corpus.write_text(
            f'name = "real"\nsources = ["coco"]\n[source.coco]\nfiles = ["{annotations}"]\n'
            f'[shard]\nimages = 20\n[fetch]\nconnect_to = {{ "*:80" = "{web.http}" }}\n'
        )
        told = pmd_json("build", corpus, "--out", tmp_path / "out", "--inline")
    assert (told["sources"]["coco"]["images"], told["sources"]["coco"]["pairs"]) == (80, 400)
    published: dict[str, list[str]] = {}
    for row in json.loads(annotations.read_text())["annotations"]:
        published.setdefault(f"coco-{row['image_id']}", []).append(" ".join(row["caption"].split()))
    tars = sorted(str(path) for path in (tmp_path / "out" / "shards" / "coco").glob("*.tar"))
    dataset = webdataset.WebDataset(tars, shardshuffle=False).decode("pil")
    read = {sample["__key__"]: sample for sample in dataset}
    assert {key: [c["text"] for c in sample["json"]["captions"]] for key, sample in read.items()} == published
    assert all(min(sample["jpg"].size) == 256 for sample in read.values())


@pytest.mark.skipif(not REAL.is_dir(), reason="the genuine annotation rows are not here")
def test_every_row_of_the_genuine_cc3m_validation_file_is_planned(tmp_path: Path) -> None:
    table = REAL / "cc3m" / "Validation_GCC-1.1.0-Validation.tsv"
    corpus = tmp_path / "cc3m.toml"
    corpus.write_text(f'name = "real"\nsources = ["cc3m"]\n[source.cc3m]\nfiles = ["{table}"]\n')
    for stage in ("pin", "plan"):
        pmd(stage, corpus, "--out", tmp_path / "out", "--inline")
    plans = [pq.read_table(path) for path in sorted((tmp_path / "out" / "plan" / "cc3m").glob("0*.parquet"))]
    rows = [
        caption["row"] for plan in plans for captions in plan["captions"].to_pylist() for caption in captions
    ]
    assert sorted(rows) == list(range(15_833))
    lines = table.read_text(encoding="utf-8").splitlines()
    urls = {url for plan in plans for url in plan["url"].to_pylist()}
    assert urls == {line.split("\t")[1] for line in lines}


def test_nothing_of_the_environment_is_needed(small: Small, tmp_path: Path) -> None:
    bare = {"PATH": os.environ["PATH"], "HOME": str(tmp_path / "home"), "http_proxy": "http://127.0.0.1:9"}
    done = subprocess.run(
        [PMD, "build", small.corpus, "--out", tmp_path / "out", "--inline", "--only", "coco"],
        env=bare,
        capture_output=True,
    )
    assert done.returncode == 0, done.stderr


def test_a_ray_cluster_joined_by_address_gives_the_same_corpus(
    small: Small, built: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    environment = os.environ | {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": "0" * 64,
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # listen on loopback only
        "RAY_USAGE_STATS_ENABLED": "0",
    }
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    start = [str(Path(PMD).parent / "ray"), "start", "--head", "--block", f"--port={port}", "--num-cpus=2"]
    sockets = tempfile.mkdtemp(prefix="ray-", dir="/tmp")  # the path of a Unix socket must be short
    start += ["--include-dashboard=false", f"--temp-dir={sockets}", "--disable-usage-stats"]
    into: Any = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    head = subprocess.Popen(start, env=environment, text=True, **into)
    try:
        assert head.stdout is not None
        assert any("Ray runtime started" in line for line in iter(head.stdout.readline, ""))
        done = subprocess.run(
            [PMD, "build", small.corpus, "--out", tmp_path / "out", "--ray", f"127.0.0.1:{port}", "--json"],
            env=environment,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["root"] == built[1]["root"]
    finally:
        for process in [*psutil.Process(head.pid).children(recursive=True), head]:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        head.communicate()
        shutil.rmtree(sockets, ignore_errors=True)
