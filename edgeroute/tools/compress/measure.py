"""Size, speed and answers of a model."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any, NamedTuple

import numpy as np

from edgeroute.confidence.forms import plain
from edgeroute.confidence.labels import Labels
from edgeroute.confidence.reader import Reader
from edgeroute.edge.members import files, member
from edgeroute.edge.runtimes import load
from edgeroute.errors import BadInput, BadReply
from edgeroute.types import EdgeModel

# What quantising or pruning a model gave.


class Measured(NamedTuple):
    """A model, measured on examples that were not used to make it."""

    path: Path
    bytes: int
    """Of the file and of the weights beside it."""
    packed_bytes: int
    """The same, compressed by zlib: what a download of it costs."""
    median_s: float | None
    """Of one input at a time, on one thread; None: it does not run on this machine."""
    accuracy: float | None
    """Share of the labels that it gives; None: there are no labels, or its answers are no classes."""
    agreement: float | None
    """Share of the original's answers that it gives; None: of the original itself, or its answers are no classes."""
    error: float | None
    """Root mean square of the differences of its outputs to the original's, in parts of that of the original's outputs."""


class Layer(NamedTuple):
    """A layer, and what it costs to change it alone."""

    name: str
    """The node's, in the graph."""
    operator: str
    """Its operator: Conv, MatMul, ..."""
    weights: int
    """Number of weights."""
    error: float | None
    """Of the model's outputs if this layer alone is quantised, as in `Measured.error`; of a pruned layer None."""
    changed: float | None
    """Share of answers that are others then; None: they are no classes."""
    note: str
    """What became of it."""


class Result(NamedTuple):
    """The original and what was made of it."""

    before: Measured
    after: Measured
    layers: tuple[Layer, ...]
    """The most sensitive first; empty: they were not tried."""
    card: Path
    """The card that was written."""
    used: int
    """Number of examples by which it was made."""
    held_out: int
    """Number of examples by which it was measured."""
    notes: tuple[str, ...]
    """What else was done or found, for people."""

    def as_dict(self) -> dict[str, Any]:
        """As JSON has it."""

        def plain(one: Measured) -> dict[str, Any]:
            return {**one._asdict(), "path": str(one.path)}

        return {
            **self._asdict(),
            "before": plain(self.before),
            "after": plain(self.after),
            "layers": [layer._asdict() for layer in self.layers],
            "card": str(self.card),
            "notes": [*self.notes],
        }


RUNS, SECONDS = 200, 2.0
"""A model is timed for so many runs, or so long."""
MOST = 10_000
"""Of larger outputs, as pictures, every so-manieth number is compared."""
FEW = 5
"""Runs before the timing begins, and the least number of timed ones."""


class Examples(NamedTuple):
    """Inputs as the model's callers give them, and what is right for each."""

    inputs: list[Any]
    labels: list[Any] | None

    def part(self, numbers: Sequence[int]) -> Examples:
        """Those with these numbers."""
        labels = None if self.labels is None else [self.labels[i] for i in numbers]
        return Examples([self.inputs[i] for i in numbers], labels)


