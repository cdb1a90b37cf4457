"""What came of the arms of an A/B comparison, as `status` shows it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from edgeroute.cli.tables import table
from edgeroute.core.texts import printable
from edgeroute.record.ab import STORED

if TYPE_CHECKING:
    from edgeroute.cli.state_file import Value


def arms_of(kept: Mapping[str, Value]) -> list[dict[str, Any]]:
    """The statistics of each arm, as they were stored last; empty: there are none."""
    stored = kept[STORED].value if STORED in kept else None
    found = stored.get("arms") if isinstance(stored, dict) else None
    return [one for one in found if isinstance(one, dict)] if isinstance(found, list) else []


def settings_of(kept: Mapping[str, Value]) -> dict[str, Any]:
    """The settings of the comparison, as they were stored with them."""
    stored = kept[STORED].value if STORED in kept else None
    found = stored.get("settings") if isinstance(stored, dict) else None
    return found if isinstance(found, dict) else {}


def show_arms(arms: Sequence[Mapping[str, Any]]) -> None:
    """Prints them, with 95 % intervals."""
    if not arms:
        return
    fleet = "devices" in arms[0]
    columns = ("arm", "model", *(["devices"] if fleet else []), "requests", "failed", "deferred", "differ", "loss", "mean", "p99")
    rows = []
    for one in arms:
        shares = [_share(one.get(key)) for key in ("failed", "deferred", "differs", "loss")]
        if not one.get("compared"):
            shares[2:] = ["-", "-"]
        counts = [one.get(key) for key in ("devices", "requests")[not fleet :]]
        times = (_ms(one.get(key)) for key in ("mean_s", "p99_s"))
        rows.append((one.get("arm"), one.get("model"), *counts, *shares, *times))
    table(columns, rows, ("arm", "model"))
    for one in arms:
        if one.get("stopped"):
            print(printable(f"  arm {one.get('arm')} is stopped: {one['stopped']}"))


def _share(part: Any) -> str:
    return f"{part[0]:.2%} ({part[1]:.2%} to {part[2]:.2%})" if isinstance(part, list) and len(part) == 3 else "-"  # noqa: PLR2004


def _ms(seconds: Any) -> str:
    if isinstance(seconds, list):
        return f"{1000 * seconds[0]:.2f} ms ({1000 * seconds[1]:.2f} to {1000 * seconds[2]:.2f})"
    return "-" if seconds is None else f"{1000 * seconds:.2f} ms"
