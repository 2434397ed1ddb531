"""How fast images are fetched, shrunk and stored, beside img2dataset: same server, images and output.

    drawn photos, 640x480 and 4000x3000 --> a lean server --> pmd download, or img2dataset --> tars

Both sides use 2 worker processes and 32 connections in each, ask for the same files under as many names,
keep the ratio, write JPEGs of 256 px and quality 95 into WebDataset tars and hash what was served.
Neither asks for consent but in one more run of ours, with all signals on; no host is bounded. Runs are
taken by turns, so that a slow spell of the machine falls on both; figures are medians.

A run of all images and one of a tenth: between them lies what an image costs without the start. With a
few hundred images that difference is noise. `bare` is one thread that decodes with OpenCV, shrinks and
encodes, as img2dataset does it, and nothing else; `normalise` is all that we do with a body, in one
thread. Processor time is that of the whole tree, the server's apart; memory is the tree's, shared parts
counted once.
"""

import argparse
import io
import random
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from PIL import Image

from pmd import images
from pmd.manifest import ImageSpec
from tests.bench.measure import Tree, child, cpu_s, options, pmd, report, tree

HOST = "images.example"
PEERS = Path(".venv-peers/bin/python")
WORKERS = 2
CONNECTIONS = 32  # in each
# Name -> width, height, how many are drawn; they are served again and again under other names.
PHOTOS = {"coco": (640, 480, 64), "12mp": (4000, 3000, 4)}

PEER = f"""
import os, sys
os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"  # one of its parts asks the network for newer versions
import img2dataset
if __name__ == "__main__":
    img2dataset.download(
        url_list=sys.argv[1], output_folder=sys.argv[2], input_format="tsv", url_col="url",
        caption_col="caption", output_format="webdataset", image_size=256, resize_mode="keep_ratio",
        resize_only_if_bigger=True, encode_quality=95, extract_exif=False, compute_hash="sha256",
        processes_count={WORKERS}, thread_count={CONNECTIONS}, number_sample_per_shard=int(sys.argv[3]),
        enable_wandb=False, disallowed_header_directives=[],
    )
"""

BARE = """
import sys, time
from pathlib import Path
import cv2, numpy
cv2.setNumThreads(1)
paths = sorted(Path(sys.argv[1]).iterdir())
bodies = [numpy.frombuffer(path.read_bytes(), numpy.uint8) for path in paths]
def once():
    for body in bodies:
        pixels = cv2.imdecode(body, cv2.IMREAD_UNCHANGED)
        height, width = pixels.shape[:2]
        scale = 256 / min(height, width)
        size = (round(width * scale), round(height * scale))
        small = cv2.resize(pixels, size, interpolation=cv2.INTER_AREA)
        cv2.imencode(".jpg", small, [cv2.IMWRITE_JPEG_QUALITY, 95])[1].tobytes()
once()
begun, turns = time.process_time(), 0
while time.process_time() - begun < 2:
    once()
    turns += 1
print((time.process_time() - begun) / turns / len(bodies))
"""

UNBOUNDED = f"""
connections = {CONNECTIONS}
per_host_connections = {WORKERS * CONNECTIONS}
per_address_connections = {WORKERS * CONNECTIONS}
per_host_rate = 1e6
"""


@dataclass(frozen=True)
class Side:
    """One of those that are compared: how it stores so many images."""

    name: str
    run: Callable[[Path, int], Tree]


def draw_photos(folder: Path, *, width: int, height: int, count: int) -> None:
    """Noise over soft colours: about the bytes of a photo of that size."""
    chance = random.Random(0)
    for number in range(count):
        soft = Image.frombytes("RGB", (8, 6), chance.randbytes(144))
        soft = soft.resize((width, height), Image.Resampling.BICUBIC)
        noise = np.random.default_rng(number).normal(0, 9, (height, width, 1)).astype(np.float32)
        pixels = np.clip(np.asarray(soft) + noise, 0, 255).astype(np.uint8)
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, "JPEG", quality=88)
        (folder / f"{number}.jpg").write_bytes(file.getvalue())


def ours(folder: Path, number: int, *, distinct: int, address: str, fetch: str) -> Tree:
    """`pmd download` of a planned corpus."""
    folder.mkdir()
    rows = [f"picture number {n}\thttp://{HOST}/{n % distinct}.jpg?{n}\n" for n in range(number)]
    (folder / "cc3m.tsv").write_text("".join(rows))
    (folder / "corpus.toml").write_text(
        f'name = "bench"\nsources = ["cc3m"]\n[source.cc3m]\nfiles = ["cc3m.tsv"]\n'
        f"[shard]\nimages = {shard_of(number)}\n"
        f'[fetch]\nconnect_to = {{"*" = "{address}"}}\n{UNBOUNDED}{fetch}\n'
    )
    common = [str(folder / "corpus.toml"), "--out", str(folder / "out")]
    for stage in ("pin", "plan"):
        child([pmd(), stage, *common, "--inline"])
    done = tree([pmd(), "download", *common, "--workers", str(WORKERS)])
    indexes = (folder / "out" / "raw" / "cc3m").glob("*.parquet")
    stored = sum(pq.read_table(index)["status"].to_pylist().count("success") for index in indexes)
    if stored != number:
        raise RuntimeError(f"pmd stored {stored} of {number} images")
    return done


def theirs(folder: Path, number: int, *, distinct: int, address: str) -> Tree:
    """img2dataset on the same pictures. It cannot map host names, so it asks by address."""
    folder.mkdir()
    rows = [f"http://{address}/{n % distinct}.jpg?{n}\tpicture number {n}\n" for n in range(number)]
    (folder / "urls.tsv").write_text("url\tcaption\n" + "".join(rows))
    (folder / "peer.py").write_text(PEER)
    places = [str(folder / name) for name in ("peer.py", "urls.tsv", "out")]
    done = tree([str(PEERS), *places, str(shard_of(number))])
    stored = sum(_jpegs(tar) for tar in (folder / "out").glob("*.tar"))
    if stored != number:
        raise RuntimeError(f"img2dataset stored {stored} of {number} images")
    return done


