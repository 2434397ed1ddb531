"""The laws of pmd/stream/samples.py: at a position there is one sample, whole and proven, for all."""

import shutil
import threading
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from pmd.errors import BadRequest, Damaged
from pmd.stream import Sample, Stream, Unit
from tests.locked import locked

SHARDS = {"coco": (7, 0, 5), "cc3m": (1, 9)}
SAMPLES = 22


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("corpus")
    locked(folder, SHARDS)
    return folder


@pytest.fixture
def copy(corpus: Path, tmp_path: Path) -> Path:
    """A corpus to damage."""
    return Path(shutil.copytree(corpus, tmp_path / "copy"))


def epoch_of(stream: Stream, epoch: int = 0) -> list[Sample]:
    return stream.read(epoch, np.arange(len(stream)))


def test_an_epoch_has_every_image_with_one_of_its_captions(corpus: Path) -> None:
    stream = Stream(corpus, window=2)
    found = epoch_of(stream)
    assert len(stream) == len(found) == SAMPLES == len({sample.key for sample in found})
    assert Counter(sample.source for sample in found) == {"coco": 12, "cc3m": 10}
    for position, sample in enumerate(found):
        number = sample.key.partition("-")[2]
        assert sample.caption in {f"caption {c} of sample {number}" for c in range(int(number) % 3 + 1)}
        assert (sample.epoch, sample.position) == (0, position)
        assert sample.image[:2] == b"\xff\xd8" and sample.image[-2:] == b"\xff\xd9"
    assert stream.keys(0, np.arange(SAMPLES)) == [sample.key for sample in found]


def test_an_image_comes_with_another_caption_in_another_epoch(corpus: Path) -> None:
    stream = Stream(corpus)
    met = {(sample.key, sample.caption) for epoch in range(40) for sample in epoch_of(stream, epoch)}
    assert met == {(sample.key, sample.caption) for sample in epoch_of(Stream(corpus, unit="pairs"))}


def test_an_epoch_of_pairs_has_every_caption_once(corpus: Path) -> None:
    stream = Stream(corpus, unit="pairs", window=3)
    found = epoch_of(stream)
    assert len({(sample.key, sample.caption) for sample in found}) == len(found) == len(stream)
    assert "short" not in {sample.caption for sample in found}
    assert stream.keys(0, np.arange(len(stream))) == [sample.key for sample in found]


def test_a_caption_of_elsewhere_is_one_of_the_same_window(corpus: Path) -> None:
    stream, positions = Stream(corpus, window=2), np.arange(SAMPLES)
    found = epoch_of(stream)
    window = {}  # position -> what stands in its window
    begins, sizes = stream.order.spans(0, positions)
    for position in range(SAMPLES):
        begin = int(begins[position])
        window[position] = {(sample.key, sample.caption) for sample in found[begin : begin + sizes[position]]}
    assert len({*begins.tolist()}) > 1  # several windows
    met: set[tuple[int, str, str]] = set()
    for attempt in range(200):
        others = stream.elsewhere(0, positions, attempt)
        for position, other in enumerate(others):
            assert other in window[position]
            met.add((position, other.key, other.text))
    # Each of a window's samples comes up: of at most 17, one is left out of 200 draws in 1 of 10,000 cases.
    assert len(met) == sum(sizes.tolist())
    alone = [Stream(corpus, window=2).elsewhere(0, np.array([position]), 7)[0] for position in positions]
    assert alone == stream.elsewhere(0, positions, 7)


def test_a_sample_tells_where_it_lies(corpus: Path) -> None:
    for sample in epoch_of(Stream(corpus, unit="pairs")):
        assert sample.stored is not None
        shard, row, caption = sample.stored
        index = pq.read_table(corpus / shard.replace(".tar", ".parquet")).to_pylist()  # whole and small
        kept = [image for image in index if image["status"] == "success"]
        texts = [text for image in kept for text in image["captions"] if text["reason"] is None]
        assert kept[row]["key"] == sample.key and texts[caption]["text"] == sample.caption


def test_a_box_is_told_in_shares_of_the_image(corpus: Path) -> None:
    for sample in epoch_of(Stream(corpus, unit="pairs")):
        boxed = sample.caption.startswith("caption 1 ")
        assert sample.box == ((0.125, 0.125, 0.5, 0.25) if boxed else None)


def test_some_sources_alone_make_a_stream(corpus: Path) -> None:
    assert {sample.source for sample in epoch_of(Stream(corpus, sources=["cc3m"]))} == {"cc3m"}
    with pytest.raises(BadRequest, match="has no source 'sbu'; it has cc3m, coco"):
        Stream(corpus, sources=["sbu"])


