"""Edge backend: runs a model on the device and decodes its outputs to predictions."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Generator, Mapping
from contextlib import nullcontext
from contextvars import ContextVar, copy_context
from math import prod
from time import monotonic
from typing import Any, TypeVar

import numpy as np

from edgeroute.confidence.forms import probabilities_warning
from edgeroute.confidence.input_score import InputScore
from edgeroute.confidence.reader import Reader
from edgeroute.confidence.scores import Score, Unscored
from edgeroute.core.policy import Side
from edgeroute.core.stream import Pieces, single, spoken
from edgeroute.core.walk import Prediction
from edgeroute.edge.callable import gathered
from edgeroute.edge.ensemble import Ensemble
from edgeroute.edge.inputs import unsaid
from edgeroute.edge.members import checked, feed_of, fingerprint, is_awaited, member
from edgeroute.edge.runs import runs_of
from edgeroute.errors import BadInput, ModelError
from edgeroute.system.process import AbandonedRuns
from edgeroute.types import EdgeModel, StopToken

# State of models that remember: what a session keeps from one call to the next.
#
# A session sets a `Turn` for the time of a call, in a context variable, which reaches the threads and tasks of its legs. A model
# that keeps a state takes it from there, and leaves the next one there. So the state moves on only with the call, and a run that
# was left behind (by a deadline, say) changes nothing any more.

T = TypeVar("T")


class Turn:
    """One call of a session.

    Args:
        states: model -> its state before the call; a model that has none yet begins.
        stream: id of the session; empty: it is of this one call.
    """

    def __init__(self, states: Mapping[object, Any], stream: str = "") -> None:
        self.states: dict[object, Any] = dict(states)
        self.stream = stream


TURN: ContextVar[Turn | None] = ContextVar("edgeroute_turn", default=None)


IN_SESSION = (
    "keeps a state from one input to the next, one for each stream: use a session, `with router.session() as s: s.infer(x)`"
)
"""What a model does that keeps a state, and what to write."""


def turn_of(name: str) -> Turn:
    """The call under way, for a model of that name.

    Raises:
        BadInput: it is not a session's.
    """
    turn = TURN.get()
    if turn is None:
        raise BadInput(f"{name} {IN_SESSION}")
    return turn


def in_a_turn(function: Callable[..., T], *arguments: object) -> T:
    """Calls it as the first call of a session of its own."""
    context = copy_context()
    context.run(TURN.set, Turn({}))
    return context.run(function, *arguments)


log = logging.getLogger("edgeroute")
MOST_PROBED = 1 << 22
"""Largest input, in elements, that a check tries with zeros."""
PROBE_S = 2.0
"""How long it may take, seconds."""
MAX_ABANDONED = 4
"""So many runs of one model may be told to stop and go on all the same, before the planner leaves it alone; no more than
may go at a time."""


class EdgeBackend(AbandonedRuns):
    """A model on the device.

    Attributes:
        alone_async: whether it runs on an event loop only: its runs are awaited.
        run_async: `run` there, of one input as well; None: it needs a thread.
        at_once: whether a run begins at once, in the thread that asks for it.
        unloaded: whether it was freed, and is to be loaded again.
        loading: whether it is being loaded again: until then others are asked first.

    Raises:
        PolicyError: the model's members contradict the protocol.
    """

    side: Side = "edge"
    traffic = (0, 0)
    warmth = ""
    """How long loading and first runs took, in words; empty: it was not warmed up."""
    unloaded = loading = False

    def __init__(self, name: str, model: EdgeModel, score: str | Score) -> None:
        checked(model)
        self.name, self.model = name, model
        self.where = str(member(model, "path") or model.name)
        self.reader = Reader(
            member(model, "score") or score, labels=member(model, "labels"), kind=member(model, "kind"), name=model.name,
            none_found=member(model, "none_found"),
        )  # fmt: skip
        parallel = member(model, "parallel")
        super().__init__(min(MAX_ABANDONED, parallel or MAX_ABANDONED))
        self.alone_async, self._close = is_awaited(model), member(model, "close")
        self.at_once = not self.alone_async and parallel is None
        self.run_async = self._run_async if self.alone_async else None
        self._one: Callable[..., Any] = member(model, "run_one") or (lambda x, cancel: model.run([x], cancel))
        self._run: Callable[..., Any] = model.run
        runs = self._runs = runs_of(model)
        if runs is not None:
            self._close = None if self._close is None else runs.close
            if not self.alone_async:
                self._one, self._run = runs.counted(self._one), runs.counted(self._run)

    def run(self, inputs: list[Any], cancel: StopToken | None) -> list[Prediction]:
        """Runs the inputs as one batch."""
        return self.reader.many(self._run(inputs, cancel), len(inputs))

    def run_one(self, x: Any, cancel: StopToken | None) -> Prediction:
        """Runs one input, by the model's `run_one` if it has one."""
        return self.reader.one(self._one(x, cancel))

    def stream(self, x: Any, cancel: StopToken | None) -> Pieces:
        """Runs one input; yields the answer in pieces if the model has a `stream`."""
        stream = member(self.model, "stream")
        if stream is None:
            return single(self.run_one(x, cancel))
        return self._streamed(stream(x, cancel), cancel)

    def _streamed(self, pieces: Generator[Any, None, Any], cancel: StopToken | None) -> Pieces:
        if self._runs is None:
            return (yield from spoken(pieces, self.reader.answer))
        with self._runs.one(cancel):
            return (yield from spoken(pieces, self.reader.answer))

    async def _run_async(self, inputs: list[Any], many: bool) -> list[Prediction]:
        """Runs the inputs as one batch, or, if not `many`, the only one by the model's `run_one` if it has one."""
        if self._runs is not None:
            async with self._runs.one_async():
                return await self._awaited(inputs, many)
        return await self._awaited(inputs, many)

    async def _awaited(self, inputs: list[Any], many: bool) -> list[Prediction]:
        if many:
            return self.reader.many(await self._run(inputs, None), len(inputs))
        return [self.reader.one(await self._one(inputs[0], None))]

    async def stream_async(self, x: Any, show: Callable[[Any], object]) -> Prediction:
        """Runs one input on an event loop; calls `show` with each piece of the answer."""
        stream = member(self.model, "stream")
        if stream is None:
            (prediction,) = await self._run_async([x], many=False)
            show(prediction.value)
            return prediction
        if self._runs is None:
            return self.reader.answer(await gathered(stream(x, None), show))
        async with self._runs.one_async():
            return self.reader.answer(await gathered(stream(x, None), show))

    def ready(self, until: float) -> None:
        """Loads the model, and runs it on zeros to see what its outputs are, where it says what it takes.

        Raises:
            ModelError: its outputs are not what is said of them, or would be read as what they are not; or it is not known which
                axis counts the inputs.
            BadReply: they have other classes than there are labels, or another number of rows than there are inputs.
        """
        load = member(self.model, "load")
        if load is not None:
            load()
        card = member(self.model, "card")
        if card is not None and (text := unsaid(card, member(self.model, "inputs"))):
            raise ModelError(f"{self.where}: {text}")
        outputs = self._of_zeros(min(PROBE_S, until - monotonic()))
        if outputs is None:
            return
        if self.reader.kind in {None, "logits"} and self.reader.mistakes(outputs):
            raise ModelError(probabilities_warning(self.model.name))
        if card is None or card.batch_first:
            self._check_read(outputs)

    def _check_read(self, outputs: Any) -> None:
        """Reads outputs by a reader of their own, without the caller's score: zeros are no input that it was made for."""
        reader = self.reader
        one = Reader(labels=reader.labels, kind=reader.kind, name=reader.name, none_found=reader.none_found).one(outputs)
        if isinstance(one.confidence, Unscored) and not callable(reader.score):
            raise ModelError(f"{reader.name} gives {one.confidence.why}")

    def on_zeros(self, seconds: float) -> tuple[float, float] | None:
        """Seconds of two runs on zeros, the first of which prepares what later ones need; None: it is not known what it takes."""
        begun = monotonic()
        if self._of_zeros(seconds) is None:
            return None
        first = monotonic()
        self._of_zeros(seconds)
        return first - begun, monotonic() - first

    def _of_zeros(self, seconds: float) -> Any:
        """The outputs for an input of zeros; None: it is not known what it takes, or it does not take that, or takes too long."""
        specs, run = member(self.model, "inputs"), feed_of(self.model)
        shapes = [(1, *spec.shape[1:]) for spec in specs]
        if run is None or not specs or any(-1 in shape for shape in shapes) or sum(map(prod, shapes)) > MOST_PROBED:
            return None
        stop = StopToken()
        timer = threading.Timer(max(0.0, seconds), stop)
        timer.daemon = True
        timer.start()
        try:
            with nullcontext() if self._runs is None else self._runs.one(stop):
                feed = {spec.name: np.zeros(shape, spec.dtype) for spec, shape in zip(specs, shapes, strict=True)}
                return in_a_turn(run, feed, stop)
        except Exception as e:  # noqa: BLE001 - zeros may not be an input of this model: its first one tells
            log.debug("%s does not run on zeros: %s", self.where, e)
            return None
        finally:
            timer.cancel()

    def describe(self) -> str:
        """Status line for `check`: the model, whether it needs a session, what runs where; version, downgrade, and warm-up."""
        session = f", but only in a session, since it {IN_SESSION}" if keeps_state(self.model) else ""
        where = f", {placement}" if (placement := member(self.model, "placement")) else ""
        more = [str(one) for one in (member(self.model, "release"), member(self.model, "downgraded"), self.warmth) if one]
        return f"{self.where} is ready{session}{where}" + (f" ({'; '.join(more)})" if more else "")

    def fingerprint(self, of: Callable[[Any], str]) -> str:
        """Fingerprint of all that the model's outputs depend on; `of` takes that of a file or a callable."""
        return fingerprint(self.model, of)

    def identity(self, of: Callable[[Any], str]) -> str:
        """As `fingerprint`, with how the outputs are decoded."""
        reader = self.reader
        return repr((self.fingerprint(of), reader.labels, reader.kind, reader.none_found))

    def after_fork(self) -> None:
        """A child has none of its parent's runs, nor the thread that loads the model: it loads it anew."""
        super().after_fork()
        if self.loading:
            self.unloaded, self.loading = True, False

    def unload(self) -> None:
        """Frees the model as `close` does, until `load`; a run that is asked for all the same loads it."""
        self.unloaded = True
        self.close()

    def load(self) -> None:
        """Loads the model again. What is wrong with it, its next run tells."""
        self.unloaded, load = False, member(self.model, "load")
        try:
            if load is not None:
                load()
        finally:
            self.loading = False

    def close(self) -> None:
        """Frees the model, once no run is under way: a native runtime would crash the process."""
        if self._close is not None:
            self._close()


def keeps_state(model: EdgeModel) -> bool:
    """Whether it, its card, or a model that it consists of, has a state."""
    card = member(model, "card")
    return bool(member(model, "stateful") or getattr(card, "state", ())) or (
        isinstance(model, Ensemble) and any(map(keeps_state, model.models))
    )


# Edge backend whose confidence is that of the input: known before the model runs.


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
