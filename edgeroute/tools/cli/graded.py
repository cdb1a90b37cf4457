"""Recorded scores for `calibrate`: how confident the edge was, and how good the answers of both sides were, each 0..1."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import typer

from edgeroute.confidence.certificate import Certificate, Kind
from edgeroute.errors import BadInput, PolicyError
from edgeroute.tools.cli.examples import TRUST
from edgeroute.tools.cli.inputs import by_name, files
from edgeroute.tools.measure.calibration import certificate_of
from edgeroute.tools.measure.collect import DirectCalls

NAMES = ("edge_scores", "cloud_scores", "confidence", "groups")


class Graded(NamedTuple):
    """What the files hold, for n examples; None: it is in none of them."""

    confidence: Any
    """[n], by the score in use."""
    edge: Any
    """[n], 0..1."""
    cloud: Any | None
    """[n], 0..1."""
    groups: Any | None
    """[n], the scene, user or session of each."""


def graded(paths: Sequence[Path], every: int) -> Graded | None:
    """Reads .npz files with `edge_scores`; None: the first file has none, so all hold something else.

    Raises:
        BadInput: a file cannot be read, lacks something, or does not fit the others.
    """
    found = [(path, by_name(path, NAMES)) for path in files(paths)]
    if not any("edge_scores" in arrays for _, arrays in found):
        return None
    first, wanted = found[0][0], set(found[0][1])
    for path, arrays in found:
        missing = [name for name in ("edge_scores", "confidence") if name not in arrays]
        if missing:
            raise BadInput(f"{path} has no array {missing[0]}: graded answers are confidence, edge_scores and cloud_scores")
        shapes = {name: np.shape(array) for name, array in arrays.items()}
        if len(set(shapes.values())) > 1 or len(shapes["confidence"]) != 1:
            there = ", ".join(f"{name} {list(shape)}" for name, shape in shapes.items())
            raise BadInput(f"{path}: expected one number for each example in each array, found {there}")
        if set(arrays) != wanted:
            raise BadInput(f"{path} and {first} do not hold the same arrays: {', '.join(sorted(set(arrays) ^ wanted))}")
    whole = {name: np.concatenate([arrays[name] for _, arrays in found])[::every] for name in found[0][1]}
    return Graded(whole["confidence"], whole["edge_scores"], whole.get("cloud_scores"), whole.get("groups"))


def only_graded(**options: object) -> None:
    """Raises for an option that says nothing of graded answers."""
    for name, value in options.items():
        if value:
            hint = f"--{name.rstrip('_').replace('_', '-')}"
            raise typer.BadParameter("the answers are graded: there are no classes, inputs or outputs", param_hint=hint)


class CertifiedGraded(NamedTuple):
    """A certificate of graded answers, with the attributes that a `CalibrationResult` has."""

    certificate: Certificate
    notes: list[str]
    score: str
    why: str = ""
    fitted: None = None


def certified_graded(
    scored: Graded, kind: Kind, value: float, sure: float | None, metric: str, aside: DirectCalls
) -> CertifiedGraded:
    """The certificate of graded answers; see `edgeroute.confidence.calibrate`.

    Raises:
        NotEnough: there are too few.
        PolicyError: the cloud's are needed, or `calibrate` rejects them.
    """
    if kind == "max_loss" and scored.cloud is None:
        raise PolicyError("max_loss is measured against the cloud: record cloud_scores too")
    score, told = aside.score if isinstance(aside.score, str) else getattr(aside.score, "name", "function"), [TRUST]
    certificate = certificate_of(
        scored.confidence, scored.edge, scored.cloud,
        max_loss=value if kind == "max_loss" else None, max_error=value if kind == "max_error" else None,
        max_defer=value if kind == "max_defer" else None, sure=sure, per_class=None, groups=scored.groups, metric=metric,
        agree=None, name=score, parameters={}, fingerprints=aside.fingerprints(), notes=told,
    )  # fmt: skip
    return CertifiedGraded(certificate, told, score)
