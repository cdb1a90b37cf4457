"""One certificate about all edge models of a ladder: thresholds set at once, and a guarantee of what the whole loses."""

from __future__ import annotations

import asyncio
import json
import math
import re
import threading

import numpy as np
import pytest
import routes
import tiny
from both import LONG
from commands import cli
from devices import Device
from draws import slow
from test_ladders import LARGER, SMALL, drawn, is_right, serve_right

from edgeroute import AsyncRouter, Audit, CallableModel, Function, Options, Piece, PolicyError, Prefix, Router, Rule, Variants
from edgeroute import models as shipped
from edgeroute.confidence import Certificate, NotEnough
from edgeroute.confidence.certificate import checksum_of
from edgeroute.core.plan import EARLIER, Facts, plan, without_guarantee
from edgeroute.core.policy_egress_and_options import Policy, Target
from edgeroute.tools.measure.threshold_calibration_and_crossfit import calibrate
from edgeroute.tools.measure.thresholds_of_several_edges import accepting, lowest_thresholds

MIDDLE = [[3, 0.2, 0], [0, 3, 0.2], [0.2, 0, 3], [1.2, -1, 0], [0, 0.8, -0.8]]
WHOLE = "loss <= 5 % of all edge models together, 95 % sure"


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A folder with three edge models, each better than the one before."""
    folder = tmp_path_factory.mktemp("together")
    for name, weights in (("small", SMALL), ("middle", MIDDLE), ("larger", LARGER)):
        tiny.linear(folder / f"{name}.onnx", size=5, weights=weights)
    return folder


def labels(answer):
    """What the thresholds of the edge models that were to be asked promise."""
    return {leg["label"] for leg in answer.trace["plan"] if leg["side"] == "edge"}


def edges_of(home, *names):
    return [str(home / f"{name}.onnx") for name in names]


def certified(edges, x, y=None, cloud=is_right, **asked):
    """The result of a calibration of all edge models."""
    with Router(edges, cloud, threshold=[0.0] * len(edges)) as router:
        return router.calibrate(x, y, edge="all", **{"max_loss": 0.05, **asked})


def labels_of(edges, threshold, cloud=is_right):
    """What a router says of each edge model's threshold."""
    with Router(edges, cloud, threshold=threshold) as router:
        return [target.label for target in router.engine.snapshot.targets if target.side == "edge"]


@pytest.mark.parametrize("names", [("small", "larger"), *slow((("small", "middle", "larger"),))])
@pytest.mark.parametrize("labelled", [True, *slow(False)])
def test_the_whole_ladder_has_one_certificate(home, tmp_path, names, labelled):
    """Reasons quote the limit of the whole; it is saved, read, evaluated and shown as one."""
    x, y = drawn(700, 0)
    edges = edges_of(home, *names)
    result = certified(edges, x, y if labelled else None)
    certificate = result.certificate
    thresholds = [float(own["threshold"]) for own in certificate.ladder]
    assert certificate.label == WHOLE
    assert certificate.agreement is not labelled
    assert f"with {len(names)} edge models together, " in certificate.guarantee
    assert "it defer" not in certificate.guarantee
    assert repr(result).startswith(f"<CalibrationResult {WHOLE}: thresholds {thresholds[0]:.4g}, then ")
    result.save(tmp_path / "certificate.json")
    assert Certificate.load(tmp_path / "certificate.json") == certificate
    more, right = drawn(500, 1)
    with Router(edges, is_right, threshold=result, options=Options(uncalibrated="error")) as router:
        assert [target.threshold for target in router.engine.snapshot.targets[:-1]] == thresholds
        answers = [router.infer(one) for one in more[:100]]
        measured = router.evaluate(more, right if labelled else None)
        first = router.evaluate(more, right, edge=0)
    assert {answer.source for answer in answers} == {"edge", "cloud"}
    for answer in answers:
        assert labels(answer) == {WHOLE}
        if answer.source == "edge":
            assert routes.label(answer, answer.leg) == WHOLE
    told = measured.as_dict()
    assert ([float(one) for one in told["ladder"]], told["threshold"], told["promise"]) == (thresholds, None, WHOLE)
    assert measured.held
    scores = np.column_stack([scored(edge, more) for edge in edges])
    assert told["deferral"]["found"] == np.count_nonzero(accepting(scores, thresholds) == len(edges))
    low, high = certificate.deferral_interval
    assert low <= certificate.deferral_rate <= high
    assert certificate.deferral_rate == pytest.approx(math.prod(own["deferral_rate"] for own in certificate.ladder))
    assert first.held is None
    assert 'evaluate them with edge="all"' in first.verdict


