"""The main job from end to end, on a world that we draw ourselves: `make demo`.

    draw 2,400 scenes -> publish them on a local web as all nine sources do, with losses
      -> pmd build (2 Ray workers) -> pmd report, pmd verify -> read back with `webdataset`
      -> contact sheet -> flava train, without the scenes that are held out, and evaluated beside it -> curves
      -> how well it finds held-out scenes, and transformers with its weights -> summary.json

Everything is left in .demo/: the corpus file to play with, the output, the pictures, the run.
"""

import itertools
import json
import math
import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import webdataset as _webdataset
from transformers import FlavaForPreTraining

from flava_model import load
from flava_model.curves import read_metrics
from flava_model.evals.checkpoints import read_lines
from pmd.stream import Stream, write_overlay
from tests.publish import Published, publish
from tests.web import ServedFile, Web
from tests.world import World, captions, split

DEMO = Path(".demo")
OUT = DEMO / "corpus"
webdataset: Any = _webdataset  # makes its names at run time, where no checker sees them
OVERLAY, UNSEEN = DEMO / "held-out.parquet", DEMO / "unseen"
IMAGES, HELD_OUT = 2_400, 200
TEXTS = 20_000  # captions without pictures
PMD = Path(sys.executable).parent / "pmd"

FOLDER = (
    "annotations"  # everything that the sources publish; each finds its own files in it, by their content
)
CORPUS = """\
name = "demo"
sources = [{sources}]

{described}
[source.localized_narratives]
files = ["annotations"]
archive = [{archives}]          # two of its four datasets publish their photos so
[source.cc12m]
files = ["https://mirror.example/cc12m.tsv"]    # downloaded, and kept for all corpora
[source.yfcc100m]
files = ["annotations"]
[source.yfcc100m.text]          # as the FLAVA paper has it
min_words = 3
languages = ["en"]

[shard]
images = 100
[text]
min_words = 2
[image]
image_size = 224
min_side = 32
max_aspect = 4.0
[fetch]
timeout_s = 10
retries = 1
per_host_rate = 1_000         # a web of our own bears more than others
per_host_connections = 16
connect_to = {{ {connect_to} }}
ca_file = "ca.pem"
"""


def main() -> None:
    shutil.rmtree(DEMO, ignore_errors=True)
    DEMO.mkdir()
    seconds: dict[str, float] = {}
    with Web() as web:
        with part("draw", f"draw {IMAGES:,} scenes and publish them on a web of our own", seconds):
            published = publish(World(seed=0, images=IMAGES), DEMO / FOLDER, web)
            (cc12m,) = published.files["cc12m"]
            web.serve_file("mirror.example", "/cc12m.tsv", ServedFile(cc12m))
            write_corpus_file(published, web)
        with part("build", "build the corpus with 2 Ray workers, and lock it", seconds):
            pmd("build", DEMO / "corpus.toml", "--out", OUT, "--workers", "2")
    with part("report", "compare with what the sources publish", seconds):
        pmd("report", OUT)
    with part("verify", "verify every byte against the lock", seconds):
        pmd("verify", OUT)
    with part("read", "read the shards back with the webdataset package", seconds):
        lock = json.loads((OUT / "lock.json").read_text())
        read_back(published, lock)
    with part("show", "draw a contact sheet", seconds):
        pmd("show", OUT, "--count", "24", "--columns", "8", "--sheet", DEMO / "sheet.png")
    with part("train", "train a FLAVA of 3 million parameters, without some scenes", seconds):
        leave_out(published, World(seed=0, images=IMAGES))
        write_unseen(World(seed=0, images=1 << 30))
        flava("tokenizer", OUT, "--out", DEMO / "tokenizer", "--size", "2000")
        flava("pack-texts", DEMO / "texts.txt", "--out", DEMO / "texts")
        flava("train", "flava_tiny", *(f"{name}={value}" for name, value in as_trained().items()))
        flava("curves", DEMO / "run", "--out", DEMO / "curves.png")
    with part("evaluate", "find held-out scenes by their captions, and captions by scenes", seconds):
        scores = evaluated()
        losses = learned()
    sources = {name: source["got"] for name, source in lock["sources"].items()}
    summary = {
        "root": lock["root"],
        "seconds": seconds,
        "sources": sources,
        "retrieval": {
            **{way: {f"r{k}": scores[f"{way}@{k}"] for k in (1, 5, 10)} for way in WAYS},
            "chance": scores["text_to_image_by_chance@1"],
        },
        "losses": losses,
    }
    (DEMO / "summary.json").write_text(json.dumps(summary, indent=1) + "\n")
    print(f"\nDone in {sum(seconds.values()):.0f} s. The corpus is {OUT}, its root {lock['root']};")
    print(f"the model is {DEMO / 'run' / 'model'}, its losses {DEMO / 'curves.png'};")
    print(f"look at {DEMO / 'sheet.png'}, or run `{PMD.relative_to(Path.cwd())} status {OUT}`.")


