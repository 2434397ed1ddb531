"""How fast, and in how much memory, each reader turns annotation files as they are published into records.

For every form a file of generated rows, and three child processes that do one thing each:

    read       recognise, cut into parts and read; this one's memory is reported
    judge      the same, and its captions cleaned and judged by length as plan does (no language detection)
    ceiling    the same bytes as the format's own library reads them, nothing done with them: lines taken one
               by one, JSON parsed whole by orjson, a table read by pyarrow, a database by sqlite3

Rows are those of the reader, seconds those of the CPU.
"""

import bz2
import gc
import gzip
import io
import itertools
import json
import random
import sqlite3
import sys
import tarfile
import tempfile
import time
import zipfile
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote_plus

import orjson
import pyarrow as pa
import pyarrow.parquet as pq

from pmd import text
from pmd.manifest import TextSpec
from pmd.records import Caption, Record, Rejected
from pmd.sources import READERS, Reader
from tests.bench.measure import child, options, report
from tests.bench.plan import WORDS

MODULE = "tests.bench.readers"
RULES = TextSpec(min_words=3)
BATCH = 8_192


class Form(NamedTuple):
    """A form that a source is published in."""

    source: str
    write: Callable[[Path, int], None]  # into a folder, so many rows
    ceiling: Callable[[Path], int]  # reads a file of that folder


# --- generated files ---


class Drawn:
    """Captions, and what else rows need; the same at every run."""

    def __init__(self) -> None:
        self.chance = random.Random(0)
        self.captions = [self._caption(self.chance.randint(3, 24)) for _ in range(20_000)]

    def _caption(self, words: int) -> str:
        said = " ".join(self.chance.choices(WORDS, k=words))
        odd = (" &amp; more", " caf\u00e9", "  twice  spaced", " \u201cquoted\u201d")
        return said + (self.chance.choice(odd) if self.chance.random() < 0.05 else "")

    def caption(self) -> str:
        return self.captions[self.chance.randrange(len(self.captions))]

    def hex(self, bits: int) -> str:
        return f"{self.chance.getrandbits(bits):0{bits // 4}x}"

    def photo(self) -> tuple[int, str]:
        """A photo's id and its address at Flickr."""
        id = self.chance.randint(10**6, 10**10)
        farm, server = self.chance.randint(1, 9), self.chance.randint(1, 8999)
        return id, f"http://farm{farm}.staticflickr.com/{server}/{id}_{self.hex(40)}.jpg"

    def web(self, row: int) -> str:
        return f"https://cdn{row % 9973}.example.org/uploads/2019/{row % 12:02}/image-{row:09}.jpg"


def write_lines(path: Path, lines: Iterable[str]) -> None:
    with path.open("w", encoding="utf-8", newline="\n") as file:
        file.writelines(line + "\n" for line in lines)


def write_list(file: Any, items: Iterable[Any]) -> None:
    """A JSON array, an item at a time: a million rows in memory would be the peak of all that follow."""
    between = b"["
    for item in items:
        file.write(between + json.dumps(item).encode())
        between = b", "
    file.write(b"[]" if between == b"[" else b"]")


