"""What a training run is: a TOML file, changed by key=value.

    flava_tiny.toml --read_run--> Run     unknown keys are errors that name the nearest known one
    steps=500 pairs.batch=64 ---^

Whatever decides what is trained stands here and nowhere else; the resolved form is saved with the run. Paths
in a file are relative to it, those on the command line to where one is.
"""

import json
import tomllib
from collections.abc import Sequence
from dataclasses import fields
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from flava_model.models.flava import PRESETS, FlavaConfig, preset
from pmd.manifest import Section, checked, read_toml
from pmd.stream import BadRequest, Unit

Share = Annotated[float, Field(ge=0, le=1)]
Above0 = Annotated[float, Field(gt=0)]
From0 = Annotated[float, Field(ge=0)]
Count = Annotated[int, Field(ge=1)]
Kind = Literal["pairs", "images", "texts"]
KINDS: tuple[Kind, ...] = ("pairs", "images", "texts")


class StreamSpec(Section):
    """What pairs and images have in common: a locked corpus, and how it is read and seen."""

    corpus: str  # a folder, or a URL with a cache
    sources: tuple[str, ...] = ()  # all of them
    window: Count = 32  # shards that are mixed at a time
    overlay: str | None = None
    cache: str | None = None
    batch: Count = 8192  # of an update, over all ranks: the paper's
    # Of a crop: TorchMultimodal's. The paper tells of none.
    area: tuple[Above0, Share] = (0.9, 1.0)
    ratio: tuple[Above0, Above0] = (3 / 4, 4 / 3)
    flip: Share = 0.0
    exact: bool = False  # resize by Pillow's filters


class PairsSpec(StreamSpec):
    """[pairs]: for the contrastive, ITM and MMM losses."""

    unit: Unit = "images"  # or "pairs": each caption is a sample of its own
    mismatched: Share = 0.1  # ITM negatives; TorchMultimodal's rate, the paper gives none


class ImagesSpec(StreamSpec):
    """[images]: for MIM, from a corpus or a plain folder."""

    corpus: str = ""
    folder: str = ""

    @model_validator(mode="after")
    def _one(self) -> "ImagesSpec":
        if bool(self.corpus) == bool(self.folder):
            raise ValueError("give a corpus or a folder, one of them")
        return self


class TextsSpec(Section):
    """[texts]: for MLM, from what `flava pack-texts` wrote."""

    folder: str
    batch: Count = 8192
    longest: Annotated[int, Field(ge=3)] = 512  # tokens


class MixSpec(Section):
    """[mix]: how often each kind is trained on, of those that there are."""

    # The paper's. Updates of one kind each, or each update of all of them.
    pairs: Above0 = 0.70
    images: Above0 = 0.15
    texts: Above0 = 0.15
    update: Literal["one", "all"] = "one"


class HideSpec(Section):
    """[hide]: what is masked. Shares of 75 and 16 of 196 patches, as in BEiT and FLAVA; 15 % as in BERT."""

    patches: Share = 75 / 196
    block: Share = 16 / 196
    words: Share = 0.15
    whole_words: bool = True  # as TorchMultimodal has it for pairs


class ModelSpec(Section):
    """[model]: a preset, and fields of FlavaConfig that are otherwise."""

    preset: str = "base"
    fields: dict[str, bool | int | float] = Field(default_factory=dict)

    @field_validator("preset")
    @classmethod
    def _known(cls, name: str) -> str:
        if name not in PRESETS:
            raise ValueError(f"expected one of {', '.join(PRESETS)}")
        return name

    @field_validator("fields")
    @classmethod
    def _of_flava(cls, given: dict[str, Any]) -> dict[str, Any]:
        known = [field.name for field in fields(FlavaConfig)]
        for name in given:
            if name not in known:
                near = get_close_matches(name, known, n=1, cutoff=0.4)
                raise ValueError(
                    f"FlavaConfig has no {name}" + (f"; did you mean {near[0]}?" if near else "")
                )
        return given

    def config(self, vocabulary: int) -> FlavaConfig:
        """With the tokenizer's vocabulary, unless it says another."""
        return preset(self.preset, **({"vocabulary": vocabulary} | self.fields))


class LossSpec(Section):
    """[loss]: the weight of each; 0 leaves it out. The sources have 1 for all."""

    mim: From0 = 1.0
    mlm: From0 = 1.0
    mmm_image: From0 = 1.0
    mmm_text: From0 = 1.0
    itm: From0 = 1.0
    global_contrastive: From0 = 1.0


