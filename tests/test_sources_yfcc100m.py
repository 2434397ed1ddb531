import bz2
import gzip
import json
import sqlite3
import tempfile
import tracemalloc
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote_plus, unquote_plus

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pmd.records import Caption, Reason, Record, Rejected, meta_json
from pmd.sources import Part, yfcc100m
from pmd.sources.part import ROW_BYTES
from pmd.sources.yfcc100m import Rules
from tests.reading import Outcome, check_laws, read_all, read_parts, rows_of

REAL = Path(__file__).parents[2] / "shared" / "real" / "yfcc100m"
GENUINE = "yfcc100m_dataset.23col.GENUINE.tsv"
BUCKET = "https://multimedia-commons.s3-us-west-2.amazonaws.com/data/images"

PHOTO = {
    "photoid": "6985418911",
    "uid": "39089491@N00",
    "unickname": "guckxzs+%26+Zo%C3%AB",
    "datetaken": "2012-02-16 09:56:37.0",
    "dateuploaded": "1331840483",
    "capturedevice": "Canon+PowerShot+ELPH+310+HS",
    "title": "IMG_0520",
    "description": "My vacation%0Ain %22Key West%22, 2%2B2 days",
    "usertags": "canon,canon+powershot+hs+310",
    "machinetags": "",
    "longitude": "-81.804885",
    "latitude": "24.550558",
    "accuracy": "12",
    "pageurl": "http://www.flickr.com/photos/39089491@N00/6985418911/",
    "downloadurl": "http://farm8.staticflickr.com/7205/6985418911_df7747990d.jpg",
    "licensename": "Attribution-NonCommercial-NoDerivs License",
    "licenseurl": "http://creativecommons.org/licenses/by-nc-nd/2.0/",
    "serverid": "7205",
    "farmid": "8",
    "secret": "df7747990d",
    "secretoriginal": "692d7e0a7f",
    "ext": "jpg",
    "marker": "0",
}
HASH = "4e2f7a26a1dfbf165a7e30bdabf7e72a"  # as published with it
RECORD = Record(
    key="yfcc100m-6985418911",
    url=f"{BUCKET}/4e2/f7a/{HASH}.jpg",
    captions=(
        Caption(
            'My vacation\nin "Key West", 2+2 days',
            row=0,
            id="description",
            otherwise=Caption("IMG_0520", row=0, id="title"),
        ),
    ),
    license="CC-BY-NC-ND-2.0",
    license_url="http://creativecommons.org/licenses/by-nc-nd/2.0/",
    attribution="guckxzs & Zoë, http://www.flickr.com/photos/39089491@N00/6985418911/",
    meta='{"flickr_photo_id":"6985418911"}',
)


# --- a photo, in every form ---

FORMS = {
    "25": "yfcc100m tsv, 25 columns",
    "23": "yfcc100m tsv, 23 columns",
    "sqlite": "yfcc100m sqlite",
}


@pytest.mark.parametrize("form", FORMS)
def test_a_row_becomes_the_same_record_in_every_form(tmp_path: Path, form: str) -> None:
    path = written(tmp_path, form, [PHOTO])
    assert yfcc100m.recognise(path) == FORMS[form]
    assert read_all(yfcc100m, path) == [RECORD]
    assert RECORD.meta == meta_json(flickr_photo_id="6985418911")


@pytest.mark.parametrize("pack", [bz2.compress, gzip.compress])
def test_packed_files_hold_the_same_rows(tmp_path: Path, pack: Any) -> None:
    path = tmp_path / "file"
    path.write_bytes(pack(line_25(PHOTO) * 3))
    assert yfcc100m.recognise(path) == FORMS["25"]
    assert [rows_of(outcome)[0] for outcome in read_all(yfcc100m, path)] == [0, 1, 2]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"marker": "1"}, Reason.INPUT_NO_IMAGE),
        ({"marker": "2"}, Reason.INPUT_MALFORMED),
        ({"marker": ""}, Reason.INPUT_MALFORMED),
        ({"title": "", "description": ""}, Reason.INPUT_NO_CAPTION),
        ({"title": "+", "description": "%0A%20+"}, Reason.INPUT_NO_CAPTION),
        ({"title": "<br/>", "description": "http://a.example"}, Reason.INPUT_NO_CAPTION),
        ({"downloadurl": ""}, Reason.INPUT_NO_IMAGE),
        ({"downloadurl": "unavailable"}, Reason.INPUT_BAD_URL),
    ],
)
def test_a_row_without_a_photo_or_a_text_is_rejected_alone(
    tmp_path: Path, form: str, fields: dict[str, str], reason: Reason
) -> None:
    photos = [PHOTO | {"photoid": "1"}, PHOTO | {"photoid": "2"} | fields, PHOTO | {"photoid": "3"}]
    assert summary(read_all(yfcc100m, written(tmp_path, form, photos))) == [
        (0, None),
        (1, reason),
        (2, None),
    ]