def scored(path, x):
    """The confidences of one model."""
    with Router(path, is_right, threshold=0.0) as router:
        return [router.infer(one, mode="only_edge").confidence for one in x]


def test_what_it_is_bound_to(home, tmp_path):
    """Another model, order, number or threshold, and it says so; with `uncalibrated="error"` there is no such router."""
    x, _ = drawn(800, 2)
    small, middle, larger = edges_of(home, "small", "middle", "larger")
    certificate = certified([small, middle], x, max_loss=0.05).certificate
    held = "loss <= 5 % of all edge models together, 95 % sure"
    assert labels_of([small, middle], certificate) == labels_of([small, middle], [certificate] * 2) == [held] * 2
    for edges, threshold in (
        ([small, larger], certificate),
        ([larger, middle], certificate),
        ([middle, small], certificate),
        ([small, middle], [certificate, 0.5]),
        ([small, middle], [0.99, certificate]),
        ([small, middle], [certificate, certified([small, middle], x, max_loss=0.1).certificate]),
        ([small, middle], [certificate, math.inf]),
    ):
        labels = labels_of(edges, threshold)
        assert all(label.startswith("uncalibrated") for label in labels), labels
        assert not any("loss" in label for label in labels)
        with pytest.raises(PolicyError, match="guarantees nothing here"):
            Router(edges, is_right, threshold=threshold, options=Options(uncalibrated="error"))
    for edges in ([small], [small, middle, larger], [larger, *[small, middle]]):
        with pytest.raises(PolicyError, match=r"about 2 edge models together, not [13]: calibrate again"):
            Router(edges, is_right, threshold=certificate)
    with Router([small, middle], lambda _: 0, threshold=certificate) as router:
        assert "it was made for cloud model" in router.engine.snapshot.targets[0].label
    changed = json.loads(json.dumps(certificate.as_dict()))
    changed["ladder"][1]["threshold"] = 0.1
    (tmp_path / "changed.json").write_text(json.dumps(changed))
    with pytest.raises(PolicyError, match="was changed after it was made"):
        Certificate.load(tmp_path / "changed.json")
    for ladder in ([{}], [3], "no", [{"threshold": "x", "deferral_interval": [0, 1]}], [{**certificate.ladder[0], "no": 1}]):
        data = {**{name: value for name, value in changed.items() if name != "checksum"}, "ladder": ladder}
        (tmp_path / "changed.json").write_text(json.dumps({**data, "checksum": checksum_of(data)}))
        with pytest.raises(PolicyError, match="is not a certificate"):
            Certificate.load(tmp_path / "changed.json")


def test_it_is_not_quoted_where_an_edge_model_is_left_out(home):
    """By a rule on the device's state, or as one of two variants."""
    x, _ = drawn(400, 2)
    edges = edges_of(home, "small", "larger")
    certificate = certified(edges, x).certificate
    rules = [Rule("battery", "small_model", enter=0.2)]
    with Router(edges, is_right, threshold=certificate, options=Options(rules=rules, sensors=Device(battery=0.1))) as router:
        left_out = router.infer(x[0])
    with Router(Variants(a=edges[0], b=edges[1]), is_right, threshold=certificate) as router:
        variant = router.infer(x[0])
    for answer in (left_out, variant):
        assert all("all edge models together, and not all are asked" in label and "loss" not in label for label in labels(answer))


class Fickle:
    """An edge callable, sure of small numbers, that can be switched to failing."""

    broken = False

    def small(self, x):
        """Answers, or fails."""
        if self.broken:
            raise RuntimeError("no memory")
        return ("low", 0.99) if x < 0.5 else ("?", 0.01)


def sure(x):
    return "high", 0.9 + abs(x - 0.5) / 20


