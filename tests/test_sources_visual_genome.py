import json
import tempfile
import tracemalloc
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pmd.records import Caption, Reason, Record, Rejected
from pmd.sources import Incomplete, visual_genome
from tests.reading import check_laws, read_all, read_parts, rows_of

REAL = Path(__file__).parents[2] / "shared" / "real" / "visual_genome"

IMAGE = {
    "image_id": 2,
    "url": "https://cs.stanford.edu/people/rak248/VG_100K/2.jpg",
    "width": 800,
    "height": 600,
    "coco_id": 139,
    "flickr_id": 2384,
}
REGION = {
    "region_id": 1382,
    "image_id": 2,
    "phrase": "a green clock ",
    "x": 421,
    "y": -57,
    "width": 82,
    "height": 9,
}
REGION_OF_1_0 = {
    "id": 1382,
    "image": 2,
    "phrase": "a green clock ",
    "x": 421,
    "y": -57,
    "width": 82,
    "height": 9,
}
CAPTION = Caption("a green clock ", 0, "1382", (421.0, -57.0, 82.0, 9.0))


# --- regions ---


@pytest.mark.parametrize("region", [REGION, REGION_OF_1_0])
def test_the_regions_of_an_image_become_one_record_with_their_boxes(tmp_path: Path, region: Any) -> None:
    assert read(tmp_path, [{"id": 2, "regions": [region, region]}]) == [
        Record(
            key="visual_genome-2",
            url="https://cs.stanford.edu/people/rak248/VG_100K/2.jpg",
            captions=(CAPTION, CAPTION._replace(row=1)),
            meta='{"coco_id":139,"flickr_photo_id":"2384","visual_genome_id":2}',
            path="VG_100K/2.jpg",
        )
    ]


def test_images_are_joined_by_id_whatever_the_order_and_the_name_of_the_id(tmp_path: Path) -> None:
    listed = [
        {"url": f"https://a.example/VG_100K_2/{number}.jpg", "coco_id": None, "id": number}
        for number in (3, 2)
    ]
    found = read(tmp_path, [{"id": number, "regions": [{"phrase": "a"}]} for number in (2, 3)], listed)
    assert [(outcome.url, outcome.path) for outcome in found if isinstance(outcome, Record)] == [
        ("https://a.example/VG_100K_2/2.jpg", "VG_100K_2/2.jpg"),
        ("https://a.example/VG_100K_2/3.jpg", "VG_100K_2/3.jpg"),
    ]


@pytest.mark.parametrize(
    ("fields", "meta"),
    [
        ({"coco_id": None, "flickr_id": None}, '{"visual_genome_id":2}'),
        ({"coco_id": -1, "flickr_id": -1}, '{"visual_genome_id":2}'),
        ({"coco_id": 0, "flickr_id": 0}, '{"visual_genome_id":2}'),
        ({"coco_id": "139", "flickr_id": True}, '{"visual_genome_id":2}'),
    ],
)
def test_an_id_of_elsewhere_that_is_none_is_left_out(tmp_path: Path, fields: Any, meta: str) -> None:
    (found,) = read(tmp_path, [{"id": 2, "regions": [REGION]}], [IMAGE | fields])
    assert isinstance(found, Record) and found.meta == meta


@pytest.mark.parametrize(
    ("url", "path"),
    [
        ("https://a.example/VG_100K/2.jpg?x=1", None),
        ("https://a.example/../2.jpg", None),
        ("https://a.example/2.jpg", None),
        ("ftp://a.example/b/VG_100K_2/17.jpg", "VG_100K_2/17.jpg"),
    ],
)
def test_the_path_is_that_of_the_image_zips_or_none(tmp_path: Path, url: str, path: str | None) -> None:
    (found,) = read(tmp_path, [{"id": 2, "regions": [REGION]}], [IMAGE | {"url": url}])
    assert isinstance(found, Record) and (found.url, found.path) == (url, path)


@pytest.mark.parametrize(
    "box", [{"width": 0}, {"height": -3}, {"x": None}, {"y": "57"}, {"width": True}, {"height": []}]
)
def test_a_phrase_whose_box_is_none_is_kept_without_it(tmp_path: Path, box: dict[str, Any]) -> None:
    (found,) = read(tmp_path, [{"id": 2, "regions": [REGION | box]}])
    assert isinstance(found, Record) and found.captions == (CAPTION._replace(box=None),)


