"""Network of a Linux device: routes and metering (`Links`), and a thread that calls when a link comes up (`NetworkMonitor`).

Routes come from the kernel, metering from NetworkManager. Nothing is sent. On other systems all is unknown, and the thread never
calls.
"""

from __future__ import annotations

import errno
import select
import socket
import struct
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from math import inf
from time import monotonic

from edgeroute.observe.device.kernel_files_and_cached_commands import Commands, Files, Measurement
from edgeroute.system.fork_safety import ForkSafe, initially, per_process
from edgeroute.system.signal_safe_locks import SafeLock
from edgeroute.system.thread_pool_and_workers import Worker

MOST = 65536  # most bytes of a routing table that are read
UP, REJECT = 0x1, 0x200
METERED_S = 30.0  # minimum time between two queries to NetworkManager, seconds
# Command that queries NetworkManager.
BUS = (
    "busctl", "--system", "--auto-start=no", "--timeout=1", "get-property", "org.freedesktop.NetworkManager",
    "/org/freedesktop/NetworkManager", "org.freedesktop.NetworkManager", "Metered",
)  # fmt: skip
STATES = {"1": True, "2": False, "3": True, "4": False}  # values of NMMetered: yes, no, and each as a guess; 0 is unknown
LINK_LOCAL = 0xFEA9  # 169.254, in network byte order


class Links:
    """Reader of the routes, and of whether bytes cost money."""

    def __init__(self, files: Files, commands: Commands) -> None:
        self._files, self._commands = files, commands

    def find(self) -> None:
        """Look for NetworkManager, which has a folder while it runs."""
        self._manager = bool(self._files.match("run/NetworkManager"))

    def read(self, now: float) -> dict[str, Measurement]:
        """Return `network`, True if there is a route away from this device, and `metered`, True if the link is metered."""
        return {"network": self._network(), "metered": self._metered(now)}

    def _network(self) -> Measurement:
        """Return True as a value if an interface with a carrier has a route away from this device.

        An interface without a carrier file counts as having one. Unknown without routing tables.
        """
        tables = [self._table(name) for name in ("route", "ipv6_route")]
        if tables == [None, None]:
            return Measurement(None, self._files.why("proc/net/route"))
        for six, text in enumerate(tables):
            for interface in _routes(text or "", six=bool(six)):
                if self._files.number(f"sys/class/net/{interface}/carrier") != 0:  # an interface without this file counts
                    return Measurement(value=True, source=f"a route by {interface}")
        return Measurement(value=False, source="no route leads away from this device")

    def _table(self, name: str) -> str | None:
        """Return the text of a routing table; None: it cannot be read."""
        try:
            return self._files.text(f"proc/net/{name}", MOST)
        except OSError:
            return None

    def _metered(self, now: float) -> Measurement:
        """Return NetworkManager's state of the link, from the last output of `busctl`, which runs in the background.

        Unknown before the first output, and without NetworkManager.
        """
        if not self._manager:
            return Measurement(None, "NetworkManager does not run here")
        if (output := self._commands.output(*BUS, every_s=METERED_S, now=now)) is None:
            return Measurement(None, "NetworkManager has not answered yet")
        state = STATES.get(output.partition("u ")[2].strip())
        return Measurement(state, "NetworkManager" if state is not None else "NetworkManager does not know, or busctl failed")


def _routes(text: str, *, six: bool) -> Iterator[str]:
    """Yield the interfaces of a routing table that have a route away from this device: no loopback, link-local or multicast.

    Damaged lines, and the headings of the table of IPv4, are skipped. six: True for the table of IPv6.
    """
    for line in text.splitlines():
        try:
            if six:
                destination, *_, bits, interface = line.split()
            else:
                interface, destination, _, bits, *_ = line.split()
            flags, near = int(bits, 16), not six and int(destination, 16) & 0xFFFF == LINK_LOCAL
        except ValueError:
            continue
        near = near or (six and destination[:2] in {"fe", "ff"})
        if flags & UP and not flags & REJECT and interface != "lo" and not near:
            yield interface


QUIET_S = 0.05  # debounce, as changes come in bursts: the callback is called after so many seconds without another change ...
MOST_S = 1.0  # ... and at the latest so many seconds after the first change.

# rtnetlink constants, which Python does not define
_GROUPS = 0x1 | 0x10 | 0x40 | 0x100 | 0x400  # links; addresses and routes of IPv4 and of IPv6
_HEADER, _LINK = struct.Struct("=LHHLL"), struct.Struct("=BxHiII")
_NEW_LINK, _DEL_LINK, _GET_LINK, _NEW_ADDRESS, _NEW_ROUTE = 16, 17, 18, 20, 24
_DUMP = 0x301  # request a dump of all links
_LOOPBACK, _LOWER_UP = 0x8, 0x10000
_SCOPE_LINK, _UNICAST, _TABLE_LOCAL = 253, 1, 255


