"""Model card: the format of the JSON file beside a model that describes its inputs and outputs, and the reader of such files."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from errno import EFBIG
from itertools import islice
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, cast

from edgeroute.confidence.detector_boxes import RULES
from edgeroute.confidence.output_reader import KINDS
from edgeroute.confidence.scores import SCORES
from edgeroute.core.error_codes_and_texts import clean
from edgeroute.edge.input_checks_and_stacking import Array, stack
from edgeroute.errors import ModelError, ModelMissing, nearest
from edgeroute.system.files_and_lock_waits import file_sha256, files_in, sha256
from edgeroute.system.untrusted_files import named_errors, read_json
from edgeroute.types import TensorSpec

if TYPE_CHECKING:
    from edgeroute.edge.preprocessing import Preprocess

__all__ = ["Array", "Card", "CardInput", "CardState", "checked_sha256", "sha256_of", "stack"]


# Format of model cards: the keys, their JSON Schema, and the check of a card.

Schema = Mapping[str, Any]
# dtypes of tensors.
DTYPES = (
    "float32", "float16", "float64", "bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64",
)  # fmt: skip
LAYOUTS = ("HW", "HWC", "CHW")  # orders of a picture's axes: height, width, channels
FILTERS = ("bilinear", "nearest", "box", "hamming", "bicubic", "lanczos")  # interpolations of Pillow
LARGEST = 2**31 - 1  # largest size of an axis


def _key(about: str, title: str, kind: str | None = None, **more: Any) -> dict[str, Any]:
    """Return the schema of a key.

    Args:
        about: its meaning, for readers.
        title: name of its values in messages and in the table.
        kind: type by JSON Schema; None: not by type alone.
        more: further keywords of JSON Schema.
    """
    return {**({} if kind is None else {"type": kind}), **more, "title": title, "description": about}


def _table(keys: dict[str, Any], required: tuple[str, ...] = ()) -> dict[str, Any]:
    """Return the schema of an object with these keys and no others."""
    return {"type": "object", "properties": keys, "required": list(required), "additionalProperties": False, "title": "an object"}


_SIZE = {"type": "integer", "minimum": 1, "maximum": LARGEST}
_AXES: dict[str, Any] = {"type": "array", "items": {"type": "integer", "minimum": -1, "maximum": LARGEST}, "maxItems": 32}
_AREA = [_SIZE, {"type": "array", "items": _SIZE, "minItems": 2, "maxItems": 2}]
_NUMBER = {"type": "number"}
_POSITIVE = {"type": "number", "exclusiveMinimum": 0}
_LABEL = {"type": ["string", "number", "boolean"]}
_BATCH = [{"type": "integer", "minimum": 0, "maximum": 31}, {"const": "none"}]
_AXIS = '0, 1, ... or "none"'


def _several(single: Schema) -> list[Schema]:
    """Return the alternatives "one value" and "a list of them"."""
    return [single, {"type": "array", "items": single, "minItems": 1}]


def _any(about: str) -> dict[str, Any]:
    """Return the schema of a key with any value."""
    return _key(about, "anything")


PREPROCESS = _table(
    {
        "dtype": _key("Type of the caller's array.", "a dtype", "string", enum=list(DTYPES)),
        "shape": _key("Shape of the caller's array, without a batch axis; -1: any size.", "a list of sizes", **_AXES),
        "layout": _key(
            "Axes of the caller's picture: height, width, channels.", "a layout", "string", enum=list(LAYOUTS)
        ),
        "resize": _key(
            "A uint8 picture of another size than `shape` is resized: to this length of its shorter side, or to "
            "[height, width]. Needs Pillow.",
            "a size, or [height, width]", anyOf=_AREA,
        ),
        "crop": _key(
            "Size of the middle that is cut out of a picture of another size than `shape`, after `resize`.",
            "a size, or [height, width]", anyOf=_AREA,
        ),
        "filter": _key("Interpolation of pixels, by Pillow's name.", "a filter", "string", enum=list(FILTERS)),
        "scale": _key("Factor of the input, applied first.", "a number", "number"),
        "mean": _key(
            "Number that is subtracted then, or one for each channel.", "a number, or a list of numbers",
            anyOf=_several(_NUMBER),
        ),
        "std": _key(
            "Divisor, applied last, or one for each channel.", "a positive number, or a list of them",
            anyOf=_several(_POSITIVE),
        ),
    },
    ("dtype", "shape"),
)  # fmt: skip
INPUT = _table(
    {
        "name": _key("Name of the model's tensor, as in the file.", "text", "string"),
        "dtype": _key("Type of the model's tensor. Required with `preprocess`.", "a dtype", "string", enum=list(DTYPES)),
        "shape": _key("Shape of the model's tensor, with its batch axis; -1: any size. Required with `preprocess`.",
                      "a list of sizes", **_AXES),
        "layout": _key("Axes of the model's tensor, but for the batch axis.", "a layout", "string", enum=list(LAYOUTS)),
        "batch": _key('Axis of the tensor that counts the inputs, from 0; `"none"`: there is none.', _AXIS,
                      anyOf=_BATCH),
        "value": _any("Constant: a number or nested lists, which the caller does not give."),
        "preprocess": {**PREPROCESS, "description": "Steps from the caller's array to the tensor."},
    },
    ("name",),
)  # fmt: skip
STATE = _table(
    {
        "input": _key("Name of the input that takes the state.", "text", "string"),
        "output": _key("Name of the output that gives the next one.", "text", "string"),
        "shape": _key("Shape of the first state. Without it: the file's, with 1 for its one axis of any size.", "a list of sizes",
                      **{**_AXES, "items": {"type": "integer", "minimum": 0, "maximum": LARGEST}}),
        "value": _key("Value of each element of the first state.", "a number", "number"),
    },
    ("input", "output"),
)  # fmt: skip
OUTPUT = _table(
    {
        "name": _key("Output to read. Without it: all.", "text", "string"),
        "kind": _key("Kind of the output.", "a kind", "string", enum=list(KINDS)),
        "labels": _key("As `labels` at the top.", "a list", "array", items=_LABEL),
        "score": _key("Score that makes the confidence of the outputs.", "a score", "string", enum=list(SCORES)),
        "none_found": _key("Rule for a detector that finds nothing.", "a rule", "string", enum=list(RULES)),
        "blank": _key("Class of the blank in outputs of the kind `ctc`; -1: the last.", "a whole number", "integer", minimum=-1,
                      maximum=LARGEST),
        "batch": _key('Axis of each output that counts the inputs, from 0; `"none"`: there is none.', _AXIS,
                      anyOf=_BATCH),
        "dtype": _key("For readers.", "text", "string"),
        "shape": _key("For readers.", "a list of sizes", **_AXES),
    },
)  # fmt: skip
CARD = _table(
    {
        "name": _key("Name of the model in answers, traces and the server. Without it: the file's.", "text", "string"),
        "description": _key("For readers.", "text", "string"),
        "sha256": _key("SHA-256 of the model file, hex; another file is refused.", "text", "string"),
        "input": {**INPUT, "description": "The model's only input, or the first that needs a description."},
        "inputs": _key("Several inputs; those that are not listed are as the file has them.", "a list of objects",
                       "array", items=INPUT),
        "preprocess": {**PREPROCESS, "description": "Steps from the caller's array to `input`."},
        "state": _key("Outputs that are inputs of the next run.", "a list of objects", "array", items=STATE),
        "output": {**OUTPUT, "description": "Output, and how it is read."},
        "labels": _key("Class names in order. A single number is about the second of two.", "a list", "array",
                       items=_LABEL),
        **{key: _any("For readers.") for key in ("file", "bytes", "licence", "license", "data", "rebuild", "steps", "notes")},
        "$schema": _key("For editors.", "text", "string"),
    },
)  # fmt: skip


def schema() -> dict[str, Any]:
    """Return the JSON Schema of a card, draft 2020-12."""
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **CARD,
        "title": "edgeroute model card",
        "description": "Inputs and outputs of a model.",
    }


def problems(value: Any, rule: Schema = CARD, place: str = "") -> Iterator[str]:
    """Yield the problems of a value by its schema, in words.

    Nothing is raised; texts are cut.

    Args:
        value: the value.
        rule: its schema.
        place: path of the value in the card, for messages.
    """

    def expected() -> str:
        return f"{place or 'the card'}: expected {rule.get('title', 'another value')}, found {_as_text(value)}"

    if "anyOf" in rule:
        if all(any(True for _ in problems(value, part, place)) for part in rule["anyOf"]):
            yield expected()
    elif "const" in rule:
        if value != rule["const"]:
            yield expected()
    elif "type" in rule and not _is(value, rule["type"]):
        yield expected()
    elif "enum" in rule:
        if value not in rule["enum"]:
            yield f"{place}: found {_as_text(value)}: {nearest(value, rule['enum'])}"
    elif isinstance(value, dict) and "properties" in rule:
        keys = rule["properties"]
        for key in value:
            if key not in keys:
                yield f"{_join(place, clean(key, 60))}: there is no such key: {nearest(key, keys)}"
        yield from (f"{_join(place, key)}: is missing" for key in rule["required"] if key not in value)
        for key in value.keys() & keys.keys():
            yield from problems(value[key], keys[key], _join(place, key))
    elif isinstance(value, list) and "items" in rule:
        if not rule.get("minItems", 0) <= len(value) <= rule.get("maxItems", LARGEST):
            yield expected()
        for i, part in enumerate(value):
            yield from problems(part, {"title": "another value", **rule["items"]}, f"{place}[{i}]")
    elif isinstance(value, int | float) and not isinstance(value, bool):
        least, above = rule.get("minimum", -float("inf")), rule.get("exclusiveMinimum", -float("inf"))
        if not (least <= value <= rule.get("maximum", float("inf")) and value > above):
            yield expected()


def _join(place: str, key: str) -> str:
    """Return the path of a key in an object."""
    return f"{place}.{key}" if place else key


def _is(value: Any, kinds: str | list[str]) -> bool:
    """Return True if JSON Schema counts the value as one of these types.

    Booleans are no numbers; whole floats are integers; NaN and infinities are neither.
    """
    if isinstance(kinds, list):
        return any(_is(value, kind) for kind in kinds)
    if kinds in {"number", "integer"}:
        if isinstance(value, bool) or not isinstance(value, int | float):
            return False
        return isinstance(value, int) or (isfinite(value) and (kinds == "number" or value.is_integer()))
    return isinstance(value, _TYPES[kinds])


_TYPES: Mapping[str, type] = {"string": str, "object": dict, "array": list, "boolean": bool}


def _as_text(value: Any) -> str:
    """Return a value as a short text for messages, cut to 60 characters; an object only as `an object`."""
    if isinstance(value, dict):
        return "an object"
    return clean(json.dumps(value, ensure_ascii=False) if isinstance(value, str | bool | int | float | list) else repr(value), 60)


MOST = 5  # most problems of a card in one message


class CardInput(NamedTuple):
    """Description of one input of the model, by its card."""

    name: str  # name of the model's tensor
    dtype: str | None  # dtype of the tensor; None: as in the file
    shape: tuple[int, ...] | None  # shape of the tensor, with its batch axis; None: as in the file
    batch: int | None  # axis that counts the inputs; None: there is none
    batch_given: bool  # True if the card states `batch`; otherwise it is a default
    value: Any  # constant value of the tensor; None: the caller gives the input
    preprocess: Preprocess | None  # preprocessing of the caller's input; None: there is none


class CardState(NamedTuple):
    """Output that is fed back as an input."""

    input: str  # name of the input that takes the state
    output: str  # name of the output that returns the next state
    shape: tuple[int, ...] | None  # shape of the first state; None: as in the file
    value: float  # number that fills the first state


class Card:
    """Model card, from `NAME.json` beside `NAME.onnx`, or from `NAME.onnx.json`; every key is optional (docs/cards.md).

    Args:
        data: the card's JSON; None: an empty card.
        path: of its file.

    Attributes:
        foreign: file beside the model with none of a card's keys, which was not used; None: there is none.
        inputs: inputs that the card describes; a model may have further ones.
        preprocess: of the only described input; None: it has none, or there are several.
        state: outputs that are fed back.
        batch: axis of each output that counts the inputs; None: there is none; -1: the card does not state it.

    Raises:
        ModelError: the data is not a model card.
    """

    def __init__(self, data: dict[str, Any] | None = None, *, path: Path | None = None) -> None:
        self.path, self.foreign = path, cast("Path | None", None)
        try:
            data = {} if data is None else _without_nulls(data)
            _check(data)
            self.name = str(data.get("name", ""))
            self.description = str(data.get("description", ""))
            output = data.get("output", {})
            self.labels = _labels(data.get("labels"), output.get("labels"))
            self.kind: str | None = output.get("kind")
            self.output: str | None = output.get("name")
            self.score: str | None = output.get("score")
            self.none_found: str = output.get("none_found", "defer")
            self.blank = int(output.get("blank", 0))
            self.sha256: str | None = data.get("sha256")
            self.batch: int | None = _axis(output, -1)
            self.inputs = _inputs(data)
            self.state = tuple(_state(part) for part in data.get("state", ()))
            names = [part.name for part in self.inputs] + [part.input for part in self.state]
            if twice := sorted({name for name in names if names.count(name) > 1}):
                raise ValueError(f"inputs and state: {', '.join(twice)} is there twice")  # noqa: TRY301 - told with the others
            self.preprocess = self.inputs[0].preprocess if len(self.inputs) == 1 else None
        except (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError) as e:
            text = str(e) if type(e) is ValueError else f"{type(e).__name__}: {e}"
            raise ModelError(f"{path or 'the card'} is not a model card: {text}") from e

    @classmethod
    def beside(cls, model: Path, path: str | Path | Literal[False] | None = None) -> Card:
        """Read and return the card of a model file; an empty card if there is none, or another program's file in its place.

        That file is noted in `foreign`.

        Args:
            model: path of the model.
            path: path of the card; None: beside the model; False: no file is read.

        Raises:
            ModelMissing: there is no such card.
            ModelError: the file is not a model card.
        """
        if path or path is False:
            return cls.read(Path(path)) if path else cls()
        own, others = _beside(model)
        card = cls.read(own[0]) if own else cls()
        card.foreign = others[0] if others else None
        return card

    @classmethod
    def read(cls, path: Path) -> Card:
        """Read and return a card file.

        Raises:
            ModelMissing: there is no such file.
            ModelError: it is not a model card.
        """
        broken = f"is not JSON: %s; if it is no card, {_NO_CARD}"
        with named_errors(path, ModelMissing(f"there is no model card at {path}"), ModelError, broken):
            data = read_json(path)
        return cls(data, path=path)

    def of(self, name: str) -> CardInput | None:
        """Return the card's description of the input of this name; None: there is none."""
        return next((entry for entry in self.inputs if entry.name == name), None)

    @property
    def batch_first(self) -> bool:
        """True if the first axis of every tensor counts the inputs, as far as the card states it."""
        return self.batch in (-1, 0) and all(entry.batch == 0 for entry in self.inputs if entry.value is None)


