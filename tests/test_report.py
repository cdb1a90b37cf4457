"""The numbers of an evaluation against the plain way of counting, and its page: whole, closed, and readable on a phone."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
import sys
from math import inf, nan

import numpy as np
import pytest
from draws import slow
from hypothesis import given, settings
from hypothesis import strategies as st
from lazily import Later
from pages import Closed

from edgeroute import RuntimeMissing
from edgeroute.confidence import Certificate, calibrate, msp
from edgeroute.core.policy_egress_and_options import Terms
from edgeroute.tools.measure.certification_and_verdicts import Verdict, verdicts
from edgeroute.tools.measure.report.figures import INK
from edgeroute.tools.measure.report.numbers_verdicts_and_table_rows import duration, level, methods, size, verdict
from edgeroute.tools.measure.report.report_pages_and_results import EvaluationResult, page, style
from edgeroute.tools.measure.threshold_evaluation import (
    Cost,
    Evaluation,
    Examples,
    Names,
    bins,
    calibration_error,
    share,
)
from edgeroute.tools.state_colours_and_marks import STATES, css

stats = Later("scipy.stats")
CLASSES = ["a", "b", "c"]
BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
rows = st.lists(
    st.tuples(
        st.sampled_from([0.1, 0.2, 0.5, 0.7, 1.0, nan]),
        st.sampled_from(CLASSES),
        st.sampled_from(CLASSES),
        st.sampled_from(CLASSES),
    ),
    min_size=1,
    max_size=30,
)


def examples(rows, *, labels=True, cloud=True):
    score, said, remote, right = (list(column) for column in zip(*rows, strict=True))
    n = len(rows)
    return Examples(
        score=np.array(score, float),
        edge=said,
        cloud=remote if cloud else None,
        labels=right if labels else None,
        outputs=None,
        edge_s=np.linspace(0.001, 0.002, n),
        cloud_s=np.linspace(0.08, 0.1, n) if cloud else None,
        sent_bytes=100 * n * cloud,
        received_bytes=10 * n * cloud,
        usd=0.001 * n * cloud,
    )


def promised(kind="max_loss", value=0.1, *, sure=0.95, agreement=False, thresholds=None):
    return Certificate(
        kind,
        value,
        sure,
        "CP-harm",
        agreement,
        500,
        "2026-01-02",
        0.5,
        thresholds or {},
        0.2,
        (0.15, 0.25),
        {},
        0.0,
        "msp",
        {},
        {},
    )


@pytest.fixture(scope="module")
def real(request):
    """The shipped pair on half of its validation images, by a threshold from the other half."""
    folder = request.getfixturevalue("fashion")
    names = json.loads((folder / "edge.int8.json").read_text())["labels"]
    with np.load(folder / "validation.npz") as kept:
        edge, cloud, labels = kept["edge_logits"], kept["cloud_logits"], kept["labels"]
    half, rng = np.arange(len(labels)) % 2 == 0, np.random.default_rng(0)
    certificate = calibrate(
        msp(edge)[half], (edge.argmax(1) == labels)[half], (cloud.argmax(1) == labels)[half], max_loss=0.01, name="msp"
    )
    n = int((~half).sum())
    found = Examples(
        msp(edge)[~half], *([names[i] for i in one[~half]] for one in (edge.argmax(1), cloud.argmax(1), labels)), edge[~half],
        rng.lognormal(-9, 0.2, n), rng.lognormal(-2.5, 0.4, n), 1000 * n, 300 * n, 1e-4 * n,
    )  # fmt: skip
    said = Names("fashion-edge", "http://localhost/x", "msp", "policy.toml", "test.npz", "2026-11-24", 78_498)
    return Evaluation(found, certificate.threshold, {}, certificate, "", said, Terms(joules_per_call=0.5), None, 0.01)


# ---------------------------------------------------------------------------------------------------- shares
@settings(deadline=None)
@given(st.integers(0, 60).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))), st.sampled_from([0.05, 0.01]))
def test_a_share_has_the_exact_interval(counts, risk):
    """Low and high are those of Clopper and Pearson, as scipy has them; of nothing, all is possible."""
    k, n = counts
    found = share(np.arange(n) < k, risk)
    assert (found.found, found.of) == (k, n)
    if n:
        exact = stats.binomtest(k, n).proportion_ci(1 - risk)
        assert (found.low, found.high) == pytest.approx((exact.low, exact.high), abs=1e-6)
        assert found.value == k / n
    else:
        assert (found.low, found.high) == (0, 1)
        assert np.isnan(found.value)


@settings(deadline=None)
@given(rows, st.integers(1, 8))
def test_bins_part_no_equal_scores(rows, most):
    """Each scored example is in one bin, equal scores in the same, and the bins rise."""
    score, right = np.array([row[0] for row in rows]), np.array([row[1] == row[3] for row in rows])
    found = bins(score, right, most)
    known = ~np.isnan(score)
    assert sum(one.right.of for one in found) == known.sum()
    assert sum(one.right.found for one in found) == right[known].sum()
    assert len(found) <= most
    means = [one.score for one in found]
    assert means == sorted(set(means))
    left = np.sort(score[known])
    for one in found:
        mine, left = left[: one.right.of], left[one.right.of :]
        assert one.score == pytest.approx(mine.mean())
        assert not left.size or mine[-1] < left[0]


def test_bins_are_of_the_same_size_and_their_error_is_counted():
    """Without ties the bins differ by one at most; the error is the mean distance from the diagonal."""
    score = np.random.default_rng(1).random(1000)
    right = np.arange(1000) % 4 > 0
    found = bins(score, right, 15)
    assert len(found) == 15
    assert {one.right.of for one in found} <= {66, 67}
    parts = np.array_split(np.argsort(score), np.cumsum([one.right.of for one in found])[:-1])
    error = sum(len(part) * abs(score[part].mean() - right[part].mean()) for part in parts) / 1000
    assert calibration_error(found) == pytest.approx(error)
    assert np.isnan(calibration_error([]))


# ------------------------------------------------------------------------------------------------ evaluation
@settings(deadline=None)
@given(rows, st.sampled_from([0.0, 0.2, 0.6, inf]), st.booleans(), st.booleans(), st.booleans())
def test_numbers_by_hand(rows, threshold, unsure, labels, own):
    """Accuracies, deferral and classes are what one counts example by example, with or without labels."""
    thresholds = {"a": 0.7, "b": inf} if own else {}
    found = Evaluation(examples(rows, labels=labels), threshold, thresholds, accept_unsure=unsure)
    total = {"n": 0, "edge": 0, "cloud": 0, "cascade": 0, "deferred": 0}
    classes = {}
    for score, edge, cloud, label in rows:
        right = label if labels else cloud
        accepted = unsure if np.isnan(score) else score >= thresholds.get(edge, threshold)
        for counts in (total, classes.setdefault(label if labels and not own else edge, dict.fromkeys(total, 0))):
            counts["n"] += 1
            counts["edge"] += edge == right
            counts["cloud"] += cloud == right
            counts["cascade"] += (edge if accepted else cloud) == right
            counts["deferred"] += not accepted
    assert (found.deferral.found, found.deferral.of) == (total["deferred"], len(rows))
    accuracy = found.accuracy()
    for leg in ("edge", "cloud", "cascade"):
        assert (accuracy[leg].found, accuracy[leg].of) == (total[leg], len(rows))
    assert ("accepted" in accuracy) == bool(found.accepted.any())
    assert [one.name for one in found.classes()] == sorted(classes)
    for one in found.classes():
        counts = classes[one.name]
        shares = [counts[what] / counts["n"] for what in ("edge", "cloud", "cascade", "deferred")]
        assert one.n == counts["n"]
        assert [one.edge, one.cloud, one.cascade, one.deferral] == pytest.approx(shares)


@settings(deadline=None)
@given(rows, st.booleans(), st.booleans(), st.sampled_from([0.0, 0.15, 0.5, 0.6, 1.0, 1.1]))
def test_the_curve_has_what_any_threshold_does(rows, labels, cloud, threshold):
    """Each threshold's point is on the curve, and none is above the oracle's; without the cloud it is of what is kept."""
    found = Evaluation(examples(rows, labels=labels, cloud=cloud), threshold)
    curve, accuracy = found.curve(), found.accuracy()
    if not labels and not cloud:
        assert curve is None
        assert accuracy == {}
        return
    leg = "cascade" if cloud else "accepted"
    assert np.all(np.diff(curve[0]) > 0)
    if leg in accuracy:
        point = found.deferral.value, accuracy[leg].value
        assert any(point == pytest.approx(other) for other in zip(*curve, strict=True))
    if not cloud:
        assert found.oracle() is None
        return
    x, y = found.oracle()
    assert (x[0], x[-1]) == (0, 1)
    assert (y[0], y[-1]) == pytest.approx((curve[1][0], curve[1][-1]))
    assert np.all(np.interp(curve[0], x, y) >= curve[1] - 1e-9)
    gains = sorted(found.cloud_right.astype(int) - found.edge_right, reverse=True)
    best = [found.edge_right.sum() + sum(gains[:k]) for k in range(len(rows) + 1)]
    assert np.interp(np.arange(len(rows) + 1) / len(rows), x, y) * len(rows) == pytest.approx(best)


def test_latencies():
    """A deferred input takes both times; what was not measured is left out; without any measurement there is nothing."""
    made = examples([(0.9, "a", "a", "a"), (0.1, "a", "a", "a"), (0.9, "a", "a", "a")])
    made = made._replace(edge_s=np.array([0.1, 0.2, 0.3]), cloud_s=np.array([1.0, 2.0, nan]))
    found = Evaluation(made, 0.5).seconds()
    assert found["edge"].tolist() == [0.1, 0.2, 0.3]
    assert found["cloud"].tolist() == [1, 2]
    assert found["cascade"].tolist() == pytest.approx([0.1, 2.2])
    assert Evaluation(made, 0.5).latency()["cloud"] == pytest.approx((1.5, 1.9, 1.99))
    nothing = np.full(3, nan)
    assert Evaluation(made._replace(edge_s=nothing, cloud_s=nothing), 0.5).latency() == {}
    assert set(Evaluation(made._replace(cloud_s=nothing), 0.5).latency()) == {"edge"}, "the accepted alone would flatter"


def test_costs():
    """Dollars and energy an input, of call and bytes; not known, or free, where they are."""
    made = examples([(0.9, "a", "a", "a")] * 4)
    found = {cost.what: cost for cost in Evaluation(made, 0.5, terms=Terms(joules_per_call=1, joules_per_mb=1e4)).costs()}
    assert list(found) == ["seconds", "usd", "joules"]
    assert found["usd"] == ("usd", None, pytest.approx(0.001))
    assert found["usd"].break_even is None
    assert found["usd"].together(0.1) is None
    assert found["joules"].cloud == pytest.approx(1 + 1e4 * 110e-6)
    assert found["seconds"][1:] == pytest.approx((0.0015, 0.09))
    assert [cost.what for cost in Evaluation(made._replace(usd=0.0), 0.5).costs()] == ["seconds"]
    assert Evaluation(examples([(0.9, "a", "a", "a")], cloud=False), 0.5).costs() == []


@settings(deadline=None)
@given(st.floats(0.01, 10), st.floats(0.01, 10), st.floats(0, 1))
def test_below_the_break_even_it_is_cheaper(edge, cloud, deferral):
    """The cascade costs less than the cloud alone exactly where the deferral is below the break-even."""
    cost = Cost("seconds", edge, cloud)
    if abs(deferral - cost.break_even) > 1e-9:
        assert (deferral < cost.break_even) == (cost.together(deferral) < cloud)


# --------------------------------------------------------------------------------------------------- promise
@settings(deadline=None)
@given(rows, st.sampled_from(["max_loss", "max_error", "max_defer"]), st.booleans(), st.booleans())
def test_what_was_promised_is_measured(rows, kind, agreement, own):
    """Each promise's own quantity, counted example by example, for all or for each class that the edge predicts."""
    thresholds = dict.fromkeys(CLASSES, 0.5) if own else {}
    agreement = agreement and kind == "max_loss"
    found = Evaluation(examples(rows), 0.5, thresholds, promised(kind, agreement=agreement, thresholds=thresholds))
    counted = {}
    for score, edge, cloud, label in rows:
        counts = counted.setdefault(edge if own else "", [])
        if kind == "max_defer":
            counts.append(not score >= 0.5)
        elif kind == "max_error":
            counts += [edge != label] * (score >= 0.5)
        elif agreement:
            counts.append(score >= 0.5 and edge != cloud)
        else:
            counts.append((score >= 0.5) * (int(cloud == label) - int(edge == label)))
    counted = {where: counts for where, counts in counted.items() if counts}
    measured = {one.where: one for one in verdicts(found)}
    assert set(measured) == set(counted)
    for where, one in measured.items():
        assert one.measured == pytest.approx(np.mean(counted[where]))
        assert one.n == len(counted[where])
        assert one.low <= one.measured <= one.high
        assert one.held == (one.measured <= 0.1 + 1e-9)
        assert one.held or one.high > 0.1
        assert not (one.held and one.broken)


