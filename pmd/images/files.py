"""What a body is, by its first bytes, and a walk over the file that needs no decoder.

    body --recognise--> Kind --its walk--> File: size, EXIF, colour profile, the bytes that make pixels

The walk reads the size before any decoder sees the file, finds the end marker (decoders may fill a cut
picture with grey), and leaves out what makes no pixels (of a WebP nothing, whose decoder looks at nothing
else): EXIF blocks, comments, thumbnails and previews reach no parser but ours, so none can attack it or
be stored.
"""

import re
import zlib
from collections.abc import Callable
from io import BytesIO
from typing import NamedTuple

from PIL import ImageFile
from PIL.GifImagePlugin import GifImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.WebPImagePlugin import WebPImageFile

from pmd.records import Reason

# Segments, chunks or blocks in one file. Honest files have hundreds; millions of empty ones only burn time.
MAX_PARTS = 100_000
# A progressive JPEG is decoded once over for every scan, and may have thousands.
MAX_SCANNED_PIXELS = 1_000_000_000
MAX_PROFILE = 4 << 20  # bytes


def recognise(body: bytes) -> "Kind | Reason":
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


class File(NamedTuple):
    """A complete file, with nothing decoded yet."""

    pixels: bytes  # the file again, without what its first frame does not need
    width: int
    height: int
    exif: bytes = b""
    profile: bytes = b""  # ICC
    storable: bool = False  # a JPEG of a usual kind: `pixels` is fit to be stored, without metadata


# FF and a code. FF 00 is a byte FF of a scan, FF D0-D7 are its restart markers, FF FF is filling.
_JPEG_MARKER = re.compile(rb"\xff([^\x00\xff\xd0-\xd7])")
_SOI, _EOI, _SOS, _TEM, _COM = 0xD8, 0xD9, 0xDA, 0x01, 0xFE
_APP0, _APP1, _APP2, _APP14, _APP15 = 0xE0, 0xE1, 0xE2, 0xEE, 0xEF
_SOF = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}
_TABLES = {0xC4, 0xCC, 0xDB, 0xDD}  # Huffman, arithmetic, quantisation; the restart interval
# Baseline, extended, progressive; of 8 bits; grey or three colours. Not every reader knows the rest.
_USUAL_FRAME = re.compile(rb"[\xc0-\xc2]\x08.{4}[\1\3]", re.DOTALL)
_JFIF = b"\xff\xe0\0\x10JFIF\0\1\1\0\0\1\0\1\0\0"  # 1.1, no density, no thumbnail


def _walk_jpeg(body: bytes) -> File | Reason:
    """Segments up to the end marker; whatever lies behind it (a motion photo, a preview) is not the image."""
    kept, scans = [body[:2]], 0
    copied = 0  # once there is a scan: what lies before is in kept
    width = height = 0
    exif, profile = b"", dict[int, bytes]()
    storable = True
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
            kept.append(body[copied:at])
            ordered = b"".join(profile[part] for part in sorted(profile))
            return File(b"".join(kept), width, height, exif, ordered, storable)
        if code in (_SOI, _TEM):  # the two others without a length
            storable = False
            continue
        length = int.from_bytes(body[at : at + 2], "big")
        if at + max(length, 2) > len(body):
            return Reason.BODY_TRUNCATED
        if length < 2:
            return Reason.DECODE_FAILED
        segment, at = body[at + 2 : at + length], at + length
        if code in _SOF:
            height, width = int.from_bytes(segment[1:3], "big"), int.from_bytes(segment[3:5], "big")
            storable = storable and _USUAL_FRAME.match(marker[1] + segment) is not None
        elif code == _SOS:
            copied = copied or marker.start()
            scans += 1
        elif code == _APP1 and segment.startswith(b"Exif\0"):
            exif = exif or segment[6:]
        elif code == _APP2 and segment.startswith(b"ICC_PROFILE\0") and len(segment) > 14:
            profile[segment[12]] = segment[14:]
        application = _APP0 <= code <= _APP15 or code == _COM
        if not application:
            storable = storable and code in {*_SOF, *_TABLES, _SOS}
        if application and scans:  # between two scans
            kept.append(body[copied : marker.start()])
            copied = at
        elif not scans:
            kept.append(_colours(code, segment) if application else body[marker.start() : at])
    return Reason.DECODE_LIMIT


def _colours(code: int, segment: bytes) -> bytes:
    """Of the application's segments, JFIF and Adobe say how colours are coded; the others are metadata."""
    if code == _APP0 and segment.startswith(b"JFIF\0") and len(segment) >= 14:
        return _JFIF
    if code == _APP14 and segment.startswith(b"Adobe") and len(segment) >= 12:
        return b"\xff\xee\0\x0e" + segment[:12]
    return b""


_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"


def _walk_png(body: bytes) -> File | Reason:
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
            return File(b"".join(kept), width, height, exif, profile)
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


def _walk_webp(body: bytes) -> File | Reason:
    """The RIFF chunks; its length is in its head."""
    end = 8 + int.from_bytes(body[4:8], "little")
    if end > len(body):
        return Reason.BODY_TRUNCATED
    width = height = 0
    exif = profile = b""
    at = 12
    for _ in range(MAX_PARTS):
        if at + 8 > end:
            return File(body[:end], width, height, exif, profile)
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


def _walk_gif(body: bytes) -> File | Reason:
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
            return File(head + frame + b";", width, height)
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


class Kind(NamedTuple):
    """A format that is decoded."""

    magic: re.Pattern[bytes]
    mime: str
    walk: Callable[[bytes], File | Reason]
    # The decoder itself rather than Image.open: no other decoder can be reached, and no process-wide limit or
    # warning filter decides.
    decoder: Callable[[BytesIO], ImageFile.ImageFile]


_KINDS = (
    Kind(re.compile(rb"\xff\xd8\xff"), "image/jpeg", _walk_jpeg, JpegImageFile),
    Kind(re.compile(re.escape(_PNG_SIGNATURE)), "image/png", _walk_png, PngImageFile),
    Kind(re.compile(rb"RIFF.{4}WEBPVP8[ LX]", re.DOTALL), "image/webp", _walk_webp, WebPImageFile),
    Kind(re.compile(rb"GIF8[79]a"), "image/gif", _walk_gif, GifImageFile),
)


# Metadata


def orientation(exif: bytes) -> int:
    """Tag 0x0112 of the first directory, 1 to 8; 1 where it is missing or damaged."""
    if exif[:2] not in (b"II", b"MM"):
        return 1

    def number(at: int, size: int) -> int:
        return int.from_bytes(exif[at : at + size], "little" if exif[:2] == b"II" else "big")

    entries = number(4, 4) + 2
    for entry in range(entries, min(entries + 12 * number(entries - 2, 2), len(exif) - 11), 12):
        if number(entry, 2) == 0x0112:
            value = number(entry + 8, 4 if number(entry + 2, 2) == 4 else 2)
            return value if 1 <= value <= 8 else 1
    return 1
