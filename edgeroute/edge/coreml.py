"""Core ML models, by coremltools. They are read everywhere and run on macOS."""

from __future__ import annotations

import json
import logging
import platform
import tempfile
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from shutil import copytree
from typing import Any, Literal, NamedTuple, TypeAlias, get_args

import numpy as np

from edgeroute.confidence.scores import Score
from edgeroute.edge.card import Array
from edgeroute.edge.model_file import ModelFile, first_line
from edgeroute.edge.picture import check_installed
from edgeroute.edge.tensors import shape_text
from edgeroute.errors import BadInput, ModelError, PolicyError, RuntimeMissing, nearest
from edgeroute.system.imports import imported, no_fork
from edgeroute.types import StopToken, TensorSpec

ComputeUnits: TypeAlias = Literal["all", "cpu", "cpu_and_gpu", "cpu_and_ne"]
SYSTEM = platform.system()
_UNITS = {"all": "ALL", "cpu": "CPU_ONLY", "cpu_and_gpu": "CPU_AND_GPU", "cpu_and_ne": "CPU_AND_NE"}
_DTYPES = {"FLOAT16": "float16", "FLOAT32": "float32", "DOUBLE": "float64", "INT32": "int32", "INT8": "int8"}
_NUMBERS = {"doubleType": "float64", "int64Type": "int64"}
_PICTURES = {"GRAYSCALE": ("uint8", ()), "RGB": ("uint8", (3,)), "BGR": ("uint8", (3,)), "GRAYSCALE_FLOAT16": ("float32", ())}
"""Colour space of an input -> the array that it is made of: dtype, channels. For BGR, too, it is RGB, which Core ML turns."""


class _Input(NamedTuple):
    """An input of the file."""

    spec: TensorSpec
    fits: Callable[[tuple[int, ...]], bool]
    """Whether it takes a tensor of this shape, where that is flexible."""
    sizes: str
    """Which it takes, in words."""
    most: int | None
    """So many rows it takes at a time, where that is flexible; None: any number."""
    convert: Callable[[Array], Any] | None
    """To what `predict` takes; None: that is the tensor."""


