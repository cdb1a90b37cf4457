"""What the blocking and the asyncio router share: everything but the driver. Observe, plan, walk, record."""

from __future__ import annotations

import contextlib
import logging
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from itertools import count
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Any, TypeVar

from edgeroute.cloud.backend import CloudBackend
from edgeroute.cloud.egress import Egress
from edgeroute.cloud.guard import Guard, SharedSpending
from edgeroute.confidence.binding import effective_target
from edgeroute.confidence.scores import Score
from edgeroute.core import explain
from edgeroute.core.plan import Plan, Refusal, plan
from edgeroute.core.policy import INF, MODES, CloudOrder, Mode, NoConfidence, Offline, Saver, Uncalibrated
from edgeroute.core.spending import Limits, Spending
from edgeroute.core.walk import Done, Emit, Outcome
from edgeroute.edge.backend import EdgeBackend
from edgeroute.errors import BadInput, Closed, DeadlineExceeded, MayNotLeave, NoAnswer, PolicyError, nearest
from edgeroute.observe.health import EndpointHealth
from edgeroute.observe.observer import Observer
from edgeroute.observe.sensors import Sensors
from edgeroute.observe.stats import Counts, Seen, Stats
from edgeroute.record.trace import Trace
from edgeroute.router.preflight import Check, Decision, check, decide
from edgeroute.router.request import Route
from edgeroute.router.snapshot import Snapshot, fingerprints, make
from edgeroute.system import Workers, file_stamp, renew_after_fork
from edgeroute.types import Answer

if TYPE_CHECKING:
    from typing_extensions import Self

    from edgeroute.confidence.certificate import Certificate
    from edgeroute.record.audit import Auditor
    from edgeroute.record.checkpoint import Checkpoint
    from edgeroute.record.drift_monitor import Audit
    from edgeroute.router.caching import Caching
    from edgeroute.router.fallback import Postponed
    from edgeroute.stores.cache import Cache
    from edgeroute.stores.journal import Journal
    from edgeroute.stores.outbox import Outbox

AGES_S = 60.0
"""So often, at most, it is looked whether a certificate has become too old."""
NO_OUTBOX = "offline is 'queue', and there is no outbox: give outbox=Outbox(path), or state=, the folder in which it would be"
NO_CACHE = "offline is 'stale', and there is no cache: give cache=Cache()"
Late = TypeVar("Late", bound=Callable[..., object])
log = logging.getLogger("edgeroute")


