"""The laws of flava_model/curves.py."""

import json
from io import BytesIO
from pathlib import Path

import pytest
from PIL import Image

from flava_model import cli
from flava_model.curves import HEIGHT, WIDTH, curves
from pmd.errors import BadRequest


def write(folder: Path, count: int) -> None:
    lines = [
        {
            "update": update,
            "losses": {"mim": 9 / update} | ({"itm": 0.5} if update % 2 else {}),
            "right": {"mim": 0.1},
        }
        for update in range(1, count + 1)
    ]
    (folder / "metrics.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))


def test_every_loss_has_a_panel_with_its_curve(tmp_path: Path) -> None:
    write(tmp_path, 20)
    with Image.open(BytesIO(curves(tmp_path, columns=2))) as sheet:
        assert sheet.size == (2 * WIDTH, 2 * HEIGHT)
        colours = {
            colour
            for _, colour in sheet.convert("RGB").crop((WIDTH, 0, 2 * WIDTH, HEIGHT)).getcolors(9999) or ()
        }
        assert (33, 102, 172) in colours
    assert curves(tmp_path) == curves(tmp_path)
    write(tmp_path, 1)
    curves(tmp_path)  # of one line, too


def test_the_command_draws_and_says_where_there_is_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(BadRequest, match="there is no such file; is"):
        curves(tmp_path)
    (tmp_path / "metrics.jsonl").write_text("")
    with pytest.raises(BadRequest, match="no metrics yet"):
        curves(tmp_path)
    write(tmp_path, 5)
    assert cli.run(["curves", str(tmp_path), "--out", str(tmp_path / "in" / "c.png"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["last"]["update"] == 5
    assert (tmp_path / "in" / "c.png").read_bytes()[:4] == b"\x89PNG"
