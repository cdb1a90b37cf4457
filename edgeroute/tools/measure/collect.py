"""Collects answers, confidence, latency and cost of edge and cloud on a set of inputs, as steps of a call."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from math import exp, isnan
from time import monotonic
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import numpy as np

from edgeroute.confidence.exact import Floats
from edgeroute.confidence.forms import TINY
from edgeroute.confidence.reader import Reader
from edgeroute.confidence.scores import Score
from edgeroute.core.plan import Plan
from edgeroute.core.policy import INF
from edgeroute.core.walk import Prediction, acceptable
from edgeroute.core.words import named
from edgeroute.edge.backend import EdgeBackend, edge_backend
from edgeroute.edge.members import member
from edgeroute.errors import BadInput, BadReply, Closed, EdgerouteError, MayNotLeave, ModelError, NoAnswer, PolicyError
from edgeroute.router.build import before, chosen, fingerprints
from edgeroute.router.engine import settle
from edgeroute.router.fallback import no_answer
from edgeroute.router.legs import LegExecutor, Walked
from edgeroute.router.plans import planned
from edgeroute.router.request import Request
from edgeroute.router.stages import Block, Pause, Steps, walked
from edgeroute.tools.measure.evaluation import Examples
from edgeroute.types import Spent

if TYPE_CHECKING:
    from edgeroute.cloud.backend import CloudBackend
    from edgeroute.router.build import Snapshot
    from edgeroute.router.engine import Engine


# Calls of single models beside a router's own calls, to measure them.
#
# Egress rules, consent, redaction, limits, the ledger, the breaker and instruments of attempts take part. Cache, outbox, audits,
# hedges, deadlines, offline rules, counts, alarms and traces do not.

LOOK_S = 1.0
"""Interval at which a waiting call looks whether the router was closed."""


class Aside:
    """One edge model of a router and its clouds, by the policy in force now: a reload changes nothing here.

    Args:
        engine: of the router.
        edge: index of the edge model, from 0.
        score: its confidence is by this score; None: by the one in use.
        of: another policy than that in force, as of a hidden edge on trial.

    Attributes:
        snapshot: that policy, reduced to plain calls.
        number: position of the edge model among its targets.
        before: the positions of the edge models that decide which inputs reach it.
        runner: the edge model's backend.

    Raises:
        Closed: the router is closed.
        PolicyError: there is no such edge model, or it has a score of its own.
    """

    def __init__(self, engine: Engine, edge: int = 0, score: str | Score | None = None, of: Snapshot | None = None) -> None:
        self._engine = engine
        self._check_open()
        snapshot = of or engine.snapshot
        edges = [i for i, target in enumerate(snapshot.targets) if target.side == "edge"]
        if isinstance(edge, bool) or not isinstance(edge, int) or not 0 <= edge < len(edges):
            raise PolicyError(f"there is no edge model number {edge}: the policy has {len(edges)}, counted from 0")
        self.number = edges[edge]
        self.runner = cast("EdgeBackend", snapshot.backends[self.number])
        self.score: str | Score = snapshot.specs[self.number][3]
        if score is not None and score != self.score:
            if member(self.runner.model, "score") is not None:
                raise PolicyError(
                    f"{self.runner.where} has a score of its own, which goes before the router's: change it there, or leave out "
                    "score="
                )
            self.score = score
            self.runner = edge_backend(self.runner.name, self.runner.model, score)
        backends, specs = list(snapshot.backends), list(snapshot.specs)
        kind, name, given, _, *more = specs[self.number]
        backends[self.number], specs[self.number] = self.runner, (kind, name, given, self.score, *more)
        policy = snapshot.policy._replace(offline="raise", hedge_after=INF, deadline_s=INF, device_rules=())
        targets = tuple(target._replace(group="") for target in snapshot.targets)  # each can be run, also if it is not picked
        self._targets, self.before = snapshot.targets, before(snapshot.targets, self.number)
        self.snapshot = snapshot._replace(policy=policy, targets=targets, backends=tuple(backends), specs=tuple(specs), plans={})

    @property
    def clouds(self) -> list[CloudBackend]:
        """The endpoints, but those on trial."""
        return self.snapshot.proper

    def arms(self) -> tuple[dict[str, Any], ...]:
        """Return the figures of the router's trials so far; empty: there are none, or no request was in one."""
        found = () if self._engine.trials is None else self._engine.trials.stats()
        return tuple(arm._asdict() for arm in found) if any(arm.requests for arm in found) else ()

    def fingerprints(self) -> dict[str, str]:
        """What a certificate for this edge model and this score is bound to. Reads files."""
        return fingerprints(self.snapshot._replace(targets=self._targets), self.number)

    def ready(self) -> Steps[None]:
        """Loads the edge model.

        Raises:
            ModelError: it cannot be used.
        """
        yield Block(partial(self.runner.ready, INF), INF)

    def run(self, x: Any, number: int | None = None) -> Steps[Walked]:
        """Runs the edge model, or the one before it with that position among the targets."""
        made = planned(self.snapshot, self._engine.observer.facts, "only_edge", None, None)
        leg = next(leg for leg in made.legs if leg.target == (self.number if number is None else number))
        leg = leg._replace(final=True, standby=False, hedge_after_s=INF, start_by_s=INF)
        (found,) = yield from self._walked(made._replace(legs=(leg,), order=(0,), sequential=True), [x])
        yield Pause(0.0)
        return found

    def keeps(self, number: int, one: Walked) -> bool:
        """Whether the edge model with that position keeps the input that it was run on, by the threshold that it was given."""
        (leg,), target, prediction = one.request.plan.legs, chosen(self.snapshot, number), one.outcome.prediction
        own = leg._replace(final=False, threshold=target.threshold, thresholds=target.thresholds)
        return prediction is not None and acceptable(own, prediction)

    def may_leave(self, data_class: str | None) -> Plan:
        """The plan for calls of the clouds.

        Raises:
            MayNotLeave: the egress rules forbid them.
            PolicyError: there is no cloud.
        """
        try:
            return planned(self.snapshot, self._engine.observer.facts, "only_cloud", None, data_class)
        except MayNotLeave as e:
            raise MayNotLeave(f"the cloud is to be asked about every example, and that may not leave the device: {e}") from e

    def ask(
        self, inputs: Sequence[Any], data_class: str | None, edge: Sequence[Prediction | None] | None = None
    ) -> Steps[list[Walked]]:
        """Asks the clouds about these inputs together, once their rate has room for that: half of it is left for other calls.

        edge: the edge's answers to them, for clouds that take these along; None: there are none.
        """
        while (wait_s := max((_spare_in(cloud, len(inputs)) for cloud in self.clouds), default=0.0)) > 0:
            yield Pause(min(wait_s, LOOK_S))
            self._check_open()
        return (yield from self._walked(self.may_leave(data_class), inputs, edge))

    def together(self, most: int) -> int:
        """How many inputs the clouds take in one request, at most."""
        return most if all(_spare_in(cloud, most) < INF for cloud in self.clouds) else 1

    def _walked(self, plan: Plan, inputs: Sequence[Any], edge: Sequence[Prediction | None] | None = None) -> Steps[list[Walked]]:
        self._check_open()
        engine = self._engine
        identity = f"{engine.name}-{next(engine.numbers)}"
        requests = [Request(identity, x, plan, self.snapshot, monotonic(), INF) for x in inputs]
        if len(requests) > 1:
            requests = [one._replace(id=f"{identity}.{row}", batch=identity) for row, one in enumerate(requests)]
        legs = LegExecutor(requests, engine.edge_threads, engine.cloud_threads)
        legs.floor = True
        if legs.edge is not None and edge is not None:
            legs.edge.note(None, edge)
        requests[0] = requests[0]._replace(begun=monotonic())  # what came before is no part of its latency
        walks = yield from walked(requests, legs)
        for one in walks:
            settle(engine, one.request, one.outcome, legs)
        if not all(one.outcome.accepted for one in walks):
            self._check_open()  # which would be why
        return walks

    def _check_open(self) -> None:
        if self._engine.closed:
            raise Closed("this router is closed")