@pytest.mark.parametrize(
    ("region", "reason"),
    [
        ({**REGION, "phrase": None}, Reason.INPUT_NO_CAPTION),
        ({**REGION, "phrase": " \n"}, Reason.INPUT_NO_CAPTION),
        ({"region_id": 5, "image_id": 2}, Reason.INPUT_NO_CAPTION),
        ({**REGION, "phrase": 5}, Reason.INPUT_MALFORMED),
        ({**REGION, "image_id": 3}, Reason.INPUT_MALFORMED),
        ({**REGION_OF_1_0, "image": "2"}, Reason.INPUT_MALFORMED),
        ("a phrase", Reason.INPUT_MALFORMED),
        (None, Reason.INPUT_MALFORMED),
    ],
)
def test_a_region_that_cannot_be_read_is_rejected_alone(tmp_path: Path, region: Any, reason: Reason) -> None:
    found = read(tmp_path, [{"id": 2, "regions": [region, REGION, REGION, region, REGION]}])
    assert summary(found) == [([0], reason), ([1, 2], None), ([3], reason), ([4], None)]


@pytest.mark.parametrize(
    ("element", "reasons"),
    [
        ({"id": 2, "regions": []}, [Reason.INPUT_NO_CAPTION]),
        ({"id": 2, "regions": None}, [Reason.INPUT_NO_CAPTION]),
        ({"id": 2}, [Reason.INPUT_NO_CAPTION]),
        ({"id": 2, "regions": {}}, [Reason.INPUT_MALFORMED]),
        (None, [Reason.INPUT_MALFORMED]),
        ([REGION], [Reason.INPUT_MALFORMED]),
        (
            {"id": 7, "regions": [{"phrase": "a"}, {"phrase": ""}]},
            [Reason.INPUT_NO_IMAGE, Reason.INPUT_NO_CAPTION],
        ),
        ({"id": "2", "regions": [{"phrase": "a"}]}, [Reason.INPUT_NO_IMAGE]),
        ({"regions": [{"phrase": "a"}] * 2}, [Reason.INPUT_NO_IMAGE] * 2),
    ],
)
def test_an_element_that_gives_no_record_is_one_row_or_as_many_as_it_has_regions(
    tmp_path: Path, element: Any, reasons: list[Reason]
) -> None:
    found = read(tmp_path, [element, {"id": 2, "regions": [REGION]}])
    rows = [([row], reason) for row, reason in enumerate(reasons)]
    assert summary(found) == [*rows, ([len(rows)], None)]


@pytest.mark.parametrize(
    ("url", "reason"),
    [(None, Reason.INPUT_NO_IMAGE), ("", Reason.INPUT_NO_IMAGE), ("VG_100K/2.jpg", Reason.INPUT_BAD_URL)],
)
def test_regions_of_an_image_without_an_address_are_rejected(
    tmp_path: Path, url: Any, reason: Reason
) -> None:
    found = read(tmp_path, [{"id": 2, "regions": [REGION, REGION]}], [IMAGE | {"url": url}])
    assert summary(found) == [([0], reason), ([1], reason)]


def test_an_image_may_be_described_twice(tmp_path: Path) -> None:
    found = read(tmp_path, [{"id": 2, "regions": [REGION]}, {"id": 2, "regions": [REGION]}])
    assert [outcome.key for outcome in found if isinstance(outcome, Record)] == ["visual_genome-2"] * 2
    assert summary(found) == [([0], None), ([1], None)]


def test_images_that_nothing_is_said_of_and_entries_that_are_none_are_rows_at_the_end(tmp_path: Path) -> None:
    images = [IMAGE | {"image_id": number} for number in (9, 2, 8)] + [IMAGE, 5, {"image_id": "7"}]
    found = read(tmp_path, [{"id": 2, "regions": [REGION]}], images)
    assert [
        (outcome.row, outcome.reason, outcome.detail) for outcome in found if isinstance(outcome, Rejected)
    ] == [
        (1, Reason.INPUT_NO_CAPTION, "no element is about image 9"),
        (2, Reason.INPUT_NO_CAPTION, "no element is about image 8"),
        (3, Reason.INPUT_MALFORMED, "image 2 is listed again"),
        (4, Reason.INPUT_MALFORMED, "expected an image with a whole number as its id, found 5"),
        (
            5,
            Reason.INPUT_MALFORMED,
            "expected an image with a whole number as its id, found {'image_id': '7'}",
        ),
    ]


