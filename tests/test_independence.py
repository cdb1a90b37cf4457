"""Whether examples look independent, whether they were seen before, and how well a score ranks them."""

from __future__ import annotations

import itertools
import re
import warnings

import numpy as np
import pytest
from draws import draws
from hypothesis import given, settings
from hypothesis import strategies as st
from lazily import Later

from edgeroute import Router
from edgeroute.confidence import calibrate, deferral_curve, measured_area, overlap, sketch
from edgeroute.tools.measure.deferral_curve import student_quantile
from edgeroute.tools.measure.independence_and_overlap import correlations, dependence, overlap_beyond_chance
from edgeroute.tools.measure.threshold_calibration_and_crossfit import least_deferral, spread

stats = Later("scipy.stats")


def told(scores, edge=None, cloud=None, groups=None):
    return dependence(np.asarray(scores, float), edge, cloud, groups)


def counted_as(text):
    return int(re.search(r"count as about ([\d,]+)", text)[1].replace(",", ""))


def scenes(count, frames, seed=0, within=0.3):
    """Scores of scenes whose frames are alike."""
    rng = np.random.default_rng(seed)
    return (rng.normal(size=(count, 1)) + within * rng.normal(size=(count, frames))).ravel()


def test_independent_examples_are_not_told():
    """Nor those that are sorted, or on a coarse grid; over many draws."""
    for seed in range(200):
        rng = np.random.default_rng(seed)
        score, edge = rng.random(500), (rng.random(500) > 0.1) * 1.0
        assert told(score, edge) == []
        assert told(np.sort(score), edge) == told(-np.sort(score), edge) == []
        assert told(np.round(score * 255) / 255, edge) == []
        assert told(np.round(score, 2), edge) == []


def test_repeated_examples_are_told():
    """100 images, ten times each, count as 100; ties of examples with other outcomes are chance."""
    rng = np.random.default_rng(0)
    score, edge = rng.random(100), (rng.random(100) > 0.2) * 1.0
    for order in (np.arange(1000) % 100, np.repeat(np.arange(100), 10), rng.permutation(1000) % 100):
        (text,) = told(score[order], edge[order])
        assert text.startswith("900 of the 1,000 examples repeat the score of another exactly")
        assert counted_as(text) == 100
    rows = rng.permutation(1000) % 100
    assert told(score[rows], (rng.random(1000) > 0.2) * 1.0) == []
    assert told(score[rows], groups=rows) == []  # what is repeated is a group
    with pytest.warns(UserWarning, match="900 of the 1,000 examples repeat"):
        calibrate(score[rows], edge[rows], max_error=0.3)


