"""Which requests are drawn for audits and alarms: how many, how far apart, and that nothing but earlier requests matters."""

from __future__ import annotations

import itertools
import random
import threading

import pytest

from edgeroute import Audit, Router
from edgeroute.stores.sqlite_file_and_key_values import KeyValueStore
from edgeroute.trials.audits_and_drift_alarms import CALM, FULL, UNTIL_NEXT, Sampler


def sampler(share=0.1, scene=30, waiting=lambda: 0, allowed=lambda: True, due=None):
    """A sampler, by default without a load."""
    return Sampler(share, scene, waiting, allowed, due)


def drawn(of, n):
    """(number of the request, what was drawn), of n requests."""
    return [(i, one) for i in range(n) if (one := of.arrives()) is not None]


def test_each_request_is_drawn_with_the_share():
    """Of 100,000 one in ten, whatever their place modulo anything, and the log is told the share."""
    random.seed(1)
    audits = [i for i, one in drawn(sampler(), 100_000) if one.probability]
    assert abs(len(audits) - 10_000) < 5 * 95
    assert abs(sum(i % 2 for i in audits) - len(audits) / 2) < 5 * len(audits) ** 0.5 / 2
    assert {one.probability for _, one in drawn(sampler(), 1000)} == {0.0, 0.1}


@pytest.mark.parametrize("scene", [1, 30])
@pytest.mark.parametrize("share", [0.0, 0.005, 0.2, 1.0])
def test_what_an_alarm_counts_is_a_scene_apart(share, scene):
    """For audits and for the deferral rate; of that one in twice a scene is counted."""
    random.seed(2)
    found = drawn(sampler(share, scene), 50_000)
    for counted in ([i for i, one in found if one.counted], [i for i, one in found if one.rate]):
        assert all(later - earlier >= scene for earlier, later in itertools.pairwise(counted))
    assert sum(one.rate for _, one in found) == pytest.approx(50_000 / (2 * scene), rel=0.1)
    audits = sum(one.counted for _, one in found)
    assert audits == pytest.approx(50_000 / (scene - 1 + 1 / share) if share else 0, rel=0.2)
    assert all(one.probability for _, one in found if one.counted)


def test_while_audits_wait_fewer_are_drawn_until_long_after():
    """Half of them from eight on, a quarter from sixteen on. What is logged is the chance that there was."""
    random.seed(3)
    waits = [0]
    of = sampler(1.0, 1, lambda: waits[0])
    for waiting, chance in ((0, 1.0), (FULL - 1, 1.0), (FULL, 0.5), (FULL - 1, 0.5), (2 * FULL, 0.25), (1, 0.25)):
        waits[0] = waiting
        audits = [one.probability for _, one in drawn(of, 4000) if one.probability]
        assert set(audits) == {chance}
        assert abs(len(audits) - 4000 * chance) <= 5 * (4000 * chance * (1 - chance)) ** 0.5
    waits[0] = 0
    later = [one.probability for _, one in drawn(of, 3 * CALM) if one.probability]
    assert later == sorted(later)
    assert (later[0], later[-1]) == (0.25, 1.0)


def test_nothing_is_drawn_where_nothing_may_be_sent():
    """For neither side; the deferral rate costs no call."""
    found = drawn(sampler(1.0, 1, allowed=lambda: False), 1000)
    assert found
    assert all(one.rate and not one.probability and not one.counted for _, one in found)


def test_eight_callers_draw_as_one_does():
    """No request is drawn twice, and no draw is lost for good."""
    random.seed(4)
    of, found = sampler(0.05), []

    def call():
        found.extend(one for _, one in drawn(of, 20_000) if one.probability)

    callers = [threading.Thread(target=call) for _ in range(8)]
    for one in callers:
        one.start()
    for one in callers:
        one.join()
    assert abs(len(found) - 8000) < 6 * 87


def test_programs_that_answer_few_requests_are_watched_too(tmp_path):
    """Each goes on where the last one ended: of 3,000 requests in runs of ten one in 60 is counted, a scene apart or more."""
    due, counted = None, []
    for run in range(300):
        of = sampler(0.0, 30, due=due)
        counted += [10 * run + i for i, _ in drawn(of, 10)]
        due = of.remaining()
    assert len(counted) == pytest.approx(50, rel=0.5)
    assert all(later - earlier >= 30 for earlier, later in itertools.pairwise(counted))
    for kept in (7, "x", None, True, -3, 10**9):
        store = KeyValueStore(tmp_path / f"{kept}" / "state.db")
        store.put(UNTIL_NEXT, kept)
        store.close()
        with Router(lambda _: ("a", 0.9), lambda _: "a", threshold=0.5, audit=Audit(), state=tmp_path / f"{kept}") as router:
            router.infer(0)
        store = KeyValueStore(tmp_path / f"{kept}" / "state.db")
        assert 1 <= store.get(UNTIL_NEXT) <= 90
        assert kept != 7 or store.get(UNTIL_NEXT) == 6
        store.close()