def card_path(model: Path) -> Path:
    """Return the path of a model's card, or where it would be: `NAME.SUFFIX.json` beside the model, or `NAME.json`.

    The former goes first, and serves a model in several formats. Other programs' files are no cards.
    """
    own, others = _beside(model)
    return own[0] if own else model.with_name(f"{model.name}.json") if (path := model.with_suffix(".json")) in others else path


MOST_KEYS = 100  # most keys of what may be a card: comparing more takes seconds
_TELLING = ("sha256", "input", "inputs", "preprocess", "state", "output", "labels")  # keys that only a card is likely to have
_NO_CARD = "give the model card=False"


def _beside(model: Path) -> tuple[list[Path], list[Path]]:
    """Return the cards beside a model, the one that counts first, and files of other programs in their places."""
    there = [path for path in (model.with_name(f"{model.name}.json"), model.with_suffix(".json")) if path.exists()]
    others = [path for path in there if _is_foreign(path)]
    return [path for path in there if path not in others], others


def _is_foreign(path: Path) -> bool:
    """Return True for JSON that is no object, or most of whose keys are not a card's and none is nearly one; or too large."""
    try:
        data = read_json(path)
    except (OSError, ValueError) as e:
        return getattr(e, "errno", 0) == EFBIG
    if not isinstance(data, dict) or len(data) > MOST_KEYS:
        return True
    unknown = data.keys() - CARD["properties"].keys()
    if len(unknown) <= len(data) / 2 or any(key in data for key in _TELLING):
        return False
    return not any(_resembles(key, _TELLING) for key in unknown)


