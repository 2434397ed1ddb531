"""YFCC100M: what Flickr knows of its photos and videos, a line each, with encoded texts, packed with bzip2.

    25 columns   yfcc100m_dataset.bz2: line number, id, hash, owner, ...
    23 columns   yfcc100m_dataset-{0..9}.bz2: the same without line number and hash
    sqlite       yfcc100m_dataset.sql, which is a database; one table of the 23
    subset       yfcc100m_subset.jsonl: what FLAVA chose of them, by facebook/pmd

The photos lie in a bucket of Amazon's, under the md5 of the address that Flickr had them at. A photo is for
the corpus if its description, or else its title, is English and of more than two words.
"""

import hashlib
import json
import random
import sqlite3
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple
from urllib.parse import quote_plus

from tests.publish import flickr
from tests.publish.damage import LATE, OF_IMAGES, Damage, damages
from tests.publish.edition import Edition, bzipped
from tests.publish.languages import LANGUAGES
from tests.world import Picture, Scene

OF_PHOTOS = (*OF_IMAGES, Damage.EMPTY_CAPTION)
OF_LINES = (*OF_PHOTOS, Damage.MISSING_TAB, Damage.INVALID_UTF8)
OF_SUBSET = (*OF_PHOTOS, Damage.NOT_A_URL, Damage.BROKEN_JSON)
COLUMNS = (  # as the database has them; 25-column files have line number and hash, too
    "photoid",
    "uid",
    "unickname",
    "datetaken",
    "dateuploaded",
    "capturedevice",
    "title",
    "description",
    "usertags",
    "machinetags",
    "longitude",
    "latitude",
    "accuracy",
    "pageurl",
    "downloadurl",
    "licensename",
    "licenseurl",
    "serverid",
    "farmid",
    "secret",
    "secretoriginal",
    "ext",
    "marker",
)
BUCKET = "https://multimedia-commons.s3-us-west-2.amazonaws.com"
PARTS = 10  # of the 23-column form


class _Texts(NamedTuple):
    description: str
    title: str
    taken: str = ""  # whichever of them the corpus must take, if any


class _Row(NamedTuple):
    fields: dict[str, str]  # of COLUMNS, encoded
    texts: _Texts
    damage: Damage | None


def publish_yfcc100m(pictures: Sequence[Picture], edition: Edition) -> None:
    write = {
        "25 columns": _write_lines,
        "23 columns": _write_parts,
        "sqlite": _write_database,
        "subset": _write_subset,
    }[edition.forms.yfcc100m]
    rows = list(_rows(pictures, edition))
    write(rows, edition)


