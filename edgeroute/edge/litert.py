"""TFLite models on LiteRT or tflite-runtime."""

from __future__ import annotations

import ctypes
import os
import sys
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from hashlib import sha256 as digest
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path, PurePath
from typing import Any, Literal, NamedTuple

import numpy as np

from edgeroute.confidence.scores import Score
from edgeroute.edge.backend import TURN, current_turn
from edgeroute.edge.card import Array
from edgeroute.edge.model_file import ModelFile, first_line
from edgeroute.edge.tensors import Plain, Prepare
from edgeroute.edge.tflite_format import MOST_BYTES, Contents, Signature, contents
from edgeroute.errors import BadInput, ModelError, RuntimeMissing
from edgeroute.system.imports import imported, no_fork
from edgeroute.types import StopToken, TensorSpec

# Delegates of TFLite: libraries that run a model's operators on a device of their own.

_EDGE_TPU_LIBRARY = {"darwin": "libedgetpu.1.dylib", "win32": "edgetpu.dll"}.get(sys.platform, "libedgetpu.so.1")
_INSTALL = {_EDGE_TPU_LIBRARY: " (of Coral: apt-get install libedgetpu1-std)"}


def shown(delegate: str) -> str:
    """Its name without folders, which differ between devices."""
    return PurePath(delegate).name


def loaded(module: Any, delegate: str, options: Mapping[str, Any]) -> Any:
    """The delegate of that name or path.

    Args:
        module: the runtime's module with `load_delegate`.
        delegate: "edgetpu", or a library.
        options: for it.

    Raises:
        ModelError: there is no such library, it is no delegate, or it finds no device.
    """
    library = _EDGE_TPU_LIBRARY if delegate == "edgetpu" else delegate
    try:
        there = ctypes.CDLL(library)  # first by itself: the runtime's own error comes with others from a finaliser
    except OSError as e:
        raise ModelError(
            f"the delegate {library} cannot be loaded: {first_line(e)}. Install it{_INSTALL.get(library, '')}, give its absolute "
            "path, or leave delegate out"
        ) from e
    if not hasattr(there, "tflite_plugin_create_delegate"):
        raise ModelError(f"{library} is a library, and no delegate of TFLite: it has no tflite_plugin_create_delegate")
    try:
        return module.load_delegate(library, dict(options))
    except (ValueError, RuntimeError) as e:
        told = " ".join(str(e).split()).removeprefix(f"Failed to load delegate from {library}").strip()
        raise ModelError(f"the delegate {library} does not begin: {told or 'it finds no device, or takes other options'}") from e


# Interpreters of one .tflite model: each serves one run at a time, and waits for the next.

MOST_IDLE = 16
"""So many interpreters wait for a run; each has the model's activations, and XNNPACK's copy of its weights."""
_QUANTISED = {"int8", "uint8", "int16"}


class Port(NamedTuple):
    """An input or output of the model."""

    name: str
    number: int
    dtype: str
    shape: tuple[int, ...]
    """-1 for a dynamic axis."""
    begun: tuple[int, ...]
    """The shape that a new interpreter has."""
    scale: float
    zero: int
    """What is in the tensor is quantised: a number is (element - zero) * scale. Without a scale, 0, it is what it says."""

    @classmethod
    def of(cls, name: str, details: Mapping[str, Any]) -> Port:
        """Of what an interpreter says of a tensor."""
        shape = tuple(map(int, details["shape"]))
        signature = tuple(map(int, details.get("shape_signature", ())))
        dtype = np.dtype(details["dtype"]).name
        scale, zero = details["quantization"] if dtype in _QUANTISED else (0.0, 0)
        return cls(name, int(details["index"]), dtype, signature or shape, shape, float(scale), int(zero))

    def taken(self, tensor: Array) -> Array:
        """The model's tensor: numbers are quantised."""
        return self.quantised(tensor) if self.scale and tensor.dtype.kind == "f" else tensor

    def quantised(self, numbers: Array) -> Array:
        """Elements for these numbers; what is out of range becomes the nearest.

        Raises:
            BadInput: one is none.
        """
        if not np.isfinite(numbers).all():
            raise BadInput(f"{self.name}: the input holds NaN or infinity")
        limits = np.iinfo(self.dtype)
        elements: Array = np.rint(numbers / np.float32(self.scale)) + self.zero
        return np.clip(elements, limits.min, limits.max).astype(self.dtype)

    def real(self, elements: Array) -> Array:
        """What an output says, in numbers."""
        return np.subtract(elements, self.zero, dtype=np.float32) * np.float32(self.scale) if self.scale else elements