def _spare_in(cloud: CloudBackend, inputs: int) -> float:
    """Seconds until its rate has so many inputs, and half of it for others; 0 also if nothing may be sent; inf: never."""
    guard, calls, now = cloud.guard, cloud.calls(inputs), monotonic()
    with guard.lock:
        return 0.0 if guard.rules.why(now) is not None else guard.rules.rate.spare_in(now, calls)


SMALLEST = exp(TINY)
MAY_FAIL = 0.01
"""Maximum share of inputs dropped for lack of a cloud answer; more would bias the sample."""
FOREIGN = 20
"""From so many labels on, that no answer is any of them is no chance."""


def collect(
    aside: Aside,
    inputs: Sequence[Any],
    labels: Sequence[Any] | None = None,
    groups: Sequence[Any] | None = None,
    *,
    ask_cloud: bool = True,
    data_class: str | None = None,
    batch: int = 1,
    advance: Callable[[int], object] = lambda _: None,
) -> Steps[tuple[Examples, int]]:
    """Runs the edge model and the cloud on each input that reaches it, regardless of its threshold; and how many do.

    Of several edge models a later one is reached by what those before it defer, by the thresholds that they were given. They run
    inputs one by one. Egress rules, consent, limits and ledger apply to the cloud, and its rate is kept to. Inputs without a
    cloud answer are dropped, at most `MAY_FAIL` of them.

    Args:
        aside: of the router.
        inputs: as for `infer`.
        labels: ground truth, one per input: values as the edge returns them, or class indices.
        groups: the scene, user or session of each.
        ask_cloud: False: run the edge only.
        data_class: of the inputs.
        batch: inputs per cloud request. With more than one, cloud latency is not measured, and cost is that of fewer, larger
            requests.
        advance: called with the number of inputs just answered, by edge or cloud.

    Raises:
        BadInput: there are no inputs, one does not fit the edge model, or a label is not one of its classes.
        MayNotLeave: the data class forbids sending.
        NoAnswer: the cloud failed on more than `MAY_FAIL` of the inputs.
        ModelError: the edge model cannot be used, fails on an input, or returns probabilities where its card says logits.
    """
    if not len(inputs):
        raise BadInput("there are no inputs")
    runner = aside.runner
    right = None if labels is None else said(labels, runner.reader.labels, len(inputs))
    if ask_cloud:
        aside.may_leave(data_class)  # before anything is run
    yield from aside.ready()
    runs = dict[int, _Reply]()
    yield from _run(aside, 0, inputs[0])  # warm-up
    for i, x in enumerate(inputs):
        if not (yield from _reaches(aside, i, x)):
            advance(1 + ask_cloud)
            continue
        runs[i] = yield from _run(aside, i, x)
        if len(runs) == 1 and right is not None:
            _check_comparable(runs[i].prediction.value, right[i], runner.where)
        advance(1)
    if not runs:
        raise BadInput(f"none of the {len(inputs)} inputs reaches {runner.where}: the edge models before it keep them all")
    reached = list(runs)
    asking = _Asking(aside, inputs, runs, data_class, advance)
    if ask_cloud:
        size = aside.together(batch)
        for start in range(0, len(reached), size):
            yield from asking.ask(reached[start : start + size])
    kept = [i for i in reached if not ask_cloud or i in asking.replies]
    outputs = _stacked([runs[i].prediction.outputs for i in kept])
    if runner.reader.kind in {None, "logits"} and outputs is not None and _probabilities(outputs):
        raise ModelError(
            f"{runner.where} gives probabilities, and its card says logits: the scores would be wrong. Give the output before "
            'the softmax, or have the card say "output": {"kind": "probabilities"}'
        )
    replies = [asking.replies[i] for i in kept] if ask_cloud else []
    if right is not None:
        _check_said(right, [runs[i].prediction.value for i in kept] + [reply.prediction.value for reply in replies])
    made = Examples(
        score=_scores([runs[i].prediction for i in kept]),
        edge=[runs[i].prediction.value for i in kept],
        cloud=[reply.prediction.value for reply in replies] if ask_cloud else None,
        labels=None if right is None else [right[i] for i in kept],
        outputs=_as_logits(runner.reader, outputs),
        edge_s=np.array([runs[i].took_s for i in kept], float),
        cloud_s=np.array([reply.took_s if batch == 1 else np.nan for reply in replies], float) if ask_cloud else None,
        sent_bytes=asking.spent.sent_bytes,
        received_bytes=asking.spent.received_bytes,
        usd=asking.spent.usd,
        groups=None if groups is None else [groups[i] for i in kept],
    )
    return made, len(reached)


