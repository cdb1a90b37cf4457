"""Base of endpoints of the Open Inference Protocol: a model's metadata, inputs and outputs, whatever carries its messages."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from hashlib import sha256
from math import prod
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

from edgeroute.cloud import oip_tensors as oip
from edgeroute.cloud.encoding_and_edge_answers import Choose, Feed, encode, encode_inputs, join_answers, payload_of, split_answers
from edgeroute.cloud.endpoint import MAX_VALUES, Talk, looks_like
from edgeroute.cloud.function_backend_and_reply_checks import checked_send_edge
from edgeroute.cloud.input_codecs import Codec
from edgeroute.confidence.detector_boxes import named_boxes
from edgeroute.confidence.output_forms_labels_and_comparison import label_names
from edgeroute.confidence.output_reader import KINDS, SEVERAL, checked_kind
from edgeroute.core.walk import new
from edgeroute.edge.input_checks_and_stacking import Plain
from edgeroute.edge.inputs_constants_and_states import constant
from edgeroute.edge.model_card import Array, Card
from edgeroute.edge.preprocessing import Preprocess
from edgeroute.errors import BadInput, BadReply, PolicyError, Refused, Unreachable
from edgeroute.http.messages_addresses_and_secrets import Address, Call, Reply
from edgeroute.system.json_codec_and_short_repr import json_loads
from edgeroute.system.quotable_codes_and_secrets import quoted_names
from edgeroute.types import TensorSpec

# Labels in a server's metadata of its model, as `edgeroute export` writes them there.

MOST = 100_000  # maximum labels of a model
LONGEST = 1_000  # maximum characters of a label
# Platforms whose server may have labels in the model's configuration, which the metadata lacks.
TRITON = frozenset({"ensemble", "python", "onnxruntime_onnx", "onnxruntime"})


def labels_in(document: Any) -> tuple[str | int | float | bool, ...] | None:
    """Return the labels in the parameters of metadata, or of Triton's configuration, where they are a list or its JSON.

    None: there are none, more than `MOST`, a text of more than `LONGEST` characters, or another type than text and numbers.
    """
    labels = _parameter(document, "labels")
    if isinstance(labels, str):
        try:
            labels = json_loads(labels.encode())
        except (ValueError, RecursionError):
            return None
    if not isinstance(labels, list) or not 0 < len(labels) <= MOST:
        return None
    fine = all(isinstance(label, str | int | float) and (not isinstance(label, str) or len(label) <= LONGEST) for label in labels)
    return tuple(labels) if fine else None


def kind_in(document: Any) -> str | None:
    """Return the kind of outputs in the parameters of metadata, or of Triton's configuration; None: none, or an unknown one."""
    kind = _parameter(document, "kind")
    return kind if isinstance(kind, str) and kind in KINDS else None


def _parameter(document: Any, name: str) -> Any:
    """Return a parameter of metadata, or of Triton's configuration, where it is in `string_value`; None: there is none."""
    parameters = document.get("parameters") if isinstance(document, dict) else None
    value = parameters.get(name) if isinstance(parameters, dict) else None
    return value.get("string_value") if isinstance(value, dict) else value


MOST_ROWS = 16  # maximum inputs of one call for which the limit of the reply is multiplied
NUMBER = 32  # maximum bytes of a number as JSON
HEAD = 1 << 16  # maximum bytes of a reply beside its numbers
# HTTP statuses for inputs of other names, shapes and datatypes than the model's: the metadata is then fetched again.
OTHERS = (400, 404, 422, 500)
_PLAIN = re.compile("[A-Za-z0-9_.+-]{1,20}")  # versions that messages may quote
Given: TypeAlias = str | Mapping[str, Any] | Codec | Sequence[Any]  # codec, or list of codecs
BASE64 = 4 / 3  # bytes sent as JSON per byte of a file
UNKNOWN = "?"  # placeholder for an unknown property of the server's model
MOST_STARTS = 64  # maximum shapes of requests whose beginning is stored
SentTensor: TypeAlias = tuple[str, str, tuple[int, ...], int]  # name, datatype, shape and bytes
Start: TypeAlias = tuple[str, Sequence[tuple[str, str]], list[bytes]]  # path, headers, and the bytes before each tensor


