"""The drawn world is the same for the same seed, its captions are true, its files are as the publishers write
them, and what it says must be lost is what a simple reader and client find lost.
"""

import hashlib
import http.client
import io
import json
import random
import re
import socket
import ssl
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from PIL import Image, UnidentifiedImageError

from tests.web import Web
from tests.world import (
    COLOURS,
    GROUNDS,
    HELDOUT,
    OF_COCO,
    OF_TSV,
    REASONS,
    SHAPES,
    Damage,
    Published,
    Relation,
    Scene,
    Thing,
    World,
    captions,
    draw,
    imagine,
    publish,
    split,
)


@dataclass(frozen=True)
class Edition:
    world: World
    folder: Path
    web: Web
    published: Published


@pytest.fixture(scope="module")
def edition(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Edition]:
    folder = tmp_path_factory.mktemp("published")
    world = World(seed=7, images=960)
    with Web() as web:
        yield Edition(world, folder, web, publish(world, folder, web))


def scenes(count: int) -> list[Scene]:
    return [imagine(random.Random(seed)) for seed in range(count)]


# The same seed


def digest(world: World, folder: Path) -> str:
    """A hash over pictures, captions and files."""
    total = hashlib.sha256()
    for picture in world:
        total.update(picture.jpeg + "\n".join(picture.captions).encode())
    for files in publish(world, folder, None).files.values():
        for file in files:
            total.update(file.read_bytes())
    return total.hexdigest()


def test_the_same_seed_gives_the_same_bytes_in_another_process(tmp_path: Path) -> None:
    code = (
        "import pathlib, sys; from tests.test_world import *; "
        "print(digest(World(seed=3, images=48), pathlib.Path(sys.argv[1])))"
    )
    other = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "other")],
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
        check=True,
        env={"PYTHONHASHSEED": "99"},
    )
    assert other.stdout.strip() == digest(World(seed=3, images=48), tmp_path / "own")
    assert other.stdout.strip() != digest(World(seed=4, images=48), tmp_path / "seed-4")


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


# The published formats


COCO_IMAGE = ["license", "file_name", "coco_url", "height", "width", "date_captured", "flickr_url", "id"]


def test_coco_has_its_four_lists_with_their_fields_in_order(edition: Edition) -> None:
    (file,) = edition.published.files["coco"]
    assert file == edition.folder / "annotations" / "captions_train2017.json"
    document = json.loads(file.read_text(encoding="ascii"))
    assert list(document) == ["info", "licenses", "images", "annotations"]
    assert [(entry["id"], *sorted(entry)) for entry in document["licenses"]] == [
        (id, "id", "name", "url") for id in range(1, 9)
    ]
    for image in document["images"]:
        assert list(image) == COCO_IMAGE
        assert image["file_name"] == f"{image['id']:012d}.jpg" and 1 <= image["license"] <= 8
        assert image["coco_url"] in (
            f"http://images.cocodataset.org/train2017/{image['file_name']}",
            "no longer available",
        )
        assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d", image["date_captured"])
        assert re.fullmatch(
            r"http://farm\d\.staticflickr\.com/\d{4}/\d+_[0-9a-f]{10}_z\.jpg", image["flickr_url"]
        )
    assert all(list(annotation) == ["image_id", "id", "caption"] for annotation in document["annotations"])
    for name in ("images", "annotations"):
        ids = [entry["id"] for entry in document[name]]
        assert len(set(ids)) == len(ids) and ids != sorted(ids)


def test_coco_captions_are_five_to_an_image_or_six_with_stray_white_space(edition: Edition) -> None:
    document = json.loads(edition.published.files["coco"][0].read_text())
    per_image = Counter(Counter(annotation["image_id"] for annotation in document["annotations"]).values())
    texts = [annotation["caption"] for annotation in document["annotations"]]
    assert per_image[5] > 0.95 * (len(document["images"]) - per_image[1]) and per_image[6]
    assert any(text.startswith(" ") for text in texts) and any("\n" in text for text in texts)
    assert 0.08 < sum(text.endswith(" ") for text in texts) / len(texts) < 0.2


def good_rows(edition: Edition, name: str) -> list[tuple[str, str]]:
    """The two columns of every row that can be read."""
    (file,) = edition.published.files[name]
    data = file.read_bytes()
    assert data.endswith(b"\n") and b"\r" not in data
    rows = []
    for line in data.decode(errors="replace").splitlines():
        one, tab, two = line.partition("\t")
        if tab and one and two and "\ufffd" not in line:
            rows.append((one, two))
    return rows


def test_cc3m_is_lower_case_tokenised_captions_before_urls(edition: Edition) -> None:
    rows = good_rows(edition, "cc3m")
    assert all(caption == caption.lower() and not re.search(r"\S[.,]", caption) for caption, _ in rows)
    assert any(caption.endswith(" .") for caption, _ in rows)
    schemes = Counter(urlsplit(url).scheme for _, url in rows)
    assert schemes["http"] and schemes["https"] and any("?" in url for _, url in rows)


def test_cc12m_is_urls_before_alt_texts(edition: Edition) -> None:
    rows = good_rows(edition, "cc12m")
    texts = [text for _, text in rows]
    assert 0.15 < sum("<PERSON>" in text for text in texts) / len(texts) < 0.45
    assert any("&amp;" in text for text in texts) and any("\N{ARTIST PALETTE}" in text for text in texts)
    assert any("\t" in text for text in texts), "only the first TAB divides"
    schemes = Counter(urlsplit(url).scheme for url, _ in rows)
    assert schemes["http"] and schemes["https"] and any(".png" in url for url, _ in rows)


