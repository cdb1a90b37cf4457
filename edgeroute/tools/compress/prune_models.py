"""Pruning of ONNX models: the least weights become zero, or the least channels are removed; measured before and after."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import edgeroute.tools.compress.onnx_graphs_and_result_files as graphs
from edgeroute.edge.onnx import external_data
from edgeroute.edge.runtime_base import first_line
from edgeroute.errors import ModelError, PolicyError, check_number
from edgeroute.tools.compress.measurement import Examples, Layer, Result, examples_of, load_original, measure_both, result, split

# Structured pruning of an ONNX graph: removes output channels of layers, and their rows in all later tensors.
#
# A layer's channels are followed through nodes that treat each channel by itself (activations, normalisation, pooling, depthwise
# convolutions, products and sums of the same channels) to the layers that read them, whose weights lose the same rows. Where they
# meet others, as in the sum at the end of a residual block, or are outputs of the model, the layer is left whole.

Array = np.ndarray[Any, Any]
UNARY = {"Abs", "Cast", "Ceil", "Clip", "Dropout", "Elu", "Erf", "Exp", "Floor", "Gelu", "HardSigmoid", "HardSwish", "Identity",
         "LeakyRelu", "Log", "Mish", "Neg", "Reciprocal", "Relu", "Selu", "Sigmoid", "Sin", "Softplus", "Softsign", "Sqrt",
         "Tanh", "ThresholdedRelu"}  # fmt: skip
BINARY = {"Add", "Div", "Max", "Min", "Mul", "PRelu", "Pow", "Sub"}
POOLS = {"AveragePool", "GlobalAveragePool", "GlobalMaxPool", "LpPool", "MaxPool", "GlobalLpPool"}
ALIGNED = 8  # divisor of the channels that stay, of 16 or more: kernels are optimised for it


class Whole(Exception):
    """Raised to leave a layer whole; the message gives the reason."""


class Position(NamedTuple):
    """Position of a layer's channels in a later tensor."""

    axis: int  # axis of the channels, counted from the last, which is 1
    repeat: int  # adjacent numbers of one channel; 0: unknown after a Flatten, until a layer reads them


class Cut(NamedTuple):
    """Rows of a constant to remove. `keep` is True for the rows that stay."""

    name: str
    axis: int
    keep: Array


