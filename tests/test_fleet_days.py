"""The days of a simulated fleet: drift, liars, an outage and a bad policy, by the tests and decisions of `edgeroute fleet`."""

from __future__ import annotations

import json

import numpy as np
import pytest
from commands import cli

from edgeroute.tools.fleet.simulated_alarms_and_rollouts import (
    AUDITED,
    DIFFER,
    REFERENCE,
    Devices,
    Fleet,
    digest_bytes,
    false_alarms,
    simulate,
    times_alone,
    times_to_alarm,
)

SMALL = Fleet(devices=4_000, days=120)


@pytest.fixture(scope="module")
def days():
    return simulate(SMALL)


def test_counts_are_those_of_the_rates():
    """Before any event: audits by the devices' use, weekends and absences; differences by their rates."""
    fleet = SMALL._replace(devices=20_000, days=REFERENCE)
    audited, differ, online = (np.array(columns, float) for columns in list(zip(*Devices(fleet).days(), strict=True))[1:])
    assert audited.mean() == pytest.approx(1440 * 0.9 * AUDITED * (5 + 2 * 0.6) / 7 * online.mean(), rel=0.03)
    assert differ.sum() / audited.sum() == pytest.approx(DIFFER, rel=0.06)
    assert 0.96 < online.mean() < 0.98
    assert audited[online == 0].sum() == 0


def test_the_same_seed_gives_the_same_days(days):
    """Whatever thread draws first; another seed gives others."""
    again = simulate(SMALL)
    assert (again.alarms, again.suspects, again.drift) == (days.alarms, days.suspects, days.drift)
    assert simulate(SMALL._replace(seed=1, days=60)).drift != days.drift


def test_a_bad_policy_stops_in_the_first_ring(days):
    """The good one reaches all; the bad one no more than the devices of the first ring."""
    good, bad = days.rollouts["good"], days.rollouts["bad"]
    assert good.steps[-1][1] == 1
    assert bad.steps[-1][2] in {"halt", "roll_back"}
    assert {share for _, share, _, _ in bad.steps} <= {0.0, SMALL.rings[0]}
    assert 0 < bad.exposed.mean() < 0.02


def test_liars_raise_the_alarm_only_of_a_test_that_trusts_all(days):
    """One half of 5 % reports that each audit differs. The test that allows for 5 % has no alarm, and the suspects are these."""
    assert days.alarms[0.0] >= SMALL.begins["liars"]
    assert days.alarms[SMALL.liars] is None
    assert sum(named.liars for named in days.suspects) > 0.3 * days.liars


def test_suspects_are_those_that_drift(days):
    """Few are named wrongly."""
    found, wrong = sum(named.drift for named in days.suspects), sum(named.wrong for named in days.suspects)
    assert found > 0.3 * days.drift
    assert wrong <= 0.05 * sum(sum(named[1:]) for named in days.suspects)
    assert not any(named.drift for named in days.suspects if named.day < SMALL.begins["drift"])


def test_more_devices_find_a_change_sooner():
    """A thousand devices within days, of which one alone needs weeks."""
    alone, few, many = times_alone(SMALL, 20), times_to_alarm(SMALL, 100, 5), times_to_alarm(SMALL, 5_000, 3, hours=1)
    assert np.median(alone) > np.median(few) > np.median(many)
    assert times_to_alarm(SMALL, 20, 1, most=1) == [np.inf]


def test_years_without_drift_have_few_alarms():
    """Of 20 small fleets with an outage at most one; 5 % is the limit on average. Liars raise those of a test that trusts all."""
    lied, honest = (false_alarms(SMALL._replace(days=90, liars=liars), fleets=20, devices=50) for liars in (0.2, 0.0))
    assert (lied[0.2] <= 1, honest[0.0] <= 1) == (True, True)
    assert lied[0.0] > 5


def test_a_test_that_allows_for_liars_takes_longer():
    """Of the same changes; a thousand devices have both alarms."""
    trusting, allowing = (times_to_alarm(SMALL, 1_000, 5, liars=liars) for liars in (0.0, 0.05))
    assert np.median(trusting) < np.median(allowing) < np.inf


def test_a_digest_has_at_most_a_kilobyte():
    """Also of a device with a thousand requests a minute."""
    for per_minute in (0.1, 1000.0):
        assert 200 < digest_bytes(SMALL._replace(per_minute=per_minute), 10).max() <= 1024


@pytest.mark.slow
def test_the_command():
    """`simulate fleet --days` prints tables, or JSON with the same results."""
    command = ("simulate", "fleet", "--devices", "1000", "--days", "60")
    code, out, _ = cli(*command, "--json", "--no-bad-policy", "--liars", "0%", "--rings", "10%,100%")
    result = json.loads(out)
    assert code == 0
    assert [*result["rollouts"]] == ["good"]
    assert [row["liars"] for row in result["alarms"]] == [0.0]
    assert result["fleet"]["rings"] == [0.1, 1.0]
    assert [row[by]["p50"] >= row["p50"] for row in result["times"][1:] for by in ("by_days", "by_weeks")] == [True] * 4
    assert result["false_alarms"]["alarms"] == result["false_alarms"]["trusting"]
    code, out, _ = cli(*command)
    assert code == 0
    assert "The bad policy reached" in out
    assert "by the test that trusts all" in out
    for rings in ("10%,1%,100%", "1%,10%", "x"):
        code, _, err = cli(*command, "--rings", rings)
        assert code == 2, rings
        assert "--rings" in err
