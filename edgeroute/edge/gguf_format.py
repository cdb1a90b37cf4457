"""Reader of a .gguf file's header: describes the model, and checks that the file is whole. Loads no weights."""

from __future__ import annotations

import mmap
import struct
from errno import ENOMEM
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

from edgeroute.core.error_codes_and_texts import clean
from edgeroute.errors import ModelError, ModelMissing
from edgeroute.system.untrusted_files import open_file

MAGIC = b"GGUF"
VERSIONS = (2, 3)
MOST = 1 << 20  # most entries and most tensors of a header; real files have a few thousand
# Most texts of a list, such as a vocabulary, of which real ones have up to a million; and most bytes of entries.
MOST_TEXTS, MOST_BYTES = 1 << 23, 1 << 28
MOST_LAYERS = 512  # most layers that llama.cpp takes; it ends the process on a file with more, or with none
LONGEST = 1 << 16  # bytes of a text that are returned, such as a chat template; the rest of a longer one is skipped
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_TEXT, _LIST = 8, 9
# Number of a tensor's type -> (its name, elements of a block, bytes of a block).
_TYPES = {
    0: ("F32", 1, 4), 1: ("F16", 1, 2), 2: ("Q4_0", 32, 18), 3: ("Q4_1", 32, 20), 6: ("Q5_0", 32, 22), 7: ("Q5_1", 32, 24),
    8: ("Q8_0", 32, 34), 9: ("Q8_1", 32, 36), 10: ("Q2_K", 256, 84), 11: ("Q3_K", 256, 110), 12: ("Q4_K", 256, 144),
    13: ("Q5_K", 256, 176), 14: ("Q6_K", 256, 210), 15: ("Q8_K", 256, 292), 16: ("IQ2_XXS", 256, 66), 17: ("IQ2_XS", 256, 74),
    18: ("IQ3_XXS", 256, 98), 19: ("IQ1_S", 256, 50), 20: ("IQ4_NL", 32, 18), 21: ("IQ3_S", 256, 110), 22: ("IQ2_S", 256, 82),
    23: ("IQ4_XS", 256, 136), 24: ("I8", 1, 1), 25: ("I16", 1, 2), 26: ("I32", 1, 4), 27: ("I64", 1, 8), 28: ("F64", 1, 8),
    29: ("IQ1_M", 256, 56), 30: ("BF16", 1, 2), 34: ("TQ1_0", 256, 54), 35: ("TQ2_0", 256, 66), 39: ("MXFP4", 32, 17),
}  # fmt: skip


class Gguf(NamedTuple):
    """Description of a .gguf file's model, from its header."""

    architecture: str
    name: str
    context: int  # tokens of context that it was trained for; 0: not stated
    parameters: int
    quantisation: str  # type of most of its weights
    tokens: int  # size of the vocabulary; 0: it has none
    template: str  # chat template, Jinja; empty: it has none
    license: str


class _Damaged(ValueError):
    """Header that is damaged, truncated or unknown."""


class _Reader:
    """Cursor over the values of a header, which never leaves the file."""

    def __init__(self, data: mmap.mmap | bytes) -> None:
        self.data, self.position = data, 0

    def bytes(self, count: int) -> bytes:
        """Return the next `count` bytes.

        Raises:
            _Damaged: the file ends before that.
        """
        begin = self.position
        self.skip(count)
        return bytes(self.data[begin : self.position])

    def skip(self, count: int) -> None:
        """Skip the next `count` bytes.

        Raises:
            _Damaged: the file ends before that.
        """
        if count < 0 or self.position + count > len(self.data):
            raise _Damaged("it ends within its header: it is truncated")
        self.position += count

    def number(self, kind: str) -> Any:
        """Return the next number, of this type of `struct`. Raises _Damaged if the file ends before."""
        return struct.unpack("<" + kind, self.bytes(struct.calcsize("<" + kind)))[0]

    def text(self) -> str:
        """Return the next text, cut to `LONGEST` bytes. Invalid UTF-8 is replaced; raises _Damaged if the file ends before."""
        size = self.number("Q")
        beginning = self.bytes(min(size, LONGEST))
        self.skip(size - len(beginning))
        return beginning.decode("utf-8", "replace")

    def value(self, kind: int) -> Any:
        """Return the next value of this type; of a list only its length, after skipping it.

        Raises:
            _Damaged: the type is unknown, or the list is too long.
        """
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
        """Skip a list of texts, by a fast loop: a vocabulary has a hundred thousand.

        Raises:
            _Damaged: the file ends before that.
        """
        length, data, position = struct.Struct("<Q").unpack_from, self.data, self.position
        try:
            for _ in range(count):
                position += 8 + length(data, position)[0]
        except (OverflowError, struct.error):
            raise _Damaged("it ends within its header: it is truncated") from None
        self.position = position


