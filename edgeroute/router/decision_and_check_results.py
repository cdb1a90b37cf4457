"""Results of `decide`, the route that an input would take, and of `check`, the status of all targets (decide_and_check.py)."""

from __future__ import annotations

from typing import NamedTuple

from edgeroute.core.plan import Plan
from edgeroute.system.late_imports_and_plugins import import_tool


class Decision(NamedTuple):
    """Result of `decide`: the route that an input would take. No input was sent.

    Attributes:
        plan: targets that may be called, in order, with the permit of each cloud.
        steps: lines: the plan, then the edge's result for this input.
        sends_to: where this input would be sent, in order of trying; empty: it would stay on the device.
    """

    plan: Plan
    steps: tuple[str, ...]
    sends_to: tuple[str, ...]

    def __str__(self) -> str:
        return "\n".join(self.steps)

    def __repr__(self) -> str:
        return f"<Decision: {'; '.join(self.steps)}>"

    def _repr_html_(self) -> str:
        """Return the page for a notebook."""
        return import_tool("measure.report.report_pages_and_results").decision_page(self)  # type: ignore[no-any-return]


class Check(NamedTuple):
    """Result of `check`.

    Attributes:
        ok: True if each target that was tried is ready, and no setting was found that can never work.
        lines: lines: what works, what may leave and where to, and what is missing. Those that begin with `!` are why it is not
            ok.
    """

    ok: bool
    lines: tuple[str, ...]

    def __str__(self) -> str:
        return "\n".join(self.lines)

    def __repr__(self) -> str:
        return f"<Check, {'' if self.ok else 'not '}ready: {'; '.join(self.lines)}>"

    def _repr_html_(self) -> str:
        """Return the page for a notebook."""
        return import_tool("measure.report.report_pages_and_results").check_page(self)  # type: ignore[no-any-return]