# What must be lost, found by reading and asking


def test_what_is_published_as_damaged_is_damaged_and_all_else_is_good(edition: Edition) -> None:
    published = edition.published
    found = {name: fates(edition, name) for name in published.files}
    for name, rows in found.items():
        assert len(rows) == published.rows[name]
        dropped = Counter(damage for _, damage in rows if damage)
        assert dropped == published.dropped[name]
        assert len(rows) - dropped.total() == published.kept_rows[name]
        kept = {url for url, damage in rows if damage is None}
        assert len(kept) == published.kept_images[name] and kept <= set(published.pictures)
    images = {url: damage for rows in found.values() for url, damage in rows if url in published.damaged}
    assert images == published.damaged
    assert set(published.hosts) == {request.host for request in edition.web.requests}


def fates(edition: Edition, name: str) -> list[tuple[str, Damage | None]]:
    """(URL, what is wrong) of every row of a source, as the files and the web say it."""
    (file,) = edition.published.files[name]
    rows = coco_rows(file) if name == "coco" else tsv_rows(file, url_first=name == "cc12m")
    image: dict[str, Damage | None] = {}
    for url, damage in rows:
        if damage is None and url not in image:
            image[url] = image_fate(edition.web, url)
    return [(url, damage or image[url]) for url, damage in rows]


def coco_rows(file: Path) -> list[tuple[str, Damage | None]]:
    document = json.loads(file.read_text())
    urls = {image["id"]: image["coco_url"] for image in document["images"]}
    rows: list[tuple[str, Damage | None]] = []
    for annotation in document["annotations"]:
        url = urls.get(annotation["image_id"])
        if url is None:
            rows.append(("", Damage.UNKNOWN_IMAGE))
        elif not annotation["caption"]:
            rows.append((url, Damage.EMPTY_CAPTION))
        else:
            rows.append((url, None if url.startswith("http") else Damage.NOT_A_URL))
    silent = set(urls) - {annotation["image_id"] for annotation in document["annotations"]}
    return rows + [(urls[id], Damage.NO_ANNOTATION) for id in silent]


def tsv_rows(file: Path, *, url_first: bool) -> list[tuple[str, Damage | None]]:
    rows: list[tuple[str, Damage | None]] = []
    for line in file.read_bytes().removesuffix(b"\n").split(b"\n"):
        try:
            fields = line.decode().split("\t", 1)
        except UnicodeDecodeError:
            rows.append(("", Damage.INVALID_UTF8))
            continue
        if len(fields) == 1:
            rows.append(("", Damage.MISSING_TAB))
            continue
        url, caption = fields if url_first else reversed(fields)
        bad = Damage.EMPTY_CAPTION if not caption else None if url.startswith("http") else Damage.NOT_A_URL
        rows.append((url, bad))
    return rows


STATUSES = {404: Damage.NOT_FOUND, 410: Damage.GONE, 403: Damage.FORBIDDEN, 500: Damage.SERVER_ERROR}


def image_fate(web: Web, url: str) -> Damage | None:
    try:
        status, body = fetch(web, url)
    except (ConnectionResetError, ssl.SSLEOFError):
        return Damage.RESET
    if status != 200:
        return STATUSES[status]
    if body.startswith(b"<!doctype"):
        return Damage.HTML_200
    try:
        with Image.open(io.BytesIO(body)) as image:
            image.load()
            if min(image.size) < 32:
                return Damage.TINY
            return Damage.EXTREME_ASPECT if max(image.size) > 20 * min(image.size) else None
    except UnidentifiedImageError:
        return Damage.GARBAGE
    except Image.DecompressionBombError:
        return Damage.BOMB_HEADER
    except OSError:
        return Damage.TRUNCATED_JPEG


def fetch(web: Web, url: str) -> tuple[int, bytes]:
    parts = urlsplit(url)
    address, port = (web.https if parts.scheme == "https" else web.http).split(":")
    connection = http.client.HTTPConnection(parts.netloc, timeout=5)
    connection.sock = socket.create_connection((address, int(port)), timeout=5)
    try:
        if parts.scheme == "https":
            trust = ssl.create_default_context(cafile=str(web.ca_file))
            connection.sock = trust.wrap_socket(
                connection.sock, server_hostname=parts.netloc, suppress_ragged_eofs=False
            )
        connection.request("GET", f"{parts.path}?{parts.query}" if parts.query else parts.path)
        response = connection.getresponse()
        return response.status, response.read()
    finally:
        connection.close()


def test_every_kind_of_damage_is_published_and_has_its_reason(edition: Edition) -> None:
    assert set(edition.published.dropped["coco"]) == set(OF_COCO)
    assert set(edition.published.dropped["cc3m"]) == set(edition.published.dropped["cc12m"]) == set(OF_TSV)
    assert set(OF_COCO) | set(OF_TSV) == set(Damage) == set(REASONS)


def test_kept_images_lead_back_to_their_scenes(edition: Edition) -> None:
    url, number = next(iter(edition.published.pictures.items()))
    _, body = fetch(edition.web, url)
    assert body == edition.world.picture(number).jpeg
