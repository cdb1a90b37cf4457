"""Trials of a router: the arm of each request by its key, the figures of each arm, and the guardrail that stops a trial.

The figures continue after a reload, and with a state folder after a restart.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from hashlib import sha256
from math import sqrt
from time import monotonic
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from edgeroute.confidence.binomial_tests import RISK, share_and_interval
from edgeroute.confidence.output_forms_labels_and_comparison import same
from edgeroute.core.error_codes_and_texts import INPUTS_OWN, UNFIT, UNIDENTIFIED, Failure
from edgeroute.core.performance_estimates_and_encoding_choice import Latency
from edgeroute.core.policy_egress_and_options import EDGE_TRIAL, INF
from edgeroute.core.sequential_tests import ArmTest, UnitArmTest
from edgeroute.core.walk import Done, Failed, Prediction
from edgeroute.edge.edge_backend import TURN, EdgeBackend
from edgeroute.edge.edge_model_members_and_fingerprints import member
from edgeroute.observe.stats_and_status_types import ArmStats, Interval
from edgeroute.router import part_hooks_and_dispatch as parts
from edgeroute.router.cache_key_prefixes import fingerprint
from edgeroute.system.contained_calls_and_tasks import call_contained
from edgeroute.system.fork_safety import ForkSafe, initially, per_process
from edgeroute.system.input_copies import copy_value
from edgeroute.system.sanitised_logs_and_contained_errors import log
from edgeroute.system.signal_safe_locks import SafeLock
from edgeroute.trials.audits_and_drift_alarms import BackgroundCalls, Compared
from edgeroute.trials.trial_setting import STORED, Trial

if TYPE_CHECKING:
    from edgeroute.cloud.http_backend import CloudBackend
    from edgeroute.router.leg_execution import Walked
    from edgeroute.router.policy_snapshot import Snapshot
    from edgeroute.router.request import Request

MOST_HIDDEN = 8  # concurrent calls of hidden clouds; further ones are left out
MOST_UNITS = 4096  # recent requests whose users or sessions are remembered for audits that come later
# Suffix of the name of a test whose units are sessions, beside that of the requests that belong to none.
OF_SESSIONS = "_by_session"
AWAY = {"breaker", "retry_after"}  # codes of calls that were not made because of the endpoint's own faults


# Sums of one arm.


class Seen(NamedTuple):
    """Outcome of one request in its arm."""

    name: str  # name of the arm
    failed: bool
    deferred: bool
    differs: bool | None  # True if its answer differs from the one it is compared with; None: not compared
    took_s: float | None  # latency; None: unknown, or a batch's
    usd: float | None
    leg: int = 0
    answer: Prediction | None = None  # answer of the cloud
    edge: Prediction | None = None  # answer of the edge, which was not accepted


_SUMS = (
    "requests", "failed", "deferred", "compared", "differ", "timed", "took", "took_squares", "priced", "usd", "usd_squares",
)  # fmt: skip


class _Tally:
    """Sums of one arm: requests, failures, deferrals, comparisons, latencies and costs; and statistics with intervals."""

    def __init__(self, sums: Mapping[str, Any] = {}, latency: Latency | None = None) -> None:
        self._sums = {name: float(sums.get(name, 0)) for name in _SUMS}
        self._latency = latency or Latency()

    def dump(self) -> dict[str, Any]:
        """Return the sums in JSON types."""
        return {"sums": self._sums.copy(), "latency": self._latency.dump()}

    @classmethod
    def load(cls, dumped: Mapping[str, Any]) -> _Tally:
        """Return new sums from a dump. Raises KeyError, TypeError or ValueError for another form."""
        return cls(dumped["sums"], Latency.load(dumped["latency"]))

    def add(self, seen: Seen) -> None:
        """Add a request's outcome to the sums. Parts that are None are left out."""
        added: dict[str, float] = {"requests": 1, "failed": seen.failed, "deferred": seen.deferred}
        if seen.took_s is not None:
            self._latency.add(seen.took_s)
            added |= {"timed": 1, "took": seen.took_s, "took_squares": seen.took_s**2}
        if seen.usd is not None:
            added |= {"priced": 1, "usd": seen.usd, "usd_squares": seen.usd**2}
        if seen.differs is not None:
            added |= {"compared": 1, "differ": seen.differs}
        for name, value in added.items():
            self._sums[name] += value

    def compare(self, *, differs: bool) -> None:
        """Count a comparison of two answers, and that they differ."""
        self._sums["compared"] += 1
        self._sums["differ"] += differs

    def _mean(self, name: str, count: str) -> Interval:
        """Return the mean of a summed quantity with its 95 % interval, never below 0; 0 without values.

        `count`: name of their number.
        """
        n = max(1.0, self._sums[count])
        mean = self._sums[name] / n
        error = 1.96 * sqrt(max(0.0, self._sums[f"{name}_squares"] / n - mean * mean) / n)
        return Interval(mean, max(0.0, mean - error), mean + error)

    def stats(self, arm: str, side: str, model: str, share: float, stopped: str, *, shown: bool) -> ArmStats:
        """Return the statistics of the arm, with intervals.

        An edge has deferrals, and the loss: answers kept that differ; a cloud has the cost.
        """
        requests, failed, away, compared, differ = (int(self._sums[name]) for name in _SUMS[:5])
        deferred = loss = usd = None
        if side == "edge":
            kept_share, wrong = part(requests - away, requests, RISK / 2), part(differ, compared, RISK / 2)
            deferred = part(away, requests)
            loss = Interval(*(factor * other for factor, other in zip(kept_share, wrong, strict=True)))
        else:
            usd = self._mean("usd", "priced")
        return ArmStats(
            arm, side, model, share, shown, requests, part(failed, requests), deferred, compared, part(differ, compared), loss,
            usd, self._mean("took", "timed"), self._latency.quantile(0.5), self._latency.quantile(0.99), stopped,
        )  # fmt: skip


