"""Datatypes of the Open Inference Protocol: tensors to and from their JSON and binary forms, every size validated before use."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any, NamedTuple

import numpy as np

from edgeroute.core.policy import INF
from edgeroute.edge.tensors import Array, stack
from edgeroute.errors import BadInput
from edgeroute.types import TensorSpec

DTYPES = {
    "BOOL": "bool", "UINT8": "uint8", "UINT16": "uint16", "UINT32": "uint32", "UINT64": "uint64", "INT8": "int8",
    "INT16": "int16", "INT32": "int32", "INT64": "int64", "FP16": "float16", "FP32": "float32", "FP64": "float64",
}  # fmt: skip
"""The protocol's datatypes that NumPy has -> its dtypes."""
NAMES = {dtype: name for name, dtype in DTYPES.items()}
TEXTS = "BYTES"
"""The protocol's datatype of texts and other bytes of any length."""
BRAIN = "BF16"
"""The upper half of a float32, which is what a caller gives and gets."""
_ARRAYS = {**DTYPES, TEXTS: "object", BRAIN: "float32"}
"""Datatype -> dtype of its arrays."""
_NATIVE = {datatype: np.dtype(dtype) for datatype, dtype in _ARRAYS.items()}
"""Likewise, as NumPy's: to compare them takes no call of Python, which their names do."""
_BITS = np.dtype(np.uint16)
_HIGHEST = np.maximum.reduce
MOST_DIMENSIONS = 32
MOST_CHARACTERS = 1 << 26
"""Of a tensor of texts, in which each has the room of the longest."""
"""Dimensions of a tensor."""
_LENGTH = 4
"""Bytes before each text, which say how long it is, little-endian."""


class Tensor(NamedTuple):
    """A tensor of a reply, not decoded yet. Fields are as the server gave them: of any type."""

    name: Any
    datatype: Any
    shape: Any
    data: Any
    """A list of values; or its bytes, as `bytes` or a `memoryview`."""


class Invalid(ValueError):
    """A message that quotes no value of a reply."""


def spec_of(name: Any, datatype: Any, shape: Any) -> TensorSpec:
    """The specification of an input as metadata describes it; texts have the dtype object.

    Raises:
        KeyError, TypeError, ValueError, OverflowError: it is not described in the protocol's way.
    """
    return TensorSpec(str(name), _ARRAYS[datatype], shape_of(shape, free=True))


def stacked(inputs: Sequence[Any], spec: TensorSpec) -> Array:
    """Stacks inputs, each without the batch axis. A text or bytes alone is a tensor of one.

    Raises:
        BadInput: an input does not fit.
    """
    if spec.dtype != "object":
        return stack(inputs, spec)
    array = stack([_objects(x, spec) for x in inputs], spec)
    if not all(isinstance(one, str | bytes) for one in array.flat):
        raise BadInput(f"{spec.name}: expected texts or bytes, and one is something else")
    return array


def _objects(x: Any, spec: TensorSpec) -> Array:
    row: Array = x.astype(object) if isinstance(x, np.ndarray) else np.asarray(x, object)
    return row if row.ndim else row.reshape((1,) * (len(spec.shape) - 1))


def datatype_of(array: Array, wanted: str | None) -> str:
    """What an array is sent as: what the server wants, if that has its dtype; else what it is, and the server refuses it."""
    dtype = array.dtype
    return wanted if wanted is not None and _NATIVE.get(wanted) == dtype else NAMES.get(dtype.name, TEXTS)


def blank(array: Array) -> Array:
    """Zeros, or empty texts, in the shape of the array's first row."""
    return np.full_like(array[:1], "" if array.dtype.hasobject else 0)


def raw(array: Array, datatype: str) -> memoryview | bytes:
    """The bytes of a tensor."""
    if datatype == TEXTS:
        texts = [one.encode() if isinstance(one, str) else one for one in array.flat]
        return b"".join(part for one in texts for part in (len(one).to_bytes(_LENGTH, "little"), one))
    if datatype == BRAIN:
        bits = np.ascontiguousarray(array, np.float32).view(np.uint32)
        array = ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16)  # rounded to the nearest, or the even one
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8).data  # copied once, as the request is put together


def listed(array: Array, datatype: str) -> list[Any]:
    """The values of a tensor for JSON, flat.

    Raises:
        BadInput: bytes that are no text.
    """
    values: list[Any] = array.ravel().tolist()
    if datatype != TEXTS:
        return values
    try:
        return [one.decode() if isinstance(one, bytes) else one for one in values]
    except UnicodeDecodeError:
        raise BadInput("bytes that are no UTF-8 text cannot be sent as JSON, and the server takes no binary tensors") from None


def decoded(tensor: Tensor, shape: tuple[int, ...]) -> Array:
    """The array of a reply's tensor.

    Raises:
        Invalid: its values or bytes are not as many as its shape says, or no values of its datatype.
        KeyError, TypeError, ValueError, OverflowError: it is malformed in another way.
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
    if size and array.dtype.kind == "f" and not _HIGHEST(array) < INF:  # false for NaN too; minus infinity is a valid logit
        raise Invalid("the output holds NaN or infinity")
    return array.reshape(shape)


def _numbers(data: Any, dtype: np.dtype[Any]) -> Array:
    """The numbers of a JSON list, flat."""
    array = np.array(data)
    if array.dtype.kind in "US":
        raise Invalid("text instead of numbers")
    with np.errstate(over="ignore"):  # overflow becomes infinity, which is rejected; integers raise
        return (array.astype(dtype) if dtype.kind == "f" else np.array(data, dtype)).reshape(-1)


def _texts(given: Any, size: int) -> Array:
    """Texts, flat: a list of them, or each with its length before it."""
    if isinstance(given, bytes | memoryview):
        found, at = list[Any](), 0
        while at < len(given) and len(found) <= size:
            length = int.from_bytes(given[at : at + _LENGTH], "little")
            at += _LENGTH
            if at + length > len(given):
                raise Invalid("a text that is longer than what came")
            found.append(bytes(given[at : at + length]))
            at += length
    elif isinstance(given, list) and all(isinstance(one, str | bytes) for one in given):
        found = given
    else:
        raise Invalid("no texts where its datatype says so")
    texts = [one.decode(errors="replace") if isinstance(one, bytes) else one for one in found]
    if len(texts) * max(map(len, texts), default=0) > MOST_CHARACTERS:  # each takes the room of the longest
        raise Invalid("texts that take more memory than expected")
    return np.array(texts, str)


def shape_of(given: Any, *, free: bool = False, empty: bool = False) -> tuple[int, ...]:
    """A tensor's shape. `free`: with -1 for any size. `empty`: with 0.

    Raises:
        Invalid: too many dimensions, or a size that is 0, negative or huge.
    """
    if len(given) > MOST_DIMENSIONS:
        raise Invalid(f"a shape of {len(given)} dimensions")
    shape = tuple(map(int, given))
    for size in shape:
        if not (1 <= size < 1 << 31 or (free and size == -1) or (empty and size == 0)):
            raise Invalid(f"a shape with a size {'below 1' if min(shape) < 1 else 'of 2**31 or more'}")
    return shape


def wrong_with(error: Exception) -> str:
    """What is wrong with a reply, without quoting it: it may have anything in it that was sent."""
    if isinstance(error, Invalid):
        return str(error)
    missing = error.args[0] if isinstance(error, KeyError) else None
    return f"{type(error).__name__}: {missing!r}" if missing in _KEYS else type(error).__name__


_KEYS = ("inputs", "outputs", "name", "datatype", "shape", "data")
