"""Open Inference Protocol v2 (KServe, Triton, MLServer, `edgeroute serve`), JSON or binary tensors."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from contextlib import suppress
from math import prod
from pathlib import Path
from typing import Any, Literal

import numpy as np

from edgeroute.cloud.base import MAX_VALUES, Address, Call, Reply, Talk, checked, loads, looks_like
from edgeroute.cloud.quoting import quoted_names
from edgeroute.confidence.labels import label_names
from edgeroute.confidence.reader import checked_kind
from edgeroute.edge.card import Array, Card, stack
from edgeroute.edge.inputs import constant
from edgeroute.errors import BadInput, BadReply, CloudError, PolicyError
from edgeroute.system import json_dumps
from edgeroute.types import TensorSpec

DTYPES = {
    "BOOL": "bool", "UINT8": "uint8", "UINT16": "uint16", "UINT32": "uint32", "UINT64": "uint64", "INT8": "int8",
    "INT16": "int16", "INT32": "int32", "INT64": "int64", "FP16": "float16", "FP32": "float32", "FP64": "float64",
}  # fmt: skip
"""The protocol's datatypes -> numpy dtypes."""
NAMES = {dtype: name for name, dtype in DTYPES.items()}
TEXTS = "BYTES"
"""The protocol's datatype of texts, which outputs alone may have."""
_DIGITS = re.compile("[0-9]{1,18}")
SEVERAL = ("label+probabilities", "boxes")
"""Kinds of which a model has several outputs."""
TRIES = 2
"""Unanswered binary probes after which the server counts as JSON-only."""
MOST_PROBED = 1 << 22
"""Largest input, in elements, that `ping` probes with zeros before there is a real input."""
MOST_DIMENSIONS = 32
"""Dimensions of a tensor."""
MOST_ROWS = 16
"""Inputs of one call for which a reply may be as long as `Address.max_reply_bytes` each."""
NUMBER = 32
"""Bytes of a number as JSON, at most."""
HEAD = 1 << 16
"""Bytes of a reply beside its numbers, at most."""
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
        kind: of the outputs, one of `edgeroute.confidence.KINDS`; None: by their form.
        output: name of the output to read; None: the first, or all if a kind needs several.
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
        labels: Iterable[Any] | None = None,
        kind: str | None = None,
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
        self.card = Card.read(Path(card)) if card else Card()
        if self.card.state:
            raise PolicyError("the card of an endpoint has no state: requests are of no stream, so nothing can be fed back")
        self.name, self.kind, self.output = name, checked_kind(kind), output
        self.labels = label_names(labels) or self.card.labels
        self._all = output is None and kind in SEVERAL
        """Whether all outputs are read."""
        self.binary: bool | None = None if binary == "auto" else binary
        self.inputs: tuple[TensorSpec, ...] | None = None
        self.outputs: dict[str, tuple[int, ...]] = {}
        """Shapes of the outputs, by the server's metadata; -1: any size."""
        self._changed = False
        """Whether outputs have come that contradict the metadata: then it is fetched again."""
        self._tries = 0

    def identity(self, of: Callable[[Any], str]) -> list[str | None]:
        """What decides an answer besides the address; `of` takes the fingerprint of a file."""
        return [self.output, None if self.card.path is None else of(self.card.path)]

    def health(self) -> Talk:
        """Model readiness, `GET .../ready`."""
        yield Call("GET", f"{self.path}/ready")

    def ping(self) -> Talk:
        """Model readiness, then its metadata, and whether it accepts binary tensors."""
        yield from self.health()
        yield from self._meet()
        if self.binary is None and self.inputs and _probed(self.inputs):
            yield from self._try_binary({s.name: np.zeros((1, *s.shape[1:]), s.dtype) for s in self.inputs})

    def talk(self, inputs: list[Any]) -> Talk:
        """Inputs without the batch axis -> output [n, ...].

        Raises:
            BadInput: an input does not fit the model.
            BadReply: a reply violates the protocol.
        """
        if self.inputs is None or self._changed:
            yield from self._meet()
        feed = self._feed(inputs)
        if self.binary is None:
            constants = {one.name for one in self.card.inputs if one.value is not None}
            zeros = {name: array if name in constants else np.zeros_like(array[:1]) for name, array in feed.items()}
            yield from self._try_binary(zeros)
        reply = yield self._infer(feed, binary=bool(self.binary))
        return self.decode(reply, len(inputs))

    def encode(self, inputs: list[Any]) -> Call | None:
        """The call for these inputs; None while the model's metadata is unknown."""
        return None if self.inputs is None else self._infer(self._feed(inputs), binary=bool(self.binary))

    @property
    def known(self) -> dict[str, Any] | None:
        """Cached metadata (inputs, outputs, binary support), JSON-serialisable; None: not fetched yet."""
        if self.inputs is None:
            return None
        return {"inputs": [list(spec) for spec in self.inputs], "outputs": self.outputs, "binary": self.binary}

    def recall(self, known: dict[str, Any]) -> None:
        """Restores metadata saved from `known`.

        Raises:
            ValueError, KeyError, TypeError, OverflowError: it is damaged.
        """
        if self.inputs is None:
            inputs = known["inputs"]
            specs = tuple(TensorSpec(str(name), DTYPES[NAMES[dtype]], _shape(shape, free=True)) for name, dtype, shape in inputs)
            if known["binary"] not in {None, True, False}:
                raise ValueError(f"binary is {known['binary']!r}")
            outputs = {name: _shape(shape, free=True) for name, shape in dict(known.get("outputs", {})).items()}
            self.inputs, self.outputs = specs, outputs
            self.binary = known["binary"] if self.binary is None else self.binary

    def _meet(self) -> Talk:
        """Fetches the model's metadata."""
        said = loads((yield Call("GET", self.path)).body, self.where)
        inputs: tuple[TensorSpec, ...] = ()
        wrong = "there are none"
        try:
            inputs = tuple(
                TensorSpec(str(t["name"]), DTYPES[t["datatype"]], _shape(t["shape"], free=True)) for t in said["inputs"]
            )
        except (KeyError, TypeError, ValueError, OverflowError) as e:  # not chained: it may quote the reply
            wrong = _wrong(e)
        if not inputs:
            raise BadReply(f"{self.where} describes its inputs in a way that is not the protocol's: {wrong}")
        outputs: dict[str, tuple[int, ...]] = {}
        with suppress(KeyError, TypeError, ValueError, OverflowError):  # many servers do not describe them
            outputs = {str(t["name"]): _shape(t["shape"], free=True) for t in said["outputs"]}
        if self.output is not None and outputs and self.output not in outputs:
            there = quoted_names(outputs, [value for _, value in self.address.headers()])
            raise BadReply(f"{self.where} has no output {self.output!r}, which is to be read: it has {there}")
        self.inputs, self.outputs, self._changed = inputs, outputs, False

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
        feed, given = dict[str, Array](), []
        for spec in self.inputs:
            told = self.card.of(spec.name)
            if told is not None and told.value is not None:
                feed[spec.name] = self._constant(told.value, spec)
            else:
                given.append((spec, self.card.preprocess if told is None and len(self.inputs) == 1 else told and told.preprocess))
        for spec, prepare in given:
            rows = (
                inputs
                if len(given) == 1 and not (inputs and isinstance(inputs[0], dict))
                else [_one(x, spec.name) for x in inputs]
            )
            feed[spec.name] = prepare(rows) if prepare is not None else self._stack(rows, spec)
        return feed

    def _constant(self, value: Any, spec: TensorSpec) -> Array:
        try:
            return constant(value, spec)
        except ValueError as e:
            raise BadInput(f"{self.where}: {e}") from None

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
        limit = self._limit(len(array))
        if self.output is not None:
            head["outputs"] = [{"name": self.output, **({"parameters": {"binary_data": True}} if binary else {})}]
        elif binary:
            head["parameters"] = {"binary_data_output": True}
        text = json_dumps(head)
        if not binary:
            return Call("POST", f"{self.path}/infer", [JSON], text, max_reply=limit)
        body = b"".join([text, *parts])
        return Call("POST", f"{self.path}/infer", [OCTETS, (LENGTH, str(len(text)))], body, max_reply=limit)

    def _limit(self, count: int) -> int:
        """Bytes of a reply for `count` inputs, at most."""
        most, numbers = self.address.max_reply_bytes * min(count, MOST_ROWS), self._numbers(count)
        return most if numbers is None else min(most, HEAD + NUMBER * numbers)

    def _numbers(self, count: int) -> int | None:
        """Numbers in a reply for `count` inputs, by the metadata; None: it does not say."""
        rows = [shape[1:] for shape in self.outputs.values()]
        return None if not rows or any(-1 in row for row in rows) else count * sum(map(prod, rows))

    def decode(self, reply: Reply, count: int) -> Array | dict[str, Array]:
        """Decodes the output [n, ...] of a reply, or all by name; every size is validated before use.

        Raises:
            BadReply: the reply violates the protocol, or lacks the output.
        """
        body, length = memoryview(reply.body), reply.headers.get(LENGTH.lower())
        if length is not None and not (_DIGITS.fullmatch(length) and int(length) <= len(body)):
            raise BadReply(f"{self.where}: {LENGTH} is not a length of its JSON, and the body has {len(body)} bytes")
        cut = len(body) if length is None else int(length)
        most = max(MAX_VALUES, min(self._numbers(count) or 0, self.address.max_reply_bytes) + MAX_VALUES // 10)
        said = loads(reply.body if length is None else body[:cut], self.where, most)
        wrong = None
        try:
            outputs = said["outputs"]
            at, found = cut, dict[str, Array]()
            for output in outputs:
                size = output.get("parameters", {}).get("binary_data_size")
                if self.output in (None, output["name"]):
                    tensor = self._tensor(output, None if size is None else body[at : at + size], count)
                    if not self._all:
                        return tensor
                    found[str(output["name"])] = tensor
                at += size or 0
            if found:
                return found
        except (AttributeError, KeyError, TypeError, ValueError, OverflowError) as e:  # not chained: it may quote the reply
            wrong = _wrong(e)
        if wrong is not None:
            raise BadReply(f"{self.where} answered {looks_like(reply.body[:200])}: {wrong}")
        wanted = "" if self.output is None else f", not {self.output!r}"
        raise BadReply(f"{self.where} gave {len(outputs)} outputs{wanted}")

    def _tensor(self, output: dict[str, Any], raw: memoryview | None, count: int) -> Array:
        texts = output["datatype"] == TEXTS
        dtype, shape = (
            np.dtype(DTYPES["UINT8" if texts else output["datatype"]]),
            _shape(output["shape"], empty=self.kind == "boxes"),
        )
        if self.kind != "boxes" and (not shape or shape[0] != count):
            raise BadReply(f"{self.where}: {count} inputs gave an output whose shape does not begin with {count}")
        told = self.outputs.get(str(output.get("name")), shape)
        if len(told) != len(shape) or any(want not in (-1, size) for want, size in zip(told[1:], shape[1:], strict=True)):
            self._changed = True
            raise BadReply(f"{self.where}: an output of another shape than {list(told)}, which its metadata gives")
        size = prod(shape)
        if texts:
            array = _texts(output["data"] if raw is None else raw, size)
        elif raw is None:
            array = _array(output["data"], dtype)
        elif len(raw) != size * dtype.itemsize:
            raise BadReply(f"{self.where}: the output has another number of bytes than its shape says")
        else:
            array = np.frombuffer(raw, dtype)
        if array.size != size:
            raise BadReply(f"{self.where}: the output has another number of values than its shape says: {array.size} came")
        if dtype.kind == "f" and not (array < np.inf).all():  # false for NaN too; minus infinity is a valid logit
            raise BadReply(f"{self.where}: the output holds NaN or infinity")
        return array.reshape(shape)

    def __repr__(self) -> str:
        return f"OpenInference({self.where!r})"


def _array(data: Any, dtype: np.dtype[Any]) -> Array:
    """The numbers of a JSON list, flat."""
    array = np.array(data)
    if array.dtype.kind in "US":
        raise _Invalid("text instead of numbers")
    with np.errstate(over="ignore"):  # overflow becomes infinity, which is rejected; integers raise
        return (array.astype(dtype) if dtype.kind == "f" else np.array(data, dtype)).reshape(-1)


def _texts(given: Any, size: int) -> Array:
    """Texts, flat: a JSON list of them, or each with its length before it (four bytes, little-endian)."""
    if isinstance(given, memoryview):
        found, at = list[str](), 0
        while at < len(given) and len(found) <= size:
            length = int.from_bytes(given[at : at + 4], "little")
            if at + 4 + length > len(given):
                raise _Invalid("a text that is longer than what came")
            found.append(bytes(given[at + 4 : at + 4 + length]).decode(errors="replace"))
            at += 4 + length
    elif isinstance(given, list) and all(isinstance(one, str) for one in given):
        found = given
    else:
        raise _Invalid("no texts where its datatype says so")
    return np.array(found, str)


def _shape(given: Any, *, free: bool = False, empty: bool = False) -> tuple[int, ...]:
    """A tensor's shape. `free`: with -1 for any size. `empty`: with 0.

    Raises:
        _Invalid: too many dimensions, or a size that is 0, negative or huge.
    """
    if len(given) > MOST_DIMENSIONS:
        raise _Invalid(f"a shape of {len(given)} dimensions")
    shape = tuple(map(int, given))
    if any(not (1 <= size < 1 << 31 or (free and size == -1) or (empty and size == 0)) for size in shape):
        raise _Invalid(f"a shape with a size {'below 1' if min(shape) < 1 else 'of 2**31 or more'}")
    return shape


class _Invalid(ValueError):
    """A message that quotes no value of a reply."""


def _wrong(error: Exception) -> str:
    """What is wrong with a reply, without quoting it: it may have anything in it that was sent."""
    if isinstance(error, _Invalid):
        return str(error)
    missing = error.args[0] if isinstance(error, KeyError) else None
    return f"{type(error).__name__}: {missing!r}" if missing in _KEYS else type(error).__name__


_KEYS = ("inputs", "outputs", "name", "datatype", "shape", "data")


def _probed(inputs: tuple[TensorSpec, ...]) -> bool:
    shapes = [spec.shape[1:] for spec in inputs]
    return not any(-1 in shape for shape in shapes) and sum(map(prod, shapes)) <= MOST_PROBED


def _one(x: Any, name: str) -> Any:
    if not isinstance(x, dict) or name not in x:
        raise BadInput(f"the endpoint needs an input {name!r}; there is {sorted(x) if isinstance(x, dict) else type(x).__name__}")
    return x[name]
