from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from edgeroute.replay.fleet.course import DeviceResult
    from edgeroute.replay.fleet.hardware import Device
    from edgeroute.replay.fleet.scenario import Scenario


def device_of(policy: Path | None, **more: float | None) -> Device | None:
    """A device of the fleet with the policy of a file, None without one; `more` are fields of it, as far as they are given."""
    given = {name: value for name, value in more.items() if value is not None}
    if any(value != value for value in given.values()):  # noqa: PLR0124 - NaN is in no range, and out of none
        raise typer.BadParameter("a number is needed for each of the device's figures, and nan is none")
    if policy is None:
        if given:
            raise typer.BadParameter("a device has a battery, heat and load if it has a policy", param_hint="--policy")
        return None
    from edgeroute.replay.fleet.hardware import Device
    from edgeroute.replay.setup import Setup

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
    from edgeroute.replay.fleet.course import CHARGE, SIMULATED, SURROUNDINGS_C

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
