"""Rows of a batch that are asked one by one: what one of them comes to costs no other its answer."""

from __future__ import annotations

from collections.abc import Iterator
from time import monotonic
from types import TracebackType
from typing import TYPE_CHECKING, Any

from edgeroute.core.codes import Failure
from edgeroute.core.policy import INF
from edgeroute.core.walk import Prediction
from edgeroute.errors import BadReply
from edgeroute.system import cancelled

if TYPE_CHECKING:
    from edgeroute.cloud.exchange import Exchange

SPARE, SPARE_S = 0.05, 0.05
"""Share of the time that is left, and most seconds of it, that a row leaves for handing on what the others have answered."""


class Rows:
    """Collects the predictions, `for x in rows: with rows: ...`, and in place of one the exception that was raised.

    Where that is a fault of the endpoint (it is away, late, or may not be asked), those that remain fail with it, unasked. It is
    raised where there is no other row, or none before it.
    """

    def __init__(self, exchange: Exchange, inputs: list[Any], until: float) -> None:
        self._exchange, self._inputs, self._until = exchange, inputs, until
        self.found: list[Any] = []
        self.append = self.found.append

    def until(self) -> float:
        """By when the next row must be answered."""
        if self._until == INF or not any(type(row) is Prediction for row in self.found):
            return self._until
        return self._until - min(SPARE_S, SPARE * max(0.0, self._until - monotonic()))

    def __iter__(self) -> Iterator[Any]:
        return (x for row, x in enumerate(self._inputs) if len(self.found) == row)

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> bool:
        if error is None:
            return False
        if len(self._inputs) == 1 or isinstance(error, KeyboardInterrupt | SystemExit) or cancelled(error):
            return False
        own = _of_the_input(error)
        if not own or isinstance(error, BadReply):
            self._exchange.failure = error
        if own:
            self.append(error)
        elif self.found:
            self.found += [error] * (len(self._inputs) - len(self.found))
        return bool(self.found)


def _of_the_input(error: BaseException) -> bool:
    """Whether another input may fare better."""
    if isinstance(error, OSError):
        return False
    failure = Failure.of(error)
    return failure.code in {"", "bad_input", "bad_reply"} or failure.of_the_input
