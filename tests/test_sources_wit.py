import csv
import gzip
import io
import json
import tempfile
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from pmd.records import Caption, Reason, Record, Rejected, url_key
from pmd.sources import wit
from pmd.sources.part import ROW_BYTES
from tests.reading import Outcome, check_laws, read_all

REAL = Path(__file__).parents[2] / "shared" / "real" / "wit"

COLUMNS = [
    "language",
    "page_url",
    "image_url",
    "page_title",
    "section_title",
    "hierarchical_section_title",
    "caption_reference_description",
    "caption_attribution_description",
    "caption_alt_text_description",
    "mime_type",
    "original_height",
    "original_width",
    "is_main_image",
    "attribution_passes_lang_id",
    "page_changed_recently",
    "context_page_description",
    "context_section_description",
]
REFERENCE, ATTRIBUTION, ALT = COLUMNS[6:9]
BAT = {
    "language": "en",
    "page_url": "https://en.wikipedia.org/wiki/Bat",
    "image_url": "https://upload.wikimedia.org/wikipedia/commons/0/07/A_bat.jpg",
    "page_title": "Bat",
    REFERENCE: "A lesser bulldog bat",
    ATTRIBUTION: "English: Lesser bulldog bat Deutsch: Eine Fledermaus",
    ALT: "A bat that hangs",
    "mime_type": "image/jpeg",
    "original_height": "1636",
    "original_width": "2000",
    "context_page_description": 'A bat\nis a "flying" mammal.',
}


# --- rows ---


def test_a_row_becomes_a_record_of_its_image(tmp_path: Path) -> None:
    assert read(tmp_path, BAT) == [
        Record(
            key=url_key("wit", "https://upload.wikimedia.org/wikipedia/commons/0/07/A_bat.jpg"),
            url="https://upload.wikimedia.org/wikipedia/commons/thumb/0/07/A_bat.jpg/500px-A_bat.jpg",
            captions=(
                Caption(
                    "A lesser bulldog bat",
                    row=0,
                    id=REFERENCE,
                    otherwise=Caption(
                        "Lesser bulldog bat",
                        row=0,
                        id=ATTRIBUTION,
                        otherwise=Caption("A bat that hangs", row=0, id=ALT),
                    ),
                ),
            ),
            attribution="https://commons.wikimedia.org/wiki/File:A_bat.jpg",
            meta='{"image_url":"https://upload.wikimedia.org/wikipedia/commons/0/07/A_bat.jpg",'
            '"mime_type":"image/jpeg","page_url":"https://en.wikipedia.org/wiki/Bat","repository":"commons"}',
        )
    ]


def test_the_rows_of_an_image_share_a_key_with_http_and_with_https(tmp_path: Path) -> None:
    http = BAT | {"image_url": BAT["image_url"].replace("https", "http"), "page_url": "https://a.example/"}
    first, second = records(read(tmp_path, BAT, http))
    assert first.key == second.key
    assert json.loads(second.meta or "")["image_url"].startswith("http://")


def test_columns_are_found_by_name(tmp_path: Path) -> None:
    expected = read(tmp_path, BAT)
    assert read(tmp_path, BAT, columns=[*reversed(COLUMNS)]) == expected
    assert read(tmp_path, BAT, columns=[*COLUMNS, "caption_title_and_reference_description"]) == expected


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"language": "de"}, Reason.CAPTION_LANGUAGE),
        ({"language": "zh-TW"}, Reason.CAPTION_LANGUAGE),
        ({"language": ""}, Reason.CAPTION_LANGUAGE),
        ({"language": "no\nlanguage"}, Reason.CAPTION_LANGUAGE),
        ({REFERENCE: "", ATTRIBUTION: "", ALT: " \n"}, Reason.INPUT_NO_CAPTION),
        ({REFERENCE: "Bat", ATTRIBUTION: "English: A bat", ALT: "A bat"}, Reason.INPUT_NO_CAPTION),
        ({"image_url": ""}, Reason.INPUT_NO_IMAGE),
        ({"image_url": "A_bat.jpg"}, Reason.INPUT_BAD_URL),
    ],
)
def test_a_row_without_what_a_record_needs_is_rejected_alone(
    tmp_path: Path, fields: dict[str, str], reason: Reason
) -> None:
    _, rejected, _ = read(tmp_path, BAT, BAT | fields, BAT)
    assert isinstance(rejected, Rejected) and (rejected.row, rejected.reason) == (1, reason)


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"en",
        b"en\thttps://a.example/",
        b"de\t" * 17,
        b"en" + b"\t" * 17,
        b"the middle of a text",
        b"\xff" + b"\t" * 16,
        b'en\t"never closed' + b"\t" * 15,
    ],
)
def test_a_line_that_is_no_row_is_malformed(tmp_path: Path, line: bytes) -> None:
    content = table(BAT) + line + b"\n" + table(BAT).split(b"\n", 1)[1]
    _, rejected, _ = read_bytes(tmp_path, content)
    assert isinstance(rejected, Rejected)
    expected = Reason.CAPTION_LANGUAGE if line.startswith(b"de") else Reason.INPUT_MALFORMED
    assert (rejected.row, rejected.reason) == (1, expected)


