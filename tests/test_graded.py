"""Graded correctness and groups: betting and dithering against plain loops, the certificate's numbers, and promises over draws."""

from __future__ import annotations

import warnings
from math import log, sqrt

import numpy as np
import pytest
from draws import draws
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeroute import PolicyError
from edgeroute.confidence import Certificate, NotEnough, calibrate, crossfit, deferral_curve
from edgeroute.tools.measure import fixed_sequence as bets
from edgeroute.tools.measure import fixed_sequence as drawn
from edgeroute.tools.measure.fixed_sequence import BETTING, lowest_threshold

INF = float("inf")


def quietly(*args, **kwargs):
    """`calibrate` on examples that may be tied, or scored by chance."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return calibrate(*args, **kwargs)


def answers(n, seed=0, gap=0.3):
    """Score, F1 of the edge and of the cloud: the edge is worse where the score is low, and a little better now and then."""
    rng = np.random.default_rng(seed)
    score, cloud = rng.random(n), rng.beta(6, 1.2, n)
    edge = cloud - gap * rng.random(n) * (1 - score) ** 2 + np.where(rng.random(n) < 0.03, 0.2, 0)
    return score, np.clip(edge, 0, 1), cloud


@st.composite
def some(draw):
    """Scores of few levels, graded answers, and perhaps groups of them."""
    n, seed = draw(st.integers(30, 150)), draw(st.integers(0, 2**32 - 1))
    rng = np.random.default_rng(seed)
    score = rng.integers(0, draw(st.integers(2, 100)), n) / 7
    score[:2] = 0, 1
    edge, cloud = rng.random(n) ** draw(st.sampled_from([0.05, 0.3, 1])), rng.random(n) ** 0.1
    if draw(st.booleans()):
        edge, cloud = edge.round(), cloud.round()
    groups = rng.integers(0, draw(st.integers(5, 60)), n) if draw(st.booleans()) else np.arange(n)
    return score, edge, cloud, np.unique(groups, return_inverse=True)[1]


def losses(score, edge, cloud, groups, threshold):
    """Each group's mean loss where what is at or above the threshold is accepted."""
    kept = (score >= threshold) * (cloud - edge)
    return np.array([kept[groups == g].mean() for g in range(groups.max() + 1)])


def wealth(x, mean, delta):
    """The largest wealth of a gambler on one unit after the other, by the formulas as they are written."""
    n, have, best, seen, total, squares = len(x), 1.0, 1.0, 0, 0.5, 0.25
    for one in x:
        variance = squares / (seen + 1)
        bet = min(sqrt(2 * log(1 / delta) / (variance * n)), 0.75 / (1 - mean))
        have *= 1 - bet * (one - mean)
        best = max(best, have)
        seen, total = seen + 1, total + one
        squares += (one - total / (seen + 1)) ** 2
    return best


def expected(score, passes):
    """How many are accepted: thresholds from the highest down, until the first that does not pass."""
    kept = 0
    for level in sorted(set(score), reverse=True):
        if not passes(level):
            break
        kept = int((score >= level).sum())
    return kept


@pytest.mark.slow
@settings(max_examples=draws(150), deadline=None)
@given(some(), st.sampled_from([0.05, 0.1, 0.3]), st.sampled_from([0.05, 0.2]))
def test_betting_by_the_book(given_, eps, delta):
    """The walk that looks again only where something changed stops where one that looks at all of it each time does."""
    score, edge, cloud, groups = given_
    n = groups.max() + 1
    order = np.argsort(-score, kind="stable")
    ends = np.flatnonzero(np.append(score[order][1:] != score[order][:-1], True))
    found = drawn.units(cloud - edge, order, groups)
    blocks = bets.accept_betting(found.after, found.of, ends, n, eps, delta)
    place = np.random.default_rng(bets.ORDER_SEED).permutation(n)

    def passes(level):
        x = np.empty(n)
        x[place] = (1 + losses(score, edge, cloud, groups, level)) / 2
        return wealth(x, (1 + eps) / 2, delta) >= 1 / delta

    assert (ends[blocks - 1] + 1 if blocks else 0) == expected(score, passes)


