"""Entries that come at the same time: one transaction for all, each its own result, and nobody waits for the disk past a deadline."""

from __future__ import annotations

import contextlib
import signal
import sqlite3
import threading
from itertools import count, groupby

import pytest
import routes
from both import LONG, Tasks, Threads, interrupted, unsure

from edgeroute import Outbox, PlainJson, StoreError
from edgeroute.stores.outbox import Waiting
from edgeroute.stores.outbox.sqlite_queue import MOST
from edgeroute.stores.sqlite_file_and_key_values import Database
from edgeroute.testing import CannedServer

CALLERS = 100
"""More than there are threads for what is not a leg."""


pytestmark = pytest.mark.usefixtures("leaves_nothing")


class Clock:
    """Time of an outbox. Whoever asks while `gate` is shut waits; each transaction asks once, and is told a time of its own."""

    def __init__(self):
        self.asked, self.gate, self.times = threading.Event(), threading.Event(), count(1_800_000_000)
        self.gate.set()

    def __call__(self):
        """The next time. An event's lock, which the handler of a signal would wait for itself, is taken only if need be."""
        if not self.asked.is_set():
            self.asked.set()
        if not self.gate.is_set():
            self.gate.wait(9 * LONG)
        return next(self.times)


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def shut(clock):
    """The gate of the clock, which holds up the first transaction."""
    clock.gate.clear()
    yield clock.gate
    clock.gate.set()


@pytest.fixture
def box(tmp_path, clock):
    with contextlib.closing(Outbox(tmp_path / "outbox.db", spread_s=1e6, clock=clock)) as box:
        yield box


def entry(name, **fields):
    """A request."""
    return Waiting(name, "cloud", "call", b"{}", "POST", "/", **fields)


def sizes(box):
    """How many entries each transaction has stored: they have its time."""
    return [len([*stored]) for _, stored in groupby(box.list(), key=lambda one: one.queued_at)]


def until(box, brought):
    """Waits until so many entries wait for their transaction."""
    while len(box.group) < brought:
        threading.Event().wait(0.001)


def puts(box, entries):
    """Threads that put one each, and what was raised or returned, by id."""
    found = {}

    def put(one):
        try:
            found[one.id] = box.put(one)
        except Exception as e:  # noqa: BLE001 - for whoever looks
            found[one.id] = e

    threads = [threading.Thread(target=put, args=(one,)) for one in entries]
    for thread in threads:
        thread.start()
    return threads, found


def join(threads):
    """Until they have ended."""
    for thread in threads:
        thread.join(LONG)
        assert not thread.is_alive()


def test_those_who_come_meanwhile_are_stored_together(box, clock, shut):
    """One transaction for the first, and one for all others."""
    first, found = puts(box, [entry("0")])
    assert clock.asked.wait(LONG)
    others, also = puts(box, [entry(str(i)) for i in range(1, 20)])
    until(box, 20)
    shut.set()
    join(first + others)
    assert sizes(box) == [1, 19]
    assert len(box.group) == 0
    assert all(put.stored for put in (found | also).values())
    assert {e.id for e in box.list()} == {str(i) for i in range(20)}


def test_many_at_once(box):
    """A batch is stored in as few transactions as there may be, in its order."""
    assert all(put.stored for put in box.put_all([entry(f"{i:04}") for i in range(2 * MOST + 1)]))
    assert sizes(box) == [MOST, MOST, 1]
    with contextlib.closing(sqlite3.connect(box.path)) as c:
        ids = [row[0] for row in c.execute("SELECT id FROM outbox_entries ORDER BY seq")]
    assert ids == sorted(ids)
    assert box.put_all([]) == []


def test_one_that_cannot_be_stored_costs_no_other(box, clock, shut):
    """Its own caller is told why."""
    first, _ = puts(box, [entry("0")])
    assert clock.asked.wait(LONG)
    others, found = puts(box, [entry("1"), entry("\ud800"), entry("2")])
    until(box, 4)
    shut.set()
    join(first + others)
    assert isinstance(found.pop("\ud800"), UnicodeEncodeError)
    assert all(put.stored for put in found.values())
    assert {e.id for e in box.list()} == {"0", "1", "2"}


