"""Each loss alone, and all together, learn one batch of real COCO pairs by heart, from the shards on."""

from collections.abc import Collection, Iterator
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

from flava_model.codebook import RandomQuantizer
from flava_model.data import Loader
from flava_model.inputs import Inputs, Prepare
from flava_model.models.flava import Flava, FlavaBatch, flava_batch, preset
from flava_model.tokens import train_tokenizer
from flava_model.views import Views
from pmd.stream import Feed, Stream
from tests.small import pmd_json
from tests.web import Web

REAL = Path(__file__).parents[2] / "shared" / "real"
pytestmark = pytest.mark.skipif(not REAL.is_dir(), reason="the genuine photos are not here")

PAIRS, STEPS = 16, 120


class Batches(NamedTuple):
    """The same samples, as pairs, as images and as texts."""

    pairs: FlavaBatch
    images: FlavaBatch
    texts: FlavaBatch
    vocabulary: int


@pytest.fixture(scope="module")
def batches(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Batches]:
    folder = tmp_path_factory.mktemp("real")
    annotations = REAL / "coco" / "annotations" / "captions_train2017.json"
    with Web() as web:
        web.folder("images.cocodataset.org", "/train2017/", REAL / "coco" / "train2017")
        (folder / "coco.toml").write_text(
            f'name = "real"\nsources = ["coco"]\n[source.coco]\nfiles = ["{annotations}"]\n'
            f'[fetch]\nconnect_to = {{ "*:80" = "{web.http}" }}\n'
        )
        pmd_json("build", folder / "coco.toml", "--out", folder / "out", "--inline")
    stream = Stream(folder / "out")
    tokenizer = train_tokenizer(stream.captions, size=1_000)
    config = preset("tiny")
    prepare = Prepare(tokenizer, grid=config.grid, mismatched=0.25)
    codebook = RandomQuantizer(config.codes)

    def batch_of(inputs: Inputs) -> FlavaBatch:
        return flava_batch(inputs, config, codebook)

    feed = Feed(stream, batch=PAIRS)
    views = Views(sizes=(config.image_size, 8 * config.grid))
    yield Batches(
        batch_of(next(iter(Loader(feed, views).then(prepare.pairs(stream))))),
        batch_of(next(iter(Loader(feed, views).then(prepare.images)))),
        batch_of(next(iter(Loader(feed, None).then(prepare.texts)))),
        len(tokenizer),
    )


def learned(
    batches: Batches, *names: str, share: float = 0.1, watched: Collection[str] = ()
) -> dict[str, float]:
    """Train on some losses until each has come down to a share of what it was, or so many steps were made.
    Returns the shares, also of others that are watched alone.
    """
    torch.manual_seed(1)
    model = Flava(preset("tiny", vocabulary=batches.vocabulary)).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.0)
    asked = [
        batch
        for batch, of in (
            (batches.pairs, {"mmm_image", "mmm_text", "itm", "global_contrastive"}),
            (batches.images, {"mim"}),
            (batches.texts, {"mlm"}),
        )
        if of & {*names, *watched}
    ]
    begun: dict[str, float] = {}
    shares: dict[str, float] = {}
    for step in range(STEPS):
        found = {name: loss.mean() for batch in asked for name, loss in model.losses(batch).items()}
        now = {name: float(found[name].detach()) for name in (*names, *watched)}
        begun = begun or now
        shares = {name: loss / begun[name] for name, loss in now.items()}
        if max(shares[name] for name in names) < share:
            break
        optimizer.param_groups[0]["lr"] = 1e-3 * min(1, (step + 1) / 20)
        optimizer.zero_grad()
        torch.stack([found[name] for name in names]).sum().backward()
        optimizer.step()
    return shares


LOSSES = ("mim", "mlm", "mmm_image", "mmm_text", "itm", "global_contrastive")


@pytest.mark.parametrize("name", LOSSES)
def test_each_loss_alone_learns_a_batch_by_heart(batches: Batches, name: str) -> None:
    assert learned(batches, name)[name] < 0.1


def test_all_losses_together_learn_a_batch_by_heart(batches: Batches) -> None:
    shares = learned(batches, *LOSSES)
    assert max(shares.values()) < 0.1, shares


@pytest.mark.parametrize("name", LOSSES)
def test_what_is_not_trained_on_is_not_learned(batches: Batches, name: str) -> None:
    """Each loss teaches what no other one does: without it, its own metric stays where it was."""
    others = [other for other in LOSSES if other != name]
    shares = learned(batches, *others, share=0.3, watched=[name])
    assert max(shares[other] for other in others) < 0.3 and shares[name] > 0.6, shares


def test_nothing_there_to_see_cannot_be_learned(batches: Batches) -> None:
    """The tests above can fail: a model that is shown one and the same image cannot tell captions apart."""
    assert batches.pairs.pixels is not None
    same = batches.pairs.pixels[:1].expand_as(batches.pairs.pixels)
    blind = batches._replace(pairs=replace(batches.pairs, pixels=same))
    assert learned(blind, "global_contrastive")["global_contrastive"] > 0.4
