"""Files that are either whole or not there: the only way this project writes anything that lasts.

    with store.writing("shards/coco/00042.tar") as path:      a fresh local file, aside
        ... write path ...
    # here: fsync, rename, fsync of the folder (local), or one upload (s3://, gs://, memory://)
    # after an exception: nothing

A reader that lists or opens names never meets an unfinished file, whatever is killed and when. A store counts
the files it has published, which is how a command can say that it wrote none.
"""

import contextlib
import hashlib
import itertools
import os
import secrets
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, cast

import fsspec

from pmd.errors import BadRequest, Refused

UNFINISHED = ".part"  # ending of a file that is being written aside


class Store:
    """One output folder: a local path, or the URL of an object store that fsspec knows."""

    def __init__(self, root: str):
        root = root.removeprefix("file://")  # fsspec would copy to the final name
        self.root = root if "://" in root else str(Path(root).expanduser().resolve())
        self.is_local = "://" not in root
        self.published = 0  # files given their final name through this object
        if not self.is_local:
            try:
                # Without its cache of listings: workers in other processes add and replace files.
                opened = fsspec.url_to_fs(root, use_listings_cache=False)
                self._remote, self._base = cast("tuple[Any, str]", opened)
            except (ImportError, ValueError) as error:
                raise BadRequest(
                    f"{root}: {error}; the extras [s3] and [gcs] bring those file systems"
                ) from None

    def __repr__(self) -> str:
        return f"Store({self.root!r})"

    def path(self, name: str) -> str:
        """The full path or URL behind a name, for messages and for local readers."""
        return f"{self.root.rstrip('/')}/{name}"

    # Reading

    def exists(self, name: str) -> bool:
        return (
            os.path.exists(self.path(name)) if self.is_local else bool(self._remote.exists(self._key(name)))
        )

    def size(self, name: str) -> int:
        return os.path.getsize(self.path(name)) if self.is_local else int(self._remote.size(self._key(name)))

    def read_bytes(self, name: str) -> bytes:
        with self.open(name) as file:
            return file.read()

    def sha256(self, name: str) -> str:
        """Of the file's bytes, read in pieces."""
        with self.open(name) as file:
            return hashlib.file_digest(cast("Any", file), "sha256").hexdigest()

    def open(self, name: str) -> BinaryIO:
        """A seekable binary file. Remote ones are read by range: a piece of a big file costs little."""
        return open(self.path(name), "rb") if self.is_local else self._remote.open(self._key(name), "rb")

    @contextlib.contextmanager
    def reading(self, name: str) -> Iterator[Path]:
        """A local path with this file's bytes; a remote file is fetched for the time of the block."""
        if self.is_local:
            yield Path(self.path(name))
            return
        with tempfile.TemporaryDirectory(prefix="pmd-") as folder:
            copy = Path(folder) / Path(name).name
            self._remote.get_file(self._key(name), str(copy))
            yield copy

    def names(self, folder: str, ending: str = "") -> list[str]:
        """Sorted names of the finished files directly in a folder; no such folder, no names."""
        try:
            if self.is_local:
                found = [entry.name for entry in os.scandir(self.path(folder)) if entry.is_file()]
            else:
                listing = self._remote.ls(self._key(folder), detail=True)
                found = [Path(entry["name"]).name for entry in listing if entry["type"] == "file"]
        except (FileNotFoundError, NotADirectoryError):
            return []
        return sorted(
            f"{folder}/{name}" for name in found if name.endswith(ending) and not name.startswith(".")
        )

    # Writing

    @contextlib.contextmanager
    def writing(self, name: str, *, durable: bool = True) -> Iterator[Path]:
        """A fresh local path to fill; leaving the block without an exception publishes it under its name.

        durable=False is for scratch files that no later run will trust: a power cut may leave them empty.
        """
        if self.is_local:
            final = Path(self.path(name))
            aside = _aside(final)
            try:
                yield aside
                if durable:
                    _sync(aside)
                os.replace(aside, final)
                if durable:
                    _sync(final.parent)
            finally:
                aside.unlink(missing_ok=True)
        else:
            # An exception inside an fsspec "wb" block publishes what was written so far, so nothing is ever
            # streamed to the final name: one upload of a finished file, which object stores make visible at
            # once or not at all.
            with tempfile.TemporaryDirectory(prefix="pmd-") as folder:
                aside = Path(folder) / Path(name).name
                yield aside
                # No makedirs first: object stores have no folders, and a mistyped bucket would be made.
                self._remote.put_file(str(aside), self._key(name))
        self.published += 1

    def write_bytes(self, name: str, data: bytes) -> None:
        with self.writing(name) as path:
            path.write_bytes(data)

    def create(self, name: str, data: bytes) -> bool:
        """Write a small file only if the name is free; False if it was taken, by a whole file."""
        if self.is_local:
            final = Path(self.path(name))
            aside = _aside(final)
            try:
                aside.write_bytes(data)
                _sync(aside)
                os.link(aside, final)
                _sync(final.parent)
            except FileExistsError:
                return False
            finally:
                aside.unlink(missing_ok=True)
            return True
        try:
            self._remote.pipe_file(self._key(name), data, mode="create")
        except FileExistsError:
            return False
        return True

    def link(self, name: str, target: Path) -> None:
        """Have a name lead to a local file, unless it does: by a relative link, so that both may be moved
        together. Raises Refused where a file is in its place.
        """
        assert self.is_local, self.root
        final = Path(self.path(name))
        wanted = os.path.relpath(target, final.parent.resolve())
        if final.is_symlink() and os.readlink(final) == wanted:
            return
        if final.exists() and not final.is_symlink():
            raise Refused(f"{final} is in the way of a link to {target}; delete it if it is not needed")
        aside = _aside(final)
        try:
            os.symlink(wanted, aside)
            os.replace(aside, final)
            _sync(final.parent)
        finally:
            aside.unlink(missing_ok=True)
        self.published += 1

    def remove(self, name: str) -> None:
        """Delete a file; no complaint if it is gone already."""
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self.path(name)) if self.is_local else self._remote.rm_file(self._key(name))

    def remove_folder(self, folder: str) -> None:
        """Delete the files directly in a folder, and the folder."""
        if self.is_local:
            with contextlib.suppress(FileNotFoundError):
                for entry in os.scandir(self.path(folder)):
                    os.unlink(entry.path)
                os.rmdir(self.path(folder))
        else:
            for key in self._remote.find(self._key(folder)):  # rm(recursive=True) takes "[" for a pattern
                self._remote.rm_file(key)

    def sweep(self) -> int:
        """Delete what killed writers left aside; only for the run that holds the output. Returns how many."""
        if not self.is_local:
            return 0
        left = [path for path in Path(self.root).rglob(f".*{UNFINISHED}") if path.is_file()]
        for path in left:
            path.unlink(missing_ok=True)
        return len(left)

    def _key(self, name: str) -> str:
        return f"{self._base.rstrip('/')}/{name}"


def _aside(final: Path) -> Path:
    """Where to write a file until it gets its final name: beside it, in a folder that is there to stay."""
    missing = [*itertools.takewhile(lambda folder: not folder.exists(), final.parents)]
    final.parent.mkdir(parents=True, exist_ok=True)
    for folder in missing:
        _sync(folder.parent)
    return final.parent / f".{final.name}.{os.getpid()}-{secrets.token_hex(4)}{UNFINISHED}"


def _sync(path: Path) -> None:
    """Push a file, or the names in a folder, to the disk: a rename may else outlive a power cut that its
    bytes do not.
    """
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
