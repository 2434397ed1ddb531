import bz2
import gzip
import json
import tempfile
import tracemalloc
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from pmd.records import Caption, Reason, Record, Rejected
from pmd.sources import localized_narratives
from pmd.sources.localized_narratives import Rules
from pmd.sources.part import ROW_BYTES
from tests.reading import Outcome, check_laws, read_all, read_parts, rows_of

REAL = Path(__file__).parents[2] / "shared" / "real"

COCO = {
    "dataset_id": "mscoco_train2017",
    "image_id": "137576",
    "annotator_id": 93,
    "caption": "In this image there are cows. In the background I can see trees.",
}
OPEN_IMAGES = COCO | {"dataset_id": "open_images_train_v6", "image_id": "000adef7197e3118"}
FLICKR = COCO | {"dataset_id": "Flick30k", "image_id": "1000092795"}
ADE = COCO | {"dataset_id": "ADE20k", "image_id": "ADE_train_00000001"}
TIMINGS = {
    "timed_caption": [{"utterance": "In this", "start_time": 0.0, "end_time": 0.4}],
    "traces": [[{"x": 0.2086, "y": -0.0533, "t": 0.022}] * 100],
    "voice_recording": "coco_train/coco_train_137576_93.ogg",
}
CAPTIONS = (
    Caption("In this image there are cows.", 0, "93-0"),
    Caption("In the background I can see trees.", 0, "93-1"),
)
EVERY_SPLIT = Rules(splits=("train", "val", "test", "unstated"))

HEADER = (
    "ImageID,Subset,OriginalURL,OriginalLandingURL,License,AuthorProfileURL,Author,Title,OriginalSize,OriginalMD5,"
    "Thumbnail300KURL,Rotation"
)
METADATA = (
    "000adef7197e3118,train,https://c1.staticflickr.com/4/3930/15240984498_83facecaf7_o.jpg,"
    "https://www.flickr.com/photos/chriscruises/15240984498,https://creativecommons.org/licenses/by/2.0/,"
    "https://www.flickr.com/people/chriscruises/,Chris Owen,Boston - 00201,2503181,aA3ah29b6LZFUiuXut1Jxg==,"
    "https://c3.staticflickr.com/4/3930/15240984498_7e3f95d082_z.jpg,90"
)


# --- where the images are ---


def test_a_narrative_of_coco_becomes_a_record_with_its_sentences(tmp_path: Path) -> None:
    assert read(tmp_path, COCO) == [
        Record(
            key="localized_narratives-coco-137576",
            url="http://images.cocodataset.org/train2017/000000137576.jpg",
            captions=CAPTIONS,
            meta='{"coco_id":137576,"dataset_id":"mscoco_train2017"}',
            path="train2017/000000137576.jpg",
        )
    ]


def test_a_narrative_of_open_images_becomes_a_record_under_the_licence_of_them_all(tmp_path: Path) -> None:
    assert read(tmp_path, OPEN_IMAGES) == [
        Record(
            key="localized_narratives-openimages-000adef7197e3118",
            url="https://s3.amazonaws.com/open-images-dataset/train/000adef7197e3118.jpg",
            captions=CAPTIONS,
            license="CC-BY-2.0",
            license_url="https://creativecommons.org/licenses/by/2.0/",
            meta='{"dataset_id":"open_images_train_v6","open_images_id":"000adef7197e3118"}',
            path="train_0/000adef7197e3118.jpg",
        )
    ]


