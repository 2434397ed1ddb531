"""Image-text retrieval: how often what belongs to an image, or a text, is among the nearest k of all.

    corpus, or a split file and its photos --> Pairs --vectors--> R@1, R@5, R@10, both ways

As is the custom (Karpathy and Fei-Fei, 2015): a text has one image; an image has several texts, and is found
where one of them is. Of equally near ones the right one counts as the last, so that a model which gives the
same vector for everything finds nothing.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from flava_model.evals.features import Shape, image_vectors, text_vectors
from flava_model.models.flava import Flava
from flava_model.tokens import Tokenizer
from pmd.stream import BadRequest, Damaged, Stream

KS = (1, 5, 10)


@dataclass(frozen=True)
class Pairs:
    """Images, each with its texts."""

    read: Callable[[], Iterator[tuple[str, bytes]]]  # the images, one after another, with their names
    texts: list[str]
    image_of: list[int]  # of each text
    images: int


def of_corpus(
    corpus: str | Path,
    *,
    sources: Sequence[str] = (),
    overlay: str | None = None,
    most: int | None = None,
) -> Pairs:
    """All images of a locked corpus, or the first so many of its shards, with all their kept captions."""
    stream = Stream(corpus, sources=sources, unit="pairs", overlay=overlay)
    first: list[Any] = []
    texts: list[str] = []
    image_of: list[int] = []
    for number in range(stream.shards):
        for _, of_image in groupby(stream.shard_visits(number), lambda visit: stream.stored(visit).row):
            if most is not None and len(first) >= most:
                break
            # Each caption once, also where an overlay repeats the image.
            visits = [*{stream.stored(visit).caption: visit for visit in of_image}.values()]
            texts += [stream.captioned(visit).text for visit in visits]
            image_of += [len(first)] * len(visits)
            first.append(visits[0])

    def read() -> Iterator[tuple[str, bytes]]:
        for visit in first:
            sample = visit.read()
            if sample.instead_of is not None:
                raise Damaged(f"{corpus}: {sample.instead_of} is damaged; `pmd verify` says more")
            yield sample.key, sample.image

    return Pairs(read, texts, image_of, len(first))


def of_split(file: str | Path, photos: str | Path, *, split: str = "test") -> Pairs:
    """A split of Karpathy's files (dataset_coco.json, dataset_flickr30k.json), with the photos in a folder,
    or in folders of it as the file names them. Raises BadRequest where one is missing.
    """
    told = _read_split(Path(file))
    chosen = [image for image in told if image.get("split") == split]
    if not chosen:
        known = ", ".join(sorted({str(image.get("split")) for image in told}))
        raise BadRequest(f"{file}: there is no image of the split {split!r}; there are {known}")
    paths = [_photo(Path(photos), image) for image in chosen]
    texts = [sentence["raw"] for image in chosen for sentence in image["sentences"]]
    image_of = [number for number, image in enumerate(chosen) for _ in image["sentences"]]
    return Pairs(lambda: ((str(path), path.read_bytes()) for path in paths), texts, image_of, len(paths))


def _read_split(file: Path) -> list[dict[str, Any]]:
    try:
        return json.loads(file.read_bytes())["images"]
    except FileNotFoundError:
        raise BadRequest(f"{file}: there is no such file") from None
    except (ValueError, KeyError, TypeError) as error:
        raise BadRequest(f"{file}: not a split file as Karpathy's, {{'images': [...]}}: {error}") from None


def _photo(folder: Path, image: dict[str, Any]) -> Path:
    for place in (folder / image["filename"], folder / image.get("filepath", "") / image["filename"]):
        if place.is_file():
            return place
    raise BadRequest(f"{folder}: the split's photo {image['filename']} is not in it")


def retrieval(
    model: Flava,
    tokenizer: Tokenizer,
    pairs: Pairs,
    *,
    shape: Shape = "whole",
    threads: int = 2,
    done: Callable[[int, float], None] = lambda count, share: None,
) -> dict[str, float]:
    """Recalls, shares: text_to_image@k of its image, image_to_text@k of one of its texts; and by chance."""
    images = image_vectors(
        model,
        pairs.read(),
        shape=shape,
        threads=threads,
        done=lambda count: done(count, count / pairs.images),
    )
    texts = text_vectors(model, tokenizer, pairs.texts)
    return recalls(images, texts, torch.tensor(pairs.image_of))


def recalls(
    images_ie: Tensor, texts_te: Tensor, image_of_t: Tensor, *, rows: int = 1_024
) -> dict[str, float]:
    """As `retrieval`, of vectors. I images, T texts, E their length; some rows at a time."""
    count, texts = len(images_ie), len(texts_te)
    of_text: list[Tensor] = []
    for begin in range(0, texts, rows):
        near_ri = texts_te[begin : begin + rows] @ images_ie.T
        own_r1 = near_ri.gather(1, image_of_t[begin : begin + rows, None])
        of_text.append((near_ri >= own_r1).sum(1) - 1)
    of_image: list[Tensor] = []
    for begin in range(0, count, rows):
        near_rt = images_ie[begin : begin + rows] @ texts_te.T
        own_rt = image_of_t[None] == torch.arange(begin, begin + len(near_rt))[:, None]
        best_r1 = near_rt.masked_fill(~own_rt, -torch.inf).max(1, keepdim=True).values
        # Those of others that are as near or nearer.
        of_image.append(((near_rt >= best_r1) & ~own_rt).sum(1))
    ranks = {"text_to_image": torch.cat(of_text), "image_to_text": torch.cat(of_image)}
    found = {f"{way}@{k}": float((rank < k).float().mean()) for way, rank in ranks.items() for k in KS}
    each = torch.bincount(image_of_t, minlength=count).double()
    for k in KS:
        found[f"text_to_image_by_chance@{k}"] = min(1.0, k / count)
        # That none of an image's own texts is among k drawn ones.
        missed = torch.stack([((texts - each - n) / (texts - n)).clamp(0, 1) for n in range(min(k, texts))])
        found[f"image_to_text_by_chance@{k}"] = float((1 - missed.prod(0)).mean())
    return found | {"images": float(count), "texts": float(texts)}
