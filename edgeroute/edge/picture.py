"""Pictures by Pillow: decoded from JPEG, PNG or WebP, resized and cropped as a card says."""

from __future__ import annotations

import io
from typing import Any, NamedTuple

import numpy as np

from edgeroute.edge.tensors import Array, say
from edgeroute.errors import BadInput, RuntimeMissing
from edgeroute.imports import imported

FORMATS = ("JPEG", "PNG", "WEBP")
MODES = {0: "L", 1: "L", 3: "RGB", 4: "RGBA"}
"""Channels -> Pillow's mode; 0: an array without an axis for them."""
DEEP = ("I", "F")
"""Beginnings of modes of more than 8 bits a channel, which Pillow would clip."""
MOST_PIXELS = 1 << 26
"""Of a picture that is decoded, or was resized."""


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

    def __call__(self, x: Any) -> Any:
        """The picture as uint8 of its size, [height, width(, channels)]; an array that is none is returned as it is."""
        if isinstance(x, bytes | bytearray | memoryview):
            return self._array(self._fitted(self._decoded(bytes(x))))
        if hasattr(x, "getpixel"):  # a Pillow image
            return self._array(self._fitted(x))
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
        pillow = _pillow()
        try:
            image = pillow.open(io.BytesIO(data), formats=FORMATS)
            small = image.width * image.height <= MOST_PIXELS
            upright = imported("PIL.ImageOps").exif_transpose(image) if small else None  # it is decoded only here
        except Exception as e:  # Pillow's decoders raise what they find
            raise BadInput(f"{self.name}: these {len(data)} bytes are no picture that can be read ({', '.join(FORMATS)})") from e
        if upright is None:
            raise BadInput(f"{self.name}: a picture of {say((image.height, image.width))} is too large")
        return upright

    def _fitted(self, image: Any) -> Any:
        """The image in the mode and size that are wanted."""
        if image.mode.startswith(DEEP):
            raise BadInput(
                f"{self.name}: a picture of more than 8 bits a channel ({image.mode}): convert it, its scale is yours to say"
            )
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
