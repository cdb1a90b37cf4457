"""Rules that choose a threshold from examples, for `promises.py`: those of this project, usual ones, and those of other packages.

Rules of other packages are written down here as their sources read, so that hundreds of draws take seconds; `promise_peers.py` runs
the packages themselves, and shows that both agree. Their guarantees are about errors among accepted answers, so an "error" is a harm
here: the cloud alone is right. Then their limit of the share among accepted answers is one of the share among all.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from math import ceil, e, inf, log, sqrt
from typing import Any, NamedTuple

import looks
import numpy as np

from edgeroute.confidence.binomial_tests import critical_count
from edgeroute.core.sequential_tests import GRID
from edgeroute.tools.measure.audit_counts_and_evidence import NONE
from edgeroute.tools.measure.critical_counts import most_of_each
from edgeroute.tools.measure.fixed_sequence import accept_betting, lowest_threshold, passed

Array = np.ndarray[Any, np.dtype[Any]]
DELTA = 0.05
LOOKS = 25
FIRST_LOOK = 300
HOLM = 100
"""Number of thresholds that MAPIE tests."""


@dataclass
class Draw:
    """Examples in the order in which they were drawn, and their counts in the order of a walk from the highest score down."""

    score: Array
    """[n], higher where the edge is surer; NaN: never accepted."""
    edge: Array
    """[n], 1 where the edge is right, else 0."""
    cloud: Array
    agree: Array | None
    """[n], 1 where both give the same answer; None: not known."""
    eps: float
    """Limit of the mean loss."""
    share: Array
    """[n], the share of the recorded requests with a higher score."""

    def __post_init__(self) -> None:
        """Sorts and counts."""
        self.n = len(self.score)
        self.order = np.argsort(-self.score, kind="stable")[: np.count_nonzero(~np.isnan(self.score))]
        sorted_ = self.score[self.order]
        self.ends = np.flatnonzero(np.append(sorted_[1:] != sorted_[:-1], True)[: len(sorted_)])
        self.levels = sorted_[self.ends]
        self.m = self.ends + 1
        self.loss = self.cloud - self.edge
        self.harms, self.wins = (np.cumsum(self.loss[self.order] == sign)[self.ends] for sign in (1, -1))

    def at(self, count: int) -> Chosen:
        """Return the threshold that accepts the first levels, by all labels."""
        return Chosen(float(self.levels[count - 1]) if count else inf, self.n)

    def last(self, ok: Array) -> Chosen:
        """Return the lowest threshold with True, also where one above has False."""
        good = np.flatnonzero(ok)
        return self.at(int(good[-1]) + 1 if good.size else 0)


class Chosen(NamedTuple):
    """A threshold; inf: none."""

    threshold: float
    labels: float
    """Number of examples whose right answer had to be known."""
    before: tuple[float, ...] = ()
    """Thresholds of earlier looks, which were in force until the next."""


def one_look(draw: Draw) -> Chosen:
    """Tests as `calibrate(max_loss=...)` does."""
    found = lowest_threshold("max_loss", draw.eps, DELTA, draw.score, draw.edge, draw.cloud)
    return Chosen(found.threshold, draw.n)


def on_demand(draw: Draw) -> Chosen:
    """Choose a threshold as `calibrate(label=...)` does: asks for a label only where the answers differ, until the test stops.

    The result has the number of labels.
    """
    asked = 0

    def losses(rows: Array) -> Array:
        """Counts the labels."""
        nonlocal asked
        asked += len(rows)
        return draw.loss[rows]

    assert draw.agree is not None
    found = lowest_threshold("max_loss", draw.eps, DELTA, draw.score, draw.agree * 1.0, None, read=losses)
    return Chosen(found.threshold, asked)


def without_labels(draw: Draw) -> Chosen:
    """Tests the share of accepted answers that differ from the cloud's."""
    assert draw.agree is not None
    return Chosen(lowest_threshold("max_loss", draw.eps, DELTA, draw.score, draw.agree * 1.0, None).threshold, 0)


