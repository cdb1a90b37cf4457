"""An outbox in which much waits: what it costs, counted in steps of SQLite's virtual machine, without a clock."""

from __future__ import annotations

import contextlib
import sqlite3

import pytest

from edgeroute import Held, Outbox, Prediction, Unreachable
from edgeroute.stores.outbox import Callbacks, Delivery, Waiting
from edgeroute.stores.outbox import schema_queries_and_eviction as tables
from edgeroute.stores.outbox.schema_queries_and_eviction import MOST_LANES
from edgeroute.system.thread_pool_and_workers import ThreadPool
from edgeroute.system.wall_clock import now

FEW, MANY = 20, 5000
MORE = 3.0
"""How many times the steps with few entries those with many may be: the depth of a tree, and rows that hang together."""


class Steps:
    """Counts what SQLite does, through all connections of this process."""

    def __init__(self, monkeypatch):
        self._connect, self._open, self._steps = sqlite3.connect, [], 0
        monkeypatch.setattr(sqlite3, "connect", self._connected)

    def _connected(self, *args, **more):
        self._open.append(self._connect(*args, **more))
        return self._open[-1]

    def _step(self):
        self._steps += 1

    def count(self, work):
        """Steps of the virtual machine during `work`."""
        self._steps = 0
        self._handle(self._step)
        work()
        self._handle(None)
        assert self._steps, "it was counted"
        return self._steps

    def _handle(self, step):
        for connection in self._open:
            with contextlib.suppress(sqlite3.ProgrammingError):  # it is closed
                connection.set_progress_handler(step, 1)


@pytest.fixture
def steps(monkeypatch):
    return Steps(monkeypatch)


@pytest.fixture
def at_once(monkeypatch):
    """A job for a thread is done before `submit` returns."""
    monkeypatch.setattr(ThreadPool, "submit", lambda _, job: (job(), True)[1])


def fill(outbox, n, **more):
    """Puts so many entries."""
    assert all(put.stored for put in outbox.put_all([entry(f"r{i}", **more) for i in range(n)]))


def entry(name, **more):
    return Waiting(name, more.pop("target", "cloud"), "call", b"x", **more)


def answer(outbox, n):
    """Answers so many of its entries, in the transaction of a further one, which is handed over."""
    answered = Prediction("a", 0.9, None)
    outbox.put(entry("further"))
    outbox.answer("further", answered)
    assert outbox.settle("further", lambda *_: [outbox.answer(f"r{i}", answered) for i in range(n)])
    assert outbox.size("answered") == n


@pytest.fixture
def make(tmp_path, steps):
    """Makes outboxes with so many entries, and closes them."""
    with contextlib.ExitStack() as stack:

        def make(n, *, entries=None, name=None, **kwargs):
            outbox = Outbox(tmp_path / f"{name or n}.db", **{"spread_s": 0.0, "max_bytes": 1 << 40, "rate_per_s": 1e9, **kwargs})
            stack.callback(outbox.close)
            fill(outbox, n, **(entries or {}))
            return outbox

        yield make


def a_put(outbox, _):
    return lambda: outbox.put(entry("new"))


def a_step(outbox, delivery):
    return delivery.step


def a_callback(outbox, _):
    callbacks = Callbacks(outbox)
    callbacks.close()  # so that no thread begins
    callbacks.register(lambda _: None)
    return callbacks.step


def counts(outbox, _):
    return lambda: (outbox.list(latest=10), outbox.list("dead", latest=10))


@pytest.mark.slow
@pytest.mark.parametrize("ordered", [False, True])
@pytest.mark.parametrize("waits", ["due", "later", "held", "failed", "answered"])
@pytest.mark.parametrize("work", [a_put, a_step, a_callback])
def test_no_more_work_where_more_waits(make, steps, at_once, monkeypatch, work, waits, ordered):
    """A put, a look of the delivery and one of the callbacks take no more steps, whatever the others wait for."""
    took = []

    def send(_):
        held = Held("no consent")
        held.retry_after_s = 1e6
        raise held

    for n in (FEW, MANY):
        more = {"later": {"ready_at": now() + 1e6}, "failed": {"ready_at": now() + 1e6, "error": "away"}}.get(waits, {})
        outbox = make(0, name=n, ordered=ordered)
        delivery = Delivery(outbox, send)  # before the entries: it cuts no waits of theirs short
        fill(outbox, n, **more)
        if waits == "answered":
            answer(outbox, n)
        if waits == "held":
            delivery.step()
        with monkeypatch.context() as patch:
            patch.setattr(ThreadPool, "submit", lambda *_: True)
            took.append(steps.count(work(outbox, delivery)))
            assert waits != "held" or delivery.step() > 1e5, "it goes on being held"
        delivery.close()
    assert took[1] <= took[0] * MORE, took


