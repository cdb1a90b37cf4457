"""What every stage around the walk leaves as it is: each alone, for threads and asyncio, in every way of asking.

A part with `around` that is added to `edgeroute/router/engine_assembly.py` is added to `STAGES` here.
"""

from __future__ import annotations

import pytest
from both import CALLS, ask, makes

from edgeroute import Cache, Instrument, NoAnswer, Part


class Told(Instrument):
    """Hears of beginnings and ends."""

    def request_began(self, began):
        """Nothing comes of it."""

    def request_ended(self, ended):
        """Likewise."""


class Around(Part):
    """A stage of another package that changes nothing."""

    def around(self, requests, proceed):
        """As without it."""
        return (yield from proceed(requests))


STAGES = {
    "Followed": lambda: {"instruments": [Told()]},
    "Caching": lambda: {"cache": Cache()},
    "another package's": lambda: {"parts": [Around()]},
}
"""Stage -> the arguments of a router that has it."""


pytestmark = pytest.mark.usefixtures("leaves_nothing")
make = makes(threshold=0.5)


def edge(x):
    """Sure of "sure" alone; fails for "fails"."""
    if x == "fails":
        raise RuntimeError("it fails")
    return f"edge {x}", 0.9 if x == "sure" else 0.1


def cloud(x):
    """Away for "away" and "fails"."""
    if x in {"away", "fails"}:
        raise ConnectionError("it is away")
    return f"cloud {x}", 0.8


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("call", CALLS)
def test_an_answer_is_that_of_the_walk(make, stage, call):
    """Of the device, of the cloud, and the device's in place of the cloud's."""
    with_it, without = make(edge, cloud, **STAGES[stage]()), make(edge, cloud)
    for x in ("sure", "unsure", "away"):
        one, other = ask(with_it, call, x), ask(without, call, x)
        for name in ("value", "source", "confidence", "degraded", "final"):
            assert getattr(one, name) == getattr(other, name)
        assert one.id.startswith(with_it.engine.name)


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("call", CALLS)
def test_no_answer_is_raised(make, stage, call):
    """It is a result like any other to the stage, and an exception to the caller; the next call is none the worse."""
    router = make(edge, cloud, **STAGES[stage]())
    with pytest.raises(NoAnswer):
        ask(router, call, "fails")
    assert ask(router, call, "unsure").value == "cloud unsure"


@pytest.mark.parametrize("stage", STAGES)
def test_rows_keep_their_places(make, stage):
    """Whoever answers them; an empty batch has none."""
    router = make(edge, cloud, **STAGES[stage]())
    rows = ["sure", "b", "sure", "d", "away"]  # after one that is away a function is asked no more
    answers = router.infer_many(rows)
    assert [answer.value for answer in answers] == ["edge sure", "cloud b", "edge sure", "cloud d", "edge away"]
    assert [answer.id.rpartition(".")[2] for answer in answers] == ["0", "1", "2", "3", "4"]
    assert router.infer_many([]) == []


@pytest.mark.parametrize("stage", STAGES)
def test_a_caller_may_leave(make, stage):
    """After the first that is shown; the same input is answered to the next caller."""
    router = make(edge, cloud, **STAGES[stage]())
    answers = router.refine("unsure")
    first = next(answers)
    assert (first.value, first.final) == ("edge unsure", False)
    answers.close()
    assert ask(router, "infer", "unsure").value == "cloud unsure"
