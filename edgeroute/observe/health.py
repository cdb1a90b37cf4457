"""Endpoint health: starts probes of failed endpoints, at once when the network comes back."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable
from math import inf
from time import monotonic
from typing import TYPE_CHECKING

from edgeroute.system.process import LINUX, renew_after_fork

if TYPE_CHECKING:
    from edgeroute.cloud.guard import Guard
    from edgeroute.observe.network import NetworkMonitor

log = logging.getLogger("edgeroute")
NEWS_S = 30.0
"""An endpoint that is back within so many seconds after the device's link came up was away because of the link."""


class EndpointHealth:
    """Receives the guards' events: breaker opened or closed, probe due.

    Args:
        submit: runs a probe in a thread, if one is available.
        guards: returns the current guards.
        back: called when an endpoint has answered again.
        loaded: called when the load of an endpoint has changed what is kept on the edge.
        changed: called with the name and state of a breaker that has changed; None: no callback.
        stays_home: whether nothing may leave the device by itself now.
    """

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
        """When this device's link last came up, as far as observed."""
        self.after_fork()
        renew_after_fork(self)

    def after_fork(self) -> None:
        """The child starts its own network monitor when it needs one."""
        self._lock = threading.RLock()
        self._watch: NetworkMonitor | None = None

    def opened(self, guard: Guard) -> None:
        """Reports an open breaker, and starts the network monitor."""
        log.info("%s is not asked for a while: %s", guard.name, guard.why())
        if self._changed is not None:
            self._changed(guard.name, "open")
        with self._lock:
            if self._watch is not None or self._closed:
                return
            from edgeroute.observe.network import NetworkMonitor

            self._watch = NetworkMonitor(self.link_up)
            if not LINUX:
                log.info("this system does not tell when the network comes back: endpoints are probed by time alone")
            self._watch.start()  # within the lock: `close` ends what was started

    def probe(self, guard: Guard) -> None:
        """Sends a probe in the background; without a free thread it counts as failed, and the next one is due later."""
        if self._changed is not None:
            self._changed(guard.name, "half-open")
        if not self._closed and not self._submit(guard.check_health):
            guard.probe_failed()

    def closed(self, guard: Guard) -> None:
        """Reports a closed breaker, and resumes what waited for the endpoint."""
        log.info("%s is asked again", guard.name)
        if self._changed is not None:
            self._changed(guard.name, "closed")
        self._back()

    def loaded(self, _: Guard) -> None:
        """Has plans made again; a failure of that is not one of the call whose reply it came with."""
        try:
            self._loaded()
        except Exception:
            log.exception("the load that an endpoint reports could not be taken in")

    def link_up(self) -> None:
        """The network came up: makes probes due at once, unless nothing leaves the device by itself."""
        self._linked_at = monotonic()
        if self._stays_home():
            return
        for guard in self._guards():
            guard.link_up()
        self._back()

    def own(self) -> bool:
        """Whether the outage that just ended was the device's own."""
        return monotonic() < self._linked_at + NEWS_S

    def close(self) -> None:
        """Ends the network monitor."""
        with self._lock:
            self._closed, watch, self._watch = True, self._watch, None
        if watch is not None:
            watch.close()
