"""Arms of the edge and of the cloud: which one a request gets, what came of each, and the guardrail that stops one."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from hashlib import sha256
from math import sqrt
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from edgeroute.confidence.exact import proportion
from edgeroute.core.estimates import Latency
from edgeroute.core.plan import Leg, Plan
from edgeroute.core.policy import INF
from edgeroute.core.sequential import ArmTest
from edgeroute.core.walk import Done, Event, Failed, Outcome, Prediction
from edgeroute.core.words import UNFIT, UNIDENTIFIED, Failure
from edgeroute.edge.backend import TURN
from edgeroute.observe.stats import ArmStats, CloudArmStats, Part
from edgeroute.system.forks import ForkSafe, initially, per_process
from edgeroute.system.process import call_contained
from edgeroute.trials.audit import same
from edgeroute.trials.settings import AB, B, CloudArms
from edgeroute.types import Spent

if TYPE_CHECKING:
    from edgeroute.cloud.backend import CloudBackend
    from edgeroute.router.build import Snapshot
    from edgeroute.router.request import Request


# A/B: which arm a request is in, what came of each, and the guardrail that stops B.

log = logging.getLogger("edgeroute")
RISK = 0.05
"""Probability that an interval misses the truth."""
ERRORS, DEFERRED, DIFFERS = "errors", "deferred", "differs"
EDGE_WORDS = {
    ERRORS: "requests that its edge model failed on",
    DEFERRED: "deferrals",
    DIFFERS: "answers that differ from the cloud's",
}


class Arms(ForkSafe):
    """The arms of a router, and what came of them.

    Args:
        ab: the settings.
        models: in words, of A and B.
        alarm: called with the name of B's target and the guardrail's text once it stops the arm.
        dumped: what came of them in earlier runs, if it was of these models and settings.

    Attributes:
        stopped: why no request gets B any more; empty: some do.
    """

    _lock = per_process(threading.Lock)

    def __init__(
        self, ab: AB, models: tuple[str, str], alarm: Callable[[str, str], object], dumped: Mapping[str, Any] | None = None
    ) -> None:
        self.ab, self.models, self._alarm, self.stopped = ab, models, alarm, ""
        alpha = ab.alpha / 3
        margins = ((ERRORS, ab.more_errors), (DEFERRED, ab.more_deferred), (DIFFERS, ab.more_differs))
        self._tests = {name: ArmTest(min(margin, 0.999), alpha) for name, margin in margins}
        self._tallies = _Tally(), _Tally()
        self._below = int(ab.share * 2**64)
        self._fixed = None if ab.device is None else self._is_b(ab.device)
        self._failed = False
        if isinstance(dumped, Mapping) and dumped.get("of") == self._of():
            try:
                self._load(dumped)
            except (KeyError, TypeError, ValueError) as e:
                log.warning("what came of the arms before cannot be read, and begins anew: %r", e)

    def of(self, models: tuple[str, str]) -> Arms:
        """The arms of the same comparison for other models, without counts."""
        return Arms(self.ab, models, self._alarm)

    def _of(self) -> list[Any]:
        """What the sums are about; equal after it was read from JSON."""
        ab = self.ab
        return [
            *self.models,
            float(ab.share),
            ab.salt,
            *map(float, (ab.more_errors, ab.more_deferred, ab.more_differs, ab.alpha)),
        ]

    def dump(self) -> dict[str, Any]:
        """JSON-serialisable state, and the statistics for who reads it."""
        with self._lock:
            tallies, tests = [tally.dump() for tally in self._tallies], {name: test.dump() for name, test in self._tests.items()}
        told = [arm._asdict() for arm in self.stats()]
        ab, names = self.ab, ("share", "salt", "more_errors", "more_deferred", "more_differs", "alpha", "device")
        settings = {"models": list(self.models), **{name: getattr(ab, name) for name in names}}
        return {
            "of": self._of(), "stopped": self.stopped, "tallies": tallies, "tests": tests, "arms": told, "settings": settings,
        }  # fmt: skip

    def _load(self, dumped: Mapping[str, Any]) -> None:
        a, b = (_Tally.load(one) for one in dumped["tallies"])
        for name, test in self._tests.items():
            test.load(dumped["tests"][name])
        self._tallies, self.stopped = (a, b), str(dumped["stopped"])

    def _is_b(self, key: object) -> bool:
        digest = sha256(f"{self.ab.salt}\0{key}".encode("utf-8", "surrogatepass")).digest()
        return int.from_bytes(digest[:8], "big") < self._below

    def _is_b_by(self, x: Any) -> bool:
        assert self.ab.by is not None, "it was asked for"
        return self._is_b(self.ab.by(x))

    def choose(self, snapshot: Snapshot, identity: str, x: Any) -> Snapshot:
        """The policy for a request: that with A's model, or with B's. A session is in one arm: its model needs all inputs."""
        other = snapshot.other
        if other is None or self.stopped:
            return snapshot
        if self._fixed is not None:
            return other if self._fixed else snapshot
        if self.ab.by is None:
            turn = TURN.get()
            return other if self._is_b(identity if turn is None else turn.stream or identity) else snapshot
        try:
            return other if call_contained(self._is_b_by, x) else snapshot
        except Exception:
            if not self._failed:
                self._failed = True
                log.exception("ab: by failed, so the request is in arm A (said once)")
            return snapshot

    def ended(self, plan: Plan, outcome: Outcome, took_s: float) -> None:
        """Counts a request that has ended."""
        edge = next((i for i, leg in enumerate(plan.legs) if leg.permit is None), None)
        if edge is None:
            return
        b = plan.legs[edge].name == B
        faults = (error for kind, leg, _, error in outcome.log if kind == "failed" and leg == edge)
        failed = any(getattr(error, "code", "") not in UNFIT for error in faults)
        away = any(kind == "start" and plan.legs[leg].permit is not None for kind, leg, _, _ in outcome.log)
        with self._lock:
            tally = self._tallies[b]
            tally.requests += 1
            tally.failed += failed
            tally.deferred += away
            tally.took(took_s)
            self._bet(ERRORS, failed, b)
            self._bet(DEFERRED, away, b)
        self._look()

    def compared(self, name: str, *, agrees: bool) -> None:
        """Counts an audited answer of an edge model."""
        with self._lock:
            tally = self._tallies[name == B]
            tally.compared += 1
            tally.differ += not agrees
            self._bet(DIFFERS, not agrees, name == B)
        self._look()

    def _bet(self, name: str, bad: bool, b: bool) -> None:
        self._tests[name].add(float(bad), b=b)

    def _look(self) -> None:
        """Stops B once a test has enough evidence."""
        for name, test in self._tests.items():
            if test.alarmed and not self.stopped:
                self.stopped = f"B has more {EDGE_WORDS[name]} than A, by more than is allowed (p = {test.p:.2g}, at any time)"
                log.warning("ab: %s; no request gets it any more", self.stopped)
                self._alarm(B, self.stopped)

    def stats(self) -> tuple[ArmStats, ...]:
        """Statistics of each arm."""
        with self._lock:
            a, b = self._tallies
            return a.stats("a", self.models[0], ""), b.stats("b", self.models[1], self.stopped)


_EDGE_COUNTS = ("requests", "failed", "deferred", "compared", "differ")


class _Tally:
    """Sums of one arm."""

    def __init__(self) -> None:
        self.requests = self.failed = self.deferred = self.compared = self.differ = 0
        self._latency, self._sum, self._squares = Latency(), 0.0, 0.0

    def dump(self) -> dict[str, Any]:
        counts = {name: getattr(self, name) for name in _EDGE_COUNTS}
        return {**counts, "latency": self._latency.dump(), "sum": self._sum, "squares": self._squares}

    @classmethod
    def load(cls, dumped: Mapping[str, Any]) -> _Tally:
        made = cls()
        for name in _EDGE_COUNTS:
            setattr(made, name, int(dumped[name]))
        made._latency = Latency.load(dumped["latency"])
        made._sum, made._squares = float(dumped["sum"]), float(dumped["squares"])
        return made

    def took(self, seconds: float) -> None:
        self._latency.add(seconds)
        self._sum += seconds
        self._squares += seconds * seconds

    def stats(self, arm: str, model: str, stopped: str) -> ArmStats:
        n = max(1, self.requests)
        mean = self._sum / n
        error = 1.96 * sqrt(max(0.0, self._squares / n - mean * mean) / n)
        deferred, differs = part(self.deferred, self.requests), part(self.differ, self.compared)
        kept = part(self.requests - self.deferred, self.requests, RISK / 2)
        wrong = part(self.differ, self.compared, RISK / 2)
        loss = Part(kept.share * wrong.share, kept.low * wrong.low, kept.high * wrong.high)
        failed, took = part(self.failed, self.requests), Part(mean, max(0.0, mean - error), mean + error)
        return ArmStats(
            arm, model, self.requests, failed, deferred, took,
            self._latency.quantile(0.5), self._latency.quantile(0.99), self.compared, differs, loss, stopped,
        )  # fmt: skip


def part(count: int, of: int, risk: float = RISK) -> Part:
    """A share with its interval."""
    return Part(*proportion(count, of, risk))


# Sums of what came of the requests at one arm of the cloud, and those of many devices as one.

_CLOUD_COUNTS = ("calls", "failed", "compared", "differ", "shadowed", "shadow_differ", "shadow_failed")


class Came(NamedTuple):
    """What came of a request at its arm."""

    name: str
    leg: int
    failed: bool
    took_s: float | None
    """Time of its answer, seconds; None: it gave none."""
    answer: Prediction | None
    edge: Prediction | None
    differs: bool | None
    """Whether its answer is another than the edge's; None: one of them is not known."""


