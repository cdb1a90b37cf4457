"""Connections from the inside: names that hang, connects that never end, ends in the middle, forks; and nothing is left open."""

import asyncio
import contextlib
import gc
import importlib
import os
import selectors
import socket
import ssl
import stat
import subprocess
import sys
import threading
import weakref
from pathlib import Path
from time import monotonic

import pytest
import tiny
import trustme
from both import uncollected

from edgeroute import PlainJson, Router, StopToken, TimedOut, Unreachable
from edgeroute.http import dns_resolver as resolver
from edgeroute.http.aio_connections import AsyncConnections
from edgeroute.http.connections import Connections
from edgeroute.http.messages_addresses_and_secrets import Address, Call
from edgeroute.system.contained_calls_and_tasks import settle
from edgeroute.testing import CannedServer, http_reply

LONG = 120.0
"""Seconds after which a test that waits for something has failed."""
NEVER = 3600.0


def echo(request):
    return http_reply(request.partition(b"\r\n\r\n")[2])


def call(body):
    return Call("POST", "/", body=body)


def open_sockets():
    """Their numbers, in this process."""
    found = set()
    for link in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):
            if stat.S_ISSOCK(os.fstat(int(link.name)).st_mode):
                found.add(int(link.name))
    return found


def connected_to(port):
    """How many sockets of this process are connected to that port."""
    found = 0
    for number in open_sockets():
        with contextlib.suppress(OSError), socket.socket(fileno=os.dup(number)) as copy:
            found += copy.family == socket.AF_INET and copy.getpeername()[1] == port
    return found


@pytest.fixture
def own_sockets(monkeypatch):
    """Tells the open sockets of IPv4 that this thread has made: what an earlier test left to its threads is not among them."""
    made, thread = weakref.WeakSet(), threading.get_ident()

    class Noted(socket.socket):
        def __init__(self, family=-1, *args, **more):
            super().__init__(family, *args, **more)
            if threading.get_ident() == thread and self.family == socket.AF_INET:
                made.add(self)

    monkeypatch.setattr(socket, "socket", Noted)
    return lambda: {one for one in made if one.fileno() != -1}


@pytest.fixture(autouse=True)
def nothing_left_open(monkeypatch):
    """Every test ends with as many sockets as it began with; no proxy is between unless a test says so."""
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    before = open_sockets()
    yield
    until = monotonic() + LONG
    while (left := open_sockets() - before) and monotonic() < until:
        threading.Event().wait(0.001)  # a thread of the server may be about to close its own
    assert not left


@pytest.fixture(params=["threads", "asyncio"])
def ask(request):
    """One call over new connections to that URL, of either kind: its reply's body."""

    def ask(url, *, left_s=LONG, **address):
        if request.param == "threads":
            connections = Connections(Address(url, **address))
            try:
                return connections.send(call(b"hello"), monotonic() + left_s).body
            finally:
                connections.close()

        async def main():
            before = set(threading.enumerate())
            connections = AsyncConnections(Address(url, **address))
            try:
                return (await connections.send(call(b"hello"), monotonic() + left_s)).body
            finally:
                await connections.close()
                began = set(threading.enumerate()) - before
                assert not [each for each in began if each.name.startswith("asyncio_")], "no default executor"

        return asyncio.run(main())

    return ask


class Names:
    """Looks names up as told: a list of addresses, or an event to wait for first; counts how often."""

    def __init__(self, monkeypatch):
        self.known, self.looked_up, self.threads = {}, [], []
        self._real, self._changed = socket.getaddrinfo, threading.Condition()
        monkeypatch.setattr(socket, "getaddrinfo", self._look_up)

    def _look_up(self, host, port, *args, **more):
        if host not in self.known:
            return self._real(host, port, *args, **more)
        with self._changed:
            self.looked_up.append(host)
            self.threads.append(threading.current_thread())
            self._changed.notify_all()
        said = self.known[host]
        if isinstance(said, Exception):
            raise said
        if isinstance(said, threading.Event):
            said.wait()
            raise socket.gaierror(socket.EAI_AGAIN, "try again")
        return [entry for address in said for entry in self._real(address, port, *args, **more)]

    def wait_for(self, count):
        """Until so many look-ups have begun."""
        with self._changed:
            assert self._changed.wait_for(lambda: len(self.looked_up) >= count, LONG)


@pytest.fixture
def names(monkeypatch):
    made = Names(monkeypatch)
    yield made
    for said in made.known.values():
        if isinstance(said, threading.Event):
            said.set()
    for thread in made.threads:
        thread.join(LONG)


