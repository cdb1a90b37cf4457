"""Preprocessing of the caller's inputs: pictures decoded and fitted by Pillow, axes arranged, numbers scaled and normalised."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from math import prod
from typing import Any, NamedTuple

import numpy as np

from edgeroute.edge.input_checks_and_stacking import Array, row_shape, shape_text, stack
from edgeroute.errors import BadInput
from edgeroute.system.late_imports_and_plugins import import_late, import_needed
from edgeroute.types import TensorSpec

FORMATS = ("JPEG", "PNG", "WEBP")  # formats that are decoded, by Pillow's names
MODES = {0: "L", 1: "L", 3: "RGB", 4: "RGBA"}  # number of channels -> Pillow's mode; 0: an array without an axis of channels
DEEP = ("I", "F")  # beginnings of modes of more than 8 bits a channel, whose values Pillow would clip
MOST_PIXELS = 1 << 26  # most pixels of a picture that is decoded, or was resized
MOST_SCANS = 100  # most scans of a JPEG: each of a progressive one's goes over the whole picture, and usual ones have ten
MOST_SEGMENTS = 10_000  # most segments of a JPEG, its scans included
# Beginning of a segment that states its length, or of the end; within a scan, bytes of 255 are followed by others.
_MARKER = re.compile(rb"\xff[^\x00\x01\xd0-\xd8\xff]")
_SCAN, _END = 0xDA, 0xD9


class Picture(NamedTuple):
    """Settings for the caller's pictures: the size, channels and fitting that a card states.

    Calling it decodes and fits a picture.
    """

    name: str  # name of the model's input, for messages
    height: int  # height, pixels; -1: any
    width: int  # width, pixels; -1: any
    channels: int  # number of channels; 0: the array has no axis of channels
    # Length of the shorter side, or (height, width); None: pictures of other sizes are refused.
    resize: int | tuple[int, int] | None = None
    crop: tuple[int, int] | None = None  # (height, width) that is cut out of the middle after resizing; None: nothing is
    filter: str = "bilinear"  # name of Pillow's interpolation
    most: int = MOST_PIXELS  # most pixels of a picture that is decoded

    def __call__(self, x: Any) -> Any:
        """Return the picture as uint8 [height, width(, channels)], decoded, resized and cropped as needed.

        An array of another dtype or rank is returned unchanged, for the caller to refuse.

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
        return self._array(
            self._fit(load_pillow().fromarray(np.ascontiguousarray(array[..., 0] if self.channels == 1 else array)))
        )

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
        what, pillow = f"these {len(data)} bytes", load_pillow()
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
            raise BadInput(f"{self.name}: a picture of more than 8 bits a channel ({deep}): convert it to 8 bits")
        return upright

    def _unreadable(self, what: str) -> BadInput:
        """Return a BadInput for data that are no picture."""
        return BadInput(f"{self.name}: {what} are no picture that can be read ({', '.join(FORMATS)})")

    def _fit(self, image: Any) -> Any:
        """Return the image converted, resized and cropped to the mode and size that the model takes.

        Unchanged if its size fits already, without a crop.

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
        return image.resize((width, height), getattr(load_pillow().Resampling, self.filter.upper()))

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


def load_pillow() -> Any:
    """Import and return `PIL.Image`.

    Raises:
        RuntimeMissing: Pillow is not installed.
    """
    return import_needed("PIL.Image", "Pillow, which pictures need, is not installed: pip install 'edgeroute[image]'")


class Layouts(NamedTuple):
    """Axes of the caller's array and of the tensor: HW, HWC or CHW; None: the card does not state them."""

    given: str | None = None
    tensor: str | None = None


NO_LAYOUTS = Layouts()
CHANNELS = (1, 3, 4)  # usual numbers of channels, by which a layout is guessed for messages