@contextmanager
def part(name: str, title: str, seconds: dict[str, float]) -> Iterator[None]:
    """One step of the demo: its title, and its time."""
    print(f"\n== {title}", flush=True)
    start = time.monotonic()
    yield
    seconds[name] = round(time.monotonic() - start, 1)


def write_corpus_file(published: Published, web: Web) -> None:
    told = ("localized_narratives", "cc12m", "yfcc100m")  # these have more to say
    text = CORPUS.format(
        sources=", ".join(f'"{source}"' for source in published.files),
        described="\n".join(
            f'[source.{source}]\nfiles = ["{FOLDER}"]' for source in published.files if source not in told
        ),
        archives=", ".join(
            f'"{path.relative_to(DEMO)}"' for path in published.archives["localized_narratives"]
        ),
        connect_to=", ".join(f'"{host}" = "{address}"' for host, address in web.connect_to.items()),
    )
    (DEMO / "corpus.toml").write_text(text)
    shutil.copyfile(web.ca_file, DEMO / "ca.pem")


def pmd(*arguments: str | Path) -> None:
    """Run a command as a user would, and stop the demo if it fails."""
    _run("pmd", arguments)


def flava(*arguments: str | Path) -> None:
    """The same of the model."""
    _run("flava", arguments)


def _run(program: str, arguments: Sequence[str | Path]) -> None:
    line = [str(argument) for argument in arguments]
    print(f"$ {program} " + " ".join(line), flush=True)
    # A library of the demo's own, as it is thrown away each time.
    library = {"PMD_LIBRARY": str((DEMO / "library").resolve())}
    code = subprocess.run([PMD.with_name(program), *line], env=os.environ | library).returncode
    if code:
        sys.exit(f"{program} {line[0]} ended with exit code {code}")


def leave_out(published: Published, world: World) -> None:
    """An overlay without the images whose scene is held out: a colour on a shape that it is kept from. Those
    of the archives, which have no URL to know them by, stay out too.
    """
    held = {url: split(world.scene(number)) == "heldout" for url, number in published.pictures.items()}

    def judge(index: pa.Table) -> list[bool]:
        return [not held.get(url, True) for url in index["url"].to_pylist()]

    write_overlay(OVERLAY, OUT, judge, columns=["url"])
    print(f"{len(Stream(OUT, overlay=OVERLAY)):,} of {len(Stream(OUT)):,} images are trained on")


def write_unseen(world: World) -> None:
    """Scenes that are not in the corpus: those that each have a combination which was held out, as photos and
    a split file; and captions of others, as texts.
    """
    beyond = itertools.count(IMAGES)
    unseen = (number for number in beyond if split(world.scene(number)) == "heldout")
    UNSEEN.mkdir()
    told: list[dict[str, Any]] = []
    for picture in (world.picture(number) for number in itertools.islice(unseen, HELD_OUT)):
        name = f"{picture.id}.jpg"
        (UNSEEN / name).write_bytes(picture.jpeg)
        told.append(
            {"filename": name, "split": "test", "sentences": [{"raw": raw} for raw in picture.captions]}
        )
    (UNSEEN / "dataset.json").write_text(json.dumps({"images": told}))
    others = (scene for scene in map(world.scene, beyond) if split(scene) != "heldout")
    rng = random.Random("texts")
    said = (caption for scene in others for caption in captions(scene, rng))
    (DEMO / "texts.txt").write_text("".join(f"{caption}\n" for caption in itertools.islice(said, TEXTS)))


