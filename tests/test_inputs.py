"""The laws of flava_model/inputs.py: what is hidden and mismatched follows from the position alone."""

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import cast

import numpy as np
import pytest
import torch

from flava_model.data import Loader
from flava_model.errors import WrongInput
from flava_model.inputs import Inputs, Prepare, normalised
from flava_model.losses import IGNORED
from flava_model.tokens import train_tokenizer
from flava_model.views import Views
from pmd.stream import Blend, Captioned, Feed, Stream
from tests.locked import locked

VIEWS = Views(sizes=(32, 16))
BATCH, PAIRS = 24, 479


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("corpus")
    locked(folder, {"coco": (70, 50), "cc3m": (60, 60)}, broken=[3, 77])
    return folder


@pytest.fixture(scope="module")
def prepare(corpus: Path) -> Prepare:
    tokenizer = train_tokenizer(Stream(corpus).captions, size=90, least=1)
    return Prepare(tokenizer, grid=2, patches_hidden=0.5, block=0.25, mismatched=0.3, seed=5)


def pairs(prepare: Prepare, feed: Feed, threads: int = 2, views: Views | None = VIEWS) -> "Loader[Inputs]":
    return Loader(feed, views, threads=threads).then(prepare.pairs(cast("Captioned", feed.source)))


def images(prepare: Prepare, feed: Feed, threads: int = 2) -> "Loader[Inputs]":
    return Loader(feed, VIEWS, threads=threads).then(prepare.images)


def texts(prepare: Prepare, feed: Feed, threads: int = 2) -> "Loader[Inputs]":
    return Loader(feed, None, threads=threads).then(prepare.texts)


def rows(inputs: Inputs) -> dict[int, list[bytes]]:
    """Position -> all that is read of its sample, but for padding."""
    found: dict[int, list[bytes]] = {}
    for row, position in enumerate(inputs.batch.positions.tolist()):
        there = slice(None) if inputs.text_mask is None else inputs.text_mask[row]
        told = [inputs.samples[row].key.encode()]
        for name in ("tokens", "tokens_masked", "token_labels"):
            if (tensor := getattr(inputs, name)) is not None:
                told.append(tensor[row][there].numpy().tobytes())
        for name in ("patch_mask", "matches"):
            if (tensor := getattr(inputs, name)) is not None:
                told.append(tensor[row].numpy().tobytes())
        found[position] = told + [view[row].numpy().tobytes() for view in inputs.views.values()]
    return found


@pytest.mark.parametrize("kind", [pairs, images, texts])
def test_any_ranks_threads_and_stops_give_the_same(
    corpus: Path, prepare: Prepare, kind: Callable[..., Loader[Inputs]]
) -> None:
    whole: dict[int, list[bytes]] = {}
    for inputs in kind(prepare, Feed(Stream(corpus, window=2), batch=BATCH)):
        whole |= rows(inputs)
    assert len(whole) == 240
    for world, threads in ((1, 1), (2, 3), (4, 1)):
        found: dict[int, list[bytes]] = {}
        for rank in range(world):
            feed = Feed(Stream(corpus, window=2), batch=BATCH, rank=rank, world=world)
            state = Feed(Stream(corpus, window=2), batch=BATCH).state_dict()
            feed.load_state_dict(state | {"position": 3 * BATCH, "count": 3 * BATCH})
            for inputs in kind(prepare, feed, threads):
                found |= rows(inputs)
        assert found == {position: told for position, told in whole.items() if position >= 3 * BATCH}


def test_another_epoch_or_seed_hides_something_else(corpus: Path, prepare: Prepare) -> None:
    def hidden(epoch: int, seed: int) -> list[torch.Tensor]:
        feed = Feed(Stream(corpus), batch=240)
        feed.epoch = epoch
        (inputs,) = pairs(replace(prepare, seed=seed), feed)
        assert inputs.patch_mask is not None and inputs.matches is not None
        return [inputs.patch_mask, inputs.matches]

    first = hidden(0, 5)
    for other in (hidden(1, 5), hidden(0, 6)):
        assert all((one != two).any() for one, two in zip(first, other, strict=True))
    assert all((one == two).all() for one, two in zip(first, hidden(0, 5), strict=True))


