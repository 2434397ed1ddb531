import gzip
import json
import tempfile
import time
import tracemalloc
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from pmd.records import Caption, Reason, Record, Rejected
from pmd.sources import redcaps
from pmd.sources.redcaps import Rules
from tests.reading import Outcome, check_laws, read_all, read_parts

REAL = Path(__file__).parents[2] / "shared" / "real" / "redcaps" / "annotations"

INFO = {"start_date": "2008-01-01", "end_date": "2017-12-31", "url": "https://redcaps.xyz", "version": "1.0"}
POST = {
    "image_id": "grraj",
    "author": "somebody",
    "url": "https://i.imgur.com/DXOdR.jpg",
    "raw_caption": "My school (x-posted)",
    "caption": "my school",
    "subreddit": "abandoned",
    "score": 2,
    "created_utc": 1302998814,
    "permalink": "/r/Abandoned/comments/grraj/my_school/",
    "crosspost_parents": None,
}


# --- rows ---


def test_an_annotation_becomes_a_record_that_names_nobody(tmp_path: Path) -> None:
    assert read(tmp_path, [POST]) == [
        Record(
            key="redcaps-grraj",
            url="https://i.imgur.com/DXOdR.jpg",
            captions=(Caption("my school", row=0),),
            meta='{"created_utc":1302998814,"reddit_id":"grraj","subreddit":"abandoned"}',
        )
    ]


def test_the_raw_caption_can_be_chosen(tmp_path: Path) -> None:
    (found,) = read(tmp_path, [POST], rules=Rules(caption="raw_caption"))
    assert isinstance(found, Record) and found.captions == (Caption("My school (x-posted)", row=0),)
    with pytest.raises(ValidationError):
        Rules.model_validate({"caption": "title"})


@pytest.mark.parametrize(
    ("fields", "attribution"),
    [
        ({}, "u/somebody, https://www.reddit.com/r/Abandoned/comments/grraj/my_school/"),
        ({"author": "None"}, "https://www.reddit.com/r/Abandoned/comments/grraj/my_school/"),
        ({"author": None, "permalink": None}, None),
        ({"permalink": "http://a.example"}, "u/somebody"),
        ({"author": 5, "permalink": []}, None),
    ],
)
def test_who_posted_it_is_kept_where_a_corpus_file_asks_for_it(
    tmp_path: Path, fields: dict[str, Any], attribution: str | None
) -> None:
    (kept,) = read(tmp_path, [POST | fields], rules=Rules(attribution=True))
    (dropped,) = read(tmp_path, [POST | fields])
    assert isinstance(kept, Record) and kept.attribution == attribution
    assert kept._replace(attribution=None) == dropped


@pytest.mark.parametrize("missing", ["author", "permalink", "score", "crosspost_parents", "raw_caption"])
def test_what_makes_no_difference_may_be_missing(tmp_path: Path, missing: str) -> None:
    fewer = {name: value for name, value in POST.items() if name != missing}
    assert read(tmp_path, [fewer]) == read(tmp_path, [POST])


@pytest.mark.parametrize(
    ("fields", "meta"),
    [
        ({"subreddit": None}, '{"created_utc":1302998814,"reddit_id":"grraj"}'),
        ({"created_utc": "x"}, '{"reddit_id":"grraj","subreddit":"abandoned"}'),
        (
            {"url": "https://live.staticflickr.com/4/38505_da26cf2c9e_b.jpg", "created_utc": True},
            '{"flickr_photo_id":"38505","reddit_id":"grraj","subreddit":"abandoned"}',
        ),
        (
            {"url": "http://farm8.static.flickr.com/4/38505_da26cf2c9e.jpg?x=/1_a.jpg", "created_utc": 1},
            '{"created_utc":1,"flickr_photo_id":"38505","reddit_id":"grraj","subreddit":"abandoned"}',
        ),
        (
            {"url": "https://a.example/38505_da26cf2c9e_b.jpg", "created_utc": 0},
            '{"created_utc":0,"reddit_id":"grraj","subreddit":"abandoned"}',
        ),
    ],
)
def test_ids_are_kept_where_they_are_given(tmp_path: Path, fields: dict[str, Any], meta: str) -> None:
    (found,) = read(tmp_path, [POST | fields])
    assert isinstance(found, Record) and found.meta == meta


