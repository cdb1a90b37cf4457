"""Steps of `Router.calibrate` and `Router.evaluate`, shared by threads and asyncio: collection, certificate, evaluation, results.

They read the inputs, run the models and ask the cloud. `Steps` are a generator of waits and blocking calls, which a driver
executes: in the caller's thread, or for asyncio in another one. Tables and labels are read here, too.
"""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from functools import partial
from math import inf
from pathlib import Path
from time import gmtime, strftime
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from edgeroute.confidence.certificate import UNVERSIONED, BoundCertificate, Certificate, Kind
from edgeroute.confidence.output_forms_labels_and_comparison import label_form
from edgeroute.confidence.scores import SCORES, Score
from edgeroute.core.error_codes_and_texts import UNIDENTIFIED, class_name
from edgeroute.core.policy_egress_and_options import INF
from edgeroute.edge.edge_model_members_and_fingerprints import member
from edgeroute.edge.fitted_estimator_as_function import Estimator
from edgeroute.errors import BadInput, PolicyError, check_number, nearest
from edgeroute.router.request import is_read_once, read_once_error, rows_of_pandas
from edgeroute.router.steps_and_composed_stages import Block, Steps
from edgeroute.system import wall_clock
from edgeroute.tools.measure.certificate_of_several_edges import certify_together, check_units, joined
from edgeroute.tools.measure.certification_and_verdicts import Fit, certify
from edgeroute.tools.measure.collect_edge_and_cloud import DirectCalls, collect, score_name
from edgeroute.tools.measure.labels_on_demand import FunctionLabels, LabelsOnDemand
from edgeroute.tools.measure.report.progress_bar import Progress, show_progress
from edgeroute.tools.measure.report.report_pages_and_results import UNHASHED, CalibrationResult, EvaluationResult
from edgeroute.tools.measure.threshold_calibration_and_crossfit import check_sizes, checked_target, group_numbers
from edgeroute.tools.measure.threshold_evaluation import Evaluation, Examples, Names, answer_names

if TYPE_CHECKING:
    from edgeroute.router.engine import Engine
    from edgeroute.tools.data_classes_of_records import EachClass


# X and y as in scikit-learn: inputs, and the right answer of each.

WANTED = "X must hold the inputs in order: an array [n, ...], a list, or a mapping from name to rows"


def rows(
    X: Any,  # noqa: N803 - as in scikit-learn
    y: Any,
    every: int,
    groups: Any = None,
    fitted: Sequence[str] | None = None,
) -> Steps[tuple[list[Any], list[Any] | None, list[Any] | None]]:
    """Return the inputs as a list, with their labels and groups; None for None. The rows are read in blocking steps.

    Args:
        X: an array [n, ...] of any library, a sequence of inputs, a mapping from name to the rows of one of several inputs, a
            table of numbers, or a data set of pairs.
        y: a label for each, the name of a column of X, or None.
        every: take each `every`-th only.
        groups: the scene, user or session of each, or None.
        fitted: names of the columns that the edge was fitted on: a table is then read by them; None: by position.

    Raises:
        BadInput: they are of another type, or differ in number.
        PolicyError: `every` is no number of 1 or more.
    """
    check_number("every", every, least=1, whole=True)
    X, y = yield Block(partial(_unpacked, X, y, fitted), INF)  # noqa: N806
    count = _length(X)
    labels = None if y is None else _labels(y)
    group_list = None if groups is None else _labels(groups, "groups", "a name")
    if not count:
        raise BadInput("there are no inputs")
    if labels is not None and len(labels) != count:
        raise BadInput(f"there are {count} inputs in X and {len(labels)} labels in y")
    if group_list is not None and len(group_list) != count:
        raise BadInput(f"there are {count} inputs in X and {len(group_list)} names in groups")
    taken = range(0, count, every)
    inputs = yield Block(partial(_take_rows, X, taken), INF)  # reading a row of a data set may take its time
    labels, group_list = (None if column is None else column[::every] for column in (labels, group_list))
    return inputs, labels, group_list


