"""Network state: whether the kernel's tables have a route, and whether NetworkManager calls the link metered."""

from __future__ import annotations

from collections.abc import Iterator

from edgeroute.observe.device.commands import Commands
from edgeroute.observe.device.files import Files, Measurement

MOST = 65536
"""Most bytes of a routing table that are read."""
UP, REJECT = 0x1, 0x200
METERED_S = 30.0
"""Minimum time between two queries to NetworkManager, seconds."""
BUS = (
    "busctl", "--system", "--auto-start=no", "--timeout=1", "get-property", "org.freedesktop.NetworkManager",
    "/org/freedesktop/NetworkManager", "org.freedesktop.NetworkManager", "Metered",
)  # fmt: skip
"""Command that queries NetworkManager."""
STATES = {"1": True, "2": False, "3": True, "4": False}
"""Values of NMMetered: yes, no, and each as a guess; 0 is unknown."""
LINK_LOCAL = 0xFEA9
"""169.254, in network byte order."""


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
        """Return True as a value if an interface with a carrier has a route away from this device."""
        tables = [(self._table(name), of) for name, of in (("route", _routes), ("ipv6_route", _routes6))]
        if all(text is None for text, _ in tables):
            return Measurement(None, self._files.why("proc/net/route"))
        for text, routes in tables:
            for interface in routes(text or ""):
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
        """Return NetworkManager's state of the link, from the last output of `busctl`, which runs in the background."""
        if not self._manager:
            return Measurement(None, "NetworkManager does not run here")
        output = self._commands.output(*BUS, every_s=METERED_S, now=now)
        if output is None:
            return Measurement(None, "NetworkManager has not answered yet")
        state = STATES.get(output.partition("u ")[2].strip())
        return Measurement(state, "NetworkManager" if state is not None else "NetworkManager does not know, or busctl failed")


def _routes(text: str) -> Iterator[str]:
    """Yield the interfaces of a table of IPv4 that have a route away from this device: neither loopback nor link-local."""
    for line in text.splitlines()[1:]:
        try:
            interface, destination, _, bits, *_ = line.split()
            address, flags = int(destination, 16), int(bits, 16)
        except ValueError:
            continue
        if interface == "lo":
            continue
        if flags & UP and not flags & REJECT and address & 0xFFFF != LINK_LOCAL:
            yield interface


def _routes6(text: str) -> Iterator[str]:
    """Yield the interfaces of a table of IPv6 that have a route away from this device: neither link-local nor multicast."""
    for line in text.splitlines():
        try:
            destination, *_, bits, interface = line.split()
            flags = int(bits, 16)
        except ValueError:
            continue
        if flags & UP and not flags & REJECT and interface != "lo" and destination[:2] not in {"fe", "ff"}:
            yield interface
