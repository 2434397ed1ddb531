"""filter: over the index only, one verdict a row.

    plan/<source>/00042.parquet + raw/<source>/00042.parquet --rules, repeats--> filter/<source>/00042.parquet

The rules are in pmd/filters.py, what repeats what in pmd/dedup.py. This is the one stage that may look across
files, so it begins when all raw files are there; and across sources, where [dedup] says so.
"""

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from pipelines.job import Job, Task, finished, numbered, read_plan
from pipelines.run import Tell
from pmd import dedup, filters
from pmd.errors import BadRequest
from pmd.records import Reason
from pmd.storage import Store
from pmd.tables import read_table, write_table


def filter_(job: Job) -> None:
    """Judge every raw file of this run's sources that has no verdicts yet."""
    unfinished = job.unfinished("shards", "filter")
    repeats = Repeats(job, [*dict.fromkeys(task.source for task in unfinished)])
    tasks = [JudgeTask(**vars(task), repeats=repeats.to_drop(task)) for task in unfinished]
    with job.progress.stage("filter", Counter(task.source for task in tasks), unit="files"):
        for _ in job.run(judge_file, tasks):
            pass


@dataclass(frozen=True)
class JudgeTask(Task):
    repeats: tuple[tuple[int, str], ...]  # row, and the reason against it


def judge_file(task: JudgeTask, tell: Tell) -> dict[str, Any]:
    """Write the verdicts on one raw file."""
    store = Store(task.root)
    with store.reading(task.name("plan")) as planned:
        keys = read_table(planned, columns=["key"])["key"]
    fetched = _fetched(store, task)
    reasons = filters.judge(fetched, task.corpus.image)
    for row, reason in task.repeats:
        reasons[row] = reason
    with store.writing(task.name("filter")) as path:
        facts = {"tar_xxh3": judged_raw(fetched)}
        write_table(path, filters.verdicts(keys, reasons), fingerprint=task.fingerprint, facts=facts)
    return {"published": store.published, "tick": {"done": 1}}


def judged_raw(table: pa.Table) -> str:
    """Which raw tar a raw index or its verdicts are about: verdicts on an earlier download must not meet a
    later one.
    """
    return json.loads(table.schema.metadata[b"pmd.facts"])["tar_xxh3"]


def _fetched(store: Store, task: Task) -> pa.Table:
    with store.reading(task.name("raw")) as raw:
        return read_table(raw)


# --- what repeats what ---


class _File(NamedTuple):
    source: str
    number: int
    looks: pa.Table


class Repeats:
    """The repeats among the images of some sources, and of those before them where that counts."""

    def __init__(self, job: Job, sources: list[str]) -> None:
        spec = job.corpus.dedup
        self._drops: dict[tuple[str, int], dict[int, str]] = {}  # of a file: row -> the reason against it
        if not sources or (spec.exact, spec.perceptual) == ("off", "off"):
            return
        across = spec.across_sources != "off"
        last = max(job.corpus.sources.index(source) for source in sources)
        compared = job.corpus.sources[: last + 1] if across else sources
        files = [*_looked(job, [*compared], sources)]
        counts: dict[str, Counter[tuple[str, str]]] = {source: Counter() for source in sources}
        for source in sources:
            own = [file for file in files if file.source == source]
            within = {"exact": spec.exact, "perceptual": spec.perceptual}
            self._note([], own, within, counts[source])
            if across:
                earlier = job.corpus.sources[: job.corpus.sources.index(source)]
                before = [file for file in files if file.source in earlier]
                between = {
                    kind: "off" if treatment == "off" else spec.across_sources
                    for kind, treatment in within.items()
                }
                if before:
                    self._note(before, own, between, counts[source])
        for source, found in counts.items():
            _write_counts(job, source, found)

    def to_drop(self, task: Task) -> tuple[tuple[int, str], ...]:
        """The rows of a file that are dropped as repeats, each with its reason."""
        return tuple(sorted(self._drops.get((task.source, task.number), {}).items()))

    def _note(
        self,
        before: list[_File],
        own: list[_File],
        treatments: dict[str, str],
        counts: Counter[tuple[str, str]],
    ) -> None:
        """Count and note which images of a source's own files repeat one of the files before them, which are
        other sources'. Where there are none, those that repeat one of its own.

        An image counts once, as exact if it is, and is dropped if either treatment says so: what has the same
        bytes looks the same.
        """
        files = [*before, *own]
        found = dedup.repeated([file.looks for file in files])
        ends = np.cumsum([file.looks.num_rows for file in files])
        seen: set[int] = set()
        for kind, reason, places, firsts in (
            ("exact", Reason.DUPLICATE, found.exact, found.exact_of),
            ("perceptual", Reason.NEAR_DUPLICATE, found.perceptual, found.perceptual_of),
        ):
            if treatments[kind] == "off":
                continue
            at_file = np.searchsorted(ends, places, side="right")
            first_file = np.searchsorted(ends, firsts, side="right")
            wanted = (at_file >= len(before)) & ((first_file < len(before)) == bool(before))
            chosen = (array[wanted].tolist() for array in (places, at_file, first_file))
            for place, at, first in zip(*chosen, strict=True):
                file = files[at]
                if place not in seen:
                    counts[kind, files[first].source] += 1
                    seen.add(place)
                if treatments[kind] == "drop":
                    row = file.looks["row"][place - int(ends[at]) + file.looks.num_rows].as_py()
                    drops = self._drops.setdefault((file.source, file.number), {})
                    if reason is Reason.DUPLICATE or row not in drops:  # the stronger reason stays
                        drops[row] = reason.value