def test_other_languages_are_taken_where_the_rules_say_so(tmp_path: Path) -> None:
    german = BAT | {
        "language": "de",
        REFERENCE: "",
        ATTRIBUTION: "English: A big bat Deutsch: Eine große Maus",
    }
    korean = german | {"language": "ko"}
    rules = wit.Rules(languages=("de", "ko"), ascii_only=False)
    left_out, of_german, of_korean = read(tmp_path, BAT, german, korean, rules=rules)
    assert isinstance(left_out, Rejected)
    assert caption_of(of_german) == (ATTRIBUTION, "Eine große Maus")
    assert caption_of(of_korean) == (ALT, "A bat that hangs")
    assert len(records(read(tmp_path, BAT, german, korean, rules=wit.Rules(languages=())))) == 3


# --- captions ---


@pytest.mark.parametrize(
    ("attribution", "text"),
    [
        ("English: Lesser bulldog bat", "Lesser bulldog bat"),
        ("English: Lesser bulldog bat (a) Français : Petit noctilion", "Lesser bulldog bat (a)"),
        ("Italiano: Gruppo di pipistrelli ENGLISH: A group of bats Polski: Grupa", "A group of bats"),
        ("English: The first of them. English: The second of them.", "The second of them."),
        ("English:\nA bat\nthat hangs.\nDeutsch: Eine Fledermaus", "A bat\nthat hangs."),
        ("English:A bat without space", "A bat without space"),
        (
            "English: Bats at night: a photo of ten",
            None,
        ),  # "night" is taken for a language, as in the rebuild
        ("A Republic P-43 Lancer in flight over Esler Field, Louisiana (USA), on 9 March 1942.", None),
        ("Galego: Logo do Movemento Galego ao Socialismo", None),
        ("English: Two words Deutsch: Zwei", None),
        ("English: ", None),
        ("English: : : ", None),
        ("NotEnglish: a group of bats", None),
        ("", None),
    ],
)
def test_of_an_attribution_the_english_section_is_the_caption(
    tmp_path: Path, attribution: str, text: str | None
) -> None:
    (found,) = read(tmp_path, BAT | {REFERENCE: "", ATTRIBUTION: attribution, ALT: ""})
    assert (caption_of(found)[1] if isinstance(found, Record) else None) == text


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, [REFERENCE, ATTRIBUTION, ALT]),
        ({REFERENCE: "Two words"}, [REFERENCE, ATTRIBUTION, ALT]),
        ({REFERENCE: "One"}, [ATTRIBUTION, ALT]),
        ({REFERENCE: "", ATTRIBUTION: "English: Two words"}, [ALT]),
        ({ALT: "Two words"}, [REFERENCE, ATTRIBUTION]),
        ({REFERENCE: "летучая мышь"}, [ATTRIBUTION, ALT]),
    ],
)
def test_the_first_text_of_enough_words_is_the_caption_and_the_next_ones_wait(
    tmp_path: Path, fields: dict[str, str], expected: list[str]
) -> None:
    (found,) = records(read(tmp_path, BAT | fields))
    (caption,) = found.captions
    chain = [caption]
    while chain[-1].otherwise:
        chain.append(chain[-1].otherwise)
    assert [each.id for each in chain] == expected


def test_the_rules_choose_texts_and_words(tmp_path: Path) -> None:
    rules = wit.Rules.model_validate({"captions": [[ALT, 1], [REFERENCE, 5]]})
    (found,) = records(read(tmp_path, BAT | {REFERENCE: "A café"}, rules=rules))
    assert found.captions == (Caption("A bat that hangs", 0, ALT),)
    with pytest.raises(ValidationError):
        wit.Rules.model_validate({"captions": [["page_title", 1]]})
    with pytest.raises(ValidationError):
        wit.Rules.model_validate({"thumbnail_width": 640})


def test_characters_outside_ascii_go_unless_the_rules_keep_them(tmp_path: Path) -> None:
    cafe = BAT | {REFERENCE: "A café — at night"}
    assert caption_of(read(tmp_path, cafe)[0])[1] == "A caf  at night"
    kept = read(tmp_path, cafe, rules=wit.Rules(ascii_only=False))
    assert caption_of(kept[0])[1] == "A café — at night"


