"""Conceptual Captions 3M: TSV files of web images with alt texts that the publisher rewrote.

    a typical bus station TAB http://example.com/a.jpg                                  training, validation
    a typical bus station TAB http://example.com/a.jpg TAB bus TAB /m/01bjv TAB 0.98    with image labels

No header, no quoting, caption first (CC12M has it second). Only the first two columns are read. Rows are the
lines of the file.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

from pmd.records import Reason, Record, Rejected
from pmd.sources.lines import Layout, layout, line_parts, lines, pair
from pmd.sources.part import Part, excerpt
from pmd.sources.rules import Rules

FORM = "caption-url tsv"

_LAYOUTS = (Layout(columns=2, url_column=1), Layout(columns=5, url_column=1))


def recognise(path: Path) -> str | None:
    return FORM if layout(path) in _LAYOUTS else None


def parts(paths: Sequence[Path]) -> list[Part]:
    return line_parts(paths, FORM)


def read(part: Part, rules: Rules) -> Iterator[Record | Rejected]:
    for row, line in lines(part):
        if isinstance(line, Rejected):
            yield line
            continue
        fields = line.split("\t", 2)
        if len(fields) > 1:
            yield pair("cc3m", row, fields[1], fields[0])
        else:
            yield Rejected(row, Reason.INPUT_MALFORMED, f"expected caption TAB url, found {excerpt(line)}")
