"""Edge backend: runs a model on the device, counts and stops runs, decodes outputs to predictions, carries a session's state.

`CheckedBackend` also checks answers, and withholds the pieces of an answer until it has passed.
"""

from __future__ import annotations

import threading
from collections.abc import Awaitable, Callable, Generator, Mapping, Sequence
from contextlib import nullcontext
from contextvars import ContextVar, copy_context
from functools import partial
from math import prod
from time import monotonic
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

import numpy as np

from edgeroute.confidence.output_forms_labels_and_comparison import (
    Labels,
    are_probabilities,
    as_array,
    is_embedding,
    probabilities_warning,
)
from edgeroute.confidence.output_reader import CLASSES, MANY, Reader
from edgeroute.confidence.score_before_run import InputScore
from edgeroute.confidence.scores import Score, Unscored
from edgeroute.core.policy_egress_and_options import Side
from edgeroute.core.stream_walk import Piece, Pieces, one_piece, read_pieces
from edgeroute.core.walk import Malformed, Prediction
from edgeroute.edge.answer_structure_checks import AnswerCheck
from edgeroute.edge.callable_model import gather
from edgeroute.edge.edge_model_members_and_fingerprints import (
    check_model,
    counts_runs,
    feed_of,
    fingerprint,
    has_async_runs,
    member,
)
from edgeroute.edge.runtimes_variants_ensemble import Ensemble
from edgeroute.errors import BadInput, BadReply, ModelError
from edgeroute.system.fork_safety import AbandonedRuns
from edgeroute.system.late_imports_and_plugins import import_late
from edgeroute.system.sanitised_logs_and_contained_errors import log
from edgeroute.types import EdgeModel, StopToken, TensorSpec

if TYPE_CHECKING:
    from edgeroute.edge.concurrent_runs import Runs

# State of a model, which a session carries from one call to the next.
#
# A session sets a `Turn` for the time of a call, in a context variable, which reaches the threads and tasks of its legs. A model
# with a state reads it from there, and stores the next one there. So the state moves on only with the call, and a run that
# was abandoned (by a deadline, say) changes nothing any more.

T = TypeVar("T")


class Turn:
    """States of models during one call of a session.

    Args:
        states: model -> its state before the call, copied; a model without one starts from its first state.
        stream: id of the session; empty: the state lasts for this call only.
    """

    def __init__(self, states: Mapping[object, Any], stream: str = "") -> None:
        self.states: dict[object, Any] = dict(states)
        self.stream = stream


# Turn of the current call; None: the call belongs to no session.
TURN: ContextVar[Turn | None] = ContextVar("edgeroute_turn", default=None)


# Message about a model with a state, with the code to write.
IN_SESSION = "keeps a state from one input to the next: use a session, `with router.session() as s: s.infer(x)`"


def current_turn(name: str) -> Turn:
    """Return the session's turn of the current call, for a model of that name.

    Raises:
        BadInput: the call belongs to no session.
    """
    if (turn := TURN.get()) is None:
        raise BadInput(f"{name} {IN_SESSION}")
    return turn


def in_new_session(function: Callable[..., T], *arguments: object) -> T:
    """Call a function as the first call of a new session, and return its result.

    In a copy of the context, so that the caller's session stays.
    """
    context = copy_context()
    context.run(TURN.set, Turn({}))
    return context.run(function, *arguments)


OffLoop: TypeAlias = Callable[..., Awaitable[Any]]  # awaits a blocking call without blocking the event loop
MOST_PROBED = 1 << 22  # largest input, in elements, that `ready` runs with zeros
PROBE_S = 2.0  # longest run on zeros, seconds
FREE = ((224, 16), (64, 512), (640, 64), (32, 1))  # sizes of axes of any size that are tried: in a picture, and otherwise
NOT_CHECKED = "its outputs were not checked"
# Abandoned runs of one model (cancelled, still running) at which the planner skips it; `parallel` may set fewer.
MAX_ABANDONED = 4


