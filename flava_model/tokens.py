"""Texts -> tokens, by BERT's WordPiece: one of bert-base-uncased, or one trained on the corpus.

    captions --train--> Tokenizer --save--> tokenizer.json, vocab.txt      transformers reads them too
    texts --encode--> tokens, words: B rows of the shortest length in LENGTHS that holds the longest text

The tokens of a caption decide what a model has learned, so a tokenizer has a sha256 of all that decides them,
and the models trained with it carry it.
"""

import hashlib
import itertools
import json
import os
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tokenizers
from numpy.typing import NDArray
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers

from flava_model.errors import WrongInput

# Tokens of a batch's texts, with [CLS] and [SEP]. Few different ones, since a compiled model is compiled for
# each. Captions have 15 tokens in the mean; 77 is what FLAVA had, 512 for texts alone.
LENGTHS = (16, 24, 32, 48, 64, 77, 128, 256, 512)
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
ALPHABET = 1_000  # characters at most, the most frequent ones; others become [UNK]
HUB = "hub:"  # before a name, for what is to be downloaded


class Encoded(NamedTuple):
    """Some texts, with [CLS] before and [SEP] behind them, padded to one length."""

    tokens: NDArray[np.int64]  # BT
    words: NDArray[np.int64]  # BT: the number of each token's word in its text; -1 of special ones
    there: NDArray[np.bool_]  # BT: False for padding


@dataclass(frozen=True)
class Special:
    """The ids of the tokens that are no part of a text."""

    pad: int
    unknown: int
    first: int  # [CLS]
    last: int  # [SEP]
    mask: int


@dataclass(frozen=True)
class Fit:
    """How a tokenizer goes with some captions."""

    captions: int
    mean: float  # tokens of a caption, with [CLS] and [SEP]
    lengths: dict[str, int]  # how many tokens half, 90 %, 99 % and all of them have at most
    cut: float  # share of captions that are longer than the tokenizer's longest
    unknown: float  # share of tokens that are [UNK]


