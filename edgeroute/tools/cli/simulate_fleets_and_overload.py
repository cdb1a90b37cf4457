"""Command `edgeroute simulate`: `fleet`, an outage or the days of simulated devices; `load`, a cloud too small for them."""

from __future__ import annotations

import json
import os
import re
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from edgeroute.tools.cli.command_runner import command
from edgeroute.tools.cli.tables_and_options import Json, OptionalPolicy, console, of_share, rings_of, seconds, share, table

if TYPE_CHECKING:
    from edgeroute.tools.fleet.simulated_alarms_and_rollouts import Fleet
    from edgeroute.tools.replay.fleet.simulated_devices_and_cloud import Client, Device, DeviceResult, Scenario


def device_of(policy: Path | None, **more: float | None) -> Device | None:
    """Return the simulated device with a policy file, which is read; None without one.

    more: fields of the device; those that are None have its defaults.

    Raises:
        typer.BadParameter: a field is not a number, or there is no policy to use it, or the policy lacks an edge or a cloud.
    """
    fields = {name: value for name, value in more.items() if value is not None}
    if any(value != value for value in fields.values()):  # noqa: PLR0124 - NaN is in no range, and out of none
        raise typer.BadParameter("each of the device's options needs a number, not nan")
    if policy is None:
        if fields:
            raise typer.BadParameter("battery, heat and load of the devices need their policy", param_hint="--policy")
        return None
    from edgeroute.tools.replay.fleet.simulated_devices_and_cloud import Device
    from edgeroute.tools.replay.replay_setup_and_result import Setup

    device = Device.of(Setup.read(policy), **fields)
    if {target.side for target in device.targets} != {"edge", "cloud"}:
        raise typer.BadParameter(f"{policy}: the devices of a fleet need an [edge] and a [cloud]", param_hint="--policy")
    return device


def scenario_dict(scenario: Scenario) -> dict[str, Any]:
    """Return the scenario as JSON data, without the policy and targets of its device: their rules are in the results."""
    device = scenario.device
    fields = None if device is None else {k: v for k, v in device._asdict().items() if k not in {"policy", "targets"}}
    return {**scenario._asdict(), "device": fields}


def device_dict(device: DeviceResult) -> dict[str, Any]:
    """Return the final state of the devices and the use of each rule, as JSON data."""
    rules = [
        {
            "text": f"{usage.rule}: {usage.rule.then}",
            **usage._asdict(),
            "rule": {**usage.rule._asdict(), "leave": usage.rule.ends},
        }
        for usage in device.rules
    ]
    return {**device._asdict(), "rules": rules}


def state_notes(scenario: Scenario, state: dict[str, Any] | None) -> list[str]:
    """Return explanations of what the output says on the devices' battery, heat and rules; [] if they have no state or policy."""
    if state is None or scenario.device is None:
        return []
    from edgeroute.tools.replay.fleet.simulated_devices_and_cloud import CHARGE, SIMULATED, SURROUNDINGS_C

    hottest = f"the hottest one had {state['hottest_c']:.1f} C"
    lines = [
        "in force: share of the time, for the average device; switches: how often the rule began or ended there",
        "at once: largest share of the devices for which it was in force at a time",
        f"charges differ by up to {CHARGE * 100:.0f} % of a full battery, surroundings by up to {SURROUNDINGS_C:g} degrees",
    ]
    never = dict.fromkeys(usage["rule"]["of"] for usage in state["rules"] if usage["rule"]["of"] not in SIMULATED)
    lines += [f"{of} is not simulated: its rules were never in force" for of in never]
    if state["battery"] is None:
        return [*lines, f"The devices are on mains; {hottest}."]
    empty = f", and {state['empty'] * 100:.0f} % of the devices had none" if state["empty"] else ""
    return [*lines, f"At the end {state['battery'] * 100:.0f} % of a full battery were left{empty}; {hottest}."]


LONGEST_S = 30 * 86_400.0  # longest time to simulate
MOST_PER_S = 1_000_000  # most requests to the cloud to simulate, per second
MOST_MULTIPLE = 1_000
POLL_S = 0.2  # interval of the checks if simulations are done, seconds: where a wait cannot be interrupted, Ctrl-C acts within it
WITHIN = 2  # the required capacity lets the cloud recover within this many times the outage

STATE = "Devices with a state"
DAYS = "Days of a fleet that sends digests"

