"""Measurement of a compressed model against its original: size, speed, accuracy, differences of outputs, costs of layers.

Also the split of examples into those that make a model and those that measure it.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any, NamedTuple, TypeVar

import numpy as np

from edgeroute.confidence.output_forms_labels_and_comparison import Labels, plain
from edgeroute.confidence.output_reader import Reader
from edgeroute.edge.edge_model_members_and_fingerprints import files, member
from edgeroute.edge.onnx import OnnxModel
from edgeroute.edge.runtimes_variants_ensemble import load
from edgeroute.errors import BadInput, BadReply, ModelError
from edgeroute.system.files_and_lock_waits import files_in
from edgeroute.system.untrusted_files import open_file
from edgeroute.types import EdgeModel

T = TypeVar("T")

# Results of quantising or pruning.


class Measured(NamedTuple):
    """Measurements of a model on examples that were not used to make it.

    Attributes:
        path: the model's file or folder.
        bytes: bytes of the file and of the weights beside it.
        packed_bytes: size of the file compressed by zlib, bytes: the cost of a download.
        median_s: median time of a run of one input on one thread, seconds; None: it does not run on this machine.
        accuracy: share of right answers by the labels; None: there are no labels, or its answers are no classes.
        agreement: share of answers equal to the original's; None: it is the original itself, or its answers are no classes.
        error: root mean square of the differences of its outputs to the original's, divided by that of the original's outputs.
    """

    path: Path
    bytes: int
    packed_bytes: int
    median_s: float | None
    accuracy: float | None
    agreement: float | None
    error: float | None


class Layer(NamedTuple):
    """Layer of a model, and the cost of changing it alone.

    Attributes:
        name: name of its node in the graph.
        operator: its operator: Conv, MatMul, ...
        weights: number of weights.
        error: error of the model's outputs if this layer alone is quantised, as in `Measured.error`; None for a pruned layer.
        changed: share of answers that change then; None: they are no classes.
        note: result for this layer, in a few words.
    """

    name: str
    operator: str
    weights: int
    error: float | None
    changed: float | None
    note: str


class Result(NamedTuple):
    """Result of quantising or pruning: measurements of the original and of the new model.

    Attributes:
        before: measurements of the original.
        after: measurements of the new model.
        layers: layers, the most sensitive first; empty: they were not tried.
        card: the card that was written.
        used: number of examples used to make it.
        held_out: number of examples used to measure it.
        notes: further remarks for people.
    """

    before: Measured
    after: Measured
    layers: tuple[Layer, ...]
    card: Path
    used: int
    held_out: int
    notes: tuple[str, ...]

    def as_dict(self) -> dict[str, Any]:
        """Return the result as plain JSON data."""
        models = {name: {**m._asdict(), "path": str(m.path)} for name, m in (("before", self.before), ("after", self.after))}
        layers = [layer._asdict() for layer in self.layers]
        return {**self._asdict(), **models, "layers": layers, "card": str(self.card), "notes": [*self.notes]}


def result(
    before: Measured, after: Measured, out: Path, layers: Sequence[Layer], used: int, held_out: Examples, notes: Sequence[str]
) -> Result:
    """Return the result of making a model that has been moved to `out`, of `used` examples."""
    card = out.with_suffix(".json")
    return Result(before, after._replace(path=out), tuple(layers), card, used, len(held_out.inputs), tuple(notes))


RUNS, SECONDS = 200, 2.0  # most timed runs of a model, and most seconds of timing
MOST = 10_000  # most numbers of an output that are compared; larger outputs, such as pictures, are sampled evenly
FEW = 5  # runs before the timing begins, and the least number of timed runs


class Examples(NamedTuple):
    """Inputs as a model's callers pass them, and their right labels."""

    inputs: list[Any]
    labels: list[Any] | None
    numbers: Sequence[int]  # index of each in the data

    def part(self, indices: Sequence[int]) -> Examples:
        """Return the examples at these indices."""
        labels = None if self.labels is None else [self.labels[i] for i in indices]
        return Examples([self.inputs[i] for i in indices], labels, [self.numbers[i] for i in indices])

    def each(self, run: Callable[[Any], T]) -> list[T]:
        """Return the results of a function of each input.

        Raises:
            BadInput, ModelError: the function refuses an input; the message begins with its number in the data, counted from 0.
        """
        results = []
        for number, x in zip(self.numbers, self.inputs, strict=True):
            try:
                results.append(run(x))
            except (BadInput, ModelError) as e:  # noqa: PERF203 - a run takes longer
                raise type(e)(f"input {number}: {e}") from e
        return results


