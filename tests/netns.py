"""A network of two machines, in namespaces of the kernel: what runs in one of them can be cut off, and its packets counted.

    with Namespace() as ns:
        ns.run([sys.executable, "-c", "..."])
        assert ns.packets() == 0

Needs root. There is no ARP, no IPv6 and nothing else that speaks by itself, so that a count of zero is a zero.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
import socket
import struct
import subprocess
import threading
from itertools import count
from pathlib import Path

import pytest

LONG = 120.0
_MARK = 0x88B5
"""An Ethernet type for local experiments: these frames are ours, and not counted."""
_ALL, _OUTGOING, _SOL_PACKET, _STATISTICS, _NEWNET = 3, 4, 263, 6, 0x40000000
_numbers = count()


def within(name, job):
    """Runs job() in a thread that is in that namespace; the sockets and threads that it makes stay there."""
    results = []

    def work():
        with Path("/run/netns", name).open("rb") as namespace:
            if ctypes.CDLL(None, use_errno=True).setns(namespace.fileno(), _NEWNET):
                results.append(OSError(ctypes.get_errno(), f"cannot enter {name}"))
                return
        try:
            results.append(job())
        except BaseException as e:  # noqa: BLE001 - the caller's thread raises it
            results.append(e)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    if isinstance(results[0], BaseException):
        raise results[0]
    return results[0]


class Namespace:
    """A machine at `address` whose only way out leads to its `peer`, which is its name server, too.

    Attributes:
        name, peer_name: of the two namespaces.
        seen: the first bytes of each packet that left, without the Ethernet header.
    """

    address, peer = "10.77.0.1", "10.77.0.2"

    def __init__(self):
        self.name = f"edgeroute-{os.getpid()}-{next(_numbers)}"
        self.peer_name = f"{self.name}-peer"
        self.seen = []
        self._undo = contextlib.ExitStack()

    def __enter__(self):
        with contextlib.ExitStack() as undo:
            for name in (self.name, self.peer_name):
                _ip(f"netns add {name}")
                undo.callback(_ip, f"netns delete {name}")
                within(name, _silence)
            # both ends have the same hardware address, so that they need no ARP: its silence would betray a cut
            end = "address 02:00:00:00:00:01 arp off netns"
            _ip(f"link add inner {end} {self.name} type veth peer name outer {end} {self.peer_name}")
            self.ip(f"address add {self.address}/30 dev inner")
            self.ip("link set lo up")
            self.mend()
            self.ip("link set lo up", name=self.peer_name)
            self.ip("link set outer up", name=self.peer_name)
            etc = Path("/etc/netns", self.name)
            etc.mkdir(parents=True)
            undo.callback(_remove, etc)
            (etc / "resolv.conf").write_text(f"nameserver {self.peer}\noptions timeout:1 attempts:1\n")
            self._sniffer = undo.enter_context(within(self.peer_name, self._sniff))
            self.up()
            self._undo = undo.pop_all()
        return self

    def __exit__(self, *_):
        self._undo.close()

    def popen(self, argv, **options):
        """Starts a program in it."""
        return subprocess.Popen(["ip", "netns", "exec", self.name, *map(str, argv)], **options)

    def run(self, argv, **options):
        """Runs a program in it to its end. -> what it printed."""
        argv = ["ip", "netns", "exec", self.name, *map(str, argv)]
        return subprocess.run(argv, check=True, stdout=subprocess.PIPE, text=True, **options).stdout

    def at_peer(self, job):
        """Runs job() on the peer; a server that it makes listens there."""
        return within(self.peer_name, job)

    def ip(self, command, *, name=None):
        """Runs `ip command` in it, or in the namespace of that name."""
        _ip(f"-n {name or self.name} {command}")

    def down(self):
        """Pulls the cable."""
        self.ip("link set inner down")

    def up(self):
        """Puts it back; the way out is there again."""
        self.ip("link set inner up")
        self.ip(f"route replace default via {self.peer}")

    def cut(self):
        """The peer drops all that comes, without a word: only a time limit tells."""
        self.ip(f"address delete {self.peer}/30 dev outer", name=self.peer_name)

    def mend(self):
        """Undoes `cut()`."""
        self.ip(f"address add {self.peer}/30 dev outer", name=self.peer_name)

    def packets(self):
        """How many packets have left so far. The cable must be plugged in: the count is up to a frame that is sent now."""
        marks = within(self.name, _send_marks)
        while marks:
            data, (_, kind, direction, *_) = self._sniffer.recvfrom(128)
            if direction != _OUTGOING and kind == _MARK:
                marks -= 1
            elif direction != _OUTGOING:
                self.seen.append(data[14:])
        _, dropped = struct.unpack("=II", self._sniffer.getsockopt(_SOL_PACKET, _STATISTICS, 8))
        assert not dropped
        return len(self.seen)

    def _sniff(self):
        sniffer = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(_ALL))
        sniffer.setsockopt(socket.SOL_SOCKET, 33, 64 << 20)  # SO_RCVBUFFORCE
        sniffer.bind(("outer", _ALL))
        sniffer.settimeout(LONG)
        return sniffer


def _silence():
    """No IPv6, which would announce itself, and nothing is passed on."""
    for setting in ("ipv6/conf/all/disable_ipv6", "ipv6/conf/default/disable_ipv6"):
        with contextlib.suppress(FileNotFoundError):
            Path("/proc/sys/net", setting).write_text("1")
    Path("/proc/sys/net/ipv4/ip_forward").write_text("0")


def _send_marks():
    """Sends a frame from every CPU, as each has a queue of its own. -> how many."""
    cpus = os.sched_getaffinity(0)
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as sender:
        sender.bind(("inner", _MARK))
        for cpu in cpus:
            os.sched_setaffinity(0, {cpu})  # this thread's
            sender.send(bytes.fromhex("020000000001") * 2 + _MARK.to_bytes(2, "big") + bytes(46))
    return len(cpus)


def _ip(command):
    subprocess.run(["ip", *command.split()], check=True, capture_output=True, text=True)


def _remove(folder):
    for file in folder.iterdir():
        file.unlink()
    folder.rmdir()


@functools.lru_cache
def available():
    """Whether this machine lets us make namespaces."""
    if os.geteuid():
        return False
    try:
        with Namespace() as ns:
            return ns.packets() == 0
    except (OSError, subprocess.CalledProcessError):
        return False


needs_namespaces = pytest.mark.skipif(not available(), reason="network namespaces need root, the capability, and ip")
