"""Copies of the caller's inputs, for work that goes on after the call has returned."""

from __future__ import annotations

from array import array
from collections.abc import Mapping
from typing import Any


def copy_input(x: Any) -> Any:
    """Return a copy of an input, which the caller cannot change later.

    Copied are: arrays and whatever else has `dtype` (tables: `dtypes`) and `copy`; tensors, by `clone`; Pillow's images; buffers
    and ctypes objects; and mappings, tuples and lists, each with its items. Any other object is returned as the same object.
    """
    kind = type(x)
    if kind in _IMMUTABLE:
        return x
    if isinstance(x, Mapping):
        parts = {name: copy_input(part) for name, part in x.items()}
        return parts if kind is dict else _rebuild(x, parts)
    if isinstance(x, tuple):
        items = [copy_input(part) for part in x]
        return kind(*items) if hasattr(x, "_fields") else tuple(items)
    if isinstance(x, list):
        return [copy_input(part) for part in x]
    if isinstance(x, bytearray | array):
        return x[:]
    if isinstance(x, memoryview):
        return _copy_view(x)
    if hasattr(kind, "from_buffer_copy"):  # ctypes' own
        return kind.from_buffer_copy(x)
    copy = getattr(x, "clone", None) or getattr(x, "copy", None)
    if copy is not None and (hasattr(x, "dtype") or hasattr(x, "dtypes") or hasattr(x, "getpixel")):
        return copy()
    return x


def _copy_view(x: memoryview) -> memoryview:
    """Return a memoryview of copied bytes with the format and shape of `x`, from which models read the dtype and the axes."""
    try:
        whole: Any = memoryview(bytearray(x.tobytes()))
        return whole.cast(x.format, x.shape)  # type: ignore[no-any-return]
    except (TypeError, ValueError):  # a format or a shape that cannot be cast to
        import numpy as np

        copied: Any = np.array(x)
        return memoryview(copied)


def _rebuild(x: Mapping[Any, Any], parts: dict[Any, Any]) -> Any:
    """Return a mapping of the type of `x` with these items, or a dict where that type cannot be made from a dict."""
    try:
        return type(x)(parts)  # type: ignore[call-arg]  # as mappings are made; if not, a dict has the same in it
    except Exception:  # noqa: BLE001
        return parts


_IMMUTABLE = frozenset({type(None), bool, int, float, complex, str, bytes})
"""Types whose values are returned uncopied."""
