"""One served body -> one stored picture: open within bounds, orient, shrink, encode, hash.

    body -> magic bytes -> walk the file -> bounds -> decode -> flatten -> shrink -> sRGB -> turn -> JPEG
            |              |                |         |
            not an image   cut short        too big   damaged          each of these is a Reason

The walk is ours and cheap. It reads the size before any decoder sees the file, finds the end marker (decoders
may fill a cut picture with grey), takes orientation and colour profile, and hands on what makes pixels (of a
WebP all, whose decoder looks at nothing else): EXIF blocks, comments, thumbnails and previews reach no parser
but ours, so none can attack it or be stored.
"""

import functools
import hashlib
import math
import re
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from io import BytesIO
from typing import NamedTuple

import numpy as np
import PIL
from PIL import Image, ImageCms, ImageFile, features
from PIL.GifImagePlugin import GifImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.WebPImagePlugin import WebPImageFile

from pmd.manifest import ImageSpec
from pmd.records import Reason

MAX_SIDE = 16_384  # px
# Segments, chunks or blocks in one file. Honest files have hundreds; millions of empty ones only burn time.
MAX_PARTS = 100_000
# A progressive JPEG is decoded once over for every scan, and may have thousands.
MAX_SCANNED_PIXELS = 1_000_000_000
MAX_PROFILE = 4 << 20  # bytes


@dataclass(frozen=True)
class Picture:
    """An image as stored, and what is worth knowing of the one served. Sizes in px, after turning upright."""

    jpeg: bytes
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
    kind = _recognise(body)
    if isinstance(kind, Reason):
        return kind
    file = kind.walk(body)
    if isinstance(file, Reason):
        return file
    if not _in_bounds(file.width, file.height, spec):
        return Reason.DECODE_LIMIT
    target = _target(file.width, file.height, spec)
    if not _in_bounds(*target, spec):  # a sliver, enlarged
        return Reason.DECODE_LIMIT
    try:
        image = _decode(kind, file, target)
    # Decoders answer hostile bytes with nearly any exception (SyntaxError, struct.error, MemoryError), and
    # whichever it is, it says one thing.
    except Exception:
        return Reason.DECODE_FAILED

    image = _in_srgb(_shrink(image, target), file.profile)
    turn = _TURNS.get(_orientation(file.exif))
    width, height = file.width, file.height
    if turn is not None:
        image = image.transpose(turn)
        if turn in _SIDEWAYS:
            width, height = height, width
    if rotation and rotation % 360:
        image = image.transpose(_ROTATIONS[rotation % 360])
        if rotation % 180:
            width, height = height, width
    jpeg = _encode(image, spec.quality)
    return Picture(
        jpeg=jpeg,
        width=image.width,
        height=image.height,
        original_width=width,
        original_height=height,
        mime=kind.mime,
        sha256=hashlib.sha256(body).hexdigest(),
        stored_sha256=hashlib.sha256(jpeg).hexdigest(),
        phash=_phash(image),
    )


def versions() -> dict[str, str]:
    """The libraries that decide a picture's bytes. Another version of one may give other bytes."""
    parts = ("libjpeg_turbo", "zlib_ng", "webp", "littlecms2")
    return {"pillow": PIL.__version__} | {part: str(features.version(part)) for part in parts}


# What it is, by its first bytes


def _recognise(body: bytes) -> "_Kind | Reason":
    """The format we decode; else UNSUPPORTED_FORMAT for another image format, NOT_AN_IMAGE for the rest."""
    for kind in _KINDS:
        if kind.magic.match(body):
            return kind
    return Reason.UNSUPPORTED_FORMAT if _OTHER_IMAGE.match(body) or _is_svg(body) else Reason.NOT_AN_IMAGE


_OTHER_IMAGE = re.compile(
    rb"II\*\0|MM\0\*|II\+\0|MM\0\+"  # TIFF, BigTIFF
    rb"|II\xbc|II\x1a\0\0\0HEAPCCDR"  # JPEG XR, CRW
    rb"|BM.{12}[\x0c\x28\x34\x38\x40\x6c\x7c]\0\0\0"  # BMP and the sizes its second header may have
    rb"|\x00\x00[\x01\x02]\x00[^\x00]"  # ICO, CUR
    rb"|.{4}ftyp(?:avi[fs]|hei[cmsx]|hev[cmsx]|mi[af]1|msf1|crx )"  # AVIF, HEIC, CR3
    rb"|\0\0\0\x0cjP  |\xff\x4f\xff\x51"  # JPEG 2000
    rb"|\0\0\0\x0cJXL |\xff\x0a"  # JPEG XL
    rb"|8BPS|%PDF-|%!PS|\xc5\xd0\xd3\xc6"  # PSD, PDF, PostScript, EPS
    rb"|\x8aMNG|\x8bJNG|icns|DDS |qoif|FLIF|BPG\xfb|BLP[12]|gimp xcf"
    rb"|\x01\xda[\x00\x01][\x01\x02]|\x59\xa6\x6a\x95|\xd7\xcd\xc6\x9a"  # SGI, Sun raster, WMF
    rb"|\x0a[\x00-\x05]\x01[\x01\x02\x04\x08]|P[1-7Ff]\s|/\* XPM|#define \w{1,80}_width",  # PCX, PNM, XPM
    re.DOTALL,
)


