"""Copies of inputs, for what goes on after their call."""

from __future__ import annotations

from array import array
from collections.abc import Mapping
from typing import Any


def own_copy(x: Any) -> Any:
    """The input as a copy that its owner cannot change any more.

    Arrays, buffers and what else has `dtype` (tables: `dtypes`) and `copy`, `clone` (tensors) or Pillow's `copy` are copied, and
    containers with what is in them. Any other object is taken as it is.
    """
    kind = type(x)
    if kind in _IMMUTABLE:
        return x
    if isinstance(x, Mapping):
        parts = {name: own_copy(part) for name, part in x.items()}
        return parts if kind is dict else _rebuilt(x, parts)
    if isinstance(x, tuple):
        items = [own_copy(part) for part in x]
        return kind(*items) if hasattr(x, "_fields") else tuple(items)
    if isinstance(x, list):
        return [own_copy(part) for part in x]
    if isinstance(x, bytearray | array):
        return x[:]
    if isinstance(x, memoryview):
        return _copied_view(x)
    if hasattr(kind, "from_buffer_copy"):  # ctypes' own
        return kind.from_buffer_copy(x)
    copy = getattr(x, "clone", None) or getattr(x, "copy", None)
    if copy is not None and (hasattr(x, "dtype") or hasattr(x, "dtypes") or hasattr(x, "getpixel")):
        return copy()
    return x


def _copied_view(x: memoryview) -> memoryview:
    """With its format and shape: without them it is another input."""
    try:
        whole: Any = memoryview(bytearray(x.tobytes()))
        return whole.cast(x.format, x.shape)  # type: ignore[no-any-return]
    except (TypeError, ValueError):  # a format or a shape that cannot be cast to
        import numpy as np

        copied: Any = np.array(x)
        return memoryview(copied)


def _rebuilt(x: Mapping[Any, Any], parts: dict[Any, Any]) -> Any:
    try:
        return type(x)(parts)  # type: ignore[call-arg]  # as mappings are made; if not, a dict has the same in it
    except Exception:  # noqa: BLE001
        return parts


_IMMUTABLE = frozenset({type(None), bool, int, float, complex, str, bytes})
