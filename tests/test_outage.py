"""Outages with the breaker in place: no fault of a cloud costs an edge answer, holds it up, or is asked for again and again."""

import asyncio
import contextlib
import json
import os
import re
import socket
import subprocess
import threading
import time
from collections.abc import Coroutine
from concurrent.futures import ThreadPoolExecutor
from queue import SimpleQueue
from time import monotonic

import pytest
import routes
from both import DOWN, LONG, GatedServer, flat, unsure, wait_for

from edgeroute import AsyncRouter, Egress, Function, Limits, MayNotLeave, OpenInference, Options, PlainJson, Router, StopToken
from edgeroute.cloud import endpoint_guard as guards
from edgeroute.core import endpoint_breaker_and_limits as admission
from edgeroute.core.endpoint_breaker_and_limits import FAULTS, Admission
from edgeroute.observe.network_routes_and_monitor import NetworkMonitor
from edgeroute.stores.json_lines_and_process_locks import read
from edgeroute.testing import CannedServer, FakeCloud, FakeModel, Relay, http_reply

NEVER_S = 600.0
"""An endpoint's time limit that no test reaches: only the deadline can end the wait."""
DATUM, SECRET = "private-datum", "secret-of-the-endpoint"
GOOD = http_reply(b'{"value": "cloud", "confidence": 0.9}' + b" " * 200)
HTML = http_reply(b"<!doctype html><html></html>" + b" " * 200)
YEAR_S = 365 * 86_400.0


pytestmark = pytest.mark.usefixtures("leaves_nothing")


@pytest.fixture(autouse=True)
def opening_s(monkeypatch):
    """An open breaker stays so until a test says that time has passed, however busy the machine; nor does a link of its own come up.

    -> the time for which it opens at first, seconds.
    """
    monkeypatch.setattr(admission, "FIRST_S", 1e6)
    monkeypatch.setattr(admission, "MOST_S", 1e9)
    monkeypatch.setattr(NetworkMonitor, "start", lambda monitor: None)
    return 1e6


@pytest.fixture
def pass_time(monkeypatch):
    """Makes the time of what stands before the clouds later by so many seconds; without a number, past any opening."""
    ahead = [0.0]
    monkeypatch.setattr(guards, "monotonic", lambda: monotonic() + ahead[0])

    def pass_time(seconds=1e9):
        ahead[0] += seconds

    return pass_time


@pytest.fixture
def make(kind):
    """Makes routers of either kind, and closes them: no task is left."""
    made = []

    def make(edge, cloud, **policy):
        made.append(kind(edge, cloud, **{"threshold": 0.5, **policy}))
        return made[-1]

    yield make
    for client in made:
        client.close()
        assert not client.left


def waits_s(answer):
    """For how long the breaker stays open, by an answer's failures."""
    return float(re.search(r"cloud breaker .*another ([\d.e+]+) s", routes.failures(answer))[1])


def assert_stands(answer, why):
    """The edge's answer, marked, with the fault named."""
    assert (answer.value, answer.source, answer.degraded) == ("edge", "edge", True)
    assert re.search(why, routes.failures(answer)), answer.reason


def assert_cloud(answer, leg="cloud"):
    assert (answer.value, answer.source, answer.degraded, answer.leg) == ("cloud", "cloud", False, leg), answer.reason


def is_probe(request):
    return not request.startswith(b"POST")


def asked(server):
    """The requests for inference."""
    return [request for request in server.requests if not is_probe(request)]


def sent(state):
    """What the egress ledger says of inference."""
    return [record for record in read(state / "egress.jsonl") if record["rule"] != "no user data"]


FAULTY = (
    "refused", "black hole", "stall", "reset in the body", "truncated", "503", "401", "HTML", "no such name",
)  # fmt: skip
LINK = {
    "refused": ("refuse", True, False),
    "black hole": ("black_hole", True, False),
    "reset in the body": ("reset_after", 100, None),
    "truncated": ("truncate_after", 100, None),
}
SAID = {"stall": None, "503": DOWN, "401": http_reply(status=401), "HTML": HTML}
SLOW = ("black hole", "stall")
WHY = {
    "refused": "cloud(-1)? unreachable",
    "black hole": "cloud(-1)? (deadline|timeout)",
    "stall": "cloud(-1)? (deadline|timeout)",
    "reset in the body": "cloud unreachable",
    "truncated": "cloud unreachable",
    "503": "cloud(-1)? refused 503",
    "401": "cloud refused 401",
    "HTML": "cloud(-1)? bad_reply .*HTML",
    "no such name": "cloud unreachable .*cloud.invalid",
}