def _looked(job: Job, sources: list[str], to_filter: list[str]) -> Iterator[_File]:
    """The looks of all files of some sources, in order; of these, some are those to be filtered now."""
    tasks: list[Task] = []
    for source in sources:
        if read_plan(job.store, source) is None:
            raise _not_downloaded(source, to_filter)
        for number in range(job.shards(source)):
            task = job.task(source, number)
            there = (finished(job.store, task.name(stage), task.fingerprint) for stage in ("raw", "shards"))
            if not any(there):
                raise _not_downloaded(source, to_filter)
            tasks.append(task)
    with job.progress.stage("compare", Counter(task.source for task in tasks), unit="files"):
        looked = {
            (done.task.source, done.task.number): pa.ipc.open_stream(done.value["looks"]).read_all()
            for done in job.run(look_at_file, tasks)
        }
    for task in tasks:
        yield _File(task.source, task.number, looked[task.source, task.number])


def _not_downloaded(source: str, to_filter: list[str]) -> BadRequest:
    if source in to_filter:
        why = "[dedup] compares all images of a source"
    else:
        why = f"[dedup] across_sources compares those of {', '.join(to_filter)} to its images"
    return BadRequest(
        f"{source} is not downloaded to its end, and {why}: `pmd download` it first, or `pmd build` without "
        "--only"
    )


def look_at_file(task: Task, tell: Tell) -> dict[str, Any]:
    """The looks of one file's kept images, out of what was fetched; if that is gone, of the shard's index."""
    store = Store(task.root)
    if store.exists(task.name("raw")):
        fetched = _fetched(store, task)
        kept = [reason is None for reason in filters.judge(fetched, task.corpus.image)]
    else:
        with store.reading(numbered("shards", task.source, task.number)) as index:
            fetched = read_table(index, columns=["sha256", "phash", "reason"])
        # With those dropped as repeats: the same images are compared, and counted, as while raw was there.
        kept = [reason in _NO_OBJECTION for reason in fetched["reason"].to_pylist()]
    table = dedup.looks(fetched, kept)
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return {"looks": sink.getvalue().to_pybytes(), "tick": {"done": 1}}


# Of an index: that an image was fetched and no rule was against it.
_NO_OBJECTION = (None, Reason.DUPLICATE.value, Reason.NEAR_DUPLICATE.value)


def _write_counts(job: Job, source: str, counts: Counter[tuple[str, str]]) -> None:
    """How many images repeat one of which source, beside the verdicts: what `report` treatments are for."""
    told: dict[str, dict[str, int]] = {}
    for (kind, other), images in sorted(counts.items()):
        told.setdefault(kind, {})[other] = images
    data = json.dumps(told, indent=1, sort_keys=True).encode() + b"\n"
    name = repeats_file(source)
    if not job.store.exists(name) or job.store.read_bytes(name) != data:
        job.store.write_bytes(name, data)


def repeats_file(source: str) -> str:
    return f"filter/{source}/repeats.json"
