"""Scores against their formulas, and the reading of outputs."""

from __future__ import annotations

import math
from types import SimpleNamespace

import numpy as np
import pytest
from draws import draws
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeroute import BadReply, CallableModel, Ensemble, PolicyError, Router
from edgeroute.confidence import SCORES, Reader, energy, entropy, fit, margin, msp, quantile
from edgeroute.confidence.scores import ARRAYS, ROWS

logits = st.lists(st.floats(-30, 30), min_size=2, max_size=100)


def softmax(z):
    e = np.exp(np.asarray(z, np.longdouble) - max(z))
    return e / e.sum()


@settings(max_examples=draws(200), deadline=None)
@given(logits)
def test_formulas(z):
    """Each score equals its formula in extended precision, whichever way it is computed."""
    p = np.sort(softmax(z))[::-1]
    entropy_of_p = -sum(float(v) * math.log(v) for v in p if v > 0)
    expected = {
        "msp": p[0],
        "margin": p[0] - p[1],
        "entropy": 1 - entropy_of_p / math.log(len(z)),
        "energy": max(z) + math.log(sum(math.exp(v - max(z)) for v in z)),
    }
    for name, value in expected.items():
        assert float(ARRAYS[name](np.array(z))) == pytest.approx(float(value), abs=1e-9)
        assert ROWS[name](z, max(z)) == pytest.approx(float(value), abs=1e-9)


def test_scores_take_batches():
    """Over the last axis, whatever comes before it."""
    z = np.random.default_rng(0).normal(size=(2, 3, 5))
    for score in (msp, margin, entropy, energy):
        assert score(z).shape == (2, 3)


def test_extreme_logits():
    """Certainty is 1, uniformity is the least, and neither overflows."""
    assert msp(np.array([1e6, 0, -1e6])) == pytest.approx(1)
    assert entropy(np.array([1e6, 0, -1e6])) == pytest.approx(1)
    assert entropy(np.zeros(4)) == pytest.approx(0)
    assert margin(np.zeros(4)) == pytest.approx(0)


@pytest.mark.parametrize("score", ROWS)
@pytest.mark.parametrize("classes", [10, 200])
def test_nan_stays_nan(score, classes):
    """NaN among the logits gives the confidence NaN, which the policy then deals with by name, and no class."""
    z = np.zeros((1, classes), np.float32)
    for at in (0, 5):
        z[0, at] = np.nan
        usual = Reader(score, labels=[str(i) for i in range(classes)])
        assert usual.read_one(np.eye(1, classes, dtype=np.float32)).value == "0"  # from now on by the fast path
        for read in (Reader(score).read_one(z), usual.read_one(z), usual.read_many(z, 1)[0]):
            assert math.isnan(read.confidence)
            assert read.value is None
        z[0, at] = 0


