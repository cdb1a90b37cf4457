"""Inputs of a model by its card, checked against its file: those that the caller gives, constants, states, texts of chats."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from edgeroute.confidence.score_before_run import text_of
from edgeroute.edge.fitted_estimator_as_function import row_by_name
from edgeroute.edge.input_checks_and_stacking import Array, MakePrepare, Plain, Prepare, shape_text
from edgeroute.edge.model_card import Card, CardInput, CardState
from edgeroute.errors import BadInput, nearest
from edgeroute.system.late_imports_and_plugins import import_tool
from edgeroute.types import TensorSpec

FLOATS = {"float16", "float32", "float64", "object"}  # dtypes that any number fits into


class Inputs:
    """Plan of a model's inputs, from its card and its file: makes the tensors of the caller's inputs.

    Args:
        card: of the model.
        inputs: of the file.
        outputs: of the file.
        plain: makes the preparation of an input without preprocessing.

    Attributes:
        given: the inputs that the caller gives.
        constants: name -> tensor of the inputs with a constant value.
        state: name -> first state.
        state_outputs: names of the outputs that are the next state, in the order of `state`.
        outputs: the other outputs.
        size: number of the caller's inputs in one run; None: any number.
        batch: axis of each output that counts the inputs; None: there is none.
        one: makes the tensor of one input of the caller, if the model has no other input; None: it has.

    Raises:
        ValueError: the card describes another file.
    """

    def __init__(
        self, card: Card, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec], plain: MakePrepare = Plain
    ) -> None:
        inputs = [_with_card_shape(spec, card.of(spec.name)) for spec in inputs]
        specs = {spec.name: spec for spec in inputs}
        self.constants: dict[str, Array] = {}
        self.state = {state.input: _first_state(state, specs, {spec.name: spec for spec in outputs}) for state in card.state}
        self.state_outputs = [state.output for state in card.state]
        self.outputs = tuple(spec for spec in outputs if spec.name not in self.state_outputs)
        self._prepare: dict[str, Prepare] = {}
        axes: list[tuple[int | None, int]] = []
        from_caller: list[TensorSpec] = []
        for entry in card.inputs:
            _check(entry, specs)
        for spec in inputs:
            card_input = card.of(spec.name)
            if spec.name in self.state:
                continue
            if card_input is not None and card_input.value is not None:
                self.constants[spec.name] = constant(card_input.value, spec)
                continue
            batch = None if not spec.shape else 0 if card_input is None else card_input.batch
            if batch is not None and batch >= len(spec.shape):
                raise ValueError(f"the card's batch of {spec.name}: there is no axis {batch} in {list(spec.shape)}")
            from_caller.append(spec)
            axes.append((batch, 1 if batch is None else spec.shape[batch]))
            self._prepare[spec.name] = (card_input and card_input.preprocess) or plain(spec, batch)
        self.given = tuple(from_caller)
        sizes = {size for _, size in axes if size != -1}
        self.size = 1 if self.state or len(sizes) > 1 else sizes.pop() if sizes else None
        self.batch = card.batch if card.batch != -1 else 0 if not axes or any(axis is not None for axis, _ in axes) else None
        if self.batch is None:
            self.size = 1
        alone = len(from_caller) == 1 and not self.constants and not self.state and self.batch == 0 and self.size in (None, 1)
        only = self._prepare[from_caller[0].name] if len(from_caller) == 1 else None
        self._chats = only is not None and getattr(only, "accepts", from_caller[0]).dtype == "object"
        one = None if only is None or not alone else only.one
        self.one = one if one is None or not self._chats else lambda x: one(last_user_text(x))

    def feed(self, inputs: list[Any], name: str) -> dict[str, Array]:
        """Return name -> tensor for n inputs of the caller.

        A single input may be given bare, or in a mapping if the first one is. For a single text, a chat stands for its last user
        message.

        Args:
            inputs: n arrays, or mappings of name to array, without the batch axis.
            name: the model's, for messages.

        Raises:
            BadInput: they do not fit.
        """
        if len(self.given) == 1:
            ((only, prepare),) = self._prepare.items()
            if self._chats:
                inputs = [last_user_text(x) for x in inputs]
            return {only: prepare([_value_of(x, only) for x in inputs] if inputs and isinstance(inputs[0], dict) else inputs)}
        inputs = [row_by_name(x) for x in inputs]
        if not all(isinstance(x, dict) for x in inputs):
            raise BadInput(f"{name} has {len(self.given)} inputs: pass a mapping with {[s.name for s in self.given]}")
        return {only: prepare([_value_of(x, only) for x in inputs]) for only, prepare in self._prepare.items()}

    def rows(self, output: Array) -> Array:
        """Return an output with the axis that counts the inputs in front."""
        if self.batch is None:
            return np.asarray(output)[None]
        return np.moveaxis(output, self.batch, 0) if self.batch else output


def last_user_text(x: Any) -> Any:
    """Return the last user message's text of a chat or of a request, or a request's prompt; return any other input unchanged.

    Raises:
        BadInput: the chat has no text of a user.
    """
    messages = x.get("messages", x.get("prompt", x)) if isinstance(x, Mapping) else x
    if isinstance(messages, str):
        return messages
    is_chat = isinstance(messages, list | tuple) and all(isinstance(m, Mapping) and "role" in m for m in messages)
    if not is_chat or not messages:
        return x
    text = next((text_of([m]) for m in reversed(messages) if m["role"] == "user"), "")
    if not text:
        raise BadInput("the chat has no user message with a text")
    return text


def _with_card_shape(spec: TensorSpec, entry: CardInput | None) -> TensorSpec:
    """Return an input's specification with the card's shape, if the file does not know how many axes the input has."""
    return spec if spec.shape or entry is None or not entry.shape else spec._replace(shape=entry.shape)


def batch_axis_problem(card: Card, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]) -> str:
    """Return an error text if the card has to state which axis of an input counts the inputs; empty: the axis is clear.

    With an axis of any size behind a first axis of a fixed size, either may count them. A run with the wrong one would succeed,
    and answer another question. Nor do first axes of different sizes count the same inputs.

    The text for an input that is a state by its name is how to write it into the card.
    """
    unknown = [
        spec for spec in inputs if len(spec.shape) > 1 and ((entry := card.of(spec.name)) is None or not entry.batch_given)
    ]
    differ = len({spec.shape[0] for spec in unknown}) > 1
    for spec in unknown:
        if spec.shape[0] > 1 and (differ or -1 in spec.shape):
            return import_tool("inspect.input_guesses_and_trial_tensors").state_problem(card, inputs, outputs) or (
                f"the input {spec.name} is {shape_text(spec.shape)}: its first axis counts the inputs, "
                f'{spec.shape[0]} at a time, or another one does, or none. Write which into its card: "input": '
                f'{{"name": "{spec.name}", "batch": {spec.shape.index(-1) if -1 in spec.shape else 1}}}, or "batch": "none"'
            )
    return ""


def _check(entry: CardInput, specs: Mapping[str, TensorSpec]) -> None:
    """Compare the card's description of an input with the file.

    Raises:
        ValueError: the file has no such input, or one of another dtype or shape.
    """
    if (spec := specs.get(entry.name)) is None:
        raise ValueError(f"its card describes the input {entry.name!r}, the file has {list(specs)}: {nearest(entry.name, specs)}")
    if entry.dtype not in (None, spec.dtype):
        raise ValueError(f"its card describes the input {entry.name!r} as {entry.dtype}, the file has {spec.dtype}")
    shape = entry.shape
    if shape is not None and (
        len(shape) != len(spec.shape) or any(a != b and -1 not in (a, b) for a, b in zip(shape, spec.shape, strict=True))
    ):
        raise ValueError(f"its card describes the input {entry.name!r} as {list(shape)}, the file has {list(spec.shape)}")


def constant(value: Any, spec: TensorSpec) -> Array:
    """Return the tensor of a constant, a number or nested lists, in the input's dtype and shape. A number fills it.

    Raises:
        ValueError: it does not fit the input.
    """
    wrong = f"the card's value of {spec.name} is no {spec.dtype} {list(spec.shape)}"
    try:
        array = np.asarray(value)
        tensor = array.astype(spec.dtype)
    except (TypeError, ValueError, OverflowError):
        raise ValueError(wrong) from None
    numbers = array.dtype.kind in "biuf"
    if numbers == (spec.dtype == "object") or not (spec.dtype in FLOATS or (tensor == array).all()):
        raise ValueError(wrong)
    if not tensor.ndim and -1 not in spec.shape:
        return np.full(spec.shape, tensor)
    if tensor.ndim != len(spec.shape) or any(b not in (-1, a) for a, b in zip(tensor.shape, spec.shape, strict=True)):
        raise ValueError(f"{wrong}, but {list(tensor.shape)}")
    return tensor


def _first_state(state: CardState, inputs: Mapping[str, TensorSpec], outputs: Mapping[str, TensorSpec]) -> Array:
    """Return the tensor of a state before the first call: the card's value in the card's shape, or in the file's.

    The one axis of any size in the file's shape gets size 1.

    Raises:
        ValueError: the card's state does not fit the file.
    """
    for kind, name, known in (("input", state.input, inputs), ("output", state.output, outputs)):
        if name not in known:
            raise ValueError(f"its card's state names the {kind} {name!r}, the file has {list(known)}: {nearest(name, known)}")
    spec = inputs[state.input]
    if outputs[state.output].dtype != spec.dtype or spec.dtype == "object":
        raise ValueError(f"card's state: {state.output} is {outputs[state.output].dtype} but {state.input} takes {spec.dtype}")
    if state.shape is None:
        if spec.shape.count(-1) > 1:
            raise ValueError(f'its card\'s state: {state.input} is {list(spec.shape)} in the file: write its first "shape"')
        shape = tuple(1 if size == -1 else size for size in spec.shape)
    elif len(state.shape) != len(spec.shape) or any(b not in (-1, a) for a, b in zip(state.shape, spec.shape, strict=True)):
        raise ValueError(f"its card's state: the shape of {state.input} is {list(state.shape)}, the file has {list(spec.shape)}")
    else:
        shape = state.shape
    return np.full(shape, state.value, spec.dtype)


def _value_of(x: Any, name: str) -> Any:
    """Return an input's value from the caller's mapping.

    Raises:
        BadInput: it is missing.
    """
    try:
        return x[name]
    except (KeyError, IndexError, TypeError) as e:
        there = sorted(x) if isinstance(x, dict) else type(x).__name__
        raise BadInput(f"the input {name!r} is missing; there is {there}") from e