def test_each_is_told_of_a_disk_that_fails(box, clock, shut, monkeypatch):
    """By an exception of its own; the next put may succeed."""
    real, begun = Database.transaction, []

    def full(database):
        begun.append(1)
        if len(begun) > 1:
            raise StoreError("the disk is full")
        return real(database)

    first, found = puts(box, [entry("0")])
    assert clock.asked.wait(LONG)
    others, also = puts(box, [entry(str(i)) for i in range(1, 9)])
    until(box, 9)
    with monkeypatch.context() as patched:
        patched.setattr(Database, "transaction", full)
        shut.set()
        join(first + others)
    assert len(begun) == 2
    assert found["0"].stored
    assert {str(e) for e in also.values()} == {"the disk is full"}
    assert len(set(map(id, also.values()))) == 8
    assert box.put(entry("1")).stored


def test_an_effect_of_a_callback_may_put(box):
    """In its own transaction, while another thread waits for its turn with it."""
    box.put(entry("0"))
    box.answer("0", type("A", (), {"value": 1, "confidence": None, "outputs": None})())
    inside, threads = threading.Event(), []

    def effect(_, __):
        threads.extend(puts(box, [entry("other")])[0])
        until(box, 1)
        assert box.put(entry("own")).stored
        inside.set()

    assert box.settle("0", effect)
    assert inside.is_set()
    join(threads)
    assert {e.id for e in box.list()} == {"own", "other"}


def test_a_signal_handler_may_put(box):
    """Whatever the interrupted put of an open outbox is doing."""
    handled, names = [], count()
    box.put(entry("first"))

    def handle(*_):
        handled.append(box.put(entry(f"handler-{next(names)}")).stored)

    before = signal.signal(signal.SIGALRM, handle)
    try:
        for i in range(60):
            signal.setitimer(signal.ITIMER_REAL, 0.0001 * (1 + i))
            assert box.put(entry(str(i))).stored
            signal.setitimer(signal.ITIMER_REAL, 0)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert handled
    assert all(handled)
    assert len(box.list()) == 61 + len(handled)


def test_whoever_breaks_off_holds_up_no_other(box):
    """At each opcode of a put: the next one is stored."""
    at, over = 0, False
    box.put(entry("first"))
    while not over:
        at += 7
        over = interrupted(lambda: box.put(entry(f"cut-{at}")), at)  # noqa: B023 - called at once
        assert len(box.group) == 0
        assert box.put(entry(f"after-{at}")).stored
    assert at > 50
    assert {e.id for e in box.list()} >= {f"after-{i}" for i in range(7, at, 7)}


@pytest.mark.parametrize("kind", [Threads, Tasks], ids=["threads", "asyncio"])
@pytest.mark.usefixtures("no_time_left")
def test_nobody_waits_for_the_disk_past_the_deadline(box, kind):
    """However many come to it together, and whatever the disk does; all are stored in the end."""
    gate, put = threading.Event(), box.put_all
    box.put_all = lambda *args: (gate.wait(9 * LONG), put(*args))[1]
    with CannedServer(lambda _: None) as server:
        router = kind(unsure, PlainJson(server.url, retries=0), threshold=0.5, deadline=LONG, offline="queue", outbox=box)
        with contextlib.closing(router):
            guard = router.engine.snapshot.clouds[0].guard
            for _ in range(3):
                guard.failed()
            waiting = [router.start(i) for i in range(CALLERS)]
            answers = [one.result(LONG) for one in waiting] + router.infer_many(range(CALLERS))
            assert not gate.is_set()
            assert {routes.queued(a) for a in answers} == {routes.BEING_STORED}
            gate.set()
            while router.engine.queue.storing:
                threading.Event().wait(0.001)
            assert {e.id for e in box.list()} == {a.id for a in answers}
