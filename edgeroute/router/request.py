"""Request: one call as an immutable value; the rows of a batch, and refusal of inputs that can be read only once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, cast

from edgeroute.core.plan import Plan
from edgeroute.core.policy_egress_and_options import INF
from edgeroute.errors import BadInput, check_number

if TYPE_CHECKING:
    from edgeroute.router.policy_snapshot import Snapshot
    from edgeroute.types import Batch

Shows = Literal["", "provisional", "pieces", "restarts"]


STREAMS: frozenset[Shows] = frozenset({"pieces", "restarts"})  # values of `Request.shows` for answers in pieces
MOST_KINDS = 100  # maximum types in `AGAIN`
# Types whose values can be read again; `is_read_once` adds to it. A look-up is quicker than two missing attributes.
AGAIN: set[type] = {str, bytes, list}

# Types whose values have no messages.
SCALARS = frozenset({int, float, complex, bool, type(None), bytes, bytearray, memoryview, range})


DEEPEST = 16  # containers around a part of an input beyond which it is not examined


def is_read_once(x: Any, around: tuple[int, ...] = ()) -> bool:
    """Return True if an input is an iterator, such as a generator or an open file, or a tuple or dict that contains one.

    Otherwise adds the input's type to `AGAIN`, the types that are not examined again. Items of lists are not examined, nor what
    is within itself, or `DEEPEST` containers deep.
    """
    kind = type(x)
    if kind in AGAIN:
        return False
    if kind is dict or kind is tuple:
        if len(around) >= DEEPEST or id(x) in around:
            return False
        around = (*around, id(x))
        return any(is_read_once(part, around) for part in (x.values() if kind is dict else x))
    iterator = hasattr(kind, "__next__") or hasattr(kind, "__anext__")
    if not iterator and len(AGAIN) < MOST_KINDS:
        AGAIN.add(kind)
    return iterator


def read_once_error(x: Any) -> BadInput:
    """Return the error for an input that can be read only once."""
    return BadInput(f"the input is or has a {type(x).__name__}, which can be read only once: give list(x), or a file's content")


def checked_importance(value: Any) -> float:
    """Return the importance of a request as a float; raise PolicyError for what is no number, or NaN."""
    check_number("importance", value, least=-INF, infinite=True)
    return float(value)


def checked_batch(batch: Batch) -> Sequence[Any]:
    """Return the rows of a batch by position: the batch itself, or those of pandas as a list.

    Raises:
        BadInput: the batch is an iterator, a mapping, or no sequence.
    """
    kind = type(batch)
    if isinstance(batch, Mapping | str | bytes) or getattr(batch, "ndim", 1) == 0:
        raise BadInput(f"a batch is a sequence of inputs, not a {kind.__name__}, which is one input: give [x]")
    if is_read_once(batch):
        raise BadInput(f"a batch is a sequence of inputs, not an iterator ({kind.__name__}): give list(batch)")
    if not hasattr(kind, "__len__") or not hasattr(kind, "__getitem__"):
        raise BadInput(f"a batch is a sequence of inputs, not a {kind.__name__}: give a list of them, or an array")
    return rows_of_pandas(batch) if hasattr(kind, "iloc") else cast("Sequence[Any]", batch)


def rows_of_pandas(table: Any) -> list[Any]:
    """Return the rows of a DataFrame, or the values of a Series, each as `table.iloc[i]`: by position, whatever their index.

    The values of a table's only column, if these are no numbers: `table[["text"]]` holds texts.
    """
    if table.ndim > 1 and table.shape[1] == 1 and table.dtypes.iloc[0].kind not in "biuf":
        table = table.iloc[:, 0]
    return [*table.array] if table.ndim == 1 else [table.iloc[i] for i in range(len(table))]


class Request(NamedTuple):
    """One request, or row of a batch; immutable."""

    id: str  # identity in traces and ledgers, and for endpoints, as the idempotency key
    inputs: Any  # input without the batch axis
    plan: Plan
    snapshot: Snapshot
    begun: float  # monotonic instant of the call's begin, seconds
    until: float  # monotonic instant of the deadline; inf: none
    importance: float = 0.0
    batch: str = ""  # id of the batch to which the row belongs; empty: no batch
    shows: Shows = ""  # output before the final answer: none, a provisional answer, its pieces, or pieces that may begin anew
    first_token_s: float = INF
    key: bytes | None = None  # cache key; None: not cached

    @property
    def streams(self) -> bool:
        """True if the caller gets pieces."""
        return self.shows in STREAMS
