"""Cache entries (`Entry`, `CachedEntry`): private copies, which the caller's later changes do not reach, with their size."""

from __future__ import annotations

import gc
from copy import deepcopy
from sys import getsizeof
from types import FunctionType, ModuleType
from typing import Any, NamedTuple

import numpy as np

OVERHEAD_BYTES = 500  # estimated memory of an entry besides its contents: key, tuples, numbers, and slots in the store's tables
_ATOMS = frozenset({type(None), bool, int, float, complex, str, bytes})
_ELSEWHERE = (type, ModuleType, FunctionType)  # types that an object refers to but does not own


class Entry(NamedTuple):
    """Cached answer.

    Attributes:
        at: time of the answer, Unix time, seconds.
    """

    value: Any
    confidence: float | None
    outputs: Any
    leg: str
    side: str
    reason: str
    at: float


class CachedEntry(NamedTuple):
    """Entry with its size in memory, bytes."""

    entry: Entry
    bytes: int
    immutable: bool  # True if the entry is immutable, so that callers may share one object

    def for_caller(self) -> Entry:
        """Return the entry for one caller: arrays are read-only, mutable values are copied."""
        entry = self.entry
        return entry if self.immutable else entry._replace(value=deepcopy(entry.value), outputs=deepcopy(entry.outputs))


def private_copy(entry: Entry) -> CachedEntry | None:
    """Return a private deep copy of the entry with its size in memory; None if it cannot be copied.

    Arrays of the copy are read-only. A value that is the outputs themselves stays the same object.
    """
    try:
        outputs, size, fixed = _copy(entry.outputs)
        if entry.value is entry.outputs:
            value, more, also = outputs, 0, True
        else:
            value, more, also = _copy(entry.value)
    except Exception:  # noqa: BLE001 - a value's own way of being copied may raise anything
        return None
    size += more + getsizeof(entry.leg) + getsizeof(entry.side) + getsizeof(entry.reason) + OVERHEAD_BYTES
    return CachedEntry(entry._replace(value=value, outputs=outputs), size, fixed and also)


def _copy(x: Any) -> tuple[Any, int, bool]:
    """Return a deep copy (arrays read-only, atoms themselves), its size in bytes, and True if it is immutable.

    Raises what deepcopy raises.
    """
    kind = type(x)
    if kind in _ATOMS:
        return x, getsizeof(x), True
    if kind is np.ndarray and not x.dtype.hasobject:
        copied = x.copy()  # also of a row: a view would keep the whole batch alive
        copied.flags.writeable = False
        return copied, getsizeof(copied), True
    if kind is tuple:
        copies = [_copy(item) for item in x]
        return tuple(i[0] for i in copies), getsizeof(x) + sum(i[1] for i in copies), all(i[2] for i in copies)
    copied = deepcopy(x)
    return copied, _size(copied), False


def _size(x: Any) -> int:
    """Return the size in bytes of an object and everything it refers to, each once; types, modules and functions not counted."""
    total, seen, rest = 0, set[int](), [x]
    while rest:
        x = rest.pop()
        if id(x) not in seen and not isinstance(x, _ELSEWHERE):
            seen.add(id(x))
            total += getsizeof(x, 64)
            rest += gc.get_referents(x)
    return total
