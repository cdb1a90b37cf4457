"""Public types: answers, tensor specifications, cancellation tokens, and the interfaces of models, backends and endpoints."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping
from math import inf
from typing import TYPE_CHECKING, Any, Generic, Literal, NamedTuple, Protocol

from edgeroute.core import reason_text_and_trace_record as explain
from edgeroute.core.error_codes_and_texts import clean
from edgeroute.core.plan import Plan
from edgeroute.core.policy_egress_and_options import Side
from edgeroute.core.reason_text_and_trace_record import Took, reason_code, took
from edgeroute.core.walk import Left, Outcome, Prediction, new
from edgeroute.system.json_codec_and_short_repr import short, to_json_types
from edgeroute.system.sanitised_logs_and_contained_errors import Failures, call_logged
from edgeroute.system.signal_safe_locks import SafeLock

if TYPE_CHECKING:
    from typing_extensions import TypeVar

    V = TypeVar("V", default=Any)
else:
    from typing import TypeVar

    V = TypeVar("V")

__all__ = ["Answer", "EdgeModel", "Endpoint", "Prediction", "Recorded", "Spent", "StopToken", "TensorSpec"]

Source = Literal["edge", "cloud", "cache", "stale"]  # origin of an answer; stale: an expired cache entry


class Batch(Protocol):
    """Inputs in order: a list, an array [n, ...] or a DataFrame."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: Any, /) -> Any: ...


class Classifier(Protocol):
    """Fitted classifier of scikit-learn's kind, which is a model as it is."""

    def predict_proba(self, X: Any, /) -> Any:  # noqa: N803 - as in scikit-learn
        """Return the probabilities of the classes of each row."""


class TensorSpec(NamedTuple):
    """Name, dtype and shape of one input or output of a model.

    Attributes:
        dtype: numpy dtype name, such as float32 or uint8.
        shape: sizes of the axes, the batch axis included; -1 for a dynamic axis.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]


class StopToken:
    """Cancellation token that is passed to a model's run. Calling the token requests a stop; the run may complete all the same.

    `on_ask(f)` registers a function that is called once at the request, in the requesting thread, or at once if the request came
    before.

    Attributes:
        turn_by: monotonic instant by which a run has to have begun, if the model is busy; inf: it may wait.
    """

    __slots__ = ("_asked", "_event", "_hook", "_lock", "turn_by")

    def __init__(self, turn_by: float = inf) -> None:
        self.turn_by = turn_by
        self._asked = False
        self._event: threading.Event | None = None  # made by the first one who waits, which few do
        self._lock = SafeLock()
        self._hook: Callable[[], object] | None = None

    def __call__(self) -> None:
        """Request a stop: wake waiting threads, and call the registered function, whose exceptions are logged."""
        with self._lock:
            self._asked = True
            hook = self._hook
            if self._event is not None:
                self._event.set()
        if hook is not None:
            _call_hook(hook)

    @property
    def asked(self) -> bool:
        """True if a stop was requested."""
        return self._asked

    def wait(self, seconds: float) -> bool:
        """Block up to `seconds` until a stop is requested. Return True if it was."""
        with self._lock:
            if self._asked:
                return True
            event = self._event = self._event or threading.Event()
        return event.wait(seconds)

    def on_ask(self, hook: Callable[[], object] | None) -> None:
        """Register the function that a stop request calls, in place of any earlier one; None removes it.

        If a stop was requested already, the function is called at once. Its exceptions are logged.
        """
        with self._lock:
            self._hook = hook
            asked = self._asked
        if asked and hook is not None:
            _call_hook(hook)


def _call_hook(hook: Callable[[], object]) -> None:
    """Call a function of a stop request, and log what it raises, as an answer may exist already; KeyboardInterrupt passes."""
    call_logged(hook, "a function for a stop request failed; no answer is touched by it")


class EdgeModel(Protocol):
    """Structural interface of an edge model: `name` and `run`.

    Every other member that edgeroute reads is one of `edgeroute.edge.edge_model_members_and_fingerprints.EdgeMembers`, and
    optional. A model is thread-safe, unless its `parallel` limits how many of its runs go at a time. Where `run` is a
    coroutine function, so are `run_one` and `stream` if they exist, and only `AsyncRouter` takes the model: it awaits them,
    and stops a run by cancelling the coroutine.
    """

    @property
    def name(self) -> str:
        """Name of the model in answers, traces and messages."""

    def run(self, inputs: list[Any], cancel: StopToken | None = None) -> Any:
        """Run the model on a batch, and return its outputs.

        Args:
            inputs: one or more, each without the batch axis. They are the caller's: never write to them.
            cancel: requests a stop; the run may then raise anything but `BadInput`, or go on to its end.

        Returns:
            An array, or a mapping of names to arrays, whose first axis is that of the inputs; or a list of predictions.

        Raises:
            BadInput: an input does not fit the model; it is not sent to the cloud either. BadInput is a ValueError: an
                `except ValueError` has to let it pass.
        """


class Backend(Protocol):
    """One target of a route, wrapped for running: a model on the device, or an endpoint in the cloud."""

    name: str
    side: Side
    stopping: set[object]  # runs that were cancelled and have not ended
    max_abandoned: int  # number of runs in `stopping` at which the target counts as busy
    rests_until: float  # monotonic instant up to which the target counts as busy, as it has said so itself
    failures: Failures  # rate-limited log of exceptions of the target's function

    @property
    def abandoned(self) -> int:
        """Number of runs that were cancelled and have not ended."""

    @property
    def occupied(self) -> bool:
        """True if the target takes no further run now."""

    @property
    def where(self) -> str:
        """Location of the target: a file, an address, a function."""

    @property
    def traffic(self) -> tuple[int, int]:
        """(bytes sent, bytes received) so far, without headers."""

    def ready(self, until: float) -> None:
        """Prepare the target, and raise whatever prevents it from running. Sends no user data.

        Args:
            until: monotonic instant of the time limit.
        """

    def describe(self) -> str:
        """Return a description of a target that is ready, for people."""

    def fingerprint(self, of: Callable[[Any], str]) -> str:
        """Return a short text that changes when the target's outputs may: of its file, settings, runtime.

        Args:
            of: returns the fingerprint of a file or a callable.
        """

    def identity(self, of: Callable[[Any], str]) -> str:
        """Return a text of all that decides the target's answer to an input, for cache keys.

        Args:
            of: returns the fingerprint of a file or a callable.
        """

    def close(self) -> None:
        """Release the target's resources, such as a loaded model or connections; a later run acquires them again."""


