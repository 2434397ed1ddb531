"""import: tars of img2dataset, or of anybody, as a locked corpus. They are read where they lie.

    DIR/00042.tar, .parquet --pmd/foreign.py--> rows --keys of ours--> shards/<source>/00042.parquet
             ^                                                         shards/<source>/00042.tar, a link
             +---------------------------------------------------------+         --> lock.json

The tars are numbered in the order of their names. What decides an index is in its fingerprint: the bytes of
its tar and of img2dataset's list beside it. A file that has changed is refused. Keys are given in the order
of the tars, so that nothing depends on how many are looked at at a time.
"""

import os
import re
from collections import Counter, deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa

from pipelines.img2dataset_list import lost
from pipelines.job import FORMAT as OUTPUT_FORMAT
from pipelines.job import check_definition, holding, numbered
from pipelines.lock import LOCK, shard_facts
from pipelines.progress import Progress
from pmd import foreign
from pmd.archives import OpenFile
from pmd.errors import BadRequest, Damaged, Refused
from pmd.foreign import Found
from pmd.foreign_keys import Keys
from pmd.lock import FORMAT, Lock, LockedFile, LockedSource, lock_bytes, read_lock, root_hash
from pmd.manifest import fingerprint
from pmd.shards import Shard
from pmd.storage import Store
from pmd.tables import INDEX, Counts, Footer, count_rows, read_footer, read_table, write_table

SOURCE = re.compile(r"[a-z0-9][a-z0-9_]{0,39}")  # a key begins with it, a path has it
WAITING = 4  # tars that may be read and not written yet, beside those that are being read


@dataclass(frozen=True)
class Imported:
    """What came of an import."""

    lock: Lock
    unread: dict[str, int]  # members that were not read, by ending
    files_written: int

    def as_json(self) -> dict[str, Any]:
        return {
            "ok": True,
            "root": self.lock.root,
            "requests": 0,
            "files_written": self.files_written,
            "sources": {
                name: source.got | {"expected": source.expected} for name, source in self.lock.sources.items()
            },
            "unread": self.unread,
        }


def import_tars(folder: Path, *, out: str | None, source: str, threads: int, progress: Progress) -> Imported:
    """Make the tars directly in a folder a corpus; out: where its files go, without one into the folder.

    Raises BadRequest, and Refused where the output is another corpus or the tars are no longer those that
    it was made of.
    """
    if not SOURCE.fullmatch(source):
        raise BadRequest(f"--source {source!r}: at most 40 of a-z 0-9 _, and a letter or digit first")
    tars = _tars(folder)
    store = Store(out or str(folder))
    if not store.is_local:
        raise BadRequest(f"--out {out}: links to the tars can only be in a folder of this machine")
    wanted = {
        "format": OUTPUT_FORMAT,
        "imported": "img2dataset",
        "corpus": {"name": source, "sources": [source]},
        "versions": {"pyarrow": pa.__version__},
    }
    _check_lock(store, wanted, folder, len(tars))
    with holding(store):
        check_definition(store, wanted)
        Store(store.path("shards")).sweep()  # not all: the folder may be theirs, with hidden files of theirs
        made = _Import(store, source, wanted)
        jobs = [_Tar(number, path) for number, path in enumerate(tars)]
        with progress.stage("import", {source: len(jobs)}, unit="tars"):
            for done, looked in enumerate(_in_order(made, jobs, threads)):
                made.take(looked)
                progress.done(source, done + 1)
        return Imported(made.lock(), dict(sorted(made.unread.items())), store.published)


_OTHERWISE = "Put back what was there when it was imported, or import it into an --out of its own."


def _tars(folder: Path) -> list[Path]:
    try:
        found = sorted(entry.name for entry in os.scandir(folder) if entry.name.endswith(".tar"))
    except OSError as error:
        raise BadRequest(f"{folder}: {error.strerror}") from None
    if not found:
        raise BadRequest(f"{folder} has no .tar in it: name a folder that img2dataset has written to")
    return [folder.resolve() / name for name in found]


def _check_lock(store: Store, wanted: dict[str, Any], folder: Path, tars: int) -> None:
    """Raises Refused where the output is a corpus that came about otherwise, or of more tars or fewer."""
    if not store.exists(LOCK):
        return
    found = read_lock(store.read_bytes(LOCK), where=store.path(LOCK))
    if found.definition.get("imported") != wanted["imported"]:
        raise Refused(f"{store.root} holds another corpus, {found.name}. Give an --out of its own")
    before = sum(file.path.endswith(".tar") for file in found.files)
    if before != tars:
        raise Refused(f"{folder} has {tars} tars, {store.path(LOCK)} is of {before}. {_OTHERWISE}")


# One tar


@dataclass(frozen=True)
class _Tar:
    number: int
    path: Path

    @property
    def list(self) -> Path:
        return self.path.with_suffix(".parquet")

    @property
    def told(self) -> str:
        """Its name as text, whatever its bytes are."""
        return os.fsencode(self.path.name).decode("utf-8", "replace")


@dataclass
class _Looked:
    """A tar, hashed; and what is in it, unless its index is there."""

    tar: _Tar
    sha256: str
    size: int
    listed: dict[str, Any] | None  # name, sha256 and size of the list beside it
    fingerprint: str
    found: list[Found] | None = None
    unread: Counter[str] = field(default_factory=Counter)


