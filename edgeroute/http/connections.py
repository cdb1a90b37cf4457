"""HTTP connections for threads: keep-alive pool, sockets, time limits and cancellation; base classes of the asyncio ones."""

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
from collections.abc import AsyncIterator, Mapping
from time import monotonic
from typing import Any, NoReturn, TypeVar

from edgeroute.core.policy_egress_and_options import INF
from edgeroute.core.walk import new
from edgeroute.errors import CloudError, TimedOut, Unreachable
from edgeroute.http.dns_resolver import RESOLVER, SocketAddress
from edgeroute.http.messages_addresses_and_secrets import Address, Call, Reply
from edgeroute.http.reply_parser import Malformed, Reading
from edgeroute.http.sans_io_tls_connection import KEEP_S, RECORD, Line, Steps, Wire
from edgeroute.system.contained_calls_and_tasks import settle
from edgeroute.system.fork_safety import ForkSafe, per_process, per_process_of
from edgeroute.types import StopToken

# Sockets of one connection: opened within the time limit, can be shut down from another thread, always closed.

STAGGER_S = 0.25  # delay before the next address is tried in parallel, seconds (RFC 8305, happy eyeballs)
POLL_S = 1.0  # maximum seconds of one wait, after which a signal that came just before is handled
_UNDER_WAY = {errno.EINPROGRESS, errno.EWOULDBLOCK, errno.EAGAIN}  # error numbers of a connection attempt in progress
_Selector: Any = getattr(selectors, "PollSelector", selectors.SelectSelector)


class Sockets:
    """Owner of a connection's sockets: `close` leaves none open, however a call was interrupted."""

    def __init__(self, origin: str) -> None:
        self.origin = origin
        self.until = INF  # instant by which the next step must be done
        self.doing = ""  # present step of the server, for the error of a timeout, as in "did not {doing} in time"
        self._sockets: list[socket.socket] = []

    def begin(self, until: float, cancel: StopToken | None) -> None:  # noqa: ARG002 - of threads
        """Set the time limit of a call. Stop requests are ignored here."""
        self.until = until

    def late(self) -> NoReturn:
        """Raise TimedOut: the server did not do the present step in time."""
        raise TimedOut(f"{self.origin} did not {self.doing} in time")

    def open(self, family: int) -> socket.socket:
        """Return a new non-blocking TCP socket without Nagle's delay. It is not connected; `close` closes it."""
        self._sockets.append(sock := socket.socket(family, socket.SOCK_STREAM))
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return sock

    def keep_only(self, sock: socket.socket) -> None:
        """Close all sockets but this."""
        for other in tuple(self._sockets):
            if other is not sock:
                self.drop(other)

    def drop(self, sock: socket.socket) -> None:
        """Close one socket, and disown it if it is owned by this object."""
        sock.close()
        with contextlib.suppress(ValueError):
            self._sockets.remove(sock)

    def close(self) -> None:
        """Close all sockets and disown them; later ones may be opened."""
        for sock in tuple(self._sockets):
            self.drop(sock)

    def __del__(self) -> None:
        for sock in getattr(self, "_sockets", ()):  # one whose construction was interrupted has none
            sock.close()


