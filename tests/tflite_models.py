"""Real .tflite models of a few hundred bytes, written with the schema that comes with LiteRT."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import flatbuffers
import numpy as np
from ai_edge_litert import schema_py_generated as schema

TYPES = {
    "float32": schema.TensorType.FLOAT32, "int8": schema.TensorType.INT8, "uint8": schema.TensorType.UINT8,
    "int16": schema.TensorType.INT16, "int32": schema.TensorType.INT32, "int64": schema.TensorType.INT64,
    "bool": schema.TensorType.BOOL, "resource": schema.TensorType.RESOURCE,
}  # fmt: skip


class Graph:
    """A model under construction: tensors and operators are added in the order in which they are computed."""

    def __init__(self) -> None:
        self.model = schema.ModelT()
        self.model.version, self.model.description = 3, b"edgeroute"
        self.model.buffers, self.model.operatorCodes, self.model.subgraphs = [schema.BufferT()], [], []
        self.model.signatureDefs = []
        self.subgraph("main")

    def subgraph(self, name: str) -> int:
        """Begins a further subgraph, which what follows is added to. -> its number."""
        self.at = schema.SubGraphT()
        self.at.name, self.at.tensors, self.at.operators, self.at.inputs, self.at.outputs = name.encode(), [], [], [], []
        self.model.subgraphs.append(self.at)
        return len(self.model.subgraphs) - 1

    def tensor(
        self, name: str, shape: Sequence[int], dtype: str = "float32", *, value: Any = None, scale: Any = None,
        zero: int = 0, axis: int = 0, variable: bool = False,
    ) -> int:  # fmt: skip
        """A tensor; -1 in its shape is an axis of any size. With a value it is a constant. -> its number."""
        made = schema.TensorT()
        made.name, made.shape, made.type, made.isVariable = name.encode(), [max(1, n) for n in shape], TYPES[dtype], variable
        made.shapeSignature = list(shape) if -1 in shape else None
        made.buffer = 0
        if value is not None:
            buffer = schema.BufferT()
            buffer.data = np.frombuffer(np.ascontiguousarray(value, dtype).tobytes(), np.uint8)
            self.model.buffers.append(buffer)
            made.buffer = len(self.model.buffers) - 1
        if scale is not None:
            made.quantization = schema.QuantizationParametersT()
            made.quantization.scale = np.atleast_1d(np.asarray(scale, np.float32))
            made.quantization.zeroPoint = np.full(made.quantization.scale.shape, zero, np.int64)
            made.quantization.quantizedDimension = axis
        self.at.tensors.append(made)
        return len(self.at.tensors) - 1

    def constant(self, name: str, value: Any, dtype: str = "float32", **more: Any) -> int:
        """A tensor with that value."""
        return self.tensor(name, np.shape(value), dtype, value=value, **more)

    def operator(self, name: str, inputs: Sequence[int], outputs: Sequence[int], **options: Any) -> None:
        """An operator by its name in the schema, with the fields of its options."""
        code = schema.OperatorCodeT()
        custom = not hasattr(schema.BuiltinOperator, name)
        code.builtinCode = schema.BuiltinOperator.CUSTOM if custom else getattr(schema.BuiltinOperator, name)
        code.deprecatedBuiltinCode, code.version = min(code.builtinCode, 127), options.pop("version", 1)
        code.customCode = name.encode() if custom else None
        self.model.operatorCodes.append(code)
        made = schema.OperatorT()
        made.opcodeIndex, made.inputs, made.outputs = len(self.model.operatorCodes) - 1, list(inputs), list(outputs)
        kind = options.pop("options", None)
        if kind is not None:
            made.builtinOptionsType = getattr(schema.BuiltinOptions, kind)
            made.builtinOptions = getattr(schema, f"{kind}T")()
            for key, value in options.items():
                setattr(made.builtinOptions, key, value)
        self.at.operators.append(made)

    def signature(self, key: str, inputs: Mapping[str, int], outputs: Mapping[str, int], subgraph: int = 0) -> None:
        """Names for the inputs and outputs of a subgraph."""
        made = schema.SignatureDefT()
        made.signatureKey, made.subgraphIndex = key.encode(), subgraph
        made.inputs, made.outputs = _mapped(inputs), _mapped(outputs)
        self.model.signatureDefs.append(made)

    def save(self, path: Path) -> Path:
        """Writes the file."""
        builder = flatbuffers.Builder(1 << 16)
        builder.Finish(self.model.Pack(builder), b"TFL3")
        path.write_bytes(bytes(builder.Output()))
        return path


def _mapped(names: Mapping[str, int]) -> list[Any]:
    made = []
    for name, index in names.items():
        one = schema.TensorMapT()
        one.name, one.tensorIndex = name.encode(), index
        made.append(one)
    return made


def linear(path: Path, *, weights: Any = None, classes: int = 3, size: int = 4, batch: int = -1) -> Path:
    """x float32 [batch, size] -> logits [batch, classes] = x @ weights."""
    weights = np.eye(size, classes) if weights is None else np.asarray(weights)
    g = Graph()
    x = g.tensor("x", [batch, len(weights)])
    w = g.constant("w", weights.T)
    y = g.tensor("logits", [batch, weights.shape[1]])
    g.operator("FULLY_CONNECTED", [x, w, -1], [y], options="FullyConnectedOptions")
    g.at.inputs, g.at.outputs = [x], [y]
    return g.save(path)


def dynamic_range(path: Path, *, weights: Any = None, per_channel: bool = False) -> Path:
    """As `linear`, with weights in int8 and activations in float: quantised while it runs."""
    weights = np.eye(4, 3) if weights is None else np.asarray(weights)
    top = np.abs(weights.T).max(1) if per_channel else np.abs(weights).max()
    scale = np.asarray(top) / 127
    g = Graph()
    x = g.tensor("x", [-1, len(weights)])
    q = np.round(weights.T / (scale[:, None] if per_channel else scale))
    w = g.constant("w", q, "int8", scale=scale)
    y = g.tensor("logits", [-1, weights.shape[1]])
    g.operator("FULLY_CONNECTED", [x, w, -1], [y], options="FullyConnectedOptions", version=5 if per_channel else 3)
    g.at.inputs, g.at.outputs = [x], [y]
    return g.save(path)