class Waiting:
    """Who waits for look-ups now."""

    def __init__(self, monkeypatch):
        self._wakes, self._changed = [], threading.Condition()
        self.begun = 0
        """How many have waited, up to now."""
        add, discard = resolver.Lookup.add, resolver.Lookup.discard

        def added(lookup, wake):
            add(lookup, wake)
            with self._changed:
                self._wakes.append((lookup, wake))
                self.begun += 1
                self._changed.notify_all()

        def discarded(lookup, wake):
            discard(lookup, wake)
            with self._changed:
                self._wakes.remove((lookup, wake))

        monkeypatch.setattr(resolver.Lookup, "add", added)
        monkeypatch.setattr(resolver.Lookup, "discard", discarded)

    def __len__(self):
        return len(self._wakes)

    def wait_for(self, count):
        """Until so many wait."""
        with self._changed:
            assert self._changed.wait_for(lambda: len(self._wakes) >= count, LONG)


@pytest.fixture
def waiting(monkeypatch):
    return Waiting(monkeypatch)


@contextlib.contextmanager
def black_hole(address):
    """A port there where a connection is neither accepted nor refused: its queue is full."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.socket(family))
        listener.bind((address, 0))
        listener.listen(0)
        for _ in range(4):
            filler = stack.enter_context(socket.socket(family))
            filler.setblocking(False)
            filler.connect_ex(listener.getsockname())
        yield listener.getsockname()[1]


@contextlib.contextmanager
def both_addresses():
    """A port of which 127.0.0.2 is a black hole, and a listener at it on 127.0.0.1."""
    while True:
        with black_hole("127.0.0.2") as port, socket.socket() as listener:
            try:
                listener.bind(("127.0.0.1", port))
            except OSError:  # another program has it there
                continue
            listener.listen()
            yield port, listener
            return


def in_thread(run):
    """Runs it in a thread -> (the thread, a list that gets what it returns or raises)."""
    came = []

    def keep():
        try:
            came.append(run())
        except Exception as e:  # noqa: BLE001 - what it raises is looked at
            came.append(e)

    thread = threading.Thread(target=keep, daemon=True)
    thread.start()
    return thread, came


# ------------------------------------------------------------------------------------------------------------- names
def test_a_name_is_looked_up_in_a_thread_of_ours(ask, names):
    """A daemon thread, so that a look-up that hangs holds up no exit, and asyncio's default executor is not needed."""
    names.known["cloud.test"] = ["127.0.0.1"]
    with CannedServer(echo) as server:
        assert ask(f"http://cloud.test:{server.port}") == b"hello"
    (thread,) = names.threads
    assert thread.daemon
    assert thread.name.startswith("edgeroute-")


def test_a_numeric_address_needs_no_thread(ask, monkeypatch):
    """Of either family."""

    def start(thread):
        raise AssertionError(thread)

    with CannedServer(echo) as server:
        monkeypatch.setattr(threading.Thread, "start", start)
        assert ask(server.url) == b"hello"
    assert resolver.RESOLVER.find("::1", 80).addresses() == [(socket.AF_INET6, ("::1", 80, 0, 0))]
    assert resolver.RESOLVER.find("fe80::1%1", 80).addresses() == [(socket.AF_INET6, ("fe80::1", 80, 0, 1))]
    with pytest.raises(Exception, match="no interface"):
        resolver.RESOLVER.find("fe80::1%none", 80).addresses()


def test_a_name_that_does_not_exist(ask):
    """The system's own words."""
    with pytest.raises(Unreachable, match=r"name\.invalid:1: .*[Nn]ame"):
        ask("http://name.invalid:1")


def test_a_name_without_an_address(ask, names):
    """Is unreachable, too."""
    names.known["cloud.test"] = []
    with pytest.raises(Unreachable, match="has no address"):
        ask("http://cloud.test:1")


def test_a_look_up_that_hangs_ends_with_the_time_that_there_is(ask, names):
    """The caller goes on; the thread is abandoned."""
    names.known["hangs.test"] = threading.Event()
    with pytest.raises(TimedOut, match="name looked up in time"):
        ask("http://hangs.test:1", left_s=0.1)
    assert names.threads[0].is_alive()


