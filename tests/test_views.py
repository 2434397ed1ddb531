"""The laws of flava_model/views.py: what is seen of an image follows from its key, and looks as it should."""

import io
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from flava_model.views import Box, Crop, Pixels, Views, crop_of, see
from tests.small import photo

REAL = Path(__file__).parents[2] / "shared" / "real" / "coco" / "train2017"


def seen(image: bytes, views: Views, *, key: int = 0, box: Box | None = None) -> list[Pixels]:
    out = [np.zeros((size, size, 3), np.uint8) for size in views.sizes]
    see(image, views, out, key=key, box=box)
    return out


def encoded(pixels: Pixels, form: str = "PNG", **how: object) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, form, **how)
    return file.getvalue()


def ramp(width: int, height: int) -> Pixels:
    """Red says where it is across, green how far down."""
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[..., 0] = np.linspace(0, 255, width)[None]
    pixels[..., 1] = np.linspace(0, 255, height)[:, None]
    return pixels


@settings(max_examples=300, deadline=None)
@given(
    st.integers(1, 5_000),
    st.integers(1, 5_000),
    st.integers(0, 2**64 - 1),
    st.sampled_from([(0.9, 1.0), (0.08, 1.0), (0.5, 0.5)]),
    st.none() | st.tuples(*[st.floats(-0.5, 1.5)] * 4),
)
def test_a_crop_lies_within_the_image_and_follows_from_its_key(
    width: int, height: int, key: int, area: tuple[float, float], box: Box | None
) -> None:
    views = Views(area=area, flip=0.5)
    crop = crop_of(width, height, views, key, box)
    assert crop == crop_of(width, height, views, key, box)
    assert crop.x >= 0 and crop.y >= 0 and crop.width >= 1 and crop.height >= 1
    assert crop.x + crop.width <= width and crop.y + crop.height <= height


def test_crops_are_spread_as_they_should_be() -> None:
    """5,000 keys; each limit is more than 5 standard deviations off what is expected."""
    views = Views(area=(0.08, 1.0), flip=0.5)
    crops = [crop_of(400, 300, views, key) for key in range(5_000)]
    areas = np.array([crop.width * crop.height for crop in crops]) / 120_000
    assert 0.06 < areas.min() < 0.1 and 0.9 < areas.max() <= 1.0
    ratios = np.array([crop.width / crop.height for crop in crops])
    assert 0.72 < ratios.min() < 0.78 and 1.28 < ratios.max() < 1.36
    assert abs(np.mean([crop.mirrored for crop in crops]) - 0.5) < 0.036
    # Left and right, above and below, alike.
    across = np.array([crop.x + crop.width / 2 for crop in crops]) / 400
    down = np.array([crop.y + crop.height / 2 for crop in crops]) / 300
    assert abs(across.mean() - 0.5) < 0.015 and abs(down.mean() - 0.5) < 0.015


def test_the_center_is_the_largest_square_in_the_middle() -> None:
    assert crop_of(400, 300, Views(crop="center"), 5) == Crop(50, 0, 300, 300, False)


@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP"])
def test_a_crop_shows_the_part_that_it_says_in_all_sizes(form: str, exact: bool) -> None:
    how = (
        {"quality": 98, "subsampling": 0} if form == "JPEG" else {"lossless": True} if form == "WEBP" else {}
    )
    image = encoded(ramp(512, 384), form, **how)
    views = Views(sizes=(224, 112, 56), area=(0.3, 0.6), exact=exact, flip=0.5)
    for key in range(8):
        out = [np.zeros((size, size, 3), np.uint8) for size in views.sizes]
        crop = see(image, views, out, key=key)
        assert crop == crop_of(512, 384, views, key)
        across = np.array([crop.x, crop.x + crop.width]) / 512 * 255
        down = np.array([crop.y, crop.y + crop.height]) / 384 * 255
        for view in out:
            edge = 255 / view.shape[0]  # the outermost pixels' centres lie inside
            red = view[:, :, 0].mean(axis=0)[[-1, 0] if crop.mirrored else [0, -1]]
            green = view[:, :, 1].mean(axis=1)[[0, -1]]
            assert np.abs(red - across).max() < edge + 2 and np.abs(green - down).max() < edge + 2