def _unpacked(X: Any, y: Any, fitted: Sequence[str] | None = None) -> tuple[Any, Any]:  # noqa: N803
    """Return the inputs and labels of a table (pandas, Hugging Face) or of a data set of pairs (torch); others unchanged.

    A row of pandas is as `infer_many` takes it. A row of numbers of Hugging Face's becomes an array, and a row of one column its
    value. With names of fitted columns, an array has these columns in this order, and a row with text becomes a mapping. Reads
    all rows of a table or data set.

    Raises:
        BadInput: a table lacks a column, or has text and no fitted columns; or pairs have labels, and there are others in y.
    """
    names = getattr(X, "column_names", None) if hasattr(X, "remove_columns") else None
    inputs = X
    if (is_frame := hasattr(X, "iloc") and hasattr(X, "to_numpy")) and X.ndim > 1:
        names = [*X.columns]
    if isinstance(names, Mapping):
        raise BadInput(f"X has the splits {', '.join(names)}: pass one, as X[{next(iter(names))!r}]")
    if names is not None and isinstance(y, str):
        if y not in names:
            raise BadInput(f"X has no column {y!r} of labels: its columns are {', '.join(map(str, names))}")
        names, inputs, y = [name for name in names if name != y], X.drop(columns=y) if is_frame else X, list(X[y])
    if is_frame:
        return rows_of_pandas(inputs), y
    if names is not None and hasattr(type(X), "__len__") and len(X):
        if fitted is not None and len(names) > 1:
            if missing := [name for name in fitted if name not in names]:
                raise BadInput(f"X lacks {', '.join(map(repr, missing))}, of the columns that the edge was fitted on")
            names = [*fitted]
        columns = {name: list(X[name]) for name in names}
        if len(columns) == 1:
            return [np.asarray(x) if isinstance(x, list) else x for x in columns[names[0]]], y
        table = [np.asarray(column) for column in columns.values()]
        if any(column.dtype.kind not in "biuf" or column.ndim > 1 for column in table):
            if fitted is not None and names == [*fitted]:
                return [dict(zip(names, row, strict=True)) for row in zip(*columns.values(), strict=True)], y
            texts = ", ".join(str(name) for name, column in zip(names, table, strict=True) if column.dtype.kind not in "biuf")
            raise BadInput(
                f"X has columns that are no numbers ({texts}): pass the column of inputs, name that of labels as y, or for a "
                "model that reads columns by name [*X]"
            )
        return np.column_stack(table), y
    plain = isinstance(X, list | tuple | str | bytes | Mapping) or hasattr(X, "dtype") or is_read_once(X)
    if plain or not hasattr(type(X), "__len__") or not hasattr(type(X), "__getitem__") or not len(X) or not _is_pair(X[0]):
        return X, y
    if y is not None:
        raise BadInput(f"X, a {class_name(X)}, holds pairs of an input and its label: leave out y")
    pairs = [X[i] for i in range(len(X))]
    return [x for x, _ in pairs], [label.item() if hasattr(label, "item") else label for _, label in pairs]


def _is_pair(row: Any) -> bool:
    """Return True for a tuple of an input and a label: a text, a whole number, or an array of one such number."""
    if not isinstance(row, tuple) or len(row) != 2:  # noqa: PLR2004 - a pair
        return False
    return isinstance(row[1], str | int) or (hasattr(row[1], "item") and not getattr(row[1], "ndim", 1))


def _length(X: Any) -> int:  # noqa: N803
    """Return the number of inputs of X, a sequence or array, or a mapping of columns, by its columns' length.

    Raises BadInput for all else, as iterators, and for columns that differ in length.
    """
    if is_read_once(X):
        raise BadInput(f"{WANTED}; not an iterator ({class_name(X)}), which can be read only once: pass list(X)")
    if isinstance(X, Mapping):
        lengths = {name: _length_of(column, f"X[{name!r}]") for name, column in X.items()}
        if len(set(lengths.values())) > 1:
            raise BadInput(f"the rows of X differ in number: {', '.join(f'{name!r} has {n}' for name, n in lengths.items())}")
        return next(iter(lengths.values()), 0)
    return _length_of(X, "X")


