"""Parsing of HTTP/1.1 replies without I/O: strict, and within bounds.

Anything by which two readers of one connection could disagree, so that a part of one reply passes for another, is refused: a
length beside chunks, several lengths, other codings, continued lines, bare line ends.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import lru_cache, partial
from types import SimpleNamespace
from typing import Any, NamedTuple

from edgeroute.errors import BadReply

# Parsers of HTTP/1.1 replies: httptools (llhttp) in its strict mode, or h11 where there is no wheel of it.
#
# Each parses a whole head (`head`, of data that ends with `END`), and then the chunks of a chunked body (`parse_chunks`).
# `ended`: the last chunk and the trailers have come. `surplus`: bytes have come after the trailers. `wrong`: the fault in the
# chunks, after the parts that `parse_chunks` returned last; empty: none. `Reading` decides about the body's framing for both.

HAVE_LLHTTP = True  # True if httptools is installed
try:
    import httptools
except ImportError:
    HAVE_LLHTTP = False
    import h11

END = b"\r\n\r\n"  # end of a head, also of an interim reply's, and of the trailers
_BEGUN, _HEADED, _ENDED = "begun", "headed", "ended"
HEADS = 16  # parsed heads that are kept: a server's are alike, and each takes a parser of its own


class Malformed(Exception):
    """Received bytes are no HTTP/1.1. The message quotes none of them."""


class Head(NamedTuple):
    """Status line and headers of a reply."""

    status: int
    headers: Mapping[str, str]  # values by lower-case name
    length: int | None  # bytes of the body; None: none is given
    chunked: bool
    keeps: bool  # True if the server keeps the connection open
    fault: str  # why the framing of the body is ambiguous; empty: it is not


class Llhttp:
    """Parser on httptools. Its callbacks are C functions: in Python ones, an exception of a signal handler would be lost."""

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

    def head(self, data: bytes) -> tuple[str, int]:
        """Parse a whole head, with a new parser. Return version and status; raise Malformed if the data is none."""
        events, wrong = self._feed(data)
        if wrong or events[:2] != [_BEGUN, _HEADED] or events[2:] not in ([], [_ENDED]):
            raise Malformed(wrong or "illegal head of a reply")
        return self._parser.get_http_version(), self._parser.get_status_code()

    def parse_chunks(self, data: bytes) -> list[bytes]:
        """Parse more of a chunked body, and return the parts of the body in it; sets `ended`, `surplus` and `wrong`.

        A fault after the end is `surplus`.
        """
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
        """Feed the parser. Return its events, parts of the body among them, and a message about its fault; empty: none.

        The message is of llhttp's fixed set of texts. Never raises for the data.
        """
        events, wrong = self._events, ""
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as e:
            wrong = f"illegal reply ({str(e)[:60].lower()})"
        happened = events[:]
        events.clear()
        return happened, wrong


class H11:
    """Parser on h11."""

    __slots__ = ("_connection", "ended", "surplus", "wrong")

    def __init__(self) -> None:
        self._connection = h11.Connection(h11.CLIENT)
        self._connection.send(h11.Request(method="GET", target="/", headers=[("Host", "-")]))
        self._connection.send(h11.EndOfMessage())
        self.ended = self.surplus = False
        self.wrong = ""

    def head(self, data: bytes) -> tuple[str, int]:
        """Parse a head. Return version and status; raise Malformed if the data is none, or against the strict rules."""
        if _NOT_STRICT.search(data):
            raise Malformed("illegal line end, continued line or control character")
        event = self._next(data)
        if not isinstance(event, h11.Response | h11.InformationalResponse):
            raise Malformed("illegal head of a reply")
        return event.http_version.decode(), event.status_code

    def parse_chunks(self, data: bytes) -> list[bytes]:
        """Parse more of a chunked body, and return the parts of the body in it; sets `ended`, `surplus` and `wrong`.

        Never raises. A fault is stored in `wrong`, with the parts before it returned.
        """
        parts: list[bytes] = []
        try:
            event = self._next(data)
            while isinstance(event, h11.Data):
                parts.append(bytes(event.data))
                event = self._next(b"")
        except Malformed as e:
            self.wrong = str(e)
            return parts
        if isinstance(event, h11.EndOfMessage):
            self.ended = True
            self.surplus = bool(self._connection.trailing_data[0])
        return parts

    def _next(self, data: bytes) -> Any:
        """Feed bytes to h11, if any, and return its next event; raise Malformed, without its text, which may quote them."""
        try:
            if data:
                self._connection.receive_data(data)
            return self._connection.next_event()
        except h11.RemoteProtocolError:
            pass  # its message may quote what came
        raise Malformed("illegal reply")


@lru_cache(maxsize=HEADS)
def parse_head(parser: type[Llhttp | H11], data: bytes) -> Head:
    """Return a parsed head; cached, as a server's heads are alike.

    An ambiguous framing of the body is no error here but `Head.fault`.

    Raises:
        Malformed: the data is no head, of another version of HTTP than 1.0 and 1.1, a switch of protocols, or has several lengths
            or codings.
    """
    _check_start(data)
    if data[9:12] == b"101":  # asked here: each parser has an error of its own for it
        raise Malformed("switched protocols, unasked")
    version, status = parser().head(data)
    if version not in {"1.0", "1.1"}:
        raise Malformed("illegal status line (another version of HTTP)")
    lines = [line.partition(":") for line in data.decode("latin-1").split("\r\n")[1:-2]]
    values = [(name.lower(), value.strip(" \t")) for name, _, value in lines]  # h11's own list lacks repeated ones
    names = [name for name, _ in values]
    if names.count("content-length") > 1 or names.count("transfer-encoding") > 1:
        raise Malformed("illegal reply (several lengths or codings)")
    headers, fault = dict(values), ""
    coded, length = headers.get("transfer-encoding"), headers.get("content-length")
    if coded is not None and (length is not None or coded.lower() != "chunked" or version != "1.1"):
        fault = "illegal reply (a transfer coding beside a length, or an unknown one)"
    elif length is not None and not _LENGTH.fullmatch(length):
        fault = "illegal reply (an invalid length)"
    size = None if fault or length is None else int(length)
    words = [word.strip(" \t").lower() for name, value in values if name == "connection" for word in value.split(",")]
    return Head(status, headers, size, coded is not None, version == "1.1" and "close" not in words, fault)


# Bare line ends, continued lines and control characters, which h11 accepts.
_NOT_STRICT = re.compile(rb"(?<!\r)\n|\r(?!\n)|\r\n[ \t]|[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")
new_parser: type[Llhttp | H11] = Llhttp if HAVE_LLHTTP else H11  # parser class in use


SUCCESS = range(200, 300)  # HTTP statuses of a success
EARLY = 1 << 16  # maximum bytes read while a request is being sent
FRAMING = 1 << 16  # maximum bytes beside the body (heads, chunk sizes, trailers); the body's size divided by `BODY_EACH` is added
BODY_EACH = 8
READ_LEAST, READ_MOST = 1 << 12, 1 << 16
# Maximum bytes to receive at a time of a body of known length; of others `CHUNKS_MOST`, since they take longer to parse.
PIECE_MOST = 1 << 18
CHUNKS_MOST = 1 << 14
_LENGTH = re.compile("[0-9]{1,18}")
_BARE = re.compile(rb"(?<!\r)\n")
_ENCODINGS = {"gzip", "br", "deflate", "zstd"}
_NO_BODY = {204, 304}
_INCOMPLETE = "disconnected within its reply, which is incomplete"


class Early:
    """Bytes received while a request was being sent: an error reply (413, say), or interim replies (1xx)."""

    def __init__(self) -> None:
        self.data = b""
        self._last_begin = 0  # index at which the last reply begins

    def heard(self, data: bytes) -> bool:
        """Append bytes received while the request is being sent; empty: the end. Return True if no more is to be sent.

        That is so at the end, once the final reply has begun (interim ones, 1xx, are passed over), or with more than `EARLY`
        bytes.
        """
        self.data += data
        if not data or len(self.data) > EARLY:
            return True
        while len(reply := self.data[self._last_begin :]) >= len("HTTP/1.1 100"):
            if reply[:5] != b"HTTP/" or reply[9:10] != b"1":
                return True
            if (end := reply.find(END)) < 0:
                return False
            self._last_begin += end + len(END)
        return not b"HTTP/".startswith(reply[:5])


class Reading:
    """Parser of one reply, fed with received bytes: collects its head, and then the pieces of its body, within bounds.

    An error reply that is too long is left unread; a success that is too long raises.

    Args:
        origin: address of the server, for messages.
        method: of the request.
        limit: maximum bytes of the body.
    """

    __slots__ = (
        "_beyond", "_buffer", "_left", "_limit", "_method", "_origin", "_parser", "_seen", "_size", "ended", "headers",
        "heard", "pieces", "reusable", "status", "surplus", "unread",
    )  # fmt: skip

    def __init__(self, origin: str, method: str, limit: int) -> None:
        self._origin, self._method, self._limit = origin, method, limit
        self._buffer, self._seen, self._beyond, self._size = b"", 0, float(-FRAMING), 0
        self._parser: Llhttp | H11 | None = None
        self._left: int | None = None
        self.heard = False  # True if any bytes have come
        self.status = 0  # HTTP status; 0: the head has not come yet
        self.headers: dict[str, str] = {}  # values by lower-case name
        self.pieces: list[bytes] = []  # received pieces of the body; `take` removes them
        self.ended = False
        # True if the connection may be used again after the reply: no bytes are left over, and the server keeps it open.
        self.reusable = False
        self.surplus = False  # True if bytes have come after the reply
        self.unread = False  # True if the rest of the body was left unread

    @property
    def most(self) -> int:
        """Maximum bytes to receive next: what is left of a body of known length, else as many as the bounds of framing allow.

        Raises:
            BadReply: the reply has too many bytes beside its body.
        """
        if self._left is not None:
            return min(self._left, PIECE_MOST)
        if self._beyond > 0:
            raise BadReply(f"{self._origin} answered with more framing than content: unread")
        return min(CHUNKS_MOST if self.status else READ_MOST, max(READ_LEAST, int(-self._beyond)))

    def feed(self, data: bytes) -> None:
        """Parse received bytes, empty at the end of the connection; adds to `pieces`, and sets the attributes.

        Raises:
            Malformed: the bytes are no HTTP/1.1, or the reply ends too early.
            BadReply: the reply has a content encoding, or is a success longer than the limit.
        """
        if data:
            self.heard = True
        if not self.status:
            self._feed_head(data)
        else:
            self._feed_body(data)

    def _feed_head(self, data: bytes) -> None:
        """Parse bytes until the final reply's head is complete, passing over interim ones; then begin its body (see `_begin`).

        Bytes of an incomplete head are stored. Raise Malformed for what cannot be one, and at the end of the connection.
        """
        if not data:
            raise Malformed(_INCOMPLETE if self.heard else "disconnected without sending a reply")
        self._beyond += len(data)
        buffer = self._buffer + data if self._buffer else data
        while (end := buffer.find(END, max(0, self._seen - 3))) >= 0:
            end += len(END)
            head = parse_head(new_parser, data := buffer[:end])  # type: ignore[arg-type]  # a class is hashable
            buffer, self._seen = buffer[end:], 0
            if head.status >= 200:  # noqa: PLR2004 - else it is an interim one
                self._buffer = b""
                self._begin(head, data, buffer)
                return
        _check_start(buffer)
        if _BARE.search(buffer, self._seen):
            raise Malformed("illegal line end")
        self._buffer, self._seen = buffer, len(buffer)

    def _begin(self, head: Head, data: bytes, rest: bytes) -> None:
        """Set status, headers and the framing of the body by the final head, `data`, and parse the bytes after it.

        The body of an error reply whose length exceeds the limit is left unread.

        Raises:
            Malformed: the framing is ambiguous.
            BadReply: the reply has a content encoding, or is a success longer than the limit.
        """
        empty = head.status in _NO_BODY or self._method == "HEAD" or (self._method == "CONNECT" and head.status in SUCCESS)
        if head.fault and (self._method != "CONNECT" or not empty):  # which is said to have none, whatever it says
            raise Malformed(head.fault)
        self.status, self.headers = head.status, dict(head.headers)
        encoding = self.headers.get("content-encoding", "identity").lower()
        if encoding != "identity":
            encoding_text = encoding if encoding in _ENCODINGS else "an unknown"
            raise BadReply(f"{self._origin} answered with {encoding_text} encoding, though asked not to: unread")
        self.reusable = head.keeps
        if empty:
            self._left = 0
        elif head.length is not None:
            self._left = head.length
            if self._left > self._limit:
                self._check(self._left)
        else:
            self._beyond -= len(rest)  # the body is counted by itself
            if head.chunked:
                self._parser = new_parser()
                self._parser.head(data)
            else:
                self.reusable = False  # it ends with the connection
        if not self.unread and (rest or self._left == 0):
            self._feed_body(rest)

    def _feed_body(self, data: bytes) -> None:
        """Parse bytes of the body by its framing: a length, chunks, or until the connection ends.

        Bytes behind its end are dropped, and the connection is not reused. Raises Malformed, also at an end that comes too early.
        """
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
        self._add(self._parser.parse_chunks(data))
        if self._parser.wrong and not self.ended:
            raise Malformed(self._parser.wrong)
        if self._parser.ended:
            self.ended, self.surplus = True, self._parser.surplus
            self.reusable &= not self.surplus

    def _add(self, pieces: list[bytes]) -> None:
        """Add pieces to the body, and count them. Beyond the limit raise BadReply for a success, else leave the rest unread."""
        size = sum(map(len, pieces))
        if self._parser is not None:
            self._beyond -= size + size / BODY_EACH
        self._size += size
        self.pieces += pieces
        self._check(self._size)

    def _check(self, size: int) -> None:
        """Raise BadReply if the size of a success's body exceeds the limit; leave an error reply's rest unread."""
        if size > self._limit:
            self.leave(BadReply(f"{self._origin} answered more than {self._limit} bytes: raise max_reply, or ask for less"))

    def leave(self, error: BadReply) -> None:
        """Leave the rest of an error reply unread: ends the reply, drops its pieces; the connection is not reused.

        Args:
            error: raised in place of that if the reply is a success, or has no head yet.
        """
        if self.status in SUCCESS or not self.status:
            raise error
        self.unread = self.ended = True
        self.reusable = False
        self.pieces.clear()

    def take(self) -> bytes:
        """Remove and return the pieces of the body that have come since the last call, joined; b"" if there are none."""
        pieces, self.pieces = self.pieces, []
        return b"".join(pieces)  # the only one is not copied


def _check_start(data: bytes) -> None:
    """Raise Malformed if the data does not begin like a status line; a parser might accept another protocol's."""
    if not data.startswith(b"HTTP/1.") and data[:7] != b"HTTP/1."[: len(data)]:
        raise Malformed("illegal status line")
