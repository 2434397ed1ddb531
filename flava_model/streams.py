"""What a run is fed: which kinds an update is of, and the batches of each kind, in order.

    update 0   1   2   3 ...   pairs, pairs, images, pairs, texts, ...     in the proportions of [mix]
    pairs  --Stream--Feed--Loader--Prepare.pairs-->  Inputs on the device
    images --Stream or Folder------Prepare.images->
    texts  --Texts-----------------Prepare.texts-->

Which kind an update is of follows from its number, and what a kind's next batch is from its feed: the state
of all is the update's number and a place for each kind.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from flava_model.codes import Codes
from flava_model.config import KINDS, ImagesSpec, Kind, PairsSpec, Run, TextsSpec
from flava_model.data import Loader, Timing
from flava_model.distributed import World, gathered
from flava_model.inputs import Inputs, Prepare
from flava_model.loose import Folder, Loose
from flava_model.models.flava import FlavaConfig
from flava_model.texts import Texts
from flava_model.tokens import Tokenizer
from flava_model.views import Views
from pmd.stream import BadRequest, Damage, Feed, Mix, Stream, keyed, mix_of, prove

_MIX = 96  # purpose of keys; those below are others'


class Streams:
    """The batches of a run on one rank."""

    def __init__(
        self, run: Run, world: World, config: FlavaConfig, tokenizer: Tokenizer | None, codes: Codes | None
    ) -> None:
        self._run, self._world = run, world
        self._feeds: dict[Kind, Feed] = {}
        self._sources: dict[Kind, Stream | Loose] = {}
        self._loaders: dict[Kind, Loader[Inputs]] = {}
        self._going: dict[Kind, Iterator[Inputs]] = {}
        self._taken: dict[Kind, Inputs] = {}
        for kind in run.kinds:
            source, feed, loader = _opened(run, kind, world, config, tokenizer, codes)
            self._sources[kind], self._feeds[kind], self._loaders[kind] = source, feed, loader
        self._mix = _mixed(run)

    def kinds(self, update: int) -> list[Kind]:
        """Those that an update is of."""
        if self._mix is None:
            return self._run.kinds
        turn = self._mix.at(np.array([update]))
        return [self._run.kinds[int(turn.stream[0])]]

    def take(self, kind: Kind) -> Inputs:
        """The next batch of a kind, on the device. An epoch that is through is proven, and the next begins.
        Collective. Raises Damaged where an epoch has not delivered each sample once.
        """
        assert kind not in self._taken, f"the batch of {kind} before was not delivered"
        feed = self._feeds[kind]
        if kind not in self._going:
            self._going[kind] = iter(self._loaders[kind])
        inputs = next(self._going[kind], None)
        if inputs is None:
            if isinstance(feed.source, Stream):
                prove(feed, feed.source, gathered)
            feed.end_epoch()
            self._going[kind] = iter(self._loaders[kind])
            inputs = next(self._going[kind])
        self._taken[kind] = inputs
        return inputs

    def delivered(self) -> None:
        """What was taken has been trained on, or left out: states from now on lie behind it."""
        for kind, inputs in self._taken.items():
            self._feeds[kind].delivered(inputs.batch, inputs.samples)
        self._taken.clear()

    def state(self) -> dict[str, Any]:
        """Where the run stands, as JSON. Collective."""
        return {kind: feed.state_dict(gathered) for kind, feed in self._feeds.items()}

    def load(self, state: Mapping[str, Any]) -> None:
        """Go on there. Raises Refused where that means nothing here."""
        self.close()
        for kind, feed in self._feeds.items():
            if kind not in state:
                raise BadRequest(f"the saved run was not trained on {kind}: give it a new folder, and init=")
            feed.load_state_dict(state[kind])

    def described(self) -> dict[str, Any]:
        """What decides the samples of each kind."""
        return {kind: feed.source.described() for kind, feed in self._feeds.items()}

    def epochs(self) -> dict[Kind, float]:
        """How often each kind was gone through."""
        found: dict[Kind, float] = {}
        for kind, feed in self._feeds.items():
            samples = feed.source.positions()
            assert samples is not None
            found[kind] = feed.epoch + feed.position / samples
        return found

    def damages(self) -> dict[Kind, list[Damage]]:
        """Of this rank: samples that could not be used, and were replaced by others."""
        return {kind: source.damages for kind, source in self._sources.items()}

    def timing(self) -> dict[Kind, Timing]:
        """Where the loaders' time goes."""
        return {kind: loader.timing for kind, loader in self._loaders.items()}

    def close(self) -> None:
        """Stop reading ahead."""
        for going in self._going.values():
            going.close()  # pyright: ignore[reportAttributeAccessIssue]
        self._going.clear()
        self._taken.clear()


