"""show-batch: any batch of a run, past or to come, as it is trained on: a list, or a picture.

(epoch, number) --Feed--> positions --Loader--> pixels --> lines | JSON | PNG
"""

import io
import textwrap
import time
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from flava_model.data import Images, Loader
from flava_model.views import Views
from pmd.stream import BadRequest, Feed

MARGIN, LINE, LINES = 10, 16, 3  # px, px, lines of caption
INK, FAINT, PAPER = (30, 30, 34), (120, 120, 128), (250, 250, 248)


def batch_of(feed: Feed, views: Views, *, epoch: int, number: int, seed: int) -> Images:
    """One rank's share of any batch, as the same run has it. Raises BadRequest where there is none."""
    if feed.batches is not None and number >= feed.batches:
        raise BadRequest(f"--batch {number}: an epoch has {feed.batches:,} batches, from 0 on")
    return next(Loader(feed, views, seed=seed).made([feed.batch(epoch, number)]))


def as_json(images: Images) -> list[dict[str, Any]]:
    return [
        {
            "position": sample.position,
            "key": sample.key,
            "source": sample.source,
            "caption": sample.caption,
            "box": sample.box,
            "crop": crop._asdict(),
            "weight": weight,
            "instead_of": sample.instead_of,
        }
        for sample, crop, weight in zip(images.samples, images.crops, images.weights.tolist(), strict=True)
    ]


def as_lines(images: Images) -> list[str]:
    """position, key, crop, caption, tab-separated; and what is out of the ordinary."""
    lines: list[str] = []
    for row in as_json(images):
        crop = row["crop"]
        told = f"{crop['width']}x{crop['height']}+{crop['x']}+{crop['y']}"
        told += " mirrored" if crop["mirrored"] else ""
        notes = [f"instead of {row['instead_of']}"] if row["instead_of"] else []
        notes += [] if row["weight"] else ["fills up"]
        lines.append("\t".join([str(row["position"]), row["key"], told, row["caption"], *notes]))
    return lines


def sheet(images: Images, *, columns: int) -> bytes:
    """The views of each sample side by side, pixel for pixel, with key and caption, as PNG bytes."""
    font = ImageFont.load_default(12)
    sizes = [*images.views]
    width, height = sum(sizes) + MARGIN, sizes[0] + (LINES + 1) * LINE + MARGIN
    rows = -(-len(images.samples) // columns)
    paper = Image.new("RGB", (columns * width + MARGIN, rows * height + MARGIN), PAPER)
    pen = ImageDraw.Draw(paper)
    views = {size: view.permute(0, 2, 3, 1).numpy() for size, view in images.views.items()}
    for place, sample in enumerate(images.samples):
        left, top = MARGIN + place % columns * width, MARGIN + place // columns * height
        at = left
        for size, view in views.items():
            paper.paste(Image.fromarray(view[place]), (at, top))
            at += size
        top += sizes[0] + 2
        pen.text((left, top), f"{sample.position}  {sample.key}", fill=FAINT, font=font)
        letters = max(8, int((width - MARGIN) / (font.getlength("abcdefghijklmnopqrstuvwxyz ") / 27)))
        for number, words in enumerate(
            textwrap.wrap(sample.caption, letters, max_lines=LINES, placeholder=" ...")
        ):
            pen.text((left, top + (number + 1) * LINE), words, fill=INK, font=font)
    file = io.BytesIO()
    paper.save(file, "PNG")
    return file.getvalue()


def timed(feed: Feed, views: Views, *, threads: int, seconds: float, seed: int) -> str:
    """How fast batches come here, if nothing is done with them: one sentence, see Timing."""
    loader = Loader(feed, views, threads=threads, seed=seed)
    loader.measure()
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        for images in loader:
            loader.delivered(images)
            if time.monotonic() >= until:
                break
        else:
            feed.end_epoch()
    return loader.timing.verdict()