# --- two files ---


def test_regions_without_the_list_of_images_are_incomplete(tmp_path: Path) -> None:
    regions = write(tmp_path / "a", [{"id": 2, "regions": [REGION]}])
    with pytest.raises(Incomplete, match=r"a: .* image_data\.json, which is missing"):
        visual_genome.parts([regions])


def test_the_list_of_images_alone_has_no_rows(tmp_path: Path) -> None:
    images = write(tmp_path / "a", [IMAGE])
    assert visual_genome.recognise(images) == "image data json"
    assert visual_genome.parts([images]) == []


def test_several_files_of_regions_share_the_images_and_a_second_list_adds_no_rows(tmp_path: Path) -> None:
    one = write(tmp_path / "a", [{"id": 2, "regions": [REGION]}])
    two = write(tmp_path / "b", [{"id": 2, "regions": [REGION_OF_1_0]}])
    lists = [write(tmp_path / name, [IMAGE]) for name in ("c", "d")]
    first, second = read_parts(visual_genome, lists[0], one, lists[1], two)
    assert first == second
    assert summary(first) == [([0], None)]


@pytest.mark.parametrize("together", [True, False])
def test_both_files_may_be_zipped(tmp_path: Path, together: bool) -> None:
    contents = {
        "region_descriptions.json": json.dumps([{"id": 2, "regions": [REGION]}]),
        "image_data.json": json.dumps([IMAGE]),
        "objects.json": json.dumps([{"image_id": 2, "objects": []}]),
    }
    paths: list[Path] = []
    for names in [[*contents]] if together else [[name] for name in contents]:
        paths.append(tmp_path / f"file{len(paths)}")
        with zipfile.ZipFile(paths[-1], "w", zipfile.ZIP_DEFLATED) as archive:
            for name in names:
                archive.writestr(f"data/{name}", contents[name])
    forms = [visual_genome.recognise(path) for path in paths]
    assert forms == (["zip"] if together else ["zip", "zip", None])
    known = [path for path, form in zip(paths, forms, strict=True) if form]
    found = read_all(visual_genome, *known)
    assert [outcome.captions for outcome in found if isinstance(outcome, Record)] == [(CAPTION,)]


# --- damage ---


def test_a_cut_file_is_read_as_far_as_it_goes_and_its_rest_is_one_row(tmp_path: Path) -> None:
    elements = [{"id": 2, "regions": [REGION] * 2}] * 3
    content = json.dumps(elements).encode()
    images = write(tmp_path / "images", [IMAGE, IMAGE | {"image_id": 8}])
    whole = read(tmp_path, elements)
    seen: set[int] = set()
    for cut in range(1, len(content)):
        *records, rest = read_all(visual_genome, images, write_bytes(tmp_path / "regions", content[:cut]))
        assert records == whole[: len(records)]
        assert isinstance(rest, Rejected)
        assert (rest.row, rest.reason) == (2 * len(records), Reason.INPUT_MALFORMED)
        assert f"byte {cut}" in rest.detail
        seen.add(len(records))
    assert seen == {0, 1, 2, 3}


def test_where_the_list_of_images_is_cut_the_regions_of_the_others_have_no_image(tmp_path: Path) -> None:
    content = json.dumps([IMAGE, IMAGE | {"image_id": 3}, IMAGE | {"image_id": 4}]).encode()
    images = write_bytes(tmp_path / "images", content[: content.index(b'"image_id": 4')])
    regions = write(tmp_path / "regions", [{"id": number, "regions": [{"phrase": "a"}]} for number in (2, 4)])
    assert summary(read_all(visual_genome, images, regions)) == [
        ([0], None),
        ([1], Reason.INPUT_NO_IMAGE),
        ([2], Reason.INPUT_MALFORMED),
    ]


