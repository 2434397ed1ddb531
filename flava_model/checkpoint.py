"""Checkpoints of a run: written beside the training, whole or not at all, and proven when they are read.

    save:  tensors --copied--> a thread of each rank: its part --> step-00001200.part/*.safetensors
                                rank 0, behind all: hashes --> checkpoint.json --> rename --> step-00001200/
    read:  the newest whose files have the hashes that its checkpoint.json says

The files are those of torch.distributed.checkpoint in its safetensors layout: each rank writes its own part,
and any number of ranks reads the whole. Nothing is pickled. A checkpoint is deleted when `keep` newer ones
stand, so that two at least are always there.
"""

import hashlib
import json
import logging
import os
import re
import shutil
import sys
import warnings
from collections.abc import Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.checkpoint.metadata import Metadata
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import async_save
from torch.distributed.checkpoint.storage import WriteResult

from flava_model.distributed import group_of_cpu
from pmd.stream import Damaged, Refused

FORMAT = 1  # of checkpoint.json
_TOLD = "checkpoint.json"


@dataclass(frozen=True)
class Checkpoint:
    """One that was read and proven."""

    path: Path
    step: int
    told: dict[str, Any]  # what was saved beside the tensors


class Checkpoints:
    """The checkpoints of one run. Every rank has one, and calls it alike."""

    def __init__(self, folder: str | Path, *, keep: int = 3) -> None:
        """keep: the newest so many; two at least."""
        assert keep >= 2, keep
        self.folder, self._keep = Path(folder), keep
        self._going: Future[Any] | None = None
        self._group = group_of_cpu()  # it writes beside the training, whose messages are others

    def save(self, step: int, tensors: Mapping[str, Tensor], told: Mapping[str, Any]) -> None:
        """Begin to write one; it has its own copy of the tensors when this returns. Waits for the one before.
        Collective. Raises what went wrong with the one before.
        """
        self.wait()
        aside = self.folder / f"{_name(step)}.part"
        if dist.get_rank() == 0:
            self.folder.mkdir(parents=True, exist_ok=True)
            shutil.rmtree(aside, ignore_errors=True)
        self._meet()
        writer = _Writer(aside, step, dict(told), keep=self._keep)
        flat = {name: _at_least_1d(tensor) for name, tensor in tensors.items()}
        saving = async_save(flat, storage_writer=writer, process_group=self._group)
        self._going = cast("Future[Any]", saving)

    def wait(self) -> None:
        """Until nothing is being written. Raises what went wrong."""
        if self._going is not None:
            going, self._going = self._going, None
            going.result()
            self._meet()

    def newest(self) -> Checkpoint | None:
        """The newest that is whole; damaged ones are passed over, and named on standard error. Collective."""
        found: list[Checkpoint | None] = [None]
        if dist.get_rank() == 0:
            for path in reversed(self.paths()):
                try:
                    found[0] = read_checkpoint(path)
                    break
                except Damaged as error:
                    print(f"passed over, as it is damaged: {error}", file=sys.stderr, flush=True)
        dist.broadcast_object_list(found, src=0, group=self._group)
        return found[0]

    def paths(self) -> list[Path]:
        """Of all that were finished, damaged or not, from the oldest on."""
        return sorted(path for path in self.folder.glob("step-*") if re.fullmatch(r"step-\d+", path.name))

    def load(self, checkpoint: Checkpoint, tensors: Mapping[str, Tensor]) -> None:
        """Write what was saved into some tensors. Collective. Raises Refused where others were saved."""
        known = {*checkpoint.told["tensors"]}
        if known != {*tensors}:
            strange = sorted(known ^ {*tensors})
            raise Refused(
                f"{checkpoint.path}: another model was saved there: {strange[0]} and {len(strange) - 1} more "
                "are on one side only"
            )
        flat: dict[str, Any] = {name: _at_least_1d(tensor) for name, tensor in tensors.items()}
        reader = HuggingFaceStorageReader(str(checkpoint.path))
        with torch.no_grad():
            load(flat, storage_reader=reader, process_group=self._group)

    def _meet(self) -> None:
        dist.barrier(group=self._group)


