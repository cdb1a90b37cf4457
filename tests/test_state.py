"""Values that survive a restart: real files, shared, broken and forked."""

import asyncio
import contextlib
import json
import os
import signal
import sqlite3
import stat
import subprocess
import sys
import tempfile
import threading
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import tiny
from both import wait_for
from draws import draws
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from edgeroute import AsyncRouter, Audit, DeadlineExceeded, Limits, OpenInference, PlainJson, PolicyError, Router
from edgeroute.router import audits_and_hidden_trials, base_router, engine, offline_queue
from edgeroute.router import private_conversations_and_digest_store as private_conversations
from edgeroute.stores import sqlite_file_and_key_values as state
from edgeroute.stores.outbox import sqlite_queue
from edgeroute.stores.sqlite_file_and_key_values import Database, KeyValueStore
from edgeroute.testing import CannedServer, http_reply

LONG = 120.0


@pytest.fixture
def path(tmp_path):
    return tmp_path / "deep" / "state.db"


@pytest.fixture
def make(path):
    """Makes stores on one file, and closes them."""
    made = []

    def make(where=path):
        made.append(KeyValueStore(where))
        return made[-1]

    yield make
    for one in made:
        one.close()


def names(path):
    """What is in the file, read by other means."""
    connection = sqlite3.connect(path)
    found = {name: json.loads(value) for name, value in connection.execute("SELECT name, value FROM kept")}
    connection.close()
    return found


@pytest.fixture(autouse=True)
def alone():
    """The threads of stores of earlier tests have ended."""
    for thread in threads():
        thread.join(LONG)


def threads():
    return [t for t in threading.enumerate() if t.name == "edgeroute-state"]


def test_restart(path, make):
    """What was put before the end is there after it, NaN and all."""
    kept = make()
    assert kept.get("a") is None
    kept.put("a", {"x": [1, None, "é"], "inf": float("inf")})
    kept.close()
    assert make().get("a") == {"x": [1, None, "é"], "inf": float("inf")}


def test_written_by_itself(path, make, monkeypatch):
    """A second after the first put everything is in the file, by one thread, which ends; the next put starts another."""
    monkeypatch.setattr(state, "DELAY_S", 0.01)
    kept = make()
    for n in range(3):
        for i in range(100):
            kept.put(f"{n}.{i}", i)
        for thread in threads():
            thread.join(LONG)
        assert threads() == []
        assert len(names(path)) == 100 * (n + 1)


def test_put_while_the_thread_writes(path, make, monkeypatch):
    """A value that comes during the write is written a little later by the same thread."""
    monkeypatch.setattr(state, "DELAY_S", 0.01)
    kept = make()
    real = kept.flush

    def flush():
        kept.flush = real
        done = real()
        kept.put("b", 2)
        return done

    kept.flush = flush
    kept.put("a", 1)
    for thread in threads():
        thread.join(LONG)
    assert names(path) == {"a": 1, "b": 2}
    kept.put("c", 3)
    (thread,) = threads()
    thread.join(LONG)
    assert names(path) == {"a": 1, "b": 2, "c": 3}


def test_nothing_is_written_at_once(path, make, monkeypatch):
    """A put touches no disk; until it is written the value is read from memory, and is what it was then."""
    monkeypatch.setattr(state, "DELAY_S", LONG)
    kept, value = make(), [1]
    kept.put("a", value)
    value.append(2)
    assert len(threads()) == 1
    assert kept.get("a") == [1]
    assert kept.others("", "b") == [[1]]
    assert names(path) == {} if path.exists() else True
    assert kept.flush()
    assert names(path) == {"a": [1]}
    assert kept.flush()


def test_put_while_it_is_written(path, make, monkeypatch):
    """A value that is put during a write is newer than what was written, and is written by the next."""
    monkeypatch.setattr(state, "DELAY_S", LONG)
    kept = make()
    real = Database.transaction

    def slow(database):
        monkeypatch.undo()
        kept.put("a", "older")
        transaction = real(database)

        class Both:
            def __enter__(self):
                return transaction.__enter__()

            def __exit__(self, *error):
                done = transaction.__exit__(*error)
                kept.put("a", "newer")
                return done

        return Both()

    kept.put("a", "oldest")
    monkeypatch.setattr(Database, "transaction", slow)
    assert kept.flush()
    assert names(path) == {"a": "older"}
    assert kept.get("a") == "newer"
    kept.close()
    assert names(path) == {"a": "newer"}


