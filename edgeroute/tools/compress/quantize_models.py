"""Quantisation of ONNX, .tflite and Core ML models to int8 (`Int8` for ONNX) or float16, measured before and after."""

from __future__ import annotations

import inspect
import logging
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from math import prod
from pathlib import Path
from typing import Any, Literal

import numpy as np

import edgeroute.tools.compress.measurement as measured
import edgeroute.tools.compress.onnx_graphs_and_result_files as graphs
from edgeroute.edge.model_card import Card
from edgeroute.edge.onnx import OnnxModel, external_data, runtime
from edgeroute.edge.runtime_base import first_line
from edgeroute.edge.runtimes_variants_ensemble import load
from edgeroute.errors import BadInput, EdgerouteError, ModelError, ModelMissing, PolicyError, check_number
from edgeroute.system.late_imports_and_plugins import import_late, import_needed
from edgeroute.tools.compress.onnx_graphs_and_result_files import put, target, workplace, write_card

# Static int8 of ONNX models, by ONNX Runtime's quantiser.


class Int8:
    """Quantiser of one ONNX model to static int8, by ONNX Runtime, calibrated on examples.

    Prepares the model at construction, in files of the folder.

    Args:
        path: path of the float model.
        feeds: the model's tensors for each example.
        folder: folder for intermediate files.
        last: True quantises the last layers, too.
        activations: "uint8", or "int8", which is symmetric.
        reduce_range: True gives weights 7 bits.

    Raises:
        ModelError: it cannot be prepared, or has no layers to quantise.
        RuntimeMissing: onnx is not installed.
    """

    def __init__(
        self, path: Path, feeds: Sequence[Mapping[str, Any]], folder: Path, *, last: bool, activations: str, reduce_range: bool
    ) -> None:
        self.path, self.feeds, self.folder = path, feeds, folder
        self.signed, self.reduce_range = activations == "int8", reduce_range
        self.notes: list[str] = []
        onnx, original = graphs.package(), graphs.read_graph(path)
        runtime()
        self._tools = import_late("onnxruntime.quantization")
        self._large = bool(external_data(path))
        model = graphs.at_opset(original, path)
        if model is not original:
            self.notes.append(f"converted to opset {graphs.PER_CHANNEL}, which quantising per channel needs")
        self.ready = folder / "ready.onnx"
        start = folder / "start.onnx"
        graphs.save(model, start, large=self._large)
        with self._without_advice("cannot be prepared for quantisation"):
            self._tools.quant_pre_process(
                str(start), str(self.ready), skip_symbolic_shape=True, save_as_external_data=self._large,
                all_tensors_to_one_file=True,
            )  # fmt: skip
        prepared = onnx.load(str(self.ready))
        graphs.name_nodes(prepared)
        graphs.flatten_biases(prepared)
        graphs.save(prepared, self.ready, large=self._large)
        self._layers = graphs.layers_of(prepared)
        self._weights = graphs.constants_of(prepared)
        ends = graphs.last_layers(prepared)
        if not self._layers:
            raise ModelError(f"{path} has no {', '.join(graphs.LAYERS)} with weights, but {graphs.operators_of(prepared)}")
        self._float = [] if last else [node.name for node in [*ends, *graphs.nodes_after(prepared, ends)]]
        if {node.name for node in self._layers} <= {*self._float}:
            raise ModelError(f"{path} has no layer but its last, which stays float, so that confidences differ: add --last")
        if not last:
            self.notes.append(f"the last layer stays float, so that confidences do not tie: {', '.join(n.name for n in ends)}")
        self._cache = folder / "ranges.json"

    def layers(self) -> list[tuple[Any, int]]:
        """Return the layers to quantise, each with its number of weights."""
        return [(node, prod(graphs.weight_of(node, self._weights).dims)) for node in self._layers if node.name not in self._float]

    def write_alone(self, node: Any) -> Path:
        """Write the model with only this layer quantised, over the last such file, and return its path."""
        out = self.folder / "alone.onnx"
        self._quantise(out, nodes_to_quantize=[node.name])
        return out

    def write(self, out: Path, exclude: Sequence[str]) -> None:
        """Write the quantised model; the layers of the excluded names stay float."""
        self._quantise(out, nodes_to_exclude=[*self._float, *exclude])

    def _quantise(self, out: Path, **nodes: Any) -> None:
        """Write a model with the chosen nodes quantised to `out`; ranges of the examples are computed once, and kept in a file.

        nodes: arguments of ONNX Runtime's quantiser that choose them.

        Raises:
            ModelError: the quantiser fails.
        """
        tools = self._tools
        cached: dict[str, Any] = {}
        if "calibration_cache_path" in inspect.signature(tools.quantize_static).parameters:  # the ranges are always the same
            cached["calibration_cache_path"] = self._cache
        with self._without_advice("cannot be quantised"):
            tools.quantize_static(
                str(self.ready), str(out), _Reader(self.feeds), quant_format=tools.QuantFormat.QDQ, per_channel=True,
                activation_type=tools.QuantType.QInt8 if self.signed else tools.QuantType.QUInt8,
                weight_type=tools.QuantType.QInt8, reduce_range=self.reduce_range,
                extra_options={"ActivationSymmetric": self.signed}, use_external_data_format=self._large, **cached, **nodes,
            )  # fmt: skip

    @contextmanager
    def _without_advice(self, what: str) -> Iterator[None]:
        """Silence the quantiser's warnings and advice in the block; raise its errors as `ModelError`, but an OSError."""
        root, advice_filter, null_handler = logging.getLogger(), _Advice(), logging.NullHandler()
        root.addFilter(advice_filter)
        root.addHandler(null_handler)  # without any handler, `logging.warning` would add one for good
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                yield
        except OSError:
            raise
        except Exception as e:  # it raises whatever comes up
            raise ModelError(f"{self.path} {what}: {first_line(e)}") from e
        finally:
            root.removeFilter(advice_filter)
            root.removeHandler(null_handler)


