"""float16 of ONNX models, by the converter that comes with ONNX Runtime."""

from __future__ import annotations

import warnings
from pathlib import Path

from edgeroute.compress.graph import (
    package,
    read_graph,
)
from edgeroute.edge.external import external_data
from edgeroute.edge.model_file import first_line
from edgeroute.edge.onnx import runtime
from edgeroute.errors import ModelError
from edgeroute.imports import imported


def convert(path: Path, out: Path) -> None:
    """Writes the model with weights and sums in float16; its inputs and outputs stay as they are.

    Raises:
        ModelError: it cannot be converted.
        RuntimeMissing: onnx is not installed.
    """
    onnx, model = package(), read_graph(path)
    runtime()
    if not any(tensor.data_type == onnx.TensorProto.FLOAT for tensor in model.graph.initializer):
        raise ModelError(f"{path} has no float32 weights: there is nothing to convert to float16")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of numbers too small for float16, which become the smallest
            made = imported("onnxruntime.transformers.float16").convert_float_to_float16(model, keep_io_types=True)
    except Exception as e:  # it raises whatever comes up
        raise ModelError(f"{path} cannot be converted to float16: {first_line(e)}") from e
    large = bool(external_data(path))
    onnx.save(made, str(out), save_as_external_data=large, location=f"{out.name}.data" if large else None)
