"""The dashboard's parts: files that are followed while they are written, sums of real records, thresholds tried, who may ask."""

from __future__ import annotations

import asyncio
import contextlib
import copy
import gc
import json
import os
import random
import re
import shlex
import signal
import socket
import threading
import weakref
from pathlib import Path
from time import monotonic

import httpx
import numpy as np
import pytest
from both import flat, wait_for
from commands import cli, started
from draws import draws
from hypothesis import given, settings
from hypothesis import strategies as st
from watched import LONG, Records, monitor_of, monitor_of_file, page_of

from edgeroute import (
    AsyncRouter,
    Audit,
    BadInput,
    Cache,
    EdgerouteError,
    Egress,
    Function,
    Held,
    Limits,
    NoAnswer,
    Options,
    PolicyError,
    Reading,
    Router,
    Rule,
    Unreachable,
)
from edgeroute.confidence import Certificate
from edgeroute.confidence.certificate import BoundCertificate
from edgeroute.core import endpoint_breaker_and_limits as admission
from edgeroute.core.endpoint_breaker_and_limits import FAULTS
from edgeroute.errors import Unfit
from edgeroute.record.instrument_interface import RequestEnded
from edgeroute.stores.json_lines_and_process_locks import Journal
from edgeroute.tools.cli.servers_and_dashboards import file_monitor
from edgeroute.tools.dashboard import dashboard_data_and_tail as monitors
from edgeroute.tools.dashboard import dashboard_data_and_tail as tails
from edgeroute.tools.dashboard.dashboard_data_and_tail import Monitor, Tail
from edgeroute.tools.dashboard.in_process import Dashboard, sources_of
from edgeroute.tools.dashboard.request_window_and_replays import RECENT, ThresholdReplays, reason, row_of
from edgeroute.tools.replay import Setup, collect
from edgeroute.tools.server.uvicorn_with_client_limits import InChild
from edgeroute.tools.state_colours_and_marks import STATES, answer_state

ROOT = Path(__file__).parents[1]


def edge(x):
    """The edge says of itself how sure it is."""
    return ("edge", x)


def cloud(x):
    """Answers, but for less than 0.1."""
    if x < 0.1:
        raise Unreachable("gone")
    return ("cloud", 0.9)


def asked(inputs, *, classes=(), endpoint=None, **policy):
    """The trace of a router after these inputs, its answers, and the policy as replay needs it."""
    records, answers = [], []
    policy = {"threshold": 0.5, **policy}
    endpoint = Function(cloud, usd_per_call=0.25) if endpoint is None else endpoint
    with Router(edge, endpoint, **flat(trace=records.append, **policy)) as router:
        for i, x in enumerate(inputs):
            with contextlib.suppress(NoAnswer):
                answers.append(router.infer(x, data_class=classes[i] if classes else None))
        setup = Setup.of(router.engine.snapshot, policy.get("limits"))
    return records, answers, setup


# ------------------------------------------------------------------------------------------------ files
@settings(max_examples=draws(40), deadline=None)
@given(st.lists(st.one_of(st.integers(1, 60), st.none()), max_size=60), st.integers(1, 4))
def test_every_line_is_read_once(tmp_path_factory, steps, keep):
    """In its order, whatever the rotations between two looks, as long as no file is deleted before; a number: lines; None: a look."""
    path = tmp_path_factory.mktemp("tail") / "trace.jsonl"
    journal, tail = Journal(path, max_bytes=400, keep=keep), Tail(path)
    written, seen, unread = 0, [], 0
    for step in steps:
        if step is None or unread + step > 8 * keep:  # 10 lines fill a file
            seen += [json.loads(line)["n"] for line in tail.read()]
            unread = 0
        for _ in range(min(step or 0, 8 * keep)):
            journal.append({"n": written, "text": "x" * 20})
            written += 1
            unread += 1
    seen += [json.loads(line)["n"] for line in tail.read()]
    assert (seen, tail.gaps, tail.left_out) == ([*range(written)], 0, 0)
    tail.close()
    journal.close()


def test_a_line_that_is_being_written(tmp_path):
    """Is read once it is whole; one that was cut off by a crash ends with the next line's beginning."""
    path = tmp_path / "trace.jsonl"
    tail = Tail(path)
    assert tail.read() == []
    path.write_bytes(b'{"a": 1}\n{"a"')
    assert tail.read() == [b'{"a": 1}']
    with path.open("ab") as file:
        file.write(b": 2}")
    assert tail.read() == []
    with path.open("ab") as file:
        file.write(b'\n\n{"a": 3}\n')
    assert tail.read() == [b'{"a": 2}', b'{"a": 3}']
    path.write_bytes(b'{"a": 4}\n')
    assert tail.read() == [b'{"a": 4}'], "it was cut short from outside"
    tail.close()


def test_a_file_that_is_deleted_unread(tmp_path):
    """Is a gap; what is there is read on."""
    path = tmp_path / "trace.jsonl"
    journal, tail = Journal(path, max_bytes=300, keep=1), Tail(path)
    journal.append({"n": 0})
    assert len(tail.read()) == 1
    for n in range(1, 100):
        journal.append({"n": n, "text": "x" * 20})
    seen = [json.loads(line)["n"] for line in tail.read()]
    assert (tail.gaps, seen[-1], seen) == (1, 99, [*range(seen[0], 100)])
    tail.close()
    journal.close()


@pytest.mark.parametrize("history", [1 << 20, 150, 1])
def test_a_file_that_is_deleted_while_full_ones_are_left(tmp_path, history):
    """These were read before it, or were from before the beginning, and are not read again; the next one is."""
    path = tmp_path / "trace.jsonl"
    journal = Journal(path, max_bytes=300, keep=3)
    for n in range(20):
        journal.append({"n": n, "text": "x" * 20})
    tail = Tail(path, history=history)
    tail.read()
    for n in range(20, 30):
        journal.append({"n": n, "text": "x" * 20})
        tail.read()
    journal.close()
    assert path.with_name("trace.jsonl.2").exists()
    path.unlink()
    assert (tail.read(), tail.read(), tail.gaps) == ([], [], 1)
    path.write_bytes(b'{"n": 30}\n')
    assert (tail.read(), tail.read(), tail.gaps) == ([b'{"n": 30}'], [], 1)
    tail.close()


