"""TCP relay with link faults: delay, throttling, truncation, resets, black hole, refusal."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import struct
import sys
from time import monotonic

from edgeroute.tools.contracts.canned_server import Listener, finish, turns

PIECE = 1 << 16  # maximum bytes read at a time
_AT_ONCE = struct.pack("hh" if sys.platform == "win32" else "ii", 1, 0)  # `struct linger` that makes a close a reset
QUEUE = 256  # pieces in transit per direction of a relay before the sender is blocked


class Relay(Listener):
    """TCP relay to a server, with injected link faults. Faults are attributes, set at any time.

    Args:
        host: address of the server.
        port: port of the server.

    Attributes:
        delay_s: one-way latency, seconds. Bandwidth is not affected; a new connection takes one round trip more.
        throttle: bandwidth in bytes per second, per direction and connection; None: unlimited.
        truncate_after: bytes of a connection's replies after which it is closed (FIN).
        reset_after: bytes of a connection's replies after which it is reset (RST).
        black_hole: connections are accepted, and all data is dropped.
        refuse: the port is closed, but no other program gets it; existing connections continue.
        shut: new connections are accepted and reset at once, and nothing of them is forwarded.
        connections: number of connections accepted.
        bytes_up: bytes forwarded to the server.
        bytes_down: bytes forwarded from the server.
    """

    def __init__(self, host: str, port: int) -> None:
        self.delay_s = 0.0
        self.throttle: float | None = None
        self.truncate_after: int | None = None
        self.reset_after: int | None = None
        self.black_hole = self.shut = False
        self.bytes_up = self.bytes_down = 0
        self._to, self._kept = (host, port), contextlib.ExitStack()
        super().__init__(None)

    @property
    def refuse(self) -> bool:
        """Return True if the port is closed; set it to close or reopen the port."""
        return self._server is None

    @refuse.setter
    def refuse(self, refuse: bool) -> None:
        """Close the port, so that connections are refused, or open it again; blocks until that is done."""

        async def switch() -> None:
            self._kept.close()
            if refuse:
                await self._close_port()
                self._kept.callback(_bound(self.port).close)
            else:
                await self._listen()

        self._do(switch())

    def close(self) -> None:
        """Close all connections, the port and the thread. Blocks. A no-op the second time."""
        super().close()
        self._kept.close()

    def cut(self) -> None:
        """End all present connections, as a link does that goes down; with `refuse` before it, no new one begins.

        Blocks until that is done.
        """

        async def end() -> None:
            await turns()
            await self._end_connections()
            await turns()

        self._do(end())

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Connect to the server, else reset the client; forward both directions until both end or one fails.

        While shut it resets the client at once.
        """
        if self.shut:
            _reset(writer)
            return
        connected = monotonic() + 2 * self.delay_s
        try:
            far_reader, far_writer = await asyncio.open_connection(*self._to)
        except OSError:
            _reset(writer)
            return
        ways = [
            asyncio.ensure_future(self._forward(reader, far_writer, connected, down=False)),
            asyncio.ensure_future(self._forward(far_reader, writer, connected, down=True)),
        ]
        try:
            await asyncio.gather(*ways)
        finally:
            far_writer.transport.abort()  # before any await, which close() may cancel
            for way in ways:
                way.cancel()
            await asyncio.gather(*ways, return_exceptions=True)

    async def _forward(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, connected: float, *, down: bool) -> None:
        """Forward one direction to its end, delayed by `delay_s`, pipelined: reading goes on while earlier data is delayed.

        connected: earliest time at which the first data has arrived, before its delay (monotonic). An end (FIN) is passed on as
        one, any error of reading as a reset.
        """
        under_way: asyncio.Queue[tuple[float, bytes | None]] = asyncio.Queue(QUEUE)
        writer.transport.set_write_buffer_limits(0)  # drained means sent

        async def read_ahead() -> None:
            data: bytes | None = b"more"
            while data:
                try:
                    data = await reader.read(PIECE)
                except OSError:
                    data = None
                await under_way.put((max(monotonic(), connected) + self.delay_s, data))

        reading = asyncio.ensure_future(read_ahead())
        try:
            passed, clear = 0, 0.0
            while True:
                due, data = await under_way.get()
                await asyncio.sleep(due - monotonic())
                if data is None:
                    _reset(writer)
                    return
                if not data:
                    writer.write_eof()
                    return
                clear = await self._pass(data, writer, passed, max(clear, due), down=down)
                passed += len(data)
        finally:
            reading.cancel()

    async def _pass(self, data: bytes, writer: asyncio.StreamWriter, passed: int, clear: float, *, down: bool) -> float:
        """Forward the data that the faults let through, at most at `throttle`, and count it. Return when the line is free again.

        `passed`: bytes before it. `clear`: when the line is free at the earliest (monotonic). Times go by the clock: a sleep that
        ends late delays nothing after it.

        Raises:
            ConnectionAbortedError: the connection was truncated or reset.
        """
        reset_after, throttle = self.reset_after, self.throttle  # read once: another thread may change them at any time
        ends = [n for n in (self.truncate_after, reset_after) if down and n is not None]
        allowed = data if not ends else data[: max(0, min(ends) - passed)]
        step = PIECE if throttle is None else max(1, int(throttle / 50))
        for start in range(0, 0 if self.black_hole else len(allowed), step):
            piece = allowed[start : start + step]
            if throttle is not None:
                clear += len(piece) / throttle
                await asyncio.sleep(clear - monotonic())
            writer.write(piece)
            await writer.drain()
            if down:
                self.bytes_down += len(piece)
            else:
                self.bytes_up += len(piece)
        if ends and passed + len(data) >= min(ends):
            if reset_after == min(ends):
                _reset(writer)
            else:
                await finish(writer)
            raise ConnectionAbortedError
        return clear


def _bound(port: int) -> socket.socket:
    """Return a socket that keeps other programs from a port without listening at it; without effect if one has it."""
    kept = socket.socket()
    if os.name == "posix":  # as of `asyncio.start_server`: connections that have just ended do not keep the port
        kept.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    with contextlib.suppress(OSError):
        kept.bind(("127.0.0.1", port))
    return kept


def _reset(writer: asyncio.StreamWriter) -> None:
    """Close a connection with a reset (RST); without one if the system refuses the option."""
    with contextlib.suppress(OSError):
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _AT_ONCE)
    writer.transport.abort()
