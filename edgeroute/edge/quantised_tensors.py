"""Quantised inputs and outputs of models: floats to elements and back by a scale and a zero point, and what callers pass."""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from edgeroute.edge.input_checks_and_stacking import Plain, Prepare
from edgeroute.edge.model_card import Array, Card
from edgeroute.errors import BadInput
from edgeroute.types import TensorSpec

QUANTISED = ("int8", "uint8", "int16", "uint16")  # dtypes of quantised tensors


class Port(NamedTuple):
    """Input or output of the model, with its quantisation."""

    name: str
    number: int
    dtype: str
    shape: tuple[int, ...]  # shape; -1 for a dynamic axis
    initial_shape: tuple[int, ...]  # shape in a new interpreter
    scale: float
    # Zero point of a quantised tensor: its numbers are (element - zero) * scale. A scale of 0: the tensor is not quantised.
    zero: int

    @classmethod
    def of(cls, name: str, details: Mapping[str, Any]) -> Port:
        """Return the port of a name and an interpreter's details of its tensor.

        Dynamic axes are -1 where the file says so; without quantisation the scale is 0.
        """
        shape = tuple(map(int, details["shape"]))
        signature = tuple(map(int, details.get("shape_signature", ())))
        dtype = np.dtype(details["dtype"]).name
        scale, zero = details["quantization"] if dtype in QUANTISED else (0.0, 0)
        return cls(name, int(details["index"]), dtype, signature or shape, shape, float(scale), int(zero))

    def as_elements(self, tensor: Array) -> Array:
        """Return the model's tensor: of floats the elements for them, rounded and cut to the dtype's range, if it is quantised.

        Others are returned as they are.

        Raises:
            BadInput: a float is NaN or infinite.
        """
        if not self.scale or tensor.dtype.kind != "f":
            return tensor
        if not np.isfinite(tensor).all():
            raise BadInput(f"{self.name}: the input holds NaN or infinity", field=self.name)
        limits = np.iinfo(self.dtype)
        elements: Array = np.rint(tensor / np.float32(self.scale)) + self.zero
        return np.clip(elements, limits.min, limits.max).astype(self.dtype)

    def real(self, elements: Array) -> Array:
        """Return the float32 numbers that an output's elements stand for, or the output itself if it is not quantised."""
        return np.subtract(elements, self.zero, dtype=np.float32) * np.float32(self.scale) if self.scale else elements


class FloatsOrElements:
    """Preparation of a quantised input: the caller gives floats, which are quantised, or elements in the model's own dtype.

    Args:
        port: the input.
        spec: its specification, with the dtype that is expected of an array of another kind.
        batch: its batch axis; None: it has none.
    """

    def __init__(self, port: Port, spec: TensorSpec, batch: int | None = 0) -> None:
        self._port, self._axis = port, batch
        self._own = Plain(TensorSpec(spec.name, port.dtype, spec.shape), batch)
        self._floats = Plain(TensorSpec(spec.name, "float32", spec.shape), batch)
        self._described = self._own if spec.dtype == port.dtype else self._floats
        self._dtype = np.dtype(port.dtype)

    def one(self, x: Any) -> Array:
        """Return the tensor of one input.

        Raises:
            BadInput: it does not fit.
        """
        return self._own.one(x) if type(x) is np.ndarray and x.dtype == self._dtype else self([x])

    def __call__(self, inputs: list[Any]) -> Array:
        """Return the tensor of several inputs.

        A mix of both is converted row by row.

        Raises:
            BadInput: as `stack`.
        """
        kinds = set(map(_dtype, inputs))
        if kinds == {self._dtype}:
            return self._own(inputs)
        if self._dtype in kinds:  # some are the one, and some the other
            return np.concatenate([self([x]) for x in inputs], axis=self._axis or 0)
        floats = kinds and all(kind is not None and kind.kind == "f" for kind in kinds)
        return self._port.as_elements((self._floats if floats else self._described)(inputs))


def _dtype(x: Any) -> np.dtype[Any] | None:
    """Return the dtype of an array, or of nested lists, by numpy; None for lists of different lengths."""
    try:
        return x.dtype if isinstance(x, np.ndarray) else np.asarray(x).dtype
    except ValueError:  # lists of different lengths
        return None


class Ports:
    """Inputs of a model that may be quantised: what callers pass for each, and its preparation.

    Args:
        inputs: the inputs.
        card: the model's card.
    """

    def __init__(self, inputs: Sequence[Port], card: Card) -> None:
        self.inputs, self._card = {port.name: port for port in inputs}, card
        self._states: Container[str] = {state.input for state in card.state}

    def spec(self, port: Port) -> TensorSpec:
        """Return the specification of an input or output, of a quantised one as its callers pass it.

        The card's dtype goes first. A uint8 input without one takes pixels; others take floats.
        """
        entry = None if port.name in self._states else self._card.of(port.name)
        if not port.scale or (entry is not None and entry.dtype == port.dtype):
            return TensorSpec(port.name, port.dtype, port.shape)
        described = port.name in self._states or (entry is not None and entry.dtype)
        pixels = port.dtype == "uint8" and port.name in self.inputs and not described
        return TensorSpec(port.name, "uint8" if pixels else "float32", port.shape)

    def preparation(self, spec: TensorSpec, batch: int | None) -> Prepare:
        """Return the preparation of an input without preprocessing."""
        port, entry = self.inputs.get(spec.name), self._card.of(spec.name)
        if port is None or not port.scale or (entry is not None and entry.dtype):
            return Plain(spec, batch)
        return FloatsOrElements(port, spec, batch)
