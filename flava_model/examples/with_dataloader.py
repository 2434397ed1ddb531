"""PyTorch alone: a DataLoader with worker processes, a checkpoint after each step, and a run that goes on.

python -m flava_model.examples.with_dataloader CORPUS CHECKPOINT [--steps N]
"""

import argparse
from pathlib import Path

import torch
from torch.utils.data import DataLoader

from flava_model.doors import Batches
from flava_model.views import Views
from pmd.stream import Feed, Stream


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("corpus")
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--steps", type=int, default=10)
    given = parser.parse_args()

    feed = Feed(Stream(given.corpus), batch=8)
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 32 * 32, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    step = 0
    if given.checkpoint.exists():
        saved = torch.load(given.checkpoint)
        model.load_state_dict(saved["model"])
        feed.load_state_dict(saved["feed"])
        step = saved["step"]
    loader = DataLoader(Batches(feed, Views(sizes=(32,))), batch_size=None, num_workers=1)
    while step < given.steps:
        for images in loader:
            optimizer.zero_grad()
            model(images.views[32].float() / 255).square().mean().backward()
            optimizer.step()
            feed.delivered(images.batch, images.samples)
            step += 1
            torch.save(
                {"model": model.state_dict(), "feed": feed.state_dict(), "step": step}, given.checkpoint
            )
            print(*(sample.key for sample in images.samples), flush=True)
            if step == given.steps:
                return
        feed.end_epoch()


if __name__ == "__main__":
    main()
