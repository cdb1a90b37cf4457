"""A fleet before a cloud that is too small: load hints and adaptive concurrency in the simulation."""

import json

import numpy as np
import pytest
from commands import cli
from hypothesis import given
from hypothesis import strategies as st

from edgeroute.core.performance_estimates_and_encoding_choice import Load, rounded_share_to_keep
from edgeroute.tools.replay.fleet.outage_simulation_and_capacity_search import simulate
from edgeroute.tools.replay.fleet.simulated_devices_and_cloud import LOAD_AWARE, Places, Reported, Scenario

pytestmark = pytest.mark.slow
SMALL = Scenario(
    devices=50,
    per_minute=1200.0,
    defer=0.1,
    length_s=60.0,
    margin=0.6,
    queue_s=1.0,
    retry_after_s=1.0,
    outage_at_s=1e9,
    outage_s=0.0,
)


@pytest.fixture(scope="module")
def results():
    return {client.name: simulate(SMALL, client) for client in LOAD_AWARE}


def shares(result):
    return result.refused / result.attempts.sum(), result.late / result.attempts.sum(), result.took_s(0.5), result.accuracy


def test_hints_keep_at_home_what_the_cloud_would_refuse(results):
    """The surest of it, so there are more right answers, and sooner; the cloud is used as fully as before."""
    refused, late, p50_s, right = shares(results["neither"])
    for name in ("load hints", "both"):
        now = shares(results[name])
        assert now[0] < refused / 5
        assert now[1] < late / 2
        assert now[2] < p50_s / 2
        assert now[3] > right + 0.02
        assert results[name].answered.sum() > 0.95 * results["neither"].answered.sum()


def test_adaptive_concurrency_alone_is_refused_less_often(results):
    refused, _, _, right = shares(results["neither"])
    now = shares(results["adaptive concurrency"])
    assert now[0] < refused / 2
    assert now[3] >= right


def test_every_request_has_an_answer(results):
    for result in results.values():
        assert result.lost == 0
        assert result.took.sum() == result.asked.sum()


def test_a_cloud_that_is_large_enough_is_asked_as_before():
    plain, _, _, both = (simulate(SMALL._replace(margin=2.0, length_s=20.0), client) for client in LOAD_AWARE)
    assert both.kept == 0
    assert both.answered.sum() == plain.answered.sum() == plain.asked.sum()


@given(st.lists(st.tuples(st.integers(0, 2), st.floats(0, 100), st.floats(0, 6)), max_size=30))
def test_devices_average_as_the_core_does(events):
    fleet, each, now = Reported(3), [Load() for _ in range(3)], 0.0
    for who, passed, load in events:
        now += passed
        fleet.add(np.array([who]), np.array([now]), np.array([load]))
        each[who].add(load, now)
        found = fleet.kept(np.arange(3), np.full(3, now))
        assert found == pytest.approx([rounded_share_to_keep(one.at(now)) for one in each])


def test_places_are_given_back():
    places, who = Places(1), np.zeros(20, np.int64)
    assert places.enter(who).sum() == 8
    places.leave(who[:3])
    assert places.enter(who).sum() == 3


def test_the_command_prints_all_four():
    code, out, _ = cli("simulate", "load", "--devices", "20", "--length", "20s", "--per-minute", "600", "--json")
    said = json.loads(out)
    assert code == 0
    assert [row["name"] for row in said["clients"]] == ["neither", "load hints", "adaptive concurrency", "both"]
    assert said["scenario"]["margin"] == 0.6
    assert all(row["lost"] == 0 for row in said["clients"])
    assert "adaptive concurrency" in cli("simulate", "load", "--devices", "20", "--length", "5s")[1]
    for wrong in ("0x", "much", "-1x"):
        assert cli("simulate", "load", f"--capacity={wrong}")[0] == 2
    assert cli("simulate", "load", "--defer", "0%")[0] == 2
