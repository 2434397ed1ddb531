"""The laws of pipelines/repair.py. One stands for all: what a repair leaves is, file for file, what a build
makes of a web that answers so at once.
"""

import io
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pyarrow.parquet as pq
import pytest
from PIL import Image

from pipelines import cli
from pipelines.job import REPAIRING
from pipelines.repair import recorded
from pmd.manifest import load_corpus
from pmd.records import TRANSIENT
from pmd.storage import Store
from tests.small import PMD, photo, pmd_json
from tests.small import run_here as run
from tests.web import Fault, Web

SOURCES = {"cc3m": "Train_GCC-training.tsv", "cc12m": "cc12m.tsv"}
ROWS = 40  # of each source
OFF = ""
DROP = '[dedup]\nexact = "drop"\nperceptual = "drop"\n'
ACROSS = DROP + 'across_sources = "drop"\n'
REPORT = '[dedup]\nexact = "drop"\nperceptual = "report"\nacross_sources = "report"\n'
WEBP = '[image]\nimage_size = 96\nmin_side = 32\nencode_format = "webp"\n'


@dataclass
class Small:
    """Two sources whose pictures repeat each other, on a web that fails in many ways and then gets better."""

    folder: Path
    web: Web
    corpus: Path

    def fault(self, source: str, row: int, fault: Fault) -> None:
        self.web.fault(*place(url(source, row)), fault)

    def heal(self, urls: Iterable[str]) -> None:
        for lost in urls:
            self.web.heal(*place(lost))

    def well(self) -> None:
        self.heal(url(source, row) for source in SOURCES for row in range(ROWS))

    def sick(self, seed: int = 0) -> None:
        """Every third image fails, for a cause that passes or for good."""
        self.well()
        chance = random.Random(f"sick {seed}")
        for source in SOURCES:
            for row in range(ROWS):
                if chance.random() < 0.4:
                    fault = chance.choice([*PASSING, *PASSING, *FINAL])
                    self.fault(source, row, fault)

    def better(self, lost: set[str], seed: int = 0) -> None:
        """Of these images most come now; some are gone, too small or no picture, some go on failing."""
        chance = random.Random(f"better {seed}")
        for host, path in map(place, sorted(lost)):
            fate = chance.random()
            if fate < 0.85:
                self.web.heal(host, path)
            if fate < 0.1:
                self.web.fault(host, path, Fault.NOT_FOUND)
            elif fate < 0.15:
                self.web.fault(host, path, Fault.HTML_200)
            elif fate < 0.2:
                self.web.serve(host, path, photo(900, size=(20, 20)))

    def build(self, out: Path, *options: str) -> dict[str, Any]:
        return run("build", self.corpus, "--out", out, "--inline", *options)

    def repair(self, out: Path, *options: str, code: int = 0) -> dict[str, Any]:
        return run("repair", out, "--corpus", self.corpus, "--inline", *options, code=code)


def url(source: str, row: int) -> str:
    """Each image has a host of its own, so that none pays for what its neighbour does."""
    return f"http://{source}-{row}.example/{source}.jpg"


def place(url: str) -> tuple[str, str]:
    host, _, path = url.removeprefix("http://").partition("/")
    return host, f"/{path}"


PASSING = (Fault.SERVER_ERROR, Fault.RESET, Fault.TRUNCATED, Fault.NO_BYTES, Fault.TOO_MANY)
FINAL = (Fault.NOT_FOUND, Fault.HTML_200, Fault.LEGAL)


@pytest.fixture(scope="module")
def web() -> Iterator[Web]:
    with Web() as web:
        yield web


@pytest.fixture
def small(web: Web, tmp_path: Path, request: pytest.FixtureRequest) -> Small:
    return publish(tmp_path / "annotations", web, getattr(request, "param", ACROSS))


