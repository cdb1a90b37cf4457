"""HTTP connections for threads: sends a call and returns its reply, within limits of time and size."""

from __future__ import annotations

import contextlib
import socket
import weakref
from collections.abc import Iterator, Mapping
from time import monotonic
from typing import Any, TypeVar

from edgeroute.cloud.base import Address, Call, Reply
from edgeroute.cloud.sockets import BlockingSockets, Poll, send_some
from edgeroute.cloud.tls import RECORD, Steps
from edgeroute.cloud.wire import KEEP_S, Line, Wire
from edgeroute.core.walk import new
from edgeroute.errors import CloudError, Unreachable
from edgeroute.http1.parsers import Malformed
from edgeroute.http1.reading import Reading
from edgeroute.system import renew_after_fork
from edgeroute.types import StopToken

T = TypeVar("T")


class Connections:
    """Keep-alive connections to one address, for threads.

    Each call has a connection to itself: it can be cancelled, by shutting its socket down, without affecting others. There is
    no lock: a list's `append` and `pop` are atomic, in threads, in signal handlers and across a fork.
    """

    keeps_time = True
    """`send` ends by its instant, whatever the server does."""

    def __init__(self, address: Address) -> None:
        self._wire = Wire(address)
        self._idle: list[_Connection] = []
        self._all: weakref.WeakSet[_Connection] = weakref.WeakSet()
        self._closed = False
        weakref.finalize(self, _close_all, self._idle)  # a router that is dropped unclosed leaks no socket
        renew_after_fork(self)

    def after_fork(self) -> None:
        """Drops the parent's connections: closing the child's copies sends nothing, and leaves the parent's open."""
        self._idle.clear()
        for channel in list(self._all):
            channel.close()

    def send(self, call: Call, until: float, cancel: StopToken | None = None) -> Reply:
        """Sends the call and returns the reply, by the instant `until`.

        Raises:
            CloudError: there is no reply in time, or no valid one.
        """
        channel = self._take(cancel)
        kept = False
        try:
            reading = channel.begin(call, until, cancel)
            while not reading.ended:
                channel.more(reading)
            reply = new(Reply, (reading.status, reading.headers, reading.take()))
            kept = self._done(channel, reading, cancel)
            return reply
        finally:
            if not kept:
                channel.close()

    @contextlib.contextmanager
    def open(self, call: Call, until: float, cancel: StopToken | None = None) -> Iterator[Response]:
        """Sends the call, and gives the reply once its head has come, by the instant `until`: its body is read piece by piece.

        Leaving before the end of the body closes the connection.

        Raises:
            CloudError: as `send`; also while the body is read.
        """
        channel = self._take(cancel)
        kept = False
        try:
            reading = channel.begin(call, until, cancel)
            yield Response(channel, reading)
            kept = self._done(channel, reading, cancel)
        finally:
            if not kept:
                channel.close()

    def _take(self, cancel: StopToken | None) -> _Connection:
        if cancel is not None and cancel.asked:
            raise Unreachable(f"{self._wire.address.origin} was not asked: its answer is not needed any more")
        try:
            return self._idle.pop()
        except IndexError:
            channel = _Connection(self._wire)
            self._all.add(channel)
            return channel

    def _done(self, channel: _Connection, reading: Reading, cancel: StopToken | None) -> bool:
        """Keeps a connection after a call, if it may be used again. Returns whether it is."""
        if cancel is not None:
            cancel.on_ask(None)
        if not channel.clean(reading) or (cancel is not None and cancel.asked):
            return False
        self._idle.append(channel)
        if self._closed:
            _close_all(self._idle)
        return True

    def close(self) -> None:
        """Closes idle connections now, and those in use when they become idle."""
        self._closed = True
        _close_all(self._idle)


def _close_all(idle: list[_Connection]) -> None:
    with contextlib.suppress(IndexError):  # another thread may take the last
        while True:
            idle.pop().close()