def test_a_look_up_that_hangs_ends_with_a_request_to_stop(names):
    """The leg's thread is free at once."""
    names.known["hangs.test"] = threading.Event()
    connections, stop = Connections(Address("http://hangs.test:1")), StopToken()
    thread, came = in_thread(lambda: connections.send(call(b"1"), monotonic() + NEVER, stop))
    names.wait_for(1)
    stop()
    thread.join(LONG)
    assert isinstance(came[0], Unreachable)
    assert "not needed any more" in str(came[0])


def test_a_look_up_that_hangs_ends_with_its_task(names, waiting):
    """Cancelled in the middle."""
    names.known["hangs.test"] = threading.Event()

    async def main():
        connections = AsyncConnections(Address("http://hangs.test:1"))
        task = asyncio.create_task(connections.send(call(b"1"), monotonic() + NEVER))
        await asyncio.to_thread(names.wait_for, 1)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())
    assert names.threads[0].is_alive()
    assert (waiting.begun, len(waiting)) == (1, 0), "nobody waits for it"


def test_equal_names_share_a_look_up(names, waiting):
    """Threads and tasks alike, and what comes of it comes to all."""
    gate = names.known["hangs.test"] = threading.Event()
    others = [
        in_thread(lambda: Connections(Address("http://hangs.test:1")).send(call(b"1"), monotonic() + NEVER)) for _ in range(3)
    ]

    async def main():
        connections = AsyncConnections(Address("http://hangs.test:1"))
        tasks = [asyncio.create_task(connections.send(call(b"1"), monotonic() + NEVER)) for _ in range(3)]
        await asyncio.to_thread(waiting.wait_for, 6)
        gate.set()
        return await asyncio.gather(*tasks, return_exceptions=True)

    came = asyncio.run(main())
    for thread, _ in others:
        thread.join(LONG)
    came += [each[0] for _, each in others]
    assert [type(error) for error in came] == [Unreachable] * 6
    assert all("try again" in str(error) for error in came)
    assert len(names.looked_up) == 1


def test_an_old_look_up_is_not_waited_for(names, monkeypatch):
    """The network may be another by now, and its server with it. A few may hang for one name, and then the last is shared."""
    names.known["hangs.test"] = threading.Event()
    monkeypatch.setattr(resolver, "FRESH_S", 0.0)
    found = [resolver.RESOLVER.find("hangs.test", 1) for _ in range(6)]
    assert len(set(map(id, found))) == resolver.MOST_EACH
    assert found[-1] is found[-2] is found[-3]


def test_when_all_hang_a_further_name_fails_at_once(ask, names):
    """It does not queue; a name that is under way is waited for, and a numeric address is not in the way."""
    for n in range(resolver.MOST):
        names.known[f"hangs{n}.test"] = threading.Event()
        resolver.RESOLVER.find(f"hangs{n}.test", 1)
    with pytest.raises(Unreachable, match=r"further\.test was not looked up: 16 other look-ups hang"):
        ask("http://further.test:1", left_s=NEVER)
    with pytest.raises(TimedOut):
        ask("http://hangs3.test:1", left_s=0.1)
    with CannedServer(echo) as server:
        assert ask(server.url) == b"hello"


def test_no_more_threads(ask, names, monkeypatch):
    """Is an error like any other, and the next look-up is not in its way."""
    names.known["cloud.test"] = ["127.0.0.1"]
    start = threading.Thread.start
    with CannedServer(echo) as server:

        def fail(thread):
            monkeypatch.setattr(threading.Thread, "start", start)
            raise RuntimeError("can't start new thread")

        monkeypatch.setattr(threading.Thread, "start", fail)
        with pytest.raises(Unreachable, match="no thread to look it up"):
            ask(f"http://cloud.test:{server.port}")
        assert ask(f"http://cloud.test:{server.port}") == b"hello"


def test_families_take_turns(monkeypatch):
    """As RFC 8305 has it; other families are of no use."""
    v6, v4 = socket.AF_INET6, socket.AF_INET
    found = [(v6, 0, 0, "", "a"), (v6, 0, 0, "", "b"), (v4, 0, 0, "", "c"), (socket.AF_UNIX, 0, 0, "", "d")]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: found)
    lookup = resolver.Lookup("families.test", 1)
    lookup.run()
    assert lookup.addresses() == [(v6, "a"), (v4, "c"), (v6, "b")]