class BlockingSockets(Sockets):
    """Sockets of one thread at a time. Each step is limited by the time left: a limit per step would restart with each byte."""

    def __init__(self, origin: str) -> None:
        super().__init__(origin)
        self._cancel: StopToken | None = None
        self._woken = threading.Event()

    def begin(self, until: float, cancel: StopToken | None) -> None:
        """Set the time limit and the stop token of a call; a stop request will `cut` it."""
        self.until, self._cancel = until, cancel
        if cancel is not None:
            cancel.on_ask(self.cut)

    def left_s(self) -> float:
        """Return the seconds left for the next step; inf: no limit. Raise TimedOut if none are left."""
        left_s = self.until - monotonic()
        if left_s <= 0:
            self.late()
        return left_s

    def cut(self) -> None:
        """Shut all sockets down, and wake the call; called from another thread. The call then raises."""
        for sock in tuple(self._sockets):
            with contextlib.suppress(OSError):  # not ssl's own shutdown: after it data would be sent unencrypted
                socket.socket.shutdown(sock, socket.SHUT_RDWR)
        self._woken.set()

    def check(self) -> None:
        """Raise ConnectionAbortedError if the call was cancelled. Called after each new socket, which `cut` may have missed."""
        if self._cancel is not None and self._cancel.asked:
            raise ConnectionAbortedError("its answer is not needed any more")

    def connect(self, host: str, port: int) -> socket.socket:
        """Resolve the host, and return a socket connected to the first address that accepts; blocks (RFC 8305).

        The next address is tried when one fails, or in parallel after `STAGGER_S`. The sockets of the other addresses are closed.

        Raises:
            OSError: no address accepts, the first one's error; or the name has none.
            ConnectionAbortedError: a stop was requested.
            TimedOut: no time is left.
        """
        waiting = deque(self._look_up(host, port))
        self.doing = "accept a connection"
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
            left_s = min(self.left_s(), POLL_S)
            for key, _ in selector.select(min(left_s, next_at - now) if waiting else left_s):
                self.check()  # a socket that was shut down is ready as well
                sock: socket.socket = key.fileobj
                if not (code := sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)):
                    self.keep_only(sock)
                    return sock
                errors.append(system_error(code))
                selector.unregister(sock)
                self.drop(sock)
                next_at = 0.0
        raise errors[0] if errors else OSError(f"{host} has no address")

    def _connecting(self, there: SocketAddress) -> socket.socket:
        """Return a new socket whose connection to an address has begun; does not wait.

        If it fails at once, close it, and raise OSError.
        """
        sock = self.open(there.family)
        code = sock.connect_ex(there.address)
        if code and code not in _UNDER_WAY:
            self.drop(sock)
            raise system_error(code)
        return sock

    def _look_up(self, host: str, port: int) -> list[SocketAddress]:
        """Return the addresses of a name; blocks, but not longer than until addresses of an earlier look-up are to be used.

        Raises OSError if it fails, TimedOut, or ConnectionAbortedError after a stop request.
        """
        lookup, woken = RESOLVER.find(host, port), self._woken
        woken.clear()
        self.doing = "have its name looked up"
        lookup.add(woken.set)
        try:
            while not lookup.done and (patience_s := lookup.patience_s()) > 0:
                self.check()
                woken.wait(min(self.left_s(), POLL_S, patience_s))
        finally:
            lookup.discard(woken.set)
        return lookup.addresses()


def system_error(code: int | None) -> OSError:
    """Return the OSError of an error number, with the system's text."""
    texts: dict[int, str] = getattr(socket, "errorTab", {})  # Windows', whose own function does not know those of sockets
    code = code or 0
    return OSError(code, texts.get(code) or os.strerror(code))