class Tokenizer:
    """A WordPiece vocabulary and the rules to apply it. Threads may share one."""

    def __init__(self, inner: tokenizers.Tokenizer, *, longest: int = 77) -> None:
        """longest: tokens of a text at most, with [CLS] and [SEP]; the rest is cut off. Raises WrongInput
        where one of BERT's special tokens is missing.
        """
        inner = tokenizers.Tokenizer.from_str(inner.to_str())  # our own: to cut is a setting of it
        inner.no_padding()
        inner.no_truncation()
        # By the threads of the loader, and not by others beside them. It would also complain at each fork.
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
        ids = [id for token in SPECIAL if (id := inner.token_to_id(token)) is not None]
        if missing := [token for token in SPECIAL if inner.token_to_id(token) is None]:
            raise WrongInput(
                f"the tokenizer has no {', '.join(missing)}: expected all of BERT's special tokens"
            )
        if ids[0] != 0:
            raise WrongInput(
                f"the tokenizer's [PAD] is {ids[0]}: expected 0, where the model expects padding"
            )
        if longest < 3:
            raise WrongInput(
                f"texts of up to {longest} tokens: expected 3 at least, for [CLS], a token, [SEP]"
            )
        self.special, self.longest = Special(*ids), longest
        self._plain = inner.to_str()
        inner.enable_truncation(longest)
        self._inner = inner

    def __reduce__(self) -> tuple[Any, ...]:
        return _opened, (self._plain, self.longest)

    def __len__(self) -> int:
        """Tokens that there are."""
        return self._inner.get_vocab_size()

    @cached_property
    def sha256(self) -> str:
        """Of the vocabulary and of all rules by which a text becomes tokens."""
        told = json.loads(self._plain)
        rules = {part: told[part] for part in ("normalizer", "pre_tokenizer", "post_processor", "model")}
        rules["added"] = [[token["id"], token["content"]] for token in told["added_tokens"]]
        return hashlib.sha256(json.dumps(rules, sort_keys=True).encode()).hexdigest()

    def cut_to(self, longest: int) -> "Tokenizer":
        """The same for texts of up to so many tokens."""
        return Tokenizer(self._inner, longest=longest)

    def encode(self, texts: Sequence[str], *, length: int | None = None) -> Encoded:
        """length: of the rows; else the shortest of LENGTHS, or `longest`, that holds the longest text."""
        found = self._inner.encode_batch([*texts])
        most = max((len(one) for one in found), default=1)
        if length is None:
            length = min(n for n in (*LENGTHS, self.longest) if n >= most)
        if length < most:
            raise WrongInput(
                f"a text of {most} tokens in rows of {length}: give the tokenizer longest={length}"
            )
        tokens = np.full((len(found), length), self.special.pad, np.int64)
        words = np.full((len(found), length), -1, np.int64)
        there = np.zeros((len(found), length), bool)
        for row, one in enumerate(found):
            count = len(one)
            tokens[row, :count] = one.ids
            words[row, :count] = [-1 if word is None else word for word in one.word_ids]
            there[row, :count] = True
        return Encoded(tokens, words, there)

    def decode(self, tokens: Sequence[int]) -> str:
        """A text, without special tokens."""
        return self._inner.decode([*tokens])

    def fit(self, captions: Sequence[str]) -> Fit:
        """How long captions become, and how much of them is unknown."""
        whole = self.cut_to(1 << 30)._inner
        found: list[int] = []
        unknown = 0
        for begin in range(0, len(captions), 1_024):
            for one in whole.encode_batch([*captions[begin : begin + 1_024]]):
                found.append(len(one))
                unknown += one.ids.count(self.special.unknown)
        lengths = np.array(found)
        shares = {"half": 0.5, "90 %": 0.9, "99 %": 0.99, "all": 1.0}
        return Fit(
            len(captions),
            float(lengths.mean()),
            {name: int(np.quantile(lengths, share, method="higher")) for name, share in shares.items()},
            float((lengths > self.longest).mean()),
            unknown / int(lengths.sum()),
        )

    def save(self, folder: str | Path) -> None:
        """Write tokenizer.json, and what transformers reads beside it."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        by_id = sorted(self._inner.get_vocab().items(), key=lambda one: one[1])
        plain = json.loads(self._plain)
        settings = {
            "tokenizer_class": "BertTokenizerFast",
            "do_lower_case": bool((plain["normalizer"] or {}).get("lowercase", False)),
            "model_max_length": self.longest,
        }
        for name, data in (
            ("vocab.txt", "".join(f"{token}\n" for token, _ in by_id)),
            ("tokenizer_config.json", json.dumps(settings, indent=2)),
            ("tokenizer.json", json.dumps(plain, indent=1, ensure_ascii=False)),
        ):
            aside = folder / f".{name}.part"
            aside.write_text(data, "utf-8")
            os.replace(aside, folder / name)


def _opened(plain: str, longest: int) -> Tokenizer:
    return Tokenizer(tokenizers.Tokenizer.from_str(plain), longest=longest)


def load_tokenizer(where: str | Path, *, longest: int = 77) -> Tokenizer:
    """A tokenizer from a folder with tokenizer.json or vocab.txt, one of these files, or, as
    "hub:bert-base-uncased" or "hub:NAME@REVISION", from the Hugging Face Hub: nothing else is downloaded.

    A vocab.txt is taken as that of an uncased model. Raises WrongInput where there is none.
    """
    if (name := str(where)).startswith(HUB):
        model, _, revision = name.removeprefix(HUB).partition("@")
        try:
            return Tokenizer(tokenizers.Tokenizer.from_pretrained(model, revision or "main"), longest=longest)
        # The Hub's client and the Rust below it raise many kinds, among them plain Exception.
        except Exception as error:
            raise WrongInput(
                f"{where} could not be had from the Hub: {error}. Without a connection, give a folder with "
                "tokenizer.json or vocab.txt"
            ) from None
    path = Path(where)
    if path.is_dir():
        found = [path / name for name in ("tokenizer.json", "vocab.txt") if (path / name).exists()]
        if not found:
            raise WrongInput(f"{path}: expected tokenizer.json or vocab.txt in it")
        path = found[0]
    try:
        text = path.read_text("utf-8")
        inner = tokenizers.Tokenizer.from_str(text) if path.suffix == ".json" else _of_vocabulary(text)
    except FileNotFoundError:
        raise WrongInput(
            f"{path}: there is no such file or folder. For a name on the Hugging Face Hub, {HUB}{where}"
        ) from None
    except Exception as error:  # as above: what is no tokenizer is answered by Rust with plain Exception
        raise WrongInput(f"{path}: not a tokenizer: {error}") from None
    return Tokenizer(inner, longest=longest)


def _of_vocabulary(text: str) -> tokenizers.Tokenizer:
    """Of vocab.txt: a token a line, in the order of their ids."""
    tokens = text.removesuffix("\n").split("\n")
    vocabulary = {token.removesuffix("\r"): id for id, token in enumerate(tokens)}
    if len(vocabulary) != len(tokens):
        twice, count = Counter(tokens).most_common(1)[0]
        raise ValueError(f"{twice!r} is in it {count} times")
    return _wordpiece(vocabulary)


def _wordpiece(vocabulary: dict[str, int]) -> tokenizers.Tokenizer:
    """BERT's rules, uncased, over a vocabulary."""
    inner = tokenizers.Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    inner.normalizer = normalizers.BertNormalizer(lowercase=True)
    inner.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    if not {*SPECIAL} <= {*vocabulary}:
        missing = [token for token in SPECIAL if token not in vocabulary]
        raise ValueError(f"it lacks {', '.join(missing)}")
    inner.post_processor = processors.BertProcessing(
        ("[SEP]", vocabulary["[SEP]"]), ("[CLS]", vocabulary["[CLS]"])
    )
    inner.decoder = decoders.WordPiece()
    inner.add_special_tokens([*SPECIAL])
    return inner


