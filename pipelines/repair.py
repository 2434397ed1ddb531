"""repair: ask again for what the web has not given, where another try may end otherwise.

    shards/*, raw/* --rows with a transient reason--> repair/plan/<source>/00000.parquet, ...
                    --download, as ever------------> repair/raw/...    the answers; all else is as it was
    answers + what was kept --judged anew----------> the shards that come out otherwise, then the lock

What comes of it is, byte for byte, what a build would have made if those rows had been answered so at once.
No image that was kept is fetched again: a shard is made of the old one's images and the new ones. None that
was dropped is needed either. A rule judges one row, and of equal images the first stays: one more image may
be first where another was, and so take one more out, but never brings one back.

Killed at any moment, the same line goes on. Until all answers are there, nothing but repair/ has changed;
from then on repair/applying.json keeps all other runs off until the lock is renewed.
"""

# pyarrow.compute makes its functions at run time, where no checker sees them.
# pyright: reportAttributeAccessIssue=false

import contextlib
import hashlib
import json
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any, BinaryIO, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
import xxhash
from rich.table import Table

from pipelines.download import download
from pipelines.filter import Repeats, judged_raw
from pipelines.job import DEFINITION, REPAIRING, Job, Task, finished, numbered, read_plan
from pipelines.lock import LOCK, lock, shard_facts
from pipelines.run import Tell
from pmd import filters
from pmd.errors import BadRequest, Damaged, Refused, TasksFailed
from pmd.lock import read_lock
from pmd.manifest import Corpus, load_corpus, parse_corpus
from pmd.records import TRANSIENT, key_hash
from pmd.shards import Shard, TarWriter, members, write_shard
from pmd.storage import Store
from pmd.tables import FETCHED, INDEX, PLAN, count_rows, read_table, write_table

FOLDER = "repair"
BEGUN = f"{FOLDER}/asked.json"  # written when all that is asked is noted: what this repair is about
READERS = 4  # threads; Parquet leaves the interpreter free

Row = dict[str, Any]  # one of a FETCHED table


@dataclass
class Outcome:
    """What came of the images of one source that had been lost for one reason."""

    asked: int = 0
    recovered: int = 0  # and kept
    still: Counter[str] = field(default_factory=Counter[str])  # may be asked again
    final: Counter[str] = field(default_factory=Counter[str])  # answered: never to be asked again


@dataclass(frozen=True)
class Repaired:
    root: str | None  # of the lock, where there is one
    outcomes: dict[str, dict[str, Outcome]]  # by source, then by the reason before

    def as_json(self, job: Job) -> dict[str, Any]:
        """What `pmd repair --json` prints. All figures but the first two are images."""
        total = self.total()
        return {
            "ok": True,
            "root": self.root,
            "requests": job.requests,
            "files_written": job.written(),
            **_told(total),
            "sources": {
                source: {reason: _told(outcome) for reason, outcome in outcomes.items()}
                for source, outcomes in self.outcomes.items()
            },
        }

    def total(self) -> Outcome:
        whole = Outcome()
        for outcomes in self.outcomes.values():
            for outcome in outcomes.values():
                whole.asked += outcome.asked
                whole.recovered += outcome.recovered
                whole.still.update(outcome.still)
                whole.final.update(outcome.final)
        return whole


def _told(outcome: Outcome) -> dict[str, Any]:
    return {
        "asked": outcome.asked,
        "recovered": outcome.recovered,
        "still": dict(sorted(outcome.still.items())),
        "final": dict(sorted(outcome.final.items())),
    }


def repair_table(repaired: Repaired) -> Table:
    """One line a source and reason: what was asked, what came, what may still come, what never will."""
    total = repaired.total()
    table = Table(show_footer=True)
    table.add_column("source", "all", no_wrap=True)
    table.add_column("lost for", no_wrap=True)
    table.add_column("asked", f"{total.asked:,}", justify="right")
    table.add_column("recovered", f"{total.recovered:,}", justify="right")
    table.add_column("to ask again", _reasons_told(total.still))
    table.add_column("final now", _reasons_told(total.final))
    for source, outcomes in repaired.outcomes.items():
        for place, (reason, outcome) in enumerate(sorted(outcomes.items())):
            table.add_row(
                source if place == 0 else "",
                reason,
                f"{outcome.asked:,}",
                f"{outcome.recovered:,}",
                _reasons_told(outcome.still),
                _reasons_told(outcome.final),
            )
    return table


