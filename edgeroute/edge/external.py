"""External data of an ONNX model: the files beside it that have its weights."""

from __future__ import annotations

import mmap
import re
from pathlib import Path

from edgeroute.files import special

_LOCATION = re.compile(rb"\x0a\x08location\x12([\x80-\xff]?[\x00-\x7f])")
"""The key of a `StringStringEntryProto` in the encoding of protocol buffers, and the length of its value."""


def external_data(model: Path) -> list[Path]:
    """The files that the model's tensors refer to, in its folder or below, as onnxruntime reads no others.

    They are looked for by the encoding of their key alone, which also finds what metadata calls a location: a file counts if it
    is there. Without the model there are none.
    """
    found: dict[Path, None] = {}
    if special(model):  # to be said when it is loaded
        return []
    try:
        with model.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            for match in _LOCATION.finditer(data):
                name = data[match.end() : match.end() + _number(match[1])]
                path = _beside(model.parent, name)
                if path is not None:
                    found[path] = None
    except (OSError, ValueError):  # there is no file, or it is empty: to be said when it is loaded
        return []
    return list(found)


def _number(varint: bytes) -> int:
    return sum((byte & 0x7F) << 7 * i for i, byte in enumerate(varint))


def _beside(folder: Path, name: bytes) -> Path | None:
    try:
        path = folder / name.decode()
        inside = path.resolve().is_relative_to(folder.resolve())
        return path if inside and path.is_file() else None
    except (OSError, RuntimeError, ValueError):  # it is no name of a file
        return None