def test_narratives_of_flickr30k_and_ade20k_are_of_images_in_archives_alone(tmp_path: Path) -> None:
    assert read(tmp_path, FLICKR, ADE, ADE | {"image_id": "ADE_val_00000003"}, rules=EVERY_SPLIT) == [
        Record(
            key="localized_narratives-flickr30k-1000092795",
            url=None,
            captions=CAPTIONS,
            meta='{"dataset_id":"Flick30k","flickr_photo_id":"1000092795"}',
            path="flickr30k-images/1000092795.jpg",
        ),
        Record(
            key="localized_narratives-ade20k-ade_train_00000001",
            url=None,
            captions=tuple(caption._replace(row=1) for caption in CAPTIONS),
            meta='{"ade20k_id":"ADE_train_00000001","dataset_id":"ADE20k"}',
            path="ADEChallengeData2016/images/training/ADE_train_00000001.jpg",
        ),
        Record(
            key="localized_narratives-ade20k-ade_val_00000003",
            url=None,
            captions=tuple(caption._replace(row=2) for caption in CAPTIONS),
            meta='{"ade20k_id":"ADE_val_00000003","dataset_id":"ADE20k"}',
            path="ADEChallengeData2016/images/validation/ADE_val_00000003.jpg",
        ),
    ]


@pytest.mark.parametrize(
    ("dataset_id", "image_id", "address"),
    [
        ("mscoco_val2017", "9", "http://images.cocodataset.org/val2017/000000000009.jpg"),
        ("coco_val", "000000000009", "http://images.cocodataset.org/val2017/000000000009.jpg"),
        ("mscoco_val2017", 9, "http://images.cocodataset.org/val2017/000000000009.jpg"),
        (
            "open_images_validation",
            "0" * 16,
            f"https://s3.amazonaws.com/open-images-dataset/validation/{'0' * 16}.jpg",
        ),
        ("openimages_test", "f" * 16, f"https://s3.amazonaws.com/open-images-dataset/test/{'f' * 16}.jpg"),
        (
            "Open Images v6 val",
            "f" * 16,
            f"https://s3.amazonaws.com/open-images-dataset/validation/{'f' * 16}.jpg",
        ),
        ("Flickr30k_test", "17", "flickr30k-images/17.jpg"),
        ("flickr_30k", "17", "flickr30k-images/17.jpg"),
        (
            "ADE20k_validation",
            "ADE_val_00000001",
            "ADEChallengeData2016/images/validation/ADE_val_00000001.jpg",
        ),
        (
            "ade20k_training",
            "ADE_train_00000001",
            "ADEChallengeData2016/images/training/ADE_train_00000001.jpg",
        ),
    ],
)
def test_datasets_are_known_however_they_are_spelled(
    tmp_path: Path, dataset_id: str, image_id: Any, address: str
) -> None:
    (found,) = read(tmp_path, COCO | {"dataset_id": dataset_id, "image_id": image_id}, rules=EVERY_SPLIT)
    assert isinstance(found, Record) and (found.url or found.path) == address


@pytest.mark.parametrize(
    "ids",
    [
        {"image_id": "../../etc/passwd"},
        {"image_id": "137576/../9"},
        {"image_id": "137576\n"},
        {"image_id": "٣"},
        {"image_id": "0"},
        {"image_id": "1234567890123"},
        {"image_id": -9},
        {"image_id": True},
        {"image_id": 9.0},
        {"image_id": None},
        {"image_id": []},
        {"dataset_id": "mscoco_train2014"},
        {"dataset_id": "mscoco_test2017"},
        {"dataset_id": "mscoco"},
        {"dataset_id": "ImageNet_train"},
        {"dataset_id": "x" * 100},
        {"dataset_id": 5},
        {"dataset_id": None},
        {"dataset_id": "open_images_train"},
        {"dataset_id": "open_images_train", "image_id": "000ADEF7197E3118"},
        {"dataset_id": "open_images_train", "image_id": "000adef7197e311/"},
        {"dataset_id": "open_images", "image_id": "000adef7197e3118"},
        {"dataset_id": "Flick30k", "image_id": "012"},
        {"dataset_id": "Flick30k", "image_id": "9" * 21},
        {"dataset_id": "ADE20k", "image_id": "ADE_test_00000001"},
        {"dataset_id": "ADE20k", "image_id": "ADE_train_00000001.jpg"},
    ],
)
def test_what_names_no_image_of_a_known_dataset_is_rejected(tmp_path: Path, ids: dict[str, Any]) -> None:
    found = read(tmp_path, COCO | ids, rules=EVERY_SPLIT)
    assert summary(found) == [([0], Reason.INPUT_NO_IMAGE)]


