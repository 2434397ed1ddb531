"""FLAVA (Singh et al., CVPR 2022): an image, a text and a multimodal encoder, and six losses.

    pixels --image encoder--> states --+--> last layer norm -> CLS -> projection ----+-- contrastive
                                       |                   -> patches -> MIM head    |
                                       +--> to_mm --+                                |
                                                    +--> multimodal encoder --> MMM heads, ITM head
                                       +--> to_mm --+                                |
    tokens --text encoder---> states --+--> last layer norm -> CLS -> projection ----+
                                                           -> tokens -> MLM head

The paper, the released weights and the two public implementations disagree in places. Where they do there is
a field of FlavaConfig, whose default is stated with its reason. Modules and parameters are called as in
`facebook/flava-full`, so a state dict of this model is one of those checkpoints.

Shapes:

    B samples   P patches   T tokens   L either   N of them predicted   D width   H, W sides of the image, px
"""

from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from flava_model.codebook import SHRINKS, Codebook
from flava_model.errors import WrongInput
from flava_model.inputs import Inputs
from flava_model.layers import Block, Encoder, LayerNorm, Pooler, PredictionHead
from flava_model.losses import IGNORED, CachedContrast, Loss, contrastive, cross_entropy


@dataclass(frozen=True)
class FlavaConfig:
    """The defaults are those of facebook/flava-full but where it says so."""

    image_size: int = 224  # px
    patch_size: int = 16  # px
    width: int = 768
    heads: int = 12
    mlp: int = 3072
    image_layers: int = 12
    text_layers: int = 12
    multimodal_layers: int = 6
    vocabulary: int = 30_522  # of bert-base-uncased
    positions: int = 512  # tokens of a text, at most
    token_types: int = 2
    codes: int = 8192  # of the image codebook
    # The paper's table A.1 says 512; the released weights have 768.
    projection: int = 768
    qkv_bias: bool = True
    layer_norm_eps: float = 1e-12
    # Of the four prediction heads. TorchMultimodal has 1e-5; the released weights are loaded with 1e-12.
    head_layer_norm_eps: float = 1e-12
    # Whether the multimodal encoder looks at the padding of a text. TorchMultimodal does, and the released
    # weights seem to have been trained so: their MMM loss is lower with it. But padding has nothing to say,
    # and makes a sample's loss depend on the length of its neighbours: not so by default.
    attend_text_padding: bool = False
    logit_scale: float = 2.6592  # ln(1 / 0.07), as far as the released config writes it
    logit_scale_max: float = 4.6052  # ln(100)
    # Whether evaluation too brings the logit scale within its bounds, as TorchMultimodal's does. Not by
    # default: to evaluate a model is not to change it.
    clamp_logit_scale_in_evaluation: bool = False
    initializer_range: float = 0.02

    @property
    def grid(self) -> int:
        """Patches in a row of the image."""
        return self.image_size // self.patch_size

    @property
    def patches(self) -> int:
        return self.grid**2


PRESETS: dict[str, FlavaConfig] = {
    "tiny": FlavaConfig(
        image_size=64,
        width=128,
        heads=4,
        mlp=512,
        image_layers=4,
        text_layers=4,
        multimodal_layers=2,
        projection=128,
    ),
    "small": FlavaConfig(width=384, heads=6, mlp=1536, projection=384),
    "base": FlavaConfig(),  # 350M of the scaling study: 241M parameters, 304M with the heads
    # Of TorchMultimodal's scaling study.
    "900m": FlavaConfig(
        width=1024, heads=16, mlp=4096, image_layers=24, text_layers=24, multimodal_layers=12
    ),
    "1.8b": FlavaConfig(
        width=1280, heads=16, mlp=5120, image_layers=32, text_layers=32, multimodal_layers=16
    ),
    "2.7b": FlavaConfig(
        width=1408, heads=16, mlp=6144, image_layers=40, text_layers=40, multimodal_layers=20
    ),
    "4.8b": FlavaConfig(
        width=1664, heads=16, mlp=8192, image_layers=48, text_layers=48, multimodal_layers=24
    ),
    "10b": FlavaConfig(
        width=2048, heads=16, mlp=10240, image_layers=64, text_layers=64, multimodal_layers=40
    ),
}


