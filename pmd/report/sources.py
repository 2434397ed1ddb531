"""The datasets as `pmd sources` shows them: what is published, under which terms, and what is here."""

from collections.abc import Iterable, Mapping
from typing import Any

from rich.table import Table

from pmd.manifest import Edition, Source

Pin = Mapping[str, Any] | None


def sources_table(sources: Iterable[tuple[Source, Pin]]) -> Table:
    """One line an edition: rows, size of its files, licence, pinned or not."""
    table = Table()
    table.add_column("source")
    table.add_column("edition")
    table.add_column("rows", justify="right")
    table.add_column("files", justify="right")
    table.add_column("annotations' licence", overflow="fold")
    table.add_column("pinned here")
    for source, pin in sources:
        for place, edition in enumerate(source.edition):
            pinned = "yes" if pin and pin["edition"] == edition.name else "no"
            table.add_row(
                source.name if place == 0 else "",
                edition.name,
                _span(edition.rows),
                size_of(edition),
                source.license if place == 0 else "",
                pinned,
            )
    return table


def describe_source(source: Source, pin: Pin) -> str:
    """All that its manifest says, as text."""
    lines = [
        f"{source.name}: {source.title}",
        f"  {source.homepage}",
        f"  {source.cite}",
        f"  annotations: {source.license}",
        f"  images: {source.image_license}",
        f"  attribution: {source.attribution}",
        f"  in the FLAVA paper: {source.paper.pairs:,} pairs of {source.paper.words_per_caption} words",
    ]
    for edition in source.edition:
        lines.append(f"  edition {edition.name}: {edition.about}")
        lines.append(f"    expected: {_expected(edition)}. {edition.evidence}".rstrip())
        lines += [
            f"    {file.url}  {_bytes(file.size)}  {file.sha256 or ''}".rstrip() for file in edition.file
        ]
    lines += [
        f"  images as an archive: {archive.url}  {_bytes(archive.size)} ({archive.holds})"
        for archive in source.archive
    ]
    if pin:
        lines.append(f"  pinned here: edition {pin['edition']}")
        lines += [f"    {file['path']}  {file['size']:,} bytes  {file['sha256']}" for file in pin["files"]]
    else:
        lines.append(f"  not pinned here: `pmd pin {source.name}` downloads it")
    return "\n".join(lines)


def size_of(edition: Edition) -> str:
    """The bytes of all its files: at least, where some sizes are not published."""
    known = [file.size for file in edition.file if file.size is not None]
    if not known:
        return "?"
    return ("" if len(known) == len(edition.file) else "over ") + _bytes(sum(known))


def _expected(edition: Edition) -> str:
    parts = [f"{_span(edition.rows)} rows"]
    if edition.pairs:
        parts.append(f"{_span(edition.pairs)} pairs")
    if edition.words_per_caption:
        parts.append(f"{_span(edition.words_per_caption)} words a caption")
    return ", ".join(parts)


def _span(span: tuple[float, float]) -> str:
    low, high = (f"{value:,.0f}" if value >= 1000 else f"{value:g}" for value in span)
    return low if low == high else f"{low} to {high}"


def _bytes(size: int | None) -> str:
    if size is None:
        return "size not published"
    amount, unit = float(size), "bytes"
    for unit in ("bytes", "kB", "MB", "GB", "TB"):
        if amount < 999.5 or unit == "TB":  # more would be rounded to 1000
            break
        amount /= 1000
    return f"{amount:.3g} {unit}"
