"""The other loaders, each as its documentation has it. Run by loader.py with .venv-loaders' Python.

Reads a JSON line {"way", ...} from standard input, answers with one on the real standard output: null when
prepared, else images/s between the first batch and the last.
"""

# Checked in an environment that has none of the peers.
# pyright: basic, reportMissingImports=false, reportAttributeAccessIssue=false

import importlib.util
import io
import json
import os
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch.utils.data import DataLoader

# torchvision's wheels go with CUDA builds of torch: beside a CPU build its operators are not found, and it
# wants to know them to be imported. The transforms here use none of them. Its decoders are not found either.
spec = importlib.util.find_spec("torchvision")
assert spec is not None and spec.origin is not None
try:
    torch.ops.load_library(Path(spec.origin).with_name("_C.so"))
except OSError:
    operators = torch.library.Library("torchvision", "DEF")
    for name in ("nms", "qnms"):
        operators.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")

import litdata  # noqa: E402
import streaming  # noqa: E402
import webdataset as wds  # noqa: E402
from torchvision.transforms import v2  # noqa: E402

BATCH, WORKERS, SIZE = 128, 2, 224

# To uint8, as ours: scaling to floats is the device's work everywhere.
crop = v2.RandomResizedCrop(SIZE, scale=(0.9, 1.0), antialias=True)


def from_picture(picture: Image.Image) -> torch.Tensor:
    return v2.functional.pil_to_tensor(crop(picture.convert("RGB")))


def pair(file: Path) -> dict[str, Any]:
    return {"jpg": file.read_bytes(), "txt": f"caption of {file.stem}"}


class Mosaic(streaming.StreamingDataset):
    def __getitem__(self, at: Any) -> Any:
        sample = super().__getitem__(at)
        return from_picture(Image.open(io.BytesIO(sample["jpg"]))), sample["txt"]


class Lit(litdata.StreamingDataset):
    def __getitem__(self, index: Any) -> Any:
        sample = super().__getitem__(index)
        return from_picture(Image.open(io.BytesIO(sample["jpg"]))), sample["txt"]


def prepare(pictures: str, out: str) -> None:
    files = sorted(Path(pictures).glob("*.jpg"), key=lambda path: int(path.stem))
    columns = {"jpg": "bytes", "txt": "str"}
    with streaming.MDSWriter(out=f"{out}/streaming", columns=columns, size_limit=1 << 25) as writer:
        for file in files:
            writer.write(pair(file))
    litdata.optimize(
        fn=pair,
        inputs=files,
        output_dir=f"{out}/litdata",
        chunk_bytes="32MB",
        num_workers=WORKERS,
    )


def by_webdataset(tars: list[str]) -> Iterable[Any]:
    samples = wds.WebDataset(tars, shardshuffle=len(tars), empty_check=False).shuffle(1000).decode("pil")
    pairs = samples.to_tuple("jpg", "txt").map_tuple(from_picture, str).batched(BATCH)
    return wds.WebLoader(pairs, batch_size=None, num_workers=WORKERS)


def by_streaming(folder: str) -> Iterable[Any]:
    dataset = Mosaic(local=f"{folder}/streaming", shuffle=True, batch_size=BATCH)
    return DataLoader(dataset, batch_size=BATCH, num_workers=WORKERS)


def by_litdata(folder: str) -> Iterable[Any]:
    dataset = Lit(f"{folder}/litdata", shuffle=True)
    return litdata.StreamingDataLoader(dataset, batch_size=BATCH, num_workers=WORKERS)


def rate(loader: Iterable[Any]) -> float:
    begun, images = 0.0, 0
    for pictures, _ in loader:
        if not begun:
            begun = time.perf_counter()
            continue
        assert pictures.shape[1:] == (3, SIZE, SIZE) and pictures.dtype == torch.uint8
        images += len(pictures)
    return images / (time.perf_counter() - begun)


def main() -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # some of them print
    for line in sys.stdin:
        asked = json.loads(line)
        way, folder = asked["way"], asked["folder"]
        answer: Any = None
        if way == "prepare":
            prepare(asked["pictures"], folder)
        elif way == "webdataset":
            answer = rate(by_webdataset(asked["tars"]))
        else:
            answer = rate({"streaming": by_streaming, "litdata": by_litdata}[way](folder))
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