@dataclass
class FlavaBatch:
    """What the losses read; what is None is not computed. Pairs, images alone, or texts alone."""

    pixels: Tensor | None = None  # B3HW, normalised
    patch_mask: Tensor | None = None  # BP, bool: which patches are hidden
    codes: Tensor | None = None  # BP, int64: what is on each patch
    tokens: Tensor | None = None  # BT, int64
    tokens_masked: Tensor | None = None  # BT, int64
    token_labels: Tensor | None = None  # BT, int64: what was hidden, IGNORED elsewhere
    text_mask: Tensor | None = None  # BT, bool: True where there is no padding; None: nowhere
    matches: Tensor | None = None  # B, bool: the text belongs to the image; None: all do
    # No row hides more than so many. One that does is refused on the CPU; elsewhere what is too much of it is
    # not predicted. None: the masks are looked at, and shapes depend on what is hidden, which is to wait for
    # a GPU and the end of a compiled graph.
    patches_hidden: int | None = None
    tokens_hidden: int | None = None
    # Of a part of a batch: B, bool, the rows that more is learned from than whether they match; None: those
    # that match, or all where none does. And its part of the contrastive loss, which is one of the whole.
    learned: Tensor | None = None
    contrast: CachedContrast | None = None

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> "FlavaBatch":
        tensors = {name: value for name, value in vars(self).items() if isinstance(value, Tensor)}
        moved = {name: value.to(device, non_blocking=non_blocking) for name, value in tensors.items()}
        return replace(self, **moved)


# The encoders


class _PatchEmbeddings(nn.Module):
    def __init__(self, config: FlavaConfig) -> None:
        super().__init__()
        size = config.patch_size
        self.projection = nn.Conv2d(3, config.width, kernel_size=size, stride=size)

    def forward(self, pixels_b3hw: Tensor) -> Tensor:
        return self.projection(pixels_b3hw).flatten(2).transpose(1, 2)


class _ImageEmbeddings(nn.Module):
    def __init__(self, config: FlavaConfig) -> None:
        super().__init__()
        self._grid, self._patch = config.grid, config.patch_size
        self.cls_token = nn.Parameter(torch.zeros(1, 1, config.width))
        self.mask_token = nn.Parameter(torch.zeros(1, 1, config.width))
        self.position_embeddings = nn.Parameter(torch.zeros(1, 1 + config.patches, config.width))
        self.patch_embeddings = _PatchEmbeddings(config)

    def hidden(self, patches_bpd: Tensor, mask_bp: Tensor) -> Tensor:
        """The mask token where the mask is True."""
        return torch.where(mask_bp[..., None], self.mask_token.to(patches_bpd.dtype), patches_bpd)

    def placed(self, patches_bpd: Tensor, height: int, width: int) -> Tensor:
        """With CLS before them, and positions."""
        cls_b1d = self.cls_token.expand(len(patches_bpd), -1, -1)
        return torch.cat((cls_b1d, patches_bpd), 1) + self._positions(height, width)

    def _positions(self, height: int, width: int) -> Tensor:
        """Interpolated where the image has another size than that of training."""
        rows, columns = height // self._patch, width // self._patch
        if (rows, columns) == (self._grid, self._grid):
            return self.position_embeddings
        table = self.position_embeddings[:, 1:].unflatten(1, (self._grid, self._grid)).permute(0, 3, 1, 2)
        table = F.interpolate(table, size=(rows, columns), mode="bicubic", align_corners=False)
        return torch.cat((self.position_embeddings[:, :1], table.flatten(2).transpose(1, 2)), 1)


class _ImageModel(nn.Module):
    def __init__(self, config: FlavaConfig) -> None:
        super().__init__()
        self.embeddings = _ImageEmbeddings(config)
        self.encoder = _encoder(config, config.image_layers)
        self.layernorm = LayerNorm(config.width, config.layer_norm_eps)
        self.pooler = Pooler(config.width)


