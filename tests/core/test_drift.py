"""The drift alarm: what it counts, how soon it goes off, and how seldom without need."""

from __future__ import annotations

import json
from math import inf, nan

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeroute.core.sequential_tests import ALARM, GRID, LONGEST, MEMORY, MOST, Drift, ShareTest, block_length, grid_index

LEVEL = 0.02
levels = st.floats(1e-4, 0.999)
values = st.one_of(st.sampled_from([0.0, 1.0]), st.floats(0.0, 1.0))


def loaded(dumped, level, **kw) -> Drift:
    drift = Drift(level, **kw)
    drift.load(dumped)
    return drift


def fed(drift: Drift, xs) -> Drift:
    for x in xs:
        drift.add(x)
    return drift


def first_alarms(xs: np.ndarray, level: float = LEVEL) -> np.ndarray:
    """For each row, after how many values the alarm goes off; the length of the row, if it does not."""
    rows, length = xs.shape
    rates = np.geomspace(0.01, 0.9, 8)
    wealth, when = np.zeros((rows, 8)), np.full(rows, length)
    for end in range(1, length + 1):
        wealth = np.minimum((wealth + 1) * (1 + rates * (xs[:, end - 1, None] / level - 1)), MOST)
        when[(wealth.mean(1) >= ALARM) & (when == length)] = end
    return when


def first_alarm(xs, level: float = LEVEL) -> int:
    """The same of one row, by the class."""
    drift = Drift(level)
    for end, x in enumerate(xs, 1):
        drift.add(x)
        if drift.alarmed:
            return end
    return len(xs)


def stream(share: float, rows: int, length: int, seed: int = 1) -> np.ndarray:
    return (np.random.default_rng(seed).random((rows, length)) < share).astype(float)


def dependent(rows: int, length: int, seed: int = 1, level: float = LEVEL) -> np.ndarray:
    """Values whose mean, given the past, is `level` or half of it, in blocks of 50.

    After a good block they are many and small, after a bad one few and great.
    """
    random, xs, size = np.random.default_rng(seed), np.empty((rows, length)), np.ones(rows)
    share = np.full(rows, level)
    for begin in range(0, length, 50):
        block = size[:, None] * (random.random((rows, 50)) < (share / size)[:, None])
        xs[:, begin : begin + 50] = block[:, : length - begin]
        good = block.mean(1) <= level
        share, size = np.where(good, level, level / 2), np.where(good, 0.1, 1.0)
    return xs


@given(levels, st.lists(values, max_size=40))
def test_evidence_is_a_wealth(level, taken):
    """It is never negative, never overflows, and once it has reached the alarm that stays."""
    drift, alarmed = Drift(level), False
    for one in taken:
        drift.add(one)
        assert 0 <= drift.evidence <= MOST * 1.001
        alarmed = alarmed or drift.evidence >= ALARM
        assert drift.alarmed == alarmed


@given(levels, st.lists(values, min_size=1, max_size=20), st.randoms())
def test_what_it_counts(level, xs, random):
    """Count and sum are those of the values, whatever their order."""
    drift, other = fed(Drift(level), xs), Drift(level)
    random.shuffle(xs)
    fed(other, xs)
    assert drift.count == other.count == len(xs)
    assert drift.ones == pytest.approx(sum(xs)) == pytest.approx(other.ones)


@given(levels, st.lists(values, min_size=1, max_size=20))
def test_the_wealth_is_that_of_the_bets(level, xs):
    """Evidence is the sum over all beginnings of the product from there on, the mean over the rates."""
    won = 1 + np.geomspace(0.01, 0.9, 8)[:, None] * (np.array(xs) / level - 1)
    expected = sum(won[:, begin:].prod(1) for begin in range(len(xs))).mean()
    assert fed(Drift(level), xs).evidence == pytest.approx(expected, rel=1e-9)


def test_a_long_drift_and_a_tiny_level_do_not_overflow():
    """Ten thousand ones in a row are evidence up to a limit, even where the level is next to nothing."""
    for level in (LEVEL, 5e-324):
        drift = fed(Drift(level), [1.0] * 10_000)
        assert ALARM <= drift.evidence <= MOST * 1.001
        fed(drift, [0.0] * 10_000)
        assert drift.evidence >= 0
        assert drift.alarmed


def test_an_alarm_stays():
    """What comes after an alarm may take the evidence back, not the alarm."""
    drift = fed(Drift(LEVEL), [1.0] * 50)
    assert drift.alarmed
    fed(drift, [0.0] * 2000)
    assert drift.evidence < ALARM
    assert drift.alarmed


