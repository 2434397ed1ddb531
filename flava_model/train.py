"""The loop: from locks to a trained model.

    Streams --batch of a kind--> micro-batches --losses, backward--> gradients --summed, clipped--> AdamW
       ^                             |                                                                |
       +--- place <--- checkpoint <--|-------------------- every `save.every` updates ----------------+
                                     +-- contrastive: of all micro-batches and ranks at once

An update is exact: cut into micro-batches, or dealt out to ranks, it is the update of the whole batch, up to
the rounding of sums. Every loss is a sum by the count of the whole, and the contrastive loss sees all pairs:
their vectors are made first, without what a backward pass needs, then its gradient with regard to them, and
then each micro-batch goes backward with its part of that (Gao et al., "Scaling deep contrastive learning
batch size under memory limited setup", 2021). There is no dropout, so the vectors are the same both times.
"""

import contextlib
import ctypes
import math
import signal
from collections.abc import Generator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import Tensor

from flava_model import weights
from flava_model.checkpoint import Checkpoints
from flava_model.codebook import Codebook, RandomQuantizer
from flava_model.codes import Codes, codebook_sha256
from flava_model.config import Kind, Run
from flava_model.distributed import (
    World,
    gradient_norm,
    join,
    leave,
    scale_gradients,
    shard,
    sum_gradients,
    summed,
    whole,
)
from flava_model.evals.checkpoints import Beside
from flava_model.flops import step_flop
from flava_model.inputs import Inputs
from flava_model.losses import cached_contrast
from flava_model.models.flava import Flava, FlavaBatch, flava_batch, loss_counts
from flava_model.streams import Streams
from flava_model.tokens import Tokenizer, load_tokenizer
from flava_model.watch import Watch
from pmd.stream import BadRequest, PmdError, Refused

STOPPED = 75  # exit code: stopped by a signal, and can go on
_CAST = {"bf16": torch.bfloat16, "fp16": torch.float16}


class Diverged(PmdError):
    """Update after update, the gradient was not finite."""

    exit_code = 1


def train(run: Run, *, resume: bool = False) -> int:
    """Train, and write the model to `out`/model at the end. Returns an exit code: 0; 75 where a signal has
    stopped it, behind a checkpoint; 1 where the model is there, but the evaluation beside it has failed.

    resume: go on from the newest checkpoint in `out`, or begin if there is none; else there must be none.
    Raises Refused where it was made by another run, BadRequest, Damaged, Diverged.
    """
    world = join()
    if world.device.type == "cpu":
        keep_memory()
    try:
        with contextlib.closing(Beside(run, world)) as evaluation, _signals() as stop:
            trainer = Trainer(run, world)
            with trainer.running(resume) as watch:
                evaluation.start()
                while trainer.step < run.steps and not trainer.stopping:
                    watch.update(trainer.update(stop=stop.asked), trainer.streams)
                    watch.evaluated(evaluation.news())
                    if trainer.step % run.save.every == 0:
                        trainer.save()
                trainer.save()
                trainer.checkpoints.wait()
                if trainer.step < run.steps:
                    return STOPPED
                trainer.write_model()
                watch.trained(trainer.streams)
                if not evaluation.finished(lambda: stop.asked):
                    return STOPPED
                watch.evaluated(evaluation.news())
            return 1 if evaluation.failed else 0
    finally:
        leave()


@dataclass(frozen=True)
class Outcome:
    """What came of one update, over all ranks."""

    step: int  # updates there were, with this one
    losses: dict[str, float]  # means
    right: dict[str, float]  # shares of answers that were right
    samples: dict[Kind, int]
    lr: float
    logit_scale: float
    gradient_norm: float
    finite: bool  # else the model was left as it was
    flop: float  # that the losses needed