def train_tokenizer(
    captions: Callable[[], Iterable[Sequence[str]]], *, size: int = 30_522, least: int = 2
) -> Tokenizer:
    """A vocabulary of up to so many tokens, the same ones for the same captions.

    captions: gives all of them, some at a time; it is asked twice. least: times that a pair of pieces must
    come up to become one. Pieces are put together as in BPE, by how often they come; texts are then cut by
    WordPiece's longest match, as BERT's are.

    Raises WrongInput where there is nothing to learn from, or the size leaves no room for single characters.
    """
    normalizer, splitter = normalizers.BertNormalizer(lowercase=True), pre_tokenizers.BertPreTokenizer()
    counts: Counter[str] = Counter()
    for some in captions():
        counts.update(normalizer.normalize_str("\n".join(some)))
    for space in [character for character in counts if character.isspace()]:
        del counts[space]
    if not counts:
        raise WrongInput("there is no caption to train a tokenizer on")
    alphabet = sorted(sorted(counts), key=lambda character: -counts[character])[:ALPHABET]
    if size < (needed := len(SPECIAL) + 2 * len(alphabet)):
        raise WrongInput(f"a vocabulary of {size}: expected {needed} at least, for the characters alone")
    # The trainer numbers the continuing characters in the order of a hash table, which differs from run to
    # run, and breaks ties by number. As special tokens they are numbered beforehand.
    begun = [*SPECIAL, *(f"##{character}" for character in alphabet)]
    trained = tokenizers.Tokenizer(models.WordPiece(unk_token="[UNK]"))
    trained.normalizer, trained.pre_tokenizer = normalizer, splitter
    trainer = trainers.WordPieceTrainer(
        vocab_size=size,
        min_frequency=least,
        special_tokens=begun,
        initial_alphabet=alphabet,
        limit_alphabet=len(alphabet),
        show_progress=False,
    )
    trained.train_from_iterator(itertools.chain.from_iterable(captions()), trainer)
    found = sorted(trained.get_vocab().items(), key=lambda one: one[1])
    return Tokenizer(_wordpiece({token: id for id, (token, _) in enumerate(found)}))