def recorded(
    aside: Aside,
    edge_outputs: Floats,
    cloud_outputs: Floats | None,
    labels: Sequence[Any] | None,
    groups: Sequence[Any] | None = None,
) -> Examples:
    """Examples from recorded outputs [n, classes], decoded as the router would. Runs no model.

    It is not checked that they come from these models.

    Raises:
        BadInput: wrong shape or dtype, or a label that is not one of the edge's classes.
    """
    own = aside.runner.reader
    predictions = _read("edge_logits", edge_outputs, own)
    n = len(predictions)
    clouds = None
    if cloud_outputs is not None:
        away = next((r for r in aside.clouds), None)
        clouds = _read("cloud_logits", cloud_outputs, getattr(away, "reader", None) or Reader(labels=own.labels))
        if len(clouds) != n:
            raise BadInput(f"there are {n} edge_logits and {len(clouds)} cloud_logits")
    return Examples(
        score=_scores(predictions),
        edge=[p.value for p in predictions],
        cloud=None if clouds is None else [p.value for p in clouds],
        labels=None if labels is None else said(labels, own.labels, n),
        outputs=_as_logits(own, np.asarray(edge_outputs, float)),
        edge_s=np.full(n, np.nan),
        cloud_s=None if clouds is None else np.full(n, np.nan),
        sent_bytes=0,
        received_bytes=0,
        usd=0.0,
        groups=None if groups is None else list(groups),
    )