def part(count: int, of: int, risk: float = RISK) -> Interval:
    """Return a share with its interval."""
    return Interval(*share_and_interval(count, of, risk))


# Arms and guardrail of one trial.

ERRORS, DEFERRED, DIFFERS = "more_errors", "more_deferred", "more_differs"
# (side, True if shown) -> quantities that the guardrail tests. A hidden edge is judged by its audits instead.
TESTS = {("edge", True): (ERRORS, DEFERRED, DIFFERS), ("cloud", True): (ERRORS, DIFFERS), ("cloud", False): (DIFFERS,)}
WORDS = {
    ("edge", ERRORS): "has more requests that its edge model failed on than {}",
    ("edge", DEFERRED): "has more deferrals than {}",
    ("edge", DIFFERS): "has more answers that differ from the cloud's than {}",
    ("cloud", ERRORS): "has more calls that fail than {}",
    ("cloud", DIFFERS): "has more answers that differ from the edge's than {}",
}
HIDDEN_DIFFERS = "has more hidden answers that differ from those of {}"


class RunningTrial(ForkSafe):
    """Trial under way: draws the arm of a request by a hash, counts outcomes, and stops for good once a test of harm says so.

    Args:
        trial: the settings, with their defaults filled in.
        names: names of the target in use, and of the one on trial.
        models: descriptions of both.
        prints: identities of both; figures of others that had their names are not continued.
        free: share of the keys that earlier trials of the same side leave, 0..1.
        left: share that all trials of the side leave to the target in use, 0..1.
        alarm: called with the name on trial and the reason once the guardrail stops it.

    Attributes:
        stopped: reason why no request is in its arm any more; empty: under way.
    """

    _lock = per_process(SafeLock)

    def __init__(
        self, trial: Trial, names: tuple[str, str], models: tuple[str, str], prints: tuple[str, str], free: float,
        left: float, alarm: Callable[[str, str], object]
    ) -> None:  # fmt: skip
        self.trial, self.names, self._models, self._alarm, self._left, self.stopped = trial, names, models, alarm, left, ""
        numbers = [float(getattr(trial, name)) for name in (ERRORS, DEFERRED, DIFFERS, "alpha")]
        # Identity of the figures; equal after JSON. Shares may change: a canary's grows.
        self.of: list[Any] = [trial.side, trial.shown, *names, *prints, trial.salt, *numbers]
        self._tests, self._tallies = self._new_tests(), (_Tally(), _Tally())
        self._units: dict[str, str] = {}  # id of a recent request -> digest of its user's key, or of its session
        self._limit = 0.0 if free <= 0 else (trial.share or 0.0) / free
        self._said = set[str]()
        self._fixed = None if trial.device is None else self._in_arm(trial.device)

    def _new_tests(self) -> dict[str, ArmTest | UnitArmTest]:
        """Return new tests of the guardrail by what they test, each with its part of `alpha`.

        They are of users if a key decides the arm, else of requests, and beside them of sessions.
        """
        kinds = TESTS[self.trial.side, self.trial.shown]
        tests: dict[str, type[ArmTest | UnitArmTest]] = dict.fromkeys(kinds, ArmTest)
        if self._by_unit:
            tests |= dict.fromkeys((kind if self.trial.by else kind + OF_SESSIONS for kind in kinds), UnitArmTest)
        margins = {kind: min(getattr(self.trial, kind.removesuffix(OF_SESSIONS)), 0.999) for kind in tests}
        return {kind: test(margins[kind], self.trial.alpha / len(tests)) for kind, test in tests.items()}

    @property
    def _by_unit(self) -> bool:
        """True if all requests of a user, or of a session, are in one arm, and are shown."""
        return self.trial.device is None and self.trial.shown

    def _draw_unit(self, key: object, identity: str) -> bool:
        """Return True if a user's key, or a session's id, is in the trial's arm, by a hash.

        Remember its digest as the request's unit. At most `MOST_UNITS` are remembered.
        """
        if self._by_unit:
            unit = sha256(f"{self.trial.salt}\0{key}".encode("utf-8", "surrogatepass")).hexdigest()[:16]
            with self._lock:
                self._units[identity] = unit
                if len(self._units) > MOST_UNITS:
                    del self._units[next(iter(self._units))]
        return self._in_arm(key)

    def _unit(self, identity: str) -> str:
        """Return the digest of the user's key, or of the session, of a request or of the batch of a row; empty: not known."""
        return self._units.get(identity) or self._units.get(identity.rpartition(".")[0], "")

    def _in_arm(self, key: object) -> bool:
        """Return True if the salted hash of the key lies in the trial's share: the same for a key every time. No draw, no state.

        The hashes of several trials are independent.
        """
        digest = sha256(f"{self.trial.salt}\0{self.names[1]}\0{key}".encode("utf-8", "surrogatepass")).digest()
        return int.from_bytes(digest[:8], "big") < self._limit * 2**64

    def draws(self, identity: str, x: Any) -> bool:
        """Return True if a request is in the trial's arm: by its device, its key, its session, or its own id.

        Nothing is drawn: a salted hash of it decides, the same every time. Remembers the user or session of the request. False if
        `by` fails, which is logged once.
        """
        if self._fixed is not None:
            return self._fixed
        by = self.trial.by
        if by is None:
            turn = TURN.get()
            return self._draw_unit(turn.stream, identity) if turn is not None and turn.stream else self._in_arm(identity)
        try:
            return call_contained(lambda value: self._draw_unit(by(value), identity), x)
        except Exception as e:  # noqa: BLE001 - the application's function
            self.log_once(f"by failed, so the request is in the arm of {self.names[0]}", e)
            return False

    def log_once(self, text: str, error: Exception) -> None:
        """Log an exception of the application, the first time."""
        if text not in self._said:
            self._said.add(text)
            log.error("trial of %s: %s (said once)", self.names[1], text, exc_info=error)

    def count(self, rows: Sequence[Seen], request: str = "") -> None:
        """Add the outcomes of a request, or of the rows of a batch, which are in one arm, to its sums and the tests.

        May stop the trial. For the guardrail a batch is one observation: its rows fail together, and the tests are of independent
        ones. A hidden trial's tests take none.
        """
        if not rows:
            return
        b = rows[0].name == self.names[1]
        with self._lock:
            unit = self._unit(request)
            for seen in rows:
                self._tallies[b].add(seen)
            if self.trial.shown:
                self._add_to_test(ERRORS, [seen.failed for seen in rows], b=b, unit=unit)
                self._add_to_test(DEFERRED, [seen.deferred for seen in rows], b=b, unit=unit)
                self._add_to_test(DIFFERS, [seen.differs for seen in rows if seen.differs is not None], b=b, unit=unit)
        self._stop_if_worse()

    def add_comparison(self, *, differs: bool, b: bool, request: str = "") -> None:
        """Add a comparison by an audit, or of a hidden cloud's answer with that of the one in use, to sums and test.

        May stop the trial. For a hidden one the test bets against no difference at all.
        """
        with self._lock:
            self._tallies[b].compare(differs=differs)
            if not self.trial.shown:
                self._add_to_test(DIFFERS, [False], b=False)  # so the test is of one mean against the margin
            self._add_to_test(DIFFERS, [differs], b=b, unit=self._unit(request))
        self._stop_if_worse()

    def called(self, took_s: float | None) -> None:
        """Add a call of a hidden cloud to the tally of arm B; None: it failed."""
        with self._lock:
            self._tallies[1].add(Seen(self.names[1], took_s is None, False, None, took_s, None))

    def _add_to_test(self, kind: str, values: Sequence[bool], *, b: bool, unit: str = "") -> None:
        """Add the mean of values to the test of that kind, for sessions if there is a unit; the caller holds the lock.

        Nothing without values or such a test, or if the test is of users and the user is not known any more.
        """
        test = self._tests.get(kind + OF_SESSIONS if unit else kind, self._tests.get(kind))
        if not values or test is None:
            return
        mean = sum(values) / len(values)
        if isinstance(test, ArmTest):
            test.add(mean, b=b)
        elif unit:
            test.add(mean, b=b, unit=unit)

    def _stop_if_worse(self) -> None:
        """Stop the trial, for good, if a test has enough evidence: set `stopped`, log a warning, and call the alarm.

        Nothing if it is stopped.
        """
        for kind, test in self._tests.items():
            if test.alarmed and not self.stopped:
                a, b = self.names
                words = WORDS[self.trial.side, kind.removesuffix(OF_SESSIONS)] if self.trial.shown else HIDDEN_DIFFERS
                self.stopped = f"{b} {words.format(a)}, by more than is allowed (p = {test.p:.2g}, at any time)"
                log.warning("trial: %s; no request gets it any more", self.stopped)
                self._alarm(b, self.stopped)

    def dump(self) -> dict[str, Any]:
        """Return the state and the statistics in JSON types."""
        with self._lock:
            tallies = [tally.dump() for tally in self._tallies]
            tests = {kind: test.dump() for kind, test in self._tests.items()}
        names = ("side", "shown", "share", "salt", ERRORS, DEFERRED, DIFFERS, "alpha", "device")
        settings = {"models": [*self._models], **{name: getattr(self.trial, name) for name in names}}
        arms = [arm._asdict() for arm in self.stats()]
        return {"of": self.of, "stopped": self.stopped, "tallies": tallies, "tests": tests, "arms": arms, "settings": settings}

    def load(self, dumped: Iterable[Any]) -> None:
        """Continue from the dump with the same identity; an unreadable one is logged. The state so far stays if there is none."""
        try:
            for candidate in dumped:
                if isinstance(candidate, dict) and candidate.get("of") == self.of:
                    (a, b), tests = map(_Tally.load, candidate["tallies"]), self._new_tests()
                    for kind, test in tests.items():
                        test.load(candidate["tests"][kind])
                    self._tallies, self._tests, self.stopped = (a, b), tests, str(candidate["stopped"])
        except (KeyError, TypeError, ValueError) as e:
            log.warning("the figures of a trial cannot be read, and begin anew: %r", e)

    def stats(self) -> tuple[ArmStats, ArmStats]:
        """Return the statistics of the target in use, and of the one on trial."""
        (a, b), (model, other), trial = self.names, self._models, self.trial
        with self._lock:
            mine, tried = self._tallies
            return (
                mine.stats(a, trial.side, model, self._left, "", shown=True),
                tried.stats(b, trial.side, other, trial.share or 0.0, self.stopped, shown=trial.shown),
            )


