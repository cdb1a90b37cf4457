"""What quantising or pruning a model gave."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple


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
