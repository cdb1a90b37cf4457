"""Checkpoint of a router (`Checkpoint`): its state, kept in a file between runs.

That is the targets' latencies, the spending, the clouds' links and metadata, and the parts' states, but no counts of requests. It
is restored at the start, and queued for the file now and then. `close` writes the exact spending, and waits for the disk.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable
from time import monotonic
from typing import TYPE_CHECKING, Any

from edgeroute.cloud.shared_spending_and_record import SharedSpending
from edgeroute.core.performance_estimates_and_encoding_choice import Latency, Link
from edgeroute.observe.target_counts import Counts
from edgeroute.stores.sqlite_file_and_key_values import KeyValueStore
from edgeroute.system.json_codec_and_short_repr import to_json_types

if TYPE_CHECKING:
    from edgeroute.cloud.http_backend import CloudBackend

EVERY_S = 1.0  # minimum time between two checkpoints, seconds


class Checkpoint:
    """State of a router in its file: restored at the start, queued for a thread now and then, written whole at `close`.

    Args:
        store: the file, shared as `counts`.
        counts: the router's counts, of which the latencies alone are stored.
        spending: the amounts spent, recorded in the same file.
    """

    def __init__(self, store: KeyValueStore, counts: Counts, spending: SharedSpending) -> None:
        self.store, self._counts, self.spending = store, counts, spending
        # Name -> function that returns the state of a part; None: there is nothing to store.
        self.dumps: dict[str, Callable[[], Any]] = {}
        self._due = 0.0

    def recall(self, clouds: Iterable[CloudBackend]) -> None:
        """Restore the spending, the latencies by target, and the clouds' links and metadata of earlier runs.

        Nothing else is restored if the file cannot be read for the spending. Damaged metadata, and latencies that are no mapping,
        are deleted from the file; a damaged latency or link is skipped. Parts (`dumps`) restore their state themselves.
        """
        store = self.store
        if not self.spending.recall():
            return
        latencies = store.get("latency") or {}
        if not isinstance(latencies, dict):
            store.drop("latency", "it is no mapping")
            latencies = {}
        for name, dumped in latencies.items():
            with contextlib.suppress(ValueError, KeyError, TypeError):
                self._counts.restore_latency(name, Latency.load(dumped))
        links = store.get("link")
        for backend in clouds:
            with contextlib.suppress(ValueError, KeyError, TypeError):  # there is none yet, or another version's
                backend.guard.rules.link = Link.load(links[backend.name])  # type: ignore[index]
            endpoint = getattr(backend, "endpoint", None)
            known = store.get(f"endpoint:{backend.where}")
            if known is not None and endpoint is not None and hasattr(endpoint, "recall"):
                try:
                    endpoint.recall(known)
                except (ValueError, KeyError, TypeError, OverflowError) as e:
                    store.drop(f"endpoint:{backend.where}", e)

    def note(self, clouds: Iterable[CloudBackend]) -> None:
        """Queue the state for the file, unless that was done recently. A thread writes it within about a second."""
        if monotonic() >= self._due:
            self._due = monotonic() + EVERY_S
            self._note(clouds)

    def _note(self, clouds: Iterable[CloudBackend]) -> None:
        """Queue for the file the latencies by target, the spending, the states in `dumps`, and the clouds' links and metadata.

        Request counts are not among them. A part whose state is None, and a cloud whose metadata is, are left out: what the file
        has of them stays.
        """
        self.store.put("latency", {name: latency.dump() for name, latency in self._counts.latencies().items()})
        for name, dump in self.dumps.items():
            if (state := dump()) is not None:
                self.store.put(name, to_json_types(state))
        self.spending.keep()
        clouds = list(clouds)
        self.store.put("link", {backend.name: backend.guard.rules.link.dump() for backend in clouds})
        for backend in clouds:
            known = getattr(getattr(backend, "endpoint", None), "known", None)
            if known is not None:
                self.store.put(f"endpoint:{backend.where}", known)

    def close(self, clouds: Iterable[CloudBackend]) -> None:
        """Store the state with the exact spending, wait until it is written, and leave the store, which its last user closes."""
        self._note(clouds)
        self.spending.close()
        self.store.leave(self._counts)