class Preprocess:
    """Function from the caller's inputs to the tensor: arranges the axes, then computes `(x * scale - mean) / std`.

    Args:
        accepts: the caller's arrays, with a batch axis in front.
        gives: the model's tensor.
        scale: a number.
        mean: a number, or one for each channel.
        std: a number, or one for each channel.
        layouts: of both, by which axes are transposed.
        batch: the tensor's batch axis; None: it has none.
        picture: decodes and fits the caller's pictures; None: the caller gives arrays of the accepted shape only.

    Attributes:
        axes: for each axis of the tensor the caller's axis, or None for a new axis of size 1; None: a mere reshape.
        factor, offset: `x * factor + offset` scales and normalises, in the tensor's dtype; None: nothing is computed.

    Raises:
        ValueError: the shapes do not fit each other, or the tensor's dtype is not one that scaling results in.
    """

    def __init__(
        self,
        accepts: TensorSpec,
        gives: TensorSpec,
        scale: float = 1,
        mean: Any = 0,
        std: Any = 1,
        *,
        layouts: Layouts = NO_LAYOUTS,
        batch: int | None = 0,
        picture: Picture | None = None,
    ) -> None:
        self.accepts, self.gives, self.picture, self._batch = accepts, gives, picture, batch
        source, target = accepts.shape[1:], row_shape(gives, batch)
        self.axes = None if layouts == NO_LAYOUTS and 1 in (len(source), len(target)) else match_axes(source, target, layouts)
        self._flat = target
        if self.axes is None and (target.count(-1) > 1 or not (-1 in (*source, *target) or prod(source) == prod(target))):
            raise ValueError(f"{shape_text(source)} is not known to have as many values as {shape_text(target)}")
        self.factor, self.offset = _affine(gives, scale, mean, std, _channels(gives, layouts.tensor, batch))
        self._dtype = np.dtype(gives.dtype)
        if self.factor is None and not np.can_cast(accepts.dtype, self._dtype, "same_kind"):
            raise ValueError(f"{accepts.dtype} cannot be given as {gives.dtype}")
        # dtype of pictures, whose numbers have a scale that another kind of numbers would not have; None: no picture.
        self._scaled = None if layouts.given is None else np.dtype(accepts.dtype)
        self._usual = self._fast_path()

    @property
    def fits_pictures(self) -> bool:
        """True if pictures are resized or cropped, which needs Pillow."""
        return self.picture is not None and (self.picture.resize is not None or self.picture.crop is not None)

    def _fast_path(self) -> tuple[np.dtype[Any] | None, tuple[int, ...], tuple[int, ...], tuple[int, ...] | None]:
        """Return (dtype and shape of the caller's array, the tensor's shape, transposition) for the fast path of `one`.

        There is one if all sizes are fixed, the caller's numbers are no floats, and the tensor's are; else the dtype is None.
        Transposition None: the axes stay in their order.
        """
        source, gives = self.accepts.shape[1:], self.gives.shape
        shape = gives if self._batch is None else (*gives[: self._batch], 1, *gives[self._batch + 1 :])
        fast = self.factor is not None and self.accepts.dtype[:5] != "float" and -1 not in (*source, *shape)
        order: tuple[int, ...] | None = None
        if self.axes is not None:
            sources = [i for i in self.axes if i is not None]
            order = tuple(sources + [i for i in range(len(source)) if i not in sources])
        return np.dtype(self.accepts.dtype) if fast else None, source, shape, None if order == (*range(len(source)),) else order

    def one(self, x: Any) -> Array:
        """Return the tensor of one array, by a fast path if its dtype and shape are exactly those accepted.

        Raises as `__call__`, to which other inputs go.
        """
        dtype, shape, tensor, order = self._usual
        if type(x) is not np.ndarray or x.dtype is not dtype or x.shape != shape:
            return self([x])
        if order is not None:
            x = np.ascontiguousarray(x.transpose(order))
        out: Array = x.astype(self._dtype).reshape(tensor)  # the fast path
        out *= self.factor
        out += self.offset
        return out

    def __call__(self, inputs: list[Any]) -> Array:
        """Return one tensor of the model's dtype for n inputs: copies, decodes pictures, arranges axes and scales.

        Raises:
            BadInput: as `stack`, or a picture cannot be read.
            RuntimeMissing: Pillow is needed, and is not installed.
        """
        if self.picture is not None:
            inputs = [self.picture(x) for x in inputs]
        if self._scaled is not None:
            for x in inputs:
                self._check_scale(x)
        if self._batch is None and len(inputs) > 1:
            raise BadInput(f"{self.gives.name}: no batch axis for {len(inputs)} inputs: give them one at a time")
        out: Array = self._arrange(stack(inputs, self.accepts)).astype(self._dtype)
        if self.factor is not None:
            out *= self.factor
            out += self.offset
        return out

    def _check_scale(self, x: Any) -> None:
        """Refuse integers where floats are expected, as their scale is unknown, and booleans for numbers or the reverse.

        Objects without a dtype, and all floats, pass.

        Raises:
            BadInput: the array is refused.
        """
        dtype, wanted = getattr(x, "dtype", None), self._scaled
        if not isinstance(dtype, np.dtype) or wanted is None or dtype.kind not in "biu":
            return
        if wanted.kind == "f" or (dtype.kind == "b") != (wanted.kind == "b"):
            raise BadInput(f"{self.gives.name}: expected {wanted}, got {dtype}; convert it, since only you know its scale")

    def _arrange(self, x: Array) -> Array:
        """Transpose or reshape an array [n, *accepts] to the tensor's axes.

        Raises:
            BadInput: it cannot be reshaped.
        """
        batch, axes = self._batch, self.axes
        if axes is None:
            try:
                x = x.reshape(len(x), *self._flat)
            except ValueError:
                raise BadInput(f"{self.gives.name}: {shape_text(x.shape[1:])} cannot become {shape_text(self._flat)}") from None
        else:
            sources = [i + 1 for i in axes if i is not None]
            x = x.transpose(0, *sources, *(i for i in range(1, x.ndim) if i not in sources))
            sizes = iter(x.shape[1:])
            x = x.reshape(len(x), *(1 if i is None else next(sizes) for i in axes))
        return x[0] if batch is None else np.moveaxis(x, 0, batch)