def _length_of(column: Any, name: str) -> int:
    """Return the length of a sequence or array; raise `BadInput` for all else, as texts, sets, mappings and pandas objects."""
    if hasattr(column, "iloc"):
        raise BadInput(f"{name} is a {class_name(column)}: pass its values, as {name}.to_numpy()")
    plain = isinstance(column, str | bytes | bytearray | os.PathLike | AbstractSet | Mapping)
    if plain or not hasattr(type(column), "__len__") or not hasattr(type(column), "__getitem__"):
        raise BadInput(f"{WANTED}; {name} is a {class_name(column)}")
    if getattr(column, "ndim", 1) == 0:
        raise BadInput(f"{WANTED}; {name} is an array without an axis")
    return len(column)


def _take_rows(X: Any, numbers: range) -> list[Any]:  # noqa: N803
    """Return the inputs at these indices; raise `BadInput` for an iterator among them."""
    if isinstance(X, Mapping):
        inputs: list[Any] = [{name: column[i] for name, column in X.items()} for i in numbers]
    else:
        inputs = [X[i] for i in numbers]
    for x in inputs:
        if is_read_once(x):
            raise read_once_error(x)
    return inputs


def _labels(y: Any, name: str = "y", noun: str = "a label") -> list[Any]:
    """Return labels as a list; a series and a column [n, 1] are accepted, too; raise `BadInput` for all else."""
    if is_read_once(y):
        raise BadInput(f"{name} is an iterator ({class_name(y)}), which can be read only once: pass list({name})")
    if hasattr(y, "iloc"):  # a series, or a table of one column
        y = y.to_numpy()
    if isinstance(y, str | bytes | Mapping) or not hasattr(type(y), "__len__"):
        raise BadInput(f"{name} must hold {noun} for each input, and is a {class_name(y)}")
    shape = getattr(y, "shape", None)
    if shape is not None and len(shape) != 1:
        if len(shape) != 2 or shape[1] != 1:  # noqa: PLR2004 - a table
            graded = "or for a regression of several outputs grade each answer: `edgeroute docs calibrate`"
            hint = f": pass the class, as with y.argmax(1), {graded}" if name == "y" else ""
            raise BadInput(f"{name} must hold {noun} for each input, [n], and is {list(shape)}{hint}")
        y = y.reshape(-1)
    return list(y.tolist()) if hasattr(y, "tolist") else list(y)


@dataclass(frozen=True)
class Target:
    """Certificate to find: its guarantee and score.

    Attributes:
        kind: kind of the guarantee.
        value: its limit, 0..1.
        sure: its confidence level; None: it holds on average.
        per_class: True finds a threshold for each class that the edge predicts.
        score: a name or a function; "auto" or "learned": fitted; None: the score in use.
        ood: True lets a fitted score use how unusual an input is.
    """

    kind: Kind
    value: float
    sure: float | None
    per_class: bool
    score: str | Score | None
    ood: bool

    @property
    def fit(self) -> Fit | None:
        """Way to fit a score; None: the score is given."""
        return self.score if self.score == "auto" or self.score == "learned" else None  # type: ignore[return-value] # noqa: PLR1714


def checked_request(
    *,
    max_loss: float | None,
    max_error: float | None,
    max_defer: float | None,
    sure: float | None,
    per_class: bool,
    score: str | Score | None,
    ood: bool,
) -> Target:
    """Validate the arguments of a calibration and return them as its target.

    Raises:
        PolicyError: there is not one limit, a number is no share, there is no such score, or arguments exclude each other.
    """
    kind, value, _ = checked_target(max_loss, max_error, max_defer, sure)
    if per_class and kind == "max_defer":
        raise PolicyError("max_defer has one threshold for all classes: leave out per_class")
    if isinstance(score, str) and score not in (known := [*SCORES, "auto", "learned"]):
        raise PolicyError(f"there is no score {score!r}: {nearest(score, known)}")
    if not (score is None or isinstance(score, str) or callable(score)):
        raise PolicyError(f"score= must be a name or a function of the outputs of one input, not a {type(score).__name__}")
    target = Target(kind, value, None if sure is None else float(sure), per_class, score, ood)
    if ood and target.fit is None:
        raise PolicyError('ood works with a fitted score: pass score="learned" or "auto"')
    return target