class Routing:
    """See `Router`; this part does not care who drives."""

    def __init__(
        self,
        edge: Any = None,
        cloud: Any = None,
        *,
        threshold: float | Certificate | Sequence[float | Certificate] | None = None,
        mode: Mode = "prefer_edge",
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
        saver: Saver | None = None,
        sensors: Sensors | None = None,
        uncalibrated: Uncalibrated = "tell",
        certificate_max_age: float | None = None,
        state: str | Path | None = None,
        trace: Trace | Callable[[Mapping[str, Any]], object] | str | Path | None = None,
    ) -> None:
        self._counts, self._workers = Counts(), Workers()
        self._recovery = EndpointHealth(self._workers, lambda: (r.guard for r in self._live.clouds), self._back)
        self._state = None if state is None else Path(state)
        self._spending = SharedSpending(Spending(limits or Limits()))
        self._memory = None if self._state is None else _memory(self._state / "state.db", self._counts, self._spending)
        self._ledger: Journal | None = None
        self._live = make(
            edge, cloud, threshold=threshold, mode=mode, deadline=deadline, hedge_after=hedge_after, first_token=first_token,
            score=score, no_confidence=no_confidence, offline=offline, order=order, egress=egress,
            uncalibrated=uncalibrated, certificate_max_age=certificate_max_age, saver=saver, guard=self._guard,
        )  # fmt: skip
        self._recall = _recall(cache, offline)
        self._postponed = self._late_answers(outbox, offline)
        self._trace = trace if trace is None or isinstance(trace, Trace) else Trace(trace)
        self._router, self._numbers = os.urandom(6).hex(), count(1)
        self._observer = Observer(self._counts, self._spending, metered, sensors)
        if saver is not None:
            self._observer.read()
        self._closed = False
        self._policy_file: Path | None = None
        self._more: dict[str, Any] = {}
        self._unwatch = threading.Event()
        self._special = self._recall is not None or self._postponed is not None
        """Whether a request needs more than to be walked."""
        if self._memory is not None:
            self._memory.recall(self._live.clouds)
        self._standing = threading.Lock()
        self._stands_until = -INF if any(self._live.promises) else INF
        self._auditor = None if audit is None else self._audits(audit)
        self._stand()
        renew_after_fork(self)

    def after_fork(self) -> None:
        """The child's requests have names of their own: to an endpoint a name is the idempotency key."""
        self._router, self._standing = os.urandom(6).hex(), threading.Lock()
        self._observer.reads_at = INF if self._live.policy.saver is None else -INF

    @classmethod
    def from_policy(cls, path: str | Path, *, watch: bool = False, **more: Any) -> Self:
        """The router that a policy file describes: TOML, JSON or YAML, with EDGEROUTE_ variables over it.

        Args:
            path: of the file; relative paths in it start from its folder.
            watch: reload when the file changes; one that cannot be used is logged, and the old policy stays.
            more: further arguments of the router, which overrule the file's, and `consent` and `redact` for its egress rules.

        Raises:
            PolicyError: one message with everything that is wrong, and the nearest valid name.
        """
        path = Path(path)
        seen = file_stamp(path)  # before it is read: a change from now on is noticed
        router = cls(**_read(path, more))
        router._policy_file, router._more = path, more
        if watch:
            threading.Thread(target=router._watch, args=(path, seen), name="edgeroute-watch", daemon=True).start()
        return router

    def reload(self) -> None:
        """Reads the policy file again.

        Requests under way end under the policy they began with; models and connections that stay the same are kept. What
        is on disk (state, cache, outbox, trace) stays as it was when the router was made.

        Raises:
            PolicyError: the file cannot be used, or there is none; the policy in force stays.
        """
        if self._policy_file is None:
            raise PolicyError("this router was not made from a policy file: there is nothing to read again")
        old = self._live
        told = _read(self._policy_file, self._more)
        limits, metered = told.pop("limits", None), told.pop("metered", False)
        for key in ("audit", "cache", "outbox", "sensors", "state", "trace"):
            told.pop(key, None)
        self._needs(told.get("offline", "edge"))
        with self._standing:
            live = make(**told, guard=self._guard, old=old)
            if self._auditor is not None:
                self._auditor.adopt(live, _prints(live))
            self._live = live
            self._stands_until = -INF if any(self._live.promises) else INF
        self._observer.reads_at = INF if self._live.policy.saver is None else -INF
        self._stand()
        self._spending.limits, self._observer.metered = limits or Limits(), metered
        models = [r.model for r in self._live.runners if isinstance(r, EdgeBackend)]
        for runner in old.runners:
            if runner not in self._live.runners and not (isinstance(runner, EdgeBackend) and runner.model in models):
                runner.close()

    def on_late(self, function: Late) -> Late:
        """Has `function(late)` called with every answer of the cloud that comes after its request was answered. A decorator.

        Called once for each request, in a thread, in whichever run of the program the answer comes. With an outbox an answer
        whose call did not end (the process was killed) is handed over again, with the same id. `function(late, tx)` makes
        it exactly once: what it writes by `tx.execute(...)`, in the outbox's own file, happens if and only if the answer
        counts as handed over. With an outbox there is one such function: a later one takes its place. Late replies to
        `infer_many` and to streams are not told, unless their requests went to the outbox.

        Raises:
            PolicyError: the function cannot be called so.
        """
        if self._postponed is None:
            self._postponed, self._special = self._postponing(None), True
        self._postponed.on_late(function)
        return function

    def stats(self) -> Stats:
        """Counts, deferral rate, latency quantiles, bytes and money, since the router was made."""
        guards = {r.name: r.guard for r in self._live.clouds}
        seen = []
        for r in self._live.runners:
            guard = guards.get(r.name)
            seen.append(Seen(r.name, r.side, *r.traffic, guard.state if guard else "", guard.held if guard else 0))
        return self._counts.snapshot(seen, self._spending.spent().usd, () if self._auditor is None else self._auditor.stats())

    def _begin(
        self, inputs: Any, mode: Mode | None, deadline: float | None, data_class: str | None, many: bool = False
    ) -> tuple[Plan, Route, float]:
        """Observe and plan. -> the plan, what runs it, and the instant at which it began."""
        if self._closed:
            raise Closed("this router is closed")
        live = self._live
        made = live.plans.get((mode, deadline, data_class)) or self._plan(live, mode, deadline, data_class)
        begun = monotonic()
        if begun >= self._observer.reads_at:
            self._observer.reads_at = INF  # until they were read
            self._workers.submit(self._read)
        route = Route(made, live, inputs, self._workers, begun + made.deadline_s, many, self._router, next(self._numbers))
        return made, route, begun

    def _plan(self, live: Snapshot, mode: Mode | None, deadline: float | None, data_class: str | None) -> Plan:
        """The plan for such a request; the same facts give the same plan, so it is kept until they change."""
        if mode is not None and mode not in MODES:
            raise PolicyError(f"there is no mode {mode!r}: {nearest(mode, MODES)}")
        if deadline is not None and not deadline > 0:
            raise PolicyError(f"deadline is seconds from now, more than 0, not {deadline!r}")
        if data_class is not None and not (isinstance(data_class, str) and data_class):
            raise PolicyError(f"data_class is a name, not {data_class!r}")
        facts = self._observer.facts
        made = plan(live.policy, live.targets, facts, mode=mode, deadline_s=deadline, data_class=data_class)
        if isinstance(made, Refusal):
            raise (MayNotLeave if made.denied else PolicyError)(made.reason)
        if len(live.plans) < 1000:  # noqa: PLR2004 - a caller may pass what is left of its own deadline, new every time
            live.plans[mode, deadline, data_class] = made
            if facts is not self._observer.facts:  # they changed meanwhile
                live.plans.clear()
        return made

    def _prepare(self, route: Route, importance: float) -> None:
        """What is set up only where the policy asks for it."""
        if importance:
            route.importance = importance
        if self._postponed is not None and self._postponed.listening and not route.many:
            route.late = self._postponed.late

    def _end(
        self,
        made: Plan,
        outcome: Outcome,
        route: Route,
        row: int | None = None,
        number: str | None = None,
        shown: Answer | None = None,
    ) -> Answer:
        """Record, and answer. row: of the route's batch; number: what that row is called; shown: the provisional answer."""
        if self._counts.record(made, outcome, row is not None):
            self._observe()
        if self._auditor is not None:
            self._auditor.passed(made, outcome, route, row)
        if route.exchanges is not None and self._memory is not None:
            self._memory.spent(self._router)
        name = number or route.number
        if outcome.accepted:
            answer = Answer(made, outcome, self._router, name, route.exchanges)
        else:
            answer = self._fallen(made, outcome, route, row, name)
        if shown is not None and answer.source == "cloud":
            with contextlib.suppress(Exception):  # a value may be anything, even something that cannot be compared
                agrees = bool(answer.value == shown.value)
                answer.noted("it agrees with the provisional answer" if agrees else "it corrects that", final=True)
        if self._trace is not None:
            self._trace.take(answer, route.inputs if row is None else route.inputs[row])
        return answer

    def _fallen(self, made: Plan, outcome: Outcome, route: Route, row: int | None, number: int | str) -> Answer:
        """The answer where none was accepted, as the policy's `offline` has it."""
        away = any(leg.permit is not None for leg in made.legs) and not _is_fatal(outcome)
        box = self._postponed if away and made.offline == "queue" else None
        if box is not None and row is None:
            box.expect(route)
        route.end(outcome)
        note, final = "", True
        if away and made.offline == "stale" and self._recall is not None and row is None:
            known = self._recall.stale(route, route.key, outcome.begun)
            if known is not None:
                self._counts.note("cached")
                return known
        if box is not None:
            x = route.inputs if row is None else route.inputs[row]
            note = box.queue(route, outcome, x, f"{self._router}-{number}") or ""
            final = note != "queued"
        if outcome.leg is None or made.offline == "raise":
            raise _no_answer(made, outcome, note)
        return Answer(made, outcome, self._router, number, route.exchanges).noted(note, final=final)

    def _first_s(self, first_token: float | None) -> float:
        """How long a target may take to begin, in seconds."""
        if first_token is None:
            return self._live.policy.first_token_s
        if not first_token > 0:
            raise PolicyError(f"first_token is seconds, more than 0, not {first_token!r}")
        return first_token

    def _known(self, route: Route, begun: float) -> Answer | None:
        """The cache's answer, if it has one."""
        assert self._recall is not None, "there is a cache"
        answer, renew = self._recall.known(route, route.live, begun)
        if answer is not None:
            self._recalled(answer, route, renew=renew)
        return answer

    def _recalled(self, answer: Answer, route: Route, *, renew: bool) -> None:
        """Records an answer that came from the cache."""
        self._counts.note("cached")
        if renew:
            self._renew(route)
        if self._trace is not None:
            self._trace.take(answer, route.inputs)

    def _patience_s(self, route: Route, begun: float) -> float:
        """How long to wait for an equal request, so that the edge can still be asked after it."""
        whole_s, edge_s = route.plan.deadline_s, self._observer.facts.edge_s
        return whole_s if whole_s == INF else max(0.0, whole_s - (2 * edge_s or whole_s / 2) - (monotonic() - begun))

    def _keep(self, route: Route, answer: Answer | None) -> None:
        """What equal requests get that wait for this one, and later ones."""
        assert self._recall is not None, "there is a cache"
        if answer is not None and route.key is not None:
            self._recall.keep(route.key, answer, route.live, route.plan, route.inputs)
        if route.flight is not None and route.flight.leads:
            if answer is None or answer.degraded or not answer.final:  # others may have more time, and names of their own
                route.flight.failed()
            else:
                route.flight.done(answer)

    def _renew(self, stale: Route) -> None:
        """Asks again for what the cache has past its time, in the background."""
        raise NotImplementedError

    def _again(self, stale: Route) -> tuple[Plan, Route, float]:
        """A request equal to one that was answered from the cache."""
        made, route, begun = self._begin(stale.inputs, stale.plan.mode, None, stale.plan.data_class)
        made = route.plan = made._replace(offline="raise")  # nobody waits for it: it is not queued either
        route.key, route.cache, route.flight = stale.key, stale.cache, stale.flight
        return made, route, begun

    def _shared(self, leader: Answer, route: Route, begun: float) -> Answer:
        """The answer of an equal request that was under way."""
        assert self._recall is not None, "there is a cache"
        answer = self._recall.shared(leader, route, begun)
        self._recalled(answer, route, renew=False)
        return answer

    def _known_rows(self, route: Route, begun: float) -> tuple[list[Any], list[tuple[int, bytes | None]]]:
        """The answers that the cache has for a batch, and the rows that are left, which the route has from now on."""
        count = len(route.inputs)
        if self._recall is None:
            return [None] * count, [(row, None) for row in range(count)]
        found, left = [], []
        for row in range(count):
            answer, one, renew = self._recall.row(route, row, begun)
            found.append(answer)
            if answer is None:
                left.append((row, one.key))
            else:
                self._recalled(answer, one, renew=renew)
        if left:
            route.inputs = [route.inputs[row] for row, _ in left]
        return found, left

    def _end_rows(
        self, made: Plan, outcomes: list[Outcome], route: Route, rows: list[tuple[int, bytes | None]], found: list[Any]
    ) -> None:
        """Answers the rows that were walked."""
        for i, (outcome, (row, key)) in enumerate(zip(outcomes, rows, strict=True)):
            found[row] = answer = self._end(made, outcome, route, i, f"{route.number}.{row}")
            if self._recall is not None and key is not None:
                self._recall.keep(key, answer, route.live, made, route.inputs[i])

    def _provisional(self, made: Plan, shown: Emit, route: Route, begun: float) -> Answer:
        """What the edge says, for now."""
        outcome = Outcome(shown.leg, shown.prediction, True, shown.log, begun, monotonic())
        return Answer(made, outcome, self._router, route.number).noted("provisional", final=False)

    def _observe(self) -> None:
        """Renews the facts, and with them the plans."""
        live = self._live
        if self._observer.observe(live):
            live.plans.clear()
        if self._auditor is not None:
            self._auditor.observe()
        if monotonic() >= self._stands_until:
            self._stand()
        if self._memory is not None:
            self._memory.note(self._router, live.clouds)

    def _read(self) -> None:
        """Reads the device's sensors."""
        if self._observer.read():
            self._live.plans.clear()

    def _stand(self) -> None:
        """Renews the thresholds and labels: an alarm, what audits found, or a certificate's age may have changed them."""
        with self._standing:
            live, auditor = self._live, self._auditor
            targets = []
            for target, promise in zip(live.targets, live.promises, strict=True):
                watch = None if auditor is None else auditor.watch(target.name)
                targets.append(effective_target(target, promise) if watch is None else watch.target(target))
            if tuple(targets) != live.targets:
                self._live = live._replace(targets=tuple(targets), plans={})
            if self._stands_until < INF:
                self._stands_until = monotonic() + AGES_S

    def _audits(self, audit: Audit) -> Auditor:
        from edgeroute.record.audit import Auditor

        journal = None
        if self._state is not None:
            from edgeroute.stores.journal import Journal

            journal = Journal(self._state / "audit.jsonl")
        kept = None if self._memory is None else self._memory.kept
        auditor = Auditor(
            audit, self._workers, self._counts,
            held_back=self._observer.no_hedge, changed=self._stand, journal=journal, kept=kept,
        )  # fmt: skip
        auditor.adopt(self._live, _prints(self._live))
        return auditor

    def _guard(self, runner: CloudBackend) -> Guard:
        """What stands before a cloud of this router."""
        if self._ledger is None and self._state is not None:
            from edgeroute.stores.journal import Journal

            self._ledger = Journal(self._state / "egress.jsonl")
        return Guard(
            runner.name, runner.where, runner.terms, self._spending,
            health=runner.health, watcher=self._recovery, journal=self._ledger,
        )  # fmt: skip

    def _back(self) -> None:
        """An endpoint answers again."""
        if self._postponed is not None:
            self._postponed.wake(now=self._recovery.own())

    def _needs(self, offline: str) -> None:
        if offline == "queue" and (self._postponed is None or self._postponed.outbox is None):
            raise PolicyError(NO_OUTBOX)
        if offline == "stale" and self._recall is None:
            raise PolicyError(NO_CACHE)

    def _late_answers(self, outbox: Outbox | None, offline: str) -> Postponed | None:
        if outbox is None and offline == "queue":
            if self._state is None:
                raise PolicyError(NO_OUTBOX)
            from edgeroute.stores.outbox import Outbox

            outbox = Outbox(self._state / "outbox.db")
        return None if outbox is None and self._recall is None else self._postponing(outbox)

    def _postponing(self, outbox: Outbox | None) -> Postponed:
        from edgeroute.router.fallback import Postponed

        keep = None if self._recall is None else self._keep_late
        return Postponed(outbox, lambda: self._live, self._workers, self._counts.note, keep)

    def _keep_late(self, route: Route, event: Done) -> None:
        """A late answer is as good as any for the next equal request."""
        if self._recall is not None and route.key is not None:
            now = monotonic()
            outcome = Outcome(event.leg, event.answer, True, (("start", event.leg, route.until, None),), now, now)
            answer = Answer(route.plan, outcome, self._router, route.number).noted(
                "it came after its request's deadline", final=True
            )
            self._recall.keep(route.key, answer, route.live, route.plan, route.inputs)

    def fingerprints(self, edge: int = 0) -> dict[str, str]:
        """What a certificate for this router is bound to, for `calibrate(..., fingerprints=...)`.

        Args:
            edge: which of the edge models, counted from 0.
        """
        i = [i for i, t in enumerate(self._live.targets) if t.side == "edge"][edge]
        return fingerprints(self._live.runners, i, self._live.recipes[i][3], self._live.egress)

    def _decide(self, x: Any, mode: Mode | None, deadline: float | None, data_class: str | None) -> Decision:
        made, route, _ = self._begin(x, mode, deadline, data_class)
        return decide(made, route, 0.0 if self._auditor is None else self._auditor.audit.share)

    def _check(self, timeout: float) -> Check:
        return check(self._live, timeout, 0.0 if self._auditor is None else self._auditor.audit.share)

    def _shut(self) -> None:
        self._closed = True
        self._unwatch.set()
        self._recovery.close()
        if self._postponed is not None:
            self._postponed.close()
        self._workers.close()
        for runner in self._live.runners:
            runner.close()
        if self._auditor is not None:
            self._auditor.close()
        if self._memory is not None:
            self._memory.close(self._router, self._live.clouds)
        if self._recall is not None:
            self._recall.cache.close()
        for part in (self._ledger, self._trace):
            if part is not None:
                part.close()

    def _watch(self, path: Path, seen: tuple[int, int] | None) -> None:
        """Reloads when the file has changed, once a second at most, until the router is closed."""
        while not self._unwatch.wait(1.0):
            now = file_stamp(path)
            if now is not None and now != seen:
                seen = now
                try:
                    self.reload()
                except Exception:
                    log.exception("%s cannot be used; the policy in force stays", path)


