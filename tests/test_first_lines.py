"""First lines of a new user: results and addresses as they are at hand, and objects that print what they are."""

from __future__ import annotations

import json

import numpy as np
import pytest
from both import sure, unsure

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