def test_it_begins_near_the_end(tmp_path, monkeypatch):
    """At a whole line, in a full file where the last one is short; a file of any size takes no more than that."""
    path = tmp_path / "trace.jsonl"
    journal = Journal(path, max_bytes=1000, keep=4)
    for n in range(100):
        journal.append({"n": n, "text": "x" * 20})
    tail = Tail(path, history=1500)
    seen = [json.loads(line)["n"] for line in tail.read()]
    assert seen == [*range(seen[0], 100)]
    assert 30 <= len(seen) <= 45
    monkeypatch.setattr(tails, "BEHIND", 2000)
    for n in range(100, 200):
        journal.append({"n": n, "text": "x" * 20})
    seen = [json.loads(line)["n"] for line in tail.read()]
    assert seen == [*range(seen[0], 200)]
    assert tail.left_out == seen[0] - 100
    tail.close()
    journal.close()


def test_a_line_without_an_end(tmp_path, monkeypatch):
    """Is skipped once it is too long, and is not held; the next one is read."""
    monkeypatch.setattr(tails, "LONGEST", 1000)
    monkeypatch.setattr(tails, "PIECE", 100)
    path = tmp_path / "trace.jsonl"
    path.write_bytes(b"x" * 5000 + b'\n{"n": 1}\n')
    tail = Tail(path, history=1 << 20)
    assert tail.read() == [b'{"n": 1}']
    assert tail.left_out == 1
    monkeypatch.setattr(tails, "BEHIND", 2000)
    with path.open("ab") as file:
        file.write(b'{"n": 2}\n' + b"x" * 5000 + b'\n{"n": 3}\n')
    assert tail.read() == [b'{"n": 3}']
    assert tail.left_out == 3, "one that was long, and one that came too fast before another long one"
    tail.close()


def test_a_file_that_cannot_be_opened(tmp_path):
    """Is told, until it can."""
    path = tmp_path / "trace.jsonl"
    path.mkdir()
    monitor = monitor_of_file(path)
    monitor.read()
    assert str(path) in monitor.view()["error"]
    path.rmdir()
    path.write_text(json.dumps(OWN[0]) + "\n")
    assert monitor.read() == 1
    assert monitor.view()["error"] == ""
    monitor.close()


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no FIFOs")
def test_a_fifo_is_no_trace(tmp_path):
    """It is told, and nothing waits for it; it gets no reader, so what opens it to write is not told that there is one."""
    path = tmp_path / "trace.jsonl"
    monitor = monitor_of_file(path)
    path.write_text(json.dumps(OWN[0]) + "\n")
    assert monitor.read() == 1
    path.rename(tmp_path / "trace.jsonl.1")
    os.mkfifo(path)
    assert monitor.read() == 0
    assert f"{path}: it is no regular file" in monitor.view()["error"]
    with pytest.raises(OSError, match="No such device"):
        os.open(path, os.O_WRONLY | os.O_NONBLOCK)
    path.unlink()
    path.write_text(json.dumps(OWN[1]) + "\n")
    assert (monitor.read(), monitor.view()["error"]) == (1, "")
    monitor.close()


# ------------------------------------------------------------------------------------------------ records and sums
def test_what_a_router_did():
    """Sides, deferrals, failures and costs are the router's own, and a reason says what its reason says."""
    inputs = [0.9, 0.2, 0.05, 0.5, float("nan"), 0.7]
    records, answers, _ = asked(inputs, classes=["a", "a", "a", "b", "a", "a"], egress=Egress(never_leave=["b"], may_leave=["a"]))
    seen = monitor_of(records).view()
    assert seen["answered"] == {"edge": 4, "cloud": 2, "cache": 0, "none": 0}
    assert (seen["requests"], seen["deferred"], seen["degraded"]) == (6, 3, 1)
    legs = {leg["name"]: leg for leg in seen["legs"]}
    assert (legs["edge"]["answers"], legs["cloud"]["answers"], legs["cloud"]["failed"], legs["cloud"]["usd"]) == (6, 2, 1, 0.75)
    assert collect(records).recorded.usd == 0.75
    assert [one["state"] for one in seen["recent"]] == ["edge", "cloud", "private", "degraded", "cloud", "edge"]
    assert [one["id"] for one in seen["odd"]] == [answers[2].id]
    assert {one["text"]: one["count"] for one in seen["reasons"]}["edge answers"] == 2
    for series in seen["series"].values():
        assert {state: n for state in (*STATES, "none") if (n := sum(series[state]))} == {
            "edge": 2,
            "private": 1,
            "cloud": 2,
            "degraded": 1,
        }
        assert sum(series["requests"]) == 6
    json.dumps(seen)


def unfit(_):
    raise Unfit("too long", code="context")


def broken(_):
    raise ValueError("a foreign text")


@pytest.mark.parametrize(
    ("targets", "policy", "call"),
    [
        ((edge, cloud), {}, {}),
        ((edge, cloud), {"egress": Egress(never_leave=["b"])}, {"data_class": "b"}),
        ((edge, cloud), {}, {"mode": "only_edge"}),
        ((edge, cloud), {}, {"mode": "prefer_cloud"}),
        ((edge, cloud), {"sensors": lambda: Reading(battery=0.1, mains=False), "rules": [Rule("battery", "only_edge", 0.2)]}, {}),
        ((edge, cloud), {"limits": Limits(calls_per_minute=1)}, {}),
        ((edge, cloud), {"cache": Cache()}, {}),
        ((edge, cloud), {"offline": "queue"}, {}),
        ((edge, broken), {}, {}),
        ((unfit, cloud), {}, {}),
        ((lambda _: ("edge", None), cloud), {}, {}),
        ((edge, None), {}, {}),
    ],
)
def test_a_reason_is_the_answers(tmp_path, targets, policy, call):
    """To the letter, of what is private or only on the edge, too; and a state is that of the answer's public attributes."""
    records = []
    state = {"state": tmp_path} if "offline" in policy else {}
    with Router(*targets, **flat(trace=records.append, threshold=0.85, **policy, **state)) as router:
        for x in (0.95, 0.706, 0.2, 0.2, 0.05, 0.05, 0.05, 0.05):
            with contextlib.suppress(NoAnswer):
                answer = router.infer(x, **call)
                row = row_of(records[-1])
                assert reason(row) == answer.reason
                assert row.state == answer_state(answer.source, answer.reason_code, degraded=answer.degraded, final=answer.final)


