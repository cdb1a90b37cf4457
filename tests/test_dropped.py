"""Routers that are dropped without `close`: nothing of them stays, they say so, and nothing keeps them alive."""

import _thread
import asyncio
import gc
import json
import logging
import os
import subprocess
import sys
import threading
import warnings
import weakref
from time import monotonic

import pytest
from both import GOOD, LONG, nothing_left, open_files, sure, unsure

from edgeroute import AsyncRouter, Cache, PlainJson, Router
from edgeroute.router import base_router as base
from edgeroute.testing import CannedServer


@pytest.fixture(autouse=True)
def _nothing_left_behind(monkeypatch):
    with nothing_left(monkeypatch):
        gc.collect()
        gc.freeze()  # what was there before is not looked through again and again, in this test and in later ones
        yield
        gc.collect()
        assert settled(lambda: not [t for t in threading.enumerate() if t.name.startswith("edgeroute-")])


@pytest.fixture(params=[Router, AsyncRouter], ids=["threads", "asyncio"])
def kind(request):
    return request.param


@pytest.fixture(autouse=True)
def told(monkeypatch):
    """As in a new process: nothing was said yet."""
    monkeypatch.setattr(base, "_warned", threading.Event())  # private: what is said once in a process was not said yet


@pytest.fixture
def said():
    """What is said of unclosed things meanwhile; another test's may be among them."""
    texts = []
    with warnings.catch_warnings():
        warnings.simplefilter("always", ResourceWarning)
        warnings.showwarning = lambda message, *_, **__: texts.append(str(message))  # recording keeps what it is about
        yield lambda: list(texts)


def used(kind, *args, times=2, **kwargs):
    """A router of this kind that has answered; an asyncio one's loop is closed."""
    if kind is Router:
        router = Router(*args, **kwargs)
        for n in range(times):
            router.infer(n)
        return router

    async def work():
        router = AsyncRouter(*args, **kwargs)
        for n in range(times):
            await router.infer(n)
        return router

    return asyncio.run(work())


def settled(condition):
    """Whether the condition holds at last."""
    until, pause = monotonic() + LONG, threading.Event()
    gc.collect()
    while not condition() and monotonic() < until:
        pause.wait(0.01)
    return condition()


def full(folder, server):
    """Settings with every thread and file that a router may have."""
    return {
        "edge": unsure, "cloud": [PlainJson(server.url), PlainJson("http://127.0.0.1:9/x", retries=0)], "threshold": 0.5,
        "deadline": LONG, "state": folder, "offline": "queue", "cache": Cache(disk=folder / "cache.db"),
        "trace": folder / "trace.jsonl",
    }  # fmt: skip


@pytest.mark.pure
def test_many_leave_nothing(kind, tmp_path, said, caplog):
    """No thread, file or connection of 40 routers, with state, outbox, disk cache and an open breaker; it is logged once."""
    threads, files = set(threading.enumerate()), set(open_files())
    with CannedServer(GOOD) as server, caplog.at_level(logging.WARNING, "edgeroute"):
        serving = set(threading.enumerate())
        for i in range(40):
            options = {"threshold": 0.5} if i % 10 else full(tmp_path / str(i), server)
            if i % 20 == 0:
                options["cloud"] = options["cloud"][::-1]  # the first of them is away: its breaker opens, and the link is watched
            used(kind, options.pop("edge", unsure), options.pop("cloud", PlainJson(server.url)), **options)
        assert settled(lambda: set(threading.enumerate()) <= serving)
    assert settled(lambda: set(threading.enumerate()) <= threads)
    assert settled(lambda: not set(open_files()) - files)
    assert len([text for text in said() if text.startswith("unclosed router <")]) == 40
    assert not [text for text in said() if not text.startswith("unclosed router")], "all in it was closed, and not just dropped"
    assert len([r for r in caplog.records if "dropped without close()" in r.message]) == 1


def test_a_closed_router_says_nothing(kind, said, caplog):
    """Nor one that could not be made."""
    with Router(sure, None) as router:
        router.infer(1)
    with pytest.raises(TypeError):
        kind(nonsense=1)

    async def work():
        async with AsyncRouter(sure, None) as router:
            await router.infer(1)

    asyncio.run(work())
    del router
    gc.collect()
    assert said() == []
    assert not caplog.records


