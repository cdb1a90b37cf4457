"""Validates a policy and its thresholds against the targets that there are."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from numbers import Real
from typing import TYPE_CHECKING, Any, get_args

from edgeroute.confidence.forms import SLACK
from edgeroute.confidence.reader import bounded
from edgeroute.confidence.scores import Score
from edgeroute.core.policy import (
    HEDGE,
    INF,
    NEEDS,
    POLICY_MODES,
    CloudOrder,
    NoConfidence,
    Offline,
    Policy,
    Uncalibrated,
)
from edgeroute.core.rules import NO_ONLY_CLOUD, RULE_MODES, problem
from edgeroute.errors import PolicyError, nearest
from edgeroute.observe.sensors import LEAST_S, MOST_S

if TYPE_CHECKING:
    from edgeroute.confidence.certificate import Certificate


def check_policy(policy: Policy, edges: list[Any], clouds: list[Any], uncalibrated: str) -> None:
    """Refuses a policy that contradicts itself, or these targets.

    Raises:
        PolicyError: with what is wrong.
    """
    for name, value, kind in (
        ("uncalibrated", uncalibrated, Uncalibrated),
        ("no_confidence", policy.no_confidence, NoConfidence),
        ("offline", policy.offline, Offline),
        ("order", policy.order, CloudOrder),
    ):
        if value not in (valid := get_args(kind)):
            raise PolicyError(f"there is no {name} {value!r}: {nearest(value, valid)}")
    if not policy.deadline_s > 0 or not policy.first_token_s > 0:
        raise PolicyError("deadline and first_token are more than 0 seconds")
    hedge = policy.hedge_after
    if not (re.fullmatch(HEDGE, hedge) if isinstance(hedge, str) else hedge >= 0):
        raise PolicyError(f"hedge_after is seconds, 0 or more, a quantile such as 'p90', or 'auto', not {hedge!r}")
    if (every_s := policy.sensors_every_s) is not None and not LEAST_S <= every_s <= MOST_S:
        raise PolicyError(f"sensors_every= takes seconds, from {LEAST_S:g} to {MOST_S:g}, not {every_s:g}")
    if not edges and not clouds:
        raise PolicyError("a router needs edge=, cloud= or both")
    for mode, valid in ((policy.mode, POLICY_MODES), *([(policy.saver.mode, RULE_MODES)] if policy.saver else [])):
        if mode not in valid:
            raise PolicyError(NO_ONLY_CLOUD if mode == "only_cloud" else f"there is no mode {mode!r}: {nearest(mode, valid)}")
        _check_sides(mode, f"mode {mode!r}", edges, clouds)
    for i, rule in enumerate(policy.device_rules):
        if text := problem(rule):
            raise PolicyError(f"rules: {text}")
        try:
            _check_sides(rule.then, f"a rule with then={rule.then!r}", edges, clouds)
        except PolicyError as e:
            e.key = f"rule[{i}].then"
            raise


def _check_sides(then: str, what: str, edges: list[Any], clouds: list[Any]) -> None:
    """Refuses what needs targets that there are not."""
    for side in NEEDS.get(then, ()):
        if not (edges if side == "edge" else clouds):
            raise PolicyError(f"{what} needs {side}=, and there is none")
    if then == "small_model" and len(edges) < 2:  # noqa: PLR2004 - one to leave out
        raise PolicyError(f"{what} needs several edge models, of which it leaves the smallest, and there are {len(edges)}")


def checked_thresholds(given: Any, count: int, *, needed: bool) -> list[float | Certificate | None]:
    """One threshold or certificate for each edge model; `needed`: without them there is no policy."""
    if given is None:
        if needed and count:
            raise PolicyError("threshold= is missing: the confidence from which an edge answer is accepted and nothing is sent")
        return [None] * count
    several = isinstance(given, Sequence) and not isinstance(given, str) and not hasattr(given, "guarantee")
    values = list(given) if several else [given] * count
    if len(values) != count:
        raise PolicyError(f"{len(values)} thresholds for {count} edge models: one number for all, or one each")
    for value in values:
        if hasattr(value, "guarantee"):  # a certificate
            continue
        if isinstance(value, bool) or not isinstance(value, Real) or math.isnan(value):
            raise PolicyError(f"a threshold is a number or a certificate, not {value!r}")
    return [value if hasattr(value, "guarantee") else float(value) for value in values]


def check_range(threshold: Any, score: str | Score) -> None:
    """Refuses a threshold outside the range of confidences by this score."""
    if isinstance(threshold, float) and bounded(score) and not (0 <= threshold <= 1 + SLACK or threshold == INF):
        percent = f": {threshold:g} % is {threshold / 100:g}" if 1 < threshold <= 100 else ""  # noqa: PLR2004 - a hundred per cent
        raise PolicyError(f"threshold={threshold:g}: confidences by {score} are from 0 to 1{percent}")
