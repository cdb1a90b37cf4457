"""Server side of the Open Inference Protocol v2: parser and encoder of tensors, decoder of files, routes; all bounded.

`read` parses a request to an `Ask`, `write` encodes its reply, `Decoder` turns files into tensors, `reply` makes responses of
JSON.
"""

from __future__ import annotations

import io
import re
from base64 import b64decode
from collections.abc import Awaitable, Callable, Container, Mapping, Sequence
from copy import copy
from itertools import chain
from math import prod
from typing import Any, NamedTuple

import numpy as np
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from edgeroute import __version__
from edgeroute.cloud.encoding_and_edge_answers import PARAMETER
from edgeroute.cloud.input_codecs import check_sound, check_zstd, own_zstd
from edgeroute.cloud.oip_tensors import DTYPES, NAMES, TEXTS
from edgeroute.cloud.openinference import LENGTH
from edgeroute.edge.input_checks_and_stacking import Array, row_shape, shape_text
from edgeroute.edge.model_card import Card
from edgeroute.edge.preprocessing import MOST_PIXELS, Layouts, Preprocess, picture_for
from edgeroute.errors import BadInput, ModelError
from edgeroute.system.json_codec_and_short_repr import json_dumps, json_loads
from edgeroute.system.late_imports_and_plugins import import_late
from edgeroute.system.thread_pool_and_workers import failing
from edgeroute.types import TensorSpec

MOST_FILES = 1024  # most files in one request
MOST_BYTES = 1 << 28  # most bytes of one decoded row
MOST_FREE = 1 << 24  # most pixels of a picture for a model that takes any size
TEXT = "object"  # dtype of inputs that are texts
_LENGTH = LENGTH.lower().encode()
ENCODED = "-encoded"  # suffix of the model name under which a model takes only picture files, as in exported folders
_ZSTD = re.compile(r"application/zstd; datatype=([A-Z0-9]{1,8}); shape=([0-9]{0,9}(?:x[0-9]{1,9}){0,7})")


class Files(NamedTuple):
    """Input that arrived as files; each file is a row."""

    data: list[bytes]
    media: str | None  # media type of the files; None: not stated, read as pictures


