# ruff: noqa: D102 - a rule is named for what happens
"""The circuit breaker: by example, and every sequence of events against a plain model."""

from __future__ import annotations

import pytest
from draws import draws
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from edgeroute.core.endpoint_breaker_and_limits import FAULTS, FIRST_S, HOLD_MOST_S, MOST_S, PROBE_LOST_S, Breaker

jitters = st.integers(0, 4).map(lambda n: n / 4)


def opened(at: float = 0.0, jitter: float = 1.0) -> Breaker:
    breaker = Breaker()
    for _ in range(FAULTS):
        breaker.fault(at, jitter)
    return breaker


def probed(breaker: Breaker, now: float, ok: bool, jitter: float = 1.0) -> None:
    assert breaker.probe_due(now)
    breaker.probe_begun(now)
    breaker.probe_ended(now, ok, jitter)


def test_three_faults_in_a_row_open_it():
    """Two faults, a success and two faults do not open it; the third in a row does."""
    breaker = Breaker()
    for outcome in "ffsff":
        breaker.fault(0.0, 1.0) if outcome == "f" else breaker.success(0.0)
    assert (breaker.state, breaker.opened, breaker.allows(0.0), breaker.why(0.0)) == ("closed", 0, True, None)
    assert breaker.faults == FAULTS - 1
    breaker.fault(0.0, 1.0)
    assert (breaker.state, breaker.opened, breaker.allows(1e9)) == ("open", 1, False)


def test_it_says_why():
    """Each reason is in words, with the time to wait."""
    breaker = opened(10.0)
    assert breaker.why(10.8) == ("breaker", "breaker open for another 4.2 s after 3 faults")
    assert breaker.why(15.0) == ("breaker", "breaker open after 3 faults, a probe is due")
    breaker.probe_begun(15.0)
    assert breaker.why(15.0) == ("breaker", "breaker half-open after 3 faults, a probe is under way")
    breaker.hold(27.0, 15.0)
    breaker.probe_ended(15.0, False, 0.0)
    assert breaker.why(15.0) == ("breaker", "breaker open for another 12 s after 3 faults")
    breaker.success(15.0)
    assert breaker.why(15.0) == ("retry_after", "it asked to wait another 12 s")
    assert breaker.why(26.999) == ("retry_after", "it asked to wait another 0.1 s")
    assert breaker.why(27.0) is None


def test_the_opening_time_doubles_to_its_most():
    """Each probe that fails doubles the opening time, from 5 s to 300 s."""
    breaker, now, waits = opened(), 0.0, []
    for _ in range(9):
        waits.append(breaker.due - now)
        now = breaker.due
        probed(breaker, now, ok=False)
    assert waits == [5, 10, 20, 40, 80, 160, 300, 300, 300]
    assert breaker.opened == 1


@pytest.mark.parametrize(("jitter", "wait_s"), [(0.0, 2.5), (0.5, 3.75), (1.0, 5.0)])
def test_jitter_only_shortens(jitter, wait_s):
    """The opening time lies between half the nominal one and all of it."""
    breaker = opened(0.0, jitter)
    assert not breaker.probe_due(wait_s - 0.01)
    assert breaker.probe_due(wait_s)


def test_closed_on_trial():
    """After a probe's success one fault opens it, with the grown time; after a request's success three do, with 5 s."""
    breaker = opened()
    probed(breaker, 5.0, ok=True)
    assert breaker.state == "closed"
    assert breaker.allows(5.0)
    breaker.fault(5.0, 1.0)
    assert (breaker.state, breaker.opened) == ("open", 2)
    assert not breaker.probe_due(14.9)
    probed(breaker, 15.0, ok=True)
    breaker.success(15.0)
    breaker.fault(15.0, 1.0)
    breaker.fault(15.0, 1.0)
    assert breaker.state == "closed"
    breaker.fault(15.0, 1.0)
    assert breaker.probe_due(20.0)


def test_late_results():
    """While it is open or half-open a late fault changes nothing, and a late success closes it for good."""
    breaker = opened()
    breaker.fault(4.0, 1.0)
    assert breaker.probe_due(5.0)
    breaker.probe_begun(5.0)
    breaker.fault(5.0, 1.0)
    assert breaker.state == "half-open"
    breaker.success(5.0)
    assert breaker.state == "closed"
    breaker.probe_ended(6.0, ok=False, jitter=1.0)  # of a probe that does not matter any more
    assert breaker.state == "closed"
    breaker.fault(6.0, 1.0)
    assert breaker.allows(6.0)
    assert breaker.opened == 1


def test_a_lost_probe_does_not_block():
    """A probe that never ends is taken for lost after a minute; then one more is due, and its result counts."""
    breaker = opened()
    breaker.probe_begun(5.0)
    assert not breaker.probe_due(5.0 + PROBE_LOST_S - 0.1)
    probed(breaker, 5.0 + PROBE_LOST_S, ok=True)
    assert breaker.state == "closed"


def test_the_network_came_back():
    """A probe is due at once and the growth is forgotten; a probe under way stays the only one; closed, nothing is due."""
    breaker = Breaker()
    breaker.link_up(0.0)
    assert not breaker.probe_due(0.0)
    breaker = opened()
    probed(breaker, 5.0, ok=False)
    breaker.link_up(6.0)
    assert breaker.probe_due(6.0)
    breaker.probe_begun(6.0)
    breaker.link_up(7.0)
    assert not breaker.probe_due(7.0)
    breaker.probe_ended(7.0, ok=False, jitter=1.0)
    assert breaker.probe_due(7.0 + FIRST_S)


