"""Reading of digests that anybody may have written (`decode`): each number, text and size is checked before one is counted."""

from __future__ import annotations

import hmac
import json
import re
import zlib
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import date
from functools import partial
from typing import Any, Final, Literal

from edgeroute.core.sequential_tests import GRID
from edgeroute.fleet.digest_encoding_and_coarsening import (
    AUDIT_STEP,
    CONFIDENCES,
    FORMAT,
    LAST_LEVEL,
    MOST_BYTES,
    MOST_GROUPS,
    MOST_NAME,
    MOST_TEXT,
    UNSTATED,
    Digest,
    Row,
    coarsen,
    mac,
)

_EARLIER: Final = 1, 4  # format of earlier devices, and its `AUDIT_STEP`
_MOST_REQUESTS, _MOST_AMOUNT, _MOST_REVISION = 10**9, 10**15, 10**6
_WHOLE = {int}
MOST_SIGNED = MOST_NAME + 16  # most bytes of the name and the number of a signed policy
_MAC = re.compile(rb',"mac":"([0-9a-f]{64})"\}')
_MAC_BYTES = 74
Fault = Literal["too large", "truncated", "malformed", "version", "forged", "future"]


class BadDigest(ValueError):
    """Refused digest.

    Attributes:
        fault: one of the words of `Fault`, for counting.
    """

    def __init__(self, fault: Fault, text: str) -> None:
        super().__init__(f"the digest is {'of another format' if fault == 'version' else fault}: {text}")
        self.fault = fault


def decode(data: bytes, key: bytes = b"", *, today: str = "") -> Digest:
    """Return the digest of bytes that anybody may have written, after checking size, signature, format and each field.

    Args:
        data: the bytes.
        key: key of the fleet; a digest without its HMAC is refused then. Empty: an HMAC is not verified.
        today: the reader's UTC day, after which a digest is of the future; empty: any day is accepted.

    Raises:
        BadDigest: the digest is refused, for one of the faults in `Fault`; the message quotes nothing of its content.
    """
    text = _unpacked(data)
    seal = _MAC.fullmatch(text[-_MAC_BYTES:])
    signed = text[:-_MAC_BYTES] + b"}" if seal else text
    if key and not (seal and hmac.compare_digest(seal[1], mac(key, signed).encode())):
        raise BadDigest("forged", "its HMAC is not that of the fleet's key" if seal else "it has no HMAC")
    try:
        fields = json.loads(signed, object_pairs_hook=_once)  # at most MOST_TEXT; each number is checked below
    except (ValueError, RecursionError) as e:
        raise BadDigest("malformed", "it is no JSON in UTF-8, or has a key twice") from e
    if not isinstance(fields, dict) or (form := fields.pop("format", None)) not in (_EARLIER[0], FORMAT):
        raise BadDigest("version", f"expected format {FORMAT}")
    if problem := next(_problems(fields, AUDIT_STEP if form == FORMAT else _EARLIER[1]), ""):
        raise BadDigest("malformed", problem)
    digest = Digest(**{name: _frozen(value) for name, value in fields.items()})
    if form != FORMAT:  # its indices are of other thresholds
        audits = tuple((*row[:2], UNSTATED, *row[3:]) for row in digest.audits)
        digest = coarsen(digest._replace(confidences=(), audits=audits), 0)
    if today and digest.day > today:
        raise BadDigest("future", "its day has not begun")
    return digest


