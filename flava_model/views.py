"""A stored image -> the crops of it that a model sees, as pixels.

    bytes --header--> which part: the sample's region, a crop of it    (numbers alone, from a key)
          --decode, at 1/2, 1/4 or 1/8 where that is enough--> that part --resize--> views of all sizes

One decode serves all sizes, and everything that takes time lets other threads run. Pixels are bytes; to scale
them to what a model expects is the device's work. `exact` takes Pillow's filters, as the reference code does,
at several times the cost; tests/test_views.py states how far the two lie apart.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from io import BytesIO
from typing import Literal, NamedTuple

import cv2
import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from pmd.stream import keyed

Pixels = NDArray[np.uint8]  # height, width, RGB
Box = tuple[float, float, float, float]  # x, y, width, height, in shares of the image's sides

# Each batch is decoded by threads of our own: more of them within one picture only get in each other's way.
cv2.setNumThreads(1)

_JPEG = b"\xff\xd8\xff"
_ALL = (1 << 64) - 1
_CROP = 32  # purpose of keys; those below are pmd.stream's
TRIES = 10  # at a crop of the wanted area and ratio; then the largest in the middle


@dataclass(frozen=True)
class Views:
    """How images are seen: one crop, square, in one or several sizes."""

    sizes: tuple[int, ...] = (224, 112)  # px of a side, the largest first
    crop: Literal["random", "center", "whole"] = "random"  # whole: all of it, made square
    # Of a random crop: its share of the image's area, its width over its height.
    area: tuple[float, float] = (0.9, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip: float = 0.0  # how often it is mirrored
    exact: bool = False  # by Pillow's filters: bicubic, and Lanczos for the smaller sizes

    def __post_init__(self) -> None:
        if not self.sizes or min(self.sizes) < 1 or [*self.sizes] != sorted(self.sizes, reverse=True):
            raise ValueError(f"sizes {self.sizes}: at least one, the largest first")
        for name, (least, most) in (("area", self.area), ("ratio", self.ratio)):
            if not 0 < least <= most:
                raise ValueError(f"{name} {least} to {most}: above 0, the least first")
        if self.area[1] > 1 or not 0 <= self.flip <= 1:
            raise ValueError(f"area up to {self.area[1]}, flip {self.flip}: each is a share, at most 1")


_WHOLE = Views(sizes=(1 << 16,), crop="center")  # larger than any image: nothing is scaled down


class Crop(NamedTuple):
    """A part of an image, px."""

    x: int
    y: int
    width: int
    height: int
    mirrored: bool


def crop_of(width: int, height: int, views: Views, key: int, box: Box | None = None) -> Crop:
    """The part of an image of this size that is seen: a function of the key alone.

    key: keyed(seed, epoch, position). box: the region it is a part of; else the whole image.
    """
    left, top, width, height = _region(width, height, box)
    if views.crop == "whole":
        return Crop(left, top, width, height, False)
    if views.crop == "center":
        side = min(width, height)
        return Crop(left + (width - side) // 2, top + (height - side) // 2, side, side, False)
    chance = _chances(key)
    mirrored = next(chance) < views.flip
    whole, narrow, broad = width * height, math.log(views.ratio[0]), math.log(views.ratio[1])
    for _ in range(TRIES):
        # As torchvision's RandomResizedCrop: the area evenly, the ratio evenly in its logarithm.
        area = whole * _between(*views.area, next(chance))
        ratio = math.exp(_between(narrow, broad, next(chance)))
        wide, high = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < wide <= width and 0 < high <= height:
            x, y = int(next(chance) * (width - wide + 1)), int(next(chance) * (height - high + 1))
            return Crop(left + x, top + y, wide, high, mirrored)
    ratio = min(max(width / height, views.ratio[0]), views.ratio[1])
    wide, high = min(width, round(height * ratio)), min(height, round(width / ratio))
    x, y = (width - wide) // 2, (height - high) // 2
    return Crop(left + x, top + y, max(wide, 1), max(high, 1), mirrored)


def _region(width: int, height: int, box: Box | None) -> tuple[int, int, int, int]:
    """A box in px, within the image, of one px at least."""
    if box is None:
        return 0, 0, width, height
    left = min(max(round(box[0] * width), 0), width - 1)
    top = min(max(round(box[1] * height), 0), height - 1)
    right = min(max(round((box[0] + box[2]) * width), left + 1), width)
    bottom = min(max(round((box[1] + box[3]) * height), top + 1), height)
    return left, top, right - left, bottom - top


def _chances(key: int) -> Iterator[float]:
    """Numbers from 0 up to 1, as many as are asked for."""
    key = keyed(key, _CROP)
    while (
        True
    ):  # SplitMix64, as in pmd.stream.order, where it is explained; here one by one, in half the time
        key = key + 0x9E3779B97F4A7C15 & _ALL
        mixed = (key ^ key >> 30) * 0xBF58476D1CE4E5B9 & _ALL
        mixed = (mixed ^ mixed >> 27) * 0x94D049BB133111EB & _ALL
        yield (mixed >> 11 ^ mixed >> 42) * 2.0**-53


def _between(least: float, most: float, chance: float) -> float:
    return least + (most - least) * chance


def see(image: bytes, views: Views, out: Sequence[Pixels], *, key: int, box: Box | None = None) -> Crop:
    """Write an image's views into `out`, one array a size, and say which part it was.

    image: JPEG, PNG or WebP. Raises ValueError where it cannot be decoded.
    """
    pixels, scale, crop = _decoded(image, views, key, box)
    x, y = crop.x // scale, crop.y // scale
    part = pixels[y : y + max(1, crop.height // scale), x : x + max(1, crop.width // scale)]
    if views.exact:
        _resize_exactly(part, out)
    else:
        _resize(part, out)
    if crop.mirrored:
        for view in out:
            view[:] = view[:, ::-1].copy()
    return crop


def decode(image: bytes) -> Pixels:
    """The whole image, at its size. Raises ValueError where it cannot be decoded."""
    return _decoded(image, _WHOLE, 0, None)[0]


def _decoded(image: bytes, views: Views, key: int, box: Box | None) -> tuple[Pixels, int, Crop]:
    """The whole image, at 1/scale of its size; and which part of it, at full size, is seen."""
    if image[:3] == _JPEG:
        try:
            high, wide, colours, _ = simplejpeg.decode_jpeg_header(image, strict=False)
            height, width = int(high), int(wide)
            if colours in ("YCbCr", "RGB", "Gray"):
                crop = crop_of(width, height, views, key, box)
                scale = 1 if views.exact else _scale(crop, views.sizes[0])
                # Of eighths: from the smallest that has so many px on, which is the one we mean.
                least = (-(-height // scale), -(-width // scale)) if scale > 1 else (0, 0)
                pixels = simplejpeg.decode_jpeg(
                    image, "RGB", min_height=least[0], min_width=least[1], strict=False
                )
                return pixels, scale, crop
        except (ValueError, KeyError):  # KeyError: of colours that it has no name for
            pass  # Pillow reads some of what this library does not
    try:
        with Image.open(BytesIO(image), formats=("JPEG", "PNG", "WEBP")) as opened:
            whole = np.asarray(opened.convert("RGB"))
    except UnidentifiedImageError:  # its own message names an object in memory
        raise ValueError("not an image that can be decoded: neither JPEG, PNG nor WebP") from None
    # Decoders answer damaged bytes with nearly any exception.
    except Exception as error:
        raise ValueError(f"not an image that can be decoded: {error}") from None
    return whole, 1, crop_of(whole.shape[1], whole.shape[0], views, key, box)


def _scale(crop: Crop, size: int) -> int:
    """The largest of 1, 2, 4 and 8 that leaves enough pixels. Others than these have no quick way through
    libjpeg-turbo: 7/8 takes a third longer than the whole.
    """
    return next((scale for scale in (8, 4, 2) if min(crop.width, crop.height) >= size * scale), 1)


def _resize(part: Pixels, out: Sequence[Pixels]) -> None:
    largest, *smaller = out
    side = largest.shape[0]
    # A filter of fixed width leaves pixels out from twice the size on.
    shrunk = min(part.shape[:2]) >= 2 * side
    cv2.resize(part, (side, side), dst=largest, interpolation=cv2.INTER_AREA if shrunk else cv2.INTER_CUBIC)
    for view in smaller:
        cv2.resize(largest, (view.shape[1], view.shape[0]), dst=view, interpolation=cv2.INTER_AREA)


def warm_up() -> None:
    """Have this thread do once what OpenCV does at a thread's first use of it."""
    for side in (16, 48):
        _resize(
            np.zeros((side, side, 3), np.uint8), [np.zeros((size, size, 3), np.uint8) for size in (12, 6)]
        )


def _resize_exactly(part: Pixels, out: Sequence[Pixels]) -> None:
    whole = Image.fromarray(part)
    for place, view in enumerate(out):
        how = Image.Resampling.LANCZOS if place else Image.Resampling.BICUBIC
        view[:] = np.asarray(whole.resize((view.shape[1], view.shape[0]), how))