# All trials of a router, as a part of it.


class Trials(ForkSafe, parts.Part):
    """All trials of a router: chooses each request's arm, counts outcomes, and calls hidden clouds in threads.

    Args:
        snapshot: the policy in force, with its trials.
        alarm: called with a name on trial and the reason once a guardrail stops it.
        calls: makes the calls of hidden clouds.
        submit: runs a call in a thread; returns False if none is free.
        dumped: figures of earlier runs, or of the previous policy; those with the same identity are continued.

    Attributes:
        under_way: number of calls of hidden clouds under way.
    """

    _lock = per_process(SafeLock)
    under_way = initially(0)
    name = STORED

    def __init__(
        self, snapshot: Snapshot, alarm: Callable[[str, str], object], calls: BackgroundCalls,
        submit: Callable[[Callable[[], object]], bool], dumped: Any
    ) -> None:  # fmt: skip
        self._calls, self._submit = calls, submit
        self.all: list[RunningTrial] = []
        in_use = [cloud.name for cloud in snapshot.proper]
        clouds, free = ", ".join(in_use), 1.0
        left = max(0.0, 1 - sum(trial.share or 0.0 for trial, _ in snapshot.on_trial if trial.side == "cloud" and trial.shown))
        self._arms = dict.fromkeys(in_use, clouds)  # endpoint -> its arm: those in use are one, whichever of them is called first
        for trial, name in snapshot.on_trial:
            if trial.side == "edge":
                assert snapshot.trial is not None, "it is shown"
                names, models = (snapshot.targets[0].name, name), (_describe_model(snapshot), _describe_model(snapshot.trial))
                rest = 1 - (trial.share or 0.0)
                self.all.append(RunningTrial(trial, names, models, models, 1.0, rest, alarm))
                continue
            self._arms[name] = name
            tried = next(cloud for cloud in snapshot.clouds if cloud.name == name)
            prints = " ".join(map(identity, snapshot.proper)), identity(tried)
            free_share = free if trial.shown else 1.0
            self.all.append(RunningTrial(trial, (clouds, name), (clouds, name), prints, free_share, left, alarm))
            free -= (trial.share or 0.0) * trial.shown
        self._edge = next((running for running in self.all if running.trial.side == "edge"), None)
        self._clouds = [running for running in self.all if running.trial.side == "cloud"]
        for running in self.all:
            running.load(dumped if isinstance(dumped, list) else ())

    @property
    def of(self) -> list[Any]:
        """Identities and settings of the trials."""
        return [(running.trial, running.of) for running in self.all]

    def dump(self) -> list[dict[str, Any]]:
        """Return the state and the statistics of each trial, in JSON types."""
        return [running.dump() for running in self.all]

    def stats(self) -> dict[str, Any]:
        """Return {"arms": `ArmStats` of each arm}, a field of `Stats`; the target in use is there once for a side."""
        by_arm = dict[str, ArmStats]()
        for arm in (arm for running in self.all for arm in running.stats()):
            by_arm.setdefault(arm.arm, arm)
        return {"arms": tuple(by_arm.values())}

    def choose(self, snapshot: Snapshot, identity: str, x: Any) -> tuple[Snapshot, str]:
        """Return the policy of a request, with the edge model of its arm, and the name of the cloud on trial; empty: none.

        A stopped trial's requests go to the target in use. Remembers the user or session of the request, as `draws`.

        Args:
            snapshot: the policy in force.
            identity: id of the request, or of the one whose arm it shares.
            x: the input, for `by`.
        """
        edge, other = self._edge, snapshot.shown  # a hidden one may be new, in a policy that these trials are not yet of
        if edge is not None and other is not None and not edge.stopped and edge.draws(identity, x):
            snapshot = other
        for running in self._clouds:
            if running.trial.shown and running.draws(identity, x):
                return snapshot, "" if running.stopped else running.names[1]
        return snapshot, ""

    def compared(self, comparison: Compared) -> None:
        """Add an audited answer that a caller got to the trial of the edge, which may stop it.

        Nothing without one, or for a label.
        """
        edge, name = self._edge, comparison.target
        if edge is not None and name in edge.names and comparison.accepted and comparison.label != "reported":
            edge.add_comparison(differs=comparison.differs, b=name == EDGE_TRIAL, request=comparison.request)

    def walked(self, walks: Sequence[Walked]) -> None:
        """Count a request, or the rows of a batch, in their arms, and call hidden clouds in threads for those that are drawn.

        Never raises: errors are logged.
        """
        try:
            if self._edge is not None:
                rows = [seen for walked in walks if (seen := _edge_seen(walked)) is not None and seen.name in self._edge.names]
                self._edge.count(rows, walks[0].request.id)
            if self._clouds:
                self._count_clouds(walks)
        except Exception:
            log.exception("a trial could not be counted; the answer is not touched by it")

    def _count_clouds(self, walks: Sequence[Walked]) -> None:
        """Count the outcomes of clouds' calls in their arms.

        Begin calls of hidden clouds, in threads, for those that are drawn.
        """
        outcomes = [(walked.request, seen) for walked in walks if (seen := self._cloud_seen(walked)) is not None]
        for running in self._clouds:
            running.count([seen for _, seen in outcomes if seen.name in running.names], walks[0].request.id)
            if running.trial.shown or running.stopped:
                continue
            for request, seen in outcomes:
                if seen.answer is not None and seen.name == running.names[0] and running.draws(request.id, request.inputs):
                    self._call_hidden(running, request, seen.leg, seen.answer.value, seen.edge)

    def _cloud_seen(self, walked: Walked) -> Seen | None:
        """Return the first cloud's result for its arm: failure, latency, cost, and if the edge differed.

        A timeout counts as a failure. None: it has no arm, was not called, or failed by no fault of the endpoint.
        """
        request, outcome, legs = walked.request, walked.outcome, walked.request.plan.legs
        i = next((i for i, leg in enumerate(legs) if leg.permit is not None), None)
        if i is None or (arm := self._arms.get(legs[i].name)) is None:
            return None
        marks = {mark.kind: mark for mark in outcome.log if mark.leg == i}
        failed = "timeout" in marks or ("failed" in marks and _is_its_own_fault(marks["failed"].detail))
        reply = next((marks[kind] for kind in ("accepted", "below", "kept") if kind in marks), None)
        if "start" not in marks or (reply is None and not failed):
            return None
        took_s = None if reply is None or request.batch else reply.at - marks["start"].at
        answer = outcome.prediction if outcome.leg == i and reply is not None else None
        edge = next((held for leg, held in outcome.held.items() if legs[leg].permit is None), None)
        differs = None if answer is None or edge is None else self._differ(edge.value, answer.value)
        usd = walked.costs[i].usd if i in walked.costs and not request.batch else None  # a batch's is of all its rows
        return Seen(arm, failed, False, differs, took_s, usd, i, answer, edge)

    def _differ(self, value: Any, other: Any) -> bool | None:
        """Return True if two values differ; None: they cannot be compared, which is logged once."""
        try:
            return not call_contained(same, value, other)
        except Exception as e:  # noqa: BLE001 - the application's values
            self._clouds[0].log_once("answers cannot be compared, so failures alone are", e)
            return None

    def _call_hidden(self, running: RunningTrial, request: Request, i: int, value: Any, edge: Prediction | None) -> None:
        """Begin a call of a hidden cloud in a thread, with a copy of the input, which compares its answer with `value`.

        Not if `MOST_HIDDEN` are under way, limits or load leave no room, or no thread is free. The answer is not touched;
        failures of the endpoint itself count, and exceptions of the job are logged.
        """
        name, legs = running.names[1], request.plan.legs
        target = next((n for n, target in enumerate(request.snapshot.targets) if target.name == name), None)
        if target is None or self.under_way >= MOST_HIDDEN:
            return
        hidden = legs[i]._replace(
            name=name, target=target, threshold=None, final=True, hedge_after_s=INF, standby=False, start_by_s=INF, thresholds={}
        )
        legs = (*legs, hidden)
        asks = request._replace(plan=request.plan._replace(legs=legs), id=f"{request.id}-{name}")
        if not self._calls.room(asks, len(legs) - 1):
            return
        call, _ = self._calls.prepare(asks, len(legs) - 1, edge)
        value = copy_value(value)  # the caller may change what it got

        def job() -> None:
            try:
                begun = monotonic()
                event = call()
                if type(event) is Done:
                    running.called(event.at - begun)
                    if (differs := self._differ(event.answer.value, value)) is not None:
                        running.add_comparison(differs=differs, b=True)
                elif type(event) is Failed and _is_its_own_fault(event.error):
                    running.called(None)
            except Exception:
                log.exception("a call of a hidden cloud failed; no answer is touched by it")
            finally:
                with self._lock:
                    self.under_way -= 1

        with self._lock:
            self.under_way += 1
        if not self._submit(job):
            with self._lock:
                self.under_way -= 1


