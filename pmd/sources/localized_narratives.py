"""Localized Narratives: photos described aloud; the transcripts are captions of a few sentences each.

    coco_val_captions.jsonl, or with timings and mouse traces coco_val_localized_narratives.jsonl
        {"dataset_id": "mscoco_val2017", "image_id": "137576", "annotator_id": 93,
         "caption": "In this image there are cows. In the background there are trees.",
         "timed_caption": [...], "traces": [...], "voice_recording": "coco_val/coco_val_137576_93.ogg"}

    ln_coco_val_captions_multi.jsonl of facebook/pmd: the same, split
        {"dataset_id": ..., "caption": "In this image there are cows.", "original_caption": "In this ..."}
        "caption" may also be a list of sentences.

    image_ids_and_rotation.csv of Open Images, or its files for one split, if it is among the files
        ImageID,Subset,OriginalURL,OriginalLandingURL,License,AuthorProfileURL,Author,Title,...,Rotation
        It has no rows here: it adds author, page, licence and rotation to the rows of Open Images.

Rows are the lines of the JSON files; several may be about one image. The lines of the full files are 32 KB on
average, and of them only what stands before the timings is parsed. Whether a line is a sentence or a whole
narrative, a sentence has the same id: annotator, "-", and which one of its narrative it is, from 0. A
narrative has that of its annotator.

The images are those of four other datasets:

    openimages   https://s3.amazonaws.com/open-images-dataset/train/000adef7197e3118.jpg   train_0/0...8.jpg
    coco         http://images.cocodataset.org/val2017/000000137576.jpg                    val2017/0...6.jpg
    flickr30k    in an archive alone                                          flickr30k-images/1000092795.jpg
    ade20k       in an archive alone               ADEChallengeData2016/images/training/ADE_train_00000001.jpg

`dataset_id` names the dataset and, for the first two, the split. The others are plain "Flick30k" and "ADE20k"
(as facebookresearch/mmf has them): ADE20k's split shows in the image's id, Flickr30k's in `voice_recording`
alone, so not at all in files of captions. Those rows are of split "unstated".

The metadata has up to nine million rows, of which those that a part needs are held in memory: 260 bytes a
row, 130 MB for all of train. A damaged file of it is read as far as it goes.
"""

import re
from collections.abc import Container, Iterator, Sequence
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, NamedTuple

import orjson

from pmd.records import Caption, Reason, Record, Rejected, meta_json, native_key
from pmd.sources.delimited import Broken
from pmd.sources.delimited import fields as csv_fields
from pmd.sources.licenses import spdx_id
from pmd.sources.lines import PART_BYTES, is_url, line_parts, lines
from pmd.sources.part import ROW_BYTES, Part, Unreadable, blocks, excerpt, head
from pmd.sources.rules import Rules as _Rules

NARRATIVES = "narratives jsonl"
SENTENCES = "sentences jsonl"
METADATA = "open images csv"

Dataset = Literal["openimages", "coco", "flickr30k", "ade20k"]
Split = Literal["train", "val", "test", "unstated"]

# A part with metadata beside it reads all of that, so there are fewer of them.
_PART_BYTES_WITH_METADATA = 256 << 20


class Rules(_Rules):
    # A caption is a sentence, or all that an annotator said. FLAVA's captions have 13.8 words on average,
    # narratives 36.5. facebook/pmd has sentences: cut at each "." and nowhere else, with the "." put back.
    caption: Literal["sentences", "narrative"] = "sentences"
    # Those that facebook/pmd has; its default leaves out flickr30k, whose archive must be asked for.
    datasets: tuple[Dataset, ...] = ("openimages", "coco", "flickr30k", "ade20k")
    # FLAVA has 1.9 million captions. The 692,738 narratives of train are 1.83 million sentences of 13.8
    # words, all 873,107 are 2.3 million. "unstated" are those of Flickr30k in files of captions, of which
    # some are for evaluation: to take the others, add it here and name the file of train alone in `files`.
    splits: tuple[Split, ...] = ("train",)


def recognise(path: Path) -> str | None:
    beginning = head(str(path))
    return METADATA if _columns(beginning.partition(b"\n")[0]) else _form(beginning)


def parts(paths: Sequence[Path]) -> list[Part]:
    forms = [(path, recognise(path) or NARRATIVES) for path in paths]
    metadata = tuple(Part(str(path), form) for path, form in forms if form == METADATA)
    size = _PART_BYTES_WITH_METADATA if metadata else PART_BYTES
    return [
        part
        for path, form in forms
        if form != METADATA
        for part in line_parts([path], form, part_bytes=size, beside=metadata)
    ]


