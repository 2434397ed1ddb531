"""COCO: annotations/captions_train2017.json, one JSON object, its lists in no order."""

import json
import random
from collections.abc import Sequence

from tests.publish.damage import LATE, OF_IMAGES, Damage, damages, served_size
from tests.publish.edition import Edition
from tests.world import Picture

OF_COCO = (*OF_IMAGES, Damage.EMPTY_CAPTION, Damage.NOT_A_URL, Damage.UNKNOWN_IMAGE, Damage.NO_ANNOTATION)

COCO_INFO = {
    "description": "COCO 2017 Dataset",
    "url": "http://cocodataset.org",
    "version": "1.0",
    "year": 2017,
    "contributor": "COCO Consortium",
    "date_created": "2017/09/01",
}
COCO_LICENSES = {
    1: ("http://creativecommons.org/licenses/by-nc-sa/2.0/", "Attribution-NonCommercial-ShareAlike License"),
    2: ("http://creativecommons.org/licenses/by-nc/2.0/", "Attribution-NonCommercial License"),
    3: ("http://creativecommons.org/licenses/by-nc-nd/2.0/", "Attribution-NonCommercial-NoDerivs License"),
    4: ("http://creativecommons.org/licenses/by/2.0/", "Attribution License"),
    5: ("http://creativecommons.org/licenses/by-sa/2.0/", "Attribution-ShareAlike License"),
    6: ("http://creativecommons.org/licenses/by-nd/2.0/", "Attribution-NoDerivs License"),
    7: ("http://flickr.com/commons/usage/", "No known copyright restrictions"),
    8: ("http://www.usa.gov/copyright.shtml", "United States Government Work"),
}
COCO_LICENSE_SPREAD = (1431, 630, 1414, 857, 417, 246, 5, 0)  # images of val2017 under each

# Its image ids are below; those of Localized Narratives, which has other pictures at the same site, above.
IDS_BELOW = 600_000


def publish_coco(pictures: Sequence[Picture], edition: Edition) -> None:
    rng = edition.rng
    ids = rng.sample(range(1, IDS_BELOW), len(pictures))
    strangers = iter(rng.sample(range(IDS_BELOW, IDS_BELOW + 100_000), len(pictures)))
    images: list[dict[str, str | int]] = []
    said: list[tuple[int, str]] = []  # image id, caption
    for picture, id, damage in zip(pictures, ids, damages(len(pictures), OF_COCO, rng), strict=True):
        image = _image(id, picture, damage, rng)
        images.append(image)
        own = [(id, _habit(caption, rng)) for caption in picture.captions]
        kept = len(own)
        match damage:
            case Damage.NO_ANNOTATION:
                own, kept = [], 0
                edition.row(damage)
            case Damage.EMPTY_CAPTION:
                own[0], kept = (id, ""), kept - 1
                edition.row(damage)
            case Damage.UNKNOWN_IMAGE:
                own = [*own, (next(strangers), own[0][1])]
                edition.row(damage)
            case Damage():
                edition.row(damage, rows=kept)
                kept = 0
            case None:
                pass
        edition.row(rows=kept)
        if damage not in (Damage.NO_ANNOTATION, Damage.NOT_A_URL):
            edition.post(picture, damage if damage in LATE else None, str(image["coco_url"]))
        said += own
    rng.shuffle(images)
    rng.shuffle(said)
    numbers = rng.sample(range(1, 900_000), len(said))
    document = {
        "info": COCO_INFO,
        "licenses": [{"url": url, "id": id, "name": name} for id, (url, name) in COCO_LICENSES.items()],
        "images": images,
        "annotations": [
            {"image_id": image, "id": number, "caption": caption}
            for number, (image, caption) in zip(numbers, said, strict=True)
        ],
    }
    edition.write(
        "annotations/captions_train2017.json",
        json.dumps(document).encode(),
        "http://images.cocodataset.org/annotations/annotations_trainval2017.zip",
    )


def _image(id: int, picture: Picture, damage: Damage | None, rng: random.Random) -> dict[str, str | int]:
    name = f"{id:012d}.jpg"
    width, height = served_size(picture, damage)
    published = f"http://images.cocodataset.org/train2017/{name}"
    photo = f"{rng.randint(1000, 9999)}/{rng.randint(10**8, 10**10)}_{rng.getrandbits(40):010x}_z.jpg"
    day, at = f"2013-11-{rng.randint(14, 25)}", f"{rng.randint(0, 23):02d}:{rng.randint(0, 59):02d}"
    return {
        "license": rng.choices(tuple(COCO_LICENSES), weights=COCO_LICENSE_SPREAD)[0],
        "file_name": name,
        "coco_url": "no longer available" if damage is Damage.NOT_A_URL else published,
        "height": height,
        "width": width,
        "date_captured": f"{day} {at}:{rng.randint(0, 59):02d}",
        "flickr_url": f"http://farm{rng.randint(1, 9)}.staticflickr.com/{photo}",
        "id": id,
    }


def _habit(caption: str, rng: random.Random) -> str:
    """White space around captions, about as often as the people who wrote COCO's left it there."""
    before, after = rng.choices((("", ""), ("", " "), (" ", ""), ("", "\n")), weights=(850, 130, 12, 8))[0]
    return before + caption + after
