"""Reads the device's sensors for a router; frees its edge models while a rule asks for that, and loads them again."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import cast

from edgeroute.core.policy import INF
from edgeroute.edge.backend import EdgeBackend
from edgeroute.failures import quietly
from edgeroute.observe.observer import Observer
from edgeroute.router.snapshot import Snapshot, cleared, made_of


class Sensing:
    """The sensors of one router.

    Args:
        observer: reads them, and steps the rules.
        snapshot: returns the policy in force.
        observe: updates the facts, and with them the plans.
        submit: runs a function in another thread, or returns False if it cannot.
    """

    def __init__(
        self,
        observer: Observer,
        snapshot: Callable[[], Snapshot],
        observe: Callable[[], None],
        submit: Callable[[Callable[[], None]], bool],
    ) -> None:
        self._observer, self._snapshot, self._observe, self._submit = observer, snapshot, observe, submit

    def read(self) -> None:
        """Reads the sensors. Once other rules are in force, plans are made anew, and models freed or loaded again."""
        self._observer.reads_at = INF
        try:
            if self._observer.read():
                cleared(self._snapshot())
            if self._observer.limited and self._observer.energy.extra_w is not None:
                self._observe()
            self._free_or_load(self._snapshot())
        finally:
            self._observer.due_again()

    def _free_or_load(self, snapshot: Snapshot) -> None:
        edges = [cast("EdgeBackend", b) for b in made_of(snapshot).values() if b.side == "edge"]
        rules = self._observer.facts.rules
        if any(rule.then == "unload" for rule in snapshot.policy.all_rules() if rule in rules):
            for backend in edges:
                quietly(backend.unload, "freeing an edge model")
        elif freed := [backend for backend in edges if backend.unloaded and not backend.loading]:
            for backend in freed:
                backend.loading = True
            self._observe()
            if not self._submit(partial(self._load, freed)):
                self._load(freed)

    def _load(self, freed: list[EdgeBackend]) -> None:
        """Loads models that were freed; meanwhile calls go to the next target."""
        for backend in freed:
            quietly(backend.load, "loading an edge model again")
        self._observe()