@settings(max_examples=draws(100), deadline=None)
@given(some(), st.floats(0, 1))
def test_dithering_by_the_book(given_, share):
    """At each threshold a group is a harm, a win or neither, by its mean loss and its own uniform number."""
    score, edge, cloud, groups = given_
    order = np.argsort(-score, kind="stable")
    found = drawn.units(cloud - edge, order, groups)
    harms, wins = found.dithered()
    last = min(int(share * len(score)), len(score) - 1)
    rows = order[: last + 1]
    kept = np.zeros(len(score), bool)
    kept[rows] = True
    mean = losses(np.where(kept, 1.0, 0.0), edge, cloud, groups, 0.5)
    u = np.random.default_rng(drawn.UNITS_SEED).random(groups.max() + 1)
    assert found.after[last] == pytest.approx(mean[groups[order[last]]], abs=1e-12)
    assert (harms[last], wins[last]) == ((u < mean - 1e-12).sum(), (u < -mean - 1e-12).sum())


@settings(max_examples=draws(50), deadline=None)
@given(some(), st.sampled_from([{"max_loss": 0.1}, {"max_error": 0.1}]))
def test_right_and_wrong_are_dithered_to_themselves(given_, target):
    """Answers of 0 and 1 are tested exactly, and named or not they give the same threshold where they are dithered."""
    score, edge, cloud, _ = given_
    edge, cloud = edge.round(), cloud.round()
    (kind, value), delta = *target.items(), 0.2
    plain, named = (lowest_threshold(kind, value, delta, score, edge, cloud, graded=graded) for graded in (False, True))
    if named.method != "betting":
        assert (plain.threshold, f"dithered {plain.method}", plain.highest) == named


def test_the_method_is_chosen_by_n_and_kind_alone():
    """Few graded answers are dithered, many are bet on, whatever they are; right and wrong are tested as they were."""
    for n, method in ((400, "dithered CP-harm"), (900, "dithered LR-BB"), (1000, "betting"), (5000, "betting")):
        for seed in (0, 1):
            score, edge, cloud = answers(n, seed)
            assert quietly(score, edge, cloud, max_loss=0.01).method == method
            assert quietly(score, edge.round(), cloud.round(), max_loss=0.01, metric="exact match").method == method
            assert quietly(score, edge, max_error=0.2).method == "dithered CP-error"
    assert BETTING * log(20) == pytest.approx(9.9, abs=0.05)  # so the numbers above, at 1 %
    score, edge, cloud = answers(1000)
    assert quietly(score, edge.round(), cloud.round(), max_loss=0.01).method == "LR-BB"
    groups = np.repeat(np.arange(500), 2)
    assert quietly(score, edge.round(), cloud.round(), max_loss=0.03, groups=groups).method == "betting"
    assert quietly(score, edge.round(), cloud.round(), max_loss=0.01, groups=groups).method == "dithered LR-BB"


def test_grades_may_be_off_by_rounding():
    """Arithmetic makes 1.0000001 of 1, which is 1."""
    rng = np.random.default_rng(0)
    score, grade = rng.random(1000), (rng.random(1000) < 0.97).astype(float)
    exact = calibrate(score, grade, grade, max_loss=0.02, notes=[])
    assert calibrate(score, grade * (1 + 5e-7), grade - 1e-12 * (grade == 0), max_loss=0.02, notes=[]) == exact
    assert np.array_equal(deferral_curve(score, grade * (1 + 5e-7), grade).accuracy, deferral_curve(score, grade, grade).accuracy)
    for wrong in (grade * (1 + 1e-5), grade - 1e-5):
        with pytest.raises(PolicyError, match="from 0 to 1"):
            calibrate(score, wrong, grade, max_loss=0.02)


