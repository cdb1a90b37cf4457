"""Conversion of ONNX models to static int8 and to float16."""

from __future__ import annotations

import inspect
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

import edgeroute.tools.compress.onnx_graphs as graphs
from edgeroute.edge.onnx import external_data, runtime
from edgeroute.edge.runtime_base import first_line
from edgeroute.errors import ModelError
from edgeroute.system.late_imports import import_late

# Static int8 of ONNX models, by ONNX Runtime's quantiser.


class Int8:
    """Quantiser of one ONNX model to static int8, by ONNX Runtime, calibrated on examples.

    Prepares the model at construction, in files of the folder.

    Args:
        path: path of the float model.
        feeds: the model's tensors for each example.
        folder: folder for intermediate files.
        last: True quantises the last layers, too.
        activations: "uint8", or "int8", which is symmetric.
        reduce_range: True gives weights 7 bits.

    Raises:
        ModelError: it cannot be prepared, or has no layers to quantise.
        RuntimeMissing: onnx is not installed.
    """

    def __init__(
        self, path: Path, feeds: Sequence[Mapping[str, Any]], folder: Path, *, last: bool, activations: str, reduce_range: bool
    ) -> None:
        self.path, self.feeds, self.folder = path, feeds, folder
        self.signed, self.reduce_range = activations == "int8", reduce_range
        self.notes: list[str] = []
        onnx, original = graphs.package(), graphs.read_graph(path)
        runtime()
        self._tools = import_late("onnxruntime.quantization")
        self._large = bool(external_data(path))
        model = graphs.at_opset(original, graphs.PER_CHANNEL, path)
        if model is not original:
            self.notes.append(f"converted to opset {graphs.PER_CHANNEL}, which quantising per channel needs")
        self.ready = folder / "ready.onnx"
        start = folder / "start.onnx"
        self._save(onnx, model, start)
        with self._without_advice("cannot be prepared for quantisation"):
            self._tools.quant_pre_process(
                str(start), str(self.ready), skip_symbolic_shape=True, save_as_external_data=self._large,
                all_tensors_to_one_file=True,
            )  # fmt: skip
        prepared = onnx.load(str(self.ready))
        graphs.name_nodes(prepared)
        graphs.flatten_biases(prepared)
        self._save(onnx, prepared, self.ready)
        self._layers = graphs.layers_of(prepared)
        self._weights = graphs.constants_of(prepared)
        ends = graphs.last_layers(prepared)
        if not self._layers:
            raise ModelError(
                f"{path} has nothing to quantise: no {', '.join(graphs.LAYERS)} with weights, but {graphs.operators_of(prepared)}"
            )
        self._float = [] if last else [node.name for node in [*ends, *graphs.nodes_after(prepared, ends)]]
        if {node.name for node in self._layers} <= {*self._float}:
            raise ModelError(
                f"{path} has no layers but its last, which stays float, so that confidences do not tie: quantise it too with"
                " --last"
            )
        if not last:
            self.notes.append(f"the last layer stays float, so that confidences do not tie: {', '.join(n.name for n in ends)}")
        self._cache = folder / "ranges.json"

    def _save(self, onnx: Any, model: Any, path: Path) -> None:
        """Save a model, replacing it and its data file; large weights go into that."""
        path.with_name(f"{path.name}.data").unlink(missing_ok=True)
        onnx.save(model, str(path), save_as_external_data=self._large, location=f"{path.name}.data" if self._large else None)

    def layers(self) -> list[tuple[Any, int]]:
        """Return the layers to quantise, each with its number of weights."""
        return [(node, prod(graphs.weight_of(node, self._weights).dims)) for node in self._layers if node.name not in self._float]

    def write_alone(self, node: Any) -> Path:
        """Write the model with only this layer quantised, over the last such file, and return its path."""
        out = self.folder / "alone.onnx"
        self._quantise(out, nodes_to_quantize=[node.name])
        return out

    def write(self, out: Path, exclude: Sequence[str]) -> None:
        """Write the quantised model; the layers of the excluded names stay float."""
        self._quantise(out, nodes_to_exclude=[*self._float, *exclude])

    def _quantise(self, out: Path, **nodes: Any) -> None:
        """Write a model with the chosen nodes quantised; the ranges of the examples are computed once.

        Raises:
            ModelError: the quantiser fails.
        """
        tools = self._tools
        cached: dict[str, Any] = {}
        if "calibration_cache_path" in inspect.signature(tools.quantize_static).parameters:  # the ranges are always the same
            cached["calibration_cache_path"] = self._cache
        with self._without_advice("cannot be quantised"):
            tools.quantize_static(
                str(self.ready), str(out), _Reader(self.feeds), quant_format=tools.QuantFormat.QDQ, per_channel=True,
                activation_type=tools.QuantType.QInt8 if self.signed else tools.QuantType.QUInt8,
                weight_type=tools.QuantType.QInt8, reduce_range=self.reduce_range,
                extra_options={"ActivationSymmetric": self.signed}, use_external_data_format=self._large, **cached, **nodes,
            )  # fmt: skip

    @contextmanager
    def _without_advice(self, what: str) -> Iterator[None]:
        """Silence the quantiser's warnings and advice in the block; raise its errors as `ModelError`, but an OSError."""
        root, advice_filter, null_handler = logging.getLogger(), _Advice(), logging.NullHandler()
        root.addFilter(advice_filter)
        root.addHandler(null_handler)  # without any handler, `logging.warning` would add one for good
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                yield
        except OSError:
            raise
        except Exception as e:  # it raises whatever comes up
            raise ModelError(f"{self.path} {what}: {first_line(e)}") from e
        finally:
            root.removeFilter(advice_filter)
            root.removeHandler(null_handler)


class _Advice(logging.Filter):
    """Filter that drops the quantiser's messages on the root logger."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Return True if the record is logged: if it is not the quantiser's."""
        return "quantization" not in Path(record.pathname).parts


class _Reader:
    """Examples in the form of the quantiser's data reader: one at a time, whatever the model's batch axis."""

    def __init__(self, feeds: Sequence[Mapping[str, Any]]) -> None:
        self._feeds = feeds
        self.rewind()

    def rewind(self) -> None:
        """Start from the first example again."""
        self._left = iter(self._feeds)

    def get_next(self) -> dict[str, np.ndarray[Any, Any]] | None:
        """Return the next example as a copy; None at the end."""
        feed = next(self._left, None)
        return None if feed is None else dict(feed)

    def __iter__(self) -> Iterator[Mapping[str, Any]]:
        return iter(self._feeds)


# float16 of ONNX models, by the converter that comes with ONNX Runtime.


def convert(path: Path, out: Path) -> None:
    """Write the model with weights and computations in float16; its inputs and outputs keep their types.

    Raises:
        ModelError: it cannot be converted.
        RuntimeMissing: onnx is not installed.
    """
    onnx, model = graphs.package(), graphs.read_graph(path)
    runtime()
    if not any(tensor.data_type == onnx.TensorProto.FLOAT for tensor in model.graph.initializer):
        raise ModelError(f"{path} has no float32 weights: there is nothing to convert to float16")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # numbers too small for float16 become the smallest
            converted = import_late("onnxruntime.transformers.float16").convert_float_to_float16(model, keep_io_types=True)
    except Exception as e:  # it raises whatever comes up
        raise ModelError(f"{path} cannot be converted to float16: {first_line(e)}") from e
    large = bool(external_data(path))
    onnx.save(converted, str(out), save_as_external_data=large, location=f"{out.name}.data" if large else None)
