"""Lightning: our loader of threads as its dataloader. Lightning saves the loader's place in its checkpoints,
and a run goes on at the next batch.

python -m flava_model.examples.with_lightning CORPUS FOLDER [--steps N]
"""

import argparse
from pathlib import Path

import lightning
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from flava_model.data import Images, Loader
from flava_model.views import Views
from pmd.stream import Feed, Stream


class Model(lightning.LightningModule):
    """Something to train."""

    def __init__(self, loader: Loader) -> None:
        super().__init__()
        self.layers = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 32 * 32, 1))
        self.loader = loader

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=1e-3)

    def training_step(self, images: Images, number: int) -> torch.Tensor:
        # Here and not after the step: checkpoints are saved before a module is told that its step is over.
        self.loader.delivered(images)
        print(*(sample.key for sample in images.samples), flush=True)
        return self.layers(images.views[32].float() / 255).square().mean()

    def on_train_epoch_end(self) -> None:
        self.loader.feed.end_epoch()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("corpus")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--steps", type=int, default=10)
    given = parser.parse_args()

    loader = Loader(Feed(Stream(given.corpus), batch=8), Views(sizes=(32,)))
    trainer = lightning.Trainer(
        max_steps=given.steps,
        default_root_dir=given.folder,
        callbacks=[ModelCheckpoint(given.folder, every_n_train_steps=1, save_last=True)],
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    last = given.folder / "last.ckpt"
    trainer.fit(Model(loader), loader, ckpt_path=last if last.exists() else None)


if __name__ == "__main__":
    main()
