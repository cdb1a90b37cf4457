"""Cloud backends: what the router needs of one, and a function as a cloud. An endpoint over HTTP is in `http_backend.py`."""

from __future__ import annotations

import inspect
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator, Iterable
from functools import partial
from types import AsyncGeneratorType, CoroutineType
from typing import TYPE_CHECKING, Any, Protocol

from edgeroute.cloud.escalated import Escalated, checked
from edgeroute.cloud.replies import ReplyReader
from edgeroute.cloud.rows import Rows
from edgeroute.cloud.terms import checked_terms
from edgeroute.confidence.labels import label_names
from edgeroute.confidence.reader import checked_kind
from edgeroute.confidence.scores import Score
from edgeroute.core.policy import Side, Terms
from edgeroute.core.stream import Pieces, joined, single, spoken, whole
from edgeroute.core.walk import Prediction
from edgeroute.edge.identity import versioned
from edgeroute.errors import BadReply, PolicyError
from edgeroute.system import AbandonedRuns, cancelled
from edgeroute.types import Backend, StopToken

if TYPE_CHECKING:
    from edgeroute.cloud.base import Call
    from edgeroute.cloud.exchange import Exchange
    from edgeroute.cloud.guard import Guard

SENDS_EDGE = "send_edge"
"""In fingerprints: the cloud is told the edge's answer."""
MAX_ABANDONED = 16
"""Maximum number of abandoned runs (told to stop, still running), above which the planner skips the endpoint."""


class CloudBackend(Backend, Protocol):
    """A target off the device. It runs within an exchange, which its guard opens for a permit."""

    guard: Guard
    origin: str
    """Protocol and address, or the function: what a request was queued for is sent to no other."""
    sends_edge: bool
    """Whether it takes inputs with the edge's answers, as `Escalated`."""

    @property
    def terms(self) -> Terms:
        """Prices and limits of calling it."""

    @property
    def patience_s(self) -> float:
        """Its own timeout, seconds."""

    @property
    def load(self) -> Callable[[], object] | None:
        """Performs the imports and construction that a first call needs, which may outlast a deadline; None: that is done."""

    @property
    def keeps_time(self) -> bool:
        """Whether `run` ends by its instant whatever happens, so that no thread is needed for that."""

    @property
    def alone_async(self) -> bool:
        """Whether it runs on an event loop only."""

    @property
    def run_async(self) -> Callable[[list[Any], float, Exchange], Awaitable[list[Prediction]]] | None:
        """`run` on an event loop; None: it needs a thread."""

    def calls(self, inputs: int) -> int:
        """Number of calls that so many inputs take."""

    def run(self, inputs: list[Any], until: float, cancel: StopToken | None, exchange: Exchange) -> list[Prediction]:
        """Predictions for several inputs, by the instant `until`."""

    @property
    def health(self) -> Callable[[float, Exchange], object] | None:
        """Health check without user data; None: there is none."""

    def codec(self, of: Callable[[Any], str]) -> str:
        """Fingerprint of how an input is encoded; `of` as in `fingerprint`."""

    def encode(self, x: Any, codec: str = "") -> Call | None:
        """The call for one input; None: not known yet, or not possible. codec: the rung by which it was sent, of a ladder."""

    def above_floor(self, codec: str) -> bool:
        """Whether a call by that rung of a ladder is another than certificates are about."""

    def resend(self, call: Call, until: float, exchange: Exchange) -> Prediction:
        """Sends an encoded call."""