# --- captions ---


@pytest.mark.parametrize(
    ("narrative", "sentences"),
    [
        ("A dog. A cat.", ["A dog.", "A cat."]),
        ("A dog", ["A dog."]),
        ("  A dog ..  A cat . ", ["A dog.", "A cat."]),
        ("Is it a dog? It is 1.5 m high! Yes", ["Is it a dog? It is 1.", "5 m high! Yes."]),
        ("A dog。A cat", ["A dog。A cat."]),
    ],
)
def test_sentences_end_at_a_full_stop_and_nowhere_else(
    tmp_path: Path, narrative: str, sentences: list[str]
) -> None:
    (found,) = read(tmp_path, COCO | {"caption": narrative})
    assert isinstance(found, Record)
    assert [caption.text for caption in found.captions] == sentences
    assert [caption.id for caption in found.captions] == [f"93-{number}" for number in range(len(sentences))]
    (whole,) = read(tmp_path, COCO | {"caption": narrative}, rules=Rules(caption="narrative"))
    assert isinstance(whole, Record) and whole.captions == (Caption(narrative, 0, "93"),)


@pytest.mark.parametrize(
    ("caption", "reason"),
    [
        ({"caption": None}, Reason.INPUT_NO_CAPTION),
        ({"caption": " \n"}, Reason.INPUT_NO_CAPTION),
        ({"caption": []}, Reason.INPUT_NO_CAPTION),
        ({"caption": [" ", None]}, Reason.INPUT_NO_CAPTION),
        ({"caption": 5}, Reason.INPUT_MALFORMED),
        ({"caption": ["a", 5]}, Reason.INPUT_MALFORMED),
        ({"caption": {"a": "b"}}, Reason.INPUT_MALFORMED),
    ],
)
@pytest.mark.parametrize("original", [{}, {"original_caption": "A dog. A cat."}, {"original_caption": " "}])
def test_a_row_without_a_caption_is_rejected(
    tmp_path: Path, caption: dict[str, Any], reason: Reason, original: dict[str, Any]
) -> None:
    for rules in (Rules(), Rules(caption="narrative")):
        assert summary(read(tmp_path, COCO | caption | original, rules=rules)) == [([0], reason)]


@pytest.mark.parametrize(
    ("annotator", "by"),
    [({}, "93"), ({"annotator_id": 0}, "0"), ({"annotator_id": "93"}, None), ({"annotator_id": -1}, None)],
)
def test_captions_go_by_their_annotator(tmp_path: Path, annotator: dict[str, Any], by: str | None) -> None:
    (found,) = read(tmp_path, COCO | annotator)
    assert isinstance(found, Record)
    assert [caption.id for caption in found.captions] == ([f"{by}-0", f"{by}-1"] if by else [None, None])


def test_a_narrative_of_full_stops_alone_has_no_sentence(tmp_path: Path) -> None:
    assert summary(read(tmp_path, COCO | {"caption": " . . "})) == [([0], Reason.INPUT_NO_CAPTION)]


# --- files that are split into sentences already ---

SENTENCES = [COCO | {"caption": caption.text, "original_caption": COCO["caption"]} for caption in CAPTIONS]


def test_a_file_of_sentences_gives_the_same_captions_as_the_file_of_narratives(tmp_path: Path) -> None:
    assert [caption._replace(row=0) for caption in captions(read(tmp_path, *SENTENCES))] == [*CAPTIONS]
    listed = COCO | {"caption": [caption.text for caption in CAPTIONS], "original_caption": COCO["caption"]}
    assert read(tmp_path, listed) == read(tmp_path, COCO)


def test_a_narrative_that_was_split_is_taken_once(tmp_path: Path) -> None:
    rules = Rules(caption="narrative")
    found = read(tmp_path, *SENTENCES, rules=rules)
    assert summary(found) == [([0], None), ([1], Reason.INPUT_LEFT_OUT)]
    listed = COCO | {"caption": ["", "A dog."], "original_caption": COCO["caption"]}
    assert (
        captions(found)
        == captions(read(tmp_path, listed, rules=rules))
        == [Caption(COCO["caption"], 0, "93")]
    )


