"""The processes of a run: those that torchrun started, or this one alone.

Everything collective goes through here or through losses.contrastive. A run of one process is a group of one,
so that there is one way through the code.
"""

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor

BUCKET = 64 << 20  # bytes of gradients that are summed at a time


@dataclass(frozen=True)
class World:
    """Where this process stands."""

    rank: int
    size: int
    device: torch.device


def join() -> World:
    """Begin: with torchrun's environment, or alone. Each process has the GPU of its number on its machine."""
    local = int(os.environ.get("LOCAL_RANK", 0))
    device = torch.device("cuda", local) if torch.cuda.is_available() else torch.device("cpu")
    if device.type == "cuda":
        torch.cuda.set_device(device)
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    if not dist.is_initialized():
        if "RANK" in os.environ:
            dist.init_process_group(backend)
        else:
            alone = dist.HashStore()  # pyright: ignore[reportPrivateImportUsage]
            dist.init_process_group(backend, store=alone, rank=0, world_size=1)
    return World(dist.get_rank(), dist.get_world_size(), device)


def leave() -> None:
    """End."""
    if dist.is_initialized():
        dist.destroy_process_group()


def group_of_cpu() -> dist.ProcessGroup:
    """A group of all ranks of its own, whose messages meet no others. Collective."""
    return cast("dist.ProcessGroup", dist.new_group(backend="gloo"))


def summed(numbers: Tensor) -> Tensor:
    """Over all ranks, in place. Collective."""
    if dist.get_world_size() > 1:
        dist.all_reduce(numbers)
    return numbers


def gathered(numbers: Sequence[int]) -> list[list[int]]:
    """What every rank gives, in order of rank: numbers of 64 bits, as many from each. Collective.

    It is the `gather` of a Feed's states.
    """
    found: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(found, [*numbers])
    return cast("list[list[int]]", found)


def sum_gradients(parameters: Iterable[Tensor]) -> None:
    """Sum the gradients of parameters that every rank has over all ranks, in place, once an update. Those of
    sharded ones were summed when they were made. Collective: the same ones have gradients everywhere.
    """
    if dist.get_world_size() == 1:
        return
    gradients = [
        parameter.grad
        for parameter in parameters
        if parameter.grad is not None and not isinstance(parameter.grad, DTensor)
    ]
    for bucket in _buckets(gradients):
        flat = torch.cat([gradient.flatten() for gradient in bucket])
        dist.all_reduce(flat)
        for gradient, part in zip(bucket, flat.split([one.numel() for one in bucket]), strict=True):
            gradient.copy_(part.view_as(gradient))


def gradient_norm(parameters: Iterable[Tensor]) -> float:
    """The length of all gradients together, those of sharded parameters over all ranks. Collective."""
    own: list[Tensor] = []
    shared: list[Tensor] = []
    for parameter in parameters:
        gradient = parameter.grad
        if isinstance(gradient, DTensor):
            shared.append(gradient.to_local().float().pow(2).sum())
        elif gradient is not None:
            own.append(gradient.float().pow(2).sum())
    total = torch.stack(own).sum() if own else torch.zeros(())
    if shared:
        total = total.to(shared[0].device) + summed(torch.stack(shared).sum())
    return float(total.sqrt())


def scale_gradients(parameters: Iterable[Tensor], by: float) -> None:
    """Multiply all gradients, in place."""
    for parameter in parameters:
        if parameter.grad is not None:
            parameter.grad.mul_(by)


def shard(model: nn.Module, world: World, *, units: Iterable[nn.Module], methods: Iterable[str]) -> None:
    """Deal the parameters of a model out to the ranks (FSDP2), those of each unit together; the gradients are
    summed. methods: by which it is called. Single numbers stay whole, on every rank.
    """
    mesh = init_device_mesh(world.device.type, (world.size,))
    for unit in units:
        fully_shard(unit, mesh=mesh)
    single = {parameter for parameter in model.parameters() if parameter.ndim == 0}
    fully_shard(model, mesh=mesh, ignored_params=single)
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)  # gloo knows no other
    for method in methods:
        register_fsdp_forward_method(model, method)


def whole(tensor: Tensor) -> Tensor:
    """A sharded tensor with all its parts. Collective."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def _buckets(gradients: Iterable[Tensor]) -> Iterable[list[Tensor]]:
    bucket: list[Tensor] = []
    for gradient in gradients:
        if bucket and sum(one.nbytes for one in bucket) + gradient.nbytes > BUCKET:
            yield bucket
            bucket = []
        bucket.append(gradient)
    if bucket:
        yield bucket
