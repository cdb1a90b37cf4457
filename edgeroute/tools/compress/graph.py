"""ONNX graphs: read, checked, and looked through for layers."""

from __future__ import annotations

import json
import os
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from edgeroute.edge.card import Card, sha256_of
from edgeroute.edge.onnx import external_data
from edgeroute.errors import ModelError, ModelMissing, PolicyError, RuntimeMissing, StoreError
from edgeroute.system.imports import import_late

LAYERS = ("Conv", "ConvTranspose", "Gemm", "MatMul")
"""Operators that have weights, and that are quantised."""
PER_CHANNEL = 13
"""The first opset whose quantisation has an axis."""
QUANTISED = {"QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "QLinearConv", "QLinearMatMul", "ConvInteger",
             "MatMulInteger"}  # fmt: skip
SHOWN = 6
"""Maximum number of operators named in a message."""


def package() -> Any:
    """The package onnx.

    Raises:
        RuntimeMissing: it is not installed.
    """
    try:
        import_late("onnx.version_converter")
        return import_late("onnx")
    except ImportError as e:
        raise RuntimeMissing("changing a model needs the package onnx: pip install 'edgeroute[quantize]'") from e


def read_graph(path: Path) -> Any:
    """The model, with its external data.

    Raises:
        ModelMissing: there is no such file.
        ModelError: it is no ONNX model, or is quantised already.
        RuntimeMissing: the package onnx is not installed.
    """
    onnx = package()
    if not path.is_file():
        raise ModelMissing(f"there is no model at {path}")
    try:
        model = onnx.load(str(path))
    except Exception as e:  # protobuf's errors, and onnx's, derive from Exception alone
        raise ModelError(f"{path} is not an ONNX model: {type(e).__name__}") from e
    if not model.graph.node:
        raise ModelError(f"{path} is not an ONNX model: it has no graph")
    if found := sorted({node.op_type for node in model.graph.node} & QUANTISED):
        raise ModelError(f"{path} is quantised already, it has {', '.join(found)}: give the float model that it was made from")
    _as_constants(model)
    return model


def _as_constants(model: Any) -> None:
    """Weights that older exporters list among the inputs, where a caller could replace them, are constants."""
    weights = {tensor.name for tensor in model.graph.initializer}
    if listed := [one for one in model.graph.input if one.name in weights]:
        for one in listed:
            model.graph.input.remove(one)
        model.ir_version = max(model.ir_version, 4)  # which allows that


def at_opset(model: Any, least: int, path: Path) -> Any:
    """The model, converted if its opset is lower.

    Raises:
        ModelError: it cannot be converted.
    """
    version = next((one.version for one in model.opset_import if one.domain in {"", "ai.onnx"}), least)
    if version >= least:
        return model
    try:
        return package().version_converter.convert_version(model, least)
    except Exception as e:  # onnx's errors derive from Exception alone
        raise ModelError(
            f"{path} is of opset {version}, and quantising per channel takes {least}; it cannot be converted: export it anew with"
            f" opset {least} or higher"
        ) from e


def name_nodes(model: Any) -> None:
    """Gives a name to each node that has none, or that of another."""
    seen = Counter(node.name for node in model.graph.node)
    taken = set(seen)
    for i, node in enumerate(model.graph.node):
        if not node.name or seen[node.name] > 1:
            name = f"{node.op_type}_{i}"
            while name in taken:
                name += "_"
            node.name = name
            taken.add(name)


def flatten_biases(model: Any) -> None:
    """Biases [1, n] of Gemm, as scikit-learn's models have them, become [n], as the quantiser takes them: the sum is the same."""
    others = {name for node in model.graph.node for i, name in enumerate(node.input) if (node.op_type, i) != ("Gemm", 2)}
    biases = {node.input[2] for node in model.graph.node if node.op_type == "Gemm" and len(node.input) > 2} - others  # noqa: PLR2004
    for name, tensor in constants_of(model).items():
        if name in biases and len(tensor.dims) == 2 and tensor.dims[0] == 1:  # noqa: PLR2004 - rows and columns
            del tensor.dims[0]


def constants_of(model: Any) -> dict[str, Any]:
    """Name -> tensor, of the initializers that no caller can override."""
    inputs = {one.name for one in model.graph.input}
    return {tensor.name: tensor for tensor in model.graph.initializer if tensor.name not in inputs}