def calibration(
    engine: Engine,
    X: Any,  # noqa: N803 - as in scikit-learn
    y: Any,
    want: Target,
    *,
    edge: int | Literal["all"],
    policy: str,
    label: Callable[[Any], Any] | LabelsOnDemand | None = None,
    **reading: Any,
) -> Steps[CalibrationResult]:
    """Check the request, collect examples, and find the lowest threshold with the guarantee; see `Router.calibrate`.

    Runs the edge models, asks the cloud where it is needed, reads the models' files, and certifies in a blocking step. reading:
    options of `_examples`. label: function of an input, or reader of labels, for labels that `y` lacks; None: `y` has all, or
    none.

    Raises:
        PolicyError: the arguments exclude each other, or labels or a cloud are missing for the guarantee.
        NotEnough: there are too few examples; others as `collect`.
    """
    if reading["groups"] is not None and want.per_class:
        raise PolicyError("per_class and groups exclude each other: a group may have several classes")
    if label is not None and (want.kind != "max_loss" or want.fit):
        raise PolicyError("label= is for max_loss, where most labels are not needed, and a score that was not fitted to labels")
    if edge == "all" and (want.kind != "max_loss" or want.per_class or want.fit or label is not None):
        raise PolicyError(
            'edge="all" certifies max_loss, with one threshold for each edge model and a given score: for max_error, max_defer, '
            "per_class, label= and fitted scores calibrate one edge model after the other, edge=0 first"
        )
    deferring = engine.snapshot.policy._replace(no_confidence="defer")  # as a router with a certificate has to
    calls = DirectCalls(engine, edge, "msp" if want.fit else want.score, of=engine.snapshot._replace(policy=deferring))
    if want.kind == "max_error" and y is None:
        raise PolicyError("max_error needs labels, the right answer of each input: y, or in an .npz file an array `labels`")
    if want.kind == "max_loss" and not calls.clouds:
        raise PolicyError("max_loss is measured against the cloud, and there is none: no cloud=, no [cloud] in the policy")
    if want.fit and calls.snapshot.sends_edge:
        raise PolicyError(f'score="{want.fit}" cannot be fitted with send_edge: fit it without, then calibrate with both')
    ask_cloud = want.kind == "max_loss" or bool(want.fit and want.kind == "max_defer" and calls.clouds)
    if want.fit and y is None and not ask_cloud:
        raise PolicyError("fitting a score needs labels or the cloud's answers, and there are neither")
    known = y if label is not None and isinstance(y, Mapping) else None
    inputs, labels, parts, notes = yield from _examples(
        calls, X, y if known is None else None, ask_cloud, on_demand=label is not None, check=partial(_check_number, want, calls),
        **reading,
    )  # fmt: skip
    if len(parts) > 1:
        together: CalibrationResult = yield Block(partial(certify_ladder, calls, parts, want, notes, policy=policy), INF)
        return together
    (examples,) = parts
    if label is not None and not isinstance(label, LabelsOnDemand):
        every = reading["every"]
        label = FunctionLabels(label, {i * every: y for i, y in enumerate(labels or ())} if known is None else known, every)
    if label is not None:
        if UNIDENTIFIED in calls.fingerprints()["edge"]:
            log.warning("the certificate will not hold, since %s", UNVERSIONED)
        label.begin(examples, inputs, answer_names(calls.runner.reader, examples.edge))
    result: CalibrationResult = yield Block(
        partial(certify_examples, calls, examples, want, notes, policy=policy, labels=label), INF
    )
    return result


