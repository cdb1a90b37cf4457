"""The guard by itself: whatever is asked and answered in whatever order, it keeps to its limits and loses no count."""

import contextlib
import gc
import math
import threading
from concurrent.futures import ThreadPoolExecutor
from time import monotonic as real_time
from types import SimpleNamespace

import pytest
import routes
from both import Panic, Stop, interrupted, wait_for
from draws import draws
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, invariant, precondition, rule

from edgeroute import BadReply, Held, Limits, OpenInference, PlainJson, Refused, Router, StoreError, TimedOut, Unreachable
from edgeroute.cloud import attempt_accounting_and_turns as exchanges
from edgeroute.cloud import attempt_accounting_and_turns as turns
from edgeroute.cloud import endpoint_guard as guards
from edgeroute.cloud.endpoint_guard import Guard
from edgeroute.cloud.shared_spending_and_record import SharedSpending
from edgeroute.core.endpoint_breaker_and_limits import FAULTS, Admission
from edgeroute.core.policy_egress_and_options import Rules, Terms, permit
from edgeroute.core.spending_limits import Spending
from edgeroute.testing import CannedServer, http_reply

LONG = 120.0
PERMIT = permit(Rules(), None)
AWAY = Unreachable("away")
AHEAD_S = [0.0]
"""By how much the guards' clock is ahead of the real one, seconds."""


def monotonic():
    return real_time() + AHEAD_S[0]


def pass_time(seconds):
    AHEAD_S[0] += seconds


@pytest.fixture(autouse=True)
def clock(monkeypatch):
    """The guards' clock is this module's."""
    monkeypatch.setattr("test_guard.AHEAD_S", [0.0])
    for module in (guards, exchanges, turns):
        monkeypatch.setattr(module, "monotonic", monotonic)


def look(guard):
    """Has a probe sent if one is due, as whoever is held does."""
    with guard.lock:
        due = guard.rules.take_probe(monotonic())
    if due:
        guard.watcher.probe(guard)


def busy_server(after_s=None):
    return Refused("busy", status=503, retry_after_s=after_s)


def stale():
    error = Unreachable("the kept connection has gone")
    error.stale = True
    return error


class News:
    """Hears what a guard tells, and probes when it is told to."""

    def __init__(self):
        self.heard, self.probes = [], 0

    def opened(self, guard):
        """Heard."""
        self.heard.append("opened")

    def closed(self, guard):
        """Heard."""
        self.heard.append("closed")

    def probe(self, guard):
        """Counted."""
        self.probes += 1


class Ledger:
    """Takes lines, unless it is full."""

    def __init__(self):
        self.lines, self.full = [], False

    def append(self, record):
        """Takes it, or not."""
        if self.full:
            raise StoreError("the disk is full")
        self.lines.append(record)


def guarded(*, terms=None, limits=None, spending=None, health=None, journal=None):
    """A guard, and what it tells."""
    news = News()
    spending = SharedSpending(spending or Spending(limits or Limits()))
    return Guard("cloud", "http://cloud", terms or Terms(), spending, health=health, watcher=news, journal=journal), news


def ask(guard, error=None, *, size=100, reply=100, reads=True):
    """One request with one attempt, from its beginning to its end."""
    with guard.enter(PERMIT, "id") as exchange:
        exchange.before_attempt(size, math.inf)
        exchange.after_attempt(0 if error is not None else reply, error)
        if error is not None:
            raise error
        if not reads:
            raise BadReply("HTML")


def fails(guard, error=AWAY, times=1):
    for _ in range(times):
        with pytest.raises(type(error)):
            ask(guard, error)


# what is a fault


@pytest.mark.parametrize(
    "error", [AWAY, busy_server(), TimedOut("late"), Refused("no", status=401), BadReply("too long"), OSError("own")]
)
def test_three_in_a_row_open_it(error):
    """Of each kind, whoever raised it; then nothing is let through, nothing is booked, and it is said once."""
    guard, news = guarded(limits=Limits(calls_per_minute=100))
    fails(guard, error, FAULTS - 1)
    assert not guard.why()
    fails(guard, error)
    assert (guard.state, news.heard, guard.under_way) == ("open", ["opened"], 0)
    with pytest.raises(Held, match=r"cloud was not asked: breaker open for another .* after 3 faults"):
        ask(guard)
    assert (guard.held, news.probes, guard.spending.spent().calls) == (1, 0, FAULTS)
    assert not guard.rules.retry()


