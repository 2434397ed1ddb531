"""The laws of flava_model/masks.py: the rates of BEiT and BERT, from keys alone.

Rates are tested at five standard deviations: one run in a million fails for no reason, and since keys are
fixed, none does.
"""

import math
import random
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.models.flava.image_processing_pil_flava import FlavaMaskingGenerator

from flava_model.errors import WrongInput
from flava_model.losses import IGNORED
from flava_model.masks import Tokens, mask_tokens, patch_masks
from pmd.stream import keyed

DRAWS = 3_000
MASK, VOCABULARY = 103, 30_522


def near(count: int, draws: int, rate: float) -> bool:
    """Is that many of so many draws what the rate gives?"""
    return abs(count - draws * rate) < 5 * math.sqrt(draws * rate * (1 - rate))


KEYS = np.array([keyed(1, draw) for draw in range(DRAWS)], np.uint64)


def test_blocks_are_those_of_the_published_code() -> None:
    random.seed(1)
    theirs = FlavaMaskingGenerator(
        input_size=14, total_mask_patches=75, mask_group_min_patches=16, mask_group_min_aspect_ratio=0.3
    )
    found = np.array([theirs() for _ in range(DRAWS)]).astype(bool)
    ours = patch_masks(KEYS, exact=False)
    counts, their_counts = ours.sum((1, 2)), found.sum((1, 2))
    assert counts.max() == 75 == their_counts.max() and counts.min() >= 60
    apart = abs(counts.mean() - their_counts.mean())
    assert apart < 5 * math.sqrt((counts.var() + their_counts.var()) / DRAWS)
    full, their_full = (float((one == 75).mean()) for one in (counts, their_counts))
    assert abs(full - their_full) < 5 * math.sqrt(2 * their_full * (1 - their_full) / DRAWS)
    # Where they lie, and how they hang together: each patch, and each pair of neighbours.
    for one, other in (
        (ours, found),
        (ours[:, 1:] & ours[:, :-1], found[:, 1:] & found[:, :-1]),
        (ours[:, :, 1:] & ours[:, :, :-1], found[:, :, 1:] & found[:, :, :-1]),
    ):
        rate, their_rate = one.mean(0), other.mean(0)
        spread = np.sqrt((rate * (1 - rate) + their_rate * (1 - their_rate)) / DRAWS)
        assert (abs(rate - their_rate) < 5 * spread + 1e-9).all()


def test_an_exact_mask_has_one_size_and_holds_the_other() -> None:
    loose, exact = (patch_masks(KEYS[:300], exact=one) for one in (False, True))
    assert (exact.sum((1, 2)) == 75).all() and (exact | loose == exact).all()


def test_a_sample_is_masked_alike_in_any_batch() -> None:
    whole = patch_masks(KEYS[:50])
    tokens, words = texts(50)
    both = mask_tokens(tokens, words, KEYS[:50], vocabulary=VOCABULARY, mask_token=MASK)
    for begin, end in ((0, 1), (7, 20), (49, 50)):
        assert (patch_masks(KEYS[begin:end]) == whole[begin:end]).all()
        # Also beside longer texts, which add padding.
        there = [(0, 0), (0, 9)]
        longer = np.pad(tokens[begin:end], there), np.pad(words[begin:end], there, constant_values=-1)
        masked, labels = mask_tokens(*longer, KEYS[begin:end], vocabulary=VOCABULARY, mask_token=MASK)
        assert (masked[:, :-9] == both[0][begin:end]).all() and (labels[:, :-9] == both[1][begin:end]).all()
        assert (masked[:, -9:] == 0).all() and (labels[:, -9:] == IGNORED).all()


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 2**64 - 1), st.integers(2, 20), st.integers(1, 400), st.integers(1, 30))
def test_any_mask_can_be_had(key: int, grid: int, total: int, least: int) -> None:
    keys = np.array([key], np.uint64)
    if total > grid**2:
        with pytest.raises(WrongInput, match="expected 1 to"):
            patch_masks(keys, grid=grid, total=total, least=least)
        return
    (hidden,) = patch_masks(keys, grid=grid, total=total, least=least)
    assert hidden.sum() == total


