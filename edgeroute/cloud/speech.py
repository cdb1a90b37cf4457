"""A reply in pieces, as an endpoint reads it: a generator without I/O, so that the same one serves threads and asyncio.

It yields what it needs or has, and is sent:

    Call     sends the call; is sent the reply's `Head`, of any status. One reply at a time.
    Read     reads on; is sent the next bytes of the body, or None at its end. What goes wrong is raised there, a `CloudError`.
    Said     a piece of the answer, which is shown; is sent None
    Tokens   how many tokens the server counted; is sent None

It returns the whole answer, as a talk returns one of its outputs. It has no retries and no clock.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping
from typing import Any, NamedTuple, TypeAlias, TypeVar, final

from edgeroute.cloud.base import Call, Reply
from edgeroute.core.spending import Tokens
from edgeroute.errors import BadReply

T = TypeVar("T")
LINGER_S = 3.0
"""How long what may follow a whole answer is waited for, seconds: token counts, and the end, which keeps the connection."""
LINE = 1 << 16
"""Bytes after which a first line is not waited for any longer."""


class Head(NamedTuple):
    """Status and headers of a reply."""

    status: int
    headers: Mapping[str, str]
    """Names are lower case."""


@final
class Read(NamedTuple):
    """Read on."""

    progress: bool = False
    """Whether what came last was a part of the answer: then the time for the next one begins anew."""
    over: bool = False
    """The answer is whole: what may still come is not waited for long, and nothing that happens there is a fault."""


@final
class Said(NamedTuple):
    """A piece of the answer."""

    value: Any
    confidence: float | None = None
    """Of the answer so far; None: it has none."""


READ, PROGRESS, OVER = Read(), Read(progress=True), Read(over=True)
Speech: TypeAlias = Generator[Call | Read | Said | Tokens, Head | bytes | None, T]


def read_whole(head: Head, most: int | None = None) -> Generator[Any, Any, Reply]:
    """The reply with its whole body; or, of a reply that is no success, with the first `most` bytes of it."""
    parts: list[bytes] = []
    size = 0
    while (most is None or size < most) and (part := (yield READ)) is not None:
        parts.append(part)
        size += len(part)
    return Reply(head.status, head.headers, b"".join(parts))


def read_first() -> Generator[Any, Any, bytes | None]:
    """The first part of the body that is not blank; None: there is none."""
    part: bytes | None
    while (part := (yield READ)) is not None and not part.strip():
        pass
    return part


def read_line(begun: bytes) -> Generator[Any, Any, bytes]:
    """The beginning of the body, to the end of its first line or to `LINE`; `begun` is what has come of it, and not blank."""
    parts, size, part = [begun], len(begun), begun.lstrip()
    while b"\n" not in part and size < LINE and (more := (yield READ)) is not None:
        part = more
        parts.append(part)
        size += len(part)
    return b"".join(parts)


def read_short(head: Head, most: int) -> Generator[Any, Any, Reply]:
    """As `read_whole`; what is longer, or breaks off, is taken as it came: only its status counts."""
    try:
        return (yield from read_whole(head, most))
    except BadReply:  # longer than it may be
        return Reply(head.status, head.headers, b"")
