"""One served body -> one stored picture: open within bounds, orient, resize, encode, hash.

    body -> magic bytes -> walk the file -> bounds -> decode -> flatten -> resize -> sRGB -> turn
            |              |                |         |             -> square -> JPEG, PNG or WebP
            not an image   cut short        too big   damaged          each of these is a Reason

files.py reads a file without a decoder, pixels.py does the rest.
"""

import hashlib
import math
from dataclasses import dataclass

import numpy as np
import PIL
from PIL import Image, features

from pmd.images import pixels
from pmd.images.files import File, orientation, recognise
from pmd.manifest import ImageSpec
from pmd.records import Reason


@dataclass(frozen=True)
class Picture:
    """An image as stored, and what is worth knowing of the one served. Sizes in px, after turning upright."""

    stored: bytes  # a file, in the spec's encode_format
    width: int
    height: int
    original_width: int
    original_height: int
    mime: str  # of the served bytes, by their content
    sha256: str  # of the served bytes
    stored_sha256: str
    phash: str | None  # 64 bits in 16 hex digits: near for pictures that look alike


def normalise(body: bytes, spec: ImageSpec, rotation: int | None = None) -> Picture | Reason:
    """Make the picture to store of a body as served, or say why there is none.

    rotation: degrees counter-clockwise, a multiple of 90, to turn it after what the file itself says.
    Equal bodies give equal pictures, byte for byte, under equal `versions()`. May be called from any thread.
    """
    kind = recognise(body)
    if isinstance(kind, Reason):
        return kind
    file = kind.walk(body)
    if isinstance(file, Reason):
        return file
    if max(file.width, file.height) > pixels.MAX_SIDE or file.width * file.height > spec.max_pixels:
        return Reason.DECODE_LIMIT
    shape = pixels.layout(file.width, file.height, spec)
    if not shape.in_bounds(spec):
        return Reason.DECODE_LIMIT
    try:
        image = pixels.decode(kind, file, shape)
    except MemoryError:
        return Reason.DECODE_LIMIT
    # Decoders answer hostile bytes with nearly any exception (SyntaxError, struct.error), and whichever it
    # is, it says one thing.
    except Exception:
        return Reason.DECODE_FAILED

    turns = pixels.turns(orientation(file.exif), rotation)
    keep = spec.skip_reencode and not turns and _as_it_should_be(file, shape, image, spec)
    image = pixels.in_srgb(pixels.resize(image, shape), file.profile)
    for turn in turns:
        image = image.transpose(turn)
    if shape.square is not None:
        image = pixels.squared(image, shape.square)
    sideways = sum(turn in pixels.SIDEWAYS for turn in turns) % 2 == 1
    stored = file.pixels if keep else pixels.encode(image, spec)
    return Picture(
        stored=stored,
        width=image.width,
        height=image.height,
        original_width=file.height if sideways else file.width,
        original_height=file.width if sideways else file.height,
        mime=kind.mime,
        sha256=hashlib.sha256(body).hexdigest(),
        stored_sha256=hashlib.sha256(stored).hexdigest(),
        phash=_phash(image),
    )


def _as_it_should_be(file: File, shape: pixels.Layout, image: Image.Image, spec: ImageSpec) -> bool:
    """May the served JPEG's own scans be stored: is there nothing to do to its pixels?"""
    return (
        spec.encode_format == "jpg"
        and file.storable
        and shape.stored == shape.scaled == image.size
        and pixels.to_srgb(file.profile, image.mode) is None
    )


def versions() -> dict[str, str]:
    """The libraries that decide a picture's bytes. Another version of one may give other bytes."""
    parts = ("libjpeg_turbo", "zlib_ng", "webp", "littlecms2")
    return {"pillow": PIL.__version__} | {part: str(features.version(part)) for part in parts}


def _phash(image: Image.Image) -> str:
    """The perceptual hash of 64 bits: which of a picture's 8x8 lowest frequencies lie above their median.

    In whole numbers from the pixels on, so that no rounding of a processor or a library can flip a bit.
    """
    side = _COSINES.shape[1]
    small = image.convert("L").resize((side, side), Image.Resampling.LANCZOS, reducing_gap=2.0)
    low = (_COSINES @ np.asarray(small, np.int64) @ _COSINES.T).ravel()
    middle = np.sort(low)[31:33].sum()  # twice the median
    return np.packbits(2 * low > middle).tobytes().hex()


# Rows: the 8 lowest of the 32 frequencies of a DCT-II, in units of 1/16384.
_COSINES = np.array(
    [[round(math.cos(math.pi * f * (2 * x + 1) / 64) * 16384) for x in range(32)] for f in range(8)], np.int64
)
