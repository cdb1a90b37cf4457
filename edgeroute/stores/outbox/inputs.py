"""Serialisation of inputs, values and outputs to disk: .npy, .npz, raw bytes, JSON, or a mixture of these. Never pickle."""

from __future__ import annotations

import io
import json
import zipfile
from typing import Any

from edgeroute.errors import BadInput
from edgeroute.stores.serialisation import from_npy, is_array, pack, to_npy, unpack

NPY, NPZ, RAW, JSON = "application/x-npy", "application/x-npz", "application/octet-stream", "application/json"
MIXED = "application/x-edgeroute-mixed"
"""Content type of `edgeroute.stores.serialisation`: nested values with arrays and bytes in them."""


def encode_input(x: Any) -> tuple[str, bytes] | None:
    """Return content type and bytes of an input; None if it cannot be stored.

    Arrays, bytes, JSON values, and lists and mappings of these are restored unchanged; but tuples in a JSON value become lists.
    """
    if isinstance(x, bytes):
        return RAW, x
    if is_array(x):
        return NPY, to_npy(x)
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
    """Return the input that `encode_input` encoded.

    Raises:
        BadInput: the content type is unknown.
        ValueError: the bytes are malformed.
    """
    if content_type == NPY:
        return from_npy(body)
    if content_type == NPZ:
        with zipfile.ZipFile(io.BytesIO(body)) as z:
            if any(member.compress_type != zipfile.ZIP_STORED or member.file_size > len(body) for member in z.infolist()):
                raise ValueError("an array in the .npz file is compressed, or longer than the whole file")
            return {name[: -len(".npy")]: from_npy(z.read(name)) for name in z.namelist()}
    if content_type == RAW:
        return body
    if content_type == JSON:
        return json.loads(body)
    if content_type == MIXED:
        return unpack(body)
    raise BadInput(f"unknown content type of a stored input: {content_type!r}")


def _is_json(x: Any) -> bool:
    """Return True if a value consists of JSON types; tuples count as lists."""
    if isinstance(x, dict):
        return all(isinstance(name, str) and _is_json(part) for name, part in x.items())
    if isinstance(x, list | tuple):
        return all(_is_json(part) for part in x)
    return x is None or isinstance(x, bool | int | float | str)


def _npz(arrays: dict[str, Any]) -> bytes:
    """Return arrays as an .npz file, like `numpy.savez`, but with any names (it refuses "file") and reproducible bytes."""
    to = io.BytesIO()
    with zipfile.ZipFile(to, "w") as z:
        for name, x in arrays.items():
            z.writestr(zipfile.ZipInfo(f"{name}.npy"), to_npy(x))
    return to.getvalue()
