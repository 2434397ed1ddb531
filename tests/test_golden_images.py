"""Golden images: files of every kind that the web has, each with the pixels that must come of it.

Drawn here, some of them byte by byte, since no library writes them; stored as PNG, so that nothing but
the decoding counts. An error is in grey levels, the largest of all pixels and colours looked at.
"""

import base64
import hashlib
import struct
import zlib
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageChops, ImageOps

from pmd.images import Picture, normalise, versions
from pmd.manifest import ImageSpec
from pmd.records import Reason

PNGSUITE = Path(__file__).parents[2] / "shared" / "hostile" / "pngsuite"
EXACT = ImageSpec(resize_mode="no", max_aspect=100, encode_format="png", quality=1)
RED, GREEN, BLUE, SAND = (200, 30, 40), (20, 160, 60), (30, 50, 190), (230, 220, 170)
WHITE = (255, 255, 255)
Colour = tuple[int, ...]


def pixels(body: bytes) -> np.ndarray:
    """The stored picture of a body: rows, columns, RGB."""
    picture = normalise(body, EXACT)
    assert isinstance(picture, Picture), picture
    image = Image.open(BytesIO(picture.stored))
    assert image.mode == "RGB"
    return np.asarray(image, int)


def looks(body: bytes, *colours: Colour, error: int = 0) -> None:
    """Of a row of equal blocks: the middle of each has the colour it must have."""
    found = pixels(body)
    step = found.shape[1] // len(colours)
    middles = [found[found.shape[0] // 2, step // 2 + n * step] for n in range(len(colours))]
    assert np.abs(np.array(middles) - np.array(colours)).max() <= error, middles


def blocks(*colours: Colour, mode: str = "RGB") -> Image.Image:
    """A row of blocks of 16x16, one a colour."""
    image = Image.new(mode, (16 * len(colours), 16))
    for n, colour in enumerate(colours):
        image.paste(colour[0] if mode in ("1", "L") else colour, (16 * n, 0, 16 * n + 16, 16))
    return image


def file_of(image: Image.Image, form: str, **how: object) -> bytes:
    out = BytesIO()
    image.save(out, form, **how)
    return out.getvalue()


def png(
    samples: Sequence[Sequence[int]],
    *,
    depth: int,
    kind: int,
    transparent: bytes = b"",
    palette: bytes = b"",
    profile: bytes = b"",
) -> bytes:
    """A PNG of eight equal rows. kind: 0 grey, 2 RGB, 3 palette, 4 grey and alpha, 6 RGBA."""
    bits = "".join(format(sample, f"0{depth}b") for pixel in samples for sample in pixel)
    bits += "0" * (-len(bits) % 8)
    row = b"\0" + int(bits, 2).to_bytes(len(bits) // 8, "big")
    parts = [(b"IHDR", struct.pack(">IIBBBBB", len(samples), 8, depth, kind, 0, 0, 0))]
    parts += [(b"iCCP", b"name\0\0" + zlib.compress(profile))] if profile else []
    parts += [(b"PLTE", palette)] if palette else []
    parts += [(b"tRNS", transparent)] if transparent else []
    parts += [(b"IDAT", zlib.compress(row * 8)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))
        for name, content in parts
    )


# Upright

# Where the corners of an upright picture lie in the file, row by row, by the words of the EXIF standard:
# of orientation 6, the file's row 0 is the picture's right side, its column 0 the picture's top.
CORNERS = {1: "1234", 2: "2143", 3: "4321", 4: "3412", 5: "1324", 6: "2413", 7: "4231", 8: "3142"}
UPRIGHT = {"1": RED, "2": GREEN, "3": BLUE, "4": SAND}


def turned(orientation: int) -> Image.Image:
    """Its four quarters are red, green, blue and sand when it is upright, 48 px wide and 32 high."""
    width, height = (48, 32) if orientation < 5 else (32, 48)
    image = Image.new("RGB", (width, height))
    for corner, place in zip(CORNERS[orientation], ((0, 0), (1, 0), (0, 1), (1, 1)), strict=True):
        left, top = place[0] * width // 2, place[1] * height // 2
        image.paste(UPRIGHT[corner], (left, top, left + width // 2, top + height // 2))
    return image


@pytest.mark.parametrize("orientation", CORNERS)
@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP"])
def test_a_picture_lies_as_its_exif_says(form: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    how = {"JPEG": {"quality": 98, "subsampling": 0}, "WEBP": {"lossless": True}}.get(form, {})
    found = pixels(file_of(turned(orientation), form, exif=exif, **how))
    assert found.shape == (32, 48, 3)
    for corner, (row, column) in {"1": (8, 12), "2": (8, 36), "3": (24, 12), "4": (24, 36)}.items():
        assert np.abs(found[row, column] - UPRIGHT[corner]).max() <= (3 if form == "JPEG" else 0), corner


# Kinds of JPEG


def test_a_progressive_jpeg_is_the_same_picture_as_a_baseline_one() -> None:
    scene = ImageOps.posterize(Image.radial_gradient("L").convert("RGB"), 5)
    baseline = pixels(file_of(scene, "JPEG", quality=90))
    progressive = file_of(scene, "JPEG", quality=90, progressive=True)
    assert progressive.count(b"\xff\xda") > 3
    assert (pixels(progressive) == baseline).all()


# Red and green, 4:4:4, quality 90, from cjpeg -arithmetic.
ARITHMETIC = (
    "/9j/4AAQSkZJRgABAQAAAQABAAD/2wBDAAMCAgMCAgMDAwMEAwMEBQgFBQQEBQoHBwYIDAoMDAsKCwsNDhIQDQ4RDgsLEBYQERMU"
    "FRUVDA8XGBYUGBIUFRT/2wBDAQMEBAUEBQkFBQkUDQsNFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQU"
    "FBQUFBQUFBQUFBT/yQARCAAQACADAREAAhEBAxEB/8wACgAQEAUBEBEF/9oADAMBAAIRAxEAPwD/AMkXHgF7SMd3NulzGGhAhsc6"
    "YP/Z"
)
ARITHMETIC_PROGRESSIVE = (
    "/9j/4AAQSkZJRgABAQAAAQABAAD/2wBDAAMCAgMCAgMDAwMEAwMEBQgFBQQEBQoHBwYIDAoMDAsKCwsNDhIQDQ4RDgsLEBYQERMU"
    "FRUVDA8XGBYUGBIUFRT/2wBDAQMEBAUEBQkFBQkUDQsNFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQU"
    "FBQUFBQUFBQUFBT/ygARCAAQACADAREAAhEBAxEB/8wABgAQARD/2gAMAwEAAhADEAAAAf8AkmpZTGfocESzFNNa0i12/8wABBAF"
    "/9oACAEBAAEFAsD/zAAEEQX/2gAIAQMBAT8BwP/MAAQRBf/aAAgBAgEBPwHA/8wABBAF/9oACAEBAAY/AsD/zAAEEAX/2gAIAQEA"
    "AT8hwP/aAAwDAQACAAMAAAAQsl0r/8wABBEF/9oACAEDAQE/EMD/zAAEEQX/2gAIAQIBAT8QwP/MAAQQBf/aAAgBAQABPxDA/9k="
)


@pytest.mark.parametrize("file", [ARITHMETIC, ARITHMETIC_PROGRESSIVE], ids=["sequential", "progressive"])
def test_an_arithmetic_coded_jpeg_is_decoded(file: str) -> None:
    looks(base64.b64decode(file), RED, GREEN, error=3)


def test_a_jpeg_of_12_bits_is_refused() -> None:
    body = file_of(blocks(RED), "JPEG")
    frame = body.index(b"\xff\xc0")
    assert body[frame + 4] == 8
    deep = body[: frame + 4] + b"\x0c" + body[frame + 5 :]
    assert normalise(deep, EXACT) is Reason.DECODE_FAILED


@pytest.mark.parametrize("subsampling", ["4:4:4", "4:2:2", "4:2:0"])
def test_a_jpeg_is_decoded_whatever_its_subsampling(subsampling: str) -> None:
    looks(
        file_of(blocks(RED, GREEN, BLUE), "JPEG", quality=95, subsampling=subsampling),
        RED,
        GREEN,
        BLUE,
        error=3,
    )


def test_a_jpeg_of_rgb_is_not_taken_for_ycbcr() -> None:
    body = file_of(blocks(RED, GREEN, BLUE), "JPEG", quality=95, keep_rgb=True)
    looks(body, RED, GREEN, BLUE, error=3)


def test_a_grey_jpeg_is_grey() -> None:
    looks(file_of(blocks((0,), (77,), (255,), mode="L"), "JPEG"), (0,) * 3, (77,) * 3, WHITE, error=1)


# Ink: cyan, magenta, yellow, black; and the colours that come of it without a profile
INKS = ((0, 255, 255, 0), (255, 0, 0, 0), (0, 0, 0, 128), (40, 80, 120, 60), (0, 0, 0, 0))
ON_SCREEN = tuple(tuple(round((255 - ink) * (255 - black) / 255) for ink in inks) for *inks, black in INKS)


def test_a_cmyk_jpeg_as_adobe_writes_it_is_inverted() -> None:
    body = file_of(blocks(*INKS, mode="CMYK"), "JPEG", quality=98, subsampling=0)
    assert b"Adobe\0" in body
    looks(body, *ON_SCREEN, error=4)


def test_a_cmyk_jpeg_without_adobes_mark_is_read_as_browsers_read_it() -> None:
    body = file_of(blocks(*INKS, mode="CMYK"), "JPEG", quality=98, subsampling=0)
    mark = body.index(b"\xff\xee")
    looks(body[:mark] + body[mark + 16 :], *ON_SCREEN, error=4)


def ycck(image: Image.Image) -> bytes:
    """A CMYK image as YCCK: cyan, magenta and yellow are taken for RGB and turned into YCbCr."""
    *inks, black = image.split()
    y, cb, cr = Image.merge("RGB", inks).convert("YCbCr").split()
    # What the encoder writes is inverted once more.
    bands = [*(ImageChops.invert(band) for band in (y, cb, cr)), black]
    body = file_of(Image.merge("CMYK", bands), "JPEG", quality=98, subsampling=0)
    transform = body.index(b"Adobe") + 11
    assert body[transform] == 0
    return body[:transform] + b"\2" + body[transform + 1 :]


def test_a_ycck_jpeg_is_converted() -> None:
    looks(ycck(blocks(*INKS, mode="CMYK")), *ON_SCREEN, error=4)


# Depths, palettes, transparency


@pytest.mark.parametrize("depth", [1, 2, 4, 8, 16])
def test_a_grey_png_of_any_depth(depth: int) -> None:
    most = (1 << depth) - 1
    values = (0, most, most // 3, most // 2)
    looks(
        png([[value] for value in values], depth=depth, kind=0),
        *((round(v * 255 / most),) * 3 for v in values),
    )


@pytest.mark.parametrize("depth", [1, 2, 4, 8, 16])
def test_the_transparent_grey_of_a_png_is_white(depth: int) -> None:
    """In its own depth: a grey next to it is not."""
    value = {1: 0, 2: 1, 4: 5, 8: 77, 16: 20_000}[depth]
    body = png([[value], [value + 1]], depth=depth, kind=0, transparent=struct.pack(">H", value))
    looks(body, WHITE, (round((value + 1) * 255 / ((1 << depth) - 1)),) * 3)


DEEP = ((20_000, 30_000, 40_000), (65_535, 0, 256), (1, 128, 65_000))
SHALLOW = tuple(tuple(round(part / 257) for part in colour) for colour in DEEP)


def test_a_png_of_16_bits_a_colour() -> None:
    looks(png(DEEP, depth=16, kind=2), *SHALLOW, error=1)


def test_a_png_of_16_bits_a_colour_with_alpha() -> None:
    body = png([(*DEEP[0], 65_535), (*DEEP[1], 0), (*DEEP[2], 32_768)], depth=16, kind=6)
    looks(body, SHALLOW[0], WHITE, tuple((part + 255) // 2 for part in SHALLOW[2]), error=2)


@pytest.mark.parametrize("depth", [8, 16])
def test_the_transparent_colour_of_a_png_is_white(depth: int) -> None:
    code = "B" if depth == 8 else "H"
    colours = [RED, GREEN] if depth == 8 else [*DEEP[:2]]
    chunk = struct.pack(">HHH", *colours[0])
    assert len(struct.pack(code, 0)) == depth // 8
    body = png(colours, depth=depth, kind=2, transparent=chunk)
    looks(body, WHITE, GREEN if depth == 8 else SHALLOW[1], error=1)


@pytest.mark.parametrize("depth", [8, 16])
def test_grey_with_alpha(depth: int) -> None:
    most = (1 << depth) - 1
    body = png([(most // 5, most), (most // 5, 0), (0, most // 2)], depth=depth, kind=4)
    looks(body, (51,) * 3, WHITE, (128,) * 3, error=1)


@pytest.mark.parametrize("depth", [1, 2, 4, 8])
def test_a_palette_with_alpha(depth: int) -> None:
    """Its first colour half transparent, its second opaque without an entry of its own."""
    body = png([[0], [1]], depth=depth, kind=3, palette=bytes(RED + GREEN), transparent=b"\x80")
    looks(body, tuple(round((part * 128 + 255 * 127) / 255) for part in RED), GREEN, error=1)


def test_an_image_of_one_bit() -> None:
    body = file_of(blocks((0,), (255,), mode="1"), "PNG")
    assert body[24] == 1
    looks(body, (0, 0, 0), WHITE)
    looks(file_of(blocks((0,), (255,), mode="1"), "GIF"), (0, 0, 0), WHITE)


def test_an_interlaced_png_is_the_same_picture() -> None:
    pairs = [(file, file.with_name("basn" + file.name[4:])) for file in sorted(PNGSUITE.glob("basi*.png"))]
    if not pairs:
        pytest.skip(f"no files in {PNGSUITE}")
    for interlaced, plain in pairs:
        assert (pixels(interlaced.read_bytes()) == pixels(plain.read_bytes())).all(), plain.name


# Films


@pytest.mark.parametrize("form", ["GIF", "WEBP", "PNG"])
def test_of_a_film_the_first_frame_is_stored(form: str) -> None:
    frames = [blocks(RED, GREEN), blocks(BLUE, SAND), blocks(SAND, BLUE)]
    how = {"lossless": True} if form == "WEBP" else {}
    body = file_of(frames[0], form, save_all=True, append_images=frames[1:], duration=40, **how)
    assert getattr(Image.open(BytesIO(body)), "n_frames", 1) == 3
    looks(body, RED, GREEN)


def test_a_gif_frame_in_a_corner_lies_there() -> None:
    body = bytearray(file_of(blocks(RED), "GIF"))
    body[6:10] = struct.pack("<HH", 32, 16)  # the screen
    frame = body.index(b"," + struct.pack("<HHHH", 0, 0, 16, 16))
    body[frame + 1 : frame + 3] = struct.pack("<H", 16)
    found = pixels(bytes(body))
    assert found.shape == (16, 32, 3)
    assert tuple(found[8, 24]) == RED


# Colour profiles. A matrix profile is nine numbers and a curve: the truth is computed in a few lines


def icc(space: bytes, tags: dict[bytes, bytes]) -> bytes:
    """An ICC profile, version 2: head, table of tags, tags."""
    text = b"golden\0"
    tags = {
        b"desc": b"desc\0\0\0\0" + struct.pack(">I", len(text)) + text + bytes(78),
        b"cprt": b"text\0\0\0\0" + text,
        b"wtpt": xyz(0.9642, 1.0, 0.8249),
        **tags,
    }
    table, data = struct.pack(">I", len(tags)), b""
    for name, tag in tags.items():
        table += name + struct.pack(">II", 128 + 4 + 12 * len(tags) + len(data), len(tag))
        data += tag + bytes(-len(tag) % 4)
    kind, connection = (b"prtr", b"Lab ") if space == b"CMYK" else (b"mntr", b"XYZ ")
    head = struct.pack(">I4sI4s4s4s", 0, b"none", 0x0210_0000, kind, space, connection)
    head += bytes(12) + b"acsp" + bytes(28) + xyz(0.9642, 1.0, 0.8249)[8:]
    size = 128 + len(table) + len(data)
    return struct.pack(">I", size) + head[4:].ljust(124, b"\0") + table + data


def xyz(*values: float) -> bytes:
    return b"XYZ \0\0\0\0" + struct.pack(">3i", *(round(value * 65_536) for value in values))


# Red, green and blue as XYZ under D50, and the exponent of the curve.
SRGB = np.array([[0.4361, 0.2225, 0.0139], [0.3851, 0.7169, 0.0971], [0.1431, 0.0606, 0.7141]])
SPACES = {
    "Display P3": (
        [[0.51512, 0.2412, -0.00105], [0.29198, 0.69225, 0.04189], [0.1571, 0.06657, 0.78407]],
        2.2,
    ),
    "Adobe RGB": (
        [[0.60974, 0.31111, 0.01947], [0.20528, 0.62567, 0.06087], [0.14919, 0.06322, 0.74457]],
        2.2,
    ),
    "ProPhoto": ([[0.79767, 0.28804, 0.0], [0.13519, 0.71188, 0.0], [0.03134, 0.00009, 0.82491]], 1.8),
}


def matrix_profile(name: str) -> bytes:
    primaries, gamma = SPACES[name]
    curve = b"curv\0\0\0\0" + struct.pack(">IH", 1, round(gamma * 256))
    tags = {name: xyz(*values) for name, values in zip((b"rXYZ", b"gXYZ", b"bXYZ"), primaries, strict=True)}
    return icc(b"RGB ", tags | dict.fromkeys((b"rTRC", b"gTRC", b"bTRC"), curve))


def in_srgb(name: str, colour: Colour) -> Colour:
    """What a colour of one of the spaces is in sRGB, cut at its borders."""
    primaries, gamma = SPACES[name]
    light = (np.array(colour) / 255) ** (round(gamma * 256) / 256) @ np.array(primaries) @ np.linalg.inv(SRGB)
    return shown(light)


def shown(light: np.ndarray) -> Colour:
    """Linear sRGB as it is coded."""
    light = light.clip(0, 1)
    coded = np.where(light <= 0.0031308, light * 12.92, 1.055 * light ** (1 / 2.4) - 0.055)
    return tuple(int(part) for part in np.round(coded * 255))


MUTED = ((200, 120, 110), (120, 160, 130), (100, 110, 170), (128, 128, 128))
VIVID = ((255, 0, 0), (0, 255, 0), (20, 90, 240))


@pytest.mark.parametrize("name", SPACES)
def test_a_wide_gamut_is_brought_into_srgb(name: str) -> None:
    profile = matrix_profile(name)
    truth = [in_srgb(name, colour) for colour in (*MUTED, *VIVID)]
    assert (
        max(abs(a - b) for got, was in zip(truth, MUTED, strict=False) for a, b in zip(got, was, strict=True))
        > 5
    )
    looks(png((*MUTED, *VIVID), depth=8, kind=2, profile=profile), *truth, error=3)
    image = blocks(*MUTED, *VIVID)
    looks(file_of(image, "WEBP", lossless=True, icc_profile=profile), *truth, error=3)
    jpeg = file_of(image, "JPEG", quality=98, subsampling=0, icc_profile=profile)
    looks(jpeg, *truth, error=8)  # an error of the JPEG grows where the curve is steep


def test_a_grey_profile_is_applied() -> None:
    curve = b"curv\0\0\0\0" + struct.pack(">IH", 1, 256)  # linear
    body = png([[55], [128], [255]], depth=8, kind=0, profile=icc(b"GRAY", {b"kTRC": curve}))
    truth = [round((1.055 * (grey / 255) ** (1 / 2.4) - 0.055) * 255) for grey in (55, 128, 255)]
    looks(body, *((grey,) * 3 for grey in truth), error=2)


def cmyk_profile(labs: dict[Colour, Colour]) -> bytes:
    """A table of two steps an ink: paper is white, these mixtures are what is said, all others black.

    In a table of 8 bits L is 255 for 100, a and b have 128 added.
    """
    same = bytes(range(256))
    table = b""
    for mixture in np.ndindex(2, 2, 2, 2):
        light, a, b = labs.get(mixture, (100, 0, 0) if not any(mixture) else (0, 0, 0))
        table += bytes((round(light * 2.55), a + 128, b + 128))
    unity = struct.pack(">9i", *(65_536 * (place % 4 == 0) for place in range(9)))
    lut = b"mft1\0\0\0\0" + bytes((4, 3, 2, 0)) + unity + same * 4 + table + same * 3
    return icc(b"CMYK", {b"A2B0": lut})


def of_lab(light: float, a: float, b: float) -> Colour:
    middle = (light + 16) / 116
    ratios = np.array([middle + a / 500, middle, middle - b / 200]) ** 3  # but for the darkest
    return shown(ratios * (0.9642, 1.0, 0.8249) @ np.linalg.inv(SRGB))


def test_a_cmyk_profile_is_applied() -> None:
    """An ink called cyan that prints a middle grey, and a magenta that prints a red."""
    profile = cmyk_profile({(1, 0, 0, 0): (50, 0, 0), (0, 1, 0, 0): (50, 60, 40)})
    image = blocks((255, 0, 0, 0), (0, 255, 0, 0), (0, 0, 0, 0), mode="CMYK")
    body = file_of(image, "JPEG", quality=100, subsampling=0, icc_profile=profile)
    looks(body, of_lab(50, 0, 0), of_lab(50, 60, 40), WHITE, error=4)


# What is stored has nothing in it but the picture


def segments(jpeg: bytes) -> list[tuple[int, bytes]]:
    """Codes and contents up to the scan."""
    found, at = list[tuple[int, bytes]](), 2
    while not found or found[-1][0] != 0xDA:
        length = int.from_bytes(jpeg[at + 2 : at + 4], "big")
        found.append((jpeg[at + 1], jpeg[at + 4 : at + 2 + length]))
        at += 2 + length
    return found


def told(image: Image.Image, form: str) -> bytes:
    """A file that says much beside the picture."""
    exif = Image.Exif()
    exif[0x013B] = "SECRET artist"
    exif.get_ifd(0x8825)[2] = (52.0, 31.0, 0.0)  # latitude
    how: dict[str, object] = {"exif": exif, "icc_profile": matrix_profile("Display P3") + b"SECRET"}
    if form in ("JPEG", "WEBP"):
        how["xmp"] = b"<x:xmpmeta>SECRET</x:xmpmeta>"
    if form == "JPEG":
        how |= {"comment": b"SECRET", "dpi": (72, 72)}
    return file_of(image, form, **how)


@pytest.mark.parametrize("served", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize(("form", "quality"), [("jpg", 95), ("png", 6), ("webp", 80), ("webp", 101)])
def test_nothing_is_stored_but_the_picture(served: str, form: str, quality: int) -> None:
    body = told(blocks(RED, GREEN), served)
    spec = ImageSpec.model_validate({"encode_format": form, "quality": quality})
    picture = normalise(body, spec)
    assert b"SECRET" in body and isinstance(picture, Picture)
    stored = picture.stored
    if form == "jpg":
        assert {code for code, _ in segments(stored)} == {0xE0, 0xDB, 0xC0, 0xC4, 0xDA}
        assert segments(stored)[0] == (0xE0, b"JFIF\0\1\1\0\0\1\0\1\0\0")
    elif form == "png":
        names, at = list[bytes](), 8
        while at < len(stored):
            names.append(stored[at + 4 : at + 8])
            at += 12 + int.from_bytes(stored[at : at + 4], "big")
        assert names == [b"IHDR", b"IDAT", b"IEND"]
    else:
        chunk = b"VP8L" if quality > 100 else b"VP8 "
        assert stored[8:16] == b"WEBP" + chunk
        length = int.from_bytes(stored[16:20], "little")
        assert len(stored) == 20 + length + length % 2


# Bytes, on every machine

RECORDED = {
    "pillow": "13.0.0",
    "libjpeg_turbo": "3.2.0",
    "zlib_ng": "2.3.3",
    "webp": "1.6.0",
    "littlecms2": "2.19",
}


@pytest.mark.parametrize(
    ("form", "quality", "size", "digest"),
    [
        ("jpg", 95, 60, "1f4d88e75857bbe1"),
        ("jpg", 50, 300, "e16d1deffd524ac4"),
        ("png", 6, 60, "be91e18b0ae958fc"),
        ("webp", 80, 60, "0b2539256b654aac"),
        ("webp", 101, 60, "8c0f2bc0ec7d4cc5"),
    ],
)
def test_the_same_versions_give_the_same_bytes_on_every_processor(
    form: str, quality: int, size: int, digest: str
) -> None:
    """Recorded with AVX-512, and found again with AVX2 and with SSE4 alone."""
    if versions() != RECORDED:
        pytest.skip(f"recorded with {RECORDED}, these are {versions()}")
    rows, columns = np.mgrid[0:120, 0:160]
    planes = (columns * rows // 80, (columns * 7 + rows * 3) % 251, (columns ^ rows) * 2 % 256)
    scene = Image.fromarray(np.stack(planes, axis=-1).astype(np.uint8))
    spec = ImageSpec.model_validate(
        {"encode_format": form, "quality": quality, "image_size": size, "only_if_bigger": False}
    )
    stored = hashlib.sha256()
    for body in (
        file_of(scene, "JPEG"),
        file_of(scene, "JPEG", progressive=True, icc_profile=matrix_profile("Display P3")),
        file_of(scene, "PNG"),
        file_of(scene, "WEBP"),
        file_of(scene.resize((1600, 1200)), "JPEG"),
    ):
        picture = normalise(body, spec)
        assert isinstance(picture, Picture)
        stored.update(picture.stored + str(picture.phash).encode())
    assert stored.hexdigest()[:16] == digest
