from __future__ import annotations

from enum import Enum
from typing import Annotated

import typer

from edgeroute.cli.compressing import Data, Force, Model, Out, examples, show
from edgeroute.cli.exits import OK
from edgeroute.cli.options import Json


class Activations(str, Enum):
    """Of an int8 model."""

    uint8 = "uint8"
    int8 = "int8"


def quantize(
    model: Model,
    *,
    data: Data,
    out: Out = None,
    fp16: Annotated[bool, typer.Option("--fp16", help="float16 in place of int8: for GPUs and NPUs.")] = False,
    keep_float: Annotated[int, typer.Option(min=0, metavar="N", help="So many layers stay float: the most sensitive ones.")] = 0,
    layers: Annotated[bool, typer.Option(help="Try each layer by itself, and show how sensitive it is.")] = True,
    last: Annotated[
        bool, typer.Option("--last", help="Quantise the last layer too. Its logits are then some of 256, and confidences tie.")
    ] = False,
    activations: Annotated[
        Activations, typer.Option(help="uint8 is the fastest on x86; int8, symmetric, is what TensorRT takes, and good on ARM.")
    ] = Activations.uint8,
    reduce_range: Annotated[
        bool, typer.Option("--reduce-range", help="Weights of 7 bits: for x86 CPUs without VNNI, where uint8 sums overflow.")
    ] = False,
    calibrate: Annotated[
        int, typer.Option(min=1, metavar="N", help="Examples by which ranges are found; half of the data at most.")
    ] = 500,
    force: Force = False,
    as_json: Json = False,
) -> int:
    """Quantises a model to static int8, or to float16, and measures what that changes.

    A part of the data finds the ranges of the layers; the rest, which is not used for that, compares the model with the
    original: size, speed, accuracy, and how often their answers are the same.
    """
    from edgeroute import compress

    inputs, labels = examples(model, data)
    result = compress.quantize(
        model, inputs, labels, out=out, fp16=fp16, keep_float=keep_float, sensitivity=layers, last=last,
        activations=activations.value, reduce_range=reduce_range, calibration=calibrate, overwrite=force,
    )  # fmt: skip
    show(result, as_json=as_json)
    return OK
