"""What the hosts of the web bear from all workers of a run together: who may ask whom, and when.

    worker:  look_up, site, slot --> Share --News: what is wanted, what has ended--> Budget, one in a run
                                     Share <--Reply: connections, starts, pauses---  Budget

The Budget holds no wish of its own: a worker tells it what it waits for and what it still uses, in one call
for all hosts, and is told what it may do. It is told whole states, not changes, so a call may be lost or be
made twice. All that it gives ends by itself: who is killed holds nothing for longer than one request takes.
"""

import heapq
import math
import random
import time
from collections import OrderedDict, deque
from collections.abc import Callable
from typing import Any

from pmd.fetch.news import LEASE_S, MARGIN_S, POLL_S, TICK_S, Ask, End, Grant, News, Reply
from pmd.fetch.outage import Names
from pmd.fetch.retry_after import LONGEST_PAUSE_S
from pmd.fetch.sites import Sites
from pmd.manifest import FetchSpec
from pmd.records import Reason

# Starts are given ahead, so many s of them; or one, a moment before it is due.
AHEAD_S = 0.25
SOON_S = 0.05
SLOWEST = 1 / 30  # requests a second: no Crawl-delay and no 429 makes a host slower
# A host that failed so often in a row is left alone, for so long at first and at most, s.
BREAK_AFTER = 5
FIRST_BREAK_S = 1.0
LONGEST_BREAK_S = 300.0
RECOVER_S = 120.0  # from nothing to its full rate, after a 429
FORGET_S = 60.0  # what a host did wrong, if it was not asked since
SILENT_S = 10.0  # a worker that is not heard of for so long waits for nothing
EXCHANGES_PER_S = 2_000  # of all workers: the more there are, the less often each of them is heard
HOST_ADDRESSES = 16  # counted of one host
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
            outage_s=self._names.outage_s(now),
            left_alone=len(self._troubled),
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
        if reason in (Reason.HTTP_429, Reason.BODY_LIMIT):
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