def test_an_outage_and_its_end():
    """Is told from the first failure on, once the breaker would open, with its requests; then its end."""
    records, _, _ = asked([0.2] + [0.05] * (FAULTS - 1) + [0.9], hedge_after=None)
    monitor = monitor_of(records)
    assert monitor.view()["away"] == [], "two failures are no outage"
    fails, _, _ = asked([0.05] * (FAULTS + 2), hedge_after=None)
    fails = [{**record, "at": record["at"] + 1} for record in fails]
    monitor = monitor_of([*records, *fails])
    (away,) = monitor.view()["away"]
    assert away == {"name": "cloud", "since": records[1]["at"], "failed_at": fails[-1]["at"], "unserved": 2 * FAULTS + 1}
    again = {**records[0], "at": fails[-1]["at"] + 1}
    monitor = monitor_of([*records, *fails, again])
    (leg,) = (leg for leg in monitor.view()["legs"] if leg["name"] == "cloud")
    assert (monitor.view()["away"], leg["unserved"], leg["was_away"]) == ([], 0, (records[1]["at"], again["at"]))


def test_a_short_deadline_is_no_outage():
    """A call that was given less than the cloud's usual time says nothing of it; one that had it does."""
    records, _, _ = asked([0.2] * 3, hedge_after=None)

    def late(record, took_s):
        events = [dict(event) for event in record["events"]]
        events[-1] = {"what": "timeout", "leg": "cloud", "at_s": events[-2]["at_s"] + took_s}
        return {
            **record,
            "events": events,
            "answered_by": "edge",
            "accepted": False,
            "reason_code": "deadline",
            "deadline_s": took_s,
        }

    assert monitor_of([*records, *(late(record, 0.0) for record in records)]).view()["away"] == []
    assert [one["name"] for one in monitor_of([*records, *(late(record, LONG) for record in records)]).view()["away"]] == [
        "cloud"
    ]


def test_a_breaker_of_this_process_goes_first():
    """It knows that a probe was answered, of which no record tells; and of a cloud that no answer names."""
    records, _, _ = asked([0.05] * FAULTS, hedge_after=None)
    assert [one["name"] for one in monitor_of(records).view()["away"]] == ["cloud"]
    assert monitor_of(records, state=lambda: {"breakers": {"cloud": "closed"}}).view()["away"] == []
    assert monitor_of(records, state=lambda: {"breakers": {"cloud": "half-open"}}).view()["away"] != []
    (away,) = monitor_of([], state=lambda: {"breakers": {"cloud": "open", "other": "closed"}}).view()["away"]
    assert away == {"name": "cloud", "since": None, "failed_at": 0.0, "unserved": 0}


@pytest.mark.parametrize("health", [None, lambda: None])
def test_a_function_without_a_health_check_stays_away(monkeypatch, health):
    """Its breaker closes untested, so that the next input is the probe; that is no sign that it is back."""
    monkeypatch.setattr(admission, "FIRST_S", 0.0)  # a probe is due at once
    with Router(edge, Function(cloud, health=health), threshold=0.5) as router:
        for _ in range(FAULTS + 1):  # one more, which starts the probe
            router.infer(0.05)
        wait_for(lambda: {leg.name: leg.breaker for leg in router.stats().legs}["cloud"] == "closed")
        assert sources_of(router).state()["breakers"] == {"cloud": "closed" if health else "half-open"}


def test_what_waited_and_arrives_ends_an_outage(monkeypatch):
    """No answer tells it where nothing is deferred: the outbox's deliveries do, but those before the last failure."""
    records, _, _ = asked([0.05] * FAULTS, hedge_after=None)
    state = {"outbox": {"waiting": 3, "delivered": 5}}
    monkeypatch.setattr(monitors, "STATE_S", 0.0)
    monitor = monitor_of(records, state=lambda: state)
    monitor.poll()
    assert [one["name"] for one in monitor.view()["away"]] == ["cloud"]
    state = {"outbox": {"waiting": 2, "delivered": 6}}
    monitor.poll()
    assert monitor.view()["away"] == []


def test_the_requests_of_a_bar(monkeypatch):
    """Those from its beginning up to its end, the newest first, without the inputs of the trace; and if older ones are gone."""
    records, _, _ = asked([0.9, 0.2, 0.9, 0.05])
    records = [{**record, "at": 1000.0 + i, "input": "a secret"} for i, record in enumerate(records)]
    monitor = monitor_of(records)
    seen = monitor.between(1001, 1003)
    assert ([row["id"] for row in seen["rows"]], seen["count"], seen["whole"]) == ([records[2]["id"], records[1]["id"]], 2, True)
    assert [row["odd"] for row in monitor.between(1002, 2000)["rows"]] == [True, False]
    assert "secret" not in json.dumps(seen)
    assert monitor.between(0, 1)["count"] == 0
    monkeypatch.setattr(monitors, "REPLAYED", 2)
    monkeypatch.setattr(monitors, "LISTED", 1)
    few = monitor_of(records)
    seen = few.between(1000, 1003)
    assert ([row["id"] for row in seen["rows"]], seen["count"], seen["whole"]) == ([records[2]["id"]], 1, False)
    assert few.between(1003, 1004)["whole"]


