"""Estimates from what was measured: latencies, links, load, energy; and which encoding is sent. The clock is passed in."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from math import exp, inf, isfinite, log, sqrt
from typing import Any, Final, NamedTuple, TypeAlias

from edgeroute.core.policy import INF

# Latency sketch: decaying quantiles in constant memory.

ERROR = 0.02
"""Relative error of a quantile."""
LOWEST_S, HIGHEST_S = 1e-6, 1e3
HALF_LIFE = 1_000
"""Half-life of a value, in newer values."""

_WIDTH = log((1 + ERROR) / (1 - ERROR))
_SCALE, _SHIFT = 1 / _WIDTH, -log(LOWEST_S) / _WIDTH
_BUCKETS = int((log(HIGHEST_S) - log(LOWEST_S)) / _WIDTH) + 2
_GROWTH = 2 ** (1 / HALF_LIFE)


class Latency:
    """Log-spaced buckets with exponential decay (Masson, Rim and Lee, "DDSketch", 2019).

    Not synchronised: threads that share it need a lock.
    """

    __slots__ = ("_buckets", "_total", "_weight", "count")

    def __init__(self) -> None:
        self.count = 0
        self._buckets = [0.0] * _BUCKETS
        self._total = 0.0
        self._weight = 1.0

    def add(self, seconds: float) -> None:
        """Adds one latency. Values outside 1 us .. 1,000 s are clipped."""
        i = int(log(seconds) * _SCALE + _SHIFT) if seconds > LOWEST_S else 0
        weight = self._weight
        self._buckets[i if i < _BUCKETS else _BUCKETS - 1] += weight
        self._total += weight
        self.count += 1
        self._weight = weight * _GROWTH  # newer values weigh more, which is equivalent to decaying the older ones
        if weight > 1e100:  # noqa: PLR2004 - long before a float overflows
            self._buckets = [b / weight for b in self._buckets]
            self._total /= weight
            self._weight = _GROWTH

    def quantile(self, q: float) -> float | None:
        """Latency quantile in seconds: the share `q` (0..1) of values does not exceed it; None before the first value."""
        if not self.count:
            return None
        goal, seen, last = q * self._total, 0.0, 0
        for i, weight in enumerate(self._buckets):
            if weight:
                seen, last = seen + weight, i
                if seen >= goal:
                    break
        return _middle(last)

    def longest(self, values: int) -> float | None:
        """The longest of about the last `values`, seconds; None before the first."""
        least = self._weight / 2 ** (values / HALF_LIFE)
        last = max((i for i, weight in enumerate(self._buckets) if weight >= least), default=None)
        return None if last is None else _middle(last)

    def share_above(self, seconds: float) -> float | None:
        """Share of values (0..1) above `seconds`, with relative error ERROR in `seconds`; None before the first value."""
        if not self.count:
            return None
        if seconds >= HIGHEST_S:
            return 0.0
        place = log(max(seconds, LOWEST_S)) * _SCALE + _SHIFT
        i = int(place)  # values are assumed to be uniform within this bucket
        longer = sum(self._buckets[i + 1 :]) + self._buckets[i] * (1 - (place - i))
        return min(1.0, longer / self._total)

    def copy(self) -> Latency:
        """An independent copy."""
        other = Latency()
        other.count, other._buckets = self.count, self._buckets[:]
        other._total, other._weight = self._total, self._weight
        return other

    def dump(self) -> dict[str, object]:
        """JSON-serialisable state: the number of values, and [seconds, weight]... as of now."""
        values = [[_middle(i), weight / self._weight] for i, weight in enumerate(self._buckets) if weight]
        return {"count": self.count, "values": values}

    @classmethod
    def load(cls, dumped: Mapping[str, Any]) -> Latency:
        """Restores a dumped sketch.

        Raises:
            ValueError: not a dump.
        """
        sketch = cls()
        try:
            for seconds, weight in dumped["values"]:
                if not (0 < seconds < inf and 0 < weight < inf):
                    raise ValueError(f"{weight} times {seconds}")  # noqa: TRY301 - one message for all that may be wrong
                sketch._weight = weight
                sketch.add(seconds)
            known, sketch.count = sketch.count, int(dumped["count"])
            if sketch.count < known or (sketch.count and not known):
                raise ValueError(f"{sketch.count} values in {known} buckets")  # noqa: TRY301 - the same
        except (KeyError, TypeError, ValueError, OverflowError) as e:
            raise ValueError(f"not a dump of latencies: {e!r}") from e
        sketch._weight = 1.0
        return sketch


def _middle(bucket: int) -> float:
    return exp((bucket - _SHIFT) * _WIDTH) * (1 + ERROR)  # at most ERROR from both ends


# Elementwise minimum and maximum, of floats or arrays, so that one rule serves one device and a simulated fleet.

Numbers: TypeAlias = Any
"""A float, or an array of floats; of booleans where a rule decides yes or no."""


def least(a: Numbers, b: Numbers) -> Numbers:
    """The minimum; `a` is an array if `b` is."""
    return a.clip(max=b) if hasattr(a, "clip") else min(a, b)


def most(a: Numbers, b: Numbers) -> Numbers:
    """The maximum; `a` is an array if `b` is."""
    return a.clip(min=b) if hasattr(a, "clip") else max(a, b)


# Energy of an edge's runs, fitted from the device's power and the time that was spent in runs.

FADING: Final = 0.99
"""Weight of a reading, relative to the next one's: the last hundred or so count."""
ENOUGH_READINGS: Final = 20
"""Readings below which nothing is said."""
MOST_W: Final = 1e6
"""A reading further from 0 than this, or NaN, is a fault of the sensor: one alone would stay in the sums."""
CERTAIN: Final = 3.0
"""The fitted power is told once it is so many standard errors above 0."""


