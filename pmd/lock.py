"""What we got: the lock file, which says of every file of a corpus what it is, and of the whole corpus one
hash.

    lock.json    definition, fingerprints and versions | per source: expected and got | per file: path,
    sha256, size,
                 images, pairs | root: sha256 over the sorted file list | sha256: over all of the above

Two corpora with one root are the same bytes. There are no times and no host names in it, and it is written in
one form only, so that a lock which is not byte for byte what it parses to has been damaged.
"""

import hashlib
import json
from typing import Any

from pydantic import Field

from pmd.errors import BadRequest, Damaged
from pmd.manifest import Section, canonical_json
from pmd.storage import Store

FORMAT = 1


class LockedFile(Section):
    """One file of the corpus; images and pairs are those in it (0 for what is not a tar)."""

    # From the output's root, and inside it: a lock may come from anybody.
    path: str = Field(pattern=r"^[a-z0-9_-]+(/[a-z0-9_-]+)*\.[a-z]+$")
    sha256: str
    size: int
    images: int = 0
    pairs: int = 0


class LockedSource(Section):
    """One source: what it was made from, what is published, what came of it."""

    fingerprint: str
    files: list[dict[str, Any]]  # the annotation files: name, sha256, size
    expected: dict[str, Any]  # of the published files, where known: see pipelines/pin.py
    got: dict[str, Any]  # rows, kept, images, planned_pairs, pairs, words_per_caption, dropped


class Lock(Section):
    format: int
    name: str
    definition: dict[str, Any]
    fingerprint: str
    sources: dict[str, LockedSource]
    files: list[LockedFile]
    root: str


def root_hash(files: list[LockedFile]) -> str:
    """The corpus's identity: sha256 over its files, in order of path."""
    return hashlib.sha256(
        canonical_json([file.model_dump() for file in sorted(files, key=_path)])
    ).hexdigest()


def _path(file: LockedFile) -> str:
    return file.path


def lock_bytes(lock: Lock) -> bytes:
    """The one form a lock is written in."""
    body = lock.model_dump()
    body["sha256"] = hashlib.sha256(canonical_json(body)).hexdigest()
    return json.dumps(body, indent=1, sort_keys=True, ensure_ascii=False).encode() + b"\n"


def read_lock(data: bytes, *, where: str) -> Lock:
    """Parse and check a lock. Raises Damaged when any bit of it is not as it was written."""
    try:
        body = json.loads(data)
        del body["sha256"]
        lock = Lock.model_validate(body)
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise Damaged(f"{where}: not a lock: {str(error).splitlines()[0]}") from None
    if lock_bytes(lock) != data:
        raise Damaged(f"{where}: its bytes are not those that its own sha256 states; it was changed")
    if lock.root != root_hash(lock.files):
        raise Damaged(f"{where}: its root is not that of its files")
    return lock


def read_locked(store: Store) -> Lock:
    """The lock of a corpus. Raises BadRequest where there is none."""
    if not store.exists("lock.json"):
        raise BadRequest(f"{store.root} has no lock.json: `pmd lock` makes it, `pmd build` does all")
    return read_lock(store.read_bytes("lock.json"), where=store.path("lock.json"))
