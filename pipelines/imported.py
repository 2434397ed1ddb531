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
import signal
from collections import Counter, deque
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa

from pipelines.img2dataset_list import lost
from pipelines.job import FORMAT as OUTPUT_FORMAT
from pipelines.job import check_definition, holding, numbered
from pipelines.lock import LOCK, shard_facts
from pipelines.progress import Progress
from pmd import foreign
from pmd.archives import OpenFile
from pmd.errors import BadRequest, Damaged, Refused, TasksFailed
from pmd.foreign_keys import Keys, Named
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


# What lies in the tars: images with captions, or images alone, whose captions are empty where there is none.
Kind = Literal["img2dataset", "images"]


def import_tars(
    folder: Path,
    *,
    out: str | None,
    source: str,
    workers: int,
    progress: Progress,
    kind: Kind = "img2dataset",
) -> Imported:
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
        "imported": kind,
        "corpus": {"name": source, "sources": [source]},
        "versions": {"pyarrow": pa.__version__},
    }
    _check_lock(store, wanted, folder, len(tars))
    with holding(store):
        check_definition(store, wanted)
        Store(store.path("shards")).sweep()  # not all: the folder may be theirs, with hidden files of theirs
        made = _Import(store, source, wanted)
        tasks = [_Task(store.root, source, wanted, number, path) for number, path in enumerate(tars)]
        with progress.stage("import", {source: len(tasks)}, unit="tars"):
            for done, looked in enumerate(_in_order(tasks, workers)):
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
class _Task:
    """One tar, told to the process that reads it."""

    out: str
    source: str
    definition: dict[str, Any]
    number: int
    path: Path

    def name(self, ending: str) -> str:
        """Of a file of the output."""
        return numbered("shards", self.source, self.number, ending)

    @property
    def told(self) -> str:
        """The tar's name as text, whatever its bytes are."""
        return os.fsencode(self.path.name).decode("utf-8", "replace")


@dataclass
class _Looked:
    """A tar, hashed; and what is in it, unless its index is there."""

    task: _Task
    made_from: list[dict[str, Any]]  # the tar, and the list beside it: name, sha256, size
    fingerprint: str
    rows: pa.Table | None = None  # INDEX, without keys
    named: list[Named] = field(default_factory=list)  # row for row
    unread: Counter[str] = field(default_factory=Counter)


def _in_order(tasks: list[_Task], workers: int) -> Iterator[_Looked]:
    """Look at some tars at a time, in processes; hand them on in their order, never far behind."""
    if min(workers, len(tasks)) == 1:
        yield from map(_look, tasks)
        return
    waiting: deque[Future[_Looked]] = deque()
    # Spawned: what is forked beside threads (of pyarrow, of a display) may hang.
    pool = ProcessPoolExecutor(workers, get_context("spawn"), _ignore_interrupts)
    try:
        for task in tasks:
            if len(waiting) >= workers + WAITING:
                yield waiting.popleft().result()
            waiting.append(pool.submit(_look, task))
        while waiting:
            yield waiting.popleft().result()
    except BrokenProcessPool:
        raise TasksFailed("a process that reads tars was killed; run the same line again") from None
    finally:
        pool.shutdown(cancel_futures=True)


def _ignore_interrupts() -> None:
    """Ctrl-C reaches all processes of a terminal; the first one ends the others."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _look(task: _Task) -> _Looked:
    """Hash a tar and, where it has no index yet, read what is in it. Raises Refused, Damaged."""
    tar, path = OpenFile(task.path), task.path.with_suffix(".parquet")
    listed = OpenFile(path) if path.exists() else None
    made_from = [_hashed(task.path, task.told)]
    if listed is not None:
        made_from.append(_hashed(path, task.told.removesuffix("tar") + "parquet"))
    looked = _Looked(task, made_from, fingerprint(task.definition | {"files": made_from}))
    if not _is_finished(looked):
        captioned = task.definition["imported"] != "images"
        found = [*foreign.samples(tar, looked.unread, captioned=captioned)]
        if listed is not None:
            found += lost(path, {one.name for one in found if one.name}, first=len(found))
            listed.check()
        looked.rows = pa.Table.from_pylist([one.row | {"source": task.source} for one in found], INDEX)
        looked.named = [Named(one.name, one.row["url"], one.again) for one in found]
    tar.check()  # last: what was read is what was hashed
    return looked


def _hashed(path: Path, told: str) -> dict[str, Any]:
    store = Store(str(path.parent))
    return {"name": told, "sha256": store.sha256(path.name), "size": store.size(path.name)}


def _is_finished(looked: _Looked) -> bool:
    """Is its index there? Raises Refused where that was made from other files."""
    task, store = looked.task, Store(looked.task.out)
    index = task.name("parquet")
    if not store.exists(index):
        return False
    footer = _footer(store, index)
    if footer.fingerprint == looked.fingerprint:
        return True
    before = footer.facts.get("files") or [{}]
    tar, made = looked.made_from[0], f"when {store.path(index)} was made"
    if before[0].get("name") != tar["name"]:
        was = before[0].get("name")
        why = f"{task.path} is tar number {task.number} of its folder; {made}, that was {was}"
    elif before[0].get("sha256") != tar["sha256"]:
        why = f"{task.path}: sha256 is {tar['sha256']}; {made}, it was {before[0].get('sha256')}"
    else:
        why = f"{task.path.with_suffix('.parquet')} is not what it was {made}"
    raise Refused(f"{why}. {_OTHERWISE}")


def _footer(store: Store, index: str) -> Footer:
    try:
        with store.open(index) as file:
            return read_footer(file)
    except (ValueError, OSError) as error:
        raise Damaged(f"{store.path(index)}: {error}; delete it and run the same line again") from None


# All of them


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

    def take(self, looked: _Looked) -> None:
        """Give the samples of the next tar their keys, and write its index unless it is there."""
        tar, index = looked.task.name("tar"), looked.task.name("parquet")
        if looked.rows is None:
            self._links[tar] = looked.task.path
            with self._store.open(index) as file:
                self._keys.taken(read_table(file, ["key"])["key"].to_pylist())
        else:
            self._store.link(tar, looked.task.path)
            self._write(index, looked, looked.rows)
        shard = shard_facts(self._store, index)
        self._counts += shard.counts
        self.unread.update(_footer(self._store, index).facts["unread"])
        counts = {"images": shard.counts.images, "pairs": shard.counts.pairs}
        self._files += [
            LockedFile(path=tar, sha256=shard.tar_sha256, size=shard.tar_size, **counts),
            LockedFile(path=index, sha256=self._store.sha256(index), size=self._store.size(index)),
        ]
        self._made_from += looked.made_from

    def _write(self, index: str, looked: _Looked, rows: pa.Table) -> None:
        keys = self._keys.give(looked.task.told, looked.named)
        key = INDEX.get_field_index("key")
        table = rows.set_column(key, INDEX.field(key), pa.array(keys, pa.string()))
        tar = looked.made_from[0]
        shard = Shard(looked.fingerprint, tar["sha256"], tar["size"], count_rows(table))
        facts = shard.facts() | {"files": looked.made_from, "unread": dict(looked.unread)}
        with self._store.writing(index) as path:
            write_table(path, table, fingerprint=looked.fingerprint, facts=facts)

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
