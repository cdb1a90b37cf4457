"""Drift monitor: tests one edge model's guarantee by audits and deferral rates, and derives the effective threshold."""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Callable, Mapping
from statistics import median
from time import gmtime, strftime
from typing import Any, NamedTuple

from edgeroute import system
from edgeroute.confidence.binding import BoundCertificate, effective_target
from edgeroute.core.drift import Drift
from edgeroute.core.policy import INF, OnAlarm, Target
from edgeroute.observe.stats import AuditStats

SHOWN = 50
"""Number of audits that an alarm reports."""
RECENT = 256
"""Number of stored confidences of audited accepted answers: an alarm raises the threshold to their median."""


class Audit(NamedTuple):
    """What is audited, and what an alarm does."""

    share: float = 0.005
    """Share of all requests, 0..1. For those that the edge answers, the cloud is called in the background, if the data class, the
    limits and the link allow it; for those deferred to the cloud the comparison is free. 0: only deferral rates are monitored."""
    on_alarm: OnAlarm = "tell"
    """`tell`: report it in the log, the reasons and `stats`; `raise`: also defer half of what was accepted, at each alarm;
    `defer`: also defer everything."""
    agrees: Callable[[Any, Any], bool] | None = None
    """`f(edge's value, cloud's value)`: whether they agree; None: equality."""


class Alarm(NamedTuple):
    """A guarantee that is no longer trusted."""

    at: float
    """Seconds since 1970."""
    what: str
    action: OnAlarm