class OptimizerSpec(Section):
    """[optimizer]: AdamW, warm-up and cosine. FLAVA's table A.2 but where it says so."""

    lr: Above0 = 1e-3
    betas: tuple[Share, Share] = (0.9, 0.999)
    eps: Above0 = 1e-8  # not stated; torch's and TorchMultimodal's
    # Of matrices alone. The sources decay all; gains, biases, CLS, positions and the scale of the contrastive
    # loss have a place of their own that is not 0.
    weight_decay: From0 = 0.1
    decay: Literal["matrices", "all"] = "matrices"
    warmup: Annotated[int, Field(ge=0)] = 10_000  # updates
    end: Share = 0.0  # of the learning rate, after the last update; not stated
    clip: From0 = 1.0  # of the gradient's norm, 0 for none; not stated


class SaveSpec(Section):
    """[save]: checkpoints."""

    every: Count = 1_000  # updates
    keep: Annotated[int, Field(ge=2)] = 3


class WatchSpec(Section):
    """[watch]: what a person, and what a machine watches."""

    every: Count = 10  # updates between two lines of metrics
    tensorboard: bool = False
    wandb: str | None = None  # a project
    # What becomes of an update whose gradient is not finite: it is left out, or the run goes back to its last
    # checkpoint and leaves out the batches since, or it ends.
    not_finite: Literal["skip", "roll_back", "stop"] = "skip"
    not_finite_most: Count = 20  # such updates one after another before the run ends
    hung_s: Above0 = 1800.0  # without an update, before stacks are written and the process ends


class RetrievalSpec(Section):
    """[evals.retrieval]: among the images of a locked corpus, or of a split file as Karpathy's."""

    corpus: str = ""
    sources: tuple[str, ...] = ()  # all of them
    overlay: str | None = None
    limit: Count | None = None  # images
    split_file: str = ""
    photos: str = ""  # the folder of the split file's
    split: str = "test"

    @model_validator(mode="after")
    def _one(self) -> "RetrievalSpec":
        if bool(self.corpus) == bool(self.split_file) or bool(self.split_file) != bool(self.photos):
            raise ValueError("give a corpus, or a split_file and photos")
        return self


class ZeroShotSpec(Section):
    """[evals.zero_shot]: of a folder of images with one for each class."""

    images: str
    names: str | None = None  # a file with a class a line; else the folders' names
    templates: str | None = None  # a file with one a line


class LinearProbeSpec(Section):
    """[evals.linear_probe]: folders of images with one for each class."""

    train: str
    test: str


class EvalsSpec(Section):
    """[evals]: how good the model is, while it is trained: a process of its own looks at its checkpoints, and
    training does not wait for it.
    """

    every: Count | None = None  # updates; None: each checkpoint, as far as it keeps up
    device: str = "cpu"  # as torch names it: none of those that train
    threads: Count = 1
    shape: Literal["whole", "center"] = "whole"  # of an image that is not square: as a square, or its middle
    retrieval: RetrievalSpec | None = None
    zero_shot: ZeroShotSpec | None = None
    linear_probe: LinearProbeSpec | None = None

    def __bool__(self) -> bool:
        return any((self.retrieval, self.zero_shot, self.linear_probe))


