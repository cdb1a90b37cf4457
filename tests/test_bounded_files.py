"""Numbers and names in files are bounded before they are believed: a small file takes neither much memory nor much time."""

import contextlib
import os
import shutil
import tracemalloc

import numpy as np
import pytest
from onnx import helper

from edgeroute import BadInput, ModelError, OnnxModel, PolicyError, Router
from edgeroute.catalog.catalog_source import Folder
from edgeroute.errors import CatalogAway
from edgeroute.policy.file_and_environment import MOST_PARTS, parse_toml
from edgeroute.types import TensorSpec


@pytest.fixture
def huge(tmp_path):
    """A model whose input is declared [2^31, 2^20]."""
    x, y = helper.make_tensor_value_info("x", 1, [2**31, 2**20]), helper.make_tensor_value_info("y", 1, None)
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "g", [x], [y])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    (tmp_path / "huge.onnx").write_bytes(model.SerializeToString())
    return tmp_path / "huge.onnx"


def test_an_axis_of_two_billion(huge):
    """A batch is not filled up to it."""
    tracemalloc.start()
    try:
        with pytest.raises(BadInput, match="first axis"):
            OnnxModel(huge).run([np.zeros(4, np.float32)] * 2)
        with Router(huge, threshold=0.5) as router, pytest.raises(BadInput):
            router.infer(np.zeros(4, np.float32))
        assert tracemalloc.get_traced_memory()[1] < 100 << 20
    finally:
        tracemalloc.stop()


def test_a_model_with_such_an_axis_is_not_run_on_zeros():
    """As a server does before it is ready."""
    from edgeroute.tools.server.served_models import make_zeros

    with pytest.raises(PolicyError, match="elements"):
        make_zeros("m", [TensorSpec("x", "float32", (2**31, 2**20))])
    assert make_zeros("m", [TensorSpec("x", "float32", (-1, 3))])["x"].shape == (1, 3)


def test_a_name_that_is_no_utf8(tmp_path):
    """The model is damaged, and not the program. ONNX Runtime 1.23, the last for Python 3.10, takes the name."""
    x, y = (helper.make_tensor_value_info(name, 1, [1, 4]) for name in "xy")
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"], name="a node")], "g", [x], [y])
    whole = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8).SerializeToString()
    (tmp_path / "m.onnx").write_bytes(whole.replace(b"a node", b"a\xf3node"))
    with contextlib.suppress(ModelError):
        OnnxModel(tmp_path / "m.onnx").load()


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no pipes with a name")
def test_a_pipe_in_a_catalog(tmp_path):
    """It has no writer, and is not waited for."""
    os.mkfifo(tmp_path / "timestamp.json")
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_bytes(b"abc")
    for name in ("timestamp.json", "folder"):
        with pytest.raises(CatalogAway), Folder(tmp_path).open(name):
            pass
    with Folder(tmp_path).open("file", 1) as piece:
        assert b"".join(piece.blocks) == b"bc"
    shutil.rmtree(tmp_path)


@pytest.mark.parametrize("form", ["{} = 1", "[{}]", "a = {{ {} = 1 }}", "[[ {} ]]"])
@pytest.mark.parametrize("part", ["a", '"a"', "'a' "])
def test_a_dotted_key_without_end(form, part):
    """Its parts are sections, each within the one before: a file of 100 KB would take gigabytes."""
    with pytest.raises(ValueError, match="parts"):
        parse_toml(form.format(".".join([part] * 50_000)))
    few = form.format(".".join([part] * (MOST_PARTS - 1)))
    assert parse_toml(few)
    assert parse_toml(f"a = '{'x' * 200_000}... {'. ' * 1000}'")
