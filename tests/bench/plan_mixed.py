"""How much memory, and how long, the planning of all nine sources takes.

Generated annotation files in the sources' own formats, as many rows of each as they have in PMD, are planned
by `pmd plan --inline`: one process, no language detection. Memory is what this is about: the sources differ
in what a reader must hold, and in how many captions meet in a record.
"""

import os
import tempfile
from pathlib import Path

from tests.bench.measure import child, options, pmd, report
from tests.bench.readers import FORMS, run

# Form -> millions of rows as published.
PUBLISHED = {
    "coco": 0.6,
    "sbu": 1.0,
    "localized_narratives": 0.9,
    "cc3m": 3.3,
    "visual_genome": 5.4,
    "wit": 37.0,
    "cc12m": 12.4,
    "redcaps": 12.0,
    "yfcc100m_25_columns": 100.0,
}
SHARD_IMAGES = 10_000


def main() -> None:
    given = options(__doc__, rows=10_000_000)
    whole = sum(PUBLISHED.values())
    with tempfile.TemporaryDirectory(prefix="bench-") as name:
        folder = Path(name)
        described: list[str] = []
        for form, millions in PUBLISHED.items():
            source = FORMS[form].source
            files = folder / source
            files.mkdir()
            # In a process of its own: the memory of who starts a process counts as that process's.
            run("write", form, str(files), round(given.rows * millions / whole))
            described.append(f'[source.{source}]\nfiles = ["{source}"]\n')
        sources = ", ".join(f'"{FORMS[form].source}"' for form in PUBLISHED)
        rules = f"[shard]\nimages = {SHARD_IMAGES}\n[text]\nmin_words = 3\nmax_chars = 1000\n"
        corpus, out = folder / "corpus.toml", str(folder / "out")
        corpus.write_text(f'name = "bench"\nsources = [{sources}]\n' + "".join(described) + rules)
        size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
        child([pmd(), "pin", str(corpus), "--out", out, "--inline"])
        ours = child([pmd(), "plan", str(corpus), "--out", out, "--inline"])
        planned = sum(os.path.getsize(path) for path in Path(out, "plan").rglob("*.parquet"))
    report(
        "plan_mixed",
        figures={
            "rows": given.rows,
            "bytes": size,
            "planned_bytes": planned,
            "rows_per_s": given.rows / ours.seconds,
            "rows_per_cpu_s": given.rows / ours.cpu_s,
            "peak_mb": ours.peak_mb,
        },
        ratios={"planned_bytes_of_bytes": planned / size},
        as_json=given.json,
    )


if __name__ == "__main__":
    main()
