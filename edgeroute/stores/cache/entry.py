"""An answer as it is kept: nobody who put it or was given it can change it."""

from __future__ import annotations

import gc
from copy import deepcopy
from sys import getsizeof
from types import FunctionType, ModuleType
from typing import Any, NamedTuple

import numpy as np

OVERHEAD_BYTES = 500
"""What an entry takes beside its contents: the key, the tuples, the numbers, and its places in the store's tables."""
_ATOMS = frozenset({type(None), bool, int, float, complex, str, bytes})
_ELSEWHERE = (type, ModuleType, FunctionType)
"""What an object refers to and does not own."""


class Entry(NamedTuple):
    """One answer."""

    value: Any
    confidence: float | None
    outputs: Any
    leg: str
    side: str
    reason: str
    at: float
    """When it was given, seconds since 1970."""


class CachedEntry(NamedTuple):
    """An entry as the store has it."""

    entry: Entry
    bytes: int
    fixed: bool
    """It cannot be changed, so everyone may be given the same."""

    def given(self) -> Entry:
        """The entry for one taker. Arrays are read-only, and of what can be changed it is the taker's own copy."""
        entry = self.entry
        return entry if self.fixed else entry._replace(value=deepcopy(entry.value), outputs=deepcopy(entry.outputs))


def keep(entry: Entry) -> CachedEntry | None:
    """A copy that the caller cannot change any more; None: it cannot be copied."""
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
    """-> the copy, its bytes, whether it is fixed."""
    kind = type(x)
    if kind in _ATOMS:
        return x, getsizeof(x), True
    if kind is np.ndarray and not x.dtype.hasobject:
        own = x.copy()  # also of a row: a view would keep the whole batch alive
        own.flags.writeable = False
        return own, getsizeof(own), True
    if kind is tuple:
        items = [_copy(item) for item in x]
        return tuple(i[0] for i in items), getsizeof(x) + sum(i[1] for i in items), all(i[2] for i in items)
    own = deepcopy(x)
    return own, _size(own), False


def _size(x: Any) -> int:
    """Bytes of an object and of all that it owns."""
    total, seen, rest = 0, set[int](), [x]
    while rest:
        x = rest.pop()
        if id(x) not in seen and not isinstance(x, _ELSEWHERE):
            seen.add(id(x))
            total += getsizeof(x, 64)
            rest += gc.get_referents(x)
    return total
