"""JSON with orjson or Python's own library; values as JSON types, and in few characters."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from math import isfinite
from reprlib import Repr
from typing import Any, NoReturn

orjson: Any = NotImplemented  # the module, imported at the first use; None: it is not installed


def _orjson() -> Any:
    """Return the module orjson, which the first call imports; None if it is not installed."""
    global orjson  # noqa: PLW0603 - the module is imported once
    if orjson is NotImplemented:
        from edgeroute.system.late_imports_and_plugins import import_late  # a fork waits for it: no child finds an import's lock

        try:
            orjson = import_late("orjson")
        except ImportError:
            orjson = None
    return orjson


def json_dumps(data: Any, default: Callable[[Any], Any] | None = None, *, arrays: bool = False) -> bytes:
    """Return `data` as compact JSON in UTF-8, with NaN and infinities as null. Uses orjson if it is installed.

    Args:
        data: may contain integers of more than 64 bits and unpaired surrogates.
        default: converts a value of another type to one that is written instead.
        arrays: writes flat numpy arrays as lists if the library can; otherwise they go to `default`.

    Raises:
        TypeError: a value has a type that JSON lacks, and there is no `default` for it.
    """
    if (fast := _orjson()) is not None:
        try:
            return fast.dumps(data, default, fast.OPT_SERIALIZE_NUMPY if arrays else None)  # type: ignore[no-any-return]
        except TypeError:  # Python's encoder may accept it; `suppress` would double the time
            pass
    try:
        return json.dumps(data, default=default, allow_nan=False, separators=(",", ":")).encode()
    except ValueError:
        return json.dumps(to_json_types(data), separators=(",", ":")).encode()


def json_loads(text: bytes | memoryview, *, exact: bool = False) -> Any:
    """Return the value that a JSON text in UTF-8 stands for. Uses orjson if it is installed.

    Args:
        text: NaN and Infinity, which are Python's extensions, are rejected with either library.
        exact: preserves integers of more than 64 bits and unpaired surrogates; may take twice as long.

    Raises:
        ValueError: not JSON.
        RecursionError: nested too deeply.
    """
    if exact or (fast := _orjson()) is None:
        return _DECODER.decode(str(text, "utf-8"))
    return fast.loads(text)


def _no_number(word: str) -> NoReturn:
    """Raise ValueError for NaN and Infinity, which Python's decoder would accept."""
    raise ValueError(f"{word} is not JSON")


_DECODER = json.JSONDecoder(parse_constant=_no_number)


def to_json_types(value: Any) -> Any:
    """Return a copy of a value in JSON types.

    numpy's values become Python's, NaN and infinities None, a mapping's keys and objects of other types text. Raises
    RecursionError if nested too deeply.
    """
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return float(value) if isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): to_json_types(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [to_json_types(part) for part in value]
    listed = value.tolist() if hasattr(value, "tolist") else value  # numpy values, without importing numpy
    return str(value) if listed is value or hasattr(listed, "tolist") else to_json_types(listed)


class _Short(Repr):
    """Formatter that writes a value in few characters: arrays and tensors as dtype and shape, long bytes as their beginning."""

    def repr_instance(self, x: Any, level: int) -> str:
        """Return an array or tensor as dtype and shape, long bytes as their beginning and length, others as `reprlib` does."""
        dtype, shape = getattr(x, "dtype", None), getattr(x, "shape", None)
        if dtype is not None and isinstance(shape, Iterable) and shape:
            return f"{dtype} [{', '.join(map(str, shape))}]"
        if isinstance(x, bytes | bytearray) and len(x) > self.maxstring:
            return f"{bytes(x[: self.maxstring // 2])!r}... ({len(x):,} bytes)"
        return super().repr_instance(x, level)


short = _Short()  # shared formatter: `short.repr(value)` is at most about 60 characters of a text or of a foreign object
short.maxstring = short.maxother = 60
