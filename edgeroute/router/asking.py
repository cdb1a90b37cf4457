"""An exchange with a cloud while its leg runs."""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING

from edgeroute.errors import INPUTS_OWN, Refused

if TYPE_CHECKING:
    from edgeroute.cloud.exchange import Exchange


class Asking:
    """Context manager of one exchange, which it ends: yields its deadline and the exchange.

    Not a generator function for `contextmanager`, which would take three more calls of Python: each request has one.

    Args:
        until: the deadline.
        exchange: of the guard.
        refuses: is told if the endpoint refuses the input itself, and by which status; None: nobody is. Not of one that was sent
            in another form than it will be: with the edge's answer, or by a rung of a ladder above its floor.
        above_floor: of the endpoint: whether that rung is.
    """

    __slots__ = ("_above_floor", "_exchange", "_refuses", "_until")

    def __init__(
        self,
        until: float,
        exchange: Exchange,
        refuses: Callable[[str, int], object] | None,
        above_floor: Callable[[str], bool],
    ) -> None:
        self._until, self._exchange, self._refuses, self._above_floor = until, exchange, refuses, above_floor

    def __enter__(self) -> tuple[float, Exchange]:
        return self._until, self._exchange

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        try:
            if self._refuses is not None and isinstance(error, Refused) and error.status in INPUTS_OWN:
                exchange = self._exchange
                if not exchange.edge and not self._above_floor(exchange.codec):
                    self._refuses(str(error), error.status)
        finally:
            self._exchange.__exit__(kind, error, trace)