class Cloud(contextlib.ExitStack):
    """A server behind a relay, with a fault or without one."""

    def __init__(self, monkeypatch=None):
        super().__init__()
        self.says, self._knows_name = GOOD, True
        self.server = self.enter_context(CannedServer(lambda _: self.says))
        self.relay = self.enter_context(Relay("127.0.0.1", self.server.port))
        self.url = self.relay.url
        if monkeypatch is not None:
            look_up = socket.getaddrinfo

            def looking_up(host, *args, **more):
                known = self._knows_name and host in {"cloud.invalid", b"cloud.invalid"}
                return look_up("127.0.0.1" if known else host, *args, **more)

            monkeypatch.setattr(socket, "getaddrinfo", looking_up)
            self.url = f"http://cloud.invalid:{self.relay.port}"

    def endpoint(self, **more):
        """The way there."""
        return PlainJson(self.url, **{"timeout_s": NEVER_S, "ping_path": "/health", **more})

    def breaks(self, fault):
        """Begins the fault."""
        if fault in LINK:
            setattr(self.relay, *LINK[fault][:2])
        elif fault in SAID:
            self.says = SAID[fault]
        else:
            self._knows_name = False
        if fault in {"refused", "no such name"}:  # its connections end too, as those of a process that dies
            self.relay.cut()

    def mends(self, fault):
        """Ends it."""
        if fault in LINK:
            setattr(self.relay, LINK[fault][0], LINK[fault][2])
        self.says, self._knows_name = GOOD, True


@pytest.mark.parametrize("before", ["never met", "met"])
@pytest.mark.parametrize("fault", FAULTY)
def test_an_outage_from_its_beginning_to_its_end(make, fault, before, tmp_path, monkeypatch, pass_time):
    """Three faults and no more, edge answers throughout, one probe without user data, and the next input goes to the cloud."""
    with Cloud(monkeypatch if fault == "no such name" else None) as cloud:
        server, relay = cloud.server, cloud.relay
        client = make(unsure, cloud.endpoint(), state=tmp_path, deadline=LONG)
        if before == "met":
            assert_cloud(client.infer(DATUM))
        cloud.breaks(fault)
        connected, said = relay.connections, len(sent(tmp_path))
        answers = []
        for _ in range(20):
            slow = fault in SLOW and client.guard.state != "open"
            answers.append(client.infer(DATUM, deadline=4.0 if slow else LONG))
        assert_stands(answers[0], WHY[fault] + "|cloud deadline")
        for answer in answers:
            assert_stands(answer, WHY[fault] + "|cloud breaker .* 3 |cloud deadline")
        assert answers[-1].reason_code == "breaker"
        # a connection that was kept and has gone says nothing about the endpoint: it may be one more
        attempts = len(sent(tmp_path)) - said
        assert FAULTS <= attempts <= FAULTS + (before == "met")
        assert relay.connections - connected <= FAULTS
        leg = client.leg()
        assert (leg.breaker, client.guard.rules.breaker.opened) == ("open", 1)
        assert leg.held == sum(answer.reason_code == "breaker" for answer in answers) >= 20 - attempts

        client.idle()
        cloud.mends(fault)
        seen = len(server.requests)
        assert_stands(client.infer(DATUM), "cloud breaker .* another ")
        assert len(server.requests) == seen
        pass_time()
        assert_stands(client.infer(DATUM), "cloud breaker .* 3 .*probe")
        wait_for(lambda: client.guard.state == "closed")
        probes = server.requests[seen:]  # more than one if it got no answer in time
        for probe in probes:
            head, _, body = probe.partition(b"\r\n\r\n")
            assert head.startswith(b"GET /health HTTP/1.1\r\n")
            assert body == b""
            assert DATUM.encode() not in head
        assert_cloud(client.infer(DATUM))
        assert [is_probe(one) for one in server.requests[seen:]] == [True] * len(probes) + [False]
        assert client.leg().breaker == "closed"
        for one in server.requests:
            assert (DATUM.encode() in one) is not is_probe(one)


def test_the_network_is_back_so_nothing_waits(make):
    """The news of a link sends the probe at once, however long the breaker would have stayed open; as often as it comes, one."""
    with Cloud() as cloud:
        client = make(unsure, cloud.endpoint(retries=0))
        cloud.breaks("503")
        for _ in range(4):
            client.infer(DATUM)
        cloud.mends("503")
        client.engine.health.link_up()
        client.engine.health.link_up()
        wait_for(lambda: client.guard.state == "closed")
        assert sum(map(is_probe, cloud.server.requests)) == 1
        assert_cloud(client.infer(DATUM))


def test_a_probe_that_goes_well_and_a_model_that_does_not(make, opening_s, pass_time):
    """A health route may be answered by what does not run the model: one fault opens again, and for longer."""
    with CannedServer(lambda request: GOOD if is_probe(request) else DOWN) as server:
        client = make(unsure, PlainJson(server.url, ping_path="/health"))
        for _ in range(3):
            client.infer(DATUM)
        assert len(asked(server)) == 3
        for times in (1, 2, 3):
            pass_time()
            assert_stands(client.infer(DATUM), "cloud breaker .*probe")
            wait_for(lambda: client.guard.state == "closed")
            assert_stands(client.infer(DATUM), "cloud refused 503")
            assert opening_s * 2**times / 2 - LONG < waits_s(client.infer(DATUM)) <= opening_s * 2**times
            assert len(asked(server)) == 3 + times
            assert sum(map(is_probe, server.requests)) == times


