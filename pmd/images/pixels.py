"""Pixels: decoded as the file means them, resized, in sRGB, upright, cut or padded, encoded.

Pillow does all of it, in whole numbers: its bytes do not depend on what a processor can do (of OpenCV's
filters the cubic one's do). OpenCV and simplejpeg decode and encode with the same library as Pillow, and
OpenCV's area filter takes about as long as Pillow's Hamming filter: tests/bench/images.py.
"""

import functools
from io import BytesIO
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageCms

from pmd.images.files import MAX_PROFILE, File, Kind
from pmd.manifest import ImageSpec

Size = tuple[int, int]  # width, height; px
MAX_SIDE = 16_384  # px
MAX_WEBP_SIDE = 16_383  # of the format


class Layout(NamedTuple):
    """How an image of some size is stored."""

    scaled: Size  # as served, not turned
    filter: Image.Resampling
    square: int | None = None  # px of the side that it is then cut or padded to; None: not at all

    @property
    def stored(self) -> Size:
        """Not turned either."""
        return self.scaled if self.square is None else (self.square, self.square)

    def in_bounds(self, spec: ImageSpec) -> bool:
        """A sliver, enlarged, is long; and a square may be more than what it is made of."""
        side = MAX_WEBP_SIDE if spec.encode_format == "webp" else MAX_SIDE
        return all(
            max(size) <= side and size[0] * size[1] <= spec.max_pixels for size in (self.scaled, self.stored)
        )


def layout(width: int, height: int, spec: ImageSpec) -> Layout:
    """The modes mean what they mean in img2dataset, to the pixel."""
    unchanged = Layout((width, height), _FILTERS[spec.downscale_interpolation])
    by_shorter = spec.resize_mode in ("keep_ratio", "center_crop")
    side = min(width, height) if by_shorter else max(width, height)
    if spec.resize_mode == "no" or not side or (side <= spec.image_size and spec.only_if_bigger):
        return unchanged
    # Its own arithmetic, halves to even: of doubles, which are the same on every machine.
    scale = spec.image_size / side
    scaled = max(1, round(width * scale)), max(1, round(height * scale))
    shrunk = side > spec.image_size
    name = spec.downscale_interpolation if shrunk else spec.upscale_interpolation
    square = spec.image_size if spec.resize_mode in ("center_crop", "border") else None
    return Layout(scaled, _FILTERS[name], square)


_FILTERS = {
    "nearest": Image.Resampling.NEAREST,
    "linear": Image.Resampling.BILINEAR,
    "cubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
    # The nearest to OpenCV's INTER_AREA: 46 dB on photos. Pillow's BOX, which counts no part of a pixel: 35.
    "area": Image.Resampling.HAMMING,
}


# From the file


def decode(kind: Kind, file: File, shape: Layout) -> Image.Image:
    """Opaque pixels in mode L, RGB or CMYK; a JPEG's perhaps fewer, but twice the scaled size each way.

    Raises nearly anything where the file is damaged.
    """
    image = kind.decoder(BytesIO(file.pixels))
    if image.size != (file.width, file.height):  # then the bounds were checked for nothing
        raise ValueError(f"decodes to {image.size} px, its header says {file.width, file.height}")
    # A JPEG decodes at 1/2, 1/4 or 1/8 for a fraction of the time; twice the size stays for the filter.
    if shape.filter is not Image.Resampling.NEAREST:  # which takes pixels as they are
        image.draft(None, (2 * shape.scaled[0], 2 * shape.scaled[1]))
    image.load()
    if kind.mime == "image/png":
        _scale_transparency(image, depth=file.pixels[24])
    return _flatten(image)


def _scale_transparency(image: Image.Image, depth: int) -> None:
    """Pillow leaves a PNG's transparent colour in the file's depth; its pixels are of 8 bits."""
    colour = image.info.get("transparency")
    if isinstance(colour, int) and image.mode == "L" and depth < 8:
        most = (1 << depth) - 1
        image.info["transparency"] = (colour & most) * 255 // most
    elif isinstance(colour, tuple) and depth == 16:
        image.info["transparency"] = tuple(part >> 8 for part in colour)


