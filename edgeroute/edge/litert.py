"""TFLite models on LiteRT or tflite-runtime: delegates, a pool of interpreters, states, and the model class."""

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
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np

from edgeroute.edge.edge_backend import TURN, current_turn
from edgeroute.edge.model_card import Array
from edgeroute.edge.quantised_tensors import Port, Ports
from edgeroute.edge.runtime_base import FileOptions, ModelFile, first_line
from edgeroute.edge.tflite_format import MOST_BYTES, Contents, Signature, last_operators, read_contents
from edgeroute.errors import ModelError, RuntimeMissing
from edgeroute.system.late_imports_and_plugins import import_late, no_fork
from edgeroute.system.untrusted_files import map_file, read_bytes
from edgeroute.types import StopToken

if TYPE_CHECKING:
    from typing_extensions import Unpack

# Delegates of TFLite: libraries that run a model's operators on other hardware.

_EDGE_TPU_LIBRARY = {"darwin": "libedgetpu.1.dylib", "win32": "edgetpu.dll"}.get(sys.platform, "libedgetpu.so.1")
_INSTALL = {_EDGE_TPU_LIBRARY: " (of Coral: apt-get install libedgetpu1-std)"}


def base_name(delegate: str) -> str:
    """Return a delegate's name without its folders, which differ between devices."""
    return PurePath(delegate).name


def load_delegate(module: Any, delegate: str, options: Mapping[str, Any]) -> Any:
    """Load the delegate of a name or path, and return it.

    Args:
        module: the runtime's module with `load_delegate`.
        delegate: "edgetpu", or a library.
        options: for the delegate.

    Raises:
        ModelError: there is no such library, it is no delegate, or it finds no device.
    """
    library = _EDGE_TPU_LIBRARY if delegate == "edgetpu" else delegate
    try:
        loaded_library = ctypes.CDLL(library)  # first by itself: the runtime's own error comes with others from a finaliser
    except OSError as e:
        raise ModelError(
            f"the delegate {library} cannot be loaded: {first_line(e)}. Install it{_INSTALL.get(library, '')}, give its absolute "
            "path, or leave delegate out"
        ) from e
    if not hasattr(loaded_library, "tflite_plugin_create_delegate"):
        raise ModelError(f"{library} is a library, and no delegate of TFLite: it has no tflite_plugin_create_delegate")
    try:
        return module.load_delegate(library, dict(options))
    except (ValueError, RuntimeError) as e:
        reason = " ".join(str(e).split()).removeprefix(f"Failed to load delegate from {library}").strip()
        raise ModelError(f"the delegate {library} does not start: {reason or 'no device is found, or an option is wrong'}") from e


# Interpreters of one .tflite model: each serves one run at a time, and is pooled for the next.

MOST_IDLE = 16  # most idle interpreters of a model; each has the model's activations, and XNNPACK's copy of its weights


