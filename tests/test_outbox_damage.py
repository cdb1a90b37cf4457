"""Damaged rows: each is a dead letter with a reason, is reported, and costs no other row."""

from __future__ import annotations

import contextlib
import json
import logging
import sqlite3
import threading
from queue import Queue

import numpy as np
import pytest
from both import DOWN, GOOD, LONG, Tasks, Threads, unsure
from commands import cli

from edgeroute import Instrument, Outbox, PlainJson, Prediction
from edgeroute.stores.outbox import Callbacks, Delivery, Waiting
from edgeroute.stores.serialisation import MIXED, NPY, decode_input, encode_input, join_parts
from edgeroute.testing import CannedServer, FakeCloud

NAMES = ["r0", "r1", "r2", "r3"]
ANY = [None, b"\xff\x00", "\ud800", "nonsense"]
"""Missing, another type, text that is not UTF-8, and other text."""


class Damage:
    """An outbox with four entries, and a way to damage it as the disk might, past all that SQLite would refuse."""

    def __init__(self, path):
        self.path = path
        self.box = self.open()
        for name in NAMES:
            body = json.dumps({"input": name}).encode()
            entry = Waiting(
                name, "cloud", "call", body, "POST", "/x", [("A", "b")], "photo", provisional={"value": 1}, origin="here"
            )
            self.box.put(entry)

    def open(self):
        """Another outbox on this file."""
        return Outbox(self.path, spread_s=0.0, rate_per_s=1e6)

    def sql(self, statement, *values):
        """Writes to the file as it is, without constraints."""
        self.box.close()
        with contextlib.closing(sqlite3.connect(self.path, isolation_level=None)) as c:
            c.executescript(
                "PRAGMA writable_schema = ON; UPDATE sqlite_master SET sql = replace(sql, ' NOT NULL', '');"
                "PRAGMA writable_schema = RESET"
            )
            c.execute(statement, values)

    def set(self, table, column, value):
        """One value of the second row."""
        mark = "?"
        if value == "\ud800":
            mark, value = "CAST(? AS TEXT)", b"a\xff"
        self.sql(f"UPDATE outbox_{table} SET {column} = {mark} WHERE seq = 2", value)

    def answer(self):
        """Answers all."""
        for name in NAMES:
            self.box.answer(name, Prediction(name, 0.5, np.arange(2)))


@pytest.fixture
def damage(tmp_path):
    found = Damage(tmp_path / "outbox.db")
    yield found
    found.box.close()


def until(condition):
    """Waits for what another thread will do."""
    for _ in range(3000):
        if condition():
            return
        threading.Event().wait(0.01)
    raise AssertionError("it never came to that")


def deliver(box, count, *, ordered=False):
    """Delivers and hands over until so many were; -> what was sent, and what was handed over."""
    box.ordered, sent, told = ordered, [], Queue()
    delivery = Delivery(box, lambda w: sent.append(w.id) or Prediction(w.id, 0.9, None), poll_s=0.02)
    callbacks = Callbacks(box, poll_s=0.02)
    try:
        callbacks.register(told.put)
        delivery.start()
        late = [told.get(timeout=LONG) for _ in range(count)]
        until(lambda: (box.counts()["called"], box.size(), box.size("dead")) == (count, 4 - count, 4 - count))
    finally:
        delivery.close(30)
        callbacks.close(30)
    assert told.empty()
    return sent, late


CASES = [
    *(("entries", column, value) for column in ("id", "target", "kind", "method", "headers", "provisional") for value in ANY),
    *(("entries", column, value) for column in ("ready_at", "queued_at", "attempts", "importance") for value in (None, b"x", "x")),
    *(("entries", column, value) for column in ("ready_at", "queued_at") for value in (1e300, -1e300, float("inf"))),
    *(("entries", "state", value) for value in (None, b"x", "", "a", "b", "dying", "x")),
    *(("entries", "data_class", value) for value in (b"x", "\ud800")), ("entries", "rule", None),
    *(("entries", "headers", value) for value in ("{", "[[1]]", "[1]", "[[1, 2]]", '[["A", "b\\n"]]', '[["A b", "c"]]', "5")),
    ("entries", "method", "\0"), ("entries", "path", "@evil/"), ("entries", "path", "//a\r\nb"), ("entries", "kind", "input"),
    *(("entries", "bytes", value) for value in (None, b"x", "x", 1.5, float("inf"), -float("inf"), -1, 1 << 62)),
    *(("origins", "origin", value) for value in (None, b"x", "\ud800")),
    ("entries", "provisional", "["), ("entries", "provisional", "[" * 100_000), ("bodies", "body", None), ("bodies", "body", "text"),
]  # fmt: skip
HARMLESS = {("id", "nonsense"), ("target", "nonsense"), ("method", "nonsense")}


