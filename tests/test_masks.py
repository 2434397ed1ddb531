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
from flava_model.masks import mask_tokens, patch_mask
from pmd.stream import keyed

DRAWS = 3_000
MASK, VOCABULARY = 103, 30_522


def near(count: int, draws: int, rate: float) -> bool:
    """Is that many of so many draws what the rate gives?"""
    return abs(count - draws * rate) < 5 * math.sqrt(draws * rate * (1 - rate))


def test_blocks_are_those_of_the_published_code() -> None:
    random.seed(1)
    theirs = FlavaMaskingGenerator(
        input_size=14, total_mask_patches=75, mask_group_min_patches=16, mask_group_min_aspect_ratio=0.3
    )
    found = np.array([theirs() for _ in range(DRAWS)]).astype(bool)
    ours = np.array([patch_mask(keyed(1, draw), exact=False) for draw in range(DRAWS)])
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
    for draw in range(300):
        loose, exact = (patch_mask(draw, exact=one) for one in (False, True))
        assert exact.sum() == 75 and (exact | loose == exact).all()


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 2**64 - 1), st.integers(2, 20), st.integers(1, 400), st.integers(1, 30))
def test_any_mask_can_be_had(key: int, grid: int, total: int, least: int) -> None:
    if total > grid**2:
        with pytest.raises(WrongInput, match="expected 1 to"):
            patch_mask(key, grid=grid, total=total, least=least)
        return
    hidden = patch_mask(key, grid=grid, total=total, least=least)
    assert hidden.sum() == total
    assert (hidden == patch_mask(key, grid=grid, total=total, least=least)).all()


def text(key: int, words: int = 12) -> tuple[list[int], list[int | None]]:
    """[CLS], words of one to three tokens, [SEP], two of padding."""
    tokens, of = [101], [None]
    for word in range(words):
        pieces = keyed(key, word) % 3 + 1
        tokens += [2000 + keyed(key, word, piece) % 20_000 for piece in range(pieces)]
        of += [word] * pieces
    return [*tokens, 102, 0, 0], [*of, None, None, None]


@pytest.mark.parametrize("whole_words", [True, False])
def test_rates_are_berts(whole_words: bool) -> None:
    became: Counter[str] = Counter()
    hidden, there = 0, 0
    for draw in range(DRAWS):
        tokens, words = text(draw, words=40)
        masked, labels = mask_tokens(
            tokens, words, draw, vocabulary=VOCABULARY, mask_token=MASK, whole_words=whole_words
        )
        there += sum(word is not None for word in words)
        for before, after, label, word in zip(tokens, masked, labels, words, strict=True):
            if label == IGNORED:
                assert after == before
                continue
            assert label == before and word is not None
            hidden += 1
            became["mask" if after == MASK else "same" if after == before else "any"] += 1
    # Whole words fill the share up to the last word that fits.
    assert 0.14 < hidden / there < 0.16 if whole_words else near(hidden, there, 0.15)
    for name, rate in (("mask", 0.8), ("any", 0.1), ("same", 0.1)):
        assert near(became[name], hidden, rate), (name, became)


def test_words_are_hidden_whole_and_each_as_often() -> None:
    chosen: Counter[int] = Counter()
    for draw in range(DRAWS):
        tokens, words = text(7)
        _, labels = mask_tokens(tokens, words, draw, vocabulary=VOCABULARY, mask_token=MASK)
        hidden = {word for word, label in zip(words, labels, strict=True) if label != IGNORED}
        assert hidden and None not in hidden
        for word, label in zip(words, labels, strict=True):
            assert (label != IGNORED) == (word in hidden)
        chosen.update(word for word in hidden if word is not None)
    lengths = Counter(word for word in text(7)[1] if word is not None)
    for length in {*lengths.values()}:
        alike = [chosen[word] for word in lengths if lengths[word] == length]
        rate = sum(alike) / len(alike) / DRAWS
        assert all(near(count, DRAWS, rate) for count in alike)


def test_any_token_is_any_of_the_vocabulary() -> None:
    drawn: list[int] = []
    for draw in range(4 * DRAWS):
        tokens, words = text(draw)
        masked, labels = mask_tokens(tokens, words, draw, vocabulary=50, mask_token=60)
        drawn += [one for one, label in zip(masked, labels, strict=True) if label != IGNORED and one < 50]
    assert len(drawn) > 1_500
    assert all(near(count, len(drawn), 1 / 50) for count in np.bincount(drawn, minlength=50).tolist())


def test_a_short_text_hides_a_word_and_an_empty_one_nothing() -> None:
    assert [
        label != IGNORED
        for label in mask_tokens([101, 5, 102], [None, 0, None], 1, vocabulary=9, mask_token=3)[1]
    ] == [
        False,
        True,
        False,
    ]
    assert mask_tokens([101, 102], [None, None], 1, vocabulary=9, mask_token=3) == ([101, 102], [IGNORED] * 2)
    with pytest.raises(WrongInput, match="2 tokens of 1 words"):
        mask_tokens([1, 2], [0], 1, vocabulary=9, mask_token=3)