def test_hold():
    """A hold shuts a closed breaker until its instant; the latest counts, the cap is 300 s, a success does not lift it."""
    breaker = Breaker()
    breaker.hold(20.0, 10.0)
    breaker.hold(15.0, 10.0)
    breaker.success(10.0)
    assert breaker.state == "closed"
    assert not breaker.allows(19.9)
    assert breaker.allows(20.0)
    breaker.hold(1e9, 20.0)
    assert not breaker.allows(20.0 + HOLD_MOST_S - 0.1)
    assert breaker.allows(20.0 + HOLD_MOST_S)


def test_a_hold_binds_probes_too():
    """An endpoint that asked to wait is not probed either, though the network came back, and its hold outlives the opening."""
    breaker = opened()
    breaker.hold(50.0, 0.0)
    breaker.link_up(1.0)
    assert not breaker.probe_due(49.9)
    probed(breaker, 50.0, ok=True)
    assert breaker.allows(50.0)
    breaker.hold(60.0, 50.0)
    assert not breaker.allows(59.0)


class Against(RuleBasedStateMachine):
    """Any sequence of events; the model keeps what happened, and derives from it what must hold."""

    def __init__(self):
        super().__init__()
        self.breaker, self.now = Breaker(), 1000.0
        self.open = False
        self.failed_in_a_row = 0  # since a request's success
        self.openings = 0  # since a request's success or link_up: how far the opening time has grown
        self.due = self.held = 0.0
        self.probes: list[float] = []  # begun, not ended
        self.attempts = self.trials = 0  # since a request's success: allowed and failed; probes that went well

    def _opens(self, jitter):
        nominal = min(FIRST_S * 2**self.openings, MOST_S)
        self.open, self.due = True, self.now + nominal * (0.5 + 0.5 * jitter)
        self.openings += 1
        assert self.now + nominal / 2 <= self.due <= self.now + MOST_S

    def _fails(self, jitter):
        self.breaker.fault(self.now, jitter)
        if not self.open:
            self.failed_in_a_row += 1
            if self.failed_in_a_row >= FAULTS:
                self._opens(jitter)

    @rule(dt=st.sampled_from([0.25, 1.0, 2.5, 5.0, 30.0, 60.0, 400.0]))
    def wait(self, dt):
        self.now += dt

    @precondition(lambda self: self.breaker.allows(self.now))
    @rule(jitter=jitters)
    def request_fails(self, jitter):
        self.attempts += 1
        self._fails(jitter)

    @rule(jitter=jitters)
    def late_fault(self, jitter):
        if self.open:
            before = self.breaker.due
            self._fails(jitter)
            assert self.breaker.due == before

    @rule()
    def success(self):
        self.breaker.success(self.now)
        self.open, self.failed_in_a_row, self.openings, self.attempts, self.trials, self.probes = False, 0, 0, 0, 0, []

    @precondition(lambda self: self.breaker.probe_due(self.now))
    @rule()
    def probe(self):
        self.breaker.probe_begun(self.now)
        assert self.open
        assert all(self.now - begun >= PROBE_LOST_S for begun in self.probes), "two at once"
        assert self.now >= self.held
        self.probes = [self.now]

    @precondition(lambda self: self.probes)
    @rule(ok=st.booleans(), jitter=jitters)
    def probe_ends(self, ok, jitter):
        self.breaker.probe_ended(self.now, ok, jitter)
        self.probes = []
        if ok:
            self.open = False
            self.trials += 1
        else:
            self._opens(jitter)

    @rule(jitter=jitters, ok=st.booleans())
    def stray_probe_ends(self, jitter, ok):
        if not self.probes:
            self.breaker.probe_ended(self.now, ok, jitter)

    @rule()
    def link_up(self):
        self.breaker.link_up(self.now)
        self.openings = 0
        if self.open and not self.probes:
            self.due = self.now

    @rule(wait_s=st.sampled_from([-5.0, 0.0, 0.5, 10.0, 300.0, 1e6, float("inf")]))
    def hold(self, wait_s):
        self.breaker.hold(self.now + wait_s, self.now)
        self.held = max(self.held, self.now + min(wait_s, HOLD_MOST_S))

    @invariant()
    def agrees(self):
        breaker, now = self.breaker, self.now
        assert breaker.allows(now) == (not self.open and now >= self.held)
        assert breaker.allows(now) == (breaker.why(now) is None)
        assert breaker.state == ("half-open" if self.probes else "open" if self.open else "closed")
        if self.probes:
            assert breaker.probe_due(now) == (now - self.probes[0] >= PROBE_LOST_S and now >= self.held)
        else:
            assert breaker.probe_due(now) == (self.open and now >= self.due and now >= self.held)

    @invariant()
    def attempts_are_few(self):
        assert self.attempts <= FAULTS + self.trials


TestAgainstAModel = Against.TestCase
TestAgainstAModel.settings = settings(max_examples=draws(200), stateful_step_count=40, deadline=None)


@settings(max_examples=draws(100), deadline=None)
@given(st.floats(1.0, 4000.0), st.lists(st.floats(0.0, 1.0), min_size=1, max_size=20), st.floats(0.5, 3.0))
def test_an_outage_costs_few_requests_and_few_probes(outage_s, random, step_s):
    """Asked again and again throughout an outage, an endpoint sees three requests and the probes that the growth allows."""
    breaker, now, requests, probes = Breaker(), 0.0, 0, []
    while now < outage_s:
        jitter = random[(requests + len(probes)) % len(random)]
        if breaker.allows(now):
            requests += 1
            breaker.fault(now, jitter)
        elif breaker.probe_due(now):
            probes.append(now)
            probed(breaker, now, ok=False, jitter=jitter)
        now += step_s
    assert requests <= FAULTS
    earliest = 0.0
    for n, at in enumerate(probes):
        earliest += min(FIRST_S * 2**n, MOST_S) / 2
        assert at >= earliest