@pytest.mark.parametrize("unit", ["images", "pairs"])
def test_whoever_reads_a_position_reads_the_same(corpus: Path, unit: Unit) -> None:
    whole = epoch_of(Stream(corpus, unit=unit, window=2), 3)
    stream = Stream(corpus, unit=unit, window=2)
    for position in reversed(range(len(stream))):
        assert stream.read(3, np.array([position])) == [whole[position]]


def test_threads_share_a_stream(corpus: Path) -> None:
    stream = Stream(corpus, window=1)
    whole, found = epoch_of(stream), dict[int, Sample]()

    def work(rank: int) -> None:
        for sample in stream.read(0, np.arange(rank, SAMPLES, 8)):
            found[sample.position] = sample

    threads = [threading.Thread(target=work, args=(rank,)) for rank in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [found[position] for position in range(SAMPLES)] == whole


# Damage


def damage(folder: Path, key: str) -> None:
    """Change one byte of a stored image."""
    for index in sorted(folder.glob("shards/*/*.parquet")):
        for row in pq.read_table(index).to_pylist():
            if row["key"] == key:
                with open(index.with_suffix(".tar"), "r+b") as tar:
                    tar.seek(row["offset"] + row["size"] // 2)
                    (byte,) = tar.read(1)
                    tar.seek(-1, 1)
                    tar.write(bytes([byte ^ 1]))


def test_a_damaged_sample_is_listed_and_another_stands_in_for_it(corpus: Path, copy: Path) -> None:
    sound = epoch_of(Stream(corpus), 1)
    bad = {sound[4].key, sound[9].key}
    for key in bad:
        damage(copy, key)
    stream = Stream(copy)
    found = epoch_of(stream, 1)
    assert len(found) == SAMPLES
    for before, after in zip(sound, found, strict=True):
        assert (after == before) == (before.key not in bad)
        assert after.key not in bad and after.position == before.position
    told = [(damaged.epoch, damaged.position, damaged.key) for damaged in stream.damages]
    assert {(1, 4, sound[4].key), (1, 9, sound[9].key)} <= {*told}
    assert all(key in bad for *_, key in told) and "not the one that was stored" in stream.damages[0].why
    again = Stream(copy)
    assert again.read(1, np.array([9]))[0] == found[9], "whoever else is asked"


def test_unverified_a_changed_image_passes(corpus: Path, copy: Path) -> None:
    key = epoch_of(Stream(corpus))[0].key
    damage(copy, key)
    stream = Stream(copy, verified=False)
    assert epoch_of(stream)[0].key == key and not stream.damages


def test_a_cut_tar_costs_its_samples_alone(corpus: Path, copy: Path) -> None:
    tar = copy / "shards/coco/00000.tar"
    tar.write_bytes(tar.read_bytes()[:2_000])
    stream = Stream(copy)
    found = epoch_of(stream)
    assert len(found) == SAMPLES and {damaged.key for damaged in stream.damages}
    assert all("ends within an image" in damaged.why for damaged in stream.damages)


def test_a_corpus_without_a_sound_sample_is_given_up(copy: Path) -> None:
    for tar in copy.glob("shards/*/*.tar"):
        tar.write_bytes(bytes(tar.stat().st_size))
    with pytest.raises(Damaged, match="101 samples tried for position 0 are all damaged"):
        Stream(copy).read(0, np.array([0]))


def test_what_is_no_corpus_or_not_as_locked_is_told(copy: Path, tmp_path: Path) -> None:
    with pytest.raises(BadRequest, match=r"has no lock\.json"):
        Stream(tmp_path)
    shutil.copyfile(copy / "shards/coco/00000.parquet", copy / "shards/coco/00002.parquet")
    with pytest.raises(Damaged, match=r"00002\.parquet: sha256 is .*, the lock says .*pmd verify"):
        epoch_of(Stream(copy))
    with pytest.raises(Damaged, match="has 7 images, the lock says 5"):
        epoch_of(Stream(copy, verified=False))
    (copy / "shards/coco/00002.parquet").write_bytes(b"PAR1")
    with pytest.raises(Damaged, match=r"00002\.parquet: .*pmd verify"):
        epoch_of(Stream(copy, verified=False))


def test_streams_that_deliver_otherwise_are_told_apart(corpus: Path, tmp_path: Path) -> None:
    mine = Stream(corpus).identity
    assert mine == Stream(corpus).identity
    locked(tmp_path, {"coco": (3,)})
    others = Stream(corpus, seed=1), Stream(corpus, unit="pairs"), Stream(tmp_path, sources=["coco"])
    assert all(other.identity != mine for other in others)