def test_breakers_limits_and_the_cache(monkeypatch):
    """An endpoint that is not asked is told apart from one that fails, with the state of its breaker as its calls show it."""
    monkeypatch.setattr(admission, "FIRST_S", 1e6)  # no probe is due while this runs, however slow the machine
    records, _, _ = asked([0.05] * (FAULTS + 2), hedge_after=None)
    leg = {leg["name"]: leg for leg in monitor_of(records).view()["legs"]}["cloud"]
    assert (leg["failed"], leg["held"], leg["breaker"]) == (FAULTS, 2, "open")
    records, _, _ = asked([0.2, 0.2, 0.2], limits=Limits(calls_per_minute=1))
    seen = monitor_of(records).view()
    leg = {leg["name"]: leg for leg in seen["legs"]}["cloud"]
    assert (leg["answers"], leg["held"], leg["breaker"]) == (1, 2, "closed")
    assert any("calls_per_minute" in one["text"] for one in seen["reasons"])
    records, _, _ = asked([0.9, 0.9], cache=Cache())
    assert monitor_of(records).view()["answered"] == {"edge": 1, "cloud": 0, "cache": 1, "none": 0}


def test_rules_and_readings_of_a_record():
    """The rules in force and the device's state are those that the latest record has."""
    low = Rule("battery", "only_edge", 0.2)
    records, _, _ = asked([0.2], sensors=lambda: Reading(battery=0.1, mains=False), rules=[low, Rule("heat", "unload", 80)])
    seen = monitor_of(records).view()
    assert seen["rules"] == [{"text": "battery below 20%: only_edge", "in_force": True}]
    assert seen["device"]["reading"] == {"battery": 0.1, "mains": False}
    assert seen["device"]["by"] == "the router, in its trace"


def test_a_batch_costs_once():
    """The record of each row has what the call took; it is counted once."""
    records = []
    with Router(edge, Function(cloud, usd_per_call=0.25), threshold=0.5, trace=records.append) as router:
        router.infer_many([0.2, 0.3, 0.4])
        spent = router.stats().usd_today
    leg = {leg["name"]: leg for leg in monitor_of(records).view()["legs"]}["cloud"]
    assert (leg["answers"], leg["usd"]) == (3, records[0]["events"][-1]["usd"])
    assert spent >= leg["usd"]


RUBBISH = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(
            st.sampled_from([
                "at", "id", "events", "plan", "latency_s", "answered_by", "what", "leg", "side", "at_s", "facts", "rules", "of",
                "accepted", "data_class", "reading", "note", "threshold", "confidence",
            ]),
            inner, max_size=6,
        ),
    ),
    max_leaves=20,
)  # fmt: skip


@pytest.mark.parametrize("threshold", [[], {}, "high"])
def test_a_record_whose_threshold_is_none(threshold):
    """It is left out, and another threshold can be tried on the others."""
    odd = json.loads(json.dumps(OWN[0]))
    odd["plan"][0]["threshold"] = threshold
    monitor = Monitor(Records([odd, OWN[0]]))
    monitor.read()
    assert monitor.trial()["requests"] == 1


@settings(max_examples=draws(60), deadline=None)
@given(RUBBISH, st.data())
def test_records_that_are_none(rubbish, data):
    """Are counted, and hinder nothing: a record that is foreign, or a router's own with a part of it replaced."""
    own = json.loads(json.dumps(OWN[data.draw(st.integers(0, len(OWN) - 1))]))
    where = own
    while isinstance(where, dict | list) and where:
        key = data.draw(st.sampled_from(sorted(where) if isinstance(where, dict) else [*range(len(where))]))
        if data.draw(st.booleans()) or not isinstance(where[key], dict | list):
            where[key] = rubbish
            break
        where = where[key]
    records = Records([own, *([rubbish] if isinstance(rubbish, dict) else [])])
    monitor = Monitor(records)
    monitor.read()
    json.loads(monitor.text())
    json.dumps(monitor.between(-1e300, 1e300))
    records.fresh.append(OWN[0])
    monitor.read()
    assert monitor.view()["recent"][0]["id"] == OWN[0]["id"]
    json.loads(monitor.text())
    assert monitor.trial()["requests"] >= 1


OWN, _, _ = asked([0.9, 0.2, 0.05])


def test_memory_is_bounded(tmp_path):
    """Whatever comes: many names, many classes, many batches, huge lines, instants far apart."""
    rng = random.Random(0)
    records = []
    for i in range(RECENT + 500):
        record = json.loads(json.dumps(OWN[1]))
        name = f"cloud-{rng.random()}"
        record |= {"id": f"{i}.{i}", "at": rng.choice([0, 1e9, 1e15, record["at"]]), "data_class": "x" * rng.choice([1, 10_000])}
        for part in (*record["plan"], *record["events"]):
            part["leg"] = name if part["leg"] == "cloud" else "edge"
        record["answered_by"] = name
        records.append(record)
    monitor = monitor_of(records)
    assert len(monitor.text()) < 500_000
    assert len(monitor.view()["legs"]) <= 32
    assert monitor.trial()["requests"] <= monitors.REPLAYED


def test_a_record_that_is_too_large():
    """Is counted as lost, and kept nowhere: not in what is shown either."""
    monitor = monitor_of([OWN[0], {**OWN[1], "more": [0] * monitors.RECORD_BYTES}])
    seen = monitor.view()
    assert (seen["requests"], seen["lost"]) == (1, 1)
    assert [one["id"] for one in seen["recent"]] == [OWN[0]["id"]]


def test_a_state_that_hangs_does_not_hold_the_end(monkeypatch):
    """Closing waits for it a while, not for ever."""
    monkeypatch.setattr(monitors, "CLOSE_S", 0.01)
    monkeypatch.setattr(monitors, "EVERY_S", 0.01)
    hangs, over, closed, hung = threading.Event(), threading.Event(), threading.Event(), []

    def state():
        if threading.current_thread() is not threading.main_thread():
            hung.append(threading.current_thread())
            hangs.set()
            over.wait(2 * LONG)
        return {}

    monkeypatch.setattr(monitors, "STATE_S", 0.0)
    monitor = Monitor(Records(), monitors.Sources(state), "a test")
    monitor.start()
    assert hangs.wait(LONG)
    ends = threading.Thread(target=lambda: (monitor.close(), closed.set()), daemon=True)
    ends.start()
    in_time = closed.wait(LONG)
    over.set()
    ends.join(LONG)
    hung[0].join(LONG)
    assert in_time


