"""Commands `edgeroute fleet collect`, which adds digests to tables, `report` of these, and `rotate`, a new id of this device."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Sequence
from contextlib import closing
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edgeroute.errors import BadInput, StoreError
from edgeroute.system import files_and_lock_waits, wall_clock
from edgeroute.system.untrusted_files import read_text
from edgeroute.tools.cli import tables_and_options as ui
from edgeroute.tools.cli.command_runner import NOT_READY, OK, command
from edgeroute.tools.cli.fleet_alarm_and_calibrate import alarm, calibrate
from edgeroute.tools.cli.outbox_egress_and_state_folder import state_folder

if TYPE_CHECKING:
    from edgeroute.tools.fleet.digest_collection import Collected
    from edgeroute.tools.fleet.fleet_sums_and_forecast import FleetReport

fleet = typer.Typer(
    name="fleet",
    no_args_is_help=True,
    help="Read what the devices of a fleet send by [fleet] in their policies: pip install 'edgeroute[fleet]'.",
)


@command(fleet)
def collect(
    source: Annotated[str, typer.Argument(metavar="FROM")],
    *,
    to: Annotated[Path, typer.Option(metavar="DIR")],
    key: str | None = None,
    models: list[str] | None = None,
    for_s: Annotated[float | None, typer.Option("--for", parser=ui.seconds, metavar="TIME")] = None,
    as_json: ui.Json = False,
) -> None:
    """Add the devices' digests to a store of tables. Each digest counts once, however often this is run; bad ones are refused.

    The store names refused digests in refused.jsonl.

    Args:
        source: Where the devices send to: a folder, s3://BUCKET/PREFIX or mqtts://HOST/TOPIC.
        for_s: How long to receive from a broker. Default: until Ctrl-C.
        to: Folder of the store; it is created.
        key: Environment variable, or file, with the key of [fleet] key: digests without its signature are refused.
        models: A known model, NAME or NAME:DIGEST; may be repeated. Digests of others are refused. Default: all are known.

    Prints how many were added and of which days; how many were refused, by reason, on stderr.
    """
    from edgeroute.tools.measure.report.numbers_verdicts_and_table_rows import count_text

    result = _collect(source, to, key, models or (), for_s)
    days = [day.isoformat() for day in result.days]
    if as_json:
        print(json.dumps({"added": result.added, "days": days, "repeated": result.repeated, "refused": result.refused}))
        return
    there = f"; in the store already: {result.repeated:,}" if result.repeated else ""
    print(f"{count_text(result.added, 'digest')} added{f', of {days[0]} to {days[-1]}' if days else ''}{there}")


@command(fleet)
def report(
    source: Annotated[str, typer.Argument(metavar="STORE")],
    *,
    budget: Annotated[float | None, typer.Option(min=0, metavar="USD")] = None,
    days: Annotated[int | None, typer.Option(min=1, metavar="N")] = None,
    html: Annotated[Path | None, typer.Option(metavar="FILE")] = None,
    key: str | None = None,
    as_json: ui.Json = False,
) -> int:
    """Report requests, deferral, cost, degradation and latency of a fleet, by model, policy, site and week, and unlike devices.

    Exit code 4: the budget is spent, or will be.

    Args:
        source: The folder that `fleet collect` writes; or a folder or s3://BUCKET/PREFIX of digests; or a folder of traces.
        budget: US dollars a month, to compare with what the month is expected to cost.
        days: Only the newest days, so many. Default: all.
        html: Also write a page with figures.
        key: Of digests, as for `edgeroute fleet collect`.

    Digests and traces that are no store are collected into a temporary one, which is deleted.

    Raises:
        BadInput: there is no digest, or the source is a broker.
        typer.BadParameter: the page's folder does not exist.
    """
    from edgeroute.tools.fleet import fleet_sums_and_forecast
    from edgeroute.tools.fleet.digest_parquet_store import is_store, open_store, reading

    if html is not None:
        ui.check_output(html, ui.REPORT, "--html")
    with tempfile.TemporaryDirectory() as folder:
        store, left_out = Path(source), []
        if not is_store(store):
            store = Path(folder)
            left_out = _fill(store, source, key)
        with reading(store), open_store(store) as connection:
            connection.executemany("INSERT INTO refused VALUES (?, ?)", left_out) if left_out else None
            result = fleet_sums_and_forecast.report(connection, budget, days)
    if result is None:
        raise BadInput(f"{source} has no digest")
    if as_json:
        print(json.dumps(result.json()))
    else:
        _print(result)
    if html is not None:
        from edgeroute.tools.fleet.fleet_page import page

        files_and_lock_waits.replace_file(html, page(result))
        if not as_json:
            print(f"written to {html}")
    return NOT_READY if result.forecast.verdict in {"spent", "over"} else OK


def _fill(store: Path, source: str, key: str | None) -> list[tuple[str, str]]:
    """Fill a new store with the digests of a source, or the traces of a folder without digests.

    Return (file, why) of traces that are left out.

    Raises:
        BadInput: there is neither, or the source is a broker.
    """
    from edgeroute.tools.fleet.traces_as_digest_tables import write_tables

    if source.startswith("mqtt"):
        raise BadInput("a broker has no past: `edgeroute fleet collect` it first")
    if _has_traces(source):
        ui.print_notes(["of traces: without failed requests and audits, and by estimate where they are a sample"])
        return write_tables(Path(source), store)
    if not _collect(source, store, key, ()).added:
        raise BadInput(f"{source} has neither digests nor traces")
    return []


def _has_traces(source: str) -> bool:
    """Return True for a folder with traces and without digests."""
    from edgeroute.tools.replay.read_and_pack_traces import traces

    if "://" in source or any(Path(source).glob("**/*.digest")):
        return False
    try:
        return bool(traces(Path(source)))
    except BadInput:
        return False


def _print(result: FleetReport) -> None:
    """Print a fleet's report: days, devices, tables by each grouping, unlike and costly devices, forecast; notes on stderr."""
    from edgeroute.tools.fleet import fleet_page as page
    from edgeroute.tools.measure.report.numbers_verdicts_and_table_rows import count_text

    print(f"{result.first} to {result.last}, {count_text(result.total.devices, 'device')}")
    ui.print_notes(page.gaps_in_data(result))
    for by in page.TITLES:
        rows = page.rows(result, by)
        if by == "model":
            rows.append(["all", *page.cells(result.total)])
        ui.table((by, *page.HEAD), rows, (by,))
    if result.worst:
        ui.table(page.OUTLIER_HEAD, [page.outlier_cells(device) for device in result.worst], ("device", "site", "share"))
    if result.costly:
        ui.table(page.COSTLY_HEAD, page.costly_rows(result), ("device", "site"))
    if any(money := page.money_in_words(result.forecast)):
        print(*money)


