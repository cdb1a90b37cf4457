"""kill -9 at any moment, and links that break: nothing is lost, no effect comes twice, order is kept where asked.

`EDGEROUTE_OUTBOX_REQUESTS` and `EDGEROUTE_OUTBOX_KILLS` make the run larger.
"""

from __future__ import annotations

import contextlib
import os
import random
import sqlite3
import subprocess
import sys
import threading
from collections import Counter
from contextlib import closing
from queue import SimpleQueue

import pytest

from edgeroute import Outbox
from edgeroute.testing import CannedServer, Relay, http_reply

pytestmark = pytest.mark.slow

REQUESTS = int(os.environ.get("EDGEROUTE_OUTBOX_REQUESTS", "300"))
KILLS = int(os.environ.get("EDGEROUTE_OUTBOX_KILLS", "6"))
PARALLEL = 2

PROGRAM = """
import contextlib, http.client, sys, threading
from edgeroute.core.walk import Prediction
from edgeroute.errors import StoreError, Unreachable
from edgeroute.stores.outbox import Callbacks, Delivery, Outbox, Waiting

path, port, name, first, last, how = sys.argv[1:]
ordered, within = "ordered" in how, "within" in how

def say(*words):
    sys.stdout.write(" ".join(words) + "\\n")
    sys.stdout.flush()

def send(waiting):
    connection = http.client.HTTPConnection("127.0.0.1", int(port), timeout=30)
    try:
        connection.request(waiting.method, waiting.path, waiting.body, {"Idempotency-Key": waiting.id})
        value = connection.getresponse().read().decode()
    except (OSError, http.client.HTTPException) as e:
        say("failed", waiting.id)
        raise Unreachable(str(e)) from e
    finally:
        connection.close()
    say("sent", waiting.id)
    return Prediction(value, 0.9, None)

def within_one(late, tx):
    tx.execute("CREATE TABLE IF NOT EXISTS effects (n INTEGER PRIMARY KEY, id TEXT, value TEXT)")
    tx.execute("INSERT INTO effects (id, value) VALUES (?, ?)", (late.id, late.value))
    say("effect", late.id)

def told(late):
    say("called", late.id)

def empty(outbox):
    with contextlib.suppress(StoreError):
        return not outbox.list()

import edgeroute.stores.outbox.delivery_and_callbacks
edgeroute.stores.outbox.delivery_and_callbacks.backoff = lambda *_: 0.01
outbox = Outbox(path, ordered=ordered, parallel=PARALLEL, rate_per_s=1e6)
callbacks = Callbacks(outbox, poll_s=0.05)
callbacks.register(within_one if within else told)
delivery = Delivery(outbox, send, poll_s=0.05)
delivery.start()
for n in range(int(first), int(last)):
    stored = False
    while not stored:  # while another process writes without a pause, a put may give up waiting; then it says so
        with contextlib.suppress(StoreError):
            stored = outbox.put(Waiting(f"{name}{n:06}", f"cloud{n % 2}", "call", b"x" * 300, "POST", "/")).stored
    say("put", str(n))
while not empty(outbox):
    threading.Event().wait(0.02)
delivery.close(); callbacks.close(); outbox.close()
say("empty")
""".replace("PARALLEL", str(PARALLEL))


class Client:
    """A process that puts requests, delivers what is due, and says each step: a kill comes right after one of them."""

    def __init__(self, path, port, name, last, how, steps):
        self.arguments, self.last, self.how, self.steps = (str(path), str(port), name), last, how, steps
        self.put, self.empty, self.called = 0, False, Counter()

    def begin(self):
        """Goes on after the last put that was said to be stored."""
        command = [sys.executable, "-c", PROGRAM, *self.arguments, str(self.put), str(self.last), self.how]
        self.process, self.ended = subprocess.Popen(command, stdout=subprocess.PIPE, text=True), False
        self.reader = threading.Thread(target=self._read)
        self.reader.start()

    def _read(self):
        with self.process.stdout as lines:
            for line in lines:
                word, *rest = line.split()
                if word == "put" and line.endswith("\n"):
                    self.put = int(rest[0]) + 1
                elif word == "called":
                    self.called[rest[0]] += 1
                self.empty |= word == "empty"
                self.steps.put(line)
        self.ended = True
        self.steps.put("ended")

    def kill(self):
        """kill -9."""
        self.process.kill()
        self.end()

    def end(self):
        """Waits for its end -> its status."""
        self.reader.join()
        return self.process.wait()


