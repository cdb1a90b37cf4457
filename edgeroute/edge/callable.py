"""Any function as a model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from edgeroute.core.stream import joined
from edgeroute.types import StopToken


class CallableModel:
    """`f(x)` for one input, giving `(value, confidence)` or logits, an array [classes].

    A generator function gives its value in pieces, and returns the confidence.

    Args:
        function: called from several threads at once where several requests are under way.
        kind: what an array that it gives is: logits, probabilities, logprobs.
    """

    def __init__(
        self,
        function: Callable[[Any], Any],
        *,
        name: str | None = None,
        labels: tuple[str, ...] | None = None,
        kind: str = "logits",
    ) -> None:
        self.function = function
        self.name = name or str(getattr(function, "__name__", type(function).__name__))
        self.labels, self.kind = labels, kind

    def run(self, inputs: list[Any], cancel: StopToken | None = None) -> list[Any]:  # noqa: ARG002 - cannot be stopped
        """One result an input."""
        return [joined(self.function(x)) for x in inputs]
