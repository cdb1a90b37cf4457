"""HTTP connections for threads: sends a call and returns its reply, within limits of time and size."""

from __future__ import annotations

import contextlib
import errno
import os
import select
import selectors
import socket
import sys
import threading
import weakref
from collections import deque
from collections.abc import Iterator, Mapping
from math import ceil
from time import monotonic
from typing import Any, NoReturn, TypeVar

from edgeroute.core.policy import INF
from edgeroute.core.walk import new
from edgeroute.errors import CloudError, TimedOut, Unreachable
from edgeroute.http.messages import Address, Call, Reply
from edgeroute.http.reading import Malformed, Reading
from edgeroute.http.resolver import RESOLVER, SocketAddress
from edgeroute.http.wire import KEEP_S, RECORD, Line, Steps, Wire
from edgeroute.system.forks import ForkSafe, per_process, per_process_of
from edgeroute.types import StopToken

# Sockets of one connection: opened within the time limit, shut down from another thread, always closed.

STAGGER_S = 0.25
"""Delay before the next address is tried in parallel, seconds (RFC 8305, happy eyeballs)."""
POLL_S = 1.0
"""Longest single wait, seconds: a signal that comes just before one is heard after it."""
MOST_MS = round(POLL_S * 1000)
_UNDER_WAY = {errno.EINPROGRESS, errno.EWOULDBLOCK, errno.EAGAIN}
_Selector: Any = getattr(selectors, "PollSelector", selectors.SelectSelector)


class Sockets:
    """Owns the sockets: however and wherever a call is interrupted, `close` leaves none open."""

    def __init__(self, origin: str) -> None:
        self.origin = origin
        self._sockets: list[socket.socket] = []

    def open(self, family: int) -> socket.socket:
        """Creates a non-blocking socket."""
        self._sockets.append(sock := socket.socket(family, socket.SOCK_STREAM))
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return sock

    def adopt(self, sock: socket.socket) -> None:
        """Takes ownership of a socket."""
        self._sockets.append(sock)

    def keep_only(self, sock: socket.socket) -> None:
        """Closes all others."""
        for other in tuple(self._sockets):
            if other is not sock:
                self.drop(other)

    def drop(self, sock: socket.socket) -> None:
        """Closes one socket."""
        sock.close()
        with contextlib.suppress(ValueError):
            self._sockets.remove(sock)

    def close(self) -> None:
        """Closes all."""
        for sock in tuple(self._sockets):
            self.drop(sock)

    def __del__(self) -> None:
        for sock in getattr(self, "_sockets", ()):  # one whose construction was interrupted has none
            sock.close()


