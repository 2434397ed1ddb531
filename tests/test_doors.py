"""The laws of flava_model/doors.py: one sequence for any loader, any number of its workers, and of ranks."""

# webdataset makes its names at run time, where no checker sees them.
# pyright: reportAttributeAccessIssue=false

import itertools
import json
import os
import pickle
import random
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
import webdataset as wds
from torch.utils.data import DataLoader
from torchdata.stateful_dataloader import StatefulDataLoader

from flava_model.data import Images, Loader
from flava_model.doors import Batches, Samples, run_state
from flava_model.views import Views
from pmd.errors import BadRequest, Refused
from pmd.stream import Feed, Stream, merged, prove
from tests.locked import locked
from tests.test_stream_feed import BATCH, MAKE, SHARDS, WORLDS

VIEWS = Views(sizes=(16, 8), area=(0.3, 1.0), flip=0.5)
WORKERS = (0, 1, 2, 4)
BLEND_STEPS = 6  # of a source without end

# Neither is about us: this machine may have fewer cores than workers, and torchdata calls an old name.
pytestmark = [
    pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning"),
    pytest.mark.filterwarnings("ignore:'set_vital' is deprecated:UserWarning"),
]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("corpus")
    locked(folder, SHARDS)
    return folder


def seen(images: Images) -> list[tuple[Any, ...]]:
    views = [view.numpy() for view in images.views.values()]
    return [
        (sample.position, sample.key, sample.caption, *(view[place].tobytes() for view in views))
        for place, sample in enumerate(images.samples)
    ]


class Ranks:
    """All ranks of a run, each with a DataLoader of its own, side by side."""

    def __init__(self, corpus: Path, how: str, world: int, workers: int) -> None:
        self.feeds = [Feed(MAKE[how](corpus), batch=BATCH, rank=rank, world=world) for rank in range(world)]
        # More processes than are worth waiting for: a rank is like any other, so some get no workers.
        self._workers = [workers if rank < 2 else 0 for rank in range(world)]

    def steps(self) -> Iterator[list[tuple[Any, ...]]]:
        """The global batches from here on, in order of position."""
        loaders = [
            iter(DataLoader(Batches(feed, VIEWS), batch_size=None, num_workers=workers))
            for feed, workers in zip(self.feeds, self._workers, strict=True)
        ]
        for shares in zip(*loaders, strict=False):
            for feed, images in zip(self.feeds, shares, strict=True):
                feed.delivered(images.batch, images.samples)
            yield sorted(sample for images in shares for sample in seen(images))

    def state(self) -> dict[str, Any]:
        state = json.dumps(merged([feed.part_state() for feed in self.feeds]))
        assert len(state) < 1000
        return json.loads(state)


@pytest.mark.parametrize("how", MAKE)
def test_one_sequence_and_one_proof_for_any_number_of_workers_and_ranks(corpus: Path, how: str) -> None:
    told: list[Any] = []
    for world, workers in itertools.product(WORLDS, WORKERS):
        ranks = Ranks(corpus, how, world, workers)
        told.append(([*itertools.islice(ranks.steps(), BLEND_STEPS)], ranks.state()))
    assert all(other == told[0] for other in told)
    assert [sample[0] for step in told[0][0] for sample in step] == [*range(len(told[0][0]) * BATCH)]


@pytest.mark.parametrize("how", MAKE)
def test_a_run_goes_on_with_other_workers_and_ranks(corpus: Path, how: str) -> None:
    chance = random.Random(how)
    whole = [*itertools.islice(Ranks(corpus, how, 1, 0).steps(), BLEND_STEPS)]
    for _ in range(20):
        stop, end = sorted(chance.sample(range(len(whole) + 1), 2))
        first = Ranks(corpus, how, chance.choice(WORLDS), chance.choice(WORKERS))
        before = [*itertools.islice(first.steps(), stop)]
        second = Ranks(corpus, how, chance.choice(WORLDS), chance.choice(WORKERS))
        for feed in second.feeds:
            feed.load_state_dict(first.state())
        assert [*before, *itertools.islice(second.steps(), end - stop)] == whole[:end]


def feed_of(corpus: Path, **how: Any) -> Feed:
    return Feed(Stream(corpus, window=2), batch=6, **how)


def stateful(corpus: Path, workers: int, **how: Any) -> StatefulDataLoader:
    return StatefulDataLoader(
        Batches(feed_of(corpus, **how), VIEWS), batch_size=None, num_workers=workers, snapshot_every_n_steps=3
    )


