"""Collection of examples (`collect`): runs the edge models and asks the cloud on inputs, as steps of a call; times and costs.

Recorded outputs become examples as well (`recorded_examples`). `DirectCalls` asks the cloud under egress rules, limits and
ledger. `Steps` are a generator of waits and blocking calls, which a driver executes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from math import exp
from time import monotonic
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, cast

import numpy as np

from edgeroute.confidence.binomial_tests import Floats
from edgeroute.confidence.output_forms_labels_and_comparison import TINY, equal, form_of, label_form, plain
from edgeroute.confidence.output_reader import Reader
from edgeroute.confidence.scores import Score
from edgeroute.core.error_codes_and_texts import error_text
from edgeroute.core.plan import Plan, by_itself
from edgeroute.core.policy_egress_and_options import INF
from edgeroute.core.walk import Prediction, acceptable
from edgeroute.edge.edge_backend import EdgeBackend, edge_backend
from edgeroute.edge.edge_model_members_and_fingerprints import member
from edgeroute.errors import BadInput, BadReply, Closed, EdgerouteError, MayNotLeave, ModelError, NoAnswer, PolicyError
from edgeroute.router.engine import class_of, settle
from edgeroute.router.fallbacks_and_late_replies import no_answer
from edgeroute.router.leg_execution import LegExecutor, Walked
from edgeroute.router.policy_snapshot import calibrated_target, earlier_edges, fingerprints, ladder_prints
from edgeroute.router.request import Request
from edgeroute.router.request_checks_and_planning import checked_plan
from edgeroute.router.steps_and_composed_stages import Block, Pause, Steps, walk_stage
from edgeroute.tools.data_classes_of_records import EachClass
from edgeroute.tools.measure.score_fitting import probabilities_by_class
from edgeroute.tools.measure.threshold_evaluation import (
    Examples,
    LabelMatcher,
    answer_names,
    check_comparable,
    is_blank,
    is_right,
    label_values,
)
from edgeroute.types import Spent

if TYPE_CHECKING:
    from edgeroute.cloud.http_backend import CloudBackend
    from edgeroute.router.engine import Engine
    from edgeroute.router.policy_snapshot import Snapshot


# Direct calls of a router's models, to measure them.
#
# Egress rules, consent, redaction, limits, the ledger, the breaker and instruments of attempts apply. Cache, outbox, audits,
# hedges, deadlines, offline rules, counts, alarms and traces do not.

LOOK_S = 1.0  # interval at which a waiting call checks if the router was closed, seconds


def score_name(score: str | Score) -> str:
    """Return the name of a score; "function" for one without a name."""
    return score if isinstance(score, str) else getattr(score, "name", "function")


class DirectCalls:
    """Caller of edge models of a router and of its clouds, past thresholds, by the policy in force now; a reload changes nothing.

    Args:
        engine: engine of the router.
        edge: index of the edge model, from 0; "all": each of several.
        score: score of its confidence; None: the score in use.
        of: another policy than the one in force, such as that of a hidden edge on trial.

    Attributes:
        snapshot: that policy, reduced to plain calls.
        numbers: positions of the edge models among its targets.
        number: the first of them.
        before: positions of the edge models that decide which inputs reach that.
        runner: backend of that edge model.
        score_name: name of its score; "function" for one without a name.

    Raises:
        Closed: the router is closed.
        PolicyError: there is no such edge model, it has a score of its own, or "all" includes variants.
    """

    def __init__(
        self, engine: Engine, edge: int | Literal["all"] = 0, score: str | Score | None = None, of: Snapshot | None = None
    ) -> None:
        self._engine = engine
        self._check_open()
        snapshot = of or engine.snapshot
        edges = [i for i, target in enumerate(snapshot.targets) if target.side == "edge"]
        if edge == "all" and len(edges) > 1:
            if any(snapshot.targets[i].group for i in edges):
                raise PolicyError('edge="all" is for edge models that are asked one after the other, and these are variants')
            self.numbers = edges
        else:
            i = 0 if edge == "all" and edges else edge
            if isinstance(i, bool) or not isinstance(i, int) or not 0 <= i < len(edges):
                raise PolicyError(f"there is no edge model number {edge}: the policy has {len(edges)}, counted from 0")
            self.numbers = [edges[i]]
        backends, specs = list(snapshot.backends), list(snapshot.specs)
        for number in self.numbers:
            backend, (kind, name, arguments, own, *more) = cast("EdgeBackend", backends[number]), specs[number]
            if score is None or score == own:
                continue
            if member(backend.model, "score") is not None:
                raise PolicyError(f"{backend.where} has its own score, which takes precedence: change it, or leave out score=")
            specs[number] = (kind, name, arguments, score, *more)
            backends[number] = edge_backend(backend.name, backend.model, score)
        self.number = self.numbers[0]
        self.runner, self.score = cast("EdgeBackend", backends[self.number]), cast("str | Score", specs[self.number][3])
        self.score_name = score_name(self.score)
        policy = snapshot.policy._replace(offline="raise", hedge_after=INF, deadline_s=INF, device_rules=())
        targets = tuple(target._replace(group="") for target in snapshot.targets)  # any can run, also if it is not selected
        self._targets, self.before = snapshot.targets, earlier_edges(snapshot.targets, self.number)
        self.snapshot = snapshot._replace(policy=policy, targets=targets, backends=tuple(backends), specs=tuple(specs), plans={})

    @property
    def clouds(self) -> list[CloudBackend]:
        """Endpoints, without those on trial."""
        return self.snapshot.proper

    def arms(self) -> tuple[dict[str, Any], ...]:
        """Return the results of the router's trials so far; empty without trials or requests."""
        stats = () if self._engine.trials is None else self._engine.trials.stats()["arms"]
        return tuple(arm._asdict() for arm in stats) if any(arm.requests for arm in stats) else ()

    def fingerprints(self) -> dict[str, str]:
        """Return the fingerprints that a certificate for this edge model and score is bound to. Reads files."""
        return fingerprints(self.snapshot._replace(targets=self._targets), self.number)

    def together(self, thresholds: Sequence[float]) -> list[dict[str, str]]:
        """Return each edge model's fingerprints for a certificate about all together, with these thresholds. Reads files."""
        limits = dict(zip(self.numbers, thresholds, strict=True))
        targets = tuple(t._replace(threshold=limits.get(i), thresholds={}) for i, t in enumerate(self._targets))
        snapshot = self.snapshot._replace(targets=targets, certificates=(None,) * len(targets))
        return [ladder_prints(snapshot, number) for number in self.numbers]

    def backend(self, number: int) -> EdgeBackend:
        """Return the backend of the edge model at that position."""
        return cast("EdgeBackend", self.snapshot.backends[number])

    def ready(self) -> Steps[None]:
        """Load the edge models, in blocking steps without a time limit. Raises ModelError if one cannot be used."""
        for number in self.numbers:
            yield Block(partial(self.backend(number).ready, INF), INF)

    def run(self, x: Any, number: int | None = None) -> Steps[Walked]:
        """Run the edge model, or an earlier one by its position, on one input.

        Errors are in the walk, but for a closed router's.
        """
        plan = checked_plan(self.snapshot, self._engine.observer.facts, "only_edge", None, None)
        leg = next(leg for leg in plan.legs if leg.target == (self.number if number is None else number))
        leg = leg._replace(final=True, standby=False, hedge_after_s=INF, start_by_s=INF)
        (walk,) = yield from self._walk(plan._replace(legs=(leg,), sequential=True), [x])
        yield Pause(0.0)
        return walk

    def keeps(self, number: int, walk: Walked) -> bool:
        """Return True if the edge model at that position accepts its answer by its own threshold; False without an answer."""
        (leg,), target, prediction = walk.request.plan.legs, calibrated_target(self.snapshot, number), walk.outcome.prediction
        leg_with_threshold = leg._replace(final=False, threshold=target.threshold, thresholds=target.thresholds)
        return prediction is not None and acceptable(leg_with_threshold, prediction)

    def classes(self, inputs: Sequence[Any], named: str | EachClass | None) -> list[str | None]:
        """Return each input's data class: by `named` and the application's function; raise MayNotLeave if one has to stay."""
        egress, each = self.snapshot.egress, named if isinstance(named, EachClass) else [named] * len(inputs)
        found = [class_of(self._engine, egress, x, name) for x, name in zip(inputs, each, strict=True)]
        self._engine.private.check_examples(inputs, found, self.snapshot.policy)
        return found

    def may_leave(self, data_class: str | None, share: str = "these") -> Plan:
        """Return the plan for calls of the clouds. Runs and sends nothing.

        share: how many examples are of the data class, for the error.

        Raises:
            MayNotLeave: the egress rules forbid them, or the mode in force is only_edge.
            PolicyError: there is no cloud.
        """
        if why := self._engine.stays_on_device(read=True):
            raise MayNotLeave(f"every example is sent to the cloud, and nothing leaves the device: the mode is {why}")
        try:
            return by_itself(checked_plan(self.snapshot, self._engine.observer.facts, "only_cloud", None, data_class))
        except MayNotLeave as e:
            why = str(e).removeprefix("no answer is possible: ").partition(", and mode ")[0]  # no mode of the user's
            raise MayNotLeave(f"every example is sent to the cloud, and {share} may not be: {why}; leave them out") from e

    def ask(
        self, inputs: Sequence[Any], data_class: str | None, edge: Sequence[Prediction | None] | None = None
    ) -> Steps[list[Walked]]:
        """Send inputs to the clouds together, once their rate allows it; half of the rate stays free for other calls.

        Waits without a limit, looking once a second if the router was closed. Failures are in the walks, not raised.

        edge: the edge's answers, for clouds that take them along; None: there are none.

        Raises:
            Closed: the router was closed while it waited.
            MayNotLeave, PolicyError: see `may_leave`.
        """
        while (wait_s := max((_spare_in(cloud, len(inputs)) for cloud in self.clouds), default=0.0)) > 0:
            yield Pause(min(wait_s, LOOK_S))
            self._check_open()
        return (yield from self._walk(self.may_leave(data_class), inputs, edge))

    def batch_size(self, most: int) -> int:
        """Return how many inputs the clouds take in one request: `most`, or 1 if their rate never allows so many."""
        return most if all(_spare_in(cloud, most) < INF for cloud in self.clouds) else 1

    def _walk(self, plan: Plan, inputs: Sequence[Any], edge: Sequence[Prediction | None] | None = None) -> Steps[list[Walked]]:
        """Run requests of this plan, several as one batch, and return their walks; counts and costs are booked with the engine.

        Raises Closed if the router is closed, or was closed meanwhile and some request has no accepted answer.
        """
        self._check_open()
        engine = self._engine
        identity = f"{engine.name}-{next(engine.numbers)}"
        requests = [Request(identity, x, plan, self.snapshot, monotonic(), INF) for x in inputs]
        if len(requests) > 1:
            requests = [request._replace(id=f"{identity}.{row}", batch=identity) for row, request in enumerate(requests)]
        legs = LegExecutor(requests, engine.edge_threads, engine.cloud_threads)
        legs.floor = True
        if legs.edge is not None and edge is not None:
            legs.edge.note(None, edge)
        requests[0] = requests[0]._replace(begun=monotonic())  # the preparation above is no part of its latency
        walks = yield from walk_stage(requests, legs)
        for walk in walks:
            settle(engine, walk.request, walk.outcome, legs)
        if not all(walk.outcome.accepted for walk in walks):
            self._check_open()  # a closed router would be the reason
        return walks

    def _check_open(self) -> None:
        """Raise Closed if the router is closed."""
        if self._engine.closed:
            raise Closed("this router is closed")


