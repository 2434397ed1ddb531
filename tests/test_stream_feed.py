"""The laws of pmd/stream/feed.py: one sequence for all numbers of ranks, and a place that no stop loses."""

import json
import random
import shutil
import threading
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pmd.errors import BadRequest, Damaged, Refused
from pmd.stream import Sample, Stream, Unit
from pmd.stream.feed import Blend, Feed, Gather, Proof, Remainder, Source, prove
from pmd.stream.order import mix_of
from tests.locked import locked
from tests.test_stream_samples import damage

SHARDS = {"coco": (7, 0, 5, 11), "cc3m": (1, 9, 30)}
SAMPLES = 63
WORLDS = (1, 2, 3, 4, 8)
BATCH = 24  # which they all divide

T = TypeVar("T")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("corpus")
    locked(folder, SHARDS)
    return folder


def blend(corpus: Path, **how: Any) -> Blend:
    streams = {
        "pairs": Stream(corpus, sources=["cc3m"], unit="pairs", window=2),
        "images": Stream(corpus, sources=["coco"], window=2, seed=5),
        "all": Stream(corpus, window=3),
    }
    return Blend(streams, mix_of([0.7, 0.15, 0.15], seed=3, block=64).counts, seed=3, **how)


MAKE: dict[str, Callable[[Path], Source]] = {
    "images": lambda corpus: Stream(corpus, window=2),
    "pairs": lambda corpus: Stream(corpus, window=2, unit="pairs"),
    "blend": blend,
}


class Run:
    """All ranks of a run."""

    def __init__(self, make: Callable[[], Source], world: int = 1, *, remainder: Remainder = "drop") -> None:
        self.feeds = [
            Feed(make(), batch=BATCH, remainder=remainder, rank=rank, world=world) for rank in range(world)
        ]

    def step(self) -> list[Sample]:
        """One global batch, in order of position, without what only fills it up."""
        found: list[Sample] = []
        for feed in self.feeds:
            batch = next(iter(feed))
            samples = feed.source.read(batch.epoch, batch.positions)
            assert len(samples) == BATCH // len(self.feeds)
            feed.delivered(batch, samples)
            pairs = zip(samples, batch.weights.tolist(), strict=True)
            found += [sample for sample, weight in pairs if weight]
        return sorted(found, key=lambda sample: sample.position)

    def together(self, act: Callable[[Feed, Gather], T]) -> T:
        """What a collective gives, which is the same to all ranks; each is a thread here."""
        said: dict[int, list[int]] = {}
        barrier = threading.Barrier(len(self.feeds))

        def on(feed: Feed) -> T:
            def gather(numbers: list[int]) -> list[list[int]]:
                said[feed.rank] = numbers
                barrier.wait(30)
                everybodys = [said[rank] for rank in range(len(self.feeds))]
                barrier.wait(30)
                return everybodys

            return act(feed, gather)

        with ThreadPoolExecutor(len(self.feeds)) as ranks:
            first, *others = ranks.map(on, self.feeds)
        assert all(other == first for other in others)
        return first

    def proof(self) -> Proof:
        return self.together(Feed.proof)

    def state(self) -> dict[str, Any]:
        state = json.dumps(self.together(Feed.state_dict))
        assert len(state) < 1000
        return json.loads(state)

    def load(self, state: dict[str, Any]) -> None:
        for feed in self.feeds:
            feed.load_state_dict(state)

    def end_epoch(self) -> None:
        for feed in self.feeds:
            feed.end_epoch()


def seen(samples: list[Sample]) -> list[tuple[Any, ...]]:
    return [(sample.position, sample.key, sample.caption, sample.box) for sample in samples]


@pytest.mark.parametrize("how", MAKE)
def test_one_sequence_and_one_proof_for_any_number_of_ranks(corpus: Path, how: str) -> None:
    told: list[tuple[Any, ...]] = []
    for world in WORLDS:
        run = Run(lambda: MAKE[how](corpus), world)
        steps = [seen(run.step()) for _ in range(run.feeds[0].batches or 9)]
        told.append((steps, run.proof()))
    assert all(other == told[0] for other in told)
    positions = [sample[0] for step in told[0][0] for sample in step]
    assert positions == [*range(len(positions))]


