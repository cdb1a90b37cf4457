"""Gathers the facts for planning: latencies, busy targets, spending, sensors. Runs off the path of most calls."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Sequence
from time import monotonic
from typing import Any

from edgeroute.cloud.spending import SharedSpending
from edgeroute.core.facts import Facts
from edgeroute.core.policy import INF, Policy, Target
from edgeroute.core.readings import Reading
from edgeroute.observe.sensors import Sensors, period_s, read
from edgeroute.observe.stats import Counts
from edgeroute.system import LINUX, contained
from edgeroute.types import Backend

OWN = "give the router `sensors=`, a function that returns a Reading"
READS_S = 10.0
"""Time between two readings of the device's sensors, seconds, where they say no other."""
log = logging.getLogger("edgeroute")


class Observer:
    """Holds the current facts of one router.

    Args:
        counts: has latencies and deferral rates.
        spending: has the amounts spent.
        metered: whether the link is metered (bytes cost money), or a function that returns it.
        sensors: reads the device's sensors; None: the standard Linux ones.

    Attributes:
        facts: the current ones; replaced by a new object when they change.
        reads_at: instant from which the sensors are due; inf: they are not used, or are being read.
    """

    def __init__(
        self, counts: Counts, spending: SharedSpending, metered: bool | Callable[[], bool], sensors: Sensors | None
    ) -> None:
        self._counts, self._spending, self.metered, self._sensors = counts, spending, metered, sensors or read
        self._reading, self._metered_failed = Reading(), False
        self.facts = Facts()
        self.reads_at = INF

    def observe(self, policy: Policy, targets: Sequence[Target], backends: Sequence[Backend]) -> bool:
        """Updates the facts, except the sensors. Returns whether they changed."""
        counts = self._counts
        busy = frozenset(b.name for b in backends if b.abandoned >= b.max_abandoned)
        edge_s = max((counts.quantile(t.name, 0.99) or 0.0 for t in targets if t.side == "edge"), default=0.0)
        reserves = counts.reserves(t.name for t in targets if t.side == "edge")
        facts = Facts(busy, edge_s, reserves, self.no_hedge(backends) if policy.hedge_after != INF else "")
        if isinstance(policy.hedge_after, str) or policy.order != "listed":
            facts = facts._replace(latencies=counts.latencies(), deferral_rate=counts.deferral_rate)
        if policy.saver is not None:
            facts = _with(facts, self._reading)
        changed, self.facts = facts != self.facts, facts
        return changed

    def read(self) -> bool:
        """Reads the sensors. Returns whether the facts changed."""
        self.reads_at = INF  # until they have been read, however long that takes
        try:
            values: list[Any] = [None if value is None else float(value) for value in contained(self._sensors)]
            reading = Reading(*values)
            changed, self._reading = reading != self._reading, reading
            if changed:
                self.facts = _with(self.facts, reading)
        except Exception:
            log.exception("the device's sensors could not be read; what they said before counts")
            return False
        else:
            return changed
        finally:
            self.reads_at = monotonic() + period_s(self._sensors, READS_S)

    def lacking(self, policy: Policy, backends: Sequence[Backend]) -> list[str]:
        """What this policy uses and this system does not have, one line each."""
        lines = []
        if policy.saver is not None and self._sensors is read and self._reading[:3] == (None, None, None):
            lines.append(f"saver: neither battery nor temperature can be read on {sys.platform}, so it never applies: {OWN}")
        if any(backend.side == "cloud" for backend in backends) and not LINUX:
            lines.append(
                f"{sys.platform} does not tell when the network is back: an endpoint that was away is probed by time alone"
            )
        return lines

    def no_hedge(self, backends: Sequence[Backend]) -> str:
        """Why hedges and audits are forbidden now; empty: they are allowed."""
        if self._is_metered():
            return "the link is metered"
        if self._spending.scarce():
            return "half of what may be spent is spent"
        guards: list[Any] = [getattr(b, "guard", None) for b in backends]
        away = [guard.name for guard in guards if guard is not None and guard.state != "closed"]
        return f"{', '.join(away)} does not answer" if away else ""

    def _is_metered(self) -> bool:
        """Whether the link is metered; it counts as metered if the function raises."""
        if not callable(self.metered):
            return self.metered
        try:
            return bool(contained(self.metered))
        except Exception:
            if not self._metered_failed:
                self._metered_failed = True
                log.exception("metered() failed, so the link counts as metered")
            return True


def _with(facts: Facts, reading: Reading) -> Facts:
    """The facts with what a saver goes by: a battery that is being charged need not be spared."""
    return facts._replace(battery=None if reading.mains else reading.battery, temperature_c=reading.temperature_c)