@pytest.mark.parametrize("x", [nan, -0.01, 1.01, inf, -inf])
def test_no_value(x):
    """NaN and what is not in 0..1 is refused, and nothing was counted."""
    drift = Drift(LEVEL)
    with pytest.raises(ValueError, match=r"not in 0\.\.1"):
        drift.add(x)
    assert drift.count == drift.evidence == 0


@pytest.mark.parametrize(("level", "alarm"), [(0, 1e4), (1, 1e4), (-0.1, 1e4), (nan, 1e4), (0.1, 0), (0.1, nan), (0.1, inf)])
def test_no_promise(level, alarm):
    """A level that cannot be exceeded, and an alarm that cannot be reached, are refused."""
    with pytest.raises(ValueError, match="level"):
        Drift(level, alarm=alarm)


@settings(deadline=None)
@given(levels, st.lists(values, max_size=40), st.lists(values, max_size=10))
def test_it_survives_a_restart(level, xs, newer):
    """Through JSON and back it is the same, and goes on the same."""
    drift = fed(Drift(level), xs)
    other = loaded(json.loads(json.dumps(drift.dump())), level)
    assert other.dump() == drift.dump()
    assert fed(other, newer).dump() == fed(drift, newer).dump()


def test_an_alarm_survives_a_restart():
    """Even if the evidence is back below it, or the alarm is later now; one that is sooner now goes off at the next value."""
    drift = fed(Drift(LEVEL), [1.0] * 50)
    fed(drift, [0.0] * 2000)
    assert loaded(drift.dump(), LEVEL).alarmed
    quiet = fed(Drift(LEVEL), [1.0])
    assert not loaded(quiet.dump(), LEVEL).alarmed
    sooner = loaded(quiet.dump(), LEVEL, alarm=2.0)
    assert not sooner.alarmed
    assert fed(sooner, [1.0]).alarmed
    assert loaded(fed(Drift(LEVEL), [1.0] * 50).dump(), LEVEL, alarm=1e99).alarmed


def test_another_level_begins_anew():
    """Evidence against another guarantee says nothing about this one."""
    drift = loaded(fed(Drift(LEVEL), [1.0] * 50).dump(), 0.03)
    assert drift.dump() == Drift(0.03).dump()


GOOD = fed(Drift(LEVEL), [0.0, 1.0, 0.5]).dump()
NO_DUMPS = [
    None, 3, [], {}, *[{k: v for k, v in GOOD.items() if k != left_out} for left_out in GOOD],
    *[GOOD | {"level": bad} for bad in (None, "0.02", 0.0, 1.0, nan)],
    *[GOOD | {"count": bad} for bad in (None, "3", -1, 1, 3.0, nan, inf, True)],
    *[GOOD | {"ones": bad} for bad in (None, "1", -1, 4, nan, inf, 10**400)],
    *[GOOD | {"alarmed": bad} for bad in (None, 1, "no")],
    *[GOOD | {"day": bad} for bad in (None, 1, [1], [1, 2, 3], [1, 2.0], ["1", 2])],
    *[GOOD | {"wealth": bad} for bad in (None, 3, [], [1.0] * 7, [1.0] * 9, [-1.0] * 8, [nan] * 8, [inf] * 8, ["1"] * 8, [10**400] * 8)],
]  # fmt: skip


@pytest.mark.parametrize("dumped", NO_DUMPS, ids=lambda d: repr(d)[:80])
def test_what_is_no_dump(dumped):
    """Whatever else is loaded is a ValueError."""
    with pytest.raises(ValueError, match="not a dump of a drift alarm"):
        loaded(dumped, LEVEL)


def test_the_copy_for_many_is_the_class():
    """The simulation below and the class go off at the same value, in drift, without, and where values depend on each other."""
    rows = [*stream(0.06, 4, 2048), *stream(LEVEL, 2, 2048), *stream(0.2, 2, 2048), *dependent(2, 2048)]
    assert [*first_alarms(np.array(rows))] == [first_alarm(row) for row in rows]


@pytest.mark.parametrize(("share", "count"), [(0.04, 591), (0.06, 223), (0.1, 81), (0.2, 28)], ids=lambda s: f"{s:g}")
def test_how_soon(share, count):
    """Against a guarantee of 2 %, so many values come before the alarm on average."""
    assert first_alarms(stream(share, 400, 128 * 64)).mean() == pytest.approx(count, rel=0.1)


@pytest.mark.parametrize("xs", [lambda: stream(LEVEL, 200, 20_000), lambda: dependent(200, 20_000)], ids=["one", "dependent"])
def test_how_seldom(xs):
    """Without drift at least 10,000 values come before an alarm on average, though runs are cut off at 20,000."""
    assert first_alarms(xs()).mean() >= ALARM


# --- a share by the time of day, in scenes


