"""What becomes of a served body: pictures as they should be, and a Reason for everything else."""

import functools
import random
import struct
import time
import zlib
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageChops, ImageCms, ImageDraw, ImageOps, ImageStat

from pmd.images import Picture, normalise, versions
from pmd.manifest import ImageSpec
from pmd.records import Reason

SHARED = Path(__file__).parents[2] / "shared"
PHOTOS = SHARED / "real" / "coco" / "train2017"
HOSTILE = SHARED / "hostile"
AS_IT_IS = ImageSpec(resize_mode="no", max_aspect=100)


def scene(width: int = 320, height: int = 240, mode: str = "RGB") -> Image.Image:
    """A picture with slopes, edges and grain: nothing about it is symmetrical."""
    ramp = Image.linear_gradient("L").resize((width, height))
    image = Image.merge("RGB", (ramp, ImageOps.mirror(ramp.rotate(90)), ImageOps.invert(ramp)))
    pen = ImageDraw.Draw(image)
    pen.ellipse((width * 0.1, height * 0.2, width * 0.4, height * 0.9), fill=(250, 220, 20))
    pen.rectangle((width * 0.6, height * 0.1, width * 0.9, height * 0.3), fill=(10, 40, 200))
    grain = np.random.default_rng(7).integers(0, 24, (height, width, 3), np.uint8)
    return ImageChops.add(image, Image.fromarray(grain)).convert(mode)


def file_of(image: Image.Image, form: str, **how: object) -> bytes:
    out = BytesIO()
    image.save(out, form, **how)
    return out.getvalue()


def exif_of(*, orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


def kept(body: bytes, spec: ImageSpec = AS_IT_IS) -> tuple[Picture, Image.Image]:
    """The picture that must come of a body, and its pixels."""
    picture = normalise(body, spec)
    assert isinstance(picture, Picture), picture
    image = Image.open(BytesIO(picture.jpeg))
    assert image.size == (picture.width, picture.height)
    assert image.mode == "RGB"
    return picture, image


def difference(one: Image.Image, other: Image.Image) -> float:
    """Mean difference of two images of one size, in grey levels."""
    return sum(ImageStat.Stat(ImageChops.difference(one.convert("RGB"), other.convert("RGB"))).mean) / 3


# What is a picture


@pytest.mark.parametrize(
    ("form", "mime"),
    [("JPEG", "image/jpeg"), ("PNG", "image/png"), ("WEBP", "image/webp"), ("GIF", "image/gif")],
)
def test_each_of_the_four_formats_is_stored_as_it_looks(form: str, mime: str) -> None:
    body = file_of(scene(), form)
    picture, image = kept(body)
    assert picture.mime == mime
    assert (picture.original_width, picture.original_height) == (320, 240)
    assert difference(image, Image.open(BytesIO(body))) < 8


@pytest.mark.parametrize(
    "form",
    ["TIFF", "BMP", "ICO", "JPEG2000", "AVIF", "PDF", "EPS", "PPM", "PCX", "SGI", "DDS", "ICNS", "XBM"],
)
def test_other_image_formats_are_unsupported(form: str) -> None:
    body = file_of(scene(mode="1" if form == "XBM" else "RGB"), form)
    assert normalise(body, AS_IT_IS) is Reason.UNSUPPORTED_FORMAT


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (
            b'<?xml version="1.0"?>\n<!-- a -->\n<svg xmlns="http://www.w3.org/2000/svg"/>',
            "unsupported_format",
        ),
        (b"\xef\xbb\xbf  <SVG/>", "unsupported_format"),
        (b"8BPS\0\1", "unsupported_format"),
        (b"\0\0\0\x1cftypheic\0\0\0\0", "unsupported_format"),
        (b"\xff\x0a\xfa", "unsupported_format"),
        (b"<!doctype html><body><svg></svg>", "not_an_image"),
        (b"<html>\xff\xd8\xff", "not_an_image"),
        (b'{"error": "no such image"}', "not_an_image"),
        (b'<?xml version="1.0"?><Error>AccessDenied</Error>', "not_an_image"),
        (b"", "not_an_image"),
        (b"\0" * 1000, "not_an_image"),
        (b"RIFF\x24\0\0\0WAVEfmt ", "not_an_image"),
        (b"\0\0\0\x20ftypisom\0\0\2\0", "not_an_image"),  # a film
        (b"\x1f\x8b\x08" + bytes(20), "not_an_image"),
        (b"\xff\xd8\xff", "body_truncated"),
        (b"GIF89a", "body_truncated"),
        (b"\x89PNG\r\n\x1a\n", "body_truncated"),
        (b"RIFF\xff\0\0\0WEBPVP8 ", "body_truncated"),
        (b"\xff\xd8\xff\xd9", "decode_failed"),
        (b"RIFF\x08\0\0\0WEBPVP8 ", "decode_failed"),
    ],
)
def test_the_first_bytes_decide_what_a_body_is(body: bytes, reason: str) -> None:
    assert normalise(body, AS_IT_IS) == reason


