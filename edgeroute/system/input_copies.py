"""Deep copies of the caller's inputs, for work that goes on after the call has returned; of objects by `__reduce_ex__`, too."""

from __future__ import annotations

import copyreg
from array import array
from collections import deque
from collections.abc import Mapping
from contextlib import suppress
from math import inf, prod
from types import FunctionType
from typing import Any
from weakref import WeakKeyDictionary, WeakSet, WeakValueDictionary

from edgeroute.system.contained_calls_and_tasks import call_contained

# Id of an object -> its copy; under the memo's own id a list that keeps the objects alive, as in `copy.deepcopy`.
Memo = dict[int, Any]
_APART = 4  # times that the copy of an array's bytes takes if they do not lie in one piece, at most, about
_LEFT = -1  # key of a memo, no object's id: how many bytes may still be copied
_LISTS, _BYTES = (list, dict, tuple, set, frozenset, deque), (bytes, str, bytearray, array)  # also their subclasses


def copy_input(x: Any, most: float = inf) -> Any:
    """Return a deep copy of an input, of the same type and with the same attributes, which the caller cannot change later.

    The copy is made by the type's own `__deepcopy__`, `clone` or `__reduce_ex__`. Immutable values, classes, and what its type
    says to be its own copy are returned as the same object.

    Args:
        x: the input.
        most: maximum size, bytes; a list's item counts as 300, an object as 5,000, and the numbers of a picture, and of what
            does not lie in one piece, as several times their bytes, as they take so long.

    Raises:
        TimeoutError: it is larger; at once for an array or a picture, else once so much is copied.
        TypeError: a part has no copy: a generator, a lock, an open file, a closure, or a type that hides its state.
        Exception: as raised by the type's own method.
    """
    kind = type(x)
    if kind in _IMMUTABLE:
        return x
    if kind.__name__ == "ndarray" and not x.dtype.hasobject and x.nbytes * _APART <= most:
        return x.copy("K")
    return _copy(x, {} if most == inf else {_LEFT: most})


def copy_value(value: Any) -> Any:
    """Return a deep copy of an answer's value as `copy_input` does; a value that has no copy is returned as the same object."""
    try:
        return call_contained(copy_input, value)
    except Exception:  # noqa: BLE001 - a value's own way of being copied may raise anything
        return value


def copy_answer(answer: Any) -> Any:
    """Return an answer, a named tuple, with `copy_value` of its value: its caller may change what it got. None stays None."""
    return answer and answer._replace(value=copy_value(answer.value))


def _copy(x: Any, memo: Memo) -> Any:
    """Return the deep copy of `x`, and record it in `memo`, so that an object that occurs twice, or within itself, has one copy.

    Raises TypeError for a part that has no copy, or whose copy has another type.
    """
    kind = type(x)
    if kind in _IMMUTABLE or issubclass(kind, type):
        return x
    if (known := memo.get(id(x))) is not None:
        return known
    if _LEFT in memo:
        _take(x, memo)
    if kind is list:
        copied: Any = []
        memo[id(x)] = copied
        copied.extend([_copy(item, memo) for item in x])
    elif kind is dict:
        copied = memo[id(x)] = {}
        copied.update({_copy(key, memo): _copy(value, memo) for key, value in x.items()})
    elif kind is tuple:
        copied = memo.get(id(x), tuple([_copy(item, memo) for item in x]))  # looked up last: it may contain itself in a list
    else:
        copied = _copy_object(x, kind, memo)
        if type(copied) is not kind:
            raise TypeError(f"the copy of a {kind.__name__} is a {type(copied).__name__}")
    memo[id(x)] = copied
    memo.setdefault(id(memo), []).append(x)
    return copied


def _take(x: Any, memo: Memo) -> None:
    """Take the size of an object, without that of its parts, from what is left. Raise TimeoutError if that is not enough."""
    size = 0
    with suppress(Exception):  # of the application's types
        if hasattr(x, "getbands"):  # a picture of Pillow, perhaps of a file that is not decoded yet
            size = prod(x.size) * len(x.getbands()) * (32 if getattr(x, "tile", None) else 8)
        elif isinstance(x, _LISTS + _BYTES):
            size = 300 * len(x) if isinstance(x, _LISTS) else x.__sizeof__()
        else:
            size = getattr(x, "nbytes", None) or memoryview(x).nbytes
            if not getattr(x, "c_contiguous", getattr(getattr(x, "flags", None), "forc", True)):  # of a view, of an array
                size *= 24 if type(x) is memoryview else _APART
    memo[_LEFT] -= 5000 + (size if type(size) is int else 0)
    if memo[_LEFT] < 0:
        raise TimeoutError("that takes too long for the deadline")


