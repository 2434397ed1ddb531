"""The laws of pmd/manifest.py: a corpus file decides what is built, and is told what is wrong with it."""

import json
import re
import tomllib
from pathlib import Path
from typing import Any, get_args

import pytest

from pmd.errors import BadRequest
from pmd.manifest import (
    OPERATIONAL,
    SEMANTIC,
    Corpus,
    Section,
    SourceName,
    canonical_json,
    fingerprint,
    load_corpus,
    load_source,
    manifest_folder,
    parse_corpus,
)
from pmd.sources import READERS

CORPUS = {
    "name": "small",
    "sources": [*get_args(SourceName)],
    "source": {name: {"files": ["a.tsv"], "text": {}} for name in get_args(SourceName)},
}


def corpus(**changes: Any) -> Corpus:
    return parse_corpus(CORPUS | changes, where="corpus.toml")


def refusal(values: dict[str, Any]) -> str:
    with pytest.raises(BadRequest) as caught:
        parse_corpus(values, where="corpus.toml")
    return str(caught.value)


# Every section of a corpus file, by where it stands, and every key in it


def sections() -> dict[tuple[str, ...], type[Section]]:
    found: dict[tuple[str, ...], type[Section]] = {(): Corpus}
    for place, section in found.copy().items():
        found |= _inside(section, place)
    return found


def _inside(section: type[Section], at: tuple[str, ...]) -> dict[tuple[str, ...], type[Section]]:
    found: dict[tuple[str, ...], type[Section]] = {}
    for name, field in section.model_fields.items():
        for kind in (field.annotation, *get_args(field.annotation)):
            if isinstance(kind, type) and issubclass(kind, Section):
                found |= {(*at, name): kind, **_inside(kind, (*at, name))}
    return found


SECTIONS = sections()
# What stands under a name of one's own, as [fetch.hosts."HOST"], has its tests below.
HOSTS = ("fetch", "hosts")
SECTIONS.pop(HOSTS)
KEYS = [(*place, key) for place, section in SECTIONS.items() for key in section.model_fields]
LEAVES = [key for key in KEYS if key not in SECTIONS]


def put(values: dict[str, Any], place: tuple[str, ...], value: Any) -> dict[str, Any]:
    """The same values with one of them changed."""
    if not place:
        return value
    inner = values.get(place[0], {})
    return values | {place[0]: put(inner, place[1:], value) if place[1:] else value}


def test_the_sections_are_all_there() -> None:
    assert {key[0] for key in KEYS} == {*Corpus.model_fields}
    assert {key[1] for key in KEYS if key[0] == "source" and key[1:]} == {*get_args(SourceName)}
    assert ("fetch", "timeout_s") in LEAVES and ("source", "cc3m", "files") in LEAVES and ("seed",) in LEAVES


# What decides


@pytest.mark.parametrize("place", KEYS, ids=".".join)
def test_every_key_is_either_semantic_or_operational(place: tuple[str, ...]) -> None:
    field = SECTIONS[place[:-1]].model_fields[place[-1]]
    told = (SEMANTIC in field.metadata) + (OPERATIONAL in field.metadata)
    of_reader = place[0] == "source" and len(place) == 3 and place[-1] in READERS[place[1]].Rules.model_fields
    assert told == (0 if of_reader else 1)


def test_only_these_keys_change_nothing_that_is_built() -> None:
    operational = {place for place in LEAVES if place[-1] not in SECTIONS[place[:-1]].semantic_keys()}
    how = ("timeout_s", "min_bytes_per_s", "retries", "connections", "patience_s", "outage_s")
    bears = ("per_host_connections", "per_host_rate", "per_address_connections", "hosts")
    who = ("user_agent", "contact")
    where = ("connect_to", "allow_private", "ports", "ca_file", "engine_python")
    of_source = ("files", "edition", "archive")
    of_sources = {("source", name, key) for name in get_args(SourceName) for key in of_source}
    of_text = {(*place, "fasttext_model") for place in SECTIONS if place[-1:] == ("text",)}
    decontaminate = {("decontaminate", "splits"), ("decontaminate", "lists")}
    of_fetch = {("fetch", key) for key in how + bears + who + where}
    assert operational == of_sources | of_text | decontaminate | of_fetch


