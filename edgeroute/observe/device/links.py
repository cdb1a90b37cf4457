"""Network: whether there is a route, by the kernel's tables, and whether the link is metered, by NetworkManager."""

from __future__ import annotations

from collections.abc import Iterator

from edgeroute.observe.device.commands import Commands
from edgeroute.observe.device.files import Files, Told

MOST = 65536
"""Most bytes of a routing table that are read."""
UP, REJECT = 0x1, 0x200
METERED_S = 30.0
"""Minimum time between two questions to NetworkManager."""
BUS = (
    "busctl", "--system", "--auto-start=no", "--timeout=1", "get-property", "org.freedesktop.NetworkManager",
    "/org/freedesktop/NetworkManager", "org.freedesktop.NetworkManager", "Metered",
)  # fmt: skip
STATES = {"1": True, "2": False, "3": True, "4": False}
"""NMMetered: yes, no, and each as a guess; 0 is unknown."""
LINK_LOCAL = 0xFEA9
"""169.254, in the order of the network."""


class Links:
    """Routes and whether bytes cost money."""

    def __init__(self, files: Files, commands: Commands) -> None:
        self._files, self._commands = files, commands

    def find(self) -> None:
        """Looks for NetworkManager, which has a folder while it runs."""
        self._manager = bool(self._files.match("run/NetworkManager"))

    def read(self, now: float) -> dict[str, Told]:
        """Whether there is a route to anywhere, and whether the link is metered."""
        return {"network": self._network(), "metered": self._metered(now)}

    def _network(self) -> Told:
        tables = [(self._table(name), of) for name, of in (("route", _routes), ("ipv6_route", _routes6))]
        if all(text is None for text, _ in tables):
            return Told(None, self._files.why("proc/net/route"))
        for text, routes in tables:
            for interface in routes(text or ""):
                if self._files.number(f"sys/class/net/{interface}/carrier") != 0:  # one that does not tell counts
                    return Told(value=True, by=f"a route by {interface}")
        return Told(value=False, by="no route leads away from this device")

    def _table(self, name: str) -> str | None:
        try:
            return self._files.text(f"proc/net/{name}", MOST)
        except OSError:
            return None

    def _metered(self, now: float) -> Told:
        if not self._manager:
            return Told(None, "NetworkManager does not run here")
        output = self._commands.output(*BUS, every_s=METERED_S, now=now)
        if output is None:
            return Told(None, "NetworkManager has not answered yet")
        state = STATES.get(output.partition("u ")[2].strip())
        return Told(state, "NetworkManager" if state is not None else "NetworkManager does not know, or busctl failed")


def _routes(text: str) -> Iterator[str]:
    """Interfaces with a route of IPv4 that leads away: not loopback, not link-local."""
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
    """The same of IPv6: neither link-local nor multicast."""
    for line in text.splitlines():
        try:
            destination, *_, bits, interface = line.split()
            flags = int(bits, 16)
        except ValueError:
            continue
        if flags & UP and not flags & REJECT and interface != "lo" and destination[:2] not in {"fe", "ff"}:
            yield interface
