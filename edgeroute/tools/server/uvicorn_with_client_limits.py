"""`run`, which runs an ASGI application on uvicorn and blocks: its listening socket, signals, notices to the service manager.

`Connection` is the HTTP connection, with limits of time, heads, small chunks, and of connections at a time.
"""

from __future__ import annotations

import asyncio
import os
import re
import signal
import socket
import sys
import threading
from collections.abc import Callable, Collection, Coroutine, Iterator
from contextlib import contextmanager, suppress
from errno import EADDRINUSE
from itertools import chain
from typing import Any, cast

import h11
import uvicorn
from starlette.types import Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from edgeroute.errors import PolicyError
from edgeroute.system.fork_safety import ForkSafe
from edgeroute.tools.server.access_limits_call_options import CLOSE, PEER_SHARE, STRANGER, Fault, peer_of
from edgeroute.tools.server.oip_requests_media_routes import reply
from edgeroute.tools.server.systemd_notices import BEATS, Notify

HEAD_S = 10.0  # time for a request's head to arrive, from the connection's beginning or the head's first byte, seconds
HEAD_BYTES = 1 << 16  # most bytes of a head; a longer one is refused
PACKET_BYTES = 1 << 14  # most bytes of a body that are sent with the head
HEAD_LINES = 256  # most lines of a head
CHUNKS, CHUNK_BYTES = 256, 64  # chunks of a body that may be small; of more each has so many bytes, on average
TAKEN_S = 30.0  # time for a client to read once a write waits for it, seconds
# Most connections at a time: an idle one is closed for a further one, or else that gets 503 with Retry-After. Fewer than the
# files that a process may have open.
MOST_CONNECTIONS = 500
# Time an idle connection stays open, seconds: a router may call rarely, and a new connection costs it round trips.
KEEP_ALIVE_S = 75
BACKLOG = 2048  # connections that wait to be accepted, as uvicorn's default
ANSWERS_S = 0.2  # time for another program to take a connection, seconds
GRACE_S = 5  # time for requests in progress to finish at shutdown, seconds
ENDING = Fault(503, "the server is shutting down: try again later", "closed", {"Retry-After": "1", **CLOSE})
_BUSY = b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 1\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"

# Coroutine that notifies the service manager that the application is ready, and from then on that it is alive.
Beat = Callable[[Notify], Coroutine[Any, Any, None]]


_BLANK = re.compile(rb"\n\r?\n")


class _Parser(h11.Connection):
    """HTTP parser that refuses heads of many lines and bodies of many small chunks, by which a client holds the event loop.

    A reply's head is held for what follows at once, so that one packet has both.

    Args:
        write: writes bytes to the client.
    """

    _chunks = _size = 0
    _head = b""

    def __init__(self, write: Callable[[bytes], object]) -> None:
        super().__init__(h11.SERVER, HEAD_BYTES)
        self._write = write

    def send(self, event: Any) -> Any:
        """Return an event's bytes, as h11's; hold a reply's head, so that one packet has both it and what follows.

        The head is put before the next data of at most 16 KiB, or the end. Before larger data, or at the event loop's next turn,
        it is written by itself.
        """
        data = super().send(event)
        if type(event) is h11.Response:
            self._head, data = data or b"", b""
            asyncio.get_running_loop().call_soon(self._write_head)
        elif len(data or b"") > PACKET_BYTES:
            self._write_head()
        elif self._head and (data or type(event) is h11.EndOfMessage):
            self._head, data = b"", self._head + (data or b"")
        return data

    def _write_head(self) -> None:
        """Write the head that is held; a no-op without one."""
        head, self._head = self._head, b""
        if head:
            self._write(head)

    def next_event(self) -> Any:
        """Return the next event, as h11's.

        Raises:
            RemoteProtocolError: no HTTP, a head of more than 256 lines, or a body of more than 256 chunks, of under 64 bytes on
                average.
        """
        if self.their_state is h11.IDLE and len(data := self.trailing_data[0]) > HEAD_LINES:
            end = _BLANK.search(data)
            if data.count(b"\n", 0, end.end() if end else len(data)) > HEAD_LINES + 2:  # the request's line, and the empty one
                raise h11.RemoteProtocolError(f"a head of more than {HEAD_LINES} lines")
        event = super().next_event()
        if type(event) is h11.Request:
            self._chunks = self._size = 0
        elif type(event) is h11.Data:
            self._chunks, self._size = self._chunks + event.chunk_start, self._size + len(event.data)
            if self._chunks > CHUNKS and self._size < self._chunks * CHUNK_BYTES:
                raise h11.RemoteProtocolError("a body of small chunks")
        return event


