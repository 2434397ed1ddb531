"""The laws of pmd/filters.py: one verdict a row, the first objection counts, limits themselves are kept."""

from typing import Any

import pyarrow as pa
import pytest

from pmd.filters import judge, verdicts
from pmd.manifest import ImageSpec
from pmd.tables import FETCHED, VERDICT

SPEC = ImageSpec(min_side=100, max_aspect=2.5)


def fetched(*sizes: tuple[int, int]) -> pa.Table:
    rows = [
        {"status": "success", "original_width": width, "original_height": height} for width, height in sizes
    ]
    return pa.Table.from_pylist(rows, FETCHED)


@pytest.mark.parametrize(
    ("size", "reason"),
    [
        ((100, 100), None),
        ((99, 100), "image_small"),
        ((100, 99), "image_small"),
        ((250, 100), None),
        ((100, 250), None),
        ((251, 100), "image_aspect"),
        ((100, 251), "image_aspect"),
        ((1000, 99), "image_small"),  # both object; the first one counts
        ((4000, 3000), None),
    ],
)
def test_the_served_size_decides_and_a_limit_itself_is_kept(
    size: tuple[int, int], reason: str | None
) -> None:
    assert judge(fetched(size), SPEC) == [reason]


def test_what_an_earlier_stage_has_dropped_keeps_its_reason() -> None:
    lost: list[dict[str, Any]] = [
        {"status": "failed_to_download", "reason": "http_404"},
        {"status": "filtered", "reason": "caption_short"},
        {"status": "failed_to_resize", "reason": "decode_failed", "original_width": 1, "original_height": 1},
    ]
    table = pa.concat_tables([pa.Table.from_pylist(lost, FETCHED), fetched((1, 1))])
    assert judge(table, SPEC) == ["http_404", "caption_short", "decode_failed", "image_small"]


def test_the_rules_are_those_of_the_corpus_file() -> None:
    table = fetched((20, 30), (90, 20))
    assert judge(table, ImageSpec(min_side=0, max_aspect=1.5)) == [None, "image_aspect"]
    assert judge(table, ImageSpec(min_side=21, max_aspect=100)) == ["image_small", "image_small"]


def test_there_is_one_verdict_a_row_in_their_order() -> None:
    table = verdicts(pa.chunked_array([["a", "b"], ["c"]]), [None, "http_404", None])
    assert table.schema.equals(VERDICT)
    assert table.to_pylist() == [
        {"key": "a", "kept": True, "reason": None},
        {"key": "b", "kept": False, "reason": "http_404"},
        {"key": "c", "kept": True, "reason": None},
    ]
    assert verdicts(pa.chunked_array([], pa.string()), []).num_rows == 0
