"""Graded answers for `calibrate`: reader of .npz files with the edge's confidence and grades, 0..1, and their certificate."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from edgeroute.confidence.certificate import Certificate, Kind
from edgeroute.errors import BadInput, PolicyError
from edgeroute.tools.cli.example_options_and_routers import TRUST
from edgeroute.tools.cli.inputs_labels_and_outputs import by_name, expand_folders
from edgeroute.tools.measure.collect_edge_and_cloud import DirectCalls
from edgeroute.tools.measure.threshold_calibration_and_crossfit import calibrate

NAMES = ("edge_scores", "cloud_scores", "confidence", "groups")


class Graded(NamedTuple):
    """Graded answers of n examples; None: absent."""

    confidence: Any  # [n], confidence of the edge by the score in use
    edge: Any  # [n], grades of the edge, 0..1
    cloud: Any | None  # [n], grades of the cloud, 0..1
    groups: Any | None  # [n], scene, user or session of each


def read_graded(paths: Sequence[Path], every: int) -> Graded | None:
    """Read .npz files with confidence, `edge_scores` and perhaps `cloud_scores` and groups; take every `every`-th example.

    Returns None if no file has `edge_scores`. Folders are expanded.

    Raises:
        BadInput: a file cannot be read, lacks an array, or does not fit the others.
    """
    contents = [(path, by_name(path, NAMES)) for path in expand_folders(paths)]
    if not any("edge_scores" in arrays for _, arrays in contents):
        return None
    first, array_names = contents[0][0], set(contents[0][1])
    for path, arrays in contents:
        missing = [name for name in ("edge_scores", "confidence") if name not in arrays]
        if missing:
            raise BadInput(f"{path} has no array {missing[0]}: graded answers are confidence, edge_scores and cloud_scores")
        shapes = {name: np.shape(array) for name, array in arrays.items()}
        if len(set(shapes.values())) > 1 or len(shapes["confidence"]) != 1:
            listed = ", ".join(f"{name} {list(shape)}" for name, shape in shapes.items())
            raise BadInput(f"{path}: expected one number for each example in each array, found {listed}")
        if set(arrays) != array_names:
            raise BadInput(f"{path} and {first} do not hold the same arrays: {', '.join(sorted(set(arrays) ^ array_names))}")
    joined = {name: np.concatenate([arrays[name] for _, arrays in contents])[::every] for name in contents[0][1]}
    return Graded(joined["confidence"], joined["edge_scores"], joined.get("cloud_scores"), joined.get("groups"))


class CertificateAlone(NamedTuple):
    """Certificate without its examples, with the attributes of a `CalibrationResult`."""

    certificate: Certificate
    notes: list[str]
    score: str
    why: str = ""
    fitted: None = None


def certify_graded(
    scored: Graded, kind: Kind, value: float, sure: float | None, metric: str, calls: DirectCalls
) -> CertificateAlone:
    """Find the lowest threshold with the guarantee on graded answers; return its certificate, with a note that these are trusted.

    Raises:
        NotEnough: there are too few.
        PolicyError: `max_loss` without the cloud's grades, or `calibrate` rejects the examples.
    """
    if kind == "max_loss" and scored.cloud is None:
        raise PolicyError("max_loss is measured against the cloud: record cloud_scores too")
    score, notes = calls.score_name, [TRUST]
    limit: dict[str, Any] = {kind: value}
    certificate = calibrate(
        scored.confidence, scored.edge, scored.cloud, **limit, sure=sure, groups=scored.groups, metric=metric, name=score,
        fingerprints=calls.fingerprints(), notes=notes,
    )  # fmt: skip
    return CertificateAlone(certificate, notes, score)
