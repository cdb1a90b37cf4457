"""The outbox: the store against a model, delivery, late answers, and a disk, a clock and processes that fail."""

from __future__ import annotations

import base64
import contextlib
import fcntl
import json
import os
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
from functools import partial
from itertools import count
from pathlib import Path
from queue import Queue
from time import monotonic

import numpy as np
import pytest
from both import LONG
from draws import draws
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from edgeroute import (
    BadInput,
    BadReply,
    Closed,
    Held,
    Outbox,
    PolicyError,
    Prediction,
    Refused,
    StoreError,
    Unreachable,
)
from edgeroute.stores.outbox import Callbacks, Delivery, Waiting, decode_input, encode_input
from edgeroute.stores.outbox.delivery_and_callbacks import LockedWorker, backoff, longest
from edgeroute.stores.outbox.schema_queries_and_eviction import TRUSTED_S, Heads
from edgeroute.stores.outbox.sqlite_queue import COUNTED, LONGEST_S, ROW_BYTES, TIMES, spread_for
from edgeroute.system.json_codec_and_short_repr import to_json_types
from edgeroute.system.wall_clock import now

FORKS = pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")  # that it is safe beside threads is what is tested
T0 = 1_800_000_000.0
FAST = {"poll_s": 0.02}
FIXED = ROW_BYTES + len("[]") + len("null")
"""What an entry without a body counts."""


class Clock:
    """A clock that stands until it is set."""

    def __init__(self, at=T0):
        self.at = at

    def __call__(self):
        """The time."""
        return self.at


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def make(tmp_path, clock):
    """Makes outboxes on one file, and closes them."""
    with contextlib.ExitStack() as stack:

        def make(path=tmp_path / "box" / "outbox.db", **kwargs):
            outbox = Outbox(path, **{"clock": clock, "spread_s": 0.0, "rate_per_s": 1e6, **kwargs})
            stack.callback(outbox.close)
            return outbox

        yield make


@pytest.fixture
def outbox(make):
    return make()


@pytest.fixture
def deliver():
    """Starts deliveries, and ends them."""
    with contextlib.ExitStack() as stack:

        def deliver(outbox, send, **kwargs):
            delivery = Delivery(outbox, send, **{**FAST, **kwargs})
            stack.callback(delivery.close, 30)
            delivery.start()
            return delivery

        yield deliver


@pytest.fixture
def call():
    """Registers callbacks, and ends them."""
    with contextlib.ExitStack() as stack:

        def call(outbox, f, **kwargs):
            callbacks = Callbacks(outbox, **{"poll_s": 0.02, **kwargs})
            stack.callback(callbacks.close, 30)
            callbacks.register(f)
            return callbacks

        yield call


@pytest.fixture
def no_wait(monkeypatch):
    """Retries come at once."""
    monkeypatch.setattr("edgeroute.stores.outbox.delivery_and_callbacks.backoff", lambda *_: 0.0)


@pytest.fixture
def disk(tmp_path):
    """A small file system of its own."""
    folder = tmp_path / "disk"
    folder.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", folder], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"a file system of its own needs root: {done.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)  # even if a test that failed has a file open there


def request(name, target="cloud", body=b"x", **more):
    return Waiting(name, target, "call", body, **more)


def sure(value=1, outputs=None):
    return Prediction(value, 0.9, outputs)


def ids(outbox, state=None):
    return [e.id for e in outbox.list(state)]


def until(condition):
    """Waits for what another thread or process will do; it is not about how long that takes."""
    for _ in range(3000):
        if condition():
            return
        threading.Event().wait(0.01)
    raise AssertionError("it never came to that")


# ---------------------------------------------------------------------------------------------------------------- store


class StoreAgainstModel(RuleBasedStateMachine):
    """Whatever is done, the file has what a few lines of plain Python say it has, after a crash just as well."""

    names = st.sampled_from("abcdefgh")

    @initialize(drop=st.sampled_from(["oldest", "least_important", "newest"]), room=st.integers(1, 5))
    def begin(self, drop, room):  # noqa: D102 - a step, named for what it does
        self.folder = Path(os.environ["OUTBOX_MODEL"]) / str(next(_numbers))
        self.clock, self.drop, self.most = Clock(), drop, room * (FIXED + 60)
        self.outbox = self.open()
        self.entries, self.done, self.seq = {}, set(), count()
        self.counts = dict.fromkeys(COUNTED, 0)

    def open(self):  # noqa: D102 - a step, named for what it does
        return Outbox(self.folder / "o.db", max_bytes=self.most, ttl_s=1000.0, drop=self.drop, clock=self.clock)

    def tidy(self):  # noqa: D102 - a step, named for what it does
        at = self.clock.at
        if at < TRUSTED_S:
            return
        for e in self.entries.values():
            if e["since"] > at or e["since"] < TRUSTED_S:
                e["ready"] = at if e["attempts"] else at + max(0.0, e["ready"] - e["since"])
                e["since"] = at
        for name in [n for n, e in self.entries.items() if e["since"] < at - 1000.0]:
            self.remove(name, "dropped_expired")

    def remove(self, name, why):  # noqa: D102 - a step, named for what it does
        self.counts[why] += 1
        return self.entries.pop(name)

    @rule(name=names, size=st.integers(0, 400), importance=st.sampled_from([0.0, 1.0, 2.0]), later=st.sampled_from([0.0, 30.0]))
    def put(self, name, size, importance, later):  # noqa: D102 - a step, named for what it does
        self.tidy()
        at = self.clock.at
        put = self.outbox.put(request(name, body=bytes(size), importance=importance, ready_at=at + later))
        if name in self.done or name in self.entries:
            assert put == (
                (True, (), "") if name in self.done or self.entries[name]["state"] != "dead" else (False, (), put.reason)
            )
            return
        victims = sorted(
            (n for n, e in self.entries.items() if self.drop == "oldest" or e["importance"] <= importance),
            key=lambda n: (
                self.entries[n]["state"] == "answered",
                self.entries[n]["importance"] if self.drop == "least_important" else 0,
                self.entries[n]["seq"],
            ),
        )
        gone, over = [], sum(e["bytes"] for e in self.entries.values()) + FIXED + size - self.most
        while over > 0 and victims and self.drop != "newest" and FIXED + size <= self.most:
            gone.append(victims.pop(0))
            over -= self.entries[gone[-1]]["bytes"]
        if over > 0:
            self.counts["dropped_full"] += 1
            assert not put.stored
            assert put.dropped == ()
            return
        for n in gone:
            self.remove(n, "dropped_full")
        self.counts["stored"] += 1
        self.entries[name] = {
            "seq": next(self.seq), "state": "waiting", "since": at, "ready": at + later, "attempts": 0, "importance": importance,
            "bytes": FIXED + size,
        }  # fmt: skip
        assert (put.stored, put.dropped) == (True, tuple(gone))

    def there(self, name, *states):  # noqa: D102 - a step, named for what it does
        self.tidy()
        return name in self.entries and self.entries[name]["state"] in states

    @rule(name=names)
    def answer(self, name):  # noqa: D102 - a step, named for what it does
        came = self.there(name, "waiting", "dead")
        assert self.outbox.answer(name, sure(name), attempts=1) == came
        if came:
            e = self.entries[name]
            e |= {
                "state": "answered",
                "since": self.clock.at,
                "ready": self.clock.at,
                "attempts": e["attempts"] + 1,
                "bytes": ROW_BYTES + len('null"a"'),
            }
            self.counts["delivered"] += 1

    @rule(name=names)
    def fail(self, name):  # noqa: D102 - a step, named for what it does
        if self.there(name, "waiting"):
            self.entries[name] |= {"attempts": self.entries[name]["attempts"] + 1, "ready": self.clock.at + 7}
        self.outbox.failed(name, "away", self.clock.at + 7)

    @rule(name=names)
    def bury(self, name):  # noqa: D102 - a step, named for what it does
        if self.there(name, "waiting"):
            e = self.entries[name]
            e |= {"attempts": e["attempts"] + 1, "state": "dead", "since": self.clock.at}
            self.counts["dead"] += 1
        self.outbox.bury(name, "no")

    @rule(names=st.none() | st.lists(names, max_size=3, unique=True))
    def retry(self, names):  # noqa: D102 - a step, named for what it does
        found = [n for n in (list(self.entries) if names is None else names) if self.there(n, "dead")]
        assert self.outbox.retry(names) == len(found)
        for n in found:
            self.entries[n] |= {"state": "waiting", "since": self.clock.at, "ready": self.clock.at}

    @rule()
    def hurry(self):  # noqa: D102 - a step, named for what it does
        self.tidy()
        self.outbox.pick(lambda heads: heads.hurry("cloud", self.clock.at, 0, heads.newest()) and None)
        for e in self.entries.values():
            if e["state"] == "waiting" and e["attempts"]:
                e["ready"] = min(e["ready"], self.clock.at)

    @rule(name=names)
    def ready(self, name):  # noqa: D102 - a step, named for what it does
        if self.there(name, "waiting"):
            self.entries[name]["ready"] = self.clock.at
        self.outbox.ready(name)

    @rule(name=names)
    def withdraw(self, name):  # noqa: D102 - a step, named for what it does
        there = self.there(name, "waiting", "dead")
        assert self.outbox.withdraw(name) == there
        if there:
            self.remove(name, "withdrawn")

    @rule(some=st.lists(names, max_size=3, unique=True))
    def drop_by_hand(self, some):  # noqa: D102 - a step, named for what it does
        self.tidy()
        found = [n for n in some if n in self.entries]
        assert self.outbox.drop(some) == len(found)
        for n in found:
            self.remove(n, "dropped_by_hand")

    @rule(name=names, fails=st.booleans())
    def settle(self, name, fails):  # noqa: D102 - a step, named for what it does
        def effect(late, connection):
            assert late.value == late.id == name
            assert connection.in_transaction
            if fails:
                raise KeyError

        there = self.there(name, "answered")
        with pytest.raises(KeyError) if there and fails else contextlib.nullcontext():
            assert self.outbox.settle(name, effect) == there
        if there and not fails:
            self.remove(name, "called")
            self.done.add(name)

    @rule(by=st.sampled_from([1.0, 400.0, 1001.0, -500.0, -40 * 365 * 86400.0, 30 * 365 * 86400.0]))
    def time_passes_or_the_clock_is_set(self, by):  # noqa: D102 - a step, named for what it does
        self.clock.at = max(10.0, self.clock.at + by)

    @rule()
    def begin_again(self):  # noqa: D102 - a step, named for what it does
        self.outbox.close()
        self.outbox = self.open()

    @precondition(lambda self: hasattr(self, "outbox"))
    @invariant()
    def agrees(self):  # noqa: D102 - a step, named for what it does
        self.tidy()
        mine = sorted(self.entries.items(), key=lambda item: item[1]["seq"])
        told = [(e.id, e.state, e.attempts, e.importance, e.bytes, e.ready_at) for e in self.outbox.list()]
        assert told == [(n, e["state"], e["attempts"], e["importance"], e["bytes"], e["ready"]) for n, e in mine]
        counts = self.outbox.counts()
        assert self.outbox.known_counts() == counts
        total, waiting = sum(e["bytes"] for _, e in mine), sum(e["state"] == "waiting" for _, e in mine)
        assert counts == {**self.counts, "bytes": total, "waiting": waiting}
        assert total <= self.most

    def teardown(self):  # noqa: D102 - a step, named for what it does
        if hasattr(self, "outbox"):
            self.outbox.close()


