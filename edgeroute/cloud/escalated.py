"""The edge's answer to an input, sent along with it: a hint for the model behind the endpoint, or the input of its next stage."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from edgeroute.core.walk import Prediction
from edgeroute.errors import PolicyError
from edgeroute.system import json_dumps, plain

PARAMETER = "edge_answers"
"""The request's parameter of the Open Inference Protocol: JSON, a list with an object or null for each input."""
MOST_OUTPUTS = 100
"""Numbers of an answer's raw outputs that are sent; of more none is."""
MOST_VALUE = 16 << 10
"""Bytes of an answer's value as JSON; a longer one is sent as null."""
MOST_BITS = 1000
"""Of a whole number in it; one with more is sent as null."""
MOST_DEEP = 50
"""Levels of lists and objects in it; one with more is sent as null."""


class Escalated(NamedTuple):
    """An input as an endpoint with `send_edge` takes it."""

    x: Any
    edge: Mapping[str, Any] | None
    """As `told` makes it; None: the edge has not answered."""


def checked(send_edge: object) -> bool:
    """The setting.

    Raises:
        PolicyError: it is not true or false.
    """
    if not isinstance(send_edge, bool):
        raise PolicyError(f"send_edge is True or False, not a {type(send_edge).__name__}")
    return send_edge


def told(prediction: Prediction) -> dict[str, Any]:
    """An answer in JSON types: `value`, `confidence` (null: there is none), and `outputs`, if they are a few numbers.

    Nothing of the application's is called, and nothing long is converted: it may be made on an event loop, and before a deadline.
    """
    value, confidence, outputs = prediction
    made = plain(value) if _room(value, MOST_VALUE, MOST_DEEP) >= 0 else None
    found = {"value": made if len(json_dumps(made)) <= MOST_VALUE else None, "confidence": plain(confidence)}
    kind = getattr(getattr(outputs, "dtype", None), "kind", "")
    if kind and kind in "biuf" and 0 < getattr(outputs, "size", 0) <= MOST_OUTPUTS:
        found["outputs"] = plain(_short(outputs.tolist()))
    return found


def _short(numbers: Any) -> Any:
    """The numbers with the digits that a float32 has."""
    if isinstance(numbers, list):
        return [_short(one) for one in numbers]
    return float(f"{numbers:.7g}") if isinstance(numbers, float) else numbers


def _room(value: Any, left: int, deep: int) -> int:
    """How many bytes are left of so many, after about those of this value; below 0: it is too long, or of a type without JSON."""
    if value is None or isinstance(value, bool | float):
        return left - 1
    if isinstance(value, int):
        return left - 1 if value.bit_length() <= MOST_BITS else -1
    if isinstance(value, str | bytes):
        return left - len(value)
    if (kind := getattr(getattr(value, "dtype", None), "kind", "")) != "":  # of numpy, which is not imported here
        return left - value.size if kind in "biufSU" and value.nbytes <= left * 8 else -1
    if type(value) is dict:
        parts: Any = (part for pair in value.items() for part in pair)
    elif isinstance(value, list | tuple):
        parts = value
    else:
        return -1
    for part in parts:
        left = _room(part, left - 1, deep - 1) if deep > 0 else -1
        if left < 0:
            break
    return left


def apart(inputs: Sequence[Any]) -> tuple[list[Any], list[Mapping[str, Any] | None] | None]:
    """The inputs themselves, and what goes along with each; None: nothing does."""
    if not inputs or type(inputs[0]) is not Escalated:
        return list(inputs), None
    edges = [one.edge for one in inputs]
    return [one.x for one in inputs], edges if any(edge is not None for edge in edges) else None


def beside(inputs: Sequence[Any], like: Sequence[Any]) -> list[Any]:
    """These inputs, made of those, with what goes along with each."""
    if not like or type(like[0]) is not Escalated:
        return list(inputs)
    return [Escalated(x, one.edge) for x, one in zip(inputs, like, strict=True)]


def written(edges: Sequence[Mapping[str, Any] | None]) -> str:
    """The parameter's text."""
    return json_dumps(list(edges)).decode()
