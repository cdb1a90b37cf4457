"""The fleet simulation: against the core's own objects one event at a time, and what it shows of an outage."""

from __future__ import annotations

import json
from itertools import pairwise
from math import inf

import numpy as np
import pytest
from commands import cli
from draws import draws
from exact import Exact
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeroute import Limits
from edgeroute.core.endpoint_breaker_and_limits import Admission
from edgeroute.core.policy_egress_and_options import Terms
from edgeroute.core.spending_limits import Spending
from edgeroute.stores.outbox.delivery_and_callbacks import longest
from edgeroute.stores.outbox.sqlite_queue import spread_for
from edgeroute.tools.cli.simulate_fleets_and_overload import outage_notes, show
from edgeroute.tools.replay.fleet.outage_simulation_and_capacity_search import longest_s, needed, simulate, spreads_s
from edgeroute.tools.replay.fleet.simulated_devices_and_cloud import (
    ANSWERED,
    BUSY,
    CLIENTS,
    CLOSED,
    EDGEROUTE,
    HALF_OPEN,
    LATE,
    NO_SPREAD,
    OPEN,
    REFUSED,
    Client,
    Cloud,
    Devices,
    Scenario,
)
from edgeroute.tools.replay.fleet.simulated_devices_and_cloud import clients as compared

PLAIN = next(client for client in CLIENTS if client.name == "plain retries")
MINUTE, TEN = (EDGEROUTE._replace(spread_s=60.0 * minutes) for minutes in (1, 10))
"""Their outboxes spread what waits over so long."""
SECONDS = EDGEROUTE._replace(spread_s=5.0)
"""What waits in its outboxes is soon spread over longer."""
SILENT = Scenario(devices=4000, per_minute=10.0, length_s=300.0, silent=True)
"""67 requests a second to the cloud; their timeout is 2 s, and the cloud lets them wait for 10 s."""
BUSY_DEVICES = Scenario(devices=500, per_minute=60.0, defer=0.5, outage_at_s=20.0, length_s=120.0)
QUEUE = BUSY_DEVICES._replace(devices=2000, per_minute=10.0, offline="queue", queue_s=1.0, length_s=300.0)
WHO = np.array([0])
STATES = {CLOSED: "closed", OPEN: "open", HALF_OPEN: "half-open"}

clients = st.tuples(st.just("any"), st.integers(0, 4), *[st.booleans()] * 4, st.sampled_from([0.0, 20.0])).map(
    lambda fields: Client(*fields)
)
scenarios = st.fixed_dictionaries(
    {
        "devices": st.sampled_from([1, 30, 1000]),
        "per_minute": st.sampled_from([6.0, 120.0]),
        "defer": st.sampled_from([0.1, 1.0]),
        "length_s": st.just(40.0),
        "margin": st.sampled_from([1.05, 1.5, 4.0]),
        "queue_s": st.sampled_from([0.0, 0.5, 10.0]),
        "outage_at_s": st.sampled_from([0.0, 10.0]),
        "silent": st.booleans(),
        "retry_after_s": st.sampled_from([0.0, 3.0]),
        "timeout_s": st.sampled_from([0.04, 2.0, 10.0]),
        "offline": st.sampled_from(["edge", "queue"]),
        "together": st.sampled_from([0.0, 0.5]),
        "seed": st.integers(0, 9),
    }
).map(lambda fields: Scenario(**fields))