class FunctionBackend(AbandonedRuns):
    """Any callable as the cloud: `f(x)` returns a value, `(value, confidence)` or logits; it may be a coroutine function."""

    side: Side = "cloud"
    traffic = (0, 0)
    load = None
    keeps_time = False
    patience_s = 10.0
    guard: Guard

    def __init__(self, name: str, function: Any, score: str | Score, labels: tuple[str, ...] | None) -> None:
        given = function if isinstance(function, Function) else Function(function)
        self.name, self.function, self.terms, self.version = name, given.function, given.terms, given.version
        self.sends_edge = given.send_edge
        self._ask: Callable[[Any], Any] = partial(_spread, self.function) if given.send_edge else self.function
        self.where = f"the function {getattr(self.function, '__name__', type(self.function).__name__)!r}"
        self.origin = self.where
        self.reader = ReplyReader(score, labels=given.labels or labels, kind=given.kind, name=given.name)
        super().__init__(MAX_ABANDONED)
        self.health = None if given.health is None else _without_arguments(given.health)
        call = getattr(self.function, "__call__", None)  # noqa: B004 - the object's method may be a coroutine function
        self._speaks = inspect.isasyncgenfunction(self.function)
        self.alone_async = self._speaks or inspect.iscoroutinefunction(self.function) or inspect.iscoroutinefunction(call)
        self.run_async = self._run_async if self.alone_async else None

    def calls(self, inputs: int) -> int:
        """One for each input."""
        return inputs

    def run(self, inputs: list[Any], until: float, cancel: StopToken | None, exchange: Exchange) -> list[Prediction]:  # noqa: ARG002 - cannot be stopped
        """Calls the function for each input."""
        rows = Rows(exchange, inputs, until)
        for x in rows:
            with rows:
                rows.append(self.reader.many([self._answer(self._call(x, until, exchange))], 1)[0])
        return rows.found

    def _call(self, x: Any, until: float, exchange: Exchange) -> Any:
        exchange.next_call()
        exchange.before_attempt(0, until)
        try:
            result = joined(self._returned(self._ask(x)))
        except BaseException as e:
            exchange.after_attempt(0, e)
            raise
        exchange.after_attempt(0)
        return result

    def _returned(self, result: Any) -> Any:
        kind = type(result)
        if kind in (CoroutineType, AsyncGeneratorType):
            if kind is CoroutineType:
                result.close()  # or Python would warn that it was never awaited
            raise BadReply(f"{self.where} is a def that returns a {kind.__name__}: make it an async def, and use AsyncRouter")
        return result

    def _answer(self, result: Any) -> Any:
        """Normalises a result: without a kind a bare value has no confidence; what looks like outputs is left to the reader."""
        as_it_is = isinstance(result, tuple | list) or hasattr(result, "dtype") or self.reader.kind not in {None, "answers"}
        return result if as_it_is else (result, None)

    async def _run_async(self, inputs: list[Any], until: float, exchange: Exchange) -> list[Prediction]:
        rows = Rows(exchange, inputs, until)
        for x in rows:
            with rows:
                pieces = [piece async for piece in self._pieces_async(x, until, exchange)]
                rows.append(self.reader.many([self._answer(whole(pieces) if self._speaks else pieces[0])], 1)[0])
        return rows.found

    async def stream_async(self, x: Any, until: float, exchange: Exchange, show: Callable[[Any], object]) -> Prediction:
        """As `stream`, on an event loop; calls `show` with each piece of the answer."""
        pieces: list[Any] = []
        async for piece in self._pieces_async(x, until, exchange):
            pieces.append(piece)
            show(piece)
        return self.reader.many([(whole(pieces), None)], 1)[0]

    async def _pieces_async(self, x: Any, until: float, exchange: Exchange) -> AsyncGenerator[Any, None]:
        """The pieces of an asynchronous generator function; for any other function its answer, in one piece."""
        exchange.next_call()
        exchange.before_attempt(0, until)
        try:
            if self._speaks:
                async for piece in self._ask(x):
                    yield piece
            else:
                yield await self._ask(x)
        except BaseException as e:
            if not cancelled(e):
                exchange.after_attempt(0, e)
            raise
        exchange.after_attempt(0)

    def stream(self, x: Any, until: float, cancel: StopToken | None, exchange: Exchange) -> Pieces:
        """The pieces of a generator function; for any other function its answer, in one piece."""
        exchange.before_attempt(0, until)
        try:
            result = self._returned(self._ask(x))
            if isinstance(result, Generator):
                prediction = yield from spoken(result, self.reader.answer)
            else:
                prediction = yield from single(self.reader.many([self._answer(result)], 1)[0])
        except BaseException as e:
            if cancel is None or not cancel.asked or not isinstance(e, GeneratorExit):  # else it was closed
                exchange.after_attempt(0, e)
            raise
        exchange.after_attempt(0)
        return prediction

    def encode(self, x: Any, codec: str = "") -> None:
        """None: a function takes the input itself."""

    def above_floor(self, codec: str) -> bool:  # noqa: ARG002 - the protocol's
        """False: there is no ladder."""
        return False

    def resend(self, call: Call, until: float, exchange: Exchange) -> Prediction:  # noqa: ARG002 - the protocol's
        """Not possible: a function has no encoded call."""
        raise PolicyError(f"{self.where} takes no stored calls")

    def ready(self, until: float) -> None:
        """Nothing: a function needs no preparation."""

    def describe(self) -> str:
        """Status line for `check`."""
        return f"{self.where} is called with the input"

    def fingerprint(self, of: Callable[[Any], str]) -> str:
        """Fingerprint of the function's code, or its version."""
        return versioned(self.function, self.version, of)

    def identity(self, of: Callable[[Any], str]) -> str:
        """As `fingerprint`, with the labels of logits."""
        edge = (SENDS_EDGE,) if self.sends_edge else ()
        return repr((self.fingerprint(of), self.reader.labels, *edge))

    def codec(self, of: Callable[[Any], str]) -> str:  # noqa: ARG002 - a function takes the input itself
        """A function has no codec."""
        return f"as it is+{SENDS_EDGE}" if self.sends_edge else "as it is"

    def close(self) -> None:
        """A no-op."""


class Function:
    """A callable as a cloud, with its name, health check and prices.

    Args:
        function: `f(x)` returns a value, `(value, confidence)` or logits; a coroutine function only with `AsyncRouter`.
        name: its name in answers.
        health: raises while the service behind it is down; called after faults. None: the next input is the probe.
        labels: the values it may give, or its logits' classes; None: the edge model's, if that has any.
        kind: of what it returns, one of `edgeroute.confidence.KINDS`; None: by its form.
        version: changed by you whenever its answers change, for certificates and the cache on disk; None: its code tells, if it
            uses functions and constants alone.
        send_edge: call it with the input and the edge's answer, `f(x, edge)` (docs/payloads.md).
        terms: usd_per_call, joules_per_call, calls_per_s, max_concurrent.

    Raises:
        PolicyError: one of the terms is no number that it can be.
    """

    def __init__(
        self,
        function: Callable[..., Any],
        *,
        name: str = "cloud",
        health: Callable[[], object] | None = None,
        labels: Iterable[Any] | None = None,
        kind: str | None = None,
        version: str | None = None,
        send_edge: bool = False,
        **terms: Any,
    ) -> None:
        self.send_edge = checked(send_edge)
        if not isinstance(version, str | None):
            raise PolicyError(f'version is text, as in version="{version}", and not a {type(version).__name__}')
        self.version = version
        self.function, self.name, self.health, self.terms = function, name, health, checked_terms(terms)
        self.labels, self.kind = label_names(labels), checked_kind(kind)


def _spread(function: Callable[[Any, Any], Any], given: Escalated) -> Any:
    return function(given.x, given.edge)


def _without_arguments(health: Callable[[], object]) -> Callable[[float, Exchange], object]:
    return lambda until, exchange: health()  # noqa: ARG005 - a function has no time limit and no byte count