@pytest.mark.parametrize(
    "id",
    ["", "0", "-7", "+7", "7.0", "007", "1e9", "../7", "7/8", "٣", "7" * 20, "7 ", "a"],
)
def test_a_number_that_is_none_makes_no_key(tmp_path: Path, id: str) -> None:
    path = written(tmp_path, "25", [PHOTO, PHOTO | {"photoid": id}])
    assert summary(read_all(yfcc100m, path)) == [(0, None), (1, Reason.INPUT_MALFORMED)]


@pytest.mark.parametrize("by", [-1, 1])
@pytest.mark.parametrize("form", ["25", "23"])
def test_a_row_with_more_or_fewer_columns_is_malformed(tmp_path: Path, form: str, by: int) -> None:
    good = line_25(PHOTO) if form == "25" else line_23(PHOTO)
    bad = good[:-1] + b"\t\n" if by > 0 else good.replace(b"\t", b" ", 1)
    path = tmp_path / "file"
    path.write_bytes(good + bad + good)
    found = read_all(yfcc100m, path)
    assert summary(found) == [(0, None), (1, Reason.INPUT_MALFORMED), (2, None)]
    assert isinstance(found[1], Rejected)
    assert f"expected {form} columns, found {int(form) + by}" in found[1].detail


def test_a_row_of_the_other_number_of_columns_is_not_guessed_at(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(line_23(PHOTO) * 3 + line_25(PHOTO))
    assert [reason for _, reason in summary(read_all(yfcc100m, path))] == [
        None,
        None,
        None,
        Reason.INPUT_MALFORMED,
    ]


def test_empty_columns_at_the_end_are_columns(tmp_path: Path) -> None:
    last = ("serverid", "farmid", "secret", "secretoriginal", "ext")
    photo = PHOTO | dict.fromkeys(last, "")
    assert read_all(yfcc100m, written(tmp_path, "23", [photo])) == [RECORD]


# --- addresses ---


def test_a_photo_is_in_the_bucket_under_its_published_hash(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(line_25(PHOTO, hash="db55c17e1b482f75c301831f69e9136"))
    (record,) = read_all(yfcc100m, path)
    assert isinstance(record, Record)
    assert record.url == f"{BUCKET}/db5/5c1/db55c17e1b482f75c301831f69e9136.jpg"


def test_a_hash_is_that_of_the_address_of_the_time_when_the_bucket_was_filled(tmp_path: Path) -> None:
    today = PHOTO | {"downloadurl": PHOTO["downloadurl"].replace("http:", "https:")}
    (record,) = read_all(yfcc100m, written(tmp_path, "23", [today]))
    assert isinstance(record, Record) and record.url == RECORD.url


@pytest.mark.parametrize(
    "hash", ["", "4e2f", HASH + "0", HASH[:-1] + "g", HASH.upper(), "../../../../../../etc", "4e2/f7a"]
)
def test_a_hash_that_is_none_makes_no_path(tmp_path: Path, hash: str) -> None:
    path = tmp_path / "file"
    path.write_bytes(line_25(PHOTO) + line_25(PHOTO, hash=hash))
    assert summary(read_all(yfcc100m, path)) == [(0, None), (1, Reason.INPUT_MALFORMED)]
    rules = Rules(images="flickr")
    assert summary(read_all(yfcc100m, path, rules=rules)) == [(0, None), (1, None)]


@pytest.mark.parametrize("form", FORMS)
def test_photos_can_be_fetched_from_flickr_instead(tmp_path: Path, form: str) -> None:
    (record,) = read_all(yfcc100m, written(tmp_path, form, [PHOTO]), rules=Rules(images="flickr"))
    assert record == RECORD._replace(url=PHOTO["downloadurl"])


# --- texts ---


@pytest.mark.parametrize(
    ("encoded", "text"),
    [
        ("a+b", "a b"),
        ("a%20b", "a b"),
        ("2%2B2", "2+2"),
        ("100%2525", "100%25"),
        ("100%+sure", "100% sure"),
        ("%E2%80%A8caf%C3%A9", "\u2028café"),
        ("caf%E9", "caf\ufffd"),
        ("%00", "\0"),
        ("café+%C3%A9", "café é"),
        ("é%C3+%A9", "é\ufffd \ufffd"),
        ("%zz%4", "%zz%4"),
    ],
)
def test_texts_are_decoded_once(tmp_path: Path, encoded: str, text: str) -> None:
    (record,) = read_all(yfcc100m, written(tmp_path, "23", [PHOTO | {"description": encoded}]))
    assert isinstance(record, Record)
    assert record.captions[0].text == text == unquote_plus(encoded, errors="replace")


@settings(max_examples=500, deadline=None, derandomize=True)
@given(
    st.lists(
        st.sampled_from(
            ["+", "%", "2", "b", "C3", "A9", "%C3%A9", "%3D", "=", "_", ".", "\r", "\n", "é", " "]
        )
    ).map("".join)
)
def test_texts_are_decoded_as_forms_are(encoded: str) -> None:
    decoded = yfcc100m._decoded(encoded)  # pyright: ignore[reportPrivateUsage]
    assert decoded == unquote_plus(encoded, errors="replace")


@pytest.mark.parametrize(
    ("text", "without"),
    [
        ('See <a href="http://a.example/?b=1&amp;c" rel="nofollow">my page</a>.', "See my page."),
        ("<b>Bold</b> and <I>italic</I>", "Bold and italic"),
        ("one<br>two<br />three<BR/>", "one two three "),
        ("<blockquote>said</blockquote>so", " said so"),
        ("<img src='http://a.example/1.jpg' width=500 height = 300 />x", " x"),
        ("see http://a.example/b?c=d&e now", "see  now"),
        ("(www.a.example)", "("),
        ("so HTTPS://A.EXAMPLE WWW.A.EXAMPLE", "so  "),
    ],
)
def test_markup_is_removed(tmp_path: Path, text: str, without: str) -> None:
    photo = PHOTO | {"description": quote_plus(text), "title": "x"}
    for markup, expected in (("remove", without), ("keep", text)):
        rules = Rules.model_validate({"markup": markup, "captions": ["description", "title"]})
        (record,) = read_all(yfcc100m, written(tmp_path, "23", [photo]), rules=rules)
        assert isinstance(record, Record) and record.captions[0].text == expected


@pytest.mark.parametrize(
    "text",
    [
        "a < b",
        "a <b and c> d",
        "I <3 you",
        "<PERSON>",
        "<3>",
        "x<y>z",
        "1 <a",
        "<a href=",
        "awww.cute",
        "http:",
    ],
)
def test_what_is_no_markup_stays(tmp_path: Path, text: str) -> None:
    photo = PHOTO | {"description": quote_plus(text)}
    (record,) = read_all(yfcc100m, written(tmp_path, "23", [photo]))
    assert isinstance(record, Record) and record.captions[0].text == text


def test_markup_of_any_length_is_removed_in_time() -> None:
    for text in (
        "<a " * 100_000,
        "<a b=" * 100_000,
        '<a b="' * 100_000,
        "<a" + " b" * 200_000,
        "www." * 100_000,
    ):
        yfcc100m._without_markup(text)  # pyright: ignore[reportPrivateUsage]


@pytest.mark.parametrize(
    ("order", "fields", "texts"),
    [
        (("description", "title"), {}, [("description", "words"), ("title", "name")]),
        (("title", "description"), {}, [("title", "name"), ("description", "words")]),
        (("title",), {}, [("title", "name")]),
        (("description",), {"description": ""}, []),
        (("description", "title"), {"description": ""}, [("title", "name")]),
        (("description", "title"), {"title": " "}, [("description", "words")]),
        (("description", "title"), {"title": "words"}, [("description", "words")]),
    ],
)
def test_the_caption_is_the_first_text_and_the_next_one_is_taken_otherwise(
    tmp_path: Path, order: tuple[Any, ...], fields: dict[str, str], texts: list[tuple[str, str]]
) -> None:
    photo = PHOTO | {"description": "words", "title": "name"} | fields
    (outcome,) = read_all(yfcc100m, written(tmp_path, "25", [photo]), rules=Rules(captions=order))
    chain: list[tuple[str | None, str]] = []
    caption = outcome.captions[0] if isinstance(outcome, Record) else None
    while caption:
        chain.append((caption.id, caption.text))
        caption = caption.otherwise
    assert chain == texts


@pytest.mark.parametrize(
    ("fields", "attribution"),
    [
        ({"unickname": ""}, PHOTO["pageurl"]),
        ({"unickname": "a%0Ab++%09c"}, f"a b c, {PHOTO['pageurl']}"),
        ({"unickname": "jhf", "pageurl": ""}, "jhf"),
        ({"unickname": "", "pageurl": ""}, None),
    ],
)
def test_attribution_is_the_owner_and_the_page(
    tmp_path: Path, fields: dict[str, str], attribution: str | None
) -> None:
    (record,) = read_all(yfcc100m, written(tmp_path, "25", [PHOTO | fields]))
    assert isinstance(record, Record) and record.attribution == attribution


def test_a_licence_that_has_no_id_keeps_its_address(tmp_path: Path) -> None:
    photos = [PHOTO | {"licenseurl": url} for url in ("http://flickr.com/commons/usage/", "")]
    records = read_all(yfcc100m, written(tmp_path, "25", photos))
    assert [(record.license, record.license_url) for record in records if isinstance(record, Record)] == [
        (None, "http://flickr.com/commons/usage/"),
        (None, None),
    ]


# --- the subset ---

TAKEN = {
    "image_url": RECORD.url,
    "image": None,
    "texts": ["A trip 2+2 days, 100%25 <b>fun</b>", "another"],
    "source": "yfcc100m",
    "meta": json.dumps(PHOTO | {"photoid": 6985418911, "marker": 0}, indent=2),
}


def test_of_the_subset_the_first_text_is_taken_as_it_is(tmp_path: Path) -> None:
    path = subset(tmp_path, TAKEN)
    assert yfcc100m.recognise(path) == "pmd subset jsonl"
    assert read_all(yfcc100m, path) == [
        RECORD._replace(captions=(Caption("A trip 2+2 days, 100%25 <b>fun</b>", row=0),))
    ]


def test_a_row_of_the_subset_needs_no_meta(tmp_path: Path) -> None:
    rows = [TAKEN | {"meta": meta} for meta in ("{}", "", "not JSON", None, [], "[]")]
    found = read_all(yfcc100m, subset(tmp_path, *rows))
    assert all(isinstance(outcome, Record) for outcome in found)
    assert len({outcome.key for outcome in found if isinstance(outcome, Record)}) == 1
    assert {outcome[3:] for outcome in found} == {(None,) * 6}


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"texts": []}, Reason.INPUT_NO_CAPTION),
        ({"texts": [" ", "second"]}, Reason.INPUT_NO_CAPTION),
        ({"texts": None}, Reason.INPUT_NO_CAPTION),
        ({"texts": [5]}, Reason.INPUT_NO_CAPTION),
        ({"image_url": None}, Reason.INPUT_NO_IMAGE),
        ({"image_url": "unavailable"}, Reason.INPUT_BAD_URL),
        ({"meta": '{"photoid": "../7"}'}, Reason.INPUT_MALFORMED),
        ({"meta": '{"photoid": 7, "marker": 1}'}, Reason.INPUT_NO_IMAGE),
    ],
)
def test_a_row_of_the_subset_that_cannot_be_used_is_rejected_alone(
    tmp_path: Path, fields: dict[str, Any], reason: Reason
) -> None:
    path = subset(tmp_path, TAKEN, TAKEN | fields, TAKEN)
    assert summary(read_all(yfcc100m, path)) == [(0, None), (1, reason), (2, None)]