def _collect(source: str, to: Path, key: str | None, models: Sequence[str], for_s: float | None = None) -> Collected:
    """Collect digests of a source into the store in `to`, and print on stderr how many were refused, by reason.

    From a broker it receives for `for_s` seconds, None: until Ctrl-C.

    key: name of an environment variable or file; None: signatures are not required.
    """
    from edgeroute.tools.fleet.digest_collection import REASONS, Rules, collect
    from edgeroute.tools.fleet.digest_sources import source_of

    secret, known = _key(key), frozenset(models)

    def rules() -> Rules:
        """Return the rules of today."""
        return Rules(datetime.fromtimestamp(wall_clock.now(), timezone.utc).date(), secret, known)

    if source.startswith(("mqtt://", "mqtts://")):
        from edgeroute.tools.fleet.broker_inbox import collect_messages

        result = collect_messages(source, to, rules, for_s=for_s, ready=lambda: ui.print_notes(["receiving"]))
    else:
        result = collect(source_of(source), to, rules())
    ui.print_notes(f"{count:,} refused: {REASONS[why]}" for why, count in result.refused.items() if count)
    return result


def _key(name: str | None) -> bytes:
    """Return the key in an environment variable, else in a file, of this name; empty without a name.

    Raises:
        typer.BadParameter: there is neither, or it is empty.
    """
    if name is None:
        return b""
    try:
        text = (os.environ.get(name) or read_text(name)).strip()
    except (OSError, ValueError):
        text = ""
    if not text:
        raise typer.BadParameter(f"{name}: neither an environment variable nor a file with a key", param_hint="--key")
    return text.encode()


@command(fleet)
def rotate(*, policy: ui.OptionalPolicy = None, state: ui.OptionalState = None, as_json: ui.Json = False) -> None:
    """Draw a new random id for this device's digests. A day of which there is a digest keeps its id.

    The owner sees a new device. Programs that run take the new id.

    Raises:
        BadInput: there is no state database in the folder; none is created.
        StoreError: it cannot be written.
    """
    from edgeroute.fleet.daily_digest_spool_and_upload import new_device
    from edgeroute.stores.sqlite_file_and_key_values import KeyValueStore

    path = state_folder(policy, state) / "state.db"
    if not path.exists():
        raise BadInput(f"{path}: there is no state: no router with this state folder has run, or it was removed")
    with closing(KeyValueStore(path)) as store:
        device = new_device(store)
        if not store.flush():
            raise StoreError(f"{path} cannot be written now")
    print(json.dumps({"device": device}) if as_json else f"this device is {device} from the next day on")


for each in (alarm, calibrate):
    command(fleet)(each)
