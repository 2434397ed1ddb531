"""The laws of flava_model/texts.py: every row is accounted for, and every piece comes once an epoch."""

import gzip
import json
import os
import pickle
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flava_model import cli
from flava_model.data import Loader
from flava_model.inputs import Prepare
from flava_model.texts import LONGEST_LINE, Texts, cut, pack
from flava_model.tokens import train_tokenizer
from pmd.errors import BadRequest, Damaged
from pmd.stream import Feed

LINES = ["A line.", "  spaces around  ", "", "two\u2028in one", "carriage\r", "漢字 and more"]
LINES += ["last, without an end"]
KEPT = ["A line.", "spaces around", "two\u2028in one", "carriage", "漢字 and more", "last, without an end"]


def pieces(folder: Path) -> list[str]:
    texts = Texts(folder)
    return [texts.item(number)[1] for number in range(len(texts))]


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("kind", ["txt", "txt.gz", "jsonl", "ndjson.gz", "parquet"])
def test_any_kind_of_file_gives_the_same_pieces(tmp_path: Path, kind: str) -> None:
    file = tmp_path / f"texts.{kind}"
    if kind == "parquet":
        pq.write_table(pa.table({"id": range(len(LINES)), "text": LINES}), file, row_group_size=3)
    else:
        lines = LINES if kind.startswith("txt") else [json.dumps({"text": text, "n": 1}) for text in LINES]
        data = ("\ufeff" + "\n".join(lines)).encode()
        file.write_bytes(gzip.compress(data) if kind.endswith("gz") else data)
    told = pack([file], tmp_path / "out")
    assert pieces(tmp_path / "out") == KEPT
    assert told["rows"] == {"dropped: empty": 1, "kept": 6, "seen": 7} and told["count"] == 6
    Texts(tmp_path / "out").verify()


def test_every_row_is_accounted_for(tmp_path: Path) -> None:
    rows: list[bytes] = [
        b'{"text": "kept"}',
        b'{"text": 5}',
        b'{"other": "x"}',
        b'["text"]',
        b'{"text": "cut off',
        b"\xff\xfe",
        b'{"text": "\\ud800"}',
        b"",
        b'{"text": "  "}',
    ]
    (tmp_path / "a.jsonl").write_bytes(b"\r\n".join(rows) + b"\n")
    with (tmp_path / "b.txt").open("wb") as file:  # with holes, so that it is made at once
        file.write(b"before\n")
        file.seek(LONGEST_LINE + (3 << 20))
        file.write(b"\nbehind\n")
    told = pack([tmp_path], tmp_path / "out", column="text")["rows"]
    assert told == {
        "seen": 12,
        "kept": 3,
        "dropped: no_text": 4 - 1,
        "dropped: invalid_json": 1,
        "dropped: invalid_utf8": 2,
        "dropped: empty": 2,
        "dropped: too_long": 1,
    }
    assert pieces(tmp_path / "out") == ["kept", "before", "behind"]


@given(st.text(), st.integers(16, 60))
def test_no_text_is_lost_where_it_is_cut(text: str, longest: int) -> None:
    text = text.encode(errors="ignore").decode()
    found = [*cut(text, longest)]
    assert all(0 < len(piece.encode()) <= longest and piece == piece.strip() for piece in found)
    assert "".join("".join(found).split()) == "".join(text.split())


def test_long_texts_are_cut_at_spaces_and_in_time(tmp_path: Path) -> None:
    words = [f"word{number}" for number in range(400_000)]
    begun = time.process_time()
    found = [*cut(" ".join(words), 2_000)]
    assert time.process_time() - begun < 30  # not as the square of its length
    assert [word for piece in found for word in piece.split()] == words
    assert all(len(piece) > 1_900 for piece in found[:-1])
    assert [*cut("é" * 20, 16)] == ["é" * 8, "é" * 8, "é" * 4]


