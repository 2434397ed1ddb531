"""RedCaps: posts of Reddit with a picture, annotations/{subreddit}_{year}.json in one zip.

    {"info": {...}, "annotations": [{"image_id", "subreddit", "url", "caption", "raw_caption", ...}]}

A title is published as posted, and as the publishers have cleaned it. Files named 2017 hold all before, too.
"""

import json
import random
import re
import string
import unicodedata
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, NamedTuple

from tests.publish import flickr
from tests.publish.damage import LATE, OF_IMAGES, Damage, damages
from tests.publish.edition import Edition, zipped
from tests.world import Picture

OF_POSTS = (*OF_IMAGES, Damage.EMPTY_CAPTION, Damage.NOT_A_URL, Damage.NULL_ROW)
SUBREDDITS = ("Drawings", "geometry", "MinimalArt")
YEARS = (2017, 2018, 2019, 2020)
REMOVED = "https://i.imgur.com/removed.png"


class _Address(NamedTuple):
    shown: str  # as the row has it
    url: str  # the one in it that counts: the first


def publish_redcaps(pictures: Sequence[Picture], edition: Edition) -> None:
    rng = edition.rng
    kinds = (*OF_POSTS, Damage.REMOVED) if edition.forms.redcaps_removed else OF_POSTS
    posts: dict[str, list[dict[str, Any] | None]] = {
        f"{subreddit.lower()}_{year}": [] for subreddit in SUBREDDITS for year in YEARS
    }
    for picture, damage in zip(pictures, damages(len(pictures), kinds, rng), strict=True):
        subreddit, year = rng.choice(SUBREDDITS), rng.choice(YEARS)
        address = _address(damage, rng)
        post = _post(picture, subreddit, year, address.shown, damage, rng)
        posts[f"{subreddit.lower()}_{year}"].append(None if damage is Damage.NULL_ROW else post)
        edition.row(damage)
        if damage is None or damage in LATE:
            edition.post(picture, damage, address.url)
    members = {
        f"annotations/{name}.json": json.dumps({**_info(name, rng), "annotations": rows}).encode()
        for name, rows in sorted({**posts, "sketchbooks_2017": []}.items())
    }
    edition.write(
        "redcaps_v1.0_annotations.zip",
        zipped({"annotations/": b"", **members}),
        "https://www.dropbox.com/s/cqtdpsl4hewlli1/redcaps_v1.0_annotations.zip?dl=1",
        "https://huggingface.co/datasets/kdexd/red_caps/resolve/main/data/redcaps_v1.0_annotations.zip",
    )


def _info(name: str, rng: random.Random) -> dict[str, Any]:
    """The head of a file, which some have without the filters and some not at all."""
    year = name.rpartition("_")[2]
    info = {
        "start_date": "2008-01-01" if year == "2017" else f"{year}-01-01",
        "end_date": f"{year}-12-31",
        "url": "https://redcaps.xyz",
        "version": "v1.0",
    }
    if rng.random() < 0.5:
        info |= {"word_filter": "applied", "nsfw_filter": "applied", "face_filter": "applied"}
    return {"info": info} if rng.random() < 0.7 else {}


def _address(damage: Damage | None, rng: random.Random) -> _Address:
    if damage is Damage.NOT_A_URL:
        return _Address(f"/r/drawings/comments/{_base36(rng)}/", "")
    url = _imgur(rng) if damage is Damage.REMOVED else _image_address(rng)
    match rng.choices(("one", "two", "album"), weights=(92, 5, 3))[0]:
        case "two":
            return _Address(f"{url} {_image_address(rng)}", url)
        case "album":
            url = _imgur(rng)
            return _Address(f"{url},{_letters(rng)}.jpg", url)
        case _:
            return _Address(url, url)


def _image_address(rng: random.Random) -> str:
    if (site := rng.random()) < 0.55:
        return f"https://i.redd.it/{_base36(rng, 13)}.jpg"
    if site < 0.95:
        return _imgur(rng)
    photo = flickr.photo(rng)
    return f"https://farm{photo.farm}.staticflickr.com/{photo.name}_b.jpg"


def _imgur(rng: random.Random) -> str:
    return f"{rng.choice(('http', 'https'))}://i.imgur.com/{_letters(rng)}.jpg"


def _letters(rng: random.Random) -> str:
    return "".join(rng.choices(string.ascii_letters + string.digits, k=7))


def _base36(rng: random.Random, length: int = 6) -> str:
    return "".join(rng.choices(string.digits + string.ascii_lowercase, k=length))


def _post(
    picture: Picture, subreddit: str, year: int, url: str, damage: Damage | None, rng: random.Random
) -> dict[str, Any]:
    title = "[OC] (2020)" if damage is Damage.EMPTY_CAPTION else _title(picture, rng)
    image_id = _base36(rng)
    written = rng.randint(2011, 2017) if year == 2017 else year
    slug = re.sub(r"\W+", "_", title.lower()).strip("_")[:50]
    post: dict[str, Any] = {
        "image_id": image_id,
        "subreddit": subreddit.lower(),
        "url": url,
        "caption": cleaned(title),
        "raw_caption": title,
        "score": rng.randint(2, 4000),
        "author": "None" if rng.random() < 0.2 else f"pencil_{rng.randint(1, 999)}",  # who left is "None"
        "created_utc": int(datetime(written, 1, 1, tzinfo=UTC).timestamp()) + rng.randrange(31_000_000),
        "permalink": f"/r/{subreddit}/comments/{image_id}/{slug}/",
    }
    if rng.random() < 0.1:
        del post["score"]
        post["crosspost_parents"] = [_base36(rng)]
    elif rng.random() < 0.3:
        post["crosspost_parents"] = None
    return post


def _title(picture: Picture, rng: random.Random) -> str:
    plain = rng.choice(picture.captions).removesuffix(".")
    width, height = picture.size
    ways = (
        plain,
        f"{plain} [OC]",
        f"[{width}x{height}] {plain}",
        f"{plain} ({width} × {height})",  # noqa: RUF001
        f"{plain} {width} x {height}",
        f"{plain} \N{ARTIST PALETTE}\N{SPARKLES}",
        f"{plain}, after a sketch by @shape_painter",
        f"{plain} (x-post from /r/geometry], drawn in a café",
    )
    return rng.choices(ways, weights=(50, 12, 8, 6, 6, 8, 5, 5))[0]


def cleaned(title: str) -> str:
    """What the publishers make of a title (but for mojibake, which we write none of)."""
    text = unicodedata.normalize("NFKD", title).lower()
    for unwanted in (r"[\[(].*?[\])]", r"\d+\s*(?:px)?\s*[x×]\s*\d+\s*(?:px)?"):  # noqa: RUF001
        text = " ".join(re.sub(unwanted, " ", text).split())
    text = re.sub(r"@\w+", "<usr>", text)
    return text.encode("ascii", "ignore").decode().strip()