@settings(max_examples=draws(200), deadline=None)
@given(st.lists(st.floats(-1e300, 0) | st.just(-math.inf), min_size=1, max_size=40), st.floats(0, 1))
def test_the_quantile_of_a_short_text_is_numpys(logprobs, q):
    """In plain Python, in any order, and unchanged; of what is not finite as numpy has it."""
    given, before = np.array(logprobs), [*logprobs]
    with np.errstate(all="ignore"):
        expected = float(np.exp(np.quantile(given, q)))
    for form in (given, logprobs, tuple(logprobs), np.array(logprobs * 40)[: len(logprobs)]):
        assert quantile(form, q) == pytest.approx(expected, rel=1e-12, nan_ok=True)
    assert logprobs == before
    assert quantile([800.0, 900.0]) == math.inf, "these are no logarithms of probabilities"
    long = np.tile(given, 1 + 1000 // len(given))
    with np.errstate(all="ignore"):
        assert quantile(long, q) == pytest.approx(float(np.exp(np.quantile(long, q))), rel=1e-12, nan_ok=True)


@pytest.mark.parametrize("logprobs", [[-0.1, -2.0, -0.5], [0.0], [-0.1] * 1500, [0.0000005, -1.0]])
def test_a_confidence_by_log_probabilities_has_one_value_in_each_form(logprobs):
    """A list, a tuple, an array: as a callable gives them."""
    known = {CallableModel(lambda x, form=form: ("text", form(logprobs))) for form in (list, tuple, np.array)}
    with_router = []
    for model in known:
        with Router(model) as router:
            with_router.append(router.infer("x").confidence)
    assert with_router == pytest.approx([quantile(np.array(logprobs))] * 3, rel=1e-12)


def test_the_quantile_of_token_log_probabilities():
    """The 10 % quantile, as a probability; a text without tokens has none."""
    assert quantile(np.log([0.5] * 10)) == pytest.approx(0.5)
    assert quantile(np.log([0.9] * 9 + [0.1]), q=0.0) == pytest.approx(0.1)
    assert math.isnan(quantile(np.array([])))


@settings(max_examples=draws(100), deadline=None)
@given(st.lists(st.floats(-20, 20), min_size=2, max_size=12), st.sampled_from([*ROWS]))
def test_the_short_way_and_the_long_way_agree(z, score):
    """With labels or without, for one or for many, value and confidence are the same."""
    z = np.array([z, z[::-1]], np.float32)
    labels = [f"l{i}" for i in range(z.shape[1])]
    short = Reader(score, labels=labels).read_one(z[:1])
    many = Reader(score, labels=labels).read_many(z, 2)[0]
    bare = Reader(score).read_one(z[:1])
    assert short.value == many.value == labels[bare.value]
    assert short.confidence == many.confidence == bare.confidence
    assert short.outputs.tolist() == z[0].tolist()


def test_many_classes():
    """Above the size for plain Python the value and confidence are numpy's."""
    z = np.random.default_rng(1).normal(size=(1, 500)).astype(np.float32)
    read = Reader("msp").read_one(z)
    assert read.value == z.argmax()
    assert read.confidence == pytest.approx(float(msp(z)[0]))


@pytest.mark.parametrize("classes", [4, 200])
def test_probabilities(classes):
    """Outputs that are probabilities already are not put through softmax again."""
    p = np.full((1, classes), 0.3 / (classes - 1), np.float32)
    p[0, 1] = 0.7
    read = Reader("msp", kind="probabilities").read_one(p)
    assert (read.value, read.confidence) == (1, pytest.approx(0.7, rel=1e-5))
    p[0] = 0
    p[0, 2] = 1
    assert Reader("margin", kind="probabilities").read_one(p).confidence == pytest.approx(1)
    p[0, 0] = -1
    assert math.isnan(Reader("msp", kind="probabilities").read_one(p).confidence)


def test_what_callables_give():
    """(value, confidence), (text, token log-probabilities), logits as a list, one class, anything at all."""
    read = Reader("msp")
    assert read.read_one([("cat", 0.9)])[:2] == ("cat", 0.9)
    assert read.read_one([("cat", None)])[:2] == ("cat", None)
    assert read.read_one([("a text", np.log([0.5] * 4))])[:2] == ("a text", pytest.approx(0.5))
    assert read.read_one([[0.0, 3.0]])[0] == 1
    assert read.read_one([[3.0]])[:2] == (3.0, None)
    assert read.read_one([{"text": "x"}])[:2] == ({"text": "x"}, None)
    assert read.read_one(["plain"])[:2] == ("plain", None)
    with pytest.raises(PolicyError, match="tuple of 3"):
        read.read_one([(1, 2, 3)])


def test_several_outputs():
    """Of a model with several outputs the first is read, and all are handed on, without the batch axis."""
    read = Reader("msp").read_many({"logits": np.array([[0.0, 1.0], [5.0, 0.0]]), "box": np.zeros((2, 4))}, 2)
    assert [r.value for r in read] == [1, 0]
    assert read[0].outputs["box"].shape == (4,)


def test_a_score_of_ones_own():
    """Any function of one input's outputs."""
    z = np.array([[1.0, 4.0]])
    assert Reader(lambda row: float(row[1])).read_one(z).confidence == 4.0
    assert Reader(lambda row: float(row[1]), labels=["a", "b"]).read_one(z)[:2] == ("b", 4.0)
    assert Reader(lambda row: 0.5).read_one([("cat", 0.9)]).confidence == 0.5
    assert Reader(lambda row: 0.25).read_one(np.zeros((1, 200))).confidence == 0.25
    assert Reader(lambda row: 0.125).read_one(np.zeros((1, 2, 2))).confidence == 0.125


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"score": "softmax"}, "there is no score 'softmax': expected one of " + ", ".join(SCORES)),
        ({"score": "energy", "kind": "probabilities"}, "needs logits"),
        ({"kind": "guesses"}, "no kind of outputs 'guesses'"),
    ],
)
def test_what_cannot_be_read_is_said_at_once(arguments, message):
    """A wrong score or kind is found when the router is made."""
    with pytest.raises(PolicyError, match=message):
        Reader(**arguments)


