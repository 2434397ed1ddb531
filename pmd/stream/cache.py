"""Shards of a corpus that lies elsewhere, kept on this machine while they are needed.

    s3://..., gs://..., http://... --download, check sha256--> FOLDER/<sha256>.tar --open--> reader
                                                                    |
                                                  more than `most` bytes: those least soon needed go

A file is named by its hash, so that any number of processes, jobs and corpora may share a folder: whoever
finds it needs no word from who wrote it. It appears by rename when it is whole and checked. Who downloads
holds the kernel's lock on the file aside; others wait for it, and it is free when its holder is killed. A
file that is deleted while somebody reads it stays with that reader.
"""

import contextlib
import fcntl
import hashlib
import os
import threading
from collections.abc import Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO

from pmd.errors import BadRequest, Damaged
from pmd.lock import LockedFile
from pmd.storage import UNFINISHED, Store

BLOCK = 1 << 20
AHEAD = 4  # files that are downloaded at a time, before they are asked for


class Cache:
    """A folder for the files of one corpus, shared with whoever else uses it. Use from any thread."""

    def __init__(self, store: Store, folder: str | Path, *, most: int) -> None:
        """store: where the corpus is. most: bytes that the folder may hold, but for the files in use."""
        self._store, self._folder, self._most = store, Path(folder).expanduser(), most
        self._folder.mkdir(parents=True, exist_ok=True)
        self._needed: dict[str, int] = {}  # name -> how soon, by the order that is known
        self._coming: dict[str, Future[None]] = {}
        self._guard = threading.Lock()
        self._pool: ThreadPoolExecutor | None = None
        self._sweep()

    def close(self) -> None:
        """Stop downloading ahead. What is here stays, for whoever comes next."""
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)
            self._pool = None

    def open(self, file: LockedFile) -> BinaryIO:
        """A file of the corpus, open, from this machine. Raises Damaged where it is not as locked."""
        while True:
            try:
                opened = self._path(file).open("rb")
            except FileNotFoundError:
                self._fetch(file)
                continue  # another process may have deleted it again before it was opened
            with contextlib.suppress(OSError):
                os.utime(self._path(file))  # it has been used just now
            return opened

    def expect(self, files: Sequence[LockedFile], *, ahead: int) -> None:
        """These are needed next, in this order: download the first `ahead` of them, and keep the sooner ones
        rather than the later ones.
        """
        with self._guard:
            self._needed = {self._path(file).name: place for place, file in enumerate(files)}
            if self._pool is None:
                self._pool = ThreadPoolExecutor(AHEAD, thread_name_prefix="cache")
            for file in files[:ahead]:
                name = self._path(file).name
                if name not in self._coming and not self._path(file).exists():
                    self._coming[name] = self._pool.submit(self._fetch_ahead, file)

    def _path(self, file: LockedFile) -> Path:
        return self._folder / f"{file.sha256}{Path(file.path).suffix}"

    def _fetch_ahead(self, file: LockedFile) -> None:
        # Whoever needs it asks again, and is told what is wrong.
        with contextlib.suppress(Exception):
            self._fetch(file)
        with self._guard:
            self._coming.pop(self._path(file).name, None)

    def _fetch(self, file: LockedFile) -> None:
        """Have it here, unless somebody else has it here first."""
        final = self._path(file)
        with _held(final.with_name(f".{final.name}{UNFINISHED}")) as aside:
            if final.exists():
                return
            self._make_room(file.size)
            aside.seek(0)
            aside.truncate()
            digest = hashlib.sha256()
            with self._store.open(file.path) as source:
                while block := source.read(BLOCK):
                    digest.update(block)
                    aside.write(block)
            aside.flush()
            if digest.hexdigest() != file.sha256:
                aside.truncate(0)
                raise Damaged(
                    f"{self._store.path(file.path)}: sha256 is {digest.hexdigest()}, the lock says "
                    f"{file.sha256}; `pmd verify {self._store.root}` says more"
                )
            os.replace(aside.name, final)

    def _make_room(self, size: int) -> None:
        """Delete what is least soon needed, until there is room for so many bytes."""
        if size > self._most:
            raise BadRequest(f"a file of {size:,} bytes does not fit in a cache of {self._most:,}")
        found: list[tuple[int, float, Path, int]] = []
        for path in self._folder.iterdir():
            with contextlib.suppress(FileNotFoundError):  # another process has deleted it
                if not path.name.endswith(UNFINISHED):
                    status = path.stat()
                    soon = self._needed.get(path.name, len(self._needed))
                    found.append((soon, -status.st_mtime, path, status.st_size))
        whole = sum(entry[3] for entry in found)
        for _, _, path, its_size in sorted(found, reverse=True):
            if whole + size <= self._most:
                return
            path.unlink(missing_ok=True)
            whole -= its_size

    def _sweep(self) -> None:
        """Delete what killed processes left aside. Who is at work on one holds its lock."""
        for path in self._folder.glob(f".*{UNFINISHED}"):
            with contextlib.suppress(OSError), open(path, "rb") as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                path.unlink(missing_ok=True)


@contextlib.contextmanager
def _held(path: Path) -> Generator[BinaryIO]:
    """The file at a path, locked against all others, who wait."""
    while True:
        with open(path, "a+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            try:
                same = os.fstat(file.fileno()).st_ino == os.stat(path).st_ino
            except FileNotFoundError:
                same = False
            if same:
                try:
                    yield file
                finally:
                    with contextlib.suppress(FileNotFoundError):
                        if os.fstat(file.fileno()).st_ino == os.stat(path).st_ino:
                            os.unlink(path)  # it has not become the file that it was to be
                return
            # It was renamed or deleted while we waited: what is at that path now is another one.