class CoreMLModel(ModelFile):
    """A .mlpackage or .mlmodel, with the card beside it if there is one. Loaded at the first run, or by `load()`.

    What it takes and gives is known on every system, once `load` was called; it runs on macOS, one input at a time.

    Args:
        path: the package, which is a folder, or the file.
        compute_units: what it may run on: "all", "cpu", "cpu_and_gpu", or "cpu_and_ne", the Neural Engine, from macOS 13.
        sha256: of the file, or of a package (`edgeroute.edge.card.sha256_of`); None: what the card says, unchecked where it
            says nothing.
        card: path of the card, where it is not beside the model.
        output: name of the output to read; None: the card's, else all of them.
        kind: what the outputs are, one of `edgeroute.confidence.KINDS`; None: the card's, else read by their form.
        labels: class index -> value; None: the card's.
        score: for this model, in place of the router's; None: the card's, if it names one.
        none_found: of a detector, see `edgeroute.confidence.boxes`; None: the card's, else "defer".

    Raises:
        PolicyError: there are no such compute units.
    """

    parallel = 1
    """Core ML takes one call of a loaded model at a time."""
    folders = True

    def __init__(
        self,
        path: str | Path,
        *,
        compute_units: ComputeUnits = "all",
        sha256: str | None = None,
        card: str | Path | None = None,
        output: str | None = None,
        kind: str | None = None,
        labels: Sequence[str] | None = None,
        score: str | Score | None = None,
        none_found: str | None = None,
    ) -> None:
        super().__init__(
            path, sha256=sha256, card=card, output=output, kind=kind, labels=labels, score=score, none_found=none_found
        )
        if compute_units not in get_args(ComputeUnits):
            raise PolicyError(f"compute_units: {nearest(str(compute_units), get_args(ComputeUnits))}")
        self.compute_units, self._units = compute_units, _UNITS[compute_units]
        self._flexible: dict[str, _Input] = {}
        self._convert: dict[str, Callable[[Array], Any]] = {}
        self._most: int | None = None
        self._one: Callable[[Any], Array] | None = None

    @property
    def settings(self) -> dict[str, Any]:
        """The compute units, which compute in different precision, and the output that is read."""
        return {"runtime": "coreml", "compute_units": self.compute_units, "output": self.output}

    def _open(self) -> Any:
        tools = _runtime()
        spec = self._spec()
        self._read(spec.description)
        if SYSTEM != "Darwin":
            raise RuntimeMissing(
                f"Core ML runs on macOS alone, and this is {SYSTEM}: {self.path} can be looked at here, and not run. "
                "Give this device the same model as .onnx or .tflite"
            )
        try:
            with tempfile.TemporaryDirectory() as folder, no_fork.lock:
                model = tools.models.MLModel(str(self._copied(Path(folder))), compute_units=tools.ComputeUnit[self._units])
        except Exception as e:  # Core ML's errors derive from Exception alone
            raise ModelError(f"Core ML cannot load {self.path}: {first_line(e)}") from e
        if model.__proxy__ is None:  # without an error
            version = spec.specificationVersion
            raise ModelError(f"Core ML cannot load {self.path}: it needs a newer macOS, its specification is version {version}")
        return _Session(model.predict, threading.Lock())

    def _spec(self) -> Any:
        """The description of the model, read without coremltools' own way, which writes to a package that it reads."""
        spec = imported("coremltools.proto.Model_pb2").Model()
        try:
            spec.ParseFromString((_root(self.path) if self.path.is_dir() else self.path).read_bytes())
        except Exception as e:  # protobuf's errors derive from Exception alone
            raise ModelError(f"{self.path} is no Core ML model: {first_line(e)}") from e
        return spec

    def _copied(self, folder: Path) -> Path:
        """A package where coremltools may write to it, which changes the file's times, and so makes of it another model."""
        return Path(copytree(self.path, folder / self.path.name)) if self.path.is_dir() else self.path

    def _read(self, description: Any) -> None:
        """What it takes and gives, from the file."""
        for what in ("functions", "state"):
            if len(getattr(description, what)):
                raise ModelError(
                    f"{self.path} has {what}, which edgeroute does not run: save a package of one function without state"
                )
        if not len(description.output):
            raise ModelError(f"{self.path} is no Core ML model: it has no outputs")
        try:
            inputs = [_input(feature) for feature in description.input]
            outputs = [_output(feature) for feature in description.output]
        except ValueError as e:
            raise ModelError(f"{self.path}: {e}") from e
        if any(one.convert is _picture for one in inputs):
            check_installed()
        self._describe([one.spec for one in inputs], outputs)
        self._flexible = {one.spec.name: one for one in inputs if -1 in one.spec.shape}
        self._convert = {one.spec.name: one.convert for one in inputs if one.convert is not None}
        limits = [one.most for one in self._flexible.values() if one.most is not None]
        self._most = min(limits) if limits and self._plan.batch == 0 else None
        self._one = self._plan.one

    def run(self, inputs: list[Any], cancel: StopToken | None = None) -> Array | dict[str, Array]:
        """Each input an array (or name -> array) without the batch axis -> outputs [n, ...]; a mapping if several."""
        if self._session is None:
            self.load()  # how many it takes is known only then
        most = self._most
        if most is None or len(inputs) <= most:
            return super().run(inputs, cancel)
        parts: list[Any] = [super(CoreMLModel, self).run(inputs[at : at + most], cancel) for at in range(0, len(inputs), most)]
        if not isinstance(parts[0], dict):
            return np.concatenate(parts)
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

    def run_one(self, x: Any, cancel: StopToken | None = None) -> Array | dict[str, Array]:
        """The same for one input."""
        session, prepare = self._session or self.load(), self._one
        if prepare is None or type(x) is dict:
            return self.run([x], cancel)
        return self._by_name(self._execute(session, self._names, {self.inputs[0].name: prepare(x)}, cancel))

    def _execute(self, session: Any, names: list[str], feed: dict[str, Array], cancel: StopToken | None) -> list[Array]:  # noqa: ARG002 - Core ML cannot be stopped
        for name, flexible in self._flexible.items():
            if not flexible.fits(feed[name].shape):
                raise BadInput(f"{name}: it takes {flexible.sizes}, got {shape_text(feed[name].shape)}")
        if self._convert:
            feed = {name: self._convert[name](tensor) if name in self._convert else tensor for name, tensor in feed.items()}
        try:
            with session.lock:
                out = session.predict(feed)
            return [_plain(out[name]) for name in names]
        except Exception as e:  # Core ML's errors derive from Exception alone
            raise self._run_error(e) from e


class _Session(NamedTuple):
    """A loaded model."""

    predict: Callable[[dict[str, Any]], Mapping[str, Any]]
    lock: threading.Lock
    """Held during a prediction."""


def _runtime() -> Any:
    logger = logging.getLogger("coremltools")
    logger.addFilter(_quiet)  # it warns of each library that it could convert from, and of what Linux lacks
    try:
        return imported("coremltools")
    except ImportError as e:
        raise RuntimeMissing("coremltools is not installed: pip install 'edgeroute[coreml]'") from e
    finally:
        logger.removeFilter(_quiet)


def _quiet(_: logging.LogRecord) -> bool:
    return False


def _root(package: Path) -> Path:
    """The file with the description in a package.

    Raises:
        ValueError: the package does not say which it is.
    """
    try:
        manifest = json.loads((package / "Manifest.json").read_bytes())
        path = package / "Data" / str(manifest["itemInfoEntries"][manifest["rootModelIdentifier"]]["path"])
    except (OSError, ValueError, LookupError, TypeError) as e:
        raise ValueError(f"its Manifest.json cannot be read ({type(e).__name__})") from e
    if not path.resolve().is_relative_to(package.resolve()):
        raise ValueError("its Manifest.json names a file outside")
    return path


