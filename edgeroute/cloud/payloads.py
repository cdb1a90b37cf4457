"""Tensors as a codec sends them: pictures are fitted to what the model reads, and each input is encoded by itself."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np

from edgeroute.cloud.backend import Escalated
from edgeroute.cloud.codecs import Codec, Coded, Uint8Codec, codec_of
from edgeroute.cloud.datatypes import blank, stacked
from edgeroute.core.estimates import Ceiling
from edgeroute.core.walk import Prediction
from edgeroute.edge.preprocess import Picture, Preprocess, picture_for
from edgeroute.edge.tensors import Array, shape_text
from edgeroute.errors import BadInput, PolicyError
from edgeroute.system.process import json_dumps, plain
from edgeroute.types import TensorSpec

# The edge's answer to an input, sent along with it: a hint for the model behind the endpoint, or the input of its next stage.

PARAMETER = "edge_answers"
"""The request's parameter of the Open Inference Protocol: JSON, a list with an object or null for each input."""
MOST_OUTPUTS = 100
"""Numbers of an answer's raw outputs that are sent; of more none is."""
MOST_VALUE = 16 << 10
"""Bytes of an answer's value as JSON; a longer one is sent as null."""
MOST_BITS = 1000
"""Of a whole number in it; one with more is sent as null."""
MOST_DEEP = 50
"""Levels of lists and objects in it; one with more is sent as null."""


def told(prediction: Prediction) -> dict[str, Any]:
    """An answer in JSON types: `value`, `confidence` (null: there is none), and `outputs`, if they are a few numbers.

    Nothing of the application's is called, and nothing long is converted: it may be made on an event loop, and before a deadline.
    """
    value, confidence, outputs = prediction
    made = plain(value) if _room(value, MOST_VALUE, MOST_DEEP) >= 0 else None
    found = {"value": made if len(json_dumps(made)) <= MOST_VALUE else None, "confidence": plain(confidence)}
    kind = getattr(getattr(outputs, "dtype", None), "kind", "")
    if kind and kind in "biuf" and 0 < getattr(outputs, "size", 0) <= MOST_OUTPUTS:
        found["outputs"] = plain(_short(outputs.tolist()))
    return found


def _short(numbers: Any) -> Any:
    """The numbers with the digits that a float32 has."""
    if isinstance(numbers, list):
        return [_short(one) for one in numbers]
    return float(f"{numbers:.7g}") if isinstance(numbers, float) else numbers


def _room(value: Any, left: int, deep: int) -> int:
    """How many bytes are left of so many, after about those of this value; below 0: it is too long, or of a type without JSON."""
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


def apart(inputs: Sequence[Any]) -> tuple[list[Any], list[Mapping[str, Any] | None] | None]:
    """The inputs themselves, and what goes along with each; None: nothing does."""
    if not inputs or type(inputs[0]) is not Escalated:
        return list(inputs), None
    edges = [one.edge for one in inputs]
    return [one.x for one in inputs], edges if any(edge is not None for edge in edges) else None


def beside(inputs: Sequence[Any], like: Sequence[Any]) -> list[Any]:
    """These inputs, made of those, with what goes along with each."""
    if not like or type(like[0]) is not Escalated:
        return list(inputs)
    return [Escalated(x, one.edge) for x, one in zip(inputs, like, strict=True)]


def written(edges: Sequence[Mapping[str, Any] | None]) -> str:
    """The parameter's text."""
    return json_dumps(list(edges)).decode()


# Ladders of codecs: several qualities, of which the best that is predicted to arrive in time is sent.

NEWEST = 0.1
"""Weight of the newest input in what its encodings' sizes are predicted from."""
Choose = Callable[[Sequence[float]], int]
"""Sizes of a request's encodings, bytes, best first; NaN: it is not to be had -> which to send."""


