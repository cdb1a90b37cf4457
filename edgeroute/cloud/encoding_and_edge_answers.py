"""Encoding of inputs by codecs: pictures are fitted to the model's input; ladders of codecs, of which the link decides."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np

from edgeroute.cloud.input_codecs import Codec, Coded, Uint8Codec, codec_of
from edgeroute.cloud.oip_tensors import stack_inputs, zeros_like_row
from edgeroute.core.performance_estimates_and_encoding_choice import Ceiling
from edgeroute.core.walk import Prediction
from edgeroute.edge.input_checks_and_stacking import Array, shape_text
from edgeroute.edge.preprocessing import Picture, Preprocess, picture_for
from edgeroute.errors import BadInput, PolicyError
from edgeroute.system.json_codec_and_short_repr import json_dumps, to_json_types
from edgeroute.types import Escalated, TensorSpec

# Edge's answer to an input, sent along with it: a hint for the model behind the endpoint, or the input of its next stage.

# Parameter of a request of the Open Inference Protocol: JSON, a list with an object or null for each input.
PARAMETER = "edge_answers"
MOST_OUTPUTS = 100  # maximum numbers of an answer's raw outputs; more are not sent
MOST_VALUE = 16 << 10  # maximum bytes of an answer's value as JSON; a longer one is sent as null
MOST_BITS = 1000  # maximum bits of a whole number in the value; with more, the value is sent as null
MOST_DEEP = 50  # maximum levels of lists and objects in the value; with more, it is sent as null


def answer_fields(prediction: Prediction) -> dict[str, Any]:
    """Return an answer in JSON types: `value`, `confidence` (null: there is none), and `outputs`, if they are a few numbers.

    No function of the application is called, and no long value converted: safe on an event loop, and before a deadline. A value
    that is too long, deep or of another type becomes null.
    """
    value, confidence, outputs = prediction
    converted = to_json_types(value) if _room(value, MOST_VALUE, MOST_DEEP) >= 0 else None
    fields = {"value": converted if len(json_dumps(converted)) <= MOST_VALUE else None, "confidence": to_json_types(confidence)}
    kind = getattr(getattr(outputs, "dtype", None), "kind", "")
    if kind and kind in "biuf" and 0 < getattr(outputs, "size", 0) <= MOST_OUTPUTS:
        fields["outputs"] = to_json_types(_short(outputs.tolist()))
    return fields


def _short(numbers: Any) -> Any:
    """Return a number, or the numbers of nested lists, with the digits of a float32; other values unchanged."""
    if isinstance(numbers, list):
        return [_short(number) for number in numbers]
    return float(f"{numbers:.7g}") if isinstance(numbers, float) else numbers


def _room(value: Any, left: int, deep: int) -> int:
    """Return the bytes left after a value's approximate size as JSON, without converting it.

    Below 0: it is too long or too deep, or has a part of a type without JSON.

    Args:
        value: the value.
        left: bytes left before it.
        deep: levels left.
    """
    if value is None or isinstance(value, bool | float):
        return left - 1
    if isinstance(value, int):
        return left - 1 if value.bit_length() <= MOST_BITS else -1
    if isinstance(value, str | bytes):
        return left - len(value)
    if (kind := getattr(getattr(value, "dtype", None), "kind", "")) != "":  # of numpy, which is not imported here
        return left - value.size if kind in "biufSU" and value.nbytes <= left * 8 else -1
    if type(value) is dict:
        parts: Any = (part for pair in value.items() for part in pair)
    elif isinstance(value, list | tuple):
        parts = value
    else:
        return -1
    for part in parts:
        left = _room(part, left - 1, deep - 1) if deep > 0 else -1
        if left < 0:
            break
    return left


def split_answers(inputs: Sequence[Any]) -> tuple[list[Any], list[Mapping[str, Any] | None] | None]:
    """Return the inputs without the edge's answers, as a new list, and the edge's answer to each (None: it has none).

    None in place of the answers: no input has one. Either all inputs are `Escalated`, or none.
    """
    if not inputs or type(inputs[0]) is not Escalated:
        return list(inputs), None
    edges = [escalated.edge for escalated in inputs]
    return [escalated.x for escalated in inputs], edges if any(edge is not None for edge in edges) else None


def join_answers(inputs: Sequence[Any], like: Sequence[Any]) -> list[Any]:
    """Return encoded inputs, joined with the edge's answers of the originals in `like`."""
    if not like or type(like[0]) is not Escalated:
        return list(inputs)
    return [Escalated(x, original.edge) for x, original in zip(inputs, like, strict=True)]