class FloatsOrElements:
    """Prepares a quantised input: the caller gives floats, which are quantised, or elements in the model's own dtype.

    Args:
        port: the input.
        spec: as it is described.
        batch: its batch axis; None: it has none.
    """

    def __init__(self, port: Port, spec: TensorSpec, batch: int | None = 0) -> None:
        self._port, self._axis = port, batch
        self._own = Plain(TensorSpec(spec.name, port.dtype, spec.shape), batch)
        self._floats = Plain(TensorSpec(spec.name, "float32", spec.shape), batch)
        self._described = self._own if spec.dtype == port.dtype else self._floats
        self._dtype = np.dtype(port.dtype)

    def one(self, x: Any) -> Array:
        """The tensor of one input.

        Raises:
            BadInput: it does not fit.
        """
        if type(x) is np.ndarray and x.dtype == self._dtype:
            return self._own.one(x)
        return self([x])

    def __call__(self, inputs: list[Any]) -> Array:
        """The tensor of several inputs.

        Raises:
            BadInput: as `stack`.
        """
        kinds = set(map(_dtype, inputs))
        if kinds == {self._dtype}:
            return self._own(inputs)
        if self._dtype in kinds:  # some are the one, and some the other
            return np.concatenate([self([x]) for x in inputs], axis=self._axis or 0)
        floats = kinds and all(kind is not None and kind.kind == "f" for kind in kinds)
        return self._port.taken((self._floats if floats else self._described)(inputs))


def _dtype(x: Any) -> np.dtype[Any] | None:
    """As numpy sees it; None: it is no array."""
    try:
        return x.dtype if isinstance(x, np.ndarray) else np.asarray(x).dtype
    except ValueError:  # lists of different lengths
        return None


class Worker:
    """One interpreter.

    Args:
        interpreter: of the runtime.
        inputs, outputs: of the model.
        runner: runs a signature that is not the main graph's; None: it is.
        ready: whether its tensors are allocated.
    """

    def __init__(
        self, interpreter: Any, inputs: Sequence[Port], outputs: Sequence[Port], runner: Any = None, *, ready: bool = True
    ) -> None:
        self.interpreter, self.runner = interpreter, runner
        self.inputs, self.outputs = tuple(inputs), {port.name: port for port in outputs}
        self.set, self.invoke, self.get = interpreter.set_tensor, interpreter.invoke, interpreter.get_tensor
        self.shapes = [port.begun if ready else () for port in inputs]
        self.step, self.pid, self.lock = 0, os.getpid(), threading.Lock()

    def run(self, names: Sequence[str], tensors: Sequence[Array]) -> list[Array]:
        """Runs the model's tensors, in the order of its inputs. -> the outputs of these names.

        Raises:
            ValueError, RuntimeError: it failed.
        """
        if self.runner is not None:
            out = self.runner(**{port.name: tensor for port, tensor in zip(self.inputs, tensors, strict=True)})
            return [self.outputs[name].real(out[name]) for name in names]
        shapes = [tensor.shape for tensor in tensors]
        if shapes != self.shapes:
            self.resize(shapes)
        for port, tensor in zip(self.inputs, tensors, strict=True):
            self.set(port.number, tensor)
        self.invoke()
        ports = [self.outputs[name] for name in names]
        return [port.real(self.get(port.number)) for port in ports]

    def resize(self, shapes: list[tuple[int, ...]]) -> None:
        """Gives the inputs these shapes, as far as the model lets them be others."""
        for port, shape, now in zip(self.inputs, shapes, self.shapes, strict=True):
            if shape != now:
                self.interpreter.resize_tensor_input(port.number, shape, strict=True)
        self.interpreter.allocate_tensors()
        self.shapes = shapes