# ------------------------------------------------------------------------------------------------ another threshold
@settings(max_examples=draws(25), deadline=None)
@given(st.lists(st.floats(0.1, 1), min_size=1, max_size=30), st.floats(0.1, 1))
def test_a_threshold_does_what_a_router_with_it_does(inputs, threshold):
    """As many deferrals and the same cost, whether the policy is known or follows from the trace."""
    inputs = [*inputs, 0.2]  # which the cloud answers in the trace: else what a call takes is not known
    records, _, setup = asked(inputs)
    _, again, _ = asked(inputs, threshold=threshold)
    deferred = sum(answer.source == "cloud" for answer in again)
    for known in (setup, None):
        found = ThresholdReplays(records, known, {}).at("edge", threshold)
        assert (found["calls"], found["edge"]) == (deferred, len(inputs) - deferred)
        assert found["usd"] == pytest.approx(0.25 * deferred)


def test_without_the_policy_what_stays_stays():
    """A class that never left in the trace does not leave in its replay."""
    records, _, _ = asked([0.2, 0.2, 0.9], classes=["a", "b", "a"], egress=Egress(never_leave=["b"], may_leave=["a"]))
    found = ThresholdReplays(records).at("edge", 1.0)
    assert (found["calls"], found["edge"]) == (2, 1)
    assert found["promise"]["held"] is None


def test_the_slider_reaches_all():
    """Its thresholds part the recorded confidences evenly, from accepting everything to deferring everything."""
    records, _, setup = asked([i / 1000 for i in range(100, 1000)])
    (shown,) = ThresholdReplays(records, setup, {}).shown()["edges"]
    assert shown["steps"] == sorted(set(shown["steps"]))
    assert 0.5 in shown["steps"]
    assert (shown["points"][0]["deferral_rate"], shown["points"][-1]["deferral_rate"]) == (0, 1)
    assert all(a["deferral_rate"] <= b["deferral_rate"] for a, b in zip(shown["points"], shown["points"][1:], strict=False))


def test_accuracy_is_that_of_the_audits(tmp_path):
    """The share of audited requests whose answer is the cloud's, deferred ones included, as a plain count has it."""
    state, truth = tmp_path / "state", {}

    def differs(x):
        return ("edge" if x > 0.8 else "other", x)

    def asks(_):
        return ("edge", 0.9)

    records = []
    with Router(differs, asks, threshold=0.5, state=state, audit=Audit(share=1.0, scene=1), trace=records.append) as router:
        inputs = [i / 200 for i in range(100, 200)] + [i / 100 for i in range(30, 50)]
        for x in inputs:
            truth[router.infer(x).id] = x
            until = monotonic() + LONG
            while router.engine.auditor.jobs.busy:  # else fewer are drawn
                assert monotonic() < until
        monitor = monitor_of(records, setup=sources_of(router).setup, certificates=sources_of(router).certificates, folder=state)
        monitor.trial()
        for threshold in (0.5, 0.7, 0.81, 1.0):
            found = monitor.try_threshold("edge", threshold)["agreement"]
            plain = np.mean([x < threshold or x > 0.8 for x in truth.values()])
            assert (found["audited"], found["share"]) == (len(inputs), pytest.approx(plain))
            assert found["low"] <= plain <= found["high"]
        monitor.close()


def test_the_cost_of_audits(tmp_path):
    """Is that of the calls made for them, of a failed one, too; together with the requests' it is what was spent."""
    records, prices = [], Function(lambda x: None if x > 0.85 else ("edge", 0.9), usd_per_call=0.25)
    with Router(
        lambda x: ("edge", x), prices, threshold=0.5, state=tmp_path, audit=Audit(share=1.0), trace=records.append
    ) as router:
        for x in (0.2, 0.9, 0.8, 0.3):
            router.infer(x)
            until = monotonic() + LONG
            while router.engine.auditor.jobs.busy:  # else fewer are drawn
                assert monotonic() < until
        monitor = monitor_of(records, folder=tmp_path)
        until = monotonic() + LONG
        while (seen := monitor.view())["audits"] != {"calls": 2, "usd": pytest.approx(0.5)}:
            assert monotonic() < until
            monitor.read()
        assert {leg["name"]: leg["usd"] for leg in seen["legs"]} == {"edge": 0, "cloud": pytest.approx(0.5)}
        assert router.stats().usd_today == pytest.approx(1.0)
        monitor.close()


def audited(edge_confidence, agrees):
    """A line of the audit log."""
    return {
        "target": "edge", "fingerprints": {}, "audited": "shadow", "edge_confidence": edge_confidence, "probability": 1.0, "agrees": agrees,
    }  # fmt: skip


@pytest.mark.parametrize(("number", "share"), [(29, None), (30, 0.5)])
def test_few_audits_say_nothing(number, share):
    """Below 30 there is their number, and no share."""
    records, _, setup = asked([0.2, 0.9])
    audits = [audited(0.9, i % 2 == 0) for i in range(number)]
    found = ThresholdReplays(records, setup, {}, audits).at("edge", 0.5)["agreement"]
    assert (found["audited"], found["share"], found["low"] is None) == (number, share, share is None)


def promised(kind="max_loss", threshold=0.6, **more):
    return Certificate(
        kind, 0.1, 0.95, "CP-harm", False, 500, "2026-11-20", threshold, {}, 0.2, (0.15, 0.25), {}, 0.0, "msp", {},
        {"edge": "e", "cloud": "c", "score": "s", "codec": "k"},
    )._replace(**more)  # fmt: skip


