"""Guesses of a model's inputs (pictures, features, tokens, states, constants) from names, dtypes and shapes; trial tensors.

No I/O.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from math import prod
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np

from edgeroute.core.error_codes_and_texts import clean
from edgeroute.edge.input_checks_and_stacking import Array, shape_text
from edgeroute.types import TensorSpec

if TYPE_CHECKING:
    from edgeroute.edge.model_card import Card

Sure = Literal["certain", "likely", "open"]  # stated by the file itself; guessed on good grounds; known only to a person
# Mean and standard deviation of ImageNet, by which most models of colour pictures are normalised.
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_LEAST = 8  # least pixels of a picture's side
_GREY, _COLOURS, _ALPHA = 1, 3, 4
_PICTURE_AXES = 3  # axes of a picture with channels
_WORDS = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|[0-9]+")
_BEFORE = frozenset(["in", "input", "inputs", "prev", "previous", "old", "past", "init", "initial", "0"])
_AFTER = frozenset(["out", "output", "outputs", "next", "new", "n", "t", "1", "cur", "current", "present", "updated"])
_STATES = frozenset(
    {"state", "states", "h", "c", "hn", "cn", "hidden", "cell", "cache", "mem", "memory", "ctx", "context", "rnn", "lstm", "gru"}
    | {"buffer", "past", "present", "key", "value"}
)
TOKENS = frozenset(["ids", "id", "tokens", "token", "mask"])
_RATES = frozenset(["sr", "sample", "rate", "samplerate"])
# Part of the names of a language model's cache: past_key_values.0.key and present.0.key.
_CACHE = re.compile(r"(?<=past|sent)_key_values")
_FREE = {"picture": (224, 64, 640, 32), "other": (16, 512, 64, 1, 576, 4096)}  # sizes to try for axes of any size


class Finding(NamedTuple):
    """Guess or open question about one field of a model's card."""

    about: str  # field of a card: `inputs.x`, `output.kind`
    says: str
    sure: Sure
    grounds: str  # reason in words
    write: str = ""  # lines of a card that answer it, where it is open


class Pair(NamedTuple):
    """Output that seems to be an input of the next run."""

    input: str
    output: str
    sure: Sure
    grounds: str


class Preparation(NamedTuple):
    """Preprocessing that is common for pictures."""

    about: str
    preprocess: dict[str, Any]


class InputGuess(NamedTuple):
    """Guess of an input's meaning."""

    spec: TensorSpec
    role: Literal["given", "state", "constant"]
    batch: int | None  # axis that counts the inputs; None: there is none
    layout: str | None
    findings: tuple[Finding, ...]
    preparations: tuple[Preparation, ...] = ()  # possible preprocessings of the caller's pictures
    value: Any = None  # value of a constant; None: unknown

    @property
    def written(self) -> dict[str, Any]:
        """Entry of this input in a card: name, shape; dtype, layout, a fixed `value` if known; batch "none" without an axis."""
        spec = self.spec
        entry: dict[str, Any] = {"name": spec.name, "shape": list(spec.shape)}
        if spec.dtype != "object":
            entry["dtype"] = spec.dtype
        if self.layout is not None:
            entry["layout"] = self.layout
        if self.batch is None and spec.shape:
            entry["batch"] = "none"
        if self.value is not None:
            entry["value"] = self.value
        return entry


def quoted(name: str) -> str:
    """Return a tensor's name for messages: printable and at most 60 characters."""
    return clean(name, 60)


def text(name: str) -> str:
    """Return a tensor's name as a JSON string, cut to 60 characters."""
    return json.dumps(quoted(name), ensure_ascii=False)


def words(name: str) -> list[str]:
    """Return the words in a name in lower case: `input_ids`, `inputIds` and `input.ids` have the same."""
    return [word.lower() for word in _WORDS.findall(name)]