_numbers = count()


def test_the_store_does_what_the_model_does(tmp_path, monkeypatch):
    """Puts, answers, drops, retries, crashes and clocks that jump: the store and the model never differ."""
    monkeypatch.setenv("OUTBOX_MODEL", str(tmp_path))
    checks = settings(max_examples=draws(60), stateful_step_count=30, deadline=None, suppress_health_check=list(HealthCheck))
    StoreAgainstModel.TestCase.settings = checks
    StoreAgainstModel.TestCase("runTest").runTest()


def test_a_request_comes_back_as_it_was(make):
    """Every field of a request survives the end of the process."""
    given_ = Waiting(
        "a", "cloud", "input", b"\x00body", "POST", "/v2", (("Content-Type", "x/y"), ("B", "2")), "photo", "may_leave", 0.5,
        {"value": "cat", "confidence": 0.3}, T0 + 5, T0 - 1, 3,
    )  # fmt: skip
    assert make().put(given_).stored
    assert make().waiting("a") == given_


def test_the_same_id_twice_is_one_request(outbox):
    """A second put changes nothing: not while it waits, nor once it was answered, nor once that was told."""
    for _ in range(2):
        assert outbox.put(request("a", body=b"first")) == (True, (), "")
    outbox.put(request("a", body=b"second"))
    assert outbox.waiting("a").body == b"first"
    outbox.answer("a", sure())
    assert outbox.put(request("a")).stored
    assert ids(outbox, "answered") == ["a"]
    outbox.settle("a")
    assert outbox.put(request("a")).stored
    assert ids(outbox) == []
    assert outbox.counts()["stored"] == 1


def test_so_many_ids_are_remembered(outbox, monkeypatch):
    """Of the ids that are done the last ones are not stored again."""
    monkeypatch.setattr("edgeroute.stores.outbox.sqlite_queue.REMEMBERED", 2)
    for name in "abc":
        outbox.put(request(name))
        outbox.answer(name, sure())
        outbox.settle(name)
    for name in "abc":
        outbox.put(request(name))
    assert ids(outbox) == ["a"]


@pytest.mark.parametrize(
    ("drop", "importance", "stays", "dropped"),
    [
        ("oldest", 0.0, "bcn", ("a",)),
        ("least_important", 5.0, "acn", ("b",)),
        ("least_important", 1.0, "acn", ("b",)),
        ("least_important", 0.5, "abc", ()),
        ("newest", 9.0, "abc", ()),
    ],
)
def test_what_makes_room(make, drop, importance, stays, dropped):
    """Over max_bytes the policy says who goes, and whoever goes is named and counted."""
    outbox = make(max_bytes=3 * (FIXED + 100), drop=drop)
    for name, weight in (("a", 2.0), ("b", 1.0), ("c", 1.0)):
        outbox.put(request(name, body=bytes(100), importance=weight))
    put = outbox.put(request("n", body=bytes(100), importance=importance))
    assert (put.stored, put.dropped) == ("n" in stays, dropped)
    assert put.stored or "full" in put.reason
    assert ids(outbox) == list(stays)
    assert outbox.counts()["dropped_full"] == 1


def test_what_is_larger_than_the_outbox_drops_nothing(make):
    """A request that could never fit is refused, and the others stay."""
    outbox = make(max_bytes=2000)
    outbox.put(request("a"))
    assert not outbox.put(request("b", body=bytes(2000))).stored
    assert ids(outbox) == ["a"]


def test_an_answer_makes_room_last(make):
    """An answer that the app was not told goes only after every request that waits."""
    outbox = make(max_bytes=3 * FIXED + 100)
    for name in "abc":
        outbox.put(request(name, body=b""))
    outbox.answer("a", sure())
    assert outbox.put(request("d", body=b"")).dropped == ("b",)
    assert outbox.put(request("e", body=bytes(2 * FIXED))).dropped == ("c", "d", "a")