def coco(folder: Path, rows: int) -> None:
    drawn = Drawn()
    images = (
        {
            "license": 1 + id % 6,
            "file_name": f"{id:012d}.jpg",
            "coco_url": f"http://images.cocodataset.org/train2017/{id:012d}.jpg",
            "height": 480,
            "width": 640,
            "date_captured": "2013-11-14 16:28:13",
            "flickr_url": drawn.photo()[1],
            "id": id,
        }
        for id in range(rows // 5)
    )
    annotations = (
        {"image_id": row % (rows // 5), "id": row, "caption": drawn.caption()} for row in range(rows)
    )
    with (folder / "captions_train2017.json").open("wb") as file:
        file.write(b'{"info": {}, "licenses": [], "images": ')
        write_list(file, images)
        file.write(b', "annotations": ')
        write_list(file, annotations)
        file.write(b"}")


def sbu(folder: Path, rows: int) -> None:
    drawn = Drawn()
    document = {
        "image_urls": [drawn.photo()[1] for _ in range(rows)],
        "user_ids": [f"{drawn.chance.randint(10**7, 10**8)}@N00" for _ in range(rows)],
        "captions": [drawn.caption() for _ in range(rows)],
    }
    data = json.dumps(document).encode()
    with tarfile.open(folder / "sbu-captions-all.tar.gz", "w:gz") as archive:
        entry = tarfile.TarInfo("sbu-captions-all.json")
        entry.size = len(data)
        archive.addfile(entry, io.BytesIO(data))


def localized_narratives(folder: Path, rows: int) -> None:
    drawn = Drawn()
    write_lines(
        folder / "open_images_train_v6_captions.jsonl",
        (
            json.dumps(
                {
                    "dataset_id": "open_images_train",
                    "image_id": drawn.hex(64),
                    "annotator_id": row % 100,
                    "caption": " ".join(f"In this image there is {drawn.caption()}." for _ in range(3)),
                }
            )
            for row in range(rows)
        ),
    )


def cc3m(folder: Path, rows: int) -> None:
    drawn = Drawn()
    lines = (f"{drawn.caption()}\t{drawn.web(row)}" for row in range(rows))
    write_lines(folder / "Train_GCC-training.tsv", lines)


def cc12m(folder: Path, rows: int) -> None:
    drawn = Drawn()
    lines = (f"{drawn.web(row)}\t{drawn.caption()}" for row in range(rows))
    write_lines(folder / "cc12m.tsv", lines)


def visual_genome(folder: Path, rows: int) -> None:
    drawn = Drawn()
    ids = range(1, rows // 50 + 1)

    def regions(id: int) -> list[dict[str, Any]]:
        return [
            {
                "region_id": id * 50 + place,
                "width": 82,
                "height": 139,
                "image_id": id,
                "phrase": " ".join(drawn.caption().split()[:5]),
                "y": 57,
                "x": 421,
            }
            for place in range(50)
        ]

    members = {
        "region_descriptions": ({"regions": regions(id), "id": id} for id in ids),
        "image_data": (
            {
                "width": 800,
                "url": f"https://cs.stanford.edu/people/rak248/VG_100K_2/{id}.jpg",
                "height": 600,
                "image_id": id,
                "coco_id": None,
                "flickr_id": drawn.photo()[0],
            }
            for id in ids
        ),
    }
    for name, items in members.items():
        with (
            zipfile.ZipFile(folder / f"{name}.json.zip", "w", zipfile.ZIP_DEFLATED) as archive,
            archive.open(f"{name}.json", "w") as file,
        ):
            write_list(file, items)


WIT_COLUMNS = (
    *("language", "page_url", "image_url", "page_title", "section_title", "hierarchical_section_title"),
    *("caption_reference_description", "caption_attribution_description", "caption_alt_text_description"),
    *("mime_type", "original_height", "original_width", "is_main_image", "attribution_passes_lang_id"),
    *("page_changed_recently", "context_page_description", "context_section_description"),
)


def wit(folder: Path, rows: int) -> None:
    """One row in seven is English, as published; a context in ten holds line ends and quotes."""
    drawn = Drawn()

    def line(row: int) -> str:
        language = ("en", "de", "fr", "es", "ru", "it", "pl")[row % 7]
        hash, caption = drawn.hex(32), drawn.caption()
        context = " ".join(drawn.caption() for _ in range(8))
        if row % 10 == 0:
            context = f'"{context}\n{context} ""so called"""'
        fields = (
            language,
            f"https://{language}.wikipedia.org/wiki/Page_{row}",
            f"https://upload.wikimedia.org/wikipedia/commons/{hash[0]}/{hash[:2]}/Image_{row}.jpg",
            *(f"Page {row}", "Section", f"Page {row} / Section"),
            *(caption if row % 2 else "", f"English: {caption} Deutsch: {caption}", ""),
            *("image/jpeg", "1200", "1600", "true", "true", "true", context, context),
        )
        return "\t".join(fields)

    with gzip.open(
        folder / "wit_v1.train.all-00000-of-00010.tsv.gz", "wt", compresslevel=6, encoding="utf-8", newline=""
    ) as file:
        file.writelines(f"{line}\n" for line in ("\t".join(WIT_COLUMNS), *map(line, range(rows))))


def redcaps(folder: Path, rows: int) -> None:
    drawn = Drawn()
    files = 20
    path = folder / "redcaps_v1.0_annotations.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for number in range(files):
            posts = (
                {
                    "image_id": f"{row:06}",
                    "author": "None",
                    "url": f"https://i.redd.it/{drawn.hex(52)}.jpg",
                    "raw_caption": (caption := drawn.caption()),
                    "caption": caption,
                    "subreddit": f"pics{number}",
                    "score": 12,
                    "created_utc": 1_500_000_000 + row,
                    "permalink": f"/r/pics{number}/comments/{row:06}/a_title/",
                    "crosspost_parents": None,
                }
                for row in range(number, rows, files)
            )
            with archive.open(f"annotations/pics{number}_2017.json", "w") as file:
                file.write(b'{"info": {"version": "1.0"}, "annotations": ')
                write_list(file, posts)
                file.write(b"}")


YFCC_COLUMNS = (
    *("photoid", "uid", "unickname", "datetaken", "dateuploaded", "capturedevice", "title", "description"),
    *("usertags", "machinetags", "longitude", "latitude", "accuracy", "pageurl", "downloadurl"),
    *("licensename", "licenseurl", "serverid", "farmid", "secret", "secretoriginal", "ext", "marker"),
)


def yfcc100m_rows(rows: int) -> Iterator[tuple[str, ...]]:
    """Two in three have a description, one in 120 is a video."""
    drawn = Drawn()
    endings = (
        "",
        "",
        "!\n\nThank you (all) for looking, it's 100% mine.",
        ' See <a href="http://a.example">',
    )
    for row in range(rows):
        id, url = drawn.photo()
        owner = f"{drawn.chance.randint(10**7, 10**8)}@N0{row % 9}"
        title = " ".join(drawn.caption().split()[:5])
        description = drawn.caption() + drawn.chance.choice(endings) if row % 3 else ""
        yield (
            *(str(id), owner, "Indigo+Skies", "2012-02-16 09:56:37.0", "1331840483", "Canon+PowerShot"),
            *(quote_plus(title), quote_plus(description), "canon,sunset,black+and+white", ""),
            *("-81.804885", "24.550558", "12", f"http://www.flickr.com/photos/{owner}/{id}/", url),
            *("Attribution License", "http://creativecommons.org/licenses/by/2.0/"),
            *("7205", "8", drawn.hex(40), drawn.hex(40), "jpg", str(int(row % 120 == 0))),
        )


def yfcc100m_lines(folder: Path, rows: int) -> None:
    lines = (
        "\t".join((str(row), photo[0], "4e2f7a26a1dfbf165a7e30bdabf7e72a", *photo[1:]))
        for row, photo in enumerate(yfcc100m_rows(rows))
    )
    write_lines(folder / "yfcc100m_dataset", lines)


def yfcc100m_packed(folder: Path, rows: int) -> None:
    with bz2.open(folder / "yfcc100m_dataset-0.bz2", "wt", encoding="utf-8", newline="\n") as file:
        file.writelines("\t".join(photo) + "\n" for photo in yfcc100m_rows(rows))


def yfcc100m_database(folder: Path, rows: int) -> None:
    database = sqlite3.connect(folder / "yfcc100m_dataset.sql")
    columns = ", ".join(YFCC_COLUMNS).replace("photoid", "photoid integer primary key")
    database.execute(f"CREATE TABLE yfcc100m_dataset ({columns})")
    places = ", ".join("?" * len(YFCC_COLUMNS))
    database.executemany(f"INSERT OR IGNORE INTO yfcc100m_dataset VALUES ({places})", yfcc100m_rows(rows))
    database.commit()
    database.close()


def yfcc100m_subset(folder: Path, rows: int) -> None:
    drawn = Drawn()
    write_lines(
        folder / "yfcc100m_subset.jsonl",
        (
            json.dumps(
                {
                    "image_url": photo[14],
                    "image": None,
                    "texts": [drawn.caption()],
                    "source": "yfcc100m",
                    "meta": json.dumps(dict(zip(YFCC_COLUMNS, photo, strict=True)), indent=2),
                }
            )
            for photo in yfcc100m_rows(rows)
        ),
    )


def table_parquet(folder: Path, rows: int) -> None:
    """LAION's columns, in row groups of 100,000."""
    drawn = Drawn()
    schema = pa.schema(
        [
            ("SAMPLE_ID", pa.int64()),
            ("URL", pa.string()),
            ("TEXT", pa.string()),
            ("HEIGHT", pa.int32()),
            ("WIDTH", pa.int32()),
            ("similarity", pa.float64()),
        ]
    )
    with pq.ParquetWriter(folder / "part-00000.snappy.parquet", schema) as writer:
        for first in range(0, rows, 100_000):
            numbers = range(first, min(first + 100_000, rows))
            columns = [
                [*numbers],
                [drawn.web(row) for row in numbers],
                [drawn.caption() for _ in numbers],
                *([480] * len(numbers), [640] * len(numbers), [0.3] * len(numbers)),
            ]
            writer.write_table(pa.table(columns, schema=schema))


def table_jsonl(folder: Path, rows: int) -> None:
    drawn = Drawn()
    lines = (json.dumps({"url": drawn.web(row), "caption": drawn.caption()}) for row in range(rows))
    write_lines(folder / "pairs.jsonl", lines)


# --- ceilings ---


def each_line(path: Path) -> int:
    """Of a plain, gzipped or bzipped file."""
    opened = {".gz": gzip.open, ".bz2": bz2.open}.get(path.suffix, open)
    with opened(path, "rb") as file:
        return sum(1 for _ in file)


def whole_json(path: Path) -> int:
    """Of a plain file, of all members of a zip, or of a tar.gz's one."""
    if path.suffix == ".zip":
        with zipfile.ZipFile(path) as archive:
            return sum(len(orjson.loads(archive.read(name))) for name in archive.namelist())
    if path.suffix == ".gz":
        with tarfile.open(path) as archive:
            member = archive.extractfile(archive.getnames()[0])
            return len(orjson.loads(member.read() if member else b""))
    return len(orjson.loads(path.read_bytes()))


def whole_table(path: Path) -> int:
    return pq.read_table(path, columns=["URL", "TEXT"], use_threads=False).num_rows


def whole_database(path: Path) -> int:
    database = sqlite3.connect(path)
    return sum(1 for _ in database.execute("SELECT * FROM yfcc100m_dataset"))


FORMS = {
    "coco": Form("coco", coco, whole_json),
    "sbu": Form("sbu", sbu, whole_json),
    "localized_narratives": Form("localized_narratives", localized_narratives, each_line),
    "cc3m": Form("cc3m", cc3m, each_line),
    "visual_genome": Form("visual_genome", visual_genome, whole_json),
    "wit": Form("wit", wit, each_line),
    "cc12m": Form("cc12m", cc12m, each_line),
    "redcaps": Form("redcaps", redcaps, whole_json),
    "yfcc100m_25_columns": Form("yfcc100m", yfcc100m_lines, each_line),
    "yfcc100m_23_columns_bz2": Form("yfcc100m", yfcc100m_packed, each_line),
    "yfcc100m_sqlite": Form("yfcc100m", yfcc100m_database, whole_database),
    "yfcc100m_subset": Form("yfcc100m", yfcc100m_subset, each_line),
    "table_parquet": Form("table", table_parquet, whole_table),
    "table_jsonl": Form("table", table_jsonl, each_line),
}


# --- what a child process does: prints rows and CPU seconds ---


def read_parts(reader: Reader, files: list[Path]) -> Iterator[Iterator[Record | Rejected]]:
    recognised = [path for path in files if reader.recognise(path)]
    assert recognised == files, f"{reader} recognises {recognised} of {files}"
    rules = reader.Rules()
    return (reader.read(part, rules) for part in reader.parts(files))


def read(reader: Reader, files: list[Path]) -> int:
    rows = 0
    for outcomes in read_parts(reader, files):
        for last in deque(outcomes, maxlen=1):  # rows are numbered from 0 in each part
            rows += 1 + (last.row if isinstance(last, Rejected) else last.captions[-1].row)
    return rows


def judge(reader: Reader, files: list[Path]) -> int:
    kept = 0
    found = itertools.chain.from_iterable(read_parts(reader, files))
    while batch := list(itertools.islice(found, BATCH)):
        captions: list[Caption] = []
        for outcome in batch:
            if isinstance(outcome, Record):
                captions += outcome.captions
        while captions:
            verdicts = text.judge(text.clean([caption.text for caption in captions]), RULES)
            kept += verdicts.count(None)
            captions = [
                caption.otherwise
                for caption, verdict in zip(captions, verdicts, strict=True)
                if verdict and caption.otherwise
            ]
    return kept


def work(task: str, name: str, folder: str, rows: int) -> None:
    form = FORMS[name]
    files = sorted(Path(folder).iterdir())
    if task != "write":
        gc.disable()  # as plan does
    start = time.process_time()
    if task == "write":
        form.write(Path(folder), rows)
        count = rows
    elif task == "ceiling":
        count = sum(map(form.ceiling, files))
    else:
        count = (read if task == "read" else judge)(READERS[form.source], files)
    print(json.dumps([count, time.process_time() - start]))


def main() -> None:
    given = options(__doc__, rows=200_000)
    figures: dict[str, float] = {
        "rows": given.rows,
        "peak_mb of the imports alone": child([sys.executable, "-c", f"import {MODULE}"]).peak_mb,
    }
    ratios: dict[str, float] = {}
    for name, form in FORMS.items():
        if form.source not in READERS:
            continue
        print(name, file=sys.stderr)
        with tempfile.TemporaryDirectory(prefix="bench-") as folder:
            done = {
                task: run(task, name, folder, given.rows) for task in ("write", "read", "judge", "ceiling")
            }
            size = sum(path.stat().st_size for path in Path(folder).iterdir())
        rows = done["read"].rows
        figures |= {
            f"{name}: mb": size / 1e6,
            f"{name}: rows_per_cpu_s": rows / done["read"].cpu_s,
            f"{name}: rows_per_cpu_s, judged": rows / done["judge"].cpu_s,
            f"{name}: captions kept": done["judge"].rows,
            f"{name}: peak_mb": done["read"].peak_mb,
            f"{name}: ceiling_rows_per_cpu_s": rows / done["ceiling"].cpu_s,
        }
        ratios[f"{name}: rows_per_cpu_s of ceiling"] = done["ceiling"].cpu_s / done["read"].cpu_s
    report("readers", figures=figures, ratios=ratios, as_json=given.json)


class Done(NamedTuple):
    rows: int  # of judge: captions kept
    cpu_s: float
    peak_mb: float


def run(task: str, name: str, folder: str, rows: int) -> Done:
    code = f"from {MODULE} import work; work({task!r}, {name!r}, {folder!r}, {rows})"
    process = child([sys.executable, "-c", code])
    rows, cpu_s = json.loads(process.stdout)
    return Done(rows, cpu_s, process.peak_mb)


if __name__ == "__main__":
    main()
