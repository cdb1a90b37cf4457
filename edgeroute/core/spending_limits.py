"""Spending limits over rolling windows: money, data, energy, calls."""

from __future__ import annotations

from collections.abc import Mapping
from math import ceil
from typing import Any, Final, NamedTuple, cast

from edgeroute.core.error_codes_and_texts import DumpOf, HeldCode, Lasting, Rejection
from edgeroute.core.policy_egress_and_options import INF
from edgeroute.core.setting_unit_types import Limit

BUCKETS: Final = 60  # buckets per window. An amount counts for its whole window, and at most one bucket longer.
MINUTE_S, HOUR_S, DAY_S = 60.0, 3_600.0, 86_400.0
_ROUNDING = 1 + 1e-9  # tolerance for rounding: three times 0.1 must fit into 0.3
AHEAD: Final = 64  # at most this fraction of a limit, 1 / AHEAD, is recorded ahead of its use


class Limits(NamedTuple):
    """Maximum spending within any window; inf: no limit.

    Args:
        usd_per_day: US dollars in any 24 hours, by the endpoints' prices.
        mb_per_day: million bytes of bodies, in both directions, in any 24 hours.
        joules_per_hour: joules in any hour: of the cloud's calls by price, and of the edge's runs as far as known (rules.md). No
            run is refused for it.
        calls_per_minute: calls of endpoints in any 60 seconds; a call counts once, however often it is retried.
    """

    usd_per_day: Limit = INF
    mb_per_day: Limit = INF
    joules_per_hour: Limit = INF
    calls_per_minute: Limit = INF


_LENGTHS_S = Limits(DAY_S, DAY_S, HOUR_S, MINUTE_S)


class Cost(NamedTuple):
    """Cost, each part 0 or more: US dollars, million bytes in both directions, joules of the device, calls."""

    usd: float = 0.0
    mb: float = 0.0
    joules: float = 0.0
    calls: float = 0


def up_against(limits: Limits, cost: Cost, edge_j: float) -> Limits:
    """Return the limits for a call of this cost, where a run of the edge takes `edge_j` joules; 0: not known.

    A call that takes no more energy than that run is not refused for its energy: the edge would run in its place.
    """
    return limits._replace(joules_per_hour=INF) if 0 < cost.joules <= edge_j else limits


class Tokens(NamedTuple):
    """Tokens of a text, as an endpoint counts them, or as expected before."""

    prompt: int = 0
    answer: int = 0


