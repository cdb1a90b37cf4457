"""Status: the state of a router now, as metrics and dashboards show it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from edgeroute.core.readings import Reading
from edgeroute.core.spending import Cost, Limits
from edgeroute.observe.stats import Stats


class Status(NamedTuple):
    """State of a router. It has no inputs, no answers and no secrets in it."""

    stats: Stats
    """As `Router.stats` returns them."""
    limits: Limits
    """The most that may be spent, each over its own window; inf: no limit."""
    spent: Cost
    """What is spent, over the same windows."""
    outbox: Mapping[str, int] | None = None
    """State of its requests -> how many of them are on disk; None: there is no outbox, or its file cannot be read."""
    reading: Reading | None = None
    """The last reading of the device's sensors; None: they are not read, or have not been."""
    reading_age_s: float = 0.0
    """Time since that reading, seconds; 0 without one."""
    rules: tuple[str, ...] = ()
    """The rules on the device's state that are in force."""
    closed: bool = False
