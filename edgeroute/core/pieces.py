"""Answers in pieces: how they are joined, and what a piece may say of the tokens that it is made of."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable
from typing import Any, TypeAlias

from edgeroute.core.walk import Prediction

Pieces: TypeAlias = Generator[Any, None, Prediction]
"""Yields the pieces of an answer, and returns the whole."""


class Piece(str):
    """A piece of a text, with the log-probabilities of its tokens: by them a stream is judged before its end (`Prefix`).

    An empty one brings tokens that are no text, as those of a model that thinks; it is shown to nobody.

    Attributes:
        logprobs: natural logarithms, one for each token since the piece before.
    """

    __slots__ = ("logprobs",)
    logprobs: tuple[float, ...]

    def __new__(cls, text: str, logprobs: Iterable[float] = ()) -> Piece:  # noqa: PYI034 - typing has no Self in Python 3.10
        """A text with log-probabilities."""
        self = super().__new__(cls, text)
        self.logprobs = tuple(logprobs)
        return self

    def __reduce__(self) -> tuple[type[Piece], tuple[str, tuple[float, ...]]]:
        return Piece, (str(self), self.logprobs)


def whole(pieces: list[object]) -> object:
    """Joins the pieces: text if all are text, else the list of them."""
    return "".join(map(str, pieces)) if all(isinstance(piece, str) for piece in pieces) else pieces


def joined(result: Any) -> Any:
    """Evaluates a callable's result: a generator's pieces joined, with its return value as the confidence; else unchanged."""
    if not isinstance(result, Generator):
        return result
    pieces: list[object] = []
    try:
        while True:
            pieces.append(next(result))
    except StopIteration as end:
        return whole(pieces), _returned(end.value, pieces)


def single(prediction: Prediction) -> Pieces:
    """An answer in one piece."""
    yield prediction.value
    return prediction


def spoken(result: Generator[Any, None, Any], read: Callable[[Any], Prediction]) -> Pieces:
    """Yields a generator's pieces. `read` takes (the whole, its return value): a confidence, or tokens' log-probabilities.

    A `Prediction` that it returns is taken as it is.
    """
    pieces: list[object] = []
    try:
        while True:
            pieces.append(next(result))
            yield pieces[-1]
    except StopIteration as end:
        return read(end.value if type(end.value) is Prediction else (whole(pieces), _returned(end.value, pieces)))
    finally:
        result.close()


def logprobs_of(pieces: Iterable[object]) -> list[float] | None:
    """The log-probabilities that pieces have brought, in order; None: none has any."""
    found = [one for piece in pieces if type(piece) is Piece for one in piece.logprobs]
    return found or None


def _returned(value: Any, pieces: list[object]) -> Any:
    """What a generator returned as its confidence; without that the log-probabilities of its pieces."""
    return logprobs_of(pieces) if value is None else value
