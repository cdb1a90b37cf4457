"""The energy of an edge's runs: fitted from power readings, told once it is certain, and the break-even that follows."""

from __future__ import annotations

import random

import pytest

from edgeroute.core.performance_estimates_and_encoding_choice import ENOUGH_READINGS, PowerFit, break_even


def fitted(readings, idle=4.0, extra=6.0, noise=0.0, busy=lambda rng: rng.random(), seed=0):
    """After so many readings of a device that takes `idle` watts, and `extra` while its edge runs."""
    rng, fit = random.Random(seed), PowerFit()
    for _ in range(readings):
        share = busy(rng)
        fit.add(idle + extra * share + rng.gauss(0, noise), share)
    return fit.extra_w


def test_the_power_of_runs_is_what_exceeds_the_devices_own():
    """Exact without noise, and near with it."""
    assert fitted(50) == pytest.approx(6.0)
    assert fitted(300, noise=1.0) == pytest.approx(6.0, rel=0.2)
    assert fitted(100, idle=0.0, extra=0.5, noise=0.01) == pytest.approx(0.5, rel=0.1)


def test_it_is_not_told_before_it_is_certain():
    """Too few readings, an edge that is always as busy, noise that hides it, or none at all."""
    assert fitted(ENOUGH_READINGS - 1) is None
    assert fitted(ENOUGH_READINGS) is not None
    assert fitted(100, busy=lambda _: 0.3) is None
    assert fitted(100, busy=lambda _: 0.0) is None
    assert fitted(60, extra=0.1, noise=5.0) is None
    assert fitted(200, extra=-6.0) is None
    told = sum(fitted(60, extra=0.0, noise=1.0, seed=seed) is not None for seed in range(200))
    assert told <= 4, "where runs take nothing, hardly ever"


def test_older_readings_fade():
    """A device that is set to another clock: after some hundred readings its new power counts."""
    rng, fit = random.Random(1), PowerFit()
    for extra in (6.0, 2.0):
        for _ in range(600):
            share = rng.random()
            fit.add(3.0 + extra * share, share)
    assert fit.extra_w == pytest.approx(2.0, rel=0.05)


@pytest.mark.parametrize("power_w", [float("nan"), float("inf"), -float("inf"), 1e300])
def test_a_reading_that_is_none_is_left_out(power_w):
    """One of them would stay in the sums for good."""
    rng, fit = random.Random(1), PowerFit()
    fit.add(power_w, 0.5)
    for _ in range(100):
        share = rng.random()
        fit.add(3.0 + 2.0 * share, share)
    assert fit.extra_w == pytest.approx(2.0)


def test_the_break_even():
    """Deferred is less than 1 - edge / cloud."""
    assert break_even(1.0, 4.0) == 0.75
    assert break_even(4.0, 4.0) == 0.0
    assert break_even(5.0, 4.0) == 0.0
    assert break_even(0.0, 0.0) == 0.0
