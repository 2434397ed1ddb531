import bz2
import csv
import gzip
import io
import itertools
import json
import math
import tempfile
import tracemalloc
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from pmd.records import Caption, Reason, Record, Rejected, url_key
from pmd.sources import table
from pmd.sources.part import ROW_BYTES, Part
from tests.reading import Outcome, check_laws, read_all, read_parts

REAL = Path(__file__).parents[2] / "shared" / "real" / "alt_text" / "test_1000.parquet"

Row = dict[str, Any]
CAT: Row = {"url": "https://a.example/cat.jpg", "caption": 'A "cat", asleep'}
DOG: Row = {"url": "http://a.example/dog.jpg?a=1&b=é", "caption": 'A dog\tand\nits 5" bone'}
EGG: Row = {"url": "https://b.example/egg.jpg", "caption": "An egg"}


def parquet(rows: list[Row], **options: Any) -> bytes:
    file = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), file, **options)
    return file.getvalue()


def delimited(rows: list[Row], delimiter: str, quoting: Any = csv.QUOTE_MINIMAL) -> bytes:
    file = io.StringIO(newline="")
    writer = csv.DictWriter(file, [*rows[0]], delimiter=delimiter, quoting=quoting, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return file.getvalue().encode()


def tsv(rows: list[Row]) -> bytes:
    return "".join("\t".join(map(str, row)) + "\n" for row in [[*rows[0]], *map(dict.values, rows)]).encode()


def jsonl(rows: list[Row]) -> bytes:
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


def json_columns(rows: list[Row]) -> bytes:
    return json.dumps({name: [row[name] for row in rows] for name in rows[0]}).encode()


FORMS = {
    "parquet": parquet,
    "csv": lambda rows: delimited(rows, ","),
    "quoted tsv": lambda rows: delimited(rows, "\t"),
    "tsv": tsv,
    "jsonl": jsonl,
    "json array": lambda rows: json.dumps(rows, indent=1).encode(),
    "json columns": json_columns,
}
TEXT_FORMS = sorted({*FORMS} - {"parquet"})


# --- every form ---


@pytest.mark.parametrize(
    ("form", "packing"),
    [("parquet", "plain"), *itertools.product(TEXT_FORMS, ["plain", "gz", "bz2", "zst"])],
)
def test_a_row_becomes_a_record_in_every_form_and_packing(tmp_path: Path, form: str, packing: str) -> None:
    rows = [CAT, EGG] if form == "tsv" else [CAT, DOG, EGG]
    content = FORMS[form](rows)
    if packing != "plain":
        content = PACK[packing](content)
    path = write(tmp_path, content)
    assert table.recognise(path) == form
    assert read_all(table, path) == [
        Record(url_key("table", row["url"]), row["url"], (Caption(row["caption"], number),))
        for number, row in enumerate(rows)
    ]


PACK = {
    "gz": gzip.compress,
    "bz2": bz2.compress,
    "zst": lambda content: pa.compress(content, "zstd", asbytes=True),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"url": ""}, Reason.INPUT_NO_IMAGE),
        ({"url": "cat.jpg"}, Reason.INPUT_BAD_URL),
        ({"caption": ""}, Reason.INPUT_NO_CAPTION),
        ({"caption": " "}, Reason.INPUT_NO_CAPTION),
    ],
)
def test_a_row_without_url_or_caption_is_rejected_alone(
    tmp_path: Path, form: str, fields: Row, reason: Reason
) -> None:
    content = FORMS[form]([CAT, CAT | fields, EGG])
    assert summary(read(tmp_path, content)) == [(0, None), (1, reason), (2, None)]


@pytest.mark.parametrize("form", FORMS)
def test_every_row_of_a_file_without_the_wanted_columns_says_so(tmp_path: Path, form: str) -> None:
    rules = table.Rules.model_validate({"columns": {"url": "href"}})
    found = read(tmp_path, FORMS[form]([CAT, EGG]), rules)
    assert summary(found)[:2] == [(0, Reason.INPUT_MALFORMED), (1, Reason.INPUT_MALFORMED)] or (
        form == "json columns" and len(found) == 2
    )
    assert isinstance(found[0], Rejected) and found[0].detail.startswith("no url column: expected ['href'], ")