class _TextEmbeddings(nn.Module):
    def __init__(self, config: FlavaConfig) -> None:
        super().__init__()
        self.word_embeddings = nn.Embedding(config.vocabulary, config.width, padding_idx=0)
        self.position_embeddings = nn.Embedding(config.positions, config.width)
        self.token_type_embeddings = nn.Embedding(config.token_types, config.width)
        self.LayerNorm = LayerNorm(config.width, config.layer_norm_eps)

    def forward(self, tokens_bt: Tensor) -> Tensor:
        places = self.position_embeddings.weight[: tokens_bt.shape[1]]
        return self.LayerNorm(self.word_embeddings(tokens_bt) + places + self.token_type_embeddings.weight[0])


class _TextModel(nn.Module):
    def __init__(self, config: FlavaConfig) -> None:
        super().__init__()
        self.embeddings = _TextEmbeddings(config)
        self.encoder = _encoder(config, config.text_layers)
        self.layernorm = LayerNorm(config.width, config.layer_norm_eps)
        self.pooler = Pooler(config.width)


class _MultimodalModel(nn.Module):
    def __init__(self, config: FlavaConfig) -> None:
        super().__init__()
        self.cls_token = nn.Parameter(torch.zeros(1, 1, config.width))
        self.encoder = _encoder(config, config.multimodal_layers)
        self.layernorm = LayerNorm(config.width, config.layer_norm_eps)
        self.pooler = Pooler(config.width)


def _encoder(config: FlavaConfig, layers: int) -> Encoder:
    return Encoder(
        layers, config.width, config.heads, config.mlp, eps=config.layer_norm_eps, qkv_bias=config.qkv_bias
    )


class _Core(nn.Module):
    """The encoders and their projections: what is used after training."""

    def __init__(self, config: FlavaConfig) -> None:
        super().__init__()
        self.image_model = _ImageModel(config)
        self.text_model = _TextModel(config)
        self.multimodal_model = _MultimodalModel(config)
        self.image_projection = nn.Linear(config.width, config.projection)
        self.text_projection = nn.Linear(config.width, config.projection)
        self.logit_scale = nn.Parameter(torch.tensor(config.logit_scale))
        self.image_to_mm_projection = nn.Linear(config.width, config.width)
        self.text_to_mm_projection = nn.Linear(config.width, config.width)


