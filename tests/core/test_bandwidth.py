"""An endpoint's time of a call and its bandwidth, fitted to calls."""

import random
from math import inf

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeroute.core.performance_estimates_and_encoding_choice import LEAST, Link


def calls(link, count, call_s, bytes_per_s, seed=0, jitter=0.0):
    """Calls of random sizes over such a link."""
    source = random.Random(seed)
    for _ in range(count):
        size = int(source.uniform(1e3, 2e5))
        link.add(size, call_s + size / bytes_per_s + source.expovariate(1) * jitter)
    return link


def test_nothing_is_known_before_the_first_call():
    """And no bandwidth before some."""
    link = Link()
    assert (link.count, link.call_s, link.bytes_per_s) == (0, None, None)
    calls(link, LEAST - 1, 0.05, 1e6)
    assert link.bytes_per_s is None
    assert link.call_s > 0.05


def test_the_time_of_a_call_is_predicted_from_the_first_on():
    """Too long rather than too short until a bandwidth is known; after a restart too."""
    assert Link().predicted_s(1000) == inf
    link = Link()
    link.add(1000, 0.5)
    assert [link.predicted_s(size) for size in (10, 2000)] == [pytest.approx(0.5), pytest.approx(1.0)]
    link = Link.load(calls(Link(), 60, 0.05, 1e6).dump())
    assert (link.count, link.predicted_s(100_000)) == (60, pytest.approx(0.15))


@pytest.mark.parametrize("seed", range(5))
def test_both_are_found(seed):
    """Also with jitter, which lengthens a call by its mean."""
    link = calls(Link(), 60, 0.05, 1e6, seed)
    assert link.bytes_per_s == pytest.approx(1e6, rel=1e-6)
    assert link.call_s == pytest.approx(0.05, rel=1e-6)
    link = calls(Link(), 300, 0.05, 1e6, seed, jitter=0.02)
    assert link.bytes_per_s == pytest.approx(1e6, rel=0.5)
    assert link.call_s == pytest.approx(0.07, rel=0.5)


def test_a_link_that_changes_is_followed():
    """From Wi-Fi to a modem, within some hundred calls."""
    link = calls(Link(), 500, 0.02, 1e7)
    calls(link, 300, 0.3, 1e5, seed=1)
    assert link.bytes_per_s == pytest.approx(1e5, rel=0.1)
    assert link.call_s == pytest.approx(0.3, rel=0.5)


@pytest.mark.parametrize("seed", range(20))
def test_no_bandwidth_is_made_of_noise(seed):
    """Where the endpoint's work decides, or all bodies are of one size, or larger ones are faster."""
    source = random.Random(seed)
    noise, equal, wrong, none = Link(), Link(), Link(), Link()
    for _ in range(200):
        size = source.randrange(1000, 100_000)
        noise.add(size, source.expovariate(10))
        equal.add(3000, source.expovariate(10))
        wrong.add(size, 1 / size)
        none.add(size, size * 5e-324)
    assert [link.bytes_per_s for link in (noise, equal, wrong, none)] == [None] * 4
    assert equal.call_s == pytest.approx(0.1, rel=0.6)


@given(st.lists(st.tuples(st.integers(0, 10**12), st.floats(0, 1e6)), max_size=60))
def test_whatever_comes_it_is_a_number_or_unknown(added):
    """Never negative, and it survives being stored."""
    link = Link()
    for size, seconds in added:
        link.add(size, seconds)
    for value in (link.call_s, link.bytes_per_s):
        assert value is None or 0 <= value < float("inf")
    again = Link.load(link.dump())
    assert (again.count, again.call_s, again.bytes_per_s) == (link.count, link.call_s, link.bytes_per_s)


@pytest.mark.parametrize(
    "dumped", [None, 5, "abcdef", "123456", [], [1] * 5, [1] * 7, [1, 1, 1, 1, "x", 1], [1, 1, 1, 1, float("nan"), 1], [-1] * 6, {1: 2}]
)  # fmt: skip
def test_what_is_no_dump(dumped):
    """It is refused as one."""
    with pytest.raises(ValueError, match="not a dump of a link"):
        Link.load(dumped)
