"""Which sample is trained on when: a pure function of (seed, epoch, position), in closed form.

    position -> its window -> a place in the window -> a shard, a sample in it

    epoch 0:  shards dealt by a keyed permutation   [7 2 9 4 | 0 5 1 8 | 3 6]     windows of 4 shards
              samples of a window dealt by another   7.31 4.02 9.77 7.05 2.40 ...

There is no list, no buffer and no state: what stands at position 61,000,000 costs as much to know as what
stands at 0, for any number of ranks and workers, and memory is a few numbers a shard. A reader that goes
through the positions in order has no more than one window's shards open (two, at a boundary).

Several streams (sources, image-only, text-only) are mixed position by position in exact proportions; see
Mix.

Numbers only: this module knows neither files nor keys. Permutations are Feistel networks over the smallest
even number of bits that holds the range, walked until they land in it (Black and Rogaway, "Ciphers with
arbitrary finite domains", 2002). They shuffle; they hide nothing from an adversary.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Numbers = NDArray[np.uint64]
Places = NDArray[np.int64]

ROUNDS = 8
# Ranges up to this are sorted by a hash: quicker there, and it gives all permutations alike, which a network
# of few bits does not.
SORTED = 1_024


# Numbers from numbers


def mixed(values: Numbers) -> Numbers:
    """Each as another of 64 bits, any bit of which depends on all: the finalizer of SplitMix64 (Steele, Lea
    and Flood, 2014).
    """
    with np.errstate(over="ignore"):
        values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return values ^ (values >> np.uint64(31))


def keyed(*parts: int) -> int:
    """One 64-bit key of several numbers, in their order. All randomness of a run begins here:
    keyed(seed, epoch, position, purpose).
    """
    key = 0x9E3779B97F4A7C15
    for part in parts:
        key = (key * 0x9E3779B97F4A7C15 + part + 1) & _ALL
        key = (key ^ (key >> 30)) * 0xBF58476D1CE4E5B9 & _ALL
        key = (key ^ (key >> 27)) * 0x94D049BB133111EB & _ALL
        key ^= key >> 31
    return key


def keyed_each(first: Sequence[int], places: Places, last: int) -> Numbers:
    """keyed(*first, place, last) for each of many places, at once."""
    golden = np.uint64(0x9E3779B97F4A7C15)
    keys = np.full(len(places), keyed(*first), np.uint64)
    with np.errstate(over="ignore"):
        for part in (places.astype(np.uint64), np.uint64(last)):
            keys = mixed(keys * golden + part + np.uint64(1))
    return keys


_ALL = (1 << 64) - 1


def permuted(places: Places, size: int, key: int) -> Places:
    """Where each of some places in range(size) goes under the permutation of a key."""
    assert size > 0
    if size <= SORTED:
        return np.argsort(mixed(np.arange(size, dtype=np.uint64) ^ np.uint64(keyed(key))))[places]
    half = ((size - 1).bit_length() + 1) // 2
    at = places.astype(np.uint64)
    at = _through(at, half, key)
    while (outside := at >= np.uint64(size)).any():
        at[outside] = _through(at[outside], half, key)
    return at.astype(np.int64)


def _through(values: Numbers, half: int, key: int) -> Numbers:
    """One pass through the network over 2 * half bits."""
    shift, mask = np.uint64(half), np.uint64((1 << half) - 1)
    left, right = values >> shift, values & mask
    for round in range(ROUNDS):
        left, right = right, left ^ (mixed(right ^ np.uint64(keyed(key, round))) & mask)
    return left << shift | right


# One stream


class At(NamedTuple):
    """Where samples lie: for each, the number of its shard and its place in it."""

    shard: Places
    sample: Places


class Order:
    """The order of one stream: every sample of its shards exactly once an epoch, another order each epoch."""

    def __init__(self, sizes: Sequence[int] | Places, *, seed: int, window: int = 32) -> None:
        """sizes: samples of each shard, in the order of the lock. window: shards that are mixed at a time."""
        self.sizes = np.asarray(sizes, np.int64)
        if window < 1 or (self.sizes < 0).any():
            raise ValueError(f"window {window}, least size {self.sizes.min()}")
        self.seed, self.window = seed, window
        self.samples = int(self.sizes.sum())
        self._epoch: _Epoch | None = None

    def at(self, epoch: int, positions: Places) -> At:
        """What stands at some positions of an epoch; each in range(self.samples)."""
        dealt = self._dealt(epoch)
        if positions.size and (positions.min() < 0 or positions.max() >= self.samples):
            raise IndexError(f"positions {positions.min()} to {positions.max()} of {self.samples}")
        shard, sample = np.empty_like(positions), np.empty_like(positions)
        windows = np.searchsorted(dealt.begins, positions, side="right") - 1
        for number in np.unique(windows):
            chosen = windows == number
            begin = dealt.begins[number]
            places = permuted(
                positions[chosen] - begin,
                int(dealt.begins[number + 1] - begin),
                keyed(self.seed, epoch, int(number), _IN_WINDOW),
            )
            # Of this window's shards: the first whose samples end behind the place.
            first = int(number) * self.window
            ends = dealt.ends[first : first + self.window] - begin
            among = np.searchsorted(ends, places, side="right")
            shard[chosen] = dealt.shards[first + among]
            sample[chosen] = places - ends[among] + self.sizes[shard[chosen]]
        return At(shard, sample)

    def shards_from(self, epoch: int, position: int) -> Places:
        """The shards that are read from a position of an epoch on, in the order of their windows."""
        dealt = self._dealt(epoch)
        window = int(np.searchsorted(dealt.begins, position, side="right")) - 1
        return dealt.shards[window * self.window :]

    def spans(self, epoch: int, positions: Places) -> tuple[Places, Places]:
        """Of the window that each position lies in: its first position, and how many it has."""
        begins = self._dealt(epoch).begins
        windows = np.searchsorted(begins, positions, side="right") - 1
        return begins[windows], begins[windows + 1] - begins[windows]

    def _dealt(self, epoch: int) -> "_Epoch":
        dealt = self._epoch  # once: another thread may be at another epoch
        if dealt is None or dealt.number != epoch:
            self._epoch = dealt = _deal(self.sizes, self.seed, self.window, epoch)
        return dealt


@dataclass(frozen=True)
class _Epoch:
    number: int
    shards: Places  # as dealt; those without samples come last, so that no window is empty
    ends: Places  # position behind the last sample of each of them, as if they were read one by one
    begins: Places  # first position of each window; and behind the last


def _deal(sizes: Places, seed: int, window: int, epoch: int) -> _Epoch:
    filled = np.flatnonzero(sizes)
    shards = filled
    if filled.size:
        shards = filled[permuted(np.arange(filled.size), filled.size, keyed(seed, epoch, _SHARDS))]
    ends = np.cumsum(sizes[shards])
    begins = np.concatenate(([0], ends[window - 1 :: window], ends[-1:] if filled.size % window else []))
    return _Epoch(epoch, shards, ends, begins.astype(np.int64))


_SHARDS, _IN_WINDOW, _MIX, _PROOF = range(4)  # purposes of keys


# Several streams


class Turn(NamedTuple):
    """Whose turn it is at some positions: for each, a stream, and which of this stream's turns it is."""

    stream: Places
    turn: Places


