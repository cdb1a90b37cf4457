"""Prometheus: a router's counts and states in the form that Prometheus scrapes (`Prometheus`, `metrics`), by `prometheus_client`.

In order: the metrics with their labels (`Page`); the instrument, which is a `Tally`; the reply to a scrape.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from math import inf, isfinite
from typing import Any, NamedTuple, Protocol
from weakref import WeakKeyDictionary, WeakSet

from edgeroute.errors import PolicyError, RuntimeMissing
from edgeroute.observe.stats_and_status_types import Stats, Status
from edgeroute.record.event_tally_and_histograms import Histogram, Tallied, Tally
from edgeroute.system.fork_safety import ForkSafe, per_process
from edgeroute.system.signal_safe_locks import SafeLock

__all__ = ["Exposition", "Prometheus", "metrics"]


# Metrics: their names, labels and values.

PREFIX = "edgeroute_"
STATES = ("closed", "half-open", "open")
# Field of a reading -> its metric, and the metric's description.
SENSORS = {
    "battery": ("device_battery_ratio", "State of charge of the battery"),
    "temperature_c": ("device_temperature_celsius", "Temperature of the hottest part of the device"),
    "mains": ("device_mains", "Whether the device is on external power"),
    "cpu": ("device_cpu_ratio", "Share of all cores' time that is used"),
    "cpu_pressure": ("device_cpu_pressure_ratio", "Share of the last 10 s in which a task waited for a core"),
    "memory_available": ("device_memory_available_ratio", "Share of memory that can be had without swapping"),
    "memory_pressure": ("device_memory_pressure_ratio", "Share of the last 10 s in which a task waited for memory"),
    "throttled": ("device_throttled", "Whether the processor runs slower than it could"),
    "gpu": ("device_gpu_ratio", "Share of the GPU's time that is used"),
    "power_w": ("device_power_watts", "Power that the device draws"),
    "network": ("device_network", "Whether there is a route to anywhere"),
    "metered": ("device_metered", "Whether the link is metered"),
}


class Page:
    """Metrics of one scrape, of all routers.

    Args:
        without: names of metrics that are not known, and left out.
    """

    def __init__(self, without: frozenset[str] = frozenset()) -> None:
        self._without = without
        self._found: dict[str, Any] = {}
        self._seen = set[tuple[str, ...]]()

    def collect(self) -> Iterator[Metric]:
        """Return the metrics, as a registry of `prometheus_client` asks for them."""
        return iter(self._found.values())

    def _add(self, kind: Any, name: str, text: str, labels: dict[str, str], *value: Any) -> None:
        """Add a value to the metric of this name, made at its first value. A second one with the same labels is ignored.

        Names that the page leaves out are skipped.
        """
        key = (name, *labels.values())
        if name in self._without or key in self._seen:  # two targets of one name: Prometheus refuses what is there twice
            return
        self._seen.add(key)
        family = self._found.get(name)
        if family is None:
            family = self._found[name] = kind(PREFIX + name, text, labels=[*labels])
            family.type = "summary" if "quantile" in labels else family.type  # the only type that may have this label
        family.add_metric([*labels.values()], *value)

    def counter(self, name: str, text: str, value: float, **labels: str) -> None:
        """Add a count; Prometheus reads its name with `_total` at the end."""
        self._add(CounterMetricFamily, name, text, labels, value)

    def gauge(self, name: str, text: str, value: float | None, **labels: str) -> None:
        """Add a value that goes up and down; None: it is not known, and left out."""
        if value is not None:
            self._add(GaugeMetricFamily, name, text, labels, float(value))

    def histogram(self, name: str, text: str, value: Histogram, **labels: str) -> None:
        """Add a histogram of durations."""
        self._add(HistogramMetricFamily, name, text, labels, value.buckets(), value.sum_s)


def of_tally(page: Page, tallied: Tallied, router: str) -> None:
    """Add a tally's counts and histograms to the page, labelled with the router's name."""
    for kind, count in tallied.requests.items():
        labels = {"source": kind.source, "leg": kind.leg, "reason": kind.reason, "degraded": str(kind.degraded).lower()}
        page.counter("requests", "Requests, by what answered and why", count, router=router, **labels)
    for source, histogram in tallied.sources.items():
        page.histogram("request_duration_seconds", "Time from a call to its answer", histogram, router=router, source=source)
    for (leg, side), histogram in tallied.legs.items():
        page.histogram(
            "leg_duration_seconds", "Time of a target that answered one input", histogram, router=router, leg=leg, side=side
        )
    for (target, result), count in tallied.attempts.items():
        page.counter("attempts", "Attempts to call an endpoint", count, router=router, leg=target, result=result)
    for target, histogram in tallied.endpoints.items():
        page.histogram("attempt_duration_seconds", "Time of an attempt to call an endpoint", histogram, router=router, leg=target)
    for (target, way), count in tallied.tokens.items():
        page.counter("tokens", "Tokens that an endpoint counted", count, router=router, leg=target, type=way)
    for (target, code), count in tallied.held.items():
        page.counter("held", "Calls that were not made, for a local reason", count, router=router, leg=target, reason=code)
    for what, count in tallied.events.items():
        page.counter("events", "Requests for the outbox by what became of them; alarms", count, router=router, what=what)


def of_status(page: Page, status: Status, router: str) -> None:
    """Add a router's status to the page: statistics, spending with finite limits, outbox, rules in force, sensors' reading."""
    _of_stats(page, status.stats, router)
    for name, limit, spent in zip(status.limits._fields, status.limits, status.spent, strict=True):
        page.gauge("spent", "Spent over the limit's window", spent, router=router, limit=name)
        if limit < inf:
            page.gauge("limit", "Most that may be spent over its window", limit, router=router, limit=name)
    for what, count in (status.outbox or {}).items():
        if what in {"waiting", "bytes"}:
            name = "outbox_waiting" if what == "waiting" else "outbox_bytes"
            page.gauge(name, f"Requests in the outbox: {what}", count, router=router)
        else:
            page.counter("outbox", "Requests of the outbox since its file was made", count, router=router, what=what)
    for rule in status.rules:
        page.gauge("rule", "Rules on the device's state that are in force", 1, router=router, rule=rule)
    if status.reading is not None:
        for field, (name, text) in SENSORS.items():
            page.gauge(name, text, getattr(status.reading, field), router=router)
        page.gauge("device_reading_age_seconds", "Age of the sensors' reading", status.reading_age_s, router=router)


def _of_stats(page: Page, stats: Stats, router: str) -> None:
    """Add a router's statistics to the page. Unknown values are left out."""
    page.counter("routed", "Requests that were walked, so without those that the cache answered", stats.requests, router=router)
    page.counter("deferred", "Requests for which the cloud was called", stats.deferred, router=router)
    page.counter("degraded", "Answers that are the best there was, not what the policy asks for", stats.degraded, router=router)
    page.counter("unanswered", "Requests without an answer", stats.unanswered, router=router)
    page.counter("cached", "Answers of the cache", stats.cached, router=router)
    page.counter("queued", "Requests that were stored in the outbox", stats.queued, router=router)
    page.counter("late", "Replies after their requests' deadlines", stats.late, router=router)
    page.counter("spared", "Answers of the edge that were accepted since the cloud was loaded", stats.spared, router=router)
    page.gauge("deferral_ratio", "Share of requests for which the cloud was called", stats.deferral_rate, router=router)
    page.gauge("break_even_ratio", "Deferral share below which edge first takes less energy", stats.break_even, router=router)
    for leg in stats.legs:
        labels = {"router": router, "leg": leg.name, "side": leg.side}
        for result in ("started", "answered", "accepted", "failed", "cancelled"):
            page.counter("leg_runs", "Runs and calls of a target", getattr(leg, result), **labels, result=result)
        for quantile, seconds in (("0.5", leg.p50_s), ("0.9", leg.p90_s), ("0.99", leg.p99_s)):
            page.gauge("leg_latency_seconds", "Recent latency of a target", seconds, **labels, quantile=quantile)
        if leg.side == "cloud":
            del labels["side"]
            page.counter("sent_bytes", "Bytes of bodies sent, retries included", leg.bytes_sent, **labels)
            page.counter("received_bytes", "Bytes of bodies received", leg.bytes_received, **labels)
            for state in STATES:
                page.gauge("breaker", "State of the circuit breaker", leg.breaker == state, **labels, state=state)
            page.gauge("link_seconds", "Time of a call but for its bytes", leg.call_s, **labels)
            page.gauge("link_bytes_per_second", "Bandwidth to the endpoint", leg.bytes_per_s, **labels)
    for name, joules in stats.joules.items():
        page.gauge("call_joules", "Energy of a call of a target", joules, router=router, leg=name)
    for audit in stats.audits:
        page.counter("audited", "Answers that were compared with the cloud's", audit.audited, router=router, leg=audit.target)
        page.counter("disagreed", "Those that differ", audit.disagreed, router=router, leg=audit.target)
        page.gauge("drift_evidence", "Evidence of drift", audit.evidence, router=router, leg=audit.target)
        page.gauge("drift_alarm", "Whether there is an alarm of drift", bool(audit.alarm), router=router, leg=audit.target)
    for arm in stats.arms:
        labels = {"router": router, "arm": arm.arm, "model": arm.model}
        page.counter("arm_requests", "Requests of an arm of a trial", arm.requests, **labels)
        for what in ("failed", "deferred", "differs", "loss"):
            part = getattr(arm, what)
            known = part.share if part is not None and isfinite(part.share) else None
            page.gauge("arm_ratio", "Share of an arm's requests", known, **labels, what=what)
        page.gauge("arm_stopped", "Whether the guardrail stopped it", bool(arm.stopped), **labels)


