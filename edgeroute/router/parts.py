"""Parts: what takes part in a router's calls beside models and endpoints, from this package or from others."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial, wraps
from typing import TYPE_CHECKING, Any, TypeAlias

from edgeroute.core.walk import new
from edgeroute.errors import PolicyError
from edgeroute.record.instruments import Instruments, RequestBegan, RequestEnded
from edgeroute.system.logs import Failures
from edgeroute.types import Answer

if TYPE_CHECKING:
    from edgeroute.observe.observer import Observer
    from edgeroute.observe.stats import Status
    from edgeroute.router.build import Snapshot
    from edgeroute.router.request import Request
    from edgeroute.router.stages import Proceed, Result, Steps

OWN = "edgeroute."
"""Module prefix of this package's own parts, whose methods are called as they are."""


class Part:
    """Base of all parts. Each method is a no-op unless overridden; a router calls the overridden ones alone.

    Methods run in any thread, an event loop's too, so they must not block; only `around` may, by the steps that it yields. An
    exception from a part of another package is logged, once a minute at most, and affects no answer; only `check` refuses by
    one. A part sends nothing by itself: what leaves the device goes through `proceed`, and so through the egress rules, the
    limits and the ledger.
    """

    name = ""
    """Key of the part in `Stats.parts` and in the state folder; empty: the name of its class."""

    def check(self, snapshot: Snapshot) -> None:
        """Check a policy before it is in force, as the router is made and at each reload.

        Raises:
            PolicyError: the policy cannot be used with this part.
        """

    def opened(self, status: Callable[[], Status | None]) -> None:
        """The router was made. `status` returns its state, as `Router.status` does; None once the router is closed."""

    def around(self, requests: Sequence[Request], proceed: Proceed) -> Steps[list[Result]]:
        """Run all that is inside this stage, as a generator: `results = yield from proceed(requests)`.

        Args:
            requests: one, or the rows of a batch.
            proceed: the rest of the call. With rows left out, it walks the others alone.

        Returns:
            One result per request, in order: an `Answer`, or the exception for the caller.
        """
        return (yield from proceed(requests))

    def began(self, request: Request) -> None:
        """A request begins. A router with a part that has this method, or `around`, takes the longer way through all stages."""

    def left(self, request: Request) -> None:
        """A request that began will not end: its caller was interrupted or cancelled, or closed the stream."""

    def ended(self, request: Request, result: Result) -> None:
        """A request ended with what its caller gets: an `Answer`, or an exception."""

    def changed(self, snapshot: Snapshot) -> None:
        """The facts were looked at again, by which plans are made: loads, latencies, breakers, sensors."""

    def stats(self) -> Mapping[str, Any]:
        """Return figures for `Stats.parts`."""
        return {}

    def dump(self) -> Any:
        """Return the state to store in the state folder, as JSON has it; None: there is nothing to store."""

    def load(self, state: Any) -> None:
        """Take the state that an earlier run stored; called as the router is made, and only if there is one."""

    def close(self) -> None:
        """The router is closed."""


Method: TypeAlias = Callable[..., Any]


class Parts:
    """The parts of one router, and for each event the methods of those that take part in it.

    Attributes:
        all: the parts, the outermost first.

    Raises:
        PolicyError: one is no part, or two have one name.
    """

    def __init__(self, parts: Iterable[Part]) -> None:
        self.all = tuple(parts)
        for part in self.all:
            if not isinstance(part, Part):
                kind = f"the class {part.__name__}" if isinstance(part, type) else type(part).__name__
                raise PolicyError(f"parts= takes objects of subclasses of edgeroute.router.parts.Part, not {kind}")
        names = [name_of(part) for part in self.all]
        if twice := next((name for name in names if names.count(name) > 1), ""):
            raise PolicyError(f"parts: two have the name {twice!r}: give one another `name`")

    def methods(self, event: str) -> tuple[Method, ...]:
        """Return the methods of that name that do something, contained if they are another package's."""
        return tuple(_contained(part, event) for part in self.all if overrides(part, event))

    def named(self, event: str) -> dict[str, Method]:
        """Return the methods by the names of their parts."""
        return {name_of(part): _contained(part, event) for part in self.all if overrides(part, event)}