def _reasons_told(reasons: Counter[str]) -> str:
    return ", ".join(f"{reason} {images:,}" for reason, images in reasons.most_common()) or "-"


def recorded(store: Store, corpus_file: str | None) -> tuple[Corpus, int | None]:
    """The corpus of an output, and its row limit.

    An output records what decides its bytes. How the web is asked (mirrors, rates, contact) is in the corpus
    file; without that it is asked as [fetch] has it by default.
    """
    definition = json.loads(store.read_bytes(DEFINITION))
    if corpus_file is not None:
        return load_corpus(corpus_file), definition["limit"]
    return parse_corpus(definition["corpus"], where=store.path(DEFINITION)), definition["limit"]


def repair(job: Job, reasons: Iterable[str] = ()) -> Repaired:
    """Ask again for this run's sources' rows that were lost for these reasons; for none given, for all that
    may end otherwise on another try.

    Raises Refused where a repair of other sources or reasons was stopped half-way.
    """
    chosen = sorted(set(reasons) or TRANSIENT)
    if final := [reason for reason in chosen if reason not in TRANSIENT]:
        known = ", ".join(sorted(TRANSIENT))
        raise BadRequest(f"--reason {final[0]}: only these may end otherwise on another try: {known}")
    wanted = {"sources": [*job.sources], "reasons": chosen}
    if not job.store.exists(BEGUN):
        _clear(job.store)
        _check_locked(job)
        _select(job, chosen)
        job.store.write_bytes(BEGUN, json.dumps(wanted, sort_keys=True).encode() + b"\n")
        job.store.published -= 1  # scratch, like all in that folder
    elif (begun := json.loads(job.store.read_bytes(BEGUN))) != wanted:
        options = "".join(f" --only {source}" for source in begun["sources"])
        options += "".join(f" --reason {reason}" for reason in begun["reasons"])
        raise Refused(
            f"{job.store.root}: another repair was stopped half-way; end it first: pmd repair DIR{options}"
        )
    sources = [source for source in job.sources if _asking(job.store, source)]
    with job.inside(FOLDER, sources):
        download(job)
    changed = _changed(_batches(job.store, sources))
    if changed:
        _apply(job, changed)
    outcomes = _outcomes(job, _batches(job.store, sources))
    root = None
    if job.store.exists(LOCK):
        root = read_lock(job.store.read_bytes(LOCK), where=job.store.path(LOCK)).root
    _clear(job.store)
    return Repaired(root, outcomes)


def _clear(store: Store) -> None:
    """Forget the repair. First that shards are being exchanged, then what it was about, then the answers."""
    store.remove(REPAIRING)
    store.remove(BEGUN)
    if store.is_local:
        shutil.rmtree(store.path(FOLDER), ignore_errors=True)
    else:
        store.remove_folder(FOLDER)


# --- which rows are asked again ---


def _select(job: Job, reasons: Sequence[str]) -> None:
    """Lay out repair/ as an output: pins, and plan files of the rows to ask.

    Each plan file takes the rows of some whole shards, and as many as a shard has images: a shard alone has
    too few to keep a worker busy.
    """
    scratch = Store(job.store.path(FOLDER))
    for name in job.store.names("pin", ".json"):
        scratch.write_bytes(name, job.store.read_bytes(name))
    planned = [source for source in job.sources if read_plan(job.store, source)]
    totals = {source: job.shards(source) for source in planned}
    with job.progress.stage("look", totals, unit="files"), ThreadPoolExecutor(READERS) as readers:
        for source in planned:
            tasks = [job.task(source, number) for number in range(totals[source])]
            found = readers.map(lambda task: _lost(job.store, task, reasons), tasks)
            numbers: list[list[int]] = []
            held: list[tuple[int, pa.Table]] = []
            for number, table in enumerate(found):
                if table is not None:
                    held.append((number, table))
                if held and (
                    number + 1 == len(tasks)
                    or sum(table.num_rows for _, table in held) >= job.corpus.shard.images
                ):
                    _write_batch(scratch, job.task(source, len(numbers)), [table for _, table in held])
                    numbers.append([number for number, _ in held])
                    held = []
                job.progress.done(source, number + 1)
            if numbers:
                _check_comparable(job, source)
                mark = {
                    "fingerprint": job.fingerprint(source),
                    "shards": len(numbers),
                    "numbers": numbers,
                }
                scratch.write_bytes(f"plan/{source}/plan.json", json.dumps(mark).encode() + b"\n")


