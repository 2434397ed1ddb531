"""Losses as sums and counts, so that averages over ranks and micro-batches are those of the whole batch.

B samples of this rank   A samples of all ranks   N masked positions   V classes   D width
"""

from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import _functional_collectives as collectives
from torch.nn import functional as F

# The one of torch's gathers that carries gradients and may be compiled; it has this name since torch 2.13.
_gathered = getattr(collectives, "all_gather_single_autograd", None) or collectives.all_gather_tensor_autograd

IGNORED = -100  # as a label: nothing is to be learned here


@dataclass(frozen=True)
class Loss:
    """A mean in two parts. Over several ranks: the sum of the sums by the sum of the counts."""

    sum: Tensor
    count: Tensor  # float32, without gradient

    def mean(self) -> Tensor:
        """Of this rank alone; 0 of nothing."""
        return self.sum / self.count.clamp(min=1)


def cross_entropy(logits_nv: Tensor, labels_n: Tensor) -> Loss:
    """In float32. Labels that are IGNORED count for nothing."""
    total = F.cross_entropy(logits_nv.float(), labels_n, ignore_index=IGNORED, reduction="sum")
    return Loss(total, (labels_n != IGNORED).sum().float())


def contrastive(image_bd: Tensor, text_bd: Tensor, scale: Tensor, rows_b: Tensor | None = None) -> Loss:
    """Which text belongs to which image, and the other way around, among those of all ranks (Radford et al.,
    2021), with the gradient also of the other ranks' samples.

    image_bd, text_bd: of length 1. rows_b: which samples are asked about; the others are wrong answers only.
    """
    image_ad, text_ad, first = image_bd, text_bd, 0
    if dist.is_initialized() and dist.get_world_size() > 1:
        world = dist.group.WORLD
        assert world is not None
        image_ad, text_ad = (_gathered(one, 0, world) for one in (image_bd, text_bd))
        first = dist.get_rank() * len(image_bd)
    right = torch.arange(first, first + len(image_bd), device=image_bd.device)
    logits_ba = scale * image_bd.float() @ text_ad.float().T, scale * text_bd.float() @ image_ad.float().T
    rows = torch.ones_like(right, dtype=torch.float32) if rows_b is None else rows_b.float()
    each = [F.cross_entropy(logits, right, reduction="none") for logits in logits_ba]
    return Loss(((each[0] + each[1]) / 2 * rows).sum(), rows.sum())