def publish(folder: Path, web: Web, extra: str) -> Small:
    folder.mkdir()
    web.forget()
    small = Small(folder, web, folder / "corpus.toml")
    chance = random.Random(7)
    for source, name in SOURCES.items():
        lines: list[str] = []
        for row in range(ROWS):
            # A few pictures for many rows, some stored again: exact and near duplicates in all places.
            picture = photo(chance.randrange(45))
            if chance.random() < 0.3:
                picture = stored_again(picture)
            web.serve(*place(url(source, row)), picture)
            fields = [f"caption of picture number {row} .", url(source, row)]
            lines.append("\t".join(fields if source == "cc3m" else reversed(fields)))
        (folder / name).write_text("\n".join(lines) + "\n")
    connect = ", ".join(f"{json.dumps(host)} = {json.dumps(to)}" for host, to in web.connect_to.items())
    small.corpus.write_text(
        'name = "small"\nsources = ["cc3m", "cc12m"]\n'
        + "".join(f'[source.{source}]\nfiles = ["{name}"]\n' for source, name in SOURCES.items())
        + "[shard]\nimages = 7\n"
        + ("" if "[image]" in extra else "[image]\nimage_size = 96\nmin_side = 32\n")
        + f"[fetch]\ntimeout_s = 5\nretries = 0\nper_host_rate = 1e6\nconnect_to = {{ {connect} }}\n{extra}"
    )
    return small


def stored_again(picture: bytes) -> bytes:
    """The same to the eye, in other bytes."""
    file = io.BytesIO()
    Image.open(io.BytesIO(picture)).save(file, "JPEG", quality=80)
    return file.getvalue()


def lost(out: Path) -> set[str]:
    """The addresses of the images that may come on another try."""
    found: set[str] = set()
    for index in sorted([*out.glob("shards/*/*.parquet"), *out.glob("raw/*/*.parquet")]):
        columns = ["url", "reason"] if index.parent.parent.name == "shards" else ["reason"]
        rows = pq.read_table(index, columns=columns)
        urls = rows if "url" in columns else pq.read_table(out / "plan" / index.relative_to(out / "raw"))
        for address, reason in zip(urls["url"].to_pylist(), rows["reason"].to_pylist(), strict=True):
            if reason in TRANSIENT:
                found.add(address)
    return found


def files(out: Path) -> dict[str, bytes]:
    """The corpus: what a repair and a build must agree on."""
    found = [*out.glob("shards/*/*"), *out.glob("plan/*/rejected.parquet"), *out.glob("lock.json")]
    return {str(path.relative_to(out)): path.read_bytes() for path in sorted(found)}


def raw(out: Path) -> dict[str, bytes]:
    return {str(path.relative_to(out)): path.read_bytes() for path in out.glob("raw/*/*.parquet")}


def times(out: Path) -> dict[str, int]:
    return {name: (out / name).stat().st_mtime_ns for name in files(out)}


def asked(web: Web) -> set[str]:
    """The addresses of the images asked for; not what a site is asked of its wishes."""
    return {request.url for request in web.requests if request.path.endswith(".jpg")}


def same(one: Path, other: Path) -> None:
    left, right = files(one), files(other)
    assert left.keys() == right.keys() and "lock.json" in left
    assert [name for name in left if left[name] != right[name]] == []


def counts(out: Path) -> dict[str, bytes]:
    return {str(path.relative_to(out)): path.read_bytes() for path in out.glob("filter/*/repeats.json")}


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize(
    "small",
    [OFF, DROP, ACROSS, REPORT, WEBP],
    indirect=True,
    ids=["off", "drop", "across", "report", "webp"],
)
def test_a_repaired_corpus_is_that_of_a_web_that_answered_so_at_once(
    small: Small, seed: int, tmp_path: Path
) -> None:
    small.sick(seed)
    out, fresh = tmp_path / "out", tmp_path / "fresh"
    before = small.build(out)
    missing = lost(out)
    assert missing
    small.better(missing, seed)
    old, stamps = files(out), times(out)
    small.web.forget()
    told = small.repair(out)
    assert asked(small.web) == missing, "nothing that was kept, and nothing that is final"
    assert told["requests"] >= told["asked"] == len(missing)
    root = small.build(fresh)["root"]
    same(out, fresh)
    assert counts(out) == counts(fresh)
    assert told["root"] == root != before["root"]
    assert run("verify", out)["ok"]
    changed = {name for name, data in files(out).items() if old[name] != data}
    assert changed < old.keys()
    assert {name for name, stamp in times(out).items() if stamp != stamps[name]} == changed
    assert not (out / "repair").exists()
    # And a build finds nothing to do.
    again = small.build(out)
    assert (again["root"], again["requests"], again["files_written"]) == (root, 0, 0)