def test_others(make):
    """The values of other processes under a common prefix, newest as this one knows them; no wildcards."""
    here, there = make(), make()
    there.put("spending:2", 2.0)
    there.put("spending:%", 3.0)
    there.put("spendings", 9.0)
    there.flush()
    here.put("spending:1", 1.0)
    here.put("spending:2", 2.5)
    assert sorted(here.others("spending:", "spending:1")) == [2.5, 3.0]
    assert sorted(there.others("spending:", "spending:1")) == [2.0, 3.0]
    assert there.others("spending_", "") == []


def test_forget(make, monkeypatch):
    """What was put longer ago goes, of that prefix alone, written or not."""
    clock = [1000.0]
    monkeypatch.setattr(state, "now", lambda: clock[0])
    kept = make()
    for name in ("a:1", "a:2", "b:1"):
        kept.put(name, name)
    kept.flush()
    kept.put("a:3", "a:3")
    clock[0] = 1010.0
    kept.put("a:2", "again")
    kept.put("a:4", "a:4")
    kept.forget("a:", 5.0)
    assert [kept.get(n) for n in ("a:1", "a:2", "a:3", "a:4", "b:1")] == [None, "again", None, "a:4", "b:1"]
    kept.flush()
    kept.forget("a:", 10.0)
    assert kept.get("a:2") == "again"
    kept.forget("", -1.0)
    assert kept.others("", "") == []


def test_after_close(path, make):
    """Late puts are remembered, start no thread and open no file; a second close is nothing."""
    kept = make()
    kept.put("a", 1)
    kept.close()
    kept.put("b", 2)
    kept.put("bc", 3)
    assert threads() == []
    assert not kept.flush()
    assert kept.others("b", "b") == [3]
    kept.forget("bc", -1.0)
    assert (kept.get("b"), kept.get("bc")) == (2, None)
    kept.close()
    assert names(path) == {"a": 1}


def test_a_corrupt_file(path, make, caplog):
    """It is set aside and said so, no caller sees an error, and the values that are in memory go into the new one."""
    path.parent.mkdir()
    path.write_bytes(b"no database at all" * 1000)
    kept = make()
    assert kept.get("a") is None
    kept.put("a", 1)
    kept.close()
    assert names(path) == {"a": 1}
    assert path.with_name("state.db.corrupt-1").exists()
    assert "corrupt" in caplog.text


@pytest.mark.parametrize("value", ["{", "", b"5", b"\xff", "[" * 100_000, None])
def test_a_damaged_value_is_dropped(path, make, caplog, value):
    """It costs no other, is logged with its name once, and is gone."""
    kept = make()
    for n in range(3):
        kept.put(f"a:{n}", n)
    kept.close()
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.executescript(
            "PRAGMA writable_schema = ON; UPDATE sqlite_master SET sql = replace(sql, ' NOT NULL', '');"
            "PRAGMA writable_schema = RESET"
        )
        text = "CAST(? AS TEXT)" if value == b"\xff" else "?"
        connection.execute(f"UPDATE kept SET value = {text} WHERE name = 'a:1'", (value,))
    later = make()
    assert later.others("a:", "") == [0, 2]
    assert [later.get(f"a:{n}") for n in range(3)] == [0, None, 2]
    assert caplog.text.count("'a:1'") == 1
    later.close()
    assert names(path) == {"a:0": 0, "a:2": 2, "damaged": None}