@pytest.mark.parametrize(
    ("annotation", "reason"),
    [
        (POST | {"caption": ""}, Reason.INPUT_NO_CAPTION),
        (POST | {"caption": " \n"}, Reason.INPUT_NO_CAPTION),
        (POST | {"caption": None}, Reason.INPUT_NO_CAPTION),
        ({}, Reason.INPUT_NO_CAPTION),
        (POST | {"caption": 5}, Reason.INPUT_MALFORMED),
        (POST | {"image_id": None}, Reason.INPUT_MALFORMED),
        (POST | {"image_id": 5}, Reason.INPUT_MALFORMED),
        (POST | {"image_id": ""}, Reason.INPUT_MALFORMED),
        (POST | {"image_id": "GRRAJ"}, Reason.INPUT_MALFORMED),
        (POST | {"image_id": "../x"}, Reason.INPUT_MALFORMED),
        (POST | {"image_id": "grraj\n"}, Reason.INPUT_MALFORMED),
        (POST | {"image_id": "a" * 17}, Reason.INPUT_MALFORMED),
        (POST | {"url": None}, Reason.INPUT_NO_IMAGE),
        (POST | {"url": "  "}, Reason.INPUT_NO_IMAGE),
        (POST | {"url": "i.redd.it/1.jpg"}, Reason.INPUT_BAD_URL),
        (POST | {"url": "http://"}, Reason.INPUT_BAD_URL),
        ([], Reason.INPUT_MALFORMED),
        ("a", Reason.INPUT_MALFORMED),
        (None, Reason.INPUT_MALFORMED),
    ],
)
def test_an_annotation_that_cannot_be_read_is_rejected_alone(
    tmp_path: Path, annotation: Any, reason: Reason
) -> None:
    found = read(tmp_path, [POST, annotation, POST])
    assert summary(found) == [None, reason, None]
    check_laws(found, "redcaps")


@pytest.mark.parametrize(
    ("published", "taken"),
    [
        ("https://i.redd.it/rk0fk7q562841.jpg", None),
        ("http://a.example/a,b%20c.jpg?x=1,2#y", None),
        ("https://a.example/?of=imgur.com/a,b", None),
        ("http://imgur.com/aBc12", None),
        (" http://i.imgur.com/aBc12.png\n", "http://i.imgur.com/aBc12.png"),
        ("http://a.example/1.jpg http://a.example/2.jpg", "http://a.example/1.jpg"),
        ("two: http://a.example/1.jpg\tand", "http://a.example/1.jpg"),
        ("http://imgur.com/aBc12,dEf34", "http://imgur.com/aBc12.jpg"),
        ("http://imgur.com/aBc12#0,dEf34", "http://imgur.com/aBc12.jpg"),
        ("http://i.imgur.com/aBc12.png?1,dEf34.gif", "http://i.imgur.com/aBc12.png"),
        ("http://i.imgur.com/aBc12.png%3F1,dEf34", "http://i.imgur.com/aBc12.png"),
        ("https://www.imgur.com/,dEf34.gif", "http://i.imgur.com/dEf34.gif"),
        ("http://imgur.com/aBc12,dEf34 http://imgur.com/x", "http://imgur.com/aBc12.jpg"),
        ("aBc12,dEf34", "http://i.imgur.com/aBc12.jpg"),
    ],
)
def test_of_several_images_the_first_is_taken(tmp_path: Path, published: str, taken: str | None) -> None:
    (found,) = read(tmp_path, [POST | {"url": published}])
    assert isinstance(found, Record) and found.url == (taken or published)


