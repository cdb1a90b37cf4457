"""Digest of one device's day: counts that add up, without inputs and answers, coarsened until it has at most 1,024 bytes.

With a key it has an HMAC. Pure, without I/O; the parser is in tools/fleet/untrusted_digest_decoder.py.
"""

from __future__ import annotations

import hmac
import json
import zlib
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable
from typing import Any, Final, NamedTuple, TypeAlias

from edgeroute.core.sequential_tests import GRID

FORMAT: Final = 2  # 1: with indices of other thresholds, fewer and other ones
MOST_BYTES: Final = 1024  # maximum bytes of an encoded digest
# Upper bounds of the latency buckets, each inclusive; the last bucket has the rest.
LATENCIES_S: Final = (0.005, 0.02, 0.05, 0.1, 0.25, 1.0, 5.0)
CONFIDENCES: Final = GRID[::24]  # grid of the table of confidences
# An audit's index in `GRID` is rounded down to a multiple of this, so counts are exact for the thresholds `GRID[::8]`.
AUDIT_STEP: Final = 8
UNSTATED: Final = -2  # index of audits in a digest that had no room for their confidences; -1: no threshold accepts the answer
OTHER: Final = ("other", "", "", "")  # group of the rarest groups, in a digest that has no room for all
_KEPT: Final = (16, 12, 8, 4, 1)
# Coarsest level: 1: hours in blocks of 6. 2: data classes joined. 3: no confidences. 4: one block a day. 5: audits without
# index. 6: no latencies. From 7 on: the 16, 12, 8, 4, 1 groups with the most requests, and all others as `OTHER`. Each level has
# those before.
LAST_LEVEL: Final = 6 + len(_KEPT)
MOST_TEXT: Final = 1 << 16  # maximum bytes of a digest's JSON
MOST_GROUPS: Final = 512
MOST_NAME: Final = 64  # maximum bytes of a name
Group: TypeAlias = tuple[str, str, str, str]  # (model, policy, arm of a trial or empty, data class or empty)
Row: TypeAlias = tuple[Any, ...]


class Digest(NamedTuple):
    """Counts of one device and UTC day; of several with the same device and day only that with the highest revision counts."""

    device: str  # 32 hexadecimal digits, random
    day: str  # such as 2026-11-28
    revision: int
    final: bool  # True if the day was over
    site: str
    version: str  # version of edgeroute
    signed: str  # name and version of the signed policy in force; empty: none
    groups: tuple[Group, ...]
    # (group's index, hour, requests, deferred, degraded, failed, bytes, micro-USD, requests by latency bucket: 8 numbers).
    requests: tuple[Row, ...]
    # (group's index, index of the highest threshold of `CONFIDENCES` that accepts the edge's answer, or -1, requests).
    confidences: tuple[Row, ...]
    audits: tuple[Row, ...]  # (group's index, hour, index in `GRID`, audited, differ, harms, wins, rate of the draw)
    coarse: int = 0  # level of coarsening, 0: none. An hour is the first of its block.


def bucket(latency_s: float) -> int:
    """Return the index of a latency's bucket."""
    return bisect_left(LATENCIES_S, latency_s)


def encode(digest: Digest, key: bytes = b"") -> bytes:
    """Return a digest's compressed JSON, coarsened only as far as `MOST_BYTES` needs; with a key its HMAC is in it.

    Raises:
        ValueError: even the coarsest level is too large, as names are too long.
    """
    for level in range(digest.coarse, LAST_LEVEL + 1):
        data = _packed(coarsen(digest, level), key)
        if data is not None:
            return data
    raise ValueError("a digest of one group is too large: its names are too long")


def _packed(digest: Digest, key: bytes) -> bytes | None:
    """Return a digest's JSON, compressed, with its HMAC if there is a key; None if it has more than `MOST_BYTES`."""
    fields = {"format": FORMAT, **digest._asdict()}
    text = json.dumps(fields, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()
    if key:
        text = text[:-1] + b',"mac":"' + mac(key, text).encode() + b'"}'
    data = zlib.compress(text, 9) if len(text) <= MOST_TEXT and len(digest.groups) <= MOST_GROUPS else text
    return data if len(data) <= MOST_BYTES else None


def mac(key: bytes, text: bytes) -> str:
    """Return the HMAC-SHA256 of a text, in hexadecimal digits."""
    return hmac.new(key, text, "sha256").hexdigest()


def coarsen(digest: Digest, level: int) -> Digest:
    """Return a copy of a digest at a level of coarsening (see `LAST_LEVEL`): equal rows are summed and sorted.

    A digest that is coarser already keeps its level.
    """
    level = max(level, digest.coarse)
    hours = 24 if level >= 4 else 6 if level >= 1 else 1  # noqa: PLR2004 - the levels, as documented
    names: list[Group] = [(*group[:3], "") if level >= 2 else group for group in digest.groups]  # noqa: PLR2004
    if level > 6:  # noqa: PLR2004
        sums: Counter[Group] = Counter()
        for row in digest.requests:
            sums[names[row[0]]] += row[2]
        kept = {name for name, _ in sums.most_common(_KEPT[level - 7])}
        names = [name if name in kept else OTHER for name in names]
    order = sorted(set(names))
    number = [order.index(name) for name in names]
    requests = ((number[g], h - h % hours, *n[:6], *([0] * 8 if level >= 6 else n[6:])) for g, h, *n in digest.requests)  # noqa: PLR2004
    confidences = () if level >= 3 else ((number[g], *n) for g, *n in digest.confidences)  # noqa: PLR2004
    audits = (
        (number[g], h - h % hours, UNSTATED if level >= 5 else rounded(i), rate, *n)  # noqa: PLR2004
        for g, h, i, *n, rate in digest.audits
    )
    return digest._replace(
        groups=tuple(order), requests=_sums(requests, 2), confidences=_sums(confidences, 2),
        audits=tuple((*row[:3], *row[4:], row[3]) for row in _sums(audits, 4)), coarse=level,
    )  # fmt: skip


def rounded(index: int) -> int:
    """Return an index in `GRID` as digests have it."""
    return index if index < 0 else index - index % AUDIT_STEP


def _sums(rows: Iterable[Row], keys: int) -> tuple[Row, ...]:
    """Sum the rows that have the same first `keys` values into one each; return them sorted."""
    sums: dict[Row, Row] = {}
    for row in rows:
        had = sums.get(row[:keys])
        sums[row[:keys]] = row[keys:] if had is None else tuple(map(sum, zip(had, row[keys:], strict=True)))
    return tuple((*key, *sums[key]) for key in sorted(sums))


def name_of(value: str, most: int = MOST_NAME) -> str:
    """Return a text as digests have names: at most so many bytes, and a question mark for what cannot be printed."""
    return "".join(c if c.isprintable() else "?" for c in value).encode()[:most].decode(errors="ignore")


def path_of(digest: Digest) -> str:
    """Return the name of a digest at its destination."""
    return f"digests/{digest.day}/{digest.device}.{digest.revision}.digest"
