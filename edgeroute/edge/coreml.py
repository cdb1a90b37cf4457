"""Core ML models, by coremltools: described on every system, and run on macOS."""

from __future__ import annotations

import logging
import platform
import tempfile
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from shutil import copytree
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeAlias, get_args

import numpy as np

from edgeroute.edge.input_checks_and_stacking import shape_text
from edgeroute.edge.model_card import Array
from edgeroute.edge.preprocessing import load_pillow
from edgeroute.edge.runtime_base import FileOptions, ModelFile, concatenate, first_line
from edgeroute.errors import BadInput, ModelError, PolicyError, RuntimeMissing, nearest
from edgeroute.system.late_imports_and_plugins import import_late, import_needed, no_fork
from edgeroute.system.untrusted_files import read_bytes, read_json
from edgeroute.types import StopToken, TensorSpec

if TYPE_CHECKING:
    from typing_extensions import Unpack

ComputeUnits: TypeAlias = Literal["all", "cpu", "cpu_and_gpu", "cpu_and_ne"]
SYSTEM = platform.system()
_UNITS = {"all": "ALL", "cpu": "CPU_ONLY", "cpu_and_gpu": "CPU_AND_GPU", "cpu_and_ne": "CPU_AND_NE"}
_DTYPES = {"FLOAT16": "float16", "FLOAT32": "float32", "DOUBLE": "float64", "INT32": "int32", "INT8": "int8"}
_NUMBERS = {"doubleType": "float64", "int64Type": "int64"}
# Colour space of an input -> dtype and channels of the array for it.
#
# For BGR the array is RGB, too: Core ML swaps the channels.
_PICTURES = {"GRAYSCALE": ("uint8", ()), "RGB": ("uint8", (3,)), "BGR": ("uint8", (3,)), "GRAYSCALE_FLOAT16": ("float32", ())}


class _Input(NamedTuple):
    """Input of the file, with the shapes that it accepts: any if neither ranges nor shapes are listed."""

    spec: TensorSpec
    ranges: list[tuple[int, int]]  # (Least, most) of each axis; a most below 0: any number
    listed: list[tuple[int, ...]]
    # Converts a tensor to the object that `predict` takes; None: that is the tensor itself.
    convert: Callable[[Array], Any] | None

    def fits(self, shape: tuple[int, ...]) -> bool:
        """Return True if the input accepts a tensor of this shape."""
        if self.listed:
            return shape in self.listed
        return all(least <= n and (n <= most or most < 0) for n, (least, most) in zip(shape, self.ranges, strict=False))

    @property
    def sizes(self) -> str:
        """The accepted shapes, as text."""
        if self.listed:
            return " or ".join(map(shape_text, self.listed))
        return "[" + ", ".join(f"{a}" if a == b else f"{a} or more" if b < 0 else f"{a} to {b}" for a, b in self.ranges) + "]"

    @property
    def most(self) -> int | None:
        """Most rows that the input accepts at a time; None: any number."""
        if self.listed:
            return 1 if len({shape[0] for shape in self.listed if shape}) > 1 else None
        return self.ranges[0][1] if self.ranges and self.ranges[0][1] > 0 else None