class _Advice(logging.Filter):
    """Filter that drops the quantiser's messages on the root logger."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Return True if the record is logged: if it is not the quantiser's."""
        return "quantization" not in Path(record.pathname).parts


class _Reader:
    """Examples in the form of the quantiser's data reader: one at a time, whatever the model's batch axis."""

    def __init__(self, feeds: Sequence[Mapping[str, Any]]) -> None:
        self._left = iter(feeds)

    def get_next(self) -> dict[str, np.ndarray[Any, Any]] | None:
        """Return the next example as a copy; None at the end."""
        feed = next(self._left, None)
        return None if feed is None else dict(feed)


# float16 of ONNX models, by the converter that comes with ONNX Runtime.


def convert(path: Path, out: Path) -> None:
    """Write the model to `out` with weights and computations in float16; inputs and outputs keep their types. Writes no card.

    Raises:
        ModelError: it cannot be converted.
        RuntimeMissing: onnx is not installed.
    """
    onnx, model = graphs.package(), graphs.read_graph(path)
    runtime()
    if not any(tensor.data_type == onnx.TensorProto.FLOAT for tensor in model.graph.initializer):
        raise ModelError(f"{path} has no float32 weights: there is nothing to convert to float16")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # numbers too small for float16 become the smallest
            converted = import_late("onnxruntime.transformers.float16").convert_float_to_float16(model, keep_io_types=True)
    except Exception as e:  # it raises whatever comes up
        raise ModelError(f"{path} cannot be converted to float16: {first_line(e)}") from e
    graphs.save(converted, out, large=bool(external_data(path)))


# Models of other formats than ONNX, quantised by their own tools.


def quantize_other(
    path: Path, out: Path, used: measured.Examples, held_out: measured.Examples, *, fp16: bool, keep_float: int
) -> measured.Result:
    """Quantise a .tflite model to static int8, or a .mlpackage to int8 weights, write it with its card, and measure it.

    A model that does not run here is measured by its size alone, with the error as a note. See `quantize`.

    Raises:
        ModelError: the file has another suffix, or cannot be quantised.
        ModelMissing: there is no such file.
        PolicyError: `fp16` or `keep_float` is set.
        BadInput: the inputs do not fit the model.
    """
    tool = _TOOLS.get(path.suffix.lower())
    if tool is None:
        raise ModelError(f"{path}: expected a model that ends in .onnx, {' or '.join(_TOOLS)}")
    if fp16 or keep_float:
        raise PolicyError(f"{path}: --fp16 and --keep-float are for .onnx")
    if not path.exists():
        raise ModelMissing(f"there is no model at {path}")
    card = Card.beside(path)
    with workplace(out) as (_, quantised):
        step, notes = tool(path, quantised, used)
        if quantised.is_file():
            write_card(quantised, card, step)
        try:
            original = load(path)
            original_answers = measured.answers(original, held_out)
            notes += original_answers.check(held_out.labels, measured.labels_of(original))
            before, after = measured.measure_both(original, quantised, original_answers, held_out)
        except BadInput:
            raise
        except EdgerouteError as e:  # such as a Core ML model elsewhere than on macOS
            before, after = measured.measure_files(path), measured.measure_files(quantised)
            notes.append(f"it was not run here: {e}")
        put(quantised.parent, out)
    return measured.result(before, after, out, (), len(used.inputs), held_out, notes)


