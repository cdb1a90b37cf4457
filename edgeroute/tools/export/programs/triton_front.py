"""What callers send -> tensors, in Triton's Python backend. Written by `edgeroute export`, which it does not need.

Where `model.json` says `"front": "decode"`, files of pictures (JPEG, PNG, WebP) become uint8 arrays; where it says `"prepare"`,
arrays of callers become the model's tensors.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import triton_python_backend_utils as triton
from by_card import BadInput, Said, pictures, tensor

FOLDER = Path(__file__).parent


class TritonPythonModel:
    """A step before the model, as Triton calls it."""

    def initialize(self, args: dict[str, str]) -> None:  # noqa: ARG002 - Triton's
        """Reads what is particular to the model."""
        said = Said(FOLDER)
        self.inputs, self.decodes = said.inputs, said.about["front"] == "decode"

    def execute(self, requests: list[Any]) -> list[Any]:
        """Answers each request by itself: the model behind is what batches."""
        return [self._answered(request) for request in requests]

    def _answered(self, request: Any) -> Any:
        try:
            tensors = [triton.Tensor(one["name"], self._made(request, one)) for one in self.inputs]
        except Exception as e:  # noqa: BLE001 - Triton says it to the caller
            text = str(e) if isinstance(e, BadInput) else f"{type(e).__name__}: {e}"
            return triton.InferenceResponse(output_tensors=[], error=triton.TritonError(text[:400]))
        return triton.InferenceResponse(output_tensors=tensors)

    def _made(self, request: Any, one: dict[str, Any]) -> Any:
        given = triton.get_input_tensor_by_name(request, one["name"]).as_numpy()
        if not self.decodes:
            return np.ascontiguousarray(tensor(given, one))
        if one["picture"] is None:
            return given
        return pictures(given, one["picture"])
