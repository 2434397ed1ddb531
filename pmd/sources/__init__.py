"""Readers: what a publisher's annotation files say, as records. One module per dataset.

    path --recognise--> is this a file of this source, and in which form?
         --parts------> pieces of it, the same ones for any number of workers
    part --read-------> Record | Rejected, row by row

Every row of a file comes out exactly once, in order, as a Record or as a Rejected with its reason; no bytes
make a reader raise. A file's name is never asked: what the file is shows in its content. Readers parse and do
nothing else: no network, no rules about captions or images. A new reader is a module with these three
functions, and a line in READERS.

    part.py        a piece of a file, and its bytes: plain, gzipped, or a member of a zip
    lines.py       files of one row a line            json_lists.py   JSON files too big to load
    licenses.py    licence URL -> SPDX id
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

from pmd.records import Record, Rejected
from pmd.sources import cc3m, cc12m, coco
from pmd.sources.part import Part


class Reader(Protocol):
    """What each reader module offers."""

    def recognise(self, path: Path) -> str | None:
        """The form of this file, by its first and last few KB; None where it is no file of this source."""
        ...

    def parts(self, path: Path) -> list[Part]:
        """The file as independent pieces, in row order; they depend on the file alone."""
        ...

    def read(self, part: Part) -> Iterator[Record | Rejected]:
        """Every row of the part, in order."""
        ...


READERS: dict[str, Reader] = {"coco": coco, "cc3m": cc3m, "cc12m": cc12m}

__all__ = ["READERS", "Part", "Reader"]
