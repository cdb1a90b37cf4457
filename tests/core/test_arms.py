"""The sequential test of two arms: false alarms are rare whenever one looks, and what is worse is found."""

import json

import numpy as np
import pytest
from draws import slow

from edgeroute.core.sequential_tests import ArmTest, UnitArmTest


def run(rng, p_a, p_b, n, share=0.5, margin=0.0, alpha=0.05):
    """The number of values after which the alarm goes off; None: never."""
    test = ArmTest(margin, alpha)
    for i in range(n):
        b = bool(rng.random() < share)
        test.add(float(rng.random() < (p_b if b else p_a)), b=b)
        if test.alarmed:
            return i
    return None


@pytest.mark.parametrize(("p", "share", "margin"), [(0.1, 0.5, 0.0), (0.5, 0.1, 0.0), (0.02, 0.9, 0.01)])
def test_an_arm_that_is_no_worse_is_rarely_stopped(p, share, margin):
    """At most alpha of the times, over all looks: here of 200, and B is exactly as much worse as it may be."""
    rng = np.random.default_rng(1)
    stopped = sum(run(rng, p, p + margin, 300, share, margin) is not None for _ in range(200))
    assert stopped <= 200 * 0.05 + 3 * np.sqrt(200 * 0.05 * 0.95)


def test_a_worse_arm_is_stopped():
    """The sooner, the worse it is."""
    rng = np.random.default_rng(2)
    found = [np.median([run(rng, 0.05, p_b, 5000) or 5000 for _ in range(15)]) for p_b in (0.2, 0.5, 1.0)]
    assert found[0] > found[1] > found[2]
    assert found[0] < 1500
    assert found[2] < 60


def test_the_evidence():
    """It is a p-value, which falls while B is worse; values of one arm alone are no bet."""
    test = ArmTest(0.1, 0.05)
    for _ in range(10):
        test.add(1.0, b=True)
    assert (test.pairs, test.p) == (0, 1.0)
    test.add(0.0, b=False)
    assert test.pairs == 1
    for _ in range(2):
        test.add(0.0, b=True)
        test.add(1.0, b=False)
    assert test.p == 1.0
    for _ in range(2000):
        test.add(1.0, b=True)
        test.add(0.0, b=False)
    assert 0 < test.p < 1e-9
    assert test.alarmed


def test_a_dump_goes_on():
    """After JSON; what is no dump is refused."""
    one, other = ArmTest(0.0, 0.05), ArmTest(0.0, 0.05)
    for _ in range(5):
        one.add(1.0, b=True)
        one.add(0.0, b=False)
    other.load(json.loads(json.dumps(one.dump())))
    assert (other.p, other.pairs, other.alarmed) == (one.p, 5, one.alarmed)
    good = one.dump()
    wrong = ({"wealth": 3}, {"wealth": [1.0]}, {"wealth": [-1.0] * 8}, {"pairs": 1.5}, {"alarmed": 1})
    for bad in ({}, *({**good, **one} for one in wrong)):
        with pytest.raises(ValueError, match="not a dump"):
            other.load(bad)


@pytest.mark.parametrize(("margin", "alpha"), [(-0.1, 0.05), (1.0, 0.05), (0.0, 0.0), (0.0, 1.0), (float("nan"), 0.5)])
def test_wrong_arguments(margin, alpha):
    with pytest.raises(ValueError, match="margin"):
        ArmTest(margin, alpha)


# --- units that stay in one arm


def users(rng, n, of, p_b=None, *, alpha=0.05, values=8000, from_value=0):
    """The number of values at which n users of unequal traffic and unequal rates raise the alarm; None: never."""
    test, traffic = UnitArmTest(0.0, alpha), rng.pareto(1.0, n) + 0.1
    rate, in_b = rng.beta(of * 2, (1 - of) * 2, n), rng.permutation(n) % 2 == 1
    for i, user in enumerate(rng.choice(n, values, p=traffic / traffic.sum())):
        b = bool(in_b[user])
        p = p_b if b and p_b is not None and i >= from_value else rate[user]
        test.add(float(rng.random() < p), b=b, unit=str(user))
        if test.alarmed:
            return i
    return None


@pytest.mark.parametrize("n", [*slow(10, 30)])
def test_few_unequal_users_in_arms_that_are_alike(n):
    """At most alpha of the trials are stopped, at any time; of requests as units it were .11 to .21."""
    rng, runs = np.random.default_rng(n), 150
    stopped = sum(users(rng, n, 0.2, values=5000) is not None for _ in range(runs))
    assert stopped <= runs * 0.05 + 3 * np.sqrt(runs * 0.05 * 0.95)


def test_users_whose_arm_is_worse():
    """It is found among a hundred users, also where it becomes worse after all of them have bet."""
    rng = np.random.default_rng(4)
    assert all(users(rng, 100, 0.1, 0.9) for _ in range(10))
    late = [users(rng, 100, 0.1, 0.9, from_value=2000, values=20_000) for _ in range(10)]
    assert sum(count is not None and count > 2000 for count in late) >= 9


def test_a_dump_of_units_goes_on():
    """After JSON; what is no dump is refused; units beyond the most are left out."""
    one, other = UnitArmTest(0.0, 0.05), UnitArmTest(0.0, 0.05)
    for i in range(1500):
        one.add(float(i % 3 == 0), b=i % 2 == 1, unit=str(i % 40))
    other.load(json.loads(json.dumps(one.dump())))
    assert other.dump() == one.dump()
    assert (one.p, one.alarmed) == (1.0, False)
    good = one.dump()
    wrong = (
        {"units": 3},
        {"units": {"a": [1]}},
        {"period": 1.5},
        {"period": 99},
        {"alarmed": 1},
        {"tests": [{}, {}]},
        {"tests": [1]},
    )
    for bad in ({}, *({**good, **change} for change in wrong)):
        with pytest.raises(ValueError, match="not a dump"):
            other.load(bad)
    many = UnitArmTest(0.0, 0.05)
    many.load({**good, "period": 5, "units": {str(i): [1.0, 0.0] for i in range(2000)}})
    many.add(1.0, b=True, unit="another")
    assert len(many.dump()["units"]) == 2000
    for _ in range(20):
        many.add(1.0, b=True, unit="0")
    assert many.dump()["units"]["0"] == [8.0, 7.0]