class BlockingSockets(Sockets):
    """Sockets of one thread at a time. Each step is limited by the time left: a limit per step would restart with each byte."""

    def __init__(self, origin: str) -> None:
        super().__init__(origin)
        self.until = INF
        """The instant by which the next step must be done."""
        self._cancel: StopToken | None = None
        self._woken = threading.Event()

    def begin(self, until: float, cancel: StopToken | None) -> None:
        """Begins a call that must end by `until`, and may be cancelled."""
        self.until, self._cancel = until, cancel
        if cancel is not None:
            cancel.on_ask(self.cut)

    def left_s(self, doing: str) -> float | None:
        """Seconds left for the next step; None: no limit."""
        if self.until == INF:
            return None
        left_s = self.until - monotonic()
        if left_s <= 0:
            self.late(doing)
        return left_s

    def late(self, doing: str) -> NoReturn:
        """Raises, as no time is left."""
        raise TimedOut(f"{self.origin} did not {doing} in time")

    def cut(self) -> None:
        """Shuts the call down, from another thread."""
        for sock in tuple(self._sockets):
            with contextlib.suppress(OSError):  # not ssl's own shutdown: after it data would be sent unencrypted
                socket.socket.shutdown(sock, socket.SHUT_RDWR)
        self._woken.set()

    def check(self) -> None:
        """Raises if the call was cancelled. Called after each new socket, which `cut` may have missed."""
        if self._cancel is not None and self._cancel.asked:
            raise ConnectionAbortedError("its answer is not needed any more")

    def connect(self, host: str, port: int) -> socket.socket:
        """Connects to the first address that accepts (RFC 8305): the next is tried once one fails, or after `STAGGER_S`."""
        waiting = deque(self._look_up(host, port))
        errors: list[OSError] = []
        next_at = 0.0
        selector = _Selector()
        pending = selector.get_map()
        while waiting or pending:
            now = monotonic()
            if waiting and (now >= next_at or not pending):
                next_at = now + STAGGER_S
                try:
                    selector.register(self._connecting(waiting.popleft()), selectors.EVENT_WRITE)
                except OSError as e:
                    errors.append(e)
                    continue
            self.check()
            left_s = min(self.left_s("accept a connection") or POLL_S, POLL_S)
            for key, _ in selector.select(min(left_s, next_at - now) if waiting else left_s):
                self.check()  # a socket that was shut down is ready as well
                sock: socket.socket = key.fileobj
                code = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
                if not code:
                    self.keep_only(sock)
                    return sock
                errors.append(refused(code))
                selector.unregister(sock)
                self.drop(sock)
                next_at = 0.0
        raise errors[0] if errors else OSError(f"{host} has no address")

    def _connecting(self, there: SocketAddress) -> socket.socket:
        sock = self.open(there.family)
        code = sock.connect_ex(there.address)
        if code and code not in _UNDER_WAY:
            self.drop(sock)
            raise refused(code)
        return sock

    def _look_up(self, host: str, port: int) -> list[SocketAddress]:
        lookup, woken = RESOLVER.find(host, port), self._woken
        woken.clear()
        lookup.add(woken.set)
        try:
            while not lookup.done and (patience_s := lookup.patience_s()) > 0:
                self.check()
                woken.wait(min(self.left_s("have its name looked up") or POLL_S, POLL_S, patience_s))
        finally:
            lookup.discard(woken.set)
        return lookup.addresses()


def refused(code: int | None) -> OSError:
    """The error of this number, in the system's words."""
    words: dict[int, str] = getattr(socket, "errorTab", {})  # Windows', whose own function does not know those of sockets
    code = code or 0
    return OSError(code, words.get(code) or os.strerror(code))