def test_too_old_is_dropped_and_counted(outbox, clock):
    """A request past its time to live is not delivered."""
    outbox.put(request("a"))
    clock.at += outbox.ttl_s + 1
    assert outbox.waiting("a") is None
    assert outbox.counts()["dropped_expired"] == 1


def test_a_clock_set_back_loses_nothing(make):
    """A request from the future counts as made when that is seen, and does not wait for its old time."""
    make(clock=Clock(T0 + 400 * 86400)).put(request("a", ready_at=T0 + 400 * 86400 + 30))
    clock = Clock(T0)
    later = make(clock=clock)
    (entry,) = later.list()
    assert (entry.queued_at, entry.ready_at) == (T0, T0 + 30)
    clock.at += later.ttl_s - 1
    assert ids(later) == ["a"]


def test_a_clock_set_back_while_a_retry_waits(make, clock):
    """A wait after a failure does not become as long as the clock was set back."""
    outbox = make()
    outbox.put(request("a"))
    clock.at += 3600
    outbox.failed("a", "away", clock.at + 60)
    (entry,) = make(clock=Clock(T0 - 86400)).list()
    assert entry.ready_at == T0 - 86400


def test_a_device_without_a_clock_loses_nothing(make):
    """What was stored in 1970 counts as stored now, once the clock is set; before that nothing is ever too old."""
    early = Clock(100.0)
    outbox = make(clock=early)
    outbox.put(request("a"))
    early.at += outbox.ttl_s * 3
    assert ids(outbox) == ["a"]
    (entry,) = make(clock=Clock(T0)).list()
    assert entry.queued_at == T0
    assert make(clock=early).list()[0].queued_at == T0, "a clock that was never set corrects nothing"


def test_dead_ones_are_listed_retried_and_dropped(outbox):
    """A refusal for good is kept with its text, for someone to decide."""
    for name in "abc":
        outbox.put(request(name))
        outbox.bury(name, f"no {name} \ud800" + "x" * 5000)
    assert [(e.id, e.error[:6]) for e in outbox.list("dead")] == [("a", "no a ?"), ("b", "no b ?"), ("c", "no c ?")]
    assert not outbox.put(request("a")).stored
    assert outbox.retry(["a", "nobody"]) == 1
    assert outbox.drop(["b", "nobody"]) == 1
    assert outbox.retry() == 1
    assert ids(outbox, "waiting") == ["a", "c"]
    assert outbox.counts()["dropped_by_hand"] == 1


def test_an_answer_to_a_dead_one(outbox):
    """A reply that comes after all is an answer, though an attempt in between was refused for good."""
    outbox.put(request("a"))
    outbox.bury("a", "no")
    assert outbox.answer("a", sure())
    assert [(e.state, e.error) for e in outbox.list()] == [("answered", "")]


def test_the_export_has_everything(outbox):
    """An export is ready for JSON, and has bodies and answers."""
    outbox.put(request("a", body=b"\xff\x00", headers=[("A", "b")], provisional={"value": np.float32(0.5)}))
    outbox.put(request("b"))
    outbox.answer("b", sure({"k": np.int64(3)}, np.arange(3)))
    one, two = json.loads(json.dumps(list(outbox.export()), allow_nan=False))
    assert (one["id"], one["state"], base64.b64decode(one["body"])) == ("a", "waiting", b"\xff\x00")
    assert (one["headers"], one["provisional"], one["value"]) == ([["A", "b"]], {"value": 0.5}, None)
    assert (two["id"], two["state"], two["body"], two["value"]) == ("b", "answered", None, {"k": 3})
    assert decode_input(two["outputs_type"], base64.b64decode(two["outputs"])).tolist() == [0, 1, 2]


def test_an_unknown_drop_policy(tmp_path):
    """A word that is no policy is refused at once."""
    with pytest.raises(PolicyError, match="least_important"):
        Outbox(tmp_path / "o", drop="random")


# --------------------------------------------------------------------------------------------------------------- inputs


def same(a, b):
    if isinstance(a, dict):
        return list(a) == list(b) and all(same(a[k], b[k]) for k in a)
    if isinstance(a, np.ndarray):
        return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()
    return type(a) is type(b) and a == b


@pytest.mark.parametrize(
    "x",
    [
        np.arange(6, dtype=np.float32).reshape(2, 3), np.array(3.5), np.array([b"ab", b"c"]), np.array(["u", "\u00e4"]), np.zeros((0, 4), np.uint8),
        np.array([1, 2], ">i4"), np.array(["2020-01-01"], "M8[D]"), np.array([np.nan, np.inf]),
        {"x": np.ones(2), "file": np.zeros(1), "a/b": np.zeros(1), "n.npy": np.array([True])},
        b"", b"\x00\xff", "text", "", {}, [], {"a": [1, 2.5, None, True, {"b": "c"}]}, 12345678901234567890123, None,
    ],
    ids=repr,
)  # fmt: skip
def test_an_input_comes_back(x):
    """Arrays, names with arrays, bytes and JSON come back as they were."""
    encoded = encode_input(x)
    assert same(x, decode_input(*encoded))
    assert encode_input(x) == encoded, "the same bytes each time"


_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda part: st.lists(part) | st.dictionaries(st.text(), part),
)


@given(_json)
def test_json_comes_back(x):
    """Whatever JSON can hold comes back as it was."""
    assert same(x, decode_input(*encode_input(x)))


def endless():
    x = []
    x.append(x)
    return x


@pytest.mark.parametrize(
    "x",
    [
        np.array([object()]), np.ma.masked_array([1, 2], [True, False]), np.zeros(2, [("a", "i4")]), np.float32(1), {1: "a"}, {"a": np.ones(1), "b": {2}},
        {1, 2}, object(), [object()], bytearray(b"x"), endless(), lambda: None,
    ],
    ids=lambda x: type(x).__name__,
)  # fmt: skip
def test_what_would_not_come_back_is_not_stored(x):
    """What cannot be given back as it was is refused, and never pickled."""
    assert encode_input(x) is None


def test_a_stored_input_cannot_run_code(tmp_path):
    """A pickle in the place of an array is refused."""
    np.save(tmp_path / "a.npy", np.array([object()]), allow_pickle=True)
    with pytest.raises(ValueError, match="an array of objects is never read"):
        decode_input("application/x-npy", (tmp_path / "a.npy").read_bytes())
    with pytest.raises(BadInput, match="pickle"):
        decode_input("application/pickle", b"")


def test_values_become_plain():
    """A value of numpy's, or of a kind that JSON lacks, is kept as what comes nearest."""
    x = {1: np.float32(0.5), "a": (np.arange(2), np.str_("s")), "n": float("nan"), "o": np.array([{1}], object), "s": {1}}
    assert to_json_types(x) == {"1": 0.5, "a": [[0, 1], "s"], "n": None, "o": ["{1}"], "s": "{1}"}


# ----------------------------------------------------------------------------------------------------------------- disk


def fill(path):
    with path.open("wb", buffering=0) as ballast, contextlib.suppress(OSError):
        while True:
            ballast.write(bytes(1 << 12))


def put_many(outbox):
    for n in count():
        outbox.put(request(f"m{n}", body=bytes(30_000)))


