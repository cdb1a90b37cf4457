"""Pieces of a leg's answer on their way to the walk, with the confidence that becomes known within it."""

from __future__ import annotations

from collections.abc import Callable
from time import monotonic
from typing import Any

from edgeroute.core.stream import Pieces
from edgeroute.core.walk import Delta, Prediction, Start
from edgeroute.errors import Unreachable
from edgeroute.router.drivers import Send
from edgeroute.types import StopToken

Watch = Callable[[Any], float | None]
"""Takes each piece of an answer -> its confidence, with the piece that makes it known."""


def watching(backend: Any) -> Watch:
    """Watches the pieces of an edge's answer, where its score is that of the answer's beginning."""
    watch: Callable[[], Watch] | None = getattr(backend.reader.score, "watch", None)
    return nothing if watch is None else watch()


def nothing(_: Any) -> None:
    """The confidence is known once the answer is whole."""


def forward(start: Start, pieces: Pieces, send: Send, stop: StopToken, watch: Watch = nothing) -> Prediction:
    """Sends the pieces of a leg as they come; returns its answer."""
    try:
        while True:
            piece = next(pieces)
            send(Delta(start.leg, piece, monotonic(), watch(piece)))
            if stop.asked:
                raise Unreachable("its answer is not needed any more")
    except StopIteration as end:
        return end.value  # type: ignore[no-any-return]
    finally:
        pieces.close()