def test_the_interval_of_a_loss_holds():
    """The loss's interval has the truth in it in 95 % of draws and more, and each of its two shares in 97.5 %."""
    rng, held = np.random.default_rng(3), 0
    kinds = [(0.9, "a", "a", "a"), (0.9, "b", "a", "a"), (0.9, "a", "b", "a")]  # alike, harm, win
    for _ in range(200):
        drawn = [kinds[i] for i in rng.choice(3, 300, p=[0.9, 0.06, 0.04])]
        (one,) = verdicts(Evaluation(examples(drawn), 0.5, {}, promised()))
        held += one.low <= 0.02 <= one.high
    assert held >= 190
    count = [drawn.count(kind) for kind in kinds]
    harm, win = (stats.binomtest(k, 300).proportion_ci(0.975) for k in count[1:])
    assert (one.low, one.high) == pytest.approx((harm.low - win.high, harm.high - win.low), abs=1e-6)


def test_verdicts_in_words():
    """Held, not held though chance may explain it, and not held beyond chance; and what cannot be known says why."""
    fine, wrong = (0.9, "a", "a", "a"), (0.9, "b", "a", "a")

    def said(drawn, certificate, **more):
        found = Evaluation(examples(drawn, **more), 0.5, certificate.thresholds, certificate)
        return " ".join(verdict(found, verdicts(found)))

    assert said([fine] * 99 + [wrong], promised()).startswith(
        "It held on these inputs. The loss against the cloud is 1.00 percent"
    )
    assert "which chance may explain" in said([fine] * 8 + [wrong] * 2, promised())
    text = said([fine] * 50 + [wrong] * 50, promised())
    assert "chance does not explain it" in text
    assert "one of the 5 % of certificates" in text
    assert "one of the" not in said([(0.1, "a", "a", "a")] * 50, promised("max_defer", sure=None))
    assert "50.00 % (95 % interval" in said([fine, wrong] * 50, promised("max_error", 0.6))
    assert "of 100 answers that the edge gave alone were wrong" in said([fine, wrong] * 50, promised("max_error", 0.6))
    assert "got another answer than the cloud's" in said([fine], promised(agreement=True), labels=False)
    assert "cannot be measured without labels" in said([fine], promised(), labels=False)
    assert "cannot be measured without labels" in said([fine], promised("max_error"), labels=False)
    assert "cannot be measured without the cloud's answers" in said([fine], promised(), cloud=False)
    assert "cannot be measured without the cloud's answers" in said([fine], promised(agreement=True), labels=False, cloud=False)
    assert "so none is wrong" in said([(0.1, "a", "a", "a")], promised("max_error"))
    nothing = Evaluation(examples([fine]), 0.5, {}, promised())
    assert "is 0.00 percentage" in verdict(nothing, [Verdict("", 1, -1e-9, -0.1, 0.1, 0.1)])[1]
    own = promised(thresholds={"a": 0.5, "b": 0.5})
    text = said([fine] * 50 + [wrong] * 50, own)
    assert "Measured in 2 classes, it held in 1. The worst is b: the loss" in text
    assert "for all classes at once" in text
    assert "no guarantee" in " ".join(verdict(Evaluation(examples([fine]), 0.5), [])).lower()
    other = Evaluation(examples([fine]), 0.5, {}, own, "it was made for another model")
    assert " ".join(verdict(other, [])) == "The certificate says nothing about what is in use: it was made for another model."


