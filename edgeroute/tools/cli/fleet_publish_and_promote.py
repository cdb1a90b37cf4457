"""Commands `edgeroute fleet publish` and `budget`, which sign; `promote`, which goes on, halts or rolls back; and `following`.

`following` shows the signed policy that this device has in force.
"""

from __future__ import annotations

import json
import re
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from edgeroute.core.error_codes_and_texts import printable
from edgeroute.errors import BadInput
from edgeroute.system.wall_clock import now
from edgeroute.tools.cli.command_runner import NOT_READY, OK, TOO_FEW, command
from edgeroute.tools.cli.fleet_collect_report_rotate import fleet
from edgeroute.tools.cli.models_and_publishing import CATALOG, KEYS, CatalogFolder, Days, Keys
from edgeroute.tools.cli.tables_and_options import Json, Policy, rings_of

if TYPE_CHECKING:
    from edgeroute.tools.fleet.policy_rollout_by_rings import Decision

Name = Annotated[str, typer.Option("--name", metavar="NAME", help="Name of the policy.")]


@command(fleet)
def publish(
    policy: Annotated[Path | None, typer.Argument(metavar="POLICY")] = None,
    *,
    name: Name,
    catalog: CatalogFolder = CATALOG,
    keys: Keys = KEYS,
    rings: Annotated[Any, typer.Option(parser=rings_of, metavar="SHARES")] = "1%,10%,100%",
    halt: Annotated[str, typer.Option(metavar="LIMITS")] = "",
    requires: Annotated[str, typer.Option(metavar="VERSION")] = "",
    only_edge: Annotated[bool | None, typer.Option("--only-edge/--no-only-edge")] = None,
    freeze: Annotated[bool | None, typer.Option("--freeze/--no-freeze")] = None,
    days: Days = 30,
    as_json: Json = False,
) -> None:
    """Sign a policy for the first ring of the devices that follow it, or an order for all of them.

    The sections [local] and [fleet] of the file, and its key state, are each device's own, and are not published.

    Args:
        policy: The new policy; without it orders alone.
        rings: Shares of the devices, one after another.
        halt: Limits at which a ring halts, as in "degraded>2%, cost>+20%, alarm".
        requires: Lowest edgeroute.
        only_edge: Emergency: from their next look on, devices send nothing to the cloud, whatever their ring.
        freeze: No device takes a new version.

    Writes the signed file into the catalog's folder, and prints the versions with their shares. What cannot be published is
    refused as a wrong option (`typer.BadParameter`).
    """
    from edgeroute.tools.fleet.policy_rollout_by_rings import publish

    try:
        data = publish(
            catalog, name, policy, keys=keys, rings=rings, halt=halt, requires=requires, only_edge=only_edge,
            freeze=freeze, days=days,
        )  # fmt: skip
    except BadInput as e:  # an option's
        raise typer.BadParameter(str(e)) from None
    _print(data, as_json)


@command(fleet)
def promote(
    store: Annotated[Path | None, typer.Argument(metavar="STORE")] = None,
    *,
    name: Name,
    catalog: CatalogFolder = CATALOG,
    keys: Keys = KEYS,
    by_hand: Annotated[Literal["go-on", "halt", "roll-back"] | None, typer.Option("--by-hand")] = None,
    since: Annotated[datetime | None, typer.Option(metavar="DAY", formats=["%Y-%m-%d"])] = None,
    dry_run: bool = False,
    days: Days = 30,
    as_json: Json = False,
) -> int:
    """Compare the ring of a new policy with the rest of the fleet, and go on to the next ring, halt, or roll back.

    One step a run, for cron or a timer, after `fleet collect` and `fleet alarm`. Exit code 5: more evidence is needed; 4: it was
    halted or rolled back.

    Args:
        store: Folder of tables that `edgeroute fleet collect` wrote.
        by_hand: Do this, whatever the digests say.
        since: First day whose digests count; by default that on which the ring began.
        dry_run: Print what would be done, and do nothing.

    A step signs the catalog again. Without evidence nothing is written.
    """
    from edgeroute.tools.fleet.policy_rollout_by_rings import Decision, promote, published

    data = published(catalog, name)
    decision = Decision(by_hand.replace("-", "_"), "by hand") if by_hand else _decision(store, data, since)  # type: ignore[arg-type]  # one of these
    decision = decision.possible(data)
    if decision.did != "wait" and not dry_run:
        data = promote(catalog, name, decision, keys=keys, days=days, about=data["versions"][-1])
    _print(data, as_json, did=decision.did, text=decision.text, dry_run=dry_run)
    return {"wait": TOO_FEW, "halt": NOT_READY, "roll_back": NOT_READY}.get(decision.did, OK)


