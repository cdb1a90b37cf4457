"""Pictures, by Pillow: decoded from JPEG, PNG or WebP, turned upright, resized and cropped as a card says."""

from __future__ import annotations

import io
import re
from typing import Any, NamedTuple

import numpy as np

from edgeroute.edge.tensors import Array, shape_text
from edgeroute.errors import BadInput, RuntimeMissing
from edgeroute.system.imports import import_late
from edgeroute.types import TensorSpec

FORMATS = ("JPEG", "PNG", "WEBP")
"""Formats that are decoded, by Pillow's names."""
MODES = {0: "L", 1: "L", 3: "RGB", 4: "RGBA"}
"""Number of channels -> Pillow's mode; 0: an array without an axis of channels."""
DEEP = ("I", "F")
"""Beginnings of modes of more than 8 bits a channel, whose values Pillow would clip."""
MOST_PIXELS = 1 << 26
"""Most pixels of a picture that is decoded, or was resized."""
MOST_SCANS = 100
"""Most scans of a JPEG: each of a progressive one's goes over the whole picture, and usual ones have ten."""
MOST_SEGMENTS = 10_000
"""Most segments of a JPEG, its scans included."""
_MARKER = re.compile(rb"\xff[^\x00\x01\xd0-\xd8\xff]")
"""Beginning of a segment that states its length, or of the end; within a scan, bytes of 255 are followed by others."""
_SCAN, _END = 0xDA, 0xD9