@pytest.mark.parametrize("small", [ACROSS], indirect=True)
def test_an_image_that_comes_takes_the_place_of_its_later_repeats_in_other_files_and_sources(
    small: Small, tmp_path: Path
) -> None:
    small.sick(2)
    small.build(tmp_path / "out")
    kept = {source: keys(tmp_path / "out", source) for source in SOURCES}
    small.well()
    small.repair(tmp_path / "out")
    lost_now = {source: kept[source] - keys(tmp_path / "out", source) for source in SOURCES}
    assert all(lost_now.values()), "kept before, repeats now: this test is about them"
    assert all(keys(tmp_path / "out", source) - kept[source] for source in SOURCES)


def keys(out: Path, source: str, *, reason: str | None = None) -> set[str]:
    tables = [pq.read_table(path) for path in sorted((out / "shards" / source).glob("*.parquet"))]
    return {row["key"] for table in tables for row in table.to_pylist() if row["reason"] == reason}


def test_a_repair_that_brings_nothing_new_only_asks(small: Small, tmp_path: Path) -> None:
    small.sick()
    out = tmp_path / "out"
    root = small.build(out)["root"]
    missing = lost(out)
    everything = {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.is_file()}
    for _ in range(2):
        small.web.forget()
        told = small.repair(out)
        assert asked(small.web) == missing
        assert (told["files_written"], told["root"]) == (0, root)
        assert (told["asked"], told["recovered"], told["final"]) == (len(missing), 0, {})
        assert sum(told["still"].values()) == len(missing)
        now = {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.is_file()}
        assert {path: stamp for path, stamp in now.items() if path.name != ".lock"} == {
            path: stamp for path, stamp in everything.items() if path.name != ".lock"
        }


def test_a_repair_of_a_corpus_that_lacks_nothing_asks_nothing(small: Small, tmp_path: Path) -> None:
    small.well()
    small.build(tmp_path)
    small.web.forget()
    told = small.repair(tmp_path)
    assert (told["asked"], told["requests"], told["files_written"]) == (0, 0, 0)
    assert not asked(small.web)


def test_the_figures_say_what_came_and_what_is_left_by_source_and_reason(
    small: Small, tmp_path: Path
) -> None:
    small.well()
    fate = {0: Fault.SERVER_ERROR, 1: Fault.SERVER_ERROR, 2: Fault.RESET, 3: Fault.NOT_FOUND}
    for row, fault in fate.items():
        small.web.serve(*place(url("cc3m", row)), photo(700 + row))
        small.fault("cc3m", row, fault)
    small.build(tmp_path)
    small.heal([url("cc3m", 0), url("cc3m", 1)])
    small.fault("cc3m", 1, Fault.GONE)
    told = small.repair(tmp_path)
    assert told["sources"] == {
        "cc3m": {
            "http_5xx": {"asked": 2, "recovered": 1, "still": {}, "final": {"http_410": 1}},
            "connect_reset": {"asked": 1, "recovered": 0, "still": {"connect_reset": 1}, "final": {}},
        }
    }
    assert {name: told[name] for name in ("asked", "recovered", "still", "final")} == {
        "asked": 3,
        "recovered": 1,
        "still": {"connect_reset": 1},
        "final": {"http_410": 1},
    }


