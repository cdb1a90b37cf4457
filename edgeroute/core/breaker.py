"""Circuit breaker: stops calls to a failing endpoint, and probes whether it has recovered."""

from __future__ import annotations

from typing import Final, Literal

from edgeroute.core.codes import Lasting, Rejection
from edgeroute.core.elementwise import Numbers, least, most
from edgeroute.core.policy import INF

State = Literal["closed", "open", "half-open"]

FAULTS: Final = 3
"""Consecutive faults that open it."""
FIRST_S, MOST_S = 5.0, 300.0
"""Initial and maximum opening time, seconds; it doubles each time."""
WELL_S: Final = 60.0
"""Seconds for which an endpoint is known to be well after a success, unless it fails."""
HOLD_MOST_S: Final = 300.0
"""Upper limit of a hold that an endpoint requests, seconds."""
PROBE_LOST_S: Final = 60.0
"""Seconds after which a probe without a result counts as lost."""


def allowed(closed: Numbers, held: Numbers, now: Numbers) -> Numbers:
    """Whether a request may be sent: the breaker is closed, and no hold is in force."""
    return closed & (now >= held)


def tripped(faults: Numbers) -> Numbers:
    """Whether this number of consecutive faults opens a closed breaker."""
    return faults >= FAULTS


def open_s(nominal_s: Numbers, jitter: Numbers) -> Numbers:
    """Opening time, seconds: at least half of the nominal time, with jitter."""
    return nominal_s * (0.5 + 0.5 * jitter)


def grown_s(nominal_s: Numbers) -> Numbers:
    """The next nominal opening time, seconds."""
    return least(2 * nominal_s, MOST_S)


def due(due_at: Numbers, held: Numbers, now: Numbers) -> Numbers:
    """Whether to send a probe: it is due, and no hold is in force."""
    return (now >= due_at) & (now >= held)


def held_until(held: Numbers, until: Numbers, now: Numbers) -> Numbers:
    """End of the hold after another request for one: the later of the two, at most `HOLD_MOST_S` from now."""
    return most(held, least(until, now + HOLD_MOST_S))


class Breaker:
    """Circuit breaker of one endpoint.

    It opens after `FAULTS` consecutive faults. After the opening time a probe without user data is due, one at a time:
    half-open. If the probe fails, it opens for longer. If it succeeds, it closes on trial: requests are sent, but the next
    fault opens it at once, with the longer time, since a probe may be answered by something that does not run the model. Only a
    request's success resets the faults and the opening time.

    While the endpoint is not known to be well, few requests may be under way (`most`): so an outage costs few of them,
    however many callers there are.

    Results may be late. While it is open, a fault changes nothing; a success closes it, since the endpoint has answered, and
    the result of a probe in progress is then ignored.

    Instants are seconds of one monotonic clock; `jitter` is random, 0..1. Not synchronised: threads that share it need a lock.

    Attributes:
        state: closed, open or half-open.
        opened: how many times it has gone from closed to open.
    """

    __slots__ = ("_due", "_faults", "_held", "_next_s", "_well_until", "opened", "state")

    def __init__(self) -> None:
        self.state: State = "closed"
        self.opened = 0
        self._faults = 0
        self._next_s = FIRST_S
        self._due = INF
        """When the next probe may be sent, also if one is in progress; inf while closed."""
        self._held = -INF
        """End of the hold: no request before this instant."""
        self._well_until = -INF
        """Until when its last success counts, unless it fails."""

    @property
    def faults(self) -> int:
        """Number of faults in a row; those that came while it was open are not counted."""
        return self._faults

    def allows(self, now: float) -> bool:
        """Whether a request may be sent."""
        return bool(allowed(self.state == "closed", self._held, now))

    def why(self, now: float) -> Rejection | None:
        """Why no request may be sent; None: one may."""
        if self.state == "closed" and now >= self._held:  # as `allowed`, without its calls: each request asks
            return None
        if self.state == "closed":
            return Lasting.of("retry_after", f"it asked to wait another {_seconds(self._held - now)}", self._held - now)
        if self.state == "half-open":
            return Rejection("breaker", f"breaker half-open after {self._faults} faults, a probe is under way")
        wait_s = max(self._due, self._held) - now
        until = f"for another {_seconds(wait_s)} " if wait_s > 0 else ""
        text = f"breaker open {until}after {self._faults} faults" + ("" if until else ", a probe is due")
        return Lasting.of("breaker", text, wait_s)

    def most(self, now: float) -> float:
        """How many requests may be under way: inf if it is known to be well, else as many as faults are left until it opens."""
        return INF if not self._faults and now < self._well_until else max(1, FAULTS - self._faults)

    def fault(self, now: float, jitter: float) -> None:
        """Records a failed request that is the endpoint's fault."""
        if self.state == "closed":
            self._faults += 1  # a probe's success has not reset the count: on trial, one more fault is enough
            if tripped(self._faults):
                self.opened += 1
                self._open(now, jitter)

    def success(self, now: float) -> None:
        """Records an answered request, whenever it began. A hold stays in force: the server requested it."""
        self._faults, self._next_s, self._well_until = 0, FIRST_S, now + WELL_S
        if self.state != "closed":
            self._close()

    def probe_due(self, now: float) -> bool:
        """Whether to send a probe now."""
        return bool(due(self._due, self._held, now))

    def probe_begun(self, now: float) -> None:
        """Records that a probe was sent."""
        self.state, self._due = "half-open", now + PROBE_LOST_S

    def probe_ended(self, now: float, ok: bool, jitter: float) -> None:
        """Records a probe's result. A no-op unless one is in progress."""
        if self.state == "half-open":
            if ok:
                self._close()
            else:
                self._open(now, jitter)

    def link_up(self, now: float) -> None:
        """Makes a probe due at once, unless one is in progress: faults from before the network came back mean little."""
        self._next_s = FIRST_S
        if self.state == "open":
            self._due = now

    def hold(self, until: float, now: float) -> None:
        """Forbids requests before `until`, at most `HOLD_MOST_S` from now; the latest hold counts."""
        self._held = held_until(self._held, until, now)

    def _open(self, now: float, jitter: float) -> None:
        self.state, self._due = "open", now + open_s(self._next_s, jitter)
        self._next_s = grown_s(self._next_s)

    def _close(self) -> None:
        self.state, self._due = "closed", INF


def _seconds(wait_s: float) -> str:
    return f"{round(max(wait_s, 0.1), 1):g} s"
