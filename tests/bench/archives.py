"""How fast images come out of archives in random order, and what opening an archive costs.

Reading: random bytes of COCO's sizes (some 150 kB), out of a zip that stores, one that deflates and a tar.
The ceiling in the same run are the same files in a folder; the standard library reads the same archives. All
of it lies in the page cache: this is what the code costs, not the disk.

Opening: archives of as many members as COCO's train2017.zip, each in a process of its own; memory is by how
much its peak is above what resided before.
"""

import io
import json
import random
import statistics
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

from pmd.archives import Archives
from tests.bench.measure import child, medians, options, report

MOST = 1 << 20  # bytes an image

OPEN = """
import json, re, sys, tarfile, time, zipfile
from pathlib import Path
from pmd.archives import Archives

def resident_mb(which):  # not getrusage: its peak is the parent's, if that was higher
    return int(re.search(which + r":\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) / 1024

openers = {
    "ours": lambda path: Archives([Path(path)]),
    "zipfile": zipfile.ZipFile,
    "tarfile": lambda path: tarfile.open(path).getmembers(),
}
how, path = sys.argv[1:]
before, start = resident_mb("VmRSS"), time.perf_counter()
opened = openers[how](path)
seconds = time.perf_counter() - start
print(json.dumps([seconds, resident_mb("VmHWM") - before, resident_mb("VmRSS") - before]))
"""


def main() -> None:
    given = options(__doc__, images=2000, members=118_287, repeats=5)
    with tempfile.TemporaryDirectory(prefix="bench-") as name:
        figures = reading(Path(name), images=given.images, repeats=given.repeats)
        figures |= opening(Path(name), members=given.members, repeats=given.repeats)
    report(
        "archives",
        figures=figures,
        ratios={
            **{f"{kind}_of_folder": figures[f"{kind}_per_s"] / figures["folder_per_s"] for kind in KINDS},
            "stored_of_zipfile": figures["stored_per_s"] / figures["stored_by_zipfile_per_s"],
            "deflated_of_zipfile": figures["deflated_per_s"] / figures["deflated_by_zipfile_per_s"],
            "tar_of_tarfile": figures["tar_per_s"] / figures["tar_by_tarfile_per_s"],
            "open_zip_of_zipfile": figures["open_zip_by_zipfile_s"] / figures["open_zip_by_ours_s"],
            "open_tar_of_tarfile": figures["open_tar_by_tarfile_s"] / figures["open_tar_by_ours_s"],
        },
        as_json=given.json,
    )


KINDS = ("stored", "deflated", "tar")


def reading(folder: Path, *, images: int, repeats: int) -> dict[str, float]:
    """Images a second, by one thread."""
    chance = random.Random(0)
    names = [f"train2017/{number:012}.jpg" for number in range(images)]
    (folder / "train2017").mkdir()
    with (
        zipfile.ZipFile(folder / "stored", "w") as stored,
        zipfile.ZipFile(folder / "deflated", "w", zipfile.ZIP_DEFLATED, compresslevel=1) as deflated,
        tarfile.open(folder / "tar", "w") as tar,
    ):
        for name in names:
            image = chance.randbytes(chance.randint(50_000, 250_000))
            (folder / name).write_bytes(image)
            stored.writestr(name, image)
            deflated.writestr(name, image)
            add(tar, name, image)
    chance.shuffle(names)

    def read_all(read: Callable[[str], object]) -> None:
        for name in names:
            assert isinstance(read(name), bytes)

    readers: dict[str, Callable[[str], object]] = {
        "folder": lambda name: (folder / name).read_bytes(),
        **{kind: partial(Archives([folder / kind]).read, max_bytes=MOST) for kind in KINDS},
    }
    with (
        zipfile.ZipFile(folder / "stored") as stored,
        zipfile.ZipFile(folder / "deflated") as deflated,
        tarfile.open(folder / "tar") as tar,
    ):
        members = {entry.name: entry for entry in tar.getmembers()}  # by name alone, it looks at all of them
        readers |= {"stored_by_zipfile": stored.read, "deflated_by_zipfile": deflated.read}
        readers["tar_by_tarfile"] = lambda name: whole(tar.extractfile(members[name]))
        works: dict[str, Callable[[], object]] = {
            kind: partial(read_all, read) for kind, read in readers.items()
        }
        times = medians(works, repeats=repeats)
    mb = sum((folder / name).stat().st_size for name in names) / 1e6
    return {"images": images, "mb": mb} | {f"{kind}_per_s": images / taken for kind, taken in times.items()}


def opening(folder: Path, *, members: int, repeats: int) -> dict[str, float]:
    """Seconds, MB at the peak and MB kept: the median of each."""
    with zipfile.ZipFile(folder / "many.zip", "w") as archive, tarfile.open(folder / "many.tar", "w") as tar:
        for number in range(members):
            name = f"train2017/{number:012}.jpg"
            archive.writestr(name, b"image")
            add(tar, name, b"image")
    figures: dict[str, float] = {"members": members}
    for kind, library in (("zip", "zipfile"), ("tar", "tarfile")):
        for how in ("ours", library):
            command = [sys.executable, "-c", OPEN, how, str(folder / f"many.{kind}")]
            taken = [json.loads(child(command).stdout) for _ in range(repeats)]
            for unit, column in zip(("s", "peak_mb", "mb"), zip(*taken, strict=True), strict=True):
                figures[f"open_{kind}_by_{how}_{unit}"] = statistics.median(column)
    again = medians({"again": lambda: Archives([folder / "many.zip"])}, repeats=max(3, repeats))
    return figures | {"open_again_us": 1e6 * again["again"]}


def add(archive: tarfile.TarFile, name: str, data: bytes) -> None:
    entry = tarfile.TarInfo(name)
    entry.size = len(data)
    archive.addfile(entry, io.BytesIO(data))


def whole(file: object) -> bytes:
    assert isinstance(file, io.BufferedReader)
    return file.read()


if __name__ == "__main__":
    main()