@pytest.mark.parametrize(
    "url",
    [
        "https://staticflickr.com/" + "staticflickr.com/1_a/" * 20_000,
        "https://staticflickr.com/" + "/1" * 200_000,
        "https://staticflickr.com/" + "1" * 400_000,
        "http://imgur.com/" + "," * 200_000,
        "http://" + "imgur." * 60_000,
        "http://x " * 50_000,
    ],
)
def test_no_address_keeps_the_reader_busy(tmp_path: Path, url: str) -> None:
    start = time.perf_counter()
    assert len(read(tmp_path, [POST | {"url": url}])) == 1
    assert time.perf_counter() - start < 5


# --- damage ---


def test_a_cut_file_is_read_as_far_as_it_goes_and_its_rest_is_one_row(tmp_path: Path) -> None:
    posts = [POST | {"image_id": f"a{number}"} for number in range(4)]
    whole = read(tmp_path, posts)
    content = file_of(posts)
    seen: set[int] = set()
    for cut in range(len(content)):
        *rows, rest = read_all(redcaps, write(tmp_path, content[:cut]))
        assert rows == whole[: len(rows)]
        assert isinstance(rest, Rejected)
        assert (rest.row, rest.reason) == (len(rows), Reason.INPUT_MALFORMED)
        assert f"byte {cut}" in rest.detail
        seen.add(len(rows))
    assert seen == {0, 1, 2, 3, 4}


@pytest.mark.parametrize("content", [b"", b"\0" * 100, b"<html></html>", b"{}", b'{"annotations":{}}'])
def test_a_file_without_annotations_is_one_row(tmp_path: Path, content: bytes) -> None:
    assert summary(read_all(redcaps, write(tmp_path, content))) == [Reason.INPUT_MALFORMED]


# --- what a file is ---

COCO = {
    "info": {"description": "COCO"},
    "images": [],
    "annotations": [{"image_id": 9, "id": 1, "caption": "a"}],
}


@pytest.mark.parametrize(
    ("content", "form"),
    [
        (json.dumps({"info": INFO, "annotations": [POST]}), "annotations json"),
        (json.dumps({"annotations": [POST], "info": INFO}, indent=1), "annotations json"),
        (json.dumps({"annotations": [POST] * 500})[:100_000], "annotations json"),
        (json.dumps({"annotations": []}), "annotations json"),
        (json.dumps({"info": INFO, "annotations": []}), "annotations json"),
        (json.dumps(COCO), None),
        (json.dumps(COCO | {"annotations": []}), None),
        (json.dumps({"info": {"description": "COCO"}, "annotations": []}), None),
        (json.dumps({"info": INFO, "annotations": [], "images": []}), None),
        (json.dumps({"annotations": [{"image_id": "1a2b", "caption": "of another source"}]}), None),
        (json.dumps([POST]), None),
        (json.dumps(POST), None),
        ('{"annotations": [', None),
        ('{"annotations": [' + "[" * 50_000, None),
        ("", None),
    ],
)
def test_content_tells_redcaps_from_other_files(tmp_path: Path, content: str, form: str | None) -> None:
    assert redcaps.recognise(write(tmp_path, content.encode())) == form
    assert redcaps.recognise(write(tmp_path, gzip.compress(content.encode()))) == form


def test_a_file_without_posts_has_no_rows(tmp_path: Path) -> None:
    assert read(tmp_path, []) == []


def test_the_members_of_the_zip_are_parts_in_its_order(tmp_path: Path) -> None:
    files = {
        "annotations/": b"",
        "annotations/yarn_2018.json": file_of([]),
        "annotations/abandoned_2017.json": file_of([POST]),
        "__MACOSX/annotations/._abandoned_2017.json": b"\0\x05\x16\x07",
        "annotations/Old_Cars_2020.json": file_of([POST | {"image_id": "x"}] * 2),
        "license.json": b"{}",
        "annotations/broken_2019.json": b'{"annotations": [',
    }
    path = zip_of(tmp_path, files)
    assert redcaps.recognise(path) == "annotations zip"
    assert [part.member for part in redcaps.parts([path])] == [
        name for name in files if name.startswith("annotations/") and name.endswith(".json")
    ]
    assert [summary(found) for found in read_parts(redcaps, path)] == [
        [],
        [None],
        [None, None],
        [Reason.INPUT_MALFORMED],
    ]