def test_a_sentence_that_is_not_in_its_narrative_has_no_number(tmp_path: Path) -> None:
    row = COCO | {"caption": "A dog.", "original_caption": "A cat."}
    assert captions(read(tmp_path, row)) == [Caption("A dog.", 0, "93")]


def test_a_list_of_sentences_without_its_narrative_is_joined_to_one(tmp_path: Path) -> None:
    row = COCO | {"caption": ["A dog.", "A cat."]}
    assert captions(read(tmp_path, row)) == [Caption("A dog.", 0, "93-0"), Caption("A cat.", 0, "93-1")]
    assert captions(read(tmp_path, row, rules=Rules(caption="narrative"))) == [
        Caption("A dog. A cat.", 0, "93")
    ]


# --- datasets and splits ---


def test_rows_of_other_splits_and_datasets_are_left_out_with_both_named(tmp_path: Path) -> None:
    rows = [
        COCO,
        COCO | {"dataset_id": "mscoco_val2017"},
        OPEN_IMAGES,
        FLICKR,
        ADE,
        ADE | {"image_id": "ADE_val_00000001"},
    ]
    assert left_out(read(tmp_path, *rows)) == {
        1: "of coco, split val",
        3: "of flickr30k, split unstated",
        5: "of ade20k, split val",
    }
    rules = Rules(splits=("val", "unstated"), datasets=("coco", "flickr30k"))
    assert left_out(read(tmp_path, *rows, rules=rules)) == {
        0: "of coco, split train",
        2: "of openimages",
        4: "of ade20k",
        5: "of ade20k",
    }


