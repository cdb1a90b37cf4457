"""The alarm of the loss by labels: how soon beside a test that knows the change, and how seldom without one."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest

from edgeroute import Audit
from edgeroute.confidence import Certificate
from edgeroute.confidence.certificate import BoundCertificate
from edgeroute.trials.audit_setting_and_drift_monitor import DriftMonitor

pytestmark = pytest.mark.pure


def certificate(loss, harm, win):
    """Of a cloud that is right where it differs, in which both were measured."""
    accuracy = {"edge": 0.9, "cloud": 0.9 + harm - win, "cascade": 0.9}
    return Certificate(
        "max_loss", loss, 0.95, "LR-BB", False, 4000, "2026-01-01", 0.0, {}, 0.0, (0.0, 0.01), accuracy, 0.0, "msp", {}, {},
        disagreement=1.15 * (harm + win),
    )  # fmt: skip


def labels(rng, count, harm, win):
    """Correctness of the edge and of the cloud, one row each."""
    luck = rng.random(count)
    return np.where(luck < harm, 0.0, 1.0), np.where((luck >= harm) & (luck < harm + win), 0.0, 1.0)


def until_alarm(made, edge, cloud):
    """Return after how many labels the alarm goes off; their number if it does not."""
    monitor = DriftMonitor(BoundCertificate(made, {}, 1e12), Audit(labelled=True, scene=1))
    for i, (right, other) in enumerate(zip(edge.tolist(), cloud.tolist(), strict=True)):
        if monitor.add_label(edge=right, cloud=other, counted=True):
            return i + 1
    return len(edge)


def cusum(harms, wins, before, after, limit):
    """Return the same of a CUSUM that knows both worlds, for each row; the number of columns without an alarm."""
    steps = [np.log(new / old) for new, old in zip((*after, 1 - sum(after)), (*before, 1 - sum(before)), strict=True)]
    gain = np.where(harms, steps[0], np.where(wins, steps[1], steps[2]))
    rows, length = gain.shape
    level, when = np.zeros(rows), np.full(rows, length)
    for i in range(length):
        level = np.maximum(level, 0) + gain[:, i]
        when[(level >= limit) & (when == length)] = i + 1
    return when


def drawn(rng, rows, length, harm, win):
    luck = rng.random((rows, length))
    return luck < harm, (luck >= harm) & (luck < harm + win)


def informed(before, after, alarm=10_000, length=20_000):
    """Return the mean delay of the CUSUM whose false alarms are `alarm` labels apart on average."""
    rng, low, high = np.random.default_rng(0), 0.0, 10.0
    calm = drawn(rng, 60, length, *before)
    for _ in range(7):
        middle = (low + high) / 2
        when = cusum(*calm, before, after, middle)
        low, high = (middle, high) if when.sum() < alarm * (when < length).sum() else (low, middle)
    return cusum(*drawn(rng, 200, 3000, *after), before, after, high).mean()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("loss", "harm", "win", "factor", "most"),
    [(0.022, 0.026, 0.004, 4, 1.9), (0.022, 0.03, 0.008, 3, 1.9), (0.05, 0.06, 0.01, 4, 1.7)],
)
def test_how_soon(loss, harm, win, factor, most):
    """Harms that are so many times as often are found nearly as soon as one can; by the loss alone it took 2.2 to 2.7 times as long."""
    made, worse = certificate(loss, harm, win), (factor * harm, win)
    delay = np.mean([until_alarm(made, *labels(np.random.default_rng(run), 3000, *worse)) for run in range(100)])
    best = informed((harm, win), worse)
    assert best < delay < most * best


@pytest.mark.slow
@pytest.mark.parametrize(("harm", "win"), [(0.026, 0.004), (0.07, 0.048)], ids=["as calibrated", "more wins"])
def test_how_seldom(harm, win):
    """While the loss is at its limit an alarm is 10,000 labels away on average; with more harms, too, if there are as many more wins."""
    made, length = certificate(0.022, 0.026, 0.004), 4000
    when = np.array([until_alarm(made, *labels(np.random.default_rng(run), length, harm, win)) for run in range(25)])
    assert when.sum() >= 10_000 * (when < length).sum()


def test_without_a_bound_of_the_wins_the_loss_is_tested():
    """Also after a restart; one without labels at the calibration takes all that differs for wins."""
    made = certificate(0.02, 0.02, 0.005)
    for other in (
        made._replace(disagreement=None),
        made._replace(agreement=True),
        made._replace(disagreement=0.99, agreement=True),
    ):
        monitor = partial(DriftMonitor, BoundCertificate(other, {}, 1e12), Audit(labelled=True, scene=1))
        one, again = monitor(), monitor()
        assert ("harm" in one.dump()["drift"]) is (other.disagreement == made.disagreement)
        for _ in range(20):
            one.add_label(edge=0.5, cloud=1.0, counted=True)
        again.load(one.dump())
        assert again.dump() == one.dump()
        assert again.stats("edge").evidence == pytest.approx(one.stats("edge").evidence)
