"""`calibrate` and `evaluate` of both routers: real models, the numbers of the command line, and a router that goes on meanwhile."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import itertools
import json
import math
import os
import re
import subprocess
import sys
import threading
import types
from contextlib import closing

import numpy as np
import pytest
import routes
import tiny
from both import LONG, Tasks, Threads
from commands import cli
from pages import Closed

from edgeroute import (
    AsyncRouter,
    Audit,
    BadInput,
    Cache,
    CallableModel,
    CloudError,
    Egress,
    Function,
    Limits,
    MayNotLeave,
    ModelError,
    NoAnswer,
    OnnxModel,
    Options,
    Outbox,
    PolicyError,
    Router,
    RuntimeMissing,
    StoreError,
)
from edgeroute import (
    Closed as RouterClosed,
)
from edgeroute.confidence import Certificate, Learned, NotEnough, calibrate, margin, msp
from edgeroute.stores.json_lines_and_process_locks import read
from edgeroute.testing import FakeCloud

pytestmark = pytest.mark.pure

BOTH = pytest.mark.parametrize("kind", [Threads, Tasks])
LABELS = ["a", "b", "c"]
EDGE = [[3, 0, 0], [0, 3, 0], [0, 0, 3], [2, -1.5, 0]]


def drawn(n, seed=0):
    """Inputs [n, 4], of which the first three numbers say which class is right, and the classes."""
    x = np.random.default_rng(seed).normal(size=(n, 4)).astype(np.float32)
    return x, x[:, :3].argmax(1)


def logits(x):
    """What the edge model says."""
    return x @ np.array(EDGE, np.float32)


def knows(x):
    """A cloud that is always right."""
    return LABELS[int(x[:3].argmax())], 1.0


X, Y = drawn(600)
NAMES = [LABELS[i] for i in Y]
CLOUD = Function(knows, version="1")


@pytest.fixture
def model(tmp_path):
    """An edge model that the fourth number misleads."""
    return tiny.linear(tmp_path / "edge.onnx", weights=EDGE, card={"labels": LABELS})


# ------------------------------------------------------------------------------------------------ what is found
@BOTH
def test_examples_of_groups(kind, model):
    """The groups are what is drawn; a fitted score is cross-fitted without the group of what it scores."""
    scene = [f"scene {i}" for i in np.repeat(np.arange(300), 2)]
    with closing(kind(model, CLOUD, threshold=0.5)) as router:
        found = router.calibrate(X, Y, max_loss=0.1, groups=scene)
        wanted = calibrate(msp(logits(X)), logits(X).argmax(1) == Y, np.ones(600, bool), max_loss=0.1, groups=scene)
        assert found.certificate.threshold == pytest.approx(wanted.threshold, abs=1e-6)
        assert (found.certificate.groups, found.certificate.n) == (300, 600)
        half = router.calibrate(X, Y, max_loss=0.1, groups=np.array(scene), every=2)
        assert (half.certificate.groups, half.certificate.n) == (300, 300)
        fit = [router.calibrate(X, Y, max_loss=0.1, score="learned", groups=g).certificate.threshold for g in (scene, None)]
        assert fit[0] != fit[1]
        with pytest.raises(BadInput, match=r"^there are 600 inputs in X and 3 names in groups$"):
            router.calibrate(X, Y, max_loss=0.1, groups=["a", "b", "c"])
        with pytest.raises(BadInput, match=r"^groups must hold a name for each input, and is a str$"):
            router.calibrate(X, Y, max_loss=0.1, groups="scene")
        with pytest.raises(PolicyError, match="per_class and groups exclude each other"):
            router.calibrate(X, Y, max_error=0.1, groups=scene, per_class=True)


@BOTH
def test_a_threshold_with_the_guarantee_that_answers_then_quote(kind, model):
    """It is the one that `edgeroute.confidence.calibrate` finds in the outputs of the models; a router takes it as it is."""
    right = logits(X).argmax(1) == Y
    with closing(kind(model, CLOUD, threshold=0.5)) as router:
        found = router.calibrate(X, Y, max_loss=0.05, sure=0.9)
    wanted = calibrate(msp(logits(X)), right, np.ones(600, bool), agree=right, max_loss=0.05, sure=0.9, name="msp")
    assert found.certificate.threshold == pytest.approx(wanted.threshold, abs=1e-6)
    same = {"threshold": 0, "fingerprints": {}, "examples": "", "seal": ""}  # the sketch is of the outputs, where there are any
    assert found.certificate._replace(**same) == wanted._replace(**same)
    assert (found.score, found.why, found.fitted, found.notes) == ("msp", "", None, [])
    with closing(
        kind(model, CLOUD, threshold=found.certificate, score=found.score, options=Options(uncalibrated="error"))
    ) as router:
        assert routes.label(router.infer(X[0])) == found.certificate.label
        tested = router.evaluate(*drawn(2000, 1))
    new, labels = drawn(2000, 1)
    accepted = msp(logits(new)) >= found.certificate.threshold
    assert (tested.n, tested.held) == (2000, True)
    assert tested.deferral.value == pytest.approx((~accepted).mean())
    assert tested.accuracy["cascade"].value == pytest.approx(np.where(accepted, logits(new).argmax(1) == labels, True).mean())
    assert tested.latency_s.keys() == {"edge", "cloud", "cascade"}
    assert json.loads(json.dumps(tested.as_dict()))["promise"] == "loss <= 5 %, 90 % sure"
    assert "It held on these inputs." in tested.verdict
    assert re.fullmatch(
        r"<EvaluationResult of 2,000 inputs: cascade \S+ % right, \S+ % deferred, the guarantee held>", repr(tested)
    )
    assert re.fullmatch(r"<CalibrationResult loss <= 5 %, 90 % sure: threshold 0\.\d+ of msp, \S+ % of 600 .*>", repr(found))


@pytest.mark.slow
@BOTH
def test_the_numbers_are_those_of_the_command_line(kind, fashion, fashion_server, tmp_path):
    """The shipped pair: of the same policy and data, the certificate is the same, and so is all of the evaluation but times."""
    path = tmp_path / "policy.toml"
    path.write_text(f'[edge]\npath = "{fashion / "edge.int8.onnx"}"\n[cloud]\nurl = "{fashion_server}/v2/models/fashion-large"\n')
    data = fashion / "sample.npz"
    with np.load(data) as kept:
        images, labels = kept["images"], kept["labels"]
    code, out, err = cli("calibrate", "-p", path, "-d", data, "--max-loss", "2%", "--json")
    assert code == 0, err
    with closing(kind(fashion / "edge.int8.onnx", f"{fashion_server}/v2/models/fashion-large", threshold=0.5)) as router:
        found = router.calibrate(images, labels, max_loss=0.02)
    assert found.as_dict()["certificate"] == json.loads(out)["certificate"]
    gc.collect()  # routers of one policy share its endpoint, and one that has gone may have asked what the model takes
    path.write_text('threshold = "certificate.json"\nuncalibrated = "error"\n' + path.read_text())
    code, out, err = cli("evaluate", "-p", path, "-d", data, "--batch", "50", "--json")
    assert code == 0, err
    told = json.loads(out)
    gc.collect()
    with closing(kind.from_policy(path)) as router:
        tested = router.evaluate(images, labels, batch=50)
    assert tested.evaluation.names.policy == "policy.toml"
    times = dict.fromkeys(["latency_s"])
    assert {**tested.as_dict(), **times} == {**told, **times}
    assert told["accuracy"]["cloud"]["value"] > 0.92


@BOTH
def test_without_labels_the_cloud_is_what_is_right(kind, model):
    """Agreement is guaranteed; an evaluation counts it likewise."""
    with closing(kind(model, CLOUD, threshold=0.9)) as router:
        found = router.calibrate(X, max_loss=0.1, every=2)
        tested = router.evaluate(X)
    assert (found.certificate.agreement, found.certificate.n) == (True, 300)
    assert tested.accuracy["cloud"].value == 1
    assert "as the cloud says" in repr(tested)
    assert (tested.held, tested.as_dict()["labelled"]) == (None, False)


def test_scores(model):
    """One that is fitted, the better one of two, a name, a function: the certificate is for the one that the result has."""
    with Router(model, CLOUD, threshold=0.5) as router:
        learned = router.calibrate(X, Y, max_loss=0.05, score="learned")
        chosen = router.calibrate(X[:45], Y[:45], max_defer=0.5, score="auto")
        other = router.calibrate(X, Y, max_error=0.1, score="margin")
        own = router.calibrate(X, Y, max_error=0.1, score=margin)
    assert isinstance(learned.fitted, Learned)
    assert learned.certificate.fingerprints["score"] == learned.score.fingerprint
    assert (chosen.score, chosen.fitted) == ("msp", None)
    assert "fewer than 50" in chosen.why
    assert (other.score, other.certificate.score) == ("margin", "margin")
    assert own.score is margin
    assert own.certificate.threshold == pytest.approx(other.certificate.threshold)
    assert "was fitted: the guarantee holds if it was fitted to other examples" in own.notes[0]
    for found in (learned, other, own):
        with Router(
            model, CLOUD, threshold=found.certificate, score=found.score, options=Options(uncalibrated="error")
        ) as router:
            assert routes.label(router.infer(X[0])) == found.certificate.label
    with Router(OnnxModel(model, score="entropy"), CLOUD, threshold=0.5) as router:
        assert router.calibrate(X, Y, max_error=0.1).certificate.score == "entropy"
        assert router.calibrate(X, Y, max_error=0.1, score="entropy").certificate.score == "entropy"
        with pytest.raises(PolicyError, match="has its own score"):
            router.calibrate(X, Y, max_error=0.1, score="learned")


def test_a_score_fitted_to_probabilities():
    """It is fitted to their logarithms, which it is given in use, too: the scores are as those of the logits."""

    def softmax(x):
        z = np.exp(logits(x).astype(float))
        return z / z.sum()

    edge = CallableModel(softmax, kind="probabilities", labels=LABELS, version="1")
    with Router(edge, CLOUD, threshold=0.5) as router:
        found = router.calibrate(X, Y, max_loss=0.05, score="learned")
    with Router(edge, CLOUD, threshold=found.certificate, score=found.score, options=Options(uncalibrated="error")) as router:
        sure = np.array([router.infer(x, mode="only_edge").confidence for x in X])
        tested = router.evaluate(X, Y)
    assert sure == pytest.approx(found.score.many(np.log([softmax(x) for x in X])))
    assert tested.deferral.value == pytest.approx(found.certificate.deferral_rate, abs=0.03)


def test_one_of_several_edges_by_its_number(model):
    """On what reaches it, which here is everything."""
    second = CallableModel(lambda x: (LABELS[int(x[:3].argmax())], 0.25 + abs(float(x[3])) / 100), name="second", version="1")
    with Router([model, second], CLOUD, threshold=[math.inf, 0.5]) as router:
        found = router.evaluate(X, NAMES, edge=1)
        assert found.accuracy["edge"].value == 1
        assert found.deferral.value == 1
        assert router.evaluate(X, Y).deferral.value == 1
        for number in (2, -1, True):
            with pytest.raises(PolicyError, match="there is no edge model number"):
                router.evaluate(X, Y, edge=number)


def test_a_model_that_nothing_identifies():
    """The certificate would hold nowhere: that is said when it is made."""
    names = LABELS

    def known(x):
        return "abc"[int(x[:3].argmax())], float(abs(x[3])) % 1

    def unknown(x):
        return names[int(x[:3].argmax())], float(abs(x[3])) % 1

    with Router(known, threshold=0.5) as router:
        assert router.calibrate(X, NAMES, max_error=0.9).notes == []
    with Router(unknown, threshold=0.5) as router:
        result = router.calibrate(X, NAMES, max_error=0.9)
    (note,) = result.notes
    assert 'uncalibrated: the edge model cannot be identified: give version=, as in CallableModel(f, version="1")>' in str(result)
    with Router(unknown, CLOUD, threshold=result) as router:
        assert "uncalibrated: the edge model cannot be identified" in repr(router.evaluate(X, NAMES))
    assert "will call this certificate uncalibrated: the edge model cannot be identified: give version=" in note


def test_where_no_threshold_keeps_the_promise(model):
    """All is deferred, in plain words."""
    with Router(model, threshold=0.5) as router:
        found = router.calibrate(X, (logits(X).argmax(1) + 1) % 3, max_error=0.05)
    assert repr(found) == (
        "<CalibrationResult error <= 5 %, 95 % sure: no threshold of msp keeps it with 600 examples, so all are deferred>"
    )
    Closed(found.html())


def test_a_certificate_for_each_class(model):
    """Their thresholds are on the page."""
    with Router(model, CLOUD, threshold=0.5) as router:
        found = router.calibrate(X, Y, max_error=0.15, per_class=True)
    assert {*found.certificate.thresholds} == {*LABELS}
    assert "thresholds of 3 classes" in repr(found)
    assert "threshold" in found.html().split("<h2>Classes</h2>")[1]


# ----------------------------------------------------------------------------------------------------- X and y
class Dataset:
    """As torch's: it has a length, and items."""

    def __len__(self):
        return len(X)

    def __getitem__(self, i):
        return X[i]


