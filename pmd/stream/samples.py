"""A locked corpus -> the sample at any position of any epoch.

    lock.json -> images of each shard -> Order: position -> shard, sample
                                                             |
       shard's index (Parquet, of the open window alone) -> offset, size, hash -> a pread of its tar -> Sample

Tars are read in place and in any order: nothing is unpacked, converted or listed. The lock alone is read at
the start, so that 70 million samples are open as fast as 70 thousand; an index is read when its window comes.
Each image is checked against the hash that its index has. What is damaged is replaced by a sample that
follows from the position alone, and is listed, so that no batch is ever short and no two ranks disagree.

Everything here is a value or a read: threads may share a Stream.
"""

# pyarrow.compute makes its functions at run time, where no checker sees them.
# pyright: reportAttributeAccessIssue=false

import hashlib
import io
import os
import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal, NamedTuple, Protocol, cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pmd.errors import BadRequest, Damaged
from pmd.lock import Lock, LockedFile, read_locked
from pmd.records import key_hash
from pmd.storage import Store
from pmd.stream.cache import Cache
from pmd.stream.order import Numbers, Order, Places, keyed, keyed_each
from pmd.stream.overlay import Overlay, Times
from pmd.tables import read_table

# A visit gives an image with one of its captions; or each caption is visited, with its image.
Unit = Literal["images", "pairs"]

SUBSTITUTES = 100  # samples tried in place of a damaged one before a corpus counts as broken
_CAPTION, _SUBSTITUTE, _ELSEWHERE = 16, 17, 18  # purposes of keys; those below 16 are order.py's


class Stored(NamedTuple):
    """Where a sample lies: what is kept beside a shard is found by it."""

    shard: str  # as the lock names its tar
    row: int  # among the shard's kept images
    caption: int  # among the shard's kept captions


class Sample(NamedTuple):
    """One visit of one sample."""

    epoch: int
    position: int
    key: str
    source: str
    image: bytes  # the stored file
    caption: str
    caption_number: int  # among the kept captions of its image, from 0 on
    # Of the caption: x, y, width, height, in shares of the image's sides.
    box: tuple[float, float, float, float] | None
    # The key of the sample whose turn it was, if this one stands in for it.
    instead_of: str | None = None
    stored: Stored | None = None  # None: in no corpus, but a file or a text by itself


class Caption(NamedTuple):
    """Of some image."""

    key: str
    text: str


class Reads(Protocol):
    """What a visit leads to."""

    def delivered(self, visit: "Visit") -> Sample: ...


class Visit(NamedTuple):
    """Which sample stands at a position. Found for a whole batch at once, which takes little longer than for
    one, and read one by one, by any thread.
    """

    stream: Reads
    epoch: int  # of the stream
    position: int
    shard: int
    sample: int  # in the shard
    chance: int  # which decides on the caption
    # What the sample is told to be, where that is something else: the place in a blend.
    at: tuple[int, int] | None = None

    def read(self) -> Sample:
        """Raises Damaged where hardly any sample can be read."""
        sample = self.stream.delivered(self)
        return sample if self.at is None else sample._replace(epoch=self.at[0], position=self.at[1])


class Damage(NamedTuple):
    """A sample that was not delivered at a position, and why; another one was."""

    epoch: int
    position: int
    key: str
    why: str


@dataclass(frozen=True)
class Identity:
    """All that decides what a stream delivers. Two equal ones deliver the same at every position."""

    root: str  # of the lock
    sources: tuple[str, ...]
    unit: Unit
    seed: int
    window: int
    overlay: str | None  # its sha256

    def as_json(self) -> dict[str, Any]:
        return vars(self) | {"sources": [*self.sources]}


