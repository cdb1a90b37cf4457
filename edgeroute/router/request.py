"""One request as a value."""

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
    """Names it in traces and ledgers, and to endpoints, as the idempotency key."""
    inputs: Any
    """One input, without the batch axis."""
    plan: Plan
    snapshot: Snapshot
    begun: float
    """Instant of the monotonic clock, seconds."""
    until: float
    """The deadline's instant; inf: there is none."""
    importance: float = 0.0
    batch: str = ""
    """The id of the batch of which it is a row; empty: none."""
    shows: Shows = ""
    """What the caller is shown before the answer is there: nothing, a provisional answer, or its pieces."""
    first_token_s: float = INF
    key: bytes | None = None
    """What the cache knows the input by; None: it is not cached."""
