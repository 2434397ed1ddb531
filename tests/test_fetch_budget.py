"""The laws of pmd/fetch/budget.py: first of the state machine alone, then of workers that share it, in
made-up time and at random, and last of processes on a real Ray, asking a server that writes down what it
sees.
"""

import asyncio
import contextlib
import functools
import itertools
import os
import random
import signal
import socket
import threading
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from pipelines.run import Shared, Tell, Where, Workers, task_name, workers
from pmd.fetch import sites as sites_module
from pmd.fetch.address import LookupFailed
from pmd.fetch.budget import (
    AHEAD_S,
    BREAK_AFTER,
    EXCHANGES_PER_S,
    FAULTS,
    RECOVER_S,
    SILENT_S,
    Budget,
)
from pmd.fetch.news import LEASE_S, MARGIN_S, TICK_S, Ask, End, Grant, News, Reply, Site
from pmd.fetch.retry_after import LONGEST_PAUSE_S, retry_after_s
from pmd.fetch.share import SLOW_S, SLOW_TIMES, HostDown, Share
from pmd.manifest import FetchSpec, HostSpec
from pmd.records import Reason

T = TypeVar("T")
HOST = "a.example"
SLACK = 1e-6  # of floating point


# The state machine, asked by hand


@dataclass
class Asker:
    """A worker that says what it is told to say."""

    budget: Budget
    name: str
    number: int = 0

    def tell(self, **news: Any) -> Reply:
        self.number += 1
        return self.budget.exchange(self.name, self.number, News(**news))

    def ask(
        self,
        host: str = HOST,
        *,
        want: int = 0,
        open: int = 0,
        ends: tuple[End, ...] = (),
        addresses: tuple[str, ...] = (),
        crawl_delay_s: float | None = None,
        started_ago_s: float | None = None,
        used: int = 0,
    ) -> Grant:
        """Of one host: so many want to begin, so many are under way."""
        ask = Ask(host, want, open, open, 0, used, started_ago_s, ends, addresses, crawl_delay_s)
        reply = self.tell(asks=(ask,))
        found = [grant for grant in reply.grants if grant.host == host]
        return found[0] if found else Grant(host, 0, (), 1.0, False, None, 0.0)

    def fail(self, reason: Reason, times: int = 1, *, host: str = HOST, after: float | None = None) -> Grant:
        return self.ask(host, ends=(End(reason, after, times),))


@dataclass
class Table:
    """A budget, its clock, and who asks it."""

    spec: FetchSpec
    restarted: bool = False
    now: float = 1000.0

    def __post_init__(self) -> None:
        self.budget = Budget(self.spec, restarted=self.restarted, clock=lambda: self.now, chance=lambda: 1.0)
        self.names = itertools.count()

    def asker(self) -> Asker:
        return Asker(self.budget, f"worker-{next(self.names)}")

    @property
    def lifetime(self) -> float:
        return LEASE_S + self.spec.timeout_s + MARGIN_S


def begun(grant: Grant) -> int:
    return sum(times for _, times in grant.starts)


def fast(**values: Any) -> FetchSpec:
    """Hosts without a bound on their rate, so that connections are what counts."""
    given: dict[str, Any] = {"per_host_rate": 1e6} | values
    return FetchSpec(**given)


def test_a_host_bears_so_many_connections_from_all_together() -> None:
    table = Table(fast(per_host_connections=3))
    grants = [table.asker().ask(want=2) for _ in range(3)]
    assert [grant.connections for grant in grants] == [2, 1, 0]
    assert [begun(grant) for grant in grants] == [2, 1, 0]


def test_a_connection_that_comes_back_goes_to_who_has_waited_longest() -> None:
    table = Table(fast(per_host_connections=1))
    first, second, third = (table.asker() for _ in range(3))
    assert begun(first.ask(want=9)) == 1
    assert begun(second.ask(want=1)) + begun(third.ask(want=1)) == 0
    assert begun(first.ask(want=9)) == 0, "it has ended, and wants to begin more: behind the others"
    assert third.tell().grants == ()
    (grant,) = second.tell().grants
    assert (grant.connections, begun(grant)) == (1, 1)


def test_workers_share_a_host_evenly_as_soon_as_there_are_two() -> None:
    table = Table(fast(per_host_connections=4))
    first, second = table.asker(), table.asker()
    assert first.ask(want=9).connections == 4
    second.ask(want=9)
    assert first.ask(want=9).connections == 2
    assert second.tell().grants[0].connections == 2


def test_the_more_workers_there_are_the_less_often_each_is_heard() -> None:
    table = Table(fast())
    replies = [table.asker().tell() for _ in range(1000)]
    assert replies[0].tick_s == TICK_S
    assert replies[-1].tick_s * EXCHANGES_PER_S >= 999


def test_what_a_dead_worker_held_comes_back_by_itself() -> None:
    table = Table(fast(per_host_connections=1))
    dead, alive = table.asker(), table.asker()
    assert begun(dead.ask(want=1)) == 1
    assert begun(alive.ask(want=1)) == 0
    while not (grants := alive.tell().grants):
        table.now += 0.5
        assert table.now < 1001 + table.lifetime
    assert table.now >= 1000 + table.lifetime, "a request may have been under way for so long"
    assert begun(grants[0]) == 1


def test_what_a_worker_held_that_is_known_to_be_dead_is_free_at_once() -> None:
    table = Table(fast(per_host_connections=1))
    dead, alive = table.asker(), table.asker()
    dead.ask(want=1)
    alive.ask(want=1)
    table.budget.forget(dead.name)
    assert [begun(grant) for grant in alive.tell().grants] == [1]


def test_a_worker_that_leaves_hands_all_back() -> None:
    table = Table(fast(per_host_connections=1))
    leaving, other = table.asker(), table.asker()
    leaving.ask(want=1)
    other.ask(want=1)
    leaving.tell(leaving=True)
    assert [begun(grant) for grant in other.tell().grants] == [1]
    other.tell(leaving=True)
    assert table.budget.state()["connections"] == table.budget.state()["workers"] == 0


def test_one_that_was_lost_is_waited_for_before_anything_is_given() -> None:
    table = Table(fast(), restarted=True)
    asker = table.asker()
    assert begun(asker.ask(want=1)) == 0
    table.now += table.lifetime - 0.1
    assert begun(asker.ask(want=1)) == 0
    table.now += 0.2
    assert begun(asker.ask(want=1)) == 1


def test_a_worker_that_was_forgotten_is_asked_to_tell_all() -> None:
    table = Table(fast())
    asker = table.asker()
    assert not asker.tell().again
    table.now += SILENT_S + 1
    table.asker().tell()
    assert asker.tell().again
    assert not asker.tell().again


def test_a_call_that_is_made_twice_counts_once_and_asks_for_all() -> None:
    table = Table(fast(per_host_connections=2))
    asker = table.asker()
    news = News(asks=(Ask(HOST, 2, 0, 0, 0, 0, None, (End(Reason.TIMEOUT, None, 4),), (), None),))
    first = table.budget.exchange(asker.name, 1, news)
    second = table.budget.exchange(asker.name, 1, news)  # the answer to the first was lost
    assert [begun(reply.grants[0]) for reply in (first, second)] == [2, 2]
    assert second.again
    assert table.budget.state()["left_alone"] == 0, "four failures, not eight"


def test_a_call_that_comes_late_is_not_listened_to() -> None:
    table = Table(fast(per_host_connections=1))
    asker, other = table.asker(), table.asker()
    asker.ask(want=1)
    asker.ask(open=1)
    other.ask(want=1)
    late = News(asks=(Ask(HOST, 0, 0, 0, 0, 0, None, (), (), None),))
    assert table.budget.exchange(asker.name, 1, late) == Reply()
    assert other.tell().grants == (), "its connection is still open"