# --- addresses ---

COMMONS = "https://upload.wikimedia.org/wikipedia/commons"
LONG = "%C3%A9" * 79 + "ab"  # with ".jpg" 164 bytes, in 480 characters


@pytest.mark.parametrize(
    ("original", "width", "thumbnail"),
    [
        ("/5/5f/A_b.jpg", "501", "/thumb/5/5f/A_b.jpg/500px-A_b.jpg"),
        ("/5/5f/A_b.jpg", "500", None),
        ("/5/5f/A_b.jpg", "", None),
        ("/5/5f/A_b.jpg", "-501", None),
        ("/5/5f/A_b.jpg", "9" * 5_000, None),
        ("/5/5f/A_b.JPEG", "9000", "/thumb/5/5f/A_b.JPEG/500px-A_b.JPEG"),
        ("/5/5f/A_%C3%A9%28b%29.png", "9000", "/thumb/5/5f/A_%C3%A9%28b%29.png/500px-A_%C3%A9%28b%29.png"),
        ("/5/5f/A.gif", "9000", "/thumb/5/5f/A.gif/500px-A.gif"),
        ("/5/5f/A.svg", "20", "/thumb/5/5f/A.svg/500px-A.svg.png"),
        ("/5/5f/A.svg", "", "/thumb/5/5f/A.svg/500px-A.svg.png"),
        ("/5/5f/A.tif", "9000", "/thumb/5/5f/A.tif/lossy-page1-500px-A.tif.jpg"),
        ("/5/5f/A.tiff", "9000", "/thumb/5/5f/A.tiff/lossy-page1-500px-A.tiff.jpg"),
        ("/5/5f/A.tiff", "300", None),
        ("/5/5f/A.webm", "9000", None),
        ("/5/5f/A", "9000", None),
        ("/thumb/5/5f/A.jpg/800px-A.jpg", "9000", None),
        ("/archive/5/5f/20100101!A.jpg", "9000", None),
        ("/5/5f/A.jpg?download", "9000", None),
        ("/5/5f/" + LONG + ".jpg", "9000", "/thumb/5/5f/" + LONG + ".jpg/500px-thumbnail.jpg"),
        ("/5/5f/" + LONG[6:] + ".jpg", "9000", None),
    ],
)
def test_wide_originals_are_fetched_as_thumbnails(
    tmp_path: Path, original: str, width: str, thumbnail: str | None
) -> None:
    if original == "/5/5f/" + LONG[6:] + ".jpg":  # 162 bytes; two less, and it keeps its name
        original = "/5/5f/" + LONG[12:] + ".jpg"
        thumbnail = f"/thumb{original}/500px-{original.rpartition('/')[2]}"
    fields = {"image_url": COMMONS + original, "original_width": width}
    (found,) = records(read(tmp_path, BAT | fields))
    assert found.url == COMMONS + (thumbnail or original)
    assert found.key == url_key("wit", COMMONS + original)
    assert json.loads(found.meta or "").get("image_url") == (COMMONS + original if thumbnail else None)
    assert read(tmp_path, BAT | fields, rules=wit.Rules(thumbnail_width=0)) == [
        found._replace(url=COMMONS + original, meta=found_without_image_url(found))
    ]


def found_without_image_url(record: Record) -> str:
    meta = json.loads(record.meta or "")
    meta.pop("image_url", None)
    return json.dumps(meta, sort_keys=True, separators=(",", ":"))


def test_an_image_outside_commons_says_so(tmp_path: Path) -> None:
    (found,) = records(read(tmp_path, BAT | {"image_url": COMMONS[:-7] + "en/0/07/Logo%21.png"}))
    assert found.url == COMMONS[:-7] + "en/thumb/0/07/Logo%21.png/500px-Logo%21.png"
    assert found.attribution == "https://en.wikipedia.org/wiki/File:Logo%21.png"
    assert json.loads(found.meta or "")["repository"] == "en"


def test_an_address_elsewhere_is_kept(tmp_path: Path) -> None:
    (found,) = records(read(tmp_path, BAT | {"image_url": "https://a.example/0/07/A.jpg"}))
    assert (found.url, found.attribution) == ("https://a.example/0/07/A.jpg", None)


# --- files ---


