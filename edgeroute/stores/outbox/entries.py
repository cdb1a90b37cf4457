"""What the outbox is given, and what it gives back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, Protocol, TypeAlias

State: TypeAlias = Literal["waiting", "answered", "dead"]
"""waiting: to be sent. answered: the app was not told yet. dead: refused for good, until someone retries or drops it."""


class Waiting(NamedTuple):
    """A request. All times are seconds since 1970."""

    id: str
    """The idempotency key: the outbox has each once."""
    target: str
    """The endpoint's name."""
    kind: Literal["call", "input"]
    """call: an HTTP exchange, ready to be sent. input: what the model is given, encoded for the endpoint when it is sent."""
    body: bytes
    """Of the call; or the input, as `encode_input` gives it."""
    method: str = ""
    path: str = ""
    headers: Sequence[tuple[str, str]] = ()
    """Of a call, and never secrets: what authorises a request is added when it is sent. Of an input its Content-Type."""
    data_class: str | None = None
    rule: str = ""
    """The rule of egress that let it go."""
    importance: float = 0.0
    provisional: Any = None
    """What the app was told meanwhile, as JSON can hold it."""
    ready_at: float | None = None
    """It is not sent earlier. None: now."""
    queued_at: float | None = None
    """None: now."""
    attempts: int = 0
    """How often it was sent without success."""
    error: str = ""
    """Why it was not answered when it was first asked: it then waits a part of `spread_s`, unless `ready_at` says how long.
    Empty: nothing failed yet."""


class Put(NamedTuple):
    """What came of a put."""

    stored: bool
    """The outbox has the request, or has had it and it is done."""
    dropped: tuple[str, ...] = ()
    """The ids that made room for it."""
    reason: str = ""
    """Why it was not stored."""


class Listed(NamedTuple):
    """An entry without its contents."""

    seq: int
    """Its place in the order of puts."""
    id: str
    state: State
    target: str
    kind: str
    data_class: str | None
    rule: str
    importance: float
    queued_at: float
    ready_at: float
    attempts: int
    bytes: int
    """What it counts towards `max_bytes`."""
    error: str
    """How the last attempt failed."""


class Answering(Protocol):
    """What an endpoint answered; `Prediction` and `Answer` are such."""

    @property
    def value(self) -> Any: ...  # noqa: D102 - as in Prediction
    @property
    def confidence(self) -> float | None: ...  # noqa: D102 - as in Prediction
    @property
    def outputs(self) -> Any: ...  # noqa: D102 - as in Prediction


class Late(NamedTuple):
    """An answer that came after the app had been told to go on without it."""

    id: str
    """The request's. Where a callback may be called twice, it tells that this was seen before."""
    value: Any
    """As JSON holds it."""
    confidence: float | None
    outputs: Any
    """An array, or name -> array, or as JSON holds it; None where it could not be stored."""
    provisional: Any
    data_class: str | None
    target: str
    queued_at: float
    answered_at: float