def written(values, daily=None):
    """As `ShareTest` remembers them: so many a day, or all in one hour."""
    hours = [0 if daily is None else int(24 * i / daily) % 24 for i in range(len(values))]
    return "".join(chr(33 + 2 * hour + int(x)) for hour, x in zip(hours, values, strict=True))


@pytest.mark.parametrize(("scene", "least", "most"), [(1, 1, 1), (8, 8, 16), (30, 16, 64), (200, LONGEST, LONGEST)])
@pytest.mark.parametrize("daily", [None, 200])
def test_blocks_are_as_long_as_scenes(scene, least, most, daily):
    """Whether the rate follows the time of day or not; in most draws."""
    found = []
    for seed in range(9):
        rng, time = np.random.default_rng(seed), np.arange(MEMORY)
        rate = 0.2 + (0.0 if daily is None else 0.15 * np.sin(2 * np.pi * time / daily))
        found.append(block_length(written(np.repeat(rng.random(MEMORY), scene)[:MEMORY] < rate, daily)))
    assert least <= np.median(found) <= most


def test_of_few_values_no_scene_is_known():
    """Nor of many that are all the same but for a few."""
    assert block_length("") == block_length(written([0] * MEMORY)) == block_length(written([1] * 19 + [0] * 500)) == LONGEST
    assert block_length(written([0, 1] * 100)) == 1


def test_a_share_without_limits_is_not_tested():
    test = ShareTest(0.0, 1.0)
    for day in range(3):
        test.add(one=True, time_s=day * 86_400.0)
    assert test.tests == {}
    assert sorted(ShareTest(0.1, 1.0).tests) == ["fewer"]


def fed_days(test, days, daily, share, seed=0):
    rng = np.random.default_rng(seed)
    for i in range(days * daily):
        test.add(one=bool(rng.random() < share), time_s=i * 86_400 / daily)
    return test


@pytest.mark.parametrize(("share", "name"), [(0.3, "more"), (0.01, "fewer"), (0.1, "")])
def test_a_share_that_changed(share, name):
    """On each side; not while it is within its limits."""
    test = fed_days(ShareTest(0.08, 0.12), 40, 100, share)
    assert [side for side, one in test.tests.items() if one.alarmed] == ([name] if name else [])


def test_a_share_survives_a_restart():
    """Through JSON and back it is the same; what is no dump is a ValueError."""
    test = fed_days(ShareTest(0.08, 0.12), 3, 150, 0.1)
    good, other = json.loads(json.dumps(test.dump())), ShareTest(0.08, 0.12)
    other.load(good)
    assert other.dump() == test.dump()
    day, due, count, ones, values = good["state"]
    wrong = [
        [],
        [day, due, count, count + 1, values],
        [day, 3, count, ones, values],
        [1.5, due, count, ones, values],
        [*good["state"][:4], 3],
    ]
    for bad in ({}, {"state": good["state"]}, *({**good, "state": state} for state in wrong)):
        with pytest.raises(ValueError, match="not a dump of a test of a share"):
            other.load(bad)
    assert other.dump() == test.dump()
    assert fed_days(other, 3, 150, 0.1, 1).dump() == fed_days(test, 3, 150, 0.1, 1).dump()


# ------------------------------------------------------------------------------------------------------ whole days
def test_a_cycle_within_days_is_no_alarm():
    """Hours far beyond the level are none while the day's mean is within it; the first, perhaps partial, day has no bets."""
    day = [0.0] * 180 + [1.0, 0.0] * 10  # 5 % of the values, all of them at its end
    daily, each = Drift(0.06), Drift(0.06)
    for number in range(40):
        for x in day[150 if not number else 0 :]:
            daily.add(x, number)
            each.add(x)
    assert each.alarmed
    assert not daily.alarmed
    worse = Drift(0.02)
    for number in range(5):
        assert not worse.alarmed or number > 2
        for x in day:
            worse.add(x, number)
    assert worse.alarmed


def test_a_day_goes_on_after_a_restart():
    """In its middle."""
    once, often = Drift(0.02), Drift(0.02)
    for i in range(300):
        often = loaded(json.loads(json.dumps(often.dump())), 0.02)
        for drift in (once, often):
            drift.add(float(i % 20 == 0), i // 70)
    assert often.dump() == once.dump()


# ------------------------------------------------------------------------------------------- thresholds to count by
@given(st.floats(allow_nan=False) | st.sampled_from(GRID))
def test_the_highest_threshold_that_accepts(confidence):
    """As by comparison with each; none accepts what is no number."""
    assert grid_index(confidence) == sum(confidence >= threshold for threshold in GRID) - 1
    assert grid_index(nan) == grid_index(None) == -1