def test_a_name_has_its_addresses_while_the_resolver_is_down(ask, names):
    """A look-up that fails for now, or hangs, or cannot begin, is answered from before; that there is no such name is an answer."""
    down = socket.gaierror(socket.EAI_AGAIN, "try again")
    with CannedServer(echo) as server, pytest.MonkeyPatch.context() as patch:
        url = f"http://kept.test:{server.port}"
        names.known["kept.test"] = ["127.0.0.1"]
        assert ask(url) == b"hello"
        names.known["kept.test"] = down
        assert ask(url) == b"hello"
        names.known["kept.test"] = threading.Event()
        patch.setattr(resolver, "PATIENCE_S", 0.01)
        assert ask(url) == b"hello"
        names.known["kept.test"].set()
        for thread in names.threads:
            thread.join(LONG)  # else the next call shares its look-up
        patch.setattr(resolver, "MOST", 0)
        assert ask(url) == b"hello"
        patch.undo()
        names.known["kept.test"] = socket.gaierror(socket.EAI_NONAME, "no such name")
        with pytest.raises(Unreachable, match="no such name"):
            ask(url)
        names.known["kept.test"] = down
        patch.setattr(resolver, "STALE_S", -1.0)
        with pytest.raises(Unreachable, match="try again"):
            ask(url)


def test_few_answers_are_kept(names, monkeypatch):
    """The newest."""
    monkeypatch.setattr(resolver, "MOST_KEPT", 2)
    found, address = resolver.Resolver(), resolver.SocketAddress(socket.AF_INET, ("127.0.0.1", 1))
    for name in "abac":
        found.keep(name, 1, [address])
    names.known.update({name: threading.Event() for name in "abc"})
    assert [name for name in "abc" if found.find(name, 1).earlier == [address]] == ["a", "c"]


# ---------------------------------------------------------------------------------------------------------- connecting
@pytest.mark.parametrize("address", ["127.0.0.2", "::1"])
def test_a_connect_that_never_completes_ends_with_its_stop(address):
    """At once, and not at a limit."""
    with black_hole(address) as port:
        host = f"[{address}]" if ":" in address else address
        connections, stop, seen = Connections(Address(f"http://{host}:{port}")), StopToken(), threading.Event()
        kind = getattr(selectors, "PollSelector", selectors.SelectSelector)
        select = kind.select

        def selecting(selector, timeout=None):
            seen.set()
            return select(selector, timeout)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(kind, "select", selecting)
            thread, came = in_thread(lambda: connections.send(call(b"1"), monotonic() + NEVER, stop))
            assert seen.wait(LONG)
            stop()
            thread.join(LONG)
        assert isinstance(came[0], Unreachable)
        assert "not needed any more" in str(came[0])


def test_a_stop_cuts_no_other_connection():
    """The calls after it have those that were kept."""
    with CannedServer(echo) as server:
        connections, stop = Connections(Address(f"http://127.0.0.1:{server.port}")), StopToken()

        async def two():
            async with connections.open(call(b"one"), monotonic() + LONG) as reply:
                assert connections.send(call(b"another"), monotonic() + LONG).body == b"another"
                assert await reply.read() == b"one"

        settle(two())
        assert connected_to(server.port) == 2
        server.shut()
        thread, came = in_thread(lambda: connections.send(call(b"cut"), monotonic() + LONG, stop))
        server.wait_for(lambda: len(server.requests) == 3, timeout_s=LONG)
        stop()
        thread.join(LONG)
        assert isinstance(came[0], Unreachable)
        assert connected_to(server.port) == 1
        server.open()
        connections.close()


@pytest.mark.parametrize("address", ["127.0.0.2", "::1"])
def test_a_connect_that_never_completes_keeps_the_time(ask, address):
    """That of the call."""
    with black_hole(address) as port, pytest.raises(TimedOut, match="in time"):
        ask(f"http://{f'[{address}]' if ':' in address else address}:{port}", left_s=0.2)


def test_the_next_address_is_tried_beside_one_that_does_not_answer(ask, names):
    """A name often has an address that leads nowhere from here."""
    names.known["cloud.test"] = ["127.0.0.2", "127.0.0.1"]
    with both_addresses() as (port, listener):
        served, _ = in_thread(lambda: answer(listener))
        assert ask(f"http://cloud.test:{port}") == b"hello"
        served.join(LONG)


def answer(listener):
    connection = listener.accept()[0]
    with connection:
        received = b""
        while not received.endswith(b"hello"):
            received += connection.recv(1 << 16)
        connection.sendall(http_reply(b"hello"))


def test_the_next_address_is_tried_after_one_that_refuses(ask, names):
    """At once."""
    names.known["cloud.test"] = ["127.0.0.3", "127.0.0.1"]
    with CannedServer(echo) as server:
        assert ask(f"http://cloud.test:{server.port}") == b"hello"


