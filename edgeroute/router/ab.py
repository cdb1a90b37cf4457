"""A/B: which arm a request is in, what came of each, and the guardrail that stops B."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping
from hashlib import sha256
from math import sqrt
from typing import TYPE_CHECKING, Any

from edgeroute.confidence.exact import proportion
from edgeroute.core.arms import ArmTest
from edgeroute.core.codes import UNFIT
from edgeroute.core.latency import Latency
from edgeroute.core.plan import Plan
from edgeroute.core.walk import Outcome
from edgeroute.edge.state import TURN
from edgeroute.observe.stats import ArmStats, Part
from edgeroute.record.ab import AB, B
from edgeroute.system import contained, renew_after_fork

if TYPE_CHECKING:
    from edgeroute.router.snapshot import Snapshot

log = logging.getLogger("edgeroute")
RISK = 0.05
"""Probability that an interval misses the truth."""
ERRORS, DEFERRED, DIFFERS = "errors", "deferred", "differs"
WORDS = {ERRORS: "requests that its edge model failed on", DEFERRED: "deferrals", DIFFERS: "answers that differ from the cloud's"}


class Arms:
    """The arms of a router, and what came of them.

    Args:
        ab: the settings.
        models: in words, of A and B.
        alarm: called with the name of B's target and the guardrail's text once it stops the arm.
        dumped: what came of them in earlier runs, if it was of these models and settings.

    Attributes:
        stopped: why no request gets B any more; empty: some do.
    """

    def __init__(
        self, ab: AB, models: tuple[str, str], alarm: Callable[[str, str], object], dumped: Mapping[str, Any] | None = None
    ) -> None:
        self.ab, self.models, self._alarm, self.stopped = ab, models, alarm, ""
        alpha = ab.alpha / 3
        margins = ((ERRORS, ab.more_errors), (DEFERRED, ab.more_deferred), (DIFFERS, ab.more_differs))
        self._tests = {name: ArmTest(min(margin, 0.999), alpha) for name, margin in margins}
        self._tallies = _Tally(), _Tally()
        self._below = int(ab.share * 2**64)
        self._fixed = None if ab.device is None else self._is_b(ab.device)
        self._failed = False
        self.after_fork()
        renew_after_fork(self)
        if isinstance(dumped, Mapping) and dumped.get("of") == self._of():
            try:
                self._load(dumped)
            except (KeyError, TypeError, ValueError) as e:
                log.warning("what came of the arms before cannot be read, and begins anew: %r", e)

    def of(self, models: tuple[str, str]) -> Arms:
        """The arms of the same comparison for other models, without counts."""
        return Arms(self.ab, models, self._alarm)

    def _of(self) -> list[Any]:
        """What the sums are about; equal after it was read from JSON."""
        ab = self.ab
        return [
            *self.models,
            float(ab.share),
            ab.salt,
            *map(float, (ab.more_errors, ab.more_deferred, ab.more_differs, ab.alpha)),
        ]

    def dump(self) -> dict[str, Any]:
        """JSON-serialisable state, and the statistics for who reads it."""
        with self._lock:
            tallies, tests = [tally.dump() for tally in self._tallies], {name: test.dump() for name, test in self._tests.items()}
        told = [arm._asdict() for arm in self.stats()]
        ab, names = self.ab, ("share", "salt", "more_errors", "more_deferred", "more_differs", "alpha", "device")
        settings = {"models": list(self.models), **{name: getattr(ab, name) for name in names}}
        return {
            "of": self._of(), "stopped": self.stopped, "tallies": tallies, "tests": tests, "arms": told, "settings": settings,
        }  # fmt: skip

    def _load(self, dumped: Mapping[str, Any]) -> None:
        a, b = (_Tally.load(one) for one in dumped["tallies"])
        for name, test in self._tests.items():
            test.load(dumped["tests"][name])
        self._tallies, self.stopped = (a, b), str(dumped["stopped"])

    def after_fork(self) -> None:
        """A new lock for the child."""
        self._lock = threading.Lock()

    def _is_b(self, key: object) -> bool:
        digest = sha256(f"{self.ab.salt}\0{key}".encode("utf-8", "surrogatepass")).digest()
        return int.from_bytes(digest[:8], "big") < self._below

    def _is_b_by(self, x: Any) -> bool:
        assert self.ab.by is not None, "it was asked for"
        return self._is_b(self.ab.by(x))

    def choose(self, snapshot: Snapshot, identity: str, x: Any) -> Snapshot:
        """The policy for a request: that with A's model, or with B's. A session is in one arm: its model needs all inputs."""
        other = snapshot.other
        if other is None or self.stopped:
            return snapshot
        if self._fixed is not None:
            return other if self._fixed else snapshot
        if self.ab.by is None:
            turn = TURN.get()
            return other if self._is_b(identity if turn is None else turn.stream or identity) else snapshot
        try:
            return other if contained(self._is_b_by, x) else snapshot
        except Exception:
            if not self._failed:
                self._failed = True
                log.exception("ab: by failed, so the request is in arm A (said once)")
            return snapshot

    def ended(self, plan: Plan, outcome: Outcome, took_s: float) -> None:
        """Counts a request that has ended."""
        edge = next((i for i, leg in enumerate(plan.legs) if leg.permit is None), None)
        if edge is None:
            return
        b = plan.legs[edge].name == B
        faults = (error for kind, leg, _, error in outcome.log if kind == "failed" and leg == edge)
        failed = any(getattr(error, "code", "") not in UNFIT for error in faults)
        away = any(kind == "start" and plan.legs[leg].permit is not None for kind, leg, _, _ in outcome.log)
        with self._lock:
            tally = self._tallies[b]
            tally.requests += 1
            tally.failed += failed
            tally.deferred += away
            tally.took(took_s)
            self._bet(ERRORS, failed, b)
            self._bet(DEFERRED, away, b)
        self._look()

    def compared(self, name: str, *, agrees: bool) -> None:
        """Counts an audited answer of an edge model."""
        with self._lock:
            tally = self._tallies[name == B]
            tally.compared += 1
            tally.differ += not agrees
            self._bet(DIFFERS, not agrees, name == B)
        self._look()

    def _bet(self, name: str, bad: bool, b: bool) -> None:
        self._tests[name].add(float(bad), b=b)

    def _look(self) -> None:
        """Stops B once a test has enough evidence."""
        for name, test in self._tests.items():
            if test.alarmed and not self.stopped:
                self.stopped = f"B has more {WORDS[name]} than A, by more than is allowed (p = {test.p:.2g}, at any time)"
                log.warning("ab: %s; no request gets it any more", self.stopped)
                self._alarm(B, self.stopped)

    def stats(self) -> tuple[ArmStats, ...]:
        """Statistics of each arm."""
        with self._lock:
            a, b = self._tallies
            return a.stats("a", self.models[0], ""), b.stats("b", self.models[1], self.stopped)


_COUNTS = ("requests", "failed", "deferred", "compared", "differ")


class _Tally:
    """Sums of one arm."""

    def __init__(self) -> None:
        self.requests = self.failed = self.deferred = self.compared = self.differ = 0
        self._latency, self._sum, self._squares = Latency(), 0.0, 0.0

    def dump(self) -> dict[str, Any]:
        counts = {name: getattr(self, name) for name in _COUNTS}
        return {**counts, "latency": self._latency.dump(), "sum": self._sum, "squares": self._squares}

    @classmethod
    def load(cls, dumped: Mapping[str, Any]) -> _Tally:
        made = cls()
        for name in _COUNTS:
            setattr(made, name, int(dumped[name]))
        made._latency = Latency.load(dumped["latency"])
        made._sum, made._squares = float(dumped["sum"]), float(dumped["squares"])
        return made

    def took(self, seconds: float) -> None:
        self._latency.add(seconds)
        self._sum += seconds
        self._squares += seconds * seconds

    def stats(self, arm: str, model: str, stopped: str) -> ArmStats:
        n = max(1, self.requests)
        mean = self._sum / n
        error = 1.96 * sqrt(max(0.0, self._squares / n - mean * mean) / n)
        deferred, differs = part(self.deferred, self.requests), part(self.differ, self.compared)
        kept = part(self.requests - self.deferred, self.requests, RISK / 2)
        wrong = part(self.differ, self.compared, RISK / 2)
        loss = Part(kept.share * wrong.share, kept.low * wrong.low, kept.high * wrong.high)
        failed, took = part(self.failed, self.requests), Part(mean, max(0.0, mean - error), mean + error)
        return ArmStats(
            arm, model, self.requests, failed, deferred, took,
            self._latency.quantile(0.5), self._latency.quantile(0.99), self.compared, differs, loss, stopped,
        )  # fmt: skip


def part(count: int, of: int, risk: float = RISK) -> Part:
    """A share with its interval."""
    return Part(*proportion(count, of, risk))