class Interpreters:
    """The interpreters of one model. Any number of runs go at a time: one that finds none waiting makes its own.

    Args:
        make: makes one.
        first: one that is there already.
        resets: whether a run begins anew, since tensors of the model keep what the run before it left there.
    """

    def __init__(self, make: Callable[[], Worker], first: Worker, *, resets: bool) -> None:
        self._make, self._inputs, self.resets = make, first.inputs, resets
        self.idle: deque[Worker] = deque([first], maxlen=MOST_IDLE)  # taking and putting back are atomic

    def tensors(self, feed: Mapping[str, Array]) -> list[Array]:
        """The model's tensors of these by name.

        Raises:
            BadInput: one has numbers that cannot be quantised.
            KeyError: an input is missing.
        """
        return [port.taken(feed[port.name]) for port in self._inputs]

    def new(self) -> Worker:
        """One more."""
        with no_fork.lock:
            return self._make()

    def take(self) -> Worker:
        """One that no other run has."""
        try:
            worker = self.idle.pop()
        except IndexError:
            return self.new()
        if self.resets:
            worker.interpreter.reset_all_variables()
        return worker


RUNTIMES = {"litert": "ai_edge_litert", "tflite": "tflite_runtime"}
"""Runtime -> its package, the one to be preferred first."""
_NAMES = {"litert": "LiteRT", "tflite": "tflite-runtime"}
BUILT_IN = {"none", "xnnpack"}
"""Delegates that are no libraries."""
_EDGE_TPU = "edgetpu-custom-op"


class _Place(NamedTuple):
    """How far a session is: the interpreter that is its own, and how many runs it had."""

    worker: Worker
    step: int


