# ruff: noqa: D102 - a rule is named for what happens
"""What may be spent: by example, and every sequence of events against a list of what was spent when."""

from __future__ import annotations

import json

import pytest
from draws import draws
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from edgeroute import Limits
from edgeroute.core.spending_limits import BUCKETS, Cost, Spending, span

INF = float("inf")
NOW = 1_700_000_040.0  # the beginning of a bucket of each window but the day's
LENGTHS_S = (86_400, 86_400, 3_600, 60)


def test_a_reservation_counts_at_once():
    """What is reserved is spent, until the limit itself and not beyond it."""
    spending = Spending(Limits(usd_per_day=2.0))
    assert spending.reserve(Cost(usd=1.998, calls=1), NOW) is None
    assert spending.spent(NOW) == Cost(1.998, 0, 0, 1)
    why = spending.reserve(Cost(usd=0.004, calls=1), NOW)
    assert why == (
        "usd_per_day",
        "usd_per_day = 2 is spent (1.998 so far, and this call takes 0.004), and such a call may be made again in 25 h",
    )
    assert spending.reserve(Cost(usd=0.002), NOW) is None
    assert spending.reserve(Cost(usd=0.00001), NOW) is not None


@pytest.mark.parametrize("kind", range(4))
def test_each_kind_has_its_limit(kind):
    """The reason names the limit, and a refused reservation books nothing of any kind."""
    limits, cost = Limits(*[1.0 if i == kind else INF for i in range(4)]), Cost(2, 2, 2, 2)
    spending = Spending(limits)
    name = Limits._fields[kind]
    assert spending.reserve(cost, NOW) == (name, f"{name} = 1 is spent (0 so far, and this call takes 2)")
    assert spending.spent(NOW) == Cost()
    spending.limits = Limits()
    assert spending.reserve(cost, NOW) is None


def test_a_call_that_takes_no_more_than_a_run_of_the_edge_is_not_refused_for_its_energy():
    """It is booked all the same, and up against every other limit."""
    spending = Spending(Limits(joules_per_hour=1.0, calls_per_minute=2))
    spending.add(Cost(joules=5.0), NOW)
    assert spending.reserve(Cost(joules=0.5, calls=1), NOW).code == "joules_per_hour"
    spending.edge_j = 0.5
    assert spending.reserve(Cost(joules=0.6, calls=1), NOW).code == "joules_per_hour"
    assert spending.reserve(Cost(joules=0.5, calls=1), NOW) is None
    assert spending.spent(NOW).joules == 5.5
    assert spending.reserve(Cost(joules=0.5, calls=2), NOW).code == "calls_per_minute"


def test_no_limit_and_no_cost():
    """Without limits anything goes; what costs nothing of a kind is not stopped by that kind."""
    spending = Spending(Limits())
    assert spending.reserve(Cost(1e9, 1e9, 1e9, 10**9), NOW) is None
    spending.limits = Limits(usd_per_day=1.0)
    assert spending.reserve(Cost(mb=1.0), NOW) is None
    assert spending.reserve(Cost(usd=0.001), NOW) is not None


def test_rounding_costs_nothing():
    """Three times 0.1 fit into 0.3."""
    spending = Spending(Limits(usd_per_day=0.3))
    assert [spending.reserve(Cost(usd=0.1), NOW) for _ in range(3)] == [None] * 3
    assert spending.reserve(Cost(usd=0.1), NOW) is not None


def test_half_of_any_limit_is_scarce():
    """What has no limit never is."""
    spending = Spending(Limits(usd_per_day=2.0, calls_per_minute=10))
    for usd, scarce in ((1.0, False), (0.01, True)):
        spending.add(Cost(usd=usd, mb=1e9, joules=1e9), NOW)
        assert spending.scarce(NOW) is scarce


@pytest.mark.parametrize("kind", range(4))
def test_an_amount_leaves_after_its_window(kind):
    """Not before the window's length after it was booked, and at most a bucket later."""
    length_s = LENGTHS_S[kind]
    for begun in (NOW, NOW + 0.5, NOW + length_s / BUCKETS - 0.001):
        spending = Spending(Limits())
        spending.add(Cost(*[float(i == kind) for i in range(4)]), begun)
        assert spending.spent(begun + length_s)[kind] == 1
        assert spending.spent(begun + length_s * (1 + 1 / BUCKETS))[kind] == 0


def test_room_again():
    """The refusal says when the amount will fit, and then it does."""
    spending = Spending(Limits(calls_per_minute=4))
    for after in (0, 10, 20, 30):
        assert spending.reserve(Cost(calls=1), NOW + after) is None
    assert spending.reserve(Cost(calls=2), NOW + 40) == (
        "calls_per_minute",
        "calls_per_minute = 4 is spent (4 so far, and this call takes 2), and such a call may be made again in 31 s",
    )
    assert spending.reserve(Cost(calls=2), NOW + 70.9) is not None
    assert spending.reserve(Cost(calls=5), NOW + 70.9) == (
        "calls_per_minute",
        "calls_per_minute = 4 is spent (3 so far, and this call takes 5)",
    )
    assert spending.reserve(Cost(calls=2), NOW + 71) is None