@pytest.mark.parametrize(
    ("content", "form"),
    [
        ("\t".join(COLUMNS) + "\n", "wit tsv"),
        ("\ufeff" + "\t".join(COLUMNS) + "\r\nen\t", "wit tsv"),
        ("\t".join([*COLUMNS, "caption_title_and_reference_description"]), "wit tsv"),
        ("\t".join(f'"{name}"' for name in COLUMNS) + "\n", "wit tsv"),
        ("en\thttps://en.wikipedia.org/wiki/Bat\t" + "\t" * 14 + "\n", None),
        (",".join(COLUMNS) + "\n", None),
        ("language\timage_url\tcaption_reference_description\n", None),
        ("\n" + "\t".join(COLUMNS) + "\n", None),
    ],
)
def test_the_header_tells_what_a_file_is(tmp_path: Path, content: str, form: str | None) -> None:
    path = tmp_path / "file"
    for packed in (content.encode(), gzip.compress(content.encode())):
        path.write_bytes(packed)
        assert wit.recognise(path) == form


def test_every_row_of_a_file_without_header_is_rejected(tmp_path: Path) -> None:
    content = table(BAT, BAT).split(b"\n", 1)[1]
    found = read_bytes(tmp_path, content)
    assert [(each.row, each.reason) for each in found if isinstance(each, Rejected)] == [
        (0, Reason.INPUT_MALFORMED),
        (1, Reason.INPUT_MALFORMED),
    ]


