"""Asks edge and cloud about examples: what each says, how sure the edge is, what it takes and costs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from time import monotonic, perf_counter, sleep
from typing import TYPE_CHECKING, Any

import numpy as np

from edgeroute.confidence.scores import Reader
from edgeroute.core.policy import INF
from edgeroute.core.walk import Prediction
from edgeroute.errors import BadInput, BadReply, EdgerouteError, MayNotLeave, ModelError, NoAnswer, PolicyError
from edgeroute.report.evaluation.examples import Examples, Floats

if TYPE_CHECKING:
    from edgeroute.edge.backend import EdgeBackend
    from edgeroute.router.router import Router
    from edgeroute.types import Answer

MAY_FAIL = 0.01
"""Of the inputs, so many may go without the cloud's answer and be left out; with more, what is left is another sample."""


def collect(
    router: Router,
    inputs: Sequence[Any],
    labels: Sequence[Any] | None = None,
    *,
    edge: int = 0,
    ask_cloud: bool = True,
    data_class: str | None = None,
    batch: int = 1,
    advance: Callable[[int], object] = lambda _: None,
) -> Examples:
    """Runs the edge model and asks the cloud for each input, whatever the threshold.

    The edge runs them one by one. The cloud is asked as for any request with mode `only_cloud`: rules, consent, limits and
    ledger hold, and no faster than the `calls_per_s` of the endpoints. An input that it does not answer is left out; so there
    may be fewer examples than inputs, but no more than `MAY_FAIL` of them.

    Args:
        router: with neither cache nor outbox, whose answers would not be the cloud's.
        inputs: as `infer` takes them, at least one.
        labels: the right answers, one an input: as the edge says them, or as class numbers.
        edge: which of the edge models, counted from 0.
        ask_cloud: False: only the edge is run.
        data_class: what kind of data the inputs are.
        batch: inputs in one request to the cloud. With more than one the cloud's latencies are not measured, and money is that
            of fewer, larger requests.
        advance: called with the number of inputs that were just answered, by edge or cloud.

    Raises:
        BadInput: an input does not fit the edge model, or a label is none of its classes.
        MayNotLeave: the data's class stays on the device.
        NoAnswer: the cloud did not answer too many of them.
        ModelError: the edge model cannot be used, or gives probabilities where its card says logits.
    """
    if not len(inputs):
        raise BadInput("there are no inputs")
    runner = edge_runner(router, edge)
    right = None if labels is None else said(labels, runner.reader.labels, len(inputs))
    runner.ready(INF)
    predictions, edge_s = _run(runner, inputs, advance)
    answers: list[Answer | None] = []
    before = router.stats()
    if ask_cloud:
        answers = _ask(router, inputs, data_class, batch, advance)
    after = router.stats()
    kept = [i for i in range(len(inputs)) if not ask_cloud or answers[i] is not None]
    outputs = _stacked([predictions[i].outputs for i in kept])
    if runner.reader.kind == "logits" and outputs is not None and _probabilities(outputs):
        raise ModelError(
            f"{runner.where} gives probabilities, and its card says logits: the scores would be wrong. Give the output before "
            'the softmax, or have the card say "output": {"kind": "probabilities"}'
        )
    asked = [answer for answer in answers if answer is not None]
    return Examples(
        score=_scores([predictions[i] for i in kept]),
        edge=[predictions[i].value for i in kept],
        cloud=[answer.value for answer in asked] if ask_cloud else None,
        labels=None if right is None else [right[i] for i in kept],
        outputs=outputs,
        edge_s=edge_s[kept],
        cloud_s=np.array([answer.latency_s if batch == 1 else np.nan for answer in asked], float) if ask_cloud else None,
        sent_bytes=after.bytes_sent - before.bytes_sent,
        received_bytes=after.bytes_received - before.bytes_received,
        usd=max(0.0, after.usd_today - before.usd_today),  # less than 0 where older costs have left their window meanwhile
    )


def recorded(
    router: Router, edge_outputs: Floats, cloud_outputs: Floats | None, labels: Sequence[Any] | None, *, edge: int = 0
) -> Examples:
    """Examples from outputs [n, classes] that were recorded, read as the router reads those of its models. Runs nothing.

    That they are outputs of these models is taken on trust.

    Raises:
        BadInput: they are not of this form, or a label is none of the edge's classes.
    """
    runner = edge_runner(router, edge)
    predictions = _read("edge_logits", edge_outputs, runner.reader)
    n = len(predictions)
    clouds = None
    if cloud_outputs is not None:
        away = next((r for r in router.engine.snapshot.clouds), None)
        reader = getattr(away, "reader", None) or Reader(labels=runner.reader.labels)
        clouds = _read("cloud_logits", cloud_outputs, reader)
        if len(clouds) != n:
            raise BadInput(f"there are {n} edge_logits and {len(clouds)} cloud_logits")
    return Examples(
        score=_scores(predictions),
        edge=[p.value for p in predictions],
        cloud=None if clouds is None else [p.value for p in clouds],
        labels=None if labels is None else said(labels, runner.reader.labels, n),
        outputs=np.asarray(edge_outputs, float),
        edge_s=np.full(n, np.nan),
        cloud_s=None if clouds is None else np.full(n, np.nan),
        sent_bytes=0,
        received_bytes=0,
        usd=0.0,
    )


