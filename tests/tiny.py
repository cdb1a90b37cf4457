"""Real models of a few hundred bytes, made on the spot."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

TYPES = {"float32": TensorProto.FLOAT, "uint8": TensorProto.UINT8}


def save(path: Path, nodes, inputs, outputs, constants=(), domains=("",)) -> Path:
    graph = helper.make_graph(nodes, "tiny", inputs, outputs, [numpy_helper.from_array(a, name) for name, a in constants])
    model = helper.make_model(
        graph, opset_imports=[helper.make_opsetid(domain, 3 if domain else 17) for domain in domains], ir_version=9
    )
    onnx.checker.check_model(model)
    onnx.save(model, path)
    return path


def linear(path: Path, *, classes: int = 3, size: int = 4, dtype: str = "float32", weights=None, card=None) -> Path:
    """x [n, size] -> logits [n, classes] = x @ weights."""
    weights = np.eye(size, classes, dtype=np.float32) if weights is None else np.asarray(weights, np.float32)
    nodes = [helper.make_node("Cast", ["x"], ["f"], to=TensorProto.FLOAT), helper.make_node("MatMul", ["f", "w"], ["logits"])]
    save(
        path,
        nodes,
        [helper.make_tensor_value_info("x", TYPES[dtype], ["n", size])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["n", classes])],
        [("w", weights)],
    )
    if card is not None:
        path.with_suffix(".json").write_text(json.dumps(card))
    return path


def sentiment(path: Path) -> Path:
    """text [n, 1] -> logits [n, 2], of class 1 for "good" alone."""
    nodes = [
        helper.make_node(
            "LabelEncoder", ["text"], ["good"], domain="ai.onnx.ml", keys_strings=["good"], values_floats=[1.0], default_float=0.0
        ),
        helper.make_node("MatMul", ["good", "w"], ["wide"]), helper.make_node("Add", ["wide", "b"], ["logits"]),
    ]  # fmt: skip
    io = (
        [helper.make_tensor_value_info("text", TensorProto.STRING, ["n", 1])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["n", 2])],
    )
    constants = [("w", np.array([[-4, 4]], np.float32)), ("b", np.array([2, -2], np.float32))]
    graph = helper.make_graph(nodes, "sentiment", *io, [numpy_helper.from_array(a, name) for name, a in constants])
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("ai.onnx.ml", 3)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=9), path)
    return path


def two_inputs(path: Path) -> Path:
    """a, b [n, 2] -> total, difference [n, 2]."""
    value = lambda name: helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 2])  # noqa: E731
    nodes = [helper.make_node("Add", ["a", "b"], ["total"]), helper.make_node("Sub", ["a", "b"], ["difference"])]
    return save(path, nodes, [value("a"), value("b")], [value("total"), value("difference")])


def endless(path: Path) -> Path:
    """x [n, 1] -> y [n, 1], after more turns of a loop than anybody will wait for."""
    value = helper.make_tensor_value_info
    body = helper.make_graph(
        [helper.make_node("Identity", ["go"], ["go_on"]), helper.make_node("Add", ["at", "one"], ["next"])],
        "body",
        [value("i", TensorProto.INT64, []), value("go", TensorProto.BOOL, []), value("at", TensorProto.FLOAT, ["n", 1])],
        [value("go_on", TensorProto.BOOL, []), value("next", TensorProto.FLOAT, ["n", 1])],
    )
    nodes = [helper.make_node("Loop", ["turns", "yes", "x"], ["y"], body=body)]
    constants = [("turns", np.array(2**60)), ("yes", np.array(True)), ("one", np.array([[1.0]], np.float32))]
    io = [value("x", TensorProto.FLOAT, ["n", 1])], [value("y", TensorProto.FLOAT, ["n", 1])]
    return save(path, nodes, *io, constants)
