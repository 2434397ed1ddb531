"""What a training run is fed, batch by batch, and where it stands.

    Stream or Blend --> global batches of positions --p % world == rank--> this rank's samples --> proof

    feed = Feed(stream, batch=4_096, rank=rank, world=world)
    for batch in feed:
        samples = stream.read(batch.epoch, batch.positions)
        feed.delivered(batch, samples)

A state is a position and a proof, under 1 KB, whatever the size of the corpus and the number of ranks. A
resumed run goes on at the very next sample, on as many ranks as it likes. It is refused where data, order or
batches are not those that the state was saved with: then "the next sample" means nothing.

The proof is two sums over all samples delivered in an epoch. One is of what stood at which position: two runs
that agree in it have seen the same in the same order. The other is of the samples alone, and equals that of
the corpus where each was delivered exactly once.
"""

import copy
import json
from collections.abc import Callable, Iterator, Mapping, MutableSequence, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from pmd.errors import BadRequest, Damaged, Refused
from pmd.stream.order import Mix, Places, added, keyed, order_hash, set_hash, subtracted
from pmd.stream.samples import Caption, Sample, Stream, Visit

FORMAT = 1  # of a state
# What becomes of the samples at the end of an epoch that fill no batch: left out, or filled up by others of
# weight 0.
Remainder = Literal["drop", "pad"]
# Gives every rank what each of them has given, in order of rank.
Gather = Callable[[list[int]], list[list[int]]]


class Source(Protocol):
    """What Stream and Blend have in common, as a Feed sees it."""

    def positions(self) -> int | None:
        """Of an epoch; None where it has no end."""
        ...

    def described(self) -> dict[str, Any]:
        """All that decides what is delivered, as JSON."""
        ...

    def mark(self, sample: Sample) -> int: ...
    def ordered_mark(self, epoch: int, position: int) -> int: ...
    def visits(self, epoch: int, positions: Places) -> list[Visit]: ...
    def read(self, epoch: int, positions: Places) -> list[Sample]: ...
    def substitute(self, epoch: int, position: int, attempt: int, key: str) -> Sample: ...
    def damaged(self, epoch: int, position: int, key: str, why: str) -> None: ...


class Captioned(Source, Protocol):
    """A source of pairs."""

    def elsewhere(self, epoch: int, positions: Places, attempt: int = 0) -> list[Caption]: ...


# Several streams as one


class Segment(NamedTuple):
    """From this position on, so many samples of each stream in a block."""

    begin: int
    counts: tuple[int, ...]


