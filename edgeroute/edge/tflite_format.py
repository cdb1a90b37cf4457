"""What a .tflite file says of itself: a reader of its flatbuffer, which checks that all of it is there.

LiteRT checks a file too, but tflite-runtime does not: a truncated one crashes the process.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import prod
from struct import error as struct_error
from struct import unpack_from
from typing import NamedTuple

MOST_BYTES = (1 << 31) - 1
"""Of a flatbuffer, whose offsets have 31 bits."""
_FLOAT32, _INT8, _INT4 = 0, 9, 17
_BYTES = {0: 4, 1: 2, 2: 4, 4: 8, 7: 2, 8: 8, 10: 8, 11: 16, 12: 8, 15: 4, 16: 2}
"""Of an element, by its type; of the others 1, or less."""
_HYBRID = {
    3: "CONV_2D", 4: "DEPTHWISE_CONV_2D", 7: "EMBEDDING_LOOKUP", 9: "FULLY_CONNECTED", 16: "LSTM", 27: "SVDF", 35: "RNN",
    44: "UNIDIRECTIONAL_SEQUENCE_LSTM", 46: "UNIDIRECTIONAL_SEQUENCE_RNN", 48: "BIDIRECTIONAL_SEQUENCE_LSTM",
    52: "BIDIRECTIONAL_SEQUENCE_RNN", 67: "TRANSPOSE_CONV", 126: "BATCH_MATMUL", 132: "CONV_3D",
}  # fmt: skip
"""Operators that take weights of 8 bits beside activations in float."""
_CUSTOM, _VAR_HANDLE = 32, 142
_MOST_READ, _TIMES, _TABLE_BYTES, _MOST_AXES = 1 << 26, 8, 32, 255
"""Bytes that are read of a description, in all and in parts of the file, and those that a table counts as: offsets may lead to
the same place any number of times. A file whose parts are its own has fewer."""


class Signature(NamedTuple):
    """Names for the inputs and outputs of one subgraph."""

    key: str
    subgraph: int
    inputs: dict[str, int]
    """Name -> number of the tensor."""
    outputs: dict[str, int]


class Contents(NamedTuple):
    """What is in a model file."""

    signatures: tuple[Signature, ...]
    dynamic_range: tuple[str, ...]
    """Operators that have weights in int8 and activations in float, quantised while they run."""
    custom: tuple[str, ...]
    """Operators that are not TFLite's own."""
    resources: bool
    """Whether it keeps a state in variables that its operators read and assign."""
    variables: bool
    """Whether it keeps a state in tensors, as an SVDF or an LSTM does."""
    operators: int
    """How many its main graph has."""
    largest: int
    """Bytes of its largest tensor."""


def contents(data: bytes) -> Contents:
    """Reads a file.

    Raises:
        ValueError: it is no .tflite file, or a part of it is missing.
    """
    if data[4:8] != b"TFL3":
        raise ValueError("it is no .tflite file, which has TFL3 in its bytes 4 to 8")
    try:
        return _contents(_Table(data, _at(data, 0), [min(_MOST_READ, _TIMES * len(data))]))
    except (struct_error, IndexError, UnicodeDecodeError) as e:
        raise ValueError("it is truncated or damaged") from e


def _contents(model: _Table) -> Contents:
    codes = [(max(code.signed(0, 1), code.signed(3, 4)), code.text(1)) for code in model.tables(1)]
    constant = [buffer.length(0) > 0 or buffer.unsigned(1) > 1 for buffer in model.tables(4)]
    hybrid, custom, resources, variables = dict[str, None](), dict[str, None](), False, False
    largest, graphs = 0, list(model.tables(2))
    if not graphs:
        raise IndexError("it has no graph")
    for graph in graphs:
        tensors = [_tensor(one) for one in graph.tables(0)]
        variables = variables or any(one.variable for one in tensors)
        largest = max([largest, *(one.size for one in tensors)])
        for way in (1, 2):
            for i in graph.numbers(way):
                tensors[i]
        for operator in graph.tables(3):
            code, name = codes[operator.unsigned(0)]
            inputs = [tensors[i] for i in operator.numbers(1) if i != -1]
            [tensors[i] for i in operator.numbers(2) if i != -1]
            operator.table(4)
            operator.length(5)
            if code == _CUSTOM:
                custom[name] = None
            resources = resources or code == _VAR_HANDLE
            weights = any(one.kind in {_INT8, _INT4} and constant[one.buffer] for one in inputs)
            if code in _HYBRID and weights and inputs[0].kind == _FLOAT32:
                hybrid[_HYBRID[code]] = None
    for one in model.tables(6):
        one.text(0)
    count = graphs[0].length(3, 4)
    signatures = tuple(_signature(one) for one in model.tables(7))
    return Contents(signatures, tuple(hybrid), tuple(custom), resources, variables, count, largest)