def each_look(draw: Draw) -> Chosen:
    """Choose a threshold as `calibrate --audited` does, at 25 looks while the examples come in; the result has the earlier ones, too."""
    at = sorted({int(n) for n in np.geomspace(min(FIRST_LOOK, draw.n), draw.n, LOOKS)})
    score = np.where(np.isnan(draw.score), -inf, draw.score)
    found = looks.looks(score[None], draw.loss[None], at, draw.eps)
    thresholds = [float(GRID[max(0, i)]) if (i := int(found[n][0])) < NONE else inf for n in at]
    return Chosen(thresholds[-1], draw.n, tuple(thresholds[:-1]))


def plug_in(draw: Draw) -> Chosen:
    """Takes the lowest threshold whose loss on the examples is within the limit."""
    return draw.last(draw.harms - draw.wins <= draw.eps * draw.n + 1e-9)


def _divergence(mean: Array, limit: float) -> Array:
    mean = np.clip(mean, 1e-12, 1 - 1e-12)
    return mean * np.log(mean / limit) + (1 - mean) * np.log((1 - mean) / (1 - limit))


def hoeffding_loss(draw: Draw) -> Chosen:
    """Walks with Hoeffding's bound (1963, theorem 1) of (1 + harm - win) / 2."""
    mean, limit = (1 + (draw.harms - draw.wins) / draw.n) / 2, (1 + draw.eps) / 2
    return draw.at(passed((mean < limit) & (draw.n * _divergence(mean, limit) >= log(1 / DELTA))))


def hoeffding(draw: Draw) -> Chosen:
    """Walks with Hoeffding's bound of the share of harms alone."""
    mean = draw.harms / draw.n
    return draw.at(passed((mean < draw.eps) & (draw.n * _divergence(mean, draw.eps) >= log(1 / DELTA))))


def hoeffding_bentkus(draw: Draw) -> Chosen:
    """Walks with the better of Hoeffding's and Bentkus's bound of the share of harms alone (Learn then Test, 2021)."""
    mean = draw.harms / draw.n
    bound = (mean < draw.eps) & (draw.n * _divergence(mean, draw.eps) >= log(1 / DELTA))
    return draw.at(passed(bound | (draw.harms <= critical_count(draw.n, draw.eps, DELTA / e))))


def exact_harms(draw: Draw) -> Chosen:
    """Walks with the exact binomial bound of the share of harms alone (Clopper-Pearson)."""
    return draw.at(passed(draw.harms <= critical_count(draw.n, draw.eps, DELTA)))


def betting(draw: Draw) -> Chosen:
    """Walks with the betting test of Waudby-Smith and Ramdas (2024) of (1 + harm - win) / 2."""
    return draw.at(accept_betting(draw.loss[draw.order], draw.order, draw.ends, draw.n, draw.eps, DELTA))


def risk_control(draw: Draw) -> Chosen:
    """Takes the lowest threshold by conformal risk control (2022) of harms alone, whose promise is one of the mean over calibrations."""
    return draw.last((draw.harms + 1) / (draw.n + 1) <= draw.eps)


def shrewd(draw: Draw) -> Chosen:
    """shrewd 0.3: Clopper-Pearson of the answers that differ from the cloud's, of all requests."""
    assert draw.agree is not None
    differ = np.cumsum(1 - draw.agree[draw.order])[draw.ends]
    return draw.at(passed(differ <= critical_count(draw.n, draw.eps, DELTA)))._replace(labels=0)


def calibroute(draw: Draw) -> Chosen:
    """calibroute-ai 0.4: Clopper-Pearson among the accepted at each threshold, and the lowest that passes."""
    return draw.last((draw.harms <= _limits(draw.n, draw.eps)[draw.m]) & (draw.m >= max(1, int(0.1 * draw.n + 0.999999))))


def firstpass(draw: Draw) -> Chosen:
    """firstpass 0.9, its default: Hoeffding's bound among the accepted at each threshold, and the lowest that passes."""
    return draw.last(draw.harms / draw.m + sqrt(log(1 / DELTA) / 2) / np.sqrt(draw.m) <= draw.eps)


