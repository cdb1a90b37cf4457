"""Execution providers of ONNX Runtime: parser of their short names and options, their JSON Schema, options that change outputs.

Imports no runtime.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from os import PathLike, fspath
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

from edgeroute.errors import PolicyError, nearest

CPU = "CPUExecutionProvider"
SUFFIX = "ExecutionProvider"
# Provider as a policy or a caller names it: a name, a table with a `name`, or a name and its options.
Given: TypeAlias = "str | Mapping[str, Any] | tuple[str, Mapping[str, Any]] | Provider"


class Provider(NamedTuple):
    """Requested provider with its options."""

    name: str  # ONNX Runtime's name of the provider
    options: Mapping[str, str] = {}  # options by ONNX Runtime's names
    output_options: Mapping[str, Any] = {}  # options that may change outputs, as they were given
    folders: tuple[Path, ...] = ()  # folders that the provider writes to
    threads: str | None = None  # ONNX Runtime's name of the provider's option for the number of threads; None: it has none

    def native(self, threads: int) -> tuple[str, dict[str, str]]:
        """Return (name, options) as ONNX Runtime takes them, with the model's number of threads as a default."""
        defaults = {} if self.threads is None else {self.threads: str(threads)}
        return self.name, {**defaults, **self.options}

    @property
    def setting(self) -> Any:
        """Name and output-changing options, for the model's fingerprint."""
        return [self.name, dict(self.output_options)] if self.output_options else self.name


class Option(NamedTuple):
    """Option of a provider."""

    keys: tuple[str, ...]  # ONNX Runtime's names: the first gets the value, the others get 1
    kind: type  # type of the value: bool, int (0 or more), str, or Path, which is a folder that is created if missing
    meaning: str
    counts: bool = False  # True if the option may change outputs
    values: Mapping[str, str] | None = None  # allowed value -> ONNX Runtime's word for it; None: any of its type
    convert: Callable[[str], str] | None = None


class Kind(NamedTuple):
    """Provider with a short name."""

    name: str
    options: Mapping[str, Option] = {}

    @property
    def threads(self) -> str | None:
        """ONNX Runtime's name of the option for the number of threads; None: there is none."""
        return self.options["threads"].keys[0] if "threads" in self.options else None


def _cache(*keys: str) -> Option:
    """Return the option for a folder of compiled models."""
    return Option(keys, Path, "Folder for what it compiles, so that only the first load takes long.")


def _one_of(key: str, meaning: str, values: Mapping[str, str], *, counts: bool = True) -> Option:
    """Return an option with a few allowed values."""
    return Option((key,), str, meaning, counts, values)


