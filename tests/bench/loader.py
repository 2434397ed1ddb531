"""Shards to batches: ours beside webdataset, mosaicml-streaming and litdata, and beside decoding alone.

    ours        flava_model.data.Loader with two threads: read, check sha256, decode, one 224 px random crop
    flava       the same with FLAVA's two sizes, 224 and 112
    doors       the same batches by way of a torch DataLoader with two workers
    webdataset  WebLoader, two workers, PIL, torchvision's RandomResizedCrop to uint8
    streaming   mosaicml's, two workers, the same transform; from its own format
    litdata     the same, from its own format (with Pillow: torchvision's decoders need a CUDA build of torch)
    ceiling     two threads that decode the same images with simplejpeg, and do nothing else
    resized     the same, and OpenCV's cubic resize to 224 px

The same images for all: photos, the shortest side 256 px, JPEG of quality 95. By turns, the median of some
rounds, images/s from the first batch to the last. Photos are real ones of COCO where ../shared has any, else
drawn.
"""

import io
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import simplejpeg
from PIL import Image
from torch.utils.data import DataLoader

from flava_model.data import Images, Loader
from flava_model.doors import Batches
from flava_model.views import Views
from pmd.stream import Feed, Stream
from pmd.tables import read_table
from tests.bench.images import REAL, photo
from tests.bench.measure import options, report
from tests.locked import locked

PEERS = Path(".venv-loaders/bin/python")
THREADS = 2
BATCH = 128
SHARDS = 8
ONE, TWO = Views(sizes=(224,)), Views(sizes=(224, 112))
CORRUPT = 100  # one in so many


def pictures(count: int) -> list[bytes]:
    """Photos of 256 px, of which no two are the same file."""
    paths = sorted(REAL.glob("*.jpg")) if REAL.is_dir() else []
    given = [path.read_bytes() for path in paths] or [photo(seed, 640, 480) for seed in range(60)]
    made: list[bytes] = []
    for number in range(count):
        with Image.open(io.BytesIO(given[number % len(given)])) as opened:
            image = opened.convert("RGB")
        turn = number // len(given)  # each time around, a little less of it
        image = image.crop((turn, 0, image.width, image.height - turn))
        scale = 256 / min(image.size)
        file = io.BytesIO()
        image.resize((round(image.width * scale), round(image.height * scale))).save(file, "JPEG", quality=95)
        made.append(file.getvalue())
    return made


def rate(batches: Iterator[Images]) -> float:
    """Images/s between the first batch and the last."""
    next(batches)
    begun, images = time.perf_counter(), 0
    for made in batches:
        images += len(made.samples)
    return images / (time.perf_counter() - begun)


def ours(folder: Path, views: Views, **how: Any) -> float:
    feed = Feed(Stream(folder, **how), batch=BATCH)
    return rate(iter(Loader(feed, views, threads=THREADS)))


def doors(folder: Path) -> float:
    batches = Batches(Feed(Stream(folder), batch=BATCH), ONE)
    return rate(iter(DataLoader(batches, batch_size=None, num_workers=THREADS)))


def on_threads(images: Sequence[bytes], act: Callable[[bytes], object]) -> float:
    def work(part: Sequence[bytes]) -> None:
        for image in part:
            act(image)

    begun = time.perf_counter()
    with ThreadPoolExecutor(THREADS) as pool:
        for _ in pool.map(work, (images[first::THREADS] for first in range(THREADS))):
            pass
    return len(images) / (time.perf_counter() - begun)


def decoded(image: bytes) -> np.ndarray[Any, Any]:
    return simplejpeg.decode_jpeg(image, "RGB", strict=False)


def resized(image: bytes) -> object:
    return cv2.resize(decoded(image), (224, 224), interpolation=cv2.INTER_CUBIC)


def beyond_the_read(folder: Path) -> dict[str, float]:
    """us a sample: from a position to the stored bytes and the caption, without hash, and a bare pread."""
    stream = Stream(folder, verified=False)
    feed = Feed(stream, batch=BATCH)
    batches = [*feed]
    count = BATCH * len(batches)
    taken: list[float] = []
    for _ in range(5):  # the first opens the shards
        begun = time.perf_counter()
        for batch in batches:
            stream.read(batch.epoch, batch.positions)
        taken.append((time.perf_counter() - begun) / count * 1e6)
    # The same bytes from the same places.
    where = {key: (tar, offset, size) for key, tar, offset, size in images_of(folder)}
    files = {tar: tar.open("rb") for tar in {tar for tar, _, _ in where.values()}}
    places = [where[key] for batch in batches for key in stream.keys(batch.epoch, batch.positions)]
    reads = [(files[tar].fileno(), size, offset) for tar, offset, size in places]
    alone: list[float] = []
    for _ in range(5):
        begun = time.perf_counter()
        for read in reads:
            os.pread(*read)
        alone.append((time.perf_counter() - begun) / count * 1e6)
    for file in files.values():
        file.close()
    return {"sample": statistics.median(taken[1:]), "pread": statistics.median(alone[1:])}


