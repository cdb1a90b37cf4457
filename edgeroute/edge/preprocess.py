"""Preprocessing of the caller's inputs to the model's tensor: axes arranged, numbers scaled and normalised."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any, NamedTuple

import numpy as np

from edgeroute.edge.picture import Picture
from edgeroute.edge.tensors import Array, row_shape, shape_text, stack
from edgeroute.errors import BadInput
from edgeroute.types import TensorSpec


class Layouts(NamedTuple):
    """Axes of the caller's array and of the tensor: HW, HWC or CHW; None: the card does not state them."""

    given: str | None = None
    tensor: str | None = None


NO_LAYOUTS = Layouts()
CHANNELS = (1, 3, 4)
"""Usual numbers of channels, by which a layout is guessed for messages."""


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
        self._scaled = None if layouts.given is None else np.dtype(accepts.dtype)
        """dtype of pictures, whose numbers have a scale that another kind of numbers would not have; None: no picture."""
        self._usual = self._fast_path()

    @property
    def fits_pictures(self) -> bool:
        """True if pictures are resized or cropped, which needs Pillow."""
        return self.picture is not None and (self.picture.resize is not None or self.picture.crop is not None)

    def _fast_path(self) -> tuple[np.dtype[Any] | None, tuple[int, ...], tuple[int, ...], tuple[int, ...] | None]:
        """Return (dtype and shape of the caller's array, the tensor's shape, transposition) for the fast path of `one`.

        The dtype is None if there is no fast path.
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
        """Return the tensor of one array, by a fast path if its dtype and shape are exactly those accepted."""
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
            raise BadInput(
                f"{self.gives.name}: it has no batch axis, and there are {len(inputs)} inputs: give them one at a time"
            )
        out: Array = self._arrange(stack(inputs, self.accepts)).astype(self._dtype)
        if self.factor is not None:
            out *= self.factor
            out += self.offset
        return out

    def _check_scale(self, x: Any) -> None:
        """Refuse pixels of 0 to 255 where floats of 0 to 1 are expected, and booleans for either.

        Raises:
            BadInput: the array has another kind of numbers.
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
    given, tensor = _letters(layouts.given, source, "preprocess"), _letters(layouts.tensor, target, "input")
    for letter in dict.fromkeys(given + tensor):
        a = source[given.index(letter)] if letter in given else 1
        b = target[tensor.index(letter)] if letter in tensor else 1
        if a != b and -1 not in (a, b):
            raise ValueError(
                f"{given} {shape_text(source)} cannot become {tensor} {shape_text(target)}: they differ in {letter}, {a} and {b}"
            )
    return tuple(given.index(letter) if letter in given else None for letter in tensor)


def _letters(layout: str | None, shape: Sequence[int], where: str) -> str:
    """Return the letters of a layout, HW by default for two axes.

    Raises:
        ValueError: the layout is missing, or does not fit the shape.
    """
    letters = layout or ("HW" if len(shape) == 2 else "")  # noqa: PLR2004 - height and width
    if not letters:
        raise ValueError(f'{where}: shape {shape_text(shape)} needs "layout": "HWC" or "layout": "CHW" beside it')
    if len(letters) != len(shape):
        raise ValueError(
            f"{where}: layout {letters} and shape {shape_text(shape)}, without its batch axis, differ in the number of axes"
        )
    return letters


def _same_order(source: Sequence[int], target: Sequence[int]) -> tuple[int | None, ...]:
    """Return the axes without layouts: the same axes in the same order, except for some of size 1.

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
    """Return the tensor's axis of channels: by its layout, else the first that does not count the inputs; None: there is none."""
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
        """Return a scalar, or the values for each channel along its axis."""
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
