"""What is compared in audits: an edge's answer with the cloud's, and what that takes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from edgeroute.core.codes import Failure
from edgeroute.core.plan import Leg, Plan
from edgeroute.core.walk import Event, Outcome, Prediction
from edgeroute.record.sampling import Drawn
from edgeroute.record.shadow import UNHEARD, ShadowRun

if TYPE_CHECKING:
    from edgeroute.types import Spent

NEVER = frozenset({"consent", "redaction", "view"})
"""Why a cloud was not asked: it never will be for this input."""


class Audited(Protocol):
    """A finished request."""

    @property
    def id(self) -> str:
        """As in its answer."""

    @property
    def inputs(self) -> Any:
        """The caller's."""

    @property
    def plan(self) -> Plan:
        """The plan that it had."""

    @property
    def snapshot(self) -> Any:
        """The policy that it had, with its `backends` and `candidate`."""


class Asks(Protocol):
    """Calls the cloud, and runs models, for an audit."""

    def allowed(self) -> bool:
        """Whether a request may be drawn: a low-priority call may be made now, or none is needed."""

    def room(self, request: Audited, leg: int) -> bool:
        """Whether such a call may be made now, and that leg's endpoint has capacity for it."""

    def prepare(self, request: Audited, leg: int, edge: Prediction | None) -> Callable[[], Event]:
        """Binds the input as it is now, and the edge's answer to it; returns a function that calls the cloud and blocks."""

    def rehearse(self, request: Audited) -> Callable[[], list[ShadowRun]]:
        """Binds the input as it is now; returns a function that runs the plan's unheard edges, and the candidate, and blocks."""


class Bound(NamedTuple):
    """What comparisons are about."""

    backends: Any
    """The models and endpoints of the policy in force, as in each of its snapshots."""
    prints: Mapping[str, str]
    """Edge model name -> digest of its fingerprints."""
    others: Sequence[Any] = ()
    """The backends of arms beside it."""

    def of(self, backends: Any) -> bool:
        """Whether a request with these backends is one of them."""
        return backends is self.backends or any(backends is one for one in self.others)


class Comparison(NamedTuple):
    """An edge's answer that is to be compared with the cloud's."""

    leg: Leg
    prediction: Prediction | None
    """None: its run failed."""
    how: str
    """`shadow`: the edge's answer was accepted, or would be; `deferred`: it was not."""
    more: Mapping[str, Any] = {}
    """More for the line of the log, of a shadow run."""


class Pending(NamedTuple):
    """An audit of which something is still to be done."""

    request: Audited
    drawn: Drawn
    bound: Bound
    cloud: Prediction | None
    """The cloud's answer; None: it is to be asked for."""
    ask: Callable[[], Event] | None
    edges: Sequence[Comparison]
    """Those that wait for the cloud's answer."""
    rehearse: Callable[[], list[ShadowRun]] | None
    more: Mapping[str, Any]


NOTHING = Bound(None, {})
"""Of a router that is not made yet, or closed."""


def seen(outcome: Outcome, cloud: int, costs: Mapping[int, Spent]) -> dict[str, Any]:
    """What is recorded beside a shadow run: what the cloud's answer took and cost, if it is known of this request alone."""
    more: dict[str, Any] = {UNHEARD: True}
    if cloud in costs:
        started = {leg: at for kind, leg, at, _ in outcome.log if kind == "start"}
        ended = next((at for kind, leg, at, _ in outcome.log if kind == "accepted" and leg == cloud), None)
        if ended is not None:
            more["cloud_s"] = round(ended - started[cloud], 6)
        spent = costs[cloud]
        more |= {"usd": spent.usd, "bytes": spent.sent_bytes + spent.received_bytes}
    return more


def of_run(run: ShadowRun, more: Mapping[str, Any]) -> dict[str, Any]:
    """What is recorded of a shadow run beside its answer. `more`: as `seen` returns it."""
    failed = {"error": run.error} if run.error else {}
    return {**more, "edge_s": round(run.took_s, 6), **failed}


def failed(outcome: Outcome, cloud: int) -> bool:
    """Whether that leg was asked and failed. Not if there was no room for it, or no time, which an audit waits for."""
    for kind, leg, _, detail in outcome.log:
        if kind == "failed" and leg == cloud:
            failure = Failure.of(detail)
            return failure.code in NEVER or not (failure.held or failure.code == "timeout")
    return False
