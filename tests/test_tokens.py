"""The laws of flava_model/tokens.py: BERT's tokens, and the same vocabulary of the same captions."""

import json
import os
import pickle
import subprocess
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import numpy as np
import pytest
from transformers.models.auto.tokenization_auto import AutoTokenizer

from flava_model import cli
from flava_model.errors import WrongInput
from flava_model.tokens import Tokenizer, load_tokenizer, train_tokenizer
from pmd.stream import Stream
from tests.locked import locked

CAPTIONS = [
    "A man riding a wave on top of a surfboard.",
    "Two dogs, one of them brown, don't run across the field!",
    "Ein Café in Zürich, 1999",
    "A man and two dogs riding a train across Zürich",
    "漢字 on a sign",
    "",
] * 3


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_tokenizer(lambda: [CAPTIONS], size=120)


def test_tokens_are_those_of_transformers(tokenizer: Tokenizer, tmp_path: Path) -> None:
    tokenizer.cut_to(12).save(tmp_path)
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    texts = [
        *CAPTIONS,
        "  unknown ☃ snowman\tTABS\u00a0and accents é É  ",
        "x" * 300,
        "[MASK] [SEP] in a text",
    ]
    expected = theirs(texts, padding="max_length", truncation=True, max_length=12)
    found = tokenizer.cut_to(12).encode(texts, length=12)
    assert found.tokens.tolist() == expected["input_ids"]
    assert found.there.astype(int).tolist() == expected["attention_mask"]
    words = [[-1 if word is None else word for word in expected.word_ids(row)] for row in range(len(texts))]
    assert found.words.tolist() == words
    assert theirs.model_max_length == 12


def test_a_saved_tokenizer_is_the_same_again(tokenizer: Tokenizer, tmp_path: Path) -> None:
    tokenizer.save(tmp_path)
    again = [
        load_tokenizer(tmp_path),
        load_tokenizer(tmp_path / "tokenizer.json"),
        load_tokenizer(tmp_path / "vocab.txt"),
        pickle.loads(pickle.dumps(tokenizer)),
        tokenizer.cut_to(9),
    ]
    assert {one.sha256 for one in again} == {tokenizer.sha256}
    assert [one.longest for one in again] == [77, 77, 77, 77, 9]
    for one in again[:-1]:
        assert (one.encode(CAPTIONS).tokens == tokenizer.encode(CAPTIONS).tokens).all()
    other = train_tokenizer(lambda: [CAPTIONS], size=110)
    assert other.sha256 != tokenizer.sha256


def test_rows_are_as_long_as_the_longest_text_asks(tokenizer: Tokenizer) -> None:
    assert tokenizer.encode(["a", "man"]).tokens.shape == (2, 16)
    long = " ".join(["man"] * 29)
    assert tokenizer.encode(["a", long]).tokens.shape == (2, 32)
    assert tokenizer.encode([long + " man"] * 2).tokens.shape == (2, 32)
    assert tokenizer.encode([long + " man" * 400]).tokens.shape == (1, 77)
    assert tokenizer.cut_to(20).encode([long]).tokens.shape == (1, 20)
    cut = tokenizer.cut_to(20).encode([long]).tokens[0]
    assert cut[0] == tokenizer.special.first and cut[-1] == tokenizer.special.last
    assert tokenizer.encode(["a"], length=40).tokens.shape == (1, 40)
    assert tokenizer.encode([""]).there.sum() == 2
    with pytest.raises(WrongInput, match="a text of 31 tokens in rows of 30"):
        tokenizer.encode([long], length=30)


def test_words_are_numbered_and_special_tokens_are_none(tokenizer: Tokenizer) -> None:
    found = tokenizer.encode(["surfboardsurfboard man"])
    count = int(found.there.sum())
    (words,), (tokens,) = found.words, found.tokens
    assert words[0] == words[count - 1] == -1 and (words[count:] == -1).all() and (tokens[count:] == 0).all()
    assert {*words[1 : count - 1].tolist()} == {0, 1} and (np.diff(words[1 : count - 1]) >= 0).all()
    assert tokenizer.decode(tokens[:count].tolist()) == "surfboardsurfboard man"


TRAIN = """
import random, sys
from flava_model.tokens import train_tokenizer
r = random.Random(0)
letters = "abcdefghijklmnopqrstuvwxyzäöλя"
words = ["".join(r.choice(letters) for _ in range(r.randint(1, 8))) for _ in range(900)]
captions = [" ".join(r.choice(words) for _ in range(10)) for _ in range(4000)]
print(train_tokenizer(lambda: [captions], size=700).sha256)
"""


def test_the_same_captions_give_the_same_vocabulary() -> None:
    """In other processes, with other numbers of threads: the trainer's own order is that of a hash table."""
    found = {
        subprocess.run(
            [sys.executable, "-c", TRAIN],
            env=os.environ | {"RAYON_NUM_THREADS": threads, "TOKENIZERS_PARALLELISM": "true"},
            check=True,
            capture_output=True,
            text=True,
        ).stdout
        for threads in "1248"
    }
    assert len(found) == 1