class Ladder:
    """Several codecs, best first. As a codec it is its floor, the last: so whatever does not choose sends that.

    Args:
        rungs: two or more, all of pictures or all of tensors.

    Raises:
        PolicyError: they are not.
    """

    def __init__(self, rungs: Sequence[Codec]) -> None:
        names = [rung.name for rung in rungs]
        if len(names) < 2 or len(set(names)) < len(names):  # noqa: PLR2004 - one is no choice
            raise PolicyError(f"codec: a ladder has two or more different codecs, best first, not {', '.join(names) or 'none'}")
        if any(isinstance(rung, Ladder) for rung in rungs):
            raise PolicyError("codec: a ladder has codecs, and no ladder")
        if len({rung.pictures for rung in rungs}) > 1:
            raise PolicyError(f"codec: a ladder is of pictures or of tensors, not of both: {', '.join(names)}")
        self.rungs, self.floor, self.pictures = tuple(rungs), rungs[-1], rungs[-1].pictures
        self.name = f"ladder:{'>'.join(names)}"
        self._shares = [0.0] * len(names)
        """Bytes that each rung makes of a byte, a decaying mean; 0: not known, so it is tried."""
        self._ceiling = Ceiling()

    def encode(self, x: Array) -> Coded:
        """One input, by the floor."""
        return self.floor.encode(x)

    def chosen(self, rows: Sequence[Array], choose: Choose, grows: float = 1.0) -> tuple[str, list[Coded]]:
        """The name of the rung that was chosen, and the inputs, encoded by it.

        Rungs are chosen by the sizes that they have made of earlier inputs, and again once the size is known.

        Args:
            rows: the inputs as the rungs take them.
            choose: picks one.
            grows: bytes that are sent for one of an encoding.

        Raises:
            BadInput: the floor cannot encode them.
        """
        raw, last = sum(row.nbytes for row in rows), len(self.rungs) - 1
        sizes, made = [share * raw * grows for share in self._shares], dict[int, list[Coded]]()
        while True:
            i = choose(sizes)
            if sizes[i] != sizes[i]:
                i = last
            if i in made:
                return self.rungs[i].name, made[i]
            try:
                made[i] = [self.rungs[i].encode(row) for row in rows]
            except BadInput:
                if i == last:
                    raise
                sizes[i] = float("nan")
                continue
            size = sum(one.data.nbytes if not isinstance(one.data, bytes) else len(one.data) for one in made[i])
            sizes[i], share = size * grows, size / max(raw, 1)
            self._shares[i] += (NEWEST if self._shares[i] else 1.0) * (share - self._shares[i])

    def best(self) -> int:
        """The best rung that is tried: calls by better ones were late."""
        return min(self._ceiling.best, len(self.rungs) - 1)

    def ended(self, i: int, *, late: bool) -> None:
        """A call by that rung was late, or in time."""
        self._ceiling.ended(min(i, len(self.rungs) - 2), late=late)  # of the floor there is nothing below

    def index(self, name: str) -> int:
        """Which rung has that name; the floor, if none has."""
        return next((i for i, rung in enumerate(self.rungs) if rung.name == name), len(self.rungs) - 1)


def payload_of(given: str | Mapping[str, Any] | Codec | Sequence[Any]) -> Codec:
    """As `codec_of`; a ladder of a list of codecs.

    Raises:
        PolicyError, RuntimeMissing: as `codec_of`, and as `Ladder`.
    """
    if not isinstance(given, list | tuple):
        return codec_of(given)  # type: ignore[arg-type]  # what else it is, is refused there
    return Ladder([codec_of(one) for one in given])


class Packed(NamedTuple):
    """An input that is encoded already."""

    coded: Coded
    made: Array
    """What was encoded."""
    by: str = ""
    """The name of the codec."""


class Feed(dict[str, Array]):
    """Tensors by name, in the order of the inputs; and of those that were encoded what they were, as (parameters, first row)."""

    coded: Mapping[str, tuple[dict[str, Any], Array]] = MappingProxyType({})
    edges: list[Mapping[str, Any] | None] | None = None
    """The edge's answers that go along; None: none do."""


def described(feed: dict[str, Array], name: str) -> tuple[dict[str, Any], bool]:
    """Parameters of that tensor for the server, the caller's own; and whether it is one of files."""
    coded = feed.coded.get(name) if isinstance(feed, Feed) else None
    return ({}, False) if coded is None else (dict(coded[0]), feed[name].dtype.hasobject)


def zeros_of(feed: Feed, constants: set[str], codec: Codec | None) -> Feed:
    """The same request with nothing of the caller's in it: zeros, or files of zeros, of one input."""
    zeros = Feed()
    zeros.coded = feed.coded
    for name, array in feed.items():
        coded = feed.coded.get(name)
        if name in constants:
            zeros[name] = array
        elif codec is None or coded is None or not array.dtype.hasobject:
            zeros[name] = blank(array)
        else:
            zeros[name] = _files([codec.encode(np.zeros_like(coded[1]))])
    return zeros


