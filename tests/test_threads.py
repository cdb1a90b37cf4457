"""The pool of threads: no job waits for another, and none costs its slot."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from queue import Queue, SimpleQueue

import pytest
from both import Stop, interrupted

from edgeroute import StopToken
from edgeroute.system.thread_pool_and_workers import ThreadPool

LONG = 120.0


def until_idle(pool, count=1):
    """Waits until so many of the pool's threads have nothing to do."""
    pause = threading.Event()
    for _ in range(int(LONG / 0.001)):
        if not pool.waiting and len(pool.idle) >= count:  # in this order: one that is idle for a moment may take what waits
            return
        pause.wait(0.001)
    raise AssertionError("its threads stay busy")


def threads_of(name):
    """The threads of the pool with this name."""
    return [thread for thread in threading.enumerate() if thread.name == name]


def test_threads_are_used_again():
    """One after the other needs one thread, however many jobs there are."""
    pool, seen = ThreadPool("test", 4), set()
    for _ in range(20):
        done = threading.Event()
        assert pool.submit(lambda done=done: (seen.add(threading.current_thread()), done.set()))
        assert done.wait(LONG)
        until_idle(pool)
    assert len(seen) == 1
    pool.close()


def test_a_pool_that_is_busy_says_so():
    """More jobs at once than there may be threads are refused, not queued; once a thread is free there is room again."""
    pool, gate, ran = ThreadPool("test", 3), threading.Event(), []
    assert all(pool.submit(lambda: (gate.wait(LONG), ran.append(1))) for _ in range(3))
    assert not pool.submit(lambda: ran.append("never"))
    gate.set()
    until_idle(pool, 3)
    done = threading.Event()
    assert pool.submit(done.set)
    assert done.wait(LONG)
    assert ran == [1, 1, 1]
    pool.close()


@pytest.mark.parametrize("error", [ValueError, SystemExit, KeyboardInterrupt, GeneratorExit])
def test_a_job_that_raises_costs_no_thread(error, caplog):
    """Whatever it raises is logged, and its thread takes the next job."""

    def job():
        raise error("a job's own")

    pool = ThreadPool("test", 1)
    for _ in range(3):
        assert pool.submit(job)
        until_idle(pool)
    assert caplog.text.count("a job of test failed") == 3
    pool.close()


def test_a_job_may_submit_to_a_full_pool():
    """It is refused at once: nothing in the pool waits for the pool."""
    pool, told = ThreadPool("test", 1), []
    assert pool.submit(lambda: told.append(pool.submit(lambda: None)))
    until_idle(pool)
    assert told == [False]
    pool.close()


def test_where_the_system_has_no_more_threads(monkeypatch):
    """The job is refused, and the slot is there once there are threads again."""
    pool, done = ThreadPool("test", 1), threading.Event()

    def refuse(_):
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        assert not pool.submit(done.set)
    assert pool.submit(done.set)
    assert done.wait(LONG)
    pool.close()


def test_idle_threads_end():
    """A thread without work for a while ends, and a later job gets a new one."""
    pool = ThreadPool("test", 4, idle_s=0.01)
    for _ in range(2):
        threads, done = [], threading.Event()
        pool.submit(lambda threads=threads, done=done: (threads.append(threading.current_thread()), done.set()))
        assert done.wait(LONG)
        threads[0].join(LONG)
        assert not threads[0].is_alive()
        assert len(pool) == 0
    pool.close()


def test_a_thread_that_was_promised_a_job_which_never_comes_ends(monkeypatch):
    """Whoever took its mailbox may have been interrupted: the slot comes back all the same."""
    interrupts, ran = [], Queue()

    class Mailbox(SimpleQueue):
        def put(self, job):
            if interrupts:
                raise interrupts.pop()
            super().put(job)

    monkeypatch.setattr("edgeroute.system.thread_pool_and_workers.SimpleQueue", Mailbox)
    pool = ThreadPool("test", 1, idle_s=0.3)
    for _ in range(2):
        assert pool.submit(lambda: ran.put(threading.current_thread()))
        thread = ran.get(timeout=LONG)
        until_idle(pool)
        interrupts.append(Stop)
        with pytest.raises(Stop):
            pool.submit(lambda: ran.put("never"))
        assert thread.is_alive()
        thread.join(LONG)
        assert not thread.is_alive()
    assert ran.empty()
    pool.close()


def test_exceptions_out_of_a_signal_handler_cost_no_slot():
    """At each opcode of `submit`: as many jobs as there may be threads run at once afterwards."""
    at, over = 0, False
    while not over:
        at += 1
        pool, gate, begun = ThreadPool(f"test {at}", 2, idle_s=0.005), threading.Event(), threading.Semaphore(0)
        done = threading.Event()
        assert pool.submit(done.set)
        assert done.wait(LONG)  # its thread is idle by now, or has ended: either may be met
        over = interrupted(lambda pool=pool: (pool.submit(lambda: None), pool.submit(lambda: None)), at)
        for thread in threads_of(f"test {at}"):
            if thread.is_alive():
                thread.join(LONG)
        for _ in range(2):
            assert pool.submit(lambda begun=begun, gate=gate: (begun.release(), gate.wait(LONG)))
        assert all(begun.acquire(timeout=LONG) for _ in range(2)), at
        gate.set()
        pool.close()
    assert at > 20


def test_close_from_a_job():
    """A job may close the pool that runs it; a closed pool takes no more."""
    pool, closed = ThreadPool("test", 2), threading.Event()
    pool.submit(lambda: (pool.close(), closed.set()))
    assert closed.wait(LONG)
    assert not pool.submit(closed.set)


