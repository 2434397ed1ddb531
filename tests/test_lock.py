"""The laws of pmd/lock.py: a lock is what it was written as, to the bit, and its root names the corpus."""

import json
from typing import Any

import pytest

from pmd.errors import Damaged
from pmd.lock import FORMAT, Lock, LockedFile, LockedSource, lock_bytes, read_lock, root_hash

FILES = [
    LockedFile(path="shards/coco/00000.tar", sha256="a" * 64, size=10_240, images=3, pairs=15),
    LockedFile(path="shards/coco/00000.parquet", sha256="b" * 64, size=812),
    LockedFile(path="plan/coco/rejected.parquet", sha256="c" * 64, size=301),
]


def lock(files: list[LockedFile] = FILES) -> Lock:
    return Lock(
        format=FORMAT,
        name="smoke",
        definition={"corpus": {"image": {"max_aspect": 2.5}, "seed": 0}, "limit": None},
        fingerprint="d" * 64,
        sources={
            "coco": LockedSource(
                fingerprint="e" * 64,
                files=[{"name": "captions \N{SNOWMAN}.json", "sha256": "f" * 64, "size": 7}],
                expected={"rows": None, "words_per_caption": 10.48},
                got={"rows": 20, "kept": 15, "dropped": {"http_404": 5}},
            )
        },
        files=files,
        root=root_hash(files),
    )


def test_a_lock_reads_back_as_it_was_made() -> None:
    assert read_lock(lock_bytes(lock()), where="lock.json") == lock()


def test_a_flipped_bit_anywhere_is_found() -> None:
    data = bytearray(lock_bytes(lock()))
    for bit in range(len(data) * 8):
        data[bit // 8] ^= 1 << bit % 8
        with pytest.raises(Damaged, match=r"^out/lock\.json: "):
            read_lock(bytes(data), where="out/lock.json")
        data[bit // 8] ^= 1 << bit % 8


def test_a_cut_or_a_longer_lock_is_found() -> None:
    data = lock_bytes(lock())
    for other in (
        *(data[:cut] for cut in range(len(data))),
        data + b"\n",
        data + data,
        b"\xef\xbb\xbf" + data,
    ):
        with pytest.raises(Damaged):
            read_lock(other, where="lock.json")


@pytest.mark.parametrize("data", [b"", b"[]", b"{}", b"null", b'{"sha256": 1}', b"\xff\xfe", b"[" * 100_000])
def test_what_is_no_lock_is_damaged(data: bytes) -> None:
    with pytest.raises(Damaged, match="not a lock"):
        read_lock(data, where="lock.json")


def resealed(change: dict[str, Any]) -> bytes:
    """A lock with something changed by a person who also mended its own hash."""
    body = lock().model_dump() | change
    return lock_bytes(Lock.model_validate(body))


def test_a_root_that_is_not_that_of_the_files_is_damage_even_when_the_lock_agrees_with_itself() -> None:
    fewer = [file.model_dump() for file in FILES[:-1]]
    for change in ({"root": "0" * 64}, {"files": fewer}):
        with pytest.raises(Damaged, match="root"):
            read_lock(resealed(change), where="lock.json")


@pytest.mark.parametrize(
    "path", ["../secret.tar", "/etc/passwd", "shards/../../a.tar", "shards//a.tar", "a.tar/", ""]
)
def test_a_lock_that_names_a_file_outside_its_output_is_no_lock(path: str) -> None:
    files = [FILES[0].model_copy(update={"path": path})]
    with pytest.raises(Damaged, match="not a lock"):
        read_lock(lock_bytes(lock(FILES).model_copy(update={"files": files})), where="lock.json")


def test_the_root_depends_on_every_field_of_every_file_and_not_on_their_order() -> None:
    changes = {"path": "shards/coco/00001.tar", "sha256": "0" * 64, "size": 1, "images": 1, "pairs": 1}
    assert set(changes) == set(LockedFile.model_fields)
    roots = {root_hash(FILES), root_hash(FILES[1:]), root_hash([*FILES, FILES[0]])}
    for place, file in enumerate(FILES):
        for field, value in changes.items():
            changed = [*FILES]
            changed[place] = file.model_copy(update={field: value})
            roots.add(root_hash(changed))
    assert len(roots) == 3 + len(FILES) * len(changes)
    assert root_hash(FILES[::-1]) == root_hash(FILES)


def test_a_lock_is_text_that_a_person_can_read() -> None:
    text = lock_bytes(lock()).decode()
    assert text.endswith("}\n") and "\N{SNOWMAN}" in text
    body = json.loads(text)
    assert list(body) == sorted(body)
    assert [file["path"] for file in body["files"]] == [file.path for file in FILES]