def _lost(store: Store, task: Task, reasons: Sequence[str]) -> pa.Table | None:
    """The PLAN and FETCHED columns of one file's rows that were lost for one of these reasons."""
    wanted = pa.array(reasons, pa.string())
    if finished(store, task.name("shards"), task.fingerprint):
        names = [task.name("shards")]
    elif finished(store, task.name("raw"), task.fingerprint):
        names = [task.name("plan"), task.name("raw")]
    else:
        return None  # not fetched at all: a build's work
    with store.open(names[-1]) as file:
        lost = pc.is_in(read_table(file, columns=["reason"])["reason"], wanted)
    if not pc.any(lost).as_py():
        return None
    columns: dict[str, pa.ChunkedArray] = {}
    for name in names:
        with store.open(name) as file:
            table = read_table(file)
        columns |= {column: table[column] for column in table.column_names}
    whole = pa.table([columns[name] for name in _LOST.names], schema=_LOST)
    return whole.filter(lost)


_LOST = pa.schema([*PLAN, *FETCHED])


def _write_batch(scratch: Store, task: Task, tables: list[pa.Table]) -> None:
    whole = pa.concat_tables(tables)
    for folder, schema in (("plan", PLAN), ("asked", FETCHED)):
        with scratch.writing(task.name(folder)) as path:
            write_table(path, whole.select(schema.names), fingerprint=task.fingerprint)


def _check_comparable(job: Job, source: str) -> None:
    """Raises BadRequest, before anything is asked, where shards could not be judged anew afterwards: all
    images that theirs are compared to must be there.
    """
    for judged in _judged_after(job, [source]):
        if not _sharded(job, judged):
            continue
        across = job.corpus.dedup.across_sources != "off"
        compared = job.corpus.sources[: job.corpus.sources.index(judged) + 1] if across else [judged]
        for other in compared:
            tasks = [job.task(other, number) for number in range(job.shards(other))]
            if not all(
                any(finished(job.store, task.name(stage), task.fingerprint) for stage in ("shards", "raw"))
                for task in tasks
            ):
                raise BadRequest(
                    f"[dedup] compares the images of {judged} to all of {other}, which is not downloaded to "
                    "its end: `pmd build` first"
                )


def _judged_after(job: Job, sources: Sequence[str]) -> list[str]:
    """The planned sources whose images are to be judged anew when those of some sources have changed."""
    spec = job.corpus.dedup
    if (spec.exact, spec.perceptual) == ("off", "off"):
        return []
    first = min(job.corpus.sources.index(source) for source in sources)
    later = job.corpus.sources[first:] if spec.across_sources != "off" else ()
    return [
        source
        for source in job.corpus.sources
        if (source in sources or source in later) and read_plan(job.store, source)
    ]


def _sharded(job: Job, source: str) -> list[int]:
    """The numbers of a source's finished shards."""
    return [
        number
        for number in range(job.shards(source))
        if finished(job.store, numbered("shards", source, number), job.fingerprint(source))
    ]


# --- what came ---


class _Batch(NamedTuple):
    """One plan file of a repair: its rows as they were, and as they are answered."""

    source: str
    file: int
    numbers: list[int]  # of the shards that its rows belong to
    keys: list[str]
    at: list[int]  # of each row: the number of its shard
    before: list[Row]
    after: list[Row]


def _asking(store: Store, source: str) -> dict[str, Any] | None:
    """Of a source that rows are asked of: the mark of their plan."""
    return read_plan(Store(store.path(FOLDER)), source)


def _batches(store: Store, sources: Sequence[str]) -> Iterator[_Batch]:
    scratch = Store(store.path(FOLDER))
    for source in sources:
        plan = _asking(store, source)
        whole = read_plan(store, source)
        assert plan is not None and whole is not None, source
        for file, numbers in enumerate(plan["numbers"]):
            keys = _keys(scratch, numbered("plan", source, file))
            at = [key_hash(key) % whole["shards"] for key in keys]
            before, after = (_rows(scratch, numbered(stage, source, file)) for stage in ("asked", "raw"))
            yield _Batch(source, file, numbers, keys, at, before, after)