@pytest.mark.parametrize("form", FORMS)
def test_columns_may_have_any_names_and_order(tmp_path: Path, form: str) -> None:
    rows = [
        {"words": row["caption"], "n": number, "where": row["url"]} for number, row in enumerate([CAT, EGG])
    ]
    rules = table.Rules.model_validate({"columns": {"url": "where", "caption": "words"}})
    assert read(tmp_path, FORMS[form](rows), rules) == read(tmp_path, FORMS[form]([CAT, EGG]))


# --- roles ---


def test_all_roles_are_filled(tmp_path: Path) -> None:
    row = CAT | {
        "id": "cat_1-a",
        "lic": "CC-by-4.0",
        "lic_url": "https://a.example/licence",
        "who": "Ann &amp; Bo",
        "n": 7,
        "score": 0.5,
        "tags": ["a", "é"],
        "none": None,
    }
    rules = table.Rules.model_validate(
        {
            "columns": {
                "key": "id",
                "license": "lic",
                "license_url": "lic_url",
                "attribution": "who",
                "meta": ["n", "score", "tags", "none", "absent"],
            },
            "decode": {"attribution": "html"},
        }
    )
    expected = Record(
        "table-cat_1-a",
        CAT["url"],
        (Caption(CAT["caption"], 0),),
        "CC-BY-4.0",
        "https://a.example/licence",
        "Ann & Bo",
        '{"n":7,"score":0.5,"tags":"[\\"a\\", \\"é\\"]"}',
    )
    for form in ("parquet", "jsonl", "json array"):
        assert read(tmp_path, FORMS[form]([row]), rules) == [expected]


@pytest.mark.parametrize(
    ("id", "key"),
    [
        ("abc-1_2", "table-abc-1_2"),
        ("0" * 88, "table-" + "0" * 88),
        ("0" * 89, url_key("table", "0" * 89)),
        ("ABC", url_key("table", "ABC")),
        ("a b", url_key("table", "a b")),
        (12, "table-12"),
        (12.0, "table-12"),
        (None, url_key("table", CAT["url"])),
        ("", url_key("table", CAT["url"])),
        (math.nan, url_key("table", CAT["url"])),
    ],
)
def test_an_id_makes_the_key_where_it_can(tmp_path: Path, id: Any, key: str) -> None:
    rules = table.Rules.model_validate({"columns": {"key": "id"}})
    (found,) = read(tmp_path, parquet([CAT | {"id": id}]), rules)
    assert isinstance(found, Record) and found.key == key


@pytest.mark.parametrize(
    ("license", "expected"),
    [
        ("https://creativecommons.org/licenses/by-sa/3.0/", ("CC-BY-SA-3.0", True, None)),
        ("http://creativecommons.org/publicdomain/zero/1.0/", ("CC0-1.0", True, None)),
        ("https://creativecommons.org/publicdomain/mark/1.0/", ("CC-PDM-1.0", True, None)),
        ("cc0-1.0", ("CC0-1.0", False, None)),
        ("?", (None, False, None)),
        ("all rights reserved", (None, False, '{"license":"all rights reserved"}')),
        ("", (None, False, None)),
        (None, (None, False, None)),
    ],
)
def test_a_licence_is_an_id_an_address_or_other_words(tmp_path: Path, license: Any, expected: Any) -> None:
    (found,) = read(tmp_path, jsonl([CAT | {"license": license}]))
    assert isinstance(found, Record)
    assert (found.license, found.license_url == license and bool(license), found.meta) == expected


