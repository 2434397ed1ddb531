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

from pmd.tables import INDEX, PLAN, REJECTED, VERDICT, Counts, count_rows, read_footer, write_table


def row(number: int, reasons: list[str | None], status: str, reason: str | None) -> dict[str, Any]:
    captions = [
        {"text": f"thing {number} seen {place} times", "file": 0, "row": 10 * number + place, "reason": why}
        for place, why in enumerate(reasons)
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


@given(
    # A kept record has a kept caption.
    st.lists(
        st.tuples(st.lists(REASONS, min_size=1, max_size=5), OUTCOMES).filter(
            lambda record: record[1][0] != "success" or None in record[0]
        ),
        max_size=20,
    ),
    st.integers(0, 20),
)
def test_every_row_is_counted_once_under_its_own_reason_or_its_records(
    records: list[tuple[list[str | None], tuple[str, str | None]]], cut: int
) -> None:
    rows = [row(number, reasons, *outcome) for number, (reasons, outcome) in enumerate(records)]
    table = pa.Table.from_pylist(rows, INDEX)
    counts = count_rows(pa.concat_tables([table.slice(0, cut), table.slice(cut)]))

    ends = [own or outcome[1] for reasons, outcome in records for own in reasons]
    dropped = Counter(end for end in ends if end)
    assert counts.rows == len(ends) == counts.kept + dropped.total()
    assert counts.dropped == tuple(sorted(dropped.items()))
    assert counts.images == sum(outcome[0] == "success" for _, outcome in records)
    assert counts.words == 5 * counts.kept

    halves = count_rows(table.slice(0, cut)) + count_rows(table.slice(cut))
    assert halves == counts


def test_counts_are_told_as_every_command_prints_them() -> None:
    counts = Counts(rows=7, kept=3, images=2, words=10, dropped=(("caption_short", 1), ("http_404", 3)))
    assert counts.as_json() == {
        **{"rows": 7, "kept": 3, "images": 2, "pairs": 3, "words_per_caption": 3.33},
        "dropped": {"caption_short": 1, "http_404": 3},
    }
    assert Counts().as_json()["words_per_caption"] is None