@pytest.mark.parametrize(
    ("host", "connections"),
    [
        ("exact.example", 7),
        ("EXACT.example.", 7),
        ("below.exact.example", 2),
        ("far.below.wide.example", 5),
        ("wide.example", 2),
        ("far.below.near.wide.example", 6),
        ("other.example", 2),
    ],
)
def test_a_host_may_bear_more_or_less_than_others(host: str, connections: int) -> None:
    named = {"exact.example": 7, "*.wide.example": 5, "*.near.wide.example": 6}
    spec = fast(hosts={name: HostSpec(connections=bears) for name, bears in named.items()})
    table = Table(spec)

    async def most() -> int:
        share = Share(Here(table.budget).call, spec)
        return table.asker().ask(share.slot(host).host, want=99).connections

    assert asyncio.run(most()) == connections


# Addresses


def test_hosts_on_one_address_are_counted_together() -> None:
    table = Table(fast(per_address_connections=3))
    asker = table.asker()
    given = [asker.ask(f"{n}.example", want=2, addresses=("192.0.2.1",)).connections for n in range(3)]
    assert given == [2, 1, 0]
    assert asker.ask("elsewhere.example", want=2, addresses=("192.0.2.2",)).connections == 2


def test_an_address_is_known_for_good_and_of_all_addresses_the_fullest_counts() -> None:
    table = Table(fast(per_address_connections=2))
    asker = table.asker()
    assert asker.ask("a.example", want=1, addresses=("192.0.2.1",)).connections == 1
    assert asker.ask("a.example", open=1, want=1, addresses=("192.0.2.2",)).connections == 2
    assert asker.ask("b.example", want=1, addresses=("192.0.2.1",)).connections == 0
    assert asker.ask("c.example", want=1, addresses=("192.0.2.2", "192.0.2.3")).connections == 0


def test_hosts_wait_for_their_address_by_turns() -> None:
    table = Table(fast(per_address_connections=1))
    asker = table.asker()
    address = ("192.0.2.1",)
    names = [f"{n}.example" for n in range(3)]
    for name in names:
        asker.ask(name, want=5, addresses=address)
    order = []
    current = names[0]
    for _ in range(6):
        reply = asker.tell(asks=(Ask(current, 4, 0, 0, 0, 1, None, (), address, None),))
        (current,) = (grant.host for grant in reply.grants if grant.starts)
        order.append(current)
    assert order == [*names[1:], *names, names[0]]


def test_who_waits_for_an_address_and_cannot_use_it_makes_way() -> None:
    table = Table(fast(per_address_connections=1))
    asker = table.asker()
    address = ("192.0.2.1",)
    for name in ("a.example", "b.example", "c.example"):
        asker.ask(name, want=1, addresses=address)
    asker.fail(Reason.HTTP_429, host="b.example", after=60.0)
    reply = asker.tell(asks=(Ask("a.example", 0, 0, 0, 0, 1, None, (), address, None),))
    assert [grant.host for grant in reply.grants if grant.starts] == ["c.example"]


def test_a_host_that_bears_more_waits_for_others_of_its_address() -> None:
    table = Table(fast(per_address_connections=1, hosts={"big.example": HostSpec(connections=4)}))
    asker = table.asker()
    address = ("192.0.2.1",)
    assert asker.ask("big.example", want=2, addresses=address).connections == 2
    assert asker.ask("small.example", want=1, addresses=address).connections == 0
    assert asker.ask("big.example", open=2, want=2, addresses=address).connections == 2
    reply = asker.tell(asks=(Ask("big.example", 2, 0, 0, 0, 1, None, (), address, None),))
    assert {grant.host: grant.connections for grant in reply.grants}["small.example"] == 1


def test_who_raises_the_bound_of_a_host_means_its_address_too() -> None:
    table = Table(fast(hosts={HOST: HostSpec(connections=40)}))
    assert table.asker().ask(want=99, addresses=("192.0.2.1",)).connections == 40


# Rates


def test_starts_are_a_rate_apart_whoever_begins_them() -> None:
    table = Table(FetchSpec(per_host_rate=4.0, per_host_connections=8))
    askers = [table.asker() for _ in range(3)]
    for asker in askers:
        asker.ask(want=5)
    starts: list[float] = []
    held: dict[str, float] = {}
    for _ in range(400):
        for asker in askers:
            at = held.pop(asker.name, None)
            used = at is not None and at <= table.now
            if at is not None and not used:
                held[asker.name] = at
                continue
            if used:
                starts.append(table.now)
            grant = asker.ask(want=5, started_ago_s=0.0 if used else None)
            for delay, times in grant.starts:
                assert times == 1
                held[asker.name] = table.now + delay
        table.now += 0.01
    gaps = [later - earlier for earlier, later in itertools.pairwise(starts)]
    assert min(gaps) >= 0.25 - SLACK
    assert len(starts) >= 4 * 0.9 * 4


@pytest.mark.parametrize(
    ("delay", "rate", "spacing"),
    [(2.0, 4.0, 2.0), (0.1, 4.0, 0.25), (900.0, 4.0, 30.0), (900.0, 0.01, 100.0)],
)
def test_a_crawl_delay_makes_a_host_slower_never_faster_and_not_for_ever(
    delay: float, rate: float, spacing: float
) -> None:
    table = Table(FetchSpec(per_host_rate=rate))
    asker = table.asker()
    assert asker.ask(want=1, crawl_delay_s=delay).spacing_s == pytest.approx(spacing)
    assert asker.ask(want=1).spacing_s == pytest.approx(spacing), "it is known from then on"


def test_a_start_that_a_worker_died_with_counts_as_late_as_it_may_have_been_used() -> None:
    table = Table(FetchSpec(per_host_rate=1.0, per_host_connections=8))
    dead, alive = table.asker(), table.asker()
    assert begun(dead.ask(want=1)) == 1
    alive.ask(want=1)
    while not (grants := alive.tell().grants):
        table.now += 0.01
    assert table.now + grants[0].starts[0][0] >= 1000 + LEASE_S + 1.0 - SLACK


def test_too_many_requests_halve_a_rate_which_recovers_slowly() -> None:
    table = Table(FetchSpec(per_host_rate=4.0))
    asker = table.asker()
    asker.fail(Reason.HTTP_429, 3)
    asker.fail(Reason.HTTP_429)
    assert asker.ask(want=1).spacing_s == pytest.approx(0.5), "those of one moment are one"
    table.now += 2
    asker.fail(Reason.HTTP_429)
    slow = asker.ask(want=1).spacing_s
    assert 0.9 < slow <= 1.0
    table.now += RECOVER_S / 2
    assert 0.25 < asker.ask(want=1).spacing_s < slow
    table.now += RECOVER_S / 2
    assert asker.ask(want=1).spacing_s == pytest.approx(0.25)


def test_a_host_that_floods_is_asked_less_often_and_nothing_worse() -> None:
    table = Table(FetchSpec(per_host_rate=4.0))
    asker = table.asker()
    for _ in range(2 * BREAK_AFTER):
        asker.fail(Reason.BODY_LIMIT)
        table.now += 1.5
    assert asker.ask(want=1).spacing_s > 4.0
    assert not table.budget.state()["left_alone"]


# Pauses