def test_other_caption_columns_are_taken_otherwise(tmp_path: Path) -> None:
    rows = [
        {"URL": "https://a.example/", "top_caption": "Top", "TEXT": "Alt"},
        {"URL": "https://a.example/", "top_caption": " ", "TEXT": "Alt"},
        {"URL": "https://a.example/", "top_caption": "Top", "TEXT": ""},
    ]
    found = read(tmp_path, parquet(rows), table.Rules(preset="laion_coco"))
    assert [each.captions for each in found if isinstance(each, Record)] == [
        (Caption("Top", 0, "top_caption", otherwise=Caption("Alt", 0, "TEXT")),),
        (Caption("Alt", 1, "TEXT"),),
        (Caption("Top", 2, "top_caption"),),
    ]


@pytest.mark.parametrize("form", ["parquet", "jsonl", "json array", "json columns"])
def test_a_list_of_texts_is_as_many_captions(tmp_path: Path, form: str) -> None:
    rows = [CAT | {"caption": ["One", "", "Three"]}, CAT | {"caption": []}, CAT | {"caption": ["Four"]}]
    first, none, last = read(tmp_path, FORMS[form](rows))
    assert isinstance(first, Record) and isinstance(last, Record)
    assert first.captions == (Caption("One", 0, "caption.0"), Caption("Three", 0, "caption.2"))
    assert isinstance(none, Rejected) and none.reason is Reason.INPUT_NO_CAPTION
    assert last.captions == (Caption("Four", 2, "caption.0"),)


@pytest.mark.parametrize("cell", [{"a": 1}, [["a"]], True, [1.5, {}]])
@pytest.mark.parametrize("role", ["url", "caption"])
def test_a_cell_that_is_no_text_is_malformed(tmp_path: Path, role: str, cell: Any) -> None:
    found = read(tmp_path, jsonl([CAT, CAT | {role: cell}, EGG]))
    assert summary(found) == [(0, None), (1, Reason.INPUT_MALFORMED), (2, None)]


@pytest.mark.parametrize(
    ("decoding", "url", "caption"),
    [
        ("none", "https%3A%2F%2Fa.example%2F%2Bcat", "a+%22cat%22 &amp; %C3"),
        ("url-plus", "https://a.example/+cat", 'a "cat" &amp; \ufffd'),
        ("html", "https%3A%2F%2Fa.example%2F%2Bcat", "a+%22cat%22 & %C3"),
    ],
)
def test_texts_are_decoded_once_where_the_rules_say_how(
    tmp_path: Path, decoding: str, url: str, caption: str
) -> None:
    row = {"url": "https%3A%2F%2Fa.example%2F%2Bcat", "caption": "a+%22cat%22 &amp; %C3"}
    rules = table.Rules.model_validate({"decode": {"url": "url-plus", "caption": decoding}})
    for form in ("csv", "tsv", "jsonl", "parquet"):
        (found,) = read(tmp_path, FORMS[form]([row]), rules)
        assert isinstance(found, Record)
        assert (found.url, found.captions[0].text) == ("https://a.example/+cat", caption)


@pytest.mark.parametrize(
    ("preset", "columns", "caption"),
    [
        (
            "laion",
            {"SAMPLE_ID": 1.0, "URL": 0, "TEXT": 1, "HEIGHT": 9, "LICENSE": "?", "similarity": 0.3},
            None,
        ),
        ("relaion", {"url": 0, "caption": 1, "similarity": 0.3, "key": "a"}, None),
        ("laion_coco", {"URL": 0, "TEXT": "alt", "top_caption": 1, "all_captions": ["a"]}, "top_caption"),
        ("coyo", {"id": 841814333321, "url": 0, "text": 1, "width": 9, "image_phash": "f"}, None),
        (
            "datacomp",
            {"uid": "0" * 32, "url": 0, "text": 1, "sha256": "f" * 64, "face_bboxes": [[0.1]]},
            None,
        ),
        ("pixelprose", {"uid": "a", "url": 0, "original_caption": "b", "vlm_caption": 1}, "vlm_caption"),
        ("pd12m", {"id": "a", "url": 0, "caption": 1, "hash": "b", "license": "https://a.example/l"}, None),
    ],
)
def test_the_columns_of_published_corpora_are_known(
    tmp_path: Path, preset: Any, columns: Row, caption: str | None
) -> None:
    row = {
        name: {0: CAT["url"], 1: "A cat"}.get(value, value) if type(value) is int else value
        for name, value in columns.items()
    }
    (found,) = read(tmp_path, parquet([row]), table.Rules(preset=preset))
    assert isinstance(found, Record)
    assert (found.key, found.url) == (url_key("table", CAT["url"]), CAT["url"])
    assert (found.captions[0].text, found.captions[0].id) == ("A cat", caption)
    ids = {name: value for name, value in row.items() if name in ("id", "uid", "sha256", "hash")}
    assert json.loads(found.meta or "{}") == ids
    assert found.license_url == row.get("license")