def firstpass_ltt(draw: Draw) -> Chosen:
    """firstpass 0.9 with `--method ltt`: a walk with the exact binomial test among the accepted, from the first `least` on."""
    skipped = int(np.count_nonzero(draw.m < least(draw.eps)))
    count = passed((draw.harms <= _limits(draw.n, draw.eps)[draw.m])[skipped:])
    return draw.at(skipped + count if count else 0)


def least(eps: float) -> int:
    """Return the number of examples without a harm that certify a limit; with fewer `firstpass --method ltt` ends at its first test."""
    return ceil(log(DELTA) / log(1 - eps))


@cache
def _limits(n: int, eps: float) -> Array:
    return most_of_each(n, eps, DELTA)


def mapie(draw: Draw) -> Chosen:
    """Choose a threshold as MAPIE 1.6 does by default for a risk of one's own; inf if none of its hundred passes.

    Hoeffding-Bentkus of harms at thresholds 0, .01 ... .99, corrected as Holm does. So scores are given as ranks: 1 less the
    share of requests with a higher score.
    """
    rank = 1 - draw.share
    thresholds = np.linspace(0, 0.99, HOLM)
    ranks = np.sort(np.where((draw.loss == 1) & ~np.isnan(draw.score), rank, -1))
    mean = (draw.n - np.searchsorted(ranks, thresholds)) / draw.n
    p = np.where(mean < draw.eps, np.exp(-draw.n * _divergence(mean, draw.eps)), 1.0)
    p = np.minimum(p, e * _below(draw.n, draw.eps)[np.ceil(draw.n * mean - 1e-9).astype(int)])
    order = np.argsort(p, kind="stable")
    count = passed(p[order] <= DELTA / (HOLM - np.arange(HOLM)))
    if not count:
        return Chosen(inf, draw.n)
    lowest = thresholds[order[:count].min()]
    accepted = draw.score[(rank >= lowest) & ~np.isnan(draw.score)]
    return Chosen(float(accepted.min()) if accepted.size else inf, draw.n)


@cache
def _below(n: int, rate: float) -> Array:
    """P(Bin(n, rate) <= k), [n + 1]."""
    k = np.arange(1, n + 1)
    ratios = np.log((n - k + 1) / k * rate / (1 - rate))
    return np.minimum(np.cumsum(np.exp(n * log(1 - rate) + np.append(0, ratios.cumsum()))), 1)


class Rule(NamedTuple):
    """A row of the table."""

    name: str
    choose: Callable[[Draw], Chosen]
    promises: str
    """Probability with which the limit is to hold."""
    agree: bool = False
    """True if it has to be known where edge and cloud give the same answer."""
    every: int = 1
    """Every so many draws; slow rules get fewer."""


RULES = (
    Rule("**ours**, one look", one_look, "95 %"),
    Rule("**ours**, labels on demand", on_demand, "95 %", agree=True),
    Rule("**ours**, no labels", without_labels, "95 %", agree=True),
    Rule("**ours**, 25 looks", each_look, "95 %, of all looks"),
    Rule("plug-in", plug_in, "no"),
    Rule("Hoeffding, harms less wins", hoeffding_loss, "95 %"),
    Rule("Hoeffding, harms alone", hoeffding, "95 %"),
    Rule("Hoeffding-Bentkus, harms alone", hoeffding_bentkus, "95 %"),
    Rule("Clopper-Pearson, harms alone", exact_harms, "95 %"),
    Rule("WSR betting, harms less wins", betting, "95 %", every=3),
    Rule("conformal risk control, harms alone", risk_control, "on average"),
    Rule("shrewd 0.3", shrewd, "95 %", agree=True),
    Rule("calibroute-ai 0.4", calibroute, "of a threshold chosen beforehand"),
    Rule("MAPIE 1.6", mapie, "95 %"),
    Rule("firstpass 0.9", firstpass, "95 %"),
    Rule("firstpass 0.9, `--method ltt --min-n 299` (149)", firstpass_ltt, "95 %"),
)


def timed(rule: Rule, draw: Draw) -> tuple[Chosen, float]:
    """Choose a threshold, and return the seconds that it took."""
    begun = time.perf_counter()
    chosen = rule.choose(draw)
    return chosen, time.perf_counter() - begun