@pytest.mark.parametrize("how", MAKE)
def test_a_run_goes_on_anywhere_with_any_number_of_ranks(corpus: Path, how: str) -> None:
    chance = random.Random(how)

    def make() -> Source:
        return MAKE[how](corpus)

    def walk(run: Run, until: int) -> list[Any]:
        """Up to so many steps from the beginning, over the ends of epochs; with the proof of each epoch."""
        found: list[Any] = []
        feed = run.feeds[0]
        while (done := (feed.batches or 0) * feed.epoch + feed.position // BATCH) < until:
            if feed.batches is not None and feed.position == feed.batches * BATCH:
                run.end_epoch()
                continue
            found.append((done, feed.epoch, seen(run.step()), run.proof()))
        return found

    whole = walk(Run(make), 12)
    for _ in range(20):
        stop, end = sorted(chance.sample(range(13), 2))
        first = Run(make, chance.choice(WORLDS))
        before = walk(first, stop)
        second = Run(make, chance.choice(WORLDS))
        second.load(first.state())
        assert before + walk(second, end) == whole[:end]


def test_what_was_only_read_ahead_is_read_again(corpus: Path) -> None:
    run = Run(lambda: Stream(corpus))
    (feed,) = run.feeds
    ahead = feed.source.read(0, next(iter(feed)).positions)
    assert feed.state_dict()["position"] == 0
    assert seen(run.step()) == seen(ahead)


@pytest.mark.parametrize("unit", ["images", "pairs"])
@pytest.mark.parametrize("remainder", ["drop", "pad"])
@pytest.mark.parametrize("world", [1, 3, 8])
def test_each_sample_of_an_epoch_is_delivered_once_and_that_is_proven(
    corpus: Path, unit: Unit, remainder: Remainder, world: int
) -> None:
    run = Run(lambda: Stream(corpus, unit=unit, window=2), world, remainder=remainder)
    samples = len(Stream(corpus, unit=unit))
    for _ in range(2):
        met = [sample for _ in range(run.feeds[0].batches or 0) for sample in run.step()]
        assert len({(sample.key, sample.caption) for sample in met}) == len(met)
        assert len(met) == (samples if remainder == "pad" else samples // BATCH * BATCH)
        proof = run.together(lambda feed, gather: prove(feed, feed.source, gather))  # pyright: ignore
        assert (proof.count, proof.substituted) == (len(met), 0)
        run.end_epoch()


def test_a_sample_that_came_twice_is_no_proof(corpus: Path) -> None:
    run = Run(lambda: Stream(corpus))
    (feed,) = run.feeds
    stream = Stream(corpus)
    for number in range(feed.batches or 0):
        batch = feed.batch(0, number)
        samples = stream.read(0, batch.positions)
        if number == 1:
            samples[3] = samples[3]._replace(key=samples[4].key)
        feed.delivered(batch, samples)
    with pytest.raises(Damaged, match="not each came once"):
        prove(feed, stream)


def test_damaged_samples_shorten_no_batch_and_are_counted(corpus: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(corpus, tmp_path / "copy"))
    keys = Stream(copy).keys(0, np.arange(48))
    for key in keys[::12]:
        damage(copy, key)
    told: list[tuple[Any, ...]] = []
    for world in WORLDS:
        run = Run(lambda: Stream(copy), world)
        steps = [run.step() for _ in range(2)]
        assert [len(step) for step in steps] == [BATCH, BATCH]
        stood_in = [sample for step in steps for sample in step if sample.instead_of]
        assert [sample.instead_of for sample in stood_in] == keys[::12]
        proof = run.together(lambda feed, gather: prove(feed, feed.source, gather))  # pyright: ignore
        assert proof.substituted == 4
        told.append(([seen(step) for step in steps], proof))
        ledger = [entry for feed in run.feeds for entry in feed.source.damages]  # pyright: ignore
        assert {(entry.position, entry.key) for entry in ledger} >= {
            (sample.position, sample.instead_of) for sample in stood_in
        }
    assert all(other == told[0] for other in told)


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.sampled_from([0, 1, 1, 2, 3, 17]), min_size=1, max_size=6).filter(any),
    st.sampled_from(WORLDS),
    st.integers(1, 4),
    st.data(),
)
def test_shards_of_any_size_make_one_sequence(
    tmp_path_factory: pytest.TempPathFactory, sizes: list[int], world: int, window: int, data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("sizes")
    locked(folder, {"coco": sizes})

    def make() -> Stream:
        return Stream(folder, window=window)

    run, other = Run(make, 1, remainder="pad"), Run(make, world, remainder="pad")
    batches = run.feeds[0].batches or 0
    expected = [seen(run.step()) for _ in range(batches)]
    stop = data.draw(st.integers(0, batches))
    found = [seen(other.step()) for _ in range(stop)]
    resumed = Run(make, data.draw(st.sampled_from(WORLDS)), remainder="pad")
    resumed.load(other.state())
    found += [seen(resumed.step()) for _ in range(batches - stop)]
    assert found == expected and sum(map(len, found)) == sum(sizes)
    assert resumed.proof() == run.proof()


# Mixing


def test_a_blend_keeps_its_proportions_and_counts_them(corpus: Path) -> None:
    source = blend(corpus)
    met: Counter[str] = Counter()
    names = {"pairs": 45, "images": 10, "all": 9}  # of a block of 64
    for block in range(4):
        samples = source.read(0, np.arange(block * 64, (block + 1) * 64))
        # By their proofs alone the streams' samples cannot be told apart; by what is counted they can.
        met.update(sample.source for sample in samples)
        assert source.delivered_before((block + 1) * 64) == {
            name: count * (block + 1) for name, count in names.items()
        }
    assert met["cc3m"] >= 4 * 45 and met["coco"] >= 4 * 10
    assert sum(source.delivered_before(100).values()) == 100


def test_a_mix_that_is_changed_on_the_way_is_part_of_the_state(corpus: Path) -> None:
    run = Run(lambda: blend(corpus), 2)
    before = [seen(run.step()) for _ in range(3)]
    for feed in run.feeds:
        assert isinstance(feed.source, Blend)
        assert feed.source.change((1, 1, 2), after=feed.position) == 128, "at the next block"
    state = run.state()
    after = [seen(run.step()) for _ in range(6)]

    with pytest.raises(Refused, match=r"state's mix is \[\[0, \[45, 10, 9\]\], \[128, \[1, 1, 2\]\]\], here"):
        Run(lambda: blend(corpus)).load(state)
    resumed = Run(lambda: blend(corpus, changes=[(128, (1, 1, 2))]))
    resumed.load(state)
    assert [seen(resumed.step()) for _ in range(6)] == after
    # Up to the change it is the sequence that it was.
    unchanged = Run(lambda: blend(corpus))
    assert [seen(unchanged.step()) for _ in range(5)] == before + after[:2]
    assert resumed.feeds[0].source.delivered_before(132) == {  # pyright: ignore
        "pairs": 2 * 45 + 1,
        "images": 2 * 10 + 1,
        "all": 2 * 9 + 2,
    }
    with pytest.raises(BadRequest, match="settled up to 128"):
        blend(corpus, changes=[(128, (1, 1, 2)), (64, (2, 1, 1))])
    with pytest.raises(BadRequest, match="where no block begins"):
        blend(corpus, changes=[(100, (1, 1, 2))])


@pytest.mark.parametrize("counts", [(1, 2), (1, 0, 1), ()])
def test_a_mix_that_leaves_a_stream_out_is_a_bad_request(corpus: Path, counts: tuple[int, ...]) -> None:
    streams = {name: Stream(corpus) for name in ("a", "b", "c")}
    with pytest.raises(BadRequest, match="need 3 counts"):
        Blend(streams, counts)


def test_a_stream_without_samples_cannot_be_mixed_in(corpus: Path, tmp_path: Path) -> None:
    locked(tmp_path, {"sbu": (0,)})
    with pytest.raises(BadRequest, match="there is no sample in empty"):
        Blend({"full": Stream(corpus), "empty": Stream(tmp_path)}, (1, 1))


# What is refused


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"seed": 1}, "seed is 0, here it is 1"),
        ({"unit": "pairs"}, 'unit is "images", here it is "pairs"'),
        ({"window": 5}, "window is 32, here it is 5"),
        ({"sources": ["coco"]}, r'sources is \["cc3m", "coco"\], here it is \["coco"\]'),
    ],
)
def test_a_state_of_another_order_is_refused(corpus: Path, change: dict[str, Any], what: str) -> None:
    state = Feed(Stream(corpus), batch=4).state_dict()
    feed = Feed(Stream(corpus, **change), batch=4)
    with pytest.raises(Refused, match=what):
        feed.load_state_dict(state)
    assert (feed.epoch, feed.position) == (0, 0)


