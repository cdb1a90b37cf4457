"""Replays of real traces: what a policy would have made of them, in virtual time, and what nobody can know."""

from __future__ import annotations

import gc
import json
import re
import threading
from math import inf
from random import Random
from time import monotonic
from unittest.mock import ANY

import pytest
from both import DOWN, GOOD, flat
from commands import cli
from draws import draws
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeroute import (
    BadInput,
    BadReply,
    Cache,
    Egress,
    Function,
    Limits,
    NoAnswer,
    Options,
    Outbox,
    PlainJson,
    PolicyError,
    Refused,
    Router,
    Rule,
    Trace,
    Unreachable,
)
from edgeroute.core.endpoint_breaker_and_limits import FAULTS
from edgeroute.errors import Unfit
from edgeroute.stores.json_lines_and_process_locks import Journal
from edgeroute.testing import CannedServer, http_reply
from edgeroute.tools.replay import NETWORKS, THERMAL, Battery, Setup, collect, read, replay
from edgeroute.tools.replay import trace_replay as run
from edgeroute.tools.replay.replay_setup_and_result import Port
from edgeroute.tools.replay.simulated_calls_and_environment import RETRANSMIT_S, Link, Network

LONG = 120.0
SURES = st.one_of(st.floats(0, 1), st.sampled_from([None, float("nan"), 0.5]))
FAULTY = st.sampled_from([None] * 4 + [Unreachable("gone"), BadReply("what?"), RuntimeError("boom")])
TERMS = {"usd_per_call": 0.25, "joules_per_call": 2.0, "health": lambda: None}


def edge(x):
    """The edge says of itself how sure it is."""
    return ("edge", x[0])


def cloud(x):
    """The cloud answers or fails, as the input says."""
    if x[1] is not None:
        raise x[1]
    return ("cloud", 0.9)


def asked(inputs, *, data_classes=(), **policy):
    """What a router's trace says after these inputs, and what each was answered by; and the policy as replay needs it."""
    records, answers = [], []
    policy = {"threshold": 0.5, **policy}
    limits = policy.get("limits")
    with Router(edge, policy.pop("cloud", Function(cloud, **TERMS)), **flat(trace=records.append, **policy)) as router:
        for i, x in enumerate(inputs):
            try:
                answer = router.infer(x, data_class=data_classes[i] if data_classes else None)
                answers.append((answer.leg, not answer.degraded))
            except NoAnswer:  # noqa: PERF203 - one that raises does not end the rest
                answers.append((None, False))
        setup = Setup.of(router.engine.snapshot, limits, cached="cache" in policy)
    return records, answers, setup


def spread(records, every_s):
    """The same records, so far apart."""
    return [{**record, "at": 1e9 + i * every_s} for i, record in enumerate(records)]


def but(setup, threshold=None, **policy):
    """The same with other values."""
    targets = tuple(t._replace(threshold=threshold) if threshold is not None and t.side == "edge" else t for t in setup.targets)
    return setup._replace(policy=setup.policy._replace(**policy), targets=targets)


COUNTS = (
    "requests",
    "edge",
    "cloud",
    "cache",
    "unanswered",
    "degraded",
    "queued",
    "deferred",
    "calls",
    "held",
    "deadline_misses",
)
COSTS = ("edge_runs", "sent_bytes", "received_bytes", "usd", "joules")


def counts(numbers, names=COUNTS + COSTS):
    """What is compared of two runs."""
    return {name: pytest.approx(value) if isinstance(value := getattr(numbers, name), float) else value for name in names}


@settings(max_examples=draws(80), deadline=None)
@given(
    st.lists(st.tuples(SURES, FAULTY), min_size=1, max_size=30),
    st.sampled_from(["prefer_edge", "prefer_cloud", "only_edge"]),
    st.floats(0, 1),
    st.sampled_from(["defer", "accept"]),
    st.sampled_from([None, LONG]),
    st.sampled_from([None, Limits(usd_per_day=2.0), Limits(calls_per_minute=3)]),
)
def test_the_same_policy_decides_the_same(inputs, mode, threshold, no_confidence, deadline, limits):
    """Whatever the edge is sure of and however the cloud fails: breaker, limits and costs come out as they were."""
    policy = {"mode": mode, "threshold": threshold, "no_confidence": no_confidence, "deadline": deadline, "limits": limits}
    records, _, setup = asked(inputs, **policy)
    found = replay(collect(records), setup)
    assert (found.changed, found.unknown, found.refused) == (0, {}, {})
    assert counts(found.replayed) == counts(found.recorded)
    assert found.values == (len(records), 0, 0)


@settings(max_examples=draws(60), deadline=None)
@given(st.lists(st.tuples(SURES, st.none()), min_size=1, max_size=30), st.floats(0, 1), st.floats(0, 1))
def test_another_threshold_decides_as_the_router_does(inputs, before, after):
    """What changes is what changes when the router itself is asked again; no answer is told of a cloud that was never asked."""
    records, was, setup = asked(inputs, threshold=before)
    _, now, _ = asked(inputs, threshold=after)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run, "EXAMPLES", len(inputs))
        found = replay(collect(records), but(setup, after))
    if not any(leg == "cloud" for leg, _ in was):
        away = sum(leg == "cloud" for leg, _ in now)
        assert sum(found.unknown.values()) == away
        assert found.replayed.edge == len(inputs) - away
        return
    differ = [record["id"] for record, a, b in zip(records, was, now, strict=True) if a != b]
    assert [change.id for change in found.examples] == differ
    assert found.replayed.cloud == sum(leg == "cloud" for leg, _ in now)
    assert found.values.unknown == sum(a[0] == "edge" and b[0] == "cloud" for a, b in zip(was, now, strict=True))
    assert found.values.seen == sum(a[0] == "cloud" and b[0] == "edge" for a, b in zip(was, now, strict=True))


