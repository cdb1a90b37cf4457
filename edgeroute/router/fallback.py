"""Fallback stage for requests without an accepted answer: offline rules, the outbox, and late replies."""

from __future__ import annotations

import inspect
import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Protocol, cast

from edgeroute.core import explain
from edgeroute.core.plan import Plan
from edgeroute.core.policy import Offline
from edgeroute.core.walk import Done, Event, Failed, Outcome, Prediction
from edgeroute.core.words import named
from edgeroute.errors import BadInput, DeadlineExceeded, NoAnswer, PolicyError
from edgeroute.router.legs import Walked
from edgeroute.router.request import Request
from edgeroute.router.stages import Block, Result, Steps
from edgeroute.system import process
from edgeroute.system.forks import ForkSafe, per_process
from edgeroute.system.process import call_contained
from edgeroute.types import Answer

if TYPE_CHECKING:
    from edgeroute.router.caching import Caching
    from edgeroute.router.offline_queue import OfflineQueue
    from edgeroute.stores.outbox import Late

log = logging.getLogger("edgeroute")
AGREES = "it agrees with the provisional answer"
CORRECTS = "it corrects that"
"""Notes in the reason of the cloud's answer, where the edge's was shown before."""
NO_OUTBOX = "offline is 'queue', and there is no outbox: give outbox=Outbox(path), or state=, the folder in which it would be"
NO_CACHE = "offline is 'stale', and there is no cache: give cache=Cache()"
Submit = Callable[[Callable[[], object]], bool]


class Parts(Protocol):
    """Optional parts that an offline rule may need."""

    caching: Caching | None
    queue: OfflineQueue | None


class OfflineRule(Protocol):
    """What to do with a request whose cloud was needed and did not answer."""

    def check(self, parts: Parts) -> None:
        """Raises PolicyError if a part that this rule needs is missing."""

    def expect(self, walked: Walked, parts: Parts) -> None:
        """Announces that `answers` will be called; from now on late replies of its legs may arrive."""

    def answers(self, walks: Sequence[Walked], parts: Parts) -> Steps[list[Result]]:
        """The callers' results."""

    def forget(self, walked: Walked, parts: Parts) -> None:
        """`answers` will not be called for it: the call was cut off."""


class EdgeStands:
    """`edge`: the edge's answer, marked degraded."""

    def check(self, parts: Parts) -> None:
        """A no-op."""

    def expect(self, walked: Walked, parts: Parts) -> None:
        """A no-op."""

    def forget(self, walked: Walked, parts: Parts) -> None:
        """Nothing."""

    def answers(self, walks: Sequence[Walked], parts: Parts) -> Steps[list[Result]]:  # noqa: ARG002
        """The best available answers."""
        return [best(walked) for walked in walks]
        yield


class Raises(EdgeStands):
    """`raise`: raises NoAnswer."""

    def answers(self, walks: Sequence[Walked], parts: Parts) -> Steps[list[Result]]:  # noqa: ARG002
        """The exceptions to raise."""
        return [no_answer(walked.request.plan, walked.outcome, "") for walked in walks]
        yield


class Stale(EdgeStands):
    """`stale`: a stale cache entry; without one as `edge`."""

    def check(self, parts: Parts) -> None:
        """Requires a cache."""
        if parts.caching is None:
            raise PolicyError(NO_CACHE)

    def answers(self, walks: Sequence[Walked], parts: Parts) -> Steps[list[Result]]:
        """The stale entries, unless the caller was shown a piece of another answer."""
        caching, results = parts.caching, list[Result]()
        for walked in walks:
            stale = None
            if caching is not None and not walked.spoken:
                stale = yield Block(partial(caching.stale, walked.request), walked.request.until, needed=False)
            results.append(best(walked) if stale is None else stale)
        return results


