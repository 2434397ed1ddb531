"""RedCaps: images from 350 subreddits with the titles of their posts, as one JSON file a subreddit and year.

    annotations/abandoned_2017.json, plain or as one of the 1,391 members of redcaps_v1.0_annotations.zip
        {"info": {"start_date": ..., "end_date": ..., ...},
         "annotations": [{"image_id": "grraj", "url": "https://i.imgur.com/DXOdR.jpg",
                          "caption": "my personal abandoned school ...", "raw_caption": "My personal ...",
                          "subreddit": "abandoned", "created_utc": 1302998814, "score": 2,
                          "author": "None", "permalink": "/r/abandoned/comments/grraj/..."}]}

Rows are the annotations. Some files have none: they are read, and have no rows. Damaged JSON is read as far
as it goes, and its unreadable rest is one more row.

A few rows name several images: addresses with spaces between them, or ids at Imgur with commas. Of these the
first image is taken, as PMD has one a row; every other address is kept as published. Who posted an image, and
where, are personal data and left out, unless a corpus file asks for them.
"""

import re
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import orjson

from pmd.records import Caption, Reason, Record, Rejected, meta_json, native_key
from pmd.sources.flickr import photo_id
from pmd.sources.json_lists import BLOCK_BYTES, elements
from pmd.sources.lines import is_url, no_url
from pmd.sources.part import Part, Unreadable, blocks, excerpt, head, is_zip, zip_members
from pmd.sources.rules import Rules as _Rules

FORM = "annotations json"
ZIP = "annotations zip"


class Rules(_Rules):
    # Which of a row's two texts. `caption` is what the publishers made of the title, and what they train on:
    # in lower case and ASCII, without brackets and sizes in pixels, names of users masked. Which one FLAVA
    # took is not said; HuggingFaceM4's rebuild of facebook/pmd takes `raw_caption`.
    caption: Literal["caption", "raw_caption"] = "caption"
    # Keep the name of who posted an image, and the address of the post. Neither the FLAVA paper nor a
    # trainer needs them, and the publishers take opt-outs: off.
    attribution: bool = False


def recognise(path: Path) -> str | None:
    if is_zip(str(path)):
        some = islice(_members(path), _MEMBERS_SEEN)
        return ZIP if any(_is_annotations(head(str(path), name)) for name in some) else None
    return FORM if _is_annotations(head(str(path))) else None


def parts(paths: Sequence[Path]) -> list[Part]:
    """One part a JSON file, those of a zip in its order."""
    found: list[Part] = []
    for path in paths:
        members = _members(path) if is_zip(str(path)) else []
        found += [Part(str(path), FORM, name) for name in members] or [Part(str(path), FORM)]
    return found


def read(part: Part, rules: Rules) -> Iterator[Record | Rejected]:
    row = 0
    try:
        for _, annotation in elements(blocks(part, BLOCK_BYTES), "annotations"):
            yield _annotated(row, annotation, rules)
            row += 1
    except Unreadable as error:
        yield Rejected(row, Reason.INPUT_MALFORMED, str(error))


# --- which form a file is in ---

_LIST = re.compile(rb'"annotations"\s*:\s*\[')
_IMAGE_ID = re.compile(rb'"image_id"\s*:\s*"[0-9a-z]+"')  # COCO's are numbers
_SUBREDDIT = re.compile(rb'"subreddit"\s*:\s*"')
# Here a name counts: each of 1,391 members would have to be looked for in the zip's list of them.
_MEMBER = re.compile(r"(?:^|/)[0-9A-Za-z]\w*_20[0-9]{2}\.json\Z")
_MEMBERS_SEEN = 64


def _members(path: Path) -> list[str]:
    return [name for name in zip_members(str(path)) if _MEMBER.search(name)]


def _is_annotations(beginning: bytes) -> bool:
    if not beginning.lstrip().startswith(b"{") or not _LIST.search(beginning):
        return False
    if _IMAGE_ID.search(beginning) and _SUBREDDIT.search(beginning):
        return True
    return _is_empty(beginning)


