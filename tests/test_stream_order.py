"""The laws of pmd/stream/order.py: each sample once an epoch, whoever asks and from wherever on."""

from collections import Counter
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pmd.stream.order import (
    SORTED,
    Mix,
    Order,
    Places,
    added,
    keyed,
    mix_of,
    order_hash,
    permuted,
    set_hash,
    tempered,
)
from pmd.stream.samples import Stream
from tests.locked import locked
from tests.small import pmd, pmd_json

SIZES = st.lists(st.integers(0, 40), min_size=1, max_size=30)


def samples(order: Order, epoch: int, positions: Places) -> list[tuple[int, int]]:
    at = order.at(epoch, positions)
    return list(zip(at.shard.tolist(), at.sample.tolist(), strict=True))


# Permutations


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 5_000), st.integers(0, 2**64 - 1))
def test_a_permutation_takes_every_place_once(size: int, key: int) -> None:
    assert sorted(permuted(np.arange(size), size, key).tolist()) == list(range(size))


@pytest.mark.parametrize("size", [SORTED, SORTED + 1, 70_000_000, 1 << 40])
def test_a_place_goes_where_it_goes_whoever_goes_with_it(size: int) -> None:
    places = np.linspace(0, size - 1, 50, dtype=np.int64)
    together = permuted(places, size, 7).tolist()
    assert together == [int(permuted(np.array([place]), size, 7)[0]) for place in places]
    assert len(set(together)) == 50 and min(together) >= 0 and max(together) < size


def test_all_permutations_of_a_few_come_about_equally_often() -> None:
    met = Counter(tuple(permuted(np.arange(4), 4, keyed(key)).tolist()) for key in range(12_000))
    assert len(met) == 24
    expected = 12_000 / 24
    assert sum((count - expected) ** 2 / expected for count in met.values()) < 49.7  # chi2, 23 degrees: 0.1 %


