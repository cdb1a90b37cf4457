"""Execution providers of ONNX Runtime: their short names and options, and what of them changes outputs. Imports no runtime."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from os import PathLike, fspath
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

from edgeroute.errors import PolicyError, nearest

CPU = "CPUExecutionProvider"
SUFFIX = "ExecutionProvider"
Given: TypeAlias = "str | Mapping[str, Any] | tuple[str, Mapping[str, Any]] | Provider"
"""A provider as it is asked for: a name, a table with a `name`, or a name and its options."""


class Provider(NamedTuple):
    """A provider that is asked for."""

    name: str
    """ONNX Runtime's name for it."""
    options: Mapping[str, str] = {}
    """ONNX Runtime's options for it."""
    counted: Mapping[str, Any] = {}
    """Those that may change outputs, as they were asked for."""
    folders: tuple[Path, ...] = ()
    """Folders that it writes to."""
    threads: str | None = None
    """Its own option for the number of threads, which is the model's unless it is among the options."""

    def native(self, threads: int) -> tuple[str, dict[str, str]]:
        """As ONNX Runtime takes it, with the model's number of threads."""
        own = {} if self.threads is None else {self.threads: str(threads)}
        return self.name, {**own, **self.options}

    @property
    def setting(self) -> Any:
        """What of it counts for the model's fingerprint."""
        return [self.name, dict(self.counted)] if self.counted else self.name


class Option(NamedTuple):
    """An option of a provider."""

    keys: tuple[str, ...]
    """ONNX Runtime's names: the value's, then those that are 1 with it."""
    kind: type
    """bool, int (0 or more), str, or Path."""
    meaning: str
    counts: bool = False
    """It may change outputs."""
    values: Mapping[str, str] | None = None
    """Value -> ONNX Runtime's word for it."""
    convert: Callable[[str], str] | None = None
    folder: bool = False
    """It is a folder, which is made where it is not there."""


class Kind(NamedTuple):
    """A provider that has a short name."""

    name: str
    options: Mapping[str, Option] = {}
    threads: str | None = None


def _cache(*keys: str) -> Option:
    return Option(keys, Path, "Folder for what it compiles, so that only the first load takes long.", folder=True)


_DEVICE = Option(("device_id",), int, "Number of the GPU.")
KINDS: Mapping[str, Kind] = {
    "tensorrt": Kind(
        "TensorrtExecutionProvider",
        {
            "fp16": Option(("trt_fp16_enable",), bool, "Layers may run in float16.", counts=True),
            "int8": Option(("trt_int8_enable",), bool, "Layers of a quantised model (QDQ) run in int8.", counts=True),
            "engine_cache": _cache("trt_engine_cache_path", "trt_engine_cache_enable"),
            "device": _DEVICE,
        },
    ),
    "cuda": Kind(
        "CUDAExecutionProvider",
        {"tf32": Option(("use_tf32",), bool, "Products of float32 may run in TF32.", counts=True), "device": _DEVICE},
    ),
    "openvino": Kind(
        "OpenVINOExecutionProvider",
        {
            "device": Option(("device_type",), str, 'As "cpu", "gpu", "gpu.1", "npu".', counts=True, convert=str.upper),
            "precision": Option(
                ("precision",),
                str,
                "What it computes in; accuracy: as the model says.",
                counts=True,
                values={"fp32": "FP32", "fp16": "FP16", "accuracy": "ACCURACY"},
            ),
            "engine_cache": _cache("cache_dir"),
            "threads": Option(("num_of_threads",), int, "Threads for one run, other than the model's."),
        },
        "num_of_threads",
    ),
    "coreml": Kind(
        "CoreMLExecutionProvider",
        {
            "compute_units": Option(
                ("MLComputeUnits",),
                str,
                "Which of CPU, GPU and Neural Engine it may use.",
                counts=True,
                values={"all": "ALL", "cpu_only": "CPUOnly", "cpu_and_gpu": "CPUAndGPU", "cpu_and_ne": "CPUAndNeuralEngine"},
            ),
            "format": Option(
                ("ModelFormat",),
                str,
                "What the model is converted to.",
                counts=True,
                values={"mlprogram": "MLProgram", "neuralnetwork": "NeuralNetwork"},
            ),
            "static_shapes": Option(("RequireStaticInputShapes",), bool, "It takes only nodes whose shapes are fixed."),
            "engine_cache": _cache("ModelCacheDirectory"),
        },
    ),
    "qnn": Kind(
        "QNNExecutionProvider",
        {
            "backend": Option(
                ("backend_type",), str, "The NPU, or another.", counts=True, values={"htp": "htp", "gpu": "gpu", "cpu": "cpu"}
            ),
            "fp16": Option(("enable_htp_fp16_precision",), bool, "float32 runs in float16 on the NPU.", counts=True),
            "performance": Option(
                ("htp_performance_mode",),
                str,
                "Speed against power.",
                values={
                    word: word
                    for word in (
                        "default", "burst", "balanced", "high_performance", "sustained_high_performance", "low_balanced",
                        "high_power_saver", "power_saver", "low_power_saver", "extreme_power_saver",
                    )
                },
            ),
        },
    ),
    "nnapi": Kind("NnapiExecutionProvider"),
    "xnnpack": Kind(
        "XnnpackExecutionProvider",
        {"threads": Option(("intra_op_num_threads",), int, "Threads for one run, other than the model's.")},
        "intra_op_num_threads",
    ),
    "cpu": Kind(CPU),
}  # fmt: skip
"""Short name -> provider."""
NATIVE = "options"
"""The key of a table for options by ONNX Runtime's own names, which are passed on unchecked."""
_FULL = {kind.name: short for short, kind in KINDS.items()}
_LOWER = {full.lower(): full for full in _FULL}