def test_a_retry_after_is_kept_by_all() -> None:
    table = Table(fast(per_host_connections=9))
    told, other = table.asker(), table.asker()
    other.ask(want=1)
    told.fail(Reason.HTTP_5XX, after=20.0)
    (grant,) = other.tell().grants
    assert grant.void, "what it was given before, too"
    waiting = [told.ask(want=1), other.ask(want=1), table.asker().ask(want=1)]
    assert [begun(grant) for grant in waiting] == [0, 0, 0]
    assert {grant.down for grant in waiting} == {None}
    told.fail(Reason.HTTP_5XX, after=1.0)  # of a request that was under way: the longer one counts
    assert table.budget.state()["longest"] == [{"host": HOST, "reason": "http_5xx", "seconds": 20.0}]
    table.now += 19.9
    assert begun(told.ask(want=1)) == 0
    told.ask(want=0, ends=(End(None, None, 1),))
    assert begun(told.ask(want=1)) == 0, "nor does a success end it"
    table.now += 0.2
    assert begun(told.ask(want=1)) == 1
    assert table.budget.state()["left_alone"] == 0


def test_who_would_wait_too_long_is_told_at_once_why() -> None:
    table = Table(fast(patience_s=60.0))
    waiting, told = table.asker(), table.asker()
    waiting.ask(want=0)
    told.fail(Reason.HTTP_429, after=100.0)
    grant = waiting.ask(want=1)
    assert (grant.down, begun(grant)) == (Reason.HTTP_429, 0)
    assert grant.down_s == pytest.approx(40.0), "from then on it is no longer than patience"
    table.now += 41
    assert told.ask(want=1).down is None
    table.now += 60
    assert begun(told.ask(want=1)) == 1


def test_a_retry_after_is_taken_at_its_word_for_a_day() -> None:
    table = Table(fast())
    table.asker().fail(Reason.HTTP_429, after=1e9)
    assert table.budget.state()["longest"][0]["seconds"] == LONGEST_PAUSE_S


@pytest.mark.parametrize("reason", sorted(FAULTS))
def test_a_host_that_fails_again_and_again_is_left_alone_and_then_tried_once(reason: Reason) -> None:
    table = Table(fast(per_host_connections=9))
    asker, other = table.asker(), table.asker()
    asker.fail(reason, BREAK_AFTER - 1)
    assert begun(asker.ask(want=1)) == 1
    pauses: list[float] = []
    for _ in range(5):
        asker.fail(reason)
        other.ask(want=3)
        begin = table.now
        while not begun(grant := asker.ask(want=3)) and not any(map(begun, other.tell().grants)):
            table.now += 0.05
        pauses.append(table.now - begin)
        assert begun(grant) <= 1
        assert begun(asker.ask(want=3, open=1)) + begun(other.ask(want=3)) == 0, "one, whoever asks"
    assert pauses == pytest.approx([1, 2, 4, 8, 16], abs=0.1)
    grant = asker.ask(want=3, ends=(End(None, None, 1),))
    assert begun(grant) == 3, "an answer ends it"


def test_a_failure_of_long_ago_is_forgotten() -> None:
    table = Table(fast(patience_s=100.0))
    asker = table.asker()
    asker.fail(Reason.TIMEOUT)
    for _ in range(30):
        table.now += 5
        asker.ask(open=1)
    asker.fail(Reason.TIMEOUT, BREAK_AFTER)
    assert asker.ask(want=1).down is None, "it has been down for a moment, not for 150 s"


@pytest.mark.parametrize("reason", [None, Reason.HTTP_404, Reason.HTTP_403, Reason.TLS_FAILED])
def test_an_answer_whatever_it_is_says_that_a_host_works(reason: Reason | None) -> None:
    table = Table(fast())
    asker = table.asker()
    asker.fail(Reason.TIMEOUT, BREAK_AFTER - 1)
    asker.ask(ends=(End(reason, None, 1),))
    asker.fail(Reason.TIMEOUT, BREAK_AFTER - 1)
    assert begun(asker.ask(want=1)) == 1


def test_a_host_that_was_not_asked_is_neither_well_nor_ill() -> None:
    table = Table(fast())
    asker = table.asker()
    asker.fail(Reason.TIMEOUT, BREAK_AFTER - 1)
    asker.fail(Reason.DNS_FAILED, BREAK_AFTER)
    assert begun(asker.ask(want=1)) == 1
    asker.fail(Reason.TIMEOUT)
    assert begun(asker.ask(want=1)) == 0


def test_a_trial_that_came_to_nothing_is_made_by_another() -> None:
    table = Table(fast())
    first, second = table.asker(), table.asker()
    first.fail(Reason.CONNECT_FAILED, BREAK_AFTER)
    table.now += 1.1
    assert begun(first.ask(want=1)) == 1
    assert begun(second.ask(want=1)) == 0
    first.ask(want=0)  # cancelled
    assert [begun(grant) for grant in second.tell().grants] == [1]
    table.now += table.lifetime  # dead
    assert begun(first.ask(want=1)) == 1


def test_the_rows_of_a_host_that_is_down_for_long_end_until_it_works_again() -> None:
    table = Table(fast(patience_s=10.0))
    asker, other = table.asker(), table.asker()
    asker.fail(Reason.CONNECT_FAILED, BREAK_AFTER)
    other.ask(want=5)
    while (grants := other.tell().grants) == () or grants[0].down is None:
        if grants and begun(grants[0]):
            other.ask(want=4, ends=(End(Reason.CONNECT_FAILED, None, 1),))
        table.now += 0.1
    assert grants[0].down is Reason.CONNECT_FAILED
    assert 10 <= table.now - 1000 <= 10.5
    late = asker.ask(want=5)
    assert (begun(late), late.down) == (0, Reason.CONNECT_FAILED)
    table.now += late.down_s + 0.1
    trial = asker.ask(want=5)
    assert (begun(trial), trial.down) == (1, Reason.CONNECT_FAILED), "one of them tries"
    assert other.ask(want=1).down is Reason.CONNECT_FAILED
    asker.ask(ends=(End(None, None, 1),))
    assert (begun(grant := other.ask(want=1)), grant.down) == (1, None)


# Outages


def names(table: Table) -> Asker:
    asker = table.asker()
    asker.tell(found=("good.example", "fine.example"))
    return asker


def test_names_that_are_gone_are_no_outage() -> None:
    asker = names(Table(fast()))
    for number in range(50):
        reply = asker.tell(failed=((f"{number}.example", False, False),))
        assert (reply.lookups, reply.probe) == ("work", None)


def test_some_that_nobody_answers_for_are_none_either_if_others_are_found_between() -> None:
    asker = names(Table(fast()))
    for number in range(50):
        reply = asker.tell(failed=((f"{number}.example", True, False),))
        assert reply.lookups == "work"
        if number % 2:
            asker.tell(found=(f"found-{number}.example",))


def try_one(table: Table, asker: Asker) -> str:
    """The name that a worker is told to try, after a while."""
    while (probe := asker.tell().probe) is None:
        table.now += 0.5
    return probe