def test_the_first_address_says_why_where_none_accepts(ask, names):
    """In the system's words."""
    names.known["cloud.test"] = ["127.0.0.3", "127.0.0.1", "::1"]
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        with pytest.raises(Unreachable, match="Connection refused"):
            ask(f"http://cloud.test:{taken.getsockname()[1]}")


def test_an_address_that_cannot_be_tried(ask):
    """No route, or no such thing: said, and not raised as it is."""
    with pytest.raises(Unreachable, match=r"255\.255\.255\.255"):
        ask("http://255.255.255.255:1")


# ----------------------------------------------------------------------------------------------------------------- TLS
@pytest.fixture(scope="module")
def authority(tmp_path_factory):
    """(its file, makes a server's side)."""
    made, path = trustme.CA(), tmp_path_factory.mktemp("authority") / "authority.pem"
    made.cert_pem.write_to_path(str(path))

    def server():
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        made.issue_cert("127.0.0.1").configure_cert(context)
        return context

    return path, server


class Proxy(CannedServer):
    """Connects through to wherever it is told to."""

    async def _serve(self, reader, writer):
        head = await reader.readuntil(b"\r\n\r\n")
        self.requests.append(head)
        host, _, port = head.split()[1].decode().partition(":")
        there, to = await asyncio.open_connection(host, int(port))
        writer.write(b"HTTP/1.1 200 -\r\n\r\n")

        async def forward(source, sink):
            with contextlib.suppress(OSError):
                while data := await source.read(1 << 16):
                    sink.write(data)
                    await sink.drain()
            sink.close()

        try:
            await asyncio.gather(forward(reader, to), forward(there, writer))
        finally:
            to.close()


@pytest.mark.parametrize("secure", [False, True])
def test_tls_through_a_proxy(ask, authority, secure, monkeypatch, tmp_path):
    """Which may itself be spoken to over TLS; a large body, too."""
    path, context = authority
    monkeypatch.setenv("SSL_CERT_FILE", str(path))
    with CannedServer(echo, tls=context()) as server, Proxy(None, tls=context() if secure else None) as proxy:
        monkeypatch.setenv("https_proxy", proxy.url)
        assert ask(server.url, verify=path) == b"hello"
        assert proxy.requests[0].startswith(b"CONNECT 127.0.0.1:")
        trustme.CA().cert_pem.write_to_path(str(tmp_path / "stranger.pem"))
        with pytest.raises(Unreachable, match="certificate"):
            ask(server.url, verify=tmp_path / "stranger.pem")


def test_a_large_body_over_tls(authority):
    """Both ways, whole."""
    path, context = authority
    body = os.urandom(1 << 20)

    async def main(url):
        connections = AsyncConnections(Address(url, verify=path))
        reply = await connections.send(call(body), monotonic() + LONG)
        await connections.close()
        return reply.body

    with CannedServer(echo, tls=context()) as server:
        assert asyncio.run(main(server.url)) == body


# ---------------------------------------------------------------------------------------------------- ends in the middle
class Interrupted(BaseException):
    """What a signal handler raises."""


def interrupted_at(n, run):
    """Runs it, and raises at the n-th line of our code -> whether it came so far."""
    count, reached = 0, False

    def trace(frame, event, argument):
        nonlocal count, reached
        name = frame.f_code.co_filename
        if "edgeroute/cloud" not in name and "edgeroute/http" not in name:
            return None
        if event == "line":
            count += 1
            if count == n:
                reached = True
                raise Interrupted
        return trace

    before = sys.gettrace()
    with uncollected():
        sys.settrace(trace)
        try:
            run()
        except Interrupted:
            pass
        finally:
            sys.settrace(before)
    return reached


def interrupt_everywhere(name, *, kept):
    """Calls again and again, and interrupts each call one point later, until one ends first."""
    socket.getaddrinfo = lambda host, port, **_: [(socket.AF_INET, 0, 0, "", ("127.0.0.1", port))]
    with CannedServer(echo) as server:
        n, reached = 0, True
        while reached:
            n += 1
            connections = Connections(Address(f"http://{name}:{server.port}"))
            if kept:
                assert connections.send(call(b"first"), monotonic() + LONG).body == b"first"
            reached = interrupted_at(n, lambda c=connections: c.send(call(b"interrupted"), monotonic() + LONG, StopToken()))
            assert connected_to(server.port) <= 1
            assert connections.send(call(b"next"), monotonic() + LONG, StopToken()).body == b"next"
            assert connected_to(server.port) == 1, "it is kept"

            async def two(connections=connections, server=server):
                async with connections.open(call(b"one"), monotonic() + LONG) as reply:
                    assert connections.send(call(b"another"), monotonic() + LONG).body == b"another"
                    assert connected_to(server.port) == 2, "each call has one to itself"
                    assert await reply.read() == b"one"

            settle(two())
            connections.close()
            assert connected_to(server.port) == 0, n
    assert n > 100, "it was traced"  # 169 lines of a kept connection, 303 of a new one