def _read(path: Path, more: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments that a file stands for, with others over them."""
    from edgeroute import settings  # pydantic is imported for policy files alone

    functions = {key: more[key] for key in ("consent", "redact") if key in more}
    arguments: dict[str, Any] = settings.load(path).arguments(path.parent, **functions)
    return {**arguments, **{key: value for key, value in more.items() if key not in functions}}


def _memory(path: Path, counts: Counts, spending: SharedSpending) -> Checkpoint:
    from edgeroute.record.checkpoint import Checkpoint  # SQLite is imported where there is something to keep

    return Checkpoint(path, counts, spending)


def _prints(live: Snapshot) -> dict[str, dict[str, str]]:
    """The fingerprints of each edge, by its name."""
    edges = [(i, t.name) for i, t in enumerate(live.targets) if t.side == "edge"]
    return {name: fingerprints(live.runners, i, live.recipes[i][3], live.egress) for i, name in edges}


def _recall(cache: Cache | None, offline: str) -> Caching | None:
    if cache is None:
        if offline == "stale":
            raise PolicyError(NO_CACHE)
        return None
    from edgeroute.router.caching import Caching

    return Caching(cache)


def _is_fatal(outcome: Outcome) -> bool:
    """The input itself was wrong: nobody is to be asked about it later either."""
    return any(what == "failed" and isinstance(detail, BadInput) for what, _, _, detail in outcome.log) and outcome.leg is None


def _no_answer(made: Plan, outcome: Outcome, note: str) -> BaseException:
    errors: dict[str, BaseException] = {made.legs[i].name: detail for what, i, _, detail in outcome.log if what == "failed"}
    late = any(what == "timeout" for what, *_ in outcome.log)
    if errors and len(outcome.log) == 2 and not note:  # noqa: PLR2004 - started and failed: there is one error, and it says it all
        return next(iter(errors.values()))
    why = "; ".join(filter(None, (explain.reason(made, outcome), note)))
    if outcome.leg is not None:
        return NoAnswer(f"no answer was accepted: {why}", errors)
    error = (DeadlineExceeded if late else NoAnswer)(f"no answer: {why or 'no time was left'}", errors)
    error.__cause__ = next(iter(errors.values()), None)
    return error
