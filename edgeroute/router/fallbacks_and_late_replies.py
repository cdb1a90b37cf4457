"""Answers of requests without an accepted one: offline rules and the outbox; and cloud replies after the deadline.

A late reply goes to the cache, the outbox and the functions `on_late`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Protocol, cast

from edgeroute.core import reason_text_and_trace_record as explain
from edgeroute.core.error_codes_and_texts import failure_text
from edgeroute.core.plan import Plan
from edgeroute.core.policy_egress_and_options import Offline
from edgeroute.core.walk import Done, Event, Failed, Outcome, Prediction
from edgeroute.errors import BadInput, DeadlineExceeded, NoAnswer, PolicyError
from edgeroute.router.leg_execution import Walked
from edgeroute.router.request import Request
from edgeroute.router.steps_and_composed_stages import Block, Result, Steps
from edgeroute.system import wall_clock
from edgeroute.system.contained_calls_and_tasks import call_contained
from edgeroute.system.fork_safety import ForkSafe, per_process
from edgeroute.system.read_and_check_signatures import check_has_run, runs_later
from edgeroute.system.sanitised_logs_and_contained_errors import log
from edgeroute.system.signal_safe_locks import SafeLock
from edgeroute.types import Answer

if TYPE_CHECKING:
    from edgeroute.router.cache_and_singleflight import Caching
    from edgeroute.router.offline_queue import OfflineQueue
    from edgeroute.stores.outbox import Late
    from edgeroute.system.thread_pool_and_workers import ThreadPool

# Note in the reason of a cloud's answer that equals the edge's answer shown before.
AGREES = "it agrees with the provisional answer"
CORRECTS = "it corrects that"  # note in the reason of a cloud's answer that differs from the edge's answer shown before
NO_OUTBOX = "offline is 'queue', and there is no outbox: give outbox=Outbox(path), or state=, the folder in which it would be"
NO_CACHE = "offline is 'stale', and there is no cache: give cache=Cache()"


class Parts(Protocol):
    """Parts of a router that an offline rule, or a late reply, may need."""

    caching: Caching | None
    queue: OfflineQueue | None
    local_threads: ThreadPool

    def note(self, what: str, identity: str) -> None:
        """Count and report an event (`queued`, `late`, ...) of a request."""


class OfflineRule:
    """Rule for requests whose cloud was needed and did not answer.

    The base class is rule `edge`: the edge's answer, marked degraded.
    """

    def check(self, parts: Parts) -> None:
        """Raise PolicyError if a part that this rule needs is missing."""

    def expect(self, walked: Walked, parts: Parts) -> None:
        """Prepare for late replies of the request's legs, which may come from now on; `answers` or `forget` follows."""

    def forget(self, walked: Walked, parts: Parts) -> None:
        """Undo `expect` for a request whose call was interrupted before `answers`."""

    def answers(self, walks: Sequence[Walked], parts: Parts) -> Steps[list[Result]]:  # noqa: ARG002
        """Return an answer, or the exception to raise, for each request."""
        return [best_answer(walked) for walked in walks]
        yield


class Raises(OfflineRule):
    """Offline rule `raise`: raise NoAnswer."""

    def answers(self, walks: Sequence[Walked], parts: Parts) -> Steps[list[Result]]:  # noqa: ARG002
        """Return the exceptions to raise."""
        return [no_answer(walked.request.plan, walked.outcome, "") for walked in walks]
        yield


class Stale(OfflineRule):
    """Offline rule `stale`: return a stale cache entry; without one, the edge's answer."""

    def check(self, parts: Parts) -> None:
        """Raise PolicyError without a cache."""
        if parts.caching is None:
            raise PolicyError(NO_CACHE)

    def answers(self, walks: Sequence[Walked], parts: Parts) -> Steps[list[Result]]:
        """Return the stale cache entries, read in a thread until the deadline.

        The edge's answer if there is none in time, or the caller got a piece of another one.
        """
        caching, results = parts.caching, list[Result]()
        for walked in walks:
            stale = None
            if caching is not None and not walked.spoken:
                stale = yield Block(partial(caching.stale, walked.request), walked.request.until, needed=False)
            results.append(best_answer(walked) if stale is None else stale)
        return results


class Queue(OfflineRule):
    """Offline rule `queue`: return the edge's answer, and store the request to send it later."""

    def check(self, parts: Parts) -> None:
        """Raise PolicyError without an outbox."""
        if parts.queue is None:
            raise PolicyError(NO_OUTBOX)

    def expect(self, walked: Walked, parts: Parts) -> None:
        """Delay late answers until the request is stored."""
        if parts.queue is not None:
            parts.queue.expect(walked.request.id)

    def forget(self, walked: Walked, parts: Parts) -> None:
        """Handle the late answers that wait for the request to be stored, in this thread: it was cut off, and will not be."""
        if parts.queue is not None:
            parts.queue.forget(walked.request.id)

    def answers(self, walks: Sequence[Walked], parts: Parts) -> Steps[list[Result]]:
        """Store the requests in the outbox, in a thread, and return the edge's answers, with notes whether they are queued.

        At the deadline, or at once beside a file that is locked, the storing goes on without the caller; an answer whose storing
        is not settled counts as not final.
        """
        queue = parts.queue
        if queue is None:
            return [best_answer(walked) for walked in walks]
        until = 0.0 if queue.outbox.locked else walks[0].request.until
        storing = queue.store(walks, until)
        notes = (yield Block(storing, until, threads=queue.threads)) if storing.pending else storing()
        notes = storing.leave() if notes is None else notes
        return [best_answer(walked, note, final=note not in queue.UNSETTLED) for walked, note in zip(walks, notes, strict=True)]