class CoreMLModel(ModelFile):
    """Edge model from a .mlpackage or .mlmodel, with the card beside it if there is one. Loaded at the first run, or by `load()`.

    `load` reads its inputs and outputs on every system; it runs on macOS only, one call at a time.

    Args:
        path: the package, which is a folder, or the file.
        compute_units: hardware that it may run on: "all", "cpu", "cpu_and_gpu", or "cpu_and_ne" (the Neural Engine, from macOS
            13).
        file: arguments of `edgeroute.edge.runtime_base.ModelFile`: sha256, card, output, kind, labels, score, none_found.

    Raises:
        PolicyError: there are no such compute units.
    """

    parallel = 1  # one, as Core ML takes one call of a loaded model at a time
    folders = True

    def __init__(self, path: str | Path, *, compute_units: ComputeUnits = "all", **file: Unpack[FileOptions]) -> None:
        super().__init__(path, **file)
        if compute_units not in get_args(ComputeUnits):
            raise PolicyError(f"compute_units: {nearest(str(compute_units), get_args(ComputeUnits))}")
        self.compute_units, self._units = compute_units, _UNITS[compute_units]
        self._flexible: dict[str, _Input] = {}
        self._convert: dict[str, Callable[[Array], Any]] = {}
        self._most: int | None = None

    @property
    def settings(self) -> dict[str, Any]:
        """The runtime, the compute units, which compute in different precision, and the output that is read."""
        return {"runtime": "coreml", "compute_units": self.compute_units, "output": self.output}

    def _open(self) -> Any:
        """Read the model's inputs and outputs; then, on macOS alone, load it from a temporary copy, which is deleted at once.

        Raises:
            RuntimeMissing: this is not macOS, or coremltools is not installed.
            ModelError: the file is no Core ML model, or cannot be loaded.
        """
        tools = _runtime()
        spec = self._spec()
        self._read(spec.description)
        if SYSTEM != "Darwin":
            raise RuntimeMissing(f"Core ML runs on macOS alone, and this is {SYSTEM}: use {self.path} as .onnx or .tflite here")
        try:
            with tempfile.TemporaryDirectory() as folder, no_fork.lock:
                model = tools.models.MLModel(str(self._copy(Path(folder))), compute_units=tools.ComputeUnit[self._units])
        except Exception as e:  # Core ML's errors derive from Exception alone
            raise ModelError(f"Core ML cannot load {self.path}: {first_line(e)}") from e
        if model.__proxy__ is None:  # without an error
            version = spec.specificationVersion
            raise ModelError(f"Core ML cannot load {self.path}: it needs a newer macOS, its specification is version {version}")
        return _Session(model.predict, threading.Lock())

    def _spec(self) -> Any:
        """Return the model's description, read from its file alone, as coremltools writes to a package that it reads.

        Raises:
            ModelError: the file is no Core ML model.
        """
        spec = import_late("coremltools.proto.Model_pb2").Model()
        try:
            spec.ParseFromString(read_bytes(_root(self.path) if self.path.is_dir() else self.path))
        except Exception as e:  # protobuf's errors derive from Exception alone
            raise ModelError(f"{self.path} is no Core ML model: {first_line(e)}") from e
        return spec

    def _copy(self, folder: Path) -> Path:
        """Copy a package to this folder and return the copy's path; a file is returned as it is.

        coremltools writes to a package, which would change the file's times, and so make another model of it.
        """
        return Path(copytree(self.path, folder / self.path.name)) if self.path.is_dir() else self.path

    def _read(self, description: Any) -> None:
        """Store the inputs and outputs from the file's description.

        Loads Pillow if an input is a picture.

        Raises:
            ModelError: it has functions, states, no outputs, or inputs that edgeroute cannot run.
        """
        for what in ("functions", "state"):
            if len(getattr(description, what)):
                raise ModelError(f"{self.path} has {what}, which edgeroute does not run: save one function without state")
        if not len(description.output):
            raise ModelError(f"{self.path} is no Core ML model: it has no outputs")
        try:
            inputs = [_input(feature) for feature in description.input]
            outputs = [_output(feature) for feature in description.output]
        except ValueError as e:
            raise ModelError(f"{self.path}: {e}") from e
        if any(entry.convert is _pillow_image for entry in inputs):
            load_pillow()
        self._describe([entry.spec for entry in inputs], outputs)
        self._flexible = {entry.spec.name: entry for entry in inputs if -1 in entry.spec.shape}
        self._convert = {entry.spec.name: entry.convert for entry in inputs if entry.convert is not None}
        limits = [entry.most for entry in self._flexible.values() if entry.most is not None]
        self._most = min(limits) if limits and self._plan.batch == 0 else None

    def _rows(self, inputs: list[Any], cancel: StopToken | None) -> list[Array]:
        """Run the model on these inputs, in several calls if it takes fewer at a time; return its outputs, joined."""
        most = self._most or len(inputs)
        if len(inputs) <= most:
            return super()._rows(inputs, cancel)
        parts = [super(CoreMLModel, self)._rows(inputs[start : start + most], cancel) for start in range(0, len(inputs), most)]
        return [concatenate(rows) for rows in zip(*parts, strict=True)]

    def run_one(self, x: Any, cancel: StopToken | None = None) -> Array | dict[str, Array]:
        """Run one input, by a fast path if it is the model's only one; return as `run`. Loads the model if need be.

        Raises:
            BadInput: it does not fit.
            ModelError: the model cannot be loaded, or the run failed.
        """
        session, prepare = self._session or self.load(), self._plan.one
        if prepare is None or type(x) is dict:
            return self.run([x], cancel)
        return self._by_name(self._execute(session, self._names, {self.inputs[0].name: prepare(x)}, cancel))

    def _execute(self, session: Any, names: list[str], feed: dict[str, Array], cancel: StopToken | None) -> list[Array]:  # noqa: ARG002 - Core ML cannot be stopped
        """Run the model on tensors by name, one call at a time; return the outputs of these names. A stop request is ignored.

        Raises:
            BadInput: a tensor has a shape that the model does not accept.
            ModelError: the run failed.
        """
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
    """Loaded model and the lock that is held during a prediction."""

    predict: Callable[[dict[str, Any]], Mapping[str, Any]]
    lock: threading.Lock  # held during a prediction


