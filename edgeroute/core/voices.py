"""The legs of a stream that were started: which is waited for, which is due, and which is to be shown."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from edgeroute.core.plan import Plan
from edgeroute.core.policy import INF
from edgeroute.core.walk import Prediction


class Voice:
    """A leg that was started.

    Attributes:
        first_by: by when it has to begin.
        last: nobody else was left as it was started: its answer is accepted whatever its confidence.
        sure: whether it is accepted; None: it is not decided.
        passed: it is not waited for any more, though it may go on.
        ended, failed: it has, and without an answer.
        patient: it is waited for beyond `first_by`, since there is nobody else.
        answer: if it has one.
        error: why it failed, if it said so.
    """

    __slots__ = ("answer", "ended", "error", "failed", "first_by", "last", "passed", "patient", "pieces", "started", "sure")

    def __init__(self, started: float, first_by: float, last: bool) -> None:
        self.started, self.first_by, self.last = started, first_by, last
        self.pieces: list[object] = []
        self.sure: bool | None = None
        self.passed = self.ended = self.failed = self.patient = False
        self.answer: Prediction | None = None
        self.error: BaseException | None = None

    @property
    def active(self) -> bool:
        """Whether it is waited for."""
        return not self.ended and not self.passed

    @property
    def spoken(self) -> bool:
        """Whether anything has come from it that counts."""
        return bool(self.pieces) or self.answer is not None


class Voices:
    """The legs of a stream that were started, and what follows from how they stand.

    Attributes:
        now: the instant of the last event.
        voices: those that were started, in this order.
        pending: those that were not.
        shown: whose pieces are shown; None: nobody's yet.
        held: answers that were not accepted.
        stands: whether an edge's answer that is not accepted may be shown: otherwise the offline rule may replace it.
    """

    def __init__(self, plan: Plan, begun: float, first_s: float, restart: bool) -> None:
        self.plan, self.legs, self.begun, self.deadline = plan, plan.legs, begun, begun + plan.deadline_s
        self.first_s, self.restart = first_s, restart
        self.now = begun
        self.pending = [*plan.order]
        self.voices: dict[int, Voice] = {}
        self.shown: int | None = None
        self.held: dict[int, Prediction] = {}
        self.stands = plan.offline in {"edge", "queue"}

    def next(self) -> int:
        """The pending leg that is started next: a standby that is due before others are, or else the first."""
        first = self.pending[0]
        if not self.legs[first].standby and self._hedges_standby():
            return next((i for i in self.pending if self.legs[i].standby), first)
        return first

    def _hedges_standby(self) -> bool:
        """Whether an edge on standby is due, though others are waited for."""
        return self._standby_at() <= self.now and any(v.active for v in self.voices.values())

    def _standby_at(self) -> float:
        """When a standby is started beside others; inf: once they have ended, for which they leave it its time."""
        plan = self.plan
        leg = next((leg for leg in plan.legs if leg.standby), None)
        if leg is None or plan.hedge_s >= plan.deadline_s - min(plan.facts.reserves.get(leg.name, INF), plan.deadline_s / 2):
            return INF
        return self.begun + plan.hedge_s

    def due(self) -> float:
        """The instant at which the next leg is started; inf: not as things are."""
        if not self.pending or self.fixed():
            return INF
        if not (active := [v for v in self.voices.values() if v.active]):
            return self.now
        first = self.pending[0]
        due = INF if self.legs[first].standby else active[-1].started + self.legs[first].hedge_after_s
        if any(self.legs[i].standby for i in self.pending):
            due = min(due, self._standby_at())
        return due

    def fixed(self) -> bool:
        """Whether the source is."""
        if self.shown is None:
            return any(v.sure for v in self.voices.values() if not v.ended)
        v = self.voices[self.shown]
        return not self.restart or (v.active and (v.sure is True or not self.judged(self.shown)))

    def judged(self, i: int) -> bool:
        """Whether that leg's answer has to reach a threshold."""
        leg = self.legs[i]
        return not self.voices[i].last and (leg.standby or not (leg.final or leg.threshold is None))

    def until(self) -> float:
        """When the next thing is to be done, if nothing comes."""
        if self.shown is not None and self.fixed():
            return self.deadline
        waits = [v.first_by for v in self.voices.values() if v.active and not v.spoken and not v.patient]
        return min(self.deadline, self.due(), *waits)

    def running(self) -> list[int]:
        """Those that have not ended."""
        return [i for i, v in self.voices.items() if not v.ended]

    def reserve_s(self, i: int) -> float:
        """Time to leave a standby after this leg, seconds; half of the deadline where more is needed, or it is unknown.

        Likewise to an edge that is not in memory, which has to be loaded.
        """
        plan, own = self.plan, self.legs[i]
        coming = (self.legs[j] for j in self.pending if j > i)
        leg = next((leg for leg in coming if leg.standby or leg.start_by_s < INF), None)
        if leg is None or own.standby or own.start_by_s < INF or plan.deadline_s == INF or self._standby_at() < INF:
            return 0.0
        if not leg.standby:
            return plan.deadline_s / 2
        return min(plan.facts.reserves.get(leg.name, INF), plan.deadline_s / 2)

    def early(self, i: int) -> bool:
        """Whether that leg may be decided within its answer: its threshold does not depend on what the answer is."""
        leg = self.legs[i]
        return self.judged(i) and not leg.standby and not leg.thresholds

    def others(self, i: int) -> bool:
        """Whether there is anything else than this leg that an answer may come from."""
        others = any(j != i and not v.failed and (v.answer or not v.ended) for j, v in self.voices.items())
        return others or (bool(self.pending) and self.now < self.deadline)

    def best(self, cut: Iterable[int]) -> int | None:
        """The leg whose answer stands."""
        if self.shown is not None and not (self.restart and self.stands and self.held):
            return self.shown
        if self.held:
            return self.shown if self.shown in self.held else max(self.held, key=lambda i: self.legs[i].target)
        parts = [i for i in cut if self._stays(i)] or [i for i, v in self.voices.items() if v.failed and self._stays(i)]
        return parts[0] if parts and self.stands else None

    def speakers(self) -> Iterator[int]:
        """The leg to be shown, if there is one: the first that was yielded counts."""
        undecided = False
        for i, voice in self.voices.items():
            if voice.pieces and not (voice.failed or voice.passed or undecided or self.judged(i)):
                yield i
            undecided = undecided or (voice.active and self.judged(i) and not self.legs[i].standby)
        if self.restart and self.shown is None:
            yield from (i for i, v in self.voices.items() if self._stays(i) and not v.failed)
        left = [i for i, v in self.voices.items() if not v.failed and not v.ended]
        if self.stands and not self.pending and len(left) == 1 and not self.held and self._stays(left[0]):
            yield left[0]  # nobody else is left
        elif self.restart and self.shown is not None and self.voices[self.shown].failed:
            yield from (i for i, v in self.voices.items() if self._stays(i) and not v.failed)

    def _stays(self, i: int) -> bool:
        """Whether that leg is an edge that has begun."""
        return self.legs[i].permit is None and bool(self.voices[i].pieces)