@pytest.mark.slow
@pytest.mark.parametrize(("table", "column", "value"), CASES)
def test_a_damaged_request_costs_no_other(damage, caplog, table, column, value):
    """It is a dead letter that says why, which is logged and reported; the others are sent and handed over."""
    damage.set(table, column, value)
    if (column, value) in HARMLESS:
        assert len(deliver(damage.box, 4)[0]) == 4
        return
    reported = []
    damage.box.report_damaged = reported.append
    sent, late = deliver(damage.box, 3)
    assert sorted(sent) == sorted(one.id for one in late) == ["r0", "r2", "r3"]
    (dead,) = damage.box.list("dead")
    assert dead.error.startswith("damaged: ")
    assert (dead.seq, reported) == (2, [dead.id])
    assert f"entry {dead.id} is damaged" in caplog.text
    assert damage.box.counts()["dead"] == 1
    assert damage.box.counts()["bytes"] == dead.bytes


@pytest.mark.parametrize(("table", "column", "value"), [c for c in CASES if c[1] not in {"queued_at", "importance"}][::3])
def test_a_damaged_request_does_not_block_those_behind_it(damage, table, column, value):
    """Ordered, the next ones are sent, in order."""
    damage.set(table, column, value)
    if (column, value) not in HARMLESS:
        assert deliver(damage.box, 3, ordered=True)[0] == ["r0", "r2", "r3"]


@pytest.mark.parametrize("ordered", [False, True])
@pytest.mark.parametrize(
    ("table", "column", "value"),
    [
        *(("answers", "value", value) for value in ("{", b"x", "\ud800")), ("answers", "outputs", b"PK\3\4xx"),
        ("answers", "outputs", "text"), ("answers", "outputs", None), ("answers", "outputs_type", "application/x-edgeroute-mixed"), ("answers", "outputs_type", "application/x-npz"),
        ("answers", "outputs_type", "application/pickle"), ("answers", "outputs_type", b"x"), ("answers", "confidence", "high"),
        ("entries", "provisional", "{"), ("entries", "ready_at", None), ("entries", "ready_at", "x"), ("entries", "data_class", b"x"),
        ("entries", "target", None), ("entries", "target", b"x"), ("entries", "queued_at", "x"), ("entries", "state", "x"),
    ],
)  # fmt: skip
def test_a_damaged_answer_costs_no_other(damage, table, column, value, ordered):
    """It is a dead letter; the others are handed over."""
    damage.answer()
    damage.set(table, column, value)
    sent, late = deliver(damage.box, 3, ordered=ordered)
    assert (sent, sorted(one.id for one in late)) == ([], ["r0", "r2", "r3"])
    (dead,) = damage.box.list("dead")
    assert dead.error.startswith("damaged: ")


@pytest.mark.parametrize("what", ["bodies", "answers"])
def test_a_row_that_is_missing(damage, what):
    """An entry without its body, or an answer without its value, is a dead letter."""
    if what == "answers":
        damage.answer()
    damage.sql(f"DELETE FROM outbox_{what} WHERE seq = 2")
    deliver(damage.box, 3)
    assert [(e.id, "missing" in e.error) for e in damage.box.list("dead")] == [("r1", True)]


@pytest.mark.parametrize("value", ["many", None, -5, b"x", float("inf"), 9e18, 1 << 62, (1 << 63) - 1])
def test_a_damaged_counter_is_counted_anew(damage, value):
    """The size of what waits is added up again, and a put is judged by it."""
    damage.sql("UPDATE outbox_counts SET n = ? WHERE name = 'bytes'", value)
    assert damage.box.counts()["stored"] == 4
    size = sum(e.bytes for e in damage.box.list())
    damage.box.max_bytes = size + 600
    assert damage.box.put(Waiting("new", "cloud", "call", b"x")).dropped == ()
    assert damage.box.put(Waiting("newer", "cloud", "call", b"x")).dropped == ("r0",)
    assert damage.box.counts()["bytes"] == sum(e.bytes for e in damage.box.list())


