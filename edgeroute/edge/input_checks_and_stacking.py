"""Tensors: the caller's arrays of one or several inputs, checked, cast and stacked to one tensor with a batch axis.

`Prepare` is the protocol of preparations, and `Plain` the default one, without preprocessing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import PurePath
from typing import Any, Protocol

import numpy as np

from edgeroute.core.error_codes_and_texts import class_name
from edgeroute.errors import BadInput
from edgeroute.types import TensorSpec

Array = np.ndarray[Any, np.dtype[Any]]


class Prepare(Protocol):
    """Function that makes a model's tensor from the caller's inputs."""

    def one(self, x: Any) -> Array:
        """Return the tensor of one input, with its batch axis."""

    def __call__(self, inputs: list[Any]) -> Array:
        """Return the tensor of several inputs, or of one."""


MakePrepare = Callable[[TensorSpec, "int | None"], Prepare]  # function that returns a `Prepare` for an input and its batch axis


class Plain:
    """Preparation of an input without preprocessing: the caller's arrays are checked and stacked.

    Args:
        spec: of the model's tensor.
        batch: its batch axis; None: the tensor has none, and takes one input.
    """

    def __init__(self, spec: TensorSpec, batch: int | None = 0) -> None:
        self.spec, self.batch = spec, batch
        shape = row_shape(spec, batch)
        usual = spec.dtype != "object" and -1 not in shape and batch == 0
        self._usual = (np.dtype(spec.dtype) if usual else None, shape, spec.dtype.startswith("float"))

    def one(self, x: Any) -> Array:
        """Return the tensor of one input, by a fast path if its dtype and shape are exactly the model's.

        The fast path returns a view.

        Raises:
            BadInput: as `stack`.
        """
        dtype, shape, floats = self._usual
        if type(x) is not np.ndarray or x.dtype is not dtype or x.shape != shape or (floats and not np.isfinite(x).all()):
            return self([x])
        return x[None]

    def __call__(self, inputs: list[Any]) -> Array:
        """Return the tensor of several inputs.

        Raises:
            BadInput: as `stack`.
        """
        return stack(inputs, self.spec, self.batch)


def row_shape(spec: TensorSpec, batch: int | None) -> tuple[int, ...]:
    """Return the tensor's shape without its batch axis."""
    return spec.shape if batch is None else (*spec.shape[:batch], *spec.shape[batch + 1 :])


def stack(inputs: Sequence[Any], spec: TensorSpec, batch: int | None = 0) -> Array:
    """Return n arrays stacked along the batch axis, each checked and cast to the tensor's dtype within the same kind of numbers.

    A single array is not copied if its dtype fits.

    Args:
        inputs: n arrays without the batch axis, or each with a leading axis of 1.
        spec: of the tensor.
        batch: axis of the tensor that counts the inputs; None: there is none, and n is 1.

    Raises:
        BadInput: wrong shape or dtype, NaN or infinity, or an empty batch.
    """
    shape = row_shape(spec, batch)
    rows: list[Array] = []
    try:
        for x in inputs:
            rows.append(_row(x, spec, shape))  # noqa: PERF401 - their number identifies the bad one
    except BadInput as e:
        if len(inputs) == 1:
            raise
        raise BadInput(f"input {len(rows)} of the batch: {e}", field=e.field) from None
    if len(rows) == 1:
        return rows[0] if batch is None else rows[0][None] if batch == 0 else np.expand_dims(rows[0], batch)
    if not rows:
        raise BadInput("the batch is empty")
    if batch is None:
        raise _bad(spec, f"it has no batch axis, and there are {len(rows)} inputs: give them one at a time")
    if len({row.shape for row in rows}) > 1:
        raise BadInput(f"the rows of a batch differ in shape: {sorted({row.shape for row in rows})}")
    return np.stack(rows, axis=batch)


def _row(value: Any, spec: TensorSpec, shape: tuple[int, ...]) -> Array:
    """Return one input as an array of the tensor's dtype and of this shape, without a leading axis of 1.

    Not copied if its dtype fits; casts within the same kind of numbers only, and integers that fit. Lists of integers have no
    dtype: they are cast to any integers.

    Raises:
        BadInput: wrong shape or dtype, NaN or infinity, masked values.
    """
    x: Array = value if isinstance(value, np.ndarray) else _array(value, spec)
    if isinstance(x, np.ma.MaskedArray):
        if np.ma.is_masked(x):
            raise _bad(spec, "a masked array: fill it, as with x.filled(0), since only you know the missing values")
        x = x.data
    if x.dtype.kind == "O" and spec.dtype != "object":
        x = _array(x.tolist(), spec)  # a table's row of several types of numbers
    if x.ndim == len(shape) + 1 and x.shape[0] == 1:
        x = x.reshape(x.shape[1:])
    elif not x.ndim and shape and set(shape) <= ({1, -1} if x.dtype.kind in "US" else {1}):  # a value for a column of one
        x = x.reshape([1] * len(shape))
    if x.shape != shape and (x.ndim != len(shape) or any(w not in (-1, g) for w, g in zip(shape, x.shape, strict=True))):
        got = f"{shape_text(x.shape)} {x.dtype}"
        if isinstance(value, str | bytes | PurePath) and spec.dtype != "object":
            got = f"{class_name(value)}: give an array, or, if a card describes the preprocessing, a picture file's content"
        raise _bad(spec, f"expected {shape_text(shape)} {spec.dtype}, got {got}")
    if spec.dtype == "object" and x.dtype.kind not in "US" and not all(isinstance(text, str | bytes) for text in x.flat):
        raise _bad(spec, "expected texts or bytes, and one is something else")
    before = x
    if x.dtype != spec.dtype:
        whole = x.dtype.kind in "iu" and spec.dtype.lstrip("u").startswith("int")
        castable = (whole and isinstance(value, list | tuple)) or np.can_cast(x.dtype, spec.dtype, "same_kind")
        if x.dtype.hasobject or not castable:
            raise _bad(spec, f"expected {spec.dtype}, got {x.dtype}; convert it, since only you know its scale")
        with np.errstate(over="ignore"):  # an error below reports it
            x = x.astype(spec.dtype)
        if whole and (x != before).any():
            least, most = np.iinfo(x.dtype).min, np.iinfo(x.dtype).max
            raise _bad(spec, f"the input holds an integer that {spec.dtype} has not: {least} to {most}")
    if x.dtype.kind == "f" and not np.isfinite(x).all():
        if np.isfinite(before).all():
            raise _bad(spec, f"the input holds a number too large for {spec.dtype}: {np.finfo(x.dtype).max:g} at most")
        raise _bad(spec, "the input holds NaN or infinity")
    return x


def _array(value: Any, spec: TensorSpec) -> Array:
    """Return an input as an array.

    Raises:
        BadInput: it is none, as lists of different lengths.
    """
    try:
        return np.asarray(value)
    except ValueError as e:
        why = "its lists differ in length" if "inhomogeneous" in str(e) else e
        if isinstance(value, tuple):
            why = "a tuple of parts that differ in form; pairs of an input and its label are passed as X and y"
        raise _bad(spec, f"the input cannot be read as an array: {why}") from None


def _bad(spec: TensorSpec, text: str) -> BadInput:
    """Return the error of an input, which names it."""
    return BadInput(f"{spec.name}: {text}", field=spec.name)


def shape_text(shape: Sequence[int]) -> str:
    """Return a shape as text, such as `[any, 3, 224, 224]`; "any" stands for -1."""
    return "[" + ", ".join("any" if n == -1 else str(n) for n in shape) + "]"