class Stream:
    """The samples of a locked corpus, or of some of its sources, in their order."""

    def __init__(
        self,
        folder: str | Path,
        *,
        sources: Sequence[str] = (),
        unit: Unit = "images",
        seed: int = 0,
        window: int = 32,
        verified: bool = True,
        overlay: str | Path | None = None,
        cache: str | Path | None = None,
        cache_bytes: int = 100 << 30,
    ) -> None:
        """folder: of the corpus; also s3://..., gs://..., http://..., where there is a cache. window: shards
        that are mixed, and open, at a time. verified: check the sha256 of each image and index. overlay: a
        file that says how often each image comes, see overlay.py. cache: a folder that keeps up to
        `cache_bytes` of shards, and may be shared with other processes and corpora.

        Raises BadRequest where there is no lock or no such source, Damaged where the lock is.
        """
        # To open it again in another process.
        self._given = {"unit": unit, "seed": seed, "window": window, "verified": verified}
        self._given |= {
            "sources": (*sources,),
            "overlay": overlay,
            "cache": cache,
            "cache_bytes": cache_bytes,
        }
        self._store = Store(str(folder))
        self._lock = read_locked(self._store)
        self._overlay = None if overlay is None else Overlay.read(overlay)
        if self._overlay is not None:
            self._overlay.check(self._lock)
        if not self._store.is_local and cache is None:
            raise BadRequest(f"{folder} is not on this machine: give cache=FOLDER, to keep its shards in")
        kept = None if cache is None else Cache(self._store, cache, most=cache_bytes)
        self._files = _Files(self._store, self._lock, kept)
        chosen = tuple(sources) or tuple(sorted(self._lock.sources))
        for source in chosen:
            if source not in self._lock.sources:
                raise BadRequest(f"{folder} has no source {source!r}; it has {', '.join(self._lock.sources)}")
        self._tars = [
            file
            for file in self._lock.files
            if file.path.endswith(".tar") and _source_of(file.path) in chosen
        ]
        over = self._overlay.sha256 if self._overlay else None
        self.identity = Identity(self._lock.root, tuple(sorted(chosen)), unit, seed, window, over)
        self.order = Order([self._count(file) for file in self._tars], seed=seed, window=window)
        self._verified = verified
        # Of two windows: at a boundary, readers of both are at work.
        self._open: OrderedDict[int, _Shard] = OrderedDict()
        self._room, self._guard = 2 * window, threading.Lock()
        self._ahead = -1, 0  # the epoch and window that was looked ahead from last
        self.damages: list[Damage] = []

    def __reduce__(self) -> tuple[Any, ...]:
        return _opened, (str(self._store.root), self._given)

    def __len__(self) -> int:
        """Positions of an epoch."""
        return self.order.samples

    def _count(self, file: LockedFile) -> int:
        """Samples of a shard."""
        changed = self._overlay.count(file.path, self.identity.unit) if self._overlay else None
        return getattr(file, self.identity.unit) if changed is None else changed

    @property
    def shards(self) -> int:
        return len(self._tars)

    def positions(self) -> int | None:
        return len(self)

    def described(self) -> dict[str, Any]:
        return self.identity.as_json()

    def mark(self, sample: Sample) -> int:
        """What stands for it in proofs: 64 bits of the image, or of the image and its caption."""
        return mark(sample.key, sample.caption_number, self.identity.unit)

    def ordered_mark(self, epoch: int, position: int) -> int:
        """The same of the sample whose turn it is, without reading it."""
        (shard,), (sample,) = self.order.at(epoch, np.array([position]))
        return self._shard(int(shard)).mark(int(sample))

    def keys(self, epoch: int, positions: Places) -> list[str]:
        """The keys of the samples at some positions, as they are delivered if none is damaged."""
        at = self.order.at(epoch, positions)
        return [self._shard(int(shard)).key(int(sample)) for shard, sample in zip(*at, strict=True)]

    def close(self) -> None:
        """Stop what goes on for it. What its cache holds stays."""
        self._files.close()
        with self._guard:
            self._open.clear()

    def read(self, epoch: int, positions: Places) -> list[Sample]:
        """The samples at some positions. Raises Damaged where hardly any can be read."""
        return [visit.read() for visit in self.visits(epoch, positions)]

    def visits(self, epoch: int, positions: Places) -> list[Visit]:
        """Which samples stand at some positions."""
        at = self.order.at(epoch, positions)
        if positions.size:
            self._look_ahead(epoch, int(positions[0]))
        chances = keyed_each((self.identity.seed, epoch), positions, _CAPTION)
        numbers = zip(
            positions.tolist(), at.shard.tolist(), at.sample.tolist(), chances.tolist(), strict=True
        )
        return [Visit(self, epoch, *four) for four in numbers]

    def elsewhere(self, epoch: int, positions: Places, attempt: int = 0) -> list[Caption]:
        """For each of some positions, a caption of another one, drawn evenly from those of its window, whose
        indexes are open anyhow: no image is read. attempt: for other ones.
        """
        begins, sizes = self.order.spans(epoch, positions)
        drawn = keyed_each((self.identity.seed, epoch, attempt), positions, _ELSEWHERE)
        others = begins + (drawn % sizes.astype(np.uint64)).astype(np.int64)
        at = self.order.at(epoch, others)
        chances = keyed_each((self.identity.seed, epoch), others, _CAPTION)
        return [
            self._shard(shard).captioned(sample, chance)
            for shard, sample, chance in zip(*(part.tolist() for part in (*at, chances)), strict=True)
        ]

    def substitute(self, epoch: int, position: int, attempt: int, key: str) -> Sample:
        """What stands in for a position's sample after `attempt` failures (from 1 on): the same for all ranks
        and at all times. For samples that can be read but not decoded. key: of the one whose turn it is.
        """
        if attempt > SUBSTITUTES:
            raise Damaged(
                f"{self._store.root}: {attempt} samples tried for position {position} are all damaged"
            )
        other = keyed(self.identity.seed, epoch, position, attempt, _SUBSTITUTE) % len(self)
        at = self.order.at(epoch, np.array([other]))
        chance = keyed(self.identity.seed, epoch, position, _CAPTION)
        visit = Visit(self, epoch, position, int(at.shard[0]), int(at.sample[0]), chance)
        sample = self.delivered(visit, attempt, key)
        return sample._replace(instead_of=key)

    def shard_visits(self, number: int) -> list[Visit]:
        """Every sample of a shard once, in the order of its index: for what is made of each beforehand."""
        return [Visit(self, 0, 0, number, sample, 0) for sample in range(self._shard(number).counted())]

    def stored(self, visit: Visit) -> Stored:
        """Where the sample of a visit lies, without reading it."""
        shard = self._shard(visit.shard)
        place = shard.place(visit.sample, visit.chance)
        return Stored(shard.path, place.row, place.caption)

    def captioned(self, visit: Visit) -> Caption:
        """The caption of a visit, without reading its image."""
        return self._shard(visit.shard).captioned(visit.sample, visit.chance)

    def boxed(self, number: int) -> bool:
        """Whether captions of a shard are of regions of their images."""
        return self._shard(number).has_boxes

    def path(self, number: int) -> str:
        """A shard's tar, as the lock names it."""
        return self._tars[number].path

    def captions(self) -> Iterator[list[str]]:
        """Every kept caption of the corpus once, shard by shard. No tar is opened."""
        for file in self._tars:
            index = _read_index(self._files, file, verified=self._verified)
            captions = cast("pa.ListArray", index["captions"].combine_chunks()).flatten()
            yield captions.field("text").filter(pc.is_null(captions.field("reason"))).to_pylist()

    def marks(self, number: int) -> Numbers:
        """What stands for each sample of a shard in proofs."""
        shard = self._shard(number)
        return np.array([shard.mark(sample) for sample in range(shard.counted())], np.uint64)

    def damaged(self, epoch: int, position: int, key: str, why: str) -> None:
        """Enter a sample that could not be used into the list of damages."""
        with self._guard:
            self.damages.append(Damage(epoch, position, key, why))

    def delivered(self, visit: Visit, attempt: int = 0, ordered: str | None = None) -> Sample:
        """The sample of a visit, or what stands in for it. Raises Damaged; see substitute."""
        shard = self._shard(visit.shard)
        place = shard.place(visit.sample, visit.chance)
        try:
            image = shard.image(place.row, verified=self._verified)
        except (OSError, ValueError) as error:
            key = shard.keys[place.row].as_py()
            self.damaged(visit.epoch, visit.position, key, str(error))
            return self.substitute(visit.epoch, visit.position, attempt + 1, ordered or key)
        return Sample(
            visit.epoch,
            visit.position,
            shard.keys[place.row].as_py(),
            shard.source,
            image,
            shard.texts[place.caption].as_py(),
            place.caption - shard.first(place.row),
            shard.box(place),
            stored=Stored(shard.path, place.row, place.caption),
        )

    def _look_ahead(self, epoch: int, position: int) -> None:
        """Have the shards come that are needed next, whenever a new window begins."""
        shards = self.order.shards_from(epoch, position)
        if (epoch, len(shards)) != self._ahead:
            self._ahead = epoch, len(shards)
            self._files.expect(
                [self._tars[number] for number in shards.tolist()], ahead=2 * self.order.window
            )

    def _shard(self, number: int) -> "_Shard":
        with self._guard:
            shard = self._open.get(number)
            if shard is not None:
                self._open.move_to_end(number)
                return shard
        # Outside of the guard: others read on meanwhile. Two may open one shard; the second is dropped.
        file = self._tars[number]
        times = self._overlay.times(file.path) if self._overlay else None
        opened = _open_shard(self._files, file, self.identity.unit, times, verified=self._verified)
        with self._guard:
            shard = self._open.setdefault(number, opened)
            while len(self._open) > self._room:
                self._open.popitem(last=False)
        return shard


