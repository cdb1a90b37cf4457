"""Public types: answers, tensor specifications, cancellation, and the model and endpoint protocols."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, Generic, Literal, NamedTuple, Protocol

from edgeroute.core import explain
from edgeroute.core.explain import Took, reason_code, took
from edgeroute.core.plan import Plan
from edgeroute.core.policy import Side
from edgeroute.core.walk import Left, Outcome, Prediction, new
from edgeroute.core.words import clean
from edgeroute.system.logs import Failures
from edgeroute.system.process import plain, short

if TYPE_CHECKING:
    from typing_extensions import TypeVar

    V = TypeVar("V", default=Any)
else:
    from typing import TypeVar

    V = TypeVar("V")

__all__ = ["Answer", "Cancel", "EdgeModel", "Endpoint", "Prediction", "Recorded", "Spent", "StopToken", "TensorSpec"]

log = logging.getLogger("edgeroute")
Source = Literal["edge", "cloud", "cache", "stale"]


class TensorSpec(NamedTuple):
    """Name, dtype and shape of a model's input or output."""

    name: str
    dtype: str
    """numpy dtype name: float32, uint8, ..."""
    shape: tuple[int, ...]
    """-1 for a dynamic axis."""


class StopToken:
    """Cancellation token of a leg, passed to the model. Calling it requests a stop; the run may complete all the same.

    `on_ask(f)` registers a function called once on the request, from the requesting thread, or at once if it came before.
    """

    __slots__ = ("_asked", "_event", "_hook", "_lock")

    def __init__(self) -> None:
        self._asked = False
        self._event: threading.Event | None = None  # made by the first one who waits, which few do
        self._lock = threading.RLock()
        self._hook: Callable[[], object] | None = None

    def __call__(self) -> None:
        """Requests the stop."""
        with self._lock:
            self._asked = True
            hook = self._hook
            if self._event is not None:
                self._event.set()
        if hook is not None:
            _quietly(hook)

    @property
    def asked(self) -> bool:
        """Whether a stop was requested."""
        return self._asked

    def wait(self, seconds: float) -> bool:
        """Waits up to `seconds` for a stop request -> whether there was one."""
        with self._lock:
            if self._asked:
                return True
            event = self._event = self._event or threading.Event()
        return event.wait(seconds)

    def on_ask(self, hook: Callable[[], object] | None) -> None:
        """Sets the function that a stop request calls; None: none."""
        with self._lock:
            self._hook = hook
            asked = self._asked
        if asked and hook is not None:
            _quietly(hook)


def _quietly(hook: Callable[[], object]) -> None:
    """Calls it, where an answer may be there already: what it raises is logged."""
    try:
        hook()
    except KeyboardInterrupt:
        raise
    except BaseException as e:
        log.error("a function for a stop request failed; no answer is touched by it", exc_info=e)  # noqa: TRY400 - SystemExit, too


Cancel = StopToken
"""Former name of `StopToken`."""


class EdgeModel(Protocol):
    """Interface of an edge model (structural): `name` and `run`.

    Every other member that edgeroute reads of a model is one of `edgeroute.EdgeMembers`, and optional. A model is thread-safe,
    unless its `parallel` limits how many of its runs go at a time. Where `run` is a coroutine function, so are `run_one` and
    `stream` if they exist, and only `AsyncRouter` takes the model: it awaits them, and a run is stopped by cancelling it.
    """

    @property
    def name(self) -> str:
        """Its name in answers, traces and messages."""

    def run(self, inputs: list[Any], cancel: StopToken | None = None) -> Any:
        """Runs a batch -> outputs, an array (or name -> array) whose first axis is that of the inputs, or a list of predictions.

        Args:
            inputs: one or more, each without the batch axis. They are the caller's: never written to.
            cancel: a stop is requested by it; the run may then raise anything but `BadInput`, or go on to its end.

        Raises:
            BadInput: an input does not fit the model: nothing is sent. `except ValueError` catches it, too: let it pass first.
        """


class Backend(Protocol):
    """One target, ready to run: a model on the device, or an endpoint in the cloud."""

    name: str
    side: Side
    stopping: set[object]
    """Runs that were told to stop and have not."""
    max_abandoned: int
    """How many of those make the target busy."""
    failures: Failures
    """Logs what its function raises."""

    @property
    def abandoned(self) -> int:
        """How many runs were told to stop and have not."""

    @property
    def where(self) -> str:
        """What answers: a file, an address, a function."""

    @property
    def traffic(self) -> tuple[int, int]:
        """Bytes sent and received so far, bodies alone."""

    def ready(self, until: float) -> None:
        """Raises what stands in the way of running, if anything. Sends no user data."""

    def describe(self) -> str:
        """What there is to know of a target that is ready."""

    def fingerprint(self, of: Callable[[Any], str]) -> str:
        """What its answers depend on, in short; `of` takes the fingerprint of a file or a callable."""

    def identity(self, of: Callable[[Any], str]) -> str:
        """All that decides its answer to an input, for cache keys; `of` as in `fingerprint`."""

    def close(self) -> None:
        """Lets go of what it holds; a later run takes it up again."""