def test_the_worst_comes_first():
    """A class beyond chance before one within it, and that before those that held."""
    drawn = [(0.9, "a", "a", "a")] * 90 + [(0.9, "a", "c", "c")] * 9  # held by 0.091
    drawn += [(0.9, "b", "b", "b")] * 4 + [(0.9, "b", "c", "c")]  # 0.2 of 5: chance
    drawn += [(0.9, "c", "c", "c")] * 800 + [(0.9, "c", "a", "a")] * 150  # 0.158 of 950: no chance
    found = verdicts(Evaluation(examples(drawn), 0.5, {}, promised(thresholds=dict.fromkeys(CLASSES, 0.5))))
    assert [one.where for one in found] == ["c", "b", "a"]
    assert [(one.held, one.broken) for one in found] == [(False, True), (False, False), (True, False)]
    assert Verdict("", 10, 0.1, 0.1, 0.2, 0.1).held, "at the limit it holds"


def test_units():
    """Times, sizes and thresholds, each in words that suit them."""
    assert [duration(s) for s in (0.0000612, 0.00009, 0.001, 0.0795, 0.13, 0.9996, 1.5)] == [
        "0.0612 ms",
        "0.0900 ms",
        "1.00 ms",
        "79.5 ms",
        "130 ms",
        "1.00 s",
        "1.50 s",
    ]
    assert [size(n) for n in (1_500, 2_000_000)] == ["1.5 KB", "2.0 MB"]
    assert [level(t) for t in (0.52423, inf, -inf)] == [
        "0.5242", "none: every input is deferred", "none: every answer of the edge is accepted",
    ]  # fmt: skip


