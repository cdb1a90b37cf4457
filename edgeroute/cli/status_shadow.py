"""What `status` says of edge models that run in shadow."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgeroute.core.policy import INF, Target

if TYPE_CHECKING:
    from edgeroute.observe.stats import ShadowStats
    from edgeroute.router.snapshot import Snapshot

CANDIDATE = "candidate"
"""What a candidate is called in the audit log."""


def shadows(log: Path, snapshot: Snapshot | None) -> list[ShadowStats]:
    """Statistics of the shadow runs in the audit log.

    Args:
        log: its path.
        snapshot: of a router with the policy: the runs made with its models are counted, by its thresholds; None: of each edge
            model those made as the last one was, by the threshold of that time.
    """
    from edgeroute.confidence.binding import digest
    from edgeroute.record.shadow import UNHEARD, Tally
    from edgeroute.router.auditing import prints
    from edgeroute.stores.journal import read

    wanted: dict[str, str] = {}
    targets: dict[str, Target] = {}
    if snapshot is not None:
        wanted = {name: digest(used) for name, used in prints(snapshot).items()}
        targets = {target.name: target for target in snapshot.targets}
    tallies: dict[str, Tally] = {name: Tally() for name in wanted}
    for line in read(log):
        name, made, probability = line.get("target"), line.get("fingerprints"), line.get("probability")
        if not (line.get(UNHEARD) and isinstance(name, str) and isinstance(line.get("agrees"), bool)):
            continue
        if not isinstance(probability, int | float) or not 0 < probability <= 1:
            continue
        if snapshot is None and wanted.get(name) != made:
            wanted[name], tallies[name] = str(made), Tally()
        if wanted.get(name) == made:
            tallies[name].add(line, accepted=_accepted(line, targets.get(name)))
    return [tally.stats(name) for name, tally in tallies.items() if tally.count]


def _accepted(line: Mapping[str, Any], target: Target | None) -> bool:
    """Whether the edge's answer would be accepted by the target's threshold; else as then, if that cannot be told."""
    sure = line.get("edge_confidence")
    if target is None or target.thresholds or not isinstance(sure, int | float):
        return line.get("audited") == "shadow"
    return target.threshold is not None and target.threshold != INF and sure >= target.threshold


def show(found: ShadowStats, target: Target | None, *, first: bool) -> list[str]:
    """Lines for readers. `target`: in the policy, if that is known. `first`: it is asked first, so all requests reach it."""
    of = "requests" if first else "requests that reach it"
    share = f"{found.answers:.1%} ({found.answers_low:.1%} to {found.answers_high:.1%})"
    lines = [f"{found.target} in shadow: of {found.compared:,} {of} it would answer {share}"]
    if found.answers:
        lines[0] += (
            f", of these {found.differs:.2%} ({found.differs_low:.2%} to {found.differs_high:.2%}) differ from the cloud's"
        )
        saved = [f"{found.saved_calls:,.0f} calls"]
        saved += [f"${found.saved_usd:,.4g}"] if found.saved_usd else []
        saved += [f"{found.saved_mb:,.3g} MB"] if found.saved_mb else []
        lines.append(f"  of 1,000 requests that saves {', '.join(saved)}")
    if found.target == CANDIDATE:
        lines = [f"candidate in shadow: {found.compared:,} requests compared; `edgeroute recertify` says what is missing"]
    elif target is not None and target.threshold is None:
        why = "no threshold yet, which `edgeroute calibrate --audited` finds once they are enough"
        lines = [f"{found.target} in shadow: {found.compared:,} {of} compared; {why}"]
    if found.failed:
        lines.append(f"  on {found.failed:,} it failed: the log says why")
    edge, cloud = (found.edge_p50_s, found.edge_p99_s), (found.cloud_p50_s, found.cloud_p99_s)
    if None not in edge:
        beside = "" if None in cloud else f", the cloud {_ms(cloud)}"
        lines.append(f"  it takes {_ms(edge)}{beside}")
    return lines


def _ms(quantiles: tuple[float | None, float | None]) -> str:
    p50, p99 = (1000 * (seconds or 0.0) for seconds in quantiles)
    return f"{p50:,.2f} ms (p99 {p99:,.2f} ms)"