class Endpoint(Protocol):
    """Structural interface of a cloud endpoint; for HTTP see `edgeroute.cloud.endpoint.HttpEndpoint`."""

    name: str
    labels: tuple[Any, ...] | None  # labels of the classes, by index; None: the endpoint has none
    kind: str | None  # kind of its outputs, such as "logits" or "answers"; None: not stated


class Spent(NamedTuple):
    """Bytes, money and energy that one exchange with an endpoint has cost so far."""

    sent_bytes: int
    received_bytes: int
    usd: float
    joules: float
    codec: str = ""  # rung of the ladder of codecs by which the inputs were sent; empty: there is no ladder
    edge: bool | None = None  # True if the edge's answers to all inputs were sent along; None: the endpoint takes none

    def as_trace(self) -> dict[str, Any]:
        """Return the fields as a trace has them, without `codec` and `edge` where they are not known."""
        left_out = {name for name, known in (("codec", self.codec), ("edge", self.edge is not None)) if not known}
        return {name: value for name, value in self._asdict().items() if name not in left_out}


class Escalated(NamedTuple):
    """Input with the edge's answer, as an endpoint with `send_edge` takes it."""

    x: Any
    edge: Mapping[str, Any] | None  # answer in JSON types; None: the edge has not answered


class Recorded(Protocol):
    """Earlier answer, as the cache stores it."""

    @property
    def value(self) -> Any:
        """The answer: a label, or whatever the target returned."""

    @property
    def confidence(self) -> float | None:
        """Confidence by the policy's score; None: there was none."""

    @property
    def outputs(self) -> Any:
        """Raw outputs, without the batch axis."""

    @property
    def leg(self) -> str:
        """Name of the target that gave the answer."""


class _Route(NamedTuple):
    """Reason and trace of an answer that was copied or pickled, in place of the plan and the log."""

    reason: str
    trace: dict[str, Any]
    code: str = "first"