def examples_of(inputs: Iterable[Any], labels: Iterable[Any] | None) -> Examples:
    """Return all of the data as examples."""
    given = [*inputs]
    return Examples(given, None if labels is None else [*labels], range(len(given)))


def split(examples: Examples, used: int) -> tuple[Examples, Examples]:
    """Split examples at random, always the same: at most `used`, and at most half, to make a model; the rest to measure it.

    Raises:
        BadInput: there are fewer than two examples, or the number of labels differs.
    """
    n = len(examples.inputs)
    if examples.labels is not None and len(examples.labels) != n:
        raise BadInput(f"there are {len(examples.labels)} labels for {n} examples: give one for each, or none")
    if n < 2:  # noqa: PLR2004 - one for each purpose
        raise BadInput(f"the data has {n} example{'' if n == 1 else 's'}: pass at least two, to make the model and to measure it")
    order = np.random.default_rng(0).permutation(n).tolist()
    middle = min(used, n // 2)
    return examples.part(order[:middle]), examples.part(order[middle:])


class Answers(NamedTuple):
    """Outputs and answers of a model for some inputs."""

    outputs: list[np.ndarray[Any, Any]]  # numbers of the outputs, flattened, an array for each input
    values: list[Any] | None  # answers; None: they are no classes

    def accuracy(self, labels: list[Any] | None, names: Labels) -> float | None:
        """Return the share of right answers, 0..1; an unknown label counts as wrong; None without labels or classes."""
        if labels is None or self.values is None:
            return None
        return _share(self.values, [_meant(names, label) for label in labels])

    def check(self, labels: list[Any] | None, names: Labels) -> list[str]:
        """Return notes on labels that the model cannot answer, which count as wrong; [] without labels or classes.

        Raises:
            BadInput: the model can answer none of them.
        """
        if labels is None or self.values is None:
            return []
        width = max((len(row) for row in self.outputs), default=0)
        known = {*self.values, *range(width)} if names.labels is None else {*names.labels}
        meant = [_meant(names, label) for label in labels]
        wrong = [
            label for label, value in zip(labels, meant, strict=True) if not isinstance(value, str | int) or value not in known
        ]
        if not wrong:
            return []
        count, foreign = len(wrong), dict.fromkeys(repr(plain(label)) for label in wrong)
        shown = ", ".join([*foreign][:5]) + ("" if len(foreign) <= 5 else ", ...")  # noqa: PLR2004 - some examples
        of = f"its {width} classes have no names" if names.labels is None else ", ".join(map(repr, names.labels[:5]))
        problem = f"{shown} {'is no answer' if len(foreign) == 1 else 'are no answers'} of the model ({of})"
        if count == len(labels):
            raise BadInput(f"labels: {problem}, so no accuracy can be measured: add the names to its card, or pass class numbers")
        return [f"{count:,} of {len(labels):,} labels count as wrong: {problem}"]

    def agreement(self, other: Answers) -> float | None:
        """Return the share of equal answers; None if either's are no classes."""
        return None if self.values is None or other.values is None else _share(self.values, other.values)

    def error(self, original: Answers) -> float | None:
        """Return the root mean square of the differences, divided by that of the original's outputs.

        None if the outputs differ in size, or the original's are all zero.
        """
        ours, theirs = (np.concatenate([np.zeros(0), *answers.outputs]) for answers in (self, original))
        if len(ours) != len(theirs) or not len(ours):  # such as a detector that finds another number of boxes
            return None
        scale = float(np.sqrt(np.mean(np.square(theirs))))
        return float(np.sqrt(np.mean(np.square(ours - theirs)))) / scale if scale else None


_FOREIGN = object()


def _meant(names: Labels, label: Any) -> Any:
    """Return the answer that a label stands for; `_FOREIGN`, equal to no answer, if it is unknown."""
    try:
        return names.meant(plain(label))
    except BadReply:
        return _FOREIGN


def answers(model: EdgeModel, examples: Examples) -> Answers:
    """Run a loaded model on each input alone; return its outputs and answers, None in their place if any answer is no class.

    Raises as `Examples.each`.
    """
    kind, none_found = member(model, "kind"), member(model, "none_found")
    reader = Reader(labels=member(model, "labels"), kind=kind, name=model.name, none_found=none_found)
    read = examples.each(lambda x: (_floats(out := model.run([x], None)), reader.read_one(out).value))
    outputs, values = [out for out, _ in read], [value for _, value in read]
    return Answers(outputs, values if all(isinstance(value, str | int | bool) for value in values) else None)


def load_original(path: Path, held_out: Examples) -> tuple[OnnxModel, Answers, list[str]]:
    """Load an ONNX model, run it on the examples, and return it with its answers, and notes on labels that it cannot answer.

    Raises:
        ModelError: the model keeps a state between its inputs.
        BadInput: the model can answer none of the labels.
    """
    model = OnnxModel(path)
    if model.card.state:
        raise ModelError(f"{path} has a state between its inputs, and examples are single inputs: it cannot be changed here")
    model.load()
    original = answers(model, held_out)
    return model, original, original.check(held_out.labels, labels_of(model))


def labels_of(model: EdgeModel) -> Labels:
    """Return the class names of a model."""
    return Labels(member(model, "labels"), model.name)


def measure_model(
    model: EdgeModel, new_answers: Answers, original: Answers | None, labels: list[Any] | None, seconds: float
) -> Measured:
    """Return the measurements of a model whose answers and time are known; compresses its file for its size."""
    compared = (None, None) if original is None else (new_answers.agreement(original), new_answers.error(original))
    accuracy = new_answers.accuracy(labels, labels_of(model))
    return Measured(Path(member(model, "path")), *_sizes(_weights(model)), seconds, accuracy, *compared)


def measure_both(model: EdgeModel, path: Path, original: Answers, held_out: Examples) -> tuple[Measured, Measured]:
    """Load the new model, run it on the examples, time both in turns, and return the measurements (original, new).

    The new model is not closed.

    original: answers of `model` to the same examples.
    """
    new = load(path)
    new_answers = answers(new, held_out)
    times = time_models([model, new], held_out.inputs)
    return (
        measure_model(model, original, None, held_out.labels, times[0]),
        measure_model(new, new_answers, original, held_out.labels, times[1]),
    )


def measure_files(path: Path) -> Measured:
    """Return measurements of a model's size alone, all others None, for a model that does not run on this machine."""
    return Measured(path, *_sizes([path]), None, None, None, None)


def time_models(models: Sequence[EdgeModel], inputs: Sequence[Any]) -> list[float]:
    """Return the median seconds of a run of one input, for each model, without its first 5 runs. Blocks.

    The models take turns, so that other work on the machine affects all alike. Stops after 200 runs, or some 2 seconds per model.
    """
    times: list[list[float]] = [[] for _ in models]
    begun = perf_counter()
    for i in range(RUNS):
        if i >= 2 * FEW and perf_counter() - begun > SECONDS * len(models):
            break
        for model, durations in zip(models, times, strict=True):
            x = inputs[i % len(inputs)]
            start = perf_counter()
            run = member(model, "run_one")
            _ = model.run([x], None) if run is None else run(x, None)
            durations.append(perf_counter() - start)
    return [median(durations[FEW:]) for durations in times]


def _floats(out: Any) -> np.ndarray[Any, Any]:
    """Return the floats of an output, flattened, evenly sampled to some 10,000; labels and integers are left out."""
    if isinstance(out, dict):
        return np.concatenate([np.zeros(0), *map(_floats, out.values())])
    if isinstance(out, list):  # a mapping from class to probability for each input
        return np.array([value for row in out if isinstance(row, dict) for value in row.values()], float)
    array = np.asarray(out).ravel()
    return array[:: 1 + len(array) // MOST].astype(float) if array.dtype.kind == "f" else np.zeros(0)


def _share(ours: list[Any], theirs: list[Any]) -> float:
    """Return the share of equal pairs; raise `ValueError` if the lists differ in length."""
    return sum(bool(a == b) for a, b in zip(ours, theirs, strict=True)) / len(ours)


def _weights(model: EdgeModel) -> list[Path]:
    """Return the model's file or folder and the weights beside it, without the card."""
    card = getattr(member(model, "card"), "path", None)
    return [path for path in files(model) if path != card]


def _sizes(paths: Sequence[Path]) -> tuple[int, int]:
    """Return the bytes of files, and of all files in folders, as they are and after zlib compression. Writes nothing."""
    all_files = [file for path in paths for file in (files_in(path) if path.is_dir() else [path])]
    return sum(file.stat().st_size for file in all_files), sum(map(_packed_size, all_files))


def _packed_size(file: Path) -> int:
    """Return the bytes of a file after zlib compression."""
    packer = zlib.compressobj()
    with open_file(file) as data:
        return sum(len(packer.compress(block)) for block in iter(partial(data.read, 1 << 20), b"")) + len(packer.flush())