@pytest.mark.parametrize("kind", [Router, AsyncRouter])
@pytest.mark.parametrize(
    "value",
    [
        "{", "null", "5", "[]", "{}", '"x"', '{"edge":5}', "[[1,2]]", '{"usd_per_day":[[1,2]]}', '{"inputs":5}', '{"edge":{"a":[NaN]}}',
        '{"inputs":[["x","object",[1]]],"binary":7}', '{"inputs":[["x","float32",[null]]],"binary":null}', "1e999",
        '{"inputs":[["x","float32",[1e999]]],"binary":null}', '{"inputs":[["x","float32",[-1,2]]],"binary":7}', '{"values":[[1,1e999]]}',
    ],
)  # fmt: skip
def test_no_value_stops_a_router(tmp_path, caplog, kind, value):
    """Whatever a value has become, a router starts without it, and asks the endpoint anew for what it knew of it."""
    url = "http://127.0.0.1:9/v2/models/m"
    known = KeyValueStore(tmp_path / "state.db")
    for name in ("latency", "spending:other", f"endpoint:{url}", "audit:edge"):
        known.put(name, None)
    known.close()
    with contextlib.closing(sqlite3.connect(tmp_path / "state.db", isolation_level=None)) as connection:
        for name, updated in connection.execute("SELECT name, updated FROM kept").fetchall():
            connection.execute(
                "UPDATE kept SET value = ?, crc = ? WHERE name = ?", (value, state.checksum(name, value, updated), name)
            )
    endpoint = OpenInference(url)
    router = kind(lambda _: ("cat", 0.1), endpoint, threshold=0.8, state=tmp_path, audit=Audit(share=0.5))
    assert endpoint.inputs is None
    if kind is Router:
        assert router.infer(1, mode="only_edge").value == "cat"
        router.close()
    else:
        asyncio.run(router.close())


def test_files_that_are_locked_for_good(tmp_path, caplog, monkeypatch):
    """Hold up neither start nor status, which tells what can be read, nor the end, at which is said what is not written."""
    for place in (state, sqlite_queue):
        monkeypatch.setattr(place, "Database", partial(Database, busy_s=1e6))
    monkeypatch.setattr(private_conversations, "BUSY_S", 1e6)
    places = (base_router, "LOCKED_S"), (engine, "LOCKED_S"), (offline_queue, "CLOSE_S"), (audits_and_hidden_trials, "CLOSE_S")
    for place, name in places:
        monkeypatch.setattr(place, name, 0.01, raising=False)

    def make(deadline):
        return Router(
            lambda _: ("edge", 0.1), PlainJson("http://127.0.0.1:9"), threshold=0.5, state=tmp_path, offline="queue",
            deadline=deadline, audit=Audit(share=0.5), limits=Limits(mb_per_day=5.0),
        )  # fmt: skip

    def use(router, *texts):
        router.infer([{"role": "user", "content": f"Only for this device: {texts}"}], mode="only_edge", deadline=LONG)
        for text in texts:
            with contextlib.suppress(DeadlineExceeded):  # where the edge has no processor
                router.infer(text)

    with make(LONG) as router:
        use(router, "one")
        wait_for(lambda: router.status().outbox["waiting"] == 1)
    results = []
    with contextlib.ExitStack() as holders:
        for name in ("state.db", "outbox.db", "conversations.db"):
            holder = sqlite3.connect(tmp_path / name, isolation_level=None)
            holders.callback(holder.close)
            holder.execute("BEGIN EXCLUSIVE")

        def run():
            router = make(0.3)
            use(router, "two", "three", "four")  # the bookings of three wait for the file
            results.append(router.status().outbox["waiting"])
            router.close()
            results.append("closed")

        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        thread.join(LONG)
    assert results == [1, "closed"]
    for name in ("state.db", "conversations.db"):
        assert any(name in line and "not written as it is closed" in line for line in caplog.messages), name
    assert not any("Only for" in line for line in caplog.messages)


def test_a_file_that_cannot_be_written(path, make, caplog, monkeypatch):
    """Nothing raises, memory serves, one line is logged, no thread goes on trying, and when it works again all is written."""
    monkeypatch.setattr(state, "DELAY_S", 0.01)
    path.parent.write_text("a file where the folder should be")
    kept = make()
    for i in range(3):
        kept.put("a", i)
        for thread in threads():
            thread.join(LONG)
        assert threads() == []
        assert kept.get("a") == i
        assert kept.get("b") is None
        assert not kept.flush()
        kept.forget("b", 0.0)
    assert len(caplog.records) == 1
    assert str(path) in caplog.text
    path.parent.unlink()
    kept.put("b", 1)
    kept.close()
    assert names(path) == {"a": 2, "b": 1}


