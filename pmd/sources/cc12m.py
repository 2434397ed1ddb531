"""Conceptual 12M: one TSV of 12.4 million web images with their alt texts.

    https://example.com/a.jpg TAB a photo of <PERSON> by the sea

No header, no quoting, URL first (CC3M has it second). A caption may hold further TABs. `<PERSON>` stands for
a name that the publisher took out. Rows are the lines of the file.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

from pmd.records import Reason, Record, Rejected
from pmd.sources.lines import Layout, layout, line_parts, lines, pair
from pmd.sources.part import Part, excerpt
from pmd.sources.rules import Rules

FORM = "url-caption tsv"


def recognise(path: Path) -> str | None:
    return FORM if layout(path) == Layout(columns=2, url_column=0) else None


def parts(paths: Sequence[Path]) -> list[Part]:
    return line_parts(paths, FORM)


def read(part: Part, rules: Rules) -> Iterator[Record | Rejected]:
    for row, line in lines(part):
        if isinstance(line, Rejected):
            yield line
            continue
        url, tab, caption = line.partition("\t")
        if tab:
            yield pair("cc12m", row, url, caption)
        else:
            yield Rejected(row, Reason.INPUT_MALFORMED, f"expected url TAB caption, found {excerpt(line)}")
