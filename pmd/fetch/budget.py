"""What the hosts of the web bear from all workers of a run together: who may ask whom, and when.

    worker:  look_up, site, slot --> Share --News: what is wanted, what has ended--> Budget, one in a run
                                     Share <--Reply: connections, starts, pauses---  Budget

The Budget holds no wish of its own: a worker tells it what it waits for and what it still uses, in one call
for all hosts, and is told what it may do. It is told whole states, not changes, so a call may be lost or be
made twice. All that it gives ends by itself: who is killed holds nothing for longer than one request takes.
"""

import asyncio
import contextlib
import heapq
import math
import random
import re
import secrets
import socket
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from types import TracebackType
from typing import Any, Literal, NamedTuple, Self, TypeVar

from pmd.fetch.address import LookupFailed
from pmd.manifest import FetchSpec
from pmd.records import Reason

# What is given may be begun with for so long after it was given, s; a request that has begun then takes its
# own timeout_s, and a little for its end to be noticed.
LEASE_S = 2.0
MARGIN_S = 2.0
# Starts are given ahead, so many s of them; or one, a moment before it is due.
AHEAD_S = 0.25
SOON_S = 0.05
SLOWEST = 1 / 30  # requests a second: no Crawl-delay and no 429 makes a host slower
# A host that failed so often in a row is left alone, for so long at first and at most, s.
BREAK_AFTER = 5
FIRST_BREAK_S = 1.0
LONGEST_BREAK_S = 300.0
LONGEST_PAUSE_S = 24 * 3600.0  # that a Retry-After is taken at its word
RECOVER_S = 120.0  # from nothing to its full rate, after a 429
FORGET_S = 60.0  # what a host did wrong, if it was not asked since
SILENT_S = 10.0  # a worker that is not heard of for so long waits for nothing
TICK_S = 0.05  # between two exchanges of a worker that is at work
POLL_S = 0.5  # between two of one that only waits, at most
EXCHANGES_PER_S = 2_000  # of all workers: the more there are, the less often each of them is heard
HOST_ADDRESSES = 16  # counted of one host
# An outage: so many names in a row; of so many of them, and of good ones, one is tried now and then, s.
OUTAGE_NAMES = 3
OUTAGE_PROBES = 32
PROBE_S = 20.0
LONGEST_PROBE_PAUSE_S = 15.0
KEPT_NAMES = 1_000_000  # of hosts: which of them were found, and what their site files say
KEPT_SITES_BYTES = 256 * 2**20
SITE_BYTES = 2**20  # of one host's
FAST = 4  # starts since the last exchange, from which on as many are asked for ahead
PACE_S = 0.005  # starts that are due within so long begin at one time: a timer costs as much as a request
# A request that takes longer, s, gives its place among the connections to another, up to so many times as
# many: else a few dozen hosts that stall would hold up all others.
SLOW_S = 1.0
SLOW_TIMES = 8
URGENT_S = 0.005  # between two exchanges of which one cannot wait

# The host's fault: it is there, or should be, and does not do its work.
FAULTS = frozenset(
    {
        Reason.CONNECT_FAILED,
        Reason.CONNECT_RESET,
        Reason.PROTOCOL_ERROR,
        Reason.TIMEOUT,
        Reason.HTTP_5XX,
        Reason.HTTP_429,
    }
)
# It was not asked, so nothing is known of it.
UNASKED = frozenset({Reason.DNS_FAILED, Reason.BLOCKED_ADDRESS, Reason.BAD_SCHEME, Reason.INPUT_BAD_URL})


class HostDown(Exception):
    """A host that will not be asked within patience_s. `reason` is what its rows end with."""

    def __init__(self, host: str, reason: Reason) -> None:
        super().__init__(f"{host} is left alone for now: {reason}")
        self.host, self.reason = host, reason


_T = TypeVar("_T")


# What a worker and the Budget tell each other


class End(NamedTuple):
    """So many requests in a row that ended alike. reason None: it answered."""

    reason: Reason | None
    retry_after_s: float | None
    times: int


class Ask(NamedTuple):
    """All of a worker's business with one host."""

    host: str
    want: int  # starts, beside those it has
    open: int  # requests under way
    keep: int  # connections: for those, and for starts that it has
    unused: int  # starts that it has; others are given back
    used: int  # starts since it last asked
    started_ago_s: float | None  # the last of these
    ends: tuple[End, ...]
    addresses: tuple[str, ...]
    crawl_delay_s: float | None


class Site(NamedTuple):
    """What the site files of a host say, as whoever has read them puts it."""

    said: bytes
    read_at: float  # by the clock on the wall, s since 1970
    lasts_s: float  # then they are to be read again

    @property
    def is_old(self) -> bool:
        return time.time() >= self.read_at + self.lasts_s


class News(NamedTuple):
    """What a worker has to say."""

    asks: tuple[Ask, ...] = ()
    found: tuple[str, ...] = ()  # names that were looked up
    failed: tuple[tuple[str, bool, bool], ...] = ()  # name, temporary?, again, after it was held?
    probed: tuple[str, bool] | None = None  # name, found?
    claims: tuple[str, ...] = ()  # hosts whose site files it needs
    fetching: tuple[str, ...] = ()  # hosts whose site files it fetches, told to who has forgotten
    published: tuple[tuple[str, Site], ...] = ()
    given_back: tuple[str, ...] = ()  # claims that came to nothing
    leaving: bool = False


class Grant(NamedTuple):
    """What a worker may do with one host."""

    host: str
    connections: int  # open at a time, in all
    starts: tuple[tuple[float, int], ...]  # new ones: in so many s the first of so many
    spacing_s: float  # between these
    void: bool  # all starts from before
    down: Reason | None  # what those who wait end with, who get none of these starts
    down_s: float  # for so long, those who come too


Lookups = Literal["work", "hold", "lost"]


class Reply(NamedTuple):
    """What a worker is told."""

    grants: tuple[Grant, ...] = ()
    sites: tuple[tuple[str, Site | None], ...] = ()  # None: it is this worker's to fetch them
    # A name that was not found: is not there; may be, ask again when they work; may be, but it took too long.
    lookups: Lookups = "work"
    probe: str | None = None  # a name to look up, to see whether they work
    again: bool = False  # tell everything, not only what is new
    tick_s: float = TICK_S
    next_s: float = POLL_S  # when something may have changed


# The Budget


