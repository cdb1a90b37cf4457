"""Quantises a model: static int8 or float16, measured before and after."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from edgeroute.compress.measure import Examples, answers, compared, labels_of, split
from edgeroute.compress.onnx_int8 import Int8
from edgeroute.compress.others import quantize_other
from edgeroute.compress.result import Layer, Result
from edgeroute.compress.writing import put, target, workplace, write_card
from edgeroute.edge.onnx import OnnxModel
from edgeroute.errors import ModelError, PolicyError, check_number

CALIBRATION = 500
"""Examples by which ranges are found, at most; half of the data if that is less."""
TRIED = 64
"""Of them, those by which the sensitivity of layers is found."""


def quantize(
    path: str | Path,
    inputs: Sequence[Any],
    labels: Sequence[Any] | None = None,
    *,
    out: str | Path | None = None,
    fp16: bool = False,
    keep_float: int = 0,
    sensitivity: bool = True,
    last: bool = False,
    activations: Literal["uint8", "int8"] = "uint8",
    reduce_range: bool = False,
    calibration: int = CALIBRATION,
    overwrite: bool = False,
) -> Result:
    """Quantises a float model, and writes the result with its card.

    int8 is static, per channel, with QDQ nodes, as ONNX Runtime, OpenVINO, TensorRT and QNN take it. The last layer stays float:
    quantised logits would tie confidences. The sensitivity of each layer is the error at the model's outputs while it alone is
    quantised (Wu et al. 2020, arXiv:2004.09602, section 6).

    Args:
        path: the model, .onnx; .tflite and .mlpackage where their tools are installed. Its card is taken along.
        inputs: as callers give them to the model, before the card's preprocessing.
        labels: what is right for each: names, or numbers of classes.
        out: the new file; None: beside the model, as NAME.int8.onnx or NAME.fp16.onnx.
        fp16: float16 in place of int8; inputs and outputs stay as they are.
        keep_float: so many layers stay float, the most sensitive ones.
        sensitivity: try each layer by itself; without it there is no `keep_float`.
        last: quantise the last layer too.
        activations: "uint8" is by far the fastest on x86; "int8", symmetric, is what TensorRT takes, and good on ARM.
        reduce_range: weights have 7 bits, for x86 CPUs without VNNI, whose sums of uint8 and int8 saturate.
        calibration: number of examples by which ranges are found; half of the data at most, the rest measures the result.
        overwrite: replace files that are there.

    Raises:
        ModelMissing, ModelError: the model cannot be read, run or quantised.
        RuntimeMissing: a package is not installed; the message says which.
        BadInput: the inputs do not fit the model, or are too few.
        PolicyError: the arguments contradict each other, or the file is there already.
        StoreError: the disk is full, or may not be written to.
    """
    path, word = Path(path), "fp16" if fp16 else "int8"
    check_number("keep_float", keep_float, whole=True)
    check_number("calibration", calibration, least=1, whole=True)
    if activations not in {"uint8", "int8"}:
        raise PolicyError(f'activations= is "uint8" or "int8", not {activations!r}')
    if keep_float and (fp16 or not sensitivity):
        raise PolicyError("keep_float= is about layers of an int8 model, and needs their sensitivity")
    to = target(path, None if out is None else Path(out), word, overwrite=overwrite)
    used, held_out = split(Examples([*inputs], None if labels is None else [*labels]), calibration)
    if path.suffix.lower() != ".onnx":
        return quantize_other(path, to, used, held_out, fp16=fp16, keep_float=keep_float)
    model = OnnxModel(path)
    if model.card.state:
        raise ModelError(f"{path} keeps a state between its inputs, and examples are single inputs: it is not quantised here")
    model.load()
    original = answers(model, held_out.inputs)
    notes = original.check(held_out.labels, labels_of(model))
    layers: tuple[Layer, ...] = ()
    with workplace(to) as folder:
        made = folder / "made" / to.name
        made.parent.mkdir()
        if fp16:
            from edgeroute.compress.onnx_fp16 import convert

            convert(path, made)
        else:
            int8 = Int8(path, [model.feed([x]) for x in used.inputs], folder, last=last, activations=activations,
                        reduce_range=reduce_range)  # fmt: skip
            notes += int8.notes
            if sensitivity:
                layers = _sensitivity(int8, model, used.part(range(min(TRIED, len(used.inputs)))))
            kept = _kept(layers, keep_float)
            int8.write(made, exclude=kept)
            layers = tuple(layer._replace(note="stays float") if layer.name in kept else layer for layer in layers)
        write_card(made, model.card, _step(word, len(used.inputs), keep_float))
        before, after = compared(model, made, original, held_out)
        put(made.parent, to)
    after, card, count = after._replace(path=to), to.with_suffix(".json"), 0 if fp16 else len(used.inputs)
    return Result(before, after, layers, card, count, len(held_out.inputs), tuple(notes))


def _sensitivity(int8: Int8, model: OnnxModel, tried: Examples) -> tuple[Layer, ...]:
    """Each layer with the error of the model's outputs while it alone is quantised, the worst first."""
    original, found = answers(model, tried.inputs), []
    for node, weights in int8.layers():
        path = int8.alone(node)
        write_card(path, model.card, "")
        its = answers(OnnxModel(path), tried.inputs)
        agreement = its.agreement(original)
        changed = None if agreement is None else 1 - agreement
        found.append(Layer(node.name, node.op_type, weights, its.error(original), changed, "int8"))
    found.sort(key=lambda layer: (-(layer.error or 0), layer.name))
    return tuple(found)


def _kept(layers: Sequence[Layer], count: int) -> list[str]:
    if count > len(layers):
        raise PolicyError(f"keep_float={count}: the model has {len(layers)} layers that are quantised")
    return [layer.name for layer in layers[:count]]


def _step(word: str, used: int, kept: int) -> str:
    if word == "fp16":
        return "float16, by edgeroute quantize"
    return f"static int8, by edgeroute quantize on {used} examples" + (f", {kept} layers kept float" if kept else "")