def test_a_full_disk(disk, make, deliver):
    """A put says that the disk is full; nothing is lost, what was sent meanwhile is not sent again, and later it works."""
    outbox = make(disk / "o.db", parallel=1)
    for n in range(20):
        outbox.put(request(f"r{n}", body=bytes(3000)))
    sent, gate = [], threading.Event()

    def send(waiting):
        gate.wait()
        sent.append(waiting.id)
        return sure(outputs=np.zeros(200))

    deliver(outbox, send)
    try:
        fill(disk / "ballast")
        with pytest.raises(StoreError, match="full"):
            put_many(outbox)
        before = [name for name in ids(outbox) if name.startswith("m")]
    finally:
        gate.set()
    until(lambda: sent)
    (disk / "ballast").unlink()
    until(lambda: len(ids(outbox, "answered")) == 20 + len(before))
    assert sorted(sent) == sorted([f"r{n}" for n in range(20)] + before), "each once"
    assert outbox.put(request("after")).stored


def test_a_read_only_disk(disk, make, deliver, call, caplog):
    """A put says so, deliveries wait and say so once; writable again, all goes on."""
    outbox = make(disk / "o.db")
    outbox.put(request("a"))
    outbox.close()
    subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
    try:
        with pytest.raises(StoreError, match=r"(?i)readonly|read-only|unable"):
            outbox.put(request("b"))
        told = Queue()
        deliver(outbox, lambda _: sure())
        call(outbox, told.put)
        until(lambda: "the outbox waits" in caplog.text)
    finally:
        subprocess.run(["mount", "-o", "remount,rw", disk], check=True)
    assert outbox.put(request("b")).stored
    assert {told.get(timeout=LONG).id, told.get(timeout=LONG).id} == {"a", "b"}


@pytest.mark.parametrize(("mode", "known"), [("NORMAL", True), ("EXCLUSIVE", False)])
def test_what_is_known_is_told_beside_a_lock(make, tmp_path, mode, known):
    """At once: another process's transaction hides nothing, and of a file that it has for itself nothing is told."""
    path = tmp_path / "o.db"
    assert make(path).known_counts()["waiting"] == 0
    outbox = make(path)
    outbox.put(request("a"))
    outbox.close()
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as holder:
        holder.execute(f"PRAGMA locking_mode={mode}")
        holder.execute("BEGIN EXCLUSIVE")
        assert outbox.known_counts().get("waiting") == (1 if known else None)
    assert outbox.known_counts() == outbox.counts()


def test_a_folder_that_cannot_be_made(make, tmp_path):
    """A file where a folder should be is an error of the store."""
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError):
        make(tmp_path / "file" / "o.db").put(request("a"))


@pytest.mark.parametrize("opened", [True, False])
def test_a_corrupt_file_is_set_aside(make, tmp_path, caplog, opened):
    """A file that is broken is reported and kept, and the next put begins a new one."""
    path = tmp_path / "o.db"
    outbox = make(path)
    for n in range(50):
        outbox.put(request(f"r{n}", body=bytes(3000)))
    outbox.close()
    if opened:
        outbox.counts()
    with path.open("r+b") as file:
        file.write(b"\xa5" * 200_000)
    with pytest.raises(StoreError, match=r"corrupt"):
        list(outbox.export())
    assert "corrupt" in caplog.text
    assert (tmp_path / "o.db.corrupt-1").stat().st_size >= 100_000
    assert outbox.put(request("a")).stored
    assert ids(outbox) == ["a"]


def test_a_file_that_another_process_set_aside(make, tmp_path):
    """Who still has the old file open writes into the new one, and does not set that aside too."""
    path = tmp_path / "o.db"
    mine, other = make(path), make(path)
    mine.put(request("a"))
    for end in ("", "-wal", "-shm"):
        (tmp_path / f"o.db{end}").rename(tmp_path / f"o.db.corrupt-1{end}")
    other.put(request("b"))
    mine.put(request("c"))
    assert ids(other) == ids(mine) == ["b", "c"]


def test_an_error_within_another_transaction_undoes_both(outbox):
    """A transaction within another is part of it: its failure leaves nothing of either, and the next one works."""
    outbox.put(request("a"))
    outbox.answer("a", sure())

    def effect(late, connection):
        outbox.put(request("b"))
        with pytest.raises(StoreError):
            outbox.put(request("c", importance=float("nan")))

    with pytest.raises(StoreError):
        outbox.settle("a", effect)
    assert ids(outbox) == ["a"]


# ------------------------------------------------------------------------------------------------------------- delivery


def test_it_is_delivered_and_its_answer_told_once(outbox, deliver, call):
    """A request goes out as it was put, and its answer reaches the app with all that belongs to it."""
    told = Queue()
    call(outbox, told.put)
    deliver(outbox, lambda w: Prediction({"was": w.body.decode()}, np.float32(0.5), {"logits": np.arange(2.0)}))
    outbox.put(request("a", body=b"hello", data_class="photo", provisional={"value": "dog", "confidence": 0.4}))
    late = told.get(timeout=LONG)
    assert late.outputs.pop("logits").tolist() == [0.0, 1.0]
    assert late == ("a", {"was": "hello"}, 0.5, {}, {"value": "dog", "confidence": 0.4}, "photo", "cloud", T0, T0)
    until(lambda: outbox.counts()["called"] == 1)
    assert told.empty()
    assert ids(outbox) == []


def test_what_an_error_means(outbox, deliver, no_wait):
    """Retriable, or about the server: again, and counted. Held, and this side's errors: again, not counted. Else: dead."""
    plans = {
        "away": [Unreachable("away"), Refused("busy", status=503), sure()], "held": [Held("breaker"), Held("breaker"), sure()],
        "closed": [Closed("closing"), sure()], "disk": [StoreError("full"), sure()], "refused": [Refused("bad", status=400)],
        "stranger": [Refused("no such page", status=404), sure()], "key": [Refused("who?", status=401), sure()],
        "reply": [BadReply("what?")], "bug": [ZeroDivisionError()], "fine": [sure()], "odd": [Prediction(Unprintable(), 1.0, None)],
    }  # fmt: skip

    def send(waiting):
        step = plans[waiting.id].pop(0)
        if isinstance(step, Exception):
            raise step
        return step

    for name in list(plans):
        outbox.put(request(name, target=name))
    deliver(outbox, send)
    until(lambda: not ids(outbox, "waiting"))
    assert {e.id: e.error for e in outbox.list("dead")} == {
        "refused": "bad", "reply": "what?", "bug": "ZeroDivisionError", "odd": "ValueError",
    }  # fmt: skip
    attempts = {e.id: e.attempts for e in outbox.list("answered")}
    assert attempts == {"away": 3, "held": 1, "closed": 1, "disk": 1, "fine": 1, "stranger": 2, "key": 2}


class Unprintable:
    """A value that not even text can stand for."""

    def __str__(self):
        raise ValueError("cannot be printed")


def test_one_that_fails_does_not_hold_up_the_others(outbox, deliver):
    """Unordered, a request that waits for its next attempt lets those behind it pass, and so does one under way."""
    gate = threading.Event()

    def send(waiting):
        if waiting.id == "slow":
            gate.wait()
        if waiting.id == "bad":
            raise Unreachable("away")
        return sure()

    for name in ("slow", "bad", *map(str, range(20))):
        outbox.put(request(name))
    deliver(outbox, send)
    until(lambda: len(ids(outbox, "answered")) == 20)
    gate.set()
    until(lambda: "slow" in ids(outbox, "answered"))
    assert ids(outbox, "waiting") == ["bad"]


def test_one_that_is_held_does_not_starve_the_others(outbox, deliver):
    """Each look tries another of those that were held, so one without consent does not stay in front for ever."""

    def send(waiting):
        if waiting.id.startswith("held"):
            raise Held("no consent")
        return sure()

    for name in ("held1", "held2", "a", "b"):
        outbox.put(request(name, data_class="photo"))
    deliver(outbox, send, poll_s=0.01)
    until(lambda: ids(outbox, "answered") == ["a", "b"])
    assert {e.attempts for e in outbox.list("waiting")} == {0}


