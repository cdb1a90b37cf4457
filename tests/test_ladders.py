"""Ladders of edge models: each is calibrated on what reaches it, and its promise is of these inputs."""

from __future__ import annotations

import json
import math
import re
import warnings

import numpy as np
import pytest
import routes
import tiny
from both import running
from commands import cli

from edgeroute import BadInput, OnnxModel, Options, Router
from edgeroute.confidence import calibrate
from edgeroute.confidence.certificate import BoundCertificate, effective_target, ladder_targets
from edgeroute.core.policy_egress_and_options import Target
from edgeroute.tools.server.serve import app

SMALL = [[2, 0.4, 0], [0, 2, 0.4], [0.4, 0, 2], [1.5, -1.5, 0.5], [0.5, 1, -1.5]]
LARGER = [[4, 0, 0], [0, 4, 0], [0, 0, 4], [1, -1, 0], [0, 0.5, -0.5]]
RIGHT = [[9, 0, 0], [0, 9, 0], [0, 0, 9], [0, 0, 0], [0, 0, 0]]


def drawn(n, seed):
    """Inputs [n, 5], of which the first three numbers say which class is right, and the labels."""
    x = np.random.default_rng(seed).normal(size=(n, 5)).astype(np.float32)
    return x, x[:, :3].argmax(1)


def judged(weights, x, y):
    """Confidence [n] of a model with these weights, and whether it is right [n]."""
    logits = x @ np.array(weights, np.float32)
    likely = np.exp(logits - logits.max(1, keepdims=True))
    return (likely / likely.sum(1, keepdims=True)).max(1).astype(float), logits.argmax(1) == y


def is_right(x):
    return int(np.argmax(x[:3]))


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A folder with two edge models."""
    folder = tmp_path_factory.mktemp("ladder")
    tiny.linear(folder / "small.onnx", size=5, weights=SMALL)
    tiny.linear(folder / "larger.onnx", size=5, weights=LARGER)
    return folder


def test_a_later_edge_is_calibrated_on_what_reaches_it(home):
    """By the thresholds that the models before it were given; the certificate holds in the router with both."""
    x, y = drawn(1500, 0)
    edges = [str(home / "small.onnx"), str(home / "larger.onnx")]
    with Router(edges, is_right, threshold=[0.0, 0.0]) as router:
        first = router.calibrate(x, y, max_loss=0.03).certificate
    with Router(edges, is_right, threshold=[first, 0.0]) as router:
        second = router.calibrate(x, y, max_loss=0.03, edge=1)
        measured = router.evaluate(x, y, edge=1)
    score, _ = judged(SMALL, x, y)
    reach = score < first.threshold
    assert 100 < reach.sum() < len(x) - 100
    assert second.certificate.n == measured.as_dict()["n"] == reach.sum()
    assert f"{len(x) - reach.sum():,} of 1,500 inputs are left out: the edge models before it keep them" in second.notes
    assert second.certificate.threshold == pytest.approx(
        calibrate(*judged(LARGER, x[reach], y[reach]), np.ones(reach.sum(), bool), max_loss=0.03).threshold, abs=1e-6
    )
    with Router(edges, is_right, threshold=[first, second.certificate], options=Options(uncalibrated="error")) as router:
        answers = [router.infer(one) for one in x[:200]]
    assert {answer.source for answer in answers} == {"edge", "cloud"}
    most = 0.03 + 0.03 * first.deferral_interval[1]
    label = f"loss <= {math.ceil(most * 1e4) / 100:g} % of all edge models together, 85 % sure"
    assert {routes.label(answer, answer.leg) for answer in answers if answer.source == "edge"} == {label}
    with Router(edges, is_right, threshold=[first, 0.5]) as router:
        assert router.engine.snapshot.targets[0].label == f"{first.label}, of this edge model alone"


def test_where_nothing_reaches_it(home):
    """It cannot be calibrated, and the message says why."""
    router = Router([str(home / "small.onnx"), lambda x: (0, 0.5)], is_right, threshold=[0.0, 0.0])
    with router, pytest.raises(BadInput, match=r"none of the 20 inputs reaches .*: edge models before it accept all"):
        router.calibrate(drawn(20, 0)[0], max_defer=0.5, edge=1)


def serve_right(home):
    """A server of a model that is always right. -> its URL."""
    model = tiny.linear(home / "right.onnx", size=5, weights=RIGHT, card={"name": "right"})
    with running(app([OnnxModel(model)])) as client:
        yield f"{client.base_url}/v2/models/right"


serving = pytest.fixture(serve_right)


@pytest.mark.slow
def test_the_command_line(home, serving):
    """One model after the other; each certificate is named in the policy before the next is made."""
    x, y = drawn(1500, 1)
    np.savez(home / "val.npz", images=x, labels=y)

    def policy(threshold):
        path = home / "policy.toml"
        edges = '[[edge]]\npath = "small.onnx"\n[[edge]]\npath = "larger.onnx"\n'
        path.write_text(f'threshold = {threshold}\n{edges}[cloud]\nurl = "{serving}"\n')
        return path

    def made(path, number):
        asked = ["--max-loss", "3%", "--edge", number, "--json", "--out", home / f"{number}.json"]
        code, out, err = cli("calibrate", "--policy", path, "-d", home / "val.npz", *asked)
        assert (code, err) == (0, "")
        return json.loads(out)

    assert made(policy("0.5"), 0)["notes"] == []
    said = made(policy('["0.json", "1.json"]'), 1)  # which is not there yet
    assert "the edge models before it keep them" in said["notes"][0]
    assert "and that the edge models before it defer: " in said["certificate"]["guarantee"]
    _, out, _ = cli("check", "--policy", policy('["0.json", "1.json"]'))
    assert len(re.findall(r"certified, loss <= [345]\.\d+ % of all edge models together, 85 % sure", out)) == 2, out


def promise(value=0.01, rate=0.3, **more):
    """A certificate whose deferral rate is at most that, bound to nothing, which is compared with nothing."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made = calibrate(np.linspace(0, 1, 2000), np.ones(2000, bool), max_loss=value)
    return BoundCertificate(made._replace(deferral_interval=(0.0, rate), seal="", **more), {}, math.inf)