def _copy_object(x: Any, kind: type, memo: Memo) -> Any:
    """Return the copy of an object that is no plain list, dict or tuple, by the first way that its type offers.

    These are: a copy of the buffer, `clone` of a tensor, `__deepcopy__`, and `__reduce_ex__`. A function without a state of its
    own is returned itself. Raises TypeError for what cannot be copied.
    """
    if kind in {bytearray, array, memoryview}:
        return _copy_view(x) if kind is memoryview else x[:]
    if kind is FunctionType:
        if x.__closure__ or x.__defaults__ or x.__kwdefaults__ or x.__dict__:
            raise TypeError("a function with a state of its own cannot be copied")
        return x
    if issubclass(kind, _WEAK):
        raise TypeError(f"a {kind.__name__} cannot be copied: its values are not its own")
    dtype = getattr(x, "dtype", None)
    if hasattr(kind, "__array_finalize__"):
        copied = _rebuild(x, memo) if x.dtype.hasobject else x.copy("K") if kind.__name__ == "ndarray" else x.copy()
        return _with_attributes(x, copied, memo)
    if dtype is not None or hasattr(x, "dtypes"):
        if dtype is None or getattr(dtype, "hasobject", False):
            return _rebuild(x, memo)  # the own copy of a table shares what its cells refer to
        if hasattr(kind, "clone") and not getattr(x, "__dict__", None) and type(copied := x.clone()) is kind:
            return copied  # a tensor within a graph has no deepcopy
    if (deepcopy := getattr(kind, "__deepcopy__", None)) is not None:
        copied = deepcopy(x, memo)
        if type(copied) is kind:
            return copied if copied is x else _with_attributes(x, copied, memo)
    try:
        return _rebuild(x, memo)
    except TypeError:
        if isinstance(x, Mapping):  # a mapping proxy, for example
            return kind({_copy(key, memo): _copy(value, memo) for key, value in x.items()})  # type: ignore[call-arg]
        raise


def _with_attributes(x: Any, copied: Any, memo: Memo) -> Any:
    """Add copies of those attributes of `x` to its copy, in place, that its type's method left out. Return the copy."""
    if missing := {name: value for name, value in getattr(x, "__dict__", {}).items() if name not in copied.__dict__}:
        copied.__dict__.update(_copy(missing, memo))
    return copied


def _rebuild(x: Any, memo: Memo) -> Any:
    """Return an object made anew from what `__reduce_ex__` says of `x`, with copies of all parts.

    The protocol is `pickle`'s 4, by which buffers are copied and types that hide their state refuse.
    """
    reducer: Any = copyreg.dispatch_table.get(type(x))
    reduced = x.__reduce_ex__(4) if reducer is None else reducer(x)
    if isinstance(reduced, str):  # a global name
        return x
    make, args, state, items, pairs = (*reduced, None, None, None)[:5]
    copied = make(*[_copy(part, memo) for part in args])
    memo[id(x)] = copied
    memo.setdefault(id(memo), []).append((x, reduced))
    if state is not None:
        _set_state(copied, _copy(state, memo))
    for item in items or ():
        copied.append(_copy(item, memo))
    for key, value in pairs or ():
        copied[_copy(key, memo)] = _copy(value, memo)
    return copied


def _set_state(copied: Any, state: Any) -> None:
    """Set the state of a new object in place, by its own `__setstate__`, or its attributes and slots."""
    if hasattr(copied, "__setstate__"):
        copied.__setstate__(state)
        return
    attributes, slots = state if isinstance(state, tuple) else (state, {})
    if attributes:
        vars(copied).update(attributes)
    for name, value in slots.items():
        setattr(copied, name, value)


def _copy_view(x: memoryview) -> memoryview:
    """Return a memoryview of copied bytes with the format and shape of `x`, from which models read the dtype and the axes.

    Read-only if `x` is. Formats that no view can be cast to are copied by numpy.
    """
    try:
        whole: Any = memoryview(bytearray(x.tobytes()))
        copied = whole.cast(x.format, x.shape)
    except (TypeError, ValueError):  # a format or a shape that cannot be cast to
        import numpy as np

        copied = memoryview(np.array(x))  # type: ignore[arg-type]
    return copied.toreadonly() if x.readonly else copied  # type: ignore[no-any-return]


# Types whose values are returned uncopied.
_IMMUTABLE = frozenset({type(None), bool, int, float, complex, str, bytes, range, object, type(...), type(NotImplemented)})
_WEAK = (WeakKeyDictionary, WeakSet, WeakValueDictionary)  # types whose own copies share the values
