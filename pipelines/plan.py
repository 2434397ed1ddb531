"""plan: annotation rows -> plan/<source>/00042.parquet, and plan/<source>/rejected.parquet.

    each part of each file --spill--> --deal--> --gather--> numbered plan files, then plan.json: all of it is
    there

How it stays small is told in pmd/plan.py; here is who does what, and when.
"""

# pyarrow.compute makes its functions at run time, where no checker sees them.
# pyright: reportAttributeAccessIssue=false

import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipelines.job import BLOCK_LIST, Job, Task, numbered, read_plan
from pipelines.run import Tell
from pmd import plan as planning
from pmd.decontaminate import from_bytes
from pmd.errors import BadRequest, Refused
from pmd.manifest import canonical_json
from pmd.records import Record, Rejected
from pmd.sources import READERS, Incomplete, Part
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
    spills = _spill(job, source)
    kept = [spill.task.spilled for spill in spills]
    images, wanted = planning.distinct_images(_opened(job.store, kept))
    captions = planning.count_captions(_opened(job.store, kept))
    layout = planning.layout(
        captions=captions, images=images, wanted=wanted, images_per_shard=job.corpus.shard.images
    )
    if layout.shards:
        deals = [DealTask(**vars(spill.task), layout=layout, first_row=spill.first_row) for spill in spills]
        for _ in job.run(deal_part, deals):
            pass
        dealt = tuple(spill.task.dealt for spill in spills)
        groups = [
            GatherTask(**vars(job.task(source, number)), layout=layout, dealt=dealt)
            for number in range(layout.groups)
        ]
        for _ in job.run(gather_group, groups):
            pass
    with job.store.writing(f"plan/{source}/rejected.parquet") as path:
        dropped = _collect_rejected(job.store, spills, path, fingerprint=job.fingerprint(source))
    mark = {
        "fingerprint": job.fingerprint(source),
        "shards": layout.shards,
        "rows": sum(spill.rows for spill in spills),
        "images": images,
        "images_to_fetch": wanted,
        "rejected": dropped,
        "files": [*{spill.task.file: spill.task.file_name for spill in spills}.values()],
    }
    job.store.write_bytes(
        f"plan/{source}/plan.json", json.dumps(mark, indent=1, sort_keys=True).encode() + b"\n"
    )
    job.store.remove_folder(_spill_folder(source, job.fingerprint(source)))
    job.progress.note(
        f"plan     {source}: {mark['rows']:,} rows, {images:,} images, {wanted:,} to fetch, "
        f"{layout.shards} shards, {sum(dropped.values()):,} rows rejected"
    )


class _Spill(NamedTuple):
    """A part that has been read, and where its rows lie in its file."""

    task: "SpillTask"
    first_row: int
    rows: int


def _spill(job: Job, source: str) -> list[_Spill]:
    """Read all parts, in any order; what comes back is in order of file and row."""
    files = _parts(job, source)
    parts = [task for tasks in files for task in tasks]
    if job.limit is None:
        with job.progress.stage("plan", {source: len(parts)}, unit="parts"):
            done = {end.task.number: end.value["rows"] for end in job.run(spill_part, parts)}
            return [spill for tasks in files for spill in _in_file(tasks, done)]
    # Only as many parts of a file as the limit needs. How many that is shows when they have been read.
    spills: list[_Spill] = []
    with job.progress.stage("plan", {source: len(files)}, unit="files"):
        for tasks in files:
            first_row = 0
            for task in tasks:
                if first_row >= job.limit:
                    break
                limited = replace(task, limit=job.limit - first_row)
                (end,) = job.run(spill_part, [limited])
                spills.append(_Spill(limited, first_row, end.value["rows"]))
                first_row += end.value["rows"]
    return spills


def _in_file(tasks: list["SpillTask"], rows: dict[int, int]) -> Iterator[_Spill]:
    """The parts of one file, each with the number of its first row."""
    first_row = 0
    for task in tasks:
        yield _Spill(task, first_row, rows[task.number])
        first_row += rows[task.number]


