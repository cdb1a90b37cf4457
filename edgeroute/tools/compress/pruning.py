"""Prunes a model: weights that matter least become zero, or channels that do go, measured before and after."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from edgeroute.edge.model_file import first_line
from edgeroute.edge.onnx import OnnxModel, external_data
from edgeroute.errors import ModelError, PolicyError, check_number
from edgeroute.tools.compress.graph import (
    last_layers,
    layers_of,
    name_nodes,
    package,
    put,
    read_graph,
    target,
    weight_of,
    workplace,
    write_card,
)
from edgeroute.tools.compress.measure import Examples, Layer, Result, answers, compared, labels_of, split

# Structured pruning of an ONNX graph: output channels of layers, removed from all that carries them.
#
# A layer's channels are followed through what treats each of them by itself (activations, normalisation, pooling, depthwise
# convolutions, products and sums of the same channels) to the layers that read them, whose weights lose the same rows. Where they
# meet others, as in the sum at the end of a residual block, or are outputs of the model, the layer is left whole.

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


Finetune = Callable[[str, list[Any], "list[Any] | None"], object]
"""Called with the pruned model's path, inputs and labels: trains the model at the path, in place."""
SMALL = 0.01
"""So much less than the asked-for share of zeros is told after fine-tuning."""


def prune(
    path: str | Path,
    inputs: Sequence[Any],
    labels: Sequence[Any] | None = None,
    *,
    sparsity: float,
    structured: bool = False,
    finetune: Finetune | None = None,
    out: str | Path | None = None,
    overwrite: bool = False,
) -> Result:
    """Prunes an ONNX model by the size of its weights, and writes the result with its card.

    Unstructured: of each layer, the share `sparsity` of its weights with the smallest absolute values becomes zero. The file
    keeps its size, and compressed it is smaller; ONNX Runtime is not faster by it. Structured: of each layer, that share of
    output channels, with the smallest weights, goes, where nothing but further layers depends on them: file, memory and time
    shrink. Of 16 channels and more a multiple of 8 stays. The last layer is left as it is.

    Args:
        path: the float model, .onnx. Its card is taken along.
        inputs: as callers give them to the model, before the card's preprocessing.
        labels: what is right for each: names, or numbers of classes.
        sparsity: the share, more than 0 and less than 1.
        structured: channels in place of weights.
        finetune: trains the pruned model, in place: it is called with the path of the file, and with the half of the inputs and
            labels that does not measure the result.
        out: the new file; None: beside the model, as NAME.pruned.onnx.
        overwrite: replace files that are there.

    Raises:
        ModelMissing, ModelError: the model cannot be read or run, or has nothing to prune; or what fine-tuning left cannot.
        RuntimeMissing: the package onnx is not installed.
        BadInput: the inputs do not fit the model, or are too few.
        PolicyError: the arguments are wrong, or the file is there already.
        StoreError: the disk is full, or may not be written to.
    """
    path = Path(path)
    check_number("sparsity", sparsity, least=0, above=True, most=1)
    if sparsity >= 1:
        raise PolicyError("sparsity= is less than 1: a model without weights has no answers")
    if path.suffix.lower() != ".onnx":
        raise ModelError(f"{path}: pruning is for .onnx: prune the model that it was converted from")
    to = target(path, None if out is None else Path(out), "pruned", overwrite=overwrite)
    examples = Examples([*inputs], None if labels is None else [*labels])
    used, held_out = split(examples, len(examples.inputs) // 2)
    graph = read_graph(path)
    name_nodes(graph)
    model = OnnxModel(path)
    if model.card.state:
        raise ModelError(f"{path} keeps a state between its inputs, and examples are single inputs: it is not pruned here")
    model.load()
    original = answers(model, held_out.inputs)
    notes = original.check(held_out.labels, labels_of(model))
    layers = (_channels if structured else _weights)(graph, sparsity, path)
    with workplace(to) as folder:
        made = folder / "made" / to.name
        made.parent.mkdir()
        large = bool(external_data(path))
        package().save(graph, str(made), save_as_external_data=large, location=f"{to.name}.data" if large else None)
        if finetune is not None:
            _tune(finetune, made, used)
            notes += [] if structured else _zeros(made, sparsity)
        write_card(made, model.card, _step(sparsity, structured=structured, tuned=finetune is not None))
        before, after = compared(model, made, original, held_out)
        put(made.parent, to)
    after = after._replace(path=to)
    count = len(used.inputs) if finetune is not None else 0
    return Result(before, after, tuple(layers), to.with_suffix(".json"), count, len(held_out.inputs), tuple(notes))


def _tune(finetune: Finetune, made: Path, used: Examples) -> None:
    try:
        finetune(str(made), list(used.inputs), None if used.labels is None else list(used.labels))
    except Exception as e:  # whatever a user's function raises
        raise ModelError(f"the function that fine-tunes failed: {type(e).__name__}: {first_line(e)}") from e


def _weights(graph: Any, share: float, path: Path) -> list[Layer]:
    """Zeros in each layer but the last."""
    known = {tensor.name: tensor for tensor in graph.graph.initializer}
    ends = {node.name for node in last_layers(graph)}
    found: list[Layer] = []
    changed = set[str]()
    for node in layers_of(graph):
        tensor = weight_of(node, known)
        array = package().numpy_helper.to_array(tensor)
        if node.name in ends or tensor.name in changed:
            found.append(Layer(node.name, node.op_type, array.size, None, None, "as it was: the last layer"))
            continue
        changed.add(tensor.name)
        count = int(array.size * share)
        order = np.argsort(np.abs(array), axis=None, kind="stable")[:count]
        pruned = array.copy()
        pruned.ravel()[order] = 0
        tensor.CopyFrom(package().numpy_helper.from_array(pruned, tensor.name))
        found.append(Layer(node.name, node.op_type, array.size, None, None, f"{100 * (pruned == 0).mean():.1f} % zeros"))
    if not changed:
        raise ModelError(f"{path} has nothing to prune: no layer with weights before its last one")
    return found


def _channels(graph: Any, share: float, path: Path) -> list[Layer]:
    """Fewer channels in each layer but the last."""
    channels = Channels(graph)
    ends = {node.name for node in last_layers(graph)}
    nodes = layers_of(graph)
    notes = {node.name: "as it was: the last layer" if node.name in ends else channels.prune(node, share) for node in nodes}
    if not any(" of " in note and not note.startswith("left whole") for note in notes.values()):
        raise ModelError(f"{path} has no channels to remove: " + "; ".join(f"{name}: {note}" for name, note in notes.items()))
    made = channels.finish()
    known = {tensor.name: tensor for tensor in made.graph.initializer}
    sizes = {node.name: int(np.prod(weight_of(node, known).dims)) for node in nodes}
    return [Layer(node.name, node.op_type, sizes[node.name], None, None, notes[node.name]) for node in nodes]


def _zeros(made: Path, sparsity: float) -> list[str]:
    """What is to be said where fine-tuning gave up zeros."""
    graph = read_graph(made)
    name_nodes(graph)
    known = {tensor.name: tensor for tensor in graph.graph.initializer}
    ends = {node.name for node in last_layers(graph)}
    arrays = [package().numpy_helper.to_array(weight_of(n, known)) for n in layers_of(graph) if n.name not in ends]
    total = sum(array.size for array in arrays)
    share = sum(int((array == 0).sum()) for array in arrays) / total if total else 0.0
    if share >= sparsity - SMALL:
        return []
    return [
        f"after fine-tuning {100 * share:.1f} % of the weights are zero, not {100 * sparsity:.1f} %: it did not keep them at zero"
    ]


def _step(sparsity: float, *, structured: bool, tuned: bool) -> str:
    what = "of the channels" if structured else "of the weights of each layer"
    return f"{100 * sparsity:g} % {what} pruned, by edgeroute prune" + (", fine-tuned" if tuned else "")