def match_axes(source: Sequence[int], target: Sequence[int], layouts: Layouts) -> tuple[int | None, ...]:
    """Return for each axis of the tensor the caller's axis, or None for an axis of size 1 that the caller's array lacks.

    Raises:
        ValueError: the layouts or sizes do not fit each other; or, without layouts, the order of the axes is ambiguous.
    """
    if layouts == NO_LAYOUTS:
        return _same_order(source, target)
    axes, tensor = _letters(layouts.given, source, "preprocess"), _letters(layouts.tensor, target, "input")
    for letter in dict.fromkeys(axes + tensor):
        a = source[axes.index(letter)] if letter in axes else 1
        b = target[tensor.index(letter)] if letter in tensor else 1
        if a != b and -1 not in (a, b):
            raise ValueError(
                f"{axes} {shape_text(source)} cannot become {tensor} {shape_text(target)}: they differ in {letter}, {a} and {b}"
            )
    return tuple(axes.index(letter) if letter in axes else None for letter in tensor)


def _letters(layout: str | None, shape: Sequence[int], where: str) -> str:
    """Return the letters of a layout, HW by default for two axes.

    Raises:
        ValueError: the layout is missing, or does not fit the shape.
    """
    letters = layout or ("HW" if len(shape) == 2 else "")  # noqa: PLR2004 - height and width
    if not letters:
        raise ValueError(f'{where}: shape {shape_text(shape)} needs "layout": "HWC" or "layout": "CHW" beside it')
    if len(letters) != len(shape):
        raise ValueError(f"{where}: layout {letters} has not as many axes as {shape_text(shape)} without its batch axis")
    return letters


def _same_order(source: Sequence[int], target: Sequence[int]) -> tuple[int | None, ...]:
    """Return the axes without layouts: the same axes in the same order, except for some of size 1; None: a new one of size 1.

    Raises:
        ValueError: the order is ambiguous.
    """
    if len(source) == len(target) and all(a == b or -1 in (a, b) for a, b in zip(source, target, strict=True)):
        return tuple(range(len(source)))
    long = [i for i, size in enumerate(source) if size != 1]
    left = iter(long)
    axes = tuple(None if size == 1 else next(left, -1) for size in target)
    matched = [(i, size) for i, size in zip(axes, target, strict=True) if i is not None]
    if next(left, None) is not None or any(i < 0 or (source[i] != size and -1 not in (source[i], size)) for i, size in matched):
        a, b = ("HWC" if shape[-1] in CHANNELS else "CHW" for shape in (source, target))
        layouts = f'write "layout": "{a}" into preprocess and "layout": "{b}" into input'
        raise ValueError(
            f"a reshape of {shape_text(source)} to {shape_text(target)} would mix places and colours up: {layouts}, if it is so"
        )
    return axes