@pytest.mark.parametrize(
    "content", [b"", b"\0" * 100, b"{}", b"[]", b'{"regions": []}', b"null", b"[" * 500_000]
)
def test_a_file_without_regions_is_its_images_or_one_row(tmp_path: Path, content: bytes) -> None:
    images = write(tmp_path / "images", [IMAGE])
    found = read_all(visual_genome, images, write_bytes(tmp_path / "regions", content))
    reason = Reason.INPUT_NO_CAPTION if content == b"[]" else Reason.INPUT_MALFORMED
    assert summary(found) == [([0], reason)]


# --- any rows ---

JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-2, 4)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text("a9:/ ."),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("ab"), inner, max_size=2),
    max_leaves=5,
)


def fields_of(*names: str) -> st.SearchStrategy[Any]:
    return JSON | st.fixed_dictionaries({}, optional={name: st.integers(1, 3) | JSON for name in names})


GOOD_REGION = st.fixed_dictionaries(
    {
        "phrase": st.text("ab é", min_size=1).filter(str.strip),
        "x": st.integers(-9, 999),
        "y": st.floats(-9, 999),
        "width": st.integers(1, 999),
        "height": st.integers(1, 999),
        "region_id": st.integers(0, 2**40),
    }
)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(described=st.lists(st.tuples(st.integers(0, 5), st.lists(GOOD_REGION, max_size=4)), max_size=6))
def test_every_phrase_comes_out_with_its_box_and_its_image(
    described: list[tuple[int, list[dict[str, Any]]]],
) -> None:
    images = [IMAGE | {"image_id": number} for number in range(6)]
    with tempfile.TemporaryDirectory() as folder:
        found = read(
            Path(folder), [{"id": number, "regions": regions} for number, regions in described], images
        )
    check_laws(found, "visual_genome")
    phrases = [
        (outcome.key, caption.text, caption.id, caption.box)
        for outcome in found
        if isinstance(outcome, Record)
        for caption in outcome.captions
    ]
    assert phrases == [
        (
            f"visual_genome-{number}",
            region["phrase"],
            str(region["region_id"]),
            (region["x"], region["y"], region["width"], region["height"]),
        )
        for number, regions in described
        for region in regions
    ]
    empty = sum(1 for _, regions in described if not regions)
    unsaid = 6 - len({number for number, _ in described})
    assert sum(isinstance(outcome, Rejected) for outcome in found) == empty + unsaid


@settings(max_examples=300, deadline=None, derandomize=True)
@given(
    elements=st.lists(
        fields_of("id", "regions")
        | st.builds(
            lambda number, regions: {"id": number, "regions": regions},
            st.integers(1, 3),
            st.lists(
                fields_of("phrase", "x", "y", "width", "height", "image_id", "region_id", "id"), max_size=4
            ),
        ),
        max_size=5,
    ),
    images=st.lists(fields_of("image_id", "id", "url", "coco_id", "flickr_id") | st.just(IMAGE), max_size=4),
    flip=st.none() | st.tuples(st.integers(0, 10_000), st.integers(1, 255)),
    cut=st.none() | st.integers(0, 10_000),
)
def test_whatever_the_elements_and_the_bytes_are_each_row_ends_in_one_outcome(
    elements: list[Any], images: list[Any], flip: tuple[int, int] | None, cut: int | None
) -> None:
    content = bytearray(json.dumps(elements).encode())
    if flip:
        content[flip[0] % len(content)] ^= flip[1]
    with tempfile.TemporaryDirectory() as folder:
        listed = write(Path(folder, "images"), [IMAGE, *images])
        # It begins with an entry that tells what the file is.
        assert visual_genome.recognise(listed) == "image data json"
        path = write_bytes(Path(folder, "regions"), bytes(content[:cut]))
        (outcomes,) = read_parts(visual_genome, path, listed)
    check_laws(outcomes, "visual_genome")
    if not flip and cut is None:
        regions = [element.get("regions") if isinstance(element, dict) else None for element in elements]
        rows = sum(len(each) if isinstance(each, list) and each else 1 for each in regions)
        told = {row for outcome in outcomes for row in rows_of(outcome)}
        assert rows <= len(told) <= rows + 1 + len(images)