def _rows(store: Store, name: str) -> list[Row]:
    with store.open(name) as file:
        return read_table(file, columns=FETCHED.names).to_pylist()


class _Change(NamedTuple):
    """A file of the output whose rows are answered otherwise."""

    source: str
    number: int
    file: int  # of the repair: where its answers are
    brings_images: bool


def _changed(batches: Iterable[_Batch]) -> list[_Change]:
    found: dict[tuple[str, int], _Change] = {}
    for batch in batches:
        for number, before, after in zip(batch.at, batch.before, batch.after, strict=True):
            if not _alike(before, after):
                place = batch.source, number
                brings = after["status"] == "success" or (place in found and found[place].brings_images)
                found[place] = _Change(batch.source, number, batch.file, brings)
    return [found[place] for place in sorted(found)]


def _alike(one: Row, other: Row) -> bool:
    """Equal, but for the place in a tar."""
    return one | _NOWHERE == other | _NOWHERE


_NOWHERE = {"offset": None, "size": None}


def _all_alike(some: list[Row], others: list[Row]) -> bool:
    return all(_alike(one, other) for one, other in zip(some, others, strict=True))


def _table(store: Store, name: str) -> pa.Table:
    with store.open(name) as file:
        return read_table(file)


# --- from there into the output ---


def _apply(job: Job, changed: list[_Change]) -> None:
    """Give the answers to raw/, judge anew, exchange the shards that come out otherwise, renew the lock."""
    exchanging = job.store.exists(REPAIRING) and json.loads(job.store.read_bytes(REPAIRING))["exchanging"]
    if not exchanging:
        _mark(job.store, exchanging=False)
    try:
        _put(job, changed, checks=not exchanging)
        otherwise = _judge(job, changed, checks=not exchanging)
    except TasksFailed:
        if not exchanging:
            job.store.remove(REPAIRING)  # a shard may be damaged, and a build can make it again
        raise
    if otherwise or exchanging:
        _mark(job.store, exchanging=True)
        with job.progress.stage("shard", Counter(task.source for task in otherwise), unit="shards"):
            for _ in job.run(exchange, otherwise):
                pass
        if job.store.exists(LOCK):
            lock(replace(job, sources=_locked(job.store)))
    for source, number, _, _ in changed:
        if finished(job.store, numbered("shards", source, number), job.fingerprint(source)):
            for stage, ending in (("filter", "parquet"), ("raw", "parquet"), ("raw", "tar")):
                job.store.remove(numbered(stage, source, number, ending))  # they tell of the shard before


def _mark(store: Store, *, exchanging: bool) -> None:
    store.write_bytes(REPAIRING, json.dumps({"exchanging": exchanging}).encode() + b"\n")
    store.published -= 1  # it does not stay


# --- into raw/ ---


@dataclass(frozen=True)
class AnswerTask(Task):
    file: int  # of the repair: where the answers are
    checks: bool  # the shard's tar, before anything depends on its images


def _put(job: Job, changed: list[_Change], *, checks: bool) -> None:
    """Give the answers to raw/, where the filter looks for what came."""
    tasks = [
        AnswerTask(
            **vars(job.task(change.source, change.number)),
            file=change.file,
            checks=checks and change.brings_images,
        )
        for change in changed
    ]
    with job.progress.stage("answer", Counter(task.source for task in tasks), unit="files"):
        for _ in job.run(put_answers, tasks):
            pass


def put_answers(task: AnswerTask, tell: Tell) -> dict[str, Any]:
    """Put the answers to one file's rows into its raw index. Where its shard is not written, their images go
    into its raw tar; where it is, that tar is of no more use, and they wait in repair/ for the shard.
    """
    store = Store(task.root)
    answers = _answers(store, task)
    if finished(store, task.name("shards"), task.fingerprint):
        if task.checks:
            _check_tar(store, task)
        index = _table(store, task.name("shards"))
        rows = _answered(index["key"].to_pylist(), _unjudged(index), answers)
        known = _rows(store, task.name("raw")) if store.exists(task.name("raw")) else _unjudged(index)
        if not _all_alike(known, rows):
            _write_log(store, task)
            _write_raw(store, task, rows, checksum=NO_TAR)
    elif finished(store, task.name("raw"), task.fingerprint):
        keys = _keys(store, task.name("plan"))
        known = _rows(store, task.name("raw"))
        rows = _answered(keys, known, answers)
        if not _all_alike(known, rows):
            store.remove(task.name("filter"))
            _write_log(store, task)
            _grow_raw(store, task, zip(keys, known, rows, strict=True))
    # Else it was taken away since: a build fetches it whole.
    return {"published": store.published, "tick": {"done": 1}}


