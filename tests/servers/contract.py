"""The models that every server of the contract suite serves, in NumPy alone: each server's program imports them."""

from __future__ import annotations

import time

import numpy as np

NUMPY = {
    "BOOL": "bool", "INT8": "int8", "INT16": "int16", "INT32": "int32", "INT64": "int64", "UINT8": "uint8", "UINT16": "uint16",
    "UINT32": "uint32", "UINT64": "uint64", "FP16": "float16", "FP32": "float32", "FP64": "float64", "BYTES": "object",
}  # fmt: skip
"""The protocol's datatypes -> dtypes."""
WEIGHTS = np.array([[1, 0, 0], [0, 1, 0], [0, 0, 1], [1, 1, 1]], "float32")


def types(_version, inputs):
    """Every input comes back, under the name of its output."""
    return {name.replace("x_", "y_"): array for name, array in inputs.items()}


def linear(version, inputs):
    """Scores of three classes, and the name of the best; version 2 has them the other way round."""
    scores = inputs["x"].astype("float32") @ WEIGHTS * (1 if version == "1" else -1)
    names = np.array([[name] for name in np.array(["red", "green", "blue"])[scores.argmax(1)]], dtype=object)
    return {"scores": scores.astype("float32"), "name": names}


def slow(_version, inputs):
    """Takes the first input's value in seconds."""
    time.sleep(float(inputs["x"].reshape(-1)[0]))
    return {"scores": inputs["x"]}


def broken(_version, _inputs):
    """Fails."""
    raise RuntimeError("the model is broken")


MODELS = {
    "types": (types, *({f"{xy}_{name.lower()}": (name, 3) for name in NUMPY if name != "FP16"} for xy in "xy")),
    "half": (types, {"x_fp16": ("FP16", 3)}, {"y_fp16": ("FP16", 3)}),
    "linear": (linear, {"x": ("FP32", 4)}, {"scores": ("FP32", 3), "name": ("BYTES", 1)}),
    "slow": (slow, {"x": ("FP32", 1)}, {"scores": ("FP32", 1)}),
    "queued": (slow, {"x": ("FP32", 1)}, {"scores": ("FP32", 1)}),  # where a queue can be short, it is one long
    "broken": (broken, {"x": ("FP32", 1)}, {"scores": ("FP32", 1)}),
}
"""Name -> function of version and inputs by name; inputs and outputs: name -> datatype and width, behind the batch axis."""
BRAIN = {"brain": (types, {"x_bf16": ("BF16", 3)}, {"y_bf16": ("BF16", 3)})}
"""Of a datatype that NumPy does not have, for servers that pass it through."""


def ten(_version, inputs):
    """The first ten values: a model that takes no time, so that what carries them is timed."""
    return {"scores": inputs["x"][:, :10].astype("float32")}


PIXELS = 150_528
LARGE = {name: (ten, {"x": (name, PIXELS)}, {"scores": ("FP32", 10)}) for name in ("UINT8", "FP32")}
"""An image as bytes, and as numbers, for benchmarks."""
VERSIONS = {"linear": ("1", "2")}