@pytest.mark.parametrize("bad", [DOWN, http_reply(status=503, headers=[("Retry-After", "250")]), None])
def test_a_probe_that_fails(make, bad, monkeypatch, opening_s, pass_time):
    """It is sent once, not repeated, and the breaker stays open for longer, or as long as the server asks."""
    monkeypatch.setattr("edgeroute.cloud.endpoint_guard.PROBE_S", 0.1)
    asks = bad is not None and b"250" in bad
    if asks:
        monkeypatch.setattr(admission, "FIRST_S", 5.0)
    with CannedServer(lambda request: bad if is_probe(request) else DOWN) as server:
        client = make(unsure, PlainJson(server.url, ping_path="/health"))
        client.infer(DATUM)
        pass_time()
        assert_stands(client.infer(DATUM), "cloud breaker .*probe")
        wait_for(lambda: client.guard.state == "open")
        assert waits_s(client.infer(DATUM)) > (250 if asks else opening_s) - LONG
        assert sum(map(is_probe, server.requests)) == 1
        assert len(asked(server)) == 3


@pytest.mark.parametrize("data", [[], [1, 2, 3], [None, 1]])
def test_outputs_that_are_not_the_models_are_faults(make, data):
    """A server that answers 200 with what nobody can use is left alone like one that does not answer."""

    def reply(request):
        if is_probe(request):
            return http_reply(json.dumps({"inputs": [{"name": "x", "datatype": "INT64", "shape": [-1]}]}).encode())
        told = {"outputs": [{"name": "y", "shape": [1, len(data)], "datatype": "FP32", "data": data}]}
        return http_reply(json.dumps(told).encode())

    with CannedServer(reply) as server:
        client = make(unsure, OpenInference(server.url, model="m", binary=False, labels=["a", "b"]))
        answers = [client.infer(1) for _ in range(6)]
    assert all(a.source == "edge" for a in answers)
    assert len(asked(server)) == FAULTS
    assert_stands(answers[-1], "cloud breaker")


# two endpoints


@pytest.mark.parametrize("fault", ["refused", "503", "HTML", "stall"])
def test_the_second_endpoint_takes_over(make, fault):
    """In the order of the list; once the first one's breaker is open the second answers without it. After it is back, the first."""
    with Cloud() as one, Cloud() as other:
        client = make(unsure, [one.endpoint(timeout_s=4.0 if fault == "stall" else LONG), other.endpoint()])
        assert_cloud(client.infer(DATUM), "cloud-1")
        one.breaks(fault)
        answers = [client.infer(DATUM) for _ in range(6)]
        for answer in answers:
            assert_cloud(answer, "cloud-2")
        assert re.search(WHY[fault], routes.failures(answers[0]))
        assert routes.code(answers[-1], "cloud-1") == "breaker"
        assert len(asked(one.server)) - 1 <= FAULTS
        assert len(asked(other.server)) == 6
        assert [client.leg(name).breaker for name in ("cloud-1", "cloud-2")] == ["open", "closed"]
        one.mends(fault)
        client.engine.health.link_up()
        wait_for(lambda: client.guards[0].state == "closed")
        assert_cloud(client.infer(DATUM), "cloud-1")


def test_a_first_endpoint_that_uses_up_the_time(make, due):
    """The edge's answer stands three times, and then the second one is asked, with all the time there is."""
    with Cloud() as one, Cloud() as other:
        one.breaks("stall")
        client = make(unsure, [one.endpoint(), other.endpoint()])
        for n in (1, 2, 3):
            deadline = due(lambda n=n: one.relay.connections == n)
            assert_stands(client.infer(DATUM, deadline=deadline), "cloud-1 (deadline|timeout)")
        assert_cloud(client.infer(DATUM, deadline=LONG), "cloud-2")
    assert one.relay.connections == 3


@pytest.mark.slow
def test_the_fastest_is_asked_first(make):
    """Once both are known, and for as long as it answers."""
    with Cloud() as slow, Cloud() as quick:
        slow.relay.delay_s = 2.0  # a busy machine may be as slow as one second
        client = make(unsure, [slow.endpoint(), quick.endpoint()], order="fastest")
        for answers in ("cloud-1", "cloud-2", "cloud-2"):
            for _ in range(3):
                assert_cloud(client.infer(DATUM), answers)
            client.engine.observe()
        quick.breaks("503")
        for _ in range(3):
            assert_cloud(client.infer(DATUM), "cloud-1")
        assert client.guards[1].state == "open"


# what counts as a fault


@pytest.mark.parametrize("deadline", [None, LONG])
def test_the_loser_of_a_race_is_no_fault(make, deadline):
    """The edge answers while the cloud has not yet: its connection is cut, and nothing is held against it. It is paid for."""
    going: SimpleQueue[bool] = SimpleQueue()

    def edge(_):
        assert going.get(timeout=LONG)
        return "edge", 0.9

    with CannedServer(lambda _: going.put(True)) as server:
        client = make(edge, PlainJson(server.url, timeout_s=NEVER_S, usd_per_call=0.5), hedge_after=0)
        for i in range(1, 6):
            answer = client.infer(DATUM, deadline=deadline)
            assert (answer.value, answer.degraded) == ("edge", False)
            server.wait_for(lambda i=i: server.hung_up == i)
            client.idle()
        assert (client.guard.state, client.guard.rules.breaker.faults) == ("closed", 0)
        assert client.engine.spending.spent().calls == 5
        assert client.stats().usd_today == 2.5
        (lost,) = [e for e in answer.trace["events"] if e["leg"] == "cloud" and e["what"] == "cancelled"]
        assert (lost["usd"], lost["sent_bytes"] > 0) == (0.5, True)