class EdgeBackend(AbandonedRuns):
    """Backend of a model on the device: runs it, decodes outputs to predictions, counts stuck runs, frees and loads the model.

    Attributes:
        alone_async: True if the model runs on an event loop only: its runs are awaited.
        run_async: coroutine function that runs the model there; None: the model needs a thread.
        at_once: True if a run begins at once, in the calling thread, without waiting for a turn.
        unloaded: True if the model was freed, and is to be loaded again.
        loading: True while the model is being loaded again: until then other targets are asked first.

    Raises:
        PolicyError: the model's members contradict the protocol.
    """

    side: Side = "edge"
    traffic = (0, 0)
    warmth = ""  # times of loading and first runs, as text; empty: the model was not warmed up
    on_zeros: Prediction | None = None  # answer to zeros, without the caller's score, once `ready` has run them; None: not run
    doubt = ""  # reason why `ready` did not check the outputs; empty: it did, or the inputs are not known
    unloaded = loading = False

    def __init__(self, name: str, model: EdgeModel, score: str | Score) -> None:
        check_model(model)
        self.name, self.model = name, model
        self.where = str(member(model, "path") or model.name)
        self.reader = Reader(
            member(model, "score") or score, labels=member(model, "labels"), kind=member(model, "kind"), name=model.name,
            none_found=member(model, "none_found"), blank=getattr(member(model, "card"), "blank", 0),
            output_name=self._output_name,
        )  # fmt: skip
        parallel = member(model, "parallel")
        super().__init__(min(MAX_ABANDONED, parallel or MAX_ABANDONED))
        self.alone_async, self._close = has_async_runs(model), member(model, "close")
        self.at_once = not self.alone_async and parallel is None
        self.run_async = self._run_async if self.alone_async else None
        self._one: Callable[..., Any] = member(model, "run_one") or (lambda x, cancel: model.run([x], cancel))
        self._run: Callable[..., Any] = model.run
        self._runs: Runs | None = None
        if counts_runs(model):
            from edgeroute.edge.concurrent_runs import runs_of

            runs = self._runs = runs_of(model)
            self._close = None if self._close is None else runs.close
            if not self.alone_async:
                self._one, self._run = runs.count_runs(self._one), runs.count_runs(self._run)

    def _output_name(self) -> str:
        """Return the name of the output that is read, or of the first of several; empty: unknown."""
        outputs = member(self.model, "outputs")
        return member(self.model, "output") or (outputs[0].name if outputs else "")

    def run(self, inputs: list[Any], cancel: StopToken | None) -> list[Prediction]:
        """Run the inputs as one batch; return a prediction for each."""
        return self.reader.read_many(self._run(inputs, cancel), len(inputs))

    def run_one(self, x: Any, cancel: StopToken | None) -> Prediction:
        """Run one input, by the model's `run_one` if it has one; return the prediction."""
        return self.reader.read_one(self._one(x, cancel))

    def stream(self, x: Any, cancel: StopToken | None) -> Pieces:
        """Run one input, and yield the answer in pieces: those of the model's `stream`, or one piece. Returns the prediction.

        Without a `stream` of the model it runs at the call, and not at the first piece.
        """
        if (stream := member(self.model, "stream")) is None:
            return one_piece(EdgeBackend.run_one(self, x, cancel))  # a subclass looks at each answer once
        return self._stream_counted(stream(x, cancel), cancel)

    def _stream_counted(self, pieces: Generator[Any, None, Any], cancel: StopToken | None) -> Pieces:
        """Yield the pieces of a model's stream as one counted run, after waiting for a turn; return the prediction."""
        with nullcontext() if self._runs is None else self._runs.one(cancel):
            return (yield from read_pieces(pieces, self.reader.read_answer))

    async def _run_async(self, inputs: list[Any], many: bool, off_loop: OffLoop | None = None) -> list[Prediction]:  # noqa: ARG002
        """Await a turn and then a run of the inputs as one batch, or, if not `many`, of the only input by the model's `run_one`.

        Args:
            inputs: the inputs.
            many: True: they are a batch.
            off_loop: awaits a blocking call, such as a subclass's check; None: it is made here.
        """
        async with nullcontext() if self._runs is None else self._runs.one_async():
            if many:
                return self.reader.read_many(await self._run(inputs, None), len(inputs))
            return [self.reader.read_one(await self._one(inputs[0], None))]

    async def stream_async(self, x: Any, show: Callable[[Any], object], off_loop: OffLoop | None = None) -> Prediction:  # noqa: ARG002
        """Run one input on an event loop, calling `show` with each piece of the answer; return the prediction.

        Awaits a turn first. Without a `stream` of the model, the whole answer is the only piece.
        """
        if (stream := member(self.model, "stream")) is None:
            (prediction,) = await EdgeBackend._run_async(self, [x], many=False)
            show(prediction.value)
            return prediction
        async with nullcontext() if self._runs is None else self._runs.one_async():
            return self.reader.read_answer(await gather(stream(x, None), show))

    def ready(self, until: float) -> None:
        """Load the model, and run it on zeros for a limited time to check its outputs, if its inputs are known.

        Sets `on_zeros` to the answer, or `doubt` to the reason why the outputs were not checked, and the reader's kind if they
        tell it. Axes of any size are tried with several sizes. A model that cannot be run on zeros passes unchecked.

        Args:
            until: monotonic instant at which the run on zeros is stopped at the latest.

        Raises:
            ModelError: the outputs are not as the card states, or would be misread; or the axis that counts the inputs is
                unknown.
            BadReply: the outputs have other classes than there are labels, or another number of rows than there are inputs.
        """
        self.load()
        card = member(self.model, "card")
        if card is not None and (
            text := import_late("edgeroute.edge.inputs_constants_and_states").batch_axis_problem(
                card, member(self.model, "inputs"), member(self.model, "outputs") or ()
            )
        ):
            raise ModelError(f"{self.where}: {text}")
        by_row = card is None or card.batch_first
        if by_row:
            self._check_declared()
        inputs, end = member(self.model, "inputs"), min(until, monotonic() + PROBE_S)
        sized = any(-1 in spec.shape[1:] for spec in inputs)
        runs = (self._run_zeros(end - monotonic(), free) for free in (FREE if sized else FREE[:1]))
        outputs = next((out for out in runs if out is not None), None)
        self.doubt = f"{NOT_CHECKED}: it was not run on zeros" if outputs is None and inputs else ""
        if outputs is None:
            return
        if self.reader.kind == "logits" and are_probabilities(outputs):
            raise ModelError(probabilities_warning(self.model.name))
        if not by_row:
            return
        try:
            self.on_zeros = self._check_read(outputs)
        except (BadReply, ModelError) as e:
            if not sized or _has_fixed_row(_specs_read(self.model), outputs):
                raise
            self.reader.check_embedding()
            self.doubt = f"{NOT_CHECKED}: for zeros of one size, {e}"  # of another size they may fit
        as_logits = not callable(self.reader.score) or getattr(self.reader.score, "of_logits", False)
        if self.reader.kind is None and as_logits and are_probabilities(outputs):  # nearly, as of rounded numbers
            raise ModelError(probabilities_warning(self.model.name))

    def _check_declared(self) -> None:
        """Compare a row of numbers, as the file declares the only output, with the labels and the output's name.

        For the kind `ctc`, compare the classes of its steps with the labels, which may lack the blank.

        Raises:
            BadReply: there are other labels.
            ModelError: the output is an embedding by its name.
        """
        specs, reader = _specs_read(self.model), self.reader
        shape = specs[0].shape if len(specs) == 1 and specs[0].dtype.startswith("float") else ()
        is_row = len(shape) == 2 and shape[0] in {-1, 1} and shape[1] > 1  # noqa: PLR2004 - inputs and numbers
        if is_row:
            reader.check_embedding()
        if is_row and reader.labels is not None and reader.kind in {None, *CLASSES, "multilabel"}:
            Labels(reader.labels, self.name).at(0, shape[1])
        if reader.kind == "ctc" and len(shape) == 3 and shape[2] > 0 and len(reader.labels or ()) not in {0, shape[2] - 1}:  # noqa: PLR2004
            Labels(reader.labels, self.name).at(0, shape[2])  # perhaps without the blank

    def _check_read(self, outputs: Any) -> Prediction:
        """Return the answer in the outputs for zeros, without the caller's score, which was not made for such an input.

        If these outputs tell the kind of the outputs, the reader takes it over.

        Raises:
            ModelError: they have no confidence.
            BadReply: they do not fit the labels, or the number of inputs.
        """
        reader = self.reader
        tried = Reader(
            labels=reader.labels, kind=reader.kind, name=reader.name, none_found=reader.none_found, blank=reader.blank,
            output_name=str if callable(reader.score) else reader.output_name,
        )  # fmt: skip
        tried.doubt = MANY  # no warning: `check` reports it
        prediction = tried.read_one(outputs)
        if tried.kind != reader.kind:
            reader.settle(tried.kind)
        if isinstance(prediction.confidence, Unscored) and not callable(reader.score):
            raise ModelError(f"{reader.name} gives {prediction.confidence.why}")
        return prediction

    def time_on_zeros(self, seconds: float) -> tuple[float, float] | None:
        """Run the model twice on zeros, and return the seconds of each run; None: it cannot be run on zeros.

        The first run often prepares what later ones need. Each run is stopped after `seconds`. The second one counts even if it
        fails or is stopped.
        """
        begun = monotonic()
        if self._run_zeros(seconds) is None:
            return None
        first = monotonic()
        self._run_zeros(seconds)
        return first - begun, monotonic() - first

    def _run_zeros(self, seconds: float, free: tuple[int, int] = (-1, -1)) -> Any:
        """Run the model on zeros, as a counted run in a new session, and return its outputs.

        None: its inputs are unknown, of dynamic shape or too large, or the run failed or took more than `seconds`, when a timer
        requests its stop. A failure is logged at debug level.

        Args:
            seconds: most time of the run.
            free: elements of an axis of any size, in a picture [n, c, h, w] and otherwise; -1: the model is not run.
        """
        specs, run = member(self.model, "inputs"), feed_of(self.model)
        shapes = [(1, *(free[len(spec.shape) != 4] if n == -1 else n for n in spec.shape[1:])) for spec in specs]  # noqa: PLR2004
        if run is None or not specs or any(-1 in shape for shape in shapes) or sum(map(prod, shapes)) > MOST_PROBED:
            return None
        stop = StopToken()
        timer = threading.Timer(max(0.0, seconds), stop)
        timer.daemon = True
        timer.start()
        try:
            with nullcontext() if self._runs is None else self._runs.one(stop):
                feed = {spec.name: np.zeros(shape, spec.dtype) for spec, shape in zip(specs, shapes, strict=True)}
                return in_new_session(run, feed, stop)
        except Exception as e:  # noqa: BLE001 - zeros may not be an input of this model: its first one tells
            log.debug("%s does not run on zeros: %s", self.where, e)
            return None
        finally:
            timer.cancel()

    def describe(self) -> str:
        """Return the status line of `check`: the model, a note if it needs a session, hardware, version, downgrade, warm-up."""
        session = f", but only in a session, since it {IN_SESSION}" if has_state(self.model) else ""
        where = f", {placement}" if (placement := member(self.model, "placement")) else ""
        release, downgraded, grounds = (member(self.model, name) for name in ("release", "downgraded", "grounds"))
        value, sure = (None, 0.0) if self.on_zeros is None else self.on_zeros[:2]
        if grounds and value is not None and type(value) is not list:
            grounds = grounds.replace("multilabel", "the probability of the second of two classes")
            if sure is None and self.reader.kind != "value":
                grounds = "its outputs are read as a value without confidence"
        notes = [release, downgraded, self.warmth, grounds, self.doubt]
        if (other := getattr(member(self.model, "card"), "foreign", None)) is not None:
            notes.append(f"{other.name} is another program's file, and was not read as a card; there is nothing to do")
        if self.reader.kind != member(self.model, "kind"):
            notes.append("its outputs are read as probabilities, since they sum to 1")
        elif _by_form_alone(self.on_zeros, self.reader):
            kind = "boxes" if type(value) is list else "logits"
            notes.append(f"its outputs are read as {kind}, by their form alone: kind says so")
        elif self.on_zeros is not None and self.on_zeros.confidence is None and is_embedding(name := self.reader.output_name()):
            notes.append(f"{name!r} is by its name an embedding, read as a value without confidence")
        more = [str(note) for note in notes if note]
        return f"{self.where} is ready{session}{where}" + (f" ({'; '.join(more)})" if more else "")

    def fingerprint(self, of: Callable[[Any], str]) -> str:
        """Return a fingerprint of all that the model's outputs depend on.

        Args:
            of: returns the fingerprint of a file, a folder or a callable.
        """
        return fingerprint(self.model, of)

    def identity(self, of: Callable[[Any], str]) -> str:
        """Return the fingerprint and how the outputs are decoded, for cache keys.

        Args:
            of: returns the fingerprint of a file, a folder or a callable.
        """
        return repr((self.fingerprint(of), self.reader.labels, member(self.model, "kind"), self.reader.none_found))

    def after_fork(self) -> None:
        """Forget the parent's runs in a forked child, and mark the model unloaded if a thread of the parent was loading it."""
        super().after_fork()
        if self.loading:
            self.unloaded, self.loading = True, False

    def unload(self) -> None:
        """Free the model as `close` does, until `load`; a run in between loads it. Without a `close` only the mark is set."""
        self.unloaded = True
        self.close()

    def load(self) -> None:
        """Load the model again. Its error passes, and the next run raises it again.

        Without a `load` of the model only the marks are reset.
        """
        self.unloaded, load = False, member(self.model, "load")
        try:
            if load is not None:
                load()
        finally:
            self.loading = False

    def close(self) -> None:
        """Free the model once no run is in progress: a native runtime would crash the process.

        Deferred to the end of the last run, without waiting. A no-op for a model without `close`.
        """
        if self._close is not None:
            self._close()


