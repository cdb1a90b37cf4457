"""Guesses what a model's inputs are: pictures, features, tokens, states, constants; by names, dtypes and shapes. Pure."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from math import prod
from typing import Any, Literal, NamedTuple

import numpy as np

from edgeroute.core.words import clean
from edgeroute.edge.tensors import Array, shape_text
from edgeroute.types import TensorSpec

Sure = Literal["certain", "likely", "open"]
"""What the file itself says; what has good grounds; what only a person can say."""
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Of ImageNet, by which most models of colour pictures are normalised."""
_LEAST = 8
"""Pixels of a side: what is smaller is no picture."""
_GREY, _COLOURS, _ALPHA = 1, 3, 4
_PICTURE = 3
"""Axes of a picture with channels."""
_WORDS = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|[0-9]+")
_BEFORE = frozenset(["in", "input", "inputs", "prev", "previous", "old", "past", "init", "initial", "0"])
_AFTER = frozenset(["out", "output", "outputs", "next", "new", "n", "t", "1", "cur", "current", "present", "updated"])
_STATES = frozenset(
    {"state", "states", "h", "c", "hn", "cn", "hidden", "cell", "cache", "mem", "memory", "ctx", "context", "rnn", "lstm", "gru"}
    | {"buffer", "past", "present", "key", "value"}
)
TOKENS = frozenset(["ids", "id", "tokens", "token", "mask"])
_RATES = frozenset(["sr", "sample", "rate", "samplerate"])
_CACHE = re.compile(r"(?<=past|sent)_key_values")
"""Of a language model's cache: past_key_values.0.key and present.0.key."""
_FREE = {"picture": (224, 64, 640, 32), "other": (16, 512, 64, 1, 576, 4096)}
"""Sizes that are tried for axes of any size."""


class Finding(NamedTuple):
    """One thing that is known of a model, or is not."""

    about: str
    """Of what, as in a card: `inputs.x`, `output.kind`."""
    says: str
    sure: Sure
    grounds: str
    """Why, in words."""
    write: str = ""
    """The lines of a card that say it, where it is open."""


class Pair(NamedTuple):
    """An output that seems to be an input of the next run."""

    input: str
    output: str
    sure: Sure
    grounds: str


class Tried(NamedTuple):
    """A preprocessing that pictures are often given."""

    about: str
    preprocess: dict[str, Any]


class InputGuess(NamedTuple):
    """What an input seems to be."""

    spec: TensorSpec
    role: Literal["given", "state", "constant"]
    batch: int | None
    """The axis that counts the inputs; None: there is none."""
    layout: str | None
    findings: tuple[Finding, ...]
    tried: tuple[Tried, ...] = ()
    """How the caller's pictures may become its tensor."""
    value: Any = None
    """Of a constant; None: unknown."""

    @property
    def written(self) -> dict[str, Any]:
        """What a card says of it."""
        spec = self.spec
        told: dict[str, Any] = {"name": spec.name, "shape": list(spec.shape)}
        if spec.dtype != "object":
            told["dtype"] = spec.dtype
        if self.layout is not None:
            told["layout"] = self.layout
        if self.batch is None and spec.shape:
            told["batch"] = "none"
        if self.value is not None:
            told["value"] = self.value
        return told


def quoted(name: str) -> str:
    """A tensor's name for people."""
    return clean(name, 60)


def text(name: str) -> str:
    """The same, as it is in JSON."""
    return json.dumps(quoted(name), ensure_ascii=False)


def words(name: str) -> list[str]:
    """The words in a name: `input_ids`, `inputIds` and `input.ids` have the same."""
    return [word.lower() for word in _WORDS.findall(name)]


def pairs(inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]) -> list[Pair]:
    """Outputs whose names say that they are fed back, with the inputs that take them."""
    found = list[Pair]()
    for spec in inputs:
        stem = _stem(spec.name, _BEFORE)
        for other in outputs:
            if other.name in [one.output for one in found] or not _same_form(spec, other):
                continue
            if _follows(spec.name, other.name) or (stem and stem == _stem(other.name, _AFTER) and spec.name != other.name):
                known = not _STATES.isdisjoint(words(spec.name))
                said = f"{quoted(other.name)} has the dtype and, as far as it is known, the shape of {quoted(spec.name)}"
                named = "and its name says that it is the next one" if known else "and a similar name"
                several = spec.shape.count(-1) > 1
                if several:
                    named += "; the size of the first one is not in the file"
                found.append(Pair(spec.name, other.name, "likely" if known and not several else "open", f"{said}, {named}"))
                break
    return found if len(found) < len(inputs) else []


