"""What the blocking and the asyncio router share: everything but the driver. Observe, plan, walk, record."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from itertools import count
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Any, NamedTuple

from edgeroute.confidence.scores import Score
from edgeroute.core import explain
from edgeroute.core.facts import Facts
from edgeroute.core.flow import Failed, Outcome, Start, acceptable
from edgeroute.core.plan import Plan, Refusal, plan
from edgeroute.core.policy import MODES, Mode, NoConfidence, OnExhausted
from edgeroute.errors import Closed, DeadlineExceeded, NoAnswer, PolicyError
from edgeroute.live import Live, make, nearest
from edgeroute.route import Route
from edgeroute.runners import Runner
from edgeroute.stats import Counts, Stats
from edgeroute.types import Answer
from edgeroute.workers import Workers

if TYPE_CHECKING:
    from typing_extensions import Self

log = logging.getLogger("edgeroute")
Trace = Callable[[Mapping[str, Any]], object]


class Decision(NamedTuple):
    """What `decide` found: the route this input would take. Nothing was sent."""

    plan: Plan
    steps: tuple[str, ...]
    """The plan and then what the edge says to this input, a line each."""
    sends_to: tuple[str, ...]
    """Where this input would go, in order of trying; empty: it would stay on the device."""

    def __str__(self) -> str:
        return "\n".join(self.steps)


class Check(NamedTuple):
    """What `check` found."""

    ok: bool
    lines: tuple[str, ...]
    """What works, what may leave and where to, and what is missing, a line each; a problem begins with `!`."""

    def __str__(self) -> str:
        return "\n".join(self.lines)


class Routing:
    """See `Router`; this part does not care who drives."""

    def __init__(
        self,
        edge: Any = None,
        cloud: Any = None,
        *,
        threshold: float | Sequence[float] | None = None,
        mode: Mode = "prefer_edge",
        deadline: float | None = None,
        hedge_after: float | None = None,
        score: str | Score = "msp",
        no_confidence: NoConfidence = "defer",
        on_exhausted: OnExhausted = "answer",
        trace: Trace | None = None,
    ) -> None:
        self._live = make(
            edge, cloud, threshold=threshold, mode=mode, deadline=deadline, hedge_after=hedge_after, score=score,
            no_confidence=no_confidence, on_exhausted=on_exhausted,
        )  # fmt: skip
        self._counts, self._workers = Counts(), Workers()
        self._facts = Facts()
        self._trace = trace
        self._identity, self._numbers = os.urandom(6).hex(), count(1)
        self._closed = False
        self._policy_file: Path | None = None
        self._unwatch = threading.Event()

    @classmethod
    def from_policy(cls, path: str | Path, *, watch: bool = False, trace: Trace | None = None) -> Self:
        """The router that a policy file describes: TOML, JSON or YAML, with EDGEROUTE_ variables over it.

        Args:
            path: of the file; relative paths in it start from its folder.
            watch: reload when the file changes; one that cannot be used is logged, and the old policy stays.
            trace: called with each answer's trace.

        Raises:
            PolicyError: one message with everything that is wrong, and the nearest valid name.
        """
        path = Path(path)
        seen = _stamp(path)  # before it is read: a change from now on is noticed
        router = cls(**_read(path), trace=trace)
        router._policy_file = path
        if watch:
            threading.Thread(target=router._watch, args=(path, seen), name="edgeroute-watch", daemon=True).start()
        return router

    def reload(self) -> None:
        """Reads the policy file again.

        Requests under way end under the policy they began with; models and connections that stay the same are kept.

        Raises:
            PolicyError: the file cannot be used, or there is none; the policy in force stays.
        """
        if self._policy_file is None:
            raise PolicyError("this router was not made from a policy file: there is nothing to read again")
        old = self._live
        self._live = make(**_read(self._policy_file), old=old)
        kept = [*self._live.runners, *(getattr(r, "model", None) for r in self._live.runners)]
        for runner in old.runners:
            if runner not in kept and getattr(runner, "model", None) not in kept:
                runner.close()

    def stats(self) -> Stats:
        """Counts, deferral rate, latency quantiles and bytes, since the router was made."""
        return self._counts.snapshot({r.name: (r.side, *r.traffic) for r in self._live.runners})

    def _begin(self, inputs: Any, mode: Mode | None, deadline: float | None, many: bool = False) -> tuple[Plan, Route, float]:
        """Observe and plan. -> the plan, what runs it, and the instant at which it began."""
        if self._closed:
            raise Closed("this router is closed")
        live = self._live
        made = live.plans.get((mode, deadline)) or self._plan(live, mode, deadline)
        begun = monotonic()
        return made, Route(made, live.runners, inputs, self._workers, begun + made.deadline_s, many), begun

    def _plan(self, live: Live, mode: Mode | None, deadline: float | None) -> Plan:
        """The plan for such a request; the same facts give the same plan, so it is kept until they change."""
        if mode is not None and mode not in MODES:
            raise PolicyError(f"there is no mode {mode!r}: {nearest(mode, MODES)}")
        if deadline is not None and not deadline > 0:
            raise PolicyError(f"deadline is seconds from now, more than 0, not {deadline!r}")
        facts = self._facts
        made = plan(live.policy, live.targets, facts, mode=mode, deadline_s=deadline)
        if isinstance(made, Refusal):
            raise PolicyError(made.reason)
        if len(live.plans) < 1000:  # noqa: PLR2004 - a caller may pass what is left of its own deadline, new every time
            live.plans[mode, deadline] = made
            if facts is not self._facts:  # they changed meanwhile
                live.plans.clear()
        return made

    def _end(self, made: Plan, outcome: Outcome, batch: bool = False) -> Answer:
        """Record, and answer."""
        if self._counts.record(made, outcome, batch):
            self._observe()
        if outcome.leg is None or not (outcome.accepted or made.on_exhausted == "answer"):
            raise _no_answer(made, outcome)
        answer = Answer(made, outcome, self._identity, next(self._numbers))
        if self._trace is not None:
            try:
                self._trace(answer.trace)
            except Exception:
                log.exception("the trace function failed; the answer is not touched by it")
        return answer

    def _observe(self) -> None:
        """Renews the facts, and with them the plans."""
        live = self._live
        busy = frozenset(r.name for r in live.runners if r.stuck >= r.parallel)
        edge_s = max((self._counts.quantile(t.name, 0.99) or 0.0 for t in live.targets if t.side == "edge"), default=0.0)
        facts = Facts(busy, edge_s)
        if facts != self._facts:
            self._facts = facts
            live.plans.clear()

    def _decide(self, x: Any, mode: Mode | None, deadline: float | None) -> Decision:
        made, route, _ = self._begin(x, mode, deadline)
        steps, sends = list(made.steps), []
        for i, leg in enumerate(made.legs):
            start = Start(i)
            if leg.side == "cloud":
                sends.append(route.runner(start).where)
                steps.append(f"=> {leg.name}: would send this input to {sends[-1]}")
                continue
            if sends:
                break
            event = route.run(start)
            if type(event) is Failed:
                if event.fatal:
                    raise event.error
                steps.append(f"=> {leg.name} failed: {event.error}")
                continue
            confidence = event.answer.confidence  # type: ignore[union-attr]  # a leg that ran is Done or Failed
            steps.append(f"=> {explain.answered(made, leg, confidence, 0.0)}")
            if acceptable(leg, confidence):
                break
        return Decision(made, tuple(steps), tuple(sends))

    def _check(self, timeout: float) -> Check:
        live, lines = self._live, []
        problems = [(runner, _problem(runner, timeout)) for runner in live.runners]
        lines = [f"! {r.name}: {problem}" if problem else f"{r.name}: {r.describe()}" for r, problem in problems]
        places = ", ".join(r.where for r in live.runners if r.side == "cloud")
        if not places:
            lines.append("nothing can leave this device: there is no cloud")
        elif live.policy.mode == "only_edge":
            lines.append(f"nothing leaves this device unless a call asks for another mode than only_edge; then to {places}")
        else:
            lines.append(f"inputs may leave this device, to {places}")
        edges = [t for t in live.targets if t.side == "edge"]
        if not edges:
            lines.append("there is no edge model: without the cloud there is no answer")
        elif places and live.policy.mode == "prefer_edge":
            lines.append("the threshold is uncalibrated: picked by hand, with no promise about errors")
        return Check(all(problem is None for _, problem in problems), tuple(lines))

    def _shut(self) -> None:
        self._closed = True
        self._unwatch.set()
        self._workers.close()
        for runner in self._live.runners:
            runner.close()

    def _watch(self, path: Path, seen: tuple[int, int] | None) -> None:
        """Reloads when the file has changed, once a second at most, until the router is closed."""
        while not self._unwatch.wait(1.0):
            now = _stamp(path)
            if now is not None and now != seen:
                seen = now
                try:
                    self.reload()
                except Exception:
                    log.exception("%s cannot be used; the policy in force stays", path)


def _read(path: Path) -> dict[str, Any]:
    from edgeroute import settings  # pydantic is imported for policy files alone

    arguments: dict[str, Any] = settings.load(path).arguments(path.parent)
    return arguments


def _stamp(path: Path) -> tuple[int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size


def _no_answer(made: Plan, outcome: Outcome) -> BaseException:
    errors: dict[str, BaseException] = {made.legs[i].name: detail for what, i, _, detail in outcome.log if what == "failed"}
    late = any(what == "timeout" for what, *_ in outcome.log)
    if errors and len(outcome.log) == 2:  # noqa: PLR2004 - started and failed: there is one error, and it says it all
        return next(iter(errors.values()))
    why = explain.reason(made, outcome)
    if outcome.leg is not None:
        return NoAnswer(f"no answer was accepted: {why}", errors)
    error = (DeadlineExceeded if late else NoAnswer)(f"no answer: {why or 'no time was left'}", errors)
    error.__cause__ = next(iter(errors.values()), None)
    return error


def _problem(runner: Runner, timeout: float) -> str | None:
    """What is wrong with a target, if anything. Loads models and opens connections; sends no user data."""
    try:
        runner.ready(monotonic() + timeout)
    except Exception as e:  # noqa: BLE001 - every kind of trouble is what is asked for here
        return str(e) or type(e).__name__
    return None