def test_a_counter_that_is_missing(damage):
    """It is made again."""
    damage.sql("DELETE FROM outbox_counts")
    assert damage.box.put(Waiting("new", "cloud", "call", b"x")).stored
    assert damage.box.counts()["bytes"] == sum(e.bytes for e in damage.box.list())


@pytest.mark.parametrize("drop", ["oldest", "least_important", "newest"])
@pytest.mark.parametrize("value", [float("inf"), 9e18, 1 << 62])
def test_a_counter_that_is_too_high_refuses_nothing(damage, value, drop):
    """What is in the outbox is added up before a put is refused, or something evicted for it."""
    damage.box.drop_policy = drop
    for name in NAMES:
        damage.box.withdraw(name)
    damage.sql("UPDATE outbox_counts SET n = ? WHERE name = 'bytes'", value)
    put = damage.box.put(Waiting("new", "cloud", "call", b"x"))
    assert (put.stored, put.dropped) == (True, ())
    assert damage.box.counts()["bytes"] == damage.box.list()[0].bytes


def test_a_full_outbox_is_not_added_up_at_each_put(damage, monkeypatch):
    """Only a count that there cannot be is made anew."""
    import edgeroute.stores.outbox.schema_queries_and_eviction as store

    seen, real = [], store.recount
    monkeypatch.setattr(store, "recount", lambda c: seen.append(1) or real(c))
    damage.box.max_bytes = sum(e.bytes for e in damage.box.list())
    for i in range(50):
        assert len(damage.box.put(Waiting(f"new {i}", "cloud", "call", b"{}", headers=[("A", "b")])).dropped) <= 1
    assert len(seen) == 1


@pytest.mark.parametrize("counter", ["stored", "dropped_by_hand"])
@pytest.mark.parametrize("value", ["many", None, b"x", float("inf")])
def test_another_counter_that_is_damaged_stops_nothing(damage, counter, value):
    """It begins anew."""
    damage.sql("INSERT OR REPLACE INTO outbox_counts VALUES (?, ?)", counter, value)
    assert damage.box.put(Waiting("new", "cloud", "call", b"x")).stored
    assert damage.box.drop(["r0"]) == 1
    assert damage.box.counts()[counter] == 1


@pytest.mark.parametrize("value", [None, b"x", float("inf"), -float("inf"), -1, 1 << 62])
@pytest.mark.parametrize("what", ["withdraw", "drop", "answer", "settle", "expire"])
def test_sizes_that_are_damaged_stop_nothing(damage, what, value):
    """Entries with one can be answered, and can go, like all others; what is left is added up."""
    if what == "settle":
        damage.answer()
    damage.sql("UPDATE outbox_entries SET bytes = ? WHERE seq IN (2, 3)", value)
    box, names = damage.box, ["r1", "r2"]
    if what == "expire":
        damage.sql("UPDATE outbox_entries SET since = 1600000000.0 WHERE seq IN (2, 3)")
    elif what == "drop":
        assert box.drop(names) == 2
    elif what == "answer":
        assert all(box.answer(name, Prediction(name, 0.5, None)) for name in names)
    else:
        assert all(getattr(box, what)(name) for name in names)
    left = [e.id for e in box.list()]
    assert left == (NAMES if what == "answer" else ["r0", "r3"])
    assert box.counts()["bytes"] == sum(e.bytes for e in box.list())
    assert box.put(Waiting("new", "cloud", "call", b"x")).stored


def test_times_that_are_no_number_stop_nothing(damage):
    """The difference of two infinite times is none, in a transaction that would replace the time of a wrong clock."""
    for column in ("since", "ready_at", "queued_at"):
        damage.sql(f"UPDATE outbox_entries SET {column} = 9e999 WHERE seq = 2")
    assert damage.box.put(Waiting("new", "cloud", "call", b"x")).stored
    assert damage.box.size() == 5


def npy(shape, of="<f8", body=b"", version=b"\1\0"):
    """A .npy file that announces this shape."""
    header = f"{{'descr': {of!r}, 'fortran_order': False, 'shape': {shape}}}\n".encode()
    return b"\x93NUMPY" + version + len(header).to_bytes(2 if version == b"\1\0" else 4, "little") + header + body


HUGE = (10**14,)
BOMBS = [
    *((NPY, npy(*given)) for given in ((HUGE,), (HUGE, "<U9"), ((2, 10**30),), ((-1,),), ((2,), "<f8", b"8 bytes."), (HUGE, "|O"))),
    (NPY, npy(HUGE, version=b"\2\0")), (NPY, npy((1,), body=b"8 bytes.", version=b"\3\0")), (NPY, npy("nothing")), (NPY, b"PK"),
    (MIXED, join_parts([b'{"a":["a"]}', npy(HUGE)])),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "body"), BOMBS)