def test_every_real_photo_becomes_a_picture() -> None:
    photos = sorted(PHOTOS.glob("*.jpg"))
    if not photos:
        pytest.skip(f"no photos in {PHOTOS}")
    for photo in photos:
        picture, image = kept(photo.read_bytes(), ImageSpec())
        assert min(image.size) == min(256, picture.original_width, picture.original_height)
        with Image.open(photo) as original:
            upright = ImageOps.exif_transpose(original)
        assert (picture.original_width, picture.original_height) == upright.size
        small = upright.resize(image.size, Image.Resampling.LANCZOS)
        shown = Image.open(BytesIO(file_of(small.convert("RGB"), "JPEG", quality=95)))
        assert difference(image, shown) < (9 if "icc_profile" in original.info else 0.1), photo.name


@pytest.mark.parametrize("folder", ["pngsuite", "pillow", "image_rs"])
def test_every_hostile_file_has_one_outcome_and_the_same_one_twice(folder: str) -> None:
    files = sorted((HOSTILE / folder).glob("*"))
    if not files:
        pytest.skip(f"no files in {HOSTILE / folder}")
    for file in files:
        body = file.read_bytes()
        begun = time.monotonic()
        outcome = normalise(body, ImageSpec())
        assert time.monotonic() - begun < 2, file.name
        assert normalise(body, ImageSpec()) == outcome
        if folder == "pngsuite":
            assert isinstance(outcome, Reason) == file.name.startswith("x"), (file.name, outcome)
        elif file.name.startswith("bad__"):
            assert isinstance(outcome, Reason), file.name


# Damage and bounds


@functools.cache
def cuttable() -> dict[str, bytes]:
    frames = [scene(120, 90), scene(120, 90).rotate(5), scene(120, 90).rotate(10)]
    return {
        "baseline JPEG": file_of(scene(), "JPEG", exif=exif_of(orientation=3)),
        "progressive JPEG": file_of(scene(), "JPEG", progressive=True),
        "JPEG with a thumbnail": with_thumbnail(file_of(scene(), "JPEG")),
        "PNG": file_of(scene(), "PNG"),
        "lossy WebP": file_of(scene(), "WEBP"),
        "lossless WebP": file_of(scene(), "WEBP", lossless=True),
        "WebP film": file_of(frames[0], "WEBP", save_all=True, append_images=frames[1:]),
        "GIF": file_of(scene(), "GIF"),
        "GIF film": file_of(frames[0], "GIF", save_all=True, append_images=frames[1:]),
    }


def with_thumbnail(jpeg: bytes) -> bytes:
    """With a whole JPEG inside an EXIF segment: an end marker long before the end."""
    segment = b"Exif\0\0" + file_of(scene(40, 30), "JPEG")
    return jpeg[:2] + b"\xff\xe1" + struct.pack(">H", len(segment) + 2) + segment + jpeg[2:]


@pytest.mark.parametrize("form", cuttable())
def test_a_cut_file_is_never_accepted(form: str) -> None:
    body = cuttable()[form]
    kept(body)
    cuts = random.Random(1).sample(range(len(body) - 8), 200)
    for cut in [*cuts, *range(len(body) - 8, len(body))]:
        outcome = normalise(body[:cut], AS_IT_IS)
        assert outcome in {Reason.NOT_AN_IMAGE, Reason.BODY_TRUNCATED, Reason.DECODE_FAILED}, cut
    longer, _ = kept(body + b"and something else")
    assert longer.jpeg == kept(body)[0].jpeg


