"""Energy in a router: fitted from its device's power, in `stats` and `status`, and what a rule makes of it."""

from time import monotonic

import pytest
from both import nothing_left

from edgeroute import Function, Reading, Router, Rule
from edgeroute.cli.status import status
from edgeroute.core.energy import ENOUGH

FRUGAL = Rule("power", "cheapest_energy", enter=1.0)


@pytest.fixture(autouse=True)
def _nothing_left_behind(monkeypatch):
    with nothing_left(monkeypatch):
        yield


def metered(router):
    """Readings a second apart of a device that takes 5 W, and 20 W more while its edge runs: now more, now less."""
    observer, before = router.engine.observer, 0.0
    begun = observer.read_at
    observer.energy.note(5.0, ["edge"], begun + 1.0)
    for i in range(3 * ENOUGH):
        for _ in range(1 + 7 * (i % 3)):
            router.infer(0.9)
        _, seconds = router.engine.counts.busy(["edge"])["edge"]
        observer.energy.note(5.0 + 20.0 * (seconds - before), ["edge"], begun + 2.0 + i)
        before = seconds
    observer.observe(router.engine.snapshot.policy, router.engine.snapshot.targets, router.engine.snapshot.backends)
    router.engine.snapshot.plans.clear()


def spin(x):
    end = monotonic() + 0.001
    while monotonic() < end:
        pass
    return "edge", x


@pytest.mark.parametrize(("price", "first"), [(100.0, "edge"), (1e-6, "cloud")])
def test_the_edges_energy_is_fitted_and_the_cheaper_side_is_first(price, first, tmp_path, capsys):
    """The joules of a run are its time by 20 W; a cloud's are its price. `stats` has the break-even, `status` the joules."""
    cloud = Function(lambda _: ("cloud", 0.9), joules_per_call=price)
    with Router(
        spin, cloud, threshold=0.5, rules=[FRUGAL], sensors=lambda: Reading(power_w=5.0), state=tmp_path / "state"
    ) as router:
        assert any("it is not known what energy a call of edge" in step for step in router.decide(0.9).steps)
        metered(router)
        joules = router.stats().joules
        runs, seconds = router.engine.counts.busy(["edge"])["edge"]
        assert joules["edge"] == pytest.approx(20.0 * seconds / runs, rel=0.01)
        assert joules["cloud"] == price
        assert router.stats().break_even == pytest.approx(max(0.0, 1 - joules["edge"] / price), abs=0.01)
        answer = router.infer(0.9)
        assert answer.source == first
        assert answer.reason.endswith("; power above 1 W: cheapest_energy")
    assert status(policy=None, state=tmp_path / "state") == 0
    assert "J a call of edge" in capsys.readouterr().out


def test_without_a_sensor_there_is_no_energy():
    """It is left off, and the order stays as it is."""
    cloud = Function(lambda _: ("cloud", 0.9), joules_per_call=1.0)
    rule = Rule("load", "cheapest_energy", enter=0.1)
    with Router(spin, cloud, threshold=0.5, rules=[rule], sensors=lambda: Reading(cpu=0.9)) as router:
        for _ in range(2 * ENOUGH):
            router.infer(0.9)
            router.engine.read_sensors()
        assert (router.stats().joules, router.stats().break_even) == ({"cloud": 1.0}, None)
        assert router.infer(0.9).source == "edge"
