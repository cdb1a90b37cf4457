"""Pooled sequential tests of a fleet: bets that are fair however devices differ, liars, usual rates, suspects."""

from itertools import product

import numpy as np
import pytest

from edgeroute.tools.fleet.pooled_tests_and_suspect_devices import (
    CAP,
    CELLS,
    PooledDrift,
    device_evidence,
    highest_usual,
    liar_bound,
    scores,
    suspects,
    usual_rates,
)

DEVICES, AUDITS, RATE = 1_000, 7.0, 0.02


def fleet(rng, count=DEVICES, spread=0.7):
    """Return the rate of each device, gamma-distributed about `RATE`, and its mean number of audits a day."""
    return np.minimum(0.9, rng.gamma(spread**-2, RATE * spread**2, count)), rng.gamma(2, AUDITS / 2, count)


def day(rng, rates, traffic):
    """Return the events of a day of each device, and the number expected at `RATE`."""
    numbers = rng.poisson(traffic)
    return rng.binomial(numbers, np.minimum(1, rates)), numbers * RATE


def reference(rng, rates, traffic, days=14):
    """Return the highest usual ratio by a reference of so many days."""
    units = [scores(*day(rng, rates, traffic)) for _ in range(days)]
    score, weight = (np.concatenate(parts) for parts in zip(*units, strict=True))
    return highest_usual(score, weight, np.tile(np.arange(len(rates)), days), np.repeat(np.arange(days), len(rates)))


def test_the_bets_of_devices_that_differ_are_fair_together():
    # two devices with rates of half and one and a half of the level, of one audit each: the mean over all outcomes is exact
    level, numbers = 1.0, np.ones(2)
    rates = np.array([0.5, 1.5]) * RATE * level
    wealth = 0.0
    for outcome in product((0, 1), repeat=2):
        chance = np.prod(np.where(outcome, rates, 1 - rates))
        test = PooledDrift(level)
        test.bet(np.array(outcome, float), numbers * RATE, period=0, stake=1.0)
        wealth += chance * test.evidence
    assert 0.9 < wealth <= 1


def test_a_device_counts_once_however_much_it_reports():
    events, expected = np.full(DEVICES, 0.0), np.full(DEVICES, 1.0)
    test, alone = PooledDrift(1.1), PooledDrift(1.1)
    events[0], expected[0] = 1e9, 1e8
    test.bet(events, expected, period=0)
    alone.bet(np.array([1e9]), np.array([1e8]), period=0)
    assert test.evidence < 1 / 365
    assert alone.evidence < (1 + CAP) / 365


def test_devices_with_the_same_counts_bet_as_one_row():
    rows, each = PooledDrift(1.1), PooledDrift(1.1)
    rows.bet(np.array([0.0, 1.0]), np.array([0.2, 0.3]), period=0, count=np.array([300, 40]))
    each.bet(np.repeat([0.0, 1.0], [300, 40]), np.repeat([0.2, 0.3], [300, 40]), period=0)
    assert (rows.devices, rows.since) == (each.devices, each.since)
    assert rows.evidence == pytest.approx(each.evidence)


@pytest.mark.parametrize("kind", ["all", "none", "mixed"])
def test_liars_move_the_mean_score_by_no_more_than_the_bound(kind):
    rng, share = np.random.default_rng(1), 0.05
    events, expected = day(rng, *fleet(rng))
    honest, _ = scores(events, expected)
    liars = rng.permutation(DEVICES)[: int(share * DEVICES)]
    lies = {"all": 1e12, "none": 0.0, "mixed": rng.choice([0.0, 1e12], len(liars))}[kind]
    events = events.astype(float)
    events[liars] = lies
    lied, _ = scores(events, expected)
    assert abs(lied.mean() - honest.mean()) <= liar_bound(share)


def test_liars_raise_no_alarm_where_they_are_allowed_for_and_a_real_change_does():
    rng = np.random.default_rng(2)
    rates, traffic = fleet(rng)
    level, liars = 1.0, np.arange(DEVICES) % 20 == 0
    lied, real, plain = PooledDrift(level, liars=0.05), PooledDrift(level, liars=0.05), PooledDrift(level)
    for week in range(30):  # device-weeks
        events, expected = day(rng, rates, traffic * 7)
        for test in (lied, plain):
            test.bet(np.where(liars, 1e6, events), expected, period=week)
        events, expected = day(rng, 2 * rates, traffic * 7)
        real.bet(events, expected, period=week)
    assert (lied.alarmed, plain.alarmed, real.alarmed) == (False, True, True)
    value, low, high = real.ratio()
    assert low < value < high
    assert low > 1