@pytest.mark.parametrize("choice", [{"splits": ("validation",)}, {"datasets": ("vg",)}, {"caption": "both"}])
def test_a_choice_that_there_is_not_is_an_error(choice: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Rules(**choice)


@pytest.mark.parametrize(
    ("recording", "split"),
    [
        ("flickr30k_train/flickr30k_train_0000001000092795_93.ogg", None),
        ("flickr30k_val/flickr30k_val_0000001000092795_93.ogg", "of flickr30k, split val"),
        ("flickr30k_validation/a.ogg", "of flickr30k, split val"),
        ("flickr30k/train.ogg", "of flickr30k, split unstated"),
    ],
)
def test_the_split_of_flickr30k_is_that_of_its_recording(
    tmp_path: Path, recording: str, split: str | None
) -> None:
    found = read(tmp_path, FLICKR | TIMINGS | {"voice_recording": recording})
    assert left_out(found) == ({0: split} if split else {})


# --- files with timings ---


def test_timings_change_nothing_wherever_they_stand(tmp_path: Path) -> None:
    first = {"dataset_id": COCO["dataset_id"]}
    rows = [COCO | TIMINGS, TIMINGS | COCO, first | TIMINGS | COCO | {"more": '"timed_caption": []'}]
    found = read(tmp_path, *rows, COCO | {"caption": 'the text "timed_caption": [] here'})
    assert found[:3] == read(tmp_path, COCO, COCO, COCO)
    assert captions(found)[-1].text == 'the text "timed_caption": [] here.'


def test_what_stands_behind_the_beginning_of_the_timings_is_not_parsed(tmp_path: Path) -> None:
    path = write(tmp_path, json.dumps(COCO | {"timed_caption": 0}).replace("0}", "?}"))
    assert read_all(localized_narratives, path) == read(tmp_path, COCO)


def test_a_line_that_breaks_off_in_its_timings_is_malformed(tmp_path: Path) -> None:
    line = json.dumps(COCO | TIMINGS)
    path = write(tmp_path, f"{line[:-20]}\n{line}\n")
    assert summary(read_all(localized_narratives, path)) == [([0], Reason.INPUT_MALFORMED), ([1], None)]


@pytest.mark.parametrize(
    "line",
    [
        "",
        " ",
        "null",
        "[]",
        '"a"',
        "5",
        "{",
        '{"dataset_id": }',
        '{"a": "\\ud800"}',
        "[" * 100_000,
        '{"timed_caption"}',
    ],
)
def test_a_line_that_is_no_object_is_malformed_alone(tmp_path: Path, line: str) -> None:
    path = write(tmp_path, f"{json.dumps(COCO)}\n{line}\n{json.dumps(COCO)}\r\n")
    found = read_all(localized_narratives, path)
    assert summary(found) == [([0], None), ([1], Reason.INPUT_MALFORMED), ([2], None)]


# --- the metadata of Open Images ---


def test_metadata_adds_author_page_licence_and_rotation_and_no_rows(tmp_path: Path) -> None:
    path = write(tmp_path / "a", lines(OPEN_IMAGES, COCO))
    metadata = write(tmp_path / "b", f"{HEADER}\n{METADATA}\n")
    plain = read_all(localized_narratives, path)
    for files in ([path, metadata], [metadata, path]):
        found = read_all(localized_narratives, *files)
        assert found[1] == plain[1]
        assert isinstance(plain[0], Record)
        assert found[0] == plain[0]._replace(
            attribution="Chris Owen, https://www.flickr.com/photos/chriscruises/15240984498",
            meta='{"dataset_id":"open_images_train_v6","flickr_photo_id":"15240984498",'
            '"open_images_id":"000adef7197e3118"}',
            rotation=90,
        )
    assert localized_narratives.recognise(metadata) == "open images csv"
    assert localized_narratives.parts([metadata]) == []


def with_cells(**cells: str) -> str:
    names = HEADER.split(",")
    return ",".join(cells.get(name, cell) for name, cell in zip(names, METADATA.split(","), strict=True))


@pytest.mark.parametrize(
    ("rows", "attribution"),
    [
        (METADATA.replace("Chris Owen", '"Owen,  Chris"'), "Owen, Chris, https"),
        (METADATA.replace("Chris Owen", '"Chris ""C"" Owen"'), 'Chris "C" Owen, https'),
        (METADATA.replace("Boston - 00201", '"Boston\n00201"'), "Chris Owen, https"),
        (METADATA.replace("Boston - 00201", '"Boston\n\n000adef7197e3118, again"'), None),
        ("x" * 20_000 + "\n" + METADATA, "Chris Owen, https"),
        ('111adef7197e3118,"a quote too many\n' + METADATA, "Chris Owen, https"),
        ('000adef7197e3118,"a quote too many\n' + METADATA, "Chris Owen, https"),
        (METADATA + ",more", None),
        ("000adef7197e3118", None),
        ("", None),
        (METADATA.replace("Chris Owen", "x" * 20_000), None),
        (with_cells(Author=""), "https"),
        (with_cells(OriginalLandingURL="nowhere"), "Chris Owen"),
        (with_cells(OriginalLandingURL="", Author=""), None),
    ],
)
@pytest.mark.parametrize("end", ["\n", "\r\n", ""])
def test_rows_of_metadata_are_found_among_damaged_ones(
    tmp_path: Path, rows: str, attribution: str | None, end: str
) -> None:
    path = write(tmp_path / "a", lines(OPEN_IMAGES))
    metadata = write(tmp_path / "b", f"\ufeff{HEADER}\n{rows}{end}")
    (found,) = read_all(localized_narratives, path, metadata)
    assert isinstance(found, Record) and found.license == "CC-BY-2.0"
    assert (found.attribution or "").partition(":")[0] == (attribution or "")


@pytest.mark.parametrize(
    ("rotation", "degrees"),
    [
        ("0", 0),
        ("90.0", 90),
        ("180", 180),
        ("270", 270),
        ("NaN", None),
        ("", None),
        ("45", None),
        ("-90", None),
    ],
)
def test_only_quarter_turns_are_rotations(tmp_path: Path, rotation: str, degrees: int | None) -> None:
    path = write(tmp_path / "a", lines(OPEN_IMAGES))
    metadata = write(tmp_path / "b", f"{HEADER}\n{with_cells(Rotation=rotation)}\n")
    (found,) = read_all(localized_narratives, path, metadata)
    assert isinstance(found, Record) and found.rotation == degrees


def test_metadata_may_be_packed_in_several_files_and_lack_columns(tmp_path: Path) -> None:
    path = write(tmp_path / "a", lines(OPEN_IMAGES, OPEN_IMAGES | {"image_id": "f" * 16}))
    one = tmp_path / "b"
    one.write_bytes(gzip.compress(f"{HEADER}\n{METADATA}\n".encode()))
    other = write(
        tmp_path / "c",
        f"ImageID,License,Author\n{'f' * 16},https://creativecommons.org/licenses/by-sa/4.0/,B\n",
    )
    found = read_all(localized_narratives, one, path, other)
    assert [
        (record.license, (record.attribution or "")[:5]) for record in found if isinstance(record, Record)
    ] == [
        ("CC-BY-2.0", "Chris"),
        ("CC-BY-SA-4.0", "B"),
    ]


@pytest.mark.parametrize("before", range(0, 60, 5))
def test_an_id_across_two_blocks_finds_its_metadata(tmp_path: Path, before: int) -> None:
    line = lines(OPEN_IMAGES)
    padding = ROW_BYTES - line.index('"image_id"') - before
    path = write(tmp_path / "a", "x" * (padding - 1) + "\n" + line)
    metadata = write(tmp_path / "b", f"{HEADER}\n{METADATA}\n")
    _, found = read_all(localized_narratives, path, metadata)
    assert isinstance(found, Record) and found.attribution


def test_metadata_tells_the_split_where_nothing_else_does(tmp_path: Path) -> None:
    path = write(tmp_path / "a", lines(OPEN_IMAGES | {"dataset_id": "open_images"}))
    for subset, expected in (("train", None), ("validation", Reason.INPUT_LEFT_OUT)):
        metadata = write(tmp_path / "b", f"{HEADER}\n{with_cells(Subset=subset)}\n")
        assert summary(read_all(localized_narratives, path, metadata)) == [([0], expected)]


def test_metadata_that_is_not_wanted_is_not_read(tmp_path: Path) -> None:
    path = write(tmp_path / "a", lines(COCO, OPEN_IMAGES))
    metadata = write(tmp_path / "b", f"{HEADER}\n{METADATA}\n")
    (part,) = localized_narratives.parts([path, metadata])
    metadata.unlink()
    found = [*localized_narratives.read(part, Rules(datasets=("coco",)))]
    assert summary(found) == [([0], None), ([1], Reason.INPUT_LEFT_OUT)]


# --- any rows ---

JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-2, 9)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text("a. 9/"),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("ab"), inner, max_size=2),
    max_leaves=5,
)
IMAGE_IDS = st.one_of(
    st.tuples(st.just("mscoco_train2017"), st.integers(1, 10**12 - 1).map(str)),
    st.tuples(st.just("open_images_train_v6"), st.integers(0, 2**64 - 1).map("{:016x}".format)),
    st.tuples(st.just("Flickr30k_train"), st.integers(1, 10**18).map(str)),
    st.tuples(st.just("ADE20k"), st.integers(1, 99_999).map("ADE_train_{:08}".format)),
)
PIECES = st.lists(st.text("ab é\u2028", min_size=1).map(str.strip).filter(bool), min_size=1, max_size=4)
GOOD = st.builds(
    lambda ids, pieces, by: {
        "dataset_id": ids[0],
        "image_id": ids[1],
        "annotator_id": by,
        "caption": ". ".join(pieces),
    },
    IMAGE_IDS,
    PIECES,
    st.integers(0, 200),
)
ODD = st.fixed_dictionaries(
    {},
    optional={
        "dataset_id": st.sampled_from(["mscoco_val2017", "ADE20k", "Flick30k", "open_images", "x"]) | JSON,
        "image_id": st.sampled_from(["9", "ADE_val_00000001", "f" * 16]) | JSON,
        "annotator_id": JSON,
        "caption": JSON,
        "original_caption": JSON,
        "timed_caption": JSON,
    },
)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(
    rows=st.lists(GOOD, min_size=1, max_size=8),
    dump=st.sampled_from([json.dumps, lambda row: json.dumps(row, ensure_ascii=False)]),
    pack=st.sampled_from([bytes, gzip.compress, bz2.compress]),
    timings=st.booleans(),
)
def test_every_sentence_comes_out_with_its_image(
    rows: list[dict[str, Any]], dump: Callable[[Any], str], pack: Callable[[bytes], bytes], timings: bool
) -> None:
    content = "".join(dump(row | (TIMINGS if timings else {})) + "\n" for row in rows).encode()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "file")
        path.write_bytes(pack(content))
        assert localized_narratives.recognise(path) == "narratives jsonl"
        (found,) = read_parts(localized_narratives, path)
    check_laws(found, "localized_narratives")
    assert len(found) == len(rows)
    for number, (row, record) in enumerate(zip(rows, found, strict=True)):
        assert isinstance(record, Record)
        assert (record.url or record.path or "").endswith(f"{row['image_id']}.jpg")
        assert record.captions == tuple(
            Caption(f"{piece}.", number, f"{row['annotator_id']}-{place}")
            for place, piece in enumerate(row["caption"].split(". "))
        )