@dataclass(frozen=True)
class Mix:
    """Several streams in exact proportions: of each block of positions, each stream has so many.

    Which positions of a block are whose is dealt anew for each block. A stream that is at its end begins its
    next epoch, so a mix has no end of its own.
    """

    counts: tuple[int, ...]  # of each stream, in each block
    seed: int

    @property
    def block(self) -> int:
        return sum(self.counts)

    def at(self, positions: Places) -> Turn:
        """Whose turn it is at some positions, each from 0 on."""
        ends = np.cumsum(self.counts)
        stream, turn = np.empty_like(positions), np.empty_like(positions)
        blocks = positions // self.block
        for block in np.unique(blocks):
            chosen = blocks == block
            dealt = permuted(positions[chosen] % self.block, self.block, keyed(self.seed, int(block), _MIX))
            stream[chosen] = whose = np.searchsorted(ends, dealt, side="right")
            counts = np.asarray(self.counts)[whose]
            # Within its block a stream's turns come in no order of their own: its order is already a shuffle.
            turn[chosen] = int(block) * counts + dealt - ends[whose] + counts
        return Turn(stream, turn)


def mix_of(weights: Sequence[float], *, seed: int, block: int = 1_024) -> Mix:
    """The mix nearest to some weights, by largest remainders. Raises ValueError where one of them gets no
    turn in a block.
    """
    if not weights or min(weights) <= 0:
        raise ValueError(f"weights {list(weights)}: each must be above 0")
    exact = [Fraction(weight) for weight in weights]
    shares = [weight * block / sum(exact) for weight in exact]
    counts = [int(share) for share in shares]
    by_remainder = sorted(range(len(shares)), key=lambda n: (counts[n] - shares[n], n))
    for n in by_remainder[: block - sum(counts)]:
        counts[n] += 1
    if 0 in counts:
        least = counts.index(0)
        raise ValueError(
            f"weight {weights[least]} is less than one sample in {block}; raise it, or the block's length"
        )
    return Mix(tuple(counts), seed)


def tempered(sizes: Sequence[int], temperature: float) -> list[float]:
    """Weights between the streams' sizes (temperature 1) and equal ones: size ** (1 / temperature)."""
    if not temperature > 0:
        raise ValueError(f"temperature {temperature}: must be above 0")
    return [size ** (1 / temperature) for size in sizes]


# Proof


def order_hash(epoch: int, positions: Places, keys: Numbers) -> int:
    """What a part of the order adds to its certificate, a number of 128 bits.

    keys: key_hash of the samples delivered at these positions. Sums (modulo 2**128) over parts, in whichever
    order and from whichever rank, are equal where the same samples stood at the same positions.
    """
    at = mixed(positions.astype(np.uint64) ^ np.uint64(keyed(epoch, _PROOF)))
    return _summed(mixed(at ^ mixed(keys)))


def set_hash(keys: Numbers) -> int:
    """The same of samples without their positions: equal for equal collections, each as often."""
    return _summed(mixed(keys))


def _summed(values: Numbers) -> int:
    """Two sums of 64 bits, of the values and of others made of them, as one number."""
    with np.errstate(over="ignore"):
        low = int(values.sum(dtype=np.uint64))
        high = int(mixed(values ^ np.uint64(0x6A09E667F3BCC909)).sum(dtype=np.uint64))
    return high << 64 | low


def added(first: int, second: int) -> int:
    """Two certificates of parts, as one."""
    low = (first + second) & _ALL
    high = ((first >> 64) + (second >> 64)) & _ALL
    return high << 64 | low


def subtracted(whole: int, part: int) -> int:
    """What is left of a certificate without a part."""
    low = (whole - part) & _ALL
    high = ((whole >> 64) - (part >> 64)) & _ALL
    return high << 64 | low
