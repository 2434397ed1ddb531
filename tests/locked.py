"""A locked corpus made in a moment, for tests of what reads one."""

import hashlib
import io
from collections.abc import Callable, Container, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from PIL import Image

from pmd.lock import FORMAT, Lock, LockedFile, LockedSource, lock_bytes, root_hash
from pmd.records import key_hash
from pmd.shards import write_shard
from pmd.tables import INDEX, Counts


def picture(seed: int, *, size: tuple[int, int] = (96, 64)) -> bytes:
    """A JPEG that no other seed gives."""
    pixels = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC).save(file, "JPEG", quality=90)
    return file.getvalue()


def locked(
    folder: Path,
    shards: dict[str, Iterable[int]],
    *,
    dropped: int = 1,
    captions: int = 3,
    broken: Container[int] = (),
    image: Callable[[int], bytes] = picture,
) -> Lock:
    """Write a corpus: of each source, a shard for each number, which says how many samples it keeps.

    Beside them each shard has `dropped` rows that are not kept. Sample n of all has n % captions + 1
    captions, the second with a box, and one more that was dropped. The image of a broken one is none.
    """
    files: list[LockedFile] = []
    sources: dict[str, LockedSource] = {}
    number = 0
    for source, sizes in shards.items():
        total = Counts()
        for place, size in enumerate(sizes):
            rows: list[dict[str, Any]] = []
            images: dict[str, bytes] = {}
            for n in range(number, number + size + dropped):
                row = _row(source, n, captions)
                if n < number + size:
                    images[row["key"]] = b"\xff\xd8\xff no picture" if n in broken else image(n)
                    row |= _kept(images[row["key"]])
                else:
                    row |= {"status": "failed_to_download", "reason": "http_404", "error_message": "HTTP 404"}
                rows.append(row)
            number += size + dropped
            rows.sort(key=lambda row: key_hash(row["key"]))
            name = f"shards/{source}/{place:05d}"
            tar, index = folder / f"{name}.tar", folder / f"{name}.parquet"
            tar.parent.mkdir(parents=True, exist_ok=True)
            columns = [field for field in INDEX if field.name not in ("caption", "offset", "size")]
            written = write_shard(
                tar,
                index,
                records=pa.Table.from_pylist(rows, pa.schema(columns)),
                images=[images.get(row["key"]) for row in rows],
                fingerprint=source,
            )
            total += written.counts
            for path, told in ((tar, written.counts), (index, Counts())):
                data = path.read_bytes()
                files.append(
                    LockedFile(
                        path=str(path.relative_to(folder)),
                        sha256=hashlib.sha256(data).hexdigest(),
                        size=len(data),
                        images=told.images,
                        pairs=told.pairs,
                    )
                )
        sources[source] = LockedSource(fingerprint=source, files=[], expected={}, got=total.as_json())
    files.sort(key=lambda file: file.path)
    lock = Lock(
        format=FORMAT,
        name="locked",
        definition={},
        fingerprint="",
        sources=sources,
        files=files,
        root=root_hash(files),
    )
    (folder / "lock.json").write_bytes(lock_bytes(lock))
    return lock


def _row(source: str, n: int, captions: int) -> dict[str, Any]:
    texts = [f"caption {c} of sample {n}" for c in range(n % captions + 1)]
    told: list[dict[str, Any]] = [
        {"text": text, "box": [24.0, 16.0, 96.0, 32.0] if c == 1 else None, "file": 0, "row": 9 * n + c}
        for c, text in enumerate(texts)
    ]
    told.append({"text": "short", "file": 0, "row": 9 * n + 8, "reason": "caption_short"})
    return {"key": f"{source}-{n}", "source": source, "url": f"http://a.example/{n}.jpg", "captions": told}


def _kept(image: bytes) -> dict[str, Any]:
    sha256 = hashlib.sha256(image).hexdigest()
    sides = {"width": 96, "height": 64, "original_width": 192, "original_height": 128}
    return sides | {"status": "success", "sha256": sha256, "stored_sha256": sha256, "mime": "image/jpeg"}
