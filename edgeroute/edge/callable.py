"""Adapter: a Python function as an edge model."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from edgeroute.confidence.labels import label_names
from edgeroute.confidence.reader import checked_kind
from edgeroute.core.stream import joined
from edgeroute.types import StopToken


class CallableModel:
    """`f(x)` for one input, returning `(value, confidence)` or logits, an array [classes].

    A generator function yields its value in pieces and returns the confidence.

    Args:
        function: must be thread-safe: concurrent requests call it concurrently.
        name: in answers; None: the function's own.
        labels: class index -> value; None: the value is the index.
        kind: of what it returns, one of `edgeroute.confidence.KINDS`; None: by its form.
    """

    def __init__(
        self,
        function: Callable[[Any], Any],
        *,
        name: str | None = None,
        labels: Iterable[Any] | None = None,
        kind: str | None = None,
    ) -> None:
        self.function = function
        self.name = name or str(getattr(function, "__name__", type(function).__name__))
        self.labels, self.kind = label_names(labels), checked_kind(kind)

    def run(self, inputs: list[Any], cancel: StopToken | None = None) -> list[Any]:  # noqa: ARG002 - cannot be stopped
        """Calls the function once per input."""
        return [joined(self.function(x)) for x in inputs]