def test_less_time_than_it_needs_is_no_fault(make, due):
    """A deadline shorter than the endpoint usually takes says something about the deadline."""
    with Cloud() as cloud:
        client = make(unsure, cloud.endpoint())
        client.guard.rules.usual.add(LONG)
        cloud.breaks("black hole")
        for _ in range(5):
            assert_stands(client.infer(DATUM, deadline=due(lambda: client.guard.under_way)), "cloud (deadline|timeout)")
        client.idle()
        assert (client.guard.state, client.guard.rules.breaker.faults) == ("closed", 0)


def test_a_late_listener_does_not_hide_an_outage(make, due):
    """With somebody to tell of late answers, calls are left to run on past the deadline; each is a fault at it, once."""
    with Cloud() as cloud:
        client = make(unsure, cloud.endpoint(timeout_s=3.0, retries=0))
        client.on_late(lambda late: None)
        cloud.breaks("stall")
        for faults in (1, 2, 3):
            deadline = due(lambda faults=faults: len(cloud.server.requests) == faults)
            assert_stands(client.infer(DATUM, deadline=deadline), "cloud (deadline|timeout)")
            assert client.guard.rules.breaker.faults == faults
        assert_stands(client.infer(DATUM, deadline=LONG), "cloud breaker")
        client.idle()
        assert client.guard.rules.breaker.faults == 3
        assert len(cloud.server.requests) == 3


@pytest.mark.parametrize("status", [400, 413, 422])
def test_an_input_that_is_refused_is_no_fault(make, status):
    """It is this input's own, is not sent again, and shows that the endpoint is there."""
    with CannedServer(http_reply(status=status)) as server:
        client = make(unsure, PlainJson(server.url))
        client.guard.failed()
        client.guard.failed()
        for i in range(5):
            assert_stands(client.infer(i), f"cloud refused {status}")
        assert (client.guard.state, client.guard.rules.breaker.faults) == ("closed", 0)
    assert len(server.requests) == 5


# retries


def test_retry_after_is_obeyed_by_all(make, pass_time):
    """Nothing is sent to the endpoint before that time, by whatever request."""
    said = [http_reply(status=503, headers=[("Retry-After", "100")])]
    with CannedServer(lambda _: said[0]) as server:
        client = make(unsure, PlainJson(server.url))
        assert_stands(client.infer(DATUM), "cloud refused 503")
        for _ in range(5):
            assert_stands(client.infer(DATUM), r"cloud retry_after .* (100|\d\d(\.\d)?) s")
        assert len(server.requests) == 1
        said[0] = GOOD
        pass_time(101)
        assert_cloud(client.infer(DATUM))
    assert len(server.requests) == 2


def test_retry_after_is_obeyed_by_a_retry_too(make):
    """One that asks for little is waited for, and the same request goes on."""
    replies = iter([http_reply(status=503, headers=[("Retry-After", "0.05")]), GOOD])
    with CannedServer(lambda _: next(replies)) as server:
        assert_cloud(make(unsure, PlainJson(server.url)).infer(DATUM))
    assert len(server.requests) == 2


def test_a_retry_that_waits_is_not_sent_once_the_breaker_is_open(make, monkeypatch):
    """What others have found out meanwhile counts for it too."""
    granted = []

    def retry(rules):
        granted.append(retry_(rules))
        for _ in range(FAULTS - 1):
            client.guard.failed()
        return granted[-1]

    retry_ = Admission.retry
    monkeypatch.setattr(Admission, "retry", retry)
    with CannedServer(http_reply(status=503, headers=[("Retry-After", "0.05")])) as server:
        client = make(unsure, PlainJson(server.url))
        assert_stands(client.infer(DATUM), "cloud was not asked again: breaker open")
    assert (granted, len(server.requests)) == ([True], 1)


def test_retries_have_a_budget(make):
    """One that each time only the second attempt succeeds at: after eleven retries there are none until successes earn one."""
    says = iter(int(1e6) * [DOWN, GOOD])
    with CannedServer(lambda _: next(says)) as server:
        client = make(unsure, PlainJson(server.url))
        for _ in range(11):
            assert_cloud(client.infer(DATUM))
        assert len(server.requests) == 22
        assert_stands(client.infer(DATUM), "cloud refused 503")
        assert len(server.requests) == 23


def test_ten_retries_and_no_more_without_a_success(make):
    """An endpoint that refuses now and then what it should not, and is never asked a thing that it can answer."""
    with CannedServer(DOWN) as server:
        client = make(unsure, PlainJson(server.url, retries=1))
        for _ in range(12):
            client.infer(DATUM)
            with client.guard.lock:
                client.guard.rules.breaker.success(0)  # else it would be open
        assert len(server.requests) == 12 + 10


# limits


LIMITS = {
    "calls_per_s": ({"calls_per_s": 0.01}, {}, 1),
    "usd_per_day": ({"usd_per_call": 0.1}, {"usd_per_day": 0.25}, 2),
    "joules_per_hour": ({"joules_per_call": 1.0}, {"joules_per_hour": 3.0}, 3),
    "calls_per_minute": ({}, {"calls_per_minute": 2}, 2),
    "mb_per_day": ({}, {"mb_per_day": 0.001}, 4),
}


