import importlib
import subprocess
import sys
import time
import unicodedata
from pathlib import Path

import ftfy.badness
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pmd import text
from pmd.errors import BadRequest
from pmd.manifest import TextSpec
from pmd.records import Reason
from pmd.text import MAX_RAW_CHARS, clean, judge, versions

REAL = Path(__file__).parents[2] / "shared" / "real"

# Any character, and often those that cleaning is about.
WESTERN = text._PLAIN_SIGNS  # pyright: ignore[reportPrivateUsage]
SIGNS = "".join(ftfy.badness.MOJIBAKE_CATEGORIES.values())
CHARACTERS = st.one_of(
    st.characters(max_codepoint=0x7F),
    st.characters(),
    st.characters(min_codepoint=0xA0, max_codepoint=0xFF),
    st.sampled_from(SIGNS + " &;#<>\u200b\u200d\u200e\u202e\u2028\u3000\ufeff\x1b\ud800\u0301ﬁＡ’“”€™ÂÃâ"),  # noqa: RUF001
)
TEXTS = st.text(CHARACTERS, max_size=20) | st.lists(
    st.sampled_from(
        ["&amp;", "&lt;", "&#8206;", "&#xD800;", "&nbsp;", "â€™", "Ã©", "Ã ", "\x1b[1m", "é", "a", " "]
    )
).map("".join)


# --- clean ---


@pytest.mark.parametrize(
    ("raw", "cleaned"),
    [
        ("", ""),
        ("A bowl of fruit.", "A bowl of fruit."),
        (" A bowl\nof \t fruit. \r\n", "A bowl of fruit."),
        ("a\u00a0b\u3000c\u2028d\u2009e\x0bf\x1cg", "a b c d e f g"),
        ("wait\x85 what", "wait… what"),
        ("<PERSON> &amp; dog", "<PERSON> & dog"),
        ("thanks <usr> &lt;3", "thanks <usr> <3"),
        ("Toys & More", "Toys & More"),
        ("AT&amp;amp;T &quot;x&quot; &#39;y&#39; caf&eacute; &hellip;", "AT&T \"x\" 'y' café …"),
        ("don’t “quote” – me…", "don’t “quote” – me…"),  # noqa: RUF001
        ("donâ€™t â€œquoteâ€\x9d", "don’t “quote”"),  # noqa: RUF001
        ("Le CafÃ© Ã\u00a0 Paris", "Le Café à Paris"),
        ("cafe\u0301", "café"),
        ("ﬁne ＦＵＬＬ", "fine FULL"),  # noqa: RUF001
        ("\u202eevil\u202c \u200fmark\u2066s\u2069", "evil marks"),
        ("nul\x00 bell\x07 del\x7f", "nul bell del"),
        ("\x1b[31mred\x1b[0m", "red"),
        ("\ufeffbom", "bom"),
        ("👩\u200d👧 family", "👩\u200d👧 family"),
        ("\u200b", ""),
        ("&nbsp;\u200b &#8206;", ""),
        ("lone \ud83d surrogate", "lone \ufffd surrogate"),
        ("東京タワーの夜景", "東京タワーの夜景"),
        ("Привет, мир", "Привет, мир"),
        ("مرحبا بالعالم", "مرحبا بالعالم"),
        ("2 × 3 m², £5 – 10°", "2 × 3 m², £5 – 10°"),  # noqa: RUF001
    ],
)
def test_a_caption_is_cleaned(raw: str, cleaned: str) -> None:
    assert clean([raw]) == [cleaned]


@settings(max_examples=2000, deadline=None, derandomize=True)
@given(TEXTS)
def test_what_looks_clean_is_what_repairing_leaves_alone(raw: str) -> None:
    if text._is_clean(raw):  # pyright: ignore[reportPrivateUsage]
        assert text._repaired(raw) == raw  # pyright: ignore[reportPrivateUsage]