def _mixed(run: Run) -> Mix | None:
    if run.mix.update == "all" or len(run.kinds) == 1:
        return None
    weights = [getattr(run.mix, kind) for kind in run.kinds]
    try:
        return mix_of(weights, seed=keyed(run.seed, _MIX), block=100)
    except ValueError as error:
        raise BadRequest(f"mix: {error}") from None


def _opened(
    run: Run,
    kind: Kind,
    world: World,
    config: FlavaConfig,
    tokenizer: Tokenizer | None,
    codes: Codes | None,
) -> tuple[Stream | Loose, Feed, Loader[Inputs]]:
    spec, seed = run.spec(kind), keyed(run.seed, KINDS.index(kind))
    source = _source(spec, seed)
    feed = Feed(source, batch=spec.batch, rank=world.rank, world=world.size)
    if isinstance(spec, TextsSpec):
        assert tokenizer is not None
        prepare = _prepare(run, config, tokenizer.cut_to(min(spec.longest, config.positions)), None, seed)
        loader = Loader(feed, None, threads=run.threads, ahead=run.ahead, device=world.device)
        return source, feed, loader.then(prepare.texts)
    stored = codes if isinstance(source, Stream) else None
    small = 8 * config.grid
    sizes = (config.image_size,) if stored else (config.image_size, small)
    views = Views(sizes, area=spec.area, ratio=spec.ratio, flip=spec.flip, exact=spec.exact)
    if stored is not None:
        assert isinstance(source, Stream)
        stored.check(source)
        if stored.plan.views(*sizes) != views:
            raise BadRequest(f"codes: they are of {stored.plan.views(*sizes)}, [{kind}] asks for {views}")
    loader = Loader(
        feed,
        views,
        threads=run.threads,
        ahead=run.ahead,
        seed=seed,
        crop_key=stored.crop_key if stored else None,
        device=world.device,
    )
    prepare = _prepare(run, config, tokenizer, stored, seed)
    if isinstance(spec, PairsSpec):
        assert isinstance(source, Stream)
        return source, feed, loader.then(prepare.pairs(source))
    return source, feed, loader.then(prepare.images)


def _source(spec: PairsSpec | ImagesSpec | TextsSpec, seed: int) -> Stream | Loose:
    if isinstance(spec, TextsSpec):
        return Texts(spec.folder, seed=seed)
    if isinstance(spec, ImagesSpec) and spec.folder:
        return Folder(spec.folder, seed=seed, window=spec.window)
    return Stream(
        spec.corpus,
        sources=spec.sources,
        unit=spec.unit if isinstance(spec, PairsSpec) else "images",
        seed=seed,
        window=spec.window,
        overlay=spec.overlay,
        cache=spec.cache,
    )


def _prepare(
    run: Run, config: FlavaConfig, tokenizer: Tokenizer | None, codes: Codes | None, seed: int
) -> Prepare:
    return Prepare(
        tokenizer,
        grid=config.grid,
        seed=seed,
        patches_hidden=run.hide.patches,
        block=run.hide.block,
        words_hidden=run.hide.words,
        whole_words=run.hide.whole_words,
        mismatched=run.pairs.mismatched if run.pairs else 0.0,
        stored_codes=codes,
    )