def by_size(x):
    return "low" if x < 0.5 else "high"


def texts(router, xs):
    """The reasons of inputs asked in every way, with the steps of `decide`."""
    answers = [router.infer(xs[0]), router.infer(xs[0], mode="only_edge"), *router.infer_many(xs), [*router.refine(xs[0])][-1]]
    with router.stream(xs[0]) as stream:
        assert [*stream]
        answers.append(stream.answer)
    for answer in answers:
        assert (answer.source, answer.value) == ("edge", "high")
        assert routes.label(answer, answer.leg) in answer.reason
    return [*(answer.reason for answer in answers), router.decide(xs[0]).steps[-1]]


@pytest.mark.parametrize("each", [False, True])
def test_it_is_not_quoted_where_an_edge_model_before_failed(each):
    """Nor are certificates of one model each: the later one's is for what the earlier one leaves. Asked in every way."""
    fickle, xs = Fickle(), np.random.default_rng(0).random(1500).tolist()
    edges = [CallableModel(fickle.small, version="1"), CallableModel(sure, version="1")]
    if each:
        with Router(edges, by_size, threshold=[0.9, 0.9]) as router:
            first = router.calibrate(xs, max_loss=0.02, edge=0).certificate
        with Router(edges, by_size, threshold=[first, 0.9]) as router:
            threshold = [first, router.calibrate(xs, max_loss=0.02, edge=1).certificate]
    else:
        threshold = certified(edges, xs, cloud=by_size, max_loss=0.02).certificate
    with Router(edges, by_size, threshold=threshold) as router:
        assert all("loss <=" in text and "uncalibrated" not in text for text in texts(router, [0.8, 0.9]))
        fickle.broken = True
        for text in texts(router, [0.1, 0.2]):
            assert "uncalibrated: its certificate counts on the edge models before it" in text
            assert "loss <=" not in text


def test_it_is_not_quoted_where_an_edge_model_before_was_late():
    """In a stream by AsyncRouter, the second edge model answers after the first one's time for a first token."""
    fickle, xs = Fickle(), np.random.default_rng(0).random(1500).tolist()
    gate, waits = threading.Event(), []

    def small(x):
        if waits:
            gate.wait(LONG)
        return fickle.small(x)

    edges = [CallableModel(small, version="1"), CallableModel(sure, version="1")]
    certificate = certified(edges, xs, cloud=by_size, max_loss=0.02).certificate
    waits.append(True)

    async def streamed():
        options = Options(first_token=0.05)
        async with AsyncRouter(edges, by_size, threshold=certificate, options=options) as router, router.stream(0.1) as stream:
            pieces = [piece async for piece in stream]
            gate.set()
            return pieces, stream.answer.reason

    pieces, reason = asyncio.run(streamed())
    assert pieces == ["high"]
    assert "loss <=" not in reason
    assert "uncalibrated: its certificate counts" in reason


def test_a_busy_edge_model_breaks_the_certificate_of_the_next():
    """While an abandoned run of the first goes on, the second is asked at once: by the plan, not what it was calibrated for."""
    targets = tuple(Target(name, "edge", 0.5, "loss <= 2 %", certified=True) for name in "ab")
    for busy, mode, want in (
        ("", "prefer_edge", ["loss <= 2 %"] * 2),
        ("a", "prefer_edge", [EARLIER] * 2),
        ("a", "only_edge", [EARLIER] * 2),
        ("b", "prefer_edge", ["loss <= 2 %"] * 2),
    ):
        route = plan(Policy(), (*targets, Target("cloud", "cloud")), Facts(busy=frozenset(busy)), mode=mode)
        assert [leg.label for leg in route.legs if leg.permit is None] == want
    broken = targets[0]._replace(label="uncalibrated: too old")
    assert without_guarantee(broken, EARLIER) == broken


