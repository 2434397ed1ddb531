"""Codes of images, made once and kept beside the shards: the codebook of DALL-E costs more than the encoder.

    corpus, codebook --make_codes--> FOLDER/codes.json, FOLDER/<source>/00000.npy of each shard
    FOLDER --Codes--> the crop that a visit sees, and its codes

A code is one of a patch of a crop, so the crops are chosen beforehand: each image has `crops` of them, drawn
from its key, and a visit sees one of these. What is seen then differs between so many epochs and not more. An
image whose captions are of regions has its crops for each caption.

    N images, or captions, of a shard   C crops   P patches
"""

import hashlib
import io
import itertools
import json
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray

from flava_model.codebook import SHRINKS, Codebook
from flava_model.views import Views, see
from pmd.records import key_hash
from pmd.stream import BadRequest, Damaged, Refused, Sample, Stream, Visit, keyed

FORMAT = 1  # of codes.json
_CROPS = 80  # purpose of keys; those below are others'
NONE = np.uint16(0xFFFF)  # in place of the codes of an image that cannot be decoded
CHUNK = 64  # images that are given to the codebook at once


@dataclass(frozen=True)
class Plan:
    """What decides the codes of a corpus, beside the corpus itself."""

    root: str  # of the lock
    codebook: str  # sha256 of its weights
    crops: int
    grid: int
    seed: int
    area: tuple[float, float]
    ratio: tuple[float, float]
    flip: float
    exact: bool

    @classmethod
    def of(cls, told: dict[str, Any]) -> "Plan":
        return cls(**{**told, "area": tuple(told["area"]), "ratio": tuple(told["ratio"])})

    def views(self, *sizes: int) -> Views:
        """How images have to be seen for the codes to be theirs."""
        return Views(sizes, area=self.area, ratio=self.ratio, flip=self.flip, exact=self.exact)

    def crop_key(self, sample: Sample, crop: int) -> int:
        """What the Crop of a sample is drawn from."""
        return keyed(
            self.seed, key_hash(sample.key), sample.caption_number if sample.box else 0, crop, _CROPS
        )


def codebook_sha256(codebook: Codebook) -> str:
    """Of all its tensors, and of what it is."""
    hasher = hashlib.sha256(type(codebook).__name__.encode())
    for name, tensor in sorted(itertools.chain(codebook.named_parameters(), codebook.named_buffers())):
        hasher.update(name.encode() + tensor.detach().cpu().contiguous().numpy().tobytes())
    return hasher.hexdigest()


# Made


def make_codes(
    corpus: str | Path,
    out: str | Path,
    codebook: Codebook,
    *,
    crops: int = 1,
    image_size: int = 224,
    patch_size: int = 16,
    seed: int = 0,
    threads: int = 2,
    done: Callable[[int, int, int], None] = lambda images, shards, of: None,
) -> Plan:
    """Write the codes of every image of a corpus. Goes on where it was stopped. done: is told how many images
    have their codes now, and how many shards of how many.

    Raises Refused where `out` has, or was begun with, codes of another corpus, codebook or plan.
    """
    if crops < 1 or image_size % patch_size:
        raise BadRequest(
            f"{crops} crops of {image_size} px, patches of {patch_size}: expected 1 at least, and a multiple"
        )
    stream, out, views = Stream(corpus, unit="pairs"), Path(out), Views((image_size,))
    plan = Plan(
        root=stream.identity.root,
        codebook=codebook_sha256(codebook),
        crops=crops,
        grid=image_size // patch_size,
        seed=seed,
        area=views.area,
        ratio=views.ratio,
        flip=views.flip,
        exact=views.exact,
    )
    out.mkdir(parents=True, exist_ok=True)
    for name in ("codes.json", "begun.json"):
        if (out / name).exists():
            begun = Plan.of(json.loads((out / name).read_bytes())["plan"])
            for field, value in asdict(plan).items():
                if getattr(begun, field) != value:
                    raise Refused(
                        f"{out}: there are codes with {field} {getattr(begun, field)}, these would have "
                        f"{value}: choose another folder, or remove this one"
                    )
    if (out / "codes.json").exists():
        return plan
    _publish(out / "begun.json", json.dumps({"plan": asdict(plan)}).encode())
    seen = plan.views(image_size, SHRINKS * plan.grid)
    made = 0
    files: dict[str, Any] = {}
    with ThreadPoolExecutor(threads, thread_name_prefix="codes") as pool:
        for number in range(stream.shards):
            path = _beside(stream.path(number))
            visits = _entries(stream, number)
            if not (out / path).exists():
                codes = np.full((len(visits), crops, plan.grid**2), NONE, np.uint16)
                for begin, some in _chunks(codebook, plan, seen, visits, pool):
                    codes[begin : begin + len(some)] = some
                    done(made + begin + len(some), number, stream.shards)
                data = io.BytesIO()
                np.save(data, codes)
                (out / path).parent.mkdir(exist_ok=True)
                _publish(out / path, data.getvalue())
            sha256 = hashlib.sha256((out / path).read_bytes()).hexdigest()
            of = "captions" if stream.boxed(number) else "images"
            files[path] = {"sha256": sha256, "of": of, "count": len(visits)}
            made += len(visits)
            done(made, number + 1, stream.shards)
    told = {"format": FORMAT, "plan": asdict(plan), "files": files}
    _publish(out / "codes.json", json.dumps(told).encode())
    (out / "begun.json").unlink()
    return plan


def _beside(tar: str) -> str:
    """shards/coco/00000.tar -> coco/00000.npy"""
    return "/".join(tar.split("/")[-2:]).removesuffix(".tar") + ".npy"


