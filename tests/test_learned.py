"""The learned score: what it finds, when it falls back, and that it comes back from its file as it was."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from draws import draws
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeroute import BadReply, CallableModel, ModelError, ModelMissing, PolicyError, Router, StoreError
from edgeroute.confidence import (
    Learned,
    Reader,
    agreement,
    auto,
    deferral_curve,
    energy,
    entropy,
    fit,
    fit_text,
    msp,
    quantile,
)
from edgeroute.confidence import learned_score_features as f
from edgeroute.tools.measure.score_fitting import fit_foreign, irls

finite = st.integers(-3200, 3200).map(lambda v: v / 64)  # sums of these are exact, so that what ties goes on to
anything = st.floats(width=32)


def specialist(n, seed=0, classes=6):
    """An edge that is sure of half the classes and right, sure of the others and often wrong; the cloud is mostly right."""
    rng = np.random.default_rng(seed)
    z = rng.normal(size=(n, classes))
    predicted = rng.integers(0, classes, n)
    z[np.arange(n), predicted] += rng.uniform(2, 6, n)
    predicted = z.argmax(1)
    edge = rng.random(n) < np.where(predicted < classes // 2, 0.97, 0.5)
    return z, edge, rng.random(n) < 0.9


def plain(n, seed=0, classes=6):
    """An edge that is right as often as its msp says, on every class alike; the cloud is right now and then where it is not."""
    rng = np.random.default_rng(seed)
    z = 2.5 * rng.normal(size=(n, classes))
    edge = rng.random(n) < msp(z)
    return z, edge, edge | (rng.random(n) < 0.6)


def texts(n, seed=0):
    """Texts whose first token tells whether the edge is right."""
    rng = np.random.default_rng(seed)
    first = -rng.exponential(1, n)
    edge = rng.random(n) < np.exp(first)
    return [np.append(at, -rng.exponential(1, rng.integers(3, 20))) for at in first], edge, np.ones(n, bool)


def area(score, edge, cloud):
    return deferral_curve(score, edge, cloud).area


# ------------------------------------------------------------------------------------------ the curve
def test_the_area_of_chance_and_of_an_oracle():
    """An oracle's area is 1, the worst order's -1, one score for all is a random choice and has 0."""
    edge, cloud = np.array([1, 1, 0, 0, 1, 0]), np.array([1, 0, 1, 1, 1, 0])
    gain = cloud - edge
    assert area(-gain, edge, cloud) == pytest.approx(1)
    assert area(gain, edge, cloud) == pytest.approx(-1)
    assert area(np.zeros(6), edge, cloud) == pytest.approx(0)
    assert math.isnan(area(np.arange(6), edge, edge))


def test_the_points_of_the_curve():
    """It begins at the edge's accuracy, ends at the cloud's, takes equal scores together and NaN first."""
    curve = deferral_curve([0.2, math.nan, 0.2, 0.9], [0, 1, 1, 1], [1, 0, 1, 1])
    assert curve.deferred == pytest.approx([0, 0.25, 0.75, 1])
    assert curve.accuracy == pytest.approx([0.75, 0.5, 0.75, 0.75])


@settings(max_examples=draws(200), deadline=None)
@given(st.lists(st.tuples(st.integers(0, 4), st.booleans(), st.booleans()), min_size=1, max_size=40))
def test_the_area_is_that_under_the_points(examples):
    """The area equals the trapezoids between the points and the straight line, over an oracle's; it is never above 1."""
    score, edge, cloud = map(np.array, zip(*examples, strict=True))

    def under(s):
        x, y, _ = deferral_curve(s, edge, cloud)
        return float(((y[1:] + y[:-1]) / 2 * np.diff(x)).sum()) - (y[0] + y[-1]) / 2

    best = under(edge.astype(float) - cloud)
    curve = deferral_curve(score, edge, cloud)
    if best > 1e-12:
        assert curve.area == pytest.approx(under(score) / best)
        assert curve.area <= 1 + 1e-9
    else:
        assert math.isnan(curve.area)