class _MatchHead(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.pooler = Pooler(width)
        self.seq_relationship = nn.Linear(width, 2)

    def forward(self, x_bld: Tensor) -> Tensor:
        return self.seq_relationship(self.pooler(x_bld))


class Flava(nn.Module):
    """The whole model."""

    def __init__(self, config: FlavaConfig | None = None, image_codebook: Codebook | None = None) -> None:
        """image_codebook: that of its images' codes. It is kept with the model, and no loss asks it."""
        super().__init__()
        self.config = config = config or FlavaConfig()
        self.flava = _Core(config)
        eps = config.head_layer_norm_eps
        self.mim_head = PredictionHead(config.width, config.codes, eps=eps)
        self.mlm_head = PredictionHead(config.width, config.vocabulary, eps=eps)
        self.itm_head = _MatchHead(config.width)
        self.mmm_image_head = PredictionHead(config.width, config.codes, eps=eps)
        self.mmm_text_head = PredictionHead(config.width, config.vocabulary, eps=eps)
        self.apply(self._begin)
        self.image_codebook = image_codebook

    def _begin(self, module: nn.Module) -> None:
        """Weights from N(0, initializer_range), biases 0; CLS, mask and image positions stay 0."""
        if isinstance(module, nn.Linear | nn.Conv2d | nn.Embedding):
            nn.init.normal_(module.weight, std=self.config.initializer_range)
            if isinstance(module, nn.Embedding):
                if module.padding_idx is not None:
                    nn.init.zeros_(module.weight[module.padding_idx])
            elif module.bias is not None:
                nn.init.zeros_(module.bias)

    def blocks(self) -> list[Block]:
        """Of all encoders."""
        return [module for module in self.modules() if isinstance(module, Block)]

    def recompute(self, whether: bool = True) -> None:
        """Keep only what goes from block to block for the backward pass, and compute the rest again: a third
        more work for a fraction of the memory.
        """
        for block in self.blocks():
            block.recomputed = whether

    # Encoding

    def image_states(self, pixels: Tensor, patch_mask: Tensor | None = None) -> "States":
        """All tokens of some images: B, 1 + P, D. Images of another size than that of training are taken too,
        with positions interpolated; patch_mask: BP, hides patches.
        """
        self._check_pixels(pixels)
        embeddings, height, width = self.flava.image_model.embeddings, *pixels.shape[-2:]
        patches = embeddings.patch_embeddings(pixels)
        if patch_mask is not None:
            _expect("patch_mask", patch_mask, (*patches.shape[:2],), torch.bool)
            patches = embeddings.hidden(patches, patch_mask)
        hidden = self.flava.image_model.encoder(embeddings.placed(patches, height, width))
        return States(hidden, self.flava.image_model.layernorm(hidden))

    def text_states(self, tokens: Tensor, text_mask: Tensor | None = None) -> "States":
        """All tokens of some texts: B, T, D. text_mask: BT, True where there is no padding."""
        self._check_tokens("tokens", tokens)
        attended = self._attended(tokens, text_mask)
        hidden = self.flava.text_model.encoder(self.flava.text_model.embeddings(tokens), attended)
        return States(hidden, self.flava.text_model.layernorm(hidden))

    def multimodal_states(self, image: "States", text: "States", text_mask: Tensor | None = None) -> "States":
        """All tokens of some pairs: B, 1 + (1 + P) + T, D, which are CLS, the image's, the text's."""
        hidden = self._fused(image.hidden, text.hidden, text_mask)
        return States(hidden, self.flava.multimodal_model.layernorm(hidden))

    def encode_image(self, pixels: Tensor) -> Tensor:
        """One vector of length 1 an image, next to those of its texts: B, projection."""
        states = self.image_states(pixels).normed[:, 0]
        return F.normalize(self.flava.image_projection(states), dim=-1)

    def encode_text(self, tokens: Tensor, text_mask: Tensor | None = None) -> Tensor:
        """One vector of length 1 a text, next to those of its images: B, projection."""
        states = self.text_states(tokens, text_mask).normed[:, 0]
        return F.normalize(self.flava.text_projection(states), dim=-1)

    def encode_multimodal(self, pixels: Tensor, tokens: Tensor, text_mask: Tensor | None = None) -> Tensor:
        """The CLS of each pair: B, D."""
        image, text = self.image_states(pixels), self.text_states(tokens, text_mask)
        return self.multimodal_states(image, text, text_mask).normed[:, 0]

    # Losses

    def losses(self, batch: FlavaBatch, *, tile: int | None = None) -> dict[str, Loss]:
        """Every loss that a batch is for: of pairs contrastive, ITM, both MMM; of images MIM; of texts MLM.

        A clean and a masked pass of one encoder are one batch. The last block of each encoder makes no tokens
        but those that are read: of clean ones the CLS, of masked ones what is predicted. Raises WrongInput.

        tile: rows of the contrastive loss at a time, for memory; see there.

        Of batches that say how much they hide, `torch.compile(model.losses, fullgraph=True)` makes one graph
        for each kind and size.
        """
        self._check(batch)
        if batch.tokens_masked is None:
            return self._image_losses(batch)
        if batch.pixels is None:
            return self._text_losses(batch)
        return self._pair_losses(batch, tile)

    def _image_losses(self, batch: FlavaBatch) -> dict[str, Loss]:
        assert batch.pixels is not None and batch.patch_mask is not None and batch.codes is not None
        model = self.flava.image_model
        patches = model.embeddings.hidden(model.embeddings.patch_embeddings(batch.pixels), batch.patch_mask)
        asked = _asked(batch.patch_mask, batch.codes, batch.patches_hidden)
        placed = model.embeddings.placed(patches, *batch.pixels.shape[-2:])
        hidden = model.encoder(placed, None, 1 + asked.places_bn)
        return {"mim": _predicted(hidden, asked, model.layernorm, self.mim_head)}

    def _text_losses(self, batch: FlavaBatch) -> dict[str, Loss]:
        assert batch.tokens_masked is not None and batch.token_labels is not None
        attended = self._attended(batch.tokens_masked, batch.text_mask)
        model, labels = self.flava.text_model, batch.token_labels
        asked = _asked(labels != IGNORED, labels, batch.tokens_hidden)
        hidden = model.encoder(model.embeddings(batch.tokens_masked), attended, asked.places_bn)
        return {"mlm": _predicted(hidden, asked, model.layernorm, self.mlm_head)}

    def _pair_losses(self, batch: FlavaBatch, tile: int | None) -> dict[str, Loss]:
        pixels, tokens, tokens_masked = batch.pixels, batch.tokens, batch.tokens_masked
        patch_mask, codes, labels = batch.patch_mask, batch.codes, batch.token_labels
        assert pixels is not None and tokens is not None and tokens_masked is not None
        assert patch_mask is not None and codes is not None and labels is not None
        core, count = self.flava, len(pixels)

        embeddings = core.image_model.embeddings
        patches = embeddings.patch_embeddings(pixels)
        both = torch.cat((patches, embeddings.hidden(patches, patch_mask)))
        both = embeddings.placed(both, *pixels.shape[-2:])
        image_cls, image_hidden = _clean_and_masked(core.image_model.encoder, both, None)

        both = core.text_model.embeddings(torch.cat((tokens, tokens_masked)))
        attended = self._attended(tokens, batch.text_mask)
        text_cls, text_hidden = _clean_and_masked(core.text_model.encoder, both, attended)

        image = F.normalize(core.image_projection(core.image_model.layernorm(image_cls)), dim=-1)
        text = F.normalize(core.text_projection(core.text_model.layernorm(text_cls)), dim=-1)

        # Of pairs that are none, nothing is to be learned but that. Where there is no other, all count: a
        # batch of mismatches alone must not be a batch of nothing.
        matches = torch.ones(count, dtype=torch.bool, device=pixels.device)
        if batch.matches is not None:
            matches = batch.matches | ~batch.matches.any()
        if batch.learned is not None:
            matches = batch.learned
        rows = matches[:, None]
        asked_image = _asked(patch_mask & rows, codes, batch.patches_hidden)
        asked_text = _asked((labels != IGNORED) & rows, labels, batch.tokens_hidden)
        answer = (torch.ones_like(matches) if batch.matches is None else batch.matches).long()

        # CLS, the image's CLS, its patches, the text.
        places = (_first(patches), 2 + asked_image.places_bn, 2 + patches.shape[1] + asked_text.places_bn)
        fused = self._fused(image_hidden, text_hidden, batch.text_mask, torch.cat(places, 1))
        cls, image_tokens, text_tokens = fused.split([part.shape[1] for part in places], 1)
        norm = core.multimodal_model.layernorm
        return {
            "mmm_image": _predicted(image_tokens, asked_image, norm, self.mmm_image_head),
            "mmm_text": _predicted(text_tokens, asked_text, norm, self.mmm_text_head),
            "itm": cross_entropy(self.itm_head(norm(cls)), answer),
            "global_contrastive": (
                contrastive(image, text, self.scale(), matches, tile=tile)
                if batch.contrast is None
                else batch.contrast.loss(image, text, self.scale())
            ),
        }

    def scale(self) -> Tensor:
        """What similarities are multiplied by: exp of a learned number, between 1 and 100."""
        scale = self.flava.logit_scale
        if self.training or self.config.clamp_logit_scale_in_evaluation:
            with torch.no_grad():
                scale.clamp_(0, self.config.logit_scale_max)
        return scale.exp()

    def _fused(
        self,
        image_bpd: Tensor,
        text_btd: Tensor,
        text_mask: Tensor | None,
        asking_bn: Tensor | None = None,
    ) -> Tensor:
        core = self.flava
        cls_b1d = core.multimodal_model.cls_token.expand(len(image_bpd), -1, -1)
        x = torch.cat(
            (cls_b1d, core.image_to_mm_projection(image_bpd), core.text_to_mm_projection(text_btd)), 1
        )
        attended = None
        if text_mask is not None and not self.config.attend_text_padding:
            attended = F.pad(text_mask, (1 + image_bpd.shape[1], 0), value=True)[:, None, None]
        return core.multimodal_model.encoder(x, attended, asking_bn)

    # Checks

    def _attended(self, tokens: Tensor, text_mask: Tensor | None) -> Tensor | None:
        if text_mask is None:
            return None
        _expect("text_mask", text_mask, (*tokens.shape,), torch.bool)
        return text_mask[:, None, None]

    def _check_pixels(self, pixels: Tensor) -> None:
        size = self.config.patch_size
        if pixels.ndim != 4 or pixels.shape[1] != 3 or pixels.shape[2] % size or pixels.shape[3] % size:
            given = tuple(pixels.shape)
            raise WrongInput(f"pixels: expected B, 3 and two multiples of {size}, given {given}")
        if not pixels.dtype.is_floating_point:
            raise WrongInput(f"pixels: expected floats, normalised, given {pixels.dtype}")

    def _check_tokens(self, name: str, tokens: Tensor) -> None:
        most = self.config.positions
        if tokens.ndim != 2 or not 0 < tokens.shape[1] <= most:
            raise WrongInput(f"{name}: expected B, up to {most} tokens, given {tuple(tokens.shape)}")
        if tokens.dtype != torch.int64:
            raise WrongInput(f"{name}: expected torch.int64, given {tokens.dtype}")
        _expect_range(name, tokens, self.config.vocabulary)

    def _check(self, batch: FlavaBatch) -> None:
        """What the losses rely on. Values are looked at on the CPU alone (_may_look)."""
        if batch.pixels is None and batch.tokens_masked is None:
            raise WrongInput("a batch with neither pixels nor tokens_masked")
        if batch.pixels is not None:
            self._check_pixels(batch.pixels)
            size = self.config.patch_size
            count = len(batch.pixels)
            patches = (batch.pixels.shape[2] // size) * (batch.pixels.shape[3] // size)
            _expect("patch_mask", batch.patch_mask, (count, patches), torch.bool)
            _expect("codes", batch.codes, (count, patches), torch.int64)
            assert batch.patch_mask is not None and batch.codes is not None
            _expect_range("codes", batch.codes, self.config.codes)
            _expect_most("patches_hidden", batch.patch_mask, batch.patches_hidden)
        if batch.tokens_masked is not None:
            self._check_tokens("tokens_masked", batch.tokens_masked)
            shape = (*batch.tokens_masked.shape,)
            _expect("token_labels", batch.token_labels, shape, torch.int64)
            assert batch.token_labels is not None
            hidden = batch.token_labels != IGNORED
            _expect_range("token_labels", batch.token_labels.masked_fill(~hidden, 0), self.config.vocabulary)
            _expect_most("tokens_hidden", hidden, batch.tokens_hidden)
            if batch.text_mask is not None:
                _expect("text_mask", batch.text_mask, shape, torch.bool)
        if batch.pixels is not None and batch.tokens_masked is not None:
            _expect("tokens", batch.tokens, (*batch.tokens_masked.shape,), torch.int64)
            assert batch.tokens is not None
            self._check_tokens("tokens", batch.tokens)
            if len(batch.pixels) != len(batch.tokens):
                raise WrongInput(f"{len(batch.pixels)} images are paired with {len(batch.tokens)} texts")
            for name in ("matches", "learned"):
                if (rows := getattr(batch, name)) is not None:
                    _expect(name, rows, (len(batch.pixels),), torch.bool)


class States(NamedTuple):
    """What an encoder makes of its tokens."""

    hidden: Tensor  # before the last layer norm: what the multimodal encoder reads
    normed: Tensor  # behind it: what heads and users read


class _Asked(NamedTuple):
    """What a head is asked about, as much of every row."""

    places_bn: Tensor
    labels_bn: Tensor  # IGNORED behind the hidden ones of a row that hides fewer than others


def _asked(where_bl: Tensor, labels_bl: Tensor, most: int | None) -> _Asked:
    """The first so many places of each row where it is True. most: None, as many as any row has."""
    if most is None:
        most = max(1, int(where_bl.sum(1).max()))
    # A stable sort, for a fixed number of places and no look at how many there are.
    places_bn = where_bl.byte().argsort(dim=1, descending=True, stable=True)[:, :most]
    labels_bn = labels_bl.gather(1, places_bn).masked_fill(~where_bl.gather(1, places_bn), IGNORED)
    return _Asked(places_bn, labels_bn)


def _predicted(hidden_bnd: Tensor, asked: _Asked, norm: LayerNorm, head: PredictionHead) -> Loss:
    return cross_entropy(head(norm(hidden_bnd)).flatten(0, 1), asked.labels_bn.flatten())


def _clean_and_masked(encoder: Encoder, both: Tensor, attended: Tensor | None) -> tuple[Tensor, Tensor]:
    """(CLS of the first half, all tokens of the second): nothing else is read of the first."""
    twice = None if attended is None else torch.cat((attended, attended))
    *layers, last = encoder.layer
    for layer in layers:
        both = layer(both, twice)
    clean, masked = both.chunk(2)
    return last(clean, attended, _first(clean))[:, 0], last(masked, attended)


def _first(x_bld: Tensor) -> Tensor:
    """The places of the first tokens: B1."""
    return x_bld.new_zeros((len(x_bld), 1), dtype=torch.int64)


def _expect(name: str, tensor: Tensor | None, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    if tensor is None:
        raise WrongInput(f"{name}: expected a tensor of {shape}, given none")
    if (*tensor.shape,) != shape or tensor.dtype != dtype:
        raise WrongInput(f"{name}: expected {shape} of {dtype}, given {(*tensor.shape,)} of {tensor.dtype}")


def _may_look(tensor: Tensor) -> bool:
    """On a GPU to look at values is to wait, and a compiled graph would end there."""
    return tensor.device.type == "cpu" and tensor.numel() > 0 and not torch.compiler.is_compiling()


def _expect_range(name: str, tensor: Tensor, most: int) -> None:
    if _may_look(tensor):
        least, largest = int(tensor.min()), int(tensor.max())
        if least < 0 or largest >= most:
            raise WrongInput(f"{name}: expected 0 to {most - 1}, given {least} to {largest}")


def _expect_most(name: str, hidden_bl: Tensor, most: int | None) -> None:
    if most is not None and most < 1:
        raise WrongInput(f"{name}: expected 1 or more, given {most}")
    if most is not None and _may_look(hidden_bl) and (given := int(hidden_bl.sum(1).max())) > most:
        raise WrongInput(f"{name}: expected rows that hide at most {most}, given one that hides {given}")


def preset(name: str, **changes: object) -> FlavaConfig:
    """A configuration by name, with some fields otherwise."""
    if name not in PRESETS:
        raise WrongInput(f"preset: expected one of {', '.join(PRESETS)}, given {name!r}")
    return replace(PRESETS[name], **changes)  # pyright: ignore[reportArgumentType]


def loss_counts(inputs: Inputs | FlavaBatch, learned: Tensor | None = None) -> dict[str, Tensor]:
    """What the losses of a batch will have as their counts, without computing them: float32 each.

    learned: as in FlavaBatch; None: all rows.
    """
    patches, labels = inputs.patch_mask, inputs.token_labels
    if patches is not None and labels is not None:
        rows = torch.ones_like(patches[:, 0]) if learned is None else learned
        found = {
            "mmm_image": (patches & rows[:, None]).sum(),
            "mmm_text": ((labels != IGNORED) & rows[:, None]).sum(),
            "itm": torch.ones_like(rows).sum(),
            "global_contrastive": rows.sum(),
        }
    elif patches is not None:
        found = {"mim": patches.sum()}
    else:
        assert labels is not None
        found = {"mlm": (labels != IGNORED).sum()}
    return {name: count.float() for name, count in found.items()}


def flava_batch(inputs: Inputs, config: FlavaConfig, codebook: Codebook | None = None) -> FlavaBatch:
    """Inputs, wherever they lie -> what the losses read. codebook: where no codes were stored.

    The largest view is what the model sees, and one of 8 px a patch what the codebook does. Raises WrongInput
    where a view or the codes are missing.
    """
    given: dict[str, Any] = {}
    if inputs.views:
        size, small = config.image_size, SHRINKS * config.grid
        codes = inputs.codes
        needed = {size} if codes is not None else {size, small}
        if not needed <= {*inputs.views}:
            raise WrongInput(f"views: expected sizes {sorted(needed)}, given {sorted(inputs.views)}")
        if codes is None:
            if codebook is None:
                raise WrongInput("codes: expected stored ones, or a codebook to make them, given neither")
            codes = codebook.codes(inputs.views[small])
        given |= {"pixels": inputs.pixels(size), "patch_mask": inputs.patch_mask, "codes": codes}
        given["patches_hidden"] = inputs.patches_hidden
    for name in ("tokens", "tokens_masked", "token_labels", "text_mask", "matches", "tokens_hidden"):
        given[name] = getattr(inputs, name)
    return FlavaBatch(**given)
