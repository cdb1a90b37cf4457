"""Prometheus: what a router does and is like, in the form that Prometheus scrapes, through `prometheus_client`."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple, Protocol
from weakref import WeakKeyDictionary, WeakSet

from edgeroute.errors import PolicyError, RuntimeMissing
from edgeroute.observe.status import Status
from edgeroute.record.instruments import Instruments
from edgeroute.record.tally import Tally
from edgeroute.system import renew_after_fork

_missing: ImportError | None = None
try:
    from prometheus_client import CollectorRegistry
    from prometheus_client.exposition import choose_encoder
    from prometheus_client.metrics_core import Metric

    from edgeroute.record.exposed import Page, of_status, of_tally
except ImportError as e:
    _missing = e  # said once it is used: the names of edgeroute can be imported without it

__all__ = ["Exposition", "Prometheus", "metrics"]


class Exposition(NamedTuple):
    """The reply to a scrape."""

    body: bytes
    content_type: str


class Parts(Protocol):
    """What of a router's parts is used."""

    @property
    def instruments(self) -> Instruments:
        """Its instruments."""


class Measured(Protocol):
    """A `Router` or an `AsyncRouter`."""

    @property
    def engine(self) -> Any:
        """Its parts."""

    def status(self) -> Status:
        """Its state."""


class Prometheus(Tally):
    """Counts what a router does, for Prometheus: `Router(..., instruments=[Prometheus()])`; `metrics(router)` is what is scraped.

    The metrics and their labels are in docs/observe.md. No label has a text of a user or of a server in it.

    Args:
        registry: of `prometheus_client`, where the metrics are registered; None: one of its own.
        router: value of the label `router`, by which routers of one registry are told apart.
        device: whether the device's sensors are read for it, in the background.

    Raises:
        PolicyError: another router of the registry has this name, or it is no text that UTF-8 has.
        RuntimeMissing: `prometheus_client` is not installed.
    """

    prompt = True
    """A call need no thread of its own for it."""

    def __init__(self, *, registry: CollectorRegistry | None = None, router: str = "", device: bool = True) -> None:
        installed()
        if not _encodable(router):
            raise PolicyError(f"router= is a text that UTF-8 has, as in Prometheus(router='camera'), not {router!a:.60}")
        super().__init__()
        self.registry = CollectorRegistry() if registry is None else registry
        self.router, self.closed, self._routers = router, False, 0
        self.reads_sensors = device
        _collector(self.registry).join(self)

    def opened(self, status: Callable[[], Status | None]) -> None:
        """A router has it; of several it counts all together, and has the status of the one that was made last."""
        super().opened(status)
        self._routers += 1

    def close(self) -> None:
        """With the last router its name is free again in the registry, and what it counted is not there any more."""
        self._routers -= 1
        self.closed = self._routers <= 0


def metrics(router: Measured, accept: str = "") -> Exposition:
    """The metrics of a router, for any HTTP server: the body and the content type of the reply.

    With a `Prometheus` among the router's instruments these are all of its registry; without one those that the router's
    `status()` has: counts and states, no histograms and no reasons. Reads the outbox's file, so not for an event loop's thread.

    Args:
        router: a `Router` or an `AsyncRouter`.
        accept: the request's header `Accept`, by which it is Prometheus' text or OpenMetrics.

    Raises:
        RuntimeMissing: `prometheus_client` is not installed.
    """
    installed()
    found = of_router(router)
    if found is None:
        page = Page()
        of_status(page, router.status(), "")
        return shown(page, accept)
    return _encoded(found.registry, accept)


def shown(page: Page, accept: str = "") -> Exposition:
    """A page of metrics as the body and the content type of a reply."""
    registry = CollectorRegistry()
    registry.register(_Made(page))
    return _encoded(registry, accept)


def _encoded(registry: CollectorRegistry, accept: str) -> Exposition:
    encoder, content_type = choose_encoder(accept)
    return Exposition(encoder(registry), content_type)


def of_router(router: Measured) -> Prometheus | None:
    """The router's instrument of this kind; None: it has none."""
    parts: Parts = router.engine
    return next((one for one in parts.instruments.all if isinstance(one, Prometheus)), None)


def installed() -> None:
    """Checks that what it needs is there.

    Raises:
        RuntimeMissing: `prometheus_client` is not installed.
    """
    if _missing is not None:
        raise RuntimeMissing("prometheus_client is not installed: pip install 'edgeroute[prometheus]'") from _missing


def _encodable(name: Any) -> bool:
    """Whether it is a text that a page can have: one of half a character would fail at each scrape."""
    try:
        name.encode()
    except (AttributeError, UnicodeEncodeError):
        return False
    return isinstance(name, str)


class _Collector:
    """Has the metrics of all routers of one registry made at each scrape: none is made at a call."""

    def __init__(self) -> None:
        self._members: WeakSet[Prometheus] = WeakSet()
        self.after_fork()
        renew_after_fork(self)

    def after_fork(self) -> None:
        """A new lock for the child."""
        self._lock = threading.RLock()  # reentrant: a signal handler may call in between

    def join(self, member: Prometheus) -> None:
        """From now on it is scraped, until it is closed or gone."""
        with self._lock:
            if any(one.router == member.router for one in self._open()):
                raise PolicyError(
                    f"there is a router {member.router!r} in this registry: name each, as in Prometheus(registry=..., router="
                    "'camera')"
                )
            self._members.add(member)

    def _open(self) -> list[Prometheus]:
        return [one for one in self._members if not one.closed]

    def describe(self) -> Iterable[Metric]:
        """Nothing: which there are is known at a scrape."""
        return ()

    def collect(self) -> Iterator[Metric]:
        """The metrics."""
        page = Page()
        with self._lock:
            members = self._open()
        for member in sorted(members, key=lambda one: one.router):
            of_tally(page, member.read(), member.router)
            status = member.status()
            if status is not None:
                of_status(page, status, member.router)
        return iter(page)


class _Made:
    """A page that is there already, as a registry takes it."""

    def __init__(self, page: Page) -> None:
        self._page = page

    def describe(self) -> Iterable[Metric]:
        return ()

    def collect(self) -> Iterator[Metric]:
        return iter(self._page)


_collectors: WeakKeyDictionary[CollectorRegistry, _Collector] = WeakKeyDictionary()


def _collector(registry: CollectorRegistry) -> _Collector:
    made = _Collector()
    found = _collectors.setdefault(registry, made)
    if found is made:
        registry.register(found)
    return found