def test_ordered_means_in_order(make, deliver, call, no_wait):
    """Ordered, a target gets one at a time, in the order of puts; failures hold up, dead ones and other targets do not."""
    failures = {"a3": [Unreachable("away"), Held("breaker")], "a5": [BadReply("no")]}
    outbox, sent, told, under_way = make(ordered=True, parallel=4), [], [], set()

    def send(waiting):
        assert waiting.target not in under_way
        under_way.add(waiting.target)
        sent.append(waiting.id)
        under_way.remove(waiting.target)
        if failures.get(waiting.id):
            raise failures[waiting.id].pop(0)
        return sure()

    names = [f"{t}{n}" for n in range(10) for t in "ab"]
    for name in names:
        outbox.put(request(name, target=name[0]))
    call(outbox, lambda late: told.append(late.id))
    deliver(outbox, send)
    until(lambda: outbox.counts()["called"] == 19)
    for target in "ab":
        mine = [n for n in names if n[0] == target]
        assert [n for n in dict.fromkeys(sent) if n[0] == target] == mine
        assert [n for n in told if n[0] == target] == [n for n in mine if n != "a5"]
    assert [n for n in sent if n[0] == "a"].count("a3") == 3


def test_ordered_the_head_blocks(make, deliver):
    """Ordered, a request that is not ready yet holds up those behind it, and `ready` lets them go."""
    outbox, sent = make(ordered=True), Queue()
    outbox.put(request("a", ready_at=T0 + 1000))
    outbox.put(request("b"))
    outbox.put(request("c", target="other"))
    deliver(outbox, lambda w: sent.put(w.id) or sure())
    assert sent.get(timeout=LONG) == "c"
    until(lambda: ids(outbox, "answered") == ["c"])
    assert sent.empty()
    outbox.ready("a")
    assert [sent.get(timeout=LONG), sent.get(timeout=LONG)] == ["a", "b"]


def test_wake_cuts_waits_short(outbox, deliver, monkeypatch):
    """Once the link is back, what failed before is tried at once; what is not due for another reason is not."""
    monkeypatch.setattr("edgeroute.stores.outbox.delivery_and_callbacks.backoff", lambda *_: 1000.0)
    monkeypatch.setattr("edgeroute.stores.outbox.delivery_and_callbacks.HURRY_S", 0.0)
    away, tried = threading.Event(), Queue()
    away.set()

    def send(waiting):
        tried.put(waiting.id)
        if away.is_set():
            raise Unreachable("away")
        return sure()

    outbox.put(request("a"))
    outbox.put(request("later", ready_at=T0 + 1000))
    delivery = deliver(outbox, send)
    assert tried.get(timeout=LONG) == "a"
    until(lambda: outbox.list()[0].ready_at == T0 + 1000)
    away.clear()
    delivery.wake()
    until(lambda: ids(outbox, "answered") == ["a"])
    assert ids(outbox, "waiting") == ["later"]


@pytest.fixture
def whole(monkeypatch):
    """Random waits are as long as they can be."""
    monkeypatch.setattr("random.uniform", lambda _, most: most)


@pytest.fixture
def ahead(monkeypatch):
    """What delivery takes for the time is by so many seconds more than it is: its one element."""
    from edgeroute.stores.outbox import delivery_and_callbacks as delivery

    real, by_s = delivery.monotonic, [0.0]
    monkeypatch.setattr(delivery, "monotonic", lambda: real() + by_s[0])
    return by_s


AGES = 1e6
"""Seconds that no test takes."""


def looks(outbox, monkeypatch):
    """Waits until delivery has looked into the outbox twice more."""
    seen, real = [], outbox.pick
    monkeypatch.setattr(outbox, "pick", lambda *args: (seen.append(1), real(*args))[1])
    until(lambda: len(seen) > 2)  # the first may have begun before


@pytest.mark.usefixtures("whole")
def test_what_failed_waits_a_part_of_the_spread(make):
    """When it is put, and when its late reply turns out to be an error; what did not fail is due now, or when it says."""
    outbox = make(spread_s=60.0)
    outbox.put(request("failed", error="away"))
    outbox.put(request("new"))
    outbox.put(request("under way", ready_at=T0 + 10))
    outbox.put(request("asked to", ready_at=T0 + 5, error="busy"))
    assert [(e.ready_at - T0, e.error) for e in outbox.list()] == [(60, "away"), (0, ""), (10, ""), (5, "busy")]
    assert outbox.waiting("failed").error == "away"
    outbox.ready("under way", "reset")
    outbox.ready("asked to")
    assert [(e.ready_at - T0, e.error) for e in outbox.list()] == [(60, "away"), (0, ""), (60, "reset"), (0, "")]


@pytest.mark.usefixtures("whole")
def test_hurry_takes_what_failed(make):
    """And not what waits for a reply that may still come."""
    outbox = make(spread_s=60.0)
    outbox.put(request("failed", error="away"))
    outbox.put(request("under way", ready_at=T0 + 10))
    outbox.pick(lambda heads: heads.hurry("cloud", T0, 0, heads.newest()) and None)
    assert [e.ready_at - T0 for e in outbox.list()] == [0, 10]


@given(st.floats(0, 2 * LONGEST_S), st.floats(0, 1e9), st.floats(0, 1e9))
def test_what_has_waited_long_is_spread_over_longer(spread_s, one_s, other_s):
    """Never over less than the spread, nor over more than an hour unless that is more, and over no less after longer."""
    less, more = (spread_for(spread_s, age_s) for age_s in sorted((one_s, other_s)))
    assert spread_s <= less <= more <= max(LONGEST_S, spread_s)
    assert spread_for(spread_s, 0) == spread_s
    assert spread_for(0, one_s) == 0
    assert spread_for(1, 100) == TIMES * 100


@given(st.integers(1, 2000), st.sampled_from([0.0, 0.5, 60.0, 600.0]))
def test_waits_grow(attempts, spread_s):
    """From a second to a minute, or as long as what it is spread over where that is longer; by chance, from nothing on."""
    usual = min(60.0, 2.0 ** min(attempts - 1, 6))
    assert longest(attempts, spread_s) == max(usual, spread_s)
    assert 0 <= backoff(attempts, spread_s) <= longest(attempts, spread_s)
    assert longest(attempts) == usual


@pytest.mark.usefixtures("whole")
def test_deliveries_that_fail_wait_for_the_spread(make, deliver):
    """As long as it; or some times as long as they have waited, up to an hour."""
    outbox = make(spread_s=60.0)

    def send(waiting):
        raise Unreachable("away")

    for name, age_s in (("a", 0), ("b", 100), ("c", 86400)):
        outbox.put(request(name, queued_at=T0 - age_s))
    deliver(outbox, send)
    until(lambda: [e.attempts for e in outbox.list()] == [1, 1, 1])
    assert [e.ready_at - T0 for e in outbox.list()] == [60, 100 * TIMES, LONGEST_S]


def test_a_wake_is_spread(make, deliver, monkeypatch, ahead, whole):
    """An endpoint that is back is not asked by all at the same time; one that only this device could not reach is, at once."""
    monkeypatch.setattr("edgeroute.stores.outbox.delivery_and_callbacks.HURRY_S", 0.0)
    outbox, tried = make(spread_s=AGES), Queue()

    def send(waiting):
        tried.put(waiting.id)
        if tried.qsize() < 3:
            raise Unreachable("away")
        return sure()

    outbox.put(request("a"))
    delivery = deliver(outbox, send)
    until(lambda: outbox.list()[0].attempts == 1)
    delivery.wake()
    looks(outbox, monkeypatch)
    assert tried.qsize() == 1
    ahead[0] += AGES
    until(lambda: outbox.list()[0].attempts == 2)
    delivery.wake()
    looks(outbox, monkeypatch)
    assert tried.qsize() == 2
    delivery.wake(now=True)
    until(lambda: ids(outbox, "answered") == ["a"])