def test_an_alarm_at_one_edge_model_is_one_of_the_whole(home):
    """The other's answers are not covered any more either; each alarm allows what the whole may lose by its answers."""
    x, _ = drawn(800, 2)
    edges = edges_of(home, "small", "larger")
    certificate = certified(edges, x, max_loss=0.05).certificate
    with Router(edges, is_right, threshold=certificate, audit=Audit(share=1.0)) as router:
        names = [target.name for target in router.engine.snapshot.targets if target.side == "edge"]
        monitors = [router.engine.auditor.watch(name) for name in names]
        for monitor, own in zip(monitors, certificate.ladder, strict=True):
            most = max(0.05 / (own["reach"] * (1 - own["deferral_rate"])), own["disagreement"])
            assert monitor.limit == (pytest.approx(most) if most < 1 else None)
        watched = next(monitor for monitor in monitors if monitor.limit is not None)
        while watched.alarm is None:
            watched.add_comparison(0.9, agrees=False, counted=True)
        router.engine.refresh_thresholds()
        labels = [target.label for target in router.engine.snapshot.targets if target.side == "edge"]
    assert len({*labels}) == 1
    assert labels[0].startswith("uncalibrated: drift alarm")


@pytest.mark.slow
def test_the_shipped_models(tmp_path):
    """The small and the larger picture model before a cloud that is always right, from a policy file."""
    pair = shipped.fashion()
    with np.load(pair.sample) as sample:
        images, labels = sample["images"], sample["labels"]
    names = json.loads(pair.edge.with_suffix(".json").read_text())["labels"]
    known = {image.tobytes(): names[label] for image, label in zip(images, labels, strict=True)}
    cloud = Function(lambda image: known[np.asarray(image).tobytes()], version="1")
    edges = [pair.edge, pair.cloud]
    result = certified(edges, images[:500], labels[:500], cloud=cloud, max_loss=0.04)
    assert 0 < result.certificate.deferral_rate < 0.7
    result.save(tmp_path / "whole.json")
    sections = "".join(f'[[edge]]\npath = "{path.as_posix()}"\n' for path in edges)
    for written, count in (('"whole.json"', 2), ('["whole.json", "whole.json"]', 2), ('["whole.json", 0.8]', 0)):
        (tmp_path / "policy.toml").write_text(f"threshold = {written}\n{sections}")
        with Router.from_policy(tmp_path / "policy.toml", cloud=cloud) as router:
            labels_now = [target.label for target in router.engine.snapshot.targets]
            assert sum(label == "loss <= 4 % of all edge models together, 95 % sure" for label in labels_now) == count
            if count:
                assert router.evaluate(images[500:700], labels[500:700]).as_dict()["promise"].startswith("loss <= 4 %")


def test_language_models_by_their_first_tokens():
    """Edges that give text with the log-probabilities of its tokens, scored by the first two."""

    def edge(share):
        def answer(x):
            right, sure = x
            yield Piece("yes" if sure > share * right else "no", [-0.05 / (0.01 + sure), -0.01])

        return CallableModel(answer, version=str(share))

    rng = np.random.default_rng(3)
    x = [tuple(pair) for pair in rng.random((700, 2))]
    score = Prefix(2, "min")
    edges = [edge(0.5), edge(0.1)]
    cloud = Function(lambda _: "yes", version="1")
    with Router(edges, cloud, threshold=[0.0, 0.0], score=score) as router:
        result = router.calibrate(x, edge="all", max_loss=0.05)
    with Router(edges, cloud, threshold=result, options=Options(uncalibrated="error")) as router:
        answers = [router.infer(one) for one in x[:100]]
    assert result.certificate.score == "min of the first 2 tokens"
    assert any(answer.source == "edge" for answer in answers)
    assert all(labels(answer) == {"loss <= 5 % of all edge models together, 95 % sure"} for answer in answers)


def answering(confidence, version, right=is_right):
    """An edge model that is a function: its answer and its confidence by functions of the input."""
    return CallableModel(lambda x: (right(x), confidence(x)), version=version)


def rising(x):
    """A confidence that says nothing."""
    return float(1 / (1 + np.exp(-x[0])))


def wrong(x):
    return (is_right(x) + 1) % 3