def as_trained() -> dict[str, Any]:
    """What flava_tiny is told for this corpus."""
    data = [f"{kind}.{what}" for kind in ("pairs", "images") for what in ("corpus", "overlay")]
    return dict(zip(data, [OUT, OVERLAY] * 2, strict=True)) | {
        "texts.folder": DEMO / "texts",
        "texts.batch": 64,
        "texts.longest": 24,
        "tokenizer": DEMO / "tokenizer",
        "out": DEMO / "run",
        "evals.retrieval.split_file": UNSEEN / "dataset.json",
        "evals.retrieval.photos": UNSEEN,
    }


WAYS = ("text_to_image", "image_to_text")


def evaluated() -> dict[str, float]:
    """Retrieval among the unseen scenes; and the weights once more in transformers."""
    run = DEMO / "run"
    flava("eval", "retrieval", run / "model", "--split-file", UNSEEN / "dataset.json", "--photos", UNSEEN)
    scores = read_lines(run)[-1]["scores"]["retrieval"]  # the same, of the last checkpoint
    for way in WAYS:
        found, chance = scores[f"{way}@1"], scores[f"{way}_by_chance@1"]
        print(f"{way}: R@1 {found:.1%} of {HELD_OUT} held-out scenes, {found / chance:.0f} times chance")
    model, theirs = load(run / "model"), FlavaForPreTraining.from_pretrained(run / "model")
    own = sum(parameter.numel() for parameter in model.parameters())
    assert sum(parameter.numel() for parameter in theirs.parameters()) == own
    print(f"transformers loads the model: {own:,} parameters")
    return scores


LEARNED = 0.7  # of what a model says that knows nothing, each loss comes to less than this


def learned() -> dict[str, dict[str, float]]:
    """Each loss at the end of the run, and what it is where all answers are equally likely."""
    run = json.loads((DEMO / "run" / "run.json").read_text())
    codes, tokens = run["model"]["codes"], run["model"]["vocabulary"]
    answers = {"mim": codes, "mmm_image": codes, "mlm": tokens, "mmm_text": tokens, "itm": 2}
    answers["global_contrastive"] = run["config"]["pairs"]["batch"]
    last: dict[str, float] = {}
    for line in read_metrics(DEMO / "run"):
        last |= line["losses"]
    found = {name: {"unlearned": math.log(count), "last": last[name]} for name, count in answers.items()}
    for name, loss in found.items():
        print(f"{name}: {loss['last']:.2f}; of a model that knows nothing {loss['unlearned']:.2f}")
        assert loss["last"] < LEARNED * loss["unlearned"], name
    return found


def read_back(published: Published, lock: dict[str, Any]) -> None:
    """Every sample must come out of the tars with its picture and captions, and nothing else."""
    for source, entry in lock["sources"].items():
        tars = sorted(str(path) for path in (OUT / "shards" / source).glob("*.tar"))
        samples = list(webdataset.WebDataset(tars, shardshuffle=False).decode("pil"))
        pairs = sum(len(sample["json"]["captions"]) for sample in samples)
        assert len(samples) == entry["got"]["images"] == published.kept_images[source], source
        assert pairs == entry["got"]["pairs"] == published.kept_pairs[source], source
        assert entry["got"]["rows"] == published.rows[source], source
        assert entry["got"]["kept"] == published.kept_rows[source], source
        urls = {url for sample in samples if (url := sample["json"]["url"])}
        assert urls <= published.pictures.keys(), source
        for sample in samples:
            assert sample["jpg"].size == (sample["json"]["width"], sample["json"]["height"]), sample[
                "__key__"
            ]
        print(f"{source}: {len(samples):,} images and {pairs:,} captions in {len(tars)} tars, as published")


if __name__ == "__main__":
    main()
