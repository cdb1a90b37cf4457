"""ONNX models on ONNX Runtime's Java library, for apps on Android, where Python's has no wheel: copy this file into the app."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from edgeroute.edge.model_card import Array
from edgeroute.edge.onnx import DTYPES, external_data, last_operators
from edgeroute.edge.runtime_base import FileOptions, ModelFile, first_line
from edgeroute.errors import ModelError, RuntimeMissing
from edgeroute.system.late_imports_and_plugins import import_late
from edgeroute.types import StopToken, TensorSpec

if TYPE_CHECKING:
    from typing_extensions import Unpack

_JAVA = "ai.onnxruntime."
_PREFIX = "ONNX_TENSOR_ELEMENT_DATA_TYPE_"
_DTYPES = {kind.upper(): dtype for kind, dtype in DTYPES.items()}
# dtype -> method that returns the view of a buffer which Java's library takes for it.
_VIEWS = {
    "float32": "asFloatBuffer", "float64": "asDoubleBuffer", "int16": "asShortBuffer", "int32": "asIntBuffer",
    "int64": "asLongBuffer",
}  # fmt: skip
_BYTES = {"int8": "INT8", "uint8": "UINT8", "bool": "BOOL"}  # dtype -> Java type that is passed beside a buffer of bytes
# Locks held while pyjnius is used: two threads that call one method on two objects may both call it on the same object.
_JAVA_LOCK, _STOP_LOCK = threading.RLock(), threading.Lock()


class JavaOnnxModel(ModelFile):
    """Edge model from a .onnx file, run through Java by pyjnius or Chaquopy. Loaded at the first run, or by `load()`.

    The app brings the library, `com.microsoft.onnxruntime:onnxruntime-android`. To use this class in place of `OnnxModel` for all
    .onnx files: `edgeroute.register(".onnx", "java_onnx:JavaOnnxModel")`. One of these models runs at a time.

    Args:
        path: the model file.
        threads: for one run; more than one slows a busy device down.
        file: arguments of `edgeroute.edge.runtime_base.ModelFile`: sha256, card, output, kind, labels, score, none_found.
    """

    parallel = 1

    def __init__(self, path: str | Path, *, threads: int = 1, **file: Unpack[FileOptions]) -> None:
        super().__init__(path, **file)
        self.threads = threads
        self._pid = os.getpid()  # no Java runs in a child: its threads are not there

    def _operators(self) -> dict[str, str]:
        """Return name of an output -> operator that makes it."""
        return last_operators(self.path)

    @property
    def files(self) -> list[Path]:
        """The card's path, and the files with weights beside the model."""
        return [*external_data(self.path), *super().files]

    @property
    def settings(self) -> dict[str, Any]:
        """The runtime, the provider, which is the CPU's, and the output that is read."""
        return {"runtime": "onnxruntime-java", "providers": ["CPUExecutionProvider"], "output": self.output}

    def _open(self) -> _Session:
        """Open a session in Java, and store its inputs and outputs.

        Raises:
            ModelError: the model cannot be loaded, or the process was forked after its parent had started Java.
            RuntimeMissing: there is no way to Java, or no ONNX Runtime in it.
        """
        if os.getpid() != self._pid:
            raise ModelError(
                f"{self.path}: this process was forked after its parent had begun Java, and cannot use it: spawn it instead"
            )
        bridge = _bridge()
        try:
            with _JAVA_LOCK:
                return self._open_session(bridge)
        except ModelError:
            raise
        except Exception as e:  # Java's exceptions derive from Exception alone, in both bridges
            raise ModelError(f"ONNX Runtime for Java cannot load {self.path}: {first_line(e)}") from e
        finally:
            bridge.detach_thread()

    def _open_session(self, bridge: _Bridge) -> _Session:
        """Open a session and store its inputs and outputs; raise RuntimeMissing. The caller holds the lock."""
        try:
            environment = bridge.find(f"{_JAVA}OrtEnvironment").getEnvironment()
        except Exception as e:
            raise RuntimeMissing(
                f"no ONNX Runtime in Java ({first_line(e)}): add com.microsoft.onnxruntime:onnxruntime-android to the app"
            ) from e
        options = bridge.find(f"{_JAVA}OrtSession$SessionOptions")()
        options.setIntraOpNumThreads(self.threads)
        session = environment.createSession(str(self.path), options)
        opened = _Session(bridge, environment, session)
        self._describe(
            [self._spec(name, session.getInputInfo().get(name), "input") for name in _all(session.getInputNames())],
            [self._spec(name, session.getOutputInfo().get(name), "output") for name in _all(session.getOutputNames())],
        )
        return opened

    def _spec(self, name: str, node: Any, what: str) -> TensorSpec:
        """Return the specification of an input or output from its Java description.

        Raises:
            ModelError: its type cannot be passed through Java.
        """
        info = node.getInfo()
        kind = str(info.onnxType.toString()).removeprefix(_PREFIX) if hasattr(info, "onnxType") else "sequence or mapping"
        dtype = _DTYPES.get(kind)
        if dtype is None or (what == "input" and dtype not in {**_VIEWS, **_BYTES}):
            raise ModelError(
                f"{self.path}: its {what} {name} is a {kind}, which cannot be passed through Java: export it with a cast"
            )
        return TensorSpec(name, dtype, tuple(n if n > 0 else -1 for n in info.getShape()))

    def _execute(self, session: Any, names: list[str], feed: dict[str, Array], cancel: StopToken | None) -> list[Array]:
        """Run the session, one run at a time in the process, and detach the thread from Java; a stop request ends the run.

        Raises:
            ModelError: the run failed, or was stopped.
        """
        try:
            with _JAVA_LOCK:
                return session.run(names, feed, cancel)  # type: ignore[no-any-return]
        except Exception as e:  # as above
            raise self._run_error(e) from e
        finally:
            session.bridge.detach_thread()


