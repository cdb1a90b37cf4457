"""Sessions: calls of one stream, in order, with the state that its models keep from one to the next."""

from __future__ import annotations

import os
from collections.abc import AsyncGenerator, Generator, Iterator, Sequence
from contextlib import aclosing, closing, contextmanager
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol

from edgeroute.core.policy import Mode
from edgeroute.edge.backend import TURN, Turn
from edgeroute.errors import BadInput, Closed
from edgeroute.router.stages import Shown
from edgeroute.router.streams import AsyncStream, Stream, last
from edgeroute.system.process import renew_after_fork
from edgeroute.types import Answer

if TYPE_CHECKING:
    from typing_extensions import Self

_END: Any = object()


class BlockingCalls(Protocol):
    """What a `Session` needs of its router."""

    def infer(self, *given: Any, **options: Any) -> Answer:
        """As `Router.infer`."""

    def infer_many(self, *given: Any, **options: Any) -> list[Answer]:
        """As `Router.infer_many`."""

    def refine(self, *given: Any, **options: Any) -> Generator[Answer, None, None]:
        """As `Router.refine`."""

    def stream(self, *given: Any, **options: Any) -> Stream:
        """As `Router.stream`."""


class AsyncCalls(Protocol):
    """What an `AsyncSession` needs of its router."""

    async def infer(self, *given: Any, **options: Any) -> Answer:
        """As `AsyncRouter.infer`."""

    async def infer_many(self, *given: Any, **options: Any) -> list[Answer]:
        """As `AsyncRouter.infer_many`."""

    def refine(self, *given: Any, **options: Any) -> AsyncGenerator[Answer, None]:
        """As `AsyncRouter.refine`."""

    def stream(self, *given: Any, **options: Any) -> AsyncStream:
        """As `AsyncRouter.stream`."""


class States:
    """The states of one stream, of each model one, between its calls."""

    def __init__(self) -> None:
        self._states: dict[object, Any] = {}
        self._id = os.urandom(8).hex()
        self.closed = False
        self.after_fork()
        renew_after_fork(self)

    def after_fork(self) -> None:
        """A child has none of its parent's calls; it goes on with a copy of the states."""
        self._running: dict[None, Turn] = {}

    def reset(self) -> None:
        """Begins anew: the next call finds the first states."""
        if self._running and not self.closed:
            raise _busy()
        self._states = {}

    @contextmanager
    def turn(self) -> Iterator[Turn]:
        """One call. The states after it are kept if the block ends without an exception.

        Raises:
            BadInput: another call is under way.
            Closed: the session was closed.
        """
        if self.closed:
            raise Closed("this session is closed")
        turn = Turn(self._states, self._id)
        try:
            if self._running.setdefault(None, turn) is not turn:  # atomic, and Ctrl-C leaves nothing behind
                raise _busy()
            yield turn
            self._states = {} if self.closed else dict(turn.states)  # a copy: a run that was left behind may still write there
        finally:
            if self._running.get(None) is turn:
                self._running.clear()


def _busy() -> BadInput:
    return BadInput("another call of this session is under way: its inputs are one stream, in order; one session for each stream")


@contextmanager
def current(turn: Turn) -> Iterator[None]:
    """The turn in which models run meanwhile."""
    token = TURN.set(turn)
    try:
        yield
    finally:
        TURN.reset(token)


