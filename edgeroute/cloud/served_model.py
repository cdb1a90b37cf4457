"""A model on a server that speaks the Open Inference Protocol: what it takes and gives, whichever way its messages go."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from hashlib import sha256
from math import prod
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

from edgeroute.cloud.backend import checked_flag
from edgeroute.cloud.codecs import Codec
from edgeroute.cloud.datatypes import NAMES, TEXTS, Invalid, Tensor, decoded, shape_of, spec_of, stacked, wrong_with
from edgeroute.cloud.endpoint import MAX_VALUES, Talk, looks_like
from edgeroute.cloud.payloads import Choose, Feed, apart, beside, encode, packed, payload_of
from edgeroute.confidence.forms import label_names
from edgeroute.confidence.reader import checked_kind
from edgeroute.edge.card import Array, Card
from edgeroute.edge.inputs import constant
from edgeroute.edge.preprocess import Preprocess
from edgeroute.edge.tensors import Plain
from edgeroute.errors import BadInput, BadReply, PolicyError, Refused
from edgeroute.http.messages import Address, Call, Reply
from edgeroute.system.process import json_loads
from edgeroute.system.quoting import quoted_names
from edgeroute.types import TensorSpec

# Labels in what a server says of its model, as `edgeroute export` writes them there.

MOST = 100_000
"""Labels of a model."""
LONGEST = 1_000
"""Characters of one."""
TRITON = frozenset({"ensemble", "python", "onnxruntime_onnx", "onnxruntime"})
"""Platforms whose server may have labels in the model's configuration, which the metadata lacks."""


def labels_in(said: Any) -> tuple[str | int | float | bool, ...] | None:
    """The labels among the parameters of metadata, or of Triton's configuration, where each is a text; None: there are none."""
    parameters = said.get("parameters") if isinstance(said, dict) else None
    found = parameters.get("labels") if isinstance(parameters, dict) else None
    if isinstance(found, dict):
        found = found.get("string_value")
    if isinstance(found, str):
        try:
            found = json_loads(found.encode())
        except (ValueError, RecursionError):
            return None
    if not isinstance(found, list) or not 0 < len(found) <= MOST:
        return None
    fine = all(isinstance(one, str | int | float) and (not isinstance(one, str) or len(one) <= LONGEST) for one in found)
    return tuple(found) if fine else None


SEVERAL = ("label+probabilities", "boxes")
"""Kinds of which a model has several outputs."""
MOST_ROWS = 16
"""Inputs of one call for which a reply may be as long as `Address.max_reply_bytes` each."""
NUMBER = 32
"""Bytes of a number as JSON, at most."""
HEAD = 1 << 16
"""Bytes of a reply beside its numbers, at most."""
OTHERS = (400, 404, 422, 500)
"""Statuses of servers for inputs of other names, shapes and datatypes than their models take: the metadata is fetched again."""
_PLAIN = re.compile("[A-Za-z0-9_.+-]{1,20}")
Given: TypeAlias = str | Mapping[str, Any] | Codec | Sequence[Any]
"""A codec, or a list of them."""
BASE64 = 4 / 3
"""Bytes that are sent for a byte of a file as JSON."""
UNKNOWN = "?"
"""In place of what a server has not said of its model."""


