"""Model behind the Open Inference Protocol v2 over gRPC (Triton, KServe, MLServer): the endpoint, its messages, raw tensors.

The classes of messages are made at the first use, without generated code.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from importlib.util import find_spec
from typing import Any

from edgeroute.cloud.encoding_and_edge_answers import PARAMETER, Feed, answers_json
from edgeroute.cloud.endpoint import Talk
from edgeroute.cloud.oip_endpoint_base import HEAD, MOST_ROWS, SentTensor, ServedModel, Start, identity, is_prompt
from edgeroute.cloud.oip_tensors import Invalid, Tensor
from edgeroute.errors import BadReply, PolicyError, Refused, RuntimeMissing
from edgeroute.http.messages_addresses_and_secrets import Call, Reply
from edgeroute.system.late_imports_and_plugins import import_late
from edgeroute.system.sanitised_logs_and_contained_errors import log

# Messages of the Open Inference Protocol over gRPC, with the fields that an endpoint writes and reads.
#
# They are described here, and not in code that protoc made: that runs with no protobuf older than its protoc, and would be
# registered under the same names as the stubs of `tritonclient` or `kserve`. Several messages of the protocol have their fields
# at the same numbers, and share one here. What else a server sends is skipped.

# Message -> field -> (number, type); * after a type: repeated.
FIELDS: dict[str, dict[str, tuple[int, str]]] = {
    "Name": {"name": (1, "string"), "version": (2, "string")},  # of the requests for readiness and for metadata
    "Ready": {"ready": (1, "bool")},
    "Metadata": {
        "name": (1, "string"), "versions": (2, "string*"), "platform": (3, "string"), "inputs": (4, "Tensor*"),
        "outputs": (5, "Tensor*"), "parameters": (6, "Entry*"),
    },
    "Entry": {"key": (1, "string"), "value": (2, "bytes")},  # whose value is a message of MLServer's, or KServe's text
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
# Datatype -> field with its values, if they are not raw bytes; FP16 and BF16 have none.
CONTENTS = {
    "BOOL": "bool_contents", **dict.fromkeys(("INT8", "INT16", "INT32"), "int_contents"), "INT64": "int64_contents",
    **dict.fromkeys(("UINT8", "UINT16", "UINT32"), "uint_contents"), "UINT64": "uint64_contents", "FP32": "fp32_contents",
    "FP64": "fp64_contents", "BYTES": "bytes_contents",
}  # fmt: skip
VERBOSITY = "GRPC_VERBOSITY"  # gRPC's core reads it once, and prints on stderr what a server says, a key or an input among it
_RAW = bytes([7 << 3 | 2])  # tag of `Request.raw`


def message_classes() -> dict[str, Any]:
    """Return message name -> protobuf class, made now from `FIELDS`; imports protobuf.

    They are in a descriptor pool of their own, so that no name meets those of other packages.
    """
    from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

    kinds = descriptor_pb2.FieldDescriptorProto
    file = descriptor_pb2.FileDescriptorProto(name="edgeroute.proto", package="edgeroute", syntax="proto3")
    for message, fields in FIELDS.items():
        described = file.message_type.add(name=message)
        for name, (number, kind) in fields.items():
            base = kind.rstrip("*")
            field = described.field.add(name=name, number=number)
            field.label = kinds.LABEL_REPEATED if kind.endswith("*") else kinds.LABEL_OPTIONAL
            if base in FIELDS:
                field.type, field.type_name = kinds.TYPE_MESSAGE, f".edgeroute.{base}"
            else:
                field.type = getattr(kinds, f"TYPE_{base.upper()}")
    pool = descriptor_pool.DescriptorPool()
    pool.AddSerializedFile(file.SerializeToString())
    return {name: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"edgeroute.{name}")) for name in FIELDS}


def _varint(number: int) -> bytes:
    """Return a number from 0 in protobuf's variable-length encoding: seven bits a byte, the lowest first."""
    encoded = bytearray()
    while number > 0x7F:  # noqa: PLR2004 - seven bits a byte
        encoded.append(number & 0x7F | 0x80)
        number >>= 7
    encoded.append(number)
    return bytes(encoded)


# Maximum tensors of one model or reply: a message of a megabyte could have some 500,000, which take seconds to read.
MOST_TENSORS = 1000
_METADATA = re.compile("(?!grpc-)[a-z0-9_.-]+", re.IGNORECASE)
SERVICE = "/inference.GRPCInferenceService"