_DEVICE = Option(("device_id",), int, "Number of the GPU.")
_THREADS = "Threads for one run, other than the model's."
_SPEEDS = (
    "default", "burst", "balanced", "high_performance", "sustained_high_performance", "low_balanced", "high_power_saver",
    "power_saver", "low_power_saver", "extreme_power_saver",
)  # fmt: skip
# Short name -> provider.
KINDS: Mapping[str, Kind] = {
    "tensorrt": Kind("TensorrtExecutionProvider", {
        "fp16": Option(("trt_fp16_enable",), bool, "Layers may run in float16.", counts=True),
        "int8": Option(("trt_int8_enable",), bool, "Layers of a quantised model (QDQ) run in int8.", counts=True),
        "engine_cache": _cache("trt_engine_cache_path", "trt_engine_cache_enable"),
        "device": _DEVICE,
    }),
    "cuda": Kind("CUDAExecutionProvider", {
        "tf32": Option(("use_tf32",), bool, "Products of float32 may run in TF32.", counts=True), "device": _DEVICE,
    }),
    "openvino": Kind("OpenVINOExecutionProvider", {
        "device": Option(("device_type",), str, 'As "cpu", "gpu", "gpu.1", "npu".', counts=True, convert=str.upper),
        "precision": _one_of("precision", "What it computes in; accuracy: as the model says.", {
            "fp32": "FP32", "fp16": "FP16", "accuracy": "ACCURACY",
        }),
        "engine_cache": _cache("cache_dir"),
        "threads": Option(("num_of_threads",), int, _THREADS),
    }),
    "coreml": Kind("CoreMLExecutionProvider", {
        "compute_units": _one_of("MLComputeUnits", "Which of CPU, GPU and Neural Engine it may use.", {
            "all": "ALL", "cpu_only": "CPUOnly", "cpu_and_gpu": "CPUAndGPU", "cpu_and_ne": "CPUAndNeuralEngine",
        }),
        "format": _one_of("ModelFormat", "What the model is converted to.", {
            "mlprogram": "MLProgram", "neuralnetwork": "NeuralNetwork",
        }),
        "static_shapes": Option(("RequireStaticInputShapes",), bool, "It takes only nodes whose shapes are fixed."),
        "engine_cache": _cache("ModelCacheDirectory"),
    }),
    "qnn": Kind("QNNExecutionProvider", {
        "backend": _one_of("backend_type", "The NPU, or another.", {"htp": "htp", "gpu": "gpu", "cpu": "cpu"}),
        "fp16": Option(("enable_htp_fp16_precision",), bool, "float32 runs in float16 on the NPU.", counts=True),
        "performance": _one_of("htp_performance_mode", "Speed against power.", {w: w for w in _SPEEDS}, counts=False),
    }),
    "nnapi": Kind("NnapiExecutionProvider"),
    "xnnpack": Kind("XnnpackExecutionProvider", {"threads": Option(("intra_op_num_threads",), int, _THREADS)}),
    "cpu": Kind(CPU),
}  # fmt: skip
NATIVE = "options"  # key of a table for options by ONNX Runtime's own names, which are passed on unchecked
_FULL = {kind.name: short for short, kind in KINDS.items()}  # ONNX Runtime's name -> short name
_LOWER = {full.lower(): full for full in _FULL}  # ONNX Runtime's name in small letters -> as it is written


def parse_providers(listed: Given | Iterable[Given], folder: Path | None = None) -> tuple[Provider, ...]:
    """Return the requested providers, best first, checked.

    Under a short name, options are edgeroute's, and checked; `options` in them is a table of ONNX Runtime's own. Under ONNX
    Runtime's name for a provider, all options are ONNX Runtime's own, and unchecked.

    Args:
        listed: names, tables with a name and options, or pairs of them; a single one stands for a list of one.
        folder: where relative paths start; None: the working folder.

    Raises:
        PolicyError: a name, an option or a value is unknown, or there are no providers, or one occurs twice.
    """
    single = isinstance(listed, str | Mapping | Provider) or _is_pair(listed)
    if not single and not isinstance(listed, Iterable):
        raise PolicyError(f'providers are a list of names, as in ["cpu"], not {listed!r:.60}')
    providers = tuple(_parse_one(item, folder) for item in ([listed] if single else listed))
    names = [item.name for item in providers]
    if not names:
        raise PolicyError('expected at least one provider, as in ["cpu"]')
    if twice := [name for i, name in enumerate(names) if name in names[:i]]:
        raise PolicyError(f"{twice[0]} is there twice")
    return providers


def _is_pair(item: Any) -> bool:
    """Return True for a tuple of a name and a mapping of options."""
    return isinstance(item, tuple) and not isinstance(item, Provider) and len(item) == 2 and isinstance(item[1], Mapping)  # noqa: PLR2004


def _parse_one(entry: Any, folder: Path | None) -> Provider:
    """Return one provider, checked.

    A `Provider` is returned itself, unchecked.

    Raises:
        PolicyError: as `parse_providers`.
    """
    if isinstance(entry, Provider):
        return entry
    if isinstance(entry, str):
        name, options = entry, {}
    elif isinstance(entry, Mapping) and isinstance(entry.get("name"), str):
        name, options = entry["name"], {key: value for key, value in entry.items() if key != "name"}
    elif _is_pair(entry) and isinstance(entry[0], str):
        name, options = entry[0], dict(entry[1])
    else:
        raise PolicyError(f'a provider is a name, or a table with a name, as in {{ name = "cpu" }}, not {entry!r:.60}')
    if name in KINDS:
        return _parse_short(name, KINDS[name], options, folder)
    known = name in _FULL
    if not known and (not name.endswith(SUFFIX) or name.lower() in _LOWER):
        raise PolicyError(f'there is no provider "{name:.60}": {nearest(_LOWER.get(name.lower(), name), [*KINDS, *_FULL])}')
    native = _native_options(name, options)
    return Provider(name, native, native, threads=KINDS[_FULL[name]].threads if known else None)