def _decision(store: Path | None, data: dict[str, Any], since: datetime | None) -> Decision:
    """Return the decision about the last version of a signed policy, by the store's digests since `since` and its alarms.

    Raises:
        typer.BadParameter: `store` is None.
    """
    from edgeroute.tools.fleet.digest_parquet_store import open_store, reading
    from edgeroute.tools.fleet.fleet_alarms import last_look
    from edgeroute.tools.fleet.policy_rollout_by_rings import decide_by_tables

    if store is None:
        raise typer.BadParameter("the folder that `edgeroute fleet collect` writes is needed, or --by-hand", param_hint="STORE")
    with reading(store), open_store(store) as connection:
        return decide_by_tables(connection, data, None if since is None else since.date(), look=last_look(store))


@command(fleet)
def budget(
    store: Annotated[Path, typer.Argument(metavar="STORE")],
    *,
    name: Name,
    per_day: Annotated[str, typer.Option(metavar="AMOUNTS")],
    catalog: CatalogFolder = CATALOG,
    keys: Keys = KEYS,
    day: Annotated[datetime | None, typer.Option(metavar="DAY", formats=["%Y-%m-%d"])] = None,
    days: Days = 30,
    as_json: Json = False,
) -> None:
    """Split a daily budget over the devices that follow a policy, by their recent use, and sign it. Once a day, as by cron.

    Args:
        store: Folder of tables that `edgeroute fleet collect` wrote.
        per_day: Budget of all devices, as in 500usd, or 500usd,20000mb.
        day: The day that the budget is for; by default today, UTC.

    Writes the signed budget into the catalog, and prints each limit, as a share of a device's mean use and for a new device.
    """
    from edgeroute.tools.fleet.budget_shares_and_signing import renew
    from edgeroute.tools.fleet.digest_parquet_store import open_store, reading

    today = (day or datetime.fromtimestamp(now(), timezone.utc)).date()
    with reading(store), open_store(store) as connection:
        data = renew(connection, name, _amounts(per_day), catalog=catalog, keys=keys, today=today, days=days)
    if as_json:
        print(json.dumps(data))
        return
    for key, rule in data["limits"].items():
        used = f"{rule['least']:.4g} and {rule['factor']:.4g} times its mean use of the last days"
        print(printable(f"{key} of a device: {used}; {rule['new']:.4g} for a new one; valid to {data['until']}"))


def _amounts(text: str) -> dict[str, float]:
    """Parse amounts such as 500usd,20000mb to `usd_per_day` and `mb_per_day`; raise `typer.BadParameter` for all else."""
    amounts = {}
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d+\.?\d*|\.\d+)\s*(usd|mb)\s*", part.lower())
        if match is None:
            raise typer.BadParameter(f"expected amounts, as in 500usd,20000mb, found {part!r}", param_hint="--per-day")
        amounts[f"{match[2]}_per_day"] = float(match[1])
    return amounts


@command(fleet)
def following(*, policy: Policy, as_json: Json = False) -> int:
    """Show the signed policy that this device has in force. Exit code 4: a newer one, or the catalog, was refused.

    Raises:
        BadInput: the policy follows no signed policy.
    """
    from edgeroute.catalog.signed_policy_follower import last_problem, standing, state_folder
    from edgeroute.policy.file_and_environment import read_policy

    folder = state_folder(read_policy(policy), policy.parent)
    if folder is None:
        raise BadInput(f"{policy} follows no signed policy: [fleet] policy names one")
    known, problem = standing(folder), last_problem(folder)
    data = {**{key: value for key, value in known._asdict().items() if not key.endswith("policy")}, "problem": problem}
    nothing = "no signed policy is in force yet: routers made with watch=True, and the gateway, follow it"
    texts = [known.text or nothing, *([problem] if problem else [])]
    print(json.dumps(data) if as_json else printable("; ".join(texts)))
    return NOT_READY if known.refused or problem else OK


def _print(data: dict[str, Any], as_json: bool, **more: Any) -> None:
    """Print the versions of a signed policy with their shares, its orders, and what was decided, on one line or as JSON.

    more: further keys of the JSON; `did` and `text` come first on the line.
    """
    versions = [{key: v[key] for key in ("version", "share", "halted")} for v in data["versions"]]
    orders = {key: data[key] for key in ("only_edge", "freeze")}
    if as_json:
        print(json.dumps({"name": data["name"], **orders, "versions": versions, **more}))
        return
    texts = [f"{more['did']}: {more['text']}"] if more else []
    texts += [
        f"{data['name']}-{v['version']} for {100 * v['share']:.3g} % of the devices{', halted' * v['halted']}" for v in versions
    ]
    texts += [text for key, text in (("only_edge", "nothing leaves any device"), ("freeze", "frozen")) if orders[key]]
    print(printable("; ".join(texts)))
