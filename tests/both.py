"""Both routers behind one blocking face, so that one test is for both; and what they ask."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import gc
import socket
import sys
import threading
from concurrent.futures import Future
from http.client import HTTPConnection
from pathlib import Path
from time import monotonic

import pytest

import edgeroute
from edgeroute import AsyncRouter, Router
from edgeroute.core.walk import Elapsed
from edgeroute.router.async_router import Loop
from edgeroute.router.constructor_checks import with_options
from edgeroute.router.leg_execution import LegExecutor
from edgeroute.router.router import pump
from edgeroute.testing import CannedServer, Relay, http_reply
from edgeroute.tools.measure.collect_edge_and_cloud import DirectCalls, collect

LONG = 120.0
"""Seconds after which a test that waits for something has failed."""
GOOD = http_reply(b'{"value": "cloud", "confidence": 0.9}')
DOWN = http_reply(b"oops", status=503)


def unsure(_):
    return "edge", 0.1


def sure(_):
    return "edge", 0.9


def wait_for(condition, timeout_s=LONG):
    """Returns once that is true, which nobody tells of."""
    until, pause = monotonic() + timeout_s, threading.Event()
    while not condition():
        assert monotonic() < until, "that never was so"
        pause.wait(0.002)


def flat(**given):
    """Arguments of a router, of which those of `Options` are given beside the others."""
    return with_options(given)


class Face:
    """What tests see of a router of either kind beside its answers."""

    @property
    def guards(self):
        """What stands before each cloud."""
        return [runner.guard for runner in self.engine.snapshot.clouds]

    @property
    def guard(self):
        """What stands before the first."""
        return self.guards[0]

    def leg(self, name="cloud"):
        """What is counted of that target."""
        return next(leg for leg in self.stats().legs if leg.name == name)

    def idle(self):
        """Returns once no call is under way any more."""
        wait_for(lambda: not any(guard.under_way for guard in self.guards))


class Threads(Face, Router):
    """A `Router`; `start` is `infer` in a thread of its own."""

    left = frozenset()
    """Tasks that are there after its end."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **flat(**kwargs))

    def start(self, *args, **kwargs):
        """A future of the answer."""
        answer = Future()

        def run():
            try:
                answer.set_result(self.infer(*args, **kwargs))
            except BaseException as e:  # noqa: BLE001 - the future's reader has it
                answer.set_exception(e)

        threading.Thread(target=run).start()
        return answer


class Tasks(Face):
    """An `AsyncRouter` on an event loop in a thread of its own; what is a coroutine there is waited for here.

    Attributes:
        left: tasks that were there after its end.
    """

    def __init__(self, *args, **kwargs):
        self._run(lambda: AsyncRouter(*args, **flat(**kwargs)))

    @classmethod
    def from_policy(cls, *args, **kwargs):
        """As the router's."""
        self = cls.__new__(cls)
        self._run(lambda: AsyncRouter.from_policy(*args, **kwargs))
        return self

    def _run(self, make):
        self.router = make()
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever)
        self._thread.start()

    def start(self, *args, **kwargs):
        """A future of the answer."""
        return asyncio.run_coroutine_threadsafe(self.router.infer(*args, **kwargs), self.loop)

    def wait(self, coroutine):
        """What it returns; measuring thousands of inputs may take minutes where the machine is busy."""
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop).result(9 * LONG)

    def infer(self, *args, **kwargs):
        """As the router's."""
        return self.wait(self.router.infer(*args, **kwargs))

    def infer_many(self, *args, **kwargs):
        """As the router's."""
        return self.wait(self.router.infer_many(*args, **kwargs))

    def calibrate(self, *args, **kwargs):
        """As the router's."""
        return self.wait(self.router.calibrate(*args, **kwargs))

    def evaluate(self, *args, **kwargs):
        """As the router's."""
        return self.wait(self.router.evaluate(*args, **kwargs))

    def check(self, *args, **kwargs):
        """As the router's."""
        return self.wait(self.router.check(*args, **kwargs))

    def refine(self, *args, **kwargs):
        """As the router's, for a `for`."""
        steps = self.router.refine(*args, **kwargs)

        async def one():
            return await anext(steps, None)

        try:
            while (answer := self.wait(one())) is not None:
                yield answer
        finally:
            self.wait(steps.aclose())

    @contextlib.contextmanager
    def stream(self, *args, **kwargs):
        """As the router's; all pieces are there before the first is seen."""
        stream = self.router.stream(*args, **kwargs)

        async def pieces():
            async with stream:
                return [piece async for piece in stream]

        seen = self.wait(pieces())
        yield type("Seen", (), {"__iter__": lambda _: iter(seen), "answer": stream.answer})()

    def close(self):
        """Ends the router and the loop."""
        if self.loop.is_closed():
            return
        self.wait(self.router.close())
        self.left = self.wait(_others())
        self.wait(self.loop.shutdown_default_executor())
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join()
        self.loop.close()

    def __getattr__(self, name):
        return getattr(self.router, name)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