def test_a_vocabulary_holds_no_more_than_it_may(tokenizer: Tokenizer) -> None:
    assert len(tokenizer) == 120
    assert tokenizer.encode(["☃"]).tokens[0, 1] == tokenizer.special.unknown == 1
    pieces = tokenizer.encode(["zürich dogs"])
    assert int(pieces.there.sum()) == 4  # words that come often are one token
    told = tokenizer.cut_to(10).fit([*CAPTIONS, "☃"])
    assert told.captions == 19 and 0 < told.cut < 1 and 0 < told.unknown < 0.05
    assert told.lengths["all"] > told.lengths["half"] > 2
    with pytest.raises(WrongInput, match="no caption to train"):
        train_tokenizer(lambda: [["", "  \n"]])
    with pytest.raises(WrongInput, match=r"a vocabulary of 20: expected \d+ at least"):
        train_tokenizer(lambda: [CAPTIONS], size=20)


def test_what_is_no_tokenizer_is_told(tokenizer: Tokenizer, tmp_path: Path) -> None:
    def refused(path: Path, said: str) -> None:
        with pytest.raises(WrongInput, match=said):
            load_tokenizer(path)

    refused(tmp_path / "absent", "no such file or folder. For a name on the Hugging Face Hub, hub:")
    refused(tmp_path, "expected tokenizer.json or vocab.txt in it")
    (tmp_path / "vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\nman\n")
    refused(tmp_path, r"it lacks \[MASK\]")
    (tmp_path / "vocab.txt").write_text("[PAD]\nman\nman\n")
    refused(tmp_path, "'man' is in it 2 times")
    (tmp_path / "vocab.txt").write_text("[UNK]\n[PAD]\n[CLS]\n[SEP]\n[MASK]\n")
    refused(tmp_path, r"\[PAD\] is 1: expected 0")
    (tmp_path / "tokenizer.json").write_text('{"version": "1.0"')
    refused(tmp_path, "not a tokenizer")
    (tmp_path / "tokenizer.json").write_bytes(b"\xff\xfe\x00")
    refused(tmp_path, "not a tokenizer")
    with pytest.raises(WrongInput, match="texts of up to 2 tokens"):
        tokenizer.cut_to(2)


def test_a_tokenizer_comes_from_the_hub_when_it_is_asked_for(tokenizer: Tokenizer, tmp_path: Path) -> None:
    tokenizer.save(tmp_path / "saved")
    body = (tmp_path / "saved" / "tokenizer.json").read_bytes()
    asked: list[str] = []

    class Hub(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            asked.append(self.path)
            there = self.path == "/bert-base-uncased/resolve/main/tokenizer.json"
            self.send_response(200 if there else 404)
            for name, value in (
                ("X-Repo-Commit", "0" * 40),
                ("ETag", '"1"'),
                ("Content-Length", str(len(body) if there else 0)),
            ):
                self.send_header(name, value)
            self.end_headers()

        def do_GET(self) -> None:
            self.do_HEAD()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    Thread(target=server.serve_forever, daemon=True).start()
    program = (
        "import sys; from flava_model.tokens import load_tokenizer; print(load_tokenizer(sys.argv[1]).sha256)"
    )

    def ask(name: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-c", program, name],
            env=os.environ
            | {"HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}", "HF_HOME": str(tmp_path / "home")}
            | {"HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_XET": "1"},
            capture_output=True,
            text=True,
        )

    found = ask("hub:bert-base-uncased")
    assert found.stdout.strip() == tokenizer.sha256, found.stderr
    failed = ask("hub:nobody/nothing@v2")
    server.shutdown()
    server.server_close()
    assert failed.returncode and "could not be had from the Hub" in failed.stderr, failed.stderr
    assert any("/nobody/nothing/resolve/v2/" in path for path in asked)


def test_the_command_trains_on_a_corpus(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    locked(tmp_path / "corpus", {"coco": (9, 4), "cc3m": (5,)})
    stream = Stream(tmp_path / "corpus", unit="pairs")
    captions = [caption for some in stream.captions() for caption in some]
    assert sorted(captions) == sorted(sample.caption for sample in stream.read(0, np.arange(len(stream))))

    given = ["tokenizer", str(tmp_path / "corpus"), "--size", "80", "--least", "1", "--json"]
    assert cli.run([*given, "--out", str(tmp_path / "out")]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["sha256"] == load_tokenizer(tmp_path / "out").sha256 and told["tokens"] <= 80
    assert told["root"] == stream.identity.root and told["fit"]["captions"] == len(captions)
    assert cli.run([*given, "--out", str(tmp_path / "out")]) == 2
    assert "there is a tokenizer.json already" in json.loads(capsys.readouterr().out)["error"]
    assert cli.run([*given[:-1], "--out", str(tmp_path / "other"), "--source", "cc3m"]) == 0
    assert "tokens each" in capsys.readouterr().out
