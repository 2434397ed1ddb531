from pathlib import Path

import pytest

from pmd.records import Caption, Reason, Record, Rejected, url_key
from pmd.sources import cc3m, cc12m
from tests.reading import read_all

REAL = Path(__file__).parents[2] / "shared" / "real" / "cc12m"


def test_a_row_is_split_at_its_first_tab_alone(tmp_path: Path) -> None:
    record, *rest = outcomes(tmp_path, "http://a.example/1.jpg\ta\tb <PERSON> &amp; c\n")
    assert rest == []
    assert record == Record(
        url_key("cc12m", "http://a.example/1.jpg"),
        "http://a.example/1.jpg",
        (Caption("a\tb <PERSON> &amp; c", 0),),
    )


def test_every_unreadable_row_has_its_reason_and_its_number(tmp_path: Path) -> None:
    found = outcomes(
        tmp_path,
        "http://a.example/1.jpg\tone\n"
        "\n"
        "http://a.example/2.jpg two\n"
        "http://a.example/3.jpg\t \n"
        "a.example/4.jpg\tfour\n"
        "\tfive\n"
        "http://a.example/6.jpg\tsix",
    )
    reasons = [outcome.reason if isinstance(outcome, Rejected) else None for outcome in found]
    assert reasons == [
        None,
        Reason.INPUT_MALFORMED,
        Reason.INPUT_MALFORMED,
        Reason.INPUT_NO_CAPTION,
        Reason.INPUT_BAD_URL,
        Reason.INPUT_NO_IMAGE,
        None,
    ]
    assert [
        outcome.row if isinstance(outcome, Rejected) else outcome.captions[0].row for outcome in found
    ] == [*range(7)]


def test_two_rows_of_one_url_have_one_key(tmp_path: Path) -> None:
    first, second = outcomes(tmp_path, "http://a.example/1.jpg\tone\nhttp://a.example/1.jpg\ttwo\n")
    assert isinstance(first, Record) and isinstance(second, Record)
    assert first.key == second.key


def test_content_tells_cc12m_from_cc3m(tmp_path: Path) -> None:
    path = tmp_path / "Train_GCC-training.tsv"  # the name of the other one
    path.write_text(
        "http://a.example/1.jpg\tone\nhttp://a.example/2.jpg\ttwo\tthree\nhttp://a.example/3\tx\n"
    )
    assert cc12m.recognise(path) == "url-caption tsv"
    assert cc3m.recognise(path) is None


def test_a_page_that_a_server_sent_instead_is_not_recognised(tmp_path: Path) -> None:
    path = tmp_path / "cc12m.tsv"
    path.write_text("<html>\n" + "<p>\n" * 20 + "http://a.example/1.jpg\tone\n")
    assert cc12m.recognise(path) is None


def test_the_published_rows_are_read() -> None:
    path = REAL / "cc12m.head5.tsv"
    if not path.is_file():
        pytest.skip(f"the real rows are not here: {path}")
    assert cc12m.recognise(path) == "url-caption tsv"
    found = read_all("cc12m", path)
    assert len(found) == 5
    assert all(isinstance(outcome, Record) for outcome in found)
    assert isinstance(found[2], Record) and "Photo <PERSON>, Manga" in found[2].captions[0].text
    assert isinstance(found[4], Record) and found[4].captions[0].text.endswith("on the sand and sea around")


def outcomes(folder: Path, content: str) -> list[Record | Rejected]:
    path = folder / "file"
    path.write_text(content, encoding="utf-8", newline="\n")
    return read_all("cc12m", path)
