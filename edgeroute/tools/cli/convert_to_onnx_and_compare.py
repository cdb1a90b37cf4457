"""Command `edgeroute convert`: writes an ONNX file of a model of another framework, and prints whether both answer alike."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from edgeroute.tools.cli.tables_and_options import File, Json, pairs, print_notes


def convert(
    model: Annotated[Path, typer.Argument(metavar="MODEL")],
    out: Annotated[Path | None, typer.Argument(metavar="OUT", show_default="beside it, with the suffix .onnx")] = None,
    *,
    trust: bool = False,
    sample: File | None = None,
    labels: Annotated[str, typer.Option(metavar="A,B,...", show_default=False)] = "",
    kind: Annotated[str | None, typer.Option(metavar="KIND", show_default="found")] = None,
    force: bool = False,
    as_json: Json = False,
) -> None:
    """Convert a model to an ONNX file with a card, by its framework's converter, and compare the answers of both.

    Args:
        model: Of scikit-learn, XGBoost, LightGBM, CatBoost (.joblib, .pkl, or their own formats), Keras (.keras, .h5), TensorFlow
            (a SavedModel's folder) or PyTorch (.pt, .pt2).
        out: The new file.
        trust: Load a file that may run code, as pickles do: only of those that you trust.
        sample: Inputs for the comparison: .npy, .npz, .jsonl, .csv or .parquet.
        labels: Names of the classes, in their order.
        kind: Kind of the outputs, such as logits.
        force: Replace existing files.

    Prints the files, how many answers are the same, and notes on stderr. Without a sample inputs are drawn at random.

    Raises:
        PolicyError: there is no converter, `trust` or a sample is needed, or a file exists and `force` is not set.
        ModelMissing, ModelError: the model cannot be loaded or converted, or the new one answers otherwise.
    """
    from edgeroute.tools.convert_models_to_onnx import convert as write

    names = [name.strip() for name in labels.split(",")] if labels else []
    done = write(model, out, trust=trust, sample=sample, labels=names, kind=kind, overwrite=force)
    print_notes(done.notes)
    if as_json:
        print(json.dumps({**done._asdict(), "out": str(done.out), "card_file": str(done.card_file)}, allow_nan=False))
        return
    drawn = "given" if done.sampled else "drawn at random"
    around = "around values of its training" if done.near else "from N(0, 1), perhaps far from your data: add --sample FILE"
    pairs([
        ("written", f"{done.out} and {done.card_file.name}"),
        ("by", f"the converter of {done.framework}"),
        ("same answers", f"{done.same} of {done.rows} inputs, {drawn}"),
        *([] if done.sampled else [("drawn", around)]),
        ("confidence", "none" if done.difference is None else f"differs by {done.difference:.2g} at most"),
        ("its outputs", done.card.get("output", {}).get("kind", "open: `edgeroute inspect` shows what to say")),
    ])  # fmt: skip
