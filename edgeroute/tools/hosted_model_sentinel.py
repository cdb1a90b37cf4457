"""Sentinel of a hosted model: asks pinned inputs now and then, in a thread, and suspends certificates if answers changed.

`Sentinel` is the part of a router that sends the probes; `Pinned` has their answers, and the test.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import weakref
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from time import gmtime, monotonic, strftime
from typing import Any, Final, Literal

from edgeroute.confidence.binomial_tests import upper_bound
from edgeroute.confidence.certificate import Certificate, digest
from edgeroute.confidence.output_forms_labels_and_comparison import same
from edgeroute.core.plan import by_itself
from edgeroute.core.policy_egress_and_options import INF
from edgeroute.core.sequential_tests import Drift
from edgeroute.core.walk import Done, Start
from edgeroute.errors import MayNotLeave, PolicyError, check_number
from edgeroute.router.audits_and_hidden_trials import AuditCalls, edge_fingerprints
from edgeroute.router.engine import Engine, class_of
from edgeroute.router.leg_execution import LegExecutor
from edgeroute.router.part_hooks_and_dispatch import Part, name_of
from edgeroute.router.policy_snapshot import Snapshot
from edgeroute.router.request import Request
from edgeroute.router.request_checks_and_planning import checked_plan
from edgeroute.system import wall_clock
from edgeroute.system.contained_calls_and_tasks import call_contained
from edgeroute.system.files_and_lock_waits import sha256
from edgeroute.system.json_codec_and_short_repr import to_json_types
from edgeroute.system.thread_pool_and_workers import Worker
from edgeroute.tools.measure.audit_counts_and_evidence import COUNTED_SINCE, LOOKS
from edgeroute.trials.audits_and_drift_alarms import COUNTS

log = logging.getLogger("edgeroute")
DAY_S: Final = 86_400.0
MONTH: Final = 30.4  # days of a month
PACE_S: Final = 60.0  # seconds between two probes until all usual answers are known
RISK: Final = 0.01  # risk that the usual share of differing answers is above its bound
TOO_FEW: Final = "so few answers do not show that most stay the same; give more inputs, or more rounds"
SHOWN: Final = 20  # most recent probes that an alarm counts


class Pinned:
    """Answers of a model to pinned inputs, and the test that they still are what they were.

    Each input is asked `rounds` times first. The most frequent answer of the first half is its usual one. In the second half,
    over all inputs, a share of answers differs from the usual ones; its upper confidence bound is the level of a `Drift`. Later
    answers have to be of inputs drawn at random, each with equal probability, so that each differs with this share on average.

    Args:
        count: number of inputs.
        rounds: answers to each input from which the usual ones are learned; 2 or more.
        alarm: average number of probes to a false alarm, at least.
        agrees: `f(an answer, another)`: True if they say the same.
        exact: an input gets the same answer each time, as from a classifier: two in a row that differ raise the alarm.
    """

    def __init__(
        self, count: int, rounds: int, alarm: float, agrees: Callable[[Any, Any], Any] = same, *, exact: bool = False
    ) -> None:
        self.answers: list[list[Any]] = [[] for _ in range(count)]
        self.test: Drift | None = None
        self.recent: deque[bool] = deque(maxlen=SHOWN)
        self._rounds, self._alarm, self._agrees, self._usual = rounds, alarm, agrees, list[Any]()
        self._exact, self._again = exact, -1

    def next(self) -> int:
        """Return the input to ask next: the one with the fewest answers, or, once all are known, one at random.

        With `exact`, one whose last answer differed is asked again.
        """
        if self.test is None:
            return min(range(len(self.answers)), key=lambda i: len(self.answers[i]))
        return self._again if self._again >= 0 else random.randrange(len(self.answers))  # noqa: S311 - a sample, not a secret

    def add(self, i: int, value: Any) -> bool:
        """Add an answer to input number `i`. Return True if it raises the alarm, which then stays.

        While usual answers are being learned it is only stored; the last one of these begins the test.
        """
        if self.test is None:
            self.answers[i].append(value)
            if min(map(len, self.answers)) >= self._rounds:
                self._begin()
            return False
        before, differs = self.test.alarmed, not self._agrees(self._usual[i], value)
        self.recent.append(differs)
        if self._exact:
            self.test.alarmed = before or (differs and self._again == i)
            self._again = i if differs else -1
        else:
            self.test.add(float(differs))
        return self.test.alarmed and not before

    def _begin(self) -> None:
        """Choose the usual answers, and begin the test by the others; logs a warning if half of these or more may differ."""
        half = (self._rounds + 1) // 2
        self._usual = [self._most_frequent(answers[:half]) for answers in self.answers]
        later = [not self._agrees(usual, v) for usual, a in zip(self._usual, self.answers, strict=True) for v in a[half:]]
        level = upper_bound(sum(later), len(later), RISK)
        if level >= 1 / 2:
            often = sum(later) * 2 >= len(later)
            log.warning("sentinel: %d of %d answers to pinned inputs differ: %s", sum(later), len(later),
                        "choose inputs with short, stable answers" if often else TOO_FEW)  # fmt: skip
        self.test = Drift(min(level, 0.99), alarm=self._alarm)

    def _most_frequent(self, answers: list[Any]) -> Any:
        """Return the answer with which most of them agree."""
        return max(answers, key=lambda answer: sum(map(partial(self._agrees, answer), answers)))

    def dump(self) -> dict[str, Any] | None:
        """Return the state in JSON types, with the answers; None if one is neither text nor number."""
        if not all(isinstance(value, str | int | float) for answers in self.answers for value in answers):
            return None
        return {"answers": self.answers, "test": None if self.test is None else self.test.dump()}

    def load(self, dumped: Mapping[str, Any]) -> None:
        """Restore the state of a dump, in place. Raises KeyError, TypeError or ValueError for anything else."""
        self.answers = [list(answers) for answers in dumped["answers"]]
        if dumped["test"] is not None:
            self._begin()
            assert self.test is not None
            self.test.load(dumped["test"])


class Sentinel(Part):
    """Sentinel of one hosted model; an object for one router, as in `Options(parts=[Sentinel(["2 + 2 = ?"])])`.

    Probes are sent as audits are: where the policy, the egress rules, the link, the rate, the money limits and the breaker allow
    a call that nobody waits for, in a thread of its own, with a line in the ledger. An alarm suspends the certificates until
    they are made anew: their label, which each reason has, says so. It also begins the counts of audits anew; a certificate of an
    earlier day, or of audits from before, does not end it. With a state folder answers and evidence outlive the process.

    Args:
        inputs: pinned inputs, with nothing of a user in them; best some 10, with short answers.
        per_day: probes a day, once the usual answers are known; until then one is sent a minute.
        usd_per_day: most that probes may cost in 24 hours, beside the router's own limits.
        exact: an input always gets the same answer, as from a classifier: two answers in a row that differ raise the alarm.
        rounds: answers to each input from which the usual ones are learned; 2 or more.
        months: average time to a false alarm, at least.
        on_alarm: effect of an alarm. "tell": thresholds stay; "defer": everything is deferred until there is another certificate.
        agrees: `f(an answer, another)`: True if they say the same; None: they are equal, or the same label in another form.
        cloud: name of the endpoint; without it the first one.
        data_class: data class of the inputs.

    Raises:
        PolicyError: an argument is invalid.
    """

    name = "sentinel"

    def __init__(
        self,
        inputs: Sequence[Any],
        *,
        per_day: float = 4.0,
        usd_per_day: float = INF,
        exact: bool = False,
        rounds: int = 16,
        months: float = 120.0,
        on_alarm: Literal["tell", "defer"] = "tell",
        agrees: Callable[[Any, Any], Any] | None = None,
        cloud: str | None = None,
        data_class: str | None = None,
    ) -> None:
        if isinstance(inputs, str | bytes | Mapping) or not hasattr(inputs, "__len__") or not len(inputs):
            raise PolicyError("sentinel: inputs is a list of one or more inputs")
        if on_alarm not in {"tell", "defer"}:
            raise PolicyError(f"sentinel: on_alarm is 'tell' or 'defer', not {on_alarm!r}")
        for name, number in {"per_day": per_day, "months": months, "usd_per_day": usd_per_day}.items():
            if number != INF or name != "usd_per_day":
                check_number(f"sentinel: {name}", number, above=True)
        check_number("sentinel: rounds", rounds, least=2, whole=True)
        self.inputs, self._per_day, self._usd_per_day, self._on_alarm = list(inputs), per_day, usd_per_day, on_alarm
        self._cloud, self._data_class = cloud, data_class
        self._new = partial(Pinned, len(self.inputs), rounds, per_day * MONTH * months, agrees or same, exact=exact)
        self.pinned = self._new()
        self._key, self._place, self._what, self._at, self._probes, self._failed = "", "", "", 0.0, 0, 0
        self._spent: deque[tuple[float, float]] = deque()
        self._engine: Callable[[], Engine | None] = lambda: None
        self._worker = Worker("edgeroute-sentinel", self._turn, "a probe of the sentinel failed", retry_s=10 * PACE_S)

    def attach(self, engine: Engine) -> None:
        """Store a weak reference to the router's engine, of which the probes are calls.

        Raises PolicyError for a sentinel that has one already.
        """
        if self._engine() is not None:
            raise PolicyError("sentinel: it is another router's: make one for each")
        self._engine, (self._key, self._place) = weakref.ref(engine), self._identity(engine.snapshot)

    def changed(self, snapshot: Snapshot) -> None:
        """End an alarm at once, and learn usual answers anew, if the policy has later certificates or other endpoints.

        Else do nothing.
        """
        if self._what and (engine := self._engine()) is not None and self._is_other(snapshot):
            self._renew(engine)

    def opened(self, status: Callable[[], Any]) -> None:  # noqa: ARG002 - as parts are called
        """Start the thread that probes: once a minute until usual answers are known, then as often as `per_day` says."""
        self._worker.start()

    def probe(self) -> bool:
        """Ask one pinned input, blocking, unless it may not be sent now. Return True if there was an answer.

        It may not after `usd_per_day`, with a closed router, or where the policy keeps it. With other certificates or endpoints
        usual answers are learned anew. An answer that raises the alarm suspends the certificates, and is logged and told to the
        instruments; with a state folder the state is stored. For programs that probe when they choose, and for tests.
        """
        engine = self._engine()
        if engine is None or engine.closed:
            return False
        if self._is_other(engine.snapshot):
            self._renew(engine)
        now = wall_clock.now()
        while self._spent and self._spent[0][0] <= now - DAY_S:
            self._spent.popleft()
        if sum(usd for _, usd in self._spent) >= self._usd_per_day:
            return False
        i, calls = self.pinned.next(), len(self._spent)
        try:
            answer = self._ask(engine, self.inputs[i], now)
        except MayNotLeave:
            return False
        alarms = answer is not None and self.pinned.add(i, answer[0])
        if alarms:
            recent, self._at = self.pinned.recent, now
            self._what = (
                f"the sentinel of {strftime('%Y-%m-%d', gmtime(now))} found another model: {sum(recent)} of the last "
                f"{len(recent)} answers to pinned inputs are not the usual ones"
            )
            self._begin_counts(engine)
        if engine.checkpoint is not None and len(self._spent) > calls:  # a router without requests stores nothing by itself
            engine.checkpoint.store.put(f"part:{name_of(self)}", to_json_types(self.dump()))
            engine.checkpoint.store.flush()
        if alarms:
            self._suspend(engine)
            log.warning("%s", self._what)
            engine.instruments.alarm(self.name, self._what)
        self._probes += answer is not None
        return answer is not None

    def _ask(self, engine: Engine, x: Any, now: float) -> tuple[Any] | None:
        """Call the endpoint for an input, in this thread, and return its value in a tuple.

        None: there is no room, or the call failed. Counts cost and failure, books them with the engine, and notes a new name of
        the model.

        Raises:
            MayNotLeave: the egress rules forbid it.
        """
        snapshot, calls = engine.snapshot, AuditCalls(engine)
        named = self._data_class if snapshot.egress.data_class is None else class_of(engine, snapshot.egress, x, self._data_class)
        plan = by_itself(checked_plan(snapshot, engine.observer.facts, "only_cloud", None, named))
        clouds = [i for i, leg in enumerate(plan.legs) if leg.permit is not None and self._cloud in {None, leg.name}]
        identity = f"{engine.name}-{next(engine.numbers)}-sentinel"
        request = Request(identity, x, plan, snapshot, monotonic(), INF)
        if not clouds or not calls.allowed() or not calls.room(request, clouds[0]):
            return None
        legs, start = LegExecutor([request], engine.edge_threads, engine.cloud_threads), Start(clouds[0])
        legs.floor = True
        backend: Any = legs.backend(start)
        if backend.alone_async:

            async def here(call: Callable[[], Any]) -> Any:  # it has its own loop and thread
                return call()

            event = call_contained(asyncio.run, legs.run_async(start, here))
        else:
            event = legs.run(start)
        engine.spending.keep()
        engine.observe()  # the reply may name another model
        self._spent.append((now, sum(spent.usd for spent in legs.costs().values())))
        self._failed += type(event) is not Done
        return (event.answer.value,) if type(event) is Done else None

    def _renew(self, engine: Engine) -> None:
        """Learn anew what is usual, for other certificates or endpoints; end the alarm, and put the certificates in force."""
        self._key, self._place = self._identity(engine.snapshot)
        self._what, self._at, self.pinned = "", 0.0, self._new()
        self._suspend(engine)

    def _begin_counts(self, engine: Engine) -> None:
        """Begin the counts of audits anew, those of other processes with the state folder included: they are of another model."""
        if engine.auditor is not None:
            engine.auditor.begin_counts(self._what)
        elif engine.checkpoint is not None:  # audits of other processes, or of earlier ones
            names = {COUNTS + digest(prints) for prints in edge_fingerprints(engine.snapshot).values()}
            engine.checkpoint.store.add({name: {str(int(self._at)): 1} for name in names})

    def _suspend(self, engine: Engine) -> None:
        """Label the engine's answers uncalibrated during an alarm, and with on_alarm="defer" defer all; else undo both."""
        stands = {"label": f"uncalibrated: {self._what}"} if self._what else {}
        engine.doubt = {**stands, **({"threshold": INF, "thresholds": {}} if stands and self._on_alarm == "defer" else {})}
        engine.refresh_thresholds()

    def _identity(self, snapshot: Snapshot) -> tuple[str, str]:
        """Return two hashes of what the usual answers belong to: of inputs, endpoint and certificates; and without these."""
        made = [bound.certificate.checksum for bound in snapshot.certificates if bound is not None]
        of = self.inputs, [cloud.where for cloud in snapshot.proper]
        whole, place = (sha256(repr(text).encode()).hexdigest() for text in ((*of, made), of))
        return whole, place

    def _is_other(self, snapshot: Snapshot) -> bool:
        """Return True if the policy has other certificates or endpoints; with an alarm, if no certificate is from before it."""
        key, place = self._identity(snapshot)
        if key == self._key or not self._what or place != self._place:
            return key != self._key
        return all(_is_later(bound.certificate, self._at) for bound in snapshot.certificates if bound is not None)

    def _turn(self) -> float | None:
        """Probe once; return the seconds until the next probe, at random; None: the router is gone."""
        if (engine := self._engine()) is None or engine.closed:
            return None
        del engine
        self.probe()
        return PACE_S if self.pinned.test is None else DAY_S / self._per_day * random.uniform(0.5, 1.5)  # noqa: S311

    def stats(self) -> dict[str, Any]:
        """Return how many probes were answered and how many failed, level and evidence of the test, and the alarm's text."""
        test = self.pinned.test
        level, evidence = (None, 0.0) if test is None else (test.level, test.evidence)
        return {"probes": self._probes, "failed": self._failed, "level": level, "evidence": evidence, "alarm": self._what}

    def dump(self) -> dict[str, Any]:
        """Return the state to store; without answers if they cannot be stored."""
        state = {"key": self._key, "place": self._place, "alarm": self._what, "at": self._at, "spent": list(self._spent)}
        return {**state, **(self.pinned.dump() or {})}

    def load(self, state: Any) -> None:
        """Restore the state of an earlier run: its costs; with the same inputs, endpoint and certificates, answers and alarm.

        Also with other certificates if these do not end the alarm, which suspends them. What is damaged is dropped without an
        error.
        """
        engine = self._engine()
        with contextlib.suppress(KeyError, TypeError, ValueError, IndexError):
            self._spent.extend((float(at), float(usd)) for at, usd in state["spent"])
            used, (self._key, self._place) = (self._key, self._place), (str(state["key"]), str(state.get("place", "")))
            self._what, self._at = str(state["alarm"]), float(state.get("at", 0.0))
            if engine is None or self._is_other(engine.snapshot):
                (self._key, self._place), self._what, self._at = used, "", 0.0
                return
            if self._what:
                self._suspend(engine)
            if len(state["answers"]) == len(self.inputs):
                (pinned := self._new()).load(state)
                self.pinned = pinned

    def close(self) -> None:
        """End the thread that probes; a probe under way is waited for up to a second."""
        self._worker.close(1.0)


def _is_later(certificate: Certificate, at: float) -> bool:
    """Return True if a certificate may be of the model since then: made no day earlier, and of audits, by those since alone."""
    if certificate.date < strftime("%Y-%m-%d", gmtime(at)):
        return False
    return certificate.method != LOOKS or certificate.parameters.get(COUNTED_SINCE, 0) >= int(at)
