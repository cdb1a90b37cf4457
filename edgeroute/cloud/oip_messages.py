"""Messages of the Open Inference Protocol over gRPC: those fields that an endpoint writes and reads.

They are described here, and not in code that protoc made: that runs with no protobuf older than its protoc, and would be
registered under the same names as the stubs of `tritonclient` or `kserve`. Several messages of the protocol have their fields at
the same numbers, and share one here. What else a server sends is skipped.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

FIELDS: dict[str, dict[str, tuple[int, str]]] = {
    "Name": {"name": (1, "string"), "version": (2, "string")},  # of the requests for readiness and for metadata
    "Ready": {"ready": (1, "bool")},
    "Metadata": {
        "name": (1, "string"), "versions": (2, "string*"), "platform": (3, "string"), "inputs": (4, "Tensor*"),
        "outputs": (5, "Tensor*"),
    },
    "Tensor": {"name": (1, "string"), "datatype": (2, "string"), "shape": (3, "int64*"), "contents": (5, "Contents")},
    "Contents": {
        "bool_contents": (1, "bool*"), "int_contents": (2, "int32*"), "int64_contents": (3, "int64*"),
        "uint_contents": (4, "uint32*"), "uint64_contents": (5, "uint64*"), "fp32_contents": (6, "float*"),
        "fp64_contents": (7, "double*"), "bytes_contents": (8, "bytes*"),
    },
    "Value": {"string_param": (3, "string")},
    "Parameter": {"key": (1, "string"), "value": (2, "Value")},  # an entry of a map, as it is on the wire
    "Request": {
        "model_name": (1, "string"), "model_version": (2, "string"), "parameters": (4, "Parameter*"),
        "inputs": (5, "Tensor*"), "outputs": (6, "Tensor*"), "raw": (7, "bytes*"),
    },
    "Response": {"model_name": (1, "string"), "model_version": (2, "string"), "outputs": (5, "Tensor*"), "raw": (6, "bytes*")},
}  # fmt: skip
"""Message -> field -> its number and type; *: any number of them."""
CONTENTS = {
    "BOOL": "bool_contents", **dict.fromkeys(("INT8", "INT16", "INT32"), "int_contents"), "INT64": "int64_contents",
    **dict.fromkeys(("UINT8", "UINT16", "UINT32"), "uint_contents"), "UINT64": "uint64_contents", "FP32": "fp32_contents",
    "FP64": "fp64_contents", "BYTES": "bytes_contents",
}  # fmt: skip
"""Datatype -> the field that its values are in, where they are not raw bytes; FP16 and BF16 have none."""
_RAW = bytes([7 << 3 | 2])
"""The tag of `Request.raw`."""


def made() -> dict[str, Any]:
    """The classes of the messages, by name."""
    from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

    kinds = descriptor_pb2.FieldDescriptorProto
    file = descriptor_pb2.FileDescriptorProto(name="edgeroute.proto", package="edgeroute", syntax="proto3")
    for message, fields in FIELDS.items():
        described = file.message_type.add(name=message)
        for name, (number, kind) in fields.items():
            one = kind.rstrip("*")
            field = described.field.add(name=name, number=number)
            field.label = kinds.LABEL_REPEATED if kind.endswith("*") else kinds.LABEL_OPTIONAL
            if one in FIELDS:
                field.type, field.type_name = kinds.TYPE_MESSAGE, f".edgeroute.{one}"
            else:
                field.type = getattr(kinds, f"TYPE_{one.upper()}")
    pool = descriptor_pool.DescriptorPool()
    pool.AddSerializedFile(file.SerializeToString())
    return {name: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"edgeroute.{name}")) for name in FIELDS}


def with_raw(request: bytes, parts: Sequence[memoryview | bytes]) -> bytes:
    """A serialised `Request` with raw tensors after it: fields may be in any order, and so the tensors are copied once."""
    pieces: list[memoryview | bytes] = [request]
    for part in parts:
        pieces += [_RAW, _varint(len(part)), part]
    return b"".join(pieces)


def _varint(number: int) -> bytes:
    found = bytearray()
    while number > 0x7F:  # noqa: PLR2004 - seven bits a byte
        found.append(number & 0x7F | 0x80)
        number >>= 7
    found.append(number)
    return bytes(found)
