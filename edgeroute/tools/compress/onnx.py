"""Static int8 and float16 of ONNX models."""

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

from edgeroute.edge.model_file import first_line
from edgeroute.edge.onnx import external_data, runtime
from edgeroute.errors import ModelError
from edgeroute.system.imports import import_late
from edgeroute.tools.compress.graph import (
    LAYERS,
    PER_CHANNEL,
    at_opset,
    constants_of,
    flatten_biases,
    last_layers,
    layers_of,
    name_nodes,
    nodes_after,
    operators_of,
    package,
    read_graph,
    weight_of,
)

# Static int8 of ONNX models, by ONNX Runtime's quantiser.


class Int8:
    """A model prepared for quantisation, and the ranges of its tensors on some examples.

    Args:
        path: the float model.
        feeds: the model's tensors for each example.
        folder: for files in between.
        last: the last layers are quantised, too.
        activations: "uint8", or "int8", which is symmetric.
        reduce_range: weights have 7 bits.

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
        onnx, found = package(), read_graph(path)
        runtime()
        self._tools = import_late("onnxruntime.quantization")
        self._large = bool(external_data(path))
        model = at_opset(found, PER_CHANNEL, path)
        if model is not found:
            self.notes.append(f"converted to opset {PER_CHANNEL}, which quantising per channel takes")
        self.ready = folder / "ready.onnx"
        start = folder / "start.onnx"
        self._save(onnx, model, start)
        with self._quiet("cannot be prepared for quantisation"):
            self._tools.quant_pre_process(
                str(start), str(self.ready), skip_symbolic_shape=True, save_as_external_data=self._large,
                all_tensors_to_one_file=True,
            )  # fmt: skip
        prepared = onnx.load(str(self.ready))
        name_nodes(prepared)
        flatten_biases(prepared)
        self._save(onnx, prepared, self.ready)
        self._layers = layers_of(prepared)
        self._weights = constants_of(prepared)
        ends = last_layers(prepared)
        if not self._layers:
            raise ModelError(f"{path} has nothing to quantise: no {', '.join(LAYERS)} with weights, but {operators_of(prepared)}")
        self._float = [] if last else [node.name for node in [*ends, *nodes_after(prepared, ends)]]
        if {node.name for node in self._layers} <= {*self._float}:
            raise ModelError(
                f"{path} has one layer after the other only as its last one, which stays float, so that confidences do not tie:"
                " quantise it too with --last"
            )
        if not last:
            self.notes.append(f"the last layer stays float, so that confidences do not tie: {', '.join(n.name for n in ends)}")
        self._cache = folder / "ranges.json"

    def _save(self, onnx: Any, model: Any, path: Path) -> None:
        path.with_name(f"{path.name}.data").unlink(missing_ok=True)
        onnx.save(model, str(path), save_as_external_data=self._large, location=f"{path.name}.data" if self._large else None)

    def layers(self) -> list[tuple[Any, int]]:
        """The layers that are quantised, each with its number of weights."""
        return [(node, prod(weight_of(node, self._weights).dims)) for node in self._layers if node.name not in self._float]

    def alone(self, node: Any) -> Path:
        """The model with this layer alone quantised."""
        out = self.folder / "alone.onnx"
        self._quantised(out, nodes_to_quantize=[node.name])
        return out

    def write(self, out: Path, exclude: Sequence[str]) -> None:
        """The quantised model, without the layers of these names."""
        self._quantised(out, nodes_to_exclude=[*self._float, *exclude])

    def _quantised(self, out: Path, **nodes: Any) -> None:
        tools = self._tools
        cached: dict[str, Any] = {}
        if "calibration_cache_path" in inspect.signature(tools.quantize_static).parameters:  # the ranges are always the same
            cached["calibration_cache_path"] = self._cache
        with self._quiet("cannot be quantised"):
            tools.quantize_static(
                str(self.ready), str(out), _Reader(self.feeds), quant_format=tools.QuantFormat.QDQ, per_channel=True,
                activation_type=tools.QuantType.QInt8 if self.signed else tools.QuantType.QUInt8,
                weight_type=tools.QuantType.QInt8, reduce_range=self.reduce_range,
                extra_options={"ActivationSymmetric": self.signed}, use_external_data_format=self._large, **cached, **nodes,
            )  # fmt: skip

    @contextmanager
    def _quiet(self, what: str) -> Iterator[None]:
        """Without the quantiser's advice to itself; its errors are the model's."""
        root, quiet, filler = logging.getLogger(), _Advice(), logging.NullHandler()
        root.addFilter(quiet)
        root.addHandler(filler)  # where there is none, `logging.warning` would add one for good
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                yield
        except OSError:
            raise
        except Exception as e:  # it raises whatever comes up
            raise ModelError(f"{self.path} {what}: {first_line(e)}") from e
        finally:
            root.removeFilter(quiet)
            root.removeHandler(filler)


class _Advice(logging.Filter):
    """Drops what the quantiser says on the root logger."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether the record is logged."""
        return "quantization" not in Path(record.pathname).parts


class _Reader:
    """The examples, as the quantiser takes them: one at a time, whatever the model's batch axis."""

    def __init__(self, feeds: Sequence[Mapping[str, Any]]) -> None:
        self._feeds = feeds
        self.rewind()

    def rewind(self) -> None:
        """Begins anew."""
        self._left = iter(self._feeds)

    def get_next(self) -> dict[str, np.ndarray[Any, Any]] | None:
        """The next one; None: there are no more."""
        feed = next(self._left, None)
        return None if feed is None else dict(feed)

    def __iter__(self) -> Iterator[Mapping[str, Any]]:
        return iter(self._feeds)


# float16 of ONNX models, by the converter that comes with ONNX Runtime.


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
            made = import_late("onnxruntime.transformers.float16").convert_float_to_float16(model, keep_io_types=True)
    except Exception as e:  # it raises whatever comes up
        raise ModelError(f"{path} cannot be converted to float16: {first_line(e)}") from e
    large = bool(external_data(path))
    onnx.save(made, str(out), save_as_external_data=large, location=f"{out.name}.data" if large else None)
