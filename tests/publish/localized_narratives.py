"""Localized Narratives: what people said of a picture, a JSON object a line, for photos of four datasets.

    open_images_train_v6_captions.jsonl   at https://s3.amazonaws.com/open-images-dataset/train/, some of them
                                          lying on their side, as image_ids_and_rotation.csv says
    coco_train_captions.jsonl             at http://images.cocodataset.org/train2017/
    flickr30k_train_captions.jsonl        in flickr30k-images.tar alone
    ade20k_train_captions.jsonl           in ADEChallengeData2016.zip alone

A narrative is a few sentences, each a caption of its own for whoever splits at full stops. One picture in
eight has two narratives, the second far behind the first.
"""

import base64
import csv
import io
import json
import random
import re
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from PIL import Image

from tests.publish import flickr
from tests.publish.coco import IDS_BELOW
from tests.publish.damage import LATE, LINKS, OF_IMAGES, Damage, damages
from tests.publish.edition import Edition, Posted, tarred, zipped
from tests.world import Picture, Scene, all_things, encode, ground_of, noun_phrase, place_of

OF_NARRATIVES = (
    *OF_IMAGES,
    Damage.EMPTY_CAPTION,
    Damage.BROKEN_JSON,
    Damage.INVALID_UTF8,
    Damage.NOT_IN_ARCHIVE,
)


class _Dataset(NamedTuple):
    """One of the four datasets of photos."""

    id: str  # of its part for training
    file: str
    share: int
    image_id: Callable[[random.Random], str]
    url: str | None  # around the image id; or else
    path: str | None = None  # in its archive


OPEN_IMAGES = _Dataset(
    "open_images_train",
    "open_images_train_v6_captions.jsonl",
    4,
    lambda rng: f"{rng.getrandbits(64):016x}",
    "https://s3.amazonaws.com/open-images-dataset/train/{}.jpg",
)
COCO = _Dataset(
    "mscoco_train2017",
    "coco_train_captions.jsonl",
    2,
    lambda rng: str(rng.randrange(IDS_BELOW + 100_000, 10**6)),
    "http://images.cocodataset.org/train2017/{:0>12}.jpg",
)
FLICKR30K = _Dataset(
    "Flick30k_train",  # spelt so
    "flickr30k_train_captions.jsonl",
    1,
    lambda rng: str(flickr.photo(rng).id),
    None,
    "flickr30k-images/{}.jpg",
)
ADE20K = _Dataset(
    "ADE20k_train",
    "ade20k_train_captions.jsonl",
    1,
    lambda rng: f"ADE_train_{rng.randint(1, 20_210):08d}",
    None,
    "ADEChallengeData2016/images/training/{}.jpg",
)
DATASETS = (OPEN_IMAGES, COCO, FLICKR30K, ADE20K)


