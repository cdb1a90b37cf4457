"""`calibrate` and `evaluate` of both routers. What they need is imported with the first call."""

from __future__ import annotations

from collections.abc import Coroutine
from typing import TYPE_CHECKING, Any, TypeVar

from edgeroute.confidence.scores import Score
from edgeroute.router.calls import Steps
from edgeroute.router.warming import AsyncWarming, Warming

if TYPE_CHECKING:
    from edgeroute.report.progress import Progress
    from edgeroute.report.results import CalibrationResult, EvaluationResult

T = TypeVar("T")


class Measuring(Warming):
    """The methods of `Router`."""

    def calibrate(
        self,
        X: Any,  # noqa: N803 - as in scikit-learn
        y: Any = None,
        *,
        max_loss: float | None = None,
        max_error: float | None = None,
        max_defer: float | None = None,
        sure: float | None = 0.95,
        per_class: bool = False,
        groups: Any = None,
        score: str | Score | None = None,
        ood: bool = False,
        edge: int = 0,
        data_class: str | None = None,
        batch: int = 32,
        every: int = 1,
        progress: Progress = None,
    ) -> CalibrationResult:
        """Finds the lowest threshold with a guarantee, on examples that are drawn like future inputs and independent.

        Exactly one of `max_loss`, `max_error` and `max_defer` says what is guaranteed. Nothing of the router changes: the result
        has the certificate, and the score that it is for. The edge runs every example, and for `max_loss` the cloud is asked
        about each, whatever threshold and mode. Egress rules, consent, limits and ledger hold; half of an endpoint's rate is left
        to other calls. Cache, outbox, audits, deadline and hedges take no part. In `stats()` examples count as bytes and cost.

        Args:
            X: the inputs: an array [n, ...], a sequence of them, or a mapping from name to the rows of one of several inputs.
            y: what is right for each, as the edge answers, or as class indices. Without it `max_loss` guarantees agreement with
                the cloud, and `max_defer` needs it only to fit a score.
            max_loss: accuracy of edge and cloud together below that of the cloud alone, at most; 0..1.
            max_error: share of wrong answers among those that the edge gives alone, at most.
            max_defer: share of inputs that are deferred, at most.
            sure: probability that the guarantee holds, over draws of examples; None, for `max_defer`: it holds on average.
            per_class: a threshold for each class that the edge predicts, each with the guarantee, all at once.
            groups: the scene, user or session of each example, [n], where those of one are not independent. Groups are then what
                is drawn, and each counts the same.
            score: another than the one in use: a name or a function; "learned" fits one to the examples, "auto" averages
                its ranks and those of msp, by how much there was to learn from. None: the one in use.
            ood: a fitted score also looks at how foreign an input is.
            edge: index of the edge model, from 0.
            data_class: of the inputs.
            batch: inputs in one request to the cloud.
            every: take each N-th example alone: the frames of a film are too alike to count each.
            progress: a function of (done, total), which may raise to stop; True: a bar, or lines where there is no terminal;
                False: nothing; None: a bar in a terminal or a notebook.

        Raises:
            NotEnough: too few examples for the guarantee; it says how many are missing.
            BadInput: X or y is not what it should be, or an input does not fit the edge model.
            PolicyError: what is asked for contradicts itself or this router.
            MayNotLeave: the data class forbids asking the cloud.
            NoAnswer: the cloud did not answer more than one in a hundred.
            Closed: the router is closed.
        """
        from edgeroute.router.measure import calibration, wanted

        want = wanted(
            max_loss=max_loss, max_error=max_error, max_defer=max_defer, sure=sure, per_class=per_class, score=score, ood=ood
        )
        return self._executed(
            calibration(
                self.engine, X, y, want,
                edge=edge, data_class=data_class, batch=batch, every=every, progress=progress, policy=self._policy_name,
                groups=groups,
            )
        )  # fmt: skip

    def evaluate(
        self,
        X: Any,  # noqa: N803 - as in scikit-learn
        y: Any = None,
        *,
        ask_cloud: bool = True,
        edge: int = 0,
        data_class: str | None = None,
        batch: int = 1,
        every: int = 1,
        edge_usd: float | None = None,
        edge_joules: float | None = None,
        progress: Progress = None,
    ) -> EvaluationResult:
        """Evaluates the threshold in use on examples: accuracy, deferrals, latency, cost, and whether its guarantee held.

        Edge and cloud are called for every example, as by `calibrate`, whatever the threshold. Use other examples than for the
        calibration. Without labels, right means: as the cloud says.

        Args:
            X: as for `calibrate`.
            y: as for `calibrate`.
            ask_cloud: False: the edge runs alone, and nothing leaves the device.
            edge: index of the edge model, from 0.
            data_class: of the inputs.
            batch: inputs in one request to the cloud; with more than one its latency is not measured.
            every: take each N-th example alone.
            edge_usd: what a run of the edge costs, in dollars, for the break-even; None: not known.
            edge_joules: likewise, of energy.
            progress: as for `calibrate`.

        Raises:
            PolicyError: there is no threshold, or an argument is invalid.
            BadInput, MayNotLeave, NoAnswer, Closed: as by `calibrate`.
        """
        from edgeroute.router.measure import evaluation

        return self._executed(
            evaluation(
                self.engine, X, y,
                ask_cloud=ask_cloud, edge=edge, data_class=data_class, batch=batch, every=every, edge_usd=edge_usd,
                edge_joules=edge_joules, progress=progress, policy=self._policy_name,
            )
        )  # fmt: skip

    def _executed(self, steps: Steps[T]) -> T:
        """The result of these steps, executed in the caller's thread."""
        raise NotImplementedError


