"""Commands on the state folder: `outbox` shows and changes waiting requests, `egress` shows the ledger of attempts to send.

Also the helpers that find a state folder (`state_folder`), open an outbox, and parse times.
"""

from __future__ import annotations

import json
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from contextlib import closing
from datetime import datetime
from math import inf
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from edgeroute.errors import BadInput, PolicyError, StoreError
from edgeroute.system import files_and_lock_waits, json_codec_and_short_repr, wall_clock
from edgeroute.tools.cli.command_runner import FAILED, OK, command, line
from edgeroute.tools.cli.tables_and_options import File, Json, OptionalPolicy, OptionalState, local_time, seconds, table

if TYPE_CHECKING:
    from edgeroute.stores.outbox import Outbox

MOST_ROWS = 500  # most entries to show, the latest

Ids = Annotated[list[str] | None, typer.Argument(metavar="ID...", help="Ids as `list` shows them.")]

outbox = typer.Typer(
    name="outbox",
    no_args_is_help=True,
    help="Show and change requests that wait to be sent. A router may use the same files at the same time.",
)


@command(outbox, "list")
def list_entries(
    *,
    policy: OptionalPolicy = None,
    state: OptionalState = None,
    state_is: Literal["waiting", "answered", "dead"] | None = None,
    as_json: Json = False,
) -> None:
    """Show the entries (without --json the latest 500), and totals by final state.

    Args:
        state_is: Show only entries in this state.
    """
    with _open_outbox(policy, state) as box:
        if as_json:
            separator = '{"entries": ['
            for entry in box.pages(state_is):
                print(separator, _dumps(entry._asdict()), sep="", end="")
                separator = ", "
            print("" if separator == ", " else separator, f'], "counts": {_dumps(box.counts())}}}', sep="")
            return
        entries, counts = box.list(state_is, latest=MOST_ROWS), box.counts()
        total = box.size(state_is)
    columns = ("id", "state", "target", "class", "queued", "attempts", "bytes", "error")
    cells = [(e.id, e.state, e.target, e.data_class, local_time(e.queued_at), e.attempts, e.bytes, e.error) for e in entries]
    table(columns, cells, [name for name in columns if name not in {"attempts", "bytes"}])
    if total > MOST_ROWS:
        print(f"these are the latest {MOST_ROWS:,} of {total:,}; --json has them all")
    now = {name: counts.pop(name) for name in ("waiting", "bytes")}
    for label, numbers in (("since the file was made", counts), ("now", now)):
        print(f"{label}: {', '.join(f'{n:,} {name}'.replace('_', ' ') for name, n in numbers.items())}")


@command(outbox)
def retry(
    ids: Ids = None,
    *,
    every: Annotated[bool, typer.Option("--all")] = False,
    policy: OptionalPolicy = None,
    state: OptionalState = None,
    as_json: Json = False,
) -> int:
    """Requeue dead letters, with a new time to live. Sends nothing: a router that uses the file does.

    Args:
        every: Requeue all dead letters.

    Prints how many wait again. Returns exit code 1, with an error on stderr, for each id that has no dead entry; the others are
    requeued. Ids and `every` exclude each other.
    """
    names = _ids(ids, every, "--all")
    with _open_outbox(policy, state) as box:
        dead = {name for name, state_is in box.states(names or ()).items() if state_is == "dead"}
        count = box.retry(names)
    print(_dumps({"requeued": count}) if as_json else f"waiting again: {count:,}")
    return _report_missing(names, dead, "there is no dead entry with this id", as_json=as_json)


