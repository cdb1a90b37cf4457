"""What the runs of a program tell each other: latencies, what was spent, what endpoints said of themselves."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from pathlib import Path
from time import monotonic

from edgeroute import clock
from edgeroute.core.latency import Latency
from edgeroute.guard import Purse
from edgeroute.runners import CloudRunner
from edgeroute.state import Kept
from edgeroute.stats import Counts

EVERY_S = 1.0
"""What a later run should know is noted no more often than this."""
SPENT_S = 25 * 3600.0
"""An hour more than the longest window."""


class Memory:
    """A router's, in a file.

    Args:
        path: of the file.
        counts: knows the latencies.
        purse: knows what was spent.
    """

    def __init__(self, path: Path, counts: Counts, purse: Purse) -> None:
        self.kept, self._counts, self._purse = Kept(path), counts, purse
        self._due = 0.0

    def recall(self, clouds: Iterable[CloudRunner]) -> None:
        """Takes up what earlier runs knew."""
        now, kept = clock.now(), self.kept
        kept.forget("spending:", SPENT_S)
        for name, dumped in (kept.get("latency") or {}).items():
            with contextlib.suppress(ValueError, KeyError, TypeError):
                self._counts.remember(name, Latency.load(dumped))
        for dumped in kept.others("spending:", ""):
            with contextlib.suppress(ValueError):
                self._purse.spending.load(dumped, now)
        for runner in clouds:
            endpoint = getattr(runner, "endpoint", None)
            known = kept.get(f"endpoint:{runner.where}")
            if known is not None and endpoint is not None and hasattr(endpoint, "recall"):
                with contextlib.suppress(ValueError, KeyError, TypeError):
                    endpoint.recall(known)

    def note(self, router: str, clouds: Iterable[CloudRunner]) -> None:
        """Notes what a later run should know, if that was not done just now. A thread writes it, soon."""
        if monotonic() >= self._due:
            self._due = monotonic() + EVERY_S
            self._note(router, clouds)

    def spent(self, router: str) -> None:
        """Notes what that router, which has a name of its own in each process, has spent."""
        self.kept.put(f"spending:{router}", self._purse.dump())

    def _note(self, router: str, clouds: Iterable[CloudRunner]) -> None:
        self.kept.put("latency", {name: latency.dump() for name, latency in self._counts.latencies().items()})
        self.spent(router)
        for runner in clouds:
            known = getattr(getattr(runner, "endpoint", None), "known", None)
            if known is not None:
                self.kept.put(f"endpoint:{runner.where}", known)

    def close(self, router: str, clouds: Iterable[CloudRunner]) -> None:
        """Notes it all, and waits until it is written."""
        self._note(router, clouds)
        self.kept.close()