def labels(*given):
    """The labels of a ladder: of each edge its group and its certificate, or None."""
    bound = [certificate for _, certificate in given]
    targets = [Target(f"edge-{i}", "edge", 0.5, group=group) for i, (group, _) in enumerate(given)]
    cloud = Target("cloud", "cloud", None)
    made = ladder_targets([*map(effective_target, targets, bound), cloud], [*bound, None])
    assert made[-1] == cloud
    return [target.label for target in made[:-1]]


def test_what_is_quoted_of_a_ladder():
    """The bound of all edges together; what is not of a loss, or does not hold, leaves the others to speak for themselves."""
    one = promise()
    whole = "of all edge models together"
    assert labels(("", one)) == [one.certificate.label]
    assert labels(("", one), ("", one)) == [f"loss <= 1.3 % {whole}, 85 % sure"] * 2
    assert labels(("", one), ("", one), ("", promise(0.02))) == [f"loss <= 1.48 % {whole}, 75 % sure"] * 3
    assert labels(("a", one), ("a", promise(0.02, 0.5))) == [one.certificate.label, promise(0.02).certificate.label]
    assert labels(("a", one), ("a", promise(0.02, 0.5)), ("", one)) == [f"loss <= 2.5 % {whole}, 75 % sure"] * 3
    f1 = promise(metric="F1")
    assert labels(("", f1), ("", f1)) == [f"F1 loss <= 0.013 {whole}, 85 % sure"] * 2
    alone = f"{one.certificate.label}, of this edge model alone"
    for other in (promise(kind="max_error"), promise(metric="F1"), promise(date="2001-01-01")._replace(max_age_days=1.0), None):
        assert labels(("", one), ("", other))[0] == alone
    assert labels(("", None), ("", promise(kind="max_error")))[1] == promise(kind="max_error").certificate.label
    risky = promise(sure=0.5)
    assert labels(("", risky), ("", risky)) == [f"{risky.certificate.label}, of this edge model alone"] * 2


@pytest.mark.slow
def test_the_ladder_loses_no_more_than_it_quotes():
    """Over 300 calibrations of both edges; the bound of one edge is exceeded by the two in many of them."""
    x, y = drawn(200_000, 5)
    (first, first_right), (second, second_right) = (judged(weights, x, y) for weights in (SMALL, LARGER))
    rng, broken, above_one = np.random.default_rng(6), 0, 0
    right = np.ones(len(x), bool)
    for _ in range(300):
        rows = rng.integers(0, len(x), 3000)
        one = calibrate(first[rows], first_right[rows], right[rows], max_loss=0.02)
        rows = rows[first[rows] < one.threshold]
        two = calibrate(second[rows], second_right[rows], right[rows], max_loss=0.02)
        by_first = first >= one.threshold
        by_second = ~by_first & (second >= two.threshold)
        loss = (by_first & ~first_right).mean() + (by_second & ~second_right).mean()
        broken += loss > 0.02 + 0.02 * one.deferral_interval[1]
        above_one += loss > 0.02
    assert broken <= 300 * 0.15
    assert above_one > 300 * 0.15


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["max_loss", "max_error"])
def test_the_promise_of_a_later_edge_holds(kind):
    """Over 300 calibrations, both models each time on the same 1,500 examples: broken in at most 5 %, and three standard errors."""
    limit, broken, draws = 0.03, 0, 300
    x, y = drawn(200_000, 2)
    first, first_right = judged(SMALL, x, y)
    second, second_right = judged(LARGER, x, y)
    cloud = np.ones(len(x), bool) if kind == "max_loss" else None
    rng = np.random.default_rng(3)
    for _ in range(draws):
        rows = rng.integers(0, len(x), 1500)

        def certified(score, right, rows):
            return calibrate(score[rows], right[rows], None if cloud is None else cloud[rows], **{kind: limit}).threshold

        threshold = certified(first, first_right, rows)
        own = certified(second, second_right, rows[first[rows] < threshold])
        reach = first < threshold
        kept = reach & (second >= own)
        true = (kept & ~second_right).sum() / max(1, (reach if kind == "max_loss" else kept).sum())
        broken += true > limit
    assert broken / draws <= 0.05 + 3 * (0.05 * 0.95 / draws) ** 0.5
