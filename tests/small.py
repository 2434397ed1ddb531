"""A corpus small enough to build many times in a test: two sources, many losses, and the web it lives on."""

import io
import json
import os
import random
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

from pipelines import cli
from tests.web import Fault, Web

PMD = str(Path(sys.executable).parent / "pmd")
COCO_IMAGES, CC3M_ROWS = 30, 60


def photo(seed: int, *, size: tuple[int, int] = (320, 240)) -> bytes:
    """A JPEG that no other seed gives."""
    chance = random.Random(seed)
    small = Image.frombytes("RGB", (8, 6), chance.randbytes(8 * 6 * 3))
    file = io.BytesIO()
    small.resize(size, Image.Resampling.BICUBIC).save(file, "JPEG", quality=90)
    return file.getvalue()


@dataclass
class Small:
    """Where the corpus file is, which web serves it, and what must come of it."""

    corpus: Path
    web: Web
    rows: dict[str, int]
    images: dict[str, int]
    dropped: dict[str, dict[str, int]]
    captions: dict[str, list[str]] = field(default_factory=dict)  # key -> kept captions


def publish(folder: Path, web: Web, *, shard_images: int = 8, extra: str = "") -> Small:
    """Write the annotation files and the corpus file, and put the pictures on the web."""
    small = Small(folder / "corpus.toml", web, {}, {}, {})
    _publish_coco(folder, small)
    _publish_cc3m(folder, small)
    connect = ", ".join(f"{json.dumps(host)} = {json.dumps(to)}" for host, to in web.connect_to.items())
    small.corpus.write_text(
        f"""
name = "small"
sources = ["coco", "cc3m"]
[source.coco]
files = ["captions_train2017.json"]
[source.cc3m]
files = ["Train_GCC-training.tsv"]
[shard]
images = {shard_images}
[text]
min_words = 2
[image]
image_size = 96
min_side = 32
max_aspect = 4.0
[fetch]
timeout_s = 5
retries = 1
per_host_rate = 10_000
per_host_connections = 8
patience_s = 5
connect_to = {{ {connect} }}
ca_file = {json.dumps(str(web.ca_file))}
{extra}
"""
    )
    return small


def _publish_coco(folder: Path, small: Small) -> None:
    host = "images.cocodataset.org"
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for number in range(COCO_IMAGES):
        name = f"{number:012d}.jpg"
        images.append(
            {"id": number, "file_name": name, "coco_url": f"http://{host}/train2017/{name}", "license": 4}
        )
        small.web.serve(host, f"/train2017/{name}", photo(number))
        for n in range(5):
            text = f"photo {number} of a thing seen {n} times"
            annotations.append({"id": 10 * number + n, "image_id": number, "caption": f" {text}\n"})
    annotations.append({"id": 9_000, "image_id": 7_777, "caption": "of an image that is not listed"})
    small.web.fault(host, "/train2017/000000000003.jpg", Fault.NOT_FOUND)
    small.web.fault(host, "/train2017/000000000004.jpg", Fault.TRUNCATED)
    random.Random(0).shuffle(annotations)
    for annotation in annotations:
        if annotation["image_id"] not in (3, 4, 7_777):
            captions = small.captions.setdefault(f"coco-{annotation['image_id']}", [])
            captions.append(annotation["caption"].strip())
    licenses = [
        {"id": 4, "name": "Attribution License", "url": "http://creativecommons.org/licenses/by/2.0/"}
    ]
    whole = {"info": {}, "licenses": licenses, "images": images, "annotations": annotations}
    (folder / "captions_train2017.json").write_text(json.dumps(whole))
    small.rows["coco"], small.images["coco"] = len(annotations), COCO_IMAGES - 2
    small.dropped["coco"] = {"input_no_image": 1, "http_404": 5, "body_truncated": 5}


def _publish_cc3m(folder: Path, small: Small) -> None:
    faults: dict[int, tuple[str, Callable[[str], None]]] = {
        1: ("http_410", lambda path: small.web.fault("a.example", path, Fault.GONE)),
        2: ("http_5xx", lambda path: small.web.fault("a.example", path, Fault.SERVER_ERROR)),
        3: ("not_an_image", lambda path: small.web.fault("a.example", path, Fault.HTML_200)),
        4: ("image_small", lambda path: small.web.serve("a.example", path, photo(900, size=(20, 20)))),
        5: ("image_aspect", lambda path: small.web.serve("a.example", path, photo(901, size=(400, 60)))),
        6: ("connect_reset", lambda path: small.web.fault("a.example", path, Fault.RESET)),
    }
    lines: list[bytes] = []
    dropped = dict.fromkeys((reason for reason, _ in faults.values()), 1)
    for row in range(CC3M_ROWS):
        scheme = "https" if row % 2 else "http"
        url = f"{scheme}://a.example/{row}.jpg"
        lines.append(f"caption of picture number {row} .\t{url}".encode())
        if row in faults:
            faults[row][1](f"/{row}.jpg")
        else:
            small.web.serve("a.example", f"/{row}.jpg", photo(1_000 + row))
    lines += [
        b"a caption without its address",
        b"\xff\xfe\thttps://a.example/1.jpg",
        b"lonely\thttps://a.example/7.jpg",
    ]
    lines += [b"no address here\tnowhere", b"a local file\tfile:///etc/passwd"]
    dropped |= {"input_malformed": 2, "caption_short": 1, "input_bad_url": 1, "bad_scheme": 1}
    (folder / "Train_GCC-training.tsv").write_bytes(b"\n".join(lines) + b"\n")
    small.rows["cc3m"], small.images["cc3m"], small.dropped["cc3m"] = (
        len(lines),
        CC3M_ROWS - len(faults),
        dropped,
    )


def pmd(*arguments: str | Path, code: int = 0) -> subprocess.CompletedProcess[str]:
    """Run `pmd` in a process of its own; fails unless it ends with the exit code expected."""
    done = subprocess.run(
        [PMD, *map(str, arguments)], capture_output=True, text=True, env=os.environ | {"COLUMNS": "160"}
    )
    assert done.returncode == code, f"exit {done.returncode}, not {code}\n{done.stdout}\n{done.stderr}"
    return done


def pmd_json(*arguments: str | Path, code: int = 0) -> dict[str, Any]:
    """The JSON that a command prints on standard output."""
    return json.loads(pmd(*arguments, "--json", code=code).stdout)


def run_here(*arguments: str | Path, code: int = 0) -> dict[str, Any]:
    """A command in this process; the JSON it prints."""
    stdout, sys.stdout = sys.stdout, io.StringIO()
    try:
        done = cli.run([*map(str, arguments), "--json"])
        said = sys.stdout.getvalue()
    finally:
        sys.stdout = stdout
    assert done == code, said
    return json.loads(said)
