from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edgeroute.errors import BadInput, StoreError
from edgeroute.tools.cli.exits import NOT_READY, OK
from edgeroute.tools.cli.status import show_arms, trials_of
from edgeroute.tools.cli.tables import Json, console, table

if TYPE_CHECKING:
    from edgeroute.tools.measure.fleet import Device, Fleet

Devices = Annotated[
    list[Path],
    typer.Argument(
        metavar="DEVICE...", help="What `edgeroute status --json` printed, one device a line or file; or state folders.",
        show_default=False,
    ),
]  # fmt: skip


def arms(
    devices: Devices,
    *,
    report: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write a page to show, as HTML, too.", show_default=False)
    ] = None,
    as_json: Json = False,
) -> int:
    """Compares the arms of a trial over many devices, and says whether what is on trial is worse than is allowed.

    Where each device is in one arm, no device can compare them by itself: this does. Exit code 4: it is worse, stop it; or an
    endpoint on trial is stopped on a device.
    """
    from edgeroute.tools.measure.fleet import compared
    from edgeroute.tools.measure.report.page import made_of

    trials: dict[tuple[str, str], list[Device]] = {}
    for path in devices:
        read = [*_read(path)]
        for one in read:
            trials.setdefault((one.settings.side, str(one.arms[1].get("arm"))), []).append(one)
        if not read:
            print(f"{path} has no trial: left out", file=sys.stderr)
    fleets = [(compared(found), len(found)) for found in trials.values() or [[]]]
    pages = [(fleet, made_of(count, sum(arm.requests for arm in fleet.arms))) for fleet, count in fleets]
    if report is not None:
        _write(report, pages)
    stops = any(fleet.worse or (fleet.settings.side == "cloud" and fleet.arms[1].stopped) for fleet, _ in fleets)
    if as_json:
        print(json.dumps({"trials": [{"devices": count, **fleet.as_dict()} for fleet, count in fleets]}, allow_nan=False))
    else:
        for fleet, said in pages:
            _show(fleet, said)
        if report is not None:
            print(f"written to {report}")
    return NOT_READY if stops else OK


def _read(path: Path) -> Iterator[Device]:
    """Yield the trials of the device of a state folder, or of the devices of a file.

    Raises:
        BadInput: it is neither.
    """
    if path.is_dir():
        from edgeroute.tools.cli.status import read_state

        yield from _trials(str(path), {"trials": trials_of(read_state(path))})
        return
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, ValueError) as e:
        raise BadInput(f"{path} cannot be read: {e}") from e
    try:
        whole = json.loads(text)
        told = {str(path): whole}
    except ValueError:
        lines = [(i, one) for i, one in enumerate(text.splitlines(), 1) if one.strip()]
        try:
            told = {f"{path}:{i}": json.loads(one) for i, one in lines}
        except (ValueError, RecursionError) as e:
            raise BadInput(f"{path} is not what `edgeroute status --json` prints: {e}") from e
    except RecursionError as e:
        raise BadInput(f"{path} is not what `edgeroute status --json` prints: it is nested too deeply") from e
    for origin, one in told.items():
        yield from _trials(origin, one)


def _trials(origin: str, told: Any) -> Iterator[Device]:
    from edgeroute.tools.measure.fleet import Device, settings_of

    if not isinstance(told, dict) or not isinstance(trials := told.get("trials", []), list):
        raise BadInput(f"{origin} is not what `edgeroute status --json` prints")
    for one in trials:
        kept, own = (one.get("settings") or {}, one.get("arms")) if isinstance(one, dict) else ({}, None)
        settings = settings_of(kept)
        if settings is None or not isinstance(own, list) or len(own) != 2 or not all(isinstance(arm, dict) for arm in own):  # noqa: PLR2004
            raise BadInput(f"{origin}: the settings of its trial cannot be read")
        name = kept.get("device")
        yield Device(origin, None if name is None else str(name), settings, own)


def _write(report: Path, pages: Sequence[tuple[Fleet, str]]) -> None:
    from edgeroute.system.process import replace_file
    from edgeroute.tools.measure.report.page import document, of_fleets

    try:
        replace_file(report, document(of_fleets(pages)))
    except OSError as e:
        raise StoreError(f"{report} cannot be written: {e.strerror or e}") from e


def _show(fleet: Fleet, said: str) -> None:
    from edgeroute.tools.measure.report.page import difference, how, verdict

    print(said)
    show_arms([{key: list(value) if isinstance(value, tuple) else value for key, value in arm._asdict().items()}
               for arm in fleet.arms])  # fmt: skip
    if not fleet.settings.measures:
        return
    less = f"{fleet.arms[1].arm} less {fleet.arms[0].arm}"
    rows = [(one.measure, *difference(one)) for one in fleet.differences]
    table((less, "difference", "interval", "allowed", ""), rows, (less, ""))
    print(how(fleet))
    console().print(" ".join(verdict(fleet)), markup=False)