def test_an_outage_that_ends():
    """The breaker opens and closes where it did: the endpoint is back when the record shows it, and not before."""
    inputs = [(0.1, None)] * 5 + [(0.1, Unreachable("gone"))] * 8 + [(0.1, None)] * 5
    records = []
    with Router(edge, Function(cloud, **TERMS), threshold=0.5, trace=records.append) as router:
        setup = Setup.of(router.engine.snapshot)
        for i, x in enumerate(inputs):
            if i == 13:
                guard = router.engine.snapshot.clouds[0].guard
                guard.rules.breaker.link_up(monotonic())  # the network came back, and a probe was answered
                assert guard.rules.take_probe(monotonic())
                guard.check_health()
            router.infer(x)
    whats = [record["events"][-1].get("error", "ok").partition(":")[0] for record in records]
    assert whats == ["ok"] * 5 + ["Unreachable"] * 3 + ["Held"] * 5 + ["ok"] * 5
    found = replay(collect(records), setup)
    assert found.changed == 0
    assert counts(found.replayed) == counts(found.recorded)
    assert (found.gates["cloud"].asked, found.gates["cloud"].held, found.gates["cloud"].opened) == (13, 5, 1)
    assert found.gates["cloud"].probes >= 1
    found = replay(collect(spread(records, 10.0)), setup)  # now probes fall due within the outage, and fail
    assert (found.changed, found.gates["cloud"].opened) == (0, 1)
    assert found.gates["cloud"].probes > 1


def test_calls_that_were_not_asked_fail_where_those_around_them_failed():
    """A lower threshold in the record's outage meets the outage; elsewhere it is answered."""
    bad, good, unasked = (0.1, Unreachable("gone")), (0.1, None), (0.6, None)
    records, _, setup = asked([good, unasked, bad, unasked, bad, unasked, good, unasked])
    found = replay(collect(spread(records, 1.0)), but(setup, 0.7))
    assert (found.replayed.cloud, found.replayed.degraded, found.replayed.held) == (5, 3, 0)
    assert found.estimated["failures of calls, as those around them failed"] == 1


def test_data_that_may_be_sent_and_received():
    """Both count, at the terms of the endpoint, and against the limit."""
    records, _, setup = asked([(0.1, None)] * 10)
    for record in records:
        record["events"][-1] |= {"sent_bytes": 300_000, "received_bytes": 700_000}
    port = setup.ports["cloud"]
    priced = setup._replace(ports={"cloud": port._replace(terms=port.terms._replace(usd_per_mb=1.0))})
    found = replay(collect(records), priced)
    assert (found.replayed.usd, found.replayed.joules) == (pytest.approx(10 * 1.25), 20.0)
    assert replay(collect(records), priced._replace(limits=Limits(mb_per_day=4.5))).replayed.cloud == 5
    assert replay(collect(records), priced, network="edge").replayed.p50_s == pytest.approx(10.0, abs=0.01)  # its patience
    assert replay(collect(records), priced, network="wifi").replayed.p50_s == pytest.approx(0.14, abs=0.05)


def test_limits_that_are_new():
    """What may be spent bounds what is spent."""
    records, _, setup = asked([(0.1, None)] * 10)
    found = replay(collect(records), setup._replace(limits=Limits(usd_per_day=1.0)))
    assert (found.recorded.usd, found.replayed.usd) == (2.5, 1.0)
    assert (found.replayed.cloud, found.replayed.degraded, found.replayed.held) == (4, 6, 6)
    assert "usd_per_day = 1 is spent" in found.examples[0].replayed
    found = replay(collect(spread(records, 13 * 3600)), setup._replace(limits=Limits(usd_per_day=0.5)))
    assert found.replayed.held == 0


def test_rates_and_calls_at_a_time():
    """Those of the new policy hold, by the times of the record."""
    records, _, setup = asked([(0.1, None)] * 10)
    slow = [{**record, "at": 1e9 + i / 10, "latency_s": 5.0} for i, record in enumerate(records)]
    for record in slow:
        record["events"] = [{**event, "at_s": 5.0 if event["what"] == "accepted" else 0.0} for event in record["events"]]
    port = setup.ports["cloud"]
    one = setup._replace(ports={"cloud": port._replace(terms=port.terms._replace(max_concurrent=3))})
    assert replay(collect(slow), one).replayed.held == 7
    rate = setup._replace(ports={"cloud": port._replace(terms=port.terms._replace(calls_per_s=2.0))})
    assert replay(collect(slow), rate).replayed.held == 10 - 2 - 1
    assert replay(collect(slow), setup).replayed.held == 0


def test_retries_open_the_breaker():
    """Over HTTP each attempt is a fault: a request with two retries opens it alone, live as in the replay."""
    records = []
    replies = iter([GOOD] * 3 + [DOWN] * 50)
    with CannedServer(lambda _: next(replies)) as server:
        # a call longer than its timeout has failed in the replay, whatever its record says: none is, however slow the machine
        endpoint = PlainJson(server.url, usd_per_call=0.5, usd_per_mb=3.0, timeout_s=1e4)
        with Router(edge, endpoint, threshold=0.5, trace=records.append) as router:
            for _ in range(8):
                router.infer([0.1, 0])
            setup = Setup.of(router.engine.snapshot)
    assert setup.ports["cloud"].retries == 2
    found = replay(collect(records), setup)
    assert found.recorded.held == 4
    assert (found.changed, found.gates["cloud"].opened) == (0, 1)
    assert counts(found.replayed, COUNTS) == counts(found.recorded, COUNTS)
    assert found.replayed.sent_bytes == found.recorded.sent_bytes > 0


