"""Losses as sums and counts, so that averages over ranks and micro-batches are those of the whole batch.

B samples of this rank   A samples of all ranks   N masked positions   V classes   D width
"""

from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import _functional_collectives as collectives
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

# The one of torch's gathers that carries gradients and may be compiled; it has this name since torch 2.13.
_gathered = getattr(collectives, "all_gather_single_autograd", None) or collectives.all_gather_tensor_autograd

IGNORED = -100  # as a label: nothing is to be learned here


@dataclass(frozen=True)
class Loss:
    """A mean in two parts. Over several ranks: the sum of the sums by the sum of the counts."""

    sum: Tensor
    count: Tensor  # float32, without gradient
    right: Tensor  # of the count, how many answers are right; float32, without gradient

    def mean(self) -> Tensor:
        """Of this rank alone; 0 of nothing."""
        return self.sum / self.count.clamp(min=1)


def cross_entropy(logits_nv: Tensor, labels_n: Tensor) -> Loss:
    """In float32. Labels that are IGNORED count for nothing."""
    total = F.cross_entropy(logits_nv.float(), labels_n, ignore_index=IGNORED, reduction="sum")
    right = (logits_nv.detach().argmax(-1) == labels_n).sum().float()
    return Loss(total, (labels_n != IGNORED).sum().float(), right)


def contrastive(
    image_bd: Tensor,
    text_bd: Tensor,
    scale: Tensor,
    rows_b: Tensor | None = None,
    *,
    tile: int | None = None,
) -> Loss:
    """Which text belongs to which image, and the other way around, among those of all ranks (Radford et al.,
    2021), with the gradient also of the other ranks' samples.

    image_bd, text_bd: of length 1. rows_b: which samples are asked about; the others are wrong answers only.
    tile: rows at a time, whose logits are made again for the backward pass instead of being kept.
    """
    image_ad, text_ad, first = image_bd, text_bd, 0
    if dist.is_initialized() and dist.get_world_size() > 1:
        world = dist.group.WORLD
        assert world is not None
        image_ad, text_ad = (_gathered(one, 0, world) for one in (image_bd, text_bd))
        first = dist.get_rank() * len(image_bd)
    place_b = torch.arange(first, first + len(image_bd), device=image_bd.device)
    rows = torch.ones_like(place_b, dtype=torch.float32) if rows_b is None else rows_b.float()
    total, right = rows.new_zeros(()), rows.new_zeros(())
    for asking_bd, answers_ad in ((image_bd, text_ad), (text_bd, image_ad)):
        for begin in range(0, len(asking_bd), tile or len(asking_bd)):
            part = slice(begin, begin + (tile or len(asking_bd)))
            given = asking_bd[part], answers_ad, scale, place_b[part], rows[part]
            found = _asked(*given) if tile is None else checkpoint(_asked, *given, use_reentrant=False)
            assert found is not None
            total, right = total + found[0] / 2, right + found[1] / 2
    return Loss(total, rows.sum(), right)


def _asked(
    asking_bd: Tensor, answers_ad: Tensor, scale: Tensor, place_b: Tensor, rows_b: Tensor
) -> tuple[Tensor, Tensor]:
    logits_ba = scale * asking_bd.float() @ answers_ad.float().T
    each_b = F.cross_entropy(logits_ba, place_b, reduction="none")
    right_b = logits_ba.detach().argmax(1) == place_b
    return (each_b * rows_b).sum(), (right_b * rows_b).sum()


@dataclass(frozen=True)
class CachedContrast:
    """The contrastive loss of a whole batch, as one of its micro-batches sees it: the gradients that its
    vectors have, and its part of the loss.
    """

    image_bd: Tensor
    text_bd: Tensor
    scale: Tensor
    sum: Tensor
    count: Tensor
    right: Tensor

    def loss(self, image_bd: Tensor, text_bd: Tensor, scale: Tensor) -> Loss:
        """Has these gradients."""
        carried = (image_bd.float() * self.image_bd).sum() + (text_bd.float() * self.text_bd).sum()
        carried = carried + scale * self.scale
        return Loss(self.sum + carried - carried.detach(), self.count, self.right)


def cached_contrast(
    image_ad: Tensor,
    text_ad: Tensor,
    scale: Tensor,
    rows_a: Tensor | None,
    *,
    size: int,
    tile: int | None = None,
) -> list[CachedContrast]:
    """The contrastive loss of this rank's whole batch, for its micro-batches of `size` each. Collective.

    image_ad, text_ad: the vectors of all of them, made without gradient.
    """
    image, text, factor = (one.detach().float().requires_grad_() for one in (image_ad, text_ad, scale))
    with torch.enable_grad():
        loss = contrastive(image, text, factor, rows_a, tile=tile)
        gradients = torch.autograd.grad(loss.sum, (image, text, factor))
    of_scale, nothing = gradients[2], torch.zeros_like(loss.count)
    parts: list[CachedContrast] = []
    for image_bd, text_bd in zip(gradients[0].split(size), gradients[1].split(size), strict=True):
        if parts:  # the first has all of the loss, and the scale's gradient
            parts.append(CachedContrast(image_bd, text_bd, nothing, nothing, nothing, nothing))
        else:
            parts.append(
                CachedContrast(image_bd, text_bd, of_scale, loss.sum.detach(), loss.count, loss.right)
            )
    return parts