@pytest.mark.parametrize("line", [b"", b"[]", b"null", b'{"image_url": ', b'{"texts": ["\\ud800"]}', b"\xff"])
def test_a_line_of_the_subset_that_is_no_object_is_malformed(tmp_path: Path, line: bytes) -> None:
    path = subset(tmp_path, TAKEN)
    path.write_bytes(path.read_bytes() + line + b"\n" + path.read_bytes())
    assert summary(read_all(yfcc100m, path)) == [(0, None), (1, Reason.INPUT_MALFORMED), (2, None)]


# --- the database ---


def test_a_database_is_read_in_parts_in_order_of_ids(tmp_path: Path) -> None:
    photos = [PHOTO | {"photoid": str(number * number + 1)} for number in range(100)]
    path = written(tmp_path, "sqlite", photos[50:] + photos[:50])
    whole = read_all(yfcc100m, path)
    keys = [outcome.key for outcome in whole if isinstance(outcome, Record)]
    assert keys == [f"yfcc100m-{photo['photoid']}" for photo in photos]
    for size in (200, 3_000, 10_000):
        parts = yfcc100m._database_parts(path, size)  # pyright: ignore[reportPrivateUsage]
        read = [outcome for part in parts for outcome in yfcc100m.read(part, Rules())]
        assert [outcome.key for outcome in read if isinstance(outcome, Record)] == keys
        assert [part.start for part in parts][1:] == [part.stop for part in parts][:-1]
        for part in parts:
            check_laws([*yfcc100m.read(part, Rules())], "yfcc100m")


