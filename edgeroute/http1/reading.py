"""HTTP/1.1 without I/O: a reply is read from the bytes that came, strictly and within bounds.

What makes two readers of one connection disagree, so that a part of one reply passes for another, is refused: a length beside
chunks, several lengths, other codings, continued lines, bare line ends.
"""

from __future__ import annotations

import re

from edgeroute.errors import BadReply
from edgeroute.http1.parsers import END, Head, Malformed, Parser, new_parser

SUCCESS = range(200, 300)
"""The statuses of a success."""
EARLY = 1 << 16
"""Bytes of interim replies (1xx) that are read while a request is being sent, at most."""
FRAMING = 1 << 16
"""Bytes beyond the body that a reply may have whatever its length, and one for every `BODY_EACH` of it."""
BODY_EACH = 8
READ_LEAST, READ_MOST = 1 << 12, 1 << 16
PIECE_MOST = 1 << 18
"""Bytes of a body of known length that are read at a time; of others it is `CHUNKS_MOST`, since they take longer to parse."""
CHUNKS_MOST = 1 << 14
_LENGTH = re.compile("[0-9]{1,18}")
_BARE = re.compile(rb"(?<!\r)\n")
_ENCODINGS = {"gzip", "br", "deflate", "zstd"}
_NO_BODY = {204, 304}
_INCOMPLETE = "disconnected within its reply, which is incomplete"


class Early:
    """What came while a request was being sent: a refusal (413, say), or interim replies (1xx)."""

    def __init__(self) -> None:
        self.data = b""
        self._at = 0
        """Where the last reply in it begins."""

    def heard(self, data: bytes) -> bool:
        """Adds what was received; empty: the end. Returns whether to send no further: the final reply has begun."""
        self.data += data
        if not data or len(self.data) > EARLY:
            return True
        while len(self.data) - self._at >= len("HTTP/1.1 100"):
            if self.data[self._at : self._at + 5] != b"HTTP/" or self.data[self._at + 9 : self._at + 10] != b"1":
                return True
            end = self.data.find(END, self._at)
            if end < 0:
                return False
            self._at = end + len(END)
        return not b"HTTP/".startswith(self.data[self._at : self._at + 5])