class Answer(Generic[V]):
    """Answer of the router to one request; `Answer[str]` in annotations, if the values are texts.

    An answer can be copied and pickled, and is a mapping of JSON values: `dict(answer)` is `answer.as_dict()`.

    Attributes:
        value: the label, or whatever the model or endpoint returned.
        source: "edge", "cloud", "cache", or "stale" for an expired cache entry.
        leg: name of the target that answered.
        confidence: by the policy's score, higher is more confident; None: the target gave none.
        outputs: the raw outputs, without the batch axis.
        degraded: True for a fallback: the best answer available, not one that the policy accepts.
        final: True if no better answer will follow. False: `refine` continues, or the outbox has the request.
        latency_s: from the call to the answer, seconds.
        id: the request's id in traces, the egress ledger and the outbox, and its idempotency key at endpoints.
    """

    __slots__ = (
        "_costs", "_note", "_outcome", "_plan",
        "confidence", "degraded", "final", "id", "latency_s", "leg", "outputs", "source", "value",
    )  # fmt: skip
    __iter__ = None  # so that `value, confidence = answer` fails
    value: V
    outputs: Any
    leg: str

    def __init__(self, plan: Plan, outcome: Outcome, identity: str, costs: Mapping[int, Spent] | None = None) -> None:
        i, prediction, accepted, _, begun, ended, _ = outcome
        leg = plan.legs[i]  # type: ignore[index]  # an answer is made only where there is one
        self._plan: Plan | _Route | None = plan
        self._outcome: Outcome | None = outcome
        self.id, self._costs = identity, costs
        self.value, sure, self.outputs = prediction  # type: ignore[misc]
        self.confidence: float | None = sure if sure == sure else None  # noqa: PLR0124 - NaN, without an import
        self.source: Source = "edge" if leg.permit is None else "cloud"
        self.leg = leg.name
        self.degraded, self.final = not (accepted or type(outcome) is Left), True
        self.latency_s = ended - begun
        self._note = ""

    @classmethod
    def from_entry(cls, entry: Recorded, source: Source, note: str, identity: str, latency_s: float) -> Answer[V]:
        """Return a new answer from a stored one, such as a cache entry: final, not degraded, and with a trace without steps.

        Args:
            entry: the stored answer.
            source: "cache", "stale", or the entry's own source for a copy.
            note: its reason.
            identity: id of the request that gets the answer.
            latency_s: from the call to the answer, seconds.
        """
        self = cls.__new__(cls)
        self._plan = self._outcome = self._costs = None
        self.id = identity
        self.value, self.confidence, self.outputs, self.leg = entry.value, entry.confidence, entry.outputs, entry.leg
        self.source, self.degraded, self.final, self.latency_s, self._note = source, False, True, latency_s, note
        return self

    def add_note(self, note: str, *, final: bool) -> Answer[V]:
        """Set the note that follows the reason, and the `final` flag, in place; return this answer."""
        self._note, self.final = note, final
        return self

    @property
    def reason(self) -> str:
        """Reason why this answer was given, in one line, such as `edge 0.41 < 0.85 (uncalibrated); cloud 182 ms`."""
        plan, outcome, note = self._plan, self._outcome, self._note
        if type(plan) is _Route:
            text = plan.reason
        elif type(plan) is Plan and outcome is not None:
            text = explain.reason(plan, outcome)
        else:
            return note
        return f"{text}; {note}" if text and note else text or note

    @property
    def reason_code(self) -> str:
        """Reason as one of the few words of `edgeroute.core.reason_text_and_trace_record.CODES`, for counting."""
        plan, outcome = self._plan, self._outcome
        if type(plan) is Plan and outcome is not None:
            return reason_code(plan, outcome)
        return plan.code if type(plan) is _Route else "stale" if self.source == "stale" else "cached"

    @property
    def took(self) -> tuple[Took, ...]:
        """Times of the targets that answered; empty for an answer from the cache, and for one that was copied or pickled."""
        plan, outcome = self._plan, self._outcome
        return took(plan, outcome) if type(plan) is Plan and outcome is not None else ()

    @property
    def truncated(self) -> str:
        """Why a language model's text is incomplete: its `finish_reason`, such as "length", or "cut" for a broken connection.

        Empty if the text is complete.
        """
        outcome = self._outcome
        if outcome is not None and explain.broken(outcome):
            return "cut"
        return explain.truncated(self.outputs)

    @property
    def malformed(self) -> str:
        """Code of the check that the edge's answer failed, such as "schema"; empty: it passed, or none was made."""
        codes = [event.get("check", "") for event in self.trace.get("events", ()) if event["leg"] == self.leg]
        return codes[-1] if codes else ""

    @property
    def edge_sent(self) -> bool | None:
        """True if the cloud that gave this answer was sent the edge's answer (`send_edge`), False if not.

        None: the endpoint takes none, or this is not known.
        """
        outcome, costs = self._outcome, self._costs
        spent = None if outcome is None or outcome.leg is None else (costs or {}).get(outcome.leg)
        return None if spent is None else spent.edge

    def without_values(self) -> Answer[Any]:
        """Return a copy that has only what `trace` needs: no value, no outputs, no exception with its traceback."""
        plan, outcome, costs = self._plan, self._outcome, self._costs
        if outcome is not None:
            if "failed" in [mark[0] for mark in outcome.log]:
                plan, outcome, costs = _Route("", dict(self.trace)), None, None
            else:
                leg, _, accepted, log, begun, ended, _ = outcome
                outcome = new(type(outcome), (leg, None, accepted, log, begun, ended, {}))
        copy: Answer[Any] = Answer.from_entry(self, self.source, self._note, self.id, self.latency_s)
        copy.value = copy.outputs = None
        copy._plan, copy._outcome, copy._costs = plan, outcome, costs
        return copy

    @property
    def trace(self) -> Mapping[str, Any]:
        """Every step with its time, bytes and cost, in JSON types; computed on each access.

        An answer from the cache has no steps.
        """
        plan, outcome = self._plan, self._outcome
        if type(plan) is _Route:
            trace = dict(plan.trace)
        elif type(plan) is Plan and outcome is not None:
            costs = {leg: cost.as_trace() for leg, cost in (self._costs or {}).items()}
            trace = explain.trace(plan, outcome, self.id, costs) | {"reason_code": reason_code(plan, outcome)}
        else:
            return {
                "version": explain.VERSION, "id": self.id, "answered_by": self.source, "leg": self.leg, "reason": self._note,
                "reason_code": self.reason_code, "latency_s": round(self.latency_s, 6),
            }  # fmt: skip
        if self._note:
            trace["note"] = self._note
        return trace

    def as_dict(self, *, outputs: bool = False) -> dict[str, Any]:
        """Return the answer in JSON types: numpy values as Python's, NaN as None, objects that JSON lacks as text.

        Args:
            outputs: with the raw outputs.
        """
        names = (*_FIELDS, "outputs") if outputs else _FIELDS
        return {name: to_json_types(getattr(self, name)) for name in names}

    def keys(self) -> Iterable[str]:
        """Return the keys of `as_dict()`."""
        return _FIELDS

    def __getitem__(self, name: str) -> Any:
        """Return the value of `as_dict()` under a key.

        Raises:
            KeyError: there is no such key.
        """
        if name not in _FIELDS:
            raise KeyError(name)
        return to_json_types(getattr(self, name))

    @classmethod
    def __get_pydantic_core_schema__(cls, source: object, handler: object) -> dict[str, Any]:
        """Return pydantic's schema, which writes an answer as `as_dict()`, so that FastAPI's endpoints may return answers."""
        written = {"type": "function-plain", "function": Answer.as_dict, "return_schema": {"type": "dict"}}
        return {"type": "is-instance", "cls": cls, "serialization": written}

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle the fields with the reason and the trace in place of the plan, which refers to objects of this process."""
        fields = {name: getattr(self, name) for name in (*_FIELDS, "outputs") if name not in {"reason", "malformed"}}
        return _unpickle, (type(self), fields, _Route(self.reason, dict(self.trace), self.reason_code))

    def __repr__(self) -> str:
        sure = "" if self.confidence is None else f", {self.confidence:.2f}"
        marks = f"{', degraded' if self.degraded else ''}{'' if self.final else ', provisional'}"
        return f"<Answer {clean(short.repr(self.value), 100)} from {self.leg}{sure}{marks}: {clean(self.reason, 200)}>"


# Keys of `Answer.as_dict()`.
_FIELDS = ("id", "value", "source", "leg", "confidence", "degraded", "final", "reason", "latency_s", "malformed")


def _unpickle(kind: type[Answer[V]], fields: Mapping[str, Any], route: Plan | _Route | None) -> Answer[V]:
    """Return an answer of this class with these fields and this route, without calling `__init__`."""
    self = kind.__new__(kind)
    self._plan, self._outcome, self._costs, self._note = route, None, None, ""
    for name, value in fields.items():
        setattr(self, name, value)
    return self
