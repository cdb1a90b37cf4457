"""Base of the runtimes: a model file with its card, loaded at the first run, and runs of it on the caller's inputs.

`last_operator` finds the operator before an output, by which the kind of the output is recognised.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Container, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypedDict

import numpy as np

from edgeroute.confidence.output_forms_labels_and_comparison import is_embedding, label_names
from edgeroute.confidence.output_reader import checked_kind
from edgeroute.confidence.scores import Score
from edgeroute.edge.answer_structure_checks import Given
from edgeroute.edge.edge_backend import current_turn
from edgeroute.edge.input_checks_and_stacking import MakePrepare, Plain
from edgeroute.edge.inputs_constants_and_states import Inputs, batch_axis_problem
from edgeroute.edge.model_card import Array, Card, checked_sha256
from edgeroute.errors import BadInput, ModelError
from edgeroute.system.files_and_lock_waits import file_stamp, held_in_time
from edgeroute.system.fork_safety import ForkSafe, initially, per_process
from edgeroute.system.signal_safe_locks import SafeLock
from edgeroute.types import StopToken, TensorSpec

UNFREED_SESSIONS: list[Any] = []  # sessions of the parent of a forked process, which are never freed


# Operators, by ONNX's names, that leave the meaning of numbers as it is.
PASSING = (
    "Cast", "Clip", "DequantizeLinear", "Flatten", "Identity", "QuantizeLinear", "Reshape", "Squeeze", "Transpose", "Unsqueeze",
)  # fmt: skip
MOST_PASSED = 8  # most such operators behind the one that makes an output
# Operator that makes an output -> kind of the output. A vector of length 1 is an embedding; of the best scores no class is known.
KIND_BY_OPERATOR = {
    "Softmax": "probabilities", "LogSoftmax": "logprobs", "Sigmoid": "multilabel", "HardSigmoid": "multilabel",
    "QLinearSoftmax": "probabilities", "QLinearSigmoid": "multilabel", "LpNormalization": "value", "TopK": "value",
    "TopK least": "value", "LinearRegressor": "value", "SVMRegressor": "value", "TreeEnsembleRegressor": "value",
}  # fmt: skip
MOST_FILLED = 1 << 16  # maximum copies of an input with which a batch of fixed size is filled up
NO_BATCH = 'if that is no batch axis, its card says so: "batch": "none"'


class LoadsLate(ForkSafe, ABC):
    """Model in a file with its card, which is loaded at the first run.

    Args:
        path: the model file.
        card: path of the card, if it is not beside the model; False: no card is read.
        sha256: expected SHA-256 of the file, hex; None: the card's.
    """

    _lock = per_process(SafeLock)  # a signal handler may run the model while it loads
    _session: Any = initially(None, UNFREED_SESSIONS.append)
    # `file_stamp` of the file as it was last loaded; None: it never was.
    loaded_stamp: tuple[Any] | None = None
    # True, as each run holds its session: closing during a run frees it after the last run.
    closes_after_runs = True

    def __init__(self, path: str | Path, card: str | Path | Literal[False] | None, sha256: str | None) -> None:
        self.path = Path(path).absolute()  # it is read at the first use, and the working directory may change
        self.card = Card.beside(self.path, card)
        self.name = self.card.name or self.path.stem
        self.downgraded: str | None = None
        self._expected = sha256 or self.card.sha256
        self.fingerprint: str | None = None  # SHA-256 of the file that was loaded; None: loading does not take it

    @property
    def in_memory(self) -> bool:
        """True while the model is loaded."""
        return self._session is not None

    @property
    def files(self) -> list[Path]:
        """The card's path, if there is a card."""
        return [] if self.card.path is None else [self.card.path]

    def load(self) -> Any:
        """Read, check and compile the model, unless it is loaded; return the runtime's session, and note the file's stamp.

        Blocks while another thread loads it.

        Raises:
            ModelMissing: there is no such file.
            RuntimeMissing: the runtime is not installed.
            ModelError: the file is corrupt, is not the one that its card or the policy names, or cannot run as requested.
        """
        with self._lock:
            if self._session is None:
                self.loaded_stamp, self._session = (file_stamp(self.path),), self._load()  # the stamp is taken first
            return self._session

    @abstractmethod
    def _load(self) -> Any:
        """Check the file and open it. The caller holds the lock."""

    def close(self) -> None:
        """Free the model after the last run that is in progress; a later run loads it again.

        Each run refers to the session itself, and the last reference frees it. A load under way, which may hang, is waited for
        within `limited_waits`; one that ends later leaves the model loaded.
        """
        with held_in_time(self._lock):
            self._session = None

    def __repr__(self) -> str:
        return f"{type(self).__name__}({str(self.path)!r})"