class Run(Section):
    """A training run."""

    name: str
    out: str  # a folder: checkpoints, metrics, the model
    steps: Count  # updates
    seed: int = 0
    pairs: PairsSpec | None = None
    images: ImagesSpec | None = None
    texts: TextsSpec | None = None
    mix: MixSpec = MixSpec()
    tokenizer: str | None = None  # a folder or hub:NAME
    longest: Annotated[int, Field(ge=3)] = 77  # tokens of a caption
    codebook: str = "random"  # or the weights of DALL-E's encoder
    codes: str | None = None  # stored ones, of `flava codes`: for pairs and images of their corpus
    hide: HideSpec = HideSpec()
    model: ModelSpec = ModelSpec()
    init: str | None = None  # weights to begin with
    loss: LossSpec = LossSpec()
    optimizer: OptimizerSpec = OptimizerSpec()
    save: SaveSpec = SaveSpec()
    watch: WatchSpec = WatchSpec()
    evals: EvalsSpec = EvalsSpec()
    # How it is computed
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    micro_batch: Count | None = None  # samples of a rank at a time; None: all of its share
    tile: Count | None = None  # rows of the contrastive loss at a time; None: all
    sharded: bool = False  # parameters over the ranks (FSDP2), else each has all
    recompute: bool = False  # activations in the backward pass, instead of keeping them
    compile: bool = False
    threads: Count = 2  # of a rank, that decode
    ahead: Count = 2  # batches

    @model_validator(mode="after")
    def _something(self) -> "Run":
        if not self.kinds:
            raise ValueError("there is nothing to train on: give pairs, images or texts")
        if self.tokenizer is None and (self.pairs or self.texts):
            raise ValueError("tokenizer: pairs and texts need one; `flava tokenizer` trains it")
        if self.tokenizer is None and (self.evals.retrieval or self.evals.zero_shot):
            raise ValueError("tokenizer: retrieval and zero-shot classification need one")
        if (self.evals.every or 0) % self.save.every:
            raise ValueError("evals.every: checkpoints are evaluated; give a multiple of save.every")
        return self

    @property
    def kinds(self) -> list[Kind]:
        """What there is to train on."""
        return [kind for kind in KINDS if getattr(self, kind) is not None]

    def spec(self, kind: Kind) -> PairsSpec | ImagesSpec | TextsSpec:
        """The section of a kind that there is."""
        spec = getattr(self, kind)
        assert spec is not None
        return spec

    def as_json(self) -> dict[str, Any]:
        """The resolved form."""
        return json.loads(self.model_dump_json())

    def deciding(self) -> dict[str, Any]:
        """What decides the outcome, without where things lie: what they are is known by hashes."""
        told = self.as_json()
        for name in (*_PATHS, *_FREE):
            told.pop(name, None)
        for kind in self.kinds:
            for name in _SECTION_PATHS:
                told[kind].pop(name, None)
        return told


# How a run is computed and watched, and not what: may be another when it goes on.
_FREE = (
    "save",
    "watch",
    "evals",
    "threads",
    "ahead",
    "micro_batch",
    "tile",
    "sharded",
    "recompute",
    "compile",
)
_PATHS = ("out", "tokenizer", "codebook", "codes", "init")
_SECTION_PATHS = ("corpus", "folder", "overlay", "cache")
_EVALS_PATHS = {
    "retrieval": ("corpus", "overlay", "split_file", "photos"),
    "zero_shot": ("images", "names", "templates"),
    "linear_probe": ("train", "test"),
}


def read_run(path: str | Path, changes: Sequence[str] = ()) -> Run:
    """A run from its file. changes: key=value, as steps=500 or pairs.batch=64; values as in TOML, and what is
    no TOML is a text. Raises BadRequest.
    """
    file = _config_file(path)
    values = read_toml(file)
    _place(values, file.parent)
    return changed_run(values, changes, where=str(file))


def changed_run(values: dict[str, Any], changes: Sequence[str], *, where: str) -> Run:
    """A run from what a file says, with changes as of `read_run`. Raises BadRequest."""
    for change in changes:
        key, equals, value = change.partition("=")
        if not equals or not key:
            raise BadRequest(f"{change}: expected key=value, as in steps=500")
        _set(values, key.split("."), _value(value), change)
    _place(values, Path.cwd())
    return checked(Run, values, where=where)


def _config_file(path: str | Path) -> Path:
    """The file behind a path, or behind the bare name of one that we ship."""
    shipped = Path(__file__).parent / "configs"
    for file in (Path(path), shipped / f"{path}.toml"):
        if file.is_file():
            return file
    ours = ", ".join(sorted(file.stem for file in shipped.glob("*.toml")))
    raise BadRequest(f"{path}: no such file, and no config of ours has that name; they are: {ours or 'none'}")


def _value(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def _set(values: dict[str, Any], place: list[str], value: Any, change: str) -> None:
    *sections, last = place
    for section in sections:
        inner: Any = values.get(section)
        if inner is None:  # as a resolved run has it for what there is not
            inner = values[section] = {}
        if not isinstance(inner, dict):
            raise BadRequest(f"{change}: {section} is a value, not a section")
        values = inner
    values[last] = value


def _place(values: dict[str, Any], folder: Path) -> None:
    """Relative paths, as seen from a folder."""
    evals = values.get("evals")
    sections = [(values, _PATHS), *((values.get(kind), _SECTION_PATHS) for kind in KINDS)]
    if isinstance(evals, dict):
        sections += [(evals.get(name), paths) for name, paths in _EVALS_PATHS.items()]
    for section, names in sections:
        for name in names if isinstance(section, dict) else ():
            given = section.get(name)
            if isinstance(given, str) and given and not _is_no_path(given):
                section[name] = str((folder / Path(given).expanduser()).resolve())


def _is_no_path(given: str) -> bool:
    return given == "random" or given.startswith("hub:") or "://" in given
