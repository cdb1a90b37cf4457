"""Structured pruning of an ONNX graph: output channels of layers, removed from all that carries them.

A layer's channels are followed through what treats each of them by itself (activations, normalisation, pooling, depthwise
convolutions, products and sums of the same channels) to the layers that read them, whose weights lose the same rows. Where they
meet others, as in the sum at the end of a residual block, or are outputs of the model, the layer is left whole.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from edgeroute.compress.graph import package

Array = np.ndarray[Any, Any]
UNARY = {"Abs", "Cast", "Ceil", "Clip", "Dropout", "Elu", "Erf", "Exp", "Floor", "Gelu", "HardSigmoid", "HardSwish", "Identity",
         "LeakyRelu", "Log", "Mish", "Neg", "Reciprocal", "Relu", "Selu", "Sigmoid", "Sin", "Softplus", "Softsign", "Sqrt",
         "Tanh", "ThresholdedRelu"}  # fmt: skip
BINARY = {"Add", "Div", "Max", "Min", "Mul", "PRelu", "Pow", "Sub"}
POOLS = {"AveragePool", "GlobalAveragePool", "GlobalMaxPool", "LpPool", "MaxPool", "GlobalLpPool"}
ALIGNED = 8
"""Of so many channels a multiple of it is kept: kernels are made for that."""


class Whole(Exception):
    """The layer is left whole; the message says why."""


class Carried(NamedTuple):
    """A tensor that has the layer's channels."""

    axis: int
    """Of the channels, counted from the last, which is 1."""
    repeat: int
    """So many numbers of one channel are beside each other; 0: after a Flatten, as many as what reads them says."""


class Cut(NamedTuple):
    """Rows of a constant that go."""

    name: str
    axis: int
    keep: Array