def test_a_reply_that_cannot_be_read_is_a_fault_and_no_success():
    """The bytes came in good order, and then whoever reads them raises: once for each exchange."""
    guard, news = guarded()
    for _ in range(FAULTS):
        with pytest.raises(BadReply):
            ask(guard, reads=False)
    assert news.heard == ["opened"]


@pytest.mark.parametrize("error", [stale(), Refused("no such shape", status=422)])
def test_what_is_none_does_not_open_it(error):
    """A kept connection that has gone and the input's own fault, ever so often."""
    guard, _ = guarded()
    fails(guard, error, 2 * FAULTS)
    assert (guard.state, guard.rules.breaker.faults) == ("closed", 0)


def test_a_success_between_forgets():
    """Only faults in a row count."""
    guard, news = guarded()
    for _ in range(5):
        fails(guard, times=FAULTS - 1)
        ask(guard)
    assert (guard.state, news.heard) == ("closed", [])


def visiting(guard, until=math.inf):
    exchange = guard.enter(PERMIT, "id")
    exchange.before_attempt(1, until)
    return exchange


def overdue(guard):
    """One whose deadline passes while its attempt is under way."""
    exchange = visiting(guard, monotonic() + 1)
    pass_time(1)
    return exchange


def test_cut_before_its_time_is_no_fault():
    """By an answer that was quicker: in a thread it comes with an error, and under asyncio with none."""
    guard, _ = guarded()
    for _ in range(2 * FAULTS):
        with visiting(guard) as exchange:
            exchange.after_attempt(0, stale(), cut=True)
        with visiting(guard) as exchange:
            exchange.after_attempt(0, AWAY, cut=True)
        with visiting(guard):
            pass
    assert (guard.rules.breaker.faults, guard.under_way) == (0, 0)


@pytest.mark.parametrize("error", [stale(), AWAY, TimedOut("late")])
def test_cut_by_the_deadline_is_a_fault(error):
    """On a kept connection too: it is our own end of it that was shut."""
    guard, _ = guarded()
    with overdue(guard) as exchange:
        exchange.after_attempt(0, error, cut=True)
    assert guard.rules.breaker.faults == 1
    with overdue(guard):
        pass  # an asyncio task that is cancelled says nothing
    assert guard.rules.breaker.faults == 2


@pytest.mark.parametrize("error", [stale(), AWAY, TimedOut("late")])
def test_cut_by_a_deadline_is_a_fault_also_if_the_leg_ended_first(error):
    """Whether a leg was cut by the deadline is known to the request; its leg may have ended before the request says so."""
    guard, _ = guarded()
    with visiting(guard) as exchange:
        exchange.after_attempt(0, error, cut=True)
    assert guard.rules.breaker.faults == 0
    exchange.overdue()
    exchange.overdue()
    assert guard.rules.breaker.faults == 1


def test_a_bad_reply_that_is_cut_is_one_fault():
    """It counts as the exchange ends, and not again as the request does."""
    guard, _ = guarded()
    exchange, error = visiting(guard), BadReply("nonsense")
    exchange.after_attempt(0, error, cut=True)
    exchange.__exit__(BadReply, error, None)
    exchange.overdue()
    assert guard.rules.breaker.faults == 1


def test_late_is_one_fault_however_often_it_is_seen():
    """By the request that goes on without it, by the leg that is cut, and as the exchange ends."""
    guard, _ = guarded()
    with overdue(guard) as exchange:
        exchange.overdue()
        exchange.overdue()
        exchange.after_attempt(0, AWAY, cut=True)
        exchange.overdue()
        assert not exchange.may_retry()
    assert guard.rules.breaker.faults == 1