@pytest.mark.parametrize(
    ("seconds", "words"), [(0.2, "1 s"), (120, "120 s"), (121, "3 min"), (7200, "120 min"), (7201, "3 h"), (86_400, "24 h")]
)
def test_spans_are_rounded_up(seconds, words):
    """In words a time is never shorter than it is."""
    assert span(seconds) == words


def test_settle():
    """The difference is booked, or taken off; a limit may be exceeded by it, and nothing falls below zero."""
    spending = Spending(Limits(usd_per_day=1.0))
    assert spending.reserve(Cost(usd=0.5, joules=4.0, calls=1), NOW) is None
    spending.settle(Cost(usd=0.5, joules=4.0, calls=1), Cost(usd=1.5, joules=1.0, calls=1), NOW + 1)
    assert spending.spent(NOW + 1) == Cost(1.5, 0.0, 1.0, 1)
    spending.settle(Cost(usd=1.5, joules=9.0), Cost(usd=1.25), NOW + 400)
    assert spending.spent(NOW + 400) == Cost(1.25, 0.0, 0.0, 0.0)


def test_what_is_taken_back_does_not_make_later_amounts_leave_early():
    """A reservation of long ago comes to less: its window, and not that of what came later, is the shorter one."""
    spending = Spending(Limits())
    spending.add(Cost(joules=10.0), NOW)
    spending.add(Cost(joules=5.0), NOW + 300)
    spending.settle(Cost(joules=10.0), Cost(joules=2.0), NOW + 600)
    assert spending.spent(NOW + 600).joules == 7
    assert spending.spent(NOW + 3_660).joules == 5
    assert spending.spent(NOW + 3_960).joules == 0


def test_time_going_back():
    """Nothing leaves and nothing is lost until time has caught up."""
    spending = Spending(Limits(calls_per_minute=2))
    assert spending.reserve(Cost(calls=1), NOW) is None
    assert spending.reserve(Cost(calls=1), NOW - 5_000) is None
    assert spending.reserve(Cost(calls=1), NOW - 4_000) is not None
    assert spending.spent(NOW + 60).calls == 2
    assert spending.spent(NOW + 61).calls == 0


def carried(spending: Spending) -> dict:
    return json.loads(json.dumps(spending.dump()))


def test_a_record_is_written_ahead():
    """With an advance under a limit, as much as was spent so far, up to a 64th of the limit and to the limit."""
    spending = Spending(Limits(usd_per_day=64.0, joules_per_hour=4.0))
    assert not spending.ahead()
    assert not any(spending.dump(advance=True).values())
    spending.add(Cost(usd=0.25, mb=1.0, joules=3.99), NOW)
    assert spending.ahead()
    first = spending.dump(advance=True)
    (usd,), (mb,), (joules,), calls = first.values()
    assert (usd[1], mb[1], joules[1], calls) == (0.5, 1.0, 4.0, [])
    spending.mark_recorded(first)
    assert not spending.ahead()
    spending.add(Cost(usd=0.25), NOW)
    assert not spending.ahead()
    assert spending.dump(advance=True)["usd_per_day"] == [usd]
    spending.add(Cost(usd=9.5), NOW)
    assert spending.ahead()
    second = spending.dump(advance=True)
    assert second["usd_per_day"][0][1] == 11.0
    assert spending.dump()["usd_per_day"][0][1] == 10.0
    spending.mark_recorded(second)
    spending.settle(Cost(usd=10.0), Cost(usd=0.5), NOW)
    assert not spending.ahead()
    assert spending.dump(advance=True)["usd_per_day"][0][1] == 1.0, "what was given back is not in the record"
    spending.settle(Cost(usd=0.5), Cost(), NOW)
    spending.add(Cost(usd=1.0), NOW + 2_000)
    assert spending.ahead(), "an advance is for its own bucket"
    assert spending.dump(advance=True)["usd_per_day"] == [[NOW + 2_000 - (NOW + 2_000) % 1440, 2.0]]
    spending.limits = Limits()
    assert not spending.ahead()


def test_what_a_fork_inherits():
    """It counts in the child, and is not the child's to record."""
    spending = Spending(Limits(usd_per_day=2.0))
    spending.add(Cost(usd=1.5), NOW)
    spending.mark_recorded(spending.dump())
    spending.disown()
    spending.add(Cost(usd=0.25), NOW + 1)
    assert spending.ahead()
    assert spending.dump()["usd_per_day"][0][1] == 0.25
    assert spending.spent(NOW + 1).usd == 1.75
    assert spending.spent(NOW + 2 * 86_400).usd == 0