class _Tensor(NamedTuple):
    kind: int
    buffer: int
    variable: bool
    size: int
    """Bytes."""


def _tensor(one: _Table) -> _Tensor:
    kind = one.signed(1, 1)
    shape = one.numbers(0)
    if len(shape) > _MOST_AXES:
        raise IndexError(len(shape))
    size = prod(max(1, n) for n in shape) * _BYTES.get(kind, 1)
    one.text(3)
    if (quantised := one.table(4)) is not None:
        for field, size in ((0, 4), (1, 4), (2, 4), (3, 8)):
            quantised.length(field, size)
    one.numbers(7)
    return _Tensor(kind, one.unsigned(2), bool(one.signed(5, 1)), size)


def _signature(one: _Table) -> Signature:
    inputs, outputs = ({pair.text(0): pair.unsigned(1) for pair in one.tables(field)} for field in (0, 1))
    return Signature(one.text(2), one.unsigned(4), inputs, outputs)


def _at(data: bytes, at: int) -> int:
    """Where an offset at that place leads to."""
    (offset,) = unpack_from("<I", data, at)
    if not 0 < offset <= len(data) - at:
        raise IndexError(at)
    return int(at + offset)


class _Table:
    """A table of a flatbuffer: fields by their number in the schema. What is not there is 0, or empty.

    Args:
        data: the file.
        at: where it begins.
        left: one number, of the bytes that may still be read, by all tables together.

    Raises:
        IndexError, struct.error: it is not within the data, or too much is read.
    """

    def __init__(self, data: bytes, at: int, left: list[int]) -> None:
        self.data, self.at, self.left = data, at, left
        self._take(_TABLE_BYTES)
        (back,) = unpack_from("<i", data, at)
        self.fields = at - back
        if self.fields < 0:
            raise IndexError(at)
        self.size, length = unpack_from("<HH", data, self.fields)
        if at + length > len(data) or self.fields + self.size > len(data):
            raise IndexError(at)

    def _take(self, count: int) -> None:
        self.left[0] -= count
        if self.left[0] < 0:
            raise IndexError(self.at)

    def _field(self, i: int) -> int:
        """Where it is; 0: it is not there."""
        place = 4 + 2 * i
        offset = unpack_from("<H", self.data, self.fields + place)[0] if place + 2 <= self.size else 0
        return self.at + offset if offset else 0

    def signed(self, i: int, size: int) -> int:
        """A number of 1 or 4 bytes."""
        at = self._field(i)
        return int(unpack_from("<b" if size == 1 else "<i", self.data, at)[0]) if at else 0

    def unsigned(self, i: int) -> int:
        """A number of 4 bytes."""
        at = self._field(i)
        return int(unpack_from("<I", self.data, at)[0]) if at else 0

    def length(self, i: int, size: int = 1) -> int:
        """How many elements of that size a vector has."""
        return self._vector(i, size)[1]

    def _vector(self, i: int, size: int) -> tuple[int, int]:
        at = self._field(i)
        if not at:
            return 0, 0
        start = _at(self.data, at)
        (count,) = unpack_from("<I", self.data, start)
        if start + 4 + count * size > len(self.data):
            raise IndexError(start)
        return start + 4, count

    def numbers(self, i: int) -> tuple[int, ...]:
        """A vector of numbers of 4 bytes."""
        start, count = self._vector(i, 4)
        self._take(4 * count)
        return unpack_from(f"<{count}i", self.data, start)

    def text(self, i: int) -> str:
        """A text."""
        start, count = self._vector(i, 1)
        self._take(count)
        return self.data[start : start + count].decode()

    def table(self, i: int) -> _Table | None:
        """Another table; None: there is none."""
        at = self._field(i)
        return _Table(self.data, _at(self.data, at), self.left) if at else None

    def tables(self, i: int) -> Iterator[_Table]:
        """A vector of tables."""
        start, count = self._vector(i, 4)
        for k in range(count):
            yield _Table(self.data, _at(self.data, start + 4 * k), self.left)
