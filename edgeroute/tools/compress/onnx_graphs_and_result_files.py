"""ONNX graphs for quantisation and pruning: reading, preparing in place, finding layers; writing the result with its card."""

from __future__ import annotations

import glob
import json
import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from edgeroute.catalog.model_folder_and_downloads import replace_durably
from edgeroute.edge.model_card import Card, sha256_of
from edgeroute.edge.onnx import external_data
from edgeroute.errors import ModelError, ModelMissing, PolicyError, StoreError
from edgeroute.stores.json_lines_and_process_locks import ProcessLock
from edgeroute.system.late_imports_and_plugins import import_late, import_needed
from edgeroute.system.untrusted_files import read_bytes, read_json

LAYERS = ("Conv", "ConvTranspose", "Gemm", "MatMul")  # operators with weights, which are quantised
PER_CHANNEL = 13  # the first opset whose quantisation has an axis
QUANTISED = {"QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "QLinearConv", "QLinearMatMul", "ConvInteger",
             "MatMulInteger"}  # fmt: skip
LOCK = "edgeroute.lock"  # file in a workplace that its process has locked
SHOWN = 6  # maximum number of operators named in a message


def package() -> Any:
    """Import and return the package onnx, with its version converter.

    Raises:
        RuntimeMissing: it is not installed.
    """
    import_needed("onnx.version_converter", "changing a model needs the package onnx: pip install 'edgeroute[quantize]'")
    return import_late("onnx")