def read(part: Part, rules: Rules) -> Iterator[Record | Rejected]:
    credits = _credits(part) if part.beside and "openimages" in rules.datasets else {}
    for row, line in lines(part):
        yield line if isinstance(line, Rejected) else _outcome(row, line, rules, credits)


# --- which form a file is in ---

_KEYS = [re.compile(rb'[{,]\s*"%s"\s*:' % name) for name in (b"dataset_id", b"image_id", b"caption")]
_ORIGINAL = re.compile(rb'[{,]\s*"original_caption"\s*:')


def _form(beginning: bytes) -> str | None:
    """By the first line that can be one: the end of a line may lie far behind what is looked at."""
    for line in beginning.split(b"\n"):
        if line.startswith(b"{") and all(key.search(line) for key in _KEYS):
            return SENTENCES if _ORIGINAL.search(line) else NARRATIVES
    return None


# --- rows ---


class _Image(NamedTuple):
    dataset: Dataset
    split: Split
    id: str
    dataset_id: str  # as published


def _outcome(row: int, line: str, rules: Rules, credits: "dict[bytes, bytes]") -> Record | Rejected:
    fields = _fields(line)
    if fields is None:
        return Rejected(row, Reason.INPUT_MALFORMED, f"expected a JSON object, found {excerpt(line)}")
    image = _image(fields, line)
    if image is None:
        found = excerpt([fields.get("dataset_id"), fields.get("image_id")])
        detail = f"expected a dataset and the id of an image in it, found {found}"
        return Rejected(row, Reason.INPUT_NO_IMAGE, detail)
    credit = _credit(credits.get(image.id.encode(), b"")) if image.dataset == "openimages" else None
    if credit and image.split == "unstated":
        image = image._replace(split=credit.split)
    if image.dataset not in rules.datasets:
        return Rejected(row, Reason.INPUT_LEFT_OUT, f"of {image.dataset}")
    if image.split not in rules.splits:
        return Rejected(row, Reason.INPUT_LEFT_OUT, f"of {image.dataset}, split {image.split}")
    captions = _captions(row, fields, rules)
    if isinstance(captions, Rejected):
        return captions
    return _record(row, image, captions, credit)


_NEEDED = {"dataset_id", "image_id", "caption"}


def _fields(line: str) -> dict[str, Any] | None:
    """The object that a line is. Of one with timings only what stands before them is parsed."""
    timings = line.find('"timed_caption"')  # not inside a string: there a quote has a backslash
    if timings > 0 and line.endswith("}"):
        fields = _object(line[:timings].rstrip().removesuffix(",") + "}")
        if fields and fields.keys() >= _NEEDED:
            return fields
    return _object(line)


def _object(text: str) -> dict[str, Any] | None:
    try:
        fields = orjson.loads(text)
    except orjson.JSONDecodeError:
        return None
    return fields if isinstance(fields, dict) else None


# --- which image ---

# mscoco_val2017, Flick30k, ADE20k, open_images_train_v6: as published, and as they could be spelled as well.
_DATASET_ID = re.compile(
    r"(?:(?P<openimages>open[_ -]?images?)|(?P<coco>(?:ms[_ -]?)?coco)|(?P<flickr30k>flick?r?[_ -]?30k)"
    r"|(?P<ade20k>ade[_ -]?20k))"
    r"(?:[_ -]?v[0-9])?(?:[_ -]?(?P<split>train|val|test)(?:ing|idation)?)?(?:[_ -]?(?:v[0-9]|2017))?",
    re.IGNORECASE | re.ASCII,
)
_IMAGE_ID: dict[str, re.Pattern[str]] = {
    "openimages": re.compile(r"([0-9a-f]{16})"),
    "coco": re.compile(r"0*([1-9][0-9]{0,11})"),
    "flickr30k": re.compile(r"([1-9][0-9]{0,19})"),
    "ade20k": re.compile(r"(ADE_(?:train|val)_[0-9]{8})"),
}
_RECORDING = re.compile(r'"voice_recording"\s*:\s*"\w+_(train|val|test)(?:idation)?/', re.ASCII)
_SPLITS: dict[str | None, Split] = {"train": "train", "val": "val", "validation": "val", "test": "test"}


