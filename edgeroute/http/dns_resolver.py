"""DNS resolver in daemon threads: bounded in number, shared by equal names, abandoned when a caller runs out of time.

While the resolver is down, a name keeps its earlier addresses (RFC 8767), so that inference goes on where the cloud is still
reachable.
"""

from __future__ import annotations

import contextlib
import socket
import sys
from collections.abc import Callable, Iterable
from ipaddress import ip_address
from itertools import zip_longest
from math import inf
from time import monotonic
from typing import Any, NamedTuple

from edgeroute.system.fork_safety import ForkSafe, per_process
from edgeroute.system.signal_safe_locks import SafeLock
from edgeroute.system.thread_pool_and_workers import start_thread

MOST = 16  # maximum concurrent look-ups in this process; beyond it, a look-up of a further name fails at once
MOST_EACH = 4  # maximum concurrent look-ups of one name
# Seconds after which a look-up may be stuck on a dead DNS server, so that another of the same name is started beside it.
FRESH_S = 5.0

STALE_S = 86400.0  # seconds for which an earlier answer is used while the resolver does not answer
PATIENCE_S = 1.8  # seconds to wait for the resolver before an earlier answer is used
MOST_KEPT = 256  # maximum names whose addresses are stored
# Error numbers for "there is no such name". Empty on macOS, which reports them without a network, too.
_FINAL: set[int] = set() if sys.platform == "darwin" else {socket.EAI_NONAME, getattr(socket, "EAI_NODATA", socket.EAI_NONAME)}


class SocketAddress(NamedTuple):
    """Address family, and address to connect to as `socket.connect` takes it."""

    family: int
    address: Any


class Lookup:
    """Look-up of one name, in progress or done, for which several callers may wait."""

    def __init__(self, host: str, port: int, earlier: list[SocketAddress] | None = None) -> None:
        self.host, self.port, self.begun = host, port, monotonic()
        self.earlier = earlier or []  # addresses of an earlier look-up, used while the resolver is down
        self.done = False
        self._addresses: list[SocketAddress] = []
        self._error: BaseException | None = None
        self._wakes: list[Callable[[], object]] = []

    def run(self) -> None:
        """Resolve the name, blocking this thread; store its addresses in `RESOLVER`, and wake all waiting callers. Never raises.

        If the resolver fails, other than by "no such name", the result is the earlier addresses, if there are any; else its
        error, which `addresses` raises.
        """
        try:
            addresses = _alternating(socket.getaddrinfo(self.host, self.port, type=socket.SOCK_STREAM))
            if addresses:
                RESOLVER.keep(self.host, self.port, addresses)
            self.end(addresses)
        except BaseException as e:  # noqa: BLE001 - passed to the waiting callers
            if isinstance(e, socket.gaierror) and e.errno not in _FINAL and self.earlier:
                self.end(self.earlier)
            else:
                self.end([], e)

    def end(self, addresses: list[SocketAddress], error: BaseException | None = None) -> None:
        """Set the result, and wake all waiting callers."""
        self._addresses, self._error, self.done = addresses, error, True
        for wake in list(self._wakes):
            wake()

    def patience_s(self) -> float:
        """Return the seconds until the earlier addresses are to be used; inf if there are none. Below 0 once that has come."""
        return self.begun + PATIENCE_S - monotonic() if self.earlier else inf

    def addresses(self) -> list[SocketAddress]:
        """Return the addresses, in the order of trying; while the look-up is in progress, the earlier ones.

        Raises:
            OSError: the look-up failed.
        """
        if not self.done:
            return self.earlier
        if self._error is not None:
            raise self._error if isinstance(self._error, OSError) else OSError(str(self._error))
        return self._addresses

    def add(self, wake: Callable[[], object]) -> None:
        """Register `wake()` to be called when the look-up is done, or now if it is: from another thread, and possibly twice."""
        self._wakes.append(wake)
        if self.done:
            wake()

    def discard(self, wake: Callable[[], object]) -> None:
        """Unregister `wake()`; without effect if it is not registered."""
        with contextlib.suppress(ValueError):
            self._wakes.remove(wake)


class Resolver(ForkSafe):
    """Starter of look-ups, each in a daemon thread, and store of earlier addresses. Safe in several threads and across forks."""

    _lock = per_process(SafeLock)  # reentrant: a signal handler may call the router
    _running: list[Lookup] = per_process(list)
    _addresses: dict[tuple[str, int], tuple[float, list[SocketAddress]]] = per_process(dict)

    def find(self, host: str, port: int) -> Lookup:
        """Start the look-up of a name in a daemon thread, or return the one in progress; does not wait.

        A numeric address is done at once. A second look-up of the same name is started if the last one may be stuck (`FRESH_S`),
        up to `MOST_EACH`. If `MOST` are running, the result is the addresses of at most `STALE_S` ago. Without a thread it is an
        error.

        Raises:
            OSError: `MOST` are running, and no earlier addresses are stored.
        """
        if (numeric := _numeric(host, port)) is not None:
            return numeric
        with self._lock:
            running = self._running = [lookup for lookup in self._running if not lookup.done]
            same = [lookup for lookup in running if (lookup.host, lookup.port) == (host, port)]
            full = len(running) >= MOST
            if same and (full or len(same) >= MOST_EACH or monotonic() - same[-1].begun < FRESH_S):
                return same[-1]
            stored_at, earlier = self._addresses.get((host, port), (-inf, []))
            if monotonic() - stored_at > STALE_S:
                earlier = []
            if full and not earlier:
                raise OSError(f"{host} was not looked up: {len(running)} other look-ups hang")
            lookup = Lookup(host, port, earlier)
            if full:
                lookup.end(earlier)
            elif start_thread("edgeroute-lookup", lookup.run) is None:
                lookup.end([], OSError("there is no thread to look it up"))
            running.append(lookup)  # after its start: if that is interrupted, nobody waits for it in vain
            return lookup

    def keep(self, host: str, port: int, addresses: list[SocketAddress]) -> None:
        """Store addresses with the present instant, for when the resolver is down.

        Beyond `MOST_KEPT` names the oldest is deleted.
        """
        with self._lock:
            self._addresses.pop((host, port), None)
            self._addresses[host, port] = monotonic(), addresses
            if len(self._addresses) > MOST_KEPT:
                del self._addresses[next(iter(self._addresses))]


RESOLVER = Resolver()


def _numeric(host: str, port: int) -> Lookup | None:
    """Return a completed look-up of a numeric address, which may have failed for its scope; None if the host is a name."""
    try:
        address = ip_address(host)
    except ValueError:
        return None
    lookup = Lookup(host, port)
    if address.version == 4:  # noqa: PLR2004
        lookup.end([SocketAddress(socket.AF_INET, (host, port))])
    else:
        number, _, scope = host.partition("%")
        try:
            interface = int(scope) if scope.isdigit() else socket.if_nametoindex(scope) if scope else 0
            lookup.end([SocketAddress(socket.AF_INET6, (number, port, 0, interface))])
        except OSError:
            lookup.end([], OSError(f"this device has no interface {scope!r}"))
    return lookup


def _alternating(infos: Iterable[tuple[Any, ...]]) -> list[SocketAddress]:
    """Return the IP addresses with their families interleaved, the system's preferred one first (RFC 8305), each in its order.

    Other families are left out.
    """
    families: dict[int, list[SocketAddress]] = {}
    for family, _, _, _, address in infos:
        if family in {socket.AF_INET, socket.AF_INET6}:
            families.setdefault(family, []).append(SocketAddress(family, address))
    return [item for group in zip_longest(*families.values()) for item in group if item is not None]