def test_a_wake_goes_by_the_oldest(make, deliver, monkeypatch, ahead, whole):
    """What waits is sent after some times as long as the oldest of it has waited; what is gone does not count."""
    monkeypatch.setattr("edgeroute.stores.outbox.delivery_and_callbacks.HURRY_S", 0.0)
    outbox, tried = make(spread_s=60.0), Queue()

    def send(waiting):
        tried.put(waiting.id)
        if tried.qsize() < 3:
            raise Unreachable("away")
        return sure()

    outbox.put(request("a", queued_at=T0 - 100))
    outbox.put(request("b"))
    delivery = deliver(outbox, send)
    until(lambda: [e.attempts for e in outbox.list()] == [1, 1])
    looks(outbox, monkeypatch)
    delivery.wake()
    ahead[0] += 100 * TIMES - 60  # less the seconds that this test itself may take
    looks(outbox, monkeypatch)
    assert tried.qsize() == 2
    ahead[0] += 60
    until(lambda: len(ids(outbox, "answered")) == 2)
    looks(outbox, monkeypatch)
    outbox.put(request("c", ready_at=T0 + 1))
    looks(outbox, monkeypatch)
    delivery.wake()
    assert delivery.hurry_at < monotonic() + ahead[0] + 100


@pytest.mark.usefixtures("whole")
def test_a_new_run_does_not_wait(make, deliver):
    """What an earlier one put off is sent at once."""
    outbox = make(spread_s=AGES)
    outbox.put(request("a", error="away"))
    deliver(outbox, lambda w: sure())
    until(lambda: ids(outbox, "answered") == ["a"])


@pytest.mark.usefixtures("whole")
def test_what_fails_while_delivery_begins_waits(make, monkeypatch):
    """Its first look cuts the waits of older entries short, and of no later ones, however late it comes."""
    outbox, sent = make(spread_s=AGES), []
    outbox.put(request("old", error="away"))
    delivery = Delivery(outbox, lambda w: sent.append(w.id) or sure(), **FAST)
    outbox.put(request("a", error="away"))
    outbox.put(request("b", error="away"))
    delivery.start()
    until(lambda: ids(outbox, "answered") == ["old"])
    looks(outbox, monkeypatch)
    assert sent == ["old"]
    delivery.wake(now=True)
    until(lambda: ids(outbox, "waiting") == [])
    delivery.close(30)
    assert sorted(sent) == ["a", "b", "old"]


@pytest.mark.usefixtures("whole")
def test_a_wake_before_delivery_begins_is_for_all(make):
    """The device is online again: what was queued since delivery was made is sent at once too."""
    outbox = make(spread_s=AGES)
    delivery = Delivery(outbox, lambda w: sure(), **FAST)
    outbox.put(request("a", error="away"))
    delivery.wake(now=True)
    delivery.start()
    until(lambda: ids(outbox, "answered") == ["a"])
    delivery.close(30)


def test_one_that_is_held_waits_as_long_as_it_says(make, deliver, monkeypatch, ahead):
    """Beside the pause that any has; a wake cuts both short."""
    monkeypatch.setattr("edgeroute.stores.outbox.delivery_and_callbacks.HURRY_S", 0.0)
    outbox, tried, paused, nudge = make(), Queue(), Queue(), LockedWorker.nudge

    def nudged(loop):
        if threading.current_thread().name == "edgeroute-delivery":  # what was tried has ended, and its pause has begun
            paused.put(1)
        nudge(loop)

    monkeypatch.setattr(LockedWorker, "nudge", nudged)

    def send(waiting):
        tried.put(waiting.id)
        if tried.qsize() < 4:
            held = Held("breaker")
            held.retry_after_s = AGES if tried.qsize() > 1 else None
            raise held
        return sure()

    outbox.put(request("a"))
    delivery = deliver(outbox, send)
    until(lambda: tried.qsize() == paused.qsize() == 2)  # else its pause may begin when the time is ahead
    looks(outbox, monkeypatch)
    assert tried.qsize() == 2
    ahead[0] += AGES
    until(lambda: tried.qsize() == paused.qsize() == 3)
    looks(outbox, monkeypatch)
    assert tried.qsize() == 3
    delivery.wake()
    until(lambda: ids(outbox, "answered") == ["a"])


def test_a_request_that_ends_during_a_scan_is_not_taken_for_due(make, deliver, monkeypatch):
    """The scan saw that its lane is not paused; by the time it sees the request, that is in flight no more."""
    outbox, tried, scanned, ended = make(), [], threading.Event(), threading.Event()
    real = Heads.ready

    def ready(heads, *args):
        if tried:
            scanned.set()
            assert ended.wait(LONG)
        return real(heads, *args)

    def send(waiting):
        tried.append(waiting.id)
        assert scanned.wait(LONG)
        held = Held("breaker")
        held.retry_after_s = AGES
        raise held

    monkeypatch.setattr(Heads, "ready", ready)
    delivery = deliver(outbox, send)
    nudge = delivery.loop.nudge
    monkeypatch.setattr(delivery.loop, "nudge", lambda: (tried and ended.set(), nudge()))
    outbox.put(request("a"))
    until(ended.is_set)
    looks(outbox, monkeypatch)
    assert tried == ["a"]


def test_a_server_says_when_to_come_back(outbox, deliver, no_wait):
    """Retry-After is kept to."""

    def send(waiting):
        raise Refused("busy", status=429, retry_after_s=120.0)

    outbox.put(request("a"))
    deliver(outbox, send)
    until(lambda: outbox.list()[0].attempts)
    assert outbox.list()[0].ready_at == T0 + 120


def test_the_rate_is_bounded(make, deliver, monkeypatch):
    """After a reconnect not more are begun than the rate allows: each a spacing after the one before, by delivery's own clock."""
    from edgeroute.stores.outbox import delivery_and_callbacks as module

    outbox, at, looked, began = make(rate_per_s=0.5, parallel=8), [1000.0], [], []
    monkeypatch.setattr(module, "monotonic", lambda: (looked.append(1), at[0])[1])
    for n in range(5):
        outbox.put(request(str(n)))
    delivery = deliver(outbox, lambda w: began.append(w.id) or sure())
    for n in range(1, 6):
        until(lambda n=n: len(ids(outbox, "answered")) == n)
        at[0] += 1.9
        before, _ = len(looked), delivery.loop.nudge()
        until(lambda before=before: len(looked) > before + 2)  # one look may have begun with the time of before
        assert len(began) == n
        at[0] += 0.2
        delivery.loop.nudge()


def test_an_answer_by_another_way(outbox, deliver, call):
    """A reply that comes after its deadline counts, once, and the request is not sent."""
    told = Queue()
    outbox.put(request("a", ready_at=T0 + 60))
    outbox.put(request("b", ready_at=T0 + 60))
    deliver(outbox, lambda w: pytest.fail("it was sent"))
    assert outbox.answer("a", sure("late"))
    assert not outbox.answer("a", sure("later"))
    assert outbox.withdraw("b")
    assert not outbox.withdraw("a")
    call(outbox, told.put)
    assert told.get(timeout=LONG).value == "late"
    until(lambda: ids(outbox) == [])
    assert not outbox.answer("a", sure("again"))


