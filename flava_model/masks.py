"""What is hidden from the model: patches of an image in blocks, tokens of a text.

Everything is drawn from a key, keyed(seed, epoch, position), so that a sample has the same masks on every
rank and after every resume, and other ones each epoch.
"""

import math
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from flava_model.errors import WrongInput
from flava_model.losses import IGNORED
from pmd.stream import keyed, keyed_each

_PATCHES, _TOP_UP, _WORDS, _HOW, _WHICH = range(48, 53)  # purposes of keys; those below are others'
TRIES = 10  # at a block that covers something new and not too much


def _chances(key: int, purpose: int, count: int) -> NDArray[np.float64]:
    """Numbers from 0 up to 1."""
    return (keyed_each((key,), np.arange(count), purpose) >> np.uint64(11)).astype(np.float64) * 2.0**-53


def patch_mask(
    key: int, *, grid: int = 14, total: int = 75, least: int = 16, ratio: float = 0.3, exact: bool = True
) -> NDArray[np.bool_]:
    """Which patches of an image are hidden, in blocks (Bao et al., "BEiT", 2022): grid, grid.

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
    hidden = np.zeros((grid, grid), bool)
    draw = _drawn(key)
    count = 0
    while count < total and (added := _block(hidden, total - count, least, ratio, draw)):
        count += added
    if exact and count < total:
        # Of those that are left, the ones with the smallest numbers.
        numbers = np.where(hidden.ravel(), 2.0, _chances(key, _TOP_UP, grid**2))
        hidden.ravel()[np.argsort(numbers, kind="stable")[: total - count]] = True
    return hidden


def _drawn(key: int) -> Iterator[float]:
    """As many numbers from 0 up to 1 as are asked for."""
    for block in range(1 << 30):
        yield from _chances(keyed(key, block), _PATCHES, 64).tolist()


def _block(hidden: NDArray[np.bool_], left: int, least: int, ratio: float, draw: Iterator[float]) -> int:
    """Hide one block more, with at most `left` new patches; returns how many, 0 where none is found."""
    grid = len(hidden)
    for _ in range(TRIES):
        area = least + (left - least) * next(draw)  # also where less is left than the least
        sides = math.exp(math.log(ratio) * (1 - 2 * next(draw)))
        height, width = round(math.sqrt(area * sides)), round(math.sqrt(area / sides))
        if not (height < grid and width < grid):
            continue
        top, side = int(next(draw) * (grid - height + 1)), int(next(draw) * (grid - width + 1))
        block = hidden[top : top + height, side : side + width]
        new = block.size - int(block.sum())
        if 0 < new <= left:
            block[:] = True
            return new
    return 0


def mask_tokens(
    tokens: Sequence[int],
    words: Sequence[int | None],
    key: int,
    *,
    vocabulary: int,
    mask_token: int,
    share: float = 0.15,
    whole_words: bool = True,
) -> tuple[list[int], list[int]]:
    """A text with some tokens hidden, and the labels: what stood there, IGNORED elsewhere.

    words: for each token, the number of its word; None for what is never hidden, as [CLS] and padding.
    share: of the tokens, BERT's 15 %. whole_words: all tokens of a word or none, and of a text at least one
    word; else each token by itself. Of the hidden ones 80 % become mask_token, 10 % any token of the
    vocabulary, 10 % stay.
    """
    if len(tokens) != len(words):
        raise WrongInput(
            f"{len(tokens)} tokens of {len(words)} words: expected a word or None for each token"
        )
    chosen = _words(words, key, share) if whole_words else _single(words, key, share)
    masked, labels = [*tokens], [IGNORED] * len(tokens)
    how, which = _chances(key, _HOW, len(tokens)), _chances(key, _WHICH, len(tokens))
    for place in chosen:
        labels[place] = tokens[place]
        if how[place] < 0.8:
            masked[place] = mask_token
        elif how[place] < 0.9:
            masked[place] = int(which[place] * vocabulary)
    return masked, labels


def _single(words: Sequence[int | None], key: int, share: float) -> list[int]:
    drawn = _chances(key, _WORDS, len(words))
    return [place for place, word in enumerate(words) if word is not None and drawn[place] < share]


def _words(words: Sequence[int | None], key: int, share: float) -> list[int]:
    """Words in a drawn order, as long as they fit into the share, rounded to tokens."""
    places: dict[int, list[int]] = {}
    for place, word in enumerate(words):
        if word is not None:
            places.setdefault(word, []).append(place)
    tokens = sum(map(len, places.values()))
    wanted = max(1, round(tokens * share))
    order = np.argsort(_chances(key, _WORDS, len(places)), kind="stable")
    in_order = [[*places.values()][number] for number in order.tolist()]
    chosen: list[int] = []
    for word in in_order:
        if len(chosen) + len(word) <= wanted:
            chosen += word
    if not chosen and in_order:
        chosen = min(in_order, key=len)  # each word alone is more than the share
    return sorted(chosen)