def test_the_area_is_the_mean_over_orders_of_ties():
    """Random numbers that break the ties give the tied area on average."""
    rng = np.random.default_rng(0)
    score, edge, cloud = rng.integers(0, 3, 60), rng.random(60) < 0.5, rng.random(60) < 0.7
    broken = [area(score + rng.random(60) / 2, edge, cloud) for _ in range(4000)]
    assert np.mean(broken) == pytest.approx(area(score, edge, cloud), abs=5 * np.std(broken) / 4000**0.5)


@pytest.mark.parametrize(
    "arguments", [([], [], []), ([1.0], [1], [0, 1]), ([1.0], [2], [1]), ([1.0], [math.nan], [1]), ([[1.0]], [1], [1])]
)
def test_a_curve_of_nothing(arguments):
    """No examples, other lengths, and answers that are not from 0 to 1 are refused."""
    with pytest.raises(PolicyError, match=r"expected|from 0 to 1"):
        deferral_curve(*arguments)


# ------------------------------------------------------------------------------------------ regression
def test_known_weights_are_recovered():
    """From 40,000 simulated examples each weight comes back, within five of its standard errors."""
    rng = np.random.default_rng(0)
    true = np.array([-1.0, 0.8, -0.5, 0.0, 1.5])
    x = np.column_stack([np.ones(40_000), rng.normal(size=(40_000, 4))])
    p = 1 / (1 + np.exp(-x @ true))
    found = irls(x, (rng.random(40_000) < p).astype(float), np.full(5, 1e-6))
    errors = np.sqrt(np.diag(np.linalg.inv((x.T * (p * (1 - p))) @ x)))
    assert (np.abs(found - true) < 5 * errors).all()


def test_the_top_of_the_likelihood_is_found():
    """At the weights found, the slope of the penalised likelihood is zero."""
    rng = np.random.default_rng(1)
    x = np.column_stack([np.ones(300), rng.normal(size=(300, 6)) * 10.0 ** np.arange(-3, 3)])
    y, penalty = (rng.random(300) < 0.2).astype(float), np.array([0.01, 0.01, 3, 3, 3, 3, 3.0])
    w = irls(x, y, penalty)
    slope = x.T @ (y - 1 / (1 + np.exp(-x @ w))) - penalty * w
    assert np.abs(slope).max() < 1e-3


@pytest.mark.parametrize("seed", range(30))
def test_a_newton_step_may_be_too_long(seed):
    """Where outliers and rare events send full steps downhill, the top is found all the same."""
    rng = np.random.default_rng(seed)
    x = np.column_stack([np.ones(60), 3 * rng.standard_cauchy((60, 2))])
    y, penalty = (rng.random(60) < 0.05).astype(float), np.full(3, 0.01)
    y[np.abs(x[:, 1]).argmax()] = 1
    w = irls(x, y, penalty)
    assert np.abs(x.T @ (y - (1 + np.tanh(x @ w / 2)) / 2) - penalty * w).max() < 1e-2


@pytest.mark.parametrize("scale", [1e-3, 1, 1e3])
def test_separable_examples_give_finite_weights(scale):
    """What can be told apart without error, by the free column too, does not let a weight grow for ever."""
    x = np.column_stack([np.ones(200), np.linspace(-1, 1, 200) * scale])
    w = irls(x, (x[:, 1] > 0).astype(float), np.array([0.01, 0.01]))
    assert np.isfinite(w).all()
    assert w[1] > 0


def test_the_probabilities_are_those_simulated():
    """Where harm follows the features, the score found is that of the true probabilities, to the sampling error."""
    rng = np.random.default_rng(2)
    z = 2 * rng.normal(size=(20_000, 4))
    x = f.logit_features(z)
    harm = 1 / (1 + np.exp(0.5 + 0.8 * x[:, 0] - 1.5 * x[:, -1]))  # more where the last class is predicted
    wrong = rng.random(20_000) < harm
    found = fit(z, ~wrong, np.ones(20_000, bool)).many(z)
    assert np.abs(found - (1 - harm) / 2).mean() < 0.01


