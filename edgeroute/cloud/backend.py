"""Cloud backends: what the router needs of one, and a function as a cloud. An endpoint over HTTP is in `http_backend.py`."""

from __future__ import annotations

import inspect
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator, Iterable, Iterator, Mapping
from functools import partial
from time import monotonic
from types import AsyncGeneratorType, CoroutineType, TracebackType
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np

from edgeroute.confidence.boxes import boxes_without_batch
from edgeroute.confidence.forms import Labels, as_array, label_names
from edgeroute.confidence.reader import CLASSES, Reader, checked_kind
from edgeroute.confidence.scores import Score, Unscored
from edgeroute.core.policy import INF, Side, Terms
from edgeroute.core.stream import Pieces, join_result, read_pieces, single, whole
from edgeroute.core.walk import Prediction
from edgeroute.core.words import Failure
from edgeroute.edge.members import callable_fingerprint
from edgeroute.errors import BadReply, PolicyError
from edgeroute.http.terms import checked_terms
from edgeroute.system.process import AbandonedRuns, is_task_cancelled
from edgeroute.types import Backend, StopToken

if TYPE_CHECKING:
    from edgeroute.cloud.exchange import Exchange
    from edgeroute.cloud.guard import Guard
    from edgeroute.http.messages import Call


# Checks of what an endpoint, or a function as the cloud, has answered: nonsense never replaces an edge answer.

SLACK = 0.01
"""By how much a probability may exceed 1: some servers round."""


class ReplyReader(Reader):
    """A reader of a cloud's outputs, which refuses what cannot be an answer.

    That is: no value (null), NaN, infinity, logits that are all minus infinity, probabilities outside 0..1, no outputs at
    all; and where there are labels, a value that is none of them, or outputs of another rank. With a score of the caller's
    own, outputs may have any structure.
    """

    wrong = BadReply
    served: Callable[[], tuple[Any, ...] | None] | None = None
    """The labels that the server has, once it has said so: for where nobody else has given any."""

    def many(self, outputs: Any, count: int) -> list[Prediction]:
        """As of `Reader`."""
        if self.labels is None and self.served is not None and (labels := self.served()) is not None:
            self._names = Labels(labels, self.name)
            self.labels = self._names.labels
        return super().many(outputs, count)

    def _read(self, row: Any) -> Prediction:
        if type(row) is Prediction:
            self._check_pair(row.value, row.confidence)
        elif type(row) is tuple and self.kind != "label+probabilities":
            if len(row) == 2:  # noqa: PLR2004 - a pair
                self._check_pair(*row)
        elif self.kind == "boxes" or (boxes_without_batch(self.kind, row)):
            pass  # none found is an answer; its form is checked as it is read
        elif type(row) is np.ndarray:  # the usual case
            self._check_row(row)
        else:
            for part in row.values() if isinstance(row, Mapping) and self.kind == "label+probabilities" else [_first(row)]:
                self._check_row(part)
        return super()._read(row)

    def _check_pair(self, value: Any, sure: Any) -> None:
        if value is None:
            raise BadReply("the answer has no value (null)")
        self._check_confidence(sure)
        structured = not isinstance(value, str | int | float | np.generic)
        if self.labels is None or (structured and self._custom is not None):
            return
        if structured or self._names.same(_item(value)) not in self.labels:
            raise BadReply(f"the answer, {_kind(value)}, is none of the {len(self.labels)} labels")

    def _check_confidence(self, sure: Any) -> None:
        """A confidence is a finite number, or the finite log-probabilities of tokens; None: there is none."""
        if sure is None or isinstance(sure, Unscored):
            return
        try:
            known = np.isfinite(np.asarray(sure, np.float64)).all()
        except (TypeError, ValueError, OverflowError):  # none is chained: its text quotes the value
            known = None
        if known is None:
            if self._custom is None:
                raise BadReply(f"the answer's confidence is {type(sure).__name__}, not a number")
            return
        if not known:
            raise BadReply("the answer's confidence is NaN or infinity")

    def _check_row(self, row: Any) -> None:
        plain = type(row) is np.ndarray and row.dtype.kind != "O"
        array = row if plain else as_array(list(row.values()) if isinstance(row, Mapping) else row)
        if not array.size:
            raise BadReply("0 outputs, which say nothing")
        if array.ndim == 2 and len(array) == 1:  # noqa: PLR2004 - with its batch axis
            array = array[0]
        numbers = array.ndim == 1 and array.dtype.kind in "fiub"
        labelled = array.size == 1 and array.dtype.kind in "biuUS" and self.kind not in CLASSES  # a label, which is looked up
        if self.labels is not None and self._custom is None and not numbers and not labelled and self.kind != "value":
            raise BadReply(f"outputs of {array.ndim} dimensions, but {len(self.labels)} labels: a number each was expected")
        if array.dtype.kind not in "fiub" or not (numbers or array.dtype.kind == "f"):
            return
        low, high = np.minimum.reduce(array, None), np.maximum.reduce(array, None)  # as `min` and `max`, without their calls
        if not (low == low and abs(high) < np.inf):  # noqa: PLR0124 - false for NaN, and for minus infinity as the highest
            raise BadReply("the outputs hold NaN or infinity, or are all minus infinity")
        if self.kind == "probabilities" and not (low >= 0 < high <= 1 + SLACK):
            raise BadReply("the outputs are no probabilities, which are from 0 to 1")


