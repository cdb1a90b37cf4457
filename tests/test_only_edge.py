"""Mode only_edge, of the policy or of a rule: nothing leaves by itself either. What waits goes on waiting, and goes later."""

import json
import os
import sys
import threading
from pathlib import Path

import pytest
import routes
from both import CALLS, DOWN, GOOD, LONG, Tasks, Threads, ask, came, makes, sure, unsure
from live import until
from netns import Namespace, needs_namespaces

import edgeroute
from edgeroute import Audit, Cache, Egress, Instrument, MayNotLeave, Outbox, PlainJson, PolicyError, Reading, Rule
from edgeroute.core import endpoint_breaker_and_limits as admission
from edgeroute.core.endpoint_breaker_and_limits import FAULTS
from edgeroute.router.audits_and_hidden_trials import AuditCalls
from edgeroute.router.offline_queue import OfflineQueue
from edgeroute.stores.outbox.delivery_and_callbacks import Delivery
from edgeroute.testing import CannedServer

LOW, HIGH = Reading(0.1), Reading(0.9)
LOW_RULE = [Rule("battery", "only_edge", 0.5)]


class Sends:
    """Counts the deliveries that are tried."""

    def __init__(self, patch):
        self._tried, self._left = threading.Condition(), {}
        real = OfflineQueue.send

        def send(queue, entry):
            try:
                return real(queue, entry)
            finally:
                with self._tried:
                    self._left[entry.id] = self._left.get(entry.id, 0) + 1
                    self._tried.notify_all()

        patch.setattr(OfflineQueue, "send", send)

    def count(self):
        """How many were tried."""
        with self._tried:
            return sum(self._left.values())

    def wait(self, until):
        """Until so many were tried."""
        with self._tried:
            assert self._tried.wait_for(lambda: sum(self._left.values()) >= until, LONG)


@pytest.fixture
def sends(monkeypatch):
    monkeypatch.setitem(Delivery.__init__.__kwdefaults__, "poll_s", 0.02)
    return Sends(monkeypatch)


pytestmark = pytest.mark.usefixtures("leaves_nothing")
make = makes(threshold=0.8)


@pytest.fixture
def replies():
    """What `server` replies: the last of these."""
    return [DOWN]


@pytest.fixture
def server(make, replies):
    """What the requests in `box` wait for."""
    with CannedServer(lambda _: replies[-1]) as server:
        yield server


@pytest.fixture
def box(make, server, replies, tmp_path):
    """An outbox with three requests that wait for `server`, which is well again and has had none yet."""

    def box():
        return Outbox(tmp_path / "outbox.db", spread_s=0.0, rate_per_s=1000)

    router = make(unsure, PlainJson(server.url, retries=0), offline="queue", outbox=box())
    for i in range(3):
        assert routes.queued(router.infer(f"private-{i}")) == routes.WAITING
    router.close()
    came(server)
    replies.append(GOOD)
    server.connections = 0
    server.requests.clear()
    return box


@pytest.mark.parametrize(
    "policy",
    [
        {"mode": "only_edge"},
        {"rules": LOW_RULE, "sensors": lambda: LOW},
        {"rules": LOW_RULE, "mode": "only_edge", "sensors": lambda: HIGH},
    ],
)
def test_the_outbox_waits(make, box, sends, policy, server):
    """Its entries are tried, held, and neither counted as failed nor lost; with another mode they go."""
    outbox = box()
    before = [("waiting", entry.attempts) for entry in outbox.list()]
    router = make(unsure, PlainJson(server.url), offline="queue", outbox=outbox, **policy)
    router.infer(1)
    sends.wait(sends.count() + 6)
    assert server.connections == 0
    assert [(entry.state, entry.attempts) for entry in outbox.list()] == before
    router.close()
    late = threading.Semaphore(0)
    router = make(unsure, PlainJson(server.url), offline="queue", outbox=box())
    router.on_late(lambda _: late.release())
    for _ in range(3):
        assert late.acquire(timeout=LONG)


def test_a_battery_that_falls_while_nobody_asks(make, box, sends, monkeypatch, server):
    """Without a request the sensors are read for the outbox: below the limit it waits, above it again it goes on."""
    monkeypatch.setattr("edgeroute.observe.plan_facts_energy_rules.READS_S", 0.0)
    reading = [LOW]
    outbox = box()
    router = make(unsure, PlainJson(server.url), offline="queue", outbox=outbox, rules=LOW_RULE, sensors=lambda: reading[0])
    late = threading.Semaphore(0)
    router.on_late(lambda _: late.release())
    sends.wait(sends.count() + 6)
    assert (server.connections, outbox.counts()["waiting"]) == (0, 3)
    reading[0] = HIGH
    for _ in range(3):
        assert late.acquire(timeout=LONG)
    assert len(server.requests) == 3


