"""Quantises models of other formats than ONNX, where their own tools are installed."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Iterable
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np

from edgeroute.compress.measure import Examples, answers, compared, labels_of, unmeasured
from edgeroute.compress.result import Result
from edgeroute.compress.writing import put, workplace, write_card
from edgeroute.edge.card import Card
from edgeroute.edge.load import load
from edgeroute.edge.model_file import first_line
from edgeroute.errors import BadInput, EdgerouteError, ModelError, ModelMissing, PolicyError, RuntimeMissing
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
            found = answers(original, held_out.inputs)
            notes += found.check(held_out.labels, labels_of(original))
            before, after = compared(original, made, found, held_out)
        except BadInput:
            raise
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
    litert = _tool("ai_edge_litert.interpreter", "ai-edge-litert", path)
    model: Any = load(path)
    model.load()  # what it takes is known then, and that it is a model
    signatures = litert.Interpreter(model_path=str(path)).get_signature_list()
    if len(signatures) != 1:
        raise ModelError(f"{path} has {len(signatures)} signatures, and ai-edge-quantizer calibrates by one: convert it anew")
    ((signature, names),) = signatures.items()
    feeds = [model.feed([x]) for x in used.inputs]
    if {*names["inputs"]} != {*feeds[0]}:
        raise ModelError(f"{path} takes {', '.join(names['inputs'])}, and is given {', '.join(feeds[0])}")
    try:
        with redirect_stdout(sys.stderr), warnings.catch_warnings():  # it reports there, and warns of what it does itself
            warnings.simplefilter("ignore")
            made = quantizer.Quantizer(str(path))
            made.load_quantization_recipe(recipe.static_wi8_ai8())
            ranges = _widest(made.calibrate({signature: [feed]}, num_threads=1) for feed in feeds)
            made.quantize(ranges).export_model(str(out), overwrite=True)
    except OSError:
        raise
    except Exception as e:  # it raises whatever comes up
        raise ModelError(f"{path} cannot be quantised by ai-edge-quantizer: {first_line(e)}") from e
    return f"static int8, by edgeroute quantize on {len(used.inputs)} examples", []


def _widest(found: Iterable[dict[str, dict[str, Any]]]) -> dict[str, dict[str, Any]]:
    """The least and the largest value of each tensor in several calibrations.

    The tool itself takes a moving average of them, which cuts off what single inputs have beyond it: in a small model the logits
    were a third of their size away from the original's, and by the widest ranges a hundredth. ONNX Runtime takes these, too.
    """
    wide: dict[str, dict[str, Any]] = {}
    for one in found:
        for name, values in one.items():
            known = wide.setdefault(name, dict(values))
            for key, pick in (("min", np.minimum), ("max", np.maximum)):
                if key in values and key in known:
                    known[key] = pick(known[key], values[key])
    return wide


def _coreml(path: Path, out: Path, used: Examples) -> tuple[str, list[str]]:  # noqa: ARG001 - weights take no examples
    tools = _tool("coremltools", "coremltools", path)
    optimize = _tool("coremltools.optimize.coreml", "coremltools", path)
    try:
        model = tools.models.MLModel(str(path), skip_model_load=True)
        kind = optimize.OpLinearQuantizerConfig(mode="linear_symmetric", dtype="int8", granularity="per_channel")
        config = optimize.OptimizationConfig(global_config=kind)
        optimize.linear_quantize_weights(model, config=config).save(str(out))
    except Exception as e:  # it raises whatever comes up
        raise ModelError(f"{path} cannot be quantised by coremltools: {first_line(e)}") from e
    return "int8 weights, by edgeroute quantize", ["weights alone are int8, which takes no examples; sums are float"]


_TOOLS: dict[str, Callable[[Path, Path, Examples], tuple[str, list[str]]]] = {".tflite": _tflite, ".mlpackage": _coreml}


def _tool(module: str, name: str, path: Path) -> Any:
    try:
        return imported(module)
    except ImportError as e:
        raise RuntimeMissing(f"{path} is quantised by {name}, which cannot be imported ({e}): pip install {name}") from e
