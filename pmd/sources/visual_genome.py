"""Visual Genome: 108,077 photos with some fifty phrases each, every phrase about a region of its photo.

    region_descriptions.json, plain or as a member of region_descriptions.json.zip: of version 1.2, or 1.0
        [{"id": 1, "regions": [{"region_id": 1382, "image_id": 1, "phrase": "the clock is green in colour",
                                "x": 421, "y": 57, "width": 82, "height": 139}, ...]}, ...]
                               {"id": 1382, "image": 1, "phrase": ...}    in version 1.0
        Rows are the regions; an image without any is a row in its place.

    image_data.json, beside it, plain or in its zip
        [{"image_id": 1, "url": "https://cs.stanford.edu/people/rak248/VG_100K_2/1.jpg", "width": 800,
          "height": 600, "coco_id": null, "flickr_id": null}, ...]    "id" for "image_id" in version 1.0
        Where the photos are: without it no region means anything, and alone it has no rows. It is held in
        memory, some 40 MB as published, and joined by the id: the two files may be in any order. Images in it
        that no element of the first file speaks of are rows after the last region; so are its entries that
        cannot be read.

All phrases of an image are one record, and every one has its box: whether to show the region or the whole
photo is for training to choose. Boxes are as published: 5,654 of the 5,408,689 of version 1.2 have a corner
outside the photo. A phrase whose box has no area, or is not all numbers, is kept without one. So are phrases
that an image has twice: FLAVA's 5.4 million pairs are all there are.

Damaged JSON is read as far as it goes, and its unreadable rest is one more row. Which images nobody speaks of
is then unknown, so none is listed.
"""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from pmd.records import Caption, Reason, Record, Rejected, meta_json, native_key
from pmd.sources.json_lists import BLOCK_BYTES, elements
from pmd.sources.lines import is_url, no_url
from pmd.sources.part import Incomplete, Part, Unreadable, blocks, excerpt, head, heads, is_zip
from pmd.sources.rules import Rules

REGIONS = "regions json"
IMAGES = "image data json"
ZIP = "zip"  # of one or both


def recognise(path: Path) -> str | None:
    if is_zip(str(path)):
        return ZIP if _members(path) else None
    return _form(head(str(path)))


def parts(paths: Sequence[Path]) -> list[Part]:
    """One part a file of regions: it cannot be entered in the middle. Beside it, all that tell of images."""
    found: list[Part] = []
    for path in paths:
        members = _members(path) if is_zip(str(path)) else []
        found += members or [Part(str(path), recognise(path) or REGIONS)]
    images = tuple(part for part in found if part.form == IMAGES)
    regions = [part._replace(beside=images) for part in found if part.form == REGIONS]
    if regions and not images:
        raise Incomplete(f"{regions[0].path}: where its images are is in image_data.json, which is missing")
    return regions


def read(part: Part, rules: Rules) -> Iterator[Record | Rejected]:
    listing = _listing(part.beside)
    damage = listing.damage
    described: set[int | None] = set()
    row = 0
    try:
        for _, element in elements(blocks(part, BLOCK_BYTES)):
            regions = _regions(element)
            described.add(_number(element, "id"))
            if regions:
                yield from _described(row, element, regions, listing.images)
            else:
                yield _no_regions(row, element)
            row += len(regions) or 1
    except Unreadable as error:
        damage = str(error)
    if damage:
        yield Rejected(row, Reason.INPUT_MALFORMED, damage)
        return
    for number in listing.images:
        if number not in described:
            yield Rejected(row, Reason.INPUT_NO_CAPTION, f"no element is about image {number}")
            row += 1
    for what in listing.unreadable:
        yield Rejected(row, Reason.INPUT_MALFORMED, what)
        row += 1


# --- which form a file is in ---

_BEGINS_WITH_A_LIST = re.compile(rb"\s*\[\s*\{")
_KEY = re.compile(rb'[{,]\s*"(\w+)"\s*:')  # none is inside a string: there a quote has a backslash
# Visual Genome's other files: scene graphs, questions, and region_graphs.json, which has the phrases too.
_OTHER_TASK = {b"objects", b"relationships", b"synsets", b"attributes", b"qas"}
_MEMBER = re.compile(r"(?:^|/)(?:region_descriptions|image_data)[^/]*\.json\Z")


def _form(beginning: bytes) -> str | None:
    if not _BEGINS_WITH_A_LIST.match(beginning):
        return None
    keys = {*_KEY.findall(beginning)}
    if {b"regions", b"phrase"} <= keys and not keys & _OTHER_TASK:
        return REGIONS
    return IMAGES if {b"url", b"width", b"height"} <= keys and keys & {b"coco_id", b"flickr_id"} else None


def _members(path: Path) -> list[Part]:
    forms = {name: _form(beginning) for name, beginning in heads(str(path), _MEMBER).items()}
    return [Part(str(path), form, name) for name, form in forms.items() if form]


# --- image_data.json ---


class _Image(NamedTuple):
    url: str  # empty where the file gives none
    meta: str