def pairs(inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]) -> list[Pair]:
    """Guess by names and shapes which outputs are fed back, and return them with the inputs that take them.

    A pair is likely if its name is that of a state and its size is known, else open. None are returned if they would take every
    input.
    """
    result = list[Pair]()
    for spec in inputs:
        stem = _stem(spec.name, _BEFORE)
        for other in outputs:
            if other.name in [pair.output for pair in result] or not _same_form(spec, other):
                continue
            suffixes = ("n", "_n", "_out", "_next", "_new", "out", "next")  # `state` and `stateN`, `h` and `hn`
            follows = other.name.lower() in {f"{spec.name.lower()}{suffix}" for suffix in suffixes}
            if follows or (stem and stem == _stem(other.name, _AFTER) and spec.name != other.name):
                is_state = not _STATES.isdisjoint(words(spec.name))
                same_form = f"{quoted(other.name)} has the dtype and, as far as known, the shape of {quoted(spec.name)}"
                named = "and its name says that it is the next one" if is_state else "and a similar name"
                several = spec.shape.count(-1) > 1
                if several:
                    named += "; the size of the first one is not in the file"
                sure: Sure = "likely" if is_state and not several else "open"
                result.append(Pair(spec.name, other.name, sure, f"{same_form}, {named}"))
                break
    return result if len(result) < len(inputs) else []


def state_problem(card: Card, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]) -> str:
    """Return an error text for an input that is a state by its name, and that the card does not mention; empty: there is none."""
    for pair in pairs(inputs, outputs):
        if pair.sure != "open" and card.of(pair.input) is None:
            return (
                f"the input {clean(pair.input)} is a state by its name, and {clean(pair.output)} the next one: "
                "`edgeroute inspect MODEL --write` writes a card with it; or name that input in the card, if callers give it"
            )
    return ""


def _stem(name: str, affixes: frozenset[str]) -> tuple[str, ...]:
    """Return the words of a name without such affixes at its ends."""
    all_words = [{"hn": "h", "cn": "c"}.get(word, word) for word in words(_CACHE.sub("", name))]
    return tuple(word for i, word in enumerate(all_words) if word not in affixes or 0 < i < len(all_words) - 1)


def _same_form(spec: TensorSpec, other: TensorSpec) -> bool:
    """Return True if two tensors of numbers have the same dtype, and as many axes, two or more, of equal or unknown sizes."""
    if spec.dtype != other.dtype or spec.dtype == "object" or len(spec.shape) < 2:  # noqa: PLR2004 - a batch and a state
        return False
    same = len(spec.shape) == len(other.shape)
    return same and all(a == b or -1 in (a, b) for a, b in zip(spec.shape, other.shape, strict=True))


def describe(inputs: Sequence[TensorSpec], states: Sequence[Pair], fixed: Mapping[str, Any] | None = None) -> list[InputGuess]:
    """Guess the role of each input, in order: state (fed back), constant (one number beside other inputs), or given by callers.

    Args:
        inputs: specifications of the inputs.
        states: pairs of `pairs`; open ones do not count.
        fixed: tensors of a sample, by name, from which constants take their values.
    """
    state_pairs = {pair.input: pair for pair in states if pair.sure != "open"}
    batched = any(spec.shape[:1] == (-1,) for spec in inputs)
    result = list[InputGuess]()
    for spec in inputs:
        if pair := state_pairs.get(spec.name):
            says = f"{quoted(pair.output)} is fed back as {quoted(spec.name)}"
            finding = Finding(f"state.{quoted(spec.name)}", says, pair.sure, pair.grounds)
            result.append(InputGuess(spec, "state", None, None, (finding,)))
        elif len(inputs) > 1 and (not spec.shape or (spec.shape == (1,) and batched)):
            result.append(_constant_guess(spec, (fixed or {}).get(spec.name)))
        else:
            result.append(_given_guess(spec))
    return result