def test_only_and_reason_narrow_what_is_asked(small: Small, tmp_path: Path) -> None:
    small.sick()
    small.build(tmp_path)
    missing = lost(tmp_path)
    small.well()
    small.web.forget()
    told = small.repair(tmp_path, "--only", "cc12m", "--reason", "http_5xx")
    assert [*told["sources"]] == ["cc12m"] and [*told["sources"]["cc12m"]] == ["http_5xx"]
    first = asked(small.web)
    assert first and first < {path for path in missing if path.startswith("http://cc12m-")}
    assert lost(tmp_path) == missing - first
    small.web.forget()
    small.repair(tmp_path)
    assert asked(small.web) == missing - first
    # In two steps or in one, it is the same corpus.
    fresh = tmp_path / "fresh"
    small.sick()
    small.heal(missing)
    small.build(fresh)
    same(tmp_path, fresh)


def test_final_reasons_cannot_be_asked_for(small: Small, tmp_path: Path) -> None:
    small.well()
    small.build(tmp_path)
    assert "only these may end otherwise" in small.repair(tmp_path, "--reason", "http_404", code=2)["error"]


def test_another_definition_is_refused_with_3_before_anything_is_asked(small: Small, tmp_path: Path) -> None:
    small.sick()
    small.build(tmp_path)
    before = files(tmp_path)
    small.corpus.write_text(small.corpus.read_text().replace("min_side = 32", "min_side = 33"))
    small.web.forget()
    assert "corpus.image.min_side: 32 -> 33" in small.repair(tmp_path, code=3)["error"]
    assert not asked(small.web) and files(tmp_path) == before


def test_without_a_corpus_file_the_recorded_definition_is_taken(small: Small, tmp_path: Path) -> None:
    small.sick()
    small.build(tmp_path, "--limit", "30")
    corpus, limit = recorded(Store(str(tmp_path)), None)
    assert limit == 30 and corpus.definition() == load_corpus(small.corpus).definition()
    # The web of this test is where only the corpus file says: a.example is nowhere else.
    told = run("repair", tmp_path, "--inline", "--reason", "http_429", "--only", "cc3m")
    assert told["asked"] > 0 and told["recovered"] == 0 and {*told["still"]} == {"dns_failed"}


@pytest.mark.parametrize("small", [OFF, ACROSS], indirect=True, ids=["off", "across"])
def test_raw_files_are_not_needed(small: Small, tmp_path: Path) -> None:
    small.sick()
    out = tmp_path / "out"
    small.build(out)
    for stage in ("raw", "filter", "fetchlog"):
        shutil.rmtree(out / stage)
    small.sick()
    small.heal(lost(out))
    small.repair(out)
    small.build(tmp_path / "fresh")
    same(out, tmp_path / "fresh")


@pytest.mark.parametrize("stages", [["download"], ["download", "filter"]])
@pytest.mark.parametrize("small", [OFF, ACROSS], indirect=True, ids=["off", "across"])
def test_a_half_finished_output_is_repaired_as_far_as_it_is(
    stages: list[str], small: Small, tmp_path: Path
) -> None:
    small.sick()
    out = tmp_path / "out"
    for stage in ("pin", "plan", *stages):
        run(stage, small.corpus, "--out", out, "--inline")
    missing = lost(out)
    small.heal(missing)
    small.web.forget()
    told = small.repair(out)
    assert asked(small.web) == missing and told["root"] is None and told["recovered"] > 0
    small.web.forget()
    small.build(out)
    assert small.web.count() == 0, "all has been fetched"
    small.build(tmp_path / "fresh")
    same(out, tmp_path / "fresh")


def test_an_output_of_which_some_is_not_even_planned_is_repaired_as_far_as_it_is(
    small: Small, tmp_path: Path
) -> None:
    small.sick()
    out = tmp_path / "out"
    small.build(out, "--only", "cc3m")
    missing = lost(out)
    small.heal(missing)
    small.web.forget()
    small.repair(out)
    assert asked(small.web) == missing
    assert run("verify", out)["ok"]
    small.build(out)
    small.build(tmp_path / "fresh")
    same(out, tmp_path / "fresh")


def test_the_fetch_log_tells_of_the_last_time_that_a_row_was_asked(small: Small, tmp_path: Path) -> None:
    small.sick()
    small.build(tmp_path)
    missing = lost(tmp_path)
    before = log(tmp_path)
    small.heal(missing)
    small.repair(tmp_path)
    after = log(tmp_path)
    assert after.keys() == before.keys()
    told = {path for path in after if after[path] != before[path]}
    assert told == missing and all(after[path]["reason"] is None for path in told)