def test_rules_that_name_no_such_preset_role_or_encoding_are_errors() -> None:
    for wrong in ({"preset": "laion9"}, {"columns": {"urls": "a"}}, {"decode": {"url": "rot13"}}):
        with pytest.raises(ValidationError):
            table.Rules.model_validate(wrong)


# --- csv and tsv ---


def test_without_a_header_columns_have_numbers(tmp_path: Path) -> None:
    rules = table.Rules.model_validate({"columns": {"url": "1", "caption": "0"}})
    lines = b"A cat\thttps://a.example/1\nA dog\thttps://a.example/2\n"
    for content in (lines, lines.replace(b"\t", b","), b'"A cat, asleep",https://a.example/1\n'):
        found = read(tmp_path, content, rules)
        assert [each.url for each in found if isinstance(each, Record)] == [
            f"https://a.example/{number}" for number in range(1, len(found) + 1)
        ]
    assert len(read(tmp_path, lines)) == 2
    assert {each.reason for each in read(tmp_path, lines) if isinstance(each, Rejected)} == {
        Reason.INPUT_MALFORMED
    }


def test_the_rows_of_a_tsv_are_the_same_however_it_is_cut(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [{"url": f"https://a.example/{number}", "caption": f"Cat {number}"} for number in range(200)]
    for form in ("tsv", "jsonl"):
        path = write(tmp_path, FORMS[form](rows))
        whole = read_all(table, path)
        assert len(whole) == 200
        cut = table.line_parts
        monkeypatch.setattr(
            table, "line_parts", lambda paths, form, cut=cut: cut(paths, form, part_bytes=500)
        )
        assert len(table.parts([path])) > 5
        assert read_all(table, path) == whole
        monkeypatch.undo()


@pytest.mark.parametrize("form", ["csv", "tsv", "jsonl"])
def test_a_byte_order_mark_is_no_part_of_the_first_name(tmp_path: Path, form: str) -> None:
    content = FORMS[form]([CAT, EGG])
    assert read(tmp_path, b"\xef\xbb\xbf" + content) == read(tmp_path, content)
    assert read(tmp_path, content.replace(b"\n", b"\r\n")) == read(tmp_path, content)


@pytest.mark.parametrize(
    ("content", "form"),
    [
        ('url\tcaption\nhttps://a.example/\tthe "best" cat\n', "tsv"),
        ('url\tcaption\nhttps://a.example/\t"best" cat\n', "tsv"),
        ('url\tcaption\nhttps://a.example/\t"best cat"\n', "tsv"),
        ('url\tcaption\nhttps://a.example/\t"best\tcat"\n', "quoted tsv"),
        ('url\tcaption\nhttps://a.example/\t"best\ncat"\n', "quoted tsv"),
        ('url\tcaption\nhttps://a.example/\t"the ""best"" cat"\n', "quoted tsv"),
        ('"url"\t"caption"\n"https://a.example/"\t"best cat"\n', "quoted tsv"),
        ("url,caption\nhttps://a.example/,a cat\n", "csv"),
        ('https://a.example/,"a cat, asleep"\n', "csv"),
        ('url\tcaption\nhttps://a.example/\t"best\tcat"\n"a"b\nhttps://a.example/\t"a\tb"\n', "quoted tsv"),
        ("url\tcaption\n" + 'https://a.example/\t"best" cat\n' * 9 + 'https://a.example/\t"a\nb"\n', "tsv"),
        ('"url"\t"caption"\r\n' + '"https://a.example/"\t"best cat"\r\n' * 9_000, "quoted tsv"),
        ('"url"\t"caption"\r\n' + '"https://a.example/"\t"best\ncat"\r\n' * 9_000, "quoted tsv"),
        ("url\tcaption\r\n" + 'https://a.example/\ta "best" cat\r\n' * 9_000, "tsv"),
        ("url\tcaption\n", None),
        ('https://a.example/,"a\tcat"\nhttps://a.example/,cat\n', "csv"),
        ("https://a.example/\n", None),
        ("Dear Sir,\nsee https://a.example/, or not\n", None),
        ('{"url": "https://a.example/"}\n{"url": 1}', "jsonl"),
        ('{"url": "https://a.example/", "caption": ["a"]}', "jsonl"),
        ('{"text": ["a"]}\n{"text": ["b"]}\n', "jsonl"),
        ('{"id": 1, "regions": []}', None),
        ('[{"url": "https://a.example/"}]', "json array"),
        ('\n [\n {"url"', "json array"),
        ("[1, 2]", None),
        ('{"image_urls": ["https://a.example/"], "captions": ["a"]}', "json columns"),
        ('{\n "captions" : [\n "a", ' + '"b",' * 50_000, "json columns"),
        ('{"info": {"year": 2017}, "images": [{"id": 1}]}', None),
        ('{"images": [{"id": 1}]}', None),
        ("<html><body>https://a.example/, and\tmore</body></html>", None),
        ("PAR1 and nothing else", "parquet"),
        ("", None),
    ],
)
def test_the_content_tells_the_form(tmp_path: Path, content: str, form: str | None) -> None:
    assert table.recognise(write(tmp_path, content.encode())) == form


@pytest.mark.parametrize("form", ["csv", "tsv", "quoted tsv"])
def test_a_row_of_too_many_or_few_fields_is_malformed(tmp_path: Path, form: str) -> None:
    delimiter = "," if form == "csv" else "\t"
    lines = FORMS[form]([CAT, EGG]).split(b"\n")
    for line in (b"", b"https://a.example/", delimiter.join(["https://a.example/"] * 3).encode(), b"\xff,\t"):
        found = read(tmp_path, b"\n".join([*lines[:2], line, *lines[2:]]))
        assert summary(found) == [(0, None), (1, Reason.INPUT_MALFORMED), (2, None)]


# --- json ---


@pytest.mark.parametrize("line", ["", "{", "[]", "null", "5", '{"url": "\\ud800"}', "[" * 5_000, "NaN"])
def test_a_line_that_is_no_object_is_malformed(tmp_path: Path, line: str) -> None:
    content = jsonl([CAT, EGG]).replace(b"\n", f"\n{line}\n".encode(), 1)
    assert summary(read(tmp_path, content)) == [(0, None), (1, Reason.INPUT_MALFORMED), (2, None)]


def test_lists_of_different_length_leave_rows_without_one(tmp_path: Path) -> None:
    content = json.dumps({"url": [CAT["url"]] * 3, "n": [1], "caption": ["A cat"]}).encode()
    assert summary(read(tmp_path, content)) == [
        (0, None),
        (1, Reason.INPUT_NO_CAPTION),
        (2, Reason.INPUT_NO_CAPTION),
    ]


@pytest.mark.parametrize("form", ["json array", "json columns"])
def test_cut_json_is_read_as_far_as_it_goes_and_its_rest_is_one_row(tmp_path: Path, form: str) -> None:
    rows = [{"url": f"https://a.example/{number}", "caption": "A cat"} for number in range(5)]
    content = FORMS[form](rows)
    whole = read(tmp_path, content)
    for cut in range(1, len(content)):
        found = read(tmp_path, content[:cut], form=form)
        *kept, last = found
        assert isinstance(last, Rejected) and last.reason is Reason.INPUT_MALFORMED
        kept = [outcome for outcome in kept if isinstance(outcome, Record)]
        assert kept == whole[: len(kept)]
        check_laws(found, "table")


def test_sbus_three_lists_are_columns(tmp_path: Path) -> None:
    content = {"image_urls": [CAT["url"]], "user_ids": ["1@N00"], "captions": ["A cat "]}
    (found,) = read(tmp_path, json.dumps(content).encode())
    assert isinstance(found, Record) and found.captions == (Caption("A cat ", 0),)


# --- parquet ---


def test_parts_are_row_groups_and_small_ones_share_one(tmp_path: Path) -> None:
    rows = [{"url": f"https://a.example/{number}", "caption": "A cat"} for number in range(1_000)]
    path = write(tmp_path, parquet(rows, row_group_size=300))
    assert table.parts([path]) == [Part(str(path), "parquet", None, 0, 4)]
    single = [Part(str(path), "parquet", None, group, group + 1) for group in range(4)]
    numbered = [[*table.read(part, table.Rules())] for part in single]
    assert [len(outcomes) for outcomes in numbered] == [300, 300, 300, 100]
    for outcomes in numbered:
        check_laws(outcomes, "table")
    urls = [each.url for outcomes in numbered for each in outcomes if isinstance(each, Record)]
    assert urls == [row["url"] for row in rows]

    count = 450_000
    large = pa.table({"url": pa.repeat("https://a.example/", count), "caption": pa.repeat("A cat", count)})
    pq.write_table(large, path, row_group_size=50_000)
    assert [(part.start, part.stop) for part in table.parts([path])] == [(0, 4), (4, 8), (8, 9)]


def test_cells_of_many_types_are_read(tmp_path: Path) -> None:
    urls = pa.array([CAT["url"], None, EGG["url"]])
    captions = pa.array(["A cat", "A dog", "An egg"])
    expected = [(0, None), (1, Reason.INPUT_NO_IMAGE), (2, None)]
    for type_ in (pa.large_string(), pa.binary(), pa.string_view(), pa.dictionary(pa.int32(), pa.string())):
        path = tmp_path / "file"
        pq.write_table(pa.table({"url": urls.cast(type_), "caption": captions.cast(type_)}), path)
        assert summary(read_all(table, path)) == expected


def test_a_cell_that_cannot_be_shown_costs_its_row(tmp_path: Path) -> None:
    path = tmp_path / "file"
    captions = pa.array([b"A cat", b"caf\xe9", b"An egg"])
    for column in (captions, captions.view(pa.string())):
        pq.write_table(pa.table({"url": pa.repeat(CAT["url"], 3), "caption": column}), path)
        assert summary(read_all(table, path)) == [(0, None), (1, Reason.INPUT_MALFORMED), (2, None)]
    rules = table.Rules.model_validate({"columns": {"meta": "when"}})
    when = pa.array([0, 2**62, 0], pa.timestamp("us"))
    pq.write_table(
        pa.table({"url": pa.repeat(CAT["url"], 3), "caption": pa.repeat("A cat", 3), "when": when}), path
    )
    assert summary(read_all(table, path, rules=rules)) == [(0, None), (1, Reason.INPUT_MALFORMED), (2, None)]


def test_a_row_over_a_mebibyte_is_malformed(tmp_path: Path) -> None:
    rows = [CAT, CAT | {"caption": "x" * ROW_BYTES}, CAT | {"caption": "x" * (ROW_BYTES - 100)}, EGG]
    found = read(tmp_path, parquet(rows))
    assert summary(found) == [(0, None), (1, Reason.INPUT_MALFORMED), (2, None), (3, None)]
    lists = [CAT | {"caption": ["x" * 600_000, "y" * 600_000]}, CAT | {"caption": ["x"]}]
    assert summary(read(tmp_path, parquet(lists))) == [(0, Reason.INPUT_MALFORMED), (1, None)]


def test_a_row_group_that_claims_too_much_is_one_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path, parquet([CAT] * 10 + [EGG] * 2, row_group_size=10))
    monkeypatch.setattr(table, "_GROUP_ROWS", 5)
    assert summary(read_all(table, path)) == [(0, Reason.INPUT_MALFORMED), (1, None), (2, None)]
    monkeypatch.setattr(table, "_GROUP_BYTES", 5)
    assert summary(read_all(table, path)) == [(0, Reason.INPUT_MALFORMED), (1, Reason.INPUT_MALFORMED)]


