"""A stream of 70 million samples: to the first batch after a resume, what a state weighs, how well it is
shuffled.

    resume   a new process: import, open lock and order, load a state, read the first batch of 256 samples,
             for which it opens 32 shards; 7,000 shards of 10,000 samples, all links to one, so that each
             name is there and is read
    order    positions to samples, closed form: ns a sample, and bytes of memory beside the lock
    shuffle  global batches of 4,096: how many shards are in one, how often two neighbours are of one shard,
             rank correlation of position and place in the corpus, how far the share of a source strays from
             batch to batch; for windows of 32 shards and more, beside a permutation of all samples
"""

import io
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from pmd.lock import Lock, LockedFile, lock_bytes, read_locked, root_hash
from pmd.storage import Store
from pmd.stream import Feed, Stream
from pmd.stream.order import Order
from tests.bench.measure import options, report
from tests.locked import locked

SHARDS, SAMPLES = 7_000, 10_000
BATCH = 4_096
# Shares of the nine sources of PMD in its images, by the published card: the largest first.
SOURCES = (0.29, 0.21, 0.16, 0.11, 0.08, 0.05, 0.04, 0.03, 0.03)

FIRST_BATCH = """
import json, sys, time
begun = time.perf_counter()
from pmd.stream import Feed, Stream
folder, state = sys.argv[1], json.loads(sys.argv[2])
imported = time.perf_counter()
feed = Feed(Stream(folder), batch=256)
opened = time.perf_counter()
feed.load_state_dict(state)
batch = next(iter(feed))
assert len(feed.source.read(batch.epoch, batch.positions)) == 256
done = time.perf_counter()
print(json.dumps({"import": imported - begun, "open": opened - imported, "first batch": done - opened}))
"""


def huge(folder: Path) -> None:
    """A locked corpus of 70 million samples, that are 10,000 again and again."""
    file = io.BytesIO()
    Image.new("RGB", (8, 8)).save(file, "JPEG")
    body = file.getvalue()
    small = locked(folder, {"coco": (SAMPLES,)}, dropped=500, captions=2, image=lambda _: body)
    by_ending = {Path(entry.path).suffix: entry for entry in small.files}
    files: list[LockedFile] = []
    for number in range(SHARDS):
        for ending, entry in by_ending.items():
            path = f"shards/coco/{number:05d}{ending}"
            files.append(entry.model_copy(update={"path": path}))
            if number:
                (folder / path).symlink_to(f"00000{ending}")
    files.sort(key=lambda entry: entry.path)
    lock = Lock(**{**vars(small), "files": files, "root": root_hash(files)})
    (folder / "lock.json").write_bytes(lock_bytes(lock))


def resumed(folder: Path, state: dict[str, Any]) -> dict[str, float]:
    line = [sys.executable, "-c", FIRST_BATCH, str(folder), json.dumps(state)]
    done = subprocess.run(line, capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


def shuffle(window: int | None, chance: np.random.Generator) -> dict[str, float]:
    """How well some batches of an epoch are mixed; window None: a permutation of all."""
    # Shards lie in the lock by source.
    source_of = np.repeat(np.arange(len(SOURCES)), np.round(np.array(SOURCES) * SHARDS).astype(int))[:SHARDS]
    order = None if window is None else Order(np.full(SHARDS, SAMPLES), seed=1, window=window)
    starts = chance.integers(0, SHARDS * SAMPLES // BATCH, 200) * BATCH
    distinct: list[int] = []
    neighbours: list[float] = []
    shares: list[Any] = []
    places: list[Any] = []
    positions: list[Any] = []
    for start in starts:
        at = np.arange(start, start + BATCH)
        if order is None:
            where = chance.integers(0, SHARDS * SAMPLES, BATCH)
            shard, sample = np.divmod(where, SAMPLES)
        else:
            shard, sample = order.at(0, at)
        distinct.append(len(np.unique(shard)))
        neighbours.append(float((shard[1:] == shard[:-1]).mean()))
        shares.append(np.bincount(source_of[shard], minlength=len(SOURCES)) / BATCH)
        places.append(shard * SAMPLES + sample)
        positions.append(at)
    by_position, by_place = (np.argsort(np.argsort(np.concatenate(one))) for one in (positions, places))
    return {
        "distinct shards": statistics.median(distinct),
        "neighbours of one shard": statistics.mean(neighbours),
        "rank correlation": float(np.corrcoef(by_position, by_place)[0, 1]),
        "largest source, sd of its share": float(np.std([share[0] for share in shares])),
    }


def main() -> None:
    given = options(__doc__, rounds=5)
    chance = np.random.default_rng(7)
    figures: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        huge(folder)
        feed = Feed(Stream(folder), batch=256)
        state = feed.state_dict() | {"position": 61_000_000 // 256 * 256}
        figures["state: bytes"] = len(json.dumps(state))
        figures["lock: mb"] = (folder / "lock.json").stat().st_size / 1e6
        taken = [resumed(folder, state) for _ in range(given.rounds)]
        for part in taken[0]:
            figures[f"resume, {part}: s"] = statistics.median(round[part] for round in taken)
        figures["resume: s"] = statistics.median(sum(round.values()) for round in taken)
        lock = read_locked(Store(str(folder)))
        sizes = [entry.images for entry in lock.files if entry.images]
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    order = Order(sizes, seed=1)
    at = np.arange(61_000_000, 61_000_000 + BATCH)
    order.at(0, at)
    figures["order: mb"] = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    begun = time.perf_counter()
    for step in range(100):
        order.at(0, at + step * BATCH)
    figures["order: ns_per_sample"] = (time.perf_counter() - begun) / 100 / BATCH * 1e9
    for window in (32, 256, 2048, None):
        for name, value in shuffle(window, chance).items():
            figures[f"window {window}: {name}" if window else f"all: {name}"] = value
    report("stream", figures=figures, ratios={}, as_json=given.json)


if __name__ == "__main__":
    main()