class NetworkMonitor(ForkSafe):
    """Thread that calls `on_up()` when a link, an address or a route comes up; not for those already up at the start.

    A carrier (cable plugged in, Wi-Fi associated) counts at once; its address then causes another call, and so may a renewed
    address. Loopback, link-local addresses and anything going down are ignored.

    Args:
        on_up: called in the monitor's thread; its exceptions are logged.

    Attributes:
        works: True while changes are received: only after `start()`, and never without rtnetlink (other systems than Linux, some
            sandboxes) or without a thread.
    """

    works = initially(False)
    _lock = per_process(SafeLock)
    _worker: Worker | None = initially(None)
    _sockets: tuple[socket.socket, ...] = initially((), lambda inherited: _close(*inherited))

    def __init__(self, on_up: Callable[[], None]) -> None:
        self._on_up = on_up

    def start(self) -> None:
        """Start the thread, unless it runs.

        Without rtnetlink, free file descriptors or threads, nothing starts and `works` stays False.
        """
        with self._lock:
            if self.works or (netlink := listen()) is None:
                return
            try:
                stop, stopped = socket.socketpair()
            except OSError:  # too many files are open
                netlink.close()
                return
            turn = partial(self._report, _bursts(netlink, stopped))
            worker = Worker("edgeroute-link", turn, "the network is up, but the callback failed", retry_s=0.0)
            if worker.start():
                self.works, self._sockets, self._worker = True, (stop, stopped, netlink), worker
            else:
                _close(stop, stopped, netlink)

    def _report(self, bursts: Iterator[None]) -> float | None:
        """Wait for the next burst of changes, and call `on_up`; return 0 for the next turn, None once the monitor is closed."""
        for _ in bursts:
            self._on_up()
            return 0.0
        return None

    def close(self) -> None:
        """Stop the thread, waiting for a running `on_up()`; `start()` may be called again. A no-op if none runs."""
        with self._lock:
            if self._worker is None:
                return
            sockets, worker = self._sockets, self._worker
            self.works, self._sockets, self._worker = False, (), None
            sockets[0].shutdown(socket.SHUT_RDWR)  # close() alone does not wake the thread while a forked child holds the socket
        worker.close()
        _close(*sockets)


def _close(*sockets: socket.socket) -> None:
    """Close these sockets."""
    for sock in sockets:
        sock.close()


def listen() -> socket.socket | None:
    """Return a netlink socket that receives changes of links, addresses and routes.

    None: the system has no netlink, or it is not allowed.
    """
    if sys.platform != "linux":
        return None
    try:
        netlink = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE)
    except OSError:
        return None
    try:
        netlink.bind((0, _GROUPS))
    except OSError:
        netlink.close()
        return None
    return netlink


def _bursts(netlink: socket.socket, stopped: socket.socket) -> Iterator[None]:
    """Request a dump of all current links, then yield after each burst of interfaces and addresses that come up; blocks.

    A burst ends after `QUIET_S`, or `MOST_S` at the latest. The iterator ends when the peer of `stopped` is shut down, or at once
    off Linux. Without a dump, a link that was already up counts as coming up at its next change.
    """
    if sys.platform != "linux":  # it has no netlink
        return
    with suppress(OSError):  # here, as the kernel may hold it up for a second while others change interfaces
        netlink.send(_HEADER.pack(_HEADER.size + _LINK.size, _GET_LINK, _DUMP, 0, 0) + _LINK.pack(0, 0, 0, 0, 0))
    poll = select.poll()
    poll.register(netlink, select.POLLIN)
    poll.register(stopped, select.POLLIN)
    me, up = netlink.getsockname()[0], set[int]()
    first = due = inf
    while True:
        ready = poll.poll(None if due == inf else max(0.0, due - monotonic()) * 1000)
        if any(fd == stopped.fileno() for fd, _ in ready):
            return
        now = monotonic()
        if ready and comes_up(netlink, me, up):
            first = min(first, now)
            due = min(now + QUIET_S, first + MOST_S)
        if now >= due:
            first = due = inf
            yield


def comes_up(netlink: socket.socket, me: int, up: set[int]) -> bool:
    """Read one batch of messages from the socket. Return True if a link, address or route came up.

    True as well if messages were lost (ENOBUFS); False for other errors of the socket.

    Args:
        netlink: the socket, which has data to read.
        me: the socket's port; messages addressed to it are the initial dump, and do not count.
        up: indices of the links that are up, updated in place.
    """
    try:
        data = netlink.recv(1 << 16)
    except OSError as e:
        return e.errno == errno.ENOBUFS  # the receive buffer overflowed: a change may have been lost
    came_up, offset = False, 0
    while offset + _HEADER.size <= len(data):
        size, kind, _, _, port = _HEADER.unpack_from(data, offset)
        body = offset + _HEADER.size
        if kind in {_NEW_LINK, _DEL_LINK}:
            family, _, index, flags, _ = _LINK.unpack_from(data, body)
            if family == socket.AF_UNSPEC:  # other families: bridge port events
                if kind == _NEW_LINK and flags & _LOWER_UP and not flags & _LOOPBACK:
                    came_up |= index not in up and port != me
                    up.add(index)
                else:
                    up.discard(index)
        elif kind == _NEW_ADDRESS:
            came_up |= data[body + 3] < _SCOPE_LINK
        elif kind == _NEW_ROUTE:
            came_up |= data[body + 7] == _UNICAST and data[body + 4] != _TABLE_LOCAL
        offset += max(size + 3 & ~3, _HEADER.size)
    return came_up