class _Mean:
    """A mean with its interval."""

    def __init__(self, n: int = 0, total: float = 0.0, squares: float = 0.0) -> None:
        self.n, self.total, self.squares = n, total, squares

    def add(self, value: float) -> None:
        self.plus(_Mean(1, value, value * value))

    def plus(self, other: _Mean) -> None:
        self.n, self.total, self.squares = self.n + other.n, self.total + other.total, self.squares + other.squares

    def part(self) -> Part:
        n = max(1, self.n)
        mean = self.total / n
        error = 1.96 * sqrt(max(0.0, self.squares / n - mean * mean) / n)
        return Part(mean, max(0.0, mean - error), mean + error)


class ArmTally:
    """Sums of one arm."""

    def __init__(self) -> None:
        self.calls = self.failed = self.compared = self.differ = self.shadowed = self.shadow_differ = self.shadow_failed = 0
        self._latency, self._took, self._usd = Latency(), _Mean(), _Mean()

    def dump(self) -> dict[str, Any]:
        """JSON-serialisable sums."""
        means = {name: [one.n, one.total, one.squares] for name, one in (("took", self._took), ("usd", self._usd))}
        return {**{name: getattr(self, name) for name in _CLOUD_COUNTS}, "latency": self._latency.dump(), **means}

    @classmethod
    def load(cls, dumped: Mapping[str, Any]) -> ArmTally:
        """The sums that `dump` told.

        Raises:
            KeyError, TypeError, ValueError: they are none.
        """
        made = cls()
        made._latency = Latency.load(dumped["latency"])
        for name in _CLOUD_COUNTS:
            setattr(made, name, int(dumped.get(name, 0)))  # an earlier version did not count it
        made._took, made._usd = (_Mean(int(n), float(s), float(q)) for n, s, q in (dumped["took"], dumped["usd"]))
        return made

    def plus(self, other: ArmTally) -> None:
        """Adds the sums of another device."""
        for name in _CLOUD_COUNTS:
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self._took.plus(other._took)
        self._usd.plus(other._usd)

    def count(self, came: Came, usd: float | None, *, timed: bool) -> None:
        """Adds a request. timed: whether its time is that of one input."""
        self.calls += 1
        self.failed += came.failed
        if usd is not None:
            self._usd.add(usd)
        if timed and came.took_s is not None:
            self._latency.add(came.took_s)
            self._took.add(came.took_s)
        if came.differs is not None:
            self.compared += 1
            self.differ += came.differs

    def stats(self, arm: str, share: float, stopped: str) -> CloudArmStats:
        """The sums as statistics."""
        return CloudArmStats(
            arm, share, self.calls, part(self.failed, self.calls), self.compared, part(self.differ, self.compared),
            self.shadowed, part(self.shadow_differ, self.shadowed), self.shadow_failed, self._usd.part(), self._took.part(),
            self._latency.quantile(0.5), self._latency.quantile(0.99), stopped,
        )  # fmt: skip