async def _others():
    return asyncio.all_tasks() - {asyncio.current_task()}


class GatedServer(CannedServer):
    """Takes requests at once, and replies while it is open: to those that have waited, too."""

    def __init__(self, reply):
        super().__init__(reply)
        self.shut()


class Link(Relay):
    """A relay that goes down as a link does: connections that exist end, too."""

    def down(self):
        """Nothing comes through any more."""
        self.refuse = True
        self.cut()

    def up(self, router):
        """Up again, and the router hears of it."""
        self.refuse = False
        router.engine.health.link_up()


class Peer:
    """A server in a thread, for what is no reply to a request: it runs `serve(connection, number)` for each connection in turn.

    Attributes:
        connections: how many it has had.
    """

    def __init__(self, serve, tls=None):
        self._serve, self._tls = serve, tls
        self._serving = self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self.url = f"http{'s' if tls else ''}://127.0.0.1:{self.port}"
        self.connections = 0
        self._thread = threading.Thread(target=self._run, daemon=True)

    def _run(self):
        while True:
            try:
                connection = self._listener.accept()[0]
            except OSError:
                return
            self.connections += 1
            self._serving = connection
            with contextlib.suppress(OSError), connection if self._tls is None else self._secured(connection) as connection:
                self._serving = connection
                self._serve(connection, self.connections)

    def _secured(self, connection):
        with connection:
            return self._tls.wrap_socket(connection, server_side=True)

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        for each in (self._listener, self._serving):
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join(LONG)


def came(server):
    """Returns once a `CannedServer` has had all that was sent to it: what was given up, too, as connections come in their order."""
    with contextlib.closing(HTTPConnection("127.0.0.1", server.port, timeout=LONG)) as last:
        last.request("GET", "/")
        last.getresponse().read()
    wait_for(lambda: server.hung_up == server.connections)


def request_of(connection, end=b"\r\n\r\n"):
    """What comes of a request until this has come, and what came with it."""
    data = b""
    while end not in data:
        more = connection.recv(1 << 16)
        if not more:
            raise ConnectionError
        data += more
    return data


class Due:
    """Deadlines that pass on an event and not by the clock: on a busy machine, too, the edge is in time and the cloud is not.

    `due(condition)` is a deadline to ask with, in seconds. It passes once a cloud was asked and the condition holds.
    """

    def __init__(self, patch):
        self._conditions, self._over = {}, threading.Event()
        patch.setattr(LegExecutor, "begin", self._watched(LegExecutor.begin))
        patch.setattr(Loop, "begin", self._watched(Loop.begin))
        keeps = LegExecutor.keeps_time  # one that runs in its caller's thread hears of no event
        patch.setattr(
            LegExecutor, "keeps_time", lambda legs, start: legs.plan.deadline_s not in self._conditions and keeps(legs, start)
        )

    def __call__(self, condition=lambda: True, seconds=LONG):
        """Another deadline, of about so many seconds."""
        seconds += (1 + len(self._conditions)) / 1e6  # unlike any other, also unlike `LONG` itself
        self._conditions[seconds] = condition
        return seconds

    def end(self):
        """Those that have not passed do not any more."""
        self._over.set()

    def _watched(self, begin):
        def watched(self_, *args, **options):
            *rest, start, send = args
            plan, begun = (rest[0] if rest else self_).plan, begin(self_, *args, **options)
            if plan.deadline_s in self._conditions and plan.legs[start.leg].permit is not None and not isinstance(begun, tuple):
                threading.Thread(target=self._pass, args=(plan.deadline_s, send)).start()
            return begun

        return watched

    def _pass(self, seconds, send):
        while not self._conditions[seconds]():
            if self._over.wait(0.001):
                return
        send(Elapsed(monotonic() + seconds))


