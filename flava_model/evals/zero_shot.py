"""Zero-shot classification (Radford et al., 2021): the class whose description is nearest to an image.

class names, templates --texts--> a vector a class: the mean of its templates', of length 1
images of a folder a class --------------------------> the nearest one
"""

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch.nn import functional as F

from flava_model.evals.features import Shape, image_vectors, text_vectors
from flava_model.loose import Folder
from flava_model.models.flava import Flava
from flava_model.tokens import Tokenizer
from pmd.stream import BadRequest

TEMPLATES = ("a photo of a {}.",)


def zero_shot(
    model: Flava,
    tokenizer: Tokenizer,
    images: str | Path,
    *,
    names: Sequence[str] | None = None,
    templates: Sequence[str] = TEMPLATES,
    shape: Shape = "whole",
    threads: int = 2,
    done: Callable[[int, float], None] = lambda count, share: None,
) -> dict[str, float]:
    """Accuracy of the first and the first five, over images and over classes. images: a folder with one for
    each class. names: of the classes, in the order of their folders' names; by default these names.

    Raises BadRequest where names and folders are not as many, or a template has no place for one.
    """
    folder, names, labels = labelled(images, names)
    if strange := [template for template in templates if "{}" not in template]:
        raise BadRequest(f"the template {strange[0]!r} has no {{}} for the class's name")
    texts = [template.format(name) for name in names for template in templates]
    vectors = text_vectors(model, tokenizer, texts).unflatten(0, (len(names), len(templates)))
    classes_ce = F.normalize(vectors.mean(1), dim=-1)
    found = image_vectors(
        model,
        ((folder.key(number), folder.item(number)[0]) for number in range(len(folder))),
        shape=shape,
        threads=threads,
        done=lambda count: done(count, count / len(folder)),
    )
    near_bc = found @ classes_ce.T
    own_b1 = near_bc.gather(1, labels[:, None])
    rank_b = (near_bc >= own_b1).sum(1) - 1  # of equally near ones the right one is the last
    right_b = (rank_b < 1).float()
    by_class = [right_b[labels == number].mean() for number in range(len(names)) if (labels == number).any()]
    return {
        "accuracy@1": float(right_b.mean()),
        "accuracy@5": float((rank_b < 5).float().mean()),
        "mean_per_class@1": float(torch.stack(by_class).mean()),
        "by_chance@1": 1 / len(names),
        "images": float(len(folder)),
        "classes": float(len(names)),
    }


def lines_of(path: str | Path) -> list[str]:
    """Of a text file, without empty ones. Raises BadRequest where there are none."""
    try:
        lines = [line.strip() for line in Path(path).read_text().splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise BadRequest(f"{path}: {error}") from None
    if not lines:
        raise BadRequest(f"{path}: there is not one line in it")
    return lines


def labelled(
    images: str | Path, names: Sequence[str] | None = None
) -> tuple[Folder, list[str], torch.Tensor]:
    """A folder of images, its classes' names, and the class of each image."""
    folder = Folder(images)
    labels = [folder.label(number) for number in range(len(folder))]
    if None in labels:
        alone = folder.key(labels.index(None))
        raise BadRequest(f"{images}: {alone} is in no class's folder")
    names = [*(names or (name.replace("_", " ") for name in folder.classes))]
    if len(names) != len(folder.classes):
        raise BadRequest(
            f"{images}: there are {len(folder.classes)} folders and {len(names)} names of classes"
        )
    return folder, names, torch.tensor(labels)