def has_state(model: EdgeModel) -> bool:
    """Return True if the model, its card, or a model of an ensemble has a state."""
    card = member(model, "card")
    return bool(member(model, "stateful") or getattr(card, "state", ())) or (
        isinstance(model, Ensemble) and any(map(has_state, model.models))
    )


# Edge backends whose confidences depend on more than the outputs: on the input, and on a check of the answer's structure.


class CheckedBackend(EdgeBackend):
    """Edge backend whose answers are checked. Pieces of an answer that is to be checked are held until it has passed."""

    def __init__(self, name: str, model: EdgeModel, score: str | Score) -> None:
        super().__init__(name, model, score)
        given = member(model, "check")
        self.check = given if isinstance(given, AnswerCheck) else AnswerCheck(given)
        self.at_once = self.at_once and not self.check.blocks([{}])

    def fingerprint(self, of: Callable[[Any], str]) -> str:
        """Return a fingerprint as the base class does, with the check given."""
        return super().fingerprint(of) + self.check.identity(of)

    def run(self, inputs: list[Any], cancel: StopToken | None) -> list[Prediction]:
        """Run the inputs as one batch; return a prediction for each, after its check."""
        return [self._checked(p, x) for p, x in zip(super().run(inputs, cancel), inputs, strict=True)]

    def run_one(self, x: Any, cancel: StopToken | None) -> Prediction:
        """Run one input; return the prediction, after its check."""
        return self._checked(super().run_one(x, cancel), x)

    def stream(self, x: Any, cancel: StopToken | None) -> Pieces:
        """Run one input, and yield the answer in pieces; none of a malformed one. Returns the prediction, after its check."""
        return self._pieces(super().stream(x, cancel), x)

    def _pieces(self, pieces: Pieces, x: Any) -> Pieces:
        """Yield the pieces at once if the answer is not checked, and return the prediction, checked.

        Of an answer that is checked, yield empty pieces meanwhile, which nobody is shown, and all pieces once it has passed.
        """
        held, wants = list[Any](), self.check.wants(x)
        try:
            while True:
                held.append(next(pieces))
                yield Piece("") if wants else held.pop()
        except StopIteration as end:
            prediction = self._checked(end.value, x)
        finally:
            pieces.close()
        if type(prediction.confidence) is not Malformed:
            yield from held
        return prediction

    async def _run_async(self, inputs: list[Any], many: bool, off_loop: OffLoop | None = None) -> list[Prediction]:
        """Await a run, and return the predictions, each after its check."""
        return await self._checked_off_loop(await super()._run_async(inputs, many), inputs, off_loop)

    async def stream_async(self, x: Any, show: Callable[[Any], object], off_loop: OffLoop | None = None) -> Prediction:
        """Run one input on an event loop, and return the prediction, after its check; its pieces go to `show`.

        They are shown at once, or if the answer is checked, all after the check. A check that fails raises nothing: the
        confidence is `Malformed` then, and no piece is shown.
        """
        held: list[Any] = []
        wanted = self.check.wants(x)
        answer = await super().stream_async(x, held.append if wanted else show)
        (prediction,) = await self._checked_off_loop([answer], [x], off_loop)
        if type(prediction.confidence) is not Malformed:
            for piece in held:
                show(piece)
        return prediction

    async def _checked_off_loop(
        self, predictions: list[Prediction], inputs: list[Any], off_loop: OffLoop | None
    ) -> list[Prediction]:
        """Return the predictions, each after its check, off the event loop if a check may take long.

        A check that goes on after the task was cancelled counts as an abandoned run.
        """
        states = set[str]()

        def check() -> list[Prediction]:
            states.add("begun")
            try:
                return [self._checked(p, x) for p, x in zip(predictions, inputs, strict=True)]
            finally:
                states.add("ended")
                self.stopping.discard(check)

        if off_loop is None or not self.check.blocks(inputs):
            return check()
        try:
            return await off_loop(partial(copy_context().run, check))  # type: ignore[no-any-return]
        except BaseException:
            if "begun" in states:
                self.stopping.add(check)
            if "ended" in states:  # meanwhile
                self.stopping.discard(check)
            raise

    def _checked(self, prediction: Prediction, x: Any) -> Prediction:
        """Return the prediction for an input after the check of its answer; its confidence is `Malformed` if that fails."""
        return self.check.apply(prediction, x)