def _spare_in(cloud: CloudBackend, inputs: int) -> float:
    """Return the seconds until a cloud's rate allows so many inputs beside other calls; takes the guard's lock.

    0 also if nothing may be sent; inf: never.
    """
    guard, call_count, now = cloud.guard, cloud.calls(inputs), monotonic()
    with guard.lock:
        return 0.0 if guard.rules.why(now) is not None else guard.rules.rate.spare_in(now, call_count)


SMALLEST = exp(TINY)
MAY_FAIL = 0.01  # maximum share of inputs dropped for lack of a cloud answer; more would bias the sample
FEW_UNKNOWN = 0.05  # share of answers that are no label up to which nothing is noted: a label may be missing among the examples
Advance = Callable[[int], object]  # function that is called with the number of inputs just answered, by edge or cloud
FOREIGN = 20  # least number of labels for which it is no chance that no answer equals any of them


def collect(
    calls: DirectCalls,
    inputs: Sequence[Any],
    labels: Sequence[Any] | None = None,
    groups: Sequence[Any] | None = None,
    *,
    ask_cloud: bool = True,
    data_class: str | EachClass | None = None,
    batch: int = 1,
    advance: Advance = lambda _: None,
    check: Callable[[list[Any], list[Any] | None], object] = lambda _, __: None,
) -> Steps[tuple[list[Examples], int]]:
    """Run the edge models and the cloud on each input that reaches the first of them, whatever the thresholds; the first twice.

    The extra run warms up. Returns the examples of each edge model, and how many inputs reached it. An edge model is reached by
    the inputs that the edge models before it defer, by their thresholds; with all edge models every input reaches each. They run
    inputs one by one. Egress rules, consent, limits and ledger apply to the cloud, and its rate is respected. Inputs without a
    cloud answer are dropped, at most `MAY_FAIL` of them.

    Args:
        calls: caller of the router's models.
        inputs: inputs as for `infer`.
        labels: ground truth, one per input: values as the edge returns them, or class indices if they are no names.
        groups: the scene, user or session of each.
        ask_cloud: False runs the edge only.
        data_class: data class of the inputs, or of each.
        batch: inputs per cloud request. With more than one, cloud latency is not measured, and cost is that of fewer, larger
            requests.
        advance: called with the number of inputs just answered, by edge or cloud.
        check: called before the cloud is asked, with the first edge model's answers and their groups; may raise.

    Raises:
        BadInput: there are no inputs, none reaches the edge model, one does not fit it, a label is not one of its classes, or no
            answer of the cloud could be right.
        MayNotLeave: the data class forbids sending.
        NoAnswer: the cloud failed on more than `MAY_FAIL` of the inputs.
        ModelError: the edge model cannot be used, fails on an input, or returns probabilities where its card says logits.
    """
    if not len(inputs):
        raise BadInput("there are no inputs")
    readers = [calls.backend(number).reader for number in calls.numbers]
    noted = [list[str]() for _ in readers]
    rights = [
        None if labels is None else label_values(labels, answer_names(reader), len(inputs), notes)
        for reader, notes in zip(readers, noted, strict=True)
    ]
    classes: list[str | None] = []
    if ask_cloud:
        classes = yield Block(partial(calls.classes, inputs, data_class), INF)
        for name in dict.fromkeys(classes):  # before anything is run
            calls.may_leave(name, f"{classes.count(name)} of {len(inputs)}")
    yield from calls.ready()
    runs = dict[int, list[_Reply]]()
    yield from _run_each(calls, 0, inputs[0])  # warm-up
    for i, x in enumerate(inputs):
        if not (yield from _reaches(calls, i, x)):
            advance(1 + ask_cloud)
            continue
        runs[i] = yield from _run_each(calls, i, x)
        for reply, reader, right in zip(runs[i], readers, rights, strict=True):
            if len(runs) == 1 and right is not None:
                ran = [reply.prediction.value]
                check_possible("edge", ran, answer_names(reader, ran) or right, [], labelled=True)
        advance(1)
    if not runs:
        raise BadInput(f"none of the {len(inputs)} inputs reaches {calls.runner.where}: edge models before it accept all")
    reached = list(runs)
    cloud = _CloudAnswers(calls, inputs, {i: replies[-1] for i, replies in runs.items()}, classes, advance)
    if ask_cloud:
        size, checked = calls.batch_size(batch), False
        all_known = list[Sequence[Any]]()
        for replies, reader, right in zip(zip(*runs.values(), strict=True), readers, rights, strict=True):
            ran = [reply.prediction.value for reply in replies]
            all_known.append(answer_names(reader, ran) or right or ran)
            check_possible("edge", ran, all_known[-1], [], labelled=right is not None)
            check_comparable(ran)
        check([runs[i][0].prediction.value for i in reached], None if groups is None else [groups[i] for i in reached])
        for start in range(0, len(reached), size):
            yield from cloud.ask(reached[start : start + size])
            if not checked and len(cloud.replies) >= FOREIGN:  # before the others are paid for
                checked = True
                for row, reply in cloud.replies.items():
                    is_right(runs[row][-1].prediction.value, reply.prediction.value)  # raises if they cannot be compared
                answers = [reply.prediction.value for reply in cloud.replies.values()]
                for known in all_known:
                    check_possible("cloud", answers, known, [], labelled=labels is not None)
    answered = [i for i in reached if not ask_cloud or i in cloud.replies]
    from_cloud = [cloud.replies[i] for i in answered] if ask_cloud else None
    measured: dict[str, Any] = {
        "cloud_s": None if from_cloud is None else np.array([r.took_s if batch == 1 else np.nan for r in from_cloud], float),
        "sent_bytes": cloud.spent.sent_bytes, "received_bytes": cloud.spent.received_bytes, "usd": cloud.spent.usd,
        "groups": None if groups is None else [groups[i] for i in answered], "numbers": answered,
    }  # fmt: skip
    cloud_answers = None if from_cloud is None else [reply.prediction for reply in from_cloud]
    parts = list[Examples]()
    for k, number in enumerate(calls.numbers):
        predictions = [runs[i][k].prediction for i in answered]
        rows = [prediction.outputs for prediction in predictions]
        outputs = _stack(rows)
        if readers[k].kind in {None, "logits"} and outputs is not None and _are_probabilities(outputs):
            raise ModelError(
                f"{calls.backend(number).where} returns probabilities, and its card says logits: the scores would be wrong. "
                'Return the output before the softmax, or write into the card "output": {"kind": "probabilities"}'
            )
        right, times = rights[k], np.array([runs[i][k].took_s for i in answered], float)
        labels_left = None if right is None else [right[i] for i in answered]
        logits = _as_logits(readers[k], outputs)
        if logits is None and readers[k].kind in {None, "probabilities", "label+probabilities"}:
            probabilities = probabilities_by_class(rows)
            logits = None if probabilities is None else np.log(np.maximum(probabilities, SMALLEST))
        parts.append(_examples(readers[k], predictions, cloud_answers, labels_left, logits, noted[k], edge_s=times, **measured))
    return parts, len(reached)


