"""Thresholds with a guarantee: the tests behind them against enumeration, the walk, the certificate as a file."""

from __future__ import annotations

import itertools
import json
import math
import warnings
from pathlib import Path

import numpy as np
import pytest
from draws import draws
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from lazily import Later

from edgeroute import PolicyError
from edgeroute.confidence import Certificate, NotEnough, certificate
from edgeroute.confidence.binomial_tests import critical_count, log_factorials
from edgeroute.confidence.certificate import BoundCertificate, effective_target
from edgeroute.core.policy_egress_and_options import Target
from edgeroute.tools.measure import critical_counts as exact
from edgeroute.tools.measure import fixed_sequence
from edgeroute.tools.measure.threshold_calibration_and_crossfit import calibrate, crossfit

optimize, stats = Later("scipy.optimize"), Later("scipy.stats")
INF = float("inf")
rates = st.floats(0.005, 0.3)
risks = st.sampled_from([0.001, 0.01, 0.05, 0.1, 0.2])


def quietly(*args, **kwargs):
    """`calibrate` on examples that may be tied."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return calibrate(*args, **kwargs)


def examples(n, seed=0, harm=0.1, win=0.02):
    """Harms and wins grow with the rank; a tenth is wrong on both sides."""
    rng = np.random.default_rng(seed)
    score, u = rng.random(n), rng.random(n)
    bad, good = u < harm * (1 - score), u > 1 - win
    both = ~bad & ~good & (rng.random(n) < 0.1)
    return score, ~(bad | both), ~(good | both)


@st.composite
def some(draw, least=20, most=120, nan=True):
    """Scores of few levels, so that ties abound, and what was right."""
    n = draw(st.integers(least, most))
    seed = draw(st.integers(0, 2**32 - 1))
    rng = np.random.default_rng(seed)
    score = rng.integers(0, draw(st.integers(2, 100)), n) / 7
    if nan:
        score[rng.random(n) < draw(st.sampled_from([0, 0.1, 0.4]))] = np.nan
    assume(len(np.unique(score[~np.isnan(score)])) > 1)
    wrong = draw(st.sampled_from([0, 0.02, 0.2, 0.5]))
    return score, rng.random(n) > wrong, rng.random(n) > wrong / 2


# --- exact tests


@settings(max_examples=draws(100), deadline=None)
@given(st.integers(1, 3000), rates, risks)
def test_binomial_limits(n, rate, delta):
    """The largest count whose lower tail is at most delta, as scipy has it, and as Clopper and Pearson bound it."""
    k = critical_count(n, rate, delta)
    assert stats.binom.cdf(k, n, rate) <= delta + 1e-9
    assert stats.binom.cdf(k + 1, n, rate) > delta - 1e-9
    if 0 <= k < n - 1:
        assert stats.beta.ppf(1 - delta, k + 1, n - k) <= rate + 1e-9  # the upper bound for k of n
        assert stats.beta.ppf(1 - delta, k + 2, n - k - 1) >= rate - 1e-9


@settings(max_examples=draws(50), deadline=None)
@given(st.integers(1, 2000), rates, risks)
def test_binomial_limits_of_each(n, rate, delta):
    """The recursion agrees with scipy at every number of examples."""
    limits, m = exact.most_of_each(n, rate, delta), np.arange(n + 1)
    assert (stats.binom.cdf(limits, m, rate) <= delta + 1e-9).all()
    assert (stats.binom.cdf(limits + 1, m, rate) > delta - 1e-9).all()


def trinomial(n, eps, qs):
    """Every (h, w) and [qs, cells] its probability where P(harm) - P(win) = eps and their sum is q."""
    h, w = np.array([(h, w) for h in range(n + 1) for w in range(n + 1 - h)]).T
    cells = np.stack([h, w, n - h - w], 1)
    return h, w, np.array([stats.multinomial.pmf(cells, n, [(q + eps) / 2, (q - eps) / 2, 1 - q]) for q in qs])


def log_likelihood(h, w, rest, a, b):
    return sum(x * math.log(max(p, 1e-300)) for x, p in ((h, a), (w, b), (rest, 1 - a - b)) if x)


def ratio(n, eps, h, w):
    """The log-likelihood ratio, the restricted maximum found by search."""
    best = optimize.minimize_scalar(
        lambda a: -log_likelihood(h, w, n - h - w, a, a - eps),
        bounds=(eps, (1 + eps) / 2),
        method="bounded",
        options={"xatol": 1e-12},
    )
    return log_likelihood(h, w, n - h - w, h / n, w / n) + best.fun


@pytest.mark.parametrize(("n", "eps"), [(12, 0.2), (20, 0.1), (30, 0.15)])
def test_the_likelihood_ratio_against_enumeration(n, eps):
    """What passes has a p-value of at most delta: gamma, and the largest chance of what is as extreme, over all q to their bound."""
    qs = np.linspace(eps, 1 - 1e-9, 300)
    h, w, chances = trinomial(n, eps, qs)
    ratios = np.array([ratio(n, eps, *cell) if cell[0] - cell[1] < n * eps else -1 for cell in zip(h, w, strict=True)])
    extreme = {r: chances[:, ratios >= r - 1e-5].sum(1) for r in ratios if r >= 0}
    seen = set()
    for delta in (0.02, 0.05, 0.1, 0.2, 0.3):
        gamma, limits = delta * exact.GAMMA, exact.lr_limits(n, eps, delta, n)
        for x, y, r in zip(h, w, ratios, strict=True):
            passes = bool(x <= limits[y])
            if x - y >= n * eps:
                assert not passes
                continue
            bound = 1 if x + y == n else stats.beta.ppf(1 - gamma, x + y + 1, n - x - y)
            p, higher = (gamma + extreme[r][qs <= b].max() for b in (bound, bound + 0.1))  # it may move its bound up a step
            assert p <= delta + 0.003 if passes else higher > delta - 0.003  # the largest may lie between two values of its grid
            seen.add((passes, delta))
    assert len(seen) == 10


@pytest.mark.parametrize("delta", [0.02, 0.03, 0.05, 0.07, 0.1, 0.15, 0.2, 0.25, 0.3, 0.35])
def test_the_likelihood_ratio_on_its_own_grid(delta):
    """Where enumeration takes the same values of q, there is no difference at all."""
    n, eps = 30, 0.15
    gamma, limits = delta * exact.GAMMA, exact.lr_limits(n, eps, delta, n)
    grid = list(exact.nuisance_grid(n, eps, gamma, n))
    h, w, chances = trinomial(n, eps, [q for q, _ in grid])
    less = h - w < n * eps
    ratios = np.array([ratio(n, eps, *cell) if below else -1 for *cell, below in zip(h, w, less, strict=True)])
    for x, y, r in zip(h[less], w[less], ratios[less], strict=True):
        values = next(i for i, (_, reach) in enumerate(grid) if reach >= x + y) + 1
        p = gamma + chances[:values, ratios >= r - 1e-5].sum(1).max()
        assert (p <= delta) == (x <= limits[y])


@pytest.mark.parametrize("wins", [20, 80])
def test_the_likelihood_ratio_is_monotone(wins):
    """One win more is never worse, and a larger table says the same."""
    limits = exact.lr_limits(1000, 0.01, 0.05, wins)
    assert (np.diff(limits) >= 0).all()
    assert (exact.lr_limits(1000, 0.01, 0.05, 150)[: wins + 1] == limits).all()


@pytest.mark.parametrize("delta", [0.02, 0.05, 0.2])
@pytest.mark.parametrize(("n", "eps"), [(60, 0.1), (90, 0.05)])
def test_the_risk_of_each_test(n, eps, delta):
    """Wherever the guarantee is just broken, no more than delta of all that can be seen is let pass: summed, not drawn."""
    h, w, chances = trinomial(n, eps, np.linspace(eps, 0.95, 40))
    lr, d = exact.lr_limits(n, eps, delta, n), exact.d_limits(n, eps, delta, n)
    for passes in (h <= lr[w], h - w <= d[h + w], h <= critical_count(n, eps, delta)):
        assert chances[:, passes].sum(1).max() <= delta
    assert chances[:, h <= lr[w]].sum(1).max() > 0.4 * delta  # and it is not wasted


def test_the_difference_against_enumeration():
    """The limit of harms - wins by Fourier transform is that of the summed trinomial."""
    n, eps, delta = 80, 0.1, 0.05
    limits = exact.d_limits(n, eps, delta, 40)
    grid = list(exact.nuisance_grid(n, eps, delta * exact.GAMMA, 40))
    h, w, chances = trinomial(n, eps, [q for q, _ in grid])
    for events in range(41):
        up_to = next(i for i, (_, reach) in enumerate(grid) if reach >= events) + 1
        expected = max(d for d in range(-n, n) if (chances[:up_to, h - w <= d].sum(1) <= delta * (1 - exact.GAMMA)).all())
        assert limits[events] == expected


# --- the walk


def by_the_book(score, edge, cloud, passes):
    """Threshold by threshold, in plain Python: how many are accepted."""
    accepted = 0
    for t in sorted({s for s in score if not math.isnan(s)}, reverse=True):
        kept = [i for i, s in enumerate(score) if s >= t]
        harms = sum(1 for i in kept if cloud[i] and not edge[i])
        wins = sum(1 for i in kept if edge[i] and not cloud[i])
        wrong = sum(1 for i in kept if not edge[i])
        if passes(len(kept), harms, wins, wrong) is False:
            break
        if passes(len(kept), harms, wins, wrong):
            accepted = len(kept)
    return accepted


@settings(max_examples=draws(150), deadline=None)
@given(some(), st.sampled_from([0.05, 0.2, 0.3]), st.sampled_from([0.8, 0.95]))
def test_relative_by_the_book(given_, eps, sure):
    """The blocks before the first that is not rejected, counted by hand."""
    score, edge, cloud = given_
    n, delta = len(score), round(1 - sure, 12)
    assume(n >= exact.least_n(eps, delta))
    certificate = quietly(score, edge, cloud, max_loss=eps, sure=sure)
    if certificate.method == "CP-harm":
        limit = critical_count(n, eps, delta)
        expected = by_the_book(score, edge, cloud, lambda _m, h, _w, _k: h <= limit)
    else:
        limits = exact.lr_limits(n, eps, delta, n)
        expected = by_the_book(score, edge, cloud, lambda _m, h, w, _k: bool(h <= limits[w]))
    assert (score >= certificate.threshold).sum() == expected
    assert certificate.deferral_rate == pytest.approx(1 - expected / n)


@settings(max_examples=draws(150), deadline=None)
@given(some(), st.sampled_from([0.1, 0.2, 0.3]), st.sampled_from([0.8, 0.95]))
def test_selective_by_the_book(given_, alpha, sure):
    """From where enough are accepted, until the wrong ones among them are too many."""
    score, edge, _ = given_
    n, delta = len(score), round(1 - sure, 12)
    assume(n >= exact.least_n(alpha, delta))
    begins, left = {}, 0.0
    starts = fixed_sequence.STARTS if n * alpha < 10 * math.log(1 / delta) else fixed_sequence.EVEN_STARTS
    for rate, later in itertools.pairwise([*starts, 1.0]):
        left += starts[rate]
        begin = max(exact.least_n(alpha, delta * left), math.ceil(rate * n))
        if begin < later * n or later == 1:  # else its part of the risk waits for the next
            begins[begin], left = begins.get(begin, 0.0) + left, 0.0
    risk, kept, top = 0.0, 0, 0
    rows = [int((score >= level).sum()) for level in sorted(set(score[~np.isnan(score)]), reverse=True)]
    order = np.argsort(-np.where(np.isnan(score), -INF, score), kind="stable")
    run = 0
    for before, m in itertools.pairwise([0, *rows]):
        new = sum(p for begin, p in begins.items() if before < begin <= m)
        if new and not risk:
            run = m
        risk += new
        if risk and stats.binom.cdf(int((~edge[order[:m]]).sum()), m, alpha) <= delta * risk:
            kept, top = m, run
        else:
            risk = 0.0
    certificate = quietly(score, edge, max_error=alpha, sure=sure)
    assert (score >= certificate.threshold).sum() == kept
    assert certificate.method == "CP-error"
    highest = INF if certificate.highest is None else certificate.highest
    assert (score >= highest).sum() == top
    assert highest >= certificate.threshold


@settings(max_examples=draws(150), deadline=None)
@given(some(), st.floats(0.05, 0.95), st.sampled_from([0.8, 0.95, None]))
def test_budget_by_the_book(given_, share, sure):
    """The highest rank whose share is within the budget by the Beta distribution, or by its mean."""
    score, n = given_[0], len(given_[0])
    delta = None if sure is None else round(1 - sure, 12)
    ranks = [
        k
        for k in range(1, n + 1)
        if (k / (n + 1) <= share if delta is None else stats.beta.cdf(share, k, n - k + 1) >= 1 - delta)
    ]
    if not ranks:
        with pytest.raises(NotEnough):
            calibrate(score, max_defer=share, sure=sure)
        return
    k = ranks[-1]
    ranked = np.sort(np.where(np.isnan(score), -INF, score))
    if ranked[k - 1] == -INF:
        with pytest.raises(PolicyError, match="no threshold defers at most"):
            quietly(score, max_defer=share, sure=sure)
        return
    certificate = quietly(score, max_defer=share, sure=sure)
    assert (score >= certificate.threshold).sum() == (ranked >= ranked[k - 1]).sum()
    assert certificate.deferral_rate <= share


TARGETS = [{"max_loss": 0.1}, {"max_loss": 0.3}, {"max_error": 0.2}, {"max_defer": 0.6}]


@settings(max_examples=draws(150), deadline=None)
@given(some(least=40), st.sampled_from(TARGETS))
def test_ties_are_one_block_and_nan_is_deferred(given_, target):
    """Equal scores share their fate, NaN is never accepted, and the threshold lies clear of both neighbours."""
    score, edge, cloud = given_
    assume("max_defer" not in target or np.isnan(score).mean() < 0.45)  # else there is no threshold
    certificate = quietly(score, edge, cloud, **target)
    accepted = score >= certificate.threshold
    assert not (set(score[accepted]) & set(score[~accepted]))
    assert not accepted[np.isnan(score)].any()
    assert certificate.unscored == pytest.approx(np.isnan(score).mean())
    assert certificate.deferral_rate >= certificate.unscored
    if 0 < accepted.sum() < (~np.isnan(score)).sum():
        assert score[accepted].min() - certificate.threshold > 0.05  # levels are 1/7 apart
        assert certificate.threshold - score[~accepted & ~np.isnan(score)].max() > 0.05


@settings(max_examples=draws(60), deadline=None)
@given(some(least=40), st.sampled_from(TARGETS[:3]), st.integers(0, 1000))
def test_neither_order_nor_scale_matter(given_, target, seed):
    """Examples in another order give the same certificate; a score on another scale accepts the same ones."""
    score, edge, cloud = given_
    certificate = quietly(score, edge, cloud, **target)
    order = np.random.default_rng(seed).permutation(len(score))
    assert quietly(score[order], edge[order], cloud[order], **target)._replace(date=certificate.date) == certificate
    other = quietly(np.exp(score / 3), edge, cloud, **target)
    assert ((np.exp(score / 3) >= other.threshold) == (score >= certificate.threshold)).all()


@settings(max_examples=draws(60), deadline=None)
@given(st.integers(0, 1000), st.sampled_from([200, 700]))
def test_more_is_promised_for_more_deferrals(seed, n):
    """A larger loss or a smaller certainty accepts no less; without the cloud's mistakes, no more."""
    score, edge, cloud = examples(n, seed)
    agree = edge == cloud

    def accepts(*args, **target):
        return 1 - quietly(score, *args, **target).deferral_rate

    assert accepts(agree, max_loss=0.02) <= accepts(agree, max_loss=0.03) <= accepts(agree, max_loss=0.06)
    assert accepts(edge, cloud, max_loss=0.05, sure=0.99) <= accepts(edge, cloud, max_loss=0.05, sure=0.9)
    assert accepts(edge, max_error=0.1, sure=0.99) <= accepts(edge, max_error=0.1, sure=0.9)
    assert accepts(max_defer=0.4) <= accepts(max_defer=0.3)
    assert accepts(agree, max_loss=0.03) <= accepts(edge | ~cloud, np.ones(n), max_loss=0.03)


