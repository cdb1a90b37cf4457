"""More requests than an endpoint takes at a time: they wait for their turn within their deadline, in order, and give it up."""

import asyncio
import os
import signal
import threading
from concurrent.futures import ThreadPoolExecutor
from time import monotonic
from types import SimpleNamespace

import pytest
from both import GOOD, LONG, GatedServer, makes, unsure
from draws import slow

from edgeroute import AsyncRouter, Function, Held, Limits, PlainJson, Router, StopToken
from edgeroute.cloud import attempt_accounting_and_turns as turns
from edgeroute.cloud.endpoint_guard import Guard
from edgeroute.cloud.shared_spending_and_record import SharedSpending
from edgeroute.core import endpoint_breaker_and_limits as admission
from edgeroute.core.endpoint_breaker_and_limits import FAULTS
from edgeroute.core.policy_egress_and_options import Rules, Terms, permit
from edgeroute.core.spending_limits import Spending
from edgeroute.testing import CannedServer, FakeCloud

PERMIT = permit(Rules(), None)


class Quiet:
    """Hears nothing, probes nothing."""

    def opened(self, guard):
        """Nothing."""

    closed = probe = opened


@pytest.fixture
def guard():
    """A guard with one place, of an endpoint that is known to be well."""
    made = Guard(
        "cloud",
        "http://cloud",
        Terms(max_concurrent=1),
        SharedSpending(Spending(Limits())),
        health=None,
        watcher=Quiet(),
        journal=None,
    )
    made.succeeded(None)
    return made


pytestmark = pytest.mark.usefixtures("leaves_nothing")
make = makes(threshold=0.8)


def waits(guard, count=1):
    """Until so many wait."""
    until = monotonic() + LONG
    while len(guard.turns.waiting) != count:
        assert monotonic() < until


# bursts


@pytest.mark.parametrize("most", [1, 8, 64])
def test_a_burst_of_tasks_is_answered(most):
    """200 at once, and a cloud that answers them all in time: none is degraded, and never more are under way than may be."""
    at_once, seen = [0], []

    async def cloud(_):
        at_once[0] += 1
        seen.append(at_once[0])
        await asyncio.sleep(0)
        at_once[0] -= 1
        return "cloud", 0.9

    async def main():
        async with AsyncRouter(unsure, Function(cloud, max_concurrent=most), threshold=0.8, deadline=LONG) as router:
            return await asyncio.gather(*[router.infer(i) for i in range(200)])

    answers = asyncio.run(main())
    assert sum(a.degraded for a in answers) == 0
    assert (len(seen), max(seen) <= most) == (200, True)


def test_a_burst_over_http_is_answered():
    """Likewise over connections."""

    async def main(url):
        async with AsyncRouter(unsure, PlainJson(url, max_concurrent=8, timeout_s=LONG), threshold=0.8, deadline=LONG) as router:
            return await asyncio.gather(*[router.infer(i) for i in range(200)])

    with CannedServer(GOOD) as server:
        answers = asyncio.run(main(server.url))
        assert sum(a.degraded for a in answers) == 0
        assert len(server.requests) == 200


@pytest.mark.parametrize("deadline", [LONG, None])
def test_a_burst_of_threads_is_answered(deadline):
    """200 callers and 8 places; without a deadline they wait in their own threads, for as long as the endpoint's timeout."""
    with (
        CannedServer(GOOD) as server,
        Router(unsure, PlainJson(server.url, max_concurrent=8, timeout_s=LONG), threshold=0.8, deadline=deadline) as router,
        ThreadPoolExecutor(200) as pool,
    ):
        answers = list(pool.map(router.infer, range(200)))
    assert sum(a.degraded for a in answers) == 0