class ServedModel(ABC):
    """A model behind the Open Inference Protocol. A subclass writes its calls and opens the replies.

    The arguments are those of its subclasses, which say what they are.

    Raises:
        PolicyError: no model name, or as `Address`.
    """

    binary: bool | None = True
    """Whether tensors go as bytes; None: not known yet."""

    def __init__(
        self,
        url: str,
        *,
        model: str | None = None,
        version: str | None = None,
        name: str = "cloud",
        labels: Iterable[Any] | None = None,
        kind: str | None = None,
        output: str | None = None,
        card: str | Path | None = None,
        codec: Given | None = None,
        send_edge: bool = False,
        **address: Any,
    ) -> None:
        self.payload = None if codec is None else payload_of(codec)
        """How inputs are encoded; None: as the model's tensors."""
        self.send_edge = checked_flag("send_edge", send_edge)
        """Whether inputs come with the edge's answers, as `Escalated`."""
        self.address = Address(url, **address)
        base, found, rest = self.address.path.partition("/v2/models/")
        if not rest and not model:
            raise PolicyError("which model? Give model=, or a URL that ends in /v2/models/NAME")
        self.model, _, said = (rest or str(model)).partition("/versions/")
        if said and version is not None and said != version:
            raise PolicyError(f"the URL has version {said!r} of the model, and version={version!r}: give one of them")
        self.pinned = said or version
        """The version that is asked for; None: the one that the server chooses."""
        if self.pinned is not None and not (isinstance(self.pinned, str) and self.pinned):
            raise PolicyError(f'version is the text of a version, as in version="2", and not {self.pinned!r}')
        prefix = base if found else base.removesuffix("/v2")
        self.path = f"{prefix}/v2/models/{self.model}" + (f"/versions/{self.pinned}" if self.pinned else "")
        self.where = f"{self.address.origin}{self.path}"
        self.card = Card.read(Path(card)) if card else Card()
        if self.card.state:
            raise PolicyError("the card of an endpoint has no state: requests are of no stream, so nothing can be fed back")
        self.name, self.kind, self.output = name, checked_kind(kind), output
        self.labels = label_names(labels) or self.card.labels
        self.served_labels: tuple[Any, ...] | None = None
        """Those that the server has; None: it says none."""
        self._all = output is None and kind in SEVERAL
        """Whether all outputs are read."""
        self.inputs: tuple[TensorSpec, ...] | None = None
        self.datatypes: dict[str, str] = {}
        """The protocol's datatypes of the inputs."""
        self.outputs: dict[str, tuple[int, ...]] = {}
        """Shapes of the outputs, by the server's metadata; -1: any size."""
        self.version = self.pinned
        """The version that answers; None: the server has not said."""
        self._described: str | None = None
        """Hash of the metadata; None: not fetched yet."""
        self._taken: _Taken | None = None
        """What is given of `inputs`, as found with the first call."""
        self._sizes: tuple[dict[str, tuple[int, ...]], int | None] | None = None
        """Of `outputs` the numbers for one input, likewise."""
        self._changed = False
        """Whether it may not be as the metadata says: outputs contradict it, or inputs were refused. Then it is fetched again."""

        self._check(address.get("headers") or ())

    def _check(self, headers: Iterable[str]) -> None:  # noqa: B027 - HTTP takes all of them
        """Raise PolicyError for arguments, or names of headers, that the protocol cannot have."""

    def codec(self, of: Callable[[Any], str]) -> str:
        """How inputs are encoded, for certificates: by the card, and by the codec."""
        parts = [] if self.card.path is None else [of(self.card.path)]
        return ":".join(parts if self.payload is None else [*parts, self.payload.name])

    @abstractmethod
    def _describe(self) -> Call:
        """The call for the metadata."""

    @abstractmethod
    def _description(self, reply: Reply) -> dict[str, Any]:
        """The metadata in its reply, in the form of its JSON."""

    @abstractmethod
    def _infer(self, feed: Feed) -> Call:
        """The call for these tensors, in the order of the inputs."""

    @abstractmethod
    def _opened(self, reply: Reply, most: int) -> tuple[Any, Iterator[Tensor]]:
        """The version that answered, and the tensors, of a reply of at most so many values. Raises BadReply, or as `decoded`."""

    def talk(self, inputs: list[Any]) -> Talk:
        """Inputs without the batch axis -> output [n, ...].

        Raises:
            BadInput: an input does not fit the model.
            BadReply: a reply violates the protocol.
        """
        if self.inputs is None or self._changed:
            yield from self._meet()
        try:
            reply = yield self._infer(self._feed(inputs))
        except Refused as e:
            self._changed = e.status in OTHERS  # perhaps its inputs are not what they were
            raise
        return self.decode(reply, len(inputs))

    def encode(self, inputs: list[Any]) -> Call | None:
        """The call for these inputs; None while the model's metadata is unknown."""
        return None if self.inputs is None else self._infer(self._feed(inputs))

    @property
    def served(self) -> str:
        """What the server says of its model, for certificates: its version, and a hash of its name, platform and tensors.

        What is not known yet is "?".
        """
        version = UNKNOWN if self.version is None else _shown(self.version, self.address)
        return f"version:{version} described:{self._described or UNKNOWN}"

    @property
    def known(self) -> dict[str, Any] | None:
        """Cached metadata, JSON-serialisable; None: not fetched yet."""
        if self.inputs is None:
            return None
        inputs = [[*spec, self.datatypes.get(spec.name, NAMES.get(spec.dtype, TEXTS))] for spec in self.inputs]
        known = {"inputs": inputs, "outputs": self.outputs, "version": self.version, "described": self._described}
        return known if self.served_labels is None else {**known, "labels": list(self.served_labels)}

    def recall(self, known: dict[str, Any]) -> None:
        """Restores metadata saved from `known`.

        Raises:
            ValueError, KeyError, TypeError, OverflowError: it is damaged.
        """
        if self.inputs is not None:
            return
        datatypes = {str(name): str(*own) if own else NAMES[dtype] for name, dtype, _, *own in known["inputs"]}
        specs = tuple(spec_of(name, datatypes[name], shape) for name, _, shape, *_ in known["inputs"])
        outputs = {name: shape_of(shape, free=True) for name, shape in dict(known.get("outputs", {})).items()}
        version, described = known.get("version"), known.get("described")
        if not all(isinstance(one, str | None) for one in (version, described)):
            raise ValueError("version or hash is no text")
        self.inputs, self.outputs, self.datatypes = specs, outputs, datatypes
        self.version, self._described = self.pinned or version, described
        self.served_labels = labels_in({"parameters": known})

    def _meet(self) -> Talk:
        """Fetches the model's metadata -> its platform."""
        said = self._description((yield self._describe()))
        inputs: tuple[TensorSpec, ...] = ()
        wrong = "there are none"
        try:
            inputs = tuple(spec_of(t["name"], t["datatype"], t["shape"]) for t in said["inputs"])
        except (KeyError, TypeError, ValueError, OverflowError) as e:  # not chained: it may quote the reply
            wrong = wrong_with(e)
        if not inputs:
            raise BadReply(f"{self.where} describes its inputs in a way that is not the protocol's: {wrong}")
        outputs: dict[str, tuple[int, ...]] = {}
        with suppress(KeyError, TypeError, ValueError, OverflowError):  # many servers do not describe them
            outputs = {str(t["name"]): shape_of(t["shape"], free=True) for t in said["outputs"]}
        if self.output is not None and outputs and self.output not in outputs:
            there = quoted_names(outputs, [value for _, value in self.address.headers()])
            raise BadReply(f"{self.where} has no output {self.output!r}, which is to be read: it has {there}")
        versions = said.get("versions")
        if self.pinned is None and isinstance(versions, list) and len(versions) == 1:
            self.version = str(versions[0])
        self.datatypes = {str(t["name"]): str(t["datatype"]) for t in said["inputs"]}
        self._described = _hashed(said)
        self.served_labels = labels_in(said)
        self.inputs, self.outputs, self._changed = inputs, outputs, False
        return said.get("platform")

    def pack(self, inputs: list[Any], choose: Choose | None = None) -> list[Any]:
        """Encodes inputs, which takes a while, before `talk` or `encode` is called with them; as they are, if it cannot yet.

        choose: picks a rung of a ladder by its bytes; None: the floor.

        Raises:
            BadInput: as `talk`.
        """
        given = () if self.inputs is None or self._changed else _taken(self.inputs, self.card).given
        own, _ = apart(inputs)
        if self.payload is None or len(given) != 1 or any(isinstance(x, dict) for x in own):
            return inputs
        return beside(packed(self.payload, own, *given[0][:2], choose, BASE64 if self.binary is False else 1.0), inputs)

    def _feed(self, inputs: list[Any]) -> Feed:
        assert self.inputs is not None, "_meet comes first"
        feed, taken = Feed(), self._taken
        inputs, edges = apart(inputs)
        if edges is not None:
            feed.edges = edges
        if taken is None or taken.inputs is not self.inputs:
            taken = self._taken = _taken(self.inputs, self.card)
        for spec, value in taken.constants:
            feed[spec.name] = _constant(value, spec, self.where)
        for spec, prepare, plain in taken.given:
            rows = inputs
            if len(taken.given) > 1 or (inputs and isinstance(inputs[0], dict)):
                rows = [_one(x, spec.name) for x in inputs]
            if self.payload is not None:
                encode(feed, self.payload, rows, spec, prepare)
            else:
                feed[spec.name] = prepare(rows) if prepare is not None else _stack(rows, spec, plain, self.where)
        return feed

    def _limit(self, count: int) -> int:
        """Bytes of a reply for `count` inputs, at most."""
        most, numbers = self.address.max_reply_bytes * min(count, MOST_ROWS), self._numbers(count)
        return most if numbers is None else min(most, HEAD + NUMBER * numbers)

    def _numbers(self, count: int) -> int | None:
        """Numbers in a reply for `count` inputs, by the metadata; None: it does not say."""
        sizes = self._sizes
        if sizes is None or sizes[0] is not self.outputs:
            rows = [shape[1:] for shape in self.outputs.values()]
            known = bool(rows) and not any(-1 in row for row in rows)
            sizes = self._sizes = self.outputs, sum(map(prod, rows)) if known else None
        return None if sizes[1] is None else count * sizes[1]

    def decode(self, reply: Reply, count: int) -> Array | dict[str, Array]:
        """Decodes the output [n, ...] of a reply, or all by name; every size is validated before use.

        Raises:
            BadReply: the reply violates the protocol, or lacks the output.
        """
        most = max(MAX_VALUES, min(self._numbers(count) or 0, self.address.max_reply_bytes) + MAX_VALUES // 10)
        wrong, came = None, 0
        try:
            version, tensors = self._opened(reply, most)
            if self.pinned is None and version not in (None, ""):
                self.version = str(version)
            found = dict[str, Array]()
            for tensor in tensors:
                came += 1
                if self.output not in (None, tensor.name):
                    continue
                array = decoded(tensor, self._shape(tensor, count))
                if not self._all:
                    return array
                found[str(tensor.name)] = array
            if found:
                return found
        except Invalid as e:
            wrong = f"{self.where}: {e}"
        except (AttributeError, KeyError, TypeError, ValueError, OverflowError) as e:  # not chained: it may quote the reply
            wrong = f"{self.where} answered {looks_like(reply.body[:200])}: {wrong_with(e)}"
        if wrong is not None:
            raise BadReply(wrong)
        wanted = "" if self.output is None else f", not {self.output!r}"
        raise BadReply(f"{self.where} gave {came} outputs{wanted}")

    def _shape(self, tensor: Tensor, count: int) -> tuple[int, ...]:
        """The shape of an output, as its batch and the metadata have it.

        Raises:
            Invalid: it is another.
        """
        shape = shape_of(tensor.shape, empty=self.kind == "boxes")
        if self.kind != "boxes" and (not shape or shape[0] != count):
            raise Invalid(f"{count} inputs gave an output whose shape does not begin with {count}")
        told = self.outputs.get(str(tensor.name), shape)
        if told[1:] == shape[1:]:
            return shape
        if len(told) != len(shape) or any(want not in (-1, size) for want, size in zip(told[1:], shape[1:], strict=True)):
            self._changed = True
            raise Invalid(f"an output of another shape than {list(told)}, which its metadata gives")
        return shape

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.where!r})"