def summed(devices: Sequence[Mapping[str, Any]]) -> list[CloudArmStats]:
    """The arms of many devices as one, from what each stored. Latency quantiles are those of no fleet, and left out.

    A guardrail's evidence of one device is not that of others; an arm that is stopped on one is told as stopped.
    """
    found = list[CloudArmStats]()
    for arm in devices[0]["arms"]:
        total, stopped = ArmTally(), ""
        for device in devices:
            with suppress(KeyError, TypeError, ValueError):
                total.plus(ArmTally.load(device["tallies"][arm["arm"]]))
                stopped = stopped or str(device["stopped"].get(arm["arm"], ""))
        found.append(total.stats(str(arm["arm"]), float(arm["share"]), stopped)._replace(p50_s=None, p99_s=None))
    return found


# Arms of the cloud: which endpoint a request gets, what came of each, and the guardrail that stops one.

SHADOW = "shadow"
WORDS = {
    ERRORS: "has more calls that fail than {first}",
    DIFFERS: "has more answers that differ from the edge's than {first}",
    SHADOW: "has more answers in shadow that differ from those of {first}",
}
AWAY = {"breaker", "retry_after"}
"""Why it was not asked, by its own doing."""
MOST_SHADOWS = 8
"""Calls in shadow under way at a time; more are left out."""