@pytest.mark.parametrize("policy", [{"mode": "only_edge"}, {"rules": LOW_RULE}])
def test_probes_wait_for_another_mode(make, policy, monkeypatch):
    """The link comes up while a breaker is open: nobody is probed."""
    monkeypatch.setattr(admission, "FIRST_S", 1e6)  # no probe is due by time, however slow the machine
    with CannedServer(GOOD) as server:
        reading = [LOW]
        router = make(unsure, PlainJson(server.url), sensors=lambda: reading[0], **policy)
        guard = router.engine.snapshot.clouds[0].guard
        for _ in range(FAULTS):
            guard.failed()
        router.engine.health.link_up()
        assert guard.state == "open"
        assert router.infer(1).source == "edge"
        assert server.connections == 0
        if "rules" not in policy:
            return
        reading[0] = HIGH
        router.engine.observer.read()
        router.engine.health.link_up()
        server.wait_for(lambda: server.requests)


def test_audits_wait_for_another_mode(make, monkeypatch):
    """A request that was planned just before the battery fell is not compared afterwards."""
    reading, asked, prepare = [HIGH], [], AuditCalls.prepare
    monkeypatch.setattr(AuditCalls, "prepare", lambda *args: asked.append(1) or prepare(*args))

    class Falling(Instrument):
        def request_began(self, began):  # it is planned by now
            if asked:
                reading[0] = LOW
                router.engine.observer.read()

    with CannedServer(GOOD) as server:
        options = {"rules": LOW_RULE, "sensors": lambda: reading[0], "audit": Audit(share=1.0), "instruments": [Falling()]}
        router = make(sure, PlainJson(server.url), **options)
        assert router.infer("before").source == "edge"
        server.wait_for(lambda: server.requests)
        assert router.infer("private").source == "edge"
        assert reading == [LOW]
        until(lambda: not router.engine.auditor.jobs.busy)
        assert (len(asked), len(server.requests)) == (1, 1)


def test_a_stale_answer_is_not_renewed(make):
    """A call that names another mode has what is in the cache, and what is past its time there is not renewed by itself."""
    reading = [HIGH]
    with CannedServer(GOOD) as server:
        cache = Cache(ttl_s=0.0, stale_while_revalidate_s=1000.0)
        router = make(unsure, PlainJson(server.url), rules=LOW_RULE, sensors=lambda: reading[0], cache=cache)
        assert router.infer(1, mode="prefer_edge").source == "cloud"
        reading[0] = LOW
        router.engine.observer.read()
        assert router.infer(1, mode="prefer_edge").source == "stale"
        assert router.infer(2, mode="prefer_edge").source == "cloud"
        router.close()
        assert len(server.requests) == 2


@pytest.mark.parametrize("policy", [{"mode": "only_edge"}, {"rules": LOW_RULE, "sensors": lambda: LOW}])
def test_check_pings_nobody(make, policy):
    """It says so, and all else that it says stands."""
    with CannedServer(GOOD) as server:
        router = make(unsure, PlainJson(server.url), **policy)
        found = router.wait(router.router.check()) if isinstance(router, Tasks) else router.check()
        assert found.ok
        assert "cloud: was not asked whether it is ready (only_edge" in str(found)
        assert server.connections == 0


def test_a_rule_holds_what_waits(make, box, sends, server):
    """A data class that may not leave any more: its entries become dead letters, and none is sent."""
    outbox, before = box(), sends.count()
    make(unsure, PlainJson(server.url), offline="queue", outbox=outbox, egress=Egress(never_leave=["medical"]))
    sends.wait(before + 3)
    assert server.connections == 0
    while outbox.counts()["dead"] < 3:
        assert not outbox.list("answered")