def publish_localized_narratives(pictures: Sequence[Picture], edition: Edition) -> None:
    rng = edition.rng
    first: dict[_Dataset, list[bytes]] = {dataset: [] for dataset in DATASETS}
    second: dict[_Dataset, list[bytes]] = {dataset: [] for dataset in DATASETS}
    posted: dict[_Dataset, list[Posted]] = {dataset: [] for dataset in DATASETS}
    fates = damages(len(pictures), OF_NARRATIVES, rng)
    for picture, dataset, id, damage in _placed(pictures, fates, rng):
        late = damage if damage in LATE else None
        of_row = damage if damage and not late else None
        twice = of_row is None and rng.random() < 1 / 8
        for lines in (first, second) if twice else (first,):
            pieces, caption = (
                ([], ".. ") if damage is Damage.EMPTY_CAPTION else _narrative(picture.scene, rng)
            )
            lines[dataset].append(_line(dataset.id, id, caption, of_row, rng))
            edition.row(damage, pairs=len(pieces))
        if of_row is None:
            url = [dataset.url.format(id)] if dataset.url else []
            path = dataset.path.format(id) if dataset.path else None
            turned = rng.choice((90, 180, 270)) if _lies(dataset, late, rng) else 0
            posted[dataset].append(edition.post(picture, late, *url, path=path, turned=turned))
    for _ in range(max(2, len(first[COCO]) // 10)):  # of the photos for validation
        _, caption = _narrative(rng.choice(pictures).scene, rng)
        place = rng.randint(0, len(first[COCO]))
        first[COCO].insert(place, _line("mscoco_val2017", COCO.image_id(rng), caption, None, rng))
        edition.row(Damage.LEFT_OUT)
    site = "https://storage.googleapis.com/localized-narratives/annotations"
    for dataset in DATASETS:
        if first[dataset]:  # in a world of a few pictures some have none
            data = b"".join(first[dataset] + second[dataset])
            edition.write(dataset.file, data, f"{site}/{dataset.file}")
    edition.write(
        "image_ids_and_rotation.csv",
        _metadata(posted[OPEN_IMAGES], rng),
        "https://storage.googleapis.com/openimages/2018_04/image_ids_and_rotation.csv",
    )
    _write_archives(edition, posted)


def _placed(
    pictures: Sequence[Picture], fates: Sequence[Damage | None], rng: random.Random
) -> Iterator[tuple[Picture, _Dataset, str, Damage | None]]:
    """Each picture in one of the datasets where it can be damaged so, under an id of its own."""
    taken: set[str] = set()
    for picture, damage in zip(pictures, fates, strict=True):
        fitting = [
            dataset
            for dataset in DATASETS
            if (damage not in LINKS or dataset.url) and (damage is not Damage.NOT_IN_ARCHIVE or dataset.path)
        ]
        dataset = rng.choices(fitting, weights=[dataset.share for dataset in fitting])[0]
        id = dataset.image_id(rng)
        while id in taken:
            id = dataset.image_id(rng)
        taken.add(id)
        yield picture, dataset, id, damage


def _lies(dataset: _Dataset, damage: Damage | None, rng: random.Random) -> bool:
    return dataset is OPEN_IMAGES and damage is None and rng.random() < 0.15


def _line(dataset_id: str, id: str, caption: str, damage: Damage | None, rng: random.Random) -> bytes:
    row = {"dataset_id": dataset_id, "image_id": id, "annotator_id": rng.randint(0, 155), "caption": caption}
    line = json.dumps(row).encode()
    if damage is Damage.BROKEN_JSON:
        line = line[: len(line) * 2 // 3]
    elif damage is Damage.INVALID_UTF8:
        line = line.replace(b" image ", b" im\xe9ge ", 1)
    return line + b"\n"


def _narrative(scene: Scene, rng: random.Random) -> tuple[list[str], str]:
    """True sentences, and how they stand in the file: with the full stops that a listener set, or forgot."""
    what, plural = all_things(scene, rng)
    there = "are" if plural else "is"
    pieces = [rng.choice((f"In this image there {there} {what}", f"In this image we can see {what}"))]
    if len(scene.things) == 1:
        pieces.append(f"It is {place_of(scene.things[0], rng)} of the picture")
    for _, thing in scene.groups if len(scene.things) > 1 else []:
        sort = noun_phrase(1, thing, rng)
        pieces.append(f"{place_of(thing, rng)} there is {sort}".capitalize())
    pieces.append(f"In the background we can see {ground_of(scene.background, rng)}")
    text = pieces[0]
    for piece in pieces[1:]:
        text += rng.choices((". ", ".", " . ", ".. "), weights=(80, 10, 6, 4))[0] + piece
    return pieces, text + rng.choices((".", "", ". "), weights=(80, 10, 10))[0]


# --- the metadata of Open Images ---

COLUMNS = (
    "ImageID",
    "Subset",
    "OriginalURL",
    "OriginalLandingURL",
    "License",
    "AuthorProfileURL",
    "Author",
    "Title",
    "OriginalSize",
    "OriginalMD5",
    "Thumbnail300KURL",
    "Rotation",
)
NAMES = (
    ("Ana Ruiz", "anaruiz"),
    ("J. Smith, Jr.", "jsmith"),
    ('Pat "the pen" Lee', "patlee"),
    ("Zoë", "zoe"),
)
TITLES = (
    "Shapes",
    "Lunch break, drawn",
    'My "best" one',
    "IMG_2041",
    "Étude no. 4",
    "On paper,\n6 April 2010",
)


def _metadata(posted: Sequence[Posted], rng: random.Random) -> bytes:
    """A row for each image, and for some that no narrative is about."""
    rows: list[list[str]] = []
    for entry in posted:
        id = entry.urls[0].rpartition("/")[2].removesuffix(".jpg")
        # Written in two ways; and never asked of everybody's photos.
        upright = rng.choices(("0", "0.0", "NaN", ""), weights=(60, 25, 10, 5))[0]
        turn = rng.choice((f"{entry.turned}", f"{entry.turned}.0"))
        rows.append(_image_row(id, "train", turn if entry.turned else upright, rng))
    for _ in range(len(posted) // 4):
        id = OPEN_IMAGES.image_id(rng)
        rows.append(_image_row(id, rng.choice(("train", "validation", "test")), "90.0", rng))
    rng.shuffle(rows)
    out = io.StringIO(newline="")
    csv.writer(out, lineterminator="\n").writerows([COLUMNS, *rows])
    return out.getvalue().encode()


def _image_row(id: str, subset: str, rotation: str, rng: random.Random) -> list[str]:
    photo = flickr.photo(rng)
    author, profile = rng.choice(NAMES)
    shown = f"https://c{photo.farm}.staticflickr.com/{photo.farm}/{photo.name}_z.jpg"
    return [
        id,
        subset,
        f"https://farm{photo.farm}.staticflickr.com/{photo.server}/{photo.id}_{photo.original_secret}_o.jpg",
        f"https://www.flickr.com/photos/{profile}/{photo.id}",
        "https://creativecommons.org/licenses/by/2.0/",
        f"https://www.flickr.com/people/{profile}/",
        author,
        rng.choice(TITLES),
        str(rng.randint(10**5, 10**7)),
        base64.b64encode(rng.randbytes(16)).decode(),
        shown if rng.random() < 0.8 else "",
        rotation,
    ]


# --- archives ---


def _write_archives(edition: Edition, posted: dict[_Dataset, list[Posted]]) -> None:
    held = {
        dataset: {
            entry.path: entry.body()
            for entry in sorted(posted[dataset], key=lambda entry: entry.path or "")
            if entry.path and entry.damage is not Damage.NOT_IN_ARCHIVE
        }
        for dataset in (FLICKR30K, ADE20K)
    }
    # Not published at an address: the University of Illinois sends it on request.
    edition.write_archive("flickr30k-images.tar", tarred({"flickr30k-images/": b"", **held[FLICKR30K]}))
    annotated = {
        re.sub("images(.*)jpg$", r"annotations\1png", path): _segments(path) for path in held[ADE20K]
    }
    edition.write_archive(
        "ADEChallengeData2016.zip",
        zipped(
            {"ADEChallengeData2016/": b"", **annotated, **held[ADE20K]}
            | {"ADEChallengeData2016/sceneCategories.txt": b"ADE_train_00000001 airport_terminal\n"},
            stored=True,
        ),
        "http://data.csail.mit.edu/places/ADEchallenge/ADEChallengeData2016.zip",
    )


def _segments(path: str) -> bytes:
    """A picture of the same name that must not be taken for the photo."""
    return encode(Image.new("L", (64, 48), len(path)), "PNG")