def test_a_call_that_was_not_asked_again():
    """It was asked, and failed: what it sent counts, and it is not among those that were held."""
    records, _, setup = asked([(0.1, Unreachable("gone"))])
    records[0]["events"][-1] |= {"code": "breaker", "again": True, "sent_bytes": 7}
    found = replay(collect(records), setup)
    assert (found.recorded.held, found.recorded.sent_bytes) == (0, 7)
    assert counts(found.replayed) == counts(found.recorded)


def test_an_endpoint_that_cannot_be_tried():
    """Once its breaker's time is over it counts as back, and the next request finds out."""
    records, _, setup = asked([(0.1, None)] * 30)
    blind = setup._replace(ports={"cloud": setup.ports["cloud"]._replace(health=False)})
    found = replay(collect(spread(records, 60.0)), blind, network="offline")
    assert found.gates["cloud"].asked > FAULTS
    assert found.gates["cloud"].asked + found.gates["cloud"].held == found.replayed.degraded == 30


def test_what_an_endpoint_says_of_an_input_is_no_fault():
    """A 400 opens no breaker, and comes again over any network."""
    records = []
    with (
        CannedServer(http_reply(status=400)) as server,
        Router(edge, PlainJson(server.url), threshold=0.5, trace=records.append) as r,
    ):
        for _ in range(6):
            r.infer([0.1, 0])
        setup = Setup.of(r.engine.snapshot)
    for network in (None, "wifi"):
        found = replay(collect(records), setup, network=network)
        assert (found.replayed.degraded, found.replayed.held, found.gates["cloud"].asked) == (6, 0, 6)
    for error in (Refused("it answered 400", status=400), BadInput("no picture"), Unfit("of another kind")):
        bad = (0.1, error)
        records, _, setup = asked([(0.1, None), bad, (0.6, None), bad])
        assert replay(collect(records), but(setup, 0.7)).replayed.cloud == 2
        records, _, setup = asked([bad] * 6)
        gate = replay(collect(records), setup).gates["cloud"]
        assert (gate.asked, gate.opened) == (6, 0)


def test_a_deadline_that_passed(due):
    """It passes again; a later one needs a call that took longer, and where none is recorded, that cannot be known."""
    gate, begun, records = threading.Event(), threading.Event(), []

    def slow(x):
        if x[1]:
            begun.set()
            gate.wait(LONG)
        return ("cloud", 0.9)

    with Router(edge, slow, threshold=0.5, deadline=due(begun.is_set, seconds=5.0), trace=records.append) as router:
        router.infer((0.1, False))
        router.infer((0.1, True))
        gate.set()
        setup = Setup.of(router.engine.snapshot)
    found = replay(collect(records), setup)
    assert found.recorded.deadline_misses == found.replayed.deadline_misses == 1
    assert (found.changed, found.replayed.degraded) == (0, 1)
    found = replay(collect(records), but(setup, deadline_s=LONG))
    assert (found.replayed.cloud, sum(found.unknown.values())) == (1, 1)
    assert "was given up" in next(iter(found.unknown))
    found = replay(collect(records), but(setup, deadline_s=LONG), keep_deadline=True)
    assert found.replayed.deadline_misses == 1
    assert replay(collect(records), but(setup, deadline_s=LONG), network="wifi").replayed.cloud == 2


def test_deadlines_that_pass_open_the_breaker():
    """An endpoint that has had the time that it usually takes is at fault; one that had less is not."""
    records, _, setup = asked([(0.1, None)] * 20)
    trace = collect(timed(records, lambda i: 0.01, 1.0))
    assert replay(trace, but(setup, deadline_s=0.5)).gates["cloud"].opened >= 1
    assert replay(trace, but(setup, deadline_s=2.0)).gates["cloud"].opened == 0
    slow = timed(records, lambda i: 0.01, 1.0)
    for record in slow[10:]:
        record["deadline_s"] = 0.2
    hurried = replay(collect(slow), setup, keep_deadline=True)
    assert (hurried.replayed.deadline_misses, hurried.gates["cloud"].opened) == (10, 0)


def test_a_race():
    """With a hedge of 0 both run: whoever was quicker is so again, and the loser's answer is not made up."""
    gate, records = threading.Event(), []
    done = Function(lambda x: (gate.wait(LONG), ("cloud", 0.9))[1])
    with Router(edge, done, threshold=0.5, deadline=LONG, trace=records.append, options=Options(hedge_after=0.0)) as router:
        for _ in range(3):
            router.infer((0.9, None))
        gate.set()
        router.infer((0.1, None))
        setup = Setup.of(router.engine.snapshot)
    found = replay(collect(records), setup)
    assert found.changed == 0
    assert counts(found.replayed, ("edge", "cloud", "deferred")) == counts(found.recorded, ("edge", "cloud", "deferred"))


def timed(records, edge_s, cloud_s):
    """The same records with other latencies: of the edge, for the request of each number, and of the cloud."""
    found = []
    for i, record in enumerate(records):
        took, now, events = {"edge": edge_s(i), "cloud": cloud_s}, 0.0, []
        for event in record["events"]:
            now += 0 if event["what"] == "start" else took[event["leg"]]
            events.append({**event, "at_s": now})
        found.append({**record, "at": 1e9 + i, "latency_s": now, "events": events})
    return found