@pytest.mark.parametrize("call", ["infer_many", "refine", "stream"])
def test_other_calls_wait_too(make, call):
    """A batch, a provisional answer and a stream wait as `infer` does."""
    with GatedServer(GOOD) as server:
        router = make(unsure, PlainJson(server.url, max_concurrent=1, timeout_s=LONG))
        first = router.start(1)
        server.wait_for(lambda: server.requests)
        guard = router.engine.snapshot.clouds[0].guard

        def ask():
            if call == "infer_many":
                return router.infer_many([2])[0]
            if call == "refine":
                return list(router.refine(2))[-1]
            with router.stream(2) as stream:
                list(stream)
            return stream.answer

        with ThreadPoolExecutor(1) as pool:
            second = pool.submit(ask)
            waits(guard)
            server.open()
            assert [first.result(LONG).source, second.result(LONG).source] == ["cloud", "cloud"]


def test_too_many_do_not_wait(make, monkeypatch):
    """Threads that wait are not to use up those for other endpoints: beyond a number the edge answers at once."""
    monkeypatch.setattr(turns, "MOST_THREADS", 1)
    monkeypatch.setattr(turns, "MOST_TASKS", 1)
    with GatedServer(GOOD) as server:
        router = make(unsure, PlainJson(server.url, max_concurrent=1, timeout_s=LONG))
        calls = [router.start(0)]
        server.wait_for(lambda: server.requests)
        calls.append(router.start(1))
        waits(router.engine.snapshot.clouds[0].guard)
        answer = router.infer(2)
        assert (answer.source, answer.reason_code) == ("edge", "max_concurrent")
        server.open()
        assert [call.result(LONG).source for call in calls] == ["cloud"] * 2
    assert router.stats().legs[1].held == 1


# turns


def test_first_come_first_served(guard):
    """A newcomer goes behind those who wait, also while a place is free."""
    order = []

    def visit(name):
        with guard.enter(PERMIT, name, until=monotonic() + LONG):
            order.append(name)

    first = guard.enter(PERMIT, "first")
    threads = []
    for i in range(5):
        threads.append(threading.Thread(target=visit, args=(i,)))
        threads[-1].start()
        waits(guard, i + 1)
    with pytest.raises(Held, match=r"1 call is under way \(max_concurrent\)"):
        guard.enter(PERMIT, "newcomer")
    with first:
        pass
    for thread in threads:
        thread.join(LONG)
    assert order == [0, 1, 2, 3, 4]
    assert (guard.under_way, guard.held) == (0, 1)


def test_the_deadline_ends_it(guard):
    """It is then held, and counted once."""
    with guard.enter(PERMIT, "first"), ThreadPoolExecutor(1) as pool:
        call = pool.submit(guard.enter, PERMIT, "second", until=monotonic() + 0.05)
        with pytest.raises(Held, match=r"1 call is under way \(max_concurrent\)"):
            call.result(LONG)
    assert (guard.held, guard.turns.waiting, guard.under_way) == (1, {}, 0)


def test_a_stop_request_ends_it(guard):
    """The answer is not needed any more: nobody waits for it."""
    stop = StopToken()
    with guard.enter(PERMIT, "first"), ThreadPoolExecutor(1) as pool:
        call = pool.submit(guard.enter, PERMIT, "second", until=monotonic() + LONG, stop=stop)
        waits(guard)
        stop()
        with pytest.raises(Held):
            call.result(LONG)
    assert (guard.turns.waiting, guard.under_way) == ({}, 0)


def test_who_has_given_up_gets_no_place(guard):
    """Though it does not know yet: a place would be taken from others until its thread or loop runs."""

    async def main():
        first, until = guard.enter(PERMIT, "first"), monotonic() + 0.05
        task = asyncio.create_task(guard.enter_async(PERMIT, "second", 1, until))
        await asyncio.sleep(0)
        while monotonic() < until:
            pass  # the loop is held up
        with first:
            pass
        assert guard.under_way == 0
        with pytest.raises(Held):
            await task

    asyncio.run(main())

    class Unnoticed(StopToken):
        """Notices nobody."""

        def on_ask(self, hook):
            """The notice is under way."""

    stop = Unnoticed()
    with ThreadPoolExecutor(1) as pool:
        with guard.enter(PERMIT, "first"):
            call = pool.submit(guard.enter, PERMIT, "second", until=monotonic() + LONG, stop=stop)
            waits(guard)
            stop()
        assert guard.under_way == 0
        with pytest.raises(Held):
            call.result(LONG)
    assert guard.held == 2