def _input(feature: Any) -> _Input:
    """An input by the file's description.

    Raises:
        ValueError: it is none that can be run.
    """
    name, kind = feature.name, feature.type.WhichOneof("Type")
    if kind in _NUMBERS:
        return _Input(TensorSpec(name, _NUMBERS[kind], (1,)), _any, "", None, lambda tensor: tensor.item())
    if kind == "multiArrayType":
        array = feature.type.multiArrayType
        ranges, listed = _flexibility(array)
        spec = TensorSpec(name, _dtype(name, array), _shape([*array.shape], ranges, listed))
        return _flexible(spec, ranges, listed, None)
    if kind == "imageType":
        image = feature.type.imageType
        space = image.ColorSpace.Name(image.colorSpace)
        if space not in _PICTURES:
            raise ValueError(f"its input {name} is a picture of the colour space {space}, which has no array: convert it to RGB")
        dtype, channels = _PICTURES[space]
        sizes = image.imageSizeRange
        ranges, listed = [], []
        if image.WhichOneof("SizeFlexibility") == "imageSizeRange":
            ranges = [(1, 1), *((one.lowerBound, one.upperBound) for one in (sizes.heightRange, sizes.widthRange))]
            ranges += [(n, n) for n in channels]
        else:
            listed = [(1, one.height, one.width, *channels) for one in image.enumeratedSizes.sizes]
        shape = _shape([1, image.height, image.width, *channels], ranges, listed)
        return _flexible(TensorSpec(name, dtype, shape), ranges, listed, _picture)
    raise ValueError(f"its input {name} is a {kind}: edgeroute runs models that take arrays, pictures and numbers")


def _output(feature: Any) -> TensorSpec:
    name, kind = feature.name, feature.type.WhichOneof("Type")
    if kind == "multiArrayType":
        array = feature.type.multiArrayType
        return TensorSpec(name, _dtype(name, array), _shape([*array.shape], *_flexibility(array)))
    if kind == "dictionaryType":  # of a classifier: class -> probability
        return TensorSpec(name, "float32", (-1, -1))
    if kind in _NUMBERS or kind == "stringType":
        return TensorSpec(name, _NUMBERS.get(kind, "object"), (-1,))
    raise ValueError(f"its output {name} is a {kind}: convert the model with an array in its place")


def _dtype(name: str, array: Any) -> str:
    told = array.ArrayDataType.Name(array.dataType)
    if told not in _DTYPES:
        raise ValueError(f"{name} is an array of {told}, which edgeroute does not know")
    return _DTYPES[told]


def _flexibility(array: Any) -> tuple[list[tuple[int, int]], list[tuple[int, ...]]]:
    """(least, most) of each axis, and the shapes that are listed; both are empty where the shape is fixed."""
    kind = array.WhichOneof("ShapeFlexibility")
    ranges = [(one.lowerBound, one.upperBound) for one in array.shapeRange.sizeRanges] if kind == "shapeRange" else []
    return ranges, [tuple(one.shape) for one in array.enumeratedShapes.shapes] if kind == "enumeratedShapes" else []


def _shape(usual: list[int], ranges: list[tuple[int, int]], listed: list[tuple[int, ...]]) -> tuple[int, ...]:
    if ranges:
        return tuple(least if least == most else -1 for least, most in ranges)
    if listed:
        return tuple(sizes[0] if len({*sizes}) == 1 else -1 for sizes in zip(*listed, strict=True))
    return tuple(n if n > 0 else -1 for n in usual)


def _flexible(
    spec: TensorSpec, ranges: list[tuple[int, int]], listed: list[tuple[int, ...]], convert: Callable[[Array], Any] | None
) -> _Input:
    if listed:
        most = 1 if len({shape[0] for shape in listed if shape}) > 1 else None
        return _Input(spec, {*listed}.__contains__, " or ".join(map(shape_text, listed)), most, convert)
    if not ranges:
        return _Input(spec, _any, "", None, convert)

    def fits(shape: tuple[int, ...]) -> bool:
        return all(least <= n and (n <= most or most < 0) for n, (least, most) in zip(shape, ranges, strict=True))

    words = ", ".join(f"{a}" if a == b else f"{a} or more" if b < 0 else f"{a} to {b}" for a, b in ranges)
    return _Input(spec, fits, f"[{words}]", ranges[0][1] if ranges[0][1] > 0 else None, convert)


def _any(_: tuple[int, ...]) -> bool:
    return True


def _picture(tensor: Array) -> Any:
    """One picture [1, height, width] or [1, height, width, 3], as `predict` takes it."""
    return imported("PIL.Image").fromarray(tensor[0])


def _plain(value: Any) -> Any:
    """An output with a row for each input, as far as Core ML gives one without."""
    if isinstance(value, np.ndarray):
        return value
    return [value] if isinstance(value, dict) else np.array([value], object if isinstance(value, str) else None)