def test_the_mean_score_is_what_happened():
    """On the examples it was fitted to, the mean of P(harm) - P(win) is the share of harms less that of wins."""
    for z, edge, cloud in (specialist(1_000), plain(1_000)):
        expected = (cloud.astype(float) - edge).mean()
        assert 1 - 2 * fit(z, edge, cloud).many(z).mean() == pytest.approx(expected, abs=1e-3)


def test_one_example_of_a_class_decides_little():
    """A class predicted once, in a harm, is not held for harmful ever after."""
    z, edge, cloud = specialist(1_000)
    z[:, 0] = z.min(1)
    z[0], edge[0], cloud[0] = np.roll(z[1], -z[1].argmax()), False, True
    assert fit(z, edge, cloud)(z[0]) > 0.3


# -------------------------------------------------------------------------------------------- features
@settings(max_examples=draws(100), deadline=None)
@given(st.lists(st.lists(finite, min_size=5, max_size=5), min_size=1, max_size=6), st.integers(-100, 100))
def test_features_are_their_formulas_and_a_constant_changes_none(rows, constant):
    """Each column is what it says, one row or many, and logits that are all higher by a constant look the same."""
    z = np.array(rows)
    found = f.logit_features(z)
    assert f.logit_features(z + constant) == pytest.approx(found, abs=1e-6)
    p, u = np.exp(z - z.max(1, keepdims=True)), z - z.mean(1, keepdims=True)
    p /= p.sum(1, keepdims=True)
    ordered = np.sort(z, 1)
    formulas = [
        np.log1p(np.exp(ordered[:, -2] - ordered[:, -1])),
        1 - entropy(z),
        ordered[:, -2] - energy(z),
        u.max(1),
        np.linalg.norm(u, axis=1),
    ]
    low = np.maximum(z - z.max(1, keepdims=True), f.FLOOR)
    if (low == z - z.max(1, keepdims=True)).all():
        assert found[:, 1:6] == pytest.approx(np.stack(formulas, 1), abs=1e-6)
    unsaturated = p.max(1) < 1 - 1e-6
    logit = np.log(p.max(1)[unsaturated] / (1 - p.max(1)[unsaturated]))
    assert found[unsaturated, 0] == pytest.approx(logit, rel=1e-6, abs=1e-6)
    assert found[:, 6:11] == pytest.approx(p, abs=1e-12)
    assert found[:, 11:].argmax(1).tolist() == z.argmax(1).tolist()
    for row, expected in zip(z, found, strict=True):
        vector, predicted = f.of_row(row.tolist())
        assert vector == pytest.approx(expected[:11], abs=1e-12)
        assert expected[11 + predicted] == 1


def test_distance_from_what_is_known():
    """The distance is small at a class's mean, large far from all, and one row has what many have."""
    z, edge, _ = specialist(2_000)
    foreign = fit_foreign(z, edge)
    u = z - z.mean(1, keepdims=True)
    centre = u[edge & (z.argmax(1) == 0)].mean(0)
    near, far = foreign.distance(np.stack([centre, np.eye(6)[0] * 40]))
    assert near < 0.5
    assert far > 5
    assert foreign.distance_of(u[0].tolist()) == pytest.approx(foreign.distance(u[:1])[0])
    assert np.isfinite(fit_foreign(z, np.zeros(2_000, bool)).distance(u)).all()
    assert np.isfinite(fit_foreign(z[:1], edge[:1]).distance(u)).all()


@settings(max_examples=draws(100), deadline=None)
@given(st.lists(st.floats(-60, 0), min_size=1, max_size=30))
def test_features_of_texts(logprobs):
    """Quantiles as numpy has them, mean, least, first, length."""
    expected = [*np.quantile(logprobs, (0.1, 0.25, 0.5)), np.mean(logprobs), min(logprobs), logprobs[0], math.log(len(logprobs))]
    assert f.text_features(logprobs) == pytest.approx(expected, abs=1e-9)
    assert f.text_features(np.array(logprobs)) == f.text_features(logprobs)


