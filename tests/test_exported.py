"""Models that others have exported, on the device and behind `edgeroute serve`: scikit-learn, XGBoost, LightGBM, detectors, texts.

`models/recipes/exported.py` has made the files, with what the original models answer.
"""

import json
from pathlib import Path

import numpy as np
import pytest
import routes
import tiny
from both import running
from onnx import TensorProto, helper

from edgeroute import BadReply, OnnxModel, OpenInference, Options, Router
from edgeroute.tools.server.serve import app

HERE = Path(__file__).parent / "exported"
EXPECTED = json.loads((HERE / "expected.json").read_text())
INPUTS = np.array(EXPECTED.pop("inputs"), np.float32)
CLASSIFIERS = [name for name, known in EXPECTED.items() if "confidences" in known]


@pytest.fixture(scope="module")
def server():
    """All of them, served by one process. -> its URL."""
    with running(app([OnnxModel(path) for path in sorted(HERE.glob("*.onnx"))])) as client:
        yield str(client.base_url)


def answers(router, inputs=INPUTS, **options):
    """One by one and as a batch, which give the same."""
    with router:
        single = [router.infer(x, **options) for x in inputs]
        many = router.infer_many(list(inputs), **options)
    values = [a.value for a in single]
    assert [a.value for a in many] == (pytest.approx(values) if isinstance(values[0], float) else values)
    assert [a.confidence for a in many] == pytest.approx([a.confidence for a in single])
    return single


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_a_classifier_on_the_device(name):
    """The value is the class as the original model names it, the confidence its probability; no card, no kind."""
    router = Router(HERE / f"{name}.onnx", threshold=0.5)
    assert router.check().ok
    found = answers(router)
    assert [a.value for a in found] == EXPECTED[name]["values"]
    assert [type(a.value) for a in found] == [type(v) for v in EXPECTED[name]["values"]]
    assert [a.confidence for a in found] == pytest.approx(EXPECTED[name]["confidences"], abs=2e-5)


@pytest.mark.parametrize("kind", ["label+probabilities", None])
@pytest.mark.parametrize("name", CLASSIFIERS)
def test_a_classifier_as_the_cloud(server, name, kind):
    """The same values as on the device, of the same types; with the kind confidences too, without it the label alone."""
    cloud = OpenInference(f"{server}/v2/models/{name}", kind=kind)
    edge = Router(HERE / f"{name}.onnx", cloud, threshold=0.6)
    assert edge.check().ok, edge.check()
    found = answers(edge, mode="only_cloud")
    assert {a.source for a in found} == {"cloud"}, found[0].reason
    assert [a.value for a in found] == EXPECTED[name]["values"]
    assert [type(a.value) for a in found] == [type(v) for v in EXPECTED[name]["values"]]
    if kind is not None:
        assert [a.confidence for a in found] == pytest.approx(EXPECTED[name]["confidences"], abs=2e-5)
    else:
        assert {a.confidence for a in found} == {None}


@pytest.mark.parametrize("binary", [True, False])
def test_labels_of_a_card_are_what_both_sides_answer(server, binary):
    """The edge answers "2" by its card; the cloud's 2 is the same value, however it was sent."""
    labels = np.array(["0", "1", "2"])
    edge = OnnxModel(HERE / "sk_plain.onnx", labels=labels, output="probabilities", kind="probabilities")
    cloud = OpenInference(f"{server}/v2/models/sk_forest", kind="label+probabilities", binary=binary)
    with Router(edge, cloud, threshold=0.5) as router:
        for x, known in zip(INPUTS, EXPECTED["sk_plain"]["values"], strict=True):
            assert router.infer(x, mode="only_edge").value == str(known)
            answer = router.infer(x, mode="only_cloud")
            assert (answer.value, answer.source) == (str(known), "cloud"), answer.reason


def test_texts_by_binary_and_by_json(server):
    """Class names travel as the protocol's BYTES."""
    for binary in (True, False):
        cloud = OpenInference(f"{server}/v2/models/sk_texts", kind="label+probabilities", binary=binary)
        with Router(None, cloud, mode="only_cloud") as router:
            assert [a.value for a in router.infer_many(list(INPUTS))] == EXPECTED["sk_texts"]["values"]


