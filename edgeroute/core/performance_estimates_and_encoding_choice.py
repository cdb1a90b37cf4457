"""Estimates from measurements: latencies, energy, links, load; and the choice of an encoding. The clock is passed in.

`Latency` (decaying quantiles), `PowerFit` (energy of a run), `pick` and `Ceiling` (which encoding is sent), `Link` (time of a
call by its bytes), `Load` and `slack` (load of an endpoint, and deferrals kept on the edge for it).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from math import exp, inf, isfinite, log, sqrt
from typing import Any, Final, NamedTuple, TypeAlias

from edgeroute.core.error_codes_and_texts import DumpOf
from edgeroute.core.policy_egress_and_options import INF

# Latency sketch: decaying quantiles in constant memory.

ERROR = 0.02  # relative error of a quantile
LOWEST_S, HIGHEST_S = 1e-6, 1e3  # limits to which latencies are clipped
HALF_LIFE = 1_000  # half-life of a value, in newer values

_WIDTH = log((1 + ERROR) / (1 - ERROR))
_SCALE, _SHIFT = 1 / _WIDTH, -log(LOWEST_S) / _WIDTH
_BUCKETS = int((log(HIGHEST_S) - log(LOWEST_S)) / _WIDTH) + 2
_GROWTH = 2 ** (1 / HALF_LIFE)


class Latency:
    """Decaying quantiles of latencies in log-spaced buckets (Masson, Rim and Lee, "DDSketch", 2019).

    Not synchronised: threads that share it need a lock.
    """

    __slots__ = ("_buckets", "_total", "_weight", "count")

    def __init__(self) -> None:
        self.count = 0
        self._buckets: dict[int, float] = {}  # number of a bucket -> weight of its values
        self._total = 0.0
        self._weight = 1.0

    def add(self, seconds: float) -> None:
        """Add one latency, clipped to 1 us .. 1,000 s; older values lose half of their weight in `HALF_LIFE` newer ones."""
        i = int(log(seconds) * _SCALE + _SHIFT) if seconds > LOWEST_S else 0
        weight, buckets = self._weight, self._buckets
        if i >= _BUCKETS:
            i = _BUCKETS - 1
        buckets[i] = buckets.get(i, 0.0) + weight
        self._total += weight
        self.count += 1
        self._weight = weight * _GROWTH  # newer values weigh more, which is equivalent to decaying the older ones
        if weight > 1e100:  # noqa: PLR2004 - long before a float overflows
            self._buckets = {i: b / weight for i, b in buckets.items()}
            self._total /= weight
            self._weight = _GROWTH

    def quantile(self, q: float) -> float | None:
        """Return the quantile `q` (0..1), seconds: the middle of the bucket that it falls in; None before the first value."""
        if not self.count:
            return None
        goal, seen, last = q * self._total, 0.0, 0
        for last in sorted(self._buckets):
            seen += self._buckets[last]
            if seen >= goal:
                break
        return _middle(last)

    def longest(self, values: int) -> float | None:
        """Return the longest of about the last `values`, seconds; None before the first."""
        least = self._weight / 2 ** (values / HALF_LIFE)
        last = max((i for i, weight in self._buckets.items() if weight >= least), default=None)
        return None if last is None else _middle(last)

    def share_above(self, seconds: float) -> float | None:
        """Return the share of values (0..1) above `seconds`, with relative error ERROR in `seconds`; None without values.

        0 from `HIGHEST_S` on.
        """
        if not self.count:
            return None
        if seconds >= HIGHEST_S:
            return 0.0
        place = log(max(seconds, LOWEST_S)) * _SCALE + _SHIFT
        i = int(place)  # values are assumed to be uniform within this bucket
        longer = self._buckets.get(i, 0.0) * (1 - (place - i))
        longer += sum(weight for bucket, weight in self._buckets.items() if bucket > i)
        return min(1.0, longer / self._total)

    def copy(self) -> Latency:
        """Return an independent copy."""
        other = Latency()
        other.count, other._buckets = self.count, {**self._buckets}
        other._total, other._weight = self._total, self._weight
        return other

    def dump(self) -> dict[str, object]:
        """Return the state in JSON types: the number of values, and [seconds, weight]... as of now."""
        values = [[_middle(i), weight / self._weight] for i, weight in sorted(self._buckets.items())]
        return {"count": self.count, "values": values}

    @classmethod
    def load(cls, dumped: Mapping[str, Any]) -> Latency:
        """Return a sketch restored from a dump.

        Raises:
            ValueError: not a dump.
        """
        sketch = cls()
        with DumpOf("latencies"):
            for seconds, weight in dumped["values"]:
                if not (0 < seconds < inf and 0 < weight < inf):
                    raise ValueError(f"{weight} times {seconds}")
                sketch._weight = weight
                sketch.add(seconds)
            known, sketch.count = sketch.count, int(dumped["count"])
            if sketch.count < known or (sketch.count and not known):
                raise ValueError(f"{sketch.count} values in {known} buckets")
        sketch._weight = 1.0
        return sketch


def _middle(bucket: int) -> float:
    """Return the latency that stands for a bucket, seconds."""
    return exp((bucket - _SHIFT) * _WIDTH) * (1 + ERROR)  # at most ERROR from both ends


# Elementwise minimum and maximum of floats or arrays, so that one rule serves one device and a simulated fleet.

Numbers: TypeAlias = Any  # a float, or an array of floats; of bools if a rule decides yes or no


def least(a: Numbers, b: Numbers) -> Numbers:
    """Return the elementwise minimum; `a` is an array if `b` is."""
    return a.clip(max=b) if hasattr(a, "clip") else min(a, b)


def most(a: Numbers, b: Numbers) -> Numbers:
    """Return the elementwise maximum; `a` is an array if `b` is."""
    return a.clip(min=b) if hasattr(a, "clip") else max(a, b)


# Energy of an edge's runs, fitted from the device's power and the time spent in runs.

FADING: Final = 0.99  # weight of a reading, relative to the next one's: the last hundred or so count
ENOUGH_READINGS: Final = 20  # minimum number of readings for an estimate
MOST_W: Final = 1e6  # a reading further from 0 than this, or NaN, is a fault of the sensor: one alone would stay in the sums
CERTAIN: Final = 3.0  # minimum ratio of the fitted power to its standard error for an estimate


class PowerFit:
    """Weighted least squares of `power = idle + extra * busy`, in constant memory.

    Not synchronised: threads that share it need a lock.
    """

    __slots__ = ("_p", "_pp", "_pu", "_u", "_uu", "_weight", "readings")

    def __init__(self) -> None:
        self.readings = 0
        self._weight = self._u = self._p = self._uu = self._pu = self._pp = 0.0

    def add(self, power_w: float, busy: float) -> None:
        """Add a reading of the power, watts, and the seconds of runs per second since the reading before; fade older ones.

        NaN and powers beyond `MOST_W` of either sign are ignored.
        """
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
        """Power that a run takes beside the device's idle power, watts; None: not known well enough.

        None below `ENOUGH_READINGS`, if the edge was always as busy, and if the slope is not positive or within `CERTAIN` times
        its error.
        """
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
    """Return the share of deferred requests, 0..1, below which edge first takes less energy than the cloud alone; 0: never."""
    return max(0.0, 1.0 - edge_j / cloud_j) if cloud_j > 0 else 0.0


# Quality ladder: choice of an input's encoding by the predicted time of each.

LADDER_SHARE = 0.8  # share of the remaining time that a call may be predicted to take: predictions are of the mean call


FEWEST_TRANSFERS, MOST_TRANSFERS = 8, 128  # calls in time after which a better encoding is tried again: at first, and at most


def pick(took_s: Sequence[float], left_s: float, best: int = 0) -> int:
    """Return the number of the first encoding, best first, whose call is predicted to end in time; of the last one, if none is.

    Args:
        took_s: predicted seconds of a call with each; NaN: not available. Not empty.
        left_s: seconds until the deadline; -inf: the last one.
        best: number of the best encoding to consider.
    """
    return next((i for i, one_s in enumerate(took_s) if i >= best and one_s <= LADDER_SHARE * left_s), len(took_s) - 1)


def seconds(size: float, call_s: float, bytes_per_s: float) -> float:
    """Return the predicted time of a call with `size` bytes: `call_s` is that without any."""
    return call_s + size / bytes_per_s


class Ceiling:
    """Best encoding to try, lowered when calls come late against the prediction, as on a link that has just become slow.

    Threads may share it: a race loses one call's worth.

    Attributes:
        best: number of that encoding.
    """

    __slots__ = ("_in_time", "_need", "best")

    def __init__(self) -> None:
        self.best = self._in_time = 0
        self._need = FEWEST_TRANSFERS

    def record_call(self, i: int, *, late: bool) -> None:
        """Record that a call with encoding number `i` was late, or in time; lower or raise `best` by it.

        Late: the encoding after number `i` becomes the best one to try, and a better one is tried again after twice as many calls
        in time as before, 128 at most, and after 8 in time with the best of all as at first. A call late with a better encoding
        than `best` only restarts that count.
        """
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


# Link: time of a call and bandwidth to an endpoint, fitted to real calls.

LEAST = 8  # minimum number of calls for a bandwidth
SHARE = 0.02  # weight of the newest call once there are 50: the estimate follows a link that changes
LEAST_SLOPE = 1e-15  # minimum seconds per byte; anything faster is no link
SURE = 4.0  # minimum ratio of the fitted slope to its standard error; below it, bytes do not explain the times


class Link:
    """Seconds of a call as a line over the bytes of its bodies: least squares with exponential decay.

    Threads that add need a lock; reading needs none.
    """

    __slots__ = ("_bb", "_bs", "_bytes", "_seconds", "_ss", "count")

    def __init__(self) -> None:
        self.count = 0
        self._bytes = self._seconds = 0.0  # decaying means
        self._bb = self._bs = self._ss = 0.0  # decaying variances and covariance

    def add(self, size: int, seconds: float) -> None:
        """Add a successful call: bytes of its bodies in both directions, and its time in seconds; earlier calls lose weight."""
        self.count += 1
        share = max(1 / self.count, SHARE)
        size_error, seconds_error = size - self._bytes, seconds - self._seconds
        self._bytes += share * size_error
        self._seconds += share * seconds_error
        rest = 1 - share
        self._bb = rest * (self._bb + share * size_error * size_error)
        self._bs = rest * (self._bs + share * size_error * seconds_error)
        self._ss = rest * (self._ss + share * seconds_error * seconds_error)

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
        """Time of a call without bytes, with the endpoint's work, seconds; without a bandwidth the mean time; None: no call."""
        if not self.count:
            return None
        speed = self.bytes_per_s
        return self._seconds if speed is None else max(0.0, self._seconds - self._bytes / speed)

    def predicted_s(self, size: float) -> float:
        """Return the predicted seconds of a call with `size` bytes; inf before the first call.

        Until a bandwidth is known, the whole time of a call is attributed to its bytes: too long rather than too short.
        """
        speed, call_s = self.bytes_per_s, self.call_s
        if call_s is None:
            return inf
        if speed is not None:
            return seconds(size, call_s, speed)
        return self._seconds * max(1.0, size / self._bytes) if self._bytes > 0 else inf

    def dump(self) -> list[float]:
        """Return the state in JSON types."""
        return [self.count, self._bytes, self._seconds, self._bb, self._bs, self._ss]

    @classmethod
    def load(cls, dumped: Any) -> Link:
        """Return a link restored from a dump.

        Raises:
            ValueError: not a dump: not six finite numbers, or one is negative that cannot be.
        """
        link = cls()
        with DumpOf("a link"):
            values = [float(value) for value in dumped]
            count, link._bytes, link._seconds, link._bb, link._bs, link._ss = values
            if isinstance(dumped, str | Mapping) or not all(map(isfinite, values)) or min(values[:4]) < 0 or link._ss < 0:
                raise ValueError(repr(dumped))
            link.count = int(count)
        return link