class Trainer:
    """A model, its optimizer and its streams, and the updates that bring them forward."""

    def __init__(self, run: Run, world: World) -> None:
        self.run, self.world = run, world
        self.tokenizer = load_tokenizer(run.tokenizer, longest=run.longest) if run.tokenizer else None
        self._codes = codes = Codes(run.codes) if run.codes else None
        torch.manual_seed(run.seed)  # before anything is random: the ranks begin with the same weights
        self.model = _model(run, self.tokenizer, codes).to(world.device).train()
        self.model.recompute(run.recompute)
        if run.sharded:
            if run.precision == "fp16":
                raise BadRequest("precision = fp16 with sharded = true: take bf16, which needs no scaling")
            methods = ("losses", "encode_image", "encode_text")
            shard(self.model, world, units=self.model.blocks(), methods=methods)
        self._losses = torch.compile(self.model.losses) if run.compile else self.model.losses
        self.optimizer = _optimizer(run, self.model)
        self._scaler = torch.amp.GradScaler(world.device.type, enabled=run.precision == "fp16")
        self.streams = Streams(run, world, self.model.config, self.tokenizer, codes)
        self.checkpoints = Checkpoints(Path(run.out) / "checkpoints", keep=run.save.keep)
        self.step, self.stopping = 0, False
        self._saved = -1  # the step of the newest checkpoint
        self._not_finite = 0  # updates, one after another

    def described(self) -> dict[str, Any]:
        """All that decides the run. It goes with every checkpoint."""
        codebook = self.model.image_codebook
        return {
            "run": self.run.deciding(),
            "model": vars(self.model.config),
            "tokenizer_sha256": self.tokenizer and self.tokenizer.sha256,
            "codebook_sha256": codebook and codebook_sha256(codebook),
            "codes": self._codes and self._codes.described(),
            "samples": self.streams.described(),
        }

    @contextlib.contextmanager
    def running(self, resume: bool) -> Generator[Watch]:
        """Begin, or go on; and what is watched meanwhile. Raises Refused, BadRequest."""
        out, newest = Path(self.run.out), self.checkpoints.newest()
        if newest is not None and not resume:
            raise BadRequest(
                f"{out}: there is a run already, at update {newest.step:,}: go on with --resume auto, or "
                "choose another out"
            )
        if newest is not None:
            for where, saved, mine in differences(newest.told["described"], self.described()):
                raise Refused(f"{newest.path}: its run has {where} = {saved}, this one {mine}")
            self._load(newest.told, lambda tensors: self.checkpoints.load(newest, tensors))
        with contextlib.closing(self.streams), Watch(self.run, self.world, self.step) as watch:
            watch.describe(self.described())
            yield watch

    # One update

    def update(self, *, stop: bool = False) -> Outcome:
        """Train on the next batch of each kind that it is the turn of. stop: this rank was asked to."""
        kinds = self.streams.kinds(self.step)
        taken: dict[Kind, Inputs] = {kind: self.streams.take(kind) for kind in kinds}
        counts, learned = self._counted(taken, stop)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.run, self.step)
        sums: dict[str, Tensor] = {}
        for kind, inputs in taken.items():
            for name, part in self._backward(inputs, learned[kind], counts).items():
                sums[name] = part
        sum_gradients(self.model.parameters())
        self._scaler.unscale_(self.optimizer)
        norm, clip = gradient_norm(self.model.parameters()), self.run.optimizer.clip
        finite = math.isfinite(norm)
        if clip and finite and norm > clip:
            scale_gradients(self.model.parameters(), clip / norm)
        if finite:
            self._scaler.step(self.optimizer)
        if self._scaler.is_enabled():
            self._scaler.update()
        self.optimizer.zero_grad()
        self.streams.delivered()
        self.step += 1
        told = dict(zip(sums, summed(torch.stack([*sums.values()])).tolist(), strict=True))
        outcome = Outcome(
            step=self.step,
            losses={name: told[name][0] / max(counts[name], 1) for name in told},
            right={name: told[name][1] / max(counts[name], 1) for name in told},
            samples={kind: len(inputs.samples) * self.world.size for kind, inputs in taken.items()},
            lr=self.optimizer.param_groups[0]["lr"],
            logit_scale=float(self.model.flava.logit_scale.detach().exp()),
            gradient_norm=norm,
            finite=finite,
            flop=sum(self._flop(kind, inputs) for kind, inputs in taken.items()) * self.world.size,
        )
        self._judge(outcome)
        return outcome

    def _counted(
        self, taken: Mapping[Kind, Inputs], stop: bool
    ) -> tuple[dict[str, float], dict[Kind, Tensor | None]]:
        """What each loss is to be divided by, and the pairs that are learned from: in one message over the
        ranks, with whether one of them was asked to stop.

        Pairs that are none teach no more than that, unless there are no others.
        """
        told = [torch.tensor(float(stop), device=self.world.device)]
        asked: list[tuple[Kind, Tensor | None, list[str]]] = []
        for kind, inputs in taken.items():
            matches = inputs.matches
            for rows in (None,) if matches is None else (matches, torch.ones_like(matches)):
                found = loss_counts(inputs, rows)
                asked.append((kind, rows, [*found]))
                told += found.values()
        stops, *numbers = summed(torch.stack(told)).tolist()
        self.stopping = stops > 0
        counts: dict[str, float] = {}
        learned: dict[Kind, Tensor | None] = {}
        for kind, rows, names in asked:
            these = {name: numbers.pop(0) for name in names}
            if kind not in learned and these.get("global_contrastive") != 0:
                learned[kind] = rows
                counts |= these
        return counts, learned

    def _backward(
        self, inputs: Inputs, learned: Tensor | None, counts: Mapping[str, float]
    ) -> dict[str, Tensor]:
        """Add the gradients of a batch to the parameters'. Returns each loss: its sum, and what was right."""
        count, of = len(inputs.samples), self.run.loss.model_dump()
        size = min(self.run.micro_batch or count, count)
        batches: list[FlavaBatch] = []
        for begin in range(0, count, size):
            part = inputs.rows(begin, begin + size)
            rows = None if learned is None else learned[begin : begin + size]
            batch = flava_batch(part, self.model.config, self.model.image_codebook)
            batches.append(replace(batch, learned=rows))
        if len(batches) > 1 and inputs.matches is not None:
            batches = self._with_contrast(batches, learned, size)
        sums: dict[str, Tensor] = {}
        for batch in batches:
            with self._cast():
                losses = self._losses(batch, tile=self.run.tile)
            terms = [of[name] * loss.sum / max(counts[name], 1) for name, loss in losses.items() if of[name]]
            if terms:
                self._scaler.scale(torch.stack(terms).sum()).backward()
            for name, loss in losses.items():
                found = torch.stack((loss.sum.detach(), loss.right))
                sums[name] = sums[name] + found if name in sums else found
        return sums

    def _with_contrast(
        self, batches: list[FlavaBatch], learned: Tensor | None, size: int
    ) -> list[FlavaBatch]:
        """Micro-batches of pairs with what the contrastive loss of all of them gives to each."""
        images: list[Tensor] = []
        texts: list[Tensor] = []
        with torch.no_grad(), self._cast():
            for batch in batches:
                assert batch.pixels is not None and batch.tokens is not None
                images.append(self.model.encode_image(batch.pixels))
                texts.append(self.model.encode_text(batch.tokens, batch.text_mask))
            parts = cached_contrast(
                torch.cat(images),
                torch.cat(texts),
                self.model.scale(),
                learned,
                size=size,
                tile=self.run.tile,
            )
        return [replace(batch, contrast=part) for batch, part in zip(batches, parts, strict=True)]

    def _cast(self) -> contextlib.AbstractContextManager[Any]:
        if self.run.precision == "fp32":
            return contextlib.nullcontext()
        return torch.autocast(self.world.device.type, dtype=_CAST[self.run.precision])

    def _flop(self, kind: Kind, inputs: Inputs) -> float:
        length = 0 if inputs.tokens is None else inputs.tokens.shape[1]
        patches, tokens = inputs.patches_hidden or 0, inputs.tokens_hidden or 0
        size = len(inputs.samples)
        return step_flop(self.model.config, kind, size, length=length, patches=patches, tokens=tokens)

    def _judge(self, outcome: Outcome) -> None:
        """What becomes of an update whose gradient is not finite: the same on every rank, as the norm is."""
        self._not_finite = 0 if outcome.finite else self._not_finite + 1
        watch = self.run.watch
        # A scale that is too large is found by trying, down to none.
        if outcome.finite or (self._scaler.is_enabled() and self._scaler.get_scale() > 1):
            return
        if watch.not_finite == "stop" or self._not_finite >= watch.not_finite_most:
            raise Diverged(
                f"update {outcome.step}: the gradient is not finite, for {self._not_finite} updates now. "
                f"Lower optimizer.lr, or set watch.not_finite. The losses were {outcome.losses}"
            )
        if watch.not_finite == "roll_back":
            self._roll_back()

    def _roll_back(self) -> None:
        """Weights and optimizer of the newest checkpoint, and go on with the samples behind this update."""
        self.checkpoints.wait()
        newest = self.checkpoints.newest()
        if newest is not None:
            self._load_tensors(newest.told, lambda tensors: self.checkpoints.load(newest, tensors))

    # Checkpoints

    def save(self) -> None:
        """Begin to write a checkpoint, if there is none of this step."""
        if self.step == self._saved:
            return
        told = {
            "described": self.described(),
            "streams": self.streams.state(),
            "step": self.step,
            "scaler": self._scaler.state_dict(),
            "not_finite": self._not_finite,
            "config": self.run.as_json(),
            "torch": torch.__version__,
        }
        self.checkpoints.save(self.step, self._tensors(), told)
        self._saved = self.step

    def _tensors(self) -> dict[str, Tensor]:
        """Weights, and what the optimizer knows of them, by name."""
        found = dict[str, Tensor]()
        for name, parameter in self.model.named_parameters():
            if not parameter.requires_grad:
                continue  # of the codebook, which is known by its hash
            found[f"model.{name}"] = parameter.detach()
            for what, value in self.optimizer.state.get(parameter, {}).items():
                found[f"optimizer.{what}.{name}"] = value
        return found

    def _load(self, told: Mapping[str, Any], load: Any) -> None:
        self._load_tensors(told, load)
        self.streams.load(told["streams"])
        self.step = self._saved = told["step"]
        self._not_finite = told["not_finite"]

    def _load_tensors(self, told: Mapping[str, Any], load: Any) -> None:
        by_name = dict(self.model.named_parameters())
        self.optimizer.state.clear()
        for name in told["tensors"]:
            kind, _, rest = name.partition(".")
            what, _, parameter = rest.partition(".")
            if kind == "optimizer" and parameter in by_name:
                like = by_name[parameter]
                # AdamW counts a parameter's updates in a number of its own.
                value = torch.zeros_like(like) if what != "step" else torch.zeros((), device=like.device)
                self.optimizer.state[like][what] = value
        load(self._tensors())
        self._scaler.load_state_dict(told["scaler"])

    def write_model(self) -> None:
        """The trained model, its tokenizer and codebook: a folder that transformers loads. Collective."""
        state = {name: whole(value).cpu() for name, value in self.model.state_dict().items()}
        if self.world.rank == 0:
            plain = Flava(self.model.config, self.model.image_codebook)
            plain.load_state_dict(state)
            weights.save(plain, Path(self.run.out) / "model", self.tokenizer)