def _examples(
    reader: Reader, edge: Sequence[Prediction], cloud: Sequence[Prediction] | None, labels: list[Any] | None,
    logits: Floats | None, noted: Sequence[str], **measured: Any,
) -> Examples:  # fmt: skip
    """Return examples of these answers, all in one spelling, with notes on that, and those that were `noted` on the labels.

    measured: further fields of `Examples`. Raises BadInput if no answer of a side can be a label.
    """
    values = None if cloud is None else [prediction.value for prediction in cloud]
    ran = [prediction.value for prediction in edge]
    edge_values, cloud_values, labels, notes = _matched(ran, values, labels, answer_names(reader, ran))
    scores = np.array([prediction.confidence for prediction in edge], float)  # NaN for None
    return Examples(scores, edge_values, cloud_values, labels, logits, notes=(*noted, *notes), **measured)


def recorded_examples(
    calls: DirectCalls,
    edge_outputs: Floats,
    cloud_outputs: Floats | None,
    labels: Sequence[Any] | None,
    groups: Sequence[Any] | None = None,
) -> Examples:
    """Decode recorded outputs [n, classes] as the router would, and return them as examples. Runs no model.

    Nothing checks that they come from these models. Raises BadInput for a wrong shape or dtype, or a label that is none of the
    edge's.
    """
    edge_reader = calls.runner.reader
    predictions = _read("edge_logits", edge_outputs, edge_reader)
    n = len(predictions)
    cloud_answers = None
    if cloud_outputs is not None:
        reader = getattr(next(iter(calls.clouds), None), "reader", None) or Reader(labels=edge_reader.labels)
        cloud_answers = _read("cloud_logits", cloud_outputs, reader)
        if len(cloud_answers) != n:
            raise BadInput(f"there are {n} edge_logits and {len(cloud_answers)} cloud_logits")
    noted = list[str]()
    right = None if labels is None else label_values(labels, answer_names(edge_reader), n, noted)
    logits = _as_logits(edge_reader, np.asarray(edge_outputs, float))
    listed = None if groups is None else list(groups)
    return _examples(edge_reader, predictions, cloud_answers, right, logits, noted, groups=listed)