simulate = typer.Typer(name="simulate", no_args_is_help=True, help="Simulate many devices in front of one cloud. None is used.")


def multiple(text: str) -> float:
    """Parse `1.5x` to 1.5; raise `typer.BadParameter` for 0x, more than 1,000x and all else."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?) ?x", str(text).strip())
    if match is None or not 0 < float(match[1]) <= MOST_MULTIPLE:
        need = f"a multiple of the usual load, more than 0x and at most {MOST_MULTIPLE:,}x, as in 1.5x"
        raise typer.BadParameter(f"a capacity must be {need}, not {text!r}")
    return float(match[1])


def simulated_time(text: str) -> float:
    """Parse a time with a unit to seconds; raise `typer.BadParameter` for one without, and for more than 30 days."""
    time_s = seconds(text)
    if time_s > LONGEST_S:
        raise typer.BadParameter(f"the longest time to simulate is {LONGEST_S / 86_400:g}d, not {text!r}")
    return time_s


_of_device = partial(typer.Option, rich_help_panel=STATE)
_simulated = partial(typer.Option, parser=simulated_time, metavar="TIME")
SimulatedTime = Annotated[Any, _simulated()]
OutageTime = Annotated[Any, _simulated(show_default="10s; with --days 6h")]
_of_days = partial(typer.Option, rich_help_panel=DAYS)
PerMinute = Annotated[float, typer.Option(min=0.001, help="Requests per minute of each device.")]
Defer = Annotated[float, of_share("Share of requests that the edge defers.", show_default="10%")]
Capacity = Annotated[
    Any, typer.Option(parser=multiple, metavar="MULTIPLE", help="Capacity of the cloud, as a multiple of its usual load.")
]
Length = Annotated[Any, _simulated(help="Simulated time.")]
Timeout = Annotated[Any, _simulated(help="Timeout of the cloud in the devices' policy.")]
Queue = Annotated[Any, _simulated(help="Longest wait in the cloud: it refuses others (503).")]
RetryAfter = Annotated[Any, _simulated(help="Retry-After of its 503; 0s: none.")]
Seed = Annotated[int, typer.Option(min=0, help="Seed of the random numbers; the same seed gives the same results.")]


@command(simulate)
def fleet(
    *,
    devices: Annotated[int, typer.Option(min=1, max=5_000_000)] = 1_000_000,
    per_minute: PerMinute = 1.0,
    defer: Defer = 0.1,
    capacity: Capacity = "1.5x",
    outage: OutageTime = None,
    outage_is: Literal["silent", "refused"] = "silent",
    length: Length = "15m",
    timeout: Timeout = "2s",
    offline: Literal["edge", "queue"] = "edge",
    spread: SimulatedTime = "60s",
    queue: Queue = "10s",
    retry_after: RetryAfter = "0s",
    together: Annotated[float, typer.Option(parser=share, metavar="SHARE", show_default="0%")] = 0.0,
    seed: Seed = 0,
    policy: OptionalPolicy = None,
    battery: Annotated[float | None, _of_device(parser=share, metavar="SHARE")] = None,
    battery_wh: Annotated[float | None, _of_device(min=0, max=1e6, show_default="10")] = None,
    idle_watts: Annotated[float | None, _of_device(min=0, max=1e6, show_default="1")] = None,
    edge_joules: Annotated[float | None, _of_device(min=0, max=1e6, show_default="0.1")] = None,
    edge_time: Annotated[float | None, _of_device(parser=simulated_time, metavar="TIME", show_default="50ms")] = None,
    ambient: Annotated[float | None, _of_device(min=-100, max=100, show_default="25")] = None,
    days: Annotated[int | None, _of_days(min=60, max=3_650, show_default="none: an outage is simulated")] = None,
    rings: Annotated[Any, _of_days(parser=rings_of, metavar="SHARE,...")] = "1%,10%,100%",
    bad_policy: Annotated[bool, _of_days()] = True,
    drift: Annotated[float, _of_days(parser=share, metavar="SHARE", show_default="5%")] = 0.05,
    liars: Annotated[float, _of_days(parser=share, metavar="SHARE", show_default="5%")] = 0.05,
    as_json: Json = False,
) -> None:
    """Simulate an outage of a fleet's cloud, with and without each mechanism that protects the cloud; or a fleet's days.

    The cloud serves one queue, and also serves requests whose device has given up. With the devices' policy its
    rules react to battery, heat and load.

    Every device is simulated, as elements of arrays, in steps of 0.1 s. The required capacity is found with a sample of 20,000.

    Args:
        devices: Number of devices.
        outage: Length of the outage.
        outage_is: During the outage there is no reply, or connections are refused.
        offline: `offline` in the devices' policy; queue: an outbox.
        spread: `spread` of the devices' outboxes.
        together: Share of devices that ask in the outage's first second.
        battery: Charge of the average device at the start. Without it devices are on mains.
        battery_wh: Capacity of the battery, Wh.
        idle_watts: Power of an idle device, W.
        edge_joules: Energy of a run of the edge, J.
        edge_time: Time of a run of the edge.
        ambient: Ambient temperature, Celsius.
        days: Simulate so many days of digests, and the alarms and rollouts of `edgeroute fleet`, in place of an outage.
        rings: Shares of the devices that take a new policy, one after the other.
        bad_policy: Also roll out a bad policy.
        drift: Share of the devices whose disagreement rises, eightfold.
        liars: Share of the devices that report false counts.

    Blocks, with a process for each mechanism and a progress bar; prints tables, or JSON. Nothing is sent or written.

    Raises:
        typer.BadParameter: the cloud has no load or too much, the length ends before the outage, or the capacity is 1x or less.
    """
    from edgeroute.tools.replay.fleet.simulated_devices_and_cloud import AGAIN_S, Scenario, clients

    if days is not None:
        outage_s = 6 * 3600.0 if outage is None else outage
        simulate_days(as_json, devices, days, per_minute, defer, rings, bad_policy, drift, liars, outage_s, seed)
        return
    outage = 10.0 if outage is None else outage

    if capacity <= 1:
        raise typer.BadParameter("a cloud recovers only with more than 1x", param_hint="--capacity")
    device = device_of(
        policy, battery=battery, battery_wh=battery_wh, idle_w=idle_watts, run_j=edge_joules, run_s=edge_time, ambient_c=ambient
    )
    scenario = Scenario(
        devices, per_minute, defer, length, capacity, queue_s=queue, outage_s=outage, silent=outage_is == "silent",
        retry_after_s=retry_after, timeout_s=timeout, offline=offline, together=together, seed=seed, device=device,
    )  # fmt: skip
    if not scenario.normal_per_s:
        why = "with nothing deferred" if not defer or device is None else f"under {policy}, without a rule in force,"
        raise typer.BadParameter(f"{why} the cloud has no load", param_hint="--policy" if defer else "--defer")
    if not scenario.normal_per_s <= MOST_PER_S:
        raise typer.BadParameter(
            f"at most {MOST_PER_S:,} requests per second to the cloud can be simulated", param_hint="--per-minute"
        )
    if scenario.length_s < scenario.back_at_s + AGAIN_S:
        raise typer.BadParameter(f"too short: the outage is over at {scenario.back_at_s:g} s", param_hint="--length")
    rows = simulate_clients(scenario, clients(scenario, spread), _outage_results)
    if as_json:
        print(json.dumps({"scenario": scenario_dict(scenario), "clients": rows}))
        return
    show(scenario, rows)


def simulate_clients(
    scenario: Scenario, compared: Sequence[Client], row: Callable[[Scenario, Client], dict[str, Any]]
) -> list[dict[str, Any]]:
    """Call `row(scenario, client)` for each client in its own process, with a progress bar; wait, and return them in order.

    At most as many processes as cores run at a time. If this one is interrupted or one fails, all child processes that
    `multiprocessing` knows of are terminated at once, and the exception is raised.
    """
    from concurrent.futures import ProcessPoolExecutor, wait
    from multiprocessing import active_children, get_context

    from edgeroute.tools.measure.report.progress_bar import bar

    quiet = (signal.SIGINT, signal.SIG_IGN)
    processes = ProcessPoolExecutor(
        min(len(compared), os.cpu_count() or 1), mp_context=get_context("spawn"), initializer=signal.signal, initargs=quiet
    )
    try:
        with _without_ctrl_c():
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


def simulate_days(as_json: bool, *fields: Any) -> None:
    """Simulate the days of a fleet, with a progress bar, and print the results as tables, or as JSON. Blocks.

    fields: those of `Fleet`, in their order.
    """
    from edgeroute.tools.fleet.simulated_alarms_and_rollouts import Fleet, summary
    from edgeroute.tools.measure.report.progress_bar import bar

    fleet = Fleet(*fields)
    with bar() as progress:
        task = progress.add_task(f"simulating {fleet.devices:,} devices", total=fleet.days)
        result = summary(fleet, lambda day: progress.update(task, completed=day + 1))
    if as_json:
        print(json.dumps({"fleet": fleet._asdict(), **result}))
        return
    out = console()
    begins = ", ".join(f"{name} {day}" for name, day in result["begins"].items())
    out.print(f"{fleet.devices:,} devices, {fleet.days} days. Days of events: {begins}.")
    times = [
        (
            _fleet_of(row["devices"]),
            *(_days(row[name]) for name in ("p5", "p50", "p95")),
            *(f"{_days(row[by]['p50'])}, {_days(row[by]['p95'])}" if by in row else "" for by in ("by_days", "by_weeks")),
        )
        for row in result["times"]
    ]
    out.print("Answers of all devices differ twice as often; by hourly counts there is an alarm after:")
    table(("audits of", "5 %", "median", "95 %", "by days", "by weeks"), times, ("audits of",))
    out.print(f"fleet alarm counts by days; by weeks {fleet.liars * 100:.0f} % liars are allowed for. Of both median and 95 %.")
    steps = [
        (name, step["day"], step["did"].replace("_", " "), f"{step['share'] * 100:.0f} %")
        for name, rollout in result["rollouts"].items()
        for step in rollout["steps"]
    ]
    table(("policy", "day", "decision", "may take it"), steps, ("policy", "decision"))
    named = [(row["day"], row["drift"], row["liars"], row["wrong"]) for row in result["suspects"]]
    table(("suspects by day", "drift", "lie", "wrongly named"), named)
    for line in days_notes(fleet, result):
        out.print(line)


def days_notes(fleet: Fleet, result: dict[str, Any]) -> list[str]:
    """Return the results of a fleet's days that are in no table, as sentences: alarms, suspects, certificates, digests' size."""
    day = {row["liars"]: "no alarm" if row["day"] is None else f"an alarm on day {row['day']}" for row in result["alarms"]}
    lines = [f"The fleet's test, with {liars * 100:.0f} % liars allowed for: {text}." for liars, text in day.items()]
    named = {name: sum(row[name] for row in result["suspects"]) for name in ("drift", "liars", "wrong")}
    total = max(1, sum(named.values()))
    lines.append(
        f"Suspects: {named['drift']:,} of {result['drift']:,} devices that drift, {named['liars']:,} of {result['liars']:,} that "
        f"lie, and {named['wrong']:,} wrongly ({100 * named['wrong'] / total:.1f} % of those named)."
    )
    false, size, certificates = result["false_alarms"], result["bytes"], result["certificates"]
    bad = result["rollouts"].get("bad")
    return [
        *lines,
        *([] if bad is None else [f"The bad policy reached {bad['exposed'] * 100:.2f} % of the devices."]),
        (
            f"Alarms in {fleet.days} days without drift, in {false['fleets']} fleets of 100 devices, {fleet.liars * 100:.0f} % "
            f"of them liars: {false['trusting']} by the test that trusts all, {false['alarms']} by the one that allows for them."
        ),
        f"Broken certificates of such fleets: {certificates['broken']} of {certificates['of']:,}, at a risk of 5%.",
        f"A digest has {size['mean']:.0f} bytes on average, {size['p99']:.0f} at the 99th percentile.",
    ]


def _fleet_of(devices: int) -> str:
    """Format a number of devices whose audits are tested together."""
    return "one device" if devices == 1 else f"{devices:,} devices"


def _days(hours: float | None) -> str:
    """Format hours as hours or days; None as "later"."""
    return "later" if hours is None else f"{hours:.0f} h" if hours < 48 else f"{hours / 24:.0f} d"  # noqa: PLR2004 - two days


@contextmanager
def _without_ctrl_c() -> Iterator[None]:
    """Delay Ctrl-C to the end of the `with` block, where it raises KeyboardInterrupt.

    Processes started in it ignore Ctrl-C, but not on Windows. Outside the main thread, or where Ctrl-C is ignored, it does
    nothing.
    """
    if threading.current_thread() is not threading.main_thread() or signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        yield
        return
    received: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, _: received.append(number))  # a thread of a library may take the signal
    if sys.platform != "win32":
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        if sys.platform != "win32":
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        signal.signal(signal.SIGINT, before)
    if received:
        raise KeyboardInterrupt


# Figures of an outage that are attributes of its result.
COUNTS = ("cloud_back_s", "fleet_back_s", "degraded", "lost", "queued", "delivered", "waiting", "probes")


def _outage_results(scenario: Scenario, client: Client) -> dict[str, Any]:
    """Simulate an outage with one client, and find the capacity it needs; return the results as JSON data: seconds, shares 0..1.

    It runs in a process of its own.
    """
    from edgeroute.tools.replay.fleet import outage_simulation_and_capacity_search as outages

    result = outages.simulate(scenario, client)
    return {
        **client._asdict(),
        **{name: getattr(result, name) for name in COUNTS},
        "peak": round(result.peak, 3),
        "asked": int(result.asked.sum()),
        "answered": int(result.answered.sum()),
        "wasted": round(result.wasted_share, 4),
        "capacity_needed": outages.needed(scenario, client, WITHIN * scenario.outage_s),
        **({} if result.device is None else {"device": device_dict(result.device)}),
    }


def show(scenario: Scenario, rows: list[dict[str, Any]]) -> None:
    """Print the results of an outage: a table with a row for each client, a table of the rules of the devices' policy, and notes.

    The rules' use is that of `rows[0]`. Without a policy there is no such table.
    """
    from edgeroute.tools.replay.fleet.outage_simulation_and_capacity_search import MOST

    lines = [
        (
            row["name"], _time(row["cloud_back_s"]), _time(row["fleet_back_s"]), f"{row['peak']:.1f}x",
            f"{100 * row['degraded'] / max(row['asked'], 1):.1f} %", f"{row['wasted'] * 100:.0f} %",
            f"> {MOST:g}x" if row["capacity_needed"] is None else f"{row['capacity_needed']:g}x",
        )
        for row in rows
    ]  # fmt: skip
    out = console()
    out.print(
        f"{scenario.devices:,} devices ask the cloud {scenario.normal_per_s:,.0f} times a second. It can answer "
        f"{scenario.capacity_per_s:,.0f}, and is away for {scenario.outage_s:g} s."
    )
    table(("devices", "cloud back", "fleet back", "peak", "degraded", "in vain", "needs"), lines, ("devices",))
    if (state := rows[0].get("device")) is not None:
        rules = [
            (use["text"], f"{use['share'] * 100:.1f} %", f"{use['switches']:.2f}", f"{use['most'] * 100:.0f} %")
            for use in state["rules"]
        ]
        table(("rule", "in force", "switches", "at once"), rules, ("rule",))
    for line in outage_notes(scenario, rows):
        out.print(line)


def outage_notes(scenario: Scenario, rows: list[dict[str, Any]]) -> list[str]:
    """Return the sentences below the tables of a simulated outage; draws and changes nothing.

    They say what the columns mean, what the scenario cannot show, how soon the cloud was back with `rows[0]`, edgeroute as it is,
    with which of the other clients it took more than twice the outage, and how many requests of all clients had no answer.
    """
    from edgeroute.core.endpoint_breaker_and_limits import CAP, RETRY
    from edgeroute.tools.replay.fleet.simulated_devices_and_cloud import AGAIN_S, EDGEROUTE, GOOD, PER_ATTEMPT

    within_s = WITHIN * scenario.outage_s
    ours, others = rows[0], rows[1:]
    slow = [row["name"] for row in others if _more(row["cloud_back_s"], within_s)]
    lines = [
        f"cloud back: time after the outage from which {GOOD * 100:.0f} % of attempts were answered in any {AGAIN_S:g} s",
        "fleet back: the same for requests, including those that a breaker did not let through",
        "degraded: share of the requests with the edge's answer although it was not sure",
        "peak: busiest second after the outage, as a multiple of the usual load",
        "in vain: share of the cloud's work for devices that had given up",
        f"needs: capacity with which the cloud is back within {within_s:g} s",
    ]
    lines += state_notes(scenario, ours.get("device"))
    if scenario.offline == "queue":
        lines.append(
            "no spread: the outboxes send waiting requests as soon as they may, and not after a random part of "
            f"{ours['spread_s']:g} s, or more once they have waited long"
        )
    if (takes_s := 1 / scenario.capacity_per_s) > scenario.timeout_s:
        lines.append(
            f"At this capacity the cloud takes {takes_s:.3g} s for a request, and devices wait for {scenario.timeout_s:g} s: any "
            "real server is faster, so use a larger --capacity with few devices."
        )
    a_minute = scenario.per_minute * scenario.defer
    if EDGEROUTE.retries * a_minute / 60 * (scenario.outage_s + scenario.timeout_s) < CAP / RETRY:
        lines.append(
            f"A device asks the cloud {a_minute:g} times a minute, too seldom to empty its retry budget: only busy devices "
            "show its effect."
        )
        if any(row["name"] == PER_ATTEMPT.name and _more(row["capacity_needed"], ours["capacity_needed"]) for row in others):
            lines.append(
                "The cloud is spared by quiet devices since the timeout is for the whole call, and a timeout is never retried: "
                f"without both ({PER_ATTEMPT.name}) it needs more."
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
        lines.append(f"Others took more than {within_s:g} s: {'; '.join(slow)}.")
    lost = sum(row["lost"] for row in rows)
    lines.append(f"{lost:,} requests had no answer." if lost else "Every request had an answer, the cloud's or the edge's.")
    return lines


def _more(a: float | None, b: float | None) -> bool:
    """Return True if `a` is larger; None is the maximum."""
    return b is not None and (a is None or a > b)


def _time(back_s: float | None) -> str:
    """Format a time to recovery; None as "never"."""
    return "never" if back_s is None else f"{back_s:g} s"


# `edgeroute simulate load`: devices in front of a cloud that is too small, with and without its reports of load.

FEW = 20_000  # most devices: each one's limit of concurrent calls is simulated


def load(
    *,
    devices: Annotated[int, typer.Option(min=1, max=FEW)] = 1_000,
    per_minute: PerMinute = 60.0,
    defer: Defer = 0.1,
    capacity: Capacity = "0.6x",
    length: Length = "15m",
    timeout: Timeout = "2s",
    queue: Queue = "1s",
    retry_after: RetryAfter = "1s",
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Simulate a fleet with a cloud that is too small for it: with load hints, adaptive concurrency, both and neither.

    Where the edge would defer, its answers are assumed right in 80 % where it is surest, down to 20 %, and the cloud's in 95 %.

    Args:
        devices: Number of devices.

    Blocks, with a process for each of the four and a progress bar; prints a table, or JSON.

    Raises:
        typer.BadParameter: the cloud has no load or too much.
    """
    from edgeroute.tools.replay.fleet.simulated_devices_and_cloud import LOAD_AWARE, Scenario

    scenario = Scenario(
        devices, per_minute, defer, length, capacity, queue_s=queue, outage_at_s=length + 1e6, outage_s=0.0,
        retry_after_s=retry_after, timeout_s=timeout, seed=seed,
    )  # fmt: skip
    if not 0 < scenario.normal_per_s <= MOST_PER_S:
        raise typer.BadParameter(
            f"up to {MOST_PER_S:,} requests per second to the cloud can be simulated, not {scenario.normal_per_s:g}",
            param_hint="--per-minute",
        )
    rows = simulate_clients(scenario, LOAD_AWARE, _load_results)
    if as_json:
        print(json.dumps({"scenario": scenario._asdict(), "clients": rows}))
        return
    out = console()
    out.print(
        f"{devices:,} devices would ask the cloud {scenario.normal_per_s:,.0f} times a second. "
        f"It can answer {scenario.capacity_per_s:,.0f}."
    )
    lines = [
        (
            row["name"], *(f"{row[name] * 100:.1f} %" for name in ("cloud", "kept", "degraded", "refused", "late", "wasted")),
            f"{row['p50_s']:.2f} s", f"{row['p99_s']:.2f} s", f"{row['accuracy'] * 100:.1f} %",
        )
        for row in rows
    ]  # fmt: skip
    columns = ("devices", "cloud", "kept", "degraded", "refused", "late", "in vain", "p50", "p99", "right")
    table(columns, lines, ("devices",))
    out.print(
        "cloud, kept, degraded: shares of the requests that the edge would defer: answered by the cloud; answered by the edge,\n"
        "as the cloud reported its load; answered by the edge since the cloud was not asked, refused or was late\n"
        "refused, late: shares of the calls; in vain: share of the cloud's work for devices that had given up\n"
        "p50, p99: time until the answer; right: expected share of right answers to the requests that the edge would defer"
    )


def _load_results(scenario: Scenario, client: Client) -> dict[str, Any]:
    """Simulate a cloud that is too small with one client; return the results as JSON data: seconds, shares 0..1.

    It runs in a process of its own.
    """
    from edgeroute.tools.replay.fleet.outage_simulation_and_capacity_search import simulate as run

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
