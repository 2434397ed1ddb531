"""metrics.jsonl, evals.jsonl -> a picture of the curves of a run: each loss, what share of its answers was
right, and how good the checkpoints were.
"""

import json
from io import BytesIO
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from flava_model.evals.checkpoints import first_scores, read_lines
from pmd.stream import BadRequest

WIDTH, HEIGHT, EDGE = 320, 200, 34  # of a panel, px; and what is left free around its curve
_INK, _LINE, _GRID = (40, 40, 46), (33, 102, 172), (222, 224, 228)


def curves(run: str | Path, *, columns: int = 3) -> bytes:
    """A PNG: a panel for each loss, over the updates. Raises BadRequest where there is nothing to draw."""
    lines = read_metrics(run)
    panels: list[tuple[str, list[tuple[float, float]]]] = []
    for group in ("losses", "right"):
        for name in sorted({name for line in lines for name in line[group]}):
            told = [(line["update"], line[group][name]) for line in lines if name in line[group]]
            panels.append((name if group == "losses" else f"{name}: share right", told))
    evaluated = [(line["update"], first_scores(line)) for line in read_lines(run)]
    for name in sorted({name for _, scores in evaluated for name in scores}):
        panels.append((name, [(update, scores[name]) for update, scores in evaluated if name in scores]))
    rows = -(-len(panels) // columns)
    sheet = Image.new("RGB", (columns * WIDTH, rows * HEIGHT), "white")
    for number, (title, points) in enumerate(panels):
        sheet.paste(_panel(title, points), (number % columns * WIDTH, number // columns * HEIGHT))
    file = BytesIO()
    sheet.save(file, "PNG", optimize=True)
    return file.getvalue()


def read_metrics(run: str | Path) -> list[dict[str, Any]]:
    """The lines of a run's metrics. Raises BadRequest where there are none."""
    path = Path(run) / "metrics.jsonl"
    try:
        lines = [json.loads(line) for line in path.read_text().splitlines()]
    except FileNotFoundError:
        raise BadRequest(f"{path}: there is no such file; is {run} the `out` of a run?") from None
    except ValueError as error:
        raise BadRequest(f"{path}: {error}") from None
    if not lines:
        raise BadRequest(f"{path}: no metrics yet; there is a line every watch.every updates")
    return lines


def _panel(title: str, points: list[tuple[float, float]]) -> Image.Image:
    panel = Image.new("RGB", (WIDTH, HEIGHT), "white")
    draw, font = ImageDraw.Draw(panel), ImageFont.load_default(12)
    first, last = points[0][0], max(points[-1][0], points[0][0] + 1)
    least, most = min(0.0, *(value for _, value in points)), max(value for _, value in points)
    most = most if most > least else least + 1

    def at(update: float, value: float) -> tuple[float, float]:
        x = EDGE + (update - first) / (last - first) * (WIDTH - 2 * EDGE)
        return x, HEIGHT - EDGE - (value - least) / (most - least) * (HEIGHT - 2 * EDGE)

    for share in (0, 0.5, 1):
        value = least + share * (most - least)
        (left, y), (right, _) = at(first, value), at(last, value)
        draw.line([(left, y), (right, y)], fill=_GRID)
        draw.text((4, y), f"{value:.2f}", fill=_INK, font=font, anchor="lm")
    draw.line([at(*point) for point in points], fill=_LINE, width=2)
    draw.text((WIDTH / 2, 12), f"{title}  {points[-1][1]:.3f}", fill=_INK, font=font, anchor="mm")
    for update, anchor in ((first, "lm"), (last, "rm")):
        draw.text((at(update, least)[0], HEIGHT - 14), f"{update:,.0f}", fill=_INK, font=font, anchor=anchor)
    return panel
