"""What a person watches while a command of `flava` works: how much, how fast, how much longer.

    codes  ━━━━━━━━━━╸━━━━━━━━━━━━━  1,024,000 images   2,114/s   37 of 96 shards   0:14:10 left

On a terminal a bar, elsewhere a line every ten seconds, on standard error: standard output is for results.
"""

import time
from collections import deque
from types import TracebackType
from typing import Any, Self

from rich.console import Console
from rich.progress import BarColumn, TextColumn
from rich.progress import Progress as Bars

EVERY_S = 10.0  # a line, where there is no terminal
WINDOW_S = 30.0  # over which a rate is taken


class Progress:
    """The display of one command."""

    def __init__(self, name: str, unit: str, *, console: Console | None = None) -> None:
        """unit: of what is counted, in the plural."""
        self._name, self._unit = name, unit
        self._console = console or Console(stderr=True, highlight=False)
        self._bars: Bars | None = None
        self._bar: Any = None
        self._seen: deque[tuple[float, int]] = deque()  # (when, how many)
        self._begun = self._said = time.monotonic()
        self._first: float | None = None  # the share that was done when it began

    def __enter__(self) -> Self:
        if self._console.is_terminal:
            columns = TextColumn("{task.description}"), BarColumn(24), TextColumn("{task.fields[line]}")
            self._bars = Bars(*columns, console=self._console).__enter__()
            self._bar = self._bars.add_task(f"[bold]{self._name}[/bold]", total=1.0, line="")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bars is not None:
            self._bars.__exit__(kind, error, trace)

    def show(self, count: int, share: float, note: str = "") -> None:
        """So many are done, which is this share of the work."""
        now = time.monotonic()
        if self._first is None:
            self._first = share
        self._seen.append((now, count))
        while len(self._seen) > 2 and now - self._seen[0][0] > WINDOW_S:
            self._seen.popleft()
        line = self._line(now, count, share, note)
        if self._bars is not None:
            self._bars.update(self._bar, completed=share, line=line)
        elif now - self._said >= EVERY_S:
            self._said = now
            self._console.print(f"{self._name}  {share:.0%}  {line}", markup=False, soft_wrap=True)

    def parts(self, count: int, part: int, parts: int) -> None:
        """So many are done; and this part of so many parts is being worked on."""
        self.show(count, part / max(1, parts), f"{part:,} of {parts:,} shards")

    def _line(self, now: float, count: int, share: float, note: str) -> str:
        (then, before), (_, after) = self._seen[0], self._seen[-1]
        told = [f"{count:,} {self._unit}"]
        if now > then:
            told.append(f"{(after - before) / (now - then):,.0f}/s")
        if note:
            told.append(note)
        assert self._first is not None
        if share > self._first:
            left = round((now - self._begun) * (1 - share) / (share - self._first))
            told.append(f"{left // 3600}:{left // 60 % 60:02}:{left % 60:02} left")
        return "   ".join(told)