def test_packed_twice_it_is_the_same_and_not_done_again(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("\n".join(KEPT * 50))
    pack([tmp_path / "a.txt"], tmp_path / "one", longest=30)
    pack([tmp_path / "a.txt"], tmp_path / "two", longest=30)
    assert contents(tmp_path / "one") == contents(tmp_path / "two")
    before = (tmp_path / "one" / "texts.bin").stat().st_mtime_ns
    pack([tmp_path / "a.txt"], tmp_path / "one", longest=30)
    assert (tmp_path / "one" / "texts.bin").stat().st_mtime_ns == before
    for longest, column in ((40, "text"), (30, "body")):
        with pytest.raises(BadRequest, match="there is something else already"):
            pack([tmp_path / "a.txt"], tmp_path / "one", longest=longest, column=column)


def test_a_killed_pack_leaves_nothing_that_looks_like_one(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("some words of a line\n" * 400_000)
    program = "import sys; from flava_model.texts import pack; pack([sys.argv[1]], sys.argv[2])"
    process = subprocess.Popen([sys.executable, "-c", program, tmp_path / "a.txt", tmp_path / "out"])
    while not (tmp_path / ".out.part" / "texts.bin").exists():
        assert process.poll() is None
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "out").exists()
    assert pack([tmp_path / "a.txt"], tmp_path / "out")["count"] == 400_000
    assert not (tmp_path / ".out.part").exists()


def test_every_piece_comes_once_an_epoch_in_any_world(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("\n".join(f"text number {number}" for number in range(20_000)))
    pack([tmp_path / "a.txt"], tmp_path / "out")
    texts = pickle.loads(pickle.dumps(Texts(tmp_path / "out", seed=3)))
    epochs = [[sample.caption for sample in texts.read(epoch, np.arange(20_000))] for epoch in range(2)]
    assert epochs[0] != epochs[1] and {*epochs[0]} == {*epochs[1]} and len({*epochs[0]}) == 20_000
    # Blocks are mixed with each other, and not one behind the other.
    assert abs(np.mean([int(text.split()[-1]) > 16_384 for text in epochs[0][:2_000]]) - 0.18) < 0.05
    state = Feed(Texts(tmp_path / "out", seed=3), batch=80).state_dict()
    for world in (1, 2, 4):
        found: dict[int, str] = {}
        for rank in range(world):
            feed = Feed(Texts(tmp_path / "out", seed=3), batch=80, rank=rank, world=world)
            feed.load_state_dict(state | {"position": 19_200})
            for batch in feed:
                samples = feed.source.read(batch.epoch, batch.positions)
                found |= {sample.position: sample.caption for sample in samples}
                feed.delivered(batch, samples)
        assert [found[position] for position in range(19_200, 20_000)] == epochs[0][19_200:]
    other = Feed(Texts(tmp_path / "out", seed=4), batch=80)
    with pytest.raises(Exception, match="the saved state's seed is 3, here it is 4"):
        other.load_state_dict(Feed(Texts(tmp_path / "out", seed=3), batch=80).state_dict())


def test_batches_of_texts_alone(tmp_path: Path) -> None:
    lines = [f"a text of number {number} and some words more" for number in range(100)]
    (tmp_path / "a.txt").write_text("\n".join(lines))
    pack([tmp_path / "a.txt"], tmp_path / "out")
    tokenizer = train_tokenizer(lambda: [lines], size=200)
    loader = Loader(Feed(Texts(tmp_path / "out"), batch=20), None).then(Prepare(tokenizer).texts)
    seen: list[str] = []
    for inputs in loader:
        assert inputs.tokens is not None and not inputs.views
        seen += [tokenizer.decode(row) for row in inputs.tokens.tolist()]
        loader.delivered(inputs)
    assert sorted(seen) == sorted(lines)


def test_what_is_no_pack_or_no_text_is_told(tmp_path: Path) -> None:
    def refused(said: str, *files: Any, **how: Any) -> None:
        with pytest.raises(BadRequest, match=said):
            pack(files, tmp_path / "out", **how)

    (tmp_path / "a.doc").write_text("x")
    refused("there is no such file", tmp_path / "absent.txt")
    refused(r"expected \.txt, \.jsonl", tmp_path / "a.doc")
    (tmp_path / "empty").mkdir()
    refused("there is no file of texts", tmp_path / "empty")
    pq.write_table(pa.table({"body": ["x"]}), tmp_path / "a.parquet")
    refused("there is no column 'text'; it has body", tmp_path / "a.parquet")
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress(b"words and words\n" * 1_000)[:-20])
    refused("not gzip from its beginning to its end", tmp_path / "a.txt.gz")
    (tmp_path / "b.parquet").write_bytes(b"PAR1")
    refused("not Parquet", tmp_path / "b.parquet")
    assert not (tmp_path / "out").exists()

    with pytest.raises(BadRequest, match=r"there is no texts\.json in it; `flava pack-texts"):
        Texts(tmp_path)
    pack([tmp_path / "a.parquet"], tmp_path / "out", column="body")
    os.truncate(tmp_path / "out" / "texts.idx", 8)
    with pytest.raises(Damaged, match=r"texts\.idx: 8 bytes, texts\.json says 16"):
        Texts(tmp_path / "out")
    pack([tmp_path / "a.parquet"], tmp_path / "other", column="body")
    (tmp_path / "other" / "texts.bin").write_bytes(b"y")
    with pytest.raises(Damaged, match="sha256"):
        Texts(tmp_path / "other").verify()


def test_the_command_packs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.txt").write_text("\n".join(LINES))
    given = ["pack-texts", str(tmp_path / "a.txt"), "--out", str(tmp_path / "out")]
    assert cli.run(given) == 0
    told = capsys.readouterr().out
    assert "6 pieces of text" in told and "dropped: empty 1" in told
    assert cli.run([*given, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["rows"]["seen"] == 7
    assert cli.run([*given, "--longest", "99", "--json"]) == 2
