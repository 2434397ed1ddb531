"""The laws of flava_model/losses.py: several ranks learn what one would that had the whole batch."""

import os
import socket
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.multiprocessing.spawn import spawn

from flava_model.losses import IGNORED, Loss, contrastive, cross_entropy
from flava_model.models.flava import Flava, FlavaBatch
from tests.test_flava import SMALL

WHOLE, T = 8, 10


def batch_of(first: int, end: int) -> FlavaBatch:
    """Some rows of one batch, in which rows differ in how much they have to predict."""
    chance = torch.Generator().manual_seed(11)
    tokens = torch.randint(1, SMALL.vocabulary, (WHOLE, T), generator=chance)
    hidden = torch.rand((WHOLE, T), generator=chance) < torch.linspace(0.1, 0.9, WHOLE)[:, None]
    whole = FlavaBatch(
        pixels=torch.randn((WHOLE, 3, 64, 64), generator=chance),
        patch_mask=torch.rand((WHOLE, 16), generator=chance) < torch.linspace(0.2, 0.8, WHOLE)[:, None],
        codes=torch.randint(0, SMALL.codes, (WHOLE, 16), generator=chance),
        tokens=tokens,
        tokens_masked=tokens.masked_fill(hidden, 3),
        token_labels=tokens.masked_fill(~hidden, IGNORED),
        matches=torch.tensor([True, True, True, False, True, False, True, True]),
    )
    return FlavaBatch(
        **{name: None if value is None else value[first:end] for name, value in vars(whole).items()}
    )


def model() -> Flava:
    torch.manual_seed(2)
    made = Flava(SMALL)
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            if name != "flava.logit_scale":
                parameter.add_(torch.randn_like(parameter) * 0.05)
    return made.train()


def total(losses: dict[str, Loss], counts: dict[str, Tensor]) -> Tensor:
    """What this rank adds to the mean over all ranks."""
    return sum((loss.sum / counts[name] for name, loss in losses.items()), torch.zeros(()))


def rank_of(rank: int, world: int, port: int, folder: str, compiled: bool) -> None:
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=world)
    share = WHOLE // world
    made = model()
    batch = replace(batch_of(rank * share, (rank + 1) * share), patches_hidden=16, tokens_hidden=T)
    how = torch.compile(made.losses, fullgraph=True, backend="aot_eager") if compiled else made.losses
    losses = how(batch)
    counts = {name: loss.count.clone() for name, loss in losses.items()}
    for count in counts.values():
        dist.all_reduce(count)
    total(losses, counts).backward()
    gradients = {name: one.grad for name, one in made.named_parameters() if one.grad is not None}
    for gradient in gradients.values():
        dist.all_reduce(gradient)
    if rank == 0:
        torch.save(gradients, Path(folder) / "gradients.pt")
    dist.destroy_process_group()


@pytest.mark.parametrize("world, compiled", [(2, False), (4, False), (2, True)])
def test_ranks_have_the_gradient_of_the_whole_batch(tmp_path: Path, world: int, compiled: bool) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    spawn(rank_of, (world, port, str(tmp_path), compiled), nprocs=world)
    found = torch.load(tmp_path / "gradients.pt")
    made = model()
    losses = made.losses(batch_of(0, WHOLE))
    total(losses, {name: loss.count for name, loss in losses.items()}).backward()
    expected = {name: one.grad for name, one in made.named_parameters() if one.grad is not None}
    assert found.keys() == expected.keys()
    noise = 1e-6 * max(float(gradient.abs().max()) for gradient in expected.values())
    for name, gradient in expected.items():
        assert float((found[name] - gradient).abs().max()) < 1e-4 * float(gradient.abs().max()) + noise, name


def test_a_mean_is_that_of_what_counts() -> None:
    logits = torch.tensor([[2.0, 0.0, -1.0], [0.0, 3.0, 0.5], [1.0, 1.0, 1.0]])
    labels = torch.tensor([0, IGNORED, 2])
    loss = cross_entropy(logits, labels)
    assert loss.count == 2
    expected = -(torch.log_softmax(logits, -1)[0, 0] + torch.log_softmax(logits, -1)[2, 2]) / 2
    assert torch.allclose(loss.mean(), expected)
    assert cross_entropy(logits.bfloat16(), labels).sum.dtype == torch.float32


def test_rows_that_are_not_asked_about_are_wrong_answers_still() -> None:
    image, text = torch.eye(3), torch.eye(3)[[0, 2, 1]]
    asked = torch.tensor([True, False, False])
    loss = contrastive(image, text, torch.tensor(5.0), asked)
    alone = torch.log_softmax(torch.tensor([5.0, 0.0, 0.0]), 0)[0]
    assert loss.count == 1 and torch.allclose(loss.sum, -alone)