class Chance:
    """A generator that always says the same."""

    def __init__(self, value):
        self.value = value

    def random(self, count):
        """So many of it."""
        return np.full(count, self.value)


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["fault", "success", "ask", "probed", "failed", "hold", "retry", "outage"]), st.integers(0, 400)
        )
    )
)
@settings(max_examples=draws(300), deadline=None)
def test_a_device_of_the_array_is_one_of_the_cores(happenings):
    """Whatever happens to it, its breaker and its budget say what the `Admission` of a router says."""
    devices, rules, now = Devices(1, EDGEROUTE, Chance(0.25)), Admission(Terms(max_concurrent=10**9), Spending(Limits())), 0.0
    for what, wait_s in happenings:
        now += wait_s
        at = np.array([now])
        if what in {"fault", "outage"}:
            for _ in range(1 if what == "fault" else 3):
                devices.fault(WHO, at)
                rules.failed(now, 0.25)
        elif what == "success":
            assert devices.success(WHO)[0] == rules.succeeded(now)
        elif what == "ask":
            may = rules.enter(object(), now) is None
            assert devices.allows(WHO, at)[0] == may
            assert may or (len(devices.probes(WHO, at)) > 0) == rules.take_probe(now)
        elif what == "hold":
            devices.hold(WHO, at, wait_s)
            rules.hold(wait_s, now)
        elif what == "retry":
            assert devices.retry(WHO)[0] == rules.retry()
        else:
            ok, before = what == "probed", rules.state
            rules.probe_ended(now, 0.25, ok=ok)
            assert devices.probed(WHO, at, np.array([ok]))[0] == (ok and before == "half-open")
        assert (STATES[int(devices.state[0])], float(devices.due[0])) == (rules.state, rules.breaker.due)


@given(st.lists(st.integers(0, 40), min_size=60, max_size=120), st.sampled_from([0.3003, 5.0, inf]), st.booleans())
@settings(max_examples=draws(200), deadline=None)
def test_the_queue_is_served_in_turn(gaps_ms, timeout_s, silent):
    """Each is begun when it is there and the one before it is done; one that is given up has cost as much; an outage empties it."""
    of = Scenario(
        devices=60, per_minute=10.0, defer=1.0, margin=2.0, queue_s=1e9, outage_at_s=1.0004, outage_s=0.2, silent=silent
    )  # 20 a second; no two instants that are compared are the same but for rounding
    at, free_at, emptied, expected = np.cumsum(gaps_ms) / 1000, 0.0, False, []
    for now in at:
        if of.outage_at_s <= now < of.back_at_s:
            ends, what = inf if silent else now + of.latency_s, REFUSED
        else:
            if now >= of.back_at_s and not emptied:
                free_at, emptied = now, True
            free_at = max(free_at, now) + 0.05
            ends, what = free_at + of.latency_s, ANSWERED
            if now < of.outage_at_s < ends:
                ends, what = of.outage_at_s, REFUSED
        late = ends > now + timeout_s
        expected.append((now + timeout_s if late else ends, LATE if late else what))
    cloud, got = Cloud(of), []
    for step in np.unique((at * 10).astype(int)):
        some = at[(at * 10).astype(int) == step]
        got += zip(*cloud.ask(some, some + timeout_s, np.zeros(len(some), np.bool_)), strict=True)
    assert np.allclose(np.array(got), np.array(expected))


def test_what_would_wait_too_long_is_refused():
    """A full queue takes as many as it serves meanwhile, and none of them waits much longer than it may."""
    of = Scenario(devices=6000, per_minute=10.0, defer=1.0, margin=1.0, queue_s=2.0)  # 1,000 a second
    cloud = Cloud(of)
    for step in range(100):
        at = step * 0.1 + np.sort(np.random.default_rng(step).random(500)) * 0.1
        ends, verdicts = cloud.ask(at, np.full(500, inf), np.zeros(500, np.bool_))
        assert (ends - at).max() < of.queue_s + of.latency_s + 0.11
        assert set(verdicts) <= {ANSWERED, BUSY}
    assert abs(cloud.served - (2000 + 10_000)) < 200