def test_ids_as_far_apart_as_can_be_are_read(tmp_path: Path) -> None:
    ids = [-(1 << 63), -1, 0, 7, (1 << 63) - 1]
    path = written(tmp_path, "sqlite", [PHOTO | {"photoid": str(id)} for id in ids])
    for size in (30, 4_000, 1 << 20):
        parts = yfcc100m._database_parts(path, size)  # pyright: ignore[reportPrivateUsage]
        found = [outcome for part in parts for outcome in yfcc100m.read(part, Rules())]
        assert [type(outcome) for outcome in found] == [Rejected, Rejected, Rejected, Record, Record]


def test_a_database_without_rows_has_none(tmp_path: Path) -> None:
    assert read_all(yfcc100m, written(tmp_path, "sqlite", [])) == []


def test_a_database_is_opened_to_be_read_alone(tmp_path: Path) -> None:
    path = written(tmp_path, "sqlite", [PHOTO])
    database = sqlite3.connect(path)
    database.execute("PRAGMA journal_mode = WAL")
    database.close()
    content = path.read_bytes()
    # Of somebody who is writing; or of somebody who wants us to write.
    for name in ("journal", "wal", "shm"):
        path.with_name(f"{path.name}-{name}").write_bytes(b"x" * 1000)
    path.chmod(0o444)
    assert read_all(yfcc100m, path) == [RECORD]
    assert path.read_bytes() == content
    assert len([*tmp_path.iterdir()]) == 4


