"""plan: annotation rows -> plan/<source>/00042.parquet, and plan/<source>/rejected.parquet.

    each part of each file --spill--> --deal--> --gather--> numbered plan files, then plan.json: all of it is
    there

How it stays small is told in pmd/plan.py; here is who does what, and when.
"""

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.job import Job, Task, numbered, read_plan
from pipelines.run import Tell
from pmd import plan as planning
from pmd.errors import Refused
from pmd.records import Record, Rejected
from pmd.sources import READERS, Part
from pmd.storage import Store
from pmd.tables import REJECTED, write_table


def plan(job: Job) -> None:
    """Plan every source of this run that is not planned yet."""
    for source in job.sources:
        found = read_plan(job.store, source)
        if found is None:
            _plan_source(job, source)
        elif found["fingerprint"] != job.fingerprint(source):
            raise Refused(
                f"{job.store.path(f'plan/{source}')} was made under another definition; use a new --out"
            )


def _plan_source(job: Job, source: str) -> None:
    tasks = list(_parts(job, source))
    with job.progress.stage("plan", {source: len(tasks)}, unit="parts"):
        ends = [done.value for done in job.run(spill_part, tasks)]
    images, wanted = planning.distinct_images(_opened(job.store, [task.spilled for task in tasks]))
    captions = sum(end["rows"] - end["rejected"] for end in ends)
    layout = planning.layout(
        captions=captions, images=images, wanted=wanted, images_per_shard=job.corpus.shard.images
    )
    if layout.shards:
        for _ in job.run(deal_part, [DealTask(**vars(task), layout=layout) for task in tasks]):
            pass
        dealt = tuple(task.dealt for task in tasks)
        groups = [
            GatherTask(**vars(job.task(source, number)), layout=layout, dealt=dealt)
            for number in range(layout.groups)
        ]
        for _ in job.run(gather_group, groups):
            pass
    with job.store.writing(f"plan/{source}/rejected.parquet") as path:
        dropped = _collect_rejected(job.store, tasks, path, fingerprint=job.fingerprint(source))
    mark = {
        "fingerprint": job.fingerprint(source),
        "shards": layout.shards,
        "rows": sum(end["rows"] for end in ends),
        "images": images,
        "images_to_fetch": wanted,
        "rejected": dropped,
        "files": [*{task.file: task.file_name for task in tasks}.values()],
    }
    job.store.write_bytes(
        f"plan/{source}/plan.json", json.dumps(mark, indent=1, sort_keys=True).encode() + b"\n"
    )
    job.store.remove_folder(_spill_folder(source, job.fingerprint(source)))
    job.progress.note(
        f"plan     {source}: {mark['rows']:,} rows, {images:,} images, {wanted:,} to fetch, "
        f"{layout.shards} shards, {sum(dropped.values()):,} rows rejected"
    )


@dataclass(frozen=True)
class SpillTask(Task):
    part: Part
    file: int  # its place among the annotation files (each member of a zip is one)
    file_name: str
    limit: int | None

    @property
    def spilled(self) -> str:
        return f"{_spill_folder(self.source, self.fingerprint)}/{self.number:05d}.arrow"

    @property
    def rejected(self) -> str:
        return f"{_spill_folder(self.source, self.fingerprint)}/{self.number:05d}.rejected.arrow"

    @property
    def dealt(self) -> str:
        return f"{_spill_folder(self.source, self.fingerprint)}/{self.number:05d}.dealt.arrow"


@dataclass(frozen=True)
class DealTask(SpillTask):
    layout: planning.Layout


@dataclass(frozen=True)
class GatherTask(Task):
    layout: planning.Layout
    dealt: tuple[str, ...]


def _spill_folder(source: str, fingerprint: str) -> str:
    # The fingerprint in the name: what a killed run has spilled is used again, another definition's never.
    return f"plan/.spill-{source}-{fingerprint[:16]}"


def _parts(job: Job, source: str) -> Iterator[SpillTask]:
    number = 0
    wholes: list[tuple[str, str | None]] = []  # annotation files by path: two may have one name
    for file in job.pins(source)["files"]:
        for part in READERS[source].parts(Path(file["path"])):
            if not wholes or wholes[-1] != (part.path, part.member):
                wholes.append((part.path, part.member))
            if job.limit is not None and part.first_row >= job.limit:
                continue
            name = f"{file['name']}/{part.member}" if part.member else file["name"]
            task = job.task(source, number)
            place = len(wholes) - 1
            yield SpillTask(**vars(task), part=part, file=place, file_name=name, limit=job.limit)
            number += 1


def spill_part(task: SpillTask, tell: Tell) -> dict[str, Any]:
    """Read one part of an annotation file into columns, cleaned and judged."""
    store = Store(task.root)
    if not (store.exists(task.spilled) and store.exists(task.rejected)):
        outcomes = READERS[task.source].read(task.part)
        if task.limit is not None:
            outcomes = _within(outcomes, task.limit)
        with store.writing(task.rejected) as rejected, store.writing(task.spilled) as spilled:
            planning.spill(
                outcomes, spilled, rejected, file=task.file, name=task.file_name, rules=task.corpus.text
            )
    with store.open(task.spilled) as kept, store.open(task.rejected) as lost:
        rejected_rows = pa.ipc.open_file(lost).read_all().num_rows
        rows = planning.count_captions(kept) + rejected_rows
    return {"rows": rows, "rejected": rejected_rows, "published": store.published, "tick": {"done": 1}}


def _within(outcomes: Iterator[Record | Rejected], limit: int) -> Iterator[Record | Rejected]:
    for outcome in outcomes:
        if isinstance(outcome, Rejected):
            if outcome.row < limit:
                yield outcome
        elif captions := tuple(caption for caption in outcome.captions if caption.row < limit):
            yield outcome._replace(captions=captions)


def deal_part(task: DealTask, tell: Tell) -> dict[str, Any]:
    """Sort one part's rows by the group of shards they go to."""
    store = Store(task.root)
    with store.writing(task.dealt, durable=False) as path, store.open(task.spilled) as spilled:
        planning.deal(spilled, path, layout=task.layout)
    return {"published": store.published}


def gather_group(task: GatherTask, tell: Tell) -> dict[str, Any]:
    """Write the plan files of one group of shards."""
    store = Store(task.root)
    dealt = _opened(store, task.dealt)
    tables = planning.gather(dealt, source=task.source, group=task.number, layout=task.layout)
    for number, table in tables:
        with store.writing(numbered("plan", task.source, number)) as path:
            write_table(path, table, fingerprint=task.fingerprint)
    return {"published": store.published}


def _opened(store: Store, names: Iterable[str]) -> Iterator[BinaryIO]:
    """Files one after the other: there may be more parts than files that a process may have open."""
    for name in names:
        with store.open(name) as file:
            yield file


def _collect_rejected(store: Store, tasks: list[SpillTask], path: Any, *, fingerprint: str) -> dict[str, int]:
    """All rejected rows in one file, in order of file and row; returns rows by reason."""
    counts: dict[str, int] = {}
    schema = REJECTED.with_metadata({"pmd.fingerprint": fingerprint})
    with pq.ParquetWriter(path, schema, compression="zstd") as writer:
        for task in tasks:
            with store.open(task.rejected) as file, pa.ipc.open_file(file) as reader:
                table = reader.read_all()
            if table.num_rows:
                writer.write_table(table.replace_schema_metadata(schema.metadata))
            for entry in table["reason"].value_counts().to_pylist():
                counts[entry["values"]] = counts.get(entry["values"], 0) + entry["counts"]
    return counts