class OpenInferenceGrpc(ServedModel):
    """A model behind the Open Inference Protocol, over gRPC.

    Args:
        url: of the server's gRPC port, as in http://host:8001 or, with TLS, https://host; perhaps with /v2/models/NAME.
        model: name of the model, if the URL does not end in `/v2/models/NAME`.
        version: version of the model; None: the one that the server chooses.
        name: name of the endpoint in answers, traces and messages.
        labels: names of the classes in order; None: the card's, else the edge model's, else those in the server's metadata.
        kind: kind of the outputs, one of `edgeroute.confidence.KINDS`; None: recognised by their form.
        output: name of the output to read; None: the first, or all if a kind needs several.
        card: path of a model card whose preprocessing is applied to the caller's input.
        codec: how inputs are sent, as in "jpeg:85", "zstd" or {"name": "uint8", "scale": 1 / 255} (docs/payloads.md); a list
            of them, best first: the best one that is predicted to arrive in time; None: as the model's tensors.
        send_edge: send the edge's answer along, in the request's parameter `edge_answers` (docs/payloads.md).
        address: as for `OpenInference`; headers become metadata.

    Raises:
        PolicyError: no model name, no such codec, a certificate that is not to be checked, client= or pin=, a header
            that is no metadata, or as `Address`.
        RuntimeMissing: grpcio or protobuf is not installed.
    """

    def _check(self, headers: Iterable[str]) -> None:
        """Check the settings that gRPC supports, and that grpcio is installed.

        Raises:
            PolicyError: TLS without verification, a header that is no metadata, `client=` or `pin=`.
            RuntimeMissing: grpcio or protobuf is not installed.
        """
        if self.address.https and self.address.verify is False:
            raise PolicyError("gRPC always checks the server's certificate: give its authority's file as verify, not false")
        if not all(_METADATA.fullmatch(name) and not name.lower().endswith("-bin") for name in headers):
            raise PolicyError("headers has a name that metadata of gRPC cannot have: it takes letters, digits, -, _ and .")
        if self.address.client is not None or self.address.pins:
            raise PolicyError("client= and pin= are for HTTP, and gRPC has connections of its own: leave them out")
        if find_spec("grpc") is None or find_spec("google") is None or find_spec("google.protobuf") is None:
            raise RuntimeMissing("gRPC needs grpcio and protobuf: pip install 'edgeroute[grpc]'")

    @cached_property
    def _messages(self) -> dict[str, Any]:
        """Classes of the messages."""
        return message_classes()

    def channels(self) -> tuple[Any, Any]:
        """Return new channels for threads and for an event loop. gRPC's own messages are off, unless `VERBOSITY` is set."""
        if VERBOSITY not in os.environ and "grpc" in sys.modules:  # too late, and gRPC has no call for it
            log.warning("the program imported grpc first, so it may print on stderr what a server says: set %s=NONE", VERBOSITY)
        os.environ.setdefault(VERBOSITY, "NONE")
        module = import_late("edgeroute.cloud.grpc_calls_as_http_replies")
        longest = self.address.max_reply_bytes * MOST_ROWS + HEAD
        return module.Channels(self.address, longest), module.AsyncChannels(self.address, longest)

    identity, prompt = identity, property(is_prompt)

    def health(self) -> Talk:
        """Yield a call of `ModelReady`; raise Refused if the model is not ready."""
        reply = yield self._model_call("ModelReady")
        if not self._read("Ready", reply).ready:
            raise Refused(f"{self.where} answered that the model is not ready", status=503)

    def ping(self) -> Talk:
        """Yield calls for the model's readiness, then for its metadata, which is stored."""
        yield from self.health()
        yield from self._meet()

    def _model_call(self, method: str) -> Call:
        """Return the call of a method whose message has the model's name and version alone."""
        body = self._messages["Name"](name=self.model, version=self.pinned or "").SerializeToString()
        return Call("GET", f"{SERVICE}/{method}", body=body)

    def _read(self, message: str, reply: Reply) -> Any:
        """Return the message that a reply's body is, of a class of `FIELDS`.

        Raise BadReply if protobuf cannot parse it; the message has the name of the error, and nothing of the body.
        """
        parsed = None
        try:
            parsed = self._messages[message].FromString(reply.body)
        except Exception as e:  # noqa: BLE001 - protobuf's implementations differ in what they raise
            wrong = type(e).__name__
        if parsed is None:
            raise BadReply(f"{self.where} sent an invalid {message}: {wrong}")
        return parsed

    def _describe(self) -> Call:
        """Return the call for the model's metadata."""
        return self._model_call("ModelMetadata")

    def _description(self, reply: Reply) -> dict[str, Any]:
        """Return the metadata in a reply, as the JSON of the protocol over HTTP has it, with at most `MOST_TENSORS` parameters.

        Raises:
            BadReply: the body is no such message, or describes more than `MOST_TENSORS` inputs or outputs.
        """
        metadata = self._read("Metadata", reply)
        if max(len(metadata.inputs), len(metadata.outputs)) > MOST_TENSORS:
            raise BadReply(f"{self.where} describes more than {MOST_TENSORS} tensors")
        about = {"name": metadata.name, "versions": list(metadata.versions), "platform": metadata.platform}
        about["parameters"] = {entry.key: self._text(entry.value) for entry in metadata.parameters[:MOST_TENSORS]}
        return {**about, "inputs": _descriptions(metadata.inputs), "outputs": _descriptions(metadata.outputs)}

    def _text(self, value: bytes) -> str:
        """Return the text of a parameter in metadata; empty if it has none."""
        try:
            return str(self._messages["Value"].FromString(value).string_param) or value.decode()
        except Exception:  # noqa: BLE001 - protobuf's implementations differ in what they raise
            return value.decode("utf-8", "replace")

    def _infer(self, feed: Feed) -> Call:
        """Return the call of `ModelInfer` for the tensors of a feed, as raw bytes; the edge's answers, if any, as a parameter.

        Raise BadInput for an array that the protocol does not have.
        """
        if feed.edges is None:
            return self._in_bytes(feed)
        edges = self._messages["Request"]()
        edges.parameters.add(key=PARAMETER).value.string_param = answers_json(feed.edges)
        return self._in_bytes(feed, edges.SerializeToString())

    def _start(self, tensors: Sequence[SentTensor]) -> Start:
        """Return what is the same in all calls of `ModelInfer` with tensors of these names, shapes and sizes.

        It is the path, no metadata, and the bytes before each tensor's content: its tag and length; before the first also all
        other fields.
        """
        request = self._messages["Request"](model_name=self.model, model_version=self.pinned or "")
        for name, datatype, shape, _ in tensors:
            request.inputs.add(name=name, datatype=datatype, shape=shape)
        if self.output is not None:
            request.outputs.add(name=self.output)
        before = [_RAW + _varint(size) for *_, size in tensors]
        before[0] = request.SerializeToString() + before[0]
        return f"{SERVICE}/ModelInfer", (), before

    def _open_reply(self, reply: Reply, most: int) -> tuple[Any, Iterator[Tensor]]:
        """Return the model's version in a reply, and an iterator that decodes its tensors one by one (see `_tensors`).

        Raises:
            BadReply: the body is no such message.
            Invalid: it has more than `MOST_TENSORS` outputs, or raw contents of another number than outputs.
        """
        response = self._read("Response", reply)
        if len(response.outputs) > MOST_TENSORS:
            raise Invalid(f"more than {MOST_TENSORS} outputs")
        if response.raw and len(response.raw) != len(response.outputs):
            raise Invalid(f"{len(response.outputs)} outputs, and the raw contents of {len(response.raw)}")
        return response.model_version, self._tensors(response, most)

    def _tensors(self, response: Any, most: int) -> Iterator[Tensor]:
        """Yield the tensors of a reply, with raw bytes if it has any, else with a list of typed values.

        A datatype without typed values has empty bytes. Raise Invalid for more than `most` typed values in a tensor.
        """
        for number, output in enumerate(response.outputs):
            if response.raw:
                data: Any = response.raw[number]
            else:
                field = CONTENTS.get(output.datatype)
                values = () if field is None else getattr(output.contents, field)
                if len(values) > most:
                    raise Invalid(f"{len(values)} values: more than expected, unread")
                data = b"" if field is None else list(values)
            yield Tensor(output.name, output.datatype, output.shape, data)


def _descriptions(tensors: Any) -> list[dict[str, Any]]:
    """Return name, datatype and shape of each tensor of the metadata, in JSON types."""
    return [{"name": tensor.name, "datatype": tensor.datatype, "shape": list(tensor.shape)} for tensor in tensors]