def test_an_array_that_is_larger_than_its_file(kind, body):
    """No memory is allocated for it: it is damaged, and not a sign that this device is short of memory."""
    with pytest.raises(ValueError, match=r"."):
        decode_input(kind, body)


def test_arrays_of_any_kind_are_restored():
    """Those with an empty or a long shape, in Fortran's order, and with a long header, too."""
    given = {
        "empty": np.zeros((0, 3)), "scalar": np.array(1, np.float32), "fortran": np.asfortranarray(np.arange(6).reshape(2, 3)),
        "text": np.array(["a", "bcd"]), "bytes": np.array([b"", b"x"]), "times": np.array(["2020-01-01"], "M8[s]"),
        "long": np.zeros((1,) * 32),
    }  # fmt: skip
    found = decode_input(*encode_input(given))
    for name, array in given.items():
        for other in (found[name], decode_input(*encode_input(array))):
            assert (other.dtype, other.shape, other.tobytes()) == (array.dtype, array.shape, array.tobytes())


@pytest.mark.parametrize("kind", [Threads, Tasks])
def test_an_input_that_is_larger_than_its_file(kind, tmp_path):
    """It is a dead letter, and those behind it are delivered."""
    box = Outbox(tmp_path / "outbox.db", spread_s=0.0, rate_per_s=1e6)
    names = [f"r{i}" for i in range(6)]
    for i, name in enumerate(names):
        type_, body = (NPY, npy(HUGE)) if i < 3 else encode_input(np.arange(3))
        box.put(Waiting(name, "cloud", "input", body, headers=[("Content-Type", type_)]))
    told = Queue()
    router = kind(unsure, FakeCloud([("cloud", 0.9)] * 3), threshold=0.5, offline="queue", outbox=box)
    getattr(router, "router", router).on_late(told.put)
    assert {told.get(timeout=LONG).id for _ in range(3)} == {*names[3:]}
    until(lambda: box.size("dead") == 3)
    router.close()
    assert [e.error for e in box.list()] == ["ValueError"] * 3
    box.close()


@pytest.mark.slow
@pytest.mark.parametrize("args", [["list"], ["list", "--json"], ["export"], ["retry", "--all"], ["drop", "--all-dead", "--yes"]])
@pytest.mark.parametrize(("table", "column", "value"), CASES[::7])
def test_the_command_line_reads_what_is_damaged(damage, args, table, column, value):
    """Every entry is listed and exported, as far as it can be read."""
    damage.set(table, column, value)
    code, out, err = cli("outbox", *args, "--state", damage.path.parent)
    assert code == 0, out + err
    if args == ["list", "--json"]:
        assert len(json.loads(out)["entries"]) == 4
    if args == ["export"]:
        assert len([json.loads(line) for line in out.splitlines()]) == 4


@pytest.mark.parametrize("kind", [Threads, Tasks])
def test_a_router_is_told_of_it(kind, tmp_path, caplog):
    """The instruments hear of a damaged row, and the listener of the answers to the others."""
    caplog.set_level(logging.ERROR, "edgeroute")
    seen, told = [], Queue()

    class Seeing(Instrument):
        def outbox_changed(self, identity, what):
            seen.append((what, identity))

    def made(url):
        box = Outbox(tmp_path / "outbox.db", spread_s=0.0, rate_per_s=1e6)
        return kind(
            unsure, PlainJson(url, retries=0), threshold=0.5, offline="queue", state=tmp_path, outbox=box, instruments=[Seeing()]
        )

    reply = DOWN
    with CannedServer(lambda _: reply) as server:
        router = made(server.url)
        names = [router.infer(i).id for i in range(3)]
        router.close()
        with contextlib.closing(sqlite3.connect(tmp_path / "outbox.db", isolation_level=None)) as c:
            c.execute("UPDATE outbox_entries SET provisional = '{' WHERE id = ?", (names[1],))
        reply = GOOD
        router = made(server.url)
        getattr(router, "router", router).on_late(told.put)
        assert {told.get(timeout=LONG).id for _ in range(2)} == {names[0], names[2]}
        until(lambda: ("damaged", names[1]) in seen)
        router.close()
    assert f"entry {names[1]} is damaged" in caplog.text
