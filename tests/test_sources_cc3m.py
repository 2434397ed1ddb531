from pathlib import Path

import pytest

from pmd.records import Caption, Reason, Record, Rejected, url_key
from pmd.sources import cc3m, cc12m
from tests.reading import read_all

REAL = Path(__file__).parents[2] / "shared" / "real" / "cc3m"
URL = "http://a.example/1.jpg"


def test_the_caption_comes_first_and_columns_after_the_second_do_not_count(tmp_path: Path) -> None:
    expected = Record(url_key("cc3m", URL), URL, (Caption("a bus station", 0),))
    assert outcomes(tmp_path, f"a bus station\t{URL}\n") == [expected]
    assert outcomes(tmp_path, f"a bus station\t{URL}\tbus,city\t/m/01bjv,/m/01n32\t0.9,0.8\n") == [expected]
    assert outcomes(tmp_path, f"a bus station\t{URL}\t\t\t\n") == [expected]


def test_every_unreadable_row_has_its_reason(tmp_path: Path) -> None:
    found = outcomes(tmp_path, f"\nno tab\n \t{URL}\none\t\ntwo\tthree\nfour\t{URL}")
    assert [outcome.reason if isinstance(outcome, Rejected) else None for outcome in found] == [
        Reason.INPUT_MALFORMED,
        Reason.INPUT_MALFORMED,
        Reason.INPUT_NO_CAPTION,
        Reason.INPUT_NO_IMAGE,
        Reason.INPUT_BAD_URL,
        None,
    ]


def test_content_tells_cc3m_from_cc12m(tmp_path: Path) -> None:
    path = tmp_path / "cc12m.tsv"  # the name of the other one
    path.write_text(f"one\t{URL}\ntwo\t{URL}\nhttp://in.a.caption\t{URL}\n")
    assert cc3m.recognise(path) == "caption-url tsv"
    assert cc12m.recognise(path) is None


@pytest.mark.parametrize(
    ("name", "rows"),
    [
        ("Validation_GCC-1.1.0-Validation.tsv", 15_833),
        ("Validation_GCC-1.1.0-Validation.head5.tsv", 5),
        ("Train_GCC-training.head5.tsv", 5),
        ("Image_Labels_Subset_Train_GCC-Labels-training.head.tsv", 6),
    ],
)
def test_the_published_rows_are_read(name: str, rows: int) -> None:
    path = REAL / name
    if not path.is_file():
        pytest.skip(f"the real rows are not here: {path}")
    assert cc3m.recognise(path) == "caption-url tsv"
    assert cc12m.recognise(path) is None
    found = read_all("cc3m", path)
    keys = {outcome.key for outcome in found if isinstance(outcome, Record)}
    assert len(found) == len(keys) == rows
    captions = [outcome.captions[0].text for outcome in found if isinstance(outcome, Record)]
    assert not any("http" in caption or "\t" in caption for caption in captions)


def outcomes(folder: Path, content: str) -> list[Record | Rejected]:
    path = folder / "file"
    path.write_text(content, encoding="utf-8", newline="\n")
    return read_all("cc3m", path)