@pytest.mark.parametrize(
    "needs_s", [lambda sure: 2 - 1.9 * sure, lambda sure: 0.2, lambda sure: 4 * 0.1**sure], ids=["line", "none", "power"]
)
def test_latencies_of_calls_go_by_the_confidence(needs_s):
    """Hard inputs take longer, where they do: calls that a higher threshold makes are as quick as those of like inputs."""
    random = Random(1)
    sures = [random.random() for _ in range(2000)]
    took_s = [needs_s(sure) * random.lognormvariate(0, 0.2) for sure in sures]
    records, _, setup = asked([(sure, None) for sure in sures])
    for i, (record, cloud_s) in enumerate(zip(records, took_s, strict=True)):
        for event in record["events"]:
            event["at_s"] = cloud_s if event["leg"] == "cloud" and event["what"] != "start" else 0.0
        record |= {"at": 1e9 + 10 * i, "latency_s": record["events"][-1]["at_s"]}
    replayed = replay(collect(records), but(setup, threshold=0.8)).replayed
    true = sorted(cloud_s if sure < 0.8 else 0.0 for sure, cloud_s in zip(sures, took_s, strict=True))
    assert replayed.cloud == sum(sure < 0.8 for sure in sures)
    assert replayed.p50_s == pytest.approx(true[1000], rel=0.15)
    assert replayed.p90_s == pytest.approx(true[1800], rel=0.15)


def test_hedges_by_what_was_measured():
    """After p90 of the edge the cloud is asked, too, as soon as enough is measured, and not where bytes cost money."""
    records, _, setup = asked([(0.1 if i % 2 else 0.9, None) for i in range(400)])
    trace = collect(timed(records, lambda i: 0.5 if i % 20 == 0 else 0.01, 0.1))
    hedged = but(setup, hedge_after="p90")
    found = replay(trace, hedged)
    assert found.recorded.calls == 200
    assert 210 <= found.replayed.calls <= 220
    assert found.replayed.edge < found.recorded.edge
    assert replay(trace, hedged._replace(metered=True)).replayed.calls == 200
    assert replay(trace, hedged._replace(limits=Limits(usd_per_day=80))).replayed.calls < found.replayed.calls
    assert replay(trace, hedged, network="offline").replayed.held > 180
    fast = setup._replace(targets=(*setup.targets, setup.targets[1]._replace(name="other")), ports=setup.ports)
    assert replay(trace, but(fast, order="fastest")).unknown != {}  # of another cloud nothing is recorded


def test_batches():
    """The rows share a call and its bytes, and each input of a function has its price; the replay lets them, too."""
    records = []
    with Router(edge, Function(cloud, **TERMS), threshold=0.5, trace=records.append) as router:
        router.infer_many([(0.1, None), (0.9, None), (0.2, None), (0.6, None)])
        router.infer_many([(0.2, None), (0.1, None)])
        setup = Setup.of(router.engine.snapshot)
    found = replay(collect(records), setup)
    assert (found.recorded.calls, found.recorded.cloud) == (2, 4)
    assert counts(found.replayed) == counts(found.recorded)
    found = replay(collect(records), but(setup, 0.7))
    assert (found.replayed.calls, found.replayed.cloud, found.replayed.usd) == (2, 5, 1.25)
    records.clear()
    body = b'{"value": "cloud", "confidence": 0.9}'
    with (
        CannedServer(http_reply(body)) as server,
        Router(edge, PlainJson(server.url, usd_per_mb=9.0), threshold=0.5, trace=records.append) as router,
    ):
        router.infer_many([[0.1, 0], [0.2, 0]])
        setup = Setup.of(router.engine.snapshot)
    found = replay(collect(records), setup)
    assert found.recorded.sent_bytes > 0
    assert counts(found.replayed) == counts(found.recorded)


def test_the_edge_did_not_run():
    """What it would have said is not made up: the request is told of, and counted nowhere else."""
    records, _, setup = asked([(0.1, None)] * 3 + [(0.9, RuntimeError("x"))], mode="prefer_cloud")
    found = replay(collect(records), but(setup, mode="prefer_edge"))
    assert found.unknown == {"edge did not run when this was recorded, so its confidence is not known": 3}
    assert (found.replayed.requests, found.replayed.edge, found.recorded.requests) == (1, 1, 4)
    found = replay(collect(records), but(setup, mode="prefer_edge"), keep_mode=True)
    assert (found.unknown, found.changed) == ({}, 0)


def test_the_edge_had_not_ended():
    """Nor what it would have said later."""
    gate, records = threading.Event(), []
    with Router(
        lambda x: (gate.wait(LONG), x)[1], cloud, mode="prefer_cloud", trace=records.append, options=Options(hedge_after=0.0)
    ) as router:
        router.infer((0.1, None))
        gate.set()
        setup = Setup.of(router.engine.snapshot)
    assert [e["what"] for e in records[0]["events"]].count("cancelled") == 1
    assert replay(collect(records), but(setup, 0.5, mode="prefer_edge")).replayed.cloud == 1  # it answers first again
    assert "had not ended" in next(
        iter(replay(collect(records), but(setup, 0.5, mode="prefer_edge", hedge_after=float("inf"))).unknown)
    )


def test_a_cloud_that_was_never_asked():
    """Neither its answer nor its time is known; a network tells the time, and still no answer."""
    records, _, setup = asked([(0.9, None)] * 3)
    found = replay(collect(records), but(setup, 0.95))
    assert sum(found.unknown.values()) == 3
    found = replay(collect(records), but(setup, 0.95), network="3g", server_s=0.5)
    assert (found.unknown, found.replayed.cloud, found.values) == ({}, 3, (0, 0, 3))
    assert found.replayed.p50_s > 0.5
    assert "its answer is not known" in str(found)
    assert "accuracy" not in str(found)


def test_offline():
    """Whatever needed the cloud is degraded, nothing is lost, and little is tried."""
    records, _, setup = asked([(i % 10 / 10, None) for i in range(100)])
    found = replay(collect(spread(records, 60.0)), setup, network="offline")
    assert found.replayed.unanswered == found.replayed.cloud == 0
    assert (found.replayed.edge, found.replayed.degraded) == (100, 50)
    gate = found.gates["cloud"]
    assert (gate.asked, gate.held, gate.opened) == (FAULTS, 50 - FAULTS, 1)
    assert gate.probes <= 25
    raised = replay(collect(spread(records, 60.0)), but(setup, offline="raise"), network="offline")
    assert (raised.replayed.unanswered, raised.replayed.edge) == (50, 50)
    assert replay(collect(records), but(setup, 0.75), network="offline").changed == 80
    queued = replay(collect(spread(records, 60.0)), but(setup, offline="queue"), network="offline")
    assert (queued.replayed.queued, queued.replayed.degraded) == (50, 50)