class ServedModel(ABC):
    """Base of endpoints of the Open Inference Protocol. A subclass writes the calls and parses the replies.

    The arguments are described at the subclasses.

    Raises:
        PolicyError: there is no model name, or as for `Address`.
    """

    binary: bool | None = True  # True if tensors are sent as bytes; None: not known yet

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
        # Codec of inputs; None: they are sent as the model's tensors.
        self.payload = None if codec is None else payload_of(codec)
        self.send_edge = checked_send_edge(send_edge)
        self.address = Address(url, **address)
        base, separator, rest = self.address.path.partition("/v2/models/")
        if not rest and not model:
            raise PolicyError("which model? Give model=, or a URL that ends in /v2/models/NAME")
        self.model, _, url_version = (rest or str(model)).partition("/versions/")
        if url_version and version is not None and url_version != version:
            raise PolicyError(f"the URL has version {url_version!r} of the model, and version={version!r}: give one of them")
        # Version to call; None: the one that the server chooses.
        self.pinned = url_version or version
        if self.pinned is not None and not (isinstance(self.pinned, str) and self.pinned):
            raise PolicyError(f'version is the text of a version, as in version="2", and not {self.pinned!r}')
        prefix = base if separator else base.removesuffix("/v2")
        self.path = f"{prefix}/v2/models/{self.model}" + (f"/versions/{self.pinned}" if self.pinned else "")
        self.where = f"{self.address.origin}{self.path}"
        self.card = Card.read(Path(card)) if card else Card()
        if self.card.state:
            raise PolicyError("the card of an endpoint has no state: requests are of no stream, so nothing can be fed back")
        self.name, self.kind, self.output = name, checked_kind(kind) or self.card.kind, output or self.card.output
        self.labels = label_names(labels) or self.card.labels
        # Labels from the server; None: it has none.
        self.served_labels: tuple[Any, ...] | None = None
        self.served_kind: str | None = None  # kind of outputs from the server, or boxes by their names; None: it tells none
        # Maximum inputs of one call, by the server's configuration; None: it names none.
        self.most_rows: int | None = None
        self.inputs: tuple[TensorSpec, ...] | None = None
        self.datatypes: dict[str, str] = {}  # datatypes of the inputs by name
        # Shapes of the outputs by name, from the metadata; -1: any size.
        self.outputs: dict[str, tuple[int, ...]] = {}
        self.version = self.pinned  # version that answers; None: not known yet
        self._described: str | None = None  # hash of the metadata; None: not fetched yet
        self._sources = _InputSources([], [])  # sources of `inputs`
        self._starts: dict[tuple[SentTensor, ...], Start] = {}
        self._row_numbers: int | None = None  # numbers in the outputs for one input; None: not known
        # True if the metadata may be outdated, since outputs contradict it, or inputs were refused; it is then fetched again.
        self._changed = False

        self._check(address.get("headers") or ())

    @property
    def _all(self) -> bool:
        """True if all outputs are read."""
        return self.output is None and (self.kind or self.served_kind) in {*SEVERAL, "boxes"}

    def _check(self, headers: Iterable[str]) -> None:  # noqa: B027 - HTTP takes all of them
        """Raise PolicyError for arguments, or names of headers, that the protocol cannot have."""

    def codec(self, of: Callable[[Any], str]) -> str:
        """Return the encoding of inputs, for certificates: the card's fingerprint, and the codec's name."""
        parts = [] if self.card.path is None else [of(self.card.path)]
        return ":".join(parts if self.payload is None else [*parts, self.payload.name])

    @abstractmethod
    def _describe(self) -> Call:
        """Return the call for the metadata."""

    @abstractmethod
    def _description(self, reply: Reply) -> dict[str, Any]:
        """Return the metadata in a reply, in the form of the protocol's JSON."""

    @abstractmethod
    def _infer(self, feed: Feed) -> Call:
        """Return the call for tensors, in the order of the inputs."""

    @abstractmethod
    def _start(self, tensors: Sequence[SentTensor]) -> Start:
        """Return the beginning of requests with these tensors in binary."""

    @abstractmethod
    def _open_reply(self, reply: Reply, most: int) -> tuple[Any, Iterator[oip.Tensor]]:
        """Return the version that answered, and the tensors, of a reply of at most `most` values.

        Raises:
            BadReply: the reply is no message of the protocol.
            Invalid, KeyError, TypeError, ValueError, OverflowError: a part of it is invalid.
        """

    def talk(self, inputs: list[Any]) -> Talk:
        """Yield the calls for inputs, each without the batch axis, and return the output [n, ...], or all outputs by name.

        Fetches and stores the metadata first if it is unknown or outdated. A refusal with a status of `OTHERS` marks it as
        outdated.

        Raises:
            BadInput: an input does not fit the model.
            BadReply: a reply violates the protocol.
            Refused: the server refused a call.
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
        """Return the call for these inputs; None while the model's metadata is unknown."""
        return None if self.inputs is None else self._infer(self._feed(inputs))

    @property
    def served(self) -> str:
        """Identity of the server's model, for certificates: its version, and a hash of its name, platform and tensors.

        A part that is not known yet is "?".
        """
        version = UNKNOWN if self.version is None else _shown(self.version, self.address)
        return f"version:{version} described:{self._described or UNKNOWN}"

    @property
    def known(self) -> dict[str, Any] | None:
        """Stored metadata in JSON types, to be saved for `recall`: inputs, outputs, version, hash, labels and kind.

        None: it was not fetched yet.
        """
        if self.inputs is None:
            return None
        inputs = [[*spec, self.datatypes.get(spec.name, oip.NAMES.get(spec.dtype, oip.TEXTS))] for spec in self.inputs]
        known = {"inputs": inputs, "outputs": self.outputs, "version": self.version, "described": self._described}
        served = {"labels": None if self.served_labels is None else list(self.served_labels), "kind": self.served_kind}
        return {**known, **{key: value for key, value in served.items() if value is not None}}

    def recall(self, known: dict[str, Any]) -> None:
        """Restore metadata saved from `known`, so that it need not be fetched; a no-op if there is metadata already.

        A version given to the constructor stays. An error changes nothing.

        Raises:
            ValueError, KeyError, TypeError, OverflowError: it is damaged.
        """
        if self.inputs is not None:
            return
        datatypes = {str(name): str(*datatype) if datatype else oip.NAMES[dtype] for name, dtype, _, *datatype in known["inputs"]}
        specs = tuple(oip.spec_of(name, datatypes[name], shape) for name, _, shape, *_ in known["inputs"])
        outputs = {name: oip.shape_of(shape, free=True) for name, shape in dict(known.get("outputs", {})).items()}
        version, described = known.get("version"), known.get("described")
        if not all(isinstance(field, str | None) for field in (version, described)):
            raise ValueError("version or hash is no text")
        self._store_tensors(specs, outputs, datatypes)
        self.version, self._described = self.pinned or version, described
        self.served_labels, self.served_kind = labels_in({"parameters": known}), kind_in({"parameters": known})

    def _store_tensors(
        self, inputs: tuple[TensorSpec, ...], outputs: dict[str, tuple[int, ...]], datatypes: dict[str, str]
    ) -> None:
        """Store the tensors of the metadata, with the sources of the inputs, and the numbers in the outputs for one input."""
        rows = [shape[1:] for shape in outputs.values()]
        known = bool(rows) and not any(-1 in row for row in rows)
        self._row_numbers, self._sources = sum(map(prod, rows)) if known else None, _split_inputs(inputs, self.card)
        self.inputs, self.outputs, self.datatypes = inputs, outputs, datatypes

    def _meet(self) -> Talk:
        """Yield the call for the metadata, check and store it, and return the server's platform.

        A hash of it, its labels and its kind of outputs are stored too. The version is stored if it is the only one. Outputs that
        are described wrongly count as not described.

        Raises:
            BadReply: the inputs are described wrongly, the model is another one, or it has no output of the configured name.
        """
        metadata = self._description((yield self._describe()))
        if metadata.get("name") not in (None, "", self.model):
            raise BadReply(f"{self.where} describes another model than {self.model!r}: is it the right server?")
        inputs: tuple[TensorSpec, ...] = ()
        wrong = "there are none"
        try:
            inputs = tuple(oip.spec_of(t["name"], t["datatype"], t["shape"]) for t in metadata["inputs"])
        except (KeyError, TypeError, ValueError, OverflowError) as e:  # not chained: it may quote the reply
            wrong = oip.wrong_with(e)
        if not inputs:
            raise BadReply(f"{self.where} describes its inputs in a way that is not the protocol's: {wrong}")
        outputs: dict[str, tuple[int, ...]] = {}
        with suppress(KeyError, TypeError, ValueError, OverflowError):  # many servers do not describe them
            outputs = {str(t["name"]): oip.shape_of(t["shape"], free=True) for t in metadata["outputs"]}
        if self.output is not None and outputs and self.output not in outputs:
            there = quoted_names(outputs, [value for _, value in self.address.headers()])
            raise BadReply(f"{self.where} has no output {self.output!r}, which is to be read: it has {there}")
        versions = metadata.get("versions")
        if self.pinned is None and isinstance(versions, list) and len(versions) == 1:
            self.version = str(versions[0])
        self._described = _hash_metadata(metadata)
        self.served_labels, self.served_kind = labels_in(metadata), kind_in(metadata)
        if self.served_kind is None and self.output is None and named_boxes(outputs):
            self.served_kind = "boxes"
        self._store_tensors(inputs, outputs, {str(t["name"]): str(t["datatype"]) for t in metadata["inputs"]})
        self._changed = False
        return metadata.get("platform")

    def check_identity(self) -> Talk:
        """Yield the call for the metadata and store it.

        Raise Unreachable if it is refused, invalid, or of another model: then another program has the port.
        """
        try:
            yield from self._meet()
        except (Refused, BadReply) as e:
            wrong = str(e)
        else:
            return
        raise Unreachable(f"nothing was sent, as another program seems to answer: {wrong}")

    def pack(self, inputs: list[Any], choose: Choose | None = None) -> list[Any]:
        """Return the inputs encoded by the codec, for `talk` or `encode`; it takes a while, and may run in a thread.

        They are returned unchanged without a codec, while the metadata is unknown or outdated, if the model takes several inputs
        from the caller, or if one is a mapping. Edge's answers that come with them stay with them.

        Args:
            inputs: inputs without the batch axis.
            choose: selects a rung of a ladder by its bytes; None: the floor.

        Raises:
            BadInput: an input does not fit.
        """
        sources = [] if self._changed else self._sources.given
        plain_inputs, _ = split_answers(inputs)
        if self.payload is None or len(sources) != 1 or any(isinstance(x, dict) for x in plain_inputs):
            return inputs
        grows = BASE64 if self.binary is False else 1.0
        return join_answers(encode_inputs(self.payload, plain_inputs, *sources[0][:2], choose, grows), inputs)

    def _feed(self, inputs: list[Any]) -> Feed:
        """Return the tensors of a request for inputs: preprocessed, stacked or encoded, with the card's constants.

        The edge's answers that come with the inputs are in `Feed.edges`. Raise BadInput for inputs that do not fit.
        """
        feed, sources = Feed(), self._sources
        inputs, edges = split_answers(inputs)
        if edges is not None:
            feed.edges = edges
        for spec, value in sources.constants:
            feed[spec.name] = _constant(value, spec, self.where)
        for spec, prepare, plain in sources.given:
            rows = inputs
            if len(sources.given) > 1 or (inputs and isinstance(inputs[0], dict)):
                rows = [_named_item(x, spec.name) for x in inputs]
            if self.payload is not None:
                encode(feed, self.payload, rows, spec, prepare)
            else:
                feed[spec.name] = prepare(rows) if prepare is not None else _stack(rows, spec, plain, self.where)
        return feed

    def _in_bytes(self, feed: dict[str, Array], more: bytes = b"") -> Call:
        """Return the POST of tensors in binary, with `more` behind them, and the limit of its reply.

        What precedes the tensors' bytes is made once for tensors of the same names, types and sizes, and stored; at `MOST_STARTS`
        of them all are dropped.
        """
        parts, tensors = list[Any](), list[SentTensor]()
        for name, array in feed.items():
            datatype = oip.datatype_of(array, self.datatypes.get(name))
            parts.append(part := oip.to_bytes(array, datatype))
            tensors.append((name, datatype, array.shape, len(part)))
        key = tuple(tensors)
        if (start := self._starts.get(key)) is None:
            if len(self._starts) >= MOST_STARTS:
                self._starts.clear()
            start = self._starts[key] = self._start(key)
        path, headers, before = start
        body = b"".join([*[piece for pair in zip(before, parts, strict=True) for piece in pair], more])
        return new(Call, ("POST", path, headers, body, False, self._limit(len(array)), None, ""))

    def _limit(self, count: int) -> int:
        """Return the maximum bytes of a reply for `count` inputs: by the address, or less if the metadata tells its numbers."""
        most, numbers = self.address.max_reply_bytes * min(count, MOST_ROWS), self._numbers(count)
        return most if numbers is None else min(most, HEAD + NUMBER * numbers)

    def _numbers(self, count: int) -> int | None:
        """Return how many numbers a reply for `count` inputs has, by the outputs' shapes in the metadata; None: not known."""
        return None if self._row_numbers is None else count * self._row_numbers

    def decode(self, reply: Reply, count: int) -> Array | dict[str, Array]:
        """Return the output [n, ...] of a reply, or all outputs by name; every size is checked before use.

        Stores the version that answered. A shape other than the metadata's marks the metadata as outdated.

        Raises:
            BadReply: the reply violates the protocol, or lacks the output; nothing of it is quoted.
        """
        most = max(MAX_VALUES, min(self._numbers(count) or 0, self.address.max_reply_bytes) + MAX_VALUES // 10)
        wrong, came = None, 0
        try:
            version, tensors = self._open_reply(reply, most)
            if self.pinned is None and version not in (None, ""):
                self.version = str(version)
            outputs = dict[str, Array]()
            for tensor in tensors:
                came += 1
                if self.output not in (None, tensor.name):
                    continue
                array = oip.decode_tensor(tensor, self._shape(tensor, count))
                if not self._all:
                    return array
                outputs[str(tensor.name)] = array
            if outputs:
                return outputs
        except oip.Invalid as e:
            wrong = f"{self.where}: {e}"
        except (AttributeError, KeyError, TypeError, ValueError, OverflowError) as e:  # not chained: it may quote the reply
            wrong = f"{self.where} answered {looks_like(reply.body[:200])}: {oip.wrong_with(e)}"
        if wrong is not None:
            raise BadReply(wrong)
        wanted = "" if self.output is None else f", not {self.output!r}"
        raise BadReply(f"{self.where} gave {came} outputs{wanted}")

    def _shape(self, tensor: oip.Tensor, count: int) -> tuple[int, ...]:
        """Return the shape of an output, checked: it begins with the number of inputs, and agrees with the metadata.

        One that differs from the metadata marks that as outdated. Boxes may have any number, also none.

        Raises:
            Invalid: it does not fit.
        """
        boxes = (self.kind or self.served_kind) == "boxes"
        shape = oip.shape_of(tensor.shape, empty=boxes)
        if not boxes and (not shape or shape[0] != count):
            raise oip.Invalid(f"{count} inputs gave an output whose shape does not begin with {count}")
        declared = self.outputs.get(str(tensor.name), shape)
        if declared[1:] == shape[1:]:
            return shape
        if len(declared) != len(shape) or any(want not in (-1, size) for want, size in zip(declared[1:], shape[1:], strict=True)):
            self._changed = True
            raise oip.Invalid(f"an output of another shape than {list(declared)}, which its metadata gives")
        return shape

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.where!r})"