@pytest.mark.parametrize("limit", LIMITS)
def test_a_limit_that_is_reached(make, limit):
    """The next call is held, says which limit it was, and the edge's answer stands; no connection is made for it."""
    terms, limits, calls = LIMITS[limit]
    with CannedServer(GOOD) as server:
        client = make(unsure, PlainJson(server.url, **terms), limits=Limits(**limits))
        for _ in range(calls):
            assert_cloud(client.infer(DATUM))
        for _ in range(3):
            assert_stands(client.infer(DATUM), f"cloud {limit}")
        assert client.guard.state == "closed"
    assert (server.connections, len(server.requests)) == (1, calls)


def test_calls_held_for_their_bytes_are_counted_and_cost_nothing(make, request):
    """As those that are held for another reason."""
    with CannedServer(GOOD) as server:
        client = make(unsure, PlainJson(server.url, usd_per_call=1.0), limits=Limits(mb_per_day=1e-9))
        for _ in range(3):
            assert_stands(client.infer(DATUM), "cloud mb_per_day")
        assert client.stats().usd_today == 0
        assert client.leg().held == 3


def test_so_many_calls_at_a_time(make, due):
    """One more than max_concurrent waits; as soon as one has ended it is asked, and at its deadline it is not any more."""
    with GatedServer(GOOD) as server:
        client = make(unsure, PlainJson(server.url, timeout_s=NEVER_S, retries=0, max_concurrent=2))
        under_way = [client.start(DATUM) for _ in range(2)]
        server.wait_for(lambda: len(server.requests) == 2)
        deadline = due(lambda: client.guard.turns.waiting)
        assert_stands(client.infer(DATUM, deadline=deadline), "cloud (deadline|max_concurrent)")
        wait_for(lambda: not client.guard.turns.waiting)
        under_way.append(client.start(DATUM))
        wait_for(lambda: client.guard.turns.waiting)
        assert not under_way[-1].done()
        assert len(server.requests) == 2
        server.open()
        for call in under_way:
            assert_cloud(call.result(LONG))
    assert len(server.requests) == 3


def test_each_target_has_limits_of_its_own(make):
    """The first has had its calls, so the second one is asked, until it has had its own."""
    with CannedServer(GOOD) as one, CannedServer(GOOD) as other:
        client = make(
            unsure, [PlainJson(one.url, calls_per_s=0.01), PlainJson(other.url, usd_per_call=1.0)], limits=Limits(usd_per_day=2)
        )
        assert_cloud(client.infer(DATUM), "cloud-1")
        for _ in range(2):
            assert_cloud(client.infer(DATUM), "cloud-2")
        assert_stands(client.infer(DATUM), "cloud-1 calls_per_s .*cloud-2 usd_per_day")
    assert (len(one.requests), len(other.requests)) == (1, 2)


def test_what_is_spent_stays_spent_after_a_restart(make, tmp_path):
    """By the folder that outlives the process."""
    with CannedServer(GOOD) as server:
        for run in range(3):
            client = make(unsure, PlainJson(server.url, usd_per_call=0.1), limits=Limits(usd_per_day=0.25), state=tmp_path)
            for answer in [client.infer(DATUM) for _ in range(2)]:
                if run:
                    assert_stands(answer, "cloud usd_per_day")
                else:
                    assert_cloud(answer)
            assert client.stats().usd_today == pytest.approx(0.2)
            client.close()
    assert len(server.requests) == 2


def test_clocks_that_are_set_change_nothing(make, monkeypatch):
    """A year on and a year back: nothing expires, nothing is freed, and nothing that is free is held."""
    with CannedServer(GOOD) as server:
        client = make(unsure, PlainJson(server.url, usd_per_call=0.1), limits=Limits(usd_per_day=0.35))
        assert_cloud(client.infer(DATUM))
        told = time.time
        for by in (YEAR_S, -YEAR_S):
            monkeypatch.setattr(time, "time", lambda by=by: told() + by)
            assert_cloud(client.infer(DATUM))
        for by in (YEAR_S, -YEAR_S, 0.0):
            monkeypatch.setattr(time, "time", lambda by=by: told() + by)
            assert_stands(client.infer(DATUM), "cloud usd_per_day")
        assert client.stats().usd_today == pytest.approx(0.3)
        client.guard.hold(100)
        monkeypatch.setattr(time, "time", lambda: told() + YEAR_S)
        assert_stands(client.infer(DATUM), "cloud retry_after")
    assert len(server.requests) == 3


# egress


@pytest.mark.parametrize("mode", ["prefer_edge", "prefer_cloud", "only_edge"])
@pytest.mark.parametrize("policy", [{}, {"hedge_after": 0}, {"deadline": LONG}])
def test_data_that_never_leaves(make, mode, policy):
    """Nobody even connects, and the reason names the class."""
    with CannedServer(GOOD) as server:
        client = make(unsure, PlainJson(server.url), mode=mode, egress=Egress(never_leave=["medical"]), **policy)
        answer = client.infer(DATUM, data_class="medical")
        assert (answer.value, answer.source) == ("edge", "edge")
        (answer,) = client.infer_many([DATUM], data_class="medical")
        assert answer.source == "edge"
        if mode != "only_edge":
            assert "medical" in answer.reason
    assert server.connections == 0