@pytest.mark.parametrize(
    ("inputs", "labels"),
    [
        (X, Y),
        (list(X), Y.tolist()),
        (tuple(X), tuple(LABELS[i] for i in Y)),
        (Dataset(), Y.astype(np.uint8)),
        (X, Y[:, None].astype(float)),
        (X, np.array([LABELS[i] for i in Y])),
    ],
    ids=["arrays", "lists", "names", "dataset", "column", "texts"],
)
def test_what_inputs_and_labels_may_be(model, inputs, labels):
    """An array, a list, anything with a length and items; class indices or names."""
    with Router(model, threshold=0.5) as router:
        found = router.evaluate(inputs, labels)
    assert found.accuracy["edge"].value == pytest.approx((logits(X).argmax(1) == Y).mean())


def test_several_inputs_and_views(tmp_path):
    """A mapping has the rows of each; the views take what is theirs."""
    both = tiny.two_inputs(tmp_path / "two.onnx")
    columns = {"a": X[:, :2], "b": list(X[:, 2:])}
    with Router(OnnxModel(both, output="total", kind="logits"), threshold=0.5) as router:
        total = columns["a"] + X[:, 2:]
        assert router.evaluate(columns, total.argmax(1)).accuracy["edge"].value == 1
    edge, seen = tiny.linear(tmp_path / "edge.onnx", weights=EDGE), []
    cloud = Function(lambda text: (seen.append(text), (int(text), 1.0))[1], version="1")
    with Router(edge, cloud, threshold=0.5, options=Options(views={"edge": "x", "cloud": "text"})) as router:
        found = router.evaluate({"x": X, "text": [str(i) for i in Y]}, Y, every=100)
    assert found.accuracy["cloud"].value == 1
    assert seen == [str(i) for i in Y[::100]]