def is_prompt(self: ServedModel) -> bool:
    """Return True if inputs are encoded in no time: sent unchanged, without a codec and preprocessing.

    It is the property `prompt` of each protocol.
    """
    return self.payload is None and self.card.path is None


def identity(self: ServedModel, of: Callable[[Any], str]) -> list[str | None]:
    """Return the settings on which an answer depends, besides the address; `of` returns the fingerprint of a file.

    It is the method `identity` of each protocol.
    """
    codecs = [] if self.payload is None else [self.payload.name]
    return [self.output, None if self.card.path is None else of(self.card.path), *codecs]


class _InputSources(NamedTuple):
    """Sources of a model's inputs."""

    constants: list[tuple[TensorSpec, Any]]  # inputs with their values from the card
    # Inputs of the caller, with the card's preprocessing of each (None: none), and the converter without preprocessing.
    given: list[tuple[TensorSpec, Preprocess | None, Plain]]


def _split_inputs(inputs: tuple[TensorSpec, ...], card: Card) -> _InputSources:
    """Split a model's inputs into those that the card sets to a constant, and those that the caller gives.

    Each of these has its own preprocessing in the card; a model's only input has the card's.
    """
    sources = _InputSources([], [])
    for spec in inputs:
        card_input = card.of(spec.name)
        if card_input is None:
            sources.given.append((spec, card.preprocess if len(inputs) == 1 else None, Plain(spec)))
        elif card_input.value is None:
            sources.given.append((spec, card_input.preprocess, Plain(spec)))
        else:
            sources.constants.append((spec, card_input.value))
    return sources