class Connection(H11Protocol):
    """HTTP connection that is aborted when the client is too slow, or idle where others need its place.

    uvicorn alone waits for ever for a head that does not end, and for a client that does not read.
    """

    _head: asyncio.TimerHandle | None = None
    _taken: asyncio.TimerHandle | None = None
    stranger = True  # True until a request was answered that needed no token, or showed the right one
    idle_since = 0.0  # time of the loop since which no request is in progress, seconds

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn has it
        """Prepare the connection, as uvicorn's, and start the timer that aborts it unless a whole head comes within 10 s.

        Beyond 500 connections, or 375 of one address of another machine, the one that is idle longest is aborted; if none is
        idle, this one gets 503 and is closed.
        """
        super().connection_made(transport)
        self.conn = _Parser(transport.write)
        self.app, self.idle_since = _checked(self, self.app), self.loop.time()
        address, everyone = peer_of(self.client), cast("set[Any]", self.connections)
        peers = [one for one in everyone if peer_of(one.client) == address] if address else []
        if (len(peers) > MOST_CONNECTIONS * PEER_SHARE and not _close_idle(peers, self)) or (
            len(everyone) > MOST_CONNECTIONS and not _close_idle(everyone, self)
        ):
            transport.write(_BUSY)
            transport.close()
        else:
            self._head = self.loop.call_later(HEAD_S, transport.abort)

    def on_response_complete(self) -> None:
        """Note since when the connection is idle, and whether its client lacks a token that is needed; then as uvicorn's."""
        self.stranger = bool(self.scope.get(STRANGER))
        self.idle_since = self.loop.time()
        super().on_response_complete()

    @property
    def idle(self) -> bool:
        """True while no request is in progress; a head that has begun is none yet."""
        return self.cycle is None or self.cycle.response_complete

    def data_received(self, data: bytes) -> None:
        """Parse the data, as uvicorn's; then stop the head's timer if a request is in progress, else start it if it does not run.

        The timer aborts the connection after 10 s.
        """
        super().data_received(data)
        if self.cycle is not None and not self.cycle.response_complete:
            if self._head is not None:
                self._head.cancel()
                self._head = None
        elif self._head is None:
            self._head = self.loop.call_later(HEAD_S, self.transport.abort)

    def send_400_response(self, msg: str) -> None:
        """Reply 400, as uvicorn's, unless a reply has begun, and close; the application's reply to the request is dropped."""
        if self.cycle is not None:
            self.cycle.disconnected = True
        if self.conn.our_state in {h11.IDLE, h11.SEND_RESPONSE}:
            super().send_400_response(msg)
        self.transport.close()

    def pause_writing(self) -> None:
        """Hold the application's writes, as uvicorn's.

        Start the timer that aborts the connection unless the client reads within 30 s.
        """
        super().pause_writing()
        self._taken = self.loop.call_later(TAKEN_S, self.transport.abort)

    def resume_writing(self) -> None:
        """Stop the timer of a slow client."""
        super().resume_writing()
        if self._taken is not None:
            self._taken.cancel()

    def connection_lost(self, exc: Exception | None) -> None:
        """Cancel both timers, and end the requests as uvicorn's."""
        for timer in (self._head, self._taken):
            if timer is not None:
                timer.cancel()
        super().connection_lost(exc)