class Spending:
    """Spending against limits.

    `now` is seconds since 1970. If it goes back, nothing leaves its window until it has caught up, and spending in the meantime
    counts as of the latest instant seen. Not synchronised: threads that share it need a lock.

    A record that outlives the process is written ahead: `ahead` returns True if something is booked under a limit that the record
    lacks, `dump` makes the next record, with an advance so that not every booking needs one, and `mark_recorded` notes that it
    was written.

    Attributes:
        limits: may be replaced at any time; spending so far stays booked.
        edge_j: energy of a run of the edge, joules, as in `up_against`.
        unknown: why earlier spending is not known; costs under a limit are refused meanwhile. Empty: it is known.
    """

    __slots__ = ("_lost_at", "_lost_why", "_windows", "edge_j", "limits", "unknown")

    def __init__(self, limits: Limits) -> None:
        self.limits, self.edge_j = limits, 0.0
        self.unknown = ""
        self._lost_at, self._lost_why = -INF, ""
        self._windows = tuple(map(_Window, Limits._fields, _LENGTHS_S))

    def reserve(self, cost: Cost, now: float, limits: Limits | None = None, *, book: bool = True) -> Rejection | None:
        """Book the cost and return None; or book nothing and return the limit that forbids it, whose name is the code.

        Refused too under a limit whose earlier spending is not known. A limit already exceeded, by `add` or `settle`, does not
        stop a cost without a part of its kind. `limits`: those of the caller, None: those of the account. book: False only asks.
        Drops expired amounts.
        """
        windows = self._windows
        limits = up_against(self.limits, cost, self.edge_j) if limits is None else limits
        for window, limit, asked in zip(windows, limits, cost):  # noqa: B905 - always four, and the keyword costs 0.2 us
            if asked > 0:
                window.roll(now)
                if limit < INF and (self.unknown or self._lost_why) and (why := self._not_known(window, now)):
                    return Rejection(cast("HeldCode", window.name), f"{window.name} = {limit:g}: {why}")
                if window.total + asked > limit * _ROUNDING:
                    return window.refusal(asked, limit, now)
        for window, asked in zip(windows, cost if book else ()):  # noqa: B905 - always four, and the keyword costs 0.2 us
            if asked > 0:
                window.book(asked)
        return None

    def settle(self, reserved: Cost, actual: Cost, now: float) -> None:
        """Correct a reservation to the actual cost.

        An excess is booked now, whatever the limits. A saving is subtracted from the oldest amounts that count: then nothing
        leaves its window too early, and nothing falls below zero.
        """
        for window, before, after in zip(self._windows, reserved, actual):  # noqa: B905 - always four, and the keyword costs 0.2 us
            if before != after:
                window.roll(now)
                if after > before:
                    window.book(after - before)
                else:
                    window.take_back(before - after)

    def add(self, cost: Cost, now: float) -> None:
        """Book a cost that has been incurred anyway, whatever the limits."""
        for window, amount in zip(self._windows, cost):  # noqa: B905 - always four, and the keyword costs 0.2 us
            if amount > 0:
                window.roll(now)
                window.book(amount)

    def spent(self, now: float) -> Cost:
        """Return the current spending, each part over its own window; drops expired amounts."""
        for window in self._windows:
            window.roll(now)
        return Cost(*[window.total for window in self._windows])

    def scarce(self, now: float, limits: Limits | None = None) -> bool:
        """Return True if half of any limit is used up: from then on there are no hedges and no audits. Drops expired amounts."""
        limits_in_force = self.limits if limits is None else limits
        return any(used > limit / 2 for used, limit in zip(self.spent(now), limits_in_force, strict=True) if limit < INF)

    def mark_unknown_until(self, until: float, why: str) -> None:
        """Record that spending until an instant is unknown; costs under a limit are refused until the window has passed it."""
        if until >= self._lost_at:
            self._lost_at, self._lost_why = until, why

    def _not_known(self, window: _Window, now: float) -> str:
        """Return why earlier spending in a window is not known, and until when if that passes; empty: it is known."""
        if self.unknown:
            return self.unknown
        until = self._lost_at + window.length_s + window.width_s
        return f"{self._lost_why}, and calls under this limit may be made again in {span(until - now)}" if now < until else ""

    def ahead(self) -> bool:
        """Return True if this process has booked more under a limit than its last record has: another is to be written first."""
        return any(
            limit < INF and window.booked.get(window.current, 0.0) > window.recorded.get(window.current, 0.0) * _ROUNDING
            for window, limit in zip(self._windows, self.limits, strict=True)
        )

    def dump(self, *, advance: bool = False) -> dict[str, Any]:
        """Return the bookings of this process in JSON types: [instant, amount]... per window.

        Loaded amounts are left out: each process dumps its own, so loading all dumps counts nothing twice.

        Args:
            advance: True for a record that is written ahead: under a limit it has more than is booked, as much as was spent so
                far but no more than the part `AHEAD` of the limit. After a crash the rest of it counts as spent.
        """
        dumped = {}
        for window, limit in zip(self._windows, self.limits, strict=True):
            amounts = dict(window.booked)
            if advance and limit < INF:
                window.advance(amounts, limit)
            dumped[window.name] = [[instant, amount] for instant, amount in amounts.items()]
        return dumped

    def mark_recorded(self, dumped: Mapping[str, Any]) -> None:
        """Note that this dump is the record, or will be before anything else is spent."""
        for window in self._windows:
            window.recorded = dict(dumped[window.name])

    def disown(self) -> None:
        """Treat the bookings so far as another process's to record: this process was forked from it.

        They still count here, and `dump` leaves them out from now on.
        """
        for window in self._windows:
            for instant, amount in window.booked.items():
                window.loaded[instant] = window.loaded.get(instant, 0.0) + amount
            window.booked, window.recorded = {}, {}

    def load(self, dumped: Mapping[str, Any], now: float, shift_s: float = 0.0) -> bool:
        """Add what another process has dumped, as far as it still counts; an instant later than `now` counts as `now`.

        Args:
            dumped: dump of that process.
            now: seconds since 1970.
            shift_s: by how much this process's clock is ahead of that one's, seconds.

        Returns:
            True if any of it still counts.

        Raises:
            ValueError: not a dump. Nothing was added.
        """
        with DumpOf("what was spent"):
            loaded = [[(instant + shift_s, amount + 0.0) for instant, amount in dumped[window.name]] for window in self._windows]
            for instant, amount in (entry for entries in loaded for entry in entries):
                if not (-INF < instant < INF and 0 <= amount < INF):
                    raise ValueError(f"{amount} at {instant}")
        counts = False
        for window, entries in zip(self._windows, loaded, strict=True):
            window.roll(now)
            counts = window.load(entries) or counts
        return counts


