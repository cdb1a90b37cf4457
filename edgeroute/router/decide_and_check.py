"""Results of `decide`, the route that an input would take, and of `check`, the status of all targets (edgeroute/tools/inspect/)."""

from __future__ import annotations

from collections.abc import Generator
from time import monotonic
from typing import Any, NamedTuple

from edgeroute.core import answer_reasons as explain
from edgeroute.core.error_codes import error_text, failure_text
from edgeroute.core.plan import Plan
from edgeroute.core.routing_policy import Rules
from edgeroute.core.walk import Event, Failed, Prediction, Start, acceptable, judged, own_threshold
from edgeroute.router.leg_execution import PASSING, LegExecutor
from edgeroute.router.policy_snapshot import Snapshot
from edgeroute.system.late_imports import import_tool
from edgeroute.system.process import now
from edgeroute.types import Backend


class Decision(NamedTuple):
    """Result of `decide`: the route that an input would take. No input was sent."""

    plan: Plan
    """Targets that may be called, in order, with the permit of each cloud."""
    steps: tuple[str, ...]
    """Lines: the plan, then the edge's result for this input."""
    sends_to: tuple[str, ...]
    """Where this input would be sent, in order of trying; empty: it would stay on the device."""

    def __str__(self) -> str:
        return "\n".join(self.steps)

    def __repr__(self) -> str:
        return f"<Decision: {'; '.join(self.steps)}>"

    def _repr_html_(self) -> str:
        """Return the page for a notebook."""
        return import_tool("measure.report.report_page").decision_page(self)  # type: ignore[no-any-return]


class Check(NamedTuple):
    """Result of `check`."""

    ok: bool
    """True if each target that was tried is ready, and no setting was found that can never work."""
    lines: tuple[str, ...]
    """Lines: what works, what may leave and where to, and what is missing; a problem begins with `!`."""

    def __str__(self) -> str:
        return "\n".join(self.lines)

    def __repr__(self) -> str:
        return f"<Check, {'' if self.ok else 'not '}ready: {'; '.join(self.lines)}>"

    def _repr_html_(self) -> str:
        """Return the page for a notebook."""
        return import_tool("measure.report.report_page").check_page(self)  # type: ignore[no-any-return]