@pytest.mark.slow
@pytest.mark.parametrize(
    "scenario",
    [
        BUSY_DEVICES,
        BUSY_DEVICES._replace(silent=True),
        BUSY_DEVICES._replace(margin=0.7, queue_s=0.5, retry_after_s=3.0),
        QUEUE,
        QUEUE._replace(together=0.2, retry_after_s=2.0),
    ],
    ids=["refused", "silent", "retry-after", "queue", "queue-together"],
)
@pytest.mark.parametrize(
    "client", [SECONDS, NO_SPREAD, CLIENTS[3]._replace(spread_s=60.0), PLAIN], ids=lambda client: client.name
)
def test_it_agrees_with_the_core_one_event_at_a_time(scenario, client):
    """EndpointHealth to 3 s and a fifth, peak to a quarter, counts to a tenth, of what breakers, budgets and outboxes one by one do."""
    seeds = [scenario._replace(seed=seed) for seed in range(2)]
    fast, slow = [simulate(s, client) for s in seeds], [Exact(s, client).run() for s in seeds]
    for back in (lambda r: r.cloud_back_s, lambda r: r.fleet_back_s):
        a, b = ([back(r) for r in runs] for runs in (fast, slow))
        assert a == b == [None, None] or abs(np.mean(a) - np.mean(b)) <= 3 + 0.2 * np.mean(b)
    assert np.mean([r.peak for r in fast]) == pytest.approx(np.mean([r.peak for r in slow]), rel=0.25)
    for number in (lambda r: r.degraded, lambda r: r.probes, lambda r: r.attempts.sum()):
        assert sum(map(number, fast)) == pytest.approx(sum(map(number, slow)), rel=0.1, abs=50)
    assert all((r.lost, r.waiting) == (0, 0) for r in fast + slow)


@pytest.mark.slow
@given(scenarios, clients)
@settings(max_examples=draws(40), deadline=None)
def test_nothing_is_lost(scenario, client):
    """Each request ends with the cloud's answer or the edge's, each that was queued is delivered or waits, for any fleet."""
    result = simulate(scenario, client)
    assert result.lost == 0
    assert result.queued == result.delivered + result.waiting
    assert result.queued == (result.degraded if scenario.offline == "queue" else 0)
    assert (result.answered <= result.asked).all()
    assert (result.good <= result.attempts).all()
    assert result.good.sum() <= result.served
    assert result.wasted <= result.served


@pytest.mark.slow
def test_a_seed_repeats_it():
    """The same seed gives the same run, to the last count; another one does not."""
    one, same, other = (simulate(QUEUE._replace(seed=seed)) for seed in (1, 1, 2))
    assert all(np.array_equal(getattr(one, name), getattr(same, name)) for name in ("asked", "answered", "attempts", "good"))
    assert (one.degraded, one.probes, one.delivered) == (same.degraded, same.probes, same.delivered)
    assert not np.array_equal(one.asked, other.asked)


@pytest.mark.slow
def test_without_safety_ten_seconds_become_minutes():
    """With plain retries the cloud does nothing but work in vain for as long as one looks; with edgeroute's it is back at once."""
    ours, plain = simulate(SILENT), simulate(SILENT, PLAIN)
    assert plain.cloud_back_s is None
    assert plain.good[100:300].sum() < 0.02 * plain.attempts[100:300].sum()
    assert plain.wasted > plain.served / 2
    assert ours.cloud_back_s == 0
    assert ours.degraded < 1.1 * SILENT.normal_per_s * (SILENT.outage_s + SILENT.timeout_s)
    assert ours.peak < 1.6


@pytest.mark.slow
def test_a_retry_budget_alone_brings_busy_devices_back():
    """Plain retries with a budget end once the budgets are empty; a device that seldom asks never empties its own."""
    budget = PLAIN._replace(budget=True)
    busy = SILENT._replace(devices=400, per_minute=100.0)
    assert simulate(busy, PLAIN).cloud_back_s is None
    assert simulate(busy, budget).cloud_back_s is not None
    assert simulate(SILENT._replace(devices=40_000, per_minute=1.0), budget).cloud_back_s is None