class _Listing(NamedTuple):
    images: dict[int, _Image]  # by id, in the order of the file
    unreadable: list[str]  # what is wrong with each of the other entries
    damage: str | None


def _listing(parts: Sequence[Part]) -> _Listing:
    """What the files say of images; where several tell of one, the first is heard."""
    images: dict[int, _Image] = {}
    unreadable: list[str] = []
    damage = None
    for part in parts:
        of_others = frozenset(images)
        try:
            for _, element in elements(blocks(part, BLOCK_BYTES)):
                number = _number(element, "image_id", "id")
                if number is None:
                    unreadable.append(
                        f"expected an image with a whole number as its id, found {excerpt(element)}"
                    )
                elif number not in images:
                    images[number] = _image(number, element)
                elif number not in of_others:
                    unreadable.append(f"image {number} is listed again")
        except Unreadable as error:
            damage = str(error)
    return _Listing(images, unreadable, damage)


def _image(number: int, fields: Any) -> _Image:
    url = fields.get("url")
    flickr_id = _number(fields, "flickr_id")
    # Some have -1 for "not of COCO".
    meta = meta_json(
        visual_genome_id=number,
        coco_id=_number(fields, "coco_id") or None,
        flickr_photo_id=str(flickr_id) if flickr_id else None,
    )
    return _Image(url if isinstance(url, str) else "", meta)


# --- region_descriptions.json ---

# As the image zips have it: VG_100K/2.jpg
_PATH_OF_URL = re.compile(r"/(\w+/[0-9]+\.jpg)\Z", re.ASCII)


def _regions(element: Any) -> list[Any]:
    regions = element.get("regions") if isinstance(element, dict) else None
    return regions if isinstance(regions, list) else []


def _no_regions(row: int, element: Any) -> Rejected:
    found = excerpt(element)
    if isinstance(element, dict) and (element.get("regions") is None or element["regions"] == []):
        return Rejected(row, Reason.INPUT_NO_CAPTION, f"expected an image with regions, found {found}")
    return Rejected(row, Reason.INPUT_MALFORMED, f"expected an image with a list of regions, found {found}")


def _described(
    row: int, element: Any, regions: list[Any], images: dict[int, _Image]
) -> Iterator[Record | Rejected]:
    """The phrases of an image as one record, or as several where rejected regions lie between them."""
    number = _number(element, "id")
    record = _record(row, element.get("id"), number, images)
    captions: list[Caption] = []
    for place, region in enumerate(regions, row):
        caption = _caption(place, region, number)
        if isinstance(caption, Caption):
            if isinstance(record, Record):
                captions.append(caption)
            else:
                yield record._replace(row=place)
        else:
            if isinstance(record, Record) and captions:
                yield record._replace(captions=tuple(captions))
                captions.clear()
            yield caption
    if isinstance(record, Record) and captions:
        yield record._replace(captions=tuple(captions))


def _record(row: int, found: Any, number: int | None, images: dict[int, _Image]) -> Record | Rejected:
    """The record of an image, without captions."""
    image = None if number is None else images.get(number)
    if number is None or image is None:
        detail = f"expected the id of an image in image_data.json, found {excerpt(found)}"
        return Rejected(row, Reason.INPUT_NO_IMAGE, detail)
    if not is_url(image.url):
        return no_url(row, image.url)
    path = _PATH_OF_URL.search(image.url)
    return Record(
        native_key("visual_genome", number), image.url, (), meta=image.meta, path=path[1] if path else None
    )


def _caption(row: int, region: Any, image: int | None) -> Caption | Rejected:
    if not isinstance(region, dict):
        return Rejected(row, Reason.INPUT_MALFORMED, f"expected an object, found {excerpt(region)}")
    of = region.get("image_id", region.get("image"))
    if of is not None and of != image:
        detail = f"expected a region of image {image}, found one of image {excerpt(of)}"
        return Rejected(row, Reason.INPUT_MALFORMED, detail)
    phrase = region.get("phrase")
    if phrase is None or (isinstance(phrase, str) and not phrase.strip()):
        return Rejected(row, Reason.INPUT_NO_CAPTION, f"expected a phrase, found {excerpt(phrase)}")
    if not isinstance(phrase, str):
        return Rejected(row, Reason.INPUT_MALFORMED, f"expected a phrase, found {excerpt(phrase)}")
    number = _number(region, "region_id", "id")
    return Caption(phrase, row, None if number is None else str(number), _box(region))


_NUMBERS = {int, float}  # and not bool, which is an int too


def _box(region: Any) -> tuple[float, float, float, float] | None:
    x, y, width, height = region.get("x"), region.get("y"), region.get("width"), region.get("height")
    if not {type(x), type(y), type(width), type(height)} <= _NUMBERS or width <= 0 or height <= 0:
        return None
    return float(x), float(y), float(width), float(height)


def _number(fields: Any, *names: str) -> int | None:
    """The first of some fields that is a whole number from 0 on; None where none is (True is no number)."""
    if isinstance(fields, dict):
        for name in names:
            value = fields.get(name)
            if type(value) is int and value >= 0:
                return value
    return None
