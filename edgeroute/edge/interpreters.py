"""Interpreters of one .tflite model: each serves one run at a time, and waits for the next."""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from edgeroute.edge.card import Array
from edgeroute.edge.tensors import Plain
from edgeroute.errors import BadInput
from edgeroute.imports import no_fork
from edgeroute.types import TensorSpec

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