def _is_svg(body: bytes) -> bool:
    head = body[:4096].removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    if not head.startswith((b"<svg", b"<?xml", b"<!doctype svg", b"<!--")):
        return False
    return b"<svg" in head and b"<html" not in head


# Walk the file. One function a format: size, completeness, metadata, and the part that makes pixels


class _File(NamedTuple):
    """A complete file, with nothing decoded yet."""

    pixels: bytes  # the file again, without what its first frame does not need
    width: int
    height: int
    exif: bytes = b""
    profile: bytes = b""  # ICC


# FF and a code. FF 00 is a byte FF of a scan, FF D0-D7 are its restart markers, FF FF is filling.
_JPEG_MARKER = re.compile(rb"\xff([^\x00\xff\xd0-\xd7])")
_SOI, _EOI, _SOS, _TEM, _COM = 0xD8, 0xD9, 0xDA, 0x01, 0xFE
_APP0, _APP1, _APP2, _APP14, _APP15 = 0xE0, 0xE1, 0xE2, 0xEE, 0xEF
_SOF = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}


def _walk_jpeg(body: bytes) -> _File | Reason:
    """Segments up to the end marker; whatever lies behind it (a motion photo, a preview) is not the image."""
    kept, scans, scans_from = [body[:2]], 0, 0
    width = height = 0
    exif, profile = b"", dict[int, bytes]()
    at = 2
    for _ in range(MAX_PARTS):
        marker = _JPEG_MARKER.search(body, at)
        if marker is None:
            return Reason.BODY_TRUNCATED
        code, at = marker[1][0], marker.end()
        if code == _EOI:
            if not scans:
                return Reason.DECODE_FAILED
            if scans * width * height > MAX_SCANNED_PIXELS:
                return Reason.DECODE_LIMIT
            kept.append(body[scans_from:at])
            ordered = b"".join(profile[part] for part in sorted(profile))
            return _File(b"".join(kept), width, height, exif, ordered)
        if code in (_SOI, _TEM):  # the two others without a length
            continue
        length = int.from_bytes(body[at : at + 2], "big")
        if at + max(length, 2) > len(body):
            return Reason.BODY_TRUNCATED
        if length < 2:
            return Reason.DECODE_FAILED
        segment, at = body[at + 2 : at + length], at + length
        if code in _SOF:
            height, width = int.from_bytes(segment[1:3], "big"), int.from_bytes(segment[3:5], "big")
        elif code == _SOS:
            scans_from = scans_from or marker.start()
            scans += 1
        elif code == _APP1 and segment.startswith(b"Exif\0"):
            exif = exif or segment[6:]
        elif code == _APP2 and segment.startswith(b"ICC_PROFILE\0") and len(segment) > 14:
            profile[segment[12]] = segment[14:]
        # Of the application's segments, JFIF and Adobe say how colours are coded; the others are metadata.
        application = _APP0 <= code <= _APP15 or code == _COM
        colours = (code == _APP0 and segment.startswith(b"JFIF\0")) or (
            code == _APP14 and segment.startswith(b"Adobe")
        )
        if not scans and (colours or not application):
            kept.append(body[marker.start() : at])
    return Reason.DECODE_LIMIT


_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"


