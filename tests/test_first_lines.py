"""First lines of a new user: results and addresses as they are at hand, and objects that print what they are."""

from __future__ import annotations

import json

import numpy as np
import pytest
from both import Tasks, sure, unsure

from edgeroute import PolicyError, Router

X = np.random.default_rng(0).random((300, 3)).astype("float32")


def half(x):
    """Classify by the first number; surer further from the middle."""
    return int(x[0] > 0.5), float(min(1, abs(x[0] - 0.5) * 2))


def test_the_result_of_a_calibration_is_a_threshold():
    """With its certificate and its score, as `threshold=result.certificate, score=result.score`."""
    labels = (X[:, 0] > 0.5).astype(int)
    with Router(half, lambda x: int(x[0] > 0.5), threshold=0.5) as router:
        result = router.calibrate(list(X), list(labels), max_loss=0.1)
    with Router(half, lambda x: int(x[0] > 0.5), threshold=result) as router:
        assert repr(router) == f"<Router prefer_edge: edge from {result.certificate.threshold:.4g}, cloud>"
        assert "uncalibrated" not in router.infer(X[0]).reason


@pytest.mark.parametrize(
    ("given", "advice"),
    [
        ("http://127.0.0.1:9/v1", r"OpenAIChat\(url, model=\.\.\.\)"),
        ("https://api.openai.com", r"OpenAIChat\(url, model=\.\.\.\)"),
        ("models/cat.onnx", "edgeroute serve models/cat.onnx"),
        ("http://127.0.0.1:9/", r"OpenInference\(url, model=\.\.\.\)"),
        ("http://user:secret@127.0.0.1/x?key=secret", "^((?!secret).)*$"),
    ],
)
def test_an_address_that_says_too_little_gets_the_line_to_write(given, advice):
    with pytest.raises(PolicyError, match=advice):
        Router(unsure, given, threshold=0.5)


def test_statistics_are_json_data():
    with Router([sure, unsure], unsure, threshold=0.5) as router:
        router.infer(1)
        stats = json.loads(json.dumps(router.stats().as_dict()))
    assert stats["requests"] == 1
    assert [leg["name"] for leg in stats["legs"]] == [leg.name for leg in router.stats().legs]


def test_a_router_prints_its_targets_and_thresholds():
    with Router(unsure, unsure, threshold=0.85) as router:
        assert repr(router) == "<Router prefer_edge: edge from 0.85, cloud>"


@pytest.mark.parametrize(
    "result", [{"label": "cat", "score": 0.9}, [{"label": "dog", "score": 0.1}, {"label": "cat", "score": 0.9}]]
)
def test_labels_with_scores_are_answers_on_both_sides(kind, result):
    """As pipelines for classification give them: of a list the best one."""
    with kind(lambda _: result, unsure, threshold=0.5) as router:
        answer = router.infer("x")
        assert (answer.value, answer.confidence, answer.source) == ("cat", 0.9, "edge")
        assert [answer.value for answer in router.infer_many(["x", "y"])] == ["cat", "cat"]
    with kind(unsure, lambda _: result, threshold=0.5) as router:
        answer = router.infer("x")
        assert (answer.value, answer.confidence, answer.source) == ("cat", 0.9, "cloud")


def test_an_awaited_label_with_its_score():
    async def pipeline(_):
        return [{"label": "cat", "score": 0.9}]

    with Tasks(pipeline, unsure, threshold=0.5) as router:
        answer = router.infer("x")
        assert (answer.value, answer.confidence, answer.source) == ("cat", 0.9, "edge")


@pytest.mark.parametrize("form", ["object", "predict", "predict_proba"])
@pytest.mark.parametrize("labels", [[0, 1], ["no", "yes"]])
def test_a_classifier_is_an_edge_as_it_is(form, labels):
    """Its classes are the values, and their probabilities the confidence."""
    linear_model = pytest.importorskip("sklearn.linear_model")
    y = np.array(labels)[(X[:, 0] > 0.5).astype(int)]
    model = linear_model.LogisticRegression().fit(X, y)
    with Router(model if form == "object" else getattr(model, form), unsure, threshold=0) as router:
        answers = router.infer_many(list(X[:20]))
    assert [answer.value for answer in answers] == model.predict(X[:20]).tolist()
    assert [answer.confidence for answer in answers] == pytest.approx(model.predict_proba(X[:20]).max(1).tolist(), abs=1e-6)


@pytest.mark.parametrize(
    ("path", "step"),
    [
        ("m.pt", "torch.onnx.export"), ("M.PTH", "torch.onnx.export"), ("m.keras", "tflite"), ("m.h5", "tflite"),
        ("m.safetensors", "torch.onnx.export"), ("m.engine", "ONNX file"), ("m.joblib", "predict_proba"),
        ("google/vit-base", "hub"), ("m.xyz", "edgeroute.register"),
    ],
)  # fmt: skip
def test_a_file_that_needs_a_step_gets_the_step(path, step):
    with pytest.raises(PolicyError, match=step):
        Router(path, unsure, threshold=0.5)