WRONG = [
    ({"X": []}, "there are no inputs"),
    ({"X": np.zeros((0, 4), np.float32), "y": []}, "there are no inputs"),
    ({"X": (x for x in X)}, r"not an iterator \(generator\).*pass list\(X\)"),
    ({"X": "photo.png"}, "X must hold the inputs in order.*X is a str"),
    ({"X": 3}, "X is a int"),
    ({"X": np.float32(3)}, "X is a float32"),
    ({"X": np.array(3)}, "an array without an axis"),
    ({"X": {"a": X, "b": X[:5]}}, "the rows of X differ in number: 'a' has 600, 'b' has 5"),
    ({"X": {"a": X, "b": 3}}, r"X\['b'\] is a int"),
    ({"X": [iter([1])]}, "can be read only once"),
    ({"X": type("Table", (), {"iloc": 0})()}, r"X is a Table: pass its values, as X.to_numpy\(\)"),
    ({"X": X, "y": Y[:5]}, "600 inputs in X and 5 labels in y"),
    ({"X": X, "y": iter(Y)}, r"pass list\(y\)"),
    ({"X": X, "y": "ab"}, "y must hold a label for each input, and is a str"),
    (
        {"X": X, "y": np.eye(3)[Y]},
        r"is \[600, 3\]: pass the class, as with y.argmax\(1\), or for a regression .* grade each answer",
    ),
    ({"X": X, "y": [*Y[:-1], np.nan]}, "label 599 is nan: give each input a label, or none"),
    ({"X": X, "y": [None, *Y[1:]]}, "label 0 is None"),
    ({"X": X, "y": [7, *Y[1:]]}, "label 0 is 7, and the edge model's classes are numbers 0 to 2"),
    ({"X": np.zeros((9, 5), np.float32)}, r"input 0: .*expected \[4\]"),
]


