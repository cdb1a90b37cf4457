"""Base of the runtimes: a model file with its card, and runs of it, whatever executes them."""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from edgeroute.confidence.labels import label_names
from edgeroute.confidence.reader import checked_kind
from edgeroute.confidence.scores import Score
from edgeroute.edge.backend import turn_of
from edgeroute.edge.card import Array, Card, sha256_of
from edgeroute.edge.inputs import Inputs, unsaid
from edgeroute.edge.picture import check_installed
from edgeroute.edge.tensors import MakePrepare, Plain
from edgeroute.errors import BadInput, ModelError
from edgeroute.system.forks import ForkSafe, initially, per_process
from edgeroute.types import StopToken, TensorSpec

SET_ASIDE: list[Any] = []


class ModelFile(ForkSafe, ABC):
    """A model file with its card, loaded at the first run. A runtime opens it and executes tensors; the rest is here.

    Args:
        path: the model file.
        sha256: of the file; None: what the card says, unchecked where it says nothing.
        card: path of the card, where it is not beside the model.
        output: name of the output to read; None: the card's, else all of them.
        kind: what the outputs are, one of `edgeroute.confidence.KINDS`; None: the card's, else read by their form.
        labels: class index -> value; None: the card's.
        score: for this model, in place of the router's; None: the card's, if it names one.
        none_found: of a detector, see `edgeroute.confidence.boxes`; None: the card's, else "defer".
    """

    _lock = per_process(threading.RLock)  # a signal handler may run the model while it loads
    _session: Any = initially(None, SET_ASIDE.append)

    closes_after_runs = True
    """A run holds the session that it began with: closing frees it after the last."""
    folders = False
    """Whether a model may be a folder."""

    def __init__(
        self,
        path: str | Path,
        *,
        sha256: str | None = None,
        card: str | Path | None = None,
        output: str | None = None,
        kind: str | None = None,
        labels: Iterable[Any] | None = None,
        score: str | Score | None = None,
        none_found: str | None = None,
    ) -> None:
        self.path = Path(path)
        self.card = Card.read(Path(card)) if card else Card.beside(self.path)
        self.name = self.card.name or self.path.stem
        self.labels = label_names(labels) or self.card.labels
        self.kind = checked_kind(kind) or self.card.kind
        self.output = output or self.card.output
        self.score, self.none_found = score or self.card.score, none_found or self.card.none_found
        self.downgraded: str | None = None
        self.fingerprint: str | None = None
        self.inputs: tuple[TensorSpec, ...] = ()
        self.outputs: tuple[TensorSpec, ...] = ()
        self._expected = sha256 or self.card.sha256
        self._names: list[str] = []
        self._plan = Inputs(Card(), (), ())

    @property
    def files(self) -> list[Path]:
        """The card."""
        return [] if self.card.path is None else [self.card.path]

    def load(self) -> Any:
        """Reads, checks and compiles the model, once. -> the runtime's own object for it.

        Raises:
            ModelMissing: there is no such file.
            RuntimeMissing: the runtime is not installed.
            ModelError: the file is corrupt, is not the one its card or the policy names, or cannot run as asked.
        """
        with self._lock:
            if self._session is None:
                self._session = self._load()
            return self._session

    def _load(self) -> Any:
        if not self.folders and self.path.is_dir():
            raise ModelError(f"{self.path} cannot be read: it is a folder")
        self.fingerprint = sha256_of(self.path)
        if self._expected and self.fingerprint != self._expected.lower():
            raise ModelError(
                f"{self.path} is not the expected model: its sha256 is {self.fingerprint}, expected {self._expected}. "
                "Fetch the model again, or correct the card or policy"
            )
        return self._open()

    @abstractmethod
    def _open(self) -> Any:
        """Opens the file in the runtime, and calls `_describe`. -> the runtime's object."""

    @abstractmethod
    def _execute(self, session: Any, names: list[str], feed: dict[str, Array], cancel: StopToken | None) -> list[Array]:
        """Runs all tensors of the model. -> the outputs of these names.

        Raises:
            ModelError: it failed.
        """

    def _describe(self, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec], plain: MakePrepare = Plain) -> None:
        """Takes what the file's tensors are, and compares the card with them; `plain` prepares those without preprocessing."""
        if any(one.preprocess is not None and one.preprocess.fits_pictures for one in self.card.inputs):
            check_installed()
        try:
            self._plan = Inputs(self.card, inputs, outputs, plain)
        except ValueError as e:
            raise ModelError(f"{self.path}: {e}") from e
        self.inputs, self.outputs = self._plan.given, self._plan.outputs
        names = [spec.name for spec in self.outputs]
        if self.output and self.output not in names:
            raise ModelError(f"{self.path} has no output {self.output!r}, which is to be read: it has {', '.join(names)}")
        self._names = [self.output] if self.output else names

    def run(self, inputs: list[Any], cancel: StopToken | None = None) -> Array | dict[str, Array]:
        """Each input an array (or name -> array) without the batch axis -> outputs [n, ...]; a mapping if several."""
        if self._session is None:
            self.load()  # what it takes is known only then
        size = self._plan.size
        if size is None or (size == 1 and len(inputs) < 2) or not inputs:  # noqa: PLR2004 - one by itself
            return self._named(self._rows(inputs, cancel))
        parts = [self._group(inputs, at, size, cancel) for at in range(0, len(inputs), size)]
        return self._named([_joined(rows) for rows in zip(*parts, strict=True)])

    def _group(self, inputs: list[Any], at: int, size: int, cancel: StopToken | None) -> list[Array]:
        """The outputs of so many of the inputs, for a model that takes no other number; what is missing is the last one again."""
        group = inputs[at : at + size]
        try:
            return [rows[: len(group)] for rows in self._rows(group + group[-1:] * (size - len(group)), cancel)]
        except BadInput as e:
            if size > 1:
                axis = f'its batch axis is fixed at {size}; if that is no batch axis, its card says so: "batch": "none"'
                raise BadInput(f"{e}; {axis}") from None
            raise BadInput(f"input {at} of the batch: {e}") from None

    def feed(self, inputs: list[Any]) -> dict[str, Array]:
        """The model's tensors for these inputs, after the card's preprocessing, without constants and state."""
        if text := unsaid(self.card, self.inputs):
            raise ModelError(f"{self.path}: {text}")
        return self._plan.feed(inputs, self.name)

    def run_feed(self, feed: dict[str, Array], cancel: StopToken | None = None) -> Array | dict[str, Array]:
        """Runs tensors that are already the model's; the card's constants are added."""
        return self._named(self._call(feed, cancel))

    def _rows(self, inputs: list[Any], cancel: StopToken | None) -> list[Array]:
        """The outputs for these inputs, the axis that counts them in front."""
        return [self._plan.rows(output) for output in self._call(self.feed(inputs), cancel)]

    def _call(self, feed: dict[str, Array], cancel: StopToken | None) -> list[Array]:
        """The outputs of one run of the session. A state is the session's of the router, which gets the next one."""
        session = self._session or self.load()
        plan = self._plan
        if plan.constants:
            feed = {**feed, **plan.constants}
        if not plan.state:
            return self._execute(session, self._names, feed, cancel)
        turn = turn_of(self.name)
        feed = {**feed, **turn.states.get(self, plan.state)}
        out = self._execute(session, [*self._names, *plan.kept], feed, cancel)
        if cancel is None or not cancel.asked:
            turn.states[self] = dict(zip(plan.state, out[-len(plan.kept) :], strict=True))
        return out[: -len(plan.kept)]

    def _named(self, out: list[Array]) -> Array | dict[str, Array]:
        return out[0] if len(out) == 1 else dict(zip(self._names, out, strict=True))

    def _failed(self, error: Exception) -> ModelError:
        return ModelError(f"{self.name} failed to run: {first_line(error)}")

    def close(self) -> None:
        """Frees the model, once the runs that are under way have ended; a later run loads it again.

        Each run holds the session by a reference of its own, and the last one to let go of it frees it: nothing else may.
        """
        with self._lock:
            self._session = None

    def __repr__(self) -> str:
        return f"{type(self).__name__}({str(self.path)!r})"


def _joined(parts: tuple[Any, ...]) -> Any:
    """Outputs of several runs as those of one; some are lists."""
    return np.concatenate(parts) if isinstance(parts[0], np.ndarray) else [row for part in parts for row in part]


_NO_MEMORY = ("bad_alloc", "bad allocation", "failed to allocate", "cannot allocate", "out of memory")
"""What native runtimes say of it, in small letters."""


def first_line(error: BaseException) -> str:
    """What it says, in one line; of a lack of memory that it is one."""
    said = (str(error).strip().splitlines() or [type(error).__name__])[0]
    short = isinstance(error, MemoryError) or any(word in said.lower() for word in _NO_MEMORY)
    return f"there is too little memory for it on this device ({said})" if short else said
