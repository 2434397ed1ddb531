"""A drawn world: pictures of shapes with captions that are true.

    seed --> Scene --draw-------> picture, 200 to 420 px wide
               |-----captions---> true sentences
               +-----box--------> where each thing is in the picture

A scene holds everything that its picture shows, so what a caption says can be checked, and a model can be
asked for a colour and a shape that it never saw together (`split`). All chance comes from random.Random: the
same seed gives the same bytes in any process. `tests.publish` writes the world as the datasets are written.

    for picture in World(seed=0, images=2400):
        print(picture.id, picture.size, picture.captions)
"""

import io
import math
import random
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import cache
from typing import Literal, NamedTuple

from PIL import Image, ImageChops, ImageDraw, ImageFilter

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

    def scene(self, number: int) -> Scene:
        """What is in a picture, without drawing it."""
        return imagine(random.Random(f"world/{self.seed}/{number}"))

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


def box(thing: Thing, size: tuple[int, int]) -> tuple[int, int, int, int]:
    """Left, top, width and height in px of a thing, without its shadow, in the picture of that size."""
    frame = _frame(thing, size)
    left, top, right, bottom = _mask(thing.shape, thing.tilt, frame, fine=1).getbbox() or (0, 0, 1, 1)
    return frame.left + left, frame.top + top, right - left, bottom - top


class _Frame(NamedTuple):
    """The square in px that a thing is drawn in."""

    left: int
    top: int
    side: int
    diameter: int  # of the thing


def _frame(thing: Thing, size: tuple[int, int]) -> _Frame:
    width, height = size
    diameter = max(4, round(thing.span * min(width, height)))
    side = round(diameter * 1.3)  # room for corners that reach out of the circle, and for the shadow
    return _Frame(round(thing.x * width - side / 2), round(thing.y * height - side / 2), side, diameter)


def _draw_thing(picture: Image.Image, thing: Thing) -> None:
    frame = _frame(thing, picture.size)
    left, top, side, diameter = frame
    mask = _mask(thing.shape, thing.tilt, frame, fine=FINE)
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


def _mask(shape: str, tilt: float, frame: _Frame, *, fine: int) -> Image.Image:
    outline, hole = OUTLINES[shape]
    sin, cos = math.sin(math.radians(tilt)), math.cos(math.radians(tilt))
    large = Image.new("L", (frame.side * fine, frame.side * fine))
    pen = ImageDraw.Draw(large)
    radius, middle = frame.diameter * fine / 2, frame.side * fine / 2
    for points, ink in ((outline(), 255), (hole(), 0)):
        if points:
            pen.polygon(
                [
                    (middle + radius * (x * cos - y * sin), middle + radius * (x * sin + y * cos))
                    for x, y in points
                ],
                fill=ink,
            )
    return large.reduce(fine)


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
    what, plural = all_things(scene, rng)
    ground = ground_of(scene.background, rng)
    if len(scene.things) == 1 and rng.random() < 0.5:
        place = place_of(scene.things[0], rng)
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


def all_things(scene: Scene, rng: random.Random) -> tuple[str, bool]:
    """All things of a scene as one noun phrase, and whether it begins with a plural."""
    named = [(noun_phrase(count, thing, rng), count > 1) for count, thing in scene.groups]
    if scene.relation:
        (first, _), (second, _) = named
        if rng.random() < 0.5:
            return f"{first} {rng.choice(SAYINGS[scene.relation])} {second}", False
        return f"{second} {rng.choice(REVERSE[scene.relation])} {first}", False
    rng.shuffle(named)
    return " and ".join(phrase for phrase, _ in named), named[0][1]


def noun_phrase(count: int, thing: Thing, rng: random.Random) -> str:
    """So many of a thing, as "three small red circles"."""
    noun = rng.choice(SHAPES[thing.shape])
    words = [rng.choice(SIZES[thing.size])] if rng.random() < 0.5 else []
    words += [thing.colour, noun if count == 1 else noun + ("es" if noun.endswith("s") else "s")]
    number = NUMBERS[count] if count > 1 else "an" if words[0][0] in "aeiou" else "a"
    return " ".join([number, *words])


def place_of(thing: Thing, rng: random.Random) -> str:
    """Where in the picture a thing is, as "in the top left corner"."""
    across = "left" if thing.x < 0.4 else "right" if thing.x > 0.6 else ""
    down = "top" if thing.y < 0.4 else "bottom" if thing.y > 0.6 else ""
    if across and down:
        return f"in the {down} {across} {rng.choice(('corner', 'part'))}"
    if across:
        return f"on the {across} side"
    return f"at the {down}" if down else f"in the {rng.choice(('middle', 'centre'))}"


def ground_of(background: Background, rng: random.Random) -> str:
    """The background as a noun phrase."""
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