def test_a_usual_fleet_raises_few_alarms_and_a_doubled_rate_one_within_weeks():
    rng, false, soon, streams = np.random.default_rng(3), 0, 0, 40
    for _ in range(streams):
        rates, traffic = fleet(rng, 100)
        level = reference(rng, rates, traffic)
        usual, doubled = PooledDrift(level), PooledDrift(level)
        for number in range(60):
            false += not usual.alarmed and usual.bet(*day(rng, rates, traffic), period=number, stake=1 / 60)
            soon += number < 20 and not doubled.alarmed and doubled.bet(*day(rng, 2 * rates, traffic), period=number)
        assert doubled.since is not None or not doubled.alarmed
    assert false <= 6  # 2 on average at most
    assert soon >= 20


def test_the_change_is_dated():
    rng = np.random.default_rng(4)
    rates, traffic = fleet(rng)
    test = PooledDrift(reference(rng, rates, traffic))
    for number in range(100, 140):
        test.bet(*day(rng, rates * (1 + (number >= 130)), traffic), period=number)
    assert test.alarmed
    assert 127 <= test.since <= 131


def test_no_evidence_has_no_date_and_no_ratio():
    test = PooledDrift(1.1)
    assert test.since is None
    assert np.isnan(test.ratio()[0])
    test.bet(np.zeros(3), np.zeros(3), period=1)
    assert (test.devices, test.since) == (0, None)


def test_a_state_is_restored_and_a_broken_one_is_refused():
    rng = np.random.default_rng(5)
    rates, traffic = fleet(rng, 50)
    test = PooledDrift(1.2, liars=0.01)
    assert PooledDrift.load(test.dump()).dump() == test.dump()
    test.bet(*day(rng, rates, traffic), period=3)
    again = PooledDrift.load(test.dump())
    for each in (test, again):
        each.bet(*day(np.random.default_rng(6), rates, traffic), period=4)
    assert again.dump() == test.dump()
    for broken in ({}, {**test.dump(), "wealth": [1.0]}, {**test.dump(), "sums": [[0.0]]}, {**test.dump(), "level": 0}):
        with pytest.raises(ValueError, match=r"out of range|not a dump"):
            PooledDrift.load(broken)


@pytest.mark.parametrize("bad", [-1.0, np.nan, np.inf])
def test_impossible_counts_are_refused_before_a_bet(bad):
    test = PooledDrift(1.1)
    with pytest.raises(ValueError, match="negative or not finite"):
        test.bet(np.array([0.0, bad]), np.ones(2), period=0)
    assert test.periods == 0


def test_the_usual_rates_follow_the_hours_of_a_large_fleet_and_are_flat_in_a_small_one():
    hours = np.arange(CELLS) % 24
    rates = RATE * np.where((hours >= 8) & (hours < 20), 2.0, 1.0)
    large = usual_rates(rates * 1e7, np.full(CELLS, 1e7))
    small = usual_rates(rates * 1, np.full(CELLS, 1.0))
    assert np.allclose(large, rates, rtol=0.02)
    assert small.max() < 1.3 * small.min()
    assert (usual_rates(np.zeros(CELLS), np.zeros(CELLS)) > 0).all()


def test_a_shock_that_all_devices_share_on_a_day_widens_what_is_usual():
    rng, days = np.random.default_rng(7), 28
    device, number = np.tile(np.arange(DEVICES), days), np.repeat(np.arange(days), DEVICES)
    quiet, shaken = (rng.poisson(5 * np.exp(shock * np.repeat(rng.normal(size=days), DEVICES))) for shock in (0.0, 0.1))
    levels = [highest_usual(*scores(events, np.full(len(events), 5.0)), device, number) for events in (quiet, shaken)]
    assert levels[0] < 1.15
    assert levels[1] > 1.25


def test_days_of_a_year_stay_within_a_level_of_two_weeks():
    """Days that differ by 20 %, estimated from 14 of them: of 100 fleets few have a day in a year that is above."""
    rng, days, devices = np.random.default_rng(11), 14, 40
    device, number = np.tile(np.arange(devices), days), np.repeat(np.arange(days), devices)
    above = 0
    for _ in range(100):
        events = rng.poisson(50 * np.exp(0.2 * np.repeat(rng.normal(size=days), devices)))
        level = highest_usual(*scores(events, np.full(len(events), 50.0)), device, number)
        above += bool((np.exp(0.2 * rng.normal(size=365)) > level).any())
    assert above <= 12  # 5 of 100 are allowed; three standard errors more


