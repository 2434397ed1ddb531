r"""SBU Captions: a million photos of Flickr with what their owners wrote beside them, published in two forms.

    sbu-captions-all.json, plain or in sbu-captions-all.tar.gz
        {"image_urls": ["http://static.flickr.com/2723/4385058960_b0f291553e.jpg", ...],
         "user_ids": ["47889917@N08", ...],
         "captions": ["A wooden chair in the living room", ...]}
        Rows are the entries of the longest list: what one list has at place i belongs to place i of the
        others. The file is read three times at once, each time for one list: it cannot be held in memory.
        Damaged JSON is read as far as it goes, and its unreadable rest is one more row.

    SBU_captioned_photo_dataset_urls.txt and ..._captions.txt, in one folder or one .tar.gz
        http://static.flickr.com/2723/4385058960_b0f291553e.jpg    \n    A wooden chair in the living room \n
        Rows are the lines of the longer file: line i of one belongs to line i of the other.

A row that lacks its address or its caption is rejected. Nothing says how a photo is licensed; who took it,
only the JSON does.
"""

import os
import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from itertools import islice, zip_longest
from pathlib import Path
from typing import Any

from pmd.records import Reason, Record, Rejected, meta_json
from pmd.sources.flickr import PHOTO, photo_id
from pmd.sources.json_lists import BLOCK_BYTES, elements
from pmd.sources.lines import layout, lines, pair
from pmd.sources.part import Incomplete, Part, Unreadable, blocks, excerpt, head, heads
from pmd.sources.rules import Rules

JSON = "lists json"
URLS = "urls txt"
CAPTIONS = "captions txt"
ARCHIVE = "archive"


def recognise(path: Path) -> str | None:
    """A file of captions could be any text: it is one if addresses for as many lines lie in its folder."""
    beginnings = heads(str(path), _MEMBER)
    if None not in beginnings:
        return ARCHIVE if any(map(_form, beginnings.values())) else None
    beginning = beginnings[None]
    return _form(beginning) or (CAPTIONS if _is_text(beginning) and _is_beside_urls(path) else None)


def parts(paths: Sequence[Path]) -> list[Part]:
    """One part a JSON file, or a pair of text files: those of one folder of the disk or of an archive.

    Where a folder has several pairs, each file of addresses has the file of captions of the same place.
    """
    found = [part for path in paths for part in _pieces(path)]
    captions = _captions_of([part for part in found if part.form != JSON])
    whole = (part._replace(beside=captions[part]) if part.form == URLS else part for part in found)
    return [part for part in whole if part.form != CAPTIONS]


def read(part: Part, rules: Rules) -> Iterator[Record | Rejected]:
    return _text_rows(part) if part.form == URLS else _json_rows(part)


# --- which form a file is in ---

# Of an archive, also names count: all texts of a large one would have to be unpacked to be looked at.
_MEMBER = re.compile(r"(?:^|/)(?!\.)(?:sbu[^/]*\.json|[^/]*urls\.txt|[^/]*captions\.txt)\Z", re.IGNORECASE)
_LISTS = {b"image_urls", b"user_ids", b"captions"}
_BEGINS_WITH_A_LIST = re.compile(rb'\s*\{\s*"(?:image_urls|user_ids|captions)"\s*:\s*\[\s*["\]]')
_KEY = re.compile(rb'[{,]\s*"(\w+)"\s*:')  # none is inside a string: there a quote has a backslash
_PHOTO_LINE = re.compile(rb"https?://[^\t ]+" + PHOTO.encode() + rb"\r?")  # on whatever host


def _form(beginning: bytes) -> str | None:
    """JSON or URLS; None also where it may be captions."""
    if _BEGINS_WITH_A_LIST.match(beginning):
        keys = {*_KEY.findall(beginning)}
        whole = beginning.rstrip().endswith(b"}")
        return JSON if keys <= _LISTS and ({b"image_urls", b"captions"} <= keys or not whole) else None
    rows = [row for row in beginning.split(b"\n") if row]
    photos = sum(1 for row in rows if _PHOTO_LINE.fullmatch(row))
    return URLS if photos * 2 > len(rows) else None


def _is_text(beginning: bytes) -> bool:
    """Could these be captions, one a line?"""
    return bool(beginning) and b"\0" not in beginning and not beginning.lstrip().startswith(b"{")


# A larger folder is no place of this dataset: all its files are looked at for each text in it.
_NEIGHBOURS = 2000
_COUNTED_BYTES = 1 << 30  # published captions have a tenth of that


def _is_beside_urls(path: Path) -> bool:
    """Does the folder hold a file of addresses with as many lines, give or take a tenth?

    The tenth is for damaged files: the lines that one lacks are rows without address or caption.
    """
    neighbours = [*islice(path.parent.iterdir(), _NEIGHBOURS + 1)]
    if len(neighbours) > _NEIGHBOURS or layout(path) is not None:
        return False
    urls = [
        neighbour
        for neighbour in neighbours
        if neighbour != path and neighbour.is_file() and os.access(neighbour, os.R_OK)
        if _form(head(str(neighbour))) == URLS
    ]
    count = _line_count(path) if urls else 0
    return any(abs(count - here) * 10 <= here for here in map(_line_count, urls))