# ------------------------------------------------------------------------------------------------------ page
def read(evaluation):
    """The page's text, after everything that holds of any page."""
    text = page(evaluation)
    found = Closed(text)
    assert len(found.ids) == len(set(found.ids))
    assert set(re.findall(r"(?:url\(|href=\")#([\w.-]+)", text)) <= set(found.ids)
    assert not {tag for tag, _ in found.tags} & {"script", "img", "link", "iframe", "object", "base", "form"}
    for _, attributes in found.tags:
        assert not {name for name in attributes if name.startswith("on")} | {"src", "srcset"} & set(attributes)
        assert (attributes.get("href") or attributes.get("xlink:href") or "#").startswith("#"), "nothing is fetched"
    assert not re.search(r"url\((?!#)|@import", text)
    assert INK not in text
    assert "nan" not in re.findall(r"[\w-]+", " ".join(found.text))
    for tag, attributes in found.tags:
        assert tag != "th" or attributes.get("scope") in {"row", "col"}
    figures = [attributes for tag, attributes in found.tags if attributes.get("role") == "img"]
    assert all(attributes["aria-label"] for attributes in figures)
    assert len(figures) == sum(tag == "svg" for tag, _ in found.tags)
    return " ".join(found.text).replace("\xa0", " ")


def test_the_page_says_what_was_found(real):
    """BoundCertificate, numbers, figures, cost, classes and notes, with the evaluation's own numbers."""
    text = read(real)
    order = [
        "The guarantee",
        "In numbers",
        "Accuracy over deferral",
        "Latency",
        "Cost",
        "Reliability",
        "Scores",
        "Classes",
        "What is what",
    ]
    titles = re.findall(r"<h2>(.*?)</h2>", page(real))
    assert titles == order
    accuracy = real.accuracy()
    assert real.certificate.guarantee in text
    for leg in ("edge", "cloud", "cascade"):
        assert f"{accuracy[leg].value * 100:.2f} %" in text
        assert f"{accuracy[leg].low * 100:.2f} to {accuracy[leg].high * 100:.2f} %" in text
    assert f"{real.deferral.value * 100:.2f} %" in text
    for cost in real.costs():
        assert cost.break_even is None or f"{cost.break_even * 100:.2f} %" in text
    for one in real.classes():
        assert one.name in text
        assert f"{one.edge * 100:.2f} %" in text
    for words in ("fashion-edge (78.5 KB)", "http://localhost/x", "policy.toml", "test.npz", "2026-11-24", "2,500 inputs"):
        assert words in text
    assert f"{calibration_error(bins(real.examples.score, real.edge_right)) * 100:.2f} percentage points" in text
    assert verdict(real, verdicts(real))[1] in text


