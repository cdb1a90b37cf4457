"""What the cloud did not answer in time: sent later from the outbox, or come late, and told to the app either way."""

from __future__ import annotations

import asyncio
import inspect
import logging
from collections.abc import Callable
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError  # its own class before Python 3.11
from functools import partial
from time import monotonic
from typing import TYPE_CHECKING, Any, cast

from edgeroute import system
from edgeroute.cloud.backend import CloudBackend
from edgeroute.cloud.base import Call
from edgeroute.core.egress import Denied, permit
from edgeroute.core.plan import Plan
from edgeroute.core.policy import INF
from edgeroute.core.walk import Done, Event, Failed, Outcome, Prediction
from edgeroute.errors import CloudError, Held, MayNotLeave, PolicyError, Unreachable
from edgeroute.router.request import Route
from edgeroute.stores.outbox import Callbacks, Delivery, Late, Outbox, Waiting
from edgeroute.stores.outbox.inputs import decode_input, encode_input
from edgeroute.system import Workers

if TYPE_CHECKING:
    from edgeroute.cloud.guard import Exchange
    from edgeroute.router.snapshot import Snapshot

log = logging.getLogger("edgeroute")
QUEUED = "queued"


class Postponed:
    """The outbox of a router, and the functions that are told of late answers.

    Args:
        outbox: None: late replies are told of, but nothing is sent later.
        live: gives the policy in force.
        workers: threads.
        note: counts `queued` and `late`.
        keep: takes late answers into the cache; None: there is none.
    """

    def __init__(
        self,
        outbox: Outbox | None,
        live: Callable[[], Snapshot],
        workers: Workers,
        note: Callable[[str], object],
        keep: Callable[[Route, Done], object] | None,
    ) -> None:
        self.outbox, self._live, self._workers, self._note, self._remember = outbox, live, workers, note, keep
        self._closed = False
        self._direct: list[Callable[[Late], object]] = []
        self._delivery: Delivery | None = None
        self._callbacks: Callbacks | None = None
        if outbox is not None:
            self._callbacks = Callbacks(outbox, ordered=outbox.ordered)
            self._delivery = Delivery(
                outbox, self._send, ordered=outbox.ordered, parallel=outbox.parallel, rate_per_s=outbox.rate_per_s
            )
        if self._delivery is not None:
            self._delivery.start()

    @property
    def listening(self) -> bool:
        """Whether anybody wants to know of what is late."""
        return self.outbox is not None or self._remember is not None or bool(self._direct)

    def on_late(self, function: Callable[..., object]) -> None:
        """Has it called with each late answer."""
        if self._callbacks is not None:
            self._callbacks.register(function)
            return
        if inspect.iscoroutinefunction(function):
            raise PolicyError("on_late is called in a thread: a coroutine function cannot be")
        if len(inspect.signature(function).parameters) != 1:
            raise PolicyError("on_late takes f(late); f(late, tx) needs an outbox, whose transaction tx is")
        self._direct.append(function)

    def expect(self, route: Route) -> None:
        """`queue` will be called for it: from now on its late answer waits for what comes of that."""
        route.queued = Future()

    def queue(self, route: Route, outcome: Outcome, x: Any, identity: str) -> str | None:
        """Stores the request to be sent later. -> what the reason says of it; None: sending it again would not help."""
        stored: Future[str] = route.queued or Future()
        waiting = self._wanted(route, outcome, x, identity)
        if not isinstance(waiting, Waiting):
            stored.set_result("")
            return waiting
        left_s = route.until - monotonic()
        if left_s == INF:
            stored.set_result(self._put(waiting))
        else:
            self._workers.submit(lambda: stored.set_result(self._put(waiting)))
        try:
            return stored.result(None if left_s == INF else max(0.0, left_s))
        except FutureTimeoutError:
            return QUEUED  # a disk may be slow, and the deadline is not to wait for it

    def _put(self, waiting: Waiting) -> str:
        assert self.outbox is not None, "offline is queue"
        try:
            put = self.outbox.put(waiting)
        except Exception as e:  # noqa: BLE001 - a full disk, mostly; somebody may be waiting for the answer to this
            log.error("a request could not be queued: %s", e)  # noqa: TRY400 - the error says it all
            return f"not queued: {e}"
        if not put.stored:
            return f"not queued: {put.reason}"
        self._note("queued")
        return QUEUED

    def _wanted(self, route: Route, outcome: Outcome, x: Any, identity: str) -> Waiting | str | None:
        """What is to be stored; or why it is not."""
        found = _who_might(route.plan, outcome)
        if found is None:
            return None
        leg, error = found
        in_flight = error is None and route.late is not None  # else it was cut at the deadline
        runner = cast("CloudBackend", route.live.runners[route.plan.legs[leg].target])
        try:
            waiting = self._waiting(route, leg, runner, x, identity, outcome.prediction)
        except Exception as e:  # noqa: BLE001 - whatever an endpoint or its encode raises: the edge's answer stands all the same
            return f"not queued: {e}"
        if waiting is None:
            return "not queued: an input of this kind cannot be stored"
        if in_flight:
            return waiting._replace(ready_at=system.now() + runner.patience_s)
        return waiting._replace(error="it did not answer in time" if error is None else error)

    def _waiting(
        self, route: Route, leg: int, runner: CloudBackend, x: Any, identity: str, edge: Prediction | None
    ) -> Waiting | None:
        allowed = route.plan.legs[leg].permit
        assert allowed is not None, "only a leg that may leave is queued"
        (x,) = route.live.egress.prepared([x], allowed, runner.where)
        call = runner.encode(x)
        if call is not None:
            form: dict[str, Any] = {
                "kind": "call", "method": call.method, "path": call.path, "headers": list(call.headers), "body": bytes(call.body),
            }  # fmt: skip
        else:
            encoded = encode_input(x)
            if encoded is None:
                return None
            form = {"kind": "input", "headers": [("Content-Type", encoded[0])], "body": encoded[1]}
        return Waiting(
            id=identity,
            target=runner.name,
            data_class=allowed.data_class,
            rule=allowed.rule,
            importance=route.importance,
            provisional=None if edge is None else {"value": edge.value, "confidence": edge.confidence},
            **form,
        )

    def _send(self, entry: Waiting) -> Prediction:
        """Sends one of the outbox, as the rules are now."""
        live = self._live()
        runner = next((r for r in live.clouds if r.name == entry.target), None)
        if runner is None:
            raise PolicyError(f"the policy has no cloud {entry.target!r} any more")
        allowed = permit(live.policy.rules, entry.data_class)
        if isinstance(allowed, Denied):
            raise MayNotLeave(allowed.why)
        try:
            with runner.guard.enter(allowed, entry.id) as exchange:
                return _asked(runner, entry, exchange)
        except Held as e:
            if runner.guard.why():  # it is the cloud, and no limit on this side
                assert self.outbox is not None, "that is where the entry is from"
                e.retry_after_s = self.outbox.part_s(entry.queued_at)
            raise

    def late(self, route: Route, event: Event) -> None:
        """Takes what a leg says that was left to run on past its request's deadline. From any thread."""
        if not self._closed:  # afterwards the outbox still has the request, and the next run asks again
            self._workers.submit(partial(self._late, route, event))

    def _late(self, route: Route, event: Event) -> None:
        try:
            queued = route.queued
            stored = queued is not None and queued.result() == QUEUED
            if type(event) is not Done:
                if stored and self.outbox is not None:
                    self.outbox.ready(route.identity, _text(event.error) if type(event) is Failed else "")
                return
            self._note("late")
            prediction: Prediction = event.answer
            if self._remember is not None:
                self._remember(route, event)
            if self.outbox is not None:
                if stored:
                    self.outbox.answer(route.identity, prediction)
                return
            told = Late(
                id=route.identity, value=prediction.value, confidence=prediction.confidence, outputs=prediction.outputs,
                provisional=None, data_class=route.plan.data_class, target=route.plan.legs[event.leg].name,
                queued_at=system.now() - (event.at - route.until), answered_at=system.now(),
            )  # fmt: skip
            for function in self._direct:
                try:
                    function(told)
                except Exception:  # noqa: PERF203 - each on its own
                    log.exception("a callback for late answers failed at %s", told.id)
        except Exception:
            log.exception("a late answer could not be handed on")

    def wake(self, *, now: bool) -> None:
        """An endpoint is back. now: it was this device that was away."""
        if self._delivery is not None:
            self._delivery.wake(now=now)

    def close(self) -> None:
        """Ends delivery; what is not delivered yet stays in the file."""
        self._closed = True
        for part in (self._delivery, self._callbacks, self.outbox):
            if part is not None:
                part.close()


