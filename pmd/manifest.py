"""What we want: corpus files and source files, read, checked and fingerprinted.

    manifests/corpora/smoke.toml   a corpus: which sources, which rules         -> Corpus
    manifests/sources/cc3m.toml    a source: its files, licence, expected rows  -> Source

Every corpus key is semantic (it decides which bytes come out) or operational (how fast, where from). The
semantic ones make the fingerprint that every finished file carries, so an output is never half one definition
and half another.
"""

import difflib
import hashlib
import json
import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from pmd.errors import BadRequest

SourceName = Literal[
    "coco",
    "sbu",
    "localized_narratives",
    "cc3m",
    "visual_genome",
    "wit",
    "cc12m",
    "redcaps",
    "yfcc100m",
    "table",
]

# A key's class travels with its type; tests check that every key has one.
SEMANTIC, OPERATIONAL = "semantic", "operational"


class Section(BaseModel):
    """A table of a corpus file. Frozen; an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    @classmethod
    def semantic_keys(cls) -> list[str]:
        return [name for name, field in cls.model_fields.items() if SEMANTIC in field.metadata]


class SourceSpec(Section):
    """[source.NAME]: where this source's annotation files are, and its own rules."""

    # What the files hold decides, not where they lie: their hashes are pinned, the paths are free to change.
    files: Annotated[tuple[str, ...], OPERATIONAL] = ()


class ShardSpec(Section):
    """[shard]"""

    # Images planned for a shard; those the web has lost are missing from it.
    images: Annotated[int, SEMANTIC, Field(gt=0)] = 10_000


class TextSpec(Section):
    """[text]: which captions are kept, after cleaning."""

    # Words are what white space separates.
    min_words: Annotated[int, SEMANTIC, Field(ge=1)] = 1
    max_chars: Annotated[int, SEMANTIC, Field(ge=1)] = 10_000
    # ISO 639-1 codes. Empty: any language, and nothing is detected.
    languages: Annotated[tuple[str, ...], SEMANTIC] = ()
    detector: Annotated[Literal["langdetect"], SEMANTIC] = "langdetect"


class ImageSpec(Section):
    """[image]: how a picture is stored, and which pictures are kept."""

    resize_mode: Annotated[Literal["no", "keep_ratio", "keep_ratio_largest"], SEMANTIC] = "keep_ratio"
    # px: the shorter side (keep_ratio) or the longer one (keep_ratio_largest).
    image_size: Annotated[int, SEMANTIC, Field(ge=1, le=16_384)] = 256
    only_if_bigger: Annotated[bool, SEMANTIC] = True
    # Of the stored JPEG.
    quality: Annotated[int, SEMANTIC, Field(ge=1, le=100)] = 95
    # The last three are of the served image. px of its shorter side; less is dropped.
    min_side: Annotated[int, SEMANTIC, Field(ge=0)] = 0
    # Longer side over shorter side; more is dropped.
    max_aspect: Annotated[float, SEMANTIC, Field(ge=1, allow_inf_nan=False)] = 20.0
    # Read from its header: an image of more is never decoded.
    max_pixels: Annotated[int, SEMANTIC, Field(ge=1)] = 64_000_000


class FetchSpec(Section):
    """[fetch]: how the web is asked."""

    # One try at one image: name, connection, every redirect, last byte.
    timeout_s: Annotated[float, OPERATIONAL, Field(gt=0)] = 30.0
    # More tries after a transient failure.
    retries: Annotated[int, OPERATIONAL, Field(ge=0)] = 2
    # Open at a time, in each worker; and of these, to one host.
    connections: Annotated[int, OPERATIONAL, Field(ge=1)] = 64
    per_host_connections: Annotated[int, OPERATIONAL, Field(ge=1)] = 8
    user_agent: Annotated[str, OPERATIONAL] = "pmd/0.1 (image-text corpus builder)"
    # host, host:port, * or *:port -> address:port, as curl --connect-to.
    connect_to: Annotated[dict[str, str], OPERATIONAL] = {}
    # Networks ("10.0.0.0/8") that may be connected to although they are not public.
    allow_private: Annotated[tuple[str, ...], OPERATIONAL] = ()
    # PEM; instead of the system's certificate authorities.
    ca_file: Annotated[str | None, OPERATIONAL] = None
    # Of one image as served.
    max_bytes: Annotated[int, SEMANTIC, Field(gt=0)] = 20_000_000


class Corpus(Section):
    """A corpus file, resolved."""

    name: Annotated[str, SEMANTIC, Field(pattern=r"^[a-z0-9][a-z0-9_-]*$")]
    sources: Annotated[tuple[SourceName, ...], SEMANTIC, Field(min_length=1)]
    seed: Annotated[int, SEMANTIC] = 0
    source: Annotated[dict[SourceName, SourceSpec], SEMANTIC] = {}
    shard: Annotated[ShardSpec, SEMANTIC] = ShardSpec()
    text: Annotated[TextSpec, SEMANTIC] = TextSpec()
    image: Annotated[ImageSpec, SEMANTIC] = ImageSpec()
    fetch: Annotated[FetchSpec, SEMANTIC] = FetchSpec()

    def source_spec(self, name: str) -> SourceSpec:
        """[source.NAME], or its defaults."""
        return next((spec for source, spec in self.source.items() if source == name), SourceSpec())

    def definition(self) -> dict[str, Any]:
        """The semantic keys alone, as plain JSON values: what the fingerprint is made of."""
        # Each source's rules, described or not: to say where a source's files are changes nothing.
        rules = {name: _semantic(self.source_spec(name)) for name in self.sources}
        return _semantic(self) | {"source": rules}


