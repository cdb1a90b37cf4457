"""The outbox of a router: stores requests that the cloud did not answer, and delivers them when it is back."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable
from concurrent.futures import Future, wait
from functools import partial
from typing import TYPE_CHECKING, Any, cast

from edgeroute import system
from edgeroute.cloud.backend import CloudBackend
from edgeroute.cloud.base import Call
from edgeroute.core.egress import Denied, permit
from edgeroute.core.plan import Plan
from edgeroute.core.policy import INF
from edgeroute.core.texts import told
from edgeroute.core.walk import Outcome, Prediction
from edgeroute.errors import CloudError, Held, MayNotLeave, PolicyError, Unreachable
from edgeroute.router.legs import Walked
from edgeroute.router.request import Request
from edgeroute.stores.outbox import Callbacks, Delivery, Outbox, Waiting
from edgeroute.stores.outbox.inputs import decode_input, encode_input
from edgeroute.system import contained
from edgeroute.types import own_copy

if TYPE_CHECKING:
    from edgeroute.cloud.exchange import Exchange
    from edgeroute.router.snapshot import Snapshot

log = logging.getLogger("edgeroute")


QUEUED = "queued"
"""Note in the reason of a request that is on disk."""
BEING_QUEUED = "being queued"
"""Note in the reason of a request that was not on disk by its deadline. If it does not get there, that is reported."""
CLOSE_S = 5.0
"""How long `close` waits for requests that are being stored, seconds."""


class Storing:
    """Stores a request, in whichever thread it is called; its caller may leave before that is done.

    Args:
        store: stores it, and returns the note for its reason.
        failed: receives the note of a failure that its caller was not told of.
    """

    def __init__(self, store: Callable[[], str], failed: Callable[[str], object]) -> None:
        self._store, self._failed, self._lock = store, failed, threading.Lock()
        self._note: str | None = None
        self._left = False

    def __call__(self) -> str:
        """The note for the reason."""
        note = self._store()
        with self._lock:
            self._note, left = note, self._left
        if left and note != QUEUED:
            self._failed(note)
        return note

    def leave(self) -> str:
        """The note for the reason of a caller that waits no longer."""
        with self._lock:
            self._left = self._note is None
            return self._note or BEING_QUEUED


class OfflineQueue:
    """Stores requests in an outbox, and delivers them when the cloud is back.

    Args:
        outbox: the file.
        snapshot: returns the policy in force.
        note: receives what happens to a request, and its id: `queued`, `not queued` once its answer has said that it is being
            queued, or `damaged`, as its row in the outbox is.
        stays_home: why nothing leaves the device by itself now; empty: it may.
    """

    UNSETTLED = QUEUED, BEING_QUEUED
    """Notes of requests whose answers another one will follow."""

    def __init__(
        self,
        outbox: Outbox,
        snapshot: Callable[[], Snapshot],
        note: Callable[[str, str], object],
        stays_home: Callable[[], str] = lambda: "",
    ) -> None:
        self.outbox, self._snapshot, self._note, self._stays_home = outbox, snapshot, note, stays_home
        self._storing: dict[str, Future[None]] = {}
        """Id of a request being stored -> jobs to run once it is stored."""
        outbox.report_damaged = partial(note, "damaged")
        self.callbacks = Callbacks(outbox, ordered=outbox.ordered)
        self.delivery = Delivery(
            outbox, self.send, ordered=outbox.ordered, parallel=outbox.parallel, rate_per_s=outbox.rate_per_s
        )

    def start(self) -> None:
        """Starts delivery."""
        self.delivery.start()

    @property
    def storing(self) -> int:
        """How many requests are being stored."""
        return len(self._storing)

    def expect(self, identity: str) -> None:
        """Announces that `store` will be called for this id."""
        self._storing[identity] = Future()

    def once_stored(self, identity: str, job: Callable[[], object]) -> None:
        """Runs the job once that request is stored: now, or in the thread that is storing it."""
        storing = self._storing.get(identity)
        if storing is None:
            job()
        else:
            storing.add_done_callback(lambda _: job())

    def store(self, walked: Walked) -> Storing | None:
        """Stores the request once it is called. None: sending it again would not help."""
        request = walked.request
        found = _who_might(request.plan, walked.outcome)
        if found is None:
            self.forget(request.id)
            return None
        try:
            x = (
                request.inputs if request.until == INF else contained(own_copy, request.inputs)
            )  # at the deadline nobody waits for it
        except Exception as e:  # noqa: BLE001 - an input's own way of being copied may raise anything
            self.forget(request.id)
            note = f"not queued: {_text(e)}"
            return Storing(lambda: note, partial(self._failed, request.id))
        return Storing(partial(self._store, walked, x, *found), partial(self._failed, request.id))

    def _failed(self, identity: str, note: str) -> None:
        """Reports a request that is not on disk, though its answer said that it is being queued."""
        log.error("%s was being queued when its deadline came, and is %s", identity, note)
        self._note("not queued", identity)

    def _store(self, walked: Walked, x: Any, leg: int, error: str | None) -> str:
        try:
            return self._put(walked, x, leg, error)
        except KeyboardInterrupt:
            raise
        except BaseException as e:  # noqa: BLE001 - whatever an endpoint or its encode raises: the edge's answer is still returned
            return f"not queued: {_text(e)}"
        finally:
            self.forget(walked.request.id)

    def forget(self, identity: str) -> None:
        """It is stored, or will not be: what is late for it may go on."""
        storing = self._storing.get(identity)
        if storing is not None:
            storing.set_result(None)
            del self._storing[identity]

    def _put(self, walked: Walked, x: Any, leg: int, error: str | None) -> str:
        request, late = walked.request, walked.legs is not None and walked.legs.late is not None
        backend = cast("CloudBackend", request.snapshot.backends[request.plan.legs[leg].target])
        waiting = self._waiting(request, leg, backend, x, walked.outcome.prediction)
        if waiting is None:
            return "not queued: an input of this kind cannot be stored"
        if error is None and late:  # still in flight; otherwise cancelled at the deadline
            waiting = waiting._replace(ready_at=system.now() + backend.patience_s)
        else:
            waiting = waiting._replace(error="it did not answer in time" if error is None else error)
        try:
            put = self.outbox.put(waiting)
        except Exception as e:  # noqa: BLE001 - mostly a full disk; the caller may be waiting for the answer
            log.error("a request could not be queued: %s", e)  # noqa: TRY400 - the error is self-explanatory
            return f"not queued: {_text(e)}"
        if not put.stored:
            return f"not queued: {put.reason}"
        self._note("queued", request.id)
        return QUEUED

    def _waiting(self, request: Request, leg: int, backend: CloudBackend, x: Any, edge: Prediction | None) -> Waiting | None:
        allowed = request.plan.legs[leg].permit
        assert allowed is not None, "only a leg that may leave is queued"
        (x,) = request.snapshot.egress.prepared([x], allowed, backend.where)
        call = backend.encode(x)
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
            id=request.id,
            target=backend.name,
            data_class=allowed.data_class,
            rule=allowed.rule,
            importance=request.importance,
            provisional=None if edge is None else {"value": edge.value, "confidence": edge.confidence},
            **form,
        )

    def send(self, entry: Waiting) -> Prediction:
        """Delivers one entry of the outbox, by the current rules.

        Raises:
            PolicyError, MayNotLeave: it cannot be sent at all.
            CloudError: it was not answered; or nothing leaves the device by itself now, and it goes on waiting.
        """
        if why := self._stays_home():
            raise Held(f"nothing leaves by itself: {why}")
        snapshot = self._snapshot()
        backend = next((b for b in snapshot.clouds if b.name == entry.target), None)
        if backend is None:
            raise PolicyError(f"the policy has no cloud {entry.target!r} any more")
        allowed = permit(snapshot.policy.rules, entry.data_class)
        if isinstance(allowed, Denied):
            raise MayNotLeave(allowed.why)
        try:
            with backend.guard.enter(allowed, entry.id) as exchange:
                return _asked(backend, entry, exchange)
        except Held as e:
            if backend.guard.why():  # the endpoint is down, not a local limit
                e.retry_after_s = self.outbox.part_s(entry.queued_at)
            raise

    def close(self) -> None:
        """Stops delivery; undelivered entries stay in the file, and those that are being stored get there, if that is soon."""
        wait([*self._storing.values()], CLOSE_S)
        for part in (self.delivery, self.callbacks, self.outbox):
            part.close()


def _asked(backend: CloudBackend, entry: Waiting, exchange: Exchange) -> Prediction:
    """The cloud's answer to an outbox entry."""
    if entry.kind == "call":
        call = Call(entry.method, entry.path, [(name, value) for name, value in entry.headers], entry.body)
        return backend.resend(call, INF, exchange)
    x = decode_input(dict(entry.headers)["Content-Type"], entry.body)
    try:
        if backend.alone_async:
            predictions: list[Prediction] = asyncio.run(backend.run_async([x], INF, exchange))  # type: ignore[misc,arg-type]
            return predictions[0]
        return backend.run([x], INF, None, exchange)[0]
    except OSError as e:  # raised by a function: temporary, no reason to give up
        if isinstance(e, CloudError):
            raise
        raise Unreachable(_text(e)) from e


def _who_might(plan: Plan, outcome: Outcome) -> tuple[int, str | None] | None:
    """(first cloud worth a retry, its error): an empty error if it did not fail, None at the deadline. None: no such cloud."""
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
    return told(error) or type(error).__name__
