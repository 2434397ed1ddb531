"""What stands on each patch of an image, as one of V codes: the targets of masked image modelling.

    RandomQuantizer   needs no weights: a fixed random projection, and the nearest of V fixed vectors
    DalleEncoder      the encoder of DALL-E's discrete VAE, as FLAVA had it; facebook/flava-image-codebook

Both are frozen: codes are computed in float32 and without gradient, whatever surrounds them. To choose the
largest of 8192 is not something that survives half precision.

    B images   S sides of the codebook's view, px (112)   G patches in a row (14)   V codes
"""

import itertools
from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from flava_model.errors import WrongInput

SHRINKS = 8  # px of the codebook's view to a patch, in each direction


class Codebook(nn.Module, ABC):
    """Gives the codes of images."""

    def codes(self, pixels: Tensor) -> Tensor:
        """pixels: B3SS, of 0 to 1, float or uint8 of 0 to 255; S a multiple of 8. Returns B, G * G, int64."""
        if pixels.ndim != 4 or pixels.shape[1] != 3 or pixels.shape[2] % SHRINKS or pixels.shape[3] % SHRINKS:
            given = tuple(pixels.shape)
            raise WrongInput(f"the codebook's pixels: expected B, 3 and two multiples of 8, given {given}")
        if pixels.dtype == torch.uint8:
            pixels = pixels.float() / 255
        with torch.inference_mode(), torch.autocast(pixels.device.type, enabled=False):
            codes = self._codes(pixels.float())
        return codes.flatten(1).clone()  # out of inference mode: an ordinary tensor

    @abstractmethod
    def _codes(self, pixels: Tensor) -> Tensor:
        """Of float32 pixels of 0 to 1, flat or not."""


class RandomQuantizer(Codebook):
    """Codes of patches by a projection that is never learned (Chiu et al., "Self-supervised learning with
    random-projection quantizer for speech recognition", 2022; here of pixels).

    A patch's pixels are freed of their mean and scale, projected to a few dimensions, and the code is the
    vector that lies nearest in angle. All follows from the seed.
    """

    def __init__(self, codes: int = 8192, dimensions: int = 16, seed: int = 0) -> None:
        super().__init__()
        self.settings = {"codes": codes, "dimensions": dimensions, "seed": seed}
        chance = torch.Generator().manual_seed(seed)
        inputs = 3 * SHRINKS**2
        projection = torch.randn((inputs, dimensions), generator=chance) / inputs**0.5
        vectors = F.normalize(torch.randn((codes, dimensions), generator=chance), dim=-1)
        self.register_buffer("projection", projection, persistent=False)
        self.register_buffer("vectors", vectors, persistent=False)

    def _codes(self, pixels: Tensor) -> Tensor:
        patches = F.unfold(pixels, SHRINKS, stride=SHRINKS).transpose(1, 2)
        patches = F.layer_norm(patches, patches.shape[-1:], eps=1e-4)
        projected = patches @ self.get_buffer("projection")
        return (projected @ self.get_buffer("vectors").T).argmax(-1)


class DalleEncoder(Codebook):
    """The encoder of Ramesh et al., "Zero-shot text-to-image generation", 2021. Parameters are called as in
    facebook/flava-image-codebook.
    """

    def __init__(self, codes: int = 8192, width: int = 256) -> None:
        super().__init__()
        self.count = codes
        sizes = (width, width, 2 * width, 4 * width, 8 * width)
        groups = itertools.pairwise(sizes)
        named = {f"group_{number}": _Group(*size, pooled=number < 4) for number, size in enumerate(groups, 1)}
        self.blocks = nn.ModuleDict(
            {
                "input": nn.Conv2d(3, width, 7, padding=3),
                **named,
                "output": nn.ModuleDict({"conv": nn.Conv2d(sizes[-1], codes, 1)}),
            }
        )
        self.requires_grad_(False)

    def train(self, mode: bool = True) -> "DalleEncoder":
        """It never is."""
        return super().train(False)

    def logits(self, pixels: Tensor) -> Tensor:
        """pixels: B3SS of 0 to 1. Returns BVGG."""
        x = 0.8 * pixels + 0.1  # DALL-E's logit-Laplace distribution is of 0.1 to 0.9
        for name, block in self.blocks.items():
            x = self.blocks["output"].get_submodule("conv")(F.relu(x)) if name == "output" else block(x)
        return x

    def _codes(self, pixels: Tensor) -> Tensor:
        return self.logits(pixels).argmax(1)


_LAYERS = 8  # of residual blocks: what they add is divided by the square of it


class _Group(nn.Module):
    def __init__(self, inputs: int, outputs: int, *, pooled: bool) -> None:
        super().__init__()
        self.group = nn.ModuleDict({"block_1": _Block(inputs, outputs), "block_2": _Block(outputs, outputs)})
        self._pooled = pooled

    def forward(self, x: Tensor) -> Tensor:
        for block in self.group.values():
            x = block(x)
        return F.max_pool2d(x, 2) if self._pooled else x


class _Block(nn.Module):
    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.id_path = nn.Identity() if inputs == outputs else nn.Conv2d(inputs, outputs, 1)
        self.res_path = _Residual(inputs, outputs)

    def forward(self, x: Tensor) -> Tensor:
        return self.id_path(x) + self.res_path(x) / _LAYERS**2


class _Residual(nn.Module):
    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        hidden = outputs // 4
        self.path = nn.ModuleDict(
            {
                "conv_1": nn.Conv2d(inputs, hidden, 3, padding=1),
                "conv_2": nn.Conv2d(hidden, hidden, 3, padding=1),
                "conv_3": nn.Conv2d(hidden, hidden, 3, padding=1),
                "conv_4": nn.Conv2d(hidden, outputs, 1),
            }
        )

    def forward(self, x: Tensor) -> Tensor:
        for conv in self.path.values():
            x = conv(F.relu(x))
        return x