def images_of(folder: Path) -> Iterator[tuple[str, Path, int, int]]:
    """key, tar, offset, size of each image of a corpus."""
    for index in sorted(folder.glob("shards/*/*.parquet")):
        table = read_table(index, ("key", "offset", "size"))
        for row in table.to_pylist():
            yield row["key"], index.with_suffix(".tar"), row["offset"], row["size"]


def main() -> None:
    given = options(__doc__, images=3000, rounds=5)
    if not PEERS.exists():
        sys.exit("the peers are not installed; `make bench` makes .venv-loaders")
    made = pictures(given.images)
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary)
        sound, broken = root / "corpus", root / "corrupt"
        sizes = [given.images // SHARDS] * SHARDS
        for folder in (sound, broken):
            locked(folder, {"coco": sizes}, dropped=0, captions=1, image=made.__getitem__)
        corrupt(broken)
        (root / "pictures").mkdir()
        for number, image in enumerate(made[: sum(sizes)]):
            (root / "pictures" / f"{number}.jpg").write_bytes(image)
        with subprocess.Popen(
            [PEERS, Path(__file__).with_name("loader_peers.py")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=open(root / "peers.log", "w"),
            text=True,
        ) as peer:

            def ask(way: str) -> float:
                assert peer.stdin is not None and peer.stdout is not None
                tars = [str(path) for path in sorted((sound / "shards" / "coco").glob("*.tar"))]
                asked = {"way": way, "folder": str(root), "pictures": str(root / "pictures"), "tars": tars}
                print(json.dumps(asked), file=peer.stdin, flush=True)
                if not (line := peer.stdout.readline()):
                    sys.exit((root / "peers.log").read_text()[-3000:])
                return json.loads(line)

            ask("prepare")
            ways: dict[str, Callable[[], float]] = {
                "ours": lambda: ours(sound, ONE),
                "ours, not verified": lambda: ours(sound, ONE, verified=False),
                "ours, 1 % corrupt": lambda: ours(broken, ONE),
                "flava": lambda: ours(sound, TWO),
                "doors": lambda: doors(sound),
                "webdataset": lambda: ask("webdataset"),
                "streaming": lambda: ask("streaming"),
                "litdata": lambda: ask("litdata"),
                "ceiling": lambda: on_threads(made, decoded),
                "resized": lambda: on_threads(made, resized),
            }
            rates: dict[str, list[float]] = {name: [] for name in ways}
            for _ in range(given.rounds):
                for name, way in ways.items():
                    rates[name].append(way())
        beyond = beyond_the_read(sound)
    figures = {f"{name}: images_per_s": statistics.median(found) for name, found in rates.items()}
    figures["image_kb"] = sum(map(len, made)) / len(made) / 1000
    figures |= {f"read_{name}: us": value for name, value in beyond.items()}

    def ratio(one: str, other: str) -> float:
        # Of the rounds, not of the medians: a slow spell falls on neighbours alike.
        return statistics.median(a / b for a, b in zip(rates[one], rates[other], strict=True))

    ratios = {f"ours of {peer}": ratio("ours", peer) for peer in ("webdataset", "streaming", "litdata")}
    ratios |= {
        "ours of ceiling": ratio("ours", "ceiling"),
        "ours of resized": ratio("ours", "resized"),
        "flava of ceiling": ratio("flava", "ceiling"),
        "doors of ceiling": ratio("doors", "ceiling"),
        "verified of not": ratio("ours", "ours, not verified"),
        "corrupt of sound": ratio("ours, 1 % corrupt", "ours"),
    }
    report("loader", figures=figures, ratios=ratios, as_json=given.json)


def corrupt(folder: Path) -> None:
    """Change a byte in one of so many images, and leave index and lock as they are."""
    for number, (_, tar, offset, size) in enumerate(images_of(folder)):
        if number % CORRUPT == 0:
            with tar.open("r+b") as file:
                file.seek(offset + size // 2)
                (byte,) = file.read(1)
                file.seek(-1, os.SEEK_CUR)
                file.write(bytes([byte ^ 1]))


if __name__ == "__main__":
    main()