@pytest.mark.parametrize(
    ("certificate", "used", "held"),
    [
        (promised(), "e", [False, True, True]),
        (promised(highest=0.7), "e", [False, True, False]),
        (promised(ladder=({}, {})), "e", [False, True, False]),  # about all edges together, at these thresholds alone
        (promised("max_defer"), "e", [True, True, False]),
        (promised(thresholds={"a": 0.8}), "e", [False, False, True]),
        (promised(), "another", [False, False, False]),
        (None, "e", [False, False, False]),
    ],
)
def test_the_promise_is_only_where_it_holds(certificate, used, held):
    """Below the certified threshold nothing is guaranteed, nor above the highest one, nor of another model."""
    records, _, setup = asked([0.2, 0.9])
    prints = {"edge": used, "cloud": "c", "score": "s", "codec": "k"}
    bound = {} if certificate is None else {"edge": BoundCertificate(certificate, prints, 1e9)}
    trial = ThresholdReplays(records, setup, bound)
    found = [trial.at("edge", threshold)["promise"] for threshold in (0.5, 0.6, 0.9)]
    assert [one["held"] for one in found] == held
    for one in found:
        assert (certificate is not None and one["text"] == certificate.guarantee) == one["held"]


def test_after_a_drift_alarm_nothing_is_promised():
    """The alarm is known by the latest requests, and not by the certificate."""
    records, _, setup = asked([0.2, 0.9])
    for leg in records[-1]["plan"]:
        leg["label"] = "uncalibrated: drift alarm of 2026-11-28: more differ"
    bound = {"edge": BoundCertificate(promised(), {"edge": "e", "cloud": "c", "score": "s", "codec": "k"}, 1e9)}
    found = ThresholdReplays(records, setup, bound).at("edge", 0.6)["promise"]
    assert (found["held"], "drift alarm" in found["text"]) == (False, True)


def test_nothing_to_try():
    """Says so: before the first request, of an edge that is none, at no threshold."""
    monitor = monitor_of([])
    for call in (monitor.trial, lambda: monitor.try_threshold("edge", 0.5), lambda: ThresholdReplays(OWN).at("cloud", 0.5),
                 lambda: ThresholdReplays(OWN).at("edge", float("nan"))):  # fmt: skip
        with pytest.raises(BadInput):
            call()


# ------------------------------------------------------------------------------------------------ the page
def test_who_may_ask(tmp_path):
    """The page is empty and needs no token; what it asks for does. No other host's name, no other site, no other method."""
    from starlette.responses import PlainTextResponse
    from starlette.routing import Route

    more = [Route("/metrics", lambda _: PlainTextResponse("one 1"))]
    with page_of(monitor_of_file(tmp_path / "trace.jsonl"), routes=more) as address:
        url, _, token = address.partition("/#token=")
        with httpx.Client(base_url=url, timeout=LONG) as client:
            first, second = client.get("/"), client.get("/")
            nonces = [
                re.search(r"script-src 'nonce-([\w-]{20,})'", one.headers["content-security-policy"])[1]
                for one in (first, second)
            ]
            assert nonces[0] != nonces[1]
            assert first.text.count(nonces[0]) == 2
            assert "default-src 'none'" in first.headers["content-security-policy"]
            assert not re.findall(r"(?:src|href|url)\s*[=(]\s*[\"']?(?:https?:)?//", first.text), (
                "nothing is loaded from elsewhere"
            )
            assert not re.findall(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(", first.text)
            assert token not in first.text
            right = {"Authorization": f"Bearer {token}"}
            for path in ("/live", "/requests", "/trial", "/trial/at", "/metrics", "/none"):
                assert client.get(path).status_code == 401
                assert client.get(path, headers={"Authorization": "Bearer no"}).status_code == 401
                assert client.get(path, headers={**right, "Host": "evil.example"}).status_code == 421
                assert client.get(path, headers={**right, "Origin": "http://evil.example"}).status_code == 403
                assert client.get(path, headers={**right, "Sec-Fetch-Site": "cross-site"}).status_code == 403
            assert client.get("/", headers={"Host": "evil.example"}).status_code == 421
            link = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "document"}
            assert client.get("/", headers=link).text.count(token) == 0  # as a notebook's link to the page
            for change in ({"Sec-Fetch-Dest": "iframe"}, {"Sec-Fetch-Mode": "no-cors"}, {"Origin": "http://evil.example"}):
                assert client.get("/", headers={**link, **change}).status_code == 403
            assert client.get("/", headers=link).status_code == 200
            assert client.get("/", headers={**link, "Host": "evil.example"}).status_code == 421
            assert client.get("/live", headers={**right, **link}).status_code == 403
            assert client.get("/metrics", headers=right).text == "one 1"
            assert client.post("/live", headers=right, json={}).status_code == 405
            assert client.get("/live", headers=right).json()["requests"] == 0
            assert client.get("/live", headers=right).headers["cache-control"] == "no-store"
            assert client.get("/trial", headers=right).status_code == 400
            for query in ("", "?edge=edge", "?edge=edge&threshold=nan", "?edge=edge&threshold=x"):
                assert client.get(f"/trial/at{query}", headers=right).status_code == 400
            for query in ("", "?begin=1", "?begin=0&end=inf", "?begin=x&end=1"):
                assert client.get(f"/requests{query}", headers=right).status_code == 400
            assert client.get("/requests?begin=0&end=1", headers=right).json() == {"rows": [], "count": 0, "whole": True}


def test_a_router_in_this_process(monkeypatch):
    """Is shown while it runs, with its breakers as they are; no input is kept; and the page ends with it."""
    monkeypatch.setattr(admission, "FIRST_S", 1e6)  # no probe is due while this runs, however slow the machine
    held = []

    class Input(float):
        def __del__(self):
            held.pop()

    dashboard = Dashboard()
    with Router(edge, Function(cloud, usd_per_call=0.25), threshold=0.5, options=Options(instruments=[dashboard])) as router:
        url, _, token = dashboard.serve(router).partition("/#token=")
        with pytest.raises(PolicyError, match="already"):
            dashboard.serve(router)
        for x in [0.9] * 5 + [0.05] * FAULTS:
            held.append(x)
            router.infer(Input(x))
        with pytest.raises(Held):
            router.infer(0.05, mode="only_cloud")
        with httpx.Client(base_url=url, headers={"Authorization": f"Bearer {token}"}, timeout=LONG) as client:
            until = monotonic() + LONG
            while (seen := client.get("/live").json())["requests"] < 5 + FAULTS or seen["state"]["breakers"]["cloud"] != "open":
                assert monotonic() < until
            assert {leg["name"]: leg["breaker"] for leg in seen["legs"]}["cloud"] == "open"
            assert (seen["state"]["edges"][0]["threshold"], seen["raised"]) == (0.5, 1)
            assert client.get("/trial").json()["requests"] == 5 + FAULTS
    wait_for(
        lambda: gc.collect() >= 0 and held == []
    )  # an error's traceback has its input, and so has a thread that is about to end
    with pytest.raises(httpx.ConnectError):
        httpx.get(url, timeout=LONG)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="it has no fork")
