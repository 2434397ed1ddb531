"""The files are as the publishers write them, and what must come of them is what simple readers and a simple
client find: those below, on other people's parsers.
"""

import bz2
import csv
import gzip
import hashlib
import http.client
import io
import json
import random
import re
import socket
import sqlite3
import ssl
import subprocess
import sys
import tarfile
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import unquote, unquote_plus, urlsplit

import pytest
from PIL import Image, ImageChops, ImageStat, UnidentifiedImageError

from pmd import language
from pmd.images import normalise
from pmd.manifest import ImageSpec, TextSpec
from tests.publish import REASONS, SOURCES, Damage, Forms, Published, publish, serve_files
from tests.publish.coco import OF_COCO
from tests.publish.conceptual import OF_TSV
from tests.publish.damage import served_file
from tests.publish.localized_narratives import OF_NARRATIVES
from tests.publish.redcaps import OF_POSTS, REMOVED, cleaned
from tests.publish.sbu import OF_SBU
from tests.publish.visual_genome import OF_REGIONS
from tests.publish.wit import OF_WIT
from tests.publish.yfcc100m import OF_LINES, OF_PHOTOS, OF_SUBSET, photo_hash
from tests.test_world import NAMES, things_named
from tests.web import Web
from tests.world import COLOURS, Picture, World, box

REAL = Path(__file__).parents[2] / "shared" / "real"
genuine = pytest.mark.skipif(not REAL.exists(), reason=f"genuine rows are not at {REAL}")


@dataclass(frozen=True)
class Drawn(World):
    """A world that is drawn once and published often."""

    pictures: tuple[Picture, ...] = ()

    def __iter__(self) -> Iterator[Picture]:
        return iter(self.pictures)


class Client:
    """Gets URLs from the local web, on connections that it keeps."""

    def __init__(self, web: Web) -> None:
        self._web = web
        self._trust = ssl.create_default_context(cafile=str(web.ca_file))
        self._open: dict[tuple[str, str], http.client.HTTPConnection] = {}

    def get(self, url: str, **headers: str) -> tuple[int, bytes, str | None]:
        """Status, body and Location."""
        parts = urlsplit(url)
        site = parts.scheme, parts.netloc
        connection = self._open.pop(site, None) or self._connection(*site)
        try:
            target = f"{parts.path}?{parts.query}" if parts.query else parts.path
            connection.request("GET", target, headers=headers)
            response = connection.getresponse()
            found = response.status, response.read(), response.getheader("Location")
        except BaseException:
            connection.close()
            raise
        self._open[site] = connection
        return found

    def close(self) -> None:
        for connection in self._open.values():
            connection.close()

    def _connection(self, scheme: str, host: str) -> http.client.HTTPConnection:
        address, port = (self._web.https if scheme == "https" else self._web.http).split(":")
        connection = http.client.HTTPConnection(host, timeout=5)
        connection.sock = socket.create_connection((address, int(port)), timeout=5)
        if scheme == "https":
            connection.sock = self._trust.wrap_socket(
                connection.sock, server_hostname=host, suppress_ragged_eofs=False
            )
        return connection


@dataclass(frozen=True)
class Edition:
    world: World
    web: Web
    client: Client
    published: Published

    def file(self, source: str) -> Path:
        (file,) = self.published.files[source]
        return file


@pytest.fixture(scope="module")
def world() -> World:
    return Drawn(7, 2400, tuple(World(7, 2400)))


@pytest.fixture(scope="module")
def edition(world: World, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Edition]:
    with Web() as web:
        client = Client(web)
        yield Edition(world, web, client, publish(world, tmp_path_factory.mktemp("published"), web))
        client.close()


Publisher = Callable[..., Edition]


@pytest.fixture
def otherwise(world: World, tmp_path: Path) -> Iterator[Publisher]:
    """Publishes a source alone, with pictures enough for every damage, in another form."""
    few = Drawn(7, 250, tuple(world)[:250])
    with Web() as web:
        client = Client(web)

        def published(source: str, forms: Forms) -> Edition:
            return Edition(few, web, client, publish(few, tmp_path, web, sources=[source], forms=forms))

        yield published
        client.close()


# The same seed


def digest(folder: Path, *forms: Forms) -> str:
    """A hash over all files of all sources in some forms."""
    total = hashlib.sha256()
    world = Drawn(3, 96, tuple(World(3, 96)))
    for number, form in enumerate(forms):
        published = publish(world, folder / f"{number}", None, forms=form)
        files = [
            file
            for group in (published.files, published.archives)
            for paths in group.values()
            for file in paths
        ]
        for file in files:
            total.update(file.name.encode() + file.read_bytes())
    return total.hexdigest()


FORMS = (Forms(), Forms("txt", "v1", "zips", True, "23 columns"), Forms(yfcc100m="sqlite"))


def test_the_same_seed_gives_the_same_files_in_another_process(tmp_path: Path) -> None:
    code = (
        "import pathlib, sys; from tests.test_publish import *; "
        "print(digest(pathlib.Path(sys.argv[1]), *FORMS))"
    )
    other = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "other")],
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
        check=True,
        env={"PYTHONHASHSEED": "99", "TZ": "Asia/Tokyo"},
    )
    assert other.stdout.strip() == digest(tmp_path / "own", *FORMS)


# Simple readers: of each row the image that it names, what is wrong with it, and how many pairs it gives


class Row(NamedTuple):
    image: str  # a URL; a path in an archive
    damage: Damage | None = None
    pairs: int = 1


def of_url(url: str, caption: str) -> Row:
    bad = Damage.EMPTY_CAPTION if not caption else None if url.startswith("http") else Damage.NOT_A_URL
    return Row(url, bad)