def test_a_cancelled_task_gives_up_its_turn(guard):
    """Before it is its turn, and in the moment that it is: the next one has it."""

    async def main():
        first = guard.enter(PERMIT, "first")
        tasks = [asyncio.create_task(guard.enter_async(PERMIT, str(i), 1, monotonic() + LONG)) for i in range(4)]
        await asyncio.sleep(0)
        assert len(guard.turns.waiting) == 4
        tasks[0].cancel()
        await asyncio.wait(tasks[:1])
        with first:
            pass
        assert len(guard.turns.waiting) == 2
        tasks[1].cancel()  # it has its turn, and does not know yet
        await asyncio.wait(tasks[1:2])
        with await tasks[2]:
            pass
        with await tasks[3]:
            pass

    asyncio.run(main())
    assert (guard.turns.waiting, guard.under_way) == ({}, 0)


def test_one_that_was_dropped_frees_its_place(guard, monkeypatch):
    """Without a word, as after an exception: who waits looks now and then."""
    monkeypatch.setattr(turns, "LOOK_S", 0.01)
    first = guard.enter(PERMIT, "first")
    with ThreadPoolExecutor(1) as pool:
        call = pool.submit(guard.enter, PERMIT, "second", until=monotonic() + LONG)
        waits(guard)
        del first
        with call.result(LONG):
            pass

    async def main():
        first = guard.enter(PERMIT, "first")
        task = asyncio.create_task(guard.enter_async(PERMIT, "second", 1, monotonic() + LONG))
        await asyncio.sleep(0)
        del first
        with await task:
            pass

        with guard.enter(PERMIT, "first"), pytest.raises(Held):
            await guard.enter_async(PERMIT, "second", 1, monotonic() + 0.05)

    asyncio.run(main())
    assert guard.under_way == 0


def test_a_breaker_that_opens_ends_it(guard):
    """All who wait are told at once."""
    with guard.enter(PERMIT, "first"), ThreadPoolExecutor(3) as pool:
        calls = [pool.submit(guard.enter, PERMIT, str(i), until=monotonic() + LONG) for i in range(3)]
        waits(guard, 3)
        for _ in range(FAULTS):
            guard.failed()
        for call in calls:
            with pytest.raises(Held, match="breaker open"):
                call.result(LONG)


def test_a_success_makes_room(guard):
    """At an endpoint that is not known to be well three are under way; once it has answered, as many as may be."""
    made = Guard("cloud", "http://cloud", Terms(), SharedSpending(Spending(Limits())), health=None, watcher=Quiet(), journal=None)
    held = [made.enter(PERMIT, str(i)) for i in range(3)]
    with ThreadPoolExecutor(5) as pool:
        calls = [pool.submit(made.enter, PERMIT, str(i), until=monotonic() + LONG) for i in range(5)]
        waits(made, 5)
        with pytest.raises(Held, match="3 calls are under way, and more may be only once it has answered") as refused:
            made.enter(PERMIT, "too late", until=monotonic() + 0.01)
        assert refused.value.code == "concurrency", "nobody has set a limit"
        with held.pop() as exchange:
            exchange.before_attempt(1, monotonic() + LONG)
            exchange.after_attempt(1)
        held += [call.result(LONG) for call in calls]
    assert made.under_way == 7


def test_closing_ends_it(make):
    """A router that is closed lets nobody wait."""
    with GatedServer(GOOD) as server:
        router = make(unsure, PlainJson(server.url, max_concurrent=1, timeout_s=LONG), deadline=LONG)
        calls = [router.start(0)]
        server.wait_for(lambda: server.requests)
        calls.append(router.start(1))
        waits(router.engine.snapshot.clouds[0].guard)
        router.engine.snapshot.clouds[0].guard.turns.close()
        assert calls[1].result(LONG).reason_code == "stopped"
        server.open()
        assert calls[0].result(LONG).source == "cloud"


