"""A drawn world: pictures of shapes with captions that are true, published in the datasets' own formats.

    seed --> Scene --draw------> picture, 200 to 420 px wide --+
               |                                               |
               +-----captions--> true sentences ---------------+--publish--> captions_train2017.json
                                                               |             Train_GCC-training.tsv
                 damage to 8 % of them, as in real life -------+             cc12m.tsv
                                                                             the pictures on a local web

A scene holds everything that its picture shows, so what a caption says can be checked, and a model can be
asked for a colour and a shape that it never saw together (`split`). All chance comes from random.Random: the
same seed gives the same bytes in any process. `publish` counts what it damages, and says what must come of
every row.

    world = World(seed=0, images=2400)
    with Web() as web:
        published = publish(world, folder, web)
        ...  # build a corpus of published.files; compare with published.kept_images and published.dropped
"""

import io
import json
import math
import random
import re
import struct
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import cache
from pathlib import Path
from typing import Literal, NamedTuple
from urllib.parse import urlsplit

from PIL import Image, ImageChops, ImageDraw, ImageFilter

from pmd.records import Reason
from tests.web import Fault, Web

RGB = tuple[int, int, int]
Point = tuple[float, float]

# --- what there is in this world ---

COLOURS: dict[str, RGB] = {
    "red": (214, 40, 40),
    "orange": (245, 130, 32),
    "yellow": (252, 208, 38),
    "green": (46, 160, 67),
    "blue": (40, 92, 214),
    "purple": (128, 60, 172),
    "pink": (246, 130, 182),
    "brown": (124, 77, 44),
    "black": (24, 24, 24),
    "white": (250, 250, 250),
    "grey": (130, 130, 130),
}
# Softer than the things on them, and named otherwise where they can be.
GROUNDS: dict[str, RGB] = {
    "white": (246, 246, 246),
    "cream": (250, 234, 196),
    "pale blue": (188, 219, 246),
    "pale green": (198, 232, 200),
    "pale pink": (250, 212, 221),
    "grey": (166, 166, 166),
    "black": (30, 30, 30),
    "dark blue": (22, 36, 84),
    "dark green": (20, 64, 48),
}
LIGHT = ("white", "cream", "pale blue", "pale green", "pale pink")
DARK = ("black", "dark blue", "dark green")
COLOURLESS = ("black", "white", "grey")

SHAPES: dict[str, tuple[str, ...]] = {  # and what a caption may call them
    "circle": ("circle", "disc"),
    "square": ("square",),
    "triangle": ("triangle",),
    "star": ("star",),
    "heart": ("heart",),
    "ring": ("ring", "hoop"),
    "cross": ("cross", "plus sign"),
    "crescent": ("crescent", "crescent moon"),
    "diamond": ("diamond",),
}
HOLDERS = ("circle", "square", "ring", "heart", "diamond")  # those with room for another inside

# Each colour is kept from one shape; over all colours every shape has its turn.
HELDOUT = frozenset(
    (colour, tuple(SHAPES)[(4 * place + 2) % len(SHAPES)]) for place, colour in enumerate(COLOURS)
)


class Relation(StrEnum):
    """Where the first thing of a scene is, seen from the second."""

    LEFT_OF = "left of"
    RIGHT_OF = "right of"
    ABOVE = "above"
    BELOW = "below"
    INSIDE = "inside"


@dataclass(frozen=True)
class Thing:
    """One shape in the picture."""

    shape: str
    colour: str
    span: float  # diameter, as a part of the picture's shorter side
    x: float  # of its middle, as a part of the width
    y: float  # of its middle, as a part of the height
    tilt: float  # degrees

    @property
    def size(self) -> Literal["small", "large"]:
        return "small" if self.span < 0.3 else "large"


@dataclass(frozen=True)
class Background:
    kind: Literal["plain", "gradient", "grainy", "striped"]
    colours: tuple[str, ...]  # one, or two for a gradient (from the top down) and stripes
    grain: int = 0  # seed of the grains


@dataclass(frozen=True)
class Scene:
    """What a picture shows: one thing, some alike, two in a relation, or some alike and one other."""

    things: tuple[Thing, ...]
    background: Background
    relation: Relation | None = None  # of the first thing to the second

    @property
    def groups(self) -> list[tuple[int, Thing]]:
        """Things that one noun phrase can name: how many, and one of them."""
        counts = Counter((thing.colour, thing.shape) for thing in self.things)
        first = {(thing.colour, thing.shape): thing for thing in reversed(self.things)}
        return [(count, first[kind]) for kind, count in counts.items()]

    @property
    def colourless(self) -> bool:
        colours = {thing.colour for thing in self.things} | set(self.background.colours)
        return colours <= set(COLOURLESS)