@pytest.mark.slow
@pytest.mark.parametrize("kept", [False, True])
@pytest.mark.parametrize("name", ["127.0.0.1", "cloud.test"])
def test_an_exception_anywhere_leaves_nothing(kept, name):
    """What a signal handler raises at any point of a call: no socket stays open, and no half-read one is used again.

    In a process of its own, since Python's count of its stack is wrong where a tracer has raised.
    """
    code = f"import test_connections; test_connections.interrupt_everywhere({name!r}, kept={kept})"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent.parent), str(Path(__file__).parent)])}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr


class Counted:
    """A coroutine that counts how often it is resumed."""

    def __init__(self, inner, count):
        self._inner, self._count = inner, count

    def send(self, value):
        """Runs on."""
        self._count()
        return self._inner.send(value)

    def throw(self, *error):
        """Runs on, with an error."""
        self._count()
        return self._inner.throw(*error)

    def close(self):
        """Ends it."""
        self._inner.close()

    def __await__(self):
        raise NotImplementedError


async def cancelled_at(n, coroutine):
    """Runs it as a task, and cancels that when it is resumed for the n-th time -> whether it came so far."""
    loop, steps, tasks = asyncio.get_running_loop(), 0, []

    def count():
        nonlocal steps
        steps += 1
        if steps == n:
            loop.call_soon(tasks[0].cancel)

    loop.set_task_factory(lambda loop, inner, **more: asyncio.Task(Counted(inner, count), loop=loop, **more))
    tasks.append(loop.create_task(coroutine))
    loop.set_task_factory(lambda loop, inner, **more: asyncio.Task(Counted(inner, count), loop=loop, **more))
    await asyncio.wait(tasks, timeout=LONG)
    loop.set_task_factory(None)
    assert tasks[0].done()
    if not tasks[0].cancelled():
        tasks[0].result()
    return steps >= n


@pytest.mark.parametrize("secure", [False, True])
@pytest.mark.parametrize("kept", [False, True])
def test_cancelling_anywhere_leaves_nothing(kept, secure, authority, names, own_sockets):
    """At any step of a call: no socket stays open, and no half-read one is used again."""
    path, context = authority
    names.known["cloud.test"] = ["127.0.0.3", "127.0.0.1"]

    async def main(server):
        n, reached, before = 0, True, own_sockets()
        while reached:
            n += 1
            connections = AsyncConnections(Address(f"{server.url[: -len(str(server.port))]}{server.port}", verify=path))
            if not secure:
                connections = AsyncConnections(Address(f"http://cloud.test:{server.port}"))
            if kept:
                assert (await connections.send(call(b"first"), monotonic() + LONG)).body == b"first"
            reached = await cancelled_at(n, connections.send(call(b"cancelled"), monotonic() + LONG))
            assert len(own_sockets() - before) <= 1
            assert (await connections.send(call(b"next"), monotonic() + LONG)).body == b"next"
            assert len(own_sockets() - before) == 1, "it is kept"
            async with connections.open(call(b"one"), monotonic() + LONG) as reply:
                assert (await connections.send(call(b"another"), monotonic() + LONG)).body == b"another"
                assert connected_to(server.port) == 2, "each call has one to itself"
                assert await reply.read() == b"one"
            await connections.close()
            assert not own_sockets() - before, n
        return n

    with CannedServer(echo, tls=context() if secure else None) as server:
        assert asyncio.run(main(server)) > 1


def test_another_event_loop_has_connections_of_its_own():
    """Those of a loop that has ended are closed."""
    connections = None

    async def main(url):
        nonlocal connections
        connections = connections or AsyncConnections(Address(url))
        return (await connections.send(call(b"1"), monotonic() + LONG)).body

    with CannedServer(echo) as server:
        assert [asyncio.run(main(server.url)) for _ in range(2)] == [b"1", b"1"]
        server.wait_for(lambda: server.hung_up == 1)
        asyncio.run(connections.close())
        server.wait_for(lambda: server.hung_up == 2)


