"""What an answer says of its place in the outbox: "waiting" once it is on disk, "being stored" before, and a failure afterwards."""

from __future__ import annotations

import contextlib
import os
import sqlite3
import subprocess
import sys
import threading
from fractions import Fraction
from functools import partial
from pathlib import Path
from queue import SimpleQueue
from time import monotonic

import numpy as np
import pytest
import routes
from both import GOOD, LONG, GatedServer, unsure

from edgeroute import Instrument, Outbox, PolicyError, StoreError, Unreachable
from edgeroute.core.error_codes_and_texts import failure_text
from edgeroute.stores.outbox.sqlite_queue import GroupCommit
from edgeroute.stores.sqlite_file_and_key_values import Database
from edgeroute.testing import FakeCloud


@pytest.fixture
def make(kind):
    """Makes routers whose cloud is away, and closes them."""
    with contextlib.ExitStack() as stack:

        def make(box, *, deadline=None, instruments=()):
            router = kind(
                unsure, FakeCloud([Unreachable("away")]), threshold=0.5, offline="queue", outbox=box, deadline=deadline,
                instruments=instruments,
            )  # fmt: skip
            stack.callback(router.close)
            return router

        yield make


@pytest.fixture
def box(tmp_path):
    return Outbox(tmp_path / "outbox.db", spread_s=1e6)


class Changes(Instrument):
    """Keeps what happens to requests."""

    def __init__(self):
        self.seen = []

    def outbox_changed(self, identity, what):
        """Keeps it."""
        self.seen.append((identity, what))


def infer(router):
    return [router.infer("x")]


def refine(router):
    return [*router.refine("x")][-1:]


def stream(router):
    with router.stream("x") as pieces:
        list(pieces)
    return [pieces.answer]


def infer_many(router):
    return router.infer_many(["x", "y", "z"])


CALLS = pytest.mark.parametrize("call", [infer, refine, stream, infer_many])


def on_disk(box):
    """The ids in the file, read by other means."""
    if not box.path.exists():
        return set()
    with contextlib.closing(sqlite3.connect(box.path)) as c:
        if not c.execute("SELECT 1 FROM sqlite_master WHERE name = 'outbox_entries'").fetchall():
            return set()
        return {name for (name,) in c.execute("SELECT id FROM outbox_entries")}


def until(condition):
    """Waits for what another thread will do."""
    end = monotonic() + LONG
    while not condition():
        assert monotonic() < end
        threading.Event().wait(0.001)


def gated(box, error=None):
    """Puts wait for this event; then they fail with the error, if there is one."""
    gate, put = threading.Event(), box.put_all

    def slow(*args):
        gate.wait(9 * LONG)
        if error is not None:
            raise error
        return put(*args)

    box.put_all = slow
    return gate


@CALLS
@pytest.mark.parametrize("deadline", [None, LONG])
def test_what_is_queued_is_on_disk(make, box, call, deadline):
    """When the caller reads it, whatever comes then."""
    answers = call(make(box, deadline=deadline))
    assert on_disk(box) == {answer.id for answer in answers}
    assert {(routes.queued(answer), answer.final) for answer in answers} == {(routes.WAITING, False)}


@CALLS
@pytest.mark.usefixtures("no_time_left")
def test_what_the_deadline_does_not_wait_for_is_being_queued(make, box, call):
    """It says so, and gets there; nothing more is reported."""
    gate, changes = gated(box), Changes()
    answers = call(make(box, deadline=LONG, instruments=[changes]))
    assert on_disk(box) == set()
    assert {(routes.queued(answer), answer.final) for answer in answers} == {(routes.BEING_STORED, False)}
    gate.set()
    until(lambda: len(changes.seen) == len(answers))
    assert on_disk(box) == {answer.id for answer in answers}
    assert sorted(changes.seen) == sorted((answer.id, "queued") for answer in answers)


@pytest.mark.usefixtures("no_time_left")
def test_what_the_caller_makes_of_its_answer_is_not_stored(kind, box):
    """It may write to it while the request is being stored: the outbox has the provisional answer as it was."""
    gate = gated(box)
    options = {"threshold": 0.5, "offline": "queue", "outbox": box, "deadline": LONG}
    with kind(lambda _: (["edge"], 0.1), FakeCloud([Unreachable("away")]), **options) as router:
        answer = router.infer("x")
        answer.value.append("of the caller")
        gate.set()
        until(lambda: on_disk(box) == {answer.id})
        assert [entry["provisional"] for entry in box.export()] == [{"value": ["edge"], "confidence": 0.1}]


@CALLS
@pytest.mark.parametrize("error", [StoreError("no room"), SystemExit("no more")])
@pytest.mark.usefixtures("no_time_left")
def test_what_does_not_get_there_is_reported(make, box, call, caplog, error):
    """A failure after the answer is logged with its id, and the instruments hear of it."""
    gate, changes = gated(box, error), Changes()
    answers = call(make(box, deadline=LONG, instruments=[changes]))
    assert {routes.queued(answer) for answer in answers} == {routes.BEING_STORED}
    gate.set()
    until(lambda: len(changes.seen) == len(answers))
    assert sorted(changes.seen) == sorted((answer.id, "not queued") for answer in answers)
    for answer in answers:
        assert (
            f"{answer.id} was being stored when its answer was given, and is {routes.NOT_STORED}: {failure_text(error)}"
            in caplog.text
        )
    assert on_disk(box) == set()


