"""What came of the arms of the cloud, as `status` and `arms` show it, of one device or many."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgeroute.cli.tables import table
from edgeroute.core.texts import printable
from edgeroute.record.cloud_arms import STORED

if TYPE_CHECKING:
    from edgeroute.cli.state_file import Value


def cloud_arms_of(kept: Mapping[str, Value]) -> dict[str, Any]:
    """What a router stored of its arms; empty: there are none."""
    stored = kept[STORED].value if STORED in kept else None
    return stored if isinstance(stored, dict) and isinstance(stored.get("arms"), list) else {}


def together(devices: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The statistics of each arm over all devices that compare the same with the same settings as the first of them."""
    from edgeroute.router.cloud_arm_tally import summed

    return [arm._asdict() for arm in summed(devices)]


def show_fleet(paths: Sequence[Path]) -> list[dict[str, Any]]:
    """The arms of the cloud over the devices whose state folders these are; empty: none has some."""
    from edgeroute.cli.state_file import read

    found = [stored for path in paths if path.is_dir() and (stored := cloud_arms_of(read(path)))]
    if not found:
        return []
    alike = [one for one in found if one.get("of") == found[0].get("of")]
    if len(alike) < len(found):
        print(f"{len(found) - len(alike)} devices have other arms of the cloud, or settings: left out", file=sys.stderr)
    return together(alike)


def show_cloud_arms(arms: Sequence[Mapping[str, Any]]) -> None:
    """Prints them, with 95 % intervals."""
    if not arms:
        return
    rows = []
    for one in arms:
        differs = _share(one, "differs") if one.get("compared") else "-"
        parts = [_share(one, "shadow_differs")] if one.get("shadowed") else []
        parts += [f"{one['shadow_failed']:,} failed"] if one.get("shadow_failed") else []
        shadow = ", ".join(parts) or "-"
        failed = _share(one, "failed") if one.get("calls") else "-"
        cost, took = _mean(one, "usd", 1, "{:.3g}"), _mean(one, "mean_s", 1000, "{:.2f} ms")
        share = one.get("share")
        part = f"{share:.1%}" if isinstance(share, float | int) else "-"
        rows.append((one.get("arm"), part, one.get("calls"), failed, differs, shadow, cost, took))
    table(("cloud", "share", "calls", "failed", "differ from edge", "in shadow", "USD a call", "mean"), rows, ("cloud",))
    for one in arms:
        if one.get("stopped"):
            print(printable(f"  arm {one.get('arm')} is stopped: {one['stopped']}"))


def _mean(arm: Mapping[str, Any], name: str, times: float, form: str) -> str:
    """A mean with its interval; "-": there is none."""
    part: Any = arm.get(name)
    if not arm.get("calls") or not _part(part):
        return "-"
    value, low, high = (form.format(times * one) for one in part)
    return f"{value} ({low} to {high})"


def _part(given: Any) -> bool:
    return isinstance(given, list | tuple) and len(given) == 3  # noqa: PLR2004 - a number and its interval


def _share(arm: Mapping[str, Any], name: str) -> str:
    part = arm.get(name)
    return f"{part[0]:.2%} ({part[1]:.2%} to {part[2]:.2%})" if part is not None and _part(part) else "-"
