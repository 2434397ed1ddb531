"""How fast raw tars become shards, and shards are verified, against copying and hashing the same bytes.

Images are random bytes of COCO's sizes after shrinking (they are only moved here, never decoded). The ceiling
in the same run: copy the finished tar and sha256 the copy, on one thread; once as it is, once with the fsync
that every shard gets.
"""

import hashlib
import os
import random
import tempfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import xxhash

from pipelines.filter import JudgeTask, judge_file
from pipelines.job import Task
from pipelines.shard import write_one
from pmd.manifest import parse_corpus
from pmd.records import key_hash
from pmd.shards import TarWriter, read_shard
from pmd.storage import Store
from pmd.tables import FETCHED, PLAN, read_footer, write_table
from tests.bench.measure import medians, options, report

CORPUS = parse_corpus({"name": "bench", "sources": ["coco"]}, where="bench")
FINGERPRINT = "0" * 64


def prepare(root: Path, *, images: int) -> Task:
    """A plan, a raw tar with its index, and verdicts, as the earlier stages leave them."""
    chance = random.Random(0)
    task = Task(str(root), "coco", 0, FINGERPRINT, CORPUS)
    store = Store(task.root)
    keys = sorted((f"coco-{number}" for number in range(images)), key=key_hash)
    plan = [
        {
            "key": key,
            "source": "coco",
            "url": f"http://images.example/{key}.jpg",
            "captions": [
                {
                    "text": f"a photo of thing {key} number {n} on a table",
                    "id": str(n),
                    "file": 0,
                    "row": 5 * place + n,
                }
                for n in range(5)
            ],
            "license": "CC-BY-2.0",
        }
        for place, key in enumerate(keys)
    ]
    rows = []
    with store.writing(task.name("raw", "tar")) as path:
        writer = TarWriter(path, xxhash.xxh3_128())
        for key in keys:
            jpeg = chance.randbytes(chance.randint(12_000, 36_000))
            offset = writer.add(f"{key}.jpg", jpeg)
            digest = hashlib.sha256(jpeg).hexdigest()
            rows.append(
                {
                    "status": "success",
                    **{"width": 341, "height": 256, "original_width": 640, "original_height": 480},
                    **{"sha256": digest, "stored_sha256": digest, "phash": "0" * 16, "mime": "image/jpeg"},
                    **{"offset": offset, "size": len(jpeg)},
                }
            )
        checksum, _ = writer.close()
    with store.writing(task.name("plan")) as path:
        write_table(path, pa.Table.from_pylist(plan, PLAN), fingerprint=FINGERPRINT)
    with store.writing(task.name("raw")) as path:
        facts = {"tar_xxh3": checksum}
        write_table(path, pa.Table.from_pylist(rows, FETCHED), fingerprint=FINGERPRINT, facts=facts)
    judge_file(JudgeTask(**vars(task), repeats=()), print)
    return task


def copy_and_hash(source: Path, target: Path, *, durable: bool) -> str:
    """Copy beside the target, then take its place, as a shard is published; returns the copy's hash."""
    aside = target.with_suffix(".new")
    with open(source, "rb") as read, open(aside, "wb") as write:
        while chunk := read.read(1 << 20):
            write.write(chunk)
        if durable:
            write.flush()
            os.fsync(write.fileno())
    os.replace(aside, target)
    with open(target, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check(store: Store, task: Task) -> None:
    """What verify does for a sound shard: both files' hashes."""
    with store.open(task.name("shards")) as file:
        shard = read_shard(read_footer(file))
    assert store.sha256(task.name("shards", "tar")) == shard.tar_sha256
    store.sha256(task.name("shards"))


def main() -> None:
    given = options(__doc__, images=10_000, repeats=7)
    pa.set_cpu_count(1)
    with tempfile.TemporaryDirectory(prefix="bench-") as name:
        task = prepare(Path(name), images=given.images)
        store = Store(task.root)
        write_one(task, print)
        tar = Path(store.path(task.name("shards", "tar")))
        size = tar.stat().st_size
        assert pq.read_metadata(store.path(task.name("shards"))).num_rows == given.images
        times = medians(
            {
                "copy_and_sha256": lambda: copy_and_hash(tar, Path(name) / "copy.tar", durable=False),
                "durable_copy_and_sha256": lambda: copy_and_hash(tar, Path(name) / "copy.tar", durable=True),
                "shard": lambda: write_one(task, print),
                "verify": lambda: check(store, task),
            },
            repeats=given.repeats,
        )
    report(
        "shard",
        figures={
            "images": given.images,
            "bytes": size,
            **{f"{part}_mb_per_s": size / taken / 1e6 for part, taken in times.items()},
            "shard_us_per_image": 1e6 * times["shard"] / given.images,
        },
        ratios={
            "shard_of_copy_and_sha256": times["copy_and_sha256"] / times["shard"],
            "shard_of_durable_copy_and_sha256": times["durable_copy_and_sha256"] / times["shard"],
            "verify_of_copy_and_sha256": times["copy_and_sha256"] / times["verify"],
        },
        as_json=given.json,
    )


if __name__ == "__main__":
    main()
