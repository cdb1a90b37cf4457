"""DNS resolver in daemon threads: a limited number, shared by equal names, abandoned when a caller runs out of time.

While the resolver itself is down, a name has the addresses that it had (RFC 8767): inference goes on where the cloud is there.
"""

from __future__ import annotations

import contextlib
import socket
import sys
import threading
from collections.abc import Callable, Iterable
from ipaddress import ip_address
from itertools import zip_longest
from math import inf
from time import monotonic
from typing import Any, NamedTuple

from edgeroute.system.forks import ForkSafe, per_process

MOST = 16
"""Maximum concurrent look-ups in this process; beyond it, one of another name fails at once."""
MOST_EACH = 4
FRESH_S = 5.0
"""Seconds after which a look-up may be stuck on a dead DNS server: another of the same name is started beside it, up to
`MOST_EACH`."""

STALE_S = 86400.0
"""Seconds for which an earlier answer is used while the resolver does not answer."""
PATIENCE_S = 1.8
"""Seconds for which the resolver is waited for where there is an earlier answer."""
MOST_KEPT = 256
_FINAL: set[int] = set() if sys.platform == "darwin" else {socket.EAI_NONAME, getattr(socket, "EAI_NODATA", socket.EAI_NONAME)}
"""The resolver's answer that there is no such name. macOS says so too without a network."""


class SocketAddress(NamedTuple):
    """Arguments for making a socket and connecting it."""

    family: int
    address: Any


class Lookup:
    """One look-up, in progress or done."""

    def __init__(self, host: str, port: int, earlier: list[SocketAddress] | None = None) -> None:
        self.host, self.port, self.begun = host, port, monotonic()
        self.earlier = earlier or []
        """What an earlier look-up has found."""
        self.done = False
        self._found: list[SocketAddress] = []
        self._error: BaseException | None = None
        self._wakes: list[Callable[[], object]] = []

    def run(self) -> None:
        """Resolves the name, in this thread."""
        try:
            found = _alternating(socket.getaddrinfo(self.host, self.port, type=socket.SOCK_STREAM))
            if found:
                RESOLVER.keep(self.host, self.port, found)
            self.end(found)
        except socket.gaierror as e:
            if self.earlier and e.errno not in _FINAL:
                self.end(self.earlier)
            else:
                self.end([], e)
        except BaseException as e:  # noqa: BLE001 - passed to the waiting callers
            self.end([], e)

    def end(self, found: list[SocketAddress], error: BaseException | None = None) -> None:
        """Sets the result, and wakes all waiting callers."""
        self._found, self._error, self.done = found, error, True
        for wake in list(self._wakes):
            wake()

    def patience_s(self) -> float:
        """Seconds until what was found earlier is to be used; inf: nothing was."""
        return self.begun + PATIENCE_S - monotonic() if self.earlier else inf

    def addresses(self) -> list[SocketAddress]:
        """The addresses, in order of trying."""
        if not self.done:
            return self.earlier
        if self._error is not None:
            raise self._error if isinstance(self._error, OSError) else OSError(str(self._error))
        return self._found

    def add(self, wake: Callable[[], object]) -> None:
        """Registers `wake()` to be called once it is done, or now if it is; from another thread, possibly twice."""
        self._wakes.append(wake)
        if self.done:
            wake()

    def discard(self, wake: Callable[[], object]) -> None:
        """Unregisters it."""
        with contextlib.suppress(ValueError):
            self._wakes.remove(wake)


class Resolver(ForkSafe):
    """Starts look-ups, or joins those in progress."""

    _lock = per_process(threading.RLock)  # reentrant: a signal handler may call the router
    _running: list[Lookup] = per_process(list)
    _found: dict[tuple[str, int], tuple[float, list[SocketAddress]]] = per_process(dict)

    def find(self, host: str, port: int) -> Lookup:
        """The look-up of a name, to wait for; that of a numeric address is done at once.

        Raises:
            OSError: the maximum of concurrent look-ups is reached.
        """
        numeric = _numeric(host, port)
        if numeric is not None:
            return numeric
        with self._lock:
            running = self._running = [lookup for lookup in self._running if not lookup.done]
            same = [lookup for lookup in running if (lookup.host, lookup.port) == (host, port)]
            full = len(running) >= MOST
            if same and (full or len(same) >= MOST_EACH or monotonic() - same[-1].begun < FRESH_S):
                return same[-1]
            at, earlier = self._found.get((host, port), (-inf, []))
            if monotonic() - at > STALE_S:
                earlier = []
            if full and earlier:
                lookup = Lookup(host, port)
                lookup.end(earlier)
                return lookup
            if full:
                raise OSError(f"{host} was not looked up: {len(running)} other look-ups hang")
            lookup = Lookup(host, port, earlier)
            try:
                threading.Thread(target=lookup.run, name="edgeroute-lookup", daemon=True).start()
            except RuntimeError as e:  # no more threads can be started
                lookup.end([], e)
            running.append(lookup)  # after its start: if that is interrupted, nobody waits for it in vain
            return lookup

    def keep(self, host: str, port: int, found: list[SocketAddress]) -> None:
        """Keeps an answer, for when the resolver is down; the oldest goes."""
        with self._lock:
            self._found.pop((host, port), None)
            self._found[host, port] = monotonic(), found
            if len(self._found) > MOST_KEPT:
                del self._found[next(iter(self._found))]


RESOLVER = Resolver()


def _numeric(host: str, port: int) -> Lookup | None:
    try:
        address = ip_address(host)
    except ValueError:
        return None
    lookup = Lookup(host, port)
    if address.version == 4:  # noqa: PLR2004
        lookup.end([SocketAddress(socket.AF_INET, (host, port))])
    elif "%" not in host:
        lookup.end([SocketAddress(socket.AF_INET6, (host, port, 0, 0))])
    else:  # an IPv6 interface has a scope number
        with contextlib.suppress(OSError):
            scope = host.partition("%")[2]
            index = int(scope) if scope.isdigit() else socket.if_nametoindex(scope)
            lookup.end([SocketAddress(socket.AF_INET6, (host.partition("%")[0], port, 0, index))])
        if not lookup.done:
            lookup.end([], OSError(f"this device has no interface {scope!r}"))
    return lookup


def _alternating(found: Iterable[tuple[Any, ...]]) -> list[SocketAddress]:
    """Interleaves the address families, the system's preferred one first (RFC 8305), each in the system's order."""
    families: dict[int, list[SocketAddress]] = {}
    for family, _, _, _, address in found:
        if family in {socket.AF_INET, socket.AF_INET6}:
            families.setdefault(family, []).append(SocketAddress(family, address))
    return [one for turn in zip_longest(*families.values()) for one in turn if one is not None]
