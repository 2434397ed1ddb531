"""The batches of a Feed for the loaders of others: torch's DataLoader, torchdata's, Lightning, webdataset.

    Batches --worker w of n makes batches w, w + n, ...--> DataLoader(batch_size=None) --> Images, in order
    Samples --the same, sample by sample-----------------> webdataset's pipelines, or your own decoding

For any number of workers, processes or none, a loader gives the same batches in the same order: each worker
makes whole batches, by turns, and loaders take from their workers by turns. data.py's Loader does the same
work with threads, faster, and copies to the GPU; these are for code that is built around a DataLoader.
"""

import itertools
import json
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from typing import Any, Generic, TypeVar, cast

import torch
from torch.utils.data import IterableDataset, get_worker_info

from flava_model.data import Images, Loader
from flava_model.views import Views
from pmd.stream import Batch, Feed, Sample, merged

T = TypeVar("T")
_VIEWS = Views()
# Batches -> each with its samples, and the items that are made of it.
Items = Callable[[Iterable[Batch]], Generator[tuple[Batch, list[Sample], list[T]]]]


class Batches(IterableDataset[Images]):
    """Batches as pixels, from where `feed` stands. For DataLoader(..., batch_size=None) and the like.

        loader = DataLoader(Batches(feed), batch_size=None, num_workers=4)
        for images in loader:
            ...
            feed.delivered(images.batch, images.samples)

    The place of a run is its feed's, in the process that trains: `feed.state_dict()` saves it. Loops begin
    where it stands, also with persistent workers; behind an epoch, call `feed.end_epoch()`. torchdata's
    StatefulDataLoader keeps places of its own; `run_state` makes a feed's of them.
    """

    def __init__(self, feed: Feed, views: Views = _VIEWS, *, threads: int = 1, seed: int = 0) -> None:
        """threads: of each worker. seed: of crops."""
        self.feed, self.views = _telling(feed), views
        self._threads, self._seed = threads, seed

    def __len__(self) -> int:
        """Batches of an epoch. Raises TypeError where there is no end."""
        return len(Loader(self.feed))

    def __iter__(self) -> "Part[Images]":
        loader = Loader(self.feed, self.views, threads=self._threads, ahead=1, seed=self._seed)

        def items(batches: Iterable[Batch]) -> Generator[tuple[Batch, list[Sample], list[Images]]]:
            for images in loader.made(batches):
                yield images.batch, images.samples, [images]

        return Part(self.feed, items)


class Samples(IterableDataset[dict[str, Any]]):
    """Samples as webdataset has them, from where `feed` stands: the head of one of its pipelines.

        wds.DataPipeline(
            Samples(feed), wds.decode("pil"), wds.to_tuple("jpg", "txt"), wds.batched(feed.share)
        )

    Each is `__key__`, `__url__`, the stored file under its ending (jpg, png, webp), its caption under txt,
    and under json its key, source, caption and box. Nothing else of a tar is ever read. A batch that is made
    of them has to have feed.share samples to be one of the feed's.
    """

    def __init__(self, feed: Feed) -> None:
        self.feed = _telling(feed)

    def __iter__(self) -> "Part[dict[str, Any]]":
        source = self.feed.source

        def items(batches: Iterable[Batch]) -> Generator[tuple[Batch, list[Sample], list[dict[str, Any]]]]:
            for batch in batches:
                samples = source.read(batch.epoch, batch.positions)
                yield batch, samples, [_as_webdataset(sample) for sample in samples]

        return Part(self.feed, items)


def _telling(feed: Feed) -> Feed:
    """The same; workers that live on from one epoch to the next learn from it where that begins."""
    feed.tell_jumps_in(cast("Any", torch.zeros(3, dtype=torch.int64).share_memory_()))
    return feed


class Part(Iterator[T], Generic[T]):
    """What one worker of a loader makes, with a state as torchdata's loaders expect it of an iterator."""

    def __init__(self, feed: Feed, items: "Items[T]") -> None:
        worker = get_worker_info()
        self._feed = feed.part(worker.id, worker.num_workers) if worker else feed.part(0, 1)
        self._items = items
        self._made: Generator[tuple[Batch, list[Sample], list[T]]] | None = None
        self._within = 0  # items of the batch at hand that are given already
        self._batch: tuple[Batch, list[Sample]] | None = None
        self._left: deque[T] = deque()

    def __next__(self) -> T:
        if not self._left:
            if self._made is None:
                self._made = self._items(self._feed)
            batch, samples, items = next(self._made)
            self._batch = batch, samples
            self._left.extend(itertools.islice(items, self._within, None))
        item = self._left.popleft()
        self._within += 1
        if not self._left:
            assert self._batch is not None
            self._feed.delivered(*self._batch)
            self._within = 0
        return item

    def state_dict(self) -> dict[str, Any]:
        """Where this worker stands, behind the last item that it gave."""
        return self._feed.part_state() | {"within": self._within}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on there. Raises Refused where that means nothing here."""
        self._feed.load_state_dict(state)
        self._within, self._made = state["within"], None
        self._left.clear()


def run_state(*loaders: Mapping[str, Any]) -> dict[str, Any]:
    """What StatefulDataLoader.state_dict() gave, on each rank -> a Feed's state, to go on from with any
    number of workers and ranks. Raises BadRequest where there is none in them, Refused where they do not go
    together.
    """
    return merged([part for state in loaders for part in _found(state)])


def _found(state: Any) -> Iterator[dict[str, Any]]:
    """The states of Parts anywhere within that of a loader, whose layout is its own business."""
    if isinstance(state, Mapping):
        if "within" in state:
            yield dict(state)
        else:
            for inner in state.values():
                yield from _found(inner)


def _as_webdataset(sample: Sample) -> dict[str, Any]:
    told = {"key": sample.key, "source": sample.source, "caption": sample.caption, "box": sample.box}
    return {
        "__key__": sample.key,
        "__url__": f"{sample.source}:{sample.epoch}:{sample.position}",
        _ending(sample.image): sample.image,
        "txt": sample.caption.encode(),
        "json": json.dumps(told).encode(),
    }


def _ending(image: bytes) -> str:
    if image.startswith(b"\x89PNG"):
        return "png"
    return "webp" if image[8:12] == b"WEBP" else "jpg"