def test_a_signal_handler_does_not_wait_for_what_it_interrupts():
    """It asks the same cloud, which has one place, from under a call that has it: the edge answers at once."""
    answers = []

    def cloud(x):
        if x == "outer":
            os.kill(os.getpid(), signal.SIGUSR1)
        return "cloud", 0.9

    with Router(unsure, Function(cloud, max_concurrent=1), threshold=0.8) as router:
        before = signal.signal(signal.SIGUSR1, lambda *_: answers.append(router.infer("inner")))
        try:
            assert router.infer("outer").source == "cloud"
        finally:
            signal.signal(signal.SIGUSR1, before)
    assert [answer.source for answer in answers] == ["edge"]


def test_an_interrupt_gives_up_the_turn(guard, monkeypatch):
    """Ctrl-C while a thread waits: its turn goes to the next."""

    class Interrupted(threading.Event):
        def wait(self, timeout=None):
            raise KeyboardInterrupt

    monkeypatch.setattr(turns, "threading", SimpleNamespace(Event=Interrupted, get_ident=threading.get_ident))
    first = guard.enter(PERMIT, "first")
    found = []

    def enter():
        try:
            guard.enter(PERMIT, "second", until=monotonic() + LONG)
        except KeyboardInterrupt as e:
            found.append(e)

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join(LONG)
    with first:
        pass
    assert (len(found), guard.turns.waiting, guard.under_way) == (1, {}, 0)


def test_a_forked_child_has_nobody_waiting(guard):
    """And all places are free."""
    first = guard.enter(PERMIT, "first")
    with ThreadPoolExecutor(1) as pool:
        call = pool.submit(guard.enter, PERMIT, "second", until=monotonic() + LONG)
        waits(guard)
        child = os.fork()
        if not child:
            with guard.enter(PERMIT, "child"):
                os._exit(len(guard.turns.waiting))
        assert os.waitpid(child, 0)[1] == 0
        with first:
            pass
        with call.result(LONG):
            pass


# outages


@pytest.fixture
def no_probe(monkeypatch):
    """No probe is due while this runs, however slow the machine."""
    monkeypatch.setattr(admission, "FIRST_S", 1e6)
    monkeypatch.setattr(admission, "MOST_S", 1e6)


@pytest.mark.usefixtures("no_probe")
@pytest.mark.parametrize("callers", [1, 16, *slow(100)])
@pytest.mark.parametrize("kind", ["HTTP", "a function"])
def test_an_outage_costs_three_attempts_whatever_the_number_of_callers(callers, kind, due):
    """Of a cloud that was not in use: silent over HTTP for its timeout, or a function that does not come back."""
    hold, begun, asked = threading.Event(), [], []

    def edge(x):
        begun.append(x)
        return unsure(x)

    def silent(_):
        asked.append(1)
        hold.wait(LONG)
        return "cloud", 0.9

    def all_have_asked():
        return len(asked) >= (len(begun) if callers == 1 else FAULTS)

    with CannedServer(lambda _: None) as server:
        if kind == "HTTP":
            cloud, deadline = PlainJson(server.url, timeout_s=0.2, retries=2), LONG
        else:
            cloud, deadline = Function(silent), due(all_have_asked)
        with Router(edge, cloud, threshold=0.8, deadline=deadline) as router, ThreadPoolExecutor(callers) as pool:
            answers = list(pool.map(router.infer, range(max(callers * 3, 9))))
            assert all(a.degraded for a in answers)
            assert router.stats().legs[1].breaker == "open"
            assert len(asked) == (0 if kind == "HTTP" else FAULTS)
            assert len(server.requests) <= FAULTS + 2, "two more may be under way as the third fails"
            hold.set()


@pytest.mark.usefixtures("no_probe")
def test_a_function_that_fails_is_asked_three_times():
    """16 at once, and all of it at an endpoint that fails at once."""
    cloud = FakeCloud([OSError("away")])
    with Router(unsure, cloud, threshold=0.8, deadline=LONG) as router, ThreadPoolExecutor(16) as pool:
        assert all(a.degraded for a in pool.map(router.infer, range(160)))
    assert cloud.runs == FAULTS
