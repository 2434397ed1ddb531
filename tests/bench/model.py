"""A training step, forward and backward: ours beside transformers' FlavaForPreTraining.

    ours     Flava.losses of a batch that says how much it hides
    theirs   the same weights and the same batch, given as is cheapest for it; codes instead of its codebook
    ceiling  one large product of matrices

For pairs with padded texts and one in four that is none, images alone, and texts alone. By turns; medians of
some rounds, after one that does not count. `--tokens` is the length of texts.

On the CPU in float32, neither compiled. With `--device cuda` in bfloat16 by autocast, both as they are and
compiled, and the memory of a step; that part has not been run yet.

FLOP are counted, of what ours has to compute: a product of (N, K) and (K, M) is 2 NKM, and a step is three
forward passes, since the backward one has a product for each of the two factors. Layer norms, GELU, softmax
and what flash attention computes twice do not count; torch's FlopCounterMode finds the same number. MFU is
their rate as a share of the ceiling's.
"""

import statistics
import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from flava_model.config import KINDS, Kind
from flava_model.flops import step_flop
from flava_model.losses import IGNORED
from flava_model.models.flava import Flava, FlavaBatch, FlavaConfig, preset
from flava_model.train import keep_memory
from tests.bench.measure import options, report, seconds
from tests.test_flava import alone, asked, theirs

SIDES = {"cpu": 4096, "cuda": 16_384}  # of the ceiling's matrices


def pairs(config: FlavaConfig, count: int, length: int) -> FlavaBatch:
    """Texts of half the length up to all of it; 75 of 196 patches and 15 % of the tokens are hidden."""
    chance = torch.Generator().manual_seed(7)
    lengths = torch.linspace(length / 2, length, count).long()
    there = torch.arange(length) < lengths[:, None]
    tokens = torch.randint(1000, config.vocabulary, (count, length), generator=chance).masked_fill(~there, 0)
    drawn = torch.rand((count, length), generator=chance).masked_fill(~there, 2)
    hidden = drawn.argsort(1).argsort(1) < (lengths * 0.15).round().clamp(min=1)[:, None]
    patches = torch.rand((count, config.patches), generator=chance).argsort(1)
    most = round(config.patches * 75 / 196)
    return FlavaBatch(
        pixels=torch.randn((count, 3, config.image_size, config.image_size), generator=chance),
        patch_mask=patches < most,
        codes=torch.randint(0, config.codes, (count, config.patches), generator=chance),
        tokens=tokens,
        tokens_masked=tokens.masked_fill(hidden, 103),
        token_labels=tokens.masked_fill(~hidden, IGNORED),
        text_mask=there,
        matches=torch.arange(count) % 4 != 1,
        patches_hidden=most,
        tokens_hidden=int(hidden.sum(1).max()),
    )


def given_to_them(batch: FlavaBatch) -> dict[str, Any]:
    """Of texts alone the masked ones are enough; of images they compute the clean ones too in any case."""
    given = asked(batch)
    if batch.pixels is None:
        given["input_ids"] = None
    return given


def flop(config: FlavaConfig, batch: FlavaBatch, kind: Kind) -> float:
    """Of a step of ours."""
    given = batch.pixels if batch.pixels is not None else batch.tokens_masked
    assert given is not None
    return step_flop(
        config,
        kind,
        len(given),
        length=0 if batch.tokens_masked is None else batch.tokens_masked.shape[1],
        patches=batch.patches_hidden or 0,
        tokens=batch.tokens_hidden or 0,
    )


# The steps


