"""Request: one call as an immutable value."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from edgeroute.core.plan import Plan
from edgeroute.core.policy import INF
from edgeroute.errors import BadInput

if TYPE_CHECKING:
    from edgeroute.router.build import Snapshot

Shows = Literal["", "provisional", "pieces", "restarts"]


STREAMS: frozenset[Shows] = frozenset({"pieces", "restarts"})
MOST_KINDS = 100
AGAIN: set[type] = {str, bytes, list}
"""Types whose values can be read again: a look-up is quicker than two missing attributes."""
TALKS: set[type] = {list, tuple, dict, str}
"""Types whose values may be conversations; further mappings and lists are added as they are seen."""


def once(x: Any) -> bool:
    """Whether it is an iterator, as a generator or an open file is, or a tuple or dict with one in it."""
    kind = type(x)
    if kind in AGAIN:
        return False
    if kind is dict or kind is tuple:
        return any(once(part) for part in (x.values() if kind is dict else x))
    found = hasattr(kind, "__next__") or hasattr(kind, "__anext__")
    if issubclass(kind, Mapping | list | tuple | str) and len(TALKS) < MOST_KINDS:
        TALKS.add(kind)
    if not found and len(AGAIN) < MOST_KINDS:
        AGAIN.add(kind)
    return found


def refused(x: Any) -> BadInput:
    """The error for an input that can be read only once."""
    return BadInput(
        f"the input is or has an iterator, which can be read only once ({type(x).__name__}): the first target would use it up,"
        " and the next would get nothing; give what it yields, as with list(x), or a file's content"
    )


def length(batch: Sequence[Any]) -> int:
    """The number of rows.

    Raises:
        BadInput: it is an iterator.
    """
    if once(batch):
        raise BadInput(f"a batch is a sequence of inputs, not an iterator ({type(batch).__name__}): give list(batch)")
    return len(batch)


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
    """What the caller is shown before the final answer: nothing, a provisional answer, its pieces, or such as may begin anew."""
    first_token_s: float = INF
    key: bytes | None = None
    """Cache key; None: not cached."""

    @property
    def streams(self) -> bool:
        """Whether the caller is shown pieces."""
        return self.shows in STREAMS