@settings(max_examples=300, deadline=None, derandomize=True)
@given(
    rows=st.lists(GOOD | ODD | JSON, min_size=1, max_size=6),
    rules=st.builds(
        Rules,
        caption=st.sampled_from(["sentences", "narrative"]),
        splits=st.just(("train", "val", "test", "unstated")) | st.just(("train",)),
    ),
    flip=st.none() | st.tuples(st.integers(0, 10_000), st.integers(1, 255)),
    cut=st.none() | st.integers(0, 10_000),
    metadata=st.none() | st.binary(max_size=60) | st.text(f'{METADATA}\n",').map(str.encode),
)
def test_whatever_the_lines_and_the_bytes_are_each_line_ends_in_one_outcome(
    rows: list[Any],
    rules: Rules,
    flip: tuple[int, int] | None,
    cut: int | None,
    metadata: bytes | None,
) -> None:
    content = bytearray(lines(*rows).encode())
    if flip:
        content[flip[0] % len(content)] ^= flip[1]
    content = content[:cut]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "a")
        path.write_bytes(content)
        files = [path]
        if metadata is not None:
            files.append(Path(folder, "b"))
            files[1].write_bytes(f"{HEADER}\n{METADATA}\n".encode() + metadata)
        localized_narratives.recognise(path)
        parts = read_parts(localized_narratives, *files, rules=rules)
    for outcomes in parts:
        check_laws(outcomes, "localized_narratives")
    told = {row for outcomes in parts for outcome in outcomes for row in rows_of(outcome)}
    assert len(told) == content.count(b"\n") + (bool(content) and not content.endswith(b"\n"))


