"""The watch on the network: real links in namespaces, and messages of the kernel."""

import contextlib
import json
import os
import socket
import struct
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest
from netns import LONG, Namespace, needs_namespaces

from edgeroute.observe import breaker_probes_and_network as health
from edgeroute.observe import network_routes_and_monitor as link
from edgeroute.observe.network_routes_and_monitor import NetworkMonitor

WATCH = """
import sys, threading
from edgeroute.observe.network_routes_and_monitor import NetworkMonitor

calls = []
def on_up():
    calls.append(1)
    print("up", flush=True)

watch = NetworkMonitor(on_up)
watch.start()
print(watch.works, flush=True)
for line in sys.stdin:
    print("heard", flush=True)
watch.close()
print(len(calls), threading.active_count(), flush=True)
"""


@pytest.mark.slow
@needs_namespaces
def test_a_cable_that_is_put_back():
    """Out says nothing, in says it once, and a change of loopback or of what was up before says nothing."""
    with Namespace() as ns, ns.popen([sys.executable, "-c", WATCH], stdin=-1, stdout=-1, text=True) as watch:
        assert watch.stdout.readline() == "True\n"
        for _ in range(2):
            ns.ip("link set lo down")
            ns.ip("link set lo up")
            ns.ip("link set inner mtu 1400")
            ns.ip("link set inner mtu 1500")
            ns.ip("route add blackhole 10.99.0.0/24")
            ns.ip("route del blackhole 10.99.0.0/24")
            ns.down()
            ns.ip("link set inner up")
            assert watch.stdout.readline() == "up\n"
        ns.ip(f"route add default via {ns.peer}")
        assert watch.stdout.readline() == "up\n"
        ns.ip("address add 10.88.0.1/24 dev inner")
        assert watch.stdout.readline() == "up\n"
        out, _ = watch.communicate(timeout=LONG)
        assert out == "4 1\n"
        assert ns.packets() == 0


def message(kind, body, *, port=0):
    size = 16 + len(body)
    return struct.pack("=LHHLL", size, kind, 0, 0, port) + body + bytes(-size % 4)


def new_link(index, flags, *, family=0, kind=16, port=0):
    return message(kind, struct.pack("=BxHiII", family, 1, index, flags, 0), port=port)


def heard(data, up, me=7):
    """What the watch makes of these bytes, from a real socket."""
    there, here = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    with there, here:
        there.send(data)
        return link.comes_up(here, me, up)


UP, LOOPBACK = 0x10000, 0x8


@pytest.mark.parametrize(
    ("data", "before", "came", "after"),
    [
        (new_link(2, UP), set(), True, {2}),
        (new_link(2, UP), {2}, False, {2}),
        (new_link(2, UP, port=7), set(), False, {2}),
        (new_link(2, 0), {2}, False, set()),
        (new_link(1, UP | LOOPBACK), set(), False, set()),
        (new_link(2, UP, family=socket.AF_BRIDGE), set(), False, set()),
        (new_link(2, UP, kind=17), {2}, False, set()),
        (new_link(2, 0) + new_link(2, UP) + new_link(2, 0), {2}, True, set()),
        (message(20, bytes([2, 24, 0, 0]) + bytes(4)), set(), True, set()),
        (message(20, bytes([2, 8, 0, 254]) + bytes(4)), set(), False, set()),
        (message(20, bytes([10, 64, 0, 253]) + bytes(4)), set(), False, set()),
        (message(21, bytes([2, 24, 0, 0]) + bytes(4)), set(), False, set()),
        (message(24, bytes([2, 0, 0, 0, 254, 3, 0, 1]) + bytes(4)), set(), True, set()),
        (message(24, bytes([2, 32, 0, 0, 255, 2, 254, 2]) + bytes(4)), set(), False, set()),
        (message(24, bytes([10, 128, 0, 0, 255, 2, 0, 1]) + bytes(4)), set(), False, set()),
        (message(25, bytes([2, 0, 0, 0, 254, 3, 0, 1]) + bytes(4)), set(), False, set()),
        (b"\0" * 40, set(), False, set()),
        (b"\1", set(), False, set()),
    ],
)
def test_what_counts(data, before, came, after):
    """Links that newly have a signal, addresses and routes beyond the link; not what goes, loopback, or how things were."""
    assert heard(data, before) == came
    assert before == after


def test_more_news_than_the_kernel_keeps():
    """Lost messages may have been the one: it counts as up. Any other failure does not."""

    class Broken:
        def __init__(self, number):
            self.number = number

        def recv(self, _):
            raise OSError(self.number, "")

    assert link.comes_up(Broken(105), 7, set())
    assert not link.comes_up(Broken(5), 7, set())


class Fed(socket.socket):
    """Stands for the kernel's socket: its number is 7."""

    def getsockname(self):
        """The number."""
        return 7, 0


def threads():
    """The watches' threads."""
    return {thread for thread in threading.enumerate() if thread.name == "edgeroute-link"}


def started(monkeypatch, on_up):
    """A watch that hears what is sent to the other end."""
    there, here = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    monkeypatch.setattr(link, "listen", lambda: Fed(fileno=here.detach()))
    watch = NetworkMonitor(on_up)
    watch.start()
    return watch, there


def test_a_burst_is_one_call(monkeypatch):
    """Many changes at once are one call, and a later one is another; an error of the callback ends nothing."""
    calls, called = [], threading.Semaphore(0)

    def on_up():
        calls.append(1)
        called.release()
        raise ValueError("the callback's own")

    monkeypatch.setattr(link, "QUIET_S", 1e9)  # never quiet by itself: the limit of a burst ends it
    watch, there = started(monkeypatch, on_up)
    with there:
        for n in (1, 2):
            for _ in range(20):
                there.send(new_link(2, 0) + new_link(2, UP))
            assert called.acquire(timeout=LONG)
            assert len(calls) == n
        watch.close()