def test_what_is_not_known():
    """It may be all of a limit: nothing is booked of a kind that has one, until it is known."""
    spending = Spending(Limits(usd_per_day=2.0))
    spending.unknown = "the file is locked"
    assert spending.reserve(Cost(usd=0.1), NOW) == ("usd_per_day", "usd_per_day = 2: the file is locked")
    assert spending.reserve(Cost(mb=0.1), NOW) is None
    spending.unknown = ""
    assert spending.reserve(Cost(usd=0.1), NOW) is None


def test_what_is_lost():
    """It may be all of a limit, until its window has passed; the later of two losses counts."""
    spending = Spending(Limits(usd_per_day=2.0, calls_per_minute=9))
    spending.mark_unknown_until(NOW, "the file was damaged")
    spending.mark_unknown_until(NOW - 99, "an older one")
    why = ("calls_per_minute", "calls_per_minute = 9: the file was damaged, and calls under this limit may be made again in 61 s")
    assert spending.reserve(Cost(calls=1), NOW) == why
    assert spending.reserve(Cost(calls=1), NOW + 61) is None
    assert spending.reserve(Cost(usd=1), NOW + 61).text.endswith("may be made again in 25 h")
    assert spending.reserve(Cost(usd=1), NOW + 86_400 + 1_440) is None


def test_another_clock():
    """What another process has dumped by a clock that was set differently counts from when it was."""
    spending = Spending(Limits())
    dumped = {name: [[NOW, 1.0]] for name in Limits._fields}
    assert spending.load(dumped, NOW + 86_400 * 365, 86_400 * 365.0)
    assert spending.spent(NOW + 86_400 * 365) == Cost(1, 1, 1, 1)
    assert not spending.load(dumped, NOW + 86_400 * 365)


def test_a_restart_forgets_nothing():
    """What is dumped and loaded counts as long as it would have, and what is past it does not count."""
    before, after = Spending(Limits()), Spending(Limits(joules_per_hour=10))
    before.add(Cost(1, 2, 3, 4), NOW)
    before.add(Cost(10, 20, 30, 40), NOW + 90)
    dumped = carried(before)
    after.load(dumped, NOW + 90)
    assert after.spent(NOW + 90) == Cost(11, 22, 33, 40) == before.spent(NOW + 90)
    text = "joules_per_hour = 10 is spent (33 so far, and this call takes 1), and such a call may be made again in 61 min"
    assert after.reserve(Cost(joules=1), NOW + 90) == ("joules_per_hour", text)
    for later in (3_659, 3_660, 3_720, 3_780, 90_000):
        assert after.spent(NOW + later) == before.spent(NOW + later)
    late = Spending(Limits())
    late.load(dumped, NOW + 5_000)
    assert late.spent(NOW + 5_000) == Cost(11, 22, 0, 0)


def test_dumps_of_several_processes_add_up():
    """However often processes load one another's dumps, each amount counts once."""
    processes, dumps = [], []
    for _ in range(4):
        spending = Spending(Limits())
        for dumped in dumps:
            spending.load(dumped, NOW)
        assert spending.reserve(Cost(usd=1.0), NOW) is None
        processes.append(spending)
        dumps.append(carried(spending))
    assert [spending.spent(NOW).usd for spending in processes] == [1, 2, 3, 4]


def test_only_what_was_booked_here_is_taken_back():
    """A correction does not touch what other processes have spent."""
    spending = Spending(Limits())
    spending.load({**Spending(Limits()).dump(), "usd_per_day": [[NOW, 5.0]]}, NOW)
    spending.add(Cost(usd=1.0), NOW)
    spending.settle(Cost(usd=9.0), Cost(), NOW)
    assert spending.spent(NOW).usd == 5


def test_a_clock_set_back_between_runs():
    """What is stamped later than now counts as spent now."""
    spending = Spending(Limits())
    spending.load({**Spending(Limits()).dump(), "calls_per_minute": [[NOW + 9e9, 3.0], [NOW, 1.0]]}, NOW)
    assert spending.spent(NOW + 60).calls == 4
    assert spending.spent(NOW + 61).calls == 0


NO_DUMPS = [
    None, 1, [], "usd_per_day", {}, {"usd_per_day": []},
    *[{**Spending(Limits()).dump(), "mb_per_day": bad} for bad in (
        None, 3, "ab", ["ab"], [3], [[NOW]], [[NOW, 1, 1]], [[NOW, "1"]], [["1", 1]], [[NOW, None]], [[NOW, 10**400]],
        [[NOW, -1.0]], [[NOW, INF]], [[NOW, float("nan")]], [[INF, 1.0]], [[float("nan"), 1.0]], [[NOW, 1.0], [NOW, -1.0]],
    )],
]  # fmt: skip