def test_close_leaves_what_waits(make):
    """After a close nothing is begun; what was under way still has its answer kept, and only then another may deliver."""
    outbox, gate, begun = make(parallel=1), threading.Event(), Queue()

    def send(waiting):
        begun.put(waiting.id)
        gate.wait()
        return sure()

    delivery = Delivery(outbox, send, **FAST)
    delivery.start()
    for name in "ab":
        outbox.put(request(name))
    assert begun.get(timeout=LONG) == "a"
    delivery.close(0.2)
    with (outbox.path.parent / "outbox.db.deliver").open() as place:
        with pytest.raises(BlockingIOError):
            fcntl.flock(place, fcntl.LOCK_EX | fcntl.LOCK_NB)
        gate.set()
        fcntl.flock(place, fcntl.LOCK_EX)
    assert ids(outbox, "answered") == ["a"]
    assert ids(outbox, "waiting") == ["b"]
    delivery.wake()
    delivery.close()
    assert begun.empty()


# --------------------------------------------------------------------------------------------------------- late answers


def answered(outbox, *names, target="cloud"):
    for name in names:
        outbox.put(request(name, target=target))
        outbox.answer(name, sure(name))


def rows(outbox, statement):
    with contextlib.closing(sqlite3.connect(outbox.path)) as connection:
        return connection.execute(statement).fetchall()


def test_effects_and_the_mark_are_one(outbox, call, no_wait):
    """What a callback wrote before it raised is undone; it is called again, and then it counts."""
    tries = []

    def f(late, tx):
        tx.execute("CREATE TABLE IF NOT EXISTS effects (id TEXT, n INTEGER)")
        tx.execute("INSERT INTO effects VALUES (?, 1)", (late.id,))
        tx.executemany("INSERT INTO effects VALUES (:id, :n)", [{"id": late.id, "n": 2}])
        assert tx.execute("SELECT count(*) FROM effects WHERE id = ?", (late.id,)) == [(2,)]
        tries.append(late.id)
        if len(tries) < 3:
            raise OSError("the app's own trouble")

    answered(outbox, "a")
    call(outbox, f)
    until(lambda: outbox.counts()["called"] == 1)
    assert tries == ["a"] * 3
    assert rows(outbox, "SELECT * FROM effects") == [("a", 1), ("a", 2)]


@pytest.mark.parametrize(
    "sql",
    [
        "COMMIT", "ROLLBACK", "END", "BEGIN", "SAVEPOINT s", "RELEASE s", "ATTACH ':memory:' AS other", "DETACH other", "PRAGMA user_version = 7",
        "INSERT INTO outbox_done (id) VALUES ('z')", "UPDATE Outbox_Entries SET state = 'dead'", "DELETE FROM outbox_counts", "DROP TABLE outbox_bodies",
        "ALTER TABLE outbox_answers RENAME TO mine", "CREATE INDEX mine ON outbox_entries (id)", "DROP TRIGGER outbox_in",
        "CREATE TRIGGER mine AFTER DELETE ON outbox_entries BEGIN SELECT 1; END", "CREATE TEMP TRIGGER mine AFTER DELETE ON outbox_entries BEGIN SELECT 1; END",
        "INSERT INTO through VALUES (1)",
    ],
)  # fmt: skip
def test_what_a_callback_may_not_do(outbox, sql):
    """Ending the transaction, other files and the outbox's own tables are refused, also by way of a trigger."""
    from edgeroute.stores.outbox.sqlite_queue import Tx

    answered(outbox, "a")

    def effect(late, connection):
        connection.execute("CREATE TABLE through (n)")
        connection.execute("CREATE TRIGGER t AFTER INSERT ON through BEGIN DELETE FROM outbox_entries; END")
        tx = Tx(connection)
        with pytest.raises(PolicyError, match="cannot end its transaction"):
            tx.execute(sql)
        with pytest.raises(sqlite3.OperationalError, match="no such table"):
            tx.execute("SELECT * FROM nowhere")
        assert tx.execute("SELECT id, state FROM outbox_entries") == [("a", "answered")], "reading is free"
        tx.execute("CREATE TABLE IF NOT EXISTS mine (n)")

    assert outbox.settle("a", effect)
    assert rows(outbox, "SELECT count(*) FROM mine") == [(0,)]
    assert outbox.put(request("after")).stored


def called_by_hand(outbox, f):
    """Callbacks whose steps the test takes, as no thread does."""
    callbacks = Callbacks(outbox)
    callbacks.close()
    callbacks.register(f)
    return callbacks


def test_a_transaction_that_an_error_has_ended_takes_no_more(outbox):
    """After an automatic rollback nothing is written outside the transaction, and the answer is not marked."""

    def f(late, tx):
        tx.execute("CREATE TABLE mine (n INTEGER PRIMARY KEY)")
        tx.execute("INSERT INTO mine VALUES (1)")
        with pytest.raises(sqlite3.IntegrityError):
            tx.execute("INSERT OR ROLLBACK INTO mine VALUES (1)")
        with pytest.raises(StoreError, match="over"):
            tx.execute("CREATE TABLE mine (n)")

    answered(outbox, "a")
    with pytest.raises(StoreError, match="rolled back"):
        called_by_hand(outbox, f).step()
    assert ids(outbox, "answered") == ["a"]
    assert rows(outbox, "SELECT name FROM sqlite_master WHERE name = 'mine'") == []


def test_a_transaction_ends_with_its_callback(outbox, call):
    """A tx that was kept is of no use later."""
    kept = Queue()
    answered(outbox, "a")
    call(outbox, lambda late, tx: kept.put(tx))
    tx = kept.get(timeout=LONG)
    until(lambda: outbox.counts()["called"])
    with pytest.raises(StoreError, match="over"):
        tx.execute("SELECT 1")


def test_a_callback_may_put(outbox, call, no_wait):
    """A request that a callback puts is part of its transaction: called twice, it is still one."""
    tries = count()

    def f(late, tx):
        if late.id == "a":
            outbox.put(request(f"next-{next(tries)}", ready_at=T0 + 99))
            if outbox.list()[-1].id == "next-0":
                raise RuntimeError

    answered(outbox, "a")
    call(outbox, f)
    until(lambda: outbox.counts()["called"] == 1)
    assert ids(outbox) == ["next-1"]


@pytest.mark.parametrize(("ordered", "order"), [(False, ["b", "c", "a"]), (True, ["c", "a", "b"])])
def test_a_callback_that_raises_is_called_again(make, call, monkeypatch, caplog, ordered, order):
    """It is logged and repeated with a pause; other answers go on, of the same target only if order was not asked for."""
    monkeypatch.setattr("edgeroute.stores.outbox.delivery_and_callbacks.backoff", lambda *_: 0.3)
    outbox, told, failed = make(clock=now, ordered=ordered), [], []

    def f(late):
        if late.id == "a" and len(failed) < 2:
            failed.append(late.id)
            raise SystemExit
        told.append(late.id)

    answered(outbox, "a", "b")
    answered(outbox, "c", target="other")
    call(outbox, f)
    until(lambda: outbox.counts()["called"] == 3)
    assert told == order
    assert caplog.text.count("failed at a") == 2


def test_ordered_answers_wait_for_those_before(make, call):
    """In order means also: not before the answer to an earlier request that still waits."""
    outbox, told = make(ordered=True), Queue()
    outbox.put(request("a"))
    answered(outbox, "b")
    answered(outbox, "c", target="other")
    call(outbox, told.put)
    assert told.get(timeout=LONG).id == "c"
    outbox.answer("a", sure())
    assert [told.get(timeout=LONG).id, told.get(timeout=LONG).id] == ["a", "b"]