@pytest.mark.slow
def test_the_same_evaluation_gives_the_same_page(real, tmp_path):
    """Byte for byte, and `write` writes it, over what is there, leaving nothing else."""
    text = page(real)
    assert page(real) == text
    (tmp_path / "report.html").write_text("old")
    EvaluationResult(real).save(tmp_path / "report.html")
    assert (tmp_path / "report.html").read_text(encoding="utf-8") == text
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]


@pytest.mark.slow
def test_the_page_is_small():
    """For 10,000 inputs it is less than 400 KB."""
    rng = np.random.default_rng(0)
    drawn = [(s, *rng.choice(CLASSES, 3)) for s in rng.random(10_000)]
    assert len(page(Evaluation(examples(drawn), 0.5, {}, promised()))) < 400_000


def test_names_are_text():
    """Whatever models, files and classes are called, it is shown as it is and does nothing."""
    evil = '<script>alert("1")</script>&amp;$x$'
    made = examples([(0.9, evil, "a", evil), (0.1, "a", "a", "a")])
    certificate = promised(thresholds={evil: 0.5, "a": inf})._replace(method=evil, fingerprints={"edge": evil})
    found = Evaluation(made, inf, certificate.thresholds, certificate, names=Names(evil, evil, evil, evil, evil, evil, 1))
    assert read(found).count(evil) >= 8
    assert evil in read(found._replace(uncalibrated=evil))