def _image(fields: dict[str, Any], line: str) -> _Image | None:
    """Ids make keys, addresses and paths: nothing passes but what its dataset's ids look like."""
    dataset_id, image_id = fields.get("dataset_id"), fields.get("image_id")
    if not isinstance(dataset_id, str) or len(dataset_id) > 64:
        return None
    dataset, split = _dataset(dataset_id)
    if dataset is None:
        return None
    found = _IMAGE_ID[dataset].fullmatch(str(image_id) if type(image_id) is int else _string(image_id))
    if found is None:
        return None
    if split == "unstated" and dataset == "ade20k":
        split = "train" if found[1].startswith("ADE_train") else "val"
    elif split == "unstated" and (place := line.rfind('"voice_recording"')) >= 0:
        recording = _RECORDING.match(line, place)
        split = _SPLITS[recording[1]] if recording else split
    return _Image(dataset, split, found[1], dataset_id)


@lru_cache(maxsize=64)
def _dataset(dataset_id: str) -> tuple[Dataset | None, Split]:
    found = _DATASET_ID.fullmatch(dataset_id)
    if found is None:
        return None, "unstated"
    names: tuple[Dataset, ...] = ("openimages", "coco", "flickr30k", "ade20k")
    split = found["split"]
    return next(name for name in names if found[name]), _SPLITS.get(split and split.lower(), "unstated")


def _record(
    row: int, image: _Image, captions: tuple[Caption, ...], credit: "_Credit | None"
) -> Record | Rejected:
    key = native_key("localized_narratives", f"{image.dataset}-{image.id}")
    named = {"dataset_id": image.dataset_id}
    if image.dataset == "openimages" and image.split != "unstated":
        folder = "validation" if image.split == "val" else image.split
        # The archives of train are sixteen, by the first digit.
        archived = f"train_{image.id[0]}" if folder == "train" else folder
        assert credit
        return Record(
            key,
            f"https://s3.amazonaws.com/open-images-dataset/{folder}/{image.id}.jpg",
            captions,
            credit.license,
            credit.license_url,
            credit.attribution,
            meta_json(open_images_id=image.id, flickr_photo_id=credit.photo, **named),
            f"{archived}/{image.id}.jpg",
            credit.rotation,
        )
    if image.dataset == "coco" and image.split in ("train", "val"):
        path = f"{image.split}2017/{int(image.id):012}.jpg"
        meta = meta_json(coco_id=int(image.id), **named)
        return Record(key, f"http://images.cocodataset.org/{path}", captions, meta=meta, path=path)
    if image.dataset == "flickr30k":
        meta = meta_json(flickr_photo_id=image.id, **named)  # its images are named so
        return Record(key, None, captions, meta=meta, path=f"flickr30k-images/{image.id}.jpg")
    if image.dataset == "ade20k":
        folder = "training" if image.id.startswith("ADE_train") else "validation"
        path = f"ADEChallengeData2016/images/{folder}/{image.id}.jpg"
        return Record(key, None, captions, meta=meta_json(ade20k_id=image.id, **named), path=path)
    detail = f"expected the split that image {image.id} of {image.dataset} is in, found {image.split}"
    return Rejected(row, Reason.INPUT_NO_IMAGE, detail)


# --- which captions ---


def _captions(row: int, fields: dict[str, Any], rules: Rules) -> tuple[Caption, ...] | Rejected:
    text, narrative = fields.get("caption"), fields.get("original_caption")
    texts = text if isinstance(text, list) else [text]
    if not all(each is None or isinstance(each, str) for each in texts):
        detail = f"expected a caption, or a list of captions, found {excerpt(text)}"
        return Rejected(row, Reason.INPUT_MALFORMED, detail)
    numbered: list[tuple[int | None, str]] = [
        (number, each) for number, each in enumerate(texts) if each and not each.isspace()
    ]
    whole = narrative if isinstance(narrative, str) and not narrative.isspace() else ""
    if numbered and isinstance(text, str):
        sentences = enumerate(f"{piece}." for piece in _pieces(text))
        numbered = [(_place(text, whole), text)] if whole else [*sentences]
    if not numbered:
        return Rejected(row, Reason.INPUT_NO_CAPTION, f"expected a caption, found {excerpt(text)}")
    annotator = _annotator(fields)
    if rules.caption == "sentences":
        return tuple(Caption(each, row, _sentence_id(annotator, number)) for number, each in numbered)
    if whole and isinstance(text, str) and numbered[0][0] != 0:
        detail = "its narrative is the caption of the row with the first sentence"
        return Rejected(row, Reason.INPUT_LEFT_OUT, detail)
    spoken = whole or (text if isinstance(text, str) else " ".join(each for _, each in numbered))
    return (Caption(spoken, row, annotator),)


def _annotator(fields: dict[str, Any]) -> str | None:
    annotator = fields.get("annotator_id")
    return str(annotator) if type(annotator) is int and annotator >= 0 else None


def _sentence_id(annotator: str | None, number: int | None) -> str | None:
    if annotator is None or number is None:
        return annotator
    return f"{annotator}-{number}"


