"""Reads the audit log as unlabelled calibration examples: edge confidence, and agreement with the cloud."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from edgeroute.confidence.binding import digest
from edgeroute.confidence.exact import Floats
from edgeroute.errors import BadInput
from edgeroute.evaluation.examples import Examples
from edgeroute.stores.journal import read


class Audited(NamedTuple):
    """Examples from the audit log."""

    examples: Examples
    """`cloud` is True for each; `edge` is whether the edge agreed."""
    notes: list[str]
    """Messages about skipped lines."""


def audited(path: Path, target: str, fingerprints: Mapping[str, str], *, every: int = 1, since: float | None = None) -> Audited:
    """The audits of one edge model made with the model, cloud and score currently in use.

    Requests are drawn when they arrive, whether edge or cloud will answer, and lines that were drawn with a higher probability
    than others are thinned to the lowest. So what is left represents all traffic, except for what is withheld systematically (by
    a limit, a metered link or a data class).

    Args:
        path: of the log.
        target: the edge model's name in answers.
        fingerprints: currently in use, from `Router.fingerprints`.
        every: use only each `every`-th audit.
        since: use only audits from then on, seconds since 1970.

    Raises:
        BadInput: there is no log, or it has no audits of this model.
        StoreError: the log cannot be read.
    """
    if not any(path.parent.glob(f"{path.name}*")):
        raise BadInput(f"{path}: there is no audit log: no router with this state folder has audited anything, or it was removed")
    wanted, left_out = digest(fingerprints), Counter[str]()
    scores, agree, drawn = list[float](), list[bool](), list[float]()
    log = read(path, since=since)
    for record in log:
        sure, agrees, probability = record.get("edge_confidence"), record.get("agrees"), record.get("probability")
        if not isinstance(agrees, bool) or not isinstance(sure, int | float | None):
            left_out["are not whole"] += 1
        elif record.get("target") != target:
            left_out["are of another edge model"] += 1
        elif record.get("fingerprints") != wanted:
            left_out["are of other files, another endpoint or another score than those in use now"] += 1
        elif not isinstance(probability, int | float) or not 0 < probability <= 1:
            left_out["do not say with which probability they were drawn, so that deferred inputs may be too many among them"] += 1
        else:
            drawn.append(float(probability))
            scores.append(np.nan if sure is None else float(sure))
            agree.append(agrees)
    if log.skipped:
        left_out["are not whole"] += log.skipped
    notes = [f"{count:,} lines of the audit log are left out: they {why}" for why, count in left_out.items()]
    if not scores:
        raise BadInput("; ".join([f"{path}: there is no audit of {target} in it", *notes]))
    kept = _uniform(np.array(drawn))
    if len(kept) < len(drawn):
        why = f"they were drawn more often than others (by {max(drawn):g}, not {min(drawn):g})"
        notes.append(f"{len(drawn) - len(kept):,} lines of the audit log are left out at random: {why}")
    scores, agree = [scores[i] for i in kept], [agree[i] for i in kept]
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


def _uniform(drawn: Floats) -> list[int]:
    """Indices of the lines to keep so that each request was as likely to be drawn and kept; always the same of one log.

    Args:
        drawn: [n], the probability with which each was drawn.
    """
    kept: list[int] = np.flatnonzero(np.random.default_rng(0).random(len(drawn)) < drawn.min() / drawn).tolist()
    return kept