@pytest.mark.slow
def test_no_more_work_to_make_room(make, steps):
    """What is evicted is found at once, also behind answers that nobody asks for; the sizes of all are added up only once."""
    for drop in ("oldest", "least_important"):
        took = []
        for n in (FEW, MANY):
            outbox = make(n, drop=drop)
            answer(outbox, n // 2)
            outbox.put(entry("last but one"))
            outbox.max_bytes = outbox.counts()["bytes"]
            outbox.put(entry("the first for which there is no room"))
            took.append(steps.count(lambda box=outbox: box.put(entry("new"))))
            assert outbox.counts()["dropped_full"] == 2
            outbox.close()
            outbox.path.unlink()
        assert took[1] <= took[0] * MORE, (drop, took)


def test_waits_are_cut_short_little_by_little(make, steps, at_once, monkeypatch):
    """After a wake each look makes due so many at most, and in the end all are, each once."""
    monkeypatch.setattr("edgeroute.stores.outbox.delivery_and_callbacks.backoff", lambda *_: 1e6)
    outbox, sent = make(1000, entries={"ready_at": now() + 1e6, "error": "away"}), []

    def send(waiting):
        sent.append(waiting.id)
        if len(sent) % 2:
            raise Unreachable("away")
        return Prediction("a", 0.9, None)

    delivery = Delivery(outbox, send)
    few = steps.count(delivery.step)
    due = sum(e.ready_at <= now() for e in outbox.list("waiting"))
    assert 0 < due < 2 * tables.SLICE
    for _ in range(1100):
        delivery.step()
    delivery.close()
    assert sent == [f"r{i}" for i in range(1000)]
    assert few < 100 * tables.SLICE


def test_a_lane_that_is_held_lets_others_pass(make, at_once):
    """However many entries of a data class are held, those of others are sent at once."""
    outbox, sent = make(MANY, entries={"data_class": "photo"}), []
    outbox.put(entry("other", data_class="text"))

    def send(waiting):
        sent.append(waiting.id)
        if waiting.data_class == "photo":
            raise Held("no consent")
        return Prediction("a", 0.9, None)

    delivery = Delivery(outbox, send)
    for _ in range(3):
        delivery.step()
    delivery.close()
    assert sent == ["r0", "other"]


@pytest.mark.slow
def test_a_data_class_of_its_own_for_each(make, steps, at_once):
    """A look takes so many data classes at most, and the next goes on: all are sent."""
    outbox, sent = make(0), []
    classes = range(3 * MOST_LANES + 7)
    outbox.put_all([entry(f"r{i}", data_class=f"class {i}", ready_at=now() + (0 if i % 2 else 1e6)) for i in classes])
    delivery = Delivery(outbox, lambda w: sent.append(w.id) or Prediction("a", 0.9, None))
    most = max(steps.count(delivery.step) for _ in range(400))
    delivery.close()
    assert sorted(sent) == sorted(f"r{i}" for i in classes if i % 2)
    assert most < 200 * MOST_LANES


def test_too_old_are_dropped_little_by_little(make, monkeypatch):
    """Each transaction drops so many; the others are not sent meanwhile, and those of a clock that was not set are kept."""
    monkeypatch.setattr(tables, "MOST_TIDIED", 10)
    outbox = make(25, ttl_s=1000.0)
    with contextlib.closing(sqlite3.connect(outbox.path, isolation_level=None)) as c:
        c.execute("UPDATE outbox_entries SET since = 5 WHERE seq > 12")
    outbox.clock = lambda: now() + 2000.0
    assert outbox.waiting("r11") is None
    assert len(outbox.list()) == 25 - 12, "the second transaction has dropped the rest of those that are too old"
    for _ in range(3):
        assert len(outbox.list()) == 13
    assert outbox.counts()["dropped_expired"] == 12


def test_pages(make, monkeypatch):
    """All entries, a page at a time, also those that come meanwhile."""
    monkeypatch.setattr("edgeroute.stores.outbox.sqlite_queue.PAGE", 3)
    outbox = make(7)
    seen = []
    for e in outbox.pages("waiting"):
        seen.append(e.id)
        if e.id == "r6":
            outbox.put(entry("late"))
    assert seen == [*(f"r{i}" for i in range(7)), "late"]
    assert [e.id for e in outbox.list("waiting", latest=2)] == ["r6", "late"]
    assert (outbox.size(), outbox.size("dead")) == (8, 0)
