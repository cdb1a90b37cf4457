"""Conversations as inputs: their turns, and the digests by which a later call with the same turns is recognised."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final, NamedTuple
from unicodedata import normalize

SHORTEST: Final = 8
"""Characters of a text that is recognised by itself; shorter ones, such as "yes", are in too many conversations."""
SHORTEST_ANSWER: Final = 40
"""Likewise of a model's answer, as all greet alike."""
TOLD: Final = frozenset({"system", "developer"})
"""Roles of what many conversations begin with."""
Digest = Callable[[bytes], bytes]
"""A keyed digest."""


class Turn(NamedTuple):
    """One message."""

    role: str
    text: str
    """Its text, without differences in white space and composition."""

    @property
    def tells(self) -> bool:
        """Whether it is long enough to be recognised by itself."""
        return len(self.text) >= (SHORTEST_ANSWER if self.role == "assistant" else SHORTEST)


def turns(x: Any) -> list[Turn]:
    """The messages of an input, without the system's: a list of them, a request with such, or one text; else none."""
    if isinstance(x, str):
        return [Turn("user", plain(x))]
    if isinstance(x, Mapping):
        x = x.get("messages", x.get("prompt"))
        if isinstance(x, str):
            return [Turn("user", plain(x))]
    if not isinstance(x, list | tuple) or not x or not _is_message(x[0]):
        return []
    return [turn for turn in map(_turn, x) if turn.role not in TOLD]


def remembered(said: list[Turn], digest: Digest) -> list[bytes]:
    """The digests to remember of a conversation: that of all of it, and those of its last turn, with the answer before.

    A conversation that is too short to be recognised has none.
    """
    *_, whole = [b"", *_chained(said, digest)]
    begins = max((i for i, turn in enumerate(said) if turn.role == "assistant"), default=0)
    own = [digest(turn.text.encode("utf-8", "surrogatepass")) for turn in said[begins:] if turn.tells]
    return [*([whole] if whole else []), *own]


def looked_up(said: list[Turn], digest: Digest) -> Iterator[bytes]:
    """The digests of which a remembered one means that this conversation goes on from, or quotes, one that was remembered."""
    yield from (digest(turn.text.encode("utf-8", "surrogatepass")) for turn in said if turn.tells)
    yield from (one for one in _chained(said, digest) if one)


def _chained(said: list[Turn], digest: Digest) -> Iterator[bytes]:
    """After each message the digest of all so far; empty while they are too short."""
    chain, size = b"", 0
    for turn in said:
        size += len(turn.text)
        chain = digest(b"%s %s" % (chain, digest(turn.text.encode("utf-8", "surrogatepass"))))
        yield chain if size >= SHORTEST else b""


def plain(text: str) -> str:
    """The text without differences in white space and composition."""
    return " ".join(normalize("NFC", text).split())


def _is_message(one: Any) -> bool:
    return isinstance(one, str) or (isinstance(one, Mapping) and "role" in one) or hasattr(one, "content")


def _turn(one: Any) -> Turn:
    if isinstance(one, str):
        return Turn("user", plain(one))
    content, calls, role = (
        one.get(name) if isinstance(one, Mapping) else getattr(one, name, None) for name in ("content", "tool_calls", "role")
    )
    if isinstance(content, list | tuple):
        content = " ".join(str(part.get("text", _dumped(part)) if isinstance(part, Mapping) else part) for part in content)
    text = content if isinstance(content, str) else ""
    if calls:
        text = f"{text} {_dumped(calls)}"
    return Turn(str(role or "user"), plain(text))


def _dumped(value: Any) -> str:
    return json.dumps(value, sort_keys=True, default=repr)