@pytest.mark.parametrize(
    ("edges", "accepts"),
    [
        ([answering(lambda _: 1.0, "a"), answering(lambda _: 0.5, "b", wrong)], [True, False]),  # the first is the cloud
        ([answering(lambda _: 1.0, "a", wrong), answering(rising, "b")], [False, True]),  # it is always wrong
        ([answering(lambda _: None, "a"), answering(rising, "b")], [False, True]),  # it gives no confidence
        ([answering(rising, "a"), answering(lambda _: None, "b", wrong)], [True, False]),
        ([answering(lambda _: 0.5, "a", wrong), answering(lambda _: 0.5, "b", wrong)], [False, False]),  # all tie, and all wrong
        ([answering(lambda x: float(x[0] > 0), "a"), answering(lambda x: rising(x[1:]), "b", wrong)], [True, False]),  # worse
    ],
)
def test_edge_models_that_are_odd(edges, accepts):
    """Each is accepted where its answers are the cloud's, and nowhere else."""
    x, y = drawn(600, 4)
    certificate = certified(edges, list(x), y).certificate
    thresholds = [float(own["threshold"]) for own in certificate.ladder]
    assert [threshold < math.inf for threshold in thresholds] == accepts or (accepts[0] and certificate.deferral_rate < 0.02)
    labels = labels_of(edges, certificate)
    assert labels == [certificate.label] * 2
    if not any(accepts):
        assert "no threshold of msp keeps it" in repr(certified(edges, list(x), y))
        assert certificate.deferral_rate == 1


def test_too_few_examples(home):
    """The error says how many are missing: the test has two thirds of them."""
    x, y = drawn(30, 5)
    with pytest.raises(NotEnough, match="needs at least 88 examples, and there are 30: 58 are missing") as error:
        certified(edges_of(home, "small", "larger"), x, y)
    assert (error.value.needed, error.value.missing) == (88, 58)
    assert certified(edges_of(home, "small", "larger"), *drawn(88, 5)).certificate.n == 88