def test_a_damaged_row_group_costs_its_own_rows(tmp_path: Path) -> None:
    rows = [{"url": f"https://a.example/{number * 7919}", "caption": "A cat"} for number in range(900)]
    content = bytearray(parquet(rows, row_group_size=300, compression="gzip", use_dictionary=False))
    metadata = pq.read_metadata(io.BytesIO(content))
    start = metadata.row_group(1).column(0).data_page_offset
    content[start + 60 : start + 90] = bytes(30)
    found = summary(read(tmp_path, bytes(content)))
    assert found[:300] == [(row, None) for row in range(300)]
    assert [row for row, _ in found] == list(range(len(found)))
    assert Reason.INPUT_MALFORMED in {reason for _, reason in found[300:-300]}
    assert {reason for _, reason in found[-300:]} == {None}


def test_a_row_group_of_any_size_is_read_in_bounded_memory(tmp_path: Path) -> None:
    path = tmp_path / "file"
    count = 100_000
    urls = pa.array([f"https://a.example/{number}.jpg" for number in range(count)])
    captions = pa.array([f"The cat with the number {number} is asleep" for number in range(count)])
    pq.write_table(
        pa.table({"url": urls, "caption": captions, "blob": captions}),
        path,
        row_group_size=count,
        use_dictionary=False,
    )
    pool = pa.default_memory_pool()
    del urls, captions
    before = pool.bytes_allocated()
    most = rows = 0
    tracemalloc.start()
    for part in table.parts([path]):
        for _ in table.read(part, table.Rules()):
            rows += 1
            if rows % 1_000 == 0:
                most = max(most, pool.bytes_allocated() - before)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert rows == count
    assert most + peak < 4 << 20