def test_an_attempt_that_had_no_time_is_no_fault():
    """Its deadline had passed before it began, as where the encoding of an input took all of it: nothing was sent."""
    guard, _ = guarded()
    for _ in range(2 * FAULTS):
        with visiting(guard, monotonic()) as exchange:
            exchange.after_attempt(0, TimedOut("no time was left", unsent=True))
        with visiting(guard, monotonic()) as exchange:
            exchange.overdue()
    assert (guard.state, guard.rules.breaker.faults) == ("closed", 0)


def test_late_but_answered_is_well():
    """What comes after the deadline shows that the endpoint is there."""
    guard, _ = guarded()
    with overdue(guard) as exchange:
        exchange.overdue()
        exchange.after_attempt(1)
    assert guard.rules.breaker.faults == 0


def test_less_time_than_usual_is_no_fault():
    """The usual is what nine in ten answers keep to."""
    guard, _ = guarded()
    for _ in range(19):
        guard.succeeded(0.001)
    guard.succeeded(LONG)
    assert guard.rules.usual_s() < 1
    for _ in range(10):
        guard.succeeded(LONG)
    for _ in range(FAULTS):
        with overdue(guard) as exchange:
            exchange.overdue()
    assert (guard.state, guard.rules.breaker.faults) == ("closed", 0)


def test_two_threads_that_see_the_deadline_at_once_count_one_fault(monkeypatch):
    """The caller, who goes on without it, and the leg's own thread."""
    guard, _ = guarded()
    first, both, failed = threading.Event(), threading.Barrier(2), guard.failed

    def fail(*args, **late):
        first.set()
        both.wait(LONG)
        failed(*args, **late)

    with overdue(guard) as exchange, ThreadPoolExecutor(1) as pool, monkeypatch.context() as patch:
        patch.setattr(guard, "failed", fail)
        caller = pool.submit(exchange.overdue)
        assert first.wait(LONG)
        exchange.after_attempt(0, AWAY, cut=True)
        caller.result(LONG)
    assert guard.rules.breaker.faults == 1


class Watched:
    """A lock that looks each time it is released, with what others may take then."""

    def __init__(self, lock, look):
        self._lock, self._look = lock, look

    def __enter__(self):
        return self._lock.__enter__()

    def __exit__(self, *error):
        self._look()
        return self._lock.__exit__(*error)


@pytest.mark.parametrize("how", ["overdue", "cancelled", "unreadable"])
def test_a_fault_makes_no_room_for_another_request(monkeypatch, how):
    """Not for an instant: what is overdue, or ends, is counted as a fault before its place is free."""
    guard, _ = guarded()
    calls = [visiting(guard) if how == "unreadable" else overdue(guard) for _ in range(FAULTS)]
    room, leave = [], Admission.leave

    def look():
        room.append(guard.state == "closed" and guard.rules.crowded(monotonic()) is None)

    def leaves(rules, slot):
        leave(rules, slot)
        look()

    monkeypatch.setattr(Admission, "leave", leaves)
    monkeypatch.setattr(guard, "lock", Watched(guard.lock, look))
    error = BadReply("nonsense") if how == "unreadable" else Stop()
    for call in calls:
        if how == "overdue":
            call.overdue()
        else:
            call.__exit__(type(error), error, None)
    assert (guard.state, any(room), len(room) >= FAULTS) == ("open", False, True)


# how it comes back


def test_a_probe_when_it_is_time():
    """The first that is held after the opening time has one sent, and it alone; `look` does as well."""
    tried = []
    guard, news = guarded(
        health=lambda until, exchange: tried.append((until - monotonic(), exchange.rule, exchange.data_class, exchange.identity))
    )
    fails(guard, times=FAULTS)
    look(guard)
    assert news.probes == 0
    pass_time(10)
    for _ in range(3):
        with pytest.raises(Held):
            ask(guard)
        look(guard)
        guard.link_up()
    assert (news.probes, guard.state) == (1, "half-open")
    assert guard.why() == "breaker half-open after 3 faults, a probe is under way"
    guard.check_health()
    assert (guard.state, news.heard, guard.under_way) == ("closed", ["opened", "closed"], 0)
    ((left_s, *rest),) = tried
    assert 0 < left_s <= 5
    assert rest == ["no user data", None, ""]


