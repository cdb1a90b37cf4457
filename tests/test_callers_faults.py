"""What is the caller's fault counts against no cloud: one caller's inputs, interrupts and deadlines do not deny it to the others."""

import asyncio
import threading
from math import inf
from pathlib import Path
from time import monotonic

import pytest
import routes
from both import CALLS, GOOD, LONG, Panic, Tasks, Threads, ask, makes, unsure, wait_for

from edgeroute import AsyncRouter, BadInput, Egress, Function, Held, Limits, MayNotLeave, PlainJson, Refused, Router
from edgeroute.cloud import attempt_accounting_and_turns as exchanges
from edgeroute.cloud import endpoint_guard as guards
from edgeroute.core.endpoint_breaker_and_limits import FAULTS
from edgeroute.errors import Busy, Unfit
from edgeroute.observe.network_routes_and_monitor import NetworkMonitor
from edgeroute.testing import CannedServer

pytestmark = pytest.mark.usefixtures("leaves_nothing")
make = makes(threshold=0.5)
OWN = [
    BadInput("no picture"), Unfit("of another kind"), Unfit("too long", code="context"), MayNotLeave("private"), Held("not sent"),
    Refused("no picture", status=422),
]  # fmt: skip


@pytest.fixture(autouse=True)
def no_link(monkeypatch):
    """No link comes up meanwhile."""
    monkeypatch.setattr(NetworkMonitor, "start", lambda monitor: None)


@pytest.fixture
def pass_time(monkeypatch):
    """Makes the time of what stands before the clouds later, past any opening."""
    ahead = [0.0]
    monkeypatch.setattr(guards, "monotonic", lambda: monotonic() + ahead[0])

    def pass_time():
        ahead[0] += 1e9

    return pass_time


def raising(error):
    """A function that raises that for whatever begins with "bad"."""

    def work(x):
        if str(x).startswith("bad"):
            raise error
        return "cloud", 0.9

    return work


def generator(function):
    """The same, that begins its answer before it looks at its input."""

    def work(x):
        yield "c"
        yield function(x)[0][1:]

    return work


def coroutine(function):
    async def work(x):
        await asyncio.sleep(0)
        return function(x)

    return work


def async_generator(function):
    async def work(x):
        yield "c"
        await asyncio.sleep(0)
        yield function(x)[0][1:]

    return work


def is_well(router):
    """Whether nothing counts against the cloud."""
    guard = router.guard
    return (guard.state, guard.rules.breaker.faults, guard.under_way) == ("closed", 0, 0)


@pytest.mark.parametrize("error", OWN, ids=repr)
@pytest.mark.parametrize("call", CALLS)
def test_an_input_that_a_function_rejects(make, call, error):
    """As often as one caller sends such, the others are answered."""
    client = make(unsure, raising(error))
    for _ in range(2 * FAULTS):
        assert ask(client, call, "bad").source == "edge"
    client.idle()
    assert is_well(client)
    assert ask(client, call, "good").value == "cloud"


@pytest.mark.parametrize(
    ("kind", "form"), [(Threads, generator), *((Tasks, form) for form in (generator, coroutine, async_generator))]
)
@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("error", OWN[:2], ids=repr)
def test_a_function_of_another_form(kind, form, call, error):
    """That has begun its answer, or that runs on the event loop."""
    with kind(unsure, form(raising(error)), threshold=0.5) as client:
        for _ in range(2 * FAULTS):
            ask(client, call, "bad")
        client.idle()
        assert is_well(client)
        assert ask(client, call, "good").source == "cloud"


@pytest.mark.parametrize("error", OWN[:3], ids=repr)
def test_rows_that_a_function_rejects(make, error):
    """They cost no other row its answer, wherever they stand in the batch."""
    client = make(unsure, raising(error))
    answers = client.infer_many(["bad 1", "good", "bad 2", "bad 3", "bad 4", "good"])
    assert [answer.source for answer in answers] == ["edge", "cloud", "edge", "edge", "edge", "cloud"]
    assert is_well(client)


def test_faults_still_count(make):
    """Of an overloaded model, a panic, and whatever else a function raises."""
    for error in (Busy("all runs are taken"), Panic("of an extension"), OSError("away"), ValueError("of the function")):
        client = make(unsure, raising(error))
        for _ in range(FAULTS):
            client.infer("bad")
        client.idle()
        assert client.guard.state == "open"