def test_a_socket_that_an_event_loop_uses_is_closed_in_the_child():
    """uvloop counts itself among its users, as `makefile` does: then `close` would wait for them."""
    listener, other = socket.socketpair()
    with other, listener.makefile("rb"):
        child = InChild(listener)
        child.after_fork()
        other.setblocking(False)
        assert other.recv(1) == b""  # while it is open, BlockingIOError
        child.after_fork()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="it has no fork")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_the_child_of_a_fork_does_not_keep_the_port():
    """The parent's page works on, and with its end nobody listens there, although the child lives."""
    with Router(edge, threshold=0.5, options=Options(instruments=[dashboard := Dashboard()])) as router:
        url, _, token = dashboard.serve(router).partition("/#token=")
        reads, writes = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(writes)
            os.read(reads, 1)
            os._exit(0)
        try:
            os.close(reads)
            assert httpx.get(f"{url}/live", headers={"Authorization": f"Bearer {token}"}, timeout=LONG).status_code == 200
            router.close()
            with pytest.raises(httpx.ConnectError):
                httpx.get(url, timeout=LONG)
        finally:
            os.close(writes)
            os.waitpid(child, 0)


def test_metrics_on_the_dashboard():
    """Behind its token, of the same router."""
    pytest.importorskip("prometheus_client")
    with Router(edge, threshold=0.5, options=Options(instruments=[dashboard := Dashboard()])) as router:
        router.infer(0.9)
        url, _, token = dashboard.serve(router, metrics=True).partition("/#token=")
        assert httpx.get(f"{url}/metrics", timeout=LONG).status_code == 401
        page = httpx.get(f"{url}/metrics", headers={"Authorization": f"Bearer {token}"}, timeout=LONG).text
    assert 'edgeroute_routed_total{router=""} 1.0' in page.splitlines()


def counted(url, token):
    """Requests that a page has seen, those answered and those that raised."""
    live = httpx.get(f"{url}/live", headers={"Authorization": f"Bearer {token}"}, timeout=LONG).json()
    return live["requests"], live["raised"]


def test_a_router_on_an_event_loop():
    """Is shown as well, and its page ends as it is closed; the child of a fork has none."""
    dashboard = Dashboard()

    async def run():
        async with AsyncRouter(edge, threshold=0.5, options=Options(instruments=[dashboard])) as router:
            url, _, token = dashboard.serve(router).partition("/#token=")
            for _ in range(3):
                await router.infer(0.9)
            async with httpx.AsyncClient(base_url=url, headers={"Authorization": f"Bearer {token}"}, timeout=LONG) as client:
                until = monotonic() + LONG
                while (await client.get("/live")).json()["requests"] < 3:
                    assert monotonic() < until
            child = copy.copy(dashboard)
            child.after_fork()
            child.request_ended(RequestEnded("x", None, None, None))
            assert counted(*child.serve(router).split("/#token=")) == (0, 0)
            child.close()
        return url

    url = asyncio.run(run())
    with pytest.raises(httpx.ConnectError):
        httpx.get(url, timeout=LONG)


def test_a_router_that_is_faster_than_its_dashboard(monkeypatch):
    """Drops what waits longest, and says how many; a dashboard that nobody serves holds nothing."""
    from edgeroute.tools.dashboard import in_process as inside

    monkeypatch.setattr(inside, "MOST", 10)
    ended = inside.AnswerFeed()
    with Router(edge, threshold=0.5, options=Options(instruments=[dashboard := Dashboard()])) as router:
        router.infer(0.9)
        assert counted(*dashboard.serve(router).split("/#token=")) == (0, 0)
    records = []

    class Keeps(Dashboard):
        def request_ended(self, one):
            ended.add(one)

    with Router(edge, threshold=0.5, options=Options(instruments=[Keeps()]), trace=records.append) as router:
        for _ in range(25):
            router.infer(0.9)
    taken = [*ended.take()]
    assert (len(taken), ended.lost()) == (10, 15)
    assert [one["id"] for one in taken] == [one["id"] for one in records[-10:]]


def test_values_do_not_wait_for_the_dashboard():
    """Nor do outputs, inputs, or the exceptions of clouds that failed; the record is the same."""
    from edgeroute.tools.dashboard.in_process import AnswerFeed

    class Large:
        """Some megabytes."""

    def sees(x):
        weak.append(weakref.ref(large := Large()))
        return large, x

    def cloud(_):
        weak.append(weakref.ref(large := Large()))
        raise Unreachable(f"down {large!r:.5}")

    weak, ended, records = [], AnswerFeed(), []

    class Keeps(Dashboard):
        def request_ended(self, one):
            ended.add(one)

    with Router(sees, cloud, threshold=0.5, options=Options(instruments=[Keeps()]), trace=records.append) as router:
        for x in (0.9, 0.2, 0.9):
            router.infer(x)
        gc.collect()
        assert len(records) == 3, "and nobody has taken them"
        assert len(weak) >= 3
        assert [one() for one in weak] == [None] * len(weak)
    for taken, traced in zip(ended.take(), records, strict=True):
        assert {**taken, "at": 0} == {**traced, "at": 0}


