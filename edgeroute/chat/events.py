"""Server-sent events (WHATWG HTML, 9.2), as the answers of language models come."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator

DATA, ERROR, EVENT = b"data", b"error", b"event"
FIELDS = (b"data:", b":", b"event:", b"id:", b"retry:")
"""What a stream of events begins with."""


class Events:
    """Parses server-sent events from bytes as they arrive, cut anywhere: lines end with LF, CR or CRLF.

    `feed` and `end` return the data of the events that are complete. What has no `data` is left out: comments, which servers
    send to keep a connection open, and other fields. A line that is JSON itself, or `error: {...}`, is data too: llama-server
    had such errors. The data of an event by the name of `error` become `{"error": ...}`.
    """

    __slots__ = ("_begun", "_cr", "_data", "_failed", "_parts")

    def __init__(self) -> None:
        self._parts: list[bytes] = []
        """Of the last line, which has not ended."""
        self._data: list[bytes] = []
        """Lines of data of the last event, which has not ended."""
        self._cr = self._begun = False
        self._failed = False
        """Whether the last event, which has not ended, is an error by its name."""

    def feed(self, part: bytes) -> list[bytes]:
        """The data of the events that end in this part."""
        if self._cr or b"\r" in part:
            part = self._lf(part)
        first, *lines = part.split(b"\n")
        self._parts.append(first)
        if not lines:
            return []
        found: list[bytes] = []
        self._line(b"".join(self._parts) if len(self._parts) > 1 else first, found)
        self._parts = [lines.pop()]
        for line in lines:
            self._line(line, found)
        return found

    def _lf(self, part: bytes) -> bytes:
        """The part with LF at the end of each line. A CR at its end may be the first half of a CRLF."""
        if not part:
            return part
        if self._cr:
            part = part.removeprefix(b"\n")  # the CR has ended the line already
        self._cr = part.endswith(b"\r")
        return part.replace(b"\r\n", b"\n").replace(b"\r", b"\n")

    def _line(self, line: bytes, found: list[bytes]) -> None:
        if not self._begun:
            self._begun = True
            line = line.removeprefix(b"\xef\xbb\xbf")
        if not line:
            if self._data:
                data = b"\n".join(self._data) if len(self._data) > 1 else self._data[0]
                found.append(_as_error(data) if self._failed else data)
                self._data = []
            self._failed = False
            return
        if line.startswith(b"{"):
            found.append(line)
            return
        name, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        if name == DATA:
            self._data.append(value)
        elif name == EVENT:
            self._failed = value == ERROR
        elif name == ERROR and value.startswith(b"{"):
            found.append(value)

    def end(self) -> list[bytes]:
        """The data of what came last, once nothing more comes: some servers end without an empty line."""
        found: list[bytes] = []
        self._line(b"".join(self._parts), found)
        self._line(b"", found)
        self._parts = []
        return found


def _as_error(data: bytes) -> bytes:
    """The JSON of an error with these data, which are JSON, or a text."""
    return b'{"error": %s}' % (data if data.startswith(b"{") else json.dumps(data.decode(errors="replace")).encode())


def is_piece(body: bytes) -> bool:
    """Whether a body begins with a line that is one piece of an answer, in JSON: more of them follow."""
    line, ended, _ = body.lstrip().partition(b"\n")
    try:
        choice = json.loads(line if ended else b"")["choices"][0]
        return "delta" in choice or ("text" in choice and choice.get("finish_reason") is None)
    except (AttributeError, LookupError, RecursionError, TypeError, ValueError):
        return False


def events(parts: Iterable[bytes]) -> Iterator[bytes]:
    """The data of the events in a body that comes in parts."""
    parser = Events()
    for part in parts:
        yield from parser.feed(part)
    yield from parser.end()
