"""Writes the edge model as a Core ML package, from the weights in its .onnx file. Runs on any system, and takes seconds.

    python models/recipes/coreml.py [--out models/fashion]

Weights are the same integers of 8 bit as in the .onnx file, with a scale per channel; Core ML unpacks them when it loads the package.
Activations are float16, in which the Neural Engine computes: rounding them to 8 bit as well needs macOS 14, and pays on its newest
versions alone. Where such a rounding also clips at 0, as a ReLU that was fused with it, it becomes the ReLU again.

The package is the same to the byte each time it is written with the same coremltools. Needs `coremltools` and `onnx`.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
import uuid
from pathlib import Path
from typing import Any

import coremltools as ct
import numpy as np
import onnx
from coremltools.converters.mil import Builder as mb  # noqa: N813 - as coremltools calls it
from onnx import numpy_helper

from edgeroute.edge.model_card import sha256_of

FASHION = Path(__file__).resolve().parent.parent / "fashion"
TARGET = ct.target.iOS16
"""And macOS 13: the first that unpack weights of 8 bit in a program."""
DESCRIPTION = "Clothing in 28x28 grey pixels, distilled, pruned, weights in int8, activations in float16: for Core ML"
SPEC, WEIGHTS = "com.apple.CoreML/model.mlmodel", "com.apple.CoreML/weights"


# ----------------------------------------------------------------------------------------- ONNX's nodes
def quantize(x: Any, _: np.ndarray, zero: np.ndarray) -> Any:
    """Of activations: left out, but for a ReLU that it is."""
    clips = not isinstance(x, np.ndarray) and x.op is not None and x.op.op_type == "conv" and zero == np.iinfo(zero.dtype).min
    return mb.relu(x=x) if clips else x


def dequantize(x: Any, scale: np.ndarray, zero: np.ndarray, *, axis: int = 1, **_: Any) -> Any:
    """Of weights: Core ML's own; of biases: done here; of activations: left out, as `quantize`."""
    if not isinstance(x, np.ndarray):
        return x
    if x.dtype == np.int8:
        return mb.constexpr_affine_dequantize(quantized_data=x, zero_point=zero.astype(np.int8), scale=scale, axis=axis)
    return (x - zero).astype(np.float32) * scale


def conv(x: Any, weight: Any, bias: Any, *, pads: list[int], strides: list[int], **_: Any) -> Any:
    top, left, bottom, right = pads
    return mb.conv(x=x, weight=weight, bias=bias, strides=strides, pad_type="custom", pad=[top, bottom, left, right])


def gemm(x: Any, weight: np.ndarray, bias: np.ndarray, **transposed: Any) -> Any:
    return mb.linear(x=x, weight=weight if transposed.get("transB") else weight.T.copy(), bias=bias)


FUNCTIONS = {
    "Reshape": lambda x, shape: mb.reshape(x=x, shape=[size if size > 0 else 1 for size in shape]),  # one image
    "Cast": lambda x, **_: x,  # Core ML takes floats as they are
    "Mul": lambda x, y: mb.mul(x=x, y=y),
    "Add": lambda x, y: mb.add(x=x, y=y),
    "QuantizeLinear": quantize,
    "DequantizeLinear": dequantize,
    "Conv": conv,
    "GlobalAveragePool": lambda x: mb.reduce_mean(x=x, axes=[2, 3], keep_dims=True),
    "Flatten": lambda x, **_: mb.squeeze(x=x, axes=[2, 3]),
    "Gemm": gemm,
}
"""Node of the .onnx file -> its operations; the card's network has no others."""


def program(model: onnx.ModelProto) -> Any:
    """The graph as a program for Core ML: image, float32 [1, 28, 28] with the pixels' values -> logits [1, 10]."""
    constants = {one.name: numpy_helper.to_array(one) for one in model.graph.initializer}

    @mb.program(input_specs=[mb.TensorSpec(shape=(1, 28, 28))], opset_version=TARGET)
    def made(image: Any) -> Any:
        tensors = {**constants, "image": image}
        for node in model.graph.node:
            attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
            tensors[node.output[0]] = FUNCTIONS[node.op_type](*(tensors[name] for name in node.input), **attributes)
        return mb.identity(x=tensors["logits"], name="logits")

    return made


# -------------------------------------------------------------------------------------------- the package
def write(model: onnx.ModelProto, path: Path) -> None:
    """Converts and writes it, without dates and random numbers."""
    made = ct.convert(
        program(model), convert_to="mlprogram", minimum_deployment_target=TARGET, compute_precision=ct.precision.FLOAT16,
        skip_model_load=True,
    )  # fmt: skip
    spec = made.get_spec()
    about = spec.description.metadata
    about.Clear()
    about.shortDescription, about.author, about.license = DESCRIPTION, "edgeroute", "Apache-2.0"
    del spec.mlProgram.attributes["buildInfo"]
    with tempfile.TemporaryDirectory() as scratch:
        made.save(str(Path(scratch, "made.mlpackage")))
        shutil.rmtree(path, ignore_errors=True)
        shutil.copytree(Path(scratch, "made.mlpackage"), path, copy_function=shutil.copyfile)
    (path / "Data" / SPEC).write_bytes(spec.SerializeToString(deterministic=True))
    keys = [str(uuid.uuid5(uuid.NAMESPACE_URL, at)) for at in (SPEC, WEIGHTS)]
    entries = {
        key: {"author": "com.apple.CoreML", "description": f"CoreML Model {what}", "name": Path(at).name, "path": at}
        for key, what, at in zip(keys, ("Specification", "Weights"), (SPEC, WEIGHTS), strict=True)
    }
    manifest = {"fileFormatVersion": "1.0.0", "itemInfoEntries": entries, "rootModelIdentifier": keys[0]}
    text = json.dumps(manifest, indent=4, sort_keys=True)  # as coremltools writes it, each time that it opens a package
    (path / "Manifest.json").write_text(text, encoding="utf-8")


def write_card(source: Path, path: Path) -> None:
    """The card of the .onnx file, where the caller gives pixels all the same."""
    card = json.loads(source.read_text(encoding="utf-8"))
    given = card["input"]
    card |= {
        "description": DESCRIPTION,
        "file": path.name,
        "sha256": sha256_of(path),
        "bytes": sum(file.stat().st_size for file in path.rglob("*") if file.is_file()),
        "input": {**given, "dtype": "float32", "shape": [1, *given["shape"][1:]]},
        "output": {**card["output"], "shape": [1, *card["output"]["shape"][1:]]},
        "preprocess": {"dtype": given["dtype"], "shape": given["shape"][1:]},
        "rebuild": "python models/recipes/coreml.py",
    }
    del card["steps"]
    path.with_name(f"{path.name}.json").write_text(json.dumps(card, indent=2) + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=FASHION)
    out = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    write(onnx.load(FASHION / "edge.int8.onnx"), out / "edge.mlpackage")
    write_card(FASHION / "edge.int8.json", out / "edge.mlpackage")
    print(out / "edge.mlpackage")


if __name__ == "__main__":
    main()
