"""Commands `edgeroute quantize` and `edgeroute prune`: write a smaller model, and print how it differs from the original."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from edgeroute.errors import PolicyError
from edgeroute.tools.cli.example_options_and_routers import all_or_none, named_by_file
from edgeroute.tools.cli.tables_and_options import Json, console, pairs, print_notes, share, table
from edgeroute.tools.import_by_module_and_name import python_object

if TYPE_CHECKING:
    from edgeroute.tools.compress.measurement import Measured, Result


# Parts of both commands: reading the data, and printing the result.

SLOWER = 1.05  # ratio of times from which a model is reported as slower
Model = Annotated[Path, typer.Argument(metavar="MODEL", help="The model file; its card beside it is copied, too.")]
Data = Annotated[
    list[Path],
    typer.Option(
        "--data", "-d", metavar="FILE", show_default=False,
        help="Inputs as callers pass them, and labels: .npz (images or X, or an array for each of several inputs; labels or y), "
        ".npy, .png, .jpg, folders of them, or `-`.",
    ),
]  # fmt: skip
Out = Annotated[Path | None, typer.Option("--out", "-o", metavar="FILE", help="The new model.")]
Force = Annotated[bool, typer.Option("--force", help="Replace existing files.")]


def examples(model: Path, paths: Sequence[Path]) -> tuple[list[Any], list[Any] | None, list[str]]:
    """Read the inputs in the files and folders, their labels, and the place of each; None without labels. Print notes on stderr.

    Loads the model to learn its inputs' names: with several inputs an example is a mapping. Those that its card sets (constants
    and states) are not read.

    Raises:
        BadInput: a file cannot be read, or only some inputs have a label.
        ModelError: the model cannot be loaded.
    """
    from edgeroute.edge.edge_model_members_and_fingerprints import member
    from edgeroute.edge.runtimes_variants_ensemble import load
    from edgeroute.tools.cli.inputs_labels_and_outputs import expand_folders, read_inputs

    loaded = load(model)
    if (load_it := member(loaded, "load")) is not None:
        load_it()
    card = member(loaded, "card")
    constant = {field.name for field in getattr(card, "inputs", ()) if field.value is not None}
    constant |= {state.input for state in getattr(card, "state", ())}
    names = [spec.name for spec in member(loaded, "inputs") if spec.name not in constant]
    notes = list[str]()
    items = [item for path in expand_folders(paths) for item in read_inputs(path, names if len(names) > 1 else (), notes.append)]
    print_notes(notes)
    labels = all_or_none([item.label for item in items]) or None
    return [item.x for item in items], labels, [item.name for item in items]


def show(result: Result, *, as_json: bool) -> None:
    """Print the result as tables or JSON, and notes on stderr.

    Below the tables a line says so if the model is over 5 % slower than the original.
    """
    print_notes(result.notes)
    if as_json:
        print(json.dumps(result.as_dict(), allow_nan=False))
        return
    rows = [_row(measured) for measured in (result.before, result.after)]
    table(("", "size", "compressed", "median", "accuracy", "same answers", "difference"), rows, ("",))
    if result.layers:
        columns = ["layer", "operator", "weights", "difference", "other answers", ""]
        rows = [(x.name, x.operator, x.weights, _share(x.error), _share(x.changed), x.note) for x in result.layers]
        if all(layer.error is None for layer in result.layers):
            columns, rows = [*columns[:3], ""], [(*row[:3], row[-1]) for row in rows]
        table(columns, rows, ("layer", "operator", ""))
    pairs([
        ("made by", f"{result.used:,} examples" if result.used else "its weights alone"),
        ("measured on", f"{result.held_out:,} others, one at a time, on one thread"),
        ("written", f"{result.after.path} and {result.card.name}"),
    ])  # fmt: skip
    if result.before.median_s and result.after.median_s and result.after.median_s > SLOWER * result.before.median_s:
        console().print("It is slower here than the original.", markup=False)


def _row(measured: Measured) -> tuple[object, ...]:
    """Return a model's row of the table, as texts: file name, size, compressed size, median run time, shares; None: unknown."""
    size = [f"{n / 1000:,.1f} kB" for n in (measured.bytes, measured.packed_bytes)]
    speed = None if measured.median_s is None else f"{measured.median_s * 1e3:.3f} ms"
    return (measured.path.name, *size, speed, _share(measured.accuracy), _share(measured.agreement), _share(measured.error))


