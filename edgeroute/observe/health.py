"""Endpoint health: follows the endpoints' breakers, starts their probes, and probes at once when the network comes back."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable
from math import inf
from time import monotonic
from typing import TYPE_CHECKING

from edgeroute.system.forks import ForkSafe, initially, per_process
from edgeroute.system.process import LINUX

if TYPE_CHECKING:
    from edgeroute.cloud.guard import Guard
    from edgeroute.observe.network import NetworkMonitor

log = logging.getLogger("edgeroute")
NEWS_S = 30.0
"""Seconds after this device's link came up within which an endpoint's recovery counts as caused by the link."""


class EndpointHealth(ForkSafe):
    """Receiver of the guards' events (breaker opened, probe due, breaker closed), which starts probes and the network monitor.

    Args:
        submit: runs a probe in a thread; returns False if no thread is available.
        guards: returns the current guards.
        back: called when an endpoint has answered again, or the network came up.
        changed: called with the name and the state of a breaker that has changed; None: no callback.
        loaded: called when the load that an endpoint reports changes the share of requests that the edge answers.
        stays_home: returns a true value while nothing may leave the device by itself.
    """

    _lock = per_process(threading.RLock)
    _watch: NetworkMonitor | None = initially(None)

    def __init__(
        self,
        submit: Callable[[Callable[[], object]], bool],
        guards: Callable[[], Iterable[Guard]],
        back: Callable[[], object],
        changed: Callable[[str, str], object] | None = None,
        *,
        loaded: Callable[[], object] = lambda: None,
        stays_home: Callable[[], object] = lambda: "",
    ) -> None:
        self._stays_home = stays_home
        self._loaded = loaded
        self._submit, self._guards, self._back, self._changed = submit, guards, back, changed
        self._closed = False
        self._linked_at = -inf
        """Monotonic instant at which this device's link last came up, as far as observed."""

    def opened(self, guard: Guard) -> None:
        """Log and report that a breaker opened, and start the network monitor if none runs."""
        log.info("%s is not called for a while: %s", guard.name, guard.why())
        if self._changed is not None:
            self._changed(guard.name, "open")
        with self._lock:
            if self._watch is not None or self._closed:
                return
            from edgeroute.observe.network import NetworkMonitor

            self._watch = NetworkMonitor(self.link_up)
            if not LINUX:
                log.info("this system does not report when the network comes back: endpoints are probed by time alone")
            self._watch.start()  # within the lock: `close` ends what was started

    def probe(self, guard: Guard) -> None:
        """Report a half-open breaker and probe its endpoint in the background.

        Without a free thread, the probe counts as failed.
        """
        if self._changed is not None:
            self._changed(guard.name, "half-open")
        if not self._closed and not self._submit(guard.check_health):
            guard.probe_failed()

    def closed(self, guard: Guard) -> None:
        """Log and report that a breaker closed, and call `back`, which resumes the work that waited for the endpoint."""
        log.info("%s is called again", guard.name)
        if self._changed is not None:
            self._changed(guard.name, "closed")
        self._back()

    def loaded(self, _: Guard) -> None:
        """Call the `loaded` callback, so that plans are made again.

        Its exception is logged, and does not reach the call whose reply reported the load.
        """
        try:
            self._loaded()
        except Exception:
            log.exception("plans could not be made again for the load that an endpoint reports")

    def link_up(self) -> None:
        """Record that the network came up, make the probes of all open breakers due at once, and call `back`.

        While nothing may leave the device by itself, only the instant is recorded.
        """
        self._linked_at = monotonic()
        if self._stays_home():
            return
        for guard in self._guards():
            guard.link_up()
        self._back()

    def outage_was_local(self) -> bool:
        """Return True if this device's link came up within the last `NEWS_S` seconds, so that the outage was the device's."""
        return monotonic() < self._linked_at + NEWS_S

    def close(self) -> None:
        """End the network monitor; later events start none, and send no probes."""
        with self._lock:
            self._closed, watch, self._watch = True, self._watch, None
        if watch is not None:
            watch.close()
