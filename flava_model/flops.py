"""How many floating-point operations a training step needs, and how many a device can do.

A product of (N, K) and (K, M) is 2 NKM, and a step is three forward passes: the backward one has a product
for each of the two factors. Counted is what the losses need, not what is done: norms, GELU and softmax are
left out, and so is what is computed twice to save memory.
"""

import time

import torch

from flava_model.config import Kind
from flava_model.models.flava import FlavaConfig

# Products of bfloat16 matrices, dense, FLOP/s, as NVIDIA states them.
_PEAKS = {"H200": 989e12, "H100": 989e12, "A100": 312e12, "L40S": 362e12, "L4": 121e12, "B200": 2250e12}


def step_flop(
    config: FlavaConfig, kind: Kind, samples: int, *, length: int = 0, patches: int = 0, tokens: int = 0
) -> float:
    """Of an update with so many samples. length: of texts, with padding. patches, tokens: that are hidden of
    each sample.
    """
    width, image = config.width, 1 + config.patches
    heads = patches * (width**2 + width * config.codes) + tokens * (width**2 + width * config.vocabulary)
    embedding = config.patches * 3 * config.patch_size**2 * width
    if kind == "images":
        products = _encoder(config, config.image_layers, image, patches)
    elif kind == "texts":
        products, embedding = _encoder(config, config.text_layers, length, tokens), 0
    else:
        products = 0
        for layers, whole in ((config.image_layers, image), (config.text_layers, length)):
            products += _encoder(config, layers, whole, 1) + _encoder(config, layers, whole, whole)
        products += (image + length) * width**2  # into the multimodal encoder
        products += _encoder(config, config.multimodal_layers, 1 + image + length, 1 + patches + tokens)
        products += 2 * width * config.projection + 2 * samples * config.projection  # contrastive
        products += width**2 + 2 * width  # matching
    # The patch embedding has no gradient for its input.
    return 2.0 * samples * (3 * (products + heads) + 2 * embedding)


def _encoder(config: FlavaConfig, layers: int, tokens: int, made: int) -> int:
    """Products of an encoder, of one sample, whose last block makes so many of the tokens."""
    square, mlp = config.width**2, config.width * config.mlp

    def block(made: int) -> int:
        return 2 * square * tokens + (2 * square + 2 * mlp + 2 * tokens * config.width) * made

    return (layers - 1) * block(tokens) + block(made)


def peak(device: torch.device, dtype: torch.dtype) -> float:
    """FLOP/s of one device: as its maker states them for bfloat16, else of one large product, measured."""
    if device.type == "cuda" and dtype == torch.bfloat16:
        name = torch.cuda.get_device_name(device)
        for known, flop in _PEAKS.items():
            if known in name.replace(" ", ""):
                return flop
    side = 1_024 if device.type == "cpu" else 8_192
    factor = torch.randn((side, side), device=device).to(dtype)
    best = float("inf")
    for _ in range(5):
        begun = time.perf_counter()
        (factor @ factor)[0, 0].item()  # which waits for a GPU
        best = min(best, time.perf_counter() - begun)
    return 2 * side**3 / best