REAL_LIKE = [
    {
        "url": f"https://a.example/{number}.jpg",
        "caption": None if number % 7 == 3 else f"Cat {number}",
        "n": number,
    }
    for number in range(60)
]
PARQUETS = [
    parquet(
        REAL_LIKE,
        row_group_size=25,
        compression=compression,
        use_dictionary=dictionary,
        data_page_version=version,
    )
    for compression, dictionary, version in [
        ("none", True, "1.0"),
        ("snappy", True, "2.0"),
        ("gzip", False, "1.0"),
        ("zstd", False, "2.0"),
        ("lz4", True, "1.0"),
        ("brotli", False, "2.0"),
    ]
]


@settings(max_examples=400, deadline=None, derandomize=True)
@given(
    content=st.sampled_from(PARQUETS),
    flips=st.lists(st.tuples(st.integers(0, 8_000), st.integers(0, 255)), min_size=1, max_size=6),
    cut=st.sampled_from([0, 0, 0, 1, 8, 500]),
)
def test_a_parquet_file_with_flipped_bytes_is_rows_never_an_exception(
    content: bytes, flips: list[tuple[int, int]], cut: int
) -> None:
    damaged = bytearray(content[: len(content) - cut])
    for place, value in flips:
        damaged[-1 - place % len(damaged)] = value
    with tempfile.TemporaryDirectory() as folder:
        path = write(Path(folder), bytes(damaged))
        table.recognise(path)
        for part in [*table.parts([path]), Part(str(path), "parquet")]:
            check_laws([*table.read(part, table.Rules())], "table")


