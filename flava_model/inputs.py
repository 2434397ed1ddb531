"""Images and captions -> what a model reads of them: tokens, what is hidden, pairs that are none.

    Images --mismatch--> captions --tokenizer--> tokens --mask--> tokens_masked, token_labels --+--> Inputs
                                   key of each position --mask--> patch_mask -------------------+
                                                          stored codes, where there are some ---+

A loader's threads do this, a batch at a time: `loader.then(prepare.images)`. All of it follows from the
sample's position, so that it is the same for any number of ranks, threads and stops. Which pixels are seen
was settled before, in the same manner; they stay bytes until they are where the model is.

    B samples   P patches   T tokens   S sides of a view, px
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from flava_model.data import Images, Loaded
from flava_model.errors import WrongInput
from flava_model.losses import IGNORED
from flava_model.masks import chances, mask_tokens, patch_masks
from flava_model.tokens import Tokenizer
from pmd.stream import Captioned, Sample, keyed_each

_INPUTS, _MISMATCHED = 64, 65  # purposes of keys; those below are others'
TRIES = 10  # at another caption than the image's own

# Of CLIP's images (Radford et al., 2021), RGB in 0 to 1: what FLAVA's weights expect.
MEAN = (0.48145466, 0.4578275, 0.40821073)
DEVIATION = (0.26862954, 0.26130258, 0.27577711)


@dataclass(frozen=True)
class Inputs(Loaded):
    """A batch as a model reads it; what is None was not asked for."""

    views: dict[int, torch.Tensor]  # size -> B3SS, uint8; none of texts alone
    patch_mask: torch.Tensor | None = None  # BP, bool
    codes: torch.Tensor | None = None  # BP, int64: where they were stored
    tokens: torch.Tensor | None = None  # BT, int64
    tokens_masked: torch.Tensor | None = None  # BT, int64
    token_labels: torch.Tensor | None = None  # BT, int64
    text_mask: torch.Tensor | None = None  # BT, bool
    matches: torch.Tensor | None = None  # B, bool
    patches_hidden: int | None = None  # of each image; None where it differs
    tokens_hidden: int | None = None  # of each text, at most

    def pixels(self, size: int) -> torch.Tensor:
        """A view as models read it: B3SS, float32, normalised."""
        return normalised(self.views[size])


def normalised(view: torch.Tensor) -> torch.Tensor:
    """Bytes of RGB -> floats that are about 0 in the mean and 1 in deviation."""
    mean, deviation = (torch.tensor(one, device=view.device)[:, None, None] for one in (MEAN, DEVIATION))
    return (view.float() / 255 - mean) / deviation


class StoredCodes(Protocol):
    """Codes that were made once, see codes.py."""

    def of(self, samples: list[Sample]) -> NDArray[np.int64]: ...


@dataclass(frozen=True)
class Prepare:
    """How batches of images, texts and pairs become inputs.

    Shares are those of FLAVA at 14 x 14 patches: 75 of them hidden, in blocks of 16 at least.
    """

    tokenizer: Tokenizer | None = None
    grid: int = 14  # patches in a row
    seed: int = 0
    patches_hidden: float = 75 / 196  # share of an image's
    block: float = 16 / 196  # the least block, as a share of the image
    exact: bool = True  # all images hide the same number; see patch_masks
    words_hidden: float = 0.15  # share of a text's tokens
    whole_words: bool = True
    # How often a pair gets the caption of another image. The paper gives no rate; TorchMultimodal has this.
    mismatched: float = 0.1
    stored_codes: StoredCodes | None = None

    def __post_init__(self) -> None:
        for name in ("patches_hidden", "block", "words_hidden", "mismatched"):
            if not 0 <= getattr(self, name) <= 1:
                raise WrongInput(f"{name}: expected a share, 0 to 1, given {getattr(self, name)}")

    def images(self, images: Images) -> Inputs:
        """Of images alone, whatever their captions."""
        keys = self._keys(images, 0)
        return Inputs(images.batch, images.samples, images.weights, images.views, **self._seen(images, keys))

    def texts(self, texts: Images) -> Inputs:
        """Of texts alone."""
        keys = self._keys(texts, 1)
        read = self._read(texts.captions, keys)
        return Inputs(texts.batch, texts.samples, texts.weights, {}, **read)

    def pairs(self, source: Captioned) -> Callable[[Images], Inputs]:
        """Of images and their captions. source: which they come from, and other captions too."""

        def prepared(images: Images) -> Inputs:
            keys = self._keys(images, 2)
            captions, matches = self._mismatched(images, keys, source)
            given = self._seen(images, keys) | self._read(captions, keys)
            given["matches"] = matches
            return Inputs(images.batch, images.samples, images.weights, images.views, **given)

        return prepared

    def _keys(self, images: Images, kind: int) -> NDArray[np.uint64]:
        return keyed_each((self.seed, images.batch.epoch, kind), images.batch.positions, _INPUTS)

    def _seen(self, images: Images, keys: NDArray[np.uint64]) -> dict[str, Any]:
        patches = self.grid**2
        total = max(1, round(self.patches_hidden * patches))
        least = max(1, round(self.block * patches))
        hidden = patch_masks(keys, grid=self.grid, total=total, least=least, exact=self.exact)
        stored = self.stored_codes
        return {
            "patch_mask": torch.from_numpy(hidden.reshape(len(keys), patches)),
            "codes": None if stored is None else torch.from_numpy(stored.of(images.samples)),
            "patches_hidden": total if self.exact else None,
        }

    def _read(self, captions: list[str], keys: NDArray[np.uint64]) -> dict[str, Any]:
        if self.tokenizer is None:
            raise WrongInput("captions are to be read: expected a tokenizer, given none")
        tokens, words, there = self.tokenizer.encode(captions)
        masked, labels = mask_tokens(
            tokens,
            words,
            keys,
            vocabulary=len(self.tokenizer),
            mask_token=self.tokenizer.special.mask,
            share=self.words_hidden,
            whole_words=self.whole_words,
        )
        found = {"tokens": tokens, "tokens_masked": masked, "token_labels": labels, "text_mask": there}
        most = int((labels != IGNORED).sum(1).max(initial=0))
        length = tokens.shape[1]
        # Few different numbers, as of lengths: the share of a full row, or all, where words are long.
        full = max(1, round(self.words_hidden * (length - 2)))
        hidden = full if self.whole_words and most <= full else length
        return {name: torch.from_numpy(value) for name, value in found.items()} | {"tokens_hidden": hidden}

    def _mismatched(
        self, images: Images, keys: NDArray[np.uint64], source: Captioned
    ) -> tuple[list[str], torch.Tensor]:
        """Captions, some of them of other images, and which are their own."""
        captions, batch = images.captions, images.batch
        matches = np.ones(len(captions), bool)
        left = np.flatnonzero(chances(keys, _MISMATCHED, np.zeros(1, np.int64))[:, 0] < self.mismatched)
        for attempt in range(TRIES):
            if not left.size:
                break
            others = source.elsewhere(batch.epoch, batch.positions[left], attempt)
            for row, other in zip(left.tolist(), others, strict=True):
                own = images.samples[row]
                if other.key != own.key and other.text != own.caption:
                    captions[row], matches[row] = other.text, False
            left = left[matches[left]]
        return captions, torch.from_numpy(matches)
