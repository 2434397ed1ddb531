"""A run's checkpoints, evaluated: while it goes on, in a process of its own that nothing waits for.

    flava train --Beside--> flava eval checkpoints RUN --follow
      step-00000200/  --the newest that is not done--> weights --> [evals] --> a line of evals.jsonl
      step-00000400/     (those that it has not come to are left out; the last one never is)

The process has a low priority, and its own device and threads. Its errors do not end the training; they
are told there and then, and the training's exit code is 1 in the end.
"""

import contextlib
import fcntl
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from flava_model.config import EvalsSpec, Run, changed_run
from flava_model.distributed import World
from flava_model.errors import WrongInput
from flava_model.evals.linear_probe import linear_probe
from flava_model.evals.retrieval import of_corpus, of_split, retrieval
from flava_model.evals.zero_shot import TEMPLATES, lines_of, zero_shot
from flava_model.models.flava import Flava
from flava_model.tokens import Tokenizer, load_tokenizer
from pmd.stream import BadRequest, Busy, Damaged

LINES = "evals.jsonl"  # in the folder of a run
LOG = "evals.log"
LOOK_EVERY_S = 1.0

Done = Callable[[int, float], None]
Evaluation = Callable[[Flava, Tokenizer | None, Done], dict[str, float]]


def evaluations(spec: EvalsSpec) -> dict[str, Evaluation]:
    """What [evals] asks for, by name, with its images found. Raises BadRequest where they are not there."""
    found: dict[str, Evaluation] = {}
    how: dict[str, Any] = {"shape": spec.shape, "threads": spec.threads}
    if spec.retrieval is not None:
        given = spec.retrieval
        if given.corpus:
            overlay, most = given.overlay, given.limit
            pairs = of_corpus(given.corpus, sources=given.sources, overlay=overlay, most=most)
        else:
            pairs = of_split(given.split_file, given.photos, split=given.split)
        found["retrieval"] = lambda model, tokenizer, done: retrieval(
            model, _there(tokenizer), pairs, done=done, **how
        )
    if spec.zero_shot is not None:
        images = spec.zero_shot.images
        names = spec.zero_shot.names and lines_of(spec.zero_shot.names)
        templates = lines_of(spec.zero_shot.templates) if spec.zero_shot.templates else TEMPLATES
        found["zero_shot"] = lambda model, tokenizer, done: zero_shot(
            model, _there(tokenizer), images, names=names or None, templates=templates, done=done, **how
        )
    if spec.linear_probe is not None:
        train, test = spec.linear_probe.train, spec.linear_probe.test
        found["linear_probe"] = lambda model, _, done: linear_probe(model, train, test, done=done, **how)
    return found


def _there(tokenizer: Tokenizer | None) -> Tokenizer:
    assert tokenizer is not None, "a Run with such evaluations has one"
    return tokenizer


def run_of(folder: str | Path, changes: Sequence[str] = ()) -> Run:
    """The run that a folder is of, as it was resolved; changes: key=value. Raises BadRequest."""
    path = Path(folder) / "run.json"
    try:
        values = json.loads(path.read_bytes())["config"]
    except FileNotFoundError:
        raise BadRequest(f"{path}: there is no such file; is {folder} the `out` of a run?") from None
    except (ValueError, KeyError) as error:
        raise BadRequest(f"{path}: not what a run writes: {error}") from None
    return changed_run(values, changes, where=str(path))


def evaluate_checkpoints(
    folder: str | Path,
    *,
    changes: Sequence[str] = (),
    follow: bool = False,
    done: Callable[[str, int, float], None] = lambda name, count, share: None,
) -> Iterator[dict[str, Any]]:
    """Evaluate those checkpoints of a run that are not in its evals.jsonl, from the oldest on, and give the
    lines that are added to it. done: evaluation, images, share.

    follow: the newest one each time, until the last one of the run is done. Raises BadRequest, Busy where
    another process is at it, Unreadable.
    """
    from flava_model import weights

    folder = Path(folder)
    run = run_of(folder, changes)
    if not run.evals:
        raise BadRequest(f"{folder}: its [evals] asks for nothing: give evals.retrieval.corpus=..., say")
    wanted = evaluations(run.evals)
    tokenizer = load_tokenizer(run.tokenizer, longest=run.longest) if run.tokenizer else None
    every = run.evals.every or 1
    with _held(folder):
        passed = {line["update"] for line in read_lines(folder)}
        while True:
            there = {step: path for step, path in _checkpoints(folder).items() if step not in passed}
            due = sorted(step for step in there if step % every == 0 or step == run.steps)
            if due:
                step = due[-1] if follow else due[0]
                for left_out in due[: due.index(step)]:
                    print(f"update {left_out:,}: left out, as there are newer ones", file=sys.stderr)
                passed |= {step, *due[: due.index(step)]}
                begun = time.monotonic()
                try:
                    model = weights.load(there[step]).to(run.evals.device)
                except (Damaged, WrongInput, OSError) as error:
                    gone = not there[step].exists()  # at any moment, when newer ones came
                    if not gone and not isinstance(error, Damaged):
                        raise
                    why = "is no more" if gone else "is damaged"
                    print(f"update {step:,}: left out, as its checkpoint {why}: {error}", file=sys.stderr)
                    continue
                scores = {
                    name: evaluation(
                        model, tokenizer, lambda count, share, name=name: done(name, count, share)
                    )
                    for name, evaluation in wanted.items()
                }
                line = {
                    "update": step,
                    "scores": scores,
                    "seconds": round(time.monotonic() - begun, 3),
                }
                _add(folder, line)
                yield line
            elif not follow or run.steps in passed:
                return
            else:
                time.sleep(LOOK_EVERY_S)