def _follows(name: str, other: str) -> bool:
    """Whether the output's name is the input's with something behind it: `state` and `stateN`, `h` and `hn`."""
    return other.lower() in {f"{name.lower()}{more}" for more in ("n", "_n", "_out", "_next", "_new", "out", "next")}


def _stem(name: str, affixes: frozenset[str]) -> tuple[str, ...]:
    all_words = [{"hn": "h", "cn": "c"}.get(word, word) for word in words(_CACHE.sub("", name))]
    return tuple(word for i, word in enumerate(all_words) if word not in affixes or 0 < i < len(all_words) - 1)


def _same_form(spec: TensorSpec, other: TensorSpec) -> bool:
    if spec.dtype != other.dtype or spec.dtype == "object" or len(spec.shape) < 2:  # noqa: PLR2004 - a batch and a state
        return False
    same = len(spec.shape) == len(other.shape)
    return same and all(a == b or -1 in (a, b) for a, b in zip(spec.shape, other.shape, strict=True))


def describe(inputs: Sequence[TensorSpec], states: Sequence[Pair], given: Mapping[str, Any] | None = None) -> list[InputGuess]:
    """What each input seems to be. `given`: of the sample, by name."""
    kept = {one.input: one for one in states if one.sure != "open"}
    alone = len(inputs) == 1
    return [
        _state(spec, kept[spec.name])
        if spec.name in kept
        else _constant(spec, (given or {}).get(spec.name))
        if not alone and _single(spec, inputs)
        else _given(spec)
        for spec in inputs
    ]


def _single(spec: TensorSpec, inputs: Sequence[TensorSpec]) -> bool:
    """Whether an input beside others is one number for all of a batch."""
    batched = any(other.shape[:1] == (-1,) for other in inputs)
    return not spec.shape or (spec.shape == (1,) and batched)


def _state(spec: TensorSpec, pair: Pair) -> InputGuess:
    finding = Finding(
        f"state.{quoted(spec.name)}", f"{quoted(pair.output)} is fed back as {quoted(spec.name)}", pair.sure, pair.grounds
    )
    return InputGuess(spec, "state", None, None, (finding,))


def _constant(spec: TensorSpec, given: Any) -> InputGuess:
    about = f"inputs.{quoted(spec.name)}"
    size = "no axes" if not spec.shape else "one element"
    if given is not None and np.size(given) == 1 and np.asarray(given).dtype.kind in "biuf":
        value = np.asarray(given).reshape(-1)[0].item()
        why = f"it has {size}, so none that counts the inputs, and the sample has {value}"
        return InputGuess(spec, "constant", None, None, (Finding(about, f"a constant, {value}", "likely", why),), (), value)
    usual = 16000 if not _RATES.isdisjoint(words(spec.name)) else None
    hint = f"; rates are {usual} or 8000 in most such models" if usual else ""
    line = f'"inputs": [..., {{"name": {text(spec.name)}, "value": {"?" if usual is None else usual}}}]'
    why = f"it has {size}, so none that counts the inputs; which number it is, the file does not say{hint}"
    return InputGuess(spec, "constant", None, None, (Finding(about, "a constant?", "open", why, line),))