def test_a_file_of_any_length_is_read_in_the_memory_of_its_images(tmp_path: Path) -> None:
    images = write(tmp_path / "images", [IMAGE])
    path = tmp_path / "regions"
    element = json.dumps({"id": 2, "regions": [REGION] * 50})
    with path.open("w") as file:
        file.write("[" + element)
        file.writelines(", " + element for _ in range(1_000))
        file.write("]")
    tracemalloc.start()
    (part,) = visual_genome.parts([path, images])
    count = sum(
        len(outcome.captions)
        for outcome in visual_genome.read(part, visual_genome.Rules())
        if isinstance(outcome, Record)
    )
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert count == 50_050
    assert peak < 2 << 20 < path.stat().st_size


# --- what a file is ---


@pytest.mark.parametrize(
    ("content", "form"),
    [
        (json.dumps([{"id": 2, "regions": [REGION]}]), "regions json"),
        (
            json.dumps([{"regions": [], "id": 1}, {"regions": [REGION_OF_1_0], "id": 2}], indent=1),
            "regions json",
        ),
        (json.dumps([{"id": 2, "regions": [REGION] * 1000}]), "regions json"),
        (json.dumps([IMAGE]), "image data json"),
        (json.dumps([{**IMAGE, "id": 2, "phrase": 1}] * 1000), "image data json"),
        (json.dumps([{"image_id": 2, "regions": [REGION | {"relationships": [], "objects": []}]}]), None),
        (
            json.dumps(
                [{"image_id": 2, "objects": [{"names": ["a"], "x": 1}], "image_url": "http://a.example"}]
            ),
            None,
        ),
        (json.dumps([{"id": 2, "qas": [{"question": "a", "answer": "b"}]}]), None),
        (json.dumps({"images": [IMAGE], "annotations": []}), None),
        (json.dumps([{"url": "http://a.example/1.jpg", "caption": "a", "width": 1, "height": 1}]), None),
        ("[]", None),
        ("[", None),
        ("PK\x03\x04 and nothing of a zip", None),
    ],
)
def test_content_tells_the_two_files_from_others(tmp_path: Path, content: str, form: str | None) -> None:
    assert visual_genome.recognise(write_bytes(tmp_path / "file", content.encode())) == form


# --- the published files ---


@pytest.mark.parametrize(
    ("name", "regions"),
    [
        ("region_descriptions.v1.2.first5images.json", 1278),
        ("region_descriptions_v1.first5images.json", 1288),
    ],
)
def test_the_published_rows_are_read(name: str, regions: int) -> None:
    path, images = REAL / name, REAL / "image_data.first5images.json"
    if not path.is_file():
        pytest.skip(f"the real rows are not here: {path}")
    assert visual_genome.recognise(path) == "regions json"
    assert visual_genome.recognise(images) == "image data json"
    found = read_all(visual_genome, images, path)
    records = [outcome for outcome in found if isinstance(outcome, Record)]
    assert len(records) == len(found) == 5
    captions = [caption for record in records for caption in record.captions]
    assert [caption.row for caption in captions] == list(range(regions))
    assert all(caption.box and caption.id for caption in captions)
    assert [record.path for record in records] == [
        "VG_100K_2/1.jpg",
        *(f"VG_100K/{n}.jpg" for n in (2, 3, 4, 5)),
    ]
    assert sum(len(caption.text.split()) for caption in captions) / regions == pytest.approx(5.33, abs=0.01)


def read(folder: Path, elements: list[Any], images: Sequence[Any] = (IMAGE,)) -> list[Record | Rejected]:
    """The outcomes of these elements, with a list of images beside them."""
    regions = write(folder / "regions", elements)
    listed = write(folder / "images", [*images])
    part = visual_genome.Part(str(regions), visual_genome.REGIONS)
    beside = visual_genome.Part(str(listed), visual_genome.IMAGES)
    return [*visual_genome.read(part._replace(beside=(beside,)), visual_genome.Rules())]


def write(path: Path, elements: list[Any]) -> Path:
    return write_bytes(path, json.dumps(elements).encode())


def write_bytes(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def summary(outcomes: list[Record | Rejected]) -> list[tuple[list[int], Reason | None]]:
    return [
        (rows_of(outcome), outcome.reason if isinstance(outcome, Rejected) else None) for outcome in outcomes
    ]