@pytest.mark.parametrize(
    ("n", "cloud", "method"),
    [(449, True, "CP-harm"), (450, True, "LR-BB"), (4000, True, "LR-BB"), (4001, True, "D-BB"), (4001, False, "CP-harm")],
)
def test_the_test_is_chosen_by_n_alone(n, cloud, method):
    """Whatever the labels are; without the cloud's mistakes, harms are all there is to count."""
    for seed in (0, 1):
        score, edge, right = examples(n, seed)
        certificate = calibrate(score, edge, right if cloud else None, max_loss=0.01)
        assert (certificate.method, certificate.agreement) == (method, not cloud)


def test_a_faultless_edge_needs_299_examples():
    """At 1 % and 95 %, 299 examples without a harm let everything be accepted, and 298 are refused: one is missing."""
    score = np.linspace(0, 1, 299)
    right = np.ones(299, bool)
    certificate = calibrate(score, right, right, max_loss=0.01)
    assert (certificate.deferral_rate, certificate.threshold) == (0, 0)
    for target in ({"max_loss": 0.01}, {"max_error": 0.01}, {"max_defer": 0.01}):
        assert calibrate(score, right, right, **target).n == 299
        with pytest.raises(NotEnough, match="needs at least 299 examples, and there are 298: 1 are missing") as refused:
            calibrate(score[1:], right[1:], right[1:], **target)
        assert (refused.value.needed, refused.value.missing) == (299, 1)
    with pytest.raises(NotEnough, match="on average needs at least 99 examples, and there are 98"):
        calibrate(score[:98], max_defer=0.01, sure=None)