def test_its_state_is_stored(kind, tmp_path, said):
    """As by `close`: the cache's file has the answer."""
    used(kind, sure, None, cache=Cache(disk=tmp_path / "cache.db"), times=1)
    assert settled(lambda: not [t for t in threading.enumerate() if t.name.startswith("edgeroute")])
    again = used(kind, sure, None, cache=Cache(disk=tmp_path / "cache.db"), times=1)
    assert again.stats().cached == 1
    del again
    assert len(said()) == 2


def test_nothing_keeps_it_alive(kind, tmp_path, said):
    """Neither its threads, the outbox's and the one that watches its file, nor a background task's parts."""
    with CannedServer(GOOD) as server:
        file = tmp_path / "policy.json"
        cloud = {"protocol": "json", "url": server.url}
        file.write_text(json.dumps({"threshold": 0.5, "cloud": cloud, "offline": "queue", "state": "state", "cache": {}}))
        router = kind.from_policy(file, edge=unsure, watch=True)
        gone = weakref.ref(router)
        del router
        assert settled(lambda: gone() is None)
    assert len(said()) == 1


def refers(router):
    """A function that does."""
    return lambda late: (late, router)


def test_a_function_that_refers_to_it_does_not_keep_it_alive(kind, said):
    """It is the router's own, where no outbox's thread may call it."""
    router = kind(unsure, sure, threshold=0.5)
    router.on_late(refers(router))
    gone = weakref.ref(router)
    del router
    assert settled(lambda: gone() is None)
    assert len(said()) == 1


def test_what_has_failed_does_not_keep_it_alive(kind, tmp_path, said):
    """An error has the frames of its traceback, and those have the router: nothing that outlives the call keeps one."""

    def away(_):  # an error of its own each time: one that the test keeps would have the frames
        raise OSError("away")

    gone = weakref.ref(used(kind, unsure, [away, sure], threshold=0.5, offline="queue", state=tmp_path))
    assert settled(lambda: gone() is None)
    assert len(said()) == 1


def test_a_call_under_way_keeps_it(said):
    """A generator of provisional answers belongs to its router."""
    shown = Router(unsure, sure, threshold=0.5).refine(1)
    assert next(shown).final is False
    gc.collect()
    assert [answer.source for answer in shown] == ["cloud"]
    del shown
    gc.collect()
    assert len(said()) == 1


def test_where_no_thread_can_be_started(kind, said, monkeypatch):
    """It is closed all the same, there and then."""

    def none(*args):
        raise RuntimeError("can't start new thread")

    router = kind(sure, None)
    engine = router.engine
    monkeypatch.setattr(_thread, "start_new_thread", none)
    del router
    assert engine.closed
    assert not engine.edge_threads.submit(int)
    assert len(said()) == 1


def test_where_the_second_thread_cannot_be_started(kind, said, monkeypatch):
    """The first one closes it."""
    router = kind(sure, None)
    engine = router.engine
    first = []

    def start(run, args):  # one that `threading` knows, so that it can be waited for
        first.append(threading.Thread(target=run, args=args))
        first[0].start()

    monkeypatch.setattr(_thread, "start_new_thread", start)
    monkeypatch.setattr(base, "start_thread", lambda *_: None)
    del router
    first[0].join(LONG)
    assert not engine.edge_threads.submit(int)
    assert len(said()) == 1


SCRIPT = """
import sys, threading
from edgeroute import AsyncRouter, Cache, Router
how, folder = sys.argv[1:]
router = (AsyncRouter if how == "asyncio" else Router)(
    lambda x: ("edge", 0.1), lambda x: ("cloud", 0.9), threshold=0.5, deadline=9, state=folder, offline="queue"
)
if how == "cycle":
    router.itself = router
if how == "threads":
    router.infer(1)
print("end")
"""


@pytest.mark.parametrize("how", ["threads", "asyncio", "cycle"])
def test_the_end_of_the_interpreter(how, tmp_path):
    """Nothing is said and nothing waited for, as before: all ends with the process."""
    command = [sys.executable, "-W", "error", "-c", SCRIPT, how, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=2 * LONG, check=False, env={**os.environ})
    assert (done.returncode, done.stdout, done.stderr) == (0, "end\n", "")
