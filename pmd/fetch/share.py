"""A worker's side of the budget: who waits here for which host, and what may begin.

    look_up, site, slot --> Share --one call at a time for all hosts--> Budget (budget.py)

Who asks waits for its turn; who fetches is told whether a name is lost or all of them are, and what a site
says in files that need to be read only once in a run.
"""

import asyncio
import contextlib
import math
import secrets
import socket
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass
from types import TracebackType
from typing import Any, NamedTuple, Self, TypeVar

from pmd.fetch.address import LookupFailed
from pmd.fetch.news import LEASE_S, POLL_S, TICK_S, Ask, End, Grant, Lookups, News, Reply, Site
from pmd.fetch.outage import PROBE_S
from pmd.manifest import FetchSpec
from pmd.records import Reason

SITE_BYTES = 2**20  # of one host's
FAST = 4  # starts since the last exchange, from which on as many are asked for ahead
PACE_S = 0.005  # starts that are due within so long begin at one time: a timer costs as much as a request
# A request that takes longer, s, gives its place among the connections to another, up to so many times as
# many: else a few dozen hosts that stall would hold up all others.
SLOW_S = 1.0
SLOW_TIMES = 8
URGENT_S = 0.005  # between two exchanges of which one cannot wait


class HostDown(Exception):
    """A host that will not be asked within patience_s. `reason` is what its rows end with."""

    def __init__(self, host: str, reason: Reason) -> None:
        super().__init__(f"{host} is left alone for now: {reason}")
        self.host, self.reason = host, reason


_T = TypeVar("_T")


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
        self._outage_s: float | None = None
        self._left_alone = 0
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

    def waits(self) -> str:
        """What all workers wait for, for a person who watches; empty where nothing is out of the ordinary."""
        if self._outage_s is not None:
            return f"no name is found for {self._outage_s:.0f} s: waiting"
        return f"{self._left_alone:,} hosts left alone" if self._left_alone else ""

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
        self._outage_s, self._left_alone = reply.outage_s, reply.left_alone
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
            assert len(site.said) <= SITE_BYTES, (host, len(site.said))
        except Exception as error:
            end: Site | Exception = error
            self._given_back.append(host)
        else:
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
