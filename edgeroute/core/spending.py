"""Spending limits over rolling windows: money, data, energy, calls."""

from __future__ import annotations

from collections.abc import Mapping
from math import ceil
from typing import Any, Final, NamedTuple, cast

from edgeroute.core.policy import INF
from edgeroute.core.words import HeldCode, Lasting, Rejection

BUCKETS: Final = 60
"""Buckets per window. An amount counts for its whole window, and at most one bucket longer."""
MINUTE_S, HOUR_S, DAY_S = 60.0, 3_600.0, 86_400.0
_ROUNDING = 1 + 1e-9
"""Tolerance for rounding: three times 0.1 must fit into 0.3."""
AHEAD: Final = 64
"""At most this part of a limit is recorded ahead of its use."""


class Limits(NamedTuple):
    """Maximum spending within any such window; inf: no limit."""

    usd_per_day: float = INF
    """US dollars in any 24 hours, by the endpoints' prices."""
    mb_per_day: float = INF
    """Million bytes of bodies, in both directions, in any 24 hours."""
    joules_per_hour: float = INF
    """Of the cloud's calls by their prices, and of the edge's runs as far as their energy is known. No run is refused for it."""
    calls_per_minute: float = INF
    """Calls of endpoints in any 60 seconds; one is counted once, however often it is retried."""


_LENGTHS_S = Limits(DAY_S, DAY_S, HOUR_S, MINUTE_S)


class Cost(NamedTuple):
    """A cost, each part 0 or more: US dollars, million bytes in both directions, joules of the device."""

    usd: float = 0.0
    mb: float = 0.0
    joules: float = 0.0
    calls: float = 0


def up_against(limits: Limits, cost: Cost, edge_j: float) -> Limits:
    """The limits for a call of this cost, where a run of the edge takes `edge_j` joules; 0: not known.

    A call that takes no more than that is not refused for its energy: the edge would run in its place.
    """
    return limits._replace(joules_per_hour=INF) if 0 < cost.joules <= edge_j else limits


class Tokens(NamedTuple):
    """Tokens of a text, as an endpoint counts them, or as they are expected before it has."""

    prompt: int = 0
    answer: int = 0


