"""First use, close and reload at the same time: what is to be one is one, the newest stays in force, and nothing is left open."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import os
import socket
import subprocess
import sys
import threading
import weakref
from functools import partial
from time import monotonic

import pytest
from both import LONG, GatedServer
from test_connections import connected_to, in_thread
from tiny import linear

from edgeroute import Closed, Limits, Options, Outbox, PolicyError, Prediction, Router, StoreError
from edgeroute.cloud import shared_spending_and_record as earlier
from edgeroute.core.spending_limits import Spending
from edgeroute.edge.concurrent_runs import runs_of
from edgeroute.http.messages_addresses_and_secrets import Address, Call
from edgeroute.observe import network_routes_and_monitor as network
from edgeroute.router import base_router as methods
from edgeroute.router import policy_reload as reload
from edgeroute.stores import sqlite_file_and_key_values as keyvalue
from edgeroute.stores.outbox.delivery_and_callbacks import Callbacks
from edgeroute.stores.outbox.outbox_entries import Waiting
from edgeroute.stores.sqlite_file_and_key_values import Database, KeyValueStore
from edgeroute.system.contained_calls_and_tasks import start_task_on
from edgeroute.system.fork_safety import Shared, list_weakset
from edgeroute.testing import CannedServer, http_reply
from edgeroute.tools.contracts.model_runs_that_may_hang import Token

GOOD = http_reply(b'{"value": "cloud", "confidence": 0.9}')


def both(run):
    """What two threads have got of it that began at once."""
    threads = [in_thread(run) for _ in range(2)]
    for thread, _ in threads:
        thread.join(LONG)
    return [came for _, (came,) in threads]


async def turns(done):
    """Lets the other tasks of this loop run until that is so."""
    until = monotonic() + LONG
    while not done():
        assert monotonic() < until
        await asyncio.sleep(0)


# ------------------------------------------------------------------------------------------------------------------- models
@pytest.mark.parametrize("when", ["at once", "after the last run"])
def test_no_run_begins_while_a_model_is_closed(when):
    """It waits, and then runs: to free a native model under a run would end the process."""
    told, came, token = [], threading.Event(), Token()

    class Closes:
        name = "closes"

        def run(self, inputs, cancel=None):
            if inputs == ["first"]:
                runs.close()
                return [("first", 1.0)]
            told.append("ran")
            came.set()
            return [("a", 1.0)]

        def close(self):
            if not token.taken.is_set():
                told.append("closing")
                late.start()
                while not (came.is_set() or token.taken.wait(0.01)):
                    pass
                told.append("closed")

    model = Closes()
    runs = runs_of(model)
    run = runs.count_runs(model.run)
    late = threading.Thread(target=run, args=(["late"], token))
    if when == "at once":
        runs.close()
    else:
        run(["first"])
    late.join(LONG)
    assert told == ["closing", "closed", "ran"]
    runs.close()
    assert run(["again"]) == [("a", 1.0)]


def test_tasks_wait_for_a_model_that_is_being_closed():
    """As threads do, and without holding the event loop up."""
    told, gate = [], threading.Event()

    class Closes:
        name = "closes"

        async def run(self, inputs, cancel=None):
            told.append("ran")

        def close(self):
            told.append("closing")
            gate.wait(LONG)
            told.append("closed")

    runs = runs_of(Closes())

    async def main():
        async def run():
            async with runs.one_async():
                told.append("ran")

        thread, _ = in_thread(runs.close)
        await turns(lambda: told)
        task = asyncio.ensure_future(run())
        await asyncio.sleep(0)  # its first step, to where it waits
        assert told == ["closing"]
        gate.set()
        await asyncio.wait_for(task, LONG)
        thread.join(LONG)

    asyncio.run(main())
    assert told == ["closing", "closed", "ran"]


def test_threads_share_what_is_held_by_key(monkeypatch):
    """As the runs of one model: each limit of its own would let twice as many go."""
    together = threading.Barrier(2)

    class Late(weakref.KeyedRef):
        def __new__(cls, *args):
            with contextlib.suppress(threading.BrokenBarrierError):
                together.wait(0.2)  # both are between their look and their entry, where nothing keeps them from it
            return super().__new__(cls, *args)

    monkeypatch.setattr(weakref, "KeyedRef", Late)
    shared = Shared()
    one, other = both(lambda: shared.first("key", Token()))
    assert one is other
    assert shared.get("key") is one


# ---------------------------------------------------------------------------------------------------------------- connections
def httpx_carrier(server):
    pytest.importorskip("httpx")
    from edgeroute.http.httpx_connections import HttpxConnections

    return HttpxConnections(Address(server.url, client="httpx"), None)


def test_closing_between_making_a_client_and_using_it(monkeypatch):
    """The call is answered, and its client closed after it; so is one of a call that comes later."""
    with CannedServer(GOOD) as server:
        carrier = httpx_carrier(server)
        make = type(carrier).new_client

        def closed_meanwhile(self, kind):
            made = make(self, kind)
            self.close()
            return made

        monkeypatch.setattr(type(carrier), "new_client", closed_meanwhile)
        for _ in range(2):
            assert carrier.send(Call("GET", "/"), monotonic() + LONG).status == 200
            assert (carrier.own, connected_to(server.port)) == (None, 0)


def test_closing_lets_a_call_by_httpx_end():
    """A reload drops the endpoint, and the request that began before has its answer."""
    with GatedServer(GOOD) as server:
        carrier = httpx_carrier(server)
        thread, came = in_thread(lambda: carrier.send(Call("GET", "/"), monotonic() + LONG))
        server.wait_for(lambda: server.requests)
        carrier.close()
        server.open()
        thread.join(LONG)
        assert [one.status for one in came] == [200], came
        assert (carrier.own, connected_to(server.port)) == (None, 0)


def test_a_client_of_another_event_loop_is_closed_there():
    """Where the router is closed on another one."""
    pytest.importorskip("httpx")
    from edgeroute.http.httpx_connections import AsyncHttpxConnections

    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    try:
        with CannedServer(GOOD) as server:
            carrier = AsyncHttpxConnections(Address(server.url, client="httpx"), None)

            def on_its_loop(work):
                return asyncio.run_coroutine_threadsafe(work, loop).result(LONG)

            on_its_loop(carrier.send(Call("GET", "/"), monotonic() + LONG))
            own = carrier.own
            asyncio.run(carrier.close())
            carrier.abandon()

            on_its_loop(turns(lambda: own.is_closed))
            assert type(own).__name__ == "AsyncClient"
            server.wait_for(lambda: server.hung_up == 1)
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


def test_a_loop_that_has_ended_is_given_nothing():
    """No coroutine is made that nobody would await."""
    loop, made = asyncio.new_event_loop(), []
    loop.close()
    start_task_on(loop, lambda: made.append("a coroutine"))
    assert made == []


# --------------------------------------------------------------------------------------------------------- live sources, stores
class Growing(weakref.WeakSet):
    """One to which another thread adds `added` while it is iterated over, once."""

    added = None

    def __iter__(self):
        found = super().__iter__()
        yield next(found)
        if self.added is not None:
            added, self.added = self.added, None
            self.add(added)
        yield from found


def test_a_weak_set_that_grows_meanwhile():
    """Those that were in it are all there."""
    one, other, third = Token(), Token(), Token()
    things = Growing([one, other])
    things.added = third
    assert {one, other} <= {*list_weakset(things)}


class GrowingAfterwards(Growing):
    """One to which another thread adds `added` as it has been iterated over, once."""

    def __iter__(self):
        yield from weakref.WeakSet.__iter__(self)
        if self.added is not None:
            added, self.added = self.added, None
            self.add(added)


@pytest.mark.parametrize("growing", [Growing, GrowingAfterwards])
def test_a_source_that_is_opened_while_its_router_is_closed(monkeypatch, growing):
    """It ends too, and the router is closed whatever else goes on."""
    found = growing()
    monkeypatch.setattr(methods, "WeakSet", lambda: found)
    router = Router(lambda x: (x, 1.0))
    updates = [router.frames(iter(range(3))) for _ in range(3)]
    found.discard(updates[-1])
    found.added = updates[-1]
    router.close()
    assert router.engine.closed
    for one in updates:
        with one, pytest.raises(Closed):
            next(one)


def between(warm, run, at, other):
    """Does another thing before the store's opcode number `at`. -> what came of it, and whether it got there without the file.

    `warm` does the same as `run` with another store: Python 3.13 shows a function's opcodes only from its second traced call on.
    """
    left, did = -1, False

    def local(frame, event, arg):
        nonlocal left, did
        if event == "opcode" and left:
            left -= 1
            if not left:
                did = True
                other()
        return local

    def trace(frame, event, arg):
        nonlocal left
        if frame.f_code is inspect.unwrap(Database.transaction).__code__:
            left = 0  # from here on, whoever closes the file waits
        if not left or frame.f_code.co_filename != keyvalue.__file__:
            return None
        frame.f_trace_opcodes, frame.f_trace_lines = True, False
        return local

    sys._getframe().f_trace_opcodes = True  # Python 3.12 looks for it as tracing begins
    before = sys.gettrace()
    sys.settrace(trace)
    try:
        warm()
        left = at
        found = run()
    finally:
        sys.settrace(before)
    return found, did


@pytest.mark.parametrize("do", ["get", "rows", "flush", "forget"])
def test_a_store_that_is_closed_while_it_is_asked(tmp_path, monkeypatch, do):
    """Between its look whether there is a file, and its use of it."""

    def refuse(_):
        raise RuntimeError("can't start new thread")

    at, reached = 0, True
    while reached:
        at += 1
        warm, store = (KeyValueStore(tmp_path / name) for name in ("warm.db", "state.db"))
        if do == "flush":
            with monkeypatch.context() as patch:
                patch.setattr(threading.Thread, "start", refuse)  # else `close` waits for a thread that may wait for this one
                warm.put("a", at)
                store.put("a", at)
        arguments = {"get": ["b"], "rows": ["b"], "flush": [], "forget": ["b", 0.0]}[do]
        runs = [partial(getattr(each, do), *arguments) for each in (warm, store)]
        found, reached = between(*runs, at, store.close)
        warm.close()
        store.close()
        if do == "flush":
            other = KeyValueStore(tmp_path / "state.db")
            assert other.get("a") == at
            other.close()
        else:
            assert not found
    assert at > 5


def test_another_function_for_late_answers_while_one_is_handed_over(tmp_path, monkeypatch):
    """It is not called as the one before would be."""
    outbox, told = Outbox(tmp_path / "outbox.db"), []
    callbacks, settle, settled = Callbacks(outbox), outbox.settle, threading.Event()

    def replaced_meanwhile(*args):
        callbacks.register(lambda late: told.append(("second", late.id)))
        try:
            return settle(*args)
        finally:
            settled.set()

    monkeypatch.setattr(outbox, "settle", replaced_meanwhile)
    outbox.put(Waiting("a", "cloud", "call", b""))
    outbox.answer("a", Prediction("value", 0.9, None))
    callbacks.register(lambda late, tx: told.append(("first", late.id)))
    assert settled.wait(LONG)
    callbacks.close(LONG)
    assert (told, outbox.late("a")) == ([("first", "a")], None)
    outbox.close()


def test_spending_is_read_again_where_there_was_no_thread(tmp_path, monkeypatch):
    """Else all that has a limit would be refused for ever."""
    store, spending, at = KeyValueStore(tmp_path / "state.db"), Spending(Limits(usd_per_day=1.0)), [0.0]
    spent = earlier.EarlierSpending(spending, store)
    monkeypatch.setattr(earlier, "monotonic", lambda: at[0])

    def away(_):
        raise StoreError("the disk is away")

    def none(*args, **named):
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(store, "rows", away)
        assert not spent.recall(threading.RLock(), "own")
    at[0] = 1e9
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", none)
        spent.look_again(threading.RLock(), "own")
    assert "the disk is away" in spending.unknown
    at[0] = 2e9
    spent.look_again(threading.RLock(), "own")
    until = monotonic() + LONG
    while spending.unknown:
        assert monotonic() < until
        threading.Event().wait(0.001)
    store.close()


# --------------------------------------------------------------------------------------------------------------- device, catalog
AT_ONCE = """
import threading
from edgeroute.observe import device_sensors_and_sampler as sensors