class Blend:
    """Several streams in exact proportions, without end: each begins its next epoch when it is through.

    Positions are the blend's own, and all of one epoch, 0.
    """

    def __init__(
        self,
        streams: Mapping[str, Stream],
        counts: Sequence[int],
        *,
        changes: Sequence[tuple[int, Sequence[int]]] = (),
        seed: int = 0,
    ) -> None:
        """counts: samples of each stream in a block of positions, as mix_of makes them of weights. changes:
        those of an earlier run, as (position, counts); its states name them.
        """
        self._names, self._streams = [*streams], [*streams.values()]
        self._seed = seed
        if empty := [name for name, stream in streams.items() if not len(stream)]:
            raise BadRequest(f"there is no sample in {', '.join(empty)}, and it cannot be mixed in")
        self._segments = [self._checked(Segment(0, tuple(counts)))]
        for begin, later in changes:
            if self.change(later, after=begin) != begin:
                raise BadRequest(f"the mix cannot have been changed at {begin}, where no block begins")

    def positions(self) -> int | None:
        return None

    def described(self) -> dict[str, Any]:
        streams = zip(self._names, self._streams, strict=True)
        return {
            "streams": {name: stream.described() for name, stream in streams},
            "seed": self._seed,
            "mix": [[segment.begin, [*segment.counts]] for segment in self._segments],
        }

    def change(self, counts: Sequence[int], *, after: int) -> int:
        """Mix otherwise from the first block on that begins at or behind a position; returns where that is.
        It is part of every state that is saved from then on.
        """
        last = self._segments[-1]
        if after < last.begin:
            raise BadRequest(f"the mix is settled up to {last.begin}; it cannot be changed at {after}")
        block = sum(last.counts)
        begin = last.begin + -(-(after - last.begin) // block) * block
        changed = self._checked(Segment(begin, tuple(counts)))
        if begin == last.begin:
            self._segments.pop()
        self._segments.append(changed)
        return begin

    def mark(self, sample: Sample) -> int:
        """As its stream has it."""
        (part,) = self._parts(np.array([sample.position]))
        return part.stream.mark(sample)

    def ordered_mark(self, epoch: int, position: int) -> int:
        (part,) = self._parts(np.array([position]))
        return part.stream.ordered_mark(part.epoch, int(part.places[0]))

    def read(self, epoch: int, positions: Places) -> list[Sample]:
        return [visit.read() for visit in self.visits(epoch, positions)]

    def visits(self, epoch: int, positions: Places) -> list[Visit]:
        assert epoch == 0, "a blend has one epoch, without end"
        found: dict[int, Visit] = {}
        for part in self._parts(positions):
            visits = part.stream.visits(part.epoch, part.places)
            for position, visit in zip(part.positions.tolist(), visits, strict=True):
                found[position] = visit._replace(at=(0, position))
        return [found[position] for position in positions.tolist()]

    def elsewhere(self, epoch: int, positions: Places, attempt: int = 0) -> list[Caption]:
        """Of the same stream: those of another would be told by their manner alone."""
        found: dict[int, Caption] = {}
        for part in self._parts(positions):
            others = part.stream.elsewhere(part.epoch, part.places, attempt)
            found |= zip(part.positions.tolist(), others, strict=True)
        return [found[position] for position in positions.tolist()]

    def substitute(self, epoch: int, position: int, attempt: int, key: str) -> Sample:
        """Of the same stream: the proportions hold."""
        (part,) = self._parts(np.array([position]))
        sample = part.stream.substitute(part.epoch, int(part.places[0]), attempt, key)
        return sample._replace(epoch=0, position=position)

    def damaged(self, epoch: int, position: int, key: str, why: str) -> None:
        (part,) = self._parts(np.array([position]))
        part.stream.damaged(part.epoch, int(part.places[0]), key, why)

    def delivered_before(self, position: int) -> dict[str, int]:
        """How many samples of each stream stand before a position."""
        given = np.zeros(len(self._streams), np.int64)
        for segment, end in self._spans():
            length, block = min(position, end) - segment.begin, sum(segment.counts)
            if length <= 0:
                break
            whole, begun = length // block, np.arange(length - length % block, length)
            given += np.asarray(segment.counts) * whole
            given += np.bincount(self._mix(segment).at(begun).stream, minlength=len(given))
        return dict(zip(self._names, given.tolist(), strict=True))

    def _checked(self, segment: Segment) -> Segment:
        if len(segment.counts) != len(self._streams) or min(segment.counts) < 1:
            raise BadRequest(
                f"the streams {', '.join(self._names)} need {len(self._names)} counts of 1 at least, "
                f"not {[*segment.counts]}"
            )
        return Segment(segment.begin, tuple(segment.counts))

    def _spans(self) -> Iterator[tuple[Segment, int]]:
        ends = [segment.begin for segment in self._segments[1:]]
        yield from zip(self._segments, [*ends, 1 << 62], strict=True)

    def _mix(self, segment: Segment) -> Mix:
        return Mix(segment.counts, keyed(self._seed, segment.begin))

    def _parts(self, positions: Places) -> Iterator["_Part"]:
        """For each stream and each of its epochs among some positions: these, and its own for them."""
        given = np.zeros(len(self._streams), np.int64)  # of each stream, in the segments before
        for segment, end in self._spans():
            chosen = positions[(positions >= segment.begin) & (positions < end)]
            turns = self._mix(segment).at(chosen - segment.begin)
            for number, stream in enumerate(self._streams):
                mine = turns.stream == number
                epochs, places = np.divmod(turns.turn[mine] + given[number], len(stream))
                for epoch in np.unique(epochs).tolist():
                    its = epochs == epoch
                    yield _Part(stream, epoch, chosen[mine][its], places[its])
            given += np.asarray(segment.counts) * ((end - segment.begin) // sum(segment.counts))


class _Part(NamedTuple):
    stream: Stream
    epoch: int
    positions: Places  # of the blend
    places: Places  # of the stream


# Batches


class Batch(NamedTuple):
    """One rank's share of a global batch."""

    epoch: int
    number: int  # among the epoch's
    positions: Places
    weights: NDArray[np.float32]  # 1; 0 for what only fills up


@dataclass(frozen=True)
class Proof:
    """Of what was delivered in an epoch."""

    order: int = 0  # sum over (position, sample), 128 bits
    samples: int = 0  # sum over samples as ordered, 128 bits
    count: int = 0
    substituted: int = 0  # of these, stood in for by another

    def __add__(self, other: "Proof") -> "Proof":
        return Proof(
            added(self.order, other.order),
            added(self.samples, other.samples),
            self.count + other.count,
            self.substituted + other.substituted,
        )

    def as_list(self) -> list[int]:
        """As numbers of 64 bits at most, for collectives that know no longer ones."""
        sums = (self.order, self.samples)
        halves = [half for whole in sums for half in (whole >> 64, whole & ((1 << 64) - 1))]
        return [*halves, self.count, self.substituted]

    @classmethod
    def of_list(cls, numbers: Sequence[int]) -> "Proof":
        high, low, of_samples, of_samples_low, count, substituted = numbers
        return cls(high << 64 | low, of_samples << 64 | of_samples_low, count, substituted)

    def as_json(self) -> dict[str, Any]:
        return vars(self) | {"order": f"{self.order:032x}", "samples": f"{self.samples:032x}"}

    @classmethod
    def of_json(cls, told: Mapping[str, Any]) -> "Proof":
        sums = int(told["order"], 16), int(told["samples"], 16)
        return cls(*sums, told["count"], told["substituted"])


class Feed:
    """The batches of a run in order, and its place among them."""

    def __init__(
        self,
        source: Source,
        *,
        batch: int,
        remainder: Remainder = "drop",
        rank: int = 0,
        world: int = 1,
    ) -> None:
        """batch: samples of a global batch, of all ranks together, a multiple of their number."""
        samples = source.positions()
        if batch < 1 or batch % world or not 0 <= rank < world:
            raise BadRequest(
                f"a batch of {batch} cannot be shared alike by {world} ranks, of which this is {rank}"
            )
        if samples is not None and samples < (batch if remainder == "drop" else 1):
            raise BadRequest(f"{samples} samples make no batch of {batch}")
        self.source, self.rank, self.world = source, rank, world
        self._size, self._remainder = batch, remainder
        self._parts = 1  # that its batches are dealt out to by turns, this being one
        self.epoch, self.position = 0, 0  # behind the last batch that was delivered, of all ranks
        self._jumps = 0  # to somewhere else than behind a batch
        self._told: MutableSequence[int] | None = None
        self._proven = Proof()  # over all ranks, up to the last time they were put together
        self._own = Proof()  # since then

    def tell_jumps_in(self, memory: MutableSequence[int]) -> None:
        """Have copies of this feed in other processes, which share these three numbers, begin their next
        iteration where this one goes: to the next epoch, or to a loaded place. (Not where it gets by
        delivering: they may look a moment later.)
        """
        self._told = memory
        memory[0], memory[1], memory[2] = self._jumps, self.epoch, self.position

    def _jump(self, epoch: int, position: int) -> None:
        self.epoch, self.position = epoch, position
        self._jumps += 1
        if self._told is not None:
            # The number last: who sees it sees the place too.
            self._told[1], self._told[2], self._told[0] = epoch, position, self._jumps

    @property
    def batches(self) -> int | None:
        """Of an epoch, the same for every rank; None where it has no end."""
        samples = self.source.positions()
        if samples is None:
            return None
        return samples // self._size if self._remainder == "drop" else -(-samples // self._size)

    @property
    def share(self) -> int:
        """Samples of a batch on this rank."""
        return self._size // self.world

    def part(self, number: int, of: int) -> "Feed":
        """Every `of`-th batch from here on, beginning with the `number`-th: for processes that make them side
        by side. It has a place and a proof of its own; `merged` puts the states of all parts together.
        """
        assert self._parts == 1 and 0 <= number < of
        part = copy.copy(self)
        part._parts = of
        if self._told is not None and int(self._told[0]) != self._jumps:
            part.epoch, part.position = int(self._told[1]), int(self._told[2])
        part._told = None
        part.position += number * self._size
        # What this rank has delivered since the ranks' proofs were put together goes with the first part.
        part._own = Proof() if number else self._own
        return part

    def batch(self, epoch: int, number: int) -> Batch:
        """This rank's share of any batch of any epoch."""
        begin = number * self._size
        positions = np.arange(begin + self.rank, begin + self._size, self.world)
        samples = self.source.positions()
        if samples is None:
            return Batch(epoch, number, positions, np.ones(len(positions), np.float32))
        return Batch(epoch, number, positions % samples, (positions < samples).astype(np.float32))

    def delivered_in(self, batches: int) -> int:
        """How many samples the first batches of an epoch have."""
        samples = self.source.positions()
        return batches * self._size if samples is None else min(batches * self._size, samples)

    def __iter__(self) -> Iterator[Batch]:
        """The batches from here to the end of the epoch. The place moves by `delivered` alone, so that what
        was only read ahead is not lost.
        """
        epoch, number = self.epoch, self.position // self._size
        while self.batches is None or number < self.batches:
            yield self.batch(epoch, number)
            number += self._parts

    def delivered(self, batch: Batch, samples: Sequence[Sample]) -> None:
        """The samples of the next batch, in its order, have been trained on: go behind it."""
        if (batch.epoch, batch.number * self._size) != (self.epoch, self.position):
            raise BadRequest(
                f"batch {batch.number} of epoch {batch.epoch} was delivered where the next was "
                f"{self.position // self._size} of epoch {self.epoch}"
            )
        told = [(sample.epoch, sample.position) for sample in samples]
        if told != [(batch.epoch, position) for position in batch.positions.tolist()]:
            raise BadRequest(f"batch {batch.number} was delivered with samples of other positions")
        real = [sample for sample, weight in zip(samples, batch.weights.tolist(), strict=True) if weight]
        marks = np.array([self.source.mark(sample) for sample in real], np.uint64)
        ordered = marks.copy()
        for place, sample in enumerate(real):
            if sample.instead_of is not None:
                ordered[place] = self.source.ordered_mark(sample.epoch, sample.position)
        substituted = sum(sample.instead_of is not None for sample in real)
        positions = np.array([sample.position for sample in real], np.int64)
        order = order_hash(batch.epoch, positions, marks)
        self._own += Proof(order, set_hash(ordered), len(real), substituted)
        self.position += self._size * self._parts

    def end_epoch(self) -> None:
        """Go to the beginning of the next epoch."""
        self._jump(self.epoch + 1, 0)
        self._proven = self._own = Proof()

    # States

    def proof(self, gather: Gather | None = None) -> Proof:
        """Of this epoch, over all ranks. Collective: every rank has to call it, with the same gather."""
        if self.world > 1 and gather is None:
            raise BadRequest(f"the proofs of {self.world} ranks are to be put together: give a gather")
        own = self._own.as_list()
        parts = [own] if gather is None else gather(own)
        self._proven = sum((Proof.of_list(part) for part in parts), self._proven)
        self._own = Proof()
        return self._proven

    def state_dict(self, gather: Gather | None = None) -> dict[str, Any]:
        """Where the run stands, the same on every rank. Collective, as `proof` is. Under 1 KB as JSON."""
        assert self._parts == 1, "of a part: part_state"
        return self._state(self.proof(gather))

    def part_state(self) -> dict[str, Any]:
        """Where this part of one rank stands, of which no other has to know. For `merged`, or for the same
        part of a later run.
        """
        return self._state(self._own) | {"parts": self._parts, "before": self._proven.as_json()}

    def _state(self, proof: Proof) -> dict[str, Any]:
        place = {"format": FORMAT, "epoch": self.epoch, "position": self.position}
        return place | proof.as_json() | {"of": self._described()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where a run stood, on any number of ranks. Raises Refused, saying what differs, where this
        feed would go on with something else.
        """
        if state.get("format") != FORMAT:
            raise Refused(f"a state of format {state.get('format')}; this is {FORMAT}")
        for what, saved, mine in _differences(state["of"], self._described()):
            raise Refused(f"the saved state's {what} is {saved}, here it is {mine}")
        parts = state.get("parts", 1)
        if parts != self._parts:
            raise Refused(
                f"the saved state is one of {parts} parts, here {self._parts} share the work: put the states "
                "of all parts together with pmd.stream.merged, and load that"
            )
        self._jump(state["epoch"], state["position"])
        proof = Proof.of_json(state)
        if "before" in state:
            self._proven, self._own = Proof.of_json(state["before"]), proof
        else:
            self._proven, self._own = proof, Proof()

    def _described(self) -> dict[str, Any]:
        return {"batch": self._size, "remainder": self._remainder} | self.source.described()


def _differences(saved: Any, mine: Any, at: str = "") -> Iterator[tuple[str, str, str]]:
    """What differs between two JSON values, as (where, one, the other)."""
    if isinstance(saved, dict) and isinstance(mine, dict):
        for name in [*saved, *(name for name in mine if name not in saved)]:
            yield from _differences(saved.get(name), mine.get(name), f"{at}.{name}" if at else name)
    elif saved != mine:
        yield at, json.dumps(saved), json.dumps(mine)


def merged(parts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The states of all parts of all ranks -> one state of the run, to go on from with any number of both.

    Raises BadRequest where there are none, Refused where they are not of one moment of one run.
    """
    if not parts:
        raise BadRequest("there are no states to put together")
    if within := max(part.get("within", 0) for part in parts):
        raise Refused(
            f"one part has delivered {within} samples of a batch and not the others: only whole batches can "
            "be dealt out anew, and batch_size=feed.share keeps them whole"
        )
    first = parts[0]
    for name in ("format", "epoch", "parts", "before", "of"):
        for what, one, other in (
            difference for part in parts for difference in _differences(first[name], part[name], name)
        ):
            raise Refused(f"two parts of one run differ in {what}: {one} and {other}")
    size, position = first["of"]["batch"], min(part["position"] for part in parts)
    proof = sum((Proof.of_json(part) for part in parts), Proof.of_json(first["before"]))
    last = max(part["position"] for part in parts)
    # Of the last batch of an epoch some samples may count for nothing.
    if last - position >= size * first["parts"] or not position - size < proof.count <= position:
        raise Refused(
            f"{len(parts)} parts at positions {position:,} to {last:,} have delivered {proof.count:,} "
            "samples: some are missing, or they are not of one moment"
        )
    place = {name: first[name] for name in ("format", "epoch")} | {"position": position}
    return place | proof.as_json() | {"of": first["of"]}


def prove(feed: Feed, stream: Stream, gather: Gather | None = None) -> Proof:
    """At the end of an epoch of one stream: that each of its samples was delivered once, or stood in for, but
    for those that fill no batch. Collective; each rank adds up its part of the shards.

    Raises Damaged where the sums say otherwise.
    """
    proof = feed.proof(gather)
    expected = 0
    for shard in range(feed.rank, stream.shards, feed.world):
        expected = added(expected, set_hash(stream.marks(shard)))
    assert feed.batches is not None
    left_out = range(feed.delivered_in(feed.batches), len(stream))
    marks = [stream.ordered_mark(feed.epoch, position) for position in left_out[feed.rank :: feed.world]]
    expected = subtracted(expected, set_hash(np.array(marks, np.uint64)))
    own = Proof(samples=expected).as_list()
    whole = sum((Proof.of_list(part) for part in ([own] if gather is None else gather(own))), Proof())
    count = len(stream) - len(left_out)
    if (proof.samples, proof.count) != (whole.samples, count):
        raise Damaged(
            f"epoch {feed.epoch} delivered {proof.count} samples; it has {count}, and not each came once"
        )
    return proof
