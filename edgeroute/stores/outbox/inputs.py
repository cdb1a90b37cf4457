"""Serialisation of inputs, values and outputs to disk: .npy, .npz, raw bytes or JSON. Never pickle."""

from __future__ import annotations

import io
import json
import math
import zipfile
from typing import Any

import numpy as np

from edgeroute.errors import BadInput

NPY, NPZ, RAW, JSON = "application/x-npy", "application/x-npz", "application/octet-stream", "application/json"
_KINDS = "?biufcSUmM"
"""numpy kinds that a .npy file restores unchanged; objects and foreign types it does not."""
_HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}


def encode_input(x: Any) -> tuple[str, bytes] | None:
    """Content type and bytes of an input; None: it cannot be stored.

    Arrays, name -> array, bytes and JSON values are restored unchanged, except that tuples become lists.
    """
    if isinstance(x, bytes):
        return RAW, x
    if _is_array(x):
        return NPY, _npy(x)
    try:
        if (
            isinstance(x, dict)
            and x
            and all(isinstance(name, str) and "\0" not in name and _is_array(a) for name, a in x.items())
        ):
            return NPZ, _npz(x)
        if _is_json(x):
            return JSON, json.dumps(x, separators=(",", ":")).encode()
    except (ValueError, RecursionError):  # a lone surrogate in a name; a self-referential list
        pass
    return None


def decode_input(content_type: str, body: bytes) -> Any:
    """Inverse of `encode_input`.

    Raises:
        BadInput: unknown content type.
        ValueError: malformed bytes.
    """
    if content_type == NPY:
        return _loaded(body)
    if content_type == NPZ:
        with zipfile.ZipFile(io.BytesIO(body)) as z:
            if any(member.compress_type != zipfile.ZIP_STORED or member.file_size > len(body) for member in z.infolist()):
                raise ValueError("an array in it is compressed, or longer than the whole")
            return {name[: -len(".npy")]: _loaded(z.read(name)) for name in z.namelist()}
    if content_type == RAW:
        return body
    if content_type == JSON:
        return json.loads(body)
    raise BadInput(f"an input is not stored as {content_type!r}")


def _is_array(x: Any) -> bool:
    return type(x) in {np.ndarray, np.memmap} and x.dtype.kind in _KINDS  # a masked array would lose its mask


def _is_json(x: Any) -> bool:
    if isinstance(x, dict):
        return all(isinstance(name, str) and _is_json(part) for name, part in x.items())
    if isinstance(x, list | tuple):
        return all(_is_json(part) for part in x)
    return x is None or isinstance(x, bool | int | float | str)


def _npy(x: Any) -> bytes:
    to = io.BytesIO()
    np.save(to, x, allow_pickle=False)
    return to.getvalue()


def _loaded(body: bytes) -> Any:
    """The array of a .npy file. Its announced size is checked before memory is allocated for it."""
    file = io.BytesIO(body)
    version = np.lib.format.read_magic(file)
    if version not in _HEADERS:
        raise ValueError(f"an array is not stored as .npy of version {version}")
    shape, _, dtype = _HEADERS[version](file)
    if min(shape, default=0) < 0 or math.prod(shape) * dtype.itemsize > len(body) - file.tell():
        raise ValueError(f"an array of {shape} {dtype} does not fit in {len(body)} bytes")
    return np.load(io.BytesIO(body), allow_pickle=False)


def _npz(arrays: dict[str, Any]) -> bytes:
    """Like `numpy.savez`, but for any name (it refuses "file"), and with reproducible bytes."""
    to = io.BytesIO()
    with zipfile.ZipFile(to, "w") as z:
        for name, x in arrays.items():
            z.writestr(zipfile.ZipInfo(f"{name}.npy"), _npy(x))
    return to.getvalue()
