"""Edge backend: runs a model on the device and decodes its outputs to predictions."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

from edgeroute.confidence.scores import Reader, Score
from edgeroute.core.policy import Side
from edgeroute.core.stream import Pieces, single, spoken
from edgeroute.core.walk import Prediction
from edgeroute.system import AbandonedRuns
from edgeroute.types import EdgeModel, StopToken

MAX_ABANDONED = 4
"""So many runs of one model may be told to stop and go on all the same, before the planner leaves it alone."""


class EdgeBackend(AbandonedRuns):
    """A model on the device."""

    side: Side = "edge"
    traffic = (0, 0)

    def __init__(self, name: str, model: EdgeModel, score: str | Score) -> None:
        self.name, self.model = name, model
        self.where = str(getattr(model, "path", model.name))
        self.reader = Reader(score, labels=model.labels, kind=model.kind)
        super().__init__(getattr(model, "max_abandoned", MAX_ABANDONED))
        self._one = getattr(model, "run_one", None) or (lambda x, cancel: model.run([x], cancel))

    def run(self, inputs: list[Any], cancel: StopToken | None) -> list[Prediction]:
        """Runs the inputs as one batch."""
        return self.reader.many(self.model.run(inputs, cancel), len(inputs))

    def run_one(self, x: Any, cancel: StopToken | None) -> Prediction:
        """Runs one input, by the model's `run_one` if it has one."""
        return self.reader.one(self._one(x, cancel))

    def stream(self, x: Any, cancel: StopToken | None) -> Pieces:
        """Runs one input; yields the answer in pieces if the model is a generator function."""
        function = getattr(self.model, "function", None)
        if not inspect.isgeneratorfunction(function):
            return single(self.run_one(x, cancel))
        return spoken(function(x), self.reader.answer)

    def ready(self, until: float) -> None:  # noqa: ARG002
        """Loads the model."""
        if hasattr(self.model, "load"):
            self.model.load()

    def describe(self) -> str:
        """Status line for `check`: the model, and a downgrade of the execution provider."""
        downgraded = getattr(self.model, "downgraded", None)
        return f"{self.where} is ready" + (f" ({downgraded})" if downgraded else "")

    def fingerprint(self, of: Callable[[Any], str]) -> str:
        """Fingerprint of the model file and card (for each model of an ensemble), or of the function; by `of`."""
        several = getattr(self.model, "models", None)
        if several is None:
            return _fingerprint(self.model, of)
        return " ".join([f"votes={self.model.votes}", *(_fingerprint(model, of) for model in several)])  # type: ignore[attr-defined]

    def close(self) -> None:
        """Frees the model."""
        if hasattr(self.model, "close"):
            self.model.close()


def _fingerprint(model: EdgeModel, of: Callable[[Any], str]) -> str:
    path = getattr(model, "path", None)
    if path is None:
        return of(getattr(model, "function", model))
    card = Path(path).with_suffix(".json")
    return of(Path(path)) + (of(card) if card.exists() else "")
