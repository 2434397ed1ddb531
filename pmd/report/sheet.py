"""A contact sheet: pictures of a corpus in a grid, each with its first caption, as one PNG to look at."""

import io
import textwrap
from collections.abc import Sequence
from typing import NamedTuple

from PIL import Image, ImageDraw, ImageFont

CELL = 220  # px, a picture's share of the grid
LINES = 3  # of caption
MARGIN = 12
TEXT_SIZE = 13
INK, FAINT, PAPER = (30, 30, 34), (120, 120, 128), (250, 250, 248)


class Picture(NamedTuple):
    jpeg: bytes
    title: str
    caption: str


def contact_sheet(pictures: Sequence[Picture], *, columns: int) -> bytes:
    """The pictures in rows of `columns`, as PNG bytes."""
    font = ImageFont.load_default(TEXT_SIZE)
    line = TEXT_SIZE + 4
    height = CELL + (LINES + 1) * line + MARGIN
    rows = -(-len(pictures) // columns)
    size = (columns * (CELL + MARGIN) + MARGIN, rows * (height + MARGIN) + MARGIN)
    sheet = Image.new("RGB", size, PAPER)
    pen = ImageDraw.Draw(sheet)
    for place, picture in enumerate(pictures):
        left = MARGIN + place % columns * (CELL + MARGIN)
        top = MARGIN + place // columns * (height + MARGIN)
        with Image.open(io.BytesIO(picture.jpeg)) as image:
            image.thumbnail((CELL, CELL))
            sheet.paste(image, (left + (CELL - image.width) // 2, top + (CELL - image.height) // 2))
        top += CELL + 4
        pen.text((left, top), _fit(picture.title, font)[0], fill=FAINT, font=font)
        for number, words in enumerate(_fit(picture.caption, font)):
            pen.text((left, top + (number + 1) * line), words, fill=INK, font=font)
    file = io.BytesIO()
    sheet.save(file, "PNG")
    return file.getvalue()


def _fit(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> list[str]:
    """At most LINES lines that fit a cell."""
    width = max(1, int(CELL / max(1.0, font.getlength("abcdefghijklmnopqrstuvwxyz ") / 27)))
    return textwrap.wrap(text, width, max_lines=LINES, placeholder=" ...") or [""]
