"""download: fetch, check, decode, shrink, hash.

    plan/<source>/00042.parquet --web--> raw/<source>/00042.tar      the stored images, in order of arrival
                                         raw/<source>/00042.parquet  what came of each record, in the plan's
                                         order
                                         fetchlog/<source>/00042.parquet   times, tries, final URLs: what no
                                         hash covers

One task a plan file. The raw index is written last: while it is missing, the file is not done and is fetched
again whole.
"""

import asyncio
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
import xxhash

from pipelines.job import Job, Task
from pipelines.run import Tell
from pmd import images
from pmd.archives import Archives
from pmd.fetch.client import Answer, Client
from pmd.records import Reason
from pmd.shards import TarWriter
from pmd.storage import Store
from pmd.tables import FETCHED, write_table

TELL_EVERY_S = 0.5
DECODERS = 2  # threads a worker decodes in while it waits for the web; decoding leaves the interpreter free

FETCH_LOG = pa.schema(
    [
        ("key", pa.string()),
        ("url", pa.string()),
        ("final_url", pa.string()),
        ("http_status", pa.int32()),
        ("reason", pa.string()),
        ("detail", pa.string()),
        ("attempts", pa.int32()),
        ("seconds", pa.float64()),
        ("headers", pa.map_(pa.string(), pa.string())),
    ]
)


def download(job: Job) -> None:
    """Fetch every plan file of this run's sources that has not been fetched."""
    tasks: list[DownloadTask] = []
    totals: Counter[str] = Counter()
    for task in job.unfinished("shards", "raw"):
        with job.store.open(task.name("plan")) as file:
            rows = pq.read_metadata(file).num_rows
        tasks.append(DownloadTask(**vars(task), rows=rows, archives=_archives(job, task.source)))
        totals[task.source] += rows
    tasks.sort(key=lambda task: (task.number, task.source))  # sources by turns: more hosts at a time
    with job.progress.stage("download", totals):
        for _ in job.run(download_file, tasks):
            pass


def _archives(job: Job, source: str) -> tuple[str, ...]:
    return tuple(archive["path"] for archive in job.pins(source).get("archives", ()))


@dataclass(frozen=True)
class DownloadTask(Task):
    rows: int
    archives: tuple[str, ...]  # local paths


def download_file(task: DownloadTask, tell: Tell) -> dict[str, Any]:
    """Fetch the images of one plan file."""
    store = Store(task.root)
    with store.reading(task.name("plan")) as path:
        plan = pq.read_table(path, columns=[*_COLUMNS])
    with store.writing(task.name("raw", "tar")) as path:
        # A checksum against bit rot until the shard is written; the hashes that identify are in the index.
        writer = TarWriter(path, xxhash.xxh3_128())
        try:
            download = _Download(task, writer, tell)
            asyncio.run(download.run(list(_records(plan))))
            checksum, _ = writer.close()
        finally:
            writer.abandon()
    with store.writing(task.name("fetchlog")) as path:
        write_table(path, pa.Table.from_pylist(download.log, FETCH_LOG), fingerprint=task.fingerprint)
    with store.writing(task.name("raw")) as path:
        rows = [download.rows[place] for place in range(plan.num_rows)]
        facts = {"tar_xxh3": checksum}
        write_table(path, pa.Table.from_pylist(rows, FETCHED), fingerprint=task.fingerprint, facts=facts)
    return {"requests": download.requests, "published": store.published, "tick": download.tick()}


class _Record(NamedTuple):
    place: int  # in the plan file
    key: str
    url: str | None
    path: str | None
    rotation: int | None
    reason: str | None  # why it is not fetched: all its captions were dropped


_COLUMNS = ("key", "url", "path", "rotation", "captions")  # of the plan


def _records(plan: pa.Table) -> Iterator[_Record]:
    columns = [plan[name].to_pylist() for name in _COLUMNS]
    for place, (key, url, path, rotation, captions) in enumerate(zip(*columns, strict=True)):
        reasons = [caption["reason"] for caption in captions]
        yield _Record(place, key, url, path, rotation, None if None in reasons else reasons[0])


