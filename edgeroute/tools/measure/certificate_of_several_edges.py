"""Certificate of several edge models that are asked one after the other, from their answers together as examples."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from edgeroute.confidence.certificate import Certificate
from edgeroute.core.reason_text_and_trace_record import finite
from edgeroute.errors import PolicyError
from edgeroute.system.wall_clock import now
from edgeroute.tools.measure.certification_and_verdicts import correctness
from edgeroute.tools.measure.critical_counts import least_n
from edgeroute.tools.measure.fixed_sequence import one_of_each
from edgeroute.tools.measure.independence_and_overlap import dependence, sketch
from edgeroute.tools.measure.threshold_calibration_and_crossfit import (
    accuracies,
    disagreement_bound,
    group_numbers,
    not_enough,
    weighted_mean,
)
from edgeroute.tools.measure.threshold_evaluation import Bools, Examples, chance_doubts, reference_doubts, share
from edgeroute.tools.measure.thresholds_of_several_edges import MOST, PART, accepting, lowest_thresholds, test_size


def check_units(value: float, sure: float, units: int, what: str) -> None:
    """Raise `NotEnough` if even as many examples without an error would not prove a loss below this limit.

    units: number of examples, or groups, of which a part chooses the thresholds. what: their name, for the message.
    """
    enough = max(PART, least_n(value, round(1 - sure, 12)))
    if test_size(units) < enough:
        needed = min((PART * enough - 1) // (PART - 1), enough + MOST)
        raise not_enough("max_loss", value, sure, needed, units, what)


def joined(parts: Sequence[Examples], accepts: Sequence[Bools]) -> Examples:
    """Return the answers of edge models together, as examples of one: of the first that accepts its own, or else of the last.

    Their score is 1 where a model accepts, else 0; their outputs are the models' scores, [n, models].

    Args:
        parts: examples of each edge model, on the same inputs.
        accepts: [n] of each, True where its answer is accepted once it is asked.
    """
    accepted = np.array(accepts)
    model = np.where(accepted.any(0), accepted.argmax(0), len(parts) - 1).tolist()

    def picked(columns: Sequence[Sequence[Any] | None]) -> list[Any] | None:
        """Return for each example the value of its model; None if there are none."""
        return None if columns[0] is None else [columns[k][i] for i, k in enumerate(model)]

    times = [part.edge_s for part in parts if part.edge_s is not None]
    seconds = picked(np.cumsum(times, 0).tolist()) if times else None
    return parts[0]._replace(
        score=accepted.any(0).astype(float),
        edge=picked([part.edge for part in parts]) or [],
        cloud=picked([part.cloud for part in parts]),
        labels=picked([part.labels for part in parts]),
        outputs=np.column_stack([part.score for part in parts]),
        edge_s=None if seconds is None else np.array(seconds, float),
        notes=tuple(dict.fromkeys(note for part in parts for note in part.notes)),
    )


def certify_together(
    parts: Sequence[Examples],
    value: float,
    sure: float,
    *,
    names: Sequence[str],
    scores: Sequence[str],
    fingerprints: Callable[[Sequence[float]], Sequence[Mapping[str, str]]],
    notes: list[str],
) -> Certificate:
    """Find a threshold for each of several edge models, asked one after the other, and return the certificate of all together.

    Its loss against the cloud is that of all of them. Without labels, correct means that an edge model and the cloud agree.
    Thresholds are chosen on a part of the examples, and tested on the others.

    Args:
        parts: examples of each edge model, on the same inputs, whatever the models before it accept.
        value: limit of the loss, 0..1.
        sure: confidence level of the guarantee.
        names: name of each edge model.
        scores: name of the score of each.
        fingerprints: function from thresholds to the fingerprints that each edge model is bound to.
        notes: list to which warnings are appended.

    Raises:
        NotEnough: even examples without an error would not prove it.
        PolicyError: the cloud's answers are missing, a score is infinite, or there is none.
    """
    table = np.column_stack([part.score for part in parts])
    n, models = table.shape
    if np.isinf(table).any() or np.isnan(table).all():
        raise PolicyError("the scores of some examples are infinite, or none has a score: no threshold could be found")
    rights = [correctness(part, "max_loss") for part in parts]
    edges = [np.asarray(edge, float) for edge, _ in rights]
    clouds = [None if cloud is None else np.asarray(cloud, float) for _, cloud in rights]
    loss = np.column_stack([(1.0 if cloud is None else cloud) - edge for edge, cloud in zip(edges, clouds, strict=True)])
    groups = group_numbers(parts[0].groups, n)
    units = n if groups is None else int(groups.max()) + 1
    delta = round(1 - sure, 12)
    check_units(value, sure, units, "examples" if groups is None else "groups")
    path = lowest_thresholds(value, delta, table, loss, wins=clouds[0] is not None, groups=groups)
    model = accepting(table, path.thresholds)
    weights = None if groups is None else 1 / np.bincount(groups)[groups]
    tested = path.rows if groups is None else path.rows[one_of_each(np.unique(groups[path.rows], return_inverse=True)[1])]

    def rates(reach: Bools, deferred: Bools) -> dict[str, Any]:
        """Return the deferral rate among the examples that reach a model, with its interval; the path's steps share the risk."""
        known = reach.any()
        within = share(deferred[tested][reach[tested]], delta / path.steps)
        rate = weighted_mean(deferred[reach], None if weights is None else weights[reach]) if known else 1.0
        return {"deferral_rate": rate, "deferral_interval": [min(rate, within.low), max(rate, within.high)]}

    ladder = list[dict[str, Any]]()
    for k, prints in enumerate(fingerprints(path.thresholds)):
        reach, accepted = model >= k, model == k
        of_these = None if weights is None else weights[reach]
        same = np.asarray(parts[k].agree, float)
        cloud = clouds[k]
        ladder.append({
            "threshold": finite(path.thresholds[k]),
            **rates(reach, model > k),
            "accuracy": accuracies(accepted[reach], edges[k][reach], None if cloud is None else cloud[reach], of_these)
            if reach.any()
            else {},
            "unscored": weighted_mean(np.isnan(table[reach, k]), of_these) if reach.any() else 0.0,
            "score": scores[k],
            "fingerprints": dict(prints),
            "disagreement": disagreement_bound(accepted, same, groups),
            "reach": weighted_mean(reach, weights),
        })  # fmt: skip
        if len({*table[:, k][~np.isnan(table[:, k])].tolist()}) > 1:
            notes += [f"{names[k]}: {text}" for text in dependence(table[:, k], edges[k], cloud, groups)]
        else:
            notes.append(f"{names[k]}: its answers have no score, or the same, and are accepted or deferred together")
    whole = joined(parts, [table[:, k] >= threshold for k, threshold in enumerate(path.thresholds)])
    edge, right = (None if x is None else np.asarray(x, float) for x in correctness(whole, "max_loss"))
    assert edge is not None, "there are answers of the cloud"
    doubts = [] if right is None else [*reference_doubts(edge, right, groups), *chance_doubts(whole)]
    notes += doubts
    deferral = rates(np.ones(n, bool), model == models)
    low, high = deferral["deferral_interval"]
    return Certificate(
        kind="max_loss",
        value=value,
        sure=sure,
        method=path.method,
        agreement=right is None,
        n=n,
        date=time.strftime("%Y-%m-%d", time.gmtime(now())),
        threshold=min(path.thresholds),
        thresholds={},
        deferral_rate=deferral["deferral_rate"],
        deferral_interval=(low, high),
        accuracy=accuracies(model < models, edge, right, weights),
        unscored=weighted_mean(np.isnan(table).min(1), weights),
        score=", ".join(dict.fromkeys(scores)),
        parameters={},
        fingerprints=ladder[0]["fingerprints"],
        groups=None if groups is None else units,
        examples=sketch(table),
        doubts=tuple(doubts),
        ladder=tuple(ladder),
    ).sealed()
