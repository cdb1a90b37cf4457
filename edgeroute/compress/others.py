"""Quantises models of other formats than ONNX, where their own tools are installed."""

from __future__ import annotations

from pathlib import Path

from edgeroute.compress.measure import Examples
from edgeroute.compress.result import Result
from edgeroute.errors import ModelError


def quantize_other(path: Path, out: Path, used: Examples, held_out: Examples, *, fp16: bool, keep_float: int) -> Result:
    """As `compress.quantize`."""
    raise ModelError(f"{path}: todo {out} {used} {held_out} {fp16} {keep_float}")