def encode(feed: Feed, codec: Codec, rows: list[Any], spec: TensorSpec, prepare: Preprocess | None) -> None:
    """Puts the tensor of these inputs into `feed`, [n, ...] as it is sent; of files BYTES [n, 1].

    Args:
        feed: of the request.
        codec: encodes each input.
        rows: the caller's inputs, without the batch axis.
        spec: of the model's tensor, as the server's metadata has it.
        prepare: the card's preprocessing; None: it has none.

    Raises:
        BadInput: an input cannot be encoded, or they differ in what they take to be decoded.
    """
    made = packed(codec, rows, spec, prepare)
    found = [one.coded for one in made]
    if not found:
        raise BadInput("the batch is empty")
    parameters = found[0].parameters
    if any(one.parameters != parameters for one in found):
        raise BadInput(f"{spec.name}: the inputs of a batch differ in shape: give them one at a time")
    if isinstance(found[0].data, bytes):
        feed[spec.name] = _files(found)
    else:
        feed[spec.name] = np.stack([np.asarray(one.data) for one in found])
        parameters = {} if spec.dtype == feed[spec.name].dtype else parameters  # the server takes them as they are
    feed.coded = {**feed.coded, spec.name: (parameters, made[0].made)}


def packed(
    codec: Codec, rows: list[Any], spec: TensorSpec, prepare: Preprocess | None, choose: Choose | None = None, grows: float = 1.0
) -> list[Packed]:
    """These inputs, each encoded; the arguments and errors are those of `encode`.

    choose, grows: as for `Ladder.chosen`; None: of a ladder it is the floor.
    """
    if rows and all(isinstance(x, Packed) for x in rows):
        return rows
    try:
        if codec.pictures:
            fit = _pictures(codec, spec, prepare)
            made = [_picture(fit, x) for x in rows]
        else:
            steps = isinstance(codec.floor if isinstance(codec, Ladder) else codec, Uint8Codec)
            wanted = spec._replace(dtype="float32") if steps and spec.dtype == "uint8" else spec
            made = list(prepare(rows) if prepare is not None else stacked(rows, wanted))
            if len(made) != len(rows):
                raise BadInput(f'codec "{codec.name}" takes models whose first axis counts the inputs: leave it out')  # noqa: TRY301
        if isinstance(codec, Ladder) and choose is not None:
            name, coded = codec.chosen(made, choose, grows)
            return [Packed(one, row, name) for one, row in zip(coded, made, strict=True)]
        return [Packed(codec.encode(row), row) for row in made]
    except BadInput as e:
        raise BadInput(f"{spec.name}: {e}") from e


def _files(found: list[Coded]) -> Array:
    files = np.empty((len(found), 1), object)
    files[:, 0] = [one.data for one in found]
    return files


def _pictures(codec: Codec, spec: TensorSpec, prepare: Preprocess | None) -> tuple[Picture | None, str]:
    """How a picture is fitted, and the layout of arrays; no picture: it is sent as large as it is."""
    if prepare is not None:
        if prepare.picture is not None:
            return prepare.picture, "HWC"
        raise BadInput(
            f'codec "{codec.name}" sends pictures, and the card\'s preprocess takes none, which "dtype": "uint8" and "layout": '
            '"HWC" would say'
        )
    if spec.dtype == "object":
        return None, "HWC"
    found = picture_for(spec, resize=True)
    if found is None:
        raise BadInput(
            f'codec "{codec.name}" sends pictures, and the model takes {shape_text(spec.shape)}: give a card= that says '
            "where the channels are, or leave the codec out"
        )
    return found


def _picture(fit: tuple[Picture | None, str], x: Any) -> Array:
    """The picture as uint8 [height, width(, channels)] of the size that the model reads."""
    picture, layout = fit
    if picture is not None and isinstance(x, np.ndarray):
        if layout == "CHW" and x.ndim == 4 and x.shape[0] == 1:  # noqa: PLR2004 - with a batch axis
            x = x[0]
        own = (picture.channels, picture.height, picture.width)
        if layout == "CHW" and x.ndim == 3 and (x.shape == own or x.shape[0] == own[0] != x.shape[2]):  # noqa: PLR2004 - with channels
            x = x.transpose(1, 2, 0)
        if picture.channels == 0 and x.ndim == 3 and x.shape[2] == 1:  # noqa: PLR2004 - grey
            x = x[..., 0]
    if picture is not None:
        x = picture(x)
    elif not isinstance(x, np.ndarray):
        x = _ANY(x)
    if not isinstance(x, np.ndarray) or x.dtype != np.uint8:
        what = f"{shape_text(x.shape)} {x.dtype}" if isinstance(x, np.ndarray) else type(x).__name__
        raise BadInput(f"expected a picture, uint8, or the file of one, and not {what}: convert it, its scale is yours to say")
    if picture is not None and (x.ndim == 2) != (picture.channels == 0):  # noqa: PLR2004 - grey
        raise BadInput(f"expected a picture of {picture.channels or 1} channels, got {shape_text(x.shape)}")
    return x


_ANY = Picture("picture", -1, -1, 3)
"""Files where nothing says what the model reads."""
