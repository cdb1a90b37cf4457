"""Statistics and status of a router: the public tuples of figures, per target and in total."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from edgeroute.core.device_rules import Reading
from edgeroute.core.spending_limits import Cost, Limits
from edgeroute.system.late_imports import import_tool

# Statistics of the arms of trials.


class Interval(NamedTuple):
    """Estimate with its 95 % interval."""

    share: float
    """The estimate: a share 0..1, or a mean in the unit of its field."""
    low: float
    high: float


class ArmStats(NamedTuple):
    """Statistics of one arm of a trial: the target in use, or the target on trial."""

    arm: str
    """Name of the target: `edge`, `edge-trial`, or an endpoint's name."""
    side: str
    """Side of the target: edge or cloud."""
    model: str
    """Name of the edge model; for a cloud the same as `arm`."""
    share: float
    """Share of the requests or devices by the settings, 0..1; the target in use has the rest of the trials' shares."""
    shown: bool
    """True if callers get the arm's answers. False: a hidden trial, whose answers are only compared."""
    requests: int
    """Requests of the arm that have ended; for a cloud those for which it was called."""
    failed: Interval
    """Share of those requests on which the target failed.

    Calls that were cancelled because nobody waited count in neither number.
    """
    deferred: Interval | None
    """Share of those requests for which the cloud was called; None: a cloud's arm."""
    compared: int
    """Answers that were compared: an edge's with the cloud's by audits, a cloud's with the edge's or the other cloud's."""
    differs: Interval
    """Share of these that differ."""
    loss: Interval | None
    """Share of all requests that the edge answered otherwise than the cloud, by audits; None: a cloud's arm."""
    usd: Interval | None
    """Mean cost of a call, US dollars; None: an edge's arm."""
    mean_s: Interval
    """Mean time of a request of an edge's arm, or of an endpoint's answer, seconds; batches are left out."""
    p50_s: float | None
    """Median of these times, seconds; None: unknown."""
    p99_s: float | None
    """99th percentile, seconds; None: not known."""
    stopped: str
    """Reason why the guardrail stopped the trial; empty: it did not."""
    devices: int | None = None
    """Number of devices with a request in the arm, whose figures these are together; None: those of one router."""


class LegStats(NamedTuple):
    """Statistics of one target. Latencies in seconds, None before the first; bytes of bodies, retries included."""

    name: str
    """Name of the target in answers and traces."""
    side: str
    """Side of the target: edge or cloud."""
    started: int
    """Runs or calls that began."""
    answered: int
    """Runs or calls with an answer, accepted or not."""
    accepted: int
    """Runs or calls whose answer was accepted."""
    failed: int
    """Runs or calls that failed; inputs that an edge cannot take (`Unfit`) are not counted."""
    cancelled: int
    """Runs or calls that were stopped, or had not answered at the deadline."""
    p50_s: float | None
    """Median time of an answer to a single input, seconds; recent answers count more."""
    p90_s: float | None
    """90th percentile of that time, seconds."""
    p99_s: float | None
    """99th percentile of that time, seconds."""
    bytes_sent: int
    """Bytes of the request bodies, retries included."""
    bytes_received: int
    """Bytes of the reply bodies, retries included."""
    breaker: str
    """State of the endpoint's circuit breaker: closed, open or half-open; empty for an edge."""
    held: int
    """Calls that were not made, for a local reason: breaker, limits, consent."""
    call_s: float | None = None
    """Time of an endpoint's call without the transfer of its bytes, with the endpoint's work, fitted from real calls; seconds."""
    bytes_per_s: float | None = None
    """Bandwidth to an endpoint, fitted from real calls; None: an edge, too few calls, or times that do not depend on the size."""


class AuditStats(NamedTuple):
    """Audit statistics of one edge model, since its certificate was first used with this `state`."""

    target: str
    """Name of the edge model."""
    audited: int
    """Accepted answers that were compared with the cloud's."""
    disagreed: int
    """Compared answers that differ."""
    limit: float | None
    """Share that the certificate allows to differ; with labels the loss, or error rate, of accepted answers. None: not stated."""
    evidence: float
    """Evidence against that limit.

    10,000 is an alarm; without a change, an alarm takes as many counted audits on average, or more.
    """
    alarm: str
    """Text of the alarm; empty: none."""
    labelled: int = 0
    """Audited answers for which the right value was reported."""