def _given(spec: TensorSpec) -> InputGuess:
    about, shape = f"inputs.{quoted(spec.name)}", spec.shape
    batch, axis = _batch(spec)
    row = shape if batch is None else shape[1:]
    layout = _layout(row, spec.dtype)
    found = [Finding(f"{about}.batch", *axis)] if axis is not None else []
    if layout is not None:
        return _picture(spec, batch, layout, found)
    floats = spec.dtype.startswith("float")
    if spec.dtype == "object":
        says: tuple[str, Sure, str] = ("texts, as they are", "likely", "the tensor's elements are texts")
    elif not TOKENS.isdisjoint(words(spec.name)) and not floats:
        says = ("tokens, as they are", "likely", f"integers, and its name is {quoted(spec.name)}: your tokenizer gives them")
    elif len(row) == _PICTURE or (len(row) == _PICTURE - 1 and floats and min(row) >= _LEAST):
        wide = f"numbers in {len(row)} axes, {shape_text(row)}: it could be a picture, a spectrogram, or a sequence of vectors"
        says = ("as it is?", "open", f"{wide}, and the file does not say which")
    elif row and row[-1] == -1:
        says = ("none", "likely", "numbers in any quantity, such as samples of sound: they are taken as they are")
    else:
        count = "numbers" if -1 in row else "one number" if prod(row) == 1 else f"{prod(row)} numbers"
        says = (
            "none",
            "likely",
            f"{count} for each input: features are taken as they are; what was scaled for training is yours to scale",
        )
    line = ""
    if says[1] == "open" and len(row) == _PICTURE:
        line = '"layout": "CHW"  (or "HWC"), and "preprocess", if it is a picture'
    elif says[1] == "open":
        line = '"layout": "HW", and "preprocess", if it is a picture'
    found.append(Finding(f"{about}.preprocess", *says, line))
    return InputGuess(spec, "given", batch, None, tuple(found))


def _batch(spec: TensorSpec) -> tuple[int | None, tuple[str, Sure, str, str] | None]:
    """The axis that counts the inputs, and what is to be said of it."""
    shape = spec.shape
    if not shape:
        return None, None
    if shape[0] == -1:
        return 0, ("the first axis counts the inputs", "likely", "it may have any size", "")
    if shape[0] == 1:
        return 0, ("one input for each run", "likely", "the first axis has the size 1", "")
    if len(shape) == 1 or (len(shape) == _PICTURE and _layout(shape, spec.dtype) not in (None, "HW")):
        what = "there would be nothing left" if len(shape) == 1 else "the tensor is one picture"
        return None, ("no axis counts the inputs", "likely", f"the first axis has the size {shape[0]}, and without it {what}", "")
    fixed = f"the first axis has the size {shape[0]}: so many inputs in each run, or no batch axis at all"
    return 0, (f"{shape[0]} inputs for each run?", "open", fixed, '"batch": "none"  (if it does not count the inputs)')


def _layout(row: Sequence[int], dtype: str) -> str | None:
    """The layout of what looks like a picture."""
    floats = dtype.startswith("float")
    if not floats and dtype != "uint8":
        return None
    channels = (_GREY, _COLOURS) if floats else (_GREY, _COLOURS, _ALPHA)

    def sides(*sizes: int) -> bool:
        return all(size == -1 or size >= _LEAST for size in sizes)

    if len(row) == _PICTURE:
        first, last = row[0] in channels and sides(*row[1:]), row[2] in channels and sides(*row[:2])
        return "CHW" if first and not last else "HWC" if last and not first else None
    return "HW" if len(row) == _PICTURE - 1 and not floats and sides(*row) else None


def _picture(spec: TensorSpec, batch: int | None, layout: str, found: list[Finding]) -> InputGuess:
    about = f"inputs.{quoted(spec.name)}"
    row = spec.shape if batch is None else spec.shape[1:]
    sizes = dict(zip(layout, row, strict=True))
    colours = {_GREY: "a grey picture", _COLOURS: "a colour picture", _ALPHA: "a picture with alpha"}
    what = "a grey picture" if layout == "HW" else colours[sizes["C"]]
    where = "" if layout == "HW" else f", and the axis of {sizes['C']} is that of channels"
    why = f"{spec.dtype} {shape_text(row)}: the sides are {_side(sizes['H'])} and {_side(sizes['W'])}{where}"
    if layout == "CHW" and sizes["C"] == _GREY:
        why += "; a spectrogram has the same form"
    found = [*found, Finding(f"{about}.layout", f"{what}, {layout}", "likely", why)]
    tried = _tried(spec.dtype, layout, sizes)
    if spec.dtype == "uint8":
        said = "it takes the pixels as they are, 0 to 255"
        more = ' (yours have the colours last? "preprocess" turns them)' if layout == "CHW" else ""
        found.append(Finding(f"{about}.preprocess", "none", "likely", f"{said}{more}"))
    else:
        lines = "\n".join(f'"preprocess": {json.dumps(one.preprocess)}  ({one.about})' for one in tried)
        asked = (
            "it takes floats: whether pixels are 0 to 255, 0 to 1, or normalised, the file does not say; the training code does"
        )
        found.append(Finding(f"{about}.preprocess", "scale, mean and std?", "open", asked, lines))
    return InputGuess(spec, "given", batch, layout, tuple(found), tried)


