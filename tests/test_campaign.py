"""A small differential campaign: random faults of a real server. `make campaign` runs ten thousand schedules."""

import campaign
import pytest

pytestmark = pytest.mark.slow


def test_no_answer_is_lost_and_none_is_anothers():
    """Three modes, threads and asyncio, both protocols, every way of asking. How late answers are is for `make campaign`."""
    ran = campaign.run(seed=9, schedules=range(60), workers=6, deadline_s=1.0)
    assert (ran.lost, ran.foreign, ran.twice) == ([], [], [])
    assert ran.requests == 60 * campaign.REQUESTS
    assert set(ran.faults) == set(campaign.FAULTS)
    assert min(ran.sources[side] for side in ("edge", "cloud")) > 50


def test_the_campaign_sees_a_wrong_answer(monkeypatch):
    """A server that answers every request with the first one's answer."""
    monkeypatch.setattr(
        campaign.Campaign, "input_of", lambda self, n, plain: n - n % 12 if plain else campaign.np.array([n - n % 12], "f4")
    )
    ran = campaign.run(seed=9, schedules=range(6), workers=6, deadline_s=1.0)
    assert ran.foreign
