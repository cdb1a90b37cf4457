"""Function as a cloud (`FunctionBackend`), and for all clouds the checks of replies and the collector of a batch's predictions.

`BatchCollector` halves a batch that is refused, until the input at fault is alone. HTTP endpoints are in http_backend.py.
"""

from __future__ import annotations

import inspect
from collections.abc import AsyncGenerator, Callable, Generator, Iterable, Iterator, Mapping
from functools import partial
from time import monotonic
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np

import edgeroute.confidence.output_forms_labels_and_comparison as forms
from edgeroute.confidence.detector_boxes import are_rows_of_boxes, boxes_without_batch
from edgeroute.confidence.output_reader import CLASSES, SEVERAL, Reader, checked_kind
from edgeroute.confidence.scores import Score, Unscored
from edgeroute.core.error_codes_and_texts import Failure
from edgeroute.core.policy_egress_and_options import INF, Side
from edgeroute.core.stream_walk import Pieces, join_pieces, join_result, one_piece, read_pieces
from edgeroute.core.walk import Prediction
from edgeroute.edge.edge_model_members_and_fingerprints import callable_fingerprint
from edgeroute.edge.fitted_estimator_as_function import as_estimator
from edgeroute.errors import BadReply, PolicyError
from edgeroute.http.messages_addresses_and_secrets import Call, checked_terms
from edgeroute.system.contained_calls_and_tasks import is_task_cancelled
from edgeroute.system.fork_safety import AbandonedRuns
from edgeroute.system.read_and_check_signatures import refuse_awaitable, runs_later
from edgeroute.types import Classifier, StopToken

if TYPE_CHECKING:
    from edgeroute.cloud.attempt_accounting_and_turns import Exchange
    from edgeroute.cloud.endpoint_guard import Guard


# Checks of the answers of an endpoint, or of a function as the cloud: nonsense never replaces an edge answer.

SLACK = 0.01  # amount by which a probability may exceed 1: some servers round


