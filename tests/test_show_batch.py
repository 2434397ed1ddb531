"""`flava show-batch`: what it shows is what is trained on."""

import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from flava_model import cli, show
from flava_model.data import Loader
from flava_model.views import Views
from pmd.stream import Feed, Stream
from tests.locked import locked

FLAVA = Path(sys.executable).with_name("flava")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("corpus")
    locked(folder, {"coco": (17, 0, 15), "cc3m": (1, 31)}, broken={3})
    return folder


def shown(*arguments: object) -> dict[str, Any]:
    done = subprocess.run(
        [FLAVA, "show-batch", *map(str, arguments), "--json"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_any_batch_is_that_of_the_run(corpus: Path) -> None:
    feed = Feed(Stream(corpus, seed=3, unit="pairs"), batch=8)
    feed.end_epoch()
    batches = [*Loader(feed, Views(sizes=(32,)), seed=3)]
    told = shown(corpus, "--epoch", 1, "--batch", 5, "--seed", 3, "--unit", "pairs", "--sizes", 32)
    assert told["ok"] and told["batches"] == len(batches)
    assert told["samples"] == json.loads(json.dumps(show.as_json(batches[5])))
    halves = [
        shown(
            corpus, "--epoch", 1, "--batch", 5, "--seed", 3, "--unit", "pairs", "--world", 2, "--rank", rank
        )
        for rank in range(2)
    ]
    positions = [sample["position"] for half in halves for sample in half["samples"]]
    assert sorted(positions) == [sample["position"] for sample in told["samples"]]
    assert all(sample["weight"] == 1 for sample in told["samples"])


def test_a_sample_that_stands_in_for_another_says_so(
    corpus: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.run(["show-batch", str(corpus), "--size", "64"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 64 and [line.split("\t")[0] for line in lines] == [str(n) for n in range(64)]
    assert [line.split("\t")[-1] for line in lines if "instead of" in line] == ["instead of coco-3"]


def test_the_picture_has_the_views_pixel_for_pixel(corpus: Path, tmp_path: Path) -> None:
    line = [
        "show-batch",
        str(corpus),
        "--out",
        str(tmp_path / "new" / "b.png"),
        "--columns",
        "3",
        "--flip",
        "1",
    ]
    assert cli.run([*line, "--sizes", "48,24", "--size", "5"]) == 0
    views = Views(sizes=(48, 24), flip=1)
    images = next(iter(Loader(Feed(Stream(corpus), batch=5), views)))
    assert all(crop.mirrored for crop in images.crops)
    with Image.open(io.BytesIO((tmp_path / "new" / "b.png").read_bytes())) as sheet:
        pixels = sheet.convert("RGB")
    for place in range(5):
        left = show.MARGIN + place % 3 * (48 + 24 + show.MARGIN)
        top = show.MARGIN + place // 3 * (48 + (show.LINES + 1) * show.LINE + show.MARGIN)
        for size, at in ((48, left), (24, left + 48)):
            found = pixels.crop((at, top, at + size, top + size)).tobytes()
            assert found == images.views[size][place].permute(1, 2, 0).numpy().tobytes()


def test_it_says_how_fast_batches_come(corpus: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["show-batch", str(corpus), "--time", "0.2", "--sizes", "32", "--threads", "2"]) == 0
    verdict = capsys.readouterr().out.splitlines()[-1]
    assert (
        verdict.startswith(("loader-bound", "model-bound"))
        and "of what decoding alone would allow" in verdict
    )


@pytest.mark.parametrize(
    "line, code, said",
    [
        (["--batch", "9"], 2, "an epoch has 8 batches"),
        (["--sizes", "16,32"], 2, "the largest first"),
        (["--sizes", "big"], 2, "--sizes big: numbers of px"),
        (["--size", "65"], 2, "make no batch of 65"),
        (["--world", "3"], 2, "cannot be shared alike by 3 ranks"),
        (["--source", "sbu"], 2, "no source 'sbu'; it has cc3m, coco"),
        (["--no-such-option"], 2, "No such option"),
    ],
)
def test_a_bad_request_is_told(
    corpus: Path, capsys: pytest.CaptureFixture[str], line: list[str], code: int, said: str
) -> None:
    assert cli.run(["show-batch", str(corpus), *line, "--json"]) == code
    captured = capsys.readouterr()
    told = json.loads(captured.out)
    assert (told["ok"], told["exit"]) == (False, code) and said in told["error"]
    assert said.split(";")[0] in captured.err


def test_no_corpus_is_a_bad_request(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["show-batch", str(tmp_path)]) == 2
    assert "has no lock.json" in capsys.readouterr().err


def test_help_and_version_need_no_torch() -> None:
    for arguments in (["--help"], ["--version"], ["show-batch", "--help"]):
        program = f"""
import sys
from flava_model import cli
assert cli.run({arguments!r}) == 0
assert "torch" not in sys.modules
"""
        subprocess.run([sys.executable, "-c", program], check=True, stdout=subprocess.DEVNULL)