class _Download:
    """The state of one task: rows by place, and the counts that are told while it runs."""

    def __init__(self, task: DownloadTask, writer: TarWriter, tell: Tell):
        self.rows: dict[int, dict[str, Any]] = {}
        self.log: list[dict[str, Any]] = []
        self.requests = 0
        self._spec = task.corpus
        self._archives = Archives([Path(path) for path in task.archives])
        self._writer = writer
        self._tell = tell
        self._told = time.monotonic()
        self._kept = 0
        self._dropped: Counter[str] = Counter()

    async def run(self, records: list[_Record]) -> None:
        # Bounds bodies in memory. Twice the connections, so that one slow host does not stop all others.
        slots = asyncio.Semaphore(2 * self._spec.fetch.connections)
        with ThreadPoolExecutor(DECODERS) as decoders:
            async with Client(self._spec.fetch) as client, asyncio.TaskGroup() as group:
                for record in records:
                    if record.reason is not None:
                        self._note(record, {"status": "filtered", "reason": record.reason})
                        continue
                    await slots.acquire()
                    running = group.create_task(self._one(record, client, decoders))
                    running.add_done_callback(lambda _: slots.release())
            self.requests = client.requests

    async def _one(self, record: _Record, client: Client, decoders: ThreadPoolExecutor) -> None:
        loop = asyncio.get_running_loop()
        answer = None
        if record.path is not None:
            answer = await loop.run_in_executor(decoders, self._archived, record.path)
        if answer is None and record.url is not None:
            answer = await client.fetch(record.url)
        if answer is None:
            answer = Answer(body=None, reason=Reason.NOT_IN_ARCHIVE)
        self.log.append(_log_row(record, answer))
        if answer.body is None:
            assert answer.reason is not None
            row = {"status": "failed_to_download", "reason": answer.reason, "error_message": answer.message}
        else:
            picture = await loop.run_in_executor(
                decoders, images.normalise, answer.body, self._spec.image, record.rotation
            )
            if isinstance(picture, Reason):
                row = {"status": "failed_to_resize", "reason": picture}
            else:
                row = {"status": "success"} | self._store(record.key, picture)
        self._note(record, row)

    def _archived(self, path: str) -> Answer | None:
        """What the archives hold of an image; None where it is in none of them."""
        found = self._archives.read(path, self._spec.fetch.max_bytes)
        if found is None:
            return None
        if isinstance(found, Reason):
            return Answer(body=None, reason=found, detail=f"{path} in an archive")
        return Answer(body=found, reason=None)

    def _store(self, key: str, picture: images.Picture) -> dict[str, Any]:
        offset = self._writer.add(f"{key}.jpg", picture.jpeg)
        return {
            "width": picture.width,
            "height": picture.height,
            "original_width": picture.original_width,
            "original_height": picture.original_height,
            "sha256": picture.sha256,
            "stored_sha256": picture.stored_sha256,
            "phash": picture.phash,
            "mime": picture.mime,
            "offset": offset,
            "size": len(picture.jpeg),
        }

    def _note(self, record: _Record, row: dict[str, Any]) -> None:
        self.rows[record.place] = row
        if row["status"] == "success":
            self._kept += 1
        else:
            self._dropped[str(row["reason"])] += 1
        if time.monotonic() - self._told >= TELL_EVERY_S:
            self._told = time.monotonic()
            self._tell(self.tick())

    def tick(self) -> dict[str, Any]:
        return {"done": len(self.rows), "kept": self._kept, "dropped": dict(self._dropped)}


def _log_row(record: _Record, answer: Answer) -> dict[str, Any]:
    return {
        "key": record.key,
        "url": record.url,
        "final_url": answer.final_url,
        "http_status": answer.status,
        "reason": answer.reason,
        "detail": answer.detail,
        "attempts": answer.attempts,
        "seconds": answer.seconds,
        "headers": list(answer.headers.items()),
    }