CALLS = ("infer", "refine", "stream", "infer_many")


def ask(router, call, x, **options):
    """The answer to `x` by that way of asking, the final one."""
    if call == "infer":
        return router.infer(x, **options)
    if call == "refine":
        return list(router.refine(x, **options))[-1]
    if call == "infer_many":
        (answer,) = router.infer_many([x], **options)
        return answer
    with router.stream(x, **options) as stream:
        pieces = list(stream)
    assert pieces, "what is answered is shown"
    return stream.answer


class Stop(KeyboardInterrupt):
    """What a signal handler may raise."""


class Panic(BaseException):
    """What no `except Exception` catches, and no signal handler raised: a panic in an extension of Rust, say."""


@contextlib.contextmanager
def uncollected():
    """Keep garbage collections, whose callbacks and finalizers are nobody's call, out of a block that is broken into."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def interrupted(function, at):
    """Whether the function ended before its opcode number `at` (of edgeroute's, in all it calls), where a `Stop` breaks in."""
    left = at

    def local(frame, event, arg):
        nonlocal left
        left -= event == "opcode"
        if left == 0 and event == "opcode":
            raise Stop
        return local

    def trace(frame, event, arg):
        if not frame.f_code.co_filename.startswith(str(Path(edgeroute.__file__).parent)) or left <= 0:
            return None
        frame.f_trace_opcodes, frame.f_trace_lines = True, False
        return local

    before = sys.gettrace()  # coverage's
    sys._getframe().f_trace_opcodes = True  # Python 3.12 looks for it as tracing begins
    with uncollected():
        sys.settrace(trace)
        try:
            function()
            over = True
        except Stop:
            over = False
        finally:
            sys.settrace(before)
    # broken off as an `except` begins, the interpreter takes that exception for handled ever after
    ctypes.pythonapi.PyErr_SetExcInfo(None, None, None)
    return over


def header(request, name):
    """The value of a request's header; None: it has none."""
    for line in request.partition(b"\r\n\r\n")[0].split(b"\r\n")[1:]:
        key, _, value = line.partition(b": ")
        if key.lower() == name.lower().encode():
            return value.decode()
    return None


def open_files():
    """Sockets, and files in use, of this process."""
    found = []
    for link in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):
            target = str(link.readlink())
            if target.startswith("socket:") or target.endswith((".db", ".db-wal", ".jsonl", ".deliver", ".callback")):
                found.append(target)
    return sorted(found)


@contextlib.contextmanager
def nothing_left(monkeypatch):
    """What is in the `with` ends with the files, sockets and threads with which it began; no proxy is between."""
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    threads, before = set(threading.enumerate()), open_files()
    yield
    for thread in set(threading.enumerate()) - threads:
        thread.join(LONG)
        assert not thread.is_alive(), thread
    until = monotonic() + LONG
    while (left := [name for name in open_files() if name not in before]) and monotonic() < until:
        gc.collect()  # of what nobody has any more; a no-op while another thread collects
    assert left == []


def makes(**policy):
    """A fixture that makes routers of either kind, with these arguments unless a test gives others, and closes them."""

    @pytest.fixture(params=[Threads, Tasks], ids=["threads", "asyncio"])
    def make(request):
        with contextlib.ExitStack() as stack:
            yield lambda *args, **more: stack.enter_context(request.param(*args, **{**policy, **more}))

    return make


@contextlib.contextmanager
def running(application):
    """A client of the application, on uvicorn in a thread."""
    import httpx
    import uvicorn

    listener = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(application, log_config=None, ws="none"))
    thread = threading.Thread(target=server.run, args=([listener],))
    thread.start()
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{listener.getsockname()[1]}", timeout=LONG) as client:
            yield client
    finally:
        server.should_exit = True
        thread.join()
        listener.close()


def collected(router, inputs, labels=None, *, edge=0, score=None, **options):
    """What `calibrate` and `evaluate` of a `Router` collect of these inputs."""
    (((found,), _),) = executed(pump(collect(DirectCalls(router.engine, edge, score), inputs, labels, **options), router.engine))
    return found


def executed(steps):
    """Executes a pump that shows nothing; yields its result."""
    yield (yield from steps)
