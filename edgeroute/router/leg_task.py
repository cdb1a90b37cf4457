"""A leg in a thread: it always sends an event, and its backend counts it if it goes on after it was told to stop."""

from __future__ import annotations

from collections.abc import Callable
from time import monotonic

from edgeroute.core.walk import Done, Event, Failed
from edgeroute.router.drivers import Send
from edgeroute.types import Backend, StopToken

Measured = Callable[[str, float], object]
PASSING = (KeyboardInterrupt, SystemExit)
"""What is no failure of a leg in the caller's own thread, since a signal handler may have raised it; anything else is one."""


class LegTask:
    """A leg in a thread. The backend counts abandoned ones, for the planner."""

    __slots__ = ("_backend", "_begun", "_ended", "_leg", "_measured", "_took_s", "token")

    def __init__(self, leg: int, backend: Backend, measured: Measured | None = None) -> None:
        self._leg, self._backend, self._measured, self.token = leg, backend, measured, StopToken()
        self._begun, self._ended = monotonic(), False
        self._took_s: float | None = None

    def run(self, execute: Callable[[], Event], send: Send, *, here: bool = False) -> None:
        """Runs the leg and always sends an event; but `PASSING` passes in the caller's own thread (here)."""
        try:
            event = execute()
        except BaseException as e:
            if here and isinstance(e, PASSING):
                raise
            event = Failed(self._leg, e, monotonic())
        self._took_s = event.at - self._begun if type(event) is Done else None
        self._ended = True
        self._backend.stopping.discard(self)
        if self.token.asked:
            self._measure()
        send(event)

    def stop(self) -> None:
        """Asks it to stop. Lock-free: if it has just ended, the count is corrected at once."""
        if not self._ended:
            self._backend.stopping.add(self)
            if self._ended:
                self._backend.stopping.discard(self)
        else:
            self._measure()
        self.token()

    def _measure(self) -> None:
        """Reports how long the run took: the walk, which stops it, does not see its event any more."""
        measured, self._measured = self._measured, None
        if measured is not None and self._took_s is not None:
            measured(self._backend.name, self._took_s)