def _matched(
    edge: list[Any], cloud: list[Any] | None, labels: list[Any] | None, names: Sequence[Any] | None
) -> tuple[list[Any], list[Any] | None, list[Any] | None, tuple[str, ...]]:
    """Return answers and labels in one spelling for each form (`LabelMatcher`), and notes on that.

    Args:
        edge: [n], the edge's answers.
        cloud: [n], the cloud's answers; None: not called.
        labels: [n], ground truth; None: unknown, so the edge's answers are the labels.
        names: names of the edge's classes; None: unknown, so the labels that occur are all.

    Raises:
        BadInput: no answer of a target can be a label, so nothing would be compared; or a label is empty, as no answer is.
    """
    if any(map(is_blank, labels or ())) and not any(map(is_blank, [*edge, *(cloud or ()), *(names or ())])):
        raise BadInput("a label is an empty text, and no model answers that: give each input a label, or none")
    known, notes = names or labels or edge, list[str]()
    match = LabelMatcher(names, edge, cloud, labels)
    matched_sides = list[list[Any] | None]()
    for side, answers in (("edge", edge), ("cloud", cloud)):
        if answers is not None:
            check_possible(side, answers, known, notes, labelled=labels is not None, key=match.key)
            _note_unknown(known, side, answers, notes, match.key)
        matched_sides.append(_in_form_of(match, f"the {side} gives labels", answers, notes))
    if names is None and (one_form := next(iter(match.ambiguous.values()), None)):
        notes.append(f"{one_form[0]!r} and {one_form[1]!r} are different labels, which are compared as they are spelt")
    edge_values, cloud_values = matched_sides
    return edge_values or [], cloud_values, _in_form_of(match, "y has labels", labels, notes), tuple(notes)