def _resembles(key: str, keys: Iterable[str]) -> bool:
    """Return True if a key is nearly one of these."""
    from difflib import get_close_matches

    return bool(get_close_matches(key.lower(), keys, 1, 0.75))


def _check(data: Any) -> None:
    """Raise ValueError with the first problems of the data by the schema, or with one line for another program's keys."""
    if isinstance(data, dict):
        unknown = [clean(key, 60) for key in data if key not in CARD["properties"]]
        if len(unknown) > 1 and not any(_resembles(key, CARD["properties"]) for key in unknown[:MOST_KEYS]):
            keys = ", ".join(unknown[:3]) + (", ..." if len(unknown) > 3 else "")  # noqa: PLR2004
            raise ValueError(f"{keys}: there are no such keys; if another program wrote this file, {_NO_CARD}")
    if wrong := list(islice(problems(data), MOST)):
        raise ValueError("; ".join(wrong))


def _without_nulls(data: Any) -> Any:
    """Return a copy of the data without keys whose value is null, also in nested objects."""
    if isinstance(data, dict):
        return {key: _without_nulls(value) for key, value in data.items() if value is not None}
    return [_without_nulls(value) if isinstance(value, dict) else value for value in data] if isinstance(data, list) else data


def _labels(above: list[Any] | None, of_output: list[Any] | None) -> tuple[str, ...] | None:
    """Return the labels, from the top of the card or from its output.

    None if neither has any.

    Raises:
        ValueError: both have labels, and they differ.
    """
    if above and of_output and above != of_output:
        raise ValueError("labels: there are others in output: write them once")
    return tuple(map(str, above or of_output or ())) or None