def test_on_trial_one_fault_is_enough():
    """A probe's success is no request's."""
    guard, news = guarded()
    fails(guard, times=FAULTS)
    pass_time(10)
    look(guard)
    guard.check_health()
    assert guard.why() == ""
    fails(guard)
    assert (guard.state, news.heard) == ("open", ["opened", "closed", "opened"])


def test_a_probe_that_is_told_to_wait():
    """Even the network's return does not send one before."""

    def health(until, exchange):
        raise busy_server(100.0)

    guard, news = guarded(health=health)
    fails(guard, times=FAULTS)
    guard.link_up()
    guard.check_health()
    assert (guard.state, guard.under_way) == ("open", 0)
    guard.link_up()
    assert news.probes == 1
    pass_time(101)
    guard.link_up()
    assert news.probes == 2


def test_a_probe_counts_neither_as_a_fault_nor_as_a_success():
    """Its attempts are its own: what comes of it is told when it ends."""

    def health(until, exchange):
        exchange.before_attempt(0, until)
        exchange.after_attempt(0, AWAY)
        assert not exchange.may_retry()
        raise AWAY

    guard, news = guarded(health=health)
    fails(guard, times=FAULTS)
    pass_time(10)
    look(guard)
    guard.check_health()
    assert (guard.state, news.heard, guard.rules.usual.count) == ("open", ["opened"], 0)


def test_an_answer_to_an_old_request_closes_it():
    """It has answered, so the probe does not matter any more."""
    guard, news = guarded()
    exchange = visiting(guard)
    for _ in range(FAULTS):
        guard.failed()
    pass_time(10)
    look(guard)
    with exchange:
        exchange.after_attempt(1)
    assert (guard.state, news.heard) == ("closed", ["opened", "closed"])
    guard.rules.breaker.probe_ended(monotonic(), False, 0.5)
    assert not guard.why()


# retries and holds


def test_a_hold_is_for_all():
    """What the server asks of one request holds for every other."""
    guard, _ = guarded()
    fails(guard, busy_server(100.0))
    with pytest.raises(Held, match=r"it asked to wait another (100|99)"):
        ask(guard)
    pass_time(101)
    ask(guard)


def test_a_hold_is_for_retries_too():
    """Also for those of requests that have been waiting since before it."""
    guard, _ = guarded()
    with visiting(guard) as waiting:
        waiting.after_attempt(0, AWAY)
        assert waiting.may_retry()
        fails(guard, busy_server(100.0))
        with pytest.raises(Held, match="asked to wait"):
            waiting.before_attempt(1, math.inf)


def test_a_retry_when_the_breaker_has_opened_meanwhile():
    """Is held; and nothing is noted or booked for it."""
    journal = Ledger()
    guard, _ = guarded(journal=journal)
    with visiting(guard) as waiting:
        waiting.after_attempt(0, AWAY)
        assert waiting.may_retry()
        for _ in range(FAULTS - 1):
            guard.failed()
        with pytest.raises(Held, match="breaker open"):
            waiting.before_attempt(1, math.inf)
        assert not waiting.may_retry()
    assert len(journal.lines) == 1


def test_knocking_is_let_through_always():
    """`check` asks more than once in one exchange, and does so to find out whether the endpoint is there, breaker or not."""
    guard, _ = guarded(terms=Terms(max_concurrent=1, calls_per_s=0.001))
    for _ in range(FAULTS):
        guard.failed()
    with guard.probe() as exchange:
        for _ in range(3):
            exchange.before_attempt(0, math.inf)
            exchange.after_attempt(0)
    assert guard.state == "closed", "it has answered"


def test_check_asks_though_the_breaker_is_open():
    """All that there is to ask, and finds that it is well."""

    def reply(request):
        return http_reply(b'{"inputs": [{"name": "x", "datatype": "INT64", "shape": [-1]}]}')

    with (
        CannedServer(reply) as server,
        Router(lambda x: ("edge", 0.1), OpenInference(server.url, model="m"), threshold=0.5) as router,
    ):
        guard = router.engine.snapshot.clouds[0].guard
        for _ in range(FAULTS):
            guard.failed()
        checked = router.check()
        assert checked.ok, str(checked)


