"""The laws of pipelines/verify.py, on outputs made by hand: damage is named, only the lock is believed."""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from pipelines.verify import Verdict, verify
from pmd.errors import BadRequest
from pmd.lock import FORMAT, Lock, LockedFile, LockedSource, lock_bytes, root_hash
from pmd.records import key_hash
from pmd.shards import write_shard
from pmd.storage import Store
from pmd.tables import INDEX

TAR, INDEX_FILE, REJECTED = "shards/coco/00000.tar", "shards/coco/00000.parquet", "plan/coco/rejected.parquet"
KEYS = sorted((f"coco-{number}" for number in range(3)), key=key_hash)


def record(key: str) -> dict[str, Any]:
    caption = {"text": f"a photo of {key}", "file": 0, "row": 0}
    digest = hashlib.sha256(image(key)).hexdigest()
    return {"key": key, "source": "coco", "captions": [caption], "status": "success", "stored_sha256": digest}


def image(key: str) -> bytes:
    return key.encode() * 100


def output(store: Store) -> Store:
    """One shard of three samples, the rejected rows, and their lock."""
    records = pa.Table.from_pylist([record(key) for key in KEYS], INDEX)
    with store.writing(INDEX_FILE) as index, store.writing(TAR) as tar:
        write_shard(tar, index, records=records, images=map(image, KEYS), fingerprint="f" * 64)
    store.write_bytes(REJECTED, b"no row was rejected")
    files = [
        LockedFile(path=name, sha256=store.sha256(name), size=store.size(name))
        for name in (REJECTED, INDEX_FILE, TAR)
    ]
    source = LockedSource(fingerprint="f" * 64, files=[], expected={}, got={})
    lock = Lock(
        format=FORMAT,
        name="by-hand",
        definition={},
        fingerprint="f" * 64,
        sources={"coco": source},
        files=files,
        root=root_hash(files),
    )
    store.write_bytes("lock.json", lock_bytes(lock))
    return store


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return output(Store(str(tmp_path)))


def flip(store: Store, name: str, at: int = 600) -> None:
    data = bytearray(store.read_bytes(name))
    data[at] ^= 4
    store.write_bytes(name, bytes(data))


def empty(store: Store, name: str) -> None:
    store.write_bytes(name, b"")


def lengthen(store: Store, name: str) -> None:
    store.write_bytes(name, store.read_bytes(name) + b"\0")


def make_a_folder_of(store: Store, name: str) -> None:
    store.remove(name)
    Path(store.path(name)).mkdir()


def named(verdict: Verdict) -> list[tuple[str, str | None]]:
    return sorted((bad.path, bad.sample) for bad in verdict.bad)


@pytest.mark.parametrize("kind", ["folder", "memory"])
def test_an_output_that_is_as_locked_is_sound_and_stays_untouched(kind: str, tmp_path: Path) -> None:
    store = output(Store(str(tmp_path) if kind == "folder" else "memory://verify/sound"))
    store.published = 0
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    heard: list[int] = []
    verdict = verify(store, threads=2, told=heard.append)
    assert verdict.ok and verdict.as_json() == {"ok": True, "files": 4, "bad": []}
    assert heard == [1, 2, 3]
    assert store.published == 0
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


def test_a_changed_tar_is_told_by_its_samples(store: Store) -> None:
    data = store.read_bytes(TAR)
    for key in KEYS:
        flip(store, TAR, data.index(image(key)))
        verdict = verify(store, threads=1)
        assert named(verdict) == [(TAR, key)]
        assert not verdict.ok
        assert verdict.as_json()["bad"] == [{"path": TAR, "sample": key, "why": verdict.bad[0].why}]
        store.write_bytes(TAR, data)


# What is done to which files, and what must be named.
DAMAGE: dict[str, tuple[list[tuple[Callable[[Store, str], None], str]], set[tuple[str, str | None]]]] = {
    "rejected rows": ([(lengthen, REJECTED)], {(REJECTED, None)}),
    "an index": ([(flip, INDEX_FILE)], {(INDEX_FILE, None)}),
    # The index cannot say which samples they are.
    "a tar and its index": ([(flip, TAR), (flip, INDEX_FILE)], {(TAR, None), (INDEX_FILE, None)}),
    "no tar": ([(Store.remove, TAR)], {(TAR, None)}),
    "no index": ([(Store.remove, INDEX_FILE)], {(INDEX_FILE, None)}),
    "a tar without its index": ([(flip, TAR), (Store.remove, INDEX_FILE)], {(TAR, None), (INDEX_FILE, None)}),
    "an empty tar": ([(empty, TAR)], {(TAR, None), *((TAR, key) for key in KEYS)}),
    "a longer tar": ([(lengthen, TAR)], {(TAR, None)}),
    "a folder in place of a tar": ([(make_a_folder_of, TAR)], {(TAR, None)}),
    "one more tar": ([(empty, "shards/coco/00001.tar")], {("shards/coco/00001.tar", None)}),
}


@pytest.mark.parametrize("what", DAMAGE)
@pytest.mark.parametrize("threads", [1, 4])
def test_what_is_wrong_is_named_whatever_the_threads(store: Store, what: str, threads: int) -> None:
    acts, expected = DAMAGE[what]
    for damage, name in acts:
        damage(store, name)
    verdict = verify(store, threads=threads)
    assert {(bad.path, bad.sample) for bad in verdict.bad} == expected
    assert all(bad.why for bad in verdict.bad) and not verdict.ok


def test_of_a_damaged_lock_nothing_is_believed(store: Store) -> None:
    flip(store, "lock.json")
    store.remove(TAR)
    (bad,) = verify(store, threads=1).bad
    assert (bad.path, bad.sample) == ("lock.json", None)


def test_an_output_without_a_lock_is_a_bad_request(tmp_path: Path) -> None:
    with pytest.raises(BadRequest, match=r"has no lock\.json"):
        verify(Store(str(tmp_path)), threads=1)