class _Bridge(NamedTuple):
    """Access to Java from Python."""

    find: Callable[[str], Any]  # returns a Java class by its name
    detach: Callable[[], None] | None  # detaches the current thread from Java; None: the bridge does so by itself

    def detach_thread(self) -> None:
        """Detach the current thread after it has used Java: an attached thread that ends would end an Android app.

        The main thread, and threads that Java has made, stay attached.
        """
        thread = threading.current_thread()
        if self.detach is not None and thread is not threading.main_thread() and type(thread).__name__ != "_DummyThread":
            self.detach()


class _Session:
    """Loaded model in Java, which is freed once nothing refers to it, as Java's library frees nothing by itself."""

    def __init__(self, bridge: _Bridge, environment: Any, session: Any) -> None:
        self.bridge, self.environment, self.session = bridge, environment, session
        find = bridge.find
        self.tensor, self.type = find(f"{_JAVA}OnnxTensor"), find(f"{_JAVA}OnnxJavaType")
        self.options = find(f"{_JAVA}OrtSession$RunOptions")
        self.buffer, self.order = find("java.nio.ByteBuffer"), find("java.nio.ByteOrder").nativeOrder()
        self.map, self.set = find("java.util.HashMap"), find("java.util.HashSet")

    def run(self, names: list[str], feed: dict[str, Array], cancel: StopToken | None) -> list[Array]:
        """Run tensors by name in Java; return copies of the outputs of these names. Closes all Java objects of the run.

        A stop request terminates it.
        """
        wanted, given = self.set(), self.map()
        for name in names:
            wanted.add(name)
        tensors, options, result = [], None, None
        try:
            for name, array in feed.items():
                tensors.append(self._tensor(array))
                given.put(name, tensors[-1])
            if cancel is None:
                result = self.session.run(given, wanted)
            else:
                options = self.options()
                cancel.on_ask(partial(self._stop, options))
                result = self.session.run(given, wanted, options)
            return [self._array(result.get(name).get()) for name in names]
        finally:
            if cancel is not None:
                cancel.on_ask(None)
            for thing in (result, options, *tensors):
                if thing is not None:
                    thing.close()

    def _stop(self, options: Any) -> None:
        """Ask Java to terminate a run. Detaches the thread."""
        with _STOP_LOCK:  # the other one is the run's
            options.setTerminate(True)
        self.bridge.detach_thread()

    def _tensor(self, array: Array) -> Any:
        """Return a tensor of Java's library with a copy of the array, in a buffer outside Java's heap."""
        data, dtype = np.ascontiguousarray(array).tobytes(), array.dtype.name
        buffer = self.buffer.allocateDirect(len(data)).order(self.order)
        buffer.put(data)
        buffer.rewind()
        shape = list(array.shape)
        if dtype in _BYTES:
            return self.tensor.createTensor(self.environment, buffer, shape, getattr(self.type, _BYTES[dtype]))
        return self.tensor.createTensor(self.environment, getattr(buffer, _VIEWS[dtype])(), shape)

    @staticmethod
    def _array(tensor: Any) -> Array:
        """Return a copy of a Java tensor as an array."""
        info, data = tensor.getInfo(), tensor.getByteBuffer().array()
        dtype = _DTYPES[str(info.onnxType.toString()).removeprefix(_PREFIX)]
        return np.frombuffer(bytes(data), dtype).reshape(list(info.getShape())).copy()

    def __del__(self) -> None:
        with suppress(Exception), _JAVA_LOCK:  # at the end of the interpreter there may be no Java any more
            self.session.close()
            self.bridge.detach_thread()


def _bridge() -> _Bridge:
    """Return the bridge of Chaquopy, or else of pyjnius.

    Raises:
        RuntimeMissing: neither is there.
    """
    with suppress(ImportError):
        return _Bridge(import_late("java").jclass, None)
    try:
        jnius = import_late("jnius")
    except Exception as e:  # pyjnius raises others, too, where there is no Java
        raise RuntimeMissing(
            f"there is no way to Java ({first_line(e)}): build the app with Chaquopy, or pip install pyjnius"
        ) from e
    return _Bridge(jnius.autoclass, jnius.detach)


def _all(things: Any) -> Iterator[str]:
    """Yield the texts of a Java collection."""
    iterator = things.iterator()
    while iterator.hasNext():
        yield str(iterator.next())