def name_of(part: Part) -> str:
    """Return the part's name, or that of its class."""
    return part.name or type(part).__name__


def overrides(part: Part, event: str) -> bool:
    """Return True if the part has a method of its own for an event."""
    return getattr(getattr(part, event), "__func__", None) is not getattr(Part, event)


def _contained(part: Part, event: str) -> Method:
    """Return the part's method; another package's one returns None and logs where it raises an exception."""
    method: Method = getattr(part, event)
    if type(part).__module__.startswith(OWN) or event == "check":
        return method
    failures, what = Failures(), f"the part {name_of(part)} at {event}"
    if event == "around":
        return partial(_around, method, partial(failures.log, what, coded=True))

    @wraps(method)
    def contained(*given: Any) -> Any:
        try:
            return method(*given)
        except Exception as e:  # noqa: BLE001 - whatever it is, it affects no answer
            failures.log(what, e, coded=True)
            return None

    return contained


def _around(
    method: Callable[..., Steps[Any]], failed: Callable[[BaseException], object], requests: Sequence[Request], proceed: Proceed
) -> Steps[list[Result]]:
    """Run a part's stage; where it fails, its requests proceed without it, unless they have already.

    Args:
        method: the part's `around`.
        failed: receives what the part raised.
        requests: as for `around`.
        proceed: likewise.
    """
    results: dict[str, Result] = {}
    raised = list[BaseException]()

    def inner(given: Sequence[Request]) -> Steps[list[Result]]:
        try:
            found = yield from proceed(given)
        except BaseException as e:
            raised.append(e)
            raise
        results.update((request.id, result) for request, result in zip(given, found, strict=True))
        return found

    try:
        own = yield from method(requests, inner)
        if isinstance(own, list) and len(own) == len(requests) and all(map(_is_result, own)):
            return own
        failed(TypeError(f"it returned no list of {len(requests)} results"))
    except Exception as e:
        if any(e is one for one in raised):  # of the walk: the caller's
            raise
        failed(e)
    rest = [request for request in requests if request.id not in results]
    if rest:
        yield from inner(rest)
    return [results[request.id] for request in requests]


def _is_result(value: object) -> bool:
    return isinstance(value, Answer | BaseException)


class Followed:
    """Outermost stage: calls the parts' methods as requests begin, end, and are left by their callers."""

    def __init__(self, parts: Parts) -> None:
        self._began, self._left, self._ended = map(parts.methods, ("began", "left", "ended"))

    def around(self, requests: Sequence[Request], proceed: Proceed) -> Steps[list[Result]]:
        """Run the inner stages and report each result."""
        for began in self._began:
            for request in requests:
                began(request)
        try:
            results = yield from proceed(requests)
        except BaseException:
            for left in self._left:
                for request in requests:
                    left(request)
            raise
        for ended in self._ended:
            for request, result in zip(requests, results, strict=True):
                ended(request, result)
        return results


class Instrumented(Part):
    """Part that forwards the ends of requests to the router's instruments."""

    def __init__(self, instruments: Instruments, observer: Observer) -> None:
        self._instruments, self._observer = instruments, observer
        self.opened, self.close = instruments.opened, instruments.close  # type: ignore[method-assign]

    def ended(self, request: Request, result: Result) -> None:
        """Report a request's end, with the last reading of the sensors."""
        answer, error = (result, None) if isinstance(result, Answer) else (None, result)
        observer = self._observer
        read: tuple[Any, ...] = (None, 0.0, None)
        if (read_at := observer.read_at) is not None:
            read = observer.reading, request.begun - read_at, observer.energy.extra_w
        self._instruments.request_ended(new(RequestEnded, (request.id, request.inputs, answer, error, *read, request.batch)))


class InstrumentedFromStart(Instrumented):
    """As `Instrumented`, for instruments of which one follows requests from their beginning."""

    def began(self, request: Request) -> None:
        """Report a request's beginning."""
        self._instruments.request_began(RequestBegan(request.id, request.batch, request.begun))

    def left(self, request: Request) -> None:
        """Report that a request will not end."""
        self._instruments.request_left(request.id)