@pytest.mark.slow
def test_outboxes_of_quiet_devices_bring_it_down_again():
    """What timed out is sent again at once, and that is enough to keep the cloud busy in vain; spread over a minute it is not."""
    quiet = Scenario(
        devices=6000, per_minute=1.0, defer=0.5, margin=1.2, silent=True, offline="queue", outage_at_s=20.0, length_s=200.0
    )
    for run in (simulate, lambda scenario, client: Exact(scenario, client).run()):
        ours, without = run(quiet, MINUTE), run(quiet, NO_SPREAD)
        assert (ours.cloud_back_s, ours.waiting, ours.lost) == (0, 0, 0)
        assert ours.peak < 2.2, "so few devices are uneven by themselves"
        assert (without.cloud_back_s, without.lost) == (None, 0)
        assert without.peak > 4
        assert without.waiting > quiet.devices / 4


@pytest.mark.slow
@pytest.mark.parametrize("silent", [True, False])
def test_a_spread_of_ten_minutes_is_enough_for_an_outage_of_one(silent):
    """A fifth more than the usual load takes what was queued in it; spread over a minute, it would not."""
    quiet = Scenario(devices=20_000, margin=1.2, silent=silent, offline="queue", outage_at_s=20.0, outage_s=60.0, length_s=250.0)
    assert simulate(quiet, TEN).cloud_back_s == 0
    assert simulate(quiet, MINUTE).cloud_back_s is None


@given(st.integers(0, 40), st.sampled_from([0.0, 0.5, 60.0, 7200.0]), st.floats(0, 1e5))
def test_the_array_waits_as_long_as_delivery_does(failed, spread_s, age_s):
    """Its longest waits are those of the outbox."""
    age = np.array([age_s])
    assert spreads_s(spread_s, age)[0] == pytest.approx(spread_for(spread_s, age_s))
    waits_s = longest_s(np.array([float(failed)]), spread_s, age)
    assert waits_s[0] == pytest.approx(longest(failed + 1, spread_for(spread_s, age_s)))


@pytest.mark.slow
def test_jitter_spreads_what_comes_back_together():
    """Outboxes of devices that lost the cloud at the same instant come back over seconds, not as one."""
    lone = Client("", retries=0, breaker=False, spread_s=60.0)
    together = SILENT._replace(offline="queue", together=0.5, per_minute=1.0, silent=False, queue_s=1.0)
    assert simulate(together, lone).peak < 0.75 * simulate(together, lone._replace(jitter=False)).peak


@pytest.mark.slow
@pytest.mark.parametrize("client", [EDGEROUTE, PLAIN], ids=lambda client: client.name)
def test_more_capacity_is_never_slower(client):
    """Over three seeds, the cloud is back no later with more capacity."""
    times = []
    for margin in (1.2, 1.6, 2.5, 4.0):
        runs = [
            simulate(QUEUE._replace(margin=margin, silent=True, length_s=200.0, seed=seed), client).cloud_back_s
            for seed in range(3)
        ]
        times.append(np.mean([120.0 if back_s is None else back_s for back_s in runs]))
    assert all(more <= less + 2 for less, more in pairwise(times))
    assert times[-1] < 5


@pytest.mark.slow
def test_the_capacity_needed_is_enough_and_hardly_more():
    """With it the cloud is back in time; with a quarter of the usual load less it is not; edgeroute's is the smallest there is."""
    fleet = SILENT._replace(devices=20_000, length_s=120.0)
    capacity = needed(fleet, PLAIN, 20.0)
    assert capacity is not None
    assert simulate(fleet._replace(margin=capacity + 0.15), PLAIN).cloud_back_s is not None
    assert simulate(fleet._replace(margin=capacity - 0.25), PLAIN).cloud_back_s is None
    assert needed(fleet, EDGEROUTE, 20.0) < capacity
    assert needed(fleet._replace(latency_s=3.0), EDGEROUTE, 2.0) is None


def fleet(*args):
    """Runs `edgeroute simulate fleet` -> exit code, stdout, stderr."""
    return cli("simulate", "fleet", *args)


