"""What holds for every reader, on any bytes."""

import bz2
import gzip
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pmd.sources import READERS, Incomplete
from tests.reading import check_laws, read_parts

# What the formats are made of reaches deeper into a reader than random bytes do.
PIECES = st.one_of(
    st.binary(max_size=8),
    st.sampled_from([b"\n", b"\r\n", b"\t", b"http://a.example/1.jpg", b"a photo", b"\xff", b"\xe2\x80\xa8"]),
    st.sampled_from([b'{"images":[', b'{"annotations":[', b'{"id":1}', b'{"image_id":1,"caption":"a"}']),
    st.sampled_from([b"[", b"]", b"{", b"}", b",", b'"', b"null", b"9" * 400, b"\xef\xbb\xbf"]),
    st.sampled_from([b"\x1f\x8b\x08", b"PK\x03\x04", b"PK\x05\x06", b"BZh9", b"\x28\xb5\x2f\xfd", b"PAR1"]),
)
FILES = st.lists(PIECES, max_size=30).map(b"".join)


@pytest.mark.parametrize("source", sorted(READERS))
@settings(max_examples=300, deadline=None, derandomize=True)
@given(content=FILES, packing=st.sampled_from(["plain", "gz", "bz2"]), cut=st.integers(0, 40))
def test_any_bytes_come_out_as_rows_counted_from_zero_without_a_gap(
    source: str, content: bytes, packing: str, cut: int
) -> None:
    if packing != "plain":
        content = gzip.compress(content, mtime=0) if packing == "gz" else bz2.compress(content)
        content = content[: len(content) - cut]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "annotations")
        path.write_bytes(content)
        READERS[source].recognise(path)
        try:
            parts = read_parts(source, path)
        except Incomplete:
            return
        assert parts == read_parts(source, path)
    for outcomes in parts:
        check_laws(outcomes, source)


@pytest.mark.parametrize("source", sorted(READERS))
def test_an_empty_file_is_no_file_of_any_source(source: str, tmp_path: Path) -> None:
    path = tmp_path / "annotations"
    path.write_bytes(b"")
    assert READERS[source].recognise(path) is None
