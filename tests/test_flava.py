"""FLAVA is the FLAVA of `transformers`, weight for weight: states, losses and their gradients.

And, where its configuration says so, that of TorchMultimodal: `transformers` made to compute what that does.
"""

import shutil
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import FlavaConfig as TheirConfig
from transformers import FlavaForPreTraining

from flava_model.errors import WrongInput
from flava_model.losses import IGNORED, Loss
from flava_model.models.flava import PRESETS, Flava, FlavaBatch, FlavaConfig, preset

SMALL = FlavaConfig(
    image_size=64,
    width=48,
    heads=4,
    mlp=96,
    image_layers=3,
    text_layers=2,
    multimodal_layers=2,
    vocabulary=97,
    positions=40,
    codes=53,
    projection=32,
)
TORCHMULTIMODAL = replace(
    SMALL, head_layer_norm_eps=1e-5, attend_text_padding=True, clamp_logit_scale_in_evaluation=True
)
B, T, PAIRS = 6, 12, ("mmm_image", "mmm_text", "itm", "global_contrastive")


def theirs(config: FlavaConfig = SMALL) -> FlavaForPreTraining:
    """With weights that nothing can be confused by: all are random, also those that begin as zeros."""
    tower = {
        "hidden_size": config.width,
        "num_attention_heads": config.heads,
        "intermediate_size": config.mlp,
    }
    made = TheirConfig(
        image_config=tower
        | {
            "num_hidden_layers": config.image_layers,
            "image_size": config.image_size,
            "vocab_size": config.codes,
        },
        text_config=tower
        | {
            "num_hidden_layers": config.text_layers,
            "vocab_size": config.vocabulary,
            "max_position_embeddings": config.positions,
        },
        multimodal_config=tower | {"num_hidden_layers": config.multimodal_layers},
        hidden_size=config.width,
        projection_dim=config.projection,
        init_codebook=False,
    )
    model = FlavaForPreTraining(made)
    chance = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name != "flava.logit_scale":
                noise = torch.randn(parameter.shape, generator=chance) * 0.08
                parameter.copy_(parameter + noise if "norm" in name.lower() else noise)
    return model.train()


class Fp32LayerNorm(torch.nn.LayerNorm):
    """As TorchMultimodal has it."""

    def forward(self, input: Tensor) -> Tensor:
        weight, bias = self.weight.float(), self.bias.float()
        return F.layer_norm(input.float(), self.normalized_shape, weight, bias, self.eps).type_as(input)