def shard_of(number: int) -> int:
    """Images in a shard, so that each worker has a few to do."""
    return min(500, -(-number // (3 * WORKERS)))


def _jpegs(tar: Path) -> int:
    with tarfile.open(tar) as file:
        return sum(name.endswith(".jpg") for name in file.getnames())


@contextmanager
def serving(folder: Path) -> Iterator[tuple[str, int]]:
    """The address of a server of a folder, and its process id."""
    command = [sys.executable, "-m", "tests.bench.static_server", str(folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        try:
            yield server.stdout.readline().strip(), server.pid
        finally:
            server.terminate()


def normalise_s(folder: Path) -> float:
    """Processor time that a body takes us, in one thread."""
    bodies = [path.read_bytes() for path in sorted(folder.iterdir())]
    spec = ImageSpec()
    images.normalise(bodies[0], spec)
    begun, turns = time.process_time(), 0
    while time.process_time() - begun < 2:
        for body in bodies:
            images.normalise(body, spec)
        turns += 1
    return (time.process_time() - begun) / turns / len(bodies)


def measure(kind: str, number: int, repeats: int) -> tuple[dict[str, float], dict[str, float]]:
    """Figures and ratios of one kind of photos."""
    width, height, count = PHOTOS[kind]
    few = max(number // 10, 2 * WORKERS)
    with tempfile.TemporaryDirectory(prefix="bench-") as name:
        root = Path(name)
        photos = root / "photos"
        photos.mkdir()
        draw_photos(photos, width=width, height=height, count=count)
        with serving(photos) as (address, server):
            same: dict[str, Any] = {"distinct": count, "address": address}
            sides = [
                Side("img2dataset", lambda at, n: theirs(at, n, **same)),
                Side("pmd", lambda at, n: ours(at, n, fetch="consent = []", **same)),
                Side("pmd_all_signals", lambda at, n: ours(at, n, fetch="", **same)),
            ]
            bare = statistics.median(
                float(child([str(PEERS), "-c", BARE, str(photos)]).stdout) for _ in range(3)
            )
            normalise = statistics.median(normalise_s(photos) for _ in range(3))
            runs: dict[tuple[str, int], list[Tree]] = {}
            served: list[float] = []
            for repeat in range(repeats):
                for n in (few, number):
                    for side in sides if repeat % 2 == 0 else sides[::-1]:
                        before = cpu_s(server)
                        folder = root / f"{side.name}-{n}-{repeat}"
                        runs.setdefault((side.name, n), []).append(side.run(folder, n))
                        served.append((cpu_s(server) - before) / n)
                        print(f"{kind} {side.name} {n}: {runs[side.name, n][-1]}", file=sys.stderr)
    figures = {"bare_cpu_ms": 1e3 * bare, "normalise_cpu_ms": 1e3 * normalise}
    figures["server_cpu_ms"] = 1e3 * statistics.median(served)
    for side in sides:
        short, whole = ([*runs[side.name, n]] for n in (few, number))
        pairs = [*zip(short, whole, strict=True)]
        figures |= {
            f"{side.name}_images_per_s": number / statistics.median(run.seconds for run in whole),
            f"{side.name}_images_per_s_without_start": 1
            / statistics.median((b.seconds - a.seconds) / (number - few) for a, b in pairs),
            f"{side.name}_cpu_ms": 1e3
            * statistics.median((b.cpu_s - a.cpu_s) / (number - few) for a, b in pairs),
            f"{side.name}_start_s": statistics.median(
                a.seconds - few * (b.seconds - a.seconds) / (number - few) for a, b in pairs
            ),
            f"{side.name}_peak_mb": statistics.median(run.peak_mb for run in whole),
        }

    def ratio(side: str, other: str, figure: str) -> float:
        return figures[f"{side}_{figure}"] / figures[f"{other}_{figure}"]

    speeds = ("images_per_s", "images_per_s_without_start")
    ratios = {f"{figure}_of_img2dataset": ratio("pmd", "img2dataset", figure) for figure in speeds}
    ratios |= {
        "all_signals_to_none": ratio("pmd_all_signals", "pmd", "images_per_s_without_start"),
        "cpu_of_img2dataset": ratio("pmd", "img2dataset", "cpu_ms"),
        "cpu_to_bare": figures["pmd_cpu_ms"] / figures["bare_cpu_ms"],
        "cpu_to_normalise": figures["pmd_cpu_ms"] / figures["normalise_cpu_ms"],
        "memory_of_img2dataset": ratio("pmd", "img2dataset", "peak_mb"),
    }
    return (
        {f"{kind}_{key}": value for key, value in figures.items()},
        {f"{kind}_{key}": value for key, value in ratios.items()},
    )


def main() -> None:
    given: argparse.Namespace = options(__doc__, coco=4_000, large=300, repeats=3)
    if not PEERS.exists():
        sys.exit("img2dataset is not installed; `make bench` makes .venv-peers")
    figures: dict[str, float] = {"coco_images": given.coco, "12mp_images": given.large}
    ratios: dict[str, float] = {}
    for kind, number in (("coco", given.coco), ("12mp", given.large)):
        if number:
            more = measure(kind, number, given.repeats)
            figures |= more[0]
            ratios |= more[1]
    report("download", figures=figures, ratios=ratios, as_json=given.json)


if __name__ == "__main__":
    main()