def test_files_of_any_length_are_read_in_the_memory_of_their_metadata(tmp_path: Path) -> None:
    path, metadata = tmp_path / "a", tmp_path / "b"
    with path.open("w") as file:
        for number in range(5_000):
            file.write(lines(OPEN_IMAGES | {"image_id": f"{number:016x}"} | TIMINGS))
    with metadata.open("w") as file:
        file.write(HEADER + "\n")
        file.writelines(f"{number:016x}{METADATA[16:]}\n" for number in range(20_000))
    tracemalloc.start()
    (part,) = localized_narratives.parts([path, metadata])
    found = (outcome for outcome in localized_narratives.read(part, Rules()) if isinstance(outcome, Record))
    count = sum(1 for record in found if record.attribution)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert count == 5_000
    # A block of each file as bytes, text and list of lines; and the 5,000 rows that are wanted of 20,000.
    assert peak < (8 << 20) + 5_000 * 300 < path.stat().st_size + metadata.stat().st_size


# --- what a file is ---


@pytest.mark.parametrize(
    ("content", "form"),
    [
        (json.dumps(COCO), "narratives jsonl"),
        (json.dumps(COCO | TIMINGS), "narratives jsonl"),
        (json.dumps(COCO | {"traces": [TIMINGS["traces"]] * 100}), "narratives jsonl"),
        ("\n" + json.dumps(COCO) + "\n", "narratives jsonl"),
        (json.dumps(COCO | {"original_caption": "a"}), "sentences jsonl"),
        (HEADER, "open images csv"),
        ("\ufeff" + HEADER + "\r\n", "open images csv"),
        ("ImageID,Source,LabelName,Confidence\n0,verification,/m/0,1\n", None),
        (
            json.dumps(
                {name: COCO[name] for name in ("dataset_id", "image_id", "annotator_id")} | {"asr": []}
            ),
            None,
        ),
        (json.dumps(COCO, indent=1), None),
        (json.dumps([COCO]), None),
        (json.dumps({"images": [], "annotations": [{"image_id": 1, "caption": "a"}]}), None),
        ("http://a.example/1.jpg\ta caption\n", None),
        ('"', None),
    ],
)
def test_content_tells_the_narratives_from_other_files(
    tmp_path: Path, content: str, form: str | None
) -> None:
    assert localized_narratives.recognise(write(tmp_path, content)) == form