def evaluation(
    engine: Engine,
    X: Any,  # noqa: N803 - as in scikit-learn
    y: Any,
    *,
    ask_cloud: bool,
    edge: int | Literal["all"] | None,
    edge_usd: float | None,
    edge_joules: float | None,
    policy: str,
    **reading: Any,
) -> Steps[EvaluationResult]:
    """Collect examples and evaluate the threshold in force on them; see `Router.evaluate`. reading: options of `_examples`.

    Runs the edge models, asks the cloud if `ask_cloud` and there is one, and reads the models' files.

    Raises:
        PolicyError: there is no threshold to evaluate, or a number is invalid; others as `collect`.
    """
    for name, value in (("edge_usd", edge_usd), ("edge_joules", edge_joules)):
        if value is not None:
            check_number(name, value)
    calls = DirectCalls(engine, ("all" if _about_all(engine) else 0) if edge is None else edge)
    check_threshold(calls)
    *_, parts, notes = yield from _examples(calls, X, y, ask_cloud and bool(calls.clouds), **reading)
    evaluated = (
        partial(_evaluate_ladder, calls, parts, _about_all(engine), policy=policy)
        if len(parts) > 1
        else partial(evaluate_examples, calls, parts[0], policy=policy)
    )
    result = yield Block(evaluated, INF)
    return EvaluationResult(result._replace(edge_usd=edge_usd, edge_joules=edge_joules), [*notes, *answer_notes(result)])


def _examples(
    calls: DirectCalls,
    X: Any,  # noqa: N803
    y: Any,
    ask_cloud: bool,
    *,
    data_class: str | EachClass | None,
    batch: int,
    every: int,
    progress: Progress,
    groups: Any = None,
    on_demand: bool = False,
    check: Callable[[list[Any], list[Any] | None], object] = lambda _, __: None,
) -> Steps[tuple[list[Any], list[Any] | None, list[Examples], list[str]]]:
    """Read the inputs and collect the examples of each edge model, with progress; return inputs, labels, examples and notes.

    Runs the edge models, and asks the cloud if `ask_cloud`; errors as `rows` and `collect`. The notes are on dropped inputs.

    on_demand: True leaves the labels out of the examples: some may be None. check: as of `collect`.
    """
    check_number("batch", batch, least=1, whole=True)
    function = getattr(calls.runner.model, "function", None)
    columns = function.columns if isinstance(function, Estimator) else None
    inputs, labels, group_list = yield from rows(X, y, every, groups, columns)
    total = len(inputs)
    with show_progress(progress, "asking edge and cloud" if ask_cloud else "asking the edge", total * (1 + ask_cloud)) as advance:
        parts, reached = yield from collect(
            calls, inputs, None if on_demand else labels, group_list,
            ask_cloud=ask_cloud, data_class=data_class, batch=batch, advance=advance, check=check,
        )  # fmt: skip
    left_out = {
        "the edge models before it keep them": total - reached,
        "the cloud did not answer them": reached - len(parts[0].edge),
    }
    notes = [f"{count:,} of {total:,} inputs are left out: {why}" for why, count in left_out.items() if count]
    return inputs, labels, parts, notes


def _check_number(want: Target, calls: DirectCalls, answers: list[Any], groups: list[Any] | None) -> None:
    """Raise `NotEnough` if there are too few examples whatever the cloud answers: before it is asked, and paid.

    answers: the edge's, one for each example. groups: their groups, each of which counts once.
    """
    count, what = len(answers), "examples"
    if groups is not None:
        numbers = group_numbers(groups, count)
        count, what = count if numbers is None else int(numbers.max()) + 1, "groups"
    if len(calls.numbers) > 1:
        check_units(want.value, want.sure or 0.0, count, what)
    elif want.per_class:
        sizes = Counter(label_form(answer) or "" for answer in answers)
        check_sizes(want.kind, want.value, want.sure, [*sizes.values()], "examples of one predicted class")
    else:
        check_sizes(want.kind, want.value, want.sure, [count], what)


