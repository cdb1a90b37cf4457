"""The header of a .gguf file: what model it is, and whether the file is whole. Nothing is loaded."""

from __future__ import annotations

import mmap
import struct
from errno import ENOMEM
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

from edgeroute.core.words import clean
from edgeroute.errors import ModelError, ModelMissing
from edgeroute.system.process import special

MAGIC = b"GGUF"
VERSIONS = (2, 3)
MOST = 1 << 20
"""Of entries and of tensors; real files have a few thousand."""
MOST_TEXTS, MOST_BYTES = 1 << 23, 1 << 28
"""Of a list, such as a vocabulary, of which real ones have up to a million; and of the header before its tensors."""
MOST_LAYERS = 512
"""That llama.cpp takes; of a file with more, or with none, it ends the process."""
LONGEST = 1 << 16
"""Bytes of a text that is kept whole, such as a chat template; of a longer one its beginning is."""
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_TEXT, _LIST = 8, 9
_TYPES = {
    0: ("F32", 1, 4), 1: ("F16", 1, 2), 2: ("Q4_0", 32, 18), 3: ("Q4_1", 32, 20), 6: ("Q5_0", 32, 22), 7: ("Q5_1", 32, 24),
    8: ("Q8_0", 32, 34), 9: ("Q8_1", 32, 36), 10: ("Q2_K", 256, 84), 11: ("Q3_K", 256, 110), 12: ("Q4_K", 256, 144),
    13: ("Q5_K", 256, 176), 14: ("Q6_K", 256, 210), 15: ("Q8_K", 256, 292), 16: ("IQ2_XXS", 256, 66), 17: ("IQ2_XS", 256, 74),
    18: ("IQ3_XXS", 256, 98), 19: ("IQ1_S", 256, 50), 20: ("IQ4_NL", 32, 18), 21: ("IQ3_S", 256, 110), 22: ("IQ2_S", 256, 82),
    23: ("IQ4_XS", 256, 136), 24: ("I8", 1, 1), 25: ("I16", 1, 2), 26: ("I32", 1, 4), 27: ("I64", 1, 8), 28: ("F64", 1, 8),
    29: ("IQ1_M", 256, 56), 30: ("BF16", 1, 2), 34: ("TQ1_0", 256, 54), 35: ("TQ2_0", 256, 66), 39: ("MXFP4", 32, 17),
}  # fmt: skip
"""Number of a tensor's type -> (its name, elements of a block, bytes of a block)."""


class Gguf(NamedTuple):
    """What a .gguf file says of its model."""

    architecture: str
    name: str
    context: int
    """Tokens that it was trained for; 0: it does not say."""
    parameters: int
    quantisation: str
    """The type of most of its weights."""
    tokens: int
    """Of the vocabulary; 0: it has none."""
    template: str
    """Of a chat; empty: it has none."""
    license: str


class _Damaged(ValueError):
    """The file is not what it is to be."""


class _Reader:
    """Reads values of a header, within the file."""

    def __init__(self, data: mmap.mmap | bytes) -> None:
        self.data, self.at = data, 0

    def bytes(self, count: int) -> bytes:
        end = self.at + count
        if count < 0 or end > len(self.data):
            raise _Damaged("it ends within its header: it is truncated")
        found = self.data[self.at : end]
        self.at = end
        return bytes(found)

    def skip(self, count: int) -> None:
        if count < 0 or self.at + count > len(self.data):
            raise _Damaged("it ends within its header: it is truncated")
        self.at += count

    def number(self, kind: str) -> Any:
        return struct.unpack("<" + kind, self.bytes(struct.calcsize("<" + kind)))[0]

    def text(self) -> str:
        size = self.number("Q")
        found = self.bytes(min(size, LONGEST))
        self.skip(size - len(found))
        return found.decode("utf-8", "replace")

    def value(self, kind: int) -> Any:
        """A value; of a list its length alone."""
        if kind == _TEXT:
            return self.text()
        if kind == _LIST:
            inner, count = self.number("I"), self.number("Q")
            if inner in _SCALARS:
                self.skip(count * struct.calcsize("<" + _SCALARS[inner]))
            elif inner == _TEXT and count <= MOST_TEXTS:
                self._skip_texts(count)
            elif inner == _TEXT:
                raise _Damaged(f"its header announces a list of {count:,} texts: it is damaged")
            else:
                raise _Damaged("its header has a list of what is not known")
            return count
        if kind not in _SCALARS:
            raise _Damaged(f"its header has a value of the type {kind}, which is not known")
        return self.number(_SCALARS[kind])

    def _skip_texts(self, count: int) -> None:
        """A vocabulary has a hundred thousand."""
        length, data, at = struct.Struct("<Q").unpack_from, self.data, self.at
        try:
            for _ in range(count):
                at += 8 + length(data, at)[0]
        except (OverflowError, struct.error):
            raise _Damaged("it ends within its header: it is truncated") from None
        self.at = at


