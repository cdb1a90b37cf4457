"""Real .tflite models of a few hundred bytes, written with the schema that comes with LiteRT."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import flatbuffers
import numpy as np
from ai_edge_litert import schema_py_generated as schema
from flatbuffers import flexbuffers

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


def static(path: Path, *, dtype: str = "int8", batch: int = -1) -> Path:
    """As `linear` with the identity and three classes, all in integers: x and logits are (element - zero) * 0.05."""
    zero, back = (128, 128) if dtype == "uint8" else (0, 0) if dtype == "int16" else (-20, -10)
    g = Graph()
    x = g.tensor("x", [batch, 4], dtype, scale=0.05, zero=zero)
    at = x
    if dtype == "uint8":
        at = g.tensor("elements", [batch, 4], "int8", scale=0.05, zero=zero - 128)
        g.operator("QUANTIZE", [x], [at], options="QuantizeOptions")
    wide = dtype == "int16"
    w = g.constant("w", np.eye(3, 4) * 127, "int8", scale=1 / 127)
    b = g.constant("b", np.zeros(3), "int64" if wide else "int32", scale=0.05 / 127)
    inner = dtype if wide else "int8"
    y = g.tensor("logits", [batch, 3], inner, scale=0.05, zero=0 if wide else -10)
    g.operator("FULLY_CONNECTED", [at, w, b], [y], options="FullyConnectedOptions", version=4)
    if dtype == "uint8":
        y, inside = g.tensor("pixels", [batch, 3], "uint8", scale=0.05, zero=back - 10), y
        g.operator("QUANTIZE", [inside], [y], options="QuantizeOptions")
    g.at.inputs, g.at.outputs = [x], [y]
    return g.save(path)


def two_inputs(path: Path, *, signature: bool = True, batch: int = -1) -> Path:
    """a, b float32 [batch, 2] -> total, difference. Without a signature the names are those of the tensors."""
    g = Graph()
    a, b = (g.tensor(f"serving_{name}:0", [batch, 2]) for name in "ab")
    total, difference = (g.tensor(name, [batch, 2]) for name in ("Partitioned:0", "Partitioned:1"))
    g.operator("ADD", [a, b], [total], options="AddOptions")
    g.operator("SUB", [a, b], [difference], options="SubOptions")
    g.at.inputs, g.at.outputs = [a, b], [total, difference]
    if signature:
        g.signature("serving_default", {"b": b, "a": a}, {"total": total, "difference": difference})
    return g.save(path)


def two_signatures(path: Path) -> Path:
    """Signatures `negative`, x [1, 2] -> y, and `double`, in subgraphs of their own."""
    g = Graph()
    x, y = (g.tensor(name, [1, 2]) for name in ("x", "y"))
    g.operator("NEG", [x], [y])
    g.at.inputs, g.at.outputs = [x], [y]
    g.signature("negative", {"x": x}, {"y": y})
    g.subgraph("second")
    x, y = (g.tensor(name, [1, 2]) for name in ("x2", "y2"))
    g.operator("ADD", [x, x], [y], options="AddOptions")
    g.at.inputs, g.at.outputs = [x], [y]
    g.signature("double", {"x": x}, {"y": y}, subgraph=1)
    return g.save(path)


def total(path: Path) -> Path:
    """x float32 [1, 2] -> the sum of it and all inputs before it, kept in a variable that operators read and assign."""
    g = Graph()
    x, state = g.tensor("x", [1, 2]), g.tensor("handle", [], "resource")
    before, y = g.tensor("before", [1, 2]), g.tensor("y", [1, 2])
    main = g.at
    begin = g.subgraph("begin")
    handle, zeros = g.tensor("handle", [], "resource"), g.constant("zeros", np.zeros((1, 2)))
    name = {"options": "VarHandleOptions", "container": b"", "sharedName": b"sum"}
    g.operator("VAR_HANDLE", [], [handle], **name)
    g.operator("ASSIGN_VARIABLE", [handle, zeros], [], options="AssignVariableOptions")
    g.at.inputs, g.at.outputs = [], []
    g.at = main
    g.operator("CALL_ONCE", [], [], options="CallOnceOptions", initSubgraphIndex=begin)
    g.operator("VAR_HANDLE", [], [state], **name)
    g.operator("READ_VARIABLE", [state], [before], options="ReadVariableOptions")
    g.operator("ADD", [before, x], [y], options="AddOptions")
    g.operator("ASSIGN_VARIABLE", [state, y], [], options="AssignVariableOptions")
    g.at.inputs, g.at.outputs = [x], [y]
    return g.save(path)


def last_two(path: Path) -> Path:
    """x float32 [1, 2] -> [1, 1], the sum of it and the input before it, by an SVDF that keeps that in a tensor."""
    g = Graph()
    x = g.tensor("x", [1, 2])
    feature, time = g.constant("feature", np.ones((1, 2))), g.constant("time", np.ones((1, 2)))
    bias, state = g.constant("bias", np.zeros(1)), g.tensor("state", [1, 2], variable=True)
    y = g.tensor("y", [1, 1])
    g.operator("SVDF", [x, feature, time, bias, state], [y], options="SVDFOptions", rank=1)
    g.at.inputs, g.at.outputs = [x], [y]
    return g.save(path)


def custom(path: Path, name: str = "edgetpu-custom-op") -> Path:
    """x float32 [1, 2] -> y, by an operator that TFLite does not have."""
    g = Graph()
    x, y = (g.tensor(one, [1, 2]) for one in "xy")
    g.operator(name, [x], [y])
    g.at.inputs, g.at.outputs = [x], [y]
    return g.save(path)


def detector(path: Path, scores: Any, *, order: Sequence[int] = (0, 1, 2, 3), step: bool = True) -> Path:
    """x float32 [1, 4] -> the 10 best of boxes at fixed anchors with these scores [n, 1 + classes], the first of no class.

    In this order, by the operator that decodes them, with a signature; without that step two outputs, still to be decoded.
    """
    g = Graph()
    x, axes, zero = g.tensor("x", [1, 4]), g.constant("axes", [1], "int32"), g.constant("zero", [[0.0]])
    mean, nothing = g.tensor("mean", [1, 1]), g.tensor("nothing", [1, 1])
    g.operator("MEAN", [x, axes], [mean], options="ReducerOptions", keepDims=True)
    g.operator("MUL", [mean, zero], [nothing], options="MulOptions")
    raw = []
    for name, value in (("boxes", np.zeros((1, len(scores), 4))), ("scores", np.asarray(scores)[None])):
        raw.append(g.tensor(f"Identity_{len(raw)}", value.shape))
        g.operator("ADD", [g.constant(name, value), nothing], raw[-1:], options="AddOptions")
    g.at.inputs, g.at.outputs = [x], raw
    if step:
        anchors = [[0.1 + 0.8 * i / len(scores), 0.5, 0.02, 0.2] for i in range(len(scores))]
        made = [g.tensor(f"Detected:{i}", shape) for i, shape in enumerate(([1, 10, 4], [1, 10], [1, 10], [1]))]
        g.operator("TFLite_Detection_PostProcess", [*raw, g.constant("anchors", anchors)], made)
        builder = flexbuffers.Builder()
        with builder.Map():
            for key, number in (("max_detections", 10), ("max_classes_per_detection", 1), ("num_classes", len(scores[0]) - 1)):
                builder.Int(key, number)
            for key in ("nms_score_threshold", "nms_iou_threshold", "y_scale", "x_scale", "h_scale", "w_scale"):
                builder.Float(key, 0.0 if key == "nms_score_threshold" else 0.5 if key == "nms_iou_threshold" else 1.0)
        g.at.operators[-1].customOptions = np.frombuffer(bytes(builder.Finish()), np.uint8)
        g.at.outputs = [made[i] for i in order]
        g.signature("serving_default", {"x": x}, {f"output_{i}": at for i, at in enumerate(g.at.outputs)})
    return g.save(path)


def steps(path: Path, shape: Sequence[int], *, softmax: bool) -> Path:
    """x float32 [1, steps, classes] -> the same or its softmax, in int8."""
    g = Graph()
    x, made = g.tensor("x", [1, *shape]), g.tensor("made", [1, *shape])
    y = g.tensor("y", [1, *shape], "int8", **({"scale": 1 / 256, "zero": -128} if softmax else {"scale": 0.1, "zero": 3}))
    if softmax:
        g.operator("SOFTMAX", [x], [made], options="SoftmaxOptions", beta=1.0)
    g.operator("QUANTIZE", [made if softmax else x], [y], options="QuantizeOptions")
    g.at.inputs, g.at.outputs = [x], [y]
    return g.save(path)


def without_inputs(path: Path) -> Path:
    """y = -[1, 2], of no input."""
    g = Graph()
    y = g.tensor("y", [1, 2])
    g.operator("NEG", [g.constant("c", [[1.0, 2.0]])], [y])
    g.at.outputs = [y]
    return g.save(path)


def huge(path: Path, *, dtype: str = "float32") -> Path:
    """A few bytes that describe tensors of 8 TB each, or of 2 TB in int8."""
    g = Graph()
    shape = [1 << 15, 1 << 15, 1 << 11]
    x, y = (g.tensor(name, shape, dtype, scale=None if dtype == "float32" else 0.05) for name in "xy")
    g.operator("NEG", [x], [y])
    g.at.inputs, g.at.outputs = [x], [y]
    return g.save(path)


def rolling(path: Path, *, dtype: str = "float32") -> Path:
    """x, before [1, 2] -> y = x + before, after = x: a state that goes in and out, as a card describes it."""
    g = Graph()
    narrow, wide = ({}, {}) if dtype == "float32" else ({"scale": 0.05, "zero": -20}, {"scale": 0.1, "zero": 7})
    x, before = g.tensor("x", [1, 2], dtype, **narrow), g.tensor("before", [1, 2], dtype, **narrow)
    y, after = g.tensor("y", [1, 2], dtype, **wide), g.tensor("after", [1, 2], dtype, **wide)
    zero = g.constant("zero", np.full((1, 2), narrow.get("zero", 0)), dtype, **narrow)
    version = 1 if dtype == "float32" else 2
    g.operator("ADD", [x, before], [y], options="AddOptions", version=version)
    g.operator("ADD", [x, zero], [after], options="AddOptions", version=version)
    g.at.inputs, g.at.outputs = [x, before], [y, after]
    return g.save(path)


def halves(path: Path) -> Path:
    """x float32 [1, any] -> [2, half as many]; with one element, as the file has it, there are no halves."""
    g = Graph()
    x, shape = g.tensor("x", [1, -1]), g.constant("shape", [2, -1], "int32")
    y = g.tensor("y", [2, -1])
    g.operator("RESHAPE", [x, shape], [y], options="ReshapeOptions", newShape=[2, -1])
    g.at.inputs, g.at.outputs = [x], [y]
    return g.save(path)


def repeated(*, tensors: int = 1, axes: int = 1, codes: int = 1, letters: int = 1) -> bytes:
    """A model that lists one tensor so many times, with so many axes, and one operator's name, of so many letters."""
    builder = flatbuffers.Builder(1 << 16)

    def table(fields: int, **offsets: int) -> int:
        builder.StartObject(fields)
        for field, offset in offsets.items():
            builder.PrependUOffsetTRelativeSlot(int(field[1:]), offset, 0)
        return int(builder.EndObject())

    def vector(offset: int, times: int = 1) -> int:
        builder.StartVector(4, times, 4)
        for _ in range(times):
            builder.PrependUOffsetTRelative(offset)
        return int(builder.EndVector())

    shape = builder.CreateNumpyVector(np.ones(axes, np.int32))
    graph = table(5, _0=vector(table(8, _0=shape), tensors))
    name = builder.CreateString("x" * letters)
    builder.Finish(table(8, _1=vector(table(4, _1=name), codes), _2=vector(graph)), b"TFL3")
    return bytes(builder.Output())
