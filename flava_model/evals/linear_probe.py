"""Linear probe: a logistic regression on what the frozen image encoder gives, as CLIP and FLAVA have it.

    train, test: folders of images, one a class --> the encoder's CLS, before any projection: BD
    strength of L2 by a sweep, on a fifth of train that is held out --> refit on all of it --> test

L-BFGS on all images at once, in float64. The strength is searched for on a logarithmic scale, first coarsely,
then between the best one's neighbours, eight steps a decade.
"""

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from flava_model.evals.features import Shape, image_vectors
from flava_model.evals.zero_shot import labelled
from flava_model.loose import Folder
from flava_model.models.flava import Flava
from pmd.stream import BadRequest, keyed

COARSE = (-6, -4, -2, 0, 2, 4, 6)  # powers of ten
_HELD_OUT = 128  # purpose of keys; those below are others'


def linear_probe(
    model: Flava,
    train: str | Path,
    test: str | Path,
    *,
    shape: Shape = "whole",
    threads: int = 2,
    iterations: int = 1_000,
    done: Callable[[int, float], None] = lambda count, share: None,
) -> dict[str, float]:
    """Accuracy on test, over images and over classes, and the strength that was chosen.

    Raises BadRequest where the two folders are not of the same classes.
    """
    of_train, names, train_labels = labelled(train)
    of_test, others, test_labels = labelled(test)
    if names != others:
        strange = sorted({*names} ^ {*others})
        raise BadRequest(f"{train} and {test} are not of the same classes: {strange[0]} is in one of them")
    whole = len(of_train) + len(of_test)

    def features(folder: Folder, before: int) -> Tensor:
        return image_vectors(
            model,
            ((folder.key(number), folder.item(number)[0]) for number in range(len(folder))),
            of=lambda pixels: model.image_states(pixels).normed[:, 0],
            shape=shape,
            threads=threads,
            done=lambda count: done(before + count, (before + count) / whole),
        ).double()

    train_nd, test_nd = features(of_train, 0), features(of_test, len(of_train))
    held = torch.tensor([keyed(number, _HELD_OUT) % 5 == 0 for number in range(len(train_nd))])
    if held.all() or not held.any():
        raise BadRequest(f"{train}: {len(train_nd)} images are too few to hold some out")

    def judged(power: float) -> float:
        fitted = fit(train_nd[~held], train_labels[~held], len(names), 10**power, iterations)
        return float((fitted(train_nd[held]) == train_labels[held]).float().mean())

    power = sweep(judged)
    fitted = fit(train_nd, train_labels, len(names), 10**power, iterations)
    right = (fitted(test_nd) == test_labels).float()
    by_class = [right[test_labels == number].mean() for number in test_labels.unique().tolist()]
    return {
        "accuracy@1": float(right.mean()),
        "mean_per_class@1": float(torch.stack(by_class).mean()),
        "by_chance@1": 1 / len(names),
        "l2": 10**power,
        "train_images": float(len(train_nd)),
        "test_images": float(len(test_nd)),
        "classes": float(len(names)),
    }


def sweep(judged: Callable[[float], float]) -> float:
    """The best power of ten: of the coarse ones, then halving the steps around it down to an eighth. Of
    equally good ones the strongest.
    """
    found = {float(power): judged(power) for power in COARSE}

    def best() -> float:
        return max(found, key=lambda power: (found[power], power))

    step = 1.0
    while step >= 1 / 8:
        middle = best()
        for power in (middle - step, middle + step):
            if power not in found:
                found[power] = judged(power)
        step /= 2
    return best()


def fit(
    features_nd: Tensor, labels_n: Tensor, classes: int, l2: float, iterations: int
) -> Callable[[Tensor], Tensor]:
    """Minimise the sum of cross-entropies + l2 / 2 * |weights|^2, scikit-learn's with C = 1 / l2. Returns
    what tells the class of features.
    """
    mean, deviation = features_nd.mean(0), features_nd.std(0).clamp(min=1e-12)
    # In these coordinates it converges; what is penalised are the weights of the features as they are.
    whitened = (features_nd - mean) / deviation
    weights = torch.zeros((features_nd.shape[1], classes), dtype=torch.float64, requires_grad=True)
    bias = torch.zeros(classes, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [weights, bias], max_iter=iterations, tolerance_grad=1e-7, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        logits = whitened @ weights + bias
        penalty = (weights / deviation[:, None]).pow(2).sum() * l2 / 2
        loss = (F.cross_entropy(logits, labels_n, reduction="sum") + penalty) / len(labels_n)
        loss.backward()
        return loss

    optimizer.step(closure)
    with torch.no_grad():
        found, offset = weights.clone(), bias.clone()
    return lambda features: (((features - mean) / deviation) @ found + offset).argmax(1)