# Rule by the policy's `offline`.
RULES: Mapping[Offline, OfflineRule] = {"edge": OfflineRule(), "queue": Queue(), "stale": Stale(), "raise": Raises()}


class Fallback:
    """Makes an answer from each walk: the accepted one, or one by the policy's offline rule.

    Args:
        parts: parts that the rules may need, as they are when a request ends.
    """

    def __init__(self, parts: Parts) -> None:
        self._parts = parts

    def answers(self, walks: Sequence[Walked]) -> Steps[list[Result]]:
        """Yield the steps to the results of walks: accepted answers, and others by the offline rule, which may use the outbox.

        If one was not accepted, replies of legs that still run are late ones from now on. Exceptions to raise are returned as
        results.
        """
        rules = [self._rule(walked) for walked in walks]
        for walked, rule in zip(walks, rules, strict=True):
            if rule is not None:
                rule.expect(walked, self._parts)
        legs = walks[0].legs
        if legs is not None and any(rule is not None for rule in rules):
            legs.finish([walked.outcome for walked in walks])
        results: list[Result | None] = [
            accepted_answer(walked) if rule is None else None for walked, rule in zip(walks, rules, strict=True)
        ]
        groups = {rule: [i for i, row_rule in enumerate(rules) if row_rule is rule] for rule in rules if rule is not None}
        try:
            while groups:
                rule, rows = groups.popitem()
                rule_results = yield from rule.answers([walks[i] for i in rows], self._parts)
                for i, result in zip(rows, rule_results, strict=True):
                    results[i] = result
        finally:  # cut off in the middle, the other rows are not stored any more
            for rule, rows in groups.items():
                for i in rows:
                    rule.forget(walks[i], self._parts)
        return cast("list[Result]", results)

    def _rule(self, walked: Walked) -> OfflineRule | None:
        """Return the offline rule for a walk; None: its answer was accepted.

        The policy's rule if a cloud was needed, or it is `raise`; rule `edge` (the edge's answer, degraded) if none was, or the
        input itself is invalid.
        """
        plan, outcome = walked.request.plan, walked.outcome
        if outcome.accepted:
            return None
        away = (bool(plan.skipped) or any(leg.permit is not None for leg in plan.legs)) and not _is_fatal(outcome)
        return RULES[plan.offline] if away or plan.offline == "raise" else RULES["edge"]


def accepted_answer(walked: Walked) -> Answer:
    """Return the accepted answer, with a note that compares it with the provisional one."""
    answer = Answer(walked.request.plan, walked.outcome, walked.request.id, walked.costs)
    return answer if walked.shown is None else _compare_note(answer, walked.shown)


def best_answer(walked: Walked, note: str = "", *, final: bool = True) -> Result:
    """Return the best available answer, marked degraded, with the note, or one that compares it with the provisional answer.

    Without any answer, return, not raise, the exception to raise.
    """
    plan, outcome = walked.request.plan, walked.outcome
    if outcome.leg is None:
        return no_answer(plan, outcome, note)
    answer = Answer(plan, outcome, walked.request.id, walked.costs)
    if walked.shown is not None and not note:
        return _compare_note(answer, walked.shown)
    return answer.add_note(note, final=final)


def _compare_note(answer: Answer, shown: Answer) -> Answer:
    """Set in a cloud's answer the note that it agrees with the provisional one, or corrects it, and mark it final; return it.

    The answer is changed in place. Unchanged if their comparison fails, or for an edge's answer.
    """
    if answer.source == "cloud":
        try:  # values may not be comparable
            agrees = call_contained(lambda: bool(answer.value == shown.value))
        except Exception:  # noqa: BLE001
            return answer
        answer.add_note(AGREES if agrees else CORRECTS, final=True)
    return answer


def _is_fatal(outcome: Outcome) -> bool:
    """Return True if the input itself was invalid; then it is not queued either."""
    return any(what == "failed" and isinstance(detail, BadInput) for what, _, _, detail in outcome.log) and outcome.leg is None