class Calls(Protocol):
    """Calls of a cloud that nobody waits for."""

    def room(self, request: Any, leg: int) -> bool:
        """Whether a low-priority call may be made now."""

    def prepare(self, request: Any, leg: int, edge: Prediction | None) -> Callable[[], Event]:
        """Binds the input as it is now, and the edge's answer to it; returns a function that calls the cloud and blocks."""


class Trials(ForkSafe):
    """The arms of a router's cloud, and what came of them.

    Args:
        arms: the settings.
        alarm: called with an arm's name and the guardrail's text once it stops the arm.
        calls: makes calls in shadow.
        submit: runs one in a thread; returns False if none is free.
        identities: of the endpoints, in order: what came of another one that had its name is not counted for it.
        dumped: what came of them in earlier runs, if it was of these settings.
    """

    _lock = per_process(threading.Lock)
    _shadows = initially(0)

    def __init__(
        self,
        arms: CloudArms,
        alarm: Callable[[str, str], object],
        calls: Calls,
        submit: Callable[[Callable[[], object]], bool],
        identities: Sequence[str],
        dumped: Mapping[str, Any] | None = None,
    ) -> None:
        self.arms, self._alarm, self._calls, self._submit, self.identities = arms, alarm, calls, submit, [*identities]
        self.first, *others = arms.clouds
        self._tallies = {name: ArmTally() for name in arms.clouds}
        alpha = arms.alpha / len(WORDS)
        margins = {ERRORS: arms.more_errors, DIFFERS: arms.more_differs, SHADOW: arms.more_differs}
        self._tests = {
            name: {kind: ArmTest(min(margin, 0.999), alpha) for kind, margin in margins.items()} for name in others
        }  # fmt: skip
        self.stopped: dict[str, str] = {}
        """Arm -> why it gets no request any more."""
        self._failed = self._incomparable = False
        self._fixed = None if arms.device is None else self._at(arms.device)
        if isinstance(dumped, Mapping) and dumped.get("of") == self._of():
            try:
                self._load(dumped)
            except (KeyError, TypeError, ValueError) as e:
                log.warning("what came of the cloud's arms before cannot be read, and begins anew: %r", e)

    def _of(self) -> list[Any]:
        """What the sums are about; equal after it was read from JSON."""
        arms = self.arms
        return [[*arms.clouds], self.identities, arms.salt, *map(float, (arms.more_errors, arms.more_differs, arms.alpha))]

    def dump(self) -> dict[str, Any]:
        """JSON-serialisable state, and the statistics for who reads it."""
        with self._lock:
            tallies = {name: tally.dump() for name, tally in self._tallies.items()}
            tests = {name: {kind: test.dump() for kind, test in of.items()} for name, of in self._tests.items()}
        told = [arm._asdict() for arm in self.stats()]
        return {"of": self._of(), "stopped": dict(self.stopped), "tallies": tallies, "tests": tests, "arms": told}

    def _load(self, dumped: Mapping[str, Any]) -> None:
        tallies = {name: ArmTally.load(dumped["tallies"][name]) for name in self._tallies}
        for name, of in self._tests.items():
            for kind, test in of.items():
                test.load(dumped["tests"][name][kind])
        self._tallies = tallies
        self.stopped = {name: str(why) for name, why in dumped["stopped"].items() if name in self._tests}

    def _at(self, key: object) -> float:
        digest = sha256(f"{self.arms.salt}\0cloud\0{key}".encode("utf-8", "surrogatepass")).digest()
        return int.from_bytes(digest[:8], "big") / 2**64

    def _by(self, x: Any) -> float:
        assert self.arms.by is not None, "it was asked for"
        return self._at(self.arms.by(x))

    def choose(self, identity: str, x: Any) -> str:
        """The arm of a request; empty: the first endpoint's. A session is in one arm, and so is a device."""
        at = self._fixed
        if at is None and self.arms.by is None:
            turn = TURN.get()
            at = self._at(identity if turn is None else turn.stream or identity)
        elif at is None:
            try:
                at = call_contained(self._by, x)
            except Exception:
                if not self._failed:
                    self._failed = True
                    log.exception("cloud_arms: by failed, so the request is the first endpoint's (said once)")
                return ""
        for name, share in self.arms.split.items():
            if at < share:
                return "" if name in self.stopped else name
            at -= share
        return ""

    def ended(self, *rows: tuple[Request, Outcome, Mapping[int, Spent]]) -> None:
        """Counts a request that has ended, or the rows of a batch; and asks in shadow, where one was drawn for that."""
        try:
            self._ended(rows)
        except Exception:
            log.exception("an arm of the cloud could not be counted; the answer is not touched by it")

    def _ended(self, rows: Sequence[tuple[Request, Outcome, Mapping[int, Spent]]]) -> None:
        found = [(request, usd, came) for request, outcome, usd in rows if (came := self._came(request, outcome)) is not None]
        if not found:
            return
        name = found[0][2].name  # that of all: a batch is in one arm
        b = name != self.first
        with self._lock:
            tally = self._tallies[name]
            for request, costs, came in found:
                tally.count(came, None if came.leg not in costs else costs[came.leg].usd, timed=not request.batch)
            # rows of one call fail together, so a batch is one observation: the tests are of independent ones
            values = {ERRORS: [came.failed for _, _, came in found]}
            values[DIFFERS] = [came.differs for _, _, came in found if came.differs is not None]
            for other, tests in self._tests.items():
                for kind, seen in values.items():
                    if seen and (other == name or not b):
                        tests[kind].add(sum(seen) / len(seen), b=b)
        self._look()
        for request, _, came in found:
            if came.answer is not None and not b:
                self._shadowed(request, request.plan, came.leg, came.answer.value, came.edge)

    def _came(self, request: Request, outcome: Outcome) -> Came | None:
        """What came of the arm's leg; None: it was not asked, or nothing is known of it."""
        plan = request.plan
        i = next((i for i, leg in enumerate(plan.legs) if leg.permit is not None), None)
        if i is None or plan.legs[i].name not in self._tallies:
            return None
        begun = ended = failed = answered = False
        since = took_s = 0.0
        for kind, leg, at, detail in outcome.log:
            if leg != i:
                continue
            if kind == "start":
                begun, since = True, at
            elif kind == "failed":
                ended = failed = _its_own(detail)
            elif kind == "timeout":
                ended = failed = True
            elif kind in {"accepted", "below", "kept"}:
                ended = answered = True
                took_s = at - since
        if not (begun and ended):
            return None
        answer = outcome.prediction if outcome.leg == i and answered else None
        edge = next((held for leg, held in outcome.held.items() if plan.legs[leg].permit is None), None)
        differs = None if answer is None or edge is None else self._differ(edge.value, answer.value)
        return Came(plan.legs[i].name, i, failed, took_s if answered else None, answer, edge, differs)

    def _differ(self, one: Any, other: Any) -> bool | None:
        """Whether two values differ; None: they cannot be compared, and that is said once."""
        try:
            return not call_contained(same, one, other)
        except Exception:
            if not self._incomparable:
                self._incomparable = True
                log.exception("cloud_arms: answers cannot be compared, so failures alone are (said once)")
            return None

    def _shadowed(self, request: Request, plan: Plan, i: int, value: Any, edge: Prediction | None) -> None:
        """Asks those endpoints in shadow for which the request is drawn."""
        for name, share in self.arms.shadow.items():
            drawn = self._at(f"{name}\0{request.id}") < share
            target = next((n for n, one in enumerate(request.snapshot.targets) if one.name == name), None)
            if not drawn or name in self.stopped or target is None or self._shadows >= MOST_SHADOWS:
                continue
            legs = (*plan.legs, _leg(plan.legs[i], name, target))
            trial = request._replace(plan=plan._replace(legs=legs, order=tuple(range(len(legs)))), id=f"{request.id}-{name}")
            if self._calls.room(trial, len(legs) - 1):
                self._ask(name, self._calls.prepare(trial, len(legs) - 1, edge), value)

    def _ask(self, name: str, ask: Callable[[], Event], value: Any) -> None:
        def job() -> None:
            try:
                event = ask()
                if type(event) is Done:
                    differs = self._differ(event.answer.value, value)
                    if differs is not None:
                        self.shadowed(name, differs=differs)
                elif type(event) is Failed and _its_own(event.error):
                    with self._lock:
                        self._tallies[name].shadow_failed += 1
            except Exception:
                log.exception("a call in shadow failed; no answer is touched by it")
            finally:
                with self._lock:
                    self._shadows -= 1

        with self._lock:
            self._shadows += 1
        if not self._submit(job):
            with self._lock:
                self._shadows -= 1

    def shadowed(self, name: str, *, differs: bool) -> None:
        """Counts an answer in shadow."""
        with self._lock:
            tally, test = self._tallies[name], self._tests[name][SHADOW]
            tally.shadowed += 1
            tally.shadow_differ += differs
            test.add(0.0, b=False)  # so the test is of one mean against the margin
            test.add(float(differs), b=True)
        self._look()

    @property
    def busy(self) -> int:
        """Calls in shadow under way."""
        return self._shadows

    def _look(self) -> None:
        """Stops each arm of which a test has enough evidence."""
        for name, tests in self._tests.items():
            kind = next((kind for kind, test in tests.items() if test.alarmed), None)
            if kind is not None and name not in self.stopped:
                why = WORDS[kind].format(first=self.first)
                self.stopped[name] = f"{name} {why}, by more than is allowed (p = {tests[kind].p:.2g}, at any time)"
                log.warning("cloud_arms: %s; no request gets it any more", self.stopped[name])
                self._alarm(name, self.stopped[name])

    def stats(self) -> tuple[CloudArmStats, ...]:
        """Statistics of each arm."""
        shares = {self.first: max(0.0, 1 - sum(self.arms.split.values())), **self.arms.split}
        with self._lock:
            return tuple(
                tally.stats(name, shares.get(name, 0.0), self.stopped.get(name, "")) for name, tally in self._tallies.items()
            )


