"""What goes wrong on the way from a publisher's row to a picture, as the real files and the real web have it.

damages(200, OF_SBU, rng) -> [None, None, Damage.GONE, None, ...]     8 % of them, every kind in turn
"""

import random
import struct
import zlib
from collections.abc import Sequence
from enum import StrEnum
from typing import Literal

from PIL import Image

from pmd.records import Reason
from tests.web import Fault
from tests.world import Picture, draw, encode


class Damage(StrEnum):
    """What is wrong with a row, or with the picture that it names; or why it is not for this corpus."""

    # The row
    MISSING_TAB = "missing_tab"
    EMPTY_CAPTION = "empty_caption"  # or nothing that could be one
    NOT_A_URL = "not_a_url"
    INVALID_UTF8 = "invalid_utf8"
    BROKEN_JSON = "broken_json"  # a line that ends in the middle of its object
    NULL_ROW = "null_row"  # null among the objects of a list
    UNKNOWN_IMAGE = "unknown_image"  # an annotation of an image that is not listed
    NO_ANNOTATION = "no_annotation"  # an image that no annotation is about
    # A row as it should be, of what the corpus does not take
    FOREIGN = "foreign"  # in another language than English
    SHORT = "short"  # of one word or two, where the corpus wants three
    VIDEO = "video"
    LEFT_OUT = "left_out"  # of another split
    # The link
    NOT_FOUND = "not_found"
    GONE = "gone"
    FORBIDDEN = "forbidden"
    SERVER_ERROR = "server_error"
    RESET = "reset"
    HTML_200 = "html_200"
    REMOVED = "removed"  # a redirect to the site's own picture that says so
    # The archive
    NOT_IN_ARCHIVE = "not_in_archive"
    # The file
    TRUNCATED_JPEG = "truncated_jpeg"
    GARBAGE = "garbage"
    BOMB_HEADER = "bomb_header"  # a PNG of 2.5 billion px, by its header
    # The picture
    TINY = "tiny"  # under 32 px
    EXTREME_ASPECT = "extreme_aspect"  # longer than 20 times its shorter side


# What a corpus with min_side = 32, max_aspect = 20 must call it.
REASONS: dict[Damage, Reason] = {
    Damage.MISSING_TAB: Reason.INPUT_MALFORMED,
    Damage.EMPTY_CAPTION: Reason.INPUT_NO_CAPTION,
    Damage.NOT_A_URL: Reason.INPUT_BAD_URL,
    Damage.INVALID_UTF8: Reason.INPUT_MALFORMED,
    Damage.BROKEN_JSON: Reason.INPUT_MALFORMED,
    Damage.NULL_ROW: Reason.INPUT_MALFORMED,
    Damage.UNKNOWN_IMAGE: Reason.INPUT_NO_IMAGE,
    Damage.NO_ANNOTATION: Reason.INPUT_NO_CAPTION,
    Damage.FOREIGN: Reason.CAPTION_LANGUAGE,
    Damage.SHORT: Reason.CAPTION_SHORT,
    Damage.VIDEO: Reason.INPUT_NO_IMAGE,
    Damage.LEFT_OUT: Reason.INPUT_LEFT_OUT,
    Damage.NOT_FOUND: Reason.HTTP_404,
    Damage.GONE: Reason.HTTP_410,
    Damage.FORBIDDEN: Reason.HTTP_403,
    Damage.SERVER_ERROR: Reason.HTTP_5XX,
    Damage.RESET: Reason.CONNECT_RESET,
    Damage.HTML_200: Reason.NOT_AN_IMAGE,
    Damage.REMOVED: Reason.PLACEHOLDER,
    Damage.NOT_IN_ARCHIVE: Reason.NOT_IN_ARCHIVE,
    Damage.TRUNCATED_JPEG: Reason.BODY_TRUNCATED,
    Damage.GARBAGE: Reason.NOT_AN_IMAGE,
    Damage.BOMB_HEADER: Reason.DECODE_LIMIT,
    Damage.TINY: Reason.IMAGE_SMALL,
    Damage.EXTREME_ASPECT: Reason.IMAGE_ASPECT,
}
LINKS = {
    Damage.NOT_FOUND: Fault.NOT_FOUND,
    Damage.GONE: Fault.GONE,
    Damage.FORBIDDEN: Fault.FORBIDDEN,
    Damage.SERVER_ERROR: Fault.SERVER_ERROR,
    Damage.RESET: Fault.RESET,
    Damage.HTML_200: Fault.HTML_200,
}
OF_FILES = (
    Damage.TRUNCATED_JPEG,
    Damage.GARBAGE,
    Damage.BOMB_HEADER,
    Damage.TINY,
    Damage.EXTREME_ASPECT,
)
OF_IMAGES = (*LINKS, *OF_FILES)
# All that is found out only when the image is asked for: until then its rows are good.
LATE = frozenset({*OF_IMAGES, Damage.REMOVED, Damage.NOT_IN_ARCHIVE})
DAMAGED = 0.08  # of all images


def damages(count: int, kinds: Sequence[Damage], rng: random.Random) -> list[Damage | None]:
    """What befalls each of `count` images: every kind about as often as the others."""
    fates: list[Damage | None] = [None] * count
    for turn, place in enumerate(rng.sample(range(count), round(DAMAGED * count))):
        fates[place] = kinds[turn % len(kinds)]
    return fates


def served_file(
    picture: Picture, damage: Damage | None, form: Literal["JPEG", "PNG"] = "JPEG", *, turned: int = 0
) -> bytes:
    """The bytes that are served for a picture. turned: degrees counter-clockwise that bring it upright."""
    match damage:
        case Damage.TRUNCATED_JPEG:
            return picture.jpeg[: len(picture.jpeg) // 2]
        case Damage.GARBAGE:
            return b"\x00garbage" + random.Random(picture.id).randbytes(2000)
        case Damage.BOMB_HEADER:
            return _png_bomb(50_000, 50_000)
        case Damage.TINY | Damage.EXTREME_ASPECT:
            return encode(draw(picture.scene, size=served_size(picture, damage)))
        case _ if form == "PNG" or turned:
            return encode(lying(draw(picture.scene, picture.size), turned), form)
        case _:
            return picture.jpeg


def served_size(picture: Picture, damage: Damage | None) -> tuple[int, int]:
    """Width and height of the served picture in px, as a publisher lists them."""
    match damage:
        case Damage.TINY:
            return 24, 18
        case Damage.EXTREME_ASPECT:
            return 860, 40
        case _:
            return picture.size


def lying(image: Image.Image, turned: int) -> Image.Image:
    """The image as it must lie to be upright once it is turned so many degrees counter-clockwise."""
    clockwise = {
        90: Image.Transpose.ROTATE_270,
        180: Image.Transpose.ROTATE_180,
        270: Image.Transpose.ROTATE_90,
    }
    return image.transpose(clockwise[turned]) if turned else image


def _png_bomb(width: int, height: int) -> bytes:
    """A PNG whose header is correct and promises width x height px; hardly any follow."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(bytes(1000)))
        + chunk(b"IEND", b"")
    )
