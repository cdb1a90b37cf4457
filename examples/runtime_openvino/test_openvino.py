"""The runtime keeps edgeroute's contract, and answers as ONNX Runtime does on the same model."""

from pathlib import Path

import numpy as np
import pytest

from edgeroute import ModelError, ModelMissing, OnnxModel, Router, models
from edgeroute.testing import edge_contract

ov = pytest.importorskip("openvino")
from edgeroute_openvino import OpenVINOModel  # noqa: E402 - after it is known to be there


@pytest.fixture(scope="module")
def fashion(tmp_path_factory) -> Path:
    """The shipped model in OpenVINO's format."""
    path = tmp_path_factory.mktemp("openvino") / "edge.xml"
    ov.save_model(ov.convert_model(str(models.fashion().edge)), path, compress_to_fp16=False)
    return path


def test_it_keeps_the_contract(fashion):
    """With input that it cannot take."""
    edge_contract(OpenVINOModel(fashion), list(models.fashion().images[:3]), bad=["text", None, np.zeros((28, 28), np.float32)])


def test_it_answers_as_onnx_runtime(fashion):
    """The same classes, but for what rounding decides."""
    pair = models.fashion()
    images = list(pair.images)
    found, wanted = OpenVINOModel(fashion).run(images), OnnxModel(pair.edge).run(images)
    print(f"largest difference {np.abs(found - wanted).max():.3g}, accuracy {np.mean(found.argmax(1) == pair.labels):.4f}")
    assert np.mean(found.argmax(1) == wanted.argmax(1)) > 0.99


def test_edgeroute_finds_it_once_it_is_installed(fashion):
    """By the entry point, without a call of `register`."""
    with Router(str(fashion), threshold=0.0) as router:
        assert router.infer(models.fashion().images[0]).value == 9


def test_files_that_are_no_model(tmp_path):
    """Each says so."""
    with pytest.raises(ModelMissing):
        OpenVINOModel(tmp_path / "gone.xml").load()
    (tmp_path / "m.xml").write_text("<net/>")
    with pytest.raises(ModelError, match="OpenVINO cannot load"):
        OpenVINOModel(tmp_path / "m.xml").load()
