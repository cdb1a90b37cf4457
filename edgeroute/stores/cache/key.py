"""Cache key of an input: SHA-256 over an injective encoding."""

from __future__ import annotations

from functools import lru_cache
from hashlib import sha256
from struct import pack
from typing import Any

import numpy as np

_BYTES = np.dtype(np.uint8)
_ARRAYS = frozenset({np.ndarray, np.memmap})  # other subclasses may hold more than their data, as a mask


def digest(prefix: bytes, x: Any) -> bytes | None:
    """SHA-256 (32 bytes) of the prefix and the input; None: the input's type has no injective encoding.

    Supported: numpy arrays and scalars without Python objects, str, bytes, None, bool, int, float, and lists, tuples and
    dicts (with str keys, in any order) of these. Equal numbers of different types differ, as do 0.0 and -0.0. The input may
    be mutated after the call.
    """
    try:
        parts = encoded(prefix, x)
    except (TypeError, RecursionError):  # RecursionError: nested too deeply, or self-referential
        return None
    h = sha256()
    for part in parts:
        h.update(part)
    return h.digest()


def encoded(prefix: bytes, x: Any) -> list[Any]:
    """The encoding as buffers; large ones are views of the input.

    Raises:
        TypeError: the input is of an unsupported type.
    """
    parts: list[Any] = [b"%d:" % len(prefix), prefix]
    _add(x, parts)
    return parts


def _add(x: Any, parts: list[Any]) -> None:
    """Appends a type tag, then a length or end mark where the tag does not fix the length."""
    kind = type(x)
    if kind in _ARRAYS:
        _add_array(b"a", x, parts)
    elif kind is str:
        data = x.encode("utf-8", "surrogatepass")
        parts += (b"s%d:" % len(data), data)
    elif kind is bytes:
        parts += (b"b%d:" % len(x), x)
    elif kind is float:
        parts.append(pack("<cd", b"f", x))
    elif kind is bool:
        parts.append(b"T" if x else b"F")
    elif kind is int:
        parts.append(b"i%x;" % x)  # hexadecimal: Python limits the digits of decimals
    elif x is None:
        parts.append(b"N")
    elif kind is list or kind is tuple:
        parts.append(b"%c%d:" % (b"l" if kind is list else b"t", len(x)))
        for item in x:
            _add(item, parts)
    elif kind is dict:
        if any(type(name) is not str for name in x):
            raise TypeError
        parts.append(b"d%d:" % len(x))
        for name in sorted(x):
            _add(name, parts)
            _add(x[name], parts)
    elif isinstance(x, np.generic):
        _add_array(b"g", np.asarray(x), parts)
    else:
        raise TypeError


def _add_array(tag: bytes, x: Any, parts: list[Any]) -> None:
    dtype = x.dtype
    kind = _dtype(dtype)
    flat = x.ravel()  # a view, unless the array is not contiguous
    if dtype is not _BYTES:
        flat = flat.view(_BYTES) if dtype.itemsize else b""  # not every dtype goes through the buffer protocol
    parts += (tag + kind + repr(x.shape).encode(), flat)


@lru_cache(maxsize=256)  # formatting a dtype takes longer than hashing a small image
def _dtype(dtype: np.dtype[Any]) -> bytes:
    if dtype.hasobject:
        raise TypeError
    text = f"{dtype.str} {dtype!r}".encode()  # `str` alone does not distinguish bfloat16 from any two bytes
    return b"%d:%b" % (len(text), text)
