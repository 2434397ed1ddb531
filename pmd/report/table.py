"""What each source came to, next to what was expected, and why rows are no pairs. rows = kept + dropped.

corpus_table    a screen at the end of a run                 from the per-source dicts that build, lock,
comparison      the FLAVA paper's table 2, over again        status and report print as JSON
"""

from collections import Counter
from collections.abc import Mapping
from typing import Any

from rich.markup import escape
from rich.table import Table

SHOWN_REASONS = 3  # more are summed up, so that the table keeps to a screen
ROOM_FOR_REASONS = 120  # characters of a screen; a narrower one has no column for reasons

Told = Mapping[str, Any]  # one source


def corpus_table(sources: Mapping[str, Told], *, title: str, width: int = ROOM_FOR_REASONS) -> Table:
    """One line a source: its figures, the paper's pairs and words, and, where the screen is wide enough, why
    most of its rows were dropped.
    """
    table = Table(title=escape(title), title_justify="left", show_footer=len(sources) > 1)
    dropped = sum(sum(source["dropped"].values()) for source in sources.values())
    table.add_column("source", "all", no_wrap=True)
    for name in ("rows", "images", "pairs"):
        table.add_column(name, f"{_total(sources, name):,}", justify="right", no_wrap=True)
    table.add_column("words", _words(sources), justify="right", no_wrap=True)
    table.add_column("paper", justify="right", no_wrap=True)
    table.add_column("kept", _share(_total(sources, "kept"), _total(sources, "rows")), justify="right")
    if width >= ROOM_FOR_REASONS:
        table.add_column("dropped, by reason", f"{dropped:,}", overflow="fold")
    for name, source in sources.items():
        cells = [
            name,
            *(f"{source[column]:,}" for column in ("rows", "images", "pairs")),
            "-" if source["words_per_caption"] is None else f"{source['words_per_caption']:.1f}",
            _of_paper(source),
            _share(source["kept"], source["rows"]),
            _reasons(source["dropped"]),
        ]
        table.add_row(*cells[: len(table.columns)])
    return table


def comparison(sources: Mapping[str, Told], *, title: str) -> Table:
    """One line a source: pairs before and after fetching, and words, next to the expected and the paper's."""
    table = Table(title=escape(title), title_justify="left", show_footer=len(sources) > 1)
    papers = [paper for source in sources.values() if (paper := _paper(source))]
    total = f"{sum(paper['pairs'] for paper in papers) / 1e6:.1f}M" if papers else "-"
    table.add_column("source", "all")
    table.add_column("rows", f"{_total(sources, 'rows'):,}", justify="right")
    table.add_column("expected", justify="right")
    table.add_column("pairs planned", f"{_total(sources, 'planned_pairs'):,}", justify="right")
    table.add_column("expected", justify="right")
    table.add_column("pairs", f"{_total(sources, 'pairs'):,}", justify="right")
    table.add_column("paper", total, justify="right")
    table.add_column("images", f"{_total(sources, 'images'):,}", justify="right")
    table.add_column("words", _words(sources), justify="right")
    table.add_column("expected", justify="right")
    table.add_column("paper", justify="right")
    for name, source in sources.items():
        expected, judged, paper = source["expected"], within(source), _paper(source)
        words = source["words_per_caption"]
        table.add_row(
            name,
            _marked(f"{source['rows']:,}", judged.get("rows")),
            _span(expected.get("rows")),
            _marked(f"{source['planned_pairs']:,}", judged.get("pairs")),
            _span(expected.get("pairs")),
            f"{source['pairs']:,}",
            f"{paper['pairs'] / 1e6:.1f}M" if paper else "-",
            f"{source['images']:,}",
            _marked("-" if words is None else f"{words:.1f}", judged.get("words_per_caption")),
            _span(expected.get("words_per_caption")),
            f"{paper['words_per_caption']}" if paper else "-",
        )
    return table


def within(source: Told) -> dict[str, bool]:
    """For each figure of which a range is expected: whether it lies in there. Pairs are the planned ones.

    Empty while the source is not built to its end: figures of a part say nothing of the whole.
    """
    if not source.get("planned", True) or source.get("finished", {}).get("shards") != source.get("tasks"):
        return {}
    figures = {"rows": source["rows"], "pairs": source["planned_pairs"]}
    if source["words_per_caption"] is not None:
        figures["words_per_caption"] = source["words_per_caption"]
    spans = {name: source["expected"][name] for name in figures if name in source["expected"]}
    return {name: low <= figures[name] <= high for name, (low, high) in spans.items()}


def reasons_table(sources: Mapping[str, Told]) -> Table:
    """Every reason for which rows of a source are no pairs, most frequent first."""
    table = Table()
    table.add_column("source")
    table.add_column("reason")
    table.add_column("rows", justify="right")
    table.add_column("share", justify="right")
    for name, source in sources.items():
        for place, (reason, rows) in enumerate(Counter(source["dropped"]).most_common()):
            table.add_row(name if place == 0 else "", reason, f"{rows:,}", _share(rows, source["rows"]))
    return table


def _of_paper(source: Told) -> str:
    paper = _paper(source)
    return f"{paper['pairs'] / 1e6:.1f}M, {paper['words_per_caption']}" if paper else "-"


def _paper(source: Told) -> Told | None:
    return source["expected"].get("paper")


def _marked(figure: str, is_within: bool | None) -> str:
    return f"[red]{figure} ![/red]" if is_within is False else figure


def _span(span: tuple[float, float] | None) -> str:
    if span is None:
        return "-"
    low, high = (_short(value) for value in span)
    return low if low == high else f"{low}-{high}"


def _short(value: float) -> str:
    if value < 10_000:
        return f"{value:g}"
    return f"{value / 1e6:.4g}M" if value >= 1e6 else f"{value / 1e3:.4g}k"


def _total(sources: Mapping[str, Told], name: str) -> int:
    return sum(source[name] for source in sources.values())


def _words(sources: Mapping[str, Told]) -> str:
    pairs = _total(sources, "pairs")
    words = sum((source["words_per_caption"] or 0) * source["pairs"] for source in sources.values())
    return f"{words / pairs:.1f}" if pairs else "-"


def _share(part: int, whole: int) -> str:
    return f"{100 * part / whole:.1f}%" if whole else "-"


def _reasons(dropped: Mapping[str, int]) -> str:
    ranked = Counter(dropped).most_common()
    shown = [f"{reason} {rows:,}" for reason, rows in ranked[:SHOWN_REASONS]]
    rest = sum(rows for _, rows in ranked[SHOWN_REASONS:])
    return ", ".join(shown + ([f"{len(ranked) - SHOWN_REASONS} more {rest:,}"] if rest else [])) or "none"
