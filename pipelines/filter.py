"""filter: over the index only, one verdict a row.

    plan/<source>/00042.parquet + raw/<source>/00042.parquet --rules--> filter/<source>/00042.parquet

The rules are in pmd/filters.py. This is the one stage that may look across files, so it begins when all raw
files are there.
"""

import json
from collections import Counter
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.job import Job, Task
from pipelines.run import Tell
from pmd import filters
from pmd.storage import Store
from pmd.tables import write_table


def filter_(job: Job) -> None:
    """Judge every raw file of this run's sources that has no verdicts yet."""
    tasks = job.unfinished("shards", "filter")
    with job.progress.stage("filter", Counter(task.source for task in tasks), unit="files"):
        for _ in job.run(judge_file, tasks):
            pass


def judge_file(task: Task, tell: Tell) -> dict[str, Any]:
    """Write the verdicts on one raw file."""
    store = Store(task.root)
    with store.reading(task.name("plan")) as planned, store.reading(task.name("raw")) as raw:
        keys = pq.read_table(planned, columns=["key"])["key"]
        fetched = pq.read_table(raw)
    verdicts = filters.verdicts(keys, filters.judge(fetched, task.corpus.image))
    with store.writing(task.name("filter")) as path:
        write_table(path, verdicts, fingerprint=task.fingerprint, facts={"tar_xxh3": judged_raw(fetched)})
    return {"published": store.published, "tick": {"done": 1}}


def judged_raw(table: pa.Table) -> str:
    """Which raw tar a raw index or its verdicts are about: verdicts on an earlier download must not meet a
    later one.
    """
    return json.loads(table.schema.metadata[b"pmd.facts"])["tar_xxh3"]
