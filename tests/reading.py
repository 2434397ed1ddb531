"""What every test of a reader does: read files whole, and hold the outcomes to the laws of all readers."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pmd.records import KEY, Caption, Record, Rejected
from pmd.sources import READERS, Reader

Outcome = Record | Rejected


def read_parts(source: str | Reader, *paths: Path, rules: Any = None) -> list[list[Outcome]]:
    """The outcomes of each part of some files; rules: those of a corpus file that chooses nothing."""
    reader = READERS[source] if isinstance(source, str) else source
    chosen = rules if rules is not None else reader.Rules()
    return [[*reader.read(part, chosen)] for part in reader.parts(paths)]


def read_all(source: str | Reader, *paths: Path, rules: Any = None) -> list[Outcome]:
    """The outcomes of some files, one part after the other, with rows numbered on over all of them."""
    whole: list[Outcome] = []
    first = 0
    for outcomes in read_parts(source, *paths, rules=rules):
        whole += [_moved(outcome, first) for outcome in outcomes]
        first += len({row for outcome in outcomes for row in rows_of(outcome)})
    return whole


def check_laws(outcomes: list[Outcome], source: str) -> None:
    """What must hold for the outcomes of one part, whatever its bytes: see pmd/sources/__init__.py."""
    rows = [row for outcome in outcomes for row in rows_of(outcome)]
    assert rows == sorted(rows), "rows come in order"
    assert sorted(set(rows)) == list(range(len(set(rows)))), "every row comes out, counted from 0"
    keys: dict[int, str | None] = {}
    for outcome in outcomes:
        json.dumps(outcome, ensure_ascii=False).encode()  # all of it can be stored as UTF-8
        for row in {*rows_of(outcome)}:
            key = outcome.key if isinstance(outcome, Record) else None
            assert keys.setdefault(row, key) == key, "a row is rejected or belongs to one image"
        if isinstance(outcome, Record):
            assert KEY.match(outcome.key) and outcome.key.startswith(f"{source}-")
            assert outcome.url or outcome.path
            assert outcome.captions and all(text.strip() for text in texts_of(outcome))
            assert outcome.meta is None or isinstance(json.loads(outcome.meta), dict)
        else:
            assert outcome.detail.isprintable() and len(outcome.detail) < 400


def rows_of(outcome: Outcome) -> list[int]:
    return [outcome.row] if isinstance(outcome, Rejected) else [caption.row for caption in outcome.captions]


def texts_of(record: Record) -> Iterator[str]:
    """Every text of a record, also those that would be taken otherwise."""
    for caption in record.captions:
        found: Caption | None = caption
        while found:
            yield found.text
            found = found.otherwise


def _moved(outcome: Outcome, by: int) -> Outcome:
    if isinstance(outcome, Rejected):
        return outcome._replace(row=outcome.row + by)
    return outcome._replace(captions=tuple(_moved_caption(caption, by) for caption in outcome.captions))


def _moved_caption(caption: Caption, by: int) -> Caption:
    otherwise = _moved_caption(caption.otherwise, by) if caption.otherwise else None
    return caption._replace(row=caption.row + by, otherwise=otherwise)