class Endpoint(Protocol):
    """Interface of a cloud endpoint; for HTTP see `edgeroute.cloud.endpoint.HttpEndpoint`."""

    name: str
    labels: tuple[Any, ...] | None
    kind: str | None


class Spent(NamedTuple):
    """What one exchange with an endpoint has cost so far."""

    sent_bytes: int
    received_bytes: int
    usd: float
    joules: float
    codec: str = ""
    """Which rung of a ladder of codecs the inputs were sent by; empty: there is no ladder."""
    edge: bool | None = None
    """Whether the edge's answers went along, to all inputs; None: the endpoint takes none."""

    def told(self) -> dict[str, Any]:
        """As traces have it."""
        left_out = {name for name, known in (("codec", self.codec), ("edge", self.edge is not None)) if not known}
        return {name: value for name, value in self._asdict().items() if name not in left_out}


class Recorded(Protocol):
    """An earlier answer, as the cache has it."""

    @property
    def value(self) -> Any:
        """The answer."""

    @property
    def confidence(self) -> float | None:
        """By the policy's score; None: there was none."""

    @property
    def outputs(self) -> Any:
        """The raw outputs."""

    @property
    def leg(self) -> str:
        """The name of the target that gave it."""


class _Told(NamedTuple):
    """What an answer that was copied or pickled says of its route, instead of the plan and the log."""

    reason: str
    trace: dict[str, Any]
    code: str = "first"