class PowerFit:
    """Weighted least squares of `power = idle + extra * busy`, in constant memory.

    Not synchronised: threads that share it need a lock.
    """

    __slots__ = ("_p", "_pp", "_pu", "_u", "_uu", "_weight", "readings")

    def __init__(self) -> None:
        self.readings = 0
        self._weight = self._u = self._uu = self._pu = self._pp = 0.0
        self._p = 0.0

    def add(self, power_w: float, busy: float) -> None:
        """Adds a reading of the power, watts, and the seconds of runs for each second since the one before."""
        if not -MOST_W < power_w < MOST_W:
            return
        self.readings += 1
        self._weight = FADING * self._weight + 1.0
        self._u = FADING * self._u + busy
        self._p = FADING * self._p + power_w
        self._uu = FADING * self._uu + busy * busy
        self._pu = FADING * self._pu + power_w * busy
        self._pp = FADING * self._pp + power_w * power_w

    @property
    def extra_w(self) -> float | None:
        """Power that a run takes beside what the device takes anyway, watts; None: not known well enough."""
        n = self._weight
        if self.readings < ENOUGH_READINGS:
            return None
        uu = self._uu - self._u * self._u / n
        pu = self._pu - self._p * self._u / n
        pp = self._pp - self._p * self._p / n
        if uu <= 1e-9 * max(1.0, self._uu):  # the edge was always as busy: the readings say nothing of its share
            return None
        slope = pu / uu
        error = sqrt(max(0.0, pp - slope * pu) / (n - 2.0) / uu)
        return slope if slope > 0 and slope >= CERTAIN * error else None


def break_even(edge_j: float, cloud_j: float) -> float:
    """The share of deferred requests, 0..1, below which the edge first takes less energy than the cloud alone; 0: never."""
    return max(0.0, 1.0 - edge_j / cloud_j) if cloud_j > 0 else 0.0


# Quality ladder: which of several encodings of an input is sent, by the time that each is predicted to take.

LADDER_SHARE = 0.8
"""Share of the time that is left which a call is predicted to take at most: predictions are of the mean call."""


FEWEST_TRANSFERS, MOST_TRANSFERS = 8, 128
"""Calls in time after which a better encoding is tried again: at first, and after it was late again and again."""


def pick(took_s: Sequence[float], left_s: float, best: int = 0) -> int:
    """The first encoding, best first, whose call is predicted to end in time; the last one, if none is.

    Args:
        took_s: seconds that a call with each takes by prediction; NaN: it is not to be had. Not empty.
        left_s: seconds until the deadline; -inf: the last one.
        best: no better one is tried.
    """
    return next((i for i, one_s in enumerate(took_s) if i >= best and one_s <= LADDER_SHARE * left_s), len(took_s) - 1)


def seconds(size: float, call_s: float, bytes_per_s: float) -> float:
    """Predicted time of a call with so many bytes: `call_s` without any."""
    return call_s + size / bytes_per_s