class FileOptions(TypedDict, total=False):
    """Arguments of `ModelFile` by name, which every runtime of model files takes."""

    sha256: str | None
    card: str | Path | Literal[False] | None
    output: str | None
    kind: str | None
    labels: Iterable[Any] | None
    score: str | Score | None
    check: Given | None
    none_found: str | None


class ModelFile(LoadsLate):
    """Model file with its card, loaded at the first run: checks the file, prepares the caller's inputs, and runs them in batches.

    A runtime is a subclass that opens the file and executes tensors; the base class checks, prepares and batches.

    Args:
        path: the model file.
        sha256: expected SHA-256 of the file, or of a package (`edgeroute.edge.model_card.sha256_of`), hex; None: the card's;
            unchecked if the card has none.
        card: path of the card, if it is not beside the model; False: no card is read.
        output: name of the output to read; None: the card's, else all of them.
        kind: kind of the outputs, one of `edgeroute.confidence.KINDS`; None: the card's, else by the file's last operators,
            else recognised by their form.
        labels: class index -> value; None: the card's.
        score: for this model, in place of the router's; None: the card's, if it names one.
        check: check of its answers' structure (docs/llama.md#structure).
        none_found: rule where nothing is detected, see `edgeroute.confidence.detector_boxes`; None: the card's, else "defer".
    """

    _plan: Inputs  # plan of the inputs, made when the model is loaded
    folders = False  # True if the model may be a folder

    def __init__(
        self,
        path: str | Path,
        *,
        sha256: str | None = None,
        card: str | Path | Literal[False] | None = None,
        output: str | None = None,
        kind: str | None = None,
        labels: Iterable[Any] | None = None,
        score: str | Score | None = None,
        check: Given | None = None,
        none_found: str | None = None,
    ) -> None:
        super().__init__(path, card, sha256)
        self.labels = label_names(labels) or self.card.labels
        self.output = output or self.card.output
        self.kind, self.grounds = checked_kind(kind) or self.card.kind, ""
        if self.kind is None:
            self.kind, self.grounds = self.guess_kind({state.output for state in self.card.state})
        self.score, self.check, self.none_found = score or self.card.score, check, none_found or self.card.none_found
        self.inputs: tuple[TensorSpec, ...] = ()
        self.outputs: tuple[TensorSpec, ...] = ()
        self._names: list[str] = []

    def guess_kind(self, states: Container[str]) -> tuple[str | None, str]:
        """Return the kind of the output that is read by the operator that makes the output, and a text that says so.

        (None, "") if the file does not tell. states: names of the outputs that are fed back.
        """
        operators = {name: operator for name, operator in self._operators().items() if name not in states}
        read = {self.output: operators.get(self.output, "")} if self.output else operators
        name, made = next(iter(read.items()), ("", ""))
        operator, before, *_ = (*made.split(" of "), "")
        kind = None if len(read) > 1 or is_embedding(name) else KIND_BY_OPERATOR.get(operator)
        if operator == "TopK" and [*read.values()] == [made] * 2:  # its scores, and the numbers of their classes
            kind = "top+probabilities" if KIND_BY_OPERATOR.get(before) in {"probabilities", "logprobs"} else "top"
        if kind == "value" and self.labels is not None:  # which tell that there are classes
            kind = None
        return kind, "" if kind is None else f"its outputs are read as {kind}, since {operator} makes them"

    def _operators(self) -> dict[str, str]:
        """Return name of an output -> ONNX's name of the operator that makes it, from the file; {} if unknown."""
        return {}

    def _load(self) -> Any:
        """Check the file's SHA-256 and open it. The caller holds the lock.

        Raises ModelError for a folder, where the runtime takes none, and for another SHA-256. Sets `fingerprint`.
        """
        if not self.folders and self.path.is_dir():
            raise ModelError(f"{self.path} cannot be read: it is a folder")
        self.fingerprint = checked_sha256(self.path, self._expected)
        try:
            return self._open()
        except UnicodeDecodeError as e:
            raise ModelError(f"{self.path} is damaged: a name in it is no UTF-8") from e

    @abstractmethod
    def _open(self) -> Any:
        """Open the file in the runtime, call `_describe`, and return the runtime's session."""

    @abstractmethod
    def _execute(self, session: Any, names: list[str], feed: dict[str, Array], cancel: StopToken | None) -> list[Array]:
        """Run all tensors of the model, by name; return the outputs of these names, in order.

        Raises:
            ModelError: the run failed.
        """

    def _describe(self, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec], plain: MakePrepare = Plain) -> None:
        """Compare the card with the file's inputs and outputs; store these, the plan of inputs, and which outputs are read.

        Args:
            inputs: of the file.
            outputs: of the file.
            plain: makes the preparation of an input without preprocessing.

        Raises:
            ModelError: the card describes another file.
            RuntimeMissing: the card needs Pillow, which is not installed.
        """
        if any(spec.preprocess is not None and spec.preprocess.fits_pictures for spec in self.card.inputs):
            from edgeroute.edge.preprocessing import load_pillow

            load_pillow()
        try:
            self._plan = Inputs(self.card, inputs, outputs, plain)
        except ValueError as e:
            raise ModelError(f"{self.path}: {e}") from e
        self.inputs, self.outputs = self._plan.given, self._plan.outputs
        names = [spec.name for spec in self.outputs]
        if self.output and self.output not in names:
            raise ModelError(f"{self.path} has no output {self.output!r}, named in policy or card: it has {', '.join(names)}")
        self._names = [self.output] if self.output else names

    def run(self, inputs: list[Any], cancel: StopToken | None = None) -> Array | dict[str, Array]:
        """Run the model; return its output [n, ...], or name -> output if there are several.

        A model with a fixed batch size runs several times; the last group is filled up with copies of its last input.

        Args:
            inputs: n arrays (or mappings of name to array) without the batch axis.
            cancel: requests a stop.

        Raises:
            BadInput: an input does not fit.
            ModelError: the model cannot be loaded, or the run failed.
        """
        if self._session is None:
            self.load()  # what it takes is known only then
        size = self._plan.size
        if size is None or (size == 1 and len(inputs) < 2) or not inputs:  # noqa: PLR2004 - one by itself
            return self._by_name(self._rows(inputs, cancel))
        parts = [self._group(inputs, start, size, cancel) for start in range(0, len(inputs), size)]
        return self._by_name([concatenate(rows) for rows in zip(*parts, strict=True)])

    def _group(self, inputs: list[Any], start: int, size: int, cancel: StopToken | None) -> list[Array]:
        """Run the model on `size` of the inputs, from `start` on, as it takes no other number; return their outputs.

        Missing inputs are replaced by copies of the last one, whose outputs are cut off.

        Raises:
            BadInput: one of these inputs does not fit; the message has its number.
        """
        group = inputs[start : start + size]
        if size - len(group) > MOST_FILLED:
            raise BadInput(f"{self.path} takes {size} inputs at a time by its first axis, and {len(group)} are given; {NO_BATCH}")
        try:
            return [rows[: len(group)] for rows in self._rows(group + group[-1:] * (size - len(group)), cancel)]
        except BadInput as e:
            if size > 1:
                raise BadInput(f"{e}; its batch axis is fixed at {size}; {NO_BATCH}") from None
            raise BadInput(f"input {start} of the batch: {e}") from None

    def feed(self, inputs: list[Any]) -> dict[str, Array]:
        """Return the model's tensors for these inputs, after the card's preprocessing, without constants and state.

        Raises:
            BadInput: the inputs do not fit.
            ModelError: the card has to state which axis counts the inputs.
        """
        if text := batch_axis_problem(self.card, self.inputs, self.outputs):
            raise ModelError(f"{self.path}: {text}")
        return self._plan.feed(inputs, self.name)

    def run_feed(self, feed: dict[str, Array], cancel: StopToken | None = None) -> Array | dict[str, Array]:
        """Run tensors that are the model's own already, by name, with the card's constants added; return as `run`."""
        return self._by_name(self._call(feed, cancel))

    def _rows(self, inputs: list[Any], cancel: StopToken | None) -> list[Array]:
        """Run the model once on these inputs; return its outputs, each with the axis that counts the inputs in front."""
        return [self._plan.rows(output) for output in self._call(self.feed(inputs), cancel)]

    def _call(self, feed: dict[str, Array], cancel: StopToken | None) -> list[Array]:
        """Run the session once on tensors, with constants and state added, and return the outputs without the state.

        The next state is stored in the turn of the router's session, unless a stop was requested.

        Raises:
            BadInput: the model has a state, and the call belongs to no session.
        """
        session = self._session or self.load()
        plan = self._plan
        if plan.constants:
            feed = {**feed, **plan.constants}
        if not plan.state:
            return self._execute(session, self._names, feed, cancel)
        turn = current_turn(self.name)
        feed = {**feed, **turn.states.get(self, plan.state)}
        out = self._execute(session, [*self._names, *plan.state_outputs], feed, cancel)
        if cancel is None or not cancel.asked:
            turn.states[self] = dict(zip(plan.state, out[-len(plan.state_outputs) :], strict=True))
        return out[: -len(plan.state_outputs)]

    def _by_name(self, out: list[Array]) -> Array | dict[str, Array]:
        """Return the only output, or name -> output if there are several."""
        return out[0] if len(out) == 1 else dict(zip(self._names, out, strict=True))

    def _run_error(self, error: Exception) -> ModelError:
        """Return a ModelError for a failed run, with the first line of the runtime's error."""
        return ModelError(f"{self.name} failed to run: {first_line(error)}")