def test_what_cannot_be_promised_defers_everything():
    """An edge that is always wrong is never accepted, and the certificate says so."""
    for n in (300, 1000, 5000):
        score = np.random.default_rng(0).permutation(n) % 11  # nine in a hundred have the highest
        for target in ({"max_loss": 0.01}, {"max_error": 0.05}):
            certificate = calibrate(score, np.zeros(n), np.ones(n), **target)
            assert (certificate.threshold, certificate.deferral_rate, certificate.deferral_interval) == (INF, 1, (1, 1))
            assert "no threshold keeps the guarantee" in certificate.guarantee
            assert certificate.accuracy == pytest.approx({"edge": 0, "cloud": 1, "cascade": 1})


@pytest.mark.parametrize("n", [1000, 5000])
def test_many_wins_pay_for_harms(n):
    """Where the edge is right as often as the cloud, all is accepted, though each knows what the other does not."""
    rng = np.random.default_rng(0)
    u, score = rng.random(n), rng.random(n)
    certificate = quietly(score, u > 0.1, (u < 0.1) | (u > 0.4), max_loss=0.01)
    assert certificate.deferral_rate == 0
    assert certificate.accuracy["accepted"] == certificate.accuracy["cascade"] == pytest.approx(certificate.accuracy["edge"])


