"""Checkpoint: stores latencies, spending and endpoints' metadata for the next run of a program."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from pathlib import Path
from time import monotonic

from edgeroute.cloud.backend import CloudBackend
from edgeroute.cloud.spending import SharedSpending
from edgeroute.core.latency import Latency
from edgeroute.observe.stats import Counts
from edgeroute.stores.keyvalue import KeyValueStore

EVERY_S = 1.0
"""Minimum time between two checkpoints, seconds."""
SPENT_S = 25 * 3600.0
"""The longest window plus an hour, seconds."""


class Checkpoint:
    """A router's state file: read at the start, written now and then.

    Args:
        path: of the file.
        counts: has the latencies.
        spending: has the amounts spent.
    """

    def __init__(self, path: Path, counts: Counts, spending: SharedSpending) -> None:
        self.store, self._counts, self._spending = KeyValueStore(path), counts, spending
        self._due = 0.0

    def recall(self, clouds: Iterable[CloudBackend]) -> None:
        """Restores the state of earlier runs."""
        store = self.store
        store.forget("spending:", SPENT_S)
        latencies = store.get("latency") or {}
        if not isinstance(latencies, dict):
            store.drop("latency", "it is no mapping")
            latencies = {}
        for name, dumped in latencies.items():
            with contextlib.suppress(ValueError, KeyError, TypeError):
                self._counts.remember(name, Latency.load(dumped))
        for dumped in store.others("spending:", ""):
            with contextlib.suppress(ValueError):
                self._spending.load(dumped)
        for backend in clouds:
            endpoint = getattr(backend, "endpoint", None)
            known = store.get(f"endpoint:{backend.where}")
            if known is not None and endpoint is not None and hasattr(endpoint, "recall"):
                try:
                    endpoint.recall(known)
                except (ValueError, KeyError, TypeError, OverflowError) as e:
                    store.drop(f"endpoint:{backend.where}", e)

    def note(self, router: str, clouds: Iterable[CloudBackend]) -> None:
        """Stores the state, unless that was done recently. A thread writes it, soon."""
        if monotonic() >= self._due:
            self._due = monotonic() + EVERY_S
            self._note(router, clouds)

    def spent(self, router: str) -> None:
        """Stores the spending of that router, whose name is unique to a process."""
        self.store.put(f"spending:{router}", self._spending.dump())

    def _note(self, router: str, clouds: Iterable[CloudBackend]) -> None:
        self.store.put("latency", {name: latency.dump() for name, latency in self._counts.latencies().items()})
        self.spent(router)
        for backend in clouds:
            known = getattr(getattr(backend, "endpoint", None), "known", None)
            if known is not None:
                self.store.put(f"endpoint:{backend.where}", known)

    def close(self, router: str, clouds: Iterable[CloudBackend]) -> None:
        """Stores everything, and waits until it is written."""
        self._note(router, clouds)
        self.store.close()