def answers_json(edges: Sequence[Mapping[str, Any] | None]) -> str:
    """Return the parameter's text."""
    return json_dumps(list(edges)).decode()


# Ladders of codecs: several qualities, of which the best that is predicted to arrive in time is sent.

NEWEST = 0.1  # weight of the newest input in the prediction of its encodings' sizes
# (sizes of a request's encodings, bytes, best first; NaN: not available) -> index of the one to send.
Choose = Callable[[Sequence[float]], int]


class Ladder:
    """Several codecs, best first. Used as a codec, it encodes by its floor, the last.

    Args:
        rungs: two or more codecs, all of pictures or all of tensors.

    Raises:
        PolicyError: the codecs do not fit together.
    """

    def __init__(self, rungs: Sequence[Codec]) -> None:
        names = [rung.name for rung in rungs]
        if len(names) < 2 or len(set(names)) < len(names):  # noqa: PLR2004 - one is no choice
            raise PolicyError(f"codec: a ladder has two or more different codecs, best first, not {', '.join(names) or 'none'}")
        if any(isinstance(rung, Ladder) for rung in rungs):
            raise PolicyError("codec: a ladder takes codecs, not another ladder")
        if len({rung.pictures for rung in rungs}) > 1:
            raise PolicyError(f"codec: a ladder is of pictures or of tensors, not of both: {', '.join(names)}")
        self.rungs, self.floor, self.pictures = tuple(rungs), rungs[-1], rungs[-1].pictures
        self.name = f"ladder:{'>'.join(names)}"
        # Encoded bytes per raw byte of each rung, a decaying mean; 0: not known, so the rung is tried.
        self._shares = [0.0] * len(names)
        self._ceiling = Ceiling()

    def encode(self, x: Array) -> Coded:
        """Return one input, encoded by the floor."""
        return self.floor.encode(x)

    def choose_rung(self, rows: Sequence[Array], choose: Choose, grows: float = 1.0) -> tuple[str, list[Coded]]:
        """Encode inputs by the rung (codec) that `choose` picks; return its name and the encodings. Updates the predicted sizes.

        Rungs are picked by the sizes predicted from earlier inputs, and again once the size is known, until the pick stays; each
        that was picked is encoded. One whose size is not known yet counts as 0 bytes, and so is tried. One that cannot encode an
        input has the size NaN from then on. The last, the floor, is used where a pick has none.

        Args:
            rows: the inputs as the rungs take them.
            choose: returns the index of a rung for the predicted sizes of all, bytes as they are sent.
            grows: bytes sent per byte of an encoding.

        Raises:
            BadInput: the floor cannot encode an input.
        """
        raw, last = sum(row.nbytes for row in rows), len(self.rungs) - 1
        sizes, encodings = [share * raw * grows for share in self._shares], dict[int, list[Coded]]()
        while True:
            i = choose(sizes)
            if sizes[i] != sizes[i]:
                i = last
            if i in encodings:
                return self.rungs[i].name, encodings[i]
            try:
                encodings[i] = [self.rungs[i].encode(row) for row in rows]
            except BadInput:
                if i == last:
                    raise
                sizes[i] = float("nan")
                continue
            size = sum(coded.data.nbytes if not isinstance(coded.data, bytes) else len(coded.data) for coded in encodings[i])
            sizes[i], share = size * grows, size / max(raw, 1)
            self._shares[i] += (NEWEST if self._shares[i] else 1.0) * (share - self._shares[i])

    def best(self) -> int:
        """Return the index of the best rung to try: calls by better ones were late."""
        return min(self._ceiling.best, len(self.rungs) - 1)

    def record_call(self, i: int, *, late: bool) -> None:
        """Record that a call by a rung was late, or in time."""
        self._ceiling.record_call(min(i, len(self.rungs) - 2), late=late)  # of the floor there is nothing below

    def index(self, name: str) -> int:
        """Return the index of the rung with a name; that of the floor if none has it."""
        return next((i for i, rung in enumerate(self.rungs) if rung.name == name), len(self.rungs) - 1)


