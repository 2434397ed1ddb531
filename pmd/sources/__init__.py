"""Readers: what a publisher's annotation files say, as records. One module per dataset.

    path --recognise--> is this a file of this source, and in which form?
    paths -parts------> pieces of them, the same ones for any number of workers
    part --read-------> Record | Rejected, row by row

Every row of a file comes out exactly once, in order, as Records or as a Rejected with its reason; no bytes
make a reader raise. A file's name is never asked: what the file is shows in its content. Readers parse and do
nothing else: no network, no judgement of captions or images. Where a publisher gives several texts for a
picture, which of them are its captions is a choice of the corpus file (`Rules`). A new reader is a module
with these three functions and, where there is a choice, its Rules; and a line in READERS.

    part.py        a piece of a file, and its bytes: plain, packed, or a member of a zip or tar
    lines.py       files of one row a line            json_lists.py   JSON files too big to load
    delimited.py   tables with quotes                 flickr.py       photo ids in addresses
    bzip2.py       parts inside a .bz2                licenses.py     licence URL -> SPDX id
    rules.py       what a corpus file may choose
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

from pmd.records import Record, Rejected
from pmd.sources import (
    cc3m,
    cc12m,
    coco,
    localized_narratives,
    redcaps,
    sbu,
    table,
    visual_genome,
    wit,
    yfcc100m,
)
from pmd.sources.part import Incomplete, Part
from pmd.sources.rules import Rules


class Reader(Protocol):
    """What each reader module offers."""

    @property
    def Rules(self) -> type[Rules]:  # its own, or that of rules.py
        ...

    def recognise(self, path: Path) -> str | None:
        """The form of this file, by its first and last few KB; None where it is no file of this source."""
        ...

    def parts(self, paths: Sequence[Path]) -> list[Part]:
        """The files as independent pieces, in order of file and row; they depend on the files alone.

        Raises Incomplete where a file means nothing without another that is not among them.
        """
        ...

    def read(self, part: Part, rules: Any) -> Iterator[Record | Rejected]:
        """Every row of the part, in order, numbered from 0."""
        ...


READERS: dict[str, Reader] = {
    "coco": coco,
    "sbu": sbu,
    "localized_narratives": localized_narratives,
    "cc3m": cc3m,
    "visual_genome": visual_genome,
    "wit": wit,
    "cc12m": cc12m,
    "redcaps": redcaps,
    "yfcc100m": yfcc100m,
    "table": table,
}

__all__ = ["READERS", "Incomplete", "Part", "Reader", "Rules"]
