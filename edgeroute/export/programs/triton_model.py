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
        """Answers requests; those of one shape together."""
        feeds = [{name: triton.get_input_tensor_by_name(r, name).as_numpy() for name in self.inputs} for r in requests]
        groups: dict[Any, list[int]] = {}
        for i, feed in enumerate(feeds):
            groups.setdefault(tuple(array.shape[1:] for array in feed.values()), []).append(i)
        replies: list[Any] = [None] * len(requests)
        for members in groups.values():
            for i, reply in zip(members, self._answered([feeds[i] for i in members]), strict=True):
                replies[i] = reply
        return replies

    def _answered(self, feeds: list[dict[str, Any]]) -> list[Any]:
        """The replies to requests that are run together."""
        try:
            outputs = self.model.run({name: np.concatenate([feed[name] for feed in feeds]) for name in self.inputs})
        except Exception as e:  # noqa: BLE001 - Triton says it to the caller
            error = triton.TritonError(f"{type(e).__name__}: {e}"[:400])
            return [triton.InferenceResponse(output_tensors=[], error=error) for _ in feeds]
        replies, at = [], 0
        for feed in feeds:
            n = len(feed[self.inputs[0]])
            tensors = [triton.Tensor(name, _plain(array[at : at + n])) for name, array in outputs.items()]
            replies.append(triton.InferenceResponse(output_tensors=tensors))
            at += n
        return replies


def _plain(array: Any) -> Any:
    """An array as Triton takes it: contiguous, texts as bytes."""
    if array.dtype.kind in "OU":
        return np.array([str(one).encode() for one in array.reshape(-1)], object).reshape(array.shape)
    return np.ascontiguousarray(array)
