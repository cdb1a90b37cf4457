"""Edge backend: runs a model on the device and decodes its outputs to predictions."""

from __future__ import annotations

import inspect
import logging
import threading
from collections.abc import Callable
from math import prod
from pathlib import Path
from time import monotonic
from typing import Any

import numpy as np

from edgeroute.confidence.forms import mistaken
from edgeroute.confidence.reader import Reader
from edgeroute.confidence.scores import Score
from edgeroute.core.policy import Side
from edgeroute.core.stream import Pieces, single, spoken
from edgeroute.core.walk import Prediction
from edgeroute.errors import ModelError
from edgeroute.system import AbandonedRuns, renew_after_fork
from edgeroute.types import EdgeModel, StopToken

log = logging.getLogger("edgeroute")
MOST_PROBED = 1 << 22
"""Largest input, in elements, that a check tries with zeros."""
PROBE_S = 2.0
"""How long it may take, seconds."""
MAX_ABANDONED = 4
"""So many runs of one model may be told to stop and go on all the same, before the planner leaves it alone."""


class EdgeBackend(AbandonedRuns):
    """A model on the device."""

    side: Side = "edge"
    traffic = (0, 0)

    def __init__(self, name: str, model: EdgeModel, score: str | Score) -> None:
        self.name, self.model = name, model
        self.where = str(getattr(model, "path", model.name))
        own, none_found = getattr(model, "score", None), getattr(model, "none_found", None)
        self.reader = Reader(
            own or score, labels=model.labels, kind=model.kind, name=model.name, none_found=none_found or "defer"
        )
        super().__init__(getattr(model, "max_abandoned", MAX_ABANDONED))
        self._one = getattr(model, "run_one", None) or (lambda x, cancel: model.run([x], cancel))
        self._run, self._close = model.run, getattr(model, "close", None)
        if self._close is not None and not getattr(model, "closes_after_runs", False):
            runs = _Runs(self._close)
            self._one, self._run, self._close = runs.counted(self._one), runs.counted(self._run), runs.close

    def run(self, inputs: list[Any], cancel: StopToken | None) -> list[Prediction]:
        """Runs the inputs as one batch."""
        return self.reader.many(self._run(inputs, cancel), len(inputs))

    def run_one(self, x: Any, cancel: StopToken | None) -> Prediction:
        """Runs one input, by the model's `run_one` if it has one."""
        return self.reader.one(self._one(x, cancel))

    def stream(self, x: Any, cancel: StopToken | None) -> Pieces:
        """Runs one input; yields the answer in pieces if the model is a generator function."""
        function = getattr(self.model, "function", None)
        if not inspect.isgeneratorfunction(function):
            return single(self.run_one(x, cancel))
        return spoken(function(x), self.reader.answer)

    def ready(self, until: float) -> None:
        """Loads the model, and runs it on zeros to see what its outputs are, where it says what it takes.

        Raises:
            ModelError: it gives probabilities, and they would be read as logits.
        """
        if hasattr(self.model, "load"):
            self.model.load()
        outputs = self._of_zeros(min(PROBE_S, until - monotonic())) if self.reader.kind in {None, "logits"} else None
        if outputs is not None and self.reader.mistakes(outputs):
            raise ModelError(mistaken(self.model.name))

    def _of_zeros(self, seconds: float) -> Any:
        """The outputs for an input of zeros; None: it is not known what it takes, or it does not take that, or takes too long."""
        specs, run = getattr(self.model, "inputs", ()), getattr(self.model, "run_feed", None)
        shapes = [(1, *spec.shape[1:]) for spec in specs]
        if run is None or not specs or any(-1 in shape for shape in shapes) or sum(map(prod, shapes)) > MOST_PROBED:
            return None
        stop = StopToken()
        timer = threading.Timer(max(0.0, seconds), stop)
        timer.daemon = True
        timer.start()
        try:
            return run({spec.name: np.zeros(shape, spec.dtype) for spec, shape in zip(specs, shapes, strict=True)}, stop)
        except Exception as e:  # noqa: BLE001 - zeros may not be an input of this model: its first one tells
            log.debug("%s does not run on zeros: %s", self.where, e)
            return None
        finally:
            timer.cancel()

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

    def identity(self, of: Callable[[Any], str]) -> str:
        """As `fingerprint`, with how the outputs are decoded."""
        several = getattr(self.model, "models", [self.model])
        cards = [of(card.path) for model in several if (card := getattr(model, "card", None)) is not None and card.path]
        reader, output = self.reader, getattr(self.model, "output", None)
        return repr((self.fingerprint(of), reader.labels, reader.kind, reader.none_found, output, cards))

    def close(self) -> None:
        """Frees the model, once no run is under way: a native runtime would crash the process."""
        if self._close is not None:
            self._close()


class _Runs:
    """Counts the runs of a model that may not be closed under one; the last of them closes it then."""

    def __init__(self, close: Callable[[], object]) -> None:
        self._close = close
        self.after_fork()
        renew_after_fork(self)

    def after_fork(self) -> None:
        """A child has none of its parent's runs."""
        self._lock, self._count, self._closing = threading.RLock(), 0, False

    def counted(self, run: Callable[..., Any]) -> Callable[..., Any]:
        """The same function, counted."""

        def counting(*arguments: Any) -> Any:
            with self._lock:
                self._count += 1
            try:
                return run(*arguments)
            finally:
                with self._lock:
                    self._count -= 1
                    last = self._closing and not self._count
                    self._closing = self._closing and not last
                if last:
                    self._close_last()

        return counting

    def _close_last(self) -> None:
        """Closes it in the thread of a run that has ended well, or with an error of its own: that is what counts there."""
        try:
            self._close()
        except KeyboardInterrupt:
            raise
        except BaseException:
            log.exception("a model could not be closed")

    def close(self) -> None:
        """Closes it now, or after the last run that is under way."""
        with self._lock:
            self._closing = self._count > 0
            now = not self._closing
        if now:
            self._close()


def _fingerprint(model: EdgeModel, of: Callable[[Any], str]) -> str:
    path = getattr(model, "path", None)
    if path is None:
        return of(getattr(model, "function", model))
    card = Path(path).with_suffix(".json")
    return of(Path(path)) + (of(card) if card.exists() else "")