def test_a_cell_that_is_too_long_or_no_text_costs_its_row_alone(tmp_path: Path) -> None:
    cells: list[Any] = [
        "fine",
        "x" * (ROW_BYTES + 1),
        b"caf\xc3\xa9",
        b"caf\xe9",
        None,
        7,
        1.5,
        "x" * (ROW_BYTES * 3),
        "y" * (ROW_BYTES * 3),
        "last",
    ]
    path = tmp_path / "file"
    rows = [[*(PHOTO | {"photoid": number, "title": ""}).values()] for number in range(1, 11)]
    for row, cell in zip(rows, cells, strict=True):
        row[7] = cell
    build(path, TABLE, rows)
    found = read_all(yfcc100m, path)
    assert summary(found) == [
        (0, None),
        (1, Reason.INPUT_MALFORMED),
        (2, None),
        (3, Reason.INPUT_MALFORMED),
        (4, Reason.INPUT_NO_CAPTION),
        (5, None),
        (6, None),
        (7, Reason.INPUT_MALFORMED),
        (8, Reason.INPUT_MALFORMED),
        (9, None),
    ]
    texts = [outcome.captions[0].text for outcome in found if isinstance(outcome, Record)]
    assert texts == ["fine", "café", "7", "1.5", "last"]


NAMES = ", ".join(PHOTO)
TABLE = f"CREATE TABLE yfcc100m_dataset ({NAMES.replace('photoid', 'photoid integer primary key')})"
EVIL = {
    "view": f"CREATE TABLE other ({NAMES}); CREATE VIEW yfcc100m_dataset AS SELECT * FROM other",
    "endless view": "CREATE VIEW yfcc100m_dataset AS WITH RECURSIVE n(photoid) AS "
    "(SELECT 1 UNION ALL SELECT photoid + 1 FROM n) SELECT photoid FROM n",
    "computed": TABLE.replace(" title,", " title AS (hex(zeroblob(100000)) || description),"),
    "virtual": f"CREATE VIRTUAL TABLE yfcc100m_dataset USING fts5({NAMES})",
    "no row ids": f"{TABLE} WITHOUT ROWID",
    "false row ids": TABLE.replace(" ext,", " _rowid_,"),
    "a column less": TABLE.replace(" licenseurl,", ""),
    "no table": "CREATE TABLE yfcc100m_data (photoid)",
}


@pytest.mark.parametrize("name", EVIL)
def test_of_a_database_nothing_but_a_plain_table_is_asked(tmp_path: Path, name: str) -> None:
    path = tmp_path / "file"
    build(path, EVIL[name], [])
    assert yfcc100m.recognise(path) is None
    assert summary([*yfcc100m.read(Part(str(path), "yfcc100m sqlite"), Rules())]) == [
        (0, Reason.INPUT_MALFORMED)
    ]


