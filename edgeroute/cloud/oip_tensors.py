"""Tensors of the Open Inference Protocol: datatypes, and JSON and binary forms, with all sizes checked before use."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any, NamedTuple

import numpy as np

from edgeroute.core.policy_egress_and_options import INF
from edgeroute.edge.input_checks_and_stacking import Array, stack
from edgeroute.errors import BadInput
from edgeroute.types import TensorSpec

# Datatype of the protocol -> NumPy's dtype, where that exists.
DTYPES = {
    "BOOL": "bool", "UINT8": "uint8", "UINT16": "uint16", "UINT32": "uint32", "UINT64": "uint64", "INT8": "int8",
    "INT16": "int16", "INT32": "int32", "INT64": "int64", "FP16": "float16", "FP32": "float32", "FP64": "float64",
}  # fmt: skip
NAMES = {dtype: name for name, dtype in DTYPES.items()}  # NumPy's dtype -> datatype of the protocol
TEXTS = "BYTES"  # datatype of texts and other bytes of any length
BRAIN = "BF16"  # datatype of the upper half of a float32; callers give and get float32
_ARRAYS = {**DTYPES, TEXTS: "object", BRAIN: "float32"}  # datatype -> dtype of its arrays
# Datatype -> NumPy dtype object: comparing these takes no Python call, unlike comparing names.
_NATIVE = {datatype: np.dtype(dtype) for datatype, dtype in _ARRAYS.items()}
_BITS = np.dtype(np.uint16)
MOST_DIMENSIONS = 32  # maximum dimensions of a tensor
MOST_CHARACTERS = 1 << 26  # maximum characters of a tensor of texts, where each text takes the room of the longest
_LENGTH = 4  # bytes of the length before each text, little-endian


class Tensor(NamedTuple):
    """Tensor of a reply, not decoded yet. Its fields are as the server gave them, of any type."""

    name: Any
    datatype: Any
    shape: Any
    data: Any  # list of values; or bytes, as `bytes` or a `memoryview`


class Invalid(ValueError):
    """Error of an invalid reply, whose message quotes no value."""


def spec_of(name: Any, datatype: Any, shape: Any) -> TensorSpec:
    """Return the specification of an input from metadata; texts have the dtype object.

    Raises:
        KeyError, TypeError, ValueError, OverflowError: the description is not in the protocol's form.
    """
    return TensorSpec(str(name), _ARRAYS[datatype], shape_of(shape, free=True))


def stack_inputs(inputs: Sequence[Any], spec: TensorSpec) -> Array:
    """Return inputs, each without the batch axis, as one array; a single text or bytes becomes a tensor of one.

    Raises:
        BadInput: an input does not fit.
    """
    return stack([_objects(x, spec) for x in inputs] if spec.dtype == "object" else inputs, spec)


def _objects(x: Any, spec: TensorSpec) -> Array:
    """Return a text input as an array of objects; a single text gets the specification's dimensions but the batch axis."""
    row: Array = x.astype(object) if isinstance(x, np.ndarray) else np.asarray(x, object)
    return row if row.ndim else row.reshape((1,) * (len(spec.shape) - 1))


def datatype_of(array: Array, wanted: str | None) -> str:
    """Return the datatype in which to send an array: the server's, if its dtype is the same; else the array's own."""
    dtype = array.dtype
    return wanted if wanted is not None and _NATIVE.get(wanted) == dtype else NAMES.get(dtype.name, TEXTS)


def zeros_like_row(array: Array) -> Array:
    """Return an array of zeros, or empty texts, in the shape of the array's first row."""
    return np.full_like(array[:1], "" if array.dtype.hasobject else 0)


def to_bytes(array: Array, datatype: str) -> memoryview | bytes:
    """Return the bytes of a tensor in the protocol's binary form, little-endian; a view of the array where that is possible.

    For BF16 floats are rounded to their upper half; before each text is its length, in four bytes.
    """
    if datatype == TEXTS:
        texts = [item.encode() if isinstance(item, str) else item for item in array.flat]
        return b"".join(part for item in texts for part in (len(item).to_bytes(_LENGTH, "little"), item))
    if datatype == BRAIN:
        bits = np.ascontiguousarray(array, np.float32).view(np.uint32)
        array = ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16)  # rounded to the nearest, or the even one
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8).data  # copied once, as the request is put together


def to_json_values(array: Array, datatype: str) -> list[Any]:
    """Return the values of a tensor for JSON, as a flat list; bytes become text.

    Raises:
        BadInput: bytes that are no UTF-8 text.
    """
    values: list[Any] = array.ravel().tolist()
    if datatype != TEXTS:
        return values
    try:
        return [item.decode() if isinstance(item, bytes) else item for item in values]
    except UnicodeDecodeError:
        raise BadInput("bytes that are no UTF-8 text cannot be sent as JSON, and the server takes no binary tensors") from None


