"""The laws of pmd/tables.py: the same table is the same file, and every row is counted once."""

from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pmd.tables import (
    INDEX,
    PLAN,
    REJECTED,
    VERDICT,
    Counts,
    count_rows,
    read_footer,
    read_table,
    write_table,
)


def record_of(
    number: int, reasons: list[list[str | None]], status: str, reason: str | None
) -> dict[str, Any]:
    """An index row; reasons: of each caption of each of its annotation rows, which lie in two files."""
    captions = [
        {"text": f"thing {number} seen {place} times", "file": place % 2, "row": place // 2, "reason": why}
        for place, row in enumerate(reasons)
        for why in row
    ]
    return {
        "key": f"coco-{number}",
        "source": "coco",
        "captions": captions,
        "status": status,
        "reason": reason,
    }


# Files


def test_a_table_is_the_same_file_however_its_rows_lie_in_memory(tmp_path: Path) -> None:
    rows = 20_000
    columns = [
        pa.repeat(pa.scalar("a.tsv"), rows),
        pa.array(range(rows)),
        pa.array(["input_malformed", "input_bad_url"] * (rows // 2)),
        pa.array(
            [f"expected a URL, found {row}" * 5 for row in range(rows)]
        ),  # a few pages of a Parquet file
    ]
    whole = pa.table(columns, schema=REJECTED)
    edges = [0, 1, 7_000, 7_001, 15_000, rows]
    pieces = pa.concat_tables([whole.slice(start, stop - start) for start, stop in pairwise(edges)])
    twice = pa.concat_tables([whole, whole]).combine_chunks()
    files: set[bytes] = set()
    for table in (whole, pieces, twice.slice(rows)):
        assert table.equals(whole)
        write_table(tmp_path / "a.parquet", table, fingerprint="f")
        files.add((tmp_path / "a.parquet").read_bytes())
    assert len(files) == 1


@pytest.mark.parametrize(
    "schema", [PLAN, INDEX, VERDICT, REJECTED], ids=["plan", "index", "verdict", "rejected"]
)
def test_a_table_reads_back_with_its_columns_fingerprint_and_facts(tmp_path: Path, schema: pa.Schema) -> None:
    path = tmp_path / "a.parquet"
    facts = {"tar_sha256": "5" * 64, "counts": {"rows": 3}}
    write_table(path, schema.empty_table(), fingerprint="f" * 64, facts=facts)
    assert pq.read_table(path).schema.equals(schema)
    footer = read_footer(path)
    assert (footer.rows, footer.fingerprint, footer.facts) == (0, "f" * 64, facts)
    with open(path, "rb") as file:
        assert read_footer(file) == footer


def test_a_file_that_is_not_ours_has_no_fingerprint(tmp_path: Path) -> None:
    pq.write_table(pa.table({"a": [1, 2]}), tmp_path / "a.parquet")
    footer = read_footer(tmp_path / "a.parquet")
    assert (footer.rows, footer.fingerprint, footer.facts) == (2, None, {})


# Counting

REASONS = st.sampled_from([None, "caption_short", "caption_long"])
OUTCOMES = st.one_of(
    st.just(("success", None)),
    st.sampled_from(
        [("failed_to_download", "http_404"), ("filtered", "image_small"), ("filtered", "caption_short")]
    ),
)


# A row is the reasons of its captions, a record its rows and what became of its image.
ROWS = st.lists(st.lists(REASONS, min_size=1, max_size=3), min_size=1, max_size=4)


@given(
    # A kept record has a kept caption.
    st.lists(
        st.tuples(ROWS, OUTCOMES).filter(
            lambda record: record[1][0] != "success" or any(None in row for row in record[0])
        ),
        max_size=15,
    ),
    st.integers(0, 20),
)
def test_every_row_is_counted_once_as_kept_or_under_its_own_reason_or_its_records(
    records: list[tuple[list[list[str | None]], tuple[str, str | None]]], cut: int
) -> None:
    rows = [record_of(number, reasons, *outcome) for number, (reasons, outcome) in enumerate(records)]
    table = pa.Table.from_pylist(rows, INDEX)
    counts = count_rows(pa.concat_tables([table.slice(0, cut), table.slice(cut)]))

    # What became of every caption, row by row.
    ends = [[own or outcome[1] for own in row] for reasons, outcome in records for row in reasons]
    dropped = Counter(row[0] for row in ends if None not in row)
    assert counts.rows == len(ends) == counts.kept + dropped.total()
    assert counts.dropped == tuple(sorted(dropped.items()))
    assert counts.pairs == sum(row.count(None) for row in ends)
    assert counts.planned_pairs == sum(row.count(None) for reasons, _ in records for row in reasons)
    assert counts.images == sum(outcome[0] == "success" for _, outcome in records)
    assert counts.words == 5 * counts.pairs

    halves = count_rows(table.slice(0, cut)) + count_rows(table.slice(cut))
    assert halves == counts


def test_counts_are_told_as_every_command_prints_them() -> None:
    dropped = (("caption_short", 1), ("http_404", 3))
    counts = Counts(rows=7, kept=3, planned_pairs=9, pairs=4, images=2, words=10, dropped=dropped)
    assert counts.as_json() == {
        **{"rows": 7, "kept": 3, "images": 2, "planned_pairs": 9, "pairs": 4, "words_per_caption": 2.5},
        "dropped": {"caption_short": 1, "http_404": 3},
    }
    assert Counts().as_json()["words_per_caption"] is None


def test_tables_are_read_without_the_threads_that_abort_an_interpreter() -> None:
    """See read_table."""
    root = Path(__file__).parents[1]
    sources = [
        path for folder in ("pmd", "pipelines", "flava_model") for path in (root / folder).rglob("*.py")
    ]
    assert not [path for path in sources if "pq.read_table(" in path.read_text()]


def test_a_table_is_read_from_a_path_and_a_file_by_column_and_value(tmp_path: Path) -> None:
    table = pa.table({"key": ["a", "b", "a"], "size": [1, 2, 3], "other": [None, "x", None]})
    path = tmp_path / "table.parquet"
    write_table(path, table, fingerprint="")
    assert read_table(path).equals(table)
    with open(path, "rb") as file:
        assert read_table(file, ["size", "key"]).to_pydict() == {"size": [1, 2, 3], "key": ["a", "b", "a"]}
    assert read_table(path, ["size"], where=("key", "a")).to_pydict() == {"size": [1, 3], "key": ["a", "a"]}
