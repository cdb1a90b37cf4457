"""Cache keys of inputs (`digest`), by SHA-256 over an injective encoding; `fingerprint` of models, functions and files."""

from __future__ import annotations

from functools import lru_cache
from hashlib import sha256
from inspect import getattr_static
from os import PathLike
from pathlib import Path
from struct import pack
from types import BuiltinFunctionType, CodeType, FunctionType, ModuleType
from typing import Any
from uuid import uuid4

import numpy as np

from edgeroute.core.error_codes_and_texts import UNIDENTIFIED
from edgeroute.system.files_and_lock_waits import file_sha256, file_stamp, files_in

_BYTES = np.dtype(np.uint8)
_ARRAYS = frozenset({np.ndarray, np.memmap})  # other subclasses may hold more than their data, as a mask


def digest(prefix: bytes, x: Any) -> bytes | None:
    """Return SHA-256 (32 bytes) of the prefix and the input; None if the input's type has no injective encoding.

    Supported: numpy arrays and scalars without Python objects, str, bytes, None, bool, int, float, and lists, tuples and
    dicts (with str keys, in any order) of these. Equal numbers of different types differ, as do 0.0 and -0.0. The input may
    be mutated after the call.
    """
    try:
        parts = encode_buffers(prefix, x)
    except (TypeError, RecursionError):  # RecursionError: nested too deeply, or self-referential
        return None
    h = sha256()
    for part in parts:
        h.update(part)
    return h.digest()


def encode_buffers(prefix: bytes, x: Any) -> list[Any]:
    """Return the encoding of prefix and input as buffers; large ones are views of the input.

    Raises:
        TypeError: the input is of an unsupported type.
    """
    parts: list[Any] = [b"%d:%b" % (len(prefix), prefix)]
    _add(x, parts)
    return parts


def _add(x: Any, parts: list[Any]) -> None:
    """Append the encoding of a value to `parts`: a type tag, then a length or end mark where the tag does not fix the length.

    Raises TypeError for a type without an encoding, and for a dict with a key that is no str.
    """
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
    """Append the encoding of an array to `parts`: tag, dtype, shape, and the data as a view where that is possible.

    Raises TypeError for an array of Python objects.
    """
    dtype = x.dtype
    kind = _dtype(dtype)
    flat = x.ravel()  # a view, unless the array is not contiguous
    if dtype is not _BYTES:
        flat = flat.view(_BYTES) if dtype.itemsize else b""  # not every dtype goes through the buffer protocol
    parts += (tag + kind + repr(x.shape).encode(), flat)


@lru_cache(maxsize=256)  # formatting a dtype takes longer than hashing a small image
def _dtype(dtype: np.dtype[Any]) -> bytes:
    """Return the encoding of a dtype. Raise TypeError if it holds Python objects."""
    if dtype.hasobject:
        raise TypeError
    text = f"{dtype.str} {dtype!r}".encode()  # `str` alone does not distinguish bfloat16 from any two bytes
    return b"%d:%b" % (len(text), text)


# Fingerprints of models, functions and files, for cache keys and certificates.

_SIMPLE = (type(None), bool, int, float, complex, str, bytes)


class _UnknownError(Exception):
    """Raised for a function that depends on an object without a stable identity across processes."""


def fingerprint(thing: object) -> str:
    """Return a text that identifies a model, stable across processes where possible. Reads files.

    A path (str or PathLike): SHA-256 of the file's content, recomputed when its mtime or size changes; for a folder, of the names
    and contents of all files in it. A function: SHA-256 of its code and of everything that the code refers to: functions by their
    code too; constants by value, also those of modules and classes; modules, classes and builtin functions by name. A function
    with a text attribute `version`: its name and version. Anything else, and a function that refers to anything else (a model
    object, a list), gets a new unique text **at every call**, which begins with `UNIDENTIFIED`: call once and store the result.
    Cache entries for it then hit only within this process, and never match those of another.

    Raises:
        OSError: the file cannot be read.
    """
    if isinstance(thing, str | PathLike):
        path = Path(thing).absolute()
        return _folder(path) if path.is_dir() else _file(path)
    if isinstance(thing, FunctionType):
        try:
            identity = digest(b"", _function(thing, set()))
        except _UnknownError:
            identity = None
        if identity is not None:
            return f"{thing.__module__}.{thing.__qualname__} {identity.hex()}"
    return f"{UNIDENTIFIED}{getattr(thing, '__qualname__', type(thing).__qualname__)} {uuid4().hex}"