def test_ten_retries():
    """The budget starts with ten, and ten successes earn one."""
    guard, _ = guarded()
    assert [guard.rules.retry() for _ in range(12)] == [True] * 10 + [False] * 2
    for _ in range(9):
        guard.succeeded(0.1)
    assert not guard.rules.retry()
    guard.succeeded(0.1)
    assert [guard.rules.retry(), guard.rules.retry()] == [True, False]


# limits and the ledger


def test_what_is_held_is_not_paid():
    """Neither before it is let through, nor where its bytes are too many."""
    terms = Terms(usd_per_call=1.0, usd_per_mb=1.0, joules_per_call=1.0)
    guard, _ = guarded(terms=terms, limits=Limits(mb_per_day=1.0))
    with pytest.raises(Held, match="mb_per_day"):
        ask(guard, size=2_000_000)
    assert guard.spending.spent() == (0, 0, 0, 0)
    ask(guard, size=400_000, reply=100_000)
    assert tuple(guard.spending.spent()) == pytest.approx((1.5, 0.5, 1.0, 1))
    assert (guard.held, guard.under_way, guard.state) == (1, 0, "closed")


def test_what_the_ledger_does_not_take_is_not_paid():
    """It did not leave."""
    journal = Ledger()
    guard, _ = guarded(terms=Terms(usd_per_call=1.0, usd_per_mb=1.0, joules_per_call=1.0), journal=journal)
    journal.full = True
    with pytest.raises(Held, match="ledger"):
        ask(guard, size=100_000)
    assert (guard.held, guard.under_way, guard.state, journal.lines) == (1, 0, "closed", [])
    assert tuple(guard.spending.spent()) == pytest.approx((0, 0, 0, 0))


def test_a_repeated_attempt_that_the_ledger_does_not_take_is_reported():
    """As one that a limit forbids; not counted, since its request was admitted."""
    journal, codes = Ledger(), []
    guard, _ = guarded(journal=journal)
    guard.report = SimpleNamespace(held=lambda _, code: codes.append(code), attempt=lambda *_: None, follows=False)
    with guard.enter(PERMIT, "id") as exchange:
        exchange.before_attempt(100, math.inf)
        exchange.after_attempt(0, AWAY)
        journal.full = True
        with pytest.raises(Held, match="was not asked again: what is not in the egress ledger"):
            exchange.before_attempt(100, math.inf)
    assert (codes, guard.held, len(journal.lines)) == (["ledger"], 0, 1)


def test_the_ledger_has_the_time_of_the_clock_as_it_is_now(monkeypatch):
    """A device without a battery learns the time after its programs began: their own count of it would be wrong until they end."""
    journal = Ledger()
    guard, _ = guarded(journal=journal)
    for now in (86_400.0, 2e9):
        monkeypatch.setattr(exchanges, "time", lambda now=now: now)
        ask(guard)
    assert [line["at"] for line in journal.lines] == [86_400.0, 2e9]


def test_a_visit_knows_what_it_has_cost():
    """All attempts, and not the one that was not made."""
    guard, _ = guarded(terms=Terms(usd_per_call=1.0, usd_per_mb=2.0), limits=Limits(mb_per_day=3.0))
    with visiting(guard) as exchange:
        exchange.after_attempt(0, AWAY)
        exchange.before_attempt(1_000_000, math.inf)
        exchange.after_attempt(500_000, None)
        assert exchange.spent[:3] == (1_000_001, 500_000, pytest.approx(1.0 + 2 * 1.500001))
        with pytest.raises(Held, match="mb_per_day"):
            exchange.before_attempt(5_000_000, math.inf)
        assert exchange.spent[:3] == (1_000_001, 500_000, pytest.approx(1.0 + 2 * 1.500001))


def test_half_spent_is_scarce():
    """Of any limit; without limits nothing is."""
    guard, _ = guarded(terms=Terms(usd_per_call=1.0), limits=Limits(usd_per_day=4.0))
    for scarce in (False, False, True):
        ask(guard)
        assert guard.spending.scarce() is scarce
    guard.spending.set_limits(Limits())
    assert not guard.spending.scarce()