def test_texts_that_have_no_features():
    """No tokens and NaN among them give NaN; what is impossible counts as hardly possible."""
    assert np.isnan(f.text_features([])).all()
    assert np.isnan(f.text_features([-1.0, math.nan])).all()
    assert f.text_features([-math.inf, -math.inf])[:6] == pytest.approx([f.FLOOR] * 6)


# ------------------------------------------------------------------------------------- what is learned
def test_where_the_edge_is_a_specialist():
    """The area is larger than msp's by at least .3, on examples that it was not fitted to."""
    learned = fit(*specialist(2_000))
    z, edge, cloud = specialist(10_000, seed=1)
    assert learned.name == "learned"
    assert learned.chosen_because.startswith("learned, area 0.")
    assert area(learned.many(z), edge, cloud) > area(msp(z), edge, cloud) + 0.3


def test_where_the_cloud_is_a_specialist():
    """What the cloud cannot do stays on the edge: the area is larger than msp's by at least .3."""

    def examples(n, seed):
        rng = np.random.default_rng(seed)
        z, _, _ = plain(n, seed)
        return z, rng.random(n) < 0.75, rng.random(n) < np.where(z.argmax(1) < 3, 0.98, 0.3)

    learned = fit(*examples(2_000, 0))
    z, edge, cloud = examples(10_000, 1)
    assert area(learned.many(z), edge, cloud) > area(msp(z), edge, cloud) + 0.3


@pytest.mark.parametrize("case", [plain, pytest.param(specialist, marks=pytest.mark.slow)])
def test_auto_loses_nothing(case):
    """Over 12 draws of 2,000, the mean area of auto is not below that of msp, and near the better of msp and learned."""
    areas = []
    test, edge, cloud = case(10_000, seed=99)
    for seed in range(12):
        drawn = case(2_000, seed)
        areas.append([area(score, edge, cloud) for score in (msp(test), fit(*drawn).many(test), auto(*drawn).many(test))])
    by_msp, by_learned, by_auto = np.mean(areas, 0)
    assert by_auto >= by_msp - 0.002
    assert by_auto >= max(by_msp, by_learned) - 0.02


def test_auto_says_why():
    """It is the fit with a weight by the events there were, and the rest is msp's; the figures are told."""
    z, edge, cloud = specialist(1_000)
    score, whole = auto(z, edge, cloud), fit(z, edge, cloud)
    events = int((edge != cloud).sum())
    assert (score.data["harm"], score.data["win"]) == (whole.data["harm"], whole.data["win"])
    assert score.data["blend"]["weight"] == pytest.approx(events / (events + 60))
    share = round(100 * events / (events + 60))
    assert score.chosen_because.startswith(f"learned, {share} % of it and {100 - share} % of msp, area 0.")
    assert "blend" not in whole.data


def test_auto_averages_ranks():
    """Its ranking is that of the two scores' ranks among the examples of the fit, averaged."""
    z, edge, cloud = specialist(1_000)
    score, whole = auto(z, edge, cloud), fit(z, edge, cloud)
    weight = score.data["blend"]["weight"]
    test, *right = specialist(2_000, seed=1)

    def rank(of, among):
        return np.searchsorted(np.sort(among), of) / len(among)

    ranked = (1 - weight) * rank(msp(test), msp(z)) + weight * rank(whole.many(test), whole.many(z))
    assert score.many(test) == pytest.approx(ranked, abs=0.02)
    assert area(score.many(test), *right) == pytest.approx(area(ranked, *right), abs=0.003)


def test_auto_tells_apart_what_no_example_was_like():
    """Beyond the lowest and the highest of the examples scores still differ."""
    z, edge, cloud = specialist(1_000)
    score = auto(z, edge, cloud)
    far = np.zeros((4, 6))
    far[:, 0] = 30, 40, 60, 80
    found = score.many(np.concatenate([far, -far]))
    assert len(set(found[:4])) == 4
    assert ((found >= 0) & (found <= 1)).all()