def edge_runner(router: Router, edge: int) -> EdgeBackend:
    """The edge model of that number, counted from 0.

    Raises:
        PolicyError: there is none.
    """
    edges: list[Any] = [r for r in router.engine.snapshot.backends if r.side == "edge"]
    if not 0 <= edge < len(edges):
        raise PolicyError(f"there is no edge model number {edge}: the policy has {len(edges)}, counted from 0")
    return edges[edge]  # type: ignore[no-any-return]


def said(labels: Sequence[Any], names: Sequence[str] | None, n: int) -> list[Any]:
    """The labels as a model with classes of these names says them; a number is a class's place in that list.

    Raises:
        BadInput: there are not n, or one is none of the classes.
    """
    if len(labels) != n:
        raise BadInput(f"there are {n} inputs and {len(labels)} labels")
    if names is None:
        return [int(label) if isinstance(label, float | np.number) and label == int(label) else label for label in labels]
    found: list[Any] = []
    for i, label in enumerate(labels):
        if isinstance(label, str):
            if label not in names:
                raise BadInput(f"label {i} is {label!r}, and the edge model says {', '.join(names)}")
            found.append(label)
        elif not isinstance(label, int | float | np.number) or label != int(label) or not 0 <= label < len(names):
            raise BadInput(f"label {i} is {label!r}, and the edge model's classes are numbers 0 to {len(names) - 1}")
        else:
            found.append(names[int(label)])
    return found


def _run(runner: EdgeBackend, inputs: Sequence[Any], advance: Callable[[int], object]) -> tuple[list[Prediction], Floats]:
    predictions, took_s = [], np.empty(len(inputs))
    for i, x in enumerate(inputs):
        try:
            if not i:
                runner.run_one(x, None)  # the first run takes longer than any after it
            begun = perf_counter()
            predictions.append(runner.run_one(x, None))
            took_s[i] = perf_counter() - begun
        except BadInput as e:
            raise BadInput(f"input {i}: {e}") from e
        advance(1)
    return predictions, took_s


def _ask(
    router: Router, inputs: Sequence[Any], data_class: str | None, batch: int, advance: Callable[[int], object]
) -> list[Answer | None]:
    """The cloud's answer to each input; None: it gave none."""
    pause_s = max((1 / r.terms.calls_per_s for r in router.engine.snapshot.clouds), default=0.0)
    may_fail = int(MAY_FAIL * len(inputs))
    answers: list[Answer | None] = []
    why: EdgerouteError | None = None

    def ask(rows: list[Any]) -> None:
        nonlocal why
        begun = monotonic()
        try:
            if len(rows) > 1:
                answers.extend(router.infer_many(rows, mode="only_cloud", data_class=data_class))
            else:
                answers.append(router.infer(rows[0], mode="only_cloud", data_class=data_class))
        except PolicyError:  # it would be the same for each of them
            raise
        except MayNotLeave as e:
            raise MayNotLeave(f"the cloud is to be asked about every example, and that may not leave the device: {e}") from e
        except EdgerouteError as e:
            if why is None or not getattr(e, "held", False):  # that it is not asked any more has a reason, too
                why = e
            if len(rows) > 1:  # one input fails them all: find out which
                for row in rows:
                    ask([row])
                return
            answers.append(None)
            failed = answers.count(None)
            if failed > may_fail or failed == len(answers):
                raise NoAnswer(
                    f"the cloud did not answer {failed} of the {len(answers)} inputs that it was asked about, and of "
                    f"{len(inputs)} at most {may_fail} may be left out: {why}"
                ) from e
        advance(len(rows))
        sleep(max(0.0, begun + pause_s - monotonic()))

    for start in range(0, len(inputs), batch):
        ask(list(inputs[start : start + batch]))
    return answers


def _read(what: str, outputs: Floats, reader: Reader) -> list[Prediction]:
    array = np.asarray(outputs)
    if array.ndim != 2 or array.dtype.kind not in "fiu" or not array.size:  # noqa: PLR2004 - examples and classes
        raise BadInput(f"{what}: expected numbers [n, classes], found {array.dtype} {list(array.shape)}")
    if reader.kind == "logits" and _probabilities(array):
        raise BadInput(f"{what}: these are probabilities, each row adds up to 1: record the outputs before the softmax")
    try:
        return reader.many(array, len(array))
    except BadReply as e:
        raise BadInput(f"{what}: {e}") from e


def _scores(predictions: Sequence[Prediction]) -> Floats:
    return np.array([np.nan if p.confidence is None else p.confidence for p in predictions], float)


def _stacked(outputs: Sequence[Any]) -> Floats | None:
    """[n, classes], where each is an array of numbers of that length."""
    if all(isinstance(o, np.ndarray) and o.ndim == 1 and o.dtype.kind in "fiu" for o in outputs):
        lengths = {len(o) for o in outputs}
        return np.array(outputs, float) if len(lengths) == 1 else None
    return None


def _probabilities(outputs: Floats) -> bool:
    """Whether they have been through a softmax. Logits that all happen to be 0 or more, and to add up to 1, there are not."""
    return bool(outputs.shape[-1] > 1 and (outputs >= 0).all() and np.allclose(outputs.sum(-1), 1, atol=1e-3))
