"""The laws of pmd/dedup.py: the first one stays, and a plain picture is known by its bytes alone."""

from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pmd.dedup import LEAST_BITS, LOOKS, Repeats, looks, repeated
from pmd.tables import FETCHED

Look = tuple[int, int | None]  # of its bytes, of how it looks


def table(*images: Look) -> pa.Table:
    rows = [
        {"row": row, "exact": exact, "perceptual": perceptual}
        for row, (exact, perceptual) in enumerate(images)
    ]
    return pa.Table.from_pylist(rows, LOOKS)


def pairs(found: Repeats) -> dict[str, dict[int, int]]:
    """Place -> the place of the first one."""
    exact = dict(zip(found.exact.tolist(), found.exact_of.tolist(), strict=True))
    perceptual = dict(zip(found.perceptual.tolist(), found.perceptual_of.tolist(), strict=True))
    assert list(exact) == sorted(exact) and list(perceptual) == sorted(perceptual)
    return {"exact": exact, "perceptual": perceptual}


def by_comparing_all(values: list[int | None]) -> dict[int, int]:
    """Each value that occurs earlier, and where first: one compared to all before it."""
    return {
        place: values.index(value)
        for place, value in enumerate(values)
        if value is not None and value in values[:place]
    }


FEW = st.sampled_from([0, 1, 2, 2**63, 2**64 - 1])  # so that many are the same


@settings(deadline=None)
@given(st.lists(st.lists(st.tuples(FEW, st.none() | FEW), max_size=8), max_size=6))
def test_what_repeats_what_is_what_comparing_all_finds(files: list[list[Look]]) -> None:
    images = [image for file in files for image in file]
    assert pairs(repeated([table(*file) for file in files])) == {
        "exact": by_comparing_all([exact for exact, _ in images]),
        "perceptual": by_comparing_all([perceptual for _, perceptual in images]),
    }


@settings(deadline=None)
@given(st.lists(st.tuples(FEW, st.none() | FEW), max_size=20), st.data())
def test_how_images_are_cut_into_files_changes_nothing(images: list[Look], data: st.DataObject) -> None:
    cut = data.draw(st.integers(0, len(images)))
    assert pairs(repeated([table(*images[:cut]), table(*images[cut:])])) == pairs(repeated([table(*images)]))


def test_the_order_of_files_decides_which_stays() -> None:
    one, other = table((7, None), (8, 1)), table((9, 1), (7, None), (7, None))
    assert pairs(repeated([one, other])) == {"exact": {3: 0, 4: 0}, "perceptual": {2: 1}}
    assert pairs(repeated([other, one])) == {"exact": {2: 1, 3: 1}, "perceptual": {4: 0}}


def test_a_chain_of_repeats_leads_to_the_one_that_stays() -> None:
    """2 has the bytes of 1, which looks like 0: where looks count and bytes do not, 2 goes too."""
    assert pairs(repeated([table((1, 5), (2, 5), (2, 5))])) == {
        "exact": {2: 1},
        "perceptual": {1: 0, 2: 0},
    }


def test_images_of_which_nothing_is_known_but_their_bytes_look_like_none() -> None:
    assert pairs(repeated([table((1, None), (2, None), (3, 0), (4, None))])) == {
        "exact": {},
        "perceptual": {},
    }


def test_no_images_repeat_nothing() -> None:
    for nothing in ([], [table()], [table(), table()]):
        assert pairs(repeated(nothing)) == {"exact": {}, "perceptual": {}}


# From what was fetched


def fetched(*rows: dict[str, Any]) -> pa.Table:
    return pa.Table.from_pylist([{"status": "success"} | row for row in rows], FETCHED)


def image(number: int, phash: str | None) -> dict[str, Any]:
    return {"sha256": f"{number:016x}" + "f" * 48, "phash": phash}


def with_bits(count: int) -> str:
    return f"{(1 << count) - 1:016x}"


LOST: dict[str, Any] = {"status": "failed_to_download", "reason": "http_404"}


def test_only_kept_images_are_looked_at_each_under_its_own_row() -> None:
    rows = [LOST, image(1, with_bits(32)), image(2, with_bits(33)), LOST, image(3, with_bits(34))]
    found = looks(fetched(*rows), [False, True, False, False, True])
    assert found.schema.equals(LOOKS)
    assert found.to_pylist() == [
        {"row": 1, "exact": 1, "perceptual": 2**32 - 1},
        {"row": 4, "exact": 3, "perceptual": 2**34 - 1},
    ]
    assert looks(fetched(*rows), [False] * 5).to_pylist() == []
    assert looks(fetched(), []).equals(LOOKS.empty_table())


@pytest.mark.parametrize(
    ("phash", "perceptual"),
    [
        (with_bits(LEAST_BITS), 2**LEAST_BITS - 1),
        (with_bits(LEAST_BITS - 1), None),
        ("8000000000000000", None),  # one colour all over
        ("0000000000000000", None),  # black
        (None, None),
        ("e699996665cb2698", 0xE699996665CB2698),  # the first digits are the highest
    ],
)
def test_a_plain_picture_is_known_by_its_bytes_alone(phash: str | None, perceptual: int | None) -> None:
    twice = [image(1, phash), image(2, phash), image(1, phash)]
    found = looks(fetched(*twice), [True] * 3)
    assert found["perceptual"].to_pylist() == [perceptual] * 3
    near = {} if perceptual is None else {1: 0, 2: 0}
    assert pairs(repeated([found])) == {"exact": {2: 0}, "perceptual": near}


def test_a_table_in_pieces_looks_as_it_does_whole() -> None:
    rows = [image(1, with_bits(30)), LOST, image(2, None), image(3, with_bits(31))]
    kept = [True, False, True, True]
    pieces = pa.concat_tables([fetched(*rows[:2]), fetched(*rows[2:3]), fetched(*rows[3:])])
    assert looks(pieces, kept).equals(looks(fetched(*rows), kept))