def follow(clients, steps, lines):
    """Waits for so many steps of any client, or the end of all."""
    for _ in range(lines):
        if all(client.ended for client in clients) and steps.empty():
            return
        steps.get()


@pytest.fixture
def server():
    """Answers each request with its own id. -> the server, whose `requests` are what came in, and a link to it."""

    def reply(request):
        return http_reply(key(request).encode())

    with CannedServer(reply, close=True) as server, Relay("127.0.0.1", server.port) as relay:
        yield server, relay


def key(request):
    """The id that a request was sent with."""
    return next(line.split(b": ")[1] for line in request.split(b"\r\n") if line.lower().startswith(b"idempotency-key")).decode()


def run(clients, steps, relay, chance):
    """Kills one of the clients at random steps, cuts the link now and then, and lets all of it come to its end."""
    with contextlib.ExitStack() as stack:
        for client in clients:
            client.begin()
            stack.callback(client.kill)
        most = 3 * REQUESTS // KILLS
        for _ in range(KILLS):
            relay.reset_after = chance.choice([None, 0, 20])
            follow(clients, steps, chance.randrange(most // 4))
            relay.reset_after = None
            follow(clients, steps, chance.randrange(most))
            client = chance.choice(clients)
            client.kill()
            client.begin()
        for client in clients:
            assert client.end() == 0
            assert client.empty


def effects(path):
    with closing(sqlite3.connect(path)) as connection:
        return connection.execute("SELECT id, value FROM effects ORDER BY n").fetchall()


@pytest.mark.parametrize("how", ["within", "within ordered", "after"])
def test_kill_9_at_any_moment(tmp_path, server, how):
    """Every request is answered; effects in the callback's transaction come once each, and in order where that is asked."""
    at, relay = server
    steps = SimpleQueue()
    client = Client(tmp_path / "o.db", relay.port, "r", REQUESTS, how, steps)
    run([client], steps, relay, random.Random(how))
    names = [f"r{n:06}" for n in range(REQUESTS)]
    if "within" in how:
        found = effects(tmp_path / "o.db")
        assert sorted(found) == [(n, n) for n in names], "none lost, none twice, each with its own answer"
        if "ordered" in how:
            for odd in (0, 1):
                assert [n for n, _ in found if int(n[1:]) % 2 == odd] == names[odd::2]
    else:
        assert sorted(client.called) == names
        assert client.called.total() - REQUESTS <= KILLS, "a second call is for the one that was under way at a kill"
    sent = Counter(map(key, at.requests))
    assert sorted(sent) == names
    with closing(Outbox(tmp_path / "o.db")) as outbox:
        counts = outbox.counts()
    assert (counts["stored"], counts["delivered"], counts["called"]) == (REQUESTS,) * 3


def test_two_processes_one_outbox(tmp_path, server):
    """Two processes put into one outbox, either is killed now and then, and still every effect comes once."""
    _, relay = server
    steps = SimpleQueue()
    clients = [Client(tmp_path / "o.db", relay.port, name, REQUESTS // 2, "within", steps) for name in "ab"]
    run(clients, steps, relay, random.Random(7))
    names = [f"{name}{n:06}" for name in "ab" for n in range(REQUESTS // 2)]
    assert sorted(effects(tmp_path / "o.db")) == [(n, n) for n in names]
