"""What is watched of a run: a bar for a person, a line of JSON for a machine, a dog for what hangs.

    Outcome of each update --every `watch.every`--> metrics.jsonl, TensorBoard, Weights & Biases, the bar
                           --> the dog: no update for `watch.hung_s` -> stacks of all threads, and the end

    flava_tiny  ━━━━━━╸━━━━━━━━━━  240/600  contrastive 1.204  itm 0.31 ...  412 samples/s  waits 3%  0:02:10

Rank 0 writes and shows; each rank has a dog of its own, since the one that hangs is not known beforehand.
"""

import faulthandler
import json
import os
import platform
import secrets
import subprocess
import sys
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from flava_model.config import Run
from flava_model.distributed import World
from flava_model.evals.checkpoints import in_words
from flava_model.flops import peak
from flava_model.streams import Streams
from pmd.stream import BadRequest

if TYPE_CHECKING:
    from flava_model.train import Outcome

_PACKAGES = ("pmd-flava", "torch", "numpy", "opencv-python-headless", "simplejpeg", "tokenizers")
HUNG = 70  # exit code of a process that its dog has ended
PLAIN_EVERY_S = 10.0  # a line, where there is no terminal


class Watch:
    """The display, the files and the dog of one run."""

    def __init__(self, run: Run, world: World, step: int) -> None:
        """step: updates there were."""
        self._run, self._world, self._step = run, world, step
        self._out, self._first = Path(run.out), world.rank == 0
        self._since = _Since()
        self._console = Console(stderr=True, highlight=False)
        self._bars: Progress | None = None
        self._bar: Any = None
        self._damaged: Counter[str] = Counter()  # of each kind, that were written of
        self._spoken = self._waited = 0.0
        self._begun, self._from = time.monotonic(), step
        dtype = torch.float32 if run.precision == "fp32" else torch.bfloat16
        self._peak = peak(world.device, dtype)
        self._dog = _Dog(self._out / f"hung-rank{world.rank}.txt", run.watch.hung_s)
        self._boards: list[Any] = []

    def __enter__(self) -> Self:
        if self._first:
            self._out.mkdir(parents=True, exist_ok=True)
            self._cut_metrics()
            self._boards = _boards(self._run, self._out)
            if self._console.is_terminal:
                columns = (
                    TextColumn("[bold]{task.description}[/bold]"),
                    BarColumn(20),
                    MofNCompleteColumn(),
                    TextColumn("{task.fields[line]}"),
                )
                self._bars = Progress(*columns, console=self._console).__enter__()
                self._bar = self._bars.add_task(
                    self._run.name, total=self._run.steps, completed=self._step, line=""
                )
        self._dog.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._dog.stop()
        if self._bars is not None:
            self._bars.__exit__(kind, error, trace)
        for board in self._boards:
            board.close()

    def describe(self, described: dict[str, Any]) -> None:
        """Write what decides the run beside what comes of it."""
        if self._first:
            told = {"config": self._run.as_json(), "commit": _commit(), "versions": self._versions()}
            told |= described
            (self._out / "run.json").write_text(json.dumps(told, indent=2, sort_keys=True))

    def _versions(self) -> dict[str, Any]:
        told: dict[str, Any] = {name: version(name) for name in _PACKAGES}
        device = self._world.device
        named = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{os.cpu_count()} cores"
        return told | {"python": platform.python_version(), "device": named, "ranks": self._world.size}

    def update(self, outcome: "Outcome", streams: Streams) -> None:
        """There was one update more."""
        self._dog.fed()
        self._step = outcome.step
        self._since.add(outcome)
        if outcome.step % self._run.watch.every and outcome.step != self._run.steps:
            return
        self._write_damages(streams)
        told = self._told(outcome, streams)
        self._since = _Since()
        if not self._first:
            return
        with (self._out / "metrics.jsonl").open("a") as file:
            file.write(json.dumps(told) + "\n")
        for board in self._boards:
            board.add(told)
        self._show(told)

    def _write_damages(self, streams: Streams) -> None:
        """Each rank writes of its own samples."""
        path = self._out / f"damaged-rank{self._world.rank}.jsonl"
        for kind, damages in streams.damages().items():
            new = damages[self._damaged[kind] :]
            self._damaged[kind] += len(new)
            if not new:
                continue
            with path.open("a") as file:
                file.writelines(json.dumps({"kind": kind} | one._asdict()) + "\n" for one in new)
            self._console.print(
                f"{kind}: {len(new):,} samples could not be used, and others were in their places: "
                f"{new[-1].key}: {new[-1].why}; all of them: {path}",
                markup=False,
                soft_wrap=True,
            )

    def evaluated(self, lines: Sequence[Mapping[str, Any]]) -> None:
        """Some checkpoints were evaluated."""
        for line in lines:
            self._console.print(in_words(line), markup=False, soft_wrap=True)
            for board in self._boards:
                board.add({"update": line["update"], "evals": line["scores"]})

    def trained(self, streams: Streams) -> None:
        """There are no updates to come: what may take long now is none of the dog's business."""
        self._dog.stop()
        if self._first:
            for kind, timing in streams.timing().items():
                self._console.print(f"{kind}: {timing.verdict()}", markup=False, soft_wrap=True)

    def _told(self, outcome: "Outcome", streams: Streams) -> dict[str, Any]:
        since, elapsed = self._since, self._since.elapsed()
        waited = sum(one.waited for one in streams.timing().values())
        waits, self._waited = (waited - self._waited) / elapsed, waited
        return {
            "update": outcome.step,
            "losses": since.mean(since.losses),
            "right": since.mean(since.right),
            "lr": outcome.lr,
            "logit_scale": outcome.logit_scale,
            "gradient_norm": outcome.gradient_norm,
            "not_finite": since.not_finite,
            "damaged": self._damaged.total(),
            "samples": dict(since.samples),
            "samples_per_s": sum(since.samples.values()) / elapsed,
            "mfu": since.flop / elapsed / (self._peak * self._world.size),
            "waits": waits,
            "loading": {kind: one.verdict() for kind, one in streams.timing().items()},
            "epochs": streams.epochs(),
            "seconds": elapsed,
        }

    def _show(self, told: dict[str, Any]) -> None:
        now = time.monotonic()
        losses = "  ".join(f"{_SHORT.get(name, name)} {loss:.3f}" for name, loss in told["losses"].items())
        left = round((now - self._begun) / max(1, self._step - self._from) * (self._run.steps - self._step))
        line = (
            f"{losses}  {told['samples_per_s']:,.0f} samples/s  waits {told['waits']:.0%}  "
            f"{left // 3600}:{left // 60 % 60:02}:{left % 60:02} left"
        )
        if told["not_finite"]:
            line += f"  {told['not_finite']} updates left out"
        if self._bars is not None:
            self._bars.update(self._bar, completed=self._step, line=line)
        elif now - self._spoken >= PLAIN_EVERY_S or self._step == self._run.steps:
            self._spoken = now
            shown = f"{self._run.name}  {self._step:,}/{self._run.steps:,}  {line}"
            self._console.print(shown, markup=False, soft_wrap=True)

    def _cut_metrics(self) -> None:
        """A run that goes on from a checkpoint makes the lines behind it anew."""
        file = self._out / "metrics.jsonl"
        if file.exists():
            lines = [line for line in file.read_text().splitlines() if _update_of(line) <= self._step]
            aside = file.with_name(".metrics.jsonl.part")
            aside.write_text("".join(f"{line}\n" for line in lines))
            os.replace(aside, file)