class Spending:
    """Spending against limits.

    `now` is seconds since 1970. If it goes back, nothing leaves its window until it has caught up, and spending in the
    meantime counts as of the latest instant seen. Not synchronised: threads that share it need a lock.

    A record of it that outlives the process is written ahead: `ahead` says whether something is booked under a limit that the
    record lacks, `dump` makes the next record, with an advance so that not every booking needs one, and `recorded` notes that
    it was written.

    Attributes:
        limits: may be replaced at any time; spending so far stays booked.
        edge_j: energy of a run of the edge, joules, as in `up_against`.
        unknown: why earlier spending is not known; what has a limit is refused meanwhile. Empty: it is known.
    """

    __slots__ = ("_lost_at", "_lost_why", "_windows", "edge_j", "limits", "unknown")

    def __init__(self, limits: Limits) -> None:
        self.limits, self.edge_j = limits, 0.0
        self.unknown = ""
        self._lost_at, self._lost_why = -INF, ""
        self._windows = tuple(map(_Window, Limits._fields, _LENGTHS_S))

    def reserve(self, cost: Cost, now: float, limits: Limits | None = None) -> Rejection | None:
        """Books the cost and returns None; or books nothing and returns the limit that forbids it, whose name is the code.

        A limit already exceeded, by `add` or `settle`, does not stop what costs nothing of its kind. limits: of who asks, if
        they are not the account's.
        """
        windows = self._windows
        limits = up_against(self.limits, cost, self.edge_j) if limits is None else limits
        for window, limit, asked in zip(windows, limits, cost):  # noqa: B905 - always four, and the keyword costs 0.2 us
            if asked > 0:
                if now >= window.until:
                    window.roll(now)
                if limit < INF and (self.unknown or self._lost_why) and (why := self._not_known(window, now)):
                    return Rejection(cast("HeldCode", window.name), f"{window.name} = {limit:g}: {why}")
                if window.total + asked > limit * _ROUNDING:
                    return window.refusal(asked, limit, now)
        for window, asked in zip(windows, cost):  # noqa: B905 - always four, and the keyword costs 0.2 us
            if asked > 0:  # as `book`, without its call
                window.booked[window.current] = window.booked.get(window.current, 0.0) + asked
                window.total += asked
        return None

    def settle(self, reserved: Cost, actual: Cost, now: float) -> None:
        """Corrects a reservation to the actual cost.

        An excess is booked now. A saving is subtracted from the oldest amounts that count: then nothing leaves its window too
        early, and nothing falls below zero.
        """
        for window, before, after in zip(self._windows, reserved, actual):  # noqa: B905 - always four, and the keyword costs 0.2 us
            if before != after:
                if now >= window.until:
                    window.roll(now)
                if after > before:
                    window.book(after - before)
                else:
                    window.take_back(before - after)

    def add(self, cost: Cost, now: float) -> None:
        """Books a cost that has been incurred anyway, whatever the limits."""
        for window, amount in zip(self._windows, cost):  # noqa: B905 - always four, and the keyword costs 0.2 us
            if amount > 0:
                if now >= window.until:
                    window.roll(now)
                window.book(amount)

    def spent(self, now: float) -> Cost:
        """Current spending, each over its own window."""
        for window in self._windows:
            if now >= window.until:
                window.roll(now)
        return Cost(*[window.total for window in self._windows])

    def scarce(self, now: float, limits: Limits | None = None) -> bool:
        """Whether half of any limit is used up: from then on there are no hedges and no audits."""
        found = self.limits if limits is None else limits
        return any(used > limit / 2 for used, limit in zip(self.spent(now), found, strict=True) if limit < INF)

    def lost(self, at: float, why: str) -> None:
        """Spending up to the instant `at` is not known any more: a limit is refused until its window has left that behind."""
        if at >= self._lost_at:
            self._lost_at, self._lost_why = at, why

    def _not_known(self, window: _Window, now: float) -> str:
        """Why spending in that window is not known; empty: it is."""
        if self.unknown:
            return self.unknown
        until = self._lost_at + window.length_s + window.width_s
        return f"{self._lost_why}, room again in {span(until - now)}" if now < until else ""

    def ahead(self) -> bool:
        """Whether more is booked under a limit than the record of this process has."""
        return any(
            limit < INF and window.booked.get(window.current, 0.0) > window.recorded.get(window.current, 0.0) * _ROUNDING
            for window, limit in zip(self._windows, self.limits, strict=True)
        )

    def dump(self, *, advance: bool = False) -> dict[str, Any]:
        """JSON-serialisable bookings of this process: [instant, amount]... per window.

        Loaded amounts are left out: each process dumps its own, so loading all dumps counts nothing twice.

        Args:
            advance: for a record that is written ahead: under a limit some more than is booked, as much as was spent so far but
                no more than a part `AHEAD` of the limit. After a crash the rest of it counts as spent.
        """
        found = {}
        for window, limit in zip(self._windows, self.limits, strict=True):
            amounts = dict(window.booked)
            if advance and limit < INF:
                window.advance(amounts, limit)
            found[window.name] = [[at, amount] for at, amount in amounts.items()]
        return found

    def recorded(self, dumped: Mapping[str, Any]) -> None:
        """Notes that this dump is the record, or will be before anything else is spent."""
        for window in self._windows:
            window.recorded = dict(dumped[window.name])

    def inherited(self) -> None:
        """What is booked so far is another process's to record: this one was forked from it."""
        for window in self._windows:
            for at, amount in window.booked.items():
                window.loaded[at] = window.loaded.get(at, 0.0) + amount
            window.booked, window.recorded = {}, {}

    def load(self, dumped: Mapping[str, Any], now: float, shift_s: float = 0.0) -> bool:
        """Adds what another process has dumped, as far as it still counts; an instant later than `now` counts as `now`.

        Args:
            dumped: by that process.
            now: seconds since 1970.
            shift_s: how much later this process's clock is than that one's was.

        Returns:
            Whether any of it still counts.

        Raises:
            ValueError: not a dump. Nothing was added.
        """
        try:
            found = [[(at + shift_s, amount + 0.0) for at, amount in dumped[window.name]] for window in self._windows]
        except (KeyError, TypeError, ValueError, OverflowError) as e:
            raise ValueError(f"not a dump of what was spent: {e!r}") from e
        for at, amount in (entry for entries in found for entry in entries):
            if not (-INF < at < INF and 0 <= amount < INF):
                raise ValueError(f"not a dump of what was spent: {amount} at {at}")
        counts = False
        for window, entries in zip(self._windows, found, strict=True):
            if now >= window.until:
                window.roll(now)
            counts = window.load(entries) or counts
        return counts