def _side(size: int) -> str:
    return "any" if size == -1 else str(size)


def _tried(dtype: str, layout: str, sizes: Mapping[str, int]) -> tuple[Tried, ...]:
    """How pictures, height first and colours last, may become the tensor."""
    given = "HW" if layout == "HW" else "HWC"
    base: dict[str, Any] = {"dtype": "uint8", "shape": [sizes[letter] for letter in given], "layout": given}
    if -1 not in (sizes["H"], sizes["W"]):
        base["resize"] = [sizes["H"], sizes["W"]]
    if dtype == "uint8":
        return (Tried("pixels as they are", base),)
    tried = [Tried("0 to 1", {**base, "scale": 1 / 255})]
    if sizes.get("C") == _COLOURS:
        tried.append(Tried("ImageNet's mean and std", {**base, "scale": 1 / 255, "mean": list(MEAN), "std": list(STD)}))
    tried.append(Tried("-1 to 1", {**base, "scale": 1 / 255, "mean": 0.5, "std": 0.5}))
    return (*tried, Tried("0 to 255", base))


def feeds(inputs: Sequence[InputGuess], most: int) -> Iterator[dict[str, Array]]:
    """Tensors of zeros to try a model with, one for each size that its free axes may have; what has more elements is left out."""
    for i in range(max(map(len, _FREE.values()))):
        shapes = {one.spec.name: _shape(one, 1, i) for one in inputs}
        if sum(map(prod, shapes.values())) <= most:
            yield {one.spec.name: _zeros(one, shapes[one.spec.name]) for one in inputs}
        if not any(-1 in one.spec.shape[1:] for one in inputs if one.role == "given"):
            return


def variations(inputs: Sequence[InputGuess], zeros: Mapping[str, Array]) -> Iterator[dict[str, Array]]:
    """Further tensors for a model that runs on these zeros: random ones, and several inputs at a time if it takes them."""
    rng = np.random.default_rng(0)
    several = all(
        one.role == "constant" or (one.role == "given" and one.batch == 0 and one.spec.shape[0] == -1) for one in inputs
    )
    for low, high in ((-2.0, 2.0), (0.0, 1.0), (-50.0, 50.0)):
        feed = {}
        for one in inputs:
            array = zeros[one.spec.name]
            if one.role == "given":
                count = 3 if several else array.shape[0] if array.ndim else 1
                shape = (count, *array.shape[1:]) if array.ndim else ()
                array = _random(one.spec.dtype, shape, low, high, rng)
            feed[one.spec.name] = array
        yield feed


def _shape(one: InputGuess, count: int, i: int) -> tuple[int, ...]:
    sizes = _FREE["picture" if one.layout is not None else "other"]
    free = sizes[min(i, len(sizes) - 1)]
    if one.role != "given":
        return tuple(1 if size == -1 else size for size in one.spec.shape)
    return tuple(size if size != -1 else count if axis == one.batch else free for axis, size in enumerate(one.spec.shape))


def _zeros(one: InputGuess, shape: tuple[int, ...]) -> Array:
    spec = one.spec
    if one.role == "constant":
        usual = 16000 if not _RATES.isdisjoint(words(spec.name)) else 0
        return np.full(shape, usual if one.value is None else one.value, spec.dtype if spec.dtype != "object" else object)
    return np.full(shape, "", object) if spec.dtype == "object" else np.zeros(shape, spec.dtype)


def _random(dtype: str, shape: tuple[int, ...], low: float, high: float, rng: np.random.Generator) -> Array:
    if dtype == "object":
        return np.full(shape, "a", object)
    if dtype.startswith("float"):
        return rng.uniform(low, high, shape).astype(dtype)
    if dtype == "uint8":
        return rng.integers(0, 256, shape).astype(dtype)
    return rng.integers(0, 2, shape).astype(dtype)  # of tokens, say, there may be two only