def as_torchmultimodal(model: FlavaForPreTraining) -> FlavaForPreTraining:
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.LayerNorm):
            module.__class__ = Fp32LayerNorm
            if "_head." in name:
                module.eps = 1e-5

    def unmasked(_: Any, given: tuple[Any, ...], named: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        return given, named | {"attention_mask": None}

    model.flava.multimodal_model.register_forward_pre_hook(unmasked, with_kwargs=True)
    return model


MODES = {"transformers": SMALL, "torchmultimodal": TORCHMULTIMODAL}


@pytest.fixture(scope="module", params=MODES)
def pair(request: pytest.FixtureRequest) -> tuple[Flava, FlavaForPreTraining]:
    return both(request.param)


def both(mode: str) -> tuple[Flava, FlavaForPreTraining]:
    their = theirs()
    with torch.no_grad():
        for name, parameter in their.named_parameters():
            if "_head.transform.dense" in name:
                parameter *= 0.02  # so that what the heads' layer norms divide by is not far from their eps
    our = Flava(MODES[mode]).train()
    our.load_state_dict(their.state_dict())
    return our, their if mode == "transformers" else as_torchmultimodal(their)


def batch_of(*, matches: Tensor | None = None, padded: bool = True, seed: int = 5) -> FlavaBatch:
    chance = torch.Generator().manual_seed(seed)

    def whole(most: int, *shape: int) -> Tensor:
        return torch.randint(1, most, shape, generator=chance)

    tokens = whole(SMALL.vocabulary, B, T)
    lengths = torch.arange(T - B, T) + 1 if padded else torch.full((B,), T)
    there = torch.arange(T) < lengths[:, None]
    hidden = (torch.rand((B, T), generator=chance) < 0.4) & there
    return FlavaBatch(
        pixels=torch.randn((B, 3, 64, 64), generator=chance),
        patch_mask=torch.rand((B, 16), generator=chance) < 0.4,
        codes=whole(SMALL.codes, B, 16),
        tokens=tokens.masked_fill(~there, 0),
        tokens_masked=tokens.masked_fill(hidden, 3).masked_fill(~there, 0),
        token_labels=tokens.masked_fill(~hidden, IGNORED),
        text_mask=there if padded else None,
        matches=matches,
    )


def asked(batch: FlavaBatch) -> dict[str, Any]:
    """The same for them. They change labels in place."""
    given: dict[str, Any] = {"return_loss": True}
    if batch.pixels is not None:
        assert batch.codes is not None
        given |= {"pixel_values": batch.pixels, "bool_masked_pos": batch.patch_mask}
        given["mim_labels"] = batch.codes.clone()
    if batch.tokens_masked is not None:
        assert batch.token_labels is not None
        given |= {"input_ids_masked": batch.tokens_masked, "mlm_labels": batch.token_labels.clone()}
        given["input_ids"] = batch.tokens if batch.tokens is not None else batch.tokens_masked
        given["attention_mask"] = None if batch.text_mask is None else batch.text_mask.long()
    if batch.matches is not None:
        given["itm_labels"] = batch.matches.long()
    return given


def gradients(model: torch.nn.Module, loss: Tensor) -> dict[str, Tensor]:
    model.zero_grad()
    loss.backward()
    found = {name: parameter.grad for name, parameter in model.named_parameters()}
    return {name: gradient.clone() for name, gradient in found.items() if gradient is not None}


def alone(batch: FlavaBatch, which: str) -> FlavaBatch:
    if which == "images":
        return FlavaBatch(pixels=batch.pixels, patch_mask=batch.patch_mask, codes=batch.codes)
    if which == "texts":
        return FlavaBatch(
            tokens_masked=batch.tokens_masked, token_labels=batch.token_labels, text_mask=batch.text_mask
        )
    return batch


MATCHES = {
    "all match": None,
    "some match": torch.tensor([True, False, True, True, False, True]),
    "none matches": torch.zeros(B, dtype=torch.bool),
}


@pytest.mark.parametrize("padded", [True, False], ids=["padded", "unpadded"])
def test_states_are_theirs(pair: tuple[Flava, FlavaForPreTraining], padded: bool) -> None:
    our, their = pair
    batch = batch_of(padded=padded)
    assert batch.pixels is not None and batch.tokens is not None
    with torch.no_grad():
        found = their(**asked(batch), skip_unmasked_multimodal_encoder=False)
        image = our.image_states(batch.pixels)
        text = our.text_states(batch.tokens, batch.text_mask)
        fused = our.multimodal_states(image, text, batch.text_mask)
        masked = our.image_states(batch.pixels, batch.patch_mask)
        similar = our.encode_image(batch.pixels) @ our.encode_text(batch.tokens, batch.text_mask).T
        pooled = our.encode_multimodal(batch.pixels, batch.tokens, batch.text_mask)
    for ours, theirs_ in (
        (image.normed, found.image_embeddings),
        (text.normed, found.text_embeddings),
        (fused.normed, found.multimodal_embeddings),
        (masked.normed, found.image_masked_embeddings),
        (pooled, found.multimodal_embeddings[:, 0]),
        (image.hidden, found.image_output.hidden_states[-1]),
        (similar, found.contrastive_logits_per_image / their.flava.logit_scale.exp()),
    ):
        assert torch.allclose(ours, theirs_, atol=1e-5, rtol=0)


@pytest.mark.parametrize("padded", [True, False], ids=["padded", "unpadded"])
@pytest.mark.parametrize("matching", MATCHES)
def test_losses_of_pairs_and_their_gradients_are_theirs(
    pair: tuple[Flava, FlavaForPreTraining], matching: str, padded: bool
) -> None:
    our, their = pair
    batch = batch_of(matches=MATCHES[matching], padded=padded)
    if batch.matches is None:  # they compute no ITM loss then
        batch.matches = torch.ones(B, dtype=torch.bool)
    check(our, their, batch, PAIRS)


@pytest.mark.parametrize("which, name", [("images", "mim"), ("texts", "mlm")])
def test_losses_of_one_modality_are_theirs(
    pair: tuple[Flava, FlavaForPreTraining], which: str, name: str
) -> None:
    check(*pair, alone(batch_of(), which), (name,))


def check(our: Flava, their: FlavaForPreTraining, batch: FlavaBatch, names: tuple[str, ...]) -> None:
    losses = our.losses(batch)
    assert {*losses} == {*names}
    for name in names:
        found = getattr(their(**asked(batch)).loss_info, name)
        loss = our.losses(batch)[name].mean()
        assert abs(loss.item() - found.item()) <= 1e-4 * abs(found.item()), name
        ours, theirs_ = gradients(our, loss), gradients(their, found)
        # What a loss does not reach has no gradient here, or zeros there. Some are but rounding: those of the
        # biases of keys, which attention does not depend on.
        noise = 1e-6 * max(float(gradient.abs().max()) for gradient in theirs_.values())
        zero = torch.zeros(())
        for parameter in {*ours} | {*theirs_}:
            one, other = ours.get(parameter, zero), theirs_.get(parameter, zero)
            apart = float((one - other).abs().max())
            assert apart < 1e-4 * float(other.abs().max()) + noise, (name, parameter)


@pytest.mark.parametrize("mode", ["head_layer_norm_eps", "attend_text_padding"])
def test_the_modes_differ_by_more_than_rounding(mode: str) -> None:
    """Or the tests above would see nothing."""
    our, _ = both("transformers")
    expected = our.losses(batch_of())["mmm_text"].mean().item()
    other = Flava(replace(SMALL, **{mode: getattr(TORCHMULTIMODAL, mode)}))
    other.load_state_dict(our.state_dict())
    assert other.losses(batch_of())["mmm_text"].mean().item() != pytest.approx(expected, rel=1e-3)


class Norms(TorchDispatchMode):
    """Notes in which precision layer norms are computed."""

    def __init__(self) -> None:
        super().__init__()
        self.dtypes: list[torch.dtype] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten.native_layer_norm.default:
            self.dtypes.append(args[0].dtype)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("autocast", [True, False], ids=["autocast", "all of it"])
def test_layer_norms_are_in_float32_where_the_model_has_less(autocast: bool) -> None:
    our, their = both("torchmultimodal")
    batch = batch_of(matches=MATCHES["some match"])
    with Norms() as norms, torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        if not autocast:
            torch.nn.ModuleList((our, their)).bfloat16()
            assert batch.pixels is not None
            batch.pixels = batch.pixels.bfloat16()
        losses = our.losses(batch)
        assert {*norms.dtypes} == {torch.float32}
        found = their(**asked(batch)).loss_info
    for name in PAIRS:
        assert losses[name].mean().item() == pytest.approx(getattr(found, name).item(), rel=0.02), name


def by_boolean_indexing(our: Flava, batch: FlavaBatch) -> dict[str, Tensor]:
    """The mean losses of what is masked, from whole states."""
    image = text = None
    if batch.pixels is not None:
        image = our.image_states(batch.pixels, batch.patch_mask)
    if batch.tokens_masked is not None:
        text = our.text_states(batch.tokens_masked, batch.text_mask)
    matches = torch.ones(B, dtype=torch.bool) if batch.matches is None else batch.matches
    rows = (matches | ~matches.any())[:, None]

    def loss(head: torch.nn.Module, states: Tensor, where: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(head(states[where]), labels[where])

    found: dict[str, Tensor] = {}
    fused = None if image is None or text is None else our.multimodal_states(image, text, batch.text_mask)
    if image is not None:
        assert batch.patch_mask is not None and batch.codes is not None
        name, states = ("mim", image.normed[:, 1:]) if fused is None else ("mmm_image", fused.normed[:, 2:-T])
        found[name] = loss(getattr(our, f"{name}_head"), states, batch.patch_mask & rows, batch.codes)
    if text is not None:
        assert batch.token_labels is not None
        name, states = ("mlm", text.normed) if fused is None else ("mmm_text", fused.normed[:, -T:])
        where = (batch.token_labels != IGNORED) & rows
        found[name] = loss(getattr(our, f"{name}_head"), states, where, batch.token_labels)
    return found


def numbered(batch: FlavaBatch, more: int = 0) -> FlavaBatch:
    """With the numbers of what is hidden at most, or more than that."""
    patches = None if batch.patch_mask is None else int(batch.patch_mask.sum(1).max()) + more
    hidden = None if batch.token_labels is None else batch.token_labels != IGNORED
    tokens = None if hidden is None else int(hidden.sum(1).max()) + more
    return replace(batch, patches_hidden=patches, tokens_hidden=tokens)


@pytest.mark.parametrize("which", ["pairs", "images", "texts"])
@pytest.mark.parametrize("matching", MATCHES)
def test_fixed_numbers_of_places_change_no_loss(
    pair: tuple[Flava, FlavaForPreTraining], matching: str, which: str
) -> None:
    our, _ = pair
    batch = alone(batch_of(matches=MATCHES[matching]), which)
    for name in by_boolean_indexing(our, batch):
        expected = by_boolean_indexing(our, batch)[name]
        wanted = gradients(our, expected)
        noise = 1e-6 * max(float(gradient.abs().max()) for gradient in wanted.values())
        for given in (batch, numbered(batch), numbered(batch, more=1), numbered(batch, more=100)):
            found = our.losses(given)[name].mean()
            assert found.item() == pytest.approx(expected.item(), rel=1e-6)
            for parameter, gradient in gradients(our, found).items():
                apart = float((gradient - wanted[parameter]).abs().max())
                assert apart < 1e-5 * float(wanted[parameter].abs().max()) + noise, (name, parameter)


def check_compiled(which: str, backend: str, config: FlavaConfig = SMALL) -> None:
    """One graph, the losses and gradients of the model as it is, and no other graph for other values."""
    torch.compiler.reset()
    our = Flava(config).train()
    compiled = torch.compile(our.losses, fullgraph=True, backend=backend)

    def found(losses: Any, batch: FlavaBatch) -> tuple[dict[str, float], dict[str, Tensor]]:
        with torch.no_grad():
            our.flava.logit_scale.fill_(9.0)  # to be clamped
        made = losses(batch)
        means = {name: loss.mean() for name, loss in made.items()}
        total = sum(means.values(), torch.zeros(()))
        return {name: mean.item() for name, mean in means.items()}, gradients(our, total)

    for seed in (5, 6):
        matches = torch.rand(B, generator=torch.Generator().manual_seed(seed)) < 0.6
        batch = replace(
            alone(batch_of(matches=matches if which == "pairs" else None, seed=seed), which),
            patches_hidden=None if which == "texts" else 12,
            tokens_hidden=None if which == "images" else 9,
        )
        expected, wanted = found(our.losses, batch)
        with torch.compiler.set_stance("default" if seed == 5 else "fail_on_recompile"):
            means, given = found(compiled, batch)
        assert means == pytest.approx(expected, rel=1e-5)
        assert given.keys() == wanted.keys()
        assert our.flava.logit_scale.item() == pytest.approx(4.6052 if which == "pairs" else 9.0)
        noise = 1e-6 * max(float(gradient.abs().max()) for gradient in wanted.values())
        for name, gradient in wanted.items():
            apart = float((given[name] - gradient).abs().max())
            assert apart < 1e-4 * float(gradient.abs().max()) + noise, name


@pytest.mark.parametrize("which", ["pairs", "images", "texts"])
def test_losses_are_one_graph(which: str) -> None:
    check_compiled(which, "aot_eager")


@pytest.mark.slow
# Of torch's own code, when inductor is imported.
@pytest.mark.filterwarnings("ignore:.torch.jit.script_method. is deprecated:DeprecationWarning")
def test_losses_are_compiled_to_the_same() -> None:
    if shutil.which("g++") is None and shutil.which("clang++") is None:
        pytest.skip("inductor needs a C++ compiler, and there is neither g++ nor clang++")
    for which in ("pairs", "images", "texts"):  # of few layers, for the compiler's time
        check_compiled(which, "inductor", replace(SMALL, image_layers=2, text_layers=1, multimodal_layers=1))


def test_a_batch_keeps_its_numbers_when_it_is_moved() -> None:
    moved = numbered(batch_of()).to("meta")
    assert moved.pixels is not None and moved.pixels.device.type == "meta" and moved.matches is None
    given = numbered(batch_of())
    assert (moved.patches_hidden, moved.tokens_hidden) == (given.patches_hidden, given.tokens_hidden)


def test_parameters_are_counted_as_published() -> None:
    with torch.device("meta"):
        model = Flava()

    def count(module: torch.nn.Module) -> int:
        return sum(parameter.numel() for parameter in module.parameters())

    core = model.flava
    assert count(model) == 303_859_063 and count(core) == 241_356_289
    assert [count(part) for part in (core.image_model, core.text_model, core.multimodal_model)] == [
        86_390_016,
        109_483_776,
        43_120_128,
    ]
    assert count(model.mim_head) == count(model.mmm_image_head) == 6_891_776
    assert count(model.mlm_head) == count(model.mmm_text_head) == 24_063_546
    assert count(model.itm_head) == 592_130
    with torch.device("meta"):
        found = FlavaForPreTraining(TheirConfig(init_codebook=False))
    shapes = {name: value.shape for name, value in model.state_dict().items()}
    assert shapes == {name: value.shape for name, value in found.state_dict().items()}


def test_a_model_begins_as_theirs() -> None:
    torch.manual_seed(0)
    model = Flava(SMALL)
    for name, value in model.named_parameters():
        if name.endswith(("cls_token", "mask_token", "image_model.embeddings.position_embeddings", ".bias")):
            assert not value.any(), name
        elif "norm" in name.lower():
            assert (value == 1).all(), name
        elif name == "flava.logit_scale":
            assert value.item() == pytest.approx(2.6592)
        else:
            assert value.mean().abs() < 0.005 and 0.018 < value.std() < 0.022, name
    assert not model.flava.text_model.embeddings.word_embeddings.weight[0].any()


def test_positions_are_interpolated_for_larger_images(pair: tuple[Flava, FlavaForPreTraining]) -> None:
    our, their = pair
    pixels = torch.randn((2, 3, 96, 112), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        found = their.flava.image_model(pixels, interpolate_pos_encoding=True).last_hidden_state
        assert torch.allclose(our.image_states(pixels).normed, found, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    "mode, training, expected",
    [
        ("transformers", True, 4.6052),
        ("transformers", False, 9.0),
        ("torchmultimodal", True, 4.6052),
        ("torchmultimodal", False, 4.6052),
    ],
)
def test_the_scale_stays_within_its_bounds(mode: str, training: bool, expected: float) -> None:
    our, their = both(mode)
    with torch.no_grad():
        our.flava.logit_scale.fill_(9.0)
        their.flava.logit_scale.fill_(expected)
    loss = our.train(training).losses(batch_of())["global_contrastive"].mean()
    found = their.train(training)(**asked(batch_of())).loss_info.global_contrastive
    assert our.flava.logit_scale.item() == pytest.approx(expected)
    assert loss.item() == pytest.approx(found.item(), rel=1e-4)


def test_nothing_to_learn_is_no_nan() -> None:
    batch = alone(batch_of(), "texts")
    batch.token_labels = torch.full((B, T), IGNORED)
    loss = Flava(SMALL).losses(batch)["mlm"]
    assert (loss.sum.item(), loss.count.item(), loss.mean().item()) == (0, 0, 0)


def test_micro_batches_add_up_to_the_batch(pair: tuple[Flava, FlavaForPreTraining]) -> None:
    """Of sums and counts, whatever each of them had to predict."""
    our, _ = pair
    whole = our.losses(batch_of())

    def part(start: int, end: int) -> FlavaBatch:
        return FlavaBatch(
            **{name: None if value is None else value[start:end] for name, value in vars(batch_of()).items()}
        )

    parts = [our.losses(part(0, 2)), our.losses(part(2, B))]
    for name in ("mmm_image", "mmm_text", "itm"):
        added = Loss(
            sum((one[name].sum for one in parts), torch.zeros(())),
            parts[0][name].count + parts[1][name].count,
            parts[0][name].right + parts[1][name].right,
        )
        assert added.right == whole[name].right
        assert added.count == whole[name].count
        assert added.mean().item() == pytest.approx(whole[name].mean().item(), rel=1e-5)


@pytest.mark.parametrize(
    "change, said",
    [
        ({"pixels": torch.zeros(B, 3, 60, 64)}, r"multiples of 16, given \(6, 3, 60, 64\)"),
        (
            {"pixels": torch.zeros(B, 3, 64, 64, dtype=torch.uint8)},
            "expected floats, normalised, given torch.uint8",
        ),
        (
            {"patch_mask": torch.zeros(B, 9, dtype=torch.bool)},
            r"patch_mask: expected \(6, 16\) of torch.bool, given \(6, 9\)",
        ),
        ({"codes": torch.full((B, 16), 53)}, "codes: expected 0 to 52, given 53 to 53"),
        ({"codes": None}, r"codes: expected a tensor of \(6, 16\), given none"),
        ({"tokens_masked": torch.full((B, T), -1)}, "tokens_masked: expected 0 to 96, given -1 to -1"),
        ({"tokens_masked": torch.ones(B, T, dtype=torch.int32)}, "expected torch.int64, given torch.int32"),
        ({"tokens_masked": torch.ones(B, 41, dtype=torch.int64)}, r"up to 40 tokens, given \(6, 41\)"),
        ({"token_labels": torch.full((B, T), 97)}, "token_labels: expected 0 to 96, given 97 to 97"),
        ({"text_mask": torch.ones(B, T)}, r"of torch.bool, given \(6, 12\) of torch.float32"),
        ({"matches": torch.ones(B - 1, dtype=torch.bool)}, r"matches: expected \(6,\) of torch.bool"),
        ({"pixels": None, "tokens_masked": None}, "neither pixels nor tokens_masked"),
        (
            {"patch_mask": torch.arange(16).expand(B, 16) < 5, "patches_hidden": 4},
            "patches_hidden: expected rows that hide at most 4, given one that hides 5",
        ),
        (
            {"token_labels": torch.ones(B, T, dtype=torch.int64), "tokens_hidden": 3},
            "tokens_hidden: expected rows that hide at most 3, given one that hides 12",
        ),
        ({"tokens_hidden": 0}, "tokens_hidden: expected 1 or more, given 0"),
    ],
)
def test_wrong_input_is_told_with_what_was_expected(change: dict[str, Any], said: str) -> None:
    batch = batch_of()
    for name, value in change.items():
        setattr(batch, name, value)
    with pytest.raises(WrongInput, match=said):
        Flava(SMALL).losses(batch)


def test_presets_are_by_name() -> None:
    assert preset("base") == FlavaConfig() and preset("tiny", image_size=96).image_size == 96
    with pytest.raises(WrongInput, match="expected one of tiny, small, base"):
        preset("huge")
    for config in PRESETS.values():
        assert config.width % config.heads == 0 and config.image_size % config.patch_size == 0