def said(labels: Sequence[Any], names: Sequence[Any] | None, n: int) -> list[Any]:
    """Converts n labels to the values a model with these class names returns; a number is a class index.

    Raises:
        BadInput: not n labels, or one is not a class, missing or NaN.
    """
    if len(labels) != n:
        raise BadInput(f"there are {n} inputs and {len(labels)} labels")
    found: list[Any] = []
    for i, label in enumerate(labels):
        number = isinstance(label, int | float | np.number)
        if label is None or (number and isnan(label)):
            raise BadInput(f"label {i} is {label!r}: each input has a label, or none has")
        if names is None:
            found.append(int(label) if isinstance(label, float | np.number) and _whole(label) else label)
        elif isinstance(label, str):
            if label not in names:
                raise BadInput(f"label {i} is {label!r}, and the edge model says {', '.join(map(str, names))}")
            found.append(label)
        elif not number or not _whole(label) or not 0 <= label < len(names):
            raise BadInput(f"label {i} is {label!r}, and the edge model's classes are numbers 0 to {len(names) - 1}")
        else:
            found.append(names[int(label)])
    return found


def _whole(number: Any) -> bool:
    """Whether it is a whole number, which infinities are not."""
    return bool(-INF < number < INF and number == int(number))


def _check_comparable(value: Any, label: Any, where: str) -> None:
    """Refuses labels that no answer of the model can be equal to."""
    if isinstance(value, str) != isinstance(label, str):
        kinds = ["a text" if isinstance(one, str) else f"of type {type(one).__name__}" for one in (value, label)]
        raise BadInput(f"{where} answers {value!r}, which is {kinds[0]}, and the labels are {kinds[1]}: give them as it answers")


def _check_said(labels: Sequence[Any], answers: Sequence[Any]) -> None:
    """Refuses labels none of which is any answer: nobody would ever be right, and so nothing ever lost."""
    meant, given = ({one for one in values if isinstance(one, str)} for values in (labels, answers))
    if len(labels) >= FOREIGN and meant and given and meant.isdisjoint(given):
        raise BadInput(
            f"none of the {len(labels)} labels ({min(meant)!r}) is ever an answer ({min(given)!r}), so none could be right: give "
            "them as they are answered"
        )


class _Reply(NamedTuple):
    prediction: Prediction
    took_s: float


def _reaches(aside: Aside, i: int, x: Any) -> Steps[bool]:
    """Whether the edge models before it defer input number `i`."""
    for number in aside.before:
        one = yield from aside.run(x, number)
        if one.outcome.prediction is None:
            raise _failed(i, one, aside.snapshot.backends[number].where)
        if aside.keeps(number, one):
            return False
    return True


def _run(aside: Aside, i: int, x: Any) -> Steps[_Reply]:
    """Runs the edge model on input number `i`."""
    one = yield from aside.run(x)
    if (reply := _reply(one)) is not None:
        return reply
    raise _failed(i, one, aside.runner.where)


def _failed(i: int, one: Walked, where: str) -> BaseException:
    """Why the edge model `where` did not answer input number `i`."""
    error = no_answer(one.request.plan, one.outcome, "")
    if isinstance(error, BadInput):
        told: EdgerouteError = BadInput(f"input {i}: {error}")
    elif isinstance(error, Exception) and not isinstance(error, EdgerouteError):  # a function's own
        told = ModelError(f"input {i}: {where} failed: {named(error)}")
    else:
        return error
    told.__cause__ = error
    return told


def _reply(one: Walked) -> _Reply | None:
    outcome = one.outcome
    return None if outcome.prediction is None else _Reply(outcome.prediction, outcome.ended - outcome.begun)