def _close_idle(connections: Collection[Any], newest: Connection) -> bool:
    """Abort the connection that is idle longest, first of those without the token, never `newest`. Return False if none is idle.

    It also leaves the server's set of connections at once.
    """
    idle = [one for one in connections if one is not newest and one.idle and not one.transport.is_closing()]
    if not idle:
        return False
    oldest = min(idle, key=lambda one: (not one.stranger, one.idle_since))
    newest.server_state.connections.discard(oldest)
    oldest.transport.abort()
    return True


def _checked(connection: Any, app: Any) -> Any:
    """Return the application behind a check that replies 431, and closes, if path and headers have more than 64 KiB together.

    The parser's limit does not count a head that came at once. A request that is cancelled, as the server's time to end is over,
    gets 503; a reply that has begun is cut.
    """

    async def checked(scope: Scope, receive: Receive, send: Send) -> None:
        large = scope["type"] == "http" and sum(map(len, chain(*scope["headers"])), len(scope["raw_path"])) > HEAD_BYTES
        fault = reply({"error": f"the head has more than {HEAD_BYTES} bytes"}, 431, CLOSE) if large else None
        try:
            await (fault or app)(scope, receive, send)
        except asyncio.CancelledError:  # which uvicorn would log, with a traceback, and answer with 500
            if connection.cycle.response_started:
                connection.cycle.disconnected = True
                connection.transport.close()
            else:
                await ENDING.reply(scope["path"])(scope, receive, send)

    return checked


async def notify_alive(status: str, notify: Notify) -> None:
    """Notify the service manager that the application is ready, with a status line.

    Then, 3 times a watchdog period, that it works. Runs until it is cancelled; returns after the first notice if the manager has
    no watchdog.
    """
    notify.ready(status)
    while notify.watchdog_s is not None:
        notify.alive()
        await asyncio.sleep(notify.watchdog_s / BEATS)


def run(
    application: Any,
    host: str,
    port: int,
    beat: Beat,
    on_ready: Callable[[str], object] | None,
    stops: Callable[[Callable[[], object]], object] | None = None,
) -> int:
    """Listen, and run an application until SIGTERM, SIGINT or SIGHUP; then finish requests in progress for at most 5 s. Blocks.

    Returns that signal's number; 0 in a thread, which receives no signals, after `stops`, and if the application cannot start,
    which is logged. A forked child closes its copy of the socket.

    Args:
        application: the ASGI application.
        host: address to listen on.
        port: port to listen on; 0 selects a free one.
        beat: coroutine that runs beside it if there is a service manager, and is cancelled at the end.
        on_ready: called with the URL once the server listens.
        stops: called before the start with a function that ends the server as a signal does, from any thread.

    Raises:
        PolicyError: the address cannot be listened on.
        Exception: what `on_ready` raises, once the server has ended.
    """
    config = uvicorn.Config(
        application,
        http=Connection,  # on h11, the parser whose limits and refusals are tested, whatever else is installed
        ws="none",
        log_config=None,
        log_level="error",  # a warning is a client's fault: strangers could fill the log
        access_log=False,
        server_header=False,
        timeout_keep_alive=KEEP_ALIVE_S,
        timeout_graceful_shutdown=GRACE_S,
    )
    with _listen(host, port) as listener, _signals() as heard:
        address = listener.getsockname()
        child_closer = InChild(listener)
        url = f"http://[{address[0]}]:{address[1]}" if listener.family == socket.AF_INET6 else f"http://{address[0]}:{address[1]}"
        server = _Server(config, on_ready, url, heard, beat)
        if stops is not None:
            stops(server.stop)
        server.run([listener])
        del child_closer
    if server.failure is not None:
        raise server.failure
    return heard[0] if heard else 0


class InChild(ForkSafe):
    """Holder of a listening socket that closes it in the child of a fork.

    The child does not serve; else the port would stay taken while the child lives.
    """

    def __init__(self, listener: socket.socket) -> None:
        self._listener = listener

    def after_fork(self) -> None:
        """Close the child's descriptor, ignoring errors; the parent's stays open.

        `socket.close` would do nothing while an event loop uses the socket, as uvloop marks it.
        """
        with suppress(OSError):
            if (descriptor := self._listener.detach()) >= 0:
                os.close(descriptor)


