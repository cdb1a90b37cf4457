"""Public types: answers, tensor specifications, cancellation, and the model and endpoint protocols."""

from __future__ import annotations

import logging
import threading
from array import array
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple, Protocol

from edgeroute.core import explain
from edgeroute.core.plan import Plan
from edgeroute.core.policy import Side
from edgeroute.core.walk import Outcome, Prediction

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

    __slots__ = ("_event", "_hook", "_lock")

    def __init__(self) -> None:
        self._event = threading.Event()
        self._lock = threading.RLock()
        self._hook: Callable[[], object] | None = None

    def __call__(self) -> None:
        """Requests the stop."""
        with self._lock:
            self._event.set()
            hook = self._hook
        if hook is not None:
            _quietly(hook)

    @property
    def asked(self) -> bool:
        """Whether a stop was requested."""
        return self._event.is_set()

    def wait(self, seconds: float) -> bool:
        """Waits up to `seconds` for a stop request -> whether there was one."""
        return self._event.wait(seconds)

    def on_ask(self, hook: Callable[[], object] | None) -> None:
        """Sets the function that a stop request calls; None: none."""
        with self._lock:
            self._hook = hook
            asked = self._event.is_set()
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
    """Interface of an edge model (structural). It must be thread-safe."""

    name: str
    labels: tuple[Any, ...] | None
    """Class index -> value; None: the value is the index, or the label that the model gives."""
    kind: str | None
    """What the outputs are, one of `edgeroute.confidence.KINDS`; None: read by their form."""

    def run(self, inputs: list[Any], cancel: StopToken | None = None) -> Any:
        """Runs a batch -> outputs, an array (or name -> array) whose first axis is that of the inputs.

        Raises:
            BadInput: an input does not fit the model.
        """


class Backend(Protocol):
    """One target, ready to run: a model on the device, or an endpoint in the cloud."""

    name: str
    side: Side
    stopping: set[object]
    """Runs that were told to stop and have not."""
    max_abandoned: int
    """How many of those make the target busy."""

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


def own_copy(x: Any) -> Any:
    """The input as a copy that its owner cannot change any more.

    Arrays, buffers and what else has `dtype` (tables: `dtypes`) and `copy`, `clone` (tensors) or Pillow's `copy` are copied, and
    containers with what is in them. Any other object is taken as it is.
    """
    kind = type(x)
    if kind in _IMMUTABLE:
        return x
    if isinstance(x, Mapping):
        parts = {name: own_copy(part) for name, part in x.items()}
        return parts if kind is dict else _rebuilt(x, parts)
    if isinstance(x, tuple):
        items = [own_copy(part) for part in x]
        return kind(*items) if hasattr(x, "_fields") else tuple(items)
    if isinstance(x, list):
        return [own_copy(part) for part in x]
    if isinstance(x, bytearray | array):
        return x[:]
    if isinstance(x, memoryview):
        return _copied_view(x)
    if hasattr(kind, "from_buffer_copy"):  # ctypes' own
        return kind.from_buffer_copy(x)
    copy = getattr(x, "clone", None) or getattr(x, "copy", None)
    if copy is not None and (hasattr(x, "dtype") or hasattr(x, "dtypes") or hasattr(x, "getpixel")):
        return copy()
    return x


def _copied_view(x: memoryview) -> memoryview:
    """With its format and shape: without them it is another input."""
    try:
        whole: Any = memoryview(bytearray(x.tobytes()))
        return whole.cast(x.format, x.shape)  # type: ignore[no-any-return]
    except (TypeError, ValueError):  # a format or a shape that cannot be cast to
        import numpy as np

        copied: Any = np.array(x)
        return memoryview(copied)


def _rebuilt(x: Mapping[Any, Any], parts: dict[Any, Any]) -> Any:
    try:
        return type(x)(parts)  # type: ignore[call-arg]  # as mappings are made; if not, a dict has the same in it
    except Exception:  # noqa: BLE001
        return parts


_IMMUTABLE = frozenset({type(None), bool, int, float, complex, str, bytes})


class Endpoint(Protocol):
    """Interface of a cloud endpoint; for HTTP see `edgeroute.cloud.base.HttpEndpoint`."""

    name: str
    labels: tuple[Any, ...] | None
    kind: str | None


class Spent(NamedTuple):
    """What one exchange with an endpoint has cost so far."""

    sent_bytes: int
    received_bytes: int
    usd: float
    joules: float


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


class Answer:
    """The router's answer to one request.

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

    def __init__(self, plan: Plan, outcome: Outcome, identity: str, costs: Mapping[int, Spent] | None = None) -> None:
        i, prediction, accepted, _, begun, ended, _ = outcome
        leg = plan.legs[i]  # type: ignore[index]  # an answer is made only where there is one
        self._plan: Plan | None = plan
        self._outcome: Outcome | None = outcome
        self.id, self._costs = identity, costs
        self.value, self.confidence, self.outputs = prediction  # type: ignore[misc]
        self.source: Source = "edge" if leg.permit is None else "cloud"
        self.leg = leg.name
        self.degraded, self.final = not accepted, True
        self.latency_s = ended - begun
        self._note = ""

    @classmethod
    def recalled(cls, entry: Recorded, source: Source, note: str, identity: str, latency_s: float) -> Answer:
        """An answer that was given before."""
        self = cls.__new__(cls)
        self._plan = self._outcome = self._costs = None
        self.id = identity
        self.value, self.confidence, self.outputs, self.leg = entry.value, entry.confidence, entry.outputs, entry.leg
        self.source, self.degraded, self.final, self.latency_s, self._note = source, False, True, latency_s, note
        return self

    def noted(self, note: str, *, final: bool) -> Answer:
        """This answer with a note appended to its reason, and its `final` flag set."""
        self._note, self.final = note, final
        return self

    @property
    def reason(self) -> str:
        """Why this answer was given, in one line."""
        if self._plan is None or self._outcome is None:
            return self._note
        told = explain.reason(self._plan, self._outcome)
        return f"{told}; {self._note}" if self._note else told

    @property
    def trace(self) -> Mapping[str, Any]:
        """Every step with its time, bytes and cost, JSON-serialisable."""
        if self._plan is None or self._outcome is None:
            return {
                "version": explain.VERSION, "id": self.id, "answered_by": self.source, "leg": self.leg, "reason": self._note,
                "latency_s": round(self.latency_s, 6),
            }  # fmt: skip
        costs = {leg: cost._asdict() for leg, cost in (self._costs or {}).items()}
        told = explain.trace(self._plan, self._outcome, self.id, costs)
        if self._note:
            told["note"] = self._note
        return told

    def __repr__(self) -> str:
        sure = "" if self.confidence is None else f", {self.confidence:.2f}"
        marks = f"{', degraded' if self.degraded else ''}{'' if self.final else ', provisional'}"
        return f"<Answer {self.value!r} from {self.leg}{sure}{marks}: {self.reason}>"