@pytest.mark.slow
@pytest.mark.parametrize("labels", [True, False])
@pytest.mark.parametrize("cloud", [True, False])
@pytest.mark.parametrize(
    "drawn",
    [
        [(0.9, "a", "a", "a")],
        [(0.1, "a", "b", "b")],
        [(nan, "a", "a", "b")] * 3,
        [(nan, "a", "a", "b"), (0.4, "a", "a", "a")],
        [(0.5, "a", "b", "a")] * 40,
        [(inf, "a", "b", "a"), (-inf, "a", "a", "a"), (-3.5, "a", "a", "a")],
        [(i / 60, i, i, i + i % 2) for i in range(60)],
    ],
    ids=["one", "deferred", "unscored", "some unscored", "tied", "infinite", "all different"],
)
def test_whatever_is_there(drawn, labels, cloud):
    """One example, ties, no scores, no labels, no cloud: the page shows what is known, and is still a page."""
    made = examples(drawn, labels=labels, cloud=cloud)
    for certificate in (promised(), promised("max_error"), promised("max_defer"), promised(agreement=True)):
        found = Evaluation(made, 0.5, {}, certificate)
        assert all(verdict(found, verdicts(found)))
    assert "no certificate" not in read(found)
    text = read(Evaluation(made, -inf, accept_unsure=True))
    assert ("Accuracy" in text) == labels
    assert ("Not all labels are known" in text) == (cloud and not labels)
    assert ("neither labels nor answers" in text) == (not cloud and not labels)
    assert ("Reliability" in text) == ((cloud or labels) and any(np.isfinite(row[0]) for row in drawn))
    unscored = sum(np.isnan(row[0]) for row in drawn)
    assert ("without a score: accepted" in text) == bool(unscored)
    assert ("different answers" in text) == (len(drawn) == 60)
    assert "every answer of the edge is accepted" in text
    assert "no certificate" in text


def test_what_was_not_measured_is_left_out():
    """Without times, bytes and dollars, as with recorded outputs, nothing is said of them."""
    made = examples([(0.9, "a", "a", "a"), (0.1, "a", "b", "b")])
    made = made._replace(edge_s=np.full(2, nan), cloud_s=np.full(2, nan), sent_bytes=0, received_bytes=0, usd=0.0)
    text = read(Evaluation(made, inf))
    assert "every input is deferred" in text
    for words in ("Latency", "Cost", "latency", "p50", "received", "spen", "not known"):
        assert words not in text
    text = read(Evaluation(made._replace(edge_s=np.ones(2)), 0.5))
    assert "Both together: the edge" not in text
    assert "not known" in text


