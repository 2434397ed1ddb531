r"""Captions: cleaned, then judged.

    "Tom &amp; Jerry\u200f \n at the caf\u00c3\u00a9"  --clean-->  "Tom & Jerry at the caf\u00e9"
    "Tom & Jerry at the caf\u00e9"                       --judge-->  None: keep it, or a Reason

Both take a batch. Most captions are clean already and cost a glance; `_repaired` is what the others go
through. The caption that it leaves alone is character for character the publisher's. Which language one is
in, `pmd.language` says.
"""

import functools
import re
import unicodedata
from collections.abc import Sequence

import ftfy
import ftfy.fixes

from pmd import language
from pmd.errors import BadRequest
from pmd.manifest import TextSpec
from pmd.records import Reason

# Longer captions are cut to this before anything is repaired: none may take more than about a second.
MAX_RAW_CHARS = 100_000


def clean(texts: Sequence[str]) -> list[str]:
    """Captions as they are stored: mojibake and HTML entities undone, no controls, single spaces, NFC.

    Quotes stay as curly as they were, and <PERSON> or <usr> is a word like any other.
    """
    return [text if _is_clean(text) else _repaired(text) for text in texts]


def judge(texts: Sequence[str], spec: TextSpec) -> list[Reason | None]:
    """Why each cleaned caption is dropped; None: it is kept.

    Raises BadRequest where the spec names a language that its detector does not know, or a detector that is
    not installed.
    """
    min_spaces = spec.min_words - 1  # a cleaned caption has a space between two words and none elsewhere
    verdicts: list[Reason | None] = []
    for text in texts:
        if not text:
            verdicts.append(Reason.CAPTION_EMPTY)
        elif text.count(" ") < min_spaces:
            verdicts.append(Reason.CAPTION_SHORT)
        elif len(text) > spec.max_chars:
            verdicts.append(Reason.CAPTION_LONG)
        else:
            verdicts.append(None)
    if spec.languages:
        known = language.known(spec)
        if unknown := [code for code in spec.languages if code not in known]:
            names = " ".join(sorted(known))
            raise BadRequest(f"text.languages: {spec.detector} knows no {unknown[0]!r}; it knows {names}")
        open_ = [place for place, verdict in enumerate(verdicts) if verdict is None]
        for place, found in zip(open_, language.detect([texts[place] for place in open_], spec), strict=True):
            if found not in spec.languages:
                verdicts[place] = Reason.CAPTION_LANGUAGE
    return verdicts


def versions(spec: TextSpec) -> dict[str, str]:
    """What decides, beside the spec, which bytes a caption has and whether it is kept."""
    deciding = {"ftfy": ftfy.__version__, "unicode": unicodedata.unidata_version}
    if spec.languages:
        deciding |= language.versions(spec)
    return deciding


# --- cleaning ---

# Typographic signs and letters of western Europe. One alone between ASCII characters is what it seems:
# mojibake shows in neighbours, or as one of the few letters left out here.
_PLAIN_SIGNS = (
    "".join(chr(code) for code in range(0xA1, 0x100) if chr(code) not in "\u00ad\u00c2\u00c3")
    + "\u2013\u2014\u2018\u2019\u201c\u201d\u2022\u2026\u20ac\u2122"
)
_PLAIN = re.compile(f"[{_PLAIN_SIGNS}]?(?:[ -~]+[{_PLAIN_SIGNS}])*[ -~]*")

# Cc, the bidirectional controls and what ftfy calls control characters, less those that are white space: \t
# \n \x0b \x0c \r \x1c-\x1f \x85. Joiners (U+200C, U+200D) shape emoji and many scripts, so they stay.
_UNSEEN = re.compile(
    "[\x00-\x08\x0e-\x1b\x7f-\x84\x86-\x9f\u061c\u200e\u200f\u202a-\u202e\u2060-\u206f\ufeff\ufff9-\ufffc]"
)
_AT_THE_EDGES = " \u00ad\u200b\u200c\u200d"  # white space, and what is seen only between other characters

# How often entities are undone: "&amp;quot;" takes two rounds. ftfy's own way is to go on for as long as that
# changes anything, which a caption of "&amp;amp;amp;..." makes hours.
_ROUNDS = 4
_LONG_CHARS = 1_000  # in a longer caption runs of combining marks are cut, see _mark_runs
_FTFY = ftfy.TextFixerConfig(
    unescape_html=False,
    uncurl_quotes=False,
    fix_line_breaks=False,
    remove_control_chars=False,
    normalization=None,
    explain=False,
)


def _is_clean(text: str) -> bool:
    """Whether a look is enough to see that no repair would change the text. Says no too often, never yes."""
    return (
        text.isprintable()
        and "&" not in text
        and "  " not in text
        and text[:1] != " "
        and text[-1:] != " "
        and (text.isascii() or _PLAIN.fullmatch(text) is not None)
        and len(text) <= MAX_RAW_CHARS
    )


def _repaired(text: str) -> str:
    text = text[:MAX_RAW_CHARS]
    for _ in range(_ROUNDS):
        if "&" in text:
            text = ftfy.fixes.unescape_html(text)
    if not text.isascii() or "\x1b" in text:
        # ftfy works line by line, at a cost per line; to us a line end is white space.
        text = ftfy.fix_text(text.replace("\n", " "), _FTFY)
    text = " ".join(_UNSEEN.sub("", text).split()).strip(_AT_THE_EDGES)
    if text.isascii():
        return text
    if len(text) > _LONG_CHARS:
        text = _mark_runs().sub(r"\1", text)
    return unicodedata.normalize("NFC", text)


@functools.cache
def _mark_runs() -> re.Pattern[str]:
    """Over 30 combining marks in a row; group 1 is the first 30.

    Normalising a run takes the square of its length: seconds for a caption of nothing else. No script needs
    so many; the bound is that of Unicode Standard Annex 15.
    """
    marks = "".join(chr(code) for code in range(0x300, 0x20000) if unicodedata.combining(chr(code)))
    return re.compile(f"([{marks}]{{30}})[{marks}]+")