def test_features_for_foreign_inputs():
    """Inputs that no class looks like, and that the edge gets wrong while it is sure, are told by their distance."""

    def examples(n, seed):
        rng = np.random.default_rng(seed)
        z = rng.normal(size=(n, 6))
        k = rng.integers(0, 6, n)
        z[np.arange(n), k] += 6
        foreign = rng.random(n) < 0.3
        z[foreign, (k[foreign] + 1) % 6] -= 12
        return z, ~foreign, np.ones(n, bool)

    z, edge, cloud = examples(4_000, 1)
    score = fit(*examples(1_000, 0), ood=True)
    assert "distance" in score.data["features"]
    assert area(score.many(z), edge, cloud) > area(msp(z), edge, cloud) + 0.1
    assert [score(row) for row in z[:20]] == pytest.approx(score.many(z[:20]))


def test_texts():
    """What the first token tells is found; untrained, and with too few examples, it is the 10 % quantile."""
    score = fit_text(*texts(1_500))
    logprobs, edge, cloud = texts(3_000, seed=1)
    assert area(score.many(logprobs), edge, cloud) > area([quantile(one) for one in logprobs], edge, cloud) + 0.2
    assert score(("a text", logprobs[0])) == score(logprobs[0]) == score.many(logprobs)[0]
    assert math.isnan(score([]))
    few = fit_text(*(part[:20] for part in texts(20)))
    assert few.name == "quantile"
    assert few(logprobs[0]) == few.many(logprobs)[0] == pytest.approx(quantile(logprobs[0]))


def test_it_is_a_score_for_the_reader():
    """A reader takes it as any function: for logits, for several outputs, and for texts."""
    z, edge, cloud = specialist(1_000)
    score = fit(z, edge, cloud)
    assert Reader(score).read_one(z[:1]).confidence == score(z[0]) == score(z[0].tolist()) == score({"logits": z[0], "box": None})
    text = fit_text(*texts(500))
    assert Reader(text).read_one([("a text", [-0.5, -0.1])])[:2] == ("a text", text([-0.5, -0.1]))


@pytest.mark.parametrize("form", ["by class", "beside a label"])
def test_a_score_is_learned_from_probabilities_by_class(form):
    """As scikit-learn, LightGBM and XGBoost give them: from their logarithms, at the calibration and in use."""
    z, edge_right, cloud_right = specialist(1000)
    said = z.argmax(1)
    right = np.where(edge_right, said, (said + 1) % 6)
    told = np.where(cloud_right, right, (right + 1) % 6)
    p = np.exp(z - z.max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)

    def by_class(i):
        return dict(enumerate(p[i].tolist()))

    def labelled(i):
        return int(said[i]), p[i]

    def cloud(i):
        return int(told[i])

    edge = by_class if form == "by class" else CallableModel(labelled, kind="label+probabilities")
    examples = [*range(1000)]
    with Router(edge, cloud, threshold=0.5) as router:
        result = router.calibrate(examples, right.tolist(), max_loss=0.1, score="auto")
    assert result.score.name == "learned"
    with Router(edge, cloud, threshold=result) as router:
        used = [router.infer(i, mode="only_edge").confidence for i in examples[:20]]
    assert used == pytest.approx(result.score.many(np.log(p[:20])).tolist())


def test_outputs_of_another_model():
    """Another number of classes is a bad reply, for one and for many."""
    score = fit(*specialist(500))
    with pytest.raises(BadReply, match="7 outputs, and the score was fitted to 6"):
        score(np.zeros(7))
    for wrong in (np.zeros((2, 7)), np.zeros(6)):
        with pytest.raises(BadReply, match=r"fitted to \[n, 6\]"):
            score.many(wrong)