class ReplyReader(Reader):
    """Reader of a cloud's outputs, which refuses outputs that cannot be an answer.

    These are: no value (null), NaN, infinity, logits that are all minus infinity, probabilities outside 0..1, no outputs at all;
    and with labels, a value that is none of them, or outputs of another rank. With a score function of the caller, outputs may
    have any structure.
    """

    wrong = BadReply
    # Returns the server's labels and kind of outputs, once known; used if no others were given.
    served: Callable[[], tuple[tuple[Any, ...] | None, str | None]] | None = None
    # Kind of the edge's outputs: behind multilabel an answer is a list of labels, or a probability each; behind value numbers,
    # and behind boxes perhaps none.
    behind: str | None = None
    speaks = False  # True if a language model writes the answers: for one that is no label the prompt may be the reason

    def read_many(self, outputs: Any, count: int) -> list[Prediction]:
        """Return the predictions in the outputs of `count` inputs.

        First takes over the server's labels and kind of outputs, once these are known, where none were given.

        Raises:
            BadReply: there is another number of outputs, or one cannot be an answer.
        """
        if self.served is not None and (self.labels is None or self.kind is None):
            labels, kind = self.served()
            if self.labels is None and labels is not None:
                self._names = forms.Labels(labels, self.name)
                self.labels = self._names.labels
            if self.kind is None and kind is not None and not (self.score == "energy" and kind != "logits"):
                self.settle(kind)
        return super().read_many(outputs, count)

    def read_answer(self, row: Any) -> Prediction:
        """Check one row of outputs, and return its prediction. Raise BadReply for one that cannot be an answer.

        Takes a `Prediction`, a pair (value, confidence), an array, or outputs by name; the form of boxes is checked later.
        """
        if "multilabel" in {self.behind, self.kind} and (listed := self._listed(row)) is not None:
            return listed
        if type(row) is Prediction:
            self._check_pair(row.value, row.confidence)
        elif type(row) is tuple and self.kind not in SEVERAL:
            if len(row) == 2:  # noqa: PLR2004 - a pair
                self._check_pair(*row)
        elif self.kind == "boxes" or (self.kind == "answers" and self.labels is None and type(row) is list and not row):
            pass  # none found is an answer; its form is checked as it is read
        elif self.behind == "boxes" and self.kind is None and isinstance(row, np.ndarray | list) and not len(row):
            return Prediction([], None, row)
        elif type(row) is np.ndarray:  # the usual case
            self._check_row(row)
        elif not boxes_without_batch(self.kind, row):
            first = row if self.kind == "probabilities" and forms.is_by_class(row) else _first(row)
            parts = row.values() if isinstance(row, Mapping) else [first] if self.kind == "label+probabilities" else row
            for part in parts if self.kind in SEVERAL and forms.several(row) else [first]:
                self._check_row(part)
        numbers = self.behind == "value" and self.kind is None and isinstance(row, np.ndarray | list)
        return self._value(row) if numbers else super().read_answer(row)

    def _listed(self, row: Any) -> Prediction | None:
        """Return the prediction for labels as texts, or one, perhaps with a confidence; None for others.

        Without a kind, a number each is then a probability.

        Raises:
            BadReply: a text is none of the labels, or there is neither a text nor a number.
        """
        value, sure = row[:2] if type(row) is Prediction or (type(row) is tuple and len(row) == 2) else (row, None)  # noqa: PLR2004 - a pair
        texts = [value] if isinstance(value, str) else value
        if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
            if self.labels is not None and self._custom is None and forms.as_array(_first(value)).dtype.kind not in "fiub":
                raise BadReply(f"the answer, {_kind(value)}, is no list of labels, and no number for each")
            if self.kind is None:
                self.settle("multilabel")
            return None
        self._check_confidence(sure)
        return self._pair(([self._names.named(text) for text in texts], sure), row)

    def _check_pair(self, value: Any, sure: Any) -> None:
        """Raise BadReply for a value of None, an invalid confidence, or a value that is none of the labels, if there are labels.

        A value of another type than texts and numbers is no label, but passes with a custom score.
        """
        if value is None:
            raise BadReply("the answer has no value (null)")
        self._check_confidence(sure)
        structured = not isinstance(value, str | int | float | bytes | np.generic)
        labels = None if structured and self._custom is not None else self.labels
        if labels is not None and (structured or self._names.same(_item(value)) not in labels):
            error = BadReply(f"the answer, {_kind(value)}, is none of the {len(labels)} labels")
            error.counts = not self.speaks
            raise error

    def _check_confidence(self, sure: Any) -> None:
        """Raise BadReply unless a confidence is a finite number, finite log-probabilities of tokens, or None.

        With a custom score other types pass.
        """
        if sure is None or isinstance(sure, Unscored):
            return
        try:
            known = np.isfinite(np.asarray(sure, np.float64)).all()
        except (TypeError, ValueError, OverflowError):  # none is chained: its text quotes the value
            known = None
        if known is None and self._custom is None:
            raise BadReply(f"the answer's confidence is {type(sure).__name__}, not a number")
        if known is not None and not known:
            raise BadReply("the answer's confidence is NaN or infinity")

    def _check_row(self, row: Any) -> None:
        """Raise BadReply for outputs that are empty, hold NaN or infinity, or are all minus infinity.

        Also for several dimensions beside labels (a batch axis of 1 is allowed), and for numbers outside 0..1, or all 0,
        where the kind says probabilities; their sum is not checked. Other types pass.
        """
        plain = type(row) is np.ndarray and row.dtype.kind != "O"
        array = row if plain else forms.as_array(list(row.values()) if isinstance(row, Mapping) else row)
        if not array.size:
            raise BadReply(
                'the reply has no outputs: if that is an answer, give the cloud kind="boxes", as Function(f, kind="boxes")'
            )
        array = forms.along_one_axis(array)
        numbers = (array.ndim == 1 or (self.kind in SEVERAL and not array.ndim)) and array.dtype.kind in "fiub"
        labelled = array.size == 1 and array.dtype.kind in "biuUS" and self.kind not in CLASSES  # a label, which is looked up
        if self.labels is not None and self._custom is None and not numbers and not labelled and self._needs_numbers(array):
            raise BadReply(f"outputs of {array.ndim} dimensions, but {len(self.labels)} labels: a number each was expected")
        if array.dtype.kind not in "fiub" or not (numbers or array.dtype.kind == "f"):
            return
        low, high = array.item(array.argmin()), array.item(array.argmax())  # a NaN is both
        if not (low == low and abs(high) < np.inf):  # noqa: PLR0124 - false for NaN, and for minus infinity as the highest
            raise BadReply("the outputs hold NaN or infinity, or are all minus infinity")
        several = self.kind == "multilabel"
        if (several or self.kind == "probabilities") and not (low >= 0 and (several or high > 0) and high <= 1 + SLACK):
            raise BadReply("the outputs are no probabilities, which are from 0 to 1")

    def _needs_numbers(self, array: Any) -> bool:
        """Return True if labels need a number each: neither the kind nor the form of the array is another one."""
        return self.kind not in {"value", "ctc"} and not (self.kind is None and are_rows_of_boxes(array, self.labels))


