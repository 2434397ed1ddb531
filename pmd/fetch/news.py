"""What a worker and the budget of a run tell each other, many times a second.

    worker's Share --News: what is wanted, what has ended--> Budget
                   <--Reply: connections, starts, pauses---

Plain values, for they go from process to process.
"""

import time
from typing import Literal, NamedTuple

from pmd.records import Reason

# What is given may be begun with for so long after it was given, s; a request that has begun then takes its
# own timeout_s, and a little for its end to be noticed.
LEASE_S = 2.0
MARGIN_S = 2.0
TICK_S = 0.05  # between two exchanges of a worker that is at work
POLL_S = 0.5  # between two of one that only waits, at most


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
    outage_s: float | None = None  # for so long no name has been found
    left_alone: int = 0  # hosts, for now: they ask for it, or do not answer