class Ceiling:
    """The best encoding that is tried, after calls came late against the prediction, as where a link has just become slow.

    Threads may share it: what is lost by a race is one call's worth.

    Attributes:
        best: its number.
    """

    __slots__ = ("_in_time", "_need", "best")

    def __init__(self) -> None:
        self.best = self._in_time = 0
        self._need = FEWEST_TRANSFERS

    def ended(self, i: int, *, late: bool) -> None:
        """A call with encoding number `i` was late, or in time."""
        if late:
            if i >= self.best:
                self.best, self._need = i + 1, min(2 * self._need, MOST_TRANSFERS)
            self._in_time = 0
            return
        self._in_time += 1
        if self.best and self._in_time >= self._need:
            self.best, self._in_time = self.best - 1, 0
        elif not self.best and self._in_time >= FEWEST_TRANSFERS:
            self._need = FEWEST_TRANSFERS


# Link: an endpoint's time of a call and the bandwidth to it, fitted to real calls.

LEAST = 8
"""Calls before a bandwidth is told."""
SHARE = 0.02
"""Weight of the newest call once there are 50: the estimate follows a link that changes."""
LEAST_SLOPE = 1e-15
"""Seconds a byte: what is faster is no link."""
SURE = 4.0
"""Least ratio of the fitted slope to its standard error: below it, bytes do not explain what calls take."""


class Link:
    """Seconds of a call as a line over the bytes of its bodies: least squares with exponential decay.

    Threads that add need a lock; reading needs none.
    """

    __slots__ = ("_bb", "_bs", "_bytes", "_seconds", "_ss", "count")

    def __init__(self) -> None:
        self.count = 0
        self._bytes = self._seconds = 0.0
        """Decaying means."""
        self._bb = self._bs = self._ss = 0.0
        """Decaying variances and covariance."""

    def add(self, size: int, seconds: float) -> None:
        """Adds a call that succeeded: bytes of its bodies in both directions, and how long it took."""
        self.count += 1
        share = max(1 / self.count, SHARE)
        off, late = size - self._bytes, seconds - self._seconds
        self._bytes += share * off
        self._seconds += share * late
        rest = 1 - share
        self._bb = rest * (self._bb + share * off * off)
        self._bs = rest * (self._bs + share * off * late)
        self._ss = rest * (self._ss + share * late * late)

    @property
    def bytes_per_s(self) -> float | None:
        """Bandwidth of bodies, both directions together; None: too few calls, or their sizes do not explain their times."""
        bb, bs, ss = self._bb, self._bs, self._ss  # once: another thread may add a call
        if self.count < LEAST or bb <= 0 or bs <= bb * LEAST_SLOPE:
            return None
        slope, count = bs / bb, min(self.count, 1 / SHARE)
        left = max(0.0, ss - bs * slope)  # what the line does not explain
        if slope * bs * (count - 2) < SURE * SURE * left:
            return None
        return 1 / slope

    @property
    def call_s(self) -> float | None:
        """Time of a call but for its bytes, with the endpoint's work; without a bandwidth the mean; None: there was no call."""
        if not self.count:
            return None
        speed = self.bytes_per_s
        return self._seconds if speed is None else max(0.0, self._seconds - self._bytes / speed)

    def predicted_s(self, size: float) -> float:
        """Seconds of a call with so many bytes; inf before the first one.

        Until a bandwidth is known, as if a call's time were all of it its bytes': that is too long rather than too short.
        """
        speed, call_s = self.bytes_per_s, self.call_s
        if call_s is None:
            return inf
        if speed is not None:
            return seconds(size, call_s, speed)
        return self._seconds * max(1.0, size / self._bytes) if self._bytes > 0 else inf

    def dump(self) -> list[float]:
        """JSON-serialisable state."""
        return [self.count, self._bytes, self._seconds, self._bb, self._bs, self._ss]

    @classmethod
    def load(cls, dumped: Any) -> Link:
        """Restores a dumped one.

        Raises:
            ValueError: not a dump.
        """
        link = cls()
        try:
            values = [float(value) for value in dumped]
            count, link._bytes, link._seconds, link._bb, link._bs, link._ss = values
        except (TypeError, ValueError, OverflowError) as e:
            raise ValueError(f"not a dump of a link: {e!r}") from e
        if isinstance(dumped, str | Mapping) or not all(map(isfinite, values)) or min(values[:4]) < 0 or link._ss < 0:
            raise ValueError(f"not a dump of a link: {dumped!r}")
        link.count = int(count)
        return link


