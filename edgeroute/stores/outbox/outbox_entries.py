"""Data types of the outbox (`Waiting`, `Listed`, `Late`, `Put`), and parsing of its rows: strict for use, lenient for lists."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, TypeAlias, get_args

from edgeroute.stores.serialisation import decode_input

# waiting: to be sent. answered: the callback is still due. dead: failed permanently (dead letter), until retried or dropped.
State: TypeAlias = Literal["waiting", "answered", "dead"]


class Waiting(NamedTuple):
    """Queued request. All times are Unix time, seconds."""

    id: str  # idempotency key; unique in the outbox
    target: str  # name of the endpoint
    # call: an encoded HTTP request. input: a model input, encoded for the endpoint when it is sent.
    kind: Literal["call", "input"]
    body: bytes  # body of the call; or the input as encoded by `encode_input`
    method: str = ""
    path: str = ""
    # Headers of a call, never secrets: credentials are added when it is sent. For an input: its Content-Type.
    headers: Sequence[tuple[str, str]] = ()
    data_class: str | None = None
    rule: str = ""  # egress rule that permitted the request
    importance: float = 0.0
    provisional: Any = None  # provisional answer that the app got, JSON-serialisable
    ready_at: float | None = None  # earliest time of sending; None: now
    queued_at: float | None = None  # time of the put; None: now
    attempts: int = 0  # number of failed attempts so far
    error: str = ""  # error of the live request: the entry then waits a random part of `spread_s`, unless `ready_at` is given
    origin: str = ""  # protocol and address of the endpoint, or the function, that may get the request


class Put(NamedTuple):
    """Result of a put."""

    stored: bool  # True if the request is in the outbox, or was and is done
    dropped: tuple[str, ...] = ()  # ids of entries deleted to make room for the request
    reason: str = ""  # reason why the request was not stored; empty if it was


class Listed(NamedTuple):
    """Entry without its contents, as listed."""

    seq: int  # sequence number, in the order of puts
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
    bytes: int  # size as counted towards `max_bytes`
    error: str  # error of the last attempt


class Late(NamedTuple):
    """Answer that arrived after the caller had got a provisional one.

    Attributes:
        id: id of the request, by which a callback that may be called twice detects duplicates.
        value: value in JSON types.
        confidence: confidence of the late answer; None: there is none.
        outputs: array, name -> array, or JSON value; None if the outputs could not be stored.
        provisional: answer that the caller got at once, {"value": ..., "confidence": ...}; None: none, or the request was not
            queued.
        data_class: data class of the request; None: it had none.
        target: name of the endpoint that answered.
        queued_at: time when the request was stored, or else when its deadline passed; Unix time, seconds.
        answered_at: time of the late answer, Unix time, seconds.
    """

    id: str
    value: Any
    confidence: float | None
    outputs: Any
    provisional: Any
    data_class: str | None
    target: str
    queued_at: float
    answered_at: float


LISTED = ", ".join(Listed._fields)  # columns of `Listed`
# Columns of `Waiting`.
WAITING = ", ".join(Waiting._fields[:-1]) + ", CASE WHEN outbox_origins.seq IS NULL THEN '' ELSE origin END"
# Columns of a late answer, as `read_late` reads them.
LATE = "id, value, confidence, outputs_type, outputs, provisional, data_class, target, queued_at, since"
FAR_S = 1e11  # largest distance of a timestamp from 1970, seconds; one beyond is damaged
MOST_BYTES = 1 << 40  # largest size of an entry, bytes; one beyond is damaged
_METHOD, _PATH = re.compile(r"[A-Za-z]*"), re.compile(r"(/[^\0-\x20\x7f]*)?")
_NAME, _VALUE = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"), re.compile(r"[^\0-\x08\x0a-\x1f\x7f]*")


class Damaged(ValueError):
    """Raised for a row that differs from what was written; the message says how.

    Args:
        why: the message.
        seq: sequence number of the row; 0: the caller knows it.
    """

    def __init__(self, why: str, seq: int = 0) -> None:
        super().__init__(why)
        self.seq = seq


def read_checked(row: Sequence[Any]) -> Listed:
    """Return the entry in a row of `LISTED`, after checking the columns by which entries are found and chosen.

    Raises:
        Damaged: one of these columns is damaged.
    """
    entry = Listed(*row)
    try:
        _check(entry, "id state target", str)
        _check_one_of(entry.state, get_args(State), "state")
        _check_class(entry.data_class)
        _check_times(entry, "ready_at", "queued_at")
        _check(entry, "attempts bytes", int)
        if entry.bytes != size_of(entry.bytes):
            raise Damaged(f"its bytes are {entry.bytes}")  # noqa: TRY301 - as the other checks do
    except Damaged as e:
        raise Damaged(str(e), entry.seq) from None
    return entry


def read_lenient(row: Sequence[Any]) -> Listed:
    """Return the entry in a row of `LISTED` as far as it can be read; values of a wrong type are replaced by neutral ones."""
    seq, name, state, target, kind, data_class, rule, importance, queued_at, ready_at, attempts, size, error = row
    return Listed(
        seq, _text(name), _text(state), _text(target), _text(kind), None if data_class is None else _text(data_class),
        _text(rule), importance if isinstance(importance, float) else 0.0, _number(queued_at),
        _number(ready_at), _count(attempts), size_of(size), _text(error),
    )  # fmt: skip


def read_waiting(row: Sequence[Any]) -> Waiting:
    """Return the request in a row of `WAITING`, after checking all columns; headers and provisional answer are parsed as JSON.

    Raises:
        Damaged: the request cannot be sent as it was put.
    """
    entry = Waiting(*row)
    _check(entry, "id target kind rule method path error origin", str)
    _check(entry, "importance", float)
    _check_times(entry, "ready_at", "queued_at")
    _check(entry, "body", bytes)
    _check(entry, "attempts", int)
    _check_class(entry.data_class)
    _check_one_of(entry.kind, ("call", "input"), "kind")
    if not (_METHOD.fullmatch(entry.method) and _PATH.fullmatch(entry.path)):
        raise Damaged(f"its method and path cannot be sent: {entry.method!r} {entry.path!r}")
    headers = _json(entry.headers, "headers")
    if not (isinstance(headers, list) and all(isinstance(pair, list) and len(pair) == 2 for pair in headers)):  # noqa: PLR2004 - name and value
        raise Damaged("its headers are no list of names and values")
    if not all(isinstance(part, str) for pair in headers for part in pair):
        raise Damaged("its headers are not text")
    if not all(_NAME.fullmatch(name) and _VALUE.fullmatch(value) for name, value in headers):
        raise Damaged("its headers cannot be sent")
    if entry.kind == "input" and "Content-Type" not in dict(headers):
        raise Damaged("the type of its input is missing")
    return entry._replace(headers=tuple(map(tuple, headers)), provisional=_json(entry.provisional, "provisional"))


def read_late(row: Sequence[Any]) -> Late:
    """Return the late answer in a row of `LATE`, after checking all columns.

    Outputs without a type are None.

    Raises:
        Damaged: the answer cannot be restored.
    """
    name, value, confidence, outputs_type, outputs, *others = row
    entry = Late(name, value, confidence, None, *others)
    _check(entry, "id target", str)
    _check_class(entry.data_class)
    _check_times(entry, "queued_at", "answered_at")
    if not (confidence is None or isinstance(confidence, float)):
        raise Damaged(f"its confidence is {confidence!r}")
    if outputs_type is not None:
        try:
            entry = entry._replace(outputs=decode_input(outputs_type, outputs))
        except MemoryError:  # of this device, now: the size was checked
            raise
        except Exception as e:
            raise Damaged(f"its outputs cannot be read: {e!r}") from e
    return entry._replace(value=_json(value, "value"), provisional=_json(entry.provisional, "provisional"))


def _check(entry: Waiting | Listed | Late, names: str, kind: type) -> None:
    """Raise Damaged unless the fields named in `names`, apart by spaces, are of exactly this type, and texts are valid UTF-8."""
    for name in names.split():
        value = getattr(entry, name)
        if type(value) is not kind:
            raise Damaged(f"its {name} is {'missing' if value is None else f'of type {type(value).__name__}'}")
        if type(value) is str and not is_whole(value):
            raise Damaged(f"its {name} is not text")


def _check_one_of(value: str, known: Sequence[str], what: str) -> None:
    """Raise Damaged unless the value is among `known`."""
    if value not in known:
        raise Damaged(f"its {what} is {value!r}")


def _check_class(data_class: object) -> None:
    """Raise Damaged unless the data class is None or a valid text."""
    if not (data_class is None or (isinstance(data_class, str) and is_whole(data_class))):
        raise Damaged(f"its data class is {data_class!r}")


def _check_times(entry: Waiting | Listed | Late, *names: str) -> None:
    """Raise Damaged unless the fields of these names are floats between -`FAR_S` and `FAR_S`."""
    for name in names:
        value = getattr(entry, name)
        if not isinstance(value, float) or not -FAR_S < value < FAR_S:
            raise Damaged(f"its {name} is {value!r}")


def _json(text: object, what: str) -> Any:
    """Return the value of a JSON column. Raise Damaged if it is missing, no valid text, or cannot be parsed."""
    try:
        if isinstance(text, str) and is_whole(text):
            return json.loads(text)
    except (ValueError, RecursionError) as e:
        raise Damaged(f"its {what} cannot be read: {e}") from e
    raise Damaged(f"its {what} is {'missing' if text is None else 'not text'}")


def is_whole(text: str) -> bool:
    """Return True if a text was valid UTF-8; invalid bytes are read as lone surrogates, which are never written."""
    return text.isascii() or not any("\ud800" <= c <= "\udfff" for c in text)


def size_of(value: object) -> int:
    """Return the size of an entry, bytes; 0 unless it is an integer from 0 to `MOST_BYTES`."""
    return value if isinstance(value, int) and 0 <= value <= MOST_BYTES else 0


def _text(value: object) -> Any:
    """Return a value as valid text: None as empty, others by str(), invalid characters replaced."""
    text = value if isinstance(value, str) else "" if value is None else str(value)
    return text if is_whole(text) else text.encode(errors="replace").decode()


def _number(value: object) -> float:
    """Return a timestamp; 0 if it is damaged."""
    return value if isinstance(value, float) and -FAR_S < value < FAR_S else 0.0


def _count(value: object) -> int:
    """Return a number of attempts; 0 if it is damaged."""
    return value if isinstance(value, int) and value >= 0 else 0
