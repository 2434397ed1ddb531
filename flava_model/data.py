"""Batches of a Feed -> batches of pixels, made by threads while the model works.

    feed --Batch--> pieces --read, check, see--> a buffer for each size --Images--> device --> the loop
                      |                                                       |
                      |                                                       +- or what is made of them:
                      |                                                          tokens, masks; inputs.py
                      +- cannot be decoded: the sample that stands in for it, the same on every rank

The same batches come whatever the number of threads, and wherever a run is stopped and goes on: which sample
and which crop follow from the position alone. Nothing is kept outside of this process. doors.py has the same
batches for others' loaders.
"""

import contextlib
import copy
import os
import time
import weakref
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, fields, replace
from functools import partial
from threading import Lock, get_native_id
from typing import Any, Generic, Self, TypeVar, cast

import numpy as np
import torch

from flava_model.views import Crop, Pixels, Views, decode, see, warm_up
from pmd.stream import Batch, Feed, Gather, Sample, Visit, keyed

PIECE = 16  # samples that a thread takes on at a time
KEPT = 4  # buffers of each shape
_VIEWS = Views()
CEILING_S = 0.5  # of decoding, to learn how fast that is


@dataclass(frozen=True)
class Loaded:
    """One rank's share of a global batch, whatever it is made into."""

    # B samples   H W sides of a view
    batch: Batch
    samples: list[Sample]  # in the batch's order: captions, keys, sources; without the stored files
    weights: torch.Tensor  # B, float32; 0 for a sample that only fills up

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> Self:
        """The same with its tensors on a device."""
        return self._each(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> Self:
        """The same in memory that a GPU can copy from by itself."""
        return self._each(torch.Tensor.pin_memory)

    def rows(self, begin: int, end: int) -> Self:
        """The tensors of some samples alone; all else is as it was."""
        return self._each(lambda tensor: tensor[begin:end])

    def tensors(self) -> Iterator[torch.Tensor]:
        """All of them."""
        for value in vars(self).values():
            if isinstance(value, torch.Tensor):
                yield value
            elif isinstance(value, dict):
                yield from cast("dict[int, torch.Tensor]", value).values()

    def _each(self, change: Callable[[torch.Tensor], torch.Tensor]) -> Self:
        changed: dict[str, Any] = {}
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, torch.Tensor):
                changed[field.name] = change(value)
            elif isinstance(value, dict):
                views = cast("dict[int, torch.Tensor]", value)
                changed[field.name] = {size: change(view) for size, view in views.items()}
        return replace(self, **changed)


@dataclass(frozen=True)
class Images(Loaded):
    """With what is seen of its images."""

    crops: list[Crop]  # the part that is seen of each
    views: dict[int, torch.Tensor]  # size -> B3HW, uint8, RGB, channels last in memory

    @property
    def captions(self) -> list[str]:
        return [sample.caption for sample in self.samples]


L = TypeVar("L", bound=Loaded)
M = TypeVar("M", bound=Loaded)