def payload_of(given: str | Mapping[str, Any] | Codec | Sequence[Any]) -> Codec:
    """Return the codec for a name, table or codec; a ladder for a list of them.

    Raises:
        PolicyError, RuntimeMissing: as by `codec_of` and `Ladder`, which takes two codecs or more.
    """
    if not isinstance(given, list | tuple):
        return codec_of(given)  # type: ignore[arg-type]  # what else it is, is refused there
    return Ladder([codec_of(rung) for rung in given])


class Packed(NamedTuple):
    """Input that is encoded already."""

    coded: Coded
    made: Array  # array that was encoded
    by: str = ""  # name of the codec


class Feed(dict[str, Array]):
    """Tensors by name, in the order of the inputs; `coded`: name -> (parameters, first row before encoding) of those encoded."""

    coded: Mapping[str, tuple[dict[str, Any], Array]] = MappingProxyType({})
    edges: list[Mapping[str, Any] | None] | None = None  # edge's answers to send along; None: none


def tensor_parameters(feed: Feed, name: str) -> tuple[dict[str, Any], bool]:
    """Return a tensor's parameters for the server, as a new dict, and True if its elements are files."""
    coded = feed.coded.get(name)
    return ({}, False) if coded is None else (dict(coded[0]), feed[name].dtype.hasobject)


def zeros_of(feed: Feed, constants: set[str], codec: Codec | None) -> Feed:
    """Return the tensors of the same request for one input without the caller's data: zeros, empty texts, or the file of zeros.

    Constants of the card stay. The codec's errors are raised.
    """
    zeros = Feed()
    zeros.coded = feed.coded
    for name, array in feed.items():
        coded = feed.coded.get(name)
        if name in constants:
            zeros[name] = array
        elif codec is None or coded is None or not array.dtype.hasobject:
            zeros[name] = zeros_like_row(array)
        else:
            zeros[name] = _files([codec.encode(np.zeros_like(coded[1]))])
    return zeros


def encode(feed: Feed, codec: Codec, rows: list[Any], spec: TensorSpec, prepare: Preprocess | None) -> None:
    """Encode inputs, and put their tensor into `feed`: [n, ...], or for files BYTES [n, 1]; how to decode it into `feed.coded`.

    Args:
        feed: tensors of the request.
        codec: encodes each input.
        rows: the caller's inputs, without the batch axis.
        spec: specification of the model's tensor, from the server's metadata.
        prepare: the card's preprocessing; None: none.

    Raises:
        BadInput: there is no input, one cannot be encoded, or they differ in the parameters for decoding.
    """
    encoded = encode_inputs(codec, rows, spec, prepare)
    codes = [item.coded for item in encoded]
    if not codes:
        raise BadInput("the batch is empty")
    parameters = codes[0].parameters
    if any(item.parameters != parameters for item in codes):
        raise BadInput(f"{spec.name}: the inputs of a batch differ in shape: give them one at a time")
    if isinstance(codes[0].data, bytes):
        feed[spec.name] = _files(codes)
    else:
        feed[spec.name] = np.stack([np.asarray(item.data) for item in codes])
        parameters = {} if spec.dtype == feed[spec.name].dtype else parameters  # the server takes them as they are
    feed.coded = {**feed.coded, spec.name: (parameters, encoded[0].made)}