def _semantic(value: Any) -> Any:
    if isinstance(value, Section):
        return {name: _semantic(getattr(value, name)) for name in value.semantic_keys()}
    if isinstance(value, dict):
        return {name: _semantic(item) for name, item in sorted(value.items())}
    return list(value) if isinstance(value, tuple) else value


def canonical_json(value: Any) -> bytes:
    """The one way this project writes JSON that is hashed: sorted keys, no spaces, UTF-8."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def fingerprint(value: Any) -> str:
    """sha256 over the canonical JSON of a definition."""
    return hashlib.sha256(canonical_json(value)).hexdigest()


def load_corpus(path: str | Path) -> Corpus:
    """Read a corpus file (TOML), or one of ours by its name ("smoke").

    Relative `files` and `ca_file` are taken from the folder of the corpus file. Raises BadRequest with every
    fault found.
    """
    file = _corpus_file(str(path))
    corpus = parse_corpus(_read_toml(file), where=str(file))
    at = file.parent
    sources = {
        name: spec.model_copy(update={"files": tuple(_from(at, entry) for entry in spec.files)})
        for name, spec in corpus.source.items()
    }
    fetch = corpus.fetch
    if fetch.ca_file:
        fetch = fetch.model_copy(update={"ca_file": _from(at, fetch.ca_file)})
    return corpus.model_copy(update={"source": sources, "fetch": fetch})


def parse_corpus(values: dict[str, Any], *, where: str) -> Corpus:
    try:
        corpus = Corpus.model_validate(values)
    except ValidationError as error:
        raise BadRequest(f"{where}: " + "; ".join(_fault(Corpus, item) for item in error.errors())) from None
    strangers = [name for name in corpus.source if name not in corpus.sources]
    if strangers:
        raise BadRequest(f"{where}: [source.{strangers[0]}] is described, but sources does not list it")
    if len(set(corpus.sources)) != len(corpus.sources):
        raise BadRequest(f"{where}: sources names a source twice: {', '.join(corpus.sources)}")
    return corpus


def _corpus_file(name: str) -> Path:
    """The file behind a path, or behind the bare name of one that we ship."""
    path = Path(name)
    if path.is_file():
        return path
    shipped = manifest_folder() / "corpora"
    if path.suffix == "" and len(path.parts) == 1 and (shipped / f"{name}.toml").is_file():
        return shipped / f"{name}.toml"
    ours = sorted(file.stem for file in shipped.glob("*.toml"))
    raise BadRequest(
        f"{name}: no such file, and no corpus of ours has that name; they are: {', '.join(ours) or 'none'}"
    )


def manifest_folder() -> Path:
    """manifests/ of the checkout, or its copy inside an installed wheel."""
    inside = Path(__file__).parent / "manifests"
    return inside if inside.is_dir() else Path(__file__).parents[1] / "manifests"


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise BadRequest(f"{path}: not TOML: {error}") from None


def _from(folder: Path, entry: str) -> str:
    return entry if "://" in entry else str((folder / Path(entry).expanduser()).resolve())


def _fault(model: type[Section], item: Any) -> str:
    """One pydantic error as a sentence: where, what, and the nearest known key."""
    place = [str(part) for part in item["loc"] if part != "[key]"]
    where = ".".join(place)
    if item["type"] == "extra_forbidden" or item["loc"][-1] == "[key]":
        known = _keys_at(model, place[:-1])
        near = difflib.get_close_matches(place[-1], known, n=1, cutoff=0.4)
        hint = f"did you mean {near[0]!r}?" if near else f"known keys: {', '.join(known)}"
        return f"unknown key {where!r}; {hint}"
    if item["type"] == "missing":
        return f"{where!r} is missing"
    return f"{where!r}: {item['msg'].lower()}, not {item['input']!r}"


def _keys_at(model: type[Section], place: list[str]) -> list[str]:
    if model is Corpus and place[:1] == ["source"]:
        return [*SourceSpec.model_fields] if place[1:] else [*get_args(SourceName)]
    if model is Source and place[:1] == ["file"]:
        return [*AnnotationFile.model_fields]
    for part in place:
        annotation = model.model_fields[part].annotation
        assert isinstance(annotation, type) and issubclass(annotation, Section), part
        model = annotation
    return [*model.model_fields]


class AnnotationFile(Section):
    """[[file]] of a source: one published annotation file."""

    url: str
    size: int | None = None  # bytes
    sha256: str | None = None  # None where the publisher gives none and nobody has pinned it


class Source(Section):
    """manifests/sources/NAME.toml: what is published, under which terms, and what to expect of it."""

    name: SourceName
    title: str
    homepage: str
    license: str  # of the annotations: SPDX id, or the publisher's words where there is none
    image_license: str  # where each image's own licence is found, in a sentence
    rows: int | None = None  # annotation rows published
    words_per_caption: float | None = None  # mean, white-space separated
    cite: str = ""
    file: tuple[AnnotationFile, ...] = ()


def load_source(name: str) -> Source:
    """The manifest of one of the nine sources."""
    file = manifest_folder() / "sources" / f"{name}.toml"
    if not file.is_file():
        raise BadRequest(f"{name}: we have no {file}")
    try:
        return Source.model_validate(_read_toml(file))
    except ValidationError as error:
        raise BadRequest(f"{file}: " + "; ".join(_fault(Source, item) for item in error.errors())) from None