def test_outputs_that_are_not_this_models():
    """Another number of classes than labels, or of rows than inputs, is a bad reply."""
    with pytest.raises(BadReply, match="3 outputs, but 2 labels"):
        Reader(labels=["a", "b"]).read_one(np.zeros((1, 3)))
    with pytest.raises(BadReply, match="2 inputs gave 1 outputs"):
        Reader().read_many(np.zeros((1, 3)), 2)


# A fitted score, and several models


def test_a_fitted_score_reads_probabilities_as_logits():
    """Of a model that gives a softmax, it says what it says of that model's logits, few classes or many."""
    for classes in (3, 100):
        rng = np.random.default_rng(0)
        logits = rng.normal(size=(400, classes)) * 3
        score = fit(logits, rng.uniform(size=400) < 0.7, rng.uniform(size=400) < 0.9)
        p = np.exp(logits - logits.max(1, keepdims=True))
        p /= p.sum(1, keepdims=True)
        said = [a.confidence for a in Reader(score, kind="probabilities").read_many(p, 400)]
        np.testing.assert_allclose(said, score.many(logits), rtol=1e-9)
        raw = Reader(lambda row: float(row[0]), kind="probabilities").read_many(p, 400)
        assert raw[5].confidence == p[5, 0], "a function of one's own has what the model gives"


def test_several_models_agree_or_do_not():
    """The answer is that of their mean softmax; votes look at nothing but the classes."""
    one, two = CallableModel(lambda x: x, labels=("a", "b"), name="one"), CallableModel(lambda x: x[::-1])
    with Router(Ensemble([one, one]), lambda _: "cloud", threshold=0.9) as router:
        answer = router.infer(np.array([5.0, 0.0]))
        assert (answer.value, answer.source) == ("a", "edge")
        assert answer.confidence == pytest.approx(1 / (1 + np.exp(-5)))
    with Router(Ensemble([one, two, one]), lambda _: "b", threshold=0.9) as router:
        assert router.infer(np.array([5.0, 0.0])).value == "b"
        assert router.decide(np.array([5.0, 0.0])).sends_to
    sure, split = (
        Ensemble([one, one], votes=True).run([np.array([0.1, 0.0])]),
        Ensemble([one, two], votes=True).run([np.array([5.0, 0.0])]),
    )
    assert (sure[0], split[0][1]) == (("a", 1.0), 0.0)
    softmax = CallableModel(lambda x: np.exp(x) / np.exp(x).sum(), kind="probabilities", name="softmax")
    assert Ensemble([softmax, one]).run([np.array([5.0, 0.0])])[0] == (pytest.approx("a"), pytest.approx(1 / (1 + np.exp(-5))))


def test_an_ensemble_is_several_classifiers():
    """Of the same classes, which give logits."""
    a, b = CallableModel(lambda x: x, labels=("a", "b")), CallableModel(lambda x: x, labels=("b", "a"))
    text = CallableModel(lambda x: x, kind="value", name="text")
    for models, says in (
        ([a], "two models or more, not 1"),
        ([a, b], "the same labels"),
        ([a, text], "text gives something else"),
    ):
        with pytest.raises(PolicyError, match=says):
            Ensemble(models)
    with pytest.raises(BadReply, match=r"outputs .* and "):
        Ensemble([a, CallableModel(lambda x: x[:1])]).run([np.zeros(2)])
    with pytest.raises(BadReply, match="not a row of numbers"):
        Ensemble([a, CallableModel(lambda x: 1.0)]).run([np.zeros(2)])
    of_one_class = SimpleNamespace(classes_=[1], predict_proba=lambda rows: np.ones((len(rows), 1)))
    for sure in (lambda x: (1, 0.9), of_one_class):  # no logits
        with pytest.raises(BadReply, match="gives a value and its confidence"):
            Ensemble([sure, sure]).run([np.zeros(2)])
    three = lambda x: (0.0, 0.0, 5.0)  # noqa: E731 - a number for each class, though no list
    assert Ensemble([three, three]).run([np.zeros(2)])[0][0] == 2


def test_an_ensemble_is_bound_to_all_its_models(tmp_path):
    """Another one of them, another order, or votes: another fingerprint."""
    for name in ("a", "b"):
        (tmp_path / f"{name}.onnx").write_bytes(name.encode())
    a, b = tmp_path / "a.onnx", tmp_path / "b.onnx"
    prints = set()
    for models, votes in (([a, b], False), ([b, a], False), ([a, b], True), ([a, a], False)):
        with Router(Ensemble(models, votes=votes), lambda _: "cloud", threshold=0.9) as router:
            prints.add(router.fingerprints()["edge"])
    assert len(prints) == 4