def _rows(pictures: Sequence[Picture], edition: Edition) -> Iterator[_Row]:
    """A row for each picture, and among them rows of what the corpus does not take, if the form has such."""
    rng = edition.rng
    form = edition.forms.yfcc100m
    kinds = {"sqlite": OF_PHOTOS, "subset": OF_SUBSET}.get(form, OF_LINES)
    others = (Damage.VIDEO, Damage.FOREIGN, Damage.SHORT)
    for turn, (picture, damage) in enumerate(zip(pictures, damages(len(pictures), kinds, rng), strict=True)):
        yield _row(picture, damage, edition)
        if form != "subset" and turn % 4 == 0:
            yield _row(picture, others[turn // 4 % len(others)], edition)


def _row(picture: Picture, damage: Damage | None, edition: Edition) -> _Row:
    rng = edition.rng
    texts = _texts(picture, damage, rng)
    fields = _fields(texts, video=damage is Damage.VIDEO, rng=rng)
    if damage is Damage.INVALID_UTF8:
        fields["title"] += "\udcff"  # a stray byte, once it is encoded
    edition.row(damage)
    if damage is None or damage in LATE:
        edition.post(picture, damage, address_in_bucket(fields["downloadurl"]))
    return _Row(fields, texts, damage)


def address_in_bucket(download_url: str) -> str:
    key = photo_hash(download_url)
    return f"{BUCKET}/data/images/{key[:3]}/{key[3:6]}/{key}.jpg"


def photo_hash(download_url: str) -> str:
    """The md5 in hex, each byte without a leading zero: 16 to 32 characters."""
    return "".join(f"{byte:x}" for byte in hashlib.md5(download_url.encode()).digest())


# --- what people wrote ---

CAMERAS = ("SONY CLIE", "Canon PowerShot SD450", "NIKON D90", "Couragent, Inc. Flip-Pal 100C", "")
NICKNAMES = ("jhf", "Indigo Skies Drawing", "Zoë & Max", "100% paper", "C++ artist")
FILES = ("IMG_2041.JPG", "DSC 0042", "Untitled", "", "Sketch 7")  # titles that cameras and haste give
BEFORE = (
    "I drew this at home with my children on a rainy afternoon.",
    "This is another one from my old sketchbook, which I have just found again.",
    "Please do not use this without asking me first.",
)
AFTER = (
    "",
    "\n\nThank you for looking at it, and have a nice day!",
    '\n\nSee <a href="http://www.example.com/shapes?a=1&amp;b=2" rel="nofollow">more of them on my page</a>.',
    "\n\nThe colours are <b>not</b> as good as on paper &amp; the paper was old.",
    " It is 100% my own work + a bit of luck.",
)


def _texts(picture: Picture, damage: Damage | None, rng: random.Random) -> _Texts:
    match damage:
        case Damage.EMPTY_CAPTION:
            return _Texts("", "")
        case Damage.SHORT:
            return _Texts(
                rng.choice(("", "My drawing")), rng.choice(("IMG_2041.JPG", "DSC 0042", "Sketch 7"))
            )
        case Damage.FOREIGN:
            language = rng.choice(LANGUAGES)
            title = rng.choice(("", language.about(picture.scene, rng)))
            return _Texts(language.about(picture.scene, rng), title)
        case _:
            return _english(picture, rng)


def _english(picture: Picture, rng: random.Random) -> _Texts:
    said = rng.choice(picture.captions).removesuffix(".")
    said = said[0].lower() + said[1:]
    shown = said if said.startswith("there") else f"what you can see here is {said}"
    if rng.random() < 0.6:
        description = f"{rng.choice(BEFORE)} {shown[0].upper()}{shown[1:]}.{rng.choice(AFTER)}"
        title = rng.choice((*FILES, _foreign(picture.scene, rng), shown))
        return _Texts(description, title, description)
    # Nothing that could be taken, so the title is.
    description = rng.choice(("", "", "My drawing", _foreign(picture.scene, rng)))
    title = f"This is my drawing, and {shown}"
    return _Texts(description, title, title)


def _foreign(scene: Scene, rng: random.Random) -> str:
    return rng.choice(LANGUAGES).about(scene, rng)


# --- the columns ---


def _fields(texts: _Texts, *, video: bool, rng: random.Random) -> dict[str, str]:
    photo, owner = flickr.photo(rng), flickr.account(rng)
    page = f"http://www.flickr.com/photos/{owner}/{photo.id}/"
    license = rng.choice(tuple(flickr.CREATIVE_COMMONS))
    year = 4501 if rng.random() < 0.01 else rng.randint(2001, 2014)  # 4501: a camera that was never set
    located = rng.random() < 0.5
    tags = rng.sample(("shapes", "black and white", "paper,pencil", "été", "2005"), rng.randint(0, 4))
    return {
        "photoid": str(photo.id),
        "uid": owner,
        "unickname": quote_plus(rng.choice(NICKNAMES)),
        "datetaken": f"{year}-{rng.randint(1, 12):02d}-{rng.randint(1, 28):02d} 12:39:28.0",
        "dateuploaded": str(rng.randint(1_100_000_000, 1_400_000_000)),
        "capturedevice": quote_plus(rng.choice(CAMERAS)),
        "title": quote_plus(texts.title),
        "description": quote_plus(texts.description),
        "usertags": ",".join(map(quote_plus, tags)),
        "machinetags": "",
        "longitude": f"{rng.uniform(-180, 180):.6f}" if located else "",
        "latitude": f"{rng.uniform(-80, 80):.6f}" if located else "",
        "accuracy": str(rng.randint(1, 16)) if located else "",
        "pageurl": page,
        "downloadurl": f"http://www.flickr.com/video_download.gne?id={photo.id}"
        if video
        else f"http://farm{photo.farm}.staticflickr.com/{photo.name}.jpg",
        "licensename": license,
        "licenseurl": flickr.CREATIVE_COMMONS[license],
        "serverid": str(photo.server),
        "farmid": str(photo.farm),
        "secret": photo.secret,
        "secretoriginal": photo.original_secret,
        "ext": "mp4" if video else "jpg",
        "marker": str(int(video)),
    }


# --- the forms ---


def _write_lines(rows: Sequence[_Row], edition: Edition) -> None:
    lines: list[bytes] = []
    for number, row in enumerate(rows):
        id, *others = (row.fields[name] for name in COLUMNS)
        lines.append(_line(row, [str(number), id, photo_hash(row.fields["downloadurl"]), *others]))
    edition.write("yfcc100m_dataset.bz2", bzipped(b"".join(lines)))  # Yahoo sends it on request


def _write_parts(rows: Sequence[_Row], edition: Edition) -> None:
    lines = [_line(row, [row.fields[name] for name in COLUMNS]) for row in rows]
    for part in range(PARTS):
        first, end = (len(lines) * place // PARTS for place in (part, part + 1))
        edition.write(f"yfcc100m_dataset-{part}.bz2", bzipped(b"".join(lines[first:end])))


def _line(row: _Row, fields: list[str]) -> bytes:
    line = "\t".join(fields).encode("utf-8", "surrogateescape") + b"\n"
    return line.replace(b"\thttp:", b" http:", 1) if row.damage is Damage.MISSING_TAB else line


def _write_database(rows: Sequence[_Row], edition: Edition) -> None:
    name = "yfcc100m_dataset.sql"
    edition.write(name, b"", f"{BUCKET}/tools/etc/{name}")
    database = sqlite3.connect(edition.files[-1])
    columns = ", ".join(COLUMNS).replace("photoid", "photoid integer primary key")
    database.execute(f"create table yfcc100m_dataset ({columns})")
    database.executemany(
        f"insert into yfcc100m_dataset values ({', '.join('?' * len(COLUMNS))})",
        ([row.fields[column] for column in COLUMNS] for row in rows),
    )
    database.commit()
    database.close()


def _write_subset(rows: Sequence[_Row], edition: Edition) -> None:
    lines: list[bytes] = []
    for row in rows:
        url = address_in_bucket(row.fields["downloadurl"])
        # The first alone is meant; why there may be others, nobody says.
        texts = [row.texts.taken, row.texts.title][: 1 + (len(lines) % 9 == 0)] if row.texts.taken else []
        entry: dict[str, Any] = {
            "image_url": "unavailable" if row.damage is Damage.NOT_A_URL else url,
            "image": None,
            "texts": texts,
            "source": "yfcc100m",
            "meta": json.dumps(row.fields, indent=2),
        }
        line = json.dumps(entry).encode()
        lines.append((line[: len(line) // 2] if row.damage is Damage.BROKEN_JSON else line) + b"\n")
    address = "https://huggingface.co/datasets/facebook/pmd/resolve/main/data/yfcc100m_subset.jsonl"
    edition.write("yfcc100m_subset.jsonl", b"".join(lines), address)