def split(scene: Scene) -> Literal["train", "heldout"]:
    """The side a scene is on in training: "heldout" where a colour meets the shape that it is kept from."""
    unseen = any((thing.colour, thing.shape) in HELDOUT for thing in scene.things)
    return "heldout" if unseen else "train"


class Picture(NamedTuple):
    id: int
    scene: Scene
    jpeg: bytes
    captions: list[str]
    size: tuple[int, int]  # width, height in px


@dataclass(frozen=True)
class World:
    """The pictures of a seed. Each is a function of (seed, its id), however many others are drawn."""

    seed: int = 0
    images: int = 2400

    def __len__(self) -> int:
        return self.images

    def __iter__(self) -> Iterator[Picture]:
        return (self.picture(number) for number in range(self.images))

    def picture(self, number: int) -> Picture:
        rng = random.Random(f"world/{self.seed}/{number}")
        scene = imagine(rng)
        width = rng.randint(200, 420)
        height = min(
            420, max(150, round(width / rng.choice((1.0, 4 / 3, 4 / 3, 3 / 2, 16 / 9, 3 / 4, 2 / 3))))
        )
        said = captions(scene, rng, count=6 if rng.random() < 0.01 else 5)
        return Picture(number, scene, encode(draw(scene, size=(width, height))), said, (width, height))


# --- imagining a scene ---


def imagine(rng: random.Random) -> Scene:
    """Any scene; one in thirty is grey all over."""
    colourless = rng.random() < 1 / 30
    background = _imagine_background(rng, colourless=colourless)
    colours = [
        colour
        for colour in (COLOURLESS if colourless else COLOURS)
        if all(_apart(COLOURS[colour], GROUNDS[ground]) for ground in background.colours)
    ]
    kinds = (_one, _several, _related, _several_and_one)
    kind = rng.choices(kinds, weights=(30, 30, 30, 10))[0]
    things, relation = kind(rng, colours)
    return Scene(tuple(things), background, relation)


def _apart(one: RGB, other: RGB) -> bool:
    """Whether a shape of one colour is plain to see on the other."""
    return math.dist(one, other) > 110


def _imagine_background(rng: random.Random, *, colourless: bool) -> Background:
    kind = rng.choices(("plain", "gradient", "grainy", "striped"), weights=(35, 30, 20, 15))[0]
    if colourless:
        return Background(
            "grainy" if kind == "grainy" else "plain", (rng.choice(COLOURLESS),), rng.getrandbits(32)
        )
    if kind in ("gradient", "striped"):
        # Two light or two dark ones: between a light and a dark end, some shape would be lost in the middle.
        return Background(kind, tuple(rng.sample(rng.choice((LIGHT, LIGHT, DARK)), 2)))
    return Background(kind, (rng.choice(tuple(GROUNDS)),), rng.getrandbits(32))


SMALL, LARGE = (0.20, 0.25), (0.38, 0.44)
THIRDS = (1 / 6, 1 / 2, 5 / 6)
Imagined = tuple[list[Thing], Relation | None]


def _thing(rng: random.Random, kind: tuple[str, str], at: Point, *, span: Point, sway: float = 0.02) -> Thing:
    colour, shape = kind
    x, y = (place + rng.uniform(-sway, sway) for place in at)
    return Thing(shape, colour, rng.uniform(*span), x, y, rng.uniform(-10, 10))


def _kinds(rng: random.Random, colours: Sequence[str], count: int) -> list[tuple[str, str]]:
    """Different pairs of a colour and a shape."""
    return rng.sample([(colour, shape) for colour in colours for shape in SHAPES], count)


def _one(rng: random.Random, colours: Sequence[str]) -> Imagined:
    kind = _kinds(rng, colours, 1)[0]
    at = (rng.choice((0.25, 0.5, 0.75)), rng.choice((0.25, 0.5, 0.75)))
    return [_thing(rng, kind, at, span=rng.choice((SMALL, LARGE)), sway=0.03)], None


def _several(rng: random.Random, colours: Sequence[str]) -> Imagined:
    kind = _kinds(rng, colours, 1)[0]
    places = rng.sample([(x, y) for x in THIRDS for y in THIRDS], rng.randint(2, 5))
    return [_thing(rng, kind, at, span=SMALL) for at in places], None


def _several_and_one(rng: random.Random, colours: Sequence[str]) -> Imagined:
    kind, other = _kinds(rng, colours, 2)
    *places, place = rng.sample([(x, y) for x in THIRDS for y in THIRDS], rng.randint(3, 5))
    things = [_thing(rng, kind, at, span=SMALL) for at in places]
    return [*things, _thing(rng, other, place, span=SMALL)], None