def _in_order(made: "_Import", tars: list[_Tar], threads: int) -> Iterator[_Looked]:
    """Look at some tars at a time; hand them on in their order, never far behind."""
    waiting: deque[Future[_Looked]] = deque()
    pool = ThreadPoolExecutor(threads, thread_name_prefix="import")
    try:
        for tar in tars:
            if len(waiting) >= threads + WAITING:
                yield waiting.popleft().result()
            waiting.append(pool.submit(made.look, tar))
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


class _Import:
    """An import on its way."""

    def __init__(self, store: Store, source: str, definition: dict[str, Any]) -> None:
        self._store, self._source, self._definition = store, source, definition
        self._keys = Keys(source)
        # Made when all tars have turned out to be what they were: a folder may have been moved.
        self._links: dict[str, Path] = {}
        self._files: list[LockedFile] = []
        self._made_from: list[dict[str, Any]] = []
        self._counts = Counts()
        self.unread: Counter[str] = Counter()

    def look(self, tar: _Tar) -> _Looked:
        """Hash a tar and, where it has no index yet, read what is in it. Raises Refused, Damaged."""
        file = OpenFile(tar.path)
        sha256, size = _hashed(tar.path)
        listed = None
        if tar.list.exists():
            listed = {"sha256": (list_hash := _hashed(tar.list))[0], "size": list_hash[1]}
        decided = {"tar": tar.told, "sha256": sha256, "list": listed}
        looked = _Looked(tar, sha256, size, listed, fingerprint(self._definition | decided))
        if not self._is_finished(looked):
            looked.found = [*foreign.samples(file, looked.unread)]
            if listed is not None:
                names = {found.name for found in looked.found}
                looked.found += lost(tar.list, names, first=len(looked.found))
        file.check()  # last: what was read is what was hashed
        return looked

    def _is_finished(self, looked: _Looked) -> bool:
        """Raises Refused where the index was made from other files."""
        index = numbered("shards", self._source, looked.tar.number)
        if not self._store.exists(index):
            return False
        footer = self._footer(index)
        if footer.fingerprint == looked.fingerprint:
            return True
        before = footer.facts
        made = f"when {self._store.path(index)} was made"
        if before.get("tar") != looked.tar.told:
            was = before.get("tar")
            why = f"{looked.tar.path} is tar number {looked.tar.number} of its folder; {made}, that was {was}"
        elif before.get("tar_sha256") != looked.sha256:
            was = before.get("tar_sha256")
            why = f"{looked.tar.path}: sha256 is {looked.sha256}; {made}, it was {was}"
        else:
            why = f"{looked.tar.list} is not what it was {made}"
        raise Refused(f"{why}. {_OTHERWISE}")

    def _footer(self, index: str) -> Footer:
        try:
            with self._store.open(index) as file:
                return read_footer(file)
        except (ValueError, OSError) as error:
            raise Damaged(
                f"{self._store.path(index)}: {error}; delete it and run the same line again"
            ) from None

    def take(self, looked: _Looked) -> None:
        """Give the samples of the next tar their keys, and write its index unless it is there."""
        index = numbered("shards", self._source, looked.tar.number)
        tar = numbered("shards", self._source, looked.tar.number, "tar")
        if looked.found is None:
            self._links[tar] = looked.tar.path
            with self._store.open(index) as file:
                self._keys.taken(read_table(file, ["key"])["key"].to_pylist())
        else:
            self._store.link(tar, looked.tar.path)
            self._write(index, looked, looked.found)
        shard = shard_facts(self._store, index)
        self._counts += shard.counts
        self.unread.update(self._footer(index).facts["unread"])
        self._files += [
            LockedFile(
                path=tar,
                sha256=looked.sha256,
                size=looked.size,
                images=shard.counts.images,
                pairs=shard.counts.pairs,
            ),
            LockedFile(path=index, sha256=self._store.sha256(index), size=self._store.size(index)),
        ]
        self._made_from.append({"name": looked.tar.told, "sha256": looked.sha256, "size": looked.size})
        if looked.listed is not None:
            name = looked.tar.told.removesuffix("tar") + "parquet"
            self._made_from.append({"name": name} | looked.listed)

    def _write(self, index: str, looked: _Looked, found: list[Found]) -> None:
        rows = [
            one.row | {"key": key, "source": self._source}
            for one, key in zip(found, self._keys.give(looked.tar.told, found), strict=True)
        ]
        table = pa.Table.from_pylist(rows, INDEX)
        shard = Shard(looked.fingerprint, looked.sha256, looked.size, count_rows(table))
        facts = {"tar": looked.tar.told, "unread": dict(looked.unread)}
        with self._store.writing(index) as path:
            write_table(path, table, fingerprint=looked.fingerprint, facts=shard.facts() | facts)

    def lock(self) -> Lock:
        """Write the lock, unless it is there. Raises Refused where it is another one."""
        for name, target in self._links.items():
            self._store.link(name, target)
        made = Lock(
            format=FORMAT,
            name=self._source,
            definition=self._definition,
            fingerprint=fingerprint(self._definition),
            sources={
                self._source: LockedSource(
                    fingerprint=fingerprint(self._definition),
                    files=self._made_from,
                    expected={},
                    got=self._counts.as_json(),
                )
            },
            files=sorted(self._files, key=lambda file: file.path),
            root=root_hash(self._files),
        )
        if not self._store.exists(LOCK):
            self._store.write_bytes(LOCK, lock_bytes(made))
        elif read_lock(self._store.read_bytes(LOCK), where=LOCK) != made:
            raise Refused(f"{self._store.path(LOCK)} is of other indexes than are there; see `pmd verify`")
        return made


def _hashed(path: Path) -> tuple[str, int]:
    store = Store(str(path.parent))
    return store.sha256(path.name), store.size(path.name)