class LockedInterpreter:
    """Interpreter of the model, for one run at a time.

    Args:
        interpreter: of the runtime.
        inputs, outputs: of the model.
        runner: runs a signature that is not the main graph's; None: the main graph is run.
        ready: True if its tensors are allocated.
    """

    def __init__(
        self, interpreter: Any, inputs: Sequence[Port], outputs: Sequence[Port], runner: Any = None, *, ready: bool = True
    ) -> None:
        self.interpreter, self.runner = interpreter, runner
        self.inputs, self.outputs = tuple(inputs), {port.name: port for port in outputs}
        self.set, self.invoke, self.get = interpreter.set_tensor, interpreter.invoke, interpreter.get_tensor
        self.shapes = [port.initial_shape if ready else () for port in inputs]
        self.step, self.pid, self.lock = 0, os.getpid(), threading.Lock()

    def run(self, names: Sequence[str], tensors: Sequence[Array]) -> list[Array]:
        """Run the model's tensors, in the order of its inputs; return the outputs of these names, as numbers, not quantised.

        Resizes the inputs first if the shapes differ from those of the run before.

        Raises:
            ValueError, RuntimeError: the run failed.
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
        return [self.outputs[name].real(self.get(self.outputs[name].number)) for name in names]

    def resize(self, shapes: list[tuple[int, ...]]) -> None:
        """Give the inputs these shapes and allocate the tensors anew.

        Raises:
            ValueError, RuntimeError: the model does not allow it.
        """
        for port, shape, now in zip(self.inputs, shapes, self.shapes, strict=True):
            if shape != now:
                self.interpreter.resize_tensor_input(port.number, shape, strict=True)
        self.interpreter.allocate_tensors()
        self.shapes = shapes


class Interpreters:
    """Pool of the interpreters of one model. Any number of runs go at a time: a run that finds no idle interpreter makes one.

    Args:
        make: makes an interpreter, which is not in the pool; also as the attribute `new`.
        first: an interpreter that exists already.
        resets: True if variables are reset before each run, as tensors of the model hold the state of the run before.
    """

    def __init__(self, make: Callable[[], LockedInterpreter], first: LockedInterpreter, *, resets: bool) -> None:
        self.new, self._inputs, self.resets = make, first.inputs, resets
        self.idle: deque[LockedInterpreter] = deque([first], maxlen=MOST_IDLE)  # taking and putting back are atomic

    def tensors(self, feed: Mapping[str, Array]) -> list[Array]:
        """Return the model's tensors, in order, from tensors by name.

        Raises:
            BadInput: one has numbers that cannot be quantised.
            KeyError: an input is missing.
        """
        return [port.as_elements(feed[port.name]) for port in self._inputs]

    def take(self) -> LockedInterpreter:
        """Remove an idle interpreter from the pool and return it, its variables reset if need be, or make one.

        The caller appends it to `idle` later. Never waits for a run.
        """
        try:
            worker = self.idle.pop()
        except IndexError:
            return self.new()
        if self.resets:
            worker.interpreter.reset_all_variables()
        return worker


RUNTIMES = {"litert": "ai_edge_litert", "tflite": "tflite_runtime"}  # runtime -> its package; the first that is installed is used
_NAMES = {"litert": "LiteRT", "tflite": "tflite-runtime"}
BUILT_IN = {"none", "xnnpack"}  # delegates that are no libraries
_EDGE_TPU = "edgetpu-custom-op"


class _SessionPlace(NamedTuple):
    """Position of a session: its own interpreter, and the number of its runs so far."""

    worker: LockedInterpreter
    step: int


class LiteRTModel(ModelFile):
    """Edge model from a .tflite file, with the card beside it if there is one. Loaded at the first run, or by `load()`.

    It runs on LiteRT or on tflite-runtime, whichever is installed. A quantised input takes floats, which are quantised, or the
    model's own dtype; a quantised output is returned in float32.

    Args:
        path: the model file.
        runtime: "litert" or "tflite"; None: LiteRT, or else tflite-runtime.
        threads: threads for one run; more than one slows a busy device down.
        delegate: runs the operators: "xnnpack", "edgetpu", "none" for the runtime's plain kernels, or a library, as the system
            finds it or by its absolute path; or several. None: the runtime's own choice, which is XNNPACK.
        delegate_options: for the delegates that are libraries.
        on_downgrade: whether a delegate that is missing, or runs no operator, is an error ("error"), or a note in `downgraded`
            ("record").
        signature: name of the signature to run; None: the only one, or `serving_default`.
        file: arguments of `edgeroute.edge.runtime_base.ModelFile`: sha256, card, output, kind, labels, score, none_found.

    Raises:
        ValueError: `runtime` or `on_downgrade` has another value.
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
        **file: Unpack[FileOptions],
    ) -> None:
        super().__init__(path, **file)
        if runtime not in (None, *RUNTIMES):
            raise ValueError(f"runtime is one of {', '.join(RUNTIMES)}, not {runtime!r}")
        if on_downgrade not in ("error", "record"):
            raise ValueError(f"on_downgrade is error or record, not {on_downgrade!r}")
        self.runtime, self.threads, self.on_downgrade, self.signature = runtime, threads, on_downgrade, signature
        listed = [] if delegate is None else [delegate] if isinstance(delegate, str | os.PathLike) else delegate
        self.delegates = tuple(os.fspath(name) for name in listed)
        self.delegate_options = dict(delegate_options or {})
        # One if a delegate drives other hardware, which serves one run at a time; None: any number.
        self.parallel = None if set(self.delegates) <= BUILT_IN else 1
        # True, once it is loaded, if the model has a state in resources, and so runs in a session only.
        self.stateful = False
        self._used: tuple[str, ...] = self.delegates
        self._prepare: Any = None
        self._quantised: Port | None = None  # the only input, if it is quantised
        self._stream = object()

    def _operators(self) -> dict[str, str]:
        """Return name of an output -> operator that makes it."""
        with suppress(OSError, ValueError), map_file(self.path) as data:
            return last_operators(data)
        return {}

    @property
    def settings(self) -> dict[str, Any]:
        """The runtime, the delegates in use, the signature and the output. Reading this loads the model if it may be downgraded.

        Threads are not included: they change the order of sums, and so the last digits at most.
        """
        if self.on_downgrade == "record" and self.delegates:
            self.load()
        return {
            "runtime": self.runtime or _installed_runtime() or "litert", "delegates": [base_name(name) for name in self._used],
            "delegate_options": self.delegate_options, "signature": self.signature, "output": self.output,
        }  # fmt: skip

    def _load(self) -> Any:
        """Check the file's size before its SHA-256, and load it. Raises ModelError for more than a .tflite file can have."""
        with suppress(OSError):  # reading reports it
            if (size := self.path.stat().st_size) > MOST_BYTES and self.path.is_file():
                raise ModelError(f"{self.path} has {size:,} bytes, and a .tflite file has at most {MOST_BYTES:,}")
        return super()._load()

    def _open(self) -> Interpreters:
        """Read and check the file, make the first interpreter, store inputs, outputs and `stateful`; return the pool.

        Raises:
            ModelError: the file is damaged, was replaced, or cannot run here.
            RuntimeMissing: no runtime is installed.
        """
        name, module = _runtime(self.runtime)
        try:
            data = read_bytes(self.path, MOST_BYTES)
            if digest(data).hexdigest() != self.fingerprint:
                raise ModelError(f"{self.path} was replaced while it was loaded: load it again")
            description = read_contents(data)
            self._check(name, description)
            signature = self._signature(description.signatures)
            first = self._worker(module, data, description, signature)
        except (OSError, MemoryError, ValueError, RuntimeError) as e:
            raise ModelError(f"{_NAMES[name]} cannot load {self.path}: {first_line(e)}") from e
        self._describe_ports(first)
        self.stateful = description.resources
        if self.stateful:
            self._plan.size = 1
        short = not (self.stateful or description.variables or first.runner) and len(self._names) == len(first.inputs) == 1
        self._prepare = self._plan.one if short else None
        self._quantised = first.inputs[0] if short and first.inputs[0].scale else None
        return Interpreters(lambda: self._worker(module, data, description, signature), first, resets=description.variables)

    def _check(self, runtime: str, description: Contents) -> None:
        """Refuse a file that this runtime would compute wrong, or not at all.

        These have int8 weights beside float activations, on an old tflite-runtime; a tensor larger than this device's memory; or
        are compiled for the Edge TPU, and no delegate is given.

        Raises:
            ModelError: the file is one of these.
        """
        if runtime == "tflite" and description.dynamic_range and _version("tflite-runtime") < (2, 15):
            raise ModelError(
                f"{self.path} has weights in int8 and activations in float ({', '.join(description.dynamic_range)}), which this "
                "tflite-runtime computes wrong: quantise it statically, or use LiteRT, which computes it right"
            )
        if description.largest > (memory := _memory()):
            raise ModelError(f"{self.path} has a tensor of {description.largest:,} bytes, and this device a memory of {memory:,}")
        if _EDGE_TPU in description.custom and not self.parallel:
            raise ModelError(f'{self.path} is compiled for the Edge TPU: give delegate="edgetpu", or the original model')

    def _signature(self, signatures: Sequence[Signature]) -> Signature | None:
        """Return the signature to run; None: the file names none.

        Raises:
            ModelError: there is none of the requested name, or there are several and none was requested.
        """
        keys = [signature.key for signature in signatures]
        wanted = self.signature or (keys[0] if len(keys) == 1 else "serving_default" if keys else None)
        if wanted is None:
            return None
        if wanted not in keys:
            which = f"none of the name {self.signature!r}" if self.signature else "several: say which by signature="
            raise ModelError(f"{self.path} has {which}: its signatures are {', '.join(keys) or 'not named'}")
        return signatures[keys.index(wanted)]

    def _worker(self, module: Any, data: bytes, description: Contents, signature: Signature | None) -> LockedInterpreter:
        """Make an interpreter with the delegates, and store which delegates it uses and how it is downgraded.

        A delegate that runs no operator leaves the CPU in use. Waits while the process forks, which waits for this in turn.

        Raises:
            ModelError: a delegate is missing or runs no operator, and a downgrade is an error.
        """
        used, libraries, lacks = [], [], ""
        with no_fork.lock:
            for delegate in self.delegates:
                try:
                    libraries += [] if delegate in BUILT_IN else [load_delegate(module, delegate, self.delegate_options)]
                    used.append(delegate)
                except ModelError as e:  # noqa: PERF203 - the next one may be there
                    if self.on_downgrade == "error":
                        raise
                    lacks = lacks or str(e)
            options: dict[str, Any] = {"num_threads": self.threads}
            if "none" in used:
                options["experimental_op_resolver_type"] = module.OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES
            interpreter = module.Interpreter(model_content=data, experimental_delegates=libraries or None, **options)
            idle = bool(libraries) and not _delegated(interpreter, description)
            ready = _allocate(interpreter)
        if idle or ("xnnpack" in used and not _delegated(interpreter, description)):
            used = ["none"] if "none" in used else []
            lacks = f"{', '.join(map(base_name, self.delegates))} runs none of the operators of {self.path}"
            if self.on_downgrade == "error":
                raise ModelError(f"{lacks}: compile the model for it, or leave the delegate out")
        self._used, self.downgraded = tuple(used), f"{lacks}; running on the CPU" if lacks else None
        return _make_worker(interpreter, signature, description.detected, ready=ready)

    def _describe_ports(self, worker: LockedInterpreter) -> None:
        """Store the file's inputs and outputs. A quantised input is as its card states, or takes floats and its own dtype.

        A model's uint8 input without a card takes pixels.

        Raises:
            ModelError: a type is not supported, or the card describes another file.
        """
        outputs = worker.outputs.values()
        for port in (*worker.inputs, *(port for port in outputs if self.output in (None, port.name))):
            if np.dtype(port.dtype).kind not in "biuf":
                raise ModelError(f"{self.path}: its {port.name} is of the type {port.dtype}, which is not supported")
        ports = Ports(worker.inputs, self.card)
        self._describe([*map(ports.spec, worker.inputs)], [*map(ports.spec, outputs)], ports.preparation)

    def run_one(self, x: Any, cancel: StopToken | None = None) -> Array | dict[str, Array]:
        """Run one input, by a fast path if the model has one input, one output and no state; return as `run`.

        Loads the model if need be. An interpreter whose run failed does not return to the pool.

        Raises:
            BadInput: it does not fit.
            ModelError: the model cannot be loaded, or the run failed.
        """
        session, prepare = self._session or self.load(), self._prepare
        if prepare is None or type(x) is dict or (cancel is not None and cancel.asked):
            return self.run([x], cancel)
        tensor = prepare(x)
        if self._quantised is not None:
            tensor = self._quantised.as_elements(tensor)
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
        """Run tensors by name on an idle interpreter, or for a model with a state on the session's own interpreter.

        The session's state advances only if no stop was requested. An interpreter whose run failed is dropped.

        Raises:
            BadInput: the model has a state, and the call belongs to no session.
            ModelError: the run failed, or a stop was requested before it began.
        """
        if cancel is not None and cancel.asked:
            raise ModelError(f"{self.name} was stopped before it started")
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
            worker, step = turn.states.get(self._stream) or _SessionPlace(session.new(), 0)
            self._advance(worker, step)
            out = worker.run(names, tensors)
        except (RuntimeError, ValueError, MemoryError) as e:
            raise self._run_error(e) from e
        if cancel is None or not cancel.asked:
            turn.states[self._stream] = _SessionPlace(worker, step + 1)
        return out

    def _advance(self, worker: LockedInterpreter, step: int) -> None:
        """Check that the interpreter is at this step of the session, and count the step, under the interpreter's lock.

        Raises:
            ModelError: an abandoned run has moved the interpreter's state on, or the process was forked: the state is lost.
        """
        with worker.lock:
            here = worker.pid == os.getpid() or (self.threads == 1 and not self.parallel)
            if worker.step != step or not here:
                raise ModelError(f"{self.name}: an abandoned run may have changed its state: call the session's reset()")
            worker.step += 1


