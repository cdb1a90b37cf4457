"""Format of model cards: its keys and their JSON Schema, and what is wrong with a card."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from math import isfinite
from typing import Any

from edgeroute.confidence.boxes import RULES
from edgeroute.confidence.reader import KINDS
from edgeroute.confidence.scores import SCORES
from edgeroute.core.texts import clean
from edgeroute.errors import nearest

Schema = Mapping[str, Any]
DTYPES = (
    "float32", "float16", "float64", "bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64",
)  # fmt: skip
LAYOUTS = ("HW", "HWC", "CHW")
FILTERS = ("bilinear", "nearest", "box", "hamming", "bicubic", "lanczos")
LARGEST = 2**31 - 1
"""The largest size of an axis."""


def _key(about: str, title: str, kind: str | None = None, **more: Any) -> dict[str, Any]:
    """A key; `title` is what a value of it is called in messages and in the table."""
    return {**({} if kind is None else {"type": kind}), **more, "title": title, "description": about}


def _table(keys: dict[str, Any], required: tuple[str, ...] = ()) -> dict[str, Any]:
    return {"type": "object", "properties": keys, "required": list(required), "additionalProperties": False, "title": "an object"}


_SIZE = {"type": "integer", "minimum": 1, "maximum": LARGEST}
_AXES: dict[str, Any] = {"type": "array", "items": {"type": "integer", "minimum": -1, "maximum": LARGEST}, "maxItems": 32}
_AREA = [_SIZE, {"type": "array", "items": _SIZE, "minItems": 2, "maxItems": 2}]
_NUMBER = {"type": "number"}
_POSITIVE = {"type": "number", "exclusiveMinimum": 0}
_LABEL = {"type": ["string", "number", "boolean"]}
_BATCH = [{"type": "integer", "minimum": 0, "maximum": 31}, {"const": "none"}]
_AXIS = '0, 1, ... or "none"'


def _several(one: Schema) -> list[Schema]:
    return [one, {"type": "array", "items": one, "minItems": 1}]


def _any(about: str) -> dict[str, Any]:
    return _key(about, "anything")


PREPROCESS = _table(
    {
        "dtype": _key("Of the arrays that the caller gives.", "a dtype", "string", enum=list(DTYPES)),
        "shape": _key("Of the caller's array, without a batch axis; -1: any size.", "a list of sizes", **_AXES),
        "layout": _key(
            "Axes of the caller's picture: height, width, channels.", "a layout", "string", enum=list(LAYOUTS)
        ),
        "resize": _key(
            "A uint8 picture of another size than `shape` is resized: to this length of its shorter side, or to "
            "[height, width]. Needs Pillow.",
            "a size, or [height, width]", anyOf=_AREA,
        ),
        "crop": _key(
            "From the middle of a picture of another size than `shape`, after `resize`, so much is cut out.",
            "a size, or [height, width]", anyOf=_AREA,
        ),
        "filter": _key("How pixels are interpolated, a name of Pillow's.", "a filter", "string", enum=list(FILTERS)),
        "scale": _key("What the input is multiplied by first.", "a number", "number"),
        "mean": _key(
            "What is subtracted then: one number, or one for each channel.", "a number, or a list of numbers",
            anyOf=_several(_NUMBER),
        ),
        "std": _key(
            "What it is divided by last: one number, or one for each channel.", "a positive number, or a list of them",
            anyOf=_several(_POSITIVE),
        ),
    },
    ("dtype", "shape"),
)  # fmt: skip
INPUT = _table(
    {
        "name": _key("Of the model's tensor, as in the file.", "text", "string"),
        "dtype": _key("Of the model's tensor. With `preprocess` it is required.", "a dtype", "string", enum=list(DTYPES)),
        "shape": _key("Of the model's tensor, with its batch axis; -1: any size. With `preprocess` it is required.",
                      "a list of sizes", **_AXES),
        "layout": _key("Axes of the model's tensor, but for the batch axis.", "a layout", "string", enum=list(LAYOUTS)),
        "batch": _key('Which axis of the tensor counts the inputs, from 0; `"none"`: the tensor has no such axis.', _AXIS,
                      anyOf=_BATCH),
        "value": _any("A constant: the tensor is this number, or these nested lists, and the caller does not give it."),
        "preprocess": {**PREPROCESS, "description": "From what the caller gives to the tensor."},
    },
    ("name",),
)  # fmt: skip
STATE = _table(
    {
        "input": _key("Name of the input that takes the state.", "text", "string"),
        "output": _key("Name of the output that gives the next one.", "text", "string"),
        "shape": _key("Of the first state. Without it the file's, its one axis of any size being 1.", "a list of sizes",
                      **{**_AXES, "items": {"type": "integer", "minimum": 0, "maximum": LARGEST}}),
        "value": _key("The number of which the first state consists.", "a number", "number"),
    },
    ("input", "output"),
)  # fmt: skip
OUTPUT = _table(
    {
        "name": _key("Of the output to read; without it all of them.", "text", "string"),
        "kind": _key("What the output is.", "a kind", "string", enum=list(KINDS)),
        "labels": _key("As `labels` at the top.", "a list", "array", items=_LABEL),
        "score": _key("How the confidence is taken from the outputs.", "a score", "string", enum=list(SCORES)),
        "none_found": _key("What it means that a detector finds nothing.", "a rule", "string", enum=list(RULES)),
        "batch": _key('Which axis of each output counts the inputs, from 0; `"none"`: there is no such axis.', _AXIS,
                      anyOf=_BATCH),
        "dtype": _key("For readers.", "text", "string"),
        "shape": _key("For readers.", "a list of sizes", **_AXES),
    },
)  # fmt: skip
CARD = _table(
    {
        "name": _key("What answers, traces and the server call the model; without it the file's name.", "text", "string"),
        "description": _key("For readers.", "text", "string"),
        "sha256": _key("Of the model file; another file is refused.", "text", "string"),
        "input": {**INPUT, "description": "The model's only input, or the first that needs a description."},
        "inputs": _key("Several inputs; those that are not listed are the caller's, as the file has them.", "a list of objects",
                       "array", items=INPUT),
        "preprocess": {**PREPROCESS, "description": "From what the caller gives to `input`."},
        "state": _key("Outputs that are fed back as inputs.", "a list of objects", "array", items=STATE),
        "output": {**OUTPUT, "description": "What comes out, and how it is read."},
        "labels": _key("The classes' names in order; one number is about the second of two.", "a list", "array", items=_LABEL),
        **{key: _any("For readers.") for key in ("file", "bytes", "licence", "license", "data", "rebuild", "steps", "notes")},
        "$schema": _key("For editors.", "text", "string"),
    },
)  # fmt: skip


def schema() -> dict[str, Any]:
    """JSON Schema of a card, draft 2020-12."""
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **CARD,
        "title": "edgeroute model card",
        "description": "What goes into a model, and what comes out.",
    }


def tables() -> str:
    """The keys with types and meanings, as Markdown: the tables of docs/cards.md."""
    parts = []
    for title, table in (
        ("At the top", CARD), ("`input`, and each of `inputs`", INPUT), ("`preprocess`", PREPROCESS),
        ("Each of `state`", STATE), ("`output`", OUTPUT),
    ):  # fmt: skip
        rows = [f"### {title}\n", "| Key | Type | Meaning |", "|---|---|---|"]
        for key, value in table["properties"].items():
            needed = "; required" if key in table["required"] else ""
            kind = ", ".join(f"`{one}`" for one in value["enum"]) if "enum" in value else value["title"]
            rows.append(f"| `{key}` | {kind}{needed} | {value['description']} |")
        parts.append("\n".join(rows) + "\n")
    return "\n".join(parts)


def problems(value: Any, rule: Schema = CARD, at: str = "") -> Iterator[str]:
    """What is wrong with a value, by its schema, in words; `at` is its place."""
    expected = f"{at or 'the card'}: expected {rule.get('title', 'another value')}, found {_found(value)}"
    if "anyOf" in rule:
        if all(any(True for _ in problems(value, one, at)) for one in rule["anyOf"]):
            yield expected
    elif "const" in rule:
        if value != rule["const"]:
            yield expected
    elif "type" in rule and not _is(value, rule["type"]):
        yield expected
    elif "enum" in rule:
        if value not in rule["enum"]:
            yield f"{at}: found {_found(value)}: {nearest(value, rule['enum'])}"
    elif isinstance(value, dict):
        keys = rule["properties"]
        for key in value:
            if key not in keys:
                yield f"{_join(at, clean(key, 60))}: there is no such key: {nearest(key, keys)}"
        yield from (f"{_join(at, key)}: is missing" for key in rule["required"] if key not in value)
        for key in value.keys() & keys.keys():
            yield from problems(value[key], keys[key], _join(at, key))
    elif isinstance(value, list) and "items" in rule:
        if not rule.get("minItems", 0) <= len(value) <= rule.get("maxItems", LARGEST):
            yield expected
        for i, one in enumerate(value):
            yield from problems(one, {"title": "another value", **rule["items"]}, f"{at}[{i}]")
    elif isinstance(value, int | float) and not isinstance(value, bool):
        least, above = rule.get("minimum", -float("inf")), rule.get("exclusiveMinimum", -float("inf"))
        if not (least <= value <= rule.get("maximum", float("inf")) and value > above):
            yield expected


def _join(at: str, key: str) -> str:
    return f"{at}.{key}" if at else key


def _is(value: Any, kinds: str | list[str]) -> bool:
    """Whether JSON Schema counts the value as one of these types."""
    if isinstance(kinds, list):
        return any(_is(value, kind) for kind in kinds)
    if kinds in {"number", "integer"}:
        if isinstance(value, bool) or not isinstance(value, int | float):
            return False
        return isinstance(value, int) or (isfinite(value) and (kinds == "number" or value.is_integer()))
    return isinstance(value, _TYPES[kinds])


_TYPES: Mapping[str, type] = {"string": str, "object": dict, "array": list, "boolean": bool}


def _found(value: Any) -> str:
    if isinstance(value, dict):
        return "an object"
    return clean(json.dumps(value, ensure_ascii=False) if isinstance(value, str | bool | int | float | list) else repr(value), 60)
