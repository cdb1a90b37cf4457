"""Sockets of one connection for asyncio."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections import deque
from time import monotonic

from edgeroute.cloud.resolver import RESOLVER, SocketAddress
from edgeroute.cloud.sockets import STAGGER_S, Sockets, refused
from edgeroute.core.policy import INF


class AsyncSockets(Sockets):
    """Sockets of one event loop. Closing them takes no `await`, so it cannot be interrupted."""

    def __init__(self, origin: str, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(origin)
        self.loop = loop
        self.doing = "answer"
        self._read: socket.socket | None = None
        """The socket that has a reader."""
        self._most = 0
        self._waiting: asyncio.Future[bytes | None] | None = None
        self._until = self._rings_at = INF
        """The instant by which what is waited for must come, and that of the alarm, which may be sooner."""
        self._alarm: asyncio.TimerHandle | None = None

    async def receive(self, sock: socket.socket, most: int, until: float) -> bytes | None:
        """Up to so many bytes, once there are some; None: not by that instant.

        The reader stays for the next time, also while the connection is idle: to add and to remove it takes 25 calls of Python
        and two of the system. So does the alarm: one that rings while there is still time is set again.

        Raises:
            NotImplementedError: the loop has no readers.
        """
        self._most, self._until = most, until
        found = self._waiting = self.loop.create_future()
        try:
            if self._read is not sock:
                self.loop.add_reader(sock, self._readable, sock)
                self._read = sock
            if until < self._rings_at:
                self._set_alarm(until)
            came: bytes | None = await found
        finally:
            self._waiting = None
        return came

    def _set_alarm(self, at: float) -> None:
        self._no_alarm()
        self._rings_at = at
        self._alarm = self.loop.call_later(max(0.0, at - monotonic()), self._ring)

    def _no_alarm(self) -> None:
        if self._alarm is not None:
            self._alarm.cancel()
        self._alarm, self._rings_at = None, INF

    def _ring(self) -> None:
        self._no_alarm()
        found = self._waiting
        if found is None or found.done():
            return
        if monotonic() >= self._until:
            found.set_result(None)
        else:
            self._set_alarm(self._until)

    def _readable(self, sock: socket.socket) -> None:
        found = self._waiting
        if found is None or found.done():  # nobody reads: it ended, or sends unasked; the loop would tell so again and again
            self._unread(sock)
            return
        try:
            found.set_result(sock.recv(self._most))
        except BlockingIOError:  # the system took it back
            pass
        except OSError as e:
            found.set_exception(e)

    def _unread(self, sock: socket.socket) -> None:
        if self._read is sock:
            self._read = None
        self.loop.remove_reader(sock)

    async def ready(self, sock: socket.socket) -> bool:
        """Waits until more can be sent, or something has come. Returns whether something has."""
        found: asyncio.Future[bool] = self.loop.create_future()

        def settle(come: bool) -> None:
            if not found.done():
                found.set_result(come)

        self.loop.add_reader(sock, settle, True)
        self.loop.add_writer(sock, settle, False)
        try:
            return await found
        finally:
            self._unread(sock)
            self.loop.remove_writer(sock)

    def drop(self, sock: socket.socket) -> None:
        """Closes one socket and removes its readers first: its file descriptor may be reused at once."""
        with contextlib.suppress(RuntimeError, NotImplementedError, ValueError):  # closed, or without readers, or closed
            self._unread(sock)
            self.loop.remove_writer(sock)
        super().drop(sock)

    def abandon(self) -> None:
        """Closes all in a forked child, whose copies of the loop's own descriptors still belong to the parent."""
        for sock in self._sockets:
            sock.close()
        self._sockets.clear()
        self._read = self._alarm = None
        self._rings_at = INF

    def close(self) -> None:
        """Closes all."""
        self._no_alarm()
        super().close()

    async def connect(self, host: str, port: int) -> socket.socket:
        """Connects to the first address that accepts (RFC 8305): the next is tried once one fails, or after `STAGGER_S`."""
        waiting = deque(await self._look_up(host, port))
        errors: list[BaseException] = []
        tasks: set[asyncio.Task[socket.socket]] = set()
        try:
            if len(waiting) == 1:
                return await self._connect(waiting.popleft())
            while waiting or tasks:
                if waiting:
                    tasks.add(self.loop.create_task(self._connect(waiting.popleft())))
                limit_s = STAGGER_S if waiting else None
                done, tasks = await asyncio.wait(tasks, timeout=limit_s, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    error = task.exception()
                    if error is None:
                        self.keep_only(task.result())
                        return task.result()
                    errors.append(error)
        finally:
            for task in tasks:
                if not task.cancel() and not task.cancelled():
                    task.exception()  # retrieved, so that asyncio does not warn
        raise errors[0] if errors else OSError(f"{host} has no address")

    async def _connect(self, there: SocketAddress) -> socket.socket:
        sock = self.open(there.family)
        try:
            await self.loop.sock_connect(sock, there.address)
        except OSError as e:
            self.drop(sock)
            raise refused(e.errno) from e
        return sock

    async def _look_up(self, host: str, port: int) -> list[SocketAddress]:
        lookup = RESOLVER.find(host, port)
        if lookup.done:
            return lookup.addresses()
        over: asyncio.Future[None] = self.loop.create_future()

        def settle() -> None:
            if not over.done():
                over.set_result(None)

        def wake() -> None:
            with contextlib.suppress(RuntimeError):  # the loop is closed
                self.loop.call_soon_threadsafe(settle)

        lookup.add(wake)
        self.doing = "have its name looked up"
        timer = self.loop.call_later(max(0.0, lookup.patience_s()), settle) if lookup.earlier else None
        try:
            await over
        finally:
            lookup.discard(wake)
            if timer is not None:
                timer.cancel()
        self.doing = "answer"
        return lookup.addresses()
