"""The end-of-run table: what each source came to, and why rows were dropped. rows = kept + dropped."""

from collections import Counter
from collections.abc import Mapping
from typing import Any

from rich.table import Table

SHOWN_REASONS = 6  # more are summed up, so that the table keeps to a screen


def corpus_table(sources: Mapping[str, Mapping[str, Any]], *, title: str) -> Table:
    """A table of the per-source counts that build, lock and status print as JSON."""
    table = Table(title=title, title_justify="left", show_footer=len(sources) > 1)
    total = {
        name: sum(source[name] for source in sources.values()) for name in ("rows", "kept", "images", "pairs")
    }
    dropped: Counter[str] = Counter()
    for source in sources.values():
        dropped.update(source["dropped"])
    table.add_column("source", "all")
    for name in ("rows", "images", "pairs"):
        table.add_column(name, f"{total[name]:,}", justify="right")
    table.add_column("words/caption", _words(sources), justify="right")
    table.add_column("kept", _share(total["kept"], total["rows"]), justify="right")
    table.add_column("dropped, by reason", f"{sum(dropped.values()):,}", overflow="fold")
    for name, source in sources.items():
        table.add_row(
            name,
            *(f"{source[column]:,}" for column in ("rows", "images", "pairs")),
            "-" if source["words_per_caption"] is None else f"{source['words_per_caption']:.1f}",
            _share(source["kept"], source["rows"]),
            _reasons(source["dropped"]),
        )
    return table


def _words(sources: Mapping[str, Mapping[str, Any]]) -> str:
    pairs = sum(source["pairs"] for source in sources.values())
    words = sum((source["words_per_caption"] or 0) * source["pairs"] for source in sources.values())
    return f"{words / pairs:.1f}" if pairs else "-"


def _share(part: int, whole: int) -> str:
    return f"{100 * part / whole:.1f}%" if whole else "-"


def _reasons(dropped: Mapping[str, int]) -> str:
    ranked = Counter(dropped).most_common()
    shown = [f"{reason} {rows:,}" for reason, rows in ranked[:SHOWN_REASONS]]
    rest = sum(rows for _, rows in ranked[SHOWN_REASONS:])
    return ", ".join(shown + ([f"{len(ranked) - SHOWN_REASONS} more {rest:,}"] if rest else [])) or "none"