@pytest.mark.parametrize(
    "failed",
    [
        [("good.example", False)],
        [("good.example", True)],
        [("1.example", True), ("2.example", True), ("3.example", True)],
    ],
)
def test_an_outage_holds_everything_and_ends_when_a_name_is_found(failed: list[tuple[str, bool]]) -> None:
    table = Table(fast())
    asker, other = names(table), table.asker()
    *first, last = [(name, temporary, False) for name, temporary in failed]
    for one in first:
        assert asker.tell(failed=(one,)).lookups == "work"
    reply = asker.tell(failed=(last,))
    assert reply.lookups == "hold"
    assert reply.probe in {"good.example", "fine.example"} - {name for name, _ in failed}
    assert begun(other.ask(want=1)) == 1, "so far it is only suspected"
    assert other.tell().probe is None, "one at a time"
    asker.tell(probed=(reply.probe, False))
    other.ask(want=1)
    grants = other.tell()
    assert (grants.grants, grants.lookups) == ((), "hold")
    assert table.budget.state()["outage_s"] is not None
    for _ in range(3):
        end = other.tell(probed=(try_one(table, other), False))
        assert (end.lookups, end.grants) == ("hold", ())
    end = other.tell(probed=(try_one(table, other), True))
    assert end.lookups == "work"
    assert sum(map(begun, end.grants)) == 1
    assert table.budget.state()["outage_s"] is None
    again = asker.tell(failed=((failed[0][0], True, True),))
    assert again.lookups == "work", "if it fails once more, it is its own fault"


def test_an_outage_that_lasts_too_long_is_given_up_and_still_ends() -> None:
    table = Table(fast(outage_s=100.0))
    asker = names(table)
    probe = asker.tell(failed=(("good.example", True, False),)).probe
    assert probe is not None
    asker.tell(probed=(probe, False))
    assert begun(asker.ask(want=1)) == 0
    table.now += 101
    reply = asker.tell()
    assert reply.lookups == "lost"
    assert sum(map(begun, reply.grants)) in (0, 1)
    assert begun(asker.ask(want=1)) == 1, "what needs no name goes on"
    assert asker.tell(found=("new.example",)).lookups == "work"


def test_a_worker_that_dies_while_it_tries_a_name_is_replaced() -> None:
    table = Table(fast())
    asker, other = names(table), table.asker()
    assert asker.tell(failed=(("good.example", True, False),)).probe
    assert other.tell().probe is None
    table.budget.forget(asker.name)
    assert other.tell().probe


# Site files


def said(text: bytes, *, lasts_s: float = 1e6) -> Site:
    return Site(text, 0.0, lasts_s)


def test_site_files_are_read_again_when_they_are_old() -> None:
    table = Table(fast())
    first, second = table.asker(), table.asker()
    first.tell(claims=(HOST,))
    first.tell(published=((HOST, said(b"for now", lasts_s=5.0)),))
    table.now += 4.0
    assert second.tell(claims=(HOST,)).sites == ((HOST, said(b"for now", lasts_s=5.0)),)
    table.now += 2.0
    assert second.tell(claims=(HOST,)).sites == ((HOST, None),)
    second.tell(published=((HOST, said(b"anew")),))
    assert first.tell(claims=(HOST,)).sites == ((HOST, said(b"anew")),)


def test_site_files_are_fetched_by_one_and_told_to_all() -> None:
    table = Table(fast())
    first, second, third = (table.asker() for _ in range(3))
    assert first.tell(claims=(HOST,)).sites == ((HOST, None),)
    assert second.tell(claims=(HOST,)).sites == ()
    assert first.tell(published=((HOST, said(b"all")),)).sites == ()
    assert second.tell().sites == ((HOST, said(b"all")),)
    assert third.tell(claims=(HOST, "b.example")).sites == ((HOST, said(b"all")), ("b.example", None))


@pytest.mark.parametrize("how", ["gives back", "leaves", "is forgotten", "is silent", "is slow"])
def test_a_claim_that_comes_to_nothing_goes_to_the_next(how: str) -> None:
    table = Table(fast())
    owner, second, third = (table.asker() for _ in range(3))
    owner.tell(claims=(HOST,))
    second.tell(claims=(HOST,))
    third.tell(claims=(HOST,))
    match how:
        case "gives back":
            owner.tell(given_back=(HOST,))
        case "leaves":
            owner.tell(leaving=True)
        case "is forgotten":
            table.budget.forget(owner.name)
        case _:
            for _ in range(5000):
                table.now += 0.5
                if how == "is slow":
                    owner.tell()
                third.tell()
                if sites := second.tell().sites:
                    assert sites == ((HOST, None),)
                    return
            pytest.fail("it never went on")
    assert third.tell().sites == ()
    assert second.tell().sites == ((HOST, None),)


def test_equal_site_files_are_kept_once_and_the_oldest_go(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sites_module, "KEPT_SITES", 10)
    sites = sites_module.Sites(60.0, taken_until=0.0)
    for number in range(20):
        sites.publish(f"{number}.example", said(bytes(100)), 0.0)
    assert sites._size == 100  # pyright: ignore[reportPrivateUsage]
    for number in range(20):
        sites.claim("worker", f"{number}.example", 0.0)
    assert [site is None for _, site in sites.answers("worker")] == [True] * 10 + [False] * 10


# Memory


def test_hosts_are_forgotten_that_are_as_new() -> None:
    table = Table(FetchSpec())
    asker = table.asker()
    most = 0
    for number in range(20_000):
        name = f"{number}.example"
        assert begun(asker.ask(name, want=1, addresses=(f"192.0.2.{number % 250}",))) == 1
        reason = Reason.CONNECT_FAILED if number % 4 == 0 else None
        asker.ask(name, ends=(End(reason, None, 1),), addresses=(f"192.0.2.{number % 250}",))
        table.now += 0.01
        most = max(most, table.budget.state()["hosts"])
    assert most < 100 * 60 / 4 + 100, "failures are kept for a minute"
    asker.fail(Reason.HTTP_429, host="paused.example", after=3600.0)
    table.now += 3000
    assert table.budget.state()["hosts"] == 1
    assert begun(asker.ask("paused.example", want=1)) == 0
    table.now += 700
    asker.tell()
    table.now += SILENT_S + LEASE_S
    state = table.budget.state()
    assert (state["hosts"], state["connections"]) in ((0, 0), (1, 1))
    budget: Any = table.budget
    table.now += table.lifetime + 400
    assert table.budget.state()["hosts"] == 0
    assert not (budget._addresses or budget._blocked or budget._workers or budget._wakes or budget._troubled)


# Workers that share it, in made-up time


