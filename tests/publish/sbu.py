"""SBU Captions: addresses of photos on Flickr with their titles, in one of two packings.

json   sbu-captions-all.tar.gz           one object of three parallel lists
txt    SBUCaptionedPhotoDataset.tar.gz   two files, line by line
"""

import json
import random
from collections.abc import Sequence

from tests.publish import flickr
from tests.publish.damage import LATE, OF_IMAGES, Damage, damages
from tests.publish.edition import Edition, gzipped, tarred
from tests.world import Picture

OF_SBU = (*OF_IMAGES, Damage.EMPTY_CAPTION, Damage.NOT_A_URL)


def publish_sbu(pictures: Sequence[Picture], edition: Edition) -> None:
    rng = edition.rng
    urls: list[str] = []
    captions: list[str] = []
    for picture, damage in zip(pictures, damages(len(pictures), OF_SBU, rng), strict=True):
        photo = flickr.photo(rng)
        site = "static" if rng.random() < 0.9 else f"farm{photo.farm}.static"
        url = f"http://{site}.flickr.com/{photo.name}.jpg"
        urls.append("unavailable" if damage is Damage.NOT_A_URL else url)
        captions.append("" if damage is Damage.EMPTY_CAPTION else _title(rng.choice(picture.captions), rng))
        edition.row(damage)
        if damage is None or damage in LATE:
            edition.post(picture, damage, url)
    site = "https://www.cs.rice.edu/~vo9/sbucaptions"
    if edition.forms.sbu == "json":
        users = [flickr.account(rng) for _ in urls]
        document = {"image_urls": urls, "user_ids": users, "captions": captions}
        packed = gzipped(tarred({"sbu-captions-all.json": json.dumps(document).encode()}))
        edition.write("sbu-captions-all.tar.gz", packed, f"{site}/sbu-captions-all.tar.gz")
    else:
        members = {
            "dataset/": b"",
            "dataset/SBU_captioned_photo_dataset_urls.txt": _lines(urls),
            "dataset/SBU_captioned_photo_dataset_captions.txt": _lines(captions),
        }
        name = "SBUCaptionedPhotoDataset.tar.gz"
        older = f"http://www.cs.virginia.edu/~vicente/sbucaptions/{name}"
        edition.write(name, gzipped(tarred(members)), f"{site}/{name}", older)


def _lines(rows: list[str]) -> bytes:
    return "".join(f"{row}\n" for row in rows).encode()


def _title(caption: str, rng: random.Random) -> str:
    """As people title their photos: with or without a capital and a full stop, or with a space left over."""
    text = rng.choice((caption, caption.removesuffix("."), caption.removesuffix(".").lower()))
    more = rng.choices(("", " ", " - from my sketchbook", " (seen in the park)"), weights=(75, 12, 8, 5))[0]
    return text + more
