"""The laws of pmd/report/table.py and sources.py, and of `pmd report`: every figure stands next to what was
expected of it, and every reason is named.
"""

import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from rich.table import Table

from pmd.manifest import AnnotationFile, Edition, ImageArchive, Paper, Source
from pmd.report.sources import describe_source, size_of, sources_table
from pmd.report.table import comparison, corpus_table, reasons_table, within
from pmd.tables import Counts
from tests.small import Small, pmd, pmd_json, publish
from tests.web import Web


def text(table: Table, *, width: int = 240) -> str:
    file = io.StringIO()
    Console(file=file, width=width, color_system=None).print(table)
    return file.getvalue()


def cells(table: Table, name: str) -> list[str]:
    """The cells of the line that begins with a name."""
    lines = [line.replace("┃", "│").split("│") for line in text(table).splitlines()]
    (line,) = [line for line in lines if len(line) > 1 and line[1].strip() == name]
    return [cell.strip() for cell in line[1:-1]]


def told(
    *, rows: int = 100, planned_pairs: int = 90, words: float | None = 10.0, **more: Any
) -> dict[str, Any]:
    """One source as build prints it: 20 rows dropped, a pair a kept row."""
    counts = Counts(
        rows=rows,
        kept=rows - 20,
        planned_pairs=planned_pairs,
        pairs=0 if words is None else rows - 20,
        images=rows // 2,
        words=0 if words is None else round(words * (rows - 20)),
        dropped=(("caption_short", 5), ("http_404", 15)),
    )
    return counts.as_json() | {"expected": {}} | more


# Whether a figure is as expected


@pytest.mark.parametrize(
    ("span", "is_within"),
    [([100, 100], True), ([99, 100], True), ([100, 101], True), ([101, 200], False), ([0, 99], False)],
)
def test_both_ends_of_a_range_are_in_it(span: list[int], is_within: bool) -> None:
    assert within(told(rows=100, expected={"rows": span})) == {"rows": is_within}
    assert within(told(planned_pairs=100, expected={"pairs": span})) == {"pairs": is_within}
    assert within(told(words=100, expected={"words_per_caption": span})) == {"words_per_caption": is_within}


def test_pairs_are_judged_before_the_web_has_lost_any() -> None:
    source = told(rows=100, planned_pairs=90, expected={"pairs": [90, 90]})
    assert source["pairs"] == 80 and within(source) == {"pairs": True}


def test_nothing_is_judged_of_which_nothing_is_expected_or_known() -> None:
    assert within(told()) == {}
    assert within(told(expected={"paper": {"pairs": 1, "words_per_caption": 1.0}})) == {}
    spans = {"rows": [1, 1], "pairs": [90, 90], "words_per_caption": [10, 10]}
    assert within(told(expected=spans, words=None)) == {"rows": False, "pairs": True}, "no caption is left"


def test_figures_of_a_part_are_not_held_against_the_whole() -> None:
    """As `pmd report` has them while a build goes on."""
    expected = {"rows": [1000, 1000]}
    part = {"planned": True, "tasks": 3, "finished": {"raw": 3, "filter": 3, "shards": 2}}
    assert within(told(expected=expected) | part) == {}
    assert within(told(expected=expected, planned=False, tasks=0, finished={"shards": 0})) == {}
    whole = part | {"finished": {"raw": 0, "filter": 0, "shards": 3}}
    assert within(told(expected=expected) | whole) == {"rows": False}


# The tables


COCO = told(
    rows=600_000,
    planned_pairs=590_000,
    expected={
        "paper": {"pairs": 900_000, "words_per_caption": 12.4},
        "rows": [616_435, 616_767],
        "pairs": [500_000, 1_500_000],
        "words_per_caption": [10, 11.5],
    },
)


def test_each_figure_stands_next_to_the_expected_one_and_is_marked_where_it_is_not_within() -> None:
    table = comparison({"coco": COCO, "table": told()}, title="")
    assert cells(table, "coco") == [
        *("coco", "600,000 !", "616.4k-616.8k", "590,000", "500k-1.5M", "599,980", "0.9M"),
        *("300,000", "10.0", "10-11.5", "12.4"),
    ]


def test_a_source_of_which_nothing_is_expected_has_its_figures_and_no_marks() -> None:
    table = comparison({"coco": COCO, "table": told()}, title="")
    assert cells(table, "table") == ["table", "100", "-", "90", "-", "80", "-", "50", "10.0", "-", "-"]
    assert cells(comparison({"table": told(words=None)}, title=""), "table")[8] == "-"


def test_the_last_line_adds_up_and_a_mean_is_weighed_by_pairs() -> None:
    sources = {"coco": told(rows=120, words=7.0, expected=COCO["expected"]), "cc3m": told(rows=320, words=12)}
    total = cells(comparison(sources, title=""), "all")
    assert [total[place] for place in (1, 3, 5, 6, 7, 8)] == ["440", "180", "400", "0.9M", "220", "10.8"]
    assert cells(corpus_table(sources, title=""), "all") == [
        *("all", "440", "220", "400", "10.8"),
        *("", "90.9%", "40"),
    ]
    for one in (comparison, corpus_table):
        assert " all " not in text(one({"coco": sources["coco"]}, title="")), "one source is its own sum"