@command(outbox)
def drop(
    ids: Ids = None,
    *,
    every: Annotated[bool, typer.Option("--all-dead")] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y")] = False,
    policy: OptionalPolicy = None,
    state: OptionalState = None,
    as_json: Json = False,
) -> int:
    """Delete entries permanently, including answers not yet delivered to the application.

    Args:
        every: Delete all dead letters.
        yes: Do not ask for confirmation.

    Asks on stderr, and waits for y on stdin; any other reply aborts. Returns exit code 1, with an error on stderr, for ids that
    do not exist; the others are deleted. Ids and `every` exclude each other.
    """
    names = _ids(ids, every, "--all-dead")
    with _open_outbox(policy, state) as box:
        states_by_id = {entry.id: entry.state for entry in box.pages("dead")} if names is None else box.states(names)
        to_delete = [*states_by_id] if names is None else [name for name in names if name in states_by_id]
        states = ", ".join(sorted({states_by_id[name] for name in to_delete}))
        if to_delete and not yes:
            print(f"remove {len(to_delete):,} ({states}) for good? [y/N]: ", end="", file=sys.stderr, flush=True)  # not on stdout
            if sys.stdin is None or sys.stdin.readline().strip().lower() not in {"y", "yes"}:
                raise typer.Abort
        count = box.drop(to_delete)
    print(_dumps({"removed": count}) if as_json else f"{count:,} removed")
    return _report_missing(names, states_by_id, "there is no entry with this id", as_json=as_json)