def test_data_that_never_leaves_where_only_the_cloud_may_answer(make):
    """There is no answer, and nobody connects."""
    with CannedServer(GOOD) as server:
        client = make(unsure, PlainJson(server.url), egress=Egress(never_leave=["medical"]), mode="only_cloud")
        with pytest.raises(MayNotLeave, match="medical"):
            client.infer(DATUM, data_class="medical")
        with pytest.raises(MayNotLeave, match="without data_class"):
            client.infer(DATUM)
    assert server.connections == 0


def fails(*_):
    raise KeyError(DATUM)


@pytest.mark.parametrize(
    ("rule", "why"),
    [
        ({"consent": lambda *_: False}, "cloud consent"),
        ({"consent": lambda *_: None}, "cloud consent"),
        ({"consent": lambda *_: "yes"}, "cloud consent"),
        ({"consent": fails}, "cloud consent"),
        ({"redact": fails}, "cloud redaction"),
        ({"consent": lambda *_: True, "redact": fails}, "cloud redaction"),
    ],
)
@pytest.mark.parametrize("policy", [{}, {"deadline": LONG}, {"mode": "prefer_cloud"}])
def test_what_is_not_allowed_is_not_sent(make, rule, why, policy, tmp_path):
    """No consent, or a function that fails: nothing is sent, the endpoint is not blamed, and the input is not quoted."""
    with CannedServer(GOOD) as server:
        client = make(unsure, PlainJson(server.url), egress=Egress(**rule), state=tmp_path, **policy)
        for _ in range(4):
            answer = client.infer(DATUM)
            assert_stands(answer, why)
            assert DATUM not in json.dumps(answer.trace)
        assert client.guard.state == "closed"
    assert server.connections == 0
    assert not (tmp_path / "egress.jsonl").exists()


def test_what_is_held_for_lack_of_consent_is_counted():
    """As the statistics say."""
    with (
        CannedServer(GOOD) as server,
        Router(unsure, PlainJson(server.url), threshold=0.5, egress=Egress(consent=lambda *_: False)) as router,
    ):
        router.infer(1)
        assert router.stats().legs[1].held == 1


def test_what_is_redacted_is_not_sent(make):
    """The server receives what the function made of the input; the edge got all of it."""
    edge = FakeModel(lambda x: (x, 0.1))
    with CannedServer(GOOD) as server:
        client = make(edge, PlainJson(server.url), egress=Egress(redact=lambda x, _: x.replace(DATUM, "***"), may_leave=["text"]))
        assert_cloud(client.infer(f"I am {DATUM}", data_class="text"))
        server.requests.clear()
        assert_cloud(client.infer_many([f"he is {DATUM}"], data_class="text")[0])
    assert b"he is ***" in server.requests[0]
    assert DATUM.encode() not in server.requests[0]


def test_the_ledger_has_a_line_for_each_attempt(make, tmp_path):
    """Where to, how much, of what class, by which rule and for which request; never what was sent, or a secret."""
    says = iter([DOWN, DOWN, GOOD, GOOD])
    with CannedServer(lambda _: next(says)) as server:
        client = make(
            unsure,
            PlainJson(server.url + "/ask", api_key=SECRET, headers={"X-Key": SECRET}),
            state=tmp_path,
            egress=Egress(may_leave=["text"]),
        )
        first, second = (client.infer(DATUM, data_class="text") for _ in range(2))
        client.close()
    bodies = [len(request.partition(b"\r\n\r\n")[2]) for request in server.requests]
    records = list(read(tmp_path / "egress.jsonl"))
    assert [record["request"] for record in records] == [first.id] * 3 + [second.id]
    for record, size in zip(records, bodies, strict=True):
        assert record | {"at": 0, "request": ""} == {
            "at": 0, "to": server.url + "/ask", "bytes": size, "data_class": "text", "rule": "may_leave has 'text'", "request": "",
        }  # fmt: skip
    assert all(SECRET.encode() in request and first.id.encode() in request for request in server.requests[:3])
    for file in tmp_path.iterdir():
        kept = file.read_bytes()
        assert SECRET.encode() not in kept
        assert DATUM.encode() not in kept


def test_the_ledger_has_no_line_for_what_was_not_attempted(tmp_path, monkeypatch):
    """A retry that was waiting for its time as its answer was not needed any more."""
    gate, wait = threading.Event(), StopToken.wait

    def waiting(cancel, seconds):
        gate.set()
        return wait(cancel, seconds)

    monkeypatch.setattr(StopToken, "wait", waiting)
    edge = FakeModel([("edge", 0.9)], gate=gate)
    with CannedServer(http_reply(status=503, headers=[("Retry-After", "60")])) as server:
        with Router(
            edge, PlainJson(server.url, timeout_s=NEVER_S), threshold=0.5, state=tmp_path, options=Options(hedge_after=0)
        ) as router:
            assert router.infer(DATUM).source == "edge"
            (guard,) = (runner.guard for runner in router.engine.snapshot.clouds)
            wait_for(lambda: not guard.under_way)
        assert len(server.requests) == 1
    assert len(sent(tmp_path)) == 1


