"""`edgeroute simulate load`: what devices do before a cloud that is too small, with and without what it reports of its load."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edgeroute.cli.exits import OK
from edgeroute.cli.options import Json, share
from edgeroute.cli.simulate import LENGTH_S, MOST_MULTIPLE, MOST_PER_S, lasting, rows_of
from edgeroute.cli.tables import console, table

if TYPE_CHECKING:
    from edgeroute.replay.fleet.scenario import Client, Scenario

FEW = 20_000
"""Devices, at most: of each its limit of concurrent calls is simulated."""


def part(text: str) -> float:
    """Parses `0.6x` to 0.6."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?) ?x", str(text).strip())
    if found is None or not 0 < float(found[1]) <= MOST_MULTIPLE:
        raise typer.BadParameter(f"a capacity is a multiple of the usual load, more than 0x, as in 0.6x, not {text!r}")
    return float(found[1])


def load(
    *,
    devices: Annotated[int, typer.Option(min=1, max=FEW, help="How many there are.")] = 1_000,
    per_minute: Annotated[float, typer.Option(min=0.001, help="Requests a minute of each.")] = 60.0,
    defer: Annotated[
        float, typer.Option(parser=share, metavar="SHARE", help="What the edge is not sure of.", show_default="10%")
    ] = 0.1,
    capacity: Annotated[
        float | None,
        typer.Option(parser=part, metavar="MULTIPLE", help="Of the cloud, as a multiple of that load.", show_default="0.6x"),
    ] = None,
    length: Annotated[
        float | None, typer.Option(parser=lasting, metavar="TIME", help="What is simulated.", show_default="15m")
    ] = None,
    timeout: Annotated[
        float | None, typer.Option(parser=lasting, metavar="TIME", help="The cloud's, in the devices' policy.", show_default="2s")
    ] = None,
    queue: Annotated[
        float | None,
        typer.Option(parser=lasting, metavar="TIME", help="The cloud refuses what would wait longer (503).", show_default="1s"),
    ] = None,
    retry_after: Annotated[
        float | None, typer.Option(parser=lasting, metavar="TIME", help="What its 503 asks for.", show_default="1s")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="The same seed gives the same numbers.")] = 0,
    as_json: Json = False,
) -> int:
    """Simulates a fleet before a cloud that is too small for it: with load hints, adaptive concurrency, both and neither.

    The edge's answers to what it would defer are taken to be right in 80 % where it is surest, to 20 %, and the cloud's in 95 %.
    """
    from edgeroute.replay.fleet.scenario import LOAD_AWARE, Scenario

    length_s = length or LENGTH_S
    scenario = Scenario(
        devices, per_minute, defer, margin=capacity or 0.6, length_s=length_s, timeout_s=timeout or 2.0,
        queue_s=1.0 if queue is None else queue, retry_after_s=1.0 if retry_after is None else retry_after,
        outage_at_s=length_s + 1e6, outage_s=0.0, seed=seed,
    )  # fmt: skip
    if not 0 < scenario.normal_per_s <= MOST_PER_S:
        raise typer.BadParameter(
            f"more than 0 and up to {MOST_PER_S:,} requests a second to the cloud are simulated, not {scenario.normal_per_s:g}",
            param_hint="--per-minute",
        )
    rows = rows_of(scenario, LOAD_AWARE, _row)
    if as_json:
        print(json.dumps({"scenario": scenario._asdict(), "clients": rows}))
        return OK
    out = console()
    out.print(
        f"{devices:,} devices would ask the cloud {scenario.normal_per_s:,.0f} times a second. "
        f"It can answer {scenario.capacity_per_s:,.0f}."
    )
    lines = [
        (
            row["name"], *(f"{row[name]:.1%}" for name in ("cloud", "kept", "degraded", "refused", "late", "wasted")),
            f"{row['p50_s']:.2f} s", f"{row['p99_s']:.2f} s", f"{row['accuracy']:.1%}",
        )
        for row in rows
    ]  # fmt: skip
    columns = ("devices", "cloud", "kept", "degraded", "refused", "late", "in vain", "p50", "p99", "right")
    table(columns, lines, ("devices",))
    out.print(
        "cloud, kept, degraded: shares of what the edge is not sure of: answered by the cloud; kept by the edge, as the cloud"
    )
    out.print("reported its load; answered by the edge since the cloud was not asked, refused or was late")
    out.print("refused, late: shares of the calls; in vain: the share of the cloud's work for devices which had given up")
    out.print("p50, p99: time until the answer; right: expected share of right answers to what the edge is not sure of")
    return OK


def _row(scenario: Scenario, client: Client) -> dict[str, Any]:
    """Runs one simulation, in a process of its own; returns numbers. Times in seconds, shares 0..1."""
    from edgeroute.replay.fleet.run import simulate as run

    result = run(scenario, client)
    asked, attempts = max(1, int(result.asked.sum())), max(1, int(result.attempts.sum()))
    return {
        "name": client.name,
        "hints": client.hints,
        "adaptive": client.adaptive,
        "asked": int(result.asked.sum()),
        "calls": int(result.attempts.sum()),
        "cloud": round(float(result.answered.sum()) / asked, 4),
        "kept": round(result.kept / asked, 4),
        "degraded": round(result.degraded / asked, 4),
        "refused": round(result.refused / attempts, 4),
        "late": round(result.late / attempts, 4),
        "wasted": round(result.wasted_share, 4),
        "p50_s": round(result.took_s(0.5), 3),
        "p99_s": round(result.took_s(0.99), 3),
        "accuracy": round(result.accuracy, 4),
        "lost": result.lost,
    }
