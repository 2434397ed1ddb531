"""What is hidden from the model: patches of an image in blocks, tokens of a text.

Everything is drawn from a key for each sample, keyed(seed, epoch, position), so that it has the same masks
on every rank and after every resume, and other ones each epoch. A batch is done at once: sample by sample it
takes some ten times as long, and holds the interpreter. Which samples are together in it changes nothing.

    B samples   G patches in a row   T tokens   W words
"""

import math

import numpy as np
from numpy.typing import NDArray

from flava_model.errors import WrongInput
from flava_model.losses import IGNORED
from pmd.stream import keyed, mixed

_PATCHES, _TOP_UP, _WORDS, _HOW, _WHICH = range(48, 53)  # purposes of keys; those below are others'
TRIES = 10  # at a block that covers something new and not too much

Keys = NDArray[np.uint64]
Tokens = NDArray[np.int64]


def chances(keys: Keys, purpose: int, counters: Tokens) -> NDArray[np.float64]:
    """A number from 0 up to 1 for each counter of each key: B, and any shape of counters per key."""
    counters = counters.reshape(len(keys), -1) if counters.ndim > 1 else counters[None]
    with np.errstate(over="ignore"):
        begun = mixed(keys ^ np.uint64(keyed(purpose)))[:, None]
        drawn = mixed(begun + (counters.astype(np.uint64) + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15))
    return (drawn >> np.uint64(11)).astype(np.float64) * 2.0**-53


def patch_masks(
    keys: Keys, *, grid: int = 14, total: int = 75, least: int = 16, ratio: float = 0.3, exact: bool = True
) -> NDArray[np.bool_]:
    """Which patches of some images are hidden, in blocks (Bao et al., "BEiT", 2022): BGG.

    total: patches, 75 of 196 in FLAVA. least: patches of a block, as long as so many are still to be hidden.
    ratio: of a block's sides, from this to its inverse. exact: where blocks leave some to be hidden, in a
    third of all images, single ones are added. The published code leaves it at that; a fixed number gives
    fixed shapes.
    """
    if not 0 < total <= grid**2 or not least > 0 or not 0 < ratio <= 1:
        raise WrongInput(
            f"a mask of {total} of {grid} x {grid} patches, blocks of {least}, a ratio of {ratio}: expected "
            f"1 to {grid**2}, 1 or more, above 0 to 1"
        )
    hidden = np.zeros((len(keys), grid, grid), bool)
    counts = np.zeros(len(keys), np.int64)
    tries = np.zeros(len(keys), np.int64)  # in vain, since the last block
    line = np.arange(grid)
    for attempt in range(TRIES * total):
        left = np.flatnonzero((counts < total) & (tries < TRIES))
        if not left.size:
            break
        area_, sides_, top_, side_ = chances(keys[left], _PATCHES, np.arange(4) + 4 * attempt).T
        wanted = total - counts[left]
        area = least + (wanted - least) * area_  # also where less is left than the least
        sides = np.exp(math.log(ratio) * (1 - 2 * sides_))
        height, width = np.rint(np.sqrt(area * sides)), np.rint(np.sqrt(area / sides))
        top, side = np.floor(top_ * (grid - height + 1)), np.floor(side_ * (grid - width + 1))
        rows = (line >= top[:, None]) & (line < (top + height)[:, None])
        columns = (line >= side[:, None]) & (line < (side + width)[:, None])
        block = rows[:, :, None] & columns[:, None]
        new = (block & ~hidden[left]).sum((1, 2))
        taken = (height < grid) & (width < grid) & (new > 0) & (new <= wanted)
        hidden[left[taken]] |= block[taken]
        counts[left] += new * taken
        tries[left] = np.where(taken, 0, tries[left] + 1)
    if exact and (short := np.flatnonzero(counts < total)).size:
        # Of those that are left, the ones with the smallest numbers.
        flat = hidden[short].reshape(len(short), -1)
        numbers = np.where(flat, 2.0, chances(keys[short], _TOP_UP, np.arange(grid**2)))
        rank = numbers.argsort(1, kind="stable").argsort(1, kind="stable")
        added = rank < (total - counts[short])[:, None]
        hidden[short] = (flat | added).reshape(-1, grid, grid)
    return hidden


def mask_tokens(
    tokens: Tokens,
    words: Tokens,
    keys: Keys,
    *,
    vocabulary: int,
    mask_token: int,
    share: float = 0.15,
    whole_words: bool = True,
) -> tuple[Tokens, Tokens]:
    """Texts with some tokens hidden, and the labels: what stood there, IGNORED elsewhere. Both BT.

    tokens: BT. words: BT, for each token the number of its word in the text; -1 for what is never hidden, as
    [CLS] and padding. share: of the tokens, BERT's 15 %. whole_words: all tokens of a word or none, and of a
    text at least one word; else each token by itself. Of the hidden ones 80 % become mask_token, 10 % any
    token of the vocabulary, 10 % stay.
    """
    if tokens.shape != words.shape or tokens.ndim != 2 or len(tokens) != len(keys):
        raise WrongInput(
            f"tokens {tokens.shape}, their words {words.shape} and {len(keys)} keys: expected B, T twice, "
            "and B keys"
        )
    places = np.arange(tokens.shape[1])
    if whole_words:
        hidden = _hidden_words(words, keys, share)
    else:
        hidden = (words >= 0) & (chances(keys, _WORDS, places) < share)
    how, which = chances(keys, _HOW, places), chances(keys, _WHICH, places)
    instead = np.where(
        how < 0.8, mask_token, np.where(how < 0.9, (which * vocabulary).astype(np.int64), tokens)
    )
    return np.where(hidden, instead, tokens), np.where(hidden, tokens, IGNORED)


def _hidden_words(words: Tokens, keys: Keys, share: float) -> NDArray[np.bool_]:
    """The tokens of words taken in a drawn order, as long as they fit into the share, rounded to tokens."""
    count = int(words.max(initial=-1)) + 1
    if not count:
        return np.zeros(words.shape, bool)
    rows = np.arange(len(words))
    flat = (rows[:, None] * count + words)[words >= 0]
    sizes = np.bincount(flat, minlength=len(words) * count).reshape(-1, count)  # tokens of each word: BW
    numbers = np.where(sizes > 0, chances(keys, _WORDS, np.arange(count)), 2.0)
    order = numbers.argsort(1, kind="stable")
    ordered = np.take_along_axis(sizes, order, 1)
    wanted = np.maximum(1, np.rint(sizes.sum(1) * share))
    taken = np.zeros(len(words), np.int64)
    chosen = np.zeros(sizes.shape, bool)  # in the drawn order
    for place in range(count):
        size = ordered[:, place]
        chosen[:, place] = fits = (size > 0) & (taken + size <= wanted)
        taken += size * fits
    # Where each word alone is more than the share, the first of the shortest.
    none = np.flatnonzero((taken == 0) & (sizes.sum(1) > 0))
    shortest = np.where(ordered[none] > 0, ordered[none], words.size + 1).argmin(1)
    chosen[none, shortest] = True
    by_word = np.zeros_like(chosen)
    np.put_along_axis(by_word, order, chosen, 1)
    return (words >= 0) & by_word[rows[:, None], np.maximum(words, 0)]
