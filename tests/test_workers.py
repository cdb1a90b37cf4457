"""Threads that live long: no exception ends one, each is named, joined at the close, and missing in a forked child."""

from __future__ import annotations

import os
import sys
import threading

import pytest
from both import uncollected
from lazily import needs

from edgeroute import AsyncRouter
from edgeroute.stores.sqlite_file_and_key_values import KeyValueStore
from edgeroute.system.thread_pool_and_workers import Worker, failing, start_thread

needs("httpx", "starlette", "uvicorn")
import httpx  # noqa: E402
from gateways import serving  # noqa: E402

LONG = 120.0


class Turns:
    """Turns of a worker: pops the next result or exception from a list; `wait` returns after so many turns."""

    def __init__(self, *results):
        self.results, self.count, self.names = list(results), threading.Semaphore(0), []

    def __call__(self):
        """Take the next turn."""
        self.names.append(threading.current_thread().name)
        result = self.results.pop(0) if self.results else LONG
        self.count.release()
        if isinstance(result, BaseException):
            raise result
        return result

    def wait(self, turns):
        """Wait for so many turns."""
        assert all(self.count.acquire(timeout=LONG) for _ in range(turns))


class PanicException(BaseException):
    """As pyo3 raises for a panic."""


@pytest.mark.parametrize(
    "error", [ValueError("once"), OSError("once"), SystemExit("once"), PanicException("once"), GeneratorExit("once")]
)
def test_no_exception_ends_it(error, caplog):
    """It is logged, once however often it comes, and the next turn follows."""
    turns = Turns(error, error, 0.0, error)
    worker = Worker("test", turns, "the test waits", retry_s=0.0)
    assert worker.start()
    turns.wait(5)
    worker.close()
    assert caplog.text.count("the test waits: ") == 2
    assert set(turns.names) == {"test"}
    assert worker.error == ""


def test_the_error_of_the_last_turn():
    """A part that fails is known to fail."""
    turns = Turns(SystemExit("no disk"), SystemExit("no disk"))
    worker = Worker("test", turns, "the test waits", retry_s=LONG)
    worker.start()
    turns.wait(1)
    worker.nudge()
    turns.wait(1)  # the first has failed by now
    assert failing() == ["test"]
    with serving(AsyncRouter(lambda x: (x, 0.9), threshold=0.5)) as url:
        assert httpx.get(f"{url}/v2/health/ready").json() == {"ready": True, "failing": ["test"]}
    worker.close()
    assert (worker.error, failing()) == ("SystemExit: no disk", [])


def test_a_nudge_is_a_turn_at_once():
    """And before the start none begins; after the close none either."""
    turns = Turns()
    worker = Worker("test", turns, "the test waits")
    worker.nudge()
    assert not worker.alive
    worker.start()
    turns.wait(1)
    worker.nudge()
    turns.wait(1)
    worker.close()
    worker.nudge()
    assert (worker.start(), len(turns.names)) == (False, 2)
    assert "test" not in [thread.name for thread in threading.enumerate()]


def test_an_interrupt_leaves_its_lock_free():
    """Ctrl-C may raise at any call or return of a Python function within `nudge`: other threads still take its lock."""
    worker = Worker("one", lambda: 3600.0, "it failed")
    worker.start()
    for place in range(1000):
        events = iter(range(place + 1))

        def trace(frame, event, _arg, events=events):
            handled = event == "call" or (event == "return" and frame.f_code.co_name != "__enter__")  # as it returns, none is
            if handled and next(events, None) is None:
                raise KeyboardInterrupt
            return trace

        before = sys.gettrace()
        with uncollected():
            sys.settrace(trace)
            try:
                worker.nudge()
                interrupted = False
            except KeyboardInterrupt:
                interrupted = True
            finally:
                sys.settrace(before)
        other = threading.Thread(target=worker.nudge, daemon=True)
        other.start()
        other.join(LONG)
        assert not other.is_alive(), place
        if not interrupted:
            break
    worker.close(LONG)
    assert place > 4


def test_a_thread_without_work_ends_and_comes_again():
    """A start during its last turn is not lost."""
    begun, go = threading.Semaphore(0), threading.Semaphore(0)

    def turn():
        begun.release()
        assert go.acquire(timeout=LONG)

    worker = Worker("test", turn, "the test waits")
    worker.start()
    assert begun.acquire(timeout=LONG)
    worker.start()
    go.release(2)
    assert begun.acquire(timeout=LONG)
    for thread in [thread for thread in threading.enumerate() if thread.name == "test"]:
        thread.join(LONG)
    assert not worker.alive
    worker.start()
    assert begun.acquire(timeout=LONG)
    go.release()
    worker.close()


def test_without_a_thread(monkeypatch, caplog):
    """That is said once, and a later start finds one."""

    def none(_):
        raise RuntimeError("can't start new thread")

    turns = Turns()
    worker = Worker("test", turns, "the test waits")
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", none)
        assert (worker.start(), worker.start(), start_thread("test", turns)) == (False, False, None)
    assert caplog.text.count("there is no thread for it") == 1
    assert worker.start()
    turns.wait(1)
    worker.close()


def test_a_close_from_its_own_turn():
    """It does not wait for itself."""
    ended = threading.Event()

    def turn():
        worker.close()
        ended.set()
        return 0.0

    worker = Worker("test", turn, "the test waits")
    worker.start()
    assert ended.wait(LONG)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="it has no fork")
def test_a_forked_child_has_none_until_it_is_nudged():
    turns = Turns()
    worker = Worker("test", turns, "the test waits")
    worker.start()
    turns.wait(1)
    child = os.fork()
    if not child:
        code = 1
        try:
            turns.count = threading.Semaphore(0)
            assert not worker.alive
            worker.nudge()
            turns.wait(1)
            worker.close()
            code = 0
        finally:
            os._exit(code)
    assert os.waitpid(child, 0)[1] == 0
    worker.close()


def test_a_job_that_raises_is_logged(caplog):
    """Not printed by Python, whose text may have an input in it."""
    thread = start_thread("test", "12".index, "3")
    thread.join(LONG)
    assert "test failed" in caplog.text


def test_a_panic_does_not_end_the_writer_of_a_state(tmp_path, monkeypatch):
    """What is put later is written all the same."""
    monkeypatch.setattr("edgeroute.stores.sqlite_file_and_key_values.DELAY_S", 0.0)
    flushed, flush = threading.Semaphore(0), KeyValueStore.flush
    panics = [PanicException("of an extension")]

    def panicking(store):
        if panics:
            raise panics.pop()
        try:
            return flush(store)
        finally:
            flushed.release()

    monkeypatch.setattr(KeyValueStore, "flush", panicking)
    store = KeyValueStore(tmp_path / "state.db")
    store.put("a", 1)
    assert flushed.acquire(timeout=LONG)
    assert [name for name, *_ in store.rows("")] == ["a"]
    store.close()
