from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edgeroute.errors import BadInput, StoreError
from edgeroute.tools.cli.exits import NOT_READY, OK
from edgeroute.tools.cli.status import arms_of, settings_of, show_arms, show_cloud_arms, show_fleet
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
    """Compares the arms of an A/B comparison over many devices, and says whether B is worse than is allowed.

    Where each device is in one arm, no device can compare them by itself: this does. Exit code 4: B is worse, stop it; or an arm
    of the cloud is stopped, of which the sums over state folders are shown.
    """
    from edgeroute.tools.measure.fleet import compared
    from edgeroute.tools.measure.report.page import made_of

    clouds = show_fleet(devices)
    found = list[Any]()
    for path in devices:
        read = [one for one in _read(path) if one is not None]
        found += read
        if not read and not clouds:
            print(f"{path} has no A/B comparison: left out", file=sys.stderr)
    if clouds and not found:
        if as_json:
            print(json.dumps({"cloud_arms": clouds}, allow_nan=False))
        else:
            show_cloud_arms(clouds)
        return NOT_READY if any(one["stopped"] for one in clouds) else OK
    fleet = compared(found)
    said = made_of(len(found), sum(arm.requests for arm in fleet.arms))
    if report is not None:
        _write(report, fleet, said)
    code = NOT_READY if fleet.worse else OK
    if as_json:
        more = {"cloud_arms": clouds} if clouds else {}
        print(json.dumps({"devices": len(found), **fleet.as_dict(), **more}, allow_nan=False))
        return code
    _show(fleet, said)
    show_cloud_arms(clouds)
    if report is not None:
        print(f"written to {report}")
    return code


def _read(path: Path) -> Iterator[Device | None]:
    """The devices of a state folder, or of a file; None: one without arms.

    Raises:
        BadInput: it is neither.
    """
    if path.is_dir():
        from edgeroute.tools.cli.status import read_state

        kept = read_state(path)
        yield _device(str(path), {"arms": arms_of(kept), "ab": settings_of(kept)})
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
        yield _device(origin, one)


def _device(origin: str, told: Any) -> Device | None:
    from edgeroute.tools.measure.fleet import Device, settings_of

    if not isinstance(told, dict):
        raise BadInput(f"{origin} is not what `edgeroute status --json` prints")
    own, kept = told.get("arms"), told.get("ab")
    if not own or not isinstance(own, list) or not isinstance(kept, dict):
        return None
    settings, name = settings_of(kept), kept.get("device")
    if settings is None or not all(isinstance(arm, dict) for arm in own):
        raise BadInput(f"{origin}: the settings of its A/B comparison cannot be read")
    return Device(origin, None if name is None else str(name), settings, own)


def _write(report: Path, fleet: Fleet, said: str) -> None:
    from edgeroute.system.process import replace_file
    from edgeroute.tools.measure.report.page import document, of_fleet

    try:
        replace_file(report, document(of_fleet(fleet, said)))
    except OSError as e:
        raise StoreError(f"{report} cannot be written: {e.strerror or e}") from e


def _show(fleet: Fleet, said: str) -> None:
    from edgeroute.tools.measure.report.page import difference, how, verdict

    print(said)
    show_arms([{key: list(value) if isinstance(value, tuple) else value for key, value in arm._asdict().items()}
               for arm in fleet.arms])  # fmt: skip
    columns = ("B less A", "difference", "interval", "allowed", "")
    table(columns, [(one.measure, *difference(one)) for one in fleet.differences], ("B less A", ""))
    print(how(fleet))
    console().print(" ".join(verdict(fleet)), markup=False)