def changed(value: Any, place: tuple[str, ...]) -> Any:
    """A corpus or section with another value at a place, whether or not that is a valid one."""
    if isinstance(value, dict):
        return value | {place[0]: changed(value[place[0]], place[1:])}
    here = changed(getattr(value, place[0]), place[1:]) if place[1:] else "another"
    return value.model_copy(update={place[0]: ("coco",) if place == ("sources",) else here})


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


def test_a_host_has_a_section_under_its_name() -> None:
    known = corpus(fetch={"hosts": {"a.example": {"connections": 8}, "*.b.example": {"rate": 0.5}}})
    assert known.fetch.hosts["a.example"].connections == 8
    assert known.definition() == corpus().definition()
    said = refusal(put(CORPUS, (*HOSTS, "a.example"), {"connection": 8}))
    assert said == "corpus.toml: unknown key 'fetch.hosts.a.example.connection'; did you mean 'connections'?"


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


def test_to_compare_across_sources_what_is_not_compared_is_an_error() -> None:
    assert "needs dedup.exact or dedup.perceptual" in refusal(CORPUS | {"dedup": {"across_sources": "drop"}})
    corpus(dedup={"across_sources": "drop", "perceptual": "report"})


def test_all_faults_of_a_file_are_told_at_once() -> None:
    said = refusal({"image": {"quality": 500}, "seeed": 1})
    for fault in ("'name' is missing", "'sources' is missing", "'image.quality': ", "did you mean 'seed'?"):
        assert fault in said


def test_a_source_is_described_only_if_it_is_listed_and_listed_only_once() -> None:
    assert "[source.cc3m] is described" in refusal({"name": "a", "sources": ["coco"], "source": {"cc3m": {}}})
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
    assert source.name == path.stem
    files = [file for edition in source.edition for file in edition.file]
    addresses = [address for file in (*files, *source.archive) for address in (file.url, *file.mirrors)]
    assert all(address.startswith(("http://", "https://")) for address in addresses)
    assert all(re.fullmatch("[0-9a-f]{64}", file.sha256) for file in files if file.sha256)


@pytest.mark.parametrize("path", shipped("sources"), ids=lambda path: path.stem)
def test_what_we_expect_of_a_source_is_a_range_with_its_evidence(path: Path) -> None:
    source = load_source(path.stem)
    for edition in source.edition:
        assert edition.file and edition.evidence, edition.name
        for span in (edition.rows, edition.pairs, edition.words_per_caption):
            assert span is None or 0 < span[0] <= span[1], edition.name
    assert len({edition.name for edition in source.edition}) == len(source.edition)


def test_the_papers_pairs_are_seventy_million_of_twelve_words() -> None:
    papers = [load_source(path.stem).paper for path in shipped("sources")]
    pairs = sum(paper.pairs for paper in papers)
    assert pairs == 70_000_000
    words = sum(paper.pairs * paper.words_per_caption for paper in papers) / pairs
    assert 12.0 < words < 12.3


def test_an_edition_that_is_not_published_is_a_bad_request_that_names_those_that_are() -> None:
    source = load_source("coco")
    assert source.edition_named("") == source.edition[0] == source.edition_named("karpathy")
    with pytest.raises(BadRequest, match=r"\[source.coco\] edition: .*'2020'.* karpathy, 2017, 2014"):
        source.edition_named("2020")


def test_a_source_takes_the_text_rules_of_the_corpus_but_for_its_own() -> None:
    made = corpus(text={"min_words": 2, "max_chars": 300}, source={"cc3m": {"text": {"min_words": 5}}})
    assert (made.text_spec("cc3m").min_words, made.text_spec("cc3m").max_chars) == (5, 300)
    assert made.text_spec("coco") == made.text


def test_every_source_that_can_be_read_has_a_manifest_and_every_manifest_is_toml_of_a_known_kind() -> None:
    assert {*READERS} - {"table"} <= {path.stem for path in shipped("sources")}
    everything = {*manifest_folder().rglob("*.toml")}
    others = {manifest_folder() / "placeholders.toml", manifest_folder() / "consent.toml"}  # pmd/fetch
    assert everything == {*shipped("corpora"), *shipped("sources")} | others
    assert all(tomllib.loads(path.read_text()) for path in everything)