def test_pairs_that_are_none_come_as_often_as_asked(corpus: Path, prepare: Prepare) -> None:
    """At five standard deviations: by chance alone, one run in a million would fail; keys are fixed."""
    drawn, mismatched = 0, 0
    captions = {sample.caption for sample in Stream(corpus, unit="pairs").read(0, np.arange(PAIRS))}
    feed = Feed(Stream(corpus, unit="pairs"), batch=BATCH)
    for epoch in range(12):
        feed.epoch = epoch
        for inputs in pairs(prepare, feed, views=None):
            assert inputs.matches is not None and inputs.tokens is not None and prepare.tokenizer is not None
            for row, sample in enumerate(inputs.samples):
                text = prepare.tokenizer.decode(inputs.tokens[row].tolist())
                assert text in captions
                number = sample.key.partition("-")[2]
                own = text.endswith(f"of sample {number}")
                # Another caption of the same image belongs to it too.
                assert own == bool(inputs.matches[row]) and (not own or text == sample.caption)
            drawn += len(inputs.samples)
            mismatched += int((~inputs.matches).sum())
    assert drawn == 12 * (PAIRS // BATCH * BATCH)
    assert abs(mismatched - drawn * 0.3) < 5 * math.sqrt(drawn * 0.3 * 0.7)


def test_captions_of_elsewhere_are_of_the_same_stream(corpus: Path, prepare: Prepare) -> None:
    streams = {name: Stream(corpus, sources=[name]) for name in ("coco", "cc3m")}
    blend = Blend(streams, (1, 1), seed=2)
    captions = {name: {c for some in stream.captions() for c in some} for name, stream in streams.items()}
    feed = Feed(blend, batch=40)
    loader = Loader(feed, None).then(prepare.pairs(blend))
    for _, inputs in zip(range(6), loader, strict=False):
        assert inputs.tokens is not None and prepare.tokenizer is not None
        for sample, tokens in zip(inputs.samples, inputs.tokens.tolist(), strict=True):
            assert prepare.tokenizer.decode(tokens) in captions[sample.source]


def test_no_row_hides_more_than_is_told(corpus: Path, prepare: Prepare) -> None:
    for inputs in pairs(prepare, Feed(Stream(corpus), batch=BATCH)):
        assert inputs.patch_mask is not None and inputs.token_labels is not None
        assert inputs.tokens_hidden is not None and inputs.tokens_masked is not None
        assert (inputs.patch_mask.sum(1) == 2).all() and inputs.patches_hidden == 2
        hidden = (inputs.token_labels != IGNORED).sum(1)
        assert (hidden >= 1).all() and hidden.max() <= inputs.tokens_hidden <= inputs.tokens_masked.shape[1]
    (inputs,) = images(replace(prepare, exact=False), Feed(Stream(corpus), batch=240))
    assert inputs.patches_hidden is None and inputs.tokens is None and inputs.matches is None


def test_pixels_are_those_that_transformers_makes(corpus: Path) -> None:
    from transformers.models.flava.image_processing_pil_flava import FlavaImageProcessorPil

    view = torch.randint(0, 256, (2, 3, 224, 224), dtype=torch.uint8)
    theirs = FlavaImageProcessorPil()(list(view), return_tensors="pt")["pixel_values"]
    assert torch.allclose(normalised(view), theirs, atol=1e-6)


def test_inputs_move_as_one(corpus: Path, prepare: Prepare) -> None:
    inputs = next(iter(pairs(prepare, Feed(Stream(corpus), batch=8))))
    moved = inputs.to("meta")
    assert {tensor.device.type for tensor in moved.tensors()} == {"meta"}
    assert len([*moved.tensors()]) == len([*inputs.tensors()]) == 9
    assert (moved.patches_hidden, moved.codes) == (inputs.patches_hidden, None)


def test_what_is_missing_is_told(corpus: Path) -> None:
    with pytest.raises(WrongInput, match="mismatched: expected a share, 0 to 1, given 3"):
        Prepare(mismatched=3)
    with pytest.raises(WrongInput, match="expected a tokenizer, given none"):
        next(iter(pairs(Prepare(grid=2), Feed(Stream(corpus), batch=8))))
