"""The Parquet files of an output: their columns, what decided them, and what their rows come to.

    plan/<source>/00042.parquet     PLAN       what to fetch
    raw/<source>/00042.parquet      FETCHED    what came, row for row
    filter/<source>/00042.parquet   VERDICT    what is kept, row for row
    shards/<source>/00042.parquet   INDEX      all of it; beside the tar, for good

The four files of one number hold the same records in the same order. Each carries, in its footer, the
fingerprint of the definition that it was made under, and facts that are wanted without reading rows.
"""

# pyarrow.compute makes its functions at run time, where no checker sees them.
# pyright: reportAttributeAccessIssue=false

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

CAPTION = pa.struct(
    [
        ("text", pa.string()),
        ("id", pa.string()),
        ("box", pa.list_(pa.float64())),
        ("file", pa.int32()),  # which annotation file: its place in plan.json's files
        ("row", pa.int64()),
        ("reason", pa.string()),  # why this row is dropped; null: nothing against it
    ]
)
PLAN = pa.schema(
    [
        ("key", pa.string()),
        ("source", pa.string()),
        ("url", pa.string()),
        ("captions", pa.list_(CAPTION)),
        ("license", pa.string()),  # SPDX id, or "unknown"
        ("license_url", pa.string()),
        ("attribution", pa.string()),
        ("meta", pa.string()),
        ("path", pa.string()),  # of the image in the publisher's archives
        ("rotation", pa.int16()),  # degrees counter-clockwise that bring the published pixels upright
    ]
)
FETCHED = pa.schema(
    [
        ("status", pa.string()),  # success, failed_to_download, failed_to_resize, filtered
        ("reason", pa.string()),
        ("error_message", pa.string()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("original_width", pa.int32()),
        ("original_height", pa.int32()),
        ("sha256", pa.string()),  # of the served bytes
        ("stored_sha256", pa.string()),  # of the image member
        ("phash", pa.string()),
        ("mime", pa.string()),  # of the served bytes
        ("consent", pa.string()),
        ("offset", pa.int64()),  # of the image's bytes in the tar
        ("size", pa.int64()),  # of the image's bytes
    ]
)
# Of the plan's columns up to url; then the first kept caption, as the .txt member has it; then the rest.
INDEX = pa.schema([*list(PLAN)[:3], pa.field("caption", pa.string()), *list(PLAN)[3:], *FETCHED])
VERDICT = pa.schema([("key", pa.string()), ("kept", pa.bool_()), ("reason", pa.string())])
REJECTED = pa.schema(
    [("file", pa.string()), ("row", pa.int64()), ("reason", pa.string()), ("detail", pa.string())]
)


@dataclass(frozen=True)
class Counts:
    """What became of the annotation rows behind some records. rows == kept + sum(dropped)."""

    rows: int = 0
    kept: int = 0  # rows that gave a pair or more
    planned_pairs: int = 0  # before any image was fetched
    pairs: int = 0  # kept captions
    images: int = 0
    words: int = 0  # white-space separated, over the kept captions
    dropped: tuple[tuple[str, int], ...] = ()  # (reason, rows), sorted

    def __add__(self, other: "Counts") -> "Counts":
        dropped = dict(self.dropped)
        for reason, rows in other.dropped:
            dropped[reason] = dropped.get(reason, 0) + rows
        return Counts(
            rows=self.rows + other.rows,
            kept=self.kept + other.kept,
            planned_pairs=self.planned_pairs + other.planned_pairs,
            pairs=self.pairs + other.pairs,
            images=self.images + other.images,
            words=self.words + other.words,
            dropped=tuple(sorted(dropped.items())),
        )

    def as_json(self) -> dict[str, Any]:
        """The shape that build, lock, status and report print."""
        return {
            "rows": self.rows,
            "kept": self.kept,
            "images": self.images,
            "planned_pairs": self.planned_pairs,
            "pairs": self.pairs,
            "words_per_caption": round(self.words / self.pairs, 2) if self.pairs else None,
            "dropped": dict(self.dropped),
        }


def count_rows(index: pa.Table) -> Counts:
    """What became of every annotation row behind a table with captions, status and reason."""
    captions = cast("pa.ListArray", index["captions"].combine_chunks())
    flat = captions.flatten()
    record = pc.list_parent_indices(captions)
    own = flat.field("reason")
    failed = pc.not_equal(index["status"], "success")
    assert index["reason"].filter(failed).null_count == 0, "a record that is not kept has a reason"
    outcome = pc.coalesce(own, pc.take(index["reason"].combine_chunks(), record))
    kept = pc.is_null(outcome)
    texts = cast("list[str]", flat.field("text").filter(kept).to_pylist())
    # A row gives one caption or several, which lie next to each other. Where all are dropped, its reason is
    # that of the first.
    first = _row_starts(record, flat.field("file"), flat.field("row"))
    row_kept = np.logical_or.reduceat(kept.to_numpy(zero_copy_only=False), first) if len(first) else first
    lost = outcome.take(pa.array(first)).filter(pa.array(~row_kept.astype(bool)))
    return Counts(
        rows=len(first),
        kept=int(np.count_nonzero(row_kept)),
        planned_pairs=own.null_count,
        pairs=len(texts),
        images=cast("int", pc.sum(pc.equal(index["status"], "success")).as_py() or 0),
        words=sum(len(text.split()) for text in texts),
        dropped=tuple(sorted(Counter(cast("list[str]", lost.to_pylist())).items())),
    )


def _row_starts(*columns: pa.Array) -> np.ndarray[Any, Any]:
    """Where, in columns that name a row together, another row begins."""
    begins = np.zeros(len(columns[0]), bool)
    begins[:1] = True
    for column in columns:
        values = column.to_numpy(zero_copy_only=False)
        begins[1:] |= values[1:] != values[:-1]
    return np.flatnonzero(begins)


# Columns worth a dictionary; for the others, nearly all of whose values differ, trying costs time.
_REPEATING = ("source", "license", "license_url", "status", "reason", "error_message", "mime", "consent")


def write_table(
    path: Path, table: pa.Table, *, fingerprint: str, facts: dict[str, Any] | None = None
) -> None:
    """One Parquet file, the same bytes for the same table, with its fingerprint and facts in the footer."""
    footer = {"pmd.fingerprint": fingerprint, "pmd.facts": json.dumps(facts or {}, sort_keys=True)}
    repeating = [name for name in _REPEATING if name in table.column_names]
    whole = table.replace_schema_metadata(footer).combine_chunks()  # Parquet pages end where chunks do
    pq.write_table(whole, path, compression="zstd", use_dictionary=cast("Any", repeating))


def read_table(
    file: str | Path | BinaryIO, columns: Sequence[str] | None = None, *, where: tuple[str, str] | None = None
) -> pa.Table:
    """A Parquet file's rows; with `where`, those that have this value in that column, which is read too.

    File by file and not by pyarrow.parquet.read_table, which goes by way of pyarrow's datasets: with 26.0.1
    their threads abort one in five interpreters that end soon after.
    """
    wanted = None if columns is None else [*dict.fromkeys((*columns, *(where[:1] if where else ())))]
    # As a buffer: what is read ahead of a Python file may outlive the interpreter too.
    source = file if isinstance(file, str | Path) else pa.BufferReader(file.read())
    with pq.ParquetFile(source) as opened:
        table = opened.read(columns=wanted)
    if wanted is not None:
        table = table.select(wanted)
    if where is None:
        return table
    name, value = where
    return table.filter(pa.array([found == value for found in table[name].to_pylist()], pa.bool_()))


@dataclass(frozen=True)
class Footer:
    rows: int
    fingerprint: str | None  # None: not written by us
    facts: dict[str, Any]


def read_footer(file: Any) -> Footer:
    """The footer alone of a Parquet file (a path or an open file)."""
    metadata = pq.read_metadata(file)
    pairs = metadata.metadata or {}
    fingerprint = pairs.get(b"pmd.fingerprint")
    facts = json.loads(pairs.get(b"pmd.facts", b"{}"))
    return Footer(metadata.num_rows, fingerprint.decode() if fingerprint else None, facts)