def _walk_png(body: bytes) -> _File | Reason:
    """Chunks up to IEND. The decoder does not check the sums of all that it reads; here it is done."""
    kept = [_PNG_SIGNATURE]
    width = height = 0
    exif = profile = b""
    at = len(_PNG_SIGNATURE)
    for _ in range(MAX_PARTS):
        length = int.from_bytes(body[at : at + 4], "big")
        end = at + 12 + length
        if at + 12 > len(body) or end > len(body):
            return Reason.BODY_TRUNCATED
        kind = body[at + 4 : at + 8]
        sound = zlib.crc32(body[at + 4 : end - 4]) == int.from_bytes(body[end - 4 : end], "big")
        # A capital letter first: without this chunk there is no picture. tRNS is colours too.
        if kind[0] < ord("a") or kind == b"tRNS":
            if not sound:
                return Reason.DECODE_FAILED
            kept.append(body[at:end])
        if kind == b"IHDR":
            width, height = (int.from_bytes(body[at + part : at + part + 4], "big") for part in (8, 12))
        elif kind == b"eXIf" and sound:
            exif = body[at + 8 : end - 4]
        elif kind == b"iCCP" and sound:
            profile = _inflated_profile(body[at + 8 : end - 4])
        elif kind == b"IEND":
            return _File(b"".join(kept), width, height, exif, profile)
        at = end
    return Reason.DECODE_LIMIT


def _inflated_profile(chunk: bytes) -> bytes:
    """name, 0, method 0, zlib stream; empty where it is not that, or larger than any profile."""
    _, _, packed = chunk.partition(b"\0")
    inflater = zlib.decompressobj()
    try:
        profile = inflater.decompress(packed[1:], MAX_PROFILE)
    except zlib.error:
        return b""
    return profile if inflater.eof else b""


def _walk_webp(body: bytes) -> _File | Reason:
    """The RIFF chunks; its length is in its head."""
    end = 8 + int.from_bytes(body[4:8], "little")
    if end > len(body):
        return Reason.BODY_TRUNCATED
    width = height = 0
    exif = profile = b""
    at = 12
    for _ in range(MAX_PARTS):
        if at + 8 > end:
            return _File(body[:end], width, height, exif, profile)
        kind, length = body[at : at + 4], int.from_bytes(body[at + 4 : at + 8], "little")
        at += 8
        chunk, at = body[at : min(at + length, end)], at + length + length % 2
        if kind == b"VP8X":
            width = 1 + int.from_bytes(chunk[4:7], "little")
            height = 1 + int.from_bytes(chunk[7:10], "little")
        elif kind == b"VP8 " and not width:  # lossy: after its frame tag and start code
            width = int.from_bytes(chunk[6:8], "little") & 0x3FFF
            height = int.from_bytes(chunk[8:10], "little") & 0x3FFF
        elif kind == b"VP8L" and not width:  # lossless: two numbers of 14 bits
            bits = int.from_bytes(chunk[1:5], "little")
            width, height = 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
        elif kind == b"EXIF":
            exif = chunk.removeprefix(b"Exif\0\0")
        elif kind == b"ICCP":
            profile = chunk
    return Reason.DECODE_LIMIT


def _walk_gif(body: bytes) -> _File | Reason:
    """Blocks up to the trailer; only the first frame is handed on, with its own control block."""
    if len(body) < 13:
        return Reason.BODY_TRUNCATED
    width, height = int.from_bytes(body[6:8], "little"), int.from_bytes(body[8:10], "little")
    at = 13 + _gif_colours(body[10])
    head, control, frame = body[:at], b"", b""
    for _ in range(MAX_PARTS):
        start, kind = at, body[at : at + 1]
        if kind == b";":
            if not frame:
                return Reason.DECODE_FAILED
            return _File(head + frame + b";", width, height)
        if kind == b"!":
            at = _after_gif_blocks(body, at + 2)
            if body[start + 1 : start + 2] == b"\xf9":
                control = body[start:at]
        elif kind == b",":
            place = [int.from_bytes(body[at + part : at + part + 2], "little") for part in (1, 3, 5, 7)]
            flags = body[at + 9] if at + 9 < len(body) else 0
            at = _after_gif_blocks(body, at + 11 + _gif_colours(flags))
            if not frame:
                frame = control + body[start:at]
                # A frame may lie partly outside; the decoder then widens the canvas.
                width, height = max(width, place[0] + place[2]), max(height, place[1] + place[3])
        elif kind == b"\0":  # some writers leave one between two blocks
            at += 1
        elif kind:
            return Reason.DECODE_FAILED
        if at >= len(body):
            return Reason.BODY_TRUNCATED
    return Reason.DECODE_LIMIT


def _gif_colours(flags: int) -> int:
    """The bytes of the colour table that follows a byte of flags."""
    return 3 << ((flags & 7) + 1) if flags & 0x80 else 0


def _after_gif_blocks(body: bytes, at: int) -> int:
    """Where a row of data blocks ends: each begins with its length, the last is empty."""
    while at < len(body) and body[at]:
        at += 1 + body[at]
    return at + 1


