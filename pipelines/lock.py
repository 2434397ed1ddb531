"""lock: hash and count everything -> lock.json, the corpus's identity.

shards/*/00042.tar, .parquet + plan/*/rejected.parquet --sha256--> lock.json
"""

from concurrent.futures import ThreadPoolExecutor

from pipelines.job import Job, definition, finished, numbered, read_plan
from pmd.errors import Damaged
from pmd.lock import FORMAT, Lock, LockedFile, LockedSource, lock_bytes, root_hash
from pmd.manifest import fingerprint
from pmd.shards import Shard, read_shard
from pmd.storage import Store
from pmd.tables import Counts, read_footer

LOCK = "lock.json"
HASHERS = 4  # threads; hashing leaves the interpreter free


def lock(job: Job) -> Lock:
    """Write the lock of this run's sources and of all others that are finished, unless it is there."""
    files: list[LockedFile] = []
    sources: dict[str, LockedSource] = {}
    # A run of one source must not take the others out of the lock.
    locked = [source for source in job.corpus.sources if source in job.sources or _is_finished(job, source)]
    names = {source: _files(job, source) for source in locked}
    totals = {source: len(found) for source, found in names.items()}
    with job.progress.stage("lock", totals, unit="files"), ThreadPoolExecutor(HASHERS) as hashers:
        for source in locked:
            hashed = hashers.map(lambda name: _locked(job.store, name), names[source])
            for place, entry in enumerate(hashed):
                files.append(entry)
                job.progress.done(source, place + 1)
            sources[source] = _source(job, source)
    everything = definition(job.corpus, job.limit)
    made = Lock(
        format=FORMAT,
        name=job.corpus.name,
        definition=everything,
        fingerprint=fingerprint(everything),
        sources=sources,
        files=sorted(files, key=lambda file: file.path),
        root=root_hash(files),
    )
    data = lock_bytes(made)
    if not job.store.exists(LOCK) or job.store.read_bytes(LOCK) != data:
        job.store.write_bytes(LOCK, data)
    return made


def _is_finished(job: Job, source: str) -> bool:
    plan = read_plan(job.store, source)
    if plan is None or plan["fingerprint"] != job.fingerprint(source):
        return False
    indexes = (numbered("shards", source, number) for number in range(plan["shards"]))
    return all(finished(job.store, index, plan["fingerprint"]) for index in indexes)


def _files(job: Job, source: str) -> list[str]:
    """The files of a source that a lock is about. Raises Damaged, naming it, when one is missing."""
    names = [f"plan/{source}/rejected.parquet"]
    for number in range(job.shards(source)):
        index = numbered("shards", source, number)
        if not finished(job.store, index, job.fingerprint(source)):
            raise Damaged(f"{job.store.path(index)} is missing; run `pmd shard` or `pmd build` first")
        names += [numbered("shards", source, number, "tar"), index]
    return names


def _locked(store: Store, name: str) -> LockedFile:
    digest = store.sha256(name)
    size = store.size(name)
    if not name.endswith(".tar"):
        return LockedFile(path=name, sha256=digest, size=size)
    shard = shard_facts(store, name.removesuffix("tar") + "parquet")
    if (digest, size) != (shard.tar_sha256, shard.tar_size):
        raise Damaged(
            f"{store.path(name)} has sha256 {digest}, its index says {shard.tar_sha256}. It was "
            "changed after it was written: delete the tar and its index, and run `pmd build` again."
        )
    return LockedFile(
        path=name, sha256=digest, size=size, images=shard.counts.images, pairs=shard.counts.pairs
    )


def shard_facts(store: Store, index: str) -> Shard:
    """What the index of a shard says of it."""
    with store.open(index) as file:
        try:
            return read_shard(read_footer(file))
        except (ValueError, OSError) as error:
            raise Damaged(f"{store.path(index)}: {error}") from None


def source_counts(store: Store, source: str, *, shards: int, rejected: dict[str, int]) -> Counts:
    """What became of every annotation row of a source, over its shards and its rejected rows."""
    total = Counts(rows=sum(rejected.values()), dropped=tuple(sorted(rejected.items())))
    for number in range(shards):
        total += shard_facts(store, numbered("shards", source, number)).counts
    return total


def _source(job: Job, source: str) -> LockedSource:
    plan = job.planned(source)
    counts = source_counts(job.store, source, shards=plan["shards"], rejected=plan["rejected"])
    if counts.rows != plan["rows"]:
        raise Damaged(
            f"{source}: {plan['rows']} annotation rows were planned, {counts.rows} are accounted for"
        )
    return LockedSource(
        fingerprint=job.fingerprint(source),
        files=[
            {name: file[name] for name in ("name", "sha256", "size")} for file in job.pins(source)["files"]
        ],
        expected=job.pins(source)["expected"],
        got=counts.as_json(),
    )