class ShadowStats(NamedTuple):
    """Forecast, from an edge model's runs in shadow, of the effect of using its answers. Intervals are at 95 %."""

    target: str
    """Name of the edge model."""
    compared: int
    """Requests on which the model ran beside the cloud: a sample of those that would reach it."""
    failed: int
    """Compared requests on which the model's run failed."""
    answers: float
    """Share of the compared requests, 0..1, that the model would answer."""
    answers_low: float
    answers_high: float
    differs: float
    """Share of those answers that differ from the cloud's."""
    differs_low: float
    differs_high: float
    saved_calls: float
    """Requests, of 1,000, for which the cloud would not be called."""
    saved_usd: float
    """Cost of those calls, by the endpoint's prices, US dollars."""
    saved_mb: float
    """Bodies of those calls in both directions, millions of bytes."""
    edge_p50_s: float | None
    edge_p99_s: float | None
    cloud_p50_s: float | None
    """Median time of the cloud on the same requests, seconds; None: not known."""
    cloud_p99_s: float | None


class Stats(NamedTuple):
    """Statistics of the router since its start."""

    requests: int
    """Requests that have ended, without those answered by the cache; each row of a batch is one."""
    deferred: int
    """Requests for which the cloud was called."""
    degraded: int
    """Answers that are the best available, but not accepted by the policy."""
    unanswered: int
    """Requests that ended in an error."""
    deferral_rate: float
    """`deferred / requests`; 0 before the first request."""
    cached: int
    """Answers served from the cache."""
    queued: int
    """Requests stored in the outbox."""
    late: int
    """Cloud replies that arrived after their request's deadline."""
    bytes_sent: int
    """Bytes of the request bodies of all endpoints, retries included."""
    bytes_received: int
    """Bytes of the reply bodies of all endpoints, retries included."""
    usd_today: float
    """Cost of calls over the last 24 hours, by the endpoints' prices, US dollars."""
    legs: tuple[LegStats, ...]
    """Figures per edge model and endpoint."""
    audits: tuple[AuditStats, ...]
    """Figures per edge model with a threshold, if there is an `Audit`."""
    shadows: tuple[ShadowStats, ...] = ()
    """Figures per edge model that has run in shadow."""
    arms: tuple[ArmStats, ...] = ()
    """Figures per arm of the trials: the target in use, then the target on trial."""
    joules: Mapping[str, float] = {}
    """Target -> energy of a call, joules, as far as known: an edge's fitted from the device's power, a cloud's by its prices."""
    spared: int = 0
    """Answers of the edge below its own threshold that were accepted because the cloud was loaded."""
    parts: Mapping[str, Mapping[str, Any]] = {}
    """Part -> its figures, of the parts that have some (`edgeroute.router.router_parts`)."""
    break_even: float | None = None
    """Share of deferred requests below which the edge first takes less energy than the cloud alone; None: not known."""

    def as_dict(self) -> dict[str, Any]:
        """Return the statistics as JSON data."""
        return _as_data(self)  # type: ignore[no-any-return]

    def __repr__(self) -> str:
        legs = "".join(f"; {leg.name} answered {leg.answered:,} of {leg.started:,}" for leg in self.legs)
        counts = f"{self.deferred:,} deferred, {self.degraded:,} degraded, {self.unanswered:,} unanswered"
        return f"<Stats of {self.requests:,} request{'' if self.requests == 1 else 's'}: {counts}{legs}>"

    def _repr_html_(self) -> str:
        """Return the page for a notebook."""
        return import_tool("measure.report.report_page").stats_page(self)  # type: ignore[no-any-return]


def _as_data(value: Any) -> Any:
    """Return named tuples and mappings as dictionaries, tuples as lists, and other values unchanged."""
    if hasattr(value, "_asdict"):
        value = value._asdict()
    if isinstance(value, Mapping):
        return {name: _as_data(part) for name, part in value.items()}
    return [_as_data(part) for part in value] if isinstance(value, tuple | list) else value


class Seen(NamedTuple):
    """State of a target that its backend knows and the counters lack; the fields are those of `LegStats`."""

    name: str
    side: str
    sent: int
    received: int
    breaker: str
    held: int
    call_s: float | None = None
    bytes_per_s: float | None = None


# Status: the state of a router, as metrics and dashboards show it.


class Status(NamedTuple):
    """State of a router, for metrics and dashboards. Contains no inputs, answers or secrets."""

    stats: Stats
    """Statistics as `Router.stats` returns them."""
    limits: Limits
    """Limits of the spending, each over its own window; inf: no limit."""
    spent: Cost
    """Spending so far, over the same windows."""
    outbox: Mapping[str, int] | None = None
    """State of requests in the outbox -> how many are on disk; None: there is no outbox, or its file cannot be read."""
    reading: Reading | None = None
    """Last reading of the device's sensors; None: they are not read, or have not been."""
    reading_age_s: float = 0.0
    """Age of that reading, seconds; 0 without one."""
    rules: tuple[str, ...] = ()
    """Device rules in force."""
    closed: bool = False
    signed: str = ""
    """Signed policy in force, and why a newer one is not, in words; empty: the router follows none."""