# Load that an endpoint reports in its replies, and the share of deferrals kept on the edge because of it.
#
# The share of deferrals that is kept grows in proportion to the load, from `FROM` on:
#
# > share = MOST * min(1, max(0, (load - FROM) / SPAN))
#
# so the fleet settles where the rest fits, and a tenth is always sent, which brings the next report. The least unsure are
# kept: thresholds are lowered by the quantile `share` of how far recent deferred answers were below their own. Of answers that
# are all equally far none is kept.

FROM: Final = 0.8  # load from which optional calls are skipped, and deferrals kept
SPAN: Final = 0.4
MOST: Final = 0.9  # largest share of the deferrals that is kept
STEP: Final = 0.05  # step of the share, a multiple of this, so that plans do not change for nothing
HALF_S: Final = 30.0  # half-life of a report, seconds
STALE_S: Final = 300.0  # age from which the last report counts nothing, seconds
CAP: Final = 4.0  # largest load that counts
QUEUE_S: Final = 1.0  # wait in the endpoint's queue that counts as much as full use, seconds
ENOUGH_DEFERRED: Final = 16  # minimum number of deferred answers before any is kept


class Report(NamedTuple):
    """Load that an endpoint reports."""

    utilization: float  # used share of its capacity; above 1: it is overloaded
    queue_s: float = 0.0  # time that a request waits there, seconds

    @property
    def load(self) -> float:
        """Use and queue as one number, 0 to `CAP`; impossible values count as 0."""
        used, waits = (value if isfinite(value) and value > 0 else 0.0 for value in self)
        return min(CAP, used + waits / QUEUE_S)


