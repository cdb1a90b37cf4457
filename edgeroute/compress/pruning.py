"""Prunes a model: weights that matter least become zero, or channels that do go, measured before and after."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from edgeroute.compress.channels import Channels
from edgeroute.compress.graph import last_layers, layers_of, name_nodes, package, read_graph, weight_of
from edgeroute.compress.measure import Examples, answers, compared, labels_of, split
from edgeroute.compress.result import Layer, Result
from edgeroute.compress.writing import put, target, workplace, write_card
from edgeroute.edge.external import external_data
from edgeroute.edge.model_file import first_line
from edgeroute.edge.onnx import OnnxModel
from edgeroute.errors import ModelError, PolicyError, check_number

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