HELD = """
import asyncio, json, sys, threading
from edgeroute import AsyncRouter, Audit, Options, Outbox, PlainJson, Router, Rule
from edgeroute import Reading
from edgeroute.router.offline_queue import OfflineQueue
from edgeroute.stores.outbox.delivery_and_callbacks import Delivery

url, folder, kind, policy = json.loads(sys.argv[1])
Delivery.__init__.__kwdefaults__["poll_s"] = 0.02
tried, real = threading.Semaphore(0), OfflineQueue.send

def send(queue, entry):
    try:
        return real(queue, entry)
    finally:
        tried.release()

OfflineQueue.send = send
if "rules" in policy:
    policy = {"options": Options(rules=[Rule("battery", "only_edge", 0.5)], sensors=lambda: Reading(0.1))}
arguments = dict(
    edge=lambda x: ("edge", 0.9 if x % 2 else 0.1), cloud=PlainJson(url, retries=0), threshold=0.8, offline="queue",
    state=folder, outbox=Outbox(folder + "/outbox.db", spread_s=0.0), audit=Audit(share=1.0), **policy,
)

def work(router, infer, check):
    guard = router.engine.snapshot.clouds[0].guard
    if policy:
        for _ in range(3):
            guard.failed()
        router.engine.health.link_up()
    for i in range(50):
        infer(i)
        if not policy:
            break
    check()
    for _ in range(20):
        assert tried.acquire(timeout=120)
    print(json.dumps([router.engine.queue.outbox.counts()["waiting"], guard.state]))

if kind == "threads":
    with Router(**arguments) as router:
        work(router, router.infer, router.check)
else:
    router, loop = AsyncRouter(**arguments), asyncio.new_event_loop()
    work(router, lambda x: loop.run_until_complete(router.infer(x)), lambda: loop.run_until_complete(router.check()))
    loop.run_until_complete(router.close())
"""


@pytest.mark.slow
@needs_namespaces
@pytest.mark.parametrize("kind", ["threads", "asyncio"])
@pytest.mark.parametrize("policy", [{"mode": "only_edge"}, {"rules": True}], ids=["policy", "battery"])
def test_not_one_packet(kind, policy, tmp_path):
    """Entries wait, a breaker is open, the link comes up, every answer is to be audited, `check` is asked: nothing leaves."""
    with Namespace() as ns:
        here = str(Path(edgeroute.__file__).parents[1])
        environment = {"PATH": os.environ["PATH"], "PYTHONPATH": here, "PYTHONDONTWRITEBYTECODE": "1"}

        def run(policy):
            argv = [sys.executable, "-c", HELD, json.dumps([f"http://{ns.peer}:8123/answer", str(tmp_path), kind, policy])]
            return json.loads(ns.run(argv, env=environment, cwd="/", timeout=10 * LONG))

        waiting, _ = run({})  # the peer refuses: the request is queued, and tried again and again
        before = ns.packets()
        assert (waiting, before > 0) == (1, True)
        assert run(policy) == [1, "open"]
        assert ns.packets() == before


def test_such_a_rule_needs_an_edge():
    """Nobody can be kept at home without one."""
    with pytest.raises(PolicyError, match="only_edge"):
        Threads(cloud=lambda x: x, rules=LOW_RULE)


@pytest.mark.parametrize("way", ["calibrate", "evaluate"])
@pytest.mark.parametrize("how", ["mode", "rule"])
def test_nothing_is_calibrated_or_evaluated(way, how):
    """Both send every example, and neither has a mode of its own."""
    given = {"mode": "only_edge"} if how == "mode" else {"rules": LOW_RULE, "sensors": lambda: LOW}
    with CannedServer(GOOD) as server, Threads(unsure, PlainJson(server.url), threshold=0.8, **given) as router:
        labels = ["edge"] * 40
        with pytest.raises(MayNotLeave, match="the mode is only_edge"):
            router.evaluate(range(40), labels) if way == "evaluate" else router.calibrate(range(40), labels, max_loss=0.5)
        assert server.requests == []


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("kind", [Threads, Tasks])
@pytest.mark.parametrize(
    ("now", "options", "sent"),
    [
        ('mode = "only_edge"', {}, 1),
        ('mode = "only_edge"', {"mode": "prefer_cloud"}, 2),
        ('[egress]\nnever_leave = ["chat"]', {"data_class": "chat"}, 1),
        ('[egress]\nnever_leave = ["medical"]\nmay_leave = ["chat"]', {"data_class": "chat"}, 2),
        ('deadline = "60s"', {}, 2),
    ],
)
def test_a_retry_asks_the_policy_in_force(tmp_path, kind, call, now, options, sent):
    """A reload between two attempts withdraws the permit; a call with a mode of its own keeps it."""
    file, replies = tmp_path / "policy.toml", [GOOD, DOWN]

    def reply(_):
        if len(replies) > 1:
            file.write_text(f"{now}\n{settings}" if now[0] != "[" else f"{settings}\n{now}")
            router.reload()
        return replies.pop()

    with CannedServer(reply) as server:
        settings = f'threshold = 0.8\n[cloud]\nurl = "{server.url}"\nprotocol = "json"\nretries = 1\n'
        egress = '[egress]\nmay_leave = ["chat"]\n' if "data_class" in options else ""
        file.write_text(settings + egress)
        with kind.from_policy(file, edge=unsure) as router:
            answer = ask(router, call, 1, **options)
        assert (len(server.requests), answer.source) == (sent, "cloud" if sent == 2 else "edge")