def _parse_short(name: str, kind: Kind, settings: Mapping[str, Any], folder: Path | None) -> Provider:
    """Return a provider with a short name from its options, with the folders that they name, of which none is created.

    Raises:
        PolicyError: an option or its value is unknown.
    """
    options: dict[str, str] = {}
    output_options: dict[str, Any] = {}
    folders: list[Path] = []
    for key, value in settings.items():
        if key == NATIVE:
            continue
        if (option := kind.options.get(key)) is None:
            raise PolicyError(f'{name} has no option "{key!s:.60}": {nearest(key, [*kind.options, NATIVE])}')
        word = _option_text(f"{name}: {key}", option, value, folder)
        options |= {option.keys[0]: word} | dict.fromkeys(option.keys[1:], "1")
        if option.counts:
            output_options[key] = word
        if option.kind is Path:
            folders.append(Path(word))
    native = _native_options(name, settings.get(NATIVE, {}))
    return Provider(kind.name, options | native, output_options | native, tuple(folders), kind.threads)


def _option_text(what: str, option: Option, value: Any, folder: Path | None) -> str:
    """Return the value of an option as the text that ONNX Runtime takes.

    A relative folder starts in `folder`.

    Raises:
        PolicyError: it is none of the option's values.
    """
    if option.values is not None:
        if not isinstance(value, str) or value not in option.values:
            raise PolicyError(f"{what}: found {value!r:.60}: {nearest(value, option.values)}")
        return option.values[value]
    if option.kind is bool and isinstance(value, bool):
        return str(int(value))
    if option.kind is int and isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        return str(value)
    if option.kind is str and isinstance(value, str) and value:
        return option.convert(value) if option.convert else value
    if option.kind is Path and isinstance(value, str | PathLike) and fspath(value):
        return str((folder or Path()) / value)
    words = {bool: "true or false", int: "a whole number, 0 or more", str: "text", Path: "the path of a folder"}
    raise PolicyError(f"{what}: expected {words[option.kind]}, found {value!r:.60}")


def _native_options(name: str, settings: Any) -> dict[str, str]:
    """Return options by ONNX Runtime's names as the text that it takes.

    Booleans become 1 and 0.

    Raises:
        PolicyError: one is neither text nor a number nor a boolean.
    """
    if not isinstance(settings, Mapping):
        raise PolicyError(f"{name}: {NATIVE} is a table of ONNX Runtime's own options, not {settings!r:.60}")
    if wrong := [key for key, value in settings.items() if not isinstance(value, str | int | float | PathLike)]:
        raise PolicyError(f"{name}: {wrong[0]!s:.60}: expected text, a number, true or false")
    return {str(key): str(int(value)) if isinstance(value, bool) else str(value) for key, value in settings.items()}


def names_of(providers: Sequence[Provider]) -> str:
    """Return the providers' names, for a message."""
    return ", ".join(provider.name for provider in providers)


def schema() -> dict[str, Any]:
    """Return the JSON Schema of a list of providers: short names, full names, and tables of either with options."""
    types = {bool: "boolean", int: "integer", str: "string", Path: "string"}
    native = {"type": "object", "description": "Options by ONNX Runtime's own names, unchecked."}
    tables = []
    for short, kind in KINDS.items():
        keys: dict[str, Any] = {"name": {"const": short, "description": kind.name}}
        for key, option in kind.options.items():
            keys[key] = {"type": types[option.kind], "description": option.meaning}
            keys[key] |= {"enum": [*option.values]} if option.values else {}
        keys[NATIVE] = native
        tables.append({"type": "object", "properties": keys, "required": ["name"], "additionalProperties": False})
    full = {"type": "string", "pattern": f"{SUFFIX}$"}
    other = {"type": "object", "properties": {"name": full}, "required": ["name"]}
    items = {"anyOf": [{"enum": [*KINDS]}, full, *tables, other], "title": "provider"}
    return {"type": "array", "minItems": 1, "items": items}