def layers_of(model: Any) -> list[Any]:
    """The nodes that have weights, in their order."""
    weights = constants_of(model)
    return [node for node in model.graph.node if node.op_type in LAYERS and any(name in weights for name in node.input[:2])]


def weight_of(node: Any, known: dict[str, Any]) -> Any:
    """The tensor of a layer's weights."""
    return known[node.input[1] if node.input[1] in known else node.input[0]]


def nodes_after(model: Any, nodes: Iterable[Any]) -> list[Any]:
    """The nodes that depend on the outputs of these."""
    reached = {name for node in nodes for name in node.output}
    found = []
    for node in model.graph.node:  # which are in the order of their execution
        if reached & {*node.input}:
            found.append(node)
            reached |= {*node.output}
    return found


def last_layers(model: Any) -> list[Any]:
    """The layers after which there is none; nodes have names."""
    all_layers = layers_of(model)
    names = {node.name for node in all_layers}
    return [node for node in all_layers if not any(one.name in names for one in nodes_after(model, [node]))]


def operators_of(model: Any) -> str:
    """Its operators, in a message."""
    found = sorted({node.op_type for node in model.graph.node})
    return ", ".join(found[:SHOWN]) + (", ..." if len(found) > SHOWN else "")


# Writes a made model and its card in one go: both, or nothing.


def target(path: Path, out: Path | None, word: str, *, overwrite: bool) -> Path:
    """Where the made model goes: beside the original, with a word in its name, unless it is said.

    Raises:
        PolicyError: it is the original or would replace its weights, has another suffix, or is there already.
    """
    found = out or path.with_name(f"{path.stem}.{word}{path.suffix}")
    if found.suffix.lower() != path.suffix.lower():
        raise PolicyError(f"{found}: the model that is made of {path.name} ends in {path.suffix}, too")
    if found.resolve() == path.resolve() or found.with_suffix(".json").resolve() == path.with_suffix(".json").resolve():
        raise PolicyError(f"{found} is the original: give another name by --out")
    weights = external_data(path)
    written = [found, found.with_suffix(".json"), *([found.with_name(f"{found.name}.data")] if weights else [])]
    if taken := {one.resolve() for one in weights} & {one.resolve() for one in written}:
        raise PolicyError(
            f"{found} would replace {min(taken).name}, which has weights of the original: give another name by --out"
        )
    for one in written:
        if one.exists() and not overwrite:
            raise PolicyError(f"{one} is there already: give another name by --out, or --force")
    if not found.parent.is_dir():
        raise PolicyError(f"{found}: there is no folder {found.parent}")
    return found


@contextmanager
def workplace(out: Path) -> Iterator[Path]:
    """A folder on the disk of the result, which goes with all that was not put in place.

    Raises:
        StoreError: the disk is full, or may not be written to.
    """
    try:
        with tempfile.TemporaryDirectory(prefix=f".{out.stem}.", dir=out.parent) as folder:
            yield Path(folder)
    except OSError as e:
        if isinstance(e, StoreError) or e.errno is None:
            raise
        raise StoreError(e.errno, f"{out} cannot be written: {e.strerror}") from e


def write_card(made: Path, original: Card, step: str) -> Path:
    """The original's card for the made model, beside it: with its file, size and sha256, and what was done."""
    data: dict[str, Any] = {}
    if original.path is not None:
        data = json.loads(original.path.read_text(encoding="utf-8"))
    steps = data.get("steps")
    data |= {"file": made.name, "sha256": sha256_of(made)} | ({"bytes": made.stat().st_size} if "bytes" in data else {})
    data["steps"] = [*(steps if isinstance(steps, list) else [] if steps is None else [steps]), {"step": step}]
    path = made.with_suffix(".json")
    path.write_text(json.dumps(data, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return path


def put(folder: Path, out: Path) -> None:
    """Moves all from the workplace beside `out`; the model comes after its weights and before its card, which has its sha256."""
    order = {out.name: 1, out.with_suffix(".json").name: 2}
    for file in sorted(folder.iterdir(), key=lambda file: order.get(file.name, 0)):
        os.replace(file, out.parent / file.name)  # noqa: PTH105 - Path.replace is the same
