"""Admission control of one endpoint in a replay: the live `Admission` in virtual time."""

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
"""Assumed latency of an endpoint without records, seconds."""
News = Literal["answered", "failed", "overdue", "dropped", "probed", "back"]


class Gate:
    """Admission control of one endpoint.

    A call's result is reported at its start, and takes effect at its own instant, so that no request depends on later events.

    Attributes:
        asked: number of requests sent.
        held: number of requests rejected.
        probes: number of probes.
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
        """Admits a request, which occupies the slot until its end, and books its cost; or returns why not."""
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
        """Schedules the answer of a call."""
        self._push(at, "answered", slot, took_s)

    def failed(self, slot: Hashable, at: float, took_s: float, failure: Failure) -> None:
        """Schedules the failure of a call."""
        self._push(at, "failed", slot, (took_s, failure))

    def overdue(self, slot: Hashable, at: float, took_s: float) -> None:
        """Schedules the giving-up of a call at its deadline."""
        self._push(at, "overdue", slot, took_s)

    def dropped(self, slot: Hashable, at: float) -> None:
        """Schedules the cancellation of a call whose answer was no longer needed."""
        self._push(at, "dropped", slot)

    def _push(self, at: float, what: News, slot: Hashable = None, detail: Any = None) -> None:
        self._count += 1
        heappush(self._news, (at, self._count, what, slot, detail))

    def _catch_up(self, now: float) -> None:
        """Applies all scheduled events up to `now`."""
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
        """Applies a failure, with as many retries as there may have been."""
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
        """Probes whether the endpoint has recovered."""
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
        """Number of times the breaker opened, after all events."""
        self._catch_up(INF)
        return self.rules.breaker.opened