def _opened(folder: str, given: dict[str, Any]) -> Stream:
    return Stream(folder, **given)


def mark(key: str, caption_number: int, unit: Unit) -> int:
    """A number of 64 bits for one sample: an image, or one of its captions where these are visited."""
    return key_hash(key) if unit == "images" else keyed(key_hash(key), caption_number)


def _source_of(path: str) -> str:
    return path.split("/")[-2]


# One shard


class _Place(NamedTuple):
    row: int  # among the kept ones
    caption: int  # among the kept ones of the shard


class _Shard:
    """The kept rows of a shard's index, and its tar, open."""

    def __init__(
        self, tar: BinaryIO, told: str, path: str, index: pa.Table, unit: Unit, times: Times | None
    ) -> None:
        """told: how the tar is called to a person. path: how the lock names it. times: how often each row
        comes.
        """
        self.path, self.source, self._tar = path, _source_of(path), told
        self._opened = tar  # which closes itself
        self._file = tar.fileno()
        self.keys = index["key"].combine_chunks()
        self._offsets, self._sizes = (index[name].to_numpy() for name in ("offset", "size"))
        self._hashes = bytes.fromhex("".join(index["stored_sha256"].to_pylist()))  # 32 bytes each
        self._original = index["original_width"].to_numpy(), index["original_height"].to_numpy()
        captions = cast("pa.ListArray", index["captions"].combine_chunks())
        flat = captions.flatten()
        kept = pc.is_null(flat.field("reason"))
        self.texts, self._boxes = flat.field("text").filter(kept), flat.field("box").filter(kept)
        self.has_boxes = self._boxes.null_count < len(self._boxes)
        of_row = pc.list_parent_indices(captions).filter(kept).to_numpy()
        # Where each row's kept captions begin among all; and the end of the last.
        self._first = np.searchsorted(of_row, np.arange(len(self.keys) + 1))
        # Where the samples of each row end, if these are not simply the rows.
        self._unit: Unit = unit
        each = np.diff(self._first) if unit == "pairs" else np.ones(len(self.keys), np.int64)
        self._ends = (
            None if unit == "images" and times is None else np.cumsum(each * (1 if times is None else times))
        )

    def __del__(self) -> None:
        if (opened := getattr(self, "_opened", None)) is not None:
            opened.close()

    def counted(self) -> int:
        """Samples."""
        if self._ends is None:
            return len(self.keys)
        return int(self._ends[-1]) if len(self._ends) else 0

    def key(self, sample: int) -> str:
        return self.keys[self.place(sample, 0).row].as_py()

    def captioned(self, sample: int, chance: int) -> Caption:
        row, caption = self.place(sample, chance)
        return Caption(self.keys[row].as_py(), self.texts[caption].as_py())

    def mark(self, sample: int) -> int:
        row, caption = self.place(sample, 0)
        return mark(self.keys[row].as_py(), caption - self.first(row), self._unit)

    def first(self, row: int) -> int:
        """A row's first kept caption, among those of the shard."""
        return int(self._first[row])

    def place(self, sample: int, chance: int) -> _Place:
        row = sample if self._ends is None else int(np.searchsorted(self._ends, sample, side="right"))
        first, end = int(self._first[row]), int(self._first[row + 1])
        if self._unit == "pairs":  # a row's captions one by one, and again where it comes again
            assert self._ends is not None
            chance = sample - (int(self._ends[row - 1]) if row else 0)
        return _Place(row, first + chance % (end - first))

    def image(self, row: int, *, verified: bool) -> bytes:
        """Raises OSError or ValueError where it is not as it was written."""
        size = int(self._sizes[row])
        image = os.pread(self._file, size, int(self._offsets[row]))
        if len(image) != size:
            raise ValueError(f"{self._tar}: ends within an image")
        if verified and hashlib.sha256(image).digest() != self._hashes[32 * row : 32 * row + 32]:
            raise ValueError(f"{self._tar}: an image is not the one that was stored")
        return image

    def box(self, place: _Place) -> tuple[float, float, float, float] | None:
        """In shares of the image's sides: boxes are told in px of the published image."""
        box: Any = self._boxes[place.caption].as_py() if self.has_boxes else None
        if box is None:
            return None
        width, height = (float(side[place.row]) for side in self._original)
        return box[0] / width, box[1] / height, box[2] / width, box[3] / height


