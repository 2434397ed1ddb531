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
import sys
import time
from collections import Counter, defaultdict, deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
import xxhash

from pipelines import img2dataset
from pipelines.job import Job, Task
from pipelines.run import Shared, Tell, task_name
from pmd import images
from pmd.archives import Archives
from pmd.fetch.client import Answer, Client
from pmd.fetch.share import Share
from pmd.fetch.url import BadUrl, read_url
from pmd.images.sandbox import kept_sandbox
from pmd.records import Reason
from pmd.shards import TarWriter
from pmd.storage import Store
from pmd.tables import FETCHED, read_table, write_table

TELL_EVERY_S = 0.5
WAITS_EVERY_S = 2.0
MOST_HELD = 64 << 20  # bytes of bodies that wait for a decoder; those under way come on top
DECODERS = 2  # processes that a worker has decode while it waits for the web, and threads that wait for them

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
        ("site_files", pa.string()),  # read for consent: status and sha256 of each, as JSON
    ]
)


def download(job: Job) -> None:
    """Fetch every plan file of this run's sources that has not been fetched."""
    tasks: list[DownloadTask] = []
    totals: Counter[str] = Counter()
    for task in job.unfinished("shards", "raw"):
        with job.store.open(task.name("plan")) as file:
            rows = pq.read_metadata(file).num_rows
        archives = _archives(job, task.source)
        tasks.append(DownloadTask(**vars(task), rows=rows, archives=archives, budget=job.budget()))
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
    budget: Shared  # what all workers may ask of the hosts together


def download_file(task: DownloadTask, tell: Tell) -> dict[str, Any]:
    """Fetch the images of one plan file."""
    store = Store(task.root)
    with store.reading(task.name("plan")) as path:
        plan = read_table(path, columns=[*_COLUMNS])
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


NOT_IN_ARCHIVE = Answer(body=None, reason=Reason.NOT_IN_ARCHIVE)


def _host_of(record: _Record) -> str:
    """Whom it will be asked of; empty where that is nobody, or an archive first."""
    try:
        return (read_url(record.url).raw_host or "") if record.url and record.path is None else ""
    except BadUrl:
        return ""


class _Download:
    """The state of one task: rows by place, and the counts that are told while it runs."""

    def __init__(self, task: DownloadTask, writer: TarWriter, tell: Tell):
        self.rows: dict[int, dict[str, Any]] = {}
        self.log: list[dict[str, Any]] = []
        self.requests = 0
        self._task, self._spec = task, task.corpus
        self._archives = Archives([Path(path) for path in task.archives])
        self._writer = writer
        self._tell = tell
        self._told = time.monotonic()
        self._held = 0  # bytes of bodies that wait for a decoder
        self._room = asyncio.Event()
        self._room.set()
        self._kept = 0
        self._waits = ""  # what for, where no row ends
        self._dropped: Counter[str] = Counter()

    async def run(self, records: list[_Record]) -> None:
        wanted: list[_Record] = []
        for record in records:
            if record.reason is not None:
                self._note(record, {"status": "filtered", "reason": record.reason})
            else:
                wanted.append(record)
        self._sandbox = kept_sandbox(self._spec.image, processes=DECODERS)
        with ThreadPoolExecutor(DECODERS) as self._decoders:
            if self._spec.fetch.engine == "pmd":
                await self._by_our_own(wanted)
            else:
                await self._by_img2dataset(wanted)

    async def _by_our_own(self, records: list[_Record]) -> None:
        spec = self._spec.fetch
        hosts: dict[str, deque[_Record]] = defaultdict(deque)
        for record in records:
            hosts[_host_of(record)].append(record)
        async with (
            Share(self._task.budget.call, spec, name=task_name()) as share,
            Client(spec, share) as client,
            asyncio.TaskGroup() as group,
        ):

            async def lane(waiting: deque[_Record]) -> None:
                """Ask for one row after the other."""
                while waiting:
                    # Bodies wait for a decoder in memory: while many do, no more are asked for.
                    await self._room.wait()
                    if waiting:
                        record = waiting.popleft()
                        answer = await self._archived(record)
                        if answer is None and record.url is not None:
                            answer = await client.fetch(record.url)
                        await self._end(record, answer or NOT_IN_ARCHIVE)

            telling = asyncio.create_task(self._keep_telling(share))
            lanes: list[asyncio.Task[None]] = []
            # As many as a host bears, so that a slow host keeps none waiting but its own rows.
            for host, waiting in hosts.items():
                count = spec.bears(host).connections if host else 2 * DECODERS
                for _ in range(min(count, len(waiting))):
                    lanes.append(group.create_task(lane(waiting)))
            try:
                if lanes:
                    await asyncio.wait(lanes)
            finally:
                telling.cancel()
        self.requests, self._waits = client.requests, ""

    async def _keep_telling(self, share: Share) -> None:
        """Also while no row ends."""
        while True:
            await asyncio.sleep(WAITS_EVERY_S)
            self._waits = share.waits()
            self._tell(self.tick())

    async def _by_img2dataset(self, records: list[_Record]) -> None:
        asked: dict[int, tuple[_Record, str]] = {}
        for record in records:
            answer = await self._archived(record)
            if answer is None and record.url is not None:
                asked[record.place] = record, record.url
            else:
                await self._end(record, answer or NOT_IN_ARCHIVE)

        async def deliver(place: int, answer: Answer) -> None:
            await self._end(asked[place][0], answer)

        rows = ((place, url) for place, (_, url) in asked.items())
        spec = self._spec.fetch
        python = spec.engine_python or sys.executable
        self.requests = await img2dataset.fetch(rows, spec, deliver, python=python)

    async def _end(self, record: _Record, answer: Answer) -> None:
        """What was asked for has come, or has not."""
        self.log.append(_log_row(record, answer))
        if answer.body is None:
            assert answer.reason is not None
            row = {"status": "failed_to_download", "reason": answer.reason, "error_message": answer.message}
        else:
            self._hold(len(answer.body))
            picture = await asyncio.get_running_loop().run_in_executor(
                self._decoders, self._sandbox.normalise, answer.body, record.rotation
            )
            self._hold(-len(answer.body))
            if isinstance(picture, Reason):
                row = {"status": "failed_to_resize", "reason": picture}
            else:
                row = {"status": "success"} | self._store(record.key, picture)
        self._note(record, row | {"consent": answer.consent or None})

    def _hold(self, more: int) -> None:
        self._held += more
        if self._held < MOST_HELD:
            self._room.set()
        else:
            self._room.clear()

    async def _archived(self, record: _Record) -> Answer | None:
        """What the archives hold of an image; None where it is in none of them."""
        if record.path is None:
            return None
        found = await asyncio.get_running_loop().run_in_executor(
            self._decoders, self._archives.read, record.path, self._spec.fetch.max_bytes
        )
        if found is None:
            return None
        if isinstance(found, Reason):
            return Answer(body=None, reason=found, detail=f"{record.path} in an archive")
        return Answer(body=found, reason=None)

    def _store(self, key: str, picture: images.Picture) -> dict[str, Any]:
        offset = self._writer.add(f"{key}.{self._spec.image.encode_format}", picture.stored)
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
            "size": len(picture.stored),
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
        dropped = dict(self._dropped)
        return {"done": len(self.rows), "kept": self._kept, "dropped": dropped, "waits": self._waits}


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
        "site_files": answer.evidence or None,
    }
