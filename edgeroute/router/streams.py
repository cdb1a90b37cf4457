"""Streams: an answer in pieces, for threads and for asyncio."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Generator, Iterator
from types import TracebackType
from typing import TYPE_CHECKING, Any, NamedTuple

from edgeroute.router.call_stages import Result, Shown
from edgeroute.types import Answer

if TYPE_CHECKING:
    from typing_extensions import Self


class Stream:
    """Iterator over the pieces of one answer; use it in a `with`. Leaving the `with` early cancels the call.

    Attributes:
        leg: name of the target whose pieces are shown, or of the cache; None before the first piece.
        answer: whole answer, once the last piece was yielded; None before.
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
    """Asynchronous iterator over the pieces of one answer; use it in an `async with`. Leaving that early cancels the call.

    Attributes:
        leg: name of the target whose pieces are shown, or of the cache; None before the first piece.
        answer: whole answer, once the last piece was yielded; None before.
    """

    def __init__(self, pieces: AsyncGenerator[Any, None]) -> None:
        self.answer: Answer | None = None
        self.leg: str | None = None
        self._pieces = pieces

    async def __aiter__(self) -> AsyncIterator[Any]:
        async for shown in self._pieces:
            if type(shown) is Last:
                self.answer = shown.answer
            else:
                self.leg = shown.source
                yield shown.piece

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        await self._pieces.aclose()


class Last(NamedTuple):
    """End of an `AsyncStream`'s pieces: an asynchronous generator cannot return a value."""

    answer: Answer


class End(list[Result]):
    """Results of a finished call, as the last item of an asynchronous generator."""


def as_one_piece(answer: Answer) -> Shown:
    """Return an answer of which no piece was shown as one piece."""
    return Shown(answer.source if answer.source in {"cache", "stale"} else answer.leg, answer.value)
