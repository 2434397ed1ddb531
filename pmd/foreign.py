"""Tars of img2dataset, or of anybody who writes for `webdataset`: what samples lie where in them.

    00042.tar --headers--> members of one name --its image, .json and .txt--> Found: a row of the index
                 |
                 +--> all others (.pkl, .npy, .cls, ...) are counted by ending, and never read

Nothing is unpacked, moved or run, and no decoder is asked: an image's size is read as for one that was
fetched (images/files.py). A name is a name and leads nowhere. Links, devices and sparse members are nothing
that could be read in place, so a sample whose image is one has none.

Samples are what `webdataset` takes for them: members next to each other, alike up to the first dot of their
file name. Each comes out once, in the order of the tar, used or with its reason; of a tar that is cut or
damaged, what lies behind the place is one more, without a name.
"""

import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from pmd.archives import OpenFile, TarEntry, tar_entry
from pmd.errors import Damaged
from pmd.images import pixels
from pmd.images.files import File, recognise
from pmd.manifest import ImageSpec, TextSpec
from pmd.records import Reason, meta_json

IMAGES = ("jpg", "jpeg", "png", "webp")
MIMES = ("image/jpeg", "image/png", "image/webp")
MOST_IMAGE = 64 << 20  # bytes: the largest that a reader of the corpus must hold
MOST_JSON = 1 << 20  # bytes
MOST_CHARS = TextSpec().max_chars
MOST_PIXELS = ImageSpec().max_pixels
MOST_NAME = 200  # characters of a name or a message that are kept
MOST_URL = 8_192  # characters
MOST_ENDINGS = 50  # that are counted apart
OTHER = "other"
_BLOCK = 512


@dataclass
class Found:
    """One sample of a tar as it was found, or what its list says of one that is not there."""

    name: str  # what they call it; empty where that is not known
    row: dict[str, Any]  # columns of the index, but for key and source
    again: bool = False  # an earlier sample of the tar is called the same


def row(
    *,
    number: int,
    caption: str | None,
    reason: Reason | None = None,
    detail: str | None = None,
    url: str | None = None,
    **columns: Any,
) -> dict[str, Any]:
    """The columns of one sample that is used, or is not for a reason; number: its place among those found.

    caption: None where there is none that could be used.
    """
    assert reason is not None or caption is not None, number
    told = {"text": caption or "", "file": 0, "row": number, "reason": None if caption else reason}
    return columns | {
        "url": url,
        "caption": caption if reason is None else None,
        "captions": [told],
        "license": "unknown",
        "status": "success" if reason is None else _STATUS.get(reason, "failed_to_resize"),
        "reason": reason,
        "error_message": detail,
    }


# Where each reason arises, in the words of the index. All others are about the bytes of an image.
_STATUS = dict.fromkeys(
    (
        *(Reason.INPUT_MALFORMED, Reason.INPUT_NO_IMAGE, Reason.INPUT_NO_CAPTION),
        *(Reason.CAPTION_EMPTY, Reason.CAPTION_LONG),
    ),
    "filtered",
) | {Reason.BODY_TRUNCATED: "failed_to_download"}


# Samples


def samples(tar: OpenFile, unread: Counter[str], *, captioned: bool = True) -> Iterator[Found]:
    """Every sample of a tar. unread: comes to say how many members were not read, by their ending.
    captioned: else an image is enough, and the caption of one that has none is empty.
    """
    met = set[bytes]()  # hashes: a name may have a megabyte
    for number, group in enumerate(_groups(tar, unread)):
        digest = hashlib.sha256(group.name).digest()[:16]
        again = digest in met and bool(group.name)
        met.add(digest)
        yield _found(tar, group, number, again, unread, captioned=captioned)


class _Fault(NamedTuple):
    """The place from which on nothing can be told apart."""

    reason: Reason
    detail: str