class Channels:
    """Pruner of the channels of one graph, layer by layer.

    Args:
        model: an ONNX model, which is changed in place.
    """

    def __init__(self, model: Any) -> None:
        self.onnx, self.model = graphs.package(), model
        _constants_as_initializers(model)
        del model.graph.value_info[:]  # shapes, which change
        self.arrays: dict[str, Array] = {t.name: self.onnx.numpy_helper.to_array(t) for t in model.graph.initializer}
        self.readers: dict[str, list[Any]] = {}
        for node in model.graph.node:
            for name in {*node.input}:
                self.readers.setdefault(name, []).append(node)
        self.outputs = {output.name for output in model.graph.output}
        self._depthwise: list[Any] = []
        self._shapes: list[str] = []
        self._reshaped = set[str]()
        self._subgraphs = any(part.HasField("g") or part.graphs for node in model.graph.node for part in node.attribute)

    def prune(self, node: Any, share: float) -> str:
        """Remove the share of the layer's channels with the smallest weights (Li et al. 2017, arXiv:1608.08710).

        Returns the result in a few words. Leaves the layer whole if the channels cannot be followed through the graph, and says
        why. Later layers lose the inputs that read them. The arrays change at once, the model at `finish`.
        """
        try:
            axis, out, names = self._weights_of(node)
            weights = self.arrays[names[0]]
            norms = np.abs(np.moveaxis(weights, axis, 0)).reshape(weights.shape[axis], -1).sum(axis=1)
            count = _kept_channels(len(norms), share)
            if count == len(norms):
                return f"left whole: none of {count} channels would be removed"
            keep = np.zeros(len(norms), bool)
            keep[np.argsort(-norms, kind="stable")[:count]] = True
            cuts = [Cut(names[0], axis, keep), *(Cut(name, self.arrays[name].ndim - 1, keep) for name in names[1:])]
            cuts += self._follow(node.output[0], Position(out, 1), keep)
            groups = {id(conv): conv for conv in self._depthwise}
            self._check(cuts)
        except Whole as e:
            return f"left whole: {e}"
        for cut in cuts:
            self.arrays[cut.name] = np.compress(cut.keep, self.arrays[cut.name], axis=cut.axis)
        for conv in groups.values():
            _set(conv, "group", int(keep.sum()))
        for name in self._shapes:  # of a Reshape to rows of all numbers
            self.arrays[name] = np.array([*self.arrays[name][:-1], -1], self.arrays[name].dtype)
        self._reshaped |= {*self._shapes}
        return f"{count} of {len(keep)} channels"

    def finish(self) -> None:
        """Write the remaining weights into the model, in place."""
        for tensor in self.model.graph.initializer:
            array = self.arrays[tensor.name]
            if [*array.shape] != [*tensor.dims] or tensor.name in self._reshaped:
                tensor.CopyFrom(self.onnx.numpy_helper.from_array(np.ascontiguousarray(array), tensor.name))

    def _weights_of(self, node: Any) -> tuple[int, int, list[str]]:
        """Return the axis of the output channels in the weights and in the output, and the names of weights and bias.

        The axis in the output counts from the last. Forgets what was collected for the layer before.

        Raises:
            Whole: the layer has no such form, or the model has graphs within its graph.
        """
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

    def _follow(self, name: str, start: Position, keep: Array) -> list[Cut]:
        """Follow the channels through the graph; return the rows to remove of all constants that meet them. Changes no array.

        Raises:
            Whole: they cannot be followed, or reach an output of the model.
        """
        positions, cuts = {name: start}, list[Cut]()
        for node in self.model.graph.node:
            if not {*node.input} & {*positions}:
                continue
            cuts += self._cuts_at(node, positions, keep)
        if ends := sorted({*positions} & self.outputs):
            raise Whole(f"its channels are the output {ends[0]}")
        return cuts

    def _cuts_at(self, node: Any, positions: dict[str, Position], keep: Array) -> list[Cut]:
        """Return the rows that a node loses; raise `Whole` if it mixes the channels.

        Adds the channels' position in its output to `positions`, unless a layer reads them.
        """
        kind, first = node.op_type, positions.get(node.input[0])
        if kind in UNARY and first is not None:
            positions[node.output[0]] = first
            return []
        if kind in BINARY:
            return self._cuts_at_binary(node, positions, keep)
        if first is not None and kind in {"Conv", "Gemm", "MatMul"}:
            return self._cuts_at_layer(node, positions, first, keep)
        if first is not None and first.repeat == 1 and kind == "BatchNormalization":
            positions[node.output[0]] = first
            return [Cut(name, 0, keep) for name in node.input[1:]]
        if first is not None and first.repeat == 1 and first.axis > 1 and kind in POOLS:
            positions[node.output[0]] = first
            return []
        if first is not None and kind in {"Flatten", "Reshape", "Squeeze", "ReduceMean"}:
            positions[node.output[0]] = self._position_after(node, first, keep)
            return []
        raise Whole(f"{kind} {node.name} reads its channels".replace("  ", " "))

    def _cuts_at_binary(self, node: Any, positions: dict[str, Position], keep: Array) -> list[Cut]:
        """Return the rows that an operator of two inputs loses: the same channels, or the channels and a constant.

        Adds the channels' position in the output to `positions`.

        Raises:
            Whole: the channels meet others.
        """
        position = next(positions[name] for name in node.input if name in positions)
        cuts = []
        for name in node.input:
            if name in positions and positions[name] == position:
                continue
            constant = self.arrays.get(name)
            if constant is None:
                raise Whole(f"its channels meet others at {node.op_type} {node.name}".rstrip())
            if constant.ndim >= position.axis and constant.shape[-position.axis] > 1:
                repeat = position.repeat or constant.shape[-position.axis] // len(keep)
                cuts.append(Cut(name, constant.ndim - position.axis, np.repeat(keep, repeat)))
        positions[node.output[0]] = position
        return cuts

    def _cuts_at_layer(self, node: Any, positions: dict[str, Position], position: Position, keep: Array) -> list[Cut]:
        """Return the rows that a Conv, Gemm or MatMul loses; a depthwise Conv carries the channels on in `positions`.

        The latter loses its own rows, and is noted in `_depthwise`.

        Raises:
            Whole: they cannot be followed through it.
        """
        name = node.input[1]
        if name not in self.arrays or any(other in positions for other in node.input[1:]):
            raise Whole(f"{node.op_type} {node.name} reads its channels")
        weights, group = self.arrays[name], _get(node, "group", 1)
        if node.op_type == "Conv":
            if group == 1:
                return [Cut(name, 1, keep)]
            if group != len(keep) or weights.shape[0] != group:
                raise Whole(f"a grouped Conv {node.name} reads its channels")
            self._depthwise.append(node)
            positions[node.output[0]] = position
            return [Cut(constant, 0, keep) for constant in node.input[1:] if constant]
        if position.axis != 1 or (node.op_type == "Gemm" and _get(node, "transA", 0)) or weights.ndim != 2:  # noqa: PLR2004
            raise Whole(f"{node.op_type} {node.name} reads its channels")
        axis = 1 if node.op_type == "Gemm" and _get(node, "transB", 0) else 0
        repeat, odd = divmod(weights.shape[axis], len(keep))
        if odd or position.repeat not in {0, repeat}:
            raise Whole(f"{node.op_type} {node.name} reads its channels")
        return [Cut(name, axis, np.repeat(keep, repeat))]

    def _position_after(self, node: Any, position: Position, keep: Array) -> Position:
        """Return the channels' position after a node that flattens each input to a row, or averages each channel.

        Collects the shape of a Reshape, which changes later.

        Raises:
            Whole: the node does something else.
        """
        kind = node.op_type
        flat = Position(1, 0 if position.axis > 1 else 1)  # channels that come last are the same in a row of their own
        if kind == "Flatten" and _get(node, "axis", 1) == 1 and position.repeat == 1:
            return flat
        if kind == "Reshape" and position.repeat == 1:
            shape = self.arrays.get(node.input[1])
            rows = None if shape is None or len(shape) != 2 else shape.tolist()  # noqa: PLR2004 - inputs and their numbers
            if rows is not None and rows[0] in {0, -1, 1} and (rows[1] == -1 or not rows[1] % len(keep)):
                if rows[1] != -1:
                    if rows[0] == -1 or len(self.readers[node.input[1]]) > 1:
                        raise Whole(f"the size of Reshape {node.name} is fixed".replace("  ", " "))
                    self._shapes.append(node.input[1])
                return flat
        if kind in {"Squeeze", "ReduceMean"} and position.repeat == 1 and position.axis > 1:
            axes = _get(node, "axes", None)
            if axes is None and len(node.input) > 1 and node.input[1] in self.arrays:
                axes = self.arrays[node.input[1]].tolist()
            rank = position.axis + 1
            if axes is not None and sorted(axis % rank for axis in axes) == list(range(2, rank)):
                return position if kind == "ReduceMean" and _get(node, "keepdims", 1) else Position(1, 1)
        raise Whole(f"{kind} {node.name} reads its channels")

    def _check(self, cuts: list[Cut]) -> None:
        """Raise `Whole` unless each constant belongs to one node and has the rows to remove."""
        for cut in cuts:
            array = self.arrays.get(cut.name)
            if array is None or array.ndim <= cut.axis or array.shape[cut.axis] != len(cut.keep):
                raise Whole(f"{cut.name} is no constant with a row for each channel")
            if len(self.readers[cut.name]) > 1 or sum(cut.name == other.name for other in cuts) > 1:
                raise Whole(f"{cut.name} belongs to several nodes")