def test_flapping():
    """For each outage, few calls and few probes; between outages the cloud answers."""
    records, _, setup = asked([(0.1, None)] * 1200)
    found = replay(collect(spread(records, 0.5)), setup, network="flapping")
    outages = 1200 * 0.5 / 60
    gate = found.gates["cloud"]
    assert found.replayed.unanswered == 0
    assert 0 < gate.opened <= outages
    assert gate.probes <= 8 * outages
    failed = gate.asked - found.replayed.cloud
    assert failed <= (FAULTS + 8) * outages
    assert found.replayed.cloud > 600
    slow = setup._replace(ports={"cloud": Port(patience_s=100.0)})
    found = replay(collect(spread(records, 0.5)), slow, network="flapping", server_s=50.0)
    assert (found.replayed.cloud, found.replayed.degraded) == (0, 1200)


@pytest.mark.parametrize("network", NETWORKS)
def test_the_same_seed(network):
    """Gives the same result; another gives another where there is chance in it."""
    records, _, setup = asked([(0.1, None)] * 50)
    trace = collect(spread(records, 3.0))
    first, again, other = (replay(trace, setup, network=network, seed=seed) for seed in (1, 1, 2))
    assert first == again
    assert (first.replayed == other.replayed) is (network == "offline")


def test_networks_are_in_order():
    """A slower network is slower, and a call takes longer than its patience nowhere."""
    records, _, setup = asked([(0.1, None)] * 50)
    medians = [replay(collect(records), setup, network=name).replayed.p50_s for name in ("wifi", "4g", "3g", "edge", "satellite")]
    assert medians == sorted(medians)
    hasty = setup._replace(ports={"cloud": Port(patience_s=0.3)})
    found = replay(collect(spread(records, 1.0)), hasty, network="satellite")
    assert (found.replayed.cloud, found.replayed.degraded) == (0, 50)
    assert found.replayed.p99_s < 0.31 + found.recorded.p99_s


def test_a_link():
    """An exchange takes the round trip, the server's time and its bytes; with a loss a round trip and a timer more."""
    sound = Network(0.1, 0.0, up_bits_per_s=8e6, down_bits_per_s=80e6, loss=0.0)
    lossy, flapping = sound._replace(loss=1.0), sound._replace(on_s=45.0, off_s=15.0)
    assert Link(sound, Random(0)).exchange_s(1e6, 1e6, 0.5) == pytest.approx(0.1 + 0.5 + 1.0 + 0.1)
    assert Link(lossy, Random(0)).exchange_s(0, 0, 0) == pytest.approx(0.1 + 0.1 + RETRANSMIT_S)
    assert [Link(flapping, Random(0)).left_s(now) for now in (0, 44, 45, 59, 60, 130)] == [45, 1, 0, 0, 45, 35]
    assert Link(sound, Random(0)).left_s(1e9) == float("inf")
    assert Link(NETWORKS["offline"], Random(0)).left_s(0) == 0


def test_heat():
    """A hot device's edge gets slower with time."""
    records, _, setup = asked([(0.9, None)] * 20)
    for record in records:  # each took as long: what they took in fact is a few microseconds, and any factor of each other
        record["latency_s"] = 0.01
        for event in record["events"]:
            event["at_s"] = 0.0 if event["what"] == "start" else 0.01
    cool, hot = (replay(collect(spread(records, 60.0)), setup, thermal=name) for name in ("cool", "hot"))
    assert cool.replayed.p99_s == pytest.approx(cool.recorded.p99_s)
    assert hot.replayed.p50_s > cool.replayed.p50_s * 1.25
    slowest = max(heat.times for heat in THERMAL["hot"])
    assert hot.replayed.p99_s <= cool.replayed.p99_s * slowest * 1.01


def test_a_battery_that_runs_out():
    """From then on nothing is served, and it is told when that was."""
    records, _, setup = asked([(0.9, None)] * 100)
    trace = collect(spread(records, 1.0))
    found = replay(trace, setup, battery=Battery(0.5, wh=100 / 3600), edge_joules=1.0)
    assert (found.replayed.requests, found.unserved) == (50, 50)
    assert found.energy.empty_after_s == pytest.approx(50, abs=0.1)
    assert found.energy.left == 0
    idle = replay(trace, setup, battery=Battery(1.0, wh=30.5 / 3600, idle_w=1.0))
    assert idle.energy.empty_after_s == pytest.approx(30.5, abs=0.1)
    assert idle.unserved == 69
    full = replay(trace, setup, battery=Battery(1.0, wh=1.0, idle_w=1.0), edge_joules=1.0)
    assert (full.unserved, full.energy.empty_after_s) == (0, None)
    assert full.energy.spent_joules == pytest.approx(199, abs=0.1)
    assert "EMPTY" in str(found)
    assert "% left" in str(full)


def test_a_policy_that_saves():
    """Below its share of battery, or above its temperature, the rule's mode holds; without readings it does not."""
    records, _, setup = asked([(0.1, None)] * 100)
    trace = collect(spread(records, 7.0))
    saving = but(setup, device_rules=(Rule("battery", "only_edge", 0.5),))
    drained = replay(trace, saving, battery=Battery(1.0, wh=2000 / 3600, idle_w=2.5))
    assert (drained.unserved, drained.replayed.edge) == (0, 100 - drained.replayed.cloud)
    assert drained.replayed.cloud == 52  # by then they took 104 J, and the rest 910 J
    assert replay(trace, saving).replayed.cloud == 100
    hot = but(setup, device_rules=(Rule("heat", "only_edge", 70.0),))
    assert replay(trace, hot, thermal="hot").replayed.cloud == 18
    assert replay(trace, hot, thermal="warm").replayed.cloud == 100
    seldom = but(hot, sensors_every_s=45.0)
    assert replay(trace, seldom, thermal="hot").replayed.cloud == 21, "the sensors are read as often as the policy says"