def read(path: Path) -> Gguf:
    """Reads the header, and checks that the file has all the weights that it announces.

    Raises:
        ModelMissing: there is no such file.
        ModelError: it is no .gguf file, is damaged or truncated, or cannot be read.
    """
    try:
        if special(path):
            raise ModelError(f"{path} is no file")
        with path.open("rb") as file:
            magic = file.read(len(MAGIC))
            if magic != MAGIC:
                raise ModelError(f"{path} is no .gguf file: it begins with {magic!r}, not {MAGIC!r}{_other(magic, path)}")
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                return _read(_Reader(data))
    except FileNotFoundError as e:
        raise ModelMissing(f"there is no model file at {path}") from e
    except OSError as e:
        short = ": there is too little memory for it on this device" if e.errno == ENOMEM else ""
        raise ModelError(f"{path} cannot be read: {e.strerror or e}{short}") from e
    except _Damaged as e:
        raise ModelError(f"{path} cannot be used: {e}. Fetch the model again") from e


def _other(magic: bytes, path: Path) -> str:
    """What it is instead, as far as that is known."""
    if magic[:2] == b"PK":
        return ", and is a zip archive"
    if magic in {b"vers", b"<htm", b"<!DO"}:
        return ", and is a pointer to a large file (git lfs pull), or a web page"
    return ", but nothing" if not magic else f"; was another format renamed to {path.suffix}?"


def _read(reader: _Reader) -> Gguf:
    reader.skip(len(MAGIC))
    version, tensors, entries = reader.number("I"), reader.number("Q"), reader.number("Q")
    if version not in VERSIONS:
        swapped = version >= 1 << 16
        raise _Damaged("it is big-endian" if swapped else f"it is of version {version} of the format, and 2 and 3 are known")
    if max(tensors, entries) > MOST:
        raise _Damaged(f"its header announces {tensors} tensors and {entries} entries: it is damaged")
    said: dict[str, Any] = {}
    for _ in range(entries):
        key = reader.text()
        said[key] = reader.value(reader.number("I"))
        if reader.at > MOST_BYTES:
            raise _Damaged(f"its header has more than {MOST_BYTES:,} bytes: it is damaged")
    count, most, ends = 0, dict[str, int](), list[int]()
    for _ in range(tensors):
        reader.text()
        rank = reader.number("I")
        if rank > 8:  # noqa: PLR2004 - more than any has
            raise _Damaged("a tensor of its header has too many axes: it is damaged")
        size = prod(reader.number("Q") for _ in range(rank))
        kind, offset = reader.number("I"), reader.number("Q")
        name, block, width = _TYPES.get(kind, (f"type {kind}", 1, 0))
        ends.append(offset + size // block * width)
        most[name] = most.get(name, 0) + size
        count += size
    align = said.get("general.alignment", 32)
    align = align if isinstance(align, int) and 0 < align <= 1 << 20 else 32
    begin = -(-reader.at // align) * align
    missing = begin + max(ends, default=0) - len(reader.data)
    if missing > 0:
        raise _Damaged(f"it is truncated: {missing:,} bytes of its weights are missing")
    architecture = said.get("general.architecture")
    if not isinstance(architecture, str) or not tensors:
        raise _Damaged("it has no weights, or does not say what architecture they are of")
    for key, limit in ((f"{architecture}.block_count", MOST_LAYERS), (f"{architecture}.context_length", 1 << 32)):
        if isinstance(number := said.get(key), int) and not 0 < number <= limit:
            raise _Damaged(f"its header says {key} = {number}: it is damaged")
    context, template = said.get(f"{architecture}.context_length", 0), said.get("tokenizer.chat_template", "")
    return Gguf(
        clean(architecture, 60), clean(said.get("general.name", ""), 100), context if isinstance(context, int) else 0, count,
        max(most, key=lambda name: most[name]), _whole(said.get("tokenizer.ggml.tokens")),
        template if isinstance(template, str) else "", clean(said.get("general.license", ""), 60),
    )  # fmt: skip


def _whole(value: Any) -> int:
    return value if isinstance(value, int) else 0