@pytest.mark.parametrize("size", [SORTED, SORTED + 1, 5_000])
def test_any_place_may_come_anywhere(size: int) -> None:
    """Over keys, one place lands in every tenth of the range equally often."""
    rounds = 4_000
    tenths = Counter(int(permuted(np.array([3]), size, keyed(key))[0]) * 10 // size for key in range(rounds))
    expected = rounds / 10
    assert sum((tenths[n] - expected) ** 2 / expected for n in range(10)) < 27.9  # 9 degrees: 0.1 %


def test_the_numbers_are_those_that_checkpoints_were_written_with() -> None:
    """A change of any of these breaks every run that is to be resumed."""
    assert keyed(0) == 0xC75BE07A863A390D
    assert keyed(1, 2, 3) == 0x1E1919B4B23E69F2
    assert permuted(np.arange(8), 8, 1).tolist() == [1, 7, 3, 6, 0, 5, 2, 4]
    assert permuted(np.arange(5), 70_000_000, 1).tolist() == [
        29595782,
        60038807,
        15645718,
        21837513,
        19882447,
    ]
    assert samples(Order([3, 0, 2, 5], seed=4, window=2), 1, np.arange(10)) == [
        (2, 1),
        (3, 2),
        (3, 4),
        (3, 3),
        (3, 1),
        (3, 0),
        (2, 0),
        (0, 2),
        (0, 1),
        (0, 0),
    ]
    assert mix_of([2, 1], seed=0, block=8).at(np.arange(8)).stream.tolist() == [1, 0, 0, 0, 0, 1, 1, 0]
    assert order_hash(1, np.arange(3), np.arange(3, dtype=np.uint64)) == 0x22210322E346EC314D4B86177C58D453
    assert set_hash(np.arange(3, dtype=np.uint64)) == 0xB1948E29D68AE86A32644EB44A361A6F


# One stream


@settings(max_examples=80, deadline=None)
@given(SIZES, st.integers(0, 9), st.integers(0, 3), st.integers(1, 9))
def test_an_epoch_has_every_sample_once(sizes: list[int], seed: int, epoch: int, window: int) -> None:
    order = Order(sizes, seed=seed, window=window)
    assert order.samples == sum(sizes)
    found = samples(order, epoch, np.arange(order.samples))
    assert sorted(found) == [(shard, n) for shard, size in enumerate(sizes) for n in range(size)]


@settings(max_examples=60, deadline=None)
@given(SIZES.filter(sum), st.integers(1, 9), st.data())
def test_any_ranks_from_any_position_on_make_up_the_same_sequence(
    sizes: list[int], window: int, data: st.DataObject
) -> None:
    order = Order(sizes, seed=1, window=window)
    whole = samples(order, 0, np.arange(order.samples))
    ranks, start = data.draw(st.integers(1, 8)), data.draw(st.integers(0, order.samples))
    for rank in range(ranks):
        own = np.arange(order.samples)[start:]
        own = own[own % ranks == rank]
        assert samples(Order(sizes, seed=1, window=window), 0, own) == [whole[p] for p in own]


def test_epochs_and_seeds_differ() -> None:
    orders = [
        samples(Order([50] * 20, seed=seed, window=4), epoch, np.arange(1_000))
        for seed in range(3)
        for epoch in range(3)
    ]
    assert len({tuple(order) for order in orders}) == 9
    for first, second in pairwise(orders):
        assert sum(a == b for a, b in zip(first, second, strict=True)) < 20


def test_no_more_shards_are_read_at_a_time_than_a_window_has() -> None:
    order = Order([30] * 23, seed=0, window=5)
    shards = order.at(2, np.arange(order.samples)).shard
    assert order.shards_from(2, 0).tolist() == list(dict.fromkeys(order.shards_from(2, 0).tolist()))
    for begin in range(0, order.samples, 150):
        of_window = set(shards[begin : begin + 150].tolist())
        assert len(of_window) <= 5
        assert of_window == {*order.shards_from(2, begin)[:5].tolist()}


def test_a_batch_has_samples_of_nearly_all_shards_of_its_window() -> None:
    shards = Order([1_000] * 64, seed=0, window=32).at(0, np.arange(256)).shard
    assert len(set(shards.tolist())) == 32


def test_positions_outside_of_an_epoch_are_an_error() -> None:
    order = Order([3, 2], seed=0)
    for position in (-1, 5):
        with pytest.raises(IndexError, match=f"{position} of 5"):
            order.at(0, np.array([position]))
    with pytest.raises(ValueError, match="window 0"):
        Order([1], seed=0, window=0)


# Several streams


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 60), min_size=1, max_size=6), st.integers(0, 5), st.integers(1, 6))
def test_a_mix_gives_each_stream_its_turns_one_by_one(counts: list[int], seed: int, blocks: int) -> None:
    mix = Mix(tuple(counts), seed)
    turns = mix.at(np.arange(blocks * mix.block))
    for stream, count in enumerate(counts):
        assert sorted(turns.turn[turns.stream == stream].tolist()) == list(range(blocks * count))
    ahead = mix.at(np.arange(mix.block // 2, blocks * mix.block))
    assert ahead.stream.tolist() == turns.stream[mix.block // 2 :].tolist()


def test_a_mix_keeps_to_its_weights() -> None:
    assert mix_of([3, 1], seed=0, block=8).counts == (6, 2)
    assert mix_of([1, 1, 1], seed=0, block=8).counts == (3, 3, 2)
    assert mix_of([0.7, 0.2, 0.1], seed=0, block=1_000).counts == (700, 200, 100)
    with pytest.raises(ValueError, match=r"weight 0\.0001 is less than one sample in 1024"):
        mix_of([1, 0.0001], seed=0)
    with pytest.raises(ValueError, match="above 0"):
        mix_of([1, 0], seed=0)


def test_temperature_lies_between_sizes_and_equality() -> None:
    assert tempered([100, 1], 1) == [100, 1]
    assert tempered([100, 1], 2) == [10, 1]
    assert tempered([100, 1], float("inf")) == [1, 1]
    with pytest.raises(ValueError, match="temperature 0"):
        tempered([1], 0)


# Proof


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(0, 2**64 - 1), min_size=2, max_size=30, unique=True), st.data())
def test_parts_add_up_to_the_whole_and_any_change_shows(keys: list[int], data: st.DataObject) -> None:
    told = np.array(keys, np.uint64)
    at = np.arange(told.size)
    whole = order_hash(0, at, told)
    cut = data.draw(st.integers(1, told.size - 1))
    assert whole == added(order_hash(0, at[cut:], told[cut:]), order_hash(0, at[:cut], told[:cut]))
    first, second = sorted(data.draw(st.permutations(range(told.size)))[:2])
    swapped = told.copy()
    swapped[[first, second]] = told[[second, first]]
    assert order_hash(0, at, swapped) != whole and order_hash(1, at, told) != whole
    assert set_hash(swapped) == set_hash(told)
    assert set_hash(told[:-1]) != set_hash(told)
    twice = np.append(told[:-1], told[0])
    assert set_hash(twice) != set_hash(told) and order_hash(0, at, twice) != whole


# pmd order


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("corpus")
    locked(folder, {"coco": (7, 0, 5), "cc3m": (1, 9)})
    return folder


def lines(*arguments: str | Path) -> list[tuple[int, str]]:
    told = (line.split("\t") for line in pmd("order", *arguments).stdout.splitlines())
    return [(int(position), key) for position, key in told]


def test_ranks_print_the_sequence_that_the_stream_delivers(corpus: Path) -> None:
    stream = Stream(corpus, seed=7)
    keys = [*enumerate(stream.keys(2, np.arange(22)))]
    common = (corpus / "lock.json", "--seed", "7", "--epoch", "2")
    assert lines(corpus, "--seed", "7", "--epoch", "2", "--count", "22") == keys
    ranks = [lines(*common, "--world", "3", "--rank", str(rank), "--start", "5") for rank in range(3)]
    assert sorted(line for rank in ranks for line in rank) == keys[5:]
    assert all(position % 3 == rank for rank in range(3) for position, _ in ranks[rank])
    assert lines(*common, "--world", "3", "--rank", "1", "--start", "5", "--count", "2") == [
        keys[7],
        keys[10],
    ]
    told = pmd_json("order", *common, "--start", "20")
    assert told == {"ok": True, "positions": 22, "samples": [[*line] for line in keys[20:]]}


def test_pairs_of_one_source_are_printed_too(corpus: Path) -> None:
    stream = Stream(corpus, sources=["coco"], unit="pairs")
    told = lines(corpus, "--unit", "pairs", "--source", "coco", "--count", "1000")
    assert [key for _, key in told] == stream.keys(0, np.arange(len(stream)))


def test_an_order_that_cannot_be_is_a_bad_request(corpus: Path, tmp_path: Path) -> None:
    assert "ranks are 0 to 1" in pmd("order", corpus, "--world", "2", "--rank", "2", code=2).stderr
    assert "an epoch has 22 samples" in pmd("order", corpus, "--start", "23", code=2).stderr
    assert "has no lock.json" in pmd("order", tmp_path, code=2).stderr
    assert "has no source 'sbu'" in pmd("order", corpus, "--source", "sbu", code=2).stderr