def _note_unknown(known: Iterable[Any], side: str, answers: list[Any], notes: list[str], key: Callable[[Any], Any]) -> None:
    """Append a note to `notes` if many answers of a side, but not all, are none of the known labels, compared by `key`."""
    keys = {key(label) for label in known}
    unknown = [answer for answer in answers if key(answer) not in keys]
    if FEW_UNKNOWN * len(answers) < len(unknown) < len(answers):
        notes.append(f"{len(unknown):,} of {len(answers):,} answers of the {side} ({_quoted(unknown[0])}) are none of the labels")


def _in_form_of(match: Callable[[Any], Any], head: str, values: list[Any] | None, notes: list[str]) -> list[Any] | None:
    """Return the values in the spelling of `match`, None for None; append a note, which begins with `head`, if some differ."""
    if values is None:
        return None
    labels = [match(value) for value in values]
    pairs = [(a, label) for a, label in zip(values, labels, strict=True) if a is not label and not equal(a, label)]
    if pairs:
        notes.append(
            f"{head} in another form ({_quoted(pairs[0][0])} for {_quoted(pairs[0][1])}) in {len(pairs):,} of {len(values):,} "
            "cases: they are compared as those labels, and are handed to the application as they are"
        )
    return labels


def check_possible(
    side: str, answers: Sequence[Any], known: Sequence[Any], notes: list[str], *, labelled: bool, least: int = FOREIGN,
    key: Callable[[Any], str | None] = label_form,
) -> None:  # fmt: skip
    """Check that some answers of a target are among the known labels; append a note if they never are, without ground truth.

    least: number of answers of the same kind from which it is no chance that none is a label. key: what is compared of a label.

    Raises:
        BadInput: they are of another kind, or never are in `least` answers or more. None could be right, and where no answer of
            the cloud could be, nothing could be lost.
    """
    keys = {_key_or_kind(label, key) for label in known}
    if any(_key_or_kind(answer, key) in keys for answer in answers):
        return
    kinds = [{_kind(value) for value in values} for values in (answers, known)]
    text = f"none of the {side}'s {len(answers):,} answers ({_quoted(answers[0])}) is ever one" if len(answers) > 1 else ""
    text = f"{text or f'the answer of the {side} ({_quoted(answers[0])}) is not one'} of the labels ({_quoted(known[0])})"
    if kinds[0].isdisjoint(kinds[1]):
        text += f": it gives {'/'.join(sorted(kinds[0]))}, and the labels are {'/'.join(sorted(kinds[1]))}"
    elif len(answers) < least:
        return
    elif not labelled:
        notes.append(f"{text}, so edge and cloud never agree")
        return
    raise BadInput(f"{text}. None could be right: write the labels as it answers, or let it answer as they are written")