class AsyncMeasuring(AsyncWarming):
    """The methods of `AsyncRouter`."""

    async def calibrate(
        self,
        X: Any,  # noqa: N803 - as in scikit-learn
        y: Any = None,
        *,
        max_loss: float | None = None,
        max_error: float | None = None,
        max_defer: float | None = None,
        sure: float | None = 0.95,
        per_class: bool = False,
        groups: Any = None,
        score: str | Score | None = None,
        ood: bool = False,
        edge: int = 0,
        data_class: str | None = None,
        batch: int = 32,
        every: int = 1,
        progress: Progress = None,
    ) -> CalibrationResult:
        """As `Router.calibrate`, beside other tasks. Cancelling it ends it; `progress` is called on the event loop."""
        from edgeroute.router.measure import calibration, wanted

        want = wanted(
            max_loss=max_loss, max_error=max_error, max_defer=max_defer, sure=sure, per_class=per_class, score=score, ood=ood
        )
        return await self._pump(
            calibration(
                self.engine, X, y, want,
                edge=edge, data_class=data_class, batch=batch, every=every, progress=progress, policy=self._policy_name,
                groups=groups,
            )
        )  # fmt: skip

    async def evaluate(
        self,
        X: Any,  # noqa: N803 - as in scikit-learn
        y: Any = None,
        *,
        ask_cloud: bool = True,
        edge: int = 0,
        data_class: str | None = None,
        batch: int = 1,
        every: int = 1,
        edge_usd: float | None = None,
        edge_joules: float | None = None,
        progress: Progress = None,
    ) -> EvaluationResult:
        """As `Router.evaluate`, beside other tasks. Cancelling it ends it."""
        from edgeroute.router.measure import evaluation

        return await self._pump(
            evaluation(
                self.engine, X, y,
                ask_cloud=ask_cloud, edge=edge, data_class=data_class, batch=batch, every=every, edge_usd=edge_usd,
                edge_joules=edge_joules, progress=progress, policy=self._policy_name,
            )
        )  # fmt: skip

    def _pump(self, steps: Steps[T]) -> Coroutine[Any, Any, T]:
        """The result of these steps, executed on the event loop."""
        raise NotImplementedError
