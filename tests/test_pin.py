"""The laws of pipelines/pin.py: annotation files are known by their bytes, and a change is refused."""

import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pipelines.job import open_job
from pipelines.pin import pin, pin_source
from pipelines.progress import Progress
from pipelines.run import Where
from pmd.errors import BadRequest, Refused
from pmd.manifest import AnnotationFile, Edition, FetchSpec, load_corpus, load_source
from tests.web import FileFault, ServedFile, Web

CC3M = "a red ball\thttp://images.example/1.jpg\n"
CC12M = "http://images.example/1.jpg\ta red ball\n"


@pytest.fixture(autouse=True)
def library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A library of our own."""
    monkeypatch.setenv("PMD_LIBRARY", str(tmp_path / "library"))
    return tmp_path / "library"


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
    assert json.loads(first["cc3m"][0])["files"][0]["format"] == "caption-url tsv"
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


# What is published is downloaded

HOST, PATH = "storage.googleapis.com", "/conceptual_12m/cc12m.tsv"


@pytest.fixture
def web() -> Iterator[Web]:
    with Web() as made:
        made.serve_file(HOST, PATH, ServedFile(CC12M.encode(), etag='"1"'))
        yield made


def fetch(web: Web) -> FetchSpec:
    return FetchSpec(
        timeout_s=5, retries=1, connect_to=dict(web.connect_to), ca_file=str(web.ca_file), user_agent="pmd"
    )


def published(monkeypatch: pytest.MonkeyPatch, body: str, *, name: str = "train") -> None:
    """Let the manifest of CC12M be one of a file that we serve."""
    source = load_source("cc12m")
    file = AnnotationFile(
        url=f"https://{HOST}{PATH}",
        mirrors=("https://mirror.example/cc12m.tsv",),
        size=len(body),
        sha256=hashlib.sha256(body.encode()).hexdigest(),
    )
    edition = Edition(name=name, about="a file", rows=(1, 1), pairs=(1, 1), file=(file,))
    monkeypatch.setattr(
        "pipelines.pin.load_source", lambda _: source.model_copy(update={"edition": (edition,)})
    )


def pin_cc12m(web: Web, *files: str | Path, accept: bool = False) -> dict[str, Any]:
    progress = Progress(quiet=True)
    return pin_source(
        "cc12m", edition="", files=map(str, files), fetch=fetch(web), accept=accept, progress=progress
    )


def test_a_published_file_is_downloaded_once_for_all_corpora(
    tmp_path: Path, library: Path, web: Web, monkeypatch: pytest.MonkeyPatch
) -> None:
    published(monkeypatch, CC12M)
    (file,) = pin_cc12m(web)["files"]
    assert file["path"] == str(library / HOST / PATH[1:]) and Path(file["path"]).read_text() == CC12M
    assert web.count(HOST) == 1
    connect = ", ".join(f'"{host}" = "{to}"' for host, to in web.connect_to.items())
    spec = f'[fetch]\nconnect_to = {{ {connect} }}\nca_file = "{web.ca_file}"\n'
    for name in ("a", "b"):
        corpus = write(tmp_path / f"{name}.toml", f'name = "{name}"\nsources = ["cc12m"]\n{spec}')
        pins = json.loads(pinned(corpus, tmp_path / name)["cc12m"][0])
        assert pins["files"] == [file]
        assert pins["expected"]["edition"] == "train" and pins["expected"]["paper"]["pairs"] == 11_000_000
    assert pin_cc12m(web)["files"] == [file]
    assert web.count(HOST) == 1


def test_a_corpus_may_name_a_file_by_its_address(tmp_path: Path, web: Web) -> None:
    connect = ", ".join(f'"{host}" = "{to}"' for host, to in web.connect_to.items())
    corpus = write(
        tmp_path / "corpus.toml",
        f'name = "a"\nsources = ["cc12m"]\n[source.cc12m]\nfiles = ["http://{HOST}{PATH}"]\n'
        f"[fetch]\nconnect_to = {{ {connect} }}\n",
    )
    pins = json.loads(pinned(corpus, tmp_path / "out")["cc12m"][0])
    assert [(file["name"], file["size"]) for file in pins["files"]] == [("cc12m.tsv", len(CC12M))]
    assert pins["expected"] == {"paper": {"pairs": 11_000_000, "words_per_caption": 17.3}}


def test_a_download_that_was_cut_goes_on_where_it_was(
    library: Path, web: Web, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = CC12M * 1000
    published(monkeypatch, text)
    web.serve_file(HOST, PATH, ServedFile(text.encode(), etag='"1"'))
    web.fault(HOST, PATH, FileFault.CUT, times=1, size=10_000)
    (file,) = pin_cc12m(web)["files"]
    assert Path(file["path"]).read_text() == text
    assert [request.header("range") for request in web.requests] == [None, "bytes=10000-"]


def test_a_file_that_changed_upstream_is_refused_with_both_hashes_until_it_is_accepted(
    library: Path, web: Web, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = CC12M.replace("red", "tan")
    published(monkeypatch, CC12M)
    web.serve_file(HOST, PATH, ServedFile(other.encode(), etag='"2"'))
    with pytest.raises(Refused) as refused:
        pin_cc12m(web)
    for text in (CC12M, other):
        assert hashlib.sha256(text.encode()).hexdigest() in str(refused.value)
    asked = web.count(HOST)
    (file,) = pin_cc12m(web, accept=True)["files"]
    assert Path(file["path"]).read_text() == other
    assert web.count(HOST) == asked, "what was refused is still there"
    assert pin_cc12m(web, accept=True)["files"] == [file]


def test_a_file_that_changed_where_nobody_publishes_its_hash_is_refused_too(
    library: Path, web: Web, monkeypatch: pytest.MonkeyPatch
) -> None:
    published(monkeypatch, CC12M)
    source = load_source("cc12m")
    edition = source.edition[0].model_copy(
        update={"file": (AnnotationFile(url=f"https://{HOST}{PATH}"),), "name": "train"}
    )
    monkeypatch.setattr(
        "pipelines.pin.load_source", lambda _: source.model_copy(update={"edition": (edition,)})
    )
    (file,) = pin_cc12m(web)["files"]
    for path in Path(file["path"]).parent.iterdir():
        path.unlink()
    web.serve_file(HOST, PATH, ServedFile(CC12M.replace("red", "tan").encode(), etag='"2"'))
    with pytest.raises(Refused, match=f"pinned {file['sha256']}, found [0-9a-f]{{64}}"):
        pin_cc12m(web)
    assert pin_cc12m(web, accept=True)["files"][0]["sha256"] != file["sha256"]


def test_files_that_are_here_already_are_pinned_where_they_lie(
    tmp_path: Path, web: Web, monkeypatch: pytest.MonkeyPatch
) -> None:
    published(monkeypatch, CC12M)
    mine = write(tmp_path / "mine" / "cc12m.tsv", CC12M)
    write(tmp_path / "mine" / "README", "not annotations")
    assert [file["path"] for file in pin_cc12m(web, mine.parent)["files"]] == [str(mine)]
    corpus = write(tmp_path / "corpus.toml", 'name = "a"\nsources = ["cc12m"]\n')
    assert json.loads(pinned(corpus, tmp_path / "out")["cc12m"][0])["files"][0]["path"] == str(mine)
    assert web.requests == []
    mine.unlink()
    with pytest.raises(BadRequest, match=r"cc12m\.tsv is gone; `pmd pin cc12m`"):
        pinned(corpus, tmp_path / "other")


def test_a_file_here_with_a_published_name_must_be_the_published_file(
    tmp_path: Path, web: Web, monkeypatch: pytest.MonkeyPatch
) -> None:
    published(monkeypatch, CC12M)
    mine = write(tmp_path / "cc12m.tsv", CC12M * 2)
    hashes = [hashlib.sha256(text.encode()).hexdigest() for text in (CC12M * 2, CC12M)]
    with pytest.raises(Refused, match=f"{hashes[0]} .* the published file's {hashes[1]}"):
        pin_cc12m(web, mine)
    assert pin_cc12m(web, mine, accept=True)["files"][0]["sha256"] == hashes[0]


def test_a_file_that_was_changed_in_the_library_is_found_out(
    library: Path, web: Web, monkeypatch: pytest.MonkeyPatch
) -> None:
    published(monkeypatch, CC12M)
    (file,) = pin_cc12m(web)["files"]
    write(Path(file["path"]), CC12M * 2)
    with pytest.raises(Refused, match=r"sha256 is .* the published file's is"):
        pin_cc12m(web)
