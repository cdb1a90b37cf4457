"""Core ML models: read on every system, run by a device that executes their programs in numpy, as there is none on Linux."""

import json
import shutil
from pathlib import Path

import mil
import numpy as np
import pytest

from edgeroute import BadInput, CoreMLModel, ModelError, ModelMissing, PolicyError, Router, RuntimeMissing, models
from edgeroute.edge.load import load
from edgeroute.testing import edge_contract

pytest.importorskip("coremltools")
FASHION = models.fashion().edge.with_name("edge.mlpackage")


class Device:
    """In place of coremltools' binding of Core ML: the package's program, in numpy."""

    newest = 1000

    def __init__(self, path, units, function, hints, _):
        self.program, self.units = mil.Program(Path(path)), units

    @staticmethod
    def maximum_supported_specification_version():
        return Device.newest

    def predict(self, feed, _):
        return self.program(feed)


@pytest.fixture
def core_ml(monkeypatch):
    """A Mac, as far as edgeroute and coremltools can tell: all but the framework itself is theirs."""
    monkeypatch.setattr("coremltools.models.model._MLModelProxy", Device)
    monkeypatch.setattr("edgeroute.edge.coreml.SYSTEM", "Darwin")
    return Device


def test_the_shipped_package_answers_as_the_onnx_file(core_ml):
    pair = models.fashion()
    images = pair.images[:200]
    onnx, core = load(pair.edge), CoreMLModel(FASHION)
    wanted, found = onnx.run(list(images)), core.run(list(images))
    assert found.shape == wanted.shape == (200, 10)
    assert found.dtype == wanted.dtype == np.float32
    assert np.abs(found - wanted).max() < 0.5  # of logits up to 16
    assert np.mean(found.argmax(1) == wanted.argmax(1)) > 0.98
    assert core.labels == onnx.labels


def test_it_keeps_the_contract(core_ml):
    edge_contract(FASHION, list(models.fashion().images[:3]), bad=["text", np.zeros((28, 28), np.float32)], rtol=1e-2)