def _unpacked(data: bytes) -> bytes:
    """Return the decompressed text. Raises BadDigest if the data, or the text, is too large, or the data is damaged."""
    if len(data) > MOST_BYTES:
        raise BadDigest("too large", f"more than {MOST_BYTES} bytes")
    stream = zlib.decompressobj()
    try:
        text = stream.decompress(data, MOST_TEXT)
    except zlib.error:
        raise BadDigest("malformed", "it cannot be decompressed") from None
    if stream.unconsumed_tail:
        raise BadDigest("too large", f"more than {MOST_TEXT} bytes, decompressed")
    if not stream.eof:
        raise BadDigest("truncated", "its end is missing")
    if stream.unused_data:
        raise BadDigest("malformed", "something follows its end")
    return text


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return a JSON object. Raises ValueError if a key is there twice."""
    if len(unique := dict(pairs)) < len(pairs):
        raise ValueError("a key is there twice")
    return unique


def _frozen(value: Any) -> Any:
    """Return a value, a list of lists as a tuple of tuples."""
    return tuple(map(tuple, value)) if isinstance(value, list) else value


def _problems(fields: dict[str, Any], step: int) -> Iterator[str]:
    """Yield the problems of a digest's fields in words; indices of audits are multiples of `step`.

    Only the first may be asked for: later checks assume that there is none before.
    """
    if fields.keys() != {*Digest._fields}:
        yield "expected other keys"
    if not (isinstance(fields["device"], str) and re.fullmatch("[0-9a-f]{32}", fields["device"])):
        yield "device: expected 32 hexadecimal digits"
    if not _is_day(fields["day"]):
        yield "day: expected a date"
    if not (_is_whole(fields["revision"], _MOST_REVISION, 1) and _is_whole(fields["coarse"], LAST_LEVEL)):
        yield "revision or coarse: expected a whole number in its range"
    if type(fields["final"]) is not bool:
        yield "final: expected true or false"
    if not all(map(_is_name, (fields["site"], fields["version"]))) or not _is_name(fields["signed"], MOST_SIGNED):
        yield "site, version or signed: expected a short text"
    groups, tables = fields["groups"], [fields[name] for name in ("requests", "confidences", "audits")]
    if not all(isinstance(table, list) and all(isinstance(row, list) for row in table) for table in (groups, *tables)):
        yield "expected lists of lists"
    if not all(len(group) == 4 and all(map(_is_name, group)) for group in groups):  # noqa: PLR2004 - as `Group`
        yield "groups: expected four short texts in each"
    if len(groups) > MOST_GROUPS or len(set(map(tuple, groups))) < len(groups):
        yield "groups: too many, or one is there twice"
    audit_key = partial(_audit_key, step)
    checks: tuple[tuple[int, Callable[[Row], Row | None]], ...] = ((16, _request_key), (3, _confidence_key), (8, audit_key))
    for table, (width, key_of) in zip(tables, checks, strict=True):
        if not all(len(row) == width and type(row[0]) is int and 0 <= row[0] < len(groups) for row in table):
            yield "expected rows of another length, or of a group that there is"
        keys = [key_of(tuple(row)) for row in table]
        if None in keys or len(set(keys)) < len(keys):
            yield "a row has a number out of range, or is there twice"


def _request_key(row: Row) -> Row | None:
    """Return group and hour of a row of requests; None if a number is out of range."""
    _, hour, requests, deferred, degraded, failed, moved, usd, *latencies = row
    valid = set(map(type, row)) == _WHOLE and min(row) >= 0 and _is_hour(hour) and requests <= _MOST_REQUESTS
    valid = valid and max(deferred, degraded, failed, sum(latencies)) <= requests and max(moved, usd) <= _MOST_AMOUNT
    return row[:2] if valid else None


def _confidence_key(row: Row) -> Row | None:
    """Return group and index of a row of confidences; None if a number is out of range."""
    valid = _is_whole(row[1], len(CONFIDENCES) - 1, -1) and _is_whole(row[2], _MOST_REQUESTS)
    return row[:2] if valid else None


def _audit_key(step: int, row: Row) -> Row | None:
    """Return group, hour, index and rate of a row of audits; None if a number is out of range."""
    _, hour, index, audited, differ, harms, wins, rate = row
    valid = set(map(type, row[:7])) == _WHOLE and _is_hour(hour) and UNSTATED <= index < len(GRID)
    valid = valid and (index < 0 or index % step == 0)
    valid = valid and audited <= _MOST_REQUESTS and min(differ, harms, wins) >= 0 and max(differ, harms + wins) <= audited
    valid = valid and type(rate) in {int, float} and 0 < rate <= 1
    return (*row[:3], rate) if valid else None


def _is_hour(value: Any) -> bool:
    """Return True for an hour of the day."""
    return _is_whole(value, 23)


def _is_whole(value: Any, most: int, least: int = 0) -> bool:
    """Return True for a whole number in a range."""
    return type(value) is int and least <= value <= most


def _is_name(value: Any, most: int = MOST_NAME) -> bool:
    """Return True for a short text without control characters."""
    return isinstance(value, str) and value.isprintable() and len(value.encode()) <= most


def _is_day(value: Any) -> bool:
    """Return True for a date such as 2026-11-28."""
    with suppress(ValueError):
        return isinstance(value, str) and date.fromisoformat(value).isoformat() == value
    return False