def test_close_from_the_callback(monkeypatch):
    """The callback may close the watch that calls it."""
    closed, before = threading.Event(), threads()
    watch, there = started(monkeypatch, lambda: (watch.close(), closed.set()))
    (thread,) = threads() - before
    with there:
        there.send(new_link(2, UP))
        assert closed.wait(LONG)
        thread.join(LONG)
        assert not thread.is_alive()
        assert not watch.works


def test_start_and_close_again():
    """Each may be called twice, and the whole again; a thread is there only in between."""
    watch, others = NetworkMonitor(lambda: None), set(threading.enumerate())
    watch.close()
    for _ in range(3):
        watch.start()
        watch.start()
        assert watch.works
        assert [t.name for t in set(threading.enumerate()) - others] == ["edgeroute-link"]
        watch.close()
        watch.close()
        assert not watch.works
        assert not set(threading.enumerate()) - others


@pytest.mark.parametrize("step", ["__init__", "bind"])
def test_where_the_kernel_does_not_tell(monkeypatch, step):
    """A sandbox that forbids any of it: nothing happens, no socket stays open, and `works` says so."""

    def refuse(*_):
        raise PermissionError(13, "no")

    monkeypatch.setattr(socket, "socket", type("Forbidden", (socket.socket,), {step: refuse}))
    watch = NetworkMonitor(lambda: None)
    watch.start()
    assert not watch.works
    watch.close()


@pytest.mark.parametrize("allowed", [True, False])
def test_the_dump_is_requested_by_the_thread(monkeypatch, allowed):
    """The kernel may hold the request up while interfaces change, and the caller may be an event loop; without it, changes count."""
    callers, sent = [], threading.Event()

    def send(sock, data):
        callers.append(threading.current_thread().name)
        sent.set()
        if not allowed:
            raise PermissionError(13, "no")
        return real(sock, data)

    real = socket.socket.send
    monkeypatch.setattr(socket, "socket", type("Watched", (socket.socket,), {"send": send}))
    watch = NetworkMonitor(lambda: None)
    watch.start()
    assert sent.wait(LONG)
    assert watch.works
    watch.close()
    assert callers == ["edgeroute-link"]


def test_no_thread_to_be_had(monkeypatch):
    """Where no thread can be started the watch does not work, and fails nobody."""

    def refuse(_):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    watch, before = NetworkMonitor(lambda: None), sockets()
    watch.start()
    assert not watch.works
    watch.close()
    assert not sockets() - before


def test_other_systems(monkeypatch):
    """Where there is no netlink, nothing is tried."""
    monkeypatch.setattr(sys, "platform", "other")
    assert link.listen() is None


def descriptors():
    """Those of sockets that this process has open, and what each is."""
    found = {}
    for fd in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):
            found[int(fd.name)] = str(fd.readlink())
    return {fd: name for fd, name in found.items() if name.startswith("socket:")}


def sockets():
    """The sockets that this process has open."""
    return {*descriptors().values()}


def test_fork():
    """A child has none, and none of its sockets, until it starts its own; it does not disturb its parent's."""
    before, watch = sockets(), NetworkMonitor(lambda: None)
    watch.start()
    (read, write), (hold, let_go) = os.pipe(), os.pipe()
    child = os.fork()
    if not child:
        os.close(let_go)
        said = [watch.works, not sockets() - before]
        watch.start()
        said.append(watch.works)
        watch.close()
        os.write(write, json.dumps(said).encode())
        os.read(hold, 1)
        os._exit(0)
    said = json.loads(os.read(read, 100))
    assert watch.works
    watch.close()
    for fd in (read, write, hold, let_go):
        os.close(fd)
    assert os.waitpid(child, 0)[1] == 0
    assert said == [False, True, True]


def test_a_descriptor_that_is_held_elsewhere():
    """Another program that has inherited the sockets does not keep the thread from ending."""
    watch, before, there = NetworkMonitor(lambda: None), threads(), sockets()
    watch.start()
    (thread,) = threads() - before
    own = [fd for fd, name in descriptors().items() if name not in there]
    assert len(own) > 1
    with subprocess.Popen(["cat"], stdin=-1, pass_fds=own):
        watch.close()
        assert not thread.is_alive()


def test_a_router_that_is_closed_as_a_breaker_opens(monkeypatch):
    """Whichever comes first: the call that opened it goes on, and no thread is left."""
    real, left = threading.RLock, []

    class ThenClosed:
        """A lock; as soon as the first one that had it leaves it, another thread closes."""

        def __init__(self):
            self.lock = real()

        def __enter__(self):
            """As a lock."""
            self.lock.acquire()

        def __exit__(self, *_):
            self.lock.release()
            left.append(1)
            if len(left) == 1:
                closing = threading.Thread(target=watched.close)
                closing.start()
                closing.join(LONG)

    class Away:
        name = "cloud"

        def why(self):
            """Of no account."""
            return ""

    before = threads()
    watched = health.EndpointHealth(SimpleNamespace(breaker_changed=lambda *_: None))
    monkeypatch.setattr(watched, "_lock", ThenClosed())  # private: the moment when a thread leaves the lock is seen nowhere else
    watched.opened(Away())
    assert len(left) == 2, "another thread has closed it"
    assert not threads() - before
    watched.opened(Away())
    assert not threads() - before
