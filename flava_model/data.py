"""Batches of a Feed -> batches of pixels, made by threads while the model works.

    feed --Batch--> pieces --read, check, see--> one buffer a size --Images--> the loop: delivered()
                      |
                      +- cannot be decoded: the sample that stands in for it, the same on every rank

The same batches come whatever the number of threads, and wherever a run is stopped and goes on: which sample
and which crop follow from the position alone. Nothing is kept outside of this process.
"""

import time
from collections import deque
from collections.abc import Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from threading import Lock

import numpy as np
from numpy.typing import NDArray

from flava_model.views import Pixels, Views, see
from pmd.stream import Batch, Feed, Sample, keyed

PIECE = 16  # samples that a thread takes on at a time


@dataclass(frozen=True)
class Images:
    """One rank's share of a global batch."""

    # B samples   H W sides of a view
    batch: Batch
    samples: list[Sample]  # in the batch's order: captions, keys, sources
    views: dict[int, Pixels]  # size -> BHW3, RGB
    weights: NDArray[np.float32]  # B; 0 for a sample that only fills up


@dataclass
class Timing:
    """Where the time of a loader goes, s. Of the threads all together, but for `waited` and `used`."""

    read: float = 0.0  # tar and check
    seen: float = 0.0  # decoded and resized
    waited: float = 0.0  # the loop for a batch
    used: float = 0.0  # the loop with a batch
    bytes: int = 0  # of images as stored
    samples: int = 0
    threads: int = 1
    begun: float = field(default_factory=time.perf_counter)

    def verdict(self) -> str:
        """One sentence: who waits for whom, and what takes the time."""
        whole = self.waited + self.used
        if not self.samples or not whole:
            return "nothing was loaded yet"
        work = self.read + self.seen
        stage, share = max(("reading", self.read), ("decoding", self.seen), key=lambda part: part[1])
        rate = f"{self.samples / whole:,.0f} images/s, {self.bytes / whole / 1e6:,.0f} MB/s"
        busy = f"{work / (self.threads * whole):.0%} of {self.threads} threads' time"
        busy += f", {share / work:.0%} of it {stage}"
        waits = self.waited / whole
        if waits > 0.05:
            return f"loader-bound: the model waits {waits:.0%} of the time for {stage} ({rate}; {busy})"
        return f"model-bound: the model waits {waits:.1%} of the time ({rate}; {busy})"


class Loader:
    """The batches of a feed as pixels, some of them ahead. Iterate anew after each end of an epoch."""

    def __init__(
        self, feed: Feed, views: Views | None = None, *, threads: int = 2, ahead: int = 2, seed: int = 0
    ) -> None:
        """ahead: batches that are made while the loop is at work. seed: of crops."""
        self.feed, self.views = feed, views or Views()
        self._threads, self._ahead, self._seed = max(1, threads), max(1, ahead), seed
        self.timing = Timing(threads=self._threads)
        self._guard = Lock()

    def __iter__(self) -> Iterator[Images]:
        return self._batches()

    def delivered(self, images: Images) -> None:
        """A batch has been trained on: states from now on lie behind it."""
        self.feed.delivered(images.batch, images.samples)

    def _batches(self) -> Generator[Images]:
        batches = iter(self.feed)
        made: deque[_Making] = deque()
        pool = ThreadPoolExecutor(self._threads, thread_name_prefix="loader")
        try:
            while True:
                while len(made) <= self._ahead and (batch := next(batches, None)) is not None:
                    made.append(self._make(batch, pool))
                if not made:
                    return
                begun = time.perf_counter()
                images = made.popleft().whole()
                self.timing.waited += time.perf_counter() - begun
                begun = time.perf_counter()
                yield images
                self.timing.used += time.perf_counter() - begun
        finally:
            pool.shutdown(cancel_futures=True)

    def _make(self, batch: Batch, pool: ThreadPoolExecutor) -> "_Making":
        count = len(batch.positions)
        views = {size: np.empty((count, size, size, 3), np.uint8) for size in self.views.sizes}
        pieces = [
            pool.submit(self._fill, batch, begin, min(begin + PIECE, count), views)
            for begin in range(0, count, PIECE)
        ]
        return _Making(batch, views, pieces)

    def _fill(self, batch: Batch, begin: int, end: int, views: dict[int, Pixels]) -> list[Sample]:
        """Write some of a batch's samples into its buffers."""
        started = time.perf_counter()
        samples = self.feed.source.read(batch.epoch, batch.positions[begin:end])
        read = time.perf_counter()
        stored = sum(len(sample.image) for sample in samples)
        for place, sample in enumerate(samples):
            samples[place] = self._see(sample, [view[begin + place] for view in views.values()])
        ended = time.perf_counter()
        with self._guard:
            self.timing.read += read - started
            self.timing.seen += ended - read
            self.timing.bytes += stored
            self.timing.samples += end - begin
        return samples

    def _see(self, sample: Sample, out: list[Pixels]) -> Sample:
        """Without the bytes of its image, which nobody needs any more: or what stands in for it."""
        key, attempt = keyed(self._seed, sample.epoch, sample.position), 0
        while True:
            try:
                see(sample.image, self.views, out, key=key, box=sample.box)
                return sample._replace(image=b"")
            except ValueError as error:
                source = self.feed.source
                source.damaged(sample.epoch, sample.position, sample.key, str(error))
                attempt += 1
                sample = source.substitute(sample.epoch, sample.position, attempt)


@dataclass(frozen=True)
class _Making:
    batch: Batch
    views: dict[int, Pixels]
    pieces: list[Future[list[Sample]]]

    def whole(self) -> Images:
        samples = [sample for piece in self.pieces for sample in piece.result()]
        return Images(self.batch, samples, self.views, self.batch.weights)
