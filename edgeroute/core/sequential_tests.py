"""Sequential tests by betting: of one mean against its level, and of two arms against each other; and thresholds to count by."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping
from math import exp, inf
from typing import Any, Final

from edgeroute.core.error_codes_and_texts import DumpOf

# Sequential test of one mean: detects that it exceeds its level, with few false alarms.

# Average number of values to a false alarm: at least this while the mean, given the values before, is within its level.
ALARM: Final = 1e4
_RATES: Final = tuple(0.05 * 18 ** (j / 7) for j in range(8))  # .05 to .9; each is quickest for a difference of its own size
_DRIFT_RATES: Final = tuple(0.01 * 90 ** (j / 7) for j in range(8))  # .01 to .9
MOST: Final = 1e100  # cap of the wealth, far below float overflow


def _wealth(dumped: Any) -> list[float]:
    """Return the wealth of a dump. Raises TypeError or ValueError if it is none."""
    wealth = [had + 0.0 for had in dumped]
    if len(wealth) != len(_RATES) or not all(0 <= had <= MOST for had in wealth):
        raise ValueError(f"{wealth} is no wealth")
    return wealth


class Drift:
    """E-detector for values 0..1 whose mean, given all before, must not exceed a level (Shin et al., 2022).

    At each value a new bet of 1 is made that the mean is higher, and all bets are won or lost by `x - level`. While it is not
    higher, a bet is worth at most 1 on average. So wealth minus the number of values so far does not rise on average (it is a
    supermartingale), and when wealth reaches `alarm`, the number of values so far is at least that on average.

    Values may depend on each other in any way that keeps each one's mean, given those before, within the level. Frames of one
    scene do not: after one that differs the next one is likely to. Values that are fed here are therefore taken far apart.

    Not synchronised: threads that share it need a lock.

    Args:
        level: upper limit of the mean, between 0 and 1, exclusive.
        alarm: evidence at which the alarm goes off, more than 0.

    Attributes:
        level: as passed.
        alarm: as passed.
        count: number of values.
        ones: sum of the values; for zeros and ones, the number of ones.
        alarmed: True once the evidence has reached `alarm`; later values never reset it.

    Raises:
        ValueError: `level` or `alarm` is out of range.
    """

    __slots__ = ("_day", "_today", "_wealth", "alarm", "alarmed", "count", "level", "ones")

    def __init__(self, level: float, *, alarm: float = ALARM) -> None:
        if not (0 < level < 1 and 0 < alarm <= MOST):
            raise ValueError(f"level {level} is not between 0 and 1, or alarm {alarm} not between 0 and {MOST:.0e}")
        self.level: Final = level
        self.count = 0
        self.ones = 0.0
        self.alarmed = False
        self.alarm: Final = alarm
        self._wealth = [0.0] * len(_DRIFT_RATES)
        self._day, self._today = -1, 0

    @property
    def evidence(self) -> float:
        """Wealth of all bets, averaged over their rates: 0 or more."""
        return sum(self._wealth) / len(_DRIFT_RATES)

    def add(self, x: float, day: int | None = None) -> None:
        """Add one value, and update evidence and alarm.

        An alarm stays until the end.

        Args:
            x: the value.
            day: its day. The mean then has to be within the level over whole days only, as in a daily cycle: each value
                counts at once, and as a day begins the alarm is checked and new bets are made, as many as the day before had
                values; none in the first. None: at each value.

        Raises:
            ValueError: it is NaN or outside 0..1. Skipping such values would make the detector blind.
        """
        if not 0 <= x <= 1:
            raise ValueError(f"{x} is not in 0..1")
        if day is None:
            self.bet(x, 1)
            self.look()
            return
        fresh = 0
        if day != self._day:
            self.look()
            self._day, self._today, fresh = day, 0, self._today
        self._today += 1
        self.bet(x, 1, fresh=fresh)

    def bet(self, total: float, count: int, power: float = 1.0, *, fresh: float = 1.0) -> None:
        """Win or lose all bets by the mean of `count` values, each 0..1, of sum `total`; the factor is raised to `power`.

        Counts the values, but does not look at the alarm. `fresh`: amount of a new bet that is made first.
        """
        factors = [(1 + rate * (total / count / self.level - 1)) ** power for rate in _DRIFT_RATES]
        self._wealth = [min(MOST, (had + fresh) * factor) for had, factor in zip(self._wealth, factors, strict=True)]
        self.count += count
        self.ones += total

    def look(self) -> None:
        """Set `alarmed`, for good, if the evidence has reached the limit `alarm`."""
        self.alarmed = self.alarmed or self.evidence >= self.alarm

    def dump(self) -> dict[str, object]:
        """Return the state in JSON types."""
        return {
            "level": self.level, "count": self.count, "ones": self.ones, "alarmed": self.alarmed, "wealth": self._wealth[:],
            "day": [self._day, self._today],
        }  # fmt: skip

    def load(self, dumped: Mapping[str, Any]) -> None:
        """Replace the state by that of a dump; not if that has another level, and so another guarantee.

        Raises:
            ValueError: not a dump.
        """
        with DumpOf("a drift alarm"):
            level, count, ones, alarmed = dumped["level"], dumped["count"], dumped["ones"] + 0.0, dumped["alarmed"]
            wealth, (day, today) = _wealth(dumped["wealth"]), dumped["day"]
            types = type(count) is type(day) is type(today) is int and type(alarmed) is bool
            if not (types and 0 < level < 1 and 0 <= ones <= count < inf):
                raise ValueError(f"{ones} of {count}, {day}, {today}, {alarmed}")
        if level == self.level:
            self._day, self._today = day, today
            self._wealth, self.ones, self.count, self.alarmed = wealth, ones, count, alarmed


# Sequential test of a share that follows the time of day, on values that come in scenes.

_DAY_S: Final = 86_400
MEMORY: Final = 4096  # number of recent values by which the length of scenes is estimated
LONGEST: Final = 128  # most values in a block
_LEAST, _DAYS, _BLOCKS, _LAG, _ALIKE, _CODE = 20, 8, 16, 4, 0.65, 33


def block_length(values: str) -> int:
    """Return the number of successive values whose means, block by block, do not resemble their neighbours' any more.

    Blocks of 1, 2, 4, ... values are tried: twice the longest whose mean differs less from the next one's than from the fourth's,
    or 1. With eight days or more, the mean of each hour is subtracted. `LONGEST` with under 20 ones or zeros, or longer scenes.

    Args:
        values: a character of the code 33 + 2 * hour + value (0 or 1) for each, oldest first.
    """
    codes = [(ord(value) - _CODE) % 48 for value in values]
    ones, hours = sum(code % 2 for code in codes), [code // 2 for code in codes]
    if min(ones, len(codes) - ones) < _LEAST:
        return LONGEST
    usual = [0.0] * 24
    if sum(hours[i] < hours[i - 1] for i in range(1, len(hours))) >= _DAYS:
        usual = [codes.count(2 * hour + 1) / max(1, hours.count(hour)) for hour in range(24)]
    rest = [code % 2 - usual[code // 2] for code in codes]
    longest, size = 0, 1
    while size < LONGEST and len(rest) >= _BLOCKS * size:
        sums = [sum(rest[i : i + size]) for i in range(0, len(rest) - size + 1, size)]
        near, far = (sum((b - a) ** 2 for a, b in zip(sums, sums[k:], strict=False)) / (len(sums) - k) for k in (1, _LAG))
        longest = size if near < _ALIKE * far else longest
        size *= 2
    return LONGEST if 2 * longest >= size else max(1, 2 * longest)


class ShareTest:
    """Test that a share stays within an interval, while its rate may follow the time of day and the values come in scenes.

    Bets begin at the end of a day and are looked at then. Over whole days the product of 1 + rate * (x / level - 1) is at most 1
    on average if the mean over the day is within the level: a geometric mean is no more than the arithmetic one. The values of a
    scene depend on each other, so a bet is on the mean of a block as long as scenes are (`block_length`), to the power 1/2: the
    blocks of even and of odd number are independent, and each make such a product (Hoelder's inequality). Thus while nothing
    changes, an alarm is at least `ALARM` days away on average.

    Not synchronised: threads that share it need a lock.

    Args:
        low: lower limit of the share; not tested if 0.
        high: upper limit; not tested if 1.
        independent: the values are independent and have the same rate at any time, so that each is looked at.

    Attributes:
        tests: "more": that the share exceeds `high`, "fewer": that it is below `low`; those that are tested.
    """

    __slots__ = ("_block", "_count", "_day", "_due", "_independent", "_ones", "_values", "tests")

    def __init__(self, low: float, high: float, *, independent: bool = False) -> None:
        self.tests: Final = {name: Drift(level) for name, level in (("more", high), ("fewer", 1 - low)) if 0 < level < 1}
        self._independent = independent
        self._day, self._due, self._block, self._count, self._ones, self._values = -1, False, LONGEST, 0, 0, ""

    def add(self, *, one: bool, time_s: float) -> None:
        """Add a value of that time, seconds since 1970, to the present block; a full block is first bet on, and a new one begun.

        As a day begins, the length of blocks is estimated anew from recent values, and the next bet looks at the alarms and makes
        a new bet of 1. With `independent` each value is a block, and each bet does so.
        """
        day, second = divmod(int(time_s), _DAY_S)
        if day != self._day:
            self._day, self._due, self._block = day, self._day >= 0, int(self._independent) or block_length(self._values)
        if self._count >= self._block:
            fresh = self._due or self._independent
            for name, test in self.tests.items():
                if fresh:
                    test.look()
                hits = self._ones if name == "more" else self._count - self._ones
                test.bet(hits, self._count, 1.0 if self._count == 1 else 0.5, fresh=fresh)
            self._due, self._count, self._ones = False, 0, 0
        self._count, self._ones = self._count + 1, self._ones + one
        self._values = (self._values + chr(_CODE + 2 * (second // 3600) + one))[-MEMORY:]

    def dump(self) -> dict[str, object]:
        """Return the state in JSON types."""
        state = [self._day, self._due, self._count, self._ones, self._values]
        return {"tests": {name: test.dump() for name, test in self.tests.items()}, "state": state}

    def load(self, dumped: Mapping[str, Any]) -> None:
        """Replace the state by that of a dump; a test of another level than the dump's keeps its own.

        Raises:
            ValueError: not a dump; the tests may have been loaded from it.
        """
        with DumpOf("a test of a share"):
            day, due, count, ones, values = dumped["state"]
            block = int(self._independent) or block_length(values)
            if not (type(day) is type(count) is type(ones) is int and 0 <= ones <= count and type(due) is bool):
                raise ValueError(f"{day}, {due}, {ones} of {count}")
            for name, test in self.tests.items():
                test.load(dumped["tests"][name])
        self._day, self._due, self._block, self._count, self._ones, self._values = day, due, block, count, ones, values


# Thresholds for which audits are counted, on each device, for certificates that are valid at every look.

# Thresholds that are tested, ascending, the same for each device: by logit between 0 and 1, geometric beyond. They are also dense
# near 0.5, below which learned scores and predictions of texts have those that the edge answers as well as the cloud.
GRID: Final = tuple(
    sorted(
        {round(1 / (1 + exp(-k / 32)), 12) for k in (*range(-96, 97), *range(98, 481, 2), *range(-128, -96, 2))}
        | {round(0.5 + sign * 10 ** (-k / 20) / 2, 12) for k in range(4, 60) for sign in (-1, 1)}
        | {0.0, *(round(10 ** (k / 40), 9) for k in range(80)), *(-round(10 ** (k / 20), 9) for k in range(-80, 40))}
    )
)


def grid_index(confidence: float | None) -> int:
    """Return the index of the highest threshold of `GRID` that accepts a confidence; -1: none does, or it is None or NaN."""
    return -1 if confidence is None or confidence != confidence else bisect_right(GRID, confidence) - 1  # noqa: PLR0124


# Sequential test of two arms: detects that the rate of something bad is higher in B than in A, valid at any time.


class ArmTest:
    """Test by betting that B's mean exceeds A's by no more than a margin (Waudby-Smith and Ramdas, 2024), on values 0..1.

    Values that came since the last bet are averaged in each arm, a and b; once both have some, y = (1 + b - a) / 2 is bet on. If
    the mean of b is at most that of a plus the margin, that of y is at most m = (1 + margin) / 2. So wealth that began at 1 does
    not grow on average, and ever reaches 1 / alpha with probability alpha at most (Ville's inequality): the test may be read
    after each value, and stopped at any time. The arm of a request must not depend on its value, as where a hash draws it.

    Not synchronised: threads that share it need a lock.

    Args:
        margin: by how much B may be worse, 0..1, exclusive of 1.
        alpha: probability of a false alarm, over all time; more than 0, less than 1.

    Raises:
        ValueError: `margin` or `alpha` is out of range.
    """

    __slots__ = ("_a", "_b", "_limit", "_mean", "_wealth", "alarmed", "pairs")

    def __init__(self, margin: float, alpha: float) -> None:
        if not (0 <= margin < 1 and 0 < alpha < 1):
            raise ValueError(f"margin {margin} is not in 0..1, or alpha {alpha} not between 0 and 1")
        self._mean: Final = (1 + margin) / 2
        self._limit: Final = 1 / alpha
        self._wealth = [1.0] * len(_RATES)
        self._a, self._b = [0.0, 0.0], [0.0, 0.0]  # count and sum since the last bet
        self.pairs = 0  # number of bets
        self.alarmed = False  # True once the wealth has reached 1 / alpha

    @property
    def p(self) -> float:
        """Anytime-valid p-value: one over the wealth, 1 at most. The wealth is the present one, so that p may rise again."""
        return 1.0 if self.wealth <= 1 else 1 / self.wealth

    @property
    def wealth(self) -> float:
        """Present wealth of all bets, averaged over their rates; 1 before the first."""
        return sum(self._wealth) / len(_RATES)

    def dump(self) -> dict[str, object]:
        """Return the state in JSON types."""
        return {"wealth": self._wealth[:], "pairs": self.pairs, "alarmed": self.alarmed}

    def load(self, dumped: Mapping[str, Any]) -> None:
        """Replace the state by that of a dump.

        The half-filled pair of arms is not part of a dump; its values so far stay.

        Raises:
            ValueError: not a dump.
        """
        with DumpOf("a test of arms"):
            wealth, pairs, alarmed = _wealth(dumped["wealth"]), dumped["pairs"], dumped["alarmed"]
            if type(pairs) is not int or type(alarmed) is not bool:
                raise ValueError(f"{pairs}, {alarmed}")
        self._wealth, self.pairs, self.alarmed = wealth, pairs, alarmed

    def add(self, x: float, *, b: bool) -> None:
        """Add a value, 0..1, of arm B or of A; once both arms have values, bet on their means and begin the next pair.

        An alarm stays until the end.
        """
        arm = self._b if b else self._a
        arm[0] += 1
        arm[1] += x
        if not (self._a[0] and self._b[0]):
            return
        over = (1 + self._b[1] / self._b[0] - self._a[1] / self._a[0]) / 2 / self._mean - 1
        self._a, self._b = [0.0, 0.0], [0.0, 0.0]
        self._wealth = [min(MOST, had * (1 + rate * over)) for had, rate in zip(self._wealth, _RATES, strict=True)]
        self.pairs += 1
        self.alarmed = self.alarmed or self.wealth >= self._limit


EACH: Final = 8  # number of values of a unit whose mean is bet on
PERIOD: Final = 1000  # number of values in the first period of a `UnitArmTest`; each further one has twice as many
UNITS: Final = 2000  # most units that bet in a period; later ones are left out


class UnitArmTest:
    """Test as of `ArmTest` for values that come in units, such as users, of which each is in one arm.

    The values of a unit depend on each other, and units differ, so a unit is one observation. In each period it bets at most
    twice, in two tests whose wealths are averaged: with its first value, and with the mean of its first `EACH`. Each period
    begins anew, so that a change is seen also of units that have bet; the first has half of the risk, each further one half of
    the rest.

    Not synchronised: threads that share it need a lock.

    Args:
        margin: by how much the mean of B's units may exceed that of A's, 0..1, exclusive of 1.
        alpha: probability of a false alarm, over all time; more than 0, less than 1.

    Raises:
        ValueError: `margin` or `alpha` is out of range.
    """

    __slots__ = ("_alpha", "_margin", "_period", "_tests", "_units", "_values", "alarmed")

    def __init__(self, margin: float, alpha: float) -> None:
        self._margin, self._alpha = margin, alpha
        self.alarmed = False  # True once the evidence of a period suffices
        self._begin(0)

    def _begin(self, period: int) -> None:
        """Begin a period, by its number, with two new tests: no unit has bet, and evidence so far is dropped."""
        self._period, self._values = period, 0
        self._units: dict[str, list[float]] = {}
        self._tests = ArmTest(self._margin, self._alpha), ArmTest(self._margin, self._alpha)

    @property
    def p(self) -> float:
        """Anytime-valid p-value of this period, with its part of the risk; 1 at most."""
        wealth, factor = (self._tests[0].wealth + self._tests[1].wealth) / 2, 2.0 ** (self._period + 1)
        return 1.0 if wealth <= factor else factor / wealth

    def add(self, x: float, *, b: bool, unit: str) -> None:
        """Add a value, 0..1, of a unit in arm B or A, and bet if it is the unit's first in this period or completes its mean.

        Begins the next period once this one is full. Values after a unit's first `EACH`, and units after the first `UNITS`, are
        left out. Sets the alarm for good once the p-value is at most `alpha`.
        """
        if self._values >= PERIOD * 2**self._period:
            self._begin(self._period + 1)
        self._values += 1
        if len(self._units) >= UNITS and unit not in self._units:
            return
        sums = self._units.setdefault(unit, [0.0, 0.0])
        if sums[0] >= EACH:
            return
        sums[0] += 1
        sums[1] += x
        if sums[0] == 1:
            self._tests[0].add(x, b=b)
        if sums[0] == EACH:
            self._tests[1].add(sums[1] / EACH, b=b)
        self.alarmed = self.alarmed or self.p <= self._alpha

    def dump(self) -> dict[str, object]:
        """Return the state in JSON types."""
        tests, units = [test.dump() for test in self._tests], {unit: sums[:] for unit, sums in self._units.items()}
        return {"period": self._period, "values": self._values, "units": units, "tests": tests, "alarmed": self.alarmed}

    def load(self, dumped: Mapping[str, Any]) -> None:
        """Replace the state by that of a dump.

        Raises:
            ValueError: not a dump; the state is that of a new test, or in part that of the dump.
        """
        with DumpOf("a test of units"):
            period, values, alarmed = dumped["period"], dumped["values"], dumped["alarmed"]
            units = {str(unit): [count + 0.0, total + 0.0] for unit, (count, total) in dumped["units"].items()}
            if not (type(period) is type(values) is int and 0 <= period < 64 and type(alarmed) is bool):  # noqa: PLR2004 - 2**64 values
                raise ValueError(f"{period}, {values}, {alarmed}")
            self._begin(period)
            for test, state in zip(self._tests, dumped["tests"], strict=True):
                test.load(state)
        self._values, self._units, self.alarmed = values, units, alarmed