def test_a_forked_child_has_no_call_under_way():
    """Its parent's calls are its parent's."""
    guard, _ = guarded()
    exchange = visiting(guard)
    guard.after_fork()
    assert guard.under_way == 0
    ask(guard)
    assert guard.under_way == 0
    del exchange


# slots


@pytest.mark.slow
@pytest.mark.parametrize("kind", [None, Unreachable, BadReply])
def test_whatever_breaks_in_the_slot_is_given_back(kind):
    """At each opcode between the first of `enter` and the last of the end; once nobody keeps what was raised."""
    guard, _ = guarded(terms=Terms(max_concurrent=2, usd_per_call=0.1), limits=Limits(usd_per_day=1e9))

    def one():
        with contextlib.suppress(Unreachable, BadReply, Held):
            ask(guard, None if kind is None else kind("no"))

    at, over = 0, False
    while not over:
        at += 1
        over = interrupted(one, at)
        if guard.under_way:
            gc.collect()  # where it breaks into the handling of an error, they keep each other
        assert guard.under_way == 0, at
        guard.succeeded(None)
    assert at > 100


def test_a_slot_that_nobody_took_over_is_given_back():
    """It never came to `with`; and one that did is not given back twice."""
    guard, _ = guarded(terms=Terms(max_concurrent=1))
    for _ in range(3):
        exchange = guard.enter(PERMIT, "id")
        assert guard.under_way == 1
        del exchange
    with guard.enter(PERMIT, "id") as exchange:
        pass
    with guard.enter(PERMIT, "id"):
        del exchange
        assert guard.under_way == 1
    assert guard.under_way == 0


@pytest.mark.parametrize("raised", [SystemExit, KeyboardInterrupt, GeneratorExit, Panic, Stop])
def test_a_job_that_raises_anything_gives_its_slot_back(raised):
    """In the caller's thread and in one of its own; a probe of its health, too."""

    def cloud(x):
        raise raised

    for deadline in (None, LONG):
        with Router(lambda x: ("edge", 0.1), cloud, threshold=0.5, deadline=deadline) as router:
            with contextlib.suppress(raised):
                router.infer(1)
            wait_for(lambda legs=router.engine.snapshot.clouds: legs[0].guard.under_way == 0)  # its thread may be about to end

    def health(until, exchange):
        raise raised

    guard, _ = guarded(health=health)
    fails(guard, times=FAULTS)
    pass_time(10)
    look(guard)
    with pytest.raises(raised) if not issubclass(raised, Exception) else contextlib.nullcontext():
        guard.check_health()
    assert (guard.under_way, guard.state) == (0, "open")


def test_a_signal_handler_may_ask_while_the_lock_is_held():
    """It runs in the thread that holds it: here as a booking is made, which is under the guard's lock and the spending's."""
    signals = []

    class Interrupted(Spending):
        def reserve(self, *args, **more):
            if signals:
                signals.pop()()
            return super().reserve(*args, **more)

    guard, _ = guarded(spending=Interrupted(Limits(usd_per_day=1.0)))

    def handler():
        ask(guard)
        fails(guard)

    signals.append(handler)
    ask(guard)
    assert (signals, guard.under_way, guard.spending.spent().calls) == ([], 0, 3)


# any order


KINDS = st.sampled_from(["well", "away", "refused", "busy", "hold", "stale", "late", "input"])
SIZES = st.sampled_from([0, 100_000, 400_000])


