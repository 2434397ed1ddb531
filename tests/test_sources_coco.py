import json
import tempfile
import tracemalloc
import zipfile
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pmd.records import Caption, Reason, Record, Rejected
from pmd.sources import coco
from tests.reading import read_all

REAL = Path(__file__).parents[2] / "shared" / "real" / "coco" / "annotations"

IMAGE = {
    "id": 9,
    "license": 4,
    "file_name": "000000000009.jpg",
    "coco_url": "http://images.cocodataset.org/val2017/000000000009.jpg",
    "flickr_url": "http://farm7.staticflickr.com/6116/6255196340_da26cf2c9e_z.jpg",
}
ANNOTATION = {"id": 38, "image_id": 9, "caption": "A bowl of fruit. "}
LICENSES = [{"id": 4, "name": "Attribution", "url": "http://creativecommons.org/licenses/by/2.0/"}]


# --- captions_*.json ---


def test_an_annotation_becomes_a_record_of_its_image(tmp_path: Path) -> None:
    assert captions(tmp_path, images=[IMAGE], annotations=[ANNOTATION], licenses=LICENSES) == [
        Record(
            key="coco-9",
            url="http://images.cocodataset.org/val2017/000000000009.jpg",
            captions=(Caption("A bowl of fruit. ", row=0, id="38"),),
            license="CC-BY-2.0",
            license_url="http://creativecommons.org/licenses/by/2.0/",
            meta='{"coco_id":9,"file_name":"000000000009.jpg","flickr_photo_id":"6255196340",'
            '"flickr_url":"http://farm7.staticflickr.com/6116/6255196340_da26cf2c9e_z.jpg"}',
            path="val2017/000000000009.jpg",
        )
    ]


def test_the_lists_may_come_in_any_order(tmp_path: Path) -> None:
    lists: dict[str, Any] = {"images": [IMAGE], "annotations": [ANNOTATION], "licenses": LICENSES, "info": {}}
    assert captions(tmp_path, **lists) == captions(tmp_path, **dict(reversed(lists.items())))


def test_an_image_without_annotations_is_a_row_after_the_last_annotation(tmp_path: Path) -> None:
    images = [{**IMAGE, "id": number} for number in (7, 9, 8)]
    found = captions(tmp_path, images=images, annotations=[ANNOTATION, ANNOTATION])
    assert summary(found) == [
        (0, None),
        (1, None),
        (2, Reason.INPUT_NO_CAPTION),
        (3, Reason.INPUT_NO_CAPTION),
    ]
    assert [outcome.detail for outcome in found if isinstance(outcome, Rejected)] == [
        "image 7 has no annotation",
        "image 8 has no annotation",
    ]


@pytest.mark.parametrize(
    ("annotation", "reason"),
    [
        ({"image_id": 10, "caption": "a"}, Reason.INPUT_NO_IMAGE),
        ({"image_id": "9", "caption": "a"}, Reason.INPUT_NO_IMAGE),
        ({"image_id": True, "caption": "a"}, Reason.INPUT_NO_IMAGE),
        ({"image_id": [], "caption": "a"}, Reason.INPUT_NO_IMAGE),
        ({"caption": "a"}, Reason.INPUT_NO_IMAGE),
        ({"image_id": 9}, Reason.INPUT_NO_CAPTION),
        ({"image_id": 9, "caption": None}, Reason.INPUT_NO_CAPTION),
        ({"image_id": 9, "caption": " \n"}, Reason.INPUT_NO_CAPTION),
        ({"image_id": 9, "caption": 5}, Reason.INPUT_MALFORMED),
        ({"image_id": 9, "caption": ["a"]}, Reason.INPUT_MALFORMED),
        ({}, Reason.INPUT_NO_CAPTION),
        ([], Reason.INPUT_MALFORMED),
        ("a", Reason.INPUT_MALFORMED),
        (None, Reason.INPUT_MALFORMED),
        (1.5, Reason.INPUT_MALFORMED),
    ],
)
def test_an_annotation_that_cannot_be_read_is_rejected_alone(
    tmp_path: Path, annotation: Any, reason: Reason
) -> None:
    found = captions(tmp_path, images=[IMAGE], annotations=[ANNOTATION, annotation, ANNOTATION])
    assert summary(found) == [(0, None), (1, reason), (2, None)]


