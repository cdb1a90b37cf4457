"""The numbers of an evaluation for programs."""

from __future__ import annotations

from collections.abc import Sequence
from math import isnan
from typing import Any

from edgeroute.core.explain import finite
from edgeroute.evaluation.evaluation import QUANTILES, Evaluation
from edgeroute.evaluation.promise import verdicts
from edgeroute.evaluation.share import Share


def latencies(evaluation: Evaluation) -> dict[str, dict[str, float]]:
    """Leg -> quantile (p50, p90, p99) -> seconds; of what was measured."""
    return {
        leg: {f"p{q * 100:g}": time for q, time in zip(QUANTILES, times, strict=True)}
        for leg, times in evaluation.latency().items()
    }


def numbers(evaluation: Evaluation, notes: Sequence[str]) -> dict[str, Any]:
    """All of them in JSON types. Shares 0..1, with their 95 % intervals; times in seconds."""
    made, certificate = evaluation.examples, evaluation.certificate
    return {
        "n": evaluation.n,
        "labelled": evaluation.labelled,
        "threshold": finite(evaluation.threshold),
        "thresholds": {label: finite(t) for label, t in evaluation.thresholds.items()},
        "accuracy": {side: _share(found) for side, found in evaluation.accuracy().items()},
        "deferral": _share(evaluation.deferral),
        "latency_s": latencies(evaluation),
        "sent_bytes": made.sent_bytes,
        "received_bytes": made.received_bytes,
        "usd": made.usd,
        "promise": None if certificate is None else certificate.label,
        "uncalibrated": evaluation.uncalibrated,
        "seen_before": evaluation.seen_before,
        "area": None if (area := evaluation.area()) is None or isnan(area.value) else area._asdict(),
        "held": [{**one._asdict(), "held": one.held, "broken": one.broken} for one in verdicts(evaluation)],
        "arms": [dict(arm) for arm in evaluation.arms],
        "cloud_arms": [dict(arm) for arm in evaluation.cloud_arms],
        "notes": list(notes),
    }


def _share(found: Share) -> dict[str, Any]:
    return {**found._asdict(), "value": found.value if found.of else None}