def test_the_cache():
    """What it answered it answers again; under a policy without one nobody knows what the edge would have said."""
    records, _, setup = asked([(0.9, None)] * 3, cache=Cache())
    found = replay(collect(records), setup)
    assert (found.recorded.cache, found.replayed.cache, found.replayed.edge) == (2, 2, 1)
    found = replay(collect(records), setup._replace(cached=False))
    assert sum(found.unknown.values()) == 2


def test_what_was_queued(tmp_path):
    """It is queued again."""
    records = []
    with CannedServer(DOWN) as server:
        box = Outbox(tmp_path / "outbox.db")
        endpoint = PlainJson(server.url, retries=0)
        with Router(edge, endpoint, threshold=0.5, offline="queue", outbox=box, trace=records.append) as router:
            router.infer([0.1, 0])
            setup = Setup.of(router.engine.snapshot)
    found = replay(collect(records), setup)
    assert (found.recorded.queued, found.replayed.queued) == (1, 1)


def test_data_classes():
    """The new rules decide by the class that is recorded; where no plan is left, that is told."""
    rules = Egress(may_leave=["a", "b"])
    records, _, setup = asked([(0.1, None)] * 4, data_classes=["a", "b", "a", "b"], egress=rules)
    stricter = Egress(may_leave=["a"], never_leave=["b"]).rules
    found = replay(collect(records), but(setup, rules=stricter))
    assert (found.replayed.cloud, found.replayed.edge) == (2, 2)
    assert "data class 'b' never leaves" in found.examples[0].replayed
    found = replay(collect(records), but(setup, rules=stricter, mode="only_cloud"))
    assert sum(found.refused.values()) == found.replayed.unanswered == 2


def test_consent_that_was_not_given():
    """It is not given in the replay either."""
    records, _, setup = asked([(0.1, None)] * 4, egress=Egress(consent=lambda *_: False))
    found = replay(collect(records), setup)
    assert (found.changed, found.replayed.held, found.gates["cloud"].asked) == (0, 4, 0)


def test_an_input_that_the_edge_cannot_take():
    """It ends the request in the replay, too."""

    def picky(x):
        raise BadInput("not a picture")

    records = []
    with Router(picky, cloud, mode="prefer_cloud", trace=records.append) as router:
        router.infer((0.1, None))
        setup = Setup.of(router.engine.snapshot)
    found = replay(collect([_with_edge_failure(records[0])]), but(setup, 0.5, mode="prefer_edge"))
    assert (found.replayed.unanswered, found.replayed.cloud) == (1, 0)


def _with_edge_failure(record):
    events = [
        {"at_s": 0.0, "leg": "edge", "what": "start"},
        {"at_s": 0.0, "leg": "edge", "what": "failed", "error": "BadInput: not a picture", "code": "bad_input"},
    ]
    return {**record, "events": events + record["events"]}


def test_thresholds_by_class():
    """The same ones decide the same; others are known only where every class's decides alike, since no class is recorded."""
    records = []
    with Router(lambda x: x, lambda x: ("cloud", 0.9), threshold=0.5, trace=records.append) as router:
        own = {"cat": 0.3, "dog": 0.8}
        targets = tuple(
            t._replace(thresholds=own, label="by class") if t.side == "edge" else t for t in router.engine.snapshot.targets
        )
        router.engine.snapshot = router.engine.snapshot._replace(targets=targets)
        inputs = [("cat", 0.4), ("cat", 0.2), ("dog", 0.7), ("dog", 0.9), ("cow", 0.45), ("cow", 0.6)]
        legs = [router.infer(x).leg for x in inputs]
        setup = Setup.of(router.engine.snapshot)
    assert legs == ["edge", "cloud", "cloud", "edge", "cloud", "edge"]
    same = replay(collect(records), setup)
    assert (same.changed, same.unknown) == (0, {})
    other = tuple(t._replace(thresholds={"cat": 0.31, "dog": 0.8}, label="new") if t.side == "edge" else t for t in setup.targets)
    found = replay(collect(records), setup._replace(targets=other))
    assert (sum(found.unknown.values()), found.replayed.edge, found.replayed.cloud) == (4, 1, 1)


def test_requests_that_overlap():
    """They are replayed in the order in which they began, whichever ended first."""
    records, _, setup = asked([(0.1, None)] * 3)
    late = timed(records, lambda i: 0.01, 1.0)
    late[0] |= {"at": 1e9 + 10, "latency_s": 10.5}
    trace = collect([late[1], late[2], late[0]])
    assert [request.id for request in trace.requests] == [record["id"] for record in late]
    assert trace.requests[0].begun == 0
    assert replay(trace, setup).changed == 0


def test_a_request_without_an_answer():
    """A record that says so is counted so, and replayed like any."""
    records, _, setup = asked([(0.1, Unreachable("gone"))] * 2)
    records[0] |= {"answered_by": None}
    found = replay(collect(records), setup)
    assert (found.recorded.unanswered, found.replayed.unanswered, found.changed) == (1, 0, 1)


def recorded(path, inputs=20, **trace):
    """A trace in a file."""
    with Router(edge, cloud, threshold=0.5, trace=Trace(path, **trace)) as router:
        for i in range(inputs):
            router.infer((i % 10 / 10, None))
        return Setup.of(router.engine.snapshot)