def _file(path: Path) -> str:
    """Return the hash of a file's content. Raises OSError."""
    return _content(path, file_stamp(path))


def _folder(folder: Path) -> str:
    """Return a hash of the names and contents of all files in a folder, subfolders included. Raises OSError."""
    hashes = [f"{file.relative_to(folder).as_posix()} {_file(file)}" for file in files_in(folder)]
    return sha256("\n".join(["folder", *hashes]).encode("utf-8", "surrogatepass")).hexdigest()


@lru_cache(maxsize=64)
def _content(path: Path, stamp: object) -> str:  # noqa: ARG001 - it is part of the cache's key
    """Read a file and return the SHA-256 of its content, hex; cached by path and stamp. Raises OSError."""
    return file_sha256(path)


def _function(f: FunctionType, seen: set[FunctionType]) -> list[Any]:
    """Return a nested list that identifies a function by name, code, and the values that it refers to.

    Only name and version for a function with `version`; only the name for one that is in `seen`, to which it is added.

    Raises:
        _UnknownError: it refers to an object without a stable identity.
    """
    identity: list[Any] = [f.__module__, f.__qualname__]
    if isinstance(version := f.__dict__.get("version"), str):
        return [*identity, "version", version]
    if f in seen:  # it calls itself
        return identity
    seen.add(f)
    try:
        cells = [cell.cell_contents for cell in f.__closure__ or ()]
    except ValueError:  # an unbound closure cell
        raise _UnknownError from None
    used = _names(f.__code__)
    names = sorted(name for name in used if name in f.__globals__)
    keywords = f.__kwdefaults__ or {}
    values = [*cells, *(f.__defaults__ or ()), *keywords.values(), *(f.__globals__[name] for name in names)]
    return [*identity, _code(f.__code__), [*keywords], names, [_value(v, seen) for v in values], *_constants_of(values, used)]


def _constants_of(values: list[Any], used: set[str]) -> list[Any]:
    """Return the constants that the function takes from modules and classes, as in `settings.LIMIT`; empty if none."""
    constants = [
        [owner.__name__, name, _constant(constant)]
        for owner in values
        if isinstance(owner, ModuleType | type)
        for name in sorted(used)
        if type(constant := getattr_static(owner, name, object)) in _SIMPLE
    ]
    return [constants] if constants else []


def _value(v: Any, seen: set[FunctionType]) -> list[Any]:
    """Return a nested list that identifies a value that a function refers to: functions by code, modules and classes by name.

    Raises:
        _UnknownError: the value has no stable identity.
    """
    if isinstance(v, FunctionType):
        return _function(v, seen)
    if isinstance(v, ModuleType):
        return ["module", v.__name__]
    if isinstance(v, type) or (isinstance(v, BuiltinFunctionType) and isinstance(v.__self__, ModuleType)):
        return ["named", v.__module__, v.__qualname__]
    if type(v) is tuple:
        return ["tuple", [_value(item, seen) for item in v]]
    if type(v) in _SIMPLE:
        return _constant(v)
    raise _UnknownError


def _names(code: CodeType) -> set[str]:
    """Return the names of globals that the code and functions within it may use, and of attributes, which it lists with them."""
    return {*code.co_names}.union(*(_names(c) for c in code.co_consts if isinstance(c, CodeType)))


def _code(code: CodeType) -> list[Any]:
    """Return a nested list that identifies a code object by instructions, names and constants."""
    ranges = getattr(code, "co_exceptiontable", b"")  # from Python 3.11 on, what a `try` covers is beside the code
    return [code.co_code, ranges, [*code.co_names], [_constant(c) for c in code.co_consts]]


def _constant(c: Any) -> list[Any]:
    """Return a stable form of a constant: without the address in a code object's repr, or the per-process order of a set."""
    if isinstance(c, CodeType):
        return _code(c)
    if isinstance(c, tuple):
        return ["tuple", [_constant(item) for item in c]]
    if isinstance(c, frozenset):
        return ["frozenset", sorted((_constant(item) for item in c), key=repr)]
    return [type(c).__name__, f"{c:x}" if type(c) is int else repr(c)]  # hexadecimal, as in `_add`