def _flatten(image: Image.Image) -> Image.Image:
    """Transparency over white, palettes and deep greys resolved."""
    if image.mode.startswith("I"):
        return _grey_of_16_bits(image)
    grey = image.mode in ("1", "L", "LA")
    if image.has_transparency_data:
        layer = image.convert("LA" if grey else "RGBA")
        flat = Image.new("L" if grey else "RGB", image.size, "white")
        flat.paste(layer, mask=layer)
        return flat
    if image.mode in ("L", "RGB", "CMYK"):
        return image
    return image.convert("L" if grey else "RGB")


def _grey_of_16_bits(image: Image.Image) -> Image.Image:
    """By hand: Pillow's own conversion cuts at 255."""
    values = np.asarray(image).astype(np.uint32)
    greys = ((values + 128) // 257).astype(np.uint8)
    transparent = image.info.get("transparency")
    if isinstance(transparent, int):
        greys[values == transparent] = 255
    return Image.fromarray(greys)


# Size and colours


def resize(image: Image.Image, shape: Layout) -> Image.Image:
    """What was decoded at the scaled size."""
    if image.size == shape.scaled:
        return image
    return image.resize(shape.scaled, shape.filter, reducing_gap=2.0)


def in_srgb(image: Image.Image, profile: bytes) -> Image.Image:
    """RGB as screens show it."""
    if transform := to_srgb(profile, image.mode):
        return transform.apply(image)
    return image if image.mode == "RGB" else image.convert("RGB")


def to_srgb(profile: bytes, mode: str) -> ImageCms.ImageCmsTransform | None:
    """None where there is nothing to do. A damaged or unfitting profile is as good as none."""
    return _transform(profile, mode) if 0 < len(profile) <= MAX_PROFILE else None


@functools.lru_cache(maxsize=16)  # a web of pictures has few profiles; 16 of the largest are 64 MiB
def _transform(profile: bytes, mode: str) -> ImageCms.ImageCmsTransform | None:
    try:
        source = ImageCms.ImageCmsProfile(BytesIO(profile))
        if "sRGB" in ImageCms.getProfileDescription(source):
            return None
        transform = ImageCms.buildTransform(source, ImageCms.createProfile("sRGB"), mode, "RGB")
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
        return None
    assert isinstance(transform, ImageCms.ImageCmsTransform)
    return transform


# Upright and square


def turns(orientation: int, rotation: int | None) -> list[Image.Transpose]:
    """What brings an image upright: what its file says, then what its source says."""
    named = (_ORIENTATIONS.get(orientation), _ROTATIONS.get((rotation or 0) % 360))
    return [turn for turn in named if turn is not None]


_ORIENTATIONS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_ROTATIONS = {
    90: Image.Transpose.ROTATE_90,
    180: Image.Transpose.ROTATE_180,
    270: Image.Transpose.ROTATE_270,
}
SIDEWAYS = {
    Image.Transpose.TRANSPOSE,
    Image.Transpose.TRANSVERSE,
    Image.Transpose.ROTATE_90,
    Image.Transpose.ROTATE_270,
}


def squared(image: Image.Image, side: int) -> Image.Image:
    """The middle of an image that is larger; white around one that is smaller."""
    if image.size == (side, side):
        return image
    if min(image.size) >= side:
        left, top = (image.width - side) // 2, (image.height - side) // 2
        return image.crop((left, top, left + side, top + side))
    square = Image.new("RGB", (side, side), "white")
    square.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
    return square


# To the file


def encode(image: Image.Image, spec: ImageSpec) -> bytes:
    """A file with nothing in it but the picture."""
    image.info.clear()  # Pillow writes a comment or a profile found here into the file
    out = BytesIO()
    match spec.encode_format:
        case "jpg":
            image.save(
                out, "JPEG", quality=spec.quality, subsampling="4:2:0", optimize=False, progressive=False
            )
        case "png":
            image.save(out, "PNG", compress_level=spec.quality)
        case "webp" if spec.quality > 100:
            image.save(out, "WEBP", lossless=True, quality=_WEBP_EFFORT, method=4)
        case "webp":
            image.save(out, "WEBP", quality=spec.quality, method=4)
    return out.getvalue()


_WEBP_EFFORT = 70  # as OpenCV has it: more takes a multiple of the time for 1 % of the bytes
