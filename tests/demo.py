"""The main job from end to end, on a world that we draw ourselves: `make demo`.

    draw 2,400 scenes -> publish them on a local web as COCO, CC3M and CC12M, with losses
      -> pmd build (2 Ray workers) -> pmd verify -> read back with `webdataset` -> contact sheet, summary.json

Everything is left in .demo/: the corpus file to play with, the output, the sheet.
"""

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import webdataset as _webdataset

from tests.web import Web
from tests.world import Published, World, publish

DEMO = Path(".demo")
OUT = DEMO / "corpus"
webdataset: Any = _webdataset  # makes its names at run time, where no checker sees them
IMAGES = 2_400
PMD = Path(sys.executable).parent / "pmd"

CORPUS = """\
name = "demo"
sources = ["coco", "cc3m", "cc12m"]

[source.coco]
files = ["annotations"]     # a folder: each source finds its own files in it, by their content
[source.cc3m]
files = ["annotations"]
[source.cc12m]
files = ["annotations"]

[shard]
images = 250
[text]
min_words = 2
[image]
image_size = 224
min_side = 32
max_aspect = 4.0
[fetch]
timeout_s = 10
retries = 1
connect_to = {{ {connect_to} }}
ca_file = "ca.pem"
"""


def main() -> None:
    shutil.rmtree(DEMO, ignore_errors=True)
    DEMO.mkdir()
    seconds: dict[str, float] = {}
    with Web() as web:
        with part("draw", f"draw {IMAGES:,} scenes and publish them on a web of our own", seconds):
            published = publish(World(seed=0, images=IMAGES), DEMO / "annotations", web)
            write_corpus_file(web)
        with part("build", "build the corpus with 2 Ray workers, and lock it", seconds):
            pmd("build", DEMO / "corpus.toml", "--out", OUT, "--workers", "2")
    with part("verify", "verify every byte against the lock", seconds):
        pmd("verify", OUT)
    with part("read", "read the shards back with the webdataset package", seconds):
        lock = json.loads((OUT / "lock.json").read_text())
        read_back(published, lock)
    with part("show", "draw a contact sheet", seconds):
        pmd("show", OUT, "--count", "24", "--columns", "8", "--sheet", DEMO / "sheet.png")
    sources = {name: source["got"] for name, source in lock["sources"].items()}
    summary = {"root": lock["root"], "seconds": seconds, "sources": sources}
    (DEMO / "summary.json").write_text(json.dumps(summary, indent=1) + "\n")
    print(f"\nDone in {sum(seconds.values()):.0f} s. The corpus is {OUT}, its root {lock['root']};")
    print(f"look at {DEMO / 'sheet.png'}, or run `{PMD.relative_to(Path.cwd())} status {OUT}`.")


@contextmanager
def part(name: str, title: str, seconds: dict[str, float]) -> Iterator[None]:
    """One step of the demo: its title, and its time."""
    print(f"\n== {title}", flush=True)
    start = time.monotonic()
    yield
    seconds[name] = round(time.monotonic() - start, 1)


def write_corpus_file(web: Web) -> None:
    connect_to = ", ".join(f'"{host}" = "{address}"' for host, address in web.connect_to.items())
    (DEMO / "corpus.toml").write_text(CORPUS.format(connect_to=connect_to))
    shutil.copyfile(web.ca_file, DEMO / "ca.pem")


def pmd(*arguments: str | Path) -> None:
    """Run a command as a user would, and stop the demo if it fails."""
    line = [str(argument) for argument in arguments]
    print("$ pmd " + " ".join(line), flush=True)
    code = subprocess.run([PMD, *line]).returncode
    if code:
        sys.exit(f"pmd {line[0]} ended with exit code {code}")


def read_back(published: Published, lock: dict[str, Any]) -> None:
    """Every sample must come out of the tars with its picture and captions, and nothing else."""
    for source, entry in lock["sources"].items():
        tars = sorted(str(path) for path in (OUT / "shards" / source).glob("*.tar"))
        samples = list(webdataset.WebDataset(tars, shardshuffle=False).decode("pil"))
        pairs = sum(len(sample["json"]["captions"]) for sample in samples)
        assert len(samples) == entry["got"]["images"] == published.kept_images[source], source
        assert pairs == entry["got"]["pairs"] == published.kept_rows[source], source
        assert {sample["json"]["url"] for sample in samples} <= published.pictures.keys(), source
        for sample in samples:
            assert sample["jpg"].size == (sample["json"]["width"], sample["json"]["height"]), sample[
                "__key__"
            ]
        print(f"{source}: {len(samples):,} images and {pairs:,} captions in {len(tars)} tars, as published")


if __name__ == "__main__":
    main()
