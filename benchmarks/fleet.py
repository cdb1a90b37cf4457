"""Fleet simulation: run time for a million devices over an hour, and recovery from an outage with and without safeguards."""

from __future__ import annotations

import os
from time import perf_counter

from figures import Figure, size, table

from edgeroute.tools.replay.fleet.outage_simulation_and_capacity_search import simulate
from edgeroute.tools.replay.fleet.simulated_devices_and_cloud import EDGEROUTE, Scenario, clients

SILENT = size(Scenario(silent=True), Scenario(silent=True, devices=1000))
"""A million devices, one request a minute each, a tenth deferred; one hour with a 10 s outage in which nothing is answered."""
SHORT_S = size(180.0, 90.0)
"""Shorter runs for the table: fleets that do not recover are the slowest to simulate."""


def figures() -> list[Figure]:
    """Return the figure of the wall time of one simulation on one core; checks that every request had an answer."""
    begun = perf_counter()
    result = simulate(SILENT)
    took_s = perf_counter() - begun
    assert not result.lost, "every request had an answer"
    back = "never" if result.cloud_back_s is None else f"{result.cloud_back_s:g} s"
    what = f"a million devices over an hour, simulated (cloud back after {back})"
    return [Figure(what, f"{took_s:.1f} s", "3600 s", took_s, "s", 60)]


def comparison() -> str:
    """Return a table of recovery from the same outage by client safeguards, for quiet and busy fleets."""
    quiet, busy = SILENT._replace(offline="queue", devices=100_000), SILENT._replace(devices=1000, per_minute=1000.0)
    fleets = {
        "a million quiet devices": SILENT,
        "100,000 quiet devices, outboxes": quiet,
        "the same, 1.2 times the usual load": quiet._replace(margin=1.2),
        "the same, connections refused": quiet._replace(silent=False),
        "the same, nobody waits over 1 s in the cloud": quiet._replace(queue_s=1.0),
        "1,000 busy devices": busy,
        "the same, outboxes": busy._replace(offline="queue"),
    }
    lines = ["| fleet | devices | cloud back | peak | degraded | in vain |", "|---|---|---:|---:|---:|---:|"]
    for name, scenario in [*fleets.items()][: size(None, 1)]:
        for client in clients(scenario):
            result = simulate(scenario._replace(length_s=SHORT_S), client)
            back = "never" if result.cloud_back_s is None else f"{result.cloud_back_s:g} s"
            share = result.degraded / int(result.asked.sum())
            lines.append(f"| {name} | {client.name} | {back} | {result.peak:.1f}x | {share:.1%} | {result.wasted_share:.0%} |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(f"load average {os.getloadavg()[0]:.1f}, {EDGEROUTE.name} first")
    print(table(figures()), "", comparison(), sep="\n")