def _inputs(data: dict[str, Any]) -> tuple[CardInput, ...]:
    """Return the inputs from `inputs`, or from `input` and `preprocess`.

    Raises:
        ValueError: keys contradict each other.
    """
    several, single, above = data.get("inputs"), data.get("input"), data.get("preprocess")
    if several is not None:
        if single is not None or above is not None:
            raise ValueError("inputs: with it there is no input, and preprocess stands in each of inputs")
        return tuple(_input(each, f"inputs[{i}]") for i, each in enumerate(several))
    if above is not None:
        if single is None:
            raise ValueError("preprocess: it needs input, with the name, dtype and shape of the model's tensor")
        if "preprocess" in single:
            raise ValueError("preprocess: it is in input as well")
        single = {**single, "preprocess": above}
    return () if single is None else (_input(single, "input"),)


def _input(data: dict[str, Any], place: str) -> CardInput:
    """Build the description of one input from its JSON.

    Raises:
        ValueError: keys contradict each other.
    """
    name, dtype, preprocess = data["name"], data.get("dtype"), data.get("preprocess")
    shape = tuple(map(int, data["shape"])) if "shape" in data else None
    batch = _axis(data, None if shape == () else 0)
    if shape is not None and batch is not None and batch >= len(shape):
        raise ValueError(f"{place}.batch: there is no axis {batch} in {list(shape)}")
    if preprocess is None:
        layout = data.get("layout")
        if layout and shape is not None and len(layout) != len(shape) - (batch is not None):
            raise ValueError(f"{place}.layout: {layout} has {len(layout)} axes, unlike {list(shape)} without its batch axis")
        return CardInput(name, dtype, shape, batch, "batch" in data, data.get("value"), None)
    if "value" in data:
        raise ValueError(f"{place}: a constant, value, has no preprocess")
    if dtype is None or shape is None:
        raise ValueError(f"{place}: preprocess needs dtype and shape of the model's tensor beside it")
    from edgeroute.edge.preprocessing import preprocess_of  # imported for cards that have some

    prepared = preprocess_of(TensorSpec(name, dtype, shape), data.get("layout"), batch, preprocess)
    return CardInput(name, dtype, shape, batch, "batch" in data, None, prepared)


