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
from typing import Annotated, Any, Literal, NamedTuple, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator

from pmd.errors import BadRequest
from pmd.sources import coco, localized_narratives, redcaps, table, wit, yfcc100m

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
        # A reader's Rules say nothing of classes: all that they hold is semantic.
        return [name for name, field in cls.model_fields.items() if OPERATIONAL not in field.metadata]


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
    detector: Annotated[Literal["langdetect", "py3langid", "lingua", "fasttext", "cascade"], SEMANTIC] = (
        "langdetect"
    )
    # Of cascade: from this probability on py3langid's answer is taken; below it langdetect is asked.
    sure: Annotated[float, SEMANTIC, Field(ge=0, le=1)] = 0.3
    # Of fasttext: its model, if not the lid.176.ftz that the extra `language` brings. What it holds decides,
    # and is hashed; not where it lies.
    fasttext_model: Annotated[str | None, OPERATIONAL] = None


class SourceSpec(Section):
    """[source.NAME]: where this source's annotation files are; and what is decided for it alone."""

    # What the files hold decides, not where they lie: their hashes are pinned, the paths are free to change.
    # Local files and folders, or URLs. Empty: those that the source's manifest names.
    files: Annotated[tuple[str, ...], OPERATIONAL] = ()
    # Which of the published editions, where the manifest names several. Empty: its first.
    edition: Annotated[str, OPERATIONAL] = ""
    # Zips and tars of the images, local paths or URLs: an image that is in one of them is not fetched.
    archive: Annotated[tuple[str, ...], OPERATIONAL] = ()
    # The keys of [text] that are otherwise for this source.
    text: Annotated[TextSpec | None, SEMANTIC] = None


class CocoSpec(SourceSpec, coco.Rules):
    """[source.coco]"""


class LocalizedNarrativesSpec(SourceSpec, localized_narratives.Rules):
    """[source.localized_narratives]"""


class WitSpec(SourceSpec, wit.Rules):
    """[source.wit]"""


class RedcapsSpec(SourceSpec, redcaps.Rules):
    """[source.redcaps]"""


class Yfcc100mSpec(SourceSpec, yfcc100m.Rules):
    """[source.yfcc100m]"""


class TableSpec(SourceSpec, table.Rules):
    """[source.table]"""


class Sources(Section):
    """[source]"""

    coco: Annotated[CocoSpec, SEMANTIC] = CocoSpec()
    sbu: Annotated[SourceSpec, SEMANTIC] = SourceSpec()
    localized_narratives: Annotated[LocalizedNarrativesSpec, SEMANTIC] = LocalizedNarrativesSpec()
    cc3m: Annotated[SourceSpec, SEMANTIC] = SourceSpec()
    visual_genome: Annotated[SourceSpec, SEMANTIC] = SourceSpec()
    wit: Annotated[WitSpec, SEMANTIC] = WitSpec()
    cc12m: Annotated[SourceSpec, SEMANTIC] = SourceSpec()
    redcaps: Annotated[RedcapsSpec, SEMANTIC] = RedcapsSpec()
    yfcc100m: Annotated[Yfcc100mSpec, SEMANTIC] = Yfcc100mSpec()
    table: Annotated[TableSpec, SEMANTIC] = TableSpec()


