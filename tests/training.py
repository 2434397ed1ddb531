"""Small runs of the trainer, in processes of their own: to be killed, and to be several."""

import multiprocessing
import os
import signal
import socket
import sys
import threading
import time
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from flava_model.config import Run, read_run
from flava_model.tokens import train_tokenizer
from pmd.stream import Stream
from tests.locked import locked, picture

# Forked off a process that has imported all and begun nothing: a process of its own in a tenth of a second.
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["torch._dynamo", "flava_model.train", "tests.test_train"])

CONFIG = """
name = "small"
out = "run"
steps = 12
tokenizer = "tokenizer"
[pairs]
corpus = "corpus"
batch = 8
mismatched = 0.3
[images]
corpus = "corpus"
sources = ["coco"]
batch = 12
[hide]
patches = 0.5
block = 0.25
[model]
preset = "tiny"
[model.fields]
image_size = 32
width = 32
heads = 2
mlp = 64
image_layers = 1
text_layers = 2
multimodal_layers = 1
codes = 300
projection = 16
[optimizer]
warmup = 3
lr = 3e-3
[save]
every = 4
keep = 2
[watch]
every = 1
"""


def prepared(folder: Path) -> Path:
    """A corpus, a tokenizer and the configuration of a run on them."""
    square = lambda n: picture(n, size=(44, 40))  # noqa: E731
    locked(folder / "corpus", {"coco": (20, 16), "cc3m": (15,)}, image=square, broken=[5])
    train_tokenizer(Stream(folder / "corpus").captions, size=90, least=1).save(folder / "tokenizer")
    (folder / "run.toml").write_text(CONFIG)
    return folder / "run.toml"


def run_of(config: Path, out: Path, *changes: str) -> Run:
    return read_run(config, [*changes, f"out={out}"])


def trained(run: Run, *, resume: bool = False, world: int = 1, **how: Any) -> list[int]:
    """Train in processes of their own. Returns their exit codes; of a killed one -9."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    processes = [
        PROCESSES.Process(target=_train, args=(run, resume, rank, world, port, how)) for rank in range(world)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    return [process.exitcode or 0 for process in processes]


def _train(run: Run, resume: bool, rank: int, world: int, port: int, how: dict[str, Any]) -> None:
    from flava_model.train import train
    from pmd.stream import PmdError

    torch.set_num_threads(1)
    log = open(Path(run.out).parent / f"{Path(run.out).name}-{rank}.log", "a")  # noqa: SIM115
    os.dup2(log.fileno(), 2)
    if world > 1:
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(world), "LOCAL_RANK": str(rank)}
    if (after := how.get("kill_after_s")) is not None:
        threading.Thread(target=lambda: (time.sleep(after), os.kill(os.getpid(), signal.SIGKILL))).start()
    if (operation := how.get("kill_at_operation")) is not None:
        _kill_at(operation, Path(run.out) / "checkpoints")
    if (before := how.get("before")) is not None:
        before(rank)
    try:
        code = train(run, resume=resume)
    except PmdError as error:
        print(error, file=sys.stderr, flush=True)
        code = error.exit_code
    except OSError as error:
        print(error, file=sys.stderr, flush=True)
        code = 1
    os._exit(code)


def _kill_at(operation: int, folder: Path) -> None:
    """SIGKILL at the so-manieth time that anything is opened, made, renamed or removed in a folder."""
    left = operation

    def hook(event: str, given: tuple[Any, ...]) -> None:
        nonlocal left
        told = event in ("open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.truncate")
        if told and isinstance(given[0], str | os.PathLike) and str(given[0]).startswith(str(folder)):
            left -= 1
            if left < 0:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)


def log_of(out: Path, rank: int = 0) -> str:
    return (out.parent / f"{out.name}-{rank}.log").read_text()


def weights_of(out: Path) -> dict[str, Tensor]:
    return load_file(out / "model" / "model.safetensors")


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def apart(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    """The largest difference of any number."""
    assert one.keys() == other.keys()
    return max(float((one[name] - other[name]).abs().max()) for name in one)