@pytest.mark.slow
# ------------------------------------------------------------------------------------------------ the commands
def test_from_another_process(tmp_path, fashion):
    """By the policy alone: requests, guarantees, what was sent and what waits, while the router writes them."""
    policy = tmp_path / "shop.toml"
    policy.write_text(
        f'state = "state"\nthreshold = 0.9999\noffline = "queue"\n[edge]\npath = "{fashion / "edge.int8.onnx"}"\n'
        '[cloud]\nurl = "http://127.0.0.1:9/v2/models/m"\n[audit]\n[trace]\n[[rule]]\nof = "heat"\nenter = 200\nthen = "prefer_cloud"\n[egress]\nnever_leave = ["medical"]\nmay_leave = ["photo"]\n'
    )
    images = np.load(fashion / "sample.npz")["images"][:30]
    with started("dashboard", "--policy", policy, "--token-env", "DASH", DASH="of-the-reader") as (process, url):
        token = "of-the-reader"
        assert token not in url
        with httpx.Client(base_url=url, headers={"Authorization": f"Bearer {token}"}, timeout=LONG) as client:
            assert any("no state" in note for note in client.get("/live").json()["state"]["notes"])
            with Router.from_policy(policy) as router:
                for image in images:
                    router.infer(image, data_class="photo")
            until = monotonic() + 2 * LONG
            while (seen := client.get("/live").json())["requests"] < len(images) or (
                (seen["state"].get("outbox") or {}).get("waiting") != seen["later"]
            ):
                assert monotonic() < until
            assert seen["later"] > 0
            assert seen["state"]["edges"][0]["threshold"] == 0.9999
            assert (seen["state"]["policy"]["never_leave"], seen["state"]["policy"]["offline"]) == (["medical"], "queue")
            assert seen["rules"] == [{"text": "heat above 200 C: prefer_cloud", "in_force": False}]
            assert seen["egress"]["totals"][0]["data_class"] == "photo"
            shown = client.get("/trial").json()
            assert (shown["requests"], shown["guessed"]) == (len(images), False)
            at = client.get("/trial/at", params={"edge": shown["edges"][0]["name"], "threshold": 0.0}).json()
            assert (at["calls"], at["promise"]["held"]) == (0, False)
        if os.name == "posix":
            process.send_signal(signal.SIGINT)
            out, err = process.communicate(timeout=2 * LONG)
            assert (process.returncode, out, token in err) == (130, "", False)
            assert "Traceback" not in err
    code, out, _ = cli("top", "--policy", policy, "--json")
    assert (code, json.loads(out)["requests"]) == (0, len(images))


def test_two_lines_bring_the_first_request(tmp_path, fashion):
    """As the page says them: followed to the letter they bring one; of a policy with a trace the first is left out."""
    policy = tmp_path / "a shop.toml"
    policy.write_text(f'state = "state"\nthreshold = 0.1\n[edge]\npath = "{fashion / "edge.int8.onnx"}"\n')
    monitor = file_monitor(policy, None, None)
    monitor.poll()
    (_, trace), (_, command) = monitor.view()["first"]
    assert monitor.view()["requests"] == 0
    with policy.open("a") as file:
        file.write(trace + "\n")
    np.save(tmp_path / "input.npy", np.load(fashion / "sample.npz")["images"][0])
    program, *words = shlex.split(command.replace("INPUT.npy", shlex.quote(str(tmp_path / "input.npy"))))
    code, _, err = cli(*words)
    assert (program, code, err) == ("edgeroute", 0, "")
    monitor.poll()
    assert monitor.view()["requests"] == 1
    assert file_monitor(policy, None, None).view()["first"] == [monitor.view()["first"][1]]
    monitor.close()


@pytest.mark.parametrize(
    ("state", "wrong"), [('state = "state"\n', "nonsense = 1"), ('state = "state"\n', "gone.onnx"), ("", "gone.onnx")]
)
def test_a_policy_that_cannot_be_used_is_one_note(tmp_path, fashion, monkeypatch, state, wrong):
    """With a state folder and without one."""
    monkeypatch.setattr(monitors, "STATE_S", 0.0)
    policy, edge = tmp_path / "policy.toml", str(fashion / "edge.int8.onnx")
    policy.write_text(f'{state}mode = "only_edge"\n[trace]\nfile = "trace.jsonl"\n[edge]\npath = "{edge}"\n')
    with Router.from_policy(policy) as router:
        router.infer(np.load(fashion / "sample.npz")["images"][0])
    monitor = file_monitor(policy, None, None)
    monitor.poll()
    assert monitor.view()["state"]["notes"] == []
    text = policy.read_text()
    policy.write_text(text.replace(edge, wrong) if wrong.endswith("onnx") else f"{text}{wrong}\n")
    monitor.poll()
    (note,) = monitor.view()["state"]["notes"]
    assert wrong.partition(" ")[0] in note
    monitor.close()


def test_mistakes(tmp_path):
    """Each in one line."""
    policy = tmp_path / "policy.toml"
    policy.write_text('mode = "only_edge"\n[edge]\npath = "x.onnx"\n')
    for args, part in (
        ((policy, None, None), "nothing to follow"),
        ((None, tmp_path, None), "is no regular file"),
        ((tmp_path / "none.toml", None, None), "none.toml"),
    ):
        with pytest.raises(EdgerouteError, match=part):
            file_monitor(*args)
    code, out, err = cli("top", "--record", tmp_path / "none.jsonl")
    assert (code, out, "no such file" in err, err.count("\n")) == (1, "", True, 1)
    (tmp_path / "trace.jsonl").touch()
    code, out, err = cli("top", "--record", tmp_path / "trace.jsonl")  # it would draw into a file, and nobody could press q
    assert (code, out, "there is no terminal" in err, err.count("\n")) == (1, "", True, 1)
    assert cli("dashboard")[0] == 2
    code, _, err = cli("dashboard", "--policy", policy, "--token-env", "NO_SUCH_NAME")
    assert (code, "NO_SUCH_NAME" in err, err.count("\n")) == (2, True, 1)