def certify_examples(
    calls: DirectCalls,
    examples: Examples,
    want: Target,
    notes: Sequence[str],
    *,
    policy: str = "",
    labels: LabelsOnDemand | None = None,
) -> CalibrationResult:
    """Calibrate on these examples and return the result. Reads the models' files, and `labels` as far as the test needs them.

    A fitted score replaces that of the examples in the result, which keeps the notes, too.

    Raises:
        NotEnough: there are too few.
        PolicyError: they lack data for the guarantee.
    """
    notes, score, fingerprints = [*notes, *examples.notes], calls.score, calls.fingerprints()
    if want.fit is None and not isinstance(score, str):
        notes.append(f"the score in use, {score_name(score)}, was fitted: the guarantee holds if it was fitted to other examples")
    result = certify(
        examples, want.kind, want.value, want.sure,
        per_class=want.per_class, fit=want.fit, ood=want.ood, score=score_name(score), fingerprints=fingerprints,
        labels=labels,
    )  # fmt: skip
    certificate, fitted = result.certificate, result.score_fit
    notes += result.notes
    uncounted = _uncounted(certificate, calls.fingerprints(), notes)
    notes += _without_hash(calls)
    if fitted is not None:
        examples = examples._replace(score=fitted.scores)
        score = score if fitted.learned is None else fitted.learned
    evaluated = _evaluation(calls, examples, certificate.threshold, policy, score_name(score))
    evaluated = evaluated._replace(thresholds=certificate.thresholds, certificate=certificate)
    why, read = "" if fitted is None else fitted.why, None if labels is None else labels.read
    return CalibrationResult(certificate, score, why, evaluated, notes, uncounted, read, getattr(labels, "labels", None))


log = logging.getLogger("edgeroute")
# Reason why a certificate says nothing about one edge model.
ABOUT_ALL = 'it is about all edge models together: evaluate them with edge="all"'


def _without_hash(calls: DirectCalls) -> list[str]:
    """Return a note for each edge model whose content is not compared as it is loaded, but the file's time and size."""
    models: list[Any] = [calls.backend(number).model for number in calls.numbers]
    watched = [model for model in models if hasattr(model, "loaded_stamp") and getattr(model, "fingerprint", None) is None]
    return [f"{model.name}{UNHASHED}" for model in watched]


def _uncounted(certificate: Certificate, used: Mapping[str, str], notes: list[str]) -> str:
    """Return why a router with these fingerprints will call the certificate uncalibrated, and append a note to `notes`.

    Else empty.
    """
    if not any(UNIDENTIFIED in text for name, text in used.items() if name != "score"):
        return ""
    broken = BoundCertificate(certificate, {k: v for k, v in used.items() if k != "score"}, INF).broken() or ""
    notes.append(f"a router will call this certificate uncalibrated: {broken}")
    return broken


def certify_ladder(
    calls: DirectCalls, parts: Sequence[Examples], want: Target, notes: Sequence[str], *, policy: str = ""
) -> CalibrationResult:
    """Calibrate all edge models, asked one after the other, together on their examples, and return the result. Reads their files.

    Raises:
        NotEnough: there are too few.
        PolicyError: they lack data for the guarantee.
    """
    specs = [calls.snapshot.specs[number] for number in calls.numbers]
    names = [calls.backend(number).name for number in calls.numbers]
    notes = [*notes, *dict.fromkeys(note for part in parts for note in part.notes)]
    certificate = certify_together(
        parts, want.value, want.sure or 0.0, names=names, scores=[score_name(spec[3]) for spec in specs],
        fingerprints=calls.together, notes=notes,
    )  # fmt: skip
    notes += _without_hash(calls)
    thresholds = [float(own["threshold"]) for own in certificate.ladder]
    used = zip(certificate.ladder, calls.together(thresholds), strict=True)
    broken = [_uncounted(certificate.of_edge(k, len(parts)), prints, notes) for k, (_, prints) in enumerate(used)]
    own_scores = [member(calls.backend(number).model, "score") is not None for number in calls.numbers]
    accepts = [part.score >= threshold for part, threshold in zip(parts, thresholds, strict=True)]
    evaluated = _ladder(calls, parts, thresholds, accepts, policy, certificate.score)._replace(certificate=certificate)
    score = specs[own_scores.index(False) if False in own_scores else 0][3]
    return CalibrationResult(certificate, score, "", evaluated, notes, next(filter(None, broken), ""))