def _first(row: Any) -> Any:
    """Return the first of several outputs; other rows unchanged."""
    return next(iter(row.values()), None) if isinstance(row, Mapping) else row


def _item(value: Any) -> Any:
    """Return a NumPy scalar as a Python value."""
    return value.item() if isinstance(value, np.generic) else value


def _kind(value: Any) -> str:
    """Return a description of a value, without quoting it: it may repeat the input."""
    return f"text of {len(value)} characters" if isinstance(value, str) else f"of type {type(value).__name__}"


# Rows of a batch that are sent one by one, or as many together as the server takes: the error of one costs no other its answer.

# Share of the time left, and maximum seconds of it, that a call leaves for returning the answers of the others.
SPARE, SPARE_S = 0.05, 0.05
REFUSALS = (400, 413, 422)  # HTTP statuses of a server that takes no batch of this size, or not an input in it
MOST_HALVINGS = 16  # maximum refused calls of a batch that are followed by calls of half as many rows


class BatchCollector:
    """Collector of a batch's predictions: `for part in rows: with rows: ...`; an exception takes the place of predictions.

    A server that refuses several rows is sent half as many. A fault of the endpoint (it is down, late, or rejected by a limit)
    also fails the remaining rows, without a call, and so do unreadable replies in a row that open the breaker. The exception is
    raised if there is no other row, or none before it.

    Args:
        exchange: exchange that accounts for the calls.
        guard: guard of the endpoint.
        inputs: inputs of the batch.
        until: monotonic instant by which all rows must be answered.
        most: maximum rows of one call.
    """

    def __init__(self, exchange: Exchange, guard: Guard, inputs: list[Any], until: float, most: int = 1) -> None:
        self._exchange, self._guard, self._inputs, self._until = exchange, guard, inputs, until
        self._unreadable = False  # True if the reply to the call before could not be read
        self.most = most
        self.refused = False  # True if the server refused an input alone, so that its refusals do not show how many rows it takes
        self._first_most, self._size = most, 0
        self._halvings = self._accepted = 0
        self.found: list[Any] = []
        self.append, self.extend = self.found.append, self.found.extend

    def until(self) -> float:
        """Return the instant by which the next call must be answered.

        Once a row has its answer, a part of the time is spared for the end.
        """
        if self._until == INF or not any(type(row) is Prediction for row in self.found):
            return self._until
        return self._until - min(SPARE_S, SPARE * max(0.0, self._until - monotonic()))

    def __iter__(self) -> Iterator[list[Any]]:
        """Yield the inputs of the next call: those that have no result yet, at most as many as the server takes."""
        while (begin := len(self.found)) < len(self._inputs):
            self._size = min(self.most, len(self._inputs) - begin)
            yield self._inputs[begin : begin + self._size]

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> bool:
        if error is None:
            self._accepted = max(self._accepted, self._size)
            if self.refused and self._halvings < MOST_HALVINGS:  # perhaps one input alone was the reason
                self.most = min(self._first_most, 2 * self._accepted)
            if self._unreadable:
                self._unreadable = False
                self._guard.succeeded(None)
            return False
        failure = Failure.of(error)
        if failure.status in REFUSALS:
            if self._size > 1 and self._halvings < MOST_HALVINGS:
                self._halvings, self.most = self._halvings + 1, self._size // 2
                return True
            self.refused, self.most = True, self._accepted or self._first_most
        alone = self._size == len(self._inputs)
        if alone or isinstance(error, KeyboardInterrupt | SystemExit) or is_task_cancelled(error):
            return False
        # About its input or that input's reply: another may succeed. Not so if the endpoint, a limit or the system is at fault.
        of_input = not isinstance(error, OSError) and (failure.of_the_input or failure.code in {"", "bad_reply"})
        unreadable = isinstance(error, BadReply) and error.counts
        if not of_input or unreadable:
            self._exchange.failure = error
        if unreadable:
            if self._unreadable:
                self._guard.failed()  # the first or last one of them is counted at the end of the exchange
            self._unreadable, of_input = True, self._guard.rules.breaker.faults_left > 1
        if of_input:
            self.extend([error] * self._size)
        elif self.found:
            self.extend([error] * (len(self._inputs) - len(self.found)))
        return bool(self.found)


