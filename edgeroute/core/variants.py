"""Picks one member of each group of variants: edge models for the same task, of which one runs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from edgeroute.core.facts import Facts
from edgeroute.core.policy import INF, Target
from edgeroute.core.rules import Rule

MOST: Final = 0.9
"""A variant meets a deadline in which this share of its runs has ended."""


def picked(
    edges: Sequence[int], targets: Sequence[Target], facts: Facts, small: Rule | None, deadline_s: float
) -> tuple[list[int], list[str]]:
    """The edges with one member of each group, and why that, one line each.

    The first member that meets the deadline; the last, the smallest, while a rule asks for that. One that earlier runs keep busy,
    or that is being loaded, is passed over where there is another.

    Args:
        edges: positions among the targets; a group's members are next to each other, the smallest last.
        targets: all of them.
        facts: with the times that the members take, `took_s`.
        small: the rule that asks for the smallest; None: there is none.
        deadline_s: seconds for the call.
    """
    found, steps = list[int](), list[str]()
    groups: dict[str, list[int]] = {}
    for i in edges:
        group = targets[i].group
        if not group:
            found.append(i)
        elif group in groups:
            groups[group].append(i)
        else:
            groups[group] = [i]
            found.append(i)
    for group, members in groups.items():
        one, why = _pick(members, targets, facts, small, deadline_s)
        found[found.index(members[0])] = one
        steps.append(f"of the variants of {group}: {targets[one].name}, {why}")
    return found, steps


def _pick(members: list[int], targets: Sequence[Target], facts: Facts, small: Rule | None, deadline_s: float) -> tuple[int, str]:
    def name(i: int) -> str:
        return targets[i].name

    free = [i for i in members if name(i) not in facts.busy and name(i) not in facts.loading] or members
    if small is not None:
        return free[-1], f"the smallest ({small})"
    if deadline_s < INF:
        in_time = [i for i in free if facts.took_s.get(name(i), 0.0) <= deadline_s]
        if not in_time:
            return min(free, key=lambda i: facts.took_s[name(i)]), "the fastest: none meets the deadline"
        if in_time[0] != free[0]:
            took_ms = facts.took_s[name(free[0])] * 1000
            return in_time[0], f"as one in ten runs of {name(free[0])} takes {took_ms:.3g} ms or more, longer than the deadline"
        free = in_time
    return free[0], "the first" if free[0] == members[0] else f"as {name(members[0])} is not free"
