"""What a person watches while a stage runs.

On a terminal, one bar a source:

    download  cc3m  ━━━━━━━━━━━━╸━━━━━  8,120/15,833   214/s   kept 81%   http_404 9%  dns_failed 6%   0:00:36
    left

Elsewhere (logs, pipes) the same as plain lines, one every ten seconds and one at the end of a source.
Everything goes to standard error: standard output is for results.
"""

import contextlib
import time
from collections import Counter, deque
from collections.abc import Generator, Mapping
from dataclasses import dataclass, field
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, TextColumn
from rich.progress import Progress as Bars

PLAIN_EVERY_S = 10.0
WINDOW_S = 30.0  # over which a rate is taken


@dataclass
class Tick:
    """How far a task or a source is: items done, of these kept, and why others were not."""

    done: int = 0
    kept: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    waits: str = ""  # what for, where it stands still

    def add(self, other: "Tick") -> None:
        self.done += other.done
        self.kept += other.kept
        self.dropped.update(other.dropped)
        self.waits = self.waits or other.waits

    @classmethod
    def of(cls, word: Mapping[str, Any]) -> "Tick":
        return cls(
            word.get("done", 0), word.get("kept", 0), Counter(word.get("dropped", {})), word.get("waits", "")
        )


@dataclass
class _Source:
    total: int
    finished: Tick = field(default_factory=Tick)
    running: dict[int, Tick] = field(default_factory=dict)  # task number -> how far it says it is
    seen: deque[tuple[float, int]] = field(default_factory=deque)  # (when, done)
    bar: Any = None

    def now(self) -> Tick:
        whole = Tick()
        whole.add(self.finished)
        for tick in self.running.values():
            whole.add(tick)
        return whole

    def rate(self, done: int) -> float:
        """Items a second, of late."""
        now = time.monotonic()
        self.seen.append((now, done))
        while len(self.seen) > 2 and now - self.seen[0][0] > WINDOW_S:
            self.seen.popleft()
        (then, before), (now, after) = self.seen[0], self.seen[-1]
        return (after - before) / (now - then) if now > then else 0.0


class Progress:
    """The display of one command; quiet shows notes only."""

    def __init__(self, *, quiet: bool = False, console: Console | None = None):
        self._console = console or Console(stderr=True, highlight=False)
        self._quiet = quiet
        self._sources: dict[str, _Source] = {}
        self._stage = ""
        self._unit = "rows"
        self._bars: Bars | None = None
        self._spoken = 0.0

    def note(self, text: str) -> None:
        """One line for the person, above the bars."""
        self._console.print(text, markup=False, soft_wrap=True)

    @contextlib.contextmanager
    def stage(self, name: str, totals: Mapping[str, int], *, unit: str = "images") -> Generator[None]:
        """Show a stage: how many items of each source it will get through."""
        self._stage, self._unit = name, unit
        self._sources = {source: _Source(total) for source, total in totals.items() if total}
        self._spoken = time.monotonic()
        if self._quiet or not self._console.is_terminal:
            yield
            self._sources = {}
            return
        columns = [
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            TextColumn("{task.fields[line]}"),
        ]
        with Bars(*columns, console=self._console) as self._bars:
            for source, state in self._sources.items():
                label = f"[bold]{name:<9}[/bold]{source}"
                state.bar = self._bars.add_task(label, total=state.total, line="")
            try:
                yield
            finally:
                self._bars = None
                self._sources = {}

    def done(self, source: str, items: int) -> None:
        """So many items of a source are done, where the driver itself does them."""
        if (state := self._sources.get(source)) is not None:
            state.finished.done = items
            self._show(source, state)

    def total(self, source: str, items: int) -> None:
        """So many items there will be, where that shows only on the way."""
        if (state := self._sources.get(source)) is not None and state.total != items:
            state.total = items
            if self._bars is not None:
                self._bars.update(state.bar, total=items)

    def heard(self, task: Any, word: Mapping[str, Any] | None) -> None:
        """A running task says how far it is; None: it starts anew."""
        state = self._sources.get(task.source)
        if state is None:
            return
        if word is None:
            state.running.pop(task.number, None)
        else:
            state.running[task.number] = Tick.of(word)
        self._show(task.source, state)

    def finished(self, task: Any, value: Mapping[str, Any]) -> None:
        """A task is done; its value's `tick` says what it came to."""
        state = self._sources.get(task.source)
        if state is None:
            return
        state.running.pop(task.number, None)
        state.finished.add(Tick.of(value.get("tick", {})))
        self._show(task.source, state)

    def _show(self, source: str, state: _Source) -> None:
        tick = state.now()
        if self._quiet:
            return
        if self._bars is not None:
            line = self._line(tick, state.total, state.rate(tick.done))
            self._bars.update(state.bar, completed=tick.done, line=line)
            return
        ended = tick.done >= state.total and not state.running
        if ended or time.monotonic() - self._spoken >= PLAIN_EVERY_S:
            self._spoken = time.monotonic()
            self.note(f"{self._stage:<9}{source:<20} {self._line(tick, state.total, state.rate(tick.done))}")
        elif not state.seen:
            state.rate(tick.done)

    def _line(self, tick: Tick, total: int, rate: float) -> str:
        parts = [f"{tick.done:,}/{total:,} {self._unit}", f"{rate:,.0f}/s"]
        if tick.kept or tick.dropped:
            parts.append(f"kept {_percent(tick.kept, tick.done)}")
            parts += [
                f"{reason} {_percent(count, tick.done)}" for reason, count in tick.dropped.most_common(3)
            ]
        if rate > 0 and tick.done < total:
            parts.append(f"{clock((total - tick.done) / rate)} left")
        if tick.waits:
            parts.append(f"({tick.waits})")
        return "  ".join(parts)


def clock(seconds: float) -> str:
    """Seconds as h:mm:ss, with days in front when there are any."""
    minutes, left = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    return (f"{days}d " if days else "") + f"{hours}:{minutes:02}:{left:02}"


def _percent(part: int, whole: int) -> str:
    return f"{100 * part / whole:.0f}%" if whole else "0%"
