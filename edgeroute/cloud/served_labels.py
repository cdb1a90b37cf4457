"""Labels in what a server says of its model, as `edgeroute export` writes them there."""

from __future__ import annotations

from typing import Any

from edgeroute.system import json_loads

MOST = 100_000
"""Labels of a model."""
LONGEST = 1_000
"""Characters of one."""
TRITON = frozenset({"ensemble", "python", "onnxruntime_onnx", "onnxruntime"})
"""Platforms whose server may have labels in the model's configuration, which the metadata lacks."""


def labels_in(said: Any) -> tuple[str | int | float | bool, ...] | None:
    """The labels among the parameters of metadata, or of Triton's configuration, where each is a text; None: there are none."""
    parameters = said.get("parameters") if isinstance(said, dict) else None
    found = parameters.get("labels") if isinstance(parameters, dict) else None
    if isinstance(found, dict):
        found = found.get("string_value")
    if isinstance(found, str):
        try:
            found = json_loads(found.encode())
        except (ValueError, RecursionError):
            return None
    if not isinstance(found, list) or not 0 < len(found) <= MOST:
        return None
    fine = all(isinstance(one, str | int | float) and (not isinstance(one, str) or len(one) <= LONGEST) for one in found)
    return tuple(found) if fine else None