# Load of an endpoint, as its replies report it, and what of the deferrals is kept on the edge for it. The clock is passed in.
#
# The share of deferrals that is kept grows in proportion to the load, from `FROM` on:
#
# > share = MOST * min(1, max(0, (load - FROM) / SPAN))
#
# so the fleet settles where what is left fits, and a tenth is always sent, which brings the next report. The least unsure are
# kept: thresholds are lowered by the quantile `share` of how far recent deferred answers were below their own. Of answers that
# are all equally far none is kept.

FROM: Final = 0.8
"""Load from which optional calls are skipped, and deferrals kept."""
SPAN: Final = 0.4
MOST: Final = 0.9
"""Largest share of the deferrals that is kept."""
STEP: Final = 0.05
"""The share is a multiple of this, so that plans are not made again for nothing."""
HALF_S: Final = 30.0
"""Half-life of a report, seconds."""
STALE_S: Final = 300.0
"""Age from which the last report says nothing."""
CAP: Final = 4.0
"""Largest load that is believed."""
QUEUE_S: Final = 1.0
"""A wait of so many seconds in the endpoint's queue counts as much as being fully used."""
ENOUGH_DEFERRED: Final = 16
"""Deferred answers before any is kept."""


class Report(NamedTuple):
    """What an endpoint says of its load."""

    utilization: float
    """Used share of its capacity; above 1: it is overloaded."""
    queue_s: float = 0.0
    """How long a request waits there, seconds."""

    @property
    def load(self) -> float:
        """Both as one number, 0 to `CAP`; what cannot be counts as nothing."""
        used, waits = (value if isfinite(value) and value > 0 else 0.0 for value in self)
        return min(CAP, used + waits / QUEUE_S)


def faded(load: Numbers, age_s: Numbers) -> Numbers:
    """What is left of a load after so long without a report: halved each `HALF_S`, and 0 from `STALE_S` on."""
    return load * _left(age_s)


def averaged(load: Numbers, age_s: Numbers, reported: Numbers) -> Numbers:
    """The load after a report, so long after the last one. It counts a quarter at least: a burst is not older than its end."""
    return load + (least(reported, CAP) - load) * most(1 - _left(age_s), 0.25)


def kept(load: Numbers) -> Numbers:
    """Share of the deferrals to be kept on the edge at this load: 0 to `MOST`, and never less at a higher load."""
    return (most(least((load - FROM) / SPAN * MOST, MOST), 0.0) / STEP + 1e-9) // 1 * STEP


def _left(age_s: Numbers) -> Numbers:
    return (age_s < STALE_S) * 0.5 ** (most(age_s, 0.0) / HALF_S)


class Load:
    """An average of reports that weighs them by age, and fades while none come. Not synchronised."""

    __slots__ = ("_at", "_value")

    def __init__(self) -> None:
        self._value, self._at = 0.0, -INF

    def add(self, load: float, now: float) -> bool:
        """Adds a report's load at an instant; what is not a number of at least 0 is ignored.

        Returns whether another share of the deferrals is kept by it.
        """
        if not (isfinite(load) and load >= 0):
            return False
        before = kept_share(self.at(now))
        self._value, self._at = averaged(self._value, now - self._at, load), max(now, self._at)
        return kept_share(self.at(now)) != before

    def at(self, now: float) -> float:
        """The load at an instant; 0: none was reported, or long ago."""
        return float(faded(self._value, now - self._at))


def kept_share(load: float) -> float:
    """`kept`, of a number that may be none."""
    return round(float(kept(load)), 2) if load > FROM else 0.0


def slack(deficits: Iterable[float], share: float) -> float:
    """How far thresholds are lowered to keep this share of the deferrals: at most as far as recent ones were below theirs.

    Args:
        deficits: how far recent deferred answers were below their thresholds, each 0 or more; of a lowered threshold, what was
            kept for it counts like what was deferred.
        share: to be kept, 0..1.
    """
    known: Sequence[float] = sorted(value for value in deficits if isfinite(value) and value >= 0)
    if len(known) < ENOUGH_DEFERRED or share <= 0:
        return 0.0
    last = min(len(known), int(share * len(known) + 1e-9)) - 1
    while 0 <= last < len(known) - 1 and known[last] == known[last + 1]:  # all that are as far would be kept, which is too many
        last -= 1
    return known[last] if last >= 0 else 0.0