# --- the published rows ---


def test_the_published_sample_is_read(tmp_path: Path) -> None:
    sample = REAL / "localized_narratives" / "website_sample_record.TRUNCATED.json"
    if not sample.is_file():
        pytest.skip(f"the real rows are not here: {sample}")
    path = write(tmp_path, lines(json.loads(sample.read_text())))
    assert localized_narratives.recognise(path) == "narratives jsonl"
    (found,) = read_all(localized_narratives, path, rules=Rules(splits=("val",)))
    assert isinstance(found, Record)
    assert found.url == "http://images.cocodataset.org/val2017/000000137576.jpg"
    assert found.captions == (
        Caption("In this image there are group of cows standing and eating th.", 0, "93-0"),
    )
    assert left_out(read_all(localized_narratives, path)) == {0: "of coco, split val"}


def test_the_published_metadata_is_read(tmp_path: Path) -> None:
    metadata = REAL / "openimages" / "credits.csv"
    if not metadata.is_file():
        pytest.skip(f"the real rows are not here: {metadata}")
    assert localized_narratives.recognise(metadata) == "open images csv"
    photos = sorted(path.stem for path in metadata.parent.glob("*.jpg"))
    path = write(tmp_path, lines(*(OPEN_IMAGES | {"image_id": photo} for photo in photos)))
    records = [found for found in read_all(localized_narratives, path, metadata) if isinstance(found, Record)]
    assert len(records) == len(photos) == 18
    for record in records:
        assert record.license == "CC-BY-2.0" and record.rotation in (0, None)
        author, _, page = (record.attribution or "").rpartition(", ")
        assert author and page.endswith("/" + json.loads(record.meta or "")["flickr_photo_id"])
    assert [record.attribution for record in records if "Lucca" in (record.attribution or "")] == [
        "Claudia de Lucca, Cáu, https://www.flickr.com/photos/panoepapel/40822753"
    ]


def read(folder: Path, *rows: Any, rules: Rules | None = None) -> list[Outcome]:
    return read_all(localized_narratives, write(folder, lines(*rows)), rules=rules)


def lines(*rows: Any) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def write(path: Path, content: str) -> Path:
    path = path / "file" if path.is_dir() else path
    path.write_bytes(content.encode())
    return path


def captions(outcomes: Iterable[Outcome]) -> list[Caption]:
    return [caption for outcome in outcomes if isinstance(outcome, Record) for caption in outcome.captions]


def left_out(outcomes: Iterable[Outcome]) -> dict[int, str]:
    rejected = [outcome for outcome in outcomes if isinstance(outcome, Rejected)]
    assert {outcome.reason for outcome in rejected} <= {Reason.INPUT_LEFT_OUT}
    return {outcome.row: outcome.detail for outcome in rejected}


def summary(outcomes: Iterable[Outcome]) -> list[tuple[list[int], Reason | None]]:
    return [
        (sorted({*rows_of(outcome)}), outcome.reason if isinstance(outcome, Rejected) else None)
        for outcome in outcomes
    ]