def test_groups_are_the_units(home):
    """Each counts the same, and there have to be enough of them."""
    x, y = drawn(900, 6)
    edges = edges_of(home, "small", "larger")
    certificate = certified(edges, x, y, groups=[i // 3 for i in range(900)], max_loss=0.05).certificate
    assert (certificate.n, certificate.groups) == (900, 300)
    assert "dithered" in certificate.method or certificate.method == "betting"
    with pytest.raises(NotEnough, match="groups, and there are 9:"):
        certified(edges, x, y, groups=[i // 100 for i in range(900)], max_loss=0.05)


@pytest.mark.parametrize(
    "asked",
    [{"per_class": True}, {"score": "auto"}, {"max_loss": None, "max_error": 0.1}, {"max_loss": None, "max_defer": 0.1},
     {"label": is_right}],
)  # fmt: skip
def test_what_is_not_certified_together(home, asked):
    """One line says what to do instead."""
    x, y = drawn(200, 7)
    with pytest.raises(PolicyError, match="calibrate one edge model after the other, edge=0 first"):
        certified(edges_of(home, "small", "larger"), x, y, **asked)


def test_one_edge_model_is_all(home):
    """The result is that of the edge model alone, and so is that of one with another score."""
    x, y = drawn(600, 8)
    (small,) = edges_of(home, "small")
    alone = calibrate(scored(small, x), np.array([wrong_of(small, one) for one in x]), np.ones(600, bool), max_loss=0.05)
    certificate = certified([small], x, y, max_loss=0.05).certificate
    assert certificate.ladder == ()
    assert certificate.threshold == pytest.approx(alone.threshold, abs=1e-6)
    both = certified([small, small], x, y, max_loss=0.05, score="margin").certificate
    assert both.score == "margin"


def wrong_of(path, x):
    """True where that model's answer is right."""
    logits = x @ np.array(SMALL, np.float32)
    return int(logits.argmax()) == is_right(x)


@pytest.mark.parametrize(("models", "draws"), [(2, 80), pytest.param(3, 200, marks=pytest.mark.slow)])
def test_the_ladder_loses_no_more_than_it_guarantees(models, draws):
    """In repeated draws of a ladder whose loss is known; more worlds are in `benchmarks/ladder_certificate.py`."""
    rng = np.random.default_rng(11)
    score = rng.random((20_000, models))
    harmed = rng.random(score.shape) < 0.3 * (1 - score) ** 2 * 0.4 ** np.arange(models)
    loss, limit, broken = harmed.astype(float), 0.02, 0
    for _ in range(draws):
        rows = rng.integers(0, 20_000, 500)
        found = lowest_thresholds(limit, 0.05, score[rows], loss[rows], wins=False)
        model = accepting(score, found.thresholds)
        true = sum(loss[model == k, k].sum() for k in range(models)) / 20_000
        broken += true > limit
    assert broken / draws <= 0.05 + 3 * (0.05 * 0.95 / draws) ** 0.5


serving = pytest.fixture(serve_right)


@pytest.mark.slow
def test_the_command_line(home, serving):
    """`--edge all` writes one certificate for all edge models, and `evaluate` measures it."""
    x, y = drawn(500, 9)
    np.savez(home / "all.npz", images=x, labels=y)
    np.savez(home / "recorded.npz", edge_logits=x[:, :3], cloud_logits=x[:, :3], labels=y)
    path = home / "all.toml"

    def policy(threshold):
        edges = '[[edge]]\npath = "small.onnx"\n[[edge]]\npath = "larger.onnx"\n'
        path.write_text(f'threshold = {threshold}\n{edges}[cloud]\nurl = "{serving}"\n')
        return path

    asked = ["calibrate", "--policy", policy('"whole.json"'), "--max-loss", "5%", "--edge", "all"]
    code, out, err = cli(*asked, "-d", home / "all.npz", "--out", home / "whole.json")
    assert (code, err) == (0, ""), err
    assert 'in the policy:\n    threshold = "whole.json"' in out
    assert re.search(r"threshold[^0-9]+\d\.\d+, then \d\.\d+", out)
    code, out, err = cli("evaluate", "--policy", path, "-d", home / "all.npz")
    assert (code, "with 95 % interval" in err) == (0, False)
    assert "loss <= 5 % of all edge models together, 95 % sure" in out
    assert re.search(r"threshold[^0-9]+\d\.\d+, then \d\.\d+", out)
    _, out, _ = cli("check", "--policy", path)
    assert out.count("certified, loss <= 5 % of all edge models together, 95 % sure") == 2, out
    for refused in (
        [*asked, "-d", home / "recorded.npz"],
        ["evaluate", "-p", path, "-d", home / "recorded.npz", "--edge", "all"],
    ):
        code, _, err = cli(*refused)
        assert code == 2
        assert "recorded outputs are of one edge model" in " ".join(err.split())
    code, _, err = cli("evaluate", "-p", path, "-d", home / "all.npz", "--edge", "last")
    assert (code, "expected a number from 0, or all" in " ".join(err.split())) == (2, True)


UNSURE = [("a", None), ("a", math.nan), ("b", 0.1), ("a", 0.9), ("refused", 0.9)]
"""Answers of an edge model, in turn."""


@pytest.mark.parametrize(("setting", "check", "evaluated"), [
    ("defer", None, 300), ("accept", None, 100), ("defer", "/[ab]/", 300), ("accept", "/[ab]/", 200),
])  # fmt: skip
def test_answers_without_a_confidence_reach_the_next_edge(setting, check, evaluated):
    """In a calibration as in the router that has its certificate; an evaluation is of the setting in force.

    None, NaN and .1 are deferred by a threshold of .5; with a check, which gives a confidence for None, the last answer.
    """
    first = CallableModel(lambda x: UNSURE[int(x) % 5], version="1", check=check)
    given = [first, CallableModel(lambda x: ("a", x / 500), version="1")], Function(lambda _: "a", version="1")
    inputs = list(range(500))
    with Router(*given, threshold=[0.5, 0.0], options=Options(no_confidence=setting)) as router:
        after = router.calibrate(inputs, max_loss=0.05, edge=1).certificate
        together = router.calibrate(inputs, max_loss=0.05, edge="all").certificate
        assert router.evaluate(inputs, edge=1).as_dict()["n"] == evaluated
    for threshold, reached in (([0.5, after], after.n), (together, 500 * together.ladder[1]["reach"])):
        with Router(*given, threshold=threshold) as router:
            name = router.engine.snapshot.targets[0].name
            assert sum(router.infer(x).leg != name for x in inputs) == pytest.approx(reached)
    assert after.n == 300
