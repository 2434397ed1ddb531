"""Images and texts -> vectors, for evaluation: in batches, decoded by threads, the same at any batch size.

B samples   E length of a vector
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import Literal, TypeVar

import numpy as np
import torch
from torch import Tensor

from flava_model.inputs import normalised
from flava_model.models.flava import Flava
from flava_model.tokens import Tokenizer
from flava_model.views import Views, see
from pmd.stream import Damaged

T = TypeVar("T")
# The whole image, made square, as transformers' and TorchMultimodal's evaluation does; or CLIP's square in
# the middle. The paper does not say which one its numbers are of.
Shape = Literal["whole", "center"]


class Unreadable(Damaged):
    """An image that cannot be decoded: an evaluation without it would be another one."""


def image_vectors(
    model: Flava,
    images: Iterable[tuple[str, bytes]],
    *,
    of: Callable[[Tensor], Tensor] | None = None,
    shape: Shape = "whole",
    batch: int = 64,
    threads: int = 2,
    done: Callable[[int], None] = lambda count: None,
) -> Tensor:
    """A vector for each image: BE, float32, on the CPU. images: names and bytes. of: what makes it of pixels,
    by default model.encode_image.

    Raises Unreadable.
    """
    of = of or model.encode_image
    views, device = Views((model.config.image_size,), shape, exact=True), _device(model)

    def pixels(named: tuple[str, bytes]) -> Tensor:
        name, image = named
        view = np.empty((model.config.image_size, model.config.image_size, 3), np.uint8)
        try:
            see(image, views, [view], key=0)
        except ValueError as error:
            raise Unreadable(f"{name}: {error}; without it this would be another evaluation") from None
        return torch.from_numpy(view).permute(2, 0, 1)

    found: list[Tensor] = []
    count = 0
    with ThreadPoolExecutor(threads, thread_name_prefix="eval") as pool, torch.inference_mode():
        for some in _batched(images, batch):
            seen = torch.stack([*pool.map(pixels, some)]).to(device)
            found.append(of(normalised(seen)).float().cpu())
            count += len(some)
            done(count)
    return torch.cat(found)


def text_vectors(model: Flava, tokenizer: Tokenizer, texts: Sequence[str], *, batch: int = 256) -> Tensor:
    """A vector of length 1 for each text: BE, float32, on the CPU."""
    device = _device(model)
    found: list[Tensor] = []
    with torch.inference_mode():
        for some in _batched(texts, batch):
            encoded = tokenizer.encode(some)
            tokens, there = (torch.from_numpy(one).to(device) for one in (encoded.tokens, encoded.there))
            found.append(model.encode_text(tokens, there).float().cpu())
    return torch.cat(found)


def _batched(items: Iterable[T], size: int) -> Iterator[list[T]]:
    left = iter(items)
    while some := [*islice(left, size)]:
        yield some


def _device(model: Flava) -> torch.device:
    return model.flava.logit_scale.device