class Queue(EdgeStands):
    """`queue`: the edge's answer, and the request is sent later."""

    def check(self, parts: Parts) -> None:
        """Requires an outbox."""
        if parts.queue is None:
            raise PolicyError(NO_OUTBOX)

    def expect(self, walked: Walked, parts: Parts) -> None:
        """Holds late answers back until the request is stored."""
        if parts.queue is not None:
            parts.queue.expect(walked.request.id)

    def forget(self, walked: Walked, parts: Parts) -> None:
        """A late answer waits no longer."""
        if parts.queue is not None:
            parts.queue.forget(walked.request.id)

    def answers(self, walks: Sequence[Walked], parts: Parts) -> Steps[list[Result]]:
        """Stores the requests, within the deadline: a disk may be slow."""
        queue = parts.queue
        if queue is None:
            return [best(walked) for walked in walks]
        storing = queue.store(walks)
        notes = (yield Block(storing, walks[0].request.until)) if storing.pending else storing()
        notes = storing.leave() if notes is None else notes
        return [best(walked, note, final=note not in queue.UNSETTLED) for walked, note in zip(walks, notes, strict=True)]


RULES: Mapping[Offline, OfflineRule] = {"edge": EdgeStands(), "queue": Queue(), "stale": Stale(), "raise": Raises()}


class Fallback:
    """Makes an answer from each walk: the accepted one, or by the policy's offline rule.

    Args:
        parts: returns the parts that the rules may need, when a request ends.
    """

    def __init__(self, parts: Parts) -> None:
        self._parts = parts

    def answers(self, walks: Sequence[Walked]) -> Steps[list[Result]]:
        """The results of these walks."""
        rules = [self._rule(walked) for walked in walks]
        for walked, rule in zip(walks, rules, strict=True):
            if rule is not None:
                rule.expect(walked, self._parts)
        legs = walks[0].legs
        if legs is not None and any(rule is not None for rule in rules):
            legs.finish([walked.outcome for walked in walks])
        results: list[Result | None] = [
            accepted(walked) if rule is None else None for walked, rule in zip(walks, rules, strict=True)
        ]
        groups = {rule: [i for i, own in enumerate(rules) if own is rule] for rule in rules if rule is not None}
        try:
            while groups:
                rule, rows = groups.popitem()
                found = yield from rule.answers([walks[i] for i in rows], self._parts)
                for i, result in zip(rows, found, strict=True):
                    results[i] = result
        finally:  # cut off in the middle, the other rows are not stored any more
            for rule, rows in groups.items():
                for i in rows:
                    rule.forget(walks[i], self._parts)
        return cast("list[Result]", results)

    def _rule(self, walked: Walked) -> OfflineRule | None:
        """The offline rule that applies; None: the answer was accepted."""
        plan, outcome = walked.request.plan, walked.outcome
        if outcome.accepted:
            return None
        away = (bool(plan.skipped) or any(leg.permit is not None for leg in plan.legs)) and not _is_fatal(outcome)
        return RULES[plan.offline] if away or plan.offline == "raise" else RULES["edge"]


def accepted(walked: Walked) -> Answer:
    """The accepted answer, with a note on the provisional one."""
    answer = Answer(walked.request.plan, walked.outcome, walked.request.id, walked.costs)
    return answer if walked.shown is None else _compared(answer, walked.shown)


def best(walked: Walked, note: str = "", *, final: bool = True) -> Result:
    """The best available answer, marked degraded; without one the exception to raise."""
    plan, outcome = walked.request.plan, walked.outcome
    if outcome.leg is None:
        return no_answer(plan, outcome, note)
    answer = Answer(plan, outcome, walked.request.id, walked.costs)
    if walked.shown is not None and not note:
        return _compared(answer, walked.shown)
    return answer.add_note(note, final=final)


def _compared(answer: Answer, shown: Answer) -> Answer:
    """Adds a note whether the cloud's answer agrees with the provisional one."""
    if answer.source == "cloud":
        try:  # values may not be comparable
            agrees = call_contained(lambda: bool(answer.value == shown.value))
        except Exception:  # noqa: BLE001
            return answer
        answer.add_note(AGREES if agrees else CORRECTS, final=True)
    return answer