def test_a_regression(server):
    """One number is a value, and no class; it has no confidence."""
    edge, given = HERE / "sk_regression.onnx", INPUTS[:, :3]
    for mode in ("only_edge", "only_cloud"):
        router = Router(edge, f"{server}/v2/models/sk_regression", threshold=0.5, options=Options(no_confidence="accept"))
        found = answers(router, given, mode=mode)
        assert [a.value for a in found] == pytest.approx(EXPECTED["sk_regression"]["values"], abs=1e-4)
        assert [type(a.value) for a in found] == [float] * len(given)
        assert {a.confidence for a in found} == {None}


def detector(path, n="n", batch=False):
    """A detector that answers what it is given: boxes [n, 4], scores [n] and classes [n], with a batch axis or without."""
    value, axis = helper.make_tensor_value_info, [1] if batch else []
    names = {
        "boxes": (TensorProto.FLOAT, [*axis, n, 4]),
        "scores": (TensorProto.FLOAT, [*axis, n]),
        "labels": (TensorProto.INT64, [*axis, n]),
    }
    axes = ("axes", np.array([0]))
    nodes = [helper.make_node("Squeeze", [f"{name}_in", "axes"], [name]) for name in names]
    if batch:
        nodes = [helper.make_node("Identity", [f"{name}_in"], [name]) for name in names]
    inputs = [value(f"{name}_in", kind, [1, *shape[len(axis) :]]) for name, (kind, shape) in names.items()]
    return tiny.save(path, nodes, inputs, [value(name, *spec) for name, spec in names.items()], [] if batch else [axes])


def seen(scores, classes=None):
    """Inputs of such a detector."""
    n = len(scores)
    boxes = np.arange(4 * n, dtype=np.float32).reshape(n, 4)
    labels = np.arange(n) if classes is None else np.array(classes)
    return {"boxes_in": boxes, "scores_in": np.array(scores, np.float32), "labels_in": labels.astype(np.int64)}


@pytest.mark.parametrize("batch", [True, False])
def test_a_detector(tmp_path, batch):
    """Its value is the boxes found; the confidence that of the least certain decision; nothing found is a rule of its own."""
    path = detector(tmp_path / "d.onnx", batch=batch)
    labels = ["cat", "dog", "cow"]
    with running(app([OnnxModel(path)])) as client:
        cloud = OpenInference(f"{client.base_url}/v2/models/d", kind="boxes", labels=labels)
        for rule, sure in (("defer", 0.0), ("accept", 1.0), ("score", pytest.approx(0.8))):
            with Router(OnnxModel(path, kind="boxes", labels=labels, none_found=rule), cloud, threshold=0.5) as router:
                found = router.infer(seen([0.6, 0.9, 0.1]), mode="only_edge")
                assert [(b["label"], b["box"][0]) for b in found.value] == [
                    ("dog", pytest.approx(4.0)),
                    ("cat", pytest.approx(0.0)),
                ]
                assert found.confidence == pytest.approx(0.6)
                away = router.infer(seen([0.6, 0.9, 0.1]), mode="only_cloud")
                assert (away.value, away.source) == (found.value, "cloud"), away.reason
                nothing = router.infer(seen([0.2]), mode="only_edge")
                assert (nothing.value, nothing.confidence) == ([], sure)
    with Router(path, threshold=0.5) as router:
        assert [b["label"] for b in router.infer(seen([0.6, 0.9, 0.1]), mode="only_edge").value] == [1, 0], "by its names alone"


def test_a_detector_that_sees_nothing_at_all(tmp_path):
    """No box, not even a bad one: still an answer, on both sides."""
    path = detector(tmp_path / "d.onnx")
    with running(app([OnnxModel(path)])) as client:
        cloud = OpenInference(f"{client.base_url}/v2/models/d", kind="boxes")
        with Router(OnnxModel(path, kind="boxes", none_found="accept"), cloud, threshold=0.5) as router:
            answer = router.infer(seen([]))
            assert (answer.value, answer.confidence, answer.source) == ([], 1.0, "edge"), answer.reason


