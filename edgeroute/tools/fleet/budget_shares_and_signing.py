"""Daily budget of a fleet: split over the devices by their recent use (`shares`), and signed like a policy (`renew`).

The signed rule is four numbers for each limit, whatever the number of devices: a device knows its own use, and computes its own
limit. So no list of devices is downloaded, no id is published, and a device whose id was rotated keeps its limit.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import date, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from edgeroute.catalog.catalog_entry import checked_name
from edgeroute.catalog.signed_policy_follower import BUDGETS, FORMAT, WINDOW
from edgeroute.errors import BadInput
from edgeroute.system.untrusted_files import parse_json
from edgeroute.tools.catalog_keys_and_publishing import LISTS_DAYS, publishing, sign_files, signed_file

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

# Share of the budget that is split evenly; share for devices without known use; part of a limit with an old budget.
LEAST, NEW, RESERVE = 0.2, 0.05, 0.1
MANY, HEAVIEST = 100, 10.0  # devices from which on the use of one counts as so many times that of the largest hundredth at most
# Part of a day's overspending by which the margin changes; most that counts of what was spent more, or less; largest margin.
GAIN, RISES, FALLS, MOST_MARGIN = 0.5, 0.2, 0.05, 0.5
COMPLETE = 0.9  # share of the usual devices from which the last two days have all
VALID_DAYS = 2  # days after its own for which a budget is valid
COLUMNS = {"usd_per_day": "sum(usd)", "mb_per_day": "sum(bytes) / 1e6"}  # limit -> expression over the table of requests


class Rule(NamedTuple):
    """Rule by which each device computes its limit.

    Attributes:
        factor: limit by unit of the device's mean use a day.
        new: limit of a device without known use.
        most: largest limit: a device that reports any use does not leave the others nothing.
    """

    least: float
    factor: float
    new: float
    most: float


def shares(usage: ArrayLike, total: float, *, margin: float = 0.0, arrivals: float = 1.0) -> Rule:
    """Return the rule that splits a budget, less the margin, over devices by their use. All limits add up to that.

    Devices without known use get equal limits, together 5 % of it at most. A fifth of the rest is split evenly, and all of it
    without any use. From 100 devices on, a use far above the others' is cut.

    Args:
        usage: mean use a day of each device that was in use recently, [devices].
        total: the budget of a day.
        margin: share of the budget that is held back for what the limits do not reach, see `next_margin`.
        arrivals: expected number of devices without known use.
    """
    use = np.asarray(usage, float)
    if len(use) >= MANY:
        use = np.minimum(use, HEAVIEST * np.quantile(use, 0.99))
    left = total * (1 - margin)
    each = min(left * NEW / max(1.0, arrivals), left / (len(use) + max(1.0, arrivals)))
    left -= each * arrivals
    even = LEAST if use.sum() > 0 else 1.0
    factor = (1 - even) * left / use.sum() if use.sum() > 0 else 0.0
    floor = even * left / max(1, len(use))
    return Rule(floor, float(factor), each, floor + float(factor) * use.max(initial=0.0))


def in_use(recent: NDArray[Any], most: int) -> NDArray[Any]:
    """Return which devices of the week the budget is split over, [devices]: those of its last two days, or all.

    All if the last days have far fewer devices than another day: the others rest on a weekend, or their digests are late, and
    they spend as before. Without them the limits would add up to a multiple of the budget.

    Args:
        recent: True for devices with a digest of the last two days.
        most: number of devices on the day of the week that has most.
    """
    return recent if recent.sum() >= COMPLETE * most else np.ones_like(recent)


def limit_for(rule: Rule, usage: ArrayLike) -> NDArray[Any]:
    """Return the limits of devices with this use, [devices]; NaN: not known."""
    use = np.asarray(usage, float)
    return np.where(np.isnan(use), rule.new, np.minimum(rule.least + rule.factor * use, rule.most))


def next_margin(margin: float, spent: float, total: float) -> float:
    """Return the margin for the next day, by the spending of one: it grows with overspending, and falls with the rest.

    The margin stands for devices that have old limits, or none. It grows at once and falls slowly, since what overspends today is
    there tomorrow, and a quiet weekend tells nothing of it.
    """
    return float(np.clip(margin + GAIN * np.clip(spent / max(total, 1e-9) - 1, -FALLS, RISES), 0, MOST_MARGIN))


def target(name: str) -> str:
    """Return the path of a policy's budget among a catalog's signed files. Raises CatalogError for an invalid name."""
    return f"policies/{checked_name(name)}.budget.json"


def renew(
    connection: Any, name: str, totals: Mapping[str, float], *, catalog: Path, keys: Path, today: date, days: float = LISTS_DAYS
) -> dict[str, Any]:
    """Compute a budget by the tables of digests of the last week, sign it into the catalog, and return its data.

    Holds the publisher's lock. The margin of each limit follows from the last signed budget and the last day's spending.

    Args:
        connection: tables, as of `digest_parquet_store.open_store`.
        name: name of the policy that the devices follow.
        totals: key of `[limits]`, of `BUDGETS` -> budget of the fleet for a day.
        catalog: folder of the catalog.
        keys: folder of the keys.
        today: the day that the budget is for.
        days: days that devices accept the catalog.

    Raises:
        BadInput: an amount is unknown or negative, or there are no digests to split it by.
        CatalogError, PolicyError, StoreError: the catalog or a key cannot be read or written.
    """
    if not totals or any(key not in BUDGETS or not 0 <= total < np.inf for key, total in totals.items()):
        raise BadInput(f"a budget is an amount of {' or '.join(BUDGETS)}")
    through = today - timedelta(days=1)
    first = through - timedelta(days=WINDOW - 1)
    with publishing(catalog):
        last = parse_json(signed_file(catalog, target(name)) or b"{}")
        margins, limits = dict(last.get("margins", {})), {}
        by_day = "SELECT count(DISTINCT device) AS n FROM requests WHERE day BETWEEN ? AND ? GROUP BY day"
        most = connection.execute(f"SELECT coalesce(max(n), 0) FROM ({by_day})", [first, through]).fetchone()[0]
        for key, total in totals.items():
            rows = connection.execute(
                f"""
                SELECT device, sum(used) / count(*) AS used, max(day) AS latest, min(day) AS earliest,
                       coalesce(sum(used) FILTER (WHERE day = $through), 0) AS last
                FROM (SELECT device, day, {COLUMNS[key]} AS used FROM requests WHERE day BETWEEN $first AND $through GROUP BY ALL)
                GROUP BY ALL
                """,
                {"first": first, "through": through},
            ).fetchnumpy()
            if key in last.get("limits", {}):
                spent = np.minimum(rows["last"], last["limits"][key]["most"]).sum()  # no device's limit was higher
                margins[key] = next_margin(margins.get(key, 0.0), float(spent), last["totals"].get(key, total))
            if not len(rows["device"]):
                raise BadInput(f"no digest is of {first} to {through}: a budget is split by the use of these days")
            here = in_use(rows["latest"] >= np.datetime64(through - timedelta(days=1)), most)
            arrived = rows["earliest"] > np.datetime64(first)
            limits[key] = shares(
                np.asarray(rows["used"], float)[here], total, margin=margins.get(key, 0.0),
                arrivals=max(1.0, 2 * arrived.sum() / WINDOW),
            )._asdict()  # fmt: skip
        data = {
            "format": FORMAT, "through": through.isoformat(), "until": (today + timedelta(days=VALID_DAYS)).isoformat(),
            "reserve": RESERVE, "limits": limits, "totals": dict(totals), "margins": margins,
        }  # fmt: skip
        sign_files(catalog, {target(name): json.dumps(data).encode()}, keys=keys, days=days)
    return data
