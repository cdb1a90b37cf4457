"""Tells systemd, or another service manager, that a service is ready, alive and stopping: the protocol of sd_notify(3).

A datagram on a socket whose name is in the environment. The libraries for it are unmaintained, under the GPL, or need libsystemd.
"""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import MutableMapping
from time import monotonic
from types import TracebackType

_log = logging.getLogger("edgeroute")
BEATS = 3
"""Signs of life in a watchdog's period: two may be late."""
_DIGITS = 20
"""Of a time in microseconds, which has 64 bits."""


class Notify:
    """Messages to the service manager; without one nothing is sent. Usable in a `with`, which says at its end that it stops.

    Args:
        environment: where NOTIFY_SOCKET, WATCHDOG_USEC and WATCHDOG_PID are. They are taken out, so that no child has them.

    Attributes:
        watchdog_s: within so many seconds it has to be told that the service is alive; None: it asks for nothing.
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
        """The service is ready."""
        self._send("READY=1", *([f"STATUS={status}"] if status else []))

    def status(self, text: str) -> None:
        """One line for `systemctl status`."""
        self._send(f"STATUS={text}")

    def alive(self) -> None:
        """The service works. Cheap: it may be called after each answer, and sends three times a period."""
        if self.watchdog_s is not None and (now := monotonic()) >= self._next:
            self._next = now + self.watchdog_s / BEATS
            self._send("WATCHDOG=1")

    def stopping(self) -> None:
        """The service ends."""
        self._send("STOPPING=1")

    def __enter__(self) -> Notify:  # noqa: PYI034 - typing.Self is Python 3.11's
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.stopping()
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _send(self, *lines: str) -> None:
        if self._socket is None:
            return
        try:
            self._socket.send("\n".join(" ".join(line.split()) for line in lines).encode("utf-8", "replace"))
        except OSError as e:  # it must not end the service; a sign of life that is missing is the manager's to judge
            _log.warning("the service manager cannot be told %s: %s", lines[0], e)


def _connected(name: str) -> socket.socket | None:
    if not hasattr(socket, "AF_UNIX") or name[0] not in "/@":
        _log.warning("NOTIFY_SOCKET=%s is no socket that is known here", name)
        return None
    one = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    one.setblocking(False)
    try:
        one.connect("\0" + name[1:] if name[0] == "@" else name)
    except (OSError, ValueError) as e:
        one.close()
        _log.warning("the service manager cannot be told anything, at NOTIFY_SOCKET=%s: %s", name, e)
        return None
    return one
