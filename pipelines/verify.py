"""verify: is every byte of a locked corpus still what it was?

    lock.json --its own hash--> files --sha256 each--> damaged tars --against their index--> damaged samples,
    by key

Trusts nothing but the lock, and that only after its own hash. Reads, never writes.
"""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from pipelines.job import REPAIRING
from pipelines.lock import LOCK
from pmd.errors import BadRequest, Damaged
from pmd.lock import Lock, LockedFile, read_lock
from pmd.shards import image_faults, tar_faults
from pmd.storage import Store
from pmd.tables import read_table


@dataclass(frozen=True)
class Bad:
    """One damaged place."""

    path: str
    sample: str | None
    why: str


@dataclass(frozen=True)
class Verdict:
    files: int
    bad: tuple[Bad, ...]

    @property
    def ok(self) -> bool:
        return not self.bad

    def as_json(self) -> dict[str, Any]:
        return {"ok": self.ok, "files": self.files, "bad": [vars(bad) for bad in self.bad]}


def verify(store: Store, *, threads: int, told: Callable[[int], None] = lambda files: None) -> Verdict:
    """Check every file of an output against its lock. told(files) hears how many are done."""
    if not store.exists(LOCK):
        raise BadRequest(f"{store.root} has no {LOCK}; `pmd lock` writes it when a build is finished")
    try:
        lock = read_lock(store.read_bytes(LOCK), where=LOCK)
    except Damaged as error:
        return Verdict(1, (Bad(LOCK, None, str(error)),))
    bad = list(_strangers(store, lock))
    if store.exists(REPAIRING):
        bad.append(
            Bad(REPAIRING, None, "a repair was stopped while it exchanged shards; run `pmd repair` again")
        )
    by_path = {file.path: file for file in lock.files}
    with ThreadPoolExecutor(threads) as pool:
        judged = pool.map(lambda file: list(_faults(store, file, by_path, lock)), lock.files)
        for done, faults in enumerate(judged):
            bad += faults
            told(done + 1)
    return Verdict(len(lock.files) + 1, tuple(bad))


def _image_format(lock: Lock) -> str:
    """The ending of the images' names; jpg in a lock from before there was a choice."""
    return lock.definition.get("corpus", {}).get("image", {}).get("encode_format", "jpg")


def _strangers(store: Store, lock: Lock) -> Iterator[Bad]:
    """Files beside the shards that a reader would take for more of the corpus."""
    known = {file.path for file in lock.files}
    for source in lock.sources:
        for name in store.names(f"shards/{source}"):
            if name not in known:
                yield Bad(name, None, "it is not in the lock")


def _faults(store: Store, file: LockedFile, by_path: dict[str, LockedFile], lock: Lock) -> Iterator[Bad]:
    """What is wrong with one file; nothing if its hash is right."""
    if not store.exists(file.path):
        yield Bad(file.path, None, "it is missing")
        return
    try:
        found = store.sha256(file.path)
    except OSError as error:
        yield Bad(file.path, None, f"it cannot be read: {error}")
        return
    if found == file.sha256:
        return
    whole = Bad(file.path, None, f"sha256 is {found}, the lock says {file.sha256}")
    index = _sound_index(store, file, by_path)
    if index is None:
        yield whole
        return
    with store.open(file.path) as tar:
        # An imported tar is not in our form; where no image is damaged, it is told as a whole.
        imported = "imported" in lock.definition
        faults = image_faults(tar, index) if imported else tar_faults(tar, index, _image_format(lock))
        samples = [Bad(file.path, fault.sample, fault.why) for fault in faults]
    yield from samples or [whole]


def _sound_index(store: Store, file: LockedFile, by_path: dict[str, LockedFile]) -> pa.Table | None:
    """The index of a tar, if it is there and undamaged."""
    if not file.path.endswith(".tar"):
        return None
    index = by_path.get(file.path.removesuffix("tar") + "parquet")
    if index is None or not store.exists(index.path) or store.sha256(index.path) != index.sha256:
        return None
    with store.reading(index.path) as path:
        return read_table(path)