def test_frames_in_their_order_are_told():
    """With about the number of scenes as their effective number; and not if they are groups, or out of order."""
    score = scenes(300, 10)
    (text,) = told(score)
    assert "frames of a film" in text
    assert 250 < counted_as(text) < 420
    assert told(score, groups=np.repeat(np.arange(300), 10)) == []
    assert told(np.random.default_rng(0).permutation(score)) == []
    (text,) = told(np.repeat(scenes(60, 10), 2), groups=np.arange(1200) // 2)
    assert text.startswith("neighbouring groups have similar scores")
    with pytest.warns(UserWarning, match="neighbouring examples"):
        calibrate(score, max_defer=0.3)


def test_correlations_are_those_of_numpy():
    """Lag by lag, on ranks."""
    score = scenes(100, 4)
    ranks = score.argsort().argsort() - 199.5
    found = correlations(score)
    assert found == pytest.approx([ranks[k:] @ ranks[:-k] / (ranks @ ranks) for k in range(1, len(found) + 1)])
    assert correlations(np.arange(20.0)) is None


def test_examples_are_known_again():
    """All of them, in any order and to rounding; a part of them; and none of others."""
    rng = np.random.default_rng(0)
    outputs, others = rng.normal(size=(5000, 10)), rng.normal(size=(5000, 10))
    kept = sketch(outputs)
    assert len(kept) == 64 * 8
    assert overlap(kept, rng.permutation(outputs) * (1 + 1e-9)) > 0.95
    assert 0.3 < overlap(kept, np.concatenate([outputs[:2500], others[:2500]])) < 0.7
    assert overlap(kept, others) == 0
    assert overlap(sketch(outputs[:20]), outputs[:10]) == 1
    assert overlap(kept, outputs[:0]) == overlap("", outputs) == 0
    score = rng.random(400)
    made = calibrate(score, np.ones(400), max_error=0.1)
    assert (overlap(made.examples, score), overlap(made.examples, rng.random(400))) == (1, 0)


def test_coarse_confidences_of_other_examples_are_not_those_of_the_calibration():
    """As a small tree has: different inputs have equal outputs. The same examples are known again all the same."""

    def small(x):
        return "edge", round(0.3 + 0.7 * x, 3)

    def large(x):
        return "edge" if x * 1e6 % 7 > 1 else "cloud"

    inputs = np.random.default_rng(0).random(1800).tolist()
    with Router(small, large, threshold=0.5) as router:
        result = router.calibrate(inputs[:1000], max_loss=0.2)
    assert overlap(result.certificate.examples, [small(x)[1] for x in inputs[1000:]]) > 0.3
    with Router(small, large, threshold=result.certificate) as router:
        assert router.evaluate(inputs[1000:]).evaluation.seen_before == 0
        assert router.evaluate(inputs[:1000]).evaluation.seen_before == 1


@pytest.mark.parametrize("rare", [0, 1, 2, 3])
def test_a_rare_output_of_other_examples_is_not_one_of_the_calibration(rare):
    """A tree of eight leaves, of which one has an example or a few: seen once here and in the calibration, it proves nothing."""
    kept = sketch(np.arange(400) % 8)
    here = np.append(np.arange(400 - rare) % 7, [7] * rare)
    assert overlap_beyond_chance(kept, here, 400) == 0


@pytest.mark.parametrize("seed", range(10))
def test_a_part_of_the_calibration_is_known_again(seed):
    """Also a small one of many examples, as its rows are all distinct; others with rows that repeat are not."""
    rng = np.random.default_rng(seed)
    made, others = rng.random(1000), rng.random(1000)
    kept = sketch(made)
    assert overlap_beyond_chance(kept, made[:250], 1000) == 1
    assert 0.3 < overlap_beyond_chance(kept, np.append(made[:500], others[:500]), 1000) < 0.7
    few = np.append(made[:20], np.repeat(made[20:30], 8))
    assert 0 <= overlap_beyond_chance(kept, few, 10**6) <= 1
    coarse = sketch(np.round(made, 2))
    assert overlap_beyond_chance(coarse, np.round(others[:400], 2), 1000) == 0


def example(n, seed, rank=1.0, graded=False):
    rng = np.random.default_rng(seed)
    score, u = rng.random(n), rng.random(n)
    edge, cloud = u > 0.3 * (1 - rank * score), u < 0.95
    return (score, edge, cloud) if not graded else (score, edge * rng.random(n), cloud * rng.random(n) ** 0.2)


@pytest.mark.parametrize("graded", [False, True])
def test_the_area_and_its_interval(graded):
    """The area is the curve's, and its error that of resamples of the examples, or of whole groups."""
    score, edge, cloud = example(1500, 0, graded=graded)
    found = measured_area(score, edge, cloud)
    assert found.value == pytest.approx(deferral_curve(score, edge, cloud).area)
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(300), 5)
    for together, draw in (
        (None, lambda: rng.integers(0, 1500, 1500)),
        (groups, lambda: np.repeat(rng.integers(0, 300, 300) * 5, 5) + np.arange(1500) % 5),
    ):
        resampled = np.std([deferral_curve(score[i], edge[i], cloud[i]).area for i in (draw() for _ in range(400))])
        found = measured_area(score, edge, cloud, together)
        assert (found.high - found.low) / 2 / 1.96 == pytest.approx(resampled, rel=0.2)


def test_the_interval_covers_the_area():
    """The area of all there is, in about 95 of 100 draws."""
    score, edge, cloud = example(200_000, 0)
    true, draws = deferral_curve(score, edge, cloud).area, 300
    covered = 0
    for seed in range(draws):
        i = np.random.default_rng(seed).integers(0, len(score), 600)
        found = measured_area(score[i], edge[i], cloud[i])
        covered += found.low <= true <= found.high
    assert 0.88 < covered / draws < 0.99


