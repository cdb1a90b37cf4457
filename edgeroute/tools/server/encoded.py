"""Encoded inputs: files of pictures and of audio, compressed tensors and smaller numbers -> the model's tensors."""

from __future__ import annotations

import re
from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np

from edgeroute.cloud.codecs import unflac, unzstd
from edgeroute.cloud.datatypes import DTYPES
from edgeroute.edge.card import Card
from edgeroute.edge.picture import MOST_PIXELS, picture_for
from edgeroute.edge.preprocess import Layouts, Preprocess
from edgeroute.edge.tensors import Array, row_shape, shape_text
from edgeroute.errors import BadInput
from edgeroute.types import TensorSpec

MOST_FILES = 1024
"""Files of one request."""
MOST_BYTES = 1 << 28
"""Of one row, decoded."""
MOST_FREE = 1 << 24
"""Pixels of a picture for a model that takes any size."""
ENCODED = "-encoded"
"""What ends the name by which a model takes files of pictures alone, as exports have it."""
_ZSTD = re.compile(r"application/zstd; datatype=([A-Z0-9]{1,8}); shape=([0-9]{0,9}(?:x[0-9]{1,9}){0,7})")


@dataclass(frozen=True)
class Files:
    """An input that came as files, each of which is a row."""

    data: list[bytes]
    media: str | None
    """What they are; None: pictures, as far as they are some."""

    def __len__(self) -> int:
        return len(self.data)


class Decoder:
    """How files become the tensor of one input.

    Args:
        spec: of the model's input.
        card: of the model.

    Attributes:
        bytes: of a row once it is decoded; 0: it depends on what comes.
        pictures: makes the tensor of files of pictures; None: nothing says how.
        takes: the kinds that it decodes, for messages.
    """

    def __init__(self, spec: TensorSpec, card: Card) -> None:
        self.spec = spec
        told = card.of(spec.name)
        self.batch = 0 if told is None else told.batch
        self._row = row_shape(spec, self.batch)
        self.bytes = 0 if -1 in self._row else prod(self._row) * np.dtype(spec.dtype).itemsize
        self.pictures = _pictures(spec, None if told is None else told.preprocess, self.batch, fixed=self.bytes > 0)
        self.takes = ["zstd", *(["pictures"] if self.pictures is not None else []), *(["flac"] if self._sounds() else [])]

    def _sounds(self) -> bool:
        return (self.spec.dtype == "int16" or self.spec.dtype.startswith("float")) and len(self._row) in (1, 2)

    def __call__(self, files: Files) -> Array:
        """The tensor.

        Raises:
            BadInput: they are no such files, or not of this model; every size is checked before anything is decoded.
            RuntimeMissing: what reads them is not installed.
        """
        if not 0 < len(files) <= (most := MOST_FILES if self.bytes else 1):
            raise BadInput(f"{self.spec.name}: {len(files)} files came: send 1 to {most} at a time")
        media = files.media or ""
        if media.startswith("application/zstd"):
            return self._stacked([self._tensor(one, media) for one in files.data])
        if media == "audio/flac":
            return self._stacked([self._sound(one) for one in files.data])
        if self.pictures is None or not media.startswith(("image/", "application/octet-stream") if media else ""):
            what = repr(media[:40] or "pictures")
            raise BadInput(f"{self.spec.name}: the model takes files of {', '.join(self.takes)}, and not {what}")
        return self.pictures(list(files.data))

    def _stacked(self, rows: list[Array]) -> Array:
        if len({row.shape for row in rows}) > 1:
            raise BadInput(f"{self.spec.name}: the rows of one request differ in shape: send one at a time")
        if self.batch is None:
            if len(rows) > 1:
                raise BadInput(f"{self.spec.name}: it has no batch axis, and there are {len(rows)} files: send one at a time")
            return rows[0]
        return np.stack(rows, axis=self.batch)

    def _fits(self, shape: Sequence[int]) -> bool:
        return len(shape) == len(self._row) and all(want in (-1, size) for want, size in zip(self._row, shape, strict=True))

    def _tensor(self, data: bytes, media: str) -> Array:
        """A row compressed by zstd."""
        found, spec = _ZSTD.fullmatch(media), self.spec
        if found is None:
            example = "application/zstd; datatype=FP32; shape=3x224x224"
            raise BadInput(f"{spec.name}: {media[:80]!r} does not say what is compressed: write it as in {example!r}")
        shape = tuple(map(int, found[2].split("x"))) if found[2] else ()
        if DTYPES.get(found[1]) != spec.dtype or not self._fits(shape):
            raise BadInput(
                f"{spec.name}: the model takes {shape_text(self._row)} {spec.dtype}, not {found[1]} {shape_text(shape)}"
            )
        dtype = np.dtype(spec.dtype)
        if (size := prod(shape) * dtype.itemsize) > MOST_BYTES:
            raise BadInput(f"{spec.name}: a row of {size} bytes is too large: at most {MOST_BYTES}")
        array = np.frombuffer(unzstd(data, size), dtype.newbyteorder("<")).reshape(shape)
        if dtype.kind == "b" and (array.view(np.uint8) > 1).any():
            raise BadInput(f"{spec.name}: a BOOL is one byte, 0 or 1; there are others")
        return array.astype(dtype, copy=False)

    def _sound(self, data: bytes) -> Array:
        """A row of audio."""
        spec = self.spec
        if not self._sounds():
            raise BadInput(f"{spec.name}: the model takes no audio: {shape_text(self._row)} {spec.dtype}")
        found = unflac(data, "int16" if spec.dtype == "int16" else "float32", MOST_BYTES // 8)
        samples = found[:, 0] if len(self._row) == 1 and found.shape[1] == 1 else found
        if not self._fits(samples.shape):
            raise BadInput(f"{spec.name}: the model takes {shape_text(self._row)} samples, and not {shape_text(samples.shape)}")
        whole: Array = samples.astype(spec.dtype, copy=False)
        return whole


def widened(array: Array, spec: TensorSpec, scale: Any, offset: Any) -> Array:
    """Smaller numbers as the model's floats: bytes with a scale, or float16.

    Raises:
        BadInput: the scale or offset is none.
    """
    if array.dtype == np.float16:
        return array.astype(np.dtype(spec.dtype))
    if not all(isinstance(one, int | float) and not isinstance(one, bool) and np.isfinite(one) for one in (scale, offset)):
        raise BadInput(f'{spec.name}: UINT8 for a model of floats needs "parameters": {{"scale": ..., "offset": ...}}')
    made: Array = (array.astype(np.float64) * scale + offset).astype(spec.dtype)
    return made


def _pictures(spec: TensorSpec, prepare: Preprocess | None, batch: int | None, *, fixed: bool) -> Preprocess | None:
    """What makes the tensor of pictures; None: nothing says how. `fixed`: all have one size, however large they come."""
    if prepare is None:
        found = picture_for(spec, resize=False) if spec.dtype == "uint8" and batch == 0 else None
        if found is None:
            return None
        picture, layout = found
        channels = (picture.channels,) if picture.channels else ()
        accepts = TensorSpec(spec.name, "uint8", (-1, picture.height, picture.width, *channels))
        prepare = Preprocess(accepts, spec, layouts=Layouts("HWC" if channels else "HW", layout), picture=picture)
    if prepare.picture is None:
        return None
    made = copy(prepare)
    made.picture = prepare.picture._replace(most=MOST_PIXELS if fixed else MOST_FREE)
    return made