def _key_or_kind(value: Any, key: Callable[[Any], str | None]) -> str | tuple[str, ...]:
    """Return what is compared of a label; of a value that is none its kind, and a mapping's keys: such are not looked up."""
    found = key(value)
    return (_kind(value), *(sorted(map(str, value)) if isinstance(value, Mapping) else ())) if found is None else found


def _kind(value: Any) -> str:
    """Return the kind of a label: text, numbers, True and False, arrays, mappings, or another type's name."""
    if isinstance(plain(value), bool):
        return "True and False"
    form = label_form(value)
    if form is None:
        if isinstance(value, Mapping):
            return "mappings"
        return "arrays" if isinstance(value, np.ndarray | list | tuple) else type(value).__name__
    return "numbers" if form.removeprefix("-").replace(".", "", 1).isdigit() else "text"


def _quoted(value: Any) -> str:
    """Return a label as an example in a message: its start, or its form."""
    if label_form(value) is None:
        return form_of(value)
    return repr(value[:40]) if isinstance(value, str | bytes) else repr(plain(value))


class _Reply(NamedTuple):
    """Answer of one side, and its latency."""

    prediction: Prediction
    took_s: float


def _reaches(calls: DirectCalls, i: int, x: Any) -> Steps[bool]:
    """Run the edge models before the first of the calls on input number `i`; return True if they all defer it.

    Raise one's error.
    """
    for number in calls.before:
        walk = yield from calls.run(x, number)
        if walk.outcome.prediction is None:
            raise _error_of(i, walk, calls.snapshot.backends[number].where)
        if calls.keeps(number, walk):
            return False
    return True