class Reading:
    """One reply, fed with the bytes that come: first its head, then the pieces of its body, within bounds.

    Of an error nothing depends on its body: one that is too long is left unread.

    Args:
        origin: whose it is, for messages.
        method: of the request.
        limit: bytes of the body, at most.
    """

    __slots__ = (
        "_beyond", "_buffer", "_left", "_limit", "_method", "_origin", "_parser", "_seen", "_size", "ended", "headers",
        "heard", "pieces", "reusable", "status", "surplus", "unread",
    )  # fmt: skip

    def __init__(self, origin: str, method: str, limit: int) -> None:
        self._origin, self._method, self._limit = origin, method, limit
        self._buffer, self._seen, self._beyond, self._size = b"", 0, float(-FRAMING), 0
        self._parser: Parser | None = None
        self._left: int | None = None
        self.heard = False
        """Whether anything has come."""
        self.status = 0
        """0: the head has not come yet."""
        self.headers: dict[str, str] = {}
        """With lower-case names."""
        self.pieces: list[bytes] = []
        """Of the body, to be taken by the reader."""
        self.ended = False
        self.reusable = False
        """Whether the connection may be used again, once it has ended: nothing is left over, and the server keeps it."""
        self.surplus = False
        """Whether more has come than the reply."""
        self.unread = False
        """Whether the rest of the body was left unread."""

    @property
    def most(self) -> int:
        """How many bytes to receive next, at most.

        Raises:
            BadReply: there was too much beyond the body already.
        """
        if self._left is not None:
            return min(self._left, PIECE_MOST)
        if self._beyond > 0:
            raise BadReply(f"{self._origin} answered with more framing than content: unread")
        return min(CHUNKS_MOST if self.status else READ_MOST, max(READ_LEAST, int(-self._beyond)))

    def feed(self, data: bytes) -> None:
        """Takes what was received; empty: the end of the connection.

        Raises:
            Malformed: it is no HTTP/1.1, or ends too early.
            BadReply: a content encoding, or a success longer than the limit.
        """
        if data:
            self.heard = True
        if not self.status:
            self._feed_head(data)
        else:
            self._feed_body(data)

    def _feed_head(self, data: bytes) -> None:
        if not data:
            raise Malformed(_INCOMPLETE if self.heard else "disconnected without sending a reply")
        self._beyond += len(data)
        buffer = self._buffer + data if self._buffer else data
        while (end := buffer.find(END, max(0, self._seen - 3))) >= 0:
            end += len(END)
            parser = new_parser()
            head = parser.head(_status_line(buffer, end))
            if head.version != "1.1" or head.status == 101:  # noqa: PLR2004 - Switching Protocols
                _check_head(head)
            buffer, self._seen = buffer[end:], 0
            if head.status >= 200:  # noqa: PLR2004 - else it is an interim one
                self._buffer = b""
                self._begin(head, parser, buffer)
                return
        _status_line(buffer, 0)
        if _BARE.search(buffer, self._seen):
            raise Malformed("illegal line end")
        self._buffer, self._seen = buffer, len(buffer)

    def _begin(self, head: Head, parser: Parser, rest: bytes) -> None:
        """Decides on the framing of the body."""
        headers = self.headers = dict(head.headers)
        if len(headers) < len(head.headers):
            _check_repeated(head.headers)
        coded, length = headers.get("transfer-encoding"), headers.get("content-length")
        empty = head.status in _NO_BODY or self._method == "HEAD" or (self._method == "CONNECT" and head.status in SUCCESS)
        if self._method != "CONNECT" or not empty:  # which is said to have none, whatever it says
            _check_framing(head, coded, length)
        self.status = head.status
        encoding = headers.get("content-encoding", "identity").lower()
        if encoding != "identity":
            named = encoding if encoding in _ENCODINGS else "an unknown"
            raise BadReply(f"{self._origin} answered with {named} encoding, though asked not to: unread")
        self.reusable = head.version == "1.1"
        if "connection" in headers:
            said = [value for name, value in head.headers if name == "connection"]
            self.reusable &= not any("close" in _words(value) for value in said)
        if empty:
            self._left = 0
        elif length is not None:
            self._left = int(length)
            if self._left > self._limit:
                self._check(self._left)
        else:
            self._beyond -= len(rest)  # the body is counted by itself
            if coded is not None:
                self._parser = parser
            else:
                self.reusable = False  # it ends with the connection
        if not self.unread and (rest or self._left == 0):
            self._feed_body(rest)

    def _feed_body(self, data: bytes) -> None:
        left = self._left
        if left is not None:
            if not data and left:
                raise Malformed(_INCOMPLETE)
            if len(data) > left:
                data, self.reusable, self.surplus = data[:left], False, True
            self._left = left - len(data)
            self.ended = self._left == 0
            if data:
                self.pieces.append(data)
            return
        if self._parser is None:
            self.ended = not data
            self._add([data] if data else [])
            return
        if not data:
            raise Malformed(_INCOMPLETE)
        self._beyond += len(data)
        self._add(self._parser.chunked(data))
        if self._parser.wrong and not self.ended:
            raise Malformed(self._parser.wrong)
        if self._parser.ended:
            self.ended, self.surplus = True, self._parser.surplus
            self.reusable &= not self.surplus

    def _add(self, pieces: list[bytes]) -> None:
        size = sum(map(len, pieces))
        if self._parser is not None:
            self._beyond -= size + size / BODY_EACH
        self._size += size
        self.pieces += pieces
        self._check(self._size)

    def _check(self, size: int) -> None:
        if size > self._limit:
            self.leave(BadReply(f"{self._origin} answered more than {self._limit} bytes, the most that is expected (max_reply)"))

    def leave(self, error: BadReply) -> None:
        """Gives the rest of the body up for that reason.

        Raises:
            BadReply: the reply is a success.
        """
        if self.status in SUCCESS or not self.status:
            raise error
        self.unread = self.ended = True
        self.reusable = False
        self.pieces.clear()

    def take(self) -> bytes:
        """Removes and returns the body that has come since."""
        pieces = self.pieces
        if not pieces:
            return b""
        self.pieces = []
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)


def _status_line(data: bytes, end: int) -> bytes:
    """The head, up to `end`, once it is seen to begin as one: a parser might take another protocol's."""
    if not data.startswith(b"HTTP/1.") and data[:7] != b"HTTP/1."[: len(data)]:
        raise Malformed("illegal status line")
    return data[:end]


def _check_head(head: Head) -> None:
    if head.version not in {"1.0", "1.1"}:
        raise Malformed("illegal status line (another version of HTTP)")
    if head.status == 101:  # noqa: PLR2004 - Switching Protocols
        raise Malformed("switched protocols, unasked")


def _check_repeated(headers: list[tuple[str, str]]) -> None:
    names = [name for name, _ in headers]
    if names.count("content-length") > 1 or names.count("transfer-encoding") > 1:
        raise Malformed("illegal reply (several lengths or codings)")


def _check_framing(head: Head, coded: str | None, length: str | None) -> None:
    if coded is not None and (length is not None or coded.lower() != "chunked" or head.version != "1.1"):
        raise Malformed("illegal reply (a transfer coding beside a length, or an unknown one)")
    if length is not None and not _LENGTH.fullmatch(length):
        raise Malformed("illegal reply (a length that is none)")


def _words(value: str) -> set[str]:
    return {word.strip(" \t").lower() for word in value.split(",")}
