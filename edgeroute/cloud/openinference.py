"""Open Inference Protocol v2 (KServe, Triton, MLServer, `edgeroute serve`), JSON or binary tensors."""

from __future__ import annotations

import re
from math import prod
from pathlib import Path
from typing import Any, Literal

import numpy as np

from edgeroute.cloud.base import Address, Call, Reply, Talk, checked, loads, looks_like
from edgeroute.edge.card import Array, Card, stack
from edgeroute.errors import BadInput, BadReply, CloudError, PolicyError
from edgeroute.system import json_dumps
from edgeroute.types import TensorSpec

DTYPES = {
    "BOOL": "bool", "UINT8": "uint8", "UINT16": "uint16", "UINT32": "uint32", "UINT64": "uint64", "INT8": "int8",
    "INT16": "int16", "INT32": "int32", "INT64": "int64", "FP16": "float16", "FP32": "float32", "FP64": "float64",
}  # fmt: skip
"""The protocol's datatypes -> numpy dtypes."""
NAMES = {dtype: name for name, dtype in DTYPES.items()}
_DIGITS = re.compile("[0-9]{1,18}")
TRIES = 2
"""Unanswered binary probes after which the server counts as JSON-only."""
MOST_PROBED = 1 << 24
"""Largest input, in elements, that `ping` probes with zeros before there is a real input."""
LENGTH = "Inference-Header-Content-Length"
OCTETS = ("Content-Type", "application/octet-stream")
JSON = ("Content-Type", "application/json")


