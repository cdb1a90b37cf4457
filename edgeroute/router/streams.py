"""Methods that both routers have: answers in pieces, and `calibrate` and `evaluate`."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Coroutine, Generator, Iterator
from contextlib import aclosing
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar

from edgeroute.confidence.scores import Score
from edgeroute.core.policy import Mode
from edgeroute.router.base import AsyncWarming, Warming
from edgeroute.router.request import Request, Shows
from edgeroute.router.stages import Result, Shown, Steps, answer_of
from edgeroute.system.imports import tool
from edgeroute.types import Answer

if TYPE_CHECKING:
    from typing_extensions import Self

    from edgeroute.tools.measure.report.progress import Progress
    from edgeroute.tools.measure.report.results import CalibrationResult, EvaluationResult


# `calibrate` and `evaluate` of both routers. What they need is imported with the first call.

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
        steps = tool("measure.steps")

        want = steps.wanted(
            max_loss=max_loss, max_error=max_error, max_defer=max_defer, sure=sure, per_class=per_class, score=score, ood=ood
        )
        return self._executed(  # type: ignore[no-any-return]
            steps.calibration(
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
        steps = tool("measure.steps")

        return self._executed(  # type: ignore[no-any-return]
            steps.evaluation(
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
        steps = tool("measure.steps")

        want = steps.wanted(
            max_loss=max_loss, max_error=max_error, max_defer=max_defer, sure=sure, per_class=per_class, score=score, ood=ood
        )
        return await self._pump(
            steps.calibration(
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
        steps = tool("measure.steps")

        return await self._pump(
            steps.evaluation(
                self.engine, X, y,
                ask_cloud=ask_cloud, edge=edge, data_class=data_class, batch=batch, every=every, edge_usd=edge_usd,
                edge_joules=edge_joules, progress=progress, policy=self._policy_name,
            )
        )  # fmt: skip

    def _pump(self, steps: Steps[T]) -> Coroutine[Any, Any, T]:
        """The result of these steps, executed on the event loop."""
        raise NotImplementedError


# Streams: answers in pieces, and the methods of both routers that give them.


class Stream:
    """Pieces of one answer, for a `with` and a `for`. Leaving the `with` early cancels what is in progress.

    Attributes:
        leg: the name of the target whose pieces are shown, or of the cache; None before the first piece.
        answer: the whole answer, once the last piece was yielded; None before.
    """

    def __init__(self, pieces: Generator[Any, None, Answer]) -> None:
        self.answer: Answer | None = None
        self.leg: str | None = None
        self._pieces = pieces

    def __iter__(self) -> Iterator[Any]:
        try:
            while True:
                try:
                    shown = next(self._pieces)
                except StopIteration as end:
                    self.answer = end.value
                    return
                self.leg = shown.source
                yield shown.piece
        finally:
            self._pieces.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._pieces.close()


class AsyncStream:
    """`Stream`, for an `async with` and an `async for`."""

    def __init__(self, pieces: AsyncGenerator[Any, None]) -> None:
        self.answer: Answer | None = None
        self.leg: str | None = None
        self._pieces = pieces

    async def __aiter__(self) -> AsyncIterator[Any]:
        async for shown in self._pieces:
            if isinstance(shown, _Last):
                self.answer = shown.answer
            else:
                self.leg = shown.source
                yield shown.piece

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        await self._pieces.aclose()


class _Last:
    """The last item of an asynchronous generator, which cannot return a value."""

    def __init__(self, answer: Answer) -> None:
        self.answer = answer


def last(answer: Answer) -> Any:
    """The end of an `AsyncStream`."""
    return _Last(answer)


class End(list[Result]):
    """The results of a finished call."""


class Streaming(Measuring):
    """`stream` of `Router`."""

    def stream(
        self,
        x: Any,
        *,
        mode: Mode | None = None,
        deadline: float | None = None,
        first_token: float | None = None,
        restart: bool = False,
        data_class: str | None = None,
    ) -> Stream:
        """The answer in pieces: `with router.stream(x) as stream: for piece in stream: ...`; then `stream.answer` is the whole.

        A callable that is a generator function yields pieces, and returns its confidence, if it has one, or yields `Piece`s with
        the log-probabilities of their tokens; language models do so. Any other target gives one piece. A target with a threshold
        is judged once: by the first tokens, if its score is a `Prefix` (`decide_after`), or by its whole answer. It is shown from
        then on; any other is shown as it comes. By `hedge_after` the next target begins meanwhile, and is held back until then.

        Once a piece was shown, no other target continues, and the others are cancelled: if the current one fails, the answer is
        degraded. With `restart` an edge is shown at once, and a target may follow that begins anew: then the stream yields a
        `Restart`, and what was shown before is void.

        Args:
            x: the input.
            mode: overrides the policy's.
            deadline: seconds from now; overrides the policy's.
            first_token: seconds within which a target has to begin, or the next is called; overrides the policy's.
            restart: the answer may begin anew.
            data_class: the kind of data.

        Raises:
            PolicyError: as `infer`; of what is wrong with a value, in the `for`.
        """
        return Stream(self._pieces(x, mode, deadline, first_token, restart, data_class))

    def _pieces(
        self, x: Any, mode: Mode | None, deadline: float | None, first_token: float | None, restart: bool, data_class: str | None
    ) -> Generator[Any, None, Answer]:
        shows: Shows = "restarts" if restart else "pieces"
        request = self.engine.request(x, mode, deadline, data_class, shows=shows, first_token=first_token)
        spoken, pieces = False, self._shown(request)
        try:
            while True:
                piece = next(pieces)
                spoken = True
                yield piece
        except StopIteration as end:
            answer = answer_of(end.value[0])
        finally:
            pieces.close()
        if not spoken:  # from the cache, or in place of the cloud's
            yield _whole(answer)
        return answer

    def _shown(self, request: Request) -> Generator[Any, None, list[Result]]:
        """Yields what the caller is shown, and returns the results."""
        raise NotImplementedError


class AsyncStreaming(AsyncMeasuring):
    """`stream` of `AsyncRouter`."""

    def stream(
        self,
        x: Any,
        *,
        mode: Mode | None = None,
        deadline: float | None = None,
        first_token: float | None = None,
        restart: bool = False,
        data_class: str | None = None,
    ) -> AsyncStream:
        """As `Router.stream`, for `async with` and `async for`; clouds may be asynchronous generator functions."""
        return AsyncStream(self._pieces(x, mode, deadline, first_token, restart, data_class))

    async def _pieces(
        self, x: Any, mode: Mode | None, deadline: float | None, first_token: float | None, restart: bool, data_class: str | None
    ) -> AsyncGenerator[Any, None]:
        shows: Shows = "restarts" if restart else "pieces"
        request = self.engine.request(x, mode, deadline, data_class, shows=shows, first_token=first_token)
        spoken = False
        async with aclosing(self._shown(request)) as pieces:
            async for shown in pieces:
                if not isinstance(shown, End):
                    spoken = True
                    yield shown
                    continue
                answer = answer_of(shown[0])
                if not spoken:  # from the cache, or in place of the cloud's
                    yield _whole(answer)
                yield last(answer)

    def _shown(self, request: Request) -> AsyncGenerator[Any, None]:
        """Yields what the caller is shown, and finally an `End` with the results."""
        raise NotImplementedError


def _whole(answer: Answer) -> Shown:
    """An answer of which no piece was shown, in one."""
    return Shown(answer.source if answer.source in {"cache", "stale"} else answer.leg, answer.value)
