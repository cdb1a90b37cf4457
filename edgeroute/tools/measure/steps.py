"""Calibration and evaluation of a router on examples, as steps of a call: threads and asyncio share them."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from functools import partial
from math import inf
from pathlib import Path
from time import gmtime, strftime
from typing import TYPE_CHECKING, Any

from edgeroute.confidence.certificate import BoundCertificate, Kind
from edgeroute.confidence.scores import SCORES, Score
from edgeroute.core.policy import INF
from edgeroute.core.words import UNIDENTIFIED, typed
from edgeroute.edge.members import member
from edgeroute.errors import BadInput, PolicyError, check_number, nearest
from edgeroute.router.request import once, refused
from edgeroute.router.stages import Block, Steps
from edgeroute.system import process
from edgeroute.tools.measure.calibration import checked_target
from edgeroute.tools.measure.certified import Fit, certified
from edgeroute.tools.measure.collect import Aside, collect
from edgeroute.tools.measure.evaluation import Evaluation, Examples, Names
from edgeroute.tools.measure.report.progress import Progress, shown
from edgeroute.tools.measure.report.results import CalibrationResult, EvaluationResult

if TYPE_CHECKING:
    from edgeroute.router.engine import Engine


# X and y as they are given in Python: inputs, and what is right for each.

WANTED = "X holds one input after the other: an array [n, ...], a list, or a mapping from name to rows"


def rows(
    X: Any,  # noqa: N803 - as in scikit-learn
    y: Any,
    every: int,
    groups: Any = None,
) -> Steps[tuple[list[Any], list[Any] | None, list[Any] | None]]:
    """The inputs as a list, their labels and their groups; None: there are none.

    Args:
        X: an array [n, ...] of any library, a sequence of inputs, or a mapping from name to the rows of one of several inputs.
        y: a label for each, or None.
        every: take each `every`-th only.
        groups: the scene, user or session of each, or None.

    Raises:
        BadInput: they are something else, or not as many.
        PolicyError: `every` is no number of 1 or more.
    """
    check_number("every", every, least=1, whole=True)
    count = _length(X)
    labels = None if y is None else _labels(y)
    together = None if groups is None else _labels(groups, "groups", "a name")
    if not count:
        raise BadInput("there are no inputs")
    if labels is not None and len(labels) != count:
        raise BadInput(f"there are {count} inputs in X and {len(labels)} labels in y")
    if together is not None and len(together) != count:
        raise BadInput(f"there are {count} inputs in X and {len(together)} names in groups")
    taken = range(0, count, every)
    inputs = yield Block(partial(_taken, X, taken), INF)  # reading a row of a data set may take its time
    labels, together = (None if column is None else column[::every] for column in (labels, together))
    return inputs, labels, together


def _length(X: Any) -> int:  # noqa: N803
    if once(X):
        raise BadInput(f"{WANTED}; not an iterator ({typed(X)}), which can be read only once: give list(X)")
    if isinstance(X, Mapping):
        lengths = {name: _length_of(column, f"X[{name!r}]") for name, column in X.items()}
        if len(set(lengths.values())) > 1:
            raise BadInput(f"the rows of X differ in number: {', '.join(f'{name!r} has {n}' for name, n in lengths.items())}")
        return next(iter(lengths.values()), 0)
    return _length_of(X, "X")


def _length_of(column: Any, name: str) -> int:
    if hasattr(column, "iloc"):
        raise BadInput(f"{name} is a {typed(column)}: give its values, as {name}.to_numpy()")
    plain = isinstance(column, str | bytes | bytearray | os.PathLike | AbstractSet | Mapping)
    if plain or not hasattr(type(column), "__len__") or not hasattr(type(column), "__getitem__"):
        raise BadInput(f"{WANTED}; {name} is a {typed(column)}")
    if getattr(column, "ndim", 1) == 0:
        raise BadInput(f"{WANTED}; {name} is an array without an axis")
    return len(column)


def _taken(X: Any, numbers: range) -> list[Any]:  # noqa: N803
    if isinstance(X, Mapping):
        found: list[Any] = [{name: column[i] for name, column in X.items()} for i in numbers]
    else:
        found = [X[i] for i in numbers]
    for x in found:
        if once(x):
            raise refused(x)
    return found


def _labels(y: Any, name: str = "y", one: str = "a label") -> list[Any]:
    """The labels as a list; a column [n, 1] is one, too."""
    if once(y):
        raise BadInput(f"{name} is an iterator ({typed(y)}), which can be read only once: give list({name})")
    if hasattr(y, "iloc"):  # a series, or a table of one column
        y = y.to_numpy()
    if isinstance(y, str | bytes | Mapping) or not hasattr(type(y), "__len__"):
        raise BadInput(f"{name} holds {one} for each input, not a {typed(y)}")
    shape = getattr(y, "shape", None)
    if shape is not None and len(shape) != 1:
        if len(shape) != 2 or shape[1] != 1:  # noqa: PLR2004 - a table
            hint = ": give the class, as with y.argmax(1)" if name == "y" else ""
            raise BadInput(f"{name} has {one} for each input, [n], and is {list(shape)}{hint}")
        y = y.reshape(-1)
    return list(y.tolist()) if hasattr(y, "tolist") else list(y)


@dataclass(frozen=True)
class Wanted:
    """The certificate that is asked for.

    Attributes:
        kind: of its guarantee.
        value: its limit, 0..1.
        sure: its confidence level; None: it holds on average.
        per_class: a threshold for each class that the edge predicts.
        score: a name or a function; "auto" or "learned": fitted; None: the one in use.
        ood: a fitted score also looks at how foreign an input is.
    """

    kind: Kind
    value: float
    sure: float | None
    per_class: bool
    score: str | Score | None
    ood: bool

    @property
    def fit(self) -> Fit | None:
        """How a score is fitted; None: it is given."""
        return self.score if self.score == "auto" or self.score == "learned" else None  # type: ignore[return-value] # noqa: PLR1714


def wanted(
    *,
    max_loss: float | None,
    max_error: float | None,
    max_defer: float | None,
    sure: float | None,
    per_class: bool,
    score: str | Score | None,
    ood: bool,
) -> Wanted:
    """Checks what is asked for.

    Raises:
        PolicyError: it cannot be.
    """
    kind, value, _ = checked_target(max_loss, max_error, max_defer, sure)
    if per_class and kind == "max_defer":
        raise PolicyError("max_defer has one threshold for all classes: leave out per_class")
    if isinstance(score, str) and score not in (known := [*SCORES, "auto", "learned"]):
        raise PolicyError(f"there is no score {score!r}: {nearest(score, known)}")
    if not (score is None or isinstance(score, str) or callable(score)):
        raise PolicyError(f"score= takes a name or a function of the outputs of one input, not a {type(score).__name__}")
    made = Wanted(kind, value, None if sure is None else float(sure), per_class, score, ood)
    if ood and made.fit is None:
        raise PolicyError('ood is for a score that is fitted: score="learned" or "auto"')
    return made


def calibration(
    engine: Engine,
    X: Any,  # noqa: N803 - as in scikit-learn
    y: Any,
    want: Wanted,
    *,
    edge: int,
    data_class: str | None,
    batch: int,
    every: int,
    progress: Progress,
    policy: str,
    groups: Any = None,
) -> Steps[CalibrationResult]:
    """Finds the lowest threshold with the guarantee; see `Router.calibrate`."""
    check_number("batch", batch, least=1, whole=True)
    if groups is not None and want.per_class:
        raise PolicyError("per_class and groups cannot both be given: a group has no one class")
    aside = Aside(engine, edge, "msp" if want.fit else want.score)
    if want.kind == "max_error" and y is None:
        raise PolicyError("max_error needs labels, what is right for each input: y, or in an .npz file an array `labels`")
    if want.kind == "max_loss" and not aside.clouds:
        raise PolicyError("max_loss is measured against the cloud, and there is none: no cloud=, no [cloud] in the policy")
    if want.fit and aside.snapshot.sends_edge:
        raise PolicyError(
            f'score="{want.fit}" fits a score, and send_edge sends confidences by the one in use: fit it without send_edge, '
            "and calibrate with both"
        )
    ask_cloud = want.kind == "max_loss" or bool(want.fit and want.kind == "max_defer" and aside.clouds)
    if want.fit and y is None and not ask_cloud:
        raise PolicyError("a score is fitted to what is right: that takes labels or the cloud's answers, and there are neither")
    made, notes = yield from _examples(aside, X, y, ask_cloud, data_class, batch, every, progress, groups)
    result: CalibrationResult = yield Block(partial(calibrated, aside, made, want, notes, policy=policy), INF)
    return result


def evaluation(
    engine: Engine,
    X: Any,  # noqa: N803 - as in scikit-learn
    y: Any,
    *,
    ask_cloud: bool,
    edge: int,
    data_class: str | None,
    batch: int,
    every: int,
    edge_usd: float | None,
    edge_joules: float | None,
    progress: Progress,
    policy: str,
) -> Steps[EvaluationResult]:
    """Evaluates the threshold in force; see `Router.evaluate`."""
    check_number("batch", batch, least=1, whole=True)
    for name, value in (("edge_usd", edge_usd), ("edge_joules", edge_joules)):
        if value is not None:
            check_number(name, value)
    aside = Aside(engine, edge)
    check_threshold(aside)
    asks = ask_cloud and bool(aside.clouds)
    made, notes = yield from _examples(aside, X, y, asks, data_class, batch, every, progress)
    found = yield Block(partial(evaluated, aside, made, policy=policy), INF)
    return EvaluationResult(found._replace(edge_usd=edge_usd, edge_joules=edge_joules), [*notes, *unsaid(made)])


def _examples(
    aside: Aside,
    X: Any,  # noqa: N803
    y: Any,
    ask_cloud: bool,
    data_class: str | None,
    batch: int,
    every: int,
    progress: Progress,
    groups: Any = None,
) -> Steps[tuple[Examples, list[str]]]:
    """The examples, and notes on them."""
    inputs, labels, together = yield from rows(X, y, every, groups)
    total = len(inputs)
    with shown(progress, "asking edge and cloud" if ask_cloud else "asking the edge", total * (1 + ask_cloud)) as advance:
        made, reached = yield from collect(
            aside, inputs, labels, together, ask_cloud=ask_cloud, data_class=data_class, batch=batch, advance=advance
        )
    left_out = {
        "the edge models before it keep them": total - reached,
        "the cloud did not answer them": reached - len(made.edge),
    }
    return made, [f"{count:,} of {total:,} inputs are left out: {why}" for why, count in left_out.items() if count]


def calibrated(aside: Aside, made: Examples, want: Wanted, notes: Sequence[str], *, policy: str = "") -> CalibrationResult:
    """The certificate that these examples give. Reads the models' files.

    Raises:
        NotEnough: there are too few.
        PolicyError: they lack what the guarantee needs.
    """
    notes, used, prints = list(notes), aside.score, aside.fingerprints()
    if want.fit is None and not isinstance(used, str):
        notes.append(f"the score in use, {_named(used)}, was fitted: the promise holds if that was to other examples than these")
    found = certified(
        made, want.kind, want.value, want.sure,
        per_class=want.per_class, fit=want.fit, ood=want.ood, score=_named(used), fingerprints=prints,
    )  # fmt: skip
    certificate, fitted = found.certificate, found.fitted
    notes += found.notes
    if any(UNIDENTIFIED in one for name, one in prints.items() if name != "score"):
        again = BoundCertificate(certificate, {k: v for k, v in aside.fingerprints().items() if k != "score"}, INF)
        notes.append(f"a router will call this certificate uncalibrated: {again.broken()}")
    if fitted is not None:
        made = made._replace(score=fitted.scores)
        used = used if fitted.learned is None else fitted.learned
    seen = _evaluation(aside, made, certificate.threshold, policy, _named(used))
    seen = seen._replace(thresholds=certificate.thresholds, certificate=certificate)
    return CalibrationResult(certificate, used, "" if fitted is None else fitted.why, seen, notes)


def check_threshold(aside: Aside) -> None:
    """Raises PolicyError if there is no threshold to evaluate."""
    if aside.snapshot.targets[aside.number].threshold is None and aside.clouds:
        raise PolicyError("there is no threshold to evaluate: calibrate finds one")


def evaluated(aside: Aside, made: Examples, *, policy: str = "") -> Evaluation:
    """What the threshold in force does on these examples."""
    target, promise = aside.snapshot.targets[aside.number], aside.snapshot.certificates[aside.number]
    found = _evaluation(aside, made, -inf if target.threshold is None else target.threshold, policy, _named(aside.score))
    return found._replace(
        thresholds=target.thresholds,
        certificate=None if promise is None else promise.certificate,
        uncalibrated="" if promise is None else promise.broken() or "",
        accept_unsure=aside.snapshot.policy.no_confidence == "accept",
    )


def unsaid(made: Examples) -> list[str]:
    """Notes on answers that say nothing."""
    sides = [("edge", made.edge), ("cloud", made.cloud or [])]
    counts = [(side, sum(value is None for value in values)) for side, values in sides]
    return [
        f"{count} of the {side}'s answers are none, as of outputs that hold NaN: they count as wrong"
        for side, count in counts
        if count
    ]


def _evaluation(aside: Aside, made: Examples, threshold: float, policy: str, score: str) -> Evaluation:
    model, clouds = aside.runner.model, aside.clouds
    path = Path(member(model, "path") or "")
    names = Names(
        edge=model.name,
        cloud=", ".join(cloud.where for cloud in clouds),
        score=score,
        policy=policy,
        date=strftime("%Y-%m-%d", gmtime(process.now())),
        edge_bytes=path.stat().st_size if path.is_file() else None,
    )
    found = Evaluation(made, threshold, names=names, arms=aside.arms())
    return found._replace(terms=clouds[0].terms) if clouds else found


def _named(score: str | Callable[[Any], float]) -> str:
    return score if isinstance(score, str) else getattr(score, "name", "function")