@pytest.mark.parametrize(
    ("n", "edge", "cloud"),
    [(1000, 1, 0), (1000, 0.99, 0.01), (1000, 1, 0.3), pytest.param(4000, 1, 0.1, marks=pytest.mark.slow), (5000, 1, 0)],
)
def test_a_cloud_that_is_hardly_ever_right(n, edge, cloud):
    """The more the edge wins the less is deferred: wins beyond any that the broken promise could show are no less proof."""
    rng = np.random.default_rng(0)
    score = rng.random(n)
    assert quietly(score, rng.random(n) < edge, rng.random(n) < cloud, max_loss=0.01).deferral_rate == 0


def test_neighbouring_floats():
    """Where nothing lies between two scores, the threshold is the higher one."""
    score = np.where(np.arange(400) < 200, 1.0, np.nextafter(1.0, 2.0))
    with pytest.warns(UserWarning, match="50 %"):
        certificate = calibrate(score, score > 1, np.ones(400), max_loss=0.01)
    assert certificate.threshold == np.nextafter(1.0, 2.0)


def test_the_interval_covers():
    """The true deferral rate lies in the interval of all but a few of 200 draws, though labels chose the threshold."""
    missed = 0
    for seed in range(200):
        certificate = quietly(*examples(400, seed), max_loss=0.05)
        low, high = certificate.deferral_interval
        missed += not low <= min(certificate.threshold, 1.0) <= high  # scores are uniform on 0..1
    assert missed <= 0.05 * 200


