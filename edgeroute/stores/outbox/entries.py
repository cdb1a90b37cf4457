"""Data types of the outbox: queued requests, results of a put, list items and late answers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, Protocol, TypeAlias

State: TypeAlias = Literal["waiting", "answered", "dead"]
"""waiting: to be sent. answered: the callback is still due. dead: failed permanently (dead letter), until retried or dropped."""


class Waiting(NamedTuple):
    """Queued request. All times are Unix time, seconds."""

    id: str
    """Idempotency key; unique in the outbox."""
    target: str
    """Name of the endpoint."""
    kind: Literal["call", "input"]
    """call: an encoded HTTP request. input: a model input, encoded for the endpoint when it is sent."""
    body: bytes
    """Body of the call; or the input as encoded by `encode_input`."""
    method: str = ""
    path: str = ""
    headers: Sequence[tuple[str, str]] = ()
    """Headers of a call, never secrets: credentials are added when it is sent. For an input: its Content-Type."""
    data_class: str | None = None
    rule: str = ""
    """Egress rule that permitted the request."""
    importance: float = 0.0
    provisional: Any = None
    """Provisional answer that the app got, JSON-serialisable."""
    ready_at: float | None = None
    """Earliest time of sending; None: now."""
    queued_at: float | None = None
    """Time of the put; None: now."""
    attempts: int = 0
    """Number of failed attempts so far."""
    error: str = ""
    """Error of the live request: the entry then waits a random part of `spread_s`, unless `ready_at` is given."""
    origin: str = ""
    """Protocol and address of the endpoint, or the function, that may get the request."""


class Put(NamedTuple):
    """Result of a put."""

    stored: bool
    """True if the request is in the outbox, or was and is done."""
    dropped: tuple[str, ...] = ()
    """Ids of entries deleted to make room for the request."""
    reason: str = ""
    """Reason why the request was not stored; empty if it was."""


class Listed(NamedTuple):
    """Entry without its contents, as listed."""

    seq: int
    """Sequence number, in the order of puts."""
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
    """Size as counted towards `max_bytes`."""
    error: str
    """Error of the last attempt."""


class Answering(Protocol):
    """Answer of an endpoint, such as `Prediction` and `Answer`."""

    @property
    def value(self) -> Any: ...  # noqa: D102 - as in Prediction
    @property
    def confidence(self) -> float | None: ...  # noqa: D102 - as in Prediction
    @property
    def outputs(self) -> Any: ...  # noqa: D102 - as in Prediction


class Late(NamedTuple):
    """Answer that arrived after the caller had got a provisional one."""

    id: str
    """Id of the request, by which a callback that may be called twice detects duplicates."""
    value: Any
    """Value in JSON types."""
    confidence: float | None
    """Confidence of the late answer; None: there is none."""
    outputs: Any
    """Array, name -> array, or JSON value; None if the outputs could not be stored."""
    provisional: Any
    """Answer that the caller got at once, {"value": ..., "confidence": ...}; None: none, or the request was not queued."""
    data_class: str | None
    """Data class of the request; None: it had none."""
    target: str
    """Name of the endpoint that answered."""
    queued_at: float
    """Time when the request was stored, or else when its deadline passed; Unix time, seconds."""
    answered_at: float
    """Time of the late answer, Unix time, seconds."""
