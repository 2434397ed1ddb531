"""How fast images are fetched, shrunk and stored, beside img2dataset, from the same server in the same run.

Drawn photos of 640x480 (noise over soft colours), served by tests/web.py in a process of its own, to 256 px
JPEG in tars. Both sides use 2 worker processes. Each is timed from start to end of its command; the rate
without the start comes from a second run of a tenth as many. img2dataset cannot map host names, so it asks by
address.
"""

import io
import random
import subprocess
import sys
import tarfile
import tempfile
import tomllib
from pathlib import Path

import numpy as np
from PIL import Image

from tests.bench.measure import Child, child, options, pmd, report

HOST = "images.example"
PEERS = Path(".venv-peers/bin/python")
DISTINCT = 64  # photos; served again and again under other names

PEER = """
import os, sys
os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"  # one of its parts asks the network for newer versions
import img2dataset
if __name__ == "__main__":
    img2dataset.download(
        url_list=sys.argv[1], output_folder=sys.argv[2], input_format="tsv", url_col="url",
        caption_col="caption", output_format="webdataset", image_size=256, resize_mode="keep_ratio",
        resize_only_if_bigger=True,
        encode_quality=95, processes_count=2, thread_count=32, number_sample_per_shard=500,
        enable_wandb=False,
    )
"""


def draw_photos(folder: Path) -> None:
    chance = random.Random(0)
    for number in range(DISTINCT):
        soft = Image.frombytes("RGB", (8, 6), chance.randbytes(144)).resize(
            (640, 480), Image.Resampling.BICUBIC
        )
        noise = np.random.default_rng(number).normal(0, 9, (480, 640, 1))
        pixels = np.clip(np.asarray(soft) + noise, 0, 255).astype(np.uint8)
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, "JPEG", quality=88)
        (folder / f"{number}.jpg").write_bytes(file.getvalue())


def ours(folder: Path, images: int, fetch: str) -> Child:
    """`pmd download` of a planned corpus."""
    folder.mkdir()
    rows = "".join(f"picture number {n}\thttp://{HOST}/{n % DISTINCT}.jpg?{n}\n" for n in range(images))
    (folder / "cc3m.tsv").write_text(rows)
    (folder / "corpus.toml").write_text(
        f'name = "bench"\nsources = ["cc3m"]\n[source.cc3m]\nfiles = ["cc3m.tsv"]\n'
        f"[shard]\nimages = 500\n{fetch}"
        "per_host_connections = 32\n"
    )
    common = [str(folder / "corpus.toml"), "--out", str(folder / "out")]
    for stage in ("pin", "plan"):
        child([pmd(), stage, *common, "--inline"])
    return child([pmd(), "download", *common, "--workers", "2"])


def theirs(folder: Path, images: int, address: str) -> Child:
    """img2dataset on the same pictures."""
    folder.mkdir()
    rows = "".join(f"http://{address}/{n % DISTINCT}.jpg?{n}\tpicture number {n}\n" for n in range(images))
    (folder / "urls.tsv").write_text("url\tcaption\n" + rows)
    (folder / "peer.py").write_text(PEER)
    done = child([str(PEERS), str(folder / "peer.py"), str(folder / "urls.tsv"), str(folder / "out")])
    found = sum(1 for tar in (folder / "out").glob("*.tar") for _ in _jpegs(tar))
    if found != images:
        raise RuntimeError(f"img2dataset stored {found} of {images} images")
    return done


def _jpegs(tar: Path) -> list[str]:
    with tarfile.open(tar) as file:
        return [name for name in file.getnames() if name.endswith(".jpg")]


def main() -> None:
    given = options(__doc__, images=4_000)
    if not PEERS.exists():
        sys.exit("img2dataset is not installed; `make bench` makes .venv-peers")
    few = given.images // 10
    with tempfile.TemporaryDirectory(prefix="bench-") as name:
        root = Path(name)
        (root / "photos").mkdir()
        draw_photos(root / "photos")
        command = [
            sys.executable,
            "-m",
            "tests.web",
            str(root / "photos"),
            "--host",
            HOST,
            "--host",
            "127.0.0.1",
        ]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
            assert server.stdout is not None
            fetch = "".join(server.stdout.readline() for _ in range(3))
            address = tomllib.loads(fetch)["fetch"]["connect_to"]["*:80"]
            runs = {
                "ours": (ours(root / "ours", given.images, fetch), ours(root / "ours-few", few, fetch)),
                "img2dataset": (
                    theirs(root / "theirs", given.images, address),
                    theirs(root / "theirs-few", few, address),
                ),
            }
            server.terminate()
    whole = {side: given.images / run.seconds for side, (run, _) in runs.items()}
    running = {
        side: (given.images - few) / (run.seconds - short.seconds) for side, (run, short) in runs.items()
    }
    report(
        "download",
        figures={
            "images": given.images,
            **{f"{side}_images_per_s": rate for side, rate in whole.items()},
            **{f"{side}_images_per_s_without_start": rate for side, rate in running.items()},
        },
        ratios={
            "images_per_s_of_img2dataset": whole["ours"] / whole["img2dataset"],
            "images_per_s_of_img2dataset_without_start": running["ours"] / running["img2dataset"],
        },
        as_json=given.json,
    )


if __name__ == "__main__":
    main()
