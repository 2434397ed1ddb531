"""Records -> tasks: annotation rows become numbered files of records, out of core, in bounded memory.

    annotation files --spill--> one flat table a part, cleaned and judged     (a task a part)
                     --deal---> the same rows, sorted into groups of shards   (a task a part)
                     --gather-> plan/<source>/00042.parquet                   (a task a group)

A record's shard is `key_hash(key) % shards`, its place in the shard the order of hashes. The number of shards
follows from the number of distinct images, so it is known only when everything has been read: that is why
rows are dealt in a second pass. Rows of one image meet in one record however far apart they lie. Nothing here
depends on the number of workers.
"""

# pyarrow.compute makes its functions at run time, where no checker sees them.
# pyright: reportAttributeAccessIssue=false

import contextlib
import gc
import hashlib
import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pmd import text
from pmd.decontaminate import BlockList
from pmd.manifest import TextSpec
from pmd.records import Caption, Reason, Record, Rejected
from pmd.tables import CAPTION, PLAN, REJECTED

# One row a caption, until gather: the caption with its record's fields, and the hash that places it. Until
# deal the captions of each part count their rows from 0.
_OF_RECORD = [field for field in PLAN if field.name not in ("source", "captions")]
SPILL = pa.schema(
    [pa.field("hash", pa.uint64()), *_OF_RECORD, *(CAPTION.field(name) for name in CAPTION.names)]
)
BATCH = 8_192  # captions turned into columns at a time, about
HAND = 32  # batches that deal holds in memory
UNKNOWN = "unknown"  # the licence of an image of which the source does not say one
GROUP = 200_000  # records that gather holds in memory, about


@dataclass(frozen=True)
class Spilled:
    """What one part of an annotation file came to."""

    rows: int
    rejected: int


def spill(
    outcomes: Iterable[Record | Rejected],
    table: Path,
    rejected: Path,
    *,
    file: int,
    name: str,
    rules: TextSpec,
    block_list: BlockList | None = None,
) -> Spilled:
    """Write one part's captions, cleaned and judged, to an Arrow file, and its unreadable rows to another.

    file: the annotation file's place among those of its source. name: what a person calls it. block_list:
    the images whose captions are all dropped.
    """
    rows = lost = 0
    with (
        _without_cycle_collection(),
        pa.OSFile(str(table), "wb") as kept_file,
        pa.OSFile(str(rejected), "wb") as lost_file,
        pa.ipc.new_file(kept_file, SPILL) as kept_writer,
        pa.ipc.new_file(lost_file, REJECTED) as lost_writer,
    ):
        for batch in _batches(outcomes):
            records = [outcome for outcome in batch if isinstance(outcome, Record)]
            refused = [outcome for outcome in batch if isinstance(outcome, Rejected)]
            if records:
                kept_writer.write_batch(_columns(records, file=file, rules=rules, block_list=block_list))
                rows = max(rows, records[-1].captions[-1].row + 1)
            if refused:
                lost_writer.write_batch(_rejected(refused, name))
                rows = max(rows, refused[-1].row + 1)
                lost += len(refused)
    return Spilled(rows, lost)