@pytest.mark.parametrize(
    "files",
    [
        {},
        {"annotations/captions_val2017.json": json.dumps(COCO).encode()},
        {"other_2017.json": json.dumps(COCO).encode()},
        {"posts.json": b'{"annotations": []}'},
    ],
)
def test_a_zip_of_something_else_is_told_apart(tmp_path: Path, files: dict[str, bytes]) -> None:
    assert redcaps.recognise(zip_of(tmp_path, files)) is None


@pytest.mark.parametrize("where", range(0, 300, 3))
def test_a_damaged_zip_is_rows_never_an_exception(tmp_path: Path, where: int) -> None:
    path = zip_of(tmp_path, {"abandoned_2017.json": file_of([POST])})
    content = bytearray(path.read_bytes())
    content[where % len(content)] ^= 0xFF
    path.write_bytes(content)
    redcaps.recognise(path)
    (found,) = read_parts(redcaps, path)
    assert found
    check_laws(found, "redcaps")


# --- any rows, any damage ---

TEXTS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=12)
WORDS = TEXTS.filter(lambda text: bool(text.strip()))
POSTS = st.fixed_dictionaries(
    {
        "image_id": st.text("0123456789abcdefghijklmnopqrstuvwxyz", min_size=1, max_size=8),
        "url": st.builds("https://i.redd.it/{}.jpg".format, st.integers(0)),
        "caption": WORDS,
        "raw_caption": WORDS,
        "subreddit": st.just("abandoned"),
        "created_utc": st.integers(0, 2**40),
    },
    optional={
        "author": st.just("None") | TEXTS,
        "permalink": st.just("/r/a/") | TEXTS,
        "score": st.integers(0, 2**31),
        "crosspost_parents": st.none() | st.lists(TEXTS, max_size=2),
    },
)
CHOICES = st.builds(Rules, caption=st.sampled_from(["caption", "raw_caption"]), attribution=st.booleans())


@settings(max_examples=150, deadline=None, derandomize=True)
@given(posts=st.lists(POSTS, max_size=6), rules=CHOICES, info=st.booleans(), zipped=st.booleans())
def test_valid_files_come_out_row_by_row(
    posts: list[dict[str, Any]], rules: Rules, info: bool, zipped: bool
) -> None:
    content = json.dumps(({"info": INFO} if info else {}) | {"annotations": posts}).encode()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        path = zip_of(folder, {"a_2018.json": content}) if zipped else write(folder, content)
        assert redcaps.recognise(path) == ("annotations zip" if zipped else "annotations json")
        (found,) = read_parts(redcaps, path, rules=rules)
    check_laws(found, "redcaps")
    assert [
        (outcome.key, outcome.url, outcome.captions) for outcome in found if isinstance(outcome, Record)
    ] == [
        (f"redcaps-{post['image_id']}", post["url"], (Caption(post[rules.caption], row),))
        for row, post in enumerate(posts)
    ]
    if not rules.attribution:
        stored = json.dumps(
            [outcome._replace(captions=()) for outcome in found if isinstance(outcome, Record)]
        )
        assert "reddit.com" not in stored and "u/" not in stored


VALUES = st.none() | st.booleans() | st.integers(-3, 3) | TEXTS | st.lists(TEXTS, max_size=2)
ANNOTATIONS = (
    VALUES
    | POSTS
    | st.fixed_dictionaries({}, optional=dict.fromkeys(POST, VALUES))
    | st.builds(
        lambda post, changes: post | changes, POSTS, st.dictionaries(st.sampled_from([*POST]), VALUES)
    )
    | st.builds(lambda url: POST | {"url": url}, st.text("htp:/imgur.com,#?% aB1", max_size=30))
)


