"""Sessions: calls of one stream, in order, with the state that its models keep from one to the next."""

from __future__ import annotations

import os
from collections.abc import AsyncGenerator, Generator, Iterator, Sequence
from contextlib import aclosing, closing, contextmanager
from types import TracebackType
from typing import TYPE_CHECKING, Any

from edgeroute.edge.backend import TURN, Turn
from edgeroute.errors import BadInput, Closed
from edgeroute.router.stages import Shown
from edgeroute.router.streams import AsyncStream, Last, Stream
from edgeroute.system.forks import ForkSafe, per_process
from edgeroute.types import Answer

if TYPE_CHECKING:
    from typing_extensions import Self

_END: Any = object()


class States(ForkSafe):
    """States of one stream between its calls, one for each model. Base of both sessions.

    Args:
        router: answers the calls.
    """

    _running: dict[None, Turn] = per_process(dict)

    def __init__(self, router: Any) -> None:
        self._router = router
        self._states: dict[object, Any] = {}
        self._id = os.urandom(8).hex()
        self._closed = False

    def reset(self) -> None:
        """Drops the states: the next call begins anew, as after a gap in the stream."""
        if self._running and not self._closed:
            raise _busy()
        self._states = {}

    def close(self) -> None:
        """Drops the states and refuses further calls. The router stays open."""
        self._closed = True
        self.reset()

    @contextmanager
    def _turn(self) -> Iterator[Turn]:
        """Begin a call, and keep the states after it if the block ends without an exception.

        Raises:
            BadInput: another call is under way.
            Closed: the session was closed.
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
    """One stream of inputs, given in order: `with router.session() as s: s.infer(chunk)`.

    A model that keeps a state (docs/cards.md) has one for each session. Its state moves on when the model has run to its end
    within a call that returns an answer, whoever gave that; a call that raises, or a run that was stopped, leaves it as it was.
    The cache takes no part. One call at a time.
    """

    def infer(self, x: Any, **options: Any) -> Answer:
        """Answer the next input of the stream.

        Args:
            x: the input.
            options: as for `Router.infer`.

        Raises:
            BadInput: as by `Router.infer`, or another call of this session is under way.
            Closed: the session or the router was closed.
        """
        with self._turn() as turn, _current(turn):
            return self._router.infer(x, **options)  # type: ignore[no-any-return]

    def infer_many(self, batch: Sequence[Any], **options: Any) -> list[Answer]:
        """Answer the next inputs of the stream, as `Router.infer_many`: a model with a state runs them one after the other."""
        with self._turn() as turn, _current(turn):
            return self._router.infer_many(batch, **options)  # type: ignore[no-any-return]

    def refine(self, x: Any, **options: Any) -> Generator[Answer, None, None]:
        """Answer the next input, as `Router.refine`. Closed early, it leaves the state as it was."""
        return self._refined(self._router.refine(x, **options))

    def _refined(self, answers: Generator[Answer, None, None]) -> Generator[Answer, None, None]:
        with self._turn() as turn, closing(answers):
            while (answer := _next(turn, answers)) is not _END:
                yield answer

    def stream(self, x: Any, **options: Any) -> Stream:
        """Answer the next input in pieces, as `Router.stream`. Left early, it leaves the state as it was."""
        return Stream(self._pieces(self._router.stream(x, **options)))

    def _pieces(self, stream: Stream) -> Generator[Any, None, Answer]:
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
    """`Session` of an `AsyncRouter`: `async with router.session() as s: await s.infer(chunk)`."""

    async def infer(self, x: Any, **options: Any) -> Answer:
        """Answer the next input, as `Session.infer`. Cancelling the call leaves the state as it was."""
        with self._turn() as turn, _current(turn):
            return await self._router.infer(x, **options)  # type: ignore[no-any-return]

    async def infer_many(self, batch: Sequence[Any], **options: Any) -> list[Answer]:
        """Answer the next inputs, as `Session.infer_many`."""
        with self._turn() as turn, _current(turn):
            return await self._router.infer_many(batch, **options)  # type: ignore[no-any-return]

    async def refine(self, x: Any, **options: Any) -> AsyncGenerator[Answer, None]:
        """Answer the next input, as `Session.refine`."""
        with self._turn() as turn:
            async with aclosing(self._router.refine(x, **options)) as answers:
                while (answer := await _anext(turn, answers)) is not _END:
                    yield answer

    def stream(self, x: Any, **options: Any) -> AsyncStream:
        """Answer the next input in pieces, as `Session.stream`."""
        return AsyncStream(self._pieces(self._router.stream(x, **options)))

    async def _pieces(self, stream: AsyncStream) -> AsyncGenerator[Any, None]:
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
    """`_next` for an asynchronous generator."""
    with _current(turn):
        return await anext(steps, _END)
