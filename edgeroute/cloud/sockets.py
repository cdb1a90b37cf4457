"""The sockets of one connection: opened within the time that is left, cut off by another thread, closed whatever happens."""

from __future__ import annotations

import contextlib
import errno
import os
import select
import selectors
import socket
import threading
from collections import deque
from time import monotonic
from typing import Any

from edgeroute.cloud.resolver import RESOLVER, SocketAddress
from edgeroute.core.policy import INF
from edgeroute.errors import TimedOut
from edgeroute.types import StopToken

STAGGER_S = 0.25
"""How long an address has before the next one is tried beside it (RFC 8305, happy eyeballs)."""
POLL_S = 3600.0
"""The longest single wait: what the system takes is limited."""
_UNDER_WAY = {errno.EINPROGRESS, errno.EWOULDBLOCK, errno.EAGAIN}
_Selector: Any = getattr(selectors, "PollSelector", selectors.SelectSelector)


class Sockets:
    """Owns them: whatever ends a call in the middle, and wherever, `close` leaves none open."""

    def __init__(self, origin: str) -> None:
        self.origin = origin
        self._sockets: list[socket.socket] = []

    def open(self, family: int) -> socket.socket:
        """A new one, not blocking."""
        self._sockets.append(sock := socket.socket(family, socket.SOCK_STREAM))
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return sock

    def adopt(self, sock: socket.socket) -> None:
        """Owns one more."""
        self._sockets.append(sock)

    def keep_only(self, sock: socket.socket) -> None:
        """Closes all others."""
        for other in tuple(self._sockets):
            if other is not sock:
                self.drop(other)

    def drop(self, sock: socket.socket) -> None:
        """Closes that one."""
        sock.close()
        with contextlib.suppress(ValueError):
            self._sockets.remove(sock)

    def close(self) -> None:
        """Closes all."""
        for sock in tuple(self._sockets):
            self.drop(sock)

    def __del__(self) -> None:
        for sock in getattr(self, "_sockets", ()):  # what is interrupted as it is made has none
            sock.close()


class BlockingSockets(Sockets):
    """For one thread at a time. Every step has the time that is left: a limit per step begins anew with each byte that comes."""

    def __init__(self, origin: str) -> None:
        super().__init__(origin)
        self._until = INF
        self._cancel: StopToken | None = None
        self._woken = threading.Event()

    def begin(self, until: float, cancel: StopToken | None) -> None:
        """A call that has until then, and may be asked to stop."""
        self._until, self._cancel = until, cancel
        if cancel is not None:
            cancel.on_ask(self.cut)

    def left_s(self, doing: str = "finish its answer") -> float | None:
        """Seconds for the next step; None: as many as it takes."""
        if self._until == INF:
            return None
        left_s = self._until - monotonic()
        if left_s <= 0:
            raise TimedOut(f"{self.origin} did not {doing} in time")
        return left_s

    def cut(self) -> None:
        """Ends the call in progress, from another thread."""
        for sock in tuple(self._sockets):
            with contextlib.suppress(OSError):  # not ssl's own shutdown: from then on it would send in the clear
                socket.socket.shutdown(sock, socket.SHUT_RDWR)
        self._woken.set()

    def check(self) -> None:
        """Raises if it was asked to stop. After each new socket, which `cut` may have been too early to see."""
        if self._cancel is not None and self._cancel.asked:
            raise ConnectionAbortedError("its answer is not needed any more")

    def connect(self, host: str, port: int) -> socket.socket:
        """Connects to the first address that accepts. The next one is tried as soon as one fails, or `STAGGER_S` later."""
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
                self.check()  # a socket that was cut off is ready, too
                sock: socket.socket = key.fileobj
                code = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
                if not code:
                    self.keep_only(sock)
                    return sock
                errors.append(OSError(code, os.strerror(code)))
                selector.unregister(sock)
                self.drop(sock)
                next_at = 0.0
        raise errors[0] if errors else OSError(f"{host} has no address")

    def _connecting(self, there: SocketAddress) -> socket.socket:
        sock = self.open(there.family)
        code = sock.connect_ex(there.address)
        if code and code not in _UNDER_WAY:
            self.drop(sock)
            raise OSError(code, os.strerror(code))
        return sock

    def _look_up(self, host: str, port: int) -> list[SocketAddress]:
        lookup, woken = RESOLVER.find(host, port), self._woken
        woken.clear()
        lookup.add(woken.set)
        try:
            while not lookup.done:
                self.check()
                woken.wait(min(self.left_s("have its name looked up") or POLL_S, POLL_S))
        finally:
            lookup.discard(woken.set)
        return lookup.addresses()


def readable(sock: socket.socket) -> bool:
    """Whether something, or the end, can be read from it now."""
    if sock.fileno() < 0:
        return True
    if not hasattr(select, "poll"):  # pragma: no cover - not POSIX
        return bool(select.select([sock], [], [], 0)[0])
    poll = select.poll()
    poll.register(sock, select.POLLIN)
    return bool(poll.poll(0))