def _quantize_tflite(path: Path, out: Path, used: measured.Examples) -> tuple[str, list[str]]:
    """Write a .tflite model quantised by ai-edge-quantizer on the examples, in `out`; return the step for the card, and no notes.

    What the tool prints goes to stderr.

    Raises:
        ModelError: the model has several signatures, or the tool fails.
        RuntimeMissing: a package is not installed.
    """
    quantizer = _import_tool("ai_edge_quantizer.quantizer", "ai-edge-quantizer", path)
    recipe = _import_tool("ai_edge_quantizer.recipe", "ai-edge-quantizer", path)
    litert = _import_tool("ai_edge_litert.interpreter", "ai-edge-litert", path)
    model: Any = load(path)
    model.load()  # its inputs are known then, and that it is a model
    signatures = litert.Interpreter(model_path=str(path)).get_signature_list()
    if len(signatures) != 1:
        raise ModelError(f"{path} has {len(signatures)} signatures, and ai-edge-quantizer needs one: convert it again")
    ((signature, names),) = signatures.items()
    feeds = used.each(lambda x: model.feed([x]))
    if {*names["inputs"]} != {*feeds[0]}:
        raise ModelError(f"{path} takes {', '.join(names['inputs'])}, and is given {', '.join(feeds[0])}")
    try:
        with redirect_stdout(sys.stderr), warnings.catch_warnings():  # it reports there, and warns of what it does itself
            warnings.simplefilter("ignore")
            converter = quantizer.Quantizer(str(path))
            converter.load_quantization_recipe(recipe.static_wi8_ai8())
            ranges = _widest_ranges(converter.calibrate({signature: [feed]}, num_threads=1) for feed in feeds)
            converter.quantize(ranges).export_model(str(out), overwrite=True)
    except OSError:
        raise
    except Exception as e:  # it raises whatever comes up
        raise ModelError(f"{path} cannot be quantised by ai-edge-quantizer: {first_line(e)}") from e
    return f"static int8, by edgeroute quantize on {len(used.inputs)} examples", []


def _widest_ranges(calibrations: Iterable[dict[str, dict[str, Any]]]) -> dict[str, dict[str, Any]]:
    """Return the least and the largest value of each tensor over several calibrations, as ONNX Runtime takes them.

    The tool itself takes a moving average of them, which cuts off what single inputs have beyond it.
    """
    wide: dict[str, dict[str, Any]] = {}
    for calibration in calibrations:
        for name, values in calibration.items():
            widest = wide.setdefault(name, dict(values))
            for key, pick in (("min", np.minimum), ("max", np.maximum)):
                if key in values and key in widest:
                    widest[key] = pick(widest[key], values[key])
    return wide


def _quantize_coreml(path: Path, out: Path, used: measured.Examples) -> tuple[str, list[str]]:  # noqa: ARG001 - weights alone
    """Write a .mlpackage with int8 weights by coremltools, in `out`; return the step for the card, and notes. Uses no examples.

    Raises:
        ModelError: the tool fails.
        RuntimeMissing: it is not installed.
    """
    tools = _import_tool("coremltools", "coremltools", path)
    optimize = _import_tool("coremltools.optimize.coreml", "coremltools", path)
    try:
        model = tools.models.MLModel(str(path), skip_model_load=True)
        kind = optimize.OpLinearQuantizerConfig(mode="linear_symmetric", dtype="int8", granularity="per_channel")
        config = optimize.OptimizationConfig(global_config=kind)
        optimize.linear_quantize_weights(model, config=config).save(str(out))
    except Exception as e:  # it raises whatever comes up
        raise ModelError(f"{path} cannot be quantised by coremltools: {first_line(e)}") from e
    return "int8 weights, by edgeroute quantize", ["weights alone are int8, which takes no examples; sums are float"]


_TOOLS: dict[str, Callable[[Path, Path, measured.Examples], tuple[str, list[str]]]] = {
    ".tflite": _quantize_tflite,
    ".mlpackage": _quantize_coreml,
}


def _import_tool(module: str, name: str, path: Path) -> Any:
    """Import a tool's module; raise `RuntimeMissing` with the command that installs it."""
    return import_needed(module, f"{path} is quantised by {name}, which cannot be imported: pip install {name}")


