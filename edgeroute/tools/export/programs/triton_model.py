"""Triton's Python backend runs an ONNX model as its card says. Written by `edgeroute export`, which it does not need.

All requests that Triton's dynamic batcher hands over are one run of the model.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import triton_python_backend_utils as triton
from by_card import Model

FOLDER = Path(__file__).parent


class TritonPythonModel:
    """The model, as Triton calls it."""

    def initialize(self, args: dict[str, str]) -> None:
        """Loads the model; on a GPU where the instance group says so."""
        gpu = int(args["model_instance_device_id"]) if args["model_instance_kind"] == "GPU" else None
        self.model = Model(FOLDER, gpu=gpu)
        self.inputs = [one["name"] for one in self.model.inputs]

    def execute(self, requests: list[Any]) -> list[Any]:
        """Answers requests, together where they can be."""
        feeds = [{name: triton.get_input_tensor_by_name(r, name).as_numpy() for name in self.inputs} for r in requests]
        return [_reply(found) for found in self.model.run_many(feeds)]


def _reply(found: Any) -> Any:
    if isinstance(found, Exception):
        return triton.InferenceResponse(output_tensors=[], error=triton.TritonError(f"{type(found).__name__}: {found}"[:400]))
    return triton.InferenceResponse(output_tensors=[triton.Tensor(name, _plain(array)) for name, array in found.items()])


def _plain(array: Any) -> Any:
    """An array as Triton takes it: contiguous, texts as bytes."""
    if array.dtype.kind in "OU":
        return np.array([str(one).encode() for one in array.reshape(-1)], object).reshape(array.shape)
    return np.ascontiguousarray(array)