class Decoder:
    """Decoder of files into the tensor of one input.

    Args:
        spec: specification of the model's input.
        card: card of the model.

    Attributes:
        bytes: size of a decoded row; 0 if it depends on the file.
        pictures: function from picture files to the tensor; None if nothing describes the preparation.
        takes: names of the supported kinds, for messages.
    """

    def __init__(self, spec: TensorSpec, card: Card) -> None:
        self.spec = spec
        field = card.of(spec.name)
        self.batch = 0 if field is None else field.batch
        self._row = row_shape(spec, self.batch)
        self.bytes = 0 if -1 in self._row else prod(self._row) * np.dtype(spec.dtype).itemsize
        self.pictures = _picture_preparation(spec, None if field is None else field.preprocess, self.batch, fixed=self.bytes > 0)
        self.takes = ["zstd", *(["pictures"] if self.pictures is not None else []), *(["flac"] if self._takes_audio() else [])]

    def _takes_audio(self) -> bool:
        """Return True if the input can be audio samples: int16 or floats with one or two axes."""
        return (self.spec.dtype == "int16" or self.spec.dtype.startswith("float")) and len(self._row) in (1, 2)

    def __call__(self, files: Files) -> Array:
        """Decode files into one tensor. Every size is checked before anything is decoded.

        Raises:
            BadInput: the files are of an unsupported kind, or do not fit the model.
            RuntimeMissing: the library that reads them is not installed.
        """
        if not 0 < len(files.data) <= (most := MOST_FILES if self.bytes else 1):
            raise BadInput(f"{self.spec.name}: {len(files.data)} files came: send 1 to {most} at a time")
        media = files.media or ""
        if media.startswith("application/zstd"):
            return self._stack([self._tensor(file, media) for file in files.data])
        if media == "audio/flac":
            return self._stack([self._sound(file) for file in files.data])
        if self.pictures is None or not media.startswith(("image/", "application/octet-stream") if media else ""):
            kind = repr(media[:40] or "pictures")
            raise BadInput(f"{self.spec.name}: the model takes files of {', '.join(self.takes)}, and not {kind}")
        return self.pictures(list(files.data))

    def _stack(self, rows: list[Array]) -> Array:
        """Stack rows along the batch axis; without such an axis return the only row.

        Raises:
            BadInput: the rows differ in shape, or there are several and no batch axis.
        """
        if len({row.shape for row in rows}) > 1:
            raise BadInput(f"{self.spec.name}: the rows of one request differ in shape: send one at a time")
        if self.batch is None:
            if len(rows) > 1:
                raise BadInput(f"{self.spec.name}: it has no batch axis, and there are {len(rows)} files: send one at a time")
            return rows[0]
        return np.stack(rows, axis=self.batch)

    def _fits(self, shape: Sequence[int]) -> bool:
        """Return True if a row's shape fits the model's."""
        return len(shape) == len(self._row) and all(want in (-1, size) for want, size in zip(self._row, shape, strict=True))

    def _tensor(self, data: bytes, media: str) -> Array:
        """Decompress one row from zstd, once its declared type, shape and size (256 MB at most) are checked.

        Raises:
            BadInput: they do not fit the model, or the data not them.
        """
        match, spec = _ZSTD.fullmatch(media), self.spec
        if match is None:
            example = "application/zstd; datatype=FP32; shape=3x224x224"
            raise BadInput(f"{spec.name}: {media[:80]!r} does not say what is compressed: write it as in {example!r}")
        shape = _small(tuple(map(int, match[2].split("x"))) if match[2] else (), spec)
        if DTYPES.get(match[1]) != spec.dtype or not self._fits(shape):
            raise BadInput(f"{spec.name}: expected {shape_text(self._row)} {spec.dtype}, got {match[1]} {shape_text(shape)}")
        if (size := prod(shape) * np.dtype(spec.dtype).itemsize) > MOST_BYTES:
            raise BadInput(f"{spec.name}: a row of {size} bytes is too large: at most {MOST_BYTES}")
        return _octets(_unzstd(data, size), spec, shape)

    def _sound(self, data: bytes) -> Array:
        """Decode one row of audio from FLAC, of 32 million numbers at most; one channel for an input of one axis.

        Raises:
            BadInput: the data is no such FLAC, or the model takes no audio, or another shape.
            RuntimeMissing: soundfile is not installed.
        """
        spec = self.spec
        if not self._takes_audio():
            raise BadInput(f"{spec.name}: the model takes no audio: {shape_text(self._row)} {spec.dtype}")
        decoded = _unflac(data, "int16" if spec.dtype == "int16" else "float32", MOST_BYTES // 8)
        samples = decoded[:, 0] if len(self._row) == 1 and decoded.shape[1] == 1 else decoded
        if not self._fits(samples.shape):
            raise BadInput(f"{spec.name}: the model takes {shape_text(self._row)} samples, and not {shape_text(samples.shape)}")
        row: Array = samples.astype(spec.dtype, copy=False)
        return row


def _unzstd(data: bytes, size: int) -> bytes:
    """Return the decompressed bytes, exactly `size`; no more are ever decompressed.

    Raises:
        BadInput: the data is no zstd, or of another size.
        RuntimeMissing: there is no zstd module.
    """
    check_zstd()
    try:
        if (module := own_zstd()) is not None:
            content: bytes = import_late(module).ZstdDecompressor().decompress(data, max_length=size + 1)
        else:
            with import_late("zstandard").ZstdDecompressor().stream_reader(io.BytesIO(data)) as reader:
                content = reader.read(size + 1)
    except Exception as e:  # each of them has its own
        raise BadInput(f"these {len(data)} bytes are no zstd") from e
    if len(content) != size:
        raise BadInput(f"these {len(data)} bytes of zstd are not {size} bytes of a tensor")
    return content


def _unflac(data: bytes, dtype: str, most: int) -> Array:
    """Return the samples [n, channels] of a whole FLAC file, int16 or floats.

    Raises:
        BadInput: the data is no FLAC, is cut off, or has more than `most` numbers.
        RuntimeMissing: soundfile is not installed.
    """
    check_sound()
    try:
        with import_late("soundfile").SoundFile(io.BytesIO(data)) as file:
            if file.format == "FLAC" and 0 < file.frames * file.channels <= most:
                samples: Array = file.read(file.frames, dtype=dtype, always_2d=True)
                if len(samples) == file.frames:  # a header may promise more
                    return samples
    except RuntimeError as e:  # soundfile's
        raise BadInput(f"these {len(data)} bytes are no FLAC") from e
    raise BadInput(f"these {len(data)} bytes are no FLAC, are cut off, or have more than {most} samples")


def widen(array: Array, spec: TensorSpec, scale: Any, offset: Any) -> Array:
    """Return a copy of float16 numbers in the model's float type, or of bytes times `scale` plus `offset`.

    Raises:
        BadInput: the numbers are bytes, and the scale or offset is no finite number.
    """
    if array.dtype == np.float16:
        return array.astype(np.dtype(spec.dtype))
    if not all(isinstance(x, int | float) and not isinstance(x, bool) and np.isfinite(x) for x in (scale, offset)):
        raise BadInput(f'{spec.name}: UINT8 for a model of floats needs "parameters": {{"scale": ..., "offset": ...}}')
    floats: Array = (array.astype(np.float64) * scale + offset).astype(spec.dtype)
    return floats


def _picture_preparation(spec: TensorSpec, prepare: Preprocess | None, batch: int | None, *, fixed: bool) -> Preprocess | None:
    """Return a copy of the preparation of picture files, with a limit of pixels; None if nothing describes it.

    A uint8 input without preparation in the card takes pictures of its own shape. `fixed`: every row has the same size.
    """
    if prepare is None:
        shape = picture_for(spec, resize=False) if spec.dtype == "uint8" and batch == 0 else None
        if shape is None:
            return None
        picture, layout = shape
        channels = (picture.channels,) if picture.channels else ()
        accepts = TensorSpec(spec.name, "uint8", (-1, picture.height, picture.width, *channels))
        prepare = Preprocess(accepts, spec, layouts=Layouts("HWC" if channels else "HW", layout), picture=picture)
    if prepare.picture is None:
        return None
    limited = copy(prepare)
    limited.picture = prepare.picture._replace(most=MOST_PIXELS if fixed else MOST_FREE)
    return limited


VERSION = "1"  # version of every model


class Ask(NamedTuple):
    """Parsed infer request."""

    feed: dict[str, Any]  # arrays, or `Files` to decode, in the order of the model's inputs; may be read-only views of the body
    outputs: list[tuple[str, bool]]  # (name, True if it is sent as binary), in the order of the reply
    id: str | None
    edges: Any = None  # parameter with the edge's answers, not parsed yet; None: absent


class Reply(NamedTuple):
    """Encoded reply: headers and body."""

    headers: dict[str, str]
    body: bytes


def describe(name: str, platform: str, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]) -> dict[str, Any]:
    """Return a model's metadata of the protocol: name, version, platform, and inputs and outputs with datatype and shape."""

    def tensors(specs: Sequence[TensorSpec]) -> list[dict[str, Any]]:
        """Return the metadata of tensors."""
        return [{"name": s.name, "datatype": NAMES.get(s.dtype, TEXTS), "shape": list(s.shape)} for s in specs]

    about = {"name": name, "versions": [VERSION], "platform": platform}
    return {**about, "inputs": tensors(inputs), "outputs": tensors(outputs)}