class _Window:
    """Spending of one kind. Call `roll` once `until` has come, before anything else."""

    __slots__ = ("booked", "current", "length_s", "loaded", "name", "recorded", "total", "until", "width_s")

    def __init__(self, name: str, length_s: float) -> None:
        self.name, self.length_s, self.width_s = name, length_s, length_s / BUCKETS
        self.current = self.until = -INF
        """Start and end of the current bucket."""
        self.booked, self.loaded = dict[float, float](), dict[float, float]()
        """Start of a bucket -> its amount; `booked` is sorted, oldest first."""
        self.recorded = dict[float, float]()
        """Likewise, as in the record that outlives the process."""
        self.total = 0.0

    def roll(self, now: float) -> None:
        """Makes the bucket of `now` the current one, and drops expired buckets."""
        self.current = now // self.width_s * self.width_s
        self.until = self.current + self.width_s
        first = self.current - self.length_s
        self.booked = {at: amount for at, amount in self.booked.items() if at >= first}
        self.loaded = {at: amount for at, amount in self.loaded.items() if at >= first}
        self.total = sum(self.booked.values()) + sum(self.loaded.values())  # summed anew, so that rounding errors do not add up

    def book(self, amount: float) -> None:
        """Adds to the current bucket."""
        self.booked[self.current] = self.booked.get(self.current, 0.0) + amount
        self.total += amount

    def take_back(self, amount: float) -> None:
        """Subtracts the amount from the oldest bookings, as far as there are any."""
        booked = self.booked
        while booked:
            at = next(iter(booked))
            there = booked[at]
            if there > amount:
                booked[at] = there - amount
                self.total = max(0.0, self.total - amount)
                return
            amount -= there
            self.total -= there
            del booked[at]
        self.total = sum(self.loaded.values())

    def advance(self, amounts: dict[float, float], limit: float) -> None:
        """Raises the current bucket's amount by an advance, or to the one recorded before."""
        more = max(0.0, min(limit / AHEAD, sum(amounts.values()), limit - self.total))
        before, booked = self.recorded.get(self.current, 0.0), amounts.get(self.current, 0.0)
        if before or booked:
            amounts[self.current] = before if before >= booked else booked + more

    def load(self, entries: list[tuple[float, float]]) -> bool:
        """Adds amounts of other processes, each at its instant. Returns whether any counts."""
        counts = False
        for instant, amount in entries:
            at = min(instant // self.width_s * self.width_s, self.current)
            if at >= self.current - self.length_s:
                self.loaded[at] = self.loaded.get(at, 0.0) + amount
                self.total += amount
                counts = True
        return counts

    def refusal(self, asked: float, limit: float, now: float) -> Rejection:
        """The rejection of an amount that exceeds the limit."""
        room_at = self.room_at(asked, limit)
        when = "" if room_at is None else f", room again in {span(room_at - now)}"
        text = f"{self.name} = {limit:g} is spent ({self.total:.6g}, {asked:.6g} more asked{when})"
        return Lasting.of(cast("HeldCode", self.name), text, 0.0 if room_at is None else room_at - now)

    def room_at(self, asked: float, limit: float) -> float | None:
        """When the amount will fit if nothing else is spent; None: never."""
        left = self.total
        for at, amount in sorted([*self.booked.items(), *self.loaded.items()]):
            left -= amount
            if left + asked <= limit * _ROUNDING:
                return at + self.length_s + self.width_s
        return None


def span(seconds: float) -> str:
    """Says how long that is, rounded up."""
    for unit, name in ((HOUR_S, "h"), (MINUTE_S, "min")):
        if seconds > 2 * unit:
            return f"{ceil(seconds / unit)} {name}"
    return f"{ceil(seconds)} s"