def _stack(inputs: list[Any], spec: TensorSpec, plain: Plain, where: str) -> Array:
    """Return inputs as one array [n, ...]; raise BadInput."""
    try:
        return plain.one(inputs[0]) if len(inputs) == 1 and spec.dtype != "object" else oip.stack_inputs(inputs, spec)
    except BadInput as e:
        raise BadInput(f"{where} takes another input: {e}. Give the endpoint a card= with the preprocessing it needs") from e


def _constant(value: Any, spec: TensorSpec, where: str) -> Array:
    """Return a constant of the card as an array; raise BadInput."""
    try:
        return constant(value, spec)
    except ValueError as e:
        raise BadInput(f"{where}: {e}") from None


def _shown(version: str, address: Address) -> str:
    """Return a version for messages; 16 digits of its hash if it is long, odd or has a secret, as the server chooses the text."""
    if _PLAIN.fullmatch(version) and address.hide(version) == version:
        return version
    return sha256(version.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def _hash_metadata(metadata: dict[str, Any]) -> str:
    """Return 16 hex digits of a hash of a model's name, platform and tensors, from its metadata.

    The order of tensors does not count. If one is described wrongly, all inputs, or all outputs, are left out.
    """
    parts: list[Any] = [str(metadata.get("name")), str(metadata.get("platform") or "")]
    for key in ("inputs", "outputs"):
        with suppress(KeyError, TypeError, ValueError, OverflowError):  # as above
            parts.append(sorted((str(t["name"]), str(t["datatype"]), oip.shape_of(t["shape"], free=True)) for t in metadata[key]))
    return sha256(repr(parts).encode("utf-8", "surrogatepass")).hexdigest()[:16]


def _named_item(x: Any, name: str) -> Any:
    """Return a named item of an input; raise BadInput if there is none."""
    if not isinstance(x, dict) or name not in x:
        raise BadInput(f"the endpoint needs an input {name!r}; there is {sorted(x) if isinstance(x, dict) else type(x).__name__}")
    return x[name]
