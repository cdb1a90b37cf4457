"""Streams: answers in pieces."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Generator, Iterator
from types import TracebackType
from typing import TYPE_CHECKING, Any

from edgeroute.types import Answer

if TYPE_CHECKING:
    from typing_extensions import Self


class Stream:
    """Pieces of one answer, for a `with` and a `for`. Leaving the `with` early cancels what is in progress.

    Attributes:
        answer: the whole answer, once the last piece was yielded; None before.
    """

    def __init__(self, pieces: Generator[Any, None, Answer]) -> None:
        self.answer: Answer | None = None
        self._pieces = pieces

    def __iter__(self) -> Iterator[Any]:
        self.answer = yield from self._pieces

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._pieces.close()


class AsyncStream:
    """`Stream`, for an `async with` and an `async for`."""

    def __init__(self, pieces: AsyncGenerator[Any, None]) -> None:
        self.answer: Answer | None = None
        self._pieces = pieces

    async def __aiter__(self) -> AsyncIterator[Any]:
        async for piece in self._pieces:
            if isinstance(piece, _Last):
                self.answer = piece.answer
            else:
                yield piece

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