class Poll:
    """Waiting for one socket, which stays registered with the system: a call waits a few times."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        if sys.platform != "win32":
            self._poll = select.poll()
            self._poll.register(sock, select.POLLIN)

    def readable(self, left_s: float = 0) -> bool:
        """Return True if data, or the end of the stream, can be read without blocking; waits up to `left_s`, at most `POLL_S`."""
        if sys.platform == "win32":
            return bool(select.select([self._sock], [], [], min(left_s, POLL_S))[0])
        return bool(self._poll.poll(min(left_s, POLL_S) * 1000))

    def either(self, left_s: float) -> bool:
        """Wait until more can be sent, or bytes have come, or `left_s` or `POLL_S` are over. Return True if bytes have come."""
        if sys.platform == "win32":
            return bool(select.select([self._sock], [self._sock], [], min(left_s, POLL_S))[0])
        self._poll.modify(self._sock, select.POLLIN | select.POLLOUT)
        try:
            ready = self._poll.poll(min(left_s, POLL_S) * 1000)
        finally:
            self._poll.modify(self._sock, select.POLLIN)
        return bool(ready) and bool(ready[0][1] & ~select.POLLOUT)


def send_some(sock: socket.socket, parts: list[memoryview]) -> int:
    """Send as many bytes of the parts as the socket takes without blocking. Return their number.

    Raises:
        BlockingIOError: the socket takes none.
    """
    if sys.platform != "win32" and len(parts) > 1:
        return sock.sendmsg(parts)
    return sock.send(parts[0])


T = TypeVar("T")


class Connection:
    """Base of a connection, opened at its first call, and again when the server has closed it.

    Args:
        wire: requests and errors of the address.
        sockets: owner of the connection's sockets.
    """

    def __init__(self, wire: Wire, sockets: Any) -> None:
        self._wire, self.sockets = wire, sockets
        self._line: Line | None = None
        self._sock: socket.socket | None = None
        self._poll: Poll | None = None
        self._idle_since = 0.0
        self._reads = 0  # reads of the reply under way

    def _usable_line(self) -> Line:
        """Return the line (the protocol's state) if the connection can be reused; else close the sockets and return a new line.

        It cannot if the server has closed it or sent unasked, or if it was idle for more than `KEEP_S`.
        """
        line = self._line
        if line is None or self._poll is None or monotonic() - self._idle_since > KEEP_S or self._poll.readable():
            self.close()
            self._line = line = Line(self._wire)
        return line

    def _cloud_error(self, e: Exception, reading: Reading) -> CloudError:
        """Return the CloudError for an exception during a call.

        Stale if the connection had served before, and nothing of this reply has come.
        """
        line = self._line
        assert line is not None
        return self._wire.error(e, opened=line.opened, stale=line.served and not reading.heard)

    async def begin(self, call: Call, until: float, cancel: StopToken | None = None) -> Reading:
        """Send a call, and read until its reply's head has come, by the instant `until`; connects first if need be.

        Return the parser. It may have a part of the body already. Does not close the connection after an error.

        Raises:
            CloudError: the time is over, the connection fails, or the reply is invalid; `unsent` if no connection was made.
        """
        if until <= monotonic():
            raise TimedOut(f"{self._wire.address.origin} was not asked: no time was left", unsent=True)
        self._reads = 0
        self.sockets.begin(until, cancel)
        line, reading = self._usable_line(), self._wire.reading(call)
        try:
            if not line.opened:
                self._sock = sock = await self._connected_socket(line)
                self._poll = Poll(sock)
                await self._pump(line.open())
            self.sockets.doing = "take the request"
            await self._pump(line.ask(call, reading))
        except CloudError as e:
            e.unsent = not line.opened
            raise
        except (OSError, Malformed) as e:
            error = self._cloud_error(e, reading)
            error.unsent = not line.opened
            raise error from e
        return reading

    async def more(self, reading: Reading) -> None:
        """Read once more of the body into `reading`, by the instant of `begin` or of the sockets. Raises CloudError."""
        assert self._line is not None
        self.sockets.doing = "finish its answer"
        try:
            await self._pump(self._line.more(reading))
        except CloudError:
            raise
        except (OSError, Malformed) as e:
            raise self._cloud_error(e, reading) from e

    async def _pump(self, steps: Steps[T]) -> T:
        """Do what a protocol's generator yields, receive (a number of bytes) or send (buffers), until it ends; return its result.

        An OSError of the socket is thrown into the generator, which may handle it. A CloudError, such as TimedOut, is raised.
        """
        try:
            step = next(steps)
            while True:
                answer: Any
                try:
                    if isinstance(step, int):
                        if self.sockets.doing == "take the request":
                            self.sockets.doing = "answer"
                        answer = await self._receive(step)
                    else:
                        answer = await self._send(step)
                except CloudError:
                    raise
                except OSError as e:
                    step = steps.throw(e)
                    continue
                step = steps.send(answer)
        except StopIteration as end:
            return end.value  # type: ignore[no-any-return]

    async def _connected_socket(self, line: Line) -> socket.socket:
        """Return a socket connected to the line's host; overridden."""
        raise NotImplementedError

    async def _receive(self, most: int) -> bytes:
        """Return up to `most` received bytes, once there are some; overridden. Raise TimedOut."""
        raise NotImplementedError

    async def _send(self, parts: list[memoryview]) -> tuple[int, bytes | None]:
        """Send some bytes. Return (number sent, None); (0, received bytes) if the server sent first; overridden."""
        raise NotImplementedError

    def clean(self, reading: Reading) -> bool:
        """Return True if the connection may be used again after this reply. Records the beginning of its idle time."""
        self._idle_since = monotonic()
        return self._line is not None and self._line.clean(reading)

    def close(self) -> None:
        """Close the sockets. The next call opens new ones."""
        self._line = self._sock = self._poll = None
        self.sockets.close()


class Response:
    """Reply whose head has come, and whose body is read piece by piece.

    Attributes:
        status: HTTP status.
        headers: values by lower-case name.
    """

    __slots__ = ("_channel", "_reading", "headers", "status")

    def __init__(self, channel: Connection, reading: Reading) -> None:
        self._channel, self._reading = channel, reading
        self.status: int = reading.status
        self.headers: Mapping[str, str] = reading.headers

    async def read(self, until: float | None = None) -> bytes | None:
        """Return the next piece of the body; None at its end, at most `Call.max_reply` bytes later.

        Of an error reply that is longer, the rest is not read.

        Args:
            until: instant by which the piece must come, and later ones, unless they are given another; None: that of before.

        Raises:
            CloudError: the piece is late, the connection breaks, or a success is too long.
        """
        if until is not None:
            self._channel.sockets.until = until
        while not (piece := self._reading.take()):
            if self._reading.ended:
                return None
            await self._channel.more(self._reading)
        return piece


class Pool(ForkSafe):
    """Base of the keep-alive connections to one address."""

    _idle: list[Any]

    def __init__(self, address: Address) -> None:
        self._wire = Wire(address)
        self._closed = False

    async def _send_alone(self, call: Call, until: float, cancel: StopToken | None = None) -> Reply:
        """Send the call on a connection of its own, read the whole reply, and return it; raises CloudError.

        The connection is an idle one or new; afterwards it is kept for the next call, or closed if it cannot be reused. Nothing
        is sent again: an idle connection that the server has closed raises.
        """
        channel, reused = self._take(cancel), False
        try:
            reading = await channel.begin(call, until, cancel)
            while not reading.ended:
                await channel.more(reading)
            reply = new(Reply, (reading.status, reading.headers, reading.take()))
            reused = self._done(channel, reading, cancel)
        except CloudError as e:
            self._failed(e, cancel)
            raise
        else:
            return reply
        finally:
            if not reused:
                channel.close()

    @contextlib.asynccontextmanager
    async def open(self, call: Call, until: float, cancel: StopToken | None = None) -> AsyncIterator[Response]:
        """Send the call, and yield the reply once its head has come, by the instant `until`; its body is read piece by piece.

        Leaving before the end of the body closes the connection. In threads this never waits, and blocks instead.

        Raises:
            CloudError: as for `send`; also while the body is read.
        """
        channel, reused = self._take(cancel), False
        try:
            reading = await channel.begin(call, until, cancel)
            yield Response(channel, reading)
            reused = self._done(channel, reading, cancel)
        except CloudError as e:
            self._failed(e, cancel)
            raise
        finally:
            if not reused:
                channel.close()

    def _failed(self, error: CloudError, cancel: StopToken | None) -> None:
        """Close all idle connections if the server closes what it kept; each would cost a request. A stop cuts its own alone."""
        if error.stale and (cancel is None or not cancel.asked):
            self._close_idle()

    def _close_idle(self) -> None:
        """Remove and close all idle connections."""
        _close_all(self._idle)

    def _take(self, cancel: StopToken | None) -> Any:
        """Return an idle connection, removed from the pool, or a new one."""
        raise NotImplementedError

    def _done(self, channel: Any, reading: Reading, cancel: StopToken | None) -> bool:
        """Return the connection to the pool after a call, if it may be used again. Return True if so."""
        raise NotImplementedError


class Connections(Pool):
    """Keep-alive connections to one address, for threads.

    Each call has a connection to itself: it can be cancelled, by shutting its socket down, without affecting others. There is no
    lock: a list's `append` and `pop` are atomic, in threads, in signal handlers and across a fork.
    """

    # All connections. A forked child closes its copies of the parent's sockets.
    #
    # That sends nothing, and leaves the parent's open.
    _all: weakref.WeakSet[ThreadConnection] = per_process(weakref.WeakSet, lambda parents: _close_all([*parents]))
    _idle: list[ThreadConnection] = per_process_of(lambda self: _closed_at_end(self), list.clear)  # noqa: PLW0108 - it is defined below

    keeps_time = True  # True: `send` ends by its instant, whatever the server does

    def send(self, call: Call, until: float, cancel: StopToken | None = None) -> Reply:
        """Send the call and return the reply by the instant `until`; blocks.

        Args:
            call: the call; it is sent once.
            until: instant of the monotonic clock.
            cancel: its stop request shuts the connection down.

        Raises:
            CloudError: there is no reply in time, no valid one, or the call was cancelled.
        """
        return settle(self._send_alone(call, until, cancel))

    def _take(self, cancel: StopToken | None) -> ThreadConnection:
        """Return an idle connection, removed from the pool, or a new one, not connected yet.

        Raise Unreachable, as unsent, if a stop was requested.
        """
        if cancel is not None and cancel.asked:
            raise Unreachable(f"{self._wire.address.origin} was not asked: its answer is not needed any more", unsent=True)
        try:
            return self._idle.pop()
        except IndexError:
            channel = ThreadConnection(self._wire, BlockingSockets(self._wire.address.origin))
            self._all.add(channel)
            return channel

    def _done(self, channel: ThreadConnection, reading: Reading, cancel: StopToken | None) -> bool:
        """Put a connection back into the pool after a call, and return True; False if it cannot be used again.

        The caller closes it then. Ends the watch for stop requests; one that came meanwhile also prevents reuse. After `close`
        all idle ones are closed.
        """
        if cancel is not None:
            cancel.on_ask(None)
        if not channel.clean(reading) or (cancel is not None and cancel.asked):
            return False
        self._idle.append(channel)
        if self._closed:
            _close_all(self._idle)
        return True

    def close(self) -> None:
        """Close idle connections now, and those in use at the end of their calls."""
        self._closed = True
        _close_all(self._idle)


def _closed_at_end(connections: Connections) -> list[ThreadConnection]:
    """Return an empty list for idle connections, which are closed when `connections` is garbage collected unclosed."""
    idle: list[ThreadConnection] = []
    weakref.finalize(connections, _close_all, idle)
    return idle


def _close_all(idle: list[ThreadConnection]) -> None:
    """Remove and close the connections of a list, which other threads may change."""
    with contextlib.suppress(IndexError):  # another thread may take the last
        while True:
            idle.pop().close()


class ThreadConnection(Connection):
    """Connection for threads: its coroutines never wait."""

    sockets: BlockingSockets

    async def _connected_socket(self, line: Line) -> socket.socket:
        """Return a socket connected to the line's host, blocking."""
        return self.sockets.connect(*line.there)

    async def _receive(self, most: int) -> bytes:
        """Return up to `most` received bytes, blocking until there are some; b"" at the end of the stream. Raise TimedOut."""
        sock, poll = self._sock, self._poll
        assert sock is not None
        assert poll is not None
        while True:
            if poll.readable(self.sockets.left_s()):
                try:
                    return sock.recv(most)
                except BlockingIOError:  # the system took it back
                    pass

    async def _send(self, parts: list[memoryview]) -> tuple[int, bytes | None]:
        """Send some bytes, blocking until that is possible.

        Return (number sent, None); (0, received bytes) if the server sent first. Raise TimedOut.
        """
        sock, poll = self._sock, self._poll
        assert sock is not None
        assert poll is not None
        while True:
            try:
                return send_some(sock, parts), None
            except BlockingIOError:
                pass
            if poll.either(self.sockets.left_s()):
                try:
                    return 0, sock.recv(RECORD)
                except BlockingIOError:
                    pass
