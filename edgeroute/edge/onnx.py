"""ONNX models on ONNX Runtime."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from edgeroute.confidence.labels import label_names
from edgeroute.confidence.reader import checked_kind
from edgeroute.confidence.scores import Score
from edgeroute.edge.card import Array, Card, sha256_of
from edgeroute.edge.external import external_data
from edgeroute.edge.inputs import Inputs, unsaid
from edgeroute.edge.onnx_session import Node, first_line, opened
from edgeroute.edge.picture import check_installed
from edgeroute.edge.providers import CPU, Given, parsed
from edgeroute.edge.state import turn_of
from edgeroute.errors import BadInput, ModelError, PolicyError, RuntimeMissing
from edgeroute.imports import imported
from edgeroute.system import renew_after_fork
from edgeroute.types import StopToken, TensorSpec

_DTYPES = {
    "tensor(float)": "float32", "tensor(float16)": "float16", "tensor(double)": "float64", "tensor(bool)": "bool",
    "tensor(int8)": "int8", "tensor(int16)": "int16", "tensor(int32)": "int32", "tensor(int64)": "int64",
    "tensor(uint8)": "uint8", "tensor(uint16)": "uint16", "tensor(uint32)": "uint32", "tensor(uint64)": "uint64",
}  # fmt: skip


_SET_ASIDE: list[Any] = []


class OnnxModel:
    """A .onnx file, with the card beside it if there is one. Loaded at the first run, or by `load()`.

    Args:
        path: the model file.
        providers: execution providers, best first: names, as "cpu" or "tensorrt", or tables with a name and options, as
            {"name": "tensorrt", "fp16": True}; see `edgeroute.edge.providers`.
        threads: for one run; more than one slows a busy device down.
        on_downgrade: what it means that a provider asked for is not there, or that the first one takes no node of the model: an
            error, or a note in `downgraded`.
        sha256: of the file; None: what the card says, unchecked where it says nothing.
        card: path of the card, where it is not beside the model.
        output: name of the output to read; None: the card's, else all of them.
        kind: what the outputs are, one of `edgeroute.confidence.KINDS`; None: the card's, else read by their form.
        labels: class index -> value; None: the card's.
        score: for this model, in place of the router's; None: the card's, if it names one.
        none_found: of a detector, see `edgeroute.confidence.boxes`; None: the card's, else "defer".

    Importing ONNX Runtime sets ORT_DISABLE_TELEMETRY=1 unless the variable is set: it would write and send by default.
    """

    closes_after_runs = True
    """A run holds the session that it began with: closing frees it after the last."""

    def __init__(
        self,
        path: str | Path,
        *,
        providers: Given | Sequence[Given] = ("cpu",),
        threads: int = 1,
        on_downgrade: Literal["error", "record"] = "error",
        sha256: str | None = None,
        card: str | Path | None = None,
        output: str | None = None,
        kind: str | None = None,
        labels: Iterable[Any] | None = None,
        score: str | Score | None = None,
        none_found: str | None = None,
    ) -> None:
        self.path = Path(path)
        try:
            self.providers = parsed(providers)
        except PolicyError as e:
            raise PolicyError(f"providers: {e}") from None
        self.threads, self.on_downgrade = threads, on_downgrade
        self.card = Card.read(Path(card)) if card else Card.beside(self.path)
        self.name = self.card.name or self.path.stem
        self.labels = label_names(labels) or self.card.labels
        self.kind = checked_kind(kind) or self.card.kind
        self.output = output or self.card.output
        self.score, self.none_found = score or self.card.score, none_found or self.card.none_found
        self.downgraded: str | None = None
        self.placement: str | None = None
        self.nodes: tuple[Node, ...] | None = None
        self.fingerprint: str | None = None
        self.inputs: tuple[TensorSpec, ...] = ()
        self.outputs: tuple[TensorSpec, ...] = ()
        self._expected = sha256 or self.card.sha256
        self._lock = threading.RLock()  # a signal handler may run the model while it loads
        self._session: Any = None
        self._used = [*self.providers]
        self._run_options: Any = None
        self._names: list[str] = []
        self._input = ""
        self._plan = Inputs(Card(), (), ())
        self._prepare: Callable[[Any], Array] | None = None
        renew_after_fork(self)

    def after_fork(self) -> None:
        """The parent's session has threads that the child lacks: it is set aside, unused and never freed."""
        self._lock = threading.RLock()
        if self._session is not None:
            _SET_ASIDE.append(self._session)
            self._session = None

    @property
    def files(self) -> list[Path]:
        """The card, and the files beside the model that have its weights."""
        return [*external_data(self.path), *([] if self.card.path is None else [self.card.path])]

    @property
    def settings(self) -> dict[str, Any]:
        """The output that is read, and the providers it runs on, with the options that change outputs, such as a precision.

        Where a downgrade is allowed, it is loaded to know them.

        Threads are none of this: they change the order of sums, and so the last digits at most.
        """
        used = [*self.providers]
        if self.on_downgrade == "record" and [one.name for one in used] != [CPU]:
            self.load()
            used = self._used
        return {"runtime": "onnxruntime", "providers": [one.setting for one in used], "output": self.output}

    def load(self) -> Any:
        """Reads, checks and compiles the model, once. -> onnxruntime's session.

        Raises:
            ModelMissing: there is no such file.
            RuntimeMissing: onnxruntime is not installed.
            ModelError: the file is corrupt, is not the one its card or the policy names, or a provider is not there.
        """
        with self._lock:
            if self._session is None:
                self._session = self._load()
            return self._session

    def _load(self) -> Any:
        self.fingerprint = sha256_of(self.path)
        if self._expected and self.fingerprint != self._expected.lower():
            raise ModelError(
                f"{self.path} is not the expected model: its sha256 is {self.fingerprint}, expected {self._expected}. "
                "Fetch the model again, or correct the card or policy"
            )
        ort = runtime()
        made = opened(ort, self.path, self.providers, threads=self.threads, strict=self.on_downgrade == "error")
        session, self.nodes, self.downgraded = made.session, made.nodes, made.downgraded
        self.placement = None if [one.name for one in self.providers] == [CPU] else made.placement()
        self._used = made.used(self.providers) if made.downgraded else [*self.providers]
        self._plan = self._planned(session)
        self.inputs, self.outputs = self._plan.given, self._plan.outputs
        self._check_card()
        self._names = [self.output] if self.output else [node.name for node in self.outputs]
        self._check_types(session)
        self._input = self.inputs[0].name if self.inputs else ""
        self._prepare = self._plan.one
        self._run_options = ort.RunOptions
        return session

    def _planned(self, session: Any) -> Inputs:
        """How the inputs are filled."""
        if any(one.preprocess is not None and one.preprocess.fits_pictures for one in self.card.inputs):
            check_installed()
        inputs, outputs = (tuple(map(_spec, nodes)) for nodes in (session.get_inputs(), session.get_outputs()))
        try:
            return Inputs(self.card, inputs, outputs)
        except ValueError as e:
            raise ModelError(f"{self.path}: {e}") from e

    def _check_card(self) -> None:
        names = [spec.name for spec in self.outputs]
        if self.output and self.output not in names:
            raise ModelError(f"{self.path} has no output {self.output!r}, which is to be read: it has {', '.join(names)}")

    def _check_types(self, session: Any) -> None:
        """Refuses tensors that numpy has no type for, each run of which would fail."""
        for kind, nodes in (("input", session.get_inputs()), ("output", session.get_outputs())):
            for node in nodes:
                known = not node.type.startswith("tensor(") or node.type in _DTYPES or node.type == "tensor(string)"
                if not known and (kind == "input" or node.name in self._names):
                    raise ModelError(
                        f"{self.path}: its {kind} {node.name} is a {node.type}, which numpy does not have: export it with a cast "
                        "to float32 in the graph"
                    )

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

    def run_one(self, x: Any, cancel: StopToken | None = None) -> Array | dict[str, Array]:
        """The same for one input."""
        session, prepare = self._session or self.load(), self._prepare
        if prepare is None or cancel is not None or type(x) is dict:
            return self.run([x], cancel)
        tensor = prepare(x)
        try:  # the usual case, by the short way
            out = session.run(self._names, {self._input: tensor})
        except Exception as e:  # onnxruntime's errors derive from Exception alone
            raise self._failed(e) from e
        return out[0] if len(out) == 1 else dict(zip(self._names, out, strict=True))

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
        plan, names, turn = self._plan, self._names, None
        if plan.constants:
            feed = {**feed, **plan.constants}
        if plan.state:
            turn = turn_of(self.name)
            feed, names = {**feed, **turn.states.get(self, plan.state)}, [*names, *plan.kept]
        try:
            if cancel is None:
                out = session.run(names, feed)
            else:
                options = self._run_options()
                cancel.on_ask(lambda: setattr(options, "terminate", True))
                out = session.run(names, feed, options)
        except Exception as e:  # onnxruntime's errors derive from Exception alone
            raise self._failed(e) from e
        if turn is None:
            return out  # type: ignore[no-any-return]
        if cancel is None or not cancel.asked:
            turn.states[self] = dict(zip(plan.state, out[-len(plan.kept) :], strict=True))
        return out[: -len(plan.kept)]  # type: ignore[no-any-return]

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
        return f"OnnxModel({str(self.path)!r})"


def runtime() -> Any:
    """The module onnxruntime, without its telemetry.

    Raises:
        RuntimeMissing: it is not installed.
    """
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # read once, at import
    try:
        return imported("onnxruntime")
    except ImportError as e:
        raise RuntimeMissing("onnxruntime is not installed: pip install 'edgeroute[onnx]'") from e


def _spec(node: Any) -> TensorSpec:
    if node.type.startswith("seq(map("):  # scikit-learn's zipmap: a mapping from class to probability for each input
        return TensorSpec(node.name, "float32", (-1, -1))
    shape = tuple(n if isinstance(n, int) and n > 0 else -1 for n in node.shape)
    return TensorSpec(node.name, _DTYPES.get(node.type, "object"), shape)


def _joined(parts: tuple[Any, ...]) -> Any:
    """Outputs of several runs as those of one; some are lists."""
    return np.concatenate(parts) if isinstance(parts[0], np.ndarray) else [row for part in parts for row in part]
