"""The laws of pipelines/cli.py for sources: `pmd sources` tells what is published and what is here, `pmd pin`
of a source is for all corpora, and a line that mixes up a source and a corpus is answered with the right one.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from pipelines.cli import run
from pmd.manifest import load_source

NINE = ["cc12m", "cc3m", "coco", "localized_narratives", "redcaps", "sbu", "visual_genome", "wit", "yfcc100m"]
CC12M = "http://images.example/1.jpg\ta red ball\n"


@pytest.fixture(autouse=True)
def library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A library of our own; and a terminal wide enough for any table."""
    monkeypatch.setenv("PMD_LIBRARY", str(tmp_path / "library"))
    monkeypatch.setenv("COLUMNS", "200")
    return tmp_path / "library"


@pytest.fixture
def pmd(capsys: pytest.CaptureFixture[str]) -> Any:
    """Runs a command line in this process; returns what it printed, or the error where one is expected."""

    def call(*arguments: str | Path, code: int = 0) -> str:
        done = run([*map(str, arguments)])
        said = capsys.readouterr()
        assert done == code, f"exit {done}, not {code}\n{said.out}\n{said.err}"
        return " ".join(said.err.split()) if code else said.out

    return call


@pytest.fixture
def annotations(tmp_path: Path) -> Path:
    path = tmp_path / "mine.tsv"
    path.write_text(CC12M)
    return path


def test_all_nine_sources_are_told_with_terms_editions_and_no_pins(pmd: Any) -> None:
    told = json.loads(pmd("sources", "--json"))
    assert told["ok"] and [*told["sources"]] == NINE
    for name, source in told["sources"].items():
        assert source["name"] == name and source["license"] and source["image_license"]
        assert [edition["name"] for edition in source["edition"]]
        assert all(edition["file"] and edition["rows"] for edition in source["edition"])
        assert source["pinned"] is None
    table = pmd("sources")
    for name in NINE:
        assert name in table
        for edition in load_source(name).edition:
            assert edition.name in table
    assert " yes " not in table


def test_a_source_that_is_pinned_is_told_as_such_from_then_on(
    pmd: Any, annotations: Path, library: Path
) -> None:
    assert "not pinned here: `pmd pin cc12m`" in pmd("sources", "cc12m")
    digest = hashlib.sha256(CC12M.encode()).hexdigest()
    printed = pmd("pin", "cc12m", "--files", annotations)
    assert printed.split() == [digest, str(len(CC12M)), str(annotations)]
    said = pmd("sources", "cc12m")
    assert "not pinned" not in said
    assert f"pinned here: edition train\n    {annotations}  {len(CC12M)} bytes  {digest}" in said
    assert pmd("sources").count(" yes ") == 1
    pins = {
        name: source["pinned"] for name, source in json.loads(pmd("sources", "--json"))["sources"].items()
    }
    assert pins.pop("cc12m")["files"][0]["sha256"] == digest
    assert {*pins.values()} == {None}
    assert [path.name for path in (library / "pins").iterdir()] == ["cc12m.json"]


def test_a_pin_printed_as_json_is_the_pin_that_is_kept(pmd: Any, annotations: Path) -> None:
    made = json.loads(pmd("pin", "cc12m", "--files", annotations, "--json"))
    assert made.pop("ok") is True
    assert json.loads(pmd("sources", "cc12m", "--json"))["sources"]["cc12m"]["pinned"] == made


def test_a_file_with_a_published_name_that_is_not_it_is_refused_until_it_is_accepted(
    pmd: Any, annotations: Path
) -> None:
    named = annotations.rename(annotations.with_name("cc12m.tsv"))
    error = pmd("pin", "cc12m", "--files", named, code=3)
    assert "`pmd pin cc12m --accept`" in error
    assert "not pinned here" in pmd("sources", "cc12m")
    pmd("pin", "cc12m", "--files", named, "--accept")
    assert str(named) in pmd("sources", "cc12m")


def test_a_pinned_source_needs_no_files_in_a_corpus_file(pmd: Any, annotations: Path, tmp_path: Path) -> None:
    pmd("pin", "cc12m", "--files", annotations)
    corpus = tmp_path / "corpus.toml"
    corpus.write_text('name = "a"\nsources = ["cc12m"]\n')
    told = json.loads(pmd("pin", corpus, "--out", tmp_path / "out", "--json"))
    assert told == {"ok": True, "requests": 0, "files_written": 2}, "corpus.json and the pin"
    pins = json.loads((tmp_path / "out" / "pin" / "cc12m.json").read_text())
    assert [file["path"] for file in pins["files"]] == [str(annotations)]


def test_a_corpus_without_its_output_is_answered_with_the_line_that_pins_it(pmd: Any, tmp_path: Path) -> None:
    corpus = tmp_path / "corpus.toml"
    corpus.write_text('name = "a"\nsources = ["cc12m"]\n')
    assert f"pmd pin {corpus} --out DIR" in pmd("pin", corpus, code=2)


@pytest.mark.parametrize(
    "options", [("--files", "a.tsv"), ("--edition", "train"), ("--accept",), ("--fetch", "b.toml")]
)
def test_what_goes_with_a_source_is_not_taken_for_a_corpus(
    options: tuple[str, ...], pmd: Any, tmp_path: Path
) -> None:
    corpus = tmp_path / "corpus.toml"
    corpus.write_text('name = "a"\nsources = ["cc12m"]\n')
    error = pmd("pin", corpus, "--out", tmp_path / "out", *options, code=2)
    assert options[0] in error and "go with a source" in error
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("options", [("--out", "out"), ("--only", "cc12m"), ("--limit", "1")])
def test_what_goes_with_a_corpus_is_not_taken_for_a_source(
    options: tuple[str, ...], pmd: Any, annotations: Path
) -> None:
    error = pmd("pin", "cc12m", "--files", annotations, *options, code=2)
    assert options[0] in error and "cc12m" in error
    assert "not pinned here" in pmd("sources", "cc12m")


def test_a_source_that_there_is_not_is_a_bad_request(pmd: Any) -> None:
    for line in (("sources", "imagenet"), ("pin", "imagenet")):
        assert "imagenet" in pmd(*line, code=2)


def test_an_edition_that_there_is_not_is_answered_with_those_that_there_are(
    pmd: Any, annotations: Path
) -> None:
    error = pmd("pin", "coco", "--edition", "2077", "--files", annotations, code=2)
    assert "2077" in error and all(edition.name in error for edition in load_source("coco").edition)