def dumps(data: Any) -> bytes:
    """Encode as valid JSON: NaN and infinity become null. Arrays must be flat."""
    return json_dumps(data, _plain, arrays=True)


def _plain(array: Array) -> Any:
    """Return a flat array as a list, with None for NaN and infinity; the array is not changed."""
    finite = np.isfinite(array)
    if not finite.all():
        array = array.astype(object)
        array[~finite] = None
    return array.tolist()


def read(
    body: bytes, length: str | None, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec], encoded: Container[str] = ()
) -> Ask:
    """Parse and validate an infer request.

    A picture or audio file becomes `Files`, still encoded; smaller numbers are widened to the model's type.

    Args:
        body: JSON, or JSON followed by the binary tensors in the order of the request's inputs.
        length: the header Inference-Header-Content-Length: number of bytes of JSON; None: all.
        inputs: specifications of the model's inputs, all required; -1 fits any size.
        outputs: specifications of the model's outputs; the request may select some of them.
        encoded: names of the inputs that may come as files, or as smaller numbers than the model's floats.

    Raises:
        BadInput: the request violates the protocol, or does not fit the model. Every size is validated before use.
    """
    offset = _json_size(body, length)
    head = _json(body if length is None else body[:offset])
    specs = {spec.name: spec for spec in inputs}
    feed: dict[str, Any] = {}
    for tensor in _list(head, "inputs"):
        spec = specs.get(tensor["name"])
        if spec is None:
            raise BadInput(f"the model has no input {_say(tensor['name'])}, only {list(specs)}")
        if spec.name in feed:
            raise BadInput(f"{spec.name} is there twice: send it once")
        parameters = _parameters(tensor)
        size = parameters.get("binary_data_size")
        if size is not None and length is None:
            raise BadInput(f"{spec.name} is announced as binary: say in the header {LENGTH} where the JSON ends")
        raw = None if size is None else _part(body, offset, size, spec)
        offset += size or 0
        sent = spec
        if spec.name in encoded and spec.dtype != TEXT:
            if tensor.get("datatype") == TEXTS:
                feed[spec.name] = _files(tensor, spec, parameters, raw)
                continue
            smaller = _SMALLER.get(str(tensor.get("datatype"))) if spec.dtype.startswith("float") else None
            sent = spec if smaller in {None, spec.dtype} else spec._replace(dtype=str(smaller))
        shape = _shape(tensor, sent)
        array = _numbers(tensor, sent, shape) if raw is None else _octets(raw, sent, shape)
        feed[spec.name] = array if sent is spec else widen(array, spec, parameters.get("scale"), parameters.get("offset", 0.0))
    if missing := [name for name in specs if name not in feed]:
        raise BadInput(f"the model also needs {missing}: send every input in one request")
    if offset != len(body):
        raise BadInput(f"the body has {len(body)} bytes, JSON and inputs make {offset}: announce each in binary_data_size")
    name = head.get("id")
    if not isinstance(name, str | None):
        raise BadInput(f"id is {_say(name)}: send a string or leave it out")
    edges = _parameters(head).get(PARAMETER)
    return Ask({name: feed[name] for name in specs}, _outputs(head, [spec.name for spec in outputs]), name, edges)


