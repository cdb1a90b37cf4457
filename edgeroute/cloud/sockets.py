"""Sockets of one connection: opened within the time limit, shut down from another thread, always closed."""

from __future__ import annotations

import contextlib
import errno
import os
import select
import selectors
import socket
import sys
import threading
from collections import deque
from math import ceil
from time import monotonic
from typing import Any, NoReturn

from edgeroute.cloud.resolver import RESOLVER, SocketAddress
from edgeroute.core.policy import INF
from edgeroute.errors import TimedOut
from edgeroute.types import StopToken

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
