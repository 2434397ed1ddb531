"""How fast, and in how much memory, annotation rows become plan files.

A generated file in CC12M's format (URL, tab, alt text; a twentieth of the captions needs mending) is planned
by `pmd plan --inline`, one process, caption rules on. The ceiling in the same run: pyarrow, on one thread,
reads the same file as two columns and writes them as Parquet, with nothing cleaned, judged, keyed or placed.
"""

import random
import tempfile
from pathlib import Path

from tests.bench.measure import child, options, pmd, report

CORPUS = """
name = "bench"
sources = ["cc12m"]
[source.cc12m]
files = ["cc12m.tsv"]
[text]
min_words = 3
max_chars = 1000
"""

CEILING = """
import sys
import pyarrow as pa, pyarrow.csv as csv, pyarrow.parquet as pq
pa.set_cpu_count(1)
reader = csv.open_csv(
    sys.argv[1],
    read_options=csv.ReadOptions(column_names=["url", "caption"], use_threads=False),
    parse_options=csv.ParseOptions(delimiter="\\t", quote_char=False),
)
with pq.ParquetWriter(sys.argv[2], reader.schema, compression="zstd") as writer:
    for batch in reader:
        writer.write_batch(batch)
"""

WORDS = (
    *("a", "the", "of", "in", "on", "with", "and", "at", "for", "to", "red", "old", "new", "photo", "view"),
    *("street", "house", "garden", "beach", "city", "dog", "cat", "people", "couple", "kitchen", "wedding"),
    *("vintage", "design", "white", "black", "wooden", "table", "sunset", "<PERSON>", "festival", "mountain"),
)


def write_rows(path: Path, rows: int) -> None:
    """A CC12M-format file: captions of 3 to 40 words, 5 % with entities, accents or stray white space."""
    chance = random.Random(0)
    tails = [" ".join(chance.choices(WORDS, k=chance.randint(3, 40))) for _ in range(20_000)]
    for place in range(0, len(tails), 20):
        tails[place] += chance.choice([" &amp; more", " caf\u00e9", "  twice  spaced", " \u201cquoted\u201d"])
    with open(path, "w", encoding="utf-8", newline="\n") as file:
        for row in range(rows):
            host = row % 9973
            caption = tails[chance.randrange(len(tails))]
            file.write(
                f"https://cdn{host}.example.org/uploads/2019/{row % 12:02}/image-{row:09}.jpg\t{caption}\n"
            )


def main() -> None:
    given = options(__doc__, rows=10_000_000)
    with tempfile.TemporaryDirectory(prefix="bench-") as name:
        folder = Path(name)
        table = folder / "cc12m.tsv"
        write_rows(table, given.rows)
        (folder / "corpus.toml").write_text(CORPUS)
        (folder / "ceiling.py").write_text(CEILING)
        import sys

        out = str(folder / "out")
        child([pmd(), "pin", str(folder / "corpus.toml"), "--out", out, "--inline"])
        ours = child([pmd(), "plan", str(folder / "corpus.toml"), "--out", out, "--inline", "--json"])
        ceiling = child(
            [sys.executable, str(folder / "ceiling.py"), str(table), str(folder / "ceiling.parquet")]
        )
        size = table.stat().st_size
    report(
        "plan",
        figures={
            "rows": given.rows,
            "bytes": size,
            "rows_per_s": given.rows / ours.seconds,
            "rows_per_cpu_s": given.rows / ours.cpu_s,
            "peak_mb": ours.peak_mb,
            "ceiling_rows_per_cpu_s": given.rows / ceiling.cpu_s,
        },
        ratios={"rows_per_cpu_s_of_ceiling": ceiling.cpu_s / ours.cpu_s},
        as_json=given.json,
    )


if __name__ == "__main__":
    main()