class LiteRTModel(ModelFile):
    """A .tflite file, with the card beside it if there is one. Loaded at the first run, or by `load()`.

    It runs on LiteRT or on tflite-runtime, whichever is installed. A quantised input takes floats, which are quantised, or the
    model's own dtype; a quantised output is given in float32.

    Args:
        path: the model file.
        runtime: "litert" or "tflite"; None: LiteRT, or else tflite-runtime.
        threads: for one run; more than one slows a busy device down.
        delegate: what runs the operators: "xnnpack", "edgetpu", "none" for the runtime's plain kernels, or a library, as the
            system finds it or by its absolute path; or several. None: the runtime's own choice, which is XNNPACK.
        delegate_options: for the delegates that are libraries.
        on_downgrade: what it means that a delegate is not there, or runs no operator: an error, or a note in `downgraded`.
        signature: the one to run of a model with several; None: its only one, or `serving_default`.
        sha256: of the file; None: what the card says, unchecked where it says nothing.
        card: path of the card, where it is not beside the model.
        output: name of the output to read; None: the card's, else all of them.
        kind: what the outputs are, one of `edgeroute.confidence.KINDS`; None: the card's, else read by their form.
        labels: class index -> value; None: the card's.
        score: for this model, in place of the router's; None: the card's, if it names one.
        none_found: of a detector, see `edgeroute.confidence.boxes`; None: the card's, else "defer".
    """

    def __init__(
        self,
        path: str | Path,
        *,
        runtime: Literal["litert", "tflite"] | None = None,
        threads: int = 1,
        delegate: str | Sequence[str] | None = None,
        delegate_options: Mapping[str, str | int | float | bool] | None = None,
        on_downgrade: Literal["error", "record"] = "error",
        signature: str | None = None,
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
        if runtime not in (None, *RUNTIMES):
            raise ValueError(f"runtime is one of {', '.join(RUNTIMES)}, not {runtime!r}")
        if on_downgrade not in ("error", "record"):
            raise ValueError(f"on_downgrade is error or record, not {on_downgrade!r}")
        self.runtime, self.threads, self.on_downgrade, self.signature = runtime, threads, on_downgrade, signature
        listed = [] if delegate is None else [delegate] if isinstance(delegate, str | os.PathLike) else delegate
        self.delegates = tuple(os.fspath(one) for one in listed)
        self.delegate_options = dict(delegate_options or {})
        self.parallel = None if set(self.delegates) <= BUILT_IN else 1
        """A device that a delegate drives has one model's run at a time."""
        self.stateful = False
        """Whether it keeps a state from one input to the next, once it is loaded: it runs in a session only."""
        self._used: tuple[str, ...] = self.delegates
        self._prepare: Any = None
        self._quantised: Port | None = None
        """The only input, if it is quantised."""
        self._stream = object()

    @property
    def settings(self) -> dict[str, Any]:
        """The runtime, the delegates that it really has, the signature and the output. It is loaded if it may be downgraded.

        Threads are none of this: they change the order of sums, and so the last digits at most.
        """
        if self.on_downgrade == "record" and self.delegates:
            self.load()
        return {
            "runtime": self.runtime or _installed() or "litert", "delegates": [shown(one) for one in self._used],
            "delegate_options": self.delegate_options, "signature": self.signature, "output": self.output,
        }  # fmt: skip

    def _load(self) -> Any:
        with suppress(OSError):  # to be said when it is read
            if (size := self.path.stat().st_size) > MOST_BYTES and self.path.is_file():
                raise ModelError(f"{self.path} has {size:,} bytes, and a .tflite file has at most {MOST_BYTES:,}")
        return super()._load()

    def _open(self) -> Interpreters:
        name, module = _runtime(self.runtime)
        try:
            data = self.path.read_bytes()
            if digest(data).hexdigest() != self.fingerprint:
                raise ModelError(f"{self.path} was replaced while it was loaded: load it again")
            found = contents(data)
            self._check(name, found)
            signature = self._signature(found.signatures)
            first = self._worker(module, data, found, signature)
        except (OSError, MemoryError, ValueError, RuntimeError) as e:
            if isinstance(e, ModelError):
                raise
            raise ModelError(f"{_NAMES[name]} cannot load {self.path}: {first_line(e)}") from e
        self._describe_ports(first)
        self.stateful = found.resources
        if self.stateful:
            self._plan.size = 1
        short = not (self.stateful or found.variables or first.runner) and len(self._names) == len(first.inputs) == 1
        self._prepare = self._plan.one if short else None
        self._quantised = first.inputs[0] if short and first.inputs[0].scale else None
        return Interpreters(lambda: self._worker(module, data, found, signature), first, resets=found.variables)

    def _check(self, runtime: str, found: Contents) -> None:
        """Refuses what this runtime would compute wrong, or not at all."""
        if runtime == "tflite" and found.dynamic_range and _version("tflite-runtime") < (2, 15):
            raise ModelError(
                f"{self.path} has weights in int8 and activations in float ({', '.join(found.dynamic_range)}), which this "
                "tflite-runtime computes wrong: quantise it statically, or use LiteRT, which computes it right"
            )
        if found.largest > (memory := _memory()):
            raise ModelError(f"{self.path} has a tensor of {found.largest:,} bytes, and this device a memory of {memory:,}")
        if _EDGE_TPU in found.custom and not self.parallel:
            raise ModelError(
                f'{self.path} is compiled for the Edge TPU: give delegate="edgetpu", or the model that it was made from'
            )

    def _signature(self, there: Sequence[Signature]) -> Signature | None:
        """The one to run; None: the file names none."""
        keys = [one.key for one in there]
        asked = self.signature or (keys[0] if len(keys) == 1 else "serving_default" if keys else None)
        if asked is None:
            return None
        if asked not in keys:
            which = f"none of the name {self.signature!r}" if self.signature else "several: say which by signature="
            raise ModelError(f"{self.path} has {which}: its signatures are {', '.join(keys) or 'not named'}")
        return there[keys.index(asked)]

    def _worker(self, module: Any, data: bytes, found: Contents, signature: Signature | None) -> Worker:
        """A new interpreter."""
        used, libraries, lacks = [], [], ""
        for one in self.delegates:
            made, told = (None, "") if one in BUILT_IN else self._library(module, one)
            lacks = lacks or told
            libraries += [] if made is None else [made]
            used += [] if told else [one]
        options: dict[str, Any] = {"num_threads": self.threads}
        if "none" in used:
            options["experimental_op_resolver_type"] = module.OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES
        with no_fork.lock:
            interpreter = module.Interpreter(model_content=data, experimental_delegates=libraries or None, **options)
            idle = bool(libraries) and not _delegated(interpreter, found)
            ready = _allocated(interpreter)
        if idle or ("xnnpack" in used and not _delegated(interpreter, found)):
            used = ["none"] if "none" in used else []
            lacks = f"{', '.join(map(shown, self.delegates))} runs none of the operators of {self.path}"
            if self.on_downgrade == "error":
                raise ModelError(f"{lacks}: compile the model for it, or leave the delegate out")
        self._used, self.downgraded = tuple(used), f"{lacks}; running on the CPU" if lacks else None
        return _wired(interpreter, signature, ready=ready)

    def _library(self, module: Any, delegate: str) -> tuple[Any, str]:
        """A delegate, or why there is none, where it may be run without."""
        try:
            return loaded(module, delegate, self.delegate_options), ""
        except ModelError as e:
            if self.on_downgrade == "error":
                raise
            return None, str(e)

    def _describe_ports(self, worker: Worker) -> None:
        """Takes what the file's tensors are; a quantised one takes what its card says, or floats as well as its own dtype."""
        states = {one.input for one in self.card.state}
        ports = {port.name: port for port in worker.inputs}

        def spec(port: Port) -> TensorSpec:
            if np.dtype(port.dtype).kind not in "biuf" and (port.name in ports or self.output in (None, port.name)):
                raise ModelError(f"{self.path}: its {port.name} is of the type {port.dtype}, which is not supported")
            told = None if port.name in states else self.card.of(port.name)
            if not port.scale or (told is not None and told.dtype == port.dtype):
                return TensorSpec(port.name, port.dtype, port.shape)
            pixels = port.dtype == "uint8" and port.name in ports and port.name not in states and (told is None or not told.dtype)
            return TensorSpec(port.name, "uint8" if pixels else "float32", port.shape)

        def prepare(spec: TensorSpec, batch: int | None) -> Prepare:
            port, told = ports[spec.name], self.card.of(spec.name)
            return FloatsOrElements(port, spec, batch) if port.scale and (told is None or not told.dtype) else Plain(spec, batch)

        self._describe([spec(port) for port in worker.inputs], [spec(port) for port in worker.outputs.values()], prepare)

    def run_one(self, x: Any, cancel: StopToken | None = None) -> Array | dict[str, Array]:
        """As `run` of one input."""
        session, prepare = self._session or self.load(), self._prepare
        if prepare is None or type(x) is dict or (cancel is not None and cancel.asked):
            return self.run([x], cancel)
        tensor = prepare(x)
        if self._quantised is not None:
            tensor = self._quantised.taken(tensor)
        try:  # the usual case, by the short way
            worker = session.take()
            port, read = worker.inputs[0], worker.outputs[self._names[0]]
            if worker.shapes[0] != tensor.shape:
                worker.resize([tensor.shape])
            worker.set(port.number, tensor)
            worker.invoke()
            out: Array = worker.get(read.number)
            session.idle.append(worker)
            return read.real(out) if read.scale else out
        except (RuntimeError, ValueError, MemoryError) as e:
            raise self._run_error(e) from e

    def _execute(self, session: Interpreters, names: list[str], feed: dict[str, Array], cancel: StopToken | None) -> list[Array]:
        if cancel is not None and cancel.asked:
            raise ModelError(f"{self.name} was stopped before it began")
        turn = current_turn(self.name) if self.stateful else TURN.get() if session.resets else None
        try:
            tensors = session.tensors(feed)
        except KeyError as e:
            raise ModelError(f"{self.name} failed to run: there is no input {e}") from e
        try:
            if turn is None:
                worker = session.take()
                out = worker.run(names, tensors)
                session.idle.append(worker)
                return out
            worker, step = turn.states.get(self._stream) or _Place(session.new(), 0)
            self._advance(worker, step)
            out = worker.run(names, tensors)
        except (RuntimeError, ValueError, MemoryError) as e:
            raise self._run_error(e) from e
        if cancel is None or not cancel.asked:
            turn.states[self._stream] = _Place(worker, step + 1)
        return out

    def _advance(self, worker: Worker, step: int) -> None:
        """Takes the next step of a session. Its interpreter cannot go back, where a run that does not count has moved it on."""
        with worker.lock:
            here = worker.pid == os.getpid() or (self.threads == 1 and not self.parallel)
            if worker.step != step or not here:
                raise ModelError(
                    f"{self.name} has gone on with a run that was left behind, at a deadline, say, and its state cannot be put "
                    "back: begin the stream anew by the session's reset()"
                )
            worker.step += 1


def _found(package: str) -> bool:
    try:
        return find_spec(package) is not None
    except (ImportError, ValueError):
        return False


def _installed() -> str | None:
    """The runtime that is there, LiteRT if both are."""
    return next((name for name, package in RUNTIMES.items() if _found(package)), None)


def _runtime(asked: str | None) -> tuple[str, Any]:
    """A runtime's name, and the module with its interpreter."""
    name = asked or _installed()
    if name is None or not _found(RUNTIMES[name]):
        what = "neither LiteRT nor tflite-runtime is" if name is None else f"{_NAMES[name]} is not"
        raise RuntimeMissing(f"{what} installed: pip install 'edgeroute[{name or 'litert'}]'")
    if name == "tflite" and int(np.__version__.partition(".")[0]) > 1:
        raise RuntimeMissing(
            f"tflite-runtime runs with numpy 1 only, and numpy {np.__version__} is installed: pip install 'numpy<2', or LiteRT "
            "in its place, pip install 'edgeroute[litert]'"
        )
    try:
        return name, imported(f"{RUNTIMES[name]}.interpreter")
    except ImportError as e:
        raise RuntimeMissing(f"{_NAMES[name]} is installed, and cannot be imported: {first_line(e)}") from e


def _memory() -> int:
    """Of this device, bytes; where it is not known, more than there can be."""
    if sys.platform != "win32":
        with suppress(OSError, ValueError):
            return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return 1 << 48


def _version(package: str) -> tuple[int, ...]:
    """Its first two numbers; (0,): it is not known."""
    try:
        return tuple(int(part) for part in metadata.version(package).split(".")[:2])
    except (metadata.PackageNotFoundError, ValueError):
        return (0,)


def _delegated(interpreter: Any, found: Contents) -> bool:
    """Whether a delegate has taken operators: it adds nodes of its own behind those of the file."""
    details = getattr(interpreter, "_get_ops_details", None)
    return details is None or len(details()) > found.operators


def _allocated(interpreter: Any) -> bool:
    """Allocates its tensors. -> whether it could: in some models axes of any size are to be given other sizes first.

    Raises:
        RuntimeError, ValueError: it cannot, and there are none.
    """
    try:
        interpreter.allocate_tensors()
    except (RuntimeError, ValueError):
        if not any(-1 in one["shape_signature"] for one in interpreter.get_input_details()):
            raise
        return False
    return True


def _wired(interpreter: Any, signature: Signature | None, *, ready: bool) -> Worker:
    """An interpreter with the names of its inputs and outputs."""
    if signature is None or not signature.subgraph:
        told = ({}, {}) if signature is None else (signature.inputs, signature.outputs)
        inputs, outputs = map(_ports, (interpreter.get_input_details(), interpreter.get_output_details()), told)
        return Worker(interpreter, inputs, outputs, ready=ready)
    runner = interpreter.get_signature_runner(signature.key)
    ways = (runner.get_input_details(), runner.get_output_details())
    inputs, outputs = ([Port.of(name, one) for name, one in way.items()] for way in ways)
    return Worker(interpreter, inputs, outputs, runner)


def _ports(details: Sequence[Mapping[str, Any]], told: Mapping[str, int]) -> list[Port]:
    """Inputs or outputs by the names of the signature, or else of the tensors, of which several may have one."""
    names, ports = {number: name for name, number in told.items()}, dict[str, Port]()
    for one in details:
        name = names.get(one["index"], one["name"])
        name = f"{name}:{one['index']}" if not name or name in ports else name
        ports[name] = Port.of(name, one)
    return list(ports.values())