def edge_answers(given: Any, count: int) -> Array:
    """Parse the edge's answers, mappings or None, into an array of objects, [n]; all None if the parameter is absent.

    Args:
        given: the request's parameter, JSON of a list.
        count: number of rows.

    Raises:
        BadInput: it is no JSON list of as many mappings or nulls.
    """
    rows = np.full(count, None, object)
    if given is None:
        return rows
    try:
        answers = json_loads(given.encode())
    except (AttributeError, ValueError, RecursionError):
        answers = None
    if not isinstance(answers, list) or len(answers) != count or not all(isinstance(answer, dict | None) for answer in answers):
        raise BadInput(f"{PARAMETER} is {_say(given)}: send JSON: a list with an object or null for each of {count} inputs")
    rows[:] = answers
    return rows


def json_part(headers: Mapping[bytes, bytes], body: bytes, most: int) -> tuple[str | None, int]:
    """Return the header with the length of the body's JSON part, as for `read`, and that length in bytes.

    Raises:
        BadInput: the header is not a length, or longer than the body.
        HTTPException: 413, for more than `most` bytes of JSON.
    """
    length = None if (raw := headers.get(_LENGTH)) is None else raw.decode("latin-1")
    if (size := _json_size(body, length)) > most:
        raise HTTPException(413, f"the JSON has more than {most} bytes: send tensors of this size as binary")
    return length, size


def _json_size(body: bytes, length: str | None) -> int:
    """Return the bytes of the body's JSON part. length: as for `read`; raise `BadInput` if it is none, or beyond the body."""
    size = len(body)
    if length is None:
        return size
    if not (length.isascii() and length.isdigit() and len(length) < 20 and int(length) <= size):  # noqa: PLR2004 - digits of 2^64
        raise BadInput(f"{LENGTH} is {_say(length)}, the body has {size} bytes: send the length of its JSON part")
    return int(length)


