"""The status of a router: statistics, limits, outbox, device."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from time import monotonic
from typing import TYPE_CHECKING

from edgeroute.errors import StoreError
from edgeroute.observe.status import Status

if TYPE_CHECKING:
    from edgeroute.router.engine import Engine


def status(engine: Engine) -> Status:
    """The status of a router, taken from its parts. Waits for the outbox's file, if there is one, and for no network."""
    observer = engine.observer
    read_at = observer.read_at
    return Status(
        stats=engine.stats(),
        limits=engine.spending.limits,
        spent=engine.spending.spent(),
        outbox=_outbox(engine),
        reading=None if read_at is None else observer.reading,
        reading_age_s=0.0 if read_at is None else monotonic() - read_at,
        rules=tuple(dict.fromkeys(f"{rule}: {rule.then}" for rule in observer.facts.rules)),
        closed=engine.closed,
    )


def of(engine: Engine) -> Callable[[], Status | None]:
    """A function that returns a router's status; None once it is closed or gone. It does not keep the router alive."""
    weak = weakref.ref(engine)

    def now() -> Status | None:
        there = weak()
        return None if there is None or there.closed else status(there)

    return now


def _outbox(engine: Engine) -> dict[str, int] | None:
    if engine.queue is None or engine.closed:  # reading would open a closed file again
        return None
    try:
        return engine.queue.outbox.counts()
    except StoreError:
        return None