def _run_each(calls: DirectCalls, i: int, x: Any) -> Steps[list[_Reply]]:
    """Run each edge model on input number `i`; raise the error of one, with the number in its text."""
    replies = list[_Reply]()
    for number in calls.numbers:
        walk = yield from calls.run(x, number)
        if (reply := _reply(walk)) is None:
            raise _error_of(i, walk, calls.backend(number).where)
        replies.append(reply)
    return replies


def _error_of(i: int, walk: Walked, where: str) -> BaseException:
    """Return the error of the edge model `where` on input number `i`, with the number in its text if that is known."""
    error = no_answer(walk.request.plan, walk.outcome, "")
    if isinstance(error, BadInput):
        numbered_error: EdgerouteError = BadInput(f"input {i}: {error}")
    elif isinstance(error, Exception) and not isinstance(error, EdgerouteError):  # a function's own
        numbered_error = ModelError(f"input {i}: {where} failed: {error_text(error)}")
    else:
        return error
    numbered_error.__cause__ = error
    return numbered_error


def _reply(walk: Walked) -> _Reply | None:
    """Return the answer of a walk; None if it has none."""
    outcome = walk.outcome
    return None if outcome.prediction is None else _Reply(outcome.prediction, outcome.ended - outcome.begun)


class _CloudAnswers:
    """Collector of the cloud's answers to the inputs, which calls it in batches, and leaves out inputs that it does not answer.

    Attributes:
        replies: answers by the input's number.
        spent: costs of all calls.
    """

    def __init__(
        self,
        calls: DirectCalls,
        inputs: Sequence[Any],
        runs: Mapping[int, _Reply],
        classes: Sequence[str | None],
        advance: Advance,
    ) -> None:
        self._calls, self._inputs, self._runs, self._reached = calls, inputs, runs, len(runs)
        self._classes, self._advance = classes, advance
        self._left_out = self._asked = 0
        self._why: BaseException | None = None  # error of an input without an answer
        self.replies: dict[int, _Reply] = {}
        self.spent = Spent(0, 0, 0.0, 0.0)

    def ask(self, rows: Sequence[int]) -> Steps[None]:
        """Send these inputs together, and again each alone that got no answer; store answers and costs, report progress.

        Inputs of different data classes are sent one by one.

        Raises:
            NoAnswer: too many got no answer.
            PolicyError: the policy forbids it, for every input alike.
        """
        if len({self._classes[row] for row in rows}) > 1:  # consent and redaction may differ
            for row in rows:
                yield from self.ask([row])
            return
        walks = yield from self._calls.ask(
            [self._inputs[row] for row in rows], self._classes[rows[0]], [self._runs[row].prediction for row in rows]
        )
        for cost in walks[0].costs.values():
            sent, received, usd, joules, *_ = self.spent
            self.spent = Spent(sent + cost.sent_bytes, received + cost.received_bytes, usd + cost.usd, joules + cost.joules)
        unanswered = list[int]()
        for row, walk in zip(rows, walks, strict=True):
            if (reply := _reply(walk)) is not None:
                self.replies[row] = reply
                self._asked += 1
                self._advance(1)
                continue
            error = no_answer(walk.request.plan, walk.outcome, "")
            if isinstance(error, PolicyError):  # the same for every input
                raise error
            if self._why is None or not getattr(error, "held", False):  # prefer the cause to a later breaker or limit
                self._why = error
            unanswered.append(row)
        for row in unanswered:
            if len(rows) > 1:  # one bad input may fail the whole batch
                yield from self.ask([row])
            else:
                self._leave_out(self._why or NoAnswer(""))

    def _leave_out(self, error: BaseException) -> None:
        """Count an input without an answer as dropped; raise `NoAnswer` if there are too many, or no answer at all so far."""
        self._left_out += 1
        self._asked += 1
        self._advance(1)
        may_fail = int(MAY_FAIL * self._reached)
        if self._left_out > may_fail or not self.replies:
            why = error if isinstance(error, EdgerouteError) else error_text(error)
            raise NoAnswer(
                f"the cloud did not answer {self._left_out} of the {self._asked} inputs that it was sent, and of "
                f"{self._reached} at most {may_fail} may be left out: {why}"
            ) from error


