"""What each of the six losses is good for: flava_tiny on the demo's corpus, with all and without one.

    all          six losses, --updates updates, each of pairs, images and texts
    no X         the same but for loss.X=0

Each is told of by its own metric: the mean over the last fifth of the updates; a loss that is not trained on
is computed all the same. Besides, retrieval among unseen scenes. The runs have the same seed, samples and
masks. Needs .demo/, which `make demo` leaves.
"""

import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from flava_model.curves import read_metrics
from flava_model.evals.checkpoints import read_lines
from tests.bench.measure import options, report
from tests.demo import DEMO, as_trained

LOSSES = ("mim", "mlm", "mmm_image", "mmm_text", "itm", "global_contrastive")


def trained(out: Path, updates: int, *changes: str) -> dict[str, float]:
    """A run, and its own account: each loss and share right at its end, and R@1 both ways."""
    flava = Path(sys.executable).with_name("flava")
    settings = {**as_trained(), "out": out, "steps": updates, "save.every": updates, "mix.update": "all"}
    line = [flava, "train", "flava_tiny", *(f"{name}={value}" for name, value in settings.items()), *changes]
    subprocess.run(line, check=True, stdout=subprocess.DEVNULL, env=os.environ)
    last = [line for line in read_metrics(out) if line["update"] > updates * 4 / 5]
    found: dict[str, float] = {}
    for name in LOSSES:
        found[name] = statistics.fmean(line["losses"][name] for line in last)
        found[f"{name}_right"] = statistics.fmean(line["right"][name] for line in last)
    scores = read_lines(out)[-1]["scores"]["retrieval"]
    return found | {way: scores[f"{way}@1"] for way in ("text_to_image", "image_to_text")}


def main() -> None:
    given = options(__doc__, updates=300)
    if not (DEMO / "summary.json").exists():
        sys.exit("there is no .demo/summary.json: run `make demo` first")
    figures: dict[str, float] = {}
    folder = Path(tempfile.mkdtemp(prefix="ablation-"))
    try:
        for name in ("", *LOSSES):
            label = f"no {name}" if name else "all"
            changes = [f"loss.{name}=0"] if name else []
            for metric, value in trained(folder / label, given.updates, *changes).items():
                figures[f"{label}: {metric}"] = value
            print(label, file=sys.stderr, flush=True)
    finally:
        shutil.rmtree(folder)
    ratios = {
        f"{name} without / with": figures[f"no {name}: {name}"] / figures[f"all: {name}"] for name in LOSSES
    }
    report("ablation", figures=figures, ratios=ratios, as_json=given.json)


if __name__ == "__main__":
    main()
