"""Open Inference Protocol v2 over HTTP (KServe, Triton, MLServer, Ray Serve, `edgeroute serve`), with JSON or binary tensors."""

from __future__ import annotations

import re
from base64 import b64encode
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from math import prod
from pathlib import Path
from typing import Any, Literal

import numpy as np

from edgeroute.cloud import oip_endpoint_base as base
from edgeroute.cloud import oip_tensors as oip
from edgeroute.cloud.encoding_and_edge_answers import PARAMETER, Feed, answers_json, tensor_parameters, zeros_of
from edgeroute.cloud.endpoint import Talk, check_status, loads
from edgeroute.cloud.load_reports import ASK
from edgeroute.cloud.oip_endpoint_base import Given, SentTensor, ServedModel, Start, identity, is_prompt
from edgeroute.core.walk import new
from edgeroute.errors import CloudError
from edgeroute.http.messages_addresses_and_secrets import SUCCESS, Call, Reply
from edgeroute.system.json_codec_and_short_repr import json_dumps
from edgeroute.types import TensorSpec

_DIGITS = re.compile("[0-9]{1,18}")
TRIES = 2  # unanswered probes with binary tensors after which the server counts as JSON-only
BUSY = (429, 503)  # HTTP statuses of a server that is busy, and so gives no information
MOST_PROBED = 1 << 22  # maximum elements of an input with which `ping` probes, before there is a real input
LENGTH = "Inference-Header-Content-Length"
_LENGTH = LENGTH.lower()
OCTETS = ("Content-Type", "application/octet-stream")
JSON = ("Content-Type", "application/json")