@pytest.mark.parametrize(("wrong", "why"), WRONG)
@BOTH
def test_wrong_data_is_refused_in_one_line(kind, model, wrong, why):
    """Before anything is run, but for an input that does not fit the model."""
    cloud = FakeCloud([("a", 1.0)])
    with closing(kind(model, cloud, threshold=0.5)) as router:
        for call in (router.evaluate, lambda *data: router.calibrate(*data, max_loss=0.1)):
            with pytest.raises(BadInput, match=why) as raised:
                call(wrong["X"], wrong.get("y"))
            assert "\n" not in str(raised.value)
    assert cloud.runs == 0


def test_labels_that_no_answer_can_be_equal_to():
    """Texts beside numbers would be a silent accuracy of 0."""
    cloud = FakeCloud([("a", 1.0)])
    with (
        Router(lambda x: (LABELS[0], 0.5), cloud, threshold=0.5) as router,
        pytest.raises(
            BadInput,
            match=r"the answer of the edge \('a'\) is not one of the labels \(2\): it gives text, and the labels are numbers",
        ),
    ):
        router.evaluate(X, Y)
    assert cloud.runs == 0


def test_labels_that_are_spelt_otherwise():
    """Where none is ever an answer nothing could be lost, and everything would be certified."""
    with Router(lambda x: (LABELS[int(x.sum() > 0)], math.tanh(abs(x.sum()))), FakeCloud([("b", 1.0)]), threshold=0.5) as router:
        for measure in (lambda labels: router.calibrate(X, labels, max_loss=0.02), lambda labels: router.evaluate(X, labels)):
            with pytest.raises(
                BadInput,
                match=r"none of the edge's 600 answers \('[ab]'\) is ever one of the labels \('x'\). None could be right",
            ):
                measure(["x", "y"] * 300)
            measure(["x", "y"] * 299 + ["a", "b"])
        assert router.evaluate(X[:5], ["c"] * 5).accuracy["cascade"].value == 0  # which a few may well be


def test_the_verdict_says_that_these_are_the_calibrations_own_examples():
    """On which a guarantee holds nearly always."""
    cloud = FakeCloud([("b", 1.0)])

    def edge(x):
        return LABELS[int(x.sum() > 0)], math.tanh(abs(x.sum()))

    with Router(edge, cloud, threshold=0.5) as router:
        made = router.calibrate(X[:300], ["b"] * 300, max_loss=0.02)
    with Router(edge, cloud, threshold=made.certificate) as router:
        assert (
            "About 100 % of these examples are those that the certificate was calibrated on"
            in router.evaluate(X[:300], ["b"] * 300).verdict
        )
        assert "calibrated on" not in router.evaluate(X[300:], ["b"] * 300).verdict