@pytest.mark.parametrize("given", [np.float32(2.5), np.float64(2.5), Fraction(5, 2)], ids=lambda given: type(given).__name__)
def test_an_importance_of_another_type_is_its_number(make, box, given):
    """A score of a model, say: in the file it was a blob, and its entry a dead letter."""
    answer = make(box).infer("x", importance=given)
    assert routes.queued(answer) == routes.WAITING
    (entry,) = box.list("waiting")
    assert (entry.importance, box.states([answer.id])) == (2.5, {answer.id: "waiting"})


@pytest.mark.parametrize("given", [float("nan"), "2", None, [2], True, 10**400], ids=lambda given: type(given).__name__)
def test_an_importance_that_is_no_number_is_refused(make, box, given):
    """At the call, as each invalid argument: it could not be stored."""
    with pytest.raises(PolicyError, match="importance= takes a number"):
        make(box).infer("x", importance=given)


@pytest.mark.usefixtures("no_time_left")
def test_a_full_outbox_is_reported_too(make, tmp_path, caplog):
    """Of what does not fit all is reported, and nothing else."""
    box, changes = Outbox(tmp_path / "outbox.db", max_bytes=2000, drop="newest", spread_s=1e6), Changes()
    gate = gated(box)
    router = make(box, deadline=LONG, instruments=[changes])
    answers = [router.infer("x" * 300) for _ in range(6)]
    gate.set()
    until(lambda: len(changes.seen) == 6)
    kept = on_disk(box)
    assert 0 < len(kept) < 6
    assert {i for i, what in changes.seen if what == "not queued"} == {answer.id for answer in answers} - kept
    assert caplog.text.count("the outbox is full") == 6 - len(kept)


def test_a_failure_that_the_answer_tells_of_is_not_reported_again(make, box):
    """The caller has read it."""
    changes = Changes()
    gated(box, StoreError("no room")).set()
    answer = make(box, instruments=[changes]).infer("x")
    assert (routes.note(answer), answer.final, changes.seen) == (f"{routes.NOT_STORED}: no room", True, [])


@pytest.mark.usefixtures("no_time_left")
def test_closing_waits_for_what_is_being_queued(make, box, monkeypatch):
    """A router closes the outbox once it has on disk what was on its way there."""
    from edgeroute.router import offline_queue

    gate, wait, close, closed = gated(box), offline_queue.wait, box.close, []
    monkeypatch.setattr(offline_queue, "wait", lambda *args: (gate.set(), wait(*args))[1])
    box.close = lambda: (closed.append(on_disk(box)), close())
    router = make(box, deadline=LONG)
    answer = router.infer("x")
    router.close()
    gate.set()
    assert closed[0] == {answer.id}


@pytest.mark.usefixtures("no_time_left")
def test_closing_does_not_wait_for_an_outbox_that_is_locked(make, tmp_path, caplog, monkeypatch):
    """Another process keeps the file locked for good: what is being queued by then is refused, and reported."""
    monkeypatch.setattr("edgeroute.router.offline_queue.CLOSE_S", 0.01)
    monkeypatch.setattr("edgeroute.stores.sqlite_file_and_key_values.CLOSE_S", 0.01)
    changes, begun = Changes(), []

    class Counted(GroupCommit):
        def __init__(self, write):
            super().__init__(lambda entries: (begun.append(len(entries)), write(entries))[1])

    monkeypatch.setattr("edgeroute.stores.outbox.sqlite_queue.Database", partial(Database, busy_s=1e9))
    monkeypatch.setattr("edgeroute.stores.outbox.sqlite_queue.GroupCommit", Counted)
    box = Outbox(tmp_path / "outbox.db", spread_s=1e6)
    assert box.size() == 0
    with contextlib.closing(sqlite3.connect(box.path, isolation_level=None)) as c:
        c.execute("BEGIN EXCLUSIVE")
        router = make(box, deadline=LONG, instruments=[changes])
        answers = [router.infer(i) for i in range(20)]
        until(lambda: len(box.group) == 20)
        assert {routes.queued(answer) for answer in answers} == {routes.BEING_STORED}
        closing = threading.Thread(target=router.close, daemon=True)
        closing.start()
        closing.join(LONG)
        assert not closing.is_alive()
        until(lambda: len(changes.seen) == 20)
        assert sum(begun) < 20  # those that came while the first was waiting for the lock had no transaction any more
    assert sorted(changes.seen) == sorted((answer.id, "not queued") for answer in answers)
    assert caplog.text.count(f"is {routes.NOT_STORED}: the router is closed") == 20 - sum(begun)
    assert on_disk(box) == set()