def _share(value: float | None) -> str | None:
    """Format a share, 0..1, in percent; None if unknown."""
    return None if value is None else f"{100 * value:.2f} %"


def prune(
    model: Model,
    *,
    data: Data,
    sparsity: Annotated[float, typer.Option("--sparsity", "-s", parser=share, metavar="SHARE")],
    out: Out = None,
    structured: bool = False,
    finetune: Annotated[str | None, typer.Option(metavar="MODULE:FUNCTION")] = None,
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Prune a model by the size of its weights, fine-tune it, and measure the difference.

    Without --structured the file keeps its size, but compresses better; with it file, memory and time shrink.

    Args:
        sparsity: Share to remove: 0.5 or 50%.
        structured: Remove channels, in place of single weights, which become zero.
        finetune: Function of the pruned model's path, inputs and labels, which trains the file in place.

    Writes a new model file and its card, and prints the comparison. The function is imported from its module, whose code runs.

    Raises:
        PolicyError: `finetune` names no function, or the new file exists and `force` is not set.
        BadInput: the data cannot be read, or is too little.
        ModelError: the model cannot be read, run or pruned.
    """
    from edgeroute.tools import compress

    tune = None if finetune is None else python_object(finetune, "function")
    if tune is not None and not callable(tune):
        raise PolicyError(f"--finetune {finetune} is no function")
    inputs, labels, names = examples(model, data)
    with named_by_file(names):
        result = compress.prune(
            model, inputs, labels, sparsity=sparsity, structured=structured, finetune=tune, out=out, overwrite=force
        )
    show(result, as_json=as_json)


def quantize(
    model: Model,
    *,
    data: Data,
    out: Out = None,
    fp16: bool = False,
    keep_float: Annotated[int, typer.Option(min=0, metavar="N")] = 0,
    layers: Annotated[bool, typer.Option()] = True,
    last: bool = False,
    activations: Literal["uint8", "int8"] = "uint8",
    reduce_range: bool = False,
    calibrate: Annotated[int, typer.Option(min=1, metavar="N")] = 500,
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Quantise a model to static int8, or to float16, and measure the difference.

    A part of the data calibrates the ranges of the layers. The rest compares the model with the original: size, speed, accuracy,
    and the share of equal answers.

    Args:
        fp16: float16 in place of int8: for GPUs and NPUs.
        keep_float: Number of layers that stay float, the most sensitive first.
        layers: Try each layer alone, and show its sensitivity.
        last: Quantise the last layer too. Its logits are then some of 256, and confidences tie.
        activations: uint8 is the fastest on x86; int8, symmetric, is for TensorRT, and good on ARM.
        reduce_range: Weights of 7 bits: for x86 CPUs without VNNI, where uint8 sums overflow.
        calibrate: Examples for calibrating the ranges; half of the data at most.

    Writes a new model file and its card, and prints the comparison.

    Raises:
        PolicyError: the options contradict each other, or the new file exists and `force` is not set.
        BadInput: the data cannot be read, or is too little.
        ModelError: the model cannot be read, run or quantised.
    """
    from edgeroute.tools import compress

    inputs, labels, names = examples(model, data)
    with named_by_file(names):
        result = compress.quantize(
            model, inputs, labels, out=out, fp16=fp16, keep_float=keep_float, sensitivity=layers, last=last,
            activations=activations, reduce_range=reduce_range, calibration=calibrate, overwrite=force,
        )  # fmt: skip
    show(result, as_json=as_json)
