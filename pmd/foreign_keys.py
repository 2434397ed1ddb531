"""Keys of ours for samples that others have named: unique over all tars of an import, for good.

    "000000012" --> img2dataset-000000012            where that is a key, and no tar before has it
    its address --> img2dataset-9f86d081884c7d65     or else, where it has one
    its place   --> img2dataset-60303ae22b998861     or else: of the name of its tar and its own

Names are unique within a tar at best: many writers begin anew in each.
"""

import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from pmd.records import KEY, key_hash, url_key


class Named(NamedTuple):
    """What a key is made of."""

    name: str  # what they call the sample; empty where that is not known
    url: str | None
    again: bool  # an earlier sample of the tar has its name


class Keys:
    """The keys of one import. They depend on the order in which tars are told of."""

    def __init__(self, source: str) -> None:
        self._source = source
        self._numbers = _Numbers()  # 8 bytes a key, and not a hundred: there may be many millions

    def taken(self, keys: Iterable[str]) -> None:
        """These were given by an earlier run."""
        self._numbers.add([key_hash(key) for key in keys])

    def give(self, tar: str, found: Sequence[Named]) -> list[str]:
        """A key for each sample of the next tar."""
        choices = [self._choices(tar, one, place) for place, one in enumerate(found)]
        given = [next(choice) for choice in choices]
        known = self._numbers.known([key_hash(key) for key in given])
        met = set[str]()
        for place, choice in enumerate(choices):
            while known[place] or given[place] in met:
                given[place] = next(choice)
                (known[place],) = self._numbers.known([key_hash(given[place])])
            met.add(given[place])
        self.taken(given)
        return given

    def _choices(self, tar: str, found: Named, place: int) -> Iterator[str]:
        """The best first; they do not end, so that one is free."""
        if found.name and not found.again:
            if KEY.match(plain := f"{self._source}-{found.name}"):
                yield plain
            if found.url is not None:
                yield url_key(self._source, found.url)
            yield url_key(self._source, f"{tar}/{found.name}")
        for attempt in itertools.count():
            yield url_key(self._source, f"{tar}#{place}#{attempt}")


class _Numbers:
    """A set of 64-bit numbers: sorted runs, each at least twice as long as the next."""

    def __init__(self) -> None:
        self._runs: list[np.ndarray[Any, np.dtype[np.uint64]]] = []

    def known(self, numbers: list[int]) -> list[bool]:
        asked = np.array(numbers, np.uint64)
        met = np.zeros(len(asked), bool)
        for run in self._runs:
            met |= run[np.minimum(np.searchsorted(run, asked), len(run) - 1)] == asked
        return met.tolist()

    def add(self, numbers: list[int]) -> None:
        if not numbers:
            return
        run = np.sort(np.array(numbers, np.uint64))
        while self._runs and len(self._runs[-1]) < 2 * len(run):
            run = np.sort(np.concatenate((self._runs.pop(), run)))
        self._runs.append(run)