def test_a_gzipped_file_is_read_as_far_as_it_goes(tmp_path: Path) -> None:
    numbered = [BAT | {"page_title": str(number * 7919)} for number in range(2_000)]
    content = gzip.compress(table(*numbered))
    whole = read_bytes(tmp_path, content)
    assert len(records(whole)) == 2_000
    *before, last = read_bytes(tmp_path, content[: len(content) // 2])
    assert before == whole[: len(before)] and len(before) > 500
    assert isinstance(last, Rejected) and "packed data is damaged" in last.detail


def test_a_file_of_any_length_is_read_in_the_memory_of_a_row(tmp_path: Path) -> None:
    row = table(BAT | {"context_section_description": "words on a line of some length\n" * 300}).split(
        b"\n", 1
    )[1]
    path = tmp_path / "file"
    with gzip.open(path, "wb", compresslevel=1) as file:
        file.write(table())
        for _ in range(400):
            file.write(row)
        file.write(b'en\t"')
        for _ in range(8):
            file.write(b"never closed " * (ROW_BYTES // 13))
        file.write(b"\n" + row)
    tracemalloc.start()
    (part,) = wit.parts([path])
    count = sum(1 for _ in wit.read(part, wit.Rules()))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert count == 402
    assert peak < 8 * ROW_BYTES


# --- any rows ---

TEXTS = st.text(st.sampled_from('aé"\t\n: 中'), max_size=12) | st.sampled_from(
    ["A bat that hangs", "English: a big bat Deutsch: eine", "A", ""]
)
ROWS = st.fixed_dictionaries(
    {
        "language": st.sampled_from(["en", "en", "de", "xx", "", '"']),
        "image_url": st.sampled_from(
            [BAT["image_url"], COMMONS + "/1/12/%22.svg", "http://a.example/", "", "x"]
        ),
        REFERENCE: TEXTS,
        ATTRIBUTION: TEXTS,
        ALT: TEXTS,
        "original_width": st.sampled_from(["", "499", "501", "1e9", "²"]),
        "context_page_description": TEXTS,
    }
)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(rows=st.lists(ROWS, max_size=6))
def test_any_rows_are_read_as_they_were_written(rows: list[dict[str, str]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        found = read(Path(folder), *rows)
    check_laws(found, "wit")
    assert len(found) == len(rows)
    for outcome, row in zip(found, rows, strict=True):
        if row["language"] != "en":
            assert isinstance(outcome, Rejected) and outcome.reason is Reason.CAPTION_LANGUAGE
        elif isinstance(outcome, Record):
            name, text = caption_of(outcome)
            given = row[name].encode("ascii", "ignore").decode()
            assert text in given and outcome.key.startswith("wit-")
            assert name == REFERENCE or len(row[REFERENCE].split()) < 2 or not row[REFERENCE].isascii()
        elif outcome.reason is Reason.INPUT_NO_CAPTION:
            assert len(row[REFERENCE].split()) < 2 or not row[REFERENCE].isascii()
        else:
            assert not row["image_url"].startswith("http")


DAMAGE = st.sampled_from([b'"', b'""', b"\n", b"\t", b"\xff", b"\0", b"en\t", b'\t"', b'"\t', b"x" * 50])


@settings(max_examples=300, deadline=None, derandomize=True)
@given(
    rows=st.lists(ROWS, max_size=4),
    damage=st.lists(st.tuples(st.integers(0, 3_000), DAMAGE), max_size=4),
    packed=st.booleans(),
    cut=st.integers(0, 60),
    languages=st.sampled_from([("en",), ()]),
)
def test_whatever_is_damaged_every_row_has_an_outcome(
    rows: list[dict[str, str]],
    damage: list[tuple[int, bytes]],
    packed: bool,
    cut: int,
    languages: tuple[str, ...],
) -> None:
    content = table(*rows, BAT)
    for place, piece in damage:
        place %= len(content)
        content = content[:place] + piece + content[place:]
    if packed:
        content = gzip.compress(content, mtime=0)
    content = content[: len(content) - cut]
    with tempfile.TemporaryDirectory() as folder:
        check_laws(read_bytes(Path(folder), content, wit.Rules(languages=languages)), "wit")


def test_a_quote_too_many_costs_one_row(tmp_path: Path) -> None:
    header, row = table(BAT).split(b"\n", 1)
    broken = row.replace(b"\tBat\t", b'\t"Bat\t')
    found = read_bytes(tmp_path, header + b"\n" + row + broken + row * 3)
    assert len(records(found)) == 4
    assert [each.reason for each in found if isinstance(each, Rejected)] == [Reason.INPUT_MALFORMED] * 2


# --- the published rows ---


def real(name: str) -> Path:
    path = REAL / name
    if not path.is_file():
        pytest.skip(f"the real rows are not here: {path}")
    return path


def test_the_published_rows_are_read() -> None:
    path = real("train-00000.sample3.tsv")
    assert wit.recognise(path) == "wit tsv"
    assert [each.reason for each in read_all(wit, path) if isinstance(each, Rejected)] == [
        Reason.CAPTION_LANGUAGE
    ] * 3
    rules = wit.Rules(languages=("de", "es", "ru"), ascii_only=False)
    spanish, german, russian = read_all(wit, path, rules=rules)
    assert isinstance(spanish, Rejected) and isinstance(german, Rejected)
    assert caption_of(russian) == (ATTRIBUTION, "Юбилейная монета Украины")


def test_kaggles_published_rows_are_read() -> None:
    path = real("kaggle_train-00000.sample2.18col.tsv")
    assert wit.recognise(path) == "wit tsv"
    tajik, english = read_all(wit, path)
    assert isinstance(tajik, Rejected) and tajik.detail == "in the language 'tg'"
    assert isinstance(english, Record)
    name = "Deer_Park_Wisconsin_Downtown_WIS46.jpg"
    assert english.url == f"{COMMONS}/thumb/2/28/{name}/500px-{name}"
    assert caption_of(english) == (REFERENCE, "Downtown Deer Park")
    assert english.captions[0].otherwise
    assert english.captions[0].otherwise.text == "Downtown Deer Park, Wisconsin on WIS46."


def test_a_published_row_that_was_cut_inside_a_field_has_an_outcome() -> None:
    path = real("test-00000.truncated_record.tsv")
    assert wit.recognise(path) == "wit tsv"
    (found,) = read_all(wit, path)
    assert isinstance(found, Rejected) and found.reason is Reason.INPUT_MALFORMED


def test_the_row_of_the_dataset_card_is_read(tmp_path: Path) -> None:
    row = json.loads(real("hf_card_example_en.json").read_text())
    (found,) = read(tmp_path, {name: str(value) for name, value in row.items() if value is not None})
    assert caption_of(found) == (
        ATTRIBUTION,
        "Mounted skeleton of Oxydactylus longipes in the Field Museum of Natural History.",
    )


def read(
    folder: Path, *rows: dict[str, str], columns: list[str] = COLUMNS, rules: Any = None
) -> list[Outcome]:
    return read_bytes(folder, table(*rows, columns=columns), rules)


def read_bytes(folder: Path, content: bytes, rules: Any = None) -> list[Outcome]:
    path = folder / "file"
    path.write_bytes(content)
    return read_all(wit, path, rules=rules)


def table(*rows: dict[str, str], columns: list[str] = COLUMNS) -> bytes:
    file = io.StringIO(newline="")
    writer = csv.writer(file, delimiter="\t", lineterminator="\n")
    writer.writerow(columns)
    writer.writerows([row.get(name, "") for name in columns] for row in rows)
    return file.getvalue().encode()


def records(outcomes: list[Outcome]) -> list[Record]:
    return [outcome for outcome in outcomes if isinstance(outcome, Record)]


def caption_of(outcome: Outcome) -> tuple[str, str]:
    assert isinstance(outcome, Record)
    (caption,) = outcome.captions
    assert caption.id
    return caption.id, caption.text
