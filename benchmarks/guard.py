"""Overhead of breaker, retry budget and limits on a cloud request (an accepted edge answer does not pass them)."""

from __future__ import annotations

from figures import Figure, medians, size, table, timed

from edgeroute.cloud.endpoint_guard import Guard
from edgeroute.cloud.shared_spending_and_record import SharedSpending
from edgeroute.core.endpoint_breaker_and_limits import Breaker, RetryBudget
from edgeroute.core.policy_egress_and_options import Permit, Rules, Terms, permit
from edgeroute.core.spending_limits import Cost, Limits, Spending
from edgeroute.system import wall_clock

LIMITS = Limits(usd_per_day=1e9, mb_per_day=1e9, joules_per_hour=1e9, calls_per_minute=1e9)
"""Every limit is accounted for; none is reached."""
TERMS = Terms(usd_per_call=1e-3, usd_per_mb=1e-3, joules_per_call=1e-3, joules_per_mb=1e-3, calls_per_s=1e9)
SENT_BYTES, CAME_BYTES = 3072, 100


class Nobody:
    """Stub observer of recovery: the endpoint is always healthy here."""

    def opened(self, guard: Guard) -> None:
        """Never called."""

    probe = closed = opened


def times() -> dict[str, float]:
    """Return the time per call, seconds: the three pure parts, a whole exchange, and an empty call, included in both."""
    now, cost = wall_clock.now(), Cost(usd=1e-3, mb=3e-3, joules=1e-3, calls=1)
    breaker, retries, spending = Breaker(), RetryBudget(), Spending(LIMITS)
    guard = Guard("cloud", "http://cloud", TERMS, SharedSpending(Spending(LIMITS)), health=None, watcher=Nobody(), journal=None)
    may = permit(Rules(may_leave=frozenset({"photo"})), "photo")
    assert isinstance(may, Permit)

    def parts(_: int) -> None:
        breaker.allows(now)
        retries.success()
        spending.reserve(cost, now)

    def exchange(_: int) -> None:
        with guard.enter(may, "a-1") as exchange:
            exchange.before_attempt(SENT_BYTES, now)
            exchange.after_attempt(CAME_BYTES)

    subjects = {"nothing": lambda _: None, "parts": parts, "exchange": exchange}
    found = medians(subjects, range(size(1000, 10)), blocks=5)
    assert all(guard.spending.spent()), "all four limits were kept account of"
    return found


def figures() -> list[Figure]:
    """Figure: the parts have a limit; the whole exchange, with locks and clocks, is reported beside them."""
    taken = times()
    what = f"breaker, budget and limits (a whole exchange: {taken['exchange'] * 1e6:.1f} us)"
    return [timed(what, taken["parts"], taken["nothing"], 5, digits=2, by="alone")]


if __name__ == "__main__":
    print(table(figures()))
