"""What runs a leg: an input goes in, a prediction comes out. The router sees no more of edges and clouds than this."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, Protocol

from edgeroute.confidence.scores import Reader, Score
from edgeroute.core.flow import Prediction
from edgeroute.core.policy import Side
from edgeroute.errors import PolicyError
from edgeroute.types import Cancel, EdgeModel

if TYPE_CHECKING:
    from edgeroute.cloud.leg import HttpLeg

MANY = 1 << 30
PARALLEL = 4
"""So many runs of one model may be told to stop and go on all the same, before the planner leaves it alone."""


class Runner(Protocol):
    """One target, ready to run."""

    name: str
    side: Side
    stuck: int
    """Runs that were told to stop and have not."""
    parallel: int
    """How many of those make the target busy."""

    @property
    def where(self) -> str:
        """What answers: a file, an address, a function."""

    @property
    def traffic(self) -> tuple[int, int]:
        """Bytes sent and received so far, bodies alone."""

    @property
    def run_async(self) -> Callable[[list[Any], float], Awaitable[list[Prediction]]] | None:
        """`run` on an event loop; None: it needs a thread."""

    def run(self, inputs: list[Any], until: float, cancel: Cancel | None) -> list[Prediction]:
        """Several inputs, by the instant `until` -> a prediction each."""

    def run_one(self, x: Any, until: float, cancel: Cancel | None) -> Prediction:
        """The same for one."""

    def ready(self, until: float) -> None:
        """Raises what stands in the way of running, if anything. Sends no user data."""

    def describe(self) -> str:
        """What there is to know of a target that is ready."""

    def close(self) -> None:
        """Lets go of what it holds; a later run takes it up again."""


class EdgeRunner:
    """A model on the device."""

    side: Side = "edge"
    run_async = None
    traffic = (0, 0)

    def __init__(self, name: str, model: EdgeModel, score: str | Score) -> None:
        self.name, self.model = name, model
        self.where = str(getattr(model, "path", model.name))
        self.reader = Reader(score, labels=model.labels, kind=model.kind)
        self.stuck, self.parallel = 0, getattr(model, "parallel", PARALLEL)
        self._one = getattr(model, "run_one", None) or (lambda x, cancel: model.run([x], cancel))

    def run(self, inputs: list[Any], until: float, cancel: Cancel | None) -> list[Prediction]:  # noqa: ARG002 - the flow keeps the time
        """Runs them as one batch."""
        return self.reader.many(self.model.run(inputs, cancel), len(inputs))

    def run_one(self, x: Any, until: float, cancel: Cancel | None) -> Prediction:  # noqa: ARG002
        """Runs one, by the model's own short way if it has one."""
        return self.reader.one(self._one(x, cancel))

    def ready(self, until: float) -> None:  # noqa: ARG002
        """Loads the model."""
        if hasattr(self.model, "load"):
            self.model.load()

    def describe(self) -> str:
        """Where it runs, and whether that is what was asked for."""
        downgraded = getattr(self.model, "downgraded", None)
        return f"{self.where} is ready" + (f" ({downgraded})" if downgraded else "")

    def close(self) -> None:
        """Frees the model."""
        if hasattr(self.model, "close"):
            self.model.close()


class HttpRunner:
    """An endpoint over HTTP. The client is imported and made at the first call."""

    side: Side = "cloud"

    def __init__(self, name: str, endpoint: Any, score: str | Score, labels: tuple[str, ...] | None) -> None:
        self.name, self.endpoint, self.where = name, endpoint, str(endpoint.where)
        self.reader = Reader(score, labels=endpoint.labels or labels, kind=endpoint.kind)
        self.stuck, self.parallel = 0, MANY
        self._leg: HttpLeg | None = None

    @property
    def leg(self) -> HttpLeg:
        """What carries the calls."""
        if self._leg is None:
            from edgeroute.cloud.leg import HttpLeg

            self._leg = HttpLeg(self.endpoint)
        return self._leg

    @property
    def traffic(self) -> tuple[int, int]:
        """Bytes sent and received so far, bodies alone, retries included."""
        return (0, 0) if self._leg is None else (self._leg.sent, self._leg.received)

    def run(self, inputs: list[Any], until: float, cancel: Cancel | None) -> list[Prediction]:
        """Asks for all of them in one talk."""
        return self.reader.many(self.leg.run(self.endpoint.talk(inputs), until, cancel), len(inputs))

    def run_one(self, x: Any, until: float, cancel: Cancel | None) -> Prediction:
        """Asks for one."""
        return self.run([x], until, cancel)[0]

    async def run_async(self, inputs: list[Any], until: float) -> list[Prediction]:
        """Asks for all of them in one talk, on the event loop."""
        return self.reader.many(await self.leg.run_async(self.endpoint.talk(inputs), until), len(inputs))

    def ready(self, until: float) -> None:
        """Pings the endpoint."""
        self.leg.run(self.endpoint.ping(), until)

    def describe(self) -> str:
        """Where it is, with a warning where nobody checks who answers there."""
        unchecked = self.endpoint.address.https and self.endpoint.address.verify is False
        return f"{self.where} is ready" + (", its certificate UNCHECKED (verify = false)" if unchecked else "")

    def close(self) -> None:
        """Closes the connections."""
        if self._leg is not None:
            self._leg.close()

    async def aclose(self) -> None:
        """Closes the connections, those of asyncio too."""
        if self._leg is not None:
            await self._leg.aclose()


class FunctionRunner:
    """Any callable as the cloud: `f(x)` gives a value, `(value, confidence)` or logits; it may be a coroutine function."""

    side: Side = "cloud"
    traffic = (0, 0)

    def __init__(self, name: str, function: Callable[[Any], Any], score: str | Score, labels: tuple[str, ...] | None) -> None:
        self.name, self.function = name, function
        self.where = f"the function {getattr(function, '__name__', type(function).__name__)!r}"
        self.reader = Reader(score, labels=labels)
        self.stuck, self.parallel = 0, MANY
        call = getattr(function, "__call__", None)  # noqa: B004 - an object's own, which may be a coroutine function
        is_async = inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(call)
        self.run_async = self._run_async if is_async else None

    def run(self, inputs: list[Any], until: float, cancel: Cancel | None) -> list[Prediction]:  # noqa: ARG002 - cannot be stopped
        """Calls it for each."""
        self.ready(until)
        return self.reader.many([_answer(self.function(x)) for x in inputs], len(inputs))

    def run_one(self, x: Any, until: float, cancel: Cancel | None) -> Prediction:
        """Calls it for one."""
        return self.run([x], until, cancel)[0]

    async def _run_async(self, inputs: list[Any], until: float) -> list[Prediction]:  # noqa: ARG002
        return self.reader.many([_answer(await self.function(x)) for x in inputs], len(inputs))

    def ready(self, until: float) -> None:  # noqa: ARG002
        """Nothing is known of a function but whether it can be called from here."""
        if self.run_async is not None:
            raise PolicyError(f"{self.where} is a coroutine function: use AsyncRouter")

    def describe(self) -> str:
        """That it will be called."""
        return f"{self.where} is called with the input"

    def close(self) -> None:
        """Holds nothing."""


def _answer(result: Any) -> Any:
    """A value alone is an answer without a confidence; what looks like logits is left to the reader."""
    return result if isinstance(result, tuple | list) or hasattr(result, "dtype") else (result, None)
