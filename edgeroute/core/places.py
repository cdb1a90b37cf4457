"""Places of targets in the order of trying: where a target goes that is not in memory, or that earlier runs keep busy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from edgeroute.core.facts import Facts
from edgeroute.core.policy import INF, Target
from edgeroute.core.rules import Rule


class Place(NamedTuple):
    """One target in the order of trying."""

    target: int
    """Position in the list of targets."""
    late: bool = False
    """An edge that is not in memory, behind every cloud, and not at the first sign of trouble: that would load it."""
    spare: bool = False
    """An edge that earlier runs keep busy: better than no answer."""
    wakes: bool = False
    """The late one that is loaded while a cloud may still answer, as no other edge would."""


class Places(NamedTuple):
    """All of them, in order, and why that."""

    order: tuple[Place, ...]
    skipped: tuple[str, ...]
    """Clouds that are not asked since earlier runs of theirs go on, with no other cloud in their place."""
    steps: tuple[str, ...]


def placed(order: Sequence[int], targets: Sequence[Target], facts: Facts, unload: Rule | None) -> Places:
    """Moves what is not in memory behind everything else, and leaves out what is busy; busy edges come last of all.

    Args:
        order: positions of the targets, in the order of the mode.
        targets: all of them.
        facts: with those that are busy, and those that are being loaded.
        unload: the rule by which the edges are freed; None: there is none.
    """
    late = _late(order, targets, facts, unload)
    if late and not any(targets[i].side == "cloud" for i in order):
        steps = [f"{why}, and asked all the same, as there is no cloud to ask" for why in late.values()]
        late = {}
    else:
        steps = [f"{why}, so it is asked last" for why in late.values()]
    order = [*(i for i in order if i not in late), *late]
    edges = [i for i in order if targets[i].side == "edge"]
    wakes = next(iter(late), None) if all(i in late for i in edges) else None
    free = [i for i in order if targets[i].name not in facts.busy] or [*order]
    skipped: tuple[str, ...] = ()
    if len(free) < len(order):
        steps += [f"skip {targets[i].name}: an earlier run has not stopped yet" for i in order if i not in free]
        if not any(targets[i].side == "cloud" for i in free):
            skipped = tuple(targets[i].name for i in order if targets[i].side == "cloud")
    spare = [i for i in edges if i not in free]
    return Places(
        tuple(Place(i, i in late, i in spare and i not in late, i == wakes) for i in [*free, *spare]), skipped, tuple(steps)
    )


def _late(order: Sequence[int], targets: Sequence[Target], facts: Facts, unload: Rule | None) -> dict[int, str]:
    """The edges that are not in memory -> why; of some use once every cloud has failed."""
    edges = [i for i in order if targets[i].side == "edge"]
    if unload is not None:
        return {i: f"{unload}: {targets[i].name} is unloaded" for i in edges}
    return {i: f"{targets[i].name} is being loaded" for i in edges if targets[i].name in facts.loading}


def start_by_s(place: Place, *, standby: bool, hedge_s: float, reserve_s: float, deadline_s: float) -> float:
    """Latest start of an edge that waits behind clouds, seconds; inf: only once they have ended.

    A standby is left its time before the deadline, and starts at once while that is unknown. One that is not in memory is left
    half of the deadline, or its time if that is more.

    Args:
        place: of the edge.
        standby: whether it is the first standby of its plan.
        hedge_s: delay of hedges.
        reserve_s: its time to leave before a deadline; inf: unknown.
        deadline_s: of the call.
    """
    if place.late:
        known_s = reserve_s if reserve_s < INF else 0.0
        return max(0.0, deadline_s - max(deadline_s / 2, known_s)) if place.wakes and deadline_s < INF else INF
    return min(INF if deadline_s == INF else max(0.0, deadline_s - reserve_s), hedge_s) if standby else INF