def test_a_state_of_other_data_or_batches_is_refused(corpus: Path, tmp_path: Path) -> None:
    state = Feed(Stream(corpus), batch=4).state_dict()
    locked(tmp_path, SHARDS, captions=2)
    for feed, what in (
        (Feed(Stream(tmp_path), batch=4), "root is "),
        (Feed(Stream(corpus), batch=8), "batch is 4, here it is 8"),
        (Feed(Stream(corpus), batch=4, remainder="pad"), 'remainder is "drop", here it is "pad"'),
        (Feed(blend(corpus), batch=4), "root is .*, here it is null"),
    ):
        with pytest.raises(Refused, match=what):
            feed.load_state_dict(state)
    with pytest.raises(Refused, match="a state of format 99"):
        Feed(Stream(corpus), batch=4).load_state_dict(state | {"format": 99})


def test_batches_that_cannot_be_are_bad_requests(corpus: Path) -> None:
    stream = Stream(corpus)
    wrong: list[dict[str, Any]] = [
        {"batch": 0},
        {"batch": 5, "world": 2},
        {"batch": 4, "world": 2, "rank": 2},
    ]
    for keys in wrong:
        with pytest.raises(BadRequest, match="cannot be shared alike"):
            Feed(stream, **keys)
    with pytest.raises(BadRequest, match="63 samples make no batch of 64"):
        Feed(stream, batch=64)
    assert Feed(stream, batch=64, remainder="pad").batches == 1
    with pytest.raises(BadRequest, match="give a gather"):
        Feed(stream, batch=4, world=2).state_dict()


def test_only_the_next_batch_can_be_delivered(corpus: Path) -> None:
    stream = Stream(corpus)
    feed = Feed(stream, batch=4)
    with pytest.raises(BadRequest, match="batch 1 of epoch 0 was delivered where the next was 0"):
        feed.delivered(feed.batch(0, 1), stream.read(0, np.arange(4, 8)))
    with pytest.raises(BadRequest, match="with samples of other positions"):
        feed.delivered(feed.batch(0, 0), stream.read(0, np.array([0, 2, 1, 3])))