def differences(saved: Any, mine: Any, where: str = "") -> Generator[tuple[str, Any, Any]]:
    """What differs between two values of JSON: (where, one, the other)."""
    if isinstance(saved, dict) and isinstance(mine, dict):
        for name in {**saved, **mine}:
            yield from differences(saved.get(name), mine.get(name), f"{where}.{name}" if where else name)
    elif saved != mine and not (isinstance(mine, tuple) and saved == [*mine]):
        yield where, saved, mine


def learning_rate(run: Run, step: int) -> float:
    """Of the update behind so many others: up in a line, then down along a half of a cosine."""
    settings = run.optimizer
    if step < settings.warmup:
        return settings.lr * (step + 1) / settings.warmup
    through = (step - settings.warmup) / max(1, run.steps - settings.warmup)
    return settings.lr * (settings.end + (1 - settings.end) * (1 + math.cos(math.pi * through)) / 2)


def _model(run: Run, tokenizer: Tokenizer | None, codes: Codes | None) -> Flava:
    if run.init is None:
        model = Flava(run.model.config(len(tokenizer) if tokenizer else 30_522))
    else:
        model, beside = weights.load(run.init), weights.tokenizer_beside(run.init)
        if tokenizer and beside and beside.sha256 != tokenizer.sha256:
            raise BadRequest(f"init: {run.init} was trained with another tokenizer than {run.tokenizer}")
    if tokenizer and len(tokenizer) > model.config.vocabulary:
        raise BadRequest(
            f"tokenizer: {run.tokenizer} has {len(tokenizer)} tokens, the model {model.config.vocabulary}"
        )
    if run.pairs or run.images:
        model.image_codebook = _codebook(run, model.config.codes)
        if codes is not None and codes.plan.codebook != codebook_sha256(model.image_codebook):
            raise BadRequest(f"codes: those in {run.codes} are not of the codebook {run.codebook}")
    return model


