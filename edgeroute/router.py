"""The router for threads."""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any

from edgeroute.core.batch import walk_many
from edgeroute.core.flow import walk
from edgeroute.core.policy import Mode
from edgeroute.drivers import blocking, inline
from edgeroute.routing import Check, Decision, Routing
from edgeroute.types import Answer

if TYPE_CHECKING:
    from typing_extensions import Self


class Router(Routing):
    """Runs a model on the edge, and asks the cloud where the edge is not sure enough.

    Thread-safe, and usable in a forked child. Close it, or use it in a `with`.

    Args:
        edge: a path (its suffix picks the runtime), an `EdgeModel`, or any callable `f(x) -> (value, confidence)` or
            logits; several as a list, the smallest first.
        cloud: the URL of a model (`.../v2/models/NAME`), an endpoint (`OpenInference`, `PlainJson`), any callable, a
            list of them in order of trying, or None: then nothing can leave.
        threshold: confidence from which an edge answer is accepted; one number, or one for each edge model.
        mode: prefer_edge, only_edge, prefer_cloud or only_cloud.
        deadline: seconds over all legs; at the deadline the best answer there is stands.
        hedge_after: ask the next target too once this many seconds have passed; 0 is a race. None: never.
        score: msp, margin, entropy, energy, quantile, or a function of one input's raw outputs.
        no_confidence: what an answer without a confidence, or with NaN, means: "defer" or "accept".
        on_exhausted: when no answer was accepted: "answer" with the best one, marked degraded, or "raise".
        trace: called with each answer's trace, a mapping ready for JSON.

    Raises:
        PolicyError: these do not go together.
        ModelMissing: there is no file at the edge's path.
    """

    def infer(self, x: Any, *, mode: Mode | None = None, deadline: float | None = None) -> Answer:
        """Answers one input: an array without batch axis, name -> array, or whatever the callables take.

        Raises:
            BadInput: the edge model cannot take it.
            NoAnswer: no leg answered, or none was accepted and the policy says raise.
        """
        plan, route, begun = self._begin(x, mode, deadline)
        steps = walk(plan, begun)
        return self._end(plan, inline.drive(steps, route.run) if plan.sequential else blocking.drive(steps, route.begin))

    def infer_many(self, batch: Sequence[Any], *, mode: Mode | None = None, deadline: float | None = None) -> list[Answer]:
        """Answers several inputs, in their order.

        The edge runs them as one batch, and those it is not sure of go to the cloud in one request.

        Raises:
            BadInput: the edge model cannot take one of them.
            NoAnswer: as `infer`, for the first input that has none.
        """
        if not len(batch):
            return []
        plan, route, begun = self._begin(batch, mode, deadline, True)
        steps = walk_many(plan, len(batch), begun)
        outcomes = inline.drive(steps, route.run) if plan.sequential else blocking.drive(steps, route.begin)
        return [self._end(plan, outcome, True) for outcome in outcomes]

    def decide(self, x: Any, *, mode: Mode | None = None, deadline: float | None = None) -> Decision:
        """Says which route this input would take, and why. Runs the edge; sends nothing."""
        return self._decide(x, mode, deadline)

    def check(self, *, timeout: float = 5.0) -> Check:
        """Loads the models, pings the endpoints, and says what may leave, where to, and what is missing.

        Args:
            timeout: seconds for each endpoint.
        """
        return self._check(timeout)

    def close(self) -> None:
        """Ends threads and connections."""
        self._shut()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()