_missing: ImportError | None = None
try:
    from prometheus_client import CollectorRegistry
    from prometheus_client.exposition import choose_encoder
    from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
except ImportError as e:
    _missing = e  # said once it is used: the names of edgeroute can be imported without it


class Exposition(NamedTuple):
    """Reply to a scrape."""

    body: bytes
    content_type: str


class Measured(Protocol):
    """`Router` or `AsyncRouter`, as far as it is used here."""

    @property
    def engine(self) -> Any:
        """Parts of the router."""

    def status(self) -> Status:
        """Return the router's state."""


class Prometheus(Tally):
    """Counts of what a router does, for Prometheus: `Options(instruments=[Prometheus()])`.

    `metrics(router)` returns the page to scrape. The metrics and their labels are in docs/observe.md. No label has a text of a
    user or of a server in it.

    Args:
        registry: registry of `prometheus_client`, where the metrics are registered; None: a new one.
        router: value of the label `router`, which distinguishes routers of one registry.
        device: True: the device's sensors are read for it, in the background.

    Raises:
        PolicyError: another router of the registry has this name, or it is no text that UTF-8 has.
        RuntimeMissing: `prometheus_client` is not installed.
    """

    prompt = True  # methods return at once: a call needs no thread for them

    def __init__(self, *, registry: CollectorRegistry | None = None, router: str = "", device: bool = True) -> None:
        check_installed()
        # Half a character, which UTF-8 has not, would fail at each scrape.
        if not isinstance(router, str) or router.encode(errors="ignore").decode() != router:
            raise PolicyError(f"router= is a text that UTF-8 has, as in Prometheus(router='camera'), not {router!a:.60}")
        super().__init__()
        self.registry = CollectorRegistry() if registry is None else registry
        self.router, self.closed, self._routers = router, False, 0
        self.reads_sensors = device
        _collector(self.registry).join(self)

    def opened(self, status: Callable[[], Status | None]) -> None:
        """Register a router; several are counted together, with the status of the one that was made last."""
        super().opened(status)
        self._routers += 1

    def close(self) -> None:
        """Count one router less; after the last one the name becomes free in the registry, and its counts are shown no more."""
        self._routers -= 1
        self.closed = self._routers <= 0