_SHORT = {"global_contrastive": "contrastive"}


def _update_of(line: str) -> float:
    """Of a line of metrics; one that is cut off is behind all."""
    try:
        return json.loads(line)["update"]
    except (ValueError, KeyError):
        return float("inf")


class _Since:
    """What there was since the last line."""

    def __init__(self) -> None:
        self._begun = time.monotonic()
        self.losses: dict[str, float] = defaultdict(float)
        self.right: dict[str, float] = defaultdict(float)
        self._counts: Counter[str] = Counter()
        self.samples: Counter[str] = Counter()
        self.not_finite, self.flop = 0, 0.0

    def add(self, outcome: "Outcome") -> None:
        for name, loss in outcome.losses.items():
            self.losses[name] += loss
            self.right[name] += outcome.right[name]
            self._counts[name] += 1
        self.samples.update(outcome.samples)
        self.not_finite += not outcome.finite
        self.flop += outcome.flop

    def mean(self, sums: dict[str, float]) -> dict[str, float]:
        return {name: total / self._counts[name] for name, total in sums.items()}

    def elapsed(self) -> float:
        return max(time.monotonic() - self._begun, 1e-9)


class _Dog:
    """Ends the process where nothing has come for too long: else a rank that waits for another one that is
    gone holds its GPU for ever.
    """

    def __init__(self, file: Path, hung_s: float) -> None:
        """file: for the stacks of all threads."""
        self._file, self._hung_s = file, hung_s
        self._ended, self._fed = threading.Event(), time.monotonic()

    def start(self) -> None:
        self.fed()
        threading.Thread(target=self._watch, name="watchdog", daemon=True).start()

    def fed(self) -> None:
        self._fed = time.monotonic()

    def stop(self) -> None:
        self._ended.set()

    def _watch(self) -> None:
        while not self._ended.wait(min(1.0, self._hung_s / 4)):
            silent = time.monotonic() - self._fed
            if silent > self._hung_s:
                self._file.parent.mkdir(parents=True, exist_ok=True)
                with self._file.open("w") as file:
                    faulthandler.dump_traceback(file)
                print(
                    f"flava: no update for {silent:,.0f} s. What each thread was at stands in {self._file}; "
                    "the newest checkpoint is whole: go on with --resume auto",
                    file=sys.stderr,
                    flush=True,
                )
                os._exit(HUNG)


