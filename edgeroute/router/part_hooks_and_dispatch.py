"""Base class of a router's parts (`Part`), and `Parts`, which has for each event the methods that they override.

Parts take part in calls by their methods; `Parts` is no container of a router's components, which are attributes of its engine.
Exceptions of other packages' parts are logged, and calls go on without them. `Followed`, `Instrumented`, `State` are edgeroute's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial, wraps
from typing import TYPE_CHECKING, Any, TypeAlias

from edgeroute.core.walk import new
from edgeroute.errors import PolicyError
from edgeroute.record.instrument_interface import Instruments, RequestBegan, RequestEnded
from edgeroute.router.leg_execution import Walked
from edgeroute.router.request import Request
from edgeroute.router.steps_and_composed_stages import Proceed, Result, Steps
from edgeroute.system.sanitised_logs_and_contained_errors import Failures
from edgeroute.types import Answer

if TYPE_CHECKING:
    from edgeroute.cloud.http_backend import CloudBackend
    from edgeroute.observe.plan_facts_energy_rules import Observer
    from edgeroute.observe.stats_and_status_types import Status
    from edgeroute.record.checkpoint import Checkpoint
    from edgeroute.router.policy_snapshot import Snapshot
    from edgeroute.stores.json_lines_and_process_locks import Journal
    from edgeroute.trials.audits_and_drift_alarms import Compared


class Part:
    """Base of all parts. Each method is a no-op unless overridden; a router calls the overridden ones alone.

    Methods run in any thread, an event loop's too, so they must not block; only `around` may, by the steps that it yields. An
    exception from a part of another package is logged, once a minute at most, and affects no answer; only `check` refuses by
    one. A part sends nothing by itself: what leaves the device goes through `proceed`, and so through the egress rules, the
    limits and the ledger.
    """

    name = ""  # key of the part in `Stats.parts` and in the state folder; empty: the name of its class

    def check(self, snapshot: Snapshot) -> None:
        """Check a policy before it is in force, as the router is made and at each reload.

        Raises:
            PolicyError: the policy cannot be used with this part.
        """

    def choose(self, snapshot: Snapshot, identity: str, x: Any) -> tuple[Snapshot, str]:
        """Return the policy of a request, and the name of the cloud on trial that it asks; for this package's own parts.

        Args:
            snapshot: the policy in force.
            identity: id of the request, or of the one whose arm it shares.
            x: the input.
        """
        raise NotImplementedError

    def opened(self, status: Callable[[], Status | None]) -> None:
        """Handle that the router was made.

        `status` returns its state, as `Router.status` does; None once the router is closed.
        """

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
        """Handle that a request begins.

        A router with a part that overrides this, or `around`, uses the slower path through all stages.
        """

    def left(self, request: Request) -> None:
        """Handle that a request will not end: its caller was interrupted or cancelled, or closed the stream."""

    def ended(self, request: Request, result: Result) -> None:
        """Handle that a request ended with an `Answer`, or an exception, for its caller."""

    def walked(self, walks: Sequence[Walked]) -> None:
        """Handle that a request, or all rows of a batch, were walked and counted; their callers have no answer yet."""

    def compared(self, comparison: Compared) -> None:
        """Handle that an audit has compared an edge's answer. A lock is held: return at once."""

    def changed(self, snapshot: Snapshot) -> None:
        """Handle that the facts behind plans were updated: loads, latencies, breakers, sensors."""

    def stats(self) -> Mapping[str, Any]:
        """Return figures for `Stats.parts`."""
        return {}

    def check_lines(self) -> Sequence[str]:
        """Return lines for `Router.check`; `! ` begins a problem. For this package's own parts."""
        return ()

    def dump(self) -> Any:
        """Return the state to store in the state folder, as JSON has it; None: there is nothing to store."""

    def load(self, state: Any) -> None:
        """Restore the state that an earlier run stored; called when the router is made, and only if there is one."""

    def closing(self) -> None:
        """Handle that the router begins to close: its threads still run."""

    def close(self) -> None:
        """Handle that the router is closed."""


Method: TypeAlias = Callable[..., Any]


class Parts:
    """Parts of one router, and for each event the methods of those that take part in it.

    Attributes:
        all: the parts, the outermost first.

    Raises:
        PolicyError: an object is no part, or two parts have one name.
    """

    def __init__(self, parts: Iterable[Part]) -> None:
        self.all = tuple(parts)
        for part in self.all:
            if not isinstance(part, Part):
                kind = f"the class {part.__name__}" if isinstance(part, type) else type(part).__name__
                raise PolicyError(f"parts= takes objects of subclasses of edgeroute.Part, not {kind}")
        names = [name_of(part) for part in self.all]
        if twice := next((name for name in names if names.count(name) > 1), ""):
            raise PolicyError(f"parts: two have the name {twice!r}: give one another `name`")

    def methods(self, event: str) -> tuple[Method, ...]:
        """Return the methods of the parts that override that event.

        Those of other packages' parts log exceptions in place of raising them.

        Raises:
            PolicyError: another package's part has a method `choose`.
        """
        parts = [part for part in self.all if overrides(part, event)]
        if event == "choose" and (other := next((part for part in parts if not own(part)), None)):
            raise PolicyError(f"the part {name_of(other)} has a method choose, which decides what is sent: no other package may")
        return tuple(_contained_method(part, event) for part in parts)

    def named(self, event: str) -> dict[str, Method]:
        """Return part's name -> overridden method for an event, of other packages' parts."""
        return {name_of(part): _contained_method(part, event) for part in self.all if overrides(part, event) and not own(part)}

    def figures(self) -> dict[str, Any]:
        """Return fields of `Stats`: those of this package's parts, and as `parts` the figures of all others.

        Of one name in the fields the last part's counts.
        """
        fields: dict[str, Any] = {"parts": {name: stats() or {} for name, stats in self.named("stats").items()}}
        for part in filter(own, self.all):
            fields |= part.stats()
        return fields

    def states(self) -> dict[str, Method]:
        """Return name in the state folder -> each part's `dump`, which returns its state; `part:NAME` for other packages'."""
        mine = {name_of(part): part.dump for part in self.all if own(part) and overrides(part, "dump")}
        return mine | {f"part:{name}": dump for name, dump in self.named("dump").items()}


