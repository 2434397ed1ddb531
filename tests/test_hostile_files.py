"""Files that broke decoders before, served by a web, through a whole build: each has one outcome, always."""

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from tests.small import PMD
from tests.web import Web

HOSTILE = Path(__file__).parents[2] / "shared" / "hostile"
HOST = "hostile.example"


def build(corpus: Path, out: Path) -> tuple[dict[str, Any], int]:
    """What it says, and the most memory in MiB that its own process had: not those that decode."""
    line = [PMD, "build", corpus, "--out", out, "--inline", "--json"]
    with subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        peak = 0
        while process.poll() is None:
            told = Path(f"/proc/{process.pid}/status").read_text()
            if found := re.search(r"VmHWM:\s+(\d+) kB", told):
                peak = max(peak, int(found[1]) >> 10)
            try:
                process.wait(0.05)
            except subprocess.TimeoutExpired:
                continue
        assert process.stdout and process.stderr
        assert process.returncode == 0, process.stderr.read()
        return json.loads(process.stdout.read()), peak


@pytest.mark.skipif(not HOSTILE.exists(), reason="the hostile files are not here")
def test_every_hostile_file_has_one_outcome_and_the_same_one_twice(tmp_path: Path) -> None:
    files = sorted(path for path in HOSTILE.rglob("*") if path.is_file() and path.suffix != ".md")
    assert len(files) > 250
    with Web() as web:
        for number, path in enumerate(files):
            web.serve(HOST, f"/{number}", path.read_bytes(), "image/jpeg")  # whatever it is
        rows = [f"http://{HOST}/{number}\ta file that broke something\n" for number in range(len(files))]
        (tmp_path / "cc12m.tsv").write_text("".join(rows))
        corpus = tmp_path / "corpus.toml"
        connect_to = ", ".join(
            f"{json.dumps(host)} = {json.dumps(to)}" for host, to in web.connect_to.items()
        )
        corpus.write_text(
            'name = "hostile"\nsources = ["cc12m"]\n[source.cc12m]\nfiles = ["cc12m.tsv"]\n'
            "[fetch]\nretries = 0\nper_host_rate = 1e6\nper_host_connections = 8\n"
            f"connect_to = {{ {connect_to} }}\n"
        )
        told: list[dict[str, Any]] = []
        for out in ("first", "second"):
            said, peak = build(corpus, tmp_path / out)
            told.append(said)
            assert peak < 512
    assert told[0]["root"] == told[1]["root"]
    got = told[0]["sources"]["cc12m"]
    assert got["rows"] == len(files) == got["kept"] + sum(got["dropped"].values())
    assert not {"decode_crash", "decode_timeout", "timeout"} & {*got["dropped"]}
    assert {"unsupported_format", "decode_failed", "body_truncated"} <= {*got["dropped"]}
    statuses = [
        status
        for index in (tmp_path / "first" / "shards" / "cc12m").glob("*.parquet")
        for status in pq.read_table(index)["status"].to_pylist()
    ]
    assert len(statuses) == len(files)