@pytest.mark.parametrize("after", ["good", "away"])
@pytest.mark.parametrize("call", CALLS)
def test_an_input_that_is_rejected_on_trial(make, call, after, pass_time):
    """It is no probe: it neither closes nor opens the breaker, and leaves its place to the next, which decides."""
    error = [OSError("away")]

    def work(x):
        if x == "good":
            return "cloud", 0.9
        raise error[0] if x == "away" else BadInput("no picture")

    client = make(unsure, work)
    for _ in range(FAULTS):
        ask(client, call, "away")
    client.idle()
    assert client.guard.state == "open"
    pass_time()
    ask(client, call, "bad")  # it finds that the pause is over
    wait_for(lambda: client.guard.state == "closed")
    for _ in range(2 * FAULTS):
        ask(client, call, "bad")
    client.idle()
    assert (client.guard.state, client.guard.rules.breaker.faults, client.guard.under_way) == ("closed", FAULTS, 0)
    ask(client, call, after)
    client.idle()
    assert (client.guard.state, client.guard.rules.breaker.faults) == (("closed", 0) if after == "good" else ("open", FAULTS + 1))


def test_a_probe_that_raises_it_is_no_longer_under_way(make, pass_time):
    """Of a health check any exception says that the cloud is down, and the next one may follow."""
    checks = []

    def health():
        checks.append(1)
        if len(checks) < 3:
            raise BadInput("of the health check")

    client = make(unsure, Function(raising(OSError("away")), health=health))
    for _ in range(FAULTS):
        client.infer("bad")
    for n in (1, 2, 3):
        pass_time()
        client.infer("good")
        wait_for(lambda n=n: (len(checks), client.guard.state) == (n, "open" if n < 3 else "closed"))
    assert client.infer("good").source == "cloud"


def test_a_hedge(make):
    """Two clouds at once, of which the first rejects the input: the other answers, and nothing counts against either."""
    client = make(unsure, [raising(BadInput("no picture")), lambda x: ("other", 0.9)], hedge_after=0.0, deadline=LONG)
    for _ in range(2 * FAULTS):
        assert client.infer("bad").value in {"other", "edge"}
    client.idle()
    assert [(guard.state, guard.rules.breaker.faults) for guard in client.guards] == [("closed", 0)] * 2


def test_an_input_that_is_rejected_after_the_answer(make):
    """By a function that goes on once an edge that was quicker has answered: it is not needed, and no fault either."""
    begun, gate = threading.Event(), threading.Event()

    def work(x):
        begun.set()
        gate.wait(LONG)
        raise BadInput("no picture")

    def edge(x):
        begun.wait(LONG)
        return "edge", 0.9

    client = make(edge, work, hedge_after=0.0, deadline=LONG)
    for _ in range(2 * FAULTS):
        begun.clear()
        gate.clear()
        assert client.infer("bad").value == "edge"
        gate.set()
        client.idle()
    assert is_well(client)


def test_calls_that_were_not_made_are_given_back(make, monkeypatch):
    """To the rate: of inputs that cannot be encoded, and of a batch whose first call fails. No time passes meanwhile."""
    at = monotonic()
    for module in (guards, exchanges):
        monkeypatch.setattr(module, "monotonic", lambda: at)
    with CannedServer(GOOD) as server:
        client = make(unsure, PlainJson(server.url, calls_per_s=4.0, retries=0))
        for call in CALLS:
            for _ in range(5):
                assert "input" in ask(client, call, Path("photo.jpg")).reason
        assert [client.infer(i).source for i in range(5)] == ["cloud"] * 4 + ["edge"]
        assert client.guard.rules.rate.left == 0
    client = make(unsure, Function(raising(OSError("away")), calls_per_s=4.0))
    assert {answer.source for answer in client.infer_many(["bad"] * 4)} == {"edge"}
    assert client.guard.rules.rate.left == 3


