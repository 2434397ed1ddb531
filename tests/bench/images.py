"""What a picture costs from the served bytes to the stored ones: ours, and the same by others' means.

    ours         images.normalise: bounds, walk, decode, resize, sRGB, upright, encode, two sha256, phash
    sandboxed    the same in a process of its own, as `pmd download` does it; both processes count
    bare         decode, resize, encode, and nothing else, by the faster of OpenCV (INTER_AREA) and Pillow
                 (Hamming)
    img2dataset  its Resizer, in .venv-peers
    lanczos      Pillow's Lanczos filter from the whole picture: decode, resize, encode, as we did at first

All to 256 px, JPEG of quality 95. One thread of CPU each, by turns, the median of some rounds. Photos are
drawn: 640x480 as in COCO, 4000x3000 as from a phone; beside them real ones of COCO where ../shared has any.
"""

import io
import json
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from PIL import Image
from PIL.JpegImagePlugin import JpegImageFile

from pmd import images
from pmd.images.sandbox import Sandbox
from pmd.manifest import ImageSpec
from tests.bench.measure import options, report

PEERS = Path(".venv-peers/bin/python")
REAL = Path("../shared/real/coco/train2017")
Step = Callable[[bytes], object]

# Reads the name of a way and a folder a line, goes through the folder's files once, answers in ms an image.
PEER = """
import glob, io, json, os, sys, time
os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"  # one of its parts asks the network for newer versions
import cv2
import numpy as np
from img2dataset.resizer import Resizer

cv2.setNumThreads(1)
resizer = Resizer(256, "keep_ratio", True)

def bare(body):
    image = cv2.imdecode(np.frombuffer(body, np.uint8), cv2.IMREAD_COLOR)
    height, width = image.shape[:2]
    side = min(width, height)
    size = round(width * 256 / side), round(height * 256 / side)
    small = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
    return cv2.imencode(".jpg", small, [cv2.IMWRITE_JPEG_QUALITY, 95])[1].tobytes()

ways = {"img2dataset": lambda body: resizer(io.BytesIO(body)), "opencv": bare}
for line in sys.stdin:
    way, folder = json.loads(line)
    bodies = [open(path, "rb").read() for path in sorted(glob.glob(folder + "/*.jpg"))]
    start = time.process_time()
    for body in bodies:
        assert ways[way](body)
    print((time.process_time() - start) * 1000 / len(bodies), flush=True)
"""


def photo(seed: int, width: int, height: int) -> bytes:
    """A JPEG with soft slopes, edges, and a grain that is stronger in places, as of a real photo."""
    chance = random.Random(seed)
    soft = Image.frombytes("RGB", (24, 18), chance.randbytes(24 * 18 * 3))
    soft = soft.resize((width, height), Image.Resampling.BICUBIC)
    where = Image.frombytes("L", (32, 24), chance.randbytes(32 * 24)).resize((width, height))
    grain = np.random.default_rng(seed).normal(0, 12, (height, width)) * np.asarray(where) / 255
    pixels = np.asarray(soft) + grain[..., None]
    file = io.BytesIO()
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(file, "JPEG", quality=90)
    return file.getvalue()


def small(image: Image.Image, which: Image.Resampling) -> bytes:
    scale = 256 / min(image.size)
    file = io.BytesIO()
    image = image.resize((round(image.width * scale), round(image.height * scale)), which)
    image.save(file, "JPEG", quality=95, subsampling="4:2:0")
    return file.getvalue()


SPEC = ImageSpec()
OURS: dict[str, Step] = {
    "ours": lambda body: images.normalise(body, SPEC),
    "sandboxed": lambda body: SANDBOX.normalise(body),
    "pillow": lambda body: small(JpegImageFile(io.BytesIO(body)), Image.Resampling.HAMMING),
    "lanczos": lambda body: small(JpegImageFile(io.BytesIO(body)), Image.Resampling.LANCZOS),
}
THEIRS = ("opencv", "img2dataset")
SANDBOX = Sandbox(SPEC)


def pass_of(way: str, folder: Path, peer: subprocess.Popen[str]) -> float:
    """Go through a folder once: ms of CPU an image."""
    if way in THEIRS:
        assert peer.stdin is not None and peer.stdout is not None
        print(json.dumps([way, str(folder)]), file=peer.stdin, flush=True)
        return float(peer.stdout.readline())
    bodies = [path.read_bytes() for path in sorted(folder.glob("*.jpg"))]
    start = time.process_time() + SANDBOX.cpu_s()
    for body in bodies:
        assert OURS[way](body)
    return (time.process_time() + SANDBOX.cpu_s() - start) * 1000 / len(bodies)


def sets(root: Path, given: int) -> Iterator[tuple[str, Path]]:
    """Folders of photos, by name."""
    for name, width, height, count in (("640x480", 640, 480, given), ("12_megapixels", 4000, 3000, 4)):
        folder = root / name
        folder.mkdir()
        for seed in range(count):
            (folder / f"{seed}.jpg").write_bytes(photo(seed, width, height))
        yield name, folder
    if REAL.is_dir():
        yield "real_coco", REAL


def main() -> None:
    given = options(__doc__, images=32, rounds=7)
    if not PEERS.exists():
        sys.exit("img2dataset is not installed; `make bench` makes .venv-peers")
    figures: dict[str, float] = {}
    ratios: dict[str, float] = {}
    with (
        SANDBOX,
        tempfile.TemporaryDirectory(prefix="bench-") as root,
        subprocess.Popen(
            [PEERS, "-c", PEER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        ) as peer,
    ):
        for name, folder in sets(Path(root), given.images):
            passes: dict[str, list[float]] = {way: [] for way in (*OURS, *THEIRS)}
            for _ in range(given.rounds + 1):
                for way, taken in passes.items():
                    taken.append(pass_of(way, folder, peer))
            ms = {way: statistics.median(taken[1:]) for way, taken in passes.items()}  # the first warms up
            bare = min(ms["opencv"], ms["pillow"])
            figures |= {f"{name}_{way}_ms": taken for way, taken in ms.items()}
            ratios |= {
                f"{name}_ours_of_bare": ms["ours"] / bare,
                f"{name}_sandboxed_of_ours": ms["sandboxed"] / ms["ours"],
                f"{name}_img2dataset_of_ours": ms["img2dataset"] / ms["ours"],
                f"{name}_lanczos_of_ours": ms["lanczos"] / ms["ours"],
            }
    report("images", figures=figures, ratios=ratios, as_json=given.json)


if __name__ == "__main__":
    main()