class OpenInference(ServedModel):
    """A model behind the Open Inference Protocol, over HTTP.

    Args:
        url: of the server, or of the model, as in http://host:8000/v2/models/fashion-large, perhaps with /versions/2.
        model: name of the model, if the URL does not end in `/v2/models/NAME`.
        version: version of the model; None: the one that the server chooses.
        name: name of the endpoint in answers, traces and messages.
        binary: send tensors as bytes; "auto" probes the server once with an input of zeros.
        labels: names of the classes in order; None: the card's, else the edge model's, else those in the server's metadata.
        kind: kind of the outputs, one of `edgeroute.confidence.KINDS`; None: recognised by their form.
        output: name of the output to read; None: the first, or all if a kind needs several.
        card: path of a model card whose preprocessing is applied to the caller's input.
        codec: how inputs are sent, as in "jpeg:85", "zstd" or {"name": "uint8", "scale": 1 / 255} (docs/payloads.md); a list
            of them, best first: the best one that is predicted to arrive in time; None: as the model's tensors.
        send_edge: send the edge's answer along, in the request's parameter `edge_answers` (docs/payloads.md).
        address: keyword arguments of `Address`: api_key, headers, verify, cert, timeout_s, retries, max_reply_bytes, terms.

    Raises:
        PolicyError: no model name, no such codec, or as `Address`.
    """

    def __init__(
        self,
        url: str,
        *,
        model: str | None = None,
        version: str | None = None,
        name: str = "cloud",
        binary: Literal["auto"] | bool = "auto",
        labels: Iterable[Any] | None = None,
        kind: str | None = None,
        output: str | None = None,
        card: str | Path | None = None,
        codec: Given | None = None,
        send_edge: bool = False,
        **address: Any,
    ) -> None:
        super().__init__(
            url, model=model, version=version, name=name, labels=labels, kind=kind, output=output, card=card, codec=codec,
            send_edge=send_edge, **address,
        )  # fmt: skip
        self.binary = None if binary == "auto" else binary
        self._tries = 0

    identity, prompt = identity, property(is_prompt)

    def health(self) -> Talk:
        """Yield a call for the model's readiness, `GET .../ready`. Raises Refused if it is not ready."""
        yield Call("GET", f"{self.path}/ready")

    def ping(self) -> Talk:
        """Yield calls for the model's readiness and for its metadata, which is stored.

        Then, if it is not known whether the server takes binary tensors, yield a probe with zeros, and store what it shows; not
        with a codec, nor for inputs of free or large shapes. Raise Refused or BadReply if the model is not ready or its metadata
        invalid.
        """
        yield from self.health()
        yield from self._meet()
        if self.binary is None and self.inputs and self.payload is None and _probed(self.inputs):
            zeros = {s.name: oip.zeros_like_row(np.zeros((1, *s.shape[1:]), s.dtype)) for s in self.inputs}
            yield from self._try_binary(Feed(zeros))

    def talk(self, inputs: list[Any]) -> Talk:
        """Yield the calls for inputs, and return their outputs; the first talk also probes for binary tensors."""
        return super().talk(inputs) if self.binary is not None else self._first_talk(inputs)

    def _first_talk(self, inputs: list[Any]) -> Talk:
        """Do as `talk`, while it is not known if the server takes binary tensors.

        Fetches metadata if there is none, and yields a probe with zeros. The probe is left out for texts that are no UTF-8, which
        can be sent in binary alone.
        """
        if self.inputs is None or self._changed:
            yield from self._meet()
        constants = {constant.name for constant in self.card.inputs if constant.value is not None}
        feed = self._feed(inputs)
        if not _octets(feed):  # else there is no other way, and no zeros that such a model takes
            yield from self._try_binary(zeros_of(feed, constants, self.payload))
        return (yield from super().talk(inputs))

    @property
    def known(self) -> dict[str, Any] | None:
        """Stored metadata, and whether the server takes binary tensors, in JSON types; None: not fetched yet."""
        known = super().known
        return None if known is None else {**known, "binary": self.binary}

    def recall(self, known: dict[str, Any]) -> None:
        """Restore metadata saved from `known`, and if the server takes binary tensors; a no-op if metadata was fetched already.

        `binary` as it was given to the constructor stays. An invalid `binary` raises ValueError in any case, other damage
        ValueError, KeyError, TypeError or OverflowError; nothing is changed then.
        """
        if known["binary"] not in {None, True, False}:
            raise ValueError(f"binary is {known['binary']!r}")
        if self.inputs is None:
            super().recall(known)
            self.binary = known["binary"] if self.binary is None else self.binary

    def _try_binary(self, zeros: Feed) -> Talk:
        """Yield a probe with zeros in binary tensors, and set `binary`; do nothing if it is known.

        True after a valid reply; False after an error, or after `TRIES` probes without a reply. A server that is busy (429, 503)
        leaves it unknown. A probe that is cancelled counts as one without a reply. Talks that begin at once probe at once.
        """
        if self.binary is None and self._tries >= TRIES:
            self.binary = False
        if self.binary is not None:
            return
        status, tries = 0, self._tries
        try:
            reply = yield self._written(zeros, binary=True)._replace(probe=True)
            status = reply.status
        finally:
            self._tries = self._tries if status else tries + 1  # those at once are lost at once, and count as one
        if status in BUSY or (not status and self._tries < TRIES):  # a busy server says nothing of binary tensors
            return
        try:
            self.decode(check_status(reply, self.where), 1)
            self.binary = True
        except CloudError:
            self.binary = bool(self.binary)  # another talk may have had its reply

    def _describe(self) -> Call:
        """Return the call for the model's metadata."""
        return Call("GET", self.path)

    def _description(self, reply: Reply) -> dict[str, Any]:
        """Return the metadata in a reply; {} if the reply is no object."""
        metadata = loads(reply.body, self.where)
        return metadata if isinstance(metadata, dict) else {}

    def _meet(self) -> Talk:
        """Yield the call for the metadata, store the metadata, and return the server's platform; raise as the base class.

        For Triton also fetch the model's configuration, for labels, kind and the largest batch; its failure is ignored.
        """
        platform = yield from super()._meet()
        if platform in base.TRITON:  # whose metadata has no parameters
            reply = yield Call("GET", f"{self.path}/config", probe=True)
            config: Any = None
            with suppress(CloudError):
                config = loads(reply.body, self.where) if reply.status in SUCCESS else None
            if isinstance(config, dict):
                self.served_labels = self.served_labels or base.labels_in(config)
                self.served_kind = base.kind_in(config) or self.served_kind
                most = config.get("max_batch_size")
                self.most_rows = most if type(most) is int and most > 0 else self.most_rows
        return platform

    def _infer(self, feed: Feed) -> Call:
        """Return the POST of a feed: with tensors in binary if the server takes them, else in JSON.

        If that is unknown, in binary only for texts that are no UTF-8. Raise BadInput for an array that the form cannot have.
        """
        return self._written(feed, binary=bool(self.binary) or (self.binary is None and _octets(feed)))

    def _written(self, feed: Feed, *, binary: bool) -> Call:
        """Return the POST of a feed, also of one with codecs or the edge's answers.

        With `binary` it is a JSON header with the tensors' bytes behind it; else all is JSON, with encoded files in Base64. Raise
        BadInput for bytes that JSON cannot carry.
        """
        if binary and feed.edges is None and not feed.coded:
            return self._in_bytes(feed)
        inputs: list[dict[str, Any]] = []
        parts: list[Any] = []
        for name, array in feed.items():
            datatype = oip.datatype_of(array, self.datatypes.get(name))
            tensor: dict[str, Any] = {"name": name, "shape": list(array.shape), "datatype": datatype}
            about, files = tensor_parameters(feed, name)
            if binary:
                parts.append(oip.to_bytes(array, datatype))
                about["binary_data_size"] = len(parts[-1])
            elif files:
                about["content_type"] = "base64"
                tensor["data"] = [b64encode(item).decode() for item in array.flat]
            else:
                tensor["data"] = oip.to_json_values(array, datatype)
            if about:
                tensor["parameters"] = about
            inputs.append(tensor)
        text, limit = self._head(inputs, binary=binary, edges=feed.edges), self._limit(len(array))
        if not binary:
            return Call("POST", f"{self.path}/infer", [JSON, ASK], text, max_reply=limit)
        body = b"".join([text, *parts])
        return Call("POST", f"{self.path}/infer", [OCTETS, (LENGTH, str(len(text))), ASK], body, max_reply=limit)

    def _start(self, tensors: Sequence[SentTensor]) -> Start:
        """Return what is the same in all binary requests with tensors of these names, shapes and sizes.

        It is path, headers, and the JSON, which stands before the first tensor's bytes. Nothing stands before the others.
        """
        inputs: list[dict[str, Any]] = [
            {"name": name, "shape": list(shape), "datatype": datatype, "parameters": {"binary_data_size": size}}
            for name, datatype, shape, size in tensors
        ]
        text = self._head(inputs, binary=True)
        return f"{self.path}/infer", (OCTETS, (LENGTH, str(len(text))), ASK), [text, *[b""] * (len(tensors) - 1)]

    def _head(
        self, inputs: list[dict[str, Any]], *, binary: bool, edges: Sequence[Mapping[str, Any] | None] | None = None
    ) -> bytes:
        """Return the JSON of a request, with the descriptions of its inputs.

        It names the output to send, if one is configured, asks for outputs in binary if `binary`, and has the edge's answers as a
        parameter unless `edges` is None.
        """
        head: dict[str, Any] = {"inputs": inputs}
        if self.output is not None:
            head["outputs"] = [{"name": self.output, **({"parameters": {"binary_data": True}} if binary else {})}]
        elif binary:
            head["parameters"] = {"binary_data_output": True}
        if edges is not None:
            head.setdefault("parameters", {})[PARAMETER] = answers_json(edges)
        return json_dumps(head)

    def _open_reply(self, reply: Reply, most: int) -> tuple[Any, Iterator[oip.Tensor]]:
        """Return the model's version in a reply, and an iterator over its tensors, from the JSON and the bytes behind it.

        Raises:
            BadReply: the JSON cannot be parsed, or has more than `most` values.
            Invalid: the header for the JSON's length is no number, or beyond the body.
            KeyError, TypeError: the JSON is no object, or has no outputs.
        """
        body, length = memoryview(reply.body), reply.headers.get(_LENGTH)
        if length is not None and not (_DIGITS.fullmatch(length) and int(length) <= len(body)):
            raise oip.Invalid(f"{LENGTH} is not a length of its JSON, and the body has {len(body)} bytes")
        cut = len(body) if length is None else int(length)
        response = loads(reply.body if length is None else body[:cut], self.where, most)
        if not isinstance(response, dict):
            raise TypeError
        return response.get("model_version"), _tensors(response["outputs"], body[cut:])


