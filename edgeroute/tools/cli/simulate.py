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

from edgeroute.tools.cli.exits import OK, exits
from edgeroute.tools.cli.tables import Json, console, seconds, share, table

if TYPE_CHECKING:
    from edgeroute.tools.replay.fleet.devices import DeviceResult
    from edgeroute.tools.replay.fleet.run import Result
    from edgeroute.tools.replay.fleet.scenario import Client, Device, Scenario


def device_of(policy: Path | None, **more: float | None) -> Device | None:
    """A device of the fleet with the policy of a file, None without one; `more` are fields of it, as far as they are given."""
    given = {name: value for name, value in more.items() if value is not None}
    if any(value != value for value in given.values()):  # noqa: PLR0124 - NaN is in no range, and out of none
        raise typer.BadParameter("a number is needed for each of the device's figures, and nan is none")
    if policy is None:
        if given:
            raise typer.BadParameter("a device has a battery, heat and load if it has a policy", param_hint="--policy")
        return None
    from edgeroute.tools.replay.fleet.scenario import Device
    from edgeroute.tools.replay.setup import Setup

    found = Device.of(Setup.read(policy), **given)
    if {target.side for target in found.targets} != {"edge", "cloud"}:
        raise typer.BadParameter(f"{policy}: the devices of a fleet have an [edge] and a [cloud]", param_hint="--policy")
    return found


def plain(scenario: Scenario) -> dict[str, Any]:
    """The scenario for JSON. The rules of the devices' policy are in the results."""
    device = scenario.device
    of = None if device is None else {k: v for k, v in device._asdict().items() if k not in {"policy", "targets"}}
    return {**scenario._asdict(), "device": of}


def state_of(device: DeviceResult) -> dict[str, Any]:
    """What became of the devices, for JSON."""
    rules = [
        {"text": f"{one.rule}: {one.rule.then}", **one._asdict(), "rule": {**one.rule._asdict(), "leave": one.rule.ends}}
        for one in device.rules
    ]
    return {**device._asdict(), "rules": rules}


def notes_of(scenario: Scenario, state: dict[str, Any] | None) -> list[str]:
    """What is to be said of the devices' state; nothing if they have none."""
    if state is None or scenario.device is None:
        return []
    from edgeroute.tools.replay.fleet.devices import CHARGE, SIMULATED, SURROUNDINGS_C

    hottest = f"the hottest one had {state['hottest_c']:.1f} C"
    lines = [
        "in force: the share of the time, of the average device; switches: how often the rule began or ended there",
        "at once: the largest share of the devices for which it was in force",
        f"charges differ by up to {CHARGE:.0%} of a full battery, surroundings by up to {SURROUNDINGS_C:g} degrees",
    ]
    never = dict.fromkeys(one["rule"]["of"] for one in state["rules"] if one["rule"]["of"] not in SIMULATED)
    lines += [f"{of} is not simulated: its rules were never in force" for of in never]
    if state["battery"] is None:
        return [*lines, f"The devices are on mains; {hottest}."]
    empty = f", and {state['empty']:.0%} of the devices had none" if state["empty"] else ""
    return [*lines, f"At the end {state['battery']:.0%} of a full battery were left{empty}; {hottest}."]


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
    from edgeroute.tools.replay.fleet.scenario import AGAIN_S, EDGEROUTE, Scenario, clients

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

    from edgeroute.tools.measure.report.progress import bar

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
    from edgeroute.tools.replay.fleet.run import needed
    from edgeroute.tools.replay.fleet.run import simulate as run

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
    from edgeroute.tools.replay.fleet.run import MOST

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
    from edgeroute.core.admission import CAP, RETRY
    from edgeroute.tools.replay.fleet.scenario import AGAIN_S, EDGEROUTE, GOOD, PER_ATTEMPT

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


# `edgeroute simulate load`: what devices do before a cloud that is too small, with and without what it reports of its load.

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
    from edgeroute.tools.replay.fleet.scenario import LOAD_AWARE, Scenario

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
    rows = rows_of(scenario, LOAD_AWARE, _load_row)
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


def _load_row(scenario: Scenario, client: Client) -> dict[str, Any]:
    """Runs one simulation, in a process of its own; returns numbers. Times in seconds, shares 0..1."""
    from edgeroute.tools.replay.fleet.run import simulate as run

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
