"""Rules over what was fetched: which pictures are kept. A rule is a function of one row: a Reason against it,
or None.

A rule sees the index columns, never the image, so rules are changed and run again without a request. They are
asked in the order of RULES and the first objection counts.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import pyarrow as pa

from pmd.manifest import ImageSpec
from pmd.records import Reason
from pmd.tables import VERDICT


class Fetched(NamedTuple):
    """What rules see of a row: the served image's size in px."""

    original_width: int
    original_height: int


def min_side(row: Fetched, spec: ImageSpec) -> Reason | None:
    """Drop images whose shorter side is under spec.min_side."""
    return Reason.IMAGE_SMALL if min(row) < spec.min_side else None


def max_aspect(row: Fetched, spec: ImageSpec) -> Reason | None:
    """Drop images longer than spec.max_aspect times their shorter side."""
    return Reason.IMAGE_ASPECT if max(row) > spec.max_aspect * min(row) else None


Rule = Callable[[Fetched, ImageSpec], Reason | None]
RULES: Sequence[Rule] = (min_side, max_aspect)


def judge(fetched: pa.Table, spec: ImageSpec) -> list[str | None]:
    """For each row of a FETCHED table: why it is dropped, by an earlier stage or by a rule, or None."""
    columns: list[list[Any]] = [fetched[name].to_pylist() for name in ("reason", *Fetched._fields)]
    return [
        reason if reason is not None else _objection(Fetched(*sizes), spec)
        for reason, *sizes in zip(*columns, strict=True)
    ]


def _objection(row: Fetched, spec: ImageSpec) -> str | None:
    objections = (rule(row, spec) for rule in RULES)
    return next((reason.value for reason in objections if reason is not None), None)


def verdicts(keys: pa.ChunkedArray, reasons: list[str | None]) -> pa.Table:
    """The VERDICT table of some keys and the reasons against them."""
    kept = [reason is None for reason in reasons]
    return pa.table([keys, pa.array(kept), pa.array(reasons, pa.string())], schema=VERDICT)
