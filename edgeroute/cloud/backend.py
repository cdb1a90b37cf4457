"""Asks an endpoint in the cloud: inputs go in, predictions come out."""

from __future__ import annotations

import inspect
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator
from typing import TYPE_CHECKING, Any, Protocol

from edgeroute.confidence.scores import Reader, Score
from edgeroute.core.policy import Side, Terms
from edgeroute.core.stream import Pieces, joined, single, spoken, whole
from edgeroute.core.walk import Prediction
from edgeroute.errors import PolicyError
from edgeroute.system import AbandonedRuns, no_fork
from edgeroute.types import Backend, StopToken

if TYPE_CHECKING:
    from edgeroute.cloud.base import Call, Talk
    from edgeroute.cloud.guard import Exchange, Guard
    from edgeroute.cloud.http import HttpClient

MAX_ABANDONED = 16
"""So many runs may be told to stop and go on all the same, before the planner leaves the endpoint alone."""


class CloudBackend(Backend, Protocol):
    """A target off the device: it runs within an exchange, which its guard lets through for a permit."""

    guard: Guard

    @property
    def terms(self) -> Terms:
        """What asking it costs."""

    @property
    def patience_s(self) -> float:
        """How long it may take to answer."""

    @property
    def load(self) -> Callable[[], object] | None:
        """What is still to be imported and made before a call, which may take longer than a deadline; None: nothing."""

    @property
    def alone_async(self) -> bool:
        """It runs on an event loop, and not otherwise."""

    @property
    def run_async(self) -> Callable[[list[Any], float, Exchange], Awaitable[list[Prediction]]] | None:
        """`run` on an event loop; None: it needs a thread."""

    def run(self, inputs: list[Any], until: float, cancel: StopToken | None, exchange: Exchange) -> list[Prediction]:
        """Several inputs, by the instant `until` -> a prediction each."""

    @property
    def health(self) -> Callable[[float, Exchange], object] | None:
        """Tries whether it is well, with no user data; None: that cannot be tried."""

    def codec(self, of: Callable[[Any], str]) -> str:
        """How an input is made into what is sent; `of` as in `fingerprint`."""

    def encode(self, x: Any) -> Call | None:
        """One input as the call that would be sent for it; None: not to be told yet, or ever."""

    def resend(self, call: Call, until: float, exchange: Exchange) -> Prediction:
        """Sends such a call."""


class HttpBackend(AbandonedRuns):
    """An endpoint over HTTP. The client is imported and made at the first call."""

    side: Side = "cloud"
    alone_async = False
    guard: Guard

    def __init__(self, name: str, endpoint: Any, score: str | Score, labels: tuple[str, ...] | None) -> None:
        self.name, self.endpoint, self.where = name, endpoint, str(endpoint.where)
        self.terms: Terms = endpoint.address.terms
        self.patience_s: float = endpoint.address.timeout_s
        self.reader = Reader(score, labels=endpoint.labels or labels, kind=endpoint.kind)
        super().__init__(MAX_ABANDONED)
        self._client: HttpClient | None = None
        self._closed = False

    @property
    def load(self) -> Callable[[], object] | None:
        """Imports and makes the client, if that is still to be done."""
        return None if self._client is not None else lambda: self.client

    @property
    def client(self) -> HttpClient:
        """What carries the calls."""
        if self._client is None:
            with no_fork:
                from edgeroute.cloud.http import HttpClient

            self._client = HttpClient(self.endpoint)
            if self._closed:  # a reload has dropped it while a request was on its way here
                self._client.close()
        return self._client

    @property
    def traffic(self) -> tuple[int, int]:
        """Bytes sent and received so far, bodies alone, retries included."""
        return (0, 0) if self._client is None else (self._client.sent, self._client.received)

    def run(self, inputs: list[Any], until: float, cancel: StopToken | None, exchange: Exchange) -> list[Prediction]:
        """Asks for all of them in one talk."""
        return self.reader.many(self.client.run(self.endpoint.talk(inputs), until, exchange, cancel), len(inputs))

    async def run_async(self, inputs: list[Any], until: float, exchange: Exchange) -> list[Prediction]:
        """Asks for all of them in one talk, on the event loop."""
        return self.reader.many(await self.client.run_async(self.endpoint.talk(inputs), until, exchange), len(inputs))

    def stream(self, x: Any, until: float, cancel: StopToken | None, exchange: Exchange) -> Pieces:
        """The answer in one piece: the protocols have no other."""
        return single(self.run([x], until, cancel, exchange)[0])

    def encode(self, x: Any) -> Call | None:
        """As the endpoint does."""
        return self.endpoint.encode([x])  # type: ignore[no-any-return]

    def resend(self, call: Call, until: float, exchange: Exchange) -> Prediction:
        """Sends it, and reads the reply as that of any call."""

        def talk() -> Talk:
            return self.endpoint.decode((yield call), 1)

        return self.reader.many(self.client.run(talk(), until, exchange), 1)[0]

    def ready(self, until: float) -> None:
        """Pings the endpoint."""
        with self.guard.probe() as exchange:
            self.client.run(self.endpoint.ping(), until, exchange)

    def health(self, until: float, exchange: Exchange) -> None:
        """Asks whether it is ready."""
        self.client.run(self.endpoint.health(), until, exchange)

    def describe(self) -> str:
        """Where it is, with a warning where nobody checks who answers there."""
        unchecked = self.endpoint.address.https and self.endpoint.address.verify is False
        return f"{self.where} is ready" + (", its certificate UNCHECKED (verify = false)" if unchecked else "")

    def fingerprint(self, of: Callable[[Any], str]) -> str:  # noqa: ARG002 - what runs there is not to be seen from here
        """Where it is and how it is read."""
        return repr((self.where, self.endpoint.kind, self.reader.labels))

    def codec(self, of: Callable[[Any], str]) -> str:
        """The protocol, and the card with the preprocessing, if there is one."""
        card = getattr(getattr(self.endpoint, "card", None), "path", None)
        return type(self.endpoint).__name__ + ("" if card is None else f":{of(card)}")

    def close(self) -> None:
        """Closes the connections, those in use as soon as they are not."""
        self._closed = True
        if self._client is not None:
            self._client.close()

    async def aclose(self) -> None:
        """Closes the connections, those of asyncio too."""
        if self._client is not None:
            await self._client.aclose()