def encode_inputs(
    codec: Codec, rows: list[Any], spec: TensorSpec, prepare: Preprocess | None, choose: Choose | None = None, grows: float = 1.0
) -> list[Packed]:
    """Return the inputs, each preprocessed and encoded, as `Packed`; the same list if all are encoded already.

    Args:
        codec: encodes each input.
        rows: the caller's inputs, without the batch axis.
        spec: specification of the model's tensor.
        prepare: the card's preprocessing; None: none.
        choose: selects a rung of a ladder, as for `Ladder.choose_rung`; None: the floor.
        grows: as for `Ladder.choose_rung`.

    Raises:
        BadInput: one cannot be encoded, or is no picture for a codec of pictures. The message has the tensor's name.
    """
    if rows and all(isinstance(x, Packed) for x in rows):
        return rows
    try:
        if codec.pictures:
            fit = _pictures(codec, spec, prepare)
            arrays = [_as_sent_picture(fit, x) for x in rows]
        else:
            steps = isinstance(codec.floor if isinstance(codec, Ladder) else codec, Uint8Codec)
            wanted = spec._replace(dtype="float32") if steps and spec.dtype == "uint8" else spec
            arrays = list(prepare(rows) if prepare is not None else stack_inputs(rows, wanted))
            if len(arrays) != len(rows):
                raise BadInput(f'codec "{codec.name}" takes models whose first axis counts the inputs: leave it out')  # noqa: TRY301
        if isinstance(codec, Ladder) and choose is not None:
            name, coded = codec.choose_rung(arrays, choose, grows)
            return [Packed(code, row, name) for code, row in zip(coded, arrays, strict=True)]
        return [Packed(codec.encode(row), row) for row in arrays]
    except BadInput as e:
        raise BadInput(f"{spec.name}: {e}") from e


def _files(codes: list[Coded]) -> Array:
    """Return the files of inputs as an array of objects [n, 1]."""
    files = np.empty((len(codes), 1), object)
    files[:, 0] = [code.data for code in codes]
    return files


def _pictures(codec: Codec, spec: TensorSpec, prepare: Preprocess | None) -> tuple[Picture | None, str]:
    """Return the picture type to which inputs are fitted, and the layout of arrays, HWC or CHW.

    It is that of the card's preprocessing, else follows from the model's input. None for the type: pictures keep their size, as
    the model takes files.

    Raises:
        BadInput: the model's input is no picture.
    """
    if prepare is not None:
        if prepare.picture is not None:
            return prepare.picture, "HWC"
        raise BadInput(f'codec "{codec.name}" sends pictures: preprocess in the card needs "dtype": "uint8", "layout": "HWC"')
    if spec.dtype == "object":
        return None, "HWC"
    fit = picture_for(spec, resize=True)
    if fit is None:
        raise BadInput(f'codec "{codec.name}" sends pictures: leave it out, or name {shape_text(spec.shape)}\'s axes in card=')
    return fit


def _as_sent_picture(fit: tuple[Picture | None, str], x: Any) -> Array:
    """Return an input as the picture that is encoded, uint8 [height, width(, channels)], of the model's size; decode files.

    Arrays in CHW layout are transposed, and axes of size 1 for batch or grey are dropped. Raise BadInput if it is no picture, or
    has other channels.
    """
    picture, layout = fit
    if picture is not None and isinstance(x, np.ndarray):
        if layout == "CHW" and x.ndim == 4 and x.shape[0] == 1:  # noqa: PLR2004 - with a batch axis
            x = x[0]
        shape = (picture.channels, picture.height, picture.width)
        if layout == "CHW" and x.ndim == 3 and (x.shape == shape or x.shape[0] == shape[0] != x.shape[2]):  # noqa: PLR2004 - with channels
            x = x.transpose(1, 2, 0)
        if picture.channels == 0 and x.ndim == 3 and x.shape[2] == 1:  # noqa: PLR2004 - grey
            x = x[..., 0]
    if picture is not None:
        x = picture(x)
    elif not isinstance(x, np.ndarray):
        x = _ANY(x)
    if not isinstance(x, np.ndarray) or x.dtype != np.uint8:
        what = f"{shape_text(x.shape)} {x.dtype}" if isinstance(x, np.ndarray) else type(x).__name__
        raise BadInput(f"expected a picture, uint8, or its file, not {what}: convert it to uint8, since only you know its scale")
    if picture is not None and (x.ndim == 2) != (picture.channels == 0):  # noqa: PLR2004 - grey
        raise BadInput(f"expected a picture of {picture.channels or 1} channels, got {shape_text(x.shape)}")
    return x


_ANY = Picture("picture", -1, -1, 3)  # reader of picture files if nothing determines the model's input