def _related(rng: random.Random, colours: Sequence[str]) -> Imagined:
    relation = rng.choice(list(Relation))
    kind, other = _kinds(rng, colours, 2)
    if relation is Relation.INSIDE:
        other = (other[0], rng.choice(HOLDERS))
        inner = [colour for colour in colours if _apart(COLOURS[colour], COLOURS[other[0]])]
        kind = (rng.choice(inner), kind[1])
        around = _thing(rng, other, (0.5, 0.5), span=(0.68, 0.76))
        return [_thing(rng, kind, (around.x, around.y), span=SMALL, sway=0), around], relation
    along = (0.25, 0.75) if relation in (Relation.LEFT_OF, Relation.ABOVE) else (0.75, 0.25)
    things: list[Thing] = []
    for what, place in zip((kind, other), along, strict=True):
        aside = rng.uniform(0.44, 0.56)
        at = (place, aside) if relation in (Relation.LEFT_OF, Relation.RIGHT_OF) else (aside, place)
        things.append(_thing(rng, what, at, span=rng.choice((SMALL, LARGE))))
    return things, relation


# --- drawing it ---

FINE = 4  # shapes are drawn this many times larger and shrunk: smooth edges


def draw(scene: Scene, size: tuple[int, int] = (320, 240)) -> Image.Image:
    """The picture of a scene, width x height px; mode "L" where the scene has no colours, else "RGB"."""
    picture = _draw_background(scene.background, size)
    for thing in sorted(scene.things, key=lambda thing: -thing.span):  # what is inside another comes on top
        _draw_thing(picture, thing)
    return picture.convert("L") if scene.colourless else picture


def encode(picture: Image.Image, form: Literal["JPEG", "PNG"] = "JPEG") -> bytes:
    file = io.BytesIO()
    picture.save(file, form, **({"quality": 90} if form == "JPEG" else {}))
    return file.getvalue()


