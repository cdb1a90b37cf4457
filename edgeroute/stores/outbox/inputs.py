"""The forms in which inputs, values and outputs lie on the disk. Nothing is ever pickled."""

from __future__ import annotations

import io
import json
import zipfile
from typing import Any

import numpy as np

from edgeroute.errors import BadInput

NPY, NPZ, RAW, JSON = "application/x-npy", "application/x-npz", "application/octet-stream", "application/json"
_KINDS = "?biufcSUmM"
"""numpy's kinds that a .npy file gives back as they were; those of objects and of foreign types it does not."""


def encode_input(x: Any) -> tuple[str, bytes] | None:
    """The content type and the bytes; None: it cannot be stored.

    An array, name -> array and bytes come back as they were, and so does what JSON can hold, but for tuples: they become lists.
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
    except (ValueError, RecursionError):  # half a surrogate pair as a name; a list that holds itself
        pass
    return None


def decode_input(content_type: str, body: bytes) -> Any:
    """What `encode_input` was given.

    Raises:
        BadInput: it is not of a type that `encode_input` gives.
        ValueError: the bytes are not what they should be.
    """
    if content_type == NPY:
        return np.load(io.BytesIO(body), allow_pickle=False)
    if content_type == NPZ:
        with zipfile.ZipFile(io.BytesIO(body)) as z:
            return {name[: -len(".npy")]: np.load(io.BytesIO(z.read(name)), allow_pickle=False) for name in z.namelist()}
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


def _npz(arrays: dict[str, Any]) -> bytes:
    """As `numpy.savez` does it, but for any name ("file" is one that it refuses), and the same bytes each time."""
    to = io.BytesIO()
    with zipfile.ZipFile(to, "w") as z:
        for name, x in arrays.items():
            z.writestr(zipfile.ZipInfo(f"{name}.npy"), _npy(x))
    return to.getvalue()