@dataclass
class Timing:
    """Where the time of a loader goes, s. Of the threads all together, but for `waited` and `used`."""

    read: float = 0.0  # tar and check
    seen: float = 0.0  # decoded and resized
    prepared: float = 0.0  # what is made of a batch besides: tokens, masks
    waited: float = 0.0  # the loop for a batch
    used: float = 0.0  # the loop with a batch
    bytes: int = 0  # of images as stored
    samples: int = 0
    batches: int = 0
    ready: int = 0  # batches that were, each time the loop came for one
    threads: int = 1
    ahead: int = 1  # batches at most in the queue
    ceiling: float | None = None  # images/s, if these threads did nothing but decode; see Loader.measure

    def verdict(self) -> str:
        """One sentence: who waits for whom, and what takes the time."""
        whole = self.waited + self.used
        if not self.samples or not whole:
            return "nothing was loaded yet"
        stages = {"reading": self.read, "decoding": self.seen, "preparing": self.prepared}
        work = sum(stages.values())
        stage, share = max(stages.items(), key=lambda part: part[1])
        rate = self.samples / whole
        told = f"{rate:,.0f} images/s"
        if self.ceiling is not None:
            told += f", {rate / self.ceiling:.0%} of what decoding alone would allow"
        told += f", {self.bytes / whole / 1e6:,.0f} MB/s"
        busy = f"{min(1.0, work / (self.threads * whole)):.0%} of {self.threads} threads' time"
        busy += f", {share / work:.0%} of it {stage}"
        queue = f"{self.ready / max(1, self.batches):.1f} of {self.ahead} batches ready"
        waits = self.waited / whole
        why = f"({told}; {busy}; {queue})"
        if waits > 0.05:
            return f"loader-bound: the model waits {waits:.0%} of the time for {stage} {why}"
        return f"model-bound: the model waits {waits:.1%} of the time {why}"