@pytest.mark.parametrize("form", cuttable())
def test_damage_anywhere_ends_in_a_picture_or_a_reason(form: str) -> None:
    dice, spec = random.Random(2), ImageSpec(max_pixels=1_000_000)
    for _ in range(60):
        body = bytearray(cuttable()[form])
        for _ in range(dice.randint(1, 20)):
            at = dice.choice((100, 1_000, len(body)))  # most of what decides is in front
            body[dice.randrange(at)] = dice.randrange(256)
        outcome = normalise(bytes(body), spec)
        assert isinstance(outcome, Picture | Reason)
        assert normalise(bytes(body), spec) == outcome


def png_chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def test_a_decompression_bomb_is_refused_by_its_header() -> None:
    row, packer = bytes(1 + 50_000 // 8), zlib.compressobj(1)
    packed = b"".join(packer.compress(row * 1_000) for _ in range(50)) + packer.flush()
    header = struct.pack(">IIBBBBB", 50_000, 50_000, 1, 0, 0, 0, 0)
    bomb = b"\x89PNG\r\n\x1a\n" + b"".join(
        png_chunk(*part) for part in ((b"IHDR", header), (b"IDAT", packed), (b"IEND", b""))
    )
    begun = time.perf_counter()
    assert normalise(bomb, ImageSpec()) is Reason.DECODE_LIMIT
    assert time.perf_counter() - begun < 0.05


def resized(body: bytes, width: int, height: int) -> bytes:
    """The file with another size in its header; a decoder would find the rest of it wrong."""
    for small, form in ((struct.pack(">HH", 240, 320), ">HH"), (struct.pack("<HH", 320, 240), "<HH")):
        if small in body:
            sides = (height, width) if form == ">HH" else (width, height)
            return body.replace(small, struct.pack(form, *sides))
    raise AssertionError("no size found")


@pytest.mark.parametrize("form", ["JPEG", "WEBP", "GIF"])
def test_bounds_are_checked_before_decoding(form: str) -> None:
    body = file_of(scene(), form)
    side = 16_383  # all that a WebP can say
    assert normalise(resized(body, side, side), ImageSpec()) is Reason.DECODE_LIMIT
    if form != "WEBP":
        assert normalise(resized(body, 16_385, 10), ImageSpec()) is Reason.DECODE_LIMIT
    assert normalise(body, ImageSpec(max_pixels=320 * 240 - 1)) is Reason.DECODE_LIMIT
    assert isinstance(normalise(body, ImageSpec(max_pixels=320 * 240)), Picture)


def test_a_gif_frame_larger_than_its_screen_counts() -> None:
    body = bytearray(file_of(scene(), "GIF"))
    frame = body.index(b"," + struct.pack("<HHHH", 0, 0, 320, 240))
    body[frame + 1 : frame + 5] = struct.pack("<HH", 60_000, 60_000)  # where it lies on the screen
    assert normalise(bytes(body), ImageSpec()) is Reason.DECODE_LIMIT


def test_a_jpeg_of_thousands_of_scans_or_segments_is_refused() -> None:
    body = file_of(scene(), "JPEG", progressive=True)
    last_scan = body[body.rindex(b"\xff\xda") : -2]
    many_scans = body[:-2] + last_scan * 20_000 + body[-2:]
    assert normalise(many_scans, ImageSpec()) is Reason.DECODE_LIMIT
    many_segments = body[:2] + b"\xff\xfe\0\2" * 200_000 + body[2:]
    begun = time.perf_counter()
    assert normalise(many_segments, ImageSpec()) is Reason.DECODE_LIMIT
    assert time.perf_counter() - begun < 1


def test_markers_of_hostile_length_take_linear_time() -> None:
    begun = time.perf_counter()
    assert normalise(b"\xff\xd8\xff" + b"\xff" * 5_000_000, ImageSpec()) is Reason.BODY_TRUNCATED
    assert normalise(b"\xff\xd8\xff" + b"\xff\0" * 2_000_000, ImageSpec()) is Reason.BODY_TRUNCATED
    assert normalise(b"#define " + b"a" * 5_000_000, ImageSpec()) is Reason.NOT_AN_IMAGE
    assert time.perf_counter() - begun < 1


def test_a_wrong_checksum_in_a_png_is_damage() -> None:
    body = bytearray(file_of(scene(), "PNG"))
    body[body.index(b"IEND") - 5] ^= 1  # the last byte of the sum before
    assert normalise(bytes(body), AS_IT_IS) is Reason.DECODE_FAILED


# Upright, opaque, sRGB


@pytest.mark.parametrize("orientation", [1, 6])
@pytest.mark.parametrize("rotation", [0, 90, 180, 270, 360, None])
def test_a_picture_is_turned_as_its_source_says_after_what_its_file_says(
    rotation: int | None, orientation: int
) -> None:
    body = file_of(scene(), "PNG", exif=exif_of(orientation=orientation))
    picture = normalise(body, AS_IT_IS, rotation)
    assert isinstance(picture, Picture)
    upright = ImageOps.exif_transpose(Image.open(BytesIO(body))).rotate(rotation or 0, expand=True)
    assert (picture.original_width, picture.original_height) == upright.size
    assert difference(Image.open(BytesIO(picture.jpeg)), upright) < 6  # a wrong turn: 60 and more


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP"])
def test_a_picture_is_turned_upright(form: str, orientation: int) -> None:
    body = file_of(scene(), form, exif=exif_of(orientation=orientation))
    upright = ImageOps.exif_transpose(Image.open(BytesIO(body)))
    picture, image = kept(body)
    assert (picture.original_width, picture.original_height) == image.size == upright.size
    assert difference(image, upright) < 6  # a wrong turn: 60 and more
    small, image = kept(body, ImageSpec(image_size=64))
    assert (small.width, small.height) == ((64, 85) if orientation > 4 else (85, 64))
    assert difference(image, upright.resize(image.size, Image.Resampling.LANCZOS)) < 6


def test_orientation_is_read_in_either_byte_order_and_ignored_when_damaged() -> None:
    def turned(exif: bytes) -> bool:
        segment = b"Exif\0\0" + exif
        jpeg = file_of(scene(), "JPEG")
        body = jpeg[:2] + b"\xff\xe1" + struct.pack(">H", len(segment) + 2) + segment + jpeg[2:]
        return kept(body)[0].width == 240

    assert turned(b"MM\0*" + struct.pack(">IHHHIHH", 8, 1, 0x112, 3, 1, 6, 0))
    assert turned(b"II*\0" + struct.pack("<IHHHIHH", 8, 1, 0x112, 3, 1, 6, 0))
    assert turned(b"II*\0" + struct.pack("<IHHHII", 8, 1, 0x112, 4, 1, 8))
    assert not turned(b"II*\0" + struct.pack("<IHHHIHH", 8, 1, 0x112, 3, 1, 9, 0))
    assert not turned(b"II*\0" + struct.pack("<I", 0xFFFF_FFF0))
    assert not turned(b"II*\0" + struct.pack("<IH", 8, 65_535))
    assert not turned(b"XX*\0" + struct.pack("<IHHHIHH", 8, 1, 0x112, 3, 1, 6, 0))
    assert not turned(b"")


def translucent(colour: tuple[int, ...], mode: str) -> Image.Image:
    """Left half transparent, right half opaque."""
    image = Image.new(mode, (64, 32), (*colour, 255))
    image.paste(Image.new(mode, (32, 32), (*colour, 0)), (0, 0))
    return image


@pytest.mark.parametrize(
    ("image", "form", "left", "right"),
    [
        (translucent((200, 0, 0), "RGBA"), "PNG", (255, 255, 255), (200, 0, 0)),
        (translucent((200, 0, 0), "RGBA"), "WEBP", (255, 255, 255), (200, 0, 0)),
        (translucent((200, 0, 0), "RGBA"), "GIF", (255, 255, 255), (200, 0, 0)),
        (translucent((100,), "LA"), "PNG", (255, 255, 255), (100, 100, 100)),
        (translucent((0, 90, 0), "RGBA").quantize(8), "PNG", (255, 255, 255), (0, 90, 0)),
        (Image.new("RGBA", (64, 32), (0, 0, 0, 128)), "PNG", (127, 127, 127), (127, 127, 127)),
        (Image.new("L", (64, 32), 77), "JPEG", (77, 77, 77), (77, 77, 77)),
        (Image.new("1", (64, 32), 1), "PNG", (255, 255, 255), (255, 255, 255)),
        (Image.new("CMYK", (64, 32), (0, 255, 255, 0)), "JPEG", (255, 0, 0), (255, 0, 0)),
        (Image.new("P", (64, 32), 0), "PNG", (0, 0, 0), (0, 0, 0)),
        (Image.fromarray(np.full((32, 64), 20_000, np.uint16)), "PNG", (78, 78, 78), (78, 78, 78)),
        (Image.fromarray(np.full((32, 64), 65_535, np.uint16)), "PNG", (255, 255, 255), (255, 255, 255)),
    ],
)
def test_every_mode_becomes_rgb_over_white(
    image: Image.Image, form: str, left: tuple[int, ...], right: tuple[int, ...]
) -> None:
    _, stored = kept(file_of(image, form))
    for x, colour in ((8, left), (56, right)):
        found = stored.getpixel((x, 16))
        assert isinstance(found, tuple)
        assert max(abs(a - b) for a, b in zip(found, colour, strict=True)) <= 4, (found, colour)


def test_a_transparent_16_bit_grey_is_white() -> None:
    body = file_of(Image.fromarray(np.full((32, 64), 20_000, np.uint16)), "PNG", transparency=20_000)
    assert kept(body)[1].getpixel((5, 5)) == (255, 255, 255)


def test_only_the_first_frame_of_a_film_is_stored() -> None:
    red, blue = Image.new("RGB", (40, 30), "red"), Image.new("RGB", (40, 30), "blue")
    for form in ("GIF", "WEBP", "PNG"):
        body = file_of(red, form, save_all=True, append_images=[blue])
        assert difference(kept(body)[1], red) < 4, form


def swapped_profile() -> bytes:
    """An ICC profile like sRGB, but with the names of red and blue exchanged."""
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    profile = profile.replace("sRGB".encode("utf-16-be"), "swap".encode("utf-16-be"))
    return profile.replace(b"rXYZ", b"tmp!", 1).replace(b"bXYZ", b"rXYZ", 1).replace(b"tmp!", b"bXYZ", 1)


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP"])
def test_a_colour_profile_is_applied(form: str) -> None:
    red, blue = Image.new("RGB", (64, 64), "red"), Image.new("RGB", (64, 64), "blue")
    _, stored = kept(file_of(red, form, icc_profile=swapped_profile()))
    assert difference(stored, blue) < 4
    assert "icc_profile" not in stored.info


def test_a_damaged_or_unfitting_profile_is_ignored() -> None:
    plain = kept(file_of(scene(), "JPEG"))[0].jpeg
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    lab = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()
    for profile in (b"\1" * 300, srgb[:200], swapped_profile()[:300], lab, srgb):
        assert kept(file_of(scene(), "JPEG", icc_profile=profile))[0].jpeg == plain


def test_nothing_of_the_metadata_is_stored() -> None:
    exif = exif_of(orientation=1)
    exif[0x013B] = "MARKER"  # artist
    exif.get_ifd(0x8825)[2] = (52.0, 31.0, 0.0)  # latitude
    xmp = b"<x:xmpmeta>MARKER</x:xmpmeta>"
    bodies = [
        file_of(scene(), "JPEG", exif=exif, comment=b"MARKER", xmp=xmp, dpi=(72, 72)),
        file_of(scene(), "PNG", exif=exif),
        file_of(scene(), "WEBP", exif=exif, xmp=xmp),
        file_of(scene(), "GIF", comment=b"MARKER"),
    ]
    for body in bodies:
        assert b"MARKER" in body
        picture, image = kept(body)
        assert b"MARKER" not in picture.jpeg
        assert not image.getexif()
        assert set(image.info) <= {"jfif", "jfif_version", "jfif_unit", "jfif_density"}


# Size


@pytest.mark.parametrize(
    ("served", "mode", "size", "only_if_bigger", "stored"),
    [
        ((640, 480), "keep_ratio", 256, True, (341, 256)),
        ((480, 641), "keep_ratio", 256, True, (256, 342)),
        ((640, 480), "keep_ratio_largest", 256, True, (256, 192)),
        ((640, 480), "no", 256, True, (640, 480)),
        ((640, 200), "keep_ratio", 256, True, (640, 200)),
        ((640, 200), "keep_ratio", 256, False, (819, 256)),
        ((640, 200), "keep_ratio_largest", 256, True, (256, 80)),
        ((100, 50), "keep_ratio_largest", 256, True, (100, 50)),
        ((100, 50), "keep_ratio_largest", 256, False, (256, 128)),
        ((256, 256), "keep_ratio", 256, False, (256, 256)),
        ((3000, 5), "keep_ratio_largest", 100, True, (100, 1)),  # never less than a pixel
    ],
)
def test_resize_modes_mean_what_they_mean_in_img2dataset(
    served: tuple[int, int], mode: str, size: int, only_if_bigger: bool, stored: tuple[int, int]
) -> None:
    spec = ImageSpec.model_validate(
        {"resize_mode": mode, "image_size": size, "only_if_bigger": only_if_bigger}
    )
    for form in ("JPEG", "PNG"):
        picture, _ = kept(file_of(Image.new("RGB", served), form), spec)
        assert (picture.width, picture.height) == stored
        assert (picture.original_width, picture.original_height) == served


def test_a_sliver_is_not_enlarged_beyond_the_bounds() -> None:
    body = file_of(Image.new("RGB", (1, 10_000)), "PNG")
    assert normalise(body, ImageSpec(image_size=256, only_if_bigger=False)) is Reason.DECODE_LIMIT


def test_a_large_jpeg_is_as_good_as_if_it_had_been_decoded_whole() -> None:
    large = scene(2400, 1800)
    for size in (64, 256, 500):
        _, fast = kept(file_of(large, "JPEG", quality=95), ImageSpec(image_size=size))
        _, slow = kept(file_of(large, "PNG"), ImageSpec(image_size=size))
        assert difference(fast, slow) < 1


def test_quality_is_the_specs() -> None:
    body = file_of(scene(), "PNG")
    sizes = [len(kept(body, ImageSpec(quality=quality))[0].jpeg) for quality in (50, 80, 95)]
    assert sizes == sorted(sizes)


# The same for ever


def test_equal_bodies_give_equal_pictures_in_any_thread() -> None:
    bodies = [*cuttable().values(), file_of(scene(), "JPEG", icc_profile=swapped_profile())] * 4
    alone = [normalise(body, ImageSpec(image_size=100)) for body in bodies]
    with ThreadPoolExecutor(8) as threads:
        together = list(threads.map(lambda body: normalise(body, ImageSpec(image_size=100)), bodies))
    assert together == alone
    assert all(isinstance(picture, Picture) for picture in alone)


def distance(one: str | None, other: str | None) -> int:
    assert one is not None and other is not None
    return (int(one, 16) ^ int(other, 16)).bit_count()


def test_pictures_that_look_alike_have_near_hashes() -> None:
    one = kept(file_of(scene(640, 480), "PNG"))[0].phash
    copies = [
        file_of(scene(640, 480), "JPEG", quality=40),
        file_of(scene(640, 480).resize((200, 150)), "WEBP"),
        file_of(ImageChops.offset(scene(640, 480), 2, 1), "PNG"),
    ]
    assert one is not None and len(one) == 16
    assert all(distance(one, kept(copy)[0].phash) <= 8 for copy in copies)
    for other in (
        ImageOps.mirror(scene(640, 480)),
        scene(640, 480).rotate(90),
        Image.effect_noise((64, 64), 90),
    ):
        assert distance(one, kept(file_of(other, "PNG"))[0].phash) > 16


def test_the_versions_that_decide_bytes_are_named() -> None:
    found = versions()
    assert {"pillow", "libjpeg_turbo", "webp", "littlecms2", "zlib_ng"} == set(found)
    assert all(version[0].isdigit() for version in found.values())
