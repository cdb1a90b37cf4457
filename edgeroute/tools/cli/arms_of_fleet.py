"""Command `edgeroute arms`: the arms of trials over many devices."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edgeroute.errors import BadInput
from edgeroute.system.foreign_files import MOST_DATA, parse_json, read_text
from edgeroute.system.process import replace_file
from edgeroute.tools.cli.exit_codes import NOT_READY, OK
from edgeroute.tools.cli.status import show_arms, trials_of
from edgeroute.tools.cli.tables_and_options import Json, console, table

if TYPE_CHECKING:
    from edgeroute.tools.measure.fleet_trial import Device, Fleet

Devices = Annotated[
    list[Path],
    typer.Argument(metavar="DEVICE...", help="Output of `edgeroute status --json`, one device a line or file; or state folders."),
]


def arms(
    devices: Devices,
    *,
    report: Annotated[Path | None, typer.Option(metavar="FILE", help="Also write the report as an HTML page.")] = None,
    as_json: Json = False,
) -> int:
    """Compare the arms of a trial over many devices, and report whether the one on trial is worse than allowed.

    Where each device is in one arm, no single device can compare them. Exit code 4: it is worse, stop it; or an endpoint on
    trial is stopped on a device.
    """
    from edgeroute.tools.measure.fleet_trial import compare
    from edgeroute.tools.measure.report.report_page import basis, document, fleets_page

    trials: dict[tuple[str, str], list[Device]] = {}
    for path in devices:
        of_path = [*_read(path)]
        for device in of_path:
            trials.setdefault((device.settings.side, str(device.arms[1].get("arm"))), []).append(device)
        if not of_path:
            print(f"{path} has no trial: left out", file=sys.stderr)
    fleets = [(compare(devices), len(devices)) for devices in trials.values() or [[]]]
    pages = [(fleet, basis(count, sum(arm.requests for arm in fleet.arms))) for fleet, count in fleets]
    if report is not None:
        replace_file(report, document(fleets_page(pages)))
    stops = any(fleet.worse or (fleet.settings.side == "cloud" and fleet.arms[1].stopped) for fleet, _ in fleets)
    if as_json:
        print(json.dumps({"trials": [{"devices": count, **fleet.as_dict()} for fleet, count in fleets]}, allow_nan=False))
    else:
        for fleet, summary in pages:
            _show(fleet, summary)
        if report is not None:
            print(f"written to {report}")
    return NOT_READY if stops else OK


def _read(path: Path) -> Iterator[Device]:
    """Yield the trials of the device of a state folder, or of the devices of a file: one JSON document, or one a line.

    Raises:
        BadInput: it is neither.
    """
    if path.is_dir():
        from edgeroute.tools.cli.status import read_state

        yield from _trials(str(path), {"trials": trials_of(read_state(path))})
        return
    try:
        text = read_text(path, MOST_DATA)
    except (OSError, ValueError) as e:
        raise BadInput(f"{path} cannot be read: {e}") from e
    try:
        data = parse_json(text)
        by_origin = {str(path): data}
    except ValueError:
        lines = [(i, entry) for i, entry in enumerate(text.splitlines(), 1) if entry.strip()]
        try:
            by_origin = {f"{path}:{i}": parse_json(entry) for i, entry in lines}
        except ValueError as e:
            raise BadInput(f"{path} is not what `edgeroute status --json` prints: {e}") from e
    for origin, entry in by_origin.items():
        yield from _trials(origin, entry)


def _trials(origin: str, status: Any) -> Iterator[Device]:
    """Yield the trials of a device's status; none if it lacks `trials`.

    Raises:
        BadInput: it is no status, or the settings of a trial cannot be read.
    """
    from edgeroute.tools.measure.fleet_trial import Device, settings_of

    if not isinstance(status, dict) or not isinstance(trials := status.get("trials", []), list):
        raise BadInput(f"{origin} is not what `edgeroute status --json` prints")
    for trial in trials:
        stored: dict[str, Any] = trial if isinstance(trial, dict) else {}
        stored_settings, device_arms = stored.get("settings") or {}, stored.get("arms")
        settings = settings_of(stored_settings)
        if settings is None or not isinstance(device_arms, list) or [*map(type, device_arms)] != [dict, dict]:
            raise BadInput(f"{origin}: the settings of its trial cannot be read")
        name = stored_settings.get("device")
        yield Device(origin, None if name is None else str(name), settings, device_arms)


def _show(fleet: Fleet, summary: str) -> None:
    """Print the comparison: arms, and if a measure was compared, differences and verdict."""
    from edgeroute.tools.measure.report.report_page import difference, how, verdict

    print(summary)
    show_arms([{key: list(value) if isinstance(value, tuple) else value for key, value in arm._asdict().items()}
               for arm in fleet.arms])  # fmt: skip
    if not fleet.settings.measures:
        return
    less = f"{fleet.arms[1].arm} less {fleet.arms[0].arm}"
    rows = [(row.measure, *difference(row)) for row in fleet.differences]
    table((less, "difference", "interval", "allowed", ""), rows, (less, ""))
    print(how(fleet))
    console().print(" ".join(verdict(fleet)), markup=False)