def _is_fatal(outcome: Outcome) -> bool:
    """Whether the input itself was invalid: then it is not queued either."""
    return any(what == "failed" and isinstance(detail, BadInput) for what, _, _, detail in outcome.log) and outcome.leg is None


def no_answer(plan: Plan, outcome: Outcome, note: str) -> BaseException:
    """The exception to raise where no answer may be returned."""
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
    """Handles cloud replies after the deadline: for the cache, the outbox and `on_late` functions.

    Args:
        parts: the cache and the outbox, if any.
        submit: runs a job in a thread that cloud calls cannot exhaust, if one is available.
        note: counts `late`.
    """

    _storing = per_process(threading.RLock)
    """Held while a reply is stored, so that none is after `close`, which would open the files again."""

    def __init__(self, parts: Parts, submit: Submit, note: Callable[[str, str], object]) -> None:
        self._parts, self._submit, self._note = parts, submit, note
        self._functions: list[Callable[[Late], object]] = []
        self._closed = False

    @property
    def wanted(self) -> bool:
        """Whether anything uses late replies."""
        return self._parts.queue is not None or self._parts.caching is not None or bool(self._functions)

    def on_late(self, function: Callable[..., object]) -> None:
        """Registers a function for late answers.

        Raises:
            PolicyError: its signature does not fit.
        """
        if self._parts.queue is not None:
            self._parts.queue.callbacks.register(function)
            return
        if inspect.iscoroutinefunction(function):
            raise PolicyError("on_late is called in a thread: a coroutine function cannot be")
        if len(inspect.signature(function).parameters) != 1:
            raise PolicyError("on_late takes f(late); f(late, tx) needs an outbox, whose transaction tx is")
        self._functions.append(function)

    def take(self, request: Request, event: Event, here: bool) -> None:
        """Handles the event of a leg left running past its request's deadline. here: this thread may be blocked."""
        if self._closed:
            return  # the outbox still has the request, and the next run sends it again
        if here:
            self._handle(request, event)
        elif not self._submit(partial(self._handle, request, event)):
            log.error("the late answer to %s could not be handed on: no thread was free", request.id)

    def _handle(self, request: Request, event: Event) -> None:
        queue = self._parts.queue
        if queue is None:
            self._hand_on(request, event)
        else:
            queue.once_stored(request.id, partial(self._hand_on, request, event))

    def _hand_on(self, request: Request, event: Event) -> None:
        try:
            with self._storing:
                stored = self._closed or self._store(request, event)
            if not stored and type(event) is Done:
                self._call(request, event)
        except Exception:
            log.exception("a late answer could not be handed on")

    def _store(self, request: Request, event: Event) -> bool:
        """Hands it to the cache and the outbox. Returns whether there is an outbox, which calls the functions."""
        queue, caching = self._parts.queue, self._parts.caching
        if type(event) is not Done:
            if queue is not None:
                queue.outbox.ready(request.id, named(event.error) if type(event) is Failed else "")
            return True
        self._note("late", request.id)
        if caching is not None:
            caching.store_late(request, event)
        if queue is not None:
            queue.outbox.answer(request.id, event.answer)
        return queue is not None

    def _call(self, request: Request, event: Done) -> None:
        from edgeroute.stores.outbox import Late

        prediction: Prediction = event.answer
        late = Late(
            id=request.id, value=prediction.value, confidence=prediction.confidence, outputs=prediction.outputs,
            provisional=None, data_class=request.plan.data_class, target=request.plan.legs[event.leg].name,
            queued_at=process.now() - (event.at - request.until), answered_at=process.now(),
        )  # fmt: skip
        for function in self._functions:
            try:
                function(late)
            except BaseException:  # noqa: PERF203 - each is isolated, SystemExit too
                log.exception("a callback for late answers failed at %s", late.id)

    def close(self) -> None:
        """Drops all further replies; one that is being stored is stored."""
        self._closed = True
        with self._storing:
            pass