# --- classes


def test_a_threshold_for_each_class():
    """Each class is calibrated as if alone, at its share of the risk; of others, and of small ones, all is deferred."""
    score, edge, cloud = examples(3000)
    classes = np.array(["cat", "dog", "eel"])[np.random.default_rng(1).choice(3, 3000, p=[0.5, 0.48, 0.02])]
    edge[(classes == "dog") & (score < 0.7)] = False
    with pytest.warns(UserWarning, match="always deferred, since 80 examples are needed of each class: eel"):
        certificate = calibrate(score, edge, cloud, max_loss=0.05, per_class=classes)
    alone = {
        label: calibrate(score[rows], edge[rows], cloud[rows], max_loss=0.05, sure=1 - 0.05 / 3).threshold
        for label in ("cat", "dog")
        if (rows := classes == label) is not None
    }
    assert certificate.thresholds == alone | {"eel": INF}
    assert certificate.threshold == INF
    assert alone["cat"] < alone["dog"]
    assert certificate.label == "loss <= 5 % in each class, 95 % sure"
    assert "in each class that the edge predicts" in certificate.guarantee
    accepted = sum((score >= t) & (classes == label) for label, t in certificate.thresholds.items())
    assert certificate.deferral_rate == pytest.approx(1 - accepted.mean())
    low, high = certificate.deferral_interval
    assert low < certificate.deferral_rate < high


def test_classes_are_known_by_their_text():
    """A number from numpy counts as its text, as in JSON; a class without scores is deferred."""
    score, edge, cloud = examples(1000)
    classes = np.arange(1000) % 2
    score[classes == 1] = np.nan
    certificate = calibrate(score, edge, cloud, max_loss=0.05, per_class=classes)
    assert certificate.thresholds["0"] < INF == certificate.thresholds["1"]
    assert certificate.unscored == pytest.approx(0.5)
    large = quietly(np.tile(score, 10), np.tile(edge, 10), np.tile(cloud, 10), max_loss=0.05, per_class=np.tile(classes, 10))
    assert (large.method, large.thresholds["1"]) == ("D-BB", INF)


def test_no_class_has_enough():
    """The refusal says what the largest lacks."""
    score, edge, cloud = examples(600)
    with pytest.raises(
        NotEnough, match="at least 368 examples of one predicted class, and there are 300: 68 are missing"
    ) as refused:
        calibrate(score, edge, cloud, max_loss=0.01, per_class=np.arange(600) % 2)
    assert refused.value.missing == 68


# --- cross-fitting


def test_no_example_is_scored_by_what_it_was_fitted_on():
    """Each is left out once, every fit sees the rest, and the division depends on the seed alone."""
    asked = []

    def fit(train):
        def score(out):
            assert not set(train) & set(out)
            assert len(train) + len(out) == 23
            asked.extend(out)
            return out * 10

        return score

    assert crossfit(fit, 23).tolist() == [i * 10 for i in range(23)]
    assert sorted(asked) == list(range(23))
    first, asked[:] = [*asked], []
    crossfit(fit, 23)
    assert asked == first
    asked.clear()
    crossfit(fit, 23, seed=1)
    assert asked != first


def test_reuse_flatters_and_crossfit_does_not():
    """A score that knows its examples by heart looks perfect on them; out of fold it is as good as it is."""
    rng = np.random.default_rng(0)
    edge = rng.random(1000) < 0.8

    def fit(train):
        heart = {int(i): float(edge[i]) for i in train}
        return lambda rows: [heart.get(int(i), 0.5) + i / 1e6 for i in rows]

    naive = quietly(fit(np.arange(1000))(np.arange(1000)), edge, max_error=0.1)
    fitted = quietly(crossfit(fit, 1000), edge, max_error=0.1)
    assert naive.deferral_rate < 0.3
    assert fitted.deferral_rate == 1


@pytest.mark.parametrize(("n", "folds"), [(4, 5), (10, 1)])
def test_too_few_to_divide(n, folds):
    """Folds that leave nothing to fit on, or nothing to score, are refused."""
    with pytest.raises(PolicyError, match="cannot be divided"):
        crossfit(lambda _: lambda rows: rows, n, folds=folds)


# --- bad input

GOOD = np.linspace(0, 1, 400)
YES = np.ones(400)


