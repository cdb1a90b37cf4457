"""Tensors as a codec sends them: pictures are fitted to what the model reads, and each input is encoded by itself."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np

from edgeroute.cloud.codecs import Codec, Coded, Uint8Codec
from edgeroute.cloud.datatypes import blank, stacked
from edgeroute.cloud.ladder import Choose, Ladder
from edgeroute.edge.picture import Picture, shaped
from edgeroute.edge.preprocess import Preprocess
from edgeroute.edge.tensors import Array, say
from edgeroute.errors import BadInput
from edgeroute.types import TensorSpec


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
    found = shaped(spec, resize=True)
    if found is None:
        raise BadInput(
            f'codec "{codec.name}" sends pictures, and the model takes {say(spec.shape)}: give the endpoint a card= that says '
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
        what = f"{say(x.shape)} {x.dtype}" if isinstance(x, np.ndarray) else type(x).__name__
        raise BadInput(f"expected a picture, uint8, or the file of one, and not {what}: convert it, its scale is yours to say")
    if picture is not None and (x.ndim == 2) != (picture.channels == 0):  # noqa: PLR2004 - grey
        raise BadInput(f"expected a picture of {picture.channels or 1} channels, got {say(x.shape)}")
    return x


_ANY = Picture("picture", -1, -1, 3)
"""Files where nothing says what the model reads."""
