"""COCO captions: photos with about five captions each, as JSON in two forms, plain or in a zip.

    captions_val2017.json, or as a member of annotations_trainval2017.zip
        {"licenses": [{"id": 4, "url": "http://creativecommons.org/..."}],
         "images": [{"id": 9, "license": 4, "coco_url": "http://...", "file_name": "000000000009.jpg", ...}],
         "annotations": [{"id": 38, "image_id": 9, "caption": "A bowl of fruit."}]}
        Rows are the annotations, then the images that no record comes from: those without annotations, and
        those that cannot be read. The file is read twice, images first: the lists may come in any order.

    dataset_coco.json, the same photos as split by Karpathy and Fei-Fei
        {"images": [{"cocoid": 9, "filepath": "train2014", "filename": "COCO_train2014_000000000009.jpg",
                     "split": "train", "sentences": [{"sentid": 38, "raw": "A bowl of fruit."}]}]}
        Rows are the sentences in file order; an image without sentences is a row in its place. It does not
        say how a photo is licensed: beside it, captions_*.json are read for that alone and have no rows.

Each row is a record of its own with one caption; `plan` joins the records of an image. Damaged JSON is read
as far as it goes, and its unreadable rest is one more row. Which images have no captions is then unknown, so
none is listed.
"""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from pmd.records import Caption, Reason, Record, Rejected, meta_json, native_key
from pmd.sources.flickr import photo_id
from pmd.sources.json_lists import BLOCK_BYTES, elements
from pmd.sources.licenses import spdx_id
from pmd.sources.lines import is_url, no_url
from pmd.sources.part import Part, Unreadable, blocks, excerpt, head, heads, is_zip, tail
from pmd.sources.rules import Rules as _Rules

CAPTIONS = "captions json"
KARPATHY = "karpathy json"
ZIP = "captions zip"


class Rules(_Rules):
    # Of the Karpathy file; the others say nothing of splits. Without val and test, which are for evaluation,
    # it has the 566,747 captions that facebook/pmd takes.
    splits: tuple[Literal["train", "restval", "val", "test"], ...] = ("train", "restval")


def recognise(path: Path) -> str | None:
    if is_zip(str(path)):
        return ZIP if _members(path) else None
    return _form(head(str(path)), tail(str(path)))


def parts(paths: Sequence[Path]) -> list[Part]:
    """One part a JSON file: it cannot be entered in the middle."""
    found: list[Part] = []
    for path in paths:
        members = _members(path) if is_zip(str(path)) else []
        found += members or [Part(str(path), recognise(path) or CAPTIONS)]
    captions = tuple(part for part in found if part.form != KARPATHY)
    return [part._replace(beside=captions) for part in found if part.form == KARPATHY] or [*captions]


def read(part: Part, rules: Rules) -> Iterator[Record | Rejected]:
    return _karpathy(part, rules) if part.form == KARPATHY else _captions(part)


# --- which form a file is in ---

_LISTS = re.compile(rb'"(?:images|annotations)"\s*:\s*\[')
_IMAGE = re.compile(rb'"(?:coco_url|flickr_url|file_name)"\s*:\s*"')
_ANNOTATION = re.compile(rb'"image_id"\s*:\s*[0-9]')
# Found in COCO's files for other tasks (objects, keypoints, stuff), which look the same at the beginning.
_OTHER_TASK = re.compile(rb'"(?:segmentation|keypoints|segments_info|categories)"\s*:')
_KARPATHY = re.compile(rb'"(?:cocoid|sentences)"\s*:')
_MEMBER = re.compile(r"(?:^|/)(?:captions_[a-z0-9]+|dataset_coco)\.json\Z")


def _form(beginning: bytes, end: bytes = b"") -> str | None:
    if not beginning.lstrip().startswith(b"{") or not _LISTS.search(beginning):
        return None
    if len(set(_KARPATHY.findall(beginning))) == 2:
        return KARPATHY
    seen = beginning + b"\n" + end
    if _OTHER_TASK.search(seen):
        return None
    return CAPTIONS if _IMAGE.search(seen) or _ANNOTATION.search(seen) else None


def _members(path: Path) -> list[Part]:
    """The members of a zip that hold captions.

    Here a name counts: the end of a member cannot be looked at without unpacking it all, and for its first
    ten megabytes instances_*.json looks like captions_*.json.
    """
    forms = {name: _form(beginning) for name, beginning in heads(str(path), _MEMBER).items()}
    return [Part(str(path), form, name) for name, form in forms.items() if form]