@contextlib.contextmanager
def _without_cycle_collection() -> Iterator[None]:
    """Records are made by the million and hold no cycles; looking for some costs a fifth of the time."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def _batches(outcomes: Iterable[Record | Rejected]) -> Iterator[list[Record | Rejected]]:
    batch: list[Record | Rejected] = []
    captions = 0
    for outcome in outcomes:
        batch.append(outcome)
        captions += len(outcome.captions) if isinstance(outcome, Record) else 1
        if captions >= BATCH:
            yield batch
            batch, captions = [], 0
    if batch:
        yield batch


def _columns(
    records: Sequence[Record], *, file: int, rules: TextSpec, block_list: BlockList | None
) -> pa.RecordBatch:
    """The records as SPILL columns, a row a caption. Transposed by zip, which beats a loop a column."""
    fields: dict[str, Sequence[Any]] = dict(zip(Record._fields, zip(*records, strict=True), strict=True))
    groups: Sequence[tuple[Caption, ...]] = fields["captions"]
    assert all(groups), "a record has a caption; a row without one is Rejected"
    of_record = [pa.array(key_hashes(fields["key"]))]
    fields["license"] = [license or UNKNOWN for license in fields["license"]]
    of_record += [pa.array(fields[field.name], field.type) for field in _OF_RECORD]
    captions, cleaned, reasons = _judged([*itertools.chain.from_iterable(groups)], rules)
    if block_list is not None:
        blocked = [block_list.blocks(record) for record in records for _ in record.captions]
        reasons = [
            Reason.DECONTAMINATED if is_blocked else reason
            for is_blocked, reason in zip(blocked, reasons, strict=True)
        ]
    if len(captions) > len(records):
        parents = np.repeat(np.arange(len(records)), [len(group) for group in groups])
        of_record = [column.take(pa.array(parents)) for column in of_record]
    _, rows, ids, boxes, _ = zip(*captions, strict=True)
    of_caption = [
        pa.array(cleaned, pa.string()),
        pa.array(ids, pa.string()),
        pa.array(boxes, pa.list_(pa.float64())),
        pa.repeat(pa.scalar(file, pa.int32()), len(rows)),
        pa.array(rows, pa.int64()),
        pa.array(reasons, pa.string()),
    ]
    return pa.RecordBatch.from_arrays(of_record + of_caption, schema=SPILL)


def _judged(captions: list[Caption], rules: TextSpec) -> tuple[list[Caption], list[str], list[Reason | None]]:
    """The captions with their cleaned texts and verdicts.

    One that is dropped is exchanged for the first that is kept of those to be taken otherwise, if any is.
    """
    cleaned = text.clean([caption.text for caption in captions])
    reasons = text.judge(cleaned, rules)
    tried = [
        (place, caption.otherwise)
        for place, caption in enumerate(captions)
        if caption.otherwise and reasons[place]
    ]
    while tried:
        others = text.clean([other.text for _, other in tried])
        verdicts = text.judge(others, rules)
        for (place, other), words, reason in zip(tried, others, verdicts, strict=True):
            if reason is None:
                captions[place], cleaned[place], reasons[place] = other, words, None
        tried = [(place, other.otherwise) for place, other in tried if other.otherwise and reasons[place]]
    return captions, cleaned, reasons


def key_hashes(keys: Sequence[str]) -> np.ndarray[Any, Any]:
    """`key_hash` of many keys."""
    digests = b"".join([hashlib.sha256(key.encode()).digest() for key in keys])
    return np.frombuffer(digests, ">u8")[::4].astype(np.uint64)


def _rejected(refused: Sequence[Rejected], name: str) -> pa.RecordBatch:
    columns = [
        pa.repeat(pa.scalar(name), len(refused)),
        pa.array([item.row for item in refused], pa.int64()),
        pa.array([item.reason for item in refused], pa.string()),
        pa.array([item.detail for item in refused], pa.string()),
    ]
    return pa.RecordBatch.from_arrays(columns, schema=REJECTED)


def count_captions(spills: Iterable[BinaryIO]) -> int:
    """The rows of some spills, read without their strings."""
    options = pa.ipc.IpcReadOptions(included_fields=[0])
    total = 0
    for file in spills:
        with pa.ipc.open_file(file, options=options) as reader:
            total += sum(reader.get_batch(place).num_rows for place in range(reader.num_record_batches))
    return total


def distinct_images(spills: Iterable[BinaryIO]) -> tuple[int, int]:
    """(images, images with a caption to fetch them for) over all spills. Holds 8 bytes a caption."""
    every: list[np.ndarray[Any, Any]] = []
    wanted: list[np.ndarray[Any, Any]] = []
    for file in spills:
        options = pa.ipc.IpcReadOptions(included_fields=[0, SPILL.get_field_index("reason")])
        with pa.ipc.open_file(file, options=options) as reader:
            table = reader.read_all()
        hashes = table["hash"].to_numpy()
        every.append(hashes)
        wanted.append(hashes[table["reason"].is_null().to_numpy()])
    return _distinct(every), _distinct(wanted)


def _distinct(parts: list[np.ndarray[Any, Any]]) -> int:
    # Sorting in place takes a tenth of np.unique's time.
    hashes = np.concatenate([*parts, np.empty(0, np.uint64)])
    hashes.sort()
    return int(np.count_nonzero(hashes[1:] != hashes[:-1])) + (len(hashes) > 0)


@dataclass(frozen=True)
class Layout:
    """How a source's records are spread: over how many shards, gathered in how many groups."""

    shards: int
    groups: int

    def group_of(self, shard: Any) -> Any:
        """Groups are runs of neighbouring shards."""
        return shard * self.groups // self.shards

    def shards_of(self, group: int) -> range:
        first = -(-group * self.shards // self.groups)
        return range(first, -(-(group + 1) * self.shards // self.groups))


def layout(*, captions: int, images: int, wanted: int, images_per_shard: int) -> Layout:
    """The spread of a source with so many captions, distinct images, and images worth fetching."""
    if images == 0:
        return Layout(0, 0)
    shards = max(1, -(-wanted // images_per_shard))
    return Layout(shards, min(shards, max(1, -(-captions // GROUP))))


def deal(spilled: BinaryIO, dealt: Path, *, layout: Layout, first_row: int) -> None:
    """Sort one spill by group: of every `layout.groups` batches of the new file, the g-th is for group g.

    first_row: the number that the first row of this part has in its file.
    """
    with (
        pa.ipc.open_file(spilled) as reader,
        pa.OSFile(str(dealt), "wb") as file,
        pa.ipc.new_file(file, SPILL) as writer,
    ):
        # A hand at a time: a part may be as big as an annotation file is, where that is a gzip.
        for first in range(0, reader.num_record_batches, HAND):
            last = min(first + HAND, reader.num_record_batches)
            batches = [reader.get_batch(place) for place in range(first, last)]
            rows = _numbered(pa.Table.from_batches(batches, SPILL).combine_chunks(), first_row)
            for piece in _by_group(rows, layout):
                writer.write_batch(piece)


def _numbered(rows: pa.Table, first_row: int) -> pa.Table:
    """The rows with their numbers in the whole file."""
    place = SPILL.get_field_index("row")
    return rows.set_column(place, SPILL.field(place), pc.add(rows["row"], first_row))


def _by_group(rows: pa.Table, layout: Layout) -> Iterator[pa.RecordBatch]:
    """The rows of each group, in the order they have."""
    shard = rows["hash"].to_numpy() % np.uint64(layout.shards)
    group = layout.group_of(shard.astype(np.int64))
    order = np.argsort(group, kind="stable")
    edges = np.searchsorted(group[order], np.arange(layout.groups + 1)).tolist()
    ordered = rows.take(pa.array(order)).combine_chunks()
    for start, stop in itertools.pairwise(edges):
        batches = ordered.slice(start, stop - start).to_batches()
        assert len(batches) <= 1, f"{len(batches)} batches of {stop - start} rows"
        yield batches[0] if batches else pa.RecordBatch.from_pylist([], schema=SPILL)


def gather(
    dealt: Iterable[BinaryIO], *, source: str, group: int, layout: Layout
) -> Iterator[tuple[int, pa.Table]]:
    """The finished plan tables (shard number, PLAN table) of one group's shards."""
    pieces: list[pa.RecordBatch] = []
    for file in dealt:
        with pa.ipc.open_file(file) as reader:
            pieces += [
                reader.get_batch(place) for place in range(group, reader.num_record_batches, layout.groups)
            ]
    rows = _in_order(pa.Table.from_batches(pieces, SPILL).combine_chunks(), layout)
    records, shard = _join(rows, source=source, layout=layout)
    for number in layout.shards_of(group):
        start, stop = np.searchsorted(shard, [number, number + 1]).tolist()
        yield number, records.slice(start, stop - start)


def _in_order(rows: pa.Table, layout: Layout) -> pa.Table:
    """Sorted by shard, hash, key, file and row: the order of records, and of captions in one."""
    hashes = rows["hash"].to_numpy()
    shard = hashes % np.uint64(layout.shards)
    order = np.lexsort((rows["row"].to_numpy(), rows["file"].to_numpy(), hashes, shard))
    ordered = rows.take(pa.array(order))
    same_hash = hashes[order][1:] == hashes[order][:-1]
    same_key = _equal_neighbours(ordered["key"])
    if not (same_hash & ~same_key).any():
        return ordered
    # Two keys share a 64-bit hash: 1 in 7,500 corpora of 70 million images. Sort again, with strings.
    by = [
        ("shard", "ascending"),
        ("hash", "ascending"),
        ("key", "ascending"),
        ("file", "ascending"),
        ("row", "ascending"),
    ]
    indices = pc.sort_indices(rows.append_column("shard", pa.array(shard)), sort_keys=by)
    return rows.take(indices)


def _join(rows: pa.Table, *, source: str, layout: Layout) -> tuple[pa.Table, np.ndarray[Any, Any]]:
    """One record for each run of equal keys; also each record's shard."""
    if rows.num_rows == 0:
        return PLAN.empty_table(), np.empty(0, np.uint64)
    first = np.flatnonzero(np.concatenate(([True], ~_equal_neighbours(rows["key"]))))
    offsets = np.append(first, rows.num_rows).astype(np.int32)
    captions = pa.StructArray.from_arrays(
        [rows[name].combine_chunks() for name in CAPTION.names], fields=[*CAPTION]
    )
    heads = rows.select(["hash", *(field.name for field in _OF_RECORD)])
    if len(first) < rows.num_rows:
        heads = heads.take(pa.array(first))
    columns = {field.name: heads[field.name] for field in _OF_RECORD} | {
        "source": pa.repeat(pa.scalar(source), len(first)),
        "captions": pa.ListArray.from_arrays(pa.array(offsets), captions),
    }
    shard = heads["hash"].to_numpy() % np.uint64(layout.shards)
    return pa.table([columns[name] for name in PLAN.names], schema=PLAN), shard


def _equal_neighbours(column: pa.ChunkedArray) -> np.ndarray[Any, Any]:
    """For each value but the first: is it that of the row before?"""
    return pc.equal(column.slice(1), column.slice(0, max(0, len(column) - 1))).to_numpy(zero_copy_only=False)
