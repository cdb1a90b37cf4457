"""Serialisation without pickle: arrays as .npy, nested values with arrays (`pack`), inputs by content type (`encode_input`)."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from edgeroute.errors import BadInput

_KINDS = "?biufcSUmM"  # numpy kinds that a .npy file restores unchanged; objects and foreign types are not among them
_FOREIGN = 2  # `isbuiltin` of a dtype that another library has registered
_HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}


def is_array(x: Any) -> bool:
    """Return True for an array that a .npy file restores unchanged; a masked one would lose its mask."""
    return type(x) in {np.ndarray, np.memmap} and x.dtype.kind in _KINDS and x.dtype.isbuiltin != _FOREIGN


def to_npy(x: Any) -> bytes:
    """Return an array as the bytes of a .npy file. Raises ValueError for arrays of objects."""
    to = io.BytesIO()
    np.save(to, x, allow_pickle=False)
    return to.getvalue()


def from_npy(body: bytes) -> Any:
    """Return the array in the bytes of a .npy file, as a writable copy. Its stated size is checked before memory is allocated.

    Bytes after the array are ignored.

    Raises:
        ValueError: the bytes are damaged, of another version than 1.0 or 2.0, or an array of Python objects.
    """
    file = io.BytesIO(body)
    version = np.lib.format.read_magic(file)
    if version not in _HEADERS:
        raise ValueError(f"an array is not stored as .npy of version {version}")
    shape, by_columns, dtype = _HEADERS[version](file)
    if min(shape, default=0) < 0 or math.prod(shape) * dtype.itemsize > len(body) - file.tell():
        raise ValueError(f"an array of {shape} {dtype} does not fit in {len(body)} bytes")
    if dtype.hasobject:
        raise ValueError("an array of objects is never read")
    return np.ndarray(shape, dtype, body, file.tell(), order="F" if by_columns else "C").copy("K")


def to_json(x: Any, parts: list[bytes]) -> Any:
    """Return the value in JSON types; append the bytes of its arrays, numpy scalars and bytes objects to `parts`.

    A list, and anything that JSON lacks, becomes a list that begins with a letter for its kind, so that no value is ambiguous.

    Raises:
        TypeError: the value holds something that would not be restored unchanged.
    """
    kind = type(x)
    if x is None or kind in {bool, int, float, str}:
        return x
    if kind is list or kind is tuple:
        return ["l" if kind is list else "t", *(to_json(part, parts) for part in x)]
    if kind is dict:
        if any(type(name) is not str for name in x):
            raise TypeError
        return {name: to_json(part, parts) for name, part in x.items()}
    if kind is bytes:
        parts.append(x)
        return ["b"]
    if is_array(x):
        parts.append(to_npy(x))
        return ["a"]
    if isinstance(x, np.generic) and is_array(array := np.asarray(x)):
        parts.append(to_npy(array))
        return ["g"]
    raise TypeError


def from_json(x: Any, parts: Iterator[bytes]) -> Any:
    """Return the value that `to_json` took apart; takes its binary parts from the iterator.

    Raises:
        ValueError, StopIteration, LookupError: the data are damaged.
    """
    if isinstance(x, dict):
        return {name: from_json(part, parts) for name, part in x.items()}
    if not isinstance(x, list):
        return x
    kind, *items = x
    if kind in {"l", "t"}:
        values = [from_json(part, parts) for part in items]
        return values if kind == "l" else tuple(values)
    if kind == "b":
        return next(parts)
    if kind not in {"a", "g"}:
        raise ValueError("a part of the stored value is of an unknown kind")
    array = from_npy(next(parts))
    return array if kind == "a" else array[()]


def join_parts(parts: Sequence[bytes]) -> bytes:
    """Join byte strings, each after its length (8 bytes, big-endian)."""
    return b"".join(len(part).to_bytes(8, "big") + part for part in parts)


def split_parts(body: bytes) -> Iterator[bytes]:
    """Yield the byte strings that `join_parts` joined, lazily: an error comes as the damaged part is reached.

    Raises:
        ValueError: the bytes are damaged.
    """
    end = 0
    while end < len(body):
        size = int.from_bytes(body[end : end + 8], "big")
        end += 8 + size
        if size > len(body) or end > len(body):
            raise ValueError("a part of the stored value is longer than the whole")
        yield body[end - size : end]


def pack(x: Any) -> bytes | None:
    """Return a value of JSON types, tuples, bytes, arrays and numpy scalars as bytes; None if it would not be restored unchanged.

    Equal values give the same bytes, unless their keys come in another order.
    """
    parts: list[bytes] = []
    try:
        head = json.dumps(to_json(x, parts), separators=(",", ":")).encode()
    except (TypeError, ValueError, RecursionError):  # of another type; a list in itself
        return None
    return join_parts([head, *parts])


def unpack(body: bytes) -> Any:
    """Return the value that `pack` packed. Surplus parts count as damage.

    Raises:
        ValueError: the bytes are damaged.
    """
    parts = split_parts(body)
    try:
        value = from_json(json.loads(next(parts)), parts)
        surplus = next(parts, None)
    except (StopIteration, LookupError, RecursionError, EOFError, TypeError) as e:
        raise ValueError("the stored value is damaged") from e
    if surplus is not None:
        raise ValueError("the stored value has more binary parts than places for them")
    return value


NPY, RAW, JSON = "application/x-npy", "application/octet-stream", "application/json"
# Content type of `edgeroute.stores.serialisation`: nested values with arrays and bytes in them.
MIXED = "application/x-edgeroute-mixed"


def encode_input(x: Any) -> tuple[str, bytes] | None:
    """Return content type and bytes of an input; None if it cannot be stored.

    Arrays, bytes, JSON values, and lists and mappings of these are restored unchanged; but tuples in a JSON value become lists.
    """
    if isinstance(x, bytes):
        return RAW, x
    if is_array(x):
        return NPY, to_npy(x)
    try:
        if _is_json(x):
            return JSON, json.dumps(x, separators=(",", ":")).encode()
    except (ValueError, RecursionError):  # a lone surrogate in a name; a self-referential list
        pass
    mixed = pack(x) if isinstance(x, dict | list | tuple) else None
    return None if mixed is None else (MIXED, mixed)


def decode_input(content_type: str, body: bytes) -> Any:
    """Return the input that `encode_input` encoded.

    Raises:
        BadInput: the content type is unknown.
        ValueError: the bytes are malformed.
    """
    if content_type == NPY:
        return from_npy(body)
    if content_type == RAW:
        return body
    if content_type == JSON:
        return json.loads(body)
    if content_type == MIXED:
        return unpack(body)
    raise BadInput(f"unknown content type of a stored input: {content_type!r}")


def _is_json(x: Any) -> bool:
    """Return True if a value consists of JSON types, with texts as keys; tuples count as lists, and NaN as a number.

    Raises RecursionError for a value that contains itself.
    """
    if isinstance(x, dict):
        return all(isinstance(name, str) and _is_json(part) for name, part in x.items())
    if isinstance(x, list | tuple):
        return all(_is_json(part) for part in x)
    return x is None or isinstance(x, bool | int | float | str)
