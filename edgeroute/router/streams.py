"""Streams: answers in pieces, and the methods of both routers that give them."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Generator, Iterator
from contextlib import aclosing
from types import TracebackType
from typing import TYPE_CHECKING, Any, NoReturn

from edgeroute.core.policy import Mode
from edgeroute.router.arguments import check_unknown
from edgeroute.router.calls import Result, Shown, answer_of
from edgeroute.router.measuring import AsyncMeasuring, Measuring
from edgeroute.router.request import Request, Shows
from edgeroute.types import Answer

if TYPE_CHECKING:
    from typing_extensions import Self


class Stream:
    """Pieces of one answer, for a `with` and a `for`. Leaving the `with` early cancels what is in progress.

    Attributes:
        leg: the name of the target whose pieces are shown, or of the cache; None before the first piece.
        answer: the whole answer, once the last piece was yielded; None before.
    """

    def __init__(self, pieces: Generator[Any, None, Answer]) -> None:
        self.answer: Answer | None = None
        self.leg: str | None = None
        self._pieces = pieces

    def __iter__(self) -> Iterator[Any]:
        try:
            while True:
                try:
                    shown = next(self._pieces)
                except StopIteration as end:
                    self.answer = end.value
                    return
                self.leg = shown.source
                yield shown.piece
        finally:
            self._pieces.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._pieces.close()


class AsyncStream:
    """`Stream`, for an `async with` and an `async for`."""

    def __init__(self, pieces: AsyncGenerator[Any, None]) -> None:
        self.answer: Answer | None = None
        self.leg: str | None = None
        self._pieces = pieces

    async def __aiter__(self) -> AsyncIterator[Any]:
        async for shown in self._pieces:
            if isinstance(shown, _Last):
                self.answer = shown.answer
            else:
                self.leg = shown.source
                yield shown.piece

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        await self._pieces.aclose()


class _Last:
    """The last item of an asynchronous generator, which cannot return a value."""

    def __init__(self, answer: Answer) -> None:
        self.answer = answer


def last(answer: Answer) -> Any:
    """The end of an `AsyncStream`."""
    return _Last(answer)


class End(list[Result]):
    """The results of a finished call."""


class Streaming(Measuring):
    """`stream` of `Router`."""

    def stream(
        self,
        x: Any,
        *,
        mode: Mode | None = None,
        deadline: float | None = None,
        first_token: float | None = None,
        restart: bool = False,
        data_class: str | None = None,
        **unknown: NoReturn,
    ) -> Stream:
        """The answer in pieces: `with router.stream(x) as stream: for piece in stream: ...`; then `stream.answer` is the whole.

        A callable that is a generator function yields pieces, and returns its confidence, if it has one, or yields `Piece`s with
        the log-probabilities of their tokens; language models do so. Any other target gives one piece. A target with a threshold
        is judged once: by the first tokens, if its score is a `Prefix` (`decide_after`), or by its whole answer. It is shown from
        then on; any other is shown as it comes. By `hedge_after` the next target begins meanwhile, and is held back until then.

        Once a piece was shown, no other target continues, and the others are cancelled: if the current one fails, the answer is
        degraded. With `restart` an edge is shown at once, and a target may follow that begins anew: then the stream yields a
        `Restart`, and what was shown before is void.

        Args:
            x: the input.
            mode: overrides the policy's.
            deadline: seconds from now; overrides the policy's.
            first_token: seconds within which a target has to begin, or the next is called; overrides the policy's.
            restart: the answer may begin anew.
            data_class: the kind of data.
            unknown: as `infer`.

        Raises:
            PolicyError: as `infer`; of what is wrong with a value, in the `for`.
        """
        if unknown:
            check_unknown(Streaming.stream, unknown, type(self))
        return Stream(self._pieces(x, mode, deadline, first_token, restart, data_class))

    def _pieces(
        self, x: Any, mode: Mode | None, deadline: float | None, first_token: float | None, restart: bool, data_class: str | None
    ) -> Generator[Any, None, Answer]:
        shows: Shows = "restarts" if restart else "pieces"
        request = self.engine.request(x, mode, deadline, data_class, shows=shows, first_token=first_token)
        spoken, pieces = False, self._shown(request)
        try:
            while True:
                piece = next(pieces)
                spoken = True
                yield piece
        except StopIteration as end:
            answer = answer_of(end.value[0])
        finally:
            pieces.close()
        if not spoken:  # from the cache, or in place of the cloud's
            yield _whole(answer)
        return answer

    def _shown(self, request: Request) -> Generator[Any, None, list[Result]]:
        """Yields what the caller is shown, and returns the results."""
        raise NotImplementedError


class AsyncStreaming(AsyncMeasuring):
    """`stream` of `AsyncRouter`."""

    def stream(
        self,
        x: Any,
        *,
        mode: Mode | None = None,
        deadline: float | None = None,
        first_token: float | None = None,
        restart: bool = False,
        data_class: str | None = None,
        **unknown: NoReturn,
    ) -> AsyncStream:
        """As `Router.stream`, for `async with` and `async for`; clouds may be asynchronous generator functions."""
        if unknown:
            check_unknown(AsyncStreaming.stream, unknown, type(self))
        return AsyncStream(self._pieces(x, mode, deadline, first_token, restart, data_class))

    async def _pieces(
        self, x: Any, mode: Mode | None, deadline: float | None, first_token: float | None, restart: bool, data_class: str | None
    ) -> AsyncGenerator[Any, None]:
        shows: Shows = "restarts" if restart else "pieces"
        request = self.engine.request(x, mode, deadline, data_class, shows=shows, first_token=first_token)
        spoken = False
        async with aclosing(self._shown(request)) as pieces:
            async for shown in pieces:
                if not isinstance(shown, End):
                    spoken = True
                    yield shown
                    continue
                answer = answer_of(shown[0])
                if not spoken:  # from the cache, or in place of the cloud's
                    yield _whole(answer)
                yield last(answer)

    def _shown(self, request: Request) -> AsyncGenerator[Any, None]:
        """Yields what the caller is shown, and finally an `End` with the results."""
        raise NotImplementedError


def _whole(answer: Answer) -> Shown:
    """An answer of which no piece was shown, in one."""
    return Shown(answer.source if answer.source in {"cache", "stale"} else answer.leg, answer.value)
