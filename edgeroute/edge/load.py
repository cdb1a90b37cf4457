"""Resolves the `edge=` argument (a path, a model or a callable) to an edge model."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

from edgeroute.edge.callable import CallableModel
from edgeroute.errors import PolicyError
from edgeroute.types import EdgeModel

RUNTIMES = {".onnx": ("edgeroute.edge.onnx", "OnnxModel")}
"""File suffix -> module and class of its runtime, imported lazily."""


def load(edge: Any, **options: Any) -> EdgeModel:
    """The model for a path (options are passed to its runtime class), a callable, or an object that is already a model.

    Raises:
        PolicyError: no runtime for the suffix, or an unsupported type.
    """
    if isinstance(edge, str | Path):
        suffix = Path(edge).suffix
        if suffix not in RUNTIMES:
            raise PolicyError(f"no runtime for {str(edge)!r}: expected a file that ends in {', '.join(sorted(RUNTIMES))}")
        module, name = RUNTIMES[suffix]
        return getattr(import_module(module), name)(edge, **options)  # type: ignore[no-any-return]
    if hasattr(edge, "run"):
        return edge  # type: ignore[no-any-return]
    if callable(edge):
        return CallableModel(edge)
    raise PolicyError(f"edge= takes a path, a model or a callable, not {type(edge).__name__}")