class Guarded(RuleBasedStateMachine):
    """One guard under many exchanges, which begin, fail, are retried, cut, and end in any order."""

    exchanges = Bundle("exchanges")

    @initialize(
        max_concurrent=st.integers(1, 4),
        calls=st.sampled_from([3, 20, math.inf]),
        usd=st.sampled_from([2.5, math.inf]),
        mb=st.sampled_from([1.0, math.inf]),
    )
    def begin(self, max_concurrent, calls, usd, mb):
        """A guard with some limits."""
        self.limits = Limits(usd_per_day=usd, mb_per_day=mb, calls_per_minute=calls)
        self.journal = Ledger()
        self.well, self.told = True, 0
        terms = Terms(usd_per_call=0.1, usd_per_mb=0.5, max_concurrent=max_concurrent)
        self.guard, self.news = guarded(terms=terms, limits=self.limits, health=self.health, journal=self.journal)
        self.most, self.under_way = max_concurrent, 0
        self.received_mb = 0.0

    def health(self, until, exchange):
        """As things are."""
        exchange.before_attempt(0, until)
        exchange.after_attempt(0, None if self.well else AWAY)
        if not self.well:
            raise AWAY

    @rule(target=exchanges)
    def enter(self):
        """A request; let through only where all allow it, and else nothing is booked."""
        guard = self.guard
        why, busy, spent = guard.why(), guard.under_way, guard.spending.spent()
        few = guard.rules.breaker.most(monotonic())
        exchange, held = None, ""
        try:
            exchange = guard.enter(PERMIT, "id")
        except Held as e:
            held = str(e)
        if exchange is None:
            assert (guard.spending.spent(), guard.under_way) == (spent, busy)
            assert why or busy >= self.most or "is spent" in held or (few <= busy and "once it has answered" in held)
            return None
        assert not why
        assert busy < self.most
        assert guard.rules.overdue or busy < few, "an endpoint that is not known to be well"
        assert guard.spending.spent().calls <= self.limits.calls_per_minute
        self.under_way += 1
        return {"exchange": exchange, "attempts": 0, "open": False, "over": False, "error": None, "took": False, "cut": False}

    def alive(self, exchange):
        """Whether it is there and has not ended."""
        return exchange is not None and not exchange["over"]

    @rule(one=exchanges, size=SIZES, late=st.booleans())
    def leaves(self, one, size, late):
        """An attempt; noted if it is made, and what is held is neither noted nor paid."""
        if not self.alive(one) or one["open"]:
            return
        guard, lines = self.guard, len(self.journal.lines)
        spent = guard.spending.spent()
        try:
            one["exchange"].before_attempt(size, monotonic() if late else math.inf)
        except Held:
            now = guard.spending.spent()
            assert all(a <= b + 1e-9 for a, b in zip(now, spent, strict=True)), "what is held costs nothing"
            assert len(self.journal.lines) == lines
            one["error"] = Held("held")
            return
        assert not (one["attempts"] and guard.state != "closed"), "a retry that leaves while it is open"
        assert len(self.journal.lines) == lines + 1
        assert guard.spending.spent().mb - self.received_mb <= self.limits.mb_per_day * (1 + 1e-6)
        one["open"], one["attempts"], one["error"], one["took"], one["cut"] = True, one["attempts"] + 1, None, False, False

    @rule(one=exchanges, kind=KINDS, size=SIZES, cut=st.booleans())
    def comes(self, one, kind, size, cut):
        """What comes of it is one fault at most."""
        if not self.alive(one) or not one["open"]:
            return
        before = self.guard.rules.breaker.faults
        error = {
            "well": lambda: None,
            "away": lambda: AWAY,
            "refused": lambda: Refused("no", status=500),
            "busy": lambda: busy_server(0.0),
            "hold": lambda: busy_server(50.0),
            "stale": stale,
            "late": lambda: TimedOut("late"),
            "input": lambda: Refused("yours", status=422),
        }[kind]()
        one["exchange"].after_attempt(0 if error is not None else size, error, cut=cut and error is not None)
        self.received_mb += 0 if error is not None else size / 1e6
        one["open"], one["error"], one["took"] = False, error, error is None
        one["cut"] = cut and kind not in {"well", "input"}  # by whose deadline, the request says
        after = self.guard.rules.breaker.faults
        assert after <= before + 1
        if kind == "input":
            assert self.guard.state == "closed"
            assert after == 0
        if kind == "stale" and not cut:
            assert after == before
        if kind == "hold":
            assert self.guard.why()

    @rule(one=exchanges)
    def may_retry(self, one):
        """Only while all is well."""
        if self.alive(one) and not one["open"] and one["exchange"].may_retry():
            assert self.guard.state == "closed"

    @rule(one=exchanges)
    def is_overdue(self, one):
        """Its deadline has passed."""
        if self.alive(one):
            before = self.guard.rules.breaker.faults
            one["exchange"].overdue()
            assert self.guard.rules.breaker.faults <= before + (one["open"] or one["cut"])
            one["cut"] = False

    @rule(one=exchanges, reads=st.booleans())
    def ends(self, one, reads):
        """A request ends, well, failed or cut off."""
        if not self.alive(one):
            return
        one["over"] = True
        self.under_way -= 1
        error = one["error"] or (None if reads or not one["took"] else BadReply("HTML"))
        if one["open"]:
            error = GeneratorExit()  # cut off
        one["exchange"].__exit__(None if error is None else type(error), error, None)
        if error is None and one["took"]:
            assert self.guard.state == "closed"

    @rule(well=st.booleans())
    def changes(self, well):
        """The endpoint goes, or comes back."""
        self.well = well

    @rule(full=st.booleans())
    def disk(self, full):
        """The ledger's disk is full, or not."""
        self.journal.full = full

    @rule(seconds=st.sampled_from([1, 10, 100, 1000]))
    def time_passes(self, seconds):
        """For the breaker, and all that goes by the same clock."""
        pass_time(seconds)

    @rule()
    def looks(self):
        """Somebody waits for the endpoint."""
        look(self.guard)

    @rule()
    def link_comes_up(self):
        """The network is back."""
        self.guard.link_up()

    @precondition(lambda self: self.news.probes > self.told)
    @rule()
    def probes(self):
        """A probe that was asked for ends: it decides, if it is the one under way."""
        self.told += 1
        before, usual = self.guard.state, self.guard.rules.usual.count
        self.guard.check_health()
        assert self.guard.rules.usual.count == usual
        if before == "half-open":
            assert self.guard.state == ("closed" if self.well and not self.journal.full else "open")
        else:
            assert self.guard.state == before

    @invariant()
    def adds_up(self):
        """No count is lost, and one probe at most is under way."""
        guard = self.guard
        assert guard.under_way == self.under_way >= 0
        assert guard.under_way <= self.most
        assert guard.state in {"closed", "open", "half-open"}
        assert (guard.state == "closed") or guard.why()
        assert self.news.probes - self.told <= 1 + self.news.heard.count("closed")
        assert guard.rules.breaker.opened == self.news.heard.count("opened")
        if guard.state == "half-open":
            assert self.news.probes > self.told, "a probe is under way"
        spent = guard.spending.spent()
        assert spent.calls <= self.limits.calls_per_minute
        assert spent.mb <= self.limits.mb_per_day * (1 + 1e-6) + self.received_mb

    def teardown(self):
        """All that is under way is known."""
        if hasattr(self, "guard"):
            assert self.guard.under_way == self.under_way