@pytest.mark.parametrize("kind", [Threads, Tasks])
@pytest.mark.parametrize(
    ("now", "sent"),
    [('mode = "only_edge"\nrule = [{of = "battery", then = "prefer_cloud", enter = "20%"}]', 2), ('mode = "only_edge"', 1)],
)
def test_a_retry_leaves_by_a_rule_as_a_new_call_does(tmp_path, kind, now, sent):
    """The policy is reloaded to only_edge, which a rule in force overrides for all calls without a mode of their own."""
    file, replies = tmp_path / "policy.toml", [GOOD, DOWN]

    def reply(_):
        if len(replies) > 1:
            file.write_text(f"{now}\n{settings}")
            router.reload()
        return replies.pop()

    with CannedServer(reply) as server:
        settings = f'threshold = 0.8\n[cloud]\nurl = "{server.url}"\nprotocol = "json"\nretries = 1\n'
        file.write_text('rule = [{of = "battery", then = "only_edge", enter = "5%"}]\n' + settings)  # the sensors are read
        with kind.from_policy(file, edge=unsure, sensors=lambda: LOW) as router:
            assert router.infer(1).source == ("cloud" if sent == 2 else "edge")
        assert len(server.requests) == sent


def test_a_retry_of_an_audit_heeds_only_edge_whatever_the_call_asked_for(tmp_path):
    """The call chose its mode for itself: nobody waits for its audit, which the policy in force by then keeps."""
    file, replies = tmp_path / "policy.toml", [GOOD, DOWN]

    def reply(_):
        file.write_text('mode = "only_edge"\n' + settings)
        router.reload()
        return replies.pop()

    with CannedServer(reply) as server:
        settings = f'threshold = 0.8\n[audit]\nshare = "100%"\n[cloud]\nurl = "{server.url}"\nprotocol = "json"\nretries = 1\n'
        file.write_text(settings)
        with Threads.from_policy(file, edge=sure) as router:
            assert router.infer(1, mode="prefer_edge").source == "edge"
            jobs = router.engine.auditor.jobs
            until(lambda: server.requests and not (jobs.busy or jobs.waiting))
        assert len(server.requests) == 1


@pytest.mark.parametrize("kind", [Threads, Tasks])
def test_a_first_attempt_asks_it_too(tmp_path, kind):
    """The reload comes while the user is asked for consent."""
    file, asked = tmp_path / "policy.toml", []

    def consent(*_):
        file.write_text(f'mode = "only_edge"\n{settings}')
        router.reload()
        return True

    settings = 'threshold = 0.8\n[cloud]\nurl = "http://127.0.0.1:9/v2/models/m"\n'
    file.write_text(settings)
    with kind.from_policy(file, edge=unsure, cloud=asked.append, consent=consent) as router:
        answer = router.infer(1)
        assert (asked, answer.reason_code, router.guard.held) == ([], "other", 1)
    assert "only_edge" in answer.reason


def test_what_a_reload_withdraws_gives_its_call_back(tmp_path):
    """To the limit of calls a second: the reload comes while the user is asked for consent."""
    file, forbids = tmp_path / "policy.toml", [True]

    def consent(*_):
        if forbids.pop():
            file.write_text(f'mode = "only_edge"\n{settings}')
            router.reload()
        return True

    with CannedServer(GOOD) as server:
        settings = f'threshold = 0.8\n[cloud]\nurl = "{server.url}"\nprotocol = "json"\ncalls_per_s = 0.001\n'
        file.write_text(settings)
        with Threads.from_policy(file, edge=unsure, consent=consent) as router:
            assert router.infer(1).source == "edge"
            forbids.append(False)
            assert router.infer(1, mode="prefer_cloud").source == "cloud"


def test_what_waits_is_delivered_by_a_rule_that_prefers_the_cloud(tmp_path, sends):
    """The policy's own mode is only_edge, which the rule in force overrides for calls and for the outbox."""
    replies, late = [DOWN], []
    given = {"mode": "only_edge", "rules": [Rule("heat", "prefer_cloud", 50)], "sensors": lambda: Reading(temperature_c=80.0)}
    with CannedServer(lambda _: replies[-1]) as server:
        box, cloud = Outbox(tmp_path / "outbox.db", spread_s=0), PlainJson(server.url, retries=0)
        with Threads(unsure, cloud, threshold=0.8, offline="queue", outbox=box, **given) as router:
            router.on_late(late.append)
            assert router.infer(1).source == "edge"
            replies.append(GOOD)
            until(lambda: late)
        assert [answer.value for answer in late] == ["cloud"]