@pytest.mark.parametrize(
    "image", [None, "a", [], {}, {"id": "7"}, {"id": None}, {"id": -7}, {"id": 7.0}, {"id": True}, IMAGE]
)
def test_an_image_that_cannot_be_read_or_is_listed_again_is_a_row(tmp_path: Path, image: Any) -> None:
    found = captions(tmp_path, images=[IMAGE, image], annotations=[ANNOTATION])
    assert summary(found) == [(0, None), (1, Reason.INPUT_MALFORMED)]


@pytest.mark.parametrize(
    ("fields", "url"),
    [
        ({"coco_url": None}, IMAGE["flickr_url"]),
        ({"coco_url": ""}, IMAGE["flickr_url"]),
        (
            {"coco_url": 5, "file_name": "COCO_val2014_000000000009.jpg"},
            "http://images.cocodataset.org/val2014/COCO_val2014_000000000009.jpg",
        ),
        ({"coco_url": None, "flickr_url": None}, Reason.INPUT_NO_IMAGE),
        ({"coco_url": "000000000009.jpg"}, Reason.INPUT_BAD_URL),
    ],
)
def test_an_image_without_coco_url_is_looked_for_elsewhere(
    tmp_path: Path, fields: dict[str, Any], url: str | Reason
) -> None:
    (found,) = captions(tmp_path, images=[IMAGE | fields], annotations=[ANNOTATION])
    assert url == (found.url if isinstance(found, Record) else found.reason)


def test_a_licence_is_what_its_url_says_not_what_its_number_usually_means(tmp_path: Path) -> None:
    licenses = [
        {"id": 4, "url": "https://creativecommons.org/licenses/by-nc-sa/4.0/"},
        {"id": 20, "url": "https://creativecommons.org/publicdomain/zero/1.0/"},
        {"id": 21, "url": "http://flickr.com/commons/usage/"},
        {"id": 22, "url": None},
        "x",
    ]
    images = [IMAGE | {"id": number, "license": number} for number in (4, 5, 7, 20, 21, 22, 23)]
    images.append(IMAGE | {"id": 24, "license": None})
    annotations = [ANNOTATION | {"image_id": image["id"]} for image in images]
    found = captions(tmp_path, licenses=licenses, images=images, annotations=annotations)
    assert [(outcome.license, outcome.license_url) for outcome in found if isinstance(outcome, Record)] == [
        ("CC-BY-NC-SA-4.0", "https://creativecommons.org/licenses/by-nc-sa/4.0/"),
        ("CC-BY-SA-2.0", "http://creativecommons.org/licenses/by-sa/2.0/"),
        (None, "http://flickr.com/commons/usage/"),
        ("CC0-1.0", "https://creativecommons.org/publicdomain/zero/1.0/"),
        (None, "http://flickr.com/commons/usage/"),
        (None, None),
        (None, None),
        (None, None),
    ]


# --- damage ---


def test_a_cut_file_is_read_as_far_as_it_goes_and_its_rest_is_one_row(tmp_path: Path) -> None:
    annotations = [ANNOTATION | {"id": number} for number in range(5)]
    lists = {"images": [IMAGE, IMAGE | {"id": 8}], "annotations": annotations}
    whole = captions(tmp_path, **lists)[:5]
    content = json.dumps(lists).encode()
    seen: Counter[int] = Counter()
    for cut in range(len(content)):
        *rows, rest = read(tmp_path, content[:cut])
        assert rows == whole[: len(rows)]
        assert isinstance(rest, Rejected)
        assert (rest.row, rest.reason) == (len(rows), Reason.INPUT_MALFORMED)
        assert f"byte {cut}" in rest.detail
        seen[len(rows)] += 1
    assert set(seen) == set(range(6))