def _its_own(error: BaseException) -> bool:
    """Whether an endpoint has failed. One that its breaker holds back has, too: its own faults have opened that."""
    failure = Failure.of(error)
    return failure.code in AWAY or not (failure.held or failure.of_the_input)


def identity(backend: CloudBackend) -> str:
    """A hash of what an endpoint is: its address, protocol and model, or a function's code; equal after a restart.

    Without labels, which a server may tell later. What has no identity that two processes agree on, such as a function that holds
    an object, is known by its name alone.
    """
    from edgeroute.stores.cache import fingerprint

    endpoint: Any = getattr(backend, "endpoint", None)
    if endpoint is None:
        said = backend.fingerprint(fingerprint)
    else:  # a subclass may do otherwise
        said = repr(endpoint.identity(fingerprint)) if "identity" in vars(type(endpoint)) else fingerprint(endpoint)
    return sha256(repr((backend.origin, "" if UNIDENTIFIED in said else said)).encode("utf-8", "surrogatepass")).hexdigest()


def _leg(like: Leg, name: str, target: int) -> Leg:
    """The leg of an endpoint in shadow: it may leave as the other did."""
    return like._replace(
        name=name, target=target, threshold=None, final=True, hedge_after_s=INF, standby=False, start_by_s=INF, thresholds={}
    )