class _Server(uvicorn.Server):
    """uvicorn server that reports its start, stops on an early signal, and notifies the service manager."""

    def __init__(
        self, config: uvicorn.Config, on_ready: Callable[[str], object] | None, url: str, heard: list[int], beat: Beat
    ) -> None:
        super().__init__(config)
        self._on_ready, self._url, self._heard, self._beat = on_ready, url, heard, beat
        self._notify = Notify()
        self._watch: asyncio.Task[None] | None = None
        self.failure: BaseException | None = None

    def stop(self) -> None:
        """Make the server shut down soon; safe from any thread."""
        self.should_exit = True

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start the application and listen; then run `beat` in a task, with a service manager, and call `on_ready` with the URL.

        If a signal has arrived already, make the server end instead; if the application did not start, do neither. What
        `on_ready` raises ends the server, and becomes `failure`.
        """
        await super().startup(sockets)
        if self._heard:  # before uvicorn listened to signals
            self.should_exit = True
        elif self.started:
            if self._notify:
                self._watch = asyncio.create_task(self._beat(self._notify))
            if self._on_ready is not None:
                try:
                    self._on_ready(self._url)
                except BaseException as e:  # noqa: BLE001 - raised again by `run`; uvicorn would log it with a traceback
                    self.failure, self.should_exit = e, True

    async def on_tick(self, counter: int) -> bool:
        """Return True to end, ten times a second: also after a signal that uvicorn does not listen to, a terminal's hang-up."""
        return bool(self._heard) or await super().on_tick(counter)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Cancel the task of `beat`, notify the service manager of the stop and close its socket, then shut down as uvicorn."""
        if self._watch is not None:
            self._watch.cancel()
        with self._notify:  # its exit sends STOPPING
            pass
        await super().shutdown(sockets)


def _check_unanswered(host: str, port: int) -> None:
    """Connect to the address, waiting at most 0.2 s, and raise OSError if a program accepts; return if none does."""
    try:
        socket.create_connection((host, port), ANSWERS_S).close()
    except OSError:
        return
    raise OSError(EADDRINUSE, "another program answers there")


def _listen(host: str, port: int) -> socket.socket:
    """Return a TCP socket that listens on the first address of the host. No other program gets the port from then on.

    Off Linux and Windows it first connects to a given port, waiting at most 0.2 s.

    Raises:
        PolicyError: the address cannot be listened on, or another program answers there; no socket stays open.
    """
    # The protocol is explicit because asyncio sets TCP_NODELAY only then; without it replies wait for an ACK.
    listener: socket.socket | None = None
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        if sys.platform == "win32":  # with SO_REUSEADDR there it would share the port, and without this option others could
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_EXCLUSIVEADDRUSE, 1)
        else:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if sys.platform != "linux" and port:  # elsewhere it would take the clients of a wildcard address's server
                _check_unanswered(host, port)
        listener.bind((host, port))
        listener.listen(BACKLOG)  # at once: until one of them listens, several may bind
    except (OSError, OverflowError) as e:
        if listener is not None:
            listener.close()
        raise PolicyError(f"cannot listen on {host}:{port}: {e}; choose another host or port, 0 for a free one") from e
    return listener


@contextmanager
def _signals() -> Iterator[list[int]]:
    """Collect the numbers of SIGINT, SIGTERM and SIGHUP in a list during the `with` block; restore the handlers after it.

    Catches signals before uvicorn listens to them, and those that uvicorn raises again at its end, which would end more. Outside
    the main thread the list stays empty.
    """
    heard: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield heard
        return
    names = ["SIGINT", "SIGTERM"]
    if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) is signal.SIG_DFL:  # else nohup has it ignored
        names.append("SIGHUP")
    handlers = {sig: signal.signal(sig, lambda number, _: heard.append(number)) for sig in map(signal.Signals.__getitem__, names)}
    try:
        yield heard
    finally:
        for sig, handler in handlers.items():
            signal.signal(sig, handler)
