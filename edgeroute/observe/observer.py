"""Gathers the facts that planning uses: latencies, busy targets, spending, sensors. Off the path of most calls."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from time import monotonic
from typing import Any

from edgeroute.cloud.spending import SharedSpending
from edgeroute.core.facts import Facts
from edgeroute.core.policy import INF, Policy, Target
from edgeroute.observe.sensors import Reading, Sensors, read
from edgeroute.observe.stats import Counts
from edgeroute.types import Backend

READS_S = 10.0
"""So often, at most, the device's sensors are read."""
log = logging.getLogger("edgeroute")


class Observer:
    """Keeps the facts of one router.

    Args:
        counts: know latencies and deferrals.
        spending: knows what was spent.
        metered: whether bytes cost money now, or a function that tells.
        sensors: reads the device's; None: what Linux says.

    Attributes:
        facts: as they are known now; another object once they have changed.
        reads_at: the instant from which on the sensors are due; inf: they are not, or are being read.
    """

    def __init__(
        self, counts: Counts, spending: SharedSpending, metered: bool | Callable[[], bool], sensors: Sensors | None
    ) -> None:
        self._counts, self._spending, self.metered, self._sensors = counts, spending, metered, sensors or read
        self._reading, self._metered_failed = Reading(), False
        self.facts = Facts()
        self.reads_at = INF

    def observe(self, policy: Policy, targets: Sequence[Target], backends: Sequence[Backend]) -> bool:
        """Renews the facts, but for the sensors. -> whether they changed."""
        counts = self._counts
        busy = frozenset(b.name for b in backends if b.abandoned >= b.max_abandoned)
        edge_s = max((counts.quantile(t.name, 0.99) or 0.0 for t in targets if t.side == "edge"), default=0.0)
        facts = Facts(busy, edge_s, self.no_hedge(backends) if policy.hedge_after != INF else "")
        if isinstance(policy.hedge_after, str) or policy.order != "listed":
            facts = facts._replace(latencies=counts.latencies(), deferral_rate=counts.deferral_rate)
        if policy.saver is not None:
            facts = facts._replace(**self._reading._asdict())
        changed, self.facts = facts != self.facts, facts
        return changed

    def read(self) -> bool:
        """Reads the sensors. -> whether what they say changed."""
        self.reads_at = monotonic() + READS_S
        try:
            reading = Reading(*(None if value is None else float(value) for value in self._sensors()))
        except Exception:
            log.exception("the device's sensors could not be read; what they said before counts")
            return False
        changed, self._reading = reading != self._reading, reading
        if changed:
            self.facts = self.facts._replace(**reading._asdict())
        return changed

    def no_hedge(self, backends: Sequence[Backend]) -> str:
        """Why nothing is to be asked only to be quicker, or to compare; empty: it may."""
        if self._is_metered():
            return "the link is metered"
        if self._spending.scarce():
            return "half of what may be spent is spent"
        guards: list[Any] = [getattr(b, "guard", None) for b in backends]
        away = [guard.name for guard in guards if guard is not None and guard.state != "closed"]
        return f"{', '.join(away)} does not answer" if away else ""

    def _is_metered(self) -> bool:
        """Whether bytes cost money; so they do where the function that should tell raises."""
        if not callable(self.metered):
            return self.metered
        try:
            return bool(self.metered())
        except KeyboardInterrupt:
            raise
        except BaseException as e:
            if not self._metered_failed:
                self._metered_failed = True
                log.error("metered() failed, so the link counts as metered", exc_info=e)  # noqa: TRY400
            return True
