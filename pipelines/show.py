"""show: look at samples of a corpus, by key or here and there, as text or as a contact sheet.

shards/*/00042.parquet --choose--> rows --read their images in place--> lines, JSON, or a PNG
"""

import random
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from pipelines.job import numbered, read_plan
from pipelines.status import status
from pmd.errors import BadRequest
from pmd.records import key_hash
from pmd.report.sheet import Picture, contact_sheet
from pmd.storage import Store
from pmd.tables import read_table


class Sample(NamedTuple):
    """One row of an index, and where its shard is."""

    shard: str  # the tar
    row: dict[str, Any]

    def image(self, store: Store) -> bytes:
        with store.open(self.shard) as file:
            file.seek(self.row["offset"])
            return file.read(self.row["size"])


def find(store: Store, keys: Sequence[str]) -> Iterator[Sample]:
    """The rows of some keys, kept or not. A key says which shard it is in, so no other is opened; but where
    shards were imported, it may be in any.
    """
    sources = status(store).sources
    for key in keys:
        source = next((name for name in sources if key.startswith(f"{name}-")), None)
        plan = read_plan(store, source) if source else None
        if source is not None and plan is None and (found := _imported(store, source, key)) is not None:
            yield found
            continue
        if source is None or not plan or not plan["shards"]:
            raise BadRequest(f"{key}: no source of this corpus ({', '.join(sources)}) has such a key")
        number = key_hash(key) % plan["shards"]
        index = numbered("shards", source, number)
        if not store.exists(index):
            raise BadRequest(f"{key} belongs in {store.path(index)}, which is not built yet")
        with store.reading(index) as path:
            rows = read_table(path, where=("key", key)).to_pylist()
        if not rows:
            raise BadRequest(f"{key}: {source} has no such record; it would be in {store.path(index)}")
        yield Sample(numbered("shards", source, number, "tar"), rows[0])


def _imported(store: Store, source: str, key: str) -> Sample | None:
    for index in store.names(f"shards/{source}", ".parquet"):
        with store.reading(index) as path:
            if key in read_table(path, ["key"])["key"].to_pylist():
                (row,) = read_table(path, where=("key", key)).to_pylist()
                return Sample(index.removesuffix("parquet") + "tar", row)
    return None


def choose(store: Store, *, only: Sequence[str], count: int, seed: int) -> list[Sample]:
    """So many kept samples, spread over sources and shards; the same for the same seed."""
    chance = random.Random(seed)
    sources = status(store).sources
    if strangers := [name for name in only if name not in sources]:
        raise BadRequest(f"--only {strangers[0]}: this corpus has {', '.join(sources)}")
    shards = {name: store.names(f"shards/{name}", ".parquet") for name in only or sources}
    chosen: list[Sample] = []
    for place, (_, indexes) in enumerate(shards.items()):
        wanted = count // len(shards) + (place < count % len(shards))
        looked = chance.sample(indexes, min(len(indexes), 4))
        samples: list[Sample] = []
        for index in looked:
            with store.reading(index) as path:
                rows = read_table(path, where=("status", "success")).to_pylist()
            samples += [Sample(index.removesuffix("parquet") + "tar", row) for row in rows]
        chosen += chance.sample(samples, min(wanted, len(samples)))
    return chosen


def sheet(store: Store, samples: Sequence[Sample], *, columns: int) -> bytes:
    """A contact sheet of the kept ones among some samples, as PNG bytes."""
    kept = [sample for sample in samples if sample.row["status"] == "success"]
    if not kept:
        raise BadRequest("none of these samples is kept, so there is no picture to show")
    pictures = [Picture(sample.image(store), sample.row["key"], sample.row["caption"]) for sample in kept]
    return contact_sheet(pictures, columns=columns)


def describe(sample: Sample) -> str:
    """A sample in a few lines, for a person."""
    row = sample.row
    outcome = "kept" if row["status"] == "success" else f"dropped: {row['reason']}"
    lines = [f"{row['key']}  {outcome}"]
    if row["width"]:
        served = f"{row['original_width']}x{row['original_height']} {row['mime']}"
        lines.append(f"  {row['width']}x{row['height']}, served as {served}")
    lines.append(f"  {row['url']}")
    lines += [
        f"  - {caption['text']}" + (f"  (dropped: {caption['reason']})" if caption["reason"] else "")
        for caption in row["captions"]
    ]
    rights = [row[name] for name in ("license", "attribution") if row[name]]
    lines.append(f"  licence {', '.join(rights) or 'unknown'}; in {sample.shard}")
    return "\n".join(lines)