def read(path: Path) -> Gguf:
    """Read the header of a .gguf file, and check that all announced weights are in the file.

    Weights are not read.

    Raises:
        ModelMissing: there is no such file.
        ModelError: it is no .gguf file, is damaged or truncated, or cannot be read.
    """
    try:
        with open_file(path) as file:
            magic = file.read(len(MAGIC))
            if magic != MAGIC:
                raise ModelError(f"{path} is no .gguf file: it begins with {magic!r}, not {MAGIC!r}{_guess_format(magic, path)}")
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                return _read(_Reader(data))
    except FileNotFoundError as e:
        raise ModelMissing(f"there is no model file at {path}") from e
    except OSError as e:
        short = ": there is too little memory for it on this device" if e.errno == ENOMEM else ""
        raise ModelError(f"{path} cannot be read: {e.strerror or e}{short}") from e
    except _Damaged as e:
        raise ModelError(f"{path} cannot be used: {e}. Fetch the model again") from e


def _guess_format(magic: bytes, path: Path) -> str:
    """Return a guess of the format of a file that is no .gguf, as the end of an error message.

    Empty files and renamed formats count, too.
    """
    if magic[:2] == b"PK":
        return ", and is a zip archive"
    if magic in {b"vers", b"<htm", b"<!DO"}:
        return ", and is a pointer to a large file (git lfs pull), or a web page"
    return ", but nothing" if not magic else f"; was another format renamed to {path.suffix}?"


def _read(reader: _Reader) -> Gguf:
    """Return the description from a header, checking that every value is possible, and that the weights do not end too early.

    Raises:
        _Damaged: a value is impossible, or weights are missing.
    """
    reader.skip(len(MAGIC))
    version, tensors, entries = reader.number("I"), reader.number("Q"), reader.number("Q")
    if version not in VERSIONS:
        swapped = version >= 1 << 16
        raise _Damaged("it is big-endian" if swapped else f"it is of version {version} of the format, and 2 and 3 are known")
    if max(tensors, entries) > MOST:
        raise _Damaged(f"its header announces {tensors} tensors and {entries} entries: it is damaged")
    header: dict[str, Any] = {}
    for _ in range(entries):
        key = reader.text()
        header[key] = reader.value(reader.number("I"))
        if reader.position > MOST_BYTES:
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
    align = header.get("general.alignment", 32)
    align = align if isinstance(align, int) and 0 < align <= 1 << 20 else 32
    begin = -(-reader.position // align) * align
    missing = begin + max(ends, default=0) - len(reader.data)
    if missing > 0:
        raise _Damaged(f"it is truncated: {missing:,} bytes of its weights are missing")
    architecture = header.get("general.architecture")
    if not isinstance(architecture, str) or not tensors:
        raise _Damaged("it has no weights, or does not say what architecture they are of")
    for key, limit in ((f"{architecture}.block_count", MOST_LAYERS), (f"{architecture}.context_length", 1 << 32)):
        if isinstance(number := header.get(key), int) and not 0 < number <= limit:
            raise _Damaged(f"its header says {key} = {number}: it is damaged")
    context, template = header.get(f"{architecture}.context_length", 0), header.get("tokenizer.chat_template", "")
    tokens = header.get("tokenizer.ggml.tokens")
    return Gguf(
        clean(architecture, 60), clean(header.get("general.name", ""), 100), context if isinstance(context, int) else 0, count,
        max(most, key=lambda name: most[name]), tokens if isinstance(tokens, int) else 0,
        template if isinstance(template, str) else "", clean(header.get("general.license", ""), 60),
    )  # fmt: skip