SENDS_EDGE = "send_edge"  # part of fingerprints: the cloud is sent the edge's answer
MAX_ABANDONED = 16  # maximum abandoned runs (requested to stop, still running), above which the planner skips the endpoint


def checked_send_edge(value: object) -> bool:
    """Return the setting `send_edge`; raise PolicyError unless it is True or False."""
    if not isinstance(value, bool):
        raise PolicyError(f"send_edge is True or False, not a {type(value).__name__}")
    return value


class FunctionBackend(AbandonedRuns):
    """Callable as the cloud: `f(x)` returns a value, `(value, confidence)`, logits or pieces; a coroutine function is awaited."""

    side: Side = "cloud"
    traffic = (0, 0)
    load = None
    keeps_time = False
    patience_s = 10.0
    guard: Guard

    def __init__(self, name: str, function: Any, score: str | Score, labels: tuple[str, ...] | None) -> None:
        wrapped = function if isinstance(function, Function) else Function(function)
        self.name, self.function, self.terms, self.version = name, wrapped.function, wrapped.terms, wrapped.version
        self.sends_edge = wrapped.send_edge
        self._ask: Callable[[Any], Any] = (lambda escalated: self.function(*escalated)) if wrapped.send_edge else self.function
        self.where = f"the function {getattr(self.function, '__name__', type(self.function).__name__)!r}"
        self.origin = self.where
        self.reader = ReplyReader(score, labels=wrapped.labels or labels, kind=wrapped.kind, name=wrapped.name)
        super().__init__(MAX_ABANDONED)
        health = wrapped.health
        self.health = None if health is None else lambda until, exchange: health()  # noqa: ARG005 - it has neither time limit nor bytes
        call = getattr(self.function, "__call__", None)  # noqa: B004 - the object's method may be a coroutine function
        self._speaks = inspect.isasyncgenfunction(self.function) or inspect.isasyncgenfunction(call)
        self.alone_async = self._speaks or inspect.iscoroutinefunction(self.function) or inspect.iscoroutinefunction(call)
        self.run_async = self._run_async if self.alone_async else None

    def calls(self, inputs: int) -> int:
        """Return one call for each input."""
        return inputs

    def run(self, inputs: list[Any], until: float, cancel: StopToken | None, exchange: Exchange) -> list[Prediction]:  # noqa: ARG002 - cannot be stopped
        """Call the function for each input in turn, and return the predictions; blocks, and cannot be stopped.

        Each call is an attempt of its own in the exchange. In place of a prediction there may be the exception of its input (see
        `BatchCollector`); an only input's exception is raised.
        """
        rows = BatchCollector(exchange, self.guard, inputs, until)
        for (x,) in rows:
            with rows:
                rows.append(self.reader.read_many([self._answer(self._call(x, until, exchange))], 1)[0])
        return rows.found

    def _call(self, x: Any, until: float, exchange: Exchange) -> Any:
        """Return the function's result for one input, as an attempt that the exchange books before and settles after it.

        The pieces of a generator are joined. Raises what the function raises, Held if a limit forbids it, or BadReply for a
        coroutine.
        """
        exchange.next_call()
        exchange.before_attempt(0, until)
        try:
            refuse_awaitable(result := self._ask(x), self.where, BadReply)
            result = join_result(result)
        except BaseException as e:
            exchange.after_attempt(0, e)
            raise
        exchange.after_attempt(0)
        return result

    def _answer(self, result: Any) -> Any:
        """Return a function's result in the form that the reader takes.

        A pipeline's `{"label": ..., "score": ...}`, or the best of a list of them, becomes (label, score). Tuples, lists and
        arrays stay, and with a kind other than "answers" all else does; a bare value becomes (value, None).
        """
        result = forms.best_label(result, several="multilabel" in {self.reader.behind, self.reader.kind})
        as_it_is = isinstance(result, tuple | list) or hasattr(result, "dtype") or self.reader.kind not in {None, "answers"}
        as_it_is = as_it_is or boxes_without_batch(self.reader.kind, result)
        return result if as_it_is else (result, None)

    async def _run_async(self, inputs: list[Any], until: float, exchange: Exchange) -> list[Prediction]:
        """Await the coroutine function for each input in turn, and return the predictions.

        An async generator's pieces are joined. Each call is an attempt of its own; see `run` for exceptions.
        """
        rows = BatchCollector(exchange, self.guard, inputs, until)
        for (x,) in rows:
            with rows:
                pieces = [piece async for piece in self._pieces_async(x, until, exchange)]
                rows.append(self.reader.read_many([self._answer(join_pieces(pieces) if self._speaks else pieces[0])], 1)[0])
        return rows.found

    async def stream_async(self, x: Any, until: float, exchange: Exchange, show: Callable[[Any], object]) -> Prediction:
        """Call `show` with each piece of the function's answer as it comes, and return the prediction of the joined pieces.

        They have no confidence. A coroutine function's answer is one piece. Raises BadReply, or what the function raises.
        """
        if not self._speaks:
            (prediction,) = await self._run_async([x], until, exchange)
            show(prediction.value)
            return prediction
        pieces: list[Any] = []
        async for piece in self._pieces_async(x, until, exchange):
            pieces.append(piece)
            show(piece)
        return self.reader.read_many([(join_pieces(pieces), None)], 1)[0]

    async def _pieces_async(self, x: Any, until: float, exchange: Exchange) -> AsyncGenerator[Any, None]:
        """Yield the pieces of an async generator function, or the result of a coroutine function, as an attempt of the exchange.

        It is booked before, and settled after it; after a cancellation the exchange's end settles it.
        """
        exchange.next_call()
        await exchange.call_off_loop(partial(exchange.before_attempt, 0, until))
        try:
            if self._speaks:
                async for piece in self._ask(x):
                    yield piece
            else:
                refuse_awaitable(result := await self._ask(x), self.where, BadReply, "await it")
                yield result
        except BaseException as e:
            if not is_task_cancelled(e):
                exchange.after_attempt(0, e)
            raise
        exchange.after_attempt(0)

    def stream(self, x: Any, until: float, cancel: StopToken | None, exchange: Exchange) -> Pieces:
        """Yield the pieces of a generator function, or the answer of another one as one piece, and return the prediction; blocks.

        It is an attempt that the exchange books before and settles after it. A caller that leaves early, after a stop request,
        counts as no failure: the exchange's end settles the attempt.
        """
        exchange.before_attempt(0, until)
        try:
            refuse_awaitable(result := self._ask(x), self.where, BadReply)
            if isinstance(result, Generator):
                prediction = yield from read_pieces(result, self.reader.read_answer)
            else:
                prediction = yield from one_piece(self.reader.read_many([self._answer(result)], 1)[0])
        except BaseException as e:
            if cancel is None or not cancel.asked or not isinstance(e, GeneratorExit):  # else it was closed
                exchange.after_attempt(0, e)
            raise
        exchange.after_attempt(0)
        return prediction

    def encode(self, x: Any, codec: str = "") -> None:
        """Return None: a function takes the input itself."""

    def above_floor(self, codec: str) -> bool:  # noqa: ARG002 - the protocol's
        """Return False: there is no ladder."""
        return False

    def resend(self, call: Call, until: float, exchange: Exchange) -> Prediction:  # noqa: ARG002 - the protocol's
        """Raise PolicyError: a function has no encoded call."""
        raise PolicyError(f"{self.where} cannot send calls that an outbox has stored")

    def identify(self, exchange: Exchange) -> None:
        """Do nothing: a function is known."""

    def ready(self, until: float) -> None:
        """Do nothing: a function needs no preparation."""

    def describe(self) -> str:
        """Return the status line for `check`."""
        return f"{self.where} is called with the input"

    def fingerprint(self, of: Callable[[Any], str]) -> str:
        """Return the fingerprint of the function's code, or its version."""
        return callable_fingerprint(self.function, self.version, of)

    def identity(self, of: Callable[[Any], str]) -> str:
        """Return the fingerprint with the labels of logits, for the cache."""
        edge = (SENDS_EDGE,) if self.sends_edge else ()
        return repr((self.fingerprint(of), self.reader.labels, *edge))

    def codec(self, of: Callable[[Any], str]) -> str:  # noqa: ARG002 - a function takes the input itself
        """Return the fingerprint of the encoding, of which a function has none."""
        return f"as it is+{SENDS_EDGE}" if self.sends_edge else "as it is"

    def close(self) -> None:
        """Do nothing: there is nothing to close."""