class ImageSpec(Section):
    """[image]: how a picture is stored, and which are kept. As in img2dataset, where it has the key."""

    # keep_ratio: the shorter side becomes image_size; keep_ratio_largest: the longer one. center_crop:
    # keep_ratio, then the middle square; border: keep_ratio_largest, then white up to the square.
    resize_mode: Annotated[
        Literal["no", "border", "keep_ratio", "keep_ratio_largest", "center_crop"], SEMANTIC
    ] = "keep_ratio"
    # px: of the stored picture's shorter or longer side, as resize_mode says.
    image_size: Annotated[int, SEMANTIC, Field(ge=1, le=16_384)] = 256
    # An image that is not larger stays as it is: not enlarged, nor given a border.
    only_if_bigger: Annotated[bool, SEMANTIC] = True
    # The filters, as Pillow has them: when shrinking, all but nearest take every pixel into account, of which
    # OpenCV's linear, cubic and lanczos leave some out.
    downscale_interpolation: Annotated[Literal["nearest", "linear", "cubic", "area", "lanczos"], SEMANTIC] = (
        "area"
    )
    upscale_interpolation: Annotated[Literal["nearest", "linear", "cubic", "lanczos"], SEMANTIC] = "lanczos"
    # Of the stored picture, and the ending of its name; one for the whole corpus.
    encode_format: Annotated[Literal["jpg", "png", "webp"], SEMANTIC] = "jpg"
    # jpg: 1 to 100. webp: 1 to 100, 101 without loss. png, which never loses: 0 (fast) to 9 (small).
    quality: Annotated[int, SEMANTIC, Field(ge=0, le=101, validate_default=True)] = 95
    # A served JPEG that is upright, in sRGB and of the right size keeps its own scans, without metadata.
    skip_reencode: Annotated[bool, SEMANTIC] = False
    # The last three are of the served image. px of its shorter side; less is dropped.
    min_side: Annotated[int, SEMANTIC, Field(ge=0)] = 0
    # Longer side over shorter side; more is dropped.
    max_aspect: Annotated[float, SEMANTIC, Field(ge=1, allow_inf_nan=False)] = 20.0
    # Read from its header: an image of more is never decoded. img2dataset's max_image_area.
    max_pixels: Annotated[int, SEMANTIC, Field(ge=1)] = 64_000_000

    @field_validator("quality")
    @classmethod
    def _in_range_of_the_format(cls, quality: int, others: ValidationInfo) -> int:
        form = others.data.get("encode_format", "jpg")
        least, most = {"jpg": (1, 100), "png": (0, 9), "webp": (1, 101)}[form]
        if not least <= quality <= most:
            raise ValueError(f"{form} takes {least} to {most}")
        return quality


Treatment = Literal["off", "report", "drop"]


class DedupSpec(Section):
    """[dedup]: what becomes of images that repeat an earlier one. The first one stays, with its own captions.

    Earlier is: of a source that `sources` names before, or further ahead in the same source. "report" counts
    and keeps them.
    """

    # The same bytes; the same perceptual hash, which the same bytes have and about 85 % of re-encoded copies.
    # Both within a source.
    exact: Annotated[Treatment, SEMANTIC] = "off"
    perceptual: Annotated[Treatment, SEMANTIC] = "off"
    # What holds within a source also holds from one source to another.
    across_sources: Annotated[Treatment, SEMANTIC] = "off"


class DecontaminateSpec(Section):
    """[decontaminate]: which images are left out because models are evaluated on them."""

    # The photos of Karpathy's val and test splits: by COCO id, in whatever source; by Flickr id.
    karpathy_coco: Annotated[bool, SEMANTIC] = False
    flickr30k: Annotated[bool, SEMANTIC] = False
    # caption_datasets.zip, or another file with these splits, if it is not to be the published one.
    splits: Annotated[str | None, OPERATIONAL] = None
    # Files of one's own, a `<name> <value>` a line: see pmd/decontaminate.py. What they hold decides.
    lists: Annotated[tuple[str, ...], OPERATIONAL] = ()


class HostSpec(Section):
    """[fetch.hosts."HOST"]: what this one host bears, where it is not what [fetch] says of all."""

    connections: Annotated[int | None, OPERATIONAL, Field(ge=1)] = None
    rate: Annotated[float | None, OPERATIONAL, Field(gt=0, allow_inf_nan=False)] = None


class HostBears(NamedTuple):
    """What one host bears from all workers together."""

    connections: int
    rate: float  # requests begun a second
    address_connections: int  # with all other hosts of its address


Signal = Literal[
    "robots", "x_robots_tag", "tdm_reservation", "tdmrep", "ai_txt", "content_usage", "content_signal"
]