@pytest.mark.parametrize("dumped", NO_DUMPS, ids=repr)
def test_what_is_no_dump(dumped):
    """Whatever else is loaded is a ValueError, and changes nothing."""
    spending = Spending(Limits())
    spending.add(Cost(1, 1, 1, 1), NOW)
    if isinstance(dumped, dict) and dumped.get("usd_per_day") == []:
        dumped = {**dumped, "usd_per_day": [[NOW, 1.0]]}
    with pytest.raises(ValueError, match="not a dump of what was spent"):
        spending.load(dumped, NOW)
    assert spending.spent(NOW) == Cost(1, 1, 1, 1)


eighths = st.integers(0, 40).map(lambda n: n / 8)
costs = st.builds(Cost, eighths, eighths, eighths, st.integers(0, 3))
limits = st.builds(Limits, *[st.one_of(st.just(INF), st.integers(0, 80).map(lambda n: n / 8))] * 4)


class Against(RuleBasedStateMachine):
    """Amounts are eighths, so sums are exact. The model is what was spent when, and what is counted for it at most."""

    def __init__(self):
        super().__init__()
        self.now = self.latest = NOW
        self.spending = Spending(Limits())
        self.spent: list[list] = []  # [when, what it came to, the most that was ever booked for it]
        self.pending: list[list] = []

    def truth(self, kind: int) -> float:
        return sum(cost[kind] for at, cost, _ in self.spent if at > self.latest - LENGTHS_S[kind])

    def most(self, kind: int) -> float:
        longer = LENGTHS_S[kind] * (1 + 1 / BUCKETS)
        return sum(most[kind] for at, _, most in self.spent if at > self.latest - longer)

    def counted(self) -> Cost:
        return self.spending.spent(self.now)

    @rule(limits=limits)
    def new_limits(self, limits):
        before = self.counted()
        self.spending.limits = limits
        assert self.counted() == before

    @rule(dt=st.sampled_from([0.25, 1.0, 7.0, 59.0, 61.0, 300.0, 3_500.0, 20_000.0, -3.0, -500.0]))
    def wait(self, dt):
        self.now += dt
        self.latest = max(self.latest, self.now)

    @rule(cost=costs)
    def reserve(self, cost):
        before = self.counted()
        truths = [self.truth(kind) for kind in range(4)]
        why = self.spending.reserve(cost, self.now)
        if why is None:
            for kind, limit in enumerate(self.spending.limits):
                assert not cost[kind] or truths[kind] + cost[kind] <= limit * (1 + 1e-9)
            self.spent.append([self.latest, cost, cost])
            self.pending.append(self.spent[-1])
        else:
            assert self.counted() == before
            over = [k for k, limit in enumerate(self.spending.limits) if cost[k] and before[k] + cost[k] > limit]
            assert why.code == Limits._fields[over[0]]
            assert why.text.startswith(why.code)

    @rule(cost=costs)
    def add(self, cost):
        self.spending.add(cost, self.now)
        self.spent.append([self.latest, cost, cost])

    @precondition(lambda self: self.pending)
    @rule(actual=costs)
    def settle(self, actual):
        entry = self.pending.pop()
        at, reserved, _ = entry
        if self.latest - at >= 60:
            actual = actual._replace(calls=reserved.calls)
        if self.latest - at >= 3_600:
            actual = reserved
        self.spending.settle(reserved, actual, self.now)
        entry[1] = entry[2] = Cost(*map(min, reserved, actual))
        entry[2] = reserved
        more = Cost(*[max(0, a - r) for r, a in zip(reserved, actual, strict=True)])
        self.spent.append([self.latest, more, more])

    @rule()
    def restart(self):
        other = Spending(self.spending.limits)
        other.load(carried(self.spending), self.latest)
        assert other.spent(self.latest) == self.spending.spent(self.latest)

    @invariant()
    def counts_right(self):
        for kind, counted in enumerate(self.counted()):
            assert 0 <= self.truth(kind) <= counted <= self.most(kind)


TestAgainstAModel = Against.TestCase
TestAgainstAModel.settings = settings(max_examples=draws(100), stateful_step_count=40, deadline=None)


def test_who_asks_may_have_limits_of_its_own():
    """What is booked is one account."""
    spending = Spending(Limits(usd_per_day=1))
    little, much = Limits(usd_per_day=2), Limits(usd_per_day=4)
    assert spending.reserve(Cost(usd=2), 0.0, little) is None
    assert spending.reserve(Cost(usd=1), 0.0, little).code == "usd_per_day"
    assert spending.reserve(Cost(usd=0.5), 0.0).code == "usd_per_day"
    assert (spending.scarce(0.0), spending.scarce(0.0, little), spending.scarce(0.0, much)) == (True, True, False)
    assert spending.reserve(Cost(usd=2), 0.0, much) is None
