"""Serialisation of inputs, values and outputs to disk: .npy, .npz, raw bytes, JSON, or a mixture of these. Never pickle."""

from __future__ import annotations

import io
import json
import zipfile
from typing import Any

from edgeroute.errors import BadInput
from edgeroute.stores.mixed import is_array, loaded, npy, pack, unpack

NPY, NPZ, RAW, JSON = "application/x-npy", "application/x-npz", "application/octet-stream", "application/json"
MIXED = "application/x-edgeroute-mixed"
"""Of `edgeroute.stores.mixed`: nested, with arrays and bytes in it."""


def encode_input(x: Any) -> tuple[str, bytes] | None:
    """Content type and bytes of an input; None: it cannot be stored.

    Arrays, bytes, JSON values, and lists and mappings of these are restored unchanged; but tuples in a JSON value become lists.
    """
    if isinstance(x, bytes):
        return RAW, x
    if is_array(x):
        return NPY, npy(x)
    try:
        if isinstance(x, dict) and x and all(isinstance(name, str) and "\0" not in name and is_array(a) for name, a in x.items()):
            return NPZ, _npz(x)
        if _is_json(x):
            return JSON, json.dumps(x, separators=(",", ":")).encode()
    except (ValueError, RecursionError):  # a lone surrogate in a name; a self-referential list
        pass
    mixed = pack(x) if isinstance(x, dict | list | tuple) else None
    return None if mixed is None else (MIXED, mixed)


def decode_input(content_type: str, body: bytes) -> Any:
    """Inverse of `encode_input`.

    Raises:
        BadInput: unknown content type.
        ValueError: malformed bytes.
    """
    if content_type == NPY:
        return loaded(body)
    if content_type == NPZ:
        with zipfile.ZipFile(io.BytesIO(body)) as z:
            if any(member.compress_type != zipfile.ZIP_STORED or member.file_size > len(body) for member in z.infolist()):
                raise ValueError("an array in it is compressed, or longer than the whole")
            return {name[: -len(".npy")]: loaded(z.read(name)) for name in z.namelist()}
    if content_type == RAW:
        return body
    if content_type == JSON:
        return json.loads(body)
    if content_type == MIXED:
        return unpack(body)
    raise BadInput(f"an input is not stored as {content_type!r}")


def _is_json(x: Any) -> bool:
    if isinstance(x, dict):
        return all(isinstance(name, str) and _is_json(part) for name, part in x.items())
    if isinstance(x, list | tuple):
        return all(_is_json(part) for part in x)
    return x is None or isinstance(x, bool | int | float | str)


def _npz(arrays: dict[str, Any]) -> bytes:
    """Like `numpy.savez`, but for any name (it refuses "file"), and with reproducible bytes."""
    to = io.BytesIO()
    with zipfile.ZipFile(to, "w") as z:
        for name, x in arrays.items():
            z.writestr(zipfile.ZipInfo(f"{name}.npy"), npy(x))
    return to.getvalue()