class Channels:
    """A graph whose layers lose channels, one layer after the other.

    Args:
        model: an ONNX model, which is changed.
    """

    def __init__(self, model: Any) -> None:
        self.onnx, self.model = package(), model
        _constants_as_initializers(model)
        del model.graph.value_info[:]  # shapes, which change
        self.arrays: dict[str, Array] = {t.name: self.onnx.numpy_helper.to_array(t) for t in model.graph.initializer}
        self.readers: dict[str, list[Any]] = {}
        for node in model.graph.node:
            for name in {*node.input}:
                self.readers.setdefault(name, []).append(node)
        self.outputs = {one.name for one in model.graph.output}
        self._depthwise: list[Any] = []
        self._shapes: list[str] = []
        self._reshaped = set[str]()
        self._subgraphs = any(one.HasField("g") or one.graphs for node in model.graph.node for one in node.attribute)

    def prune(self, node: Any, share: float) -> str:
        """Removes the share of the layer's channels with the smallest weights (Li et al. 2017, arXiv:1608.08710).

        -> What became of it, in a few words.
        """
        try:
            axis, out, own = self._own(node)
            weights = self.arrays[own[0]]
            norms = np.abs(np.moveaxis(weights, axis, 0)).reshape(weights.shape[axis], -1).sum(axis=1)
            count = _kept(len(norms), share)
            if count == len(norms):
                return f"left whole: of {count} channels none would go"
            keep = np.zeros(len(norms), bool)
            keep[np.argsort(-norms, kind="stable")[:count]] = True
            cuts = [Cut(own[0], axis, keep), *(Cut(name, self.arrays[name].ndim - 1, keep) for name in own[1:])]
            cuts += self._follow(node.output[0], Carried(out, 1), keep)
            groups = {id(one): one for one in self._depthwise}
            self._check(cuts)
        except Whole as e:
            return f"left whole: {e}"
        for cut in cuts:
            self.arrays[cut.name] = np.compress(cut.keep, self.arrays[cut.name], axis=cut.axis)
        for one in groups.values():
            _set(one, "group", int(keep.sum()))
        for name in self._shapes:  # of a Reshape to rows of all numbers
            self.arrays[name] = np.array([*self.arrays[name][:-1], -1], self.arrays[name].dtype)
        self._reshaped |= {*self._shapes}
        return f"{count} of {len(keep)} channels"

    def finish(self) -> Any:
        """The model with the weights that are left."""
        for tensor in self.model.graph.initializer:
            array = self.arrays[tensor.name]
            if [*array.shape] != [*tensor.dims] or tensor.name in self._reshaped:
                tensor.CopyFrom(self.onnx.numpy_helper.from_array(np.ascontiguousarray(array), tensor.name))
        return self.model

    def _own(self, node: Any) -> tuple[int, int, list[str]]:
        """The axis of the output channels in its weights and, from the last, in its output; its weights and bias."""
        self._depthwise, self._shapes = [], []
        if self._subgraphs:
            raise Whole("the model has graphs within its graph, as of an If or a Loop")
        names = [name for name in node.input[1:] if name]
        if node.op_type == "Conv" and _get(node, "group", 1) == 1 and names[0] in self.arrays:
            return 0, self.arrays[names[0]].ndim - 1, names
        if node.op_type == "Gemm" and names[0] in self.arrays:
            return (0 if _get(node, "transB", 0) else 1), 1, names
        if node.op_type == "MatMul" and names[0] in self.arrays and self.arrays[names[0]].ndim == 2:  # noqa: PLR2004
            return 1, 1, names
        raise Whole(f"a {node.op_type} of this form")

    def _follow(self, name: str, at: Carried, keep: Array) -> list[Cut]:
        carried, cuts = {name: at}, list[Cut]()
        for node in self.model.graph.node:
            if not {*node.input} & {*carried}:
                continue
            cuts += self._through(node, carried, keep)
        if ends := sorted({*carried} & self.outputs):
            raise Whole(f"its channels are the output {ends[0]}")
        return cuts

    def _through(self, node: Any, carried: dict[str, Carried], keep: Array) -> list[Cut]:
        """What a node that reads the channels loses; its output is carried on, unless it is a layer that mixes them."""
        kind, first = node.op_type, carried.get(node.input[0])
        if kind in UNARY and first is not None:
            carried[node.output[0]] = first
            return []
        if kind in BINARY:
            return self._binary(node, carried, keep)
        if first is not None and kind in {"Conv", "Gemm", "MatMul"}:
            return self._layer(node, carried, first, keep)
        if first is not None and first.repeat == 1 and kind == "BatchNormalization":
            carried[node.output[0]] = first
            return [Cut(name, 0, keep) for name in node.input[1:]]
        if first is not None and first.repeat == 1 and first.axis > 1 and kind in POOLS:
            carried[node.output[0]] = first
            return []
        if first is not None and kind in {"Flatten", "Reshape", "Squeeze", "ReduceMean"}:
            carried[node.output[0]] = self._flat(node, first, keep)
            return []
        raise Whole(f"{kind} {node.name} reads its channels".replace("  ", " "))

    def _binary(self, node: Any, carried: dict[str, Carried], keep: Array) -> list[Cut]:
        """An operator of two inputs: of the same channels, or of the channels and a constant."""
        at = next(carried[name] for name in node.input if name in carried)
        cuts = []
        for name in node.input:
            if name in carried and carried[name] == at:
                continue
            constant = self.arrays.get(name)
            if constant is None:
                raise Whole(f"its channels meet others at {node.op_type} {node.name}".rstrip())
            if constant.ndim >= at.axis and constant.shape[-at.axis] > 1:
                repeat = at.repeat or constant.shape[-at.axis] // len(keep)
                cuts.append(Cut(name, constant.ndim - at.axis, np.repeat(keep, repeat)))
        carried[node.output[0]] = at
        return cuts

    def _layer(self, node: Any, carried: dict[str, Carried], at: Carried, keep: Array) -> list[Cut]:
        name = node.input[1]
        if name not in self.arrays or any(other in carried for other in node.input[1:]):
            raise Whole(f"{node.op_type} {node.name} reads its channels")
        weights, group = self.arrays[name], _get(node, "group", 1)
        if node.op_type == "Conv":
            if group == 1:
                return [Cut(name, 1, keep)]
            if group != len(keep) or weights.shape[0] != group:
                raise Whole(f"a grouped Conv {node.name} reads its channels")
            self._depthwise.append(node)
            carried[node.output[0]] = at
            return [Cut(one, 0, keep) for one in node.input[1:] if one]
        if at.axis != 1 or (node.op_type == "Gemm" and _get(node, "transA", 0)) or weights.ndim != 2:  # noqa: PLR2004
            raise Whole(f"{node.op_type} {node.name} reads its channels")
        axis = 1 if node.op_type == "Gemm" and _get(node, "transB", 0) else 0
        repeat, odd = divmod(weights.shape[axis], len(keep))
        if odd or at.repeat not in {0, repeat}:
            raise Whole(f"{node.op_type} {node.name} reads its channels")
        return [Cut(name, axis, np.repeat(keep, repeat))]

    def _flat(self, node: Any, at: Carried, keep: Array) -> Carried:
        """After a node that puts all numbers of an input in one row, or takes the mean of each channel."""
        kind = node.op_type
        flat = Carried(1, 0 if at.axis > 1 else 1)  # channels that come last are the same in a row of their own, and no other
        if kind == "Flatten" and _get(node, "axis", 1) == 1 and at.repeat == 1:
            return flat
        if kind == "Reshape" and at.repeat == 1:
            shape = self.arrays.get(node.input[1])
            rows = None if shape is None or len(shape) != 2 else shape.tolist()  # noqa: PLR2004 - inputs and their numbers
            if rows is not None and rows[0] in {0, -1, 1} and (rows[1] == -1 or not rows[1] % len(keep)):
                if rows[1] != -1:
                    if rows[0] == -1 or len(self.readers[node.input[1]]) > 1:
                        raise Whole(f"the size of Reshape {node.name} is fixed".replace("  ", " "))
                    self._shapes.append(node.input[1])
                return flat
        if kind in {"Squeeze", "ReduceMean"} and at.repeat == 1 and at.axis > 1:
            axes = _get(node, "axes", None)
            if axes is None and len(node.input) > 1 and node.input[1] in self.arrays:
                axes = self.arrays[node.input[1]].tolist()
            rank = at.axis + 1
            if axes is not None and sorted(axis % rank for axis in axes) == list(range(2, rank)):
                return at if kind == "ReduceMean" and _get(node, "keepdims", 1) else Carried(1, 1)
        raise Whole(f"{kind} {node.name} reads its channels")

    def _check(self, cuts: list[Cut]) -> None:
        """Each constant belongs to one node, and has the rows that go."""
        for cut in cuts:
            array = self.arrays.get(cut.name)
            if array is None or array.ndim <= cut.axis or array.shape[cut.axis] != len(cut.keep):
                raise Whole(f"{cut.name} is no constant with a row for each channel")
            if len(self.readers[cut.name]) > 1 or sum(cut.name == other.name for other in cuts) > 1:
                raise Whole(f"{cut.name} belongs to several nodes")


def _kept(channels: int, share: float) -> int:
    """How many channels stay: at least one, and of many a multiple of 8."""
    count = max(1, channels - int(channels * share))
    return count if channels < 2 * ALIGNED else min(channels, -(-count // ALIGNED) * ALIGNED)


def _constants_as_initializers(model: Any) -> None:
    for node in [node for node in model.graph.node if node.op_type == "Constant"]:
        value = next((one.t for one in node.attribute if one.name == "value"), None)
        if value is not None:
            tensor = model.graph.initializer.add()
            tensor.CopyFrom(value)
            tensor.name = node.output[0]
            model.graph.node.remove(node)


def _get(node: Any, name: str, default: Any) -> Any:
    for one in node.attribute:
        if one.name == name:
            return [*one.ints] if one.ints else one.i
    return default


def _set(node: Any, name: str, value: int) -> None:
    for one in node.attribute:
        if one.name == name:
            one.i = value