class Picture(NamedTuple):
    """Settings for the caller's pictures: the size, channels and fitting that a card states.

    Calling it decodes and fits a picture.
    """

    name: str
    """Name of the model's input, for messages."""
    height: int
    """Height, pixels; -1: any."""
    width: int
    """Width, pixels; -1: any."""
    channels: int
    """Number of channels; 0: the array has no axis of channels."""
    resize: int | tuple[int, int] | None = None
    """Length of the shorter side, or (height, width); None: pictures of other sizes are refused."""
    crop: tuple[int, int] | None = None
    """(height, width) that is cut out of the middle after resizing; None: nothing is."""
    filter: str = "bilinear"
    """Name of Pillow's interpolation."""
    most: int = MOST_PIXELS
    """Most pixels of a picture that is decoded."""

    def __call__(self, x: Any) -> Any:
        """Return the picture as uint8 [height, width(, channels)], decoded, resized and cropped as needed.

        Args:
            x: the bytes of a JPEG, PNG or WebP, a Pillow image, or an array of pixels; anything else is returned as the same
                object.

        Raises:
            BadInput: it cannot be decoded, is too large, or has another size and the card does not resize.
            RuntimeMissing: Pillow is needed, and is not installed.
        """
        if isinstance(x, bytes | bytearray | memoryview):
            return self._array(self._fit(self._decode(bytes(x))))
        if hasattr(x, "getpixel"):  # a Pillow image
            return self._array(self._fit(self._turn_upright(x, "this image")))
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
            raise BadInput(f"{self.name}: the picture is empty, {shape_text(array.shape)}")
        return self._array(self._fit(_pillow().fromarray(np.ascontiguousarray(array[..., 0] if self.channels == 1 else array))))

    def _fits(self, height: int, width: int) -> bool:
        """Return True if this is the size that the model takes."""
        return self.height in (-1, height) and self.width in (-1, width)

    def _other_size(self, height: int, width: int) -> BadInput:
        """Return a BadInput for a picture of another size."""
        return BadInput(
            f"{self.name}: expected a picture {shape_text((self.height, self.width))}, got {shape_text((height, width))}; "
            'the card can have others fitted, with "resize" or "crop" in preprocess'
        )

    def _decode(self, data: bytes) -> Any:
        """Return the upright Pillow image of a file's bytes.

        Raises:
            BadInput: it cannot be read, is too large, or takes too long.
        """
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
            raise BadInput(f"{self.name}: a picture of {shape_text((image.height, image.width))} is too large")
        return self._turn_upright(image, what)

    def _turn_upright(self, image: Any, what: str) -> Any:
        """Decode an image, and return it turned as its file's orientation says: a camera's picture is often on its side.

        Raises:
            BadInput: it cannot be read, or has more than 8 bits a channel.
        """
        deep = _deep_mode(image)  # readable only before it is decoded
        try:
            upright = import_late("PIL.ImageOps").exif_transpose(image)
        except Exception as e:  # likewise
            raise self._unreadable(what) from e
        if deep:
            raise BadInput(
                f"{self.name}: a picture of more than 8 bits a channel ({deep}): convert it to 8 bits, as only you know its scale"
            )
        return upright

    def _unreadable(self, what: str) -> BadInput:
        """Return a BadInput for data that are no picture."""
        return BadInput(f"{self.name}: {what} are no picture that can be read ({', '.join(FORMATS)})")

    def _fit(self, image: Any) -> Any:
        """Return the image converted, resized and cropped to the mode and size that the model takes.

        Raises:
            BadInput: it has another size even so.
        """
        mode = MODES[self.channels]
        image = image if image.mode == mode else image.convert(mode)
        if self._fits(image.height, image.width):
            return image
        if self.resize is not None:
            image = self._resize(image, self.resize)
        if self.crop is not None:
            image = self._crop(image, *self.crop)
        if not self._fits(image.height, image.width):
            raise self._other_size(image.height, image.width)
        return image

    def _resize(self, image: Any, to: int | tuple[int, int]) -> Any:
        """Return the image resized to (height, width), or in proportion to a length of its shorter side.

        Raises:
            BadInput: the result would be too large.
        """
        width, height = image.size
        if isinstance(to, tuple):
            height, width = to
        elif width <= height:
            width, height = to, max(1, to * height // width)
        else:
            width, height = max(1, to * width // height), to
        if width * height > MOST_PIXELS:
            sizes = f"{shape_text((image.height, image.width))} would be resized to {shape_text((height, width))}"
            raise BadInput(f"{self.name}: a picture of {sizes}, which is too large")
        return image.resize((width, height), getattr(_pillow().Resampling, self.filter.upper()))

    def _crop(self, image: Any, height: int, width: int) -> Any:
        """Return the middle of the image, of this height and width.

        Raises:
            BadInput: the image is smaller.
        """
        if image.height < height or image.width < width:
            raise BadInput(
                f"{self.name}: {shape_text((height, width))} cannot be cut out of "
                f"a picture of {shape_text((image.height, image.width))}"
            )
        top, left = round((image.height - height) / 2), round((image.width - width) / 2)
        return image.crop((left, top, left + width, top + height))

    def _array(self, image: Any) -> Array:
        """Return the image as uint8 [height, width(, channels)]."""
        array: Array = np.asarray(image)
        return array[..., None] if self.channels == 1 and array.ndim == 2 else array  # noqa: PLR2004 - grey


def _scans(data: bytes) -> float:
    """Return the number of scans of a JPEG, up to one more than `MOST_SCANS`; inf: it has too many segments."""
    position = scans = 0
    for _ in range(MOST_SEGMENTS):
        marker = _MARKER.search(data, position)
        if marker is None or data[marker.end() - 1] == _END:
            return scans
        scans += data[marker.end() - 1] == _SCAN
        if scans > MOST_SCANS:
            return scans
        position = marker.end() + int.from_bytes(data[marker.end() : marker.end() + 2], "big")
    return float("inf")


def picture_for(spec: TensorSpec, *, resize: bool) -> tuple[Picture, str] | None:
    """Return (settings, layout HW, HWC or CHW) of the pictures for a tensor [n, ...] of this shape, where no card states them.

    None: the shape is none of a picture, or its axis of channels is ambiguous.

    Args:
        spec: of the tensor.
        resize: True if pictures of other sizes are resized.
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


def _deep_mode(image: Any) -> str:
    """Return the mode of an image that has more than 8 bits a channel, which Pillow would clip or scale; empty: it has 8.

    The image must not be decoded yet.
    """
    if image.mode.startswith(DEEP):
        return str(image.mode)
    raw = [str(tile[3][0] if isinstance(tile[3], tuple) else tile[3]) for tile in getattr(image, "tile", ()) if tile[3]]
    return next((mode for mode in raw if ";16" in mode), "")


def _pillow() -> Any:
    """Import and return `PIL.Image`.

    Raises:
        RuntimeMissing: Pillow is not installed.
    """
    try:
        return import_late("PIL.Image")
    except ImportError as e:
        raise RuntimeMissing("Pillow, which pictures need, is not installed: pip install 'edgeroute[image]'") from e


def check_pillow() -> None:
    """Import Pillow, to fail early if it is missing.

    Raises:
        RuntimeMissing: Pillow is not installed.
    """
    _pillow()