class Loader(Generic[L]):
    """The batches of a feed as pixels, some of them ahead. Iterate anew after each end of an epoch."""

    def __init__(
        self: "Loader[Images]",
        feed: Feed,
        views: Views | None = _VIEWS,
        *,
        threads: int = 2,
        ahead: int = 2,
        seed: int = 0,
        crop_key: Callable[[Sample], int] | None = None,
        device: torch.device | str = "cpu",
        gather: Gather | None = None,
    ) -> None:
        """views: None where there is no image to look at. ahead: batches that are made while the loop is at
        work. seed: of crops. crop_key: instead of the seed, for a sample what its crop is drawn from. device:
        where batches are wanted; copied there beside the model's work, if it is a GPU. gather: for states of
        several ranks.
        """
        self.feed, self.views = feed, views
        self._then: Callable[[Images], Any] | None = None
        self._threads, self._ahead, self._seed = max(1, threads), max(1, ahead), seed
        self._crop_key = crop_key
        self._device, self._gather = torch.device(device), gather
        self.timing = Timing(threads=self._threads, ahead=self._ahead)
        self._guard, self._kept = Lock(), _Kept()

    def then(self: "Loader[Images]", make: Callable[[Images], M]) -> "Loader[M]":
        """The same loader of what is made of each batch, in one of its threads: tokens and masks, say."""
        other = cast("Loader[M]", copy.copy(self))
        other._then = make
        return other

    def __iter__(self) -> Iterator[L]:
        made = self.made(self.feed)
        return _copied(made, self._device) if self._device.type == "cuda" else made

    def __len__(self) -> int:
        """Batches of an epoch. Raises TypeError where there is no end."""
        if self.feed.batches is None:
            raise TypeError("a blend has no end, and so no length")
        return self.feed.batches

    def delivered(self, loaded: Loaded) -> None:
        """A batch has been trained on: states from now on lie behind it."""
        self.feed.delivered(loaded.batch, loaded.samples)

    def state_dict(self) -> dict[str, Any]:
        """Where the run stands; see Feed. Collective, if there are several ranks."""
        return self.feed.state_dict(self._gather)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where a run stood. Raises Refused where that means nothing here; see Feed."""
        self.feed.load_state_dict(state)

    def measure(self) -> float:
        """How many images/s these threads would make if they did nothing but decode, whole, as they are
        stored, those of the epoch's first batch. `timing` tells its rate as a share of it.
        """
        batch = self.feed.batch(self.feed.epoch, 0)
        samples = self.feed.source.read(batch.epoch, batch.positions[:256])
        self.timing.ceiling = decode_ceiling([sample.image for sample in samples], threads=self._threads)
        return self.timing.ceiling

    def made(self, batches: Iterable[Batch]) -> Generator[L]:
        """These batches, in their order, on the CPU."""
        left = iter(batches)
        making: deque[_Making[L]] = deque()
        with _threads(self._threads) as pool:
            while True:
                while len(making) <= self._ahead and (batch := next(left, None)) is not None:
                    making.append(self._make(batch, pool))
                if not making:
                    return
                self.timing.ready += sum(one.is_ready() for one in making)
                self.timing.batches += 1
                begun = time.perf_counter()
                loaded = making.popleft().whole()
                self.timing.waited += time.perf_counter() - begun
                begun = time.perf_counter()
                yield loaded
                self.timing.used += time.perf_counter() - begun

    def _make(self, batch: Batch, pool: ThreadPoolExecutor) -> "_Making[L]":
        count = len(batch.positions)
        visits = self.feed.source.visits(batch.epoch, batch.positions)
        # Memory that a GPU copies from while the CPU goes on; torch keeps it for later batches.
        pinned = self._device.type == "cuda"
        buffers = {
            size: torch.empty((count, size, size, 3), dtype=torch.uint8, pin_memory=True)
            if pinned
            else self._kept.tensor((count, size, size, 3))
            for size in (self.views.sizes if self.views else ())
        }
        out = [buffer.numpy() for buffer in buffers.values()]
        weights = torch.from_numpy(batch.weights)
        views = {size: buffer.permute(0, 3, 1, 2) for size, buffer in buffers.items()}
        images = Images(batch, [], weights.pin_memory() if pinned else weights, crops=[], views=views)
        begins = range(0, count, PIECE)
        pieces = _Pieces(images, len(begins), self._prepared)
        return _Making(
            [
                pool.submit(
                    pieces.end,
                    number,
                    partial(self._fill, visits[begin : begin + PIECE], [view[begin:] for view in out]),
                )
                for number, begin in enumerate(begins)
            ]
        )

    def _prepared(self, images: Images) -> L:
        if self._then is None:
            return cast("L", images)
        started = time.perf_counter()
        loaded = self._then(images)
        with self._guard:
            self.timing.prepared += time.perf_counter() - started
        return loaded

    def _fill(self, visits: Sequence[Visit], out: Sequence[Pixels]) -> list["_Seen"]:
        """Write some samples into the first places of some buffers."""
        started = time.perf_counter()
        samples = [visit.read() for visit in visits]
        read = time.perf_counter()
        stored = sum(len(sample.image) for sample in samples)
        seen = [self._see(sample, [view[place] for view in out]) for place, sample in enumerate(samples)]
        ended = time.perf_counter()
        with self._guard:
            self.timing.read += read - started
            self.timing.seen += ended - read
            self.timing.bytes += stored
            self.timing.samples += len(visits)
        return seen

    def _see(self, sample: Sample, out: list[Pixels]) -> "_Seen":
        """Without the bytes of its image, which nobody needs any more: or what stands in for it."""
        if self.views is None:
            return sample, None
        attempt = 0
        while True:
            if self._crop_key is None:
                key = keyed(self._seed, sample.epoch, sample.position)
            else:
                key = self._crop_key(sample)
            try:
                crop = see(sample.image, self.views, out, key=key, box=sample.box)
                return sample._replace(image=b""), crop
            except ValueError as error:
                source = self.feed.source
                source.damaged(sample.epoch, sample.position, sample.key, str(error))
                attempt += 1
                ordered = sample.instead_of or sample.key
                sample = source.substitute(sample.epoch, sample.position, attempt, ordered)


class _Kept:
    """Memory that is used again when nobody has a tensor in it any more: to have fresh pages zeroed by the
    system, batch by batch, takes a tenth of the time of decoding into them.
    """

    def __init__(self) -> None:
        self._free: dict[tuple[int, ...], list[Pixels]] = {}

    def tensor(self, shape: tuple[int, ...]) -> torch.Tensor:
        """Bytes of this shape, whatever is in them."""
        free = self._free.setdefault(shape, [])
        memory = free.pop() if free else np.empty(shape, np.uint8)
        # The tensor, and all that are made of it without a copy, hold on to this view, and nobody else does.
        view = memory[:]
        weakref.finalize(view, self._back, memory).atexit = False
        return torch.from_numpy(view)

    def _back(self, memory: Pixels) -> None:
        free = self._free[memory.shape]
        if len(free) < KEPT:
            free.append(memory)


_Seen = tuple[Sample, Crop | None]


class _Making(Generic[L]):
    """A batch whose pieces are at work."""

    def __init__(self, pieces: list[Future[L | None]]) -> None:
        self._pieces = pieces

    def is_ready(self) -> bool:
        return all(piece.done() for piece in self._pieces)

    def whole(self) -> L:
        """What the piece that ended last has made. May be asked for once."""
        loaded: L | None = None
        # Nothing here may still know a piece when it raises: its exception knows the frames that it came
        # through, and files would stay open until someone looks for such circles.
        while self._pieces:
            loaded = self._pieces.pop(0).result() or loaded
        assert loaded is not None
        return loaded


class _Pieces(Generic[L]):
    """What is done of a batch, piece by piece. Whoever brings the last one makes the whole."""

    def __init__(self, images: Images, count: int, then: Callable[[Images], L]) -> None:
        """images: but for its samples and crops, and what is not written of its views."""
        self._images, self._then = images, then
        self._seen: dict[int, list[_Seen]] = {}
        self._count, self._guard = count, Lock()

    def end(self, piece: int, work: Callable[[], list[_Seen]]) -> L | None:
        seen = work()
        with self._guard:
            self._seen[piece] = seen
            if len(self._seen) < self._count:
                return None
        for number in range(self._count):
            for sample, crop in self._seen[number]:
                self._images.samples.append(sample)
                if crop is not None:
                    self._images.crops.append(crop)
        return self._then(self._images)


# OpenCV keeps a lock while a thread begins to use it, and while such a thread ends. A process that is forked
# at that moment (a DataLoader's worker) has the lock for ever, and hangs at its first picture: seen once in
# some thousand forks. So no fork begins while threads begin, and a pool is closed when its threads are gone.
_beginning = Lock()
os.register_at_fork(
    before=_beginning.acquire, after_in_parent=_beginning.release, after_in_child=_beginning.release
)


@contextlib.contextmanager
def _threads(count: int) -> Generator[ThreadPoolExecutor]:
    """A pool to decode in. It leaves no thread behind, and nothing undone is begun any more."""
    begun: list[int] = []

    def begin() -> None:
        begun.append(get_native_id())
        with _beginning:
            warm_up()

    pool = ThreadPoolExecutor(count, thread_name_prefix="loader", initializer=begin)
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)
        # Python has done with them before the system has. (Elsewhere than on Linux there is no such folder.)
        while any(os.path.exists(f"/proc/self/task/{thread}") for thread in begun):
            time.sleep(0.0001)


def _copied(made: Generator[L], device: torch.device) -> Generator[L]:
    """The same batches on a GPU, copied on a stream of their own while the last one is worked on."""
    stream = torch.cuda.Stream(device)
    try:
        for loaded in made:
            with torch.cuda.stream(stream):
                moved = loaded.to(device, non_blocking=True)
            current = torch.cuda.current_stream(device)
            current.wait_stream(stream)
            for tensor in moved.tensors():
                tensor.record_stream(current)
            yield moved
    finally:
        made.close()


def decode_ceiling(images: Sequence[bytes], *, threads: int) -> float:
    """How many images/s so many threads decode, whole and as they are stored, with nothing else to do."""
    until = time.perf_counter() + CEILING_S

    def work(first: int) -> int:
        done = 0
        while time.perf_counter() < until:
            decode(images[(first + done) % len(images)])
            done += 1
        return done

    begun = time.perf_counter()
    with _threads(threads) as pool:
        done = sum(pool.map(work, range(0, len(images) * threads, len(images))))
    return done / (time.perf_counter() - begun)
