"""Samples that lie in no corpus: the images of a folder; texts.py has pieces of text.

    items 0 ... N - 1 --Order, in blocks--> position -> item -> Sample

They come in the same manner as those of a pmd.stream.Stream: each item once an epoch, in an order that
follows from the seed alone; what cannot be read is replaced by another, the same on every rank, and listed.
"""

import hashlib
import os
import threading
from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from pmd.records import key_hash
from pmd.stream import BadRequest, Damage, Damaged, Order, Places, Sample, Visit, keyed

BLOCK = 16_384  # items that are shuffled as one; a window has several of them
TRIES = 100  # at items in place of a damaged one
_SUBSTITUTE = 112  # purpose of keys; those below are others'


class Loose(ABC):
    """Numbered items as a source of samples. Threads may share it."""

    def __init__(self, count: int, *, source: str, seed: int, window: int) -> None:
        self._count, self._source, self._seed = count, source, seed
        blocks = [BLOCK] * (count // BLOCK) + [count % BLOCK] * bool(count % BLOCK)
        self.order = Order(blocks, seed=seed, window=window)
        self.damages: list[Damage] = []
        self._guard = threading.Lock()

    @abstractmethod
    def key(self, number: int) -> str:
        """What an item is called."""

    @abstractmethod
    def item(self, number: int) -> tuple[bytes, str]:
        """The image and the text of an item, one of them empty. Raises OSError or ValueError."""

    @abstractmethod
    def described(self) -> dict[str, Any]:
        """All that decides what is delivered, as JSON."""

    def __len__(self) -> int:
        return self._count

    def positions(self) -> int | None:
        return self._count

    def mark(self, sample: Sample) -> int:
        return key_hash(sample.key)

    def ordered_mark(self, epoch: int, position: int) -> int:
        """The same of the sample whose turn it is, without reading it."""
        return key_hash(self.key(self._number(epoch, position)))

    def visits(self, epoch: int, positions: Places) -> list[Visit]:
        at = self.order.at(epoch, positions)
        places = zip(positions.tolist(), at.shard.tolist(), at.sample.tolist(), strict=True)
        return [Visit(self, epoch, position, block, place, 0) for position, block, place in places]

    def read(self, epoch: int, positions: Places) -> list[Sample]:
        """Raises Damaged where hardly any can be read."""
        return [visit.read() for visit in self.visits(epoch, positions)]

    def delivered(self, visit: Visit) -> Sample:
        """The sample of a visit, or what stands in for it. Raises Damaged."""
        number, instead_of = visit.shard * BLOCK + visit.sample, None
        for attempt in range(TRIES):
            key = self.key(number)
            try:
                image, text = self.item(number)
                return Sample(
                    visit.epoch, visit.position, key, self._source, image, text, 0, None, instead_of
                )
            except (OSError, ValueError) as error:
                self.damaged(visit.epoch, visit.position, key, str(error))
                instead_of = instead_of or key
                number = self._other(visit.epoch, visit.position, attempt + 1)
        raise self._hopeless(visit.position)

    def substitute(self, epoch: int, position: int, attempt: int, key: str) -> Sample:
        """What stands in after `attempt` failures: for images that can be read but not decoded."""
        while attempt < TRIES:
            number = self._other(epoch, position, attempt)
            try:
                image, text = self.item(number)
                return Sample(epoch, position, self.key(number), self._source, image, text, 0, None, key)
            except (OSError, ValueError) as error:
                self.damaged(epoch, position, self.key(number), str(error))
                attempt += 1
        raise self._hopeless(position)

    def damaged(self, epoch: int, position: int, key: str, why: str) -> None:
        with self._guard:
            self.damages.append(Damage(epoch, position, key, why))

    def _number(self, epoch: int, position: int) -> int:
        at = self.order.at(epoch, np.array([position]))
        return int(at.shard[0]) * BLOCK + int(at.sample[0])

    def _other(self, epoch: int, position: int, attempt: int) -> int:
        return keyed(self._seed, epoch, position, attempt, _SUBSTITUTE) % self._count

    def _hopeless(self, position: int) -> Damaged:
        return Damaged(f"{self._source}: {TRIES} samples tried for position {position} are all damaged")


ENDINGS = (".jpg", ".jpeg", ".png", ".webp")


class Folder(Loose):
    """The images below a folder; those in folders of their own, as ImageNet has them, are of a class each."""

    def __init__(self, path: str | Path, *, seed: int = 0, window: int = 32) -> None:
        """Lists the folder, which takes some seconds for a million files. Raises BadRequest where there is no
        image in it.
        """
        self._path = Path(path)
        if not self._path.is_dir():
            raise BadRequest(f"{path}: there is no such folder of images")
        found = sorted(_images(os.fsencode(self._path), b""))
        if not found:
            raise BadRequest(f"{path}: no image is in it; they end in {', '.join(ENDINGS)}")
        hasher = hashlib.sha256()
        for name, size in found:
            hasher.update(b"%s\0%d\n" % (name, size))
        self._sha256 = hasher.hexdigest()
        # One string and numbers: a million of strings would take ten times as much.
        self._names = b"".join(name for name, _ in found)
        self._ends = np.cumsum([0, *(len(name) for name, _ in found)])
        self.classes = sorted({os.fsdecode(name.split(b"/")[0]) for name, _ in found if b"/" in name})
        self._given = str(path), seed, window
        super().__init__(len(found), source=self._path.resolve().name, seed=seed, window=window)

    def __reduce__(self) -> tuple[Any, ...]:
        return _opened, self._given

    def key(self, number: int) -> str:
        """Its path below the folder."""
        return os.fsdecode(self._names[int(self._ends[number]) : int(self._ends[number + 1])])

    def item(self, number: int) -> tuple[bytes, str]:
        return (self._path / self.key(number)).read_bytes(), ""

    def label(self, number: int) -> int | None:
        """Which of `classes` an image is of; None for one at the top."""
        first, slash, _ = self.key(number).partition("/")
        return self.classes.index(first) if slash else None

    def described(self) -> dict[str, Any]:
        """Files are known by their names and sizes: their content is not looked at."""
        told = {"folder_sha256": self._sha256, "count": len(self)}
        return told | {"seed": self._seed, "window": self.order.window}


def _opened(path: str, seed: int, window: int) -> Folder:
    return Folder(path, seed=seed, window=window)


def _images(folder: bytes, below: bytes) -> Iterator[tuple[bytes, int]]:
    """(path below the folder, size) of each, in any order. Links to folders are not followed: they may go in
    circles.
    """
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith(b"."):
                continue
            if entry.is_dir(follow_symlinks=False):
                yield from _images(entry.path, below + entry.name + b"/")
            elif os.fsdecode(entry.name).lower().endswith(ENDINGS) and entry.is_file():
                yield below + entry.name, entry.stat().st_size