def coco_rows(file: Path) -> list[Row]:
    document = json.loads(file.read_text())
    urls = {image["id"]: image["coco_url"] for image in document["images"]}
    rows = [
        of_url(urls[annotation["image_id"]], annotation["caption"])
        if annotation["image_id"] in urls
        else Row("", Damage.UNKNOWN_IMAGE)
        for annotation in document["annotations"]
    ]
    silent = set(urls) - {annotation["image_id"] for annotation in document["annotations"]}
    return rows + [Row(urls[id], Damage.NO_ANNOTATION) for id in silent]


def tsv_rows(file: Path, *, url_first: bool) -> list[Row]:
    rows: list[Row] = []
    for line in lines_of(file.read_bytes()):
        fields = line.split("\t", 1)
        if "\ufffd" in line:
            rows.append(Row("", Damage.INVALID_UTF8))
        elif len(fields) == 1:
            rows.append(Row("", Damage.MISSING_TAB))
        else:
            url, caption = fields if url_first else reversed(fields)
            rows.append(of_url(url, caption))
    return rows


def lines_of(data: bytes) -> list[str]:
    assert data.endswith(b"\n") and b"\r" not in data
    return data.decode(errors="replace").removesuffix("\n").split("\n")


def sbu_lists(file: Path) -> tuple[list[str], list[str]]:
    with tarfile.open(file, "r:gz") as archive:
        members = {
            entry.name: archive.extractfile(entry).read()  # pyright: ignore[reportOptionalMemberAccess]
            for entry in archive
            if entry.isreg()
        }
    if "sbu-captions-all.json" in members:
        document = json.loads(members["sbu-captions-all.json"])
        assert list(document) == ["image_urls", "user_ids", "captions"]
        assert len({len(values) for values in document.values()}) == 1
        assert all(re.fullmatch(r"\d{8}@N\d\d", user) for user in document["user_ids"])
        return document["image_urls"], document["captions"]
    folder = "dataset/SBU_captioned_photo_dataset"
    return lines_of(members[f"{folder}_urls.txt"]), lines_of(members[f"{folder}_captions.txt"])


def sbu_rows(file: Path) -> list[Row]:
    return [of_url(url, caption) for url, caption in zip(*sbu_lists(file), strict=True)]


NARRATED = {
    "open_images_train": "https://s3.amazonaws.com/open-images-dataset/train/{}.jpg",
    "mscoco_train2017": "http://images.cocodataset.org/train2017/{:0>12}.jpg",
    "Flick30k_train": "flickr30k-images/{}.jpg",
    "ADE20k_train": "ADEChallengeData2016/images/training/{}.jpg",
}


def narratives(file: Path) -> list[dict[str, Any] | Damage]:
    rows: list[dict[str, Any] | Damage] = []
    for line in lines_of(file.read_bytes()):
        if "\ufffd" in line:
            rows.append(Damage.INVALID_UTF8)
            continue
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            rows.append(Damage.BROKEN_JSON)
    return rows


def narrative_rows(files: list[Path]) -> list[Row]:
    rows: list[Row] = []
    for file in files:
        for row in narratives(file) if file.suffix == ".jsonl" else []:
            if isinstance(row, Damage):
                rows.append(Row("", row))
            elif row["dataset_id"] not in NARRATED:
                rows.append(Row("", Damage.LEFT_OUT))
            else:
                pairs = sum(bool(piece.strip()) for piece in row["caption"].split("."))
                image = NARRATED[row["dataset_id"]].format(row["image_id"])
                rows.append(Row(image, None if pairs else Damage.EMPTY_CAPTION, pairs))
    return rows


def member(file: Path, name: str) -> Any:
    with zipfile.ZipFile(file) as archive:
        assert archive.namelist() == [name]
        return json.loads(archive.read(name))