class FetchSpec(Section):
    """[fetch]: how the web is asked."""

    # Who asks: our own fetcher, or img2dataset (with gaps, see pipelines/img2dataset.py) out of the Python
    # that it is installed for, if that is not ours.
    engine: Annotated[Literal["pmd", "img2dataset"], SEMANTIC] = "pmd"
    engine_python: Annotated[str | None, OPERATIONAL] = None
    # One try at one image, s: name, connection, every redirect, last byte.
    timeout_s: Annotated[float, OPERATIONAL, Field(gt=0)] = 30.0
    # A body that comes slower than this, after its first seconds, is given up.
    min_bytes_per_s: Annotated[int, OPERATIONAL, Field(ge=0)] = 1_000
    # More tries after a transient failure.
    retries: Annotated[int, OPERATIONAL, Field(ge=0)] = 2
    # Open at a time, in each worker. One that takes longer than a second makes room for another.
    connections: Annotated[int, OPERATIONAL, Field(ge=1)] = 64
    # What a host bears from all workers together: connections open at a time, requests begun a second. And
    # what an address bears, which may serve many hosts.
    per_host_connections: Annotated[int, OPERATIONAL, Field(ge=1)] = 2
    per_host_rate: Annotated[float, OPERATIONAL, Field(gt=0, allow_inf_nan=False)] = 4.0
    per_address_connections: Annotated[int, OPERATIONAL, Field(ge=1)] = 16
    # HOST, or *.DOMAIN for all below it -> what it bears: for archives that are built for more.
    hosts: Annotated[dict[str, HostSpec], OPERATIONAL] = {}
    # How long a row waits for a host that asks for time (Retry-After) or does not answer; s. Then it ends,
    # and `pmd repair` asks again.
    patience_s: Annotated[float, OPERATIONAL, Field(ge=0)] = 120.0
    # How long a run waits while no name is found at all; s.
    outage_s: Annotated[float, OPERATIONAL, Field(ge=0)] = 6 * 3600.0
    # Which refusals are honoured, see pmd/fetch/consent.py. They decide which images there are.
    consent: Annotated[tuple[Signal, ...], SEMANTIC] = get_args(Signal)
    # Whose name is ours too, in a site's rules, beside that at the beginning of user_agent.
    consent_agents: Annotated[tuple[str, ...], SEMANTIC] = ("img2dataset",)
    # Who we are on the wire. The contact, a URL or mail address of whoever runs this, goes behind it.
    user_agent: Annotated[str, OPERATIONAL] = "pmd/0.1 (image-text corpus builder)"
    contact: Annotated[str, OPERATIONAL] = ""
    # host, host:port, * or *:port -> address:port, as curl --connect-to.
    connect_to: Annotated[dict[str, str], OPERATIONAL] = {}
    # Networks ("10.0.0.0/8") that may be connected to although they are not public.
    allow_private: Annotated[tuple[str, ...], OPERATIONAL] = ()
    # Ports that may be connected to.
    ports: Annotated[tuple[int, ...], OPERATIONAL, Field(min_length=1)] = (80, 443)
    # PEM; instead of the system's certificate authorities.
    ca_file: Annotated[str | None, OPERATIONAL] = None
    # Of one image as served.
    max_bytes: Annotated[int, SEMANTIC, Field(gt=0)] = 20_000_000

    def bears(self, host: str) -> HostBears:
        """What a host bears: its own entry says, or that of the nearest domain above it, or what holds for
        all. Who raises a host's bound raises its address's too.
        """
        labels = host.lower().rstrip(".").split(".")
        names = ".".join(labels), *("*." + ".".join(labels[place:]) for place in range(1, len(labels)))
        entries = {name.lower().rstrip("."): entry for name, entry in self.hosts.items()}
        own = next((entries[name] for name in names if name in entries), HostSpec())
        connections = own.connections or self.per_host_connections
        at_address = max(self.per_address_connections, own.connections or 0)
        return HostBears(connections, own.rate or self.per_host_rate, at_address)


