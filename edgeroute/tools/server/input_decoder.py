"""Decoder of inputs that arrive encoded: picture and audio files, compressed tensors, and smaller numbers than the model's."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np

from edgeroute.cloud.codecs import check_sound, check_zstd, own_zstd
from edgeroute.cloud.tensor_types import DTYPES
from edgeroute.edge.input_tensors import Array, row_shape, shape_text
from edgeroute.edge.model_card import Card
from edgeroute.edge.preprocessing import MOST_PIXELS, Layouts, Preprocess, picture_for
from edgeroute.errors import BadInput
from edgeroute.system.late_imports import import_late
from edgeroute.types import TensorSpec

MOST_FILES = 1024
"""Most files in one request."""
MOST_BYTES = 1 << 28
"""Most bytes of one decoded row."""
MOST_FREE = 1 << 24
"""Most pixels of a picture for a model that takes any size."""
ENCODED = "-encoded"
"""Suffix of the model name under which a model takes only picture files, as in exported folders."""
_ZSTD = re.compile(r"application/zstd; datatype=([A-Z0-9]{1,8}); shape=([0-9]{0,9}(?:x[0-9]{1,9}){0,7})")


@dataclass(frozen=True)
class Files:
    """Input that arrived as files; each file is a row."""

    data: list[bytes]
    media: str | None
    """Media type of the files; None: not stated, read as pictures."""

    def __len__(self) -> int:
        return len(self.data)


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
        if not 0 < len(files) <= (most := MOST_FILES if self.bytes else 1):
            raise BadInput(f"{self.spec.name}: {len(files)} files came: send 1 to {most} at a time")
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
        """Stack rows along the batch axis; without such an axis return the only row; raise `BadInput` if they do not fit."""
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
        shape = tuple(map(int, match[2].split("x"))) if match[2] else ()
        if DTYPES.get(match[1]) != spec.dtype or not self._fits(shape):
            raise BadInput(
                f"{spec.name}: the model takes {shape_text(self._row)} {spec.dtype}, not {match[1]} {shape_text(shape)}"
            )
        dtype = np.dtype(spec.dtype)
        if (size := prod(shape) * dtype.itemsize) > MOST_BYTES:
            raise BadInput(f"{spec.name}: a row of {size} bytes is too large: at most {MOST_BYTES}")
        array = np.frombuffer(_unzstd(data, size), dtype.newbyteorder("<")).reshape(shape)
        if dtype.kind == "b" and (array.view(np.uint8) > 1).any():
            raise BadInput(f"{spec.name}: a BOOL is one byte, 0 or 1; there are others")
        return array.astype(dtype, copy=False)

    def _sound(self, data: bytes) -> Array:
        """Decode one row of audio from FLAC; raise `BadInput` if the model takes no audio, or another shape."""
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
    """Return the samples [n, channels] of a FLAC file, int16 or floats.

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
    """Convert float16 numbers, or bytes times `scale` plus `offset`, to the model's float type.

    Raises:
        BadInput: the scale or offset is no finite number.
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