@pytest.mark.parametrize("workers", WORKERS)
def test_torchdatas_loader_resumes_by_itself_and_anew_with_other_workers(corpus: Path, workers: int) -> None:
    whole = [seen(images) for images in Loader(feed_of(corpus), VIEWS)]
    end = None
    for stop in range(len(whole) + 1):
        loader = stateful(corpus, workers)
        made = iter(loader)
        before = [seen(next(made)) for _ in range(stop)]
        assert before == whole[:stop]
        state = loader.state_dict()
        del made
        if stop % 3 == 0:  # then nothing has to be made again to get there
            assert max(len(json.dumps(part)) for part in parts_of(state)) < 1000
            of_run = run_state(state)
            assert of_run["position"] == stop * 6 == of_run["count"]
            anew = feed_of(corpus)
            anew.load_state_dict(of_run)
            other = StatefulDataLoader(Batches(anew, VIEWS), batch_size=None, num_workers=3 - workers % 2)
            assert [seen(images) for images in other] == whole[stop:]
            end = end or run_state(other.state_dict())
            assert run_state(other.state_dict()) == end, "the proof is of the whole, however it came about"
        again = stateful(corpus, workers)
        again.load_state_dict(state)
        assert [seen(images) for images in again] == whole[stop:]


def parts_of(state: Any) -> list[Any]:
    if not isinstance(state, dict):
        return []
    return [state] if "within" in state else [part for inner in state.values() for part in parts_of(inner)]


def test_states_of_all_ranks_make_one_of_the_run(corpus: Path) -> None:
    whole = [seen(images) for images in Loader(feed_of(corpus), VIEWS)]
    loaders = [stateful(corpus, 2, rank=rank, world=3) for rank in range(3)]
    for made in [iter(loader) for loader in loaders]:
        for _ in range(3):
            next(made)
    states = [loader.state_dict() for loader in loaders]
    run = feed_of(corpus)
    run.load_state_dict(run_state(*states))
    assert [seen(images) for images in Loader(run, VIEWS)] == whole[3:]
    with pytest.raises(Refused, match="6 samples"):
        run_state(states[0])  # a third of each batch
    with pytest.raises(Refused, match="of 2 parts, here 1 share"):
        feed_of(corpus).load_state_dict(parts_of(states[0])[0])
    with pytest.raises(BadRequest, match="no states"):
        run_state({})


def test_states_of_two_moments_make_none(corpus: Path) -> None:
    feeds = [feed_of(corpus, rank=rank, world=2) for rank in range(2)]
    for feed, steps in zip(feeds, (1, 2), strict=True):
        for images in itertools.islice(Loader(feed, VIEWS), steps):
            feed.delivered(images.batch, images.samples)
    with pytest.raises(Refused, match="not of one moment"):
        merged([feed.part_state() for feed in feeds])
    with pytest.raises(Refused, match=r"differ in of\.seed: 0 and 7"):
        other = Feed(Stream(corpus, window=2, seed=7), batch=6, rank=1, world=2)
        merged([feeds[0].part_state(), other.part_state()])


@pytest.mark.parametrize("workers", [0, 2])
def test_workers_that_live_on_see_the_next_epoch_and_a_loaded_place(corpus: Path, workers: int) -> None:
    feed = feed_of(corpus)
    loader = DataLoader(
        Batches(feed, VIEWS), batch_size=None, num_workers=workers, persistent_workers=workers > 0
    )
    epochs: list[list[Any]] = []
    for epoch in range(2):
        epochs.append([])
        for images in loader:
            assert images.batch.epoch == epoch
            epochs[-1].append(seen(images))
            feed.delivered(images.batch, images.samples)
        assert isinstance(feed.source, Stream)
        prove(feed, feed.source)
        feed.end_epoch()
    assert epochs[0] != epochs[1]
    middle = feed_of(corpus)
    for images in itertools.islice(Loader(middle, VIEWS), 4):
        middle.delivered(images.batch, images.samples)
    feed.load_state_dict(middle.state_dict())
    assert [seen(images) for images in loader] == epochs[0][4:]


def test_processes_that_are_not_forked_open_the_corpus_themselves(corpus: Path) -> None:
    loader = DataLoader(
        Batches(feed_of(corpus), VIEWS), batch_size=None, num_workers=1, multiprocessing_context="spawn"
    )
    whole = [seen(images) for images in Loader(feed_of(corpus), VIEWS)]
    assert [seen(images) for images in loader] == whole
    copied = pickle.loads(pickle.dumps(Stream(corpus, seed=3, unit="pairs", sources=["coco"])))
    assert copied.identity == Stream(corpus, seed=3, unit="pairs", sources=["coco"]).identity


def test_a_batch_goes_where_it_is_sent(corpus: Path) -> None:
    images = next(iter(Loader(feed_of(corpus), VIEWS)))
    assert images.views[16].shape == (6, 3, 16, 16) and images.views[16].dtype == torch.uint8
    assert images.views[16].is_contiguous(memory_format=torch.channels_last)
    moved = images.to("meta")
    assert {view.device.type for view in moved.views.values()} == {moved.weights.device.type} == {"meta"}
    assert (moved.samples, moved.captions) == (images.samples, [sample.caption for sample in images.samples])