def _constant_guess(spec: TensorSpec, constant: Any) -> InputGuess:
    """Return the guess of an input of one number: a likely constant with the sample's value, else an open question."""
    about = f"inputs.{quoted(spec.name)}"
    size = "no axes" if not spec.shape else "one element"
    if constant is not None and np.size(constant) == 1 and np.asarray(constant).dtype.kind in "biuf":
        value = np.asarray(constant).reshape(-1)[0].item()
        why = f"it has {size}, so none that counts the inputs, and the sample has {value}"
        return InputGuess(spec, "constant", None, None, (Finding(about, f"a constant, {value}", "likely", why),), (), value)
    usual = 16000 if not _RATES.isdisjoint(words(spec.name)) else None
    hint = f"; rates are {usual} or 8000 in most such models" if usual else ""
    line = f'"inputs": [..., {{"name": {text(spec.name)}, "value": {"?" if usual is None else usual}}}]'
    why = f"it has {size}, so none that counts the inputs; the file does not state the number{hint}"
    return InputGuess(spec, "constant", None, None, (Finding(about, "a constant?", "open", why, line),))


def _given_guess(spec: TensorSpec) -> InputGuess:
    """Return the guess of an input that callers pass: its batch axis, and if it is a picture, texts, tokens or features.

    Preprocessing is an open question for tensors that could be pictures or sequences.
    """
    about, shape = f"inputs.{quoted(spec.name)}", spec.shape
    batch, axis = _batch_axis(spec)
    row = shape if batch is None else shape[1:]
    layout = _layout(row, spec.dtype)
    findings = [Finding(f"{about}.batch", *axis)] if axis is not None else []
    if layout is not None:
        return _picture_guess(spec, batch, layout, findings)
    floats, line = spec.dtype.startswith("float"), ""
    if spec.dtype == "object":
        says: tuple[str, Sure, str] = ("texts, unchanged", "likely", "the tensor's elements are texts")
    elif not TOKENS.isdisjoint(words(spec.name)) and not floats:
        says = ("tokens, unchanged", "likely", f"integers, and its name is {quoted(spec.name)}: your tokenizer makes them")
    elif len(row) == _PICTURE_AXES or (len(row) == _PICTURE_AXES - 1 and floats and min(row) >= _LEAST):
        wide = f"numbers in {len(row)} axes, {shape_text(row)}: it could be a picture, a spectrogram, or a sequence of vectors"
        says = ("unchanged?", "open", f"{wide}, and the file does not say which")
        axes = '"CHW"  (or "HWC")' if len(row) == _PICTURE_AXES else '"HW"'
        line = f'"layout": {axes}, and "preprocess", if it is a picture'
    elif row and row[-1] == -1:
        says = ("none", "likely", "any number of values, such as samples of sound: they are passed unchanged")
    else:
        count = "numbers" if -1 in row else "one number" if prod(row) == 1 else f"{prod(row)} numbers"
        says = ("none", "likely", f"{count} for each input: features are passed unchanged; scale them yourself as for training")
    findings.append(Finding(f"{about}.preprocess", *says, line))
    return InputGuess(spec, "given", batch, None, tuple(findings))


def _batch_axis(spec: TensorSpec) -> tuple[int | None, tuple[str, Sure, str, str] | None]:
    """Return the axis that counts the inputs (None: there is none), and the finding about it; none for a single number."""
    shape = spec.shape
    if not shape:
        return None, None
    if shape[0] == -1:
        return 0, ("the first axis counts the inputs", "likely", "it may have any size", "")
    if shape[0] == 1:
        return 0, ("one input for each run", "likely", "the first axis has the size 1", "")
    if len(shape) == 1 or (len(shape) == _PICTURE_AXES and _layout(shape, spec.dtype) not in (None, "HW")):
        what = "there would be nothing left" if len(shape) == 1 else "the tensor is one picture"
        return None, ("no axis counts the inputs", "likely", f"the first axis has the size {shape[0]}, and without it {what}", "")
    fixed = f"the first axis has the size {shape[0]}: so many inputs in each run, or no batch axis at all"
    return 0, (f"{shape[0]} inputs for each run?", "open", fixed, '"batch": "none"  (if it does not count the inputs)')


