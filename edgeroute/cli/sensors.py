from __future__ import annotations

import json
from pathlib import Path
from time import sleep
from typing import Annotated

import typer

from edgeroute.cli.exits import OK
from edgeroute.cli.options import Json
from edgeroute.cli.tables import table
from edgeroute.core.texts import printable

UNITS = {"temperature_c": "{:.1f} C", "power_w": "{:.2f} W"}
"""Of a reading's numbers; the others are shares."""
BETWEEN_S = 0.5
"""Time between the two readings: what is a difference is not known before the second."""


def sensors(
    *,
    root: Annotated[
        Path, typer.Option(metavar="FOLDER", help="Where sysfs and procfs are, as in a container that has its host's elsewhere.")
    ] = Path("/"),
    as_json: Json = False,
) -> int:
    """Shows what this device tells of itself, and what is not known and why: battery, heat, load, memory, power, network."""
    from edgeroute.observe.device.commands import TIMEOUT_S
    from edgeroute.observe.sensors import DeviceSensors

    if not root.is_dir():
        raise typer.BadParameter(f"{str(root)!r} is no folder", param_hint="--root")
    device = DeviceSensors(root, fresh_s=0.0)
    device()
    device.commands.wait(TIMEOUT_S)
    sleep(BETWEEN_S)
    device()
    told = device.told()
    if as_json:
        print(json.dumps({name: {"value": value, "by": by} for name, (value, by) in told.items()}, allow_nan=False))
        return OK
    rows = [(name, _shown(name, value), printable(by)) for name, (value, by) in told.items()]
    table(("reading", "value", "from, or why it is not known"), rows, ("reading", "from, or why it is not known"))
    return OK


def _shown(name: str, value: bool | float | None) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return UNITS.get(name, "{:.1%}").format(value)
