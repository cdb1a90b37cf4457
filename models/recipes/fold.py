"""Folds a card's preprocessing into the graph, so that the model takes the caller's pixels itself and nothing is done in Python.

    python models/recipes/fold.py MODEL.onnx [OUT.onnx]

Reads MODEL.json, writes OUT.onnx and OUT.json (without OUT over the old ones). The nodes compute what the card's preprocessing
does, in the same order and precision, so outputs stay the same to the bit. Resizing and cropping stay with the card.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from edgeroute.edge.model_card import Card


def fold(model: onnx.ModelProto, card: dict[str, Any]) -> tuple[onnx.ModelProto, dict[str, Any]]:
    """The model with the card's preprocessing in front, and its card without it."""
    prepare = Card(card).preprocess
    if prepare is None or prepare.fits_pictures or card["input"].get("batch", 0) != 0:
        raise SystemExit("to fold: a card of one input, batch axis first, with preprocess, and without resize and crop")
    name, dtype = prepare.gives.name, np.dtype(prepare.gives.dtype)
    folded, graph = onnx.ModelProto(), onnx.GraphProto()
    folded.CopyFrom(model)
    graph = folded.graph
    (old,) = [value for value in graph.input if value.name == name]
    batch = old.type.tensor_type.shape.dim[0]
    shape = [batch.dim_param or batch.dim_value, *(None if size == -1 else size for size in prepare.accepts.shape[1:])]
    old.CopyFrom(helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(np.dtype(prepare.accepts.dtype)), shape))

    nodes: list[onnx.NodeProto] = []
    at = name

    def add(kind: str, constant: np.ndarray | None = None, **attributes: Any) -> None:
        """One more node behind the last."""
        nonlocal at
        to, inputs = f"{name}_{len(nodes)}", [at]
        if constant is not None:
            inputs.append(f"{to}_by")
            graph.initializer.append(numpy_helper.from_array(constant, inputs[-1]))
        nodes.append(helper.make_node(kind, inputs, [to], name=to, **attributes))
        at = to

    source, target = prepare.accepts.shape[1:], prepare.gives.shape[1:]
    if prepare.axes is not None:
        there = [i + 1 for i in prepare.axes if i is not None]
        turned = [0, *there, *(i for i in range(1, len(source) + 1) if i not in there)]
        if turned != sorted(turned):
            add("Transpose", perm=turned)
    if len(source) != len(target):
        sizes = target if prepare.axes is None else [1 if i is None else source[i] for i in prepare.axes]
        if list(sizes).count(-1):
            raise SystemExit(f"to fold, the sizes of {source} have to be known")
        add("Reshape", np.array([-1, *sizes], np.int64))
    if prepare.accepts.dtype != dtype.name:
        add("Cast", to=helper.np_dtype_to_tensor_dtype(dtype))
    if prepare.factor is not None and prepare.offset is not None:
        add("Mul", prepare.factor)
        add("Add", prepare.offset)
    for node in graph.node:
        node.input[:] = [at if one == name else one for one in node.input]
    rest = list(graph.node)
    del graph.node[:]
    graph.node.extend([*nodes, *rest])
    onnx.checker.check_model(folded)
    given = {"name": name, "dtype": prepare.accepts.dtype, "shape": [-1, *source]}
    return folded, {key: given if key == "input" else value for key, value in card.items() if key != "preprocess"}


def write(model: onnx.ModelProto, card: dict[str, Any], path: Path) -> None:
    """Writes both; size and SHA-256 on the card are the new file's."""
    onnx.save(model, path)
    data = path.read_bytes()
    new = {"file": path.name, "sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
    card = {key: new.get(key, value) for key, value in card.items()}
    path.with_suffix(".json").write_text(json.dumps(card, indent=2) + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("out", type=Path, nargs="?")
    args = parser.parse_args()
    card = json.loads(args.model.with_suffix(".json").read_text(encoding="utf-8"))
    write(*fold(onnx.load(args.model), card), args.out or args.model)


if __name__ == "__main__":
    main()