def _entries(stream: Stream, number: int) -> list[Visit]:
    """What has codes in a shard: each caption where some are of regions, else each image."""
    visits = stream.shard_visits(number)
    if stream.boxed(number):
        return visits
    return [next(some) for _, some in itertools.groupby(visits, lambda visit: stream.stored(visit).row)]


def _chunks(
    codebook: Codebook, plan: Plan, views: Views, visits: Sequence[Visit], pool: ThreadPoolExecutor
) -> Iterator[tuple[int, NDArray[np.uint16]]]:
    """The codes of some visits at a time: (the first one's number, NCP). The next are decoded meanwhile."""
    begins = range(0, len(visits), CHUNK)

    def begin(first: int) -> list[Any]:
        return [pool.submit(_seen, plan, views, visit) for visit in visits[first : first + CHUNK]]

    waiting = begin(0) if visits else []
    device = next(itertools.chain(codebook.parameters(), codebook.buffers())).device
    for first in begins:
        decoded, waiting = [one.result() for one in waiting], begin(first + CHUNK)
        codes = np.full((len(decoded), plan.crops, plan.grid**2), NONE, np.uint16)
        there = [row for row, view in enumerate(decoded) if view is not None]
        if there:
            pixels = torch.from_numpy(np.concatenate([decoded[row] for row in there])).permute(0, 3, 1, 2)
            found = codebook.codes(pixels.to(device)).cpu().numpy().astype(np.uint16)
            codes[there] = found.reshape(len(there), plan.crops, -1)
        yield first, codes


def _seen(plan: Plan, views: Views, visit: Visit) -> NDArray[np.uint8] | None:
    """The codebook's view of each crop: CSS3. None where it cannot be decoded: nobody will ask for it."""
    sample = visit.read()
    if sample.instead_of is not None:
        return None
    large, small = (np.empty((plan.crops, size, size, 3), np.uint8) for size in views.sizes)
    try:
        for crop in range(plan.crops):
            key = plan.crop_key(sample, crop)
            see(sample.image, views, [large[crop], small[crop]], key=key, box=sample.box)
    except ValueError:
        return None
    return small


# Read


class Codes:
    """The codes of a folder that make_codes wrote. Threads may share it."""

    def __init__(self, folder: str | Path) -> None:
        """Raises BadRequest where there are none, or they are not complete."""
        self._folder = Path(folder)
        try:
            told = json.loads((self._folder / "codes.json").read_bytes())
        except FileNotFoundError:
            begun = (self._folder / "begun.json").exists()
            why = (
                "they are not complete: run `flava codes` again" if begun else "there is no codes.json in it"
            )
            raise BadRequest(f"{folder}: {why}") from None
        if told["format"] != FORMAT:
            raise Refused(f"{folder}: codes of format {told['format']}; this is {FORMAT}")
        self.plan, self._files = Plan.of(told["plan"]), cast("dict[str, dict[str, Any]]", told["files"])
        self.shards, self.count = len(self._files), sum(file["count"] for file in self._files.values())
        self._open: dict[str, NDArray[np.uint16]] = {}
        self._guard = threading.Lock()

    def described(self) -> dict[str, Any]:
        """What decides them, as JSON: for the state of a run."""
        return json.loads(json.dumps(asdict(self.plan)))

    def check(self, stream: Stream) -> None:
        """Raises Refused where they are of another corpus."""
        if self.plan.root != stream.identity.root:
            raise Refused(
                f"{self._folder}: the codes are of the corpus {self.plan.root[:16]}, this one is "
                f"{stream.identity.root[:16]}: run `flava codes` for it"
            )

    def crop_key(self, sample: Sample) -> int:
        """What the crop of a visit is drawn from: for Loader(..., crop_key=)."""
        return self.plan.crop_key(sample, self._crop(sample))

    def of(self, samples: Sequence[Sample]) -> NDArray[np.int64]:
        """Of the crops that crop_key gives for some samples: BP. Raises Damaged."""
        found = np.empty((len(samples), self.plan.grid**2), np.uint16)
        for place, sample in enumerate(samples):
            assert sample.stored is not None, "samples of a corpus"
            path = _beside(sample.stored.shard)
            entry = sample.stored.caption if self._files[path]["of"] == "captions" else sample.stored.row
            found[place] = self._file(path)[entry, self._crop(sample)]
            if found[place, 0] == NONE:
                raise Damaged(f"{self._folder / path}: no codes of {sample.key}, which can be decoded now")
        return found.astype(np.int64)

    def verify(self) -> None:
        """Raises Damaged where a file is not as it was written."""
        for path, told in self._files.items():
            try:
                sha256 = hashlib.sha256((self._folder / path).read_bytes()).hexdigest()
            except FileNotFoundError:
                sha256 = "missing"
            if sha256 != told["sha256"]:
                raise Damaged(
                    f"{self._folder / path}: sha256 is {sha256}, codes.json says {told['sha256']}: remove "
                    "both files and run `flava codes` again"
                )

    def _crop(self, sample: Sample) -> int:
        return keyed(self.plan.seed, sample.epoch, sample.position, _CROPS) % self.plan.crops

    def _file(self, path: str) -> NDArray[np.uint16]:
        with self._guard:
            if path not in self._open:
                try:
                    self._open[path] = np.load(self._folder / path, mmap_mode="r", allow_pickle=False)
                except (OSError, ValueError) as error:
                    raise Damaged(f"{self._folder / path}: {error}") from None
            return self._open[path]


def _publish(path: Path, data: bytes) -> None:
    aside = path.with_name(f".{path.name}.part")
    with aside.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.replace(aside, path)
