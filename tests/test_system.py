"""The pool of threads."""

from __future__ import annotations

import threading


def test_threads_are_used_again():
    """One after the other needs one thread, however many jobs there are."""
    workers, seen = Workers(), set()
    for _ in range(20):
        done, idle = threading.Event(), threading.Event()
        workers.submit(lambda done=done: (seen.add(threading.current_thread()), done.set()))
        assert done.wait(30)
        while not workers._idle:  # the thread notes that it is free just after the job
            idle.wait(0.001)
    assert len(seen) == 1
    workers.close()


def test_the_pool_has_a_limit():
    """More jobs at once than there may be threads wait their turn, and all run."""
    workers, gate, ran, lock = Workers(), threading.Event(), [], threading.Lock()
    everything = threading.Event()

    def job():
        gate.wait(30)
        with lock:
            ran.append(1)
            if len(ran) == MOST + 8:
                everything.set()

    for _ in range(MOST + 8):
        workers.submit(job)
    assert len(workers._threads) == MOST
    gate.set()
    assert everything.wait(30)
    workers.close()


def test_idle_threads_end():
    """A thread without work for a while ends, and a later job gets a new one."""
    workers = Workers(idle_s=0.01)
    for _ in range(2):
        threads = []
        done = threading.Event()
        workers.submit(lambda threads=threads, done=done: (threads.append(threading.current_thread()), done.set()))
        assert done.wait(30)
        threads[0].join(30)
        assert not threads[0].is_alive()
        assert workers._threads == set()
    workers.close()


def test_close_from_a_job():
    """A job may close the pool that runs it."""
    workers, closed = Workers(), threading.Event()
    workers.submit(lambda: (workers.close(), closed.set()))
    assert closed.wait(30)
