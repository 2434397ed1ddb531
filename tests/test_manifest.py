"""The laws of pmd/manifest.py: a corpus file decides what is built, and is told what is wrong with it."""

import json
import tomllib
from pathlib import Path
from typing import Any

import pytest

from pmd.errors import BadRequest
from pmd.manifest import (
    OPERATIONAL,
    SEMANTIC,
    Corpus,
    Section,
    SourceSpec,
    canonical_json,
    fingerprint,
    load_corpus,
    load_source,
    manifest_folder,
    parse_corpus,
)
from pmd.sources import READERS

CORPUS = {"name": "small", "sources": ["coco", "cc3m"], "source": {"cc3m": {"files": ["a.tsv"]}}}


def corpus(**changes: Any) -> Corpus:
    return parse_corpus(CORPUS | changes, where="corpus.toml")


def refusal(values: dict[str, Any]) -> str:
    with pytest.raises(BadRequest) as caught:
        parse_corpus(values, where="corpus.toml")
    return str(caught.value)


# Every section of a corpus file, by where it stands, and every key in it


def sections() -> dict[tuple[str, ...], type[Section]]:
    found: dict[tuple[str, ...], type[Section]] = {(): Corpus, ("source", "cc3m"): SourceSpec}
    for name, field in Corpus.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, Section):
            found[(name,)] = field.annotation
    return found


SECTIONS = sections()
KEYS = [(*place, key) for place, section in SECTIONS.items() for key in section.model_fields]
LEAVES = [key for key in KEYS if key not in SECTIONS and key != ("source",)]


def put(values: dict[str, Any], place: tuple[str, ...], value: Any) -> dict[str, Any]:
    """The same values with one of them changed."""
    if not place:
        return value
    inner = values.get(place[0], {})
    return values | {place[0]: put(inner, place[1:], value) if place[1:] else value}


def test_the_sections_are_all_there() -> None:
    assert {key[0] for key in KEYS} == {*Corpus.model_fields}
    assert ("fetch", "timeout_s") in LEAVES and ("source", "cc3m", "files") in LEAVES and ("seed",) in LEAVES


# What decides


@pytest.mark.parametrize("place", KEYS, ids=".".join)
def test_every_key_is_either_semantic_or_operational(place: tuple[str, ...]) -> None:
    field = SECTIONS[place[:-1]].model_fields[place[-1]]
    assert (SEMANTIC in field.metadata) != (OPERATIONAL in field.metadata)


def test_only_these_keys_change_nothing_that_is_built() -> None:
    operational = {place for place in LEAVES if place[-1] not in SECTIONS[place[:-1]].semantic_keys()}
    how = ("timeout_s", "retries", "connections", "per_host_connections", "user_agent")
    where = ("connect_to", "allow_private", "ca_file")
    assert operational == {("source", "cc3m", "files"), *(("fetch", key) for key in how + where)}


def changed(value: Any, place: tuple[str, ...]) -> Any:
    """A corpus or section with another value at a place, whether or not that is a valid one."""
    if isinstance(value, dict):
        return value | {place[0]: changed(value[place[0]], place[1:])}
    here = changed(getattr(value, place[0]), place[1:]) if place[1:] else "another"
    return value.model_copy(update={place[0]: (here,) if place == ("sources",) else here})


@pytest.mark.parametrize("place", LEAVES, ids=".".join)
def test_the_fingerprint_changes_with_every_semantic_key_and_with_no_other(place: tuple[str, ...]) -> None:
    before, after = corpus(), changed(corpus(), place)
    assert after != before
    semantic = place[-1] in SECTIONS[place[:-1]].semantic_keys()
    assert (fingerprint(after.definition()) != fingerprint(before.definition())) == semantic


def test_to_say_where_a_sources_files_are_changes_nothing() -> None:
    assert corpus().definition() == corpus(source={}).definition()
    assert corpus().definition() == corpus(source={"coco": {"files": ["b"]}, "cc3m": {}}).definition()


def test_a_default_that_is_written_out_changes_nothing() -> None:
    assert corpus(seed=0, image={"quality": 95}).definition() == corpus().definition()


def test_a_definition_is_the_same_bytes_in_any_order_and_comes_back_from_json() -> None:
    definition = corpus().definition()
    backwards = dict(reversed(definition.items()))
    assert canonical_json(backwards) == canonical_json(definition)
    assert json.loads(canonical_json(definition)) == definition
    assert canonical_json({"b": ["\N{SNOWMAN}"], "a": 1.5}) == '{"a":1.5,"b":["\N{SNOWMAN}"]}'.encode()


# What is wrong


@pytest.mark.parametrize("place", KEYS, ids=".".join)
def test_an_unknown_key_is_an_error_that_names_the_nearest_known_one(place: tuple[str, ...]) -> None:
    slip = (*place[:-1], place[-1] + place[-1][-1])
    said = refusal(put(CORPUS, slip, 1))
    assert said.startswith(f"corpus.toml: unknown key '{'.'.join(slip)}'; did you mean '{place[-1]}'?")


@pytest.mark.parametrize("place", SECTIONS, ids=".".join)
def test_a_key_that_is_near_to_none_is_answered_with_all(place: tuple[str, ...]) -> None:
    said = refusal(put(CORPUS, (*place, "zzzzzzzz"), 1))
    assert said.endswith(f"known keys: {', '.join(SECTIONS[place].model_fields)}")