def _asked(runner: CloudBackend, entry: Waiting, exchange: Exchange) -> Prediction:
    """What the cloud says to one of the outbox."""
    if entry.kind == "call":
        call = Call(entry.method, entry.path, [(name, value) for name, value in entry.headers], entry.body)
        return runner.resend(call, INF, exchange)
    x = decode_input(dict(entry.headers)["Content-Type"], entry.body)
    try:
        if runner.alone_async:
            predictions: list[Prediction] = asyncio.run(runner.run_async([x], INF, exchange))  # type: ignore[misc,arg-type]
            return predictions[0]
        return runner.run([x], INF, None, exchange)[0]
    except OSError as e:  # a function's own: it is away, which is no reason to give up
        if isinstance(e, CloudError):
            raise
        raise Unreachable(str(e)) from e


def _who_might(plan: Plan, outcome: Outcome) -> tuple[int, str | None] | None:
    """The first cloud that may still answer if it is asked again, and how it failed. Empty: it did not; None: it is too late."""
    ended = {i: (what, detail) for what, i, _, detail in outcome.log if what != "start"}
    for i, leg in enumerate(plan.legs):
        if leg.permit is None:
            continue
        what, detail = ended.get(i, ("never begun", None))
        if what != "failed":
            return i, None if what == "timeout" else ""
        if not isinstance(detail, CloudError) or detail.retriable:
            return i, _text(detail)
        if detail.held:
            return i, ""
    return None


def _text(error: object) -> str:
    return str(error) or repr(error)