def _channels(gives: TensorSpec, layout: str | None, batch: int | None) -> int | None:
    """Return the whole tensor's axis of channels: by one input's layout, else the first that does not count inputs; or None."""
    axis = layout.find("C") if layout is not None else 0
    axis += batch is not None and axis >= batch
    return axis if 0 <= axis < len(gives.shape) and layout != "HW" else None


def _affine(gives: TensorSpec, scale: float, mean: Any, std: Any, axis: int | None) -> tuple[Array | None, Array | None]:
    """Return (factor, offset) in the tensor's dtype; (None, None) for a tensor of integers, which may not be scaled.

    Raises:
        ValueError: mean or std does not fit the channels, or a result is too large.
    """
    rank, dtype = len(gives.shape), np.dtype(gives.dtype)

    def spread(name: str, value: Any) -> Array:
        """Return a scalar, or the values for each channel along its axis; raise ValueError for another number of values."""
        array = np.asarray(value, np.float64)
        if array.size == 1:
            return array.reshape(())
        if axis is None or gives.shape[axis] not in (-1, len(array)):
            raise ValueError(
                f"{name} has {len(array)} numbers, and {shape_text(gives.shape)} not so many channels: write one number, or "
                '"layout" into input, which says where the channels are'
            )
        return array.reshape((-1,) + (1,) * (rank - 1 - axis))

    with np.errstate(all="ignore"):
        factor, offset = scale / spread("std", std), -spread("mean", mean) / spread("std", std)
        if not np.can_cast(np.float32, dtype, "same_kind"):
            if (factor == 1).all() and (offset == 0).all():
                return None, None
            raise ValueError(f"scale, mean and std: preprocessing gives floats, the input is {gives.dtype}")
        terms = np.asarray(factor, dtype), np.asarray(offset, dtype)
    if not all(np.isfinite(array).all() for array in terms):
        raise ValueError(f"scale, mean and std are too large for {gives.dtype}")
    return terms


# Preprocessing by a model card.


def preprocess_of(gives: TensorSpec, layout: str | None, batch: int | None, data: dict[str, Any]) -> Preprocess:
    """Build the preprocessing to a tensor from its JSON."""
    accepts = TensorSpec(gives.name, data["dtype"], (-1, *map(int, data["shape"])))
    layouts = Layouts(data.get("layout"), layout)
    return Preprocess(
        accepts, gives, float(data.get("scale", 1)), data.get("mean", 0), data.get("std", 1),
        layouts=layouts, batch=batch, picture=_picture_settings(accepts, layouts.given, data),
    )  # fmt: skip


def _picture_settings(accepts: TensorSpec, layout: str | None, data: dict[str, Any]) -> Picture | None:
    """Return how the caller's pictures are decoded, resized and cropped, by the card's `preprocess`; None: it takes none.

    Raises:
        ValueError: resize or crop does not fit the shape.
    """
    shape = accepts.shape[1:]
    layout = layout or ("HW" if len(shape) == 2 else None)  # noqa: PLR2004 - height and width
    resize, crop = data.get("resize"), data.get("crop")
    fitted = resize is not None or crop is not None
    channels = shape[2] if layout == "HWC" and len(shape) == 3 else 0  # noqa: PLR2004 - with channels
    fits = accepts.dtype == "uint8" and layout in {"HW", "HWC"} and len(shape) == len(layout) and channels in (0, 1, 3, 4)
    if not fits:
        if fitted:
            raise ValueError('preprocess: resize and crop need dtype "uint8" and layout "HW", or "HWC" of 1, 3 or 4 channels')
        return None
    to = resize if resize is None or isinstance(resize, int) else (int(resize[0]), int(resize[1]))
    cut = crop if crop is None else (int(crop), int(crop)) if not isinstance(crop, list) else (int(crop[0]), int(crop[1]))
    size = cut if cut is not None else to if isinstance(to, tuple) else None
    if size is not None and any(a not in (-1, b) for a, b in zip(shape[:2], size, strict=True)):
        raise ValueError(f"preprocess: {'crop' if cut else 'resize'} gives {list(size)}, not the shape {list(shape)}")
    if fitted and size is None and shape[:2] != (-1, -1):
        raise ValueError('preprocess: "resize" to one length keeps proportions: write [height, width], or "crop" as well')
    return Picture(accepts.name, shape[0], shape[1], channels, to, cut, data.get("filter", "bilinear"))
