"""The library: published files kept on this machine, downloaded once for all corpora.

    ~/.cache/pmd/                                       or $PMD_LIBRARY
      storage.googleapis.com/conceptual_12m/cc12m.tsv   a published file, under its address
      .../cc12m.tsv.json                                what it is: address, size, sha256, time of the file
      pins/cc12m.json                                   which files are this source: those above, or others

What is in it decides nothing: an output pins its annotation files by their hashes, wherever they lie.
"""

import hashlib
import json
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from pmd.archives import is_packed_tar, unpacked_tar
from pmd.errors import Damaged, Refused
from pmd.fetch.file import download_file, refused_path
from pmd.manifest import FetchSpec
from pmd.storage import Store

Told = Callable[[int, int | None], None]  # bytes so far, bytes in all


@dataclass(frozen=True)
class Kept:
    """A file on this machine, hashed."""

    path: str
    name: str
    size: int  # bytes
    sha256: str
    mtime_ns: int  # with the size: whether it has to be hashed again
    url: str | None = None  # where it is published


@dataclass(frozen=True)
class Wanted:
    """A published file: where it is, and what it must be, as far as that is known."""

    url: str
    mirrors: Sequence[str] = ()
    size: int | None = None
    sha256: str | None = None


class Library:
    def __init__(self, folder: str | Path | None = None):
        chosen = folder or os.environ.get("PMD_LIBRARY") or Path("~/.cache/pmd").expanduser()
        self._store = Store(str(chosen))
        self.folder = Path(self._store.root)

    def file(self, wanted: Wanted, spec: FetchSpec, *, told: Told, accept: bool = False) -> Kept:
        """A published file, downloaded unless it is here.

        Raises Refused where it is not what it must be; accept: takes it as it is now.
        """
        name = _place(wanted.url)
        path = self.folder / name
        expected = None if accept else wanted.sha256
        if not path.exists():
            if accept and refused_path(path).exists():
                os.replace(refused_path(path), path)
            else:
                path.parent.mkdir(parents=True, exist_ok=True)
                download_file(
                    [wanted.url, *wanted.mirrors],
                    path,
                    spec=spec,
                    size=None if accept else wanted.size,
                    sha256=expected,
                    told=told,
                )
        known = self._read(f"{name}.json")
        kept = hashed(path, Kept(**known) if known else None, url=wanted.url)
        if expected is not None and kept.sha256 != expected:
            raise Refused(
                f"{path}: sha256 is {kept.sha256}, the published file's is {expected}. Delete it to download "
                "the published one, or take it as it is with `pmd pin SOURCE --accept`."
            )
        if known and known["sha256"] != kept.sha256 and not accept:
            raise Damaged(
                f"{path}: sha256 is {kept.sha256}, it was {known['sha256']} when it was downloaded. It was "
                "changed here; delete it to download it again."
            )
        if known != asdict(kept):
            self._write(f"{name}.json", asdict(kept))
        return kept

    def plain_archive(self, path: Path, *, told: Told) -> Path:
        """An archive of images in a form that can be entered anywhere: itself, or a tar unpacked from it."""
        if not is_packed_tar(path):
            return path
        return unpacked_tar(path, self.folder / "unpacked", told=told)

    def pin(self, source: str) -> dict[str, Any] | None:
        """Which files are this source on this machine: {"edition", "files"}; None: not pinned."""
        return self._read(f"pins/{source}.json")

    def write_pin(self, source: str, pin: dict[str, Any]) -> None:
        if self.pin(source) != pin:
            self._write(f"pins/{source}.json", pin)

    def _read(self, name: str) -> dict[str, Any] | None:
        return json.loads(self._store.read_bytes(name)) if self._store.exists(name) else None

    def _write(self, name: str, value: dict[str, Any]) -> None:
        self._store.write_bytes(name, json.dumps(value, indent=1, sort_keys=True).encode() + b"\n")


def hashed(path: Path, known: Kept | None = None, *, url: str | None = None) -> Kept:
    """A file with its hash, which is taken as known where size and time are still the same."""
    status = path.stat()
    if known and (known.path, known.size, known.mtime_ns) == (str(path), status.st_size, status.st_mtime_ns):
        return known
    with open(path, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        size = os.fstat(file.fileno()).st_size
    if known and (known.path, known.size, known.sha256) == (str(path), size, digest):
        return known  # touched, but the same
    return Kept(str(path), path.name, size, digest, status.st_mtime_ns, url)


def _place(url: str) -> str:
    """Where a published file lies: host/path, with nothing in it that a file system could take otherwise."""
    parts = urlsplit(url)
    pieces = [parts.netloc, *parts.path.split("/")]
    plain = [re.sub(r"[^A-Za-z0-9._-]", "_", piece) for piece in pieces if piece]
    return "/".join("_" if piece.startswith(".") else piece for piece in plain)
