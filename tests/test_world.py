"""The drawn world is the same for the same seed, its captions are true, and its boxes fit."""

import hashlib
import io
import random
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

from PIL import Image, ImageChops

from tests.world import (
    COLOURS,
    GROUNDS,
    HELDOUT,
    SHAPES,
    Relation,
    Scene,
    Thing,
    World,
    box,
    captions,
    draw,
    imagine,
    split,
)


def scenes(count: int) -> list[Scene]:
    return [imagine(random.Random(seed)) for seed in range(count)]


# The same seed


def digest(world: World) -> str:
    """A hash over pictures and captions."""
    total = hashlib.sha256()
    for picture in world:
        total.update(picture.jpeg + "\n".join(picture.captions).encode())
    return total.hexdigest()


def test_the_same_seed_gives_the_same_bytes_in_another_process() -> None:
    other = subprocess.run(
        [sys.executable, "-c", "from tests.test_world import *; print(digest(World(seed=3, images=48)))"],
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
        check=True,
        env={"PYTHONHASHSEED": "99"},
    )
    assert other.stdout.strip() == digest(World(seed=3, images=48))
    assert other.stdout.strip() != digest(World(seed=4, images=48))


def test_a_picture_does_not_depend_on_how_many_there_are() -> None:
    assert list(World(seed=1, images=3)) == list(World(seed=1, images=5))[:3]


# The pictures


def test_pictures_vary_in_size_and_some_are_grey() -> None:
    pictures = list(World(seed=2, images=150))
    modes: Counter[str] = Counter()
    for picture in pictures:
        with Image.open(io.BytesIO(picture.jpeg)) as image:
            modes[image.mode] += 1
            assert image.size == picture.size and image.format == "JPEG"
            assert 200 <= image.width <= 420 and 150 <= image.height <= 420
    assert len({picture.size for picture in pictures}) > 100
    assert modes["RGB"] > 130 and modes["L"] == sum(picture.scene.colourless for picture in pictures) > 0


def test_every_thing_is_in_the_picture_in_its_colour() -> None:
    for scene in scenes(150):
        image = draw(scene, size=(240, 180)).convert("RGB")
        for thing in scene.things:
            across, down = thing.x * 240, thing.y * 180
            reach = thing.span * 180 / 2
            box = (round(across - reach), round(down - reach), round(across + reach), round(down + reach))
            assert box[0] >= 0 and box[1] >= 0 and box[2] <= 240 and box[3] <= 180, (
                "it lies within the picture"
            )
            pixels = list(image.crop(box).get_flattened_data())
            near = sum(same_colour(pixel, COLOURS[thing.colour]) for pixel in pixels)
            assert near > 0.15 * len(pixels), (thing, near / len(pixels))


def same_colour(pixel: object, colour: tuple[int, int, int]) -> bool:
    assert isinstance(pixel, tuple)
    return all(abs(seen - true) < 40 for seen, true in zip(pixel, colour, strict=True))


def test_a_box_holds_its_thing_and_no_more() -> None:
    for scene in scenes(200):
        if scene.colourless or len(scene.things) != 1:
            continue
        (thing,) = scene.things
        image = draw(scene, size=(300, 240))
        left, top, width, height = box(thing, image.size)
        away = ImageChops.difference(image, Image.new("RGB", image.size, COLOURS[thing.colour]))
        furthest = ImageChops.lighter(ImageChops.lighter(*away.split()[:2]), away.split()[2])
        seen = furthest.point([255 * (value < 40) for value in range(256)]).getbbox()
        assert seen is not None
        for edge, true in zip(seen, (left, top, left + width, top + height), strict=True):
            assert abs(edge - true) <= 3, (thing, seen)


def test_things_can_be_counted_because_none_touches_another() -> None:
    for scene in scenes(500):
        for width, height in ((1.0, 1.0), (1.5, 1.0), (1.0, 1.5)):
            for place, one in enumerate(scene.things):
                for other in scene.things[place + 1 :]:
                    gap = complex((one.x - other.x) * width, (one.y - other.y) * height)
                    if scene.relation is Relation.INSIDE:
                        assert abs(gap) + one.span / 2 < other.span / 2
                    else:
                        assert abs(gap) > (one.span + other.span) / 2


def test_even_the_narrowest_picture_can_be_drawn() -> None:
    for scene in scenes(30):
        for size in ((1, 1), (24, 18), (860, 40)):
            assert draw(scene, size=size).size == size


# The captions

NAMES = {name: shape for shape, names in SHAPES.items() for name in names}
PHRASE = re.compile(
    r"\b(?P<number>an?|two|three|four|five) (?:(?P<size>small|little|large|big) )?"
    rf"(?P<colour>{'|'.join(COLOURS)}) "
    rf"(?P<name>{'|'.join(sorted(NAMES, key=len, reverse=True))})(?P<plural>e?s)?\b"
)
COUNTS = {"a": 1, "an": 1, "two": 2, "three": 3, "four": 4, "five": 5}
SIZES = {"small": "small", "little": "small", "large": "large", "big": "large"}
GROUND = "|".join(sorted(GROUNDS, key=len, reverse=True))


