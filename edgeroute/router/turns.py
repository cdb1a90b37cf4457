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
    """Empty: it is a text in a list of texts, which may as well be the row of a table."""
    text: str
    """Its text, without differences in white space and composition."""
    parts: tuple[str, ...] = ()
    """Those of its content, where it has several: programs join messages, and put others beside them."""

    @property
    def telling(self) -> Iterator[str]:
        """Its text and parts that are long enough to be recognised by themselves."""
        least = SHORTEST_ANSWER if self.role == "assistant" else SHORTEST
        return (text for text in (self.text, *self.parts) if len(text) >= least)


def turns(x: Any) -> list[Turn]:
    """The messages of an input: a list of them, a request with such, or one text; else none."""
    if isinstance(x, str):
        return [Turn("user", plain(x))]
    if isinstance(x, Mapping):
        x = x.get("messages", x.get("prompt"))
        if isinstance(x, str):
            return [Turn("user", plain(x))]
    if not isinstance(x, list | tuple) or not x or not _is_message(x[0]):
        return []
    if isinstance(x[0], str) and not all(map(_is_message, x)):  # a row of a table
        return []
    return [*map(_turn, x)]


def remembered(said: list[Turn], digest: Digest) -> list[bytes]:
    """The digests to remember of a conversation: that of all of it, and those of its last turn, with the answer before.

    None of the system's messages. All of it is remembered however short it is: nothing else tells that a conversation goes on
    from it. One in which nothing is said has none, nor has a list of texts that is short.
    """
    said = [turn for turn in said if turn.role not in TOLD]
    *_, whole = [b"", *_chained(said, digest)]
    begins = max((i for i, turn in enumerate(said) if turn.role == "assistant"), default=0)
    own = [digest(encoded(text)) for turn in said[begins:] for text in turn.telling]
    return [*([whole] if whole else []), *own]


def looked_up(said: list[Turn], digest: Digest) -> Iterator[bytes]:
    """The digests of which a remembered one means that this conversation goes on from, or quotes, one that was remembered.

    Among them those of the system's messages: what was said before may have been put there.
    """
    yield from (digest(encoded(text)) for turn in said for text in turn.telling)
    yield from (one for one in _chained([turn for turn in said if turn.role not in TOLD], digest) if one)


def _chained(said: list[Turn], digest: Digest) -> Iterator[bytes]:
    """After each message the digest of all so far; empty while nothing was said, or too little in texts without a role."""
    chain, size, heard = b"", 0, False
    for turn in said:
        size += len(turn.text)
        heard = heard or size >= (1 if turn.role else SHORTEST)
        chain = digest(b"%s %s" % (chain, digest(encoded(turn.text))))
        yield chain if heard else b""


def plain(text: str) -> str:
    """The text without differences in white space and composition."""
    return " ".join(normalize("NFC", text).split())


def encoded(text: str) -> bytes:
    """The text as the bytes that are digested."""
    return text.encode("utf-8", "surrogatepass")


def _is_message(one: Any) -> bool:
    return isinstance(one, str) or (isinstance(one, Mapping) and "role" in one) or hasattr(one, "content")


def _turn(one: Any) -> Turn:
    if isinstance(one, str):
        return Turn("", plain(one))
    content, calls, role = (
        one.get(name) if isinstance(one, Mapping) else getattr(one, name, None) for name in ("content", "tool_calls", "role")
    )
    parts: list[str] = []
    if isinstance(content, list | tuple):
        parts = [plain(_part(part)) for part in content]
        content = " ".join(parts)
    text = content if isinstance(content, str) else "" if content is None else _dumped(content)
    if calls:
        text = f"{text} {_dumped(calls)}"
    return Turn(str(role or "user"), plain(text), tuple(parts) if len(parts) > 1 else ())


def _part(part: Any) -> str:
    if not isinstance(part, Mapping):
        return str(part)
    return text if isinstance(text := part.get("text"), str) else _dumped(part)


def _dumped(value: Any) -> str:
    try:
        return json.dumps(value, sort_keys=True, default=repr)
    except (TypeError, ValueError, RecursionError):  # keys of several types, or it is in itself
        return repr(value)