class Corpus(Section):
    """A corpus file, resolved."""

    name: Annotated[str, SEMANTIC, Field(pattern=r"^[a-z0-9][a-z0-9_-]*$")]
    sources: Annotated[tuple[SourceName, ...], SEMANTIC, Field(min_length=1)]
    seed: Annotated[int, SEMANTIC] = 0
    source: Annotated[Sources, SEMANTIC] = Sources()
    shard: Annotated[ShardSpec, SEMANTIC] = ShardSpec()
    text: Annotated[TextSpec, SEMANTIC] = TextSpec()
    image: Annotated[ImageSpec, SEMANTIC] = ImageSpec()
    fetch: Annotated[FetchSpec, SEMANTIC] = FetchSpec()
    dedup: Annotated[DedupSpec, SEMANTIC] = DedupSpec()
    decontaminate: Annotated[DecontaminateSpec, SEMANTIC] = DecontaminateSpec()

    def source_spec(self, name: str) -> SourceSpec:
        """[source.NAME], or its defaults. It is the reader's Rules too."""
        return getattr(self.source, name)

    def text_spec(self, name: str) -> TextSpec:
        """[text], with what [source.NAME] has otherwise."""
        own = self.source_spec(name).text
        if own is None:
            return self.text
        return self.text.model_copy(update={key: getattr(own, key) for key in own.model_fields_set})

    def definition(self) -> dict[str, Any]:
        """The semantic keys alone, as plain JSON values: what the fingerprint is made of."""
        # Each source's rules, described or not: to say where a source's files are changes nothing.
        rules = {
            name: _semantic(self.source_spec(name)) | {"text": _semantic(self.text_spec(name))}
            for name in self.sources
        }
        return _semantic(self) | {"source": rules}


def _semantic(value: Any) -> Any:
    if isinstance(value, Section):
        return {name: _semantic(getattr(value, name)) for name in value.semantic_keys()}
    if isinstance(value, BaseModel):  # of a reader's rules
        return {name: _semantic(item) for name, item in value}
    if isinstance(value, dict):
        return {name: _semantic(item) for name, item in sorted(value.items())}
    return [_semantic(item) for item in value] if isinstance(value, tuple | list) else value


def canonical_json(value: Any) -> bytes:
    """The one way this project writes JSON that is hashed: sorted keys, no spaces, UTF-8."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def fingerprint(value: Any) -> str:
    """sha256 over the canonical JSON of a definition."""
    return hashlib.sha256(canonical_json(value)).hexdigest()


def load_corpus(path: str | Path) -> Corpus:
    """Read a corpus file (TOML), or one of ours by its name ("smoke").

    Relative paths are taken from the folder of the corpus file. Raises BadRequest with every
    fault found.
    """
    file = _corpus_file(str(path))
    corpus = parse_corpus(read_toml(file), where=str(file))
    at = file.parent
    described = {
        name: _placed(corpus.source_spec(name), at) for name in sorted(corpus.source.model_fields_set)
    }
    fetch = corpus.fetch
    for key in ("ca_file", "engine_python"):
        if place := getattr(fetch, key):
            fetch = fetch.model_copy(update={key: _from(at, place)})
    sources = corpus.source.model_copy(update=described)
    decontaminate = corpus.decontaminate
    decontaminate = decontaminate.model_copy(
        update={
            "splits": decontaminate.splits and _from(at, decontaminate.splits),
            "lists": tuple(_from(at, entry) for entry in decontaminate.lists),
        }
    )
    text = _with_model(corpus.text, at)
    return corpus.model_copy(
        update={"source": sources, "text": text, "fetch": fetch, "decontaminate": decontaminate}
    )


def _placed(spec: SourceSpec, folder: Path) -> SourceSpec:
    """The same with its relative paths taken from a folder."""
    places = {
        name: tuple(_from(folder, entry) for entry in getattr(spec, name)) for name in ("files", "archive")
    }
    return spec.model_copy(update=places | {"text": spec.text and _with_model(spec.text, folder)})


def _with_model(text: TextSpec, folder: Path) -> TextSpec:
    if text.fasttext_model is None:
        return text
    return text.model_copy(update={"fasttext_model": _from(folder, text.fasttext_model)})


def parse_corpus(values: dict[str, Any], *, where: str) -> Corpus:
    corpus = checked(Corpus, values, where=where)
    strangers = sorted(corpus.source.model_fields_set - {*corpus.sources})
    if strangers:
        raise BadRequest(f"{where}: [source.{strangers[0]}] is described, but sources does not list it")
    dedup = corpus.dedup
    if dedup.across_sources != "off" and dedup.exact == dedup.perceptual == "off":
        raise BadRequest(f"{where}: dedup.across_sources needs dedup.exact or dedup.perceptual, both are off")
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


def read_toml(path: Path) -> dict[str, Any]:
    """Raises BadRequest where it is not TOML."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise BadRequest(f"{path}: not TOML: {error}") from None