def _kept_channels(channels: int, share: float) -> int:
    """Return the number of channels that stay: at least one, and of 16 or more a multiple of 8."""
    count = max(1, channels - int(channels * share))
    return count if channels < 2 * ALIGNED else min(channels, -(-count // ALIGNED) * ALIGNED)


def _constants_as_initializers(model: Any) -> None:
    """Replace Constant nodes that hold a tensor by initializers, in place; others stay."""
    for node in [node for node in model.graph.node if node.op_type == "Constant"]:
        value = next((attribute.t for attribute in node.attribute if attribute.name == "value"), None)
        if value is not None:
            tensor = model.graph.initializer.add()
            tensor.CopyFrom(value)
            tensor.name = node.output[0]
            model.graph.node.remove(node)


def _get(node: Any, name: str, default: Any) -> Any:
    """Return an integer or list attribute of a node, or the default if the node lacks it."""
    for attribute in node.attribute:
        if attribute.name == name:
            return [*attribute.ints] if attribute.ints else attribute.i
    return default


def _set(node: Any, name: str, value: int) -> None:
    """Set an integer attribute of a node in place; nothing if the node lacks it."""
    for attribute in node.attribute:
        if attribute.name == name:
            attribute.i = value


# Function of the pruned model's path, inputs and labels, which trains the model at the path, in place.
Finetune = Callable[[str, list[Any], "list[Any] | None"], object]
SMALL = 0.01  # loss of zeros by fine-tuning that is not reported, as a share of the weights


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
    """Prune an ONNX model by the size of its weights, write the new model with its card, and measure both.

    Unstructured: in each layer, the share `sparsity` of its weights with the smallest absolute values becomes zero. The file
    keeps its size, and compressed it is smaller; ONNX Runtime does not get faster. Structured: in each layer, that share of the
    output channels, those with the smallest weights, is removed, where only further layers depend on them: file, memory and time
    shrink. Of 16 channels and more a multiple of 8 stays. The last layer does not change.

    The new files appear only once they are measured.

    Args:
        path: the float model, .onnx. Its card is copied to the new model.
        inputs: inputs as callers pass them to the model, before the card's preprocessing.
        labels: the right answer of each input: names, or class numbers.
        sparsity: the share, more than 0 and less than 1.
        structured: True removes channels in place of weights.
        finetune: function that trains the pruned model in place. It is called with the path of the file, and with the half of the
            inputs and labels that does not measure the result.
        out: path of the new file; None: beside the model, as NAME.pruned.onnx.
        overwrite: True replaces existing files.

    Raises:
        ModelMissing, ModelError: the model cannot be read or run, or has nothing to prune; or the fine-tuned model cannot be run.
        RuntimeMissing: the package onnx is not installed.
        BadInput: the inputs do not fit the model, or are too few.
        PolicyError: the arguments are wrong, or the file exists already.
        StoreError: the disk is full, or may not be written to.
    """
    path = Path(path)
    check_number("sparsity", sparsity, least=0, above=True, most=1)
    if sparsity >= 1:
        raise PolicyError("sparsity= is less than 1: a model without weights has no answers")
    if path.suffix.lower() != ".onnx":
        raise ModelError(f"{path}: only .onnx can be pruned: prune the model that it was converted from")
    path_out = graphs.target(path, None if out is None else Path(out), "pruned", overwrite=overwrite)
    examples = examples_of(inputs, labels)
    used, held_out = split(examples, len(examples.inputs) // 2)
    graph = graphs.read_graph(path)
    graphs.name_nodes(graph)
    model, original, notes = load_original(path, held_out)
    layers = (_prune_channels if structured else _prune_weights)(graph, sparsity, path)
    with graphs.workplace(path_out) as (_, pruned):
        graphs.save(graph, pruned, large=bool(external_data(path)))
        if finetune is not None:
            _tune(finetune, pruned, used)
            notes += [] if structured else _lost_zeros(pruned, sparsity)
        graphs.write_card(pruned, model.card, _step(sparsity, structured=structured, tuned=finetune is not None))
        before, after = measure_both(model, pruned, original, held_out)
        graphs.put(pruned.parent, path_out)
    return result(before, after, path_out, layers, len(used.inputs) if finetune is not None else 0, held_out, notes)


def _tune(finetune: Finetune, model_path: Path, used: Examples) -> None:
    """Call the user's function with the pruned model's path and copies of inputs and labels; it trains the file in place.

    Raises:
        ModelError: the function raises any error.
    """
    try:
        finetune(str(model_path), list(used.inputs), None if used.labels is None else list(used.labels))
    except Exception as e:  # whatever a user's function raises
        raise ModelError(f"the function that fine-tunes failed: {type(e).__name__}: {first_line(e)}") from e


def _prune_weights(graph: Any, share: float, path: Path) -> list[Layer]:
    """Set the smallest weights of each layer to zero, in place; return the layers, with what was done.

    The last layers, and weights that a layer before has shared, stay.

    Raises:
        ModelError: there is no layer before the last.
    """
    layers: list[Layer] = []
    changed = set[str]()
    for node, tensor, last in _layers(graph):
        array = graphs.package().numpy_helper.to_array(tensor)
        if last or tensor.name in changed:
            layers.append(Layer(node.name, node.op_type, array.size, None, None, "as it was: the last layer"))
            continue
        changed.add(tensor.name)
        count = int(array.size * share)
        order = np.argsort(np.abs(array), axis=None, kind="stable")[:count]
        pruned = array.copy()
        pruned.ravel()[order] = 0
        tensor.CopyFrom(graphs.package().numpy_helper.from_array(pruned, tensor.name))
        layers.append(Layer(node.name, node.op_type, array.size, None, None, f"{100 * (pruned == 0).mean():.1f} % zeros"))
    if not changed:
        raise ModelError(f"{path} has nothing to prune: no layer with weights before its last one")
    return layers


def _prune_channels(graph: Any, share: float, path: Path) -> list[Layer]:
    """Remove the share of channels with the smallest weights of each layer but the last, in place; return the layers.

    A layer whose channels cannot be followed is left whole, and its note says why.

    Raises:
        ModelError: no layer has channels to remove.
    """
    channels = Channels(graph)
    layers = _layers(graph)
    notes = {node.name: "as it was: the last layer" if last else channels.prune(node, share) for node, _, last in layers}
    if not any(" of " in note and not note.startswith("left whole") for note in notes.values()):
        raise ModelError(f"{path} has no channels to remove: " + "; ".join(f"{name}: {note}" for name, note in notes.items()))
    channels.finish()
    return [Layer(node.name, node.op_type, prod(tensor.dims), None, None, notes[node.name]) for node, tensor, _ in layers]


def _layers(graph: Any) -> list[tuple[Any, Any, bool]]:
    """Return the layers of a graph, each with its tensor of weights, and True if no further layer depends on it."""
    ends, known = {node.name for node in graphs.last_layers(graph)}, graphs.constants_of(graph)
    return [(node, graphs.weight_of(node, known), node.name in ends) for node in graphs.layers_of(graph)]


def _lost_zeros(model_path: Path, sparsity: float) -> list[str]:
    """Read the fine-tuned model; return a note if its share of zeros is over 1 % of the weights below `sparsity`, else []."""
    graph = graphs.read_graph(model_path)
    graphs.name_nodes(graph)
    arrays = [graphs.package().numpy_helper.to_array(tensor) for _, tensor, last in _layers(graph) if not last]
    total = sum(array.size for array in arrays)
    share = sum(int((array == 0).sum()) for array in arrays) / total if total else 0.0
    if share >= sparsity - SMALL:
        return []
    return [f"after fine-tuning {100 * share:.1f} % of the weights are zero, not {100 * sparsity:.1f} %: training changed them"]


def _step(sparsity: float, *, structured: bool, tuned: bool) -> str:
    """Return the description of this step for the card."""
    part = "of the channels" if structured else "of the weights of each layer"
    return f"{100 * sparsity:g} % {part} pruned, by edgeroute prune" + (", fine-tuned" if tuned else "")