def _evaluate_ladder(
    calls: DirectCalls, parts: Sequence[Examples], certificate: Certificate | None, *, policy: str = ""
) -> Evaluation:
    """Evaluate the thresholds in force on the examples of all edge models; without one every answer is accepted.

    certificate: the one about all of them together; None: there is none.
    """
    each = [evaluate_examples(calls, part, number=number) for number, part in zip(calls.numbers, parts, strict=True)]
    score = ", ".join(dict.fromkeys(score_name(calls.snapshot.specs[number][3]) for number in calls.numbers))
    result = _ladder(calls, parts, [one.threshold for one in each], [one.accepted for one in each], policy, score)
    promises = [calls.snapshot.certificates[number] for number in calls.numbers]
    broken = "" if certificate is None else next(filter(None, (p.broken() for p in promises if p)), "")
    return result._replace(certificate=certificate, uncalibrated=broken)


def _ladder(
    calls: DirectCalls, parts: Sequence[Examples], thresholds: Sequence[float], accepts: Sequence[Any], policy: str, score: str
) -> Evaluation:
    """Return the evaluation of several edge models together, of which the first to accept answers.

    accepts: [n] of each, True where its answer is accepted.
    """
    result = _evaluation(calls, joined(parts, accepts), 1.0, policy, score)
    names = ", ".join(calls.backend(number).model.name for number in calls.numbers)
    return result._replace(names=result.names._replace(edge=names, edge_bytes=None), ladder=tuple(thresholds))


def _about_all(engine: Engine) -> Certificate | None:
    """Return the certificate in force that is about all edge models together; None: there is none."""
    given = engine.arguments.threshold
    each = [given] if given is None or isinstance(given, Certificate | float | int) else given
    return next((limit for limit in each if isinstance(limit, Certificate) and limit.ladder), None)


def check_threshold(calls: DirectCalls) -> None:
    """Raise `PolicyError` if there is no threshold to evaluate; without a cloud none is needed."""
    if any(calls.snapshot.targets[number].threshold is None for number in calls.numbers) and calls.clouds:
        raise PolicyError("there is no threshold to evaluate: calibrate finds one")


def evaluate_examples(calls: DirectCalls, examples: Examples, *, policy: str = "", number: int | None = None) -> Evaluation:
    """Evaluate the threshold in force on these examples; without one every answer is accepted.

    number: position of the edge model; None: the first of the calls.
    """
    position = calls.number if number is None else number
    target, promise = calls.snapshot.targets[position], calls.snapshot.certificates[position]
    result = _evaluation(calls, examples, -inf if target.threshold is None else target.threshold, policy, calls.score_name)
    return result._replace(
        thresholds=target.thresholds,
        certificate=None if promise is None else promise.certificate,
        uncalibrated="" if promise is None else promise.broken() or (ABOUT_ALL if promise.certificate.ladder else ""),
        accept_unsure=calls.snapshot.policy.no_confidence == "accept",
    )


def answer_notes(evaluation: Evaluation) -> list[str]:
    """Return notes on answers in another form than the labels, on answers that are None, which count as wrong, and doubts.

    The doubts are about the cloud as the reference.
    """
    examples = evaluation.examples
    sides = [("edge", examples.edge), ("cloud", examples.cloud or [])]
    counts = [(side, sum(value is None for value in values)) for side, values in sides]
    missing = [
        f"{count} of the {side}'s answers are none, as of outputs that hold NaN: they count as wrong"
        for side, count in counts
        if count
    ]
    return [*examples.notes, *missing, *evaluation.doubts]


def _evaluation(calls: DirectCalls, examples: Examples, threshold: float, policy: str, score: str) -> Evaluation:
    """Return the evaluation of a threshold with names, prices and trial arms of the router, and today's date.

    Reads the file's size.
    """
    model, clouds = calls.runner.model, calls.clouds
    path = Path(member(model, "path") or "")
    names = Names(
        edge=model.name,
        cloud=", ".join(cloud.where for cloud in clouds),
        score=score,
        policy=policy,
        date=strftime("%Y-%m-%d", gmtime(wall_clock.now())),
        edge_bytes=path.stat().st_size if path.is_file() else None,
    )
    result = Evaluation(examples, threshold, names=names, arms=calls.arms())
    return result._replace(terms=clouds[0].terms) if clouds else result