@pytest.mark.parametrize(
    ("asked", "why"),
    [
        ({}, "pass exactly one of max_loss, max_error, max_defer: none given"),
        ({"max_loss": 0.1, "max_error": 0.1}, "max_defer: 2 given"),
        ({"max_loss": "1%"}, "max_loss must be a share between 0 and 1, not '1%': 1 % is 0.01"),
        ({"max_loss": 5}, "not 5: 5 % is 0.05"),
        ({"max_loss": 0.05, "sure": 95}, "not 95: 95 % is 0.95"),
        ({"max_loss": 1}, "max_loss must be a share between 0 and 1, not 1"),
        ({"max_loss": np.nan}, "max_loss must be a share"),
        ({"max_loss": 0.1, "sure": 95}, "sure must be a probability between 0 and 1, not 95"),
        ({"max_loss": 0.1, "sure": None}, "works only with max_defer"),
        ({"max_defer": 0.1, "per_class": True}, "one threshold for all classes"),
        ({"max_loss": 0.1, "score": "learnt"}, "there is no score 'learnt': did you mean \"learned\""),
        ({"max_loss": 0.1, "score": 3}, "score= must be a name or a function"),
        ({"max_loss": 0.1, "ood": True}, "works with a fitted score"),
        ({"max_loss": 0.1, "batch": 0}, "batch= takes a whole number, 1 or more"),
        ({"max_loss": 0.1, "every": 1.5}, "every= takes a whole number, 1 or more"),
        ({"max_loss": 0.1, "data_class": 3}, "data_class is a name"),
        ({"max_loss": 0.1, "progress": "bar"}, "progress= must be True, False, or a function"),
        ({"max_error": 0.1}, "max_error needs labels"),
    ],
)
@BOTH
def test_what_cannot_be_asked_for(kind, model, asked, why):
    """It is refused before anything is run."""
    cloud = FakeCloud([("a", 1.0)])
    with closing(kind(model, cloud, threshold=0.5)) as router, pytest.raises(PolicyError, match=why) as raised:
        router.calibrate(X, **asked)
    assert "\n" not in str(raised.value)
    assert cloud.runs == 0


def test_what_this_router_cannot_do(model):
    """There is no cloud, no threshold, too few examples; the router is closed."""
    with Router(model) as router:
        with pytest.raises(PolicyError, match="max_loss is measured against the cloud, and there is none"):
            router.calibrate(X, Y, max_loss=0.1)
        with pytest.raises(PolicyError, match="fitting a score needs labels or the cloud's answers"):
            router.calibrate(X, max_defer=0.1, score="auto")
        with pytest.raises(NotEnough, match="needs at least 299 examples, and there are 100: 199 are missing"):
            router.calibrate(X[:100], Y[:100], max_error=0.01)
        assert router.calibrate(X, Y, max_defer=0.2, score="auto").certificate.kind == "max_defer"
    with pytest.raises(RouterClosed):
        router.calibrate(X, Y, max_error=0.1)
    with Router(model, CLOUD, mode="prefer_cloud") as router, pytest.raises(PolicyError, match="no threshold to evaluate"):
        router.evaluate(X, Y)