def test_a_range_of_one_value_is_written_once() -> None:
    for span, shown in (
        ([12_423_374, 12_423_374], "12.42M"),
        ([9_999, 9_999], "9999"),
        ([10_000, 10_000], "10k"),
        ([16.8, 17.8], "16.8-17.8"),
        ([0, 0.5], "0-0.5"),
    ):
        assert cells(comparison({"coco": told(expected={"rows": span})}, title=""), "coco")[2] == shown


def test_every_reason_is_named_with_its_rows_and_share_most_frequent_first() -> None:
    many = {f"reason_{n}": n for n in range(1, 12)}
    table = text(reasons_table({"coco": told(rows=660) | {"dropped": many}, "cc3m": told()}))
    lines = [[cell.strip() for cell in line.split("│")[1:-1]] for line in table.splitlines() if "│" in line]
    wanted = [["", f"reason_{n}", str(n), f"{n / 6.6:.1f}%"] for n in range(11, 0, -1)]
    wanted[0][0] = "coco"
    assert lines == [*wanted, ["cc3m", "http_404", "15", "15.0%"], ["", "caption_short", "5", "5.0%"]]


def test_a_narrow_screen_has_no_column_for_reasons_and_breaks_no_line() -> None:
    table = corpus_table({"localized_narratives": told()}, title="", width=80)
    lines = text(table, width=80).splitlines()
    assert len(lines) == 5 and "caption_short" not in "".join(lines)
    assert "localized_narratives" in lines[3]


def test_the_screen_at_the_end_of_a_run_sums_up_rare_reasons_without_losing_a_row() -> None:
    many = {f"reason_{n}": 2**n for n in range(9)}
    *_, shown = cells(corpus_table({"coco": told() | {"dropped": many}}, title=""), "coco")
    first, *rest = shown.split(", ")
    assert first == "reason_8 256" and rest[-1] == "6 more 63"
    assert sum(int(part.rpartition(" ")[2]) for part in (first, *rest)) == sum(many.values())
    assert cells(corpus_table({"coco": told() | {"dropped": {}}}, title=""), "coco")[-1] == "none"


def test_tables_of_nothing_can_be_drawn() -> None:
    empty = Counts().as_json() | {"expected": {}}
    assert cells(corpus_table({"coco": empty}, title=""), "coco") == [
        *("coco", "0", "0", "0", "-"),
        *("-", "-", "none"),
    ]
    assert cells(comparison({"coco": empty, "cc3m": empty}, title=""), "all")[8] == "-"
    assert text(reasons_table({"coco": empty}))


@pytest.mark.parametrize("title", ["small in /data/[old]/out", "small in /data/[/red]/out"])
def test_brackets_in_the_name_of_a_folder_are_just_that(title: str) -> None:
    for table in (corpus_table({"coco": told()}, title=title), comparison({"coco": told()}, title=title)):
        assert title in text(table)


# Sources


SHA256 = "0123456789abcdef" * 4


def source(**more: Any) -> Source:
    one, other = (
        AnnotationFile(url=f"https://a.example/{name}.zip", size=size, sha256=digest)
        for name, size, digest in (("one", 252_907_541, SHA256), ("other", None, None))
    )
    whole = Edition(
        name="whole",
        about="all of it",
        rows=(616_435, 616_767),
        pairs=(9.5, 9.5),
        words_per_caption=(10, 11.5),
        evidence="Counted by hand.",
        file=(one,),
    )
    part = Edition(name="part", about="a half", rows=(7, 7), file=(one, other))
    return Source(
        name="coco",
        title="Common Things",
        homepage="https://a.example",
        license="CC-BY-4.0",
        image_license="Each its own.",
        attribution="Name the authors.",
        cite="Somebody et al., 2014",
        paper=Paper(pairs=900_000, words_per_caption=12.4),
        edition=(whole, part),
        archive=(ImageArchive(url="https://a.example/images.zip", size=19_336_861_798, holds="the photos"),),
        **more,
    )


PIN = {
    "source": "coco",
    "edition": "part",
    "files": [{"path": "/here/one.json", "size": 12_345, "sha256": SHA256}],
}


def test_each_edition_has_a_line_that_says_whether_it_is_pinned_here() -> None:
    table = sources_table([(source(), PIN)])
    assert cells(table, "coco") == ["coco", "whole", "616,435 to 616,767", "253 MB", "CC-BY-4.0", "no"]
    assert cells(table, "") == ["", "part", "7", "over 253 MB", "", "yes"]
    assert cells(sources_table([(source(), None)]), "")[-1] == "no"


