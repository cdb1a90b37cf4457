"""Training of a pruned model, for `edgeroute prune --finetune retrain:last_bias` (docs/compress.md)."""

from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

from edgeroute import OnnxModel


def last_bias(path: str, inputs: Any, labels: Any) -> None:
    """Train the last bias on the inputs and labels, and rewrite the model's file."""
    model = OnnxModel(path)
    logits = np.concatenate([model.run([x]) for x in inputs])
    right, bias = np.eye(logits.shape[1])[labels], np.zeros(logits.shape[1])
    for _ in range(100):
        odds = np.exp(logits + bias - (logits + bias).max(1, keepdims=True))
        bias += (right - odds / odds.sum(1, keepdims=True)).mean(0)
    graph = onnx.load(path)
    gemm = next(node for node in graph.graph.node if node.op_type == "Gemm")
    name = gemm.input[2]
    tensor = next(t for t in graph.graph.initializer if t.name == name)
    trained = (numpy_helper.to_array(tensor) + bias).astype(np.float32)
    tensor.CopyFrom(numpy_helper.from_array(trained, name))
    onnx.save(graph, path)
