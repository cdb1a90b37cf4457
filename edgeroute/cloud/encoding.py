"""Encodes values as JSON, multipart and form fields; what cannot be encoded is the caller's error, with what to write instead."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import suppress
from importlib.util import find_spec
from typing import Any, NamedTuple
from urllib.parse import urlencode

import numpy as np

from edgeroute.core.texts import clean, typed
from edgeroute.errors import BadInput
from edgeroute.system import json_dumps

QUICK = find_spec("orjson") is not None
"""Whether JSON is tried by the fast library first."""
BYTES = (bytes, bytearray, memoryview)


class File(NamedTuple):
    """A file in a multipart body, as a template or as it is sent."""

    content: Any
    filename: Any
    kind: str


def scalar(value: Any, where: str) -> str:
    """Text, or a number, true or false as text."""
    value = value.item() if isinstance(value, np.generic | np.ndarray) and value.ndim == 0 else value
    if isinstance(value, str):
        return str(value)
    if isinstance(value, bool | int) or (isinstance(value, float) and abs(value) < np.inf):
        return json_dumps(value).decode()
    hint = "write |base64 after it" if isinstance(value, BYTES) else "write |json after it, or pick a part of it"
    raise BadInput(f"{where}, which takes text or a number, not {described(value)}: {hint}")


def to_json(value: Any, whose: str = "the input") -> bytes:
    """JSON of a value, with numpy's arrays and numbers in it as lists and numbers.

    Args:
        value: of any kind.
        whose: it is, for the message.

    Raises:
        BadInput: there is something in it that JSON does not have; the message says what, where, and what to do.
    """
    refused = list[Any]()

    def listed(part: Any) -> Any:
        """What is written for a part of another type than JSON has."""
        found = _listed(part)
        if found is part:
            refused.append(part)
            raise TypeError
        return found

    if QUICK:
        with suppress(TypeError, RecursionError):  # the error, if it is one, is told below
            made = json_dumps(value, listed)
            if not refused and b"null" not in made:  # for NaN, too, and beside it foreign types would have been written as text
                return made
    try:
        return json_dumps(_strict(value, whose, ""))
    except RecursionError:
        raise BadInput(f"{whose} is nested too deeply for JSON, or in itself") from None


def _strict(value: Any, whose: str, at: str) -> Any:
    """The value in JSON's types, which its encoder writes without further questions."""
    missing = _missing(value)
    if missing:
        hint = "which JSON does not have: what stands for it is yours to say"
        raise BadInput(f"{whose} {'has' if at else 'is'} {missing}{_there(at)}, {hint}")
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, np.ndarray) and value.dtype.kind in "biufU":
        return value.tolist()
    if isinstance(value, list | tuple):
        return [_strict(part, whose, f"{at}.{i}") for i, part in enumerate(value)]
    if isinstance(value, Mapping):
        for key in value:
            if not isinstance(key, str | int):
                raise BadInput(f"{whose} has a key of the type {typed(key)}{_there(at)}, and JSON's keys are text")
        return {str(key): _strict(part, whose, f"{at}.{key}") for key, part in value.items()}
    found = _listed(value)
    if found is value:
        raise BadInput(f"{whose} {'has' if at else 'is'} {described(value)}{_there(at)}, which JSON does not have{advice(value)}")
    return _strict(found, whose, at)


def _missing(value: Any) -> str:
    """What of a number or an array of numbers would be written as null; empty: nothing."""
    if isinstance(value, np.ma.MaskedArray) and np.ma.is_masked(value):
        return "a masked array"
    floats = isinstance(value, float | np.floating) or (isinstance(value, np.ndarray) and value.dtype.kind == "f")
    return "" if not floats or np.isfinite(value).all() else "NaN or infinity"


def _there(at: str) -> str:
    return f" at {clean(at[1:], 80)!r}" if at else ""


def _listed(value: Any) -> Any:
    """What is written for a value of a type that JSON does not have: an array's numbers; itself: nothing is."""
    if isinstance(value, np.ndarray):
        return value.tolist() if value.dtype.kind in "biufUO" else value
    if isinstance(value, np.generic):
        return value.item() if value.dtype.kind in "biufU" else value
    if isinstance(value, Mapping):
        return dict(value)
    return value.tolist() if hasattr(value, "dtype") and hasattr(value, "tolist") else value  # a tensor


def described(value: Any) -> str:
    """What a value is, without quoting it."""
    if isinstance(value, str):
        return f"text of {len(value)} characters"
    if isinstance(value, BYTES):
        return f"{len(value)} bytes"
    if isinstance(value, np.ndarray):
        return f"an array of {value.dtype} {list(value.shape)}"
    return f"a value of the type {typed(value)}"


def advice(value: Any) -> str:
    """What to write instead."""
    if isinstance(value, BYTES):
        return ': give the endpoint a body, as in body={"image": "{input|base64}"}'
    if isinstance(value, os.PathLike):
        return ': give the file\'s content, as path.read_bytes(), and the endpoint a body, as in body={"image": "{input|base64}"}'
    if hasattr(value, "getpixel"):
        return ': give its pixels, numpy.asarray(image), or with views={"cloud": ...} the bytes of its file'
    return ': give the endpoint encode=, a function that makes JSON of it, or the router a view, as in views={"cloud": ...}'


def multipart(fields: list[tuple[str, Any]]) -> tuple[str, bytes]:
    """multipart/form-data (RFC 7578), with names as browsers write them."""
    boundary = os.urandom(16).hex()
    parts: list[Any] = []
    for name, value in fields:
        head = f'--{boundary}\r\nContent-Disposition: form-data; name="{_quoted(name)}"'
        if isinstance(value, File):
            head += f'; filename="{_quoted(value.filename)}"\r\nContent-Type: {value.kind}'
            content = value.content
        else:
            content = value.encode("utf-8", "surrogatepass")
        parts += [f"{head}\r\n\r\n".encode("utf-8", "surrogatepass"), content, b"\r\n"]
    parts.append(f"--{boundary}--\r\n".encode())
    return f"multipart/form-data; boundary={boundary}", b"".join(parts)


def _quoted(name: str) -> str:
    return name.replace('"', "%22")  # there is no line break in it: that is refused


def form(fields: list[tuple[str, str]]) -> tuple[str, bytes]:
    """application/x-www-form-urlencoded."""
    text = urlencode(fields, encoding="utf-8", errors="surrogatepass")
    return "application/x-www-form-urlencoded", text.encode("ascii")