def _state(data: dict[str, Any]) -> CardState:
    """Build the description of one state from its JSON; its first value is 0 by default."""
    shape = tuple(map(int, data["shape"])) if "shape" in data else None
    return CardState(data["input"], data["output"], shape, float(data.get("value", 0)))


def _axis(data: dict[str, Any], default: int | None) -> int | None:
    """Return the batch axis that this JSON states, or the default; None: there is no such axis."""
    batch = data.get("batch", default)
    return None if batch is None or batch == "none" else int(batch)


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file or a folder, hex. Reads all of it.

    For a folder, it is the hash of the output of `sha256sum` for its files, by their paths in it, sorted by bytes.

    Raises:
        ModelMissing: there is no such file.
        ModelError: it cannot be read, or is a pipe or device.
    """
    with named_errors(path, ModelMissing(f"there is no model at {path}"), ModelError):
        if not path.is_dir():
            return file_sha256(path)
        files = {file.relative_to(path).as_posix().encode(): file_sha256(file) for file in files_in(path)}
    return sha256(b"".join(b"%b  %b\n" % (files[name].encode(), name) for name in sorted(files))).hexdigest()


def checked_sha256(path: Path, expected: str | None) -> str:
    """Return `sha256_of` a model, after comparing it with the expected one, if there is one.

    Raises:
        ModelMissing, ModelError: as `sha256_of`, or it is another model.
    """
    sha256 = sha256_of(path)
    if expected and sha256 != expected.lower():
        raise ModelError(
            f"{path} is not the expected model: its sha256 is {sha256}, expected {expected}. "
            "Fetch the model again, or correct the card or policy"
        )
    return sha256