@dataclass
class _Group:
    """Members next to each other that are called the same; or a fault, and no members."""

    name: bytes
    parts: dict[str, TarEntry] = field(default_factory=dict)  # those that are read, by ending
    cut: bool = False  # the tar ends within one of them
    fault: _Fault | None = None


def _groups(tar: OpenFile, unread: Counter[str]) -> Iterator[_Group]:
    group: _Group | None = None
    for member in _members(tar):
        if isinstance(member, _Fault):
            if group is not None:
                yield group
            yield _Group(b"", fault=member)
            return
        if member.name.endswith(b"/"):
            continue  # a folder
        folder, slash, file_name = member.name.rpartition(b"/")
        stem, dot, told = file_name.partition(b".")
        ending = _text(told).lower()
        if not (stem and dot):
            unread[OTHER] += 1
            continue
        name = folder + slash + stem
        if group is None or name != group.name or ending in group.parts:
            if group is not None:
                yield group
            group = _Group(name)
        group.cut = group.cut or (member.next > member.data and member.data + member.size > tar.size)
        if ending in (*IMAGES, "json", "txt"):
            group.parts[ending] = member
        else:
            # An ending may be anything: what is told of it is bounded, whoever wrote the tar.
            plain = _ENDING.fullmatch(ending) and (ending in unread or len(unread) < MOST_ENDINGS)
            unread[ending if plain else OTHER] += 1
    if group is not None:
        yield group


_ENDING = re.compile(r"[a-z0-9_.-]{1,20}")


def _members(tar: OpenFile) -> Iterator[TarEntry | _Fault]:
    place = 0
    while True:
        try:
            entry = tar_entry(tar, place)
        except Damaged:
            yield _Fault(
                Reason.INPUT_MALFORMED, f"byte {place}: not the header of a member; the rest is lost"
            )
            return
        if entry is None:
            if place < tar.size and tar.at(place, _BLOCK) != bytes(_BLOCK):
                yield _Fault(Reason.BODY_TRUNCATED, f"byte {place}: the tar ends within a header")
            return
        yield entry
        place = entry.next


def _found(
    tar: OpenFile, group: _Group, number: int, again: bool, unread: Counter[str], *, captioned: bool
) -> Found:
    if group.fault is not None:
        reason, detail = group.fault
        return Found("", row(number=number, caption=None, reason=reason, detail=detail))
    name = _text(group.name)[:MOST_NAME]
    told = _json(tar, group.parts.get("json"), unread)
    caption = _caption(tar, group.parts, told)
    if isinstance(caption, Reason) and not captioned:
        caption = ""
    common: dict[str, Any] = {
        "number": number,
        "caption": None if isinstance(caption, Reason) else caption,
        "url": clean_url(told.get("url")),
        "meta": meta_json(key=name),
    }
    if again:
        detail = "an earlier sample of the tar has its name"
        return Found(name, row(**common, reason=Reason.INPUT_MALFORMED, detail=detail), again)
    if group.cut:
        return Found(name, row(**common, reason=Reason.BODY_TRUNCATED, detail="the tar ends within it"))
    image = _image(tar, group.parts, unread)
    if isinstance(image, _Fault):
        return Found(name, row(**common, reason=image.reason, detail=image.detail))
    if isinstance(caption, Reason):
        return Found(name, row(**common, reason=caption))
    return Found(name, row(**common, **image | _served(told, image)))


def _text(name: bytes) -> str:
    return name.decode("utf-8", "replace")


def _plain(entry: TarEntry) -> bool:
    """Is this a file whose bytes lie in the tar?"""
    return entry.is_file and entry.link is None


