"""Visual Genome: phrases about regions of a photo, and the list of photos, each a JSON array in a zip.

    region_descriptions.json.zip   [{"regions": [{"region_id", "phrase", "x", ...}, ...], "id": 1}, ...]
    image_data.json.zip            [{"image_id": 1, "url", "width", "height", "coco_id", "flickr_id"}, ...]

Every thing in a picture has regions of its own, with its true box; so has the background.
"""

import json
import random
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from tests.publish import flickr
from tests.publish.damage import LATE, LINKS, OF_IMAGES, Damage, damages, served_size
from tests.publish.edition import Edition, zipped
from tests.world import SHAPES, Picture, Scene, box, ground_of, noun_phrase, place_of

OF_REGIONS = (
    *OF_IMAGES,
    Damage.EMPTY_CAPTION,
    Damage.NOT_A_URL,
    Damage.UNKNOWN_IMAGE,
    Damage.NO_ANNOTATION,
)
SITE = "https://cs.stanford.edu/people/rak248"
FOLDERS = {"images.zip": "VG_100K", "images2.zip": "VG_100K_2"}


class Region(NamedTuple):
    phrase: str
    box: tuple[int, int, int, int]  # left, top, width, height in px


def publish_visual_genome(pictures: Sequence[Picture], edition: Edition) -> None:
    rng = edition.rng
    described: list[dict[str, Any]] = []
    listed: list[dict[str, Any]] = []
    numbers = iter(range(1382, 10**9))  # of regions, over all images
    ids = sorted(rng.sample(range(1, 2_417_998), len(pictures)))
    zips: dict[str, dict[str, bytes]] = {name: {f"{folder}/": b""} for name, folder in FOLDERS.items()}
    for id, picture, damage in zip(ids, pictures, damages(len(pictures), OF_REGIONS, rng), strict=True):
        size = served_size(picture, damage)
        regions = list(_regions(picture.scene, size, rng))
        match damage:
            case Damage.NO_ANNOTATION:
                regions = []
                edition.row(damage)
            case Damage.EMPTY_CAPTION:
                regions.insert(rng.randint(0, len(regions)), Region("", regions[0].box))
                edition.row(damage)
                edition.row(rows=len(regions) - 1)
            case _:
                edition.row(damage, rows=len(regions))
        entries = [_region(next(numbers), id, region, edition) for region in regions]
        described.append({"regions": entries, "id": id})
        archive = rng.choice(tuple(FOLDERS))
        path = f"{FOLDERS[archive]}/{id}.jpg"
        url = f"{SITE}/{path}"
        if damage is not Damage.UNKNOWN_IMAGE:
            shown = "no longer available" if damage is Damage.NOT_A_URL else url
            listed.append(_image(id, shown, size, edition))
        if damage in (None, Damage.EMPTY_CAPTION) or damage in LATE:
            late = damage if damage in LATE else None
            zip_it = edition.forms.visual_genome_images == "zips" and late not in LINKS
            entry = edition.post(picture, late, url, path=path if zip_it else None)
            if zip_it:
                zips[archive][path] = entry.body()
    version = "_v1" if edition.forms.visual_genome == "v1" else ""
    _write_json(edition, f"region_descriptions{version}.json.zip", "region_descriptions.json", described)
    _write_json(edition, "image_data.json.zip", "image_data.json", listed)
    if edition.forms.visual_genome_images == "zips":
        for name, members in zips.items():
            edition.write_archive(name, zipped(members, stored=True), f"{SITE}/VG_100K_2/{name}")


def _write_json(edition: Edition, name: str, member: str, document: list[dict[str, Any]]) -> None:
    edition.write(
        name,
        zipped({member: json.dumps(document).encode()}),
        f"https://visualgenome.org/static/data/dataset/{name}",
        f"https://homes.cs.washington.edu/~ranjay/visualgenome/data/dataset/{name}",
    )


def _regions(scene: Scene, size: tuple[int, int], rng: random.Random) -> Iterator[Region]:
    """What people wrote of a picture, several phrases to a thing, some of them twice."""
    for thing in scene.things:
        noun = rng.choice(SHAPES[thing.shape])
        phrases = (
            noun_phrase(1, thing, rng),
            f"the {noun} is {thing.colour}",
            f"{thing.colour} {noun}",
            f"{thing.colour} {noun} {place_of(thing, rng)}",
        )
        for phrase in rng.sample(phrases, rng.randint(2, 4)):
            for _ in range(2 if rng.random() < 0.06 else 1):
                yield Region(_typed(phrase, rng), box(thing, size))
    left, top, width, height = 0, 0, *size
    reach = rng.random()
    if reach < 0.1:  # outside the picture
        left, top, width, height = -2, 0, width + 5, height + 3
    elif reach < 0.14:  # drawn by a click
        width, height = 0, 0
    yield Region(_typed(ground_of(scene.background, rng), rng), (left, top, width, height))


def _typed(phrase: str, rng: random.Random) -> str:
    """As typed: some with a capital, a space at the end, or a letter missing."""
    if rng.random() < 0.2:
        phrase = phrase[0].upper() + phrase[1:]
    if rng.random() < 0.05:
        phrase = phrase.replace("background", "bckground")
    return phrase + rng.choices(("", " ", "  ", "."), weights=(85, 10, 2, 3))[0]


def _region(number: int, image: int, region: Region, edition: Edition) -> dict[str, Any]:
    left, top, width, height = region.box
    if edition.forms.visual_genome == "v1":
        return {
            "image": image,
            "height": height,
            "width": width,
            "x": left,
            "y": top,
            "phrase": region.phrase,
            "id": number,
        }
    return {
        "region_id": number,
        "width": width,
        "height": height,
        "image_id": image,
        "phrase": region.phrase,
        "y": top,
        "x": left,
    }


def _image(id: int, url: str, size: tuple[int, int], edition: Edition) -> dict[str, Any]:
    rng = edition.rng
    image: dict[str, Any] = {
        "width": size[0],
        "url": url,
        "height": size[1],
        "id" if edition.forms.visual_genome == "v1" else "image_id": id,
        # Half of the photos are COCO's too; for some others -1 or nothing at all says that they are not.
        "coco_id": rng.choices((rng.randint(1, 581_929), None, -1), weights=(48, 49, 3))[0],
        "flickr_id": flickr.photo(rng).id if rng.random() < 0.95 else None,
    }
    if image["coco_id"] is None and rng.random() < 0.05:
        del image["coco_id"]
    return image