class _Kind(NamedTuple):
    """A format that is decoded."""

    magic: re.Pattern[bytes]
    mime: str
    walk: Callable[[bytes], _File | Reason]
    # The decoder itself rather than Image.open: no other decoder can be reached, and no process-wide limit or
    # warning filter decides.
    decoder: Callable[[BytesIO], ImageFile.ImageFile]


_KINDS = (
    _Kind(re.compile(rb"\xff\xd8\xff"), "image/jpeg", _walk_jpeg, JpegImageFile),
    _Kind(re.compile(re.escape(_PNG_SIGNATURE)), "image/png", _walk_png, PngImageFile),
    _Kind(re.compile(rb"RIFF.{4}WEBPVP8[ LX]", re.DOTALL), "image/webp", _walk_webp, WebPImageFile),
    _Kind(re.compile(rb"GIF8[79]a"), "image/gif", _walk_gif, GifImageFile),
)


# Pixels


def _in_bounds(width: int, height: int, spec: ImageSpec) -> bool:
    return max(width, height) <= MAX_SIDE and width * height <= spec.max_pixels


def _decode(kind: _Kind, file: _File, target: tuple[int, int]) -> Image.Image:
    """Opaque pixels in mode L, RGB or CMYK; a JPEG's perhaps fewer, but twice the target each way."""
    image = kind.decoder(BytesIO(file.pixels))
    if image.size != (file.width, file.height):  # then the bounds were checked for nothing
        raise ValueError(f"decodes to {image.size} px, its header says {file.width, file.height}")
    # A JPEG decodes at 1/2, 1/4 or 1/8 for a fraction of the time; twice the target stays for the filter.
    image.draft(None, (2 * target[0], 2 * target[1]))
    image.load()
    return _flatten(image)


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


def _target(width: int, height: int, spec: ImageSpec) -> tuple[int, int]:
    """The stored size of an image of this size. The modes mean what they mean in img2dataset."""
    if spec.resize_mode == "no":
        return width, height
    side = min(width, height) if spec.resize_mode == "keep_ratio" else max(width, height)
    if not side or (side <= spec.image_size and spec.only_if_bigger):
        return width, height
    # Whole numbers, halves upward: floats would leave it to the machine.
    scaled = [(2 * length * spec.image_size + side) // (2 * side) for length in (width, height)]
    return max(1, scaled[0]), max(1, scaled[1])


def _shrink(image: Image.Image, target: tuple[int, int]) -> Image.Image:
    if image.size == target:
        return image
    return image.resize(target, Image.Resampling.LANCZOS, reducing_gap=2.0)


def _in_srgb(image: Image.Image, profile: bytes) -> Image.Image:
    """RGB as screens show it. A damaged or unfitting profile is as good as none."""
    if profile and (transform := _to_srgb(profile, image.mode)):
        return transform.apply(image)
    return image.convert("RGB")


@functools.lru_cache(maxsize=16)  # a web of pictures has few profiles; 16 of the largest are 64 MiB
def _to_srgb(profile: bytes, mode: str) -> ImageCms.ImageCmsTransform | None:
    if len(profile) > MAX_PROFILE:
        return None
    try:
        source = ImageCms.ImageCmsProfile(BytesIO(profile))
        if "sRGB" in ImageCms.getProfileDescription(source):
            return None
        transform = ImageCms.buildTransform(source, ImageCms.createProfile("sRGB"), mode, "RGB")
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
        return None
    assert isinstance(transform, ImageCms.ImageCmsTransform)
    return transform


_TURNS = {
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
_SIDEWAYS = {_TURNS[orientation] for orientation in (5, 6, 7, 8)}


def _orientation(exif: bytes) -> int:
    """Tag 0x0112 of the first directory, 1 to 8; 1 where it is missing or damaged."""
    if exif[:2] not in (b"II", b"MM"):
        return 1

    def number(at: int, size: int) -> int:
        return int.from_bytes(exif[at : at + size], "little" if exif[:2] == b"II" else "big")

    entries = number(4, 4) + 2
    for entry in range(entries, min(entries + 12 * number(entries - 2, 2), len(exif) - 11), 12):
        if number(entry, 2) == 0x0112:
            value = number(entry + 8, 4 if number(entry + 2, 2) == 4 else 2)
            return value if value in _TURNS else 1
    return 1


def _encode(image: Image.Image, quality: int) -> bytes:
    image.info.clear()  # Pillow writes a comment found here into the file
    out = BytesIO()
    image.save(out, "JPEG", quality=quality, subsampling="4:2:0", optimize=False, progressive=False)
    return out.getvalue()


# Looks


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