def test_files(tmp_path):
    """A trace is read with the files that it has filled, in their order."""
    path = tmp_path / "trace.jsonl"
    setup = recorded(path, inputs=30, max_bytes=4000, keep=100)
    assert len(list(tmp_path.iterdir())) > 3
    found = replay(path, setup)
    assert (found.recorded.requests, found.changed, found.skipped) == (30, 0, 0)
    begun = [request.begun for request in read(path).requests]
    assert begun == sorted(begun)
    assert begun[0] == 0


def test_a_line_that_was_cut(tmp_path):
    """It is left out, and that is told."""
    path = tmp_path / "trace.jsonl"
    setup = recorded(path)
    whole = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(whole[:7]) + whole[7][:100] + b"\n" + b"".join(whole[8:]))
    found = replay(path, setup)
    assert (found.recorded.requests, found.skipped) == (19, 1)
    assert "1 incomplete records" in str(found)


def test_records_without_a_time(tmp_path):
    """They are left out, and that is told; a trace of nothing else is none."""
    path = tmp_path / "trace.jsonl"
    setup = recorded(path, 3)
    old = {k: v for k, v in json.loads(path.read_text().splitlines()[0]).items() if k != "at"}
    with_old = tmp_path / "old.jsonl"
    with_old.write_text(json.dumps(old) + "\n" + path.read_text())
    assert replay(with_old, setup).untimed == 1
    with_old.write_text(json.dumps(old))
    with pytest.raises(BadInput, match="1 records without `at`"):
        read(with_old)


def events(side="cloud", **details):
    """A change of a record: the answer has these details."""
    return {
        "plan": [{"leg": "c", "side": side, "label": ""}],
        "answered_by": None,
        "events": [
            {"leg": "c", "what": "start", "at_s": 0.0},
            {"leg": "c", "what": "accepted", "at_s": 1.0, **details},
        ],
    }


def test_infinite_confidences(tmp_path):
    """A trace has them as text."""
    path = tmp_path / "trace.jsonl"
    recorded(path, 5)
    lines = path.read_text().splitlines()
    for i, sure in enumerate(("inf", "-inf")):
        lines[i] = json.dumps({**json.loads(lines[i]), **events(confidence=sure)})
    path.write_text("\n".join(lines))
    assert [request.legs["c"].confidence for request in read(path).requests if "c" in request.legs] == [inf, -inf]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"version": 4}, "line 3: expected a record of version 3, found version 4"),
        ({"version": None}, "line 3: expected a record of version 3, found version None"),
        ({"plan": 7}, "line 3: expected a trace's record, found an incomplete one"),
        ({"latency_s": "1"}, "line 3: .* incomplete"),
        ({"latency_s": 1e301}, "line 3: .* incomplete"),
        ({"deadline_s": "1"}, "line 3: .* incomplete"),
        ({"deadline_s": 1e301}, "line 3: .* incomplete"),
        ({"data_class": {"a": 1}}, "line 3: .* incomplete"),
        ({"mode": "any"}, "line 3: .* incomplete"),
        ({"mode": {}}, "line 3: .* incomplete"),
        (events(confidence="high"), "line 3: .* incomplete"),
        (events(confidence=[0.5]), "line 3: .* incomplete"),
        (events(usd="1"), "line 3: .* incomplete"),
        (events(sent_bytes=1e301), "line 3: .* incomplete"),
        (events(usd=None), "line 3: .* as usd, found None"),
        (events(what={}), "line 3: .* there is no event {}"),
        (events(side="edge", what=[]), r"line 3: .* there is no event \[\]"),
        (events(what="x"), "line 3: .* there is no event 'x'"),
        ({"events": [{"leg": "nobody", "what": "start", "at_s": 0.0}]}, "line 3: .* incomplete"),
    ],
)
def test_records_that_are_none(tmp_path, change, message):
    """One is enough for the whole trace to be refused; the message says where, what was expected and what was found."""
    path = tmp_path / "trace.jsonl"
    recorded(path, 5)
    lines = path.read_text().splitlines()
    lines[2] = json.dumps({**json.loads(lines[2]), **change})
    path.write_text("\n".join(lines))
    with pytest.raises(BadInput, match=message):
        read(path)


def test_files_that_are_no_trace(tmp_path):
    """Another journal, text, nothing, no file: each has its message."""
    ledger = Journal(tmp_path / "egress.jsonl")
    ledger.append({"at": 1.0, "to": "there"})
    ledger.close()
    for name, content, message in (
        ("egress.jsonl", None, "line 1: expected a record of version 3, found none: it is no trace"),
        ("text", b"hello\nyou\n", "expected records of a trace, found 2 lines that are no record"),
        ("empty", b"", "expected records of a trace, found nothing"),
        ("bytes", bytes(range(256)) * 10, "no record"),
    ):
        if content is not None:
            (tmp_path / name).write_bytes(content)
        with pytest.raises(BadInput, match=message):
            read(tmp_path / name)
    with pytest.raises(BadInput, match="there is no such file"):
        read(tmp_path / "nowhere")
    for folder in ("", tmp_path):
        with pytest.raises(BadInput, match="is a folder: expected the file of a trace"):
            read(folder)
    (tmp_path / "t[1].jsonl").touch()
    with pytest.raises(BadInput, match="found nothing"):
        read(tmp_path / "t[1].jsonl")


def test_names_that_are_unknown():
    """The nearest right one is told."""
    records, _, setup = asked([(0.9, None)])
    with pytest.raises(PolicyError, match='did you mean "wifi"'):
        replay(collect(records), setup, network="wify")
    with pytest.raises(PolicyError, match='did you mean "hot"'):
        replay(collect(records), setup, thermal="hott")


POLICY = """
mode = "prefer_edge"
threshold = 0.7
deadline = "2s"
offline = "queue"
state = "state"

[edge]
path = "{model}"

[cloud]
url = "https://cloud.example/v2/models/big"
api_key = {{ env = "NOBODY_HAS_SET_THIS" }}
usd_per_call = 0.01
retries = 5

[limits]
usd_per_day = 3

[egress]
never_leave = ["medical"]
unknown_class = "allow"

[cache]
disk = true
"""