def parsed(given: Given | Iterable[Given], folder: Path | None = None) -> tuple[Provider, ...]:
    """The providers that are asked for, best first.

    Under a short name, options are edgeroute's, and checked; `options` in them is a table of ONNX Runtime's own. Under ONNX
    Runtime's name for a provider, all of them are its own. What is not the name of a provider, an option or its value is refused.

    Args:
        given: names, tables with a name and options, or pairs of them; a single one is meant as one.
        folder: where relative paths start; None: the working folder.

    Raises:
        PolicyError: one is unknown, or there are none, or one is there twice.
    """
    single = isinstance(given, str | Mapping | Provider) or _is_pair(given)
    if not single and not isinstance(given, Iterable):
        raise PolicyError(f'providers are a list of names, as in ["cpu"], not {given!r:.60}')
    found = tuple(_parsed(one, folder) for one in ([given] if single else given))
    names = [one.name for one in found]
    if not names:
        raise PolicyError('expected at least one provider, as in ["cpu"]')
    if twice := [name for i, name in enumerate(names) if name in names[:i]]:
        raise PolicyError(f"{twice[0]} is there twice")
    return found


def _is_pair(given: Any) -> bool:
    return isinstance(given, tuple) and not isinstance(given, Provider) and len(given) == 2 and isinstance(given[1], Mapping)  # noqa: PLR2004


def _parsed(given: Any, folder: Path | None) -> Provider:
    if isinstance(given, Provider):
        return given
    if isinstance(given, str):
        name, options = given, {}
    elif isinstance(given, Mapping) and isinstance(given.get("name"), str):
        name, options = given["name"], {key: value for key, value in given.items() if key != "name"}
    elif _is_pair(given) and isinstance(given[0], str):
        name, options = given[0], dict(given[1])
    else:
        raise PolicyError(
            f'a provider is a name, or a table with a name, as in {{ name = "cpu" }}, and options, not {given!r:.60}'
        )
    if name in KINDS:
        return _short(name, KINDS[name], options, folder)
    known = name in _FULL
    if not known and (not name.endswith(SUFFIX) or name.lower() in _LOWER):
        raise PolicyError(f'there is no provider "{name:.60}": {nearest(_LOWER.get(name.lower(), name), [*KINDS, *_FULL])}')
    native = _natives(name, options)
    return Provider(name, native, native, threads=KINDS[_FULL[name]].threads if known else None)


def _short(name: str, kind: Kind, given: Mapping[str, Any], folder: Path | None) -> Provider:
    options: dict[str, str] = {}
    counted: dict[str, Any] = {}
    folders: list[Path] = []
    for key, value in given.items():
        if key == NATIVE:
            continue
        option = kind.options.get(key)
        if option is None:
            raise PolicyError(f'{name} has no option "{key!s:.60}": {nearest(key, [*kind.options, NATIVE])}')
        word = _word(f"{name}: {key}", option, value, folder)
        options |= {option.keys[0]: word} | dict.fromkeys(option.keys[1:], "1")
        if option.counts:
            counted[key] = word
        if option.folder:
            folders.append(Path(word))
    native = _natives(name, given.get(NATIVE, {}))
    return Provider(kind.name, options | native, counted | native, tuple(folders), kind.threads)


def _word(what: str, option: Option, value: Any, folder: Path | None) -> str:
    """The value of an option, as ONNX Runtime takes it."""
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


def _natives(name: str, given: Any) -> dict[str, str]:
    """Options by ONNX Runtime's names, as the text that it takes."""
    if not isinstance(given, Mapping):
        raise PolicyError(f"{name}: {NATIVE} is a table of ONNX Runtime's own options, not {given!r:.60}")
    if wrong := [key for key, value in given.items() if not isinstance(value, str | int | float | PathLike)]:
        raise PolicyError(f"{name}: {wrong[0]!s:.60}: expected text, a number, true or false")
    return {str(key): str(int(value)) if isinstance(value, bool) else str(value) for key, value in given.items()}


def listed(providers: Sequence[Provider]) -> str:
    """Their names, in a message."""
    return ", ".join(one.name for one in providers)


def schema() -> dict[str, Any]:
    """JSON Schema of a list of providers."""
    types = {bool: "boolean", int: "integer", str: "string", Path: "string"}
    tables = [
        {
            "type": "object",
            "properties": {
                "name": {"const": short, "description": kind.name},
                **{
                    key: {
                        "type": types[option.kind],
                        "description": option.meaning,
                        **({"enum": [*option.values]} if option.values else {}),
                    }
                    for key, option in kind.options.items()
                },
                NATIVE: {"type": "object", "description": "Options by ONNX Runtime's own names, unchecked."},
            },
            "required": ["name"],
            "additionalProperties": False,
        }
        for short, kind in KINDS.items()
    ]
    full = {"type": "string", "pattern": f"{SUFFIX}$"}
    other = {"type": "object", "properties": {"name": full}, "required": ["name"]}
    return {
        "type": "array",
        "minItems": 1,
        "items": {"anyOf": [{"enum": [*KINDS]}, full, *tables, other], "title": "provider"},
    }