@pytest.fixture(params=["a folder in its place", "full", "full disk", "read-only disk"])
def no_ledger(request, tmp_path):
    """A folder in which no egress ledger can be written."""
    state = tmp_path / "state"
    state.mkdir()
    ledger = state / "egress.jsonl"
    if request.param == "a folder in its place":
        ledger.mkdir()
        yield state
        return
    if request.param == "full":
        ledger.symlink_to("/dev/full")
        yield state
        return
    if os.geteuid() or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", state], check=False).returncode:
        pytest.skip("only root can mount a small disk, and not everywhere")
    try:
        if request.param == "read-only disk":
            subprocess.run(["mount", "-o", "remount,ro", state], check=True)
        else:
            with contextlib.suppress(OSError), (state / "filler").open("wb", buffering=0) as filler:
                while True:
                    filler.write(bytes(4096))
        yield state
    finally:
        subprocess.run(["umount", "--lazy", state], check=True)


def test_what_cannot_be_noted_does_not_leave(make, no_ledger):
    """The edge's answer stands, nobody is connected to, and the endpoint is not blamed."""
    with CannedServer(GOOD) as server:
        client = make(unsure, PlainJson(server.url), state=no_ledger)
        for _ in range(4):
            assert_stands(client.infer(DATUM), "cloud ledger")
        assert client.guard.state == "closed"
        client.close()
    assert server.connections == 0


# cancellation, many at a time


class Counted(Coroutine):
    """A coroutine that is counted each time that it runs on, and at one of these times cancels a task."""

    def __init__(self, inner, count):
        self._inner, self._count = inner, count

    def send(self, value):
        """Runs on."""
        self._count()
        return self._inner.send(value)

    def throw(self, *error):
        """Runs on, with an error."""
        self._count()
        return self._inner.throw(*error)

    def close(self):
        """Ends it."""
        self._inner.close()

    def __await__(self):
        raise NotImplementedError


CASES = {
    "accepted": (lambda _: ("edge", 0.9), GOOD, {}),
    "deferred": (unsure, GOOD, {}),
    "deferred with a deadline": (unsure, GOOD, {"deadline": LONG}),
    "a race": (unsure, GOOD, {"hedge_after": 0}),
    "failing": (unsure, DOWN, {}),
    "unreadable": (unsure, HTML, {"deadline": LONG}),
}


async def cancel_everywhere(router, x):
    """Asks again and again, and cancels each time one point later, until a request ends first. -> how often that was so."""
    loop = asyncio.get_running_loop()
    (guard,) = (runner.guard for runner in router.engine.snapshot.clouds)
    await router.infer(x)
    at = cancelled = 0
    while True:
        at += 1
        steps, asked_for = 0, []

        def count(at=at, asked_for=asked_for):
            nonlocal steps
            steps += 1
            if steps == at:
                loop.call_soon(asked_for[0].cancel)

        loop.set_task_factory(lambda loop, inner, count=count, **more: asyncio.Task(Counted(inner, count), loop=loop, **more))
        asking = asyncio.ensure_future(router.infer(x))
        asked_for.append(asking)
        await asyncio.wait([asking], timeout=LONG)
        loop.set_task_factory(None)
        assert asking.done()
        if others := asyncio.all_tasks() - {asyncio.current_task()}:
            assert not (await asyncio.wait(others, timeout=LONG))[1]
        await asyncio.to_thread(wait_for, lambda: not guard.under_way)
        with guard.lock:
            assert guard.under_way == 0
            guard.rules.breaker.success(0)
            guard.rules.budget.__init__()
        if not asking.cancelled():
            asking.result()
        if steps < at:
            return cancelled
        cancelled += asking.cancelled()


@pytest.mark.parametrize("case", CASES)
def test_cancelling_at_every_point(case):
    """Wherever a request is when its task is cancelled: no exchange is under way afterwards, no task is left, and the next works."""
    edge, said, policy = CASES[case]

    async def main(server):
        async with AsyncRouter(edge, PlainJson(server.url, retries=1), **flat(threshold=0.5, **policy)) as router:
            assert await cancel_everywhere(router, DATUM) >= (
                case != "accepted"
            )  # the edge may be there at once, and a cloud soon
            return await router.infer(DATUM)

    with CannedServer(said) as server:
        assert asyncio.run(main(server)).value == ("cloud" if said is GOOD and edge is unsure else "edge")


def test_cancelling_at_every_point_leaves_no_connection():
    """None is left but one that waits for the next request."""

    async def main(server):
        async with AsyncRouter(unsure, PlainJson(server.url), threshold=0.5) as router:
            for _ in range(3):
                await cancel_everywhere(router, DATUM)
            await asyncio.to_thread(server.wait_for, lambda: server.connections - server.hung_up <= 1)

    with CannedServer(GOOD) as server:
        asyncio.run(main(server))