@pytest.mark.parametrize(
    "content", [b"", b"\0" * 100, b"<html></html>", b"[]", b"{}", b"null", b'{"images":[]}']
)
def test_a_file_without_annotations_is_one_row(tmp_path: Path, content: bytes) -> None:
    assert summary(read(tmp_path, content)) == [(0, Reason.INPUT_MALFORMED)]


def test_a_nest_of_brackets_ends_the_reading(tmp_path: Path) -> None:
    content = (
        json.dumps({"images": [IMAGE], "annotations": [ANNOTATION]}).encode()[:-2] + b"," + b"[" * 500_000
    )
    assert summary(read(tmp_path, content)) == [(0, None), (1, Reason.INPUT_MALFORMED)]


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-2, 12)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text("a9:/ ."),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("ab"), inner, max_size=2),
    max_leaves=5,
)


def fields_of(*names: str) -> st.SearchStrategy[Any]:
    return JSON | st.fixed_dictionaries({}, optional={name: st.integers(8, 10) | JSON for name in names})


@settings(max_examples=300, deadline=None, derandomize=True)
@given(
    images=st.lists(
        st.just(IMAGE) | fields_of("id", "coco_url", "file_name", "flickr_url", "license"), max_size=5
    ),
    annotations=st.lists(st.just(ANNOTATION) | fields_of("image_id", "caption", "id"), max_size=5),
    licenses=st.lists(fields_of("id", "url"), max_size=3),
)
def test_whatever_the_elements_are_each_ends_in_one_outcome(
    images: list[Any], annotations: list[Any], licenses: list[Any]
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        found = captions(Path(folder), images=images, annotations=annotations, licenses=licenses)
    assert [row for row, _ in summary(found)] == list(range(len(found)))
    of_images = found[len(annotations) :]
    assert all(isinstance(outcome, Rejected) for outcome in of_images)
    named = {
        annotation.get("image_id")
        for annotation in annotations
        if isinstance(annotation, dict) and is_id(annotation.get("image_id"))
    }
    listed = [image["id"] for image in images if isinstance(image, dict) and is_id(image.get("id"))]
    unreadable = len(images) - len(listed)
    again = len(listed) - len(set(listed))
    assert len(of_images) == unreadable + again + len(set(listed) - named)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(
    images=st.lists(
        fields_of("cocoid", "filepath", "filename", "sentences", "split")
        | st.builds(
            lambda sentences: KARPATHY | {"sentences": sentences},
            st.lists(fields_of("raw", "sentid"), max_size=4),
        ),
        max_size=5,
    )
)
def test_whatever_the_images_of_karpathy_are_each_sentence_ends_in_one_outcome(images: list[Any]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = write(Path(folder), json.dumps({"images": [KARPATHY, *images]}).encode())
        found = read_all("coco", path)
    sentences = [image.get("sentences") if isinstance(image, dict) else None for image in images]
    assert [row for row, _ in summary(found)] == list(range(len(found)))
    assert len(found) == 2 + sum(len(each) if isinstance(each, list) and each else 1 for each in sentences)


def test_a_file_of_any_length_is_read_in_the_memory_of_its_images(tmp_path: Path) -> None:
    path = tmp_path / "file"
    with path.open("w") as file:
        file.write(json.dumps({"images": [IMAGE]})[:-1] + ', "annotations": [{}')
        file.writelines(", " + json.dumps(ANNOTATION | {"id": number}) for number in range(60_000))
        file.write("]}")
    tracemalloc.start()
    count = sum(1 for part in coco.parts([path]) for _ in coco.read(part, coco.Rules()))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert count == 60_001
    assert peak < 2 << 20 < path.stat().st_size


# --- dataset_coco.json ---

KARPATHY = {
    "filepath": "val2014",
    "filename": "COCO_val2014_000000000009.jpg",
    "imgid": 0,
    "cocoid": 9,
    "split": "restval",
    "sentids": [38, 39],
    "sentences": [
        {"tokens": ["a", "bowl"], "raw": "A bowl.", "imgid": 0, "sentid": 38},
        {"tokens": ["fruit"], "raw": "Fruit.", "imgid": 0, "sentid": 39},
    ],
}


def test_a_sentence_of_karpathy_becomes_a_record_with_its_split(tmp_path: Path) -> None:
    content = json.dumps({"images": [KARPATHY], "dataset": "coco"}).encode()
    assert coco.recognise(write(tmp_path, content)) == "karpathy json"
    first, second = read(tmp_path, content)
    assert first == Record(
        key="coco-9",
        url="http://images.cocodataset.org/val2014/COCO_val2014_000000000009.jpg",
        captions=(Caption("A bowl.", row=0, id="38"),),
        meta='{"coco_id":9,"file_name":"COCO_val2014_000000000009.jpg","karpathy_split":"restval"}',
        path="val2014/COCO_val2014_000000000009.jpg",
    )
    assert isinstance(second, Record) and second.captions == (Caption("Fruit.", row=1, id="39"),)


def test_captions_files_beside_karpathys_give_its_photos_their_licences_and_no_rows(tmp_path: Path) -> None:
    karpathy = write(tmp_path / "a", json.dumps({"images": [KARPATHY], "dataset": "coco"}).encode())
    whole = {"images": [IMAGE], "annotations": [ANNOTATION], "licenses": LICENSES}
    captions = write(tmp_path / "b", json.dumps(whole).encode())
    for files in ([karpathy, captions], [captions, karpathy]):
        records = [outcome for outcome in read_all("coco", *files) if isinstance(outcome, Record)]
        bare = [record._replace(license=None, license_url=None) for record in records]
        assert bare == read_all("coco", karpathy)
        assert {(record.license, record.license_url) for record in records} == {
            ("CC-BY-2.0", "http://creativecommons.org/licenses/by/2.0/")
        }


@pytest.mark.parametrize("split", ["val", "test", "no such split"])
def test_sentences_of_splits_for_evaluation_are_left_out_unless_they_are_asked_for(
    tmp_path: Path, split: str
) -> None:
    content = json.dumps({"images": [KARPATHY | {"split": split}], "dataset": "coco"}).encode()
    outcomes = read(tmp_path, content)
    assert [outcome.reason for outcome in outcomes if isinstance(outcome, Rejected)] == [
        Reason.INPUT_LEFT_OUT
    ] * 2
    chosen = read_all("coco", write(tmp_path, content), rules=coco.Rules(splits=("val", "test")))
    assert all(isinstance(outcome, Record) for outcome in chosen) is (split in ("val", "test"))


def test_every_image_of_karpathy_that_cannot_be_read_is_a_row_in_its_place(tmp_path: Path) -> None:
    images: list[Any] = [
        KARPATHY,
        KARPATHY | {"sentences": []},
        5,
        KARPATHY | {"sentences": {}},
        KARPATHY | {"filename": "../../etc/passwd"},
        KARPATHY | {"sentences": [{"raw": None}, 5, {"raw": "One."}]},
    ]
    found = read(tmp_path, json.dumps({"images": images}).encode())
    assert summary(found) == [
        (0, None),
        (1, None),
        (2, Reason.INPUT_NO_CAPTION),
        (3, Reason.INPUT_MALFORMED),
        (4, Reason.INPUT_MALFORMED),
        (5, Reason.INPUT_NO_IMAGE),
        (6, Reason.INPUT_NO_IMAGE),
        (7, Reason.INPUT_NO_CAPTION),
        (8, Reason.INPUT_MALFORMED),
        (9, None),
    ]


# --- what a file is ---

COCO = json.dumps({"info": {}, "licenses": LICENSES, "images": [IMAGE], "annotations": [ANNOTATION]}).encode()
INSTANCES = COCO.replace(b'"caption": "A bowl of fruit. "', b'"segmentation": [[1, 2]]')


@pytest.mark.parametrize(
    ("content", "form"),
    [
        (COCO, "captions json"),
        (COCO[: len(COCO) // 2], "captions json"),
        (INSTANCES, None),
        (b'{"images": [{"file_name": "a.jpg"}], "categories": []}', None),
        (
            b'{"images": [{"sentids": [1], "sentences": [], "filename": "1.jpg"}], "dataset": "flickr30k"}',
            None,
        ),
        (b'{"info": {}, "annotations": [{"image_id": "1a2b", "caption": "of another source"}]}', None),
        (b'{"dataset_id": "mscoco_val2017", "image_id": "137576", "caption": "In this image"}\n', None),
        (b'[{"id": 1, "regions": []}]', None),
        (b"http://a.example/1.jpg\ta caption\n", None),
        (b"PK\x03\x04 and nothing of a zip", None),
    ],
)
def test_content_tells_the_captions_from_other_files(
    tmp_path: Path, content: bytes, form: str | None
) -> None:
    assert coco.recognise(write(tmp_path, content)) == form


def test_of_a_zip_the_members_with_captions_are_read(tmp_path: Path) -> None:
    path = tmp_path / "file"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("annotations/instances_val2017.json", INSTANCES)
        archive.writestr("annotations/captions_val2017.json", COCO)
        archive.writestr("annotations/captions_notes.json", b"{}")
        archive.writestr("annotations/captions_train2017.json", COCO)
        archive.writestr("readme.txt", b"captions")
    assert coco.recognise(path) == "captions zip"
    parts = coco.parts([path])
    assert [(part.member, part.form) for part in parts] == [
        ("annotations/captions_val2017.json", "captions json"),
        ("annotations/captions_train2017.json", "captions json"),
    ]
    for part in parts:
        assert list(coco.read(part, coco.Rules())) == read(tmp_path, COCO)


@pytest.mark.parametrize("where", range(0, 400, 3))
def test_a_damaged_zip_is_rows_never_an_exception(tmp_path: Path, where: int) -> None:
    path = tmp_path / "file"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("captions_val2017.json", COCO)
    content = bytearray(path.read_bytes())
    content[where % len(content)] ^= 0xFF
    path.write_bytes(content)
    coco.recognise(path)
    found = read_all("coco", path)
    assert found
    assert [row for row, _ in summary(found)] == list(range(len(found)))


# --- the published files ---


@pytest.mark.parametrize(
    ("name", "images", "rows"),
    [("captions_train2017.json", 80, 400), ("captions_val2017.json", 5_000, 25_014)],
)
def test_the_published_rows_are_read(name: str, images: int, rows: int) -> None:
    path = REAL / name
    if not path.is_file():
        pytest.skip(f"the real rows are not here: {path}")
    assert coco.recognise(path) == "captions json"
    found = read_all("coco", path)
    records = [outcome for outcome in found if isinstance(outcome, Record)]
    assert len(records) == len(found) == rows
    assert len({record.key for record in records}) == images
    assert all(record.url == f"http://images.cocodataset.org/{record.path}" for record in records)
    assert all(record.license_url and json.loads(record.meta or "")["flickr_photo_id"] for record in records)
    assert [record.captions[0].row for record in records] == list(range(rows))


def captions(folder: Path, **lists: Any) -> list[Record | Rejected]:
    path = write(folder, json.dumps(lists).encode())
    return read_all("coco", path)


def read(folder: Path, content: bytes) -> list[Record | Rejected]:
    path = write(folder, content)
    return read_all("coco", path)


def write(folder: Path, content: bytes) -> Path:
    folder.mkdir(exist_ok=True)
    path = folder / "other"
    path.write_bytes(content)
    return path


def summary(outcomes: Iterable[Record | Rejected]) -> list[tuple[int, Reason | None]]:
    return [
        (outcome.row, outcome.reason) if isinstance(outcome, Rejected) else (outcome.captions[0].row, None)
        for outcome in outcomes
    ]


def is_id(value: Any) -> bool:
    return type(value) is int and value >= 0