@pytest.mark.parametrize("classes", [2, 64, 65, 129])
def test_few_and_many_classes(classes):
    """One row has the score that it has among many, in plain Python, by numpy, and without features for each class."""
    z, edge, cloud = specialist(400, classes=classes)
    score = fit(z, edge, cloud)
    assert score.name == "learned"
    assert [score(row) for row in z[:50]] == pytest.approx(score.many(z[:50]), abs=1e-12)


FITTED = (
    fit(*specialist(500)), fit(*specialist(500), ood=True), fit(*(part[:9] for part in specialist(9))), auto(*specialist(500)),
)  # fmt: skip


@settings(max_examples=draws(200), deadline=None)
@given(st.lists(anything, min_size=6, max_size=6), st.sampled_from(FITTED))
def test_one_row_and_many_whatever_the_logits(row, score):
    """The score is 0..1, or NaN where a logit is NaN or the largest is infinite; for one row and among many alike."""
    z = np.array(row)
    one, among = score(z), float(score.many(z[None])[0])
    assert one == pytest.approx(among, abs=1e-9, nan_ok=True)
    assert math.isnan(one) == (np.isnan(z).any() or not np.isfinite(z.max()))
    assert math.isnan(one) or 0 <= one <= 1


@settings(max_examples=draws(100), deadline=None)
@given(st.lists(finite, min_size=6, max_size=6), st.integers(-100, 100))
def test_a_constant_added_to_all_logits(row, constant):
    """It changes nothing."""
    assert FITTED[0]([v + constant for v in row]) == pytest.approx(FITTED[0](row), abs=1e-6)


@settings(max_examples=draws(40), deadline=None)
@given(st.integers(0, 2**32), st.integers(50, 120), st.integers(2, 4), st.sampled_from([0.0, 1.0, 1e3, 1e30]), st.booleans())
def test_whatever_the_examples_scores_are_finite(seed, n, classes, spread, ood):
    """Random answers, tied and enormous logits: no weight and no score but is finite, and what is saved can be loaded."""
    rng = np.random.default_rng(seed)
    z = np.round(rng.normal(size=(n, classes)), rng.integers(0, 3)) * spread
    right = rng.random((2, n)) < rng.random((2, 1))
    for score in (fit(z, *right, ood=ood), auto(z, *right, ood=ood)):
        assert np.isfinite(score.many(z)).all()
        assert Learned(json.loads(json.dumps(score.data))).fingerprint == score.fingerprint


def test_the_same_seed_gives_the_same_score():
    """Fitting again gives the same file; another seed divides the examples otherwise."""
    assert fit(*specialist(500)).fingerprint == FITTED[0].fingerprint
    assert fit(*specialist(500), seed=1).chosen_because != FITTED[0].chosen_because


# ------------------------------------------------------------------------------------------- falling back
def test_too_little_to_learn_from():
    """Few examples, no harms, hardly any difference, outputs all alike: it is msp, and says which."""
    z, edge, cloud = specialist(200)
    cases = {
        "fewer than 50 examples": (z[:49], edge[:49], cloud[:49]),
        "the cloud is never right where the edge is wrong": (z, np.ones(200), cloud),
        "edge and cloud hardly differ: 19 harms and 1 wins": (z, np.r_[np.zeros(19), np.ones(181)], np.r_[np.ones(199), 0]),
        "all outputs are alike": (np.tile(z[:1], (200, 1)), edge, cloud),
    }
    for why, given_ in cases.items():
        for score in (fit(*given_), auto(*given_)):
            assert score.name == "msp"
            assert why in score.chosen_because
            assert score.many(z).tolist() == msp(z).tolist()
            assert score(z[0]) == pytest.approx(msp(z[0]))


def test_rows_that_cannot_be_used():
    """Rows with NaN or inf are left out, that is told, and the rest gives what it would have given alone."""
    z, edge, cloud = specialist(500)
    spoilt = np.concatenate([z, np.full((2, 6), np.nan), np.full((1, 6), np.inf)])
    answers = (np.append(part, [True] * 3) for part in (edge, cloud))
    score = fit(spoilt, *answers)
    assert "without 3 that hold NaN or inf" in score.chosen_because
    assert score.data["harm"] == FITTED[0].data["harm"]
    assert "without 500 that" in fit(np.full((500, 6), np.nan), edge, cloud).chosen_because