def test_tokens_and_their_log_probabilities(tmp_path):
    """A text model's tokens are its value, and the quantile of their log-probabilities the confidence."""
    value = helper.make_tensor_value_info
    path = tiny.save(
        tmp_path / "t.onnx",
        [helper.make_node("Identity", ["ids"], ["tokens"]), helper.make_node("Identity", ["p"], ["logprobs"])],
        [value("ids", TensorProto.INT64, ["n", "t"]), value("p", TensorProto.FLOAT, ["n", "t"])],
        [value("tokens", TensorProto.INT64, ["n", "t"]), value("logprobs", TensorProto.FLOAT, ["n", "t"])],
    )
    with Router(OnnxModel(path, kind="logprobs"), threshold=0.5) as router:
        answer = router.infer({"ids": np.array([5, 7, 9]), "p": np.log(np.full(3, 0.5, np.float32))})
        assert (answer.value, answer.confidence) == ([5, 7, 9], pytest.approx(0.5))


def softmax(path):
    """x [n, 3] -> its softmax."""
    value = helper.make_tensor_value_info
    io = [value("x", TensorProto.FLOAT, ["n", 3])], [value("p", TensorProto.FLOAT, ["n", 3])]
    return tiny.save(path, [helper.make_node("Softmax", ["x"], ["p"], axis=-1)], *io)


def test_a_softmax_that_is_taken_for_logits(tmp_path, caplog):
    """`check` fails with the line to write, and the first answer warns once; with that line all is well."""
    path, x = softmax(tmp_path / "s.onnx"), np.array([0.0, 1.0, 5.0], np.float32)
    with Router(OnnxModel(path, kind="logits"), threshold=0.5) as router:
        check = router.check()
        assert not check.ok
        assert 'kind = "probabilities"' in str(check)
        for _ in range(3):
            router.infer(x)
        assert len([r for r in caplog.records if 'kind = "probabilities"' in r.getMessage()]) == 1
    caplog.clear()
    for model in (OnnxModel(path, kind="probabilities"), path):
        with Router(model, threshold=0.5) as router:
            assert router.check().ok
            assert router.infer(x).confidence == pytest.approx(np.exp(5) / np.exp([0, 1, 5]).sum(), rel=1e-4)
    assert not caplog.records


def test_a_binary_classifier_of_one_unit(tmp_path):
    """By its kind, or by its last operator; without either, two labels and one number are an error that says what to write."""
    value = helper.make_tensor_value_info
    io = [value("x", TensorProto.FLOAT, ["n", 1])], [value("p", TensorProto.FLOAT, ["n", 1])]
    path = tiny.save(tmp_path / "b.onnx", [helper.make_node("Sigmoid", ["x"], ["p"])], *io)
    for kind, at, sure in (("probabilities", 2.0, 0.880797), ("probabilities", -1.0, 0.731059), (None, -1.0, 0.731059)):
        with Router(OnnxModel(path, kind=kind, labels=["no", "yes"]), threshold=0.5) as router:
            answer = router.infer(np.array([at], np.float32))
            assert (answer.value, answer.confidence) == ("yes" if at > 0 else "no", pytest.approx(sure, abs=1e-5))
    tiny.save(path, [helper.make_node("Neg", ["x"], ["p"])], *io)
    with Router(OnnxModel(path, labels=["no", "yes"]), lambda _: "no", threshold=0.5) as router:
        answer = router.infer(np.array([2.0], np.float32))
        assert answer.source == "cloud"
        assert "binary classifier" in routes.error(answer, "edge")


def test_an_output_that_is_not_there(server):
    """Said by `check` and by each answer's reason, with the names that there are."""
    for endpoint in (OpenInference(f"{server}/v2/models/sk_forest", output="probs", kind="probabilities"),):
        with Router(lambda _: ("a", 0.1), endpoint, threshold=0.5) as router:
            assert "has no output 'probs', which is to be read: it has label, probabilities" in str(router.check(timeout=120))
            assert "it has label, probabilities" in routes.error(router.infer(INPUTS[0]))
    with Router(None, endpoint, mode="only_cloud") as router, pytest.raises(BadReply, match="it has label, probabilities"):
        router.infer(INPUTS[0])
    with Router(OnnxModel(HERE / "sk_forest.onnx", output="probs"), threshold=0.5) as router:
        assert "it has label, probabilities" in str(router.check())