@pytest.mark.parametrize(
    ("asked", "why"),
    [
        ({}, "needs at least 149 examples, and there are 100: 49 are missing"),
        ({"y": NAMES[:100]}, "149 examples, and there are 100"),
        ({"groups": [i // 2 for i in range(100)]}, "needs at least 149 groups, and there are 50: 99 are missing"),
        ({"per_class": True}, r"needs at least \d+ examples of one predicted class, and there are \d+"),
        ({"label": "a".format}, "149 examples, and there are 100"),
        ({"score": "auto"}, "149 examples, and there are 100"),
        ({"every": 2}, "149 examples, and there are 50"),
        ({"edge": "all"}, "needs at least 223 examples, and there are 100"),
        ({"max_loss": None, "max_defer": 0.005, "sure": None, "score": "auto"}, "needs at least 199 examples, and there are 100"),
    ],
)
@BOTH
def test_too_few_examples_cost_no_call(kind, model, asked, why):
    """The number that is needed is known before the cloud is asked, and paid."""
    cloud = FakeCloud([("a", 1.0)])
    edges = [model, model] if asked.get("edge") == "all" else model
    with closing(kind(edges, cloud, threshold=0.5)) as router, pytest.raises(NotEnough, match=why):
        router.calibrate(X[:100], **{"max_loss": 0.02, **asked})
    assert cloud.runs == 0


# ------------------------------------------------------------------------------------------- a router that goes on
@BOTH
def test_the_router_is_as_before(kind, model, tmp_path):
    """No example is cached, queued, audited, traced or counted; what was sent is in the ledger, and costs."""
    traced = []
    cloud = Function(knows, version="1", usd_per_call=0.01)
    options = {
        "cache": Cache(), "outbox": Outbox(tmp_path / "outbox.db"), "audit": Audit(share=1.0), "trace": traced.append,
        "deadline": 1e-9, "hedge_after": 0.0, "offline": "queue", "state": tmp_path,
    }  # fmt: skip
    with closing(kind(model, cloud, threshold=0.5, **options)) as router:
        engine = getattr(router, "router", router).engine
        before = engine.stats()
        found = router.evaluate(np.concatenate([X[:50], X[:50]]), np.concatenate([Y[:50], Y[:50]]))
        after = engine.stats()
    assert found.as_dict()["usd"] == pytest.approx(1)  # the second half is not from the cache
    assert after.usd_today == pytest.approx(1)
    assert after._replace(usd_today=0.0, legs=()) == before._replace(legs=())
    assert [leg.started for leg in after.legs] == [0, 0]
    assert traced == []
    sent = list(read(tmp_path / "egress.jsonl"))
    assert len(sent) == 100
    assert len({line["request"] for line in sent}) == 100
    assert not list(read(tmp_path / "audit.jsonl")) if (tmp_path / "audit.jsonl").exists() else True


@BOTH
def test_what_may_leave_and_what_may_be_spent(kind, model):
    """Egress rules, consent and limits hold for examples; what is refused is not sent."""
    cloud, asked = FakeCloud([("a", 1.0)]), []
    egress = Egress(never_leave=["medical"], may_leave=["product"], consent=lambda *given: asked.append(given) or len(asked) < 3)
    with closing(kind(model, cloud, threshold=0.5, egress=egress)) as router:
        with pytest.raises(
            MayNotLeave,
            match=r"every example is sent to the cloud, and 600 of 600 may not be: .*medical.*; leave them out",
        ):
            router.calibrate(X, Y, max_loss=0.1, data_class="medical")
        assert cloud.runs == 0
        assert router.evaluate(X, Y, data_class="medical", ask_cloud=False).accuracy.keys() == {"edge", "accepted"}
        with pytest.raises(NoAnswer, match=r"did not answer 1 of the 3 inputs.*consent was not given"):
            router.evaluate(X[:50], Y[:50], data_class="product")
    assert cloud.runs == 2
    cloud = FakeCloud([("a", 1.0)])
    priced = Function(cloud, usd_per_call=0.01)
    router = kind(model, priced, threshold=0.5, limits=Limits(usd_per_day=0.1))
    with closing(router), pytest.raises(NoAnswer, match="usd_per_day"):
        router.evaluate(X, Y)
    assert cloud.runs == 10


@BOTH
def test_calls_meanwhile_are_answered(kind, model):
    """While a calibration waits for the cloud, the router answers on the edge and asks that cloud."""
    gate, asked = threading.Event(), threading.Event()

    def cloud(x):
        if x[3] == 7:
            return "b", 1.0
        asked.set()
        assert gate.wait(LONG)
        return knows(x)

    mine = X[0].copy()
    mine[3] = 7
    with closing(kind(model, cloud, threshold=0.5)) as router:
        done = []
        thread = threading.Thread(target=lambda: done.append(router.evaluate(X[:100], Y[:100])))
        thread.start()
        assert asked.wait(LONG)
        assert router.infer(mine, mode="only_edge").source == "edge"
        assert router.infer(mine, mode="only_cloud").value == "b"
        assert router.infer_many([mine, mine], mode="only_cloud")[1].value == "b"
        assert not done
        gate.set()
        thread.join(LONG)
    assert done[0].accuracy["cloud"].value == 1


def test_half_of_a_rate_is_left_to_others(model):
    """A calibration waits rather than take what calls need; more rows than the rate ever has are asked one by one."""
    with Router(model, Function(knows, version="1", calls_per_s=400), threshold=0.5) as router:
        assert router.evaluate(X, Y, batch=500).accuracy["cloud"].value == 1
        assert all(router.infer(x, mode="only_cloud").value for x in X[:150]), "a burst of others is not held back"


@BOTH
def test_an_edge_that_fails(kind):
    """It is said on which input, and how."""

    def edge(x):
        if x == 3:
            raise KeyError("no such thing")
        return "a", 0.5

    with closing(kind(edge, lambda x: "a", threshold=0.5)) as router:
        with pytest.raises(ModelError, match=r"^input 2: edge failed: KeyError: 'no such thing'$") as failed:
            router.calibrate([1, 2, 3, 4] * 100, max_loss=0.01)
        assert isinstance(failed.value.__cause__, KeyError)


@BOTH
def test_a_cloud_that_fails(kind, model):
    """One in a hundred may be left out, which is noted, and told; in a batch those alone that fail."""
    bad = X[3]

    def cloud(x):
        if (x == bad).all():
            raise RuntimeError("not that one")
        return knows(x)

    with closing(kind(model, cloud, threshold=0.5)) as router:
        for batch in (1, 7):
            found = router.evaluate(X, Y, batch=batch)
            assert (found.n, found.notes) == (599, ["1 of 600 inputs are left out: the cloud did not answer them"])
            assert found.as_dict()["notes"] == found.notes
        with pytest.raises(NoAnswer, match=r"1 of the 4 inputs.* at most 0 may be left out: RuntimeError: not that one"):
            router.evaluate(X[:50], Y[:50])
    calls = []

    def away(x):
        calls.append(x)
        raise CloudError("away")

    with closing(kind(model, away, threshold=0.5)) as router, pytest.raises(NoAnswer, match=r"1 of the 1 inputs.*away"):
        router.evaluate(X, Y)
    assert len(calls) == 1


@BOTH
def test_closed_in_the_middle(kind, model):
    """It says so, and asks for nothing more."""
    cloud = FakeCloud(knows)
    with closing(kind(model, cloud, threshold=0.5)) as router:
        engine = getattr(router, "router", router).engine

        def progress(done, total):
            if done == 610:
                engine.closed = True  # as the first thing that close() does, whichever thread calls it

        with pytest.raises(RouterClosed):
            router.evaluate(X, Y, progress=progress)
        assert cloud.runs == 10
        engine.closed = False


# ------------------------------------------------------------------------------------------------------ asyncio
def test_edges_that_are_awaited():
    """They are run on the loop, and so is an asynchronous cloud."""

    async def edge(x):
        await asyncio.sleep(0)
        return LABELS[int(logits(x).argmax())], float(msp(logits(x)))

    async def cloud(x):
        await asyncio.sleep(0)
        return knows(x)

    async def measured():
        async with AsyncRouter(CallableModel(edge, version="1"), Function(cloud, version="1"), threshold=0.5) as router:
            return await router.calibrate(X, NAMES, max_loss=0.05), await router.evaluate(X)

    found, tested = asyncio.run(measured())
    right = logits(X).argmax(1) == Y
    assert found.certificate.threshold == pytest.approx(calibrate(msp(logits(X)), right, np.ones(600), max_loss=0.05).threshold)
    assert tested.n == 600


@pytest.mark.parametrize("quick", [True, False])
def test_the_loop_goes_on(model, quick):
    """Other tasks have their turn between any two inputs, whether the edge runs in a thread or, quick, on the loop."""

    async def measured():
        ticks, seen = [], []

        async def tick():
            while len(seen) < len(X):
                ticks.append(None)
                await asyncio.sleep(0)

        async with AsyncRouter(model, threshold=0.5) as router:
            if quick:
                router.engine.observer.facts = router.engine.observer.facts._replace(edge_s=1e-6)
            task = asyncio.ensure_future(tick())
            await router.evaluate(X, Y, progress=lambda *_: seen.append(len(ticks)))
            await task
        return seen

    seen = asyncio.run(measured())
    assert len(seen) == len(X)
    assert all(one < after for one, after in itertools.pairwise(seen))


def test_cancelling_ends_it(model):
    """No further input is run, and the router goes on."""

    async def measured():
        begun, seen = asyncio.Event(), []

        async def cloud(x):
            seen.append(x)
            begun.set()
            if len(seen) == 1:
                await asyncio.Event().wait()
            return knows(x)

        async with AsyncRouter(model, cloud, threshold=0.5) as router:
            task = asyncio.ensure_future(router.calibrate(X, Y, max_loss=0.1))
            await begun.wait()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert len(seen) == 1
            return await router.infer(X[0], mode="only_cloud")

    assert asyncio.run(asyncio.wait_for(measured(), LONG)).value == knows(X[0])[0]


def test_closed_while_the_cloud_is_asked(model):
    """The call ends with that, not with a failure of the cloud."""

    async def measured():
        begun = asyncio.Event()

        async def cloud(x):
            begun.set()
            await asyncio.Event().wait()

        async with AsyncRouter(model, cloud, threshold=0.5) as router:
            task = asyncio.ensure_future(router.evaluate(X, Y))
            await begun.wait()
            await router.close()
            with pytest.raises(RouterClosed):
                await task

    asyncio.run(asyncio.wait_for(measured(), LONG))


# ----------------------------------------------------------------------------------------------------- progress
@BOTH
def test_progress_is_told_to_a_function(kind, model):
    """Of edge and cloud, up to the end; what it raises ends the run."""
    told = []
    with closing(kind(model, CLOUD, threshold=0.5)) as router:
        router.evaluate(X[:30], progress=lambda *at: told.append(at))
        assert told == [(i, 60) for i in range(1, 61)]

        def stop(done, total):
            raise KeyError(done)

        with pytest.raises(KeyError):
            router.evaluate(X, progress=stop)


def test_progress_without_a_terminal(model, capsys):
    """By itself nothing; lines if it is asked for."""
    with Router(model, threshold=0.5) as router:
        router.evaluate(X)
        router.evaluate(X, progress=False)
        assert capsys.readouterr() == ("", "")
        router.evaluate(X, progress=True)
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines()[::9] == ["asking the edge: 60 of 600", "asking the edge: 600 of 600"]


def test_progress_in_a_terminal(model):
    """A bar on stderr, which is gone afterwards."""
    program = (
        "import sys, numpy as np; from edgeroute import Router\n"
        f"router = Router({str(model)!r}, threshold=0.5)\n"
        "router.evaluate(np.zeros((200, 4), np.float32)); router.close()"
    )
    pty = pytest.importorskip("pty")
    main, other = pty.openpty()
    child = subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=other, env={**os.environ, "TERM": "xterm"}
    )
    os.close(other)
    seen = b""
    with contextlib.suppress(OSError):  # the other end is closed
        while piece := os.read(main, 1 << 16):
            seen += piece
    os.close(main)
    assert (child.communicate()[0], child.returncode) == (b"", 0)
    assert b"asking the edge" in seen
    assert b"200" in seen


def test_progress_in_a_notebook(model, monkeypatch):
    """One output, which changes."""
    shown = []

    class Handle:
        def update(self, html):
            shown.append(html)

    def display(html, display_id):
        assert display_id
        shown.append(html)
        return Handle()

    shell = types.SimpleNamespace(kernel=object())
    ipython = types.ModuleType("IPython")
    ipython.get_ipython = lambda: shell
    module = types.ModuleType("IPython.display")
    module.HTML, module.display = str, display
    monkeypatch.setitem(sys.modules, "IPython", ipython)
    monkeypatch.setitem(sys.modules, "IPython.display", module)
    with Router(model, threshold=0.5) as router:
        router.evaluate(X)
        assert shown[0] == '<progress value="1" max="600"></progress> asking the edge: 1 of 600'
        assert shown[-1] == '<progress value="600" max="600"></progress> asking the edge: 600 of 600'
        shell.kernel = None
        shown.clear()
        router.evaluate(X)
        assert shown == []


# -------------------------------------------------------------------------------------------------------- pages
@pytest.fixture
def results(model):
    """A calibration and an evaluation, with all that they can have."""
    with Router(model, CLOUD, threshold=0.5) as router:
        found = router.calibrate(X, Y, max_loss=0.05, score="auto")
    with Router(model, CLOUD, threshold=found.certificate, score=found.score) as router:
        return found, router.evaluate(*drawn(300, 2))


@pytest.mark.slow
def test_a_page_to_save(results, tmp_path):
    """It is whole, and says what was found; a calibration says that its own examples flatter it."""
    found, tested = results
    for result in results:
        text = Closed(result.html())
        assert len(text.ids) == len(set(text.ids))
        assert not {tag for tag, _ in text.tags} & {"script", "img", "link", "iframe"}
        assert found.certificate.guarantee in " ".join(text.text).replace("\xa0", " ")
    assert "edgeroute calibration" in found.html()
    assert "what it does on them is optimistic" in found.html()
    assert "optimistic" not in tested.html()
    tested.save(tmp_path / "page.html")
    assert (tmp_path / "page.html").read_text() == tested.html()
    for result in results:
        with pytest.raises(StoreError, match="cannot be written"):
            result.save(tmp_path / "none" / "x.json")


def test_what_is_saved_is_what_a_policy_names(model, tmp_path):
    """The certificate, and the score that was fitted."""
    with Router(model, CLOUD, threshold=0.5) as router:
        found = router.calibrate(X, Y, max_loss=0.05, score="learned")
        plain = router.calibrate(X, Y, max_loss=0.05)
    lines = found.save(tmp_path / "promise.json")
    assert lines == {"threshold": "promise.json", "score": "promise.score.json"}
    assert Certificate.load(tmp_path / "promise.json") == found.certificate
    policy = "".join(f'{key} = "{value}"\n' for key, value in lines.items())
    (tmp_path / "policy.toml").write_text(
        f'{policy}[edge]\npath = "edge.onnx"\n[cloud]\nurl = "http://127.0.0.1:9/v2/models/x"\n'
    )
    with Router.from_policy(tmp_path / "policy.toml") as router:
        answer = router.infer(X[0], mode="only_edge")
        assert answer.confidence == pytest.approx(found.score(logits(X[0])), abs=1e-6)
    assert plain.save(tmp_path / "plain.json") == {"threshold": "plain.json", "score": "msp"}
    assert not (tmp_path / "plain.score.json").exists()


def cell_of(result):
    """The result, as a notebook shows it."""
    return result._repr_html_()  # private: the name by which IPython asks for it


@pytest.mark.slow
def test_a_notebook_shows_the_page_in_its_own_colours(results):
    """Nothing of its style concerns other elements, and no two of them share an id."""
    cells = [cell_of(result) for result in (*results, results[0])]
    ids = []
    for cell in cells:
        found = Closed(cell)
        ids += found.ids
        assert set(re.findall(r"(?:url\(|href=\")#([\w.-]+)", cell)) <= set(found.ids)
        assert not {tag for tag, _ in found.tags} & {"html", "head", "body", "title", "meta", "script"}
        (style,) = re.findall(r"<style>(.*?)</style>", cell, re.DOTALL)
        plain = re.sub(r"@media[^{]*\{", "", style)
        selectors = [one.strip() for rule in re.findall(r"([^{}]+)\{", plain) for one in rule.split(",")]
        assert len(selectors) > 30
        assert all(one.startswith(".edgeroute-report") for one in selectors)
        assert "light dark" not in style
        assert "svg" in {tag for tag, _ in found.tags}
    assert len(ids) == len(set(ids))
    assert results[0].certificate.guarantee in cells[0].replace("&nbsp;", " ")


def test_without_the_plotting_library(results, monkeypatch):
    """A notebook shows the numbers, and what is missing; a page says it as an error."""
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    for result in results:
        cell = cell_of(result)
        Closed(cell)
        assert "The figures need matplotlib" in cell
        assert results[0].certificate.guarantee in cell.replace("&nbsp;", " ")
        with pytest.raises(RuntimeMissing, match=re.escape("edgeroute[demo]")):
            result.html()