class OpenInference:
    """A model behind the Open Inference Protocol.

    Args:
        url: of the server, or of the model, as in http://host:8000/v2/models/fashion-large.
        model: its name, if not in the URL.
        name: of the endpoint in answers, traces and messages.
        binary: whether to send binary tensors; "auto" probes the server once with an input of zeros.
        labels: class index -> value; None: the card's, else the edge model's.
        kind: of the outputs: logits or probabilities.
        output: name of the output to read; None: the first.
        card: path of a model card whose preprocessing is applied to the caller's input.
        address: keyword arguments of `Address`: api_key, headers, verify, cert, timeout_s, retries, max_reply_bytes, terms.

    Raises:
        PolicyError: no model name, or as `Address`.
    """

    def __init__(
        self,
        url: str,
        *,
        model: str | None = None,
        name: str = "cloud",
        binary: Literal["auto"] | bool = "auto",
        labels: tuple[str, ...] | list[str] | None = None,
        kind: str = "logits",
        output: str | None = None,
        card: str | Path | None = None,
        **address: Any,
    ) -> None:
        self.address = Address(url, **address)
        base, found, rest = self.address.path.partition("/v2/models/")
        if not rest and not model:
            raise PolicyError("which model? Give model=, or a URL that ends in /v2/models/NAME")
        self.path = f"{base if found else base.removesuffix('/v2')}/v2/models/{rest or model}"
        self.where = f"{self.address.origin}{self.path}"
        self.name, self.kind, self.output = name, kind, output
        self.card = Card.read(Path(card)) if card else Card()
        self.labels = tuple(labels) if labels else self.card.labels
        self.binary: bool | None = None if binary == "auto" else binary
        self.inputs: tuple[TensorSpec, ...] | None = None
        self._tries = 0

    def health(self) -> Talk:
        """Model readiness, `GET .../ready`."""
        yield Call("GET", f"{self.path}/ready")

    def ping(self) -> Talk:
        """Model readiness, then its metadata, and whether it accepts binary tensors."""
        yield from self.health()
        yield from self._meet()
        if self.binary is None and self.inputs and all(_probed(s.shape[1:]) for s in self.inputs):
            yield from self._try_binary({s.name: np.zeros((1, *s.shape[1:]), s.dtype) for s in self.inputs})

    def talk(self, inputs: list[Any]) -> Talk:
        """Inputs without the batch axis -> output [n, ...].

        Raises:
            BadInput: an input does not fit the model.
            BadReply: a reply violates the protocol.
        """
        if self.inputs is None:
            yield from self._meet()
        feed = self._feed(inputs)
        if self.binary is None:
            yield from self._try_binary({name: np.zeros_like(array[:1]) for name, array in feed.items()})
        reply = yield self._infer(feed, binary=bool(self.binary))
        return self.decode(reply, len(inputs))

    def encode(self, inputs: list[Any]) -> Call | None:
        """The call for these inputs; None while the model's metadata is unknown."""
        return None if self.inputs is None else self._infer(self._feed(inputs), binary=bool(self.binary))

    @property
    def known(self) -> dict[str, Any] | None:
        """Cached metadata (inputs, binary support), JSON-serialisable; None: not fetched yet."""
        return None if self.inputs is None else {"inputs": [list(spec) for spec in self.inputs], "binary": self.binary}

    def recall(self, known: dict[str, Any]) -> None:
        """Restores metadata saved from `known`."""
        if self.inputs is None:
            self.inputs = tuple(TensorSpec(str(name), str(dtype), tuple(shape)) for name, dtype, shape in known["inputs"])
            self.binary = known["binary"] if self.binary is None else self.binary

    def _meet(self) -> Talk:
        """Fetches the model's metadata."""
        said = loads((yield Call("GET", self.path)).body, self.where)
        try:
            self.inputs = tuple(
                TensorSpec(str(t["name"]), DTYPES[t["datatype"]], tuple(map(_size, t["shape"]))) for t in said["inputs"]
            )
        except (KeyError, TypeError, ValueError, OverflowError) as e:
            raise BadReply(
                f"{self.where} describes its inputs in a way that is not the protocol's: {type(e).__name__}: {e}"
            ) from e

    def _try_binary(self, zeros: dict[str, Array]) -> Talk:
        """Probes for binary tensors: a valid reply means yes, an error means no; no reply means no only the second time."""
        if self._tries == TRIES:  # the last probe was cancelled while waiting, which counts as no reply
            self.binary = False
            return
        self._tries += 1
        reply = yield self._infer(zeros, binary=True)._replace(probe=True)
        if reply.status == 0 and self._tries < TRIES:
            return
        try:
            self.decode(checked(reply, self.where), 1)
            self.binary = True
        except CloudError:
            self.binary = False

    def _feed(self, inputs: list[Any]) -> dict[str, Array]:
        assert self.inputs is not None, "_meet comes first"
        prepare = self.card.preprocess
        if len(self.inputs) == 1:
            spec = self.inputs[0]
            if inputs and isinstance(inputs[0], dict):
                inputs = [_one(x, spec.name) for x in inputs]
            return {spec.name: prepare(inputs) if prepare is not None else self._stack(inputs, spec)}
        return {spec.name: self._stack([_one(x, spec.name) for x in inputs], spec) for spec in self.inputs}

    def _stack(self, inputs: list[Any], spec: TensorSpec) -> Array:
        try:
            return stack(inputs, spec)
        except BadInput as e:
            raise BadInput(
                f"{self.where} takes another input: {e}. Give the endpoint a card= with the preprocessing it needs"
            ) from e

    def _infer(self, feed: dict[str, Array], *, binary: bool) -> Call:
        inputs: list[dict[str, Any]] = []
        parts: list[Any] = []
        for name, array in feed.items():
            tensor: dict[str, Any] = {"name": name, "shape": list(array.shape), "datatype": NAMES[array.dtype.name]}
            if binary:
                tensor["parameters"] = {"binary_data_size": array.nbytes}
                parts.append(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)  # copied once, by the join
            else:
                tensor["data"] = array.ravel().tolist()
            inputs.append(tensor)
        head: dict[str, Any] = {"inputs": inputs}
        if self.output is not None:
            head["outputs"] = [{"name": self.output, **({"parameters": {"binary_data": True}} if binary else {})}]
        elif binary:
            head["parameters"] = {"binary_data_output": True}
        text = json_dumps(head)
        if not binary:
            return Call("POST", f"{self.path}/infer", [JSON], text)
        return Call("POST", f"{self.path}/infer", [OCTETS, (LENGTH, str(len(text)))], b"".join([text, *parts]))

    def decode(self, reply: Reply, count: int) -> Array:
        """Decodes the output [n, ...] of a reply; every size is validated before use.

        Raises:
            BadReply: the reply violates the protocol, or lacks the output.
        """
        body, length = memoryview(reply.body), reply.headers.get(LENGTH.lower())
        if length is not None and not (_DIGITS.fullmatch(length) and int(length) <= len(body)):
            raise BadReply(f"{self.where}: {LENGTH} is {length!r}, and the body has {len(body)} bytes")
        cut = len(body) if length is None else int(length)
        said = loads(body[:cut], self.where)
        try:
            outputs = said["outputs"]
            at = cut
            for output in outputs:
                size = output.get("parameters", {}).get("binary_data_size")
                if self.output in (None, output["name"]):
                    return self._tensor(output, None if size is None else body[at : at + size], count)
                at += size or 0
        except (AttributeError, KeyError, TypeError, ValueError, OverflowError) as e:
            raise BadReply(f"{self.where} answered {looks_like(reply.body[:200])}: {type(e).__name__}: {e}") from e
        wanted = "" if self.output is None else f", not {self.output!r}"
        raise BadReply(f"{self.where} gave the outputs {[str(o['name']) for o in outputs]}{wanted}")

    def _tensor(self, output: dict[str, Any], raw: memoryview | None, count: int) -> Array:
        dtype, shape = np.dtype(DTYPES[output["datatype"]]), tuple(map(int, output["shape"]))
        if not shape or shape[0] != count:
            raise BadReply(f"{self.where}: {count} inputs gave an output of shape {list(shape)}")
        size = prod(shape)
        if raw is None:
            with np.errstate(over="ignore"):  # overflow becomes infinity, rejected below
                array = np.array(output["data"], dtype).reshape(-1)
        elif len(raw) != size * dtype.itemsize:
            raise BadReply(f"{self.where}: the output should have {size * dtype.itemsize} bytes, {len(raw)} came")
        else:
            array = np.frombuffer(raw, dtype)
        if array.size != size:
            raise BadReply(f"{self.where}: the output should have {size} numbers, {array.size} came")
        if dtype.kind == "f" and not (array < np.inf).all():  # false for NaN too; minus infinity is a valid logit
            raise BadReply(f"{self.where}: the output holds NaN or infinity")
        return array.reshape(shape)

    def __repr__(self) -> str:
        return f"OpenInference({self.where!r})"


def _size(given: Any) -> int:
    if not -1 <= (size := int(given)) < 1 << 31:
        raise ValueError(f"a shape with {size} in it")
    return size


def _probed(shape: tuple[int, ...]) -> bool:
    return -1 not in shape and prod(shape) <= MOST_PROBED


def _one(x: Any, name: str) -> Any:
    if not isinstance(x, dict) or name not in x:
        raise BadInput(f"the endpoint needs an input {name!r}; there is {sorted(x) if isinstance(x, dict) else type(x).__name__}")
    return x[name]
