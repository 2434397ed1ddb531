import json
import time
import tracemalloc
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pmd.sources.json_lists import elements
from pmd.sources.part import ROW_BYTES, Unreadable

TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=5)
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63) + 1, 2**63 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS | st.just("rows"), inner, max_size=3),
    max_leaves=12,
)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(
    before=VALUES,
    rows=st.lists(VALUES, max_size=5),
    others=st.lists(VALUES, max_size=3),
    after=VALUES,
    size=st.integers(1, 50),
)
def test_elements_are_those_that_a_whole_read_gives(
    before: Any, rows: list[Any], others: list[Any], after: Any, size: int
) -> None:
    content = json.dumps({"x": before, "rows": rows, "others": others, "y": after}).encode()
    expected = [("rows", row) for row in rows] + [("others", other) for other in others]
    assert list(elements(blocks(content, size), "rows", "others")) == expected


@settings(max_examples=300, deadline=None, derandomize=True)
@given(rows=st.lists(VALUES, max_size=5), size=st.integers(1, 50))
def test_without_names_the_elements_are_those_of_a_list_at_the_top_level(rows: list[Any], size: int) -> None:
    assert list(elements(blocks(json.dumps(rows).encode(), size))) == [("", row) for row in rows]


@settings(max_examples=100, deadline=None, derandomize=True)
@given(rows=st.lists(VALUES, max_size=5), size=st.integers(1, 50), names=st.sampled_from([["rows"], []]))
def test_a_cut_file_gives_its_first_elements_and_then_says_where_it_ends(
    rows: list[Any], size: int, names: list[str]
) -> None:
    content = json.dumps({"rows": rows} if names else rows).encode()
    for cut in range(len(content)):
        found, damage = read(content[:cut], size, names)
        assert found == rows[: len(found)]
        assert damage
        assert f"end of the file at byte {cut}" in damage or "expected a JSON object" in damage


@pytest.mark.parametrize(
    "content",
    [
        "",
        " ",
        "null",
        "[]",
        "{}",
        '"rows"',
        '{"rows":{}}',
        '{"rows":1}',
        '[{"rows":0},[1]]',
        '{"x":{"rows":[1]}}',
    ],
)
def test_a_file_without_the_list_says_so(content: str) -> None:
    found, damage = read(content.encode())
    assert found == []
    assert damage


@pytest.mark.parametrize(
    "content", ["", " ", "null", "{}", '"rows"', '{"":[1]}', '{"rows":[1]}', '{"rows":[[1]]}']
)
def test_a_file_whose_top_level_is_no_list_says_so(content: str) -> None:
    found, damage = read(content.encode(), names=())
    assert found == []
    assert damage


@pytest.mark.parametrize(
    ("content", "found", "said"),
    [
        (b'{"rows":[1,2 3]}', [1, 2], "after array element"),
        (b'{"rows":[1]} {}', [1], "trailing garbage"),
        (b'{"rows":[1,"\xff"]}', [1], "invalid bytes in UTF8"),
        (b'{"rows":[1,' + b"9" * 5000 + b"]}", [1], "integer overflow"),
        (b'{"rows":[1,1e999]}', [1], "overflow"),
        (b"\xef\xbb\xbf{}", [], "invalid char"),
        (b"<html>", [], "invalid char"),
    ],
)
def test_damage_ends_the_reading_in_one_line_that_says_what_and_where(
    content: bytes, found: list[Any], said: str
) -> None:
    listed = content.removeprefix(b'{"rows":').replace(b"]}", b"]")
    for got, damage in (read(content), read(listed, names=())):
        assert got == found
        assert damage and said in damage and "from byte 0" in damage
        assert damage.isprintable()


def test_a_deep_nest_is_refused_at_once() -> None:
    start = time.perf_counter()
    for bracket in (b"[", b'{"rows":'):
        for prefix in (b"", b'{"rows":[1,'):
            found, damage = read(prefix + bracket * 1_000_000)
            assert found == ([1] if prefix else [])
            assert damage and "nested" in damage
    found, damage = read(b"[1," + b"[" * 1_000_000, names=())
    assert found == [1]
    assert damage and "nested" in damage
    assert time.perf_counter() - start < 5


PREFIXES = [b'{"x":"', b'{"rows":[1,"', b'{"rows":[1,{"x":"', b"", b'{"rows":[1,[']
LIST_PREFIXES = [b'["', b'[{"x":"', b"[["]


@pytest.mark.parametrize(
    ("prefix", "names"), [(each, ("rows",)) for each in PREFIXES] + [(each, ()) for each in LIST_PREFIXES]
)
def test_no_value_takes_more_memory_than_a_row_may(prefix: bytes, names: tuple[str, ...]) -> None:
    filler = b" " * 16384 if prefix == b"" else b"1," * 8192 if prefix.endswith(b"[") else b"x" * 16384
    endless = islice(repeat_after(prefix, filler), 100 * ROW_BYTES // 16384)
    tracemalloc.start()
    with pytest.raises(Unreadable, match="at most"):
        list(elements(endless, *names))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 16 * ROW_BYTES


@pytest.mark.parametrize(("prefix", "names"), [(b'{"rows":[0', ("rows",)), (b"[0", ())])
def test_a_list_of_any_length_is_read_in_bounded_memory(prefix: bytes, names: tuple[str, ...]) -> None:
    endless = repeat_after(prefix, b',{"a":[1,2]}' * 1000)
    tracemalloc.start()
    count = sum(1 for _ in islice(elements(endless, *names), 100_000))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert count == 100_000
    assert peak < 4 * ROW_BYTES


def test_only_one_element_has_to_fit_into_the_bound_not_all_of_them() -> None:
    row = "x" * 20_000  # longer than a block, so that every block ends inside an element
    content = json.dumps({"rows": [[row]] * 200}).encode()
    assert len(content) > 2 * ROW_BYTES
    assert read(content) == ([[row]] * 200, None)


def read(content: bytes, size: int = 16384, names: Sequence[str] = ("rows",)) -> tuple[list[Any], str | None]:
    found: list[Any] = []
    try:
        for _, element in elements(blocks(content, size), *names):
            found.append(element)
    except Unreadable as error:
        return found, str(error)
    return found, None


def blocks(content: bytes, size: int) -> Iterator[bytes]:
    return (content[start : start + size] for start in range(0, len(content), size))


def repeat_after(prefix: bytes, filler: bytes) -> Iterator[bytes]:
    if prefix:
        yield prefix
    while True:
        yield filler