# --- captions_*.json ---


class _Image(NamedTuple):
    url: str  # empty where the file gives none
    license: int | None  # number in the file's list of licences
    meta: str


class _License(NamedTuple):
    spdx: str | None
    url: str


class _Listing(NamedTuple):
    """What the annotations refer to."""

    images: dict[int, _Image]
    order: list[int | str]  # of the file's images: number, or what is wrong with the element
    licenses: dict[int | None, _License]
    damage: str | None


def _captions(part: Part) -> Iterator[Record | Rejected]:
    listing = _listing(part)
    damage = listing.damage
    captioned: set[int | None] = set()
    row = 0
    try:
        for _, annotation in elements(blocks(part, BLOCK_BYTES), "annotations"):
            captioned.add(_number(annotation, "image_id"))
            yield _annotated(row, annotation, listing)
            row += 1
    except Unreadable as error:
        damage = str(error)
    if damage:
        yield Rejected(row, Reason.INPUT_MALFORMED, damage)
        return
    for image in listing.order:
        if isinstance(image, str):
            yield Rejected(row, Reason.INPUT_MALFORMED, image)
            row += 1
        elif image not in captioned:
            yield Rejected(row, Reason.INPUT_NO_CAPTION, f"image {image} has no annotation")
            row += 1


def _listing(part: Part) -> _Listing:
    images: dict[int, _Image] = {}
    order: list[int | str] = []
    licenses: dict[int | None, _License] = {**_PUBLISHED_LICENSES}
    damage = None
    try:
        for name, element in elements(blocks(part, BLOCK_BYTES), "images", "licenses"):
            number = _number(element, "id")
            if name == "licenses":
                if number is not None and (url := _string(element, "url")):
                    licenses[number] = _License(spdx_id(url), url)
            elif number is None:
                order.append(f"expected an image with a whole number as its id, found {excerpt(element)}")
            elif number in images:
                order.append(f"image {number} is listed again")
            else:
                order.append(number)
                images[number] = _image(number, element)
    except Unreadable as error:
        damage = str(error)
    return _Listing(images, order, licenses, damage)


def _image(number: int, fields: Any) -> _Image:
    file_name = _string(fields, "file_name")
    flickr_url = _string(fields, "flickr_url")
    # Without coco_url: names of 2014 tell the folder, those of 2017 do not. Photos disappear from Flickr.
    named = _NAME_OF_2014.match(file_name)
    url = _string(fields, "coco_url") or (_image_url(named[1], file_name) if named else flickr_url)
    meta = meta_json(
        coco_id=number,
        file_name=file_name or None,
        flickr_photo_id=photo_id(flickr_url),
        flickr_url=flickr_url or None,
    )
    return _Image(url, _number(fields, "license"), meta)


def _annotated(row: int, fields: Any, listing: _Listing) -> Record | Rejected:
    caption = _caption(row, fields, text_name="caption", id_name="id")
    if isinstance(caption, Rejected):
        return caption
    number = _number(fields, "image_id")
    image = None if number is None else listing.images.get(number)
    if number is None or image is None:
        found = excerpt(fields.get("image_id"))
        return Rejected(row, Reason.INPUT_NO_IMAGE, f"expected the id of a listed image, found {found}")
    if not is_url(image.url):
        return no_url(row, image.url)
    spdx, license_url = listing.licenses.get(image.license, (None, None))
    path = _PATH_OF_URL.search(image.url)
    return Record(
        native_key("coco", number),
        image.url,
        (caption,),
        spdx,
        license_url,
        meta=image.meta,
        path=path[1] if path else None,
    )


# What the numbers mean in every published file, should a file list no licences of its own. 7 ("no known
# copyright restrictions") and 8 ("United States Government Work") are statements without an SPDX id.
_PUBLISHED_LICENSES = {
    number: _License(spdx_id(url), url)
    for number, url in {
        1: "http://creativecommons.org/licenses/by-nc-sa/2.0/",
        2: "http://creativecommons.org/licenses/by-nc/2.0/",
        3: "http://creativecommons.org/licenses/by-nc-nd/2.0/",
        4: "http://creativecommons.org/licenses/by/2.0/",
        5: "http://creativecommons.org/licenses/by-sa/2.0/",
        6: "http://creativecommons.org/licenses/by-nd/2.0/",
        7: "http://flickr.com/commons/usage/",
        8: "http://www.usa.gov/copyright.shtml",
    }.items()
}

