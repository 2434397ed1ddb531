"""One command's run over one output folder: who holds it, what defines it, who works on it.

    with open_job(corpus, out=..., ...) as job:
        plan(job); download(job); ...

An output belongs to one definition for ever: `corpus.json` holds it, and every finished file its fingerprint.
A run that would mix another in is refused, with what changed. One run at a time holds an output; a killed one
leaves nothing held.
"""

import contextlib
import fcntl
import functools
import json
import os
import platform
import secrets
import time
from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import orjson
import pyarrow as pa

from pipelines import img2dataset
from pipelines.progress import Progress
from pipelines.run import Done, Function, Shared, Where, Workers, workers
from pmd import images, text
from pmd.decontaminate import BlockList, from_bytes
from pmd.errors import BadRequest, Busy, Damaged, Refused, TasksFailed
from pmd.fetch.budget import Budget
from pmd.fetch.consent import known_words
from pmd.fetch.placeholders import known_placeholders
from pmd.manifest import Corpus, FetchSpec, canonical_json, fingerprint
from pmd.storage import Store
from pmd.tables import read_footer

FORMAT = 2  # of everything in an output; older ones are still read
DEFINITION = "corpus.json"
BLOCK_LIST = "pin/decontaminate.json"
HELD = ".lock"
REPAIRING = "repair/applying.json"  # there while a repair is exchanging shards, see pipelines/repair.py


@dataclass(frozen=True)
class Task:
    """What every stage's tasks have in common: where the output is, and which file of which source."""

    root: str
    source: str
    number: int
    fingerprint: str
    corpus: Corpus

    def name(self, stage: str, ending: str = "parquet") -> str:
        return numbered(stage, self.source, self.number, ending)


def numbered(stage: str, source: str, number: int, ending: str = "parquet") -> str:
    return f"{stage}/{source}/{number:05d}.{ending}"


