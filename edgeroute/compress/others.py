"""Quantises models of other formats than ONNX, where their own tools are installed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from edgeroute.compress.measure import Examples, answers, compared, unmeasured
from edgeroute.compress.result import Result
from edgeroute.compress.writing import put, workplace, write_card
from edgeroute.edge.card import Card
from edgeroute.edge.load import load
from edgeroute.errors import EdgerouteError, ModelError, ModelMissing, PolicyError, RuntimeMissing
from edgeroute.imports import imported


def quantize_other(path: Path, out: Path, used: Examples, held_out: Examples, *, fp16: bool, keep_float: int) -> Result:
    """As `compress.quantize`: .tflite to static int8 by ai-edge-quantizer, .mlpackage to int8 weights by coremltools."""
    tool = _TOOLS.get(path.suffix.lower())
    if tool is None:
        raise ModelError(f"{path}: expected a model that ends in .onnx, {' or '.join(_TOOLS)}")
    if fp16 or keep_float:
        raise PolicyError(f"{path}: --fp16 and --keep-float are for .onnx")
    if not path.exists():
        raise ModelMissing(f"there is no model at {path}")
    card = Card.beside(path)
    with workplace(out) as folder:
        made = folder / "made" / out.name
        made.parent.mkdir()
        step, notes = tool(path, made, used)
        if made.is_file():
            write_card(made, card, step)
        try:
            original = load(path)
            before, after = compared(original, made, answers(original, held_out.inputs), held_out)
        except EdgerouteError as e:  # as of a Core ML model elsewhere than on macOS
            before, after = unmeasured(path), unmeasured(made)
            notes.append(f"it was not run here: {e}")
        put(made.parent, out)
    return Result(
        before, after._replace(path=out), (), out.with_suffix(".json"), len(used.inputs), len(held_out.inputs), tuple(notes)
    )


def _tflite(path: Path, out: Path, used: Examples) -> tuple[str, list[str]]:
    quantizer = _tool("ai_edge_quantizer.quantizer", "ai-edge-quantizer", path)
    recipe = _tool("ai_edge_quantizer.recipe", "ai-edge-quantizer", path)
    interpreter = _tool("ai_edge_litert.interpreter", "ai-edge-litert", path).Interpreter(model_path=str(path))
    signature = next(iter(interpreter.get_signature_list()), None)
    if signature is None:
        raise ModelError(f"{path} has no signature, by which ai-edge-quantizer calibrates: convert it anew")
    names = interpreter.get_signature_list()[signature]["inputs"]
    model = load(path)
    if len(names) != 1 or (feed := getattr(model, "feed", None)) is None:
        raise ModelError(f"{path} has {len(names)} inputs, and one is calibrated here: use ai-edge-quantizer itself")
    rows = [{names[0]: np.asarray(next(iter(feed([x]).values())))} for x in used.inputs]
    made = quantizer.Quantizer(str(path))
    made.load_quantization_recipe(recipe.static_wi8_ai8())
    made.quantize(made.calibrate({signature: rows})).export_model(str(out), overwrite=True)
    return f"static int8, by edgeroute quantize on {len(used.inputs)} examples", []


def _coreml(path: Path, out: Path, used: Examples) -> tuple[str, list[str]]:
    tools = _tool("coremltools", "coremltools", path)
    optimize = _tool("coremltools.optimize.coreml", "coremltools", path)
    model = tools.models.MLModel(str(path), skip_model_load=True)
    config = optimize.OptimizationConfig(
        global_config=optimize.OpLinearQuantizerConfig(mode="linear_symmetric", dtype="int8", granularity="per_channel")
    )
    optimize.linear_quantize_weights(model, config=config).save(str(out))
    return "int8 weights, by edgeroute quantize", ["weights alone are int8: that takes no examples, and sums are float"][
        : len(used.inputs)
    ]


_TOOLS: dict[str, Callable[[Path, Path, Examples], tuple[str, list[str]]]] = {".tflite": _tflite, ".mlpackage": _coreml}


def _tool(module: str, name: str, path: Path) -> Any:
    try:
        return imported(module)
    except ImportError as e:
        raise RuntimeMissing(f"{path} is quantised by {name}, which cannot be imported ({e}): pip install {name}") from e