def _tensors(outputs: Any, rest: memoryview) -> Iterator[oip.Tensor]:
    """Yield the tensors of a reply, not decoded, each with its JSON list, or with the next bytes if it declares their size.

    Raise KeyError, TypeError or AttributeError for a description that lacks a part, or has one of another type.

    Args:
        outputs: descriptions from the reply's JSON.
        rest: bytes after the JSON.
    """
    offset = 0
    for output in outputs:
        size = (output.get("parameters") or {}).get("binary_data_size")  # KServe has null there
        data = output.get("data") if size is None else rest[offset : offset + size]
        if data is None:
            raise KeyError("data")
        yield new(oip.Tensor, (output["name"], output["datatype"], output["shape"], data))
        offset += size or 0


def _octets(feed: Feed) -> bool:
    """Return True if an input without a codec has bytes that are no UTF-8 text, which JSON cannot carry."""
    for name, array in feed.items():
        if array.dtype.hasobject and name not in feed.coded:
            try:
                for item in array.flat:
                    _ = isinstance(item, bytes) and item.decode()
            except UnicodeDecodeError:
                return True
    return False


def _probed(inputs: tuple[TensorSpec, ...]) -> bool:
    """Return True if inputs have fixed and moderate sizes, so that zeros can be sent as a probe."""
    shapes = [spec.shape[1:] for spec in inputs]
    return not any(-1 in shape for shape in shapes) and sum(map(prod, shapes)) <= MOST_PROBED