# As the image zips have it: train2017/000000000009.jpg
_PATH_OF_URL = re.compile(r"\Ahttps?://images\.cocodataset\.org/([a-z0-9]+/[A-Za-z0-9_]+\.jpg)\Z")
_NAME_OF_2014 = re.compile(r"COCO_(train2014|val2014)_[0-9]{12}\.jpg\Z")


# --- dataset_coco.json ---

_PATH_PIECE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*\Z")


def _karpathy(part: Part, rules: Rules) -> Iterator[Record | Rejected]:
    licensed: dict[int | None, _License] = {}
    for beside in part.beside:
        listing = _listing(beside)
        for number, image in listing.images.items():
            if license := listing.licenses.get(image.license):
                licensed.setdefault(number, license)
    row = 0
    try:
        for _, image in elements(blocks(part, BLOCK_BYTES), "images"):
            sentences = image.get("sentences") if isinstance(image, dict) else None
            if sentences and isinstance(sentences, list):
                for sentence in sentences:
                    yield _sentence(row, sentence, image, rules, licensed)
                    row += 1
            else:
                yield _no_sentences(row, image, sentences)
                row += 1
    except Unreadable as error:
        yield Rejected(row, Reason.INPUT_MALFORMED, str(error))


def _sentence(
    row: int, fields: Any, image: Any, rules: Rules, licensed: dict[int | None, _License]
) -> Record | Rejected:
    caption = _caption(row, fields, text_name="raw", id_name="sentid")
    if isinstance(caption, Rejected):
        return caption
    number = _number(image, "cocoid")
    folder, file_name = _string(image, "filepath"), _string(image, "filename")
    if number is None or not _PATH_PIECE.match(folder) or not _PATH_PIECE.match(file_name):
        found = excerpt([image.get(name) for name in ("cocoid", "filepath", "filename")])
        return Rejected(row, Reason.INPUT_NO_IMAGE, f"expected cocoid, filepath and filename, found {found}")
    split = _string(image, "split")
    if split and split not in rules.splits:
        return Rejected(row, Reason.INPUT_LEFT_OUT, f"of split {excerpt(split)}")
    meta = meta_json(coco_id=number, file_name=file_name, karpathy_split=split or None)
    license, license_url = licensed.get(number, (None, None))
    return Record(
        native_key("coco", number),
        _image_url(folder, file_name),
        (caption,),
        license,
        license_url,
        meta=meta,
        path=f"{folder}/{file_name}",
    )


def _no_sentences(row: int, image: Any, sentences: Any) -> Rejected:
    found = excerpt(image)
    if isinstance(image, dict) and (sentences is None or sentences == []):
        return Rejected(row, Reason.INPUT_NO_CAPTION, f"expected an image with sentences, found {found}")
    return Rejected(row, Reason.INPUT_MALFORMED, f"expected an image with a list of sentences, found {found}")


# --- both forms ---


def _image_url(folder: str, file_name: str) -> str:
    return f"http://images.cocodataset.org/{folder}/{file_name}"


def _caption(row: int, fields: Any, *, text_name: str, id_name: str) -> Caption | Rejected:
    """The caption of an element that has it in the fields of these names."""
    if not isinstance(fields, dict):
        return Rejected(row, Reason.INPUT_MALFORMED, f"expected an object, found {excerpt(fields)}")
    text = fields.get(text_name)
    if text is None or (isinstance(text, str) and not text.strip()):
        return Rejected(row, Reason.INPUT_NO_CAPTION, f"expected a caption, found {excerpt(text)}")
    if not isinstance(text, str):
        return Rejected(row, Reason.INPUT_MALFORMED, f"expected a caption, found {excerpt(text)}")
    number = _number(fields, id_name)
    return Caption(text, row, None if number is None else str(number))


def _number(fields: Any, name: str) -> int | None:
    """A field that is a whole number from 0 on; None for anything else (True is no number here)."""
    value = fields.get(name) if isinstance(fields, dict) else None
    return value if type(value) is int and value >= 0 else None


def _string(fields: Any, name: str) -> str:
    """A field that is a string; empty for anything else."""
    value = fields.get(name) if isinstance(fields, dict) else None
    return value if isinstance(value, str) else ""