def split(examples: Examples, used: int) -> tuple[Examples, Examples]:
    """So many by which a model is made, half of them at most, and the rest, by which it is measured; the same in each process.

    Raises:
        BadInput: there are fewer than two, or there is not one label for each.
    """
    n = len(examples.inputs)
    if examples.labels is not None and len(examples.labels) != n:
        raise BadInput(f"there are {len(examples.labels)} labels for {n} examples: give one for each, or none")
    if n < 2:  # noqa: PLR2004 - one for each purpose
        raise BadInput(
            f"the data has {n} example{'' if n == 1 else 's'}: it takes some to make the model and others to measure it"
        )
    order = np.random.default_rng(0).permutation(n).tolist()
    at = min(used, n // 2)
    return examples.part(order[:at]), examples.part(order[at:])


class Answers(NamedTuple):
    """What a model says to each of some inputs."""

    outputs: list[np.ndarray[Any, Any]]
    """Its numbers, in one row each."""
    values: list[Any] | None
    """Its answers; None: they are no classes."""

    def accuracy(self, labels: list[Any] | None, names: Labels) -> float | None:
        """Share that is right."""
        if labels is None or self.values is None:
            return None
        return _share(self.values, [_meant(names, label) for label in labels])

    def check(self, labels: list[Any] | None, names: Labels) -> list[str]:
        """Notes on labels that the model cannot answer, which count as wrong.

        Raises:
            BadInput: none of them is one that it can.
        """
        if labels is None or self.values is None:
            return []
        most = max((len(row) for row in self.outputs), default=0)
        known = {*self.values, *range(most)} if names.labels is None else {*names.labels}
        meant = [_meant(names, label) for label in labels]
        wrong = [
            label for label, value in zip(labels, meant, strict=True) if not isinstance(value, str | int) or value not in known
        ]
        if not wrong:
            return []
        count, foreign = len(wrong), dict.fromkeys(repr(plain(label)) for label in wrong)
        shown = ", ".join([*foreign][:5]) + ("" if len(foreign) <= 5 else ", ...")  # noqa: PLR2004 - some examples
        of = f"its {most} classes have no names" if names.labels is None else ", ".join(map(repr, names.labels[:5]))
        said = f"{shown} {'is no answer' if len(foreign) == 1 else 'are no answers'} of the model ({of})"
        if count == len(labels):
            raise BadInput(f"labels: {said}, so no accuracy can be measured: give its card the names, or numbers of classes")
        return [f"{count:,} of {len(labels):,} labels count as wrong: {said}"]

    def agreement(self, other: Answers) -> float | None:
        """Share of the same answers."""
        return None if self.values is None or other.values is None else _share(self.values, other.values)

    def error(self, original: Answers) -> float | None:
        """Root mean square of the differences, in parts of that of the original's outputs."""
        ours, theirs = (np.concatenate([np.zeros(0), *one.outputs]) for one in (self, original))
        if len(ours) != len(theirs) or not len(ours):  # as of a detector, which finds another number of boxes
            return None
        scale = float(np.sqrt(np.mean(np.square(theirs))))
        return float(np.sqrt(np.mean(np.square(ours - theirs)))) / scale if scale else None


_FOREIGN = object()


def _meant(names: Labels, label: Any) -> Any:
    """The answer that a label stands for, or what is equal to none."""
    try:
        return names.meant(plain(label))
    except BadReply:
        return _FOREIGN


def answers(model: EdgeModel, inputs: Sequence[Any]) -> Answers:
    """Runs each input by itself."""
    reader = _reader(model)
    outputs, values = [], []
    for x in inputs:
        out = model.run([x], None)
        outputs.append(_numbers(out))
        values.append(reader.one(out).value)
    return Answers(outputs, values if all(isinstance(value, str | int | bool) for value in values) else None)


def labels_of(model: EdgeModel) -> Labels:
    """The names of its classes."""
    return Labels(member(model, "labels"), model.name)


def measured(model: EdgeModel, found: Answers, original: Answers | None, labels: list[Any] | None, seconds: float) -> Measured:
    """The line of a model."""
    return Measured(
        path=Path(member(model, "path")),
        bytes=sum(map(_size, _weights(model))),
        packed_bytes=sum(map(_packed, _weights(model))),
        median_s=seconds,
        accuracy=found.accuracy(labels, labels_of(model)),
        agreement=None if original is None else found.agreement(original),
        error=None if original is None else found.error(original),
    )


def compared(model: EdgeModel, made: Path, original: Answers, held_out: Examples) -> tuple[Measured, Measured]:
    """The lines of the original, whose answers are given, and of the model that was made of it."""
    new = load(made)
    found = answers(new, held_out.inputs)
    times = timed([model, new], held_out.inputs)
    return (
        measured(model, original, None, held_out.labels, times[0]),
        measured(new, found, original, held_out.labels, times[1]),
    )


def unmeasured(path: Path) -> Measured:
    """The line of a model that does not run on this machine."""
    return Measured(path, _size(path), _packed(path), None, None, None, None)


def timed(models: Sequence[EdgeModel], inputs: Sequence[Any]) -> list[float]:
    """Median seconds of one run of each model, which take turns, so that what else the machine does is the same for all."""
    times: list[list[float]] = [[] for _ in models]
    begun = perf_counter()
    for i in range(RUNS):
        if i >= 2 * FEW and perf_counter() - begun > SECONDS * len(models):
            break
        for model, its in zip(models, times, strict=True):
            x = inputs[i % len(inputs)]
            start = perf_counter()
            run = member(model, "run_one")
            _ = model.run([x], None) if run is None else run(x, None)
            its.append(perf_counter() - start)
    return [median(its[FEW:]) for its in times]


def _reader(model: EdgeModel) -> Reader:
    kind, none_found = member(model, "kind"), member(model, "none_found")
    return Reader(labels=member(model, "labels"), kind=kind, name=model.name, none_found=none_found)


def _numbers(out: Any) -> np.ndarray[Any, Any]:
    """The floats of an output, some of many; a label among them is no measure of a difference."""
    if isinstance(out, dict):
        return np.concatenate([np.zeros(0), *map(_numbers, out.values())])
    if isinstance(out, list):  # a mapping from class to probability for each input
        return np.array([value for row in out if isinstance(row, dict) for value in row.values()], float)
    array = np.asarray(out).ravel()
    return array[:: 1 + len(array) // MOST].astype(float) if array.dtype.kind == "f" else np.zeros(0)


def _share(ours: list[Any], theirs: list[Any]) -> float:
    return sum(bool(a == b) for a, b in zip(ours, theirs, strict=True)) / len(ours)


def _weights(model: EdgeModel) -> list[Path]:
    """Its file or folder, and the weights beside it, without the card."""
    card = getattr(member(model, "card"), "path", None)
    return [path for path in files(model) if path != card]


def _all_files(path: Path) -> list[Path]:
    return [file for file in sorted(path.rglob("*")) if file.is_file()] if path.is_dir() else [path]


def _size(path: Path) -> int:
    return sum(file.stat().st_size for file in _all_files(path))


def _packed(path: Path) -> int:
    total = 0
    for file in _all_files(path):
        packer = zlib.compressobj()
        with file.open("rb") as data:
            while block := data.read(1 << 20):
                total += len(packer.compress(block))
        total += len(packer.flush())
    return total
