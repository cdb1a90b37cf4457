"""`edgeroute quantize` and `edgeroute prune`."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edgeroute.errors import BadInput, PolicyError
from edgeroute.tools.cli.exits import OK
from edgeroute.tools.cli.tables import Json, console, pairs, share, table

if TYPE_CHECKING:
    from edgeroute.tools.compress.measure import Measured, Result


# What `quantize` and `prune` share: the data, and the table of what they made.

SLOWER = 1.05
"""By so much it is told that a model is slower, and not only measured at another moment."""
Model = Annotated[Path, typer.Argument(metavar="MODEL", help="The model file; its card beside it is taken along.")]
Data = Annotated[
    list[Path],
    typer.Option(
        "--data", "-d", metavar="FILE", show_default=False,
        help="Inputs as callers give them, and labels: .npz (images or X, or an array for each of several inputs; labels or y), "
        ".npy, .png, .jpg, folders of them, or `-`.",
    ),
]  # fmt: skip
Out = Annotated[Path | None, typer.Option("--out", "-o", metavar="FILE", help="The new model.", show_default=False)]
Force = Annotated[bool, typer.Option("--force", help="Replace files that are there.")]


def examples(model: Path, paths: Sequence[Path]) -> tuple[list[Any], list[Any] | None]:
    """The inputs in the files, and their labels.

    Raises:
        BadInput: a file cannot be read, or some inputs have a label and others have none.
        ModelError: the model cannot be loaded.
    """
    from edgeroute.edge.members import member
    from edgeroute.edge.runtimes import load
    from edgeroute.tools.cli.inputs import files, read_inputs

    loaded = load(model)
    if (load_it := member(loaded, "load")) is not None:
        load_it()
    card = member(loaded, "card")
    given = getattr(card, "inputs", ())
    constant = {one.name for one in given if one.value is not None} | {one.input for one in getattr(card, "state", ())}
    names = [spec.name for spec in member(loaded, "inputs") if spec.name not in constant]
    notes = list[str]()
    items = [item for path in files(paths) for item in read_inputs(path, names if len(names) > 1 else (), notes.append)]
    for note in notes:
        print(note, file=sys.stderr)
    labels = [item.label for item in items]
    if labels.count(None) not in {0, len(labels)}:
        raise BadInput(f"{labels.count(None):,} of {len(labels):,} inputs have no label: give one for all of them, or for none")
    return [item.x for item in items], None if None in labels or not labels else labels


def show(result: Result, *, as_json: bool) -> None:
    """Prints what was made, and how it compares."""
    for note in result.notes:
        print(note, file=sys.stderr)
    if as_json:
        print(json.dumps(result.as_dict(), allow_nan=False))
        return
    rows = [_row(one) for one in (result.before, result.after)]
    table(("", "size", "compressed", "median", "accuracy", "same answers", "difference"), rows, ("",))
    if result.layers:
        tried = any(layer.error is not None for layer in result.layers)
        cells = [
            (one.name, one.operator, one.weights, *((_share(one.error), _share(one.changed)) if tried else ()), one.note)
            for one in result.layers
        ]
        alone = ("difference", "other answers") if tried else ()
        table(("layer", "operator", "weights", *alone, ""), cells, ("layer", "operator", ""))
    pairs([
        ("made by", f"{result.used:,} examples" if result.used else "its weights alone"),
        ("measured on", f"{result.held_out:,} others, one at a time, on one thread"),
        ("written", f"{result.after.path} and {result.card.name}"),
    ])  # fmt: skip
    if result.before.median_s and result.after.median_s and result.after.median_s > SLOWER * result.before.median_s:
        console().print("It is slower here than the original.", markup=False)


def _row(one: Measured) -> tuple[object, ...]:
    size = [f"{n / 1000:,.1f} kB" for n in (one.bytes, one.packed_bytes)]
    speed = None if one.median_s is None else f"{one.median_s * 1e3:.3f} ms"
    return (one.path.name, *size, speed, _share(one.accuracy), _share(one.agreement), _share(one.error))


def _share(value: float | None) -> str | None:
    return None if value is None else f"{100 * value:.2f} %"


def prune(
    model: Model,
    *,
    data: Data,
    sparsity: Annotated[
        float, typer.Option("--sparsity", "-s", parser=share, metavar="SHARE", help="What goes: 0.5, or 50%.", show_default=False)
    ],
    out: Out = None,
    structured: Annotated[
        bool, typer.Option("--structured", help="Remove channels, in place of single weights, which become zero.")
    ] = False,
    finetune: Annotated[
        str | None,
        typer.Option(
            metavar="MODULE:FUNCTION",
            show_default=False,
            help="Is called with the pruned model's path, inputs and labels, and trains the file in place.",
        ),
    ] = None,
    force: Force = False,
    as_json: Json = False,
) -> int:
    """Prunes a model by the size of its weights, has it fine-tuned, and measures what that changes.

    Without --structured the file keeps its size, and is smaller compressed; with it file, memory and time shrink.
    """
    from edgeroute.tools import compress

    tune = None if finetune is None else _function(finetune)
    inputs, labels = examples(model, data)
    result = compress.prune(
        model, inputs, labels, sparsity=sparsity, structured=structured, finetune=tune, out=out, overwrite=force
    )
    show(result, as_json=as_json)
    return OK


def _function(name: str) -> Any:
    """The function by its name in Python.

    Raises:
        PolicyError: there is none.
    """
    from importlib import import_module

    module, _, path = name.partition(":")
    sys.path.insert(0, str(Path.cwd()))
    try:
        thing: Any = import_module(module)
        for part in path.split("."):
            thing = getattr(thing, part)
    except (ImportError, AttributeError, ValueError) as e:
        raise PolicyError(f"--finetune {name}: there is no such function, as module:function: {e}") from e
    finally:
        sys.path.pop(0)
    if not callable(thing):
        raise PolicyError(f"--finetune {name} is no function")
    return thing


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
    from edgeroute.tools import compress

    inputs, labels = examples(model, data)
    result = compress.quantize(
        model, inputs, labels, out=out, fp16=fp16, keep_float=keep_float, sensitivity=layers, last=last,
        activations=activations.value, reduce_range=reduce_range, calibration=calibrate, overwrite=force,
    )  # fmt: skip
    show(result, as_json=as_json)
    return OK
