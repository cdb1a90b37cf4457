"""Request: one call as an immutable value."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from edgeroute.core.plan import Plan
from edgeroute.core.policy import INF

if TYPE_CHECKING:
    from edgeroute.router.snapshot import Snapshot

Shows = Literal["", "provisional", "pieces"]


class Request(NamedTuple):
    """One request; never written to."""

    id: str
    """Identifies it in traces and ledgers, and to endpoints, as the idempotency key."""
    inputs: Any
    """One input, without the batch axis."""
    plan: Plan
    snapshot: Snapshot
    begun: float
    """Monotonic instant, seconds."""
    until: float
    """Instant of the deadline; inf: none."""
    importance: float = 0.0
    batch: str = ""
    """Id of the batch of which it is a row; empty: none."""
    shows: Shows = ""
    """What the caller is shown before the final answer: nothing, a provisional answer, or its pieces."""
    first_token_s: float = INF
    key: bytes | None = None
    """Cache key; None: not cached."""