class InputScoredBackend(CheckedBackend):
    """Edge backend whose answers have the confidence of their inputs, in place of a confidence from the outputs.

    Attributes:
        before: the score of an input.
    """

    def __init__(self, name: str, model: EdgeModel, score: InputScore) -> None:
        super().__init__(name, model, "msp")
        self.before = score

    def _checked(self, prediction: Prediction, x: Any) -> Prediction:
        """Return the prediction with the input's confidence, after the check of its answer."""
        return super()._checked(prediction._replace(confidence=self.before.of_input(x)), x)


def edge_backend(name: str, model: EdgeModel, score: str | Score) -> EdgeBackend:
    """Return a backend of the model with this score. An `InputScore` makes one that scores the input, a `check` one that does."""
    if isinstance(score, InputScore):
        return InputScoredBackend(name, model, score)
    return (EdgeBackend if member(model, "check") is None else CheckedBackend)(name, model, score)


def _specs_read(model: EdgeModel) -> list[TensorSpec]:
    """Return the specifications of the outputs that are read."""
    return [spec for spec in member(model, "outputs") if member(model, "output") in {None, spec.name}]


def _has_fixed_row(specs: Sequence[TensorSpec], outputs: Any) -> bool:
    """Return True if each output of floats for one input is one finite row, and the file declares the sizes of all outputs.

    specs: of the outputs that are read. The first size, the number of inputs, may be open. Outputs of other types may hold
    anything.
    """
    arrays = outputs.values() if isinstance(outputs, dict) else [outputs]
    floats = [array for array in map(as_array, arrays) if array.dtype.kind == "f"]
    one = all(array.shape[:1] == (1,) and np.isfinite(array).all() for array in floats)
    return one and all(spec.shape and -1 not in spec.shape[1:] for spec in specs)


def _by_form_alone(answer: Prediction | None, reader: Reader) -> bool:
    """Return True if a row of numbers is read as logits though neither kind, labels nor the output's name say so."""
    row = answer is not None and answer.confidence is not None and type(answer.outputs) is np.ndarray
    return row and reader.kind is None and reader.labels is None and "logit" not in reader.output_name().lower()