def test_a_call_that_a_limit_forbids_is_given_back_once(make, monkeypatch):
    """Where it was counted by the rate before the money ran out: alone, in a batch, and by a policy in force by now."""
    at = monotonic()
    for module in (guards, exchanges):
        monkeypatch.setattr(module, "monotonic", lambda: at)
    client = make(unsure, Function(lambda x: ("cloud", 0.9), calls_per_s=8.0, usd_per_call=1.0), limits=Limits(usd_per_day=2.0))
    assert [answer.source for answer in client.infer_many([1, 2])] == ["cloud", "cloud"]
    for _ in range(20):
        assert routes.code(client.infer(3)) == "usd_per_day"
        assert {answer.source for answer in client.infer_many([4, 5, 6])} == {"edge"}
    assert client.guard.rules.rate.left == 6


def test_a_call_that_is_cancelled_as_it_gets_its_turn(monkeypatch):
    """It is not made, so the rate has it back. No time passes meanwhile."""
    at = monotonic()
    for module in (guards, exchanges):
        monkeypatch.setattr(module, "monotonic", lambda: at)

    async def main():
        begun, go, made = asyncio.Event(), asyncio.Event(), []

        async def cloud(x):
            made.append(x)
            begun.set()
            await go.wait()
            return "cloud", 0.9

        async with AsyncRouter(unsure, Function(cloud, max_concurrent=1, calls_per_s=8.0), threshold=0.5) as router:
            (guard,) = (cloud.guard for cloud in router.engine.snapshot.clouds)
            first, second = (asyncio.ensure_future(router.infer(x)) for x in (1, 2))
            await begun.wait()
            await asyncio.to_thread(wait_for, lambda: guard.turns.waiting)
            advance = guard.turns.advance

            def then_cancel():
                advance()
                if not guard.turns.waiting:
                    second.cancel()

            monkeypatch.setattr(guard.turns, "advance", then_cancel)
            go.set()
            assert (await first).source == "cloud"
            await asyncio.wait([second])
            assert second.cancelled()
            return made, guard.rules.rate.left, guard.under_way

    assert asyncio.run(main()) == ([1], 7.0, 0)


def test_consent_that_is_refused_counts_nowhere(make):
    """Nor does a policy that keeps the input: no call is made, and none is taken from the rate."""
    with CannedServer(GOOD) as server:
        rules = Egress(may_leave=["open"], never_leave=["private"], consent=lambda where, name: False)
        client = make(unsure, PlainJson(server.url, calls_per_s=4.0), egress=rules)
        for name in ("open", "private", None) * 4:
            assert client.infer(1, data_class=name).source == "edge"
        assert is_well(client)
        assert (client.guard.rules.rate.left, server.requests) == (4.0, [])


def test_an_interrupt_is_no_fault():
    """Ctrl-C in a function that runs in its caller's thread, as in a notebook, as often as it comes."""

    def work(x):
        raise KeyboardInterrupt

    with Router(unsure, work, threshold=0.5) as router:
        (guard,) = (cloud.guard for cloud in router.engine.snapshot.clouds)
        for _ in range(2 * FAULTS):
            with pytest.raises(KeyboardInterrupt):
                router.infer(1)
        assert (guard.state, guard.rules.breaker.faults, guard.under_way) == ("closed", 0, 0)


def test_a_deadline_that_is_spent_before_anything_is_sent(make):
    """Nothing is sent then, which says nothing of the server: here the time goes by while the input is encoded."""
    until = [inf]

    def encode(x):
        wait_for(lambda: monotonic() >= until[0])
        return {"x": x}

    with CannedServer(GOOD) as server:
        client = make(unsure, PlainJson(server.url, encode=encode))
        for _ in range(2 * FAULTS):
            until[0] = monotonic() + 0.06
            assert client.infer(1, deadline=0.05).source == "edge"
            client.idle()
        assert is_well(client)
        assert server.requests == []
        until[0] = 0.0
        assert client.infer(1).source == "cloud"


def test_a_router_as_the_cloud(make):
    """What it may not send is its caller's, and counts neither in it nor before it."""
    with Router(None, lambda x: ("inner", 0.9), egress=Egress(data_class=str, may_leave=["open"])) as inner:
        client = make(unsure, lambda x: (inner.infer(x).value, 0.9))
        for _ in range(2 * FAULTS):
            assert client.infer("private").source == "edge"
        assert is_well(client)
        assert client.infer("open").value == "inner"
