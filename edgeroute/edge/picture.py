"""Pictures by Pillow: decoded from JPEG, PNG or WebP, resized and cropped as a card says."""

from __future__ import annotations

import io
import re
from typing import Any, NamedTuple

import numpy as np

from edgeroute.edge.tensors import Array, say
from edgeroute.errors import BadInput, RuntimeMissing
from edgeroute.system.imports import imported
from edgeroute.types import TensorSpec

FORMATS = ("JPEG", "PNG", "WEBP")
MODES = {0: "L", 1: "L", 3: "RGB", 4: "RGBA"}
"""Channels -> Pillow's mode; 0: an array without an axis for them."""
DEEP = ("I", "F")
"""Beginnings of modes of more than 8 bits a channel, which Pillow would clip."""
MOST_PIXELS = 1 << 26
"""Of a picture that is decoded, or was resized."""
MOST_SCANS = 100
"""Of a JPEG: each of a progressive one's goes over the whole picture, and usual ones have ten."""
MOST_SEGMENTS = 10_000
"""Of a JPEG, its scans among them."""
_MARKER = re.compile(rb"\xff[^\x00\x01\xd0-\xd8\xff]")
"""The beginning of a segment that says its length, or of the end; within a scan bytes of 255 are followed by others."""
_SCAN, _END = 0xDA, 0xD9