class Poll:
    """Waits for one socket. It stays registered: a call waits a few times."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        if sys.platform != "win32":
            self._poll = select.poll()
            self._poll.register(sock, select.POLLIN)

    def readable(self, left_s: float = 0) -> bool:
        """Whether data, or the end of the stream, can be read without blocking, within that time or `POLL_S`."""
        if sys.platform == "win32":
            return bool(select.select([self._sock], [], [], min(left_s, POLL_S))[0])
        return bool(self._poll.poll(left_s * 1000 if left_s <= POLL_S else MOST_MS))

    def either(self, left_s: float | None) -> bool:
        """Waits until more can be sent, or something has come, or for that time. Returns whether something has come."""
        if sys.platform == "win32":
            return bool(select.select([self._sock], [self._sock], [], left_s)[0])
        self._poll.modify(self._sock, select.POLLIN | select.POLLOUT)
        try:
            found = self._poll.poll(_ms(left_s))
        finally:
            self._poll.modify(self._sock, select.POLLIN)
        return bool(found) and bool(found[0][1] & ~select.POLLOUT)


def _ms(left_s: float | None) -> int:
    return MOST_MS if left_s is None or left_s > POLL_S else ceil(left_s * 1000)


def send_some(sock: socket.socket, parts: list[memoryview]) -> int:
    """Sends what fits without blocking. Returns how many bytes.

    Raises:
        BlockingIOError: none.
    """
    if sys.platform != "win32" and len(parts) > 1:
        return sock.sendmsg(parts)
    return sock.send(parts[0])


class Connection:
    """Base of a connection, opened at its first call, and again when the server has closed it.

    Args:
        wire: of the address.
        sockets: its own.
    """

    def __init__(self, wire: Wire, sockets: Any) -> None:
        self._wire, self.sockets = wire, sockets
        self._line: Line | None = None
        self._sock: socket.socket | None = None
        self._poll: Poll | None = None
        self._idle_since = 0.0

    def _usable_line(self) -> Line:
        """Return the line if the server keeps it open, or close it and make a new one."""
        line = self._line
        if line is None or self._poll is None or monotonic() - self._idle_since > KEEP_S or self._poll.readable():
            self.close()
            self._line = line = Line(self._wire)
        return line

    def _failed(self, e: Exception, reading: Reading) -> CloudError:
        line = self._line
        assert line is not None
        return self._wire.error(e, opened=line.opened, stale=line.served and not reading.heard)

    def clean(self, reading: Reading) -> bool:
        """Return True if the connection may be used again after this reply."""
        self._idle_since = monotonic()
        return self._line is not None and self._line.clean(reading)

    def close(self) -> None:
        """Close the sockets. The connection can be used again."""
        self._line = self._sock = self._poll = None
        self.sockets.close()


class ResponseHead:
    """Reply whose head has come; its body is read piece by piece.

    Attributes:
        status: of HTTP.
        headers: names are lower case.
    """

    __slots__ = ("_channel", "_reading", "headers", "status")

    def __init__(self, channel: Any, reading: Reading) -> None:
        self._channel, self._reading = channel, reading
        self.status: int = reading.status
        self.headers: Mapping[str, str] = reading.headers

    @property
    def until(self) -> float:
        """The instant by which the next piece must come; to be set anew for each, if it is a limit between pieces."""
        return self._channel.sockets.until  # type: ignore[no-any-return]

    @until.setter
    def until(self, until: float) -> None:
        self._channel.sockets.until = until


T = TypeVar("T")


class Connections(ForkSafe):
    """Keep-alive connections to one address, for threads.

    Each call has a connection to itself: it can be cancelled, by shutting its socket down, without affecting others. There is
    no lock: a list's `append` and `pop` are atomic, in threads, in signal handlers and across a fork.
    """

    _all: weakref.WeakSet[_Connection] = per_process(weakref.WeakSet, lambda parents: _close_all([*parents]))
    """A child closes its parent's connections: closing its copies sends nothing, and leaves the parent's open."""
    _idle: list[_Connection] = per_process_of(lambda self: _closed_at_end(self), list.clear)  # noqa: PLW0108 - it is defined below

    keeps_time = True
    """`send` ends by its instant, whatever the server does."""

    def __init__(self, address: Address) -> None:
        self._wire = Wire(address)
        self._closed = False

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
            channel = _Connection(self._wire, BlockingSockets(self._wire.address.origin))
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


def _closed_at_end(connections: Connections) -> list[_Connection]:
    """Return a list whose connections are closed as these are dropped: a router that is dropped unclosed leaks no socket."""
    idle: list[_Connection] = []
    weakref.finalize(connections, _close_all, idle)
    return idle


def _close_all(idle: list[_Connection]) -> None:
    with contextlib.suppress(IndexError):  # another thread may take the last
        while True:
            idle.pop().close()


class Response(ResponseHead):
    """Reply whose head has come, for `for`."""

    __slots__ = ()

    def __iter__(self) -> Iterator[bytes]:
        """Yield the body as it comes, no more than `Call.max_reply` bytes; of an error that is longer, a part.

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


class _Connection(Connection):
    """Connection for threads."""

    sockets: BlockingSockets

    def begin(self, call: Call, until: float, cancel: StopToken | None) -> Reading:
        """Send a call, and read until its reply's head has come."""
        if until <= monotonic():
            raise self._wire.not_asked()
        self.sockets.begin(until, cancel)
        line, reading = self._usable_line(), self._wire.reading(call)
        try:
            if not line.opened:
                self._sock = sock = self.sockets.connect(*line.there)
                self._poll = Poll(sock)
                self._pump(line.open(), "accept a connection", "accept a connection")
            self._pump(line.ask(call, reading), "take the request", "answer")
        except CloudError:
            raise
        except (OSError, Malformed) as e:
            raise self._failed(e, reading) from e
        return reading

    def more(self, reading: Reading) -> None:
        """Read on in the body."""
        assert self._line is not None
        try:
            self._pump(self._line.more(reading), "finish its answer", "finish its answer")
        except CloudError:
            raise
        except (OSError, Malformed) as e:
            raise self._failed(e, reading) from e

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