def test_one_western_sign_between_ascii_is_left_alone() -> None:
    before = ("", "a", "a ", "Z", "1", ".", "?", "(", "a.", "' ")
    after = ("", "a", " a", "Z", " Z", "1", ".", " .", ")", " \u2019s", " 1")
    for sign in WESTERN:
        for raw in (left + sign + right for left in before for right in after):
            if text._is_clean(raw):  # pyright: ignore[reportPrivateUsage]
                assert text._repaired(raw) == raw  # pyright: ignore[reportPrivateUsage]
                assert not ftfy.badness.is_bad(raw)


@settings(max_examples=2000, deadline=None, derandomize=True)
@given(TEXTS)
@example("\ud800")
@example("&amp;" * 3)
def test_a_cleaned_caption_has_no_control_characters_and_single_spaces(raw: str) -> None:
    (cleaned,) = clean([raw])
    cleaned.encode()
    assert cleaned == " ".join(cleaned.split()) == cleaned.strip("\u200b")
    assert unicodedata.is_normalized("NFC", cleaned)
    assert not any(unicodedata.category(character) == "Cc" for character in cleaned)
    bidi = {"LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI"}
    assert not any(unicodedata.bidirectional(character) in bidi for character in cleaned)
    assert not set(cleaned) & set("\u200e\u200f\u061c\ufeff")


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.lists(TEXTS, max_size=8))
def test_a_caption_is_cleaned_the_same_in_any_company(batch: list[str]) -> None:
    assert clean(batch) == [cleaned for raw in batch for cleaned in clean([raw])]


HOSTILE = {
    "nested entities": "&" + "amp;" * 25_000,
    "lines": "é\n" * 50_000,
    "spaces": "\u00a0" * 100_000,
    "mojibake": "Ã©" * 50_000,
    "mojibake with spaces": "a Ã " * 25_000,
    "mojibake beside other scripts": "Ã©日" * 33_333,
    "combining marks": "é" + "\u0301\u0323" * 50_000,
    "unfinished escapes": "é\x1b[" + "1;" * 50_000,
    "bidi": "&#8206;&am" * 10_000,
    "surrogates": "\ud800" * 100_000,
    "ten megabytes": "é&amp; " * 1_500_000,
}


@pytest.mark.parametrize("name", HOSTILE)
def test_no_caption_takes_more_than_seconds(name: str) -> None:
    start = time.perf_counter()
    (cleaned,) = clean([HOSTILE[name]])
    assert time.perf_counter() - start < 5
    assert len(cleaned) <= MAX_RAW_CHARS


def test_an_endless_caption_stays_too_long_to_be_kept() -> None:
    for raw in ("x" * (MAX_RAW_CHARS + 1), "é " * MAX_RAW_CHARS):
        assert judge(clean([raw]), TextSpec()) == [Reason.CAPTION_LONG]


# --- judge ---


@pytest.mark.parametrize(
    ("caption", "reason"),
    [
        ("", Reason.CAPTION_EMPTY),
        ("two words", Reason.CAPTION_SHORT),
        ("a caption of words", None),
        ("now just three", None),
        ("twenty-one characters", Reason.CAPTION_SHORT),
        ("a few more characters", Reason.CAPTION_LONG),
        ("a few more character", None),
    ],
)
def test_a_caption_is_judged_by_its_length(caption: str, reason: Reason | None) -> None:
    assert judge([caption], TextSpec(min_words=3, max_chars=20)) == [reason]


@settings(max_examples=300, deadline=None, derandomize=True)
@given(st.lists(TEXTS, max_size=5), st.integers(1, 4), st.integers(1, 12))
def test_words_are_what_white_space_separates(raws: list[str], min_words: int, max_chars: int) -> None:
    captions = clean(raws)
    verdicts = judge(captions, TextSpec(min_words=min_words, max_chars=max_chars))
    assert len(verdicts) == len(captions)
    for caption, verdict in zip(captions, verdicts, strict=True):
        assert (verdict is Reason.CAPTION_EMPTY) == (caption == "")
        assert (verdict is Reason.CAPTION_SHORT) == (0 < len(caption.split()) < min_words)
        assert (verdict is None) == (len(caption.split()) >= min_words and len(caption) <= max_chars)