def log(out: Path) -> dict[str, dict[str, Any]]:
    rows = [row for path in out.glob("fetchlog/*/*.parquet") for row in pq.read_table(path).to_pylist()]
    found = {row["url"]: row for row in rows}
    assert len(found) == len(rows)
    return found


def test_a_damaged_shard_stops_a_repair_before_anything_is_exchanged_and_a_build_heals_it(
    small: Small, tmp_path: Path
) -> None:
    small.sick()
    out = tmp_path / "out"
    small.build(out)
    index, victim = next(
        (index, row)
        for index in sorted(out.glob("shards/cc3m/*.parquet"))
        if {*(rows := pq.read_table(index))["reason"].to_pylist()} & TRANSIENT
        for row in rows.to_pylist()
        if row["status"] == "success"
    )
    tar = index.with_suffix(".tar")
    data = bytearray(tar.read_bytes())
    data[victim["offset"] + 9] ^= 1
    tar.write_bytes(data)
    before = files(out)
    small.heal(lost(out))
    assert f"{tar.name} is not what its index says" in small.repair(out, code=1)["error"]
    assert files(out) == before and not (out / REPAIRING).exists()
    tar.unlink()
    index.unlink()
    small.build(out)
    small.repair(out)
    small.build(tmp_path / "fresh")
    same(out, tmp_path / "fresh")


def test_a_repair_in_an_object_store_gives_the_same_corpus(small: Small, tmp_path: Path) -> None:
    out = f"memory://repair/{tmp_path.name}"
    small.sick()
    small.build(tmp_path / "before")
    before = run("build", small.corpus, "--out", out, "--inline")
    small.better(lost(tmp_path / "before"))
    told = run("repair", out, "--corpus", small.corpus, "--inline")
    assert told["root"] == small.build(tmp_path / "fresh")["root"] != before["root"]
    assert run("verify", out)["ok"]
    store = Store(out)
    assert not store.names("repair") and not store.exists(REPAIRING)
    again = run("repair", out, "--corpus", small.corpus, "--inline")
    assert (again["root"], again["files_written"]) == (told["root"], 0)


def test_a_shard_that_is_lost_after_a_repair_is_built_again(small: Small, tmp_path: Path) -> None:
    small.sick()
    out = tmp_path / "out"
    small.build(out)
    small.heal(lost(out))
    small.repair(out)
    before = files(out)
    for path in sorted(out.glob("shards/cc3m/*")):
        path.unlink()
        path.with_suffix(".tar" if path.suffix == ".parquet" else ".parquet").unlink()
        break
    small.build(out)
    assert files(out) == before


def test_a_repair_over_ray_gives_the_same_corpus(small: Small, tmp_path: Path) -> None:
    small.sick()
    out = tmp_path / "out"
    small.build(out)
    small.better(lost(out))
    pmd_json("repair", out, "--corpus", small.corpus, "--workers", "2")
    small.build(tmp_path / "fresh")
    same(out, tmp_path / "fresh")


