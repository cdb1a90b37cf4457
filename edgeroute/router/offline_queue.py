"""Outbox of a router: stores requests that the cloud did not answer, after consent and redaction, and delivers them later.

Late answers go to the application's callback. `Storing` waits for the disk no longer than the call may.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, wait
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, cast

from edgeroute.core.error_codes_and_texts import failure_text
from edgeroute.core.plan import Plan
from edgeroute.core.policy_egress_and_options import INF, UNCLASSIFIED, Denied, permit
from edgeroute.core.walk import Outcome, Prediction
from edgeroute.errors import BadInput, CloudError, Held, MayNotLeave, PolicyError, Unreachable
from edgeroute.http.messages_addresses_and_secrets import Call
from edgeroute.stores.outbox import Callbacks, Delivery, Outbox, Put, Waiting
from edgeroute.stores.serialisation import decode_input, encode_input
from edgeroute.system import wall_clock
from edgeroute.system.contained_calls_and_tasks import call_contained
from edgeroute.system.input_copies import copy_input
from edgeroute.system.json_codec_and_short_repr import json_loads
from edgeroute.system.late_imports_and_plugins import import_late
from edgeroute.system.sanitised_logs_and_contained_errors import log
from edgeroute.system.signal_safe_locks import SafeLock
from edgeroute.system.thread_pool_and_workers import ThreadPool
from edgeroute.types import Escalated

if TYPE_CHECKING:
    from edgeroute.cloud.attempt_accounting_and_turns import Exchange
    from edgeroute.cloud.http_backend import CloudBackend
    from edgeroute.router.leg_execution import LegExecutor, Walked
    from edgeroute.router.policy_snapshot import Snapshot
    from edgeroute.router.request import Request


WAITING = "waiting"  # note in the reason of a request that is on disk, in the outbox
BEING_STORED = "being stored"  # note in the reason of a request that was not on disk by its deadline; a later failure is reported
NOT_STORED = "not stored"  # note in the reason of a request that cannot be stored; the cause follows after a colon
TOGETHER = 64  # maximum rows of a batch stored in one transaction
REDACTED = "Redacted-Data"  # header of an entry, which is not sent: its input was redacted by a function
MASKED = "Masked-Data"  # header of an entry, which is not sent: the data that its placeholders stand for
EDGE = "Edge-Answer"  # header of a stored input with the edge's answer to send along
MOST_WAITING = 1000  # number of requests without a thread from which on a call that would not wait for its own is not stored
MOST_THREADS = 64  # maximum number of threads that store requests
CLOSE_S = 5.0  # maximum seconds that `close` waits for requests that are being stored


class Storing:
    """Storing of a call's requests, done by the thread that calls this object; the call's caller may leave earlier.

    Args:
        ids: ids of the requests.
        notes: note for the reason of each request that is not to be stored; None: to be stored.
        store: stores the others, and yields the index of each with its note.
        failed: called with id and note of a failure after the caller has left.
    """

    def __init__(
        self, ids: Sequence[str], notes: Sequence[str | None], store: Iterable[tuple[int, str]],
        failed: Callable[[str, str], object]
    ) -> None:  # fmt: skip
        self._ids, self._notes, self._store, self._failed = ids, list(notes), store, failed
        self._lock, self._left = SafeLock(), False

    @property
    def pending(self) -> bool:
        """True if a request is to be stored."""
        return None in self._notes

    def __call__(self) -> list[str]:
        """Store the requests, blocking, and return the notes for their reasons, in order.

        Failures that come after the caller has left are reported instead.
        """
        for i, note in self._store:
            with self._lock:
                self._notes[i], left = note, self._left
            if left and note != WAITING:
                self._failed(self._ids[i], note)
        return self._current_notes()

    def leave(self) -> list[str]:
        """Return the notes so far, for a caller that waits no longer.

        The storing goes on, and reports its failures from now on.
        """
        with self._lock:
            self._left = True
            return self._current_notes()

    def _current_notes(self) -> list[str]:
        """Return the notes; of requests not yet stored, `BEING_STORED`."""
        return [BEING_STORED if note is None else note for note in self._notes]


class _Job(NamedTuple):
    """Request to store."""

    row: int
    walked: Walked
    x: Any
    provisional: Mapping[str, Any] | None  # value and confidence of the answer that the caller got
    leg: int
    error: str | None

    @property
    def id(self) -> str:
        """Id of the request."""
        return self.walked.request.id


class Owner(Protocol):
    """Parts of a router that the outbox needs."""

    snapshot: Snapshot

    def note(self, what: str, identity: str) -> None:
        """Count and report an event (`queued`, `damaged`, ...) of a request."""

    def stays_on_device(self, *, read: bool = False) -> str:
        """Return the reason why nothing leaves the device by itself now; empty: it may."""


class OfflineQueue:
    """Storing of requests in an outbox within their deadline, and their delivery, by the rules then in force, in threads.

    Args:
        outbox: the file.
        router: owner of the policy in force. Its `note` gets the events of a request: `queued`; `not queued`, after its answer
            promised otherwise; `damaged`, of a row in the outbox.

    Attributes:
        storing: id of a request being stored -> future to which jobs for the time after are attached.
    """

    UNSETTLED = WAITING, BEING_STORED  # notes of requests that get a late answer

    def __init__(self, outbox: Outbox, router: Owner) -> None:
        self.outbox, self._router = outbox, router
        self.storing: dict[str, Future[None]] = {}
        self._refusal = ""  # reason of a closed queue to store nothing
        outbox.report_damaged = partial(router.note, "damaged")
        # Of its own: a file that is locked takes no thread from calls.
        self.threads = ThreadPool("edgeroute-storing", MOST_THREADS)
        self.callbacks, self.delivery = Callbacks(outbox), Delivery(outbox, self.send)

    def expect(self, identity: str) -> None:
        """Announce that `store` will be called for this id. Late answers for it wait until then."""
        self.storing[identity] = Future()

    def once_stored(self, identity: str, job: Callable[[], object]) -> None:
        """Run the job once that request is stored, or given up: now, or later in the thread that is storing it."""
        storing = self.storing.get(identity)
        if storing is None:
            job()
        else:
            storing.add_done_callback(lambda _: job())

    def store(self, walks: Sequence[Walked], until: float = INF) -> Storing:
        """Copy the requests that may succeed later, and return the object that stores them when called, with a note for each.

        A request whose cloud would fail again (no note), or whose input cannot be copied, is not stored, nor one that comes when
        `MOST_WAITING` wait for a locked file; its late answers are released. Copies only if the caller leaves at `until`.
        """
        ids, notes, jobs = [walked.request.id for walked in walks], list[str | None](), list[_Job]()
        try:
            for walked in walks:
                request, note = walked.request, ""
                candidate = _retry_candidate(request.plan, walked.outcome)
                if candidate is not None and until < INF and len(self.threads.waiting) >= MOST_WAITING:
                    note = f"{NOT_STORED}: {MOST_WAITING} wait for the file"
                elif candidate is not None:
                    try:
                        own: Any = partial(call_contained, copy_input) if until < INF else lambda value: value
                        x = own(request.inputs)
                    except Exception as e:  # noqa: BLE001 - an input's own way of being copied may raise anything
                        note = f"{NOT_STORED}: {failure_text(e)}"
                    else:  # its own: at the deadline nobody waits for it
                        jobs.append(_Job(len(notes), walked, x, _provisional(walked.outcome.prediction, own), *candidate))
                        notes.append(None)
                        continue
                notes.append(note)
                self.forget(request.id)
        except BaseException:  # cut off
            for identity in ids:
                self.forget(identity)
            raise
        return Storing(ids, notes, self._store(jobs), self._report_failure)

    def _report_failure(self, identity: str, note: str) -> None:
        """Log and report a request that is not on disk, though its answer promised that it is being stored."""
        log.error("%s was being stored when its answer was given, and is %s", identity, note)
        self._router.note("not queued", identity)

    def _store(self, jobs: Sequence[_Job]) -> Iterator[tuple[int, str]]:
        """Store jobs in transactions of `TOGETHER`; yield each row and its note.

        Late answers are released after each, and at the end. Runs views, consent and redaction first; their failures are notes,
        not raised.
        """
        try:
            for begin in range(0, len(jobs), TOGETHER):
                ready = list[tuple[_Job, Waiting]]()
                for job in jobs[begin : begin + TOGETHER]:
                    waiting = _waiting(job)
                    if isinstance(waiting, str):
                        yield job.row, f"{NOT_STORED}: {waiting}"
                    else:
                        ready.append((job, waiting))
                for (job, _), put in zip(ready, self._put([waiting for _, waiting in ready]), strict=True):
                    yield job.row, self._put_note(job, put)
                for job in jobs[begin : begin + TOGETHER]:
                    self.forget(job.id)
        finally:
            for job in jobs:
                self.forget(job.id)

    def _put(self, entries: Sequence[Waiting]) -> Sequence[Put | BaseException]:
        """Store entries in one transaction. Return the result of each, or the error. Ctrl-C passes."""
        try:
            return self.outbox.put_all(entries, lambda: self._refusal)
        except KeyboardInterrupt:
            raise
        except BaseException as e:  # noqa: BLE001 - no memory, for example
            return [e] * len(entries)

    def _put_note(self, job: _Job, put: Put | BaseException) -> str:
        """Return the note of a request after its put; counts `queued`, and logs errors."""
        if isinstance(put, BaseException):  # mostly a full disk; the caller may be waiting for the answer
            log.error("a request could not be queued: %s", put)
            return f"{NOT_STORED}: {failure_text(put)}"
        if not put.stored:
            return f"{NOT_STORED}: {put.reason}"
        self._router.note("queued", job.id)
        return WAITING

    def forget(self, identity: str) -> None:
        """Release late answers that wait for a request, which is stored, or will not be: they are handled in this thread.

        A no-op for a request that is not announced, or not any more.
        """
        storing = self.storing.get(identity)
        if storing is not None:
            storing.set_result(None)
            del self.storing[identity]

    def send(self, entry: Waiting) -> Prediction:
        """Send one entry of the outbox to its cloud, by the current rules, limits and breaker, and return the answer; blocks.

        Consent and redaction were applied as it was stored. An entry that was stored without redaction, or without a class, is
        not sent under a policy that redacts, or classifies inputs by a function. If the endpoint is down, the error's
        `retry_after_s` is set, so that devices do not return at once.

        Raises:
            PolicyError, MayNotLeave: it can never be sent.
            CloudError: no answer; or nothing leaves the device by itself now. The entry stays in the outbox.
        """
        snapshot = self._router.snapshot
        if why := self._router.stays_on_device(read=True):
            raise Held(f"nothing leaves by itself: {why}")
        backend = _receiver(snapshot.clouds, entry)
        egress = snapshot.egress
        unclassified = entry.data_class is None and egress.data_class is not None
        allowed = permit(snapshot.policy.rules, UNCLASSIFIED if unclassified else entry.data_class)
        if isinstance(allowed, Denied):
            raise MayNotLeave(allowed.why)
        if egress.redact is not None and dict(entry.headers).keys().isdisjoint({REDACTED, MASKED}):
            raise MayNotLeave("it was queued without redaction, and the policy in force redacts what is sent")
        try:
            with backend.guard.enter(allowed, entry.id) as exchange:
                return _send_entry(backend, entry, exchange)
        except Held as e:
            if backend.guard.why():  # the endpoint is down, not a local limit
                e.retry_after_s = self.outbox.part_s(entry.queued_at)
            raise

    def close(self) -> None:
        """Stop the delivery and the callbacks, and close the file; undelivered entries stay in it.

        Waits up to `CLOSE_S` for requests that are being stored; later ones are not stored any more.
        """
        if wait([*self.storing.values()], CLOSE_S).not_done:
            self._refusal = "the router is closed"
        self.outbox.end_waits()
        for part in (self.threads, self.delivery, self.callbacks, self.outbox):
            part.close()


def _receiver(clouds: Sequence[CloudBackend], entry: Waiting) -> CloudBackend:
    """Return the cloud for an entry, identified by its origin: its name may belong to another endpoint now.

    Raises:
        PolicyError: there is no such cloud.
    """
    named = next((b for b in clouds if b.name == entry.target), None)
    if named is not None and entry.origin in {named.origin, ""}:
        return named
    same = next((b for b in clouds if b.origin == entry.origin), None)
    if same is not None:
        return same
    if named is None:
        raise PolicyError(f"the policy has no cloud {entry.target!r} any more")
    raise PolicyError(f"it was queued for another endpoint than {entry.target!r} is now")


def _waiting(job: _Job) -> Waiting | str:
    """Return the entry for the outbox, or the reason why there is none; any error is such a reason."""
    try:
        return _entry(job, job.walked.request, job.walked.legs)
    except KeyboardInterrupt:
        raise
    except BaseException as e:  # noqa: BLE001 - whatever an endpoint, its encode or a redaction raises: the answer is there
        return failure_text(e)


def _entry(job: _Job, request: Request, legs: LegExecutor | None) -> Waiting | str:
    """Return the entry for the outbox; a text: the reason why there is none.

    Runs view, consent, redaction and encoding, and raises theirs. A cloud on trial is replaced by the first other one. A call
    that is still under way gets an instant before which it is not sent again.
    """
    targets, target, allowed = request.snapshot.targets, request.plan.legs[job.leg].target, request.plan.legs[job.leg].permit
    assert allowed is not None, "only a leg that may leave is queued"
    tried = targets[target].trial  # and the plan has no other cloud, as that was busy
    target = next(i for i, t in enumerate(targets) if t.side == "cloud" and not t.trial) if tried else target
    backend = cast("CloudBackend", request.snapshot.backends[target])
    seen = request.snapshot.views.of(targets[target], target, job.x) if legs is None else None
    seen = seen if legs is None else legs.inputs.for_outbox(request.id, target, job.x)
    (x,), masks = request.snapshot.egress.prepare_inputs([seen], allowed, backend.where)
    exchange = None if legs is None or tried else legs.exchanges.get(job.leg)
    edge = None
    if legs is not None and legs.edge is not None:
        edge = legs.edge.to_store(request.id, job.leg, asked=exchange is not None)
    call = backend.encode(Escalated(x, edge) if backend.sends_edge else x, "" if exchange is None else exchange.codec)
    if call is not None:
        form: dict[str, Any] = {
            "kind": "call", "method": call.method, "path": call.path, "headers": list(call.headers), "body": bytes(call.body),
        }  # fmt: skip
    else:
        encoded, along = encode_input(x), [] if edge is None else [(EDGE, json.dumps(edge))]
        if encoded is None:
            return "an input of this kind cannot be stored"
        form = {"kind": "input", "headers": [("Content-Type", encoded[0]), *along], "body": encoded[1]}
    if masks is not None:
        form["headers"].append((MASKED, json.dumps(masks[0].originals).replace("\x7f", "\\u007f")))
    elif request.snapshot.egress.redact is not None:
        form["headers"].append((REDACTED, "yes"))
    if job.error is None and legs is not None and legs.late is not None:  # still in flight; otherwise cancelled at the deadline
        form["ready_at"] = wall_clock.now() + backend.patience_s
    else:
        form["error"] = "it did not answer in time" if job.error is None else job.error
    return Waiting(
        id=request.id, target=backend.name, data_class=allowed.data_class, rule=allowed.rule, importance=request.importance,
        provisional=job.provisional, origin=backend.origin, **form,
    )  # fmt: skip


def _provisional(answer: Prediction | None, own: Callable[[Any], Any]) -> Mapping[str, Any] | None:
    """Return an answer's value, as `own` copies it, and its confidence; None without an answer, or a copy."""
    try:
        return None if answer is None else {"value": own(answer.value), "confidence": answer.confidence}
    except Exception:  # noqa: BLE001 - a value's own way of being copied may raise anything
        return None