class Picture(NamedTuple):
    """What a card says of the caller's picture."""

    name: str
    """Of the model's input, for messages."""
    height: int
    """-1: any, as for the width."""
    width: int
    channels: int
    """0: the array has no axis for them."""
    resize: int | tuple[int, int] | None = None
    """Length of the shorter side, or height and width; None: other sizes are refused."""
    crop: tuple[int, int] | None = None
    filter: str = "bilinear"
    most: int = MOST_PIXELS
    """Pixels of a picture that is decoded."""

    def __call__(self, x: Any) -> Any:
        """The picture as uint8 of its size, [height, width(, channels)]; an array that is none is returned as it is."""
        if isinstance(x, bytes | bytearray | memoryview):
            return self._array(self._fitted(self._decoded(bytes(x))))
        if hasattr(x, "getpixel"):  # a Pillow image
            return self._array(self._fitted(self._upright(x, "this image")))
        if not isinstance(x, np.ndarray):
            return x
        array: Array = x
        rank = 3 if self.channels else 2
        if array.ndim == rank + 1 and array.shape[0] == 1:
            array = array[0]
        if array.dtype != np.uint8 or array.ndim != rank or array.shape[2:] != ((self.channels,) if self.channels else ()):
            return x
        if self._fits(array.shape[0], array.shape[1]):
            return array
        if self.resize is None and self.crop is None:
            raise self._other_size(array.shape[0], array.shape[1])
        if 0 in array.shape:
            raise BadInput(f"{self.name}: the picture is empty, {say(array.shape)}")
        return self._array(
            self._fitted(_pillow().fromarray(np.ascontiguousarray(array[..., 0] if self.channels == 1 else array)))
        )

    def _fits(self, height: int, width: int) -> bool:
        return self.height in (-1, height) and self.width in (-1, width)

    def _other_size(self, height: int, width: int) -> BadInput:
        return BadInput(
            f"{self.name}: expected a picture {say((self.height, self.width))}, got {say((height, width))}; the card can have "
            'others fitted, with "resize" or "crop" in preprocess'
        )

    def _decoded(self, data: bytes) -> Any:
        """The picture in a file, the right way up."""
        what, pillow = f"these {len(data)} bytes", _pillow()
        if data[:2] == b"\xff\xd8" and _scans(data) > MOST_SCANS:
            raise BadInput(f"{self.name}: a JPEG of more than {MOST_SCANS} scans, which takes too long")
        try:
            image = pillow.open(io.BytesIO(data), formats=FORMATS)
        except Exception as e:  # Pillow's decoders raise what they find
            if isinstance(e, pillow.DecompressionBombError | pillow.DecompressionBombWarning):
                raise BadInput(f"{self.name}: a picture of more than {MOST_PIXELS} pixels is too large") from e
            raise self._unreadable(what) from e
        if image.width * image.height > self.most:
            raise BadInput(f"{self.name}: a picture of {say((image.height, image.width))} is too large")
        return self._upright(image, what)

    def _upright(self, image: Any, what: str) -> Any:
        """The image decoded, and turned as its file says: a camera's is often on its side."""
        deep = _deep(image)  # known only until it is decoded
        try:
            upright = imported("PIL.ImageOps").exif_transpose(image)
        except Exception as e:  # likewise
            raise self._unreadable(what) from e
        if deep:
            raise BadInput(
                f"{self.name}: a picture of more than 8 bits a channel ({deep}): convert it, its scale is yours to say"
            )
        return upright

    def _unreadable(self, what: str) -> BadInput:
        return BadInput(f"{self.name}: {what} are no picture that can be read ({', '.join(FORMATS)})")

    def _fitted(self, image: Any) -> Any:
        """The image in the mode and size that are wanted."""
        mode = MODES[self.channels]
        image = image if image.mode == mode else image.convert(mode)
        if self._fits(image.height, image.width):
            return image
        if self.resize is not None:
            image = self._resized(image, self.resize)
        if self.crop is not None:
            image = self._cropped(image, *self.crop)
        if not self._fits(image.height, image.width):
            raise self._other_size(image.height, image.width)
        return image

    def _resized(self, image: Any, to: int | tuple[int, int]) -> Any:
        width, height = image.size
        if isinstance(to, tuple):
            height, width = to
        elif width <= height:
            width, height = to, max(1, to * height // width)
        else:
            width, height = max(1, to * width // height), to
        if width * height > MOST_PIXELS:
            sizes = f"{say((image.height, image.width))} would be resized to {say((height, width))}"
            raise BadInput(f"{self.name}: a picture of {sizes}, which is too large")
        return image.resize((width, height), getattr(_pillow().Resampling, self.filter.upper()))

    def _cropped(self, image: Any, height: int, width: int) -> Any:
        if image.height < height or image.width < width:
            raise BadInput(
                f"{self.name}: {say((height, width))} cannot be cut out of a picture of {say((image.height, image.width))}"
            )
        top, left = round((image.height - height) / 2), round((image.width - width) / 2)
        return image.crop((left, top, left + width, top + height))

    def _array(self, image: Any) -> Array:
        array: Array = np.asarray(image)
        return array[..., None] if self.channels == 1 and array.ndim == 2 else array  # noqa: PLR2004 - grey


def _scans(data: bytes) -> float:
    """Scans of a JPEG, as far as more than `MOST_SCANS` are told apart; what follows its end is none of it."""
    at = scans = 0
    for _ in range(MOST_SEGMENTS):
        found = _MARKER.search(data, at)
        if found is None or data[found.end() - 1] == _END:
            return scans
        scans += data[found.end() - 1] == _SCAN
        if scans > MOST_SCANS:
            return scans
        at = found.end() + int.from_bytes(data[found.end() : found.end() + 2], "big")
    return float("inf")


def shaped(spec: TensorSpec, *, resize: bool) -> tuple[Picture, str] | None:
    """The picture that a tensor [n, ...] of this shape is of, where no card says it, and its layout: HW, HWC or CHW.

    None: its shape is none of a picture, or leaves open where the channels are. `resize`: pictures of other sizes are fitted.
    """
    row = spec.shape[1:]
    if len(row) == 2:  # noqa: PLR2004 - height and width
        layout, (height, width), channels = "HW", row, 0
    elif len(row) == 3 and (row[0] in MODES) != (row[2] in MODES):  # noqa: PLR2004 - with channels
        layout = "HWC" if row[2] in MODES else "CHW"
        height, width, channels = row if layout == "HWC" else (*row[1:], row[0])
    else:
        return None
    to = (height, width) if resize and -1 not in (height, width) else None
    return Picture(spec.name, height, width, channels, to), layout


def _deep(image: Any) -> str:
    """How an image that is not decoded yet has more than 8 bits a channel, which Pillow clips or scales; empty: it has not."""
    if image.mode.startswith(DEEP):
        return str(image.mode)
    raw = [str(tile[3][0] if isinstance(tile[3], tuple) else tile[3]) for tile in getattr(image, "tile", ()) if tile[3]]
    return next((mode for mode in raw if ";16" in mode), "")


def _pillow() -> Any:
    try:
        return imported("PIL.Image")
    except ImportError as e:
        raise RuntimeMissing("Pillow, which pictures need, is not installed: pip install 'edgeroute[image]'") from e


def check_installed() -> None:
    """Imports Pillow.

    Raises:
        RuntimeMissing: it is not installed.
    """
    _pillow()