class DriftMonitor:
    """Drift monitor of one edge model with a threshold. Not synchronised: threads that share it need a lock.

    Args:
        promise: the certificate of its threshold; None: a plain number, for which there are no alarms.
        audit: the settings.

    Attributes:
        at_least: lower bound of the threshold, raised by alarms; -inf: as certified.
    """

    def __init__(self, promise: BoundCertificate | None, audit: Audit) -> None:
        self.promise, self._audit = promise, audit
        self.audited = self.disagreed = 0
        self.alarm: Alarm | None = None
        self.limit: float | None = None
        self._stands: Target | None = None
        self.at_least = -INF
        self._accepted: deque[float] = deque(maxlen=RECENT)
        self._wrong: deque[bool] = deque(maxlen=SHOWN)
        self._seen = (0, 0)
        self._differs: Drift | None = None
        self._more: Drift | None = None
        self._fewer: Drift | None = None
        if promise is not None:
            low, high = promise.certificate.deferral_interval
            self.limit = limit(promise)
            self._differs = None if self.limit is None else Drift(self.limit)
            self._more = Drift(high) if 0 < high < 1 else None
            self._fewer = Drift(1 - low) if 0 < low < 1 else None

    def target(self, target: Target) -> Target:
        """The target with its effective threshold."""
        self._stands = effective_target(target, self.promise, "" if self.alarm is None else self.alarm.what, self.at_least)
        return self._stands

    def compared(self, confidence: float | None, *, agrees: bool, accepted: bool) -> bool:
        """Records the comparison of an edge answer with the cloud's. Returns whether it causes a new alarm."""
        if not accepted:
            return False
        self.audited += 1
        self.disagreed += not agrees
        self._wrong.append(not agrees)
        if confidence is not None:
            self._accepted.append(float(confidence))
        if self._differs is None:
            return False
        self._differs.add(float(not agrees))
        if not self._differs.alarmed:
            return False
        return self._alarmed(
            f"of the last {len(self._wrong)} audited answers {sum(self._wrong)} differ from the cloud's, "
            f"and at most {self._differs.level:.2%} should"
        )

    def since(self, judged: int, below: int) -> None:
        """Sets the baseline of the counters: earlier answers were judged by another threshold, or have been counted."""
        self._seen = judged, below

    def counted(self, judged: int, below: int) -> bool:
        """Records the totals of answers compared with the threshold and of those below it. Returns as `compared`."""
        n, ones = judged - self._seen[0], below - self._seen[1]
        self._seen = judged, below
        if n <= 0:
            return False
        if self.at_least > (-INF if self.promise is None else self.promise.certificate.threshold):
            return False  # not the certified threshold, to which the certified rate does not apply
        for drift, seen, what in ((self._more, ones, "more"), (self._fewer, n - ones, "fewer")):
            if drift is not None and not drift.alarmed:
                drift.add_many(seen, n)
                if drift.alarmed:
                    rate = drift.ones / drift.count
                    share, usual = (rate, drift.level) if what == "more" else (1 - rate, 1 - drift.level)
                    return self._alarmed(
                        f"{what} inputs than usual are deferred, {share:.1%} of the last {drift.count:,}, where it was "
                        f"{'at most' if what == 'more' else 'at least'} {usual:.1%}"
                    )
        return False

    def stats(self, name: str) -> AuditStats:
        """Statistics so far."""
        evidence = 0.0 if self._differs is None else self._differs.evidence
        said = "" if self.alarm is None else self.alarm.what
        return AuditStats(name, self.audited, self.disagreed, self.limit, evidence, said)

    def _alarmed(self, what: str) -> bool:
        """Records an alarm. Returns whether it is new."""
        action = self._audit.on_alarm
        if self.alarm is not None and action != "raise":
            return False
        now = system.now()
        self.alarm = Alarm(now, f"drift alarm of {strftime('%Y-%m-%d', gmtime(now))}: {what}", action)
        if action == "defer":
            self.at_least = INF
        elif action == "raise":
            higher = [c for c in self._accepted if c > self.at_least]
            self.at_least = median(higher) if len(higher) > 1 else INF
            self._accepted.clear()
            self._differs = None if self.limit is None else Drift(self.limit)
            self._more = self._fewer = None
        return True

    def dump(self) -> dict[str, Any]:
        """JSON-serialisable state for later runs."""
        drifts = {"disagreement": self._differs, "deferral_up": self._more, "deferral_down": self._fewer}
        return {
            "certificate": None if self.promise is None else self.promise.certificate.checksum,
            "date": None if self.promise is None else self.promise.certificate.date,
            "label": "" if self._stands is None else self._stands.label,
            "threshold": None if self._stands is None else str(self._stands.threshold),
            "deferral_interval": None if self.promise is None else self.promise.certificate.deferral_interval,
            "audited": self.audited,
            "disagreed": self.disagreed,
            "limit": self.limit,
            "alarm": None if self.alarm is None else self.alarm._asdict(),
            "raised": None if self.at_least == -INF else str(self.at_least),
            "accepted": list(self._accepted),
            "drift": {name: drift.dump() for name, drift in drifts.items() if drift is not None},
            "judged": self._seen[0],
            "deferred": self._seen[1],
        }

    def load(self, dumped: Mapping[str, Any]) -> None:
        """Restores the state of an earlier run if it had the same certificate. Unreadable parts are skipped."""
        if self.promise is None or dumped.get("certificate") != self.promise.certificate.checksum:
            return
        with contextlib.suppress(KeyError, TypeError, ValueError, OverflowError):
            self.audited, self.disagreed = int(dumped["audited"]), int(dumped["disagreed"])
            self._accepted.extend(map(float, dumped["accepted"]))
            alarm = dumped["alarm"]
            self.alarm = None if alarm is None else Alarm(float(alarm["at"]), str(alarm["what"]), alarm["action"])
            self.at_least = -INF if dumped["raised"] is None else float(dumped["raised"])
        self._differs, self._more, self._fewer = (
            drift and _drift(dumped, name, drift.level)
            for name, drift in (("disagreement", self._differs), ("deferral_up", self._more), ("deferral_down", self._fewer))
        )


def _drift(dumped: Mapping[str, Any], name: str, level: float) -> Drift:
    try:
        return Drift.load(dumped["drift"][name], level)
    except (KeyError, TypeError, ValueError):
        return Drift(level)


def limit(promise: BoundCertificate) -> float | None:
    """Upper limit of the share of accepted answers that differ from the cloud's: from calibration, or the guarantee if larger.

    With labels, some of the answers that differ are correct ones of the edge, so that share alone does not measure the loss; but
    more of it than in calibration shows a change. None: calibration did not measure it.
    """
    certificate = promise.certificate
    seen = certificate.disagreement
    if seen is None or not 0 <= certificate.deferral_rate < 1:
        return None
    allowed = certificate.value / (1 - certificate.deferral_rate) if certificate.kind == "max_loss" else 0.0
    most = max(seen, allowed)
    return most if 0 < most < 1 else None