CAPTIONS = [
    "A large bird is sitting on the branch of a tree",
    "Ein großer Vogel sitzt auf dem Ast eines alten Baumes",
    "Un grand oiseau est assis sur la branche d'un arbre",
    "大きな鳥が木の枝に止まっています",
    "一只大鸟坐在树枝上",
    "12345 67 89",
]


def test_a_caption_in_another_language_or_in_none_is_dropped() -> None:
    other = Reason.CAPTION_LANGUAGE
    assert judge(CAPTIONS, TextSpec(languages=("en",))) == [None, other, other, other, other, other]
    assert judge(CAPTIONS, TextSpec(languages=("de", "zh"))) == [other, None, other, other, None, other]
    assert judge(["", "two words"], TextSpec(languages=("en",), min_words=3)) == [
        Reason.CAPTION_EMPTY,
        Reason.CAPTION_SHORT,
    ]


@pytest.mark.parametrize(
    ("detector", "code", "known"),
    [("langdetect", "tlh", "af ar bg"), ("py3langid", "tlh", "af am an"), ("cascade", "eo", "af ar bg")],
)
def test_a_language_that_cannot_be_detected_is_refused(detector: str, code: str, known: str) -> None:
    spec = TextSpec.model_validate({"languages": ["en", code], "detector": detector})
    with pytest.raises(BadRequest, match=f"{detector} knows no '{code}'; it knows {known}"):
        judge(["a caption"], spec)


def test_the_detector_of_the_spec_is_asked_and_only_of_captions_that_are_not_dropped_already() -> None:
    spec = TextSpec(languages=("en",), detector="fasttext", fasttext_model="/no/such/model")
    with pytest.raises(BadRequest, match="/no/such/model"):
        judge(["a caption"], spec)
    verdicts = judge(["", *CAPTIONS[:2], "a"], TextSpec(languages=("de",), detector="py3langid", min_words=2))
    assert verdicts == [Reason.CAPTION_EMPTY, Reason.CAPTION_LANGUAGE, None, Reason.CAPTION_SHORT]


def test_no_detector_is_loaded_where_no_language_is_asked_for() -> None:
    script = (
        "import sys; from pmd import text, manifest; spec = manifest.TextSpec(detector='fasttext'); "
        "text.judge(text.clean(['a']), spec), text.versions(spec); "
        "assert not {'langdetect', 'py3langid', 'lingua', 'fasttext'} & {*sys.modules}"
    )
    subprocess.run([sys.executable, "-c", script], cwd=Path(__file__).parents[1], check=True)


def test_versions_name_what_decides_captions() -> None:
    ours = versions(TextSpec())
    assert set(ours) == {"ftfy", "unicode"}
    assert set(versions(TextSpec(languages=("en",)))) == {"ftfy", "unicode", "langdetect"}
    assert ours["ftfy"] == importlib.import_module("ftfy").__version__


# --- real captions ---


def test_real_captions_keep_their_words() -> None:
    path = REAL / "cc3m" / "Validation_GCC-1.1.0-Validation.tsv"
    if not path.is_file():
        pytest.skip(f"the real rows are not here: {path}")
    captions = [row.split("\t")[0] for row in path.read_text(encoding="utf-8").splitlines()]
    cleaned = clean(captions)
    assert sum(raw == new for raw, new in zip(captions, cleaned, strict=True)) > 0.99 * len(captions)
    assert judge(cleaned, TextSpec()) == [None] * len(captions)
    words = sum(len(caption.split()) for caption in cleaned) / len(cleaned)
    assert words == pytest.approx(10.4, abs=0.1)
