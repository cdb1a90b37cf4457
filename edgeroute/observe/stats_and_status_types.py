"""Statistics of a router (`Stats` of `LegStats`, `ArmStats`, `AuditStats`, `ShadowStats`) and its `Status`: public tuples."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from edgeroute.core.device_rules import Reading
from edgeroute.core.spending_limits import Cost, Limits
from edgeroute.system.late_imports_and_plugins import import_tool

# Statistics of the arms of trials.


class Interval(NamedTuple):
    """Estimate with its 95 % interval.

    Attributes:
        share: the estimate: a share 0..1, or a mean in the unit of its field.
    """

    share: float
    low: float
    high: float


class ArmStats(NamedTuple):
    """Statistics of one arm of a trial: the target in use, or the target on trial.

    Attributes:
        arm: name of the target: `edge`, `edge-trial`, or an endpoint's name.
        side: side of the target: edge or cloud.
        model: name of the edge model; for a cloud the same as `arm`.
        share: share of the requests or devices by the settings, 0..1; the target in use has the rest of the trials' shares.
        shown: True if callers get the arm's answers. False: a hidden trial, whose answers are only compared.
        requests: requests of the arm that have ended; for a cloud those for which it was called.
        failed: share of those requests on which the target failed. Calls that were cancelled because nobody waited count in
            neither number.
        deferred: share of those requests for which the cloud was called; None: a cloud's arm.
        compared: answers that were compared: an edge's with the cloud's by audits, a cloud's with the edge's or the other
            cloud's.
        differs: share of these that differ.
        loss: share of all requests that the edge answered otherwise than the cloud, by audits; None: a cloud's arm.
        usd: mean cost of a call, US dollars; None: an edge's arm.
        mean_s: mean time of a request of an edge's arm, or of an endpoint's answer, seconds; batches are left out.
        p50_s: median of these times, seconds; None: unknown.
        p99_s: 99th percentile, seconds; None: not known.
        stopped: reason why the guardrail stopped the trial; empty: it did not.
        devices: number of devices with a request in the arm, whose figures these are together; None: those of one router.
    """

    arm: str
    side: str
    model: str
    share: float
    shown: bool
    requests: int
    failed: Interval
    deferred: Interval | None
    compared: int
    differs: Interval
    loss: Interval | None
    usd: Interval | None
    mean_s: Interval
    p50_s: float | None
    p99_s: float | None
    stopped: str
    devices: int | None = None


class LegStats(NamedTuple):
    """Statistics of one target. Latencies in seconds, None before the first; bytes of bodies, retries included.

    Attributes:
        name: name of the target in answers and traces.
        side: side of the target: edge or cloud.
        started: runs or calls that began.
        answered: runs or calls with an answer, accepted or not.
        accepted: runs or calls whose answer was accepted.
        failed: runs or calls that failed; inputs that an edge cannot take (`Unfit`) are not counted.
        cancelled: runs or calls that were stopped, or had not answered at the deadline.
        p50_s: median time of an answer to a single input, seconds; recent answers count more.
        p90_s: 90th percentile of that time, seconds.
        p99_s: 99th percentile of that time, seconds.
        bytes_sent: bytes of the request bodies, retries included.
        bytes_received: bytes of the reply bodies, retries included.
        breaker: state of the endpoint's circuit breaker: closed, open or half-open; empty for an edge.
        held: calls that were not made, for a local reason: breaker, limits, consent.
        call_s: time of an endpoint's call without the transfer of its bytes, with the endpoint's work, fitted from real calls;
            seconds.
        bytes_per_s: bandwidth to an endpoint, fitted from real calls; None: an edge, too few calls, or times that do not depend
            on the size.
    """

    name: str
    side: str
    started: int
    answered: int
    accepted: int
    failed: int
    cancelled: int
    p50_s: float | None
    p90_s: float | None
    p99_s: float | None
    bytes_sent: int
    bytes_received: int
    breaker: str
    held: int
    call_s: float | None = None
    bytes_per_s: float | None = None


class AuditStats(NamedTuple):
    """Audit statistics of one edge model, since its certificate was first used with this `state`.

    Attributes:
        target: name of the edge model.
        audited: accepted answers that were compared with the cloud's.
        disagreed: compared answers that differ.
        limit: share that the certificate allows to differ; with labels the loss, or error rate, of accepted answers. None: not
            stated.
        evidence: evidence against that limit. 10,000 is an alarm; without a change, an alarm takes as many counted audits on
            average, or more.
        alarm: text of the alarm; empty: none.
        labelled: audited answers for which the right value was reported.
    """

    target: str
    audited: int
    disagreed: int
    limit: float | None
    evidence: float
    alarm: str
    labelled: int = 0


class ShadowStats(NamedTuple):
    """Forecast, from an edge model's runs in shadow, of the effect of using its answers. Intervals are at 95 %.

    Attributes:
        target: name of the edge model.
        compared: requests on which the model ran beside the cloud: a sample of those that would reach it.
        failed: compared requests on which the model's run failed.
        answers: share of the compared requests, 0..1, that the model would answer.
        differs: share of those answers that differ from the cloud's.
        saved_calls: requests, of 1,000, for which the cloud would not be called.
        saved_usd: cost of those calls, by the endpoint's prices, US dollars.
        saved_mb: bodies of those calls in both directions, millions of bytes.
        cloud_p50_s: median time of the cloud on the same requests, seconds; None: not known.
    """

    target: str
    compared: int
    failed: int
    answers: float
    answers_low: float
    answers_high: float
    differs: float
    differs_low: float
    differs_high: float
    saved_calls: float
    saved_usd: float
    saved_mb: float
    edge_p50_s: float | None
    edge_p99_s: float | None
    cloud_p50_s: float | None
    cloud_p99_s: float | None


class Stats(NamedTuple):
    """Statistics of the router since its start.

    Attributes:
        requests: requests that have ended, without those answered by the cache; each row of a batch is one.
        deferred: requests for which the cloud was called.
        degraded: answers that are the best available, but not accepted by the policy.
        unanswered: requests that ended in an error.
        deferral_rate: `deferred / requests`; 0 before the first request.
        cached: answers served from the cache.
        queued: requests stored in the outbox.
        late: cloud replies that arrived after their request's deadline.
        bytes_sent: bytes of the request bodies of all endpoints, retries included.
        bytes_received: bytes of the reply bodies of all endpoints, retries included.
        usd_today: cost of calls over the last 24 hours, by the endpoints' prices, US dollars.
        legs: figures per edge model and endpoint.
        audits: figures per edge model with a threshold, if there is an `Audit`.
        shadows: figures per edge model that has run in shadow.
        arms: figures per arm of the trials: the target in use, then the target on trial.
        joules: target -> energy of a call, joules, as far as known: an edge's fitted from the device's power, a cloud's by its
            prices.
        spared: answers of the edge below its own threshold that were accepted because the cloud was loaded.
        parts: part -> its figures, of the parts that have some (`edgeroute.router.part_hooks_and_dispatch`).
        break_even: share of deferred requests below which the edge first takes less energy than the cloud alone; None: not known.
    """

    requests: int
    deferred: int
    degraded: int
    unanswered: int
    deferral_rate: float
    cached: int
    queued: int
    late: int
    bytes_sent: int
    bytes_received: int
    usd_today: float
    legs: tuple[LegStats, ...]
    audits: tuple[AuditStats, ...]
    shadows: tuple[ShadowStats, ...] = ()
    arms: tuple[ArmStats, ...] = ()
    joules: Mapping[str, float] = {}
    spared: int = 0
    parts: Mapping[str, Mapping[str, Any]] = {}
    break_even: float | None = None

    def as_dict(self) -> dict[str, Any]:
        """Return the statistics as JSON data."""
        return _as_data(self)  # type: ignore[no-any-return]

    def __repr__(self) -> str:
        legs = "".join(f"; {leg.name} answered {leg.answered:,} of {leg.started:,}" for leg in self.legs)
        counts = f"{self.deferred:,} deferred, {self.degraded:,} degraded, {self.unanswered:,} unanswered"
        return f"<Stats of {self.requests:,} request{'' if self.requests == 1 else 's'}: {counts}{legs}>"

    def _repr_html_(self) -> str:
        """Return the page for a notebook."""
        return import_tool("measure.report.report_pages_and_results").stats_page(self)  # type: ignore[no-any-return]


def _as_data(value: Any) -> Any:
    """Return named tuples and mappings as dictionaries, tuples as lists, and other values unchanged."""
    if hasattr(value, "_asdict"):
        value = value._asdict()
    if isinstance(value, Mapping):
        return {name: _as_data(part) for name, part in value.items()}
    return [_as_data(part) for part in value] if isinstance(value, tuple | list) else value


# Status: the state of a router, as metrics and dashboards show it.


class Status(NamedTuple):
    """State of a router, for metrics and dashboards. Contains no inputs, answers or secrets.

    Attributes:
        stats: statistics as `Router.stats` returns them.
        limits: limits of the spending, each over its own window; inf: no limit.
        spent: spending so far, over the same windows.
        outbox: state of requests in the outbox -> how many are on disk; empty: its file cannot be read now; None: there is no
            outbox.
        reading: last reading of the device's sensors; None: they are not read, or have not been.
        reading_age_s: age of that reading, seconds; 0 without one.
        rules: device rules in force.
        signed: signed policy in force, and why a newer one is not, in words; empty: the router follows none.
    """

    stats: Stats
    limits: Limits
    spent: Cost
    outbox: Mapping[str, int] | None = None
    reading: Reading | None = None
    reading_age_s: float = 0.0
    rules: tuple[str, ...] = ()
    closed: bool = False
    signed: str = ""
