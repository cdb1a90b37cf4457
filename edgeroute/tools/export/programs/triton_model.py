"""Model for Triton's Python backend: runs an ONNX model with the preprocessing of its card. Copied by `edgeroute export`.

Needs no edgeroute. All requests that Triton's dynamic batcher hands over become one run of the model.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import triton_python_backend_utils as triton
from by_card import Model

FOLDER = Path(__file__).parent


class TritonPythonModel:
    """Model in the form that Triton's Python backend calls."""

    def initialize(self, args: dict[str, str]) -> None:
        """Load the model, on a GPU if the instance group names one."""
        gpu = int(args["model_instance_device_id"]) if args["model_instance_kind"] == "GPU" else None
        self.model = Model(FOLDER, gpu=gpu)
        self.inputs = [spec["name"] for spec in self.model.inputs]

    def execute(self, requests: list[Any]) -> list[Any]:
        """Answer requests, in shared runs where shapes allow; an error is its request's response."""
        feeds = [{name: triton.get_input_tensor_by_name(r, name).as_numpy() for name in self.inputs} for r in requests]
        return [_reply(result) for result in self.model.run_many(feeds)]


def _reply(result: Any) -> Any:
    """Return the response with the outputs, or with the error."""
    if isinstance(result, Exception):
        return triton.InferenceResponse(output_tensors=[], error=triton.TritonError(f"{type(result).__name__}: {result}"[:400]))
    return triton.InferenceResponse(output_tensors=[triton.Tensor(name, _plain(array)) for name, array in result.items()])


def _plain(array: Any) -> Any:
    """Return an array for Triton: contiguous, texts as bytes."""
    if array.dtype.kind in "OU":
        return np.array([str(text).encode() for text in array.reshape(-1)], object).reshape(array.shape)
    return np.ascontiguousarray(array)
