"""The sequential test of two arms: false alarms are rare whenever one looks, and what is worse is found."""

import json

import numpy as np
import pytest

from edgeroute.core.sequential_tests import ArmTest


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