@pytest.mark.parametrize("error", [None, FileExistsError, PermissionError])
def test_a_new_file_is_complete_before_it_has_its_name(path, make, monkeypatch, error):
    """A crash leaves none that is empty; nor is a file system without hard links, or another process that was faster, a trouble."""
    link, seen = os.link, []

    def watched(made, to):
        assert not path.exists()
        with contextlib.closing(sqlite3.connect(made)) as connection:
            seen.append((to, connection.execute("SELECT name FROM sqlite_master").fetchall(), stat.S_IMODE(made.stat().st_mode)))
        if error is not PermissionError:
            link(made, to)
        if error is not None:
            raise error

    monkeypatch.setattr(os, "link", watched)
    kept = make()
    kept.put("a", 1)
    assert kept.flush()
    assert [(to, tables[:2], mode) for to, tables, mode in seen] == [(path, [("kept",), ("total",)], 0o600)]
    assert not list(path.parent.glob("*.new-*"))
    kept.close()
    assert make().get("a") == 1


def test_a_file_that_was_emptied(path, make, caplog):
    """It was not made so: it is set aside as a damaged one is."""
    kept = make()
    kept.put("a", 1)
    kept.close()
    os.truncate(path, 0)
    kept = make()
    assert kept.get("a") is None
    assert "was corrupt (a file of length 0" in caplog.text
    kept.put("a", 2)
    assert kept.flush()
    assert path.with_name(f"{path.name}.corrupt-1").stat().st_size == 0


def test_a_file_of_another_version(path, make, caplog):
    """It is left as it is; values live in memory."""
    path.parent.mkdir()
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA user_version=7")
    connection.close()
    kept = make()
    kept.put("a", 1)
    kept.close()
    assert "version 7" in caplog.text
    assert kept.get("a") == 1


def test_no_thread_to_be_had(path, make, monkeypatch):
    """Where no thread can be started a put does not fail, and close writes."""

    def refuse(_):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    kept = make()
    kept.put("a", 1)
    assert threads() == []
    kept.close()
    assert names(path) == {"a": 1}


def test_fork(path, make, monkeypatch):
    """A child starts anew on the same file, and does not write again what its parent was given."""
    monkeypatch.setattr(state, "DELAY_S", LONG)
    kept = make()
    kept.put("shared", "old")
    child = os.fork()
    if not child:
        kept.put("child", kept.get("shared"))
        kept.put("threads", len(threads()))
        kept.close()
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    assert names(path) == {"child": None, "threads": 1}
    kept.put("shared", "new")
    kept.close()
    assert names(path) == {"child": None, "threads": 1, "shared": "new"}


KILLED = """
import sys
from pathlib import Path
from edgeroute.stores import sqlite_file_and_key_values as state

state.DELAY_S = 0.001
state.Database.__init__.__kwdefaults__["busy_s"] = 120.0  # a machine may be busy
kept, i = state.KeyValueStore(Path(sys.argv[1])), 0
while True:
    kept.put("i", i)
    if i % 50 == 0:
        kept.flush()
        print(i, flush=True)
    i += 1
"""


def test_kill_9(path, make):
    """A process that is killed loses only what it had not written; two at once do not disturb each other."""
    for _ in range(3):
        started = [subprocess.Popen([sys.executable, "-c", KILLED, str(path)], stdout=-1, text=True) for _ in range(2)]
        written = [int([process.stdout.readline() for _ in range(20)][-1]) for process in started]
        for process in started:
            process.send_signal(signal.SIGKILL)
            process.communicate()
        assert make().get("i") >= min(written)


KEYS = ["a", "ab", "b", "a:1", "a:2", "é%_"]