@pytest.mark.parametrize(
    ("args", "kwargs", "message"),
    [
        ((GOOD, YES, YES), {}, "pass exactly one of max_loss, max_error, max_defer: none given"),
        ((GOOD, YES, YES), {"max_loss": 0.1, "max_error": 0.1}, "max_defer: 2 given"),
        ((GOOD, YES, YES), {"max_loss": 0}, "between 0 and 1, not 0"),
        ((GOOD, YES, YES), {"max_loss": 5}, "between 0 and 1, not 5"),
        ((GOOD, YES, YES), {"max_loss": math.nan}, "between 0 and 1, not nan"),
        ((GOOD, YES, YES), {"max_loss": 0.1, "sure": 95}, "sure must be a probability between 0 and 1, not 95"),
        ((GOOD, YES, YES), {"max_loss": 0.1, "sure": None}, "sure=None works only with max_defer"),
        ((GOOD,), {"max_loss": 0.1}, "max_loss needs edge_correct"),
        ((GOOD,), {"max_error": 0.1}, "max_error needs edge_correct"),
        ((GOOD, YES[1:]), {"max_error": 0.1}, r"edge_correct has the shape \[399\], and there are 400 scores"),
        ((GOOD, YES, YES[1:]), {"max_loss": 0.1}, "cloud_correct has the shape"),
        (
            (GOOD, YES * 3),
            {"max_error": 0.1},
            "edge_correct must hold numbers from 0 to 1, and one is 3: scale",
        ),
        ((GOOD, YES, -GOOD), {"max_loss": 0.1}, "cloud_correct must hold"),
        ((GOOD, YES * math.nan), {"max_error": 0.1}, "edge_correct is NaN for 400 examples"),
        ((GOOD, ["yes"] * 400), {"max_error": 0.1}, "edge_correct must hold the correctness of each example: bool, or numbers"),
        ((GOOD, YES, YES), {"max_loss": 0.1, "agree": GOOD}, "agree must hold the agreement of edge and cloud for each example"),
        ((GOOD, YES), {"max_error": 0.1, "groups": [1]}, "groups has 1 names, and there are 400 scores"),
        ((GOOD, YES), {"max_error": 0.1, "groups": [None] * 400}, "groups has None or NaN in it"),
        ((GOOD, YES), {"max_error": 0.1, "groups": [[1]] * 400}, "groups must have a text or number for each example"),
        ((GOOD, YES), {"max_error": 0.1, "groups": YES, "per_class": YES}, "per_class and groups exclude each other"),
        ((GOOD, YES), {"max_error": 0.1, "groups": np.arange(400) // 20}, "at least 29 groups, and there are 20: 9 are missing"),
        ((GOOD.reshape(20, 20), YES), {"max_error": 0.1}, r"shape \[n\], a number for each example, not \[20, 20\]"),
        (([], []), {"max_error": 0.1}, "a number for each example"),
        ((["a"], [1]), {"max_error": 0.1}, "score must be an array of numbers"),
        ((np.append(GOOD[1:], INF), YES), {"max_error": 0.1}, "1 scores are infinite"),
        ((YES * math.nan, YES), {"max_error": 0.1}, "no example has a score"),
        ((YES / 2, YES), {"max_error": 0.1}, "the score is 0.5 for every example"),
        ((GOOD, YES), {"max_error": 0.1, "per_class": [1]}, "per_class has 1 classes, and there are 400 scores"),
        ((GOOD,), {"max_defer": 0.1, "per_class": YES}, "max_defer has one threshold for all classes"),
        (
            (GOOD, YES),
            {"max_error": 0.1, "fingerprints": {"model": "x"}},
            "bound to edge, cloud, score, codec, earlier, served, not to model",
        ),
        ((GOOD, YES, YES), {"max_loss": 0.1, "sure": 1 - 1e-16}, "sure must be a probability between 0 and 1"),
        (([10**400] * 400, YES), {"max_error": 0.1}, "score must be an array of numbers: int too large"),
        ((GOOD + 0j, YES), {"max_error": 0.1}, "score must be an array of numbers, not of complex128"),
        ((np.arange(400).astype("datetime64[s]"), YES), {"max_error": 0.1}, "not of datetime64"),
        ((GOOD, np.ma.array(YES, mask=GOOD > 0.5)), {"max_error": 0.1}, "edge_correct is NaN for 200 examples"),
        ((np.ma.array(GOOD, mask=True), YES), {"max_error": 0.1}, "no example has a score"),
        (
            (GOOD, YES),
            {"max_error": 0.1, "metric": "F1\x1b[31m"},
            "metric must be a name on one line, at most 60 characters",
        ),
        ((GOOD, YES), {"max_error": 0.1, "metric": "x" * 61}, "metric must be a name"),
        ((GOOD, YES), {"max_error": 0.1, "metric": b"F1"}, "metric must be a name .*, not bytes"),
        ((GOOD, YES), {"max_error": 0.1, "parameters": {"t": math.nan}}, "must be JSON"),
        ((GOOD, YES), {"max_error": 0.1, "parameters": {"t": object()}}, "must be JSON"),
        (
            (np.append(GOOD[200:], [math.nan] * 200),),
            {"max_defer": 0.3},
            r"no threshold defers at most 0.3: 50.0 % of the examples have no",
        ),
    ],
)
def test_bad_input(args, kwargs, message):
    """What is wrong is said, and nothing is made of it."""
    with pytest.raises(PolicyError, match=message):
        calibrate(*args, **kwargs)


def test_tied_scores_are_told():
    """A softmax of 8 bits ties what is sure at its top level: its share is named, and logits are recommended."""
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(2000, 10)) * 6
    p = np.exp(logits - logits.max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    top = p.max(1)
    with pytest.warns(
        UserWarning, match=r"\d\d % of the examples share the score 1, and are accepted or deferred together.*logits"
    ):
        calibrate(np.round(top * 255) / 255, YES[0] * np.ones(2000), max_error=0.1)
    assert calibrate(top, np.ones(2000), max_error=0.1).deferral_rate == 0


# --- certificates

PRINTS = {"edge": "sha-of-edge", "cloud": "module.function 0123456789abcdef", "score": "msp", "codec": "jpeg-85"}


def a_certificate(**kwargs):
    return calibrate(*examples(1000), max_loss=0.02, name="msp", parameters={"t": [1, 2]}, fingerprints=PRINTS, **kwargs)


@pytest.mark.parametrize("kind", ["plain", "infinite", "classes", "budget"])
def test_a_certificate_survives_its_file(tmp_path, kind):
    """What is loaded equals what was saved, infinity included, and a file is replaced."""
    certificate = {
        "plain": a_certificate,
        "infinite": lambda: calibrate(GOOD, YES * 0, YES, max_loss=0.01),
        "classes": lambda: a_certificate(per_class=np.arange(1000) % 3 == 0),
        "budget": lambda: calibrate(GOOD, max_defer=0.1, sure=None),
    }[kind]()
    path = tmp_path / "certificate.json"
    path.write_text("of old")
    certificate.save(path)
    assert Certificate.load(path) == certificate
    assert Certificate.load(str(path)).guarantee == certificate.guarantee
    assert [p.name for p in tmp_path.iterdir()] == ["certificate.json"]
    json.loads(path.read_text(), parse_constant=lambda c: pytest.fail(f"{c} is not JSON"))


@pytest.mark.parametrize("field", [*Certificate._fields, "version", "guarantee", "checksum"])
def test_an_edited_certificate_is_refused(tmp_path, field):
    """Whatever is changed, added or taken away."""
    path = tmp_path / "certificate.json"
    a_certificate().save(path)
    data = json.loads(path.read_text())
    for changed in (data | {field: "another"}, {k: v for k, v in data.items() if k != field}, data | {"more": 1}):
        path.write_text(json.dumps(changed))
        with pytest.raises(PolicyError, match=r"was changed after it was made|has no checksum"):
            Certificate.load(path)


def test_what_is_no_certificate(tmp_path, monkeypatch):
    """No file, a folder, no JSON, other JSON, half a file, another version."""
    path = tmp_path / "certificate.json"
    with pytest.raises(PolicyError, match="there is no certificate at"):
        Certificate.load(path)
    with pytest.raises(PolicyError, match="cannot be read"):
        Certificate.load(tmp_path)
    a_certificate().save(path)
    for text in ("", "[]", "{}", path.read_text()[:200], "\x00"):
        path.write_text(text)
        with pytest.raises(PolicyError, match="is not a certificate"):
            Certificate.load(path)
    path.write_bytes(b"\xff\xfe\xff")
    with pytest.raises(PolicyError, match="is not a certificate"):
        Certificate.load(path)
    path.write_text("[" * 100_000)
    with pytest.raises(PolicyError, match="is not a certificate"):
        Certificate.load(path)
    a_certificate().save(path)
    data = {key: value for key, value in json.loads(path.read_text()).items() if key not in {"checksum", "thresholds"}}
    path.write_text(json.dumps({**data, "checksum": certificate.checksum_of(data)}))
    with pytest.raises(PolicyError, match=r"is not a certificate: KeyError: 'thresholds'"):
        Certificate.load(path)
    monkeypatch.setattr("edgeroute.confidence.certificate.VERSION", 9)
    a_certificate().save(path)
    monkeypatch.undo()
    with pytest.raises(PolicyError, match="is of version 9, and this edgeroute knows version 2"):
        Certificate.load(path)


def test_a_certificate_of_something_else():
    """Each thing that differs is named, what is not given is not compared, and age counts where it is limited."""
    certificate = a_certificate()
    assert certificate.matches(**PRINTS) is None
    assert certificate.matches() is None
    assert certificate.matches(edge="sha-of-another") == "it was made for edge model sha-of-edge, and this is sha-of-another"
    both = certificate.matches(cloud="module.function fedcba9876543210", codec="jpeg-50")
    assert both == (
        "it was made for cloud model 0123456789abcdef, and this is fedcba9876543210; "
        "it was made for payload codec jpeg-85, and this is jpeg-50"
    )
    several = certificate._replace(fingerprints={"cloud": f"here.one {'a' * 64} there.two {'b' * 64} key"})
    assert several.matches(cloud=f"here.one {'c' * 64} there.two {'b' * 64} key") == (
        f"it was made for cloud model ...{'a' * 12}, and this is ...{'c' * 12}"
    )
    fewer = f"here.one ...{'a' * 12} there.two ...{'b' * 12}"
    assert several.matches(cloud=f"here.one {'a' * 64} there.two {'b' * 64}").endswith(f"{fewer} key, and this is {fewer}")
    plain = certificate._replace(fingerprints={"codec": "as it is"})
    assert plain.matches(codec="as it is Mask email") == (
        "it was made for payload codec as it is, and this is as it is Mask email"
    )
    alike = certificate._replace(fingerprints={"cloud": "a" * 64 + "b" * 64})
    assert (
        alike.matches(cloud="c" * 64 + "b" * 64)
        == f"it was made for cloud model {'a' * 64 + 'b' * 64}, and this is {'c' * 64 + 'b' * 64}"
    )
    unbound = certificate._replace(fingerprints={}, date="2020-01-01")
    assert unbound.matches(edge="x") == "it does not say for which edge model it was made"
    assert unbound.matches() is None
    assert "days old, and may be 365" in unbound.matches(max_age_days=365)
    assert certificate.matches(max_age_days=1) is None


def test_the_promise_in_words():
    """A label for the reason, and a sentence for people."""
    c = a_certificate()
    assert c.label == "loss <= 2 %, 95 % sure"
    assert c.guarantee == (
        f"With 95 % confidence, on inputs drawn independently and like the 1,000 examples of {c.date}: "
        "the accuracy of edge and cloud together is at most 2 percentage points below that of the cloud alone."
    )
    assert "at most 1 percentage point below" in c._replace(value=0.01).guarantee
    assert "another answer than the cloud's" in c._replace(agreement=True).guarantee
    c = c._replace(kind="max_error", sure=0.999)
    assert c.label == "error <= 2 %, 99.9 % sure"
    assert "at most 2 % of the answers that the edge gives alone are wrong" in c.guarantee
    c = c._replace(kind="max_defer", sure=None)
    assert c.label == "deferral <= 2 %, on average"
    assert c.guarantee.startswith("On average over calibrations, on inputs drawn independently and like")


def test_what_is_raised_stays_where_it_was_certified():
    """Above its highest threshold `max_error` was not tested; `max_defer` is never raised; a loss only falls; inf defers all."""
    score, edge, cloud = examples(3000)
    error, defer, loss = (quietly(score, edge, cloud, **{kind: 0.2}) for kind in ("max_error", "max_defer", "max_loss"))
    assert error.threshold < error.highest < np.quantile(score, 0.82)
    assert error.raised(error.highest - 0.01) == error.highest - 0.01
    assert error.raised(0.99) == error.highest
    assert (defer.highest, defer.raised(0.99)) == (defer.threshold, defer.threshold)
    assert (loss.highest, loss.raised(0.99), loss.raised(-1.0)) == (None, 0.99, loss.threshold)
    assert error.raised(INF) == loss.raised(INF) == INF
    classes = np.arange(3000) % 2
    each = quietly(score, edge, max_error=0.2, per_class=classes)
    alone = [quietly(score[classes == c], edge[classes == c], max_error=0.2, sure=0.975).highest for c in (0, 1)]
    assert each.highest == min(alone)
    target = effective_target(Target("edge", "edge", 0.5), BoundCertificate(error, {}, INF), at_least=0.99)
    assert target.threshold == error.highest


def test_a_noisy_top_does_not_end_it():
    """Where the most confident answers are the worst, testing begins again below them, and nothing above is certified."""
    rng = np.random.default_rng(0)
    score = rng.random(4000)
    edge = rng.random(4000) > np.where(score > 0.85, 0.08, 0.005 + 0.05 * (1 - score) ** 4)
    found = quietly(score, edge, max_error=0.05)
    assert found.threshold < 0.2
    assert np.mean(score >= found.highest) == pytest.approx(0.4, abs=0.01) or np.mean(score >= found.highest) == pytest.approx(
        0.6, abs=0.01
    )


def test_a_noisy_top_costs_little_coverage():
    """Of 1,000 examples whose most confident tenth is often wrong, about .3 are accepted; most of the risk at the top gave .18."""
    rng = np.random.default_rng(0)
    shares = []
    for _ in range(200):
        rank = np.sort(rng.random(1000))
        edge = rng.random(1000) > np.where(rank < 0.1, 0.16, 0.05 + 0.4 * np.maximum(rank - 0.45, 0))
        shares.append(1 - quietly(-rank, edge, max_error=0.1).deferral_rate)
    assert np.mean(shares) > 0.25


def test_an_older_certificate_is_read(tmp_path):
    """What it does not have is as if it were not known."""
    path = tmp_path / "certificate.json"
    made = a_certificate()
    made.save(path)
    data = json.loads(path.read_text())
    newer = {"checksum", "metric", "groups", "highest", "area", "examples"}
    old = {name: value for name, value in data.items() if name not in newer}
    path.write_text(json.dumps({**old, "checksum": certificate.checksum_of(old)}))
    assert Certificate.load(path) == made._replace(area=None, examples="")


def test_a_calibration_is_repeatable():
    """The same examples give the same certificate, tables kept or not."""
    first = a_certificate()
    for table in (exact.lr_limits, exact.d_limits, exact.most_of_each, log_factorials):
        table.cache_clear()
    assert a_certificate()._replace(date=first.date) == first
    assert first.accuracy.keys() == {"edge", "cloud", "accepted", "cascade"}
    assert calibrate(*examples(1000)[:1], max_defer=0.3).accuracy == {}


# --- draws


@pytest.mark.slow
def test_promises_hold_over_draws(monkeypatch):
    """Each test keeps its promise over 200 draws, and the plug-in threshold, on the same draws, does not."""
    benchmarks = Path(__file__).resolve().parent.parent / "benchmarks"
    monkeypatch.syspath_prepend(benchmarks)
    import validity

    scenarios = validity.scenarios()
    for key in ("A", "P", "T", "R"):
        results = validity.run(scenarios[key], 600, 200)
        for name in validity.OURS:
            assert results[name].broken <= validity.allowed(200), (key, name)
        assert results["plug-in"].broken > 0.3
        assert results["Hoeffding-Bentkus"].deferral == 1
