"""What stands before an endpoint in a replay: the same `Admission` as before a live one, in virtual time."""

from __future__ import annotations

from collections.abc import Hashable
from heapq import heappop, heappush
from random import Random
from typing import Any, Final, Literal

from edgeroute.core.admission import Admission
from edgeroute.core.codes import Failure, Rejection
from edgeroute.core.policy import INF
from edgeroute.core.spending import Cost, Spending
from edgeroute.replay.network import Link
from edgeroute.replay.records import Past
from edgeroute.replay.setup import Port

SERVER_S: Final = 0.02
"""What an endpoint of which nothing is recorded is taken to need for an answer."""
News = Literal["answered", "failed", "overdue", "dropped", "probed", "back"]


class Gate:
    """One endpoint's.

    What a call comes to is told at once and counts from its own instant on, so that no request knows of what is later.

    Attributes:
        asked: requests that went.
        held: those that did not.
        probes: how often it was tried without user data.
        rules: the `Admission`.
    """

    def __init__(
        self, name: str, port: Port, past: Past, link: Link | None, server_s: float, random: Random, spending: Spending
    ) -> None:
        self.name, self.port, self.past, self.link, self.server_s = name, port, past, link, server_s
        self.asked = self.held = self.probes = 0
        self.rules, self._random = Admission(port.terms, spending), random
        self._news: list[tuple[float, int, News, Hashable, Any]] = []
        self._count = 0
        for at in () if link else past.back:
            self._push(at, "back")

    def enter(self, slot: Hashable, cost: Cost, now: float) -> Rejection | None:
        """Lets a request through, which has the slot until its end, and books its cost; or says why not."""
        self._catch_up(now)
        rejection = self.rules.enter(slot, now)
        if rejection is not None:
            if self.rules.take_probe(now):
                self._probe(now)
            return rejection
        rejection = self.rules.attempt(cost, now, now)
        if rejection is not None:
            self.rules.leave(slot)
        return rejection

    def answered(self, slot: Hashable, at: float, took_s: float) -> None:
        """A call ended so."""
        self._push(at, "answered", slot, took_s)

    def failed(self, slot: Hashable, at: float, took_s: float, failure: Failure) -> None:
        """A call ended so."""
        self._push(at, "failed", slot, (took_s, failure))

    def overdue(self, slot: Hashable, at: float, took_s: float) -> None:
        """It was given up at its deadline."""
        self._push(at, "overdue", slot, took_s)

    def dropped(self, slot: Hashable, at: float) -> None:
        """Its answer was not needed any more."""
        self._push(at, "dropped", slot)

    def _push(self, at: float, what: News, slot: Hashable = None, detail: Any = None) -> None:
        self._count += 1
        heappush(self._news, (at, self._count, what, slot, detail))

    def _catch_up(self, now: float) -> None:
        """Takes up what has happened by now."""
        news, rules = self._news, self.rules
        while news and news[0][0] <= now:
            at, _, what, slot, detail = heappop(news)
            rules.leave(slot)
            if what == "back":
                if rules.state == "open" and rules.link_up(at):
                    self._probe(at)
            elif what == "probed":
                rules.probe_ended(at, self._random.random(), ok=detail)
            elif what == "answered":
                rules.succeeded(at, detail)
            elif what == "failed":
                self._fail(at, *detail)
            elif what == "overdue" and rules.too_late(detail):
                rules.failed(at, self._random.random())

    def _fail(self, at: float, took_s: float, failure: Failure) -> None:
        """A failure, after as many retries as there may have been."""
        rules, verdict = self.rules, failure.verdict()
        if verdict == "answered":
            rules.succeeded(at)
            return
        if verdict == "late" and not rules.too_late(took_s):
            return
        rules.failed(at, self._random.random())
        retries = self.port.retries if failure.retriable else 0
        while retries and rules.retry():
            retries -= 1
            rules.failed(at, self._random.random())

    def _probe(self, now: float) -> None:
        """Asks whether the endpoint is back."""
        self.probes += 1
        if not self.port.health:
            took_s: float | None = 0.0
        elif self.link is not None:
            took_s = self.link.exchange_s(0, 0, self.server_s)
            took_s = took_s if took_s <= self.link.left_s(now) else None
        else:
            took_s = 0.0 if self.past.away(now) is None else None
        self._push(now + (took_s or 0.0), "probed", None, took_s is not None)

    @property
    def opened(self) -> int:
        """How often the breaker opened, once all is told."""
        self._catch_up(INF)
        return self.rules.breaker.opened
