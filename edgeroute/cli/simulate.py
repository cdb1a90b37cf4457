from __future__ import annotations

import json
import os
import re
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from edgeroute.cli.exits import OK, exits
from edgeroute.cli.options import Json, seconds, share
from edgeroute.cli.simulate_state import device_of, notes_of, plain, state_of
from edgeroute.cli.tables import console, table

if TYPE_CHECKING:
    from edgeroute.replay.fleet.result import Result
    from edgeroute.replay.fleet.scenario import Client, Scenario

LENGTH_S = 900.0
LONGEST_S = 30 * 86_400.0
"""Of any time that is simulated."""
MOST_PER_S = 1_000_000
"""Requests to the cloud that are simulated, per second."""
MOST_MULTIPLE = 1_000
POLL_S = 0.2
"""Between two looks at the simulations, seconds: where a wait cannot be interrupted, Ctrl-C acts within that time."""
WITHIN = 2
"""The required capacity is that with which the cloud recovers within so many times the outage."""

STATE = "Devices with a state"

simulate = typer.Typer(name="simulate", no_args_is_help=True, help="Shows what many devices would do, without any of them.")


@simulate.callback()
def root() -> None:
    """A command group, although it has a single command."""


def multiple(text: str) -> float:
    """Parses `1.5x` to 1.5."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?) ?x", str(text).strip())
    if found is None or not 1 < float(found[1]) <= MOST_MULTIPLE:
        wanted = f"a multiple of the usual load, more than 1x and at most {MOST_MULTIPLE:,}x, as in 1.5x"
        raise typer.BadParameter(f"a capacity is {wanted}, not {text!r}")
    return float(found[1])


def lasting(text: str) -> float:
    """Parses a time, as `seconds` does, that is short enough to be simulated."""
    found = seconds(text)
    if found > LONGEST_S:
        raise typer.BadParameter(f"a time that is simulated is at most {LONGEST_S / 86_400:g}d, not {text!r}")
    return found


@simulate.command()
@exits
def fleet(
    *,
    devices: Annotated[int, typer.Option(min=1, max=5_000_000, help="How many there are.")] = 1_000_000,
    per_minute: Annotated[float, typer.Option(min=0.001, help="Requests a minute of each.")] = 1.0,
    defer: Annotated[
        float, typer.Option(parser=share, metavar="SHARE", help="What the edge is not sure of.", show_default="10%")
    ] = 0.1,
    capacity: Annotated[
        float | None,
        typer.Option(
            parser=multiple, metavar="MULTIPLE", help="Of the cloud, as a multiple of its usual load.", show_default="1.5x"
        ),
    ] = None,
    outage: Annotated[
        float | None, typer.Option(parser=lasting, metavar="TIME", help="How long the cloud is away.", show_default="10s")
    ] = None,
    outage_is: Annotated[
        Literal["silent", "refused"], typer.Option(help="While it is away nothing comes back, or connections are refused.")
    ] = "silent",
    length: Annotated[
        float | None, typer.Option(parser=lasting, metavar="TIME", help="What is simulated.", show_default="15m")
    ] = None,
    timeout: Annotated[
        float | None, typer.Option(parser=lasting, metavar="TIME", help="The cloud's, in the devices' policy.", show_default="2s")
    ] = None,
    offline: Annotated[Literal["edge", "queue"], typer.Option(help="The devices' policy; queue: they have an outbox.")] = "edge",
    spread: Annotated[
        float | None, typer.Option(parser=lasting, metavar="TIME", help="Of their outboxes.", show_default="60s")
    ] = None,
    queue: Annotated[
        float | None,
        typer.Option(parser=lasting, metavar="TIME", help="The cloud refuses what would wait longer (503).", show_default="10s"),
    ] = None,
    retry_after: Annotated[
        float | None, typer.Option(parser=lasting, metavar="TIME", help="What its 503 asks for.", show_default="nothing")
    ] = None,
    together: Annotated[
        float,
        typer.Option(parser=share, metavar="SHARE", help="Devices that all ask in the outage's first second.", show_default="0%"),
    ] = 0.0,
    seed: Annotated[int, typer.Option(min=0, help="The same seed gives the same numbers.")] = 0,
    policy: Annotated[
        Path | None,
        typer.Option(
            "--policy",
            "-p",
            metavar="FILE",
            show_default=False,
            rich_help_panel=STATE,
            help="The devices' policy, whose rules are stepped by their battery, heat and load. Without it they have no state.",
        ),
    ] = None,
    battery: Annotated[
        float | None,
        typer.Option(
            parser=share,
            metavar="SHARE",
            rich_help_panel=STATE,
            show_default=False,
            help="Charge at the start, of the average device. Without it they are on mains.",
        ),
    ] = None,
    battery_wh: Annotated[
        float | None, typer.Option(min=0, max=1e6, rich_help_panel=STATE, show_default="10", help="Watt hours of a full battery.")
    ] = None,
    idle_watts: Annotated[
        float | None,
        typer.Option(min=0, max=1e6, rich_help_panel=STATE, show_default="1", help="What it takes whatever it does."),
    ] = None,
    edge_joules: Annotated[
        float | None,
        typer.Option(min=0, max=1e6, rich_help_panel=STATE, show_default="0.1", help="What a run of the edge takes."),
    ] = None,
    edge_time: Annotated[
        float | None,
        typer.Option(
            parser=lasting, metavar="TIME", rich_help_panel=STATE, show_default="50ms", help="How long such a run lasts."
        ),
    ] = None,
    ambient: Annotated[
        float | None, typer.Option(min=-100, max=100, rich_help_panel=STATE, show_default="25", help="Degrees Celsius around it.")
    ] = None,
    as_json: Json = False,
) -> int:
    """Simulates an outage of a fleet's cloud, with and without each mechanism that protects the cloud.

    The cloud serves one queue, and also serves requests whose device has given up.

    Every device is simulated, as elements of arrays, in steps of 0.1 s. The required capacity is found with a sample of 20,000.
    """
    from edgeroute.replay.fleet.scenario import AGAIN_S, EDGEROUTE, Scenario, clients

    given = {
        "margin": capacity, "outage_s": outage, "length_s": length or LENGTH_S, "timeout_s": timeout, "queue_s": queue,
        "retry_after_s": retry_after,
    }  # fmt: skip
    device = device_of(
        policy, battery=battery, battery_wh=battery_wh, idle_w=idle_watts, run_j=edge_joules, run_s=edge_time, ambient_c=ambient
    )
    of: dict[str, Any] = {"device": device, **{name: value for name, value in given.items() if value is not None}}
    scenario = Scenario(
        devices, per_minute, defer, offline=offline, silent=outage_is == "silent", together=together, seed=seed, **of
    )
    if not scenario.normal_per_s:
        what = "with nothing deferred" if not defer or device is None else f"under {policy}, without a rule in force,"
        raise typer.BadParameter(f"{what} the cloud has no load", param_hint="--policy" if defer else "--defer")
    if not scenario.normal_per_s <= MOST_PER_S:
        raise typer.BadParameter(
            f"more than {MOST_PER_S:,} requests a second to the cloud are not simulated", param_hint="--per-minute"
        )
    if scenario.length_s < scenario.back_at_s + AGAIN_S:
        raise typer.BadParameter(f"the outage is over at {scenario.back_at_s:g} s: give it longer", param_hint="--length")
    rows = rows_of(scenario, clients(scenario, EDGEROUTE.spread_s if spread is None else spread), _row)
    if as_json:
        print(json.dumps({"scenario": plain(scenario), "clients": rows}))
        return OK
    show(scenario, rows)
    return OK


def rows_of(
    scenario: Scenario, compared: Sequence[Client], row: Callable[[Scenario, Client], dict[str, Any]]
) -> list[dict[str, Any]]:
    """The result of each simulation. They run in processes, which are ended at once if this one is interrupted."""
    from concurrent.futures import ProcessPoolExecutor, wait
    from multiprocessing import active_children, get_context

    from edgeroute.report.progress import bar

    quiet = (signal.SIGINT, signal.SIG_IGN)
    processes = ProcessPoolExecutor(
        min(len(compared), os.cpu_count() or 1), mp_context=get_context("spawn"), initializer=signal.signal, initargs=quiet
    )
    try:
        with _deaf():
            results = [processes.submit(row, scenario, client) for client in compared]
        with bar() as progress:
            task, left = progress.add_task(f"simulating {scenario.devices:,} devices", total=len(results)), {*results}
            while left:
                done, left = wait(left, timeout=POLL_S)
                progress.advance(task, len(done))
        return [result.result() for result in results]
    except BaseException:
        for process in active_children():
            process.terminate()
        raise
    finally:
        processes.shutdown(cancel_futures=True)


@contextmanager
def _deaf() -> Iterator[None]:
    """Lets Ctrl-C wait. A process that is started meanwhile never hears of it, where its own handler would print a traceback."""
    if threading.current_thread() is not threading.main_thread() or signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        yield
        return
    heard: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, _: heard.append(number))  # a thread of a library may take the signal
    if sys.platform != "win32":
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        if sys.platform != "win32":
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        signal.signal(signal.SIGINT, before)
    if heard:
        raise KeyboardInterrupt


def _row(scenario: Scenario, client: Client) -> dict[str, Any]:
    """Runs one simulation, in a process of its own; returns numbers. Times in seconds, shares 0..1."""
    from edgeroute.replay.fleet.capacity import needed
    from edgeroute.replay.fleet.run import simulate as run

    result: Result = run(scenario, client)
    asked = int(result.asked.sum())
    return {
        **client._asdict(),
        "cloud_back_s": result.cloud_back_s,
        "fleet_back_s": result.fleet_back_s,
        "peak": round(result.peak, 3),
        "asked": asked,
        "answered": int(result.answered.sum()),
        "degraded": result.degraded,
        "lost": result.lost,
        "queued": result.queued,
        "delivered": result.delivered,
        "waiting": result.waiting,
        "probes": result.probes,
        "wasted": round(result.wasted_share, 4),
        "capacity_needed": needed(scenario, client, WITHIN * scenario.outage_s),
        **({} if result.device is None else {"device": state_of(result.device)}),
    }


def show(scenario: Scenario, rows: list[dict[str, Any]]) -> None:
    """Prints the results as a table."""
    from edgeroute.replay.fleet.capacity import MOST

    lines = [
        (
            row["name"], _time(row["cloud_back_s"]), _time(row["fleet_back_s"]), f"{row['peak']:.1f}x",
            f"{row['degraded'] / max(row['asked'], 1):.1%}", f"{row['wasted']:.0%}",
            f"> {MOST:g}x" if row["capacity_needed"] is None else f"{row['capacity_needed']:g}x",
        )
        for row in rows
    ]  # fmt: skip
    out = console()
    out.print(
        f"{scenario.devices:,} devices ask the cloud {scenario.normal_per_s:,.0f} times a second. It can answer "
        f"{scenario.capacity_per_s:,.0f}, and is away for {scenario.outage_s:g} s.",
    )
    table(("devices", "cloud back", "fleet back", "peak", "degraded", "in vain", "needs"), lines, ("devices",))
    if (state := rows[0].get("device")) is not None:
        rules = [(one["text"], f"{one['share']:.1%}", f"{one['switches']:.2f}", f"{one['most']:.0%}") for one in state["rules"]]
        table(("rule", "in force", "switches", "at once"), rules, ("rule",))
    for line in notes(scenario, rows):
        out.print(line)


def notes(scenario: Scenario, rows: list[dict[str, Any]]) -> list[str]:
    """Conclusions from the table, valid whatever the numbers are."""
    from edgeroute.core.budget import CAP, RETRY
    from edgeroute.replay.fleet.scenario import AGAIN_S, EDGEROUTE, GOOD, PER_ATTEMPT

    within_s = WITHIN * scenario.outage_s
    ours, others = rows[0], rows[1:]
    slow = [row["name"] for row in others if _more(row["cloud_back_s"], within_s)]
    lines = [
        f"cloud back: time after the outage from which {GOOD:.0%} of attempts were answered in any {AGAIN_S:g} s",
        "fleet back: the same of requests, those that a breaker held back among them",
        "degraded: the share of the requests that have the edge's answer, though it was not sure",
        "peak: the busiest second after the outage, as a multiple of the usual load",
        "in vain: the share of the cloud's work that was for devices which had given up",
        f"needs: the capacity to have the cloud back within {within_s:g} s",
    ]
    lines += notes_of(scenario, ours.get("device"))
    if scenario.offline == "queue":
        lines.append(
            "no spread: the outboxes send what waits as soon as they may, and not after a random part of "
            f"{ours['spread_s']:g} s, or more once they have waited long"
        )
    if (takes_s := 1 / scenario.capacity_per_s) > scenario.timeout_s:
        lines.append(
            f"At this capacity the cloud takes {takes_s:.3g} s for a request, and devices wait for {scenario.timeout_s:g} s: any "
            "real server is faster, so give few devices a larger --capacity."
        )
    a_minute = scenario.per_minute * scenario.defer
    if EDGEROUTE.retries * a_minute / 60 * (scenario.outage_s + scenario.timeout_s) < CAP / RETRY:
        lines.append(
            f"A device asks the cloud {a_minute:g} times a minute, too seldom to empty its retry budget: that shows only where "
            "devices are busy."
        )
        if any(row["name"] == PER_ATTEMPT.name and _more(row["capacity_needed"], ours["capacity_needed"]) for row in others):
            lines.append(
                "What spares the cloud from quiet devices is that the timeout is that of the whole call, and that a timeout is "
                f"never retried: without both ({PER_ATTEMPT.name}) it needs more."
            )
    if ours["cloud_back_s"] is None:
        lines.append(
            f"With {ours['name']} the cloud did not come back at {scenario.margin:g}x: it needs more, or a shorter queue"
            f"{', or the outboxes a longer spread' if scenario.offline == 'queue' else ''}."
        )
    else:
        lines.append(
            f"With {ours['name']} the cloud was back {ours['cloud_back_s']:g} s after the outage of {scenario.outage_s:g} s."
        )
    if slow:
        lines.append(f"It became a long one: {'; '.join(slow)}.")
    lost = sum(row["lost"] for row in rows)
    lines.append(f"{lost:,} requests had no answer." if lost else "Every request had an answer, the cloud's or the edge's.")
    return lines


def _more(a: float | None, b: float | None) -> bool:
    """Whether `a` is larger; None is the maximum."""
    return b is not None and (a is None or a > b)


def _time(back_s: float | None) -> str:
    return "never" if back_s is None else f"{back_s:g} s"