def test_a_repair_over_ray_that_is_killed_while_it_asks_goes_on(small: Small, tmp_path: Path) -> None:
    small.sick()
    out = tmp_path / "out"
    small.build(out)
    missing = lost(out)
    small.heal(missing)
    held = sorted(missing)[0]
    small.web.fault(*place(held), Fault.HANG)
    small.web.forget()
    line = [PMD, "repair", out, "--corpus", small.corpus, "--workers", "2"]
    process = subprocess.Popen(line, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    deadline = time.monotonic() + 60
    while not small.web.count(*place(held)):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    children = psutil.Process(process.pid).children(recursive=True)
    workers = [child for child in children if child.name().startswith("ray::download")]
    assert workers
    process.kill()
    process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL
    assert not psutil.wait_procs(workers, timeout=30)[1]
    assert run("verify", out)["ok"], "nothing has changed yet"
    assert "another repair was stopped half-way" in small.repair(out, "--only", "cc3m", code=3)["error"]
    small.heal([held])
    small.repair(out)
    small.build(tmp_path / "fresh")
    same(out, tmp_path / "fresh")


@pytest.mark.slow
@pytest.mark.parametrize("begun", ["with raw", "without raw", "half sharded"])
def test_a_repair_killed_at_any_moment_goes_on_to_the_same_corpus(
    begun: str, small: Small, tmp_path: Path
) -> None:
    small.corpus.write_text(small.corpus.read_text().replace("images = 7", "images = 20"))
    small.sick(1)
    before, after, out = tmp_path / "before", tmp_path / "after", tmp_path / "out"
    small.build(before)
    if begun == "without raw":
        for stage in ("raw", "filter", "fetchlog"):
            shutil.rmtree(before / stage)
    elif begun == "half sharded":
        (before / "lock.json").unlink()
        for number in (0,):
            (before / f"shards/cc3m/{number:05d}.tar").unlink()
            (before / f"shards/cc3m/{number:05d}.parquet").unlink()
    small.better(lost(before), 1)
    small.build(after)
    # Every file with one of them; for the others some are enough to tell.
    steps = 2 if begun == "without raw" else 5
    line = [sys.executable, "-m", "tests.test_repair", before, after, out, small.corpus, str(steps)]
    done = subprocess.run([*map(str, line)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-9000:]
    kills = json.loads(done.stdout)
    assert kills["in all"] * steps > 20
    assert kills["raw"] and (kills["mixed"] > 1 or begun == "half sharded")


def main(before: Path, after: Path, out: Path, corpus: str, steps: int) -> None:
    """Kill a repair after the first file it publishes or removes, and every `steps` further, and go on."""
    kills = {"in all": 0, "mixed": 0, "raw": 0}
    repair = ["repair", str(out), "--corpus", corpus, "--inline", "--json"]
    build = ["build", corpus, "--out", str(out), "--inline", "--json"]
    has_lock = (before / "lock.json").exists()
    while True:
        shutil.rmtree(out, ignore_errors=True)
        shutil.copytree(before, out)
        if in_child(repair, kill_after=kills["in all"] * steps + 1) == 0:
            break
        kills["in all"] += 1
        if files(out) not in (files(before), files(after)) and has_lock:
            kills["mixed"] += 1
            assert (out / REPAIRING).exists(), "files and lock disagree, and nobody is told"
            assert REPAIRING in {bad["path"] for bad in run("verify", out, code=1)["bad"]}
            assert in_child(["verify", str(out), "--json"]) == 1
        if files(out) == files(before) and raw(out) != raw(before):
            assert (out / REPAIRING).exists(), "raw/ has answers that no shard has, and nobody is told"
            kills["raw"] += 1
        if (out / REPAIRING).exists():
            assert in_child(build) == 3
        code = in_child(repair)
        assert code == 0, (code, kills)
        assert not (out / "repair").exists()
        if not has_lock:
            assert in_child(build) == 0
        same(out, after)
    print(json.dumps(kills))


def in_child(arguments: list[str], kill_after: int | None = None) -> int:
    """A command in a process of its own, which ends by its own hand after so many files."""
    child = os.fork()
    if child == 0:
        sys.stdout = io.StringIO()
        if kill_after is not None:
            for name in ("replace", "unlink"):
                setattr(os, name, counted(getattr(os, name), kill_after))
        os._exit(cli.run(arguments))
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status)


DONE = [0]  # files published or removed by this process


def counted(act: Any, kill_after: int) -> Any:
    def do(*arguments: Any, **options: Any) -> Any:
        value = act(*arguments, **options)
        DONE[0] += 1
        if DONE[0] == kill_after:
            os.kill(os.getpid(), signal.SIGKILL)
        return value

    return do


if __name__ == "__main__":
    _, _before, _after, _out, _corpus, _steps = sys.argv
    main(Path(_before), Path(_after), Path(_out), _corpus, int(_steps))