def test_an_unknown_source_is_answered_with_the_nearest() -> None:
    assert "unknown key 'source.cc3n'; did you mean 'cc3m'?" in refusal(CORPUS | {"source": {"cc3n": {}}})


@pytest.mark.parametrize("place", KEYS, ids=".".join)
def test_a_value_of_the_wrong_kind_is_an_error_that_says_where(place: tuple[str, ...]) -> None:
    assert refusal(put(CORPUS, place, [[1]])).startswith(f"corpus.toml: '{'.'.join(place)}")


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (("name",), "../up"),
        (("sources",), []),
        (("sources",), ["flickr"]),
        (("shard", "images"), 0),
        (("text", "min_words"), 0),
        (("text", "detector"), "guess"),
        (("image", "resize_mode"), "stretch"),
        (("image", "image_size"), 0),
        (("image", "image_size"), 100_000),
        (("image", "quality"), 0),
        (("image", "quality"), 101),
        (("image", "min_side"), -1),
        (("image", "max_aspect"), 0.5),
        (("image", "max_aspect"), float("inf")),  # a lock with Infinity in it would not be JSON
        (("image", "max_pixels"), 0),
        (("fetch", "timeout_s"), 0),
        (("fetch", "retries"), -1),
        (("fetch", "connections"), 0),
        (("fetch", "per_host_connections"), 0),
        (("fetch", "max_bytes"), 0),
    ],
    ids=str,
)
def test_a_value_out_of_bounds_is_an_error_that_says_where(place: tuple[str, ...], value: Any) -> None:
    assert refusal(put(CORPUS, place, value)).startswith(f"corpus.toml: '{'.'.join(place)}")


def test_all_faults_of_a_file_are_told_at_once() -> None:
    said = refusal({"image": {"quality": 500}, "seeed": 1})
    for fault in ("'name' is missing", "'sources' is missing", "'image.quality': ", "did you mean 'seed'?"):
        assert fault in said


def test_a_source_is_described_only_if_it_is_listed_and_listed_only_once() -> None:
    assert "[source.cc3m] is described" in refusal(CORPUS | {"sources": ["coco"]})
    assert "twice: coco, coco" in refusal({"name": "a", "sources": ["coco", "coco"]})


# Files


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def test_relative_files_are_taken_from_the_folder_of_the_corpus_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir("/")
    path = write(
        tmp_path / "corpora" / "a.toml",
        """
        name = "a"
        sources = ["coco", "cc3m"]
        [source.coco]
        files = ["../coco", "~/coco.zip", "/data/coco.json", "https://images.example/coco.json"]
        [fetch]
        ca_file = "ca.pem"
        """,
    )
    loaded = load_corpus(path)
    assert loaded.source_spec("coco").files == (
        str(tmp_path / "coco"),
        str(tmp_path / "home" / "coco.zip"),
        "/data/coco.json",
        "https://images.example/coco.json",
    )
    assert loaded.fetch.ca_file == str(tmp_path / "corpora" / "ca.pem")
    assert loaded.source_spec("cc3m").files == ()


def test_a_file_that_is_no_toml_is_a_bad_request_that_names_it(tmp_path: Path) -> None:
    for data in (b"name = ", b"\xff\xfe", b"PK\x03\x04"):
        path = tmp_path / "a.toml"
        path.write_bytes(data)
        with pytest.raises(BadRequest, match=f"^{path}: not TOML"):
            load_corpus(path)


def test_no_such_corpus_is_a_bad_request(tmp_path: Path) -> None:
    for name in ("nowhere.toml", "nowhere", str(tmp_path), "../manifests/corpora/smoke"):
        with pytest.raises(BadRequest, match="no such file"):
            load_corpus(name)


def test_a_source_is_ours_whatever_lies_in_the_working_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "coco").write_text("somebody's annotations")
    monkeypatch.chdir(tmp_path)
    assert load_source("coco").name == "coco"
    with pytest.raises(BadRequest, match="flickr"):
        load_source("flickr")


# What we ship


def shipped(kind: str) -> list[Path]:
    return sorted((manifest_folder() / kind).glob("*.toml"))


@pytest.mark.parametrize("path", shipped("corpora"), ids=lambda path: path.stem)
def test_our_corpora_load_by_name(path: Path) -> None:
    assert load_corpus(path.stem).name == path.stem


@pytest.mark.parametrize("path", shipped("sources"), ids=lambda path: path.stem)
def test_our_sources_load_and_say_where_their_files_are(path: Path) -> None:
    source = load_source(path.stem)
    assert source.name == path.stem and source.file
    assert all(file.url.startswith(("http://", "https://")) for file in source.file)


def test_every_source_that_can_be_read_has_a_manifest_and_every_manifest_is_toml_of_a_known_kind() -> None:
    assert {*READERS} - {"table"} <= {path.stem for path in shipped("sources")}
    everything = {*manifest_folder().rglob("*.toml")}
    assert everything == {*shipped("corpora"), *shipped("sources")}
    assert all(tomllib.loads(path.read_text()) for path in everything)
