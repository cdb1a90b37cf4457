"""The cache's disk beside a deadline: locked, hanging or alien, it costs neither time nor an answer."""

import contextlib
import gc
import os
import sqlite3
import subprocess
import sys
import threading

import numpy as np
import pytest
from both import CALLS, LONG, ask, makes, sure, unsure, wait_for

from edgeroute import Cache, Semantic, StoreError
from edgeroute.stores.cache import Entry
from edgeroute.stores.sqlite_file_and_key_values import Database
from edgeroute.system.thread_pool_and_workers import ThreadPool
from edgeroute.testing import FakeCloud

SCHEMA = "CREATE TABLE IF NOT EXISTS things (name TEXT)"
NAMES = "SELECT name FROM things ORDER BY rowid"


@pytest.fixture
def made(tmp_path):
    """Makes databases of one file, with "first" in it, that are closed at the end."""
    with contextlib.ExitStack() as stack:

        def make(**options):
            database = Database(tmp_path / "a b?.db", SCHEMA, **{"durable": False, **options})
            stack.callback(database.close)
            return database

        first = make()
        with first.transaction() as connection:
            connection.execute("INSERT INTO things VALUES ('first')")
        first.close()
        yield make


make = makes(threshold=0.5)


@pytest.mark.parametrize("closed", [True, False])
def test_what_is_dropped_is_closed(tmp_path, closed):
    """By the finaliser, also where a cycle holds it, or where it was used again after `close`."""
    database = Database(tmp_path / "things.db", SCHEMA, durable=False)
    if closed:
        database.close()
    with database.transaction() as connection:
        connection.execute("INSERT INTO things VALUES ('one')")
    assert database.read(NAMES, ()) == [("one",)]
    database.itself = database
    del database
    gc.collect()
    with pytest.raises(sqlite3.ProgrammingError, match="closed"):
        connection.execute("SELECT 1")


@pytest.mark.parametrize("own", [True, False])
def test_a_read_waits_for_no_transaction(made, own):
    """Not of its own database, nor of another one; what is not committed is not seen."""
    mine, other = made(), made()
    assert mine.read(NAMES, ()) == [("first",)]
    with (mine if own else other).transaction() as connection:
        connection.execute("INSERT INTO things VALUES ('second')")
        thread = threading.Thread(target=lambda: found.extend(mine.read(NAMES, ())))
        found = []
        thread.start()
        thread.join(LONG)
        assert found == [("first",)]
    assert mine.read(NAMES, ()) == [("first",), ("second",)]


def test_a_read_under_another_process_exclusive_lock_finds_nothing(made, tmp_path):
    """As while another process makes the file; and once that is over it finds it."""
    mine = made()
    for _ in range(2):
        mine.close()
        with sqlite3.connect(tmp_path / "a b?.db", isolation_level=None) as holder:
            holder.execute("PRAGMA journal_mode=DELETE")
            holder.execute("PRAGMA locking_mode=EXCLUSIVE")
            holder.execute("BEGIN EXCLUSIVE")
            assert mine.read(NAMES, ()) == []
            holder.execute("COMMIT")
        holder.close()
        assert mine.read(NAMES, ()) == [("first",)]


@contextlib.contextmanager
def opening(monkeypatch, use):
    """Another thread that does this, and within the block opens the file: the disk does not answer it."""
    held, gate, real = threading.Event(), threading.Event(), sqlite3.connect

    def hang(*args, **options):
        if threading.current_thread() is thread:
            held.set()
            gate.wait(LONG)
        return real(*args, **options)

    monkeypatch.setattr(sqlite3, "connect", hang)
    thread = threading.Thread(target=use)
    thread.start()
    assert held.wait(LONG)
    try:
        yield
    finally:
        gate.set()
        thread.join()


def test_a_read_beside_one_that_hangs_finds_nothing(made, monkeypatch):
    """One thread in a dead disk is enough."""
    mine, found = made(), []
    with opening(monkeypatch, lambda: found.extend(mine.read(NAMES, ()))):
        assert mine.read(NAMES, ()) == []
    assert found == mine.read(NAMES, ()) == [("first",)]


def test_a_read_writes_nothing(made, tmp_path):
    """The connection cannot; and where there is no file, none is made."""
    with pytest.raises(StoreError, match="readonly"):
        made().read("DELETE FROM things", ())
    nowhere = Database(tmp_path / "none" / "c.db", SCHEMA, durable=False)
    assert nowhere.read(NAMES, ()) == []
    assert not (tmp_path / "none").exists()
    (tmp_path / "empty.db").touch()
    assert Database(tmp_path / "empty.db", SCHEMA, durable=False).read(NAMES, ()) == []


def test_a_file_of_another_version_is_refused(made):
    """As by a transaction."""
    with pytest.raises(StoreError, match="is of version 1, and this edgeroute knows version 7"):
        made(version=7).read(NAMES, ())


def test_a_file_that_was_replaced_is_read_anew(made, tmp_path):
    """And one that is gone has nothing."""
    mine = made()
    assert mine.read(NAMES, ()) == [("first",)]
    mine.path.rename(tmp_path / "aside.db")
    assert mine.read(NAMES, ()) == []
    with mine.transaction() as connection:
        connection.execute("INSERT INTO things VALUES ('new')")
    assert mine.read(NAMES, ()) == [("new",)]