def test_a_region_is_seen_alone() -> None:
    pixels = np.zeros((200, 300, 3), np.uint8)
    pixels[50:150, 100:200] = (250, 10, 10)
    box = (100 / 300, 50 / 200, 100 / 300, 100 / 200)
    for views in (Views(), Views(crop="center"), Views(area=(0.1, 0.3))):
        for view in seen(encoded(pixels), views, key=3, box=box):
            assert np.abs(view.astype(int) - (250, 10, 10)).max() <= 1


@pytest.mark.parametrize("factor", [1, 2, 4, 8])
def test_a_large_jpeg_is_decoded_smaller_and_looks_the_same(factor: int) -> None:
    image = encoded(ramp(300 * factor + 7, 260 * factor + 5), "JPEG", quality=95)
    (fast,), (exact,) = (seen(image, Views(sizes=(224,), exact=exact), key=9) for exact in (False, True))
    assert np.abs(fast.astype(int) - exact).mean() < 2.0


@pytest.mark.parametrize("mode", ["L", "CMYK", "RGBA", "P", "1"])
def test_images_of_other_colours_are_seen_too(mode: str) -> None:
    file = io.BytesIO()
    picture = Image.fromarray(ramp(300, 260)).convert(mode)
    picture.save(file, "JPEG" if mode in ("L", "CMYK") else "PNG")
    (view, _) = seen(file.getvalue(), Views())
    assert view.std() > 20


@pytest.mark.parametrize(
    "image", [b"", b"\xff\xd8\xff", b"GIF89a" + bytes(99), b"\x89PNG\r\n\x1a\n", b"\x80\x04K\x01."]
)
def test_what_is_no_image_is_an_error(image: bytes) -> None:
    with pytest.raises(ValueError, match="not an image that can be decoded"):
        seen(image, Views())


def test_a_damaged_jpeg_is_read_as_far_as_it_goes_or_is_an_error() -> None:
    image = photo(0)
    for cut in range(0, len(image), 500):
        try:
            (view, _) = seen(image[:cut], Views())
        except ValueError as error:
            assert "decoded" in str(error)
        else:
            assert view.shape == (224, 224, 3)


@pytest.mark.skipif(not REAL.exists(), reason="the real photos are not here")
def test_the_fast_way_lies_near_the_exact_one() -> None:
    """Levels of 255, over real photos at 256 px: what a change of filters may cost."""
    errors: dict[int, list[float]] = {224: [], 112: []}
    for key, path in enumerate(sorted(REAL.glob("*.jpg"))[:40]):
        with Image.open(path) as opened:
            whole = opened.convert("RGB")
        share = 256 / min(whole.size)
        small = whole.resize((round(whole.width * share), round(whole.height * share)))
        image = encoded(np.asarray(small), "JPEG", quality=95)
        for fast, exact in zip(
            seen(image, Views(), key=key), seen(image, Views(exact=True), key=key), strict=True
        ):
            errors[fast.shape[0]].append(float(np.abs(fast.astype(int) - exact).mean()))
    # 1.7 and 2.2 were seen, and 4.6 in the worst picture.
    assert np.mean(errors[224]) < 2.0 and np.mean(errors[112]) < 2.6
    assert max(errors[224]) < 6.0 and max(errors[112]) < 6.0


@pytest.mark.parametrize(
    "keys", [{"sizes": ()}, {"sizes": (112, 224)}, {"area": (0.5, 0.2)}, {"area": (0.5, 1.5)}, {"flip": 2.0}]
)
def test_views_that_cannot_be_are_an_error(keys: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"sizes|area"):
        Views(**keys)  # pyright: ignore[reportArgumentType]