@command(outbox)
def export(*, out: File | None = None, policy: OptionalPolicy = None, state: OptionalState = None, as_json: Json = False) -> None:
    """Print every entry with all its contents, including user data, as a line of JSON; bytes are base64.

    Args:
        out: New file, which only you may read, instead of stdout.

    Raises:
        BadInput: there is no outbox.
        StoreError: the file exists or cannot be written, or the outbox cannot be read.
    """
    with _open_outbox(policy, state) as box:
        if out is None:
            for entry in box.export():
                print(_dumps(entry))
            return
        if os.path.lexists(out):
            raise StoreError(f"{out} exists: choose another name")
        new = files_and_lock_waits.name_beside(out)  # a part of the entries looks like all of them
        try:
            try:
                with os.fdopen(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:
                    count = sum(file.write(_dumps(entry) + "\n") > 0 for entry in box.export())
                new.replace(out)
            finally:
                new.unlink(missing_ok=True)
        except OSError as e:
            raise e if isinstance(e, StoreError) else StoreError(f"{out} cannot be written: {e.strerror or e}") from e
    print(_dumps({"entries": count, "file": str(out)}) if as_json else f"entries in {out}: {count:,}")


def state_folder(policy: Path | None, state: Path | None) -> Path:
    """Return the state folder: `state` itself, or the one in the policy file, relative to its folder. It need not exist.

    Raises:
        PolicyError: the policy is invalid, or has no state folder.
        typer.BadParameter: not exactly one of both is given.
    """
    if state is not None and policy is None:
        return state
    if policy is None or state is not None:
        raise typer.BadParameter("one of the two is needed", param_hint="--policy or --state")
    from edgeroute import policy as settings
    from edgeroute.policy.single_sections import at

    configured = settings.load(policy, ("edge", "cloud", "threshold")).state  # which a program may give
    if configured is None:
        raise PolicyError(f"{policy} has no state folder: add state")
    return at(policy.parent, configured)


def _dumps(value: Any) -> str:
    """Write a value as JSON; convert it to plain data first if it is not, or holds NaN or infinity."""
    try:
        return json.dumps(value, allow_nan=False)
    except (TypeError, ValueError):
        return json.dumps(json_codec_and_short_repr.to_json_types(value))


def _open_outbox(policy: Path | None, state: Path | None) -> closing[Outbox]:
    """Open the outbox of a state folder, and close it at the end of the `with` block. Creates none.

    Raises:
        BadInput: there is none, or it cannot be read.
    """
    path = state_folder(policy, state) / "outbox.db"
    if not os.access(path, os.R_OK):  # opening it would create one
        raise BadInput(f"{path}: there is no outbox, or it cannot be read")
    return opened_outbox(path)


def opened_outbox(path: Path) -> closing[Outbox]:
    """Open an outbox, created if missing, and close it at the end of the `with` block. Entries do not expire here."""
    from edgeroute.stores.outbox import Outbox

    return closing(Outbox(path, ttl_s=inf))  # the router expires entries: its policy has the time to live


def _ids(ids: list[str] | None, every: bool, option: str) -> list[str] | None:
    """Return the ids without duplicates; None: all. Raise `typer.BadParameter` for both and for neither.

    option: the option that means all, for the message.
    """
    if bool(ids) == every:
        raise typer.BadParameter("one of the two is needed", param_hint=f"ID... or {option}")
    return [*dict.fromkeys(ids)] if ids else None


def _report_missing(names: Iterable[str] | None, existing: Iterable[str], why: str, *, as_json: bool) -> int:
    """Print an error on stderr for each of `names` that is not in `existing`; return exit code 1 if there is one, else 0."""
    missing = [name for name in names or () if name not in existing]
    for name in missing:
        print(line(BadInput(why), as_json=as_json, id=name), file=sys.stderr)
    return FAILED if missing else OK


# `edgeroute egress`.


# Field of a line of the ledger -> the function that checks and converts it.
FIELDS: dict[str, Callable[[Any], Any]] = {
    "at": float, "to": str, "bytes": int, "data_class": lambda name: None if name is None else str(name), "rule": str,
    "request": str,
}  # fmt: skip


def parse_time(text: str) -> float:
    """Parse a time to seconds since 1970: `90m`, `1h` or `7d` ago, or `2026-11-24` (or `2026-11-24T12:30`) in local time.

    Raises `typer.BadParameter` for all else.
    """
    try:
        return wall_clock.now() - seconds(text)
    except typer.BadParameter:
        pass
    try:
        return datetime.fromisoformat(text).timestamp()
    except (ValueError, OverflowError):
        raise typer.BadParameter(f"expected a time ago, as in 90m, 1h or 7d, or a date, as in 2026-11-24, not {text!r}") from None


def egress(
    *,
    policy: OptionalPolicy = None,
    state: OptionalState = None,
    since: Annotated[float | None, typer.Option(parser=parse_time, metavar="WHEN")] = None,
    data_class: Annotated[str | None, typer.Option("--class", metavar="NAME")] = None,
    to: Annotated[str | None, typer.Option(metavar="TEXT")] = None,
    as_json: Json = False,
) -> None:
    """Show the egress ledger: each attempt to send, with time, destination, bytes, data class and rule.

    Args:
        since: Show attempts from then on: 1h (ago), or 2026-11-24.
        data_class: Show only this data class.
        to: Show only destinations that contain this text.

    Totals by destination and class follow. The table has the latest 500; JSON has all. Incomplete lines are counted.

    Raises:
        BadInput: there is no ledger.
    """
    from edgeroute.stores.json_lines_and_process_locks import read

    path = state_folder(policy, state) / "egress.jsonl"
    if not any(path.parent.glob(f"{path.name}*")):
        raise BadInput(f"{path}: there is no egress ledger: routers with this state folder have sent nothing, or it was removed")
    ledger = read(path, since=since)
    parsed_lines = [_sent(record) for record in ledger]
    skipped = ledger.skipped + parsed_lines.count(None)
    sent = [s for s in parsed_lines if s and data_class in {None, s["data_class"]} and (to or "") in s["to"]]
    attempts, sizes = Counter[tuple[str, str | None]](), Counter[tuple[str, str | None]]()
    for attempt in sent:
        attempts[attempt["to"], attempt["data_class"]] += 1
        sizes[attempt["to"], attempt["data_class"]] += attempt["bytes"]
    totals = [(*key, count, sizes[key]) for key, count in attempts.items()]
    if as_json:
        total_rows = [dict(zip(("to", "data_class", "attempts", "bytes"), total, strict=True)) for total in totals]
        print(json.dumps({"sent": sent, "totals": total_rows, "skipped": skipped}))
        return
    if sent:
        shown = [tuple({**attempt, "at": local_time(attempt["at"])}.values()) for attempt in sent[-MOST_ROWS:]]
        table(("when", "to", "bytes", "class", "rule", "request"), shown, ("when", "to", "class", "rule", "request"))
        if len(sent) > MOST_ROWS:
            print(f"these are the latest {MOST_ROWS:,} of {len(sent):,}; --json has them all")
        table(("to", "class", "attempts", "bytes"), totals, ("to", "class"))
    else:
        print("the ledger has no such attempts")
    if skipped:
        print(f"{skipped:,} incomplete lines were skipped, as after a power cut or on a full disk", file=sys.stderr)


def _sent(record: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the fields of an attempt in a line of the ledger, converted; None if a field is missing or invalid."""
    try:
        return {name: convert(record[name]) for name, convert in FIELDS.items()}
    except (KeyError, TypeError, ValueError, OverflowError):
        return None