def _is_empty(content: bytes) -> bool:
    """Is this a whole file without annotations?

    `{"annotations": []}` may be anybody's, and is taken for one: it gives no rows to any source, and refusing
    it would refuse a subreddit's folder. An `info`, where there is one, must be of RedCaps.
    """
    try:
        whole = orjson.loads(content)
    except ValueError:
        return False
    info = whole.pop("info", {"start_date": None})
    return whole == {"annotations": []} and isinstance(info, dict) and "start_date" in info


# --- a row ---

_ID = re.compile(r"[0-9a-z]{1,16}\Z")  # Reddit's number of a post, to the base of 36
_AT_FLICKR = re.compile(r"https?://(?:[a-z0-9-]+\.)*(?:staticflickr|static\.flickr)\.com/[^?#]*")


def _annotated(row: int, fields: Any, rules: Rules) -> Record | Rejected:
    if not isinstance(fields, dict):
        return Rejected(row, Reason.INPUT_MALFORMED, f"expected an object, found {excerpt(fields)}")
    text = fields.get(rules.caption)
    if text is None or (isinstance(text, str) and not text.strip()):
        return Rejected(row, Reason.INPUT_NO_CAPTION, f"expected a {rules.caption}, found {excerpt(text)}")
    if not isinstance(text, str):
        return Rejected(row, Reason.INPUT_MALFORMED, f"expected a {rules.caption}, found {excerpt(text)}")
    image_id = _string(fields, "image_id")
    if not _ID.match(image_id):
        found = excerpt(fields.get("image_id"))
        return Rejected(row, Reason.INPUT_MALFORMED, f"expected an image_id of 0-9 and a-z, found {found}")
    url = _first_image(_string(fields, "url"))
    if not is_url(url):
        return no_url(row, url)
    at_flickr = _AT_FLICKR.match(url)
    created = fields.get("created_utc")
    meta = meta_json(
        created_utc=created if type(created) is int else None,
        flickr_photo_id=photo_id(at_flickr[0]) if at_flickr else None,
        reddit_id=image_id,
        subreddit=_string(fields, "subreddit") or None,
    )
    attribution = _attribution(fields) if rules.attribution else None
    return Record(
        native_key("redcaps", image_id), url, (Caption(text, row),), attribution=attribution, meta=meta
    )


def _attribution(fields: dict[str, Any]) -> str | None:
    """Who posted an image, and where, as far as that is known."""
    author, permalink = _string(fields, "author"), _string(fields, "permalink")
    known = [f"u/{author}"] if author and author != "None" else []  # so published where it was deleted
    known += [f"https://www.reddit.com{permalink}"] if permalink.startswith("/") else []
    return ", ".join(known) or None


def _string(fields: dict[str, Any], name: str) -> str:
    """A field that is a string; empty for anything else."""
    value = fields.get(name)
    return value if isinstance(value, str) else ""


# --- rows that name several images ---

_ADDRESS = re.compile(r"http\S+")
# http://imgur.com/aBc12,dEf34 or, without an address, aBc12,dEf34
_IMGUR_LIST = re.compile(
    r"(?:https?://(?:[a-z0-9-]+\.)*imgur\.com/\S*,|[0-9A-Za-z]{5,8}(?:\.\w+)?,[0-9A-Za-z])"
)


def _first_image(published: str) -> str:
    found = _ADDRESS.search(published)
    address = found[0] if found else published.strip()
    return _first_at_imgur(address) if _IMGUR_LIST.match(address) else address


def _first_at_imgur(listed: str) -> str:
    """http://imgur.com/aBc12#0,dEf34 -> http://imgur.com/aBc12.jpg, from where Imgur leads to the image."""
    for piece in listed.split(","):
        address = piece if piece.startswith("http") else f"http://i.imgur.com/{piece}"
        folder, _, name = address.partition("#")[0].rpartition("/")
        stem, _, ending = re.split("[?%]", name, maxsplit=1)[0].partition(".")
        if stem:
            return f"{folder}/{stem}.{ending or 'jpg'}"
    return listed