def read_lines(folder: str | Path) -> list[dict[str, Any]]:
    """The lines of a run's evals.jsonl, by update. Raises BadRequest."""
    path = Path(folder) / LINES
    try:
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        return sorted(lines, key=lambda line: line["update"])
    except FileNotFoundError:
        return []
    except (ValueError, KeyError) as error:
        raise BadRequest(f"{path}: {error}; move it away, and evaluate again") from None


def in_words(line: Mapping[str, Any]) -> str:
    """A line of evals.jsonl for a person."""
    told = ", ".join(f"{name} {score:.1%}" for name, score in first_scores(line).items())
    return f"update {line['update']:,}: {told}"


def first_scores(line: Mapping[str, Any]) -> dict[str, float]:
    """Those at 1 of a line of evals.jsonl, by evaluation and name."""
    return {
        f"{evaluation.replace('_', ' ')} {name}": score
        for evaluation, scores in line["scores"].items()
        for name, score in scores.items()
        if name.endswith("@1") and "by_chance" not in name
    }


def _add(folder: Path, line: Mapping[str, Any]) -> None:
    """The file is whole at any moment."""
    aside = folder / f".{LINES}.part"
    with aside.open("w") as file:
        file.writelines(json.dumps(one) + "\n" for one in [*read_lines(folder), line])
        file.flush()
        os.fsync(file.fileno())
    os.replace(aside, folder / LINES)


def _checkpoints(folder: Path) -> dict[int, Path]:
    return {
        int(path.name[5:]): path
        for path in (folder / "checkpoints").glob("step-*")
        if path.name[5:].isdigit()
    }


@contextlib.contextmanager
def _held(folder: Path) -> Generator[None]:
    """One process at a time."""
    with (folder / ".evals.lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Busy(f"{folder}: another process evaluates its checkpoints") from None
        yield


class Beside:
    """The process that evaluates a run's checkpoints, as its training has it: on the first rank alone, and
    only where [evals] asks for something.
    """

    def __init__(self, run: Run, world: World) -> None:
        """Raises BadRequest where there is nothing to evaluate on."""
        self._run, self._wanted = run, bool(evaluations(run.evals)) and world.rank == 0
        self._process: subprocess.Popen[bytes] | None = None
        self._told = {line["update"] for line in read_lines(run.out)} if self._wanted else set[int]()
        self._changed: Any = None  # the file of lines, when it was last read
        self._failed = False

    def start(self) -> None:
        """Begin. The run's run.json is there."""
        if not self._wanted:
            return
        # Not one of torchrun's ranks.
        alone = {name: value for name, value in os.environ.items() if name not in _OF_RANKS}
        line = ("-m", "flava_model", "eval", "checkpoints", self._run.out, "--follow")
        with (Path(self._run.out) / LOG).open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, *line, "--parent", str(os.getpid())],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=alone,
            )

    def news(self) -> list[dict[str, Any]]:
        """The lines since the last call. Says on standard error, once, that the process has failed."""
        if self._process is None:
            return []
        code = self._process.poll()
        if code and not self._failed:
            self._failed = True
            log = Path(self._run.out) / LOG
            said = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
            print(
                f"flava: the evaluation has ended with exit code {code}, and training goes on: "
                f"{said[-1] if said else ''} ({log}; `flava eval checkpoints {self._run.out}` makes it up)",
                file=sys.stderr,
                flush=True,
            )
        path = Path(self._run.out) / LINES
        changed = path.stat().st_mtime_ns if path.exists() else None
        if changed == self._changed:
            return []
        self._changed = changed
        new = [line for line in read_lines(self._run.out) if line["update"] not in self._told]
        self._told |= {line["update"] for line in new}
        return new

    def finished(self, stopped: Callable[[], bool]) -> bool:
        """Whether the process has come to its end; else it is waited for, unless stopped says otherwise."""
        while self._process is not None and self._process.poll() is None and not stopped():
            time.sleep(0.05)
        return not stopped()

    @property
    def failed(self) -> bool:
        """As `news` has told."""
        return self._failed

    def close(self) -> None:
        """End the process, whatever it is at."""
        if self._process is not None and self._process.poll() is None:
            self._process.kill()
            self._process.wait()


_OF_RANKS = {
    *("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_RANK", "ROLE_RANK", "ROLE_WORLD_SIZE"),
    *("MASTER_ADDR", "MASTER_PORT", "TORCHELASTIC_RUN_ID"),
}


def end_with(parent: int) -> None:
    """Have this process end when its parent has, and yield to all others until then."""
    os.nice(10)

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(LOOK_EVERY_S)
        os._exit(1)

    threading.Thread(target=watch, name="parent", daemon=True).start()
