"""Serialisation of nested values with arrays and bytes in them: JSON, with the rest beside it. Never pickle."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

_KINDS = "?biufcSUmM"
"""numpy kinds that a .npy file restores unchanged; objects and foreign types it does not."""
_FOREIGN = 2
"""`isbuiltin` of a dtype that another library has registered."""
_HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}


def is_array(x: Any) -> bool:
    """Whether it is an array that comes back from a .npy file as it was; a masked one would lose its mask."""
    return type(x) in {np.ndarray, np.memmap} and x.dtype.kind in _KINDS and x.dtype.isbuiltin != _FOREIGN


def npy(x: Any) -> bytes:
    """An array as a .npy file."""
    to = io.BytesIO()
    np.save(to, x, allow_pickle=False)
    return to.getvalue()


def loaded(body: bytes) -> Any:
    """The array of a .npy file. Its announced size is checked before memory is allocated for it.

    Raises:
        ValueError: it is damaged.
    """
    file = io.BytesIO(body)
    version = np.lib.format.read_magic(file)
    if version not in _HEADERS:
        raise ValueError(f"an array is not stored as .npy of version {version}")
    shape, _, dtype = _HEADERS[version](file)
    if min(shape, default=0) < 0 or math.prod(shape) * dtype.itemsize > len(body) - file.tell():
        raise ValueError(f"an array of {shape} {dtype} does not fit in {len(body)} bytes")
    return np.load(io.BytesIO(body), allow_pickle=False)


def taken_apart(x: Any, parts: list[bytes]) -> Any:
    """The value for JSON; arrays, numpy's scalars and bytes in it are appended to `parts`.

    A list and what is no JSON is written as a list that begins with its kind, so nothing in a value can be taken for another.

    Raises:
        TypeError: there is something in it that would not come back as it was.
    """
    kind = type(x)
    if x is None or kind in {bool, int, float, str}:
        return x
    if kind is list or kind is tuple:
        return ["l" if kind is list else "t", *(taken_apart(part, parts) for part in x)]
    if kind is dict:
        if any(type(name) is not str for name in x):
            raise TypeError
        return {name: taken_apart(part, parts) for name, part in x.items()}
    if kind is bytes:
        parts.append(x)
        return ["b"]
    if is_array(x):
        parts.append(npy(x))
        return ["a"]
    if isinstance(x, np.generic) and is_array(array := np.asarray(x)):
        parts.append(npy(array))
        return ["g"]
    raise TypeError


def put_together(x: Any, parts: Iterator[bytes]) -> Any:
    """Inverse of `taken_apart`.

    Raises:
        ValueError, StopIteration, LookupError: it is damaged.
    """
    if isinstance(x, dict):
        return {name: put_together(part, parts) for name, part in x.items()}
    if not isinstance(x, list):
        return x
    kind, *items = x
    if kind in {"l", "t"}:
        made = [put_together(part, parts) for part in items]
        return made if kind == "l" else tuple(made)
    if kind == "b":
        return next(parts)
    if kind not in {"a", "g"}:
        raise ValueError("a part of it is of no known kind")
    array = loaded(next(parts))
    return array if kind == "a" else array[()]


def framed(parts: Sequence[bytes]) -> bytes:
    """The parts with their lengths before them."""
    return b"".join(len(part).to_bytes(8, "big") + part for part in parts)


def unframed(body: bytes) -> Iterator[bytes]:
    """Inverse of `framed`.

    Raises:
        ValueError: it is damaged.
    """
    at = 0
    while at < len(body):
        size = int.from_bytes(body[at : at + 8], "big")
        at += 8 + size
        if size > len(body) or at > len(body):
            raise ValueError("a part of it is longer than the whole")
        yield body[at - size : at]


def pack(x: Any) -> bytes | None:
    """The value as bytes, the same each time; None: it would not come back as it was."""
    parts: list[bytes] = []
    try:
        head = json.dumps(taken_apart(x, parts), separators=(",", ":")).encode()
    except (TypeError, ValueError, RecursionError):  # of another type; a list in itself
        return None
    return framed([head, *parts])


def unpack(body: bytes) -> Any:
    """Inverse of `pack`.

    Raises:
        ValueError: it is damaged.
    """
    parts = unframed(body)
    try:
        made = put_together(json.loads(next(parts)), parts)
        left = next(parts, None)
    except (StopIteration, LookupError, RecursionError, EOFError, TypeError) as e:
        raise ValueError("it is damaged") from e
    if left is not None:
        raise ValueError("it has more parts than places for them")
    return made
