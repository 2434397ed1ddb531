"""status: how far an output is, from its files alone.

corpus.json, plan/*/plan.json, and which numbered files there are --count--> a table, or JSON
"""

import json
from dataclasses import dataclass
from typing import Any

from pipelines.filter import repeats_file
from pipelines.job import DEFINITION, numbered, read_plan
from pipelines.lock import LOCK, shard_facts
from pmd.errors import BadRequest
from pmd.lock import read_lock
from pmd.storage import Store
from pmd.tables import Counts

STAGES = ("raw", "filter", "shards")


@dataclass(frozen=True)
class SourceStatus:
    """How far one source is: files finished by stage, of how many, and what came of the finished shards."""

    planned: bool
    tasks: int
    finished: dict[str, int]
    counts: Counts
    expected: dict[str, Any]  # see pipelines/pin.py
    repeats: dict[str, Any]  # see pipelines/filter.py; empty where [dedup] looks for none

    @property
    def ok(self) -> bool:
        return self.planned and self.finished["shards"] == self.tasks


@dataclass(frozen=True)
class Status:
    name: str
    root: str | None  # of the lock, where there is one
    sources: dict[str, SourceStatus]

    def as_json(self) -> dict[str, Any]:
        return {
            "ok": self.root is not None and all(source.ok for source in self.sources.values()),
            "root": self.root,
            "requests": 0,
            "files_written": 0,
            "sources": {
                name: source.counts.as_json()
                | {
                    "expected": source.expected,
                    "repeats": source.repeats,
                    "planned": source.planned,
                    "tasks": source.tasks,
                    "finished": source.finished,
                }
                for name, source in self.sources.items()
            },
        }


def open_output(root: str) -> Store:
    """The store of an existing output; BadRequest if there is none."""
    store = Store(root)
    if not store.exists(DEFINITION):
        raise BadRequest(f"{store.root} is not an output of pmd: it has no {DEFINITION}")
    return store


def status(store: Store) -> Status:
    """Look at an output; holds nothing and may be called while a run is under way."""
    definition = json.loads(store.read_bytes(DEFINITION))
    corpus = definition["corpus"]
    look = _imported if "imported" in definition else _source
    root = read_lock(store.read_bytes(LOCK), where=store.path(LOCK)).root if store.exists(LOCK) else None
    return Status(corpus["name"], root, {source: look(store, source) for source in corpus["sources"]})


def _imported(store: Store, source: str) -> SourceStatus:
    """Of tars that were imported there are shards alone."""
    indexes = store.names(f"shards/{source}", ".parquet")
    counts = sum((shard_facts(store, index).counts for index in indexes), Counts())
    tasks = len(store.names(f"shards/{source}", ".tar"))
    return SourceStatus(True, tasks, dict.fromkeys(STAGES, 0) | {"shards": len(indexes)}, counts, {}, {})


def _source(store: Store, source: str) -> SourceStatus:
    plan = read_plan(store, source)
    pin = f"pin/{source}.json"
    expected = json.loads(store.read_bytes(pin)).get("expected", {}) if store.exists(pin) else {}
    if plan is None:
        return SourceStatus(False, 0, dict.fromkeys(STAGES, 0), Counts(), expected, {})
    there = {stage: {*store.names(f"{stage}/{source}", ".parquet")} for stage in STAGES}
    sharded = [
        name
        for number in range(plan["shards"])
        if (name := numbered("shards", source, number)) in there["shards"]
    ]
    counts = Counts(rows=sum(plan["rejected"].values()), dropped=tuple(sorted(plan["rejected"].items())))
    for name in sharded:
        counts += shard_facts(store, name).counts
    done = {stage: len(names) for stage, names in there.items()}
    found = repeats_file(source)
    repeats = json.loads(store.read_bytes(found)) if store.exists(found) else {}
    return SourceStatus(True, plan["shards"], done, counts, expected, repeats)