def name_of(part: Part) -> str:
    """Return the part's name, or that of its class."""
    return part.name or type(part).__name__


def own(part: Part) -> bool:
    """Return True if the part is of this package, and no tool that makes calls of its own: its methods are called directly."""
    return type(part).__module__.startswith("edgeroute.") and not hasattr(part, "attach")


def overrides(part: Part, event: str) -> bool:
    """Return True if the part overrides the method for an event."""
    return getattr(getattr(part, event), "__func__", None) is not getattr(Part, event)


def _contained_method(part: Part, event: str) -> Method:
    """Return the part's method. Another package's logs its exceptions, at most one line a minute; but `check` raises.

    After an exception it returns None; after one of `around` the requests go on without the part.
    """
    method: Method = getattr(part, event)
    if own(part) or event == "check":
        return method
    failures, what = Failures(), f"the part {name_of(part)} at {event}"
    if event == "around":
        return partial(_around, method, partial(failures.log, what, coded=True))

    @wraps(method)
    def contained(*arguments: Any) -> Any:
        try:
            return method(*arguments)
        except Exception as e:  # noqa: BLE001 - whatever it is, it affects no answer
            failures.log(what, e, coded=True)
            return None

    return contained


def _around(
    method: Callable[..., Steps[Any]], failed: Callable[[BaseException], object], requests: Sequence[Request], proceed: Proceed
) -> Steps[list[Result]]:
    """Run a part's stage. If it fails, which is logged, its requests proceed without it, unless they did already.

    Errors of the walk itself are raised. A result of another form counts as a failure.

    Args:
        method: the part's `around`.
        failed: called with the part's exception.
        requests: as for `around`.
        proceed: as for `around`.
    """
    results: dict[str, Result] = {}
    raised = list[BaseException]()

    def inner(given: Sequence[Request]) -> Steps[list[Result]]:
        try:
            inner_results = yield from proceed(given)
        except BaseException as e:
            raised.append(e)
            raise
        results.update((request.id, result) for request, result in zip(given, inner_results, strict=True))
        return inner_results

    try:
        outer = yield from method(requests, inner)
        if isinstance(outer, list) and len(outer) == len(requests) and all(isinstance(r, Answer | BaseException) for r in outer):
            return outer
        failed(TypeError(f"it returned no list of {len(requests)} results"))
    except Exception as e:
        if any(e is walk_error for walk_error in raised):  # of the walk: the caller's
            raise
        failed(e)
    rest = [request for request in requests if request.id not in results]
    if rest:
        yield from inner(rest)
    return [results[request.id] for request in requests]


class Followed:
    """Outermost stage: calls the parts' methods as requests begin, end, and are left by their callers."""

    def __init__(self, parts: Parts) -> None:
        self._began, self._left, self._ended = map(parts.methods, ("began", "left", "ended"))

    def around(self, requests: Sequence[Request], proceed: Proceed) -> Steps[list[Result]]:
        """Tell the parts that each request begins, run the inner stages, tell the parts each result, and return the results.

        An exception, or a caller that leaves, is told as `left` in place of `ended`, and raised.
        """
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
        """Report a request's answer or exception to the instruments, with the last reading of the sensors, and its age.

        The age is that at the request's beginning.
        """
        answer, error = (result, None) if isinstance(result, Answer) else (None, result)
        observer = self._observer
        read: tuple[Any, ...] = (None, 0.0, None)
        if (read_at := observer.read_at) is not None:
            read = observer.reading, request.begun - read_at, observer.energy.extra_w
        origin = None if (origin_of := self._instruments.origin) is None else origin_of(request.snapshot)
        ended = new(RequestEnded, (request.id, request.inputs, answer, error, *read, request.batch, origin))
        self._instruments.request_ended(ended)


class InstrumentedFromStart(Instrumented):
    """Part that also forwards the beginnings of requests, for instruments of which one follows requests from there."""

    def began(self, request: Request) -> None:
        """Report a request's beginning."""
        self._instruments.request_began(RequestBegan(request.id, request.batch, request.begun))

    def left(self, request: Request) -> None:
        """Report that a request will not end."""
        self._instruments.request_left(request.id)


class State(Part):
    """Part that stores the state that outlives the process: the state file and the egress ledger."""

    def __init__(self, checkpoint: Checkpoint, ledger: Journal, clouds: Callable[[], Iterable[CloudBackend]]) -> None:
        self._checkpoint, self._ledger, self._clouds = checkpoint, ledger, clouds

    def changed(self, snapshot: Snapshot) -> None:
        """Have the state written soon."""
        self._checkpoint.note(snapshot.clouds)

    def close(self) -> None:
        """Close the ledger, store everything, and wait until it is written."""
        self._ledger.close()
        self._checkpoint.close(self._clouds())