def texts(count: int, words: int = 12) -> tuple[Tokens, Tokens]:
    """Each [CLS], words of one to three tokens, [SEP], padding."""
    length = 3 * words + 4
    tokens, of = np.zeros((count, length), np.int64), np.full((count, length), -1)
    for row in range(count):
        line, words_of = [101], [-1]
        for word in range(words):
            pieces = keyed(row, word) % 3 + 1
            line += [2000 + keyed(row, word, piece) % 20_000 for piece in range(pieces)]
            words_of += [word] * pieces
        tokens[row, : len(line) + 1], of[row, : len(line)] = [*line, 102], words_of
    return tokens, of


@pytest.mark.parametrize("whole_words", [True, False])
def test_rates_are_berts(whole_words: bool) -> None:
    tokens, words = texts(DRAWS, words=40)
    masked, labels = mask_tokens(
        tokens, words, KEYS, vocabulary=VOCABULARY, mask_token=MASK, whole_words=whole_words
    )
    chosen = labels != IGNORED
    assert (
        (masked == tokens)[~chosen].all() and (labels == tokens)[chosen].all() and (words >= 0)[chosen].all()
    )
    hidden, there = int(chosen.sum()), int((words >= 0).sum())
    # Whole words fill the share up to the last word that fits.
    assert 0.14 < hidden / there < 0.16 if whole_words else near(hidden, there, 0.15)
    became = {
        "mask": int((masked == MASK)[chosen].sum()),
        "same": int((masked == tokens)[chosen].sum()),
    }
    became["any"] = hidden - sum(became.values())
    for name, rate in (("mask", 0.8), ("any", 0.1), ("same", 0.1)):
        assert near(became[name], hidden, rate), (name, became)


def test_words_are_hidden_whole_and_each_as_often() -> None:
    (tokens,), (words,) = texts(1)
    many = np.tile(tokens, (DRAWS, 1)), np.tile(words, (DRAWS, 1))
    _, labels = mask_tokens(*many, KEYS, vocabulary=VOCABULARY, mask_token=MASK)
    lengths = Counter(words[words >= 0].tolist())
    hidden = {word: (labels != IGNORED)[:, words == word] for word in lengths}
    for of_word in hidden.values():
        assert (of_word.all(1) == of_word.any(1)).all()
    assert (labels != IGNORED).any(1).all()
    for length in {*lengths.values()}:
        alike = [int(hidden[word][:, 0].sum()) for word in lengths if lengths[word] == length]
        rate = sum(alike) / len(alike) / DRAWS
        assert all(near(count, DRAWS, rate) for count in alike)


def test_any_token_is_any_of_the_vocabulary() -> None:
    tokens, words = texts(DRAWS, words=40)
    masked, labels = mask_tokens(tokens, words, KEYS, vocabulary=50, mask_token=60)
    drawn = masked[(labels != IGNORED) & (masked < 50)]
    assert len(drawn) > 1_500
    assert all(near(count, len(drawn), 1 / 50) for count in np.bincount(drawn, minlength=50).tolist())


def test_a_short_text_hides_a_word_and_an_empty_one_nothing() -> None:
    tokens = np.array([[101, 5, 102], [101, 102, 0], [101, 5, 5]])
    words = np.array([[-1, 0, -1], [-1, -1, -1], [-1, 0, 0]])
    masked, labels = mask_tokens(tokens, words, KEYS[:3], vocabulary=9, mask_token=3)
    assert (labels != IGNORED).tolist() == [[False, True, False], [False] * 3, [False, True, True]]
    assert masked[1].tolist() == [101, 102, 0]
    empty = np.zeros((1, 0), np.int64)
    assert mask_tokens(empty, empty, KEYS[:1], vocabulary=9, mask_token=3)[0].shape == (1, 0)
    with pytest.raises(WrongInput, match=r"tokens \(1, 2\), their words \(1, 1\)"):
        mask_tokens(np.ones((1, 2), int), np.ones((1, 1), int), KEYS[:1], vocabulary=9, mask_token=3)