class _TensorBoard:
    def __init__(self, folder: Path) -> None:
        try:
            from torch.utils.tensorboard.writer import SummaryWriter
        except ModuleNotFoundError:
            raise BadRequest("watch.tensorboard: pip install tensorboard") from None
        self._writer: Any = SummaryWriter(str(folder))

    def add(self, told: dict[str, Any]) -> None:
        for name, value in _flat(told):
            self._writer.add_scalar(name, value, told["update"])

    def close(self) -> None:
        self._writer.close()


class _WeightsAndBiases:
    """A run that goes on, goes on there too: its number is kept beside what it writes."""

    def __init__(self, run: Run, out: Path, project: str) -> None:
        try:
            import wandb  # pyright: ignore[reportMissingImports]
        except ModuleNotFoundError:
            raise BadRequest("watch.wandb: pip install wandb") from None
        known = out / "wandb-id"
        if not known.exists():
            known.write_text(secrets.token_hex(4))
        settings: dict[str, Any] = {"name": run.name, "id": known.read_text(), "config": run.as_json()}
        self._run: Any = wandb.init(project=project, dir=str(out), resume="allow", **settings)
        # Over updates, not over calls: evaluations come later than the updates that they are of.
        self._run.define_metric("*", step_metric="update")

    def add(self, told: dict[str, Any]) -> None:
        self._run.log(dict(_flat(told)) | {"update": told["update"]})

    def close(self) -> None:
        self._run.finish()


def _boards(run: Run, out: Path) -> list[Any]:
    boards: list[Any] = []
    if run.watch.tensorboard:
        boards.append(_TensorBoard(out / "tensorboard"))
    if run.watch.wandb:
        boards.append(_WeightsAndBiases(run, out, run.watch.wandb))
    return boards


def _flat(told: dict[str, Any]) -> Iterator[tuple[str, float]]:
    for name, value in told.items():
        if isinstance(value, dict):
            for inner, number in _flat(value):
                yield f"{name}/{inner}", number
        elif name != "update" and not isinstance(value, str):
            yield name, value


def _commit() -> str | None:
    """Of the checkout that runs; None for an installed package."""
    folder = Path(__file__).parents[1]
    if not (folder / ".git").exists():
        return None
    try:
        found = subprocess.run(
            ["git", "-C", str(folder), "rev-parse", "HEAD"], capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return found.stdout.strip()
