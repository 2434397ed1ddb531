"""What sites say in robots.txt and the like, kept for all workers of a run."""

from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Any

from pmd.fetch.news import News, Site

KEPT_SITES = 1_000_000
KEPT_SITES_BYTES = 256 * 2**20


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
        while len(self._said) > KEPT_SITES or self._size > KEPT_SITES_BYTES:
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
