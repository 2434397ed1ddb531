"""CC3M and CC12M: a line a row, a caption and an address; CC12M has the address first."""

import random
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

from tests.publish.damage import LATE, OF_IMAGES, Damage, damages
from tests.publish.edition import Edition
from tests.world import Picture

OF_TSV = (*OF_IMAGES, Damage.EMPTY_CAPTION, Damage.NOT_A_URL, Damage.MISSING_TAB, Damage.INVALID_UTF8)

CC3M_SITES = (
    "http://media.newswire.example",
    "https://i.pinboard.example",
    "https://thumbs.stock-photos.example",
)
CC12M_SITES = (
    "https://cdn.shop-front.example",
    "http://travel-blog.example",
    "https://static.recipes.example",
)


class _Row(NamedTuple):
    url: str
    caption: str
    damage: Damage | None


def publish_cc3m(pictures: Sequence[Picture], edition: Edition) -> None:
    """Train_GCC-training.tsv: caption TAB url, lower-case words with spaces around punctuation."""

    def line(row: _Row) -> str:
        caption = re.sub(r"\s*([.,])", r" \1", row.caption.lower())
        return f"{caption}\t{row.url}"

    data = _lines(pictures, CC3M_SITES, line, edition)
    address = "https://storage.googleapis.com/gcc-data/Train/GCC-training.tsv"
    edition.write("Train_GCC-training.tsv", data, address)


def publish_cc12m(pictures: Sequence[Picture], edition: Edition) -> None:
    """cc12m.tsv: url TAB caption, as pages have their alt texts."""

    def line(row: _Row) -> str:
        return f"{row.url}\t{_alt_text(row.caption, edition.rng) if row.caption else ''}"

    data = _lines(pictures, CC12M_SITES, line, edition)
    edition.write("cc12m.tsv", data, "https://storage.googleapis.com/conceptual_12m/cc12m.tsv")


def _lines(
    pictures: Sequence[Picture], sites: Sequence[str], line: Callable[[_Row], str], edition: Edition
) -> bytes:
    rng = edition.rng
    rows = list(_rows(pictures, sites, damages(len(pictures), OF_TSV, rng), rng))
    lines: list[bytes] = []
    for picture, row in zip(pictures, rows, strict=True):
        data = line(row).encode()
        if row.damage is Damage.MISSING_TAB:
            data = data.replace(b"\t", b" ")
        elif row.damage is Damage.INVALID_UTF8:
            data = data.replace(b" ", b" \xff\xfe", 1)
        lines.append(data + b"\n")
        edition.row(row.damage)
        if row.damage is None or row.damage in LATE:
            edition.post(picture, row.damage, row.url)
    return b"".join(lines)


def _rows(
    pictures: Sequence[Picture], sites: Sequence[str], fates: Iterable[Damage | None], rng: random.Random
) -> Iterator[_Row]:
    for picture, damage in zip(pictures, fates, strict=True):
        name = f"{rng.getrandbits(64):016x}"
        kind = "png" if damage is None and rng.random() < 0.04 else "jpg"
        path = rng.choice(
            (
                f"/photos/{name}.{kind}",
                f"/{rng.randint(2009, 2019)}/{rng.randint(1, 12):02d}/{name[:6]}-{picture.id}.{kind}",
                f"/wp-content/uploads/{name[:8]}_({picture.id}).{kind}?w={picture.size[0]}&h={picture.size[1]}",
                f"/a%20few%20shapes/{name}.{kind}",
            )
        )
        url = "n/a" if damage is Damage.NOT_A_URL else rng.choice(sites) + path
        caption = "" if damage is Damage.EMPTY_CAPTION else rng.choice(picture.captions)
        yield _Row(url, caption, damage)


def _alt_text(caption: str, rng: random.Random) -> str:
    """The same truth as a page puts it: with a name taken out, an entity, an emoji, a TAB, or unchanged."""
    plain = caption.removesuffix(".")
    ways = (
        caption,
        plain,
        f"{plain} - photo by <PERSON>",
        f"Image of {plain[0].lower()}{plain[1:]} by <PERSON>, <PERSON> &amp; co.",
        f"&quot;{plain}&quot; | shapes &amp; colours",
        f"{plain} \N{ARTIST PALETTE}",
        f"{plain}\tStock Photo",
    )
    return rng.choices(ways, weights=(30, 30, 20, 8, 6, 4, 2))[0]