S = TypeVar("S", bound=Section)


def checked(model: type[S], values: dict[str, Any], *, where: str) -> S:
    """Values as a section. Raises BadRequest that names each fault, and the key nearest to an unknown one."""
    try:
        return model.model_validate(values)
    except ValidationError as error:
        raise BadRequest(f"{where}: " + "; ".join(_fault(model, item) for item in error.errors())) from None


def _from(folder: Path, entry: str) -> str:
    return entry if "://" in entry else str((folder / Path(entry).expanduser()).resolve())


def _fault(model: type[Section], item: Any) -> str:
    """One pydantic error as a sentence: where, what, and the nearest known key."""
    place = [str(part) for part in item["loc"]]
    where = ".".join(place)
    if item["type"] == "extra_forbidden":
        known = _keys_at(model, place[:-1])
        near = difflib.get_close_matches(place[-1], known, n=1, cutoff=0.4)
        hint = f"did you mean {near[0]!r}?" if near else f"known keys: {', '.join(known)}"
        return f"unknown key {where!r}; {hint}"
    if item["type"] == "missing":
        return f"{where!r} is missing"
    if item["type"] == "value_error":  # a sentence of our own
        return f"{where!r}: {item['ctx']['error']}" if where else str(item["ctx"]["error"])
    return f"{where!r}: {item['msg'].lower()}, not {item['input']!r}"


def _keys_at(model: type[BaseModel], place: list[str]) -> list[str]:
    for part in place:
        if part not in model.model_fields:
            continue  # a name of one's own: [fetch.hosts."HOST"]
        inner = [
            kind
            for kind in (model.model_fields[part].annotation, *get_args(model.model_fields[part].annotation))
            if isinstance(kind, type) and issubclass(kind, BaseModel)
        ]
        if not inner:  # a number: which one of a list
            continue
        model = inner[0]
    return [*model.model_fields]


# --- what is published ---

Range = tuple[float, float]  # from, to; both are in it


class AnnotationFile(Section):
    """[[edition.file]]: one published annotation file."""

    url: str
    mirrors: tuple[str, ...] = ()
    size: int | None = None  # bytes
    sha256: str | None = None  # None where the publisher gives none and nobody has pinned it


class Edition(Section):
    """[[edition]]: files that make the source whole, and what to expect before any image is fetched."""

    name: str
    about: str
    rows: Range  # annotation rows
    pairs: Range | None = None  # captions that the reader's own rules keep
    words_per_caption: Range | None = None  # mean; words are what white space separates
    evidence: str = ""  # where the expectations come from
    file: tuple[AnnotationFile, ...]


class ImageArchive(Section):
    """[[archive]]: images that are published as a zip or tar."""

    url: str
    mirrors: tuple[str, ...] = ()
    size: int | None = None
    sha256: str | None = None
    holds: str


class Paper(Section):
    """[paper]: the row of this source in table 2 of the FLAVA paper."""

    pairs: int
    words_per_caption: float


class Source(Section):
    """manifests/sources/NAME.toml: what is published, under which terms, and what to expect of it."""

    name: SourceName
    title: str
    homepage: str
    license: str  # of the annotations: SPDX id, or the publisher's words where there is none
    image_license: str  # where each image's own licence is found, in a sentence
    attribution: str  # whom to name, and how, in a sentence
    cite: str
    paper: Paper
    edition: Annotated[tuple[Edition, ...], Field(min_length=1)]  # the first is taken if none is named
    archive: tuple[ImageArchive, ...] = ()

    def edition_named(self, name: str) -> Edition:
        """An edition by its name; the first for an empty one."""
        if not name:
            return self.edition[0]
        for edition in self.edition:
            if edition.name == name:
                return edition
        known = ", ".join(edition.name for edition in self.edition)
        raise BadRequest(f"[source.{self.name}] edition: there is no {name!r}; there are {known}")


def load_source(name: str) -> Source:
    """The manifest of one of the nine sources."""
    file = manifest_folder() / "sources" / f"{name}.toml"
    if not file.is_file():
        raise BadRequest(f"{name}: we have no {file}")
    return checked(Source, read_toml(file), where=str(file))