def _image(tar: OpenFile, parts: dict[str, TarEntry], unread: Counter[str]) -> dict[str, Any] | _Fault:
    """What its bytes say: columns of the index."""
    there = [ending for ending in IMAGES if ending in parts]
    if not there:
        return _Fault(Reason.INPUT_NO_IMAGE, f"none of its members is .{', .'.join(IMAGES)}")
    unread.update(there[1:])
    entry = parts[there[0]]
    if not _plain(entry):
        return _Fault(Reason.INPUT_NO_IMAGE, "its image is a link, a device or a sparse file in the tar")
    if entry.size > MOST_IMAGE:
        return _Fault(Reason.BODY_LIMIT, f"its image has {entry.size:,} bytes")
    body = tar.at(entry.data, entry.size)
    kind = recognise(body) if body else Reason.BODY_EMPTY
    if isinstance(kind, Reason) or kind.mime not in MIMES:
        return _Fault(kind if isinstance(kind, Reason) else Reason.UNSUPPORTED_FORMAT, "its image")
    file = kind.walk(body)
    if isinstance(file, Reason):
        return _Fault(file, "its image")
    if not (file.width and file.height):
        return _Fault(Reason.DECODE_FAILED, "its image has no size")
    if not _in_bounds(file):
        return _Fault(Reason.DECODE_LIMIT, f"its image has {file.width:,} x {file.height:,} pixels")
    return {
        "width": file.width,
        "height": file.height,
        "stored_sha256": hashlib.sha256(body).hexdigest(),
        "mime": kind.mime,
        "offset": entry.data,
        "size": entry.size,
    }


def _in_bounds(file: File) -> bool:
    return max(file.width, file.height) <= pixels.MAX_SIDE and file.width * file.height <= MOST_PIXELS


def _served(told: dict[str, Any], image: dict[str, Any]) -> dict[str, Any]:
    """What their .json says of the image as it was served, as far as that can be."""
    sides = told.get("original_width"), told.get("original_height")
    if not all(type(side) is int and 0 < side < 1 << 24 for side in sides):
        sides = image["width"], image["height"]
    sha256 = told.get("sha256")
    known = isinstance(sha256, str) and re.fullmatch(r"[0-9a-fA-F]{64}", sha256, re.ASCII)
    return {
        "original_width": sides[0],
        "original_height": sides[1],
        "sha256": known[0].lower() if known else None,
    }


def _json(tar: OpenFile, entry: TarEntry | None, unread: Counter[str]) -> dict[str, Any]:
    """Their .json; nothing where it is none, which costs its sample no more than what it would have told."""
    if entry is None:
        return {}
    value = None
    if _plain(entry) and entry.size <= MOST_JSON:
        # Not orjson: img2dataset writes NaN, which is not JSON.
        try:
            value = json.loads(tar.at(entry.data, entry.size))
        except (ValueError, RecursionError):
            value = None
    if not isinstance(value, dict):
        unread["json"] += 1
        return {}
    return value


def _caption(tar: OpenFile, parts: dict[str, TarEntry], told: dict[str, Any]) -> str | Reason:
    """Of the .txt, or else of the .json; controls, which have no business in a caption, are spaces."""
    entry, text = parts.get("txt"), told.get("caption")
    if entry is not None and _plain(entry):
        if entry.size > 4 * MOST_CHARS:
            return Reason.CAPTION_LONG
        try:
            text = tar.at(entry.data, entry.size).decode()
        except UnicodeDecodeError:
            return Reason.INPUT_MALFORMED
    if not isinstance(text, str):
        return Reason.INPUT_NO_CAPTION
    return clean_caption(text)


def clean_caption(text: str) -> str | Reason:
    if len(text) > MOST_CHARS:
        return Reason.CAPTION_LONG
    text = _CONTROLS.sub(" ", text).strip()
    if re.search("[\ud800-\udfff]", text):  # halves of characters, out of a .json
        return Reason.INPUT_MALFORMED
    return text or Reason.CAPTION_EMPTY


_CONTROLS = re.compile("[\0-\x1f\x7f-\x9f]+")


def clean_url(url: Any) -> str | None:
    """An address that may be shown; whether anything is there was never asked."""
    return url if isinstance(url, str) and url.isprintable() and 0 < len(url) <= MOST_URL else None