def test_a_mark_that_fails_is_no_second_call(outbox, call, monkeypatch):
    """Without a transaction, if only the note fails, only the note is repeated."""
    told, real, broken = [], outbox.settle, [StoreError("full"), StoreError("full")]

    def settle(name, effect=None):
        if broken:
            raise broken.pop()
        return real(name, effect)

    monkeypatch.setattr(outbox, "settle", settle)
    answered(outbox, "a")
    call(outbox, lambda late: told.append(late.id))
    until(lambda: outbox.counts()["called"] == 1)
    assert told == ["a"]


class Method:
    """Callbacks as methods."""

    def one(self, late):
        """A callback."""

    def two(self, late, tx):
        """A callback."""

    async def __call__(self, late):
        """No callback."""


@pytest.mark.parametrize(
    ("f", "takes_tx"),
    [
        (lambda late: 0, False), (lambda late, tx: 0, True), (lambda late, connection: 0, True), (lambda late, tx=None: 0, True),
        (lambda late, log=print: 0, False), (lambda *args: 0, False), (lambda late, **more: 0, False), (Method().one, False), (Method().two, True),
        (partial(lambda a, late, tx: 0, 1), True), (Queue().put, False), ([].append, False), (print, False),
    ],
)  # fmt: skip
def test_a_signature_decides(outbox, monkeypatch, f, takes_tx):
    """A second parameter that is required, or called tx, is given the transaction."""
    answered(outbox, "a")
    settle, effects = outbox.settle, []
    monkeypatch.setattr(outbox, "settle", lambda name, *effect: effects.append(len(effect)) or settle(name, *effect))
    called_by_hand(outbox, f).step()
    assert (effects, outbox.counts()["called"]) == ([int(takes_tx)], 1)


async def coroutine(late):
    """No callback."""


def generator(late):
    """No callback: a call of it runs nothing."""
    yield


async def pieces(late):
    """Likewise."""
    yield


@pytest.mark.parametrize(
    ("f", "why"),
    [
        (coroutine, "plain function"), (partial(coroutine), "plain function"), (Method(), "plain function"), (lambda: 0, "one argument"),
        (generator, "plain function"), (partial(generator), "plain function"), (pieces, "plain function"), (lambda a, b, c: 0, "one argument"), (lambda late, *, key: 0, "one argument"),
    ],
)  # fmt: skip
def test_what_is_no_callback(outbox, f, why):
    """A coroutine or generator function, or one that cannot be called so, is refused at once."""
    with pytest.raises(PolicyError, match=why):
        Callbacks(outbox).register(f)


@pytest.mark.parametrize("function", [coroutine, generator, pieces])
def test_a_coroutine_in_disguise(outbox, call, caplog, function):
    """A function that returns a coroutine or a generator has not handled the answer: that is an error, and the answer stays."""
    answered(outbox, "a")
    call(outbox, lambda late: [function(late)][0])
    until(lambda: "which nothing runs" in caplog.text)
    assert ids(outbox, "answered") == ["a"]


# ------------------------------------------------------------------------------------------------------------ processes


PROCESS = """
import os, sys, threading
from edgeroute import Prediction
from edgeroute.stores.outbox import *
from edgeroute.stores.sqlite_file_and_key_values import Database
Database.__init__.__kwdefaults__["busy_s"] = 120.0  # a machine may be so busy that the others' transactions outlast any other wait
outbox = Outbox(sys.argv[1], parallel=1, rate_per_s=1e6)
def send(waiting):
    print(waiting.id, flush=True)
    if waiting.id.startswith("stuck"):
        threading.Event().wait()
    return Prediction(os.getpid(), 1.0, None)
delivery = Delivery(outbox, send, poll_s=0.02)
if sys.argv[2:]:
    for n in range(int(sys.argv[3])):
        outbox.put(Waiting(f"{sys.argv[2]}{n}", "cloud", "call", b"x"))
    print("put", flush=True)
else:
    delivery.start()
sys.stdin.read()
"""


@contextlib.contextmanager
def process(path, *arguments):
    command = [sys.executable, "-c", PROCESS, str(path), *map(str, arguments)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as child:
        try:
            yield child
        finally:
            child.kill()


def test_two_processes_put(make, tmp_path):
    """Several processes that begin one file together lose nothing, and the same ids are stored once."""
    path = tmp_path / "o.db"
    with process(path, "a", 100) as one, process(path, "b", 100) as two, process(path, "a", 100) as three:
        assert [p.stdout.readline() for p in (one, two, three)] == ["put\n"] * 3
    assert sorted(ids(make(path, clock=now))) == sorted(f"{p}{n}" for p in "ab" for n in range(100))


def test_one_process_delivers_and_another_takes_over(tmp_path):
    """While one process has the place the other sends nothing; after kill -9 it takes over, and sends again what was under way."""
    outbox = Outbox(tmp_path / "o.db")
    outbox.put(request("stuck"))
    with process(outbox.path) as one:
        assert one.stdout.readline() == "stuck\n"
        with process(outbox.path) as two:
            with pytest.raises(BlockingIOError), (tmp_path / "o.db.deliver").open() as place:
                fcntl.flock(place, fcntl.LOCK_EX | fcntl.LOCK_NB)
            one.send_signal(signal.SIGKILL)
            assert two.stdout.readline() == "stuck\n"
            assert one.stdout.readline() == ""
    assert ids(outbox, "waiting") == ["stuck"]
    outbox.close()


def forked(work):
    """Runs `work` in a forked child -> what waits for its end and gives its status: 0 if `work` was true."""
    child = os.fork()
    if not child:
        code = 1
        try:
            code = 0 if work() else 1
        finally:
            os._exit(code)
    return lambda: os.waitpid(child, 0)[1]


@FORKS
def test_a_fork(make, deliver):
    """A child puts into the parent's outbox, sends nothing while the parent has the place, and never gives that away."""
    outbox, sent = make(), Queue()
    delivery = deliver(outbox, lambda w: sent.put(w.id) or sure())
    outbox.put(request("before"))
    assert sent.get(timeout=LONG) == "before"

    def work():
        alone = [each.name for each in threading.enumerate()] == [threading.current_thread().name]
        return alone and not delivery.loop.lock.held and outbox.put(request("child")).stored

    assert forked(work)() == 0
    assert sent.get(timeout=LONG) == "child"
    with (outbox.path.parent / "outbox.db.deliver").open() as place, pytest.raises(BlockingIOError):
        fcntl.flock(place, fcntl.LOCK_EX | fcntl.LOCK_NB)
    until(lambda: sorted(ids(outbox, "answered")) == ["before", "child"])


@FORKS
def test_a_forked_child_that_outlives_its_parents_delivery(make):
    """A child keeps no lock of its parent's: once that closes, another may deliver, and so may the child when it is used."""
    outbox, sent = make(), Queue()
    delivery = Delivery(outbox, lambda w: sent.put(w.id) or sure(), **FAST)
    delivery.start()
    outbox.put(request("a"))
    assert sent.get(timeout=LONG) == "a"
    here, there = socket.socketpair()

    def work():
        here.close()
        there.send(b"up")
        there.recv(1)
        outbox.put(request("b"))
        return sent.get(timeout=LONG) == "b" and (until(lambda: "b" in ids(outbox, "answered")) or True)

    ended = forked(work)
    there.close()
    assert here.recv(2) == b"up"
    delivery.close(30)
    with (outbox.path.parent / "outbox.db.deliver").open() as place:
        fcntl.flock(place, fcntl.LOCK_EX | fcntl.LOCK_NB)
    here.close()
    assert ended() == 0
    assert sorted(ids(outbox, "answered")) == ["a", "b"]
