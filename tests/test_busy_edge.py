"""An edge that says for how long it is busy, as a system's model beyond its quota: the cloud meanwhile, and the edge where there is none."""

from __future__ import annotations

import pytest
from both import Tasks, Threads

from edgeroute import PolicyError
from edgeroute.errors import Busy


class Quota:
    """An edge that is busy at its first run."""

    def __init__(self, retry_after_s):
        self.runs, self.retry_after_s = 0, retry_after_s

    def __call__(self, x):
        """As a function of the application."""
        self.runs += 1
        if self.runs == 1:
            raise Busy("the quota is spent", retry_after_s=self.retry_after_s)
        return "edge", 0.9


@pytest.fixture(params=[Threads, Tasks], ids=["threads", "asyncio"])
def make(request):
    return request.param


@pytest.mark.parametrize(("retry_after_s", "later"), [(3600, "cloud"), (0, "edge"), (None, "edge")])
def test_the_cloud_answers_meanwhile(make, retry_after_s, later):
    """And the edge is not run; without a time the next request runs it."""
    edge = Quota(retry_after_s)
    with make(edge, lambda x: "cloud", threshold=0.5) as router:
        first = router.infer(1)
        assert (first.value, first.degraded) == ("cloud", False)
        assert [router.infer(1).value for _ in range(3)] == [later] * 3
    assert edge.runs == (1 if later == "cloud" else 4)


def test_it_is_asked_where_nobody_else_answers(make):
    """Never worse than the edge: a cloud that is away, or none, leaves the busy edge as the last resort."""

    def away(_):
        raise ConnectionError

    edge = Quota(3600)
    with make(edge, away, threshold=0.5) as router:
        with pytest.raises(Exception, match="answer"):
            router.infer(1)
        assert router.infer(1).value == "edge"
    alone = Quota(3600)
    with make(alone) as router:
        with pytest.raises(Busy):
            router.infer(1)
        assert router.infer(1).value == "edge"


@pytest.mark.parametrize("seconds", [-1, float("nan"), float("inf"), "1", 100_000])
def test_seconds_that_are_none(seconds):
    with pytest.raises(PolicyError, match="retry_after_s"):
        Busy("x", retry_after_s=seconds)