def _send_entry(backend: CloudBackend, entry: Waiting, exchange: Exchange) -> Prediction:
    """Send an entry to its cloud, and return the answer, with masked data put back; blocks, without a deadline.

    A stored HTTP call is sent as it is. With a stored input the backend is run, if it is only asynchronous by `asyncio.run` in
    this thread.

    Raises:
        CloudError: no answer; a function's other OSError becomes Unreachable.
        BadReply: the answer has a placeholder that was not sent.
        Exception: a function's other errors pass.
    """
    headers = dict(entry.headers)
    if (data := headers.get(MASKED)) is not None:
        sent = _send_entry(backend, entry._replace(headers=[pair for pair in entry.headers if pair[0] != MASKED]), exchange)
        answer: Any = import_late("edgeroute.cloud.personal_data_masks").MaskedData(json_loads(data.encode())).restore(sent)
        if isinstance(answer, BaseException):
            raise answer
        return cast("Prediction", answer)
    entry = entry._replace(headers=[pair for pair in entry.headers if pair[0] != REDACTED])
    backend.identify(exchange)
    if entry.kind == "call":
        call = Call(entry.method, entry.path, [(name, value) for name, value in entry.headers], entry.body)
        return backend.resend(call, INF, exchange)
    x = decode_input(headers["Content-Type"], entry.body)
    if backend.sends_edge:
        x = Escalated(x, json_loads(headers[EDGE].encode()) if EDGE in headers else None)
    try:
        if backend.alone_async:
            import asyncio

            predictions: list[Prediction] = asyncio.run(backend.run_async([x], INF, exchange))  # type: ignore[misc]
            return predictions[0]
        return backend.run([x], INF, None, exchange)[0]
    except OSError as e:  # raised by a function: temporary, no reason to give up
        if isinstance(e, CloudError):
            raise
        raise Unreachable(failure_text(e)) from e


def _retry_candidate(plan: Plan, outcome: Outcome) -> tuple[int, str | None] | None:
    """Return the first cloud's leg that may succeed later, with its error: empty if it did not fail, None at the deadline.

    None: none. A failure that would come again does not count. An endpoint on trial does not either, as it may be gone by the
    time of delivery, unless the plan has no other.
    """
    ended = {i: (what, detail) for what, i, _, detail in outcome.log if what != "start"}
    clouds = [i for i, leg in enumerate(plan.legs) if leg.permit is not None]
    proper = [i for i in clouds if not plan.arm or plan.legs[i].name != plan.arm] or clouds
    in_flight = any(ended.get(i, ("",))[0] == "timeout" for i in clouds)
    for i in proper:
        what, detail = ended.get(i, ("never begun", None))
        if isinstance(detail, BadInput):
            continue  # the caller's: it would fail again
        if what != "failed":
            return i, None if what == "timeout" or (plan.arm and in_flight) else ""
        if not isinstance(detail, CloudError) or detail.retriable:
            return i, failure_text(detail)
        if detail.held:
            return i, ""
    return None
