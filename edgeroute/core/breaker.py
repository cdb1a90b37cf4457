"""Stops asking an endpoint that does not answer, and finds out with little that it answers again."""

from __future__ import annotations

from typing import Final, Literal

from edgeroute.core.codes import Rejection
from edgeroute.core.elementwise import Numbers, least, most
from edgeroute.core.policy import INF

State = Literal["closed", "open", "half-open"]

FAULTS: Final = 3
"""So many in a row open it."""
FIRST_S, MOST_S = 5.0, 300.0
"""How long it is open at first; twice as long each time, up to the most."""
HOLD_MOST_S: Final = 300.0
"""An endpoint cannot ask to be left alone for longer."""
PROBE_LOST_S: Final = 60.0
"""A probe that has not ended after this long never will."""


def allowed(closed: Numbers, held: Numbers, now: Numbers) -> Numbers:
    """Whether a request may be sent: the breaker is closed, and no hold lasts."""
    return closed & (now >= held)


def tripped(faults: Numbers) -> Numbers:
    """Whether so many faults in a row open a breaker that is closed."""
    return faults >= FAULTS


def open_s(nominal_s: Numbers, jitter: Numbers) -> Numbers:
    """How long it stays open: half of the nominal time at least."""
    return nominal_s * (0.5 + 0.5 * jitter)


def grown_s(nominal_s: Numbers) -> Numbers:
    """The nominal opening time after this one."""
    return least(2 * nominal_s, MOST_S)


def due(due_at: Numbers, held: Numbers, now: Numbers) -> Numbers:
    """Whether to send a probe: its time has come, and no hold lasts."""
    return (now >= due_at) & (now >= held)


def held_until(held: Numbers, until: Numbers, now: Numbers) -> Numbers:
    """The end of a hold after another one is asked for: the latest counts, and none reaches further than `HOLD_MOST_S`."""
    return most(held, least(until, now + HOLD_MOST_S))


class Breaker:
    """One endpoint's circuit breaker.

    It opens after `FAULTS` faults in a row. Once the opening time is over, a probe without user data is due, one at a time:
    half-open. If that fails, it opens for longer; if that succeeds, it closes on trial: requests go, but the next fault
    opens it at once, with the grown time, since a probe may be answered by what does not run the model. Only a request's
    success forgets faults and growth.

    Results may come late. While it is open, a fault says nothing new and changes nothing; a success closes it, for the
    endpoint has answered, and a probe that is still under way then does not matter any more.

    Instants are seconds of one monotonic clock; `jitter` is random, 0..1. Not synchronised: whoever shares it between
    threads holds a lock.

    Attributes:
        state: closed, open or half-open.
        opened: how many times it has gone from closed to open.
    """

    __slots__ = ("_due", "_faults", "_held", "_next_s", "opened", "state")

    def __init__(self) -> None:
        self.state: State = "closed"
        self.opened = 0
        self._faults = 0
        self._next_s = FIRST_S
        self._due = INF
        """When a probe may be sent, or again if one is under way; inf while closed."""
        self._held = -INF
        """Nothing is asked before that."""

    def allows(self, now: float) -> bool:
        """Whether a request may be sent."""
        return bool(allowed(self.state == "closed", self._held, now))

    def why(self, now: float) -> Rejection | None:
        """Why none may; None: it may."""
        if self.allows(now):
            return None
        if self.state == "closed":
            return Rejection("retry_after", f"it asked to wait another {_seconds(self._held - now)}")
        if self.state == "half-open":
            return Rejection("breaker", f"breaker half-open after {self._faults} faults, a probe is under way")
        wait_s = max(self._due, self._held) - now
        until = f"for another {_seconds(wait_s)} " if wait_s > 0 else ""
        text = f"breaker open {until}after {self._faults} faults" + ("" if until else ", a probe is due")
        return Rejection("breaker", text)

    def fault(self, now: float, jitter: float) -> None:
        """A request failed, and the endpoint is to blame."""
        if self.state == "closed":
            self._faults += 1  # a probe's success has not taken any away: on trial, one more is enough
            if tripped(self._faults):
                self.opened += 1
                self._open(now, jitter)

    def success(self, now: float) -> None:  # noqa: ARG002 - each of the news comes with its time
        """A request was answered, whenever it was begun. A hold stays: its server knows better."""
        self._faults, self._next_s = 0, FIRST_S
        self._close()

    def probe_due(self, now: float) -> bool:
        """Whether to send a probe now."""
        return bool(due(self._due, self._held, now))

    def probe_begun(self, now: float) -> None:
        """A probe that was due is being sent."""
        self.state, self._due = "half-open", now + PROBE_LOST_S

    def probe_ended(self, now: float, ok: bool, jitter: float) -> None:
        """It was answered, or it was not. Without effect unless one is under way."""
        if self.state == "half-open":
            if ok:
                self._close()
            else:
                self._open(now, jitter)

    def link_up(self, now: float) -> None:
        """The network came back: what was before it says little. A probe is due at once, unless one is under way."""
        self._next_s = FIRST_S
        if self.state == "open":
            self._due = now

    def hold(self, until: float, now: float) -> None:
        """The endpoint asks for nothing before that instant, no later than `HOLD_MOST_S` from now; the latest one counts."""
        self._held = held_until(self._held, until, now)

    def _open(self, now: float, jitter: float) -> None:
        self.state, self._due = "open", now + open_s(self._next_s, jitter)
        self._next_s = grown_s(self._next_s)

    def _close(self) -> None:
        self.state, self._due = "closed", INF


def _seconds(wait_s: float) -> str:
    return f"{round(max(wait_s, 0.1), 1):g} s"