def _layout(row: Sequence[int], dtype: str) -> str | None:
    """Return CHW, HWC or HW if a row has the sizes and dtype (floats, uint8) of a picture; None otherwise, or if ambiguous."""
    floats = dtype.startswith("float")
    if not floats and dtype != "uint8":
        return None
    channels = (_GREY, _COLOURS) if floats else (_GREY, _COLOURS, _ALPHA)

    def sides(*sizes: int) -> bool:
        """Return True if all sizes may be sides of a picture."""
        return all(size == -1 or size >= _LEAST for size in sizes)

    if len(row) == _PICTURE_AXES:
        first, last = row[0] in channels and sides(*row[1:]), row[2] in channels and sides(*row[:2])
        return "CHW" if first and not last else "HWC" if last and not first else None
    return "HW" if len(row) == _PICTURE_AXES - 1 and not floats and sides(*row) else None


def _picture_guess(spec: TensorSpec, batch: int | None, layout: str, findings: list[Finding]) -> InputGuess:
    """Return the guess of a picture input with its layout, and `findings` with further ones, in a new list.

    Of floats, preprocessing is an open question. Possible preprocessings are in `preparations`.
    """
    about = f"inputs.{quoted(spec.name)}"
    row = spec.shape if batch is None else spec.shape[1:]
    sizes = dict(zip(layout, row, strict=True))
    colours = {_GREY: "a grey picture", _COLOURS: "a colour picture", _ALPHA: "a picture with alpha"}
    what = "a grey picture" if layout == "HW" else colours[sizes["C"]]
    where = "" if layout == "HW" else f", and the axis of {sizes['C']} is that of channels"
    why = f"{spec.dtype} {shape_text(row)}: the sides are {_side(sizes['H'])} and {_side(sizes['W'])}{where}"
    if layout == "CHW" and sizes["C"] == _GREY:
        why += "; a spectrogram has the same form"
    findings = [*findings, Finding(f"{about}.layout", f"{what}, {layout}", "likely", why)]
    preparations = _preparations(spec.dtype, layout, sizes)
    if spec.dtype == "uint8":
        more = ' (yours have the colours last? "preprocess" turns them)' if layout == "CHW" else ""
        findings.append(Finding(f"{about}.preprocess", "none", "likely", f"it takes unchanged pixels, 0 to 255{more}"))
    else:
        lines = "\n".join(f'"preprocess": {json.dumps(way.preprocess)}  ({way.about})' for way in preparations)
        why = "it takes floats, and the file does not say if pixels are 0 to 255, 0 to 1, or normalised: see the training code"
        findings.append(Finding(f"{about}.preprocess", "scale, mean and std?", "open", why, lines))
    return InputGuess(spec, "given", batch, layout, tuple(findings), preparations)


def _side(size: int) -> str:
    """Return a side as text."""
    return "any" if size == -1 else str(size)


def _preparations(dtype: str, layout: str, sizes: Mapping[str, int]) -> tuple[Preparation, ...]:
    """Return common preprocessings of pictures, height first and colours last, into the tensor; with a resize to a fixed size.

    For uint8 one, unchanged pixels; for floats 0 to 1, ImageNet's (of colours), -1 to 1, and 0 to 255.
    """
    layout_given = "HW" if layout == "HW" else "HWC"
    base: dict[str, Any] = {"dtype": "uint8", "shape": [sizes[letter] for letter in layout_given], "layout": layout_given}
    if -1 not in (sizes["H"], sizes["W"]):
        base["resize"] = [sizes["H"], sizes["W"]]
    if dtype == "uint8":
        return (Preparation("pixels as they are", base),)
    results = [Preparation("0 to 1", {**base, "scale": 1 / 255})]
    if sizes.get("C") == _COLOURS:
        results.append(Preparation("ImageNet's mean and std", {**base, "scale": 1 / 255, "mean": list(MEAN), "std": list(STD)}))
    results.append(Preparation("-1 to 1", {**base, "scale": 1 / 255, "mean": 0.5, "std": 0.5}))
    return (*results, Preparation("0 to 255", base))