def test_the_first_day_of_a_policy_on_a_few_devices_widens_nothing():
    """A day of 19 devices deviates by chance more than one of 200: few of 400 fleets then take 1.6 times the usual rate for no change."""
    rng, sizes = np.random.default_rng(13), (19, 100, 200, 200, 200, 200, 200)
    device, number = np.concatenate([np.arange(size) for size in sizes]), np.repeat(np.arange(len(sizes)), sizes)
    expected = np.full(sum(sizes), 0.9)
    drawn = [scores(rng.poisson(expected).astype(float), expected) for _ in range(400)]
    levels = [highest_usual(*pair, device, number, weekdays=False) for pair in drawn]
    assert np.mean(np.array(levels) > 1.6) < 0.025


def test_periods_without_events_are_no_deviations():
    """A hundred devices with an event an hour have many hours with none: few of 60 fleets take 1.6 times the usual rate for no change."""
    rng, shape = np.random.default_rng(21), (168, 100)
    number, device = (axis.ravel() for axis in np.indices(shape))
    expected = np.full(device.size, 0.01)
    drawn = [scores(rng.poisson(expected).astype(float), expected) for _ in range(60)]
    levels = np.array([highest_usual(*pair, device, number) for pair in drawn])
    assert np.mean(levels > 1.6) < 0.1


def test_a_reference_of_one_period_has_no_days_that_differ():
    """Its devices may be alike, too."""
    score, weight = scores(np.full(50, 3.0), np.full(50, 2.0))
    assert highest_usual(score, weight, np.arange(50), np.zeros(50, int)) == pytest.approx(score[0] / weight[0] * 1.1, rel=0.05)


def test_a_reference_of_one_week_has_no_weekdays():
    """What days differ by is then counted over the week, in place of one day for each factor."""
    rng, days, devices = np.random.default_rng(9), 7, 60
    device, number = np.tile(np.arange(devices), days), np.repeat(np.arange(days), devices)
    given = [scores(rng.poisson(0.3, days * devices).astype(float), np.full(days * devices, 0.3)) for _ in range(40)]
    told, alike = ([highest_usual(*pair, device, number, weekdays=w) for pair in given] for w in (True, False))
    assert np.mean(alike) < np.mean(told) - 0.2
    sums, numbers = np.full(CELLS, 3e5), np.full(CELLS, 1e7)
    sums[: CELLS // 7] *= 2
    rates = [usual_rates(sums, numbers, weekdays=w).reshape(7, -1).mean(1) for w in (True, False)]
    assert rates[0][0] > 1.8 * rates[0][1]
    assert rates[1].max() == pytest.approx(rates[1].min())


def test_suspects_are_found_whatever_their_traffic_and_others_are_not_named():
    rng = np.random.default_rng(8)
    rates, _ = fleet(rng)
    numbers, before = rng.poisson(rng.gamma(1, 300, DEVICES)), rng.poisson(600, DEVICES)
    bad = np.arange(DEVICES) % 20 == 0
    events = rng.binomial(numbers, np.where(bad, np.minimum(1, rates * 10), rates))
    past = rng.binomial(before, rates)
    named = suspects(device_evidence(events, numbers * RATE, past, before * RATE))
    assert np.count_nonzero(bad[named]) > 0.4 * np.count_nonzero(bad)
    assert np.count_nonzero(~bad[named]) <= 0.15 * len(named)


def test_devices_that_differ_by_nature_are_no_suspects():
    rng = np.random.default_rng(9)
    rates, _ = fleet(rng, spread=1.0)
    numbers = rng.poisson(rng.gamma(1, 2_000, DEVICES))
    assert len(suspects(device_evidence(rng.binomial(numbers, rates), numbers * RATE))) <= 2


def test_the_suspects_are_those_of_e_bh():
    assert suspects(np.array([1.0, 90.0, 26.0, 200.0]), 0.05).tolist() == [3, 1]  # 26 is below 4 / (3 * .05)
    assert suspects(np.array([19.0]), 0.05).tolist() == []
    assert suspects(np.array([])).tolist() == []


@pytest.mark.parametrize("setting", [{"level": 0}, {"level": 1, "alpha": 0}, {"level": 1, "liars": 1}])
def test_settings_out_of_range_are_refused(setting):
    with pytest.raises(ValueError, match="out of range"):
        PooledDrift(**setting)