class FunctionBackend(AbandonedRuns):
    """Any callable as the cloud: `f(x)` gives a value, `(value, confidence)` or logits; it may be a coroutine function."""

    side: Side = "cloud"
    traffic = (0, 0)
    load = None
    patience_s = 10.0
    guard: Guard

    def __init__(self, name: str, function: Any, score: str | Score, labels: tuple[str, ...] | None) -> None:
        given = function if isinstance(function, Function) else Function(function)
        self.name, self.function, self.terms = name, given.function, given.terms
        self.where = f"the function {getattr(self.function, '__name__', type(self.function).__name__)!r}"
        self.reader = Reader(score, labels=labels)
        super().__init__(MAX_ABANDONED)
        self.health = None if given.health is None else _without_arguments(given.health)
        call = getattr(self.function, "__call__", None)  # noqa: B004 - an object's own, which may be a coroutine function
        self._speaks = inspect.isasyncgenfunction(self.function)
        self.alone_async = self._speaks or inspect.iscoroutinefunction(self.function) or inspect.iscoroutinefunction(call)
        self.run_async = self._run_async if self.alone_async else None

    def run(self, inputs: list[Any], until: float, cancel: StopToken | None, exchange: Exchange) -> list[Prediction]:  # noqa: ARG002 - cannot be stopped
        """Calls it for each."""
        self.ready(until)
        return self.reader.many([_answer(self._call(x, until, exchange)) for x in inputs], len(inputs))

    def _call(self, x: Any, until: float, exchange: Exchange) -> Any:
        exchange.before_attempt(0, until)
        try:
            result = joined(self.function(x))
        except BaseException as e:
            exchange.after_attempt(0, e)
            raise
        exchange.after_attempt(0)
        return result

    async def _run_async(self, inputs: list[Any], until: float, exchange: Exchange) -> list[Prediction]:
        results = []
        for x in inputs:
            pieces = [piece async for piece in self.stream_async(x, until, exchange)]
            results.append(_answer(whole(pieces) if self._speaks else pieces[0]))
        return self.reader.many(results, len(inputs))

    async def stream_async(self, x: Any, until: float, exchange: Exchange) -> AsyncGenerator[Any, None]:
        """What it yields, if it is an asynchronous generator function; else what it gives, in one piece."""
        exchange.before_attempt(0, until)
        try:
            if self._speaks:
                async for piece in self.function(x):
                    yield piece
            else:
                yield await self.function(x)
        except Exception as e:
            exchange.after_attempt(0, e)
            raise
        exchange.after_attempt(0)

    def stream(self, x: Any, until: float, cancel: StopToken | None, exchange: Exchange) -> Pieces:  # noqa: ARG002 - cannot be stopped
        """Calls it, and yields what it yields if it is a generator function; else its answer, in one piece."""
        self.ready(until)
        exchange.before_attempt(0, until)
        try:
            result = self.function(x)
            if isinstance(result, Generator):
                prediction = yield from spoken(result, self.reader.answer)
            else:
                prediction = yield from single(self.reader.many([_answer(result)], 1)[0])
        except Exception as e:
            exchange.after_attempt(0, e)
            raise
        exchange.after_attempt(0)
        return prediction

    def encode(self, x: Any) -> None:
        """A function is called with the input itself."""

    def resend(self, call: Call, until: float, exchange: Exchange) -> Prediction:  # noqa: ARG002 - the protocol's
        """There is no such call."""
        raise PolicyError(f"{self.where} takes no stored calls")

    def ready(self, until: float) -> None:  # noqa: ARG002
        """Nothing is known of a function but whether it can be called from here."""
        if self.run_async is not None:
            raise PolicyError(f"{self.where} is a coroutine function: use AsyncRouter")

    def describe(self) -> str:
        """That it will be called."""
        return f"{self.where} is called with the input"

    def fingerprint(self, of: Callable[[Any], str]) -> str:
        """The function's code."""
        return of(self.function)

    def codec(self, of: Callable[[Any], str]) -> str:  # noqa: ARG002 - a function is given the input itself
        """There is none."""
        return "as it is"

    def close(self) -> None:
        """Holds nothing."""


class Function:
    """A callable as a cloud, with what a policy may need to know of it.

    Args:
        function: `f(x)` gives a value, `(value, confidence)` or logits; a coroutine function where the router is asyncio's.
        name: what it is called in answers.
        health: raises if what it asks is away; called after faults, to see whether that is back. None: the next input tells.
        terms: usd_per_call, joules_per_call, calls_per_s, max_concurrent.
    """

    def __init__(
        self, function: Callable[[Any], Any], *, name: str = "cloud", health: Callable[[], object] | None = None, **terms: Any
    ) -> None:
        self.function, self.name, self.health, self.terms = function, name, health, Terms(**terms)


def _without_arguments(health: Callable[[], object]) -> Callable[[float, Exchange], object]:
    return lambda until, exchange: health()  # noqa: ARG005 - a function keeps no time and counts no bytes


def _answer(result: Any) -> Any:
    """A value alone is an answer without a confidence; what looks like logits is left to the reader."""
    return result if isinstance(result, tuple | list) or hasattr(result, "dtype") else (result, None)
