"""The queue that calls wait at: each wait ends in time, whatever comes between, and nothing is lost."""

from __future__ import annotations

import os
import signal
import threading
from queue import Empty
from time import monotonic

import pytest
from both import LONG
from draws import slow

from edgeroute.system.mailbox import Mailbox


@pytest.mark.parametrize("timeout", [-1.0, 0.0, 1e-9, *slow(1e-7, 1e-6, 1e-5), float("-inf")])
def test_a_wait_whose_time_is_over_ends(timeout):
    """One of `queue.SimpleQueue` in some thousands never did."""
    done = []

    def wait():
        for _ in range(20_000):
            with pytest.raises(Empty):
                Mailbox().get(timeout)
        done.append(True)

    thread = threading.Thread(target=wait, daemon=True)
    thread.start()
    thread.join(3 * LONG)
    assert done


@pytest.mark.skipif(not hasattr(signal, "SIGUSR1"), reason="there is no such signal")
def test_a_wait_ends_though_a_signals_handler_outlasts_it():
    until = monotonic() + 0.2
    before = signal.signal(signal.SIGUSR1, lambda *_: threading.Event().wait(max(0.0, until + 0.05 - monotonic())))
    timer = threading.Timer(0.02, os.kill, (os.getpid(), signal.SIGUSR1))
    timer.start()
    try:
        with pytest.raises(Empty):
            Mailbox().get(until - monotonic())
    finally:
        timer.join()
        signal.signal(signal.SIGUSR1, before)
    assert monotonic() >= until


def test_many_writers_and_one_reader():
    """Each item arrives once, those of a writer in their order; a wait without a limit ends with an item."""
    mailbox, number = Mailbox(), 2_000
    writers = [threading.Thread(target=lambda w=w: [mailbox.put((w, i)) for i in range(number)]) for w in range(4)]
    for writer in writers:
        writer.start()
    items = [mailbox.get(None if i % 2 else LONG) for i in range(4 * number)]
    for writer in writers:
        writer.join()
    assert [[i for w, i in items if w == writer] for writer in range(4)] == [[*range(number)]] * 4
    assert mailbox.empty()
    with pytest.raises(Empty):
        mailbox.get(0)
