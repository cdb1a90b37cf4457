"""Data types of the outbox: requests, results of a put, listings and late answers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, Protocol, TypeAlias

State: TypeAlias = Literal["waiting", "answered", "dead"]
"""waiting: to be sent. answered: the callback is still due. dead: failed permanently (dead letter), until retried or dropped."""


class Waiting(NamedTuple):
    """A queued request. All times are Unix time, seconds."""

    id: str
    """The idempotency key; unique in the outbox."""
    target: str
    """The endpoint's name."""
    kind: Literal["call", "input"]
    """call: an encoded HTTP request. input: a model input, encoded for the endpoint when it is sent."""
    body: bytes
    """Of the call; or the input as encoded by `encode_input`."""
    method: str = ""
    path: str = ""
    headers: Sequence[tuple[str, str]] = ()
    """Of a call, never secrets: credentials are added when it is sent. Of an input: its Content-Type."""
    data_class: str | None = None
    rule: str = ""
    """The egress rule that permitted it."""
    importance: float = 0.0
    provisional: Any = None
    """The provisional answer that the app was given, JSON-serialisable."""
    ready_at: float | None = None
    """Not sent before this time; None: now."""
    queued_at: float | None = None
    """None: now."""
    attempts: int = 0
    """Failed attempts so far."""
    error: str = ""
    """Why the live request failed: the entry then waits a random part of `spread_s`, unless `ready_at` is given.
    Empty: nothing failed yet."""
    origin: str = ""
    """Protocol and address of the endpoint, or the function, that it may be sent to. Empty: an entry of an earlier version."""


class Put(NamedTuple):
    """Result of a put."""

    stored: bool
    """The request is in the outbox, or was and is done."""
    dropped: tuple[str, ...] = ()
    """Ids of entries dropped to make room for it."""
    reason: str = ""
    """Why it was not stored."""


class Listed(NamedTuple):
    """An entry without its contents."""

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
    """Its size as counted towards `max_bytes`."""
    error: str
    """Error of the last attempt."""


class Answering(Protocol):
    """An endpoint's answer, as `Prediction` and `Answer`."""

    @property
    def value(self) -> Any: ...  # noqa: D102 - as in Prediction
    @property
    def confidence(self) -> float | None: ...  # noqa: D102 - as in Prediction
    @property
    def outputs(self) -> Any: ...  # noqa: D102 - as in Prediction


class Late(NamedTuple):
    """An answer that arrived after the caller was given a provisional one."""

    id: str
    """The request's id: lets a callback that may be called twice detect duplicates."""
    value: Any
    """As JSON represents it."""
    confidence: float | None
    """Of the late answer; None: there is none."""
    outputs: Any
    """An array, name -> array, or JSON; None where it could not be stored."""
    provisional: Any
    """The answer that the caller was given, {"value": ..., "confidence": ...}; None: none, or the request was not queued."""
    data_class: str | None
    """That of the request; None: it had none."""
    target: str
    """The endpoint that answered."""
    queued_at: float
    """When the request was stored, or else when its deadline passed; Unix time, seconds."""
    answered_at: float
    """When the late answer came, Unix time, seconds."""