def _is_installed(package: str) -> bool:
    """Return True if a package is installed, without importing it."""
    try:
        return find_spec(package) is not None
    except (ImportError, ValueError):
        return False


def _installed_runtime() -> str | None:
    """Return the installed runtime, LiteRT if both are; None: neither is."""
    return next((name for name, package in RUNTIMES.items() if _is_installed(package)), None)


def _runtime(wanted: str | None) -> tuple[str, Any]:
    """Import a runtime; return its name, and the module with its interpreter.

    Raises:
        RuntimeMissing: it is not installed, does not work with this numpy, or cannot be imported.
    """
    name = wanted or _installed_runtime()
    if name is None or not _is_installed(RUNTIMES[name]):
        what = "neither LiteRT nor tflite-runtime is" if name is None else f"{_NAMES[name]} is not"
        raise RuntimeMissing(f"{what} installed: pip install 'edgeroute[{name or 'litert'}]'")
    if name == "tflite" and int(np.__version__.partition(".")[0]) > 1:
        raise RuntimeMissing(f"tflite-runtime needs numpy 1, not {np.__version__}: pip install 'numpy<2', or 'edgeroute[litert]'")
    try:
        return name, import_late(f"{RUNTIMES[name]}.interpreter")
    except ImportError as e:
        raise RuntimeMissing(f"{_NAMES[name]} is installed, and cannot be imported: {first_line(e)}") from e


