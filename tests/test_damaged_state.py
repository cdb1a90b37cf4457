"""A state file that was cut, overwritten or lost rows: what has a limit is not sent until the lost spending cannot count any more.

Of private conversations so damaged all stay.
"""

import contextlib
import os
import random
import shutil
import sqlite3
import threading

import pytest
from both import LONG, Threads
from draws import slow

from edgeroute import Cache, Function, Limits
from edgeroute.cloud.shared_spending_and_record import SharedSpending
from edgeroute.core.spending_limits import Cost, Spending
from edgeroute.router import private_conversations_and_digest_store as private_conversations
from edgeroute.router.message_forms_and_digests import text_digest
from edgeroute.router.private_conversations_and_digest_store import SET_DAY, Digests
from edgeroute.stores.sqlite_file_and_key_values import KeyValueStore
from edgeroute.system import wall_clock

PAID, MOST = 8, 10


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A state in which eight calls of ten are paid, by several processes, with other values."""
    folder = tmp_path_factory.mktemp("state")
    for n in range(PAID):
        store = KeyValueStore(folder / "state.db")
        spending = SharedSpending(Spending(Limits(usd_per_day=1.0)), store)
        assert spending.recall()
        spending.add(Cost(usd=0.1), wall_clock.now())
        for i in range(20):
            store.put(f"other:{n}:{i}", {"values": [0.25] * i})
        spending.close()
        store.close()
    return (folder / "state.db").read_bytes()


def paid(folder):
    """How many calls are sent after two starts, with those that were paid before."""
    calls = []

    def cloud(x):
        calls.append(x)
        return "cloud", 0.9

    for _ in range(2):
        options = {"threshold": 0.8, "state": folder, "limits": Limits(usd_per_day=1.0)}
        with Threads(lambda _: ("edge", 0.1), Function(cloud, usd_per_call=0.1), **options) as router:
            for i in range(MOST):
                router.infer(i)
    return PAID + len(calls)


def changed(path):
    """The rows are not those that were written, or the file says that some were lost, or is set aside."""
    store = KeyValueStore(path)
    spending = SharedSpending(Spending(Limits(usd_per_day=1.0)), store)
    spending.recall()
    known = spending.spent().usd == pytest.approx(PAID * 0.1)
    refused = spending.reserve(Cost(usd=0.1), wall_clock.now()) is not None
    store.close()
    return refused or known


LENGTHS = (0, 1, 100, 511, 4096, 8193, *slow(2, 15, 16, 99, 101, 512, 1023, 4095, 4097, 8191, 8192, 12287))


@pytest.mark.parametrize("length", LENGTHS)
def test_a_state_that_was_cut(tmp_path, whole, length):
    """As by a full disk or an interrupted copy, at any length."""
    (tmp_path / "state.db").write_bytes(whole[:length])
    assert paid(tmp_path) <= MOST


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no FIFOs, and no devices")
@pytest.mark.parametrize("odd", ["fifo", "/dev/zero", "/dev/null"])
@pytest.mark.parametrize("name", ["state.db", "conversations.db", "outbox.db", "cache.db"])
def test_a_path_that_is_no_file(tmp_path, name, odd):
    """Opening a FIFO would wait for ever, and a device has nothing that was spent: the path counts as unreadable."""
    os.mkfifo(tmp_path / name) if odd == "fifo" else (tmp_path / name).symlink_to(odd)
    sent, answers = [], []

    def ask():
        options = {"threshold": 0.8, "state": tmp_path, "limits": Limits(usd_per_day=1.0), "offline": "queue"}
        options["cache"] = Cache(disk=tmp_path / "cache.db")
        cloud = Function(lambda x: sent.append(x) or ("cloud", 0.9), usd_per_call=0.1)
        with Threads(lambda _: ("edge", 0.1), cloud, **options) as router:
            answers.append(router.infer("x").source)

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(LONG)
    assert answers == ["edge" if name == "state.db" else "cloud"]
    assert bool(sent) == (name != "state.db")


def unnoticed_damage(path, whole, draws, is_noticed):
    """Of so many files in place of a whole one, damaged at random: how those were whose damage is not noticed."""
    dice = random.Random(1)
    unnoticed = []
    for draw in range(draws):
        shutil.rmtree(path.parent, ignore_errors=True)
        path.parent.mkdir()
        damaged, at, length = bytearray(whole), dice.randrange(len(whole)), dice.choice((1, 1, 2, 16, 512, 4096))
        how = dice.choice(("bit", "zero", "random", "copy"))
        if how == "bit":
            damaged[at] ^= 1 << dice.randrange(8)
        else:
            source = dice.randrange(len(whole))
            run = {"zero": bytes(length), "random": dice.randbytes(length), "copy": whole[source : source + length]}[how]
            damaged[at : at + len(run)] = run[: len(whole) - at]
        path.write_bytes(damaged)
        if not is_noticed(path):
            unnoticed.append((draw, how, at, length))
    return unnoticed


@pytest.mark.parametrize("draws", [50, *slow(4000)])
def test_random_damage(tmp_path, whole, draws):
    """Bytes, pages and runs that are overwritten, doubled or zeroed: what was spent is known as it was, or nothing is sent."""
    assert unnoticed_damage(tmp_path / "s" / "state.db", whole, draws, changed) == []


@pytest.mark.parametrize("damage", ["row", "rows", "name", "value", "total", "table"])
def test_rows_that_are_lost(tmp_path, whole, damage):
    """A file that is sound to SQLite, with fewer or other rows than were written."""
    path = tmp_path / "state.db"
    path.write_bytes(whole)
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as connection:
        for name in ("added", "changed", "deleted"):  # as damage does: not by statements
            connection.execute(f"DROP TRIGGER {name}")
        connection.execute(
            {
                "row": "DELETE FROM kept WHERE name = (SELECT min(name) FROM kept WHERE name LIKE 'spending:%')",
                "rows": "DELETE FROM kept",
                "name": "UPDATE kept SET name = 'x' || name WHERE name LIKE 'spending:%'",
                "value": "UPDATE kept SET value = '{}' WHERE name LIKE 'spending:%'",
                "total": "DELETE FROM total",
                "table": "DROP TABLE kept",
            }[damage]
        )
    assert paid(tmp_path) <= MOST


PRIVATE, LATER = [text_digest(b"%d" % n) for n in range(300)], text_digest(b"later")


def stored(path, *batches):
    """Digests put into a file by several stores in turn, all of which close it."""
    stores = [Digests(path) for _ in range(3)]
    for n, batch in enumerate(batches):
        stores[n % 3].add(batch)
    for store in stores:
        store.close()
    return path


@pytest.fixture(scope="module")
def private(tmp_path_factory):
    """A file in which digests are, the first of them put again with each batch."""
    path = tmp_path_factory.mktemp("private") / "d.db"
    return stored(path, *([PRIVATE[0], *PRIVATE[n : n + 10]] for n in range(0, len(PRIVATE), 10))).read_bytes()


def kept(path):
    """Three starts know the digests, or that they do not, also after they have written."""
    known = []
    for _ in range(3):
        store = Digests(path)
        known.append(bool(store.blind) or all(store.any_of([digest]) for digest in PRIVATE))
        store.add([LATER])
        store.close()
    return all(known)


@pytest.mark.parametrize("draws", [10, *slow(1000)])
def test_random_damage_of_private_conversations(tmp_path, private, draws):
    """As of the state: what is private is known as it was, or all conversations stay."""
    assert unnoticed_damage(tmp_path / "s" / "d.db", private, draws, kept) == []


@pytest.mark.parametrize("length", LENGTHS)
def test_private_conversations_that_were_cut(tmp_path, private, length):
    """At any length."""
    (tmp_path / "d.db").write_bytes(private[:length])
    assert kept(tmp_path / "d.db")


LOST = {
    "rows": "DELETE FROM digests",
    "half": "DELETE FROM digests WHERE id % 2",
    "row": "DELETE FROM digests WHERE id = (SELECT max(id) FROM digests)",
    "digest": "UPDATE digests SET digest = randomblob(16) WHERE id = (SELECT max(id) FROM digests)",
    "text": "UPDATE digests SET digest = CAST(x'ff' AS TEXT) WHERE id = (SELECT max(id) FROM digests)",
    "day": "UPDATE digests SET day = 20000 WHERE id = (SELECT max(id) FROM digests)",
    "key": "UPDATE key SET key = randomblob(32)",
    "keys": "INSERT INTO key SELECT randomblob(32)",
    "no key": "DELETE FROM key",
    "total": "DELETE FROM total",
    "no total": "DROP TABLE total",
    "table": "DROP TABLE digests",
    "checksums": "ALTER TABLE digests RENAME COLUMN crc TO other",
    "version": "PRAGMA user_version = 0",
}


def run(path, *statements):
    """Statements of another program."""
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as connection:
        for statement in statements:
            connection.execute(statement)


@pytest.mark.parametrize("damage", LOST)
def test_private_conversations_that_are_lost(tmp_path, private, damage):
    """A file that is sound to SQLite, with fewer or other rows than were written."""
    path = tmp_path / "d.db"
    path.write_bytes(private)
    run(path, LOST[damage])
    assert kept(path)


def test_what_the_program_deletes_is_not_lost(tmp_path, monkeypatch):
    """The oldest beyond the limits, by number and by day, and what several stores put again: the file is whole with each start."""
    monkeypatch.setattr(private_conversations, "MOST", 12)
    path = tmp_path / "d.db"
    for day in (SET_DAY, SET_DAY + 1, SET_DAY + 1000):
        monkeypatch.setattr(private_conversations, "now", lambda day=day: day * 86_400.0)
        stored(path, *(PRIVATE[n : n + 9] for n in range(0, 60, 3)))
        start = Digests(path)
        assert start.refreshed()
        assert not start.blind
        assert [start.any_of([digest]) for digest in PRIVATE[:66]] == [False] * 57 + [True] * 9
    run(path, LOST["row"])
    assert Digests(path).blind