def _read(what: str, outputs: Floats, reader: Reader) -> list[Prediction]:
    """Decode recorded outputs [n, classes].

    Raise BadInput for another form, or probabilities in place of logits, or if none answers.
    """
    array = np.asarray(outputs)
    if array.ndim != 2 or array.dtype.kind not in "fiu" or not array.size:  # noqa: PLR2004 - examples and classes
        raise BadInput(f"{what}: expected numbers [n, classes], found {array.dtype} {list(array.shape)}")
    if reader.kind in {None, "logits"} and _are_probabilities(array):
        raise BadInput(f"{what}: these are probabilities, each row adds up to 1: record the outputs before the softmax")
    try:
        read = reader.read_many(array, len(array))
    except BadReply as e:
        raise BadInput(f"{what}: {e}") from e
    if all(p.value is None for p in read):
        raise BadInput(f"{what}: each row holds NaN or infinity, and says nothing")
    return read


def _stack(outputs: Sequence[Any]) -> Floats | None:
    """Stack rows to [n, classes]; None if the outputs are not numeric rows of equal length."""
    numeric = all(isinstance(o, np.ndarray) and o.ndim == 1 and o.dtype.kind in "fiu" for o in outputs)
    return np.array(outputs, float) if numeric and len({len(o) for o in outputs}) == 1 else None


def _as_logits(reader: Reader, outputs: Floats | None) -> Floats | None:
    """Return outputs for fitting a score: probabilities as logarithms, as in the deployed score; others, and None, as given."""
    if outputs is None or reader.kind != "probabilities":
        return outputs
    return np.log(np.maximum(outputs, SMALLEST))


def _are_probabilities(outputs: Floats) -> bool:
    """Return True if all rows are non-negative with sum 1 (to 0.001), which logits practically never are."""
    return bool(outputs.shape[-1] > 1 and (outputs >= 0).all() and np.allclose(outputs.sum(-1), 1, atol=1e-3))