class Response:
    """A reply whose head has come.

    Attributes:
        status: of HTTP.
        headers: names are lower case.
    """

    __slots__ = ("_channel", "_reading", "headers", "status")

    def __init__(self, channel: _Connection, reading: Reading) -> None:
        self._channel, self._reading = channel, reading
        self.status: int = reading.status
        self.headers: Mapping[str, str] = reading.headers

    @property
    def until(self) -> float:
        """The instant by which the next piece must come; to be set anew for each, if it is a limit between pieces."""
        return self._channel.sockets.until

    @until.setter
    def until(self, until: float) -> None:
        self._channel.sockets.until = until

    def __iter__(self) -> Iterator[bytes]:
        """The body as it comes, no more than `Call.max_reply` bytes; of an error that is longer, a part.

        Raises:
            CloudError: the next piece is not there in time, the connection breaks, or a success is too long.
        """
        reading = self._reading
        while True:
            if piece := reading.take():
                yield piece
            elif reading.ended:
                return
            else:
                self._channel.more(reading)


class _Connection:
    """One connection, opened at its first call, and again when the server has closed it."""

    def __init__(self, wire: Wire) -> None:
        self._wire, self.sockets = wire, BlockingSockets(wire.address.origin)
        self._line: Line | None = None
        self._sock: socket.socket | None = None
        self._poll: Poll | None = None
        self._idle_since = 0.0

    def begin(self, call: Call, until: float, cancel: StopToken | None) -> Reading:
        """Sends a call, and reads until its reply's head has come."""
        if until <= (now := monotonic()):
            raise self._wire.not_asked()
        self.sockets.begin(until, cancel)
        line, reading = self._line, self._wire.reading(call)
        if line is None or self._poll is None or now - self._idle_since > KEEP_S or self._poll.readable():
            line = self._renewed()
        failed: CloudError
        try:
            if not line.opened:
                self._sock = sock = self.sockets.connect(*line.there)
                self._poll = Poll(sock)
                self._pump(line.open(), "accept a connection", "accept a connection")
            self._pump(line.ask(call, reading), "take the request", "answer")
        except CloudError:
            raise
        except (OSError, Malformed) as e:
            failed = self._failed(e, reading)
        else:
            return reading
        raise failed

    def _renewed(self) -> Line:
        self.sockets.close()
        self._sock = self._poll = None
        self._line = line = Line(self._wire)
        return line

    def more(self, reading: Reading) -> None:
        """Reads on in the body."""
        failed: CloudError
        assert self._line is not None
        try:
            self._pump(self._line.more(reading), "finish its answer", "finish its answer")
        except CloudError:
            raise
        except (OSError, Malformed) as e:
            failed = self._failed(e, reading)
        else:
            return
        raise failed

    def _failed(self, e: Exception, reading: Reading) -> CloudError:
        line = self._line
        assert line is not None
        error = self._wire.error(e, opened=line.opened, stale=line.served and not reading.heard)
        error.__cause__ = e
        return error

    def clean(self, reading: Reading) -> bool:
        """Whether it may be used again, after this reply."""
        self._idle_since = monotonic()
        return self._line is not None and self._line.clean(reading)

    def close(self) -> None:
        """Closes its sockets. It can be used again."""
        self._line = self._sock = self._poll = None
        self.sockets.close()

    def _pump(self, steps: Steps[T], sending: str, receiving: str) -> T:
        """Sends and receives what the steps ask for. The strings say what the server is to do meanwhile."""
        try:
            step = next(steps)
            while True:
                came: Any
                try:
                    came = self._receive(step, receiving) if isinstance(step, int) else self._send(step, sending)
                except CloudError:
                    raise
                except OSError as e:
                    step = steps.throw(e)
                    continue
                step = steps.send(came)
        except StopIteration as end:
            return end.value  # type: ignore[no-any-return]

    def _receive(self, most: int, doing: str) -> bytes:
        sock, poll, sockets = self._sock, self._poll, self.sockets
        assert sock is not None
        assert poll is not None
        while True:
            left_s = sockets.until - monotonic()
            if left_s <= 0:
                sockets.late(doing)
            if poll.readable(left_s):
                try:
                    return sock.recv(most)
                except BlockingIOError:  # the system took it back
                    pass

    def _send(self, parts: list[memoryview], doing: str) -> tuple[int, bytes | None]:
        """Sends some. Returns how many bytes, and what came instead, if nothing could be sent."""
        sock, poll = self._sock, self._poll
        assert sock is not None
        assert poll is not None
        while True:
            try:
                return send_some(sock, parts), None
            except BlockingIOError:
                pass
            if poll.either(self.sockets.left_s(doing)):
                try:
                    return 0, sock.recv(RECORD)
                except BlockingIOError:
                    pass