class Function:
    """Callable as a cloud, with its name, health check and prices.

    Args:
        function: `f(x)` returns a value, `(value, confidence)` or logits; a coroutine function only with `AsyncRouter`. Or a
            fitted classifier.
        name: name in answers.
        health: raises while the service behind it is down; called after faults. None: the next input is the probe.
        labels: possible values, or the classes of logits; None: the edge model's, if it has any.
        kind: kind of the result, one of `edgeroute.confidence.KINDS`; None: recognised by its form.
        version: text that you change whenever the answers change, for certificates and the cache on disk; None: taken from the
            code, if that uses functions and constants alone.
        send_edge: call it with the input and the edge's answer, `f(x, edge)` (docs/payloads.md).
        terms: usd_per_call, joules_per_call, calls_per_s, max_concurrent.

    Raises:
        PolicyError: a term is out of range, or another argument is invalid.
    """

    def __init__(
        self,
        function: Callable[[Any], Any] | Callable[[Any, Any], Any] | Classifier,
        *,
        name: str = "cloud",
        health: Callable[[], object] | None = None,
        labels: Iterable[Any] | None = None,
        kind: str | None = None,
        version: str | None = None,
        send_edge: bool = False,
        **terms: Any,
    ) -> None:
        self.send_edge = checked_send_edge(send_edge)
        if not isinstance(version, str | None):
            raise PolicyError(f'version is text, as in version="{version}", and not a {type(version).__name__}')
        if runs_later(health):
            raise PolicyError("health is a plain function, which probes call in a thread: a coroutine or generator would not run")
        self.version = version
        estimator = None if callable(function) else as_estimator(function)
        self.function: Any = function if estimator is None else estimator
        self.name, self.health, self.terms = name, health, checked_terms(terms)
        self.labels, self.kind = forms.label_names(labels), checked_kind(kind if estimator is None else kind or "probabilities")
