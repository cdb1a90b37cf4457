"""The alarm of the deferral rate in virtual time: daily cycles and scenes of any length are no change, and a change is found."""

from __future__ import annotations

import json
import random

import numpy as np
import pytest

from edgeroute import Audit
from edgeroute.confidence import Certificate
from edgeroute.confidence.certificate import BoundCertificate
from edgeroute.system import wall_clock
from edgeroute.trials.audit_setting_and_drift_monitor import DriftMonitor
from edgeroute.trials.audits_and_drift_alarms import Sampler

pytestmark = pytest.mark.pure
DAY = 86_400.0


def certificate(share, slack=0.02):
    return Certificate(
        "max_loss", 0.02, 0.95, "LR-BB", True, 4000, "2026-01-01", 0.5, {}, share, (share - slack, share + slack), {}, 0.0, "msp",
        {}, {},
    )  # fmt: skip


def requests(seed, count, daily, share, *, swing=0.0, scene=1, within=1.0, change=None):
    """Return for each request its time, and whether it is deferred.

    In a scene all are deferred or none, or with `within` below 1 that share of those in a scene that may be. The rate follows the
    time of day: a sine of amplitude `swing`, or, if that is negative, half a day below and half a day above. After `change` it is
    twice as much.
    """
    rng, times = np.random.default_rng(seed), np.arange(count) / daily
    course = np.sin(2 * np.pi * times) if swing >= 0 else np.where(times % 1 < 0.5, 1.0, -1.0)
    rate = share + swing * course
    if change is not None:
        rate = np.where(np.arange(count) >= change, 2 * rate, rate)
    luck = np.repeat(rng.random(count // scene + 1), scene)[:count]
    return times * DAY, (luck < rate / within) & (rng.random(count) < within)


def until_alarm(monkeypatch, seed, share, times, deferred, scene=30):
    """Return after how many requests a monitor of those that the sampler draws raises its alarm; None: it does not."""
    random.seed(seed)
    audit, now = Audit(share=0, scene=scene), [0.0]
    monkeypatch.setattr(wall_clock, "now", lambda: now[0])
    sampler, monitor = Sampler(0, scene, int, bool), DriftMonitor(BoundCertificate(certificate(share), {}, 1e12), audit)
    for i, (time, below) in enumerate(zip(times.tolist(), deferred.tolist(), strict=True)):
        drawn = sampler.arrives()
        if drawn is not None and drawn.rate:
            now[0] = time
            if monitor.add_deferral(0.5, below=below):
                return i
    return None


@pytest.mark.slow
@pytest.mark.parametrize(
    ("daily", "share", "swing", "scene", "within"),
    [
        (10_000, 0.1, 0.0, 1, 1.0),
        (10_000, 0.1, 0.0, 300, 1.0),
        (10_000, 0.1, 0.0, 3000, 1.0),
        (10_000, 0.1, 0.1, 1, 1.0),
        (10_000, 0.16, -0.14, 300, 1.0),
        (100_000, 0.16, -0.14, 30, 1.0),
        (100_000, 0.45, 0.4, 300, 0.85),
        (3_000, 0.45, 0.4, 3000, 1.0),
    ],
)
def test_cycles_and_scenes_are_no_change(monkeypatch, daily, share, swing, scene, within):
    """No alarm within 600,000 requests, where one in 10,000 days is promised. A test of each value took 1,200 to 150,000 requests."""
    world = requests(1, 600_000, daily, share, swing=swing, scene=scene, within=within)
    assert until_alarm(monkeypatch, 1, share, *world) is None


@pytest.mark.slow
@pytest.mark.parametrize(("scene", "most"), [(1, 120_000), (300, 400_000)])
@pytest.mark.parametrize("swing", [0.0, 0.1])
def test_a_change_is_found(monkeypatch, swing, scene, most):
    """From 10 to 20 % deferred, with 10,000 requests a day: within so many requests of the change."""
    world = requests(2, 300_000 + most, 10_000, 0.1, swing=swing, scene=scene, change=300_000)
    count = until_alarm(monkeypatch, 2, 0.1, *world)
    assert count is not None
    assert count > 300_000


def test_independent_inputs_are_looked_at_at_once(monkeypatch):
    """With `scene = 1` a change needs no day."""
    world = requests(1, 3000, 1_000_000, 0.4)
    assert until_alarm(monkeypatch, 1, 0.1, *world, scene=1) < 300
    assert until_alarm(monkeypatch, 1, 0.1, *world) is None


def test_a_day_is_looked_at_at_its_end(monkeypatch):
    """Also after a restart, in the middle of a block: it goes on the same."""
    hours = [0.0]
    monkeypatch.setattr(wall_clock, "now", lambda: hours[0] * 3600)
    promise = BoundCertificate(certificate(0.1), {}, 1e12)
    monitor, found = DriftMonitor(promise, Audit(share=0)), []
    for i in range(24 * 60):
        hours[0] = i / 5
        if i % 7 == 0:
            again = DriftMonitor(promise, Audit(share=0))
            again.load(json.loads(json.dumps(monitor.dump())))
            assert again.dump() == monitor.dump()
            monitor = again
        if monitor.add_deferral(0.5, below=i % 2 == 0):
            found.append(hours[0])
    assert len(found) == 1
    assert found[0] > 24
    assert "more inputs than usual are deferred" in monitor.alarm.what
    assert "have 50" in monitor.alarm.what
