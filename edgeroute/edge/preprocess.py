"""Preprocessing: the caller's input -> the model's tensor, its axes arranged, scaled and normalised."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any, NamedTuple

import numpy as np

from edgeroute.edge.picture import Picture
from edgeroute.edge.tensors import Array, row_shape, say, stack
from edgeroute.errors import BadInput
from edgeroute.types import TensorSpec


class Layouts(NamedTuple):
    """Axes of the caller's array and of the tensor: HW, HWC or CHW; None: it does not say."""

    given: str | None = None
    tensor: str | None = None


NO_LAYOUTS = Layouts()
CHANNELS = (1, 3, 4)


class Preprocess:
    """Arranges the axes, then `(x * scale - mean) / std`.

    Args:
        accepts: what the caller gives, with a batch axis in front.
        gives: the model's tensor.
        scale: a number.
        mean: a number, or one for each channel.
        std: likewise.
        layouts: of both; colours are transposed by them.
        batch: the tensor's batch axis; None: it has none.
        picture: of the caller, where that can be another size, or encoded; None: arrays of the shape it accepts alone.

    Attributes:
        axes: which of the caller's axes each of the tensor's is; None: one of size 1; None for all: a mere reshape.
        factor, offset: `x * factor + offset` scales and normalises, in the tensor's dtype; None: nothing is to be done.

    Raises:
        ValueError: the shapes do not go together, or the tensor's dtype is not one that scaling gives.
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
        self.axes = None if layouts == NO_LAYOUTS and 1 in (len(source), len(target)) else arranged(source, target, layouts)
        self._flat = target
        if self.axes is None and (target.count(-1) > 1 or not (-1 in (*source, *target) or prod(source) == prod(target))):
            raise ValueError(f"{say(source)} is not known to have as many values as {say(target)}")
        self.factor, self.offset = _affine(gives, scale, mean, std, _channels(gives, layouts.tensor, batch))
        self._dtype = np.dtype(gives.dtype)
        if self.factor is None and not np.can_cast(accepts.dtype, self._dtype, "same_kind"):
            raise ValueError(f"{accepts.dtype} cannot be given as {gives.dtype}")
        self._scaled = None if layouts.given is None else np.dtype(accepts.dtype)
        """Of a picture: its numbers have a scale, which another kind of numbers would not have."""
        self._usual = self._fast()

    @property
    def fits_pictures(self) -> bool:
        """Whether it resizes or crops pictures, which takes Pillow."""
        return self.picture is not None and (self.picture.resize is not None or self.picture.crop is not None)

    def _fast(self) -> tuple[np.dtype[Any] | None, tuple[int, ...], tuple[int, ...], tuple[int, ...] | None]:
        """For `one`: dtype and shape of the caller's array, the tensor's shape, and how to transpose; no dtype: not by it."""
        source, gives = self.accepts.shape[1:], self.gives.shape
        shape = gives if self._batch is None else (*gives[: self._batch], 1, *gives[self._batch + 1 :])
        fast = self.factor is not None and self.accepts.dtype[:5] != "float" and -1 not in (*source, *shape)
        turned: tuple[int, ...] | None = None
        if self.axes is not None:
            there = [i for i in self.axes if i is not None]
            turned = tuple(there + [i for i in range(len(source)) if i not in there])
        return np.dtype(self.accepts.dtype) if fast else None, source, shape, None if turned == (*range(len(source)),) else turned

    def one(self, x: Any) -> Array:
        """One array -> its tensor; a fast path for `__call__`."""
        dtype, shape, tensor, turned = self._usual
        if type(x) is not np.ndarray or x.dtype is not dtype or x.shape != shape:
            return self([x])
        if turned is not None:
            x = np.ascontiguousarray(x.transpose(turned))
        out: Array = x.astype(self._dtype).reshape(tensor)  # the fast path
        out *= self.factor
        out += self.offset
        return out

    def __call__(self, inputs: list[Any]) -> Array:
        """Inputs -> one tensor of the model's dtype.

        Raises:
            BadInput: as `stack`, or a picture cannot be read.
            RuntimeMissing: it takes Pillow, which is not installed.
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
        """Refuses pixels of 0 to 255 for floats of 0 to 1, and truths for either."""
        found, wanted = getattr(x, "dtype", None), self._scaled
        if not isinstance(found, np.dtype) or wanted is None or found.kind not in "biu":
            return
        if wanted.kind == "f" or (found.kind == "b") != (wanted.kind == "b"):
            raise BadInput(f"{self.gives.name}: expected {wanted}, got {found}; convert it, so that its scale is yours to say")

    def _arrange(self, x: Array) -> Array:
        """[n, *accepts] -> the tensor's axes."""
        batch, axes = self._batch, self.axes
        if axes is None:
            try:
                x = x.reshape(len(x), *self._flat)
            except ValueError:
                raise BadInput(f"{self.gives.name}: {say(x.shape[1:])} cannot become {say(self._flat)}") from None
        else:
            there = [i + 1 for i in axes if i is not None]
            x = x.transpose(0, *there, *(i for i in range(1, x.ndim) if i not in there))
            sizes = iter(x.shape[1:])
            x = x.reshape(len(x), *(1 if i is None else next(sizes) for i in axes))
        return x[0] if batch is None else np.moveaxis(x, 0, batch)


