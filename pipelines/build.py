"""build: the whole road, from annotation files to a lock, going on wherever it was left.

pin -> plan -> download -> filter -> shard -> lock
"""

from typing import Any

from pipelines.download import download
from pipelines.filter import filter_
from pipelines.job import Job
from pipelines.lock import lock
from pipelines.pin import pin
from pipelines.plan import plan
from pipelines.shard import shard
from pmd.lock import Lock


def build(job: Job) -> Lock:
    """Run every stage; each does only what is not done."""
    for stage in (pin, plan, download, filter_, shard):
        stage(job)
    return lock(job)


def build_json(job: Job, made: Lock) -> dict[str, Any]:
    """What `pmd build --json` and `pmd lock --json` print."""
    return {
        "ok": True,
        "root": made.root,
        "requests": job.requests,
        "files_written": job.written(),
        "sources": {
            source: entry.got | {"expected": entry.expected} for source, entry in made.sources.items()
        },
    }