@pytest.mark.slow
@pytest.mark.parametrize("score", ["msp", "energy", "learned", "mine"])
def test_only_a_probability_has_a_calibration_error(score):
    """A score that is not meant as one, or not within 0..1, is not judged as one."""
    drawn = [(s, "a", "a", "a") for s in (0.1, 0.5, 0.9)]
    text = read(Evaluation(examples(drawn), 0.5, names=Names(score=score)))
    assert ("calibration error" in text) == (score in {"msp", "mine"})
    wide = Evaluation(examples([(2.0, "a", "a", "a"), *drawn]), 0.5, names=Names(score=score))
    assert "calibration error" not in read(wide)


@pytest.mark.slow
def test_a_thousand_classes():
    """The worst twenty are shown, and that they are."""
    drawn = [(0.9, f"class {i % 1000}", f"class {i % 1000}", "x" if i % 1000 == 77 else f"class {i % 1000}") for i in range(3000)]
    text = read(Evaluation(examples(drawn), 0.5))
    assert "The worst 20 of 1,000" in text
    assert text.count("class ") <= 20 + 5
    assert re.search(r"\bx\b", text), "the one that is always wrong"
    unlabelled = read(Evaluation(examples(drawn, labels=False, cloud=False), 0.95))
    assert "The worst 20 of 1,000" in unlabelled


@pytest.mark.slow
def test_a_threshold_for_each_class():
    """They are in the table, and the figures do not draw one for all."""
    own = {"a": 0.5, "b": inf}
    found = Evaluation(examples([(0.9, "a", "a", "a"), (0.3, "b", "b", "a")] * 5), inf, own, promised(thresholds=own))
    text = read(found)
    assert "2 classes, each with its own, 0.5 to 0.5; 1 class always deferred" in text
    assert "By what the edge says" in text
    assert "one for each" in text
    assert "dashed line is the threshold" not in text
    assert "always deferred" in read(found._replace(thresholds={"a": inf, "b": inf}))


def test_without_matplotlib(real, tmp_path, monkeypatch):
    """It is said what to install, and no half a file is left."""
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(RuntimeMissing, match=r"pip install 'edgeroute\[demo\]'"):
        EvaluationResult(real).save(tmp_path / "report.html")
    assert not list(tmp_path.iterdir())


def luminance(color):
    short = len(color) == 4
    parts = [int(color[i] * 2 if short else color[i : i + 2], 16) / 255 for i in range(1, len(color), 1 if short else 2)]
    return sum(
        w * (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4)
        for w, c in zip((0.2126, 0.7152, 0.0722), parts, strict=True)
    )


@pytest.mark.parametrize("drawn", ["held", *slow("open", "broken")])
def test_the_verdict_has_a_colour_a_sign_and_words(drawn):
    """Each kind has its own of all three: neither colours nor a sign need be seen."""
    wrong = {"held": 0, "open": 12, "broken": 60}[drawn]
    made = examples([(0.9, "b", "a", "a")] * wrong + [(0.9, "a", "a", "a")] * (200 - wrong))
    text = page(Evaluation(made, 0.5, {}, promised(value=0.05)))
    sign, words = {
        "held": ("\u2713", "It held on these inputs."),
        "open": ("?", "which chance may explain."),
        "broken": ("\u2717", "chance does not explain it."),
    }[drawn]
    (shown,) = re.findall(
        r'<p class="verdict (\w+)"><span class="sign" aria-hidden="true">(.)</span> <strong>(.*?)</strong>', text
    )
    assert shown[:2] == (drawn, sign)
    assert shown[2].endswith(words)


def test_colours_of_the_verdict_can_be_read():
    """In light and dark mode they stand out from the page by 4.5 to 1 and more."""
    backs = [dict(re.findall(r"--(\w+): (#\w+)", line))["back"] for line in style("page.css").splitlines() if "--back:" in line]
    tones = [re.findall(r"--tone: (#\w+)", line) for line in style("page.css").splitlines() if "--tone: #" in line]
    assert [len(found) for found in tones] == [3, 3]
    for back, found in zip(backs, tones, strict=True):
        for tone in found:
            high, low = sorted((luminance(tone), luminance(back)), reverse=True)
            assert (high + 0.05) / (low + 0.05) >= 4.5