def _line_count(path: Path) -> int:
    count = size = 0
    last = b"\n"
    try:
        for block in blocks(Part(str(path), "")):
            count += block.count(b"\n")
            last = block[-1:]
            size += len(block)
            if size > _COUNTED_BYTES:
                break
    except Unreadable:
        pass
    return count + (last != b"\n")


# --- which files belong together ---


def _pieces(path: Path) -> list[Part]:
    """The parts of a file, those of text not yet in pairs."""
    beginnings = heads(str(path), _MEMBER)
    found = [
        Part(str(path), _form(beginning) or (CAPTIONS if _is_text(beginning) else JSON), member)
        for member, beginning in sorted(beginnings.items(), key=lambda item: item[0] or "")
    ]
    return found or [Part(str(path), JSON)]  # a damaged archive: a row that says so


def _captions_of(texts: list[Part]) -> dict[Part, tuple[Part]]:
    """The file of captions for each one of addresses."""
    folders: defaultdict[str, list[Part]] = defaultdict(list)
    for part in texts:
        folders[os.path.dirname(part.path if part.member is None else f"{part.path}/{part.member}")].append(
            part
        )
    # What is alone in its folder can only belong to what is alone in another.
    alone = [
        part for folder in folders.values() if len({part.form for part in folder}) == 1 for part in folder
    ]
    together = [folder for folder in folders.values() if len({part.form for part in folder}) == 2]
    pairs: dict[Part, tuple[Part]] = {}
    for group in [*together, alone]:
        urls = [part for part in group if part.form == URLS]
        captions = [part for part in group if part.form == CAPTIONS]
        if len(urls) != len(captions):
            raise Incomplete(_what_is_missing(urls, captions))
        pairs.update(zip(urls, ((part,) for part in captions), strict=True))
    return pairs


def _what_is_missing(urls: list[Part], captions: list[Part]) -> str:
    if len(urls) > len(captions):
        here, missing = urls, "captions (SBU_captioned_photo_dataset_captions.txt)"
    else:
        here, missing = captions, "addresses (SBU_captioned_photo_dataset_urls.txt)"
    names = ", ".join(
        part.path if part.member is None else f"{part.path} ({part.member})" for part in here[:3]
    )
    return (
        f"{names}: line i of a file of addresses belongs to line i of one of captions, and here are "
        f"{len(urls)} and {len(captions)} of them. The {missing} are missing, or have another number of lines"
    )


# --- sbu-captions-all.json ---


def _json_rows(part: Part) -> Iterator[Record | Rejected]:
    damage: dict[str, str] = {}

    def entries(name: str) -> Iterator[Any]:
        try:
            for _, entry in elements(blocks(part, BLOCK_BYTES), name):
                yield entry
        except Unreadable as error:
            damage[name] = str(error)

    rows = zip_longest(entries("image_urls"), entries("user_ids"), entries("captions"))
    row = 0
    for url, user, caption in rows:
        yield _json_row(row, url, user, caption)
        row += 1
    # Each of the three readings has seen the whole file. One without users is whole.
    if "image_urls" in damage:
        yield Rejected(row, Reason.INPUT_MALFORMED, damage["image_urls"])


def _json_row(row: int, url: Any, user: Any, caption: Any) -> Record | Rejected:
    """A row of the three lists; an entry is None where its list is shorter than another."""
    if caption is not None and not isinstance(caption, str):
        return Rejected(row, Reason.INPUT_MALFORMED, f"expected a caption, found {excerpt(caption)}")
    if url is not None and not isinstance(url, str):
        return Rejected(row, Reason.INPUT_MALFORMED, f"expected the URL of an image, found {excerpt(url)}")
    return _row(row, url or "", caption or "", user if isinstance(user, str) else "")


# --- ..._urls.txt and ..._captions.txt ---


def _text_rows(part: Part) -> Iterator[Record | Rejected]:
    (captions,) = part.beside
    rows = zip_longest(_texts(part), _texts(captions), fillvalue="")
    for row, (url, caption) in enumerate(rows):
        if isinstance(url, Rejected):
            yield url
        elif isinstance(caption, Rejected):
            yield caption
        else:
            yield _row(row, url, caption)


def _texts(part: Part) -> Iterator[str | Rejected]:
    return (text for _, text in lines(part))


# --- both forms ---

_NSID = re.compile(r"[0-9]+@N[0-9]{2}\Z")  # Flickr's number of a user


def _row(row: int, url: str, caption: str, user: str = "") -> Record | Rejected:
    made = pair("sbu", row, url, caption)
    if isinstance(made, Rejected):
        return made
    photo = photo_id(url)
    return made._replace(
        attribution=f"https://www.flickr.com/people/{user}/" if _NSID.match(user) else None,
        meta=meta_json(flickr_photo_id=photo) if photo else None,
    )