class Model(RuleBasedStateMachine):
    """A store and a dict."""

    def __init__(self):
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.path = Path(self.folder.name, "state.db")
        self.kept, self.truth = KeyValueStore(self.path), {}

    @rule(key=st.sampled_from(KEYS), value=st.none() | st.integers() | st.lists(st.text(max_size=3), max_size=3))
    def put(self, key, value):
        """Into both."""
        self.kept.put(key, value)
        self.truth[key] = value

    @rule()
    def flush(self):
        """Changes nothing that can be seen."""
        assert self.kept.flush()

    @rule()
    def restart(self):
        """Changes nothing either."""
        self.kept.close()
        self.kept = KeyValueStore(self.path)

    @rule(prefix=st.sampled_from(["", "a", "a:", "b", "%"]))
    def forget(self, prefix):
        """From both."""
        self.kept.forget(prefix, -60.0)
        self.truth = {k: v for k, v in self.truth.items() if not k.startswith(prefix)}

    @rule(prefix=st.sampled_from(["", "a", "a:", "é%", "_"]), mine=st.sampled_from(KEYS))
    def others(self, prefix, mine):
        """The same as a dict would say."""
        expected = [v for k, v in self.truth.items() if k.startswith(prefix) and k != mine]
        assert sorted(map(repr, self.kept.others(prefix, mine))) == sorted(map(repr, expected))

    @invariant()
    def same(self):
        """What is there, and nothing else."""
        for key in KEYS:
            assert self.kept.get(key) == self.truth.get(key)

    def teardown(self):
        """Leaves nothing behind."""
        self.kept.close()
        self.folder.cleanup()


TestModel = Model.TestCase
TestModel.settings = settings(max_examples=draws(25), stateful_step_count=20, deadline=None)


FILES = {"state.db", "egress.jsonl", "cache.db", "outbox.db", "trace.jsonl"}


@pytest.mark.parametrize("own", ['state = "own"\n', ""])
@pytest.mark.parametrize("watched", [False, True])
def test_another_state_folder_of_the_program(tmp_path, monkeypatch, own, watched):
    """Has every file of the policy's: none is in the policy's own folder, which need not be given; also after a reload."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "policies"
    folder.mkdir()
    tiny.linear(folder / "edge.onnx")
    path = folder / "policy.toml"
    with CannedServer(http_reply(status=503), close=True) as server:
        path.write_text(
            f'{own}threshold = 2\noffline = "queue"\nscore = "energy"\ncache = {{ disk = true }}\ntrace = {{}}\n'
            f'outbox = {{ ttl = "1h" }}\n[edge]\npath = "edge.onnx"\n[cloud]\nprotocol = "json"\nurl = "{server.url}"\n'
        )
        before = {*folder.rglob("*")}
        with Router.from_policy(path, state="other") as router:
            if watched:
                path.write_text(path.read_text() + "retries = 0\n")
                router.reload()
            assert not router.infer(np.zeros(4, np.float32)).final
            assert router.status().outbox["waiting"] == 1
            router.infer(np.ones(4, np.float32), mode="only_edge")
    assert {*folder.rglob("*")} == before
    assert {file.name for file in (tmp_path / "other").iterdir()} >= FILES


def test_no_state_folder_by_the_program(tmp_path, monkeypatch):
    """Nothing is stored, whatever the policy has; a queue cannot be without one."""
    monkeypatch.chdir(tmp_path)
    tiny.linear(tmp_path / "edge.onnx")
    path = tmp_path / "policy.toml"
    text = 'state = "own"\ncache = { disk = true }\ntrace = {}\n[edge]\npath = "edge.onnx"\n'
    path.write_text(text)
    with Router.from_policy(path, state=None) as router:
        assert [router.infer(np.zeros(4, np.float32)).source for _ in range(2)] == ["edge", "cache"]
    assert {file.name for file in tmp_path.iterdir()} == {"edge.onnx", "policy.toml"}
    path.write_text('offline = "queue"\n' + text + '[cloud]\nprotocol = "json"\nurl = "http://h/x"\n')
    with pytest.raises(PolicyError, match="outbox"):
        Router.from_policy(path, state=None, threshold=0.5)