# --- any rows, in any form ---

CELLS = st.text(st.sampled_from('aé,"\t\n\u2028 :'), max_size=6) | st.sampled_from(
    ["https://a.example/1", "http://b.example/é", "A cat", '{"a":1}', "5"]
)
ROWS = st.lists(
    st.fixed_dictionaries({"url": CELLS, "caption": CELLS, "other": CELLS}), min_size=1, max_size=6
)


@pytest.mark.parametrize("form", ["parquet", "csv", "quoted tsv", "jsonl", "json array", "json columns"])
@settings(max_examples=60, deadline=None, derandomize=True)
@given(rows=ROWS)
def test_any_rows_are_read_as_they_were_written(form: str, rows: list[Row]) -> None:
    rows = [CAT | {"other": 'a\t""'}, *rows]
    with tempfile.TemporaryDirectory() as folder:
        found = read(Path(folder), FORMS[form](rows), form=form)
    check_laws(found, "table")
    assert len(found) == len(rows)
    for row, outcome in zip(rows, found, strict=True):
        readable = row["url"].startswith("http") and row["caption"].strip()
        assert isinstance(outcome, Record) == bool(readable)
        if isinstance(outcome, Record):
            assert (outcome.url, outcome.captions[0].text) == (row["url"], row["caption"])