def metrics(router: Measured, accept: str = "") -> Exposition:
    """Return the metrics of a router, for any HTTP server: body and content type of the reply.

    With a `Prometheus` among the router's instruments these are all of its registry; without one those that the router's
    `status()` has: counts and states, no histograms and no reasons. Reads the outbox's file, so not for an event loop's thread.

    Args:
        router: a `Router` or an `AsyncRouter`.
        accept: the request's header `Accept`, which selects Prometheus' text or OpenMetrics.

    Raises:
        RuntimeMissing: `prometheus_client` is not installed.
    """
    check_installed()
    instrument = of_router(router)
    if instrument is None:
        page = Page()
        of_status(page, router.status(), "")
        return shown(page, accept)
    return _encode(instrument.registry, accept)


def shown(page: Page, accept: str = "") -> Exposition:
    """Return a page of metrics as body and content type of a reply."""
    registry = CollectorRegistry()
    registry.register(page)
    return _encode(registry, accept)


def _encode(registry: CollectorRegistry, accept: str) -> Exposition:
    """Return a registry's metrics in the format that the client accepts."""
    encoder, content_type = choose_encoder(accept)
    return Exposition(encoder(registry), content_type)


def of_router(router: Measured) -> Prometheus | None:
    """Return the router's `Prometheus` instrument; None: it has none."""
    return next((one for one in router.engine.instruments.all if isinstance(one, Prometheus)), None)