def _draw_background(background: Background, size: tuple[int, int]) -> Image.Image:
    first, last = (Image.new("RGB", size, GROUNDS[background.colours[end]]) for end in (0, -1))
    match background.kind:
        case "plain":
            return first
        case "gradient":
            return Image.composite(last, first, Image.linear_gradient("L").resize(size))
        case "striped":
            stripes = Image.frombytes("L", (10, 1), b"\x00\xff" * 5)
            return Image.composite(last, first, stripes.resize(size, Image.Resampling.NEAREST))
        case "grainy":
            coarse = (max(1, size[0] // 2), max(1, size[1] // 2))
            grains = random.Random(background.grain).randbytes(coarse[0] * coarse[1])
            noise = (
                Image.frombytes("L", coarse, grains).point([value // 6 for value in range(256)]).resize(size)
            )
            return ImageChops.add(first, Image.merge("RGB", (noise, noise, noise)), offset=-21)


def _draw_thing(picture: Image.Image, thing: Thing) -> None:
    width, height = picture.size
    diameter = max(4, round(thing.span * min(width, height)))
    side = round(diameter * 1.3)  # room for corners that reach out of the circle, and for the shadow
    mask = _mask(thing.shape, thing.tilt, diameter, side)
    left, top = round(thing.x * width - side / 2), round(thing.y * height - side / 2)
    away = max(1, diameter // 40)
    shadow = mask.filter(ImageFilter.BoxBlur(away)).point([value * 7 // 20 for value in range(256)])
    picture.paste((0, 0, 0), (left + away, top + away), shadow)
    red, green, blue = COLOURS[thing.colour]
    lit = Image.new("RGB", (side, side), (min(255, red + 14), min(255, green + 14), min(255, blue + 14)))
    dim = Image.new("RGB", (side, side), (red * 7 // 8, green * 7 // 8, blue * 7 // 8))
    picture.paste(Image.composite(dim, lit, _light().resize((side, side))), (left, top), mask)


@cache
def _light() -> Image.Image:
    """Brightness falling away from a lamp in the upper left; 0 is the brightest."""
    return Image.radial_gradient("L").crop((72, 72, 256, 256))


def _mask(shape: str, tilt: float, diameter: int, side: int) -> Image.Image:
    outline, hole = OUTLINES[shape]
    sin, cos = math.sin(math.radians(tilt)), math.cos(math.radians(tilt))
    large = Image.new("L", (side * FINE, side * FINE))
    pen = ImageDraw.Draw(large)
    radius, middle = diameter * FINE / 2, side * FINE / 2
    for points, ink in ((outline(), 255), (hole(), 0)):
        if points:
            pen.polygon(
                [
                    (middle + radius * (x * cos - y * sin), middle + radius * (x * sin + y * cos))
                    for x, y in points
                ],
                fill=ink,
            )
    return large.reduce(FINE)


def _round(radius: float = 1.0, at: Point = (0.0, 0.0)) -> list[Point]:
    return [(at[0] + radius * math.cos(turn), at[1] + radius * math.sin(turn)) for turn in _turns(72)]


def _turns(count: int) -> list[float]:
    """Angles once around, from the top, clockwise as y points down."""
    return [2 * math.pi * step / count - math.pi / 2 for step in range(count)]


def _square() -> list[Point]:
    return [(-0.8, -0.8), (0.8, -0.8), (0.8, 0.8), (-0.8, 0.8)]


def _triangle() -> list[Point]:
    return [(1.1 * math.cos(turn), 0.16 + 1.1 * math.sin(turn)) for turn in _turns(3)]


def _star() -> list[Point]:
    radii = (1.1, 0.46)
    return [
        (radii[place % 2] * math.cos(turn), 0.05 + radii[place % 2] * math.sin(turn))
        for place, turn in enumerate(_turns(10))
    ]


def _heart() -> list[Point]:
    return [
        (math.sin(turn) ** 3, -(13 * math.cos(turn) - 5 * math.cos(2 * turn) - 2 * math.cos(3 * turn)) / 16)
        for turn in _turns(60)
    ]


def _cross() -> list[Point]:
    long, arm = 0.98, 0.33
    quarter = [(-arm, -long), (arm, -long), (arm, -arm)]
    points = list(quarter)
    for _ in range(3):
        quarter = [(-y, x) for x, y in quarter]
        points += quarter
    return points


def _diamond() -> list[Point]:
    return [(0, -1.08), (0.78, 0), (0, 1.08), (-0.78, 0)]


def _nothing() -> list[Point]:
    return []


OUTLINES: dict[str, tuple[Callable[[], list[Point]], Callable[[], list[Point]]]] = {  # shape -> outline, hole
    "circle": (_round, _nothing),
    "square": (_square, _nothing),
    "triangle": (_triangle, _nothing),
    "star": (_star, _nothing),
    "heart": (_heart, _nothing),
    "ring": (_round, lambda: _round(0.58)),
    "cross": (_cross, _nothing),
    "crescent": (_round, lambda: _round(0.86, at=(0.45, -0.12))),
    "diamond": (_diamond, _nothing),
}

# --- saying what it shows ---

NUMBERS = ("no", "one", "two", "three", "four", "five")
SIZES = {"small": ("small", "little"), "large": ("large", "big")}
SAYINGS = {
    Relation.LEFT_OF: ("left of", "to the left of"),
    Relation.RIGHT_OF: ("right of", "to the right of"),
    Relation.ABOVE: ("above", "over"),
    Relation.BELOW: ("below", "under"),
    Relation.INSIDE: ("inside", "within"),
}
REVERSE = {
    Relation.LEFT_OF: SAYINGS[Relation.RIGHT_OF],
    Relation.RIGHT_OF: SAYINGS[Relation.LEFT_OF],
    Relation.ABOVE: SAYINGS[Relation.BELOW],
    Relation.BELOW: SAYINGS[Relation.ABOVE],
    Relation.INSIDE: ("around", "surrounding"),
}


def captions(scene: Scene, rng: random.Random, *, count: int | None = None) -> list[str]:
    """Different true sentences about a scene, of 4 to 15 words; 3 to 5 of them unless told how many."""
    wanted = count or rng.randint(3, 5)
    said: dict[str, str] = {}
    while len(said) < wanted:
        sentence = _sentence(scene, rng)
        if 4 <= len(sentence.split()) <= 15:
            said.setdefault(sentence, rng.choices((sentence + ".", sentence), weights=(3, 1))[0])
    return [text[0].upper() + text[1:] if rng.random() < 0.8 else text for text in said.values()]


def _sentence(scene: Scene, rng: random.Random) -> str:
    what, plural = _what(scene, rng)
    ground = _ground(scene.background, rng)
    if len(scene.things) == 1 and rng.random() < 0.5:
        place = _place(scene.things[0], rng)
        return rng.choice(
            (
                f"{what} {place}",
                f"{what} {place} of {ground}",
                f"there is {what} {place}",
                f"a picture with {what} {place}",
            )
        )
    there = f"there {'are' if plural else 'is'}"
    return rng.choice(
        (
            what,
            f"{what} on {ground}",
            f"{what} against {ground}",
            f"{what} drawn on {ground}",
            f"{ground} with {what}",
            f"{there} {what}",
            f"{there} {what} on {ground}",
            f"a picture of {what}",
            f"a drawing of {what}",
            f"a drawing of {what} on {ground}",
        )
    )


def _what(scene: Scene, rng: random.Random) -> tuple[str, bool]:
    """All things of a scene as one noun phrase, and whether it begins with a plural."""
    named = [(_noun_phrase(count, thing, rng), count > 1) for count, thing in scene.groups]
    if scene.relation:
        (first, _), (second, _) = named
        if rng.random() < 0.5:
            return f"{first} {rng.choice(SAYINGS[scene.relation])} {second}", False
        return f"{second} {rng.choice(REVERSE[scene.relation])} {first}", False
    rng.shuffle(named)
    return " and ".join(phrase for phrase, _ in named), named[0][1]


def _noun_phrase(count: int, thing: Thing, rng: random.Random) -> str:
    noun = rng.choice(SHAPES[thing.shape])
    words = [rng.choice(SIZES[thing.size])] if rng.random() < 0.5 else []
    words += [thing.colour, noun if count == 1 else noun + ("es" if noun.endswith("s") else "s")]
    number = NUMBERS[count] if count > 1 else "an" if words[0][0] in "aeiou" else "a"
    return " ".join([number, *words])


def _place(thing: Thing, rng: random.Random) -> str:
    across = "left" if thing.x < 0.4 else "right" if thing.x > 0.6 else ""
    down = "top" if thing.y < 0.4 else "bottom" if thing.y > 0.6 else ""
    if across and down:
        return f"in the {down} {across} {rng.choice(('corner', 'part'))}"
    if across:
        return f"on the {across} side"
    return f"at the {down}" if down else f"in the {rng.choice(('middle', 'centre'))}"


def _ground(background: Background, rng: random.Random) -> str:
    first, last = background.colours[0], background.colours[-1]
    match background.kind:
        case "plain":
            ways = (f"a {first} background", f"a plain {first} background")
        case "gradient":
            ways = (f"a background fading from {first} to {last}", f"a {first} to {last} gradient")
        case "grainy":
            ways = (f"a grainy {first} background", f"a speckled {first} background")
        case "striped":
            ways = (f"a striped {first} and {last} background", f"{first} and {last} stripes")
    return rng.choice(ways)


# --- damage, as the real files and the real web have it ---


class Damage(StrEnum):
    """What is wrong with a row, or with the picture that it names."""

    # The row
    MISSING_TAB = "missing_tab"
    EMPTY_CAPTION = "empty_caption"
    NOT_A_URL = "not_a_url"
    INVALID_UTF8 = "invalid_utf8"
    UNKNOWN_IMAGE = "unknown_image"  # COCO: an annotation of an image that is not listed
    NO_ANNOTATION = "no_annotation"  # COCO: an image that no annotation is about
    # The link
    NOT_FOUND = "not_found"
    GONE = "gone"
    FORBIDDEN = "forbidden"
    SERVER_ERROR = "server_error"
    RESET = "reset"
    HTML_200 = "html_200"
    # The file
    TRUNCATED_JPEG = "truncated_jpeg"
    GARBAGE = "garbage"
    BOMB_HEADER = "bomb_header"  # a PNG of 2.5 billion px, by its header
    # The picture
    TINY = "tiny"  # under 32 px
    EXTREME_ASPECT = "extreme_aspect"  # longer than 20 times its shorter side


# What a corpus with min_side = 32, max_aspect = 20 must call it.
REASONS: dict[Damage, Reason] = {
    Damage.MISSING_TAB: Reason.INPUT_MALFORMED,
    Damage.EMPTY_CAPTION: Reason.INPUT_NO_CAPTION,
    Damage.NOT_A_URL: Reason.INPUT_BAD_URL,
    Damage.INVALID_UTF8: Reason.INPUT_MALFORMED,
    Damage.UNKNOWN_IMAGE: Reason.INPUT_NO_IMAGE,
    Damage.NO_ANNOTATION: Reason.INPUT_NO_CAPTION,
    Damage.NOT_FOUND: Reason.HTTP_404,
    Damage.GONE: Reason.HTTP_410,
    Damage.FORBIDDEN: Reason.HTTP_403,
    Damage.SERVER_ERROR: Reason.HTTP_5XX,
    Damage.RESET: Reason.CONNECT_RESET,
    Damage.HTML_200: Reason.NOT_AN_IMAGE,
    Damage.TRUNCATED_JPEG: Reason.DECODE_FAILED,
    Damage.GARBAGE: Reason.NOT_AN_IMAGE,
    Damage.BOMB_HEADER: Reason.DECODE_LIMIT,
    Damage.TINY: Reason.IMAGE_SMALL,
    Damage.EXTREME_ASPECT: Reason.IMAGE_ASPECT,
}
LINKS = {
    Damage.NOT_FOUND: Fault.NOT_FOUND,
    Damage.GONE: Fault.GONE,
    Damage.FORBIDDEN: Fault.FORBIDDEN,
    Damage.SERVER_ERROR: Fault.SERVER_ERROR,
    Damage.RESET: Fault.RESET,
    Damage.HTML_200: Fault.HTML_200,
}
OF_IMAGES = (
    *LINKS,
    Damage.TRUNCATED_JPEG,
    Damage.GARBAGE,
    Damage.BOMB_HEADER,
    Damage.TINY,
    Damage.EXTREME_ASPECT,
)
OF_COCO = (*OF_IMAGES, Damage.EMPTY_CAPTION, Damage.NOT_A_URL, Damage.UNKNOWN_IMAGE, Damage.NO_ANNOTATION)
OF_TSV = (*OF_IMAGES, Damage.EMPTY_CAPTION, Damage.NOT_A_URL, Damage.MISSING_TAB, Damage.INVALID_UTF8)
DAMAGED = 0.08  # of all images


def _damages(count: int, kinds: Sequence[Damage], rng: random.Random) -> list[Damage | None]:
    """What befalls each of `count` images: every kind about as often as the others."""
    damages: list[Damage | None] = [None] * count
    for turn, place in enumerate(rng.sample(range(count), round(DAMAGED * count))):
        damages[place] = kinds[turn % len(kinds)]
    return damages


def _damaged_file(picture: Picture, damage: Damage | None) -> bytes:
    """The bytes that are served for a picture."""
    match damage:
        case Damage.TRUNCATED_JPEG:
            return picture.jpeg[: len(picture.jpeg) // 2]
        case Damage.GARBAGE:
            return b"\x00garbage" + random.Random(picture.id).randbytes(2000)
        case Damage.BOMB_HEADER:
            return _png_bomb(50_000, 50_000)
        case Damage.TINY | Damage.EXTREME_ASPECT:
            return encode(draw(picture.scene, size=_damaged_size(picture, damage)))
        case _:
            return picture.jpeg


def _damaged_size(picture: Picture, damage: Damage | None) -> tuple[int, int]:
    return {Damage.TINY: (24, 18), Damage.EXTREME_ASPECT: (860, 40)}.get(damage or Damage.RESET, picture.size)


def _png_bomb(width: int, height: int) -> bytes:
    """A PNG whose header is correct and promises width x height px; hardly any follow."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(bytes(1000)))
        + chunk(b"IEND", b"")
    )


# --- publishing: each source in its own format ---


@dataclass(frozen=True)
class Published:
    """What was written, and what must come of it. In each source rows = kept_rows + the sum of dropped."""

    files: dict[str, list[Path]]
    rows: dict[str, int]  # annotation rows; of COCO its annotations, and its images without any
    kept_rows: dict[str, int]
    kept_images: dict[str, int]
    dropped: dict[str, dict[Damage, int]]  # rows
    pictures: dict[str, int]  # URL of every kept image -> id of its picture in the world
    damaged: dict[str, Damage]  # URL of every image that must be lost on the way
    hosts: tuple[str, ...]  # every host name in the files, sorted


@dataclass(frozen=True)
class _Edition:
    """One source's part of Published."""

    file: Path
    rows: int
    dropped: Counter[Damage]
    urls: dict[
        str, tuple[Picture, Damage | None]
    ]  # of every image that has a URL and is not lost to its own row


def publish(world: World, folder: Path, web: Web | None) -> Published:
    """Write the annotation files of every source below `folder`, and serve the pictures on the web.

    A world of 2,400 images gives 1,000 to COCO and 700 each to CC3M and CC12M; others are divided alike.
    """
    pictures = iter(world)
    whole = sum(share for share, _ in SOURCES.values())
    editions: dict[str, _Edition] = {}
    for name, (share, publish_source) in SOURCES.items():
        own = [next(pictures) for _ in range(len(world) * share // whole)]
        editions[name] = publish_source(own, folder, random.Random(f"{name}/{world.seed}"))
    urls = {url: entry for edition in editions.values() for url, entry in edition.urls.items()}
    if web:
        for url, (picture, damage) in urls.items():
            _put_online(web, url, picture, damage)
    kept = {url: picture.id for url, (picture, damage) in urls.items() if damage is None}
    return Published(
        files={name: [edition.file] for name, edition in editions.items()},
        rows={name: edition.rows for name, edition in editions.items()},
        kept_rows={name: edition.rows - edition.dropped.total() for name, edition in editions.items()},
        kept_images={name: sum(url in kept for url in edition.urls) for name, edition in editions.items()},
        dropped={name: dict(sorted(edition.dropped.items())) for name, edition in editions.items()},
        pictures=kept,
        damaged={url: damage for url, (_, damage) in urls.items() if damage},
        hosts=tuple(sorted({urlsplit(url).netloc for url in urls})),
    )


def _put_online(web: Web, url: str, picture: Picture, damage: Damage | None) -> None:
    parts = urlsplit(url)
    target = f"{parts.path}?{parts.query}" if parts.query else parts.path
    if damage is None and parts.path.endswith(".png"):
        web.serve(parts.netloc, target, encode(draw(picture.scene, picture.size), "PNG"), "image/png")
    else:
        web.serve(parts.netloc, target, _damaged_file(picture, damage))
    if damage and damage in LINKS:
        web.fault(parts.netloc, target, LINKS[damage])


# COCO: one JSON object, its lists in no order

COCO_INFO = {
    "description": "COCO 2017 Dataset",
    "url": "http://cocodataset.org",
    "version": "1.0",
    "year": 2017,
    "contributor": "COCO Consortium",
    "date_created": "2017/09/01",
}
COCO_LICENSES = {
    1: ("http://creativecommons.org/licenses/by-nc-sa/2.0/", "Attribution-NonCommercial-ShareAlike License"),
    2: ("http://creativecommons.org/licenses/by-nc/2.0/", "Attribution-NonCommercial License"),
    3: ("http://creativecommons.org/licenses/by-nc-nd/2.0/", "Attribution-NonCommercial-NoDerivs License"),
    4: ("http://creativecommons.org/licenses/by/2.0/", "Attribution License"),
    5: ("http://creativecommons.org/licenses/by-sa/2.0/", "Attribution-ShareAlike License"),
    6: ("http://creativecommons.org/licenses/by-nd/2.0/", "Attribution-NoDerivs License"),
    7: ("http://flickr.com/commons/usage/", "No known copyright restrictions"),
    8: ("http://www.usa.gov/copyright.shtml", "United States Government Work"),
}
COCO_LICENSE_SPREAD = (1431, 630, 1414, 857, 417, 246, 5, 0)  # images of val2017 under each


def publish_coco(pictures: Sequence[Picture], folder: Path, rng: random.Random) -> _Edition:
    """annotations/captions_train2017.json"""
    ids = rng.sample(range(1, 600_000), len(pictures))
    strangers = iter(rng.sample(range(600_000, 700_000), len(pictures)))
    images: list[dict[str, str | int]] = []
    said: list[tuple[int, str]] = []  # image id, caption
    urls: dict[str, tuple[Picture, Damage | None]] = {}
    dropped: Counter[Damage] = Counter()
    for picture, id, damage in zip(pictures, ids, _damages(len(pictures), OF_COCO, rng), strict=True):
        image = _coco_image(id, picture, damage, rng)
        images.append(image)
        own = [(id, _coco_habit(caption, rng)) for caption in picture.captions]
        lost = 0  # rows
        match damage:
            case Damage.NO_ANNOTATION:
                own, lost = [], 1
            case Damage.EMPTY_CAPTION:
                own[0], lost = (id, ""), 1
            case Damage.UNKNOWN_IMAGE:
                own, lost = [*own, (next(strangers), own[0][1])], 1
            case Damage():
                lost = len(own)
            case None:
                pass
        if damage:
            dropped[damage] += lost
        if damage not in (Damage.NO_ANNOTATION, Damage.NOT_A_URL):
            of_image = damage if damage in OF_IMAGES else None
            urls[str(image["coco_url"])] = (picture, of_image)
        said += own
    rng.shuffle(images)
    rng.shuffle(said)
    numbers = rng.sample(range(1, 900_000), len(said))
    document = {
        "info": COCO_INFO,
        "licenses": [{"url": url, "id": id, "name": name} for id, (url, name) in COCO_LICENSES.items()],
        "images": images,
        "annotations": [
            {"image_id": image, "id": number, "caption": caption}
            for number, (image, caption) in zip(numbers, said, strict=True)
        ],
    }
    file = folder / "annotations" / "captions_train2017.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(document))
    return _Edition(file, len(said) + dropped[Damage.NO_ANNOTATION], dropped, urls)


def _coco_image(id: int, picture: Picture, damage: Damage | None, rng: random.Random) -> dict[str, str | int]:
    name = f"{id:012d}.jpg"
    width, height = _damaged_size(picture, damage)
    published = f"http://images.cocodataset.org/train2017/{name}"
    photo = f"{rng.randint(1000, 9999)}/{rng.randint(10**8, 10**10)}_{rng.getrandbits(40):010x}_z.jpg"
    day, at = f"2013-11-{rng.randint(14, 25)}", f"{rng.randint(0, 23):02d}:{rng.randint(0, 59):02d}"
    return {
        "license": rng.choices(tuple(COCO_LICENSES), weights=COCO_LICENSE_SPREAD)[0],
        "file_name": name,
        "coco_url": "no longer available" if damage is Damage.NOT_A_URL else published,
        "height": height,
        "width": width,
        "date_captured": f"{day} {at}:{rng.randint(0, 59):02d}",
        "flickr_url": f"http://farm{rng.randint(1, 9)}.staticflickr.com/{photo}",
        "id": id,
    }


def _coco_habit(caption: str, rng: random.Random) -> str:
    """White space around captions, about as often as the people who wrote COCO's left it there."""
    before, after = rng.choices((("", ""), ("", " "), (" ", ""), ("", "\n")), weights=(850, 130, 12, 8))[0]
    return before + caption + after


# CC3M and CC12M: a line a row


class _Row(NamedTuple):
    url: str
    caption: str
    damage: Damage | None


CC3M_SITES = (
    "http://media.newswire.example",
    "https://i.pinboard.example",
    "https://thumbs.stock-photos.example",
)
CC12M_SITES = (
    "https://cdn.shop-front.example",
    "http://travel-blog.example",
    "https://static.recipes.example",
)


def publish_cc3m(pictures: Sequence[Picture], folder: Path, rng: random.Random) -> _Edition:
    """Train_GCC-training.tsv: caption TAB url, lower-case words with spaces around punctuation."""

    def line(row: _Row) -> str:
        caption = re.sub(r"\s*([.,])", r" \1", row.caption.lower())
        return f"{caption}\t{row.url}"

    return _publish_lines(folder / "Train_GCC-training.tsv", pictures, CC3M_SITES, line, rng)


def publish_cc12m(pictures: Sequence[Picture], folder: Path, rng: random.Random) -> _Edition:
    """cc12m.tsv: url TAB caption, as pages have their alt texts."""

    def line(row: _Row) -> str:
        return f"{row.url}\t{_alt_text(row.caption, rng) if row.caption else ''}"

    return _publish_lines(folder / "cc12m.tsv", pictures, CC12M_SITES, line, rng)


def _publish_lines(
    file: Path,
    pictures: Sequence[Picture],
    sites: Sequence[str],
    line: Callable[[_Row], str],
    rng: random.Random,
) -> _Edition:
    rows = list(_rows(pictures, sites, _damages(len(pictures), OF_TSV, rng), rng))
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("wb") as out:
        for row in rows:
            data = line(row).encode()
            if row.damage is Damage.MISSING_TAB:
                data = data.replace(b"\t", b" ")
            elif row.damage is Damage.INVALID_UTF8:
                data = data.replace(b" ", b" \xff\xfe", 1)
            out.write(data + b"\n")
    urls = {
        row.url: (picture, row.damage)
        for picture, row in zip(pictures, rows, strict=True)
        if row.damage is None or row.damage in OF_IMAGES
    }
    return _Edition(file, len(rows), Counter(row.damage for row in rows if row.damage), urls)


def _rows(
    pictures: Sequence[Picture], sites: Sequence[str], damages: Iterable[Damage | None], rng: random.Random
) -> Iterator[_Row]:
    for picture, damage in zip(pictures, damages, strict=True):
        name = f"{rng.getrandbits(64):016x}"
        kind = "png" if damage is None and rng.random() < 0.04 else "jpg"
        path = rng.choice(
            (
                f"/photos/{name}.{kind}",
                f"/{rng.randint(2009, 2019)}/{rng.randint(1, 12):02d}/{name[:6]}-{picture.id}.{kind}",
                f"/wp-content/uploads/{name[:8]}_({picture.id}).{kind}?w={picture.size[0]}&h={picture.size[1]}",
                f"/a%20few%20shapes/{name}.{kind}",
            )
        )
        url = "n/a" if damage is Damage.NOT_A_URL else rng.choice(sites) + path
        caption = "" if damage is Damage.EMPTY_CAPTION else rng.choice(picture.captions)
        yield _Row(url, caption, damage)


def _alt_text(caption: str, rng: random.Random) -> str:
    """The same truth as a page puts it: with a name taken out, an entity, an emoji, a TAB, or unchanged."""
    plain = caption.removesuffix(".")
    ways = (
        caption,
        plain,
        f"{plain} - photo by <PERSON>",
        f"Image of {plain[0].lower()}{plain[1:]} by <PERSON>, <PERSON> &amp; co.",
        f"&quot;{plain}&quot; | shapes &amp; colours",
        f"{plain} \N{ARTIST PALETTE}",
        f"{plain}\tStock Photo",
    )
    return rng.choices(ways, weights=(30, 30, 20, 8, 6, 4, 2))[0]


# Source -> its share of the world, and how it is published.
SOURCES: dict[str, tuple[int, Callable[[Sequence[Picture], Path, random.Random], _Edition]]] = {
    "coco": (10, publish_coco),
    "cc3m": (7, publish_cc3m),
    "cc12m": (7, publish_cc12m),
}
