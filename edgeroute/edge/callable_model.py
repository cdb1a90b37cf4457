"""Adapter that makes an edge model of a Python function: plain, `async def`, or a generator of pieces."""

from __future__ import annotations

import inspect
from collections.abc import AsyncGenerator, Callable, Generator, Iterable, Mapping, Sequence
from contextlib import aclosing
from typing import Any

from edgeroute.confidence.output_forms_labels_and_comparison import best_label, label_names
from edgeroute.confidence.output_reader import checked_kind, checked_rule
from edgeroute.confidence.scores import Score
from edgeroute.core.stream_walk import join_pieces, join_result, logprobs_of
from edgeroute.core.walk import Prediction
from edgeroute.edge.fitted_estimator_as_function import Estimator, as_estimator
from edgeroute.errors import PolicyError
from edgeroute.system.read_and_check_signatures import is_async, refuse_awaitable, runs_later
from edgeroute.types import Classifier, StopToken, TensorSpec


class CallableModel:
    """Edge model that calls `f(x)` for each input.

    The function returns `(value, confidence)`, `{"label": ..., "score": ...}`, a `Prediction`, or logits, an array [classes].
    A generator function yields its value in pieces and returns the confidence. A coroutine function, an asynchronous generator
    function, and an object whose `__call__` is one of them are awaited, by `AsyncRouter` alone.

    Args:
        function: must be thread-safe, unless `parallel` is 1: concurrent requests call it concurrently. Or a classifier with
            `predict_proba`, as of scikit-learn, or its method: the probabilities of its classes for one input are then read.
        name: in answers; None: the function's name.
        labels: class index -> value; None: the value is the index.
        kind: kind of its results, one of `edgeroute.confidence.KINDS`; None: recognised by its form.
        score: for this function, in place of the router's.
        check: check of its answers' structure (docs/llama.md#structure).
        none_found: rule where nothing is detected, see `edgeroute.confidence.detector_boxes`; None: "defer".
        version: text that you change whenever its answers change, for certificates and the cache on disk. None: the function's
            code and constants identify it; a function that uses an object, such as a model, cannot be identified by them.
        parallel: most calls at a time; None: any number.
        inputs: specifications of its inputs, with the batch axis, for `edgeroute serve`.
        outputs: specifications of its outputs, with the batch axis, for `edgeroute serve`.
        takes_edge: the function is `f(x, edge)`: behind `edgeroute serve` it gets the edge's answer to x, as a client with
            `send_edge` sends it, a mapping with `value` and `confidence`; None: there is none (docs/payloads.md).

    Raises:
        PolicyError: `takes_edge` with a function that is not a plain one, or an unknown kind or rule.
    """

    def __init__(
        self,
        function: Callable[[Any], Any] | Callable[[Any, Any], Any] | Classifier,
        *,
        name: str | None = None,
        labels: Iterable[Any] | None = None,
        kind: str | None = None,
        score: str | Score | None = None,
        check: Any = None,
        none_found: str | None = None,
        version: str | None = None,
        parallel: int | None = None,
        inputs: Sequence[TensorSpec] = (),
        outputs: Sequence[TensorSpec] = (),
        takes_edge: bool = False,
    ) -> None:
        self._given: Any = function
        estimator = as_estimator(function)
        call: Any = function if estimator is None else estimator
        self.run_escalated: Callable[[list[Any], Sequence[Any]], Any] | None = None
        if takes_edge:
            self.run_escalated = self._run_escalated
            if runs_later(call):
                raise PolicyError(f"takes_edge: make {getattr(call, '__name__', 'it')} a plain def that returns its answer")
        self.function: Callable[..., Any] = (lambda x: call(x, None)) if takes_edge else call
        self.name = name or str(getattr(call, "__name__", type(call).__name__))
        self.labels, self.kind = label_names(labels), checked_kind(kind)
        self.score, self.check, self.none_found = score, check, checked_rule(none_found or "defer")
        self.version, self.parallel, self.inputs, self.outputs = version, parallel, inputs, outputs
        self.grounds = "" if estimator is not None or inputs else "what it answers is known after its first call"
        self.settings: Mapping[str, Any] = {"function": self._given}
        self.stream: Callable[..., Generator[Any, None, Any] | AsyncGenerator[Any, None]] | None = None
        method = getattr(call, "__call__", None)  # noqa: B004 - an object's method may be a generator function
        self._yields_async = inspect.isasyncgenfunction(call) or inspect.isasyncgenfunction(method)
        if inspect.isgeneratorfunction(call) or inspect.isgeneratorfunction(method) or self._yields_async:
            self.stream = lambda x, cancel: call(x)  # noqa: ARG005 - it cannot be stopped
        if is_async(call):
            self.run = self._run_async  # type: ignore[method-assign]
            self.run_one = None  # type: ignore[method-assign, assignment]
            if self._yields_async:
                self.stream = self._stream_async

    def run(self, inputs: list[Any], cancel: StopToken | None = None) -> Any:  # noqa: ARG002 - cannot be stopped
        """Call the function once per input; return a list of its results. A stop request is ignored."""
        if isinstance(self.function, Estimator):
            return self.function.many(inputs)
        return [self._result(self.function(x)) for x in inputs]

    def run_one(self, x: Any, cancel: StopToken | None = None) -> Any:  # noqa: ARG002 - cannot be stopped
        """Call the function for one input; return a list of its result, in the form of `_result`. A stop request is ignored."""
        result = self.function(x)
        return [result if type(result) is tuple else self._result(result)]

    def _run_escalated(self, inputs: list[Any], edges: Sequence[Mapping[str, Any] | None]) -> Any:
        """Call the function once per input, with the edge's answer to each; return a list of its results."""
        return [self._result(self._given(x, edge)) for x, edge in zip(inputs, edges, strict=True)]

    def _result(self, result: Any) -> Any:
        """Return a result of the function as `(value, confidence)` or array; the pieces of a generator are joined.

        `{"label": ..., "score": ...}`, or the best of a list of these, becomes (label, score). A coroutine is closed before the
        error.

        Raises:
            PolicyError: the function returned a coroutine, another awaitable, or an asynchronous generator.
        """
        kind = type(result)
        if kind is tuple:
            return result
        if kind is Prediction:
            return result if isinstance(self.function, Estimator) else result[:2]
        if kind is dict or kind is list:
            return best_label(result, several=self.kind == "multilabel")
        refuse_awaitable(result, self.name, PolicyError)
        return join_result(result)

    async def _run_async(self, inputs: list[Any], cancel: StopToken | None = None) -> list[Any]:  # noqa: ARG002 - its task is
        """Await the function once per input, one after the other; return a list of its results.

        An asynchronous generator's pieces are joined. A `Prediction` becomes `(value, confidence)`.
        """
        if self._yields_async:
            return [await gather(self._stream_async(x)) for x in inputs]
        return [self._result(await self.function(x)) for x in inputs]

    async def _stream_async(self, x: Any, cancel: StopToken | None = None) -> AsyncGenerator[Any, None]:  # noqa: ARG002
        """Yield the function's pieces for one input. Closed early, it closes the function's generator."""
        async with aclosing(self.function(x)) as pieces:
            async for piece in pieces:
                yield piece


async def gather(stream: AsyncGenerator[Any, None], show: Callable[[Any], object] | None = None) -> tuple[Any, Any]:
    """Await all pieces of an asynchronous generator, close it in any case, and return (joined pieces, confidence).

    A `Prediction` among the pieces stands for both; without one, the confidence is the pieces' log-probabilities.

    Args:
        stream: the generator.
        show: called with each piece as it comes; None: nobody waits for them.
    """
    pieces: list[Any] = []
    value = confidence = None
    try:
        async for piece in stream:
            if type(piece) is Prediction:
                value, confidence = piece.value, piece.confidence
                continue
            pieces.append(piece)
            if show is not None:
                show(piece)
    finally:
        await stream.aclose()
    if value is None:
        return join_pieces(pieces), logprobs_of(pieces) if confidence is None else confidence
    return value, confidence