@pytest.mark.slow
def test_few_events_make_no_interval():
    """It covers about as often where edge and cloud differ in few examples, and below 20 of them there is none."""
    rng = np.random.default_rng(0)

    def drawn(n):
        score = rng.random(n)
        return score, rng.random(n) < 0.95 + 0.05 * score**0.2, np.ones(n, bool)

    true = measured_area(*drawn(1_000_000)).value
    for n in (3000, 6000):
        found = [one for one in (measured_area(*drawn(n)) for _ in range(500)) if one.value == one.value]
        assert len(found) > 100
        assert np.mean([one.low <= true <= one.high for one in found]) > 0.9
    few = [measured_area(*drawn(2000)) for _ in range(300)]
    assert {one.value == one.value for one in few if one.events < 20} == {False}
    assert {one.value == one.value for one in few if one.events >= 20} == {True}
    assert np.isnan(measured_area(np.arange(100), np.arange(100) > 1, np.ones(100)))[:3].all()
    for freedom in (2, 5, 30):
        assert student_quantile(freedom) == pytest.approx(stats.t.ppf(0.975, freedom), rel=1e-2)


def test_a_score_by_chance_is_told():
    """With what to try, and what the best possible would defer; a good one is not, nor one of which little is known."""
    score, edge, cloud = example(3000, 0)
    with pytest.warns(UserWarning, match=r"no better than chance.*Try another score.*The best possible would defer 9 % of these"):
        found = calibrate(np.random.default_rng(1).permutation(score), edge, cloud, max_loss=0.02)
    assert found.area[1] < 0 < found.area[2]
    with pytest.warns(UserWarning, match="worse than chance"):
        calibrate(-score, edge, cloud, max_loss=0.02)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert calibrate(score, edge, cloud, max_loss=0.02).area[1] > 0
        few = np.ones(400)
        few[::50] = 0
        assert calibrate(np.random.default_rng(0).random(400), few, max_error=0.2).area is None
        assert calibrate(score, max_defer=0.2).area is None
        assert calibrate(score, np.ones(3000), max_error=0.2).area is None


@settings(max_examples=draws(100), deadline=None)
@given(st.integers(1, 9), st.integers(0, 2**32 - 1), st.sampled_from([0.05, 0.2, 0.5]), st.booleans())
def test_the_best_possible(n, seed, value, graded):
    """No choice of what to defer stays within the limit with fewer."""
    rng = np.random.default_rng(seed)
    edge, cloud = rng.random((2, n)) if graded else rng.integers(0, 2, (2, n)).astype(float)
    for kind in ("max_loss", "max_error"):
        best = n
        for kept in itertools.product([False, True], repeat=n):
            keep = np.array(kept)
            lost = (keep * (cloud - edge)).sum() / n if kind == "max_loss" else (1 - edge)[keep].mean() if keep.any() else 0
            if lost <= value + 1e-12:
                best = min(best, n - keep.sum())
        assert round(least_deferral(kind, value, edge, cloud) * n) == best


def test_the_interval_of_the_deferral_rate():
    """It covers the true rate at every threshold at once, of classes and of groups too, in all but 5 % of draws."""
    rng, draws = np.random.default_rng(0), 300
    grid = np.linspace(0, 1, 101)
    missed = np.zeros(3)
    for _ in range(draws):
        u = rng.random(400)
        missed[0] += np.abs((u[:, None] < grid).mean(0) - grid).max() > spread(400, 0.05)
        label = rng.integers(0, 4, 400)
        # the worst thresholds of four classes: for each the one that errs most to one side
        errs = np.array([((u[:, None] < grid) & (label == c)[:, None]).mean(0) - grid / 4 for c in range(4)])
        missed[1] += max(errs.max(1).sum(), -errs.min(1).sum()) > spread(400, 0.05, classes=4)
        base = rng.random(200)
        frames = np.where(rng.random((200, 5)) < 0.8, base[:, None], rng.random((200, 5)))
        missed[2] += np.abs((frames[:, :, None] < grid).mean((0, 1)) - grid).max() > spread(200, 0.05, grouped=True)
    assert (missed <= draws * 0.1).all(), missed