def test_a_database_of_very_many_tables_is_not_opened(tmp_path: Path) -> None:
    found: list[bool] = []
    for tables in (300, 30_000):
        path = tmp_path / f"{tables}"
        database = sqlite3.connect(path)
        database.executescript(f"{TABLE}; PRAGMA writable_schema = ON")
        names = ((f"t{number}", f"CREATE TABLE t{number}(a)") for number in range(tables))
        database.executemany("INSERT INTO sqlite_master VALUES ('table', ?1, ?1, 2, ?2)", names)
        database.commit()
        database.close()
        found.append(yfcc100m.recognise(path) is not None)
    assert found == [True, False]


def test_an_index_that_computes_is_not_used(tmp_path: Path) -> None:
    path = tmp_path / "file"
    rows = [[*(PHOTO | {"photoid": number}).values()] for number in range(1, 4)]
    build(path, f"{TABLE}; CREATE INDEX i ON yfcc100m_dataset (photoid, {NAMES})", rows)
    assert len(read_all(yfcc100m, path)) == 3


def test_a_table_whose_ids_are_no_row_ids_is_read_in_the_order_it_is_stored(tmp_path: Path) -> None:
    path = tmp_path / "file"
    rows = [[*(PHOTO | {"photoid": id}).values()] for id in ("30", "10", "20")]
    build(path, f"CREATE TABLE yfcc100m_dataset ({NAMES})", rows)
    found = read_all(yfcc100m, path)
    assert [outcome.key for outcome in found if isinstance(outcome, Record)] == [
        "yfcc100m-30",
        "yfcc100m-10",
        "yfcc100m-20",
    ]


def test_pages_that_lead_back_to_each_other_end_the_reading(tmp_path: Path) -> None:
    path = written(tmp_path, "sqlite", [PHOTO | {"photoid": str(number)} for number in range(1, 2_001)])
    content = bytearray(path.read_bytes())
    root = content[4096:8192]
    assert root[0] == 5  # a page that refers to others, by cells that begin with the page's number
    cells = int.from_bytes(root[3:5], "big")
    first = int.from_bytes(root[12:14], "big")
    for number in range(1, cells):
        place = int.from_bytes(root[12 + 2 * number : 14 + 2 * number], "big")
        content[4096 + place : 4096 + place + 4] = root[first : first + 4]
    path.write_bytes(content)
    (outcomes,) = read_parts(yfcc100m, path)
    check_laws(outcomes, "yfcc100m")
    assert len(outcomes) < 100
    assert isinstance(outcomes[-1], Rejected) and "out of order" in outcomes[-1].detail


@settings(max_examples=250, deadline=None, derandomize=True)
@given(
    flips=st.lists(st.tuples(st.integers(0), st.integers(0, 255)), max_size=8),
    cut=st.integers(0, 40_000) | st.none(),
)
def test_a_damaged_database_ends_in_rows(flips: list[tuple[int, int]], cut: int | None) -> None:
    content = bytearray(sound_database())
    for place, value in flips:
        # Half of them where it hurts: in the header and at the beginning of pages.
        at = place % len(content) if place % 2 else place // 2 % len(content) // 4096 * 4096 + place % 120
        content[at] = value
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "file")
        path.write_bytes(content[:cut])
        yfcc100m.recognise(path)
        parts = [Part(str(path), "yfcc100m sqlite"), *yfcc100m._database_parts(path, 20_000)]  # pyright: ignore[reportPrivateUsage]
        for part in parts:
            outcomes = [*yfcc100m.read(part, Rules())]
            check_laws(outcomes, "yfcc100m")
            assert len(outcomes) <= 300


DATABASE: list[bytes] = []


def sound_database() -> bytes:
    """One of 200 rows on a dozen pages, some of them with long texts."""
    if not DATABASE:
        rows = [
            PHOTO | {"photoid": str(number), "title": "x" * (number % 50) ** 2} for number in range(1, 201)
        ]
        with tempfile.TemporaryDirectory() as folder:
            DATABASE.append(written(Path(folder), "sqlite", rows).read_bytes())
    return DATABASE[0]


# --- what a file is ---


