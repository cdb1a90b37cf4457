"""What `quantize` and `prune` share: the data, and the table of what they made."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edgeroute.cli.tables import console, pairs, table
from edgeroute.errors import BadInput

if TYPE_CHECKING:
    from edgeroute.compress.result import Measured, Result

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
    from edgeroute.cli.inputs import files, read
    from edgeroute.edge.load import load
    from edgeroute.edge.members import member

    loaded = load(model)
    if (load_it := member(loaded, "load")) is not None:
        load_it()
    card = member(loaded, "card")
    given = getattr(card, "inputs", ())
    constant = {one.name for one in given if one.value is not None} | {one.input for one in getattr(card, "state", ())}
    names = [spec.name for spec in member(loaded, "inputs") if spec.name not in constant]
    notes = list[str]()
    items = [item for path in files(paths) for item in read(path, names if len(names) > 1 else (), notes.append)]
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
