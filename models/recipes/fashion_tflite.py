"""Writes the int8 fashion model as .tflite, from the weights and scales of the .onnx one: `python models/recipes/fashion_tflite.py`.

The graph of `edge.int8.onnx` is one chain, so each of its quantised nodes becomes one operator of TFLite, with the same integers:
convolutions with a scale for each channel, the mean over the picture, and the last layer in float, as there. Nothing is trained or
calibrated again. Needs `onnx` and `ai-edge-litert`, and takes a second.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
from onnx import numpy_helper

HERE = Path(__file__).resolve().parent
sys.path.append(str(HERE.parents[1] / "tests"))
from tflite_models import Graph  # noqa: E402 - the writer of the tests' models


class Quantised(NamedTuple):
    """A tensor of integers: a number is (element - zero) * scale."""

    array: np.ndarray
    scale: np.ndarray
    zero: np.ndarray


class Source:
    """The .onnx model, read by its tensors' names."""

    def __init__(self, path: Path) -> None:
        self.graph = onnx.load(path).graph
        self.constants = {one.name: numpy_helper.to_array(one) for one in self.graph.initializer}
        self.makers = {name: node for node in self.graph.node for name in node.output}
        self.users = {name: node for node in self.graph.node for name in node.input}

    def constant(self, name: str) -> Quantised:
        """What a DequantizeLinear of constants has."""
        return Quantised(*(self.constants[one] for one in self.makers[name].input))

    def scales(self, name: str) -> dict[str, Any]:
        """Scale and zero point to which the output of a node is quantised."""
        node = self.users[name]
        if node.op_type != "QuantizeLinear":
            raise SystemExit(f"{name} goes to a {node.op_type}, and is not quantised")
        return {"scale": self.constants[node.input[1]], "zero": int(self.constants[node.input[2]])}


def convert(source: Path) -> Graph:
    """The same network as a graph of TFLite, NHWC."""
    onnx_model, g = Source(source), Graph()
    folded = onnx_model.graph.node[:5]
    if [node.op_type for node in folded] != ["Reshape", "Cast", "Mul", "Add", "QuantizeLinear"]:
        raise SystemExit(f"{source} does not begin with pixels")
    factor, offset = (float(onnx_model.constants[folded[i].input[1]]) for i in (2, 3))
    first = onnx_model.scales(folded[3].output[0])
    pixels = round(-offset / factor)  # the pixel that is nearest to 0
    if not np.isclose(factor, first["scale"]) or abs(pixels + offset / factor) > 0.1 or first["zero"] - pixels != -128:
        raise SystemExit("the pixels' scale is not the first layer's: they would be rounded twice")

    image = g.tensor("image", [-1, 28, 28], "uint8", scale=first["scale"], zero=pixels)
    shape = g.constant("shape", [-1, 28, 28, 1], "int32")
    planes = g.tensor("planes", [-1, 28, 28, 1], "uint8", scale=first["scale"], zero=pixels)
    g.operator("RESHAPE", [image, shape], [planes], options="ReshapeOptions", newShape=[-1, 28, 28, 1])
    at = g.tensor("elements", [-1, 28, 28, 1], "int8", **first)
    g.operator("QUANTIZE", [planes], [at], options="QuantizeOptions")
    size, now, layer = 28, first, 0
    for node in onnx_model.graph.node:
        if node.op_type == "Conv":
            layer += 1
            weights, bias = (onnx_model.constant(name) for name in node.input[1:3])
            (stride,) = {*_attribute(node, "strides")}
            channels, depth = weights.array.shape[:2]
            if stride == 2:  # TFLite's own padding would be on the other side
                padded = g.tensor(f"padded{layer}", [-1, size + 2, size + 2, depth], "int8", **now)
                g.operator("PAD", [at, _pads(g)], [padded], options="PadOptions")
                at = padded
            w = g.constant(f"w{layer}", weights.array.transpose(0, 2, 3, 1), "int8", scale=weights.scale)
            b = g.constant(f"b{layer}", bias.array, "int32", scale=bias.scale)
            now, size = onnx_model.scales(node.output[0]), size // stride
            out = g.tensor(f"layer{layer}", [-1, size, size, channels], "int8", **now)
            padding = 1 if stride == 2 else 0  # VALID, SAME
            g.operator(
                "CONV_2D", [at, w, b], [out], options="Conv2DOptions", version=3, padding=padding, strideH=stride, strideW=stride
            )
            at = out
        elif node.op_type == "GlobalAveragePool":
            now = onnx_model.scales(node.output[0])
            axes = g.constant("axes", [1, 2], "int32")
            out = g.tensor("mean", [-1, channels], "int8", **now)
            g.operator("MEAN", [at, axes], [out], options="ReducerOptions", version=2, keepDims=False)
            at = out
        elif node.op_type == "Gemm":
            floats = g.tensor("floats", [-1, channels])
            g.operator("DEQUANTIZE", [at], [floats], options="DequantizeOptions", version=2)
            w, b = (g.constant(name, onnx_model.constants[one]) for name, one in zip(("w", "b"), node.input[1:], strict=True))
            logits = g.tensor("logits", [-1, 10])
            g.operator("FULLY_CONNECTED", [floats, w, b], [logits], options="FullyConnectedOptions")
    g.at.inputs, g.at.outputs = [image], [logits]
    g.signature("serving_default", {"image": image}, {"logits": logits})
    return g


def _attribute(node: onnx.NodeProto, name: str) -> list[int]:
    return next(list(one.ints) for one in node.attribute if one.name == name)


def _pads(g: Graph) -> int:
    """One row and column on each side of a picture."""
    names = [tensor.name for tensor in g.at.tensors]
    return names.index(b"pads") if b"pads" in names else g.constant("pads", [[0, 0], [1, 1], [1, 1], [0, 0]], "int32")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", type=Path, default=HERE.parent / "fashion" / "edge.int8.onnx")
    parser.add_argument("--out", type=Path, default=HERE.parent / "fashion" / "edge.int8.tflite")
    args = parser.parse_args()
    data = convert(args.source).save(args.out).read_bytes()
    card = json.loads(args.source.with_suffix(".json").read_text(encoding="utf-8"))
    card |= {"file": args.out.name, "sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
    card |= {"rebuild": "python models/recipes/fashion_tflite.py", "notes": f"the weights and scales of {args.source.name}"}
    card.pop("steps", None)  # those of the source
    args.out.with_name(f"{args.out.name}.json").write_text(json.dumps(card, indent=2) + "\n", encoding="utf-8")
    print(f"{args.out}: {len(data):,} bytes, sha256 {card['sha256']}")


if __name__ == "__main__":
    main()