def feeds(inputs: Sequence[InputGuess], most: int) -> Iterator[dict[str, Array]]:
    """Yield tensors of zeros, for one input, to try a model with: a set for each size of its free axes, or one set without such.

    Sets with more than `most` elements are left out.
    """
    for i in range(max(map(len, _FREE.values()))):
        shapes = {guess.spec.name: _shape(guess, 1, i) for guess in inputs}
        if sum(map(prod, shapes.values())) <= most:
            yield {guess.spec.name: _zeros(guess, shapes[guess.spec.name]) for guess in inputs}
        if not any(-1 in guess.spec.shape[1:] for guess in inputs if guess.role == "given"):
            return


def random_feeds(inputs: Sequence[InputGuess], zeros: Mapping[str, Array]) -> Iterator[dict[str, Array]]:
    """Yield three feeds with a fixed seed, of floats from -2 to 2, 0 to 1 and -50 to 50; states and constants stay as in `zeros`.

    Each is of three inputs if the model takes batches, else of as many as `zeros`. Integers and texts as in `_random`.
    """
    rng = np.random.default_rng(0)
    several = all(
        guess.role == "constant" or (guess.role == "given" and guess.batch == 0 and guess.spec.shape[0] == -1) for guess in inputs
    )
    for low, high in ((-2.0, 2.0), (0.0, 1.0), (-50.0, 50.0)):
        feed = {}
        for guess in inputs:
            array = zeros[guess.spec.name]
            if guess.role == "given":
                count = 3 if several else array.shape[0] if array.ndim else 1
                shape = (count, *array.shape[1:]) if array.ndim else ()
                array = _random(guess.spec.dtype, shape, low, high, rng)
            feed[guess.spec.name] = array
        yield feed


def _shape(guess: InputGuess, count: int, i: int) -> tuple[int, ...]:
    """Return a tensor's shape in try i: free axes get the i-th usual size, the batch axis `count`; in states and constants 1."""
    sizes = _FREE["picture" if guess.layout is not None else "other"]
    free = sizes[min(i, len(sizes) - 1)]
    if guess.role != "given":
        return tuple(1 if size == -1 else size for size in guess.spec.shape)
    return tuple(size if size != -1 else count if axis == guess.batch else free for axis, size in enumerate(guess.spec.shape))


def _zeros(guess: InputGuess, shape: tuple[int, ...]) -> Array:
    """Return a tensor of zeros, or of empty texts; a constant has its value, else a usual one."""
    spec = guess.spec
    if guess.role == "constant":
        usual = 16000 if not _RATES.isdisjoint(words(spec.name)) else 0
        return np.full(shape, usual if guess.value is None else guess.value, spec.dtype if spec.dtype != "object" else object)
    return np.full(shape, "", object) if spec.dtype == "object" else np.zeros(shape, spec.dtype)


def _random(dtype: str, shape: tuple[int, ...], low: float, high: float, rng: np.random.Generator) -> Array:
    """Draw a tensor of this dtype at random: floats from low to high, uint8 over all, integers 0 or 1; texts are "a"."""
    if dtype == "object":
        return np.full(shape, "a", object)
    if dtype.startswith("float"):
        return rng.uniform(low, high, shape).astype(dtype)
    if dtype == "uint8":
        return rng.integers(0, 256, shape).astype(dtype)
    return rng.integers(0, 2, shape).astype(dtype)  # of tokens, say, there may be two only