def test_a_source_is_described_by_all_that_its_manifest_says() -> None:
    lines = describe_source(source(), None).splitlines()
    assert lines == [
        "coco: Common Things",
        "  https://a.example",
        "  Somebody et al., 2014",
        "  annotations: CC-BY-4.0",
        "  images: Each its own.",
        "  attribution: Name the authors.",
        "  in the FLAVA paper: 900,000 pairs of 12.4 words",
        "  edition whole: all of it",
        "    expected: 616,435 to 616,767 rows, 9.5 pairs, 10 to 11.5 words a caption. Counted by hand.",
        f"    https://a.example/one.zip  253 MB  {SHA256}",
        "  edition part: a half",
        "    expected: 7 rows.",
        f"    https://a.example/one.zip  253 MB  {SHA256}",
        "    https://a.example/other.zip  size not published",
        "  images as an archive: https://a.example/images.zip  19.3 GB (the photos)",
        "  not pinned here: `pmd pin coco` downloads it",
    ]
    pinned = describe_source(source(), PIN).splitlines()
    assert pinned[:-2] == lines[:-1]
    assert pinned[-2:] == [
        "  pinned here: edition part",
        f"    /here/one.json  12,345 bytes  {SHA256}",
    ]


@pytest.mark.parametrize(
    ("sizes", "shown"),
    [
        ((0,), "0 bytes"),
        ((999,), "999 bytes"),
        ((1_000,), "1 kB"),
        ((999_499,), "999 kB"),
        ((999_600,), "1 MB"),
        ((2_707_204_412,), "2.71 GB"),
        ((999_500_000_000,), "1 TB"),
        ((13_000_000_000_000,), "13 TB"),
        ((400, 600), "1 kB"),
        ((400, None), "over 400 bytes"),
        ((None, None), "?"),
    ],
)
def test_a_size_is_told_in_three_digits(sizes: tuple[int | None, ...], shown: str) -> None:
    files = tuple(AnnotationFile(url=f"https://a.example/{n}", size=size) for n, size in enumerate(sizes))
    assert size_of(Edition(name="a", about="", rows=(1, 1), file=files)) == shown


# `pmd report`


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Small]:
    with Web() as web:
        yield publish(tmp_path_factory.mktemp("annotations"), web)


@pytest.fixture(scope="module")
def out(small: Small, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small corpus, built. Its coco is said to be an edition, so that its figures are held against it."""
    path = small.corpus
    path.write_text(path.read_text().replace("[source.coco]\n", '[source.coco]\nedition = "2017"\n'))
    out = tmp_path_factory.mktemp("built")
    pmd("build", path, "--out", out, "--inline")
    return out


def test_a_report_accounts_for_every_row_and_holds_figures_against_the_expected(
    small: Small, out: Path
) -> None:
    report = pmd_json("report", out)
    assert report["ok"] and report["root"] == json.loads((out / "lock.json").read_text())["root"]
    assert [*report["sources"]] == ["coco", "cc3m"]
    for name, got in report["sources"].items():
        assert got["rows"] == small.rows[name] == got["kept"] + sum(got["dropped"].values())
        assert got["dropped"] == small.dropped[name] and got["images"] == small.images[name]
        assert got["planned_pairs"] >= got["pairs"] == got["kept"]
        assert got["words_per_caption"] > 0
    coco, cc3m = report["sources"]["coco"], report["sources"]["cc3m"]
    assert coco["planned_pairs"] == coco["pairs"] + 10, "two images of five captions were lost to the web"
    assert coco["expected"]["edition"] == "2017" and coco["expected"]["paper"]["pairs"] == 900_000
    assert coco["within"]["rows"] is coco["within"]["pairs"] is False
    # Files of one's own are no published edition.
    assert [*cc3m["expected"]] == ["paper"] and cc3m["within"] == {}


def test_a_report_names_every_reason_and_the_root(small: Small, out: Path) -> None:
    said = pmd("report", out).stdout
    for dropped in small.dropped.values():
        for reason in dropped:
            assert reason in said
    assert f"root {json.loads((out / 'lock.json').read_text())['root']}" in said
    assert f"{small.rows['coco']} !" in said
    assert "coco: " in said, "where the expectations come from"


def test_a_report_of_half_a_build_holds_nothing_against_it(small: Small, out: Path, tmp_path: Path) -> None:
    for stage in ("pin", "plan"):
        pmd(stage, small.corpus, "--out", tmp_path, "--inline")
    report = pmd_json("report", tmp_path)
    assert (report["ok"], report["root"]) == (False, None)
    assert report["sources"]["coco"]["expected"]["edition"] == "2017"
    assert all(source["within"] == {} for source in report["sources"].values())
    said = pmd("report", tmp_path).stdout
    assert "not locked yet" in said and "!" not in said


def test_a_report_of_no_output_is_a_bad_request(tmp_path: Path) -> None:
    assert "is not an output of pmd" in pmd("report", tmp_path, code=2).stderr