def write(ask: Ask, results: Mapping[str, Array], model: str) -> Reply:
    """Encode the reply to an infer request: the outputs that it selects, each as JSON or as binary after the JSON.

    NaN and infinity become null in JSON.

    Raises:
        ModelError: an output is missing, or is no array of numbers or texts.
    """
    head: dict[str, Any] = {"model_name": model, "model_version": VERSION, "outputs": []}
    if ask.id is not None:
        head["id"] = ask.id
    parts: list[Any] = []
    for name, binary in ask.outputs:
        array = results.get(name)
        texts = array is not None and array.dtype.hasobject and all(isinstance(text, str) for text in array.flat)
        if array is None or not (texts or array.dtype.name in NAMES):
            raise ModelError(f"{model} returned no tensor of numbers or texts for its output {name!r}: correct the model")
        tensor: dict[str, Any] = {"name": name, "datatype": TEXTS if texts else NAMES[array.dtype.name], "shape": [*array.shape]}
        head["outputs"].append(tensor)
        array = np.asarray(array, array.dtype.newbyteorder("<" if binary else "="), order="C").reshape(-1)
        if not binary:
            tensor["data"] = array.tolist() if texts else array
            continue
        encoded = (text.encode("utf-8", "replace") for text in array) if texts else ()
        parts.append(b"".join(len(text).to_bytes(4, "little") + text for text in encoded) if texts else array)
        tensor["parameters"] = {"binary_data_size": memoryview(parts[-1]).nbytes}
    text = dumps(head)
    if not parts:
        return Reply({"content-type": "application/json"}, text)
    return Reply({"content-type": "application/octet-stream", _LENGTH.decode(): str(len(text))}, b"".join([text, *parts]))


def _say(value: Any) -> str:
    """Return a value's repr, cut to 80 characters, for messages."""
    return repr(value)[:80]


def _json(text: bytes) -> dict[str, Any]:
    """Parse the JSON part as an object; raise `BadInput` otherwise."""
    try:
        head = json_loads(text)
    except (ValueError, RecursionError) as e:
        raise BadInput(f"not JSON: {e}. Binary data goes after the JSON, with the header {LENGTH}") from e
    if not isinstance(head, dict):
        raise BadInput(f"the JSON is a {type(head).__name__}: send an object with inputs")
    return head


def _list(head: dict[str, Any], key: str) -> list[dict[str, Any]]:
    """Return a key's value, a list of objects with a name; raise `BadInput` otherwise, also if the key is missing."""
    value = head.get(key)
    if not isinstance(value, list) or not all(isinstance(x, dict) and isinstance(x.get("name"), str) for x in value):
        raise BadInput(f"{key} is {_say(value)}: send a list of objects with a name")
    return value


def _parameters(head: dict[str, Any]) -> dict[str, Any]:
    """Return the object `parameters` of a request, input or output; empty if absent; raise `BadInput` if it is no object."""
    value = head.get("parameters")
    if not isinstance(value, dict | None):
        raise BadInput(f"parameters is {_say(value)}: send an object or leave it out")
    return value or {}


def _shape(tensor: dict[str, Any], spec: TensorSpec) -> tuple[int, ...]:
    """Return a tensor's shape; raise `BadInput` unless it and the datatype fit the specification, in which -1 is any size."""
    if tensor.get("datatype") != (wanted := NAMES.get(spec.dtype, TEXTS)):
        raise BadInput(f"{spec.name}: the model takes {wanted}, not {_say(tensor.get('datatype'))}: convert it")
    shape = tensor.get("shape")
    if not isinstance(shape, list) or not all(type(n) is int and n >= 0 for n in shape):
        raise BadInput(f"{spec.name}: shape is {_say(shape)}: send a list of sizes")
    if len(shape) != len(spec.shape) or any(w not in (-1, n) for w, n in zip(spec.shape, shape, strict=True)):
        raise BadInput(f"{spec.name}: the model takes {list(spec.shape)}, -1 being any size, not {_say(shape)}: reshape it")
    return _small(tuple(shape), spec)


def _small(shape: tuple[int, ...], spec: TensorSpec) -> tuple[int, ...]:
    """Return the shape; raise `BadInput` if it has no values, and its other sizes exceed `MOST_FILES`: no body bounds them."""
    if 0 in shape and prod(filter(None, shape)) > MOST_FILES:
        raise BadInput(f"{spec.name}: the shape {_say(list(shape))} has no values: send fewer rows, or values")
    return shape


def _octets(raw: bytes | memoryview, spec: TensorSpec, shape: tuple[int, ...]) -> Array:
    """Return a binary tensor, as a read-only view of its bytes if their alignment allows; texts as an array of objects.

    Raises:
        BadInput: its size does not fit its shape, a BOOL is not 0 or 1, or a text is no UTF-8.
    """
    if spec.dtype == TEXT:
        return _text_array(_read_sized_parts(memoryview(raw), prod(shape), spec), spec).reshape(shape)
    dtype, count = np.dtype(spec.dtype).newbyteorder("<"), prod(shape)
    if len(raw) != count * dtype.itemsize:
        raise BadInput(f"{spec.name}: binary_data_size is {len(raw)}, its shape and datatype make {count * dtype.itemsize}")
    array = np.frombuffer(raw, dtype, count).reshape(shape)
    if dtype.kind == "b" and (array.view(np.uint8) > 1).any():
        raise BadInput(f"{spec.name}: a BOOL is one byte, 0 or 1; there are others")
    # The preceding JSON determines its alignment, on which native code may depend.
    return np.require(array, spec.dtype, "A")