def _codebook(run: Run, codes: int) -> Codebook:
    if run.codebook == "random":
        return RandomQuantizer(codes)
    codebook = weights.load_codebook(run.codebook)
    if codebook.count != codes:
        raise BadRequest(f"codebook: {run.codebook} has {codebook.count} codes, the model predicts {codes}")
    return codebook


def _optimizer(run: Run, model: Flava) -> torch.optim.AdamW:
    settings = run.optimizer
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]

    def decays(parameter: Tensor) -> bool:
        return settings.decay == "all" or parameter.ndim == 2 or parameter.ndim == 4

    groups = [
        {"params": [one for one in parameters if decays(one)], "weight_decay": settings.weight_decay},
        {"params": [one for one in parameters if not decays(one)], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=settings.lr, betas=settings.betas, eps=settings.eps, fused=True)


def keep_memory() -> None:
    """Have freed memory stay with the process. By default large tensors go back to the system and are asked
    for anew, page by page, which on a virtual machine can cost as much as to compute them.
    """
    with contextlib.suppress(OSError, AttributeError):  # another C library than GNU's
        library = ctypes.CDLL(None)
        library.mallopt(_MMAP_MAX, 0)
        library.mallopt(_TRIM_THRESHOLD, -1)


_TRIM_THRESHOLD, _MMAP_MAX = -1, -4  # of malloc.h


@dataclass
class _Stop:
    asked: bool = False


@contextlib.contextmanager
def _signals() -> Generator[_Stop]:
    """SIGTERM and SIGINT ask to stop behind the update at hand; a second one ends at once."""
    stop = _Stop()

    def ask(number: int, frame: FrameType | None) -> None:
        if stop.asked:
            raise KeyboardInterrupt
        stop.asked = True

    before = {number: signal.signal(number, ask) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
