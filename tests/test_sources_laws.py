"""What holds for every reader, on any bytes."""

import gzip
import json
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pmd.records import KEY, Record, Rejected
from pmd.sources import READERS

# What the formats are made of reaches deeper into a reader than random bytes do.
PIECES = st.one_of(
    st.binary(max_size=8),
    st.sampled_from([b"\n", b"\r\n", b"\t", b"http://a.example/1.jpg", b"a photo", b"\xff", b"\xe2\x80\xa8"]),
    st.sampled_from([b'{"images":[', b'{"annotations":[', b'{"id":1}', b'{"image_id":1,"caption":"a"}']),
    st.sampled_from([b"[", b"]", b"{", b"}", b",", b'"', b"null", b"9" * 400, b"\xef\xbb\xbf"]),
    st.sampled_from([b"\x1f\x8b\x08", b"PK\x03\x04", b"PK\x05\x06"]),
)
FILES = st.lists(PIECES, max_size=30).map(b"".join)


@pytest.mark.parametrize("source", sorted(READERS))
@settings(max_examples=300, deadline=None, derandomize=True)
@given(content=FILES, packed=st.booleans(), cut=st.integers(0, 40))
def test_any_bytes_come_out_as_rows_counted_from_zero_without_a_gap(
    source: str, content: bytes, packed: bool, cut: int
) -> None:
    if packed:
        content = gzip.compress(content, mtime=0)
        content = content[: len(content) - cut]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "annotations")
        path.write_bytes(content)
        outcomes = read_all(source, path)
        assert outcomes == read_all(source, path)
    assert row_numbers(outcomes) == list(range(len(outcomes)))
    for outcome in outcomes:
        json.dumps(outcome, ensure_ascii=False).encode()  # all of it can be stored as UTF-8
        if isinstance(outcome, Record):
            assert KEY.match(outcome.key) and outcome.key.startswith(f"{source}-")
            assert outcome.url and all(caption.text.strip() for caption in outcome.captions)
        else:
            assert outcome.detail.isprintable() and len(outcome.detail) < 400


@pytest.mark.parametrize("source", sorted(READERS))
def test_an_empty_file_is_no_file_of_any_source(source: str, tmp_path: Path) -> None:
    path = tmp_path / "annotations"
    path.write_bytes(b"")
    assert READERS[source].recognise(path) is None


def read_all(source: str, path: Path) -> list[Record | Rejected]:
    reader = READERS[source]
    reader.recognise(path)
    return [outcome for part in reader.parts(path) for outcome in reader.read(part)]


def row_numbers(outcomes: list[Record | Rejected]) -> list[int]:
    return [
        row
        for outcome in outcomes
        for row in ([outcome.row] if isinstance(outcome, Rejected) else [c.row for c in outcome.captions])
    ]