class Budget:
    """What each host bears, given out. Knows no clock and no network; the one instance of a run.

    In any window of T s at most rate * (T + AHEAD_S) + 1 requests to a host begin, and never more than its
    connections are open, as long as workers keep to what they are told (see Share) and end each request
    within spec.timeout_s + MARGIN_S. A rate under 8 a second is kept exactly: rate * T + 1.
    """

    def __init__(
        self,
        spec: FetchSpec,
        *,
        restarted: bool = False,
        clock: Callable[[], float] = time.monotonic,
        chance: Callable[[], float] = random.random,
    ) -> None:
        """restarted: an earlier one is lost. What it gave is waited for before anything is given."""
        self._spec = spec
        self._clock, self._chance = clock, chance
        self._lifetime = LEASE_S + spec.timeout_s + MARGIN_S
        self._now = clock()
        self._silent_until = self._now + self._lifetime if restarted else -math.inf
        self._hosts: dict[str, _Host] = {}
        self._workers: OrderedDict[str, _Worker] = OrderedDict()  # in the order in which they were heard
        self._addresses: dict[str, int] = {}  # connections to each
        self._blocked: dict[str, dict[_Host, None]] = {}  # who waits for one of an address, in order
        self._ready: deque[_Host] = deque()  # to be served before this call returns
        self._stopped: dict[_Host, None] = {}  # to be served when names are found again
        self._wakes: list[tuple[float, int, _Host]] = []
        self._wakes_made = 0
        self._connections = 0
        self._troubled: dict[_Host, None] = {}  # paused or broken
        self._names = Names(spec.outage_s, chance)
        self._sites = Sites(
            # Several files, with redirects, and again. Who is not heard of any more is replaced before.
            10 * (spec.patience_s + self._lifetime),
            taken_until=self._silent_until,
        )

    def exchange(self, worker: str, number: int, news: News) -> Reply:
        """Take in what a worker says, and answer what it may do until it asks again.

        number: of this call among the worker's; one that comes late is not listened to.
        """
        now = self._let_time_pass()
        known = self._workers.get(worker)
        if known is None:
            known = self._workers[worker] = _Worker(worker)
            again = number > 1
        elif number < known.number:
            return Reply()
        else:
            again = number == known.number  # its answer was lost, and what was in it
        first_time = number != known.number
        known.heard, known.number = now, number
        self._workers.move_to_end(worker)
        for ask in news.asks:
            self._take(known, ask, ends=ask.ends if first_time else ())
        self._names.take(worker, news, now)
        if not self._names.stopped(now):
            self._ready.extend(self._stopped)
            self._stopped.clear()
        self._sites.take(worker, news, now)
        self._serve_all()
        if news.leaving:
            self._drop(known, dead=True)
            self._serve_all()
            return Reply()
        return Reply(
            grants=self._grants(known),
            sites=self._sites.answers(worker),
            lookups=self._names.state(now),
            probe=self._names.probe(worker, now),
            again=again,
            tick_s=max(TICK_S, len(self._workers) / EXCHANGES_PER_S),
            next_s=max(0.0, self._wakes[0][0] - now) if self._wakes else POLL_S,
        )

    def forget(self, worker: str) -> None:
        """A worker that is known to be dead: what it held is free."""
        self._let_time_pass()
        if worker in self._workers:
            self._drop(self._workers[worker], dead=True)
            self._serve_all()

    def state(self) -> dict[str, Any]:
        """What a person wants to know who watches a run that stands still."""
        now = self._let_time_pass()
        left_alone = [host for host in self._troubled if host.alone_until > now]
        left_alone.sort(key=lambda host: (-host.alone_until, host.name))
        return {
            "outage_s": self._names.outage_s(now),
            "restarted_s": max(0.0, self._silent_until - now) or None,  # until anything is given
            "left_alone": len(left_alone),
            "longest": [  # of these
                {"host": host.name, "reason": str(host.reason), "seconds": host.alone_until - now}
                for host in left_alone[:10]
            ],
            "hosts": len(self._hosts),
            "connections": self._connections,
            "workers": len(self._workers),
        }

    # Time

    def _let_time_pass(self) -> float:
        now = self._now = self._clock()
        while self._workers:
            oldest = next(iter(self._workers.values()))
            if oldest.heard + SILENT_S > now:
                break
            self._drop(oldest, dead=False)
        while self._wakes and self._wakes[0][0] <= now:
            at, _, host = heapq.heappop(self._wakes)
            if host.wake_at == at:
                host.wake_at = math.inf
                self._ready.append(host)
        self._serve_all()
        return now

    def _wake(self, host: "_Host", at: float) -> None:
        """Look at a host again, then at the latest."""
        if at < host.wake_at:
            host.wake_at = at
            self._wakes_made += 1
            heapq.heappush(self._wakes, (at, self._wakes_made, host))

    # What workers say

    def _take(self, worker: "_Worker", ask: Ask, *, ends: tuple[End, ...]) -> None:
        now = self._now
        host = self._hosts.get(ask.host)
        if host is None:
            host = self._hosts[ask.host] = _Host(ask.host, *self._spec.bears(ask.host))
        hold = host.holds.get(worker.name)
        if hold is None:
            hold = host.holds[worker.name] = _Hold(worker)
        hold.worker = worker  # it may have been silent, and forgotten
        worker.hosts[host] = None
        # What it says it keeps is what it has, beside what it was not told of yet.
        starts = ask.unused + hold.new_starts
        self._count(host, hold, ask.keep + hold.new_connections - hold.connections)
        host.starts += starts - hold.starts
        hold.starts = starts
        hold.open, hold.used = ask.open, ask.used
        hold.want = max(0, ask.want - hold.new_starts)
        if not hold.connections:  # the one that its new starts were for has come back
            self._take_back_new(host, hold)
        hold.lapses, hold.ends = now + LEASE_S, now + self._lifetime
        worker.news[host] = None
        if ask.started_ago_s is not None and host.ahead(now) == 1:
            host.next_at = max(host.next_at, now - ask.started_ago_s + host.spacing(now))
        if ask.crawl_delay_s:
            host.crawl_delay = max(host.crawl_delay, ask.crawl_delay_s)
        for address in ask.addresses:
            if address not in host.addresses and len(host.addresses) < HOST_ADDRESSES:
                host.addresses += (address,)
                self._addresses[address] = self._addresses.get(address, 0) + host.connections
        if host.probe == worker.name and not ask.open and not hold.starts:
            host.probe = None
        for end in ends:
            self._judge(host, end)
        if hold.want and not hold.in_line:
            hold.in_line = True
            host.line.append(hold)
        self._ready.append(host)

    def _judge(self, host: "_Host", end: End) -> None:
        """What an end says of its host."""
        now = self._now
        reason, asked_for = end.reason, end.retry_after_s
        if reason in UNASKED:
            return
        if reason is Reason.HTTP_429:
            host.slow_down(now)
        if reason not in FAULTS:
            host.recover()
            return
        if host.trouble_since is None or not (host.broken or now < host.trouble_at + FORGET_S):
            host.trouble_since = now
        host.trouble_at, host.reason = now, reason
        if asked_for is not None and reason in (Reason.HTTP_429, Reason.HTTP_5XX):
            host.pauses += now >= host.paused_until
            host.paused_until = max(host.paused_until, now + min(asked_for, LONGEST_PAUSE_S))
        else:
            host.failures += end.times
            if host.broken and now >= host.broken_until:
                longest = min(LONGEST_BREAK_S, FIRST_BREAK_S * 2 ** min(host.breaks, 20))
                host.broken_until = now + longest * (0.5 + self._chance() / 2)
                host.breaks += 1
        if host.broken:
            host.probe = None
        if host.alone_until > now:
            self._troubled[host] = None
            for hold in host.holds.values():
                self._take_back_starts(host, hold)

    def _take_back_starts(self, host: "_Host", hold: "_Hold") -> None:
        """Those that a worker was not told of are gone, the others are void when it is told."""
        self._take_back_new(host, hold)
        if hold.starts:
            hold.worker.news[host] = None

    def _take_back_new(self, host: "_Host", hold: "_Hold") -> None:
        """What a worker was not told of."""
        self._count(host, hold, -hold.new_connections)
        for first, starts in reversed(hold.runs):
            if host.next_at == first + starts * host.spacing(self._now):  # nobody has a later one
                host.next_at = first
        hold.starts -= hold.new_starts
        host.starts -= hold.new_starts
        hold.want += hold.new_starts
        hold.new_connections = hold.new_starts = 0
        hold.runs.clear()
        if hold.want and not hold.in_line:
            hold.in_line = True
            host.line.append(hold)

    def _count(self, host: "_Host", hold: "_Hold", change: int) -> None:
        """Connections of a hold, up or down."""
        if not change:
            return
        hold.connections += change
        host.connections += change
        self._connections += change
        for address in host.addresses:
            count = self._addresses.get(address, 0) + change
            if count:
                self._addresses[address] = count
            else:
                self._addresses.pop(address, None)
            if change < 0:
                self._unblock(address)

    def _unblock(self, address: str) -> None:
        """The one who has waited longest for a connection to an address is looked at next."""
        waiting = self._blocked.get(address)
        if waiting:
            host = next(iter(waiting))
            self._leave(host, address)
            host.has_turn = True
            self._ready.appendleft(host)

    def _leave(self, host: "_Host", address: str) -> None:
        waiting = self._blocked.get(address, {})
        waiting.pop(host, None)
        if not waiting:
            self._blocked.pop(address, None)

    def _drop(self, worker: "_Worker", *, dead: bool) -> None:
        """Forget a worker. What it may still have open is counted until its end, unless it is dead."""
        self._workers.pop(worker.name, None)
        self._sites.drop(worker.name, self._now)
        self._names.drop(worker.name)
        for host in worker.hosts:
            hold = host.holds[worker.name]
            self._take_back_new(host, hold)
            hold.want = 0
            if dead:
                self._lapse(host, hold)
                self._count(host, hold, -hold.connections)
            self._ready.append(host)
        worker.news.clear()

    def _lapse(self, host: "_Host", hold: "_Hold") -> None:
        """Starts that nobody has used, or nobody has told of."""
        if hold.starts and host.ahead(self._now) == 1:
            host.next_at = max(host.next_at, self._now + host.spacing(self._now))
        host.starts -= hold.starts
        hold.starts = 0

    # What hosts give

    def _serve_all(self) -> None:
        while self._ready:
            host = self._ready.popleft()
            if self._hosts.get(host.name) is host:
                self._serve(host)

    def _serve(self, host: "_Host") -> None:
        """Give out what a host bears now, and see when to look at it again."""
        now = self._now
        for hold in [*host.holds.values()]:
            if now >= hold.lapses:
                self._take_back_new(host, hold)
                self._lapse(host, hold)
                if host.probe == hold.worker.name:
                    host.probe = None
            if now >= hold.ends:
                self._count(host, hold, -hold.connections)
            if hold.idle():
                self._forget_hold(host, hold)
        while host.line and not host.line[0].want:
            host.line.popleft().in_line = False
        if host.line:
            if now < self._silent_until:
                self._wake(host, self._silent_until)
            elif self._names.stopped(now):
                self._stopped[host] = None
            elif now >= host.alone_until:
                self._give(host)
            if host.down(now, self._spec.patience_s):
                self._turn_away(host)
        if host.has_turn:
            host.has_turn = False
            for address in host.addresses:
                if self._addresses.get(address, 0) < host.address_bears:
                    self._unblock(address)
        if host.alone_until <= now:
            self._troubled.pop(host, None)
        self._plan_wake(host)

    def _give(self, host: "_Host") -> None:
        """Starts, and the connections for them, to those in line by turns."""
        now = self._now
        passed = 0
        while passed < len(host.line):
            hold = host.line[0]
            if not hold.want:
                host.line.popleft().in_line = False
                continue
            if host.broken and host.probe is not None:
                return
            room = host.ahead(now) - host.starts
            first = max(now, host.next_at)
            horizon = AHEAD_S if host.ahead(now) > 1 else SOON_S
            if room <= 0 or first > now + horizon:
                return
            free = self._free(host)
            starved = free <= 0 and any(not other.connections for other in host.line if other.want)
            # Connections that no start is meant for yet; and those in use, as far as they come free quickly.
            idle = hold.connections - hold.open - hold.starts
            turnover = 0 if starved or self._is_contended(host) else hold.used
            more = max(0, min(free, self._fair(host, hold) - hold.connections))
            starts = min(
                hold.want,
                idle + more + turnover,
                max(1, room // len(host.line)),
                1 + int((now + horizon - first) / host.spacing(now)),
                1 if host.broken else hold.want,
            )
            if starts <= 0:
                if not hold.connections and free <= 0:
                    self._wait_for_address(host)
                    return  # it is this one's turn, as soon as another comes back
                host.line.rotate(-1)
                passed += 1
                continue
            connections = min(more, max(0, starts - max(0, idle)))
            self._count(host, hold, connections)
            hold.new_connections += connections
            hold.new_starts += starts
            hold.starts += starts
            host.starts += starts
            hold.want -= starts
            hold.runs.append((first, starts))
            # Until it is told it cannot use them; nor are they kept for ever for one who is not heard.
            hold.lapses, hold.ends = max(hold.lapses, now + LEASE_S), max(hold.ends, now + LEASE_S)
            hold.worker.news[host] = None
            host.next_at = first + starts * host.spacing(now)
            if host.broken:
                host.probe = hold.worker.name
            host.line.rotate(-1)
            passed = 0

    def _wait_for_address(self, host: "_Host") -> None:
        for address in host.addresses:
            if address in self._blocked or self._addresses.get(address, 0) >= host.address_bears:
                self._blocked.setdefault(address, {})[host] = None
                return

    def _free(self, host: "_Host") -> int:
        """Connections that may be given."""
        free = host.bears - host.connections
        for address in host.addresses:
            free = min(free, host.address_bears - self._addresses.get(address, 0))
        return 0 if self._is_contended(host) else free

    def _is_contended(self, host: "_Host") -> bool:
        """Do others wait for its address, who came before?"""
        if host.has_turn or not self._blocked:
            return False
        return any(
            host is not next(iter(self._blocked[address]))
            for address in host.addresses
            if address in self._blocked
        )

    def _fair(self, host: "_Host", hold: "_Hold") -> int:
        """Connections that a worker may have: all that the others do not need, or as many as they."""
        others = [other for other in host.holds.values() if other is not hold]
        equal = max(1, host.bears // (len(others) + 1))
        return max(1, host.bears - sum(min(other.open + other.want, equal) for other in others))

    def _turn_away(self, host: "_Host") -> None:
        for hold in host.line:
            hold.in_line = False
            if hold.want:
                hold.want = 0
                hold.turned_away = True
                hold.worker.news[host] = None
        host.line.clear()

    def _plan_wake(self, host: "_Host") -> None:
        now = self._now
        for hold in host.holds.values():
            if hold.starts or hold.new_connections:
                self._wake(host, hold.lapses)
            if hold.connections:
                self._wake(host, hold.ends)
        if host.line and now < host.alone_until:
            self._wake(host, host.alone_until)
            self._wake(host, max(now, (host.trouble_since or now) + self._spec.patience_s))
        elif host.line and host.starts < host.ahead(now):
            soon = host.next_at - (AHEAD_S if host.ahead(now) > 1 else SOON_S)
            if soon > now:
                self._wake(host, soon)
        if not host.holds:
            until = host.kept_until()
            if until > now:
                self._wake(host, until)
            else:
                self._forget_host(host)

    def _forget_hold(self, host: "_Host", hold: "_Hold") -> None:
        if hold.in_line:
            host.line.remove(hold)
        del host.holds[hold.worker.name]
        hold.worker.hosts.pop(host, None)

    def _forget_host(self, host: "_Host") -> None:
        """There are millions of hosts."""
        for address in host.addresses:
            self._leave(host, address)
        self._troubled.pop(host, None)
        self._stopped.pop(host, None)
        del self._hosts[host.name]

    def _grants(self, worker: "_Worker") -> tuple[Grant, ...]:
        """What a worker is not told of yet."""
        now = self._now
        grants: list[Grant] = []
        for host in worker.news:
            hold = host.holds.get(worker.name)
            if hold is None:
                continue
            if hold.idle():
                self._forget_hold(host, hold)
                self._plan_wake(host)
                continue
            down = host.reason if hold.turned_away else None
            fair = self._fair(host, hold) if len(host.holds) > 1 else host.bears
            grants.append(
                Grant(
                    host.name,
                    connections=min(hold.connections, fair),
                    starts=tuple((max(0.0, first - now), starts) for first, starts in hold.runs),
                    spacing_s=host.spacing(now),
                    void=now < host.alone_until,
                    down=down,
                    down_s=host.down_for(now, self._spec.patience_s) if down else 0.0,
                )
            )
            hold.runs.clear()
            hold.new_connections = hold.new_starts = 0
            hold.turned_away = False
            hold.lapses, hold.ends = now + LEASE_S, now + self._lifetime
            if hold.idle():
                self._forget_hold(host, hold)
            self._plan_wake(host)
        worker.news.clear()
        return tuple(grants)


class _Worker:
    def __init__(self, name: str) -> None:
        self.name = name
        self.number = 0
        self.heard = 0.0
        self.hosts: dict[_Host, None] = {}  # that hold something for it
        self.news: dict[_Host, None] = {}  # that it is to be told of


class _Hold:
    """A worker's part of a host."""

    __slots__ = (
        "connections",
        "ends",
        "in_line",
        "lapses",
        "new_connections",
        "new_starts",
        "open",
        "runs",
        "starts",
        "turned_away",
        "used",
        "want",
        "worker",
    )

    def __init__(self, worker: _Worker) -> None:
        self.worker = worker
        self.want = 0  # starts, beside those it has
        self.open = self.used = 0  # as it last said
        self.connections = self.starts = 0  # given; the next two are in these
        self.new_connections = self.new_starts = 0  # that it was not told of yet
        self.runs: list[tuple[float, int]] = []  # the new starts: when the first, how many
        self.lapses = self.ends = 0.0  # when its starts are void, and the last request has ended
        self.in_line = self.turned_away = False

    def idle(self) -> bool:
        return not (self.connections or self.starts or self.want or self.turned_away)


class _Host:
    __slots__ = (
        "address_bears",
        "addresses",
        "bears",
        "breaks",
        "broken_until",
        "connections",
        "crawl_delay",
        "failures",
        "has_turn",
        "holds",
        "line",
        "name",
        "next_at",
        "paused_until",
        "pauses",
        "probe",
        "rate",
        "reason",
        "slowed_at",
        "slowed_to",
        "starts",
        "trouble_at",
        "trouble_since",
        "wake_at",
    )

    def __init__(self, name: str, connections: int, rate: float, address_bears: int) -> None:
        self.name, self.bears, self.rate, self.address_bears = name, connections, rate, address_bears
        self.addresses: tuple[str, ...] = ()
        self.crawl_delay = 0.0
        self.holds: dict[str, _Hold] = {}
        self.line: deque[_Hold] = deque()  # who wants something
        self.connections = self.starts = 0  # of all holds
        self.next_at = -math.inf  # the next start
        self.wake_at = math.inf
        self.has_turn = False  # at its address
        self.failures = self.breaks = self.pauses = 0  # in a row
        self.trouble_since: float | None = None
        self.trouble_at = -math.inf
        self.reason: Reason | None = None
        self.paused_until = self.broken_until = -math.inf
        self.probe: str | None = None  # the worker that tries whether it works again
        self.slowed_to, self.slowed_at = math.inf, -math.inf

    @property
    def broken(self) -> bool:
        return self.failures >= BREAK_AFTER

    @property
    def alone_until(self) -> float:
        return max(self.paused_until, self.broken_until)

    def rate_at(self, now: float) -> float:
        rate = self.rate
        if self.crawl_delay:
            rate = min(rate, max(SLOWEST, 1 / self.crawl_delay))
        return min(rate, self.slowed_to + (now - self.slowed_at) * rate / RECOVER_S)

    def spacing(self, now: float) -> float:
        return 1 / self.rate_at(now)

    def ahead(self, now: float) -> int:
        """Starts that may be given and not used, at a time."""
        return max(1, int(self.rate_at(now) * AHEAD_S))

    def slow_down(self, now: float) -> None:
        """After a 429. Those of one moment are one."""
        if now >= self.slowed_at + 1.0:
            rate = self.rate_at(now)
            self.slowed_to, self.slowed_at = max(min(rate, SLOWEST), rate / 2), now

    def recover(self) -> None:
        self.failures = self.breaks = self.pauses = 0
        self.trouble_since, self.broken_until, self.probe = None, -math.inf, None

    def down(self, now: float, patience_s: float) -> bool:
        """Will nobody who waits be served in time?"""
        return self.alone_until - now > patience_s or self._down_for_long(now, patience_s)

    def _down_for_long(self, now: float, patience_s: float) -> bool:
        since = self.trouble_since
        in_vain = self.broken or (self.pauses > 1 and now < self.paused_until)
        return in_vain and since is not None and now - since >= patience_s

    def down_for(self, now: float, patience_s: float) -> float:
        """How long it makes no sense to ask again, s."""
        if self._down_for_long(now, patience_s):
            return max(TICK_S, self.alone_until - now)  # then the first who asks tries
        return max(TICK_S, self.alone_until - now - patience_s)  # then one may wait again

    def kept_until(self) -> float:
        """Until then something about it is not as it is with a new one."""
        until = max(self.next_at, self.paused_until)
        if self.failures:
            until = max(until, self.trouble_at + FORGET_S, self.broken_until + LONGEST_BREAK_S)
        if self.slowed_at > -math.inf:
            until = max(until, self.slowed_at + RECOVER_S)
        return until


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


class Sites:
    """What hosts say in robots.txt and the like: fetched by one worker, told to all."""

    def __init__(self, claim_s: float, *, taken_until: float) -> None:
        """claim_s: for one worker to fetch one. taken_until: all may be claimed, by whom is forgotten."""
        self._claim_s, self._taken_until = claim_s, taken_until
        self._said: OrderedDict[str, tuple[Site, float]] = OrderedDict()  # and until when it holds
        self._texts: dict[bytes, list[Any]] = {}  # each once: itself, by how many hosts it is said
        self._size = 0
        self._claims: OrderedDict[str, _Claim] = OrderedDict()  # the next to end first
        self._answers: dict[str, list[tuple[str, Site | None]]] = {}

    def take(self, worker: str, news: News, now: float) -> None:
        while self._claims:
            host, claim = next(iter(self._claims.items()))
            if now < claim.until:
                break
            self._pass_on(host, claim, now)
        for host in news.fetching:
            claim = self._claims.get(host)
            if host not in self._said and (claim is None or not claim.owner):
                self._claims[host] = claim = claim or _Claim(worker, now)
                claim.owner, claim.until = worker, now + self._claim_s
                self._claims.move_to_end(host)
        for host, site in news.published:
            self.publish(host, site, now)
        for host in news.given_back:
            claim = self._claims.get(host)
            if claim is not None:
                claim.waiting.pop(worker, None)
                if claim.owner == worker:
                    self._pass_on(host, claim, now)
        for host in news.claims:
            self.claim(worker, host, now)

    def claim(self, worker: str, host: str, now: float) -> None:
        """Answered at once, or when whoever has claimed it before is done, or dead."""
        site, until = self._said.get(host, (None, 0.0))
        if site is not None and now < until:
            self._said.move_to_end(host)
            self._answer(worker, host, site)
            return
        self._forget(host)
        claim = self._claims.get(host)
        if claim is None:
            taken = now < self._taken_until
            claim = _Claim("" if taken else worker, self._taken_until if taken else now + self._claim_s)
            self._claims[host] = claim
        if claim.owner == worker:
            self._answer(worker, host, None)
        else:
            claim.waiting[worker] = None

    def publish(self, host: str, site: Site, now: float) -> None:
        self._forget(host)
        text = self._texts.setdefault(site.said, [site.said, 0])
        if not text[1]:
            self._size += len(site.said)
        text[1] += 1
        self._said[host] = site._replace(said=text[0]), now + site.lasts_s
        while len(self._said) > KEPT_NAMES or self._size > KEPT_SITES_BYTES:
            self._forget(next(iter(self._said)))
        claim = self._claims.pop(host, None)
        for worker in claim.waiting if claim else ():
            self._answer(worker, host, site)

    def answers(self, worker: str) -> tuple[tuple[str, Site | None], ...]:
        return tuple(self._answers.pop(worker, ()))

    def drop(self, worker: str, now: float) -> None:
        self._answers.pop(worker, None)
        for host, claim in [*self._claims.items()]:
            claim.waiting.pop(worker, None)
            if claim.owner == worker:
                self._pass_on(host, claim, now)

    def _answer(self, worker: str, host: str, site: Site | None) -> None:
        self._answers.setdefault(worker, []).append((host, site))

    def _pass_on(self, host: str, claim: "_Claim", now: float) -> None:
        claim.owner = next(iter(claim.waiting), "")
        if not claim.owner:
            del self._claims[host]
            return
        del claim.waiting[claim.owner]
        claim.until = now + self._claim_s
        self._claims.move_to_end(host)
        self._answer(claim.owner, host, None)

    def _forget(self, host: str) -> None:
        site, _ = self._said.pop(host, (None, 0.0))
        if site is not None:
            text = self._texts[site.said]
            text[1] -= 1
            if not text[1]:
                self._size -= len(site.said)
                del self._texts[site.said]


@dataclass
class _Claim:
    owner: str  # "": nobody knows
    until: float
    waiting: dict[str, None] = field(default_factory=dict[str, None])


# The worker's side


class Share:
    """A worker's part of the budget. Use as an async context.

    async with Share(call, spec) as share:
        addresses = await share.look_up(host, look_up)
        policy = await share.site(host, fetch)
        async with share.slot(host, addresses=addresses) as slot:
            ...  # one request, done within spec.timeout_s
            slot.ended(reason, retry_after_s=...)

    However many wait here, one call is under way at a time, and none where nothing is waited for.
    """

    def __init__(
        self,
        call: Callable[..., Awaitable[Any]],
        spec: FetchSpec,
        *,
        name: str | None = None,
        is_found: Callable[[str], Awaitable[bool]] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """call: of the Budget, as `call("exchange", worker, number, news)`. name: unique in the run.
        is_found: whether a name is found now, asked of the name servers; for trying whether these work.
        """
        self._call, self._spec, self._clock = call, spec, clock
        self._name = name or secrets.token_hex(8)
        self._is_found = is_found or name_is_found
        self._number = 0
        self._lines: dict[str, _Line] = {}
        self._changed: dict[_Line, None] = {}  # to be told of
        self._crowded: dict[_Line, None] = {}  # that could go on, had we connections left
        self._open = self._waiting = 0  # requests, of all hosts
        self._aside = 0  # of those under way: that last longer than SLOW_S, and are not in _open
        self._found: list[str] = []
        self._found_before: set[str] = set()
        self._failed: list[_Failed] = []  # names, untold
        self._asked: list[_Failed] = []  # told in the call under way
        self._held: list[_Failed] = []  # told, and to be waited for
        self._probed: tuple[str, bool] | None = None
        self._visits: dict[str, _Visit] = {}
        self._claims: list[str] = []
        self._published: list[tuple[str, Site]] = []
        self._given_back: list[str] = []
        self._again = False  # all is to be told
        self._leaving = False
        self._urgent = False
        self._nudge = asyncio.Event()
        self._last = -math.inf  # exchange
        self._tick_s, self._next_s, self._quiet = TICK_S, POLL_S, 0
        self._error: Exception | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        self._loop = asyncio.get_running_loop()
        self._pump = self._loop.create_task(self._go_on())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Hands all back. Should that fail, it is no harm: it comes back by itself."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._leaving = True
        self._tell()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LEASE_S):
                await self._pump

    # For the client

    def slot(
        self, host: str, *, addresses: tuple[str, ...] = (), crawl_delay_s: float | None = None
    ) -> "Slot":
        """For one request to a host. Entering waits for its turn; raises HostDown where that is too long.

        addresses: of the host, where they are known. crawl_delay_s: that its robots.txt asks for.
        """
        return Slot(self, _plain(host), addresses, crawl_delay_s)

    async def look_up(self, host: str, look_up: Callable[[], Awaitable[tuple[str, ...]]]) -> tuple[str, ...]:
        """The addresses of a host; in an outage, after it.

        look_up: does it, and raises LookupFailed; is called again after an outage. Only for names that name
        servers are asked about. Raises LookupFailed where it is the name that is wrong, or the outage is too
        long.
        """
        name = _plain(host)
        again = False
        while True:
            try:
                addresses = await look_up()
            except LookupFailed as error:
                failed = _Failed(name, error.temporary, again, self._loop.create_future())
                self._failed.append(failed)
                self._tell()
                if not await self._wait(failed.ask_again):
                    raise
                again = True
            else:
                # Only the first time: afterwards it may be kept somewhere, and says nothing of name servers.
                if name not in self._found_before:
                    self._found_before.add(name)
                    self._found.append(name)
                    self._tell()
                return addresses

    async def site(self, host: str, fetch: Callable[[], Awaitable[Site]]) -> Site:
        """What the site files of a host say, as one `fetch` somewhere in the run has put it.

        At most SITE_BYTES of it. What fetch raises is raised here, and another worker tries. Keep it: this
        asks each time.
        """
        host = _plain(host)
        visit = self._visits.get(host)
        if visit is None:
            visit = self._visits[host] = _Visit()
            self._claims.append(host)
            self._tell()
        future: asyncio.Future[Site] = self._loop.create_future()
        visit.waiting[future] = fetch
        try:
            return await self._wait(future)
        finally:
            del visit.waiting[future]
            if not visit.waiting and self._visits.get(host) is visit:
                self._leave(host, visit)

    def _leave(self, host: str, visit: "_Visit") -> None:
        """Nobody here needs it any more."""
        del self._visits[host]
        if visit.task is not None:
            visit.task.cancel()
        self._given_back.append(host)
        self._tell()

    async def _wait(self, future: asyncio.Future[_T]) -> _T:
        if self._error is not None:
            raise self._error
        return await future

    # Slots

    async def _enter(self, slot: "Slot") -> "_Line":
        line = self._lines.get(slot.host)
        if line is None:
            line = self._lines[slot.host] = _Line(slot.host)
        line.addresses = slot.addresses or line.addresses
        line.crawl_delay_s = slot.crawl_delay_s or line.crawl_delay_s
        now = self._clock()
        if line.down is not None:
            if now < line.down_until:
                raise HostDown(line.host, line.down)
            line.down = None
        if not line.waiting and self._may_begin(line, now):
            self._begin(line, now)
            return line
        future: asyncio.Future[None] = self._loop.create_future()
        while True:
            line.waiting[future] = None
            self._waiting += 1
            self._change(line)
            self._advance(line)
            try:
                await self._wait(future)
            except BaseException:
                if future.done() and not future.cancelled() and future.exception() is None:
                    self._end(line)  # its turn had come, and is not taken
                raise
            finally:
                if future in line.waiting:
                    del line.waiting[future]
                    self._waiting -= 1
                    self._change(line)
            line.started = now = self._clock()
            if now <= line.until:
                return line
            # This process was busy with other things for too long: it has to ask again, in its old place.
            self._end(line)
            future = self._loop.create_future()
            line.waiting[future] = None
            line.waiting.move_to_end(future, last=False)

    def _leave_slot(
        self, slot: "Slot", line: "_Line", end: tuple[Reason | None, float | None] | None
    ) -> None:
        if slot.is_aside:
            self._aside -= 1
            self._open += 1
        if end is not None:
            self._ended(line, *end)
        self._end(line)

    def _may_begin(self, line: "_Line", now: float) -> bool:
        return (
            bool(line.starts)
            and line.starts[0].at <= now <= line.until
            and line.open < line.allowed
            and self._has_room()
        )

    def _begin(self, line: "_Line", now: float) -> None:
        run = line.starts[0]
        run.at += run.spacing_s
        run.times -= 1
        if not run.times:
            line.starts.popleft()
        line.open += 1
        self._open += 1
        line.used += 1
        line.started = now
        self._change(line)

    def _has_room(self) -> bool:
        most = self._spec.connections
        return self._open < most and self._open + self._aside < SLOW_TIMES * most

    def _set_aside(self, slot: "Slot") -> None:
        """It is slow: another may begin in its place."""
        slot.is_aside = True
        self._open -= 1
        self._aside += 1
        self._let_in()

    def _end(self, line: "_Line") -> None:
        line.open -= 1
        self._open -= 1
        self._change(line)
        self._crowded[line] = None  # at the end, behind those who wait for one of our connections
        self._let_in()

    def _let_in(self) -> None:
        while self._crowded and self._has_room():
            first = next(iter(self._crowded))
            del self._crowded[first]
            self._advance(first)

    def _advance(self, line: "_Line") -> None:
        """Let begin who may, in the order in which they came."""
        now = self._clock()
        while line.waiting and self._may_begin(line, now):
            future, _ = line.waiting.popitem(last=False)
            self._waiting -= 1
            if not future.done():  # or it is cancelled
                self._begin(line, now)
                future.set_result(None)
        if not (line.waiting and line.starts and line.open < line.allowed):
            return
        if now > line.until:
            line.starts.clear()
            self._change(line)
        elif not self._has_room():
            self._crowded[line] = None
        elif line.timer is None:
            delay = max(PACE_S, line.starts[0].at - now)
            line.timer = self._loop.call_later(delay, self._is_due, line)

    def _is_due(self, line: "_Line") -> None:
        line.timer = None
        self._advance(line)

    def _ended(self, line: "_Line", reason: Reason | None, retry_after_s: float | None) -> None:
        last = line.ends[-1] if line.ends else None
        if last is not None and last[:2] == (reason, retry_after_s):
            line.ends[-1] = End(reason, retry_after_s, last.times + 1)
        else:
            line.ends.append(End(reason, retry_after_s, 1))
        if retry_after_s:
            line.paused = reason, self._clock() + retry_after_s
            line.starts.clear()
            self._urgent = True
            self._tell()

    # Exchanges

    def _change(self, line: "_Line") -> None:
        if line not in self._changed:
            self._changed[line] = None
            if len(self._changed) == 1:
                self._nudge.set()

    def _tell(self) -> None:
        self._nudge.set()

    async def _go_on(self) -> None:
        try:
            while not self._leaving:
                due = self._due()
                now = self._clock()
                if due <= now:
                    await self._exchange()
                    continue
                self._nudge.clear()
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(due - now if due < math.inf else None):
                        await self._nudge.wait()
            if self._number:
                self._again = True
                await self._exchange()
        except Exception as error:
            self._error = error
            futures: list[asyncio.Future[Any]] = [
                failed.ask_again for failed in self._failed + self._asked + self._held
            ]
            for line in self._lines.values():
                futures += line.waiting
            for visit in self._visits.values():
                futures += visit.waiting
            for future in futures:
                if not future.done():
                    future.set_exception(error)

    def _due(self) -> float:
        """When to exchange next."""
        if self._again or self._urgent:
            return self._last + URGENT_S
        names = self._found or self._failed or self._probed
        if self._changed or names or self._claims or self._published or self._given_back:
            return self._last + self._tick_s
        if self._waiting or self._held or self._visits:
            patient = min(POLL_S, self._tick_s * 2**self._quiet)  # it may be soon that others are done
            return self._last + max(self._tick_s, min(self._next_s, patient))
        return math.inf

    async def _exchange(self) -> None:
        if self._again:
            self._tell_all()
        sent = self._last = self._clock()
        lines, self._changed = [*self._changed], {}
        self._asked, self._failed = [one for one in self._failed if not one.ask_again.done()], []
        news = News(
            asks=tuple(line.ask(sent) for line in lines),
            found=tuple(self._found),
            failed=tuple(one[:3] for one in self._asked),
            probed=self._probed,
            claims=tuple(host for host in self._claims if host in self._visits),
            fetching=tuple(self._fetching() if self._again else ()),
            published=tuple(self._published),
            given_back=tuple(self._given_back),
            leaving=self._leaving,
        )
        self._found, self._claims, self._published, self._given_back = [], [], [], []
        self._probed, self._again, self._urgent = None, False, False
        self._number += 1
        reply: Reply = await self._call("exchange", self._name, self._number, news)
        self._tick_s, self._next_s = reply.tick_s, reply.next_s
        self._again = reply.again
        self._quiet = 0 if news != News() or reply.grants or reply.sites else min(self._quiet + 1, 10)
        for line in lines:
            self._extend(line, sent)
        for grant in reply.grants:
            self._take(grant, sent)
        for line in lines:
            if line.is_idle(sent) and line not in self._changed:
                self._lines.pop(line.host, None)
        for host, site in reply.sites:
            self._take_site(host, site)
        self._take_lookups(reply.lookups)
        if reply.probe is not None:
            self._start(self._try(reply.probe))

    def _tell_all(self) -> None:
        """To a Budget that knows nothing of us."""
        now = self._clock()
        for line in self._lines.values():
            self._changed[line] = None
            reason, until = line.paused
            if until > now:
                line.ends.append(End(reason, until - now, 1))
        self._failed += (one._replace(again=False) for one in self._held)
        self._held = []
        self._claims = [host for host, visit in self._visits.items() if visit.task is None]

    def _fetching(self) -> list[str]:
        return [host for host, visit in self._visits.items() if visit.task is not None]

    def _extend(self, line: "_Line", sent: float) -> None:
        """After an exchange: the starts of a host are good for longer, if they were good so far."""
        if line.starts and self._clock() > line.until:
            line.starts.clear()
            self._change(line)
        line.until = sent + LEASE_S

    def _take(self, grant: Grant, sent: float) -> None:
        line = self._lines.get(grant.host)
        if line is None:
            line = self._lines[grant.host] = _Line(grant.host)
        self._extend(line, sent)
        now = self._clock()
        line.allowed = grant.connections
        if grant.void:
            line.starts.clear()
        line.starts.extend(_Run(now + delay, times, grant.spacing_s) for delay, times in grant.starts)
        if grant.down is not None:
            line.down, line.down_until = grant.down, now + grant.down_s
            for future in [*line.waiting][sum(times for _, times in grant.starts) :]:
                if not future.done():
                    future.set_exception(HostDown(line.host, grant.down))
        self._advance(line)
        if grant.void or now > line.until or (line.starts and not line.waiting):
            self._change(line)  # what is of no use goes back

    def _take_lookups(self, lookups: Lookups) -> None:
        failed, self._asked = self._asked, []
        if lookups == "hold":
            self._held += failed
            return
        for one in failed:
            if not one.ask_again.done():
                one.ask_again.set_result(False)
        if not self._again:
            for one in self._held:
                if not one.ask_again.done():
                    one.ask_again.set_result(lookups == "work")
            self._held = []

    async def _try(self, name: str) -> None:
        self._probed = name, await self._is_found(name)
        self._tell()

    def _take_site(self, host: str, site: Site | None) -> None:
        visit = self._visits.get(host)
        if site is not None:
            if visit is not None and visit.task is None:
                del self._visits[host]
                visit.end(site)
        elif visit is None:
            self._given_back.append(host)
        elif visit.task is None:
            visit.task = self._start(self._fetch(host, visit))

    async def _fetch(self, host: str, visit: "_Visit") -> None:
        fetch = next(iter(visit.waiting.values()))
        try:
            site = await fetch()
        except Exception as error:
            end: Site | Exception = error
            self._given_back.append(host)
        else:
            assert len(site.said) <= SITE_BYTES, (host, len(site.said))
            end = site
            self._published.append((host, site))
        del self._visits[host]
        visit.end(end)
        self._tell()

    def _start(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task


class Slot:
    """One request to a host, from when it may begin to its end."""

    def __init__(
        self, share: Share, host: str, addresses: tuple[str, ...], crawl_delay_s: float | None
    ) -> None:
        self.host, self.addresses, self.crawl_delay_s = host, addresses, crawl_delay_s
        self._share = share
        self._end: tuple[Reason | None, float | None] | None = None
        self.is_aside = False

    async def __aenter__(self) -> Self:
        self._line = await self._share._enter(self)  # pyright: ignore[reportPrivateUsage]
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(SLOW_S, self._share._set_aside, self)  # pyright: ignore[reportPrivateUsage]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._timer.cancel()
        self._share._leave_slot(self, self._line, self._end)  # pyright: ignore[reportPrivateUsage]

    def ended(self, reason: Reason | None, *, retry_after_s: float | None = None) -> None:
        """How it ended: None, or why not; of a 429 or 503 the wait that it asks for. Left out, it says
        nothing of the host.
        """
        self._end = reason, retry_after_s


class _Failed(NamedTuple):
    """A name that was not found, and somebody who waits to know what that means."""

    name: str
    temporary: bool
    again: bool
    ask_again: asyncio.Future[bool]


@dataclass
class _Run:
    """Starts: when the next, how many, how far apart."""

    at: float
    times: int
    spacing_s: float


class _Line:
    """Those who wait for a host here, and what they may do."""

    def __init__(self, host: str) -> None:
        self.host = host
        self.waiting: OrderedDict[asyncio.Future[None], None] = OrderedDict()
        self.open = 0
        self.allowed = 0  # connections
        self.starts: deque[_Run] = deque()
        self.until = -math.inf  # nothing is begun later
        self.used = 0  # starts since the last ask, and the last of them
        self.started: float | None = None
        self.ends: list[End] = []
        self.addresses: tuple[str, ...] = ()
        self.crawl_delay_s: float | None = None
        self.timer: asyncio.TimerHandle | None = None
        self.down: Reason | None = None
        self.down_until = -math.inf
        self.paused: tuple[Reason | None, float] = None, -math.inf  # what it said here itself, until when

    def ask(self, now: float) -> Ask:
        """What there is to say of it. From here on it keeps to what this says."""
        useful = len(self.waiting) + (self.used if self.used >= FAST else 0)
        unused = 0
        kept: deque[_Run] = deque()
        usable = self.allowed > 0 and now <= self.until
        while usable and self.starts and unused < useful:
            run = self.starts.popleft()
            run.times = min(run.times, useful - unused)
            unused += run.times
            kept.append(run)
        self.starts = kept
        self.allowed = self.open + min(max(0, self.allowed - self.open), unused)
        ask = Ask(
            host=self.host,
            want=useful - unused,
            open=self.open,
            keep=self.allowed,
            unused=unused,
            used=self.used,
            started_ago_s=None if self.started is None else now - self.started,
            ends=tuple(self.ends),
            addresses=self.addresses,
            crawl_delay_s=self.crawl_delay_s,
        )
        self.used, self.started, self.ends = 0, None, []
        return ask

    def is_idle(self, now: float) -> bool:
        busy = self.waiting or self.open or self.starts or self.ends or self.timer
        return not busy and self.down is None and self.paused[1] <= now


class _Visit:
    """Those who wait for a host's site files here; and the task that fetches them, if it is ours."""

    def __init__(self) -> None:
        self.waiting: dict[asyncio.Future[Site], Callable[[], Awaitable[Site]]] = {}
        self.task: asyncio.Task[None] | None = None

    def end(self, how: Site | Exception) -> None:
        for future in self.waiting:
            if future.done():
                continue
            if isinstance(how, Exception):
                future.set_exception(how)
            else:
                future.set_result(how)


async def name_is_found(name: str) -> bool:
    """Whether the system finds a name now. Says no where it takes too long."""
    loop = asyncio.get_running_loop()
    answer: asyncio.Future[bool] = loop.create_future()

    def tell(found: bool) -> None:
        if not answer.done():
            answer.set_result(found)

    def look_up() -> None:
        try:
            found = bool(socket.getaddrinfo(name.encode("ascii"), None, type=socket.SOCK_STREAM))
        except (OSError, UnicodeError):
            found = False
        with contextlib.suppress(RuntimeError):  # the loop is closed, nobody waits
            loop.call_soon_threadsafe(tell, found)

    # A thread that no exit of ours waits for: getaddrinfo cannot be stopped.
    threading.Thread(target=look_up, name="probe", daemon=True).start()
    try:
        async with asyncio.timeout(PROBE_S):
            return await answer
    except TimeoutError:
        return False


def _plain(host: str) -> str:
    """A host's one name: case and a dot at the end say nothing."""
    return host.lower().rstrip(".")


# Retry-After

_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
_DAY = r"(?:Mon|Tue|Wed|Thu|Fri|Sat|Sun)"
_LONG_DAY = r"(?:Mon|Tues|Wednes|Thurs|Fri|Satur|Sun)day"
_CLOCK = r"(?P<hour>\d\d):(?P<minute>\d\d):(?P<second>\d\d)"
_DATES = tuple(
    re.compile(form, re.ASCII)
    for form in (
        rf"{_DAY}, (?P<day>\d\d) (?P<month>\w{{3}}) (?P<year>\d{{4}}) {_CLOCK} GMT",
        rf"{_LONG_DAY}, (?P<day>\d\d)-(?P<month>\w{{3}})-(?P<year>\d\d) {_CLOCK} GMT",  # RFC 850
        rf"{_DAY} (?P<month>\w{{3}}) (?P<day>[ \d]\d) {_CLOCK} (?P<year>\d{{4}})",  # of C
    )
)


def retry_after_s(text: str, now: datetime | None = None) -> float | None:
    """How long a Retry-After asks to wait, s: it gives seconds, or a date (RFC 9110). None: neither.

    now: in UTC.
    """
    text = text.strip(" \t")
    if re.fullmatch(r"[0-9]+", text):
        return min(float(text), LONGEST_PAUSE_S)
    now = now or datetime.now(UTC)
    for form in _DATES:
        found = form.fullmatch(text)
        if found is None:
            continue
        parts = found.groupdict()
        try:
            year = int(parts["year"])
            if year < 100:  # the one that is not more than 50 years ahead
                year += now.year // 100 * 100
                year -= 100 if year > now.year + 50 else 0
            month = _MONTHS.index(parts["month"]) + 1
            second = min(int(parts["second"]), 59)  # 60 is a leap second
            day, hour, minute = int(parts["day"]), int(parts["hour"]), int(parts["minute"])
            at = datetime(year, month, day, hour, minute, second, tzinfo=UTC)
        except ValueError:
            return None
        return min(max(0.0, (at - now) / timedelta(seconds=1)), LONGEST_PAUSE_S)
    return None
