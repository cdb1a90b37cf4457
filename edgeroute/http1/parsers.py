"""Parsers of HTTP/1.1 replies: httptools (llhttp) in its strict mode, or h11 where there is no wheel of it.

Both are given a whole head, and then the chunks of a body that has some. What its framing is, `reading` decides for both.
"""

from __future__ import annotations

import re
from functools import partial
from types import SimpleNamespace
from typing import Any, NamedTuple, Protocol

HAVE_LLHTTP = True
try:
    import httptools
except ImportError:
    HAVE_LLHTTP = False
    import h11

END = b"\r\n\r\n"
"""The end of a head, of its interim ones too, and of the trailers."""
_BEGUN, _HEADED, _ENDED = "begun", "headed", "ended"


class Malformed(Exception):
    """What came is no HTTP/1.1. The message quotes nothing of it."""


class Head(NamedTuple):
    """Status line and headers of a reply."""

    version: str
    """"1.0" or "1.1"."""
    status: int
    headers: list[tuple[str, str]]
    """With lower-case names, in order, repeated ones too."""


class Parser(Protocol):
    """Reads one head, and the chunks after it."""

    @property
    def ended(self) -> bool:
        """Whether the last chunk and the trailers have come."""

    @property
    def surplus(self) -> bool:
        """Whether something has come after them."""

    def head(self, data: bytes) -> Head:
        """Parses a head, which ends with `END`.

        Raises:
            Malformed: it is none.
        """

    @property
    def wrong(self) -> str:
        """What is wrong with the chunks, after the parts that `chunked` returned last; empty: nothing."""

    def chunked(self, data: bytes) -> list[bytes]:
        """Parses more of a chunked body -> the parts of the body in it."""


class Llhttp:
    """Parser on httptools. Its callbacks are C functions: in one of Python, what a signal handler raises would be lost."""

    __slots__ = ("_events", "_parser", "_tail", "ended", "surplus", "wrong")

    def __init__(self) -> None:
        self._events: list[bytes | str] = []
        note = self._events.append
        callbacks = SimpleNamespace(
            on_message_begin=partial(note, _BEGUN),
            on_headers_complete=partial(note, _HEADED),
            on_body=note,
            on_message_complete=partial(note, _ENDED),
        )
        self._parser: Any = httptools.HttpResponseParser(callbacks)
        self._tail, self.wrong = b"", ""
        self.ended = self.surplus = False

    def head(self, data: bytes) -> Head:
        """As of `Parser`."""
        events, wrong = self._feed(data)
        if wrong or events[:2] != [_BEGUN, _HEADED] or events[2:] not in ([], [_ENDED]):
            raise Malformed(wrong or "illegal head of a reply")
        return Head(self._parser.get_http_version(), self._parser.get_status_code(), _headers(data))

    def chunked(self, data: bytes) -> list[bytes]:
        """As of `Parser`."""
        events, wrong = self._feed(data)
        if _ENDED in events:
            self.ended = True
            after = events[events.index(_ENDED) + 1 :]
            events = events[: -len(after)] if after else events
            tail = self._tail + data[-6:]  # llhttp passes over line ends between two replies
            self.surplus = bool(after or wrong) or not tail.endswith(END) or tail.endswith(b"\r\n" + END)
        elif wrong:
            self.wrong = wrong
        self._tail = (self._tail + data[-6:])[-6:]
        return [event for event in events if isinstance(event, bytes)]

    def _feed(self, data: bytes) -> tuple[list[bytes | str], str]:
        """Parses it. Returns what happened, and llhttp's own words for what is wrong, a fixed set."""
        events, wrong = self._events, ""
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as e:
            wrong = f"illegal reply ({str(e)[:60].lower()})"
        found = events[:]
        events.clear()
        return found, wrong


class H11:
    """Parser on h11."""

    __slots__ = ("_connection", "ended", "surplus", "wrong")

    def __init__(self) -> None:
        self._connection = h11.Connection(h11.CLIENT)
        self._connection.send(h11.Request(method="GET", target="/", headers=[("Host", "-")]))
        self._connection.send(h11.EndOfMessage())
        self.ended = self.surplus = False
        self.wrong = ""

    def head(self, data: bytes) -> Head:
        """As of `Parser`."""
        if _NOT_STRICT.search(data):
            raise Malformed("illegal line end, continued line or control character")
        event = self._next(data)
        if not isinstance(event, h11.Response | h11.InformationalResponse):
            raise Malformed("illegal head of a reply")
        return Head(event.http_version.decode(), event.status_code, _headers(data))

    def chunked(self, data: bytes) -> list[bytes]:
        """As of `Parser`."""
        found: list[bytes] = []
        try:
            event = self._next(data)
            while isinstance(event, h11.Data):
                found.append(bytes(event.data))
                event = self._next(b"")
        except Malformed as e:
            self.wrong = str(e)
            return found
        if isinstance(event, h11.EndOfMessage):
            self.ended = True
            self.surplus = bool(self._connection.trailing_data[0])
        return found

    def _next(self, data: bytes) -> Any:
        try:
            if data:
                self._connection.receive_data(data)
            return self._connection.next_event()
        except h11.RemoteProtocolError:
            pass  # its message may quote what came
        raise Malformed("illegal reply")


def _headers(head: bytes) -> list[tuple[str, str]]:
    """The headers of a head that was parsed, strictly: each line is one. h11's own are without what is repeated."""
    found = []
    for line in head.decode("latin-1").split("\r\n")[1:-2]:
        name, _, value = line.partition(":")
        found.append((name.lower(), value.strip(" \t")))
    return found


_NOT_STRICT = re.compile(rb"(?<!\r)\n|\r(?!\n)|\r\n[ \t]|[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")
new_parser: type[Llhttp | H11] = Llhttp if HAVE_LLHTTP else H11