def genome(files: list[Path]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    regions, images = files
    return member(regions, "region_descriptions.json"), member(images, "image_data.json")


def region_rows(files: list[Path]) -> list[Row]:
    described, images = genome(files)
    urls = {image.get("image_id", image.get("id")): image["url"] for image in images}
    rows: list[Row] = []
    for entry in described:
        if entry["id"] not in urls:
            rows += [Row("", Damage.UNKNOWN_IMAGE)] * len(entry["regions"])
        elif not entry["regions"]:
            rows.append(Row("", Damage.NO_ANNOTATION))
        else:
            rows += [of_url(urls[entry["id"]], region["phrase"].strip()) for region in entry["regions"]]
    return rows


def wit_records(files: list[Path]) -> list[list[str]]:
    records: list[list[str]] = []
    for file in files:
        with gzip.open(file, "rt", encoding="utf-8", errors="replace", newline="") as text:
            header, *rows = csv.reader(text, delimiter="\t")
        assert header[0] == "language" and len(header) == 17
        records += rows
    return records


def wit_caption(reference: str, attribution: str, alt: str) -> str:
    """The rule of the corpus, for a row in English."""
    if len(reference.split()) >= 2:
        return reference
    if (at := attribution.lower().find("english:")) >= 0:
        words = attribution[at + len("english:") :].partition(": ")[0].split()
        if len(words) >= 4:
            return " ".join(words[:-1])
    return alt if len(alt.split()) >= 3 else ""


def wit_rows(files: list[Path]) -> list[Row]:
    rows: list[Row] = []
    for fields in wit_records(files):
        if any("\ufffd" in field for field in fields):
            rows.append(Row("", Damage.INVALID_UTF8))
        elif len(fields) != 17:
            rows.append(Row("", Damage.MISSING_TAB))
        elif fields[0] != "en":
            rows.append(Row("", Damage.FOREIGN))
        else:
            rows.append(of_url(fields[2], wit_caption(*fields[6:9])))
    return rows


def posts(file: Path) -> list[dict[str, Any] | None]:
    with zipfile.ZipFile(file) as archive:
        names = [name for name in archive.namelist() if not name.endswith("/")]
        assert all(re.fullmatch(r"annotations/[a-z]+_20(17|18|19|20)\.json", name) for name in names)
        documents = [json.loads(archive.read(name)) for name in names]
    assert 0 < sum("info" in document for document in documents) < len(documents)
    assert any(document["annotations"] == [] for document in documents)
    return [row for document in documents for row in document["annotations"]]


def post_rows(file: Path) -> list[Row]:
    rows: list[Row] = []
    for post in posts(file):
        if post is None:
            rows.append(Row("", Damage.NULL_ROW))
        else:
            urls = re.findall(r"http[^\s,]+", post["url"])
            rows.append(of_url(urls[0] if urls else "", post["caption"]))
    return rows


def photo_lines(files: list[Path]) -> list[list[str]]:
    return [line.split("\t") for file in files for line in lines_of(bz2.decompress(file.read_bytes()))]


def photo_rows(files: list[Path]) -> list[Row]:
    """Of the form with 25 columns."""
    return [
        Row("", Damage.INVALID_UTF8)
        if any("\ufffd" in field for field in fields)
        else Row("", Damage.MISSING_TAB)
        if len(fields) != 25
        else photo_row(fields[1:2] + fields[3:])
        for fields in photo_lines(files)
    ]


def photo_row(fields: list[str]) -> Row:
    """Of a row of 23 fields."""
    if fields[22] == "1":
        return Row("", Damage.VIDEO)
    key = hashlib.md5(fields[14].encode()).digest().hex(" ").replace(" 0", " ").removeprefix("0")
    key = key.replace(" ", "")
    assert key == photo_hash(fields[14])
    url = f"https://multimedia-commons.s3-us-west-2.amazonaws.com/data/images/{key[:3]}/{key[3:6]}/{key}.jpg"
    texts = [unquote_plus(fields[place]) for place in (7, 6)]
    if not any(texts):
        return Row(url, Damage.EMPTY_CAPTION)
    long = [text for text in texts if len(text.split()) > 2]
    english = "en" in language.detect(long, TextSpec(detector="py3langid"))
    return Row(url, None if english else Damage.FOREIGN if long else Damage.SHORT)


READERS: dict[str, Callable[[list[Path]], list[Row]]] = {
    "coco": lambda files: coco_rows(*files),
    "cc3m": lambda files: tsv_rows(*files, url_first=False),
    "cc12m": lambda files: tsv_rows(*files, url_first=True),
    "sbu": lambda files: sbu_rows(*files),
    "localized_narratives": narrative_rows,
    "visual_genome": region_rows,
    "wit": wit_rows,
    "redcaps": lambda files: post_rows(*files),
    "yfcc100m": photo_rows,
}


# What becomes of an image

STATUSES = {404: Damage.NOT_FOUND, 410: Damage.GONE, 403: Damage.FORBIDDEN, 500: Damage.SERVER_ERROR}


def image_fate(edition: Edition, source: str, name: str) -> Damage | None:
    try:
        body = archived(edition, source, name)
        if body is None:
            status, body, location = edition.client.get(name)
            if location == REMOVED:
                return Damage.REMOVED
            if status != 200:
                return STATUSES[status]
    except KeyError:
        return Damage.NOT_IN_ARCHIVE
    except (ConnectionResetError, ssl.SSLEOFError):
        return Damage.RESET
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


def archived(edition: Edition, source: str, name: str) -> bytes | None:
    """The file of that path in the source's archives; None: not to be had there. Raises KeyError."""
    files: dict[str, bytes] = {}
    for archive in edition.published.archives[source]:
        files |= contents(archive)
    if not name.startswith("http"):
        return files[name]
    return files.get("/".join(name.split("/")[-2:]))


@cache
def contents(archive: Path) -> dict[str, bytes]:
    if archive.suffix == ".zip":
        with zipfile.ZipFile(archive) as file:
            assert file.testzip() is None
            return {name: file.read(name) for name in file.namelist()}
    with tarfile.open(archive, "r:") as file:
        return {
            entry.name: file.extractfile(entry).read()  # pyright: ignore[reportOptionalMemberAccess]
            for entry in file
            if entry.isreg()
        }


def check_promises(edition: Edition, source: str, rows: list[Row]) -> None:
    """What a source says must come of it is what comes of these rows and their images."""
    published = edition.published
    images: dict[str, Damage | None] = {}
    for row in rows:
        if row.damage is None and row.image not in images:
            images[row.image] = image_fate(edition, source, row.image)
    fates = [row._replace(damage=row.damage or images[row.image]) for row in rows]
    assert len(fates) == published.rows[source]
    dropped = Counter(row.damage for row in fates if row.damage)
    assert dropped == published.dropped[source]
    kept = [row for row in fates if row.damage is None]
    assert len(kept) == published.kept_rows[source]
    assert sum(row.pairs for row in kept) == published.kept_pairs[source]
    names = {row.image for row in kept}
    assert len(names) == published.kept_images[source] and names <= published.pictures.keys()
    lost = {name: damage for name, damage in images.items() if damage}
    assert lost == {name: published.damaged[name] for name in lost}


@pytest.mark.parametrize("source", SOURCES)
def test_what_must_come_of_a_source_is_what_comes_of_it(edition: Edition, source: str) -> None:
    check_promises(edition, source, READERS[source](edition.published.files[source]))


def test_the_shares_of_the_sources(edition: Edition) -> None:
    images = {name: round(count / 0.92) for name, count in edition.published.kept_images.items()}
    assert all(count >= 150 for count in images.values()), images
    assert set(edition.published.files) == set(SOURCES) == set(READERS)


NOT_WANTED = {
    "localized_narratives": {Damage.LEFT_OUT},
    "wit": {Damage.FOREIGN},
    "yfcc100m": {Damage.FOREIGN, Damage.SHORT, Damage.VIDEO},
}
KINDS = {
    "coco": OF_COCO,
    "cc3m": OF_TSV,
    "cc12m": OF_TSV,
    "sbu": OF_SBU,
    "localized_narratives": OF_NARRATIVES,
    "visual_genome": OF_REGIONS,
    "wit": OF_WIT,
    "redcaps": OF_POSTS,
    "yfcc100m": OF_LINES,
}


@pytest.mark.parametrize("source", SOURCES)
def test_every_damage_of_a_source_is_published(edition: Edition, source: str) -> None:
    assert set(edition.published.dropped[source]) == {*KINDS[source], *NOT_WANTED.get(source, set())}


def test_every_damage_has_its_reason() -> None:
    assert set(REASONS) == set(Damage)
    assert {Damage.REMOVED}.union(*KINDS.values(), *NOT_WANTED.values()) == set(Damage)


@pytest.mark.parametrize("damage", [Damage.TRUNCATED_JPEG, Damage.GARBAGE, Damage.BOMB_HEADER])
def test_a_damaged_file_has_the_reason_that_pmd_gives(world: World, damage: Damage) -> None:
    for picture in list(world)[:20]:
        assert normalise(served_file(picture, damage), ImageSpec()) is REASONS[damage]


def test_all_hosts_are_named(edition: Edition) -> None:
    asked = {urlsplit(name).netloc for name in (*edition.published.pictures, *edition.published.damaged)}
    assert {*edition.published.hosts} == asked - {""}


def test_kept_images_lead_back_to_their_scenes(edition: Edition) -> None:
    published = edition.published
    plain = [url for url in published.pictures if url.endswith(".jpg") and url not in published.turned]
    for name in random.Random(0).sample(plain, 40):
        body = next((files[name] for files in archives_of(edition) if name in files), None)
        body = body or edition.client.get(name)[1]
        assert body == list(edition.world)[published.pictures[name]].jpeg


def archives_of(edition: Edition) -> list[dict[str, bytes]]:
    return [contents(archive) for files in edition.published.archives.values() for archive in files]


# COCO


COCO_IMAGE = ["license", "file_name", "coco_url", "height", "width", "date_captured", "flickr_url", "id"]


def test_coco_has_its_four_lists_with_their_fields_in_order(edition: Edition) -> None:
    file = edition.file("coco")
    assert file == edition.published.folder / "annotations" / "captions_train2017.json"
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
    document = json.loads(edition.file("coco").read_text())
    per_image = Counter(Counter(annotation["image_id"] for annotation in document["annotations"]).values())
    texts = [annotation["caption"] for annotation in document["annotations"]]
    assert per_image[5] > 0.95 * (len(document["images"]) - per_image[1]) and per_image[6]
    assert any(text.startswith(" ") for text in texts) and any("\n" in text for text in texts)
    assert 0.08 < sum(text.endswith(" ") for text in texts) / len(texts) < 0.2


# CC3M and CC12M


def good_lines(file: Path) -> list[tuple[str, str]]:
    """The two columns of every row that can be read."""
    pairs = [line.partition("\t") for line in lines_of(file.read_bytes()) if "\ufffd" not in line]
    return [(one, two) for one, tab, two in pairs if tab and one and two]


def test_cc3m_is_lower_case_tokenised_captions_before_urls(edition: Edition) -> None:
    rows = good_lines(edition.file("cc3m"))
    assert all(caption == caption.lower() and not re.search(r"\S[.,]", caption) for caption, _ in rows)
    assert any(caption.endswith(" .") for caption, _ in rows)
    schemes = Counter(urlsplit(url).scheme for _, url in rows)
    assert schemes["http"] and schemes["https"] and any("?" in url for _, url in rows)


def test_cc12m_is_urls_before_alt_texts(edition: Edition) -> None:
    rows = good_lines(edition.file("cc12m"))
    texts = [text for _, text in rows]
    assert 0.15 < sum("<PERSON>" in text for text in texts) / len(texts) < 0.45
    assert any("&amp;" in text for text in texts) and any("\N{ARTIST PALETTE}" in text for text in texts)
    assert any("\t" in text for text in texts), "only the first TAB divides"
    schemes = Counter(urlsplit(url).scheme for url, _ in rows)
    assert schemes["http"] and schemes["https"] and any(".png" in url for url, _ in rows)


# SBU Captions


def test_sbu_addresses_are_those_of_flickr(edition: Edition) -> None:
    urls, captions = sbu_lists(edition.file("sbu"))
    shape = r"http://(static|farm\d\.static)\.flickr\.com/\d+/\d+_[0-9a-f]{10}\.jpg|unavailable"
    assert all(re.fullmatch(shape, url) for url in urls)
    assert any(caption.endswith(" ") for caption in captions)


def test_sbu_in_two_text_files_says_the_same(edition: Edition, otherwise: Publisher) -> None:
    txt = otherwise("sbu", Forms(sbu="txt"))
    assert txt.file("sbu").name == "SBUCaptionedPhotoDataset.tar.gz"
    rows = sbu_rows(txt.file("sbu"))
    check_promises(txt, "sbu", rows)
    assert sbu_lists(txt.file("sbu")) == sbu_lists(otherwise("sbu", Forms()).file("sbu"))


# Localized Narratives


def narrative_files(edition: Edition) -> dict[str, Path]:
    return {file.name: file for file in edition.published.files["localized_narratives"]}


def test_narratives_name_dataset_image_and_annotator(edition: Edition) -> None:
    files = narrative_files(edition)
    counts: Counter[str] = Counter()
    for name, file in files.items():
        rows = narratives(file) if file.suffix == ".jsonl" else []
        for row in [row for row in rows if isinstance(row, dict)]:
            assert list(row) == ["dataset_id", "image_id", "annotator_id", "caption"]
            assert isinstance(row["image_id"], str) and isinstance(row["annotator_id"], int)
            counts[f"{name} {row['dataset_id']}"] += 1
    assert {*counts} == {
        "open_images_train_v6_captions.jsonl open_images_train",
        "coco_train_captions.jsonl mscoco_train2017",
        "coco_train_captions.jsonl mscoco_val2017",
        "flickr30k_train_captions.jsonl Flick30k_train",
        "ade20k_train_captions.jsonl ADE20k_train",
    }


def test_some_images_have_a_second_narrative_far_behind_the_first(edition: Edition) -> None:
    rows = narratives(narrative_files(edition)["open_images_train_v6_captions.jsonl"])
    places: dict[str, list[int]] = {}
    for place, row in enumerate(rows):
        if isinstance(row, dict):
            places.setdefault(row["image_id"], []).append(place)
    twice = [found for found in places.values() if len(found) == 2]
    assert len(twice) > 4 and max(map(len, places.values())) == 2
    assert sum(second - first for first, second in twice) / len(twice) > 20


def test_a_narrative_is_true_and_its_pieces_are_sentences(edition: Edition) -> None:
    seen = 0
    pictures = list(edition.world)
    for file in narrative_files(edition).values():
        for row in narratives(file) if file.suffix == ".jsonl" else []:
            if isinstance(row, Damage) or row["dataset_id"] not in NARRATED:
                continue
            name = NARRATED[row["dataset_id"]].format(row["image_id"])
            pieces = [piece.strip() for piece in row["caption"].split(".") if piece.strip()]
            if name in edition.published.pictures and pieces:
                scene = pictures[edition.published.pictures[name]].scene
                assert len(things_named(pieces[0].lower(), scene)) == len(scene.groups)
                assert len(pieces) >= 3 and all(len(piece.split()) >= 4 for piece in pieces)
                seen += 1
    assert seen > 180


def test_open_images_metadata_says_which_pictures_lie_on_their_side(edition: Edition) -> None:
    file = narrative_files(edition)["image_ids_and_rotation.csv"]
    with file.open(encoding="utf-8", newline="") as text:
        rows = list(csv.DictReader(text))
    assert all(len(row) == 12 and None not in row.values() for row in rows)
    assert any("\n" in row["Title"] for row in rows) and any("," in row["Author"] for row in rows)
    assert {row["Subset"] for row in rows} == {"train", "validation", "test"}
    assert {"NaN", "", "0", "0.0"} < {row["Rotation"] for row in rows}
    pictures = list(edition.world)
    turned: dict[str, int] = {}
    for row in rows:
        url = NARRATED["open_images_train"].format(row["ImageID"])
        degrees = float(row["Rotation"] or 0)
        if url in edition.published.pictures and degrees > 0:
            turned[url] = int(degrees)
            with Image.open(io.BytesIO(edition.client.get(url)[1])) as served:
                upright = served.convert("RGB").rotate(degrees, expand=True)
            picture = pictures[edition.published.pictures[url]]
            with Image.open(io.BytesIO(picture.jpeg)) as true:
                away = ImageChops.difference(upright, true.convert("RGB"))
            assert upright.size == picture.size and max(ImageStat.Stat(away).mean) < 8
    assert turned == edition.published.turned and {*turned.values()} == {90, 180, 270}


@genuine
def test_the_metadata_has_the_columns_of_the_genuine_one(edition: Edition) -> None:
    file = narrative_files(edition)["image_ids_and_rotation.csv"]
    true = (REAL / "openimages" / "credits.csv").read_text().splitlines()[0]
    assert file.read_text().splitlines()[0] == true


def test_archives_hold_the_photos_below_the_folders_that_rows_mean(edition: Edition) -> None:
    tar, zip_ = edition.published.archives["localized_narratives"]
    assert [tar.name, zip_.name] == ["flickr30k-images.tar", "ADEChallengeData2016.zip"]
    assert all(re.fullmatch(r"flickr30k-images/\d+\.jpg", name) for name in contents(tar))
    photos = {name for name in contents(zip_) if "/images/training/" in name}
    assert photos and all(name.endswith(".jpg") for name in photos)
    assert len([name for name in contents(zip_) if "/annotations/" in name]) == len(photos)
    missing = {name for name, damage in edition.published.damaged.items() if damage is Damage.NOT_IN_ARCHIVE}
    assert missing and not missing & {*contents(tar), *contents(zip_)}


# Visual Genome


@pytest.mark.parametrize("version", ["v1.2", "v1"])
@genuine
def test_regions_have_the_fields_of_genuine_ones(otherwise: Publisher, version: Any) -> None:
    files = otherwise("visual_genome", Forms(visual_genome=version)).published.files["visual_genome"]
    described, images = genome(files)
    name = "region_descriptions_v1" if version == "v1" else "region_descriptions.v1.2"
    true = json.loads((REAL / "visual_genome" / f"{name}.first5images.json").read_text())
    assert {tuple(entry) for entry in described} == {tuple(true[0])}
    fields = {tuple(region) for entry in described for region in entry["regions"]}
    assert fields == {tuple(true[0]["regions"][0])}
    listed = json.loads((REAL / "visual_genome" / "image_data.first5images.json").read_text())
    if version == "v1.2":
        assert {*listed[0]} == set().union(*images) and "coco_id" not in set(images[0]).intersection(*images)


def test_the_first_version_says_the_same(otherwise: Publisher) -> None:
    old = otherwise("visual_genome", Forms(visual_genome="v1"))
    assert old.published.files["visual_genome"][0].name == "region_descriptions_v1.json.zip"
    check_promises(old, "visual_genome", region_rows(old.published.files["visual_genome"]))
    phrases = [region["phrase"] for region in regions(old)]
    assert phrases == [region["phrase"] for region in regions(otherwise("visual_genome", Forms()))]


def test_images_of_visual_genome_may_come_as_zips(otherwise: Publisher) -> None:
    zips = otherwise("visual_genome", Forms(visual_genome_images="zips"))
    one, two = zips.published.archives["visual_genome"]
    assert {name.split("/")[0] for name in contents(one)} == {"VG_100K"}
    assert {name.split("/")[0] for name in contents(two)} == {"VG_100K_2"}
    check_promises(zips, "visual_genome", region_rows(zips.published.files["visual_genome"]))


def regions(edition: Edition) -> list[dict[str, Any]]:
    described, _ = genome(edition.published.files["visual_genome"])
    return [region for entry in described for region in entry["regions"]]


def test_boxes_hold_what_their_phrases_say(edition: Edition) -> None:
    _, images = genome(edition.published.files["visual_genome"])
    urls = {image["image_id"]: image["url"] for image in images}
    pictures = list(edition.world)
    opened: dict[str, Image.Image] = {}
    said: Counter[str] = Counter()
    for region in regions(edition):
        url = urls.get(region["image_id"])
        words = re.search(rf"\b({'|'.join(COLOURS)})\b", region["phrase"].lower())
        named = re.search(rf"\b({'|'.join(NAMES)})\b", region["phrase"].lower())
        if url not in edition.published.pictures or not words or not named:
            continue
        picture = pictures[edition.published.pictures[url]]
        frame = tuple(region[name] for name in ("x", "y", "width", "height"))
        meant = [thing for thing in picture.scene.things if box(thing, picture.size) == frame]
        assert meant and meant[0].colour == words[1] and meant[0].shape == NAMES[named[1]]
        image = opened.setdefault(url, Image.open(io.BytesIO(picture.jpeg)).convert("RGB"))
        left, top, width, height = frame
        crop = image.crop((left, top, left + width, top + height))
        away = ImageChops.difference(crop, Image.new("RGB", crop.size, COLOURS[words[1]])).split()
        furthest = ImageChops.lighter(ImageChops.lighter(away[0], away[1]), away[2])
        near = sum(furthest.histogram()[:40]) / (width * height)
        assert near > 0.12, (region, near)
        said[words[1]] += 1
    assert set(said) == set(COLOURS) and said.total() > 800


def test_phrases_and_boxes_have_their_faults(edition: Edition) -> None:
    described, images = genome(edition.published.files["visual_genome"])
    sizes = {image["image_id"]: (image["width"], image["height"]) for image in images}
    found = regions(edition)
    phrases = [region["phrase"] for region in found]
    assert any(phrase.endswith(" ") for phrase in phrases) and any(
        "bckground" in phrase for phrase in phrases
    )
    assert len({region["region_id"] for region in found}) == len(found)
    assert any(
        len({region["phrase"] for region in entry["regions"]}) < len(entry["regions"]) for entry in described
    )
    assert any(region["width"] == 0 for region in found)
    assert any(
        region["x"] < 0 and region["x"] + region["width"] > sizes[region["image_id"]][0]
        for region in found
        if region["image_id"] in sizes
    )
    order = [entry["id"] for entry in described]
    assert [image["image_id"] for image in images] == [id for id in order if id in sizes]
    assert {image["coco_id"] is None for image in images if "coco_id" in image} == {True, False}


# WIT


@genuine
def test_wit_has_the_columns_of_the_genuine_one(edition: Edition) -> None:
    true = (REAL / "wit" / "train-00000.sample3.tsv").read_text().splitlines()[0]
    for file in edition.published.files["wit"]:
        assert gzip.decompress(file.read_bytes()).decode(errors="replace").split("\n")[0] == true


def test_wit_has_texts_of_several_lines_in_several_languages(edition: Edition) -> None:
    names = [file.name for file in edition.published.files["wit"]]
    assert names == [f"wit_v1.train.all-0000{number}-of-00002.tsv.gz" for number in (0, 1)]
    records = [fields for fields in wit_records(edition.published.files["wit"]) if len(fields) == 17]
    assert {fields[0] for fields in records} == {"en", "de", "fr", "es", "ru"}
    contexts = [fields[15] for fields in records]
    assert any("\n" in text and '"' in text for text in contexts)
    assert any("\nen\thttps:" in text for text in contexts), "what looks like a row is a text"
    assert any("\u2028" in text and "\x85" in text for text in contexts)
    assert all(
        fields[10].isdecimal() and fields[11].isdecimal() and fields[12] in ("true", "false")
        for fields in records
    )
    images = Counter(fields[2] for fields in records)
    languages = {url: {fields[0] for fields in records if fields[2] == url} for url in images}
    assert any(len(found) > 2 for found in languages.values())


def test_english_captions_come_from_three_places(edition: Edition) -> None:
    places: Counter[str] = Counter()
    for fields in wit_records(edition.published.files["wit"]):
        if len(fields) == 17 and fields[0] == "en":
            caption = wit_caption(*fields[6:9])
            places["reference" if caption == fields[6] else "alt" if caption == fields[8] else "other"] += 1
            if caption and caption not in (fields[6], fields[8]):
                assert not any(mark in caption for mark in (":", "Deutsch", "Français", "Español", "Русский"))
    assert min(places[place] for place in ("reference", "alt", "other")) > 20


def test_wikimedia_has_each_image_whole_and_500_px_wide(edition: Edition) -> None:
    schemes: Counter[str] = Counter()
    sites: Counter[str] = Counter()
    for fields in wit_records(edition.published.files["wit"]):
        url = fields[2] if len(fields) == 17 else ""
        if url not in edition.published.pictures:
            continue
        scheme, site, place, name = re.fullmatch(
            r"(https?)://upload\.wikimedia\.org/wikipedia/(commons|en)/(./..)/([^/]+)", url
        ).groups()  # pyright: ignore[reportOptionalMemberAccess]
        digest = hashlib.md5(unquote(name).encode()).hexdigest()
        assert place == f"{digest[0]}/{digest[:2]}" and name.isascii()
        thumb = f"{scheme}://upload.wikimedia.org/wikipedia/{site}/thumb/{place}/{name}/500px-{name}"
        assert edition.published.pictures[thumb] == edition.published.pictures[url]
        if len(schemes) < 2 or len(sites) < 2 or "%" in name:
            assert edition.client.get(thumb) == edition.client.get(url)
            assert fields[9] == ("image/png" if url.endswith(".png") else "image/jpeg")
        schemes[scheme] += 1
        sites[site] += 1
    assert len(schemes) == len(sites) == 2


# RedCaps


@genuine
def test_the_cleaning_of_titles_is_that_of_genuine_rows() -> None:
    files = sorted((REAL / "redcaps" / "annotations").glob("*.json"))
    rows = [row for file in files for row in json.loads(file.read_text())["annotations"]]
    assert len(rows) >= 5 and [cleaned(row["raw_caption"]) for row in rows] == [
        row["caption"] for row in rows
    ]


@genuine
def test_posts_have_the_fields_of_genuine_ones(edition: Edition) -> None:
    true = json.loads((REAL / "redcaps" / "annotations" / "abandonedporn_2020.json").read_text())
    fields = {*true["annotations"][0]}
    for post in [post for post in posts(edition.file("redcaps")) if post]:
        assert {*post} - {"crosspost_parents"} in (fields, fields - {"score"})


def test_titles_come_as_posted_and_as_cleaned(edition: Edition) -> None:
    found = [post for post in posts(edition.file("redcaps")) if post]
    raw = [post["raw_caption"] for post in found]
    for mark in ("[OC]", "@shape_painter", "\N{ARTIST PALETTE}", "\N{MULTIPLICATION SIGN}", "/geometry]"):
        assert any(mark in title for title in raw), mark
    captions = [post["caption"] for post in found if post["caption"]]
    assert all(text.isascii() and text == text.lower() == " ".join(text.split()) for text in captions)
    assert all(len(text.split()) > 2 and not re.search(r"[\[\]()@]|\d", text) for text in captions)
    assert any("<usr>" in text for text in captions) and any("cafe" in text for text in captions)
    assert any(post["author"] == "None" for post in found)
    assert any("score" not in post and post["crosspost_parents"] for post in found)
    assert all(post["subreddit"] == post["permalink"].split("/")[2].lower() for post in found)


def test_addresses_of_posts(edition: Edition) -> None:
    urls = [post["url"] for post in posts(edition.file("redcaps")) if post]
    hosts = Counter(urlsplit(url).netloc.partition(".")[2] for url in urls)
    assert hosts["redd.it"] > 50 and hosts["imgur.com"] > 50 and hosts["staticflickr.com"]
    assert any(len(url.split(" ")) == 2 for url in urls) and any("," in url for url in urls)


def test_removed_images_of_imgur_lead_to_a_picture_that_says_so(otherwise: Publisher) -> None:
    imgur = otherwise("redcaps", Forms(redcaps_removed=True))
    assert imgur.published.dropped["redcaps"][Damage.REMOVED]
    check_promises(imgur, "redcaps", post_rows(imgur.file("redcaps")))
    status, body, _ = imgur.client.get(REMOVED)
    with Image.open(io.BytesIO(body)) as image:
        assert status == 200 and image.size == (161, 81)


# YFCC100M


def test_the_hash_of_a_photo_is_the_published_one() -> None:
    true = "4e2f7a26a1dfbf165a7e30bdabf7e72a"
    assert photo_hash("http://farm8.staticflickr.com/7205/6985418911_df7747990d.jpg") == true


@genuine
def test_photos_are_told_of_as_in_genuine_rows(edition: Edition) -> None:
    text = (REAL / "yfcc100m" / "yfcc100m_dataset.23col.GENUINE.tsv").read_text()
    own = [fields[1:2] + fields[3:] for fields in photo_lines(edition.published.files["yfcc100m"])]
    shapes = {  # column -> what its values look like
        0: r"\d+",
        1: r"\d+@N\d\d",
        3: r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.0",
        4: r"\d+",
        6: r"[\w.%+~-]*",
        7: r"[\w.%+~-]*",
        8: r"[\w.,%+~-]*",
        10: r"(-?\d+\.\d+)?",
        13: r"http://www\.flickr\.com/photos/\d+@N\d\d/\d+/",
        14: r"http://farm\d\.staticflickr\.com/\d+/\d+_[0-9a-f]{10}\.jpg|http://www\.flickr\.com/video_\S+",
        15: r"Attribution(-\w+)* License",
        16: r"http://creativecommons\.org/licenses/[a-z-]+/2\.0/",
        19: r"[0-9a-f]{10}",
        22: r"[01]",
    }
    for fields in [*own, *(line.split("\t") for line in text.splitlines())]:
        if len(fields) == 23 and "\ufffd" not in fields[6]:
            assert all(re.fullmatch(shape, fields[place], re.ASCII) for place, shape in shapes.items()), (
                fields
            )


def test_lines_are_numbered_hashed_and_encoded(edition: Edition) -> None:
    lines = photo_lines(edition.published.files["yfcc100m"])
    assert [fields[0] for fields in lines] == [str(number) for number in range(len(lines))]
    whole = [fields for fields in lines if len(fields) == 25]
    assert all(fields[2] == photo_hash(fields[16]) for fields in whole)
    assert any(len(fields[2]) < 32 for fields in whole)
    assert len({fields[17] for fields in whole}) == 6
    texts = [unquote_plus(fields[9]) for fields in whole]
    for mark in ("<a href=", "<b>", "&amp;", "\n", "100% my own work + "):
        assert any(mark in text for text in texts), mark


def test_of_the_texts_of_photos_the_right_ones_are_english(edition: Edition) -> None:
    """Whoever is asked. What a row says must not hang on the detector."""
    taken: list[str] = []
    foreign: list[str] = []
    for fields in photo_lines(edition.published.files["yfcc100m"]):
        texts = [unquote_plus(fields[place]) for place in (9, 8)] if len(fields) == 25 else []
        long = [text for text in texts if len(text.split()) > 2]
        verdicts = language.detect(long, TextSpec(detector="py3langid"))
        for text, verdict in zip(long, verdicts, strict=True):
            (taken if verdict == "en" else foreign).append(text)
    assert len(taken) > 150 and len(foreign) > 30
    few = random.Random(0)
    for name in ("langdetect", "cascade"):
        spec = TextSpec(detector=name)
        assert {*language.detect(few.sample(taken, 100), spec)} == {"en"}
        assert "en" not in language.detect(foreign, spec)


def test_the_parts_without_line_numbers_say_the_same(otherwise: Publisher) -> None:
    whole = otherwise("yfcc100m", Forms()).published
    lines = photo_lines(whole.files["yfcc100m"])
    parts = otherwise("yfcc100m", Forms(yfcc100m="23 columns")).published
    assert [file.name for file in parts.files["yfcc100m"]] == [
        f"yfcc100m_dataset-{number}.bz2" for number in range(10)
    ]
    assert photo_lines(parts.files["yfcc100m"]) == [fields[1:2] + fields[3:] for fields in lines]
    assert (parts.dropped, parts.pictures) == (whole.dropped, whole.pictures)


def test_the_database_has_one_table_of_23_columns(otherwise: Publisher) -> None:
    edition = otherwise("yfcc100m", Forms(yfcc100m="sqlite"))
    database = sqlite3.connect(f"file:{edition.file('yfcc100m')}?mode=ro", uri=True)
    rows = [[str(value) for value in row] for row in database.execute("select * from yfcc100m_dataset")]
    columns = database.execute("pragma table_info(yfcc100m_dataset)").fetchall()
    database.close()
    assert (len(columns), columns[0][1:3], columns[0][5]) == (23, ("photoid", "INTEGER"), 1)
    check_promises(edition, "yfcc100m", [photo_row(row) for row in rows])
    assert {*edition.published.dropped["yfcc100m"]} == {*OF_PHOTOS, *NOT_WANTED["yfcc100m"]}


def test_the_subset_has_the_chosen_text_first(otherwise: Publisher) -> None:
    edition = otherwise("yfcc100m", Forms(yfcc100m="subset"))
    rows: list[Row] = []
    for line in lines_of(edition.file("yfcc100m").read_bytes()):
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            rows.append(Row("", Damage.BROKEN_JSON))
            continue
        assert list(row) == ["image_url", "image", "texts", "source", "meta"]
        assert row["image"] is None and row["source"] == "yfcc100m"
        meta = json.loads(row["meta"])
        assert row["texts"][:1] in ([], [unquote_plus(meta["description"])], [unquote_plus(meta["title"])])
        rows.append(of_url(row["image_url"], row["texts"][0] if row["texts"] else ""))
    check_promises(edition, "yfcc100m", rows)
    assert {*edition.published.dropped["yfcc100m"]} == {*OF_SUBSET}


# Files on the web


def test_files_are_served_where_their_authors_publish_them(edition: Edition) -> None:
    serve_files(edition.published, edition.web)
    served: set[Path] = set()
    for url, file in edition.published.addresses.items():
        status, body, _ = edition.client.get(url)
        assert status == 200, url
        if file.name == "captions_train2017.json":
            with zipfile.ZipFile(io.BytesIO(body)) as archive:
                body = archive.read("annotations/captions_train2017.json")
        assert body == file.read_bytes(), url
        served.add(file)
    url = "https://storage.googleapis.com/conceptual_12m/cc12m.tsv"
    assert edition.client.get(url, Range="bytes=100-")[0] == 206
    groups = (edition.published.files, edition.published.archives)
    unserved = {file.name for group in groups for files in group.values() for file in files} - {
        file.name for file in served
    }
    assert unserved == {"yfcc100m_dataset.bz2", "flickr30k-images.tar"}, "those are given on request alone"