together, found = threading.Barrier(2), []

class Late(sensors.DeviceSensors):
    def __init__(self):
        together.wait(30)
        super().__init__()

sensors.DeviceSensors = Late
threads = [threading.Thread(target=lambda: found.append(sensors.system_sensors())) for _ in range(2)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
print(len(found), found[0] is found[1], sensors.system_sensors() is found[0])
"""


def test_the_devices_sensors_are_one():
    """What is a difference counts from the reading before, of whoever that was."""
    done = subprocess.run([sys.executable, "-c", AT_ONCE], capture_output=True, text=True, check=True, timeout=2 * LONG)
    assert done.stdout.split() == ["2", "True", "True"]


def test_a_monitor_without_files_left(monkeypatch):
    """It is as where the kernel does not tell: nothing is left open, and the call that has started it goes on."""
    left, right = socket.socketpair()

    def none(*args):
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(network, "listen", lambda: left)
    monkeypatch.setattr(network.socket, "socketpair", none)
    monitor = network.NetworkMonitor(lambda: None)
    monitor.start()
    assert not monitor.works
    assert left.fileno() == -1
    right.close()


def test_an_updater_that_is_closed_between_two_files(tmp_path, monkeypatch):
    """The connection for the next one is closed as well, and a download ends."""
    for needed in ("tuf", "cryptography"):
        pytest.importorskip(needed)
    from catalogs import Publisher
    from catalogs import Web as Server

    from edgeroute.catalog import Updater
    from edgeroute.catalog.catalog_source_and_verification import Web
    from edgeroute.errors import CatalogAway
    from edgeroute.system.late_imports_and_plugins import import_httpx

    httpx = import_httpx("a test of a catalog")
    publisher = Publisher(tmp_path)
    publisher.publish("1.0")
    with Server(publisher.catalog).running() as server:
        catalog = publisher.device(server.url)
        catalog.pull("doors")
        catalog.activate("doors")
        catalog.close()
        between, closed = threading.Event(), threading.Event()
        opened, close, clients = Web.open, Web.close, []

        @contextlib.contextmanager
        def late(self, *args):
            between.set()
            assert closed.wait(LONG)
            with opened(self, *args) as piece:
                yield piece

        class Client(httpx.Client):
            def __init__(self, *args, **named):
                super().__init__(*args, **named)
                clients.append(self)

        def told(self):
            close(self)
            closed.set()

        with Router(catalog.path("doors")) as router:
            updater = Updater(catalog, "doors", router)
            monkeypatch.setattr(Web, "open", late)
            monkeypatch.setattr(httpx, "Client", Client)
            monkeypatch.setattr(Web, "close", told)
            updater.start()
            assert between.wait(LONG)
            updater.close()
            assert [client.is_closed for client in clients] == [True], "one was opened, and is closed"
            publisher.publish("1.1")
            with pytest.raises(CatalogAway, match="closed"):  # nor does a download that is under way go on
                updater.step()
            catalog.close()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_child_may_update_once_its_parent_has(tmp_path):
    """Though its parent was updating as it was forked."""
    pytest.importorskip("tuf")
    from edgeroute.catalog.model_folder_and_downloads import Store

    store, (heard, said) = Store(tmp_path), os.pipe()
    with store.downloading():
        pid = os.fork()
        if not pid:
            status = 1
            with contextlib.suppress(BaseException):
                os.read(heard, 1)
                with store.downloading():
                    status = 0
            os._exit(status)
        with pytest.raises(StoreError), store.downloading():
            pass
    os.write(said, b"x")
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    for end in (heard, said):
        os.close(end)


def test_a_dashboard_that_is_closed_as_it_starts(monkeypatch):
    """Its page ends, though it was not yet known how to end it."""
    pytest.importorskip("starlette")
    pytest.importorskip("uvicorn")
    from edgeroute.tools.dashboard import web_app_and_metrics as run
    from edgeroute.tools.dashboard.in_process import Dashboard

    ended, dashboard = [], Dashboard()

    def serve(monitor, *, on_ready, stops, **more):
        dashboard.close()
        stops(lambda: ended.append("ended"))
        on_ready("http://a")

    monkeypatch.setattr(run, "serve", serve)
    with Router(lambda x: (x, 1.0), options=Options(instruments=[dashboard])) as router:
        assert dashboard.serve(router) == "http://a"
        assert ended == ["ended"]


# ------------------------------------------------------------------------------------------------------------------------ reload
class Watched:
    """A lock that tells that somebody waits for it."""

    def __init__(self):
        self._lock, self.waits = threading.RLock(), threading.Event()

    def __enter__(self):
        if not self._lock.acquire(blocking=False):
            self.waits.set()
            self._lock.acquire()

    def __exit__(self, *args):
        self._lock.release()


@pytest.mark.parametrize("at", ["read", "put in force"])
def test_the_newer_policy_stays_in_force(tmp_path, monkeypatch, at):
    """Two reloads at once: the file was changed after the first had read it, or as it did, which that is told."""
    pytest.importorskip("onnxruntime")
    linear(tmp_path / "a.onnx", card={"labels": ["a", "b", "c"]})
    policy = tmp_path / "policy.toml"

    def write(n):
        policy.write_text(
            f'threshold = 0.{n}\n[edge]\npath = "a.onnx"\n[limits]\ncalls_per_minute = {n}\n[cloud]\nprotocol = "json"\n'
            'url = "http://127.0.0.1:9"\n'
        )

    write(1)
    with Router.from_policy(policy) as router:
        engine = router.engine
        lock = engine.replacing = Watched()
        first, seconds = threading.current_thread(), []

        def second():
            try:
                router.reload()
            finally:
                lock.waits.set()

        def meanwhile():
            if threading.current_thread() is first and not seconds:
                write(3)
                seconds.append(in_thread(second))
                assert lock.waits.wait(LONG)

        if at == "read":
            read = reload.PolicyFile.arguments

            def arguments(self):
                found = read(self)
                meanwhile()
                return found

            monkeypatch.setattr(reload.PolicyFile, "arguments", arguments)
        else:
            put = reload.put_trials
            monkeypatch.setattr(reload, "put_trials", lambda *given: (put(*given), meanwhile()))
        write(2)
        with pytest.raises(PolicyError, match="changed as it was read") if at == "read" else contextlib.nullcontext():
            router.reload()
        seconds[0][0].join(LONG)
        assert seconds[0][1] == [None]
        assert engine.snapshot.targets[0].threshold == 0.3
        assert engine.spending.limits.calls_per_minute == 3
