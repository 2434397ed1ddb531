"""Whether names are found at all, told from what all workers of a run say of the names they looked up."""

from collections import OrderedDict
from collections.abc import Callable

from pmd.fetch.news import MARGIN_S, Lookups, News

# An outage: so many names in a row; of so many of them, and of good ones, one is tried now and then, s.
OUTAGE_NAMES = 3
OUTAGE_PROBES = 32
PROBE_S = 20.0
LONGEST_PROBE_PAUSE_S = 15.0
KEPT_NAMES = 1_000_000  # that were found


class Names:
    """Whether names are found. One that is not is no news: a third of an old list is gone. It is an outage
    where names fail that were found before, or several in a row that nobody answers for.
    """

    def __init__(self, outage_s: float, chance: Callable[[], float]) -> None:
        self._patience_s, self._chance = outage_s, chance
        self._known: OrderedDict[str, None] = OrderedDict()  # found in this run
        self._lately: OrderedDict[str, None] = OrderedDict()  # the last of these: to try
        self._failing: OrderedDict[str, None] = OrderedDict()  # with no other found since
        self._since: float | None = None  # when it began to look like an outage
        self._confirmed = False  # a name was tried, and failed too
        self._probe: tuple[str, float] | None = None  # who tries one, and until when that is waited for
        self._probes = 0
        self._next_probe = 0.0

    def take(self, worker: str, news: News, now: float) -> None:
        for name, temporary, again in news.failed:
            if again:  # names were found since it failed first: it is its own fault
                continue
            known = name in self._known
            if known or temporary:
                self._failing[name] = None
                if len(self._failing) > OUTAGE_PROBES:
                    self._failing.popitem(last=False)
                if self._since is None and (known or len(self._failing) >= OUTAGE_NAMES):
                    self._since, self._next_probe = now, now
        for name in news.found:
            self._known[name] = None
            self._known.move_to_end(name)
            if len(self._known) > KEPT_NAMES:
                self._known.popitem(last=False)
            self._lately[name] = None
            if len(self._lately) > OUTAGE_PROBES:
                self._lately.popitem(last=False)
        if news.found:
            self._work()
        if news.probed is not None and self._since is not None:
            if news.probed[1]:
                self._work()
            elif self._probe is not None and self._probe[0] == worker:
                self._probe, self._confirmed = None, True
                self._probes += 1
                self._next_probe = now + min(LONGEST_PROBE_PAUSE_S, 2.0**self._probes / 2) * (
                    0.5 + self._chance() / 2
                )

    def _work(self) -> None:
        self._failing.clear()
        self._since, self._confirmed, self._probe, self._probes = None, False, None, 0

    def state(self, now: float) -> Lookups:
        if self._since is None:
            return "work"
        return "hold" if now - self._since < self._patience_s else "lost"

    def stopped(self, now: float) -> bool:
        """Is it an outage, in which nothing is asked for?"""
        return self._confirmed and self.state(now) == "hold"

    def outage_s(self, now: float) -> float | None:
        return now - self._since if self._confirmed and self._since is not None else None

    def probe(self, worker: str, now: float) -> str | None:
        """The name that this worker shall try now. One at a time, all over."""
        if self._since is None or now < self._next_probe:
            return None
        if self._probe is not None and now < self._probe[1]:
            return None
        # Best one that was found before, and has not failed: a dead name tells nothing.
        good = [name for name in self._lately if name not in self._failing]
        name = next(iter(good or self._failing), None)
        if name is None:
            return None
        for names in (self._lately, self._failing):
            if name in names:
                names.move_to_end(name)
        self._probe = worker, now + PROBE_S + MARGIN_S
        return name

    def drop(self, worker: str) -> None:
        if self._probe is not None and self._probe[0] == worker:
            self._probe = None