def last_operator(output: Any, nodes: Mapping[Any, tuple[str, Sequence[Any]]]) -> str:
    """Return the operator that makes an output, but for those in `PASSING`; empty: unknown.

    "LpNormalization" too for a division of a tensor by its own Euclidean norm; "TopK of OPERATOR of TENSOR" with the operator
    before it and its input. nodes: each tensor that an operator makes -> (operator, its inputs).
    """
    operator, sources = _maker(output, nodes)
    if operator == "TopK":
        return f"TopK of {_maker(sources[0], nodes)[0]} of {sources[0]!r}" if sources else ""
    return "LpNormalization" if operator in {"Div", "Mul"} and _is_by_own_norm(sources, nodes) else operator


def _maker(output: Any, nodes: Mapping[Any, tuple[str, Sequence[Any]]]) -> tuple[str, Sequence[Any]]:
    """Return the operator that makes a tensor, but for those in `PASSING`, and its inputs; an empty name: unknown."""
    operator, sources = nodes.get(output, ("", ()))
    for _ in range(MOST_PASSED):
        if operator not in PASSING:
            break
        operator, sources = nodes.get(next(iter(sources), None), ("", ()))
    return operator, sources


def _is_by_own_norm(sources: Sequence[Any], nodes: Mapping[Any, tuple[str, Sequence[Any]]]) -> bool:
    """Return True if the second input is the Euclidean norm of the first, or its reciprocal."""
    at, passed = sources[-1], set[str]()
    for _ in range(MOST_PASSED):
        operator, before = nodes.get(at, ("", ()))
        at = next(iter(before), None)
        passed.add(operator)
        if at is None or at == sources[0]:
            break
    root_of_sum = "Sqrt" in passed and not passed.isdisjoint({"ReduceSum", "ReduceSumSquare"})
    return at == sources[0] and ("ReduceL2" in passed or root_of_sum)


def concatenate(parts: Sequence[Any]) -> Any:
    """Return the outputs of several runs as one output; arrays are concatenated, and so are lists."""
    return np.concatenate(parts) if isinstance(parts[0], np.ndarray) else [row for part in parts for row in part]


# Words of native runtimes' errors that mean a lack of memory, in small letters.
NO_MEMORY = ("bad_alloc", "bad allocation", "failed to allocate", "cannot allocate", "out of memory")


def first_line(error: BaseException) -> str:
    """Return an error's first line, or its type's name if it has no text; a lack of memory is named as such."""
    line = (str(error).strip().splitlines() or [type(error).__name__])[0]
    short = isinstance(error, MemoryError) or any(word in line.lower() for word in NO_MEMORY)
    return f"there is too little memory for it on this device ({line})" if short else line
