"""Router: the router for threads."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from functools import partial
from pathlib import Path
from queue import Empty, SimpleQueue
from threading import TIMEOUT_MAX
from time import monotonic, sleep
from types import TracebackType
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from edgeroute.confidence.scores import Score
from edgeroute.core.policy import INF, CloudOrder, Mode, NoConfidence, Offline, PolicyMode, Uncalibrated
from edgeroute.core.spending import Limits
from edgeroute.core.walk import Event, Outcome, Start, Wait, walk
from edgeroute.router.assemble import assemble
from edgeroute.router.conversation import Conversation
from edgeroute.router.drivers import Deferrable, Send, Stop, blocking
from edgeroute.router.engine import Engine
from edgeroute.router.legs import LegExecutor, run_first
from edgeroute.router.live.updates import Live
from edgeroute.router.preflight import Check, Decision
from edgeroute.router.request import Request, length
from edgeroute.router.session import Session
from edgeroute.router.stages import Block, Join, Pause, Result, Step, Steps, Walk, answer_of
from edgeroute.types import Answer, V

if TYPE_CHECKING:
    from typing_extensions import Self

    from edgeroute.cloud.guard import Egress
    from edgeroute.confidence.certificate import Certificate
    from edgeroute.core.rules import Rule
    from edgeroute.observe.sensors import Sensors
    from edgeroute.record.instruments import Instrument
    from edgeroute.record.trace import Trace
    from edgeroute.router.arguments import Cloud, Edge
    from edgeroute.router.views import View
    from edgeroute.stores.cache import Cache
    from edgeroute.stores.outbox import Outbox
    from edgeroute.trials.drift import Audit
    from edgeroute.trials.settings import AB

T = TypeVar("T")


class Router(Live, Generic[V]):
    """Runs a model on the edge, and defers to the cloud when the edge's confidence is below the threshold.

    Thread-safe, and usable in a forked child. Close it, or use it in a `with`.

    Args:
        edge: a path (its suffix selects the runtime), an `EdgeModel`, or any callable `f(x) -> (value, confidence)` or
            logits; several as a list, the smallest first.
        cloud: the URL of a model (`.../v2/models/NAME`), an endpoint (`OpenInference`, `PlainJson`), any callable, a
            list of them in order of trying, or None: then nothing can leave.
        threshold: confidence from which an edge answer is accepted: a number, or a `Certificate` from
            `edgeroute.confidence.calibrate`, whose guarantee the reasons then quote; one, or one per edge model.
        mode: prefer_edge, only_edge, prefer_cloud or only_cloud; or shadow: as only_cloud, and of the audited requests (without
            `audit=`: of all) it is recorded what the edge would have answered.
        deadline: seconds over all legs; at the deadline the best available answer is returned.
        hedge_after: hedging: also call the next target after so many seconds; 0 is a race; "p90": once the edge takes longer
            than 90 % of its runs; "auto": as late as the deadline allows, from the measured latencies. None: never. Not on a
            metered link, while an endpoint is down, or once half of a limit is spent.
        first_token: in streams, a target without a first piece after so many seconds counts as failed. None: no limit.
        score: msp, margin, entropy, energy, quantile, or a function of one input's raw outputs, such as a `Learned`.
        no_confidence: how an answer without a confidence, or with NaN, is treated: "defer" or "accept".
        offline: if the cloud was needed and did not answer: "edge" returns the edge's answer, marked degraded; "queue" does
            too, and sends the request later; "stale" returns a stale cache entry; "raise" raises NoAnswer.
        order: of several clouds: as "listed", or the "fastest" so far first.
        egress: an `Egress`: which data classes may leave, consent, redaction.
        limits: a `Limits`: maximum spending per day, hour and minute.
        metered: whether the link is metered (bytes cost money), or a function that returns it.
        audit: an `Audit`: the share of answers that are compared with the cloud's in the background, and what an alarm does.
        candidate: an edge model to take the place of `edge`: it runs in the background on audited requests. Needs `audit=`.
        ab: an `AB`: another edge model for a share of the requests or devices.
        uncalibrated: a threshold without a certificate that is valid for these models, this score and this age: "tell"
            reports it in reasons and `check`; "error" rejects such a router.
        certificate_max_age: seconds; None: no limit.
        cache: a `Cache` of answers.
        outbox: an `Outbox`; with offline="queue" and a `state` there is one by default.
        rules: a list of `Rule`: what changes while the device is short of battery or memory, hot, or busy.
        sensors: returns a `Reading`, called in the background; None: `DeviceSensors()`.
        sensors_every: seconds between two readings, 1 to 60; None: `every_s` of the sensors, or 10.
        state: the folder for state that outlives the process: latencies, spending, the egress ledger, the outbox.
        views: what of an input each side takes: "edge" or "cloud", or a target's name -> a key of the input, or a function of it.
        instruments: further receivers of the events of requests, attempts, breakers and the outbox; see `Instrument`.
        trace: receiver of each answer's trace: a function, the path of a file of JSON lines, or a `Trace`.

    Raises:
        PolicyError: the arguments are invalid together.
        ModelMissing: there is no file at the edge's path.
    """

    def __init__(
        self,
        edge: Edge[V] | Sequence[Edge[V]] | None = None,
        cloud: Cloud[V] | Sequence[Cloud[V]] | None = None,
        *,
        threshold: float | Certificate | Sequence[float | Certificate] | None = None,
        mode: PolicyMode = "prefer_edge",
        deadline: float | None = None,
        hedge_after: float | str | None = None,
        first_token: float | None = None,
        score: str | Score = "msp",
        no_confidence: NoConfidence = "defer",
        offline: Offline = "edge",
        order: CloudOrder = "listed",
        egress: Egress | None = None,
        limits: Limits | None = None,
        metered: bool | Callable[[], bool] = False,
        cache: Cache | None = None,
        outbox: Outbox | None = None,
        audit: Audit | None = None,
        candidate: Edge[V] | None = None,
        ab: AB | None = None,
        rules: Sequence[Rule] | None = None,
        sensors: Sensors | None = None,
        sensors_every: float | None = None,
        uncalibrated: Uncalibrated = "tell",
        certificate_max_age: float | None = None,
        state: str | Path | None = None,
        views: Mapping[str, View] | None = None,
        trace: Trace | Callable[[Mapping[str, Any]], object] | str | Path | None = None,
        instruments: Sequence[Instrument] = (),
    ) -> None:
        self.engine = assemble(
            lambda engine, steps: engine.cloud_threads.submit(lambda: _whole(pump(steps, engine))),  # they may hang on a cloud
            edge=edge, cloud=cloud, threshold=threshold, mode=mode, deadline=deadline, hedge_after=hedge_after,
            first_token=first_token, score=score, no_confidence=no_confidence, offline=offline, order=order, egress=egress,
            limits=limits, metered=metered, cache=cache, outbox=outbox, audit=audit, candidate=candidate, ab=ab,
            rules=rules, sensors=sensors, sensors_every=sensors_every, uncalibrated=uncalibrated,
            certificate_max_age=certificate_max_age, state=state, views=views, trace=trace, instruments=instruments,
        )  # fmt: skip

    def infer(
        self,
        x: Any,
        *,
        mode: Mode | None = None,
        deadline: float | None = None,
        data_class: str | None = None,
        importance: float = 0.0,
    ) -> Answer[V]:
        """Answers one input: an array without batch axis, name -> array, or whatever the callables take.

        Args:
            x: the input.
            mode: overrides the policy's.
            deadline: seconds from now; overrides the policy's.
            data_class: the kind of data; egress rules decide whether it may leave.
            importance: if it is queued and the outbox is full, the least important entry is dropped first.

        Raises:
            BadInput: the edge model cannot take it, or it can be read only once: an iterator, an open file.
            NoAnswer: no leg answered, or the cloud was needed and did not, and the policy's offline rule is "raise".
            CloudError, ModelError: in its place if one leg alone was asked and failed, its own error, or what a function raised.
            PolicyError: an argument is invalid.
        """
        engine = self.engine
        request = engine.request(x, mode, deadline, data_class, importance)
        if engine.plain:
            result = _plain(engine, request)
            if engine.tell is not None:
                engine.tell(request, result)
        else:
            (result,) = _whole(pump(engine.steps([request]), engine))
        if type(result) is Answer:
            return result
        return answer_of(result)

    def refine(
        self,
        x: Any,
        *,
        mode: Mode | None = None,
        deadline: float | None = None,
        data_class: str | None = None,
    ) -> Generator[Answer[V], None, None]:
        """Yields the edge's answer as soon as possible, and then the final one; `answer.final` distinguishes them.

        If the edge is confident enough, its answer is final and the only one. Otherwise the cloud is called while the caller has
        the provisional answer, and the final one is the cloud's, or the edge's again if the cloud failed or the
        deadline came. Closing the generator early cancels what is in progress.

        Raises:
            BadInput: the edge model cannot take it.
            NoAnswer, CloudError, ModelError, PolicyError: as `infer`.
        """
        return self._refined(x, mode, deadline, data_class)

    def _refined(
        self,
        x: Any,
        mode: Mode | None,
        deadline: float | None,
        data_class: str | None,
        ring: Callable[[], object] | None = None,
    ) -> Generator[Any, None, None]:
        """The answers; with `ring` also each `Wait`, as `drivers.blocking.stream` has it."""
        engine = self.engine
        request = engine.request(x, mode, deadline, data_class, shows="provisional")
        (result,) = yield from pump(engine.steps([request]), engine, ring)
        yield answer_of(result)

    def _shown(self, request: Request) -> Generator[Any, None, list[Result]]:
        return pump(self.engine.steps([request]), self.engine)

    def infer_many(
        self,
        batch: Sequence[Any],
        *,
        mode: Mode | None = None,
        deadline: float | None = None,
        data_class: str | None = None,
    ) -> list[Answer[V]]:
        """Answers several inputs, in order.

        The edge runs them as one batch, and those below the threshold go to the cloud in one request.

        Raises:
            BadInput: the edge model cannot take one of them.
            NoAnswer, CloudError, ModelError: as `infer`, for the first input without an answer; the others were answered and
                recorded all the same.
            PolicyError: as `infer`.
        """
        if not length(batch):
            return []
        engine = self.engine
        return [answer_of(r) for r in _whole(pump(engine.steps(engine.rows(batch, mode, deadline, data_class)), engine))]

    def conversation(self, system: str | None = None) -> Conversation:
        """A conversation that keeps its messages: `talk.infer("Hello")`. Once a turn may not leave, all later ones stay."""
        return Conversation(self, system)

    def session(self) -> Session:
        """A stream of inputs, for models that keep a state: `with router.session() as s: s.infer(chunk)`."""
        return Session(self)

    def decide(
        self,
        x: Any,
        *,
        mode: Mode | None = None,
        deadline: float | None = None,
        data_class: str | None = None,
    ) -> Decision:
        """Explains the route that this input would take. Runs the edge; sends nothing.

        Raises:
            BadInput: the edge model cannot take it.
            PolicyError: as `infer`.
        """
        return self.engine.decide(x, mode, deadline, data_class)

    def check(self, *, timeout: float = 5.0) -> Check:
        """Loads the models, pings the endpoints, and reports what may leave, where to, and what is missing.

        Args:
            timeout: seconds for each endpoint.
        """
        return self.engine.check(timeout)

    def _executed(self, steps: Steps[T]) -> T:
        return _whole(pump(steps, self.engine))

    def close(self) -> None:
        """Stops threads and connections. Never raises."""
        self._close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def _plain(engine: Engine, request: Request) -> Result:
    """`infer` without optional stages: walk and record directly."""
    auditor = engine.auditor
    drawn = None if auditor is None else auditor.arrives()
    first: Any = run_first(request)
    if type(first) is Outcome:
        engine.record(request, first, None, drawn)
        return Answer(request.plan, first, request.id)
    legs, steps = engine.legs([request], first), walk(request.plan, request.begun)
    outcome = (
        blocking.drive_inline(steps, legs.run, first) if request.plan.sequential else blocking.drive(steps, partial(_begin, legs))
    )
    return engine.finish(request, outcome, legs, drawn)


def _begin(legs: LegExecutor, start: Start, send: Send) -> Stop | Event | Deferrable:
    """Begins a leg in a thread; a call that keeps its time by itself may run here, which spares two handovers and a copy."""
    if legs.keeps_time(start):
        return Deferrable(start.leg, legs.until, partial(legs.run, start), partial(legs.begin, start, send))
    return legs.begin(start, send)


def pump(steps: Steps[T], engine: Engine, ring: Callable[[], object] | None = None) -> Generator[Any, None, T]:
    """Executes the steps of a call in the caller's thread; yields what the caller is shown, and returns the steps' result."""
    value: Any = None
    move: Callable[[Any], Step] = steps.send
    try:
        while True:
            step = move(value)
            try:
                value, move = (yield from _taken(step, engine, ring)), steps.send
            except BaseException as e:  # noqa: BLE001 - thrown into the stages, most of which let it pass
                value, move = e, steps.throw
    except StopIteration as end:
        return end.value  # type: ignore[no-any-return]


def _taken(step: Step, engine: Engine, ring: Callable[[], object] | None) -> Generator[Any, None, Any]:
    if type(step) is Walk:
        legs = step.legs
        if step.show is None and legs.plan.sequential:
            return blocking.drive_inline(step.walk, legs.run)
        shown = blocking.stream(step.walk, legs.begin_stream if step.streams else partial(_begin, legs), ring)
        try:
            while True:
                emit = next(shown)
                yield emit if type(emit) is Wait else None if step.show is None else step.show(emit)
        except StopIteration as end:
            return end.value
        finally:
            shown.close()
    if type(step) is Join:
        return step.flight.wait(step.timeout_s)
    if type(step) is Pause:
        return sleep(step.seconds) if step.seconds else None  # threads take turns by themselves
    assert type(step) is Block, "there is no other step"
    return _blocked(step, engine)


def _blocked(step: Block, engine: Engine) -> Any:
    """Executes a `Block`, with a deadline in another thread; here if it is needed and too much waits for one."""
    done: SimpleQueue[Any] = SimpleQueue()
    submit = engine.local_threads.submit_later if step.needed else engine.local_threads.submit
    if step.until == INF or not submit(lambda: done.put(step.call())):
        return step.call() if step.until == INF or step.needed else step.late
    try:
        return done.get(timeout=min(max(0.0, step.until - monotonic()), TIMEOUT_MAX))
    except Empty:
        return step.late


def _whole(shown: Generator[Any, None, T]) -> T:
    """The result of a pump that shows nothing."""
    try:
        while True:
            next(shown)
    except StopIteration as end:
        return end.value  # type: ignore[no-any-return]