def read_graph(path: Path) -> Any:
    """Read a float ONNX model with its weights, also from files beside it; weights that are listed as inputs become constants.

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
    if operators := sorted({node.op_type for node in model.graph.node} & QUANTISED):
        raise ModelError(f"{path} is quantised already, it has {', '.join(operators)}: pass the float model it was made from")
    _make_weights_constant(model)
    return model


def _make_weights_constant(model: Any) -> None:
    """Remove weights from the model's inputs, in place, where older exporters list them and a caller could replace them.

    If there are such, the model's IR version becomes 4 at least, which allows that.
    """
    weights = {tensor.name for tensor in model.graph.initializer}
    if overridable := [value for value in model.graph.input if value.name in weights]:
        for value in overridable:
            model.graph.input.remove(value)
        model.ir_version = max(model.ir_version, 4)  # which allows that


def at_opset(model: Any, path: Path) -> Any:
    """Return the model itself, or a converted copy if its opset (version of ONNX's operators) is lower than `PER_CHANNEL`.

    Raises:
        ModelError: it cannot be converted.
    """
    version = next((entry.version for entry in model.opset_import if entry.domain in {"", "ai.onnx"}), PER_CHANNEL)
    if version >= PER_CHANNEL:
        return model
    try:
        return package().version_converter.convert_version(model, PER_CHANNEL)
    except Exception as e:  # onnx's errors derive from Exception alone
        raise ModelError(f"{path} has opset {version}, and quantising per channel needs {PER_CHANNEL}: export it so") from e


def save(model: Any, path: Path, *, large: bool) -> None:
    """Save a model, replacing it and its data file; with `large` its weights go into that, NAME.data."""
    (data := path.with_name(f"{path.name}.data")).unlink(missing_ok=True)
    package().save(model, str(path), save_as_external_data=large, location=data.name if large else None)


def name_nodes(model: Any) -> None:
    """Name each node in place that has no name, or the same name as another."""
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
    """Change in place the biases [1, n] of Gemm, as in scikit-learn's models, to [n], which the quantiser needs.

    The sum is the same.
    """
    others = {name for node in model.graph.node for i, name in enumerate(node.input) if (node.op_type, i) != ("Gemm", 2)}
    biases = {node.input[2] for node in model.graph.node if node.op_type == "Gemm" and len(node.input) > 2} - others  # noqa: PLR2004
    for name, tensor in constants_of(model).items():
        if name in biases and len(tensor.dims) == 2 and tensor.dims[0] == 1:  # noqa: PLR2004 - rows and columns
            del tensor.dims[0]


def constants_of(model: Any) -> dict[str, Any]:
    """Return the initializers that no caller can override, name -> tensor."""
    inputs = {value.name for value in model.graph.input}
    return {tensor.name: tensor for tensor in model.graph.initializer if tensor.name not in inputs}


def layers_of(model: Any) -> list[Any]:
    """Return the nodes of kinds that are quantised (`LAYERS`) with constant weights, in order of execution."""
    weights = constants_of(model)
    return [node for node in model.graph.node if node.op_type in LAYERS and any(name in weights for name in node.input[:2])]


def weight_of(node: Any, known: dict[str, Any]) -> Any:
    """Return the weight tensor of a layer."""
    return known[node.input[1] if node.input[1] in known else node.input[0]]


def nodes_after(model: Any, nodes: Iterable[Any]) -> list[Any]:
    """Return the nodes that depend on the outputs of these nodes, directly or not."""
    reached = {name for node in nodes for name in node.output}
    dependent = []
    for node in model.graph.node:  # which are in the order of their execution
        if reached & {*node.input}:
            dependent.append(node)
            reached |= {*node.output}
    return dependent


def last_layers(model: Any) -> list[Any]:
    """Return the layers that no further layer depends on. Nodes must have unique names."""
    all_layers = layers_of(model)
    names = {node.name for node in all_layers}
    return [node for node in all_layers if not any(later.name in names for later in nodes_after(model, [node]))]


def operators_of(model: Any) -> str:
    """Return the names of the model's operators as text for a message, shortened."""
    operators = sorted({node.op_type for node in model.graph.node})
    return ", ".join(operators[:SHOWN]) + (", ..." if len(operators) > SHOWN else "")


# Writes a new model and its card together: both, or nothing.


def target(path: Path, out: Path | None, word: str, *, overwrite: bool) -> Path:
    """Return the path for the new model: `out`, or beside the original with `word` in its name. Writes nothing.

    Its card and, with large weights, its data file count as well.

    Raises:
        PolicyError: a path is the original or would replace its weights, has another suffix, exists already, or has no folder.
    """
    path_out = out or path.with_name(f"{path.stem}.{word}{path.suffix}")
    if path_out.suffix.lower() != path.suffix.lower():
        raise PolicyError(f"{path_out}: a model made of {path.name} must end in {path.suffix}, too")
    if path_out.resolve() == path.resolve() or path_out.with_suffix(".json").resolve() == path.with_suffix(".json").resolve():
        raise PolicyError(f"{path_out} is the original: choose another name with --out")
    weights = external_data(path)
    written = [path_out, path_out.with_suffix(".json"), *([path_out.with_name(f"{path_out.name}.data")] if weights else [])]
    if taken := {file.resolve() for file in weights} & {file.resolve() for file in written}:
        raise PolicyError(f"{path_out} would replace {min(taken).name}, with weights of the original: choose another --out")
    check_new(*written, overwrite=overwrite)
    return path_out


def check_new(out: Path, *others: Path, overwrite: bool) -> None:
    """Raise PolicyError if the folder of `out` does not exist, or, unless `overwrite`, one of these files does."""
    for file in (out, *others):
        if file.exists() and not overwrite:
            raise PolicyError(f"{file} exists already: choose another name for the new file, or use --force")
    if not out.parent.is_dir():
        raise PolicyError(f"{out}: there is no folder {out.parent}")


@contextmanager
def workplace(out: Path) -> Iterator[tuple[Path, Path]]:
    """Provide a temporary folder beside the result, and in it the path for the new model, in a folder of its own.

    All is deleted at the end of the `with` block, and so is, at its begin, what a killed process has left there. `put` moves the
    model out before.

    Raises:
        StoreError: the disk is full, or may not be written to.
    """
    try:
        for lock_file in out.parent.glob(f".{glob.escape(out.stem)}.*/{LOCK}"):
            if (lock := ProcessLock(lock_file)).take():  # its process has ended
                lock.leave()
                shutil.rmtree(lock_file.parent, ignore_errors=True)
        with tempfile.TemporaryDirectory(prefix=f".{out.stem}.", dir=out.parent) as folder:
            lock, new = ProcessLock(Path(folder) / LOCK), Path(folder) / "made" / out.name
            lock.take()
            new.parent.mkdir()
            try:
                yield Path(folder), new
            finally:
                lock.leave()
    except OSError as e:
        if isinstance(e, StoreError) or e.errno is None:
            raise
        raise StoreError(f"{out} cannot be written: {e.strerror}") from e


def write_card(model_path: Path, original: Card, step: str) -> Path:
    """Write the card of a new model beside it: the original's, with new file, size, sha256 and the step added. Return its path.

    Without an original card it has only these.
    """
    data: dict[str, Any] = {}
    if original.path is not None:
        data = read_json(original.path)
    steps = data.get("steps")
    data |= {"file": model_path.name, "sha256": sha256_of(model_path)} | (
        {"bytes": model_path.stat().st_size} if "bytes" in data else {}
    )
    data["steps"] = [*(steps if isinstance(steps, list) else [] if steps is None else [steps]), {"step": step}]
    path = model_path.with_suffix(".json")
    path.write_text(json.dumps(data, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return path


def put(folder: Path, out: Path) -> None:
    """Move all files from `folder` beside `out`, replacing existing ones: the card, weights, then the model.

    Until it is there, the sha256 of the new card refuses the old model, which would else be run with new weights. If the file
    after the card cannot be replaced, the old card comes back, or the new one goes.
    """
    card, order = out.with_suffix(".json"), {out.with_suffix(".json").name: 0, out.name: 2}
    before = read_bytes(card) if card.exists() else None
    moved: list[str] = []
    try:
        for file in sorted(folder.iterdir(), key=lambda file: order.get(file.name, 1)):
            os.replace(file, out.parent / file.name)  # noqa: PTH105 - Path.replace is the same
            moved.append(file.name)
    except OSError:
        if moved == [card.name]:
            card.unlink()
            if before is not None:
                replace_durably(card, before)
        raise