@pytest.mark.parametrize(
    "content",
    [
        b"0\t6985418911\t" + HASH.encode() + b"\n",  # OpenAI's list
        b"\t".join([b"x"] * 25) + b"\n",
        b"\t".join([b"7"] * 23) + b"\n",
        b"a caption\thttp://a.example/1.jpg\n",
        b'{"image_url": "http://a.example", "texts": ["a"], "source": "red_caps", "meta": "{}"}\n',
        b'{"images": [], "annotations": []}',
        b"SQLite format 3\0",
        b"SQLite format 3\0" + b"x" * 5_000,
        b"\x1f\x8b",
        b"",
    ],
)
def test_other_files_are_not_recognised(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "file"
    path.write_bytes(content)
    assert yfcc100m.recognise(path) is None


@pytest.mark.parametrize("form", ["25", "23"])
def test_a_few_damaged_rows_do_not_hide_what_a_file_is(tmp_path: Path, form: str) -> None:
    path = written(tmp_path, form, [PHOTO] * 20)
    content = path.read_bytes().replace(b"\t", b" ", 5)
    for damaged in (content, b"\xff\xfe\n" * 100 + content, content[:-30]):
        path.write_bytes(damaged)
        assert yfcc100m.recognise(path) == FORMS[form]


# --- laws ---

WORDS = st.text(st.sampled_from("ab é\u2028<>/=\"'.:%+\0\n\t\r&\U0001f600"), max_size=12)
PHOTOS = st.builds(
    lambda id, title, description, nickname, video: (
        PHOTO
        | {
            "photoid": str(id),
            "title": quote_plus(title),
            "description": quote_plus(description),
            "unickname": quote_plus(nickname),
            "marker": str(int(video)),
        }
    ),
    st.integers(1, 10**10),
    WORDS,
    WORDS,
    WORDS,
    st.booleans(),
)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(photos=st.lists(PHOTOS, min_size=1, max_size=8, unique_by=lambda photo: photo["photoid"]))
def test_every_row_comes_out_as_promised_in_every_form(photos: list[dict[str, str]]) -> None:
    photos.sort(key=lambda photo: int(photo["photoid"]))
    with tempfile.TemporaryDirectory() as folder:
        found = [read_all(yfcc100m, written(Path(folder), form, photos)) for form in FORMS]
        kept = read_all(yfcc100m, written(Path(folder), "25", photos), rules=Rules(markup="keep"))
    for outcomes in (*found, kept):
        check_laws(outcomes, "yfcc100m")
        assert len(outcomes) == len(photos)
    assert found[0] == found[1] == found[2]
    for photo, outcome in zip(photos, kept, strict=True):
        texts = [unquote_plus(photo[name]) for name in ("description", "title")]
        said = [text for text in texts if text.strip()]
        if photo["marker"] == "1":
            assert isinstance(outcome, Rejected) and outcome.reason is Reason.INPUT_NO_IMAGE
        elif not said:
            assert isinstance(outcome, Rejected) and outcome.reason is Reason.INPUT_NO_CAPTION
        else:
            assert isinstance(outcome, Record) and outcome.key == f"yfcc100m-{photo['photoid']}"
            assert outcome.captions[0].text == said[0]


PIECES = st.one_of(
    PHOTOS.map(lambda photo: line_25(photo)),
    PHOTOS.map(lambda photo: line_23(photo)),
    st.just(json.dumps(TAKEN).encode() + b"\n"),
    st.sampled_from(
        [b"\t", b"\n", b"\xff", b"\0", b"{}\n", b'{"meta": "{\\"photoid\\": []}"}\n', b"\t" * 24 + b"\n"]
    ),
)


@settings(max_examples=250, deadline=None, derandomize=True)
@given(
    pieces=st.lists(PIECES, max_size=12),
    flips=st.lists(st.tuples(st.integers(0), st.integers(0, 255)), max_size=5),
    cut=st.integers(0, 60),
    packing=st.sampled_from([None, bz2.compress, gzip.compress]),
    form=st.sampled_from(["yfcc100m tsv, 25 columns", "yfcc100m tsv, 23 columns", "pmd subset jsonl"]),
)
def test_whatever_the_bytes_every_row_has_one_outcome(
    pieces: list[bytes], flips: list[tuple[int, int]], cut: int, packing: Any, form: str
) -> None:
    content = bytearray(b"".join(pieces))
    if packing:
        content = bytearray(packing(content))
    for place, value in flips:
        if content:
            content[place % len(content)] = value
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "file")
        path.write_bytes(content[: max(0, len(content) - cut)])
        yfcc100m.recognise(path)
        for outcomes in read_parts(yfcc100m, path):
            check_laws(outcomes, "yfcc100m")
        check_laws([*yfcc100m.read(Part(str(path), form), Rules())], "yfcc100m")


