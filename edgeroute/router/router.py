"""The router for threads."""

from __future__ import annotations

import logging
from collections.abc import Generator, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any

from edgeroute.core.batch import walk_many
from edgeroute.core.plan import Plan
from edgeroute.core.policy import Mode
from edgeroute.core.stream import walk_stream
from edgeroute.core.walk import walk
from edgeroute.errors import EdgerouteError
from edgeroute.router.drivers import blocking, inline
from edgeroute.router.engine import Routing
from edgeroute.router.preflight import Check, Decision
from edgeroute.router.request import Route
from edgeroute.router.streams import Stream
from edgeroute.types import Answer

if TYPE_CHECKING:
    from typing_extensions import Self

log = logging.getLogger("edgeroute")


class Router(Routing):
    """Runs a model on the edge, and asks the cloud where the edge is not sure enough.

    Thread-safe, and usable in a forked child. Close it, or use it in a `with`.

    Args:
        edge: a path (its suffix picks the runtime), an `EdgeModel`, or any callable `f(x) -> (value, confidence)` or
            logits; several as a list, the smallest first.
        cloud: the URL of a model (`.../v2/models/NAME`), an endpoint (`OpenInference`, `PlainJson`), any callable, a
            list of them in order of trying, or None: then nothing can leave.
        threshold: confidence from which an edge answer is accepted: a number, or a `Certificate` from
            `edgeroute.confidence.calibrate`, whose promise the reasons then quote; one, or one for each edge model.
        mode: prefer_edge, only_edge, prefer_cloud or only_cloud.
        deadline: seconds over all legs; at the deadline the best answer there is stands.
        hedge_after: ask the next target too once this many seconds have passed; 0 is a race; "p90": once the edge takes longer
            than 90 % of its runs; "auto": as late as the deadline allows, from the latencies measured. None: never. Not on a
            metered link, with an endpoint away, or with half of a limit spent.
        first_token: in streams, a target that has not begun after so many seconds counts as failed. None: no limit.
        score: msp, margin, entropy, energy, quantile, or a function of one input's raw outputs, such as a `Learned`.
        no_confidence: what an answer without a confidence, or with NaN, means: "defer" or "accept".
        offline: when the cloud was needed and did not answer: "edge" gives the edge's answer, marked degraded; "queue" does,
            and sends the request later; "stale" gives what the cache has past its time; "raise" raises NoAnswer.
        order: of several clouds, which is asked first: "listed", or the "fastest" so far.
        egress: an `Egress`: which data classes may leave, consent, redaction.
        limits: a `Limits`: what may be spent in a day, an hour, a minute.
        metered: whether bytes cost money now, or a function that tells.
        audit: an `Audit`: the share of answers that are compared with the cloud's in the background, and what an alarm does.
        uncalibrated: a threshold without a certificate that holds for these models, this score and this age: "tell" has the
            reasons and `check` say so; "error" is for those who want no such router.
        certificate_max_age: seconds; None: no limit.
        cache: a `Cache` of answers.
        outbox: an `Outbox`; with offline="queue" and a `state` there is one anyway.
        saver: a `Saver`: another mode for when the battery is low or the device is hot; a call's own mode goes before it.
        sensors: a function that gives a `Reading` of battery and temperature, called in the background every 10 seconds at most,
            while requests come; None: what Linux says.
        state: a folder for what outlives the process: latencies, what was spent, the egress ledger, the outbox.
        trace: where each answer's trace goes: a function, the path of a file of JSON lines, or a `Trace`.

    Raises:
        PolicyError: these do not go together.
        ModelMissing: there is no file at the edge's path.
    """

    def infer(
        self,
        x: Any,
        *,
        mode: Mode | None = None,
        deadline: float | None = None,
        data_class: str | None = None,
        importance: float = 0.0,
    ) -> Answer:
        """Answers one input: an array without batch axis, name -> array, or whatever the callables take.

        Args:
            x: the input.
            mode: instead of the policy's.
            deadline: seconds from now, instead of the policy's.
            data_class: what kind of data it is; the egress rules say whether that may leave.
            importance: if it is queued and the outbox is full, what is least important is dropped first.

        Raises:
            BadInput: the edge model cannot take it.
            NoAnswer: no leg answered, or the cloud was needed and away, and the policy says raise.
        """
        plan, route, begun = self._begin(x, mode, deadline, data_class)
        if self._special or importance:
            self._prepare(route, importance)
            if self._recall is not None:
                return self._cached(plan, route, begun)
        return self._walk(plan, route, begun)

    def _walk(self, plan: Plan, route: Route, begun: float) -> Answer:
        if plan.sequential:
            return self._end(plan, inline.drive(walk(plan, begun), route.run), route)
        return self._end(plan, blocking.drive(walk(plan, begun, False, route.late is not None), route.begin), route)

    def _cached(self, plan: Plan, route: Route, begun: float) -> Answer:
        answer = self._known(route, begun)
        if answer is not None:
            return answer
        flight = route.flight
        if flight is not None and not flight.leads:
            leader = flight.wait(self._patience_s(route, begun))
            if leader is not None:
                return self._shared(leader, route, begun)
        answer = None
        try:
            answer = self._walk(plan, route, begun)
        finally:
            self._keep(route, answer)
        return answer

    def _renew(self, stale: Route) -> None:
        def again() -> None:
            answer = None
            try:
                plan, route, begun = self._again(stale)
                answer = self._walk(plan, route, begun)
            except EdgerouteError as e:
                log.info("what the cache has past its time could not be renewed: %s", e)
            finally:
                self._keep(stale, answer)

        self._workers.submit(again)

    def refine(
        self, x: Any, *, mode: Mode | None = None, deadline: float | None = None, data_class: str | None = None
    ) -> Generator[Answer, None, None]:
        """Yields the edge's answer as soon as it is there, and then the final one: `answer.final` tells which.

        Where the edge is sure enough, its answer is final and the only one. Otherwise the cloud is asked while the caller has
        the provisional answer, and the final one is the cloud's, or the edge's once more where the cloud failed or the
        deadline came. Closing the generator early stops what is under way.

        Raises:
            BadInput: the edge model cannot take it.
            NoAnswer: as `infer`.
        """
        plan, route, begun = self._begin(x, mode, deadline, data_class)
        if self._special:
            self._prepare(route, 0.0)
            if self._recall is not None and (answer := self._known(route, begun)) is not None:
                yield answer
                return
        answer = shown = None
        steps = blocking.stream(walk(plan, begun, True, route.late is not None), route.begin)
        try:
            while True:
                shown = self._provisional(plan, next(steps), route, begun)
                yield shown
        except StopIteration as end:
            answer = self._end(plan, end.value, route, shown=shown)
        finally:
            steps.close()
            if self._recall is not None:
                self._keep(route, answer)
        yield answer

    def stream(
        self,
        x: Any,
        *,
        mode: Mode | None = None,
        deadline: float | None = None,
        first_token: float | None = None,
        data_class: str | None = None,
    ) -> Stream:
        """The answer in pieces: `with router.stream(x) as stream: for piece in stream: ...`; then `stream.answer` is the whole.

        A callable that is a generator function gives pieces, and returns its confidence, if it has one; any other target
        gives one piece. What has a threshold is judged whole before a piece of it is shown; anything else is shown as it
        comes. Once a piece was shown, no other target continues: if the one that spoke fails, the answer is degraded.

        Args:
            x: the input.
            mode: instead of the policy's.
            deadline: seconds from now, instead of the policy's.
            first_token: seconds in which a target has to begin, or the next is asked; instead of the policy's.
            data_class: what kind of data it is.
        """
        return Stream(self._pieces(x, mode, deadline, first_token, data_class))

    def _pieces(
        self, x: Any, mode: Mode | None, deadline: float | None, first_token: float | None, data_class: str | None
    ) -> Generator[Any, None, Answer]:
        plan, route, begun = self._begin(x, mode, deadline, data_class)
        steps = blocking.stream(walk_stream(plan, begun, self._first_s(first_token)), route.begin_stream)
        try:
            while True:
                yield next(steps).prediction.value
        except StopIteration as end:
            return self._end(plan, end.value, route)
        finally:
            steps.close()

    def infer_many(
        self, batch: Sequence[Any], *, mode: Mode | None = None, deadline: float | None = None, data_class: str | None = None
    ) -> list[Answer]:
        """Answers several inputs, in their order.

        The edge runs them as one batch, and those it is not sure of go to the cloud in one request.

        Raises:
            BadInput: the edge model cannot take one of them.
            NoAnswer: as `infer`, for the first input that has none.
        """
        if not len(batch):
            return []
        plan, route, begun = self._begin(batch, mode, deadline, data_class, True)
        found, rows = self._known_rows(route, begun)
        if rows:
            steps = walk_many(plan, len(rows), begun)
            outcomes = inline.drive(steps, route.run) if plan.sequential else blocking.drive(steps, route.begin)
            self._end_rows(plan, outcomes, route, rows, found)
        return found

    def decide(
        self, x: Any, *, mode: Mode | None = None, deadline: float | None = None, data_class: str | None = None
    ) -> Decision:
        """The route that this input would take, and why. Runs the edge; sends nothing.

        Raises:
            BadInput: the edge model cannot take it.
        """
        return self._decide(x, mode, deadline, data_class)

    def check(self, *, timeout: float = 5.0) -> Check:
        """Loads the models, pings the endpoints, and says what may leave, where to, and what is missing.

        Args:
            timeout: seconds for each endpoint.
        """
        return self._check(timeout)

    def close(self) -> None:
        """Ends threads and connections."""
        self._shut()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()