def test_a_policy_file_without_its_model(tmp_path):
    """It is read on any machine: no model, no secret and no connection, and nothing is made on disk."""
    path = tmp_path / "policy.toml"
    path.write_text(POLICY.format(model="models/tiny.onnx"))
    setup = Setup.read(path)
    assert [p.name for p in tmp_path.iterdir()] == ["policy.toml"]
    assert [(t.name, t.side, t.threshold) for t in setup.targets] == [("edge", "edge", 0.7), ("cloud", "cloud", None)]
    assert (setup.policy.deadline_s, setup.policy.offline, setup.limits.usd_per_day, setup.cached) == (2.0, "queue", 3, True)
    assert setup.policy.rules.never_leave == {"medical"}
    port = setup.ports["cloud"]
    assert (port.terms.usd_per_call, port.retries, port.patience_s, port.health) == (0.01, 5, 10.0, True)


def test_a_policy_file_whose_card_is_not_there(tmp_path):
    """Neither is that needed."""
    path = tmp_path / "policy.toml"
    path.write_text(POLICY.format(model="models/tiny.onnx").replace("[cloud]", 'card = "tiny-card.json"\n\n[cloud]', 1))
    assert [t.name for t in Setup.read(path).targets] == ["edge", "cloud"]


@pytest.mark.parametrize("section", ['[fleet]\nto = "up"', "[parts.of_a_package_that_is_not_here]"])
def test_a_policy_file_with_background_work(tmp_path, section):
    """It is left out: a digest, or a part, changes no route."""
    path = tmp_path / "policy.toml"
    path.write_text(POLICY.format(model="tiny.onnx"))
    plain = Setup.read(path)
    path.write_text(f"{path.read_text()}\n{section}\n")
    assert Setup.read(path) == plain._replace(ports=ANY)


def test_a_policy_file_says_what_it_says_to_a_router(tmp_path, monkeypatch):
    """With the models there, policy and targets are the router's own."""
    monkeypatch.setenv("NOBODY_HAS_SET_THIS", "x")
    for name in ("a", "b"):
        (tmp_path / f"{name}.onnx").write_bytes(b"")
    path = tmp_path / "policy.toml"
    two = POLICY.replace("[edge]", "[[edge]]").replace("[cloud]", '[[edge]]\npath = "b.onnx"\n\n[cloud]')
    path.write_text(two.format(model="a.onnx").replace("threshold = 0.7", "threshold = [0.7, 0.8]"))
    setup = Setup.read(path)
    with Router.from_policy(path) as router:
        assert (setup.policy, setup.targets) == (router.engine.snapshot.policy, router.engine.snapshot.targets)
    (tmp_path / "b.onnx").unlink()
    assert Setup.read(path).targets == setup.targets


def test_the_command(tmp_path):
    """Prints both runs side by side, or JSON; its exit codes say whose fault it was."""
    trace, policy = tmp_path / "trace.jsonl", tmp_path / "policy.toml"
    recorded(trace)
    policy.write_text(POLICY.format(model="tiny.onnx"))
    code, out, err = cli(
        "replay", trace, "--policy", policy, "--network", "3g", "--battery", "20%", "--thermal", "hot", "--server-time", "20ms"
    )
    assert (code, err) == (0, "")
    for text in ("recorded", "replayed", "would have gone another way", "battery:", "taken for granted"):
        assert text in out
    code, out, err = cli("replay", trace, "-p", policy, "--json", "--battery", "0.5", "--edge-joules", "1")
    assert (code, err) == (0, "")
    told = json.loads(out)
    assert (told["recorded"]["requests"], told["recorded"]["cloud"], told["replayed"]["cloud"]) == (20, 10, 14)
    assert told["values"] == {"same": 16, "seen": 0, "unknown": 4}
    assert told["energy"]["empty_after_s"] is None
    given = cli("replay", trace, "-p", policy, "--json", "--threshold", "0.95")[1]
    written = tmp_path / "written.toml"
    written.write_text(re.sub("threshold = .*", "threshold = 0.95", policy.read_text()))
    assert json.loads(given) == json.loads(cli("replay", trace, "-p", written, "--json")[1])
    assert json.loads(given)["replayed"]["cloud"] != told["replayed"]["cloud"]
    written.write_text(re.sub("threshold = .*", 'threshold = "gone.json"', policy.read_text()))
    assert cli("replay", trace, "-p", written, "--json", "--threshold", "0.95")[1] == given
    for arguments, code, message in (
        ((trace, "-p", policy, "--threshold", "0.9", "--sweep", "0.5"), 2, "--sweep has thresholds of its own"),
        ((tmp_path / "nowhere", "-p", policy), 1, "there is no such file"),
        ((policy, "-p", policy), 1, "lines that are no record"),
        ((trace, "-p", tmp_path / "none.toml"), 2, "no such file"),
        ((trace, "-p", policy, "--network", "wify"), 2, 'did you mean "wifi"?'),
        ((trace, "-p", policy, "--battery", "120%"), 2, "share"),
    ):
        found, out, err = cli("replay", *arguments)
        assert (found, out) == (code, ""), err
        assert message in err


def test_garbage_is_looked_for_again(tmp_path):
    """After a trace was read, and after one that cannot be."""
    for text in ("", "{}\n"):
        (tmp_path / "t.jsonl").write_text(text)
        with pytest.raises(BadInput):
            read(tmp_path / "t.jsonl")
        assert gc.isenabled()
    gc.disable()
    try:
        with pytest.raises(BadInput):
            read(tmp_path / "t.jsonl")
        assert not gc.isenabled()
    finally:
        gc.enable()