class Fast(asyncio.SelectorEventLoop):
    """A loop that does not wait: its clock jumps to what comes next."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 1000.0
        selector: Any = self._selector  # type: ignore[attr-defined]
        select = selector.select

        def jump(timeout: float | None = None) -> Any:
            assert timeout is not None, "nothing will ever happen"
            self.now += max(0.0, timeout)
            return select(0)

        selector.select = jump

    def time(self) -> float:
        return self.now


def in_no_time(main: Callable[[Fast], Coroutine[Any, Any, T]], *, limit: float = 1e5) -> T:
    with asyncio.Runner(loop_factory=Fast) as runner:
        loop: Any = runner.get_loop()
        return runner.run(asyncio.wait_for(main(loop), limit))


@dataclass
class Here:
    """Calls of a budget in this process, as slow and as unsure as it is told to be."""

    budget: Budget
    calls: int = 0
    delay: Callable[[], float] = lambda: 0.001
    loses_answer: Callable[[], bool] = lambda: False
    dead: bool = False

    async def call(self, method: str, *arguments: Any) -> Any:
        self.calls += 1
        while True:
            await asyncio.sleep(self.delay())
            if self.dead:
                await asyncio.Event().wait()
            answer = getattr(self.budget, method)(*arguments)
            await asyncio.sleep(self.delay())
            if not self.loses_answer():
                return answer


@dataclass
class Web:
    """What hosts see."""

    loop: asyncio.AbstractEventLoop
    open: Counter[str] = field(default_factory=Counter)
    most: Counter[str] = field(default_factory=Counter)
    begun: dict[str, list[float]] = field(default_factory=dict)

    @contextlib.contextmanager
    def request(self, host: str, *addresses: str) -> Iterator[None]:
        self.begun.setdefault(host, []).append(self.loop.time())
        for place in (host, *addresses):
            self.open[place] += 1
            self.most[place] = max(self.most[place], self.open[place])
        try:
            yield
        finally:
            for place in (host, *addresses):
                self.open[place] -= 1

    def excess(self, host: str, rate: float) -> float:
        """How many requests more than rate * T began in any T s, at most."""
        starts = sorted(self.begun.get(host, []))
        return most_above(starts, rate)


def most_above(starts: list[float], rate: float) -> float:
    """The most that a list of moments has, in any window of T s, above rate * T."""
    most = lowest = 0.0
    for number, at in enumerate(starts):
        lowest = min(lowest, number - rate * at) if number else -rate * at
        most = max(most, number + 1 - rate * at - lowest)
    return most


def test_the_measure_of_a_rate_sees_what_is_too_fast() -> None:
    even = [n / 4 for n in range(20)]
    assert most_above(even, 4.0) == pytest.approx(1.0)
    assert most_above(sorted([*even, 2.1]), 4.0) == pytest.approx(2.0, abs=0.5)
    assert most_above([5.0] * 3, 4.0) == pytest.approx(3.0)


def spec_of(**values: Any) -> FetchSpec:
    given: dict[str, Any] = {"timeout_s": 5.0} | values
    return FetchSpec(**given)


async def fetch(share: Share, web: Web, host: str, seconds: float, *addresses: str) -> None:
    async with share.slot(host, addresses=addresses) as slot:
        with web.request(host, *addresses):
            await asyncio.sleep(seconds)
        slot.ended(None)


def test_those_who_came_first_begin_first() -> None:
    async def main(loop: Fast) -> list[int]:
        spec = spec_of()
        order: list[int] = []

        async def one(share: Share, number: int) -> None:
            async with share.slot(HOST):
                order.append(number)

        async with Share(Here(Budget(spec, clock=loop.time)).call, spec, clock=loop.time) as share:
            await asyncio.gather(*(one(share, number) for number in range(20)))
        return order

    assert in_no_time(main) == [*range(20)]


@pytest.mark.parametrize(("rate", "count", "seconds"), [(4.0, 40, 0.1), (500.0, 3000, 0.02)])
def test_many_wait_in_few_calls(rate: float, count: int, seconds: float) -> None:
    async def main(loop: Fast) -> None:
        spec = spec_of(per_host_rate=rate, per_host_connections=64)
        here, web = Here(Budget(spec, clock=loop.time)), Web(loop)
        begin = loop.time()
        async with Share(here.call, spec, clock=loop.time) as share:
            await asyncio.gather(*(fetch(share, web, HOST, seconds) for _ in range(count)))
            took = loop.time() - begin
            assert count / took > 0.95 * rate
            assert here.calls < 21 * took + 5
            await asyncio.sleep(60)
            assert here.calls < 21 * took + 8, "none while nothing is waited for"
        assert web.excess(HOST, rate) <= rate * AHEAD_S + 1 + SLACK

    in_no_time(main)


def test_ten_thousand_hosts_at_once() -> None:
    async def main(loop: Fast) -> None:
        spec = spec_of(connections=500)
        here, web = Here(Budget(spec, clock=loop.time)), Web(loop)
        async with Share(here.call, spec, clock=loop.time) as share:
            await asyncio.gather(*(fetch(share, web, f"{n % 10_000}.example", 0.1) for n in range(20_000)))
            assert len(web.begun) == 10_000
            assert sum(web.open.values()) == 0
            await asyncio.sleep(1.0)
            remembered: Any = share
            assert len(remembered._lines) == 0
            assert here.calls < 500

    in_no_time(main)


async def budget_of_two(spec: FetchSpec, loop: Fast, stack: contextlib.AsyncExitStack) -> list[Share]:
    budget = Budget(spec, clock=loop.time)
    return [
        await stack.enter_async_context(Share(Here(budget).call, spec, clock=loop.time)) for _ in range(2)
    ]


def test_a_busy_host_leaves_its_address_to_another_now_and_then() -> None:
    async def main(loop: Fast) -> None:
        spec = spec_of(per_host_rate=1e5, per_address_connections=1)
        web = Web(loop)
        async with contextlib.AsyncExitStack() as stack:
            first, second = await budget_of_two(spec, loop, stack)
            rows = [fetch(first, web, HOST, 0.005, "192.0.2.1") for _ in range(2000)]
            busy = asyncio.gather(*rows)
            for _ in range(5):
                await asyncio.sleep(0.3)
                begin = loop.time()
                await fetch(second, web, "b.example", 0.005, "192.0.2.1")
                assert loop.time() - begin < 1.0
            assert not busy.done()
            await busy
        assert web.most["192.0.2.1"] == 1

    in_no_time(main)


def test_a_retry_after_stops_all_and_then_all_go_on() -> None:
    async def main(loop: Fast) -> None:
        spec = spec_of(per_host_rate=100.0, per_host_connections=8)
        web = Web(loop)

        async def asked_for_time(share: Share) -> None:
            async with share.slot(HOST) as slot:
                slot.ended(Reason.HTTP_429, retry_after_s=5.0)

        async with contextlib.AsyncExitStack() as stack:
            shares = await budget_of_two(spec, loop, stack)
            rows = asyncio.gather(*(fetch(share, web, HOST, 0.1) for share in shares for _ in range(100)))
            await asyncio.sleep(0.5)
            await asked_for_time(shares[0])
            said = loop.time()
            await rows
            assert loop.time() - said < 12
        after = [at - said for at in web.begun[HOST] if at > said]
        assert [seconds for seconds in after if 0.11 < seconds < 5] == []
        assert len(web.begun[HOST]) == 200

    in_no_time(main)


def test_what_a_worker_no_longer_needs_goes_to_another_at_once() -> None:
    async def main(loop: Fast) -> None:
        spec = spec_of(per_host_rate=40.0, per_host_connections=1)
        web = Web(loop)
        async with contextlib.AsyncExitStack() as stack:
            first, second = await budget_of_two(spec, loop, stack)
            for _ in range(30):
                await fetch(first, web, HOST, 0.001)
            begin = loop.time()
            await fetch(second, web, HOST, 0.001)
            assert loop.time() - begin < 0.5

    in_no_time(main)


def test_a_process_that_was_busy_asks_again_before_it_begins() -> None:
    async def main(loop: Fast) -> None:
        spec = spec_of()
        here = Here(Budget(spec, clock=loop.time))
        calls = 0

        async def call(method: str, *arguments: Any) -> Any:
            nonlocal calls
            answer = await here.call(method, *arguments)
            calls += 1
            if calls == 1:
                loop.call_soon(sleep)  # before those go on who were told just now
            return answer

        def sleep() -> None:
            loop.now += LEASE_S + 1

        async with Share(call, spec, clock=loop.time) as share, share.slot(HOST):
            assert calls > 1

    in_no_time(main)


@pytest.mark.parametrize("how", ["taken back", "late"])
def test_a_start_that_is_lost_is_asked_for_again(how: str) -> None:
    async def main(loop: Fast) -> None:
        wanted: list[int] = []
        now, soon = (0.0, 1), (0.2, 1)
        rows = 1 if how == "taken back" else 2
        given = Grant(HOST, 1, (now, soon)[-rows:], 1.0, False, None, 0.0)

        async def call(method: str, worker: str, number: int, news: News) -> Reply:
            wanted.append(sum(ask.want for ask in news.asks))
            if number == 2 and how == "taken back":
                return Reply(grants=(given._replace(connections=0, starts=(), void=True),))
            if number == 2:
                await asyncio.sleep(LEASE_S)  # meanwhile the first is under way, and the second start is void
                return Reply()
            return Reply(grants=(given,) if number == 1 or wanted[-1] else ())

        async with Share(call, spec_of(), clock=loop.time) as share:
            await asyncio.wait_for(
                asyncio.gather(*(fetch(share, Web(loop), HOST, LEASE_S + 1) for _ in range(rows))), 20
            )
        assert wanted[:2] == [rows, 0]
        assert 1 in wanted[2:]

    in_no_time(main)


def test_who_gives_up_at_the_moment_of_its_turn_keeps_nothing() -> None:
    async def main(loop: Fast) -> None:
        spec = spec_of(per_host_connections=1)
        here, web = Here(Budget(spec, clock=loop.time)), Web(loop)
        calls = 0

        async def call(method: str, *arguments: Any) -> Any:
            nonlocal calls
            answer = await here.call(method, *arguments)
            calls += 1
            if calls == 1:
                loop.call_soon(giving_up.cancel)  # it was told, and has not gone on
            return answer

        async with Share(call, spec, clock=loop.time) as share:
            giving_up = asyncio.ensure_future(fetch(share, web, HOST, 0.1))
            await asyncio.wait([giving_up])
            assert giving_up.cancelled()
            assert not web.begun
            await asyncio.wait_for(fetch(share, web, HOST, 0.1), 3)

    in_no_time(main)


def test_no_more_are_open_than_the_worker_may_have() -> None:
    async def main(loop: Fast) -> None:
        spec = spec_of(connections=3)
        open = most = 0

        async def one(share: Share, number: int) -> None:
            nonlocal open, most
            async with share.slot(f"{number}.example"):
                open += 1
                most = max(most, open)
                await asyncio.sleep(0.9 * SLOW_S)
                open -= 1

        async with Share(Here(Budget(spec, clock=loop.time)).call, spec, clock=loop.time) as share:
            begin = loop.time()
            await asyncio.gather(*(one(share, number) for number in range(30)))
            assert loop.time() - begin < 11.5
        assert most == 3

    in_no_time(main)


def test_those_that_stall_hold_up_no_others_but_are_no_more_than_so_many() -> None:
    async def main(loop: Fast) -> None:
        spec = spec_of(connections=2)
        open = most = 0

        async def one(share: Share, number: int, takes_s: float) -> None:
            nonlocal open, most
            async with share.slot(f"{number}.example"):
                open += 1
                most = max(most, open)
                await asyncio.sleep(takes_s)
                open -= 1

        async with Share(Here(Budget(spec, clock=loop.time)).call, spec, clock=loop.time) as share:
            stalling = [asyncio.ensure_future(one(share, number, 30.0)) for number in range(10)]
            begin = loop.time()
            await asyncio.gather(*(one(share, number, 0.1) for number in range(100, 120)))
            assert loop.time() - begin < 5 * SLOW_S + 4
            await asyncio.gather(*stalling)
            many = [one(share, number, 30.0) for number in range(200, 260)]
            await asyncio.gather(*many)
        assert most == 2 * SLOW_TIMES

    in_no_time(main)


def test_who_waits_for_a_host_that_is_down_is_told_why_and_others_go_on() -> None:
    async def main(loop: Fast) -> None:
        spec = spec_of(patience_s=30.0)
        here, web = Here(Budget(spec, clock=loop.time)), Web(loop)
        async with (
            Share(here.call, spec, clock=loop.time) as share,
            Share(here.call, spec, clock=loop.time) as other,
        ):
            async with share.slot(HOST) as slot:
                slot.ended(Reason.HTTP_429, retry_after_s=600.0)
            for one in (share, other, share, other):
                with pytest.raises(HostDown) as down:
                    async with one.slot(HOST):
                        pass
                assert (down.value.reason, down.value.host) == (Reason.HTTP_429, HOST)
            assert loop.time() < 1002
            calls = here.calls
            for _ in range(100):
                with pytest.raises(HostDown):
                    async with share.slot(HOST):
                        pass
            assert here.calls <= calls + 1, "it remembers"
            await fetch(other, web, "b.example", 0.1)
            await asyncio.sleep(580)
            await fetch(other, web, HOST, 0.1)
        assert web.begun[HOST][0] >= 1600

    in_no_time(main)


def test_a_call_that_fails_is_raised_by_all_who_wait() -> None:
    async def call(method: str, *arguments: Any) -> Any:
        raise OSError("gone")

    async def main(loop: Fast) -> list[Any]:
        async def fetch_site() -> Site:
            return said(b"")

        async def fails() -> tuple[str, ...]:
            raise LookupFailed(socket.EAI_AGAIN, "silence")

        async with Share(call, spec_of(), clock=loop.time) as share:
            waiting = [share.site(HOST, fetch_site), share.look_up(HOST, fails), enter(share)]
            first = await asyncio.gather(*waiting, return_exceptions=True)
            return [*first, *await asyncio.gather(enter(share), return_exceptions=True)]

    async def enter(share: Share) -> None:
        async with share.slot(HOST):
            pass

    assert [str(error) for error in in_no_time(main)] == ["gone"] * 4


def test_site_files_are_fetched_once_by_four_workers_and_again_where_that_failed() -> None:
    async def main(loop: Fast) -> None:
        spec = spec_of()
        budget = Budget(spec, clock=loop.time)
        fetches = 0

        async def fetch_site() -> Site:
            nonlocal fetches
            fetches += 1
            await asyncio.sleep(1.0)
            if fetches == 1:
                raise HostDown(HOST, Reason.TIMEOUT)
            return said(b"Disallow")

        async with contextlib.AsyncExitStack() as stack:
            shares = [
                await stack.enter_async_context(Share(Here(budget).call, spec, clock=loop.time))
                for _ in range(4)
            ]
            asked = [share.site(HOST, fetch_site) for share in shares for _ in range(3)]
            ends = await asyncio.gather(*asked, return_exceptions=True)
            assert fetches == 2
            assert Counter(map(type, ends)) == {HostDown: 3, Site: 9}, "those who waited there"
            assert await shares[0].site(HOST, fetch_site) == said(b"Disallow")
            assert fetches == 2

            asking = asyncio.ensure_future(shares[0].site("b.example", fetch_site))
            await asyncio.sleep(0.5)
            assert fetches == 3
            asking.cancel()
            assert await shares[1].site("b.example", fetch_site) == said(b"Disallow")
            assert fetches == 4, "who gave up has not kept it"

    in_no_time(main)


@pytest.mark.parametrize("lost", [False, True])
def test_an_outage_burns_no_row(lost: bool) -> None:
    """lost: the budget, in the middle of it."""

    async def main(loop: Fast) -> None:
        spec = spec_of()
        here = Here(Budget(spec, clock=loop.time, chance=lambda: 1.0))
        works = True
        lookups = 0

        async def is_found(name: str) -> bool:
            await asyncio.sleep(0.1 if works else 5.0)
            return works

        def look_up(name: str) -> Callable[[], Awaitable[tuple[str, ...]]]:
            async def ask() -> tuple[str, ...]:
                nonlocal lookups
                lookups += 1
                await asyncio.sleep(0.1 if works else 5.0)
                if "gone" in name:
                    raise LookupFailed(socket.EAI_NONAME if works else socket.EAI_AGAIN, "no")
                if not works:
                    raise LookupFailed(socket.EAI_AGAIN, "silence")
                return ("192.0.2.1",)

            return ask

        async with contextlib.AsyncExitStack() as stack:
            shares = [
                await stack.enter_async_context(Share(here.call, spec, clock=loop.time, is_found=is_found))
                for _ in range(4)
            ]

            async def rows(first: int, count: int) -> Counter[str]:
                ends: Counter[str] = Counter()

                async def row(number: int) -> None:
                    name = f"{'gone' if number % 4 == 0 else 'there'}-{number}.example"
                    try:
                        await shares[number % 4].look_up(name, look_up(name))
                        ends["found"] += 1
                    except LookupFailed:
                        ends["failed"] += 1

                await asyncio.gather(*(row(number) for number in range(first, first + count)))
                return ends

            assert await rows(0, 100) == {"found": 75, "failed": 25}
            works = False
            during = asyncio.ensure_future(rows(100, 100))
            await asyncio.sleep(60)
            assert here.budget.state()["outage_s"] > 40
            assert "no name is found" in shares[0].waits()
            if lost:
                here.budget = Budget(spec, restarted=True, clock=loop.time, chance=lambda: 1.0)
                await asyncio.sleep(30)
            before = lookups
            await asyncio.sleep(600)
            assert lookups == before, "one name is tried, now and then, not a hundred"
            works = True
            assert await during == {"found": 75, "failed": 25}
            assert here.budget.state()["outage_s"] is None
            assert not shares[0].waits()

    in_no_time(main)


def test_a_budget_that_is_lost_is_replaced_without_harm() -> None:
    async def main(loop: Fast) -> None:
        spec = spec_of(per_host_connections=2, per_host_rate=50.0)
        web = Web(loop)
        heres = [Here(Budget(spec, clock=loop.time)) for _ in range(3)]
        async with contextlib.AsyncExitStack() as stack:
            shares = [
                await stack.enter_async_context(Share(here.call, spec, clock=loop.time)) for here in heres
            ]
            for here in heres:
                here.budget = heres[0].budget
            async with shares[0].slot("paused.example") as slot:
                slot.ended(Reason.HTTP_429, retry_after_s=100.0)
            await asyncio.sleep(0.1)  # until it is known
            rows = [fetch(share, web, HOST, 0.5) for share in shares for _ in range(10)]
            rows += [fetch(shares[1], web, "paused.example", 0.5)]
            fetches = 0

            async def fetch_site() -> Site:
                nonlocal fetches
                fetches += 1
                await asyncio.sleep(20)
                return said(b"all")

            async def visit(share: Share) -> None:
                assert await share.site(HOST, fetch_site) == said(b"all")

            rows += [visit(share) for share in shares]
            running = asyncio.gather(*rows)
            await asyncio.sleep(2.1)
            new = Budget(spec, clock=loop.time, restarted=True)
            for here in heres:
                here.budget = new
            await running
            assert fetches == 1
        assert web.most[HOST] == 2
        assert web.excess(HOST, 50.0) <= 50 * AHEAD_S + 1
        assert web.begun["paused.example"][0] >= 1100

    in_no_time(main)


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.too_slow])
@example(1393621959, 7.0, 1, 2, 1, 22, False)  # each broke a bound, or starved somebody, once
@example(2164433473, 200.0, 2, 2, 3, 40, False)
@example(1397643023, 7.0, 1, 4, 1, 17, False)
@example(2868087855, 7.0, 1, 4, 4, 36, False)
@example(931419398, 3.0, 1, 5, 2, 33, False)
@example(1002945960, 3.0, 4, 1, 2, 36, False)
@example(3223738878, 0.5, 2, 1, 4, 30, True)
@example(956347565, 3.0, 1, 1, 1, 8, True)
@example(2557333149, 3.0, 3, 1, 1, 32, True)
@example(1499743685, 3.0, 1, 5, 3, 19, True)
@given(
    seed=st.integers(0, 2**32),
    rate=st.sampled_from([0.5, 3.0, 7.0, 20.0, 200.0, 1e5]),
    connections=st.integers(1, 4),
    per_address=st.integers(1, 5),
    workers_count=st.integers(1, 4),
    rows=st.integers(1, 40),
    trouble=st.booleans(),
)
def test_no_bound_is_broken_and_nobody_starves_whatever_happens(
    seed: int,
    rate: float,
    connections: int,
    per_address: int,
    workers_count: int,
    rows: int,
    trouble: bool,
) -> None:
    """Workers that come, die, give up and are slow; calls that are late or answered twice; a budget that is
    lost. Hosts share addresses, and fail now and then.
    """
    chance = random.Random(seed)
    hosts = {f"{n}.example": (f"192.0.2.{n // 2}",) for n in range(4)}
    spec = FetchSpec(
        per_host_connections=connections,
        per_host_rate=rate,
        per_address_connections=per_address,
        timeout_s=3.0,
        connections=chance.choice([2, 8, 64]),
        patience_s=chance.choice([5.0, 120.0]),
    )

    async def main(loop: Fast) -> None:
        web = Web(loop)
        budget = Budget(spec, clock=loop.time, chance=chance.random)
        heres: list[Here] = []
        ends: Counter[str] = Counter()

        def delay() -> float:
            return chance.choice([0.0, 0.001, 0.001, 0.01, 0.3 if trouble else 0.0])

        async def row(share: Share) -> None:
            host = chance.choice([*hosts])
            await asyncio.sleep(chance.random() * chance.choice([0.0, 1.0, 20.0]))
            try:
                async with (
                    asyncio.timeout(chance.choice([0.01, 1.0]) if chance.random() < 0.1 else None),
                    share.slot(host, addresses=hosts[host]) as slot,
                ):
                    with web.request(host, *hosts[host]):
                        await asyncio.sleep(chance.random() * chance.choice([0.01, 0.2, 3.0]))
                    if trouble and chance.random() < 0.2:
                        reason = chance.choice([*sorted(FAULTS), Reason.HTTP_404])
                        after = chance.choice([None, 0.5, 4.0, 300.0]) if "http" in reason else None
                        slot.ended(reason, retry_after_s=after)
                    else:
                        slot.ended(None)
                ends["asked"] += 1
            except HostDown:
                ends["down"] += 1
            except TimeoutError:
                ends["gave up"] += 1

        async def worker(dies_after: float | None) -> None:
            here = Here(budget, delay=delay, loses_answer=lambda: trouble and chance.random() < 0.05)
            heres.append(here)
            try:
                async with asyncio.timeout(dies_after), Share(here.call, spec, clock=loop.time) as share:
                    try:
                        await asyncio.gather(*(row(share) for _ in range(rows)))
                    except asyncio.CancelledError:
                        here.dead = True  # it says no good-bye
                        raise
            except TimeoutError:
                ends["died"] += 1
                await worker(None)  # another does its work

        async def lose() -> None:
            nonlocal budget
            await asyncio.sleep(chance.random() * 20)
            budget = Budget(spec, clock=loop.time, restarted=True, chance=chance.random)
            for here in heres:
                here.budget = budget

        deaths = [chance.random() * 10 if trouble and chance.random() < 0.4 else None for _ in range(4)]
        losing = asyncio.ensure_future(lose()) if trouble and chance.random() < 0.3 else None
        await asyncio.gather(*(worker(deaths[number]) for number in range(workers_count)))
        if losing is not None:
            await losing
        lost = rows * ends["died"]
        assert ends.total() - ends["died"] >= rows * workers_count, "each has ended"
        assert ends.total() - ends["died"] <= rows * workers_count + lost
        for host, addresses in hosts.items():
            assert web.most[host] <= connections
            assert web.excess(host, rate) <= 1 + (int(rate * AHEAD_S) if rate * AHEAD_S >= 2 else 0) + SLACK
            for address in addresses:
                assert web.most[address] <= max(per_address, 1)
        await asyncio.sleep(LEASE_S + spec.timeout_s + MARGIN_S + SILENT_S)
        assert budget.state()["connections"] == 0

    in_no_time(main)


# Workers on a real Ray


class Server:
    """Answers on loopback, and writes down when requests begin and how many are under way."""

    def __init__(self) -> None:
        self.begun: list[float] = []  # when whoever asks began, by the one clock that processes share
        self.rows: Counter[str] = Counter()
        self.open = self.most = 0
        self.on_request: Callable[[int], None] = lambda count: None

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        at, row = (await reader.readline()).decode().split()
        self.begun.append(float(at))
        self.rows[row] += 1
        self.open += 1
        self.most = max(self.most, self.open)
        self.on_request(len(self.begun))
        with contextlib.suppress(TimeoutError, ConnectionError):
            async with asyncio.timeout(0.05):
                await reader.read()  # who dies is gone at once
        self.open -= 1
        writer.write(b"ok")
        writer.close()

    @contextlib.contextmanager
    def running(self) -> Iterator[int]:
        """The port."""
        loop = asyncio.new_event_loop()
        server = loop.run_until_complete(asyncio.start_server(self._answer, "127.0.0.1", 0))
        thread = threading.Thread(target=loop.run_forever)
        thread.start()
        try:
            yield server.sockets[0].getsockname()[1]
        finally:
            loop.call_soon_threadsafe(loop.stop)
            thread.join()
            server.close()
            for task in asyncio.all_tasks(loop):
                task.cancel()
            loop.run_until_complete(server.wait_closed())
            loop.close()


@dataclass(frozen=True)
class Rows:
    """A task: so many requests."""

    number: int
    count: int
    port: int
    shared: Shared
    spec: FetchSpec
    marks: Path  # a folder
    dies_after: int | None = None  # requests, once


class Watched(Budget):
    def pid(self) -> int:
        return os.getpid()


def make_budget(spec: FetchSpec, restarted: bool) -> Budget:
    return Watched(spec, restarted=restarted)


async def request(port: int, row: str) -> None:
    at = time.monotonic()
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(f"{at} {row}\n".encode())
    assert await reader.read() == b"ok"
    writer.close()
    await writer.wait_closed()


def ask_for_rows(task: Rows, tell: Tell) -> int:
    begun = 0

    async def row(share: Share, number: int) -> None:
        nonlocal begun
        async with share.slot(HOST, addresses=("127.0.0.1",)) as slot:
            begun += 1
            if begun == task.dies_after and not (mark := task.marks / "died").exists():
                mark.touch()
                os.kill(os.getpid(), signal.SIGKILL)
            await request(task.port, f"{task.number}-{number}")
            slot.ended(None)

    async def rows() -> None:
        async with Share(task.shared.call, task.spec, name=task_name()) as share:
            await asyncio.gather(*(row(share, number) for number in range(task.count)))

    asyncio.run(rows())
    return begun


def visit_sites(task: Rows, tell: Tell) -> list[bytes]:
    async def visits() -> list[bytes]:
        async def fetch_site(host: str) -> Site:
            async with share.slot(host):
                await request(task.port, host)
            return said(host.encode())

        async with Share(task.shared.call, task.spec, name=task_name()) as share:
            hosts = [f"{number}.example" for number in range(task.count)]
            asked = (share.site(host, functools.partial(fetch_site, host)) for host in hosts)
            return [site.said for site in await asyncio.gather(*asked)]

    return asyncio.run(visits())


@pytest.fixture(scope="module")
def four() -> Iterator[Workers]:
    with workers(Where(count=4)) as pool:
        yield pool


def started(shared: Shared) -> int:
    """The process that a shared budget lives in, as soon as it is up."""
    give_up = time.monotonic() + 60
    while (pid := shared.look("pid")) is None:
        assert time.monotonic() < give_up
    return pid


def test_site_files_are_fetched_once_by_four_processes(four: Workers, tmp_path: Path) -> None:
    server, spec = Server(), FetchSpec(timeout_s=1.0)
    shared = four.shared(functools.partial(make_budget, spec))
    with server.running() as port:
        tasks = [Rows(number, 20, port, shared, spec, tmp_path) for number in range(4)]
        ends = [*four.run(visit_sites, tasks, heard=lambda task, word: None)]
    hosts = [f"{number}.example" for number in range(20)]
    assert [end.value for end in ends] == [[host.encode() for host in hosts]] * 4
    assert server.rows == dict.fromkeys(hosts, 1)


@pytest.mark.slow
def test_four_processes_keep_to_the_bounds_of_a_host_through_deaths(four: Workers, tmp_path: Path) -> None:
    """One of them is killed, and later the budget."""
    rate = 60.0
    server, spec = Server(), FetchSpec(timeout_s=1.0, per_host_connections=3, per_host_rate=rate)
    shared = four.shared(functools.partial(make_budget, spec))
    first = started(shared)

    def kill_budget(count: int) -> None:
        if count == 120:
            os.kill(first, signal.SIGKILL)

    server.on_request = kill_budget
    with server.running() as port:
        tasks = [
            Rows(number, 60, port, shared, spec, tmp_path, dies_after=15 if number == 2 else None)
            for number in range(4)
        ]
        ends = [*four.run(ask_for_rows, tasks, heard=lambda task, word: None)]
    assert [(end.error, end.value) for end in ends] == [(None, 60)] * 4
    assert (tmp_path / "died").exists()
    assert started(shared) != first
    assert len(server.rows) == 240
    assert server.most == 3, "and all of them were used"
    assert most_above(sorted(server.begun), rate) <= rate * AHEAD_S + 1
    pauses = [later - earlier for earlier, later in itertools.pairwise(sorted(server.begun))]
    assert max(pauses) > LEASE_S, "the second budget waited for what the first had given"


# Retry-After

NOW = datetime(2026, 11, 23, 12, 0, 0, tzinfo=UTC)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("0", 0.0),
        ("120", 120.0),
        (" 120\t", 120.0),
        ("9" * 400, LONGEST_PAUSE_S),
        ("Mon, 23 Nov 2026 12:00:30 GMT", 30.0),
        ("Monday, 23-Nov-26 12:01:00 GMT", 60.0),
        ("Mon Nov 23 12:01:00 2026", 60.0),
        ("Sun Nov  1 12:01:00 2026", 0.0),
        ("Sunday, 06-Nov-94 08:49:37 GMT", 0.0),
        ("Mon, 23 Nov 2026 23:59:60 GMT", 11 * 3600 + 3599.0),
        ("Fri, 01 Jan 2038 00:00:00 GMT", LONGEST_PAUSE_S),
        *[(text, None) for text in ("", "soon", "-1", "+1", "1.5", "1e3", "١٢", "1 2", "120, 120", "0x10")],
        *[(text, None) for text in ("Mon, 31 Feb 2026 12:00:00 GMT", "Mon, 23 Foo 2026 12:00:00 GMT")],
        *[(text, None) for text in ("Mon, 23 Nov 2026 12:00:30", "Mon, 23 Nov 2026 25:00:00 GMT")],
        ("Mon, 23 Nov 2026 12:00:30 GMT Mon, 23 Nov 2026 12:00:30 GMT", None),
    ],
)
def test_a_retry_after_is_seconds_or_a_date(text: str, seconds: float | None) -> None:
    assert retry_after_s(text, NOW) == seconds


@given(st.text(max_size=60))
def test_no_retry_after_is_more_than_nothing_or_a_day(text: str) -> None:
    seconds = retry_after_s(text, NOW)
    assert seconds is None or 0 <= seconds <= LONGEST_PAUSE_S