def test_sides_have_their_marks_and_colours(real):
    """Those of the palette, in tables and figures, for light and dark pages; a class that looks like a mark is text as others are."""
    text = page(real)
    assert css() in text
    for name in ("edge", "cloud"):
        mark, light = STATES[name].mark, STATES[name].light
        assert f'<th scope="row"><span style="color: var(--{name})">{mark}</span> {name} alone</th>' in text
        assert f"stroke: var(--{name}, {light})" in text
    assert "✕" not in text
    odd = page(Evaluation(examples([(0.9, "✕ <b>", "a", "a"), (0.2, "b", "b", "✕ <b>")] * 5), 0.5))
    assert '<span style="color: var(--degraded)">✕</span> &lt;b&gt;' in odd


def test_one_word_for_edge_and_cloud_together_and_the_methods(real):
    """They are "edge and cloud", which the page explains, as it does the method of its certificate."""
    text = read(real)
    assert "both together" not in text.lower()
    assert "Edge and cloud together: the edge's answer where it is accepted" in text
    assert f"Method {real.certificate.method}: " in text
    for method in ("CP-harm", "LR-BB", "D-BB", "CP-error", "Beta", "rank"):
        assert len(methods(real.certificate._replace(method=method))) > 60
    assert methods(real.certificate._replace(method="another")) == ""


def test_text_can_be_read_in_light_and_dark():
    """Text stands out from the page by 4.5 to 1 and more in both."""
    both = [dict(re.findall(r"--(\w+): (#\w+)", line)) for line in style("page.css").splitlines() if "--back:" in line]
    assert len(both) == 2
    for colors in both:
        for text in ("ink", "dim"):
            high, low = sorted((luminance(colors[text]), luminance(colors["back"])), reverse=True)
            assert (high + 0.05) / (low + 0.05) >= 4.5


@pytest.mark.matrix
@pytest.mark.skipif(BROWSER is None, reason="chromium is not installed")
@pytest.mark.parametrize("width", [360, 390, 1280])
def test_a_real_browser_shows_it(real, tmp_path, width):
    """At the width of a phone nothing but tables is wider than the screen, and the figures' text has 10 pixels and more."""
    long = real._replace(names=real.names._replace(cloud="https://" + "a" * 300, policy="p" * 100))
    script = """
onload = () => {
  const page = document.querySelector("iframe").contentDocument, root = page.documentElement;
  const texts = [...page.querySelectorAll("svg text")].map(text => {
    const svg = text.ownerSVGElement;
    return parseFloat(getComputedStyle(text).fontSize) * svg.getBoundingClientRect().width / svg.viewBox.baseVal.width;
  });
  document.body.textContent = JSON.stringify({scroll: root.scrollWidth, inner: page.defaultView.innerWidth,
    text: Math.min(...texts), figures: page.querySelectorAll("svg").length,
    tables: [...page.querySelectorAll(".wide")].map(box => {
      const hint = box.previousElementSibling;
      const told = hint !== null && hint.className === "hint" && hint.getClientRects().length > 0;
      return [box.scrollWidth > box.clientWidth, told];
    })});
}"""
    wrapper = tmp_path / "wrapper.html"
    frame = f'<iframe width="{width}" height="800" style="border: 0" srcdoc="{html.escape(page(long))}"></iframe>'
    wrapper.write_text(f"<!doctype html><meta charset=utf-8><body>{frame}<script>{script}</script>", encoding="utf-8")
    done = subprocess.run(
        [
            BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
            "--disable-background-networking", "--disable-component-update", f"--user-data-dir={tmp_path / 'profile'}",
            "--window-size=1400,900", "--dump-dom", wrapper.as_uri(),
        ],
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    seen = json.loads(html.unescape(re.search(r"\{.*\}", done.stdout)[0]))
    assert seen["inner"] == width
    assert seen["scroll"] <= width
    assert seen["figures"] == 4
    assert all(told for scrolls, told in seen["tables"] if scrolls), "a table that scrolls says so"
    assert any(scrolls for scrolls, _ in seen["tables"]) == (width < 500)
    assert not any(told for _, told in seen["tables"] if width > 500)
    assert seen["text"] >= 10
