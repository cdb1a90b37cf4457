"""Collects answers, confidence, latency and cost of edge and cloud on a set of inputs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from time import monotonic, perf_counter, sleep
from typing import TYPE_CHECKING, Any

import numpy as np

from edgeroute.confidence.reader import Reader
from edgeroute.core.policy import INF
from edgeroute.core.walk import Prediction
from edgeroute.errors import BadInput, BadReply, EdgerouteError, MayNotLeave, ModelError, NoAnswer, PolicyError
from edgeroute.report.evaluation.examples import Examples, Floats

if TYPE_CHECKING:
    from edgeroute.edge.backend import EdgeBackend
    from edgeroute.router.router import Router
    from edgeroute.types import Answer

MAY_FAIL = 0.01
"""Maximum share of inputs dropped for lack of a cloud answer; more would bias the sample."""


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
    """Runs the edge model and the cloud on each input, regardless of the threshold.

    The edge runs inputs one by one. The cloud is called with mode `only_cloud`: egress rules, consent, limits and ledger
    apply, at most at the `calls_per_s` of the endpoints. Inputs without a cloud answer are dropped, at most `MAY_FAIL` of them.

    Args:
        router: without cache and outbox, whose answers would not be the cloud's.
        inputs: as for `infer`, at least one.
        labels: ground truth, one per input: values as the edge returns them, or class indices.
        edge: index of the edge model.
        ask_cloud: False: run the edge only.
        data_class: of the inputs.
        batch: inputs per cloud request. With more than one, cloud latency is not measured, and cost is that of fewer, larger
            requests.
        advance: called with the number of inputs just answered, by edge or cloud.

    Raises:
        BadInput: an input does not fit the edge model, or a label is not one of its classes.
        MayNotLeave: the data class forbids sending.
        NoAnswer: the cloud failed on more than `MAY_FAIL` of the inputs.
        ModelError: the edge model cannot be used, or returns probabilities where its card says logits.
    """
    if not len(inputs):
        raise BadInput("there are no inputs")
    runner = edge_runner(router, edge)
    right = None if labels is None else said(labels, runner.reader.labels, len(inputs))
    runner.ready(INF)
    predictions, edge_s = _run(_answering(router, runner), inputs, advance)
    answers: list[Answer | None] = []
    before = router.stats()
    if ask_cloud:
        answers = _ask(router, inputs, data_class, batch, advance)
    after = router.stats()
    kept = [i for i in range(len(inputs)) if not ask_cloud or answers[i] is not None]
    outputs = _stacked([predictions[i].outputs for i in kept])
    if runner.reader.kind in {None, "logits"} and outputs is not None and _probabilities(outputs):
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
        usd=max(0.0, after.usd_today - before.usd_today),  # negative if older costs left the rolling window meanwhile
    )


def recorded(
    router: Router, edge_outputs: Floats, cloud_outputs: Floats | None, labels: Sequence[Any] | None, *, edge: int = 0
) -> Examples:
    """Examples from recorded outputs [n, classes], decoded as the router would. Runs no model.

    It is not checked that they come from these models.

    Raises:
        BadInput: wrong shape or dtype, or a label that is not one of the edge's classes.
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
    """The backend of the edge model with this index, from 0.

    Raises:
        PolicyError: index out of range.
    """
    edges: list[Any] = [r for r in router.engine.snapshot.backends if r.side == "edge"]
    if not 0 <= edge < len(edges):
        raise PolicyError(f"there is no edge model number {edge}: the policy has {len(edges)}, counted from 0")
    return edges[edge]  # type: ignore[no-any-return]


def said(labels: Sequence[Any], names: Sequence[str] | None, n: int) -> list[Any]:
    """Converts n labels to the values a model with these class names returns; a number is a class index.

    Raises:
        BadInput: not n labels, or one is not a class.
    """
    if len(labels) != n:
        raise BadInput(f"there are {n} inputs and {len(labels)} labels")
    if names is None:
        return [int(label) if isinstance(label, float | np.number) and _whole(label) else label for label in labels]
    found: list[Any] = []
    for i, label in enumerate(labels):
        if isinstance(label, str):
            if label not in names:
                raise BadInput(f"label {i} is {label!r}, and the edge model says {', '.join(names)}")
            found.append(label)
        elif not isinstance(label, int | float | np.number) or not _whole(label) or not 0 <= label < len(names):
            raise BadInput(f"label {i} is {label!r}, and the edge model's classes are numbers 0 to {len(names) - 1}")
        else:
            found.append(names[int(label)])
    return found


def _whole(number: Any) -> bool:
    """Whether it is a whole number, which NaN and infinities are not."""
    return bool(-INF < number < INF and number == int(number))


def _answering(router: Router, runner: EdgeBackend) -> Callable[[Any], Prediction]:
    """Runs it on its view of an input."""
    snapshot = router.engine.snapshot
    number = next(i for i, backend in enumerate(snapshot.backends) if backend is runner)
    target, views = snapshot.targets[number], snapshot.views
    return lambda x: runner.run_one(views.of(target, number, x), None)


def _run(
    run: Callable[[Any], Prediction], inputs: Sequence[Any], advance: Callable[[int], object]
) -> tuple[list[Prediction], Floats]:
    predictions, took_s = [], np.empty(len(inputs))
    for i, x in enumerate(inputs):
        try:
            if not i:
                run(x)  # warm-up
            begun = perf_counter()
            predictions.append(run(x))
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
        except PolicyError:  # the same for every input
            raise
        except MayNotLeave as e:
            raise MayNotLeave(f"the cloud is to be asked about every example, and that may not leave the device: {e}") from e
        except EdgerouteError as e:
            if why is None or not getattr(e, "held", False):  # prefer the cause to a later breaker or limit
                why = e
            if len(rows) > 1:  # one bad input fails the whole batch: retry one by one
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
    if reader.kind in {None, "logits"} and _probabilities(array):
        raise BadInput(f"{what}: these are probabilities, each row adds up to 1: record the outputs before the softmax")
    try:
        return reader.many(array, len(array))
    except BadReply as e:
        raise BadInput(f"{what}: {e}") from e


def _scores(predictions: Sequence[Prediction]) -> Floats:
    return np.array([np.nan if p.confidence is None else p.confidence for p in predictions], float)


def _stacked(outputs: Sequence[Any]) -> Floats | None:
    """Stacks to [n, classes]; None if the outputs are not numeric rows of equal length."""
    if all(isinstance(o, np.ndarray) and o.ndim == 1 and o.dtype.kind in "fiu" for o in outputs):
        lengths = {len(o) for o in outputs}
        return np.array(outputs, float) if len(lengths) == 1 else None
    return None


def _probabilities(outputs: Floats) -> bool:
    """Whether these are softmax outputs: all rows non-negative with sum 1, which logits practically never are."""
    return bool(outputs.shape[-1] > 1 and (outputs >= 0).all() and np.allclose(outputs.sum(-1), 1, atol=1e-3))
