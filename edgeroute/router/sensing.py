"""Reads the device's sensors for a router; frees its edge models while a rule asks for that, and loads them again."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from edgeroute.edge.backend import EdgeBackend
from edgeroute.failures import quietly
from edgeroute.router.snapshot import made_of

if TYPE_CHECKING:
    from edgeroute.router.engine import Engine


def sense(engine: Engine) -> None:
    """Reads the sensors and steps the rules; plans are made anew once others are in force."""
    if engine.observer.read():
        engine.snapshot.plans.clear()
    edges = [cast("EdgeBackend", b) for b in made_of(engine.snapshot).values() if b.side == "edge"]
    rules = engine.observer.facts.rules
    if any(rule.then == "unload" for rule in engine.snapshot.policy.all_rules() if rule in rules):
        for backend in edges:
            quietly(backend.unload, "freeing an edge model")
    elif freed := [backend for backend in edges if backend.unloaded]:
        _load(engine, freed)


def _load(engine: Engine, freed: list[EdgeBackend]) -> None:
    """Loads models that were freed; meanwhile calls go to the next target."""
    for backend in freed:
        backend.loading = True
    engine.observe()
    for backend in freed:
        quietly(backend.load, "loading an edge model again")
    engine.observe()
