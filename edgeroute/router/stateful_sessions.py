"""Sessions: calls of one stream of inputs, in order, with the states of its models from one call to the next."""

from __future__ import annotations

import os
from collections.abc import AsyncGenerator, Generator, Iterator, Sequence
from contextlib import aclosing, closing, contextmanager
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypedDict

from edgeroute.edge.edge_backend import TURN, Turn
from edgeroute.errors import BadInput, Closed
from edgeroute.router.call_stages import Shown
from edgeroute.router.streams import AsyncStream, Last, Stream
from edgeroute.system.forks import ForkSafe, per_process
from edgeroute.types import Answer

if TYPE_CHECKING:
    from typing_extensions import Self, Unpack

    from edgeroute.core.routing_policy import Mode


_END: Any = object()


class CallOptions(TypedDict, total=False):
    """Options of each call of a router, for type checkers."""

    mode: Mode | None
    deadline: float | None
    data_class: str | None


class InferOptions(CallOptions, total=False):
    """Options of `Router.infer`."""

    importance: float


class StreamOptions(CallOptions, total=False):
    """Options of `Router.stream`."""

    first_token: float | None
    restart: bool


class States(ForkSafe):
    """Base of both sessions: states of one stream between its calls, one for each model.

    Args:
        router: router that answers the calls.
    """

    _running: dict[None, Turn] = per_process(dict)

    def __init__(self, router: Any) -> None:
        self._router = router
        self._states: dict[object, Any] = {}
        self._id = os.urandom(8).hex()
        self._closed = False

    def reset(self) -> None:
        """Discard the states: the next call begins anew, as after a gap in the stream.

        Raises:
            BadInput: a call is under way.
        """
        if self._running and not self._closed:
            raise _busy()
        self._states = {}

    def close(self) -> None:
        """Discard the states and refuse further calls. The router stays open.

        Raises nothing while a call is under way, whose state is dropped.
        """
        self._closed = True
        self.reset()

    @contextmanager
    def _turn(self) -> Iterator[Turn]:
        """Begin a call, and store its models' states if the block ends without an exception.

        Raises:
            BadInput: another call is under way.
            Closed: the session is closed.
        """
        if self._closed:
            raise Closed("this session is closed")
        turn = Turn(self._states, self._id)
        try:
            if self._running.setdefault(None, turn) is not turn:  # atomic, and Ctrl-C leaves nothing behind
                raise _busy()
            yield turn
            self._states = {} if self._closed else dict(turn.states)  # a copy: an abandoned run may still write there
        finally:
            if self._running.get(None) is turn:
                self._running.clear()


def _busy() -> BadInput:
    """Return the error for a second call at the same time."""
    return BadInput("another call of this session is under way: its inputs are one stream, in order; one session for each stream")


@contextmanager
def _current(turn: Turn) -> Iterator[None]:
    """Set the turn in which models run within the block."""
    token = TURN.set(turn)
    try:
        yield
    finally:
        TURN.reset(token)


class Session(States):
    """Stream of inputs, given in order: `with router.session() as s: s.infer(chunk)`.

    A model with a state (docs/cards.md) has one state for each session. The state advances when the model has run to its end
    within a call that returns an answer, whoever gave that; it is unchanged after a call that raises, or a run that was stopped.
    The cache is not used. One call at a time.
    """

    def infer(self, x: Any, **options: Unpack[InferOptions]) -> Answer:
        """Return the answer to the next input of the stream.

        Args:
            x: the input.
            options: options of `Router.infer`.

        Raises:
            BadInput: as by `Router.infer`, or another call of this session is under way.
            Closed: the session or the router is closed.
        """
        with self._turn() as turn, _current(turn):
            return self._router.infer(x, **options)  # type: ignore[no-any-return]

    def infer_many(self, batch: Sequence[Any], **options: Unpack[CallOptions]) -> list[Answer]:
        """Return the answers to the next inputs, as `Router.infer_many`; a model with a state runs them one after the other."""
        with self._turn() as turn, _current(turn):
            return self._router.infer_many(batch, **options)  # type: ignore[no-any-return]

    def refine(self, x: Any, **options: Unpack[CallOptions]) -> Generator[Answer, None, None]:
        """Yield the answers to the next input, as `Router.refine`. Closed early, it leaves the state unchanged."""
        return self._refine_steps(self._router.refine(x, **options))

    def _refine_steps(self, answers: Generator[Answer, None, None]) -> Generator[Answer, None, None]:
        """Yield the answers of a router's generator, run within this session."""
        with self._turn() as turn, closing(answers):
            while (answer := _next(turn, answers)) is not _END:
                yield answer

    def stream(self, x: Any, **options: Unpack[StreamOptions]) -> Stream:
        """Return the answer to the next input in pieces, as `Router.stream`. Left early, it leaves the state unchanged."""
        return Stream(self._pieces(self._router.stream(x, **options)))

    def _pieces(self, stream: Stream) -> Generator[Any, None, Answer]:
        """Yield the pieces of a router's stream, run within this session, and return the answer.

        The states are stored only at the end.
        """
        with self._turn() as turn, stream:
            pieces = iter(stream)
            while (piece := _next(turn, pieces)) is not _END:
                yield Shown(stream.leg or "", piece)
            assert stream.answer is not None, "it has ended"
            return stream.answer

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


class AsyncSession(States):
    """Stream of inputs of an `AsyncRouter`: `async with router.session() as s: await s.infer(chunk)`. See `Session`."""

    async def infer(self, x: Any, **options: Unpack[InferOptions]) -> Answer:
        """Return the answer to the next input; see `Session.infer`. Cancelling the call leaves the state unchanged."""
        with self._turn() as turn, _current(turn):
            return await self._router.infer(x, **options)  # type: ignore[no-any-return]

    async def infer_many(self, batch: Sequence[Any], **options: Unpack[CallOptions]) -> list[Answer]:
        """Return the answers to the next inputs; see `Session.infer_many`."""
        with self._turn() as turn, _current(turn):
            return await self._router.infer_many(batch, **options)  # type: ignore[no-any-return]

    async def refine(self, x: Any, **options: Unpack[CallOptions]) -> AsyncGenerator[Answer, None]:
        """Yield the answers to the next input; see `Session.refine`."""
        with self._turn() as turn:
            async with aclosing(self._router.refine(x, **options)) as answers:
                while (answer := await _anext(turn, answers)) is not _END:
                    yield answer

    def stream(self, x: Any, **options: Unpack[StreamOptions]) -> AsyncStream:
        """Return the answer to the next input in pieces; see `Session.stream`."""
        return AsyncStream(self._pieces(self._router.stream(x, **options)))

    async def _pieces(self, stream: AsyncStream) -> AsyncGenerator[Any, None]:
        """Yield the pieces of a router's stream, run within this session, and the answer as `Last`."""
        with self._turn() as turn:
            async with stream:
                pieces = stream.__aiter__()
                while (piece := await _anext(turn, pieces)) is not _END:
                    yield Shown(stream.leg or "", piece)
            assert stream.answer is not None, "it has ended"
        yield Last(stream.answer)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def _next(turn: Turn, steps: Iterator[Any]) -> Any:
    """Return the next item of a router's generator, which runs models within it; `_END` after the last."""
    with _current(turn):
        return next(steps, _END)


async def _anext(turn: Turn, steps: Any) -> Any:
    """Return the next item of a router's asynchronous generator, which runs models within it; `_END` after the last."""
    with _current(turn):
        return await anext(steps, _END)