@pytest.mark.slow
def test_the_command_tells_of_each_client(capsys):
    """With --json the numbers of each; without it the same as a table, and in sentences."""
    code, out, err = fleet("--devices", "500", "--per-minute", "40", "--length", "90s", "--seed", "1", "--json")
    assert (code, err) == (0, "")
    told = json.loads(out)
    scenario, rows = Scenario(**told["scenario"]), told["clients"]
    ours, plain = rows[0], next(row for row in rows if row["name"] == PLAIN.name)
    assert scenario == Scenario(devices=500, per_minute=40.0, length_s=90.0, silent=True, seed=1)
    assert [row["name"] for row in rows] == [client.name for client in CLIENTS]
    assert all(row["lost"] == 0 and row["asked"] == row["answered"] + row["degraded"] for row in rows)
    assert (ours["cloud_back_s"], plain["cloud_back_s"]) == (0, None)
    show(scenario, rows)
    out = capsys.readouterr().out
    assert "500 devices ask the cloud 33 times a second. It can answer 50, and is away for 10 s." in out
    assert all(client.name in out for client in CLIENTS)
    assert "With edgeroute the cloud was back 0 s after the outage of 10 s." in out
    assert "Others took more than 20 s: plain retries" in out
    assert "Every request had an answer, the cloud's or the edge's." in out
    assert "A device asks the cloud 4 times a minute, too seldom to empty its retry budget" in out
    show(scenario, [plain])
    assert "did not come back" in capsys.readouterr().out


def test_what_is_said_of_outboxes_and_of_quiet_devices():
    """The spread is compared only where there are outboxes; of quiet devices is said what the table shows, and nothing of busy ones."""
    names = [client.name for client in compared(QUEUE)]
    spreads = {client.name: client.spread_s for client in compared(QUEUE, 90.0)}
    assert spreads == {name: 0.0 if name == "no spread" or name.startswith("plain") else 90.0 for name in names}
    assert [client.name for client in compared(SILENT)] == [name for name in names if name != "no spread"]
    rows = [{"name": name, "cloud_back_s": 0.0, "capacity_needed": 1.2, "lost": 0, "spread_s": 90.0} for name in names]
    worse = [{**row, "capacity_needed": None} if row["name"] == "timeout per attempt" else row for row in rows]
    busy = SILENT._replace(per_minute=1000.0)
    spread, seldom, whole = (
        "no spread: the outboxes send",
        "too seldom to empty its retry budget",
        "without both (timeout per attempt)",
    )
    for scenario, told, expected in (
        (QUEUE, worse, [True, True, True]),
        (SILENT, worse, [False, True, True]),
        (SILENT, rows, [False, True, False]),
        (busy, worse, [False, False, False]),
    ):
        text = "\n".join(outage_notes(scenario, told))
        assert [part in text for part in (spread, seldom, whole)] == expected
        assert ("a random part of 90 s" in text) == expected[0]


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("--capacity", "0.9x"),
        ("--capacity", "many"),
        ("--defer", "0%"),
        ("--length", "30s"),
        ("--outage", "10"),
        ("--per-minute", "1e300"),
        ("--per-minute", "nan"),
        ("--length", "99999999999d"),
        ("--timeout", "31d"),
        ("--capacity", f"{'9' * 400}x"),
    ],
)
def test_the_command_says_what_is_wrong(option, value):
    """An option that cannot be is told before anything runs: exit code 2."""
    code, out, err = cli("simulate", "fleet", option, value)
    assert (code, out) == (2, "")
    assert option in err


def test_a_few_devices_are_told_that_the_cloud_of_the_simulation_is_slower_than_any():
    """1.5 times the load of a hundred quiet devices is a request in 4 s, longer than they wait."""
    rows = [{**EDGEROUTE._asdict(), "cloud_back_s": 0.0, "capacity_needed": 1.5, "lost": 0}]
    few = Scenario(devices=100)
    assert "takes 4 s for a request, and devices wait for 2 s" in "\n".join(outage_notes(few, rows))
    assert "larger --capacity" not in "\n".join(outage_notes(few._replace(margin=300.0), rows))
