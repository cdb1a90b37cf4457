"""Health of a router's endpoints (`EndpointHealth`): starts probes when a breaker has one due, and when the network is back."""

from __future__ import annotations

from math import inf
from time import monotonic
from typing import TYPE_CHECKING, Any, Protocol

from edgeroute.observe.device_sensors_and_sampler import LINUX
from edgeroute.system.fork_safety import ForkSafe, initially, per_process
from edgeroute.system.sanitised_logs_and_contained_errors import log
from edgeroute.system.signal_safe_locks import SafeLock

if TYPE_CHECKING:
    from edgeroute.cloud.endpoint_guard import Guard
    from edgeroute.observe.network_routes_and_monitor import NetworkMonitor
    from edgeroute.system.thread_pool_and_workers import ThreadPool

NEWS_S = 30.0  # seconds after this device's link came up within which an endpoint's recovery counts as caused by the link


class Router(Protocol):
    """The parts of a router that are needed."""

    @property
    def cloud_threads(self) -> ThreadPool:
        """Threads for probes."""

    @property
    def snapshot(self) -> Any:
        """The policy in force, with its clouds."""

    def resume(self) -> None:
        """Have what waited for an endpoint sent now."""

    def observe(self) -> None:
        """Update the facts, and with them the plans."""

    def stays_on_device(self, *, read: bool = False) -> str:
        """Return the reason why nothing leaves the device by itself now; empty: it may."""

    def breaker_changed(self, target: str, state: str) -> None:
        """Report the new state of a breaker."""


class EndpointHealth(ForkSafe):
    """Receiver of the guards' events (breaker opened, probe due, breaker closed), which starts probes and the network monitor.

    Args:
        router: the router whose endpoints these are.
    """

    _lock = per_process(SafeLock)
    _watch: NetworkMonitor | None = initially(None)

    def __init__(self, router: Router) -> None:
        self._router, self._closed = router, False
        self._linked_at = -inf  # monotonic instant at which this device's link last came up, as far as observed

    def opened(self, guard: Guard) -> None:
        """Log and report to the router that a breaker opened, and start the network monitor's thread if none runs.

        None is started after the close.
        """
        log.info("%s is not called for a while: %s", guard.name, guard.why())
        self._router.breaker_changed(guard.name, "open")
        with self._lock:
            if self._watch is not None or self._closed:
                return
            from edgeroute.observe.network_routes_and_monitor import NetworkMonitor

            self._watch = NetworkMonitor(self.link_up)
            if not LINUX:
                log.info("this system does not report when the network comes back: endpoints are probed by time alone")
            self._watch.start()  # within the lock: `close` ends what was started

    def probe(self, guard: Guard) -> None:
        """Report a half-open breaker to the router, and probe its endpoint in a thread of the router's pool.

        Without a free thread, the probe counts as failed. After the close none is sent.
        """
        self._router.breaker_changed(guard.name, "half-open")
        if not self._closed and not self._router.cloud_threads.submit(guard.check_health):
            guard.probe_failed()

    def closed(self, guard: Guard) -> None:
        """Log and report to the router that a breaker closed, and have the requests sent that waited for the endpoint."""
        log.info("%s is called again", guard.name)
        self._router.breaker_changed(guard.name, "closed")
        self._router.resume()

    def loaded(self, _: Guard) -> None:
        """Have the router make its plans again, as the load that an endpoint reports changes how much the edge answers itself.

        An exception is logged, and does not reach the call whose reply reported the load.
        """
        try:
            self._router.observe()
        except Exception:
            log.exception("plans could not be made again for the load that an endpoint reports")

    def link_up(self) -> None:
        """Record that the network came up, make the probes of all open breakers due at once, and have waiting requests sent.

        While nothing may leave the device by itself, by rules read anew, only the instant is recorded. Called by the monitor's
        thread.
        """
        self._linked_at = monotonic()
        if self._router.stays_on_device(read=True):
            return
        for backend in self._router.snapshot.clouds:
            backend.guard.link_up()
        self._router.resume()

    def outage_was_local(self) -> bool:
        """Return True if this device's link came up within the last `NEWS_S` seconds, so that the outage was the device's."""
        return monotonic() < self._linked_at + NEWS_S

    def close(self) -> None:
        """End the network monitor; later events start none, and send no probes. Waits for its callback in progress."""
        with self._lock:
            self._closed, watch, self._watch = True, self._watch, None
        if watch is not None:
            watch.close()