def _first(row: Any) -> Any:
    return next(iter(row.values()), None) if isinstance(row, Mapping) else row


def _item(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else value


def _kind(value: Any) -> str:
    """What a value is, without quoting it: it may be an echo of the input."""
    return f"text of {len(value)} characters" if isinstance(value, str) else f"of type {type(value).__name__}"


# Rows of a batch that are asked one by one: what one of them comes to costs no other its answer.

SPARE, SPARE_S = 0.05, 0.05
"""Share of the time that is left, and most seconds of it, that a row leaves for handing on what the others have answered."""


class Rows:
    """Collects the predictions, `for x in rows: with rows: ...`, and in place of one the exception that was raised.

    Where that is a fault of the endpoint (it is away, late, or may not be asked), those that remain fail with it, unasked. It is
    raised where there is no other row, or none before it.
    """

    def __init__(self, exchange: Exchange, inputs: list[Any], until: float) -> None:
        self._exchange, self._inputs, self._until = exchange, inputs, until
        self.found: list[Any] = []
        self.append = self.found.append

    def until(self) -> float:
        """By when the next row must be answered."""
        if self._until == INF or not any(type(row) is Prediction for row in self.found):
            return self._until
        return self._until - min(SPARE_S, SPARE * max(0.0, self._until - monotonic()))

    def __iter__(self) -> Iterator[Any]:
        return (x for row, x in enumerate(self._inputs) if len(self.found) == row)

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> bool:
        if error is None:
            return False
        if len(self._inputs) == 1 or isinstance(error, KeyboardInterrupt | SystemExit) or is_task_cancelled(error):
            return False
        own = _of_the_input(error)
        if not own or isinstance(error, BadReply):
            self._exchange.failure = error
        if own:
            self.append(error)
        elif self.found:
            self.found += [error] * (len(self._inputs) - len(self.found))
        return bool(self.found)


def _of_the_input(error: BaseException) -> bool:
    """Whether another input may fare better."""
    if isinstance(error, OSError):
        return False
    failure = Failure.of(error)
    return failure.code in {"", "bad_input", "bad_reply"} or failure.of_the_input


SENDS_EDGE = "send_edge"
"""In fingerprints: the cloud is told the edge's answer."""
MAX_ABANDONED = 16
"""Maximum number of abandoned runs (told to stop, still running), above which the planner skips the endpoint."""


class Escalated(NamedTuple):
    """An input as an endpoint with `send_edge` takes it."""

    x: Any
    edge: Mapping[str, Any] | None
    """JSON types, made by `payloads.told`; None: the edge has not answered."""


def checked_flag(name: str, value: object) -> bool:
    """Return the value of a setting.

    Raises:
        PolicyError: the value is not True or False.
    """
    if not isinstance(value, bool):
        raise PolicyError(f"{name} is True or False, not a {type(value).__name__}")
    return value


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
            result = join_result(self._returned(self._ask(x)))
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
            if not is_task_cancelled(e):
                exchange.after_attempt(0, e)
            raise
        exchange.after_attempt(0)

    def stream(self, x: Any, until: float, cancel: StopToken | None, exchange: Exchange) -> Pieces:
        """The pieces of a generator function; for any other function its answer, in one piece."""
        exchange.before_attempt(0, until)
        try:
            result = self._returned(self._ask(x))
            if isinstance(result, Generator):
                prediction = yield from read_pieces(result, self.reader.answer)
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
        return callable_fingerprint(self.function, self.version, of)

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
        self.send_edge = checked_flag("send_edge", send_edge)
        if not isinstance(version, str | None):
            raise PolicyError(f'version is text, as in version="{version}", and not a {type(version).__name__}')
        self.version = version
        self.function, self.name, self.health, self.terms = function, name, health, checked_terms(terms)
        self.labels, self.kind = label_names(labels), checked_kind(kind)


def _spread(function: Callable[[Any, Any], Any], given: Escalated) -> Any:
    return function(given.x, given.edge)


def _without_arguments(health: Callable[[], object]) -> Callable[[float, Exchange], object]:
    return lambda until, exchange: health()  # noqa: ARG005 - a function has no time limit and no byte count