NO_TAR = ""  # the checksum of the tar that a raw index has not got


def _answers(store: Store, task: AnswerTask) -> dict[str, Row]:
    """The answers that came with this file's, by key."""
    scratch = Store(store.path(FOLDER))
    keys = _keys(scratch, numbered("plan", task.source, task.file))
    return dict(zip(keys, _rows(scratch, numbered("raw", task.source, task.file)), strict=True))


def _answered(keys: list[str], rows: list[Row], answers: dict[str, Row]) -> list[Row]:
    """The rows with the answers in those that still wait for one."""
    return [
        answers[key] if key in answers and row["reason"] in TRANSIENT else row
        for key, row in zip(keys, rows, strict=True)
    ]


def _unjudged(index: pa.Table) -> list[Row]:
    """The rows of a shard's index as download had them: what the filter dropped had come, and has a hash."""
    rows: list[Row] = index.select(FETCHED.names).to_pylist()
    return [
        row | {"status": "success", "reason": None}
        if row["status"] == "filtered" and row["sha256"] is not None
        else row
        for row in rows
    ]


def _check_tar(store: Store, task: Task) -> None:
    name = task.name("shards", "tar")
    stated = shard_facts(store, task.name("shards")).tar_sha256
    if not store.exists(name) or store.sha256(name) != stated:
        raise Damaged(
            f"{store.path(name)} is not what its index says: delete both, run `pmd build`, and then this line"
        )


def _write_raw(store: Store, task: Task, rows: list[Row], *, checksum: str) -> None:
    with store.writing(task.name("raw")) as path:
        table = pa.Table.from_pylist(rows, FETCHED)
        write_table(path, table, fingerprint=task.fingerprint, facts={"tar_xxh3": checksum})


def _grow_raw(store: Store, task: AnswerTask, changes: Iterable[tuple[str, Row, Row]]) -> None:
    """The raw tar with the new images behind the old ones, then its index.

    The old ones stay where they are, so that a run which was killed in between finds them in either tar.
    """
    rows: list[Row] = []
    olds: list[tuple[str, Row]] = []
    news: list[tuple[str, int]] = []  # key, place among the rows
    for place, (key, before, after) in enumerate(changes):
        rows.append(after)
        if before["status"] == "success":
            olds.append((key, before))
        elif after["status"] == "success":
            news.append((key, place))
    if not news:
        _write_raw(store, task, rows, checksum=judged_raw(_table(store, task.name("raw"))))
        return
    with (
        _Images(store, task.name("raw", "tar")) as old,
        _Images(store, numbered(f"{FOLDER}/raw", task.source, task.file, "tar")) as new,
        store.writing(task.name("raw", "tar")) as path,
    ):
        writer = TarWriter(path, xxhash.xxh3_128())
        ending = task.corpus.image.encode_format
        try:
            for key, row in sorted(olds, key=lambda entry: entry[1]["offset"]):
                offset = writer.add(f"{key}.{ending}", old.image(key, row["stored_sha256"]))
                assert offset == row["offset"], (key, offset, row)
            for key, place in news:
                offset = writer.add(f"{key}.{ending}", new.image(key, rows[place]["stored_sha256"]))
                rows[place] = rows[place] | {"offset": offset}
            checksum, _ = writer.close()
        finally:
            writer.abandon()
    _write_raw(store, task, rows, checksum=checksum)


def _write_log(store: Store, task: AnswerTask) -> None:
    """The fetch log with what is new about these rows. The old one may be gone."""
    keys = pa.array(_keys(store, task.name("plan")))
    with store.open(numbered(f"{FOLDER}/fetchlog", task.source, task.file)) as file:
        new = read_table(file)
    tables = [new.filter(pc.is_in(new["key"], keys))]
    if store.exists(task.name("fetchlog")):
        old = _table(store, task.name("fetchlog"))
        tables = [old.filter(pc.invert(pc.is_in(old["key"], tables[0]["key"].combine_chunks()))), *tables]
    with store.writing(task.name("fetchlog")) as path:
        whole = pa.concat_tables(tables, promote_options="default")
        write_table(path, whole, fingerprint=task.fingerprint)