class _Window:
    """Bookings of one kind of spending in a rolling window. Call `roll` before anything else."""

    __slots__ = ("booked", "current", "length_s", "loaded", "name", "recorded", "total", "until", "width_s")

    def __init__(self, name: str, length_s: float) -> None:
        self.name, self.length_s, self.width_s = name, length_s, length_s / BUCKETS
        self.current = self.until = -INF  # start of the current bucket, and its end, `until`
        # Start of a bucket -> its amount, booked here (sorted, oldest first) and loaded from other processes.
        self.booked, self.loaded = dict[float, float](), dict[float, float]()
        self.recorded = dict[float, float]()  # start of a bucket -> its amount in the record that outlives the process
        self.total = 0.0

    def roll(self, now: float) -> None:
        """Make the bucket of `now` the current one, drop expired buckets, and sum up the total anew; a no-op within a bucket."""
        if now < self.until:
            return
        self.current = now // self.width_s * self.width_s
        self.until = self.current + self.width_s
        first = self.current - self.length_s
        self.booked = {start: amount for start, amount in self.booked.items() if start >= first}
        self.loaded = {start: amount for start, amount in self.loaded.items() if start >= first}
        self.total = sum(self.booked.values()) + sum(self.loaded.values())  # summed anew, so that rounding errors do not add up

    def book(self, amount: float) -> None:
        """Add to the current bucket."""
        self.booked[self.current] = self.booked.get(self.current, 0.0) + amount
        self.total += amount

    def take_back(self, amount: float) -> None:
        """Subtract the amount from the oldest bookings, as far as there are any. An excess over them is ignored."""
        booked = self.booked
        while booked:
            oldest = next(iter(booked))
            oldest_amount = booked[oldest]
            if oldest_amount > amount:
                booked[oldest] = oldest_amount - amount
                self.total = max(0.0, self.total - amount)
                return
            amount -= oldest_amount
            self.total -= oldest_amount
            del booked[oldest]
        self.total = sum(self.loaded.values())

    def advance(self, amounts: dict[float, float], limit: float) -> None:
        """Raise the current bucket's amount in `amounts`, in place, by an advance, or by what is left of that recorded before.

        The advance is as much as `amounts` has, but at most 1 / `AHEAD` of the limit, and what is left of it. A no-op for an
        empty bucket without record.
        """
        more = max(0.0, min(limit / AHEAD, sum(amounts.values()), limit - self.total))
        before, booked = self.recorded.get(self.current, 0.0), amounts.get(self.current, 0.0)
        if before or booked:  # what a call had booked, and has given back, does not stay in the record
            amounts[self.current] = min(before if before >= booked else INF, booked + more)

    def load(self, entries: list[tuple[float, float]]) -> bool:
        """Add amounts of other processes, each at its instant. Return True if any counts.

        A later instant than the current bucket counts as the current one; expired amounts are dropped.
        """
        counts = False
        for instant, amount in entries:
            start = min(instant // self.width_s * self.width_s, self.current)
            if start >= self.current - self.length_s:
                self.loaded[start] = self.loaded.get(start, 0.0) + amount
                self.total += amount
                counts = True
        return counts

    def refusal(self, asked: float, limit: float, now: float) -> Rejection:
        """Return the rejection of an amount that exceeds the limit, with how long it holds if nothing else is spent."""
        room_at = self.room_at(asked, limit)
        when = "" if room_at is None else f", and such a call may be made again in {span(room_at - now)}"
        text = f"{self.name} = {limit:g} is spent ({self.total:.6g} so far, and this call takes {asked:.6g}){when}"
        return Lasting.of(cast("HeldCode", self.name), text, 0.0 if room_at is None else room_at - now)

    def room_at(self, asked: float, limit: float) -> float | None:
        """Return when the amount will fit if nothing else is spent, seconds since 1970; None: never, as it exceeds the limit."""
        left = self.total
        for start, amount in sorted([*self.booked.items(), *self.loaded.items()]):
            left -= amount
            if left + asked <= limit * _ROUNDING:
                return start + self.length_s + self.width_s
        return None


def span(seconds: float) -> str:
    """Return a duration in words, rounded up: seconds to two minutes, minutes to two hours, then hours."""
    for unit, name in ((HOUR_S, "h"), (MINUTE_S, "min")):
        if seconds > 2 * unit:
            return f"{ceil(seconds / unit)} {name}"
    return f"{ceil(seconds)} s"