class Session:
    """One stream of inputs, given in order: `with router.session() as s: s.infer(chunk)`.

    A model that keeps a state (docs/cards.md) has one for each session. Its state moves on when the model has run to its end
    within a call that returns an answer, whoever gave that; a call that raises, or a run that was stopped, leaves it as it was.
    The cache takes no part. One call at a time.
    """

    def __init__(self, router: BlockingCalls) -> None:
        self._router, self._states = router, States()

    def infer(
        self,
        x: Any,
        *,
        mode: Mode | None = None,
        deadline: float | None = None,
        data_class: str | None = None,
        importance: float = 0.0,
    ) -> Answer:
        """As `Router.infer`, for the next input of the stream.

        Raises:
            BadInput: as there, or another call of this session is under way.
            Closed: the session or the router was closed.
        """
        with self._states.turn() as turn, current(turn):
            return self._router.infer(x, mode=mode, deadline=deadline, data_class=data_class, importance=importance)

    def infer_many(
        self,
        batch: Sequence[Any],
        *,
        mode: Mode | None = None,
        deadline: float | None = None,
        data_class: str | None = None,
    ) -> list[Answer]:
        """As `Router.infer_many`, for the next inputs of the stream: a model with a state runs them one after the other."""
        with self._states.turn() as turn, current(turn):
            return self._router.infer_many(batch, mode=mode, deadline=deadline, data_class=data_class)

    def refine(
        self,
        x: Any,
        *,
        mode: Mode | None = None,
        deadline: float | None = None,
        data_class: str | None = None,
    ) -> Generator[Answer, None, None]:
        """As `Router.refine`, for the next input. Closed early, it leaves the state as it was."""
        return self._refined(self._router.refine(x, mode=mode, deadline=deadline, data_class=data_class))

    def _refined(self, answers: Generator[Answer, None, None]) -> Generator[Answer, None, None]:
        with self._states.turn() as turn, closing(answers):
            while (answer := _next(turn, answers)) is not _END:
                yield answer

    def stream(
        self,
        x: Any,
        *,
        mode: Mode | None = None,
        deadline: float | None = None,
        first_token: float | None = None,
        restart: bool = False,
        data_class: str | None = None,
    ) -> Stream:
        """As `Router.stream`, for the next input. Left early, it leaves the state as it was."""
        return Stream(
            self._pieces(
                self._router.stream(
                    x, mode=mode, deadline=deadline, first_token=first_token, restart=restart, data_class=data_class
                )
            )
        )

    def _pieces(self, stream: Stream) -> Generator[Any, None, Answer]:
        with self._states.turn() as turn, stream:
            pieces = iter(stream)
            while (piece := _next(turn, pieces)) is not _END:
                yield Shown(stream.leg or "", piece)
            assert stream.answer is not None, "it has ended"
            return stream.answer

    def reset(self) -> None:
        """Begins anew, as with another session: after a gap in the stream, say."""
        self._states.reset()

    def close(self) -> None:
        """Lets go of the states. The router stays open."""
        self._states.closed = True
        self._states.reset()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


class AsyncSession:
    """`Session` of an `AsyncRouter`: `async with router.session() as s: await s.infer(chunk)`."""

    def __init__(self, router: AsyncCalls) -> None:
        self._router, self._states = router, States()

    async def infer(
        self,
        x: Any,
        *,
        mode: Mode | None = None,
        deadline: float | None = None,
        data_class: str | None = None,
        importance: float = 0.0,
    ) -> Answer:
        """As `Session.infer`. Cancelling it leaves the state as it was."""
        with self._states.turn() as turn, current(turn):
            return await self._router.infer(x, mode=mode, deadline=deadline, data_class=data_class, importance=importance)

    async def infer_many(
        self,
        batch: Sequence[Any],
        *,
        mode: Mode | None = None,
        deadline: float | None = None,
        data_class: str | None = None,
    ) -> list[Answer]:
        """As `Session.infer_many`."""
        with self._states.turn() as turn, current(turn):
            return await self._router.infer_many(batch, mode=mode, deadline=deadline, data_class=data_class)

    async def refine(
        self,
        x: Any,
        *,
        mode: Mode | None = None,
        deadline: float | None = None,
        data_class: str | None = None,
    ) -> AsyncGenerator[Answer, None]:
        """As `Session.refine`."""
        with self._states.turn() as turn:
            async with aclosing(self._router.refine(x, mode=mode, deadline=deadline, data_class=data_class)) as answers:
                while (answer := await _anext(turn, answers)) is not _END:
                    yield answer

    def stream(
        self,
        x: Any,
        *,
        mode: Mode | None = None,
        deadline: float | None = None,
        first_token: float | None = None,
        restart: bool = False,
        data_class: str | None = None,
    ) -> AsyncStream:
        """As `Session.stream`."""
        return AsyncStream(
            self._pieces(
                self._router.stream(
                    x, mode=mode, deadline=deadline, first_token=first_token, restart=restart, data_class=data_class
                )
            )
        )

    async def _pieces(self, stream: AsyncStream) -> AsyncGenerator[Any, None]:
        with self._states.turn() as turn:
            async with stream:
                pieces = stream.__aiter__()
                while (piece := await _anext(turn, pieces)) is not _END:
                    yield Shown(stream.leg or "", piece)
            assert stream.answer is not None, "it has ended"
        yield last(stream.answer)

    def reset(self) -> None:
        """As `Session.reset`."""
        self._states.reset()

    def close(self) -> None:
        """As `Session.close`."""
        self._states.closed = True
        self._states.reset()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def _next(turn: Turn, steps: Iterator[Any]) -> Any:
    """The next of a generator of the router, which runs models within it; `_END` after the last."""
    with current(turn):
        return next(steps, _END)


async def _anext(turn: Turn, steps: Any) -> Any:
    """As `_next`."""
    with current(turn):
        return await anext(steps, _END)