def test_two_hundred_threads_through_an_outage():
    """Each gets an answer each time, over no more connections than may be, and in the end the cloud's again."""
    most, threads = 8, 200
    says = [GOOD]
    with CannedServer(lambda request: says[0]) as server:
        cloud = PlainJson(server.url, ping_path="/health", max_concurrent=most)
        phase = threading.Barrier(threads + 1)
        with Router(unsure, cloud, threshold=0.5) as router, ThreadPoolExecutor(threads) as pool:
            (guard,) = (runner.guard for runner in router.engine.snapshot.clouds)

            def ask(i):
                found = []
                for _ in range(4):
                    phase.wait(LONG)
                    found.append(router.infer(i).source)
                    phase.wait(LONG)
                return found

            asking = [pool.submit(ask, i) for i in range(threads)]

            def run():
                phase.wait(LONG)
                phase.wait(LONG)

            run()
            assert server.requests
            says[0], before = DOWN, len(server.requests)
            run()
            wait_for(lambda: not guard.under_way)
            if guard.state == "closed":  # all but a few were held, so there were not three in a row
                router.infer(0)
            assert guard.state == "open"
            in_outage = len(server.requests) - before
            run()
            assert len(server.requests) - before == in_outage
            assert in_outage <= most + FAULTS
            says[0] = GOOD
            router.engine.health.link_up()
            wait_for(lambda: guard.state == "closed")
            run()
            answers = [call.result(LONG) for call in asking]
            assert all(len(found) == 4 for found in answers)
            assert {found[2] for found in answers} == {"edge"}
            assert "cloud" in {found[3] for found in answers}
            assert guard.under_way == 0
            assert router.stats().requests >= 4 * threads
        assert server.connections <= most + FAULTS


def test_a_function_as_the_cloud(make, pass_time):
    """One that raises is left alone after three faults, tried by its own health, and asked again once that is well."""
    down, calls, tried = threading.Event(), [], []
    down.set()

    def work(x):
        calls.append(x)
        if down.is_set():
            raise OSError("away")
        return "cloud", 0.9

    def health():
        tried.append(1)
        if down.is_set():
            raise OSError("still away")

    client = make(unsure, Function(work, health=health))
    answers = [client.infer(DATUM) for _ in range(6)]
    assert len(calls) == FAULTS
    assert_stands(answers[-1], "cloud breaker")
    for well in (False, True):
        if well:
            down.clear()
        pass_time()
        assert_stands(client.infer(DATUM), "cloud breaker .*probe")
        wait_for(lambda well=well: client.guard.state == ("closed" if well else "open"))
    assert (len(calls), len(tried)) == (FAULTS, 2)
    assert_cloud(client.infer(DATUM))


def test_a_function_that_does_not_come_back(make, due):
    """The deadline passes three times; then it is not called any more, though its calls are still under way."""
    gate = threading.Event()
    cloud = FakeCloud([("cloud", 0.9)], gate=gate)
    client = make(unsure, Function(cloud, max_concurrent=5), deadline=LONG)
    try:
        for n in (1, 2, 3):
            assert_stands(client.infer(DATUM, deadline=due(lambda n=n: cloud.runs == n)), "cloud deadline")
        for _ in range(3):
            assert_stands(client.infer(DATUM), "breaker open|an earlier run has not stopped")
        assert (cloud.runs, client.guard.under_way) == (3, 3)
    finally:
        gate.set()
    client.idle()


@pytest.mark.parametrize("reply", [HTML, http_reply(b'{"status": "maintenance"}')], ids=["portal", "other JSON"])
def test_a_batch_to_a_captive_portal(make, reply):
    """Rows are sent one by one: after as many unreadable replies in a row as open the breaker, the others are not sent."""
    with CannedServer(reply) as server:
        router = make(unsure, PlainJson(server.url, retries=0))
        for _ in range(2):
            assert {answer.source for answer in router.infer_many([DATUM] * 50)} == {"edge"}
        assert sum(DATUM.encode() in request for request in server.requests) == FAULTS


def test_unreadable_replies_to_some_rows(make):
    """Between good ones they cost their own rows alone, however many there are."""
    replies = iter([GOOD if row % 3 == 0 else HTML for row in range(30)])
    with CannedServer(lambda _: next(replies)) as server:
        answers = make(unsure, PlainJson(server.url, retries=0)).infer_many([DATUM] * 30)
        assert [answer.source for answer in answers] == ["cloud" if row % 3 == 0 else "edge" for row in range(30)]


def test_kept_connections_cost_one_request_with_user_data(kind):
    """The first one that the server has read from and closed tells of all: each other one would cost a request, uncounted."""

    def gone(_):
        raise ConnectionResetError

    with CannedServer(GOOD) as server, kind(unsure, PlainJson(server.url, retries=0, timeout_s=LONG), threshold=0.5) as router:
        for i in range(30):
            router.infer(i)
        server.shut()
        callers = [threading.Thread(target=router.infer, args=(i,)) for i in range(4)]
        for caller in callers:
            caller.start()
        server.wait_for(lambda: len(server.requests) == 34, timeout_s=LONG)
        server.open()
        for caller in callers:
            caller.join(LONG)
        server.reply = gone
        assert [router.infer(f"later {i}").source for i in range(20)] == ["edge"] * 20
        assert sum(b"later" in request for request in server.requests) == 4