@dataclass
class Job:
    """A corpus, its output, and hands to work on it."""

    corpus: Corpus
    store: Store
    progress: Progress
    sources: tuple[str, ...]  # those this run is about
    limit: int | None  # annotation rows read of each file
    _where: Where
    _exit: contextlib.ExitStack
    requests: int = 0  # sent to the web
    files_written: int = 0  # by workers; the driver's own are the store's
    _workers: Workers | None = None
    _budget: Shared | None = None
    _pins: dict[str, dict[str, Any]] = field(default_factory=dict)

    def run(self, function: Function, tasks: Sequence[Any]) -> Iterator[Done]:
        """Run tasks on this job's workers, which are started when first needed. Yields those that succeeded.

        Raises TasksFailed, naming them, when all others are done.
        """
        if not tasks:
            return  # and no workers are started
        failed: list[str] = []
        for done in self._started().run(function, tasks, heard=self.progress.heard):
            if done.error is not None:
                failed.append(f"{done.task.source}/{done.task.number:05d}: {done.error}")
                self.progress.note(f"failed: {failed[-1]}")
                continue
            self.requests += done.value.get("requests", 0)
            self.files_written += done.value.get("published", 0)
            self.progress.finished(done.task, done.value)
            yield done
        if failed:
            raise TasksFailed(
                f"{len(failed)} of the tasks failed, the others are done:\n  "
                + "\n  ".join(sorted(failed))
                + "\nSee to the cause, then run the same line again."
            )

    def budget(self) -> Shared:
        """What the hosts of the web bear from all workers of this run together."""
        if self._budget is None:
            self._budget = self._started().shared(functools.partial(_budget, self.corpus.fetch))
        return self._budget

    def _started(self) -> Workers:
        if self._workers is None:
            self._workers = self._exit.enter_context(workers(self._where))
        return self._workers

    def written(self) -> int:
        return self.files_written + self.store.published

    @contextlib.contextmanager
    def inside(self, folder: str, sources: Iterable[str]) -> Generator[None]:
        """For the time of the block, work on a folder of the output that is laid out like an output itself,
        and on these sources of it. What is written there is scratch, and not counted as written.
        """
        before = self.store, self.sources, self.files_written
        self.store, self.sources = Store(self.store.path(folder)), tuple(sources)
        try:
            yield
        finally:
            self.store, self.sources, self.files_written = before

    def pins(self, source: str) -> dict[str, Any]:
        """What `pmd pin` found out about a source's annotation files."""
        if source not in self._pins:
            name = f"pin/{source}.json"
            if not self.store.exists(name):
                raise BadRequest(
                    f"{source} is not pinned in {self.store.root}; `pmd pin` comes first, or `pmd build`"
                )
            self._pins[source] = json.loads(self.store.read_bytes(name))
        return self._pins[source]

    def block_list(self) -> BlockList | None:
        """The images that this corpus leaves out, as `pmd pin` found them."""
        if not self.store.exists(BLOCK_LIST):
            return None
        return from_bytes(self.store.read_bytes(BLOCK_LIST))

    def fingerprint(self, source: str) -> str:
        """Of all that decides the bytes of a source's files: rules, annotation files, our versions."""
        return fingerprint(self.definition(source))

    def definition(self, source: str) -> dict[str, Any]:
        everything = definition(self.corpus, self.limit)
        corpus = everything["corpus"]
        left_out = self.block_list()
        # A source's bytes do not depend on its neighbours; and [text] is among its rules, as it holds for it.
        others = {"name", "sources", "source", "text"}
        earlier: Sequence[str] = ()
        if self.corpus.dedup.across_sources == "drop":  # then they do, on those before it
            earlier = self.corpus.sources[: self.corpus.sources.index(source)]
        return everything | {
            "versions": _versions() | text.versions(self.corpus.text_spec(source)),
            "corpus": {name: value for name, value in corpus.items() if name not in others},
            "rules": corpus["source"].get(source, {}),
            "source": source,
            "earlier": {other: self.fingerprint(other) for other in earlier},
            "left_out": left_out.sha256 if left_out else None,
            "files": [
                {"name": file["name"], "sha256": file["sha256"]} for file in self.pins(source)["files"]
            ],
        }

    def shards(self, source: str) -> int:
        """How many shards the finished plan of a source has."""
        return int(self.planned(source)["shards"])

    def planned(self, source: str) -> dict[str, Any]:
        plan = read_plan(self.store, source)
        if plan is None:
            raise BadRequest(
                f"{source} is not planned in {self.store.root}; `pmd plan` comes first, or `pmd build`"
            )
        if plan["fingerprint"] != self.fingerprint(source):
            raise Refused(
                f"{self.store.path(f'plan/{source}')} was made from other annotation files; use a new --out"
            )
        return plan

    def task(self, source: str, number: int) -> Task:
        return Task(self.store.root, source, number, self.fingerprint(source), self.corpus)

    def unfinished(self, *stages: str) -> list[Task]:
        """A task for each number of this run's sources that none of these stages has finished."""
        return [
            self.task(source, number)
            for source in self.sources
            for number in range(self.shards(source))
            if not any(
                finished(self.store, numbered(stage, source, number), self.fingerprint(source))
                for stage in stages
            )
        ]


def _budget(spec: FetchSpec, restarted: bool) -> Budget:
    return Budget(spec, restarted=restarted)


def finished(store: Store, name: str, fingerprint: str) -> bool:
    """Is this file there, and made under this definition? Refused if it is there under another."""
    if not store.exists(name):
        return False
    try:
        with store.open(name) as file:
            found = read_footer(file).fingerprint
    except (ValueError, OSError) as error:
        hint = "If it is damaged, delete it and run the same line again."
        raise Damaged(f"{store.path(name)} cannot be read: {error}. {hint}") from None
    if found != fingerprint:
        raise Refused(
            f"{store.path(name)} was made under another definition; give this corpus an --out of its own"
        )
    return True


def read_plan(store: Store, source: str) -> dict[str, Any] | None:
    """The mark of a finished plan, or None."""
    name = f"plan/{source}/plan.json"
    return json.loads(store.read_bytes(name)) if store.exists(name) else None


