"""Edge backend whose confidence is that of the input: known before the model runs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from edgeroute.confidence.input_score import InputScore
from edgeroute.confidence.scores import Score
from edgeroute.core.pieces import Pieces
from edgeroute.core.walk import Prediction
from edgeroute.edge.backend import EdgeBackend
from edgeroute.types import EdgeModel, StopToken


class ScoredBeforehand(EdgeBackend):
    """As `EdgeBackend`. Its answers have the confidence of their inputs, in place of one of the outputs.

    Attributes:
        before: the score.
    """

    def __init__(self, name: str, model: EdgeModel, score: InputScore) -> None:
        super().__init__(name, model, "msp")
        self.before = score

    def run(self, inputs: list[Any], cancel: StopToken | None) -> list[Prediction]:
        """Runs the inputs as one batch."""
        return [self._scored(p, x) for p, x in zip(super().run(inputs, cancel), inputs, strict=True)]

    def run_one(self, x: Any, cancel: StopToken | None) -> Prediction:
        """Runs one input."""
        return self._scored(super().run_one(x, cancel), x)

    def stream(self, x: Any, cancel: StopToken | None) -> Pieces:
        """Runs one input; yields the answer in pieces."""
        return self._pieces(super().stream(x, cancel), x)

    def _pieces(self, pieces: Pieces, x: Any) -> Pieces:
        return self._scored((yield from pieces), x)

    async def _run_async(self, inputs: list[Any], many: bool) -> list[Prediction]:
        return [self._scored(p, x) for p, x in zip(await super()._run_async(inputs, many), inputs, strict=True)]

    async def stream_async(self, x: Any, show: Callable[[Any], object]) -> Prediction:
        """Runs one input on an event loop."""
        return self._scored(await super().stream_async(x, show), x)

    def _scored(self, prediction: Prediction, x: Any) -> Prediction:
        return prediction._replace(confidence=self.before.of_input(x))


def edge_backend(name: str, model: EdgeModel, score: str | Score) -> EdgeBackend:
    """The backend of a model with this score."""
    return ScoredBeforehand(name, model, score) if isinstance(score, InputScore) else EdgeBackend(name, model, score)
