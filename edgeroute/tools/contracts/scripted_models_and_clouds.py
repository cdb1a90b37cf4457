"""Scripted edge models and clouds, in process: they wait for a gate, return or raise the next answer, and count their calls."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

from edgeroute.types import StopToken

# Scripted answers: `(value, confidence)` pairs, one per run, the last one repeated; or a function of the input.
# An exception in place of a pair is raised.
Answers: TypeAlias = Sequence[Any] | Callable[[Any], Any]


class FakeCloud:
    """Scripted cloud, or edge: a callable of one input. Its attributes may be read from any thread.

    Args:
        answers: see `Answers`.
        gate: if given, each run waits for this event before it answers.

    Attributes:
        runs: number of inputs received.
        begun: set when the first run has started.
    """

    def __init__(self, answers: Answers, *, gate: threading.Event | None = None) -> None:
        self.runs, self.begun = 0, threading.Event()
        self._answers, self._gate, self._lock = answers, gate, threading.Lock()

    def __call__(self, x: Any) -> Any:
        """Count the input, wait for the gate, and return the next scripted answer, or raise it if it is an exception.

        The last answer repeats.
        """
        with self._lock:
            run, self.runs = self.runs, self.runs + 1
        self.begun.set()
        if self._gate is not None:
            self._gate.wait()
        answers = self._answers
        answer = answers(x) if callable(answers) else answers[min(run, len(answers) - 1)]
        if isinstance(answer, BaseException):
            raise answer
        return answer


class FakeModel(FakeCloud):
    """Scripted `EdgeModel`. Like most models it cannot be stopped; it records that a stop was requested.

    Args:
        answers: see `Answers`.
        gate: if given, each run waits for this event before it answers.
        name: name of the model.

    Attributes:
        runs: number of inputs received.
        begun: set when the first run has started.
        cancelled: set when a run was requested to stop.
    """

    labels: tuple[str, ...] | None = None
    kind = "answers"

    def __init__(self, answers: Answers, *, gate: threading.Event | None = None, name: str = "fake") -> None:
        super().__init__(answers, gate=gate)
        self.name, self.cancelled = name, threading.Event()

    def run(self, inputs: list[Any], cancel: StopToken | None = None) -> list[Any]:
        """Return the next scripted answer per input, each as `FakeCloud` gives it: counted, after the gate, or raised.

        A stop is recorded in `cancelled`, not obeyed.
        """
        if cancel is not None:
            cancel.on_ask(self.cancelled.set)
        return [self(x) for x in inputs]