class Answer(Generic[V]):
    """The router's answer to one request; `Answer[str]` in annotations, if the values are texts.

    It can be copied and pickled, and is a mapping of JSON values: `dict(answer)` is `answer.as_dict()`.

    Attributes:
        value: the label, or whatever the model or endpoint returns.
        source: "edge", "cloud", "cache", or "stale" for an expired cache entry.
        leg: name of the target that answered.
        confidence: by the policy's score, higher is more confident; None: none.
        outputs: the raw outputs, without the batch axis.
        degraded: a fallback: the best answer available, not the one the policy requires.
        final: no better answer will follow. False: provisional: `refine` continues, or the outbox has the request.
        latency_s: from the call to the answer, seconds.
        id: the request's id in traces, the egress ledger and the outbox, and its idempotency key at endpoints.
    """

    __slots__ = (
        "_costs", "_note", "_outcome", "_plan",
        "confidence", "degraded", "final", "id", "latency_s", "leg", "outputs", "source", "value",
    )  # fmt: skip
    __iter__ = None
    """Not a sequence: `value, confidence = answer` fails."""
    value: V

    def __init__(self, plan: Plan, outcome: Outcome, identity: str, costs: Mapping[int, Spent] | None = None) -> None:
        i, prediction, accepted, _, begun, ended, _ = outcome
        leg = plan.legs[i]  # type: ignore[index]  # an answer is made only where there is one
        self._plan: Plan | _Told | None = plan
        self._outcome: Outcome | None = outcome
        self.id, self._costs = identity, costs
        self.value, sure, self.outputs = prediction  # type: ignore[misc]
        self.confidence = sure if sure == sure else None  # noqa: PLR0124 - NaN, without an import
        self.source: Source = "edge" if leg.permit is None else "cloud"
        self.leg = leg.name
        self.degraded, self.final = not (accepted or type(outcome) is Left), True
        self.latency_s = ended - begun
        self._note = ""

    @classmethod
    def recalled(cls, entry: Recorded, source: Source, note: str, identity: str, latency_s: float) -> Answer[V]:
        """An answer that was given before."""
        self = cls.__new__(cls)
        self._plan = self._outcome = self._costs = None
        self.id = identity
        self.value, self.confidence, self.outputs, self.leg = entry.value, entry.confidence, entry.outputs, entry.leg
        self.source, self.degraded, self.final, self.latency_s, self._note = source, False, True, latency_s, note
        return self

    def noted(self, note: str, *, final: bool) -> Answer[V]:
        """This answer with a note appended to its reason, and its `final` flag set."""
        self._note, self.final = note, final
        return self

    @property
    def reason(self) -> str:
        """Why this answer was given, in one line."""
        plan, outcome, note = self._plan, self._outcome, self._note
        if type(plan) is _Told:
            told = plan.reason
        elif type(plan) is Plan and outcome is not None:
            told = explain.reason(plan, outcome)
        else:
            return note
        return f"{told}; {note}" if told and note else told or note

    @property
    def reason_code(self) -> str:
        """The reason as one of the few words of `edgeroute.core.explain.CODES`, for counting."""
        plan, outcome = self._plan, self._outcome
        if type(plan) is Plan and outcome is not None:
            return reason_code(plan, outcome)
        return plan.code if type(plan) is _Told else "stale" if self.source == "stale" else "cached"

    @property
    def took(self) -> tuple[Took, ...]:
        """Times of the targets that answered; none of an answer of the cache, or one that was copied or pickled."""
        plan, outcome = self._plan, self._outcome
        return took(plan, outcome) if type(plan) is Plan and outcome is not None else ()

    @property
    def truncated(self) -> str:
        """Why a language model's text has no end: by its `finish_reason`, as "length"; "cut": the connection. Empty: it has."""
        outcome = self._outcome
        if outcome is not None and explain.broken(outcome):
            return "cut"
        return explain.truncated(self.outputs)

    @property
    def edge_sent(self) -> bool | None:
        """Whether the cloud that gave it was sent the edge's answer (`send_edge`); None: it takes none, or this is not known."""
        outcome, costs = self._outcome, self._costs
        spent = None if outcome is None or outcome.leg is None else (costs or {}).get(outcome.leg)
        return None if spent is None else spent.edge

    def light(self) -> Answer[Any]:
        """A copy that keeps what `trace` needs alone: no value, no outputs, no exception with its traceback."""
        plan, outcome, costs = self._plan, self._outcome, self._costs
        if outcome is not None:
            if "failed" in [mark[0] for mark in outcome.log]:
                plan, outcome, costs = _Told("", dict(self.trace)), None, None
            else:
                leg, _, accepted, log, begun, ended, _ = outcome
                outcome = new(type(outcome), (leg, None, accepted, log, begun, ended, {}))
        made: Answer[Any] = Answer.recalled(self, self.source, self._note, self.id, self.latency_s)
        made.value = made.outputs = None
        return made._routed(plan, outcome, costs)

    def _routed(self, plan: Plan | _Told | None, outcome: Outcome | None, costs: Mapping[int, Spent] | None) -> Answer[V]:
        self._plan, self._outcome, self._costs = plan, outcome, costs
        return self

    @property
    def trace(self) -> Mapping[str, Any]:
        """Every step with its time, bytes and cost, JSON-serialisable."""
        plan, outcome = self._plan, self._outcome
        if type(plan) is _Told:
            told = dict(plan.trace)
        elif type(plan) is Plan and outcome is not None:
            costs = {leg: cost.told() for leg, cost in (self._costs or {}).items()}
            told = explain.trace(plan, outcome, self.id, costs) | {"reason_code": reason_code(plan, outcome)}
        else:
            return {
                "version": explain.VERSION, "id": self.id, "answered_by": self.source, "leg": self.leg, "reason": self._note,
                "reason_code": self.reason_code, "latency_s": round(self.latency_s, 6),
            }  # fmt: skip
        if self._note:
            told["note"] = self._note
        return told

    def as_dict(self, *, outputs: bool = False) -> dict[str, Any]:
        """The answer in JSON types: numpy values as Python's, NaN as None, what JSON lacks as text.

        Args:
            outputs: with the raw outputs.
        """
        names = (*_FIELDS, "outputs") if outputs else _FIELDS
        return {name: plain(getattr(self, name)) for name in names}

    def keys(self) -> Iterable[str]:
        """The keys of `as_dict()`."""
        return _FIELDS

    def __getitem__(self, name: str) -> Any:
        """The value of `as_dict()` under a key."""
        if name not in _FIELDS:
            raise KeyError(name)
        return plain(getattr(self, name))

    @classmethod
    def __get_pydantic_core_schema__(cls, source: object, handler: object) -> dict[str, Any]:
        """How pydantic writes it, so that FastAPI's endpoints may return answers: as `as_dict()` has it."""
        written = {"type": "function-plain", "function": Answer.as_dict, "return_schema": {"type": "dict"}}
        return {"type": "is-instance", "cls": cls, "serialization": written}

    def __reduce__(self) -> tuple[Any, ...]:
        """The route as `reason` and `trace`: a plan refers to more than another process can have."""
        fields = {name: getattr(self, name) for name in (*_FIELDS, "outputs") if name != "reason"}
        return _told_again, (type(self), fields, _Told(self.reason, dict(self.trace), self.reason_code))

    def __repr__(self) -> str:
        sure = "" if self.confidence is None else f", {self.confidence:.2f}"
        marks = f"{', degraded' if self.degraded else ''}{'' if self.final else ', provisional'}"
        return f"<Answer {clean(short.repr(self.value), 100)} from {self.leg}{sure}{marks}: {clean(self.reason, 200)}>"


_FIELDS = ("id", "value", "source", "leg", "confidence", "degraded", "final", "reason", "latency_s")


def _told_again(kind: type[Answer[V]], fields: Mapping[str, Any], told: Plan | _Told | None) -> Answer[V]:
    self = kind.__new__(kind)
    self._plan, self._outcome, self._costs, self._note = told, None, None, ""
    for name, value in fields.items():
        setattr(self, name, value)
    return self