def test_a_child_has_a_pool_of_its_own():
    """However busy the parent's was."""
    pool, gate = ThreadPool("test", 1), threading.Event()
    pool.submit(lambda: gate.wait(LONG))
    pid = os.fork()
    if not pid:
        done = threading.Event()
        os._exit(0 if pool.submit(done.set) and done.wait(LONG) else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    gate.set()
    pool.close()


def test_what_nobody_waits_for_is_done_later():
    """In order, by the threads there are; none is forgotten where one becomes idle just then."""
    pool, gate, ran = ThreadPool("test", 3), threading.Event(), []
    for i in range(50):
        assert pool.submit_later(lambda i=i: (gate.wait(LONG), ran.append(i)))
    assert not pool.submit(lambda: None)
    gate.set()
    until_idle(pool, 3)
    assert sorted(ran) == list(range(50))
    done = threading.Semaphore(0)
    for _ in range(20):
        for _ in range(100):
            assert pool.submit_later(done.release)
        for _ in range(100):
            assert done.acquire(timeout=LONG)
    pool.close()


def test_what_waits_is_bounded(monkeypatch):
    """And without any thread there is nothing to wait for."""
    monkeypatch.setattr("edgeroute.system.thread_pool_and_workers.MOST_WAITING", 2)
    pool, gate, ran = ThreadPool("bounded", 1), threading.Event(), []
    assert [pool.submit_later(lambda: (gate.wait(LONG), ran.append(1))) for _ in range(4)] == [True, True, True, False]
    assert len(pool.waiting) == 2
    (thread,) = threads_of("bounded")
    pool.close(0.0)
    assert not pool.submit_later(gate.set)
    gate.set()
    thread.join(LONG)
    assert len(ran) == 3
    assert not ThreadPool("none", 0).submit_later(gate.set)


def test_what_waits_as_a_pool_is_closed_is_done():
    """By the threads that are busy."""
    pool, gate, ran = ThreadPool("closed", 2), threading.Event(), []
    for i in range(10):
        assert pool.submit_later(lambda i=i: (gate.wait(LONG), ran.append(i)))
    threads = threads_of("closed")
    assert len(threads) == 2
    pool.close(0.0)
    gate.set()
    for thread in threads:
        thread.join(LONG)
    assert sorted(ran) == list(range(10))


def test_a_stop_token_wakes_who_waits():
    """Before or after the request, in several threads; without one the time passes."""
    stop, found = StopToken(), []
    assert stop.wait(0.0) is False
    threads = [threading.Thread(target=lambda: found.append(stop.wait(LONG))) for _ in range(3)]
    for thread in threads:
        thread.start()
    stop()
    for thread in threads:
        thread.join(LONG)
    assert found == [True] * 3
    assert stop.asked
    assert stop.wait(LONG) is True
    asked = StopToken()
    asked()
    assert asked.wait(LONG) is True
    asked.on_ask(lambda: found.append("at once"))
    assert found[-1] == "at once"


@pytest.mark.skipif(sys.version_info >= (3, 14), reason="such a thread stands still there")
@pytest.mark.parametrize(("how", "wait_s", "ended"), [("with", 30.0, True), ("without close", 30.0, True), ("hangs", 0.1, False)])
def test_the_end_of_the_process_waits_for_a_run_that_was_left(how, wait_s, ended):
    """As native code that comes back later would abort it; but not for ever, if the run never ends."""
    program = f"""
import threading, time
from edgeroute import Router
from edgeroute.system import thread_pool_and_workers as threads

threads.EXIT_S = {wait_s}
over = threading.Event()

def edge(x):
    over.wait({"None" if how == "hangs" else "30"})
    time.sleep(0.2)  # the main thread has come to its end
    print("ended", flush=True)
    return "a", 0.9

router = Router(edge, deadline=0.05)
try:
    router.infer(1)
except Exception as e:
    print(type(e).__name__, flush=True)
if {how == "with"}:
    threading.Timer(1.5, over.set).start()  # later than close() waits
    router.close()
elif {how != "hangs"}:
    over.set()
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stdout.split()) == (0, ["DeadlineExceeded"] + ["ended"] * ended), done.stderr


@pytest.mark.parametrize(("before", "call"), [("", "close()"), ("app.router.infer(0)", "infer(1, deadline=60)")])
def test_a_router_that_is_used_as_the_interpreter_ends(tmp_path, before, call):
    """An object that is deleted so late closes its router, or asks it: nothing waits for threads that have ended with their locks."""
    program = f"""
from edgeroute import Router

class App:
    def __init__(self):
        self.router = Router(lambda x: ("edge", 0.1), lambda x: ("cloud", 0.9), threshold=0.5, state={str(tmp_path)!r})

    def __del__(self):
        answer = self.router.{call}
        print(answer and answer.value)

app = App()
{before}
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stdout.split()) == (0, ["None" if call == "close()" else "edge"]), done.stderr


@pytest.mark.parametrize("x", ["1", "[{'role': 'user', 'content': 'a'}]"])
def test_a_first_call_as_the_interpreter_ends(x):
    """No module can be imported any more: the edge's answer stands, the failure is logged, and nothing waits for an import."""
    program = f"""
from edgeroute import Router

class App:
    def __init__(self):
        self.router = Router(lambda x: ("edge", 0.1), lambda x: ("cloud", 0.9), threshold=0.5)

    def __del__(self):
        try:
            print(self.router.infer({x}).value)
        except ImportError:
            print("refused")

app = App()
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=LONG, check=False)
    assert (done.returncode, done.stdout.split()) in [(0, ["edge"]), (0, ["refused"] if x != "1" else ["cloud"])], done.stderr