_SMALLER = {"UINT8": "uint8", "FP16": "float16"}


def _part(body: bytes, offset: int, size: Any, spec: TensorSpec) -> memoryview:
    """Return the bytes of a binary tensor as a view of the body; raise `BadInput` if they are not all there."""
    if type(size) is not int or not 0 <= size <= len(body) - offset:
        raise BadInput(f"{spec.name}: binary_data_size is {_say(size)}, and {len(body) - offset} bytes are left: send them all")
    return memoryview(body)[offset : offset + size]


def _files(tensor: dict[str, Any], spec: TensorSpec, parameters: dict[str, Any], raw: memoryview | None) -> Files:
    """Return copies of an input's files, with their media type: binary, each with its length before it, or texts in base64.

    Raises:
        BadInput: their number, encoding or media type is invalid.
    """
    shape, media = tensor.get("shape"), parameters.get("media_type")
    sizes = shape if isinstance(shape, list) and all(type(n) is int for n in shape) else []
    if len(sizes) not in (1, 2) or sizes[1:] not in ([], [1]) or not 0 < sizes[0] <= MOST_FILES:
        raise BadInput(f"{spec.name}: files have the shape [n] or [n, 1], n from 1 to {MOST_FILES}, not {_say(shape)}")
    if media is None and "/" in str(parameters.get("content_type")):
        media = parameters["content_type"]
    if not isinstance(media, str | None):
        raise BadInput(f"{spec.name}: media_type is {_say(media)}: send a text, such as image/jpeg")
    if raw is not None:
        return Files(_read_sized_parts(raw, sizes[0], spec), media)
    if parameters.get("content_type") != "base64":
        raise BadInput(f'{spec.name}: files in JSON are base64, with "parameters": {{"content_type": "base64"}}')
    data = tensor.get("data")
    if isinstance(data, list) and data and isinstance(data[0], list):
        data = list(chain.from_iterable(data))
    if not isinstance(data, list) or not all(isinstance(text, str) for text in data):
        raise BadInput(f"{spec.name}: data is {_say(data)}: send a list of texts")
    try:
        files = [b64decode(text, validate=True) for text in data]
    except ValueError:
        raise BadInput(f"{spec.name}: data holds what is no base64") from None
    if len(files) != sizes[0]:
        raise BadInput(f"{spec.name}: another number of files came than its shape says, {sizes[0]}")
    return Files(files, media)


def _read_sized_parts(raw: memoryview, count: int, spec: TensorSpec) -> list[bytes]:
    """Return copies of `count` files or texts, each preceded by its length in four bytes; raise BadInput for more or fewer."""
    parts, offset = list[bytes](), 0
    while offset < len(raw) and len(parts) <= count:
        size = int.from_bytes(raw[offset : offset + 4], "little")
        if offset + 4 + size > len(raw):
            raise BadInput(f"{spec.name}: one is longer than what came: each has its length before it, four bytes")
        parts.append(bytes(raw[offset + 4 : offset + 4 + size]))
        offset += 4 + size
    if len(parts) != count:
        raise BadInput(f"{spec.name}: another number of files or texts came than its shape says, {count}")
    return parts


def _text_array(parts: Sequence[bytes], spec: TensorSpec) -> Array:
    """Return texts as an array of objects, [n]; raise `BadInput` for what is no UTF-8."""
    array = np.empty(len(parts), object)
    try:
        array[:] = [part.decode() for part in parts]
    except UnicodeDecodeError:
        raise BadInput(f"{spec.name}: a text is no UTF-8") from None
    return array