def things_named(caption: str, scene: Scene) -> list[Thing]:
    """One thing for each noun phrase, in order. Fails where the scene has not exactly those."""
    named: list[Thing] = []
    for phrase in PHRASE.finditer(caption):
        meant = [
            thing
            for thing in scene.things
            if (thing.colour, thing.shape) == (phrase["colour"], NAMES[phrase["name"]])
            and SIZES.get(phrase["size"], thing.size) == thing.size
        ]
        assert len(meant) == COUNTS[phrase["number"]], caption
        assert bool(phrase["plural"]) == (len(meant) > 1), caption
        assert (phrase["number"] == "an") <= (phrase["size"] is None and phrase["colour"] == "orange"), (
            caption
        )
        named.append(meant[0])
    return named


def is_true_of(relation: str, one: Thing, other: Thing) -> bool:
    match relation:
        case "left of":
            return one.x < other.x - 0.3
        case "right of":
            return one.x > other.x + 0.3
        case "above" | "over":
            return one.y < other.y - 0.3
        case "below" | "under":
            return one.y > other.y + 0.3
        case "inside" | "within":
            return (one.x, one.y) == (other.x, other.y) and one.span < other.span
        case "around" | "surrounding":
            return (one.x, one.y) == (other.x, other.y) and one.span > other.span
        case _:
            raise AssertionError(relation)


def test_what_captions_say_of_things_is_true() -> None:
    said: Counter[str] = Counter()
    for seed, scene in enumerate(scenes(600)):
        for caption in captions(scene, random.Random(seed)):
            text = caption.lower()
            named = things_named(text, scene)
            assert len(named) == len(scene.groups), f"each group is named once: {caption}"
            related = re.search(
                r"\b(left of|right of|above|over|below|under|inside|within|around|surrounding)\b", text
            )
            assert bool(related) == bool(scene.relation), caption
            if related:
                assert is_true_of(related[1], named[0], named[1]), caption
                said[related[1]] += 1
            place = re.search(
                r"(?:in|on|at) the ((?:top|bottom|left|right|middle|centre)\b ?(?:left|right)?)", text
            )
            if place:
                thing = named[0]
                words = set(place[1].split())
                assert ("left" in words) == (thing.x < 0.4) and ("right" in words) == (thing.x > 0.6), caption
                assert ("top" in words) == (thing.y < 0.4) and ("bottom" in words) == (thing.y > 0.6), caption
                said["place"] += 1
    assert len(said) == 11, "every relation is spoken of, and places are"


def test_what_captions_say_of_the_background_is_true() -> None:
    told: Counter[str] = Counter()
    for seed, scene in enumerate(scenes(600)):
        for caption in captions(scene, random.Random(seed)):
            text = caption.lower()
            kinds = {
                "gradient": re.search(rf"({GROUND}) to ({GROUND})(?: gradient)?\b", text),
                "striped": re.search(rf"({GROUND}) and ({GROUND}) (?:background|stripes)", text),
                "grainy": re.search(rf"(?:grainy|speckled) ({GROUND}) background", text),
                "plain": re.search(rf"\ba (?:plain )?({GROUND}) background", text),
            }
            found = [(kind, match.groups()) for kind, match in kinds.items() if match]
            assert len(found) <= 1, caption
            for kind, colours in found:
                assert (kind, colours) == (scene.background.kind, scene.background.colours), caption
                told[kind] += 1
            assert found or not re.search("background|gradient|stripe", text), caption
    assert set(told) == {"gradient", "striped", "grainy", "plain"}


def test_captions_of_a_scene_are_different_sentences_of_4_to_15_words() -> None:
    counts: Counter[int] = Counter()
    for seed, scene in enumerate(scenes(300)):
        sentences = captions(scene, random.Random(seed))
        assert sentences == captions(scene, random.Random(seed))
        assert len({text.lower().removesuffix(".") for text in sentences}) == len(sentences)
        assert all(4 <= len(text.split()) <= 15 for text in sentences)
        counts[len(sentences)] += 1
    assert set(counts) == {3, 4, 5}


def test_the_held_out_combinations_leave_every_colour_and_shape_to_learn_from() -> None:
    seen = {
        (thing.colour, thing.shape)
        for scene in scenes(3000)
        if split(scene) == "train"
        for thing in scene.things
    }
    assert not seen & HELDOUT and seen | HELDOUT == {
        (colour, shape) for colour in COLOURS for shape in SHAPES
    }
    assert {colour for colour, _ in HELDOUT} == set(COLOURS) and {shape for _, shape in HELDOUT} == set(
        SHAPES
    )
    held = sum(split(scene) == "heldout" for scene in scenes(1000))
    assert 100 < held < 250