def test_harms_alone_or_wins_alone():
    """With too few of one kind its share is the same everywhere, and the order rests on the other kind."""
    z, edge, _ = specialist(1_000)
    by_harm, by_win = fit(z, edge, np.ones(1_000)), fit(z, np.r_[np.zeros(3), np.ones(997)], np.r_[np.ones(3), ~edge[3:]])
    assert not any(by_harm.data["win"][1:])
    assert any(by_harm.data["harm"][1:])
    assert not any(by_win.data["harm"][1:])
    assert any(by_win.data["win"][1:])


def test_separable_harm():
    """Harm that a class tells without error is found, and the weights are finite."""
    z, _, _ = specialist(400)
    edge = z.argmax(1) > 0
    score = fit(z, edge, np.ones(400))
    assert np.isfinite([score.data["harm"], score.data["win"]]).all()
    assert score.many(z)[edge].min() > score.many(z)[~edge].max()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"features": np.zeros(6)}, "expected .n, classes."),
        ({"features": np.zeros((500, 1))}, "at least two classes"),
        ({"edge_correct": np.ones(499)}, r"answers \[499\] and \[500\]"),
        ({"cloud_correct": np.full(500, 1.5)}, "from 0 to 1"),
        ({"folds": 1}, "expected 2 to 50 folds"),
        ({"ridge": ()}, "positive numbers"),
        ({"ridge": (0.0, 3.0)}, "positive numbers"),
        ({"ridge": (math.nan,)}, "positive numbers"),
    ],
)
def test_arguments_that_are_wrong(change, message):
    """Each is refused in words."""
    z, edge, cloud = specialist(500)
    with pytest.raises(PolicyError, match=message):
        fit(**{"features": z, "edge_correct": edge, "cloud_correct": cloud} | change)


# -------------------------------------------------------------------------------------------------- files
@pytest.mark.parametrize("score", [*FITTED, fit_text(*texts(500)), fit_text(*texts(9))], ids=lambda score: score.name)
def test_a_score_comes_back_from_its_file(score, tmp_path):
    """The same scores bit for bit, the same name, reason and fingerprint, and nothing else is left beside it."""
    path = tmp_path / "edge.score.json"
    path.write_text("what was there before")
    score.save(path)
    back = Learned.load(str(path))
    outputs = texts(50)[0] if back.classes == 0 else specialist(50)[0]
    assert back.many(outputs).tobytes() == score.many(outputs).tobytes()
    assert (back.name, back.chosen_because, back.fingerprint) == (score.name, score.chosen_because, score.fingerprint)
    assert [p.name for p in tmp_path.iterdir()] == [path.name]
    assert len({each.fingerprint for each in FITTED}) == len(FITTED)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"version": 2}, "is of version 2, and this edgeroute knows version 1"),
        ({"name": "best"}, "there is no score 'best' of 6 classes"),
        ({"name": "quantile"}, "there is no score 'quantile' of 6 classes"),
        ({"classes": 1}, "1 classes"),
        ({"classes": 6.0}, "6.0 classes"),
        ({"classes": 7}, "7 classes|features are not those"),
        ({"features": ["msp"]}, "features are not those"),
        ({"harm": [1.0]}, "broken"),
        ({"harm": [1.0], "win": [1.0]}, r"\(2, 1\) weights for 20 features"),
        ({"harm": None}, "broken"),
        ({"harm": [math.inf] + [0.0] * 20}, "a weight is not finite"),
        ({"harm": [10**400] + [0.0] * 20}, "broken"),
        ({"foreign": {"whiten": [[1.0]], "means": [[1.0]]}}, "for 6 classes"),
        ({"foreign": {"whiten": np.eye(6).tolist(), "means": []}}, "for 6 classes"),
        ({"foreign": {"whiten": np.full((6, 6), math.nan).tolist(), "means": [[0.0] * 6]}}, "not finite"),
        ({"foreign": {}}, "KeyError"),
    ],
)
def test_a_file_that_was_changed(change, message, tmp_path):
    """Another version, a part that does not fit, a number that is none: refused, with the file's name."""
    path = tmp_path / "score.json"
    path.write_text(json.dumps(FITTED[1].data | change))
    with pytest.raises(ModelError, match=message) as caught:
        Learned.load(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    "change",
    [
        *({"columns": columns} for columns in ("", "x", [], {}, [1], None, ["a", "b"])),
        *({"widths": widths} for widths in ([0], [-1], [True], [1.0], ["1"], {}, [[]])),
        {"columns": [], "widths": []},
    ],
)
def test_a_table_that_was_changed(change, tmp_path):
    """Columns that are no names, or have no widths: refused, with and without a fit."""
    path = tmp_path / "score.json"
    data = {"version": 1, "name": "base", "chosen_because": "", "classes": 0, "columns": ["a"], "widths": [1], "base": "a"}
    path.write_text(json.dumps(data))
    assert Learned.load(path)({"a": 0.5}) == 0.5
    path.write_text(json.dumps(data | change))
    with pytest.raises(ModelError, match="is broken"):
        Learned.load(path)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"null", b"7", b"\xff\xfe", b"{}", b"[" * 100_000])