def check_installed() -> None:
    """Check that `prometheus_client` is installed.

    Raises:
        RuntimeMissing: it is not.
    """
    if _missing is not None:
        raise RuntimeMissing("prometheus_client is not installed: pip install 'edgeroute[prometheus]'") from _missing


class _Collector(ForkSafe):
    """Collector of the metrics of all routers of one registry, at each scrape; a call costs nothing."""

    _lock = per_process(SafeLock)  # reentrant: a signal handler may call in between

    def __init__(self) -> None:
        self._members: WeakSet[Prometheus] = WeakSet()

    def join(self, member: Prometheus) -> None:
        """Add a router to the scrapes, until it is closed or garbage.

        Raises:
            PolicyError: another router of the registry has its name.
        """
        with self._lock:
            if any(other.router == member.router for other in self._open()):
                raise PolicyError(f"the registry has a router {member.router!r}: name each, as in Prometheus(router='camera')")
            self._members.add(member)

    def _open(self) -> list[Prometheus]:
        """Return the routers that are not closed."""
        return [member for member in self._members if not member.closed]

    def describe(self) -> Iterable[Metric]:
        """Return nothing: the metrics are known at a scrape."""
        return ()

    def collect(self) -> Iterator[Metric]:
        """Return the metrics of all open routers, by name. One whose router is gone has counts, but no status."""
        page = Page()
        with self._lock:
            members = self._open()
        for member in sorted(members, key=lambda prometheus: prometheus.router):
            of_tally(page, member.read(), member.router)
            status = member.status()
            if status is not None:
                of_status(page, status, member.router)
        return page.collect()


_collectors: WeakKeyDictionary[CollectorRegistry, _Collector] = WeakKeyDictionary()


def _collector(registry: CollectorRegistry) -> _Collector:
    """Return the collector of a registry, created and registered at the first call."""
    new_collector = _Collector()
    collector = _collectors.setdefault(registry, new_collector)
    if collector is new_collector:
        registry.register(collector)
    return collector