class _Images:
    """The images of a tar of ours, by key. Found by walking it: the index beside it may be of another one,
    where a run was killed between the two.
    """

    def __init__(self, store: Store, name: str) -> None:
        self._where = store.path(name)
        self._exit = contextlib.ExitStack()
        self._reading = store.reading(name)

    def __enter__(self) -> "_Images":
        path = self._exit.enter_context(self._reading)
        self._file: BinaryIO = self._exit.enter_context(open(path, "rb"))
        try:
            self._members = {
                key: member
                for member in members(self._file)
                for key, _, ending in [member.name.rpartition(".")]
                if ending not in ("json", "txt")
            }
        except ValueError as error:
            self._exit.close()
            raise Damaged(f"{self._where}: {error}") from None
        return self

    def __exit__(self, *raised: object) -> None:
        self._exit.close()

    def has(self, key: str) -> bool:
        return key in self._members

    def image(self, key: str, sha256: str) -> bytes:
        """The image of a key; Damaged unless it is this one."""
        if (member := self._members.get(key)) is not None:
            self._file.seek(member.offset)
            image = self._file.read(member.size)
            if hashlib.sha256(image).hexdigest() == sha256:
                return image
        raise Damaged(f"{self._where}: the image of {key} is missing or damaged")


# --- into shards/ ---


@dataclass(frozen=True)
class ExchangeTask(Task):
    repeats: tuple[tuple[int, str], ...]  # row, and the reason against it
    file: int | None  # of the repair: where the answers are; None: only its neighbours have changed
    checks: bool  # the shard's tar, before the first shard is exchanged


def _judge(job: Job, changed: list[_Change], *, checks: bool) -> list[ExchangeTask]:
    """The shards that come out otherwise, now that the answers are in raw/."""
    own = {(change.source, change.number): change for change in changed}
    judged = _judged_after(job, [change.source for change in changed])
    sharded = {
        source: _sharded(job, source)
        for source in job.corpus.sources
        if source in judged or source in {change.source for change in changed}
    }
    for source in judged:
        for number in {*range(job.shards(source))} - {*sharded[source]}:
            job.store.remove(numbered("filter", source, number))  # a build judges it, by what is new
    repeats = Repeats(job, [source for source in judged if sharded[source]])
    tasks = [
        ExchangeTask(
            **vars(job.task(source, number)),
            repeats=repeats.to_drop(job.task(source, number)),
            file=change.file if change else None,
            checks=checks and not (change and change.brings_images),  # those have been checked
        )
        for source, numbers in sharded.items()
        for number in numbers
        if (change := own.get((source, number))) is not None or source in judged
    ]
    with job.progress.stage("judge", Counter(task.source for task in tasks), unit="files"):
        found = [done.task for done in job.run(comes_out_otherwise, tasks) if done.value["otherwise"]]
    return sorted(found, key=lambda task: (task.source, task.number))


def comes_out_otherwise(task: ExchangeTask, tell: Tell) -> dict[str, Any]:
    """Whether one shard is no longer what a build would make."""
    store = Store(task.root)
    index = _table(store, task.name("shards"))
    before, after = index.select(FETCHED.names).to_pylist(), _judged(store, task, index)
    if task.checks and _kept(before) != _kept(after):
        _check_tar(store, task)
    return {"otherwise": not _all_alike(before, after), "tick": {"done": 1}}


def exchange(task: ExchangeTask, tell: Tell) -> dict[str, Any]:
    """Write one shard and its index anew: of the old shard's images, and of those that came."""
    store = Store(task.root)
    index = _table(store, task.name("shards"))
    before, after = index.select(FETCHED.names).to_pylist(), _judged(store, task, index)
    store.remove(task.name("filter"))
    if _kept(before) == _kept(after):
        rows = [
            new | {"offset": old["offset"], "size": old["size"]}
            for old, new in zip(before, after, strict=True)
        ]
        _write_index(store, task, index, rows)
        return {"published": store.published, "tick": {"done": 1}}
    keys = index["key"].to_pylist()
    with contextlib.ExitStack() as opened:
        old = opened.enter_context(_Images(store, task.name("shards", "tar")))
        new = old
        if task.file is not None:
            tar = numbered(f"{FOLDER}/raw", task.source, task.file, "tar")
            new = opened.enter_context(_Images(store, tar))
        images = (
            (new if new.has(key) else old).image(key, row["stored_sha256"])
            if row["status"] == "success"
            else None
            for key, row in zip(keys, after, strict=True)
        )
        records = _with_rows(index, after)
        # Left in reverse order: the tar is published first, the index last.
        with store.writing(task.name("shards")) as path, store.writing(task.name("shards", "tar")) as tar:
            write_shard(
                tar,
                path,
                records=records,
                images=images,
                fingerprint=task.fingerprint,
                image_format=task.corpus.image.encode_format,
            )
    return {"published": store.published, "tick": {"done": 1}}


