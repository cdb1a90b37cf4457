"""Reader of .tflite files: signatures, special operators, states and sizes, the operator before each output; checks the file.

LiteRT checks a file as well, but tflite-runtime does not: a truncated file crashes the process.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import prod
from struct import error as struct_error
from struct import unpack_from
from typing import Any, NamedTuple

from edgeroute.edge.runtime_base import last_operator

MOST_BYTES = (1 << 31) - 1  # largest size of a flatbuffer, whose offsets have 31 bits
_FLOAT32, _INT8, _INT4 = 0, 9, 17
# Type of an element -> its bytes; elements of other types have 1, or less.
_BYTES = {0: 4, 1: 2, 2: 4, 4: 8, 7: 2, 8: 8, 10: 8, 11: 16, 12: 8, 15: 4, 16: 2}
# Operators that take weights of 8 bits beside activations in float, by their codes.
_HYBRID = {
    3: "CONV_2D", 4: "DEPTHWISE_CONV_2D", 7: "EMBEDDING_LOOKUP", 9: "FULLY_CONNECTED", 16: "LSTM", 24: "RNN", 27: "SVDF",
    35: "UNIDIRECTIONAL_SEQUENCE_RNN", 44: "UNIDIRECTIONAL_SEQUENCE_LSTM", 46: "BIDIRECTIONAL_SEQUENCE_RNN",
    52: "BIDIRECTIONAL_SEQUENCE_LSTM", 67: "TRANSPOSE_CONV", 126: "BATCH_MATMUL", 132: "CONV_3D",
}  # fmt: skip
_CUSTOM, _VAR_HANDLE = 32, 142
# The operator that decodes a detector's boxes, and names for its outputs, by which they are read.
_DETECTION, DETECTED = "TFLite_Detection_PostProcess", ("boxes", "classes", "scores", "number")
# Limits of the description: bytes that are read, times the file's size, bytes that a table counts as, and axes.
#
# Offsets may lead to the same place any number of times. A file without such offsets stays below the limits.
_MOST_READ, _TIMES, _TABLE_BYTES, _MOST_AXES = 1 << 26, 8, 32, 255


class Signature(NamedTuple):
    """Names for the inputs and outputs of one subgraph."""

    key: str
    subgraph: int
    inputs: dict[str, int]  # name -> number of the tensor
    outputs: dict[str, int]  # name -> number of the tensor


class Contents(NamedTuple):
    """Description of a model file: signatures, special operators, states and sizes."""

    signatures: tuple[Signature, ...]
    # Operators that have weights in int8 and activations in float, which are quantised during the run.
    dynamic_range: tuple[str, ...]
    custom: tuple[str, ...]  # operators that are not TFLite's own
    resources: bool  # True if the model has a state in variables that its operators read and assign
    variables: bool  # True if the model has a state in tensors, as an SVDF or an LSTM has
    operators: int  # number of operators of the main graph
    largest: int  # bytes of the largest tensor
    detected: dict[int, str]  # number of an output of the main graph that is a detector's -> its name among `DETECTED`


def read_contents(data: bytes) -> Contents:
    """Return the description of a .tflite file's bytes.

    Raises:
        ValueError: it is no .tflite file, or a part of it is missing.
    """
    if data[4:8] != b"TFL3":
        raise ValueError("it is no .tflite file, which has TFL3 in its bytes 4 to 8")
    try:
        return _contents(_Table(data, _follow(data, 0), [min(_MOST_READ, _TIMES * len(data))]))
    except (struct_error, IndexError, UnicodeDecodeError) as e:
        raise ValueError("it is truncated or damaged") from e


def _contents(model: _Table) -> Contents:
    """Return the description, after following every offset once, so that no later reader leaves the file.

    Raises:
        IndexError, struct.error: a part is missing.
    """
    codes = [(max(code.signed(0, 1), code.signed(3, 4)), code.text(1)) for code in model.tables(1)]
    constant = [buffer.length(0) > 0 or buffer.unsigned(1) > 1 for buffer in model.tables(4)]
    hybrid, custom, resources, variables = dict[str, None](), dict[str, None](), False, False
    largest, detected, graphs = 0, dict[int, str](), list(model.tables(2))
    if not graphs:
        raise IndexError("it has no graph")
    for graph in graphs:
        tensors = [_tensor(part) for part in graph.tables(0)]
        variables = variables or any(part.variable for part in tensors)
        largest = max([largest, *(part.size for part in tensors)])
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
                if name == _DETECTION and graph is graphs[0]:
                    detected |= zip(operator.numbers(2), DETECTED, strict=False)
            resources = resources or code == _VAR_HANDLE
            weights = any(part.kind in {_INT8, _INT4} and constant[part.buffer] for part in inputs)
            if code in _HYBRID and weights and inputs[0].kind == _FLOAT32:
                hybrid[_HYBRID[code]] = None
    for part in model.tables(6):
        part.text(0)
    count = graphs[0].length(3, 4)
    signatures = tuple(_signature(part) for part in model.tables(7))
    return Contents(signatures, tuple(hybrid), tuple(custom), resources, variables, count, largest, detected)


# Codes of operators that tell the kind of an output -> ONNX's names.
_OPERATORS = {
    6: "DequantizeLinear", 11: "LpNormalization", 14: "Sigmoid", 22: "Reshape", 25: "Softmax", 43: "Squeeze", 48: "TopK",
    50: "LogSoftmax", 53: "Cast", 114: "QuantizeLinear",
}  # fmt: skip


def last_operators(data: Any) -> dict[str, str]:
    """Return name of an output -> operator that makes it, by `last_operator`, of the main graph of a file's bytes.

    {} if the file is damaged, which `read_contents` reports.
    """
    try:
        model = _Table(data, _follow(data, 0), [min(_MOST_READ, _TIMES * len(data))])
        codes = [max(code.signed(0, 1), code.signed(3, 4)) for code in model.tables(1)]
        graph = next(model.tables(2))
        nodes = {
            i: (_OPERATORS.get(codes[operator.unsigned(0)], ""), operator.numbers(1))
            for operator in graph.tables(3)
            for i in operator.numbers(2)
        }
        names = {i: tensor.text(3) for i, tensor in enumerate(graph.tables(0))}
        for signature in map(_signature, model.tables(7)):
            names |= {} if signature.subgraph else {i: name for name, i in signature.outputs.items()}
        return {names[i]: last_operator(i, nodes) for i in graph.numbers(2)}
    except (struct_error, IndexError, LookupError, StopIteration, UnicodeDecodeError):
        return {}


class _Tensor(NamedTuple):
    """Tensor of a graph."""

    kind: int
    buffer: int
    variable: bool
    size: int  # bytes of its elements


def _tensor(table: _Table) -> _Tensor:
    """Read and check one tensor.

    Raises IndexError for too many axes or a missing part. An unknown type counts 1 byte an element.
    """
    kind = table.signed(1, 1)
    shape = table.numbers(0)
    if len(shape) > _MOST_AXES:
        raise IndexError(len(shape))
    size = prod(max(1, n) for n in shape) * _BYTES.get(kind, 1)
    table.text(3)
    if (quantised := table.table(4)) is not None:
        for field, width in ((0, 4), (1, 4), (2, 4), (3, 8)):
            quantised.length(field, width)
    table.numbers(7)
    return _Tensor(kind, table.unsigned(2), bool(table.signed(5, 1)), size)


def _signature(table: _Table) -> Signature:
    """Read one signature."""
    inputs, outputs = ({pair.text(0): pair.unsigned(1) for pair in table.tables(field)} for field in (0, 1))
    return Signature(table.text(2), table.unsigned(4), inputs, outputs)


def _follow(data: bytes, position: int) -> int:
    """Return the position that the offset at a position leads to.

    Raises:
        IndexError: it lies outside of the data.
    """
    (offset,) = unpack_from("<I", data, position)
    if not 0 < offset <= len(data) - position:
        raise IndexError(position)
    return int(position + offset)


class _Table:
    """Table of a flatbuffer, which reads fields by their number in the schema. A missing field reads as 0, or empty.

    Args:
        data: the file.
        position: where the table begins.
        left: one number, which all tables share: the bytes that may still be read; reduced in place.

    Raises:
        IndexError, struct.error: the table lies outside of the data, or too much is read.
    """

    def __init__(self, data: bytes, position: int, left: list[int]) -> None:
        self.data, self.at, self.left = data, position, left
        self._take(_TABLE_BYTES)
        (back,) = unpack_from("<i", data, position)
        self.fields = position - back
        if self.fields < 0:
            raise IndexError(position)
        self.size, length = unpack_from("<HH", data, self.fields)
        if position + length > len(data) or self.fields + self.size > len(data):
            raise IndexError(position)

    def _take(self, count: int) -> None:
        """Count bytes as read.

        The limit is shared by all tables of the file.

        Raises:
            IndexError: the limit is exceeded.
        """
        self.left[0] -= count
        if self.left[0] < 0:
            raise IndexError(self.at)

    def _field(self, i: int) -> int:
        """Return the position of a field; 0: it is missing."""
        place = 4 + 2 * i
        offset = unpack_from("<H", self.data, self.fields + place)[0] if place + 2 <= self.size else 0
        return self.at + offset if offset else 0

    def signed(self, i: int, size: int) -> int:
        """Return a field's signed number of 1 or 4 bytes."""
        position = self._field(i)
        return int(unpack_from("<b" if size == 1 else "<i", self.data, position)[0]) if position else 0

    def unsigned(self, i: int) -> int:
        """Return a field's unsigned number of 4 bytes."""
        position = self._field(i)
        return int(unpack_from("<I", self.data, position)[0]) if position else 0

    def length(self, i: int, size: int = 1) -> int:
        """Return the number of elements of a field's vector.

        Args:
            i: number of the field.
            size: bytes of an element, for the check that all of them are there.
        """
        return self._vector(i, size)[1]

    def _vector(self, i: int, size: int) -> tuple[int, int]:
        """Return (position of the first element, number of elements) of a vector.

        Raises:
            IndexError: it is longer than the data.
        """
        if not (position := self._field(i)):
            return 0, 0
        start = _follow(self.data, position)
        (count,) = unpack_from("<I", self.data, start)
        if start + 4 + count * size > len(self.data):
            raise IndexError(start)
        return start + 4, count

    def numbers(self, i: int) -> tuple[int, ...]:
        """Return a field's vector of signed numbers of 4 bytes."""
        start, count = self._vector(i, 4)
        self._take(4 * count)
        return unpack_from(f"<{count}i", self.data, start)

    def text(self, i: int) -> str:
        """Return the text of a field."""
        start, count = self._vector(i, 1)
        self._take(count)
        return self.data[start : start + count].decode()

    def table(self, i: int) -> _Table | None:
        """Return the table that a field refers to; None: the field is missing."""
        position = self._field(i)
        return _Table(self.data, _follow(self.data, position), self.left) if position else None

    def tables(self, i: int) -> Iterator[_Table]:
        """Yield the tables of a field's vector."""
        start, count = self._vector(i, 4)
        for k in range(count):
            yield _Table(self.data, _follow(self.data, start + 4 * k), self.left)
