"""Inputs of a model: which the caller gives, which are constants, and which are a state."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from edgeroute.edge.card import Card, CardInput, CardState
from edgeroute.edge.tensors import Array, MakePrepare, Plain, Prepare, say
from edgeroute.errors import BadInput, nearest
from edgeroute.types import TensorSpec

FLOATS = {"float16", "float32", "float64", "object"}


class Inputs:
    """How a model's inputs are filled, by its card and its file.

    Args:
        card: of the model.
        inputs: of the file.
        outputs: of the file.
        plain: how an input without preprocessing is prepared.

    Attributes:
        given: the inputs that the caller gives.
        constants: name -> tensor of the others but the state.
        state: name -> the first state.
        kept: names of the outputs that are the next state, in the order of `state`.
        outputs: the other outputs.
        size: so many inputs go into one run; None: any number.
        batch: the axis of each output that counts the inputs; None: there is none.
        one: makes the tensor of one input that the caller gives, where that is the model's only one; None: it is not.

    Raises:
        ValueError: the card describes another file.
    """

    def __init__(
        self, card: Card, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec], plain: MakePrepare = Plain
    ) -> None:
        inputs = [_shaped(spec, card.of(spec.name)) for spec in inputs]
        specs = {spec.name: spec for spec in inputs}
        self.constants: dict[str, Array] = {}
        self.state = {one.input: _first(one, specs, {spec.name: spec for spec in outputs}) for one in card.state}
        self.kept = [one.output for one in card.state]
        self.outputs = tuple(spec for spec in outputs if spec.name not in self.kept)
        self._prepare: dict[str, Prepare] = {}
        axes: list[tuple[int | None, int]] = []
        given: list[TensorSpec] = []
        for described in card.inputs:
            _check(described, specs)
        for spec in inputs:
            told = card.of(spec.name)
            if spec.name in self.state:
                continue
            if told is not None and told.value is not None:
                self.constants[spec.name] = constant(told.value, spec)
                continue
            batch = None if not spec.shape else 0 if told is None else told.batch
            if batch is not None and batch >= len(spec.shape):
                raise ValueError(f"the card's batch of {spec.name}: there is no axis {batch} in {list(spec.shape)}")
            given.append(spec)
            axes.append((batch, 1 if batch is None else spec.shape[batch]))
            self._prepare[spec.name] = told.preprocess if told is not None and told.preprocess is not None else plain(spec, batch)
        self.given = tuple(given)
        sizes = {size for _, size in axes if size != -1}
        self.size = 1 if self.state or len(sizes) > 1 else sizes.pop() if sizes else None
        self.batch = card.batch if card.batch != -1 else 0 if not axes or any(axis is not None for axis, _ in axes) else None
        if self.batch is None:
            self.size = 1
        alone = len(given) == 1 and not self.constants and not self.state and self.batch == 0 and self.size in (None, 1)
        self.one = self._prepare[given[0].name].one if alone else None

    def feed(self, inputs: list[Any], name: str) -> dict[str, Array]:
        """The tensors for these inputs, which the caller gives; `name` is the model's.

        Raises:
            BadInput: they do not fit.
        """
        if len(self.given) == 1:
            ((only, prepare),) = self._prepare.items()
            return {only: prepare([_named(x, only) for x in inputs] if inputs and isinstance(inputs[0], dict) else inputs)}
        if not all(isinstance(x, dict) for x in inputs):
            raise BadInput(f"{name} has {len(self.given)} inputs: pass a mapping with {[s.name for s in self.given]}")
        return {only: prepare([_named(x, only) for x in inputs]) for only, prepare in self._prepare.items()}

    def rows(self, output: Array) -> Array:
        """An output with the axis that counts the inputs in front."""
        if self.batch is None:
            return np.asarray(output)[None]
        return np.moveaxis(output, self.batch, 0) if self.batch else output


def _shaped(spec: TensorSpec, told: CardInput | None) -> TensorSpec:
    """An input of which the file does not know how many axes it has, which looks like a number, as the card says."""
    return spec if spec.shape or told is None or not told.shape else spec._replace(shape=told.shape)


def unsaid(card: Card, inputs: Sequence[TensorSpec]) -> str:
    """What the card is to say of an input whose first axis may be another than the one that counts the inputs; empty: nothing.

    An axis of any size behind one of a fixed size counts them, or the first does, so many at a time, or none. A row of the
    wrong one runs as well, and gives an answer to another question.
    """
    for spec in inputs:
        told = card.of(spec.name)
        if len(spec.shape) > 1 and spec.shape[0] > 1 and -1 in spec.shape and (told is None or not told.told):
            return (
                f"the input {spec.name} is {say(spec.shape)}: its first axis counts the inputs, {spec.shape[0]} at a time, or "
                'another one does, or none. Write which into its card: "input": '
                f'{{"name": "{spec.name}", "batch": {spec.shape.index(-1)}}}, or "batch": "none"'
            )
    return ""


def _check(told: CardInput, specs: Mapping[str, TensorSpec]) -> None:
    """Compares what a card says of an input with the file."""
    spec = specs.get(told.name)
    if spec is None:
        raise ValueError(f"its card describes the input {told.name!r}, the file has {list(specs)}: {nearest(told.name, specs)}")
    if told.dtype not in (None, spec.dtype):
        raise ValueError(f"its card describes the input {told.name!r} as {told.dtype}, the file has {spec.dtype}")
    shape = told.shape
    if shape is not None and (
        len(shape) != len(spec.shape) or any(a != b and -1 not in (a, b) for a, b in zip(shape, spec.shape, strict=True))
    ):
        raise ValueError(f"its card describes the input {told.name!r} as {list(shape)}, the file has {list(spec.shape)}")


def constant(value: Any, spec: TensorSpec) -> Array:
    """The tensor of a constant.

    Raises:
        ValueError: it does not fit the input.
    """
    wrong = f"the card's value of {spec.name} is no {spec.dtype} {list(spec.shape)}"
    try:
        array = np.asarray(value)
        made = array.astype(spec.dtype)
    except (TypeError, ValueError, OverflowError):
        raise ValueError(wrong) from None
    numbers = array.dtype.kind in "biuf"
    if numbers == (spec.dtype == "object") or not (spec.dtype in FLOATS or (made == array).all()):
        raise ValueError(wrong)
    if not made.ndim and -1 not in spec.shape:
        return np.full(spec.shape, made)
    if made.ndim != len(spec.shape) or any(b not in (-1, a) for a, b in zip(made.shape, spec.shape, strict=True)):
        raise ValueError(f"{wrong}, but {list(made.shape)}")
    return made


def _first(one: CardState, inputs: Mapping[str, TensorSpec], outputs: Mapping[str, TensorSpec]) -> Array:
    """The first state."""
    for kind, name, there in (("input", one.input, inputs), ("output", one.output, outputs)):
        if name not in there:
            raise ValueError(f"its card's state names the {kind} {name!r}, the file has {list(there)}: {nearest(name, there)}")
    spec = inputs[one.input]
    if outputs[one.output].dtype != spec.dtype or spec.dtype == "object":
        raise ValueError(f"its card's state: {one.output} is {outputs[one.output].dtype}, and {one.input} takes {spec.dtype}")
    if one.shape is None:
        if spec.shape.count(-1) > 1:
            raise ValueError(f'its card\'s state: {one.input} is {list(spec.shape)} in the file: write its first "shape"')
        shape = tuple(1 if size == -1 else size for size in spec.shape)
    elif len(one.shape) != len(spec.shape) or any(b not in (-1, a) for a, b in zip(one.shape, spec.shape, strict=True)):
        raise ValueError(f"its card's state: the shape of {one.input} is {list(one.shape)}, the file has {list(spec.shape)}")
    else:
        shape = one.shape
    return np.full(shape, one.value, spec.dtype)


def _named(x: Any, name: str) -> Any:
    try:
        return x[name]
    except (KeyError, IndexError, TypeError) as e:
        there = sorted(x) if isinstance(x, dict) else type(x).__name__
        raise BadInput(f"the input {name!r} is missing; there is {there}") from e