def arranged(source: Sequence[int], target: Sequence[int], layouts: Layouts) -> tuple[int | None, ...]:
    """For each axis of the tensor which of the caller's it is; None: one of size 1 that the caller's array lacks.

    Raises:
        ValueError: the layouts or sizes do not go together; or, where there are none, their order may differ.
    """
    if layouts == NO_LAYOUTS:
        return _same_order(source, target)
    given, tensor = _letters(layouts.given, source, "preprocess"), _letters(layouts.tensor, target, "input")
    for letter in dict.fromkeys(given + tensor):
        a = source[given.index(letter)] if letter in given else 1
        b = target[tensor.index(letter)] if letter in tensor else 1
        if a != b and -1 not in (a, b):
            raise ValueError(f"{given} {say(source)} cannot become {tensor} {say(target)}: they differ in {letter}, {a} and {b}")
    return tuple(given.index(letter) if letter in given else None for letter in tensor)


def _letters(layout: str | None, shape: Sequence[int], where: str) -> str:
    letters = layout or ("HW" if len(shape) == 2 else "")  # noqa: PLR2004 - height and width
    if not letters:
        raise ValueError(f'{where}: shape {say(shape)} needs "layout": "HWC" or "layout": "CHW" beside it')
    if len(letters) != len(shape):
        raise ValueError(
            f"{where}: layout {letters} and shape {say(shape)}, without its batch axis, differ in the number of axes"
        )
    return letters


def _same_order(source: Sequence[int], target: Sequence[int]) -> tuple[int | None, ...]:
    """Without layouts: the same axes in the same order, but for some of size 1."""
    if len(source) == len(target) and all(a == b or -1 in (a, b) for a, b in zip(source, target, strict=True)):
        return tuple(range(len(source)))
    long = [i for i, size in enumerate(source) if size != 1]
    left = iter(long)
    axes = tuple(None if size == 1 else next(left, -1) for size in target)
    there = [(i, size) for i, size in zip(axes, target, strict=True) if i is not None]
    if next(left, None) is not None or any(i < 0 or (source[i] != size and -1 not in (source[i], size)) for i, size in there):
        a, b = ("HWC" if shape[-1] in CHANNELS else "CHW" for shape in (source, target))
        layouts = f'write "layout": "{a}" into preprocess and "layout": "{b}" into input'
        raise ValueError(f"a reshape of {say(source)} to {say(target)} would mix places and colours up: {layouts}, if it is so")
    return axes


def _channels(gives: TensorSpec, layout: str | None, batch: int | None) -> int | None:
    """The tensor's axis of channels: by its layout, else the first that does not count the inputs; None: there is none."""
    axis = layout.find("C") if layout is not None else 0
    axis += batch is not None and axis >= batch
    return axis if 0 <= axis < len(gives.shape) and layout != "HW" else None


def _affine(gives: TensorSpec, scale: float, mean: Any, std: Any, axis: int | None) -> tuple[Array | None, Array | None]:
    """Factor and offset; none where they change nothing, as for a tensor of integers they must."""
    rank, dtype = len(gives.shape), np.dtype(gives.dtype)

    def spread(name: str, value: Any) -> Array:
        """A scalar, or one for each channel along its axis."""
        array = np.asarray(value, np.float64)
        if array.size == 1:
            return array.reshape(())
        if axis is None or gives.shape[axis] not in (-1, len(array)):
            raise ValueError(
                f"{name} has {len(array)} numbers, and {say(gives.shape)} not so many channels: write one number, or "
                '"layout" into input, which says where the channels are'
            )
        return array.reshape((-1,) + (1,) * (rank - 1 - axis))

    with np.errstate(all="ignore"):
        factor, offset = scale / spread("std", std), -spread("mean", mean) / spread("std", std)
        if not np.can_cast(np.float32, dtype, "same_kind"):
            if (factor == 1).all() and (offset == 0).all():
                return None, None
            raise ValueError(f"scale, mean and std: preprocessing gives floats, the input is {gives.dtype}")
        made = np.asarray(factor, dtype), np.asarray(offset, dtype)
    if not all(np.isfinite(array).all() for array in made):
        raise ValueError(f"scale, mean and std are too large for {gives.dtype}")
    return made
