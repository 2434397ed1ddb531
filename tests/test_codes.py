"""The laws of flava_model/codes.py: stored codes are those that would be made of the crops that are seen."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from flava_model import cli
from flava_model.codebook import DalleEncoder, RandomQuantizer
from flava_model.codes import Codes, make_codes
from flava_model.data import Loader
from flava_model.inputs import Prepare
from flava_model.models.flava import FlavaConfig, flava_batch
from pmd.errors import BadRequest, Damaged, Refused
from pmd.stream import Feed, Stream
from tests.locked import locked, picture

SIZE, SMALL = 64, 32  # px: 4 x 4 patches of 16, of 8 for the codebook
CODEBOOK = RandomQuantizer(codes=500)


@pytest.fixture(scope="module", params=[1, 3], ids=["images", "regions"])
def corpus(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of one caption an image; and of up to three, some of them of a region."""
    folder = tmp_path_factory.mktemp("corpus")
    square = partial(picture, size=(88, 80))  # much broader ones have one crop only
    locked(folder, {"coco": (20, 0, 30), "cc3m": (14,)}, captions=request.param, broken=[2], image=square)
    return folder


def made(corpus: Path, out: Path, *, crops: int = 1, threads: int = 2) -> Codes:
    make_codes(corpus, out, CODEBOOK, image_size=SIZE, crops=crops, threads=threads)
    codes = Codes(out)
    codes.verify()
    return codes


def contents(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.mark.parametrize("crops", [1, 3])
def test_stored_codes_are_those_of_what_is_seen(corpus: Path, tmp_path: Path, crops: int) -> None:
    codes = made(corpus, tmp_path / "codes", crops=crops)
    stream = Stream(corpus)
    codes.check(stream)
    seen: dict[tuple[str, int], set[bytes]] = {}
    feed = Feed(stream, batch=32)
    loader = Loader(feed, codes.plan.views(SIZE, SMALL), crop_key=codes.crop_key)
    for _ in range(8):
        for images in loader:
            assert (codes.of(images.samples) == CODEBOOK.codes(images.views[SMALL]).numpy()).all()
            for sample, crop in zip(images.samples, images.crops, strict=True):
                seen.setdefault((sample.key, sample.caption_number), set()).add(repr(crop).encode())
        feed.end_epoch()
    # Over the epochs an image is seen in so many crops, not in one and not in any.
    assert max(map(len, seen.values())) == crops
    assert "coco-2" not in {key for key, _ in seen}


def test_inputs_have_stored_codes_and_need_no_second_view(corpus: Path, tmp_path: Path) -> None:
    codes = made(corpus, tmp_path / "codes")
    config = FlavaConfig(image_size=SIZE, codes=500)
    loader = Loader(Feed(Stream(corpus), batch=16), codes.plan.views(SIZE), crop_key=codes.crop_key)
    inputs = next(iter(loader.then(Prepare(grid=4, stored_codes=codes).images)))
    batch = flava_batch(inputs, config)
    assert inputs.codes is not None and batch.codes is inputs.codes and inputs.codes.shape == (16, 16)


def test_made_again_or_after_a_kill_they_are_the_same(corpus: Path, tmp_path: Path) -> None:
    made(corpus, tmp_path / "whole", crops=40, threads=3)
    whole = contents(tmp_path / "whole")
    program = (
        "import sys; from flava_model.codes import make_codes\n"
        "from flava_model.codebook import RandomQuantizer\n"
        "make_codes(sys.argv[1], sys.argv[2], RandomQuantizer(codes=500), image_size=64, crops=40, threads=1)"
    )
    process = subprocess.Popen([sys.executable, "-c", program, str(corpus), str(tmp_path / "killed")])
    while not [*(tmp_path / "killed").glob("*/*.npy")]:
        assert process.poll() is None
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "killed" / "codes.json").exists()
    with pytest.raises(BadRequest, match="they are not complete"):
        Codes(tmp_path / "killed")
    made(corpus, tmp_path / "killed", crops=40)
    found = contents(tmp_path / "killed")
    assert {name: data for name, data in found.items() if not name.endswith(".part")} == whole


def test_codes_of_something_else_are_refused(corpus: Path, tmp_path: Path) -> None:
    codes = made(corpus, tmp_path / "codes")
    with pytest.raises(Refused, match="there are codes with crops 1, these would have 2"):
        made(corpus, tmp_path / "codes", crops=2)
    with pytest.raises(Refused, match="codebook"):
        make_codes(corpus, tmp_path / "codes", RandomQuantizer(codes=499), image_size=SIZE)
    locked(tmp_path / "other", {"coco": (4,)})
    with pytest.raises(Refused, match="the codes are of the corpus"):
        codes.check(Stream(tmp_path / "other"))
    with pytest.raises(BadRequest, match=r"there is no codes\.json"):
        Codes(tmp_path)
    with pytest.raises(BadRequest, match="2 crops of 60 px, patches of 16"):
        make_codes(corpus, tmp_path / "new", CODEBOOK, crops=2, image_size=60)


def test_damaged_codes_are_told(corpus: Path, tmp_path: Path) -> None:
    made(corpus, tmp_path / "codes")
    copy = Path(shutil.copytree(tmp_path / "codes", tmp_path / "copy"))
    file = copy / "coco" / "00000.npy"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    with pytest.raises(Damaged, match="sha256"):
        Codes(copy).verify()
    os.truncate(file, 200)
    samples = Stream(corpus, sources=["coco"]).read(0, np.arange(20))
    samples = [one for one in samples if one.stored and "00000" in one.stored.shard and one.key != "coco-2"]
    with pytest.raises(Damaged, match=file.name):
        Codes(copy).of(samples)
    file.unlink()
    with pytest.raises(Damaged, match="missing"):
        Codes(copy).verify()


def test_the_command_makes_them(corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = ["codes", str(corpus), "--out", str(tmp_path / "codes"), "--image-size", "64", "--json"]
    assert cli.run(given) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["shards"] == 4 and told["images"] >= 64 and told["plan"]["grid"] == 4
    Codes(tmp_path / "codes").verify()
    assert cli.run([*given, "--codebook", str(tmp_path)]) == 2
    assert "expected model.safetensors" in json.loads(capsys.readouterr().out)["error"]
    assert cli.run([*given, "--crops", "2"]) == 3
    # With DALL-E's encoder, a small one.
    from safetensors.torch import save_file

    (tmp_path / "dalle").mkdir()
    save_file(DalleEncoder(codes=300, width=8).state_dict(), tmp_path / "dalle" / "model.safetensors")
    given[3] = str(tmp_path / "other")
    assert cli.run([*given[:-1], "--codebook", str(tmp_path / "dalle")]) == 0
    assert "codes of" in capsys.readouterr().out