CALIBRATION = 500  # most examples for calibrating the ranges; half of the data if that is less
TRIED = 64  # most of them that measure the sensitivity of layers


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
) -> measured.Result:
    """Quantise a float model, write the new model with its card, and measure both.

    int8 is static, per channel, with QDQ nodes, as ONNX Runtime, OpenVINO, TensorRT and QNN read it. The last layer stays float:
    quantised logits would tie confidences. The sensitivity of each layer is the error at the model's outputs while it alone is
    quantised (Wu et al. 2020, arXiv:2004.09602, section 6).

    The new files appear only once they are measured.

    Args:
        path: the model, .onnx; .tflite and .mlpackage where their tools are installed. Its card is copied to the new model.
        inputs: inputs as callers pass them to the model, before the card's preprocessing.
        labels: the right answer of each input: names, or class numbers.
        out: path of the new file; None: beside the model, as NAME.int8.onnx or NAME.fp16.onnx.
        fp16: True converts to float16 in place of int8; inputs and outputs keep their types.
        keep_float: number of layers that stay float, the most sensitive first.
        sensitivity: True tries each layer by itself; `keep_float` needs that.
        last: True quantises the last layer, too.
        activations: "uint8" is by far the fastest on x86; "int8", symmetric, is what TensorRT needs, and good on ARM.
        reduce_range: True gives weights 7 bits, for x86 CPUs without VNNI, whose sums of uint8 and int8 saturate.
        calibration: number of examples that calibrate the ranges; half of the data at most, the rest measures the result.
        overwrite: True replaces existing files.

    Raises:
        ModelMissing, ModelError: the model cannot be read, run or quantised.
        RuntimeMissing: a package is not installed; the message names it.
        BadInput: the inputs do not fit the model, or are too few.
        PolicyError: the arguments contradict each other, or the file exists already.
        StoreError: the disk is full, or may not be written to.
    """
    path, word = Path(path), "fp16" if fp16 else "int8"
    check_number("keep_float", keep_float, whole=True)
    check_number("calibration", calibration, least=1, whole=True)
    if activations not in {"uint8", "int8"}:
        raise PolicyError(f'activations= is "uint8" or "int8", not {activations!r}')
    if keep_float and (fp16 or not sensitivity):
        raise PolicyError("keep_float= is about layers of an int8 model, and needs their sensitivity")
    path_out = target(path, None if out is None else Path(out), word, overwrite=overwrite)
    used, held_out = measured.split(measured.examples_of(inputs, labels), calibration)
    if path.suffix.lower() != ".onnx":
        return quantize_other(path, path_out, used, held_out, fp16=fp16, keep_float=keep_float)
    model, original, notes = measured.load_original(path, held_out)
    layers: tuple[measured.Layer, ...] = ()
    with workplace(path_out) as (folder, quantised):
        if fp16:
            convert(path, quantised)
        else:
            int8 = Int8(
                path, used.each(lambda x: model.feed([x])), folder, last=last, activations=activations, reduce_range=reduce_range
            )
            notes += int8.notes
            if sensitivity:
                layers = _layer_errors(int8, model, used.part(range(min(TRIED, len(used.inputs)))))
            float_layers = _most_sensitive(layers, keep_float)
            int8.write(quantised, exclude=float_layers)
            layers = tuple(layer._replace(note="stays float") if layer.name in float_layers else layer for layer in layers)
        write_card(quantised, model.card, _step(word, len(used.inputs), keep_float))
        before, after = measured.measure_both(model, quantised, original, held_out)
        put(quantised.parent, path_out)
    return measured.result(before, after, path_out, layers, 0 if fp16 else len(used.inputs), held_out, notes)


def _layer_errors(int8: Int8, model: OnnxModel, examples: measured.Examples) -> tuple[measured.Layer, ...]:
    """Quantise each layer alone, run the examples; return the layers with error and share of other answers, the worst first.

    Each try replaces the file of the one before.
    """
    original, layers = measured.answers(model, examples), []
    for node, weights in int8.layers():
        path = int8.write_alone(node)
        write_card(path, model.card, "")
        result = measured.answers(OnnxModel(path), examples)
        agreement = result.agreement(original)
        changed = None if agreement is None else 1 - agreement
        layers.append(measured.Layer(node.name, node.op_type, weights, result.error(original), changed, "int8"))
    layers.sort(key=lambda layer: (-(layer.error or 0), layer.name))
    return tuple(layers)


def _most_sensitive(layers: Sequence[measured.Layer], count: int) -> list[str]:
    """Return the names of the first `count` layers, which come sorted; raise `PolicyError` if there are fewer."""
    if count > len(layers):
        raise PolicyError(f"keep_float={count}: the model has {len(layers)} layers that are quantised")
    return [layer.name for layer in layers[:count]]


def _step(word: str, used: int, float_layers: int) -> str:
    """Return the description of this step for the card."""
    if word == "fp16":
        return "float16, by edgeroute quantize"
    return f"static int8, by edgeroute quantize on {used} examples" + (
        f", {float_layers} layers kept float" if float_layers else ""
    )