def _judged(store: Store, task: ExchangeTask, index: pa.Table) -> list[Row]:
    """The rows of a shard's index as they are to be."""
    if task.file is not None and store.exists(task.name("raw")):
        rows = _rows(store, task.name("raw"))
    else:
        rows = _unjudged(index)
    reasons = filters.judge(pa.Table.from_pylist(rows, FETCHED), task.corpus.image)
    for place, reason in task.repeats:
        reasons[place] = reason
    return [
        row
        | {"status": "filtered" if row["status"] == "success" and reason else row["status"], "reason": reason}
        for row, reason in zip(rows, reasons, strict=True)
    ]


def _kept(rows: list[Row]) -> list[bool]:
    return [row["status"] == "success" for row in rows]


def _write_index(store: Store, task: Task, index: pa.Table, rows: list[Row]) -> None:
    """An index alone: the same images are kept, so the tar beside it stays, and others are lost otherwise."""
    old = shard_facts(store, task.name("shards"))
    table = _with_rows(index, rows)
    shard = Shard(task.fingerprint, old.tar_sha256, old.tar_size, count_rows(table))
    with store.writing(task.name("shards")) as path:
        write_table(path, table, fingerprint=task.fingerprint, facts=shard.facts())


def _with_rows(index: pa.Table, rows: list[Row]) -> pa.Table:
    fetched = pa.Table.from_pylist(rows, FETCHED)
    columns = {name: (fetched if name in FETCHED.names else index)[name] for name in INDEX.names}
    return pa.table(columns, schema=INDEX)


# --- the lock, and what is told ---


def _locked(store: Store) -> tuple[str, ...]:
    """The sources in the lock."""
    return tuple(read_lock(store.read_bytes(LOCK), where=store.path(LOCK)).sources)


def _check_locked(job: Job) -> None:
    """Raises BadRequest where the lock could not be renewed."""
    for source in _locked(job.store) if job.store.exists(LOCK) else ():
        if len(_sharded(job, source)) < job.shards(source):
            raise BadRequest(f"shards of {source} that the lock is about are missing: `pmd build` first")


def _outcomes(job: Job, batches: Iterable[_Batch]) -> dict[str, dict[str, Outcome]]:
    found: dict[str, dict[str, Outcome]] = {}
    for batch in batches:
        now = {number: _reasons(job, batch.source, number) for number in batch.numbers}
        outcomes = found.setdefault(batch.source, {})
        for key, number, before, after in zip(batch.keys, batch.at, batch.before, batch.after, strict=True):
            outcome = outcomes.setdefault(before["reason"], Outcome())
            outcome.asked += 1
            reason = now[number].get(key, after["reason"])
            if reason is None:
                outcome.recovered += 1
            else:
                (outcome.still if reason in TRANSIENT else outcome.final)[reason] += 1
    return found


def _reasons(job: Job, source: str, number: int) -> dict[str, str | None]:
    """Of each image of a file: why it is not kept, as far as the output is made."""
    task = job.task(source, number)
    if finished(job.store, task.name("shards"), task.fingerprint):
        with job.store.open(task.name("shards")) as file:
            index = read_table(file, columns=["key", "reason"])
        return dict(zip(index["key"].to_pylist(), index["reason"].to_pylist(), strict=True))
    if finished(job.store, task.name("raw"), task.fingerprint):
        rows = pa.Table.from_pylist(_rows(job.store, task.name("raw")), FETCHED)
        keys = _keys(job.store, task.name("plan"))
        return dict(zip(keys, filters.judge(rows, job.corpus.image), strict=True))
    return {}


def _keys(store: Store, name: str) -> list[str]:
    with store.open(name) as file:
        return read_table(file, columns=["key"])["key"].to_pylist()