Guarded.TestCase.settings = settings(max_examples=draws(150), stateful_step_count=40, deadline=None)
TestAnyOrder = Guarded.TestCase


def test_many_threads_lose_no_count():
    """As one after the other: a thousand exchanges of every kind, and none is under way in the end."""
    guard, _ = guarded(terms=Terms(max_concurrent=4), limits=Limits(calls_per_minute=500))
    kinds = [None, AWAY, busy_server(), Refused("yours", status=422), stale()]

    def work(i):
        try:
            ask(guard, kinds[i % 5])
        except Held:
            return "held"
        except Exception:  # noqa: BLE001 - as it was told to
            return "failed"
        return "well"

    with ThreadPoolExecutor(16) as pool:
        said = list(pool.map(work, range(1000)))
    assert guard.under_way == 0
    assert guard.held == said.count("held")
    assert guard.spending.spent().calls == 1000 - guard.held <= 500


def test_the_endpoint_is_what_the_reason_names():
    """As an answer of a real router has it."""
    with (
        CannedServer(http_reply(status=503)) as server,
        Router(lambda x: ("edge", 0.1), PlainJson(server.url), threshold=0.5) as router,
    ):
        router.infer(1)
        answer = router.infer(1)
        assert (answer.reason_code, routes.code(answer, "cloud")) == ("breaker", "breaker")
        assert "cloud: would not be asked now: breaker open" in str(router.decide(1))
        assert router.decide(1).sends_to == ()