def fade_load(load: Numbers, age_s: Numbers) -> Numbers:
    """Return the rest of a load after `age_s` seconds without a report: halved each `HALF_S`, and 0 from `STALE_S` on."""
    return load * _weight_left(age_s)


def average_load(load: Numbers, age_s: Numbers, reported: Numbers) -> Numbers:
    """Return the load after a report, `age_s` seconds after the last. The report weighs at least a quarter, for bursts."""
    return load + (least(reported, CAP) - load) * most(1 - _weight_left(age_s), 0.25)


def share_to_keep(load: Numbers) -> Numbers:
    """Return the share of the deferrals to keep on the edge at this load: 0 to `MOST` in steps of `STEP`, rising with it."""
    return (most(least((load - FROM) / SPAN * MOST, MOST), 0.0) / STEP + 1e-9) // 1 * STEP


def _weight_left(age_s: Numbers) -> Numbers:
    """Return the weight of a report of this age."""
    return (age_s < STALE_S) * 0.5 ** (most(age_s, 0.0) / HALF_S)


class Load:
    """Average of reported loads that weighs them by age, and fades without reports. Not synchronised."""

    __slots__ = ("_at", "_value")

    def __init__(self) -> None:
        self._value, self._at = 0.0, -INF

    def add(self, load: float, now: float) -> bool:
        """Average a reported load in, at an instant; a value that is no number of at least 0 is ignored.

        The longer ago the last report, the more this one weighs.

        Returns:
            True if the share of deferrals to keep has changed.
        """
        if not (isfinite(load) and load >= 0):
            return False
        before = rounded_share_to_keep(self.at(now))
        self._value, self._at = average_load(self._value, now - self._at, load), max(now, self._at)
        return rounded_share_to_keep(self.at(now)) != before

    def at(self, now: float) -> float:
        """Return the load at an instant; 0: none was reported, or long ago."""
        return float(fade_load(self._value, now - self._at))


def rounded_share_to_keep(load: float) -> float:
    """Return `share_to_keep` of one load, rounded."""
    return round(float(share_to_keep(load)), 2) if load > FROM else 0.0


def slack(deficits: Iterable[float], share: float) -> float:
    """Return by how much to lower thresholds to keep this share of the deferrals, at most as far as recent ones were below.

    0 with fewer than `ENOUGH_DEFERRED` finite values. Less if equal values at the limit would keep more than the share.

    Args:
        deficits: how far recent deferred answers were below their thresholds, each 0 or more; with a lowered threshold, answers
            kept for it count like deferred ones.
        share: share to keep, 0..1.
    """
    known: Sequence[float] = sorted(value for value in deficits if isfinite(value) and value >= 0)
    if len(known) < ENOUGH_DEFERRED or share <= 0:
        return 0.0
    last = min(len(known), int(share * len(known) + 1e-9)) - 1
    while 0 <= last < len(known) - 1 and known[last] == known[last + 1]:  # all that are as far would be kept, which is too many
        last -= 1
    return known[last] if last >= 0 else 0.0