def no_answer(plan: Plan, outcome: Outcome, note: str) -> BaseException:
    """Return the exception to raise for a request without an answer to return.

    That is the only leg's own error if there is nothing to add, else DeadlineExceeded or NoAnswer with the reasons. The error has
    each leg's own.
    """
    errors: dict[str, BaseException] = {plan.legs[i].name: detail for what, i, _, detail in outcome.log if what == "failed"}
    late = any(what == "timeout" for what, *_ in outcome.log)
    only = next(iter(errors.values()), None)
    if isinstance(only, Exception | SystemExit) and len(outcome.log) == 2 and not note:  # noqa: PLR2004 - started and failed
        return only  # it says it all
    if only is not None and not late and all(isinstance(error, BadInput) for error in errors.values()):
        return only  # the caller's fault alone, whatever the offline rule
    why = "; ".join(filter(None, (explain.reason(plan, outcome), note)))
    if outcome.leg is not None:
        return NoAnswer(f"no answer was accepted: {why}", errors)
    error = (DeadlineExceeded if late else NoAnswer)(f"no answer: {why or 'no time was left'}", errors)
    error.__cause__ = only
    return error


class LateReplies(ForkSafe):
    """Handler of cloud replies after the deadline: passes them to the cache, the outbox and `on_late` functions.

    Args:
        parts: cache and outbox, if any, and threads that cloud calls cannot exhaust.

    Attributes:
        wanted: True if the cache, the outbox or a function uses late replies.
    """

    # Lock held while a reply is stored. After `close` none is, since that would open the files again.
    _storing = per_process(SafeLock)

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._functions: list[Callable[[Late], object]] = []
        self._closed = False
        self.wanted = parts.queue is not None or parts.caching is not None

    def on_late(self, function: Callable[..., object]) -> None:
        """Register a function for late answers, and have them kept from now on.

        With an outbox it is the outbox's callback, replacing an earlier one; without one a further function.

        Raises:
            PolicyError: it is a coroutine or generator function, or its signature does not fit.
        """
        if self._parts.queue is not None:
            self._parts.queue.callbacks.register(function)
            return
        if runs_later(function):
            raise PolicyError("on_late is called in a thread: a coroutine or generator function would not run")
        if len(inspect.signature(function).parameters) != 1:
            raise PolicyError("on_late takes f(late); f(late, tx) needs an outbox, whose transaction tx is")
        self._functions.append(function)
        self.wanted = True

    def take(self, request: Request, event: Event, here: bool) -> None:
        """Handle the event of a leg left running past its request's deadline: pass it to the cache, the outbox and the functions.

        Ignored after `close`. Errors are logged; never raises.

        Args:
            request: the request.
            event: the event.
            here: True if this thread may be blocked; else a thread is used, and without one the event is lost, which is logged.
        """
        if self._closed:
            return  # the outbox still has the request, and the next run sends it again
        if here:
            self._handle(request, event)
        elif not self._parts.local_threads.submit_later(partial(self._handle, request, event)):
            log.error("the late answer to %s could not be handed on: no thread was free", request.id)

    def _handle(self, request: Request, event: Event) -> None:
        """Pass a late event on, once its request is stored, if the outbox is storing it now."""
        queue = self._parts.queue
        if queue is None:
            self._hand_on(request, event)
        else:
            queue.once_stored(request.id, partial(self._hand_on, request, event))

    def _hand_on(self, request: Request, event: Event) -> None:
        """Store a late answer, under a lock, in cache and outbox; or after a failure make the queued request ready to be sent.

        Then, without the lock, call the functions with the answer if there is no outbox. A no-op once closed. Errors are logged,
        and nothing further is done.
        """
        try:
            with self._storing:
                stored = self._closed or self._store(request, event)
            if not stored and type(event) is Done:
                self._call(request, event)
        except Exception:
            log.exception("a late answer could not be handed on")

    def _store(self, request: Request, event: Event) -> bool:
        """Count a late answer, and store it in the cache and the outbox; after a failure, mark a queued request as ready to send.

        Return True if the functions are not to be called here: the outbox calls them, or there is no answer.
        """
        queue, caching = self._parts.queue, self._parts.caching
        if type(event) is not Done:
            if queue is not None:
                queue.outbox.ready(request.id, failure_text(event.error) if type(event) is Failed else "")
            return True
        self._parts.note("late", request.id)
        if caching is not None:
            caching.store_late(request, event)
        if queue is not None:
            queue.outbox.answer(request.id, event.answer)
        return queue is not None

    def _call(self, request: Request, event: Done) -> None:
        """Call each registered function with a late answer; errors are logged."""
        from edgeroute.stores.outbox import Late

        prediction: Prediction = event.answer
        late = Late(
            id=request.id, value=prediction.value, confidence=prediction.confidence, outputs=prediction.outputs,
            provisional=None, data_class=request.plan.data_class, target=request.plan.legs[event.leg].name,
            queued_at=wall_clock.now() - (event.at - request.until), answered_at=wall_clock.now(),
        )  # fmt: skip
        for function in self._functions:
            try:
                check_has_run(function(late))
            except BaseException:  # noqa: PERF203 - each is isolated, SystemExit too
                log.exception("a callback for late answers failed at %s", late.id)

    def close(self) -> None:
        """Ignore all further replies; block until the one that is being stored is stored, but for no function that is called."""
        self._closed = True
        with self._storing:
            pass
