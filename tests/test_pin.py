"""The laws of pipelines/pin.py: annotation files are known by their bytes, and a change is refused."""

import os
from pathlib import Path

import pytest

from pipelines.job import open_job
from pipelines.pin import pin
from pipelines.progress import Progress
from pipelines.run import Where
from pmd.errors import BadRequest, Refused
from pmd.manifest import load_corpus

CC3M = "a red ball\thttp://images.example/1.jpg\n"
CC12M = "http://images.example/1.jpg\ta red ball\n"


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def corpus(folder: Path, *, cc3m: str = CC3M, cc12m: str = CC12M) -> Path:
    """A corpus file of two sources beside its annotation files."""
    write(folder / "cc3m.tsv", cc3m)
    write(folder / "many" / "cc12m.tsv", cc12m)
    write(folder / "many" / "README", "not annotations")
    files = '[source.cc3m]\nfiles = ["cc3m.tsv"]\n[source.cc12m]\nfiles = ["many"]\n'
    return write(folder / "corpus.toml", f'name = "a"\nsources = ["cc12m", "cc3m"]\n{files}')


def pinned(file: Path, out: Path) -> dict[str, tuple[bytes, int]]:
    """Pin, and return each pin's bytes and when it was written."""
    with open_job(
        load_corpus(file), out=str(out), where=Where(inline=True), progress=Progress(quiet=True)
    ) as job:
        pin(job)
    return pins(out)


def pins(out: Path) -> dict[str, tuple[bytes, int]]:
    return {
        path.stem: (path.read_bytes(), path.stat().st_mtime_ns) for path in sorted((out / "pin").iterdir())
    }


def test_pinned_files_that_stay_the_same_are_not_pinned_again(tmp_path: Path) -> None:
    file, out = corpus(tmp_path / "in"), tmp_path / "out"
    first = pinned(file, out)
    assert [*first] == ["cc12m", "cc3m"]
    assert pinned(file, out) == first
    os.utime(tmp_path / "in" / "cc3m.tsv", (1, 1))
    assert pinned(file, out) == first, "touched, but the same"


def test_a_pin_follows_files_that_have_moved(tmp_path: Path) -> None:
    out = tmp_path / "out"
    pinned(corpus(tmp_path / "in"), out)
    moved = pinned(corpus(tmp_path / "elsewhere"), out)
    assert all(b"elsewhere" in data for data, _ in moved.values())


@pytest.mark.parametrize("source", ["cc3m", "cc12m"])
def test_a_changed_file_is_refused_and_nothing_is_written(tmp_path: Path, source: str) -> None:
    out = tmp_path / "out"
    first = pinned(corpus(tmp_path / "in"), out)
    changed = corpus(tmp_path / "elsewhere", **{source: {"cc3m": CC3M, "cc12m": CC12M}[source] * 2})
    with pytest.raises(Refused, match=f"the annotation files of {source} are not those"):
        pinned(changed, out)
    assert pins(out) == first


def test_a_file_more_or_less_is_a_change(tmp_path: Path) -> None:
    file, out = corpus(tmp_path / "in"), tmp_path / "out"
    pinned(file, out)
    second = write(tmp_path / "in" / "many" / "second.tsv", CC12M * 3)
    with pytest.raises(Refused, match=r"second\.tsv: pinned not at all"):
        pinned(file, out)
    second.unlink()
    (tmp_path / "in" / "many" / "cc12m.tsv").unlink()
    with pytest.raises(BadRequest, match="none of its 1 files holds cc12m annotations"):
        pinned(file, out)


def test_a_file_of_another_source_is_a_bad_request(tmp_path: Path) -> None:
    file = corpus(tmp_path / "in", cc3m=CC12M)
    with pytest.raises(BadRequest, match=r"cc3m\.tsv: its content is not that of a cc3m annotation file"):
        pinned(file, tmp_path / "out")