def definition(corpus: Corpus, limit: int | None) -> dict[str, Any]:
    """All of a run that decides bytes, but for the annotation files, as plain JSON values."""
    versions = _versions()
    for source in corpus.sources:
        versions |= text.versions(corpus.text_spec(source))
    return {"format": FORMAT, "corpus": corpus.definition(), "limit": limit, "versions": versions}


def _versions() -> dict[str, str]:
    ours = {"pyarrow": pa.__version__, "orjson": orjson.__version__}
    asking = {"placeholders": known_placeholders().version, "consent": known_words().version}
    return ours | asking | images.versions()


@contextlib.contextmanager
def open_job(
    corpus: Corpus,
    *,
    out: str,
    only: Iterable[str] = (),
    limit: int | None = None,
    where: Where,
    progress: Progress,
    repairs: bool = False,
) -> Generator[Job]:
    """Take hold of an output, check that it is this corpus's, and clear away what a killed run left.

    Raises Busy when another run holds it, Refused when it was made under another definition, or when a
    repair of it was stopped half-way and this run does not go on with that.
    """
    if corpus.fetch.engine == "img2dataset":
        img2dataset.check(corpus.fetch)
    chosen = tuple(only) or corpus.sources
    for source in chosen:
        if source not in corpus.sources:
            raise BadRequest(f"--only {source}: this corpus has {', '.join(corpus.sources)}")
    store = Store(out)
    with contextlib.ExitStack() as stack:
        stack.enter_context(holding(store))
        check_definition(store, definition(corpus, limit))
        if not repairs and store.exists(REPAIRING):
            raise Refused(
                f"{store.root}: a repair was stopped while it exchanged shards; run that `pmd repair` again, "
                "it goes on from there"
            )
        store.sweep()
        stack.callback(store.sweep)  # again when the workers are gone: some may have been stopped at work
        yield Job(corpus, store, progress, chosen, limit, where, stack)


def check_definition(store: Store, wanted: dict[str, Any]) -> None:
    if not store.exists(DEFINITION):
        store.write_bytes(DEFINITION, json.dumps(wanted, indent=1, sort_keys=True).encode() + b"\n")
        return
    found = json.loads(store.read_bytes(DEFINITION))
    changes = list(differences(found, wanted))
    if changes:
        raise Refused(
            f"{store.root} was made under another definition:\n  "
            + "\n  ".join(changes)
            + "\nUndo the change, or give the new corpus an --out of its own."
        )


def differences(before: Any, after: Any, at: str = "") -> Iterator[str]:
    """Each value that differs between two JSON values, as `corpus.text.min_words: 1 -> 3`."""
    if isinstance(before, dict) and isinstance(after, dict):
        for name in sorted({*before, *after}):
            yield from differences(before.get(name), after.get(name), f"{at}.{name}" if at else name)
    elif before != after:
        yield f"{at}: {json.dumps(before)} -> {json.dumps(after)}"


@contextlib.contextmanager
def holding(store: Store) -> Generator[None]:
    """Hold an output against other runs; Busy at once when it is held."""
    owner = {
        "host": platform.node(),
        "pid": os.getpid(),
        "run": secrets.token_hex(4),
        "since": time.strftime("%FT%TZ", time.gmtime()),
    }
    if store.is_local:
        with _holding_folder(store, owner):
            yield
        return
    # No lock in an object store dies with its holder, so a killed run's has to be taken away by hand.
    mine = canonical_json(owner)
    if not store.create(HELD, mine):
        raise Busy(
            f"{store.root} is held by another run: {store.read_bytes(HELD).decode()}\n"
            f"If that run is dead, delete {store.path(HELD)} and run the same line again."
        )
    try:
        yield
    finally:
        store.remove(HELD)


@contextlib.contextmanager
def _holding_folder(store: Store, owner: dict[str, Any]) -> Generator[None]:
    """A file lock: the kernel lets go of it when its holder dies, however it dies."""
    os.makedirs(store.root, exist_ok=True)
    with open(store.path(HELD), "a+b") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            raise Busy(
                f"{store.root} is held by another run: {file.read().decode()}; wait for it to end"
            ) from None
        file.truncate(0)
        file.write(canonical_json(owner))
        file.flush()
        try:
            yield
        finally:
            file.truncate(0)
