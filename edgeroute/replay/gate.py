"""What stands before an endpoint in a replay: the breaker, budgets and rate that stand before a live one, in virtual time."""

from __future__ import annotations

from heapq import heappop, heappush
from random import Random
from typing import Any, Final

from edgeroute.core.breaker import Breaker
from edgeroute.core.budget import Rate, RetryBudget
from edgeroute.core.latency import Latency
from edgeroute.core.policy import INF
from edgeroute.replay.network import Link
from edgeroute.replay.records import Past, of_the_input, retriable
from edgeroute.replay.setup import Port

SERVER_S: Final = 0.02
"""What an endpoint of which nothing is recorded is taken to need for an answer."""
_ALIVE, _FAULT, _PROBED, _BACK, _NOTHING = range(5)


class Gate:
    """One endpoint's.

    What a call comes to is told at once and counts from its own instant on, so that no request knows of what is later.

    Attributes:
        asked: requests that went.
        held: those that did not.
        probes: how often it was tried without user data.
    """

    def __init__(self, name: str, port: Port, past: Past, link: Link | None, server_s: float, random: Random) -> None:
        self.name, self.port, self.past, self.link, self.server_s = name, port, past, link, server_s
        self.asked = self.held = self.probes = 0
        self.breaker, self._retries, self._rate = Breaker(), RetryBudget(), Rate(port.terms.calls_per_s)
        self._usual, self._random, self._busy, self._count = Latency(), random, 0, 0
        self._news: list[tuple[float, int, int, Any]] = [] if link else [(at, i, _BACK, None) for i, at in enumerate(past.back)]
        self._count = len(self._news)

    def enter(self, now: float) -> str:
        """Lets a request through; or says why not."""
        self._catch_up(now)
        breaker = self.breaker
        why = ""
        if not breaker.allows(now):
            why = breaker.why(now)
            if breaker.probe_due(now):
                self._probe(now)
        elif self._busy >= self.port.terms.max_concurrent:
            why = f"{self._busy} calls are under way (max_concurrent)"
        elif not self._rate.take(now):
            why = f"it has had {self.port.terms.calls_per_s:g} calls a second (calls_per_s)"
        return why

    def answered(self, at: float, took_s: float) -> None:
        """A call ended so."""
        self._told(at, _ALIVE, took_s)

    def failed(self, at: float, error: str) -> None:
        """A call ended so."""
        if of_the_input(error):
            self._told(at, _ALIVE, None)
        else:
            self._told(at, _FAULT, self.port.retries if retriable(error) else 0)

    def overdue(self, at: float, took_s: float) -> None:
        """It was given up at its deadline: a fault, unless it had less time than the endpoint usually takes."""
        self._told(at, _FAULT if took_s >= (self._usual.quantile(0.9) or 0.0) else _NOTHING, 0)

    def dropped(self, at: float) -> None:
        """Its answer was not needed any more."""
        self._told(at, _NOTHING, None)

    def _told(self, at: float, what: int, detail: Any) -> None:
        self._busy += 1
        self._push(at, what, detail)

    def _push(self, at: float, what: int, detail: Any) -> None:
        self._count += 1
        heappush(self._news, (at, self._count, what, detail))

    def _catch_up(self, now: float) -> None:
        """Takes up what has happened by now."""
        news, breaker = self._news, self.breaker
        while news and news[0][0] <= now:
            at, _, what, detail = heappop(news)
            if what == _BACK:
                if breaker.state == "open":
                    breaker.link_up(at)
                    self._probe(at)
                continue
            if what == _PROBED:
                breaker.probe_ended(at, detail, self._random.random())
                continue
            self._busy -= 1
            if what == _ALIVE:
                breaker.success(at)
                self._retries.success()
                if detail is not None:
                    self._usual.add(detail)
            elif what == _FAULT:
                breaker.fault(at, self._random.random())
                while detail and breaker.state == "closed" and self._retries.take():
                    detail -= 1
                    breaker.fault(at, self._random.random())

    def _probe(self, now: float) -> None:
        """Asks whether the endpoint is back."""
        self.probes += 1
        self.breaker.probe_begun(now)
        if not self.port.health:
            took_s: float | None = 0.0
        elif self.link is not None:
            took_s = self.link.exchange_s(0, 0, self.server_s)
            took_s = took_s if took_s <= self.link.left_s(now) else None
        else:
            took_s = None if self.past.away(now) else 0.0
        self._push(now + (took_s or 0.0), _PROBED, took_s is not None)

    @property
    def opened(self) -> int:
        """How often the breaker opened, once all is told."""
        self._catch_up(INF)
        return self.breaker.opened
