"""Adapter: a Python function as an edge model."""

from __future__ import annotations

import inspect
from collections.abc import AsyncGenerator, Callable, Generator, Iterable, Mapping, Sequence
from contextlib import aclosing
from functools import partial
from types import AsyncGeneratorType, CoroutineType
from typing import Any

from edgeroute.confidence.boxes import checked_rule
from edgeroute.confidence.labels import label_names
from edgeroute.confidence.reader import checked_kind
from edgeroute.confidence.scores import Score
from edgeroute.core.stream import joined, logprobs_of, whole
from edgeroute.core.walk import Prediction
from edgeroute.edge.members import awaited
from edgeroute.errors import PolicyError
from edgeroute.types import StopToken, TensorSpec


class CallableModel:
    """`f(x)` for one input, returning `(value, confidence)`, a `Prediction`, or logits, an array [classes].

    A generator function yields its value in pieces and returns the confidence. A coroutine function, an asynchronous generator
    function, and an object whose `__call__` is one of them are awaited, by `AsyncRouter` alone.

    Args:
        function: must be thread-safe, unless `parallel` is 1: concurrent requests call it concurrently.
        name: in answers; None: the function's own.
        labels: class index -> value; None: the value is the index.
        kind: of what it returns, one of `edgeroute.confidence.KINDS`; None: by its form.
        score: for this function, in place of the router's.
        none_found: of a detector, see `edgeroute.confidence.boxes`; None: "defer".
        version: changed by you whenever its answers change, for certificates and the cache on disk. None: the function's code and
            constants tell; a function that uses an object, as a model, cannot be identified by them.
        parallel: how many calls may go at a time; None: any number.
        inputs: what it takes, with the batch axis, for `edgeroute serve`.
        outputs: what it gives, likewise.
        takes_edge: it is `f(x, edge)`: behind `edgeroute serve` it is given the edge's answer to x, as a client with `send_edge`
            sends it, a mapping with `value` and `confidence`; None: there is none (docs/payloads.md).
    """

    def __init__(
        self,
        function: Callable[..., Any],
        *,
        name: str | None = None,
        labels: Iterable[Any] | None = None,
        kind: str | None = None,
        score: str | Score | None = None,
        none_found: str | None = None,
        version: str | None = None,
        parallel: int | None = None,
        inputs: Sequence[TensorSpec] = (),
        outputs: Sequence[TensorSpec] = (),
        takes_edge: bool = False,
    ) -> None:
        self._given = function
        self.run_escalated: Callable[[list[Any], Sequence[Any]], Any] | None = None
        if takes_edge:
            self.run_escalated = self._run_escalated
            if awaited(function) or inspect.isgeneratorfunction(function):
                raise PolicyError(
                    f"takes_edge is for a plain function: make {getattr(function, '__name__', 'it')} a def that returns"
                )
            function = partial(_alone, function)
        self.function = function
        self.name = name or str(getattr(self._given, "__name__", type(self._given).__name__))
        self.labels, self.kind = label_names(labels), checked_kind(kind)
        self.score, self.none_found = score, checked_rule(none_found or "defer")
        self.version, self.parallel, self.inputs, self.outputs = version, parallel, inputs, outputs
        self.settings: Mapping[str, Any] = {"function": self._given}
        self.stream: Callable[..., Generator[Any, None, Any] | AsyncGenerator[Any, None]] | None = None
        call = getattr(function, "__call__", None)  # noqa: B004 - an object's method may be a generator function
        self._speaks = inspect.isasyncgenfunction(function) or inspect.isasyncgenfunction(call)
        if inspect.isgeneratorfunction(function) or inspect.isgeneratorfunction(call) or self._speaks:
            self.stream = lambda x, cancel: function(x)  # noqa: ARG005 - it cannot be stopped
        if awaited(function):
            self.run = self._run_async  # type: ignore[method-assign]
            if self._speaks:
                self.stream = self._stream_async

    def run(self, inputs: list[Any], cancel: StopToken | None = None) -> Any:  # noqa: ARG002 - cannot be stopped
        """Calls the function once per input. -> a list of its results."""
        return [self._told(self.function(x)) for x in inputs]

    def _run_escalated(self, inputs: list[Any], edges: Sequence[Mapping[str, Any] | None]) -> Any:
        """As `run`, with the edge's answer to each input."""
        return [self._told(self._given(x, edge)) for x, edge in zip(inputs, edges, strict=True)]

    def _told(self, result: Any) -> Any:
        kind = type(result)
        if kind is tuple:
            return result
        if kind is Prediction:
            return result[:2]
        if kind in _AWAITED:
            if kind is CoroutineType:
                result.close()  # or Python would warn that it was never awaited
            raise PolicyError(f"{self.name} is a def that returns a {kind.__name__}: make it an async def, and use AsyncRouter")
        return joined(result)

    async def _run_async(self, inputs: list[Any], cancel: StopToken | None = None) -> list[Any]:  # noqa: ARG002 - its task is
        """Awaits the function once per input, one after the other."""
        if self._speaks:
            return [await gathered(self._stream_async(x)) for x in inputs]
        results = [await self.function(x) for x in inputs]
        return [result[:2] if type(result) is Prediction else result for result in results]

    async def _stream_async(self, x: Any, cancel: StopToken | None = None) -> AsyncGenerator[Any, None]:  # noqa: ARG002
        async with aclosing(self.function(x)) as pieces:
            async for piece in pieces:
                yield piece


def _alone(function: Callable[[Any, Any], Any], x: Any) -> Any:
    """A function that takes an edge's answer, where there is none."""
    return function(x, None)


_AWAITED = (CoroutineType, AsyncGeneratorType)


async def gathered(stream: AsyncGenerator[Any, None], show: Callable[[Any], object] | None = None) -> tuple[Any, Any]:
    """An asynchronous generator's pieces joined, and the confidence of the `Prediction` that it may end with.

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
        return whole(pieces), logprobs_of(pieces) if confidence is None else confidence
    return value, confidence