def decode_tensor(tensor: Tensor, shape: tuple[int, ...]) -> Array:
    """Return a reply's tensor as an array of the given shape, from a list of values or from bytes. Binary data is not copied.

    Args:
        tensor: the tensor.
        shape: its checked shape.

    Raises:
        Invalid: the number of values or bytes differs from the shape, or a value is none of the datatype, NaN or infinity.
        KeyError, TypeError, ValueError, OverflowError: the datatype is unknown, or a value is no number of it.
    """
    datatype, data, size = tensor.datatype, tensor.data, prod(shape)
    if datatype == TEXTS:
        array = _texts(data, size)
    elif not isinstance(data, bytes | memoryview):
        array = _numbers(data, np.dtype(_ARRAYS[datatype]))
    else:
        dtype = _BITS if datatype == BRAIN else _NATIVE[datatype]
        if len(data) != size * dtype.itemsize:
            raise Invalid(f"the output has another number of bytes than its shape says: {len(data)} came")
        array = np.frombuffer(data, dtype)
        if datatype == BRAIN:
            array = (array.astype(np.uint32) << 16).view(np.float32)
    if array.size != size:
        raise Invalid(f"the output has another number of values than its shape says: {array.size} came")
    if size and array.dtype.kind == "f" and not array.item(array.argmax()) < INF:  # false for NaN, which is the highest
        raise Invalid("the output holds NaN or infinity")
    return array.reshape(shape)


def _numbers(data: Any, dtype: np.dtype[Any]) -> Array:
    """Return the numbers of a JSON list, flat; floats that are too large become infinity.

    Raises Invalid for texts, and numpy's errors: of integers that are too large, for example.
    """
    array = np.array(data)
    if array.dtype.kind in "US":
        raise Invalid("text instead of numbers")
    if dtype.kind in "iu" and array.dtype.kind in "iu" and (array.astype(dtype) != array).any():
        raise OverflowError("an integer is too large")  # numpy 1 would wrap it
    with np.errstate(over="ignore"):  # overflow becomes infinity, which is rejected; integers raise
        return (array.astype(dtype) if dtype.kind == "f" else np.array(data, dtype)).reshape(-1)


def _texts(elements: Any, size: int) -> Array:
    """Return texts as a flat array, from a list of them, or from bytes with a length before each.

    Bytes that are no UTF-8 are replaced. Raise Invalid for another form, a length beyond the end, or more characters than
    `MOST_CHARACTERS` in memory. Reads at most one text more than `size`.
    """
    if isinstance(elements, bytes | memoryview):
        parts, position = list[Any](), 0
        while position < len(elements) and len(parts) <= size:
            length = int.from_bytes(elements[position : position + _LENGTH], "little")
            position += _LENGTH
            if position + length > len(elements):
                raise Invalid("a text that is longer than what came")
            parts.append(bytes(elements[position : position + length]))
            position += length
    elif isinstance(elements, list) and all(isinstance(part, str | bytes) for part in elements):
        parts = elements
    else:
        raise Invalid("no texts where its datatype says so")
    texts = [part.decode(errors="replace") if isinstance(part, bytes) else part for part in parts]
    if len(texts) * max(map(len, texts), default=0) > MOST_CHARACTERS:  # each takes the room of the longest
        raise Invalid("texts that take more memory than expected")
    return np.array(texts, str)


def shape_of(sizes: Any, *, free: bool = False, empty: bool = False) -> tuple[int, ...]:
    """Return a tensor's shape as a tuple of int.

    Args:
        sizes: sizes, as the server gave them.
        free: allow -1, for any size.
        empty: allow 0.

    Raises:
        Invalid: more than `MOST_DIMENSIONS`, or a size that is 0, negative or 2**31 and more.
        TypeError, ValueError, OverflowError: it is no sequence of numbers.
    """
    if len(sizes) > MOST_DIMENSIONS:
        raise Invalid(f"a shape of {len(sizes)} dimensions")
    shape = tuple(map(int, sizes))
    for size in shape:
        if not (1 <= size < 1 << 31 or (free and size == -1) or (empty and size == 0)):
            raise Invalid(f"a shape with a size {'below 1' if min(shape) < 1 else 'of 2**31 or more'}")
    return shape


def wrong_with(error: Exception) -> str:
    """Return a description of the fault in a reply, without quoting the reply: it may repeat any part of the request."""
    if isinstance(error, Invalid):
        return str(error)
    missing = error.args[0] if isinstance(error, KeyError) else None
    return f"{type(error).__name__}: {missing!r}" if missing in _KEYS else type(error).__name__


_KEYS = ("inputs", "outputs", "name", "datatype", "shape", "data")  # keys that a description may quote