def _memory() -> int:
    """Return the memory of this device, bytes; where it is unknown, more than a device can have."""
    if sys.platform != "win32":
        with suppress(OSError, ValueError):
            return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return 1 << 48


def _version(package: str) -> tuple[int, ...]:
    """Return the first two numbers of a package's version; (0,) if unknown, as for one that is not installed."""
    try:
        return tuple(int(part) for part in metadata.version(package).split(".")[:2])
    except (metadata.PackageNotFoundError, ValueError):
        return (0,)


def _delegated(interpreter: Any, description: Contents) -> bool:
    """Return True if a delegate has taken operators: it adds nodes of its own behind those of the file.

    True too if the interpreter does not report its nodes.
    """
    details = getattr(interpreter, "_get_ops_details", None)
    return details is None or len(details()) > description.operators


def _allocate(interpreter: Any) -> bool:
    """Allocate an interpreter's tensors; return False if axes of any size have to be given other sizes first.

    Raises:
        RuntimeError, ValueError: it fails, and there are no such axes.
    """
    try:
        interpreter.allocate_tensors()
    except (RuntimeError, ValueError):
        if not any(-1 in details["shape_signature"] for details in interpreter.get_input_details()):
            raise
        return False
    return True


def _make_worker(interpreter: Any, signature: Signature | None, detected: Mapping[int, str], *, ready: bool) -> LockedInterpreter:
    """Wrap an interpreter, or the runner of a signature of another subgraph, as a worker with names of inputs and outputs.

    `ready` is only noted, for the former; `detected` has names of its outputs that go before all others.
    """
    if signature is None or not signature.subgraph:
        given = ({}, {}) if signature is None else (signature.inputs, signature.outputs)
        names = (given[0], {**given[1], **{name: number for number, name in detected.items()}})
        inputs, outputs = map(_ports, (interpreter.get_input_details(), interpreter.get_output_details()), names)
        return LockedInterpreter(interpreter, inputs, outputs, ready=ready)
    runner = interpreter.get_signature_runner(signature.key)
    ways = (runner.get_input_details(), runner.get_output_details())
    inputs, outputs = ([Port.of(name, details) for name, details in way.items()] for way in ways)
    return LockedInterpreter(interpreter, inputs, outputs, runner)


def _ports(details: Sequence[Mapping[str, Any]], numbers: Mapping[str, int]) -> list[Port]:
    """Return inputs or outputs by the names of the signature, or else of the tensors, made unique by their numbers."""
    names, ports = {number: name for name, number in numbers.items()}, dict[str, Port]()
    for tensor in details:
        name = names.get(tensor["index"], tensor["name"])
        name = f"{name}:{tensor['index']}" if not name or name in ports else name
        ports[name] = Port.of(name, tensor)
    return list(ports.values())