def _open_shard(
    files: "_Files", file: LockedFile, unit: Unit, times: Times | None, *, verified: bool
) -> _Shard:
    """Raises Damaged where the index is not the one that the lock knows."""
    index, kept = _index_of(file), _read_index(files, file, verified=verified)
    if times is not None and len(times) != len(kept):
        raise Damaged(f"{files.told(index)} has {len(kept)} images, the overlay tells of {len(times)}")
    try:
        opened = files.open(file.path)
    except OSError as error:
        raise Damaged(f"{files.told(file.path)}: {error}; `pmd verify` says more") from None
    shard = _Shard(opened, files.told(file.path), file.path, kept, unit, times)
    found = len(shard.keys) if unit == "images" else len(shard.texts)
    if found != getattr(file, unit):
        raise Damaged(
            f"{files.told(index)} has {found} {unit}, the lock says {getattr(file, unit)}; "
            "`pmd verify` says more"
        )
    return shard


def _read_index(files: "_Files", file: LockedFile, *, verified: bool) -> pa.Table:
    """The kept rows of a shard. Raises Damaged."""
    index = _index_of(file)
    try:
        with files.open(index) as opened:
            data = opened.read()
        if verified and (sha256 := hashlib.sha256(data).hexdigest()) != files.sha256(index):
            raise Damaged(
                f"{files.told(index)}: sha256 is {sha256}, the lock says {files.sha256(index)}; `pmd verify` "
                "says more"
            )
        return read_table(io.BytesIO(data), _COLUMNS, where=("status", "success"))
    except (OSError, pa.ArrowException) as error:
        raise Damaged(f"{files.told(index)}: {error}; `pmd verify` says more") from None


def _index_of(tar: LockedFile) -> str:
    return tar.path.removesuffix(".tar") + ".parquet"


class _Files:
    """The files of a locked corpus, read here or by way of a cache."""

    def __init__(self, store: Store, lock: Lock, cache: Cache | None) -> None:
        self._store, self._cache = store, cache
        self._locked = {file.path: file for file in lock.files}

    def told(self, path: str) -> str:
        """How a person calls a file."""
        return self._store.path(path)

    def sha256(self, path: str) -> str:
        """As it is locked."""
        return self._locked[path].sha256

    def open(self, path: str) -> BinaryIO:
        return self._store.open(path) if self._cache is None else self._cache.open(self._locked[path])

    def expect(self, tars: Sequence[LockedFile], *, ahead: int) -> None:
        """These shards are read next, in this order."""
        if self._cache is not None:
            pairs = [(self._locked[_index_of(tar)], tar) for tar in tars]
            self._cache.expect([file for pair in pairs for file in pair], ahead=2 * ahead)

    def close(self) -> None:
        if self._cache is not None:
            self._cache.close()


_COLUMNS = (
    *("key", "status", "captions", "original_width", "original_height"),
    *("stored_sha256", "offset", "size"),
)
