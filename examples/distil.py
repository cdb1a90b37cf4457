"""Teach a small model the answers of a large one: `python examples/distil.py`.

It needs edgeroute[onnx], scikit-learn and skl2onnx, and writes student.onnx with its card.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
from skl2onnx import to_onnx
from sklearn.neural_network import MLPRegressor

from edgeroute import OnnxModel, models

fashion = models.fashion()
teacher = OnnxModel(fashion.cloud)
train, test = fashion.images[:500], fashion.images[800:]
logits = np.concatenate([teacher.run([x]) for x in train])


def flat(images: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Return images as rows of pixels from 0 to 1."""
    return (images.reshape(len(images), -1) / 255).astype(np.float32)


# a constant in all logits means nothing
goal = logits - logits.mean(axis=1, keepdims=True)
student = MLPRegressor(hidden_layer_sizes=(64,), learning_rate_init=0.002, random_state=0)
for _ in range(40):
    student.partial_fit(flat(train), goal)

exported = to_onnx(student, flat(train[:1]), target_opset=17)
# skl2onnx ends with a node that writes all outputs as one column, which loses the inputs' axis
exported.graph.node.pop()
exported.graph.node[-1].output[0] = exported.graph.output[0].name
exported.graph.output[0].type.tensor_type.shape.dim[1].dim_value = len(teacher.labels)
Path("student.onnx").write_bytes(exported.SerializeToString())
card = {
    "input": {
        "name": exported.graph.input[0].name,
        "dtype": "float32",
        "shape": [-1, 784],
    },
    "preprocess": {"dtype": "uint8", "shape": [28, 28], "scale": 1 / 255},
    "output": {"name": exported.graph.output[0].name, "kind": "logits"},
    "labels": list(teacher.labels),
}
Path("student.json").write_text(json.dumps(card))

small = OnnxModel("student.onnx")
same = [np.argmax(small.run([x])) == np.argmax(teacher.run([x])) for x in test]
print(f"{np.mean(same):.0%} of the teacher's answers")