class _Asking:
    """Asks the cloud about inputs.

    Attributes:
        replies: by the input's number.
        spent: on all of them.
    """

    def __init__(
        self,
        aside: Aside,
        inputs: Sequence[Any],
        runs: Mapping[int, _Reply],
        data_class: str | None,
        advance: Callable[[int], object],
    ) -> None:
        self._aside, self._inputs, self._runs, self._reached = aside, inputs, runs, len(runs)
        self._data_class, self._advance = data_class, advance
        self._failed = self._asked = 0
        self._left = False
        """Whether any was not answered."""
        self._why: BaseException = NoAnswer("")
        self.replies: dict[int, _Reply] = {}
        self.spent = Spent(0, 0, 0.0, 0.0)

    def ask(self, rows: Sequence[int]) -> Steps[None]:
        """Asks about these together, and again about each of those that were not answered.

        Raises:
            NoAnswer: too many were not answered.
            PolicyError: as for every other input.
        """
        walks = yield from self._aside.ask(
            [self._inputs[row] for row in rows], self._data_class, [self._runs[row].prediction for row in rows]
        )
        for cost in walks[0].costs.values():
            sent, received, usd, joules, *_ = self.spent
            self.spent = Spent(sent + cost.sent_bytes, received + cost.received_bytes, usd + cost.usd, joules + cost.joules)
        left = list[int]()
        for row, one in zip(rows, walks, strict=True):
            if (reply := _reply(one)) is not None:
                self.replies[row] = reply
                self._asked += 1
                self._advance(1)
                continue
            error = no_answer(one.request.plan, one.outcome, "")
            if isinstance(error, PolicyError):  # the same for every input
                raise error
            if not self._left or not getattr(error, "held", False):  # prefer the cause to a later breaker or limit
                self._why = error
            self._left = True
            left.append(row)
        for row in left:
            if len(rows) > 1:  # one bad input may fail the whole batch
                yield from self.ask([row])
            else:
                self._leave_out()

    def _leave_out(self) -> None:
        self._failed += 1
        self._asked += 1
        self._advance(1)
        may_fail = int(MAY_FAIL * self._reached)
        if self._failed > may_fail or not self.replies:
            why = self._why if isinstance(self._why, EdgerouteError) else named(self._why)
            raise NoAnswer(
                f"the cloud did not answer {self._failed} of the {self._asked} inputs that it was asked about, and of "
                f"{self._reached} at most {may_fail} may be left out: {why}"
            ) from self._why


def _read(what: str, outputs: Floats, reader: Reader) -> list[Prediction]:
    array = np.asarray(outputs)
    if array.ndim != 2 or array.dtype.kind not in "fiu" or not array.size:  # noqa: PLR2004 - examples and classes
        raise BadInput(f"{what}: expected numbers [n, classes], found {array.dtype} {list(array.shape)}")
    if reader.kind in {None, "logits"} and _probabilities(array):
        raise BadInput(f"{what}: these are probabilities, each row adds up to 1: record the outputs before the softmax")
    try:
        read = reader.many(array, len(array))
    except BadReply as e:
        raise BadInput(f"{what}: {e}") from e
    if all(one.value is None for one in read):
        raise BadInput(f"{what}: each row holds NaN or infinity, and says nothing")
    return read


def _scores(predictions: Sequence[Prediction]) -> Floats:
    return np.array([np.nan if p.confidence is None else p.confidence for p in predictions], float)


def _stacked(outputs: Sequence[Any]) -> Floats | None:
    """Stacks to [n, classes]; None if the outputs are not numeric rows of equal length."""
    if all(isinstance(o, np.ndarray) and o.ndim == 1 and o.dtype.kind in "fiu" for o in outputs):
        lengths = {len(o) for o in outputs}
        return np.array(outputs, float) if len(lengths) == 1 else None
    return None


def _as_logits(reader: Reader, outputs: Floats | None) -> Floats | None:
    """What a score is fitted to: of a model that gives probabilities their logarithms, which it will be given, too."""
    if outputs is None or reader.kind != "probabilities":
        return outputs
    return np.log(np.maximum(outputs, SMALLEST))


def _probabilities(outputs: Floats) -> bool:
    """Whether these are softmax outputs: all rows non-negative with sum 1, which logits practically never are."""
    return bool(outputs.shape[-1] > 1 and (outputs >= 0).all() and np.allclose(outputs.sum(-1), 1, atol=1e-3))