def _describe_model(snapshot: Snapshot) -> str:
    """Return a description of a policy's edge model: its version of a catalog, or its name."""
    model = cast("EdgeBackend", snapshot.backends[0]).model
    return str(member(model, "release") or model.name)


def _edge_seen(walked: Walked) -> Seen | None:
    """Return the outcome of a request for the arm of the first edge of its plan; None: the plan has no edge.

    It is failed or not, deferred or not, and the time so far. An input that the edge cannot take is no failure.
    """
    request, outcome, legs = walked.request, walked.outcome, walked.request.plan.legs
    edge = next((i for i, leg in enumerate(legs) if leg.permit is None), None)
    if edge is None:
        return None
    faults = (error for kind, leg, _, error in outcome.log if kind == "failed" and leg == edge)
    failed = any(Failure.of(error).code not in UNFIT for error in faults)
    away = any(kind == "start" and legs[leg].permit is not None for kind, leg, _, _ in outcome.log)
    return Seen(legs[edge].name, failed, away, None, None if request.batch else monotonic() - request.begun, None)


def _is_its_own_fault(error: BaseException) -> bool:
    """Return True if an endpoint itself failed, also if its breaker, opened by its own faults, rejects the call."""
    failure = Failure.of(error)
    return failure.code in AWAY or not (failure.held or failure.status in INPUTS_OWN)


def identity(backend: CloudBackend) -> str:
    """Return a hash of an endpoint's address, protocol and model, or of a function's code; equal after a restart.

    Labels are left out, as a server may report them later. A function that refers to an object has no identity that two processes
    agree on, so only its name counts.
    """
    endpoint: Any = getattr(backend, "endpoint", None)
    if endpoint is None:
        description = backend.fingerprint(fingerprint)
    else:  # a subclass may do otherwise
        description = repr(endpoint.identity(fingerprint)) if "identity" in vars(type(endpoint)) else fingerprint(endpoint)
    content = repr((backend.origin, "" if UNIDENTIFIED in description else description))
    return sha256(content.encode("utf-8", "surrogatepass")).hexdigest()