def _runtime() -> Any:
    """Import and return coremltools, without the warnings that it logs at its import.

    Raises:
        RuntimeMissing: it is not installed.
    """
    logger, none = logging.getLogger("coremltools"), logging.Filter("none of its records are of this logger")
    logger.addFilter(none)  # it warns of each library that it could convert from, and of what Linux lacks
    try:
        return import_needed("coremltools", "coremltools is not installed: pip install 'edgeroute[coreml]'")
    finally:
        logger.removeFilter(none)


def _root(package: Path) -> Path:
    """Return the path of the file with the model's description, which a package's Manifest.json names.

    Raises:
        ValueError: the manifest cannot be read, or names no file inside the package.
    """
    try:
        manifest = read_json(package / "Manifest.json")
        path = package / "Data" / str(manifest["itemInfoEntries"][manifest["rootModelIdentifier"]]["path"])
    except (OSError, ValueError, LookupError, TypeError) as e:
        raise ValueError(f"its Manifest.json cannot be read ({type(e).__name__})") from e
    if not path.resolve().is_relative_to(package.resolve()):
        raise ValueError("its Manifest.json names a file outside")
    return path


def _input(feature: Any) -> _Input:
    """Return an array, picture or number among the inputs, with the shapes that it accepts, from the file's description.

    Raises:
        ValueError: it is of a type that edgeroute cannot run.
    """
    name, kind = feature.name, feature.type.WhichOneof("Type")
    if kind in _NUMBERS:
        return _Input(TensorSpec(name, _NUMBERS[kind], (1,)), [], [], lambda tensor: tensor.item())
    if kind == "multiArrayType":
        array = feature.type.multiArrayType
        ranges, listed = _flexibility(array)
        spec = TensorSpec(name, _dtype(name, array), _shape([*array.shape], ranges, listed))
        return _Input(spec, ranges, listed, None)
    if kind == "imageType":
        image = feature.type.imageType
        space = image.ColorSpace.Name(image.colorSpace)
        if space not in _PICTURES:
            raise ValueError(f"its input {name} is a picture of the colour space {space}, which has no array: convert it to RGB")
        dtype, channels = _PICTURES[space]
        sizes = image.imageSizeRange
        ranges, listed = [], []
        if image.WhichOneof("SizeFlexibility") == "imageSizeRange":
            ranges = [(1, 1), *((size.lowerBound, size.upperBound) for size in (sizes.heightRange, sizes.widthRange))]
            ranges += [(n, n) for n in channels]
        else:
            listed = [(1, size.height, size.width, *channels) for size in image.enumeratedSizes.sizes]
        shape = _shape([1, image.height, image.width, *channels], ranges, listed)
        return _Input(TensorSpec(name, dtype, shape), ranges, listed, _pillow_image)
    raise ValueError(f"its input {name} is a {kind}: edgeroute runs models that take arrays, pictures and numbers")


def _output(feature: Any) -> TensorSpec:
    """Return the specification of an output from the file's description.

    Raises:
        ValueError: it is of a type that edgeroute cannot read.
    """
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
    """Return the numpy dtype of an array's elements.

    Raises:
        ValueError: there is none.
    """
    kind = array.ArrayDataType.Name(array.dataType)
    if kind not in _DTYPES:
        raise ValueError(f"{name} is an array of {kind}, which edgeroute does not know")
    return _DTYPES[kind]


def _flexibility(array: Any) -> tuple[list[tuple[int, int]], list[tuple[int, ...]]]:
    """Return ((least, most) of each axis, list of shapes) that an array may have; both are empty if its shape is fixed."""
    kind = array.WhichOneof("ShapeFlexibility")
    ranges = [(part.lowerBound, part.upperBound) for part in array.shapeRange.sizeRanges] if kind == "shapeRange" else []
    return ranges, [tuple(part.shape) for part in array.enumeratedShapes.shapes] if kind == "enumeratedShapes" else []


def _shape(usual: list[int], ranges: list[tuple[int, int]], listed: list[tuple[int, ...]]) -> tuple[int, ...]:
    """Return a shape with -1 for each axis that may vary, by the ranges, else the listed shapes, else the zeros in `usual`."""
    if ranges:
        return tuple(least if least == most else -1 for least, most in ranges)
    if listed:
        return tuple(sizes[0] if len({*sizes}) == 1 else -1 for sizes in zip(*listed, strict=True))
    return tuple(n if n > 0 else -1 for n in usual)


def _pillow_image(tensor: Array) -> Any:
    """Return the Pillow image of an array [1, height, width] or [1, height, width, 3], as `predict` takes it."""
    return import_late("PIL.Image").fromarray(tensor[0])


def _plain(value: Any) -> Any:
    """Return an output with a row for each input, where Core ML returns a bare value for a single one."""
    if isinstance(value, np.ndarray):
        return value
    return [value] if isinstance(value, dict) else np.array([value], object if isinstance(value, str) else None)
