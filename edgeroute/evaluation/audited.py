"""Reads the audit log as unlabelled calibration examples: edge confidence, and agreement with the cloud."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from edgeroute.confidence.binding import digest
from edgeroute.errors import BadInput
from edgeroute.evaluation.examples import Examples
from edgeroute.stores.journal import read


class Audited(NamedTuple):
    """Examples from the audit log."""

    examples: Examples
    """`cloud` is True for each; `edge` is whether the edge agreed."""
    notes: list[str]
    """Messages about skipped lines."""


def audited(path: Path, target: str, fingerprints: Mapping[str, str], *, every: int = 1) -> Audited:
    """The audits of one edge model made with the model, cloud and score currently in use.

    Requests are sampled uniformly, whether edge or cloud answered, so the audits represent all traffic; except for what is
    withheld systematically (by a limit, a metered link or a data class).

    Args:
        path: of the log.
        target: the edge model's name in answers.
        fingerprints: currently in use, from `Router.fingerprints`.
        every: use only each `every`-th audit.

    Raises:
        BadInput: there is no log, or it has no audits of this model.
        StoreError: the log cannot be read.
    """
    if not any(path.parent.glob(f"{path.name}*")):
        raise BadInput(f"{path}: there is no audit log: no router with this state folder has audited anything, or it was removed")
    wanted, left_out = digest(fingerprints), Counter[str]()
    scores, agree = list[float](), list[bool]()
    log = read(path)
    for record in log:
        sure, agrees = record.get("edge_confidence"), record.get("agrees")
        if not isinstance(agrees, bool) or not isinstance(sure, int | float | None):
            left_out["are not whole"] += 1
        elif record.get("target") != target:
            left_out["are of another edge model"] += 1
        elif record.get("fingerprints") != wanted:
            left_out["are of other files, another endpoint or another score than those in use now"] += 1
        else:
            scores.append(np.nan if sure is None else float(sure))
            agree.append(agrees)
    if log.skipped:
        left_out["are not whole"] += log.skipped
    notes = [f"{count:,} lines of the audit log are left out: they {why}" for why, count in left_out.items()]
    if not scores:
        raise BadInput("; ".join([f"{path}: there is no audit of {target} in it", *notes]))
    agree = agree[::every]
    return Audited(
        Examples(
            score=np.array(scores[::every], float),
            edge=list(agree),
            cloud=[True] * len(agree),
            labels=None,
            outputs=None,
            edge_s=np.full(len(agree), np.nan),
            cloud_s=None,
            sent_bytes=0,
            received_bytes=0,
            usd=0.0,
        ),
        notes,
    )