@pytest.mark.parametrize("form", ["25", "sqlite", "bz2"])
def test_a_file_of_any_length_is_read_in_bounded_memory(tmp_path: Path, form: str) -> None:
    long = PHOTO | {"description": "word+" * 300}
    photos = ({**long, "photoid": str(number)} for number in range(1, 5_001))
    if form == "bz2":
        path = tmp_path / "file"
        path.write_bytes(bz2.compress(b"".join(map(line_25, photos))))
    else:
        path = written(tmp_path, form, photos)
    tracemalloc.start()
    count = sum(1 for part in yfcc100m.parts([path]) for _ in yfcc100m.read(part, Rules()))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert count == 5_000
    assert peak < 7 << 20  # of 9 MB of rows


# --- the published rows ---


@pytest.mark.parametrize(
    ("name", "form"),
    [
        (GENUINE, "yfcc100m tsv, 23 columns"),
        ("yfcc100m_dataset.25col.DERIVED.tsv", "yfcc100m tsv, 25 columns"),
        ("yfcc100m_dataset.DERIVED.sqlite", "yfcc100m sqlite"),
    ],
)
def test_the_published_rows_are_read(name: str, form: str) -> None:
    path = REAL / name
    if not path.is_file():
        pytest.skip(f"the real rows are not here: {path}")
    assert yfcc100m.recognise(path) == form
    found = read_all(yfcc100m, path)
    assert all(isinstance(outcome, Record) for outcome in found)
    records = [outcome for outcome in found if isinstance(outcome, Record)]
    assert [record.url for record in records] == [
        f"{BUCKET}/fe4/f6a/fe4f6abc6b66599d9db946ca15cb466b.jpg",
        f"{BUCKET}/626/a24/626a245df15cab2cba4959cd81c8e2d2.jpg",
        f"{BUCKET}/bd5/4c9/bd54c95793f88ce7c8dbfb2e4bb967d9.jpg",
        f"{BUCKET}/db5/5c1/db55c17e1b482f75c301831f69e9136.jpg",
    ]
    assert [record.captions[0].text[:30] for record in records] == [
        "This gnome just appeared three",
        "Team Muppet Show",
        "This scene greeted me on the w",
        "Photographer: Johnstone O'Shan",
    ]
    assert [record.captions[0].otherwise and record.captions[0].otherwise.text for record in records] == [
        "Gnome",
        None,
        "Sunlight through the morning fog",
        "0601 Young man",
    ]
    assert [record.license for record in records] == [
        "CC-BY-NC-2.0",
        "CC-BY-2.0",
        "CC-BY-NC-ND-2.0",
        "CC-BY-2.0",
    ]
    assert [record.attribution for record in records] == [
        "jhf, http://www.flickr.com/photos/30302697@N00/7088065/",
        "MDG26, http://www.flickr.com/photos/17143211@N00/343224206/",
        "Indigo Skies Photography, http://www.flickr.com/photos/61048402@N08/6325727670/",
        "GSofV, http://www.flickr.com/photos/93003266@N04/10642543105/",
    ]


def test_openais_list_of_ids_is_no_file_of_ours() -> None:
    path = REAL / "yfcc100m_subset_data.3col.DERIVED.tsv"
    if not path.is_file():
        pytest.skip(f"the real rows are not here: {path}")
    assert yfcc100m.recognise(path) is None


# --- how the files are made ---


def line_23(photo: dict[str, str]) -> bytes:
    return "\t".join(photo.values()).encode() + b"\n"


def line_25(photo: dict[str, str], hash: str = HASH) -> bytes:
    id, *others = photo.values()
    return "\t".join(["0", id, hash, *others]).encode() + b"\n"


def written(folder: Path, form: str, photos: Iterable[dict[str, str]]) -> Path:
    path = folder / f"of {form}"
    if form == "sqlite":
        path.unlink(missing_ok=True)
        build(path, TABLE, [[*photo.values()] for photo in photos])
    else:
        with path.open("wb") as file:
            file.writelines(map(line_25 if form == "25" else line_23, photos))
    return path


def build(path: Path, schema: str, rows: Sequence[Sequence[Any]]) -> None:
    database = sqlite3.connect(path)
    database.executescript(schema)
    if rows:
        places = ", ".join("?" * len(PHOTO))
        database.executemany(f"INSERT INTO yfcc100m_dataset VALUES ({places})", rows)
    database.commit()
    database.close()


def subset(folder: Path, *rows: Any) -> Path:
    path = folder / "file"
    path.write_bytes(b"".join(json.dumps(row).encode() + b"\n" for row in rows))
    return path


def summary(outcomes: Iterable[Outcome]) -> list[tuple[int, Reason | None]]:
    return [
        (outcome.row, outcome.reason) if isinstance(outcome, Rejected) else (outcome.captions[0].row, None)
        for outcome in outcomes
    ]
