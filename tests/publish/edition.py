"""One source's publication while it is written: its files, its pictures, and the account of its rows.

edition.row(damage)                        one annotation row, kept or dropped
edition.post(picture, damage, url)         one picture that the rows name, where it is published
edition.write(name, data, *addresses)      one annotation file, and where the authors publish it
"""

import bz2
import gzip
import io
import random
import tarfile
import zipfile
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, NamedTuple

from tests.publish.damage import Damage, served_file
from tests.world import Picture


@dataclass(frozen=True)
class Forms:
    """In which of its published forms a source comes, where there are several."""

    sbu: Literal["json", "txt"] = "json"
    visual_genome: Literal["v1.2", "v1"] = "v1.2"
    # zips: whatever has no dead link is in images.zip and images2.zip, and not on the web.
    visual_genome_images: Literal["web", "zips"] = "web"
    redcaps_removed: bool = False  # some images were deleted: their addresses lead to removed.png
    yfcc100m: Literal["25 columns", "23 columns", "sqlite", "subset"] = "25 columns"


class Posted(NamedTuple):
    """A picture where a source has it, and what is wrong with it there."""

    picture: Picture
    damage: Damage | None
    urls: tuple[str, ...]  # more than one where it can be had in two sizes; none: in an archive alone
    path: str | None  # in an archive
    turned: int  # degrees counter-clockwise that bring it upright

    @property
    def names(self) -> tuple[str, ...]:
        """What a corpus may know it by: its URLs, or its path where it has none."""
        return self.urls or ((self.path,) if self.path else ())

    def body(self) -> bytes:
        png = any(name.partition("?")[0].endswith(".png") for name in self.names)
        return served_file(self.picture, self.damage, "PNG" if png else "JPEG", turned=self.turned)


@dataclass
class Edition:
    folder: Path  # where its files are written to
    rng: random.Random
    forms: Forms
    rows: int = 0
    pairs: int = 0  # of kept rows
    dropped: Counter[Damage] = field(default_factory=Counter)  # rows
    posted: list[Posted] = field(default_factory=list)
    files: list[Path] = field(default_factory=list)
    archives: list[Path] = field(default_factory=list)
    addresses: dict[str, Path] = field(default_factory=dict)  # URL -> the file, or the member of a zip there

    def row(self, damage: Damage | None = None, *, rows: int = 1, pairs: int = 1) -> None:
        """So many rows with so many pairs each. The pairs of dropped rows do not count."""
        self.rows += rows
        if damage:
            self.dropped[damage] += rows
        else:
            self.pairs += rows * pairs

    def post(
        self,
        picture: Picture,
        damage: Damage | None,
        *urls: str,
        path: str | None = None,
        turned: int = 0,
    ) -> Posted:
        self.posted.append(Posted(picture, damage, urls, path, turned))
        return self.posted[-1]

    def write(self, name: str, data: bytes, *addresses: str) -> None:
        self.files.append(self._written(name, data))
        self.addresses |= dict.fromkeys(addresses, self.files[-1])

    def write_archive(self, name: str, data: bytes, *addresses: str) -> None:
        self.archives.append(self._written(f"archives/{name}", data))
        self.addresses |= dict.fromkeys(addresses, self.archives[-1])

    def _written(self, name: str, data: bytes) -> Path:
        file = self.folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(data)
        return file


# --- packing; without times, so that the same content gives the same bytes ---


def gzipped(data: bytes) -> bytes:
    return gzip.compress(data, mtime=0)


def bzipped(data: bytes) -> bytes:
    return bz2.compress(data)


def zipped(members: Mapping[str, bytes], *, stored: bool = False) -> bytes:
    """A zip of these files in this order; a name that ends in "/" is a folder. stored: not compressed."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for name, data in members.items():
            entry = zipfile.ZipInfo(name, (2016, 7, 26, 12, 0, 0))
            entry.compress_type = zipfile.ZIP_STORED if stored or not data else zipfile.ZIP_DEFLATED
            entry.external_attr = (0o40755 << 16 | 0x10) if name.endswith("/") else 0o100644 << 16
            archive.writestr(entry, data)
    return out.getvalue()


def tarred(members: Mapping[str, bytes]) -> bytes:
    """A tar of these files in this order; a name that ends in "/" is a folder."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.GNU_FORMAT) as archive:
        for name, data in members.items():
            entry = tarfile.TarInfo(name.rstrip("/"))
            entry.type = tarfile.DIRTYPE if name.endswith("/") else tarfile.REGTYPE
            entry.mode = 0o755 if name.endswith("/") else 0o644
            entry.size, entry.mtime = len(data), 1_400_000_000
            archive.addfile(entry, io.BytesIO(data))
    return out.getvalue()