def test_the_promise_in_words():
    """With the metric's name, in its own unit, and without percentages."""
    score, edge, cloud = answers(2000)
    found = calibrate(score, edge, cloud, max_loss=0.01, metric="F1")
    assert found.label == "F1 loss <= 0.01, 95 % sure"
    assert found.guarantee == (
        f"With 95 % confidence, on inputs drawn independently and like the 2,000 examples of {found.date}: "
        "the mean F1 of edge and cloud together is at most 0.01 below that of the cloud alone."
    )
    assert "the mean correctness of edge and cloud together" in calibrate(score, edge, cloud, max_loss=0.01).guarantee
    assert (
        "mean F1 of the answers that the edge gives alone is at least 0.8"
        in calibrate(score, edge, max_error=0.2, metric="F1").guarantee
    )
    near = 1 - 0.1 * (1 - score)
    alike = calibrate(score, near, max_loss=0.1, metric="overlap")
    assert (alike.agreement, alike.disagreement) == (True, None)
    assert "the mean overlap of the answers against the cloud's own is at least 0.9" in alike.guarantee
    grouped = calibrate(score, edge, cloud, max_loss=0.03, metric="F1", groups=np.arange(2000) // 4)
    assert (
        f"on inputs of groups drawn independently and like the 500 groups of the 2,000 examples of {found.date}"
        in grouped.guarantee
    )


def test_numbers_of_graded_answers(tmp_path):
    """Accuracy is the mean; the cascade loses what its accepted answers do; and the file keeps it all."""
    score, edge, cloud = answers(3000)
    found = calibrate(score, edge, cloud, max_loss=0.01, metric="F1")
    kept = score >= found.threshold
    assert found.accuracy == pytest.approx(
        {"edge": edge.mean(), "cloud": cloud.mean(), "accepted": edge[kept].mean(), "cascade": np.where(kept, edge, cloud).mean()}
    )
    assert found.accuracy["cloud"] - found.accuracy["cascade"] < 0.01
    assert 0.2 < found.deferral_rate < 0.8
    assert found.disagreement is None
    found.save(tmp_path / "certificate.json")
    assert Certificate.load(tmp_path / "certificate.json") == found


def test_each_group_counts_the_same():
    """Numbers weigh a group of many examples as one of few; what is refused counts groups."""
    rng = np.random.default_rng(0)
    sizes = rng.integers(1, 30, 600)
    groups = np.repeat([f"scene {i}" for i in range(600)], sizes)
    score = np.repeat(rng.random(600), sizes)
    edge = rng.random(len(score)) > 0.2 * (1 - score)
    found = quietly(score, edge, np.ones(len(score)), max_loss=0.03, groups=groups)
    assert found.groups == 600
    means = np.array([[(score < found.threshold)[groups == g].mean(), edge[groups == g].mean()] for g in dict.fromkeys(groups)])
    assert (found.deferral_rate, found.accuracy["edge"]) == pytest.approx(tuple(means.mean(0)))
    low, high = found.deferral_interval
    assert high - low == pytest.approx(2 * sqrt(log(2 * np.e / 0.05) / 1200))
    with pytest.raises(NotEnough, match="needs at least 59 groups, and there are 50: 9 are missing"):
        calibrate(score[:50], edge[:50], edge[:50], max_loss=0.05, groups=np.arange(50))
    for target in ({"max_error": 0.2}, {"max_defer": 0.3}):
        one = quietly(score, edge, groups=groups, **target)
        rows = drawn.one_of_each(np.unique(groups, return_inverse=True)[1])
        assert len(rows) == len(set(groups[rows])) == 600
        assert one.threshold == quietly(score, edge, groups=np.array(groups), **target).threshold


def test_groups_of_one_are_examples():
    """The names of groups, and their order, change nothing."""
    score, edge, cloud = answers(1500)
    alone = quietly(score, edge, cloud, max_loss=0.01)
    for groups in (np.arange(1500), [f"user {i}" for i in range(1500)]):
        grouped = quietly(score, edge, cloud, max_loss=0.01, groups=groups)
        assert (grouped.threshold, grouped.method) == (alone.threshold, "betting")


def test_no_group_is_scored_by_what_it_was_fitted_on():
    """Cross-fitting leaves out whole groups."""
    groups = np.random.default_rng(0).integers(0, 40, 300)
    seen = []

    def fit(train):
        def score(out):
            assert not set(groups[train]) & set(groups[out])
            seen.extend(out)
            return out * 1.0

        return score

    assert crossfit(fit, 300, groups=groups).tolist() == list(range(300))
    assert sorted(seen) == list(range(300))
    with pytest.raises(PolicyError, match="3 groups cannot be divided into 5 folds"):
        crossfit(fit, 300, groups=np.arange(300) % 3)


def test_every_threshold_is_seen_before_it_is_passed():
    """A loss that comes back below the limit after it was beyond it is never accepted: the walk has stopped before."""
    rng = np.random.default_rng(0)
    score = rng.random(4000)
    edge = np.where((score > 0.5) & (score < 0.7), 0.6, 0.95)
    cloud = np.where(score < 0.3, 0.2, 0.96)
    found = quietly(score, edge, cloud, max_loss=0.01)
    assert (cloud - edge).mean() < 0.01  # all accepted would do, on average
    assert 0.6 < found.threshold < 0.75


LEVELS = np.linspace(0, 1, 2001)
WORLDS = {
    "just beyond": lambda u, rng: (0.9 - np.where(u > 0.5, 0.021 * (rng.random(len(u)) * 2), 0.03), np.full(len(u), 0.9)),
    "rare and large": lambda u, rng: (1.0 - (rng.random(len(u)) < 0.011), np.ones(len(u))),
    "wins pay": lambda u, rng: (rng.random(len(u)), np.clip(rng.random(len(u)) + 0.02, 0, 1)),
    "judge, ties": lambda u, rng: (np.round(0.8 - 0.2 * rng.random(len(u)) * (1 - u), 1), np.full(len(u), 0.8)),
}


@pytest.mark.slow
@pytest.mark.parametrize("world", WORLDS)
@pytest.mark.parametrize("n", [300, 1100])
def test_promises_hold_over_draws(world, n):
    """The loss of what is accepted, of all there is, is beyond the limit in no more draws than promised, and 4 standard errors."""
    rng = np.random.default_rng(7)
    u = rng.random(200_000)
    edge, cloud = WORLDS[world](u, rng)
    true = np.append([((cloud - edge) * (u >= t)).mean() for t in LEVELS], 0)
    broken, draws = 0, 150
    for _ in range(draws):
        i = rng.integers(0, len(u), n)
        t = quietly(u[i], edge[i], cloud[i], max_loss=0.02, metric="F1").threshold
        broken += true[int(min(t, 1.0005) * 2000)] > 0.02 + 2e-4
    assert broken <= draws * (0.05 + 4 * sqrt(0.05 * 0.95 / draws))


@pytest.mark.slow
def test_frames_of_scenes():
    """As independent examples they break the promise; as groups they keep it, and defer less than one frame of each does."""

    def world(scenes, rng):
        base = rng.random(scenes)[:, None]
        mix = rng.random((scenes, 10)) < 0.7
        score = np.where(mix, np.clip(base + 0.03 * rng.normal(size=(scenes, 10)), 0, 1), rng.random((scenes, 10)))
        luck = np.where(rng.random((scenes, 10)) < 0.7, rng.random(scenes)[:, None], rng.random((scenes, 10)))
        return score, luck >= 0.25 * (1 - score) ** 3, luck <= 0.99

    score, edge, cloud = world(60_000, np.random.default_rng(0))
    true = np.append([((cloud * 1.0 - edge) * (score >= t)).mean() for t in LEVELS], 0)
    broken, deferred, draws = np.zeros(2), np.zeros(3), 60
    for seed in range(draws):
        s, e, c = world(1000, np.random.default_rng(100 + seed))
        groups = np.repeat(np.arange(1000), 10)
        found = [
            quietly(s.ravel(), e.ravel(), c.ravel(), max_loss=0.01, groups=groups),
            quietly(s.ravel(), e.ravel(), c.ravel(), max_loss=0.01),
            quietly(s[:, 0], e[:, 0], c[:, 0], max_loss=0.01),
        ]
        broken += [true[int(min(one.threshold, 1.0005) * 2000)] > 0.0102 for one in found[:2]]
        deferred += [one.deferral_rate for one in found]
    assert broken[0] <= 0.16 * draws  # 5 % and 4 standard errors
    assert broken[1] >= 4  # of about 11
    assert deferred[0] < deferred[2]