def test_connections_that_are_dropped_are_closed():
    """Without a word from whoever had them."""
    with CannedServer(echo) as server:
        connections = Connections(Address(server.url))
        connections.send(call(b"1"), monotonic() + LONG)
        del connections
        gc.collect()
        server.wait_for(lambda: server.hung_up == 1)


@pytest.mark.parametrize("kind", ["own", "httpx"])
def test_first_calls_at_once_share_what_carries_them(kind, monkeypatch):
    """Each thread finds no client yet and makes one; none of theirs is left open, but for the one that is closed in the end."""
    where, name = {
        "own": ("edgeroute.cloud.endpoint_client", "HttpClient.__init__"),
        "httpx": ("edgeroute.http.httpx_connections", "HttpxConnections.new_client"),
    }[kind]
    at = importlib.import_module(where)
    *of, name = name.split(".")
    for step in of:
        at = getattr(at, step)
    make, together, made = getattr(at, name), threading.Barrier(2), []

    def late(*args):
        together.wait(LONG)
        made.append(make(*args))
        return made[-1]

    monkeypatch.setattr(at, name, late)
    with CannedServer(lambda _: http_reply(b'{"value": 1}')) as server:
        cloud = PlainJson(server.url, retries=0, client="httpx" if kind == "httpx" else None)
        with Router(None, cloud) as router:
            threads = [in_thread(lambda: router.infer("x")) for _ in range(2)]
            for thread, _ in threads:
                thread.join(LONG)
        assert len(made) == 2
        assert connected_to(server.port) == 0


def test_closing_closes_what_is_given_back_later():
    """A call that is under way ends well, and its connection after it."""
    gate, begun = threading.Event(), threading.Event()

    def late(request):
        begun.set()
        gate.wait(LONG)
        return echo(request)

    with CannedServer(late) as server:
        connections = Connections(Address(server.url))
        thread, came = in_thread(lambda: connections.send(call(b"1"), monotonic() + LONG).body)
        begun.wait(LONG)
        connections.close()
        gate.set()
        thread.join(LONG)
        assert came == [b"1"]
        server.wait_for(lambda: server.hung_up == 1)


# --------------------------------------------------------------------------------------------------------------- forks
PRELUDE = """
import gc, os, signal, socket, sys, threading, warnings
import tiny, numpy as np
from edgeroute import OnnxModel, PlainJson, Router
warnings.simplefilter("ignore", DeprecationWarning)  # some Pythons warn of any fork with threads
path, port = sys.argv[1:]
router = Router(OnnxModel(path), PlainJson(f"http://localhost:{port}"), threshold=1.0)
x = np.array([0, 2, 1, 5], np.float32)
assert router.infer(x).value == "cloud"

def child():
    signal.alarm(120)
    try:
        answer = router.infer(x).value
    except BaseException as e:
        answer = repr(e)
    print("child", answer, flush=True)
    os._exit(0)
"""


def forks(tmp_path, body):
    """What a program with that body says; in it `child()` answers once, ends, and is killed if it waits."""
    path = tiny.linear(tmp_path / "m.onnx")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent.parent), str(Path(__file__).parent)])}
    with CannedServer(http_reply(b'{"value": "cloud"}')) as server:
        command = [sys.executable, "-c", PRELUDE + body, str(path), str(server.port)]
        done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False, timeout=4 * LONG)
    assert done.returncode == 0, done.stderr
    return done.stdout.split("\n")[:-1]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_fork_while_a_lock_is_held(tmp_path):
    """Every lock that an object of ours has: held by one thread while another forks, and the child answers all the same."""
    body = """
Lock, RLock = type(threading.Lock()), type(threading.RLock())
mine = "edgeroute.cloud", "edgeroute.http", "edgeroute.edge"
locks = {}
for thing in gc.get_objects():
    if str(type(thing).__module__).startswith(mine) and hasattr(thing, "__dict__"):
        for name, value in vars(thing).items():
            if isinstance(value, (Lock, RLock)):
                locks[f"{type(thing).__name__}.{name}"] = value
for name in [n for n in sys.modules if n.startswith(mine)]:
    for key, value in vars(sys.modules[name]).items():
        if isinstance(value, (Lock, RLock)):
            locks[f"{name}.{key}"] = value
print(*sorted(locks), flush=True)
for name, lock in sorted(locks.items()):
    held, over = threading.Event(), threading.Event()
    def hold():
        with lock:
            held.set()
            over.wait()
    thread = threading.Thread(target=hold)
    thread.start()
    held.wait()
    pid = os.fork()
    if pid == 0:
        child()
    _, status = os.waitpid(pid, 0)
    over.set()
    thread.join()
    print(name, status, flush=True)
"""
    names, *said = forks(tmp_path, body)
    assert {"HttpClient._lock", "OnnxModel._lock", "Resolver._lock"} <= set(names.split())
    assert said == [line for name in names.split() for line in ("child cloud", f"{name} 0")]


