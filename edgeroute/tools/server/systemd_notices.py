"""Notices to systemd, or another service manager, that a service is ready, alive or stopping: the protocol of sd_notify(3).

A notice is a datagram on a socket whose name is in the environment. The libraries for it are unmaintained, under the GPL, or need
libsystemd.
"""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import MutableMapping
from contextlib import AbstractContextManager
from time import monotonic

_log = logging.getLogger("edgeroute")
BEATS = 3  # notices of life in a watchdog's period: two may be late
_DIGITS = 20  # most digits of a time in microseconds, which has 64 bits


class Notify(AbstractContextManager["Notify"]):
    """Sender of notices to the service manager; without a manager nothing is sent.

    Usable in a `with`, which at its end sends that the service stops, and closes the socket.

    Args:
        environment: mapping with NOTIFY_SOCKET, WATCHDOG_USEC and WATCHDOG_PID. They are removed from it, so that no child
            process has them.

    Attributes:
        watchdog_s: time within which the manager expects a notice of life, seconds; None: it expects none.
    """

    def __init__(self, environment: MutableMapping[str, str] | None = None) -> None:
        environment = os.environ if environment is None else environment
        name, period, pid = (environment.pop(key, "") for key in ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"))
        self._socket, self._next = _connected(name) if name else None, 0.0
        mine = self._socket is not None and pid in ("", str(os.getpid())) and period.isdecimal() and len(period) <= _DIGITS
        self.watchdog_s = int(period) / 1e6 or None if mine else None

    def __bool__(self) -> bool:
        return self._socket is not None

    def ready(self, status: str = "") -> None:
        """Send that the service is ready, with a status line if there is one."""
        self._send("READY=1", *([f"STATUS={status}"] if status else []))

    def status(self, text: str) -> None:
        """Send a line for `systemctl status`."""
        self._send(f"STATUS={text}")

    def alive(self) -> None:
        """Send that the service works, at most three times a period; nothing if no notices are expected. Cheap."""
        if self.watchdog_s is not None and (now := monotonic()) >= self._next:
            self._next = now + self.watchdog_s / BEATS
            self._send("WATCHDOG=1")

    def stopping(self) -> None:
        """Send that the service stops."""
        self._send("STOPPING=1")

    def __exit__(self, *_: object) -> None:
        self.stopping()
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _send(self, *lines: str) -> None:
        """Send lines as one datagram, without waiting; log a failure instead of raising it. Without a manager nothing is sent.

        White space in a line, a line break too, becomes one space.
        """
        if self._socket is None:
            return
        try:
            self._socket.send("\n".join(" ".join(line.split()) for line in lines).encode("utf-8", "replace"))
        except OSError as e:  # it must not end the service; the manager judges a missing notice
            _log.warning("the notice %s did not reach the service manager: %s", lines[0], e)


def _connected(name: str) -> socket.socket | None:
    """Return a non-blocking datagram socket connected to that path, or to an abstract name that begins with `@`.

    None, with a logged warning, if that fails, or the system has no Unix sockets.
    """
    if not hasattr(socket, "AF_UNIX") or name[0] not in "/@":
        _log.warning("NOTIFY_SOCKET=%s is no Unix socket: no notices are sent", name)
        return None
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    connection.setblocking(False)
    try:
        connection.connect("\0" + name[1:] if name[0] == "@" else name)
    except (OSError, ValueError) as e:
        connection.close()
        _log.warning("the service manager cannot be reached at NOTIFY_SOCKET=%s: %s", name, e)
        return None
    return connection
