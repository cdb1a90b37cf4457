"""A small differential campaign: random faults of a real server. `make campaign` runs ten thousand schedules."""

import breaks
import campaign
import fault_schedules
import fault_server
import pytest

pytestmark = pytest.mark.slow


def test_no_answer_is_lost_and_none_is_anothers():
    """Modes, drivers, protocols and ways of asking, over one state folder, with SIGINTs. How late answers are is for `make campaign`."""
    ran = campaign.run(seed=9, schedules=range(200), workers=8, deadline_s=0.5)
    broken = {name: found for name in fault_schedules.BROKEN if name != "still" and (found := getattr(ran, name))}
    assert not broken
    assert ran.requests == 200 * fault_schedules.REQUESTS
    assert set(ran.faults) == set(fault_server.FAULTS)
    counts = ("edge", "cloud", "cache", "stays", "trials", "audits", "compared", "delivered", "interrupted")
    assert all(ran.counts[name] for name in counts), ran.counts


@pytest.mark.parametrize("broken", breaks.BREAKS)
def test_the_campaign_notices(broken):
    """Each way in which the package may be broken."""
    what, _ = breaks.BREAKS[broken]
    assert getattr(campaign.run(seed=9, schedules=range(400), workers=6, deadline_s=0.3, broken=broken, until=what), what)