IMPORTING = """
import os, signal, sys, threading, warnings
warnings.simplefilter("ignore", DeprecationWarning)
import numpy as np
from edgeroute import OnnxModel, PlainJson, Router
slow, path, port = sys.argv[1:]
router = Router(OnnxModel(path), PlainJson(f"http://127.0.0.1:{port}"), threshold=1.0)
inside, gate = threading.Event(), threading.Event()

class Finder:
    @staticmethod
    def find_spec(name, *_):
        if name == slow:
            inside.set()
            gate.wait()

sys.meta_path.insert(0, Finder)
os.register_at_fork(before=gate.set)
x = np.array([0, 2, 1, 5], np.float32)
thread = threading.Thread(target=router.infer, args=[x])
thread.start()
inside.wait()
pid = os.fork()
if pid == 0:
    signal.alarm(120)
    print(router.infer(x).value, flush=True)
    os._exit(0)
print(os.waitpid(pid, 0)[1], flush=True)
thread.join()
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize("module", ["edgeroute.cloud.endpoint_client", "onnxruntime"])
def test_a_fork_while_a_leg_imports(tmp_path, module):
    """The first call imports what it needs: a fork waits for that, so that the child need not, in vain."""
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)}
    with CannedServer(http_reply(b'{"value": "cloud"}')) as server:
        command = [sys.executable, "-c", IMPORTING, module, str(tiny.linear(tmp_path / "m.onnx")), str(server.port)]
        done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False, timeout=2 * LONG)
    assert (done.stdout.split(), done.returncode) == (["cloud", "0"], 0), done.stderr


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_forks_under_traffic(tmp_path):
    """Four threads ask and connect anew, a model is loaded again and again, names are looked up; each child answers."""
    body = """
stop = threading.Event()
def traffic():
    while not stop.is_set():
        router.infer(x)
def connecting():
    while not stop.is_set():
        with Router(OnnxModel(path), PlainJson(f"http://localhost:{port}"), threshold=1.0) as other:
            other.infer(x)
threads = [threading.Thread(target=run) for run in (traffic, traffic, connecting, connecting)]
[thread.start() for thread in threads]
for _ in range(30):
    pid = os.fork()
    if pid == 0:
        child()
    print(os.waitpid(pid, 0)[1], flush=True)
stop.set()
[thread.join() for thread in threads]
"""
    assert forks(tmp_path, body) == ["child cloud", "0"] * 30


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_child_holds_no_socket_of_its_parent(tmp_path):
    """Not one that waits, and not one in the middle of a call in another thread: its end would not be seen while the child is."""
    body = """
import asyncio, glob
from time import monotonic
from edgeroute.http.aio_connections import AsyncConnections
from edgeroute.http.messages_addresses_and_secrets import Address, Call
from edgeroute.http.connections import Connections
silent = socket.socket()
silent.bind(("127.0.0.1", 0))
silent.listen()
url = "http://127.0.0.1:%d" % silent.getsockname()[1]
busy = Connections(Address(url))
threading.Thread(target=lambda: busy.send(Call("GET", "/"), monotonic() + 3600), daemon=True).start()
busy_async = AsyncConnections(Address(url))
threading.Thread(target=lambda: asyncio.run(busy_async.send(Call("GET", "/"), monotonic() + 3600)), daemon=True).start()
accepted = [silent.accept()[0] for _ in range(2)]
[each.recv(1) for each in accepted]
ports = {each.getpeername()[1] for each in accepted}
pid = os.fork()
if pid == 0:
    from test_connections import open_sockets
    left = [socket.socket(fileno=number).getsockname() for number in open_sockets()]
    print(len(ports & {name[1] for name in left if isinstance(name, tuple)}), flush=True)
    os._exit(0)
os.waitpid(pid, 0)
sys.stdout.flush()
os._exit(0)
"""
    assert forks(tmp_path, body) == ["0"]
