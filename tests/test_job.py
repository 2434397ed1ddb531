"""The laws of pipelines/job.py: an output belongs to one definition and to one run at a time."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from pipelines.job import differences, finished, open_job
from pipelines.progress import Progress
from pipelines.run import Where
from pmd.errors import BadRequest, Busy, Damaged, Refused
from pmd.manifest import Corpus, parse_corpus
from pmd.storage import Store
from pmd.tables import VERDICT, write_table


def corpus(**changes: Any) -> Corpus:
    return parse_corpus({"name": "a", "sources": ["coco", "cc3m"]} | changes, where="corpus.toml")


def opened(out: str, made: Corpus | None = None, **options: Any) -> Any:
    progress = Progress(quiet=True)
    return open_job(made or corpus(), out=out, where=Where(inline=True), progress=progress, **options)


def test_a_file_is_finished_if_it_is_whole_and_of_this_definition(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    assert not finished(store, "a.parquet", "f")
    write_table(tmp_path / "a.parquet", pa.table([[], [], []], schema=VERDICT), fingerprint="f")
    assert finished(store, "a.parquet", "f")
    with pytest.raises(Refused, match=r"a\.parquet was made under another definition"):
        finished(store, "a.parquet", "g")
    data = (tmp_path / "a.parquet").read_bytes()
    for damaged in (b"", data[:-1], data[:-20] + bytes(20), data[:-200] + bytes(150) + data[-50:]):
        (tmp_path / "a.parquet").write_bytes(damaged)
        with pytest.raises(Damaged, match=r"a\.parquet"):
            finished(store, "a.parquet", "f")


@pytest.mark.parametrize("kind", ["folder", "memory"])
def test_another_definition_is_refused_with_every_difference(kind: str, tmp_path: Path) -> None:
    out = str(tmp_path) if kind == "folder" else "memory://job/definition"
    with opened(out):
        pass
    changed = corpus(seed=1, image={"quality": 90, "resize_mode": "no"}, fetch={"retries": 9})
    with pytest.raises(Refused) as caught, opened(out, changed, limit=5):
        pass
    told = [line.strip() for line in str(caught.value).splitlines()[1:-1]]
    assert told == [
        "corpus.image.quality: 95 -> 90",
        'corpus.image.resize_mode: "keep_ratio" -> "no"',
        "corpus.seed: 0 -> 1",
        "limit: null -> 5",
    ]
    with opened(out, corpus(fetch={"retries": 9})) as job:  # nothing that decides bytes
        assert job.written() == 0


def test_a_difference_is_told_by_its_place() -> None:
    before = {"a": {"b": 1, "c": [1]}, "d": {}}
    after = {"a": {"b": 2, "c": [1]}, "d": {"e": None}, "f": "x"}
    assert [*differences(before, after)] == ["a.b: 1 -> 2", 'f: null -> "x"']
    assert [*differences(json.loads(json.dumps(before)), before)] == []


@pytest.mark.parametrize("kind", ["folder", "memory"])
def test_an_output_is_held_by_one_run_and_let_go_at_its_end(kind: str, tmp_path: Path) -> None:
    out = str(tmp_path) if kind == "folder" else "memory://job/held"
    with opened(out):
        with pytest.raises(Busy, match="held by another run"), opened(out):
            pass
        with pytest.raises(Busy), opened(out):  # also after somebody was turned away
            pass
    with pytest.raises(ZeroDivisionError), opened(out):
        raise ZeroDivisionError
    with opened(out):
        pass


def test_what_a_killed_run_left_aside_is_swept_up(tmp_path: Path) -> None:
    left = tmp_path / "shards" / "coco" / ".00000.tar.1-ab.part"
    left.parent.mkdir(parents=True)
    left.write_bytes(b"half")
    with opened(str(tmp_path)):
        assert not left.exists()


def test_only_sources_of_the_corpus_can_be_chosen(tmp_path: Path) -> None:
    with (
        pytest.raises(BadRequest, match="--only sbu: this corpus has coco, cc3m"),
        opened(str(tmp_path), only=["sbu"]),
    ):
        pass
    assert not (tmp_path / "corpus.json").exists()