def read_checkpoint(path: Path) -> Checkpoint:
    """One that is finished, proven by its hashes. Raises Damaged."""
    try:
        told = json.loads((path / _TOLD).read_bytes())
        if told["format"] != FORMAT:
            raise Damaged(f"{path}: a checkpoint of format {told['format']}; this is {FORMAT}")
        for name, expected in told["files"].items():
            if (sha256 := _sha256(path / name)) != expected["sha256"]:
                raise Damaged(f"{path / name}: sha256 is {sha256}, {_TOLD} says {expected['sha256']}")
        return Checkpoint(path, told["step"], told["told"])
    except (OSError, ValueError, KeyError) as error:
        raise Damaged(f"{path}: {error}") from None


def is_checkpoint(path: Path) -> bool:
    """Whether there is a finished one."""
    return (path / _TOLD).exists()


def read_tensors(checkpoint: Checkpoint, tensors: Mapping[str, Tensor]) -> None:
    """Write some of those that were saved into tensors of this process alone, which need be in no group.

    Raises Damaged where one was not saved.
    """
    if lacking := [name for name in tensors if name not in checkpoint.told["tensors"]]:
        raise Damaged(f"{checkpoint.path}: there is no {lacking[0]} in it")
    flat: dict[str, Any] = {name: _at_least_1d(tensor) for name, tensor in tensors.items()}
    with torch.no_grad(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is disabled")  # which is what is asked for
        load(flat, storage_reader=HuggingFaceStorageReader(str(checkpoint.path)), no_dist=True)


class _Writer(HuggingFaceStorageWriter):
    """As torch has it; and when all ranks are done, the first one makes a checkpoint of what they wrote."""

    def __init__(self, aside: Path, step: int, told: dict[str, Any], *, keep: int) -> None:
        super().__init__(str(aside), save_distributed=True)
        self._aside, self._step, self._told, self._keep = aside, step, told, keep

    def finish(self, metadata: Metadata, results: list[list[WriteResult]]) -> None:
        super().finish(metadata, results)
        aside, final = self._aside, self._aside.with_name(_name(self._step))
        files: dict[str, Any] = {}
        for path in sorted(aside.iterdir()):
            _sync(path)
            files[path.name] = {"sha256": _sha256(path), "size": path.stat().st_size}
        self._told["tensors"] = sorted(metadata.state_dict_metadata)
        told = {"format": FORMAT, "step": self._step, "files": files, "told": self._told}
        (aside / _TOLD).write_text(json.dumps(told))
        _sync(aside / _TOLD)
        _sync(aside)
        if final.exists():  # of the same step: a run that went back, or a damaged one
            shutil.rmtree(final)
        os.rename(aside, final)
        _sync(final.parent)
        self._drop_old(final.parent)

    def _drop_old(self, folder: Path) -> None:
        there = sorted(path for path in folder.glob("step-*") if re.fullmatch(r"step-\d+", path.name))
        for path in there[: -self._keep]:
            # No more a checkpoint from the first moment on, and not from the last.
            gone = path.with_name(f"{path.name}.gone")
            os.rename(path, gone)
            shutil.rmtree(gone)
        for left in [*folder.glob("step-*.gone"), *folder.glob("step-*.part")]:
            shutil.rmtree(left, ignore_errors=True)


def _name(step: int) -> str:
    return f"step-{step:08}"


def _at_least_1d(tensor: Tensor) -> Tensor:
    """Its own memory: what is read goes into it. torch's reader has no slices of numbers alone."""
    return tensor.detach().view(1) if tensor.ndim == 0 else tensor.detach()


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync(path: Path) -> None:
    opened = os.open(path, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)


# torch says at each save that nothing is consolidated, which is what was asked for.
logging.getLogger("torch.distributed.checkpoint.hf_storage").setLevel(logging.WARNING)