@pytest.mark.pure
@pytest.mark.usefixtures("no_time_left")
@pytest.mark.parametrize("deadline", [None, LONG])
@pytest.mark.parametrize("statement", ["BEGIN IMMEDIATE", "BEGIN EXCLUSIVE"])
def test_one_call_waits_for_an_outbox_that_is_locked(make, tmp_path, monkeypatch, deadline, statement):
    """The next ones have the edge's answer at once, and take no thread from others; all are stored once the file is free."""
    monkeypatch.setattr("edgeroute.stores.outbox.sqlite_queue.Database", partial(Database, busy_s=1e9))
    box = Outbox(tmp_path / "outbox.db", spread_s=1e6)
    assert box.size() == 0
    router, answers = make(box, deadline=deadline), []
    with contextlib.closing(sqlite3.connect(box.path, isolation_level=None)) as c:
        c.execute(statement)
        answers.append(router.infer("x", deadline=LONG))
        until(lambda: box.locked)
        thread = threading.Thread(target=lambda: answers.extend(router.infer("x") for _ in range(100)), daemon=True)
        thread.start()
        thread.join(LONG)
        assert not thread.is_alive()
        assert {(routes.queued(answer), answer.final) for answer in answers} == {(routes.BEING_STORED, False)}
        assert router.engine.local_threads.submit(threading.Event().set)
    until(lambda: on_disk(box) == {answer.id for answer in answers})
    until(lambda: not box.locked)


@pytest.mark.usefixtures("no_time_left")
def test_what_waits_for_an_outbox_that_is_locked_has_a_limit(make, tmp_path, monkeypatch):
    """The copies of inputs take memory: beyond the limit the reason says at once that a request is not stored."""
    monkeypatch.setattr("edgeroute.stores.outbox.sqlite_queue.Database", partial(Database, busy_s=1e9))
    monkeypatch.setattr("edgeroute.router.offline_queue.MOST_WAITING", 5)
    box = Outbox(tmp_path / "outbox.db", spread_s=1e6)
    assert box.size() == 0
    router = make(box, deadline=LONG)
    with contextlib.closing(sqlite3.connect(box.path, isolation_level=None)) as c:
        c.execute("BEGIN IMMEDIATE")
        answers = [router.infer("x", deadline=LONG)]
        until(lambda: box.locked)
        more = [router.infer("x") for _ in range(100)]
        stored = [answer.id for answer in answers + more if routes.queued(answer) == routes.BEING_STORED]
        assert {(routes.queued(answer), answer.final) for answer in more[-20:]} == {(routes.NOT_STORED, True)}
    until(lambda: on_disk(box) == {*stored})


class Counted:
    """A lock that counts how often it was asked for."""

    def __init__(self, lock):
        self.lock, self.asked = lock, 0

    def acquire(self, *args, **kwargs):
        """Waits for the lock."""
        self.asked += 1
        return self.lock.acquire(*args, **kwargs)

    def release(self):
        """Gives the lock back."""
        self.lock.release()

    __enter__ = acquire

    def __exit__(self, *_):
        self.release()


def test_closing_a_file_that_another_process_locks_ends_all_who_wait(tmp_path):
    """Also those who wait for the one that waits for the lock: none begins to wait anew."""
    made, locks = Database(tmp_path / "x.db", "CREATE TABLE x (y)", durable=False, busy_s=1e9), []
    for name in [name for name, value in vars(made).items() if isinstance(value, type(threading.RLock()))]:
        locks.append(Counted(threading.RLock()))
        setattr(made, name, locks[-1])
    with made.transaction():
        pass
    failed = SimpleQueue()

    def write():
        try:
            with made.transaction():
                pass
        except StoreError:
            failed.put(True)

    with contextlib.closing(sqlite3.connect(made.path, isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        before = sum(each.asked for each in locks)
        for _ in range(10):
            threading.Thread(target=write, daemon=True).start()
        until(lambda: sum(each.asked for each in locks) == before + 10)
        made.close()
        assert all(failed.get(timeout=LONG) for _ in range(10))


KILLED = """
import os, signal, sys
from both import Tasks, Threads, unsure
from edgeroute import PlainJson

kind = {"threads": Threads, "asyncio": Tasks}[sys.argv[3]]
router = kind(unsure, PlainJson(sys.argv[1], retries=0), threshold=0.5, deadline=3.0, offline="queue", state=sys.argv[2])
for n in range(3):
    answer = router.infer(n)
    print(answer.id, answer.final, answer.reason.rpartition("; ")[2], sep=":", flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["threads", "asyncio"])
def test_kill_9_after_an_answer(tmp_path, kind):
    """Killed right after an answer, a program has on disk whatever was called queued; at a deadline nothing is too early."""
    with GatedServer(GOOD) as server:
        run = [sys.executable, "-c", KILLED, server.url, tmp_path, kind]
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent.parent), str(Path(__file__).parent)]),
        }
        done = subprocess.run(run, capture_output=True, text=True, check=False, timeout=4 * LONG, env=environment)
    said = [line.split(":") for line in done.stdout.splitlines()]
    assert len(said) == 3, done.stderr
    assert {(final, note) for _, final, note in said} <= {("False", routes.WAITING), ("False", routes.BEING_STORED)}
    assert {name for name, _, note in said if note == routes.WAITING} <= on_disk(Outbox(Path(tmp_path) / "outbox.db"))
