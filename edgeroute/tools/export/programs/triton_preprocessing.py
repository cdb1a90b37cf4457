"""Preprocessing step of a Triton ensemble, for its Python backend. Copied by `edgeroute export`; needs no edgeroute.

Where `model.json` has `"front": "decode"`, picture files (JPEG, PNG, WebP) become uint8 arrays; where it has `"prepare"`, arrays
of callers become the model's tensors.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import triton_python_backend_utils as triton
from by_card import BadInput, Description, pictures, tensor

FOLDER = Path(__file__).parent


class TritonPythonModel:
    """Step before the model, in the form that Triton's Python backend calls."""

    def initialize(self, args: dict[str, str]) -> None:  # noqa: ARG002 - Triton's
        """Read the model's description."""
        description = Description(FOLDER)
        self.inputs, self.decodes = description.inputs, description.about["front"] == "decode"

    def execute(self, requests: list[Any]) -> list[Any]:
        """Answer each request alone: the model behind this step batches them."""
        return [self._respond(request) for request in requests]

    def _respond(self, request: Any) -> Any:
        """Return the response with the prepared tensors, or with the text of any error, cut to 400 characters; never raises."""
        try:
            tensors = [triton.Tensor(spec["name"], self._input_tensor(request, spec)) for spec in self.inputs]
        except Exception as e:  # noqa: BLE001 - Triton reports it to the caller
            text = str(e) if isinstance(e, BadInput) else f"{type(e).__name__}: {e}"
            return triton.InferenceResponse(output_tensors=[], error=triton.TritonError(text[:400]))
        return triton.InferenceResponse(output_tensors=tensors)

    def _input_tensor(self, request: Any, spec: dict[str, Any]) -> Any:
        """Return an input of a request as an array: prepared for the model, or with "decode" only its picture files decoded."""
        array = triton.get_input_tensor_by_name(request, spec["name"]).as_numpy()
        if not self.decodes:
            return np.ascontiguousarray(tensor(array, spec))
        if spec["picture"] is None:
            return array
        return pictures(array, spec["picture"])
