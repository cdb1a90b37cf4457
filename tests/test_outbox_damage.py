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
from typer.testing import CliRunner

from edgeroute import Instrument, PlainJson
from edgeroute.cli.app import app
from edgeroute.core.walk import Prediction
from edgeroute.stores.outbox import Callbacks, Delivery, Outbox, Waiting
from edgeroute.testing import CannedServer

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
            self.box.put(Waiting(name, "cloud", "call", body, "POST", "/x", [("A", "b")], "photo", provisional={"value": 1}))

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
    sent, told = [], Queue()
    delivery = Delivery(
        box, lambda w: sent.append(w.id) or Prediction(w.id, 0.9, None), ordered=ordered, rate_per_s=1e6, poll_s=0.02
    )
    callbacks = Callbacks(box, ordered=ordered, poll_s=0.02)
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
    ("entries", "provisional", "["), ("entries", "provisional", "[" * 100_000), ("bodies", "body", None), ("bodies", "body", "text"),
]  # fmt: skip
HARMLESS = {("id", "nonsense"), ("target", "nonsense"), ("method", "nonsense")}


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
        ("answers", "outputs", "text"), ("answers", "outputs", None), ("answers", "outputs_type", "application/x-npz"),
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


@pytest.mark.parametrize("value", ["many", None, -5, b"x"])
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


@pytest.mark.parametrize("args", [["list"], ["list", "--json"], ["export"], ["retry", "--all"], ["drop", "--all-dead", "--yes"]])
@pytest.mark.parametrize(("table", "column", "value"), CASES[::7])
def test_the_command_line_reads_what_is_damaged(damage, args, table, column, value):
    """Every entry is listed and exported, as far as it can be read."""
    damage.set(table, column, value)
    done = CliRunner().invoke(app, ["outbox", *args, "--state", str(damage.path.parent)])
    assert done.exit_code == 0, (done.output, done.exception)
    if args == ["list", "--json"]:
        assert len(json.loads(done.stdout)["entries"]) == 4
    if args == ["export"]:
        assert len([json.loads(line) for line in done.stdout.splitlines()]) == 4


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

    with CannedServer(DOWN) as server:
        router = made(server.url)
        names = [router.infer(i).id for i in range(3)]
        router.close()
    with contextlib.closing(sqlite3.connect(tmp_path / "outbox.db", isolation_level=None)) as c:
        c.execute("UPDATE outbox_entries SET provisional = '{' WHERE id = ?", (names[1],))
    with CannedServer(GOOD) as server:
        router = made(server.url)
        getattr(router, "router", router).on_late(told.put)
        assert {told.get(timeout=LONG).id for _ in range(2)} == {names[0], names[2]}
        until(lambda: ("damaged", names[1]) in seen)
        router.close()
    assert f"entry {names[1]} is damaged" in caplog.text
