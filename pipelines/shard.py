"""shard: the survivors of one raw tar, in canonical order, with all their captions.

    plan + raw + filter 00042 --> shards/<source>/00042.tar, then shards/<source>/00042.parquet

No file depends on another number's, so a shard is rebuilt alone, by anybody, with the same bytes.
"""

import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import xxhash

from pipelines.filter import judged_raw
from pipelines.job import Job, Task
from pipelines.run import Tell
from pmd.errors import Damaged
from pmd.shards import write_shard
from pmd.storage import Store
from pmd.tables import read_table


def shard(job: Job) -> None:
    """Write every shard of this run's sources that is not written."""
    tasks = job.unfinished("shards")
    with job.progress.stage("shard", Counter(task.source for task in tasks), unit="shards"):
        for _ in job.run(write_one, tasks):
            pass


def write_one(task: Task, tell: Tell) -> dict[str, Any]:
    """Write one shard and its index."""
    store = Store(task.root)
    tables = {stage: _read(store, task.name(stage)) for stage in ("plan", "raw", "filter")}
    if judged_raw(tables["filter"]) != judged_raw(tables["raw"]):
        store.remove(task.name("filter"))
        raise Damaged(f"{task.name('filter')} judges an earlier download; run the same line again")
    records = _with_verdicts(**tables)
    with store.reading(task.name("raw", "tar")) as raw_tar:
        if _checksum(raw_tar) != judged_raw(tables["raw"]):
            raise _damaged_raw(task, store)
        # Left in reverse order: the tar is published first, the index last.
        with store.writing(task.name("shards")) as index, store.writing(task.name("shards", "tar")) as tar:
            stored = _stored_images(raw_tar, records)
            done = write_shard(
                tar,
                index,
                records=records,
                images=stored,
                fingerprint=task.fingerprint,
                image_format=task.corpus.image.encode_format,
            )
    return {"published": store.published, "tick": {"done": 1}, "images": done.counts.images}


def _damaged_raw(task: Task, store: Store) -> Damaged:
    """The error about a raw tar that is not what was fetched. Without its index it counts as not fetched."""
    store.remove(task.name("raw"))
    store.remove(task.name("filter"))
    where = store.path(task.name("raw", "tar"))
    return Damaged(
        f"{where}: its bytes are not those that were fetched; run the same line again to fetch them anew"
    )


def _read(store: Store, name: str) -> pa.Table:
    with store.reading(name) as path:
        return read_table(path)


def _with_verdicts(*, plan: pa.Table, raw: pa.Table, filter: pa.Table) -> pa.Table:
    """The plan's and the raw index's columns, with the filter's word in status and reason."""
    assert plan["key"] == filter["key"], "one verdict a record, in the plan's order"
    status = [
        "filtered" if status == "success" and not kept else status
        for status, kept in zip(raw["status"].to_pylist(), filter["kept"].to_pylist(), strict=True)
    ]
    columns = {name: plan[name] for name in plan.column_names} | {
        name: raw[name] for name in raw.column_names
    }
    return pa.table(columns | {"status": pa.array(status, pa.string()), "reason": filter["reason"]})


def _stored_images(raw_tar: Path, records: pa.Table) -> Iterator[bytes | None]:
    """Each kept record's image from the raw tar; None for the others."""
    columns = [records[name].to_pylist() for name in ("status", "offset", "size")]
    with open(raw_tar, "rb", buffering=0) as file:
        for status, offset, size in zip(*columns, strict=True):
            yield os.pread(file.fileno(), size, offset) if status == "success" else None


def _checksum(path: Path) -> str:
    """The raw tar's checksum as download took it: xxh3, a second sha256 would cost a third of the time."""
    digest = xxhash.xxh3_128()
    buffer = memoryview(bytearray(1 << 20))
    with open(path, "rb", buffering=0) as file:
        while size := file.readinto(buffer):
            digest.update(buffer[:size])
    return digest.hexdigest()
