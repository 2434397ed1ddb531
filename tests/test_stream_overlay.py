"""The laws of pmd/stream/overlay.py: what is told beside a corpus decides how often its images come."""

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pmd.errors import BadRequest, Damaged, Refused
from pmd.stream import Feed, Overlay, Stream, Unit, part, prove, without, write_overlay
from pmd.tables import write_table
from tests.locked import locked

SHARDS = {"coco": (17, 0, 15, 1), "cc3m": (1, 31)}
SAMPLES = 65


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("corpus")
    locked(folder, SHARDS)
    return folder


def epoch_of(stream: Stream, epoch: int = 0) -> list[tuple[str, str]]:
    return [(sample.key, sample.caption) for sample in stream.read(epoch, np.arange(len(stream)))]


@settings(max_examples=25, deadline=None)
@given(st.lists(st.sampled_from([0, 0, 1, 1, 2, 7, 255]), min_size=SAMPLES, max_size=SAMPLES), st.booleans())
def test_each_image_comes_as_often_as_it_is_told(
    tmp_path_factory: pytest.TempPathFactory, corpus: Path, drawn: list[int], pairs: bool
) -> None:
    unit: Unit = "pairs" if pairs else "images"
    once = Counter(epoch_of(Stream(corpus, unit="pairs")))
    times = dict(zip(sorted({key for key, _ in once}), drawn, strict=True))
    path = tmp_path_factory.mktemp("overlay") / "times.parquet"
    write_overlay(path, corpus, lambda index: [times[key] for key in index["key"].to_pylist()])
    stream = Stream(corpus, unit=unit, overlay=path, window=2)
    found = Counter(epoch_of(stream) if pairs else [key for key, _ in epoch_of(stream)])
    expected = {one: times[one[0]] for one in once} if pairs else times
    assert found == Counter({one: count for one, count in expected.items() if count})
    if len(stream) >= 8:
        feed = Feed(stream, batch=8)
        for batch in feed:
            feed.delivered(batch, stream.read(0, batch.positions))
        assert prove(feed, stream).count == len(stream) // 8 * 8


def test_what_is_taken_down_comes_no_more_and_the_rest_does(corpus: Path, tmp_path: Path) -> None:
    gone = {"coco-3", "cc3m-50"}
    overlay = write_overlay(tmp_path / "gone.parquet", corpus, without(gone))
    stream = Stream(corpus, overlay=tmp_path / "gone.parquet")
    keys = {key for key, _ in epoch_of(stream)}
    assert keys == {key for key, _ in epoch_of(Stream(corpus))} - gone
    assert overlay.times("shards/coco/00002.tar") is None, "only what differs is told of"
    assert (tmp_path / "gone.parquet").stat().st_size < 4_000


def test_two_parts_are_the_whole_and_depend_on_keys_alone(corpus: Path, tmp_path: Path) -> None:
    parts: list[set[str]] = []
    for name, bounds in (("train", (0, 0.7)), ("held_out", (0.7, 1))):
        write_overlay(tmp_path / name, corpus, part(*bounds, seed=4))
        parts.append({key for key, _ in epoch_of(Stream(corpus, overlay=tmp_path / name))})
    train, held_out = parts
    assert not train & held_out and len(train | held_out) == SAMPLES
    assert 30 < len(train) < 60
    write_overlay(tmp_path / "other", corpus, part(0, 0.7, seed=5))
    assert {key for key, _ in epoch_of(Stream(corpus, overlay=tmp_path / "other"))} != train


def test_overlays_hold_together(corpus: Path, tmp_path: Path) -> None:
    first = write_overlay(tmp_path / "first", corpus, without({"coco-3"}))

    def twice(index: pa.Table) -> list[int]:
        return [2 if side > 100 else 1 for side in index["original_width"].to_pylist()]

    write_overlay(tmp_path / "both", corpus, twice, columns=["original_width"], sources=["coco"], on=first)
    found = Counter(key for key, _ in epoch_of(Stream(corpus, overlay=tmp_path / "both")))
    assert {times for key, times in found.items() if key.startswith("coco-")} == {2}
    assert {times for key, times in found.items() if key.startswith("cc3m-")} == {1}
    assert "coco-3" not in found


def test_a_state_of_another_overlay_is_refused(corpus: Path, tmp_path: Path) -> None:
    write_overlay(tmp_path / "gone", corpus, without({"coco-3"}))
    state = Feed(Stream(corpus), batch=4).state_dict()
    with pytest.raises(Refused, match="overlay is null, here it is"):
        Feed(Stream(corpus, overlay=tmp_path / "gone"), batch=4).load_state_dict(state)


def test_an_overlay_of_another_corpus_is_refused(corpus: Path, tmp_path: Path) -> None:
    locked(tmp_path / "other", {"coco": (3,)})
    write_overlay(tmp_path / "gone", corpus, without({"coco-3"}))
    with pytest.raises(Refused, match="the overlay was made for "):
        Stream(tmp_path / "other", overlay=tmp_path / "gone")


@pytest.mark.parametrize(
    ("judged", "what"),
    [
        (lambda rows: [1.5] * rows, "the judge gave float64"),
        (lambda rows: [1] * (rows + 1), "the judge gave int64"),
        (lambda rows: [-1] * rows, "the judge gave int64"),
        (lambda rows: [256] * rows, "at most 255 times each, not 256"),
    ],
)
def test_a_judge_that_gives_something_else_is_a_bad_request(
    corpus: Path, tmp_path: Path, judged: Any, what: str
) -> None:
    with pytest.raises(BadRequest, match=what):
        write_overlay(tmp_path / "bad", corpus, lambda index: judged(len(index)))
    assert not (tmp_path / "bad").exists()


def test_what_is_no_overlay_is_told(corpus: Path, tmp_path: Path) -> None:
    with pytest.raises(BadRequest, match="No such file"):
        Stream(corpus, overlay=tmp_path / "none")
    (tmp_path / "text").write_text("no overlay")
    with pytest.raises(Damaged, match="not an overlay"):
        Overlay.read(tmp_path / "text")
    write_table(tmp_path / "table", pa.table({"path": ["a"]}), fingerprint="")
    with pytest.raises(Damaged, match="not an overlay"):
        Overlay.read(tmp_path / "table")
    with pytest.raises(BadRequest, match="has no source sbu"):
        write_overlay(tmp_path / "sbu", corpus, without([]), sources=["sbu"])
    with pytest.raises(BadRequest, match="shares from 0 to 1"):
        part(0.5, 0.2)