class Steps:
    """Both models with the same weights."""

    def __init__(self, config: FlavaConfig, device: str) -> None:
        self.device = device
        self.our, self.their = Flava(config).train(), theirs(config)
        self.our.load_state_dict(self.their.state_dict())
        torch.nn.ModuleList((self.our, self.their)).to(device)
        self.dtype = torch.bfloat16 if device == "cuda" else torch.float32
        side = SIDES[device]
        self.factors = [torch.randn(side, side, device=device, dtype=self.dtype) for _ in range(2)]

    def ways(self, batch: FlavaBatch) -> dict[str, Callable[[], float]]:
        """A step of each, which returns the loss."""

        def ours(losses: Callable[[FlavaBatch], Any]) -> Callable[[], float]:
            return lambda: self._step(
                self.our, lambda: sum((loss.mean() for loss in losses(batch).values()), torch.zeros(()))
            )

        def their(model: Callable[..., Any]) -> Callable[[], float]:
            return lambda: self._step(self.their, lambda: model(**given_to_them(batch)).loss)

        made = {"ours": ours(self.our.losses), "theirs": their(self.their)}
        if self.device == "cuda":
            torch.compiler.reset()
            made["ours, compiled"] = ours(torch.compile(self.our.losses, fullgraph=True, dynamic=False))
            made["theirs, compiled"] = their(torch.compile(self.their))
        return made

    def _step(self, model: torch.nn.Module, loss: Callable[[], Tensor]) -> float:
        model.zero_grad()
        with torch.autocast(self.device, self.dtype, enabled=self.device == "cuda"):
            found = loss()
        found.backward()
        return found.item()  # which waits for a GPU

    def ceiling(self) -> float:
        product = self.factors[0] @ self.factors[1]
        return product[0, 0].item()

    def memory(self, way: Callable[[], object]) -> float:
        """MB beyond the weights that a step takes at most: gradients, states and what it computes with."""
        for model in (self.our, self.their):
            model.zero_grad()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        way()
        return (torch.cuda.max_memory_allocated() - before) / 1e6


def measured(
    steps: Steps, batch: FlavaBatch, kind: Kind, rounds: int
) -> tuple[dict[str, float], dict[str, float]]:
    """Figures and ratios of one kind of batch."""
    ways = steps.ways(batch)
    found = {name: loss for name, way in ways.items() if (loss := warmed(name, way)) is not None}
    apart = 1e-4 if steps.device == "cpu" else 0.1  # as their roundings may be
    assert all(abs(loss - found["ours"]) < apart * loss for loss in found.values()), found
    taken: dict[str, list[float]] = {name: [] for name in (*found, "ceiling")}
    for _ in range(rounds):
        for name in found:
            taken[name].append(seconds(ways[name]))
        taken["ceiling"].append(seconds(steps.ceiling))
    times = {name: statistics.median(each) for name, each in taken.items()}
    products, ceiling = flop(steps.our.config, batch, kind), 2 * SIDES[steps.device] ** 3
    figures = {f"{name}: s": times[name] for name in found}
    if steps.device == "cuda":
        figures |= {f"{name}: MB": steps.memory(ways[name]) for name in found}
    figures |= {"GFLOP": products / 1e9, "ceiling: GFLOP/s": ceiling / times["ceiling"] / 1e9}
    ours, peer = (
        min((name for name in found if name.startswith(whose)), key=lambda name: times[name])
        for whose in ("ours", "theirs")
    )

    def ratio(one: str, other: str) -> float:
        # Of the rounds, not of the medians: a slow spell falls on neighbours alike.
        return statistics.median(b / a for a, b in zip(taken[one], taken[other], strict=True))

    share = products / ceiling * ratio(ours, "ceiling")
    return figures, {f"{ours} of {peer}": ratio(ours, peer), f"MFU of {ours}": share}


def warmed(name: str, way: Callable[[], float]) -> float | None:
    """The loss, after a round that does not count, in which compilers work. None: it does not compile."""
    if "compiled" not in name:
        return way()
    try:
        return [way() for _ in range(3)][-1]
    except RuntimeError as failure:  # of which those of torch's compilers are
        print(f"{name} is left out: {str(failure)[:300]}", file=sys.stderr)
        return None


def main() -> None:
    given = options(__doc__, preset="base", batch=4, rounds=5, tokens=32, device="cpu")
    if given.device == "cpu":
        keep_memory()
    torch.manual_seed(0)
    config = preset(given.preset)
    steps = Steps(config, given.device)
    whole = pairs(config, given.batch, given.tokens).to(given.device)
    figures: dict[str, float] = {}
    ratios: dict[str, float] = {}
    for kind in KINDS:
        batch = alone(whole, kind)
        batch.patches_hidden = whole.patches_hidden if batch.pixels is not None else None
        batch.tokens_hidden = whole.tokens_hidden if batch.tokens_masked is not None else None
        found = measured(steps, batch, kind, given.rounds)
        figures |= {f"{kind}: {name}": value for name, value in found[0].items()}
        ratios |= {f"{kind}: {name}": value for name, value in found[1].items()}
    report("model", figures=figures, ratios=ratios, as_json=given.json)


if __name__ == "__main__":
    main()
