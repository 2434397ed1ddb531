"""The laws of flava_model/data.py: the same pixels in the same order, whoever makes them, whatever breaks."""

import itertools
import os
import threading
from pathlib import Path
from typing import Any

import pytest

from flava_model.data import Images, Loader, Timing
from flava_model.views import Views
from pmd.stream import Feed, Stream, prove
from tests.locked import locked

VIEWS = Views(sizes=(32, 16), area=(0.3, 1.0), flip=0.5)
BATCH = 8


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("corpus")
    locked(folder, {"coco": (17, 0, 15), "cc3m": (1, 31)})
    return folder


def loader(corpus: Path, views: Views = VIEWS, **how: Any) -> Loader:
    feed = {name: how.pop(name) for name in ("rank", "world", "remainder") if name in how}
    return Loader(Feed(Stream(corpus, window=2), batch=BATCH, **feed), views, **how)


def seen(images: Images) -> list[tuple[Any, ...]]:
    rows = [images.views[size] for size in VIEWS.sizes]
    return [
        (sample.position, sample.key, sample.caption, *(view[place].numpy().tobytes() for view in rows))
        for place, sample in enumerate(images.samples)
    ]


def test_the_same_batches_come_for_any_number_of_threads(corpus: Path) -> None:
    runs = [
        [seen(images) for images in loader(corpus, threads=threads, ahead=ahead)]
        for threads, ahead in ((1, 1), (4, 3))
    ]
    assert runs[0] == runs[1] and len(runs[0]) == 8
    assert len({row[3] for batch in runs[0] for row in batch}) == 64, "each its own"


def test_ranks_see_what_one_sees_alone(corpus: Path) -> None:
    alone = [sorted(seen(images)) for images in loader(corpus)]
    ranks = [[seen(images) for images in loader(corpus, rank=rank, world=4)] for rank in range(4)]
    assert [sorted(itertools.chain(*parts)) for parts in zip(*ranks, strict=True)] == alone


def test_a_stopped_run_goes_on_with_the_batch_that_was_not_delivered(corpus: Path) -> None:
    whole = [seen(images) for images in loader(corpus)]
    first = loader(corpus, threads=3, ahead=4)
    for images in itertools.islice(first, 3):
        first.delivered(images)
    second = loader(corpus, threads=1)
    second.feed.load_state_dict(first.feed.state_dict())
    assert [seen(images) for images in second] == whole[3:]


def test_another_epoch_shows_other_crops_in_another_order(corpus: Path) -> None:
    made = loader(corpus)
    epochs: list[set[tuple[Any, ...]]] = []
    for _ in range(2):
        rows: set[tuple[Any, ...]] = set()
        for images in made:
            rows |= {(row[1], row[3]) for row in seen(images)}
            made.delivered(images)
        epochs.append(rows)
        made.feed.end_epoch()
    assert len(epochs[0] & epochs[1]) <= 3


def test_what_cannot_be_decoded_is_replaced_and_listed(tmp_path: Path) -> None:
    """It is as it was stored, so that the decoder is the first to find out."""
    broken = {3, 20, 21, 60}
    locked(tmp_path, {"coco": (17, 0, 15), "cc3m": (1, 31)}, broken=broken)
    runs: list[Any] = []
    for threads in (1, 3):
        made = loader(tmp_path, threads=threads)
        batches = [*made]
        assert [len(images.samples) for images in batches] == [BATCH] * 8
        samples = [sample for images in batches for sample in images.samples]
        replaced = {sample.position: sample.instead_of for sample in samples if sample.instead_of}
        assert {int(key.partition("-")[2]) for key in replaced.values()} == broken
        assert not {int(sample.key.partition("-")[2]) for sample in samples} & broken
        source = made.feed.source
        assert isinstance(source, Stream)
        assert {(entry.position, entry.key) for entry in source.damages} >= {*replaced.items()}
        assert all("decoded" in entry.why for entry in source.damages)
        for images in batches:
            made.delivered(images)
        assert prove(made.feed, source).substituted == 4
        runs.append([seen(images) for images in batches])
    assert runs[0] == runs[1]


def test_what_fills_up_a_batch_has_no_weight(corpus: Path) -> None:
    made = Loader(Feed(Stream(corpus), batch=24, remainder="pad"), VIEWS)
    batches = [*made]
    assert [len(images.samples) for images in batches] == [24, 24, 24]
    assert [images.weights.sum() for images in batches] == [24, 24, 16]
    assert all(images.views[32].shape == (24, 3, 32, 32) for images in batches)


def test_a_loop_that_stops_early_leaves_no_thread(corpus: Path) -> None:
    batches = iter(loader(corpus, threads=3, ahead=6))
    next(batches)
    threads = [thread for thread in threading.enumerate() if thread.name.startswith("loader")]
    assert threads
    batches.close()  # pyright: ignore[reportAttributeAccessIssue]
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("loader")]
    # Nor does the system know them any more: a fork could not meet a lock that they hold as they end.
    assert not {str(thread.native_id) for thread in threads} & {*os.listdir("/proc/self/task")}


def test_a_loader_says_who_waits_for_whom(corpus: Path) -> None:
    made = loader(corpus)
    assert made.timing.verdict() == "nothing was loaded yet"
    for _ in made:
        pass
    assert made.timing.samples == 64 and made.timing.bytes > 64 * 500
    assert "images/s" in made.timing.verdict()
    slow = Timing(read=1.0, seen=9.0, waited=8.0, used=2.0, bytes=10**9, samples=1000, threads=2, ahead=2)
    slow.ready, slow.batches, slow.ceiling = 3, 10, 125.0
    assert slow.verdict() == (
        "loader-bound: the model waits 80% of the time for decoding (100 images/s, 80% of what decoding "
        "alone would allow, 100 MB/s; 50% of 2 threads' time, 90% of it decoding; 0.3 of 2 batches ready)"
    )
    quick = Timing(read=3.0, seen=1.0, waited=0.01, used=9.99, bytes=10**8, samples=1000, threads=1)
    told = "model-bound: the model waits 0.1% of the time (100 images/s, 10 MB/s; 40% of 1 threads' time, "
    assert quick.verdict() == told + "75% of it reading; 0.0 of 1 batches ready)"