def identity(self: ServedModel, of: Callable[[Any], str]) -> list[str | None]:
    """Return what decides an answer besides the address: the method of each protocol; `of` takes the fingerprint of a file."""
    own = [] if self.payload is None else [self.payload.name]
    return [self.output, None if self.card.path is None else of(self.card.path), *own]


class _Taken(NamedTuple):
    """Where a model's inputs come from."""

    inputs: tuple[TensorSpec, ...]
    constants: list[tuple[TensorSpec, Any]]
    """Those that the card has, with their values."""
    given: list[tuple[TensorSpec, Preprocess | None, Plain]]
    """Those that the caller gives, with the card's preprocessing of each, and what takes them without one."""


def _taken(inputs: tuple[TensorSpec, ...], card: Card) -> _Taken:
    found = _Taken(inputs, [], [])
    for spec in inputs:
        told = card.of(spec.name)
        if told is not None and told.value is not None:
            found.constants.append((spec, told.value))
        else:
            prepare = card.preprocess if told is None and len(inputs) == 1 else None if told is None else told.preprocess
            found.given.append((spec, prepare, Plain(spec)))
    return found


def _stack(inputs: list[Any], spec: TensorSpec, plain: Plain, where: str) -> Array:
    try:
        return plain.one(inputs[0]) if len(inputs) == 1 and spec.dtype != "object" else stacked(inputs, spec)
    except BadInput as e:
        raise BadInput(f"{where} takes another input: {e}. Give the endpoint a card= with the preprocessing it needs") from e


def _constant(value: Any, spec: TensorSpec, where: str) -> Array:
    try:
        return constant(value, spec)
    except ValueError as e:
        raise BadInput(f"{where}: {e}") from None


def _shown(version: str, address: Address) -> str:
    """A version as messages have it; its hash, if it is long or odd: a server may write there what it likes."""
    if _PLAIN.fullmatch(version) and address.hide(version) == version:
        return version
    return sha256(version.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def _hashed(said: dict[str, Any]) -> str:
    """A hash of a model's name, platform and tensors, as the server describes them."""
    parts: list[Any] = [str(said.get("name")), str(said.get("platform") or "")]
    for key in ("inputs", "outputs"):
        with suppress(KeyError, TypeError, ValueError, OverflowError):  # as above
            parts.append(sorted((str(t["name"]), str(t["datatype"]), shape_of(t["shape"], free=True)) for t in said[key]))
    return sha256(repr(parts).encode("utf-8", "surrogatepass")).hexdigest()[:16]


def _one(x: Any, name: str) -> Any:
    if not isinstance(x, dict) or name not in x:
        raise BadInput(f"the endpoint needs an input {name!r}; there is {sorted(x) if isinstance(x, dict) else type(x).__name__}")
    return x[name]