def _pieces(narrative: str) -> list[str]:
    """The sentences, as facebook/pmd has them but for the "." that it puts back behind each."""
    return [piece for piece in map(str.strip, narrative.split(".")) if piece]


def _place(sentence: str, narrative: str) -> int | None:
    """Which sentence of a narrative it is; None for one that is not in it."""
    pieces = _pieces(narrative)
    piece = sentence.strip().removesuffix(".").rstrip()
    return pieces.index(piece) if piece in pieces else None


def _string(value: Any) -> str:
    return value if isinstance(value, str) else ""


# --- the metadata of Open Images ---

_COLUMNS = ("Subset", "OriginalLandingURL", "License", "Author", "Rotation")
_CREDIT_BYTES = 16 << 10  # a longer row is passed over
_OPEN_IMAGES_ID = re.compile(rb'"image_id"\s*:\s*"([0-9a-f]{16})"')
_ROW = re.compile(rb"[0-9a-f]{16},")
_PHOTO = re.compile(r"://(?:www\.)?flickr\.com/photos/[^/]+/([0-9]+)/?\Z")
# "NaN" is a photo that had left Flickr before anybody asked how it is to be turned.
_ROTATIONS = {str(degrees) + rest: degrees for degrees in (0, 90, 180, 270) for rest in ("", ".0")}
# What Open Images took from Flickr: photos under this licence alone.
_LICENSE = "https://creativecommons.org/licenses/by/2.0/"


class _Credit(NamedTuple):
    split: Split
    license: str | None
    license_url: str
    attribution: str | None
    photo: str | None  # Flickr's id
    rotation: int | None


def _credits(part: Part) -> dict[bytes, bytes]:
    """The metadata of the images that the rows of a part are of, packed, by their ids."""
    found = dict.fromkeys(_open_images_ids(part), b"")
    for metadata in part.beside if found else ():
        lines = _csv_lines(metadata)
        columns = _columns(next(lines, b""))
        for row in _rows_about(found, lines) if columns else ():
            cells = csv_fields(row, ",")
            if columns and not isinstance(cells, Broken) and len(cells) == columns[0]:
                packed = ("" if place is None else " ".join(cells[place].split()) for place in columns[1])
                found[row[:16]] = "\n".join(packed).encode()
    return found


@lru_cache(maxsize=1)  # rows of one image follow one another
def _credit(packed: bytes) -> _Credit:
    cells = packed.decode().split("\n") if packed else [""] * len(_COLUMNS)
    subset, page, license_url, author, rotation = cells
    page = page if is_url(page) else ""
    license_url = license_url if is_url(license_url) else _LICENSE
    photo = _PHOTO.search(page)
    return _Credit(
        _SPLITS.get(subset, "unstated"),
        spdx_id(license_url),
        license_url,
        ", ".join(filter(None, (author, page))) or None,
        photo[1] if photo else None,
        _ROTATIONS.get(rotation),
    )


def _open_images_ids(part: Part) -> Iterator[bytes]:
    """Every id in a part that looks like one of Open Images, perhaps more than once."""
    end = b""  # of the block before: an id may lie across the two
    with suppress(Unreadable):
        for block in blocks(part):
            text = end + block
            yield from _OPEN_IMAGES_ID.findall(text)
            end = text[-100:]


def _columns(header: bytes) -> tuple[int, list[int | None]] | None:
    """How many columns there are, and where each of _COLUMNS is; None where it is another file's header."""
    names = csv_fields(header.removeprefix(b"\xef\xbb\xbf").removesuffix(b"\r"), ",")
    if isinstance(names, Broken) or names[0] != "ImageID" or not {"License", "Author"} <= {*names}:
        return None
    return len(names), [names.index(name) if name in names else None for name in _COLUMNS]


def _rows_about(images: Container[bytes], lines: Iterator[bytes]) -> Iterator[bytes]:
    """The rows of some images. The others are not parsed: there are nine million.

    A line end inside quotes does not end a row. But a line that begins as rows do begins one, so that a quote
    too many costs one row.
    """
    held = b""  # a row that ended inside quotes so far
    for line in lines:
        if held and not _ROW.match(line):
            line = held + b"\n" + line
        held = b""
        if line[:16] in images and len(line) <= _CREDIT_BYTES:
            if line.count(b'"') % 2:
                held = line
            else:
                yield line.removesuffix(b"\r")


def _csv_lines(part: Part) -> Iterator[bytes]:
    rest = b""
    with suppress(Unreadable):
        for block in blocks(part):
            *whole, rest = (rest + block).split(b"\n")
            yield from whole
            rest = rest[:ROW_BYTES]
    yield rest