DAMAGE = st.sampled_from(
    [b'"', b"\n", b"\t", b",", b"\xff", b"\0", b"{", b"]", b'":', b"[" * 200, b"9" * 400]
)
RULES = [
    table.Rules(),
    table.Rules(preset="laion"),
    table.Rules.model_validate(
        {
            "columns": {
                "url": ["url", "0"],
                "caption": ["caption", "1"],
                "key": "other",
                "license": "other",
                "attribution": "other",
                "meta": ["other", "url"],
            },
            "decode": {"caption": "url-plus", "url": "html"},
        }
    ),
]


@pytest.mark.parametrize("form", TEXT_FORMS)
@settings(max_examples=100, deadline=None, derandomize=True)
@given(
    rows=ROWS,
    damage=st.lists(st.tuples(st.integers(0, 600), DAMAGE), max_size=4),
    packing=st.sampled_from(["plain", "gz", "bz2"]),
    cut=st.integers(0, 40),
    rules=st.sampled_from(RULES),
)
def test_whatever_is_damaged_every_row_has_an_outcome(
    form: str, rows: list[Row], damage: list[tuple[int, bytes]], packing: str, cut: int, rules: Any
) -> None:
    content = FORMS[form]([*rows, CAT | {"other": ""}])
    for place, piece in damage:
        place %= len(content)
        content = content[:place] + piece + content[place:]
    content = PACK[packing](content) if packing != "plain" else content
    content = content[: len(content) - cut]
    with tempfile.TemporaryDirectory() as folder:
        check_laws(read(Path(folder), content, rules, form=form), "table")
        path = write(Path(folder), content)
        table.recognise(path)
        for outcomes in read_parts(table, path, rules=rules):
            check_laws(outcomes, "table")


# --- published rows ---


def test_published_alt_texts_are_read() -> None:
    if not REAL.is_file():
        pytest.skip(f"the real rows are not here: {REAL}")
    assert table.recognise(REAL) == "parquet"
    found = read_all(table, REAL)
    assert len(found) == 1_000
    assert all(
        type(outcome) is type(other)
        for outcome, other in zip(
            found, read_all(table, REAL, rules=table.Rules(preset="laion")), strict=True
        )
    )
    expected = pq.read_table(REAL).to_pylist()
    for row, outcome in zip(expected, found, strict=True):
        if isinstance(outcome, Record):
            assert (outcome.url, outcome.captions[0].text) == (row["URL"], row["TEXT"])
        else:
            assert not row["TEXT"] or not row["TEXT"].strip()
    assert sum(isinstance(outcome, Record) for outcome in found) > 990


def read(folder: Path, content: bytes, rules: Any = None, form: str | None = None) -> list[Outcome]:
    """The outcomes of a file; form: as if it had been recognised as this."""
    path = write(folder, content)
    if form is None:
        return read_all(table, path, rules=rules)
    return [*table.read(Part(str(path), form), rules or table.Rules())]


def write(folder: Path, content: bytes) -> Path:
    path = folder / "file"
    path.write_bytes(content)
    return path


def summary(outcomes: list[Outcome]) -> list[tuple[int, Reason | None]]:
    return [
        (outcome.row, outcome.reason) if isinstance(outcome, Rejected) else (outcome.captions[0].row, None)
        for outcome in outcomes
    ]