@settings(max_examples=250, deadline=None, derandomize=True)
@given(annotations=st.lists(ANNOTATIONS, max_size=6), rules=CHOICES)
def test_whatever_the_annotations_are_each_is_a_row(annotations: list[Any], rules: Rules) -> None:
    with tempfile.TemporaryDirectory() as folder:
        found = read(Path(folder), [POST, *annotations, POST], rules=rules)
    check_laws(found, "redcaps")
    assert len(found) == len(annotations) + 2
    assert isinstance(found[0], Record) and isinstance(found[-1], Record)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(
    posts=st.lists(POSTS, max_size=4),
    cut=st.integers(0, 300),
    flips=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(1, 255)), max_size=4),
    zipped=st.booleans(),
)
def test_cut_and_flipped_bytes_are_rows_never_an_exception(
    posts: list[Any], cut: int, flips: list[tuple[float, int]], zipped: bool
) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        whole = file_of([POST, *posts])
        path = zip_of(folder, {"a_2018.json": whole}) if zipped else write(folder, whole)
        content = bytearray(path.read_bytes())
        content = content[: max(1, len(content) - cut)]
        for where, bits in flips:
            content[int(where * len(content))] ^= bits
        path.write_bytes(content)
        redcaps.recognise(path)
        found = read_parts(redcaps, path)
        assert found == read_parts(redcaps, path)
    for outcomes in found:
        check_laws(outcomes, "redcaps")


@pytest.mark.parametrize("zipped", [False, True])
def test_a_file_of_any_length_is_read_in_bounded_memory(tmp_path: Path, zipped: bool) -> None:
    content = file_of([POST | {"raw_caption": "a caption " * 40, "image_id": f"a{i}"} for i in range(4_000)])
    path = zip_of(tmp_path, {"a_2018.json": content}) if zipped else write(tmp_path, content)
    size = len(content)
    del content
    tracemalloc.start()
    assert redcaps.recognise(path)
    count = sum(1 for part in redcaps.parts([path]) for _ in redcaps.read(part, Rules()))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert count == 4_000
    assert peak < 1 << 20 < 2 << 20 < size


# --- the published rows ---


@pytest.mark.parametrize("rules", [Rules(), Rules(caption="raw_caption", attribution=True)])
def test_the_published_rows_are_read(rules: Rules) -> None:
    if not REAL.is_dir():
        pytest.skip(f"the real rows are not here: {REAL}")
    paths = sorted(REAL.glob("*.json"))
    assert {redcaps.recognise(path) for path in paths} == {"annotations json"}
    found = read_parts(redcaps, *paths, rules=rules)
    published = [json.loads(path.read_bytes())["annotations"] for path in paths]
    assert [len(outcomes) for outcomes in found] == [len(posts) for posts in published] == [1, 0, 1, 1, 1, 1]
    for outcomes, posts in zip(found, published, strict=True):
        check_laws(outcomes, "redcaps")
        for outcome, post in zip(outcomes, posts, strict=True):
            assert isinstance(outcome, Record)
            assert outcome.key == f"redcaps-{post['image_id']}"
            assert outcome.url == post["url"]
            assert outcome.captions == (Caption(post[rules.caption], 0),)
            # The authors of these rows are masked.
            assert outcome.attribution == (
                f"https://www.reddit.com{post['permalink']}" if rules.attribution else None
            )


def read(folder: Path, annotations: list[Any], *, rules: Rules | None = None) -> list[Outcome]:
    return read_all(redcaps, write(folder, file_of(annotations)), rules=rules)


def file_of(annotations: list[Any]) -> bytes:
    return json.dumps({"info": INFO, "annotations": annotations}).encode()


def write(folder: Path, content: bytes) -> Path:
    path = folder / "file"
    path.write_bytes(content)
    return path


def zip_of(folder: Path, files: dict[str, bytes]) -> Path:
    path = folder / "file"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


def summary(outcomes: Sequence[Outcome]) -> list[Reason | None]:
    return [outcome.reason if isinstance(outcome, Rejected) else None for outcome in outcomes]