@pytest.mark.parametrize("writing", [False, True])
def test_a_corrupt_file_is_set_aside_by_a_read(made, tmp_path, monkeypatch, writing):
    """Unless a transaction is at it, which sees the same."""
    mine, aside = made(), tmp_path / "a b?.db.corrupt-1"
    mine.close()
    mine.path.write_bytes(b"nothing of SQLite's" * 1000)

    def write():
        with pytest.raises(StoreError, match="was corrupt"), mine.transaction():
            pass

    with opening(monkeypatch, write) if writing else contextlib.nullcontext():
        with pytest.raises(StoreError, match="was corrupt" if not writing else "not a database"):
            mine.read(NAMES, ())
        assert aside.exists() == (not writing)
    assert mine.read(NAMES, ()) == []
    assert aside.exists()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_child_reads_with_a_connection_of_its_own(made):
    """The parent's is closed before the fork, and opened again."""
    mine = made()
    assert mine.read(NAMES, ()) == [("first",)]
    child = os.fork()
    if not child:
        os._exit(0 if mine.read(NAMES, ()) == [("first",)] else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert mine.read(NAMES, ()) == [("first",)]


def test_a_new_connection_takes_no_lock_away(made, tmp_path):
    """Closing any descriptor of a file ends this process's locks on it: none is opened beside SQLite's own."""
    reader, writer = made(), made()
    assert reader.read(NAMES, ()) == [("first",)]
    with writer.transaction() as connection:
        connection.execute("INSERT INTO things VALUES ('second')")
    script = "import sqlite3, sys; sqlite3.connect(sys.argv[1]).execute('PRAGMA journal_mode=DELETE').fetchone()"
    taken = subprocess.run([sys.executable, "-c", script, str(reader.path)], capture_output=True, text=True, check=False)
    assert "locked" in taken.stderr, "another process cannot have the file for itself"
    assert reader.read(NAMES, ()) == [("first",), ("second",)]


# ------------------------------------------------------------------------------------------------------------ routers
@pytest.mark.parametrize("call", CALLS)
def test_a_disk_that_hangs_costs_no_answer(make, tmp_path, monkeypatch, call, no_time_left):
    """It has a share of the deadline; the edge has the rest. After two such look-ups it is left alone."""
    gate, looks = threading.Event(), []
    cache = Cache(disk=tmp_path / "c.db")

    def hang(*statement):
        looks.append(statement)
        gate.wait(LONG)
        return []

    monkeypatch.setattr(Database, "read", hang)
    router = make(sure, None, cache=cache, deadline=LONG)
    try:
        for x in range(4):
            answer = ask(router, call, x)
            assert (answer.value, answer.degraded) == ("edge", False)
        assert len(looks) <= 2, "one that was given up before its thread ran did not look"
    finally:
        gate.set()


def test_without_a_thread_the_disk_is_not_asked(make, tmp_path, monkeypatch):
    """It could not be left where it hangs."""
    cache, asked = Cache(disk=tmp_path / "c.db"), []
    monkeypatch.setattr(Database, "read", lambda *statement: asked.append(statement) or [])
    router = make(sure, None, cache=cache, deadline=LONG)
    monkeypatch.setattr(router.engine, "local_threads", ThreadPool("none", 0))
    assert router.infer("x").value == "edge"
    assert asked == []


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("deadline", [None, LONG])
def test_what_is_on_the_disk_is_found(make, tmp_path, call, deadline):
    """By each way of asking, by the next router; of a batch with one look-up."""
    first = Cache(disk=tmp_path / "c.db")
    make(sure, None, cache=first).infer("x")
    first.close()
    second, looks = Cache(disk=tmp_path / "c.db"), []
    fetch = second.fetch
    second.fetch = lambda keys: looks.append(list(keys)) or fetch(keys)
    router = make(sure, None, cache=second, deadline=deadline)
    if call == "infer_many":
        assert [answer.source for answer in router.infer_many(["x", "y", "x"])] == ["cache", "edge", "cache"]
    else:
        assert ask(router, call, "x").source == "cache"
    assert len(looks) == 1


def test_an_embedding_has_a_share_of_the_deadline(make, no_time_left):
    """One that takes longer is a miss, and is not waited for when the answer is stored."""
    gate, begun = threading.Event(), []

    def embed(text):
        begun.append(text)
        gate.wait(LONG)
        return np.ones(3)

    router = make(unsure, FakeCloud([("cloud", 0.9)] * 2), cache=Cache(semantic=Semantic(embed)), deadline=LONG)
    assert router.infer("a text").value == "cloud"
    wait_for(lambda: begun == ["a text"])
    gate.set()


def test_a_disk_that_fails_while_fetched_is_a_miss(tmp_path):
    """What `lookup` is given it does not ask for again."""
    with contextlib.closing(Cache(disk=tmp_path / "c.db")) as cache:
        cache.put(b"k", Entry("value", 0.5, None, "edge", "edge", "", 0.0))
        cache.close()
        other = Cache(disk=tmp_path / "c.db", clock=lambda: 1.0)
        assert other.missing([b"k", b"l"]) == [b"k", b"l"]
        assert other.lookup(b"k", {}) == (None, None)
        found = other.fetch([b"k", b"l"])
        assert list(found) == [b"k"]
        entry, state = other.lookup(b"k", found)
        assert (entry.value, state) == ("value", "fresh")
        assert other.missing([b"k", b"l"]) == [b"l"]
        other.close()
    assert Cache().missing([b"k"]) == []
    assert Cache().fetch([b"k"]) == {}