def test_a_killed_process_leaves_nothing_behind(corpus: Path) -> None:
    """Its workers end with it, and no memory of theirs is left under a name."""
    program = f"""
import sys
from torch.utils.data import DataLoader
from flava_model.doors import Batches
from pmd.stream import Feed, Stream
feed = Feed(Stream({str(corpus)!r}), batch=6)
loader = DataLoader(Batches(feed), batch_size=None, num_workers=2)
while True:
    for images in loader:
        print(images.batch.number, flush=True)
"""
    before = {*os.listdir("/dev/shm")}
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for _ in range(25):
            process.stdout.readline()
        workers = psutil.Process(process.pid).children(recursive=True)
        assert len(workers) == 2
        process.kill()
        process.wait()
        gone, left = psutil.wait_procs(workers, timeout=60)
        assert not left and len(gone) == 2
    mine = (process.pid, *(worker.pid for worker in workers))
    after = {*os.listdir("/dev/shm")} - before
    assert not [name for name in after if any(f"_{pid}_" in name for pid in mine)]


# webdataset


def pipeline(feed: Feed) -> wds.DataPipeline:
    return wds.DataPipeline(
        Samples(feed), wds.decode("rgb8"), wds.to_tuple("__key__", "jpg", "txt", "json"), wds.batched(6)
    )


@pytest.mark.parametrize("workers", WORKERS)
def test_a_webdataset_pipeline_begins_with_our_samples(corpus: Path, workers: int) -> None:
    whole = [images.samples for images in Loader(feed_of(corpus), VIEWS)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        made = [*wds.WebLoader(pipeline(feed_of(corpus)), batch_size=None, num_workers=workers)]
    assert [keys for keys, _, _, _ in made] == [[sample.key for sample in batch] for batch in whole]
    assert [texts for _, _, texts, _ in made] == [[sample.caption for sample in batch] for batch in whole]
    told = [(one["key"], one["caption"], one["box"]) for _, _, _, batch in made for one in batch]
    assert told == [
        (sample.key, sample.caption, [*sample.box] if sample.box else None)
        for batch in whole
        for sample in batch
    ]
    assert {picture.shape for _, pictures, _, _ in made for picture in pictures} == {(64, 96, 3)}


def test_samples_of_a_loader_of_ones_own_resume_within_a_batch(corpus: Path) -> None:
    whole = [sample["__key__"] for sample in Samples(feed_of(corpus))]
    assert len(whole) == 60
    for workers, stop in ((0, 7), (0, 12), (2, 3)):
        loader = StatefulDataLoader(
            Samples(feed_of(corpus)), batch_size=4, num_workers=workers, collate_fn=keys_of
        )
        made = iter(loader)
        before = [next(made) for _ in range(stop)]
        state = loader.state_dict()
        rest = [*made]
        again = StatefulDataLoader(
            Samples(feed_of(corpus)), batch_size=4, num_workers=workers, collate_fn=keys_of
        )
        again.load_state_dict(state)
        assert [*again] == rest
        assert sorted(key for batch in before + rest for key in batch) == sorted(whole)
        if workers == 0:
            assert [key for batch in before + rest for key in batch] == whole
        if (stop * 4) % 6:
            with pytest.raises(Refused, match="only whole batches"):
                run_state(state)


def keys_of(samples: list[dict[str, Any]]) -> list[str]:
    return [sample["__key__"] for sample in samples]


# The examples


def example(name: str, *arguments: object) -> list[str]:
    line = [sys.executable, "-m", f"flava_model.examples.{name}", *map(str, arguments)]
    done = subprocess.run(line, capture_output=True, text=True, timeout=250)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@pytest.mark.parametrize("name", ["with_dataloader", "with_lightning"])
def test_an_example_that_is_stopped_goes_on_where_it_was(corpus: Path, tmp_path: Path, name: str) -> None:
    """It prints the keys of each batch that it trains on."""
    whole = example(name, corpus, tmp_path / "whole", "--steps", 9)
    assert len(whole) == 9
    first = example(name, corpus, tmp_path / "run", "--steps", 4)
    second = example(name, corpus, tmp_path / "run", "--steps", 9)
    assert first + second == whole


def test_the_example_of_a_webdataset_pipeline_runs(corpus: Path) -> None:
    told = example("with_webdataset", corpus)
    keys = [
        sample.key for images in Loader(Feed(Stream(corpus), batch=8), VIEWS) for sample in images.samples
    ]
    assert [line.split("\t")[0] for line in told] == keys
