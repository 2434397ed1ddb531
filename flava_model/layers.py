"""What transformers of several models have in common: attention, blocks, heads.

Shapes in names and comments:

    B samples   L tokens   D width   H heads   N those of the tokens that are made   V classes

Modules and parameters are called as in the checkpoints that `transformers` writes for FLAVA, so that a state
dict is such a checkpoint and nothing has to be renamed.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint


class LayerNorm(nn.LayerNorm):
    """In float32, also where autocast or the model itself has less: sums of squares overflow in half
    precision. In float32 it is torch's own.
    """

    def forward(self, input: Tensor) -> Tensor:
        if input.dtype == torch.float32:
            return super().forward(input)
        weight, bias = self.weight.float(), self.bias.float()
        return F.layer_norm(input.float(), self.normalized_shape, weight, bias, self.eps).to(input.dtype)


class _Heads(nn.Module):
    """Query, key and value, and what the heads make of them."""

    def __init__(self, width: int, heads: int, *, bias: bool) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(width, width, bias=bias)
        self.key = nn.Linear(width, width, bias=bias)
        self.value = nn.Linear(width, width, bias=bias)

    def forward(self, x_bld: Tensor, attended: Tensor | None, asking_bn: Tensor | None) -> Tensor:
        def by_head(linear: nn.Linear, x: Tensor) -> Tensor:
            return linear(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)

        out_bhnd = F.scaled_dot_product_attention(
            by_head(self.query, _taken(x_bld, asking_bn)),
            by_head(self.key, x_bld),
            by_head(self.value, x_bld),
            attn_mask=attended,
        )
        return out_bhnd.transpose(1, 2).flatten(2)


def _taken(x_bld: Tensor, places_bn: Tensor | None) -> Tensor:
    """The tokens at these places; None: all."""
    return x_bld if places_bn is None else x_bld.take_along_dim(places_bn[..., None], 1)


class _Dense(nn.Module):
    """A linear layer under the name that checkpoints have for it."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.dense = nn.Linear(inputs, outputs)

    def forward(self, x: Tensor) -> Tensor:
        return self.dense(x)


class _Attention(nn.Module):
    def __init__(self, width: int, heads: int, *, bias: bool) -> None:
        super().__init__()
        self.attention = _Heads(width, heads, bias=bias)
        self.output = _Dense(width, width)

    def forward(self, x_bld: Tensor, attended: Tensor | None, asking_bn: Tensor | None) -> Tensor:
        return self.output(self.attention(x_bld, attended, asking_bn))


class Block(nn.Module):
    """A pre-norm transformer block (Dosovitskiy et al., 2021): attention and MLP, each beside a residual."""

    def __init__(self, width: int, heads: int, mlp: int, *, eps: float, qkv_bias: bool = True) -> None:
        super().__init__()
        self.layernorm_before = LayerNorm(width, eps)
        self.attention = _Attention(width, heads, bias=qkv_bias)
        self.layernorm_after = LayerNorm(width, eps)
        self.intermediate = _Dense(width, mlp)
        self.output = _Dense(mlp, width)
        self.recomputed = False  # in the backward pass, instead of keeping what is in between

    def forward(
        self, x_bld: Tensor, attended: Tensor | None = None, asking_bn: Tensor | None = None
    ) -> Tensor:
        """attended: which tokens may be looked at, True for those; broadcast to B, 1, N, L. asking_bn: places
        of the tokens to make, where no others are read.
        """
        if self.recomputed and torch.is_grad_enabled():
            return checkpoint(self._made, x_bld, attended, asking_bn, use_reentrant=False)  # pyright: ignore
        return self._made(x_bld, attended, asking_bn)

    def _made(self, x_bld: Tensor, attended: Tensor | None, asking_bn: Tensor | None) -> Tensor:
        kept = _taken(x_bld, asking_bn) + self.attention(self.layernorm_before(x_bld), attended, asking_bn)
        return kept + self.output(F.gelu(self.intermediate(self.layernorm_after(kept))))


class Encoder(nn.Module):
    """Blocks one after another, the last of which may make a part of the tokens."""

    def __init__(self, depth: int, width: int, heads: int, mlp: int, **how: Any) -> None:
        super().__init__()
        self.layer = nn.ModuleList(Block(width, heads, mlp, **how) for _ in range(depth))

    def forward(
        self, x_bld: Tensor, attended: Tensor | None = None, asking_bn: Tensor | None = None
    ) -> Tensor:
        *blocks, last = self.layer
        for block in blocks:
            x_bld = block(x_bld, attended)
        return last(x_bld, attended, asking_bn)


class Pooler(nn.Module):
    """tanh of a linear layer on the first token."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.dense = nn.Linear(width, width)

    def forward(self, x_bld: Tensor) -> Tensor:
        return torch.tanh(self.dense(x_bld[:, 0]))


class _Transform(nn.Module):
    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.dense = nn.Linear(width, width)
        self.LayerNorm = LayerNorm(width, eps)

    def forward(self, x: Tensor) -> Tensor:
        return self.LayerNorm(F.gelu(self.dense(x)))


class PredictionHead(nn.Module):
    """Which code or word stood where something was masked (BERT's head): logits of V classes."""

    def __init__(self, width: int, classes: int, *, eps: float) -> None:
        super().__init__()
        self.transform = _Transform(width, eps)
        self.decoder = nn.Linear(width, classes)
        # Checkpoints have it under both names.
        self.bias = self.decoder.bias

    def forward(self, x_nd: Tensor) -> Tensor:
        return self.decoder(self.transform(x_nd))