def _numbers(tensor: dict[str, Any], spec: TensorSpec, shape: tuple[int, ...]) -> Array:
    """Return a tensor from values in JSON, flat or nested as its shape, each checked for the type; integers must be in its range.

    Raises:
        BadInput: their number or nesting does not fit, or a value is of another type or too large.
    """
    flat, dtype = tensor.get("data"), np.dtype(spec.dtype)
    if not isinstance(flat, list):
        raise BadInput(f"{spec.name}: data is {_say(flat)}: send a list, or binary data and its binary_data_size")
    sizes = [len(flat)]
    while flat and type(flat[0]) is list and len(sizes) < len(shape):
        lengths = {len(x) if type(x) is list else -1 for x in flat}
        if len(lengths) > 1:
            raise BadInput(f"{spec.name}: data is ragged: send it flat, or nested as its shape says")
        sizes.append(lengths.pop())
        flat = list(chain.from_iterable(flat))
    if len(flat) != prod(shape) or (len(sizes) > 1 and tuple(sizes) != shape):
        raise BadInput(f"{spec.name}: data has the shape {sizes}, not {list(shape)}: send it flat, or nested as its shape says")
    # Checked before numpy converts it: numpy would accept strings and null as numbers, and wrap large integers.
    kinds: dict[str, set[type]] = {"f": {int, float}, "b": {bool}, "O": {str}}
    array = np.empty(len(flat), dtype)
    for start in range(0, len(flat), PIECE):
        piece = flat[start : start + PIECE]
        fits = set(map(type, piece)) <= kinds.get(dtype.kind, {int})
        if fits and dtype.kind in "iu":
            fits = np.iinfo(dtype).min <= min(piece) and max(piece) <= np.iinfo(dtype).max
        if fits:
            try:
                with np.errstate(over="ignore"):
                    array[start : start + PIECE] = np.array(piece, dtype)
            except OverflowError:  # JSON has no infinity: the number was too large
                fits = False
        if not (fits and (dtype.kind != "f" or np.isfinite(array[start : start + PIECE]).all())):  # too large as well
            wanted = NAMES.get(spec.dtype, "text")
            raise BadInput(f"{spec.name}: data holds what is no {wanted}: convert it")
    return array.reshape(shape)


PIECE = 1 << 16  # numbers converted at a time: other threads run in between, the event loop among them


def _outputs(head: dict[str, Any], names: list[str]) -> list[tuple[str, bool]]:
    """Return the outputs that a request selects (default: all), each with True if it is sent as binary.

    Raises:
        BadInput: there is no such output, or a parameter is no boolean.
    """
    binary = _flag(_parameters(head), "binary_data_output", default=False)
    if not head.get("outputs"):
        return [(name, binary) for name in names]
    chosen: dict[str, bool] = {}
    for output in _list(head, "outputs"):
        name = output["name"]
        if name not in names:
            raise BadInput(f"the model has no output {_say(name)}, only {names}")
        chosen[name] = _flag(_parameters(output), "binary_data", default=binary)
    return list(chosen.items())


def _flag(parameters: dict[str, Any], key: str, *, default: bool) -> bool:
    """Return a boolean parameter, or its default; raise `BadInput` if it is no boolean."""
    value = parameters.get(key, default)
    if not isinstance(value, bool):
        raise BadInput(f"{key} is {_say(value)}: send true or false")
    return value


# Replies of JSON, and routes.


def reply(data: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """Return a JSON response."""
    return Response(dumps(data), status, headers, "application/json")


def routes(name: str, infer: Any, pages: Mapping[str, Callable[[Request], Awaitable[Response]]]) -> list[Route]:
    """Return the routes of the protocol: about a server of that name and its health, and of a model and its versions.

    Args:
        name: name of the server in its metadata.
        infer: handler of inference.
        pages: end of a model's path -> the handler that describes the model there.
    """

    async def server(_: Request) -> Response:
        """Describe the server."""
        return reply({"name": name, "version": __version__, "extensions": ["binary_tensor_data"]})

    async def live(_: Request) -> Response:
        """Answer that the server is alive."""
        return reply({"live": True})

    async def ready(_: Request) -> Response:
        """Answer 200 that the server is ready, whatever models and clouds do, with the background threads that fail now."""
        return reply({"ready": True, **({"failing": names} if (names := failing()) else {})})

    found = [Route("/v2", server), Route("/v2/health/live", live), Route("/v2/health/ready", ready)]
    for base in ("/v2/models/{name}", "/v2/models/{name}/versions/{version}"):
        found += [Route(f"{base}/infer", infer, methods=["POST"]), *(Route(base + end, page) for end, page in pages.items())]
    return found