def test_a_file_that_is_something_else(content, tmp_path):
    """Empty, cut off, not an object, not text: refused, and nothing else is raised."""
    path = tmp_path / "score.json"
    path.write_bytes(content)
    with pytest.raises(ModelError, match=r"score\.json"):
        Learned.load(path)


def test_a_file_that_is_cut_off_anywhere(tmp_path):
    """Whatever is missing at its end is noticed."""
    path = tmp_path / "score.json"
    FITTED[2].save(path)
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(ModelError):
            Learned.load(path)


def test_no_file_and_no_place_for_one(tmp_path):
    """There is none, it is a folder, its folder is not there: each has its error."""
    with pytest.raises(ModelMissing, match="no score at"):
        Learned.load(tmp_path / "none.json")
    with pytest.raises(ModelError, match="cannot be read"):
        Learned.load(tmp_path)
    with pytest.raises(StoreError, match="cannot be written"):
        FITTED[0].save(tmp_path / "none" / "score.json")


# --------------------------------------------------------------------------------------------- agreement
def test_agreement():
    """Models that say the same are as sure as they are; that contradict each other, less; NaN stays NaN."""
    a, b = np.array([8.0, 0, 0]), np.array([0, 8.0, 0])
    assert agreement([a, a]) == pytest.approx(msp(a))
    assert agreement([a, b]) == pytest.approx(0.5, abs=0.01)
    assert agreement([a, a, b], votes=True) == pytest.approx(1 - (math.log(3) - 2 / 3 * math.log(2)) / math.log(3))
    assert [agreement([a, a], votes=True), agreement([a, b], votes=True), agreement([a], votes=True)] == pytest.approx([1, 0, 1])
    assert agreement(np.zeros((3, 5, 4))).shape == agreement(np.zeros((3, 5, 4)), votes=True).shape == (5,)
    for votes in (False, True):
        assert math.isnan(agreement([a, [math.nan, 0, 0]], votes=votes))


@settings(max_examples=draws(100), deadline=None)
@given(st.lists(st.lists(finite, min_size=3, max_size=3), min_size=1, max_size=5), st.booleans(), st.randoms())
def test_agreement_is_a_share_and_knows_no_order(models, votes, random):
    """It is 0..1, whichever model comes first."""
    found = float(agreement(models, votes=votes))
    assert -1e-9 <= found <= 1 + 1e-9
    random.shuffle(models)
    assert float(agreement(models, votes=votes)) == pytest.approx(found)