@dataclass(frozen=True)
class SpillTask(Task):
    part: Part
    file: int  # its place among the annotation files (each member of a zip is one)
    file_name: str
    limit: int | None  # rows read of this part

    @property
    def spilled(self) -> str:
        return f"{_spill_folder(self.source, self.fingerprint)}/{self.number:05d}.arrow"

    @property
    def rejected(self) -> str:
        return f"{_spill_folder(self.source, self.fingerprint)}/{self.number:05d}.rejected.arrow"

    @property
    def counted(self) -> str:  # written last: the part has been read
        return f"{_spill_folder(self.source, self.fingerprint)}/{self.number:05d}.json"

    @property
    def dealt(self) -> str:
        return f"{_spill_folder(self.source, self.fingerprint)}/{self.number:05d}.dealt.arrow"


@dataclass(frozen=True)
class DealTask(SpillTask):
    layout: planning.Layout
    first_row: int


@dataclass(frozen=True)
class GatherTask(Task):
    layout: planning.Layout
    dealt: tuple[str, ...]


def _spill_folder(source: str, fingerprint: str) -> str:
    # The fingerprint in the name: what a killed run has spilled is used again, another definition's never.
    return f"plan/.spill-{source}-{fingerprint[:16]}"


def _parts(job: Job, source: str) -> list[list[SpillTask]]:
    """A task for each part, file by file. Each member of a zip or tar is a file."""
    pinned = {file["path"]: file["name"] for file in job.pins(source)["files"]}
    try:
        parts = READERS[source].parts([Path(path) for path in pinned])
    except Incomplete as error:
        raise BadRequest(f"{source}: {error}") from None
    files: list[list[SpillTask]] = []
    for number, part in enumerate(parts):
        if number == 0 or (part.path, part.member) != (parts[number - 1].path, parts[number - 1].member):
            files.append([])
        name = pinned[part.path]
        task = SpillTask(
            **vars(job.task(source, number)),
            part=part,
            file=len(files) - 1,
            file_name=f"{name}/{part.member}" if part.member else name,
            limit=None,
        )
        files[-1].append(task)
    return files


def spill_part(task: SpillTask, tell: Tell) -> dict[str, Any]:
    """Read one part of an annotation file into columns, cleaned and judged."""
    store = Store(task.root)
    if not store.exists(task.counted):
        outcomes = READERS[task.source].read(task.part, task.corpus.source_spec(task.source))
        if task.limit is not None:
            outcomes = _within(outcomes, task.limit)
        with store.writing(task.rejected) as rejected, store.writing(task.spilled) as spilled:
            counts = planning.spill(
                outcomes,
                spilled,
                rejected,
                file=task.file,
                name=task.file_name,
                rules=task.corpus.text_spec(task.source),
                block_list=from_bytes(store.read_bytes(BLOCK_LIST)) if store.exists(BLOCK_LIST) else None,
            )
        store.write_bytes(task.counted, canonical_json(asdict(counts)))
    rows = json.loads(store.read_bytes(task.counted))["rows"]
    return {"rows": rows, "published": store.published, "tick": {"done": 1}}


def _within(outcomes: Iterator[Record | Rejected], limit: int) -> Iterator[Record | Rejected]:
    """The outcomes of the first rows; the part is read no further than they go."""
    for outcome in outcomes:
        if isinstance(outcome, Rejected):
            if outcome.row >= limit:
                return
            yield outcome
        elif captions := tuple(caption for caption in outcome.captions if caption.row < limit):
            yield outcome._replace(captions=captions)
        else:
            return


def deal_part(task: DealTask, tell: Tell) -> dict[str, Any]:
    """Sort one part's rows by the group of shards they go to."""
    store = Store(task.root)
    with store.writing(task.dealt, durable=False) as path, store.open(task.spilled) as spilled:
        planning.deal(spilled, path, layout=task.layout, first_row=task.first_row)
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


def _collect_rejected(store: Store, spills: list[_Spill], path: Any, *, fingerprint: str) -> dict[str, int]:
    """All rejected rows in one file, in order of file and row; returns rows by reason."""
    counts: dict[str, int] = {}
    schema = REJECTED.with_metadata({"pmd.fingerprint": fingerprint})
    with pq.ParquetWriter(path, schema, compression="zstd") as writer:
        for spill in spills:
            with store.open(spill.task.rejected) as file, pa.ipc.open_file(file) as reader:
                table = reader.read_all()
            if table.num_rows:
                numbered_on = table.set_column(
                    1, REJECTED.field("row"), pc.add(table["row"], spill.first_row)
                )
                writer.write_table(numbered_on.replace_schema_metadata(schema.metadata))
            for entry in table["reason"].value_counts().to_pylist():
                counts[entry["values"]] = counts.get(entry["values"], 0) + entry["counts"]
    return counts
